//! One source, as the swarm knows it.

use std::time::Duration;

use super::Config;
use crate::limits::{self, CHUNK_BYTES};
use crate::share::chunks::ChunkSet;
use crate::share::rate::RateMeter;

/// Where a source is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
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
    /// In a row, for how long to leave it alone.
    pub(super) failures: u32,
    pub(super) given_bytes: u64,
}

impl Source {
    pub(super) fn new(config: &Config, now: Duration) -> Source {
        Source {
            standing: Standing::Connecting,
            have: Have::Nothing,
            asked: Vec::new(),
            dry_at: None,
            next: u64::MAX,
            meter: RateMeter::new(config.rate_constant),
            heard: now,
            busy_until: None,
            failures: 0,
            given_bytes: 0,
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

    /// How many chunks it may owe: what it gives in the time that asking ahead covers, and one more.
    pub(super) fn window(&self) -> usize {
        let ahead = self.meter.rate() * limits::REQUEST_AHEAD.as_secs_f64() / CHUNK_BYTES as f64;
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
        // A source that has not shown anything yet is not waited for.
        (position + 1) as f64 * CHUNK_BYTES as f64 / self.meter.rate().max(1.0)
    }

    /// How long to leave it alone after one more failure: doubling, up to a limit.
    pub(super) fn fail(&mut self, first: Duration) -> Duration {
        let wait = first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        wait.min(limits::SOURCE_AWAY_MAX)
    }
}
