//! The books of a server's peers: what each has asked for, gets, and watches.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::places::Times;
use crate::limits;
use crate::share::chunks::ChunkSet;
use crate::share::types::ContentId;

/// A chunk that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub request: u64,
    pub content: ContentId,
    pub index: u64,
}

/// A chunk on its way out: its announcing frame, and the rest of its bytes.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Until it is sent.
    pub header: Option<Vec<u8>>,
    pub bytes: Bytes,
}

/// A content of which a peer wants to know each new chunk.
#[derive(Debug)]
pub(super) struct Watch {
    pub request: u64,
    pub content: ContentId,
    /// What it was told of.
    pub told: ChunkSet,
}

/// One peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub address: SocketAddr,
    /// When it had its last turn, or connected, in order.
    pub last_turn: u64,
    pub greeted: bool,
    /// It keeps its place, whoever comes.
    pub keeps_place: bool,
    /// Asked for, and not being read yet.
    pub wanted: VecDeque<Wanted>,
    /// Being read.
    pub reading: usize,
    /// Read, and not handed to the connection whole.
    pub outgoing: VecDeque<Outgoing>,
    /// For each piece handed to the connection and not taken by the system: its bytes, and is it a chunk's last?
    pub pieces: VecDeque<(usize, bool)>,
    /// Bytes of the chunk that it takes now, in pieces that the system has taken whole.
    pub taken_bytes: u64,
    /// Frames that may not come between a chunk's pieces.
    pub behind: Vec<u8>,
    pub watches: Vec<Watch>,
    /// For how long it has kept this side waiting over the chunk that it takes now, until `waited_for` …
    pub kept_waiting: Duration,
    /// … and since when it does so again.
    pub waited_for: Option<Instant>,
    /// The same over the last chunk.
    pub took: Option<Duration>,
    /// When it last had its turn, or asked after it had wanted nothing.
    pub waiting_since: Option<Instant>,
    /// Until when it counts as slow before it has taken anything, as another connection of its address was.
    pub known_slow_until: Option<Instant>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, last_turn: u64) -> Peer {
        Peer {
            address,
            last_turn,
            greeted: false,
            keeps_place: false,
            wanted: VecDeque::new(),
            reading: 0,
            outgoing: VecDeque::new(),
            pieces: VecDeque::new(),
            taken_bytes: 0,
            behind: Vec::new(),
            watches: Vec::new(),
            kept_waiting: Duration::ZERO,
            waited_for: None,
            took: None,
            waiting_since: None,
            known_slow_until: None,
        }
    }

    /// Chunks for which it has a buffer, of one kind or another.
    pub(super) fn holds(&self) -> usize {
        let sent_to_the_end = self.pieces.iter().filter(|(_, last)| *last).count();
        self.reading + self.outgoing.len() + sent_to_the_end
    }

    /// How it takes its chunks.
    pub(super) fn times(&self, now: Instant) -> Times {
        let again = self.waited_for.map(|since| now.saturating_duration_since(since));
        let taking = self.kept_waiting + again.unwrap_or_default();
        let is_known_slow = self.known_slow_until.is_some_and(|until| now < until);
        Times { took: self.took, taking, is_known_slow }
    }

    /// Whether this side waits for it from now on.
    pub(super) fn wait_for(&mut self, is_waited_for: bool, now: Instant) {
        self.kept_waiting = self.times(now).taking;
        self.waited_for = is_waited_for.then_some(now);
    }

    /// Bytes that it has taken of the present chunk, when so many wait on its connection.
    pub(super) fn taken_bytes(&self, queued: usize) -> u64 {
        let handed: usize = self.pieces.iter().map(|(bytes, _)| bytes).sum();
        self.taken_bytes + handed.saturating_sub(queued) as u64
    }

    /// The system has taken a piece whole.
    pub(super) fn piece_taken(&mut self, now: Instant) {
        match self.pieces.pop_front() {
            None => {}
            Some((bytes, false)) => self.taken_bytes += bytes as u64,
            Some((_, true)) => {
                self.wait_for(!self.pieces.is_empty(), now);
                self.took = Some(std::mem::take(&mut self.kept_waiting));
                self.taken_bytes = 0;
            }
        }
    }

    /// Whether it is being served, or waits for that.
    pub(super) fn is_uploading(&self) -> bool {
        !self.wanted.is_empty() || self.holds() > 0
    }

    /// Whether it is to be told of new chunks now. What is not told now is told later.
    pub(super) fn hears_of_chunks(&self) -> bool {
        !self.watches.is_empty() && !self.is_crowded()
    }

    /// Whether so much waits behind the chunk that nothing more is to be asked, or told.
    pub(super) fn is_crowded(&self) -> bool {
        self.behind.len() > limits::BEHIND_CHUNK_BYTES_MAX
    }

    /// Whether a chunk is sent in part, so that no frame may be.
    pub(super) fn is_within_chunk(&self) -> bool {
        self.outgoing.front().is_some_and(|chunk| chunk.header.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::Taker;
    use super::*;

    /// Under a rate 28 connections that took a little every ten seconds had every place for good.
    #[test]
    fn whoever_does_not_take_what_it_is_given_is_slow_also_under_a_rate() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut peer = Peer::new(SocketAddr::from(([127, 0, 0, 1], 1)), 1);
        // It takes what it is given now and then, and is slow by the sum of what it does not take.
        for turn in 0..6 {
            peer.wait_for(true, at(1000 * turn));
            assert!(peer.times(at(1000 * turn)).taker(None) != Taker::Slow, "turn {turn}");
            peer.wait_for(false, at(1000 * turn + 90));
        }
        assert_eq!(peer.times(at(9000)).taking, Duration::from_millis(540));
        assert_eq!(peer.times(at(9000)).taker(None), Taker::Slow);
        // Of a chunk in two pieces it has taken one and a half.
        peer.pieces.extend([(600, false), (400, true)]);
        peer.piece_taken(at(9000));
        assert_eq!((peer.taken_bytes(200), peer.holds()), (800, 1));
        peer.piece_taken(at(9000));
        assert_eq!((peer.taken_bytes(0), peer.holds()), (0, 0));
        assert_eq!(peer.times(at(9000)).taking, Duration::ZERO);
        assert_eq!(peer.took, Some(Duration::from_millis(540)));
    }
}
