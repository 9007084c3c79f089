//! What the worker pool does for a server: answers reads, and reads old log entries for servers that
//! are late.

use std::net::SocketAddr;

use super::console::Console;
use super::get::answer_get;
use crate::limits;
use crate::node::{ConsoleEvent, RequestToken};
use crate::storage::apply::Store;
use crate::storage::log::LogReader;
use crate::types::{LogEntry, LogIndex};
use crate::wire::codec;
use crate::wire::message::{ErrorCode, ErrorReply, GetRequest, Message, Reply};

/// One GET to answer.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub token: RequestToken,
    pub client: SocketAddr,
    pub request: GetRequest,
}

/// One piece of work.
#[derive(Debug)]
pub(super) enum Job {
    /// A GET.
    Read(ReadJob),
    /// Log entries for a late server.
    Fetch { fetch: u64, low: LogIndex, high: LogIndex, bytes_max: u64 },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Completion {
    /// A whole frame, and the connection it is for.
    Reply { connection: u64, frame: Vec<u8> },
    /// Entries, or none if they could not be read.
    Fetched { fetch: u64, entries: Vec<LogEntry> },
}

/// What a worker needs.
#[derive(Clone)]
pub(super) struct StoreWorker {
    pub store: Store,
    pub log: LogReader,
    pub console: Console,
}

impl StoreWorker {
    /// Does one job.
    pub fn run(&self, job: Job) -> Completion {
        match job {
            Job::Read(read) => self.read(read),
            Job::Fetch { fetch, low, high, bytes_max } => {
                let entries = self.log.read(low, high, bytes_max).unwrap_or_else(|error| {
                    log::error!("cannot read log entries {low} to {high}: {error}");
                    Vec::new()
                });
                Completion::Fetched { fetch, entries }
            }
        }
    }

    fn read(&self, read: ReadJob) -> Completion {
        let ReadJob { token, client, request } = read;
        let answered = answer_get(&self.store, &request);
        if let Some((key_timestamp, answer)) = answered.shown
            && self.console.is_on()
        {
            self.console.show(ConsoleEvent::Get {
                client,
                key: request.key,
                client_timestamp: request.timestamp,
                key_timestamp,
                answer,
            });
        }
        let mut frame = Vec::new();
        let reply = Message::Reply { id: token.request, body: answered.reply };
        if let Err(error) = codec::encode(&reply, limits::PEER_FRAME_BYTES_MAX, &mut frame) {
            // Values that were stored fit a frame; this one must have been stored by a release
            // with greater limits.
            let message = format!("the value cannot be sent: {error}");
            let code = ErrorCode::Internal;
            let body = Reply::Error(ErrorReply { code, message, retry_after_ms: 0 });
            let reply = Message::Reply { id: token.request, body };
            if codec::encode(&reply, limits::PEER_FRAME_BYTES_MAX, &mut frame).is_err() {
                log::error!("cannot even say that a value cannot be sent");
            }
        }
        Completion::Reply { connection: token.connection, frame }
    }
}
