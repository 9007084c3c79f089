//! A store sent to a server that is too far behind for the log: rows out of a consistent view at one
//! end ([`SnapshotSource`]), rows into a store under construction at the other ([`SnapshotSink`]).
//!
//! The rows go as a sequence of chunks, each complete in itself and with its own checksum. Neither
//! end ever holds more than a chunk and its engine's cache, and neither disturbs its state machine:
//! the source reads as of one moment while writes go on, the sink writes a file of its own.
//!
//! Invariants:
//!
//! - What [`SnapshotSink::finish`] accepts is, row for row, the state that the
//!   [`AppliedPoint`](crate::model::AppliedPoint) announced: its hash is computed anew.
//! - A staged snapshot is durable before anything relies on it. From there on the order is: finish,
//!   then [`DiskLog::reset`](super::log::DiskLog::reset), then
//!   [`StateMachine::install`](super::apply::StateMachine::install), before the next one is finished.
//!   [`storage::open`](super::open) completes or undoes what a crash leaves in between.
//!
//! What it leaves out: carrying chunks between servers, and resuming a stream that broke: it starts
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
pub use staging::{DiskStaging, StagingArea};

use bytes::Bytes;

use super::engine::EngineError;
use crate::model::FeatureLevel;

/// A piece of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// Its place among the chunks, from 0.
    pub sequence: u64,
    /// Rows in key order, and a checksum.
    pub data: Bytes,
}

/// Why a snapshot could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store under construction failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A chunk is not the next one. Nothing was changed.
    #[error("chunk {found} of a snapshot arrived where chunk {expected} should follow")]
    OutOfSequence {
        /// The next sequence.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A chunk is not what was sent. Nothing was changed.
    #[error("chunk {sequence} of a snapshot does not match its checksum")]
    Checksum {
        /// The chunk.
        sequence: u64,
    },
    /// A chunk holds what no store sends. Nothing was changed.
    #[error("chunk {sequence} of a snapshot is not in order: {detail}")]
    Malformed {
        /// The chunk.
        sequence: u64,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// It is the state of a group at a level that this release does not know. Nothing was changed.
    #[error("{}", level.unknown_to(*known))]
    UnknownLevel {
        /// The level that the group has reached.
        level: FeatureLevel,
        /// The newest level that this release knows.
        known: FeatureLevel,
    },
    /// The rows are not those of the announced state.
    #[error("a snapshot of entry {index} arrived incomplete or altered: its state hash differs")]
    Mismatch {
        /// The announced index.
        index: u64,
    },
    /// An earlier call failed half-way.
    #[error("taking in a snapshot stopped after a failure: it has to be sent again")]
    Stopped,
}

#[cfg(test)]
mod tests;
