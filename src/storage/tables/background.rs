//! The work behind the writes, one bounded step at a time: seals are moved to the disk, and runs
//! are merged.
//!
//! One caller works at a time. A step either moves one memory table, whose bytes are bounded, or
//! merges a number of rows and bytes of values. So a caller with other duties, such as the
//! simulator, gets control back, and a seal never waits longer than for one step of a merge.
//!
//! A merge is done in *stretches* of keys. A stretch ends with its first whole table or segment;
//! the manifest then names what it has written, and no longer the tables that it has used up, whose
//! files are removed. So a merge of any size takes about as much room on the disk as one table of
//! each of its runs and of its outcome, and a crash or a failure costs the work of one stretch.
//! Nothing of a stretch is kept for the next one, which may come much later.
//!
//! Moving a seal makes it durable: its files, then the manifest. A failure is final, as a failed
//! checkpoint is. A stretch is given up when it fails, its files are removed, and it is begun anew
//! another time; only the replacement of the manifest at its end is final. Damage that a merge
//! meets is damage of the store.
//!
//! Long values stay in their segments, to which the rows of the outcome refer, unless less than
//! half of the segment is live or the segment is small: such values are written anew. So the room
//! of dead values is given back, and the segments of many small seals are joined: a store has not
//! many more files than its bytes are worth, whatever the seals were.
//!
//! What it leaves out: who calls it, and when.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::TablesOptions;
use super::block::TableValue;
use super::cache::TableCache;
use super::directory::{Expendable, TableDirectory};
use super::levels::{Change, Levels, LongValues, UnnamedFiles};
use super::manifest::SealNumber;
use super::memory_table::{BatchNumber, MemoryCursor, MemoryTable};
use super::merge::{MergeCursor, MergeSource};
use super::run::RunCursor;
use super::table::Access;
use super::table_writer::TableWriter;
use super::values::{ValueSegment, ValueWriter};
use crate::storage::engine::{Direction, EngineError};
use crate::storage::keys;

/// A segment is small with less than this part of the bytes of a table. A seal of long values has
/// about as many, so that its values are written once more at most.
const SMALL_SEGMENT_SHARE: u64 = 8;

/// A memory table that a seal has ended.
#[derive(Clone)]
pub(super) struct Sealed {
    pub table: Arc<MemoryTable>,
    pub seal: SealNumber,
    /// The caller's number of the seal.
    pub mark: u64,
    /// The last batch in it.
    pub as_of: BatchNumber,
    /// The number of rows of the store then.
    pub rows: u64,
    pub long_values: LongValues,
}

/// A step of a merge ends when it has written so many bytes of values anew: a few milliseconds of
/// copying, for which a seal may wait.
const REWRITTEN_STEP_BYTES: usize = 1024 * 1024;

/// What every step needs.
pub(super) struct StoreParts {
    pub store: Arc<TableDirectory>,
    pub cache: Arc<TableCache>,
    pub options: TablesOptions,
}

impl StoreParts {
    /// Writes a seal to the disk, and returns the levels with it, which are durable.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`], [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn move_seal(&self, sealed: &Sealed, levels: &Levels) -> Result<Levels, EngineError> {
        let Sealed { table, seal, as_of, rows, long_values, .. } = sealed;
        let mut output = OutputFiles::new(self, Expendable::No);
        // There is nothing yet that a deleted row could hide.
        let drops_deleted = levels.runs.is_empty();
        let mut cursor =
            MemoryCursor::new(table.clone(), keys::every_row(), Direction::Forward, *as_of);
        while let Some((key, value)) = cursor.row() {
            match value {
                TableValue::Deleted if drops_deleted => {}
                TableValue::Inline(value) => output.add_value(self, key, value)?,
                value => output.add(self, key, value)?,
            }
            cursor.advance();
        }
        let change = Change::Move { seal: *seal, rows: *rows, long_values: *long_values };
        levels.change(&self.store, &self.cache, &change, output.finish()?)
    }
}

/// The files that a step writes: one table after the other, and segments beside them.
pub(super) struct OutputFiles {
    expendable: Expendable,
    /// Those that are whole.
    files: UnnamedFiles,
    table: Option<TableWriter>,
    segment: Option<ValueWriter>,
}

impl OutputFiles {
    pub fn new(parts: &StoreParts, expendable: Expendable) -> OutputFiles {
        let files = UnnamedFiles::none(&parts.store);
        OutputFiles { expendable, files, table: None, segment: None }
    }

    /// Adds a row, whose key is greater than all before it.
    fn add(
        &mut self,
        parts: &StoreParts,
        key: &[u8],
        value: TableValue<'_>,
    ) -> Result<(), EngineError> {
        let StoreParts { store, options, .. } = parts;
        let mut writer = match self.table.take() {
            Some(writer) => writer,
            None => TableWriter::create(store, options.block_bytes, self.expendable)?,
        };
        writer.add(key, value)?;
        match writer.is_full(options.table_bytes) {
            true => self.files.tables.push(writer.finish()?),
            false => self.table = Some(writer),
        }
        Ok(())
    }

    /// Adds a row, whose value goes into a segment if it is long.
    pub fn add_value(
        &mut self,
        parts: &StoreParts,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), EngineError> {
        if value.len() <= parts.options.long_value_bytes {
            return self.add(parts, key, TableValue::Inline(value));
        }
        let mut writer = match self.segment.take() {
            Some(writer) => writer,
            None => ValueWriter::create(&parts.store, self.expendable)?,
        };
        let reference = writer.add(value)?;
        match writer.bytes() >= parts.options.table_bytes {
            true => self.files.segments.push(writer.finish()?),
            false => self.segment = Some(writer),
        }
        self.add(parts, key, TableValue::Long(reference))
    }

    fn has_whole_file(&self) -> bool {
        !self.files.tables.is_empty() || !self.files.segments.is_empty()
    }

    pub fn finish(mut self) -> Result<UnnamedFiles, EngineError> {
        if let Some(writer) = self.table.take() {
            self.files.tables.push(writer.finish()?);
        }
        if let Some(writer) = self.segment.take() {
            self.files.segments.push(writer.finish()?);
        }
        Ok(self.files)
    }
}

/// A stretch of a merge that is under way.
pub(super) struct MergeJob {
    first_seal: SealNumber,
    last_seal: SealNumber,
    cursor: MergeCursor,
    /// No run is older than these.
    drops_deleted: bool,
    /// Segments whose values are written anew.
    rewritten: BTreeMap<u64, Arc<ValueSegment>>,
    output: OutputFiles,
}

impl MergeJob {
    /// Begins the next stretch of a merge of these runs of the levels, which are neighbours: the
    /// first of them is the outcome so far if the second is being merged.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn begin(
        parts: &StoreParts,
        levels: &Levels,
        runs: Range<usize>,
    ) -> Result<MergeJob, EngineError> {
        let drops_deleted = runs.end == levels.runs.len();
        let runs = &levels.runs[runs];
        let (Some(newest), Some(oldest)) = (runs.first(), runs.last()) else {
            panic!("no runs are merged");
        };
        let is_begun = runs.get(1).is_some_and(|run| run.is_merging());
        let first_seal = if is_begun { newest.first_seal } else { oldest.first_seal };
        let last_seal = newest.last_seal;
        let mut sources = Vec::new();
        for run in runs.iter().skip(usize::from(is_begun)) {
            let all = keys::every_row();
            let cursor = RunCursor::new(run.clone(), all, Direction::Forward, Access::Once)?;
            sources.push(MergeSource::Run(cursor));
        }
        let cursor = MergeCursor::new(sources, Direction::Forward);
        let rewritten = levels.rewritten_segments(parts.options.table_bytes / SMALL_SEGMENT_SHARE);
        let output = OutputFiles::new(parts, Expendable::Yes);
        Ok(MergeJob { first_seal, last_seal, cursor, drops_deleted, rewritten, output })
    }

    /// Merges some rows. Returns whether the stretch is at its end.
    ///
    /// # Errors
    ///
    /// [`EngineError`]; the stretch is to be given up.
    pub fn step(&mut self, parts: &StoreParts) -> Result<bool, EngineError> {
        let mut rewritten_bytes = 0;
        for _ in 0..parts.options.merge_step_rows {
            let Some((key, value)) = self.cursor.row() else { return Ok(true) };
            match value {
                TableValue::Deleted if self.drops_deleted => {}
                TableValue::Long(long) => match self.rewritten.get(&long.place.file) {
                    Some(segment) => {
                        self.output.add_value(parts, key, &segment.read(long)?)?;
                        rewritten_bytes += long.bytes as usize;
                    }
                    None => self.output.add(parts, key, value)?,
                },
                value => self.output.add(parts, key, value)?,
            }
            self.cursor.advance()?;
            if self.output.has_whole_file() {
                return Ok(true);
            }
            if rewritten_bytes >= REWRITTEN_STEP_BYTES {
                break;
            }
        }
        Ok(false)
    }

    /// Ends a stretch, and returns the levels with it.
    ///
    /// # Errors
    ///
    /// [`EngineError`]; if nothing may be written any more, the directory says so.
    pub fn finish(self, parts: &StoreParts, levels: &Levels) -> Result<Levels, EngineError> {
        let MergeJob { first_seal, last_seal, cursor, output, .. } = self;
        let is_finished = cursor.row().is_none();
        let change = Change::Merge { first_seal, last_seal, is_finished };
        levels.change(&parts.store, &parts.cache, &change, output.finish()?)
    }
}
