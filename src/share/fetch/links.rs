//! A download's books of its connections: what was asked on each, and what is coming in.

use std::collections::HashMap;

use crate::net::ConnectionId;
use crate::wire::share::Source;

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// Which chunks the source has. Answered again and again.
    Watch,
    /// Chunk hashes, from this one on.
    Hashes(u64),
    /// A chunk.
    Chunk(u64),
}

/// A chunk whose bytes come next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IncomingChunk {
    /// They wait for a buffer, and the connection is not read.
    Waiting(u64),
    /// They are being received.
    Receiving(u64),
}

/// One source and the connection with it, if there is one.
#[derive(Debug)]
pub(super) struct SourceLink {
    pub(super) source: Source,
    pub(super) connection: Option<ConnectionId>,
    pub(super) greeted: bool,
    /// By request id. Of chunks there are as many as the swarm lets a source owe, and those called off
    /// and not answered yet.
    pub(super) asked: HashMap<u64, RequestKind>,
    pub(super) incoming: Option<IncomingChunk>,
    /// PINGs that were not answered yet.
    pub(super) pings: u32,
    /// Bytes of every kind received on this connection and accounted for …
    pub(super) received_bytes: u64,
    /// … and bytes of chunks.
    pub(super) chunk_bytes: u64,
    /// Why the last connection ended.
    pub(super) lost: String,
    /// Its last answer, on whichever connection, was that it has the content no more.
    pub(super) is_gone: bool,
}

impl SourceLink {
    pub(super) fn new(source: Source) -> SourceLink {
        SourceLink {
            source,
            connection: None,
            greeted: false,
            asked: HashMap::new(),
            incoming: None,
            pings: 0,
            received_bytes: 0,
            chunk_bytes: 0,
            lost: String::new(),
            is_gone: false,
        }
    }

    /// Begins anew with another connection, or none.
    pub(super) fn reset(&mut self, connection: Option<ConnectionId>) {
        self.connection = connection;
        self.greeted = false;
        self.asked = HashMap::new();
        self.incoming = None;
        self.pings = 0;
        self.received_bytes = 0;
        self.chunk_bytes = 0;
    }

    /// The connection, once it can be used.
    pub(super) fn ready(&self) -> Option<ConnectionId> {
        self.connection.filter(|_| self.greeted)
    }
}
