//! A read view: the rows as of one batch, in memory tables and runs that it holds on to.
//!
//! Reads of one row go from the newest source to the oldest, and stop at the first that has a
//! state of the row. So do searches for the first row of a range in which newer rows sort first
//! ([`EngineView::newest`]): the first row of a source sorts before all rows of older sources, and
//! no newer source knows of it unless that begins with a marker of a deleted row at or before it.
//! In that case, and if markers are all that the sources begin with, the search scans. Versions are
//! deleted from the oldest on, so their markers come after the version that is looked for.
//!
//! Scans put all sources together, without the runs whose filters have no key of the range: most
//! reads of the store are of the versions of one key.
//!
//! Rows of memory tables are copied out in small groups, and a row's visitor is called without any
//! lock: it may write to the engine, and may take its time.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::block::TableValue;
use super::levels::Levels;
use super::memory_table::{BatchNumber, MemoryCursor, MemoryTable};
use super::merge::{MergeCursor, MergeSource};
use super::run::RunCursor;
use super::table::Access;
use crate::storage::engine::{
    Direction, EngineError, EngineView, RowValue, RowVisitor, ShowRow, SkippingVisitor,
};
use crate::storage::keys::{self, RowRange};

pub(super) struct TablesView {
    pub as_of: BatchNumber,
    /// In the order of time, the newest first.
    pub memory: Vec<Arc<MemoryTable>>,
    pub levels: Arc<Levels>,
}

impl TablesView {
    /// Shows the newest state of a row; `None` if it never had one. A deleted row is shown.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn get<T>(
        &self,
        key: &[u8],
        mut show: impl FnMut(TableValue<'_>) -> T,
    ) -> Result<Option<T>, EngineError> {
        for table in &self.memory {
            if let Some(found) = table.get(key, self.as_of) {
                return Ok(Some(show(shown(found.as_ref()))));
            }
        }
        for run in &self.levels.runs {
            if let Some(shown) = run.get(key, &mut show)? {
                return Ok(Some(shown));
            }
        }
        Ok(None)
    }

    /// Looks for the first row of a range in which newer rows sort first, from the newest source to
    /// the oldest. Returns false if markers of deleted rows leave it open which it is.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`], [`EngineError::NotInMemory`].
    fn search(
        &self,
        range: &RowRange,
        access: Access,
        show: &mut ShowRow<'_>,
    ) -> Result<bool, EngineError> {
        // The least of the markers with which newer sources begin: rows from there on may be
        // deleted.
        let mut deleted_from: Option<Vec<u8>> = None;
        let mut meet = |key: &[u8], value: TableValue<'_>| {
            let is_open = deleted_from.as_ref().is_some_and(|from| **from <= *key);
            match (value, is_open) {
                (TableValue::Deleted, true) => None,
                (TableValue::Deleted, false) => {
                    deleted_from = Some(key.to_vec());
                    None
                }
                (_, true) => Some(false),
                (value, false) => {
                    self.show(key, value, &mut *show);
                    Some(true)
                }
            }
        };
        for table in &self.memory {
            let first = match access {
                Access::CacheOnly => table.try_first(range, self.as_of)?,
                Access::Again | Access::Once => table.first(range, self.as_of),
            };
            if let Some((key, value)) = first
                && let Some(decided) = meet(&key, shown(value.as_ref()))
            {
                return Ok(decided);
            }
        }
        let common = keys::common_to(range);
        for run in &self.levels.runs {
            if let Some(Some(decided)) = run.first(range, common, access, &mut meet)? {
                return Ok(decided);
            }
        }
        Ok(deleted_from.is_none())
    }

    /// Shows a row that is not deleted.
    fn show<T>(
        &self,
        key: &[u8],
        value: TableValue<'_>,
        mut show: impl FnMut(&[u8], RowValue<'_>) -> T,
    ) -> Option<T> {
        match value {
            TableValue::Inline(value) => Some(show(key, RowValue::Inline(value))),
            TableValue::Long(value) => {
                let read = || self.levels.read_value(value);
                let (bytes, head) = (value.bytes as usize, value.head());
                Some(show(key, RowValue::OutOfLine { bytes, head, read: &read }))
            }
            TableValue::Deleted => None,
        }
    }

    fn cursor(&self, range: &RowRange, direction: Direction) -> Result<MergeCursor, EngineError> {
        let mut sources = Vec::new();
        for table in &self.memory {
            let cursor = MemoryCursor::new(table.clone(), range.clone(), direction, self.as_of);
            sources.push(MergeSource::Memory(cursor));
        }
        for run in &self.levels.runs {
            if run.may_have(range)? {
                let cursor = RunCursor::new(run.clone(), range.clone(), direction, Access::Again)?;
                sources.push(MergeSource::Run(cursor));
            }
        }
        Ok(MergeCursor::new(sources, direction))
    }
}

impl EngineView for TablesView {
    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        if range.start >= range.end {
            return Ok(());
        }
        let mut cursor = self.cursor(range, direction)?;
        while let Some((key, value)) = cursor.row() {
            if self.show(key, value, &mut *visit).is_some_and(|flow| flow.is_break()) {
                break;
            }
            cursor.advance()?;
        }
        Ok(())
    }

    fn scan_skipping(
        &self,
        range: &RowRange,
        visit: &mut SkippingVisitor<'_>,
    ) -> Result<(), EngineError> {
        if range.start >= range.end {
            return Ok(());
        }
        let mut cursor = self.cursor(range, Direction::Forward)?;
        let mut skip_to = Vec::new();
        while let Some((key, value)) = cursor.row() {
            let flow = self.show(key, value, |key, value| visit(key, value, &mut skip_to));
            if flow.is_some_and(|flow| flow.is_break()) {
                break;
            }
            match *skip_to > *key {
                true => cursor.seek(&skip_to)?,
                false => cursor.advance()?,
            }
            skip_to.clear();
        }
        Ok(())
    }

    fn newest(&self, range: &RowRange, show: &mut ShowRow<'_>) -> Result<(), EngineError> {
        if range.start >= range.end {
            return Ok(());
        }
        if let Some(row) = keys::single(range) {
            self.get(row, |value| self.show(row, value, &mut *show))?;
            return Ok(());
        }
        if self.search(range, Access::Again, show)? {
            return Ok(());
        }
        self.scan_rows(range, Direction::Forward, &mut |key, value| {
            show(key, value);
            ControlFlow::Break(())
        })
    }

    fn newest_in_memory(
        &self,
        range: &RowRange,
        show: &mut ShowRow<'_>,
    ) -> Result<(), EngineError> {
        match range.start >= range.end || self.search(range, Access::CacheOnly, show)? {
            true => Ok(()),
            false => Err(EngineError::NotInMemory),
        }
    }
}

/// The state of a row of a memory table.
fn shown(value: Option<&Bytes>) -> TableValue<'_> {
    value.map_or(TableValue::Deleted, |value| TableValue::Inline(value))
}

#[cfg(test)]
mod tests;
