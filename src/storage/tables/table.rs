//! A table: an immutable file of rows in ascending order of keys.
//!
//! ```text
//! N.table := block* | index | filter | footer        all of them sections, the filter several
//! index   := first key of the table | entry*
//! entry   := last key of a block | its length u32    keys with their length u16 before them
//! footer  := format u32 | bytes of all blocks u64 | of the index u64 | of the filter u64
//!            | rows u64 | deleted rows u64
//! ```
//!
//! Opening reads the footer alone, which must be the one that the manifest knows: it names the
//! file's length and the checksum of the footer, so that a file that is short, old or another's is
//! found before any row is read. Index, filter and blocks are read when they are needed, and kept
//! in the cache.
//!
//! The index has last keys: a key behind the last row of one block and before the first of the next
//! leads to the next one, and not into a block that it is not in.
//!
//! What it leaves out: steps from block to block, which `run` makes.

use std::sync::Arc;

use super::block::Block;
use super::cache::{Cached, TableCache};
use super::directory::{FileKind, StoreFile, TableDirectory};
use super::filter::{FilterLayout, FilterPart};
use super::section::{self, Fields, SectionError, put_key};
use crate::storage::engine::EngineError;

pub(super) const FORMAT: u32 = 3;
const CHECKSUM_BYTES: u64 = 4;
/// Bytes of the footer with its checksum.
pub(super) const FOOTER_BYTES: u64 = 4 + 5 * 8 + CHECKSUM_BYTES;

/// Facts about a table, as they stand in the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TableFacts {
    pub number: u64,
    pub bytes: u64,
    pub footer_checksum: u32,
    /// The number of rows, deleted ones included.
    pub rows: u64,
    pub deleted_rows: u64,
    pub first_key: Vec<u8>,
    pub last_key: Vec<u8>,
    /// The value segments that its rows refer to, in ascending order, with the bytes of these
    /// values.
    pub values: Vec<(u64, u64)>,
}

/// The end of a table's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Footer {
    pub blocks_bytes: u64,
    pub index_bytes: u64,
    pub filter_bytes: u64,
    pub rows: u64,
    pub deleted_rows: u64,
}

impl Footer {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&FORMAT.to_le_bytes());
        let Footer { blocks_bytes, index_bytes, filter_bytes, rows, deleted_rows } = self;
        for field in [blocks_bytes, index_bytes, filter_bytes, rows, deleted_rows] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Footer, SectionError> {
        let mut fields = Fields(bytes);
        if fields.u32() != Some(FORMAT) {
            return Err(SectionError::Encoding("the table is not of this release's format"));
        }
        Footer::decode_fields(&mut fields)
            .filter(|_| fields.0.is_empty())
            .ok_or(SectionError::Encoding("the footer is not in its encoding"))
    }

    fn decode_fields(fields: &mut Fields<'_>) -> Option<Footer> {
        Some(Footer {
            blocks_bytes: fields.u64()?,
            index_bytes: fields.u64()?,
            filter_bytes: fields.u64()?,
            rows: fields.u64()?,
            deleted_rows: fields.u64()?,
        })
    }

    /// Where the footer begins, if the parts before it fill the file.
    fn position(&self) -> Option<u64> {
        self.blocks_bytes.checked_add(self.index_bytes)?.checked_add(self.filter_bytes)
    }
}

/// Where the blocks of a table lie, and which keys are in each of them.
#[derive(Debug)]
pub(super) struct TableIndex {
    /// The keys, one after the other.
    keys: Box<[u8]>,
    /// Of each block, in order.
    entries: Box<[IndexEntry]>,
}

#[derive(Clone, Copy, Debug)]
struct IndexEntry {
    /// The end of the last key in `keys`.
    key_end: u32,
    /// The end of the block in the file.
    block_end: u64,
}

impl TableIndex {
    /// Begins an index with the first key of the table.
    pub fn begin(first_key: &[u8], out: &mut Vec<u8>) {
        put_key(first_key, out);
    }

    /// Adds the next block.
    pub fn put(last_key: &[u8], block_bytes: u32, out: &mut Vec<u8>) {
        put_key(last_key, out);
        out.extend_from_slice(&block_bytes.to_le_bytes());
    }

    /// The index in these bytes, whose blocks must be in order and fill what the footer says.
    pub fn decode(
        bytes: &[u8],
        facts: &TableFacts,
        footer: &Footer,
    ) -> Result<TableIndex, SectionError> {
        let cut_short = SectionError::Encoding("the index is cut short");
        let mut fields = Fields(bytes);
        if fields.key().ok_or(cut_short)? != facts.first_key {
            return Err(SectionError::Encoding("the index begins with another key"));
        }
        let (mut keys, mut entries) = (Vec::new(), Vec::<IndexEntry>::new());
        let (mut last_key, mut end) = (&facts.first_key[..], 0u64);
        while !fields.0.is_empty() {
            let key = fields.key().ok_or(cut_short)?;
            let block_bytes = fields.u32().ok_or(cut_short)?;
            end = end.saturating_add(u64::from(block_bytes));
            keys.extend_from_slice(key);
            let key_end = u32::try_from(keys.len())
                .map_err(|_| SectionError::Encoding("the index has too many keys"))?;
            // A block may have one row, the table's first.
            if key < last_key || (key == last_key && !entries.is_empty()) {
                return Err(SectionError::Encoding("the blocks of the index are not in order"));
            }
            last_key = key;
            entries.push(IndexEntry { key_end, block_end: end });
        }
        if entries.is_empty() || end != footer.blocks_bytes || last_key != facts.last_key {
            return Err(SectionError::Encoding("the index is not of this table"));
        }
        Ok(TableIndex { keys: keys.into(), entries: entries.into() })
    }

    /// The number of blocks, at least one.
    pub fn blocks(&self) -> usize {
        self.entries.len()
    }

    /// The first block with a key that is not less than `key`, or the number of blocks.
    pub fn seek(&self, key: &[u8]) -> usize {
        self.seek_from(0, key)
    }

    /// The same from a block on.
    pub fn seek_from(&self, block: usize, key: &[u8]) -> usize {
        let (mut low, mut high) = (block, self.blocks());
        if low < high && self.last_key(low) >= key {
            return low;
        }
        while low < high {
            let middle = low.midpoint(high);
            if self.last_key(middle) < key { low = middle + 1 } else { high = middle }
        }
        low
    }

    pub fn memory_bytes(&self) -> usize {
        size_of::<TableIndex>() + self.keys.len() + self.entries.len() * size_of::<IndexEntry>()
    }

    /// The key of the last row of a block.
    pub fn last_key(&self, block: usize) -> &[u8] {
        let start = block.checked_sub(1).map_or(0, |before| self.entries[before].key_end);
        &self.keys[start as usize..self.entries[block].key_end as usize]
    }

    /// Where a block begins and ends in the file.
    pub fn extent(&self, block: usize) -> (u64, u64) {
        let start = block.checked_sub(1).map_or(0, |before| self.entries[before].block_end);
        (start, self.entries[block].block_end)
    }
}

/// How parts of tables are had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// What is read is likely to be read again, and is added to the cache.
    Again,
    /// Each part is read once: what is not in the cache is not added to it.
    Once,
    /// Nothing is read: what is not in the cache is [`EngineError::NotInMemory`].
    CacheOnly,
}

pub(super) struct Table {
    facts: TableFacts,
    footer: Footer,
    filter: FilterLayout,
    file: StoreFile,
    cache: Arc<TableCache>,
}

impl Table {
    /// Opens a table of the manifest.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn open(
        store: &Arc<TableDirectory>,
        cache: &Arc<TableCache>,
        facts: TableFacts,
    ) -> Result<Table, EngineError> {
        let file = store.open(FileKind::Table, facts.number, facts.bytes)?;
        let position = facts.bytes.saturating_sub(FOOTER_BYTES);
        let bytes = file.read(position, FOOTER_BYTES.min(facts.bytes))?;
        let checksum = bytes.last_chunk().map(|sum| u32::from_le_bytes(*sum));
        let footer = section::open(file.place(position), &bytes)
            .and_then(Footer::decode)
            .map_err(|error| file.damaged(position, error))?;
        let is_known = checksum == Some(facts.footer_checksum)
            && footer.position() == Some(position)
            && (footer.rows, footer.deleted_rows) == (facts.rows, facts.deleted_rows);
        if !is_known {
            return Err(file.damaged(position, "it is not the footer that the manifest knows"));
        }
        let filter = FilterLayout::of(footer.filter_bytes)
            .ok_or_else(|| file.damaged(position, "its filter is not of whole lines"))?;
        Ok(Table { facts, footer, filter, file, cache: cache.clone() })
    }

    pub fn facts(&self) -> &TableFacts {
        &self.facts
    }

    /// Has the file removed with the last reader of this table.
    pub fn set_obsolete(&self) {
        self.file.set_obsolete();
    }

    /// Whether a row may be in the table whose key without its timestamp is this.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`], [`EngineError::NotInMemory`].
    pub fn may_have(&self, common: &[u8], access: Access) -> Result<bool, EngineError> {
        let part = self.filter.part_of(common);
        let (position, _) = self.filter_extent(part);
        if let Some(Cached::Filter(filter)) = self.cache.get(self.file.place(position)) {
            return Ok(filter.may_have(common, self.filter));
        }
        let filter = self.had(position, access, || self.read_filter(part), Cached::Filter)?;
        Ok(filter.may_have(common, self.filter))
    }

    /// Has a part that is not in the cache.
    fn had<T>(
        &self,
        position: u64,
        access: Access,
        read: impl FnOnce() -> Result<T, EngineError>,
        cached: impl FnOnce(Arc<T>) -> Cached,
    ) -> Result<Arc<T>, EngineError> {
        if access == Access::CacheOnly {
            return Err(EngineError::NotInMemory);
        }
        let part = Arc::new(read()?);
        if access == Access::Again {
            self.cache.add(self.file.place(position), cached(part.clone()));
        }
        Ok(part)
    }

    /// The index of the table, from the cache if it is there.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`], [`EngineError::NotInMemory`].
    pub fn index(&self, access: Access) -> Result<Arc<TableIndex>, EngineError> {
        let position = self.footer.blocks_bytes;
        if let Some(Cached::Index(index)) = self.cache.get(self.file.place(position)) {
            return Ok(index);
        }
        self.had(position, access, || self.read_index(), Cached::Index)
    }

    /// The index of the table as it is on the disk.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn read_index(&self) -> Result<TableIndex, EngineError> {
        let Footer { blocks_bytes, index_bytes, .. } = self.footer;
        self.file.read_section(blocks_bytes, index_bytes, |bytes| {
            TableIndex::decode(bytes, &self.facts, &self.footer)
        })
    }

    /// The number of parts of the filter.
    pub fn filter_parts(&self) -> usize {
        self.filter.parts()
    }

    /// Where a part of the filter begins in the file, and its bytes.
    fn filter_extent(&self, part: usize) -> (u64, u64) {
        let (start, bytes) = self.filter.extent(part);
        (self.footer.blocks_bytes + self.footer.index_bytes + start, bytes)
    }

    /// Reads a part of the filter from the disk.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn read_filter(&self, part: usize) -> Result<FilterPart, EngineError> {
        let (position, bytes) = self.filter_extent(part);
        self.file.read_section(position, bytes, FilterPart::decode)
    }

    /// A block of the table, from the cache if it is there.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`], [`EngineError::NotInMemory`].
    pub fn block(
        &self,
        index: &TableIndex,
        block: usize,
        access: Access,
    ) -> Result<Arc<Block>, EngineError> {
        let (start, _) = index.extent(block);
        if let Some(Cached::Block(block)) = self.cache.get(self.file.place(start)) {
            return Ok(block);
        }
        self.had(start, access, || self.read_block(index, block), Cached::Block)
    }

    /// A block of the table as it is on the disk.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn read_block(&self, index: &TableIndex, block: usize) -> Result<Block, EngineError> {
        let (start, end) = index.extent(block);
        let bytes = self.file.read(start, end - start)?;
        let decoded = Block::decode(self.file.place(start), bytes)
            .map_err(|error| self.file.damaged(start, error))?;
        // The last key is the one by which the block was found.
        match decoded.key(decoded.rows() - 1) == index.last_key(block) {
            true => Ok(decoded),
            false => Err(self.file.damaged(start, "the block is not the one of the index")),
        }
    }
}

#[cfg(test)]
mod tests;
