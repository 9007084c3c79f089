//! The files of the engine of tables, byte for byte, beside the versions of their formats.

use std::fmt::Write;
use std::sync::Arc;

use super::block::TableValue;
use super::directory::{Expendable, TableDirectory};
use super::fuzzing;
use super::section::{self, Fields};
use super::table::{FOOTER_BYTES, Footer, TableFacts};
use super::table_writer::TableWriter;
use super::test_disk::TestDisk;
use super::values::ValueWriter;
use crate::model::Timestamp;
use crate::storage::formats::{compare, shown};
use crate::storage::keys;

/// A table with every kind of row, in two blocks, and the segment that it refers to.
fn table(disk: &TestDisk) -> TableFacts {
    let store = Arc::new(TableDirectory::new(Arc::new(disk.clone()), 2));
    let mut values = ValueWriter::create(&store, Expendable::No).unwrap();
    values.add(b"first").unwrap();
    let reference = values.add(b"long value").unwrap();
    values.finish().unwrap();
    let mut writer = TableWriter::create(&store, 60, Expendable::No).unwrap();
    let row = |key: &[u8], at| keys::version(key, Timestamp(at));
    writer.add(&row(b"a", 2), TableValue::Inline(b"value")).unwrap();
    writer.add(&row(b"a", 1), TableValue::Deleted).unwrap();
    writer.add(&row(b"b", 3), TableValue::Long(reference)).unwrap();
    writer.add(&keys::meta("fact"), TableValue::Inline(b"")).unwrap();
    writer.finish().unwrap()
}

#[test]
fn the_files_of_tables_are_those_of_their_formats() {
    let disk = TestDisk::default();
    let facts = table(&disk);
    let bytes = disk.bytes("2.table");
    let footer_at = bytes.len() - FOOTER_BYTES as usize;
    let place = section::Place { file: 2, position: footer_at as u64 };
    let footer = Footer::decode(section::open(place, &bytes[footer_at..]).unwrap()).unwrap();
    let mut listing = String::new();
    writeln!(listing, "format {}", super::table::FORMAT).unwrap();
    let (mut start, mut end) = (0, footer.blocks_bytes as usize);
    writeln!(listing, "    blocks {}", shown(&bytes[start..end])).unwrap();
    for (name, length) in [("index", footer.index_bytes), ("filter", footer.filter_bytes)] {
        (start, end) = (end, end + length as usize);
        writeln!(listing, "    {name} {}", shown(&bytes[start..end])).unwrap();
    }
    writeln!(listing, "    footer {}", shown(&bytes[footer_at..])).unwrap();
    writeln!(listing, "    values {}", shown(&disk.bytes("1.values"))).unwrap();
    assert_eq!((facts.rows, facts.deleted_rows, end), (4, 1, footer_at));
    compare("tables.txt", &listing, "FORMAT in src/storage/tables/table.rs");
}

#[test]
fn the_manifest_is_that_of_its_format() {
    let manifest = fuzzing::manifest_example().encode();
    let format = Fields(&manifest).u32().unwrap();
    let listing = format!("format {format}\n    {}\n", shown(&manifest));
    compare("tables_manifest.txt", &listing, "FORMAT in src/storage/tables/manifest.rs");
}
