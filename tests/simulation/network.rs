//! The links between servers: one for each direction, each with its own bad habits.
//!
//! A link belongs to the server that dialled it and sends on it. Breaking it loses everything in
//! flight at once; the sender learns of it later, and what it sends meanwhile is lost too.

use std::collections::VecDeque;

use acervo::wire::message::Channel;

use crate::rng::Rng;

/// What a link is, to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not there: the sender dials.
    Down,
    Up,
    /// Messages are lost and the sender has not noticed.
    Broken,
}

/// How well a link carries messages.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Messages that arrive twice, of a thousand.
    pub duplication: u64,
    /// Messages that take up to fifty times longer, of a thousand.
    pub straggling: u64,
    pub delay_us: (u64, u64),
    /// Whether messages arrive in the order they were sent.
    pub ordered: bool,
}

impl Quality {
    /// A machine room on a good day.
    pub const GOOD: Quality =
        Quality { loss: 0, duplication: 0, straggling: 0, delay_us: (50, 300), ordered: true };
}

/// One direction between two servers.
pub struct Link {
    pub state: LinkState,
    /// Changes whenever what is in flight is lost.
    pub epoch: u64,
    /// Counts how often it came up.
    pub session: u64,
    /// The sender's data directory when the link came up.
    pub incarnation: u64,
    /// Whether a partition swallows what is sent.
    pub blocked: bool,
    /// Whether an attempt to connect is scheduled.
    pub dialling: bool,
    pub quality: Quality,
    /// What must not be lost while the link stands, in order: epoch and frame of each. The carrying
    /// resends.
    pub stream: VecDeque<(u64, Vec<u8>)>,
    /// Whether the receiver takes the link for usable.
    pub heard: bool,
    /// Of each of its two connections: what is sent on one may overtake what is sent on the other.
    last_delivery_us: [u64; 2],
    last_stream_us: u64,
}

/// Every link of the group.
pub struct Network {
    links: Vec<Link>,
    servers: usize,
}

impl Network {
    /// A network in which nobody is connected yet.
    pub fn new(servers: usize, quality: Quality) -> Network {
        let link = || Link {
            state: LinkState::Down,
            epoch: 0,
            session: 0,
            incarnation: 0,
            blocked: false,
            dialling: false,
            quality,
            stream: VecDeque::new(),
            heard: false,
            last_delivery_us: [0; 2],
            last_stream_us: 0,
        };
        Network { links: (0..servers * servers).map(|_| link()).collect(), servers }
    }

    /// The link on which `from` sends to `to`.
    pub fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from * self.servers + to]
    }

    pub fn links(&mut self) -> impl Iterator<Item = &mut Link> {
        self.links.iter_mut()
    }

    /// Whether a partition is between the two, one way or both.
    pub fn parted(&mut self, a: usize, b: usize) -> bool {
        self.link(a, b).blocked || self.link(b, a).blocked
    }
}

impl Link {
    /// When a frame that is appended to the stream now arrives, at the earliest.
    pub fn append(&mut self, now_us: u64, frame: Vec<u8>, rng: &mut Rng) -> u64 {
        self.stream.push_back((self.epoch, frame));
        let delay_us = rng.range(self.quality.delay_us.0..=self.quality.delay_us.1);
        self.last_stream_us = self.last_stream_us.max(now_us + delay_us);
        self.last_stream_us
    }

    /// When a message sent now on one of its connections arrives: never, once or twice.
    pub fn deliveries(&mut self, channel: Channel, now_us: u64, rng: &mut Rng) -> Vec<u64> {
        if self.state != LinkState::Up || self.blocked || rng.chance(self.quality.loss) {
            return Vec::new();
        }
        let copies = if rng.chance(self.quality.duplication) { 2 } else { 1 };
        let mut times = Vec::with_capacity(copies);
        for _ in 0..copies {
            let mut delay_us = rng.range(self.quality.delay_us.0..=self.quality.delay_us.1);
            if rng.chance(self.quality.straggling) {
                delay_us *= rng.range(2..=50);
            }
            let mut at_us = now_us + delay_us;
            if self.quality.ordered {
                let last_us = &mut self.last_delivery_us[channel as usize];
                at_us = at_us.max(*last_us);
                *last_us = at_us;
            }
            times.push(at_us);
        }
        times
    }
}
