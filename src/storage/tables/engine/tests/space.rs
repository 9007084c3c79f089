//! The room on the disk that merges take and give back, and the bound of the number of runs.

use super::*;
use crate::storage::tables::policy::RUNS_MAX;

fn small_tables() -> TablesOptions {
    TablesOptions {
        block_bytes: 200,
        fan: 4,
        small_run_bytes: 1 << 20,
        table_bytes: 2000,
        merge_step_rows: 20,
        long_value_bytes: 100,
        ..TablesOptions::default()
    }
}

fn row_key(number: u32) -> Bytes {
    Bytes::from(format!("row {number:06}"))
}

/// Writes values of so many bytes to these rows, and seals them.
fn fill(engine: &TableEngine, rows: impl Iterator<Item = u32>, value_bytes: usize) {
    let mut batch = WriteBatch::default();
    rows.for_each(|row| batch.put(row_key(row), vec![row as u8; value_bytes].into()));
    engine.write_durably(&batch).unwrap();
}

fn delete(engine: &TableEngine, rows: impl Iterator<Item = u32>, value_bytes: usize) {
    let mut batch = WriteBatch::default();
    rows.for_each(|row| batch.remove(row_key(row), value_bytes));
    engine.write_durably(&batch).unwrap();
}

/// Takes steps until there is nothing to do; the most bytes that the disk had to hold meanwhile.
fn settle(engine: &TableEngine, disk: &TestDisk) -> usize {
    let mut most = disk.used_bytes();
    while engine.work().unwrap() {
        most = most.max(disk.used_bytes());
    }
    most
}

#[test]
fn a_merge_of_any_size_needs_room_for_a_few_tables() {
    let disk = TestDisk::default();
    let engine = open(&disk, small_tables()).unwrap();
    (0..4).for_each(|round| fill(&engine, (0..800).map(|row| 4 * row + round), 20));
    let before = disk.used_bytes();
    assert!(before > 100_000, "{before}");
    let most = settle(&engine, &disk);
    assert_eq!(engine.with_current(|current| current.levels.runs.len()), 1);
    // Of each run the table that the stretch has come into, and the outcome of the stretch.
    let tables = 4 + 2;
    assert!(most < before + tables * 2500, "{most} bytes where {before} are merged");
    assert_eq!(all(&engine).unwrap().len(), 3200);
}

/// A merge of which a part is done goes on after a restart, and newer rows come in between.
#[test]
fn a_merge_goes_on_where_it_was_with_newer_runs_before_it() {
    let mut disk = TestDisk::default();
    let mut engine = open(&disk, small_tables()).unwrap();
    (0..4).for_each(|round| fill(&engine, (0..400).map(|row| 4 * row + round), 20));
    let is_merging = |engine: &TableEngine| {
        engine.with_current(|current| current.levels.runs.iter().any(|run| run.is_merging()))
    };
    let (mut restarts, mut written) = (0, 0);
    while engine.work().unwrap() {
        if !is_merging(&engine) {
            continue;
        }
        let runs = engine.with_current(|current| current.levels.runs.clone());
        let left = runs.iter().filter(|run| run.is_merging()).map(|run| run.rows()).sum::<u64>();
        disk = disk.after_power_loss();
        engine = open(&disk, small_tables()).unwrap();
        restarts += 1;
        assert_eq!(all(&engine).unwrap().len(), 1600);
        if restarts % 5 == 0 {
            // The second half of the keys gets other values.
            fill(&engine, 800 + written..900 + written, 7);
            written += 100;
        }
        // Without a restart in between, so that each stretch comes to its end.
        let same = |engine: &TableEngine| {
            let runs = engine.with_current(|current| current.levels.runs.clone());
            let now = runs.iter().filter(|run| run.is_merging()).map(|run| run.rows()).sum::<u64>();
            is_merging(engine) && now == left
        };
        while same(&engine) && engine.work().unwrap() {}
    }
    assert!(restarts > 5, "{restarts} restarts");
    let rows = all(&engine).unwrap();
    assert_eq!(rows.len(), 1600);
    let overwritten = rows.values().filter(|value| value.len() == 7).count();
    assert_eq!(overwritten, written as usize);
}

#[test]
fn deleted_rows_give_their_room_back_without_further_writes() {
    let disk = TestDisk::default();
    let engine = open(&disk, small_tables()).unwrap();
    (0..3).for_each(|round| fill(&engine, (0..800).map(|row| 3 * row + round), 20));
    settle(&engine, &disk);
    let before = disk.used_bytes();
    delete(&engine, 0..2300, 20);
    settle(&engine, &disk);
    assert_eq!(all(&engine).unwrap().len(), 100);
    let after = disk.used_bytes();
    assert!(after < before / 10, "{after} of {before} bytes are left");
    assert_eq!(engine.rows(), 100);
}

/// One long value in ten stays of every segment.
#[test]
fn long_values_that_are_deleted_give_their_room_back() {
    let disk = TestDisk::default();
    let engine = open(&disk, small_tables()).unwrap();
    (0..3).for_each(|round| fill(&engine, (0..200).map(|row| 3 * row + round), 500));
    settle(&engine, &disk);
    let before = disk.used_bytes();
    assert!(before > 300_000, "{before}");
    let old_view = engine.view().unwrap();
    delete(&engine, (0..600).filter(|row| row % 10 != 0), 500);
    settle(&engine, &disk);
    let rows = all(&engine).unwrap();
    assert_eq!(rows.len(), 60);
    assert!(rows.iter().all(|(_, value)| value.len() == 500));
    assert!(disk.used_bytes() > before, "a view holds on to its files");
    assert_eq!(scan(&*old_view, &everything(), Direction::Forward).unwrap().len(), 600);
    let files = disk.names().len();
    drop(old_view);
    assert_eq!(disk.names().len(), files, "readers remove no files");
    engine.work().unwrap();
    let after = disk.used_bytes();
    assert!(after < before / 4, "{after} of {before} bytes are left");
    let again = open(&disk.after_power_loss(), small_tables()).unwrap();
    assert_eq!(all(&again).unwrap(), rows);
    again.scrub(0, u64::MAX).unwrap();
}

/// As with a short history of a few long values beside many small ones: the markers of old versions
/// are far fewer than rows, and no class of runs is full.
#[test]
fn few_markers_give_back_the_room_of_the_long_values_that_they_hide() {
    let disk = TestDisk::default();
    let engine = open(&disk, TablesOptions { fan: 100, ..small_tables() }).unwrap();
    fill(&engine, 10_000..12_000, 20);
    let (kept, value_bytes) = (20, 1000);
    for round in 0..40 {
        fill(&engine, kept * round..kept * (round + 1), value_bytes);
        if round > 0 {
            delete(&engine, kept * (round - 1)..kept * round, value_bytes);
        }
        settle(&engine, &disk);
        let most = 2000 * 60 + 4 * kept as usize * value_bytes;
        assert!(disk.used_bytes() < most, "{} of {most} bytes, {round}", disk.used_bytes());
    }
    let rows = all(&engine).unwrap();
    assert_eq!(rows.len(), 2000 + kept as usize);
    assert_eq!(all(&open(&disk.after_power_loss(), small_tables()).unwrap()).unwrap(), rows);
}

/// Without a thread for it, and with no class of runs that is full.
#[test]
fn seals_merge_runs_themselves_when_there_are_too_many() {
    let disk = TestDisk::default();
    let engine = open(&disk, TablesOptions { fan: 100, ..small_tables() }).unwrap();
    for round in 0..80 {
        let mut batch = WriteBatch::default();
        batch.put(row_key(round % 50), vec![round as u8; 20].into());
        engine.seal(&batch, u64::from(round)).unwrap();
        let (runs, sealed) =
            engine.with_current(|current| (current.levels.runs.len(), current.sealed.len()));
        assert!(runs <= RUNS_MAX && sealed <= SEALED_MAX, "{runs} runs, {sealed} seals");
        assert!(engine.durable() >= Some(u64::from(round)).filter(|it| *it >= 2).map(|it| it - 2));
    }
    engine.flush().unwrap();
    let rows = all(&engine).unwrap();
    assert_eq!(rows.len(), 50);
    assert_eq!(rows[&row_key(29)[..]], vec![79; 20]);
}

/// A segment for each seal would be a file for each, for ever.
#[test]
fn the_segments_of_small_seals_are_joined() {
    let disk = TestDisk::default();
    let options = TablesOptions { table_bytes: 1 << 16, ..small_tables() };
    let engine = open(&disk, options).unwrap();
    for row in 0..300 {
        fill(&engine, row..row + 1, 200);
        settle(&engine, &disk);
    }
    let names = disk.names();
    let segments = names.iter().filter(|name| name.ends_with(".values")).count();
    assert!(segments < 20, "{names:?}");
    let rows = all(&engine).unwrap();
    assert!(rows.len() == 300 && rows.values().all(|value| value.len() == 200));
    let written = disk.used_bytes();
    assert!(written < 300 * 200 * 2, "{written} bytes");
}

/// A block of references leads to many times its own bytes.
#[test]
fn a_step_of_scrubbing_reads_no_more_than_it_may() {
    let disk = TestDisk::default();
    let options = TablesOptions { block_bytes: 8 << 10, table_bytes: 1 << 20, ..small_tables() };
    let engine = open(&disk, TablesOptions { cache_bytes: 0, ..options }).unwrap();
    fill(&engine, 0..200, 20_000);
    let (mut next, mut steps) = (Some(0), 0);
    while let Some(position) = next {
        let before = disk.reads();
        next = engine.scrub(position, 4).unwrap().next_block;
        // Two values of three blocks each, beside blocks, index and filter of a table.
        let reads = disk.reads() - before;
        assert!(reads <= 2 + 4 + 3, "{reads} reads at {position}");
        steps += 1;
    }
    assert!(steps >= 100, "{steps} steps for 600 blocks of values");
    disk.flip("1.values", 8 * 150_000);
    let scrub = || {
        let mut next = Some(0);
        while let Some(position) = next {
            next = engine.scrub(position, 4)?.next_block;
        }
        Ok::<_, EngineError>(())
    };
    assert!(matches!(scrub(), Err(EngineError::Damaged { .. })));
}

/// The index of a table with long keys is a large part of it.
#[test]
fn an_index_stays_so_small_that_it_is_cached() {
    let disk = TestDisk::default();
    let engine =
        open(&disk, TablesOptions { block_bytes: 100, ..TablesOptions::default() }).unwrap();
    let long_key = |number: u32| Bytes::from([&[b'k'; 4000][..], &number.to_be_bytes()].concat());
    let mut batch = WriteBatch::default();
    (0..5000).for_each(|number| batch.put(long_key(number), Bytes::new()));
    engine.write_durably(&batch).unwrap();
    let tables = disk.names().iter().filter(|name| name.ends_with(".table")).count();
    assert!((2..4).contains(&tables), "{:?}", disk.names());
    for number in [0, 2500, 4999] {
        assert!(engine.get(&long_key(number)).unwrap().is_some());
        let before = disk.reads();
        assert!(engine.get(&long_key(number)).unwrap().is_some());
        assert_eq!(disk.reads(), before, "everything is in the cache");
    }
}
