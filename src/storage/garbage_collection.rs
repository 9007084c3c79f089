//! Garbage collection in the store: removed versions are deleted from disk, and versions that the
//! history does not keep are removed.
//!
//! Both are done by log entries that the leader proposes, a bounded piece each, so that every
//! replica does the same at the same index.
//!
//! [`delete_removed`] deletes the versions that removals reach, the oldest removals first. Until
//! then a long read that began before a removal goes on with the state in which it began, and a
//! write that is to return what it has removed can read it.
//!
//! [`compact_history`] removes versions that the history does not keep. It judges as of a time that
//! is at least [`StateLimits::removal_grace_us`](crate::model::StateLimits) ago. Of each key, the
//! versions newer than that stay, and of the others as many of the newest as the rule keeps, at
//! least one. So every read as of that time or a later one finds what it would have found.
//!
//! A tombstone is a version like any other, but that it goes, too, as soon as nothing older of its
//! key is left: then it says no more than that there is no row.
//!
//! A key has a version to remove only once a newer version of it is that old. So while the group
//! does not keep everything, each version is stored together with a *superseding* row, by time and
//! key. Compaction takes the oldest of these rows, reads their keys alone, and deletes the rows.
//! The version of a superseding row may be gone; then only the row is deleted.
//!
//! Versions that were stored under another history may have no such row. So when the history is
//! changed, the next pieces *walk* once through all versions. The walk compacts each key that it
//! comes to, and adds superseding rows only for versions that have replaced another one and are not
//! old enough yet. A history may be changed to make room on a disk that is nearly full, so the walk
//! adds no row for versions that can be removed.
//!
//! Both must read the rows that they remove, because the state's hash is that of keys and values.
//! So a piece is bounded in rows and in bytes ([`Budget`]), counting everything that it reads:
//! every replica reads as much at the same index, and writes wait meanwhile. A key may have more
//! versions than one piece may read; the next piece then continues within the key. The progress of
//! the walk and within a key is part of the state ([`CompactionProgress`]).
//!
//! How far both have come is recorded ([`Horizon`]), so that a later page of a read that is too old
//! is refused, and does not show less than there was.

use std::collections::HashMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::apply::{ApplyError, decode_fact, encode_fact};
use super::changes::{Changes, HashedRow};
use super::engine::Direction;
use super::keys;
use super::queue_fronts::QueueFronts;
use super::removals::{RangeRemoval, Removal};
use super::rows::Rows;
use super::version_row::StoredVersion;
use crate::model::{History, ReadView, Timestamp};

/// The name of the fact up to which time the versions that removals reach are deleted from disk.
pub(super) const META_REMOVED_UP_TO: &str = "purged";
/// The name of the fact as of which time the history was compacted.
pub(super) const META_COMPACTED_AS_OF: &str = "swept";

/// The name of the fact that holds the [`CompactionProgress`].
pub(super) const META_COMPACTION: &str = "sweep";

/// The damage that is reported if a superseding row cannot be decoded.
const SUPERSEDING: &str = "the row of a superseding version";

/// How far garbage collection has come: the versions that removals up to `removed_up_to` reach are
/// deleted or about to be, and of the versions before `compacted_as_of` only those are left that
/// the history keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Horizon {
    pub removed_up_to: Timestamp,
    pub compacted_as_of: Timestamp,
}

impl Horizon {
    /// Whether versions may be gone that a read view should show.
    ///
    /// A read that looked `far_back` when it began, further than the grace period of removals, may
    /// have begun where the history was compacted already. It shows the versions that are left, as
    /// after a trim: what it shows is correct, and versions that the history does not keep are not
    /// found. A read that began closer to its time has shown everything at first, and must not show
    /// less later.
    pub fn is_past(self, read_view: ReadView, far_back: bool) -> bool {
        let ReadView { at, removals_up_to } = read_view;
        removals_up_to < self.removed_up_to || (!far_back && at < self.compacted_as_of)
    }

    pub fn read(rows: &dyn Rows) -> Result<Horizon, ApplyError> {
        let read = |name: &str| -> Result<Timestamp, ApplyError> {
            match rows.get(&keys::meta(name))? {
                None => Ok(Timestamp::ZERO),
                Some(value) => decode_time(&value).ok_or(ApplyError::Damaged("a time")),
            }
        };
        Ok(Horizon {
            removed_up_to: read(META_REMOVED_UP_TO)?,
            compacted_as_of: read(META_COMPACTED_AS_OF)?,
        })
    }
}

/// Decodes the time in a fact about the store.
pub(super) fn decode_time(value: &[u8]) -> Option<Timestamp> {
    value.try_into().ok().map(|bytes| Timestamp(i64::from_le_bytes(bytes)))
}

fn advance(changes: &mut Changes<'_>, name: &str, from: Timestamp, to: Timestamp) {
    if to > from {
        changes.note(keys::meta(name), to.0.to_le_bytes().to_vec().into());
    }
}

/// The rows and bytes that one piece may still read. Every piece may handle one row, so that the
/// work comes to an end.
pub(super) struct Budget {
    rows: u32,
    bytes: u64,
    /// A row was handled.
    begun: bool,
    /// The versions that the piece has removed, and their bytes. They stay in the engine until its
    /// batch is written, so that going through their keys again in the same piece reads them again.
    removed_rows: u32,
    removed_bytes: u64,
}

impl Budget {
    /// The budget of a piece that has not begun.
    pub fn new(rows: u32, bytes: u64) -> Budget {
        Budget { rows, bytes, begun: false, removed_rows: 0, removed_bytes: 0 }
    }

    fn allows_more(&self) -> bool {
        !self.begun || (self.rows > 0 && self.bytes > 0)
    }

    /// Charges a row of so many bytes that was handled.
    fn take(&mut self, bytes: usize) {
        self.begun = true;
        self.rows = self.rows.saturating_sub(1);
        self.read(bytes);
    }

    /// Charges a version of so many bytes that is removed.
    fn remove(&mut self, bytes: usize) {
        self.take(bytes);
        self.removed_rows = self.removed_rows.saturating_add(1);
        self.removed_bytes = self.removed_bytes.saturating_add(bytes as u64);
    }

    /// Charges everything that the piece has removed, because it may be read again.
    fn charge_removed(&mut self) {
        self.rows = self.rows.saturating_sub(self.removed_rows);
        self.bytes = self.bytes.saturating_sub(self.removed_bytes);
    }

    /// Charges bytes that were read.
    fn read(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// Deletes from disk versions that removals up to `before` reach, as many rows as the budget allows
/// and at least one.
pub(super) fn delete_removed(
    changes: &mut Changes<'_>,
    before: Timestamp,
    mut budget: Budget,
) -> Result<(), ApplyError> {
    let removed_up_to = Horizon::read(&changes.rows())?.removed_up_to;
    let superseding = oldest_superseding(&changes.rows(), &changes.fronts)?;
    let mut reached = removed_up_to;
    let most = budget.rows.max(1) as usize;
    let mut queued = Vec::new();
    changes.rows().visit(&changes.fronts.queue(), &mut |row, _| {
        queued.push(Bytes::copy_from_slice(row));
        if queued.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    // Oldest first: when a removal's turn comes, the versions that older ones of its key reach are
    // gone.
    let mut gone = HashMap::new();
    for row in &queued {
        let (at, key) = keys::decode_queued(row).map_err(|_| ApplyError::Damaged("a removal"))?;
        if at > before || !budget.allows_more() {
            break;
        }
        reached = reached.max(at);
        delete_removed_of_key(changes, row, (at, key), superseding, &mut gone, &mut budget)?;
    }
    let ranges = changes.ranges().clone();
    for range in ranges.iter() {
        if range.at > before {
            break;
        }
        // Versions that removals of its keys, and of ranges that overlap it, have just deleted are
        // read again.
        budget.charge_removed();
        if !budget.allows_more() {
            break;
        }
        reached = reached.max(range.at);
        delete_removed_of_range(changes, range, superseding, &mut budget)?;
    }
    advance(changes, META_REMOVED_UP_TO, removed_up_to, reached);
    Ok(())
}

/// Reads the first row of a range.
fn first_row(
    rows: &dyn Rows,
    range: &keys::RowRange,
    budget: &mut Budget,
) -> Result<Option<Bytes>, ApplyError> {
    let mut found = None;
    rows.scan_rows(range, Direction::Forward, &mut |row, stored| {
        budget.read(stored.bytes());
        found = Some(Bytes::copy_from_slice(row));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Removes these versions of a key, as many as the budget allows, and their superseding rows, of
/// which none is older than `superseding`. Returns false if there are more.
fn remove_versions(
    changes: &mut Changes<'_>,
    key: &[u8],
    versions: &keys::RowRange,
    superseding: Option<Timestamp>,
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
        gone.push(HashedRow::new(row, stored));
        ControlFlow::Continue(())
    })?;
    for hashed in gone {
        let at =
            keys::version_timestamp(&hashed.row).map_err(|_| ApplyError::Damaged("a version"))?;
        if superseding.is_some_and(|oldest| oldest <= at) {
            remove_superseding(changes, keys::superseding(at, key), budget)?;
        }
        changes.delete_hashed(hashed);
    }
    Ok(complete)
}

/// Deletes the versions that a removal of a key reaches, and after all of these the rows of the
/// removal: until then the tombstone hides the versions from reads of the newest state, and the
/// removal from reads of the past.
///
/// `gone` has, by key, the time up to which this piece has deleted all versions. They are not read
/// again: otherwise each of many removals of a key would read all its rows.
fn delete_removed_of_key<'k>(
    changes: &mut Changes<'_>,
    queued: &Bytes,
    (at, key): (Timestamp, &'k [u8]),
    superseding: Option<Timestamp>,
    gone: &mut HashMap<&'k [u8], Timestamp>,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    let removal_row = keys::removal(key, at);
    let stored = changes.rows().get(&removal_row)?;
    let Some(removal) = stored else { return Err(ApplyError::Damaged("a removal")) };
    let floor = Removal::decode(&removal)?.floor(at);
    let below = Timestamp(floor.0.saturating_sub(1));
    let mut versions = keys::versions_up_to(key, below);
    if let Some(gone) = gone.get(key) {
        versions.end = keys::version(key, *gone);
    }
    if !remove_versions(changes, key, &versions, superseding, budget)? {
        return Ok(());
    }
    delete_tombstone(changes, key, floor, budget)?;
    let gone = gone.entry(key).or_insert(below);
    *gone = below.max(*gone);
    changes.delete(removal_row, &removal);
    changes.delete(queued.clone(), &[]);
    budget.take(0);
    Ok(())
}

/// Deletes the version of a key at a time if it is a tombstone: nothing is left that it hides.
fn delete_tombstone(
    changes: &mut Changes<'_>,
    key: &[u8],
    at: Timestamp,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    let mut tombstone = None;
    changes.rows().newest(&keys::only(&keys::version(key, at)), &mut |row, stored| {
        if StoredVersion::is_tombstone(stored.head()) {
            tombstone = Some(HashedRow::new(row, stored.head()));
        }
    })?;
    if let Some(tombstone) = tombstone {
        budget.remove(tombstone.value_bytes);
        changes.delete_hashed(tombstone);
    }
    Ok(())
}

/// Deletes the versions that the removal of a range reaches, key by key. Its row is deleted last,
/// and covers the keys that are left until then.
fn delete_removed_of_range(
    changes: &mut Changes<'_>,
    range: &RangeRemoval,
    superseding: Option<Timestamp>,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    let mut from = range.from.clone();
    let next = loop {
        let versions = keys::versions_between(&from, &range.to);
        let Some(row) = first_row(&changes.rows(), &versions, budget)? else { break None };
        let (mut key, _) =
            keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
        let versions = keys::versions_up_to(&key, range.at);
        if !budget.allows_more() || !remove_versions(changes, &key, &versions, superseding, budget)?
        {
            break Some(key);
        }
        // A key counts as a row, also if there is nothing to remove.
        budget.take(0);
        key.push(0);
        from = key.into();
    };
    let rest = next.map(|from| RangeRemoval { from: from.into(), ..range.clone() });
    changes.replace_range(range, rest);
    Ok(())
}

/// The progress of compaction, as far as it does not follow from the superseding rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum CompactionProgress {
    /// The history was changed: the walk continues at the version of this row, or the first one
    /// after it. `within` is the progress within that version's key, if it has begun.
    Walking { from: Bytes, within: Option<KeyProgress> },
    /// The last piece has ended within this key.
    Within { key: Bytes, within: KeyProgress },
}

/// The progress of compaction within a key, from the newest version on. It stays valid while
/// removals delete versions, because these are the oldest ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyProgress {
    /// The time as of which the key is judged, also by the next pieces.
    as_of: Timestamp,
    /// The number of versions up to `as_of` that were found and stay.
    kept: u32,
    /// The timestamp of the oldest of these.
    oldest_kept: Timestamp,
}

impl CompactionProgress {
    pub fn decode(stored: &[u8]) -> Option<CompactionProgress> {
        decode_fact(stored)
    }

    fn read(rows: &dyn Rows) -> Result<Option<CompactionProgress>, ApplyError> {
        let Some(stored) = rows.get(&keys::meta(META_COMPACTION))? else { return Ok(None) };
        let decoded = CompactionProgress::decode(&stored);
        Ok(Some(decoded.ok_or(ApplyError::Damaged("the progress of compaction"))?))
    }

    fn change(
        changes: &mut Changes<'_>,
        before: Option<CompactionProgress>,
        after: Option<CompactionProgress>,
    ) {
        if let Some(before) = before {
            changes.delete(keys::meta(META_COMPACTION), &encode_fact(&before));
        }
        if let Some(after) = after {
            changes.put(keys::meta(META_COMPACTION), encode_fact(&after));
        }
    }
}

/// The time of the oldest superseding row.
pub(super) fn oldest_superseding(
    rows: &dyn Rows,
    fronts: &QueueFronts,
) -> Result<Option<Timestamp>, ApplyError> {
    let Some((row, _)) = rows.first(&fronts.superseding())? else { return Ok(None) };
    let (at, _) = keys::decode_superseding(&row).map_err(|_| ApplyError::Damaged(SUPERSEDING))?;
    Ok(Some(at))
}

/// The earliest time as of which compaction has something to do, where this is the time of the
/// oldest superseding row.
pub(super) fn history_due(
    rows: &dyn Rows,
    oldest_superseding: Option<Timestamp>,
) -> Result<Option<Timestamp>, ApplyError> {
    Ok(match CompactionProgress::read(rows)? {
        Some(CompactionProgress::Walking { .. }) => Some(Timestamp::ZERO),
        Some(CompactionProgress::Within { .. }) | None => oldest_superseding,
    })
}

/// Begins the walk through all versions if another history is kept from now on.
pub(super) fn change_history(
    changes: &mut Changes<'_>,
    before: History,
    after: History,
) -> Result<(), ApplyError> {
    if before == after {
        return Ok(());
    }
    let progress = CompactionProgress::read(&changes.rows())?;
    let walking = CompactionProgress::Walking { from: keys::all_versions().start, within: None };
    CompactionProgress::change(changes, progress, (after != History::All).then_some(walking));
    Ok(())
}

/// Does one piece of compaction: of the walk that follows a change of the history, or else of the
/// keys that are due.
///
/// The oldest versions of a key are removed first: whenever a piece ends, the newest versions of
/// the key are left without a gap, and a read as of any time finds the correct one or none.
pub(super) fn compact_history(
    changes: &mut Changes<'_>,
    history: History,
    as_of: Timestamp,
    mut budget: Budget,
) -> Result<(), ApplyError> {
    let before = CompactionProgress::read(&changes.rows())?;
    let kept = match history {
        // Only the superseding rows have to be deleted.
        History::All => None,
        History::For { .. } => Some(1),
        History::Versions { count } => Some(count.max(1)),
    };
    let after = match (before.clone(), kept) {
        (Some(CompactionProgress::Walking { from, within }), Some(kept)) => {
            walk(changes, kept, as_of, (from, within), &mut budget)?
        }
        (Some(CompactionProgress::Within { key, within }), _) => {
            compact_due_keys(changes, kept, as_of, Some((key, within)), &mut budget)?
        }
        (Some(CompactionProgress::Walking { .. }) | None, _) => {
            compact_due_keys(changes, kept, as_of, None, &mut budget)?
        }
    };
    if after != before {
        CompactionProgress::change(changes, before, after);
    }
    Ok(())
}

/// A version that the walk has read.
struct WalkedVersion {
    row: Bytes,
    at: Timestamp,
}

/// The versions that one step of the walk has found.
#[derive(Default)]
struct WalkFindings {
    /// Rows of versions newer than `as_of` that have replaced another one.
    replacing: Vec<Bytes>,
    /// The newest version up to `as_of` of a key that has older ones.
    due: Option<(Bytes, Timestamp)>,
    /// The first row that was not read for want of budget.
    next: Option<Bytes>,
}

/// Reads versions from `from` on, up to a key of which some may have to be removed.
fn find_due_key(
    rows: &dyn Rows,
    from: &Bytes,
    as_of: Timestamp,
    budget: &mut Budget,
) -> Result<WalkFindings, ApplyError> {
    let mut found = WalkFindings::default();
    let range = keys::RowRange { start: from.clone(), end: keys::all_versions().end };
    // A key's older version is the next row. The row at which a piece ends is read again.
    let mut newer: Option<WalkedVersion> = None;
    let mut is_damaged = false;
    rows.visit(&range, &mut |row, stored| {
        if let Some(newer) = newer.take()
            && keys::version_prefix(&newer.row) == keys::version_prefix(row)
        {
            if newer.at <= as_of {
                // It is read again when the key is compacted.
                budget.read(stored.len());
                found.due = Some((newer.row, newer.at));
                return ControlFlow::Break(());
            }
            found.replacing.push(newer.row);
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
        newer = Some(WalkedVersion { row, at });
        ControlFlow::Continue(())
    })?;
    match is_damaged {
        true => Err(ApplyError::Damaged("a version")),
        false => Ok(found),
    }
}

/// Walks through all versions from `from` on: compacts their keys, and adds a superseding row for
/// each version that has replaced another one since `as_of` and has none. Returns where to
/// continue, if the budget is used up.
fn walk(
    changes: &mut Changes<'_>,
    kept: u32,
    as_of: Timestamp,
    (mut from, mut within): (Bytes, Option<KeyProgress>),
    budget: &mut Budget,
) -> Result<Option<CompactionProgress>, ApplyError> {
    // Compacted versions leave no superseding row, and none is older than this. The rows that the
    // walk adds are newer than the versions that it compacts.
    let oldest = oldest_superseding(&changes.rows(), &changes.fronts)?;
    let oldest = oldest.unwrap_or(Timestamp(i64::MAX));
    let before_oldest = Timestamp(oldest.0.saturating_sub(1));
    loop {
        if within.is_none() {
            let found = find_due_key(&changes.rows(), &from, as_of, budget)?;
            for row in found.replacing {
                let (key, at) =
                    keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
                let superseding = keys::superseding(at, &key);
                if changes.rows().get(&superseding)?.is_none() {
                    changes.put_superseding(at, &key);
                }
            }
            let Some((row, at)) = found.due else {
                return Ok(found
                    .next
                    .map(|from| CompactionProgress::Walking { from, within: None }));
            };
            let (key, _) =
                keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
            remove_superseding_of(changes, (before_oldest, &key), &[at], budget)?;
            // One version is found, so this piece makes progress even if its budget is used up.
            let begun = KeyProgress { as_of, kept: 1, oldest_kept: at };
            (from, within) = (row, Some(begun));
        }
        let (key, _) = keys::decode_version(&from).map_err(|_| ApplyError::Damaged("a version"))?;
        let key_as_of = within.map_or(as_of, |within| within.as_of);
        if !compact_key(changes, (before_oldest, &key), kept, key_as_of, &mut within, budget)? {
            return Ok(Some(CompactionProgress::Walking { from, within }));
        }
        (from, within) = (keys::after_version(&from), None);
    }
}

/// Compacts the keys of the oldest superseding rows, up to `as_of`, and deletes the rows; if `kept`
/// is `None`, only that. `within` is the progress of the piece before within the first key.
fn compact_due_keys(
    changes: &mut Changes<'_>,
    kept: Option<u32>,
    as_of: Timestamp,
    mut within: Option<(Bytes, KeyProgress)>,
    budget: &mut Budget,
) -> Result<Option<CompactionProgress>, ApplyError> {
    let most = budget.rows.max(1) as usize;
    let mut rows = Vec::new();
    changes.rows().visit(&changes.fronts.superseding(), &mut |row, _| {
        rows.push(Bytes::copy_from_slice(row));
        if rows.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    for row in rows {
        let (at, key) =
            keys::decode_superseding(&row).map_err(|_| ApplyError::Damaged(SUPERSEDING))?;
        if at > as_of || !budget.allows_more() {
            break;
        }
        // If the key was compacted in this piece already, the rows of all its versions are gone.
        if changes.rows().get(&row)?.is_none() {
            continue;
        }
        if let Some(kept) = kept {
            let mut within = within
                .take()
                .filter(|(of, within)| *of == key && at <= within.as_of)
                .map(|(_, within)| within);
            let as_of = within.map_or(as_of, |within| within.as_of);
            if !compact_key(changes, (at, key), kept, as_of, &mut within, budget)? {
                let key = Bytes::copy_from_slice(key);
                return Ok(within.map(|within| CompactionProgress::Within { key, within }));
            }
        }
        remove_superseding(changes, row, budget)?;
    }
    Ok(None)
}

/// Deletes a superseding row, if it exists.
fn remove_superseding(
    changes: &mut Changes<'_>,
    row: Bytes,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    if changes.rows().get(&row)?.is_some() {
        changes.delete(row, &[]);
        budget.take(0);
    }
    Ok(())
}

/// Removes the versions of a key that are not among the newest `kept` ones up to `as_of`, of which
/// a deletion is one and does not stay as the oldest, since it would hide nothing; and the
/// superseding rows later than `stays` of all versions that it reads: by the row at that time the
/// next piece finds the key again, and no row of the key is older. `within` is the progress.
/// Returns false if there is more to do.
fn compact_key(
    changes: &mut Changes<'_>,
    (stays, key): (Timestamp, &[u8]),
    kept: u32,
    as_of: Timestamp,
    within: &mut Option<KeyProgress>,
    budget: &mut Budget,
) -> Result<bool, ApplyError> {
    let older = |within: &Option<KeyProgress>| match within {
        None => keys::versions_up_to(key, as_of),
        Some(within) => {
            keys::versions_up_to(key, Timestamp(within.oldest_kept.0.saturating_sub(1)))
        }
    };
    let found = |within: &Option<KeyProgress>| within.map_or(0, |within| within.kept);
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
            *within = Some(KeyProgress { as_of, kept: found(within) + 1, oldest_kept });
            match found(within) < kept {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        if !complete || found(within) < kept {
            remove_superseding_of(changes, (stays, key), &looked_at, budget)?;
            // The key has no more versions than are kept. It counts as a row all the same.
            budget.take(0);
            return Ok(complete);
        }
    }
    let mut gone: Vec<HashedRow> = Vec::new();
    changes.rows().scan(&older(within), Direction::Reverse, &mut |row, stored| {
        complete = budget.allows_more();
        if !complete {
            return ControlFlow::Break(());
        }
        budget.take(stored.len());
        gone.push(HashedRow::new(row, stored));
        ControlFlow::Continue(())
    })?;
    if !gone.is_empty() {
        let compacted = Horizon::read(&changes.rows())?.compacted_as_of;
        advance(changes, META_COMPACTED_AS_OF, compacted, as_of);
    }
    for hashed in gone {
        looked_at.push(
            keys::version_timestamp(&hashed.row).map_err(|_| ApplyError::Damaged("a version"))?,
        );
        changes.delete_hashed(hashed);
    }
    if let Some(within) = within.filter(|_| complete) {
        delete_tombstone(changes, key, within.oldest_kept, budget)?;
    }
    remove_superseding_of(changes, (stays, key), &looked_at, budget)?;
    Ok(complete)
}

/// Deletes the superseding rows of these versions of a key, as far as they are later than `stays`;
/// there are no older ones.
fn remove_superseding_of(
    changes: &mut Changes<'_>,
    (stays, key): (Timestamp, &[u8]),
    looked_at: &[Timestamp],
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    for at in looked_at.iter().filter(|at| **at > stays) {
        remove_superseding(changes, keys::superseding(*at, key), budget)?;
    }
    Ok(())
}
