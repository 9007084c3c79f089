//! The durable Raft log.
//!
//! A directory of segment files (`format.rs` has their bytes). What is appended together becomes
//! one *frame*: one write and one sync, and after a crash it is there whole or not at all. Segments
//! are zero-filled ahead of the writer, so that most syncs change no file metadata. Entries at or
//! before the log's last index replace the suffix from there on; nothing written is ever
//! overwritten.
//!
//! Invariants:
//!
//! - What [`DiskLog::append`] has returned `Ok` for survives a power loss, except the commit index,
//!   which is a hint and goes out with the next frame.
//! - A write or sync that failed poisons the log: its outcome is unknown, so nothing is written
//!   after it and it is never retried. The process is to stop; recovery sorts it out.
//! - Memory stays small: a sparse index of positions, no entries.
//!
//! What it leaves out: deleting old segments (each already carries the hard state and the first
//! index it starts from), reusing them, and repairing damage, which is found, named and refused.

mod format;
mod fs;
mod index;
mod reader;
mod recovery;
mod segment;
mod window;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

pub use format::FORMAT_VERSION;
pub(crate) use fs::sync_dir;
pub use fs::{DirFs, LogFile, LogFs};
pub use reader::LogReader;

use crate::limits;
use crate::types::{HardState, LogBatch, LogEntry, LogIndex, Term};
use format::{FrameBuilder, SegmentHeader};
use index::PositionIndex;
use segment::SegmentWriter;

const FIRST_SEGMENT: u64 = 1;
const FIRST_BATCH: u64 = 1;
const FIRST_INDEX: LogIndex = 1;

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Whether an append waits for the disk. `false` only for experiments.
    pub sync: bool,
    /// A segment's size, about: a frame that does not fit starts the next one.
    pub segment_bytes: u64,
    /// The step in which a segment is zero-filled ahead.
    pub zero_fill_bytes: u64,
    /// A frame is ended when its payload passes this.
    pub group_bytes_max: usize,
    /// A random number, drawn anew for each opening: it keeps clients from planting in a value what
    /// recovery would take for a frame. Its quality matters to nothing else.
    pub salt: u64,
}

impl Default for LogOptions {
    /// The sizes of [`limits`], synced, with no salt.
    fn default() -> LogOptions {
        LogOptions {
            sync: true,
            segment_bytes: limits::LOG_SEGMENT_BYTES,
            zero_fill_bytes: limits::LOG_ZERO_FILL_BYTES,
            group_bytes_max: limits::LOG_GROUP_BYTES_MAX,
            salt: 0,
        }
    }
}

/// Why the log could not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; check the disk and start the server again", path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is on the disk is not what was written.
    #[error(
        "log file {} is damaged at byte {offset} ({detail}): move this server's data directory \
         away and start it on an empty one, so that the group can bring it up to date",
        path.display()
    )]
    Corrupt {
        /// The segment file.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong.
        detail: &'static str,
    },
    /// A segment between two others is gone.
    #[error("log file {} is missing: put it back, or start on an empty data directory", path.display())]
    MissingSegment {
        /// The absent file.
        path: PathBuf,
    },
    /// A file holds another segment than its name says.
    #[error("log file {} holds segment {found}: give the files their own names back", path.display())]
    WrongSegment {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: u64,
    },
    /// A later release wrote it.
    #[error(
        "log file {} has format {version}, newer than this release reads ({FORMAT_VERSION}): run \
         the release that wrote it",
        path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// Entries that neither follow nor replace a suffix of the log. Nothing was written.
    #[error("entry {found} was appended where an entry from {first} to {next} was expected")]
    NotContiguous {
        /// The offending index.
        found: LogIndex,
        /// The lowest that would do.
        first: LogIndex,
        /// The highest that would do.
        next: LogIndex,
    },
    /// A read of entries that are not there.
    #[error("entry {index} is not in the log, which holds {first} to {last}")]
    OutOfRange {
        /// The index asked for.
        index: LogIndex,
        /// The first index kept.
        first: LogIndex,
        /// The last durable index.
        last: LogIndex,
    },
    /// An earlier write or sync failed.
    #[error("the log stopped after a failure ({reason}): start the server again")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
}

impl LogError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> LogError {
        LogError::Io { action, path: path.to_path_buf(), source }
    }
}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredLog {
    /// The newest durable hard state; the default when blank. Its commit index is a lower bound
    /// and never past `last_index`.
    pub hard_state: HardState,
    /// Where each run of entries of one term begins: (first index of the run, term), in order.
    pub term_runs: Vec<(LogIndex, Term)>,
    /// The first index kept; 1 when blank.
    pub first_index: LogIndex,
    /// The last index; `first_index - 1` when there are no entries.
    pub last_index: LogIndex,
}

/// The writer: one owner, one thread.
pub struct DiskLog {
    fs: Arc<dyn LogFs>,
    options: LogOptions,
    tail: SegmentWriter,
    index: Arc<RwLock<PositionIndex>>,
    /// As of the last append.
    hard_state: HardState,
    /// As of the last frame; may lag behind `hard_state` in its commit index only.
    hard_state_written: HardState,
    next_batch: u64,
    frame: FrameBuilder,
    poison: Option<String>,
}

impl DiskLog {
    /// Opens the log in directory `dir`, which is created when it does not exist, and makes sure
    /// that what it reports is durable.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`], and the variants that tell of damage; then nothing was changed.
    pub fn open(dir: &Path, options: LogOptions) -> Result<(DiskLog, RecoveredLog), LogError> {
        let fs = DirFs::open(dir).map_err(|error| LogError::io("open", dir, error))?;
        DiskLog::open_on(Arc::new(fs), options)
    }

    /// Opens the log on any file system; see [`open`](DiskLog::open).
    ///
    /// # Errors
    ///
    /// As [`open`](DiskLog::open).
    pub fn open_on(
        fs: Arc<dyn LogFs>,
        options: LogOptions,
    ) -> Result<(DiskLog, RecoveredLog), LogError> {
        let (recovered, index, next_batch, tail) = match recovery::recover(&*fs, &options)? {
            Some(found) => {
                let recovered = RecoveredLog {
                    hard_state: found.hard_state,
                    term_runs: found.term_runs,
                    first_index: found.index.first_index,
                    last_index: found.index.last_index,
                };
                (recovered, found.index, found.next_batch, found.tail)
            }
            None => {
                let header = SegmentHeader {
                    segment: FIRST_SEGMENT,
                    first_index: FIRST_INDEX,
                    first_batch: FIRST_BATCH,
                    marker: 0,
                    hard_state: HardState::default(),
                };
                let tail = SegmentWriter::create(&*fs, &options, header)?;
                let recovered =
                    RecoveredLog { first_index: FIRST_INDEX, ..RecoveredLog::default() };
                (recovered, PositionIndex::new(FIRST_INDEX), FIRST_BATCH, tail)
            }
        };
        let log = DiskLog {
            fs,
            options,
            tail,
            index: Arc::new(RwLock::new(index)),
            hard_state: recovered.hard_state,
            hard_state_written: recovered.hard_state,
            next_batch,
            frame: FrameBuilder::default(),
            poison: None,
        };
        Ok((log, recovered))
    }

    /// A handle that reads what is durable, for other threads.
    pub fn reader(&self) -> LogReader {
        LogReader { fs: self.fs.clone(), index: self.index.clone() }
    }

    /// Makes the batches durable, in order, as one frame with one sync (or one after another, each
    /// synced, when they pass `group_bytes_max`). When all they say is a new commit index,
    /// nothing is written now.
    ///
    /// # Errors
    ///
    /// [`LogError::NotContiguous`] leaves the log as it was. After any other error, which batches
    /// are durable is unknown, and every later append fails with [`LogError::Poisoned`].
    pub fn append(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        if let Some(reason) = &self.poison {
            return Err(LogError::Poisoned { reason: reason.clone() });
        }
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

    /// Puts the batches' entries into one contiguous run, later batches replacing what earlier ones
    /// said.
    fn fold<'a>(&self, batches: &'a [LogBatch]) -> Result<Vec<&'a LogEntry>, LogError> {
        let (first, last) = self.reader_bounds();
        let mut run: Vec<&LogEntry> = Vec::new();
        let mut next = last + 1;
        for batch in batches {
            for (position, entry) in batch.entries.iter().enumerate() {
                // Only a batch's first entry may step back.
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
            if left.is_empty() {
                return Ok(());
            }
        }
    }

    fn write_frame(&mut self) -> Result<(), LogError> {
        if self.tail.is_full_for(&self.options, self.frame.payload_bytes()) {
            let header = SegmentHeader {
                segment: self.tail.header.segment + 1,
                first_index: self.reader_bounds().1 + 1,
                first_batch: self.next_batch,
                marker: 0,
                hard_state: self.hard_state_written,
            };
            self.tail = SegmentWriter::create(&*self.fs, &self.options, header)?;
        }
        let placed = self.tail.write_frame(&self.options, &mut self.frame, self.next_batch)?;
        self.next_batch += 1;
        self.hard_state_written = self.hard_state;
        // Only now do readers see the entries: they are durable.
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.add_frame(
            self.tail.header.segment,
            placed.offset,
            placed.payload_end,
            &self.frame.entries,
        );
        Ok(())
    }

    fn reader_bounds(&self) -> (LogIndex, LogIndex) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        (index.first_index, index.last_index)
    }
}

#[cfg(test)]
mod tests;
