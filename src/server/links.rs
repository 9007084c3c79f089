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
use std::time::Instant;

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
    /// Dialled; the greeting is not done.
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
    /// When it last answered a ping on the dialled connection, or that came up.
    pub heard: Instant,
    /// When to ping it again.
    pub next_ping: Instant,
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
            heard: now,
            next_ping: now,
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
        matches!(self.outbound, Outbound::Greeting(c) | Outbound::Up(c) if c == connection)
    }

    /// The dialled connection is usable.
    pub fn came_up(&mut self, connection: ConnectionId, now: Instant) {
        self.heard = now;
        self.next_ping = now + limits::PEER_PING_INTERVAL;
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
