//! Greetings of clients and servers, and how the links to the other servers come up, are kept and
//! go down.
//!
//! Rule: a connection is nothing before it has greeted, and a link to another server can be used
//! when both of its connections are greeted by the same data directory. The state of each link is
//! in `links`.

use rand::Rng;

use super::{ConnectionRole, NO_HELLO, NO_ROOM, StoreService, encode};
use crate::limits;
use crate::model::NodeId;
use crate::net::{ConnectionId, Net};
use crate::node::Input;
use crate::wire::message::{Channel, Hello, HelloRole, Message, PROTOCOL_VERSION, Welcome};

impl StoreService {
    pub(super) fn greeting(&mut self, net: &mut Net, connection: ConnectionId, message: Message) {
        let Message::Hello(Hello { protocol, role }) = message else {
            return self.refuse(net, connection, NO_HELLO.into());
        };
        if protocol != PROTOCOL_VERSION {
            let reason = format!(
                "this server speaks protocol version {PROTOCOL_VERSION} and not {protocol}: \
                 use a client of its release"
            );
            return self.refuse(net, connection, reason);
        }
        let meant = match role {
            HelloRole::Client { cluster } => cluster,
            HelloRole::Server { cluster, .. } => Some(cluster),
            // Whoever looks for a share is told below what this is.
            HelloRole::Share => None,
        };
        if let Some(cluster) = meant.filter(|cluster| *cluster != self.cluster) {
            let reason = format!(
                "this server belongs to cluster {} and not to {cluster}: check the server lists",
                self.cluster
            );
            return self.refuse(net, connection, reason);
        }
        let status = self.core.node().status();
        let welcome = Message::Welcome(Welcome {
            protocol: PROTOCOL_VERSION,
            cluster: self.cluster,
            node: self.me,
            incarnation: self.parts.incarnation,
            last_index: status.last_index,
            term: status.term,
            first_leader: status.first_leader,
            applied_timestamp: self.core.node().applied_point().timestamp,
        });
        match role {
            HelloRole::Client { .. } => {
                let Some(address) = net.peer_address(connection) else { return };
                if self.clients.len() >= self.parts.clients_max {
                    match self.clients.idle_to_displace(net, address.ip()) {
                        Some(idle) => net.give_way(idle),
                        None if net.displace(address.ip()) => {}
                        None => return self.refuse(net, connection, NO_ROOM.into()),
                    }
                }
                self.connections.insert(connection, ConnectionRole::Client);
                self.clients.add(connection, address);
                // Whatever --max-value says: a value that is too long for it deserves an answer.
                let cap = limits::client_frame_bytes_max(limits::VALUE_BYTES_MAX);
                net.set_frame_cap(connection, cap);
                net.set_idle_timeout(connection, Some(limits::CLIENT_IDLE_TIMEOUT));
                net.set_socket_send_buffer(connection, limits::CLIENT_SOCKET_SEND_BYTES);
            }
            HelloRole::Server { node, incarnation, channel, .. } => {
                let Some(link) = self.link_mut(node) else {
                    let reason = format!("server {node} is not another server of this group");
                    return self.refuse(net, connection, reason);
                };
                let outdated = link.accept(incarnation, channel, connection);
                let was_replaced = !outdated.inbound.is_empty();
                outdated.inbound.into_iter().chain(outdated.dialled).for_each(|old| net.close(old));
                self.connections.insert(connection, ConnectionRole::Inbound(node));
                match channel {
                    Channel::Control => {
                        net.set_frame_cap(connection, limits::SERVER_CONTROL_FRAME_BYTES_MAX);
                        net.set_urgent(connection);
                    }
                    Channel::Bulk => net.set_frame_cap(connection, limits::SERVER_FRAME_BYTES_MAX),
                }
                // It pings; see `keep_links_alive`.
                net.set_idle_timeout(connection, Some(limits::SERVER_IDLE_TIMEOUT));
                if was_replaced {
                    self.inbound_down(net, node);
                }
            }
            HelloRole::Share => {
                let reason = "this is a server of a store: a share needs an acervo registry";
                return self.refuse(net, connection, reason.into());
            }
        }
        net.greeted(connection);
        if let Some(ConnectionRole::Inbound(_)) = self.connections.get(&connection) {
            net.protect(connection);
        }
        self.send(net, connection, &welcome);
    }

    /// Notes that a connection is closed on which another server sent, unless another one has taken
    /// its place.
    pub(super) fn inbound_closed(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        server: NodeId,
    ) {
        if self.link_mut(server).is_some_and(|link| link.inbound_closed(connection)) {
            self.inbound_down(net, server);
        }
    }

    /// Notes that a connection from another server is gone, and with it perhaps what was sent on it
    /// last.
    pub(super) fn inbound_down(&mut self, net: &mut Net, server: NodeId) {
        self.input(net, Input::InboundDown { server });
        let now_us = self.now(net).monotonic_us;
        let steps = self.transfers.inbound_down(now_us, server);
        self.take_steps(net, steps);
    }

    /// Handles a message on a connection that this server has dialled: the answer to the greeting,
    /// then pongs.
    pub(super) fn answer_of_server(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        server: NodeId,
        message: Message,
    ) {
        let Some(link) = self.link_mut(server) else { return };
        let Some(line) = link.line_mut(connection) else { return };
        let trouble = match message {
            Message::Pong { .. } if line.is_welcomed() => return line.heard(),
            Message::Refused { reason } => format!("it refuses this server: {reason}"),
            _ if line.is_welcomed() => return self.unexpected_of_server(net, connection, server),
            Message::Welcome(welcome) if welcome.protocol != PROTOCOL_VERSION => {
                format!("it speaks protocol version {}", welcome.protocol)
            }
            Message::Welcome(welcome) if welcome.cluster != self.cluster => {
                format!("it belongs to another cluster, {}", welcome.cluster)
            }
            Message::Welcome(welcome) if welcome.node != server => {
                format!("it says it is server {}", welcome.node)
            }
            Message::Welcome(welcome) => {
                return self.welcomed(net, connection, server, &welcome);
            }
            _ => "it does not answer the greeting".to_owned(),
        };
        self.give_up_outbound(net, connection, server, &trouble);
    }

    /// Gives up a connection on which a server has sent what answers nothing.
    pub(super) fn unexpected_of_server(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        server: NodeId,
    ) {
        self.give_up_outbound(net, connection, server, "it sent what no server expects");
    }

    /// Notes that a dialled connection is greeted; with the second one the link is up.
    fn welcomed(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        server: NodeId,
        welcome: &Welcome,
    ) {
        let Welcome { incarnation, last_index, term, first_leader, .. } = *welcome;
        let Some(link) = self.link_mut(server) else { return };
        if link.met(incarnation) {
            link.take_inbound().for_each(|old| net.close(old));
            let was_greeted_before = link.lines().iter().any(|line| line.is_welcomed());
            self.inbound_down(net, server);
            if was_greeted_before {
                // The other connection was greeted by the directory before.
                let why = "its data directory was replaced meanwhile";
                return self.give_up_outbound(net, connection, server, why);
            }
        }
        let Some(link) = self.link_mut(server) else { return };
        if let Some(line) = link.line_mut(connection) {
            line.welcomed();
        }
        net.greeted(connection);
        if link.is_up() {
            link.came_up();
            self.transfers.link_up(server);
            self.compare_first_leaders(server, first_leader);
            self.input(net, Input::LinkUp { server, last_index, term, first_leader });
        }
    }

    /// Logs it when the servers of a group that has not begun were told different first leaders.
    fn compare_first_leaders(&self, server: NodeId, theirs: Option<NodeId>) {
        let ours = self.core.node().status().first_leader;
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && ours != theirs
        {
            log::warn!(
                "this server was started with --leader {} and {} with --leader {}: the one that \
                 most servers were told leads first; if there is none such, the first of them in \
                 the group's list, when every server is up",
                self.address(ours),
                self.address(server),
                self.address(theirs)
            );
        }
    }

    /// Closes a connection that this server dialled.
    pub(super) fn give_up_outbound(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        server: NodeId,
        why: &str,
    ) {
        self.connections.remove(&connection);
        self.lost_outbound(net, connection, server, why);
        net.close(connection);
    }

    pub(super) fn dial_due_links(&mut self, net: &mut Net) {
        let now = net.now();
        for link in &mut self.links {
            if link.is_due(now) {
                let connections = Channel::ALL.map(|_| net.dial(link.address()));
                link.dial(connections);
                for connection in connections {
                    self.connections.insert(connection, ConnectionRole::Outbound(link.node()));
                }
            }
        }
    }

    /// Pings on the dialled connections and gives silent ones up, which are then dialled again. A
    /// machine that loses its power or its network leaves its connections open, and on a connection
    /// that was cut the system retransmits at ever longer intervals, where a new one gets through
    /// as soon as the network is back.
    pub(super) fn keep_links_alive(&mut self, net: &mut Net) {
        for at in 0..self.links.len() {
            let link = &mut self.links[at];
            let pings = link.is_up() && link.take_ping();
            for line in link.lines().iter_mut().filter(|line| line.is_welcomed()) {
                let connection = line.id();
                if net.queued_bytes(connection) > 0 && net.write_stall(connection) < limits::TICK {
                    // The other side takes what is sent; a ping would only come behind it.
                    line.heard();
                }
                if pings {
                    let ping = |out: &mut Vec<u8>| encode(&Message::Ping { nonce: 0 }, out);
                    // When the queue is full, whether it is taken decides above whether the link is
                    // silent.
                    let _ = net.try_send(connection, ping);
                }
            }
            let server = link.node();
            if let Some((connection, why)) = link.tick() {
                self.give_up_outbound(net, connection, server, why);
            }
        }
    }

    pub(super) fn lost_outbound(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        server: NodeId,
        why: &str,
    ) {
        let random = rand::rng().next_u64();
        let now = net.now();
        let Some(link) = self.link_mut(server) else { return };
        if link.line_mut(connection).is_none() {
            return;
        }
        let was_up = link.is_up();
        let lines: Vec<_> = link.lines().iter().map(|line| line.id()).collect();
        link.went_down(now, random, why);
        for other in lines.into_iter().filter(|line| *line != connection) {
            self.connections.remove(&other);
            net.close(other);
        }
        if was_up {
            self.input(net, Input::LinkDown { server });
            let now_us = self.now(net).monotonic_us;
            let steps = self.transfers.link_down(now_us, server);
            self.take_steps(net, steps);
        }
    }
}
