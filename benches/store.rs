//! The disk side alone: applying batches, reading values, versions and ranges, appending to the
//! log.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use acervo::limits;
use acervo::model::{
    ClientId, ClusterId, Command, LogBatch, LogEntry, LogIndex, NodeId, PageOf, Put, ReadView,
    RequestId, StateLimits, Timestamp, WriteOp,
};
use acervo::storage::apply::StateMachine;
use acervo::storage::datadir::DataDir;
use acervo::storage::engine::Engine;
use acervo::storage::log::{DiskLog, LogOptions};
use acervo::storage::memory::MemoryEngine;
use acervo::storage::reads::PageLimits;
use acervo::storage::snapshot::SnapshotSink;
use acervo::storage::tables::TableEngine;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

const KEYS: u64 = 100_000;
const LOG_BATCH: u64 = 64;
const APPLY_BATCHES: [u64; 4] = [1, 8, 64, 512];
const CHUNK_BYTES: usize = 512 * 1024;
const VALUE_BYTES: usize = 100;
/// So many keys of one version …
const WIDE_KEYS: u64 = 1_000_000;
/// … and so many …
const DEEP_KEYS: u64 = 10_000;
/// … of so many.
const DEEP_VERSIONS: u64 = 100;

/// What the key of a number is called.
type NameKey = fn(u64) -> Bytes;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:012}"))
}

fn deep_key(number: u64) -> Bytes {
    Bytes::from(format!("deep-{number:06}"))
}

fn put(index: LogIndex, key: Bytes) -> LogEntry {
    let request = RequestId {
        client: ClientId(1),
        sequence: index,
        answered_below: index,
        begun: Timestamp::ZERO,
    };
    let op = WriteOp::Put(Put {
        key,
        value: Bytes::from(vec![b'v'; VALUE_BYTES]),
        tells_previous: false,
    });
    let timestamp = Timestamp(index as i64);
    LogEntry { term: 1, index, data: Command::write(timestamp, request, op).encode() }
}

fn random_batch(next: &mut LogIndex, size: u64, rng: &mut StdRng) -> Vec<LogEntry> {
    let first = *next;
    *next += size;
    (first..*next).map(|index| put(index, key(rng.random_range(0..KEYS)))).collect()
}

fn store(criterion: &mut Criterion) {
    let dir = TempDir::new().expect("a folder");
    let engine = TableEngine::open_at(&dir.path().join("store"));
    let mut machine =
        StateMachine::open(Arc::new(engine.expect("an engine")), StateLimits::default())
            .expect("a state");
    let mut rng = StdRng::seed_from_u64(1);
    let mut next = 1;
    while next <= KEYS {
        let entries: Vec<LogEntry> =
            (next..next + 1000).map(|index| put(index, key(index - 1))).collect();
        machine.apply(&entries).expect("applied");
        next += 1000;
    }
    machine.checkpoint().expect("durable");

    let reader = machine.store();
    let mut group = criterion.benchmark_group("store");
    group.throughput(Throughput::Elements(1));
    group.bench_function("get newest of 100k keys", |bencher| {
        bencher.iter_batched(
            || key(rng.random_range(0..KEYS)),
            |key| black_box(reader.get(&key).expect("read")),
            BatchSize::SmallInput,
        );
    });
    for size in APPLY_BATCHES {
        group.throughput(Throughput::Elements(size));
        group.bench_function(format!("apply {size} puts of 100 B"), |bencher| {
            bencher.iter_batched(
                || random_batch(&mut next, size, &mut rng),
                |entries| {
                    black_box(machine.apply(&entries).expect("applied"));
                    if machine.needs_seal(0, limits::SEAL_BYTES) {
                        machine.checkpoint().expect("durable");
                    }
                },
                // In order: the state machine takes no batch before the one it follows.
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn log(criterion: &mut Criterion) {
    let dir = TempDir::new().expect("a folder");
    let (mut log, _) = DiskLog::open(dir.path(), LogOptions::default()).expect("a log");
    let mut next = 1;
    let mut rng = StdRng::seed_from_u64(1);
    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Elements(LOG_BATCH));
    group.bench_function("append and sync 64 entries of 100 B", |bencher| {
        bencher.iter_batched(
            || {
                let entries = random_batch(&mut next, LOG_BATCH, &mut rng);
                LogBatch { entries, ..LogBatch::default() }
            },
            |batch| log.append(&[batch]).expect("durable"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// A state of 100 MB sent and taken in, hash and durability included; writes wait for nothing of
/// it.
fn snapshot(criterion: &mut Criterion) {
    let dir = TempDir::new().expect("a folder");
    let engine = TableEngine::open_at(&dir.path().join("store"));
    let mut machine =
        StateMachine::open(Arc::new(engine.expect("an engine")), StateLimits::default())
            .expect("a state");
    let value = Bytes::from(vec![b'v'; 1000]);
    let mut write = |index| {
        let request = RequestId {
            client: ClientId(1),
            sequence: index,
            answered_below: index,
            begun: Timestamp::ZERO,
        };
        let op = WriteOp::Put(Put { key: key(index), value: value.clone(), tells_previous: false });
        let command = Command::write(Timestamp(index as i64), request, op);
        LogEntry { term: 1, index, data: command.encode() }
    };
    for first in (1..=KEYS).step_by(1000) {
        let entries: Vec<LogEntry> = (first..first + 1000).map(&mut write).collect();
        machine.apply(&entries).expect("applied");
    }
    let data_dir = DataDir::open(&dir.path().join("data"), ClusterId(1), NodeId(1), 1);
    let data_dir = data_dir.expect("a data directory");
    let mut group = criterion.benchmark_group("snapshot");
    group.sample_size(10).throughput(Throughput::Bytes(KEYS * 1000));
    group.bench_function("100 MB, source to staged", |bencher| {
        bencher.iter(|| {
            let mut source = machine.begin_snapshot().expect("a view");
            let mut sink =
                SnapshotSink::create(data_dir.staging(), source.point()).expect("a sink");
            while let Some(chunk) = source.next_chunk(CHUNK_BYTES).expect("a chunk") {
                sink.push(&chunk).expect("taken in");
            }
            black_box(sink.finish().expect("staged").point())
        });
    });
    group.finish();
}

/// Versions, on each engine: many keys of one version, and few of many.
fn versions(criterion: &mut Criterion) {
    let dir = TempDir::new().expect("a folder");
    let disk = TableEngine::open_at(&dir.path().join("store"));
    let disk: Arc<dyn Engine> = Arc::new(disk.expect("an engine"));
    let engines = [("disk", disk), ("memory", Arc::new(MemoryEngine::new()) as Arc<dyn Engine>)];
    // A smoke run shows that it runs; it need not wait for millions of writes.
    let scale = if std::env::args().any(|argument| argument == "--test") { 100 } else { 1 };
    for (name, engine) in engines {
        let many = WIDE_KEYS / scale;
        let deep = DEEP_KEYS / scale;
        let mut machine = StateMachine::open(engine, StateLimits::default()).expect("a state");
        let mut next = 1;
        let mut fill = |key: &dyn Fn(u64) -> Bytes, count: u64| {
            while next <= count {
                let entries: Vec<LogEntry> =
                    (next..next + 1_000).map(|index| put(index, key(index))).collect();
                machine.apply(&entries).expect("applied");
                next += 1_000;
            }
        };
        fill(&|index| key(index - 1), many);
        let end_of_wide = many;
        fill(&|index| deep_key(index % deep), many + deep * DEEP_VERSIONS);
        // One key with a thousand versions.
        fill(&|_| Bytes::from_static(b"deepest"), many + deep * DEEP_VERSIONS + 1_000);
        machine.checkpoint().expect("durable");
        let now = machine.applied().timestamp;
        let reader = machine.store();
        let mut rng = StdRng::seed_from_u64(1);

        let mut group = criterion.benchmark_group(format!("versions on {name}"));
        group.throughput(Throughput::Elements(1));
        let shapes: [(&str, u64, NameKey, Timestamp); 2] = [
            ("1M keys x 1", many, key, Timestamp(end_of_wide as i64)),
            (
                "10k keys x 100",
                deep,
                deep_key,
                Timestamp(now.0 - (deep * DEEP_VERSIONS / 2) as i64),
            ),
        ];
        for (shape, keys, key, past) in shapes {
            group.bench_function(format!("get newest, {shape}"), |bencher| {
                bencher.iter_batched(
                    || key(rng.random_range(0..keys)),
                    |key| black_box(reader.get(&key).expect("read")),
                    BatchSize::SmallInput,
                );
            });
            group.bench_function(format!("get as of, {shape}"), |bencher| {
                bencher.iter_batched(
                    || key(rng.random_range(0..keys)),
                    |key| black_box(reader.get_at(&key, past).expect("read")),
                    BatchSize::SmallInput,
                );
            });
            for (what, at) in [("newest", now), ("as of", past)] {
                group.bench_function(format!("range of 1,000 {what}, {shape}"), |bencher| {
                    bencher.iter_batched(
                        || {
                            let from = key(rng.random_range(0..keys.saturating_sub(1_000).max(1)));
                            PageOf::Range { from, to: key(keys) }
                        },
                        |of| {
                            let read_view = ReadView { at, removals_up_to: now };
                            let most = PageLimits { rows: 1_000, ..PageLimits::default() };
                            let page = reader.first_page(&of, read_view, most);
                            black_box(page.expect("a page").rows.len())
                        },
                        BatchSize::SmallInput,
                    );
                });
            }
        }
        group.bench_function("get newest of 1,000 versions", |bencher| {
            bencher.iter(|| black_box(reader.get(b"deepest").expect("read")));
        });
        group.bench_function("get as of among 1,000 versions", |bencher| {
            bencher.iter_batched(
                || Timestamp(now.0 - rng.random_range(0..1_000)),
                |at| black_box(reader.get_at(b"deepest", at).expect("read")),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("put among all this", |bencher| {
            bencher.iter_batched(
                || {
                    let index = next;
                    next += 1;
                    [put(index, key(rng.random_range(0..many)))]
                },
                |entries| {
                    black_box(machine.apply(&entries).expect("applied"));
                },
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

/// The processor time of this process, in microseconds: of all its threads, and without the time
/// that it waits for others. The system counts it in hundredths of a second.
fn processor_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("of this process");
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() * 10_000.0
}

/// What a million PUTs cost, fifth by fifth, with the work behind them on a thread of its own as in
/// a server, and then what reads cost. It is one run and no sample, so it prints for itself.
fn growth(_: &mut Criterion) {
    const PUTS: u64 = 1_000_000;
    let dir = TempDir::new().expect("a folder");
    let engine = Arc::new(TableEngine::open_at(&dir.path().join("store")).expect("an engine"));
    let mut machine = StateMachine::open(engine.clone(), StateLimits::default()).expect("a state");
    let (mut rng, mut next) = (StdRng::seed_from_u64(1), 1);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                if !engine.work().expect("work") {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        });
        for fifth in 1..=5 {
            let mut made_us = 0.0;
            let before_us = processor_us();
            while next <= PUTS / 5 * fifth {
                let making = std::time::Instant::now();
                let entries = random_batch(&mut next, 64, &mut rng);
                made_us += making.elapsed().as_secs_f64() * 1e6;
                machine.apply(&entries).expect("applied");
                if machine.needs_seal(0, limits::SEAL_BYTES) {
                    machine.seal().expect("sealed");
                }
            }
            let us = (processor_us() - before_us - made_us) / (PUTS / 5) as f64;
            println!("growth/put, fifth {fifth} of {PUTS}: {us:.2} processor us");
        }
        is_over.store(true, Ordering::Release);
    });
    while engine.work().expect("work") {}
    let store = machine.store();
    let mut time = |what: &str, count: u32, read: &mut dyn FnMut(&mut StdRng)| {
        let before_us = processor_us();
        (0..count).for_each(|_| read(&mut rng));
        let us = (processor_us() - before_us) / f64::from(count);
        println!("growth/{what}: {us:.2} processor us");
    };
    time("get newest", 200_000, &mut |rng| {
        black_box(store.get(&key(rng.random_range(0..KEYS))).expect("read"));
    });
    time("get of no key", 200_000, &mut |rng| {
        black_box(store.get(&key(KEYS + rng.random_range(0..KEYS))).expect("read"));
    });
    let newest = ReadView::as_of(Timestamp(i64::MAX));
    let most = PageLimits { rows: 1_000, ..PageLimits::default() };
    time("page of 1,000", 200, &mut |rng| {
        let of = PageOf::Range { from: key(rng.random_range(0..KEYS - 1_000)), to: key(KEYS) };
        black_box(store.first_page(&of, newest, most).expect("a page").rows.len());
    });
}

criterion_group!(benches, store, log, snapshot, versions, growth);
criterion_main!(benches);
