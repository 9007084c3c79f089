//! The files of the store as of one manifest, open: its runs and its value segments.
//!
//! Levels do not change. A step of the background makes the next ones, and readers that hold the
//! former ones read on in their files: a file that the manifest does not name any more is removed
//! when its last reader has gone.
//!
//! What it leaves out: which change is made, and that there is one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::block::ValueRef;
use super::cache::TableCache;
use super::directory::{FileKind, TableDirectory, remove};
use super::manifest::{RunFacts, SealNumber, TableManifest};
use super::policy::{RunSize, StoreSizes};
use super::run::Run;
use super::table::{Table, TableFacts};
use super::values::{SegmentFacts, ValueSegment};
use crate::storage::engine::EngineError;

pub(super) struct Levels {
    manifest: TableManifest,
    /// In the order of time, the newest first.
    pub runs: Vec<Arc<Run>>,
    segments: BTreeMap<u64, Arc<ValueSegment>>,
}

/// Files that are whole and that no manifest names yet. They are removed if that stays so.
pub(super) struct UnnamedFiles {
    store: Arc<TableDirectory>,
    pub tables: Vec<TableFacts>,
    pub segments: Vec<SegmentFacts>,
}

impl UnnamedFiles {
    pub fn none(store: &Arc<TableDirectory>) -> UnnamedFiles {
        UnnamedFiles { store: store.clone(), tables: Vec::new(), segments: Vec::new() }
    }
}

impl Drop for UnnamedFiles {
    fn drop(&mut self) {
        for table in &self.tables {
            remove(&self.store, &FileKind::Table.name(table.number));
        }
        for segment in &self.segments {
            remove(&self.store, &FileKind::Values.name(segment.number));
        }
    }
}

/// Bytes of long values that batches have added and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LongValues {
    pub added_bytes: u64,
    pub removed_bytes: u64,
}

/// The next change of the levels.
pub(super) enum Change {
    /// A seal is on the disk.
    Move {
        seal: SealNumber,
        /// The number of rows of the store as of the seal.
        rows: u64,
        /// What the batches of the seal have added and removed.
        long_values: LongValues,
    },
    /// The next stretch of the runs of these seals, which are neighbours, has become one run.
    Merge {
        first_seal: SealNumber,
        last_seal: SealNumber,
        /// It was the last stretch.
        is_finished: bool,
    },
}

impl Levels {
    /// Opens all files that a manifest names.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn open(
        store: &Arc<TableDirectory>,
        cache: &Arc<TableCache>,
        manifest: TableManifest,
    ) -> Result<Levels, EngineError> {
        Levels::open_with(store, cache, manifest, None)
    }

    /// Opens files that `before` does not have open.
    fn open_with(
        store: &Arc<TableDirectory>,
        cache: &Arc<TableCache>,
        manifest: TableManifest,
        before: Option<&Levels>,
    ) -> Result<Levels, EngineError> {
        let known: BTreeMap<u64, &Arc<Table>> = before
            .into_iter()
            .flat_map(Levels::tables)
            .map(|table| (table.facts().number, table))
            .collect();
        let mut runs = Vec::new();
        // The key after the last one of the outcome of a merge.
        let mut merged_up_to = Bytes::new();
        for run in &manifest.runs {
            let mut tables = Vec::new();
            for facts in &run.tables {
                tables.push(match known.get(&facts.number) {
                    Some(table) => Arc::clone(table),
                    None => Arc::new(Table::open(store, cache, facts.clone())?),
                });
            }
            let from = if run.is_merging { merged_up_to.clone() } else { Bytes::new() };
            if let Some(last_key) = run.last_key().filter(|_| !run.is_merging) {
                merged_up_to = [&last_key[..], &[0]].concat().into();
            }
            let (first_seal, last_seal) = (run.first_seal, run.last_seal);
            runs.push(Arc::new(Run { first_seal, last_seal, from, tables }));
        }
        let mut segments = BTreeMap::new();
        for facts in &manifest.segments {
            let known = before.and_then(|before| before.segments.get(&facts.number));
            let segment = match known {
                Some(segment) => segment.clone(),
                None => Arc::new(ValueSegment::open(store, *facts)?),
            };
            segments.insert(facts.number, segment);
        }
        Ok(Levels { manifest, runs, segments })
    }

    /// Makes a change with these files durable, and returns the levels after it. The files of
    /// tables and segments that are gone with it become obsolete.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`] or [`EngineError::Read`] if the new files cannot be opened;
    /// [`EngineError::File`] if it is unknown which levels a crash would leave, after which
    /// nothing may be written.
    pub fn change(
        &self,
        store: &Arc<TableDirectory>,
        cache: &Arc<TableCache>,
        change: &Change,
        mut files: UnnamedFiles,
    ) -> Result<Levels, EngineError> {
        let mut manifest = self.manifest.clone();
        let tables = files.tables.clone();
        match *change {
            Change::Move { seal, rows, long_values } => {
                assert!(seal > manifest.last_seal, "seal {seal} after {}", manifest.last_seal);
                (manifest.last_seal, manifest.rows) = (seal, rows);
                manifest.count_long_values(long_values);
                if !tables.is_empty() {
                    let (first_seal, last_seal) = (seal, seal);
                    let run = RunFacts { first_seal, last_seal, is_merging: false, tables };
                    manifest.runs.insert(0, run);
                }
            }
            Change::Merge { first_seal, last_seal, is_finished } => {
                replace_merged(&mut manifest.runs, (first_seal, last_seal), tables, is_finished);
            }
        }
        manifest.segments.extend_from_slice(&files.segments);
        manifest.segments.sort_unstable_by_key(|segment| segment.number);
        manifest.drop_unused_segments();
        manifest.correct_long_value_bytes();
        manifest.next_number = store.next_number();
        let next = Levels::open_with(store, cache, manifest, Some(self))?;
        // From here on the manifest may name them, whatever the outcome.
        files.tables.clear();
        files.segments.clear();
        next.manifest.store(store).inspect_err(|error| store.set_failed(error))?;
        let named: BTreeSet<u64> = next.tables().map(|table| table.facts().number).collect();
        let gone = self.tables().filter(|table| !named.contains(&table.facts().number));
        gone.for_each(|table| table.set_obsolete());
        let gone = self.segments.iter().filter(|(number, _)| !next.segments.contains_key(number));
        gone.for_each(|(_, segment)| segment.set_obsolete());
        Ok(next)
    }

    /// Segments to less than half of which rows refer, and the number of bytes of each to which
    /// none do.
    fn sparse_segments(&self) -> BTreeMap<u64, u64> {
        let live = self.manifest.live_value_bytes();
        // Values that two runs of an unfinished merge refer to count twice.
        let dead = |segment: &SegmentFacts| {
            segment.bytes.saturating_sub(live.get(&segment.number).copied().unwrap_or_default())
        };
        let segments = self.manifest.segments.iter().map(|segment| (segment, dead(segment)));
        let sparse = segments.filter(|(segment, dead)| *dead > segment.bytes / 2);
        sparse.map(|(segment, dead)| (segment.number, dead)).collect()
    }

    /// The segments whose values a merge writes anew: the sparse ones, and those of less than
    /// `small_bytes`, so that they are joined.
    pub fn rewritten_segments(&self, small_bytes: u64) -> BTreeMap<u64, Arc<ValueSegment>> {
        let sparse = self.sparse_segments();
        let is_rewritten =
            |facts: &&SegmentFacts| facts.bytes < small_bytes || sparse.contains_key(&facts.number);
        let facts = self.manifest.segments.iter().filter(is_rewritten);
        facts
            .filter_map(|facts| Some((facts.number, self.segments.get(&facts.number)?.clone())))
            .collect()
    }

    /// The sizes by which the next step is chosen, beside so many seals in memory.
    pub fn sizes(&self, seals: usize) -> StoreSizes {
        let sparse = self.sparse_segments();
        let size = |run: &Arc<Run>| RunSize {
            bytes: run.bytes(),
            rows: run.rows(),
            deleted_rows: run.deleted_rows(),
            is_merging: run.is_merging(),
            has_sparse_values: run
                .tables
                .iter()
                .flat_map(|table| &table.facts().values)
                .any(|(segment, _)| sparse.contains_key(segment)),
        };
        StoreSizes {
            seals,
            runs: self.runs.iter().map(size).collect(),
            value_bytes: self.manifest.segments.iter().map(|segment| segment.bytes).sum(),
            removed_value_bytes: self.manifest.removed_value_bytes(),
            dead_value_bytes: sparse.values().sum(),
        }
    }

    #[cfg(test)]
    pub fn long_value_bytes(&self) -> u64 {
        self.manifest.long_value_bytes
    }

    /// The number of rows as of the last seal.
    pub fn rows(&self) -> u64 {
        self.manifest.rows
    }

    pub fn last_seal(&self) -> SealNumber {
        self.manifest.last_seal
    }

    /// The tables of all runs.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.runs.iter().flat_map(|run| &run.tables)
    }

    /// A long value of a row of these levels.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn read_value(&self, value: ValueRef) -> Result<Vec<u8>, EngineError> {
        let Some(segment) = self.segments.get(&value.place.file) else {
            panic!("{value:?} is in no segment of the manifest");
        };
        segment.read(value)
    }
}

/// Replaces the runs of these seals by the outcome of merging them, as far as it has come with
/// these tables, and what is left of them.
fn replace_merged(
    runs: &mut Vec<RunFacts>,
    (first_seal, last_seal): (SealNumber, SealNumber),
    tables: Vec<TableFacts>,
    is_finished: bool,
) {
    let start = runs.partition_point(|run| run.first_seal > last_seal);
    let count = runs[start..].iter().take_while(|run| run.first_seal >= first_seal).count();
    let mut inputs: Vec<RunFacts> = runs.drain(start..start + count).collect();
    let is_begun = inputs.get(1).is_some_and(|run| run.is_merging);
    let mut done = if is_begun { inputs.remove(0).tables } else { Vec::new() };
    done.extend(tables);
    let outcome = RunFacts { first_seal, last_seal, is_merging: false, tables: done };
    if is_finished {
        inputs.clear();
    } else {
        let Some(last_key) = outcome.last_key() else { panic!("a stretch has no tables") };
        for input in &mut inputs {
            input.is_merging = true;
            input.tables.retain(|table| table.last_key > *last_key);
        }
        inputs.retain(|input| !input.tables.is_empty());
    }
    let outcome = (!outcome.tables.is_empty()).then_some(outcome);
    runs.splice(start..start, outcome.into_iter().chain(inputs));
}
