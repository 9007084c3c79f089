//! The latest changes, in memory as long as somebody follows them, so that whoever has caught up
//! reads no store.
//!
//! Rule: the window holds all changes after its beginning, up to its end, which are the times
//! between two batches. A batch is added when it is visible in the store, and only onto the end
//! that it continues: if it begins elsewhere, because a snapshot was installed or nobody followed
//! for a while, the window begins anew. So the handover from the store to memory has neither a gap
//! nor a repeat: a reader whose position is within the window goes on there, and one whose position
//! is before it reads another page (`storage::feed`), which ends at the newest applied timestamp.
//! Where changes come faster than pages are read, the store serves that reader until he has caught
//! up.
//!
//! A batch in which garbage collection may have deleted some of the batch's own changes is not
//! added; the window begins anew behind it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::WriteBatch;
use super::garbage_collection::Horizon;
use super::keys;
use super::removals::RangeRemoval;
use super::version_row::StoredVersion;
use crate::model::{KeyChange, KeyInterval, Timestamp, Version};

/// Bytes of recent changes that are kept in memory, keys and values: a second of what a server can
/// write, in which a reader of pages catches up. The newest batch is kept in any case.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes that a recent change takes besides its key and value, about.
const RECENT_OVERHEAD_BYTES: usize = 160;

/// A change in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecentChange {
    /// Of one key. It does not say what the key had before.
    Key(KeyChange),
    /// A long range was removed: which keys that are the store says.
    Range { at: Timestamp, range: KeyInterval },
}

impl RecentChange {
    /// The timestamp of the write.
    pub fn at(&self) -> Timestamp {
        match self {
            RecentChange::Key(change) => change.at,
            RecentChange::Range { at, .. } => *at,
        }
    }

    fn bytes(&self) -> usize {
        let bytes = match self {
            RecentChange::Key(KeyChange { key, written, .. }) => {
                key.len() + written.as_ref().map_or(0, |version| version.value.len())
            }
            RecentChange::Range { range, .. } => range.from.len() + range.to.len(),
        };
        bytes + RECENT_OVERHEAD_BYTES
    }
}

/// The changes of one batch of the state machine.
#[derive(Debug, PartialEq, Eq)]
pub struct RecentBatch {
    /// The batch before ends here, and this one has all changes after it.
    pub after: Timestamp,
    pub up_to: Timestamp,
    /// In order of time, and of one time in order of keys.
    pub changes: Vec<RecentChange>,
    bytes: usize,
}

/// What memory has after a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecentPart {
    /// All changes after the time are in these batches, the first of which may begin before it.
    Batches(Vec<Arc<RecentBatch>>),
    /// The window begins here, after the time: the store has what is before it.
    BeginsLater(Timestamp),
}

/// The window of the latest changes, between the state machine and whoever follows it.
pub(super) struct RecentChanges {
    window: Mutex<Window>,
}

struct Window {
    is_followed: bool,
    /// It holds all changes after this.
    after: Timestamp,
    /// And no later ones than this.
    up_to: Timestamp,
    batches: VecDeque<Arc<RecentBatch>>,
    bytes: usize,
    bytes_max: usize,
}

impl RecentChanges {
    /// Replaces the most bytes that are kept.
    #[cfg(any(test, feature = "internals"))]
    pub fn set_bytes_max(&self, bytes_max: usize) {
        self.window().bytes_max = bytes_max;
    }

    /// Keeps changes from now on: the window begins at what `applied` says, unless somebody follows
    /// already.
    ///
    /// Whoever follows and then reads a page sees every batch, in that page or later in the window:
    /// one that was not added because nobody followed had become visible before.
    pub fn follow(&self, applied: impl FnOnce() -> Timestamp) {
        let mut window = self.window();
        if !window.is_followed {
            // Under the lock: a batch that is visible by now and not added is before the window,
            // and one that is added later begins there or before.
            let applied = applied();
            window.begin_anew(applied);
            window.is_followed = true;
        }
    }

    /// Lets go of all changes.
    pub fn follow_no_more(&self) {
        let mut window = self.window();
        let up_to = window.up_to;
        window.begin_anew(up_to);
        window.is_followed = false;
    }

    pub fn is_followed(&self) -> bool {
        self.window().is_followed
    }

    /// Adds the changes of a batch that has become visible and took the state from one time to
    /// another. `ranges` are the removals of ranges after it.
    pub fn add(
        &self,
        (after, up_to): (Timestamp, Timestamp),
        batch: &WriteBatch,
        ranges: &[RangeRemoval],
    ) {
        let mut window = self.window();
        if !window.is_followed || after == up_to {
            return;
        }
        if window.up_to != after {
            window.begin_anew(after);
        }
        match batch_changes(after, batch, ranges) {
            Some(changes) => window.extend(RecentBatch::new((after, up_to), changes)),
            None => window.begin_anew(up_to),
        }
    }

    /// A snapshot has taken the place of the state, which stands at `to` now.
    pub fn replaced(&self, to: Timestamp) {
        self.window().begin_anew(to);
    }

    /// The time after which there is everything.
    pub fn begins(&self) -> Timestamp {
        self.window().after
    }

    /// What there is after a time.
    pub fn after(&self, time: Timestamp) -> RecentPart {
        let window = self.window();
        if time < window.after {
            return RecentPart::BeginsLater(window.after);
        }
        let first = window.batches.partition_point(|batch| batch.up_to <= time);
        RecentPart::Batches(window.batches.range(first..).cloned().collect())
    }

    /// No method leaves it inconsistent where it can panic, so a poisoned lock is ignored.
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for RecentChanges {
    fn default() -> RecentChanges {
        let (after, up_to) = (Timestamp::ZERO, Timestamp::ZERO);
        let (batches, bytes, bytes_max) = (VecDeque::new(), 0, RECENT_BYTES_MAX);
        let window = Window { is_followed: false, after, up_to, batches, bytes, bytes_max };
        RecentChanges { window: Mutex::new(window) }
    }
}

impl RecentBatch {
    fn new((after, up_to): (Timestamp, Timestamp), changes: Vec<RecentChange>) -> Arc<RecentBatch> {
        let bytes = RECENT_OVERHEAD_BYTES + changes.iter().map(RecentChange::bytes).sum::<usize>();
        Arc::new(RecentBatch { after, up_to, changes, bytes })
    }
}

impl Window {
    fn begin_anew(&mut self, at: Timestamp) {
        (self.after, self.up_to, self.bytes) = (at, at, 0);
        self.batches.clear();
    }

    fn extend(&mut self, batch: Arc<RecentBatch>) {
        self.up_to = batch.up_to;
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
        // The newest batch stays, however long it is: otherwise one long write had all watches read
        // it from the store, also those of other keys.
        while self.bytes > self.bytes_max
            && self.batches.len() > 1
            && let Some(first) = self.batches.pop_front()
        {
            (self.after, self.bytes) = (first.up_to, self.bytes - first.bytes);
        }
    }
}

/// The changes of a batch after `from`, in their order; `None` if some of them were deleted again
/// in the batch.
fn batch_changes(
    from: Timestamp,
    batch: &WriteBatch,
    ranges: &[RangeRemoval],
) -> Option<Vec<RecentChange>> {
    if Horizon::noted_in(batch) > Some(from) {
        return None;
    }
    let mut changes = Vec::new();
    let mut removed = ranges.iter().filter(|removal| removal.at > from).peekable();
    for (row, value) in batch.range(&keys::changes(from, Timestamp(i64::MAX))) {
        batch.step();
        let (at, key) = keys::decode_change(row).ok()?;
        while let Some(removal) = removed.next_if(|removal| removal.at < at) {
            changes.push(RecentChange::of_range(removal));
        }
        let stored = value.and_then(|_| batch.get(&keys::version(key, at)).flatten())?;
        let written = match StoredVersion::decode(stored, at).ok()? {
            StoredVersion::Tombstone { .. } => None,
            StoredVersion::Value { facts, value } => {
                let (value, facts) = (stored.slice_ref(value), Some(facts));
                Some(Version { timestamp: at, value, facts })
            }
        };
        let key = row.slice_ref(key);
        changes.push(RecentChange::Key(KeyChange { at, key, written, previous: None }));
    }
    changes.extend(removed.map(RecentChange::of_range));
    Some(changes)
}

impl RecentChange {
    fn of_range(removal: &RangeRemoval) -> RecentChange {
        let range = KeyInterval { from: removal.from.clone(), to: removal.to.clone() };
        RecentChange::Range { at: removal.at, range }
    }
}
