//! Snapshots from one store into another: whole, in pieces, interrupted, and of damaged bytes.

use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::{
    AppliedPoint, ClientId, ClusterId, Command, Del, Facts, LogEntry, NodeId, Put, RequestId,
    StateLimits, Timestamp, Version, WriteOp,
};
use crate::storage::apply::{ApplyError, StateMachine};
use crate::storage::datadir::DataDir;
use crate::storage::engine::{
    Direction, Engine, EngineView, Scrubbed, StoreBuilder, Visitor, WriteBatch,
};
use crate::storage::keys::{self, RowRange};
use crate::storage::memory::MemoryEngine;
use crate::storage::tables::TableEngine;

const CHUNK_BYTES: usize = 200;

fn write(index: u64, op: WriteOp) -> LogEntry {
    // Each of fifty clients begins with its first write.
    let sequence = (index - 1) / 50 + 1;
    let request = RequestId {
        client: ClientId(index % 50),
        sequence,
        answered_below: 0,
        begun: Timestamp::ZERO,
    };
    let timestamp = Timestamp(index as i64 * 10);
    LogEntry { term: 1, index, data: Command::write(timestamp, request, op).encode() }
}

fn put(index: u64) -> LogEntry {
    let key = Bytes::from(format!("key {}", index % 37));
    write(
        index,
        WriteOp::Put(Put {
            key,
            value: Bytes::from(format!("value {index}")),
            tells_previous: false,
        }),
    )
}

fn machine(engine: Arc<dyn Engine>, writes: u64) -> StateMachine {
    let mut machine = StateMachine::open(engine, StateLimits::default()).unwrap();
    let entries: Vec<LogEntry> = (1..=writes).map(put).collect();
    machine.apply(&entries).unwrap();
    machine
}

fn in_memory(writes: u64) -> StateMachine {
    machine(Arc::new(MemoryEngine::new()), writes)
}

fn chunks(mut source: SnapshotSource, bytes_max: usize) -> Vec<SnapshotChunk> {
    std::iter::from_fn(|| source.next_chunk(bytes_max).unwrap()).collect()
}

fn take_in(
    staging: impl StagingArea + 'static,
    point: AppliedPoint,
    chunks: &[SnapshotChunk],
) -> Result<StagedSnapshot, SnapshotError> {
    let mut sink = SnapshotSink::create(staging, point).unwrap();
    chunks.iter().try_for_each(|chunk| sink.push(chunk))?;
    sink.finish()
}

fn rows(engine: &dyn Engine) -> Vec<(Bytes, Bytes)> {
    let mut rows = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    };
    engine.scan(&keys::all(), Direction::Forward, &mut visit).unwrap();
    rows
}

/// What a key has once the write with this index was its last.
fn newest(index: i64) -> Option<Version> {
    let first = (index - 1) % 37 + 1;
    let (created, count) = (Timestamp(10 * first), (index - first) as u64 / 37 + 1);
    let facts = Some(Facts { created, count, lease: None });
    let value = Bytes::from(format!("value {index}"));
    Some(Version { timestamp: Timestamp(10 * index), value, facts })
}

#[test]
fn a_snapshot_carries_the_state_it_was_begun_at_while_writes_go_on() {
    let engine = Arc::new(MemoryEngine::new());
    let mut sender = machine(engine.clone(), 100);
    let mut source = sender.begin_snapshot().unwrap();
    let (point, before) = (sender.applied(), rows(&*engine));
    assert_eq!((source.point(), sender.durable_index()), (point, 100));

    let staging = MemoryStaging::new();
    let mut sink = SnapshotSink::create(staging.clone(), point).unwrap();
    let mut index = 100;
    while let Some(chunk) = source.next_chunk(CHUNK_BYTES).unwrap() {
        assert_eq!(chunk.sequence, index - 100);
        assert!(chunk.data.len() <= CHUNK_BYTES);
        sink.push(&chunk).unwrap();
        index += 1;
        let key = Bytes::from(format!("key {}", index % 37));
        sender
            .apply(&[write(
                index,
                WriteOp::Del(Del { key, tells_previous: false, keeps_history: false }),
            )])
            .unwrap();
        if index % 7 == 0 {
            sender.checkpoint().unwrap();
        }
    }
    assert!(index > 120, "{index}: many chunks");
    assert_eq!(source.next_chunk(CHUNK_BYTES).unwrap(), None);
    let staged = sink.finish().unwrap();
    assert_eq!(staged.point(), point);

    let mut receiver = in_memory(3);
    let reader = receiver.store();
    let known = reader.get(b"key 2").unwrap();
    assert_eq!(known, newest(2), "what is known of the old state is forgotten");
    assert_eq!(receiver.install(staged).unwrap(), point);
    assert_eq!(reader.get(b"key 2").unwrap(), newest(76));
    assert_eq!(rows(&*staging.promoted().unwrap()), before);
    assert_eq!((receiver.applied(), receiver.durable_index()), (point, 100));
    assert_eq!((reader.applied(), reader.applying_timestamp()), (point, point.timestamp));
    assert_eq!(reader.get(b"key 26").unwrap(), newest(100));
    // Sessions came along, and both replicas go on alike.
    let mut sender = in_memory(100);
    let retry = LogEntry {
        index: 101,
        ..write(
            100,
            WriteOp::Del(Del {
                key: Bytes::from("key 26"),
                tells_previous: false,
                keeps_history: false,
            }),
        )
    };
    let entries = [LogEntry { data: restamped(&retry, 2000), ..retry }, put(202)];
    let entries = entries.map(|entry| LogEntry { index: entry.index.min(102), ..entry });
    assert_eq!(receiver.apply(&entries).unwrap(), sender.apply(&entries).unwrap());
    assert_eq!(receiver.applied(), sender.applied());
    assert_eq!(reader.applied(), sender.applied());
}

/// The same command with another timestamp.
fn restamped(entry: &LogEntry, timestamp: i64) -> Bytes {
    let command = Command::decode(&entry.data).unwrap().unwrap();
    Command { timestamp: Timestamp(timestamp), ..command }.encode()
}

#[test]
fn a_blank_store_is_a_snapshot_too() {
    let mut sender = in_memory(0);
    let source = sender.begin_snapshot().unwrap();
    let point = source.point();
    let staged = take_in(MemoryStaging::new(), point, &chunks(source, 1)).unwrap();
    assert_eq!(in_memory(0).install(staged).unwrap(), AppliedPoint::default());
}

#[test]
fn a_row_larger_than_a_chunk_travels_alone() {
    let mut sender = in_memory(3);
    let value = Bytes::from(vec![7; 5000]);
    sender
        .apply(&[write(
            4,
            WriteOp::Put(Put { key: Bytes::from("key 2"), value, tells_previous: false }),
        )])
        .unwrap();
    let source = sender.begin_snapshot().unwrap();
    let point = source.point();
    let chunks = chunks(source, CHUNK_BYTES);
    let large = chunks.iter().filter(|chunk| chunk.data.len() > CHUNK_BYTES).count();
    assert_eq!(large, 1);
    take_in(MemoryStaging::new(), point, &chunks).unwrap();
}

#[test]
fn what_was_not_sent_like_that_is_refused() {
    let mut sender = in_memory(100);
    let source = sender.begin_snapshot().unwrap();
    let point = source.point();
    let good = chunks(source, CHUNK_BYTES);
    let staging = MemoryStaging::new();

    let mut sink = SnapshotSink::create(staging.clone(), point).unwrap();
    assert!(staging.is_building());
    sink.push(&good[0]).unwrap();
    let expected = |error, expected, found| {
        let SnapshotError::OutOfSequence { expected: e, found: f } = error else {
            panic!("{error}")
        };
        assert_eq!((e, f), (expected, found));
    };
    expected(sink.push(&good[0]).unwrap_err(), 1, 0);
    expected(sink.push(&good[2]).unwrap_err(), 1, 2);
    let mut damaged = good[1].data.to_vec();
    for byte in 0..damaged.len() {
        damaged[byte] ^= 4;
        let chunk = SnapshotChunk { sequence: 1, data: damaged.clone().into() };
        assert!(matches!(sink.push(&chunk), Err(SnapshotError::Checksum { sequence: 1 })));
        damaged[byte] ^= 4;
    }
    // None of it did any harm.
    good[1..].iter().for_each(|chunk| sink.push(chunk).unwrap());
    drop(sink.finish().unwrap());
    assert!(!staging.is_building());

    // Cut short at every chunk, and announced as another state.
    for count in 0..good.len() {
        let cut = take_in(staging.clone(), point, &good[..count]);
        assert!(matches!(cut, Err(SnapshotError::Mismatch { index: 100 })), "{count} chunks");
        assert!(!staging.is_building(), "removed");
    }
    let announced = [
        AppliedPoint { index: 99, ..point },
        AppliedPoint { timestamp: Timestamp(1), ..point },
        AppliedPoint { hash: point.hash ^ 1, ..point },
    ];
    for point in announced {
        assert!(matches!(
            take_in(staging.clone(), point, &good),
            Err(SnapshotError::Mismatch { .. })
        ));
    }
}

#[test]
fn rows_no_store_sends_are_refused() {
    let refused = |rows: &[(&[u8], &[u8])]| {
        let mut chunk = chunk::ChunkBuilder::default();
        rows.iter().for_each(|(key, value)| chunk.put(key, value));
        let chunk = SnapshotChunk { sequence: 0, data: chunk.finish(0) };
        let error = take_in(MemoryStaging::new(), AppliedPoint::default(), &[chunk]);
        let is_refused = matches!(error, Err(SnapshotError::Malformed { sequence: 0, .. }));
        assert!(is_refused, "{rows:?}");
    };
    let version = keys::version(b"key", Timestamp(1));
    let tombstone = &b"\x02"[..];
    refused(&[(&version, tombstone), (&version, tombstone)]);
    refused(&[(&[2; 9], &[0; 16]), (&version, tombstone)]);
    refused(&[(b"\x01key without end", tombstone)]);
    refused(&[(&version, b"v")]);
    refused(&[(&[2; 9], b"short")]);
    refused(&[(&keys::meta("applied"), b"short")]);
    refused(&[(&keys::meta("format"), &u32::MAX.to_le_bytes())]);
    refused(&[(&keys::meta("unknown"), b"")]);
    refused(&[(b"\x07", b"")]);
    refused(&[(b"", b"")]);
}

#[test]
fn a_snapshot_that_is_older_is_refused_and_changes_nothing() {
    let mut sender = in_memory(50);
    let source = sender.begin_snapshot().unwrap();
    let point = source.point();
    let staging = MemoryStaging::new();
    let staged = take_in(staging.clone(), point, &chunks(source, CHUNK_BYTES)).unwrap();
    let mut receiver = in_memory(51);
    let before = receiver.applied();
    let error = receiver.install(staged).unwrap_err();
    assert!(matches!(error, ApplyError::OlderSnapshot { found: 50, applied: 51 }), "{error}");
    receiver.apply(&[put(52)]).unwrap();
    assert_eq!(receiver.store().applied().index, before.index + 1);
    assert!(staging.promoted().is_none());
}

fn data_dir(dir: &TempDir) -> DataDir {
    DataDir::open(dir.path(), ClusterId(1), NodeId(1), 7).unwrap()
}

fn files(dir: &TempDir) -> Vec<String> {
    let names = std::fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn on_disk_a_snapshot_takes_the_stores_place_under_its_readers() {
    let dir = TempDir::new().unwrap();
    let data_dir = data_dir(&dir);
    let engine = TableEngine::open_at(&data_dir.store_dir()).unwrap();
    let mut receiver = machine(Arc::new(engine), 3);
    let reader = receiver.store();

    let other = TempDir::new().unwrap();
    let engine = TableEngine::open_at(&other.path().join("store")).unwrap();
    let mut sender = machine(Arc::new(engine), 500);
    let mut source = sender.begin_snapshot().unwrap();
    let point = source.point();
    drop(sender); // The source reads on without it.

    let mut cancelled = SnapshotSink::create(data_dir.staging(), point).unwrap();
    let first = source.next_chunk(CHUNK_BYTES).unwrap().unwrap();
    cancelled.push(&first).unwrap();
    assert!(files(&dir).contains(&"snapshot.partial".to_owned()));
    drop(cancelled);
    assert_eq!(files(&dir), ["IDENTITY", "LOCK", "RESERVE", "log", "store"]);

    let mut all = vec![first];
    all.extend(chunks(source, 1000));
    let staged = take_in(data_dir.staging(), point, &all).unwrap();
    assert_eq!(files(&dir), ["IDENTITY", "LOCK", "RESERVE", "log", "snapshot", "store"]);
    assert_eq!(reader.applied().index, 3);
    receiver.install(staged).unwrap();
    receiver.forget_retired();
    assert_eq!(files(&dir), ["IDENTITY", "LOCK", "RESERVE", "log", "store"]);
    assert_eq!(reader.applied(), point);
    assert_eq!(reader.get(b"key 19").unwrap(), newest(500));
    receiver.apply(&[put(501)]).unwrap();
    receiver.checkpoint().unwrap();
    let expected = receiver.applied();
    drop((receiver, reader));
    let engine = TableEngine::open_at(&data_dir.store_dir()).unwrap();
    assert_eq!(
        StateMachine::open(Arc::new(engine), StateLimits::default()).unwrap().applied(),
        expected
    );
}

/// The files went as soon as the new store was in use, while others were still reading them.
#[test]
fn who_reads_a_store_that_is_replaced_reads_on_and_its_files_go_afterwards() {
    let dir = TempDir::new().unwrap();
    let data_dir = data_dir(&dir);
    let mut receiver = machine(Arc::new(TableEngine::open_at(&data_dir.store_dir()).unwrap()), 90);
    receiver.checkpoint().unwrap();
    let pinned = receiver.begin_snapshot().unwrap();
    let expected = chunks(in_memory(90).begin_snapshot().unwrap(), CHUNK_BYTES);
    for (writes, replaced) in [(200, "store.replaced"), (300, "store.replaced.2")] {
        let source = in_memory(writes).begin_snapshot().unwrap();
        let (point, reader) = (source.point(), receiver.begin_snapshot().unwrap());
        let staged = take_in(data_dir.staging(), point, &chunks(source, 1000)).unwrap();
        receiver.install(staged).unwrap();
        receiver.forget_retired();
        assert!(files(&dir).contains(&replaced.to_owned()), "{:?}", files(&dir));
        drop(reader);
        let left = std::fs::read_dir(dir.path().join(replaced)).unwrap().count();
        assert_eq!(left > 0, writes == 200, "the first is still being read");
    }
    assert_eq!(chunks(pinned, CHUNK_BYTES), expected);
    let staged = |writes| {
        let source = in_memory(writes).begin_snapshot().unwrap();
        take_in(data_dir.staging(), source.point(), &chunks(source, 1000)).unwrap()
    };
    receiver.install(staged(400)).unwrap();
    receiver.forget_retired();
    assert_eq!(files(&dir), ["IDENTITY", "LOCK", "RESERVE", "log", "store"]);
}

fn no_space() -> EngineError {
    EngineError::File {
        action: "write",
        path: "store".to_owned(),
        detail: "no space left on device".to_owned(),
    }
}

/// An engine, or a store under construction, on a disk that is full.
struct Full(MemoryEngine);

impl StoreBuilder for Full {
    fn add(&mut self, _: &[u8], _: &[u8]) -> Result<(), EngineError> {
        Err(no_space())
    }

    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        Err(no_space())
    }
}

impl Engine for Full {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.0.get(key)
    }

    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.0.scan(range, direction, visit)
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        self.0.view()
    }

    fn write(&self, _: &WriteBatch) -> Result<(), EngineError> {
        Err(no_space())
    }

    fn seal(&self, _: &WriteBatch, _: u64) -> Result<(), EngineError> {
        Err(no_space())
    }

    fn durable(&self) -> Option<u64> {
        None
    }

    fn flush(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn rows(&self) -> u64 {
        self.0.rows()
    }

    fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError> {
        self.0.scrub(from_block, blocks)
    }
}

struct FullStaging(MemoryStaging);

impl StagingArea for FullStaging {
    fn begin(&self) -> Result<Box<dyn StoreBuilder>, EngineError> {
        self.0.begin()?;
        Ok(Box::new(Full(MemoryEngine::new())))
    }

    fn complete(&self) -> Result<(), EngineError> {
        self.0.complete()
    }

    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.0.promote()
    }

    fn abandon(&self) {
        self.0.abandon();
    }

    fn discard(&self) {
        self.0.discard();
    }
}

#[test]
fn a_full_disk_stops_the_state_machine_and_the_sink() {
    let mut machine =
        StateMachine::open(Arc::new(Full(MemoryEngine::new())), StateLimits::default()).unwrap();
    let error = machine.apply(&[put(1)]).unwrap_err();
    let said = "cannot write store: no space left on device; make room on the disk, or check it, \
                and start the server again";
    assert_eq!(error.to_string(), said);
    assert_eq!(machine.store().applied(), AppliedPoint::default());
    assert!(matches!(machine.apply(&[put(1)]), Err(ApplyError::Poisoned)));
    assert!(matches!(machine.begin_snapshot(), Err(ApplyError::Poisoned)));

    let source = in_memory(9).begin_snapshot().unwrap();
    let (point, staging) = (source.point(), MemoryStaging::new());
    let chunks = chunks(source, CHUNK_BYTES);
    let mut sink = SnapshotSink::create(FullStaging(staging.clone()), point).unwrap();
    assert!(matches!(sink.push(&chunks[0]), Err(SnapshotError::Engine(_))));
    assert!(matches!(sink.push(&chunks[0]), Err(SnapshotError::Stopped)));
    assert!(staging.is_building());
    assert!(matches!(sink.finish(), Err(SnapshotError::Stopped)));
    assert!(!staging.is_building());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..Default::default() })]
    /// Any state, in chunks of any size, arrives as it was.
    #[test]
    fn any_state_arrives_whole(
        ops in prop::collection::vec((any::<bool>(), 0..9u8, 0..300usize), 0..60),
        bytes_max in 1..2000usize,
    ) {
        let engine = Arc::new(MemoryEngine::new());
        let mut sender = StateMachine::open(engine.clone(), StateLimits::default()).unwrap();
        for (index, (is_put, key, value_bytes)) in (1..).zip(ops) {
            let key = Bytes::from(vec![key / 4; usize::from(key) + 1]);
            let op = if is_put {
                let value = Bytes::from(vec![b'v'; value_bytes]);
                WriteOp::Put(Put { key, value, tells_previous: false })
            } else {
                WriteOp::Del(Del { key, tells_previous: false, keeps_history: false })
            };
            sender.apply(&[write(index, op)]).unwrap();
        }
        let source = sender.begin_snapshot().unwrap();
        let point = source.point();
        let staging = MemoryStaging::new();
        let staged = take_in(staging.clone(), point, &chunks(source, bytes_max)).unwrap();
        prop_assert_eq!(in_memory(0).install(staged).unwrap(), point);
        prop_assert_eq!(rows(&*staging.promoted().unwrap()), rows(&*engine));
    }
}
