//! One source, as the swarm knows it.

use std::net::SocketAddr;
use std::time::Duration;

use super::SwarmConfig;
use crate::limits::{self, CHUNK_BYTES};
use crate::share::chunks::ChunkSet;
use crate::share::rate::RateMeter;

/// Where a source is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceStatus {
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
pub(super) enum SourceChunks {
    /// Not known to have anything.
    Nothing,
    /// Everything.
    Whole,
    /// Some of it.
    Part(ChunkSet),
}

/// A chunk that it owes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assignment {
    pub(super) chunk: u64,
    pub(super) at: Duration,
    /// How long it was expected to take then.
    pub(super) due: Duration,
    /// It took much longer, which has been counted.
    pub(super) stalled: bool,
}

/// One source.
#[derive(Debug)]
pub(super) struct SwarmSource {
    pub(super) address: SocketAddr,
    pub(super) status: SourceStatus,
    pub(super) have: SourceChunks,
    /// What it owes, oldest first.
    pub(super) assignments: Vec<Assignment>,
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
    /// When it last gave as much as is progress for one that was so quick when it was asked last, or was asked while it
    /// owed nothing …
    pub(super) moved_at: Duration,
    /// … bytes since …
    pub(super) moved_bytes: u64,
    /// … and how many bytes those have to be.
    pub(super) moved_bytes_min: u64,
    /// When it was dialled last.
    pub(super) dialled: Option<Duration>,
    /// Since when it is there.
    pub(super) since: Duration,
    /// When it last owed something, or connected.
    pub(super) used: Duration,
    /// In a row, for how long to leave it alone.
    pub(super) failures: u32,
    pub(super) given_bytes: u64,
    /// Chunks that it has let lie, and not given afterwards.
    pub(super) stalls: u32,
    /// Chunks of its that have arrived and are not checked yet.
    pub(super) unchecked: usize,
}

impl SwarmSource {
    pub(super) fn new(address: SocketAddr, config: &SwarmConfig, now: Duration) -> SwarmSource {
        SwarmSource {
            address,
            status: SourceStatus::Untried,
            have: SourceChunks::Nothing,
            assignments: Vec::new(),
            dry_at: None,
            next: u64::MAX,
            meter: RateMeter::new(config.rate_constant),
            heard: now,
            busy_until: None,
            busy_times: 0,
            begun_bytes: 0,
            moved_at: now,
            moved_bytes: 0,
            moved_bytes_min: limits::CHUNK_STALLED_BYTES,
            dialled: None,
            since: now,
            used: now,
            failures: 0,
            given_bytes: 0,
            stalls: 0,
            unchecked: 0,
        }
    }

    pub(super) fn has(&self, chunk: u64) -> bool {
        match &self.have {
            SourceChunks::Nothing => false,
            SourceChunks::Whole => true,
            SourceChunks::Part(set) => set.contains(chunk),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.status == SourceStatus::Ready
    }

    /// Whether it is being dialled or there.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(self.status, SourceStatus::Connecting | SourceStatus::Ready)
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

    pub(super) fn has_assignment(&self, chunk: u64) -> bool {
        self.assignments.iter().any(|assignment| assignment.chunk == chunk)
    }

    /// Strikes a debt, if there is one.
    pub(super) fn remove_assignment(&mut self, chunk: u64) -> Option<Assignment> {
        let at = self.assignments.iter().position(|assignment| assignment.chunk == chunk)?;
        Some(self.assignments.remove(at))
    }

    /// How long one more chunk should take it; no time as long as nobody knows.
    pub(super) fn due(&self) -> Duration {
        let due = Duration::try_from_secs_f64(self.expected_next_s());
        due.unwrap_or(Duration::MAX).min(limits::LONE_SOURCE_SLOW_AFTER)
    }

    /// One more chunk is asked of it.
    pub(super) fn ask(&mut self, chunk: u64, now: Duration) {
        if self.assignments.is_empty() {
            self.heard = now;
            self.moved_at = now;
            self.moved_bytes = 0;
        }
        // An eighth of its rate, since others may come to share its line.
        let stalled_s = limits::CHUNK_STALLED.as_secs_f64();
        let least = (self.meter.rate() * stalled_s / 8.0) as u64;
        self.moved_bytes_min = least.max(limits::CHUNK_STALLED_BYTES);
        self.assignments.push(Assignment { chunk, at: now, due: self.due(), stalled: false });
        self.next = chunk + 1;
    }

    /// So many bytes more have come of what it owes.
    pub(super) fn moved(&mut self, bytes: u64, now: Duration) {
        self.moved_bytes += bytes;
        if self.moved_bytes >= self.moved_bytes_min {
            self.moved_at = now;
            self.moved_bytes = 0;
        }
    }

    /// Whether it lets a chunk lie: it takes much longer than it should, and has stopped giving anything.
    pub(super) fn is_stalled_over(&self, assignment: &Assignment, now: Duration) -> bool {
        let has_stopped = now.saturating_sub(self.moved_at) >= limits::CHUNK_STALLED;
        has_stopped
            && now.saturating_sub(assignment.at) >= limits::CHUNK_STALLED.max(2 * assignment.due)
    }

    /// Whether nothing is expected of it any more in what it owes.
    pub(super) fn is_stuck(&self, now: Duration) -> bool {
        let stopped_for = now.saturating_sub(self.moved_at);
        let is_stalled = self
            .assignments
            .first()
            .is_some_and(|assignment| self.is_stalled_over(assignment, now));
        is_stalled && stopped_for >= 2 * limits::CHUNK_STALLED
    }

    /// Whether it could begin with one more chunk now, and would not take long over it.
    pub(super) fn is_quick(&self) -> bool {
        let most_s = 2.0 * limits::CHUNK_STALLED.as_secs_f64();
        self.assignments.len() < self.window() && self.expected_next_s() <= most_s
    }

    /// How long it will take over its `position`th debt, from 0.
    pub(super) fn expected_s(&self, position: usize) -> f64 {
        let bytes = (position + 1) as f64 * CHUNK_BYTES as f64 - self.begun_bytes as f64;
        // A source that has not shown anything yet is not waited for.
        bytes.max(0.0) / self.meter.rate().max(1.0)
    }

    /// How long it takes over one more chunk than it owes; no time when that has to be found out.
    pub(super) fn expected_next_s(&self) -> f64 {
        if self.meter.rate() > 0.0 { self.expected_s(self.assignments.len()) } else { 0.0 }
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
