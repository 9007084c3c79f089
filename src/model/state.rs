//! Where a server stands: its state machine, its snapshots, its disk, and what it finds of all that
//! at start.

use serde::{Deserialize, Serialize};

use super::{GroupRules, HardState, LeaseState, LogEntry, LogIndex, Term, Timestamp};

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
    /// There is as much as anybody may need.
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

/// What a state machine reports to the core after each application: the garbage that it has left to
/// collect, and the rules of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineSummary {
    /// The log's clock, in microseconds.
    pub clock_us: u64,
    /// The time of the oldest removal whose versions are not deleted from disk yet, by the log's
    /// clock.
    pub oldest_removal_us: Option<u64>,
    /// The earliest time, by the log's clock, as of which compacting the history removes a version.
    pub history_due_us: Option<u64>,
    /// The earliest time, by the log's clock, as of which something is left to remove that a
    /// `COMPACT` has ended the reads of.
    pub compacted_due_us: Option<u64>,
    /// The group's feature level.
    pub level: u32,
    /// The rules of the group; `None` before they are in the log.
    pub rules: Option<GroupRules>,
}

/// The durable state that a server starts from.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Term, vote and commit index; the default for a blank data directory.
    pub hard_state: HardState,
    /// The first index the log still holds: 0 or 1 = from the start. Entries before it are in the
    /// state machine only.
    pub first_index: LogIndex,
    /// The term of the entry before `first_index`; 0 when the log holds everything from the start.
    pub previous_term: Term,
    /// The first index and the term of each run of entries of one term, in order, beginning with
    /// the log's first index.
    pub term_runs: Vec<(LogIndex, Term)>,
    /// The last index of the log; the one before `first_index` when it is empty.
    pub last_index: LogIndex,
    /// Every entry after `applied.index`, contiguous to `last_index`.
    pub entries: Vec<LogEntry>,
    /// The last index that the state machine has applied, with its timestamp and the hash of the
    /// state.
    pub applied: AppliedPoint,
    /// The state machine's garbage and the group's rules.
    pub summary: MachineSummary,
    /// The state machine's leases.
    pub leases: Vec<LeaseState>,
    /// The store is lost and the log is not. `applied` is then an index that was committed, without
    /// a state: nothing is applied before a snapshot is installed.
    pub store_lost: bool,
    /// The data directory is blank because its data was lost: this server must not bootstrap a
    /// group.
    pub data_lost: bool,
}
