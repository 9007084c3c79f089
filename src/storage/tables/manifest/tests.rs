//! The manifest as it is written, damaged, and replaced by writes that are stopped anywhere.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::storage::tables::test_disk::TestDisk;

fn store(disk: &TestDisk) -> TableDirectory {
    TableDirectory::new(Arc::new(disk.clone()), 2)
}

fn table(number: u64, first_key: &str, last_key: &str, values: &[(u64, u64)]) -> TableFacts {
    let (first_key, last_key) = (first_key.as_bytes().to_vec(), last_key.as_bytes().to_vec());
    let (bytes, footer_checksum, values) = (1000 + number, number as u32, values.to_vec());
    TableFacts {
        number,
        bytes,
        footer_checksum,
        rows: 9,
        deleted_rows: 2,
        first_key,
        last_key,
        values,
    }
}

fn run(first_seal: u64, last_seal: u64, tables: &[TableFacts]) -> RunFacts {
    RunFacts { first_seal, last_seal, is_merging: false, tables: tables.to_vec() }
}

fn merging(first_seal: u64, last_seal: u64, tables: &[TableFacts]) -> RunFacts {
    RunFacts { is_merging: true, ..run(first_seal, last_seal, tables) }
}

fn sample() -> TableManifest {
    let older = [table(1, "a", "f", &[(2, 50), (4, 1)]), table(3, "g", "g", &[])];
    TableManifest {
        next_number: 9,
        rows: 70,
        long_value_bytes: 150,
        last_seal: 8,
        segments: [2, 4].map(|number| SegmentFacts { number, bytes: 100 }).to_vec(),
        runs: vec![run(7, 7, &[table(8, "a", "z", &[(4, 99)])]), run(1, 5, &older)],
    }
}

fn open(disk: &TestDisk) -> Result<TableManifest, EngineError> {
    TableManifest::open(&store(disk))
}

fn is_damage(opened: &Result<TableManifest, EngineError>) -> bool {
    matches!(opened, Err(EngineError::Damaged { .. }))
}

/// Creates the files that a manifest names, and makes their names durable with it.
fn write(disk: &TestDisk, manifest: &TableManifest) {
    for (kind, number) in manifest.files() {
        if !disk.names().contains(&kind.name(number)) {
            crate::storage::files::Directory::create(disk, &kind.name(number)).unwrap();
        }
    }
    manifest.store(&store(disk)).unwrap();
}

#[test]
fn it_is_read_as_it_was_written_and_damage_of_any_bit_or_length_is_found() {
    let disk = TestDisk::default();
    write(&disk, &sample());
    assert_eq!(open(&disk).unwrap(), sample());
    let sound = disk.bytes(MANIFEST);
    for bit in 0..sound.len() * 8 {
        disk.flip(MANIFEST, bit);
        assert!(is_damage(&open(&disk)), "bit {bit}");
        disk.flip(MANIFEST, bit);
    }
    for length in 0..sound.len() {
        disk.set_bytes(MANIFEST, &sound[..length]);
        assert!(is_damage(&open(&disk)), "{length} bytes");
    }
    assert_eq!(disk.names().len(), 6, "nothing is removed by a manifest that is not sound");
    disk.set_bytes(MANIFEST, &sound);
    assert_eq!(open(&disk).unwrap(), sample());
}

#[test]
fn tables_without_a_manifest_are_damage_and_no_blank_store() {
    let disk = TestDisk::default();
    let blank = open(&disk).unwrap();
    assert_eq!(blank, TableManifest { next_number: 1, ..TableManifest::default() });
    assert_eq!(open(&disk).unwrap(), blank);
    write(&disk, &sample());
    crate::storage::files::Directory::remove(&disk, MANIFEST).unwrap();
    assert!(is_damage(&open(&disk)));
    assert_eq!(disk.names().len(), 5, "and they are left as they are");
}

#[test]
fn what_it_does_not_name_is_removed_and_the_number_not_used_again() {
    let disk = TestDisk::default();
    write(&disk, &sample());
    for name in ["9.table", "17.values", "2.table", "MANIFEST.new", "notes.txt", "070.table"] {
        crate::storage::files::Directory::create(&disk, name).unwrap();
    }
    let store = store(&disk);
    assert_eq!(TableManifest::open(&store).unwrap(), sample());
    assert_eq!(store.next_number(), 18);
    let expected = [
        "070.table",
        "1.table",
        "2.values",
        "3.table",
        "4.values",
        "8.table",
        MANIFEST,
        "notes.txt",
    ];
    assert_eq!(disk.names(), expected, "foreign files stay");
}

/// Before each operation in turn the process is killed, or the power goes.
#[test]
fn a_stop_anywhere_leaves_the_old_one_or_the_new_one_with_all_its_files() {
    let old = sample();
    let mut new = sample();
    (new.next_number, new.last_seal) = (12, 9);
    new.runs.insert(0, run(9, 9, &[table(11, "k", "l", &[])]));
    let prepared = || {
        let disk = TestDisk::default();
        write(&disk, &old);
        disk
    };
    let whole = prepared();
    let before = whole.operations();
    write(&whole, &new);
    let mut outcomes = BTreeSet::new();
    for stop_at in before + 2..=whole.operations() + 1 {
        let disk = prepared();
        crate::storage::files::Directory::create(&disk, "11.table").unwrap();
        disk.stop_at(stop_at);
        let stored = new.store(&store(&disk));
        assert_eq!(stored.is_err(), stop_at <= whole.operations());
        for crashed in [disk.after_kill(), disk.after_power_loss()] {
            let found = open(&crashed).unwrap();
            assert!(found == old || found == new, "stopped at {stop_at}: {found:?}");
            assert!(stored.is_err() || found == new, "a stored manifest stays");
            let names = crashed.names();
            let named = found.files().into_iter().map(|(kind, number)| kind.name(number));
            named.for_each(|name| assert!(names.contains(&name), "{name} at {stop_at}"));
            outcomes.insert(found.last_seal);
        }
    }
    assert_eq!(outcomes.len(), 2, "both outcomes were met");
}

#[test]
fn a_blank_store_that_was_stopped_anywhere_is_begun_again() {
    let whole = TestDisk::default();
    open(&whole).unwrap();
    for stop_at in 1..=whole.operations() {
        let disk = TestDisk::default();
        disk.stop_at(stop_at);
        assert!(open(&disk).is_err());
        for crashed in [disk.after_kill(), disk.after_power_loss()] {
            assert_eq!(open(&crashed).unwrap().runs, [], "stopped at {stop_at}");
        }
    }
}

#[test]
fn a_manifest_that_contradicts_itself_is_damage() {
    let broken: [fn(&mut TableManifest); 12] = [
        |it| it.runs.reverse(),
        |it| it.runs[0].first_seal = 5,
        |it| it.runs[0].first_seal = 8,
        |it| it.last_seal = 6,
        |it| it.runs[1].tables.reverse(),
        |it| it.runs[1].tables.clear(),
        |it| it.runs[1].tables[0].last_key = b"g".to_vec(),
        |it| it.runs[1].tables[0].number = 8,
        |it| it.runs[1].tables[0].rows = 1,
        |it| it.segments.truncate(1),
        |it| it.segments[0].number = 3,
        |it| it.next_number = 8,
    ];
    for (number, change) in broken.into_iter().enumerate() {
        let mut manifest = sample();
        change(&mut manifest);
        let decoded = TableManifest::decode(&manifest.encode());
        assert!(matches!(decoded, Err(SectionError::Encoding(_))), "{number}: {decoded:?}");
    }
}

proptest! {
    /// The checksum is made right, so that it is the decoding that is judged.
    #[test]
    fn any_bytes_are_a_manifest_or_a_typed_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        garbage in prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
    ) {
        let mut bytes = sample().encode();
        bytes.truncate(bytes.len() - 4);
        if let Some(garbage) = garbage {
            bytes.truncate(4);
            bytes.extend(garbage);
        }
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        section::seal(PLACE, &mut bytes, 0);
        if let Ok(manifest) = TableManifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes);
        }
    }
}

/// A merge that has come up to "k": one of its tables begins before.
#[test]
fn a_merge_under_way_has_its_outcome_before_its_runs_and_nothing_that_is_used_up() {
    let outcome = || run(2, 6, &[table(1, "a", "f", &[]), table(2, "g", "k", &[])]);
    let (newer, older) =
        (merging(5, 6, &[table(3, "h", "m", &[])]), merging(2, 3, &[table(4, "p", "z", &[])]));
    let manifest = |runs: Vec<RunFacts>| TableManifest {
        next_number: 9,
        rows: 70,
        long_value_bytes: 0,
        last_seal: 8,
        segments: Vec::new(),
        runs,
    };
    let oldest = || run(1, 1, &[table(7, "a", "z", &[])]);
    let newest = || run(7, 7, &[table(8, "a", "z", &[])]);
    let good = manifest(vec![newest(), outcome(), newer.clone(), older.clone(), oldest()]);
    assert_eq!(good.check(), Ok(()));
    let disk = TestDisk::default();
    write(&disk, &good);
    assert_eq!(open(&disk).unwrap(), good);
    let used_up = merging(5, 6, &[table(3, "h", "k", &[])]);
    let bad = [
        vec![outcome(), used_up],
        vec![newer.clone(), older.clone()],
        vec![outcome(), older, newer.clone()],
        vec![outcome(), merging(1, 1, &[table(3, "p", "q", &[])])],
        vec![outcome(), merging(6, 7, &[table(3, "p", "q", &[])])],
        vec![outcome(), newer, run(2, 2, &[table(4, "p", "z", &[])])],
    ];
    for runs in bad {
        let manifest = manifest(runs);
        assert!(manifest.check().is_err(), "{manifest:?}");
    }
}
