//! The store's service on the event loop: connections in front, the node core behind.
//!
//! This is the wiring, and the only place where sockets, core, workers and writing threads meet. It
//! decides nothing about consensus or data: it turns frames into the core's inputs, outputs into
//! frames and work, and keeps the books of connections.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;
use rand::Rng;

use super::config::ServerConfig;
use super::console::Console;
use super::links::{Link, Outbound};
use super::threads::{Report, Writer};
use super::work::{Completion, Job, ReadJob};
use crate::limits;
use crate::net::{CloseReason, ConnectionId, Net, SendLimits, Service};
use crate::node::core::Node;
use crate::node::{Input, Now, Output, RequestToken};
use crate::types::{ClusterId, LogBatch, LogEntry, NodeId};
use crate::wire::codec;
use crate::wire::message::{
    ErrorCode, ErrorReply, GetRequest, Hello, HelloRole, Message, PROTOCOL_VERSION, PeerMessage,
    Reply, Request, ServerStatus, Welcome,
};
use crate::workers::pool::{Pool, SubmitError};

/// What a connection turned out to be.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Accepted; the greeting is not done.
    Unknown,
    /// A client.
    Client {
        address: SocketAddr,
        /// Requests under way.
        under_way: usize,
        paused: bool,
    },
    /// Another server sends on it.
    Inbound(NodeId),
    /// Dialled by this server.
    Outbound(NodeId),
}

/// Everything a server is made of, handed to the service once it is opened.
pub(super) struct Parts {
    pub config: ServerConfig,
    pub incarnation: u64,
    pub node: Node,
    pub console: Console,
    pub pool: Pool<Job, Completion>,
    pub log: Writer<LogBatch>,
    pub applier: Writer<Vec<LogEntry>>,
    pub reports: Receiver<Report>,
    /// Anything here means: stop.
    pub stop: Receiver<()>,
}

/// The service.
pub(super) struct StoreService {
    parts: Parts,
    me: NodeId,
    cluster: ClusterId,
    started: Instant,
    links: Vec<Link>,
    connections: HashMap<ConnectionId, Kind>,
    /// Plain reads gathered in this iteration.
    reads: Vec<Job>,
    /// Linearizable reads that wait for the core.
    parked: HashMap<RequestToken, (SocketAddr, GetRequest)>,
    outputs: Vec<Output>,
    /// When a stop was asked for.
    stopping_since: Option<Instant>,
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
            connections: HashMap::new(),
            reads: Vec::new(),
            parked: HashMap::new(),
            outputs: Vec::new(),
            stopping_since: None,
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

    fn now(&self, net: &Net) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic_us: net.now().saturating_duration_since(self.started).as_micros() as u64,
            // A clock beyond the year 294,000 is a broken one.
            wall_us: i64::try_from(wall.as_micros()).unwrap_or(0),
        }
    }

    fn input(&mut self, net: &Net, input: Input) {
        let now = self.now(net);
        self.parts.node.handle(now, input, &mut self.outputs);
    }

    fn link_mut(&mut self, node: NodeId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.node == node)
    }

    // ---- sending -----------------------------------------------------------------------------

    fn send(&self, net: &mut Net, connection: ConnectionId, message: &Message) {
        net.send(connection, |out| encode(message, out));
    }

    fn refuse(&self, net: &mut Net, connection: ConnectionId, reason: String) {
        log::info!("refusing {:?}: {reason}", net.peer_address(connection));
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

    fn reply(&mut self, net: &mut Net, token: RequestToken, body: Reply) {
        let connection = ConnectionId::from_u64(token.connection);
        self.send(net, connection, &Message::Reply { id: token.request, body });
        self.answered(net, connection);
    }

    /// Books an answer to a client, and lets it go on asking if it was held back.
    fn answered(&mut self, net: &mut Net, connection: ConnectionId) {
        if let Some(Kind::Client { under_way, paused, .. }) = self.connections.get_mut(&connection)
        {
            *under_way = under_way.saturating_sub(1);
            if *paused && *under_way <= limits::REQUESTS_PER_CONNECTION_MAX / 2 {
                *paused = false;
                net.resume_reading(connection);
            }
        }
    }

    // ---- receiving ---------------------------------------------------------------------------

    fn greeting(&mut self, net: &mut Net, connection: ConnectionId, message: Message) {
        let Message::Hello(Hello { protocol, cluster, role }) = message else {
            return self.refuse(net, connection, "the first message must be HELLO".into());
        };
        if protocol != PROTOCOL_VERSION {
            let reason = format!(
                "this server speaks protocol version {PROTOCOL_VERSION} and not {protocol}: \
                 use a client of its release"
            );
            return self.refuse(net, connection, reason);
        }
        let any = cluster.0 == 0 && matches!(role, HelloRole::Client);
        if cluster != self.cluster && !any {
            let reason = format!(
                "this server belongs to cluster {} and not to {cluster}: check the server lists",
                self.cluster
            );
            return self.refuse(net, connection, reason);
        }
        let status = self.parts.node.status();
        let welcome = Message::Welcome(Welcome {
            protocol: PROTOCOL_VERSION,
            cluster: self.cluster,
            node: self.me,
            incarnation: self.parts.incarnation,
            last_index: status.last_index,
            term: status.term,
        });
        match role {
            HelloRole::Client => {
                let Some(address) = net.peer_address(connection) else { return };
                let kind = Kind::Client { address, under_way: 0, paused: false };
                self.connections.insert(connection, kind);
                // Whatever --max-value says: a value that is too long for it deserves an answer.
                let cap = limits::client_frame_bytes_max(limits::VALUE_BYTES_MAX);
                net.set_frame_cap(connection, cap);
                net.set_idle_timeout(connection, Some(limits::CLIENT_IDLE_TIMEOUT));
            }
            HelloRole::Server { node, incarnation } => {
                let Some(link) = self.link_mut(node) else {
                    let reason = format!("server {node} is not another server of this group");
                    return self.refuse(net, connection, reason);
                };
                let replaced = link.inbound.replace(connection);
                let outdated = if link.met(incarnation) { link.up() } else { None };
                for old in replaced.into_iter().chain(outdated) {
                    net.close(old);
                }
                self.connections.insert(connection, Kind::Inbound(node));
                net.set_frame_cap(connection, limits::PEER_FRAME_BYTES_MAX);
            }
        }
        net.set_deadline(connection, None);
        self.send(net, connection, &welcome);
    }

    fn welcomed(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        peer: NodeId,
        message: Message,
    ) {
        let trouble = match message {
            Message::Welcome(welcome) if welcome.cluster != self.cluster => {
                format!("it belongs to another cluster, {}", welcome.cluster)
            }
            Message::Welcome(welcome) if welcome.node != peer => {
                format!("it says it is server {}", welcome.node)
            }
            Message::Welcome(Welcome { incarnation, last_index, term, .. }) => {
                let Some(link) = self.link_mut(peer) else { return };
                link.came_up(connection);
                let outdated = if link.met(incarnation) { link.inbound.take() } else { None };
                if let Some(old) = outdated {
                    net.close(old);
                }
                net.set_deadline(connection, None);
                return self.input(net, Input::PeerUp { peer, last_index, term });
            }
            Message::Refused { reason } => format!("it refuses this server: {reason}"),
            _ => "it does not answer the greeting".to_owned(),
        };
        let random = rand::rng().next_u64();
        let now = net.now();
        if let Some(link) = self.link_mut(peer) {
            link.went_down(now, random, &trouble);
        }
        self.connections.remove(&connection);
        net.close(connection);
    }

    fn client_message(&mut self, net: &mut Net, connection: ConnectionId, message: Message) {
        match message {
            Message::Request { id, body } => self.request(net, connection, id, body),
            Message::Ping { nonce } => self.send(net, connection, &Message::Pong { nonce }),
            Message::Pong { .. } => {}
            _ => self.refuse(net, connection, "a client sends REQUEST and PING only".into()),
        }
    }

    fn request(&mut self, net: &mut Net, connection: ConnectionId, id: u64, body: Request) {
        let Some(Kind::Client { address, under_way, paused }) =
            self.connections.get_mut(&connection)
        else {
            return;
        };
        let client = *address;
        *under_way += 1;
        if *under_way >= limits::REQUESTS_PER_CONNECTION_MAX && !*paused {
            *paused = true;
            net.pause_reading(connection);
        }
        let token = RequestToken { connection: connection.to_u64(), request: id };
        match body {
            Request::Write(write) => self.input(net, Input::Write { token, client, write }),
            Request::Get(request) if request.linearizable => {
                if self.parked.insert(token, (client, request)).is_some() {
                    // Two outstanding requests under one id: the protocol forbids it, and neither
                    // could be told from the other.
                    return self.refuse(net, connection, format!("request id {id} is in use"));
                }
                self.input(net, Input::Read { token });
            }
            Request::Get(request) => self.reads.push(Job::Read(ReadJob { token, client, request })),
            Request::Status => {
                let status = Reply::StatusOk(Box::new(self.status(net)));
                self.reply(net, token, status);
            }
        }
    }

    fn status(&self, net: &Net) -> ServerStatus {
        let status = self.parts.node.status();
        let config = &self.parts.config;
        let address = |node: NodeId| {
            let at = config.servers.get(node.0 as usize - 1);
            at.map_or_else(|| node.to_string(), SocketAddr::to_string)
        };
        let of_clients = |kind: &&Kind| matches!(kind, Kind::Client { .. });
        let of_servers = |kind: &&Kind| matches!(kind, Kind::Inbound(_) | Kind::Outbound(_));
        ServerStatus {
            address: config.listen.to_string(),
            node: self.me,
            cluster: self.cluster,
            role: status.role,
            leader: status.leader.map(address),
            term: status.term,
            commit: status.commit,
            applied: status.applied.index,
            applied_timestamp: status.applied.timestamp,
            last_index: status.last_index,
            in_sync: status.in_sync.into_iter().map(address).collect(),
            client_connections: self.connections.values().filter(of_clients).count() as u32,
            server_connections: self.connections.values().filter(of_servers).count() as u32,
            uptime_ms: net.now().saturating_duration_since(self.started).as_millis() as u64,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    // ---- doing what the core wants -----------------------------------------------------------

    fn carry_out(&mut self, net: &mut Net) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Send { to, message } => self.send_to_peer(net, to, message),
                Output::Reply { token, reply } => {
                    self.parked.remove(&token);
                    self.reply(net, token, reply);
                }
                Output::Persist(batch) => self.parts.log.push(batch),
                Output::Apply(entries) => self.parts.applier.push(entries),
                Output::ReadReady { token } => {
                    if let Some((client, request)) = self.parked.remove(&token) {
                        self.reads.push(Job::Read(ReadJob { token, client, request }));
                    }
                }
                Output::Fetch { fetch, low, high, bytes_max } => {
                    let job = Job::Fetch { fetch, low, high, bytes_max };
                    if self.parts.pool.submit(job).is_err() {
                        self.input(net, Input::Fetched { fetch, entries: Vec::new() });
                    }
                }
                Output::SendSnapshot { to, .. } => {
                    self.input(net, Input::SnapshotSent { to, complete: false })
                }
                Output::InstallSnapshot { .. } | Output::DiscardSnapshot => {}
                Output::Console(event) => self.parts.console.show(event),
                Output::Notice(notice) => log::info!("{notice}"),
                Output::Disconnect { peer, reason } => {
                    log::warn!("closing the link from server {peer}: {reason}");
                    let inbound = self.link_mut(peer).and_then(|link| link.inbound.take());
                    if let Some(connection) = inbound {
                        net.close(connection);
                    }
                }
                Output::Stopped => {
                    log::info!("stopping: nothing is under way");
                    net.exit();
                }
            }
        }
        // Answers above may have made the core speak again; the capacity is kept.
        outputs.append(&mut self.outputs);
        self.outputs = outputs;
    }

    fn submit_reads(&mut self, net: &mut Net) {
        while !self.reads.is_empty() {
            let rest = self.reads.split_off(self.reads.len().min(limits::READS_PER_BATCH_MAX));
            let batch = std::mem::replace(&mut self.reads, rest);
            if let Err(SubmitError::Full(refused) | SubmitError::Stopped(refused)) =
                self.parts.pool.submit_batch(batch)
            {
                for job in refused {
                    let Job::Read(ReadJob { token, .. }) = job else { continue };
                    let busy = ErrorReply {
                        code: ErrorCode::Busy,
                        message: "too many reads wait at this server: try again in a moment".into(),
                        retry_after_ms: limits::BUSY_RETRY_AFTER_MS,
                    };
                    self.reply(net, token, Reply::Error(busy));
                }
            }
        }
    }

    fn dial_due_links(&mut self, net: &mut Net) {
        let now = net.now();
        for link in &mut self.links {
            if matches!(link.outbound, Outbound::Waiting(due) if due <= now) {
                let connection = net.dial(link.address);
                link.outbound = Outbound::Greeting(connection);
                self.connections.insert(connection, Kind::Outbound(link.node));
            }
        }
    }

    fn lost_outbound(&mut self, net: &Net, connection: ConnectionId, peer: NodeId, why: &str) {
        let random = rand::rng().next_u64();
        let now = net.now();
        let Some(link) = self.link_mut(peer) else { return };
        if !link.dialled(connection) {
            return;
        }
        let was_up = link.up().is_some();
        link.went_down(now, random, why);
        if was_up {
            self.input(net, Input::PeerDown { peer });
        }
    }

    fn fail(&mut self, net: &mut Net, failure: String) {
        log::error!("{failure}");
        self.failure.get_or_insert(failure);
        net.exit();
    }
}

/// Appends one frame. Messages made here fit their caps by construction (see the relations checked
/// in `limits`); one that did not would be lost, not sent in half.
fn encode(message: &Message, out: &mut Vec<u8>) {
    if let Err(error) = codec::encode(message, limits::PEER_FRAME_BYTES_MAX, out) {
        log::error!("cannot send a message: {error}");
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
        let message = match codec::decode(frame) {
            Ok(message) => message,
            Err(error) => return self.refuse(net, connection, error.to_string()),
        };
        match kind {
            Kind::Unknown => self.greeting(net, connection, message),
            Kind::Client { .. } => self.client_message(net, connection, message),
            Kind::Inbound(from) => match message {
                Message::Peer(message) => self.input(net, Input::Peer { from, message }),
                _ => self.refuse(net, connection, "a server sends PEER messages only".into()),
            },
            Kind::Outbound(peer) => self.welcomed(net, connection, peer, message),
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
                }
            }
            Some(Kind::Client { address, .. }) => log::debug!("client {address}: {reason}"),
            Some(Kind::Unknown) => log::debug!("a connection without a greeting: {reason}"),
            None => {}
        }
    }

    fn on_wake(&mut self, net: &mut Net) {
        while let Ok(report) = self.parts.reports.try_recv() {
            match report {
                Report::Done(input) => self.input(net, input),
                Report::Failed(failure) => return self.fail(net, failure),
            }
        }
        while let Some(completion) = self.parts.pool.collect() {
            match completion {
                Completion::Reply { connection, frame } => {
                    let connection = ConnectionId::from_u64(connection);
                    net.send_owned(connection, frame);
                    self.answered(net, connection);
                }
                Completion::Fetched { fetch, entries } => {
                    self.input(net, Input::Fetched { fetch, entries });
                }
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
        let waits = |kind: &Kind| matches!(kind, Kind::Client { under_way, .. } if *under_way > 0);
        !self.connections.get(&connection).is_some_and(waits)
    }

    fn before_sleep(&mut self, net: &mut Net) {
        let now = self.now(net);
        self.parts.node.flush(now, &mut self.outputs);
        while !self.outputs.is_empty() {
            self.carry_out(net);
        }
        self.submit_reads(net);
    }

    fn refusal(&mut self, _peer: SocketAddr) -> Vec<u8> {
        let reason = "this server has no room for another connection: try again later".to_owned();
        let mut frame = Vec::new();
        encode(&Message::Refused { reason }, &mut frame);
        frame
    }
}
