//! Decoding frames: on the event loop when they are short, on a thread when they are long.
//!
//! Decoding a frame, checking it and encoding a write for the log take as long as the frame is:
//! tens of milliseconds for a write on a hundred thousand keys, in which no heartbeat would be sent
//! or heard. So a frame of [`LARGE_FRAME_BYTES`](crate::limits::LARGE_FRAME_BYTES) or more goes to
//! a thread, and the loop gets back something that costs it nothing to pass on or to drop. Until
//! then the connection hands out no further frame: what was sent behind it is taken in behind it.
//!
//! Frames of other servers have a thread of their own, so that no client's keep replication
//! waiting.

use std::io;
use std::time::Instant;

use crate::limits;
use crate::model::EncodedWrite;
use crate::net::{ConnectionId, WakeHandle};
use crate::node::CheckedMessage;
use crate::text::sentence;
use crate::wire::codec::{self, CodecError};
use crate::wire::message::{Message, Request, WriteRequest};
use crate::workers::pool::{Pool, SubmitError};

/// The content of a frame.
#[derive(Debug)]
pub(super) enum DecodedFrame {
    /// A client's write, encoded for the log.
    Write { id: u64, write: EncodedWrite },
    /// A message of another server, checked.
    Peer(CheckedMessage),
    /// Any other message, as it was decoded.
    Message(Message),
}

/// Why a frame could not be decoded.
#[derive(Debug)]
pub(super) struct Undecodable {
    /// One sentence, no longer than a reason may be.
    pub reason: String,
    /// The request's id, where it is a request that breaks no rule but a limit, and so gets an
    /// answer.
    pub request: Option<u64>,
}

/// Decodes a frame's body, and does all that takes time in proportion to its length: checks a
/// server's message, and encodes a write for the log.
pub(super) fn decode(body: &[u8]) -> Result<DecodedFrame, Undecodable> {
    match codec::decode(body) {
        Ok(Message::Request { id, body: Request::Write(write) }) => {
            let WriteRequest { request, op } = write;
            Ok(DecodedFrame::Write { id, write: EncodedWrite::new(request, op) })
        }
        Ok(Message::Peer(message)) => CheckedMessage::new(message)
            .map(DecodedFrame::Peer)
            .map_err(|reason| Undecodable { reason, request: None }),
        Ok(message) => Ok(DecodedFrame::Message(message)),
        Err(error) => {
            let only_too_long = matches!(error, CodecError::TooMany(_));
            let request = if only_too_long { codec::request_id(body) } else { None };
            Err(Undecodable { reason: sentence(&error.to_string()), request })
        }
    }
}

/// A large frame that waits to be decoded.
struct DecodeJob {
    connection: ConnectionId,
    pieces: Vec<Vec<u8>>,
    /// Bytes charged to the budget for it.
    held: usize,
}

/// A large frame that was decoded.
pub(super) struct Decoded {
    pub connection: ConnectionId,
    pub incoming: Result<DecodedFrame, Undecodable>,
    /// Bytes charged to the budget for it, to be released by whoever takes it.
    pub held: usize,
}

/// The threads that decode large frames.
pub(super) struct Decoders {
    clients: Pool<DecodeJob, Decoded>,
    servers: Pool<DecodeJob, Decoded>,
}

impl Decoders {
    /// Starts the threads that decode large frames.
    pub fn start(wake: &WakeHandle) -> io::Result<Decoders> {
        let start = |name| {
            let wake = wake.clone();
            let wake = move || wake.wake();
            Pool::start(name, 1, limits::WORKER_QUEUE_JOBS_MAX, wake, |_| {
                |DecodeJob { connection, pieces, held }: DecodeJob| {
                    let body = pieces.concat();
                    drop(pieces);
                    Decoded { connection, incoming: decode(&body), held }
                }
            })
        };
        Ok(Decoders { clients: start("acervo-decode")?, servers: start("acervo-peers")? })
    }

    /// Has a frame decoded on a thread. The error gives it back when too many wait for that.
    pub fn submit(
        &mut self,
        of_server: bool,
        connection: ConnectionId,
        pieces: Vec<Vec<u8>>,
        held: usize,
    ) -> Result<(), Vec<Vec<u8>>> {
        let pool = if of_server { &mut self.servers } else { &mut self.clients };
        pool.submit(DecodeJob { connection, pieces, held }).map_err(|refused| match refused {
            SubmitError::Full(job) => job.pieces,
            SubmitError::Stopped(job) => {
                log::error!("a long message has no thread to be decoded by");
                job.pieces
            }
        })
    }

    /// Takes a decoded frame, if there is one. Those of other servers come first.
    pub fn collect(&mut self) -> Option<Decoded> {
        self.servers.collect().or_else(|| self.clients.collect())
    }

    /// Ends the threads, which wait for no disk.
    pub fn finish(self, deadline: Instant) {
        for pool in [self.clients, self.servers] {
            if let Err(panicked) = pool.shut_down(deadline) {
                log::error!("{panicked}");
            }
        }
    }
}
