//! Transfers a store to a server that the log does not reach back to: rows of a consistent read
//! view at one end ([`SnapshotSource`]), a store under construction at the other
//! ([`SnapshotSink`]).
//!
//! The rows are sent as a sequence of chunks, each complete in itself and with a checksum. Neither
//! end ever holds more than a chunk and its engine's cache in memory, and neither disturbs its
//! state machine: the source reads as of one state while writes go on, the sink writes a store of
//! its own beside the one in use.
//!
//! Invariants:
//!
//! - A snapshot that [`SnapshotSink::finish`] accepts is, row for row, the state that the
//!   [`AppliedPoint`](crate::model::AppliedPoint) announced: its hash is computed anew.
//! - A staged snapshot is durable before anything relies on it. From there on the order is: finish,
//!   then [`DiskLog::reset`](super::log::DiskLog::reset), then
//!   [`StateMachine::install`](super::apply::StateMachine::install), before the next one is
//!   finished. [`storage::open`](super::open) completes or undoes an installation that a crash
//!   interrupts.
//!
//! What it leaves out: sending chunks between servers, and resuming a stream that broke: it starts
//! again.

mod chunk;
#[cfg(any(test, feature = "internals"))]
mod memory;
mod sink;
mod source;
mod staging;

#[cfg(any(test, feature = "internals"))]
pub use memory::MemoryStaging;
pub use sink::{SnapshotSink, StagedSnapshot};
pub use source::SnapshotSource;
pub(super) use staging::StoreNames;
pub use staging::{DiskStaging, StagingArea};

use bytes::Bytes;

use super::engine::EngineError;
use crate::model::FeatureLevel;

/// A part of a snapshot, sent as one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// The place among the chunks, from 0.
    pub sequence: u64,
    /// The rows in key order, and a checksum.
    pub data: Bytes,
}

/// Why a snapshot could not be received.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store under construction failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A chunk is not the next one. Nothing was changed.
    #[error("chunk {found} of a snapshot arrived where chunk {expected} should follow")]
    OutOfSequence {
        /// The sequence that would follow.
        expected: u64,
        /// The sequence that was received.
        found: u64,
    },
    /// A chunk does not match its checksum. Nothing was changed.
    #[error("chunk {sequence} of a snapshot does not match its checksum")]
    Checksum {
        /// The sequence of the chunk.
        sequence: u64,
    },
    /// A chunk contains rows that no store sends. Nothing was changed.
    #[error("chunk {sequence} of a snapshot is not in order: {detail}")]
    Malformed {
        /// The sequence of the chunk.
        sequence: u64,
        /// The inconsistency that was found.
        detail: &'static str,
    },
    /// The group is at a feature level that this release does not know. Nothing was changed.
    #[error("{}", level.unknown_to(*known))]
    UnknownLevel {
        /// The level that the group has reached.
        level: FeatureLevel,
        /// The newest level that this release knows.
        known: FeatureLevel,
    },
    /// The rows are not those of the announced state.
    #[error("a snapshot of entry {index} arrived incomplete or altered: its state hash differs")]
    Mismatch { index: u64 },
    /// An earlier call has failed and left the snapshot incomplete.
    #[error("taking in a snapshot stopped after a failure: it has to be sent again")]
    Stopped,
}

#[cfg(test)]
mod tests;
