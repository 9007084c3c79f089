//! The books of a server's peers: what each has asked for, gets, and watches.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::places::TakerTimes;
use crate::limits;
use crate::model::ContentId;
use crate::share::chunks::ChunkSet;

/// A chunk that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkRequest {
    pub request: u64,
    pub content: ContentId,
    pub index: u64,
}

/// A chunk, or a slice of one, on its way out: the chunk's announcing frame, and the rest of the bytes.
#[derive(Debug)]
pub(super) struct OutgoingChunk {
    /// Until it is sent.
    pub header: Option<Vec<u8>>,
    pub bytes: Bytes,
    /// Nothing of its chunk comes after it.
    pub ends_chunk: bool,
}

/// A piece of a chunk that was handed to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentPiece {
    pub bytes: usize,
    /// Its buffer is free when it is taken.
    pub ends_buffer: bool,
    pub ends_chunk: bool,
}

/// A chunk that is read and sent slice by slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlicedChunk {
    pub wanted: ChunkRequest,
    /// The chunk's length in bytes.
    pub length: usize,
    /// Bytes of it that have been read.
    pub read: usize,
}

impl SlicedChunk {
    /// The length of the next slice in bytes.
    pub(super) fn next_len(&self) -> usize {
        (self.length - self.read).min(limits::UPLOAD_SLICE_BYTES)
    }
}

/// A content of which a peer wants to know each new chunk.
#[derive(Debug)]
pub(super) struct ContentWatch {
    pub request: u64,
    pub content: ContentId,
    /// What it was told of.
    pub told: ChunkSet,
}

/// One peer.
#[derive(Debug)]
pub(super) struct ServedPeer {
    pub address: SocketAddr,
    /// When it had its last turn, or connected, in order.
    pub last_turn: u64,
    pub greeted: bool,
    /// It keeps its place, whoever comes.
    pub keeps_place: bool,
    /// Its connection is being closed, or is gone: nothing more is read for it.
    pub is_ending: bool,
    /// Asked for, and not being read yet.
    pub wanted: VecDeque<ChunkRequest>,
    /// Being read, as a whole or a slice of it.
    pub reading: usize,
    /// The chunk that is sent in slices, until its last one has been read. Meanwhile nothing else is read for it.
    pub slices: Option<SlicedChunk>,
    /// Read, and not handed to the connection whole.
    pub outgoing: VecDeque<OutgoingChunk>,
    /// Handed to the connection and not taken by the system.
    pub pieces: VecDeque<SentPiece>,
    /// A chunk is sent in part, so that no frame may be.
    pub is_within_chunk: bool,
    /// Bytes of the chunk that it takes now, in pieces that the system has taken whole.
    pub taken_bytes: u64,
    /// Frames that may not come between a chunk's pieces.
    pub deferred: Vec<u8>,
    pub watches: Vec<ContentWatch>,
    /// For how long it has kept this side waiting over the chunk that it takes now, until `waited_for` …
    pub kept_waiting: Duration,
    /// … and since when it does so again.
    pub waited_for: Option<Instant>,
    /// The same over the last chunk.
    pub took: Option<Duration>,
    /// When it last had its turn, or asked after it had wanted nothing.
    pub waiting_since: Option<Instant>,
}

impl ServedPeer {
    /// Nothing more is read for it.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
        self.wanted.clear();
    }

    pub(super) fn new(address: SocketAddr, last_turn: u64) -> ServedPeer {
        ServedPeer {
            address,
            last_turn,
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

    /// Buffers that it has, of one kind or another.
    pub(super) fn holds(&self) -> usize {
        let handed_to_the_end = self.pieces.iter().filter(|piece| piece.ends_buffer).count();
        self.reading + self.outgoing.len() + handed_to_the_end
    }

    /// Whether a chunk is being sent to it.
    pub(super) fn is_served(&self) -> bool {
        self.slices.is_some() || self.holds() > 0
    }

    /// Whether it wants something, and nothing is being sent to it.
    pub(super) fn is_waiting(&self) -> bool {
        !self.wanted.is_empty() && !self.is_served()
    }

    /// How it takes its chunks.
    pub(super) fn times(&self, now: Instant) -> TakerTimes {
        let again = self.waited_for.map(|since| now.saturating_duration_since(since));
        let taking = self.kept_waiting + again.unwrap_or_default();
        TakerTimes { took: self.took, taking }
    }

    /// Whether this side waits for it from now on.
    pub(super) fn wait_for(&mut self, is_waited_for: bool, now: Instant) {
        self.kept_waiting = self.times(now).taking;
        self.waited_for = is_waited_for.then_some(now);
    }

    /// Bytes that it has taken of the present chunk, when so many wait on its connection.
    pub(super) fn taken_bytes(&self, queued: usize) -> u64 {
        let handed: usize = self.pieces.iter().map(|piece| piece.bytes).sum();
        self.taken_bytes + handed.saturating_sub(queued) as u64
    }

    /// The system has taken a piece whole.
    pub(super) fn piece_taken(&mut self, now: Instant) {
        let Some(piece) = self.pieces.pop_front() else { return };
        self.taken_bytes += piece.bytes as u64;
        if piece.ends_chunk || self.pieces.is_empty() {
            // Until the next slice has been read it waits for this side.
            self.wait_for(!self.pieces.is_empty(), now);
        }
        if piece.ends_chunk {
            self.took = Some(std::mem::take(&mut self.kept_waiting));
            self.taken_bytes = 0;
        }
    }

    /// Whether it is being served, or waits for that.
    pub(super) fn is_uploading(&self) -> bool {
        !self.wanted.is_empty() || self.is_served()
    }

    /// Whether it is to be told of new chunks now. What is not told now is told later.
    pub(super) fn is_to_be_notified(&self) -> bool {
        !self.watches.is_empty() && !self.is_backlogged()
    }

    /// Whether so much waits behind the chunk that nothing more is to be asked, or told.
    pub(super) fn is_backlogged(&self) -> bool {
        self.deferred.len() > limits::BEHIND_CHUNK_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::TakerSpeed;
    use super::*;

    /// Under a rate 28 connections that took a little every ten seconds had every place for good.
    #[test]
    fn whoever_does_not_take_what_it_is_given_is_slow_also_under_a_rate() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut peer = ServedPeer::new(SocketAddr::from(([127, 0, 0, 1], 1)), 1);
        // It takes what it is given now and then, and is slow by the sum of what it does not take.
        for turn in 0..6 {
            peer.wait_for(true, at(1000 * turn));
            assert!(peer.times(at(1000 * turn)).taker() != TakerSpeed::Slow, "turn {turn}");
            peer.wait_for(false, at(1000 * turn + 90));
        }
        assert_eq!(peer.times(at(9000)).taking, Duration::from_millis(540));
        assert_eq!(peer.times(at(9000)).taker(), TakerSpeed::Slow);
        // Of a chunk in two pieces it has taken one and a half.
        let piece = |bytes, ends| SentPiece { bytes, ends_buffer: ends, ends_chunk: ends };
        peer.pieces.extend([piece(600, false), piece(400, true)]);
        peer.piece_taken(at(9000));
        assert_eq!((peer.taken_bytes(200), peer.holds()), (800, 1));
        peer.piece_taken(at(9000));
        assert_eq!((peer.taken_bytes(0), peer.holds()), (0, 0));
        assert_eq!(peer.times(at(9000)).taking, Duration::ZERO);
        assert_eq!(peer.took, Some(Duration::from_millis(540)));
    }

    /// What is read between two slices is this side's time, and not the peer's.
    #[test]
    fn a_peer_is_not_slow_for_what_is_still_being_read() {
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
