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
//! [`StateLimits::removal_grace_us`](crate::command::StateLimits) back, or further: of each key, the
//! versions newer than that stay, and of the others as many of the newest as the rule keeps, at least one. So every read as of that time or a later
//! one finds what it would have found.
//!
//! How far either has come is noted, so that a later page of a read that is too old says so instead of
//! showing less than there was.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::apply::ApplyError;
use super::changes::Changes;
use super::engine::Direction;
use super::keys;
use super::removals::{self, RangeRemoval, Removal};
use super::rows::Rows;
use super::versions::StoredVersion;
use crate::command::History;
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
    /// A read that looked `far_back` when it began, further than what is removed stays, may have begun where
    /// history was swept already. It shows what is left, as after a trim: what it shows is right, and what the
    /// history does not keep is not found. A read that began closer to its time showed everything at first,
    /// and is not to show less later.
    pub fn is_past(self, at: Timestamp, seen: Timestamp, far_back: bool) -> bool {
        seen < self.purged || (!far_back && at < self.swept)
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

/// Takes a piece of what was removed up to `before` off the disk: at most `rows_max` rows, and at least
/// one.
pub(super) fn purge(
    changes: &mut Changes<'_>,
    before: Timestamp,
    rows_max: u32,
) -> Result<(), ApplyError> {
    let purged = Horizon::read(&changes.rows())?.purged;
    let mut reached = purged;
    let mut budget = (rows_max as usize).max(1);
    let mut queued = Vec::new();
    changes.rows().visit(&keys::queue(), &mut |row, _| {
        queued.push(Bytes::copy_from_slice(row));
        if queued.len() < budget { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    // Oldest first: when a removal is at hand, what older ones of its key reached has gone.
    for row in queued {
        let (at, key) = keys::decode_queued(&row).map_err(|_| ApplyError::Damaged("a removal"))?;
        if at > before || budget == 0 {
            break;
        }
        reached = reached.max(at);
        purge_key(changes, &row, at, key, &mut budget)?;
    }
    for range in removals::ranges(&changes.rows())? {
        if range.at > before || budget == 0 {
            break;
        }
        reached = reached.max(range.at);
        purge_range(changes, range, &mut budget)?;
    }
    advance(changes, META_PURGED, purged, reached);
    Ok(())
}

type StoredRow = (Bytes, Bytes);

/// Removes the versions of a key up to `last`, as many as the budget allows. `false`: there are more.
fn remove_versions(
    changes: &mut Changes<'_>,
    key: &[u8],
    last: Timestamp,
    budget: &mut usize,
) -> Result<bool, ApplyError> {
    let mut gone: Vec<StoredRow> = Vec::new();
    let mut complete = true;
    changes.rows().visit(&keys::versions_up_to(key, last), &mut |row, stored| {
        complete = gone.len() < *budget;
        if !complete {
            return ControlFlow::Break(());
        }
        gone.push((Bytes::copy_from_slice(row), Bytes::copy_from_slice(stored)));
        ControlFlow::Continue(())
    })?;
    *budget -= gone.len();
    for (row, stored) in gone {
        changes.delete(row, &stored);
    }
    Ok(complete)
}

/// Takes what a removal of a key reaches off the disk, and when all of that has gone the rows that say so:
/// the mark first hides it from the newest reads, the removal from those of the past.
fn purge_key(
    changes: &mut Changes<'_>,
    queued: &Bytes,
    at: Timestamp,
    key: &[u8],
    budget: &mut usize,
) -> Result<(), ApplyError> {
    let removal_row = keys::removal(key, at);
    let stored =
        changes.rows().first(&keys::removals(key, Timestamp(at.0.saturating_sub(1)), at))?;
    let Some((_, removal)) = stored else { return Err(ApplyError::Damaged("a removal")) };
    let floor = Removal::decode(&removal)?.floor(at);
    if !remove_versions(changes, key, Timestamp(floor.0.saturating_sub(1)), budget)? {
        return Ok(());
    }
    let newest = changes.rows().first(&keys::versions_up_to(key, at))?;
    if let Some((row, stored)) = newest
        && row == keys::version(key, at)
    {
        changes.delete(row, &stored);
    }
    changes.delete(removal_row, &removal);
    changes.delete(queued.clone(), &[]);
    *budget = budget.saturating_sub(1);
    Ok(())
}

/// Takes what the removal of a range reaches off the disk, key by key; its row goes last, and covers the
/// keys that are left until then.
fn purge_range(
    changes: &mut Changes<'_>,
    range: RangeRemoval,
    budget: &mut usize,
) -> Result<(), ApplyError> {
    let stored = range.encode();
    let mut from = range.from.clone();
    let next = loop {
        let first = changes.rows().first(&keys::versions_between(&from, &range.to))?;
        let Some((row, _)) = first else { break None };
        let (mut key, _) =
            keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
        if *budget == 0 || !remove_versions(changes, &key, range.at, budget)? {
            break Some(key);
        }
        // Looking at it counts, also where there is nothing to remove.
        *budget = budget.saturating_sub(1);
        key.push(0);
        from = key.into();
    };
    changes.delete(keys::range(range.at), &stored);
    if let Some(from) = next {
        let rest = RangeRemoval { from: from.into(), ..range };
        changes.put(keys::range(rest.at), rest.encode());
    }
    Ok(())
}

/// What a piece of a sweep came to.
pub(super) struct SweptPiece {
    /// Where the next piece begins, if this was not the last.
    pub next: Option<Bytes>,
    /// The first version after `as_of` as of which there is something to remove in this piece.
    pub due: Option<Timestamp>,
}

/// Removes versions past the history that is kept, in the piece of the store that begins at `from`.
///
/// The oldest versions of a key go first: whenever a piece ends, the key's newest versions are left without
/// a gap, and a read as of any time finds the right one or none.
pub(super) fn sweep(
    changes: &mut Changes<'_>,
    history: History,
    as_of: Timestamp,
    from: &[u8],
    rows_max: u32,
) -> Result<SweptPiece, ApplyError> {
    let mut piece = SweptPiece { next: None, due: None };
    let kept = match history {
        History::All => return Ok(piece),
        History::For { .. } => 1,
        History::Versions { count } => count.max(1) as usize,
    };
    let mut budget = (rows_max as usize).max(1);
    let mut from = Bytes::copy_from_slice(from);
    loop {
        let Some((row, _)) = changes.rows().first(&keys::versions_from(&from))? else {
            return Ok(piece);
        };
        let (mut key, newest) =
            keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
        if budget == 0 || !sweep_key(changes, &key, kept, as_of, &mut budget)? {
            piece.next = Some(key.into());
            return Ok(piece);
        }
        if newest > as_of {
            let due = next_due(&changes.rows(), &key, kept, as_of, &mut budget)?;
            piece.due = piece.due.into_iter().chain(due).min();
        }
        key.push(0);
        from = key.into();
    }
}

/// The first version of a key after `as_of` that makes an older one too many.
fn next_due(
    rows: &dyn Rows,
    key: &[u8],
    kept: usize,
    as_of: Timestamp,
    budget: &mut usize,
) -> Result<Option<Timestamp>, ApplyError> {
    // No more than are kept are left up to `as_of`, and marks, which are not versions to keep or remove.
    let (mut seen, mut due) = (0, None);
    let mut visited = 0;
    rows.scan(&keys::versions(key), Direction::Reverse, &mut |row, stored| {
        visited += 1;
        if !matches!(StoredVersion::decode(stored), Ok(StoredVersion::Removed)) {
            seen += 1;
        }
        let Ok(timestamp) = keys::version_timestamp(row) else { return ControlFlow::Break(()) };
        if timestamp > as_of && seen > 0 && visited > kept {
            due = Some(timestamp);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    *budget = budget.saturating_sub(visited);
    Ok(due)
}

/// Removes the versions of a key that are not among the newest `kept` ones up to `as_of`. `false`: there are
/// more.
fn sweep_key(
    changes: &mut Changes<'_>,
    key: &[u8],
    kept: usize,
    as_of: Timestamp,
    budget: &mut usize,
) -> Result<bool, ApplyError> {
    let mut range = keys::versions_up_to(key, as_of);
    let mut seen = 0;
    let mut excess = None;
    changes.rows().visit(&range, &mut |row, _| {
        seen += 1;
        if seen <= kept {
            return ControlFlow::Continue(());
        }
        excess = Some(Bytes::copy_from_slice(row));
        ControlFlow::Break(())
    })?;
    let Some(excess) = excess else {
        *budget = budget.saturating_sub(seen.max(1));
        return Ok(true);
    };
    range.start = excess;
    let mut gone: Vec<StoredRow> = Vec::new();
    let mut complete = true;
    // What is kept is looked at in each piece anew, and leaves the budget for what goes as it is.
    let mut left = *budget;
    changes.rows().scan(&range, Direction::Reverse, &mut |row, stored| {
        // A mark leaves with the removal that it belongs to.
        if matches!(StoredVersion::decode(stored), Ok(StoredVersion::Removed)) {
            return ControlFlow::Continue(());
        }
        complete = left > 0;
        if !complete {
            return ControlFlow::Break(());
        }
        left -= 1;
        gone.push((Bytes::copy_from_slice(row), Bytes::copy_from_slice(stored)));
        ControlFlow::Continue(())
    })?;
    *budget = left.saturating_sub(seen);
    if !gone.is_empty() {
        let swept = Horizon::read(&changes.rows())?.swept;
        advance(changes, META_SWEPT, swept, as_of);
    }
    for (row, stored) in gone {
        changes.delete(row, &stored);
    }
    Ok(complete)
}
