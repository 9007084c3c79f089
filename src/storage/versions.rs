//! The versions of keys: one row each, newest first, and how they are read.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::apply::ApplyError;
use super::engine::Direction;
use super::keys::{self, RowRange};
use super::removals::{self, RangeRemoval, Removal};
use super::rows::Rows;
use crate::limits;
use crate::model::{Row, Timestamp};

/// What the row of a version holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredVersion<'a> {
    /// The key was deleted then: the mark of `removals`.
    Removed,
    /// The value.
    Value(&'a [u8]),
}

impl<'a> StoredVersion<'a> {
    /// A byte that tells which, then the value.
    pub fn encode(self) -> Bytes {
        match self {
            StoredVersion::Removed => Bytes::from_static(&[0]),
            StoredVersion::Value(value) => {
                let mut out = Vec::with_capacity(1 + value.len());
                out.push(1);
                out.extend_from_slice(value);
                out.into()
            }
        }
    }

    pub fn decode(stored: &'a [u8]) -> Result<StoredVersion<'a>, ApplyError> {
        match stored {
            [0] => Ok(StoredVersion::Removed),
            [1, value @ ..] => Ok(StoredVersion::Value(value)),
            _ => Err(ApplyError::Damaged("a version")),
        }
    }
}

/// What there is to look for besides versions. Saying yes where there is nothing costs a seek a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    /// Removals of single keys.
    pub keys: bool,
    /// Removals of ranges.
    pub ranges: bool,
}

/// How many rows can be looked at in the time of one seek, about, as [`PageLimits::visits`] counts.
const ROWS_PER_SEEK: usize = 4;

/// How much of a long read to do at once.
#[derive(Clone, Copy, Debug)]
pub struct PageLimits {
    /// Rows, of which there is always room for one.
    pub rows: usize,
    /// Bytes of keys and values; one longer row still comes alone.
    pub bytes: usize,
    /// Rows of the store looked at, about: what ends then has dealt with one key at least.
    pub visits: usize,
    /// Bytes of those rows, about: what ends then has dealt with one key at least.
    pub scan_bytes: usize,
    /// Leave the values out: an empty one stands for each. They take no room in the page then.
    pub keys_only: bool,
}

impl Default for PageLimits {
    /// The most that a page of this release may be.
    fn default() -> PageLimits {
        PageLimits {
            rows: limits::PAGE_ROWS_MAX,
            bytes: limits::PAGE_BYTES_MAX,
            visits: limits::PAGE_VISITS_MAX,
            scan_bytes: limits::PAGE_SCAN_BYTES_MAX,
            keys_only: false,
        }
    }
}

impl PageLimits {
    /// Whatever is found in so many rows of the store.
    pub(super) fn visits(visits: usize) -> PageLimits {
        let (rows, bytes, scan_bytes) = (usize::MAX, usize::MAX, usize::MAX);
        PageLimits { rows, bytes, visits, scan_bytes, keys_only: true }
    }

    /// What a page shows of a value.
    pub(super) fn shown<'a>(&self, value: &'a [u8]) -> &'a [u8] {
        if self.keys_only { &[] } else { value }
    }
}

/// A piece of a range.
#[derive(Debug, Default)]
pub(super) struct FoundRows {
    pub rows: Vec<Row>,
    /// Where the range goes on.
    pub next: Option<Bytes>,
}

/// The keys of a piece of a range.
#[derive(Debug, Default)]
pub(super) struct FoundKeys {
    pub keys: Vec<Bytes>,
    /// Where the range goes on.
    pub next: Option<Bytes>,
}

/// What [`walk`] does after a row.
enum Step {
    /// The next key.
    NextKey,
    /// Nothing more: begin here, at this key, next time.
    Stop,
}

/// Is shown the row of a version, its time and what it holds.
type ShowVersion<'a> =
    dyn FnMut(&[u8], Timestamp, StoredVersion<'_>) -> Result<Step, ApplyError> + 'a;

/// Is shown a key, the version of it that counts, and its value.
type ShowValue<'a> = dyn FnMut(Vec<u8>, Timestamp, &[u8]) -> Step + 'a;

/// Shows rows as of one time, as seen from one time. The rule is in [`removals`].
pub(super) struct Reader<'a> {
    rows: &'a dyn Rows,
    at: Timestamp,
    seen: Timestamp,
    pending: Pending,
    ranges: Vec<RangeRemoval>,
    /// Versions stepped over before a key is jumped over.
    stepped_max: usize,
}

impl<'a> Reader<'a> {
    /// The newest state of `rows`, for an operation that changes it.
    pub fn newest(rows: &'a dyn Rows) -> Result<Reader<'a>, ApplyError> {
        let end = Timestamp(i64::MAX);
        Reader::new(rows, end, end, Pending { keys: true, ranges: true })
    }

    /// The same, for a scan.
    pub fn stepping(self, stepped_max: u32) -> Reader<'a> {
        Reader { stepped_max: stepped_max as usize, ..self }
    }

    /// The state as of `at`, with the removals up to `seen`, which is not before `at`.
    pub fn new(
        rows: &'a dyn Rows,
        at: Timestamp,
        seen: Timestamp,
        pending: Pending,
    ) -> Result<Reader<'a>, ApplyError> {
        let ranges = if pending.ranges {
            let mut ranges = removals::ranges(rows)?;
            ranges.retain(|range| range.at <= seen);
            ranges
        } else {
            Vec::new()
        };
        let stepped_max = limits::VERSIONS_STEPPED_MAX;
        Ok(Reader { rows, at, seen, pending, ranges, stepped_max })
    }

    /// A key's version and value.
    pub fn get(&self, key: &[u8]) -> Result<Option<(Timestamp, Bytes)>, ApplyError> {
        self.get_with(key, Bytes::copy_from_slice)
    }

    /// A key's version and what `show` makes of its value, which is not copied.
    pub fn get_with<T>(
        &self,
        key: &[u8],
        mut show: impl FnMut(&[u8]) -> T,
    ) -> Result<Option<(Timestamp, T)>, ApplyError> {
        let mut found = Ok(None);
        self.rows.visit(&keys::versions_up_to(key, self.at), &mut |row, stored| {
            found = decode(row, stored).map(|(timestamp, version)| match version {
                StoredVersion::Removed => None,
                StoredVersion::Value(value) => Some((timestamp, show(value))),
            });
            ControlFlow::Break(())
        })?;
        match found? {
            Some((timestamp, _)) if timestamp < self.floor(key, self.at)? => Ok(None),
            found => Ok(found),
        }
    }

    /// Versions of a key below this are removed, by what happened after `after`.
    fn floor(&self, key: &[u8], after: Timestamp) -> Result<Timestamp, ApplyError> {
        let covering = self.ranges.iter().filter(|range| range.covers(key));
        let mut floor = covering.map(|range| range.at).max().unwrap_or(Timestamp(i64::MIN));
        if !self.pending.keys || self.seen <= after {
            return Ok(floor);
        }
        let mut failed = None;
        self.rows.visit(&keys::removals(key, after, self.seen), &mut |row, value| {
            let at = keys::removal_timestamp(row).map_err(|_| ApplyError::Damaged("a removal"));
            match at.and_then(|at| Ok(Removal::decode(value)?.floor(at))) {
                Ok(found) => {
                    floor = floor.max(found);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(floor), Err)
    }

    /// The keys with a value from `from` to `to`, both included, in order, with their values.
    pub fn range(
        &self,
        from: &[u8],
        to: &[u8],
        limits: PageLimits,
    ) -> Result<FoundRows, ApplyError> {
        let mut found = FoundRows::default();
        let mut bytes = 0;
        found.next = self.scan(from, to, limits, &mut |key, timestamp, value| {
            let value = limits.shown(value);
            bytes += key.len() + value.len();
            if !found.rows.is_empty() && (found.rows.len() >= limits.rows || bytes > limits.bytes) {
                return Step::Stop;
            }
            let (key, value) = (key.into(), Some(Bytes::copy_from_slice(value)));
            found.rows.push(Row { key, value, timestamp });
            Step::NextKey
        })?;
        Ok(found)
    }

    /// The same rows as of [`range`](Reader::range), the last key first; of what did not fit the greatest key is where
    /// the range goes on, as its end.
    ///
    /// The versions of a key lie newest first, so that from the end of a range its oldest comes first: each key is
    /// looked up by itself, which costs as much as a few rows.
    pub fn range_reverse(
        &self,
        from: &[u8],
        to: &[u8],
        limits: PageLimits,
    ) -> Result<FoundRows, ApplyError> {
        let mut found = FoundRows::default();
        let (mut bytes, mut visited, mut scanned) = (0, 0, 0);
        let mut range = keys::versions_between(from, to);
        loop {
            let mut last = None;
            self.rows.scan(&range, Direction::Reverse, &mut |row, stored| {
                scanned += row.len() + stored.len();
                last = Some(Bytes::copy_from_slice(row));
                ControlFlow::Break(())
            })?;
            let Some(row) = last else { return Ok(found) };
            let (key, _) = keys::decode_version(&row).map_err(|_| damaged())?;
            visited += ROWS_PER_SEEK;
            let is_enough = visited > limits.visits || scanned > limits.scan_bytes;
            if is_enough && visited > ROWS_PER_SEEK {
                found.next = Some(key.into());
                return Ok(found);
            }
            let show = |value: &[u8]| {
                scanned += value.len();
                Bytes::copy_from_slice(limits.shown(value))
            };
            if let Some((timestamp, value)) = self.get_with(&key, show)? {
                bytes += key.len() + value.len();
                let is_full = found.rows.len() >= limits.rows || bytes > limits.bytes;
                if is_full && !found.rows.is_empty() {
                    found.next = Some(key.into());
                    return Ok(found);
                }
                found.rows.push(Row { key: key.into(), value: Some(value), timestamp });
            }
            // The versions of this key and of those behind it begin like this or come later.
            range.end = Bytes::copy_from_slice(keys::version_prefix(&row));
        }
    }

    /// The same without the values.
    pub fn keys(
        &self,
        from: &[u8],
        to: &[u8],
        limits: PageLimits,
    ) -> Result<FoundKeys, ApplyError> {
        let mut keys = Vec::new();
        let next = self.scan(from, to, limits, &mut |key, _, _| {
            keys.push(key.into());
            Step::NextKey
        })?;
        Ok(FoundKeys { keys, next })
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limits: PageLimits,
        show: &mut ShowValue<'_>,
    ) -> Result<Option<Bytes>, ApplyError> {
        let range = keys::versions_between(from, to);
        let PageLimits { visits, scan_bytes, .. } = limits;
        let pace = Pace { visits, scan_bytes, stepped_max: self.stepped_max };
        walk(self.rows, range, self.at, pace, &mut |row, timestamp, version| {
            let StoredVersion::Value(value) = version else { return Ok(Step::NextKey) };
            let (key, _) = keys::decode_version(row).map_err(|_| damaged())?;
            let removed = timestamp < self.floor(&key, self.at)?;
            Ok(if removed { Step::NextKey } else { show(key, timestamp, value) })
        })
    }

    /// The versions of a key, newest first, and the newest that did not fit.
    pub fn versions(
        &self,
        key: &[u8],
        limits: PageLimits,
    ) -> Result<(Vec<Row>, Option<Timestamp>), ApplyError> {
        let floor = self.floor(key, Timestamp(i64::MIN))?;
        let (mut rows, mut bytes, mut scanned, mut next) = (Vec::new(), 0, 0, None);
        let key = Bytes::copy_from_slice(key);
        let mut failed = None;
        self.rows.visit(&keys::versions_up_to(&key, self.at), &mut |row, stored| {
            let (timestamp, value) = match decode(row, stored) {
                Ok((timestamp, StoredVersion::Value(value))) if timestamp >= floor => {
                    (timestamp, value)
                }
                // Everything before a mark, or below the floor, is removed.
                Ok(_) => return ControlFlow::Break(()),
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let is_enough = rows.len() >= limits.rows || scanned > limits.scan_bytes;
            scanned += row.len() + stored.len();
            let value = limits.shown(value);
            bytes += key.len() + value.len();
            if !rows.is_empty() && (is_enough || bytes > limits.bytes) {
                next = Some(timestamp);
                return ControlFlow::Break(());
            }
            let value = Some(Bytes::copy_from_slice(value));
            rows.push(Row { key: key.clone(), value, timestamp });
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok((rows, next)), Err)
    }
}

fn damaged() -> ApplyError {
    ApplyError::Damaged("a version")
}

fn decode<'a>(row: &[u8], stored: &'a [u8]) -> Result<(Timestamp, StoredVersion<'a>), ApplyError> {
    let timestamp = keys::version_timestamp(row).map_err(|_| damaged())?;
    Ok((timestamp, StoredVersion::decode(stored)?))
}

/// How a walk proceeds.
#[derive(Clone, Copy)]
struct Pace {
    visits: usize,
    scan_bytes: usize,
    stepped_max: usize,
}

/// Shows the newest version not newer than `at` of each key in `range`, until told to stop or until
/// about `visits` rows, or `scan_bytes` of them, were looked at, and at least one key; the key to begin at next time, if the range
/// is not at its end.
///
/// Versions that are not to be shown are stepped over, or, when there are many, jumped over: the rows
/// of a range lie close together, and a jump costs as much as a few steps.
fn walk(
    rows: &dyn Rows,
    range: RowRange,
    at: Timestamp,
    pace: Pace,
    show: &mut ShowVersion<'_>,
) -> Result<Option<Bytes>, ApplyError> {
    let RowRange { mut start, end } = range;
    let (mut visited, mut scanned) = (0, 0);
    // What all versions of the key that is done begin with, and of the first one.
    let mut done = Vec::new();
    let mut first: Option<Vec<u8>> = None;
    loop {
        let mut stepped = 0;
        let mut jump = None;
        let mut outcome = Ok(None);
        rows.visit(&RowRange { start, end: end.clone() }, &mut |row, stored| {
            let is_enough = visited >= pace.visits || scanned > pace.scan_bytes;
            visited += 1;
            scanned += row.len() + stored.len();
            let prefix = keys::version_prefix(row);
            let is_done = prefix == done;
            let is_first = first.get_or_insert_with(|| prefix.to_vec()) == prefix;
            if is_enough && (is_done || !is_first) {
                outcome = begin_at(row, is_done).map(Some);
                return ControlFlow::Break(());
            }
            let (timestamp, version) = match decode(row, stored) {
                Ok(decoded) => decoded,
                Err(error) => {
                    outcome = Err(error);
                    return ControlFlow::Break(());
                }
            };
            if is_done || timestamp > at {
                stepped += 1;
                if stepped > pace.stepped_max {
                    jump = Some(if is_done {
                        keys::after_version(row)
                    } else {
                        keys::sibling(prefix, at)
                    });
                    return ControlFlow::Break(());
                }
                return ControlFlow::Continue(());
            }
            match show(row, timestamp, version) {
                Ok(Step::NextKey) => {
                    stepped = 0;
                    done.clear();
                    done.extend_from_slice(prefix);
                    ControlFlow::Continue(())
                }
                Ok(Step::Stop) => {
                    outcome = begin_at(row, false).map(Some);
                    ControlFlow::Break(())
                }
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        match (outcome?, jump) {
            (None, Some(next)) => start = next,
            (stopped, _) => return Ok(stopped),
        }
    }
}

/// The key of a row, or the first one after it.
fn begin_at(row: &[u8], after: bool) -> Result<Bytes, ApplyError> {
    let (mut key, _) = keys::decode_version(row).map_err(|_| damaged())?;
    if after {
        key.push(0);
    }
    Ok(key.into())
}
