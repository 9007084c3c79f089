//! The versions of keys: one row each, newest first, and the reads of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::ApplyError;
use super::engine::{Direction, RowValue};
use super::keys::{self, RowRange};
use super::removals::{PendingRemovals, RangeRemoval, Removal};
use super::rows::Rows;
use super::version_row::{ReadVersion, VersionValue};
use crate::limits;
use crate::model::{KeyState, ReadView, Row, Timestamp, Version};

/// A version as reads show it.
pub(super) fn shown_version(KeyState { version, facts }: KeyState, value: Bytes) -> Version {
    Version { timestamp: version, value, facts: Some(facts) }
}

/// Approximate number of rows that can be read in the time of one seek, by which
/// [`PageLimits::visits`] counts.
const ROWS_PER_SEEK: usize = 4;

/// The bounds of one page of a long read.
#[derive(Clone, Copy, Debug)]
pub struct PageLimits {
    /// The most rows of the page, which always has room for one.
    pub rows: usize,
    /// The most bytes of keys and values; a longer row is a page of its own.
    pub bytes: usize,
    /// Approximate number of rows of the store that may be read; at least one key is handled.
    pub visits: usize,
    /// Approximate number of bytes of these rows, of values only those that are read; at least one
    /// key is handled.
    pub scan_bytes: usize,
    /// Whether values are left out, and not read; an empty one stands for each, which takes no room
    /// in the page.
    pub keys_only: bool,
}

impl Default for PageLimits {
    /// The greatest page of this release.
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
    /// No other bounds than of the rows of the store that may be read, without their values.
    pub(super) fn keys_of(visits: usize, scan_bytes: usize) -> PageLimits {
        let (rows, bytes) = (usize::MAX, usize::MAX);
        PageLimits { rows, bytes, visits, scan_bytes, keys_only: true }
    }

    /// Number of bytes of a value that a page shows, and that are read for it.
    pub(super) fn shown_bytes(&self, value: VersionValue<'_>) -> usize {
        if self.keys_only { 0 } else { value.bytes() }
    }

    /// Reads the part of a value that a page shows.
    pub(super) fn shown(&self, value: VersionValue<'_>) -> Result<Bytes, ApplyError> {
        if self.keys_only { Ok(Bytes::new()) } else { value.read() }
    }
}

/// A page of a range.
#[derive(Debug, Default)]
pub(super) struct FoundRows {
    pub rows: Vec<Row>,
    /// The key at which the range continues; `None` at its end.
    pub next: Option<Bytes>,
    /// Number of rows of the store that were read, as [`PageLimits::visits`] counts them.
    pub visited: usize,
}

/// What a removal of a key would remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removable {
    /// The key has a value.
    Value(KeyState),
    /// The key was deleted at this time, and reads of the past show what it had before.
    History(Timestamp),
}

/// A page of the keys of a range of which there is something to remove.
#[derive(Debug, Default)]
pub(super) struct RemovableKeys {
    pub keys: Vec<(Bytes, Removable)>,
    /// The key at which the range continues; `None` at its end.
    pub next: Option<Bytes>,
}

/// How [`walk`] continues after a row.
enum Step {
    /// Skips to the next key.
    NextKey,
    /// Ends the walk, which continues at this key next time.
    Stop,
}

/// Called with the key of a version's row, its timestamp, and what it holds.
type ShowVersion<'a> =
    dyn FnMut(&[u8], Timestamp, ReadVersion<'_>) -> Result<Step, ApplyError> + 'a;

/// Called with a key, the version of it that is shown, and its value.
type ShowValue<'a> =
    dyn FnMut(Vec<u8>, KeyState, VersionValue<'_>) -> Result<Step, ApplyError> + 'a;

/// Reads versions in one read view. The rule is in [`removals`](super::removals).
pub(super) struct Reader<'a> {
    rows: &'a dyn Rows,
    at: Timestamp,
    removals_up_to: Timestamp,
    pending: PendingRemovals,
}

impl<'a> Reader<'a> {
    /// A reader of the newest state of `rows`, in which `ranges` are removed, for an operation that
    /// changes it.
    pub fn newest(rows: &'a dyn Rows, ranges: &Arc<Vec<RangeRemoval>>) -> Reader<'a> {
        let read_view = ReadView::as_of(Timestamp(i64::MAX));
        Reader::new(rows, read_view, PendingRemovals { keys: true, ranges: ranges.clone() })
    }

    /// A reader of the state that a read view shows, where these removals are pending.
    pub fn new(rows: &'a dyn Rows, read_view: ReadView, pending: PendingRemovals) -> Reader<'a> {
        let ReadView { at, removals_up_to } = read_view;
        Reader { rows, at, removals_up_to, pending }
    }

    /// The version of a key, with its value.
    pub fn get(&self, key: &[u8]) -> Result<Option<Version>, ApplyError> {
        let found = self.get_with(key, |value| value.read())?;
        Ok(found.map(|(state, value)| shown_version(state, value)))
    }

    /// The version of a key, whose value is not read.
    pub fn state(&self, key: &[u8]) -> Result<Option<KeyState>, ApplyError> {
        self.state_from(key, keys::version(key, self.at))
    }

    /// The newest version of a key that is shown and not newer than that of `row`.
    pub fn state_from(&self, key: &[u8], row: Bytes) -> Result<Option<KeyState>, ApplyError> {
        let found = self.first_of(key, &keys::versions_from(row), |_| Ok(()))?;
        Ok(found.map(|(state, ())| state))
    }

    /// The version of a key that is shown, and the result of `show` for its value.
    pub fn get_with<T>(
        &self,
        key: &[u8],
        show: impl FnMut(VersionValue<'_>) -> Result<T, ApplyError>,
    ) -> Result<Option<(KeyState, T)>, ApplyError> {
        self.first_of(key, &keys::versions_up_to(key, self.at), show)
    }

    fn first_of<T>(
        &self,
        key: &[u8],
        versions: &RowRange,
        mut show: impl FnMut(VersionValue<'_>) -> Result<T, ApplyError>,
    ) -> Result<Option<(KeyState, T)>, ApplyError> {
        let mut found = Ok(None);
        self.rows.newest(versions, &mut |row, stored| {
            found = decode(row, stored).and_then(|(version, stored)| match stored.value() {
                Some(value) if version >= self.floor(key, self.at)? => {
                    Ok(Some((KeyState { version, facts: value.facts }, show(value)?)))
                }
                _ => Ok(None),
            });
        })?;
        found
    }

    /// The floor of a key: its versions below this are removed by removals later than `after`.
    fn floor(&self, key: &[u8], after: Timestamp) -> Result<Timestamp, ApplyError> {
        let ranges = self.pending.ranges.iter().filter(|range| range.at <= self.removals_up_to);
        let covering = ranges.filter(|range| range.covers(key));
        let floor = covering.map(|range| range.at).max().unwrap_or(Timestamp(i64::MIN));
        if !self.pending.keys || self.removals_up_to <= after {
            return Ok(floor);
        }
        // The newest is enough: what a deletion leaves is nothing, and what a trim leaves is a
        // version that was shown, and so newer than the removals before it. There may be very many.
        let mut newest = Ok(floor);
        self.rows.newest(&keys::removals(key, after, self.removals_up_to), &mut |row, value| {
            let at = keys::removal_timestamp(row).map_err(|_| ApplyError::Damaged("a removal"));
            newest = at.and_then(|at| Ok(Removal::decode(&value.read()?)?.floor(at)));
        })?;
        newest.map(|newest| floor.max(newest))
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
        let visited = &mut found.visited;
        found.next = self.scan(from, to, limits, visited, &mut |key, state, value| {
            bytes += key.len() + limits.shown_bytes(value);
            if !found.rows.is_empty() && (found.rows.len() >= limits.rows || bytes > limits.bytes) {
                return Ok(Step::Stop);
            }
            let version = shown_version(state, limits.shown(value)?);
            found.rows.push(Row { key: key.into(), found: Some(version) });
            Ok(Step::NextKey)
        })?;
        Ok(found)
    }

    /// The same rows as of [`range`](Reader::range), the last key first. The range continues with
    /// the greatest key that did not fit as its end.
    ///
    /// The versions of a key are stored newest first, so that from the end of a range its oldest
    /// comes first. Each key is looked up by itself, which costs as much as a few rows.
    pub fn range_reverse(
        &self,
        from: &[u8],
        to: &[u8],
        limits: PageLimits,
    ) -> Result<FoundRows, ApplyError> {
        let mut found = FoundRows::default();
        let (mut bytes, mut scanned) = (0, 0);
        let mut range = keys::versions_between(from, to);
        loop {
            let mut last = None;
            self.rows.scan_rows(&range, Direction::Reverse, &mut |row, _| {
                scanned += row.len();
                last = Some(Bytes::copy_from_slice(row));
                ControlFlow::Break(())
            })?;
            let Some(row) = last else { return Ok(found) };
            let (key, _) = keys::decode_version(&row).map_err(|_| damaged())?;
            found.visited += ROWS_PER_SEEK;
            let is_enough = found.visited > limits.visits || scanned > limits.scan_bytes;
            if is_enough && found.visited > ROWS_PER_SEEK {
                found.next = Some(key.into());
                return Ok(found);
            }
            let shown = self.get_with(&key, |value| {
                bytes += key.len() + limits.shown_bytes(value);
                let is_full = found.rows.len() >= limits.rows || bytes > limits.bytes;
                if is_full && !found.rows.is_empty() {
                    return Ok(None);
                }
                scanned += limits.shown_bytes(value);
                limits.shown(value).map(Some)
            })?;
            if let Some((state, value)) = shown {
                let Some(value) = value else {
                    found.next = Some(key.into());
                    return Ok(found);
                };
                let version = shown_version(state, value);
                found.rows.push(Row { key: key.into(), found: Some(version) });
            }
            // The rows of this key and of greater ones begin like this or are later.
            range.end = Bytes::copy_from_slice(keys::version_prefix(&row));
        }
    }

    /// What there is to remove of a key.
    pub fn removable(&self, key: &[u8]) -> Result<Option<Removable>, ApplyError> {
        let mut found = Ok(None);
        let versions = keys::versions_up_to(key, self.at);
        self.rows.newest(&versions, &mut |row, stored| {
            found = decode(row, stored).and_then(|(at, newest)| self.removable_of(key, at, newest));
        })?;
        found
    }

    /// The keys from `from` to `to`, both included, in order, of which there is something to
    /// remove.
    pub fn removable_keys(
        &self,
        from: &[u8],
        to: &[u8],
        limits: PageLimits,
    ) -> Result<RemovableKeys, ApplyError> {
        let mut keys = Vec::new();
        let range = keys::versions_between(from, to);
        let next = walk(self.rows, &range, self.at, limits, &mut 0, &mut |row, at, newest| {
            let (key, _) = keys::decode_version(row).map_err(|_| damaged())?;
            let removable = self.removable_of(&key, at, newest)?;
            keys.extend(removable.map(|removable| (key.into(), removable)));
            Ok(Step::NextKey)
        })?;
        Ok(RemovableKeys { keys, next })
    }

    /// The same of a key with this newest version.
    fn removable_of(
        &self,
        key: &[u8],
        at: Timestamp,
        newest: ReadVersion<'_>,
    ) -> Result<Option<Removable>, ApplyError> {
        Ok(match newest {
            ReadVersion::Value(VersionValue { facts, .. }) => {
                let state = KeyState { version: at, facts };
                (at >= self.floor(key, self.at)?).then_some(Removable::Value(state))
            }
            ReadVersion::Tombstone { keeps_history: true } => {
                let floor = self.floor(key, Timestamp(i64::MIN))?;
                (at > floor).then_some(Removable::History(at))
            }
            ReadVersion::Tombstone { keeps_history: false } => None,
        })
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limits: PageLimits,
        visited: &mut usize,
        show: &mut ShowValue<'_>,
    ) -> Result<Option<Bytes>, ApplyError> {
        let range = keys::versions_between(from, to);
        walk(self.rows, &range, self.at, limits, visited, &mut |row, timestamp, stored| {
            let Some(value) = stored.value() else { return Ok(Step::NextKey) };
            let (key, _) = keys::decode_version(row).map_err(|_| damaged())?;
            let removed = timestamp < self.floor(&key, self.at)?;
            let state = KeyState { version: timestamp, facts: value.facts };
            if removed { Ok(Step::NextKey) } else { show(key, state, value) }
        })
    }

    /// The versions of a key, newest first, and the timestamp of the newest that did not fit.
    pub fn versions(
        &self,
        key: &[u8],
        limits: PageLimits,
    ) -> Result<(Vec<Row>, Option<Timestamp>), ApplyError> {
        let floor = self.floor(key, Timestamp(i64::MIN))?;
        let (mut rows, mut bytes, mut scanned, mut next) = (Vec::new(), 0, 0, None);
        let key = Bytes::copy_from_slice(key);
        let mut failed = None;
        let versions = keys::versions_up_to(&key, self.at);
        self.rows.scan_rows(&versions, Direction::Forward, &mut |row, stored| {
            let (timestamp, value) = match decode(row, stored) {
                // All versions below the floor are removed.
                Ok((timestamp, _)) if timestamp < floor => return ControlFlow::Break(()),
                Ok((timestamp, ReadVersion::Value(value))) => (timestamp, value),
                // A deletion is no version that has a value, and so is not listed.
                Ok((_, ReadVersion::Tombstone { keeps_history: true })) => {
                    scanned += row.len();
                    return ControlFlow::Continue(());
                }
                Ok((_, ReadVersion::Tombstone { keeps_history: false })) => {
                    return ControlFlow::Break(());
                }
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let is_enough = rows.len() >= limits.rows || scanned > limits.scan_bytes;
            scanned += row.len() + limits.shown_bytes(value);
            bytes += key.len() + limits.shown_bytes(value);
            if !rows.is_empty() && (is_enough || bytes > limits.bytes) {
                next = Some(timestamp);
                return ControlFlow::Break(());
            }
            let facts = Some(value.facts);
            let value = match limits.shown(value) {
                Ok(value) => value,
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let version = Version { timestamp, value, facts };
            rows.push(Row { key: key.clone(), found: Some(version) });
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok((rows, next)), Err)
    }
}

fn damaged() -> ApplyError {
    ApplyError::Damaged("a version")
}

/// The timestamp of a version's row, and what it holds.
fn decode<'a>(
    row: &[u8],
    stored: RowValue<'a>,
) -> Result<(Timestamp, ReadVersion<'a>), ApplyError> {
    let timestamp = keys::version_timestamp(row).map_err(|_| damaged())?;
    Ok((timestamp, ReadVersion::of(stored, timestamp)?))
}

/// Shows the newest version not newer than `at` of each key in `range`, until it is stopped or
/// about as many rows, or bytes of them, were read as the limits say, and at least one key. Returns
/// the key to continue at, unless the range is at its end. Adds the number of rows to `visited`.
///
/// Versions that are not shown are skipped: the engine knows best how far it steps, and none of
/// them is counted.
///
/// Where it ends may depend on the lengths of keys and of values that are read, and on nothing that
/// only an engine knows: replicas apply removals of ranges by it.
fn walk(
    rows: &dyn Rows,
    range: &RowRange,
    at: Timestamp,
    limits: PageLimits,
    visited: &mut usize,
    show: &mut ShowVersion<'_>,
) -> Result<Option<Bytes>, ApplyError> {
    let mut scanned = 0;
    // The rows of the first key begin like this.
    let mut first: Option<Vec<u8>> = None;
    let mut outcome = Ok(None);
    rows.scan_skipping(range, &mut |row, stored, skip_to| {
        let is_enough = *visited >= limits.visits || scanned > limits.scan_bytes;
        *visited += 1;
        scanned += row.len();
        let prefix = keys::version_prefix(row);
        let is_first = first.get_or_insert_with(|| prefix.to_vec()) == prefix;
        if is_enough && !is_first {
            outcome = key_of(row).map(Some);
            return ControlFlow::Break(());
        }
        let shown = decode(row, stored).and_then(|(timestamp, stored)| {
            if !keys::is_version_prefix(prefix) {
                return Err(ApplyError::Damaged("a version"));
            }
            if timestamp > at {
                keys::put_sibling(prefix, at, skip_to);
                return Ok(Step::NextKey);
            }
            keys::put_after_version(row, skip_to);
            scanned += stored.value().map_or(0, |value| limits.shown_bytes(value));
            show(row, timestamp, stored)
        });
        match shown {
            Ok(Step::NextKey) => return ControlFlow::Continue(()),
            Ok(Step::Stop) => outcome = key_of(row).map(Some),
            Err(error) => outcome = Err(error),
        }
        ControlFlow::Break(())
    })?;
    outcome
}

/// The key of a version's row.
fn key_of(row: &[u8]) -> Result<Bytes, ApplyError> {
    let (key, _) = keys::decode_version(row).map_err(|_| damaged())?;
    Ok(key.into())
}
