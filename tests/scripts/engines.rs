//! The replicated state machine itself, on an engine: what a server does with a log, without
//! servers.

use std::sync::Arc;

use acervo::model::{
    Action, ClientId, Command, Del, DelAll, DelRange, LogEntry, OpResult, Operation, PageNext,
    PageOf, Previous, Put, PutAll, ReadView, RequestId, Row as StoredRow, StateLimits, Timestamp,
    Trim, WriteFate, WriteOp,
};
use acervo::storage::apply::StateMachine;
use acervo::storage::engine::Engine;
use acervo::storage::memory::MemoryEngine;
use acervo::storage::reads::{PageLimits, Store};
use acervo::storage::tables::TableEngine;
use bytes::Bytes;
use tempfile::TempDir;

use crate::language::Op;
use crate::run::{Answer, BackEnd, Row};

pub struct Machine {
    name: &'static str,
    machine: StateMachine,
    store: Store,
    entries: u64,
    /// The last version that was given.
    last: i64,
    /// How far the next one is from it.
    step_us: i64,
    _folder: Option<TempDir>,
}

impl Machine {
    pub fn memory(step_us: i64) -> Machine {
        Machine::on("the memory engine", Arc::new(MemoryEngine::new()), step_us, None)
    }

    pub fn disk(step_us: i64) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let engine = TableEngine::open_at(&folder.path().join("store")).unwrap();
        Machine::on("the disk engine", Arc::new(engine), step_us, Some(folder))
    }

    fn on(
        name: &'static str,
        engine: Arc<dyn Engine>,
        step_us: i64,
        folder: Option<TempDir>,
    ) -> Machine {
        let machine = StateMachine::open(engine, StateLimits::default()).unwrap();
        let store = machine.store();
        // A Friday in 2026.
        let last = 1_795_176_000_000_000;
        Machine { name, machine, store, entries: 0, last, step_us, _folder: folder }
    }

    /// Applies a write as one log entry; its version, and what its key had before if it has one
    /// key.
    fn write(&mut self, op: WriteOp) -> (i64, Option<(Bytes, i64)>) {
        self.entries += 1;
        self.last += self.step_us;
        let request = RequestId {
            client: ClientId(1),
            sequence: self.entries,
            answered_below: 0,
            begun: Timestamp::ZERO,
        };
        let action = Action::Write { request, op };
        let data = Command { timestamp: Timestamp(self.last), clock_us: 0, action }.encode();
        let entry = LogEntry { term: 1, index: self.entries, data };
        let mut applied = self.machine.apply_answering(&[entry]).unwrap();
        let write = applied.writes.pop().expect("one entry is one write");
        let WriteFate::Answered(answer) = write.fate else { panic!("{write:?}") };
        let previous = answer.previous.and_then(|previous| match previous {
            Previous::Absent => None,
            Previous::Value { timestamp, value, .. } => Some((value?, timestamp.0)),
        });
        (answer.timestamp.0, previous)
    }

    /// A whole read, page by page, as of `at`, seen from `seen`.
    fn rows(&self, mut of: PageOf, at: i64, seen: i64) -> Vec<Row> {
        let read_view = ReadView { at: Timestamp(at), removals_up_to: Timestamp(seen) };
        let mut rows = Vec::new();
        loop {
            let page = self.store.first_page(&of, read_view, PageLimits::default()).unwrap();
            rows.extend(page.rows.into_iter().map(row));
            match (page.next, &mut of) {
                (None, _) => return rows,
                (Some(PageNext::From(next)), PageOf::Range { from, .. }) => *from = next,
                (Some(PageNext::Skip(count)), PageOf::Keys { keys }) => {
                    drop(keys.drain(..count as usize));
                }
                (Some(next), of) => panic!("{next:?} does not go on with {of:?}"),
            }
        }
    }

    fn read(&self, of: PageOf, at: Option<i64>) -> Answer {
        let at = at.filter(|at| *at > 0).unwrap_or(i64::MAX);
        Answer::Rows(self.rows(of, at, i64::MAX))
    }

    /// Carries out a write on many keys and tells what was just before it.
    fn write_many(&mut self, op: WriteOp, of: PageOf, makes_a_version: bool) -> Answer {
        let (version, _) = self.write(op);
        let mut rows = self.rows(of, version - 1, version - 1);
        if makes_a_version {
            rows.iter_mut().for_each(|row| row.new = Some(version));
        }
        Answer::Rows(rows)
    }

    fn write_one(&mut self, op: WriteOp, makes_a_version: bool) -> Answer {
        let key = op.tells_before(OpResult::Done).expect("it has one key").clone();
        let (version, previous) = self.write(op);
        let mut row = Row::new(key, previous);
        row.new = makes_a_version.then_some(version);
        Answer::Rows(vec![row])
    }
}

fn row(row: StoredRow) -> Row {
    let held = row.found.map(|found| (found.value, found.timestamp.0));
    Row::new(row.key, held)
}

impl BackEnd for Machine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn ask(&mut self, op: &Op) -> Answer {
        let at = match op.at() {
            Ok(at) => at,
            Err(error) => return Answer::Error(error),
        };
        match op.clone() {
            Op::Get(asked) => {
                let at = at.filter(|at| *at > 0).map_or(Timestamp(i64::MAX), Timestamp);
                let found = self.store.get_at(&asked.key, at).unwrap();
                let held = found.map(|found| (found.value, found.timestamp.0));
                Answer::Rows(vec![Row::new(asked.key, held)])
            }
            Op::GetRange(from, to) => self.read(PageOf::Range { from: from.key, to: to.key }, at),
            Op::GetAll(keys) => {
                let keys = keys.into_iter().map(|asked| asked.key).collect();
                self.read(PageOf::Keys { keys }, at)
            }
            Op::Put(key, value) => {
                self.write_one(WriteOp::Put(Put { key, value, tells_previous: true }), true)
            }
            Op::PutAll(pairs) => {
                let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
                self.write_many(WriteOp::PutAll(PutAll { pairs }), PageOf::Keys { keys }, true)
            }
            Op::Del(asked) => self.write_one(
                WriteOp::Del(Del { key: asked.key, tells_previous: true, keeps_history: false }),
                false,
            ),
            Op::DelRange(from, to) => {
                let (from, to) = (from.key, to.key);
                let range = PageOf::Range { from: from.clone(), to: to.clone() };
                self.write_many(
                    WriteOp::DelRange(DelRange { from, to, keeps_history: false }),
                    range,
                    false,
                )
            }
            Op::DelAll(keys) => {
                let keys: Vec<Bytes> = keys.into_iter().map(|asked| asked.key).collect();
                let of = PageOf::Keys { keys: keys.clone() };
                self.write_many(WriteOp::DelAll(DelAll { keys, keeps_history: false }), of, false)
            }
            Op::Trim(asked) => {
                self.write_one(WriteOp::Trim(Trim { key: asked.key, tells_previous: true }), false)
            }
        }
    }
}
