//! What the worker pool does for a server: answers reads, and reads old log entries for servers
//! that are late.

use std::net::SocketAddr;

use bytes::Bytes;
use crossbeam_channel::Sender;

use super::clients::value_bytes_budget;
use super::console::ServerConsole;
use super::get::{ReadRequest, StoreFault, answer_get, answer_page};
use super::threads::Report;
use crate::limits;
use crate::model::{LogEntry, LogIndex, NodeId};
use crate::node::RequestToken;
use crate::storage::log::LogReader;
use crate::storage::reads::{PageLimits, Store};
use crate::storage::snapshot::{SnapshotChunk, SnapshotSource};
use crate::wire::codec;
use crate::wire::message::{ErrorCode, ErrorReply, Message, Reply};

/// Room for what an answer holds besides its value, so that its frame is allocated once.
const REPLY_BYTES_EXPECTED: usize = 64;

/// A read that is to be answered from the store.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub token: RequestToken,
    pub client: SocketAddr,
    pub request: ReadRequest,
    /// The read budget: how long the value may be, if that is more than a small one (see
    /// `clients`).
    pub budget_bytes: usize,
}

/// A piece of work for the pool, which a disk may hold up.
#[derive(Debug)]
pub(super) enum PoolJob {
    /// A GET or a page, to be answered from the store.
    Read(ReadJob),
    /// Log entries for a server that lags, which are no longer in memory.
    Fetch { fetch: u64, low: LogIndex, high: LogIndex, bytes_max: u64 },
    /// The next piece of a snapshot for server `to`.
    SnapshotChunk { to: NodeId, id: u64, source: SnapshotSource, bytes_max: usize },
}

/// The outcome of a [`PoolJob`].
#[derive(Debug)]
pub(super) enum PoolCompletion {
    /// An answer as a whole frame, with the request that it is for and the budget that the read
    /// had.
    Reply { token: RequestToken, budget_bytes: usize, frame: Vec<u8> },
    /// The value has this many bytes, which is more than the budget.
    TooLong { read: ReadJob, bytes: usize },
    /// The entries, or none if they could not be read.
    Fetched { fetch: u64, entries: Vec<LogEntry> },
    /// The next chunk, or `None` at the end; the view of the store comes back with it.
    SnapshotChunk {
        to: NodeId,
        id: u64,
        source: SnapshotSource,
        chunk: Result<Option<SnapshotChunk>, String>,
    },
}

/// What each thread of the pool works with.
#[derive(Clone)]
pub(super) struct StoreWorker {
    pub store: Store,
    pub log: LogReader,
    pub console: ServerConsole,
    /// The channel on which damage of the store or the log is reported at once, besides in the
    /// answer.
    pub reports: Sender<Report>,
}

impl StoreWorker {
    /// Does one job on the calling thread, which a disk may hold up.
    pub fn run(&self, job: PoolJob) -> PoolCompletion {
        match job {
            PoolJob::Read(read) => self.read(read),
            PoolJob::Fetch { fetch, low, high, bytes_max } => {
                let entries = self.log.read(low, high, bytes_max).unwrap_or_else(|error| {
                    if error.is_damage() {
                        self.report(Report::LogDamaged(error.to_string()));
                    } else {
                        log::error!("cannot read log entries {low} to {high}: {error}");
                    }
                    Vec::new()
                });
                PoolCompletion::Fetched { fetch, entries }
            }
            PoolJob::SnapshotChunk { to, id, mut source, bytes_max } => {
                let chunk = source.next_chunk(bytes_max);
                if let Err(error) = &chunk {
                    let what = || format!("reading a snapshot for server {to}");
                    self.report(StoreFault::of(error, what).into());
                }
                let chunk = chunk.map_err(|error| error.to_string());
                PoolCompletion::SnapshotChunk { to, id, source, chunk }
            }
        }
    }

    // Lost only when the event loop has ended. The completion that follows wakes it.
    fn report(&self, report: Report) {
        let _ = self.reports.send(report);
    }

    fn read(&self, read: ReadJob) -> PoolCompletion {
        let allowed = value_bytes_budget(read.budget_bytes);
        let mut answered = match &read.request {
            ReadRequest::Get(request) => answer_get(&self.store, request),
            ReadRequest::Page(request) => {
                let most = PageLimits::default();
                let most = PageLimits { bytes: allowed.min(most.bytes), ..most };
                answer_page(&self.store, request, most)
            }
        };
        if let Some(fault) = answered.fault.take() {
            self.report(fault.into());
        }
        let value_bytes = match &answered.reply {
            Reply::GetOk { value: Some(value), .. } => value.len(),
            Reply::PageOk { rows, .. } => rows
                .iter()
                .map(|row| row.key.len() + row.value.as_ref().map_or(0, Bytes::len))
                .sum(),
            _ => 0,
        };
        // A value over every limit is not waited for: sending it fails, as below.
        if value_bytes > allowed && value_bytes <= limits::VALUE_BYTES_MAX + limits::KEY_BYTES_MAX {
            return PoolCompletion::TooLong { read, bytes: value_bytes };
        }
        let ReadJob { token, client, request, budget_bytes } = read;
        if self.console.is_on()
            && let Some(event) = answered.take_shown(client, &request)
        {
            self.console.show(event);
        }
        let mut frame = Vec::with_capacity(value_bytes + REPLY_BYTES_EXPECTED);
        let reply = Message::Reply { id: token.request, body: answered.reply };
        if let Err(error) = codec::encode(&reply, limits::PEER_FRAME_BYTES_MAX, &mut frame) {
            // Values that were stored fit a frame; this one must have been stored by a release
            // with greater limits.
            let message = format!("the value cannot be sent: {error}");
            let code = ErrorCode::Internal;
            let body = Reply::Error(ErrorReply::not_done(code, message));
            let reply = Message::Reply { id: token.request, body };
            if codec::encode(&reply, limits::PEER_FRAME_BYTES_MAX, &mut frame).is_err() {
                log::error!("cannot even say that a value cannot be sent");
            }
        }
        PoolCompletion::Reply { token, budget_bytes, frame }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;
    use crate::model::{StateLimits, Timestamp};
    use crate::storage::apply::StateMachine;
    use crate::storage::engine::{
        Direction, Durability, Engine, EngineError, EngineView, Scrubbed, Visitor, WriteBatch,
    };
    use crate::storage::keys::RowRange;
    use crate::storage::log::{DiskLog, LogOptions};
    use crate::storage::memory::MemoryEngine;
    use crate::wire::message::GetRequest;

    const SOUND: u8 = 0;
    const AWAY: u8 = 1;
    const DAMAGED: u8 = 2;

    /// An engine whose file cannot be read, or is damaged, from some time on.
    #[derive(Default)]
    struct Failing {
        engine: MemoryEngine,
        state: AtomicU8,
    }

    impl Failing {
        fn check(&self) -> Result<(), EngineError> {
            match self.state.load(Ordering::Relaxed) {
                AWAY => Err(EngineError::Read("the disk is away".to_owned())),
                DAMAGED => {
                    let (path, detail) = ("store".to_owned(), "a bit has changed".to_owned());
                    Err(EngineError::Damaged { path, detail })
                }
                _ => Ok(()),
            }
        }
    }

    impl Engine for Failing {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
            self.check()?;
            self.engine.get(key)
        }

        fn scan(
            &self,
            range: &RowRange,
            direction: Direction,
            visit: &mut Visitor<'_>,
        ) -> Result<(), EngineError> {
            self.check()?;
            self.engine.scan(range, direction, visit)
        }

        fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
            self.check()?;
            self.engine.view()
        }

        fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
            self.engine.write(batch, durability)
        }

        fn rows(&self) -> u64 {
            self.engine.rows()
        }

        fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError> {
            self.engine.scrub(from_block, blocks)
        }
    }

    #[test]
    fn a_read_that_the_disk_refuses_ends_the_server_and_is_not_reported_as_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = DiskLog::open(dir.path(), LogOptions::default()).unwrap();
        let engine = Arc::new(Failing::default());
        let machine = StateMachine::open(engine.clone(), StateLimits::default()).unwrap();
        let (reports, reported) = crossbeam_channel::unbounded();
        let (store, log) = (machine.store(), log.reader());
        let worker = StoreWorker { store, log, console: ServerConsole::off(), reports };
        for state in [SOUND, AWAY, DAMAGED] {
            engine.state.store(state, Ordering::Relaxed);
            let request = GetRequest {
                key: Bytes::from_static(b"k"),
                timestamp: Timestamp::ZERO,
                session: Timestamp::ZERO,
                linearizable: false,
                at: Timestamp::ZERO,
            };
            worker.run(PoolJob::Read(ReadJob {
                token: RequestToken { connection: 1, request: 1 },
                client: ([127, 0, 0, 1], 1).into(),
                request: ReadRequest::Get(request),
                budget_bytes: 1000,
            }));
            match (state, reported.try_iter().next()) {
                (SOUND, None) => {}
                (AWAY, Some(Report::Failed(failure))) => {
                    assert!(failure.contains("the disk is away"), "{failure}");
                    assert!(failure.contains("start the server again"), "{failure}");
                }
                (DAMAGED, Some(Report::StoreDamaged(found))) => {
                    assert!(found.contains("a bit has changed"), "{found}");
                }
                (state, report) => panic!("in state {state} a report: {}", report.is_some()),
            }
        }
    }
}
