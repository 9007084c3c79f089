//! A server's log on a disk that loses what was not synced.
//!
//! Batches wait in a queue; one sync makes all that were queued when it began durable. A crash keeps
//! some prefix of the rest, the last batch of it perhaps torn: its hard state and some of its
//! entries. The log is never compacted here.

use std::collections::VecDeque;

use acervo::node::core::Recovered;
use acervo::types::{AppliedPoint, HardState, LogBatch, LogEntry, LogIndex, Term};

use crate::rng::Rng;

/// One server's disk.
#[derive(Default)]
pub struct Disk {
    hard_state: HardState,
    /// Durable entries; the first has index 1.
    log: Vec<LogEntry>,
    queue: VecDeque<LogBatch>,
    /// How many batches at the front of the queue the running sync covers; 0 when none runs.
    syncing: usize,
    /// What the log held each time the data directory was lost: it was durable once.
    lost: Vec<Vec<LogEntry>>,
}

impl Disk {
    /// Takes a batch to make durable.
    pub fn write(&mut self, batch: LogBatch) {
        self.queue.push_back(batch);
    }

    /// Begins a sync of everything queued, if there is anything and none is running.
    pub fn start_sync(&mut self) -> bool {
        if self.syncing > 0 || self.queue.is_empty() {
            return false;
        }
        self.syncing = self.queue.len();
        true
    }

    /// Ends the running sync; the number of the newest durable batch.
    pub fn finish_sync(&mut self) -> Result<Option<u64>, String> {
        let mut newest = None;
        for _ in 0..std::mem::take(&mut self.syncing) {
            if let Some(batch) = self.queue.pop_front() {
                newest = Some(batch.number);
                self.store(batch, usize::MAX)?;
            }
        }
        Ok(newest)
    }

    /// Power is gone: of what was not synced a random prefix survives.
    pub fn crash(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.syncing = 0;
        let kept = rng.index(self.queue.len() + 1);
        let queue = std::mem::take(&mut self.queue);
        for (position, batch) in queue.into_iter().enumerate() {
            if position < kept {
                self.store(batch, usize::MAX)?;
            } else {
                let torn = rng.index(batch.entries.len() + 1);
                if rng.chance(500) {
                    self.store(batch, torn)?;
                }
                break;
            }
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
        lost.push(std::mem::take(&mut self.log));
        *self = Disk { lost, ..Disk::default() };
    }

    fn store(&mut self, batch: LogBatch, entries_max: usize) -> Result<(), String> {
        if let Some(hard_state) = batch.hard_state {
            if hard_state.term < self.hard_state.term {
                return Err(format!("term went back to {hard_state:?} from {:?}", self.hard_state));
            }
            self.hard_state = hard_state;
        }
        for entry in batch.entries.into_iter().take(entries_max) {
            if entry.index == 0 || entry.index > self.last_index() + 1 {
                return Err(format!("entry {} after {}", entry.index, self.last_index()));
            }
            self.log.truncate(entry.index as usize - 1);
            self.log.push(entry);
        }
        Ok(())
    }

    /// The durable hard state.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// The last durable index; 0 when there is none.
    pub fn last_index(&self) -> LogIndex {
        self.log.len() as u64
    }

    /// The durable entry at `index`.
    pub fn entry(&self, index: LogIndex) -> Option<&LogEntry> {
        self.log.get((index as usize).checked_sub(1)?)
    }

    /// The terms of entries at `index` that are durable here, or were until the directory was lost.
    pub fn durable_terms(&self, index: LogIndex) -> impl Iterator<Item = Term> {
        let logs = self.lost.iter().chain([&self.log]);
        logs.filter_map(move |log| Some(log.get((index as usize).checked_sub(1)?)?.term))
    }

    /// Whether the entry is durable here, or was until the directory was lost.
    pub fn holds(&self, index: LogIndex, term: Term) -> bool {
        self.durable_terms(index).any(|durable| durable == term)
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

    /// What a server that starts finds, given the state machine's last checkpoint.
    pub fn recover(&self, applied: AppliedPoint) -> Recovered {
        let mut term_runs: Vec<(LogIndex, Term)> = Vec::new();
        for entry in &self.log {
            if term_runs.last().is_none_or(|(_, term)| *term != entry.term) {
                term_runs.push((entry.index, entry.term));
            }
        }
        let mut hard_state = self.hard_state;
        // A torn batch may name a commit index past the entries that survived.
        hard_state.commit = hard_state.commit.min(self.last_index()).max(applied.index);
        Recovered {
            hard_state,
            term_runs,
            last_index: self.last_index(),
            entries: self.log[applied.index as usize..].to_vec(),
            applied,
            ..Recovered::default()
        }
    }
}
