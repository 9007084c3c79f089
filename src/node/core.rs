//! The core itself.

use std::time::Duration;

use super::{Input, Now, Output};
use crate::types::{AppliedPoint, HardState, LogEntry, LogIndex, NodeId, Term};
use crate::wire::message::Role;

/// When a write is acknowledged (SPEC A3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// Durable on a majority and stored by every server in sync.
    All,
    /// Durable on a majority.
    Majority,
}

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node.
    pub node: NodeId,
    /// Every node of the group, this one included.
    pub nodes: Vec<NodeId>,
    /// Who leads first, when the group is blank.
    pub first_leader: NodeId,
    /// The acknowledgement rule.
    pub ack: AckPolicy,
    /// How long a REPLICATION_OK may be owed before its server drops out of the in-sync set.
    pub in_sync_timeout: Duration,
    /// Fixes the election time-out (in ticks, ≥ [`limits::ELECTION_TICKS`](crate::limits)) so that
    /// a simulation is deterministic; give each node its own. `None` draws one at random.
    pub election_ticks: Option<usize>,
    /// The most bytes a value may have.
    pub value_bytes_max: usize,
}

/// What a node finds on its disk at start.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The hard state; default when blank.
    pub hard_state: HardState,
    /// Where each run of entries of one term begins, in order: (first index of the run, term). The
    /// first run begins at the log's first index.
    pub term_runs: Vec<(LogIndex, Term)>,
    /// The last index of the log; 0 when empty.
    pub last_index: LogIndex,
    /// Every entry after `applied.index`, contiguous to `last_index`.
    pub entries: Vec<LogEntry>,
    /// Where the state machine stands.
    pub applied: AppliedPoint,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its part.
    pub role: Role,
    /// The leader it knows of.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// The last index known committed.
    pub commit: LogIndex,
    /// Where its state machine stands.
    pub applied: AppliedPoint,
    /// The last index in its log, durable or not.
    pub last_index: LogIndex,
    /// At the leader: the servers in sync, itself included. Empty elsewhere.
    pub in_sync: Vec<NodeId>,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The recovered state contradicts itself.
    #[error("the recovered state is not consistent: {0}")]
    Inconsistent(String),
}

/// One server's mind.
pub struct Node {}

impl Node {
    /// Starts a node on what its disk holds.
    pub fn new(_config: NodeConfig, _recovered: Recovered) -> Result<Node, NodeError> {
        Ok(Node {})
    }

    /// Takes one input. Cheap: work is batched until [`Node::flush`].
    pub fn handle(&mut self, _now: Now, _input: Input, _out: &mut Vec<Output>) {}

    /// Does what the inputs since the last call ask for: proposes, runs consensus, answers.
    /// Call it when no input is at hand, before waiting for more.
    pub fn flush(&mut self, _now: Now, _out: &mut Vec<Output>) {}

    /// Describes the node.
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            role: Role::Follower,
            leader: None,
            term: 0,
            commit: 0,
            applied: AppliedPoint::default(),
            last_index: 0,
            in_sync: Vec::new(),
        }
    }
}
