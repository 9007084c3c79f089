//! Memory tables and runs together against a sorted map, in both directions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::storage::engine::WriteBatch;
use crate::storage::keys::RowRange;
use crate::storage::tables::cache::TableCache;
use crate::storage::tables::directory::{Expendable, TableDirectory};
use crate::storage::tables::memory_table::MemoryTable;
use crate::storage::tables::run::Run;
use crate::storage::tables::table::{Access, Table};
use crate::storage::tables::table_writer::TableWriter;
use crate::storage::tables::test_disk::TestDisk;

type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

fn random_key(rng: &mut StdRng) -> Vec<u8> {
    let length = rng.random_range(0..4);
    (0..length).map(|_| [0, 1, 97, 98, 255][rng.random_range(0..5)]).collect()
}

fn access(rng: &mut StdRng) -> Access {
    if rng.random() { Access::Again } else { Access::Once }
}

fn random_rows(rng: &mut StdRng) -> Rows {
    let count = rng.random_range(1..40);
    let row = |rng: &mut StdRng| {
        let value = vec![rng.random(); rng.random_range(0..9)];
        (random_key(rng), rng.random_bool(0.7).then_some(value))
    };
    (0..count).map(|_| row(rng)).collect()
}

/// A run whose tables and blocks have random sizes.
fn run(rng: &mut StdRng, rows: &Rows) -> Arc<Run> {
    let store = Arc::new(TableDirectory::new(Arc::new(TestDisk::default()), 2));
    let cache = Arc::new(TableCache::new(rng.random_range(0..8192)));
    let (block_bytes, table_bytes) = (rng.random_range(1..60), rng.random_range(1..400));
    let (mut tables, mut writer) = (Vec::new(), None);
    for (key, value) in rows {
        let mut table: TableWriter = writer
            .take()
            .unwrap_or_else(|| TableWriter::create(&store, block_bytes, Expendable::No).unwrap());
        let value = value.as_ref().map_or(TableValue::Deleted, |value| TableValue::Inline(value));
        table.add(key, value).unwrap();
        match table.bytes() >= table_bytes {
            true => tables.push(table.finish().unwrap()),
            false => writer = Some(table),
        }
    }
    tables.extend(writer.map(|table| table.finish().unwrap()));
    let open = |facts| Arc::new(Table::open(&store, &cache, facts).unwrap());
    let tables = tables.into_iter().map(open).collect();
    Arc::new(Run { first_seal: 1, last_seal: 1, from: Bytes::new(), tables })
}

fn memory_table(rows: &Rows) -> Arc<MemoryTable> {
    let table = MemoryTable::default();
    let mut batch = WriteBatch::default();
    for (key, value) in rows {
        match value {
            Some(value) => batch.put(key.clone().into(), value.clone().into()),
            None => batch.delete(key.clone().into()),
        }
    }
    table.write(1, &batch);
    Arc::new(table)
}

enum Layer {
    Memory(Arc<MemoryTable>),
    Run(Arc<Run>),
}

impl Layer {
    fn source(&self, range: &RowRange, direction: Direction, access: Access) -> MergeSource {
        match self {
            Layer::Memory(table) => {
                MergeSource::Memory(MemoryCursor::new(table.clone(), range.clone(), direction, 1))
            }
            Layer::Run(run) => MergeSource::Run(
                RunCursor::new(run.clone(), range.clone(), direction, access).unwrap(),
            ),
        }
    }
}

fn owned(row: Option<(&[u8], TableValue<'_>)>) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let (key, value) = row?;
    Some((
        key.to_vec(),
        match value {
            TableValue::Inline(value) => Some(value.to_vec()),
            TableValue::Deleted => None,
            TableValue::Long(value) => panic!("{value:?} was never written"),
        },
    ))
}

fn expected(
    rows: &Rows,
    range: &RowRange,
    direction: Direction,
) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let within = rows.iter().filter(|(key, _)| (&range.start..&range.end).contains(&&key[..]));
    let within = within.map(|(key, value)| (key.clone(), value.clone()));
    match direction {
        Direction::Forward => within.collect(),
        Direction::Reverse => within.rev().collect(),
    }
}

#[test]
fn sources_together_are_a_sorted_map_in_both_directions() {
    for seed in 0..400 {
        println!("seed {seed}");
        let rng = &mut StdRng::seed_from_u64(seed);
        let (mut layers, mut all) = (Vec::new(), Rows::new());
        let mut of_runs = Vec::new();
        for _ in 0..rng.random_range(1..7) {
            let rows = random_rows(rng);
            layers.insert(
                0,
                match rng.random_bool(0.3) {
                    true => Layer::Memory(memory_table(&rows)),
                    false => {
                        let run = run(rng, &rows);
                        of_runs.push((run.clone(), rows.clone()));
                        Layer::Run(run)
                    }
                },
            );
            all.extend(rows);
        }
        for _ in 0..20 {
            let (start, end) = (random_key(rng).into(), random_key(rng).into());
            let range = RowRange { start, end };
            for direction in [Direction::Forward, Direction::Reverse] {
                let sources = layers.iter().map(|it| it.source(&range, direction, access(rng)));
                let mut cursor = MergeCursor::new(sources.collect(), direction);
                let mut found = Vec::new();
                while let Some(row) = owned(cursor.row()) {
                    found.push(row);
                    cursor.advance().unwrap();
                }
                assert_eq!(found, expected(&all, &range, direction), "{range:?} {direction:?}");
            }
            let sources =
                layers.iter().map(|it| it.source(&range, Direction::Forward, access(rng)));
            let mut cursor = MergeCursor::new(sources.collect(), Direction::Forward);
            let mut left = range.clone();
            loop {
                let first = expected(&all, &left, Direction::Forward).into_iter().next();
                let found = owned(cursor.row());
                assert_eq!(found, first, "{left:?} of {range:?}");
                let Some((key, _)) = found else { break };
                // Forward, to where the cursor is, or back, where a seek changes nothing.
                let to = random_key(rng);
                left.start = match rng.random_bool(0.5) {
                    true => {
                        cursor.seek(&to).unwrap();
                        to.max(key).into()
                    }
                    false => {
                        cursor.advance().unwrap();
                        [&key[..], &[0]].concat().into()
                    }
                };
            }
            for (run, rows) in &of_runs {
                let found = run.get(&range.start, |value| owned(Some((&[], value)))).unwrap();
                let found = found.flatten().map(|(_, value)| value);
                assert_eq!(found.as_ref(), rows.get(&range.start[..]), "{range:?}");
                let has_rows = !expected(rows, &range, Direction::Forward).is_empty();
                assert!(!has_rows || run.may_have(&range).unwrap(), "{range:?}");
            }
        }
    }
}

/// A run that cannot have a key is not read for it.
#[test]
fn a_search_for_versions_asks_the_filter() {
    let row = |number: i64| {
        let key = format!("key {number}");
        (crate::storage::keys::version(key.as_bytes(), crate::model::Timestamp(number)), number)
    };
    let rows: Rows = (0..50).map(row).map(|(key, _)| (key.to_vec(), Some(Vec::new()))).collect();
    let run = run(&mut StdRng::seed_from_u64(1), &rows);
    let newest = crate::model::Timestamp(i64::MAX);
    let may_have = |number: i64| {
        let key = format!("key {number}");
        let range = crate::storage::keys::versions_up_to(key.as_bytes(), newest);
        run.may_have(&range).unwrap()
    };
    assert!((0..50).all(may_have));
    let wrong = (100..500).filter(|number| may_have(*number)).count();
    assert!(wrong < 40, "{wrong} of 400");
    let range = RowRange { start: Bytes::from_static(b"\x01key 1"), end: b"\x01key 2"[..].into() };
    assert!(run.may_have(&range).unwrap(), "a range of keys has no filter");
}
