//! The decoders of files under any bytes, for fuzzers: with the checksum made right, which a fuzzer
//! does not find, each answers with a value or a typed error, and a value is what its bytes say.
//!
//! What it leaves out: reading files, and damage that the checksum finds, which unit tests have.

use super::block::{Block, BlockBuilder, TableValue};
use super::filter::{FilterLayout, FilterPart};
use super::manifest::{RunFacts, TableManifest};
use super::section::{self, Fields, Place};
use super::table::{Footer, TableFacts, TableIndex};
use super::values::SegmentFacts;

const PLACE: Place = Place { file: 3, position: 77 };

/// The first byte chooses the decoder of the rest.
///
/// # Panics
///
/// If a decoder accepts what is not consistent.
pub fn decode(data: &[u8]) {
    let Some((decoder, bytes)) = data.split_first() else { return };
    match decoder % 5 {
        0 => block(bytes),
        1 => footer(bytes),
        2 => index(bytes),
        3 => manifest(bytes),
        _ => filter(bytes),
    }
}

fn sealed(place: Place, bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    section::seal(place, &mut sealed, 0);
    sealed
}

fn block(bytes: &[u8]) {
    let Ok(block) = Block::decode(PLACE, sealed(PLACE, bytes)) else { return };
    assert!(block.rows() > 0 && block.rows() <= bytes.len(), "{} rows", block.rows());
    let (mut builder, mut again) = (BlockBuilder::default(), Vec::new());
    for row in 0..block.rows() {
        assert_eq!(block.seek(block.key(row)), row);
        builder.add(block.key(row), block.value(row));
    }
    builder.finish(PLACE, &mut again);
    assert_eq!(again, sealed(PLACE, bytes));
}

fn footer(bytes: &[u8]) {
    let Ok(footer) = Footer::decode(bytes) else { return };
    let mut again = Vec::new();
    footer.encode(&mut again);
    assert_eq!(again, bytes);
}

/// The facts about the table are those that the index would have to match.
fn index(bytes: &[u8]) {
    let mut fields = Fields(bytes);
    let Some(first_key) = fields.key() else { return };
    let (mut last_key, mut blocks_bytes, mut blocks) = (first_key, 0u64, 0);
    while let (Some(key), Some(block_bytes)) = (fields.key(), fields.u32()) {
        (last_key, blocks) = (key, blocks + 1);
        blocks_bytes += u64::from(block_bytes);
    }
    let (first_key, last_key) = (first_key.to_vec(), last_key.to_vec());
    let facts = TableFacts { first_key, last_key, ..TableFacts::default() };
    let footer = Footer { blocks_bytes, ..Footer::default() };
    let Ok(index) = TableIndex::decode(bytes, &facts, &footer) else { return };
    assert_eq!(index.blocks(), blocks);
    assert_eq!(index.seek(&facts.last_key), blocks - 1);
    assert_eq!(index.seek(&[&facts.last_key[..], &[0]].concat()), blocks);
    let mut again = Vec::new();
    TableIndex::begin(&facts.first_key, &mut again);
    let mut end = 0;
    for block in 0..blocks {
        let (start, block_end) = index.extent(block);
        assert_eq!(start, end);
        TableIndex::put(index.last_key(block), (block_end - start) as u32, &mut again);
        end = block_end;
    }
    assert_eq!(again, bytes);
}

fn manifest(bytes: &[u8]) {
    let sealed = sealed(Place { file: 0, position: 0 }, bytes);
    let Ok(manifest) = TableManifest::decode(&sealed) else { return };
    assert_eq!(manifest.check(), Ok(()));
    assert_eq!(manifest.encode(), sealed);
}

fn filter(bytes: &[u8]) {
    let (key, lines) = bytes.split_at(bytes.len().min(9));
    let layout = FilterLayout::of(lines.len() as u64 + 4).filter(|layout| layout.parts() == 1);
    if let (Ok(part), Some(layout)) = (FilterPart::decode(lines), layout) {
        let _ = part.may_have(key, layout);
        assert!(part.memory_bytes() < lines.len() + 100);
    }
}

/// Inputs to begin with, one for each decoder.
pub fn examples() -> Vec<Vec<u8>> {
    let mut examples: Vec<Vec<u8>> = (0..5).map(|decoder| vec![decoder]).collect();
    let (mut builder, mut block) = (BlockBuilder::default(), Vec::new());
    builder.add(b"a", TableValue::Inline(b"value"));
    builder.add(b"b", TableValue::Deleted);
    builder.finish(PLACE, &mut block);
    examples[0].extend_from_slice(&block[..block.len() - 4]);
    Footer { blocks_bytes: 9, index_bytes: 8, filter_bytes: 68, rows: 2, deleted_rows: 1 }
        .encode(&mut examples[1]);
    TableIndex::begin(b"a", &mut examples[2]);
    TableIndex::put(b"b", 40, &mut examples[2]);
    TableIndex::put(b"d", 50, &mut examples[2]);
    let manifest = manifest_example().encode();
    examples[3].extend_from_slice(&manifest[..manifest.len() - 4]);
    examples[4].extend_from_slice(&[7; 9 + 64]);
    examples
}

/// A manifest with a seal, a merge that is not finished, and long values.
pub(super) fn manifest_example() -> TableManifest {
    let table = |number, first_key: &str, last_key: &str, values: &[(u64, u64)]| TableFacts {
        number,
        bytes: 1000 + number,
        footer_checksum: number as u32,
        rows: 9,
        deleted_rows: 2,
        first_key: first_key.into(),
        last_key: last_key.into(),
        values: values.to_vec(),
    };
    let run = |first_seal, last_seal, is_merging, tables: &[TableFacts]| RunFacts {
        first_seal,
        last_seal,
        is_merging,
        tables: tables.to_vec(),
    };
    TableManifest {
        next_number: 9,
        rows: 70,
        long_value_bytes: 5000,
        last_seal: 8,
        segments: [2, 4].map(|number| SegmentFacts { number, bytes: 100 }).to_vec(),
        runs: vec![
            run(7, 7, false, &[table(8, "a", "z", &[(4, 99)])]),
            run(2, 5, false, &[table(1, "a", "f", &[(2, 50), (4, 1)]), table(3, "g", "g", &[])]),
            run(4, 5, true, &[table(5, "f", "p", &[])]),
            run(1, 1, false, &[table(6, "b", "c", &[(2, 10)])]),
        ],
    }
}
