//! Searches for the newest version of a key against a plain scan, and how much they read.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::model::Timestamp;
use crate::storage::engine::{Engine, Steps, WriteBatch};
use crate::storage::rows::{Overlay, Rows, ViewRows};
use crate::storage::tables::test_disk::TestDisk;
use crate::storage::tables::{TableEngine, TablesOptions};

const KEYS: [&[u8]; 5] = [b"a", b"b", b"b\0", b"c", b""];

type OwnedRow = (Vec<u8>, Vec<u8>);

fn newest(rows: &dyn Rows, range: &RowRange) -> Option<OwnedRow> {
    let mut found = None;
    rows.newest(range, &mut |key, value| {
        assert!(found.is_none(), "a second row is shown");
        found = Some((key.to_vec(), value.read().unwrap().into_owned()));
    })
    .unwrap();
    found
}

/// What memory alone tells; `None` if that is not enough.
fn newest_in_memory(view: &dyn EngineView, range: &RowRange) -> Option<Option<OwnedRow>> {
    let (mut found, mut is_long) = (None, false);
    let told = view.newest_in_memory(range, &mut |key, value| match value {
        RowValue::Inline(value) => found = Some((key.to_vec(), value.to_vec())),
        RowValue::OutOfLine { .. } => is_long = true,
    });
    match told {
        Ok(()) => (!is_long).then_some(found),
        Err(EngineError::NotInMemory) => None,
        Err(error) => panic!("{error}"),
    }
}

fn first_of_scan(rows: &dyn Rows, range: &RowRange) -> Option<OwnedRow> {
    let found = rows.first(range).unwrap();
    found.map(|(key, value)| (key.to_vec(), value.to_vec()))
}

/// The newest versions up to a time, by one scan that skips all others.
fn newest_of_all(rows: &dyn Rows, at: Timestamp) -> Vec<OwnedRow> {
    let (mut found, mut passed) = (Vec::new(), 0);
    rows.scan_skipping(&keys::all_versions(), &mut |row, value, skip_to| {
        if keys::version_timestamp(row).unwrap() > at {
            passed += 1;
            keys::put_sibling(keys::version_prefix(row), at, skip_to);
        } else {
            found.push((row.to_vec(), value.read().unwrap().into_owned()));
            keys::put_after_version(row, skip_to);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(passed <= KEYS.len(), "{passed} rows are shown that are skipped");
    found
}

/// The same by a scan of each key.
fn newest_of_each(rows: &dyn Rows, at: Timestamp) -> Vec<OwnedRow> {
    let mut keys = KEYS;
    keys.sort();
    keys.iter().filter_map(|key| first_of_scan(rows, &keys::versions_up_to(key, at))).collect()
}

/// Versions and removals of keys as they are written and deleted in time.
struct History {
    rng: StdRng,
    now: i64,
    /// With the lengths of their values.
    rows: BTreeMap<Bytes, usize>,
}

impl History {
    /// A batch of some new rows, each with the time of its write, and some deleted ones: the oldest
    /// of a key, as in garbage collection, or any.
    fn batch(&mut self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for _ in 0..self.rng.random_range(0..4) {
            self.now += 1;
            let key = KEYS[self.rng.random_range(0..KEYS.len())];
            let row = match self.rng.random_bool(0.8) {
                true => keys::version(key, Timestamp(self.now)),
                false => keys::removal(key, Timestamp(self.now)),
            };
            let value = vec![self.now as u8; self.rng.random_range(0..30)];
            self.rows.insert(row.clone(), value.len());
            batch.insert(row, value.into());
        }
        for _ in 0..self.rng.random_range(0..4) {
            let any = self.rng.random_range(0..self.rows.len().max(1));
            let Some(row) = self.rows.keys().nth(any) else { continue };
            let common = keys::without_timestamp(row);
            let oldest = self.rows.keys().rfind(|other| keys::without_timestamp(other) == common);
            let row = if self.rng.random_bool(0.7) { oldest.unwrap_or(row) } else { row }.clone();
            let value_bytes = self.rows.remove(&row);
            batch.remove(row, value_bytes.unwrap());
        }
        batch
    }

    fn range(&mut self) -> RowRange {
        let key = KEYS[self.rng.random_range(0..KEYS.len())];
        let (from, up_to) = (self.rng.random_range(0..=self.now), self.rng.random_range(0..9));
        match self.rng.random_range(0..6) {
            0 => keys::versions_up_to(key, Timestamp(from)),
            1 => keys::removals(key, Timestamp(from), Timestamp(from + up_to)),
            2 => keys::only(&keys::version(key, Timestamp(from))),
            3 => keys::removals(key, Timestamp(i64::MIN), Timestamp(i64::MAX)),
            _ => keys::versions_up_to(key, Timestamp(i64::MAX)),
        }
    }
}

#[test]
fn the_newest_row_is_the_first_of_a_scan_in_any_history() {
    let (mut found_rows, mut told_by_memory) = (0, 0);
    for seed in 0..200 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let options = TablesOptions {
            memory_table_bytes: 1,
            block_bytes: rng.random_range(1..100),
            fan: rng.random_range(2..5),
            small_run_bytes: rng.random_range(1..600),
            table_bytes: rng.random_range(1..500),
            merge_step_rows: rng.random_range(1..20),
            long_value_bytes: rng.random_range(4..30),
            cache_bytes: rng.random_range(0..20_000),
            open_files_max: rng.random_range(1..9),
        };
        let engine = TableEngine::open(Arc::new(TestDisk::default()), options).unwrap();
        let mut history = History { rng, now: 0, rows: BTreeMap::new() };
        let mut views: Vec<Box<dyn EngineView>> = Vec::new();
        for _ in 0..history.rng.random_range(1..100) {
            let batch = history.batch();
            if history.rng.random_bool(0.1) {
                views.push(engine.view().unwrap());
            }
            // The batch is first seen over the view, and then in it.
            let (view, steps) = (engine.view().unwrap(), Steps::default());
            let overlay = Overlay { view: &*view, batch: &batch, steps: &steps };
            for _ in 0..4 {
                let range = history.range();
                let expected = first_of_scan(&overlay, &range);
                assert_eq!(newest(&overlay, &range), expected, "{range:?} over {batch:?}");
            }
            match history.rng.random_bool(0.3) {
                true => engine.seal(&batch, 0).unwrap(),
                false => engine.write(&batch).unwrap(),
            }
            for _ in 0..history.rng.random_range(0..4) {
                engine.work().unwrap();
            }
            views.push(engine.view().unwrap());
            for view in &views {
                let range = history.range();
                let rows = ViewRows(&**view);
                let expected = first_of_scan(&rows, &range);
                if let Some(in_memory) = newest_in_memory(&**view, &range) {
                    assert_eq!(in_memory, expected, "{range:?} in memory");
                    told_by_memory += 1;
                }
                assert_eq!(newest(&rows, &range), expected, "{range:?}");
                let at = Timestamp(history.rng.random_range(0..=history.now));
                assert_eq!(newest_of_all(&rows, at), newest_of_each(&rows, at), "up to {at:?}");
                found_rows += u32::from(expected.is_some());
            }
            views.pop();
        }
    }
    assert!(found_rows > 1_000 && told_by_memory > 1_000, "{found_rows} {told_by_memory}");
}

/// Runs of 200 keys each, of which the lowest 100 are in every run. The cache takes all.
fn four_runs(disk: &TestDisk) -> TableEngine {
    let options = TablesOptions { block_bytes: 512, fan: 100, ..TablesOptions::default() };
    let engine = TableEngine::open(Arc::new(disk.clone()), options).unwrap();
    for round in 0..4u32 {
        let mut batch = WriteBatch::default();
        for number in (0..100).chain(100 + 100 * round..200 + 100 * round) {
            batch.insert(version(number, round), vec![7; 20].into());
        }
        engine.write_durably(&batch).unwrap();
    }
    engine
}

fn key(number: u32) -> Vec<u8> {
    format!("key {number:06}").into_bytes()
}

fn version(number: u32, round: u32) -> Bytes {
    keys::version(&key(number), Timestamp(i64::from(round)))
}

/// The number of reads of the disk that a search for the newest version of a key takes, and the
/// time of this version.
fn search(engine: &TableEngine, disk: &TestDisk, key: &[u8]) -> (u64, Option<i64>) {
    let before = disk.reads();
    let view = engine.view().unwrap();
    let found = newest(&ViewRows(&*view), &keys::versions_up_to(key, Timestamp(i64::MAX)));
    let at = found.map(|(row, _)| keys::version_timestamp(&row).unwrap().0);
    (disk.reads() - before, at)
}

#[test]
fn a_search_reads_one_block_of_the_newest_run_with_the_key_and_none_if_there_is_none() {
    let disk = TestDisk::default();
    let engine = four_runs(&disk);
    // The index and the filter of the newest run, and a block.
    assert_eq!(search(&engine, &disk, &key(99)), (3, Some(3)));
    for number in [0, 30, 60] {
        assert_eq!(search(&engine, &disk, &key(number)), (1, Some(3)), "{number}");
        assert_eq!(search(&engine, &disk, &key(number)), (0, Some(3)), "{number} is in the cache");
    }
    // In the oldest run alone. The bounds of the others tell nothing, and their filters are right
    // about nearly all keys.
    search(&engine, &disk, &key(100));
    let reads = |number| search(&engine, &disk, &key(number));
    let in_two_blocks = (110..190).step_by(20).filter(|number| reads(*number) != (1, Some(0)));
    assert!(in_two_blocks.count() <= 1);
    // Between the keys of all runs, and outside of the bounds of each.
    let absent = (0..500).map(|number| [&key(number)[..], b"!"].concat());
    let reads: Vec<u64> = absent.map(|key| search(&engine, &disk, &key).0).collect();
    let in_vain = reads.iter().filter(|reads| **reads > 0).count();
    assert!(in_vain < 25, "filters are wrong {in_vain} times of 500");
    let unread = TestDisk::default();
    let engine = four_runs(&unread);
    assert_eq!(search(&engine, &unread, b"key"), (0, None), "before all keys");
    assert_eq!(search(&engine, &unread, b"l"), (0, None), "behind all keys");
}

/// With ten million keys the filters are larger than the cache, and each search read whole ones.
#[test]
fn of_a_filter_that_the_cache_does_not_hold_small_parts_are_read_and_kept() {
    let disk = TestDisk::default();
    // The filter has 50 KB, where a shard of the cache has 32, and the whole of it 256.
    let options = TablesOptions { cache_bytes: 256 * 1024, ..TablesOptions::default() };
    let engine = TableEngine::open(Arc::new(disk.clone()), options).unwrap();
    let mut batch = WriteBatch::default();
    (0..40_000).for_each(|number| batch.insert(version(2 * number, 0), Bytes::new()));
    engine.write_durably(&batch).unwrap();
    let absent = || (0..1_000).map(|number| key(2 * number + 1));
    let reads =
        |engine: &TableEngine| -> u64 { absent().map(|key| search(engine, &disk, &key).0).sum() };
    // Thirteen parts, an index, and blocks where the filter is wrong.
    let first = reads(&engine);
    assert!((13..60).contains(&first), "{first} reads of 1,000 absent keys");
    let again = reads(&engine);
    assert!(again < 20, "{again} reads of the same");
}

/// A thread that must not wait is told what is in memory tables and in the cache, and nothing else.
#[test]
fn a_search_in_memory_reads_nothing_and_waits_for_no_batch() {
    let disk = TestDisk::default();
    let engine = four_runs(&disk);
    let range = |number| keys::versions_up_to(&key(number), Timestamp(i64::MAX));
    let before = disk.reads();
    let view = engine.view().unwrap();
    assert_eq!(newest_in_memory(&*view, &range(30)), None, "nothing was read yet");
    assert_eq!(disk.reads(), before);
    search(&engine, &disk, &key(30));
    let before = disk.reads();
    let found = newest_in_memory(&*view, &range(30)).unwrap().unwrap();
    assert_eq!(keys::version_timestamp(&found.0).unwrap(), Timestamp(3));
    let mut batch = WriteBatch::default();
    batch.insert(version(450, 7), Bytes::from("new"));
    engine.write(&batch).unwrap();
    let view = engine.view().unwrap();
    let found = newest_in_memory(&*view, &range(450)).unwrap();
    assert_eq!(found, Some((version(450, 7).to_vec(), b"new".to_vec())));
    assert_eq!(disk.reads(), before);
    // While a batch is being added nobody is waited for.
    let tables = engine.tables_view();
    let _adding = tables.memory[0].lock_for_test();
    assert_eq!(newest_in_memory(&*view, &range(450)), None);
}

/// Garbage collection leaves markers of old versions in newer runs than that of the newest version.
#[test]
fn markers_of_older_versions_do_not_make_a_search_look_further() {
    let disk = TestDisk::default();
    let engine = four_runs(&disk);
    let mut batch = WriteBatch::default();
    for number in 0..100 {
        (0..3).for_each(|round| batch.remove(version(number, round), 20));
    }
    engine.write_durably(&batch).unwrap();
    search(&engine, &disk, &key(0));
    search(&engine, &disk, &key(50));
    let (reads, newest) = search(&engine, &disk, &key(99));
    assert_eq!(newest, Some(3));
    assert!(reads <= 2, "a block with markers and one with the version, and not {reads}");
    // With the newest deleted as well, the next one shows.
    let mut batch = WriteBatch::default();
    batch.remove(version(150, 0), 20);
    batch.insert(version(151, 9), Bytes::new());
    batch.remove(version(151, 0), 20);
    engine.write_durably(&batch).unwrap();
    assert_eq!(search(&engine, &disk, &key(150)).1, None);
    assert_eq!(search(&engine, &disk, &key(151)).1, Some(9));
}
