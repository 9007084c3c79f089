//! The state of one connection of a server: requests, buffers on their way out, and watched
//! contents.
//!
//! Rule: a buffer that was read for a peer is counted until the system has taken all of it
//! (`reading`, then `outgoing`, then `pieces`), so that `holds` is the number of buffers the peer
//! occupies.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::places::TakerTimes;
use crate::limits;
use crate::model::ContentId;
use crate::share::chunks::ChunkSet;

/// Bytes of frames that wait for one peer behind a chunk that is sent slowly. Past it nothing is
/// read from the peer until the chunk is sent.
const BEHIND_CHUNK_BYTES_MAX: usize = 64 * 1024;

/// A request for a chunk that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkRequest {
    pub request: u64,
    pub content: ContentId,
    pub index: u64,
}

/// A chunk or a slice that was read and is to be sent, and the frame that announces the chunk.
#[derive(Debug)]
pub(super) struct OutgoingChunk {
    /// `None` once it has been sent.
    pub header: Option<Vec<u8>>,
    pub bytes: Bytes,
    /// Whether this is the end of its chunk.
    pub ends_chunk: bool,
}

/// A part of a chunk that was handed to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentPiece {
    pub bytes: usize,
    /// Whether its buffer is free when it has been taken.
    pub ends_buffer: bool,
    pub ends_chunk: bool,
}

/// A chunk that is read and sent slice by slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlicedChunk {
    pub wanted: ChunkRequest,
    /// The chunk's length in bytes.
    pub length: usize,
    /// How many of its bytes have been read.
    pub read: usize,
}

impl SlicedChunk {
    pub(super) fn next_len(&self) -> usize {
        assert!(self.read < self.length, "{self:?} has a next slice");
        (self.length - self.read).min(limits::UPLOAD_SLICE_BYTES)
    }
}

/// A content whose new chunks are announced to a peer.
#[derive(Debug)]
pub(super) struct ContentWatch {
    pub request: u64,
    pub content: ContentId,
    /// The chunks that have been announced.
    pub told: ChunkSet,
}

#[derive(Debug)]
pub(super) struct ServedPeer {
    pub address: SocketAddr,
    /// The order of its last turn, or of its connection.
    pub last_turn: u64,
    pub greeted: bool,
    /// The order of the last piece that it was sent under a limit on the rate, or of its
    /// connection: whoever is new comes at the end of the round, so that any number of them does
    /// not keep out a peer that is being served.
    pub last_piece: u64,
    /// Whether the event loop was told not to close it for a new connection.
    pub keeps_place: bool,
    /// Whether its connection is closed or about to be: nothing more is read for it.
    pub is_ending: bool,
    /// Requests that are not being read yet.
    pub wanted: VecDeque<ChunkRequest>,
    /// The number of its jobs that are outstanding.
    pub reading: usize,
    /// The chunk that is being sent in slices, until the last one has been read. Nothing else is
    /// read for the peer meanwhile.
    pub slices: Option<SlicedChunk>,
    /// Read, and not completely handed to the connection.
    pub outgoing: VecDeque<OutgoingChunk>,
    /// Handed to the connection, and not completely taken by the system.
    pub pieces: VecDeque<SentPiece>,
    /// Whether a chunk is being sent in parts, so that no frame may be sent.
    pub is_within_chunk: bool,
    /// Bytes of the present chunk in pieces that the system has taken completely.
    pub taken_bytes: u64,
    /// Frames to be sent after the present chunk.
    pub deferred: Vec<u8>,
    pub watches: Vec<ContentWatch>,
    /// How long this side has waited for it over the present chunk, up to `waited_for`.
    pub kept_waiting: Duration,
    /// Since when this side waits for it again.
    pub waited_for: Option<Instant>,
    /// How long this side waited for it over the previous chunk.
    pub took: Option<Duration>,
    /// When it last had its turn, or made a request when it had none.
    pub waiting_since: Option<Instant>,
}

impl ServedPeer {
    /// Nothing more is read for it.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
        self.wanted.clear();
    }

    /// A peer whose connection has this place in the order of turns and pieces.
    pub(super) fn new(address: SocketAddr, connected: u64) -> ServedPeer {
        ServedPeer {
            address,
            last_turn: connected,
            last_piece: connected,
            greeted: false,
            keeps_place: false,
            is_ending: false,
            wanted: VecDeque::new(),
            reading: 0,
            slices: None,
            outgoing: VecDeque::new(),
            pieces: VecDeque::new(),
            is_within_chunk: false,
            taken_bytes: 0,
            deferred: Vec::new(),
            watches: Vec::new(),
            kept_waiting: Duration::ZERO,
            waited_for: None,
            took: None,
            waiting_since: None,
        }
    }

    /// The number of buffers that it occupies.
    pub(super) fn holds(&self) -> usize {
        let handed_to_the_end = self.pieces.iter().filter(|piece| piece.ends_buffer).count();
        self.reading + self.outgoing.len() + handed_to_the_end
    }

    pub(super) fn is_served(&self) -> bool {
        self.slices.is_some() || self.holds() > 0
    }

    /// Whether it has requested a chunk and is not being sent anything.
    pub(super) fn is_waiting(&self) -> bool {
        !self.wanted.is_empty() && !self.is_served()
    }

    pub(super) fn times(&self, now: Instant) -> TakerTimes {
        let again = self.waited_for.map(|since| now.saturating_duration_since(since));
        let taking = self.kept_waiting + again.unwrap_or_default();
        TakerTimes { took: self.took, taking }
    }

    /// Sets whether this side waits for the peer from now on.
    pub(super) fn wait_for(&mut self, is_waited_for: bool, now: Instant) {
        self.kept_waiting = self.times(now).taking;
        self.waited_for = is_waited_for.then_some(now);
    }

    /// Bytes that it has taken of the present chunk; `queued` bytes wait on its connection.
    pub(super) fn taken_bytes(&self, queued: usize) -> u64 {
        let handed: usize = self.pieces.iter().map(|piece| piece.bytes).sum();
        self.taken_bytes + handed.saturating_sub(queued) as u64
    }

    /// The system has taken a piece completely.
    pub(super) fn piece_taken(&mut self, now: Instant) {
        // The network layer reports each piece once, in the order in which they were handed over.
        let piece = self.pieces.pop_front().expect("a piece was handed to the connection");
        self.taken_bytes += piece.bytes as u64;
        if piece.ends_chunk || self.pieces.is_empty() {
            // Until the next slice has been read, the peer waits for this side.
            self.wait_for(!self.pieces.is_empty(), now);
        }
        if piece.ends_chunk {
            self.took = Some(std::mem::take(&mut self.kept_waiting));
            self.taken_bytes = 0;
        }
    }

    /// Whether it is being sent a chunk, or waits for one.
    pub(super) fn is_uploading(&self) -> bool {
        !self.wanted.is_empty() || self.is_served()
    }

    /// Whether new chunks are to be announced to it now. What is left out is announced later.
    pub(super) fn is_to_be_notified(&self) -> bool {
        !self.watches.is_empty() && !self.is_backlogged()
    }

    /// Whether so many frames wait for the end of the chunk that no more requests are to be read.
    pub(super) fn is_backlogged(&self) -> bool {
        self.deferred.len() > BEHIND_CHUNK_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::TakerSpeed;
    use super::*;

    /// Once 28 connections that took a little every ten seconds under a rate limit had every place
    /// for good.
    #[test]
    fn a_peer_that_does_not_read_is_slow_even_under_a_rate_limit() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut peer = ServedPeer::new(SocketAddr::from(([127, 0, 0, 1], 1)), 1);
        // It takes what it is given now and then, and is slow by the sum of the times it does not.
        for turn in 0..6 {
            peer.wait_for(true, at(1000 * turn));
            assert!(peer.times(at(1000 * turn)).taker() != TakerSpeed::Slow, "turn {turn}");
            peer.wait_for(false, at(1000 * turn + 90));
        }
        assert_eq!(peer.times(at(9000)).taking, Duration::from_millis(540));
        assert_eq!(peer.times(at(9000)).taker(), TakerSpeed::Slow);
        // It has taken one and a half of two pieces of a chunk.
        let piece = |bytes, ends| SentPiece { bytes, ends_buffer: ends, ends_chunk: ends };
        peer.pieces.extend([piece(600, false), piece(400, true)]);
        peer.piece_taken(at(9000));
        assert_eq!((peer.taken_bytes(200), peer.holds()), (800, 1));
        peer.piece_taken(at(9000));
        assert_eq!((peer.taken_bytes(0), peer.holds()), (0, 0));
        assert_eq!(peer.times(at(9000)).taking, Duration::ZERO);
        assert_eq!(peer.took, Some(Duration::from_millis(540)));
    }

    /// The time in which a slice is read is this side's time.
    #[test]
    fn a_peer_is_not_slow_while_its_chunk_is_being_read_from_disk() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut peer = ServedPeer::new(SocketAddr::from(([127, 0, 0, 1], 1)), 1);
        for slice in 0..4 {
            peer.pieces.push_back(SentPiece {
                bytes: 10,
                ends_buffer: true,
                ends_chunk: slice == 3,
            });
            peer.wait_for(true, at(1000 * slice));
            peer.piece_taken(at(1000 * slice + 10));
            assert_eq!(peer.holds(), 0);
            assert_ne!(peer.times(at(1000 * slice + 900)).taker(), TakerSpeed::Slow);
        }
        assert_eq!(peer.took, Some(Duration::from_millis(40)));
        assert_eq!(peer.times(at(9000)).taker(), TakerSpeed::Quick);
    }
}
