//! What consensus starts from, why it cannot start or take a proposal, and why no leader can be
//! elected.

use crate::limits::NodeLimits;
use crate::model::{LogEntry, LogIndex, NodeId, Term};

/// The configuration of one server's consensus, fixed for a run.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// The number of this server.
    pub node: NodeId,
    /// All servers of the group, this one included.
    pub nodes: Vec<NodeId>,
    /// The server that this one was started to take for the first leader of a blank group
    /// (`--leader`).
    pub first_leader: NodeId,
    /// A fixed election time-out in ticks, so that a simulation is deterministic; raft-rs draws one
    /// at random when it is `None`.
    pub election_ticks: Option<usize>,
    /// Bounds of memory and of messages in flight.
    pub limits: NodeLimits,
}

/// Why no leader can be elected although enough servers are up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLeader {
    /// The group is not bootstrapped, and the server that is to lead first has never been up.
    NotBegun {
        /// The server that is to lead first.
        first_leader: NodeId,
    },
    /// The group is not bootstrapped, no majority of its servers is configured with the same first
    /// leader, and not all are up.
    DifferentFirstLeaders {
        /// A server that some servers have configured as first leader.
        one: NodeId,
        /// Another server that others have configured.
        another: NodeId,
        /// A server that is not up and whose configuration is needed.
        missing: NodeId,
    },
    /// Too many data directories are blank, and what those held that were lost is not known.
    Blank {
        /// Servers that are up with a blank directory.
        blank: usize,
        /// Servers that are up with their own.
        full: usize,
        /// Servers with their own data directory that an election takes.
        needed: usize,
    },
}

impl NoLeader {
    /// Returns one sentence for the operator: what the state means and what to do. `name` names a
    /// server.
    pub fn sentence(self, name: impl Fn(NodeId) -> String) -> String {
        match self {
            NoLeader::NotBegun { first_leader } => {
                let first = name(first_leader);
                format!(
                    "the group has not begun, because it begins with {first}, which has not been \
                     up: start that one, or start the others again with --leader naming one that \
                     is up"
                )
            }
            NoLeader::DifferentFirstLeaders { one, another, missing } => format!(
                "the group has not begun, because its servers were told different first leaders \
                 ({} and {}) and {} is not up: start every server, or start all again with the \
                 same --leader",
                name(one),
                name(another),
                name(missing)
            ),
            NoLeader::Blank { blank, full, needed } => format!(
                "no leader can be elected, because {blank} of the servers that are up have blank \
                 data directories, or lost what was in them, and {full} their own, of which \
                 {needed} are needed: start servers with the data directories that they had"
            ),
        }
    }
}

/// Why consensus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// The recovered state contradicts itself.
    #[error("the recovered log is not consistent: {0}")]
    Inconsistent(String),
    /// The library refused its configuration.
    #[error("consensus cannot start: {0}")]
    Library(#[from] raft::Error),
}

/// The contents of the log on disk, as recovery found them.
#[derive(Clone, Debug, Default)]
pub struct InitialLog {
    /// The first index of the log; 1 when it reaches back to the beginning.
    pub first_index: LogIndex,
    /// The term of the entry just before the first one; 0 when there was none.
    pub previous_term: Term,
    /// The first index and the term of each run of entries of one term, in order, beginning with
    /// the log's first index.
    pub term_runs: Vec<(LogIndex, Term)>,
    /// The last index; `first_index - 1` when there are no entries.
    pub last_index: LogIndex,
    /// All entries that are not applied, contiguous to `last_index`.
    pub entries: Vec<LogEntry>,
}

impl InitialLog {
    /// Checks that the log agrees with itself and with these indices.
    ///
    /// # Errors
    /// One clause that names the contradiction.
    pub(super) fn check(&self, commit: LogIndex, applied: LogIndex) -> Result<(), String> {
        let InitialLog { first_index, last_index, .. } = *self;
        if !(applied..=last_index).contains(&commit) {
            return Err(format!(
                "commit index {commit} is not between applied index {applied} and last index \
                 {last_index}"
            ));
        }
        if first_index == 0 || first_index > applied + 1 {
            return Err(format!("the log begins at {first_index}, {applied} is applied"));
        }
        let contiguous = self.entries.iter().zip(applied + 1..).all(|(e, index)| e.index == index);
        if !contiguous || applied + self.entries.len() as u64 != last_index {
            return Err(format!("entries {applied} to {last_index} are not all there"));
        }
        let runs_from = self.term_runs.first().map_or(last_index + 1, |(first, _)| *first);
        if runs_from != first_index {
            return Err(format!("terms are known from index {runs_from} on, not {first_index}"));
        }
        Ok(())
    }
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This server does not lead.
    #[error("this server does not lead")]
    NotLeader,
    /// The leadership is being handed over.
    #[error("the leadership is being handed over")]
    HandingOver,
    /// Too much is proposed and not committed.
    #[error("too many bytes are waiting to be committed")]
    Full,
}
