//! What goes on behind the writes: removed versions leave the disk, and old ones are removed.
//!
//! Both are done by log entries that the leader proposes, a bounded piece each, and so at the same
//! point on every replica.
//!
//! *Purging* takes what was removed off the disk, the oldest removals first. Until then a long read
//! that began before the removal goes on as it began, and what a removal removed can be read by
//! whoever is to be told.
//!
//! *Sweeping* removes versions past the history that is kept. It judges as of a time that lies
//! [`StateLimits::removal_grace_us`](crate::model::StateLimits) back, or further: of each key,
//! the versions newer than that stay, and of the others as many of the newest as the rule keeps, at
//! least one. So every read as of that time or a later one finds what it would have found.
//!
//! A key has something to remove only once a newer version of it has come to be that old. So with
//! each version that is stored while the group does not keep everything goes an *unswept* row, by
//! time and key. Sweeps take these oldest first, look at their keys alone, and remove them. The
//! version of an unswept row may be gone; then there is nothing to do but to remove the row.
//!
//! What was stored under another history may have no such row. So when the history is changed, the
//! next pieces *walk* once through all versions. The walk sweeps each key that it comes to, and
//! gives unswept rows only to what has replaced a version and is not old enough yet. A history may
//! be changed to make room on a disk that is nearly full: the walk adds nothing to the store on
//! account of what can be removed.
//!
//! Both must read what they remove, since the state's hash is that of keys and values. So a piece
//! is bounded in bytes as in rows ([`Budget`]), all that it looks at included: as much is read at
//! the same index on every replica, while writes wait. A key may have more versions than one piece
//! may look at; the next piece then goes on within it. Where the walk and the sweep of a key stand
//! is part of the state ([`SweepProgress`]).
//!
//! How far either has come is noted, so that a later page of a read that is too old says so instead
//! of showing less than there was.

use std::collections::HashMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::apply::{ApplyError, decode_fact, encode_fact};
use super::changes::{Changes, state_row_hash};
use super::engine::Direction;
use super::keys;
use super::removals::{self, RangeRemoval, Removal};
use super::rows::Rows;
use super::versions::StoredVersion;
use crate::model::{History, Timestamp};

/// The fact about the store that says up to when removals are off the disk.
pub(super) const META_PURGED: &str = "purged";
/// The fact about the store that says as of when old versions were removed.
pub(super) const META_SWEPT: &str = "swept";

/// The fact about the store that says how far the sweep has come that goes on.
pub(super) const META_SWEEP: &str = "sweep";

/// What is damaged where such a row cannot be read.
const UNSWEPT: &str = "the row of an unswept version";

/// How far removal has come: `purged` is the time of the last removal that is being taken off the
/// disk, and of versions before `swept` only those that the history keeps are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Horizon {
    pub purged: Timestamp,
    pub swept: Timestamp,
}

impl Horizon {
    /// Whether some of what a read as of `at`, seen from `seen`, should show may be gone.
    ///
    /// A read that looked `far_back` when it began, further than what is removed stays, may have
    /// begun where history was swept already. It shows what is left, as after a trim: what it shows
    /// is right, and what the history does not keep is not found. A read that began closer to its
    /// time showed everything at first, and is not to show less later.
    pub fn is_past(self, at: Timestamp, seen: Timestamp, far_back: bool) -> bool {
        seen < self.purged || (!far_back && at < self.swept)
    }

    pub fn read(rows: &dyn Rows) -> Result<Horizon, ApplyError> {
        let read = |name: &str| -> Result<Timestamp, ApplyError> {
            match rows.first(&keys::only(&keys::meta(name)))? {
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
    /// Versions that the piece has removed, and their bytes. They stay below the batch that removes
    /// them, so that whoever goes through their keys again in the same piece reads them again.
    removed_rows: u32,
    removed_bytes: u64,
}

impl Budget {
    /// Of a whole piece.
    pub fn new(rows: u32, bytes: u64) -> Budget {
        Budget { rows, bytes, begun: false, removed_rows: 0, removed_bytes: 0 }
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

    /// A version of so many bytes is removed.
    fn remove(&mut self, bytes: usize) {
        self.take(bytes);
        self.removed_rows = self.removed_rows.saturating_add(1);
        self.removed_bytes = self.removed_bytes.saturating_add(bytes as u64);
    }

    /// All that the piece has removed may be read again.
    fn pass_removed(&mut self) {
        self.rows = self.rows.saturating_sub(self.removed_rows);
        self.bytes = self.bytes.saturating_sub(self.removed_bytes);
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
    let unswept = oldest_unswept(&changes.rows())?;
    let mut reached = purged;
    let most = budget.rows.max(1) as usize;
    let mut queued = Vec::new();
    changes.rows().visit(&keys::queue(), &mut |row, _| {
        queued.push(Bytes::copy_from_slice(row));
        if queued.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    // Oldest first: when a removal is at hand, what older ones of its key reached has gone.
    let mut gone = HashMap::new();
    for row in &queued {
        let (at, key) = keys::decode_queued(row).map_err(|_| ApplyError::Damaged("a removal"))?;
        if at > before || !budget.allows_more() {
            break;
        }
        reached = reached.max(at);
        purge_key(changes, row, (at, key), unswept, &mut gone, &mut budget)?;
    }
    for range in removals::ranges(&changes.rows())? {
        if range.at > before {
            break;
        }
        // What removals of its keys, and of ranges that overlap it, have just taken away is on its
        // way.
        budget.pass_removed();
        if !budget.allows_more() {
            break;
        }
        reached = reached.max(range.at);
        purge_range(changes, range, unswept, &mut budget)?;
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

/// Removes these versions of a key, as many as the budget allows, and what asks for a sweep on
/// their account: no such row is older than `unswept`, if there are any. `false`: there are more.
fn remove_versions(
    changes: &mut Changes<'_>,
    key: &[u8],
    versions: &keys::RowRange,
    unswept: Option<Timestamp>,
    budget: &mut Budget,
) -> Result<bool, ApplyError> {
    let mut gone: Vec<HashedRow> = Vec::new();
    let mut complete = true;
    changes.rows().visit(versions, &mut |row, stored| {
        complete = budget.allows_more();
        if !complete {
            return ControlFlow::Break(());
        }
        budget.remove(stored.len());
        gone.push(hashed(row, stored));
        ControlFlow::Continue(())
    })?;
    for (row, hash) in gone {
        let at = keys::version_timestamp(&row).map_err(|_| ApplyError::Damaged("a version"))?;
        if unswept.is_some_and(|oldest| oldest <= at) {
            remove_unswept(changes, keys::unswept(at, key), budget)?;
        }
        changes.delete_hashed(row, hash);
    }
    Ok(complete)
}

/// Takes what a removal of a key reaches off the disk, and when all of that has gone the rows that
/// say so: the mark first hides it from the newest reads, the removal from those of the past.
///
/// `gone` says of each key up to which time this piece has left nothing of it. What lies before is
/// not gone through again: a key with many removals would have its rows read again by each of them.
fn purge_key<'k>(
    changes: &mut Changes<'_>,
    queued: &Bytes,
    (at, key): (Timestamp, &'k [u8]),
    unswept: Option<Timestamp>,
    gone: &mut HashMap<&'k [u8], Timestamp>,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    let removal_row = keys::removal(key, at);
    let stored = changes.rows().first(&keys::only(&removal_row))?;
    let Some((_, removal)) = stored else { return Err(ApplyError::Damaged("a removal")) };
    let below = Timestamp(Removal::decode(&removal)?.floor(at).0.saturating_sub(1));
    let mut versions = keys::versions_up_to(key, below);
    if let Some(gone) = gone.get(key) {
        versions.end = keys::version(key, *gone);
    }
    if !remove_versions(changes, key, &versions, unswept, budget)? {
        return Ok(());
    }
    let mark = changes.rows().first(&keys::only(&keys::version(key, at)))?;
    if let Some((row, stored)) = mark {
        changes.delete(row, &stored);
        budget.remove(stored.len());
    }
    let gone = gone.entry(key).or_insert(below);
    *gone = below.max(*gone);
    changes.delete(removal_row, &removal);
    changes.delete(queued.clone(), &[]);
    budget.take(0);
    Ok(())
}

/// Takes what the removal of a range reaches off the disk, key by key; its row goes last, and
/// covers the keys that are left until then.
fn purge_range(
    changes: &mut Changes<'_>,
    range: RangeRemoval,
    unswept: Option<Timestamp>,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    let stored = range.encode();
    let mut from = range.from.clone();
    let next = loop {
        let versions = keys::versions_between(&from, &range.to);
        let Some(row) = first_row(&changes.rows(), &versions, budget)? else { break None };
        let (mut key, _) =
            keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
        let versions = keys::versions_up_to(&key, range.at);
        if !budget.allows_more() || !remove_versions(changes, &key, &versions, unswept, budget)? {
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

/// How far a sweep has come, where the unswept rows do not say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SweepProgress {
    /// The history was changed: the walk goes on at the version of this row, or the first one
    /// behind it. `within` is how far the sweep of that version's key has come, if it has begun.
    Walking { from: Bytes, within: Option<Within> },
    /// The last piece ended within this key.
    Within { key: Bytes, within: Within },
}

/// How far a sweep has come with the versions of a key, from the newest on. What removals take away
/// meanwhile are the oldest ones, so it stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Within {
    /// The key is judged as of this time, whatever the clock says when the next piece begins.
    as_of: Timestamp,
    /// So many versions up to then are found and stay.
    kept: u32,
    /// The oldest of those.
    oldest_kept: Timestamp,
    /// Up to here all is looked at: nothing is left but marks, which leave with their removals. So
    /// a piece that may do little passes over them once.
    passed: Timestamp,
}

impl SweepProgress {
    pub fn decode(stored: &[u8]) -> Option<SweepProgress> {
        decode_fact(stored)
    }

    fn read(rows: &dyn Rows) -> Result<Option<SweepProgress>, ApplyError> {
        let Some((_, stored)) = rows.first(&keys::only(&keys::meta(META_SWEEP)))? else {
            return Ok(None);
        };
        let decoded = SweepProgress::decode(&stored);
        Ok(Some(decoded.ok_or(ApplyError::Damaged("how far a sweep has come"))?))
    }

    fn change(
        changes: &mut Changes<'_>,
        before: Option<SweepProgress>,
        after: Option<SweepProgress>,
    ) {
        if let Some(before) = before {
            changes.delete(keys::meta(META_SWEEP), &encode_fact(&before));
        }
        if let Some(after) = after {
            changes.put(keys::meta(META_SWEEP), encode_fact(&after));
        }
    }
}

/// The time of the oldest unswept row.
fn oldest_unswept(rows: &dyn Rows) -> Result<Option<Timestamp>, ApplyError> {
    let Some((row, _)) = rows.first(&keys::all_unswept())? else { return Ok(None) };
    let (at, _) = keys::decode_unswept(&row).map_err(|_| ApplyError::Damaged(UNSWEPT))?;
    Ok(Some(at))
}

/// As of which time a sweep has something to do.
pub(super) fn sweep_due(rows: &dyn Rows) -> Result<Option<Timestamp>, ApplyError> {
    match SweepProgress::read(rows)? {
        Some(SweepProgress::Walking { .. }) => Ok(Some(Timestamp::ZERO)),
        Some(SweepProgress::Within { .. }) | None => oldest_unswept(rows),
    }
}

/// Another history is kept from now on, by which there may be something to remove anywhere.
pub(super) fn change_history(
    changes: &mut Changes<'_>,
    before: History,
    after: History,
) -> Result<(), ApplyError> {
    if before == after {
        return Ok(());
    }
    let progress = SweepProgress::read(&changes.rows())?;
    let walking = SweepProgress::Walking { from: keys::all_versions().start, within: None };
    SweepProgress::change(changes, progress, (after != History::All).then_some(walking));
    Ok(())
}

/// One piece of a sweep: of the walk that follows a change of the history, or else of what is due.
///
/// The oldest versions of a key go first: whenever a piece ends, the key's newest versions are left
/// without a gap, and a read as of any time finds the right one or none.
pub(super) fn sweep(
    changes: &mut Changes<'_>,
    history: History,
    as_of: Timestamp,
    mut budget: Budget,
) -> Result<(), ApplyError> {
    let before = SweepProgress::read(&changes.rows())?;
    let kept = match history {
        // There is no more to do than to remove the unswept rows.
        History::All => None,
        History::For { .. } => Some(1),
        History::Versions { count } => Some(count.max(1)),
    };
    let after = match (before.clone(), kept) {
        (Some(SweepProgress::Walking { from, within }), Some(kept)) => {
            walk(changes, kept, as_of, (from, within), &mut budget)?
        }
        (Some(SweepProgress::Within { key, within }), _) => {
            sweep_due_keys(changes, kept, as_of, Some((key, within)), &mut budget)?
        }
        (Some(SweepProgress::Walking { .. }) | None, _) => {
            sweep_due_keys(changes, kept, as_of, None, &mut budget)?
        }
    };
    if after != before {
        SweepProgress::change(changes, before, after);
    }
    Ok(())
}

/// A version that the walk has looked at.
struct Seen {
    row: Bytes,
    at: Timestamp,
    is_mark: bool,
}

/// What the walk has found when it stops.
#[derive(Default)]
struct Stretch {
    /// Rows of versions newer than the sweep, which have replaced one.
    replacing: Vec<Bytes>,
    /// The newest version up to the time of the sweep, of a key that has more of them.
    due: Option<(Bytes, Timestamp)>,
    /// The first row that was not looked at for want of budget.
    next: Option<Bytes>,
}

/// Looks at versions from `from` on, up to a key of which something may have to be removed.
fn look_ahead(
    rows: &dyn Rows,
    from: &Bytes,
    as_of: Timestamp,
    budget: &mut Budget,
) -> Result<Stretch, ApplyError> {
    let mut found = Stretch::default();
    let range = keys::RowRange { start: from.clone(), end: keys::all_versions().end };
    // A key's older version comes right after it. The row at which a piece ends is looked at again.
    let mut newer: Option<Seen> = None;
    let mut is_damaged = false;
    rows.visit(&range, &mut |row, stored| {
        if let Some(newer) = newer.take()
            && keys::version_prefix(&newer.row) == keys::version_prefix(row)
        {
            if newer.at <= as_of {
                // It is looked at again when the key is swept.
                budget.look(stored.len());
                found.due = Some((newer.row, newer.at));
                return ControlFlow::Break(());
            }
            if !newer.is_mark {
                found.replacing.push(newer.row);
            }
        }
        let row = Bytes::copy_from_slice(row);
        if !budget.allows_more() {
            found.next = Some(row);
            return ControlFlow::Break(());
        }
        budget.take(stored.len());
        let Ok(at) = keys::version_timestamp(&row) else {
            is_damaged = true;
            return ControlFlow::Break(());
        };
        let is_mark = matches!(StoredVersion::decode(stored), Ok(StoredVersion::Removed));
        newer = Some(Seen { row, at, is_mark });
        ControlFlow::Continue(())
    })?;
    match is_damaged {
        true => Err(ApplyError::Damaged("a version")),
        false => Ok(found),
    }
}

/// Goes once through all versions from `from` on: sweeps their keys, and gives an unswept row to
/// what has replaced a version since `as_of` and has none. Where it goes on, if there is more than
/// this piece may do.
fn walk(
    changes: &mut Changes<'_>,
    kept: u32,
    as_of: Timestamp,
    (mut from, mut within): (Bytes, Option<Within>),
    budget: &mut Budget,
) -> Result<Option<SweepProgress>, ApplyError> {
    // Swept versions leave no unswept row behind, and none is older than this. What the walk adds
    // is newer than what it sweeps.
    let oldest = oldest_unswept(&changes.rows())?.unwrap_or(Timestamp(i64::MAX));
    let before_oldest = Timestamp(oldest.0.saturating_sub(1));
    loop {
        if within.is_none() {
            let found = look_ahead(&changes.rows(), &from, as_of, budget)?;
            for row in found.replacing {
                let (key, at) =
                    keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
                let unswept = keys::unswept(at, &key);
                if changes.rows().first(&keys::only(&unswept))?.is_none() {
                    changes.put(unswept, Bytes::new());
                }
            }
            let Some((row, at)) = found.due else {
                return Ok(found.next.map(|from| SweepProgress::Walking { from, within: None }));
            };
            let (key, _) =
                keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
            remove_looked_at(changes, (before_oldest, &key), &[at], budget)?;
            // One is found, and so this piece has come further also where it may do no more.
            let begun = Within { as_of, kept: 1, oldest_kept: at, passed: Timestamp::ZERO };
            (from, within) = (row, Some(begun));
        }
        let (key, _) = keys::decode_version(&from).map_err(|_| ApplyError::Damaged("a version"))?;
        let key_as_of = within.map_or(as_of, |within| within.as_of);
        if !sweep_key(changes, (before_oldest, &key), kept, key_as_of, &mut within, budget)? {
            return Ok(Some(SweepProgress::Walking { from, within }));
        }
        (from, within) = (keys::after_version(&from), None);
    }
}

/// Sweeps the keys of the oldest unswept rows, up to `as_of`, and removes the rows; where
/// everything is `kept`, only that. `within` is how far the piece before came with the first of
/// them.
fn sweep_due_keys(
    changes: &mut Changes<'_>,
    kept: Option<u32>,
    as_of: Timestamp,
    mut within: Option<(Bytes, Within)>,
    budget: &mut Budget,
) -> Result<Option<SweepProgress>, ApplyError> {
    let most = budget.rows.max(1) as usize;
    let mut rows = Vec::new();
    changes.rows().visit(&keys::all_unswept(), &mut |row, _| {
        rows.push(Bytes::copy_from_slice(row));
        if rows.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    for row in rows {
        let (at, key) = keys::decode_unswept(&row).map_err(|_| ApplyError::Damaged(UNSWEPT))?;
        if at > as_of || !budget.allows_more() {
            break;
        }
        // Of a key that has come up in this piece already, the rows of all versions have gone.
        if changes.rows().first(&keys::only(&row))?.is_none() {
            continue;
        }
        if let Some(kept) = kept {
            let mut within = within
                .take()
                .filter(|(of, within)| *of == key && at <= within.as_of)
                .map(|(_, within)| within);
            let as_of = within.map_or(as_of, |within| within.as_of);
            if !sweep_key(changes, (at, key), kept, as_of, &mut within, budget)? {
                let key = Bytes::copy_from_slice(key);
                return Ok(within.map(|within| SweepProgress::Within { key, within }));
            }
        }
        remove_unswept(changes, row, budget)?;
    }
    Ok(None)
}

/// Removes an unswept row, if it is there.
fn remove_unswept(
    changes: &mut Changes<'_>,
    row: Bytes,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    if changes.rows().first(&keys::only(&row))?.is_some() {
        changes.delete(row, &[]);
        budget.take(0);
    }
    Ok(())
}

/// Removes the versions of a key that are not among the newest `kept` ones up to `as_of`, and of
/// all that it looks at the unswept rows later than `stays`: the row at that time is the one by
/// which the next piece finds the key again. No row of the key is older. `within` is how far it has
/// come with that. `false`: there are more.
fn sweep_key(
    changes: &mut Changes<'_>,
    (stays, key): (Timestamp, &[u8]),
    kept: u32,
    as_of: Timestamp,
    within: &mut Option<Within>,
    budget: &mut Budget,
) -> Result<bool, ApplyError> {
    let older = |within: &Option<Within>| match within {
        None => keys::versions_up_to(key, as_of),
        Some(within) => {
            keys::versions_up_to(key, Timestamp(within.oldest_kept.0.saturating_sub(1)))
        }
    };
    let found = |within: &Option<Within>| within.map_or(0, |within| within.kept);
    let mut complete = true;
    let mut looked_at = Vec::new();
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
            looked_at.push(oldest_kept);
            let passed = Timestamp::ZERO;
            *within = Some(Within { as_of, kept: found(within) + 1, oldest_kept, passed });
            match found(within) < kept {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        if !complete || found(within) < kept {
            remove_looked_at(changes, (stays, key), &looked_at, budget)?;
            // There are not more, and so none too many; but looking counts, also where there are
            // none.
            budget.take(0);
            return Ok(complete);
        }
    }
    let mut gone: Vec<HashedRow> = Vec::new();
    let mut range = older(within);
    let mut passed = within.map_or(Timestamp::ZERO, |within| within.passed);
    if passed > Timestamp::ZERO {
        range.end = keys::version(key, passed);
    }
    changes.rows().scan(&range, Direction::Reverse, &mut |row, stored| {
        complete = budget.allows_more();
        if !complete {
            return ControlFlow::Break(());
        }
        budget.take(stored.len());
        // A mark leaves with the removal that it belongs to.
        match (StoredVersion::decode(stored), keys::version_timestamp(row)) {
            (Ok(StoredVersion::Removed), Ok(at)) => passed = at,
            _ => gone.push(hashed(row, stored)),
        }
        ControlFlow::Continue(())
    })?;
    if let Some(within) = within {
        within.passed = passed;
    }
    if !gone.is_empty() {
        let swept = Horizon::read(&changes.rows())?.swept;
        advance(changes, META_SWEPT, swept, as_of);
    }
    for (row, hash) in gone {
        looked_at
            .push(keys::version_timestamp(&row).map_err(|_| ApplyError::Damaged("a version"))?);
        changes.delete_hashed(row, hash);
    }
    remove_looked_at(changes, (stays, key), &looked_at, budget)?;
    Ok(complete)
}

/// Removes the unswept rows of versions of a key: those later than `stays`, as there are no older
/// ones.
fn remove_looked_at(
    changes: &mut Changes<'_>,
    (stays, key): (Timestamp, &[u8]),
    looked_at: &[Timestamp],
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    for at in looked_at.iter().filter(|at| **at > stays) {
        remove_unswept(changes, keys::unswept(*at, key), budget)?;
    }
    Ok(())
}
