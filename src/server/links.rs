//! The links to the other servers of the group.
//!
//! Each server dials every other one and sends on the connection it dialled; what comes back on it
//! is only the greeting. So a pair of servers has two connections, and nobody has to decide which
//! of two simultaneous dials survives.
//!
//! A peer's *incarnation* names its data directory. When a new one shows up, in a greeting of either
//! direction, whatever is still on its way from the old one is cut off before it can be read: a
//! leader must not count an acknowledgement of a directory that is gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::limits;
use crate::net::ConnectionId;
use crate::net::backoff::Backoff;
use crate::text::sentence;
use crate::types::NodeId;

/// Where the connection that this server dials stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outbound {
    /// To be dialled at this time.
    Waiting(Instant),
    /// Dialled; not connected yet.
    Dialling(ConnectionId),
    /// Connected; the greeting is not done.
    Greeting(ConnectionId),
    /// Usable.
    Up(ConnectionId),
}

/// One other server.
#[derive(Debug)]
pub(super) struct Link {
    pub node: NodeId,
    pub address: SocketAddr,
    pub outbound: Outbound,
    /// The connection on which it sends to us.
    pub inbound: Option<ConnectionId>,
    /// The peer's data directory, as its last greeting named it.
    pub incarnation: Option<u64>,
    /// Ticks since the dialled connection last got on: it was dialled, connected, came up, or a ping was answered on
    /// it. Ticks and not time, since a loop that was away has not listened either.
    quiet_ticks: u32,
    /// Ticks until it is pinged again.
    ping_ticks: u32,
    backoff: Backoff,
    /// The last trouble that was logged, so that it is logged once.
    trouble: Option<String>,
}

impl Link {
    pub fn new(node: NodeId, address: SocketAddr, now: Instant) -> Link {
        Link {
            node,
            address,
            outbound: Outbound::Waiting(now),
            inbound: None,
            incarnation: None,
            quiet_ticks: 0,
            ping_ticks: 0,
            backoff: Backoff::new(limits::DIAL_BACKOFF_MIN, limits::DIAL_BACKOFF_MAX),
            trouble: None,
        }
    }

    /// The usable connection.
    pub fn up(&self) -> Option<ConnectionId> {
        match self.outbound {
            Outbound::Up(connection) => Some(connection),
            _ => None,
        }
    }

    /// Usable connections from and to it.
    pub fn connections(&self) -> u32 {
        u32::from(self.up().is_some()) + u32::from(self.inbound.is_some())
    }

    /// Whether this is the connection that was dialled.
    pub fn dialled(&self, connection: ConnectionId) -> bool {
        match self.outbound {
            Outbound::Dialling(c) | Outbound::Greeting(c) | Outbound::Up(c) => c == connection,
            Outbound::Waiting(_) => false,
        }
    }

    /// It is being dialled.
    pub fn dial(&mut self, connection: ConnectionId) {
        self.outbound = Outbound::Dialling(connection);
        self.quiet_ticks = 0;
    }

    /// The dialled connection stands.
    pub fn connected(&mut self, connection: ConnectionId) {
        if self.outbound == Outbound::Dialling(connection) {
            self.outbound = Outbound::Greeting(connection);
            self.quiet_ticks = 0;
        }
    }

    /// The dialled connection got on.
    pub fn heard(&mut self) {
        self.quiet_ticks = 0;
    }

    /// A tick has passed. Returns the dialled connection if it is to be given up, with the reason.
    pub fn tick(&mut self) -> Option<(ConnectionId, &'static str)> {
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        let (connection, patience, why) = match self.outbound {
            Outbound::Waiting(_) => return None,
            Outbound::Dialling(connection) => {
                (connection, limits::PEER_DIAL_TIMEOUT, "it cannot be reached")
            }
            Outbound::Greeting(connection) => {
                (connection, limits::PEER_SILENCE_TIMEOUT, "it does not answer the greeting")
            }
            Outbound::Up(connection) => (connection, limits::PEER_SILENCE_TIMEOUT, "it is silent"),
        };
        (self.quiet_ticks >= ticks(patience)).then_some((connection, why))
    }

    /// Whether a ping is due, which it is not for a while then.
    pub fn take_ping(&mut self) -> bool {
        let due = self.ping_ticks == 0;
        self.ping_ticks = if due { ticks(limits::PEER_PING_INTERVAL) } else { self.ping_ticks } - 1;
        due
    }

    /// The dialled connection is usable.
    pub fn came_up(&mut self, connection: ConnectionId) {
        self.quiet_ticks = 0;
        self.outbound = Outbound::Up(connection);
        self.backoff.reset();
        if self.trouble.take().is_some() {
            log::info!("server {} at {} answers again", self.node, self.address);
        }
    }

    /// The dialled connection is gone: dial again a little later.
    pub fn went_down(&mut self, now: Instant, random: u64, why: &str) {
        self.outbound = Outbound::Waiting(now + self.backoff.next_wait(random));
        // The other side may have had its say in it.
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

    /// A greeting of either direction named the peer's data directory. Returns whether another one
    /// was known before.
    pub fn met(&mut self, incarnation: u64) -> bool {
        self.incarnation.replace(incarnation).is_some_and(|known| known != incarnation)
    }
}

fn ticks(duration: Duration) -> u32 {
    (duration.as_millis() / limits::TICK.as_millis()) as u32
}
