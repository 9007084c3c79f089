//! The links to the other servers of the group.
//!
//! Each server dials every other one and sends on the connections it dialled; what comes back on
//! them is only the greeting. So nobody has to decide which of two simultaneous dials survives.
//!
//! A link is two connections: one for what must not wait, one for what may be long (see
//! [`Channel`]). Megabytes of entries under way to a server, in queues here and there and in those
//! of the two systems, do not hold back the heartbeat that keeps it from calling an election. The
//! two come up and go down together.
//!
//! A server's *incarnation* names its data directory. When a new one shows up, in a greeting of
//! either direction, whatever is still on its way from the old one is cut off before it can be
//! read: a leader must not count an acknowledgement of a directory that is gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::limits;
use crate::model::NodeId;
use crate::net::ConnectionId;
use crate::net::backoff::Backoff;
use crate::text::sentence;
use crate::wire::message::Channel;

/// How far a connection that this server has dialled has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DialStage {
    /// The other server has not accepted the connection yet.
    Dialling,
    /// The connection is established, and the greeting is not done.
    Greeting,
    /// The greeting is done. The link can be used when both connections are here.
    Welcomed,
}

/// One of the two connections that this server dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DialledConnection {
    connection: ConnectionId,
    stage: DialStage,
    /// Ticks since its last progress: it was dialled, established or greeted, or a ping was
    /// answered on it. Ticks and not time, since a loop that was stalled has not listened either.
    quiet_ticks: u32,
}

impl DialledConnection {
    pub fn id(&self) -> ConnectionId {
        self.connection
    }

    fn reach(&mut self, stage: DialStage) {
        self.stage = stage;
        self.quiet_ticks = 0;
    }

    /// Notes that the connection is established, and the greeting begins.
    pub fn connected(&mut self) {
        self.reach(DialStage::Greeting);
    }

    /// Notes that the greeting is done.
    pub fn welcomed(&mut self) {
        self.reach(DialStage::Welcomed);
    }

    /// Notes that something came from the other server.
    pub fn heard(&mut self) {
        self.quiet_ticks = 0;
    }

    /// Whether the greeting is done.
    pub fn is_welcomed(&self) -> bool {
        self.stage == DialStage::Welcomed
    }

    /// Counts a tick. Returns why the connection is to be given up, if it is.
    fn tick(&mut self) -> Option<&'static str> {
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        let (patience, why) = match self.stage {
            DialStage::Dialling => (limits::SERVER_DIAL_TIMEOUT, "it cannot be reached"),
            DialStage::Greeting => {
                (limits::SERVER_SILENCE_TIMEOUT, "it does not answer the greeting")
            }
            DialStage::Welcomed => (limits::SERVER_SILENCE_TIMEOUT, "it is silent"),
        };
        (self.quiet_ticks >= ticks(patience)).then_some(why)
    }
}

/// The connections that this server dials to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outbound {
    /// They are to be dialled at this time.
    Waiting(Instant),
    /// They are dialled, one for each [`Channel`]. They can be used once both are welcomed.
    Dialled([DialledConnection; 2]),
}

/// The connections to one other server of the group.
#[derive(Debug)]
pub(super) struct ServerLink {
    node: NodeId,
    address: SocketAddr,
    outbound: Outbound,
    /// The connections that the other server has dialled, and sends on, one for each [`Channel`].
    inbound: [Option<ConnectionId>; 2],
    /// The other server's data directory, as its last greeting named it.
    incarnation: Option<u64>,
    /// Ticks until it is pinged again.
    ping_ticks: u32,
    backoff: Backoff,
    /// The reason that was logged last, so that it is logged once.
    trouble: Option<String>,
}

/// Connections that a new one from the same server has taken the place of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutdatedConnections {
    /// Those on which that server sent.
    pub inbound: Vec<ConnectionId>,
    /// Those dialled to a data directory that it does not have any more.
    pub dialled: Vec<ConnectionId>,
}

impl ServerLink {
    pub fn new(node: NodeId, address: SocketAddr, now: Instant) -> ServerLink {
        ServerLink {
            node,
            address,
            outbound: Outbound::Waiting(now),
            inbound: [None; 2],
            incarnation: None,
            ping_ticks: 0,
            backoff: Backoff::new(limits::DIAL_BACKOFF_MIN, limits::DIAL_BACKOFF_MAX),
            trouble: None,
        }
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the connections are to be dialled now.
    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self.outbound, Outbound::Waiting(due) if due <= now)
    }

    /// Notes the connections that are being dialled now.
    pub fn dial(&mut self, connections: [ConnectionId; 2]) {
        let line = |connection| DialledConnection {
            connection,
            stage: DialStage::Dialling,
            quiet_ticks: 0,
        };
        self.outbound = Outbound::Dialled(connections.map(line));
    }

    /// The dialled connections; none while they wait to be dialled.
    pub fn lines(&mut self) -> &mut [DialledConnection] {
        match &mut self.outbound {
            Outbound::Dialled(lines) => lines,
            Outbound::Waiting(_) => &mut [],
        }
    }

    /// Whether both connections can be used.
    pub fn is_up(&self) -> bool {
        match &self.outbound {
            Outbound::Dialled(lines) => lines.iter().all(DialledConnection::is_welcomed),
            Outbound::Waiting(_) => false,
        }
    }

    /// The connection to send on, when the link is up.
    pub fn up(&self, channel: Channel) -> Option<ConnectionId> {
        match &self.outbound {
            Outbound::Dialled(lines) if self.is_up() => Some(lines[channel as usize].connection),
            _ => None,
        }
    }

    /// Number of directions, 0 to 2, in which the link can be used.
    pub fn usable(&self) -> u32 {
        u32::from(self.is_up()) + u32::from(self.inbound.iter().all(Option::is_some))
    }

    /// The channel of a dialled connection.
    pub fn channel_of(&mut self, connection: ConnectionId) -> Option<Channel> {
        let at = self.lines().iter().position(|line| line.connection == connection)?;
        Some(Channel::ALL[at])
    }

    /// The state of a connection that was dialled.
    pub fn line_mut(&mut self, connection: ConnectionId) -> Option<&mut DialledConnection> {
        self.lines().iter_mut().find(|line| line.connection == connection)
    }

    /// Notes a greeted connection on which the other server sends. Returns those that it takes the
    /// place of, to be closed.
    pub fn accept(
        &mut self,
        incarnation: u64,
        channel: Channel,
        connection: ConnectionId,
    ) -> OutdatedConnections {
        let (mut inbound, mut dialled) = (Vec::new(), Vec::new());
        if self.met(incarnation) {
            inbound.extend(self.take_inbound());
            dialled.extend(self.lines().iter().map(DialledConnection::id));
        }
        inbound.extend(self.inbound[channel as usize].replace(connection));
        OutdatedConnections { inbound, dialled }
    }

    /// Notes that a connection is closed; returns whether the other server sent on it.
    pub fn inbound_closed(&mut self, connection: ConnectionId) -> bool {
        let gone = self.inbound.iter_mut().find(|inbound| **inbound == Some(connection));
        gone.is_some_and(|gone| gone.take().is_some())
    }

    /// Takes out the connections on which the other server sends, for them to be closed.
    pub fn take_inbound(&mut self) -> impl Iterator<Item = ConnectionId> + use<> {
        std::mem::take(&mut self.inbound).into_iter().flatten()
    }

    /// Counts a tick. Returns a dialled connection that is to be given up, and the link with it,
    /// with the reason.
    pub fn tick(&mut self) -> Option<(ConnectionId, &'static str)> {
        let mut given_up = None;
        for line in self.lines() {
            if let Some(why) = line.tick() {
                given_up = Some((line.connection, why));
            }
        }
        given_up
    }

    /// Whether a ping is due. The next one is due after [`limits::SERVER_PING_INTERVAL`].
    pub fn take_ping(&mut self) -> bool {
        let due = self.ping_ticks == 0;
        self.ping_ticks =
            if due { ticks(limits::SERVER_PING_INTERVAL) } else { self.ping_ticks } - 1;
        due
    }

    /// Notes that both dialled connections are greeted.
    pub fn came_up(&mut self) {
        self.backoff.reset();
        if self.trouble.take().is_some() {
            log::info!("server {} at {} answers again", self.node, self.address);
        }
    }

    /// Notes that the dialled connections are gone. They are dialled again after a growing wait.
    pub fn went_down(&mut self, now: Instant, random: u64, why: &str) {
        self.outbound = Outbound::Waiting(now + self.backoff.next_wait(random));
        // The reason may quote the other server.
        let why = sentence(why);
        if self.trouble.as_ref() != Some(&why) {
            log::info!(
                "no link to server {} at {}: {why}; it is dialled until it answers",
                self.node,
                self.address
            );
            self.trouble = Some(why);
        }
    }

    /// Notes the other server's data directory, which a greeting of either direction has named.
    /// Returns whether another one was known before.
    pub fn met(&mut self, incarnation: u64) -> bool {
        self.incarnation.replace(incarnation).is_some_and(|known| known != incarnation)
    }
}

fn ticks(duration: Duration) -> u32 {
    (duration.as_millis() / limits::TICK.as_millis()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(number: u64) -> ConnectionId {
        ConnectionId::from_u64(number)
    }

    /// A link whose connections 1 and 2 are dialled.
    fn dialled() -> (ServerLink, Instant) {
        let now = Instant::now();
        let mut link = ServerLink::new(NodeId(2), ([127, 0, 0, 1], 1).into(), now);
        assert!(link.is_due(now));
        link.dial([connection(1), connection(2)]);
        assert!(!link.is_due(now));
        (link, now)
    }

    #[test]
    fn a_link_is_up_when_both_connections_are_greeted_and_down_with_either() {
        let (mut link, now) = dialled();
        for number in [1, 2] {
            assert_eq!((link.up(Channel::Control), link.usable()), (None, 0));
            link.line_mut(connection(number)).unwrap().welcomed();
        }
        assert_eq!(link.up(Channel::Control), Some(connection(1)));
        assert_eq!(link.up(Channel::Bulk), Some(connection(2)));
        assert_eq!(link.usable(), 1, "nothing comes from there yet");
        link.accept(7, Channel::Control, connection(3));
        link.accept(7, Channel::Bulk, connection(4));
        assert_eq!(link.usable(), 2);
        link.went_down(now, 0, "a test says so");
        assert_eq!((link.is_up(), link.usable()), (false, 1));
        assert!(!link.is_due(now) && link.is_due(now + limits::DIAL_BACKOFF_MAX));
        assert!(link.inbound_closed(connection(4)) && !link.inbound_closed(connection(4)));
        assert_eq!(link.usable(), 0);
    }

    #[test]
    fn what_came_from_another_data_directory_is_cut_off() {
        let (mut link, _) = dialled();
        let nothing = OutdatedConnections { inbound: Vec::new(), dialled: Vec::new() };
        assert_eq!(link.accept(7, Channel::Control, connection(3)), nothing);
        assert_eq!(link.accept(7, Channel::Bulk, connection(4)), nothing);
        let again = link.accept(7, Channel::Bulk, connection(5));
        assert_eq!(again, OutdatedConnections { inbound: vec![connection(4)], ..nothing });
        let replaced = link.accept(8, Channel::Control, connection(6));
        assert_eq!(replaced.inbound, [connection(3), connection(5)]);
        assert_eq!(replaced.dialled, [connection(1), connection(2)]);
        assert!(!link.met(8) && link.met(9));
    }

    #[test]
    fn a_silent_connection_is_given_up_and_one_that_answers_is_not() {
        let (mut link, _) = dialled();
        for number in [1, 2] {
            link.line_mut(connection(number)).unwrap().welcomed();
        }
        for _ in 1..ticks(limits::SERVER_SILENCE_TIMEOUT) {
            assert_eq!(link.tick(), None);
            link.line_mut(connection(1)).unwrap().heard();
        }
        assert_eq!(link.tick(), Some((connection(2), "it is silent")));
    }
}
