//! The state of the connection with each source of a download: outstanding requests and the chunk
//! being received.
//!
//! Rule: every request has exactly one answer, but for a watch, which is answered again and again.
//! An answer that no outstanding request asks for is a violation of the protocol.

use std::collections::HashMap;

use crate::wire::share::Source;

/// What a request asks for. An answer has to be of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// The chunks that the source has. It is answered again whenever there are new ones.
    Watch,
    /// The chunk hashes from this chunk on.
    Hashes(u64),
    /// The chunk with this number.
    Chunk(u64),
}

/// A chunk whose bytes come next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IncomingChunk {
    /// No buffer is free for it, so the connection is not read.
    Waiting(u64),
    /// Its bytes are being received.
    Receiving(u64),
}

/// A source and its connection, if there is one.
#[derive(Debug)]
pub(super) struct SourceLink {
    pub(super) source: Source,
    /// Whether the driver has a connection, or is opening one.
    pub(super) is_connected: bool,
    pub(super) greeted: bool,
    /// Outstanding requests by request id, including cancelled chunks, which are answered as well.
    /// At most [`ANSWERS_OWED_MAX`](crate::limits::ANSWERS_OWED_MAX).
    pub(super) asked: HashMap<u64, RequestKind>,
    pub(super) incoming: Option<IncomingChunk>,
    /// The number of PINGs that have not been answered.
    pub(super) pings: u32,
    /// Why the last connection ended.
    pub(super) lost: String,
    /// Whether its last answer, on any connection, was that it does not have the content any more.
    pub(super) is_gone: bool,
}

impl SourceLink {
    pub(super) fn new(source: Source) -> SourceLink {
        SourceLink {
            source,
            is_connected: false,
            greeted: false,
            asked: HashMap::new(),
            incoming: None,
            pings: 0,
            lost: String::new(),
            is_gone: false,
        }
    }

    /// Starts over with another connection, or with none.
    pub(super) fn reset(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        self.greeted = false;
        self.asked = HashMap::new();
        self.incoming = None;
        self.pings = 0;
    }

    /// Whether its next chunk waits for a buffer.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.incoming, Some(IncomingChunk::Waiting(_)))
    }
}
