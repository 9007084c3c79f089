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
//! Both must read what they remove, since the state's hash is that of keys and values. So a piece is bounded in
//! bytes as in rows ([`Budget`]), all that it looks at included: as much is read at the same index on every
//! replica, while writes wait. A key may have more versions than one piece may look at; the next piece then
//! goes on within it.
//!
//! How far either has come is noted, so that a later page of a read that is too old says so instead of
//! showing less than there was.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::apply::ApplyError;
use super::changes::{Changes, state_row_hash};
use super::engine::Direction;
use super::keys;
use super::removals::{self, RangeRemoval, Removal};
use super::rows::Rows;
use super::versions::StoredVersion;
use crate::command::{History, SweepFrom, SweepWithin};
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

/// What one piece may still do. It can always do one thing, so that pieces come to an end.
pub(super) struct Budget {
    rows: u32,
    bytes: u64,
    /// Something was done.
    begun: bool,
}

impl Budget {
    /// Of a whole piece.
    pub fn new(rows: u32, bytes: u64) -> Budget {
        Budget { rows, bytes, begun: false }
    }

    fn allows_more(&self) -> bool {
        !self.begun || (self.rows > 0 && self.bytes > 0)
    }

    /// A row of so many bytes was dealt with.
    fn take(&mut self, bytes: usize) {
        self.begun = true;
        self.rows = self.rows.saturating_sub(1);
        self.look(bytes);
    }

    /// So many bytes were read, to see what is to be done.
    fn look(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// Takes a piece of what was removed up to `before` off the disk: at least one row.
pub(super) fn purge(
    changes: &mut Changes<'_>,
    before: Timestamp,
    mut budget: Budget,
) -> Result<(), ApplyError> {
    let purged = Horizon::read(&changes.rows())?.purged;
    let mut reached = purged;
    let most = budget.rows.max(1) as usize;
    let mut queued = Vec::new();
    changes.rows().visit(&keys::queue(), &mut |row, _| {
        queued.push(Bytes::copy_from_slice(row));
        if queued.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    // Oldest first: when a removal is at hand, what older ones of its key reached has gone.
    for row in queued {
        let (at, key) = keys::decode_queued(&row).map_err(|_| ApplyError::Damaged("a removal"))?;
        if at > before || !budget.allows_more() {
            break;
        }
        reached = reached.max(at);
        purge_key(changes, &row, at, key, &mut budget)?;
    }
    for range in removals::ranges(&changes.rows())? {
        if range.at > before || !budget.allows_more() {
            break;
        }
        reached = reached.max(range.at);
        purge_range(changes, range, &mut budget)?;
    }
    advance(changes, META_PURGED, purged, reached);
    Ok(())
}

/// A row that is to go, and its hash. Its value was let go as soon as it was hashed.
type HashedRow = (Bytes, u64);

fn hashed(row: &[u8], stored: &[u8]) -> HashedRow {
    (Bytes::copy_from_slice(row), state_row_hash(row, stored))
}

/// The first row of a range, which is looked at.
fn first_row(
    rows: &dyn Rows,
    range: &keys::RowRange,
    budget: &mut Budget,
) -> Result<Option<Bytes>, ApplyError> {
    let mut found = None;
    rows.visit(range, &mut |row, stored| {
        budget.look(stored.len());
        found = Some(Bytes::copy_from_slice(row));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Removes the versions of a key up to `last`, as many as the budget allows. `false`: there are more.
fn remove_versions(
    changes: &mut Changes<'_>,
    key: &[u8],
    last: Timestamp,
    budget: &mut Budget,
) -> Result<bool, ApplyError> {
    let mut gone: Vec<HashedRow> = Vec::new();
    let mut complete = true;
    changes.rows().visit(&keys::versions_up_to(key, last), &mut |row, stored| {
        complete = budget.allows_more();
        if !complete {
            return ControlFlow::Break(());
        }
        budget.take(stored.len());
        gone.push(hashed(row, stored));
        ControlFlow::Continue(())
    })?;
    for (row, hash) in gone {
        changes.delete_hashed(row, hash);
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
    budget: &mut Budget,
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
    budget.take(0);
    Ok(())
}

/// Takes what the removal of a range reaches off the disk, key by key; its row goes last, and covers the
/// keys that are left until then.
fn purge_range(
    changes: &mut Changes<'_>,
    range: RangeRemoval,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    let stored = range.encode();
    let mut from = range.from.clone();
    let next = loop {
        let versions = keys::versions_between(&from, &range.to);
        let Some(row) = first_row(&changes.rows(), &versions, budget)? else { break None };
        let (mut key, _) =
            keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
        if !budget.allows_more() || !remove_versions(changes, &key, range.at, budget)? {
            break Some(key);
        }
        // Looking at it counts, also where there is nothing to remove.
        budget.take(0);
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
    pub next: Option<SweepFrom>,
    /// A time after `as_of` before which there is nothing to remove in this piece, as things are.
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
    from: &SweepFrom,
    mut budget: Budget,
) -> Result<SweptPiece, ApplyError> {
    let mut piece = SweptPiece { next: None, due: None };
    let kept = match history {
        History::All => return Ok(piece),
        History::For { .. } => 1,
        History::Versions { count } => count.max(1),
    };
    let mut from = from.clone();
    loop {
        let versions = keys::versions_from(&from.key);
        let Some(row) = first_row(&changes.rows(), &versions, &mut budget)? else {
            return Ok(piece);
        };
        let (mut key, newest) =
            keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
        let mut within = from.within.take().filter(|_| from.key[..] == key);
        let as_of = within.map_or(as_of, |within| within.as_of);
        if !budget.allows_more()
            || !sweep_key(changes, &key, kept, as_of, &mut within, &mut budget)?
        {
            piece.next = Some(SweepFrom { key: key.into(), within });
            return Ok(piece);
        }
        if newest > as_of {
            let found = within.map_or(0, |within| within.kept);
            let due = next_due(&changes.rows(), &key, kept - found.min(kept), as_of, &mut budget)?;
            piece.due = piece.due.into_iter().chain(due).min();
        }
        key.push(0);
        from = SweepFrom { key: key.into(), within: None };
    }
}

/// A version of a key after `as_of` before which no other is too many, when so many more are to be kept. Of
/// those after `as_of` it is the first or the second one: to look further costs more than a sweep that
/// finds nothing.
fn next_due(
    rows: &dyn Rows,
    key: &[u8],
    missing: u32,
    as_of: Timestamp,
    budget: &mut Budget,
) -> Result<Option<Timestamp>, ApplyError> {
    let range = keys::RowRange {
        start: keys::versions(key).start,
        end: keys::versions_up_to(key, as_of).start,
    };
    let mut passed_over = missing.min(1);
    let mut due = None;
    rows.scan(&range, Direction::Reverse, &mut |row, stored| {
        budget.look(stored.len());
        if passed_over > 0 {
            passed_over -= 1;
            return ControlFlow::Continue(());
        }
        due = keys::version_timestamp(row).ok();
        ControlFlow::Break(())
    })?;
    Ok(due)
}

/// Removes the versions of a key that are not among the newest `kept` ones up to `as_of`. `within` is how far it has
/// come with that. `false`: there are more.
fn sweep_key(
    changes: &mut Changes<'_>,
    key: &[u8],
    kept: u32,
    as_of: Timestamp,
    within: &mut Option<SweepWithin>,
    budget: &mut Budget,
) -> Result<bool, ApplyError> {
    let older = |within: &Option<SweepWithin>| match within {
        None => keys::versions_up_to(key, as_of),
        Some(within) => {
            keys::versions_up_to(key, Timestamp(within.oldest_kept.0.saturating_sub(1)))
        }
    };
    let found = |within: &Option<SweepWithin>| within.map_or(0, |within| within.kept);
    let mut complete = true;
    if found(within) < kept {
        let range = older(within);
        changes.rows().visit(&range, &mut |row, stored| {
            complete = budget.allows_more();
            let Ok(oldest_kept) = keys::version_timestamp(row) else {
                return ControlFlow::Break(());
            };
            if !complete {
                return ControlFlow::Break(());
            }
            budget.take(stored.len());
            *within = Some(SweepWithin { as_of, kept: found(within) + 1, oldest_kept });
            match found(within) < kept {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        if !complete || found(within) < kept {
            // There are not more, and so none too many; but looking counts, also where there are none.
            budget.take(0);
            return Ok(complete);
        }
    }
    let mut gone: Vec<HashedRow> = Vec::new();
    changes.rows().scan(&older(within), Direction::Reverse, &mut |row, stored| {
        // A mark leaves with the removal that it belongs to.
        if matches!(StoredVersion::decode(stored), Ok(StoredVersion::Removed)) {
            return ControlFlow::Continue(());
        }
        complete = budget.allows_more();
        if !complete {
            return ControlFlow::Break(());
        }
        budget.take(stored.len());
        gone.push(hashed(row, stored));
        ControlFlow::Continue(())
    })?;
    if !gone.is_empty() {
        let swept = Horizon::read(&changes.rows())?.swept;
        advance(changes, META_SWEPT, swept, as_of);
    }
    for (row, hash) in gone {
        changes.delete_hashed(row, hash);
    }
    Ok(complete)
}
