//! Removals: they take effect at once, and the versions that they remove are deleted later.
//!
//! Every write has a time, its timestamp, and so has a removal. What a read shows depends on two
//! times: *at*, the version as of which it reads, and *removals up to*, the time up to which
//! removals count. A read of the newest state has both at the end of time. The pages of a long read
//! keep both as the first page had them. What a write has replaced or removed is what both just
//! before it show. Rule:
//!
//! > A version `v` of a key is shown if it is the newest with `v ≤ at`, and no removal of the key
//! > with a time `≤ removals up to` reaches it.
//!
//! A deletion is a version without a value, a *tombstone* among the versions of a key: the newest
//! read, and every read as of a later time, finds nothing with the one seek that it needs anyhow.
//! A deletion that keeps the history of its key is this row and no more. It goes when the versions
//! before it are gone, which it hides (`garbage_collection`). Any other deletion is a removal, too.
//!
//! A removal reaches the versions below its *floor*: for `del` that is its own time, for `trim` the
//! version that stays, and for either, if the key is deleted already, the tombstone. Three kinds of
//! rows record it:
//!
//! - a row by key, for reads as of a time *before* the removal, which find an older version first;
//! - a row by time, so that the oldest removals are found;
//! - for a range that is too long to read at once, only one row with its ends: at most
//!   [`StateLimits::range_removals_max`] of them, which every read takes into account. They are
//!   kept in memory as well ([`PendingRemovals`]), so that a read finds no row of them.
//!
//! The versions are deleted from disk in the background (`garbage_collection`), a bounded piece in
//! each log entry, not before [`StateLimits::removal_grace_us`] has passed. Between any two pieces
//! the rule holds: the versions that a removal reaches are deleted before the rows that record it,
//! which are deleted last and together.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::apply::ApplyError;
use super::changes::Changes;
use super::engine::EngineError;
use super::keys;
use super::leases;
use super::queue_front::QueueFront;
use super::rows::Rows;
use super::version_row::StoredVersion;
use super::versions::{PageLimits, Reader, Removable};
use crate::limits;
use crate::model::{Facts, KeyState, RangeDeletion, StateLimits, Timestamp};

/// Bytes of the keys of rows that the removal of a range looks at, for each row that it may look
/// at: all keys but unusually long ones are shorter. It is a part of what entries mean, like
/// [`StateLimits`]: only the lengths of keys count, which are the same on all replicas.
const REMOVAL_SCAN_BYTES_PER_ROW: usize = 256;

/// The versions that a removal of a key reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// All versions before the removal's own time.
    All,
    /// All versions before this one.
    Below(Timestamp),
}

impl Removal {
    /// The timestamp below which versions are removed.
    pub fn floor(self, at: Timestamp) -> Timestamp {
        match self {
            Removal::All => at,
            Removal::Below(floor) => floor,
        }
    }

    pub fn encode(self) -> Bytes {
        match self {
            Removal::All => Bytes::from_static(&[0]),
            Removal::Below(floor) => {
                let mut out = vec![1];
                out.put_i64_le(floor.0);
                out.into()
            }
        }
    }

    pub fn decode(mut value: &[u8]) -> Result<Removal, ApplyError> {
        match (value.try_get_u8(), value.len()) {
            (Ok(0), 0) => Ok(Removal::All),
            (Ok(1), 8) => Ok(Removal::Below(Timestamp(value.get_i64_le()))),
            _ => Err(ApplyError::Damaged("a removal")),
        }
    }
}

/// The removal of a range of keys, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeRemoval {
    pub at: Timestamp,
    pub from: Bytes,
    pub to: Bytes,
}

impl RangeRemoval {
    pub fn covers(&self, key: &[u8]) -> bool {
        self.from[..] <= *key && *key <= self.to[..]
    }

    /// `length of from, u32, little-endian | from | to`.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(4 + self.from.len() + self.to.len());
        // The length of a key fits: keys are far shorter.
        out.put_u32_le(self.from.len() as u32);
        out.extend_from_slice(&self.from);
        out.extend_from_slice(&self.to);
        out.into()
    }

    pub fn decode(row: &[u8], value: &[u8]) -> Result<RangeRemoval, ApplyError> {
        let damaged = || ApplyError::Damaged("the removal of a range");
        let at = keys::decode_range(row).map_err(|_| damaged())?;
        let (length, ends) = value.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (from, to) = ends.split_at_checked(length).ok_or_else(damaged)?;
        let (from, to) = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
        Ok(RangeRemoval { at, from, to })
    }
}

/// Reads the removals of ranges whose versions are not all deleted from disk, oldest first, of a
/// state whose last write is `newest`.
pub(super) fn read_ranges(
    rows: &dyn Rows,
    newest: Timestamp,
) -> Result<Vec<RangeRemoval>, ApplyError> {
    let mut found = Vec::new();
    rows.visit(&keys::ranges(), &mut |row, value| {
        found.push(RangeRemoval::decode(row, value));
        ControlFlow::Continue(())
    })?;
    let ranges = found.into_iter().collect::<Result<Vec<RangeRemoval>, _>>()?;
    match ranges.last() {
        Some(last) if last.at > newest => Err(ApplyError::Damaged("the removal of a range")),
        _ => Ok(ranges),
    }
}

/// The time of the oldest removal of a key.
pub(super) fn oldest_queued(
    rows: &dyn Rows,
    front: &QueueFront,
) -> Result<Option<Timestamp>, ApplyError> {
    let Some((row, _)) = rows.first(&front.queue())? else { return Ok(None) };
    let (at, _) = keys::decode_queued(&row).map_err(|_| ApplyError::Damaged("a removal"))?;
    Ok(Some(at))
}

/// The removals that a reader must take into account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PendingRemovals {
    /// There may be removals of single keys. If there are none, a read saves a seek.
    pub keys: bool,
    /// The removals of ranges, oldest first.
    pub ranges: Arc<Vec<RangeRemoval>>,
}

impl PendingRemovals {
    /// Whether a range was removed since there were only the `earlier` ones.
    pub fn has_later_range_than(&self, earlier: &PendingRemovals) -> bool {
        self.ranges.last().map(|range| range.at) > earlier.ranges.last().map(|range| range.at)
    }
}

/// The removals of which readers know while a batch is written: their views are of the state before
/// it or of that after it.
pub(super) enum KnownRemovals {
    /// All views have these.
    Settled(PendingRemovals),
    Changing {
        before: PendingRemovals,
        after: PendingRemovals,
        /// A removal of a range that only one of the two has, and whether it is `after`; `None` if
        /// both have the same.
        telling: Option<(RangeRemoval, bool)>,
    },
}

impl KnownRemovals {
    /// While the state changes from one to another.
    pub fn changing(before: PendingRemovals, after: PendingRemovals) -> KnownRemovals {
        let only_in = |one: &PendingRemovals, other: &PendingRemovals| {
            one.ranges.iter().find(|range| !other.ranges.contains(range)).cloned()
        };
        let telling = only_in(&after, &before)
            .map(|range| (range, true))
            .or_else(|| only_in(&before, &after).map(|range| (range, false)));
        KnownRemovals::Changing { before, after, telling }
    }

    /// The removals of rows of which a view was taken while these are known.
    ///
    /// # Errors
    ///
    /// [`EngineError::Read`]; [`EngineError::NotInMemory`].
    pub fn of(&self, rows: &dyn Rows) -> Result<PendingRemovals, EngineError> {
        let (before, after, telling) = match self {
            KnownRemovals::Settled(pending) => return Ok(pending.clone()),
            KnownRemovals::Changing { before, after, telling } => (before, after, telling),
        };
        let keys = before.keys || after.keys;
        let is_after = match telling {
            None => true,
            // A batch is visible as a whole, so that one row tells.
            Some((range, only_after)) => {
                let row = rows.get(&keys::range(range.at))?;
                row.is_some_and(|value| value == range.encode()) == *only_after
            }
        };
        let ranges = if is_after { &after.ranges } else { &before.ranges };
        Ok(PendingRemovals { keys, ranges: ranges.clone() })
    }
}

/// Deletes a key, and removes what it had before unless it `keeps_history`.
pub(super) fn delete(
    changes: &mut Changes<'_>,
    now: Timestamp,
    key: &[u8],
    keeps_history: bool,
) -> Result<(), ApplyError> {
    let found = Reader::newest(&changes.rows(), changes.ranges()).removable(key)?;
    match found {
        Some(found) => delete_found(changes, now, (key, found), keeps_history),
        None => Ok(()),
    }
}

fn delete_found(
    changes: &mut Changes<'_>,
    now: Timestamp,
    (key, found): (&[u8], Removable),
    keeps_history: bool,
) -> Result<(), ApplyError> {
    if let Removable::Value(KeyState { facts: Facts { lease: Some(lease), .. }, .. }) = found {
        leases::detach(changes, lease, key)?;
    }
    match (found, keeps_history) {
        (Removable::Value(_), true) => delete_present(changes, now, key),
        (Removable::Value(_), false) => {
            let tombstone = StoredVersion::Tombstone { keeps_history }.encode(now);
            changes.put_version(now, key, keys::version(key, now), tombstone);
            record(changes, now, key, Removal::All);
        }
        (Removable::History(_), true) => {}
        // The tombstone that is there stays the newest version, and hides what is removed.
        (Removable::History(deleted), false) => {
            record(changes, now, key, Removal::Below(deleted));
        }
    }
    Ok(())
}

/// Deletes a key that has a value, and keeps its history. That its lease has one key less is for
/// the caller to note.
pub(super) fn delete_present(changes: &mut Changes<'_>, now: Timestamp, key: &[u8]) {
    let tombstone = StoredVersion::Tombstone { keeps_history: true }.encode(now);
    changes.put_version(now, key, keys::version(key, now), tombstone);
}

/// Deletes the keys of a range, both ends included, and removes what they had before unless it
/// `keeps_history`.
///
/// Whether a range is short is found by looking at its rows, also when no other long one may be
/// recorded: short ones are removed all the same, whoever has filled the places.
pub(super) fn delete_range(
    changes: &mut Changes<'_>,
    now: Timestamp,
    from: &[u8],
    to: &[u8],
    keeps_history: bool,
    of_group: &StateLimits,
) -> Result<RangeDeletion, ApplyError> {
    let (visits, bytes_per_row) = match keeps_history {
        true => (of_group.kept_removal_rows_max, limits::KEPT_REMOVAL_BYTES_PER_ROW),
        false => (of_group.removal_scan_rows_max, REMOVAL_SCAN_BYTES_PER_ROW),
    };
    let visits = visits as usize;
    let most = PageLimits::keys_of(visits, visits.saturating_mul(bytes_per_row));
    let rows = changes.rows();
    let reader = Reader::newest(&rows, changes.ranges());
    let found = reader.removable_keys(from, to, most)?;
    if found.next.is_none() {
        for (key, found) in &found.keys {
            delete_found(changes, now, (key, *found), keeps_history)?;
        }
        return Ok(RangeDeletion::Done);
    }
    // The removal of a range reaches what was before it: its keys have no tombstones.
    if keeps_history {
        return Ok(RangeDeletion::TooLong);
    }
    if changes.ranges().len() >= of_group.range_removals_max as usize {
        return Ok(RangeDeletion::TooManyRanges);
    }
    let (from, to) = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
    changes.add_range(RangeRemoval { at: now, from, to });
    Ok(RangeDeletion::Done)
}

/// Removes every version of a key but the newest, which may be a tombstone.
pub(super) fn trim(
    changes: &mut Changes<'_>,
    now: Timestamp,
    key: &[u8],
) -> Result<(), ApplyError> {
    let found = Reader::newest(&changes.rows(), changes.ranges()).removable(key)?;
    let newest = match found {
        Some(Removable::Value(KeyState { version, .. }) | Removable::History(version)) => version,
        None => return Ok(()),
    };
    let below = Timestamp(newest.0.saturating_sub(1));
    let mut has_older = false;
    changes.rows().newest(&keys::versions_up_to(key, below), &mut |_, _| has_older = true)?;
    if has_older {
        record(changes, now, key, Removal::Below(newest));
    }
    Ok(())
}

fn record(changes: &mut Changes<'_>, now: Timestamp, key: &[u8], removal: Removal) {
    changes.put(keys::removal(key, now), removal.encode());
    changes.put_queued(now, key);
}
