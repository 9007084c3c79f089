//! The engine with tiny sizes against a sorted map: views at random moments, crashes before every
//! operation on the disk, and damage.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::storage::engine::Direction;
use crate::storage::keys::RowRange;
use crate::storage::tables::test_disk::TestDisk;

mod space;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type OwnedRow = (Vec<u8>, Vec<u8>);

fn random_options(rng: &mut StdRng) -> TablesOptions {
    TablesOptions {
        memory_table_bytes: 1,
        block_bytes: rng.random_range(1..100),
        fan: rng.random_range(2..4),
        small_run_bytes: rng.random_range(1..600),
        table_bytes: rng.random_range(1..500),
        merge_step_rows: rng.random_range(1..20),
        long_value_bytes: rng.random_range(4..30),
        cache_bytes: rng.random_range(0..20_000),
        open_files_max: rng.random_range(1..9),
    }
}

fn open(disk: &TestDisk, options: TablesOptions) -> Result<TableEngine, EngineError> {
    TableEngine::open(Arc::new(disk.clone()), options)
}

fn random_key(rng: &mut StdRng) -> Vec<u8> {
    let length = rng.random_range(1..4);
    (0..length).map(|_| [0, 1, 97, 98, 255][rng.random_range(0..5)]).collect()
}

fn random_batch(rng: &mut StdRng, rows: &mut Rows) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for _ in 0..rng.random_range(0..8) {
        let key = random_key(rng);
        let (is_told, exists) = (rng.random_bool(0.5), rows.contains_key(&key));
        if rng.random_bool(0.65) {
            let value = vec![rng.random(); rng.random_range(0..40)];
            match is_told && !exists {
                true => batch.insert(key.clone().into(), value.clone().into()),
                false => batch.put(key.clone().into(), value.clone().into()),
            }
            rows.insert(key, value);
        } else {
            match rows.remove(&key).filter(|_| is_told) {
                Some(value) => batch.remove(key.clone().into(), value.len()),
                None => batch.delete(key.clone().into()),
            }
        }
    }
    batch
}

fn everything() -> RowRange {
    RowRange { start: Bytes::new(), end: vec![255; 5].into() }
}

fn scan(
    view: &dyn EngineView,
    range: &RowRange,
    direction: Direction,
) -> Result<Vec<OwnedRow>, EngineError> {
    let mut found = Vec::new();
    view.scan(range, direction, &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn all(engine: &TableEngine) -> Result<Rows, EngineError> {
    let view = engine.view()?;
    let rows: Rows = scan(&*view, &everything(), Direction::Forward)?.into_iter().collect();
    Ok(rows)
}

fn check_scan(rng: &mut StdRng, view: &dyn EngineView, rows: &Rows) {
    let range = RowRange { start: random_key(rng).into(), end: random_key(rng).into() };
    let direction = if rng.random() { Direction::Forward } else { Direction::Reverse };
    let within = rows.iter().filter(|(key, _)| (&range.start..&range.end).contains(&&key[..]));
    let mut expected: Vec<_> = within.map(|(key, value)| (key.clone(), value.clone())).collect();
    if direction == Direction::Reverse {
        expected.reverse();
    }
    assert_eq!(scan(view, &range, direction).unwrap(), expected, "{range:?} {direction:?}");
}

#[test]
fn any_history_matches_a_sorted_map_in_views_of_any_moment() {
    let (mut merges, mut segments) = (0, 0);
    for seed in 0..150 {
        println!("seed {seed}");
        let rng = &mut StdRng::seed_from_u64(seed);
        let options = random_options(rng);
        let mut disk = TestDisk::default();
        let mut engine = open(&disk, options).unwrap();
        // `sealed` is what each seal holds, by its mark.
        let (mut rows, mut sealed) = (Rows::new(), vec![Rows::new()]);
        let mut opened_at = 0;
        let mut views: Vec<(Box<dyn EngineView>, Rows)> = Vec::new();
        for _ in 0..rng.random_range(1..120) {
            match rng.random_range(0..20) {
                0..8 => {
                    let batch = random_batch(rng, &mut rows);
                    if rng.random_bool(0.6) {
                        engine.write(&batch).unwrap();
                        continue;
                    }
                    engine.seal(&batch, sealed.len() as u64).unwrap();
                    sealed.push(rows.clone());
                    if rng.random_bool(0.3) {
                        engine.flush().unwrap();
                        assert_eq!(engine.durable(), Some(sealed.len() as u64 - 1));
                        let long = rows.values().map(Vec::len);
                        let long = long.filter(|bytes| *bytes > options.long_value_bytes);
                        let counted =
                            engine.with_current(|current| current.levels.long_value_bytes());
                        assert_eq!(counted, long.sum::<usize>() as u64);
                    }
                }
                8..13 => {
                    engine.work().unwrap();
                }
                13 => views.push((engine.view().unwrap(), rows.clone())),
                14 if !views.is_empty() => {
                    views.swap_remove(rng.random_range(0..views.len()));
                }
                15 => {
                    // The views stay valid, and read the files of the disk before.
                    disk = match rng.random() {
                        true => disk.after_kill(),
                        false => disk.after_power_loss(),
                    };
                    let options = TablesOptions { block_bytes: 9, ..options };
                    let mark = engine.durable().unwrap_or(opened_at);
                    engine = open(&disk, options).unwrap();
                    sealed.truncate(mark as usize + 1);
                    (rows, opened_at) = (sealed[mark as usize].clone(), mark);
                }
                16 => {
                    let mut next = Some(0);
                    while let Some(position) = next {
                        next = engine.scrub(position, 3).unwrap().next_block;
                    }
                }
                _ => {
                    let key = random_key(rng);
                    let found = engine.get(&key).unwrap().map(Vec::from);
                    assert_eq!(found.as_ref(), rows.get(&key));
                    check_scan(rng, &*engine.view().unwrap(), &rows);
                    for (view, rows) in &views {
                        check_scan(rng, &**view, rows);
                    }
                }
            }
            assert_eq!(engine.rows(), rows.len() as u64);
            let current = engine.with_current(|current| current.levels.clone());
            merges += current.runs.iter().filter(|run| run.first_seal < run.last_seal).count();
            segments += current.tables().filter(|table| !table.facts().values.is_empty()).count();
        }
        assert_eq!(all(&engine).unwrap(), rows);
        drop(views);
        while engine.work().unwrap() {}
        assert_eq!(all(&engine).unwrap(), rows);
    }
    assert!(merges > 100 && segments > 100, "{merges} merges, {segments} segments");
}

/// A short history with seals, merges, deleted rows and long values, until the disk stops.
fn history(disk: &TestDisk) -> (Result<(), EngineError>, Vec<Rows>) {
    let options = TablesOptions {
        memory_table_bytes: 1,
        block_bytes: 20,
        fan: 2,
        small_run_bytes: 150,
        table_bytes: 60,
        merge_step_rows: 3,
        long_value_bytes: 12,
        cache_bytes: 0,
        open_files_max: 1,
    };
    let mut sealed = vec![Rows::new()];
    let mut rows = Rows::new();
    let outcome = (|| {
        let engine = open(disk, options)?;
        for round in 0..5u8 {
            let mut batch = WriteBatch::default();
            for number in 0..4u8 {
                let key = vec![97 + (round + number) % 6];
                if (round + number) % 4 == 3 {
                    batch.delete(key.clone().into());
                    rows.remove(&key);
                } else {
                    let value = vec![round; 3 + 4 * usize::from(number)];
                    batch.put(key.clone().into(), value.clone().into());
                    rows.insert(key, value);
                }
            }
            engine.write(&batch)?;
            // From here on the state may be durable, also if the write fails.
            sealed.push(rows.clone());
            engine.write_durably(&WriteBatch::default())?;
            while engine.work()? {}
        }
        Ok(())
    })();
    (outcome, sealed)
}

#[test]
fn a_crash_before_any_operation_leaves_the_state_of_a_seal() {
    let whole = TestDisk::default();
    let (outcome, states) = history(&whole);
    outcome.unwrap();
    assert_eq!(states.len(), 6);
    for stop_at in 1..=whole.operations() + 1 {
        let disk = TestDisk::default();
        disk.stop_at(stop_at);
        let (outcome, states) = history(&disk);
        for crashed in [disk.after_kill(), disk.after_power_loss()] {
            let engine = open(&crashed, TablesOptions::default()).unwrap();
            let found = all(&engine).unwrap();
            assert_eq!(engine.rows(), found.len() as u64);
            let newest = states.len() - 1;
            let last_two = &states[newest.saturating_sub(1)..];
            assert!(last_two.contains(&found), "stopped at {stop_at}: {found:?}");
            assert!(outcome.is_err() || found == states[newest], "stopped at {stop_at}");
            // It is a store like any other, which has no other files.
            let manifest =
                TableManifest::open(&TableDirectory::new(Arc::new(crashed.clone()), 2)).unwrap();
            let tables = manifest.runs.iter().map(|run| run.tables.len()).sum::<usize>();
            let files = tables + manifest.segments.len() + 1;
            assert_eq!(crashed.names().len(), files, "{:?}", crashed.names());
            engine.write_durably(&WriteBatch::default()).unwrap();
            while engine.work().unwrap() {}
            assert_eq!(all(&engine).unwrap(), found);
        }
    }
}

#[test]
fn after_a_failed_seal_nothing_is_written_and_reads_go_on() {
    let disk = TestDisk::default();
    let engine = open(&disk, TablesOptions::default()).unwrap();
    let mut batch = WriteBatch::default();
    batch.put(Bytes::from_static(b"a"), Bytes::from_static(b"1"));
    disk.stop_at(disk.operations() + 3);
    engine.seal(&batch, 1).unwrap();
    let failed = engine.flush().unwrap_err();
    assert!(matches!(failed, EngineError::File { .. }), "{failed}");
    for refused in [engine.write(&batch), engine.seal(&batch, 2), engine.flush()] {
        assert!(matches!(refused, Err(EngineError::File { .. })));
    }
    assert!(engine.work().is_err() && engine.durable().is_none());
    assert_eq!(engine.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
}

/// Every bit of every file: the store is damaged, or nothing of it was in that bit.
#[test]
fn every_flipped_bit_of_a_store_is_found_by_reading_it_whole() {
    let disk = TestDisk::default();
    let (outcome, states) = history(&disk);
    outcome.unwrap();
    let rows = states.last().unwrap();
    let read_whole = |disk: &TestDisk| {
        let engine = open(disk, TablesOptions::default())?;
        let found = all(&engine)?;
        engine.scrub(0, u64::MAX)?;
        Ok::<_, EngineError>(found)
    };
    for name in disk.names() {
        for bit in 0..disk.bytes(&name).len() * 8 {
            let damaged = disk.after_kill();
            damaged.flip(&name, bit);
            match read_whole(&damaged) {
                // Bytes of a segment to which nothing refers any more.
                Ok(found) => assert!(found == *rows && name.ends_with(".values"), "{name} {bit}"),
                Err(error) => assert!(matches!(error, EngineError::Damaged { .. }), "{error}"),
            }
        }
        let missing = disk.after_kill();
        Directory::remove(&missing, &name).unwrap();
        assert!(matches!(read_whole(&missing), Err(EngineError::Damaged { .. })), "{name}");
    }
    assert_eq!(read_whole(&disk).unwrap(), *rows);
}

#[test]
fn the_first_damage_is_final() {
    let disk = TestDisk::default();
    history(&disk).0.unwrap();
    let engine = open(&disk, TablesOptions { cache_bytes: 0, ..TablesOptions::default() }).unwrap();
    let table = disk.names().into_iter().find(|name| name.ends_with(".table")).unwrap();
    disk.flip(&table, 3);
    let first = all(&engine).unwrap_err().to_string();
    disk.flip(&table, 3);
    assert_eq!(all(&engine).unwrap_err().to_string(), first);
    assert_eq!(engine.write(&WriteBatch::default()).unwrap_err().to_string(), first);
    assert_eq!(engine.work().unwrap_err().to_string(), first);
    assert_eq!(engine.scrub(0, 1).unwrap_err().to_string(), first);
}

/// Lets the other threads end, also when the writer fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A thread takes steps while another writes and two read: each batch sets every row to its number.
#[test]
fn views_are_whole_while_seals_are_moved_and_runs_merged_by_another_thread() {
    let options = TablesOptions {
        block_bytes: 100,
        fan: 2,
        small_run_bytes: 300,
        table_bytes: 400,
        merge_step_rows: 5,
        long_value_bytes: 4,
        cache_bytes: 10_000,
        ..TablesOptions::default()
    };
    let engine = open(&TestDisk::default(), options).unwrap();
    let write = |number: u64| {
        let mut batch = WriteBatch::default();
        for key in 0..30u8 {
            batch.put(vec![key].into(), number.to_le_bytes().to_vec().into());
        }
        match number.is_multiple_of(3) {
            true => engine.seal(&batch, number).unwrap(),
            false => engine.write(&batch).unwrap(),
        }
    };
    write(1);
    let done = AtomicBool::new(false);
    let is_done = || done.load(Ordering::Acquire);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done() {
                engine.work().unwrap();
            }
        });
        for direction in [Direction::Forward, Direction::Reverse] {
            let (engine, is_done) = (&engine, &is_done);
            scope.spawn(move || {
                let mut last = 0;
                while !is_done() || last == 0 {
                    let rows = scan(&*engine.view().unwrap(), &everything(), direction).unwrap();
                    assert_eq!(rows.len(), 30);
                    assert!(rows.iter().all(|(_, value)| *value == rows[0].1), "a torn view");
                    let number = u64::from_le_bytes(rows[0].1[..].try_into().unwrap());
                    assert!(number >= last, "a view older than the one before");
                    last = number;
                }
            });
        }
        let _done = SetOnDrop(&done);
        (2..200).for_each(write);
    });
    assert_eq!(engine.rows(), 30);
}
