//! The workers: they answer the reads of clients from the store.

use super::super::console::ServerConsole;
use super::super::get::{ReadRequest, answer_get, answer_page, answer_txn};
use super::super::work::{Completion, ReadJob};
use super::completions::CompletionSender;
use crate::limits;
use crate::storage::reads::{PageLimits, Store};
use crate::wire::codec;
use crate::wire::message::{ErrorCode, ErrorReply, Message, Reply};

/// Room for what an answer holds besides its value, so that its frame is allocated once.
const REPLY_BYTES_EXPECTED: usize = 64;

/// What each worker works with.
#[derive(Clone)]
pub(super) struct StoreWorker {
    pub store: Store,
    pub console: ServerConsole,
    /// Damage of the store is reported at once, besides in the answer.
    pub completions: CompletionSender,
}

impl StoreWorker {
    /// Does one job on the calling thread, which a disk may hold up.
    pub fn answer(&self, read: ReadJob) -> Completion {
        let allowed = read.value_bytes_max();
        let mut answered = match &read.request {
            ReadRequest::Get(request) => answer_get(&self.store, request),
            ReadRequest::Page(request) => {
                let most = PageLimits::default();
                let most = PageLimits { bytes: allowed.min(most.bytes), ..most };
                answer_page(&self.store, request, most)
            }
            // Beyond the budget it is asked for again with a longer one, as a value is.
            ReadRequest::Txn(request) => {
                answer_txn(&self.store, request, limits::TRANSACTION_RESULT_BYTES_MAX)
            }
        };
        if let Some(fault) = answered.fault.take() {
            self.completions.send(fault.into());
        }
        let value_bytes = answered.value_bytes();
        // A value over every limit is not waited for: sending it fails, as below.
        if value_bytes > allowed && value_bytes <= limits::VALUE_BYTES_MAX + limits::KEY_BYTES_MAX {
            return Completion::TooLong { read, bytes: value_bytes };
        }
        let charge = read.charge();
        let ReadJob { token, client, request, .. } = read;
        if self.console.is_on()
            && let Some(event) = answered.take_shown(client, &request)
        {
            self.console.show(event);
        }
        let mut frame = Vec::with_capacity(value_bytes + REPLY_BYTES_EXPECTED);
        let reply = Message::Reply { id: token.request, body: answered.reply };
        if let Err(error) = codec::encode(&reply, limits::SERVER_FRAME_BYTES_MAX, &mut frame) {
            // Values that were stored fit a frame; this one must have been stored by a release
            // with greater limits.
            let message = format!("the value cannot be sent: {error}");
            let code = ErrorCode::Internal;
            let body = Reply::Error(ErrorReply::not_done(code, message));
            let reply = Message::Reply { id: token.request, body };
            if codec::encode(&reply, limits::SERVER_FRAME_BYTES_MAX, &mut frame).is_err() {
                log::error!("cannot even say that a value cannot be sent");
            }
        }
        Completion::Answered { charge, frame }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;
    use crate::model::StateLimits;
    use crate::net::{EventLoop, LoopConfig};
    use crate::node::RequestToken;
    use crate::storage::apply::StateMachine;
    use crate::storage::engine::{
        Direction, Engine, EngineError, EngineView, Scrubbed, Visitor, WriteBatch,
    };
    use crate::storage::keys::RowRange;
    use crate::storage::memory::MemoryEngine;
    use crate::wire::message::{GetRequest, ReadAt};
    use bytes::Bytes;

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

        fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
            self.engine.write(batch)
        }

        fn seal(&self, batch: &WriteBatch, mark: u64) -> Result<(), EngineError> {
            self.engine.seal(batch, mark)
        }

        fn durable(&self) -> Option<u64> {
            self.engine.durable()
        }

        fn flush(&self) -> Result<(), EngineError> {
            self.engine.flush()
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
        let engine = Arc::new(Failing::default());
        let machine = StateMachine::open(engine.clone(), StateLimits::default()).unwrap();
        let event_loop = EventLoop::new(LoopConfig::default(), None).unwrap();
        let (completions, completed) = CompletionSender::new(event_loop.wake_handle());
        let (store, console) = (machine.store(), ServerConsole::off());
        let worker = StoreWorker { store, console, completions };
        for state in [SOUND, AWAY, DAMAGED] {
            engine.state.store(state, Ordering::Relaxed);
            let request = GetRequest {
                key: Bytes::from_static(b"k"),
                read_at: ReadAt::Newest { seen: None },
                session: None,
                linearizable: false,
                facts: false,
            };
            worker.answer(ReadJob {
                token: RequestToken { connection: 1, request: 1 },
                client: ([127, 0, 0, 1], 1).into(),
                request: ReadRequest::Get(request),
                budget_bytes: 1000,
                waits_since: 0,
            });
            match (state, completed.try_iter().next()) {
                (SOUND, None) => {}
                (AWAY, Some(Completion::Failed(failure))) => {
                    assert!(failure.contains("the disk is away"), "{failure}");
                    assert!(failure.contains("start the server again"), "{failure}");
                }
                (DAMAGED, Some(Completion::StoreDamaged(found))) => {
                    assert!(found.contains("a bit has changed"), "{found}");
                }
                (state, report) => panic!("in state {state} a report: {}", report.is_some()),
            }
        }
    }
}
