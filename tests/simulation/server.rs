//! One simulated server: a core and everything a crash takes from it or leaves it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use acervo::model::{AppliedPoint, DiskSpace, LogEntry, LogIndex, NodeId, Term};
use acervo::node::config::NodeStatus;
use acervo::node::core::Node;
use acervo::node::{ConsoleEvent, Notice, RequestToken};
use acervo::server::snapshots::Transfers;
use acervo::server::snapshots::intake::Intake;
use acervo::server::watches::{WatchHub, WatchLimits, WatchRead};
use acervo::server::work::SnapshotWork;
use acervo::wire::message::Role;

use crate::disk::Disk;
use crate::machine::{Machine, Saved, SimStaging};

/// A server's number in the group for its position in the simulator.
pub fn node_id(server: usize) -> NodeId {
    NodeId(server as u64 + 1)
}

/// A client's number for the simulator's position; `None` when there is no such server.
pub fn position(node: NodeId, servers: usize) -> Option<usize> {
    (node.0 as usize).checked_sub(1).filter(|position| *position < servers)
}

/// What survives a crash, and what does not.
#[derive(Default)]
pub struct Server {
    pub disk: Disk,
    /// Survives: the state machine at its last durable commit.
    pub checkpoint: Saved,
    /// Survives: there is no state, and what the log holds does not make one.
    pub store_lost: bool,
    /// Something in the state is damaged: it is lost when the process ends.
    pub rotten: bool,
    /// Survives: the data directory says that the state was refuted. The next start sets it aside.
    pub untrusted: bool,
    /// Survives: what hashes of the saved state differ by from those of the real one.
    pub saved_skew: u64,
    /// The state of this server has been refuted, durably, and is still there: the simulator's own
    /// knowledge, against which what the server does is held.
    pub refuted: bool,
    /// Survives: by how much the level that its release knows is above the first.
    pub upgrades: u32,
    /// Survives: names the data directory.
    pub incarnation: u64,
    /// Counts starts and stops; events of an earlier life are void.
    pub life: u64,
    /// The machine's clock, against the simulator's.
    pub clock_offset_us: i64,
    pub sync_us_max: u64,
    /// Longest application of one piece of the log.
    pub apply_us_max: u64,
    /// How much room there is on its disk.
    pub disk_space: DiskSpace,
    /// Until then the workers take no job.
    pub workers_busy_until_us: u64,
    /// Until then nothing happens here.
    pub paused_until_us: u64,
    /// Until then no sync of the log ends, and nothing is read from it.
    pub log_hung_until_us: u64,
    /// Until then no verdict about the state is made durable: the data directory is on a disk of
    /// its own.
    pub verdict_hung_until_us: u64,
    /// Until then the state machine applies nothing.
    pub store_hung_until_us: u64,
    /// The running process; `None` while it is down.
    pub process: Option<Process>,
}

impl Server {
    /// A checkpoint of a state whose hashes differ by this from those of the real one.
    pub fn save(&mut self, saved: Saved, skew: u64) {
        (self.checkpoint, self.saved_skew) = (saved, skew);
    }

    /// Whether the state differs from the others', found out or not.
    pub fn is_wrong(&self) -> bool {
        self.process.as_ref().map_or(self.saved_skew, |process| process.skew) != 0
    }

    /// The state is gone, and with it all that was wrong with it.
    pub fn forget_state(&mut self) {
        self.save(Saved::default(), 0);
        (self.rotten, self.untrusted, self.refuted) = (false, false, false);
    }
}

/// Work for the state machine.
pub enum Piece {
    Entries {
        entries: Vec<LogEntry>,
        /// Somebody may wait for what keys had before.
        answering: bool,
    },
    /// Work on a snapshot.
    Snapshot(SnapshotWork),
}

/// All that is volatile.
pub struct Process {
    pub node: Node,
    /// The core's last account of itself.
    pub status: NodeStatus,
    pub machine: Machine,
    /// What its hashes differ by from those of its real state.
    pub skew: u64,
    /// Handed over and not yet applied, piece by piece.
    pub applying: VecDeque<Piece>,
    /// The loop's side of snapshots: the real one.
    pub transfers: Transfers,
    /// The applier's side of snapshots: the real one.
    pub intake: Intake<SimStaging>,
    /// Where the intake builds stores.
    pub staging: SimStaging,
    /// The state that the snapshot being taken in holds.
    pub arriving: AppliedPoint,
    /// When a view was last pinned for each server, until one has arrived there.
    pub prepared_us: BTreeMap<NodeId, u64>,
    /// The last index handed over for application.
    pub handed: LogIndex,
    /// When the last `Applied` reaches the core, so that they stay in order.
    pub applied_notice_us: u64,
    /// Bytes of the entries that this process has taken in and that are not applied, by index.
    pub unapplied: BTreeMap<LogIndex, usize>,
    /// Whether a flush is scheduled.
    pub flush_due: bool,
    /// What the core owes an answer, and since when.
    pub owed: BTreeMap<RequestToken, u64>,
    /// Attempts of clients that a crash would cut off.
    pub open_attempts: BTreeSet<usize>,
    /// Who is shown which changes: the real one.
    pub watches: WatchHub,
    /// Pages that are to be read for watches.
    pub watch_reads: Vec<WatchRead>,
    /// What the log would have said.
    pub notices: Vec<Notice>,
    /// What the console would have shown.
    pub console: Vec<ConsoleEvent>,
}

impl Process {
    /// The term in which it leads, by its last account.
    pub fn term_led(&self) -> Option<Term> {
        (self.status.role == Role::Leader).then_some(self.status.term)
    }

    /// A process that has just started.
    pub fn new(node: Node, machine: Machine, staging: SimStaging, transfers: Transfers) -> Process {
        let status = node.status();
        let handed = machine.point().index;
        let watches = WatchHub::new(machine.store(), handed, WatchLimits::DEFAULT);
        Process {
            node,
            status,
            machine,
            skew: 0,
            applying: VecDeque::new(),
            transfers,
            intake: Intake::new(staging.clone()),
            staging,
            arriving: AppliedPoint::default(),
            prepared_us: BTreeMap::new(),
            handed,
            applied_notice_us: 0,
            unapplied: BTreeMap::new(),
            flush_due: false,
            owed: BTreeMap::new(),
            open_attempts: BTreeSet::new(),
            watches,
            watch_reads: Vec::new(),
            notices: Vec::new(),
            console: Vec::new(),
        }
    }
}
