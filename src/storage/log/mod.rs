//! The durable Raft log.
//!
//! A directory of segment files (`format.rs` describes their bytes). Batches that are appended
//! together become one *frame*: one write and one sync, and after a crash it is there as a whole or
//! not at all. Segments are zero-filled ahead of the writer, so that most syncs change no file
//! metadata. Entries at or before the log's last index replace the suffix from there on; no written
//! byte is ever overwritten.
//!
//! Invariants:
//!
//! - Everything for which [`DiskLog::append`] has returned `Ok` survives a power loss, except the
//!   commit index, which is a hint and is written with the next frame.
//! - A failed write or sync poisons the log: its outcome is unknown, so nothing is written after it
//!   and it is never retried. The process is to stop; recovery finds out what is durable.
//! - Memory stays small: a sparse index of positions and the runs of terms, but no entries.
//! - A segment's header contains everything that older segments are needed for besides their
//!   entries: the hard state, and the term of the entry before its first one. So whole old segments
//!   can be deleted.
//!
//! The log is shortened from the front by [`DiskLog::compact`], and emptied by [`DiskLog::reset`]
//! when a snapshot replaces it. Both first update the index that readers use, then delete files.
//!
//! What it leaves out: deciding which entries are still needed, reusing old segments, and repairing
//! damage, which is found, named and refused.

pub mod compaction;
mod error;
mod format;
mod index;
mod options;
mod reader;
mod recovery;
mod segment;
mod terms;
mod window;

use std::collections::VecDeque;
#[cfg(any(test, feature = "internals"))]
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

pub use error::LogError;
#[cfg(test)]
pub use format::FORMAT_VERSION;
pub use options::LogOptions;
pub use reader::LogReader;

use crate::model::{HardState, LogBatch, LogEntry, LogIndex, Term};
use crate::storage::files::Directory;
use format::{FrameBuilder, SegmentHeader};
use index::PositionIndex;
use recovery::Recovery;
use segment::{Placed, SegmentWriter, Span};
use terms::TermRuns;

const FIRST_SEGMENT: u64 = 1;
const FIRST_BATCH: u64 = 1;
const FIRST_INDEX: LogIndex = 1;

/// The contents of a log when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredLog {
    /// The newest durable hard state; the default if the log is blank. Its commit index is a lower
    /// bound and never beyond `last_index`.
    pub hard_state: HardState,
    /// The first index and the term of each run of entries of one term, in order, beginning with
    /// `first_index`.
    pub term_runs: Vec<(LogIndex, Term)>,
    /// The first index kept; 1 if the log is blank.
    pub first_index: LogIndex,
    /// The term of the entry before `first_index`; 0 if that is 1.
    pub previous_term: Term,
    /// The last index; `first_index - 1` if there are no entries.
    pub last_index: LogIndex,
}

/// The writer of a log, owned by one thread.
pub struct DiskLog {
    fs: Arc<dyn Directory>,
    options: LogOptions,
    tail: SegmentWriter,
    /// All segments in order; the last is `tail`.
    segments: VecDeque<Span>,
    terms: TermRuns,
    index: Arc<RwLock<PositionIndex>>,
    /// The hard state of the last append.
    hard_state: HardState,
    /// The hard state in the last frame. Differs from `hard_state` in the commit index only.
    hard_state_written: HardState,
    next_batch: u64,
    frame: FrameBuilder,
    poison: Option<String>,
}

impl DiskLog {
    /// Opens the log in the directory `dir`, which is created if it does not exist, and makes sure
    /// that everything it reports is durable.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`], and the variants for damage; then nothing was changed.
    #[cfg(any(test, feature = "internals"))]
    pub fn open(dir: &Path, options: LogOptions) -> Result<(DiskLog, RecoveredLog), LogError> {
        let fs = crate::storage::files::RealDirectory::open(dir)
            .map_err(|error| LogError::io("open", dir, error))?;
        DiskLog::open_on(Arc::new(fs), options)
    }

    /// Opens the log on any file system; see [`open`](DiskLog::open).
    ///
    /// # Errors
    ///
    /// As [`open`](DiskLog::open).
    pub fn open_on(
        fs: Arc<dyn Directory>,
        options: LogOptions,
    ) -> Result<(DiskLog, RecoveredLog), LogError> {
        let found = match recovery::recover(&*fs, &options)? {
            Some(found) => found,
            None => create(&*fs, &options)?,
        };
        let Recovery { hard_state, mut terms, index, next_batch, segments, tail } = found;
        let (first_index, last_index) = (index.first_index, index.last_index);
        terms.compact(first_index);
        let recovered = RecoveredLog {
            hard_state,
            term_runs: terms.within(first_index, last_index),
            first_index,
            previous_term: terms.term_at(first_index.saturating_sub(1)),
            last_index,
        };
        let log = DiskLog {
            fs,
            options,
            tail,
            segments: segments.into(),
            terms,
            index: Arc::new(RwLock::new(index)),
            hard_state,
            hard_state_written: hard_state,
            next_batch,
            frame: FrameBuilder::default(),
            poison: None,
        };
        Ok((log, recovered))
    }

    /// Returns a handle that reads durable entries, for other threads.
    pub fn reader(&self) -> LogReader {
        LogReader { fs: self.fs.clone(), index: self.index.clone() }
    }

    /// Makes the batches durable, in order, as one frame with one sync (or as several, each synced,
    /// if they exceed `group_bytes_max`). If they contain nothing but a new commit index, nothing
    /// is written now.
    ///
    /// # Errors
    ///
    /// [`LogError::NotContiguous`] leaves the log as it was. After any other error, which batches
    /// are durable is unknown, and every later append fails with [`LogError::Poisoned`].
    pub fn append(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        self.check_poison()?;
        let entries = self.fold(batches)?;
        let newest = batches.iter().rev().find_map(|batch| batch.hard_state);
        self.hard_state = newest.unwrap_or(self.hard_state);
        let written = &self.hard_state_written;
        let commit_only = HardState { commit: written.commit, ..self.hard_state } == *written;
        if entries.is_empty() && commit_only {
            return Ok(());
        }
        self.write(&entries).inspect_err(|error| self.poison = Some(error.to_string()))
    }

    /// Deletes the segments that contain no entry at or after `first_index`. The one being written
    /// stays, and so do entries before `first_index` that share a segment with later ones. The
    /// caller guarantees that the deleted entries are committed, and that the store is durable
    /// beyond them.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]; every later call that writes then fails with [`LogError::Poisoned`].
    pub fn compact(&mut self, first_index: LogIndex) -> Result<(), LogError> {
        self.check_poison()?;
        let is_needed_from = |span: &Span| span.first_index <= first_index;
        assert!(
            self.segments.back().map(|span| span.segment) == Some(self.tail.header.segment),
            "segment {} is written, and {:?} are known",
            self.tail.header.segment,
            self.segments
        );
        let oldest = self.segments.iter().rposition(is_needed_from).unwrap_or(0);
        let Some(kept) = self.segments.get(oldest).copied().filter(|_| oldest > 0) else {
            return Ok(());
        };
        self.index_mut().compact(kept.first_index, kept.segment);
        self.terms.compact(kept.first_index);
        let removed: Vec<Span> = self.segments.drain(..oldest).collect();
        // The oldest first, each durably before the next, so that a crash leaves no gap.
        let remove = |span: Span| self.remove_segment(span).and_then(|()| self.sync_dir());
        let result = removed.into_iter().try_for_each(remove);
        result.inspect_err(|error| self.poison = Some(error.to_string()))
    }

    /// The first index of the segment before the one being written, or of the only one. The log
    /// from there on is kept so that a server that is slightly behind needs no snapshot.
    pub fn recent_first_index(&self) -> LogIndex {
        let before_tail = self.segments.len().saturating_sub(2);
        self.segments.get(before_tail).map_or(FIRST_INDEX, |span| span.first_index)
    }

    /// The first index that the log would have at its greatest length, which it may reach for
    /// servers that are being sent a snapshot.
    pub fn longest_first_index(&self) -> LogIndex {
        let segments_max = (self.options.held_bytes_max / self.options.segment_bytes.max(1)).max(2);
        let oldest = self.segments.len().saturating_sub(segments_max as usize);
        self.segments.get(oldest).map_or(FIRST_INDEX, |span| span.first_index)
    }

    /// Empties the log: it then starts after entry `index`, whose term is `term`, with this hard
    /// state. After a crash it is as before or as after this, never in between.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]; every later call that writes then fails with [`LogError::Poisoned`].
    pub fn reset(
        &mut self,
        index: LogIndex,
        term: Term,
        hard_state: HardState,
    ) -> Result<(), LogError> {
        self.check_poison()?;
        self.begin_new_log(index.saturating_add(1), term, hard_state)
            .inspect_err(|error| self.poison = Some(error.to_string()))
    }

    fn begin_new_log(
        &mut self,
        first_index: LogIndex,
        previous_term: Term,
        hard_state: HardState,
    ) -> Result<(), LogError> {
        let header = SegmentHeader {
            segment: self.tail.header.segment + 1,
            begins_new_log: true,
            first_index,
            previous_term,
            first_batch: self.next_batch,
            marker: 0,
            hard_state,
        };
        // The creation of this segment alone makes the change: recovery ignores the segments before
        // it.
        self.tail = SegmentWriter::create(&*self.fs, &self.options, header)?;
        (self.hard_state, self.hard_state_written) = (hard_state, hard_state);
        self.terms = TermRuns::new(first_index, previous_term);
        *self.index_mut() = PositionIndex::new(first_index);
        let replaced = std::mem::take(&mut self.segments);
        self.segments.push_back(Span::of(&self.tail.header));
        replaced.into_iter().try_for_each(|span| self.remove_segment(span))?;
        self.sync_dir()
    }

    fn remove_segment(&self, span: Span) -> Result<(), LogError> {
        segment::remove(&*self.fs, span.segment)
    }

    fn sync_dir(&self) -> Result<(), LogError> {
        if !self.options.sync {
            return Ok(());
        }
        self.fs.sync().map_err(|error| LogError::io("sync", &self.fs.path(""), error))
    }

    fn check_poison(&self) -> Result<(), LogError> {
        match &self.poison {
            Some(reason) => Err(LogError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Combines the batches' entries into one contiguous run, in which later batches replace
    /// entries of earlier ones.
    fn fold<'a>(&self, batches: &'a [LogBatch]) -> Result<Vec<&'a LogEntry>, LogError> {
        let (first, last) = self.reader_bounds();
        let mut run: Vec<&LogEntry> = Vec::new();
        let mut next = last + 1;
        for batch in batches {
            for (position, entry) in batch.entries.iter().enumerate() {
                // Only the first entry of a batch may replace a suffix.
                let lowest = if position == 0 { first } else { next };
                if !(lowest..=next).contains(&entry.index) {
                    return Err(LogError::NotContiguous {
                        found: entry.index,
                        first: lowest,
                        next,
                    });
                }
                let start = run.first().map_or(entry.index, |entry| entry.index);
                run.truncate(entry.index.saturating_sub(start) as usize);
                run.push(entry);
                next = entry.index + 1;
            }
        }
        Ok(run)
    }

    fn write(&mut self, entries: &[&LogEntry]) -> Result<(), LogError> {
        let mut left = entries;
        loop {
            let unwritten = left;
            self.frame.clear();
            if self.hard_state != self.hard_state_written {
                self.frame.put_hard_state(&self.hard_state);
            }
            while let Some((entry, rest)) = left.split_first() {
                self.frame.put_entry(entry);
                left = rest;
                if self.frame.payload_bytes() >= self.options.group_bytes_max {
                    break;
                }
            }
            self.write_frame()?;
            for entry in &unwritten[..unwritten.len() - left.len()] {
                self.terms.push(entry.index, entry.term);
            }
            if left.is_empty() {
                return Ok(());
            }
        }
    }

    fn write_frame(&mut self) -> Result<(), LogError> {
        if self.tail.is_full_for(&self.options, self.frame.payload_bytes()) {
            let last_index = self.reader_bounds().1;
            let header = SegmentHeader {
                segment: self.tail.header.segment + 1,
                begins_new_log: false,
                first_index: last_index + 1,
                previous_term: self.terms.term_at(last_index),
                first_batch: self.next_batch,
                marker: 0,
                hard_state: self.hard_state_written,
            };
            self.tail = SegmentWriter::create(&*self.fs, &self.options, header)?;
            self.segments.push_back(Span::of(&self.tail.header));
        }
        let placed = self.tail.write_frame(&self.options, &mut self.frame, self.next_batch)?;
        self.next_batch += 1;
        self.hard_state_written = self.hard_state;
        // Readers see the entries from now on, because they are durable.
        let segment = self.tail.header.segment;
        let Placed { offset, payload_end } = placed;
        self.index_mut().add_frame(segment, offset, payload_end, &self.frame.entries);
        Ok(())
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, PositionIndex> {
        // No method leaves the index inconsistent where it can panic, so a poisoned lock is
        // ignored.
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader_bounds(&self) -> (LogIndex, LogIndex) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        (index.first_index, index.last_index)
    }
}

/// Creates a blank log.
fn create(fs: &dyn Directory, options: &LogOptions) -> Result<Recovery, LogError> {
    let header = SegmentHeader {
        segment: FIRST_SEGMENT,
        begins_new_log: true,
        first_index: FIRST_INDEX,
        previous_term: 0,
        first_batch: FIRST_BATCH,
        marker: 0,
        hard_state: HardState::default(),
    };
    let tail = SegmentWriter::create(fs, options, header)?;
    Ok(Recovery {
        hard_state: header.hard_state,
        terms: TermRuns::new(FIRST_INDEX, 0),
        index: PositionIndex::new(FIRST_INDEX),
        next_batch: FIRST_BATCH,
        segments: vec![Span::of(&header)],
        tail,
    })
}

#[cfg(test)]
mod tests;
