//! Why the log could not be opened, written or read.
//!
//! An error tells damage, which another start does not mend, from what the system refused.

use std::io;
use std::path::{Path, PathBuf};

use super::format::FORMAT_VERSION;
use crate::model::LogIndex;

/// Why the log could not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused.
    #[error(
        "cannot {action} {}: {source}; make room on the disk, or check it, and start the server \
         again",
        path.display()
    )]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        source: io::Error,
    },
    /// The bytes on the disk are not those that were written.
    #[error("log file {} is damaged at byte {offset}: {detail}", path.display())]
    Corrupt {
        path: PathBuf,
        /// The position at which the damage begins.
        offset: u64,
        /// The inconsistency that was found.
        detail: &'static str,
    },
    /// A segment between two others is missing.
    #[error("log file {} is missing", path.display())]
    MissingSegment { path: PathBuf },
    /// A file contains another segment than its name says.
    #[error("log file {} holds segment {found}", path.display())]
    WrongSegment {
        path: PathBuf,
        /// The segment that its header names.
        found: u64,
    },
    /// Another release wrote the file.
    #[error(
        "log file {} has format {version}, and this release reads {FORMAT_VERSION}: run \
         the release that wrote it",
        path.display()
    )]
    OtherFormat {
        path: PathBuf,
        /// The format version of the file.
        version: u32,
    },
    /// Entries that neither follow nor replace a suffix of the log. Nothing was written.
    #[error("entry {found} was appended where an entry from {first} to {next} was expected")]
    NotContiguous {
        /// The index of the entry.
        found: LogIndex,
        /// The lowest index that would be accepted.
        first: LogIndex,
        /// The highest index that would be accepted.
        next: LogIndex,
    },
    /// Entries were requested that the log does not contain.
    #[error("entry {index} is not in the log, which holds {first} to {last}")]
    OutOfRange {
        /// The first index requested.
        index: LogIndex,
        /// The first index kept.
        first: LogIndex,
        /// The last durable index.
        last: LogIndex,
    },
    /// An earlier write or sync failed.
    #[error("the log stopped after a failure ({reason}): start the server again")]
    Poisoned { reason: String },
}

impl LogError {
    /// Whether the log is damaged, and not merely unreadable at the moment.
    pub fn is_damage(&self) -> bool {
        use LogError::{Corrupt, MissingSegment, WrongSegment};
        matches!(self, Corrupt { .. } | MissingSegment { .. } | WrongSegment { .. })
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> LogError {
        LogError::Io { action, path: path.to_path_buf(), source }
    }
}
