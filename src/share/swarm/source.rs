//! One source, as the swarm knows it.

use std::net::SocketAddr;
use std::time::Duration;

use super::Config;
use crate::limits::{self, CHUNK_BYTES};
use crate::share::chunks::ChunkSet;
use crate::share::rate::RateMeter;

/// Where a source is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Known, and not dialled yet.
    Untried,
    /// Being dialled.
    Connecting,
    /// There.
    Ready,
    /// Gone, to be dialled again then.
    Away {
        /// When.
        until: Duration,
    },
    /// Gone for good.
    Banned,
}

/// What a source has.
#[derive(Debug)]
pub(super) enum Have {
    /// Not known to have anything.
    Nothing,
    /// Everything.
    Whole,
    /// Some of it.
    Part(ChunkSet),
}

/// A chunk that it owes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) chunk: u64,
    pub(super) at: Duration,
}

/// One source.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) address: SocketAddr,
    pub(super) standing: Standing,
    pub(super) have: Have,
    /// What it owes, oldest first.
    pub(super) asked: Vec<Asked>,
    /// It had nothing that was missing when the swarm's count of returns was this.
    pub(super) dry_at: Option<u64>,
    /// The chunk after the one it was asked for last.
    pub(super) next: u64,
    pub(super) meter: RateMeter,
    /// When it last gave a byte, or was asked while it owed nothing, or was not listened to.
    pub(super) heard: Duration,
    /// It has said that it is busy.
    pub(super) busy_until: Option<Duration>,
    /// Refusals for being busy since it last gave a chunk.
    pub(super) busy_times: u32,
    /// Bytes that have come since its last whole chunk: of the one it gives now.
    pub(super) begun_bytes: u64,
    /// When it was dialled last.
    pub(super) dialled: Option<Duration>,
    /// Since when it is there.
    pub(super) since: Duration,
    /// When it last owed something, or connected.
    pub(super) used: Duration,
    /// In a row, for how long to leave it alone.
    pub(super) failures: u32,
    pub(super) given_bytes: u64,
    /// Chunks of its that have arrived and are not checked yet.
    pub(super) unchecked: usize,
}

impl Source {
    pub(super) fn new(address: SocketAddr, config: &Config, now: Duration) -> Source {
        Source {
            address,
            standing: Standing::Untried,
            have: Have::Nothing,
            asked: Vec::new(),
            dry_at: None,
            next: u64::MAX,
            meter: RateMeter::new(config.rate_constant),
            heard: now,
            busy_until: None,
            busy_times: 0,
            begun_bytes: 0,
            dialled: None,
            since: now,
            used: now,
            failures: 0,
            given_bytes: 0,
            unchecked: 0,
        }
    }

    pub(super) fn has(&self, chunk: u64) -> bool {
        match &self.have {
            Have::Nothing => false,
            Have::Whole => true,
            Have::Part(set) => set.contains(chunk),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.standing == Standing::Ready
    }

    /// Whether it is being dialled or there.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(self.standing, Standing::Connecting | Standing::Ready)
    }

    pub(super) fn is_busy(&self, now: Duration) -> bool {
        self.busy_until.is_some_and(|until| now < until)
    }

    /// How many chunks it may owe: what it gives in the time that asking ahead covers, and one more. One that takes
    /// twice that time for a chunk, or has not shown anything yet, owes one: a round trip between two chunks is
    /// nothing to it, and whatever it owes in the end has to be fetched elsewhere.
    pub(super) fn window(&self) -> usize {
        let ahead = self.meter.rate() * limits::REQUEST_AHEAD.as_secs_f64() / CHUNK_BYTES as f64;
        if ahead < 0.5 {
            return 1;
        }
        (ahead.ceil() as usize + 1).clamp(limits::REQUESTS_AHEAD_MIN, limits::REQUESTS_AHEAD_MAX)
    }

    pub(super) fn owes(&self, chunk: u64) -> bool {
        self.asked.iter().any(|asked| asked.chunk == chunk)
    }

    /// Strikes a debt; whether there was one.
    pub(super) fn settle(&mut self, chunk: u64) -> bool {
        let before = self.asked.len();
        self.asked.retain(|asked| asked.chunk != chunk);
        self.asked.len() < before
    }

    /// How long it will take over its `position`th debt, from 0.
    pub(super) fn expected_s(&self, position: usize) -> f64 {
        let bytes = (position + 1) as f64 * CHUNK_BYTES as f64 - self.begun_bytes as f64;
        // A source that has not shown anything yet is not waited for.
        bytes.max(0.0) / self.meter.rate().max(1.0)
    }

    /// How long it takes over one more chunk than it owes; no time when that has to be found out.
    pub(super) fn expected_next_s(&self) -> f64 {
        if self.meter.rate() > 0.0 { self.expected_s(self.asked.len()) } else { 0.0 }
    }

    /// How long to leave it alone after one more failure: doubling, up to a limit.
    pub(super) fn fail(&mut self, first: Duration, max: Duration) -> Duration {
        let wait = first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        wait.min(max)
    }

    /// How long not to ask it after it has said once more that it is busy.
    pub(super) fn refuse_busy(&mut self, now: Duration) {
        let wait = limits::SOURCE_BUSY_MIN.saturating_mul(1 << self.busy_times.min(16));
        self.busy_times = self.busy_times.saturating_add(1);
        self.busy_until = Some(now + wait.min(limits::SOURCE_BUSY_MAX));
    }
}
