//! Decides how peers share a server's memory and its line.
//!
//! - **No peer waits for memory that another's slow line holds.** Each connection has a buffer for
//!   one slice of a chunk. A peer that is new or slow, or finds no buffer for a whole chunk, is
//!   sent its chunk slice by slice; each slice is read when the previous one has been taken. So
//!   being judged slow costs a peer little, and none is cut off to make room.
//! - **Buffers for whole chunks are for fast takers.** The next one goes to the IP address whose
//!   peers hold the fewest buffers, and among its peers to the one that has waited longest. One
//!   buffer is kept for chunks that were reported as wrong.
//! - **Of the slow peers of one IP address only some are served at once.** Otherwise, on a slow
//!   line where every peer is slow, a hundred connections of one address would take a hundred
//!   shares. They take turns chunk by chunk; the one that has waited longest is next. Peers that
//!   are far slower than one has shown to be do not count for it, since they take almost nothing of
//!   the line. So a peer waits for no more turns of peers that are no faster than there are peers
//!   at its address.
//! - **No peer is cut off for the sake of others.** Only a connection over which almost nothing is
//!   sent is closed, after a minute.
//!
//! The module is pure: the caller passes the times and the number of free buffers.

use std::time::Duration;

use crate::limits;

/// Slow peers of one IP address that are sent a chunk at a time. Where the serving line makes
/// everybody slow, this bounds the share of an address that opens many connections.
const UPLOAD_SLOW_PER_ORIGIN_MAX: usize = 16;
/// A peer's rate is measured over at least this time. Until then its rate with the previous chunk
/// counts if that was higher.
const UPLOAD_RATE_OVER_MIN: Duration = Duration::from_secs(2);
/// Slow peers of an address that are slower by this factor than another of the same address do not
/// count when that one is to be served.
const UPLOAD_FAR_FACTOR: f64 = 4.0;
/// A peer that has taken this long over one chunk, at less than the rate a source has to give, is
/// disconnected.
const UPLOAD_CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// How fast a peer takes its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakerSpeed {
    /// It has taken no chunk yet.
    New,
    Quick,
    Slow,
}

/// How long this side has been waiting for a peer. Without a rate limit: from handing over a chunk
/// or a slice until it is taken. With one: while the peer has not taken what it was given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TakerTimes {
    /// Over the previous chunk; `None` if there was none.
    pub took: Option<Duration>,
    /// Over the present chunk so far.
    pub taking: Duration,
}

impl TakerTimes {
    pub(super) fn taker(self) -> TakerSpeed {
        let time = self.took.unwrap_or_default().max(self.taking);
        match self.took {
            _ if time >= limits::UPLOAD_SLOW_AFTER => TakerSpeed::Slow,
            Some(_) => TakerSpeed::Quick,
            None => TakerSpeed::New,
        }
    }

    /// The rate at which it took its previous chunk, in bytes a second; 0 if there was none.
    pub(super) fn shown_rate(self) -> f64 {
        let of = |took: Duration| limits::CHUNK_BYTES as f64 / took.as_secs_f64().max(0.001);
        self.took.map_or(0.0, of)
    }

    /// The rate at which it takes its present chunk, of which it has taken `taken_bytes`. While the
    /// chunk has just begun, the rate of the previous one counts if it is higher.
    pub(super) fn rate(self, taken_bytes: u64) -> f64 {
        let over = self.taking.max(limits::UPLOAD_SLOW_AFTER);
        let rate = taken_bytes as f64 / over.as_secs_f64();
        let is_new = self.taking < UPLOAD_RATE_OVER_MIN;
        if is_new { rate.max(self.shown_rate()) } else { rate }
    }

    /// Whether almost nothing is sent over its connection.
    pub(super) fn has_stopped(self, taken_bytes: u64) -> bool {
        self.taking >= UPLOAD_CHUNK_TIMEOUT
            && self.rate(taken_bytes) < limits::SOURCE_RATE_MIN as f64
    }
}

/// The numbers in the rules. Tests make them small.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceRules {
    /// Buffers for whole chunks that one peer may have.
    pub whole_per_peer_max: usize,
    /// Slow peers of one IP address that are served at once.
    pub slow_per_origin_max: usize,
}

impl Default for PlaceRules {
    fn default() -> PlaceRules {
        PlaceRules {
            whole_per_peer_max: limits::UPLOAD_CHUNKS_PER_PEER_MAX,
            slow_per_origin_max: UPLOAD_SLOW_PER_ORIGIN_MAX,
        }
    }
}

/// A peer that may get a buffer for a whole chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct BufferClaim {
    /// The number of buffers held by all peers of its IP address.
    pub origin_holds: usize,
    /// The order of its last turn, or of its connection. Being answered BUSY does not change it.
    pub last_turn: u64,
}

impl PlaceRules {
    /// Whether a peer that holds `holds` buffers, and is not being sent slices, may have one more
    /// for a whole chunk. `free` buffers are left. The second round is for peers that hold some
    /// already.
    pub(super) fn may_have_whole(
        &self,
        free: usize,
        holds: usize,
        taker: TakerSpeed,
        second_round: bool,
    ) -> bool {
        let is_its_round = holds == 0 || second_round && holds < self.whole_per_peer_max;
        taker == TakerSpeed::Quick && is_its_round && free > 1
    }

    /// Whether a peer that is not being sent anything may start with a chunk in slices.
    /// `slow_rates` are those of the slow peers of its IP address that are being sent one.
    pub(super) fn may_begin(&self, times: TakerTimes, slow_rates: &[f64]) -> bool {
        let shown = times.shown_rate();
        let count = |rate: &&f64| **rate * UPLOAD_FAR_FACTOR >= shown;
        times.taker() != TakerSpeed::Slow
            || slow_rates.iter().filter(count).count() < self.slow_per_origin_max
    }
}

/// The index of the claim that gets the next buffer for a whole chunk.
pub(super) fn next_whole(claims: &[BufferClaim]) -> Option<usize> {
    (0..claims.len()).min_by_key(|at| (claims[*at].origin_holds, claims[*at].last_turn))
}

#[cfg(test)]
mod tests;
