//! The replicated log as every room sees it: positions, entries, and what of them must be durable.
//!
//! What an entry says is `command`'s; how it lies on a disk is `storage::log`'s.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::NodeId;

/// Numbers the elections of a group: at most one server leads in a term.
pub type Term = u64;

/// A position in the replicated log, from 1.
pub type LogIndex = u64;

/// One entry of the replicated log. Empty `data` is the no-op a leader starts its term with;
/// anything else is an encoded [`Command`](crate::model::Command).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The term of the leader that created it.
    pub term: Term,
    pub index: LogIndex,
    pub data: Bytes,
}

/// What a Raft server must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term this server has seen.
    pub term: Term,
    /// The server that it voted for in that term.
    pub vote: Option<NodeId>,
    /// The highest index known to be committed. A lower bound after a restart.
    pub commit: LogIndex,
    /// Whether this data directory takes part in elections. A blank directory may be one that was
    /// lost, whose votes and acknowledgements nobody remembers: it neither votes nor campaigns
    /// (the group's very first election apart) until a leader has brought it up to date.
    pub admitted: bool,
}

/// What the log writer makes durable in one step. Batches are written in order of `number`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// The core's own count of batches; echoed when the batch is durable.
    pub number: u64,
    /// The new hard state, when it changed.
    pub hard_state: Option<HardState>,
    /// Contiguous entries. When the first index is not past the end of the log, everything from
    /// it on is replaced.
    pub entries: Vec<LogEntry>,
}
