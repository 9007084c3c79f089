//! The threads that decode long frames.
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

use super::super::decoding::decode;
use super::super::work::Completion;
use super::completions::{CompletionSender, has_ended};
use crate::limits;
use crate::net::ConnectionId;
use crate::workers::pool::{SubmitError, Workers};

/// A large frame that waits to be decoded.
struct DecodeJob {
    connection: ConnectionId,
    pieces: Vec<Vec<u8>>,
    /// Bytes charged to the budget for it.
    held: usize,
}

/// The threads that decode large frames.
pub(super) struct Decoders {
    clients: Workers<DecodeJob>,
    servers: Workers<DecodeJob>,
}

impl Decoders {
    pub fn start(completions: &CompletionSender) -> io::Result<Decoders> {
        let start = |name, of_server| {
            let (sender, waker) = (completions.clone(), completions.clone());
            let complete = move |completion| sender.send(completion);
            let wake = move || waker.wake();
            Workers::start(name, 1, limits::WORKER_QUEUE_JOBS_MAX, complete, wake, |_| {
                move |DecodeJob { connection, pieces, held }: DecodeJob| {
                    let body = pieces.concat();
                    drop(pieces);
                    Completion::Decoded { of_server, connection, decoded: decode(&body), held }
                }
            })
        };
        let clients = start("acervo-decode", false)?;
        Ok(Decoders { clients, servers: start("acervo-server", true)? })
    }

    fn of(&mut self, of_server: bool) -> &mut Workers<DecodeJob> {
        if of_server { &mut self.servers } else { &mut self.clients }
    }

    /// Has a frame decoded on a thread. The error gives it back when too many wait for that.
    pub fn submit(
        &mut self,
        of_server: bool,
        connection: ConnectionId,
        pieces: Vec<Vec<u8>>,
        held: usize,
    ) -> Result<(), Vec<Vec<u8>>> {
        let job = DecodeJob { connection, pieces, held };
        self.of(of_server).submit(job).map_err(|refused| match refused {
            SubmitError::Full(job) => job.pieces,
            SubmitError::Stopped(job) => {
                log::error!("a long message has no thread to be decoded by");
                job.pieces
            }
        })
    }

    /// Notes that a [`Completion::Decoded`] has been taken in.
    pub fn completed(&mut self, of_server: bool) {
        self.of(of_server).completed();
    }

    /// Ends the threads, which wait for no disk.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> bool {
        [self.clients, self.servers].into_iter().all(|pool| has_ended(pool.finish(deadline)))
    }
}
