//! The small vocabulary every part shares: identifiers, timestamps and log entries.
//!
//! Nothing here does IO, reads a clock or draws a random number.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A server's number within its group, from 1, by the position of its address in the sorted
/// server list. Zero is never a node: the consensus library uses it for "nobody".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names one group of servers; two groups never exchange replication messages. Zero in a client's
/// greeting means "whichever group you are".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A version of the store: microseconds since the Unix epoch from the leader's hybrid logical
/// clock, strictly increasing in log order. Zero is "before every write".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Before every write: what a client that has seen nothing sends.
    pub const ZERO: Timestamp = Timestamp(0);

    /// Before every write, too: no write is as early. Where 0 stands for "none" or "the newest", this
    /// names the state in which there is nothing yet, which every server has reached.
    pub const FIRST: Timestamp = Timestamp(1);
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One client instance, drawn at random when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u64);

/// Identifies one write of one client for ever, so that a retry is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Which client.
    pub client: ClientId,
    /// The client's own count of its writes, from 1.
    pub sequence: u64,
    /// Every sequence below this one has been answered and will never be retried: the replicated
    /// session forgets its reply. Always ≤ `sequence`.
    pub answered_below: u64,
    /// A timestamp that a server of the group had applied before the client wrote for the first time: the same with
    /// all its writes. It tells a new client, whose writes are new, from one whose session has been dropped.
    pub begun: Timestamp,
}

/// Raft's election epoch.
pub type Term = u64;

/// A position in the replicated log, from 1.
pub type LogIndex = u64;

/// One entry of the replicated log. Empty `data` is the no-op a leader starts its term with;
/// anything else is an encoded [`Command`](crate::command::Command).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The term of the leader that created it.
    pub term: Term,
    /// Its position.
    pub index: LogIndex,
    /// The encoded command.
    pub data: Bytes,
}

/// What a Raft server must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term this server has seen.
    pub term: Term,
    /// Whom it voted for in that term; 0 for nobody.
    pub vote: u64,
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

/// Where a server's state machine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedPoint {
    /// The last log index applied.
    pub index: LogIndex,
    /// The timestamp of the last write applied.
    pub timestamp: Timestamp,
    /// A hash of the whole replicated state, equal on all replicas at equal `index`.
    pub hash: u64,
}

/// Names a snapshot of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotId {
    /// The term in which its sender led when it began.
    pub leader_term: Term,
    /// The last index applied in it.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
}

/// How much room there is on the disk of a server's data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskSpace {
    /// Enough.
    #[default]
    Ample,
    /// Time to make some.
    Low,
    /// What adds to the store is refused.
    Full,
    /// Most of the reserve is used up: nothing more is taken from other servers.
    Exhausted,
}

impl DiskSpace {
    /// Whether what adds to the store is to be refused.
    pub fn is_full(self) -> bool {
        self >= DiskSpace::Full
    }
}
