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
    pub greeted: bool,
    /// Asked for, and not being read yet.
    pub wanted: VecDeque<Wanted>,
    /// Being read.
    pub reading: usize,
    /// Read, and not handed to the connection whole.
    pub outgoing: VecDeque<Outgoing>,
    /// For each piece handed to the connection and not taken by the system: is it a chunk's last?
    pub pieces: VecDeque<bool>,
    /// Frames that may not come between a chunk's pieces.
    pub behind: Vec<u8>,
    pub watches: Vec<Watch>,
    /// Since when it has been taking the chunk that it takes now.
    pub taking_since: Option<Instant>,
    /// How long it took over the last one.
    pub took: Option<Duration>,
    /// When it last had its turn, or asked after it had wanted nothing.
    pub waiting_since: Option<Instant>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr) -> Peer {
        Peer {
            address,
            greeted: false,
            wanted: VecDeque::new(),
            reading: 0,
            outgoing: VecDeque::new(),
            pieces: VecDeque::new(),
            behind: Vec::new(),
            watches: Vec::new(),
            taking_since: None,
            took: None,
            waiting_since: None,
        }
    }

    /// Chunks for which it has a buffer, of one kind or another.
    pub(super) fn holds(&self) -> usize {
        let sent_to_the_end = self.pieces.iter().filter(|last| **last).count();
        self.reading + self.outgoing.len() + sent_to_the_end
    }

    /// How it takes its chunks.
    pub(super) fn times(&self, now: Instant) -> Times {
        let taking = self.taking_since.map(|since| now.saturating_duration_since(since));
        Times { took: self.took, taking }
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
