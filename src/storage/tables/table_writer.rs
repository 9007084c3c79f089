//! Writes a table: rows in ascending order of keys become blocks, an index, a filter and a footer.
//!
//! The file is synced when it is whole, and is then opened through the facts that the manifest will
//! have of it. It belongs to the store only when the manifest names it. A writer that is dropped
//! before has left nothing.
//!
//! What a writer holds in memory: the block at hand, what the file has not taken yet, the index,
//! and eight bytes a key for the filter.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::block::{BlockBuilder, TableValue};
use super::directory::{Expendable, FileKind, FileWriter, TableDirectory};
use super::filter::FilterBuilder;
use super::section;
use super::table::{Footer, TableFacts, TableIndex};
use crate::storage::engine::EngineError;
use crate::storage::keys;

/// A table ends when its index, or its filter, has so many bytes: half of what one shard of the
/// cache holds, and a bound of what a writer holds. With keys of some kilobytes, a table of full
/// length had an index of 20 MiB, which each read of a row read again.
const PART_BYTES_MAX: usize = 1024 * 1024;

/// The index has a key for each block. With keys longer than this, blocks are longer, too: else a
/// table of keys of four kilobytes ended after some hundred rows, and the manifest, which names two
/// keys of each table, was a large part of what was written.
const SHORT_KEY_BYTES: usize = 512;
/// A block has at least so many times the bytes by which its last key is longer than a short one.
const LONG_KEYS_PER_BLOCK: usize = 16;

pub(super) struct TableWriter {
    file: FileWriter,
    /// A block ends with the row with which it reaches so many bytes.
    block_bytes: usize,
    block: BlockBuilder,
    index: Vec<u8>,
    filter: FilterBuilder,
    rows: u64,
    deleted_rows: u64,
    first_key: Vec<u8>,
    last_key: Vec<u8>,
    values: BTreeMap<u64, u64>,
}

impl TableWriter {
    /// Begins a table, which has a number from now on.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn create(
        store: &Arc<TableDirectory>,
        block_bytes: usize,
        expendable: Expendable,
    ) -> Result<TableWriter, EngineError> {
        Ok(TableWriter {
            file: store.create(FileKind::Table, expendable)?,
            block_bytes,
            block: BlockBuilder::default(),
            index: Vec::new(),
            filter: FilterBuilder::default(),
            rows: 0,
            deleted_rows: 0,
            first_key: Vec::new(),
            last_key: Vec::new(),
            values: BTreeMap::new(),
        })
    }

    /// Adds a row, whose key is greater than all before it.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn add(&mut self, key: &[u8], value: TableValue<'_>) -> Result<(), EngineError> {
        if self.rows == 0 {
            self.first_key = key.to_vec();
            TableIndex::begin(key, &mut self.index);
        }
        assert!(
            self.block.bytes() > 0 || self.rows == 0 || *self.last_key < *key,
            "the block with {key:?} after {:?}",
            self.last_key
        );
        self.rows += 1;
        match value {
            TableValue::Inline(_) => {}
            TableValue::Long(value) => {
                *self.values.entry(value.place.file).or_default() += u64::from(value.bytes);
            }
            TableValue::Deleted => self.deleted_rows += 1,
        }
        if let Some(known) = keys::in_filter(key) {
            self.filter.add(known);
        }
        self.block.add(key, value);
        let long_bytes = key.len().saturating_sub(SHORT_KEY_BYTES);
        let block_bytes = self.block_bytes.max(LONG_KEYS_PER_BLOCK * long_bytes);
        if self.block.bytes() >= block_bytes { self.end_block() } else { Ok(()) }
    }

    /// Whether the table ends here: it has so many bytes, or as many in its index or its filter as
    /// these may have.
    pub fn is_full(&self, table_bytes: u64) -> bool {
        self.bytes() >= table_bytes
            || self.index.len() >= PART_BYTES_MAX
            || self.filter.bytes() >= PART_BYTES_MAX
    }

    /// The bytes of the rows so far.
    pub fn bytes(&self) -> u64 {
        self.file.bytes() + self.block.bytes() as u64
    }

    fn end_block(&mut self) -> Result<(), EngineError> {
        let start = self.file.bytes();
        self.last_key.clear();
        self.last_key.extend_from_slice(self.block.last_key());
        self.file.append(|place, out| self.block.finish(place, out))?;
        let block_bytes = self.file.bytes() - start;
        let Ok(block_bytes) = u32::try_from(block_bytes) else {
            panic!("a block of {block_bytes} bytes, which a row's limits do not allow");
        };
        TableIndex::put(&self.last_key, block_bytes, &mut self.index);
        Ok(())
    }

    /// Makes the table durable, though not yet its name. It must have rows.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn finish(mut self) -> Result<TableFacts, EngineError> {
        assert!(self.rows > 0, "table {} has no rows", self.file.number);
        if self.block.bytes() > 0 {
            self.end_block()?;
        }
        let blocks_bytes = self.file.bytes();
        let index_bytes = append_section(&mut self.file, &self.index)?;
        let mut filter_bytes = 0;
        for part in self.filter.finish() {
            filter_bytes += append_section(&mut self.file, &part)?;
        }
        let (rows, deleted_rows) = (self.rows, self.deleted_rows);
        let footer = Footer { blocks_bytes, index_bytes, filter_bytes, rows, deleted_rows };
        let mut encoded = Vec::new();
        footer.encode(&mut encoded);
        let footer_checksum = section::checksum(self.file.place(), &encoded);
        append_section(&mut self.file, &encoded)?;
        Ok(TableFacts {
            number: self.file.number,
            bytes: self.file.finish()?,
            footer_checksum,
            rows,
            deleted_rows,
            first_key: self.first_key,
            last_key: self.last_key,
            values: self.values.into_iter().collect(),
        })
    }
}

/// Appends a section, and returns its length.
fn append_section(file: &mut FileWriter, bytes: &[u8]) -> Result<u64, EngineError> {
    let start = file.bytes();
    file.append(|place, out| {
        let start = out.len();
        out.extend_from_slice(bytes);
        section::seal(place, out, start);
    })?;
    Ok(file.bytes() - start)
}
