//! Where a server stands: its state machine, its snapshots, its disk, and what it finds of all that at start.

use serde::{Deserialize, Serialize};

use super::{GroupRules, HardState, LogEntry, LogIndex, Term, Timestamp};

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

/// What a state machine has left to do in the background.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpkeepState {
    /// The time of the log's clock.
    pub clock_us: u64,
    /// By when the oldest removal was done that is not off the disk yet, by the log's clock.
    pub oldest_removal_us: Option<u64>,
    /// When a sweep will have something to do, by the log's clock: as of this time or a later one.
    pub sweep_due_us: Option<u64>,
    /// The group's feature level.
    pub level: u32,
    /// What the group goes by; `None` when it has not settled on anything.
    pub rules: Option<GroupRules>,
}

/// What a server finds on its disk at start.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The hard state; default when blank.
    pub hard_state: HardState,
    /// The first index the log still holds: 0 or 1 = from the start. Entries before it are in the
    /// state machine only.
    pub first_index: LogIndex,
    /// The term of the entry before `first_index`; 0 when the log holds everything from the start.
    pub previous_term: Term,
    /// Where each run of entries of one term begins, in order: (first index of the run, term). The
    /// first run begins at the log's first index.
    pub term_runs: Vec<(LogIndex, Term)>,
    /// The last index of the log; the one before `first_index` when it is empty.
    pub last_index: LogIndex,
    /// Every entry after `applied.index`, contiguous to `last_index`.
    pub entries: Vec<LogEntry>,
    /// Where the state machine stands.
    pub applied: AppliedPoint,
    /// What it has left to do in the background.
    pub upkeep: UpkeepState,
    /// The store is lost and the log is not. `applied` is then a point that was committed, and stands for no
    /// state: nothing is applied before a snapshot has been put in place.
    pub store_lost: bool,
    /// Everything is blank, and was not: what this server had is lost. It takes no part in founding a group.
    pub data_lost: bool,
}
