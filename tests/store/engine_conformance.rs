//! The same suite on every engine: what the store relies on, whatever keeps the rows.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use acervo::storage::engine::{Direction, Engine, EngineError, EngineView, Scrubbed, WriteBatch};
use acervo::storage::files::RealDirectory;
use acervo::storage::keys::RowRange;
use acervo::storage::memory::MemoryEngine;
use acervo::storage::tables::{TableEngine, TablesOptions};
use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

/// An engine and its end: a crash, after which it is opened again.
trait Bed {
    fn start() -> Self;
    fn engine(&self) -> Arc<dyn Engine>;
    fn crash(&mut self);
    fn end(&mut self);
}

struct Memory(Arc<MemoryEngine>);

impl Bed for Memory {
    fn start() -> Self {
        Memory(Arc::new(MemoryEngine::new()))
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.0.clone()
    }

    fn crash(&mut self) {
        self.0.crash();
    }

    fn end(&mut self) {
        self.0 = Arc::new(MemoryEngine::new());
    }
}

/// Tables with sizes so small that a few rows make many of them, and two steps of the background
/// after each batch: seals are moved and runs merged all the time.
struct BusyTables(TableEngine);

impl BusyTables {
    fn open(dir: &TempDir) -> BusyTables {
        let options = TablesOptions {
            memory_table_bytes: 100,
            block_bytes: 64,
            fan: 2,
            small_run_bytes: 500,
            table_bytes: 300,
            merge_step_rows: 7,
            long_value_bytes: 16,
            cache_bytes: 16 * 1024,
            open_files_max: 2,
        };
        let directory = Arc::new(RealDirectory::open(dir.path()).unwrap());
        BusyTables(TableEngine::open(directory, options).unwrap())
    }

    fn work_a_little(&self) -> Result<(), EngineError> {
        for _ in 0..2 {
            self.0.work()?;
        }
        Ok(())
    }
}

impl Engine for BusyTables {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.0.get(key)
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        self.0.view()
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.0.write(batch)?;
        self.work_a_little()
    }

    fn seal(&self, batch: &WriteBatch, mark: u64) -> Result<(), EngineError> {
        self.0.seal(batch, mark)?;
        self.work_a_little()
    }

    fn durable(&self) -> Option<u64> {
        self.0.durable()
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.0.flush()
    }

    fn rows(&self) -> u64 {
        self.0.rows()
    }

    fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError> {
        self.0.scrub(from_block, blocks)
    }
}

struct TablesDropped {
    dir: TempDir,
    engine: Option<Arc<BusyTables>>,
}

impl Bed for TablesDropped {
    fn start() -> Self {
        let mut bed = TablesDropped { dir: TempDir::new().unwrap(), engine: None };
        bed.crash();
        bed
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone().unwrap()
    }

    fn crash(&mut self) {
        self.engine = None;
        self.engine = Some(Arc::new(BusyTables::open(&self.dir)));
    }

    fn end(&mut self) {
        self.engine = None;
    }
}

/// Killed: what the directory holds at this moment, while the engine is open, is all there is.
struct TablesKilled(TablesDropped);

impl Bed for TablesKilled {
    fn start() -> Self {
        TablesKilled(TablesDropped::start())
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.0.engine()
    }

    fn crash(&mut self) {
        let next = TempDir::new().unwrap();
        for file in std::fs::read_dir(self.0.dir.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), next.path().join(file.file_name())).unwrap();
        }
        self.0.dir = next;
        self.0.crash();
    }

    fn end(&mut self) {
        self.0.end();
    }
}

fn write_batch(engine: &dyn Engine, batch: &WriteBatch, durably: bool) {
    let written = if durably { engine.write_durably(batch) } else { engine.write(batch) };
    written.unwrap();
}

fn batch(rows: &[(&str, Option<&str>)]) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for (key, value) in rows {
        let key = Bytes::copy_from_slice(key.as_bytes());
        match value {
            Some(value) => batch.put(key, Bytes::copy_from_slice(value.as_bytes())),
            None => batch.delete(key),
        }
    }
    batch
}

fn range(start: &[u8], end: &[u8]) -> RowRange {
    RowRange { start: Bytes::copy_from_slice(start), end: Bytes::copy_from_slice(end) }
}

fn collect(
    engine: &dyn Engine,
    range: &RowRange,
    direction: Direction,
    count: usize,
) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
    let mut rows = Vec::new();
    engine.scan(range, direction, &mut |key, value| {
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        if rows.len() == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(rows)
}

fn keys_in(engine: &dyn Engine, start: &str, end: &str, direction: Direction) -> String {
    let range = range(start.as_bytes(), end.as_bytes());
    let rows = collect(engine, &range, direction, usize::MAX).unwrap();
    rows.iter().map(|(key, _)| str::from_utf8(key).unwrap()).collect()
}

fn rows_are_set_replaced_and_removed<B: Bed>() {
    let bed = B::start();
    let engine = bed.engine();
    assert_eq!(engine.get(b"a").unwrap(), None);
    engine.write(&batch(&[("a", Some("1")), ("b", Some(""))])).unwrap();
    assert_eq!(engine.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(engine.get(b"b").unwrap().as_deref(), Some(&b""[..]));
    let rows = [("a", None), ("b", Some("2")), ("c", Some("3")), ("c", None), ("d", None)];
    engine.write_durably(&batch(&rows)).unwrap();
    assert_eq!(engine.get(b"a").unwrap(), None);
    assert_eq!(engine.get(b"b").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(engine.get(b"c").unwrap(), None, "the last change counts");
}

fn scans_keep_to_their_range_and_direction<B: Bed>() {
    let bed = B::start();
    let engine = &*bed.engine();
    let rows = ["a", "b", "c", "d", "e"].map(|key| (key, Some("v")));
    engine.write(&batch(&rows)).unwrap();
    assert_eq!(keys_in(engine, "b", "d", Direction::Forward), "bc");
    assert_eq!(keys_in(engine, "b", "d", Direction::Reverse), "cb");
    assert_eq!(keys_in(engine, "", "z", Direction::Reverse), "edcba");
    assert_eq!(keys_in(engine, "bb", "dd", Direction::Forward), "cd");
    assert_eq!(keys_in(engine, "d", "b", Direction::Forward), "");
    assert_eq!(keys_in(engine, "b", "b", Direction::Forward), "");
    let two = collect(engine, &range(b"b", b"z"), Direction::Forward, 2).unwrap();
    assert_eq!(two.len(), 2, "a scan ends when the visitor says so");
}

fn a_crash_goes_back_to_exactly_the_last_durable_batch<B: Bed>() {
    let mut bed = B::start();
    for round in 0..5 {
        let kept = format!("kept {round}");
        let write = |rows: &[(&str, Option<&str>)], durably| {
            write_batch(&*bed.engine(), &batch(rows), durably);
        };
        write(&[("lazy", Some(&kept)), ("gone", Some("x"))], false);
        write(&[("gone", None)], false);
        write(&[("durable", Some(&kept))], true);
        write(&[("lazy", Some("lost")), ("new", Some("lost"))], false);
        write(&[("durable", None)], false);
        assert_eq!(bed.engine().get(b"durable").unwrap(), None);
        bed.crash();
        let engine = bed.engine();
        for key in ["lazy", "durable"] {
            let found = engine.get(key.as_bytes()).unwrap();
            assert_eq!(found.as_deref(), Some(kept.as_bytes()), "{key}");
        }
        assert_eq!(keys_in(&*engine, "", "z", Direction::Forward), "durablelazy");
    }
}

fn a_scan_sees_one_moment_while_batches_are_written<B: Bed>() {
    let bed = B::start();
    let engine = bed.engine();
    let rows = 50u32;
    // Each batch sets every row to its own number, and moves one row that comes and goes.
    let write = |number: u32| {
        let mut batch = WriteBatch::default();
        for row in 0..rows {
            let value = Bytes::copy_from_slice(&number.to_be_bytes());
            batch.put(Bytes::copy_from_slice(&row.to_be_bytes()), value);
        }
        let extra = |number: u32| Bytes::copy_from_slice(&(rows + number % 7).to_be_bytes());
        batch.delete(extra(number.wrapping_sub(1)));
        batch.put(extra(number), Bytes::copy_from_slice(&number.to_be_bytes()));
        write_batch(&*engine, &batch, number.is_multiple_of(16));
    };
    write(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = |direction| {
            let (engine, done) = (&engine, &done);
            move || {
                let mut last = 0;
                let mut scans = 0;
                while !done.load(Ordering::Acquire) || scans == 0 {
                    let all = range(&[0], &[255; 5]);
                    let seen = collect(&**engine, &all, direction, usize::MAX).unwrap();
                    assert_eq!(seen.len(), rows as usize + 1);
                    let number = &seen[0].1;
                    assert!(seen.iter().all(|(_, value)| value == number), "a torn view");
                    let number = u32::from_be_bytes(number[..].try_into().unwrap());
                    assert!(number >= last, "a view older than the one before");
                    last = number;
                    scans += 1;
                }
            }
        };
        scope.spawn(reader(Direction::Forward));
        scope.spawn(reader(Direction::Reverse));
        let _done = SetOnDrop(&done);
        (1..300).for_each(write);
    });
}

/// Lets the readers end, also when the writer fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn a_visitor_may_write<B: Bed>() {
    let bed = B::start();
    let engine = bed.engine();
    engine.write(&batch(&[("a", Some("1")), ("b", Some("1"))])).unwrap();
    let mut seen = 0;
    engine
        .scan(&range(b"", b"z"), Direction::Forward, &mut |_, value| {
            assert_eq!(value, b"1");
            seen += 1;
            engine.write(&batch(&[("b", Some("2")), ("c", Some("2"))])).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, 2);
    assert_eq!(keys_in(&*engine, "", "z", Direction::Forward), "abc");
}

fn a_view_does_not_change_and_outlives_its_engine<B: Bed>() {
    let mut bed = B::start();
    let write = |bed: &B, rows: &[(&str, Option<&str>)], durably| {
        write_batch(&*bed.engine(), &batch(rows), durably);
    };
    write(&bed, &[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))], false);
    let view = bed.engine().view().unwrap();
    let seen = |direction| {
        let mut rows = String::new();
        let mut visit = |key: &[u8], value: &[u8]| {
            rows.extend([key, value].map(|part| str::from_utf8(part).unwrap()));
            if rows.len() == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        view.scan(&range(b"b", b"z"), direction, &mut visit).unwrap();
        view.scan(&range(b"z", b"b"), direction, &mut visit).unwrap();
        rows
    };
    for round in 0..200 {
        let other = format!("{round}");
        write(&bed, &[("a", None), ("b", Some(&other)), (&other, Some("x"))], round % 20 == 0);
        assert_eq!(seen(Direction::Forward), "b1c1");
        assert_eq!(seen(Direction::Reverse), "c1b1");
    }
    assert_eq!(bed.engine().get(b"b").unwrap().as_deref(), Some(&b"199"[..]));
    bed.end();
    assert_eq!(seen(Direction::Forward), "b1c1");
}

#[derive(Clone, Debug)]
enum Step {
    Write { rows: Vec<(Vec<u8>, Option<Vec<u8>>)>, durable: bool },
    Scan { start: Vec<u8>, end: Vec<u8>, reverse: bool },
    Crash,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(255), 97..101u8], 1..4)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..20));
    let rows = prop::collection::vec((key(), value), 0..12);
    let write = (rows, prop::bool::weighted(0.3));
    let scan = (key(), key(), any::<bool>());
    let step = prop_oneof![
        5 => write.prop_map(|(rows, durable)| Step::Write { rows, durable }),
        3 => scan.prop_map(|(start, end, reverse)| Step::Scan { start, end, reverse }),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..30)
}

fn any_history_matches_a_sorted_map<B: Bed>(cases: u32) {
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases, ..Default::default() });
    let result = runner.run(&steps(), |steps| {
        let mut bed = B::start();
        let mut visible: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut durable = visible.clone();
        for step in steps {
            match step {
                Step::Write { rows, durable: is_durable } => {
                    let mut batch = WriteBatch::default();
                    for (key, value) in rows {
                        match value {
                            Some(value) => {
                                batch.put(key.clone().into(), value.clone().into());
                                visible.insert(key, value);
                            }
                            None => {
                                batch.delete(key.clone().into());
                                visible.remove(&key);
                            }
                        }
                    }
                    write_batch(&*bed.engine(), &batch, is_durable);
                    if is_durable {
                        durable = visible.clone();
                    }
                }
                Step::Crash => {
                    bed.crash();
                    visible = durable.clone();
                }
                Step::Scan { start, end, reverse } => {
                    let direction = if reverse { Direction::Reverse } else { Direction::Forward };
                    let found =
                        collect(&*bed.engine(), &range(&start, &end), direction, usize::MAX);
                    let mut expected: Vec<(Bytes, Bytes)> = visible
                        .iter()
                        .filter(|(key, _)| (&start..&end).contains(key))
                        .map(|(key, value)| (key.clone().into(), value.clone().into()))
                        .collect();
                    if reverse {
                        expected.reverse();
                    }
                    prop_assert_eq!(found.unwrap(), expected);
                    prop_assert_eq!(
                        bed.engine().get(&start).unwrap(),
                        visible.get(&start).map(|value| Bytes::from(value.clone()))
                    );
                }
            }
            prop_assert_eq!(bed.engine().rows(), visible.len() as u64);
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

macro_rules! conformance {
    ($name:ident, $bed:ty, $cases:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn rows_are_set_replaced_and_removed() {
                super::rows_are_set_replaced_and_removed::<$bed>();
            }

            #[test]
            fn scans_keep_to_their_range_and_direction() {
                super::scans_keep_to_their_range_and_direction::<$bed>();
            }

            #[test]
            fn a_crash_goes_back_to_exactly_the_last_durable_batch() {
                super::a_crash_goes_back_to_exactly_the_last_durable_batch::<$bed>();
            }

            #[test]
            fn a_scan_sees_one_moment_while_batches_are_written() {
                super::a_scan_sees_one_moment_while_batches_are_written::<$bed>();
            }

            #[test]
            fn a_view_does_not_change_and_outlives_its_engine() {
                super::a_view_does_not_change_and_outlives_its_engine::<$bed>();
            }

            #[test]
            fn a_visitor_may_write() {
                super::a_visitor_may_write::<$bed>();
            }

            #[test]
            fn any_history_matches_a_sorted_map() {
                super::any_history_matches_a_sorted_map::<$bed>($cases);
            }
        }
    };
}

conformance!(memory, Memory, 256);
conformance!(tables_dropped, TablesDropped, 24);
conformance!(tables_killed, TablesKilled, 24);
