//! What goes on behind the writes: removed versions leave the disk, and old ones are removed.
//!
//! Both are done by log entries that the leader proposes, a bounded piece each, and so at the same point
//! on every replica.
//!
//! *Purging* takes what was removed off the disk, the oldest removals first. Until then a long read that
//! began before the removal goes on as it began, and what a removal removed can be read by whoever is
//! to be told.
//!
//! *Sweeping* removes versions past the history that is kept. It judges as of a time that lies
//! [`limits::REMOVAL_GRACE`] back, or further: of each key, the versions newer than that stay, and of the
//! others as many of the newest as the rule keeps, at least one. So every read as of that time or a later
//! one finds what it would have found.
//!
//! How far either has come is noted, so that a later page of a read that is too old says so instead of
//! showing less than there was.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::apply::ApplyError;
use super::changes::Changes;
use super::keys;
use super::removals::{self, RangeRemoval, Removal};
use super::rows::Rows;
use super::versions::{Step, StoredVersion, walk};
use crate::command::History;
use crate::limits::{self, UPKEEP_ROWS_MAX};
use crate::types::Timestamp;

/// The fact about the store that says up to when removals are off the disk.
pub(super) const META_PURGED: &str = "purged";
/// The fact about the store that says as of when old versions were removed.
pub(super) const META_SWEPT: &str = "swept";

/// How far removal has come: `purged` is the time of the last removal that is being taken off the disk,
/// and of versions before `swept` only those that the history keeps are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Horizon {
    pub purged: Timestamp,
    pub swept: Timestamp,
}

impl Horizon {
    /// Whether some of what a read as of `at`, seen from `seen`, should show may be gone.
    ///
    /// A read that looked further back than [`limits::REMOVAL_GRACE`] when it began may have begun where
    /// history was swept already. It shows what is left, as after a trim: what it shows is right, and
    /// what the history does not keep is not found. A read that began closer to its time showed
    /// everything at first, and is not to show less later.
    pub fn is_past(self, at: Timestamp, seen: Timestamp) -> bool {
        let grace_us = limits::REMOVAL_GRACE.as_micros() as i64;
        let began_whole = at.0 >= seen.0.saturating_sub(grace_us);
        seen < self.purged || (began_whole && at < self.swept)
    }

    pub fn read(rows: &dyn Rows) -> Result<Horizon, ApplyError> {
        let read = |name: &str| -> Result<Timestamp, ApplyError> {
            let row = keys::meta(name);
            let end = Bytes::from([&row[..], &[0]].concat());
            match rows.first(&keys::RowRange { start: row, end })? {
                None => Ok(Timestamp::ZERO),
                Some((_, value)) => decode_time(&value).ok_or(ApplyError::Damaged("a time")),
            }
        };
        Ok(Horizon { purged: read(META_PURGED)?, swept: read(META_SWEPT)? })
    }
}

/// A time in a fact about the store.
pub(super) fn decode_time(value: &[u8]) -> Option<Timestamp> {
    value.try_into().ok().map(|bytes| Timestamp(i64::from_le_bytes(bytes)))
}

fn advance(changes: &mut Changes<'_>, name: &str, from: Timestamp, to: Timestamp) {
    if to > from {
        changes.note(keys::meta(name), to.0.to_le_bytes().to_vec().into());
    }
}

/// Takes a piece of what was removed up to `before` off the disk.
pub(super) fn purge(changes: &mut Changes<'_>, before: Timestamp) -> Result<(), ApplyError> {
    let purged = Horizon::read(&changes.rows())?.purged;
    let mut reached = purged;
    let mut budget = UPKEEP_ROWS_MAX;
    let mut queued = Vec::new();
    changes.rows().visit(&keys::queue(), &mut |row, _| {
        queued.push(Bytes::copy_from_slice(row));
        if queued.len() < UPKEEP_ROWS_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    for row in queued {
        let (at, key) = keys::decode_queued(&row).map_err(|_| ApplyError::Damaged("a removal"))?;
        if at > before || budget == 0 {
            break;
        }
        reached = reached.max(at);
        budget -= purge_key(changes, &row, at, key, budget)?.min(budget);
    }
    for range in removals::ranges(&changes.rows())? {
        if range.at > before || budget == 0 {
            break;
        }
        reached = reached.max(range.at);
        budget -= purge_range(changes, range, budget)?.min(budget);
    }
    advance(changes, META_PURGED, purged, reached);
    Ok(())
}

type StoredRow = (Bytes, Bytes);

/// Returns how many rows it looked at; the removal itself goes with the last version.
fn purge_key(
    changes: &mut Changes<'_>,
    queued: &Bytes,
    at: Timestamp,
    key: &[u8],
    budget: usize,
) -> Result<usize, ApplyError> {
    let removal_row = keys::removal(key, at);
    let stored = changes.rows().first(&keys::removals(key, Timestamp(at.0 - 1), at))?;
    let Some((_, removal)) = stored else { return Err(ApplyError::Damaged("a removal")) };
    // The mark goes as well: once nothing is left before it, it says nothing.
    let last = match Removal::decode(&removal)? {
        Removal::All => at,
        Removal::Below(floor) => Timestamp(floor.0 - 1),
    };
    let mut gone: Vec<StoredRow> = Vec::new();
    let mut more = false;
    changes.rows().visit(&keys::versions_up_to(key, last), &mut |row, stored| {
        more = gone.len() == budget;
        if more {
            return ControlFlow::Break(());
        }
        gone.push((Bytes::copy_from_slice(row), Bytes::copy_from_slice(stored)));
        ControlFlow::Continue(())
    })?;
    let count = gone.len() + 1;
    for (row, stored) in gone {
        changes.delete(row, &stored);
    }
    if !more {
        changes.delete(removal_row, &removal);
        changes.delete(queued.clone(), &[]);
    }
    Ok(count)
}

fn purge_range(
    changes: &mut Changes<'_>,
    range: RangeRemoval,
    budget: usize,
) -> Result<usize, ApplyError> {
    let mut gone: Vec<StoredRow> = Vec::new();
    let rows = keys::versions_between(&range.from, &range.to);
    let next = walk(&changes.rows(), rows, range.at, budget, &mut |row, _, stored| {
        gone.push((Bytes::copy_from_slice(row), stored.encode()));
        Ok(Step::Older)
    })?;
    for (row, stored) in gone {
        changes.delete(row, &stored);
    }
    changes.delete(keys::range(range.at), &range.encode());
    if let Some(from) = next {
        let rest = RangeRemoval { from, ..range };
        changes.put(keys::range(rest.at), rest.encode());
        return Ok(budget);
    }
    Ok(1)
}

/// Removes versions past the history that is kept, in the piece of the store that begins at `from`;
/// where the next piece begins, if this was not the last.
pub(super) fn sweep(
    changes: &mut Changes<'_>,
    history: History,
    as_of: Timestamp,
    from: &[u8],
) -> Result<Option<Bytes>, ApplyError> {
    let kept = match history {
        History::All => return Ok(None),
        History::For { .. } => 1,
        History::Versions { count } => count.max(1),
    };
    let swept = Horizon::read(&changes.rows())?.swept;
    let mut gone: Vec<StoredRow> = Vec::new();
    let mut key: Vec<u8> = Vec::new();
    let mut seen = 0;
    let rows = keys::versions_from(from);
    // Enough to get past a key of which everything is kept.
    let visits = UPKEEP_ROWS_MAX + kept as usize;
    let next = walk(&changes.rows(), rows, as_of, visits, &mut |row, _, stored| {
        if keys::version_prefix(row) != key {
            key.clear();
            key.extend_from_slice(keys::version_prefix(row));
            seen = 0;
        }
        seen += 1;
        // A mark leaves with the removal that it belongs to.
        if seen > kept && stored != StoredVersion::Removed {
            gone.push((Bytes::copy_from_slice(row), stored.encode()));
        }
        Ok(Step::Older)
    })?;
    if !gone.is_empty() {
        advance(changes, META_SWEPT, swept, as_of);
    }
    for (row, stored) in gone {
        changes.delete(row, &stored);
    }
    Ok(next)
}
