//! What the swarm knows of one source: its connection, its chunks, its outstanding requests and how
//! it has served so far.
//!
//! Rule: this file computes with the facts of one source (rate, expected times, waits). Comparing
//! sources is left to `Swarm`.

use std::net::SocketAddr;
use std::time::Duration;

use super::interface::SwarmConfig;
use crate::limits::{self, CHUNK_BYTES};
use crate::share::chunks::ChunkSet;
use crate::share::rate::RateMeter;

/// Lower bound of the chunks that a source is asked for at once: two, so that it never waits a
/// round trip for its next request. It is one while the source takes twice
/// [`REQUEST_AHEAD`](limits::REQUEST_AHEAD) for a chunk.
const REQUESTS_AHEAD_MIN: usize = 2;
/// A source that said it is busy is asked again after this, doubling each time.
const SOURCE_BUSY_MIN: Duration = Duration::from_millis(200);
/// The longest pause before a busy source is asked again: places change hands within a second.
const SOURCE_BUSY_MAX: Duration = Duration::from_secs(2);

/// A source has stalled if it sends fewer bytes than this, or than an eighth of what its rate
/// promised, in [`CHUNK_STALLED`](limits::CHUNK_STALLED): less than any line that is worth a place.
const CHUNK_STALLED_BYTES: u64 = 4096;

/// The connection of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceStatus {
    /// No connection has been attempted.
    Untried,
    /// A connection is being opened.
    Connecting,
    Ready,
    /// Not connected; it may be dialled again at `until`.
    Away {
        until: Duration,
    },
    /// Dropped for good, and never dialled again.
    Banned,
}

/// The chunks that a source has announced.
#[derive(Debug)]
pub(super) enum SourceChunks {
    /// It has announced nothing yet.
    Nothing,
    Whole,
    /// These chunks of the content.
    Part(ChunkSet),
}

/// An outstanding request for a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assignment {
    pub(super) chunk: u64,
    pub(super) at: Duration,
    /// The time that the chunk was expected to take when it was requested.
    pub(super) due: Duration,
    /// Whether a stall over this chunk has been counted.
    pub(super) stalled: bool,
}

#[derive(Debug)]
pub(super) struct SwarmSource {
    pub(super) address: SocketAddr,
    pub(super) status: SourceStatus,
    pub(super) have: SourceChunks,
    /// Outstanding requests, oldest first.
    pub(super) assignments: Vec<Assignment>,
    /// The value of `ChunkTable::returns` at which it had no missing chunk.
    pub(super) dry_at: Option<u64>,
    /// The chunk after the one that was requested last.
    pub(super) next: u64,
    pub(super) meter: RateMeter,
    /// When it last sent a byte, was asked while idle, or was not being read.
    pub(super) heard: Duration,
    /// Not asked before this time, because it has answered BUSY.
    pub(super) busy_until: Option<Duration>,
    /// Consecutive BUSY answers since it last sent a chunk.
    pub(super) busy_times: u32,
    /// Bytes received of the chunk that it is sending.
    pub(super) begun_bytes: u64,
    /// When it last moved `moved_bytes_min` bytes, or was asked while idle.
    pub(super) moved_at: Duration,
    /// Bytes received since `moved_at`.
    pub(super) moved_bytes: u64,
    /// How many bytes count as moving: depends on its rate when it was asked last.
    pub(super) moved_bytes_min: u64,
    pub(super) dialled: Option<Duration>,
    /// When the present connection was established.
    pub(super) since: Duration,
    /// When it last had a request outstanding, or was connected.
    pub(super) used: Duration,
    /// Consecutive failures, which determine how long it is left alone.
    pub(super) failures: u32,
    pub(super) given_bytes: u64,
    /// Chunks that it has stalled over and not sent afterwards.
    pub(super) stalls: u32,
    /// Chunks from it that have arrived and are not verified yet.
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
            moved_bytes_min: CHUNK_STALLED_BYTES,
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

    /// Whether it occupies a place.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(self.status, SourceStatus::Connecting | SourceStatus::Ready)
    }

    pub(super) fn is_busy(&self, now: Duration) -> bool {
        self.busy_until.is_some_and(|until| now < until)
    }

    /// The number of requests it may have outstanding: what it serves within
    /// [`limits::REQUEST_AHEAD`], and one more. A source that needs twice that time for a chunk, or
    /// has sent nothing yet, gets one: a round trip between two chunks does not slow it down, and
    /// what it has outstanding in the end has to be fetched elsewhere.
    pub(super) fn window(&self) -> usize {
        let ahead = self.meter.rate() * limits::REQUEST_AHEAD.as_secs_f64() / CHUNK_BYTES as f64;
        if ahead < 0.5 {
            return 1;
        }
        (ahead.ceil() as usize + 1).clamp(REQUESTS_AHEAD_MIN, limits::REQUESTS_AHEAD_MAX)
    }

    pub(super) fn has_assignment(&self, chunk: u64) -> bool {
        self.assignments.iter().any(|assignment| assignment.chunk == chunk)
    }

    pub(super) fn remove_assignment(&mut self, chunk: u64) -> Option<Assignment> {
        let at = self.assignments.iter().position(|assignment| assignment.chunk == chunk)?;
        Some(self.assignments.remove(at))
    }

    /// How long one more chunk should take; zero as long as its rate is unknown.
    pub(super) fn due(&self) -> Duration {
        let due = Duration::try_from_secs_f64(self.expected_next_s());
        due.unwrap_or(Duration::MAX).min(limits::LONE_SOURCE_SLOW_AFTER)
    }

    /// Records the request for one more chunk.
    pub(super) fn ask(&mut self, chunk: u64, now: Duration) {
        if self.assignments.is_empty() {
            self.heard = now;
            self.moved_at = now;
            self.moved_bytes = 0;
        }
        // An eighth of its rate, because others may come to share its line.
        let stalled_s = limits::CHUNK_STALLED.as_secs_f64();
        let least = (self.meter.rate() * stalled_s / 8.0) as u64;
        self.moved_bytes_min = least.max(CHUNK_STALLED_BYTES);
        self.assignments.push(Assignment { chunk, at: now, due: self.due(), stalled: false });
        self.next = chunk + 1;
    }

    /// Records that bytes of requested chunks have been received.
    pub(super) fn moved(&mut self, bytes: u64, now: Duration) {
        self.moved_bytes += bytes;
        if self.moved_bytes >= self.moved_bytes_min {
            self.moved_at = now;
            self.moved_bytes = 0;
        }
    }

    /// Whether it has stalled over a chunk: the chunk takes much longer than expected, and nothing
    /// is coming any more.
    pub(super) fn is_stalled_over(&self, assignment: &Assignment, now: Duration) -> bool {
        let has_stopped = now.saturating_sub(self.moved_at) >= limits::CHUNK_STALLED;
        has_stopped
            && now.saturating_sub(assignment.at) >= limits::CHUNK_STALLED.max(2 * assignment.due)
    }

    /// Whether it has stopped for so long that nothing more is expected of its oldest request.
    pub(super) fn is_stuck(&self, now: Duration) -> bool {
        let stopped_for = now.saturating_sub(self.moved_at);
        let is_stalled = self
            .assignments
            .first()
            .is_some_and(|assignment| self.is_stalled_over(assignment, now));
        is_stalled && stopped_for >= 2 * limits::CHUNK_STALLED
    }

    /// Whether it could start with one more chunk now and would soon complete it.
    pub(super) fn is_quick(&self) -> bool {
        let most_s = 2.0 * limits::CHUNK_STALLED.as_secs_f64();
        self.assignments.len() < self.window() && self.expected_next_s() <= most_s
    }

    /// The expected time in seconds until it has completed its request at `position`, from 0.
    pub(super) fn expected_s(&self, position: usize) -> f64 {
        let bytes = (position + 1) as f64 * CHUNK_BYTES as f64 - self.begun_bytes as f64;
        // A source that has sent nothing yet seems infinitely slow here, so that others race it.
        bytes.max(0.0) / self.meter.rate().max(1.0)
    }

    /// The expected time in seconds for one more chunk behind the outstanding ones; 0 as long as
    /// its rate is unknown, because it has to be tried.
    pub(super) fn expected_next_s(&self) -> f64 {
        if self.meter.rate() > 0.0 { self.expected_s(self.assignments.len()) } else { 0.0 }
    }

    /// Records a failure and returns how long to leave the source alone: doubling from `first` to
    /// `max`.
    pub(super) fn fail(&mut self, first: Duration, max: Duration) -> Duration {
        let wait = first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        wait.min(max)
    }

    /// Records a BUSY answer: the source is not asked for a time that doubles.
    pub(super) fn refuse_busy(&mut self, now: Duration) {
        let wait = SOURCE_BUSY_MIN.saturating_mul(1 << self.busy_times.min(16));
        self.busy_times = self.busy_times.saturating_add(1);
        self.busy_until = Some(now + wait.min(SOURCE_BUSY_MAX));
    }
}
