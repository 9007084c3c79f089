//! A run: tables whose keys do not overlap, in order, which together are the rows of a contiguous
//! stretch of seals. And a cursor over it, in either direction.
//!
//! A cursor keeps its direction: the scans above never turn round, and a cursor that may turn has
//! twice the states. It holds the block it is at, so a block that the cache evicts meanwhile stays.
//! In each block it looks up once where the range begins and ends; the steps within are by number,
//! without comparing keys.
//!
//! What it leaves out: runs beside each other, which `merge` puts together.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::block::{Block, TableValue};
use super::manifest::SealNumber;
use super::table::{Access, Table, TableIndex};
use crate::storage::engine::{Direction, EngineError};
use crate::storage::keys::{self, RowRange};

pub(super) struct Run {
    pub first_seal: SealNumber,
    pub last_seal: SealNumber,
    /// The rows before this key are not the run's any more: the outcome of a merge that is not
    /// finished has them. Empty if all rows are the run's.
    pub from: Bytes,
    /// In ascending order of keys, at least one.
    pub tables: Vec<Arc<Table>>,
}

impl Run {
    /// Whether a merge has taken rows from it, and is not finished.
    pub fn is_merging(&self) -> bool {
        !self.from.is_empty()
    }

    /// The part of a range that is the run's.
    fn own(&self, range: &RowRange) -> RowRange {
        let start = if range.start < self.from { &self.from } else { &range.start };
        RowRange { start: start.clone(), end: range.end.clone() }
    }

    /// The length of its files, without long values.
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.facts().bytes).sum()
    }

    /// The number of rows, deleted ones included.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.facts().rows).sum()
    }

    pub fn deleted_rows(&self) -> u64 {
        self.tables.iter().map(|table| table.facts().deleted_rows).sum()
    }

    /// Shows the state of a row, if the run has one.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn get<T>(
        &self,
        key: &[u8],
        show: impl FnOnce(TableValue<'_>) -> T,
    ) -> Result<Option<T>, EngineError> {
        if *key < *self.from {
            return Ok(None);
        }
        let common = keys::in_filter(key);
        let is_wanted = |found: &[u8]| found == key;
        self.at_or_after(key, is_wanted, common, Access::Again, |_, value| show(value))
    }

    /// Shows the first state of a row of a range, if the run has one; `common` is
    /// [`keys::common_to`] the range.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`], [`EngineError::NotInMemory`].
    pub fn first<T>(
        &self,
        range: &RowRange,
        common: Option<&[u8]>,
        access: Access,
        show: impl FnOnce(&[u8], TableValue<'_>) -> T,
    ) -> Result<Option<T>, EngineError> {
        let start = if range.start < self.from { &self.from } else { &range.start };
        if *start >= range.end {
            return Ok(None);
        }
        self.at_or_after(start, |found| *found < *range.end, common, access, show)
    }

    /// Shows the first state of a row that is not less than `start`, if it is wanted. Of the wanted
    /// rows not less than `start` none is behind an unwanted one, and `common` is what filters know
    /// of all of them, if it is the same.
    ///
    /// Reads one block at most, and none if the bounds of the tables or the filter tell that there
    /// is no such row: the bounds are known without reading, so they are asked first.
    fn at_or_after<T>(
        &self,
        start: &[u8],
        is_wanted: impl Fn(&[u8]) -> bool,
        common: Option<&[u8]>,
        access: Access,
        show: impl FnOnce(&[u8], TableValue<'_>) -> T,
    ) -> Result<Option<T>, EngineError> {
        let at = self.tables.partition_point(|table| table.facts().last_key[..] < *start);
        let Some(table) = self.tables.get(at) else { return Ok(None) };
        let first_key = &table.facts().first_key[..];
        if first_key > start && !is_wanted(first_key) {
            return Ok(None);
        }
        // If wanted rows go on in the next table, then the last of this one is wanted, and its
        // filter knows it.
        if let Some(common) = common
            && !table.may_have(common, access)?
        {
            return Ok(None);
        }
        let index = table.index(access)?;
        // Neither is beyond the end, as the last key of the table and of the block is not less.
        let block = table.block(&index, index.seek(start), access)?;
        let row = block.seek(start);
        let key = block.key(row);
        Ok(is_wanted(key).then(|| show(key, block.value(row))))
    }

    /// The tables that can have rows of a range, which is the run's.
    fn tables_of(&self, range: &RowRange) -> Range<usize> {
        let first = self.tables.partition_point(|table| table.facts().last_key[..] < range.start);
        let end = self.tables.partition_point(|table| table.facts().first_key[..] < range.end);
        first..end
    }

    /// Whether the run may have rows of a range.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn may_have(&self, range: &RowRange) -> Result<bool, EngineError> {
        let own = self.own(range);
        if own.start >= own.end {
            return Ok(false);
        }
        let tables = self.tables_of(&own);
        let Some(common) = keys::common_to(range) else { return Ok(!tables.is_empty()) };
        for table in tables {
            if self.tables[table].may_have(common, Access::Again)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A row of a run, and the way from there to the others of a range.
pub(super) struct RunCursor {
    run: Arc<Run>,
    range: RowRange,
    direction: Direction,
    access: Access,
    /// Tables that are still to come.
    tables: Range<usize>,
    /// `None` at the end of the range.
    at: Option<BlockPosition>,
}

/// Where in a table a cursor is.
struct BlockPosition {
    table: usize,
    index: Arc<TableIndex>,
    number: usize,
    block: Arc<Block>,
    /// The rows of the block that are within the range and not done, at least one. The cursor is
    /// at their first or last.
    rows: Range<usize>,
}

impl RunCursor {
    /// A cursor at the first row of a range in a direction.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn new(
        run: Arc<Run>,
        range: RowRange,
        direction: Direction,
        access: Access,
    ) -> Result<RunCursor, EngineError> {
        let range = run.own(&range);
        let tables = if range.start < range.end { run.tables_of(&range) } else { 0..0 };
        let mut cursor = RunCursor { run, range, direction, access, tables, at: None };
        cursor.enter_next_table()?;
        Ok(cursor)
    }

    /// The row that the cursor is at; `None` at the end of the range.
    pub fn row(&self) -> Option<(&[u8], TableValue<'_>)> {
        let at = self.at.as_ref()?;
        let row = self.row_number(at);
        Some((at.block.key(row), at.block.value(row)))
    }

    /// The key of that row.
    pub fn key(&self) -> Option<&[u8]> {
        let at = self.at.as_ref()?;
        Some(at.block.key(self.row_number(at)))
    }

    fn row_number(&self, at: &BlockPosition) -> usize {
        match self.direction {
            Direction::Forward => at.rows.start,
            Direction::Reverse => at.rows.end - 1,
        }
    }

    /// Goes to the next row of the range. After an error the cursor is not used any more.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn advance(&mut self) -> Result<(), EngineError> {
        let Some(at) = &mut self.at else { return Ok(()) };
        match self.direction {
            Direction::Forward => at.rows.start += 1,
            Direction::Reverse => at.rows.end -= 1,
        }
        if at.rows.is_empty() { self.leave_block() } else { Ok(()) }
    }

    /// Goes to the first row of the range that is not before a key, in ascending order. After an
    /// error the cursor is not used any more.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn seek(&mut self, key: &[u8]) -> Result<(), EngineError> {
        assert_eq!(self.direction, Direction::Forward, "a cursor goes back to {key:?}");
        let Some(at) = &mut self.at else { return Ok(()) };
        at.rows.start = at.block.seek_within(at.rows.clone(), key);
        if !at.rows.is_empty() {
            return Ok(());
        }
        if at.rows.end == at.block.rows() {
            // What lies before the key is not wanted in the blocks to come either.
            self.range.start = Bytes::copy_from_slice(key);
            let next = at.index.seek_from(at.number + 1, key);
            if next < at.index.blocks() {
                // It is entered from the one before it.
                at.number = next - 1;
            } else {
                let tables = &self.run.tables[self.tables.clone()];
                self.tables.start +=
                    tables.partition_point(|table| table.facts().last_key[..] < *key);
                return self.enter_next_table();
            }
        }
        self.leave_block()
    }

    /// Goes to the next block with rows of the range.
    fn leave_block(&mut self) -> Result<(), EngineError> {
        while let Some(BlockPosition { table, index, number, block, rows }) = self.at.take() {
            let (next, is_last) = match self.direction {
                Direction::Forward => (Some(number + 1), rows.end < block.rows()),
                Direction::Reverse => (number.checked_sub(1), rows.start > 0),
            };
            if is_last {
                // Beyond the rows of the range the block has others: there the range ends.
                self.tables = 0..0;
                return Ok(());
            }
            match next.filter(|next| *next < index.blocks()) {
                Some(next) => self.enter_block(table, index, next)?,
                None => return self.enter_next_table(),
            }
            if self.at.as_ref().is_some_and(|at| !at.rows.is_empty()) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn enter_next_table(&mut self) -> Result<(), EngineError> {
        let next = match self.direction {
            Direction::Forward => self.tables.next(),
            Direction::Reverse => self.tables.next_back(),
        };
        let Some(table) = next else {
            self.at = None;
            return Ok(());
        };
        let index = self.run.tables[table].index(self.access)?;
        let block = match self.direction {
            Direction::Forward => index.seek(&self.range.start),
            Direction::Reverse => index.seek(&self.range.end).min(index.blocks() - 1),
        };
        self.enter_block(table, index, block)?;
        match self.at.as_ref().is_some_and(|at| at.rows.is_empty()) {
            // From the end of the range, the first block may have only rows behind it.
            true => self.leave_block(),
            false => Ok(()),
        }
    }

    fn enter_block(
        &mut self,
        table: usize,
        index: Arc<TableIndex>,
        number: usize,
    ) -> Result<(), EngineError> {
        let block = self.run.tables[table].block(&index, number, self.access)?;
        // Most blocks are within the range as a whole.
        let is_begun = block.key(0) >= &self.range.start[..];
        let start = if is_begun { 0 } else { block.seek(&self.range.start) };
        let goes_on = index.last_key(number) < &self.range.end[..];
        let rows = start..if goes_on { block.rows() } else { block.seek(&self.range.end) };
        self.at = Some(BlockPosition { table, index, number, block, rows });
        Ok(())
    }
}
