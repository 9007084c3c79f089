//! Who takes part: servers, groups of servers, clients, and a client's single write.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// A server's number within its group, from 1, by the position of its address in the sorted
/// server list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The server that a Raft library's number and a log's bytes name: there 0 is nobody.
    pub fn from_number(number: u64) -> Option<NodeId> {
        Some(NodeId(number)).filter(|node| node.0 > 0)
    }

    /// The inverse of [`from_number`](NodeId::from_number).
    pub fn number_of(node: Option<NodeId>) -> u64 {
        node.map_or(0, |node| node.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names one group of servers; two groups never exchange replication messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One client instance, drawn at random when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u64);

/// Names a lease: keys that are written under it go when it ends. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl LeaseId {
    /// An id that no lease can have: of a put under it, and of the transaction around it, nothing
    /// is done.
    pub const NOBODYS: LeaseId = LeaseId(u64::MAX);
}

/// Identifies one write of one client for ever, so that a retry is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId {
    pub client: ClientId,
    /// The client's own count of its writes, from 1.
    pub sequence: u64,
    /// Every sequence below this one has been answered and will never be retried: the replicated
    /// session forgets its reply. Always ≤ `sequence`.
    pub answered_below: u64,
    /// A timestamp that a server of the group had applied before the client wrote for the first
    /// time: the same with all its writes. It tells a new client, whose writes are new, from one
    /// whose session has been dropped.
    pub begun: Timestamp,
}
