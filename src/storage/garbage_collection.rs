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
//! [`remove_compacted`] does the same for what a `COMPACT` has ended the reads of
//! ([`compact`]): it keeps one version, and judges as of no later version than the one as of which
//! reads go on. Its progress is one of its own, since it judges as of other times than the history
//! does. The two may be at the same key: each removes a key's oldest versions first, and never the
//! newest that a read may find, so what the other has found there stays or is older than what it
//! still looks at.
//!
//! A tombstone is a version like any other, but that it goes, too, in the piece in which the last
//! version older than it goes: it would say no more than that there is no row.
//!
//! A key has a version to remove only once a newer version of it is that old. Each version and each
//! tombstone has a *change row*, by time and key, which goes with it (`storage::feed`). So
//! compaction follows the change rows, the oldest first, and compacts their keys. It does so in
//! *passes*. A pass judges as of one time all changes between that of the pass before and its own.
//! The first change of a key in a pass compacts the key as of the pass's time, so that the others
//! of the key, which have a version before them that is in the same pass, are passed over. A change
//! of the history begins with a pass over everything that there is; it takes no room for itself, as
//! a history may be changed to make room on a disk that is nearly full.
//!
//! All must read the rows that they remove, because the state's hash is that of keys and values.
//! So a piece is bounded in rows and in bytes ([`Budget`]), counting everything that it reads:
//! every replica reads as much at the same index, and writes wait meanwhile. A key may have more
//! versions than one piece may read; the next piece then continues within the key. The progress of
//! compaction is part of the state ([`CompactionProgress`]).
//!
//! How far they have come is recorded ([`Horizon`]), so that a later page of a read that is too old
//! is refused, and does not show less than there was.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::apply::{ApplyError, decode_fact, encode_fact};
use super::changes::{Changes, HashedRow};
use super::engine::{Direction, WriteBatch};
use super::keys;
use super::leases;
use super::removals::{RangeRemoval, Removal};
use super::rows::Rows;
use super::version_row::StoredVersion;
use crate::model::{History, LeaseId, ReadView, Timestamp};

/// The name of the fact up to which time the versions that removals reach are deleted from disk.
pub(super) const META_REMOVED_UP_TO: &str = "purged";
/// The name of the fact as of which time the history was compacted.
pub(super) const META_COMPACTED_AS_OF: &str = "swept";

/// The name of the fact as of which version reads go on; every earlier one is refused.
pub(super) const META_COMPACTED: &str = "compacted";

/// The name of the fact that holds the [`CompactionProgress`] by the history.
pub(super) const META_HISTORY_PROGRESS: &str = "sweep";
/// The name of the fact that holds the [`CompactionProgress`] by what was compacted.
pub(super) const META_COMPACTED_PROGRESS: &str = "compaction";

/// How far garbage collection has come: the versions that removals up to `removed_up_to` reach are
/// deleted or about to be, and of the versions before `compacted_as_of` only those are left that
/// the history keeps, or that a read as of what was compacted, or later, may find.
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

impl Horizon {
    /// How far a batch notes that garbage collection has come, if it has collected any.
    pub fn noted_in(batch: &WriteBatch) -> Option<Timestamp> {
        let noted = [META_REMOVED_UP_TO, META_COMPACTED_AS_OF].map(|name| {
            batch.get(&keys::meta(name)).flatten().and_then(|value| decode_time(value))
        });
        noted.into_iter().flatten().max()
    }

    /// The time up to which changes may be deleted.
    pub fn deleted_up_to(self) -> Timestamp {
        self.removed_up_to.max(self.compacted_as_of)
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
    let mut reached = removed_up_to;
    let most = budget.rows.max(1) as usize;
    let mut queued = Vec::new();
    changes.rows().visit(&changes.front.queue(), &mut |row, _| {
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
        delete_removed_of_key(changes, row, (at, key), &mut gone, &mut budget)?;
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
        delete_removed_of_range(changes, range, &mut budget)?;
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

/// Versions of a key that are to be deleted.
#[derive(Default)]
struct GoneVersions {
    rows: Vec<HashedRow>,
    /// The leases that they name.
    leases: BTreeSet<LeaseId>,
}

impl GoneVersions {
    fn add(&mut self, row: &[u8], stored: &[u8]) {
        // What cannot be read names none, and is reported by whoever deletes it.
        if let Ok(at) = keys::version_timestamp(row)
            && let Ok(StoredVersion::Value { facts, .. }) = StoredVersion::decode(stored, at)
        {
            self.leases.extend(facts.lease);
        }
        self.rows.push(HashedRow::new(row, stored));
    }
}

/// Removes these versions of a key, as many as the budget allows. Returns false if there are more.
fn remove_versions(
    changes: &mut Changes<'_>,
    key: &[u8],
    versions: &keys::RowRange,
    budget: &mut Budget,
) -> Result<bool, ApplyError> {
    let mut gone = GoneVersions::default();
    let mut complete = true;
    changes.rows().visit(versions, &mut |row, stored| {
        complete = budget.allows_more();
        if !complete {
            return ControlFlow::Break(());
        }
        budget.remove(stored.len());
        gone.add(row, stored);
        ControlFlow::Continue(())
    })?;
    delete_versions(changes, key, gone, budget)?;
    Ok(complete)
}

/// Deletes versions of a key with their change rows, and has it leave leases that it went out of
/// with a long range.
fn delete_versions(
    changes: &mut Changes<'_>,
    key: &[u8],
    versions: GoneVersions,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    for hashed in versions.rows {
        let at =
            keys::version_timestamp(&hashed.row).map_err(|_| ApplyError::Damaged("a version"))?;
        changes.delete_version(at, key, hashed);
    }
    for lease in versions.leases {
        // Its row and the key's newest version are looked at.
        budget.take(key.len());
        leases::version_gone(changes, lease, key)?;
    }
    Ok(())
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
    if !remove_versions(changes, key, &versions, budget)? {
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
/// Returns whether it was one.
fn delete_tombstone(
    changes: &mut Changes<'_>,
    key: &[u8],
    at: Timestamp,
    budget: &mut Budget,
) -> Result<bool, ApplyError> {
    let mut tombstone = None;
    changes.rows().newest(&keys::only(&keys::version(key, at)), &mut |row, stored| {
        if StoredVersion::is_tombstone(stored.head()) {
            tombstone = Some(HashedRow::new(row, stored.head()));
        }
    })?;
    let Some(tombstone) = tombstone else { return Ok(false) };
    budget.remove(tombstone.value_bytes);
    changes.delete_version(at, key, tombstone);
    Ok(true)
}

/// Deletes the versions that the removal of a range reaches, key by key. Its row is deleted last,
/// and covers the keys that are left until then.
fn delete_removed_of_range(
    changes: &mut Changes<'_>,
    range: &RangeRemoval,
    budget: &mut Budget,
) -> Result<(), ApplyError> {
    let mut from = range.from.clone();
    let next = loop {
        let versions = keys::versions_between(&from, &range.to);
        let Some(row) = first_row(&changes.rows(), &versions, budget)? else { break None };
        let (mut key, _) =
            keys::decode_version(&row).map_err(|_| ApplyError::Damaged("a version"))?;
        let versions = keys::versions_up_to(&key, range.at);
        if !budget.allows_more() || !remove_versions(changes, &key, &versions, budget)? {
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

/// The progress of compaction by one rule. There is one by the history as long as the group does
/// not keep everything, and one by what was compacted from the first `COMPACT` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CompactionProgress {
    /// The passes before have judged the changes up to here.
    judged_up_to: Timestamp,
    /// The pass that is under way.
    pass: Option<Pass>,
}

/// A pass of compaction over the changes from [`CompactionProgress::judged_up_to`] to its own time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pass {
    /// The time as of which keys are judged.
    as_of: Timestamp,
    /// The change row to continue at, or the first one after it.
    next: Bytes,
    /// The progress within a key, which comes before the next change row.
    within: Option<KeyProgress>,
}

/// The progress of compaction within a key, from the newest version on. It stays valid while
/// removals delete versions, because these are the oldest ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyProgress {
    key: Bytes,
    /// The number of versions up to the time of the pass that were found and stay.
    kept: u32,
    /// Only versions older than this are still to be looked at: the timestamp of the oldest one
    /// that stays.
    before: Timestamp,
}

impl KeyProgress {
    /// Nothing was looked at.
    fn new(key: &[u8], as_of: Timestamp) -> KeyProgress {
        let before = Timestamp(as_of.0.saturating_add(1));
        KeyProgress { key: Bytes::copy_from_slice(key), kept: 0, before }
    }

    /// The rows of the versions that are still to be looked at.
    fn older(&self) -> keys::RowRange {
        keys::versions_up_to(&self.key, Timestamp(self.before.0.saturating_sub(1)))
    }
}

impl CompactionProgress {
    pub fn decode(stored: &[u8]) -> Option<CompactionProgress> {
        decode_fact(stored)
    }

    fn read(rows: &dyn Rows, name: &str) -> Result<Option<CompactionProgress>, ApplyError> {
        let Some(stored) = rows.get(&keys::meta(name))? else { return Ok(None) };
        let decoded = CompactionProgress::decode(&stored);
        Ok(Some(decoded.ok_or(ApplyError::Damaged("the progress of compaction"))?))
    }

    fn change(
        changes: &mut Changes<'_>,
        name: &str,
        before: Option<CompactionProgress>,
        after: Option<CompactionProgress>,
    ) {
        if let Some(before) = before {
            changes.delete(keys::meta(name), &encode_fact(&before));
        }
        if let Some(after) = after {
            changes.put(keys::meta(name), encode_fact(&after));
        }
    }
}

/// Where the changes begin that compaction has not judged: there are none between `judged_up_to`
/// and `next`. Like [`QueueFront`](super::queue_front::QueueFront) it is in memory alone, so that
/// the markers of change rows that were deleted are not stepped over again and again.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangesFront {
    judged_up_to: Timestamp,
    next: Timestamp,
}

impl ChangesFront {
    /// That of rows of which nothing is known.
    pub const UNKNOWN: ChangesFront =
        ChangesFront { judged_up_to: Timestamp(i64::MAX), next: NOTHING_JUDGED };
}

/// The earliest time as of which compaction by the history has something to do; `None` if it has
/// nothing. No row is later than `now`.
pub(super) fn history_due(
    rows: &dyn Rows,
    front: &mut ChangesFront,
    now: Timestamp,
) -> Result<Option<Timestamp>, ApplyError> {
    compaction_due(rows, META_HISTORY_PROGRESS, Timestamp(i64::MAX), front, now)
}

/// The same by what was compacted.
pub(super) fn compacted_due(
    rows: &dyn Rows,
    front: &mut ChangesFront,
    now: Timestamp,
) -> Result<Option<Timestamp>, ApplyError> {
    compaction_due(rows, META_COMPACTED_PROGRESS, compacted(rows)?, front, now)
}

/// The same for compaction that judges no change later than `last`, and whose progress has this
/// name.
fn compaction_due(
    rows: &dyn Rows,
    name: &str,
    last: Timestamp,
    front: &mut ChangesFront,
    now: Timestamp,
) -> Result<Option<Timestamp>, ApplyError> {
    let known = std::mem::replace(front, ChangesFront::UNKNOWN);
    let Some(progress) = CompactionProgress::read(rows, name)? else { return Ok(None) };
    let CompactionProgress { judged_up_to, pass } = progress;
    if judged_up_to == NOTHING_JUDGED {
        return Ok(Some(Timestamp::ZERO));
    }
    if pass.is_none() && judged_up_to >= last {
        return Ok(None);
    }
    let mut rest = keys::changes(judged_up_to, last);
    if let Some(pass) = &pass {
        rest.start = pass.next.clone();
    }
    // Changes come at the end alone.
    if known.judged_up_to <= judged_up_to {
        rest.start = rest.start.max(keys::change(known.next, &[]));
    }
    let first = if rest.start < rest.end { rows.first(&rest)? } else { None };
    let next = match first {
        Some((row, _)) => Some(keys::decode_change(&row).map_err(|_| damaged_change())?.0),
        None => None,
    };
    *front = ChangesFront { judged_up_to, next: next.unwrap_or(now.min(last)) };
    Ok(match pass {
        // It has to come to its end, also where it has come to the last change.
        Some(pass) => Some(next.map_or(pass.as_of, |next| next.min(pass.as_of))),
        None => next,
    })
}

/// That compaction has judged no changes yet, by the history that is kept.
const NOTHING_JUDGED: Timestamp = Timestamp(i64::MIN);

pub(super) fn damaged_change() -> ApplyError {
    ApplyError::Damaged("the row of a change")
}

/// Begins a pass over all changes if another history is kept from now on.
pub(super) fn change_history(
    changes: &mut Changes<'_>,
    before: History,
    after: History,
) -> Result<(), ApplyError> {
    if before == after {
        return Ok(());
    }
    let progress = CompactionProgress::read(&changes.rows(), META_HISTORY_PROGRESS)?;
    let begun = CompactionProgress { judged_up_to: NOTHING_JUDGED, pass: None };
    let begun = (after != History::All).then_some(begun);
    CompactionProgress::change(changes, META_HISTORY_PROGRESS, progress, begun);
    Ok(())
}

/// The earliest version as of which reads go on; zero where nothing was compacted.
pub(super) fn compacted(rows: &dyn Rows) -> Result<Timestamp, ApplyError> {
    let Some(stored) = rows.get(&keys::meta(META_COMPACTED))? else { return Ok(Timestamp::ZERO) };
    decode_time(&stored).ok_or(ApplyError::Damaged("what was compacted"))
}

/// Ends reads as of versions below `version`. Returns the earliest version as of which they go on:
/// that one, or a later one if that was compacted before.
pub(super) fn compact(
    changes: &mut Changes<'_>,
    version: Timestamp,
) -> Result<Timestamp, ApplyError> {
    let before = compacted(&changes.rows())?;
    if version <= before {
        return Ok(before);
    }
    let row = keys::meta(META_COMPACTED);
    if before > Timestamp::ZERO {
        changes.delete(row.clone(), &before.0.to_le_bytes());
    }
    changes.put(row, version.0.to_le_bytes().to_vec().into());
    if CompactionProgress::read(&changes.rows(), META_COMPACTED_PROGRESS)?.is_none() {
        // Each change is later.
        let begun = CompactionProgress { judged_up_to: Timestamp::ZERO, pass: None };
        CompactionProgress::change(changes, META_COMPACTED_PROGRESS, None, Some(begun));
    }
    Ok(version)
}

/// Does one piece of compaction by the history.
pub(super) fn compact_history(
    changes: &mut Changes<'_>,
    history: History,
    as_of: Timestamp,
    budget: Budget,
) -> Result<(), ApplyError> {
    let kept = match history {
        History::All => return Ok(()),
        History::For { .. } => 1,
        History::Versions { count } => count.max(1),
    };
    compaction_piece(changes, META_HISTORY_PROGRESS, kept, as_of, budget)
}

/// Does one piece of compaction by what was compacted.
pub(super) fn remove_compacted(
    changes: &mut Changes<'_>,
    as_of: Timestamp,
    budget: Budget,
) -> Result<(), ApplyError> {
    let as_of = as_of.min(compacted(&changes.rows())?);
    compaction_piece(changes, META_COMPACTED_PROGRESS, 1, as_of, budget)
}

/// Does one piece of compaction: goes on with a pass, or begins one.
///
/// The oldest versions of a key are removed first: whenever a piece ends, the newest versions of
/// the key are left without a gap, and a read as of any time finds the correct one or none.
fn compaction_piece(
    changes: &mut Changes<'_>,
    name: &str,
    kept: u32,
    as_of: Timestamp,
    mut budget: Budget,
) -> Result<(), ApplyError> {
    let Some(before) = CompactionProgress::read(&changes.rows(), name)? else { return Ok(()) };
    let judged_up_to = before.judged_up_to;
    let mut pass = match before.pass.clone() {
        Some(pass) => pass,
        None if as_of <= judged_up_to => return Ok(()),
        None => {
            let next = keys::changes(judged_up_to, as_of).start;
            Pass { as_of, next, within: None }
        }
    };
    let is_over = pass.go_on(changes, judged_up_to, kept, &mut budget)?;
    let after = match is_over {
        true => CompactionProgress { judged_up_to: pass.as_of, pass: None },
        false => CompactionProgress { judged_up_to, pass: Some(pass) },
    };
    CompactionProgress::change(changes, name, Some(before), Some(after));
    Ok(())
}

impl Pass {
    /// Compacts the keys of the next changes, as far as the budget goes. Returns whether the pass
    /// is over.
    fn go_on(
        &mut self,
        changes: &mut Changes<'_>,
        judged_up_to: Timestamp,
        kept: u32,
        budget: &mut Budget,
    ) -> Result<bool, ApplyError> {
        if let Some(within) = &mut self.within
            && !compact_key(changes, kept, self.as_of, within, budget)?
        {
            return Ok(false);
        }
        // The keys that this piece has compacted, some of whose changes it may have deleted.
        let mut compacted: HashSet<Bytes> = HashSet::new();
        compacted.extend(self.within.take().map(|within| within.key));
        let most = budget.rows.max(1) as usize;
        let mut rows = Vec::new();
        let end = keys::changes(judged_up_to, self.as_of).end;
        let range = keys::RowRange { start: self.next.clone(), end };
        changes.rows().visit(&range, &mut |row, _| {
            rows.push(Bytes::copy_from_slice(row));
            if rows.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let is_last = rows.len() < most;
        for row in rows {
            if !budget.allows_more() {
                return Ok(false);
            }
            self.next = keys::only(&row).end;
            budget.take(0);
            let (at, key) = keys::decode_change(&row).map_err(|_| damaged_change())?;
            if compacted.contains(key) {
                continue;
            }
            let older = keys::versions_up_to(key, Timestamp(at.0.saturating_sub(1)));
            let mut previous = None;
            changes.rows().newest(&older, &mut |row, _| {
                // Its value is not read.
                budget.read(row.len());
                previous = keys::version_timestamp(row).ok();
            })?;
            if previous.is_some_and(|previous| previous > judged_up_to) {
                continue;
            }
            let mut within = KeyProgress::new(key, self.as_of);
            if !compact_key(changes, kept, self.as_of, &mut within, budget)? {
                self.within = Some(within);
                return Ok(false);
            }
            compacted.insert(within.key);
        }
        Ok(is_last)
    }
}

/// Removes the versions of a key that are not among the newest `kept` ones of those that it has to
/// look at, of which a deletion is one and does not stay as the oldest, since it would hide
/// nothing. Returns false if there is more to do.
fn compact_key(
    changes: &mut Changes<'_>,
    kept: u32,
    as_of: Timestamp,
    within: &mut KeyProgress,
    budget: &mut Budget,
) -> Result<bool, ApplyError> {
    let mut complete = true;
    if within.kept < kept {
        changes.rows().scan_rows(&within.older(), Direction::Forward, &mut |row, stored| {
            complete = budget.allows_more();
            let Ok(before) = keys::version_timestamp(row) else { return ControlFlow::Break(()) };
            if !complete {
                return ControlFlow::Break(());
            }
            budget.take(stored.bytes());
            (within.kept, within.before) = (within.kept + 1, before);
            match within.kept < kept {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        if !complete || within.kept < kept {
            // The key has no more versions than are kept. It counts as a row all the same.
            budget.take(0);
            return Ok(complete);
        }
    }
    let mut gone = GoneVersions::default();
    changes.rows().scan(&within.older(), Direction::Reverse, &mut |row, stored| {
        // A tombstone goes in the same piece as what it hides: the next piece may never come to
        // it, because another history is set.
        complete = budget.allows_more() || StoredVersion::is_tombstone(stored);
        if !complete {
            return ControlFlow::Break(());
        }
        budget.take(stored.len());
        gone.add(row, stored);
        ControlFlow::Continue(())
    })?;
    let mut is_less = !gone.rows.is_empty();
    delete_versions(changes, &within.key, gone, budget)?;
    if complete {
        is_less |= delete_tombstone(changes, &within.key, within.before, budget)?;
    }
    if is_less {
        let compacted = Horizon::read(&changes.rows())?.compacted_as_of;
        advance(changes, META_COMPACTED_AS_OF, compacted, as_of);
    }
    Ok(complete)
}
