//! The store's service on the event loop: connections in front, the node core behind.
//!
//! This is the wiring, and the only place where sockets, core, workers and writing threads meet. It
//! decides nothing about consensus or data: it turns frames into the core's inputs, outputs into
//! frames and work, and keeps the books of connections.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;

use super::clients::Clients;
use super::config::ServerConfig;
use super::console::Console;
use super::early::EarlyReads;
use super::links::Link;
use super::snapshots::{SnapshotWork, Step, Transfers};
use super::threads::{ApplierWork, LogWork, Report, Writer};
use super::watch::{News, Watch};
use super::work::{Completion, Job};
use crate::limits;
use crate::net::{CloseReason, ConnectionId, ConnectionMap, Net, SendLimits, Service};
use crate::node::core::Node;
use crate::node::{Input, Notice, Now, Output, RequestToken};
use crate::text::sentence;
use crate::types::{AppliedPoint, ClusterId, NodeId};
use crate::wire::codec;
use crate::wire::message::{
    ErrorCode, Hello, HelloRole, Message, PROTOCOL_VERSION, PeerMessage, Reply,
};
use crate::workers::pool::Pool;

/// What a connection turned out to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Accepted; the greeting is not done.
    Unknown,
    /// A client; its books are in [`Clients`].
    Client,
    /// Another server sends on it.
    Inbound(NodeId),
    /// Dialled by this server.
    Outbound(NodeId),
}

/// Everything a server is made of, handed to the service once it is opened.
pub(super) struct Parts {
    pub config: ServerConfig,
    /// Clients connected at once.
    pub clients_max: usize,
    pub incarnation: u64,
    pub node: Node,
    pub console: Console,
    pub pool: Pool<Job, Completion>,
    pub log: Writer<LogWork>,
    pub applier: Writer<ApplierWork>,
    /// Where the numbers of snapshot transfers start; random.
    pub first_transfer: u64,
    pub reports: Receiver<Report>,
    /// Anything here means: stop.
    pub stop: Receiver<()>,
}

/// The service.
pub(super) struct StoreService {
    pub(super) parts: Parts,
    pub(super) me: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) started: Instant,
    pub(super) links: Vec<Link>,
    pub(super) connections: ConnectionMap<Kind>,
    pub(super) clients: Clients,
    pub(super) early: EarlyReads,
    pub(super) transfers: Transfers,
    watch: Watch,
    outputs: Vec<Output>,
    /// The time as the core is told it, and the iteration it was read in.
    now: (Instant, Now),
    /// When a stop was asked for.
    stopping_since: Option<Instant>,
    /// The core has stopped: no request is taken any more.
    pub(super) stopped: bool,
    /// Why the loop ended, when something broke.
    failure: Option<String>,
}

impl StoreService {
    pub fn new(parts: Parts, me: NodeId) -> StoreService {
        let now = Instant::now();
        let others =
            parts.config.servers.iter().enumerate().map(|(i, a)| (NodeId(i as u64 + 1), *a));
        let links = others.filter(|(node, _)| *node != me).map(|(n, a)| Link::new(n, a, now));
        StoreService {
            me,
            cluster: parts.config.cluster_id(),
            started: now,
            links: links.collect(),
            connections: ConnectionMap::default(),
            clients: Clients::new(parts.config.value_bytes_max),
            early: EarlyReads::default(),
            transfers: Transfers::new(parts.first_transfer),
            watch: Watch::default(),
            outputs: Vec::new(),
            now: (now, now_at(now, now)),
            stopping_since: None,
            stopped: false,
            failure: None,
            parts,
        }
    }

    /// Ends the threads in order; the error is what broke, if anything did.
    pub fn finish(self) -> Result<(), String> {
        let Parts { log, applier, pool, .. } = self.parts;
        if let Err(panicked) = pool.shut_down() {
            log::error!("{panicked}");
        }
        log.finish();
        applier.finish();
        self.failure.map_or(Ok(()), Err)
    }

    /// The time of this iteration.
    fn now(&mut self, net: &Net) -> Now {
        if self.now.0 != net.now() {
            self.now = (net.now(), now_at(net.now(), self.started));
        }
        self.now.1
    }

    pub(super) fn input(&mut self, net: &Net, input: Input) {
        let now = self.now(net);
        self.parts.node.handle(now, input, &mut self.outputs);
    }

    pub(super) fn link_mut(&mut self, node: NodeId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.node == node)
    }

    // ---- sending -----------------------------------------------------------------------------

    pub(super) fn send(&self, net: &mut Net, connection: ConnectionId, message: &Message) {
        net.send(connection, |out| encode(message, out));
    }

    pub(super) fn refuse(&self, net: &mut Net, connection: ConnectionId, reason: String) {
        // The reason may quote what the other side sent.
        let reason = sentence(&reason);
        if let Some(address) = net.peer_address(connection) {
            log::info!("refusing {address}: {reason}");
        }
        self.send(net, connection, &Message::Refused { reason });
        net.close_after_flush(connection);
    }

    fn send_to_peer(&mut self, net: &mut Net, to: NodeId, message: PeerMessage) {
        let Some(connection) = self.link_mut(to).and_then(|link| link.up()) else { return };
        let resent_by_protocol = matches!(message, PeerMessage::Raft(_));
        let message = Message::Peer(message);
        if resent_by_protocol {
            // A full queue drops it, as a lossy network would.
            let _ = net.try_send(connection, |out| encode(&message, out));
        } else {
            // A full queue closes the link, so that the other side knows that something is lost.
            net.send(connection, |out| encode(&message, out));
        }
    }

    pub(super) fn reply(&mut self, net: &mut Net, token: RequestToken, body: Reply) {
        let connection = ConnectionId::from_u64(token.connection);
        if matches!(&body, Reply::Error(error) if error.code == ErrorCode::Busy) {
            self.watch.busy();
        }
        self.send(net, connection, &Message::Reply { id: token.request, body });
        self.answered(net, token);
    }

    // ---- doing what the core wants -----------------------------------------------------------

    fn carry_out(&mut self, net: &mut Net) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Send { to, message } => self.send_to_peer(net, to, message),
                Output::Reply { token, reply } => {
                    self.clients.unpark(token);
                    self.reply(net, token, reply);
                }
                Output::Persist(batch) => self.parts.log.push(LogWork::Append(batch)),
                Output::Apply { entries, answering } => {
                    self.parts.applier.push(ApplierWork::Apply { entries, answering });
                }
                Output::ReadReady { token } => {
                    if let Some((client, request)) = self.clients.unpark(token) {
                        self.clients.read(net, token, client, request);
                    }
                }
                Output::Fetch { fetch, low, high, bytes_max } => {
                    let job = Job::Fetch { fetch, low, high, bytes_max };
                    if self.parts.pool.submit(job).is_err() {
                        self.input(net, Input::Fetched { fetch, entries: Vec::new() });
                    }
                }
                Output::SendSnapshot { to, leader_term } => {
                    let steps = self.transfers.start(net.now(), to, leader_term);
                    self.take_steps(net, steps);
                }
                Output::InstallSnapshot { number, snapshot, hard_state } => {
                    let anew = LogWork::BeginAnew { number, snapshot, hard_state };
                    self.parts.log.push(anew);
                    let steps = self.transfers.installing();
                    self.take_steps(net, steps);
                }
                Output::DiscardSnapshot => {
                    let steps = self.transfers.discarded();
                    self.take_steps(net, steps);
                }
                Output::Console(event) => self.parts.console.show(event),
                Output::Notice(notice) => {
                    let level = match notice {
                        Notice::Diverged { .. } => log::Level::Error,
                        Notice::OutOfSync { .. } => log::Level::Warn,
                        _ => log::Level::Info,
                    };
                    log::log!(level, "{notice}");
                }
                Output::Disconnect { peer, reason } => {
                    // More than one message may have been wrong before this was carried out.
                    let inbound = self.link_mut(peer).and_then(|link| link.inbound.take());
                    if let Some(connection) = inbound {
                        log::warn!("closing the link from server {peer}: {reason}");
                        self.refuse(net, connection, reason);
                    }
                }
                Output::Stopped => self.stopped = true,
            }
        }
        // Answers above may have made the core speak again; the capacity is kept.
        outputs.append(&mut self.outputs);
        self.outputs = outputs;
    }

    fn report(&mut self, net: &mut Net, report: Report) {
        let steps = match report {
            Report::Done(input) => return self.input(net, input),
            Report::Checkpointed(index) => return self.parts.log.push(LogWork::Compact(index)),
            Report::LogBegunAnew { number } => {
                // The store follows before anything that is committed after it is applied.
                self.parts.applier.push(ApplierWork::Snapshot(SnapshotWork::Install));
                return self.input(net, Input::Persisted { number });
            }
            Report::SnapshotInstalled { point, upkeep } => {
                log::info!("the snapshot to log index {} is in place", point.index);
                self.transfers.installed();
                return self.input(net, Input::Applied { outcomes: Vec::new(), point, upkeep });
            }
            Report::Failed(failure) => return self.fail(net, failure),
            Report::SnapshotPrepared { to, id, source } => {
                let node = &self.parts.node;
                self.transfers.prepared(to, id, source, |index| node.term_at(index))
            }
            Report::SnapshotStored { id, stored } => self.transfers.stored(id, stored),
            Report::SnapshotStaged { id } => self.transfers.staged(id),
            Report::SnapshotFailed { id, reason } => self.transfers.failed(id, &reason),
        };
        self.take_steps(net, steps);
    }

    pub(super) fn take_steps(&mut self, net: &mut Net, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Send { to, message } => self.send_to_peer(net, to, message),
                Step::Store(work) => self.parts.applier.push(ApplierWork::Snapshot(work)),
                Step::Tell(input) => self.input(net, input),
                Step::Read { to, id, source } => {
                    let job = Job::SnapshotChunk { to, id, source };
                    // Clients' reads may fill the queue for a moment; the snapshot begins again.
                    if self.parts.pool.submit(job).is_err() {
                        let steps = self.transfers.lost(to);
                        self.take_steps(net, steps);
                    }
                }
            }
        }
    }

    fn peer_message(&mut self, net: &mut Net, from: NodeId, message: PeerMessage) {
        let now = net.now();
        let steps = match message {
            PeerMessage::Snapshot { id, snapshot, timestamp, hash } => {
                let status = self.parts.node.status();
                let acceptable = status.leader == Some(from)
                    && status.term == snapshot.leader_term
                    && status.commit < snapshot.index;
                let point = AppliedPoint { index: snapshot.index, timestamp, hash };
                self.transfers.offered(now, from, id, snapshot, point, acceptable)
            }
            PeerMessage::SnapshotChunk { id, sequence, data } => {
                self.transfers.chunk(now, from, id, sequence, data)
            }
            PeerMessage::SnapshotEnd { id, chunks } => self.transfers.ended(now, from, id, chunks),
            PeerMessage::SnapshotAnswer { id, stored, outcome } => {
                self.transfers.answered(now, from, id, stored, outcome)
            }
            message => return self.input(net, Input::Peer { from, message }),
        };
        self.take_steps(net, steps);
    }

    fn tell_news(&mut self, net: &Net) {
        let Now { wall_us, .. } = self.now(net);
        let newest = self.parts.node.newest_timestamp();
        for news in self.watch.look(net.now(), wall_us, newest.0) {
            match news {
                News::ClockBehind(behind) => log::warn!(
                    "this machine's clock is {behind:.0?} behind the newest version: versions go on counting \
                     from there, and are no times of the day until it has caught up; set the clock"
                ),
                News::ClockCaughtUp => {
                    log::info!("this machine's clock has caught up with the versions")
                }
                News::Busy(count) => log::warn!(
                    "{count} requests were refused with BUSY, to be tried again in a moment: \
                     more is asked than this server, or the group, can do"
                ),
            }
        }
    }

    fn fail(&mut self, net: &mut Net, failure: String) {
        log::error!("stopping at once: {failure}");
        self.failure.get_or_insert(failure);
        net.exit();
    }
}

/// Appends one frame. Messages made here fit their caps by construction (see the relations checked
/// in `limits`); one that did not would be lost, not sent in half.
pub(super) fn encode(message: &Message, out: &mut Vec<u8>) {
    if let Err(error) = codec::encode(message, limits::PEER_FRAME_BYTES_MAX, out) {
        log::error!("cannot send a message: {error}");
    }
}

fn refused(reason: String) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(&Message::Refused { reason }, &mut frame);
    frame
}

/// What someone over the limit on connections is told.
pub(super) const NO_ROOM: &str = "this server has no room for another connection: try again later";

fn now_at(monotonic: Instant, started: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        monotonic_us: monotonic.saturating_duration_since(started).as_micros() as u64,
        // A clock beyond the year 294,000 is a broken one.
        wall_us: i64::try_from(wall.as_micros()).unwrap_or(0),
    }
}

impl Service for StoreService {
    fn on_start(&mut self, net: &mut Net) {
        self.dial_due_links(net);
    }

    fn on_accepted(&mut self, _net: &mut Net, connection: ConnectionId, _peer: SocketAddr) {
        self.connections.insert(connection, Kind::Unknown);
    }

    fn on_connected(&mut self, net: &mut Net, connection: ConnectionId) {
        let role = HelloRole::Server { node: self.me, incarnation: self.parts.incarnation };
        let hello = Hello { protocol: PROTOCOL_VERSION, cluster: self.cluster, role };
        let limits = SendLimits {
            pause_bytes: limits::PEER_SEND_BYTES_MAX,
            max_bytes: limits::PEER_SEND_BYTES_MAX,
        };
        net.set_send_limits(connection, limits);
        self.send(net, connection, &Message::Hello(hello));
    }

    fn on_dial_failed(&mut self, net: &mut Net, connection: ConnectionId, error: &io::Error) {
        if let Some(Kind::Outbound(peer)) = self.connections.remove(&connection) {
            self.lost_outbound(net, connection, peer, &error.to_string());
        }
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        let Some(kind) = self.connections.get(&connection).copied() else { return };
        let message = match (codec::decode(frame), kind) {
            (Ok(message), _) => message,
            (Err(error), Kind::Outbound(peer)) => {
                return self.give_up_outbound(net, connection, peer, &error.to_string());
            }
            (Err(error), _) => return self.undecodable(net, connection, frame, &error),
        };
        match kind {
            Kind::Unknown => self.greeting(net, connection, message),
            Kind::Client => self.client_message(net, connection, message),
            Kind::Inbound(from) => match message {
                Message::Peer(message) => self.peer_message(net, from, message),
                Message::Ping { nonce } => self.send(net, connection, &Message::Pong { nonce }),
                _ => self.refuse(net, connection, "a server sends PEER and PING only".into()),
            },
            Kind::Outbound(peer) => self.answer_of_peer(net, connection, peer, message),
        }
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        match self.connections.remove(&connection) {
            Some(Kind::Outbound(peer)) => {
                self.lost_outbound(net, connection, peer, &reason.to_string());
            }
            Some(Kind::Inbound(peer)) => {
                if let Some(link) = self.link_mut(peer)
                    && link.inbound == Some(connection)
                {
                    link.inbound = None;
                    let steps = self.transfers.lost(peer);
                    self.take_steps(net, steps);
                }
            }
            Some(Kind::Client) => {
                if let Some(address) = self.clients.remove(net, connection) {
                    let level =
                        if reason.is_ordinary() { log::Level::Debug } else { log::Level::Info };
                    log::log!(level, "client {address} is disconnected: {reason}");
                }
            }
            Some(Kind::Unknown) => log::debug!("a connection without a greeting: {reason}"),
            None => {}
        }
    }

    fn on_wake(&mut self, net: &mut Net) {
        let until = Instant::now() + limits::LOOP_STAGE_TIME;
        while let Ok(report) = self.parts.reports.try_recv() {
            self.report(net, report);
            if Instant::now() >= until {
                net.wake_again();
                break;
            }
        }
        while let Some(completion) = self.parts.pool.collect() {
            match completion {
                Completion::Reply { token, granted, frame } => {
                    let connection = ConnectionId::from_u64(token.connection);
                    self.clients.read_done(net, token, granted);
                    net.send_owned(connection, frame);
                    self.answered(net, token);
                }
                Completion::TooLong { read, bytes } => {
                    self.clients.read_done(net, read.token, read.granted);
                    self.clients.hold(net, read, bytes);
                }
                Completion::Fetched { fetch, entries } => {
                    self.input(net, Input::Fetched { fetch, entries });
                }
                Completion::SnapshotChunk { to, id, source, chunk } => {
                    let steps = self.transfers.read(to, id, source, chunk);
                    self.take_steps(net, steps);
                }
            }
            if Instant::now() >= until {
                net.wake_again();
                break;
            }
        }
        if self.stopping_since.is_none() && self.parts.stop.try_recv().is_ok() {
            log::info!("stopping: no new requests are taken");
            self.stopping_since = Some(net.now());
            net.stop_accepting();
            self.input(net, Input::Stop);
        }
    }

    fn on_tick(&mut self, net: &mut Net) {
        self.input(net, Input::Tick);
        self.tell_news(net);
        let overdue = self.early.take_overdue(net.now());
        self.read_early(net, overdue);
        let steps = self.transfers.tick(net.now());
        self.take_steps(net, steps);
        self.keep_links_alive(net);
        self.dial_due_links(net);
        let patience = limits::SHUTDOWN_GRACE + limits::HANDOVER_TIMEOUT;
        let overdue =
            self.stopping_since.is_some_and(|since| net.now().duration_since(since) > patience);
        if overdue {
            log::warn!("stopping now: some requests are still without an answer");
            net.exit();
        }
    }

    fn on_idle(&mut self, _net: &mut Net, connection: ConnectionId) -> bool {
        !self.clients.waits(connection)
    }

    fn before_sleep(&mut self, net: &mut Net) {
        let now = self.now(net);
        self.parts.node.flush(now, &mut self.outputs);
        while !self.outputs.is_empty() {
            self.carry_out(net);
        }
        let due = self.parts.node.flush_due_us();
        net.set_alarm(due.map(|due_us| self.started + Duration::from_micros(due_us)));
        let reached = self.early.take_reached(self.parts.node.applied_point().timestamp);
        self.read_early(net, reached);
        if self.parts.node.awaits_application() || !self.early.is_empty() {
            self.parts.applier.hurry();
        }
        self.submit_reads(net);
        // Whoever has asked already, plain reads included, gets an answer first.
        if self.stopped && self.clients.nothing_under_way() {
            log::info!("stopping: nothing is under way");
            net.exit();
        }
    }

    fn farewell(&mut self, connection: ConnectionId, reason: &CloseReason) -> Vec<u8> {
        let reason = match (self.connections.get(&connection), reason) {
            (Some(Kind::Outbound(_)) | None, _) => return Vec::new(),
            (Some(_), CloseReason::Deadline) => {
                let seconds = limits::HANDSHAKE_TIMEOUT.as_secs();
                format!("no whole HELLO came within {seconds} seconds")
            }
            (Some(_), reason) => reason.to_string(),
        };
        refused(reason)
    }

    fn refusal(&mut self, _peer: SocketAddr) -> Vec<u8> {
        refused(NO_ROOM.to_owned())
    }
}
