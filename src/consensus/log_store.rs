//! The log as raft-rs sees it: indices and terms of all entries, and the data of the recent ones.
//!
//! Invariants:
//! - `term_runs` describes every index from `first_index` to `last_index`, `previous_term` the one
//!   before; terms never decrease along the log;
//! - `tail` holds exactly the indices `tail_first..=last_index`, and every entry not yet applied;
//! - nothing below the applied index is ever replaced (consensus guarantees it);
//! - `timestamps` describes the entries of `tail`, one by one.
//!
//! Entries before the tail are on disk. The library needs them only for a follower that is behind.
//! It is then answered "temporarily unavailable", a fetch is noted, and it asks again when the
//! entries have been read. This part does no IO itself.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState as RaftHardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::InitialLog;
use super::convert::entry_to_raft;
use crate::limits::NodeLimits;
use crate::model::{AppliedPoint, Command, HardState, LogEntry, LogIndex, NodeId, Term, Timestamp};

/// Entries that the library needs from disk: `low` to `high`, exclusive, and its context for the
/// answer.
pub(super) struct WantedFetch {
    pub low: LogIndex,
    pub high: LogIndex,
    pub context: GetEntriesContext,
}

/// The log of one server, in memory.
pub(super) struct LogStore {
    hard_state: HardState,
    voters: Vec<u64>,
    first_index: LogIndex,
    previous_term: Term,
    applied: LogIndex,
    term_runs: Vec<(LogIndex, Term)>,
    last_index: LogIndex,
    tail_first: LogIndex,
    tail: VecDeque<Entry>,
    /// For each entry of the tail the greatest timestamp in the log up to it: an entry without one
    /// has that of the entry before.
    timestamps: VecDeque<Timestamp>,
    /// The greatest timestamp before the tail.
    timestamp_before_tail: Timestamp,
    tail_bytes: usize,
    /// The part of `tail_bytes` that is not applied.
    unapplied_bytes: usize,
    /// The part of `unapplied_bytes` that is committed, as far as `committed`.
    committed_bytes: usize,
    committed: LogIndex,
    limits: NodeLimits,
    /// Ranges read from disk, oldest first, until consensus has asked for them again.
    fetched: VecDeque<Vec<Entry>>,
    wanted: RefCell<Vec<WantedFetch>>,
    /// The first indices of the fetches under way, so that the same range is not fetched twice.
    fetching: RefCell<Vec<LogIndex>>,
}

/// The memory that an entry takes, approximately: its data and 64 bytes of overhead.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + 64
}

/// The greatest timestamp up to `entry`, if `newest` is that of those before it.
fn newest_with(newest: Timestamp, entry: &Entry) -> Timestamp {
    newest.max(Command::peek_timestamp(&entry.data).unwrap_or(newest))
}

impl LogStore {
    /// Builds the log from what recovery found; `log.entries` are all that follow `applied`.
    pub fn new(
        nodes: &[NodeId],
        hard_state: HardState,
        log: InitialLog,
        applied: AppliedPoint,
        limits: NodeLimits,
    ) -> LogStore {
        let AppliedPoint { index: applied, timestamp, .. } = applied;
        let tail: VecDeque<Entry> = log.entries.into_iter().map(entry_to_raft).collect();
        let tail_bytes = tail.iter().map(entry_bytes).sum();
        let newest = tail.iter().scan(timestamp, |newest, entry| {
            *newest = newest_with(*newest, entry);
            Some(*newest)
        });
        LogStore {
            timestamps: newest.collect(),
            timestamp_before_tail: timestamp,
            hard_state,
            voters: nodes.iter().map(|n| n.0).collect(),
            first_index: log.first_index,
            previous_term: log.previous_term,
            applied,
            term_runs: log.term_runs,
            last_index: log.last_index,
            tail_first: log.last_index + 1 - tail.len() as u64,
            tail_bytes,
            unapplied_bytes: tail_bytes,
            committed_bytes: 0,
            committed: applied,
            limits,
            tail,
            fetched: VecDeque::new(),
            wanted: RefCell::default(),
            fetching: RefCell::default(),
        }
    }

    /// Appends entries, replacing the suffix that they overlap.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.applied,
            "an entry at index {} replaces one of those up to {}, which are applied",
            first.index,
            self.applied
        );
        if first.index <= self.last_index {
            self.truncate(first.index);
        }
        for entry in entries {
            assert_eq!(entry.index, self.last_index + 1, "the log has no gaps");
            if self.term_runs.last().is_none_or(|(_, term)| *term != entry.term) {
                self.term_runs.push((entry.index, entry.term));
            }
            self.last_index = entry.index;
            self.tail_bytes += entry_bytes(entry);
            self.unapplied_bytes += entry_bytes(entry);
            let newest = self.timestamps.back().copied().unwrap_or(self.timestamp_before_tail);
            self.timestamps.push_back(newest_with(newest, entry));
            self.tail.push_back(entry.clone());
        }
    }

    fn truncate(&mut self, from: LogIndex) {
        while self.term_runs.last().is_some_and(|(first, _)| *first >= from) {
            self.term_runs.pop();
        }
        while self.last_index >= from && self.last_index >= self.tail_first {
            if let Some(entry) = self.tail.pop_back() {
                self.timestamps.pop_back();
                self.tail_bytes -= entry_bytes(&entry);
                // Applied entries are never replaced, so this one counts as unapplied.
                self.unapplied_bytes -= entry_bytes(&entry);
                if self.last_index <= self.committed {
                    self.committed_bytes -= entry_bytes(&entry);
                }
            }
            self.last_index -= 1;
        }
        self.committed = self.committed.min(self.last_index);
        self.fetched.clear();
        self.check_sums();
    }

    /// Each sum counts a part of the one before it. A difference that went below zero shows here,
    /// too.
    fn check_sums(&self) {
        assert!(
            self.committed_bytes <= self.unapplied_bytes && self.unapplied_bytes <= self.tail_bytes,
            "of {} bytes {} are not applied and {} of those are committed",
            self.tail_bytes,
            self.unapplied_bytes,
            self.committed_bytes
        );
    }

    /// The state machine has applied up to here. The oldest applied entries leave memory while the
    /// tail exceeds [`NodeLimits::log_cache_bytes_max`].
    pub fn applied(&mut self, applied: LogIndex) {
        assert!(
            applied >= self.applied && applied <= self.last_index,
            "applied {applied}, after {} and of a log that ends at {}",
            self.applied,
            self.last_index
        );
        let newly_applied = (self.applied + 1).max(self.tail_first)..applied + 1;
        for index in newly_applied {
            let bytes = self.bytes_at(index);
            self.unapplied_bytes -= bytes;
            if index <= self.committed {
                self.committed_bytes -= bytes;
            }
        }
        self.applied = applied;
        self.committed = self.committed.max(applied);
        self.check_sums();
        while self.tail_bytes > self.limits.log_cache_bytes_max && self.tail_first <= applied {
            self.tail_bytes -= self.bytes_at(self.tail_first);
            self.tail.pop_front();
            self.drop_first_timestamp();
            self.tail_first += 1;
        }
    }

    /// The first entry has left the tail.
    fn drop_first_timestamp(&mut self) {
        self.timestamp_before_tail =
            self.timestamps.pop_front().unwrap_or(self.timestamp_before_tail);
    }

    /// The greatest timestamp in the log up to `index`, which is not below the applied index.
    pub fn timestamp_up_to(&self, index: LogIndex) -> Timestamp {
        assert!(
            (self.applied..=self.last_index).contains(&index),
            "index {index} is not between {} applied and the log's end at {}",
            self.applied,
            self.last_index
        );
        let place = index.checked_sub(self.tail_first);
        let in_tail = place.and_then(|place| self.timestamps.get(place as usize));
        in_tail.copied().unwrap_or(self.timestamp_before_tail)
    }

    /// The bytes of an entry that is in memory, as every entry is that is not applied.
    fn bytes_at(&self, index: LogIndex) -> usize {
        let place = index.checked_sub(self.tail_first);
        let Some(entry) = place.and_then(|place| self.tail.get(place as usize)) else {
            panic!(
                "entry {index} is not in memory, which has {} to {}",
                self.tail_first, self.last_index
            )
        };
        entry_bytes(entry)
    }

    /// The log before `first_index` has been deleted. Only applied entries may be: a greater index
    /// is lowered.
    pub fn compact(&mut self, first_index: LogIndex) {
        let first_index = first_index.min(self.applied + 1);
        if first_index <= self.first_index {
            return;
        }
        self.previous_term = self.term_at(first_index - 1).unwrap_or(self.previous_term);
        self.first_index = first_index;
        let keep = self.term_runs.partition_point(|(first, _)| *first <= first_index);
        self.term_runs.drain(..keep.saturating_sub(1));
        if let Some((first, _)) = self.term_runs.first_mut() {
            *first = first_index.max(*first);
        }
        if self.last_index < first_index {
            self.term_runs.clear();
        }
        while self.tail_first < first_index
            && let Some(entry) = self.tail.pop_front()
        {
            self.tail_bytes -= entry_bytes(&entry);
            self.drop_first_timestamp();
            self.tail_first += 1;
        }
        self.tail_first = self.tail_first.max(first_index);
    }

    /// Replaces the log by a snapshot that reaches to `index` and to `timestamp`: it begins anew
    /// after it.
    pub fn restore(&mut self, index: LogIndex, term: Term, timestamp: Timestamp) {
        assert!(index >= self.applied, "a snapshot of {index} replaces {} applied", self.applied);
        self.first_index = index + 1;
        self.previous_term = term;
        self.term_runs.clear();
        self.last_index = index;
        self.tail_first = index + 1;
        self.tail.clear();
        self.timestamps.clear();
        self.timestamp_before_tail = timestamp;
        self.tail_bytes = 0;
        self.unapplied_bytes = 0;
        (self.committed, self.committed_bytes) = (index, 0);
        self.fetched.clear();
    }

    /// Finds the entry with this timestamp among those in memory that are committed up to `commit`
    /// and not applied. `timestamp_of` decodes an entry's timestamp, `None` if it has none. Binary
    /// search: timestamps rise along the log.
    pub fn find_unapplied(
        &self,
        commit: LogIndex,
        timestamp: Timestamp,
        timestamp_of: impl Fn(&[u8]) -> Option<Timestamp>,
    ) -> Option<(LogIndex, &Bytes)> {
        let first = (self.applied + 1).max(self.tail_first);
        let place = |index: LogIndex| (index - self.tail_first) as usize;
        let (mut low, mut high) = (first, commit.min(self.last_index) + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            // Only the first entries of terms have no timestamp: they are few, and seldom next to
            // each other.
            let found = (low..=middle).rev().find_map(|index| {
                let data = &self.tail.get(place(index))?.data;
                Some((index, data, timestamp_of(data)?))
            });
            match found {
                Some((index, data, found)) if found == timestamp => return Some((index, data)),
                Some((index, _, found)) if found > timestamp => high = index,
                _ => low = middle + 1,
            }
        }
        None
    }

    /// Bytes of the entries in memory, approximately.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Bytes held in memory of entries that are not applied.
    pub fn unapplied_bytes(&self) -> usize {
        self.unapplied_bytes
    }

    /// Bytes of the entries in memory that are committed, up to `commit`, and not applied. The
    /// library may know more to be committed than it has appended here, and may be about to replace
    /// a suffix.
    pub fn committed_bytes(&mut self, commit: LogIndex) -> usize {
        let commit = commit.min(self.last_index);
        let newly_committed = (self.committed + 1).max(self.tail_first)..=commit;
        for index in newly_committed {
            self.committed_bytes += self.bytes_at(index);
        }
        self.committed = self.committed.max(commit);
        self.committed_bytes
    }

    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// The term of an entry of the log, or of the one just before its first; `None` elsewhere.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index + 1 == self.first_index {
            return Some(self.previous_term);
        }
        if !(self.first_index..=self.last_index).contains(&index) {
            return None;
        }
        let run = self.term_runs.partition_point(|(first, _)| *first <= index);
        self.term_runs.get(run.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// Takes the fetches noted since the last call.
    pub fn take_wanted_fetches(&mut self) -> Vec<WantedFetch> {
        self.wanted.take()
    }

    /// Stores entries that a fetch from `low` on has read from disk, until the library asks for
    /// them. Without entries the fetch has failed, and may be noted again.
    pub fn fetched(&mut self, low: LogIndex, entries: Vec<LogEntry>) {
        self.fetching.get_mut().retain(|l| *l != low);
        // A suffix of the log may have been replaced while the disk was read.
        let fits = entries.first().is_some_and(|e| e.index == low)
            && entries.iter().zip(low..).all(|(e, index)| e.index == index)
            && entries.iter().all(|e| self.term_at(e.index) == Some(e.term));
        if fits {
            if self.fetched.len() == self.limits.fetched_ranges_max {
                self.fetched.pop_front();
            }
            self.fetched.push_back(entries.into_iter().map(entry_to_raft).collect());
        }
    }

    /// The first entries of at most `bytes_max` bytes in all, but at least one.
    fn limited<'a>(entries: impl Iterator<Item = &'a Entry>, bytes_max: Option<u64>) -> Vec<Entry> {
        let mut bytes = 0;
        let mut taken = Vec::new();
        for entry in entries {
            bytes += entry_bytes(entry) as u64;
            if !taken.is_empty() && bytes_max.is_some_and(|max| bytes > max) {
                break;
            }
            taken.push(entry.clone());
        }
        taken
    }
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = RaftHardState::default();
        hard_state.term = self.hard_state.term;
        hard_state.vote = NodeId::number_of(self.hard_state.vote);
        hard_state.commit = self.hard_state.commit;
        let conf_state = ConfState::from((self.voters.clone(), vec![]));
        Ok(RaftState { hard_state, conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let bytes_max = max_size.into();
        if low < self.first_index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if low >= self.tail_first {
            let from = (low - self.tail_first) as usize;
            let to = (high - self.tail_first) as usize;
            return Ok(Self::limited(self.tail.range(from..to), bytes_max));
        }
        let holds_low = |range: &&Vec<Entry>| {
            matches!((range.first(), range.last()),
                (Some(first), Some(last)) if first.index <= low && low <= last.index)
        };
        if let Some(range) = self.fetched.iter().rev().find(holds_low) {
            let wanted = range.iter().filter(|e| (low..high).contains(&e.index));
            return Ok(Self::limited(wanted, bytes_max));
        }
        if context.can_async() && !self.fetching.borrow().contains(&low) {
            self.fetching.borrow_mut().push(low);
            let high = high.min(self.tail_first);
            self.wanted.borrow_mut().push(WantedFetch { low, high, context });
        }
        // Only contexts that can wait see this answer: the others ask for entries that are not
        // applied, which are in the tail by invariant.
        Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let missing = if index < self.first_index {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        };
        self.term_at(index).ok_or(raft::Error::Store(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first_index)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    /// Names an index that the state machine has applied. The data is streamed outside of
    /// consensus, and is of that index or a later one.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let term = self.term_at(self.applied).filter(|_| self.applied >= request_index.max(1));
        let Some(term) = term else {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        Ok(snapshot_at(&self.voters, self.applied, term))
    }
}

/// The library's metadata of a snapshot, without its data.
pub(super) fn snapshot_at(voters: &[u64], index: LogIndex, term: Term) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = index;
    metadata.term = term;
    metadata.set_conf_state(ConfState::from((voters.to_vec(), vec![])));
    snapshot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    fn entry(index: LogIndex, term: Term, bytes: usize) -> Entry {
        entry_to_raft(LogEntry { term, index, data: Bytes::from(vec![7; bytes]) })
    }

    fn store() -> LogStore {
        let log = InitialLog { first_index: 1, ..InitialLog::default() };
        let applied = AppliedPoint::default();
        LogStore::new(&[NodeId(1)], HardState::default(), log, applied, NodeLimits::default())
    }

    #[test]
    fn a_conflicting_suffix_is_replaced() {
        let mut log = store();
        log.append(&[entry(1, 1, 0), entry(2, 1, 0), entry(3, 2, 0)]);
        log.append(&[entry(2, 3, 0)]);
        assert_eq!(log.last_index().unwrap(), 2);
        assert_eq!(log.term_at(1), Some(1));
        assert_eq!(log.term_at(2), Some(3));
        assert_eq!(log.term_at(3), None);
        assert_eq!(log.tail_bytes(), 2 * 64);
    }

    #[test]
    fn an_entry_that_is_not_applied_is_found_by_its_timestamp() {
        let of_timestamp = |index: LogIndex, timestamp: u8| {
            let data = Bytes::from(vec![timestamp; usize::from(timestamp > 0)]);
            entry_to_raft(LogEntry { term: 1, index, data })
        };
        let timestamp_of = |data: &[u8]| data.first().map(|first| Timestamp(i64::from(*first)));
        // Of all the ways in which entries without a timestamp may lie among seven others.
        for without in 0..1u8 << 7 {
            let has = |index: LogIndex| without & (1 << (index - 1)) == 0;
            let mut log = store();
            let entries = (1..=7).map(|i| of_timestamp(i, if has(i) { 10 * i as u8 } else { 0 }));
            log.append(&entries.collect::<Vec<_>>());
            log.applied(2);
            for wanted in 0..=80 {
                let found = log.find_unapplied(6, Timestamp(wanted), timestamp_of);
                let index = wanted as LogIndex / 10;
                let is_there = wanted % 10 == 0 && (3..=6).contains(&index) && has(index);
                assert_eq!(
                    found.map(|(at, _)| at),
                    is_there.then_some(index),
                    "{without} {wanted}"
                );
            }
        }
    }

    #[test]
    fn only_applied_bodies_leave_the_tail_and_come_back_through_a_fetch() {
        let mut log = store();
        let big = limits::LOG_CACHE_BYTES_MAX / 2;
        log.append(&[entry(1, 1, big), entry(2, 1, big), entry(3, 1, big)]);
        log.applied(0);
        assert_eq!(log.tail_first, 1, "nothing is applied, nothing may go");
        log.applied(3);
        assert!(log.tail_bytes() <= limits::LOG_CACHE_BYTES_MAX);
        assert_eq!(log.tail_first, 3);

        let ask = |log: &LogStore| log.entries(1, 4, None, GetEntriesContext::empty(true));
        assert!(ask(&log).is_err());
        assert!(ask(&log).is_err());
        let wanted = log.take_wanted_fetches();
        assert_eq!(wanted.len(), 1, "one question is asked once");
        assert_eq!((wanted[0].low, wanted[0].high), (1, 3));
        let body = LogEntry { term: 1, index: 1, data: Bytes::from_static(b"x") };
        log.fetched(1, vec![body]);
        assert_eq!(ask(&log).unwrap().len(), 1);
    }

    #[test]
    fn a_fetch_of_a_replaced_suffix_is_not_believed() {
        let mut log = store();
        let big = limits::LOG_CACHE_BYTES_MAX;
        log.append(&[entry(1, 1, big), entry(2, 1, big)]);
        log.applied(1);
        log.fetched(1, vec![LogEntry { term: 9, index: 1, data: Bytes::new() }]);
        assert!(log.entries(1, 2, None, GetEntriesContext::empty(true)).is_err());
    }

    #[test]
    fn compaction_and_restoring_keep_the_term_before_the_first_entry() {
        let mut log = store();
        log.append(&[entry(1, 1, 0), entry(2, 1, 0), entry(3, 4, 0), entry(4, 4, 0)]);
        log.compact(3);
        assert_eq!(log.first_index().unwrap(), 1, "nothing is applied, nothing may go");
        log.applied(3);
        log.compact(4);
        assert_eq!(log.first_index().unwrap(), 4);
        assert_eq!([2, 3, 4, 5].map(|at| log.term_at(at)), [None, Some(4), Some(4), None]);
        assert!(matches!(
            log.entries(3, 5, None, GetEntriesContext::empty(true)),
            Err(raft::Error::Store(StorageError::Compacted))
        ));
        log.restore(9, 6, Timestamp(50));
        assert_eq!(log.timestamp_up_to(9), Timestamp(50));
        assert_eq!(log.last_index().unwrap(), 9);
        assert_eq!([8, 9, 10].map(|at| log.term_at(at)), [None, Some(6), None]);
        log.append(&[entry(10, 7, 0)]);
        assert_eq!([9, 10].map(|at| log.term_at(at)), [Some(6), Some(7)]);
        assert_eq!(log.tail_bytes(), 64);
    }

    #[test]
    fn a_snapshot_is_offered_only_of_what_is_applied() {
        let mut log = store();
        log.append(&[entry(1, 1, 0), entry(2, 2, 0)]);
        assert!(log.snapshot(0, 2).is_err());
        log.applied(2);
        let offered = log.snapshot(1, 2).unwrap();
        let metadata = offered.get_metadata();
        assert_eq!((metadata.index, metadata.term), (2, 2));
        assert!(log.snapshot(3, 2).is_err(), "more is wanted than there is");
    }
}
