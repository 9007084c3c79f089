//! A server's log on a disk that loses what was not synced.
//!
//! Batches wait in a queue; one sync makes all that were queued when it began durable. A crash
//! keeps some prefix of the rest, the last batch of it perhaps torn: its hard state and some of its
//! entries. A snapshot takes the place of log and state in one step: the real server stages it
//! beside the store and finishes what a crash interrupted.

use std::collections::{BTreeMap, VecDeque};

use acervo::model::{
    AppliedPoint, Command, HardState, LeaseState, LogBatch, LogEntry, LogIndex, MachineSummary,
    Recovered, SnapshotId, Term, Timestamp,
};

use crate::machine::Saved;
use crate::rng::Rng;

/// What waits to be made durable.
enum Write {
    Batch(LogBatch),
    Snapshot { number: u64, snapshot: SnapshotId, hard_state: HardState, machine: Saved },
}

#[derive(Default)]
pub struct Disk {
    hard_state: HardState,
    /// Durable entries, by index, without gaps.
    log: BTreeMap<LogIndex, LogEntry>,
    /// The log begins after this index, an entry of this term; all up to it is in the state.
    base: (LogIndex, Term),
    /// The state that took the place of the log's beginning, if a snapshot did.
    snapshot: Option<Saved>,
    queue: VecDeque<Write>,
    /// How many batches at the front of the queue the running sync covers; 0 when none runs.
    syncing: usize,
    /// What the log held each time the data directory was lost: it was durable once.
    lost: Vec<BTreeMap<LogIndex, LogEntry>>,
    /// Up to here the state held everything, when a data directory was lost.
    lost_base: LogIndex,
    /// What was here was lost, and the server knows.
    data_lost: bool,
    /// Entries that were compacted away, or replaced by a snapshot.
    covered: BTreeMap<LogIndex, LogEntry>,
}

/// What a sync made durable: the last batch, and a log begun anew (its number and the index it
/// begins after).
type Synced = (Option<u64>, Option<(u64, LogIndex)>);

impl Disk {
    /// Takes a batch to make durable.
    pub fn write(&mut self, batch: LogBatch) {
        self.queue.push_back(Write::Batch(batch));
    }

    /// Takes a snapshot to begin the log anew after.
    pub fn write_snapshot(
        &mut self,
        number: u64,
        snapshot: SnapshotId,
        hard_state: HardState,
        machine: Saved,
    ) {
        self.queue.push_back(Write::Snapshot { number, snapshot, hard_state, machine });
    }

    /// Deletes the log before `first_index`, all of which is in a durable checkpoint.
    pub fn compact(&mut self, first_index: LogIndex) -> bool {
        let Some(before) = self.entry(first_index.saturating_sub(1)) else { return false };
        self.base = (before.index, before.term);
        let rest = self.log.split_off(&first_index);
        self.covered.append(&mut std::mem::replace(&mut self.log, rest));
        true
    }

    /// Begins a sync of everything queued, if there is anything and none is running.
    pub fn start_sync(&mut self) -> bool {
        if self.syncing > 0 || self.queue.is_empty() {
            return false;
        }
        self.syncing = self.queue.len();
        true
    }

    /// Ends the running sync: the number of the newest durable batch, and if the log was begun
    /// anew, the number that stands for that and the index it begins after.
    pub fn finish_sync(&mut self) -> Result<Synced, String> {
        let mut newest = None;
        let mut installed = None;
        for _ in 0..std::mem::take(&mut self.syncing) {
            if let Some(write) = self.queue.pop_front() {
                newest = Some(match &write {
                    Write::Batch(batch) => batch.number,
                    Write::Snapshot { number, snapshot, .. } => {
                        installed = Some((*number, snapshot.index));
                        *number
                    }
                });
                self.store(write, usize::MAX)?;
            }
        }
        Ok((newest, installed))
    }

    /// Power is gone: of what was not synced a random prefix survives.
    pub fn crash(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.syncing = 0;
        let kept = rng.index(self.queue.len() + 1);
        let queue = std::mem::take(&mut self.queue);
        for (position, write) in queue.into_iter().enumerate() {
            if position < kept {
                self.store(write, usize::MAX)?;
                continue;
            }
            if let Write::Batch(batch) = write {
                let torn = rng.index(batch.entries.len() + 1);
                // The hard state is in one frame with the first entries, which end what they
                // replace: its commit index never stands beside entries that it does not mean.
                if rng.chance(500) && (torn > 0 || batch.entries.is_empty()) {
                    self.store(Write::Batch(batch), torn)?;
                }
            }
            break;
        }
        Ok(())
    }

    /// A clean exit: everything queued is synced first.
    pub fn close(&mut self) -> Result<(), String> {
        self.syncing = self.queue.len();
        self.finish_sync().map(|_| ())
    }

    /// The data directory is gone.
    pub fn wipe(&mut self) {
        let mut lost = std::mem::take(&mut self.lost);
        self.log.append(&mut self.covered);
        lost.push(std::mem::take(&mut self.log));
        let lost_base = self.lost_base.max(self.base.0);
        *self = Disk { lost, lost_base, ..Disk::default() };
    }

    /// What is in the data directory is lost and set aside: the directory itself tells that there
    /// was something.
    pub fn lose(&mut self) {
        self.wipe();
        self.data_lost = true;
    }

    fn store(&mut self, write: Write, entries_max: usize) -> Result<(), String> {
        let batch = match write {
            Write::Batch(batch) => batch,
            Write::Snapshot { snapshot, hard_state, machine, .. } => {
                self.covered.append(&mut self.log);
                self.base = (snapshot.index, snapshot.term);
                self.snapshot = Some(machine);
                LogBatch { hard_state: Some(hard_state), ..LogBatch::default() }
            }
        };
        if let Some(hard_state) = batch.hard_state {
            if hard_state.term < self.hard_state.term {
                return Err(format!("term went back to {hard_state:?} from {:?}", self.hard_state));
            }
            self.hard_state = hard_state;
        }
        for entry in batch.entries.into_iter().take(entries_max) {
            if entry.index <= self.base.0 || entry.index > self.last_index() + 1 {
                return Err(format!("entry {} after {}", entry.index, self.last_index()));
            }
            self.log.split_off(&entry.index);
            self.log.insert(entry.index, entry);
        }
        Ok(())
    }

    /// The durable hard state.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// The state of a snapshot that took the place of the log's beginning.
    pub fn snapshot(&self) -> Option<&Saved> {
        self.snapshot.as_ref()
    }

    /// The last durable index; 0 when there is none.
    pub fn last_index(&self) -> LogIndex {
        self.log.last_key_value().map_or(self.base.0, |(index, _)| *index)
    }

    /// The log begins after this index.
    pub fn begins_after(&self) -> LogIndex {
        self.base.0
    }

    /// The durable entry at `index`.
    pub fn entry(&self, index: LogIndex) -> Option<&LogEntry> {
        self.log.get(&index)
    }

    /// The terms of entries at `index` that are durable here, or were until the directory was lost.
    pub fn durable_terms(&self, index: LogIndex) -> impl Iterator<Item = Term> {
        let logs = self.lost.iter().chain([&self.log, &self.covered]);
        logs.filter_map(move |log| Some(log.get(&index)?.term))
    }

    /// Whether the entry, a committed one, is durable here in the log or in the state, or was until
    /// the directory was lost.
    pub fn holds(&self, index: LogIndex, term: Term) -> bool {
        index <= self.base.0.max(self.lost_base)
            || self.durable_terms(index).any(|durable| durable == term)
    }

    /// Where the log, as far as it is durable, holds the command of this timestamp: index and term.
    pub fn find(&self, timestamp: Timestamp) -> Option<(LogIndex, Term)> {
        let mut newest_first = self.log.values().rev();
        let entry = newest_first.find(|e| Command::peek_timestamp(&e.data) == Some(timestamp))?;
        Some((entry.index, entry.term))
    }

    /// Entries from `low` up to before `high`, about `bytes_max` bytes of them, at least one.
    pub fn read(&self, low: LogIndex, high: LogIndex, bytes_max: u64) -> Vec<LogEntry> {
        let mut bytes = 0;
        let mut entries = Vec::new();
        for index in low..high {
            let Some(entry) = self.entry(index) else { break };
            bytes += entry.data.len() as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        entries
    }

    /// The state is lost, with that of a snapshot that took the place of the log's beginning.
    /// Whether the log goes back to the beginning, so that it has everything.
    pub fn lose_state(&mut self) -> bool {
        self.snapshot = None;
        self.base.0 == 0
    }

    /// What a server finds that starts with its log and without a state.
    pub fn recover_without_state(&self) -> Recovered {
        let index = self.hard_state.commit.clamp(self.base.0, self.last_index());
        let applied = AppliedPoint { index, ..AppliedPoint::default() };
        let summary = MachineSummary::default();
        Recovered { store_lost: true, ..self.recover(applied, summary, Vec::new()) }
    }

    /// What a server that starts finds, given the state machine's last checkpoint.
    pub fn recover(
        &self,
        applied: AppliedPoint,
        summary: MachineSummary,
        leases: Vec<LeaseState>,
    ) -> Recovered {
        let mut term_runs: Vec<(LogIndex, Term)> = Vec::new();
        for entry in self.log.values() {
            if term_runs.last().is_none_or(|(_, term)| *term != entry.term) {
                term_runs.push((entry.index, entry.term));
            }
        }
        let mut hard_state = self.hard_state;
        // A torn batch may name a commit index past the entries that survived.
        hard_state.commit = hard_state.commit.min(self.last_index()).max(applied.index);
        let (base_index, previous_term) = self.base;
        Recovered {
            hard_state,
            first_index: base_index + 1,
            previous_term,
            term_runs,
            last_index: self.last_index(),
            entries: self.log.range(applied.index + 1..).map(|(_, entry)| entry.clone()).collect(),
            applied,
            summary,
            leases,
            store_lost: false,
            data_lost: self.data_lost && !hard_state.admitted,
        }
    }
}
