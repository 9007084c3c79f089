//! The store's service on the event loop: connections in front, the node core behind.
//!
//! This is the wiring, and the only place where sockets, core, workers and writing threads meet. It
//! decides nothing about consensus or data: it turns frames into the core's inputs, and outputs
//! into frames and work, and knows what each connection is.

mod conditions;
mod greetings;
mod outputs;
mod requests;
#[cfg(test)]
mod tests;
mod watching;

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use crossbeam_channel::Receiver;

use self::watching::WatchingClient;
use super::clients::Clients;
use super::config::ServerConfig;
use super::console::ServerConsole;
use super::decoding::{DecodedFrame, Undecodable, decode};
use super::driver::CoreDriver;
use super::lifecycle::{Lifecycle, Restart};
use super::links::ServerLink;
use super::loop_reads::LoopReads;
use super::snapshots::{TransferLimits, Transfers};
use super::threads::Threads;
use super::watch::LogWatch;
use crate::limits;
use crate::model::{ClusterId, DiskSpace, NodeId};
use crate::net::{CloseReason, ConnectionId, ConnectionMap, Net, SendLimits, Service};
use crate::node::core::Node;
use crate::node::{CheckedMessage, Input, Now, RequestToken};
use crate::storage::reads::Store;
use crate::text::sentence;
use crate::wire::codec;
use crate::wire::message::{
    Channel, ErrorCode, ErrorReply, Hello, HelloRole, Message, PROTOCOL_VERSION, Reply,
    ServerMessage,
};

/// Bytes queued for one server on the connection for what must not wait, which is thousands of
/// heartbeats. Beyond, messages are dropped that consensus sends again.
const SERVER_CONTROL_SEND_BYTES_MAX: usize = 1024 * 1024;

/// The role of a connection, which its greeting tells.
#[derive(Clone, Copy, Debug)]
enum ConnectionRole {
    /// Accepted; the greeting is not done.
    Unknown,
    /// A client, whose account is in [`Clients`].
    Client,
    /// Another server has dialled it, and sends on it.
    Inbound(NodeId),
    /// This server has dialled it, and sends on it.
    Outbound(NodeId),
}

/// Everything a server is made of, handed to the service once it is opened.
pub(super) struct Parts {
    pub config: ServerConfig,
    /// Clients connected at once.
    pub clients_max: usize,
    pub incarnation: u64,
    pub console: ServerConsole,
    pub threads: Threads,
    pub store: Store,
    /// The number of the first snapshot transfer, drawn at random.
    pub first_transfer: u64,
    /// What offers of snapshots have to carry, drawn at random.
    pub snapshot_key: u64,
    /// A message on this channel asks the server to stop.
    pub stop: Receiver<()>,
}

/// A store's service on the event loop: connections in front, the node core behind.
pub(super) struct StoreService {
    parts: Parts,
    me: NodeId,
    cluster: ClusterId,
    core: CoreDriver,
    links: Vec<ServerLink>,
    connections: ConnectionMap<ConnectionRole>,
    clients: Clients,
    loop_reads: LoopReads,
    /// The value of [`Store::steps`] at the last tick.
    applied_steps: u64,
    transfers: Transfers,
    watch: LogWatch,
    lifecycle: Lifecycle,
    /// The clients that have watched something, with the bytes of what they are shown that have not
    /// left the process.
    watching: ConnectionMap<WatchingClient>,
    /// The room on the disk, as it was last reported.
    disk_space: DiskSpace,
    /// The log has been told whether `--history` is what the group keeps.
    history_compared: bool,
}

impl StoreService {
    pub fn new(node: Node, parts: Parts, me: NodeId) -> StoreService {
        let now = Instant::now();
        let others =
            parts.config.servers.iter().enumerate().map(|(i, a)| (NodeId(i as u64 + 1), *a));
        let links = others.filter(|(node, _)| *node != me).map(|(n, a)| ServerLink::new(n, a, now));
        let group = node.status().history;
        let history_compared = group.is_some_and(|group| parts.config.warn_of_other_history(group));
        StoreService {
            me,
            cluster: parts.config.cluster_id(),
            core: CoreDriver::new(node),
            links: links.collect(),
            connections: ConnectionMap::default(),
            clients: Clients::new(parts.config.value_bytes_max, parts.config.workers),
            loop_reads: LoopReads::default(),
            applied_steps: 0,
            transfers: Transfers::new(
                parts.first_transfer,
                parts.snapshot_key,
                TransferLimits::default(),
            ),
            watch: LogWatch::default(),
            lifecycle: Lifecycle::default(),
            watching: ConnectionMap::default(),
            disk_space: DiskSpace::Ample,
            history_compared,
            parts,
        }
    }

    /// Ends the threads in order, and returns whether to start again, and how. The error is what
    /// broke.
    pub fn finish(self) -> Result<Restart, String> {
        let all_ended = self.parts.threads.finish(Instant::now() + limits::STOP_DISK_TIMEOUT);
        if !all_ended {
            log::error!(
                "the disk does not answer: stopping without what was not written yet, which nobody \
                 was promised or the log holds"
            );
        }
        self.lifecycle.end(all_ended)
    }

    /// The time of this iteration.
    fn now(&mut self, net: &Net) -> Now {
        self.core.now(net.now())
    }

    fn input(&mut self, net: &Net, input: Input) {
        self.core.input(net.now(), input);
    }

    fn link_mut(&mut self, node: NodeId) -> Option<&mut ServerLink> {
        self.links.iter_mut().find(|link| link.node() == node)
    }

    // ---- sending -----------------------------------------------------------------------------

    fn send(&self, net: &mut Net, connection: ConnectionId, message: &Message) {
        net.send(connection, |out| encode(message, out));
    }

    fn refuse(&self, net: &mut Net, connection: ConnectionId, reason: String) {
        // The reason may quote what the other side sent.
        let reason = sentence(&reason);
        if let Some(address) = net.peer_address(connection) {
            log::info!("refusing {address}: {reason}");
        }
        self.send(net, connection, &Message::Refused { reason });
        net.close_after_flush(connection);
    }

    fn send_to_server(&mut self, net: &mut Net, to: NodeId, message: ServerMessage) {
        let channel = Channel::of(&message);
        let Some(connection) = self.link_mut(to).and_then(|link| link.up(channel)) else { return };
        let resent_by_protocol = matches!(message, ServerMessage::Raft(_));
        let message = Message::Server(message);
        // A full queue drops what the protocol sends again, as a lossy network would, and closes
        // the link where the other side must know that something is lost.
        if message.shared_parts().is_empty() {
            if resent_by_protocol {
                let _ = net.try_send(connection, |out| encode(&message, out));
            } else {
                net.send(connection, |out| encode(&message, out));
            }
            return;
        }
        match codec::encode_shared(&message, limits::SERVER_FRAME_BYTES_MAX) {
            Ok(pieces) if resent_by_protocol => {
                let _ = net.try_send_pieces(connection, pieces);
            }
            Ok(pieces) => {
                net.send_pieces(connection, pieces);
            }
            Err(error) => log::error!("cannot send a message: {error}"),
        }
    }

    fn reply(&mut self, net: &mut Net, token: RequestToken, body: Reply) {
        let connection = ConnectionId::from_u64(token.connection);
        if matches!(&body, Reply::Error(ErrorReply { code: ErrorCode::Busy { .. }, .. })) {
            self.watch.busy();
        }
        self.send(net, connection, &Message::Reply { id: token.request, body });
        self.answered(net, token);
    }

    /// Closes the connections on which a server has sent what breaks the protocol. More than one of
    /// its messages may have been wrong before this is called.
    fn disconnect(&mut self, net: &mut Net, server: NodeId, reason: &str) {
        let inbound: Vec<_> =
            self.link_mut(server).into_iter().flat_map(ServerLink::take_inbound).collect();
        if inbound.is_empty() {
            return;
        }
        log::warn!("closing the link from server {server}: {reason}");
        for connection in inbound {
            self.refuse(net, connection, reason.to_owned());
        }
        self.inbound_down(net, server);
    }

    /// Hands a decoded frame on, by the role of its connection.
    fn incoming(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        incoming: Result<DecodedFrame, Undecodable>,
    ) {
        let Some(kind) = self.connections.get(&connection).copied() else { return };
        let incoming = match (incoming, kind) {
            (Ok(incoming), _) => incoming,
            (Err(error), ConnectionRole::Outbound(server)) => {
                return self.give_up_outbound(net, connection, server, &error.reason);
            }
            (Err(error), ConnectionRole::Inbound(server)) => {
                return self.disconnect(net, server, &error.reason);
            }
            (Err(error), ConnectionRole::Client | ConnectionRole::Unknown) => {
                return self.undecodable(net, connection, error);
            }
        };
        match (kind, incoming) {
            (ConnectionRole::Unknown, DecodedFrame::Message(message)) => {
                self.greeting(net, connection, message)
            }
            (ConnectionRole::Unknown, _) => self.refuse(net, connection, NO_HELLO.into()),
            (ConnectionRole::Client, DecodedFrame::Write { id, write }) => {
                self.write_request(net, connection, id, write);
            }
            (ConnectionRole::Client, DecodedFrame::Message(message)) => {
                self.client_message(net, connection, message);
            }
            (ConnectionRole::Client, DecodedFrame::Server(_)) => {
                self.refuse(net, connection, NOT_OF_A_CLIENT.into());
            }
            (ConnectionRole::Inbound(from), DecodedFrame::Server(message)) => {
                self.server_message(net, from, message)
            }
            (ConnectionRole::Inbound(_), DecodedFrame::Message(Message::Ping { nonce })) => {
                self.send(net, connection, &Message::Pong { nonce });
            }
            (ConnectionRole::Inbound(_), _) => {
                self.refuse(net, connection, "a server sends SERVER and PING only".into());
            }
            (ConnectionRole::Outbound(server), DecodedFrame::Message(message)) => {
                self.answer_of_server(net, connection, server, message);
            }
            (ConnectionRole::Outbound(server), _) => {
                self.unexpected_of_server(net, connection, server)
            }
        }
    }

    fn server_message(&mut self, net: &mut Net, from: NodeId, message: CheckedMessage) {
        if !message.is_about_a_snapshot() {
            return self.input(net, Input::Message { from, message });
        }
        let now = self.now(net);
        let node = self.core.node();
        let wanted =
            |from, snapshot, timestamp| node.wants_snapshot(now, from, snapshot, timestamp);
        let steps = self.transfers.message(now.monotonic_us, from, message, wanted);
        self.take_steps(net, steps);
    }
}

/// Appends one frame. Messages made here fit their caps by construction (see the relations checked
/// in `limits`); one that did not would be lost, not sent in half.
fn encode(message: &Message, out: &mut Vec<u8>) {
    if let Err(error) = codec::encode(message, limits::SERVER_FRAME_BYTES_MAX, out) {
        log::error!("cannot send a message: {error}");
    }
}

fn refused(reason: String) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(&Message::Refused { reason }, &mut frame);
    frame
}

/// The refusal of a connection that does not begin with a greeting.
const NO_HELLO: &str = "the first message must be HELLO";

/// The refusal of a client that sends what clients do not send.
const NOT_OF_A_CLIENT: &str = "a client sends REQUEST, WATCH_CREDIT and PING only";

/// The refusal of a connection for which there is no place.
const NO_ROOM: &str = "this server has no room for another connection: try again later";

impl Service for StoreService {
    fn on_start(&mut self, net: &mut Net) {
        self.dial_due_links(net);
    }

    fn on_accepted(&mut self, _net: &mut Net, connection: ConnectionId, _address: SocketAddr) {
        self.connections.insert(connection, ConnectionRole::Unknown);
    }

    fn on_connected(&mut self, net: &mut Net, connection: ConnectionId) {
        let Some(ConnectionRole::Outbound(server)) = self.connections.get(&connection).copied()
        else {
            return;
        };
        let Some(channel) = self.link_mut(server).and_then(|link| link.channel_of(connection))
        else {
            return;
        };
        if let Some(line) = self.link_mut(server).and_then(|link| link.line_mut(connection)) {
            line.connected();
        }
        let (cluster, node, incarnation) = (self.cluster, self.me, self.parts.incarnation);
        let role = HelloRole::Server { cluster, node, incarnation, channel };
        let hello = Hello { protocol: PROTOCOL_VERSION, role };
        let max_bytes = match channel {
            Channel::Control => SERVER_CONTROL_SEND_BYTES_MAX,
            Channel::Bulk => limits::SERVER_SEND_BYTES_MAX,
        };
        net.set_send_limits(connection, SendLimits { pause_bytes: max_bytes, max_bytes });
        if channel == Channel::Control {
            net.set_urgent(connection);
        }
        self.send(net, connection, &Message::Hello(hello));
    }

    fn on_dial_failed(&mut self, net: &mut Net, connection: ConnectionId, error: &io::Error) {
        if let Some(ConnectionRole::Outbound(server)) = self.connections.remove(&connection) {
            self.lost_outbound(net, connection, server, &error.to_string());
        }
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        self.incoming(net, connection, decode(frame));
    }

    fn on_large_frame(&mut self, net: &mut Net, connection: ConnectionId, pieces: Vec<Vec<u8>>) {
        let of_server =
            matches!(self.connections.get(&connection), Some(ConnectionRole::Inbound(_)));
        // What another server sends has its limits on that side, and is never refused because of
        // what clients of the same machine hold.
        let held = if of_server { 0 } else { pieces.iter().map(Vec::len).sum() };
        if held > 0 && !net.try_hold(connection, held) {
            return self.refuse_large(net, connection, &pieces[0]);
        }
        match self.parts.threads.decode(of_server, connection, pieces, held) {
            Ok(()) => net.hold_frames(connection),
            Err(pieces) => {
                net.release(connection, held);
                self.refuse_large(net, connection, &pieces[0]);
            }
        }
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        match self.connections.remove(&connection) {
            Some(ConnectionRole::Outbound(server)) => {
                self.lost_outbound(net, connection, server, &reason.to_string());
            }
            Some(ConnectionRole::Inbound(server)) => self.inbound_closed(net, connection, server),
            Some(ConnectionRole::Client) => {
                self.stop_watching(connection);
                if let Some(address) = self.clients.remove(net, connection) {
                    let level =
                        if reason.is_ordinary() { log::Level::Debug } else { log::Level::Info };
                    log::log!(level, "client {address} is disconnected: {reason}");
                }
            }
            Some(ConnectionRole::Unknown) => {
                log::debug!("a connection without a greeting: {reason}")
            }
            None => {}
        }
    }

    fn on_wake(&mut self, net: &mut Net) {
        let until = Instant::now() + limits::LOOP_STAGE_TIME;
        while let Some(completion) = self.parts.threads.collect() {
            self.complete(net, completion);
            if Instant::now() >= until {
                net.wake_again();
                break;
            }
        }
        self.collect_watched(net);
        if self.parts.stop.try_recv().is_ok() && self.lifecycle.ask_to_stop(net.now()) {
            log::info!("stopping: no new requests are taken");
            net.stop_accepting();
            self.input(net, Input::Stop);
        }
    }

    fn on_tick(&mut self, net: &mut Net) {
        if net.tick_is_late() {
            return self.input(net, Input::LateTick);
        }
        let steps = self.parts.store.steps();
        if std::mem::replace(&mut self.applied_steps, steps) != steps {
            self.input(net, Input::ApplierWorks);
        }
        self.input(net, Input::Tick);
        self.clients.tick();
        self.tell_what_was_shown(net);
        self.refuse_overdue_reads(net);
        self.log_conditions(net);
        let now_us = self.now(net).monotonic_us;
        let node = self.core.node();
        let steps = self.transfers.tick(now_us, &node.status(), |server| node.matched(server));
        self.take_steps(net, steps);
        self.keep_links_alive(net);
        self.dial_due_links(net);
        if self.parts.threads.is_verdict_overdue(net.now()) {
            self.verdict_not_set_down(net, "the disk of the data directory does not answer");
        }
        if self.lifecycle.is_stop_overdue(net.now()) {
            log::warn!("stopping now: some requests are still without an answer");
            net.exit();
        }
    }

    fn on_idle(&mut self, _net: &mut Net, connection: ConnectionId) -> bool {
        !self.clients.waits(connection) && !self.clients.is_watching(connection)
    }

    fn before_sleep(&mut self, net: &mut Net) {
        self.core.flush(net.now());
        while let Some(outputs) = self.core.take_outputs() {
            self.carry_out(net, outputs);
        }
        net.set_alarm(self.core.flush_due());
        if self.core.node().awaits_application() {
            self.parts.threads.hurry_applier();
        }
        self.submit_reads(net);
        self.loop_reads.renew();
        // Requests that were taken, plain reads included, are answered first.
        if self.lifecycle.may_end(self.clients.nothing_under_way()) {
            log::info!("stopping: nothing is under way");
            net.exit();
        }
    }

    fn farewell(&mut self, connection: ConnectionId, reason: &CloseReason) -> Vec<u8> {
        let reason = match (self.connections.get(&connection), reason) {
            (Some(ConnectionRole::Outbound(_)) | None, _) => return Vec::new(),
            (Some(_), CloseReason::Deadline) => {
                let seconds = limits::HANDSHAKE_TIMEOUT.as_secs();
                format!("no whole HELLO came within {seconds} seconds")
            }
            (Some(_), reason) => reason.to_string(),
        };
        refused(reason)
    }

    fn refusal(&mut self, _address: SocketAddr) -> Vec<u8> {
        refused(NO_ROOM.to_owned())
    }
}
