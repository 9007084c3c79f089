//! The configuration of a node, the state that it shows, and why it cannot start.

use std::time::Duration;

use super::eligibility::Ineligible;
use super::garbage_collection::GarbageCollectionConfig;
pub use super::leases::LeaseNotes;
use crate::consensus::{ConsensusError, NoLeader};
use crate::limits::NodeLimits;
use crate::model::{AppliedPoint, History, LogIndex, NodeId, Release, Term};
use crate::wire::message::Role;

/// The rule by which a write is acknowledged (SPEC A3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// Durable on a majority and stored by every server in sync.
    All,
    /// Durable on a majority.
    Majority,
}

/// The configuration of a node, fixed for a run.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The number of this node.
    pub node: NodeId,
    /// Every node of the group, this one included.
    pub nodes: Vec<NodeId>,
    /// The address of each of `nodes`, in the same order, for sentences that people read. Where one
    /// is missing the sentence names the place in the list instead.
    pub names: Vec<String>,
    /// The server that this one takes for the first leader of a blank group (`--leader`).
    pub first_leader: NodeId,
    /// When a write is acknowledged.
    pub ack: AckPolicy,
    /// How long a REPLICATION_OK may be owed before its server drops out of the in-sync set.
    pub in_sync_timeout: Duration,
    /// After so long without a leader this node says that it is cut off, and again after each time
    /// as long. [`limits::CUT_OFF_TIMEOUT`](crate::limits) except in simulations.
    pub cut_off_timeout: Duration,
    /// If work for the log is outstanding and nothing is reported for this long, or for twice as
    /// long from the state machine, this node may not lead.
    pub stall_timeout: Duration,
    /// Fixes the election time-out (in ticks, ≥ [`limits::ELECTION_TICKS`](crate::limits)) so that
    /// a simulation is deterministic; give each node its own. `None` draws one at random.
    pub election_ticks: Option<usize>,
    /// The most bytes a value may have.
    pub value_bytes_max: usize,
    /// Delay before replicated writes are handled (SPEC A7); zero normally.
    pub replication_delay: Duration,
    /// Whether the driver wants [`Output::Console`](super::Output::Console).
    pub console: bool,
    /// When garbage is collected, and how much of it at a time.
    pub garbage_collection: GarbageCollectionConfig,
    /// Bounds of memory and of work under way.
    pub limits: NodeLimits,
    /// Number of entries from one comparison of states to the next; the same at all replicas.
    /// [`limits::STATE_HASH_EVERY`](crate::limits) except in simulations.
    pub state_hash_every: LogIndex,
    /// The feature level and the limits that are compiled into this node's release.
    pub release: Release,
    /// How long every server must have named a feature level before the group's rises to it;
    /// [`limits::LEVEL_SETTLED`](crate::limits) except in simulations.
    pub level_settled: Duration,
    /// When the remaining time of leases is noted in the log.
    pub lease_notes: LeaseNotes,
    /// The first number of this run's requests to other servers. Drawn at random at every start, so
    /// that an answer to a request of an earlier run is never taken for one of this run.
    pub first_question: u64,
}

/// The state of a node as `acervo status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Whether it leads, follows or campaigns.
    pub role: Role,
    /// The leader of its term, as far as it knows.
    pub leader: Option<NodeId>,
    pub term: Term,
    /// The last index that it knows to be committed.
    pub commit: LogIndex,
    /// Where its state machine stands.
    pub applied: AppliedPoint,
    /// The last index in its log, durable or not.
    pub last_index: LogIndex,
    /// At the leader: the in-sync set. Empty elsewhere.
    pub in_sync: Vec<NodeId>,
    /// Servers whose full disks keep the group from accepting writes that add to the store; empty
    /// if it accepts them.
    pub full_disks: Vec<NodeId>,
    /// The reasons why this node may not lead; empty if it may.
    pub ineligible: Vec<Ineligible>,
    /// The reason why it serves no reads; `None` if it does.
    pub distrust: Option<Distrust>,
    /// The first leader that it has configured, as long as it has not taken part in the group or
    /// stored any entry.
    pub first_leader: Option<NodeId>,
    /// The reason why no leader can be elected although enough servers are up, if there is one.
    pub no_leader: Option<NoLeader>,
    /// The group's feature level, as of the entries that this node has applied.
    pub level: u32,
    /// The history that the group keeps; `None` before its rules are in the log.
    pub history: Option<History>,
    /// Leases that have not ended, in the state that it has applied.
    pub leases: u32,
}

/// The reason why a node does not trust its own state, and so serves no reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// Its store is lost, and it waits for a snapshot.
    StoreLost,
    /// Others hold another state, or contradict the log, and no majority has decided.
    Disputed,
    /// A majority holds another state: this one is about to be discarded.
    Refuted,
}

impl std::fmt::Display for Distrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Distrust::StoreLost => {
                "its store is lost or was damaged and is being rebuilt from the others: it serves \
                 no reads"
            }
            Distrust::Disputed => {
                "its state or its log contradicts another server's and no majority has decided: it \
                 serves no reads"
            }
            Distrust::Refuted => {
                "its data contradicts the majority's and is being thrown away: it serves no reads"
            }
        })
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration does not name this node or the first leader among the group's nodes.
    #[error("node {0} is not one of the group's nodes, or the first leader is not")]
    NotInGroup(NodeId),
    /// Consensus refuses the recovered state.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
}
