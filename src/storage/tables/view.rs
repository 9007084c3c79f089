//! A read view: the rows as of one batch, in memory tables and runs that it holds on to.
//!
//! Reads of one row go from the newest source to the oldest, and stop at the first that has a
//! state of the row. Scans put all sources together, without the runs whose filters have no key of
//! the range: most reads of the store are of the versions of one key.
//!
//! Rows of memory tables are copied out in small groups, and a row's visitor is called without any
//! lock: it may write to the engine, and may take its time.
//!
//! What it leaves out: that the newest version of a key needs no older run than the newest with a
//! version of the key. That follows from timestamps, which an engine of plain rows does not know,
//! and markers of deleted old versions in newer runs would have to be told apart.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::block::TableValue;
use super::levels::Levels;
use super::memory_table::{BatchNumber, MemoryCursor, MemoryTable};
use super::merge::{MergeCursor, MergeSource};
use super::run::RunCursor;
use super::table::Reread;
use crate::storage::engine::{Direction, EngineError, EngineView, RowValue, RowVisitor};
use crate::storage::keys::RowRange;

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
                return Ok(Some(show(match &found {
                    Some(value) => TableValue::Inline(value),
                    None => TableValue::Deleted,
                })));
            }
        }
        for run in &self.levels.runs {
            if let Some(shown) = run.get(key, &mut show)? {
                return Ok(Some(shown));
            }
        }
        Ok(None)
    }

    fn cursor(&self, range: &RowRange, direction: Direction) -> Result<MergeCursor, EngineError> {
        let mut sources = Vec::new();
        for table in &self.memory {
            let cursor = MemoryCursor::new(table.clone(), range.clone(), direction, self.as_of);
            sources.push(MergeSource::Memory(cursor));
        }
        for run in &self.levels.runs {
            if run.may_have(range)? {
                let cursor = RunCursor::new(run.clone(), range.clone(), direction, Reread::Likely)?;
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
            let flow = match value {
                TableValue::Inline(value) => visit(key, RowValue::Inline(value)),
                TableValue::Long(value) => {
                    let read = || self.levels.read_value(value);
                    visit(key, RowValue::OutOfLine { bytes: value.bytes as usize, read: &read })
                }
                TableValue::Deleted => ControlFlow::Continue(()),
            };
            if flow.is_break() {
                break;
            }
            cursor.advance()?;
        }
        Ok(())
    }
}
