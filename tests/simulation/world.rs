//! Virtual time: the queue of everything that is going to happen, and the step that makes the next
//! thing happen.

use std::collections::BTreeMap;
use std::time::Duration;

use acervo::limits::{self, NodeLimits};
use acervo::model::{
    AppliedPoint, AppliedWrite, History, LeaseEvent, LogIndex, MachineSummary, NodeId, StateLimits,
};
use acervo::node::config::{AckPolicy, LeaseNotes};
use acervo::node::garbage_collection::GarbageCollectionConfig;
use acervo::node::{Input, Now, RequestToken};
use acervo::server::snapshots::TransferLimits;
use acervo::server::work::SnapshotReport;
use acervo::storage::reads::PageLimits;
use acervo::storage::snapshot::SnapshotSource;
use acervo::wire::message::{Reply, WriteRequest};

use crate::checker::{Checker, Verdict, Violation};
use crate::clients::{Attempt, Client, Operation};
use crate::contenders::{ContestBook, Rival};
use crate::leases::{Asked, Holder};
use crate::nemesis::{Mend, Nemesis};
use crate::network::{Network, Quality};
use crate::rng::Rng;
use crate::server::{Server, node_id};
use crate::trace::Trace;
use crate::watchers::Watcher;

/// One second of virtual time.
pub const SECOND: u64 = 1_000_000;
/// One millisecond of virtual time.
pub const MILLISECOND: u64 = 1_000;
/// Where every wall clock starts.
const EPOCH_US: i64 = 1_700_000_000_000_000;

/// How a world is made.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    /// Servers in the group.
    pub servers: usize,
    /// Who is to lead first, by position.
    pub first_leader: usize,
    /// Whom each server was told leads first, where that is not the same for all.
    pub told: Vec<usize>,
    pub ack: AckPolicy,
    /// How long a REPLICATION_OK may be owed.
    pub in_sync_timeout: Duration,
    /// How long a disk may owe and report nothing before its server may not lead.
    pub stall_timeout: Duration,
    /// How links behave at first and again after every fault.
    pub quality: Quality,
    /// How late each server takes in what is replicated (SPEC A7).
    pub replication_delay: Vec<Duration>,
    /// Longest sync of a healthy disk.
    pub sync_us_max: u64,
    /// Longest application of one piece of the log.
    pub apply_us_max: u64,
    /// Pieces after which the state machine makes a durable checkpoint, of a thousand.
    pub checkpoints: u64,
    /// Checkpoints after which the log before them is deleted, of a thousand.
    pub compactions: u64,
    /// Reads of the log from disk that fail, of a thousand.
    pub fetch_failures: u64,
    /// Longest reading of one piece of a snapshot.
    pub piece_us_max: u64,
    /// Bounds of every core.
    pub limits: NodeLimits,
    /// Bounds of transfers of snapshots.
    pub transfers: TransferLimits,
    /// Entries of the log that are kept for servers that are being sent a snapshot.
    pub held_entries_max: u64,
    /// What is done in the background.
    pub garbage_collection: GarbageCollectionConfig,
    /// What the release goes by that servers run.
    pub state_limits: StateLimits,
    /// The same of the release that every second server runs.
    pub other_limits: StateLimits,
    /// The newest feature level of any release: a server that starts may run a newer release than
    /// before.
    pub newest_level: u32,
    /// A server whose release is too old for its group.
    pub outdated: Option<usize>,
    /// When the remaining time of leases is noted.
    pub lease_notes: LeaseNotes,
    /// After how long without a leader a server ends the watches that have caught up.
    pub cut_off_us: u64,
    /// How long all servers are to have told that they know a level before the group's rises.
    pub level_settled_us: u64,
    /// Whether sessions may end while requests of their clients are under way.
    pub short_sessions: bool,
    /// Answered writes of which a copy stays behind in the network, of a thousand; of first writes
    /// three times as many.
    pub late_copies: u64,
    /// How much of a long read a server answers at once.
    pub page_limits: PageLimits,
    /// Replicas compare their states every so many entries.
    pub state_hash_every: LogIndex,
    /// Whether the servers only ever hear from honest ones: then none may be disconnected, and
    /// every rule is checked.
    pub honest: bool,
}

impl Setup {
    /// What the release of a server goes by.
    pub fn limits_of(&self, server: usize) -> StateLimits {
        if server.is_multiple_of(2) { self.state_limits } else { self.other_limits }
    }

    /// Three servers on a good day.
    pub fn calm(seed: u64) -> Setup {
        Setup {
            seed,
            servers: 3,
            first_leader: 0,
            told: Vec::new(),
            ack: AckPolicy::All,
            in_sync_timeout: limits::IN_SYNC_TIMEOUT_DEFAULT,
            stall_timeout: limits::STALL_TIMEOUT,
            quality: Quality::GOOD,
            replication_delay: vec![Duration::ZERO; 3],
            sync_us_max: 400,
            apply_us_max: 200,
            checkpoints: 50,
            compactions: 0,
            fetch_failures: 0,
            piece_us_max: 5 * MILLISECOND,
            limits: NodeLimits::default(),
            transfers: TransferLimits::default(),
            held_entries_max: u64::MAX,
            garbage_collection: GarbageCollectionConfig::new(History::All),
            state_limits: StateLimits::default(),
            other_limits: StateLimits::default(),
            newest_level: 1,
            outdated: None,
            lease_notes: LeaseNotes::DEFAULT,
            cut_off_us: 3 * SECOND,
            level_settled_us: SECOND,
            short_sessions: false,
            late_copies: 0,
            page_limits: PageLimits::default(),
            state_hash_every: 8,
            honest: true,
        }
    }
}

/// Everything that can be going to happen. `life` is the server's when it was scheduled.
pub enum Event {
    /// A server's election clock.
    Tick {
        server: usize,
        life: u64,
    },
    /// A server's driver has no more input for now.
    Flush {
        server: usize,
        life: u64,
    },
    Deliver {
        from: usize,
        to: usize,
        epoch: u64,
        frame: Vec<u8>,
    },
    /// A server tries to connect to another.
    Dial {
        from: usize,
        to: usize,
        life: u64,
    },
    /// A server learns that its link broke.
    LinkLost {
        from: usize,
        to: usize,
        session: u64,
    },
    /// A server gives up a link on which it has heard nothing, if a partition is still in the way.
    LinkSilent {
        from: usize,
        to: usize,
        session: u64,
    },
    /// It is durable that a server's state was refuted.
    VerdictSetDown {
        server: usize,
        life: u64,
    },
    /// That it be so is not waited for any longer.
    VerdictOverdue {
        server: usize,
        life: u64,
    },
    Synced {
        server: usize,
        life: u64,
    },
    /// The state machine has applied the piece at hand.
    ApplyDone {
        server: usize,
        life: u64,
    },
    /// The core learns of it.
    Applied {
        server: usize,
        life: u64,
        outcomes: Vec<AppliedWrite>,
        summary: MachineSummary,
        leases: Vec<LeaseEvent>,
        point: AppliedPoint,
    },
    /// The loop learns up to where the store is durable.
    Checkpointed {
        server: usize,
        life: u64,
        index: LogIndex,
    },
    /// The loop learns what the applier did about a snapshot.
    SnapshotReport {
        server: usize,
        life: u64,
        report: SnapshotReport,
    },
    /// Log entries have been read from disk.
    Fetched {
        server: usize,
        life: u64,
        fetch: u64,
        range: (LogIndex, LogIndex),
        bytes_max: u64,
    },
    /// The next message of a link's stream arrives.
    Carry {
        from: usize,
        to: usize,
        epoch: u64,
    },
    /// The receiving end of a link learns that it broke.
    InboundLost {
        from: usize,
        to: usize,
    },
    /// A worker reads a piece of a snapshot.
    Piece {
        server: usize,
        life: u64,
        to: NodeId,
        transfer: u64,
        source: SnapshotSource,
        bytes_max: usize,
    },
    /// A client's request arrives at its server.
    Arrive {
        attempt: usize,
    },
    /// A worker answers a read.
    Get {
        server: usize,
        life: u64,
        attempt: usize,
    },
    /// An answer arrives at the client; a read's state stood at `read_at`.
    Answer {
        attempt: usize,
        reply: Reply,
        read_at: LogIndex,
    },
    /// A client loses an attempt: its connection broke, or it waited long enough.
    Abandon {
        attempt: usize,
    },
    /// A copy of a client's write, which was answered long ago, arrives at some server.
    LateCopy {
        client: usize,
        write: WriteRequest,
    },
    /// A client tries an operation again.
    Retry {
        operation: usize,
    },
    /// A client thinks of something to do.
    Think {
        client: usize,
    },
    /// Something happens to a client that watches.
    Watch {
        watcher: usize,
    },
    /// A holder of leases does the next thing.
    Hold {
        holder: usize,
    },
    /// Somebody who wants a lock does the next thing.
    Contend {
        rival: usize,
    },
    /// A holder's question arrives at its server.
    LeaseQuestion {
        server: usize,
        token: RequestToken,
    },
    /// The answer arrives at the holder.
    LeaseAnswer {
        token: RequestToken,
        reply: Reply,
    },
    /// A server that is down starts.
    Start {
        server: usize,
    },
    /// A server that was asked to stop has had its time.
    StopOverdue {
        server: usize,
        life: u64,
    },
    Strike,
    /// A fault of limited duration ends.
    Mend(Mend),
}

/// The whole simulated world.
pub struct World {
    /// Virtual microseconds since the beginning.
    pub now_us: u64,
    pub rng: Rng,
    pub trace: Trace,
    /// How it was made.
    pub setup: Setup,
    pub servers: Vec<Server>,
    /// What is between them.
    pub network: Network,
    pub clients: Vec<Client>,
    pub watchers: Vec<Watcher>,
    /// Connections of watchers so far.
    pub connections: u64,
    /// Everything clients ever asked.
    pub operations: Vec<Operation>,
    /// Each time they asked a server.
    pub attempts: Vec<Attempt>,
    /// Who holds leases, and what they have asked.
    pub holders: Vec<Holder>,
    pub lease_questions: Vec<Option<Asked>>,
    /// Who contends for a lock, and what they have come to.
    pub rivals: Vec<Rival>,
    pub contests: ContestBook,
    /// Late copies of writes that have arrived.
    pub copies: u64,
    pub checker: Checker,
    pub nemesis: Nemesis,
    /// What servers said on disconnecting a peer: (accuser, accused, reason).
    pub accusations: Vec<(usize, usize, String)>,
    /// A leader has doubted its own state: it tells no client what was previous.
    pub leader_in_doubt: bool,
    /// Views that were pinned to be sent, and snapshots that took a store's place.
    pub snapshots: (u64, u64),
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
}

impl World {
    /// A world whose servers start at once, blank.
    pub fn new(setup: Setup, trace: Trace) -> World {
        let mut servers = Vec::new();
        servers.resize_with(setup.servers, Server::default);
        for server in &mut servers {
            server.sync_us_max = setup.sync_us_max;
            server.apply_us_max = setup.apply_us_max;
        }
        let mut world = World {
            now_us: 0,
            rng: Rng::new(setup.seed),
            trace,
            network: Network::new(setup.servers, setup.quality),
            clients: Vec::new(),
            watchers: Vec::new(),
            connections: 0,
            operations: Vec::new(),
            attempts: Vec::new(),
            holders: Vec::new(),
            lease_questions: Vec::new(),
            rivals: Vec::new(),
            contests: ContestBook::default(),
            copies: 0,
            checker: Checker::new(node_id(setup.first_leader), setup.state_limits),
            nemesis: Nemesis::default(),
            accusations: Vec::new(),
            leader_in_doubt: false,
            snapshots: (0, 0),
            queue: BTreeMap::new(),
            scheduled: 0,
            servers,
            setup,
        };
        for server in 0..world.setup.servers {
            let delay_us = world.rng.range(0..=20 * MILLISECOND);
            world.after(delay_us, Event::Start { server });
        }
        world
    }

    pub fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    /// Schedules an event; those of one moment happen in the order they were scheduled.
    pub fn at(&mut self, at_us: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((at_us, self.scheduled), event);
    }

    pub fn now_of(&self, server: usize) -> Now {
        let wall_us = EPOCH_US + self.now_us as i64 + self.servers[server].clock_offset_us;
        Now { monotonic_us: self.now_us, wall_us }
    }

    pub fn run_for(&mut self, duration_us: u64) -> Verdict {
        self.run_until(duration_us, |_| false).map(|_| ())
    }

    /// Lets time pass until the condition holds (true) or the time is over (false).
    pub fn run_until(
        &mut self,
        limit_us: u64,
        mut done: impl FnMut(&World) -> bool,
    ) -> Result<bool, Violation> {
        let end_us = self.now_us + limit_us;
        while !done(self) {
            let Some(next) = self.queue.first_entry().filter(|next| next.key().0 <= end_us) else {
                self.now_us = end_us;
                return Ok(false);
            };
            let at_us = next.key().0;
            let event = next.remove();
            self.now_us = at_us;
            self.step(event)?;
        }
        Ok(true)
    }

    fn step(&mut self, event: Event) -> Verdict {
        if let Some(server) = event.server() {
            let until_us = self.servers[server].paused_until_us;
            if until_us > self.now_us {
                self.at(until_us, event);
                return Ok(());
            }
        }
        if let Some(until_us) = event.hung_until(&self.servers)
            && until_us > self.now_us
        {
            // It may be mended sooner.
            self.at(until_us.min(self.now_us + 20 * MILLISECOND), event);
            return Ok(());
        }
        if let Some((server, life)) = event.belongs_to()
            && self.servers[server].life != life
        {
            return Ok(());
        }
        match event {
            Event::Tick { server, .. } => self.tick(server),
            Event::Flush { server, .. } => self.flush(server),
            Event::Deliver { from, to, epoch, frame } => self.deliver(from, to, epoch, &frame),
            Event::Dial { from, to, .. } => self.dial(from, to),
            Event::LinkLost { from, to, session } => self.link_lost(from, to, session),
            Event::LinkSilent { from, to, session } => {
                self.link_silent(from, to, session);
                Ok(())
            }
            Event::Synced { server, .. } => self.synced(server),
            Event::VerdictSetDown { server, .. } => self.verdict_set_down(server),
            Event::VerdictOverdue { server, .. } => self.verdict_overdue(server),
            Event::ApplyDone { server, .. } => self.apply_done(server),
            Event::Applied { server, outcomes, summary, leases, point, .. } => {
                self.input(server, Input::Applied { outcomes, summary, leases, point })
            }
            Event::Fetched { server, fetch, range, bytes_max, .. } => {
                self.fetched(server, fetch, range, bytes_max)
            }
            Event::Checkpointed { server, index, .. } => self.checkpointed(server, index),
            Event::SnapshotReport { server, report, .. } => self.snapshot_report(server, report),
            Event::Carry { from, to, epoch } => self.carry(from, to, epoch),
            Event::InboundLost { from, to } => self.inbound_lost(from, to),
            Event::Piece { server, to, transfer, source, bytes_max, .. } => {
                self.piece(server, to, transfer, source, bytes_max)
            }
            Event::Arrive { attempt } => self.arrive(attempt),
            Event::LateCopy { client, write } => self.late_copy(client, write),
            Event::Get { server, attempt, .. } => self.get(server, attempt),
            Event::Answer { attempt, reply, read_at } => self.answer(attempt, reply, read_at),
            Event::Abandon { attempt } => {
                self.abandon(attempt);
                Ok(())
            }
            Event::Retry { operation } => {
                self.send_attempt(operation);
                Ok(())
            }
            Event::Hold { holder } => {
                self.hold(holder);
                Ok(())
            }
            Event::Contend { rival } => self.contend(rival),
            Event::LeaseQuestion { server, token } => self.lease_question(server, token),
            Event::LeaseAnswer { token, reply } => self.lease_answer(token, reply),
            Event::Think { client } => {
                self.think(client);
                Ok(())
            }
            Event::Watch { watcher } => self.watch(watcher),
            Event::Start { server } => self.start(server),
            Event::StopOverdue { server, .. } => self.stop_overdue(server),
            Event::Strike => self.strike(),
            Event::Mend(mend) => self.mend(mend),
        }
    }
}

impl Event {
    /// The server at which it happens, if at one: a pause delays it.
    fn server(&self) -> Option<usize> {
        match self {
            Event::Deliver { to, .. } | Event::Carry { to, .. } | Event::InboundLost { to, .. } => {
                Some(*to)
            }
            Event::LinkLost { from, .. } | Event::LinkSilent { from, .. } => Some(*from),
            Event::LeaseQuestion { server, .. } => Some(*server),
            other => other.belongs_to().map(|(server, _)| server),
        }
    }

    /// Until when the disk that this waits for hangs.
    fn hung_until(&self, servers: &[Server]) -> Option<u64> {
        match *self {
            Event::Synced { server, .. } => Some(servers[server].log_hung_until_us),
            Event::VerdictSetDown { server, .. } => {
                let Server { log_hung_until_us, verdict_hung_until_us, .. } = servers[server];
                Some(log_hung_until_us.max(verdict_hung_until_us))
            }
            Event::ApplyDone { server, .. } => Some(servers[server].store_hung_until_us),
            // The log is read from the same disk that it is written to.
            Event::Fetched { server, .. } => Some(servers[server].log_hung_until_us),
            _ => None,
        }
    }

    /// The life of the server to which it belongs.
    fn belongs_to(&self) -> Option<(usize, u64)> {
        match *self {
            Event::Tick { server, life }
            | Event::Flush { server, life }
            | Event::Dial { from: server, life, .. }
            | Event::Synced { server, life }
            | Event::VerdictSetDown { server, life }
            | Event::VerdictOverdue { server, life }
            | Event::ApplyDone { server, life }
            | Event::Applied { server, life, .. }
            | Event::Fetched { server, life, .. }
            | Event::Piece { server, life, .. }
            | Event::SnapshotReport { server, life, .. }
            | Event::Checkpointed { server, life, .. }
            | Event::Get { server, life, .. }
            | Event::StopOverdue { server, life } => Some((server, life)),
            _ => None,
        }
    }
}
