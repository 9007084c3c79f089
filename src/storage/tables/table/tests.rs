//! Tables as they are written and read, and with every kind of damage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::storage::tables::block::TableValue;
use crate::storage::tables::directory::Expendable;
use crate::storage::tables::table_writer::TableWriter;
use crate::storage::tables::test_disk::TestDisk;

type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

fn store(disk: &TestDisk) -> Arc<TableDirectory> {
    Arc::new(TableDirectory::new(Arc::new(disk.clone()), 2))
}

fn write(store: &Arc<TableDirectory>, rows: &Rows, block_bytes: usize) -> TableFacts {
    let mut writer = TableWriter::create(store, block_bytes, Expendable::No).unwrap();
    for (key, value) in rows {
        let value = value.as_ref().map_or(TableValue::Deleted, |value| TableValue::Inline(value));
        writer.add(key, value).unwrap();
    }
    writer.finish().unwrap()
}

/// All that can be read of a table: its rows, and whether its filter knows them all.
fn read(disk: &TestDisk, facts: &TableFacts) -> Result<(Rows, bool), EngineError> {
    let cache = Arc::new(TableCache::new(1 << 20));
    let table = Table::open(&store(disk), &cache, facts.clone())?;
    let index = table.index(Access::Again)?;
    let mut rows = Rows::new();
    for at in 0..index.blocks() {
        let block = table.block(&index, at, Access::Again)?;
        for row in 0..block.rows() {
            let value = match block.value(row) {
                TableValue::Inline(value) => Some(value.to_vec()),
                TableValue::Deleted => None,
                TableValue::Long(value) => panic!("{value:?} was never written"),
            };
            rows.insert(block.key(row).to_vec(), value);
            assert_eq!(index.seek(block.key(row)), at);
        }
    }
    let mut all_known = true;
    for key in rows.keys() {
        if let Some(common) = crate::storage::keys::in_filter(key) {
            all_known &= table.may_have(common, Access::Again)?;
        }
    }
    Ok((rows, all_known))
}

fn some_rows() -> Rows {
    let row = |number: u32| {
        let value = (!number.is_multiple_of(5)).then(|| vec![number as u8; 4]);
        (format!("key {number:02}").into_bytes(), value)
    };
    (10..22).map(row).collect()
}

proptest! {
    #[test]
    fn a_table_has_the_rows_that_were_added(
        rows in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 0..12),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..30)),
            1..60,
        ),
        block_bytes in 1..300usize,
        wanted in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let disk = TestDisk::default();
        let facts = write(&store(&disk), &rows, block_bytes);
        prop_assert_eq!(facts.rows, rows.len() as u64);
        let deleted = rows.values().filter(|value| value.is_none()).count();
        prop_assert_eq!(facts.deleted_rows, deleted as u64);
        prop_assert_eq!(Some(&facts.first_key), rows.keys().next());
        prop_assert_eq!(Some(&facts.last_key), rows.keys().next_back());
        let cache = Arc::new(TableCache::new(1 << 20));
        let table = Table::open(&store(&disk), &cache, facts.clone()).unwrap();
        let index = table.index(Access::Once).unwrap();
        let found = index.seek(&wanted);
        let block = |at| table.block(&index, at, Access::Once).unwrap();
        let before = found.checked_sub(1).map(block);
        prop_assert!(before.is_none_or(|block| block.key(block.rows() - 1) < &wanted[..]));
        prop_assert_eq!(found == index.blocks(), wanted > facts.last_key);
        prop_assert_eq!(cache.bytes(), 0, "what is read once is not kept");
        prop_assert_eq!(read(&disk, &facts).unwrap(), (rows, true));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_damage() {
    let disk = TestDisk::default();
    let rows = some_rows();
    let facts = write(&store(&disk), &rows, 40);
    let bits = disk.bytes("1.table").len() * 8;
    for bit in 0..bits {
        disk.flip("1.table", bit);
        let error = read(&disk, &facts).unwrap_err();
        assert!(matches!(error, EngineError::Damaged { .. }), "bit {bit}: {error}");
        disk.flip("1.table", bit);
    }
    for length in 0..bits / 8 {
        let cut = disk.after_kill();
        cut.cut("1.table", length);
        // Also if the manifest had the shorter length.
        for facts in [facts.clone(), TableFacts { bytes: length as u64, ..facts.clone() }] {
            let error = read(&cut, &facts).unwrap_err();
            assert!(matches!(error, EngineError::Damaged { .. }), "{length} bytes: {error}");
        }
    }
    assert_eq!(read(&disk, &facts).unwrap(), (rows, true));
}

#[test]
fn a_part_in_the_place_of_another_is_damage() {
    let disk = TestDisk::default();
    let store = store(&disk);
    // Blocks of one row, all of one length.
    let rows: Rows = (0..6u8).map(|key| (vec![key], Some(vec![7]))).collect();
    let facts = write(&store, &rows, 1);
    let sound = disk.bytes("1.table");
    let cache = Arc::new(TableCache::new(0));
    let table = Table::open(&store, &cache, facts.clone()).unwrap();
    let block_bytes = table.footer.blocks_bytes as usize / 6;
    let mut bytes = sound.clone();
    bytes.copy_within(..block_bytes, block_bytes);
    disk.set_bytes("1.table", &bytes);
    assert!(matches!(read(&disk, &facts), Err(EngineError::Damaged { .. })));
    // Another table with the same rows, and a table with other rows of the same number.
    let other = write(&store, &rows, 1);
    disk.set_bytes("1.table", &disk.bytes("2.table"));
    assert!(matches!(read(&disk, &facts), Err(EngineError::Damaged { .. })));
    assert_eq!(read(&disk, &other).unwrap().0, rows);
    let earlier = TestDisk::default();
    let rows: Rows = (0..6u8).map(|key| (vec![key], Some(vec![8]))).collect();
    let of_earlier = write(&self::store(&earlier), &rows, 1);
    assert_eq!((of_earlier.number, of_earlier.bytes), (facts.number, facts.bytes));
    disk.set_bytes("1.table", &earlier.bytes("1.table"));
    read(&disk, &of_earlier).unwrap();
}

/// Checksums are made right again, so that it is the decoding that is judged.
#[test]
fn any_byte_of_index_filter_and_footer_decodes_or_is_a_typed_error() {
    let disk = TestDisk::default();
    let store = store(&disk);
    let facts = write(&store, &some_rows(), 40);
    let cache = Arc::new(TableCache::new(0));
    let table = Table::open(&store, &cache, facts.clone()).unwrap();
    let Footer { blocks_bytes, index_bytes, filter_bytes, .. } = table.footer;
    let sound = disk.bytes("1.table");
    let sections = [
        (blocks_bytes, index_bytes),
        (blocks_bytes + index_bytes, filter_bytes),
        (facts.bytes - FOOTER_BYTES, FOOTER_BYTES),
    ];
    for (start, length) in sections {
        for at in 0..(length - CHECKSUM_BYTES) as usize {
            for change in [1, 0x80, 0xff] {
                let mut bytes = sound.clone();
                bytes[start as usize + at] ^= change;
                let end = (start + length - CHECKSUM_BYTES) as usize;
                let place = section::Place { file: 1, position: start };
                let sum = section::checksum(place, &bytes[start as usize..end]);
                bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes());
                disk.set_bytes("1.table", &bytes);
                let footer_checksum =
                    u32::from_le_bytes(*bytes.last_chunk().expect("the table has a footer"));
                match read(&disk, &TableFacts { footer_checksum, ..facts.clone() }) {
                    Ok((rows, _)) => assert_eq!(rows, some_rows()),
                    Err(error) => assert!(matches!(error, EngineError::Damaged { .. }), "{error}"),
                }
            }
        }
    }
}

/// A table of such keys ended after some hundred rows, as its index was half of it.
#[test]
fn the_index_of_long_keys_is_a_small_part_of_a_table() {
    let disk = TestDisk::default();
    let mut writer = TableWriter::create(&store(&disk), 8192, Expendable::No).unwrap();
    let mut keys = (0..1000).map(|number| format!("{number:04}").repeat(1024).into_bytes());
    while !writer.is_full(u64::MAX)
        && let Some(key) = keys.next()
    {
        writer.add(&key, TableValue::Inline(b"value")).unwrap();
    }
    assert_eq!(keys.next(), None, "all of them are in one table");
    let facts = writer.finish().unwrap();
    let cache = Arc::new(TableCache::new(1 << 20));
    let table = Table::open(&store(&disk), &cache, facts).unwrap();
    let Footer { blocks_bytes, index_bytes, .. } = table.footer;
    assert!(index_bytes * 10 < blocks_bytes, "{index_bytes} beside {blocks_bytes}");
}

#[test]
fn a_write_that_is_stopped_anywhere_is_an_error() {
    let whole = TestDisk::default();
    write(&store(&whole), &some_rows(), 40);
    for stop_at in 1..=whole.operations() {
        let disk = TestDisk::default();
        disk.stop_at(stop_at);
        let written =
            TableWriter::create(&store(&disk), 40, Expendable::No).and_then(|mut table| {
                some_rows().keys().try_for_each(|key| table.add(key, TableValue::Deleted))?;
                table.finish()
            });
        assert!(matches!(written, Err(EngineError::File { .. })), "stopped at {stop_at}");
    }
}

#[test]
fn reads_that_the_system_refuses_are_not_damage() {
    let disk = TestDisk::default();
    let facts = write(&store(&disk), &some_rows(), 40);
    disk.refuse_reads(true);
    assert!(matches!(read(&disk, &facts), Err(EngineError::Read(_))));
    disk.refuse_reads(false);
    assert!(read(&disk, &facts).is_ok());
}
