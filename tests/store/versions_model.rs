//! The nine operations against a model that is obviously right, on every engine.
//!
//! The model keeps a copy of the whole visible store after every write: a map from key to versions.
//! To read as of `at`, as seen from `seen`, is to take the copy of that moment and look up the
//! greatest version. The store keeps no copies, removes by marks and floors, purges in the
//! background, and has to say the same for every pair of times, in one page or in many, before and
//! after a crash, and after a snapshot has carried its state to another engine.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use acervo::limits;
use acervo::model::{
    Action, Barrier, ClientId, Command, Compact, Condition, Del, DelAll, DelRange, Facts,
    FeedPosition, GarbageCollection, History, KeyChange, KeyInterval, KeyState, LogEntry, OpResult,
    Operation, PageNext, PageOf, Previous, Put, PutAll, PutIf, PutSequential, ReadView, RequestId,
    Row, SetHistory, StateLimits, Timestamp, Trim, Txn, TxnAnswer, Version, WriteFate, WriteOp,
};
use acervo::storage::apply::StateMachine;
use acervo::storage::engine::{
    Direction, Engine, EngineError, EngineView, RowValue, RowVisitor, Scrubbed, WriteBatch,
};
use acervo::storage::feed::{ChangesError, ChangesLimits};
use acervo::storage::keys::{self as rows, RowRange};
use acervo::storage::memory::MemoryEngine;
use acervo::storage::reads::{InMemory, PageLimits, Store, StoreReadError};
use acervo::storage::recent::{RecentChange, RecentPart};
use acervo::storage::tables::{TableEngine, TablesOptions};
use bytes::Bytes;
use proptest::prelude::*;

use crate::log_disk::SimDisk;
use crate::plain_transactions::{self, TxnMaker, bits, carry_out, deletions, kept_ranges};

/// As much as this release does in one piece.
const ROWS_MAX: u32 = limits::COLLECTION_ROWS_MAX as u32;
const BYTES_MAX: u64 = limits::COLLECTION_BYTES_MAX;

fn page_of(rows: usize) -> PageLimits {
    PageLimits { rows, ..PageLimits::default() }
}

/// `None` where the key was deleted and its history kept.
type Versions = BTreeMap<i64, Option<Stored>>;
type State = BTreeMap<Bytes, Versions>;
/// A value, and what its version says of its key.
type Stored = (Bytes, Facts);
type Found = (Bytes, Option<Stored>, i64);
/// A time, a key, what it has since then, and what it had before.
type ModelChange = (i64, Bytes, Option<Stored>, Option<(i64, Stored)>);

/// The store as everybody would like to think of it.
#[derive(Default)]
struct Model {
    /// The visible store after each write: its time, then everything.
    moments: Vec<(i64, State)>,
    purged: i64,
    swept: i64,
    /// Reads as of earlier versions are refused.
    compacted: i64,
    /// What each transaction came to.
    txns: BTreeMap<i64, (OpResult, TxnAnswer)>,
}

impl Model {
    fn now(&self) -> State {
        self.moments.last().map(|(_, state)| state.clone()).unwrap_or_default()
    }

    fn apply(&mut self, at: i64, op: &WriteOp) {
        let mut state = self.now();
        let put = |state: &mut State, key: &Bytes, value: &Bytes| {
            let versions = state.entry(key.clone()).or_default();
            // Of a key that is given twice the last value counts, and makes one version.
            let (created, count) = match versions.range(..at).next_back() {
                Some((_, Some((_, before)))) => (before.created, before.count + 1),
                Some((_, None)) | None => (Timestamp(at), 1),
            };
            let facts = Facts { created, count, lease: None };
            versions.insert(at, Some((value.clone(), facts)));
        };
        match op {
            WriteOp::Put(Put { key, value, .. }) => put(&mut state, key, value),
            WriteOp::PutIf(PutIf { key, value, condition }) => {
                if holds(*condition, self.newest(key)) {
                    put(&mut state, key, value);
                }
            }
            WriteOp::PutAll(PutAll { pairs }) => {
                pairs.iter().for_each(|(k, v)| put(&mut state, k, v))
            }
            WriteOp::Del(Del { key, keeps_history, .. }) => {
                delete(&mut state, at, key, *keeps_history);
            }
            WriteOp::DelAll(DelAll { keys, keeps_history }) => {
                keys.iter().for_each(|key| delete(&mut state, at, key, *keeps_history));
            }
            WriteOp::DelRange(DelRange { from, to, keeps_history }) => {
                let keys: Vec<Bytes> = state.keys().cloned().collect();
                let deleted = keys.iter().filter(|key| from <= *key && *key <= to);
                deleted.for_each(|key| delete(&mut state, at, key, *keeps_history));
            }
            WriteOp::Trim(Trim { key, .. }) => {
                if let Some(versions) = state.get_mut(key)
                    && let Some((newest, stored)) = versions.pop_last()
                {
                    *versions = BTreeMap::from([(newest, stored)]);
                }
            }
            WriteOp::PutSequential(sequential) => {
                put(&mut state, &sequential.key(Timestamp(at)), &sequential.value);
            }
            WriteOp::Txn(txn) => {
                let before = plain(&state);
                let mut after = before.clone();
                let (branches, answer) = carry_out(txn, &mut after, Timestamp(at));
                let result = OpResult::Txn { branches: bits(&branches) };
                for (key, keeps_history) in deletions(txn, &answer, &before) {
                    delete(&mut state, at, &key, keeps_history);
                }
                self.txns.insert(at, (result, answer));
                for (key, (found, value)) in after {
                    if found.version.0 == at {
                        state.entry(key).or_default().insert(at, Some((value, found.facts)));
                    }
                }
            }
            WriteOp::Barrier(_)
            | WriteOp::SetHistory(_)
            | WriteOp::LeaseGrant(_)
            | WriteOp::LeaseRevoke(_) => {}
            WriteOp::Compact(Compact { version }) => {
                self.compacted = self.compacted.max(version.0.min(at));
            }
        }
        self.moments.push((at, state));
    }

    fn newest(&self, key: &Bytes) -> Option<i64> {
        let state = self.now();
        let (version, stored) = state.get(key)?.last_key_value()?;
        stored.is_some().then_some(*version)
    }

    fn state(&self, seen: i64) -> State {
        let moment = self.moments.iter().rev().find(|(at, _)| *at <= seen);
        moment.map(|(_, state)| state.clone()).unwrap_or_default()
    }

    fn get(&self, key: &Bytes, at: i64, seen: i64) -> Found {
        let state = self.state(seen);
        let newest = state.get(key).and_then(|versions| versions.range(..=at).next_back());
        match newest {
            Some((version, Some(stored))) => (key.clone(), Some(stored.clone()), *version),
            Some((_, None)) | None => (key.clone(), None, 0),
        }
    }

    fn range(&self, from: &Bytes, to: &Bytes, at: i64, seen: i64) -> Vec<Found> {
        let state = self.state(seen);
        let keys = state.keys().filter(|key| from <= *key && *key <= to);
        let rows = keys.map(|key| self.get(key, at, seen));
        rows.filter(|(_, value, _)| value.is_some()).collect()
    }

    /// What has changed after a time, in order of time and of keys.
    fn changes(&self, after: i64) -> Vec<ModelChange> {
        let newest = |state: &State, key: &Bytes| {
            let newest = state.get(key).and_then(|versions| versions.last_key_value());
            newest.and_then(|(version, stored)| Some((*version, stored.clone()?)))
        };
        let nothing = State::new();
        let states = std::iter::once(&nothing).chain(self.moments.iter().map(|(_, state)| state));
        let mut changes = Vec::new();
        for ((at, state), before) in self.moments.iter().zip(states) {
            if *at <= after {
                continue;
            }
            let keys: BTreeSet<&Bytes> = before.keys().chain(state.keys()).collect();
            for key in keys {
                let (had, has) = (newest(before, key), newest(state, key));
                if had != has {
                    changes.push((*at, key.clone(), has.map(|(_, value)| value), had));
                }
            }
        }
        changes
    }

    fn versions(&self, key: &Bytes, at: i64, seen: i64) -> Vec<Found> {
        let state = self.state(seen);
        let versions = state.get(key).into_iter().flat_map(|versions| versions.range(..=at).rev());
        let shown = versions.filter_map(|(at, stored)| Some((*at, stored.clone()?)));
        shown.map(|(at, stored)| (key.clone(), Some(stored), at)).collect()
    }

    /// The number of versions with a value among so many of the newest of a key, deletions
    /// included.
    fn values_among(&self, key: &Bytes, newest: usize) -> usize {
        let state = self.now();
        let versions = state.get(key).into_iter().flat_map(|versions| versions.values().rev());
        versions.take(newest).flatten().count()
    }
}

fn delete(state: &mut State, at: i64, key: &Bytes, keeps_history: bool) {
    if !keeps_history {
        state.remove(key);
    } else if let Some(versions) = state.get_mut(key)
        && let Some((_, Some(_))) = versions.last_key_value()
    {
        versions.insert(at, None);
    }
}

/// The newest version of each key, for transactions.
fn plain(state: &State) -> plain_transactions::State {
    let newest = state.iter().filter_map(|(key, versions)| {
        let (version, stored) = versions.last_key_value()?;
        let (value, facts) = stored.as_ref()?;
        let found = KeyState { version: Timestamp(*version), facts: *facts };
        Some((key.clone(), (found, value.clone())))
    });
    newest.collect()
}

/// A transaction from a number as random ones.
fn any_txn(seed: u64, only_reads: bool) -> Txn {
    let mut last = seed;
    let mut pick = move |most: usize| {
        last = last.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((last >> 33) % most as u64) as usize
    };
    let mut keys = keys();
    keys.sort();
    let versions: Vec<_> = (1..12).map(|number| Timestamp(10 * number)).collect();
    let values = [Bytes::new(), Bytes::from_static(b"value")];
    let mut value = || Bytes::from_static(b"value");
    let mut maker = TxnMaker {
        pick: &mut pick,
        keys: &keys,
        versions: &versions,
        value: &mut value,
        values: &values,
        keeps_history: true,
        leases: &[],
        only_reads,
    };
    maker.fit(3)
}

fn holds(condition: Condition, newest: Option<i64>) -> bool {
    match condition {
        Condition::Absent => newest.is_none(),
        Condition::Version(version) => newest == Some(version.0),
    }
}

fn found(row: Row) -> Found {
    match row.found {
        Some(Version { timestamp, value, facts }) => {
            (row.key, Some((value, facts.unwrap())), timestamp.0)
        }
        None => (row.key, None, 0),
    }
}

/// A version as the store shows it.
fn version((_, stored, version): Found) -> Option<Version> {
    let timestamp = Timestamp(version);
    stored.map(|(value, facts)| Version { timestamp, value, facts: Some(facts) })
}

fn without_values(rows: &[Found]) -> Vec<Found> {
    let empty = |stored: &Option<Stored>| stored.as_ref().map(|(_, facts)| (Bytes::new(), *facts));
    rows.iter().map(|(key, stored, version)| (key.clone(), empty(stored), *version)).collect()
}

/// A whole read, page by page.
fn pages(
    store: &Store,
    of: PageOf,
    read_view: ReadView,
    most: PageLimits,
) -> Result<Vec<Found>, StoreReadError> {
    let (mut of, mut read_view) = (of, read_view);
    let mut rows = Vec::new();
    loop {
        let page = store.page(&of, read_view, most)?;
        assert!(page.rows.len() <= most.rows);
        rows.extend(page.rows.into_iter().map(found));
        match (page.next, &mut of) {
            (None, _) => return Ok(rows),
            (Some(PageNext::From(next)), PageOf::Range { from, .. }) => {
                assert!(next > *from, "the next page begins later");
                *from = next;
            }
            (Some(PageNext::To(next)), PageOf::RangeReverse { to, .. }) => {
                assert!(next < *to, "the next page ends earlier");
                *to = next;
            }
            (Some(PageNext::Skip(count)), PageOf::Keys { keys }) => {
                assert!(count > 0);
                drop(keys.drain(..count as usize));
            }
            (Some(PageNext::At(next)), PageOf::Versions { .. }) => read_view.at = next,
            (next, of) => panic!("{next:?} does not go on with {of:?}"),
        }
    }
}

/// All changes of a range after a position, page by page, with what was before.
fn all_changes(
    store: &Store,
    range: &KeyInterval,
    mut position: FeedPosition,
    most: ChangesLimits,
) -> Result<Vec<KeyChange>, ChangesError> {
    let mut changes = Vec::new();
    loop {
        let page = store.changes(range, true, &position, most)?;
        assert!(page.changes.len() <= most.changes.max(1), "{page:?}");
        assert!(page.next > position || !page.has_more, "{page:?} after {position:?}");
        for change in &page.changes {
            assert!(position.is_before(change.at, &change.key), "{page:?} after {position:?}");
            assert!(!page.next.is_before(change.at, &change.key), "{page:?}");
        }
        changes.extend(page.changes);
        position = page.next;
        if !page.has_more {
            assert_eq!(position.within, None);
            return Ok(changes);
        }
    }
}

/// Tables so small that few writes make many, of several blocks each, and merges of many stretches.
const TINY: TablesOptions = TablesOptions {
    memory_table_bytes: 1,
    block_bytes: 60,
    fan: 2,
    small_run_bytes: 300,
    table_bytes: 200,
    merge_step_rows: 3,
    long_value_bytes: 2,
    cache_bytes: 10_000,
    open_files_max: 3,
};
/// Small tables for a store of many rows.
const SMALL: TablesOptions = TablesOptions { table_bytes: 1 << 20, merge_step_rows: 500, ..TINY };

/// So many bytes of newest versions that few keys are known at once.
const FEW_BYTES: usize = 64 * 60;

/// A machine that keeps so many bytes of newest versions.
fn open(engine: Arc<dyn Engine>, limits: StateLimits, newest_bytes_max: usize) -> StateMachine {
    let mut machine = StateMachine::open(engine, limits).unwrap();
    machine.set_newest_bytes_max(newest_bytes_max);
    // The same for the latest changes.
    machine.set_recent_bytes_max(newest_bytes_max);
    machine.store().follow(true);
    machine
}

/// Machines on three engines, fed with the same log, and the model: in memory, on tables of the
/// sizes that servers have, and on tiny ones. The first keeps no newest versions, the second all,
/// the third a few.
struct World {
    memory: (Arc<MemoryEngine>, StateMachine),
    disk: StateMachine,
    tables: (Arc<TableEngine>, StateMachine),
    tables_disk: SimDisk,
    tables_options: TablesOptions,
    _folder: tempfile::TempDir,
    limits: StateLimits,
    model: Model,
    log: Vec<LogEntry>,
    /// The transactions in it, which may come again.
    txns: Vec<(RequestId, WriteOp)>,
    last: i64,
    sequence: u64,
    history: History,
    /// Of each key no sweep has kept fewer versions than this.
    kept_min: usize,
}

/// So many newest versions of each key stay.
fn kept(history: History) -> usize {
    match history {
        History::All => usize::MAX,
        History::For { .. } => 1,
        History::Versions { count } => count as usize,
    }
}

impl World {
    fn new(limits: StateLimits) -> World {
        World::with_tables(limits, SMALL)
    }

    fn with_tables(limits: StateLimits, tables_options: TablesOptions) -> World {
        let folder = tempfile::tempdir().unwrap();
        let engine = Arc::new(MemoryEngine::new());
        let disk: Arc<dyn Engine> = Arc::new(TableEngine::open_at(folder.path()).unwrap());
        let tables_disk = SimDisk::new();
        let tables = TableEngine::open(Arc::new(tables_disk.clone()), tables_options).unwrap();
        let tables = Arc::new(tables);
        World {
            memory: (engine.clone(), open(engine, limits, 0)),
            disk: open(disk, limits, usize::MAX),
            tables: (tables.clone(), open(tables, limits, FEW_BYTES)),
            tables_disk,
            tables_options,
            limits,
            _folder: folder,
            model: Model::default(),
            log: Vec::new(),
            txns: Vec::new(),
            last: 0,
            sequence: 0,
            history: History::All,
            kept_min: usize::MAX,
        }
    }

    fn push(&mut self, action: Action) -> i64 {
        self.last += 10;
        let data = Command { timestamp: Timestamp(self.last), clock_us: self.last as u64, action }
            .encode();
        self.log.push(LogEntry { term: 1, index: self.log.len() as u64 + 1, data });
        self.last
    }

    fn write(&mut self, op: &WriteOp) {
        let op = &self.with_a_version_that_is(op);
        self.sequence += 1;
        let request = RequestId {
            client: ClientId(1),
            sequence: self.sequence,
            answered_below: 0,
            begun: Timestamp::ZERO,
        };
        let keeps_ranges = match op {
            WriteOp::DelRange(DelRange { keeps_history, .. }) => *keeps_history,
            WriteOp::Txn(txn) => !kept_ranges(txn).is_empty(),
            _ => false,
        };
        if keeps_ranges {
            self.settle();
        }
        let at = self.push(Action::Write { request, op: op.clone() });
        if !self.is_too_long(op) {
            self.model.apply(at, op);
        }
        if keeps_ranges {
            self.settle();
        }
        if let WriteOp::SetHistory(SetHistory { history }) = op {
            self.history = *history;
        }
        if matches!(op, WriteOp::Txn(_)) {
            self.txns.push((request, op.clone()));
        }
    }

    /// A transaction that was written comes again.
    fn write_again(&mut self, which: usize) {
        let Some(back) = self.txns.len().checked_sub(1) else { return };
        let (request, op) = self.txns[back - which % (back + 1)].clone();
        let at = self.push(Action::Write { request, op });
        let last = self.model.now();
        self.model.moments.push((at, last));
    }

    /// A transaction that only reads tells the newest state.
    fn read_at_once(&mut self, seed: u64) {
        self.settle();
        let txn = any_txn(seed, true);
        let (_, expected) = carry_out(&txn, &mut plain(&self.model.now()), Timestamp::ZERO);
        for machine in [&self.memory.1, &self.disk, &self.tables.1] {
            let store = machine.store();
            let at = store.applied().timestamp;
            let told = store.read_txn(&txn, at, usize::MAX).unwrap();
            assert_eq!(told.as_ref(), Some(&expected), "{txn:?}");
        }
    }

    /// The operation, with the newest version of its key in the place of [`THE_NEWEST`].
    fn with_a_version_that_is(&self, op: &WriteOp) -> WriteOp {
        let mut op = op.clone();
        if let WriteOp::PutIf(PutIf { key, condition, .. }) = &mut op
            && *condition == Condition::Version(THE_NEWEST)
            && let Some(newest) = self.model.newest(key)
        {
            *condition = Condition::Version(Timestamp(newest));
        }
        op
    }

    /// Whether the operation that was logged last is a range that is too long to be deleted with
    /// its history kept, which a store says if it is not certain.
    fn is_too_long(&mut self, op: &WriteOp) -> bool {
        let WriteOp::DelRange(DelRange { from, to, keeps_history: true }) = op else {
            return false;
        };
        let is_within = |key: &&Bytes| from <= *key && *key <= to;
        let most = self.limits.kept_removal_rows_max.max(1) as usize;
        let shown = self.model.now().keys().filter(is_within).count();
        let moments = self.model.moments.iter().flat_map(|(_, state)| state.keys());
        let ever: BTreeSet<Bytes> = moments.filter(is_within).cloned().collect();
        let results = self.settle();
        let is_too_long = results == [OpResult::TooLong];
        assert!(is_too_long || shown <= most, "{op:?} of {shown} keys");
        assert!(!is_too_long || ever.len() > most, "{op:?} of {} keys", ever.len());
        is_too_long
    }

    /// Applies what has been logged, on all engines, and compares what was answered. Returns what
    /// the writes came to.
    fn settle(&mut self) -> Vec<OpResult> {
        let mut results = Vec::new();
        let from = self.disk.applied().index as usize;
        let entries = &self.log[from..];
        let answers = self.memory.1.apply_answering(entries).unwrap();
        assert_eq!(answers, self.disk.apply_answering(entries).unwrap());
        assert_eq!(self.memory.1.applied(), self.disk.applied());
        let (tables, machine) = &mut self.tables;
        assert_eq!(answers, machine.apply_answering(entries).unwrap());
        assert_eq!(machine.applied(), self.disk.applied());
        // Seals and merges at moments of their own.
        if self.log.len().is_multiple_of(3) {
            machine.checkpoint().unwrap();
        }
        tables.work().unwrap();
        for answer in answers.writes {
            let WriteFate::Answered(answered) = answer.fate else { panic!("{answer:?}") };
            let before = answered.timestamp.0 - 1;
            let command = Command::decode(&self.log[answer.index as usize - 1].data).unwrap();
            let Action::Write { op, .. } = command.unwrap().action else { panic!("a write") };
            if let WriteOp::PutIf(PutIf { key, condition, .. }) = &op {
                let (_, value, version) = self.model.get(key, before, before);
                let newest = value.map(|_| version);
                let expected = match holds(*condition, newest) {
                    true => OpResult::Done,
                    false => OpResult::ConditionFailed { newest: newest.map(Timestamp) },
                };
                assert_eq!(answered.result, expected, "{op:?}");
            }
            if let WriteOp::Txn(txn) = &op {
                if answered.result == OpResult::TooLong {
                    self.came_to_nothing(answered.timestamp, txn);
                    assert_eq!(answered.txn, None);
                    results.push(answered.result);
                    continue;
                }
                let (result, answer) = &self.model.txns[&answered.timestamp.0];
                assert_eq!(answered.result, *result, "{op:?}");
                let mut expected = answer.clone();
                let told = answered.txn.as_deref();
                let is_late = before < self.model.purged || before < self.model.swept;
                if is_late && told.is_some_and(|told| told.results.is_none()) {
                    expected.results = None;
                }
                assert_eq!(told, Some(&expected), "{op:?} at {}", answered.timestamp);
            }
            results.push(answered.result);
            let key = op.tells_before(answered.result);
            let expected = key.map(|key| self.model.get(key, before, before));
            let told = answered.previous.map(|previous| match previous {
                Previous::Absent => (None, 0),
                Previous::Value { timestamp, facts, value } => {
                    (value.map(|value| (value, facts)), timestamp.0)
                }
            });
            assert_eq!(told, expected.map(|(_, value, version)| (value, version)), "{op:?}");
        }
        results
    }

    /// A transaction was too long, which a store says if it is not certain: for the first time, it
    /// is the last write, and else it has been so before.
    fn came_to_nothing(&mut self, at: Timestamp, txn: &Txn) {
        let moments = self.model.moments.iter().flat_map(|(_, state)| state.keys());
        let ever: BTreeSet<Bytes> = moments.cloned().collect();
        let looked_at = |(from, to): &(Bytes, Bytes)| {
            ever.iter().filter(|key| from <= *key && *key <= to).count()
        };
        let rows: usize = kept_ranges(txn).iter().map(looked_at).sum();
        assert!(rows >= self.limits.kept_removal_rows_max as usize, "{txn:?} of {rows} keys");
        let Some((result, _)) = self.model.txns.get_mut(&at.0) else { panic!("no {txn:?}") };
        if *result != OpResult::TooLong {
            *result = OpResult::TooLong;
            let last = self.model.moments.pop();
            assert!(last.is_some_and(|(time, _)| time == at.0), "{txn:?} is the last write");
            let before = self.model.now();
            self.model.moments.push((at.0, before));
        }
    }

    /// The bytes of the tiny tables when everything is sealed and nothing is left to do.
    fn stored_bytes(&mut self) -> usize {
        let (tables, machine) = &mut self.tables;
        machine.checkpoint().unwrap();
        while tables.work().unwrap() {}
        self.tables_disk.files().iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Takes the engines back to what a crash leaves of them, and applies the rest of the log.
    fn crash(&mut self) {
        let (engine, machine) = &mut self.memory;
        engine.crash();
        *machine = open(engine.clone(), self.limits, 0);
        self.tables_disk.restart();
        let (disk, options) = (self.tables_disk.clone(), self.tables_options);
        let tables = Arc::new(TableEngine::open(Arc::new(disk), options).unwrap());
        self.tables = (tables.clone(), open(tables, self.limits, FEW_BYTES));
        for machine in [&mut self.memory.1, &mut self.tables.1] {
            let kept = machine.applied().index as usize;
            machine.apply(&self.log[kept..]).unwrap();
            assert_eq!(machine.applied(), self.disk.applied());
        }
    }

    /// One piece of work in the background.
    fn collect(&mut self, piece: GarbageCollection) {
        let last = self.model.now();
        if let GarbageCollection::Removed { before_us, .. } = &piece {
            self.model.purged = self.model.purged.max(*before_us as i64);
        }
        if let GarbageCollection::History {
            history: History::For { .. } | History::Versions { .. },
            as_of_us,
            ..
        } = &piece
        {
            self.model.swept = self.model.swept.max(*as_of_us as i64);
        }
        if let GarbageCollection::Compacted { as_of_us, .. } = &piece {
            self.kept_min = 1;
            let as_of = self.model.compacted.min(*as_of_us as i64);
            self.model.swept = self.model.swept.max(as_of);
        }
        let at = self.push(Action::GarbageCollection(piece));
        self.model.moments.push((at, last));
        self.settle();
        assert_eq!(self.needless_tombstones(), Vec::<Bytes>::new(), "{:?}", self.history);
    }

    /// One piece of a sweep by the history that is kept. Whether there is more to do, now or later.
    fn sweep(&mut self, as_of_us: u64, (rows_max, bytes_max): (u32, u64)) -> bool {
        let history = self.history;
        self.kept_min = self.kept_min.min(kept(history));
        self.collect(GarbageCollection::History { history, as_of_us, rows_max, bytes_max });
        self.disk.summary().history_due_us.is_some()
    }

    /// One piece of removing what was compacted. Whether there is more to do, now or later.
    fn remove_compacted(&mut self, as_of_us: u64, (rows_max, bytes_max): (u32, u64)) -> bool {
        self.collect(GarbageCollection::Compacted { as_of_us, rows_max, bytes_max });
        self.disk.summary().compacted_due_us.is_some()
    }

    /// Compacts everything, and finds of each key its newest version and nothing else.
    fn compact_all(&mut self, keys: &[Bytes], piece: (u32, u64)) {
        let version = Timestamp(self.last);
        self.write(&Compact { version }.into());
        self.settle();
        self.check(keys, version.0 - 1, self.last, page_of(100));
        self.check(keys, version.0, self.last, page_of(100));
        let mut pieces = 0;
        while self.remove_compacted(self.last as u64, piece) {
            self.check_newest(keys);
            self.check(keys, version.0, self.last, page_of(100));
            pieces += 1;
            assert!(pieces < 4_000, "it comes to no end");
        }
        self.change_rows();
        for key in keys {
            let of = PageOf::Versions { key: key.clone() };
            let now = ReadView::as_of(Timestamp(self.last));
            let left = pages(&self.disk.store(), of, now, page_of(100)).unwrap();
            assert_eq!(left.len(), self.model.values_among(key, 1), "of {key:?}: {left:?}");
        }
        // The first key that is written again has something to remove, and not before.
        assert!(!self.remove_compacted(self.last as u64, piece));
    }

    fn rows_in(&self, range: &RowRange) -> Vec<Bytes> {
        let mut found = Vec::new();
        let view = self.memory.0.view().unwrap();
        view.scan(range, Direction::Forward, &mut |row, _| {
            found.push(Bytes::copy_from_slice(row));
            ControlFlow::Continue(())
        })
        .unwrap();
        found
    }

    /// The versions after which nothing older of their keys is left, and which are tombstones: one
    /// byte each, while a value has its facts beside it.
    fn needless_tombstones(&self) -> Vec<Bytes> {
        let mut oldest = BTreeMap::new();
        let view = self.memory.0.view().unwrap();
        view.scan(&rows::all_versions(), Direction::Forward, &mut |row, stored| {
            let key = Bytes::copy_from_slice(rows::version_prefix(row));
            oldest.insert(key, (Bytes::copy_from_slice(row), stored.len()));
            ControlFlow::Continue(())
        })
        .unwrap();
        let tombstones = oldest.into_values().filter(|(_, bytes)| *bytes == 1);
        tombstones.map(|(row, _)| row).collect()
    }

    /// The change rows, which must be those of the versions and tombstones that there are.
    fn change_rows(&self) -> usize {
        let changes = self.rows_in(&rows::all_changes());
        let mut of_versions: Vec<Bytes> = self
            .rows_in(&rows::all_versions())
            .iter()
            .map(|row| {
                let (key, at) = rows::decode_version(row).unwrap();
                rows::change(at, &key)
            })
            .collect();
        of_versions.sort();
        assert_eq!(changes, of_versions);
        changes.len()
    }

    /// Sweeps to the end, and finds of each key what the history keeps and nothing else.
    fn sweep_all(&mut self, keys: &[Bytes], piece: (u32, u64)) {
        self.settle();
        let mut pieces = 0;
        while self.sweep(self.last as u64, piece) {
            self.check_newest(keys);
            pieces += 1;
            assert!(pieces < 4_000, "the sweep comes to no end");
        }
        self.change_rows();
        let read_view = ReadView::as_of(Timestamp(self.last));
        for key in keys {
            let of = PageOf::Versions { key: key.clone() };
            let left = pages(&self.disk.store(), of, read_view, page_of(100)).unwrap();
            let all = self.model.versions(key, self.last, self.last);
            let fewest = self.model.values_among(key, self.kept_min);
            let most = self.model.values_among(key, kept(self.history));
            let context = format!("of {key:?}, {:?}, at least {fewest}", self.history);
            assert!(all.starts_with(&left), "{context}: {left:?} of {all:?}");
            assert!((fewest..=most).contains(&left.len()), "{context}: {left:?}, at most {most}");
        }
    }

    /// The newest state, all at once.
    fn check_newest(&self, keys: &[Bytes]) {
        let all = KeyInterval { from: keys[0].clone(), to: keys[keys.len() - 1].clone() };
        self.check_changes(&all, self.last - 30, ChangesLimits::default());
        self.check(keys, self.last, self.last, page_of(100));
        self.check_known(keys);
        for store in [self.memory.1.store(), self.disk.store(), self.tables.1.store()] {
            for key in keys {
                let at = Timestamp(self.last);
                let expected = store.get_at(key, at).unwrap();
                match store.try_get_in_memory(key, at, 100) {
                    InMemory::Unknown => {}
                    InMemory::Absent => assert_eq!(expected, None, "{key:?}"),
                    InMemory::Found(found) => assert_eq!(Some(found), expected, "{key:?}"),
                }
            }
        }
    }

    /// The newest versions, which a store may know from an earlier read.
    fn check_known(&self, keys: &[Bytes]) {
        let memory = self.memory.1.store();
        for key in keys {
            let expected = memory.get(key).unwrap();
            let newest = version(self.model.get(key, i64::MAX, i64::MAX));
            assert_eq!(expected, newest, "{key:?}");
            for store in [self.disk.store(), self.tables.1.store()] {
                for _ in 0..2 {
                    assert_eq!(store.get(key).unwrap(), expected, "{key:?}");
                    match store.try_get_in_memory(key, Timestamp(i64::MAX), 100) {
                        InMemory::Unknown => {}
                        InMemory::Absent => assert_eq!(expected, None, "{key:?}"),
                        InMemory::Found(found) => {
                            assert_eq!(Some(found), expected, "{key:?}");
                        }
                    }
                }
            }
        }
    }

    /// Compares the changes of a range after a time with those of the model, from the store and
    /// from memory.
    fn check_changes(&self, range: &KeyInterval, after: i64, most: ChangesLimits) {
        let mut right = self.model.changes(after);
        right.retain(|(_, key, ..)| range.covers(key));
        let context = format!("after {after} in {range:?}, {most:?}");
        for store in [self.memory.1.store(), self.disk.store(), self.tables.1.store()] {
            let start = FeedPosition::after(Timestamp(after));
            match all_changes(&store, range, start.clone(), most) {
                Ok(changes) => {
                    let shown = changes.iter().map(|change| {
                        let Some(previous) = &change.previous else { panic!("{change:?}") };
                        let had = match previous {
                            Previous::Absent => None,
                            Previous::Value { timestamp, facts, value } => {
                                Some((timestamp.0, (value.clone().unwrap(), *facts)))
                            }
                        };
                        let written = change.written.as_ref();
                        assert!(written.is_none_or(|version| version.timestamp == change.at));
                        let written =
                            written.map(|version| (version.value.clone(), version.facts.unwrap()));
                        (change.at.0, change.key.clone(), written, had)
                    });
                    assert_eq!(shown.collect::<Vec<_>>(), right, "{context}");
                }
                Err(ChangesError::Gone { .. }) => {
                    let horizon = self.model.purged.max(self.model.swept);
                    assert!(after < horizon, "{context}: nothing is gone, up to {horizon}");
                }
                Err(error) => panic!("{context}: {error}"),
            }
            let RecentPart::Batches(batches) = store.recent_changes(Timestamp(after)) else {
                continue;
            };
            let mut up_to = after;
            for batch in &batches {
                assert!(batch.after.0 <= up_to && up_to < batch.up_to.0, "{context}: {batch:?}");
                up_to = batch.up_to.0;
            }
            assert!(batches.is_empty() || up_to == self.last, "{context}: up to {up_to}");
            let recent = batches.iter().flat_map(|batch| &batch.changes);
            let (mut shown, mut ranges) = (Vec::new(), Vec::new());
            for change in recent.filter(|change| change.at().0 > after) {
                match change {
                    RecentChange::Key(change) if range.covers(&change.key) => {
                        let written = change.written.as_ref();
                        let written =
                            written.map(|version| (version.value.clone(), version.facts.unwrap()));
                        shown.push((change.at.0, change.key.clone(), written));
                    }
                    RecentChange::Key(_) => {}
                    RecentChange::Range { at, range } => ranges.push((at.0, range)),
                }
            }
            if !batches.is_empty() {
                // What a range had only the store tells.
                let is_of_range = |at: i64, key: &Bytes| {
                    ranges.iter().any(|(time, range)| *time == at && range.covers(key))
                };
                let of_keys = right.iter().filter(|(at, key, ..)| !is_of_range(*at, key));
                let of_keys = of_keys.map(|(at, key, has, _)| (*at, key.clone(), has.clone()));
                assert_eq!(shown, of_keys.collect::<Vec<_>>(), "{context}");
            }
        }
    }

    /// Compares reads at these times, on both engines.
    fn check(&self, keys: &[Bytes], at: i64, seen: i64, most: PageLimits) {
        let at = at.min(seen);
        let read_view = ReadView { at: Timestamp(at), removals_up_to: Timestamp(seen) };
        let (from, to) = (&keys[0], &keys[keys.len() - 1]);
        for store in [self.memory.1.store(), self.disk.store(), self.tables.1.store()] {
            let read = |of: PageOf| {
                let whole = PageLimits { keys_only: false, ..most };
                let rows = pages(&store, of.clone(), read_view, whole);
                if most.keys_only {
                    let without = pages(&store, of, read_view, most).ok();
                    let expected = rows.as_ref().ok().map(|rows| without_values(rows));
                    assert_eq!(without, expected, "the same rows but for their values");
                }
                rows
            };
            let of_range = PageOf::Range { from: from.clone(), to: to.clone() };
            let range = read(of_range.clone());
            // What was the newest state is gone on with.
            if at < self.model.compacted && at != seen {
                self.check_refused(&store, keys, read_view);
                continue;
            }
            assert!(
                !matches!(range, Err(StoreReadError::Compacted { .. })),
                "{range:?} as of {at}"
            );
            let first = store.first_page(&of_range, read_view, most);
            assert!(first.is_ok(), "{first:?} as of {at}");
            if at < self.model.swept || seen < self.model.purged {
                // It may be refused, and never shows anything else than what there was.
                match range {
                    Err(StoreReadError::Expired) => continue,
                    Err(error) => panic!("{error}"),
                    Ok(rows) if at >= self.model.swept => {
                        assert_eq!(rows, self.model.range(from, to, at, seen));
                    }
                    // What the history does not keep is not found; what is found is right.
                    Ok(rows) => {
                        let right = self.model.range(from, to, at, seen);
                        assert!(
                            rows.iter().all(|row| right.contains(row)),
                            "{rows:?} of {right:?}"
                        );
                    }
                }
                if seen == self.last {
                    for key in keys {
                        let told = store.get_at(key, Timestamp(at)).unwrap();
                        let right = version(self.model.get(key, at, seen));
                        assert!(told.is_none() || told == right, "{told:?}, not {right:?}");
                    }
                }
                continue;
            }
            let context = format!("as of {at}, seen from {seen}, {most:?}");
            let mut range = range.unwrap();
            assert_eq!(range, self.model.range(from, to, at, seen), "{context}");
            range.reverse();
            let reverse = PageOf::RangeReverse { from: from.clone(), to: to.clone() };
            assert_eq!(read(reverse).unwrap(), range, "{context}");
            let wanted: Vec<Bytes> = keys.iter().rev().cloned().collect();
            let each: Vec<Found> = wanted.iter().map(|key| self.model.get(key, at, seen)).collect();
            assert_eq!(read(PageOf::Keys { keys: wanted }).unwrap(), each, "{context}");
            for key in keys {
                let expected = self.model.versions(key, at, seen);
                let kept =
                    expected.into_iter().filter(|(_, _, version)| *version >= self.model.swept);
                let kept: Vec<Found> = kept.collect();
                let mut versions = read(PageOf::Versions { key: key.clone() }).unwrap();
                let all = self.model.versions(key, at, seen);
                assert!(all.starts_with(&versions), "{context}: {versions:?} of {all:?}");
                versions.retain(|(_, _, version)| *version >= self.model.swept);
                assert_eq!(versions, kept, "{context}");
                if seen == self.last {
                    let got = store.get_at(key, Timestamp(at)).unwrap();
                    assert_eq!(got, version(self.model.get(key, at, seen)), "{context}");
                }
            }
        }
    }
}

impl World {
    /// All reads as of a version that is compacted are refused, but for lists of versions, which
    /// show what is left.
    fn check_refused(&self, store: &Store, keys: &[Bytes], read_view: ReadView) {
        let compacted = self.model.compacted;
        let is_refused = |error: &StoreReadError| match error {
            StoreReadError::Compacted { version } => version.0 == compacted,
            _ => false,
        };
        let (from, to) = (keys[0].clone(), keys[keys.len() - 1].clone());
        for of in [
            PageOf::Range { from: from.clone(), to: to.clone() },
            PageOf::RangeReverse { from, to },
            PageOf::Keys { keys: keys.to_vec() },
        ] {
            for page in [
                store.page(&of, read_view, page_of(1)),
                store.first_page(&of, read_view, page_of(1)),
            ] {
                assert!(page.as_ref().is_err_and(is_refused), "{of:?}, {read_view:?}: {page:?}");
            }
        }
        let ReadView { at, removals_up_to } = read_view;
        for key in keys {
            let told = store.get_at(key, at);
            assert!(told.as_ref().is_err_and(is_refused), "{key:?} as of {at}: {told:?}");
            assert_eq!(store.try_get_in_memory(key, at, 100), InMemory::Unknown);
            let of = PageOf::Versions { key: key.clone() };
            match pages(store, of, read_view, page_of(100)) {
                Err(StoreReadError::Expired) => {}
                Err(error) => panic!("{error}"),
                Ok(versions) => {
                    let all = self.model.versions(key, at.0, removals_up_to.0);
                    assert!(all.starts_with(&versions), "{versions:?} of {all:?}");
                }
            }
        }
    }
}

/// Keys of every awkward kind, few enough to meet.
fn keys() -> Vec<Bytes> {
    let mut keys: Vec<Bytes> = [
        &b"a"[..],
        b"a\0",
        b"a\0\0",
        b"a\0\xff",
        b"a!",
        b"a,b",
        b"a:b",
        b"a;",
        b"b",
        b"\xff",
        b"\xff\xff",
        b"\0",
    ]
    .map(Bytes::copy_from_slice)
    .into();
    keys.sort();
    keys
}

#[derive(Clone, Debug)]
enum Step {
    Write(WriteOp),
    /// A transaction that was written comes again.
    Again(usize),
    /// A transaction that only reads, from a number.
    ReadAtOnce(u64),
    Settle,
    Crash,
    Checkpoint,
    /// A piece, or so many, with a look at everything after each.
    Purge {
        age: i64,
        piece: (u32, u64),
        pieces: usize,
    },
    Sweep {
        age: i64,
        piece: (u32, u64),
        pieces: usize,
    },
    /// So much of the past is given up, more or less of it in the future.
    Compact {
        age: i64,
    },
    /// A piece, or so many, of removing it.
    RemoveCompacted {
        age: i64,
        piece: (u32, u64),
        pieces: usize,
    },
    Check {
        at: i64,
        seen: i64,
        most: PageLimits,
    },
    Changes {
        after: i64,
        range: KeyInterval,
        most: ChangesLimits,
    },
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(keys())
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(Bytes::new()), any::<[u8; 2]>().prop_map(|v| Bytes::copy_from_slice(&v))]
}

/// In a condition: the version that the key has, if it has one.
const THE_NEWEST: Timestamp = Timestamp(i64::MAX);

fn op() -> impl Strategy<Value = WriteOp> {
    let condition = || {
        prop_oneof![
            1 => Just(Condition::Absent),
            2 => Just(Condition::Version(THE_NEWEST)),
            1 => (1..400i64).prop_map(|version| Condition::Version(Timestamp(version))),
        ]
    };
    prop_oneof![
        3 => (key(), value(), condition())
            .prop_map(|(key, value, condition)| WriteOp::PutIf(PutIf { key, value, condition })),
        6 => (key(), value()).prop_map(|(key, value)| {
            WriteOp::Put(Put { key, value, tells_previous: true })
        }),
        2 => prop::collection::vec((key(), value()), 0..5)
            .prop_map(|pairs| WriteOp::PutAll(PutAll { pairs })),
        3 => (key(), any::<bool>()).prop_map(|(key, keeps_history)| {
            WriteOp::Del(Del { key, tells_previous: true, keeps_history })
        }),
        1 => (prop::collection::vec(key(), 0..4), any::<bool>()).prop_map(|(keys, keeps_history)| {
            WriteOp::DelAll(DelAll { keys, keeps_history })
        }),
        1 => (key(), key(), any::<bool>()).prop_map(|(from, to, keeps_history)| {
            WriteOp::DelRange(DelRange { from, to, keeps_history })
        }),
        2 => key().prop_map(|key| WriteOp::Trim(Trim { key, tells_previous: true })),
        1 => Just(WriteOp::Barrier(Barrier {})),
        1 => (key(), value())
            .prop_map(|(prefix, value)| PutSequential { prefix, value }.into()),
        5 => any::<u64>().prop_map(|seed| any_txn(seed, false).into()),
    ]
}

/// Limits that a short test reaches. So many ranges are never removed at once in it that one is
/// refused.
fn state_limits() -> impl Strategy<Value = StateLimits> {
    let kept = prop_oneof![1..6u32, Just(1_000)];
    (0..6u32, kept, 0..100u64).prop_map(
        |(removal_scan_rows_max, kept_removal_rows_max, removal_grace_us)| StateLimits {
            removal_scan_rows_max,
            kept_removal_rows_max,
            removal_grace_us,
            range_removals_max: 1_000,
            ..StateLimits::default()
        },
    )
}

fn page_limits() -> impl Strategy<Value = PageLimits> {
    let few = |most: usize| prop_oneof![0..most, Just(1_000)];
    (1..5usize, few(8), few(6), few(60), any::<bool>()).prop_map(
        |(rows, bytes, visits, scan_bytes, keys_only)| PageLimits {
            rows,
            bytes,
            visits,
            scan_bytes,
            keys_only,
        },
    )
}

fn changes_limits() -> impl Strategy<Value = ChangesLimits> {
    let few = |most: usize| prop_oneof![0..most, Just(1_000)];
    (few(4), few(12), few(6)).prop_map(|(changes, bytes, visits)| ChangesLimits {
        changes,
        bytes,
        visits,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let rows_max = prop_oneof![0..6u32, Just(ROWS_MAX)];
    let piece = (rows_max, prop_oneof![0..12u64, Just(BYTES_MAX)]);
    let history = prop_oneof![
        Just(History::All),
        Just(History::For { age_us: 1 }),
        (1..4u32).prop_map(|count| History::Versions { count }),
    ];
    prop_oneof![
        12 => op().prop_map(Step::Write),
        2 => (0..9usize).prop_map(Step::Again),
        2 => any::<u64>().prop_map(Step::ReadAtOnce),
        3 => Just(Step::Settle),
        1 => Just(Step::Crash),
        1 => Just(Step::Checkpoint),
        2 => (0..200i64, piece.clone(), 1..20usize)
            .prop_map(|(age, piece, pieces)| Step::Purge { age, piece, pieces }),
        2 => (0..400i64, piece.clone(), 1..20usize)
            .prop_map(|(age, piece, pieces)| Step::Sweep { age, piece, pieces }),
        1 => (-50..800i64).prop_map(|age| Step::Compact { age }),
        2 => (0..400i64, piece, 1..20usize)
            .prop_map(|(age, piece, pieces)| Step::RemoveCompacted { age, piece, pieces }),
        1 => history.prop_map(|history| Step::Write(WriteOp::SetHistory(SetHistory { history }))),
        6 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), page_limits()).prop_map(
            |(at, seen, most)| Step::Check {
                at: at.index(1_000) as i64,
                seen: seen.index(1_000) as i64,
                most,
            }
        ),
        3 => (any::<prop::sample::Index>(), key(), key(), changes_limits()).prop_map(
            |(after, from, to, most)| Step::Changes {
                after: after.index(1_000) as i64,
                range: KeyInterval { from, to },
                most,
            }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_read_finds_what_the_model_finds(
        limits in state_limits(),
        steps in prop::collection::vec(step(), 1..120),
        last_piece in (0..6u32, 0..12u64),
    ) {
        let keys = keys();
        let mut world = World::with_tables(limits, TINY);
        for step in steps {
            match step {
                Step::Write(op) => world.write(&op),
                Step::Again(which) => world.write_again(which),
                Step::ReadAtOnce(seed) => world.read_at_once(seed),
                Step::Settle => {
                    world.settle();
                    world.check_known(&keys);
                }
                Step::Checkpoint => {
                    world.settle();
                    world.memory.1.checkpoint().unwrap();
                    world.disk.checkpoint().unwrap();
                    world.tables.1.checkpoint().unwrap();
                }
                Step::Crash => {
                    world.settle();
                    world.crash();
                    world.check_known(&keys);
                }
                Step::Purge { age, piece: (rows_max, bytes_max), pieces } => {
                    let before_us = (world.last - age).max(0) as u64;
                    for _ in 0..pieces {
                        let removed = GarbageCollection::Removed { before_us, rows_max, bytes_max };
                        world.collect(removed);
                        world.check_newest(&keys);
                    }
                }
                Step::Sweep { age, piece, pieces } => {
                    world.settle();
                    let as_of_us = (world.last - age).max(0) as u64;
                    for _ in 0..pieces {
                        if !world.sweep(as_of_us, piece) {
                            break;
                        }
                        world.check_newest(&keys);
                        world.check(&keys, as_of_us as i64 - 5, world.last, page_of(100));
                    }
                }
                Step::Compact { age } => {
                    let version = Timestamp((world.last - age).max(1));
                    world.write(&Compact { version }.into());
                }
                Step::RemoveCompacted { age, piece, pieces } => {
                    world.settle();
                    let as_of_us = (world.last - age).max(0) as u64;
                    for _ in 0..pieces {
                        if !world.remove_compacted(as_of_us, piece) {
                            break;
                        }
                        world.check_newest(&keys);
                        world.check(&keys, world.model.compacted, world.last, page_of(100));
                    }
                }
                Step::Check { at, seen, most } => {
                    world.settle();
                    // Every time that there has been is as likely.
                    let scale = |time: i64| time * world.last / 1_000;
                    world.check(&keys, scale(at), scale(seen), most);
                }
                Step::Changes { after, range, most } => {
                    world.settle();
                    world.check_changes(&range, after * world.last / 1_000, most);
                }
            }
        }
        world.settle();
        world.check_known(&keys);
        world.check(&keys, world.last, world.last, page_of(3));
        world.check(&keys, world.last / 2, world.last, page_of(100));
        let all = KeyInterval { from: keys[0].clone(), to: keys[keys.len() - 1].clone() };
        world.check_changes(&all, 0, ChangesLimits::default());
        world.sweep_all(&keys, last_piece);
        world.check_changes(&all, world.last / 2, ChangesLimits::default());
        world.check(&keys, world.last / 2, world.last, page_of(100));
        world.compact_all(&keys, last_piece);
        world.check_changes(&all, world.last / 2, ChangesLimits::default());
    }
}

/// Readers on other threads, while batches change two keys each and add others.
#[test]
fn what_a_store_knows_is_never_older_or_newer_than_what_it_says_of_itself() {
    const BATCHES: u64 = 3_000;
    let engine = Arc::new(TableEngine::open(Arc::new(SimDisk::new()), SMALL).unwrap());
    let mut machine = open(engine, StateLimits::default(), 64 * 500);
    let put = |index: u64, key: Bytes| {
        let (client, begun) = (ClientId(1), Timestamp::ZERO);
        let request = RequestId { client, sequence: index, answered_below: 0, begun };
        let value = Bytes::from(index.to_string());
        let op = WriteOp::Put(Put { key, value, tells_previous: false });
        let data = Command::write(Timestamp(index as i64), request, op).encode();
        LogEntry { term: 1, index, data }
    };
    let keys = [Bytes::from_static(b"one"), Bytes::from_static(b"other")];
    let store = machine.store();
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut newest = Timestamp::ZERO;
                while newest.0 < 3 * BATCHES as i64 - 1 {
                    for key in &keys {
                        let low = store.applied().timestamp;
                        let found = store.get(key).unwrap();
                        let high = store.applying_timestamp().max(low);
                        let version = found.as_ref().map_or(Timestamp::ZERO, |v| v.timestamp);
                        // Each batch of three entries ends with one of another key.
                        assert!(version.0 + 2 >= low.0 && version <= high, "{version}, {low}");
                        assert!(version.0 + 1 >= newest.0, "{version} after {newest}");
                        newest = newest.max(version);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        scope.spawn(|| {
            for batch in 0..BATCHES {
                let first = 3 * batch + 1;
                let another = Bytes::from(format!("another {}", batch % 100));
                let entries = [
                    put(first, keys[0].clone()),
                    put(first + 1, keys[1].clone()),
                    put(first + 2, another),
                ];
                machine.apply(&entries).unwrap();
            }
        });
    });
    assert!(reads.load(Ordering::Relaxed) > 0);
}

/// Ranges too long to look through at once are remembered, and removed piece by piece.
#[test]
fn a_long_range_is_gone_at_once_and_leaves_the_disk_in_pieces() {
    let key = |number: usize| Bytes::from(format!("key {number:05}"));
    let value = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let count = 4 * limits::REMOVAL_SCAN_ROWS_MAX;
    let ends = [key(0), key(count / 2), key(count - 1), key(count), Bytes::from("l")];
    let mut world = World::new(StateLimits::default());
    world.write(&WriteOp::PutAll(PutAll {
        pairs: (0..count).map(|n| (key(n), value("old"))).collect(),
    }));
    world.write(&WriteOp::Put(Put {
        key: Bytes::from("l"),
        value: value("outside"),
        tells_previous: true,
    }));
    let before = world.last;
    world.write(&WriteOp::DelRange(DelRange {
        from: key(1),
        to: key(count),
        keeps_history: false,
    }));
    world.write(&WriteOp::Put(Put { key: key(7), value: value("new"), tells_previous: true }));
    world.write(&WriteOp::Trim(Trim { key: key(7), tells_previous: true }));
    world.settle();
    world.check(&ends, world.last, world.last, page_of(100));
    world.check(&ends, before, world.last, page_of(100));
    world.check(&ends, before, before, page_of(1_000));

    // A read that began before goes on until the purge reaches it; readers of the newest state see
    // no difference while it goes on.
    let mut pieces = 0;
    while world.disk.summary().oldest_removal_us.is_some() {
        world.collect(GarbageCollection::Removed {
            before_us: world.last as u64,
            rows_max: ROWS_MAX,
            bytes_max: BYTES_MAX,
        });
        world.check(&ends, world.last, world.last, page_of(100));
        pieces += 1;
        assert!(pieces < 100, "the purge does not come to its end");
    }
    assert!(pieces > 3, "{count} rows went in {pieces} pieces");
    let past = ReadView::as_of(Timestamp(before));
    let all = PageOf::Range { from: key(0), to: Bytes::from("l") };
    assert!(matches!(
        pages(&world.disk.store(), all.clone(), past, page_of(9)),
        Err(StoreReadError::Expired)
    ));
    let now = ReadView { removals_up_to: Timestamp(world.last), ..past };
    let begun = world.disk.store().first_page(&all, now, page_of(9)).unwrap();
    assert_eq!((begun.rows.len(), begun.next), (2, None), "the two not removed");
}

/// With the most ranges remembered, one more is refused, and nothing of it is done.
#[test]
fn too_many_long_ranges_at_once_are_refused() {
    let key = |number: usize| Bytes::from(format!("key {number:05}"));
    let mut world = World::new(StateLimits::default());
    let rows = 2 * limits::REMOVAL_SCAN_ROWS_MAX;
    let all = WriteOp::DelRange(DelRange { from: key(0), to: key(rows), keeps_history: false });
    for round in 0..=limits::RANGE_REMOVALS_MAX {
        let pairs = (0..rows).map(|number| (key(number), Bytes::new())).collect();
        world.write(&WriteOp::PutAll(PutAll { pairs }));
        world.settle();
        if round < limits::RANGE_REMOVALS_MAX {
            world.write(&all);
            world.settle();
        }
    }
    let request = RequestId {
        client: ClientId(1),
        sequence: world.sequence + 1,
        answered_below: 0,
        begun: Timestamp::ZERO,
    };
    world.push(Action::Write { request, op: all });
    let applied = world.disk.apply(&world.log[world.log.len() - 1..]).unwrap();
    assert_eq!(applied.writes[0].fate, WriteFate::Refused);
    assert!(world.disk.store().get(&key(5)).unwrap().is_some());
}

/// The keys of which a sweep must keep everything do not hold it up.
#[test]
fn a_sweep_comes_to_its_end_whatever_it_keeps() {
    let mut world = World::new(StateLimits::default());
    let hot = Bytes::from("hot");
    let versions = 3 * limits::COLLECTION_ROWS_MAX;
    for number in 0..versions {
        world.write(&WriteOp::Put(Put {
            key: hot.clone(),
            value: Bytes::from(number.to_string()),
            tells_previous: true,
        }));
    }
    world.write(&WriteOp::Put(Put {
        key: Bytes::from("other"),
        value: Bytes::new(),
        tells_previous: true,
    }));
    world.settle();
    let kept = 2 * limits::COLLECTION_ROWS_MAX + 5;
    world.write(&WriteOp::SetHistory(SetHistory {
        history: History::Versions { count: kept as u32 },
    }));
    let mut pieces = 0;
    while world.sweep(world.last as u64, (ROWS_MAX, BYTES_MAX)) {
        pieces += 1;
        assert!(pieces < 50, "the sweep does not come to its end");
    }
    let read_view = ReadView::as_of(Timestamp(world.last));
    let left = pages(&world.disk.store(), PageOf::Versions { key: hot }, read_view, page_of(1_000))
        .unwrap();
    assert_eq!(left.len(), kept);
}

/// Where only some versions of a key are kept, a long read of the past that the history still has
/// once showed its first page and was refused at the second: every sweep had come further than its
/// time.
#[test]
fn a_long_read_of_the_past_shows_in_every_page_what_the_history_keeps() {
    let keys: Vec<Bytes> = (b'a'..=b'f').map(|key| Bytes::copy_from_slice(&[key])).collect();
    let mut world = World::new(StateLimits::default());
    for _ in 0..3 {
        for key in &keys {
            world.write(&WriteOp::Put(Put {
                key: key.clone(),
                value: Bytes::from(world.last.to_string()),
                tells_previous: true,
            }));
        }
    }
    let past = world.last;
    world.last += 10 * limits::REMOVAL_GRACE.as_micros() as i64;
    for _ in 0..2 {
        world.write(&WriteOp::Put(Put {
            key: keys[3].clone(),
            value: Bytes::new(),
            tells_previous: true,
        }));
    }
    world.settle();
    let began = world.last;
    let expected = world.model.range(&keys[0], &keys[5], past, began);
    let page = |world: &World, from: &Bytes, at: i64| {
        let of = PageOf::Range { from: from.clone(), to: keys[5].clone() };
        let read_view = ReadView { at: Timestamp(at), removals_up_to: Timestamp(began) };
        let store = world.disk.store();
        match from == &keys[0] {
            true => Ok(store.first_page(&of, read_view, page_of(2))?),
            false => store.page(&of, read_view, page_of(2)),
        }
    };
    let first = page(&world, &keys[0], past).unwrap();
    assert_eq!(first.next, Some(PageNext::From(keys[2].clone())));
    world.last += 2 * limits::REMOVAL_GRACE.as_micros() as i64;
    // The log's clock moves with what is written.
    world.write(&WriteOp::SetHistory(SetHistory { history: History::Versions { count: 2 } }));
    while world.sweep(world.last as u64, (ROWS_MAX, BYTES_MAX)) {}

    let mut shown = first.rows;
    let second = page(&world, &keys[2], past).unwrap();
    // Of "d" nothing that old is kept, and the page goes on with the next key.
    let names: Vec<_> = second.rows.iter().map(|row| row.key.clone()).collect();
    assert_eq!(names, [keys[2].clone(), keys[4].clone()]);
    shown.extend(second.rows);
    shown.extend(page(&world, &keys[5], past).unwrap().rows);
    let kept = expected.into_iter().filter(|(key, _, _)| *key != keys[3]);
    assert_eq!(shown.into_iter().map(found).collect::<Vec<_>>(), kept.collect::<Vec<_>>());
    let whole = page(&world, &keys[2], began);
    assert!(
        matches!(whole, Err(StoreReadError::Expired)),
        "what began whole does not go on in part"
    );
}

/// An engine that counts the rows that are looked at, and the bytes of their values that are read.
#[derive(Default)]
struct Counting {
    engine: MemoryEngine,
    rows: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

struct CountingView {
    view: Box<dyn EngineView>,
    rows: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl EngineView for CountingView {
    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.view.scan_rows(range, direction, &mut |key, value| {
            self.rows.fetch_add(1, Ordering::Relaxed);
            let bytes = value.bytes();
            let count = || self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            if let RowValue::Inline(_) = value {
                count();
                return visit(key, value);
            }
            let read = || {
                count();
                value.read().map(Cow::into_owned)
            };
            let head = value.head();
            visit(key, RowValue::OutOfLine { bytes, head, read: &read })
        })
    }
}

impl Engine for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(key)
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        let (rows, bytes) = (self.rows.clone(), self.bytes.clone());
        Ok(Box::new(CountingView { view: self.engine.view()?, rows, bytes }))
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

/// Pieces were bounded in rows alone, so one could read a gigabyte of large values, at the same
/// index on every replica.
#[test]
fn no_piece_of_work_in_the_background_reads_much_more_than_it_may() {
    const VALUE_BYTES: usize = 10_000;
    const BYTES_MAX: u64 = 50_000;
    let (hot, others) = (Bytes::from("hot"), 5u8..9);
    let put = |key: Bytes| {
        WriteOp::Put(Put { key, value: vec![7; VALUE_BYTES].into(), tells_previous: false })
    };
    let other = |number: u8| Bytes::from(vec![b'o', number]);
    let removals: [&[WriteOp]; 4] = [
        &[WriteOp::Del(Del { key: hot.clone(), tells_previous: true, keeps_history: false })],
        &[WriteOp::Trim(Trim { key: hot.clone(), tells_previous: true })],
        &[WriteOp::DelRange(DelRange {
            from: Bytes::from("a"),
            to: Bytes::from("z"),
            keeps_history: false,
        })],
        &[],
    ];
    let histories = [
        History::For { age_us: 1 },
        History::Versions { count: 1 },
        History::Versions { count: 23 },
        History::Versions { count: 60 },
        History::Versions { count: 100 },
    ];
    let cases = removals.iter().flat_map(|removal| histories.map(|history| (removal, history)));
    // What is stored before the history is changed is found by a walk, and what is stored later by
    // its own rows.
    for ((removal, history), late) in cases.flat_map(|case| [(case, false), (case, true)]) {
        let engine = Arc::new(Counting::default());
        let bytes = engine.bytes.clone();
        let limits =
            StateLimits { removal_scan_rows_max: 1, removal_grace_us: 0, ..StateLimits::default() };
        let mut machine = StateMachine::open(engine, limits).unwrap();
        let (mut index, mut clock_us) = (0, 0);
        let mut apply = |action| {
            (index, clock_us) = (index + 1, clock_us + 10);
            let data =
                Command { timestamp: Timestamp(clock_us), clock_us: clock_us as u64, action };
            let entry = LogEntry { term: 1, index, data: data.encode() };
            bytes.store(0, Ordering::Relaxed);
            let applied = machine.apply(&[entry]).unwrap();
            (applied, bytes.load(Ordering::Relaxed), clock_us as u64)
        };
        let mut sequence = 0;
        let mut write = |op| {
            sequence += 1;
            let request = RequestId {
                client: ClientId(1),
                sequence,
                answered_below: sequence,
                begun: Timestamp::ZERO,
            };
            Action::Write { request, op }
        };
        let set = WriteOp::SetHistory(SetHistory { history });
        if !late {
            apply(write(set.clone()));
        }
        (0..60).for_each(|_| drop(apply(write(put(hot.clone())))));
        others.clone().for_each(|number| drop(apply(write(put(other(number))))));
        removal.iter().for_each(|op| drop(apply(write(op.clone()))));
        others.clone().for_each(|number| drop(apply(write(put(other(number))))));
        let before_us = apply(write(put(hot.clone()))).2;
        if late {
            apply(write(set));
        }

        let check = |read: u64, what: &str| {
            let most = BYTES_MAX + 4 * VALUE_BYTES as u64;
            assert!(read <= most, "{what} of {removal:?}, {history:?}: {read} bytes at once");
        };
        let (rows_max, bytes_max) = (1_000, BYTES_MAX);
        let mut pieces = 0;
        loop {
            let purge = GarbageCollection::Removed { before_us, rows_max, bytes_max };
            let (applied, read, _) = apply(Action::GarbageCollection(purge));
            check(read, "a purge");
            pieces += 1;
            assert!(pieces < 100, "the purge comes to no end");
            if applied.summary.oldest_removal_us.is_none() {
                break;
            }
        }
        loop {
            let sweep =
                GarbageCollection::History { history, as_of_us: before_us, rows_max, bytes_max };
            let (applied, read, _) = apply(Action::GarbageCollection(sweep));
            check(read, "a sweep");
            pieces += 1;
            assert!(pieces < 300, "the sweep comes to no end");
            if applied.summary.history_due_us.is_none() {
                break;
            }
        }
        let read_view = ReadView::as_of(Timestamp(i64::MAX));
        let of = PageOf::Versions { key: hot.clone() };
        let left = pages(&machine.store(), of, read_view, page_of(1_000)).unwrap().len();
        let stays = match (removal.first(), history) {
            (Some(WriteOp::Trim(_)), History::Versions { count: 2.. }) => 2,
            (Some(_), _) | (None, History::For { .. } | History::All) => 1,
            (None, History::Versions { count }) => count.min(61) as usize,
        };
        assert_eq!(left, stays, "{removal:?}, {history:?}");
    }
}

/// A removal of a key read again, in the same piece, over all that the removals before it had taken
/// away.
#[test]
fn a_piece_of_a_purge_reads_over_what_it_has_removed_no_more_than_it_may() {
    const ROUNDS: u64 = 300;
    const RANGES: u64 = 60;
    let key = Bytes::from("k");
    let put = WriteOp::Put(Put { key: key.clone(), value: Bytes::new(), tells_previous: true });
    let (del, trim) = (
        WriteOp::Del(Del { key: key.clone(), tells_previous: true, keeps_history: false }),
        WriteOp::Trim(Trim { key, tells_previous: true }),
    );
    let pairs = (0..20u8).map(|key| (vec![b'k', key].into(), Bytes::new())).collect();
    let put_all = WriteOp::PutAll(PutAll { pairs });
    let del_range = WriteOp::DelRange(DelRange {
        from: Bytes::from("a"),
        to: Bytes::from("z"),
        keeps_history: false,
    });
    let again = |round: Vec<WriteOp>, times: u64| {
        (0..times).flat_map(move |_| round.clone()).collect::<Vec<WriteOp>>()
    };
    let dels = again(vec![put.clone(), del.clone()], ROUNDS);
    let cases = [
        dels.clone(),
        again(vec![put.clone(), put.clone(), trim.clone()], ROUNDS),
        again(vec![put.clone(), put.clone(), trim, put, del], ROUNDS / 2),
        again(vec![put_all, del_range.clone()], RANGES),
        [dels, again(vec![del_range], RANGES)].concat(),
    ];
    for ((case, ops), rows_max) in
        cases.iter().enumerate().flat_map(|case| [5, 100, 1_000].map(|rows_max| (case, rows_max)))
    {
        let engine = Arc::new(Counting::default());
        let rows = engine.rows.clone();
        let limits =
            StateLimits { removal_scan_rows_max: 0, removal_grace_us: 0, ..StateLimits::default() };
        let mut machine = StateMachine::open(engine, limits).unwrap();
        let mut index = 0;
        let mut apply = |action| {
            index += 1;
            rows.store(0, Ordering::Relaxed);
            let command = Command { timestamp: Timestamp(index as i64), clock_us: index, action };
            let applied = machine.apply(&[LogEntry { term: 1, index, data: command.encode() }]);
            (applied.unwrap().summary.oldest_removal_us, rows.load(Ordering::Relaxed))
        };
        for (sequence, op) in (1..).zip(ops.iter().cloned()) {
            let (client, begun) = (ClientId(1), Timestamp::ZERO);
            let request = RequestId { client, sequence, answered_below: sequence, begun };
            apply(Action::Write { request, op });
        }
        let most = 8 * u64::from(rows_max) + 4 * RANGES + 20;
        let purge =
            GarbageCollection::Removed { before_us: u64::MAX, rows_max, bytes_max: BYTES_MAX };
        for piece in 0.. {
            let (left, looked_at) = apply(Action::GarbageCollection(purge));
            let context = format!("piece {piece} of {rows_max}, case {case}");
            assert!(looked_at <= most, "{looked_at} rows in {context}");
            assert!(piece < 2_000, "the purge comes to no end: {context}");
            if left.is_none() {
                break;
            }
        }
    }
}

/// A sweep went through the whole store, key by key, whenever anything in it was replaced.
#[test]
fn a_sweep_looks_only_at_keys_that_got_a_version() {
    const KEYS: u64 = 3_000;
    let engine = Arc::new(Counting::default());
    let rows = engine.rows.clone();
    let limits = StateLimits { removal_grace_us: 0, ..StateLimits::default() };
    let mut machine = StateMachine::open(engine, limits).unwrap();
    let (mut index, history) = (0, History::Versions { count: 2 });
    let mut apply = |action| {
        index += 1;
        let command = Command { timestamp: Timestamp(index as i64), clock_us: index, action };
        let applied = machine.apply(&[LogEntry { term: 1, index, data: command.encode() }]);
        applied.unwrap().summary.history_due_us
    };
    let write = |sequence, op| {
        let request = RequestId {
            client: ClientId(1),
            sequence,
            answered_below: sequence,
            begun: Timestamp::ZERO,
        };
        Action::Write { request, op }
    };
    let put = |key: u64| {
        WriteOp::Put(Put {
            key: key.to_be_bytes().to_vec().into(),
            value: Bytes::new(),
            tells_previous: true,
        })
    };
    let piece = |rows_max| {
        let (as_of_us, bytes_max) = (u64::MAX, BYTES_MAX);
        Action::GarbageCollection(GarbageCollection::History {
            history,
            as_of_us,
            rows_max,
            bytes_max,
        })
    };
    apply(write(1, WriteOp::SetHistory(SetHistory { history })));
    let pairs = (0..KEYS).map(|key| (key.to_be_bytes().to_vec().into(), Bytes::new())).collect();
    apply(write(2, WriteOp::PutAll(PutAll { pairs })));
    while apply(piece(ROWS_MAX)).is_some() {}
    for sequence in 3..6 {
        apply(write(sequence, put(7)));
    }
    rows.store(0, Ordering::Relaxed);
    let mut pieces = 1;
    while apply(piece(4)).is_some() {
        pieces += 1;
    }
    let looked_at = rows.load(Ordering::Relaxed);
    assert!(pieces <= 4 && looked_at < 60, "{looked_at} rows in {pieces} pieces");

    // A key that was written again and again is looked at once.
    for sequence in 6..306 {
        apply(write(sequence, put(8)));
    }
    rows.store(0, Ordering::Relaxed);
    assert_eq!(apply(piece(ROWS_MAX)), None);
    let looked_at = rows.load(Ordering::Relaxed);
    assert!(looked_at < 300 * 6, "{looked_at} rows");
}

/// They cost nothing, so a piece looked at all of them, and the next one again.
#[test]
fn a_sweep_counts_the_removals_that_it_passes_over() {
    const REMOVALS: u64 = 300;
    let engine = Arc::new(Counting::default());
    let rows = engine.rows.clone();
    let limits = StateLimits { removal_grace_us: 0, ..StateLimits::default() };
    let mut machine = StateMachine::open(engine, limits).unwrap();
    let (mut index, history) = (0, History::Versions { count: 1 });
    let mut apply = |action| {
        index += 1;
        let command = Command { timestamp: Timestamp(index as i64), clock_us: index, action };
        rows.store(0, Ordering::Relaxed);
        let applied = machine.apply(&[LogEntry { term: 1, index, data: command.encode() }]);
        let left = applied.unwrap().summary;
        (left.history_due_us, left.oldest_removal_us, rows.load(Ordering::Relaxed))
    };
    let key = Bytes::from("k");
    let put = WriteOp::Put(Put { key: key.clone(), value: Bytes::new(), tells_previous: true });
    let mut ops = vec![WriteOp::SetHistory(SetHistory { history })];
    (0..REMOVALS).for_each(|_| {
        ops.extend([
            put.clone(),
            WriteOp::Del(Del { key: key.clone(), tells_previous: true, keeps_history: false }),
        ])
    });
    ops.push(put);
    for (sequence, op) in (1..).zip(ops) {
        let request = RequestId {
            client: ClientId(1),
            sequence,
            answered_below: sequence,
            begun: Timestamp::ZERO,
        };
        apply(Action::Write { request, op });
    }
    for (rows_max, most) in [(4, 60), (20, 200)] {
        let (as_of_us, bytes_max) = (u64::MAX, BYTES_MAX);
        // The first of them does not come to the end.
        for piece in 0..50 {
            let sweep = GarbageCollection::History { history, as_of_us, rows_max, bytes_max };
            let (due, _, looked_at) = apply(Action::GarbageCollection(sweep));
            assert!(looked_at < most, "{looked_at} rows in piece {piece} of {rows_max}");
            assert!(piece < 49 || rows_max == 4, "the sweep comes to no end");
            if due.is_none() {
                break;
            }
        }
    }
    // What the removals left is theirs to take away.
    let purge =
        GarbageCollection::Removed { before_us: u64::MAX, rows_max: 20, bytes_max: BYTES_MAX };
    while apply(Action::GarbageCollection(purge)).1.is_some() {}
    let read_view = ReadView::as_of(Timestamp(i64::MAX));
    let left =
        pages(&machine.store(), PageOf::Versions { key }, read_view, page_of(1_000)).unwrap();
    assert_eq!(left.len(), 1);
}

/// A change of the history first wrote a row for each version in the store that had replaced one,
/// and removed nothing before: on a disk that was nearly full, and was to have room again by it,
/// this took what was left.
#[test]
fn a_change_of_the_history_makes_room_without_taking_any_before() {
    const VALUE_BYTES: usize = 2_000;
    const KEYS: usize = 12;
    const ROUNDS: u8 = 8;
    let keys: Vec<Bytes> = (0..KEYS as u8).map(|key| vec![b'k', key].into()).collect();
    let histories = [History::Versions { count: 1 }, History::For { age_us: 1 }];
    let pieces = [(1, BYTES_MAX), (7, BYTES_MAX), (ROWS_MAX, 3 * VALUE_BYTES as u64)];
    for (history, piece) in histories.into_iter().flat_map(|h| pieces.map(|piece| (h, piece))) {
        let context = format!("{history:?}, {piece:?}");
        let mut world = World::new(StateLimits { removal_grace_us: 0, ..StateLimits::default() });
        let put = |world: &mut World, key: &Bytes, round: u8| {
            let value = vec![round; VALUE_BYTES].into();
            world.write(&WriteOp::Put(Put { key: key.clone(), value, tells_previous: true }));
        };
        (0..ROUNDS).for_each(|round| keys.iter().for_each(|key| put(&mut world, key, round)));
        let as_of_us = world.last as u64;
        // Half of the keys have a version that is too new for the sweep.
        keys[KEYS / 2..].iter().for_each(|key| put(&mut world, key, ROUNDS));
        world.write(&WriteOp::SetHistory(SetHistory { history }));
        world.settle();
        let before = world.stored_bytes();
        // Two facts say how far the sweep has come.
        let most = world.rows_in(&rows::all()).len() + 2;
        let mut done = 0;
        while world.rows_in(&rows::all_versions()).len() > KEYS + KEYS / 2 {
            world.sweep(as_of_us, piece);
            world.check_newest(&keys);
            world.check(&keys, as_of_us as i64, world.last, page_of(100));
            assert!(world.rows_in(&rows::all()).len() <= most, "{context}: piece {done}");
            done += 1;
            assert!(done < 1_000, "{context}: the walk comes to no end");
        }
        // Two versions of eleven are left.
        let after = world.stored_bytes();
        assert!(after < before / 3, "{context}: {after} of {before} bytes are left");
        world.sweep_all(&keys, piece);
    }
}

/// What is removed takes its change rows with it, and where everything is kept nothing asks for a
/// sweep.
#[test]
fn nothing_asks_for_a_sweep_that_finds_nothing() {
    let keys: Vec<Bytes> = ["a", "b", "c"].map(Bytes::from).into();
    let put = |key: &Bytes| {
        WriteOp::Put(Put { key: key.clone(), value: Bytes::from("v"), tells_previous: true })
    };
    let removals = [
        WriteOp::Del(Del { key: keys[0].clone(), tells_previous: true, keeps_history: false }),
        WriteOp::Trim(Trim { key: keys[1].clone(), tells_previous: true }),
        WriteOp::DelRange(DelRange {
            from: keys[2].clone(),
            to: keys[2].clone(),
            keeps_history: false,
        }),
    ];
    let limits =
        StateLimits { removal_scan_rows_max: 0, removal_grace_us: 0, ..StateLimits::default() };
    let mut world = World::new(limits);
    keys.iter().for_each(|key| world.write(&put(key)));
    world.settle();
    assert_eq!((world.change_rows(), world.disk.summary().history_due_us), (3, None));
    world.write(&WriteOp::SetHistory(SetHistory {
        history: History::For { age_us: 1_000_000_000 },
    }));
    (0..5).for_each(|_| keys.iter().for_each(|key| world.write(&put(key))));
    removals.iter().for_each(|removal| world.write(removal));
    world.settle();
    assert_eq!(world.change_rows(), 20, "of three times six versions, and two tombstones");
    while world.disk.summary().oldest_removal_us.is_some() {
        let before_us = world.last as u64;
        world.collect(GarbageCollection::Removed { before_us, rows_max: 2, bytes_max: BYTES_MAX });
        world.change_rows();
    }
    assert_eq!(
        world.change_rows(),
        1,
        "what is left is the newest version of the key that was trimmed"
    );
    // All that an earlier history has left to do is forgotten.
    world.write(&WriteOp::SetHistory(SetHistory { history: History::All }));
    world.settle();
    assert_eq!(world.disk.summary().history_due_us, None);
}
