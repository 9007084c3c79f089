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
//! A removal reaches the versions below its *floor*: for `del` that is its own time, for `trim` the
//! version that stays. Four kinds of rows record it:
//!
//! - a *tombstone* among the versions of a key, at the time it was deleted: with it the newest
//!   read, and every read as of a later time, finds nothing with the one seek that it needs anyhow;
//! - a row by key, for reads as of a time *before* the removal, which find an older version first;
//! - a row by time, so that the oldest removals are found;
//! - for a range that is too long to read at once, only one row with its ends: at most
//!   [`StateLimits::range_removals_max`] of them, which every read takes into account.
//!
//! The versions are deleted from disk in the background (`garbage_collection`), a bounded piece in
//! each log entry, not before [`StateLimits::removal_grace_us`] has passed. Between any two pieces
//! the rule holds: the versions that a removal reaches are deleted before the rows that record it,
//! which are deleted last and together.

use std::ops::ControlFlow;

use bytes::{Buf, BufMut, Bytes};

use super::apply::ApplyError;
use super::changes::Changes;
use super::keys;
use super::rows::Rows;
use super::versions::{PageLimits, Reader, StoredVersion};
use crate::model::{StateLimits, Timestamp};

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

/// The removals of ranges whose versions are not all deleted from disk, oldest first.
pub(super) fn ranges(rows: &dyn Rows) -> Result<Vec<RangeRemoval>, ApplyError> {
    let mut found = Vec::new();
    rows.visit(&keys::ranges(), &mut |row, value| {
        found.push(RangeRemoval::decode(row, value));
        ControlFlow::Continue(())
    })?;
    found.into_iter().collect()
}

/// The time of the oldest removal whose versions are not all deleted from disk.
pub(super) fn oldest(rows: &dyn Rows) -> Result<Option<Timestamp>, ApplyError> {
    let damaged = |_| ApplyError::Damaged("a removal");
    let key = rows.first(&keys::queue())?;
    let key = key.map(|(row, _)| keys::decode_queued(&row).map(|(at, _)| at)).transpose();
    let range = rows.first(&keys::ranges())?.map(|(row, _)| keys::decode_range(&row)).transpose();
    let (key, range) = (key.map_err(damaged)?, range.map_err(damaged)?);
    Ok(key.into_iter().chain(range).min())
}

/// Removes every version of a key.
pub(super) fn delete(
    changes: &mut Changes<'_>,
    now: Timestamp,
    key: &[u8],
) -> Result<(), ApplyError> {
    if Reader::newest(&changes.rows())?.get(key)?.is_none() {
        return Ok(());
    }
    changes.put(keys::version(key, now), StoredVersion::Removed.encode());
    record(changes, now, key, Removal::All);
    Ok(())
}

/// Removes every version of the keys of a range, both ends included. Returns false, and does
/// nothing, if the range is too long and too many such removals are recorded already.
pub(super) fn delete_range(
    changes: &mut Changes<'_>,
    now: Timestamp,
    from: &[u8],
    to: &[u8],
    limits: &StateLimits,
) -> Result<bool, ApplyError> {
    let most = PageLimits::visits(limits.removal_scan_rows_max as usize);
    let rows = changes.rows();
    let reader = Reader::newest(&rows)?.stepping(limits.versions_stepped_max);
    let found = reader.keys(from, to, most)?;
    if found.next.is_none() {
        for key in found.keys {
            delete(changes, now, &key)?;
        }
        return Ok(true);
    }
    if ranges(&changes.rows())?.len() >= limits.range_removals_max as usize {
        return Ok(false);
    }
    let (from, to) = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
    changes.put(keys::range(now), RangeRemoval { at: now, from, to }.encode());
    Ok(true)
}

/// Removes every version of a key but the newest.
pub(super) fn trim(
    changes: &mut Changes<'_>,
    now: Timestamp,
    key: &[u8],
) -> Result<(), ApplyError> {
    let found = Reader::newest(&changes.rows())?.get_with(key, |_| ())?;
    let Some((newest, ())) = found else { return Ok(()) };
    let below = Timestamp(newest.0.saturating_sub(1));
    if changes.rows().first(&keys::versions_up_to(key, below))?.is_some() {
        record(changes, now, key, Removal::Below(newest));
    }
    Ok(())
}

fn record(changes: &mut Changes<'_>, now: Timestamp, key: &[u8], removal: Removal) {
    changes.put(keys::removal(key, now), removal.encode());
    changes.put(keys::queued(now, key), Bytes::new());
}
