//! The links to the other servers of the group.
//!
//! Each server dials every other one and sends on the connections it dialled; what comes back on them
//! is only the greeting. So nobody has to decide which of two simultaneous dials survives.
//!
//! A link is two connections: one for what must not wait, one for what may be long (see
//! [`Channel`]). Megabytes of entries under way to a server, in queues here and there and in those of the two
//! systems, do not hold back the heartbeat that keeps it from calling an election. The two come up and go
//! down together.
//!
//! A peer's *incarnation* names its data directory. When a new one shows up, in a greeting of either
//! direction, whatever is still on its way from the old one is cut off before it can be read: a
//! leader must not count an acknowledgement of a directory that is gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::limits;
use crate::model::NodeId;
use crate::net::ConnectionId;
use crate::net::backoff::Backoff;
use crate::text::sentence;
use crate::wire::message::Channel;

/// Where a connection that this server dials stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The other server has not accepted the connection yet.
    Dialling,
    /// Connected; the greeting is not done.
    Greeting,
    /// Usable, once the other one is.
    Welcomed,
}

/// One of the two connections that this server dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub connection: ConnectionId,
    stage: Stage,
    /// Ticks since it last got on: it was dialled, connected, came up, or a ping was answered on it. Ticks and not
    /// time, since a loop that was away has not listened either.
    quiet_ticks: u32,
}

impl Line {
    fn reach(&mut self, stage: Stage) {
        self.stage = stage;
        self.quiet_ticks = 0;
    }

    /// The connection stands, and the greeting begins.
    pub fn connected(&mut self) {
        self.reach(Stage::Greeting);
    }

    /// The greeting is done.
    pub fn welcomed(&mut self) {
        self.reach(Stage::Welcomed);
    }

    /// Something came from the other server, so that it is not silent.
    pub fn heard(&mut self) {
        self.quiet_ticks = 0;
    }

    /// Whether the greeting is done.
    pub fn is_welcomed(&self) -> bool {
        self.stage == Stage::Welcomed
    }

    /// A tick has passed. Returns why it is to be given up, if it is.
    fn tick(&mut self) -> Option<&'static str> {
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        let (patience, why) = match self.stage {
            Stage::Dialling => (limits::PEER_DIAL_TIMEOUT, "it cannot be reached"),
            Stage::Greeting => (limits::PEER_SILENCE_TIMEOUT, "it does not answer the greeting"),
            Stage::Welcomed => (limits::PEER_SILENCE_TIMEOUT, "it is silent"),
        };
        (self.quiet_ticks >= ticks(patience)).then_some(why)
    }
}

/// Where the connections that this server dials stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outbound {
    /// To be dialled at this time.
    Waiting(Instant),
    /// Dialled, one for each [`Channel`]; usable once both are welcomed.
    Dialled([Line; 2]),
}

/// The connections to one other server of the group.
#[derive(Debug)]
pub(super) struct Link {
    pub node: NodeId,
    pub address: SocketAddr,
    pub outbound: Outbound,
    /// The connections on which it sends to us, one for each [`Channel`].
    pub inbound: [Option<ConnectionId>; 2],
    /// The peer's data directory, as its last greeting named it.
    pub incarnation: Option<u64>,
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
            inbound: [None; 2],
            incarnation: None,
            ping_ticks: 0,
            backoff: Backoff::new(limits::DIAL_BACKOFF_MIN, limits::DIAL_BACKOFF_MAX),
            trouble: None,
        }
    }

    /// They are being dialled.
    pub fn dial(&mut self, connections: [ConnectionId; 2]) {
        let line = |connection| Line { connection, stage: Stage::Dialling, quiet_ticks: 0 };
        self.outbound = Outbound::Dialled(connections.map(line));
    }

    /// The connections that were dialled.
    pub fn lines(&mut self) -> &mut [Line] {
        match &mut self.outbound {
            Outbound::Dialled(lines) => lines,
            Outbound::Waiting(_) => &mut [],
        }
    }

    /// Whether both connections can be used.
    pub fn is_up(&self) -> bool {
        matches!(&self.outbound, Outbound::Dialled(lines) if lines.iter().all(Line::is_welcomed))
    }

    /// The connection to send on, when the link is up.
    pub fn up(&self, channel: Channel) -> Option<ConnectionId> {
        match &self.outbound {
            Outbound::Dialled(lines) if self.is_up() => Some(lines[channel as usize].connection),
            _ => None,
        }
    }

    /// Links from and to it that can be used.
    pub fn usable(&self) -> u32 {
        u32::from(self.is_up()) + u32::from(self.inbound.iter().all(Option::is_some))
    }

    /// What a connection that was dialled is for.
    pub fn channel_of(&mut self, connection: ConnectionId) -> Option<Channel> {
        let at = self.lines().iter().position(|line| line.connection == connection)?;
        Some(Channel::ALL[at])
    }

    /// The state of a connection that was dialled.
    pub fn line_mut(&mut self, connection: ConnectionId) -> Option<&mut Line> {
        self.lines().iter_mut().find(|line| line.connection == connection)
    }

    /// The connections on which it sends to us; they are to be closed.
    pub fn take_inbound(&mut self) -> impl Iterator<Item = ConnectionId> + use<> {
        std::mem::take(&mut self.inbound).into_iter().flatten()
    }

    /// A tick has passed. Returns a dialled connection that is to be given up, and the link with it, with the reason.
    pub fn tick(&mut self) -> Option<(ConnectionId, &'static str)> {
        let mut given_up = None;
        for line in self.lines() {
            if let Some(why) = line.tick() {
                given_up = Some((line.connection, why));
            }
        }
        given_up
    }

    /// Whether a ping is due, which it is not for a while then.
    pub fn take_ping(&mut self) -> bool {
        let due = self.ping_ticks == 0;
        self.ping_ticks = if due { ticks(limits::PEER_PING_INTERVAL) } else { self.ping_ticks } - 1;
        due
    }

    /// The link is usable.
    pub fn came_up(&mut self) {
        self.backoff.reset();
        if self.trouble.take().is_some() {
            log::info!("server {} at {} answers again", self.node, self.address);
        }
    }

    /// The dialled connections are gone: dial again a little later.
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
