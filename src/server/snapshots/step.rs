//! The bounds of snapshot transfers, and what their driver is to do.

use std::time::Duration;

use super::super::work::Work;
use crate::limits;
use crate::model::{NodeId, SnapshotId, Timestamp};
use crate::node::Input;
use crate::wire::message::ServerMessage;

/// Bytes of rows in a chunk, which a worker reads in some milliseconds; a larger row is sent alone.
const SNAPSHOT_CHUNK_BYTES: usize = 512 * 1024;
/// Chunks sent and not yet stored by the receiver: enough to keep both ends at work, and 2 MiB of
/// memory.
const SNAPSHOT_CHUNKS_IN_FLIGHT: u64 = 4;
/// A transfer that makes no progress for this long is given up, and may begin again.
const SNAPSHOT_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Bounds of transfers: those of [`limits`], except in simulations.
#[derive(Clone, Copy, Debug)]
pub struct TransferLimits {
    /// Bytes of rows in a chunk, by default [`SNAPSHOT_CHUNK_BYTES`].
    pub chunk_bytes_max: usize,
    /// Chunks sent and not acknowledged, by default [`SNAPSHOT_CHUNKS_IN_FLIGHT`].
    pub chunks_in_flight_max: u64,
    /// Time without progress after which a transfer ends, by default
    /// [`SNAPSHOT_STALL_TIMEOUT`].
    pub stall_timeout_us: u64,
    /// The wait after the first failed attempt, by default [`limits::SNAPSHOT_RETRY_MIN`].
    pub retry_us_min: u64,
    /// The longest wait after a failed attempt, by default [`limits::SNAPSHOT_RETRY_MAX`].
    pub retry_us_max: u64,
}

impl Default for TransferLimits {
    fn default() -> TransferLimits {
        TransferLimits {
            chunk_bytes_max: SNAPSHOT_CHUNK_BYTES,
            chunks_in_flight_max: SNAPSHOT_CHUNKS_IN_FLIGHT,
            stall_timeout_us: SNAPSHOT_STALL_TIMEOUT.as_micros() as u64,
            retry_us_min: limits::SNAPSHOT_RETRY_MIN.as_micros() as u64,
            retry_us_max: limits::SNAPSHOT_RETRY_MAX.as_micros() as u64,
        }
    }
}

/// An instruction for the driver; they are to be carried out in order.
#[derive(Debug)]
pub enum TransferStep {
    /// Send a message to another server, in order with the earlier ones; when it cannot be sent,
    /// close the link.
    Send {
        /// The server that the message goes to.
        to: NodeId,
        /// A message of a snapshot transfer.
        message: ServerMessage,
    },
    /// Have a thread do work. When there is no place for a
    /// [`CatchUpWork::Chunk`](super::super::work::CatchUpWork::Chunk), give it back with
    /// [`Transfers::refused`](super::Transfers::refused).
    Work(Work),
    /// Hand an input to the core.
    Input(Input),
}

/// What is said of a snapshot before its chunks are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct SnapshotOffer {
    /// The transfer's number, chosen at random by its sender.
    pub id: u64,
    pub snapshot: SnapshotId,
    pub timestamp: Timestamp,
    /// The hash of the state that it holds.
    pub hash: u64,
}

impl SnapshotOffer {
    /// The offer, at first without the key that the receiver answers it with.
    pub fn message(self, key: Option<u64>) -> ServerMessage {
        let SnapshotOffer { id, snapshot, timestamp, hash } = self;
        ServerMessage::Snapshot { id, key, snapshot, timestamp, hash }
    }
}
