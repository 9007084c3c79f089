//! The engine: batches into the active memory table, seals, views, and steps of the background.
//!
//! A batch is visible at once, and is lost with the process. A *seal* ends the active memory table
//! with a last batch; a step of the background writes the table to the disk and names it in the
//! manifest, and the seal is durable. Whatever a crash leaves is the state of a seal.
//!
//! The engine holds one active memory table, and [`SEALED_MAX`] that wait for the disk: whoever
//! seals one more writes the oldest itself, and so waits for a disk that is slow or hangs. Writes
//! then wait in the log, whose bounds are the server's. So do they while there are too many runs
//! (`policy`): a seal then waits for merges that make them fewer, unless these are given up.
//!
//! A view takes the number of the last batch, the memory tables and the levels under one lock that
//! is held for a few copies of references. When a seal is moved, the memory table and the new
//! levels are exchanged under this lock, so a view has its rows in the one or in the other.
//!
//! Levels and memory tables that were exchanged are kept in a list until no view has them, and are
//! dropped by steps of the background: whoever has them last removes files and frees a map of
//! megabytes, which the thread of a short read must not do.
//!
//! Locks, in this order: `writer`, of the one thread that writes; `background`, held for a step;
//! `current`, never held while anything waits.
//!
//! The number of rows is exact: a row of a batch is looked for, unless the batch says whether it
//! was there. Versions say so: looking for each in the runs, which mostly have its key, made a PUT
//! five to ten times as dear.
//!
//! What it leaves out: sealing a full memory table, which the thread that writes has to do, since a
//! seal holds rows of its own; and threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;

use super::TablesOptions;
use super::background::{MergeJob, Sealed, StoreParts};
use super::block::TableValue;
use super::cache::TableCache;
use super::directory::TableDirectory;
use super::levels::{Levels, LongValues};
use super::manifest::{SealNumber, TableManifest};
use super::memory_table::{BatchNumber, MemoryTable};
use super::policy::{self, BackgroundStep, SizeClasses};
use super::scrub;
use super::view::TablesView;
use crate::storage::engine::{Engine, EngineError, EngineView, RowBefore, Scrubbed, WriteBatch};
use crate::storage::files::Directory;

/// Memory tables that wait for the disk. With two of them the next one fills while one is written
/// and the other waits; more would hide a slow disk, and take memory.
const SEALED_MAX: usize = 2;

/// After a merge is given up it is begun again at once, then after one attempt less, three, seven,
/// and so on with this exponent of two at most: a minute if work is looked for once a second.
const RESTS_DOUBLED_MAX: u32 = 6;

/// A store of tables in a directory of its own.
pub struct TableEngine {
    parts: StoreParts,
    writer: Mutex<WriterState>,
    background: Mutex<Background>,
    current: RwLock<Current>,
    /// The last batch that is visible.
    published: AtomicU64,
    rows: AtomicU64,
}

struct WriterState {
    last_batch: BatchNumber,
    last_seal: SealNumber,
    /// Since the last seal.
    long_values: LongValues,
}

/// How a batch changes what is counted of the store.
#[derive(Default)]
struct BatchEffect {
    rows_added: u64,
    rows_removed: u64,
    long_values: LongValues,
}

#[derive(Default)]
struct Background {
    /// The stretch of a merge that is under way.
    job: Option<MergeJob>,
    /// Stretches that were given up, one after the other.
    given_up: u32,
    /// So many times no merge is begun.
    rests: u32,
    /// Those that were exchanged, and that views may have.
    former_levels: Vec<Arc<Levels>>,
    former_memory: Vec<Arc<MemoryTable>>,
}

impl Background {
    /// Drops what no view has any more.
    fn drop_former(&mut self) {
        self.former_levels.retain(|levels| Arc::strong_count(levels) > 1);
        self.former_memory.retain(|table| Arc::strong_count(table) > 1);
    }
}

/// What views are made of.
struct Current {
    active: Arc<MemoryTable>,
    /// In the order of their seals, the oldest first.
    sealed: VecDeque<Sealed>,
    levels: Arc<Levels>,
    durable_mark: Option<u64>,
}

impl TableEngine {
    /// Opens the store of a directory, which becomes a blank store if it has no files of one. The
    /// caller has locked the directory.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`]; [`EngineError::File`] if a blank store
    /// cannot be written.
    pub fn open(
        directory: Arc<dyn Directory>,
        options: TablesOptions,
    ) -> Result<TableEngine, EngineError> {
        let options = options.fitting(&*directory);
        let store = Arc::new(TableDirectory::new(directory, options.open_files_max));
        let manifest = TableManifest::open(&store)?;
        let cache = Arc::new(TableCache::new(options.cache_bytes));
        let levels = Levels::open(&store, &cache, manifest)?;
        let (rows, last_seal) = (levels.rows(), levels.last_seal());
        let (active, sealed) = (Arc::default(), VecDeque::new());
        Ok(TableEngine {
            parts: StoreParts { store, cache, options },
            writer: Mutex::new(WriterState {
                last_batch: 0,
                last_seal,
                long_values: LongValues::default(),
            }),
            background: Mutex::default(),
            current: RwLock::new(Current {
                active,
                sealed,
                levels: Arc::new(levels),
                durable_mark: None,
            }),
            published: AtomicU64::new(0),
            rows: AtomicU64::new(rows),
        })
    }

    /// Opens the store in a directory of the system, which is created if it does not exist, with
    /// the options that servers have.
    ///
    /// # Errors
    ///
    /// As [`open`](TableEngine::open).
    #[cfg(any(test, feature = "internals"))]
    pub fn open_at(path: &std::path::Path) -> Result<TableEngine, EngineError> {
        let opened = crate::storage::files::RealDirectory::open(path);
        let directory = opened.map_err(|error| EngineError::Open {
            path: path.display().to_string(),
            detail: error.to_string(),
        })?;
        TableEngine::open(Arc::new(directory), TablesOptions::default())
    }

    /// Moves the oldest seal to the disk.
    fn move_oldest(&self, background: &mut Background) -> Result<(), EngineError> {
        self.parts.store.check_writable()?;
        let (oldest, levels) =
            self.with_current(|current| (current.sealed.front().cloned(), current.levels.clone()));
        let Some(sealed) = oldest else { return Ok(()) };
        let levels = self.parts.move_seal(&sealed, &levels);
        // Without the seal there is no way on: the log would be cut short by later ones.
        let levels = levels.inspect_err(|error| self.parts.store.set_failed(error))?;
        let (former, moved) = self.with_current_mut(|current| {
            let moved = current.sealed.pop_front();
            // Its mark may have risen meanwhile.
            current.durable_mark = moved.as_ref().map(|moved| moved.mark);
            (std::mem::replace(&mut current.levels, Arc::new(levels)), moved)
        });
        background.former_levels.push(former);
        background.former_memory.extend(moved.map(|moved| moved.table));
        Ok(())
    }

    /// Takes the next step of the background. Returns whether there is more to do at once.
    fn step(&self, background: &mut Background) -> Result<bool, EngineError> {
        let more = self.next_step(background)?;
        background.drop_former();
        Ok(more)
    }

    fn next_step(&self, background: &mut Background) -> Result<bool, EngineError> {
        self.parts.store.check_writable()?;
        let (seals, levels) =
            self.with_current(|current| (current.sealed.len(), current.levels.clone()));
        let TablesOptions { fan, small_run_bytes: lowest_bytes, .. } = self.parts.options;
        // After a merge that was given up the next one would be, too: not at once.
        match policy::next_step(&levels.sizes(seals), SizeClasses { fan, lowest_bytes }) {
            Some(BackgroundStep::Move) => self.move_oldest(background).map(|()| true),
            _ if background.job.is_some() => self.merge_on(background),
            Some(BackgroundStep::Merge(_)) if background.rests > 0 => {
                background.rests -= 1;
                Ok(false)
            }
            Some(BackgroundStep::Merge(runs)) => {
                background.job = Some(MergeJob::begin(&self.parts, &levels, runs)?);
                self.merge_on(background)
            }
            None => Ok(false),
        }
    }

    /// Takes a step of the merge that is under way. Returns false if it was given up.
    fn merge_on(&self, background: &mut Background) -> Result<bool, EngineError> {
        let Some(mut job) = background.job.take() else { return Ok(false) };
        let merged = match job.step(&self.parts) {
            Ok(false) => {
                background.job = Some(job);
                return Ok(true);
            }
            Ok(true) => {
                let levels = self.with_current(|current| current.levels.clone());
                job.finish(&self.parts, &levels)
            }
            Err(error) => Err(error),
        };
        match merged {
            Ok(levels) => {
                let former = self.with_current_mut(|current| {
                    std::mem::replace(&mut current.levels, Arc::new(levels))
                });
                background.former_levels.push(former);
                background.given_up = 0;
                Ok(true)
            }
            Err(EngineError::File { action, path, detail }) => {
                self.parts.store.check_writable()?;
                // The disk is likely to be as full the next time, and a stretch writes much.
                background.rests = (1 << background.given_up) - 1;
                background.given_up = (background.given_up + 1).min(RESTS_DOUBLED_MAX);
                log::warn!("a merge is given up: cannot {action} {path}: {detail}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn tables_view(&self) -> TablesView {
        self.with_current(|current| {
            let sealed = current.sealed.iter().rev().map(|sealed| &sealed.table);
            let memory = std::iter::once(&current.active).chain(sealed).cloned().collect();
            let as_of = self.published.load(Ordering::Acquire);
            TablesView { as_of, memory, levels: current.levels.clone() }
        })
    }

    /// Counts what a batch adds and removes.
    fn effect(&self, batch: &WriteBatch) -> Result<BatchEffect, EngineError> {
        let view = self.tables_view();
        let long_bytes = |value_bytes: Option<usize>| match value_bytes {
            Some(bytes) if bytes > self.parts.options.long_value_bytes => bytes as u64,
            _ => 0,
        };
        let mut effect = BatchEffect::default();
        for (key, after, before) in batch.transitions() {
            let before = match before {
                RowBefore::Absent => None,
                RowBefore::Present { value_bytes } => Some(value_bytes),
                RowBefore::Unknown => view.get(key, |state| state.bytes())?.flatten(),
            };
            effect.rows_added += u64::from(before.is_none() && after.is_some());
            effect.rows_removed += u64::from(before.is_some() && after.is_none());
            effect.long_values.added_bytes += long_bytes(after.map(Bytes::len));
            effect.long_values.removed_bytes += long_bytes(before);
        }
        Ok(effect)
    }

    /// Applies a batch; the number of rows after it.
    fn apply(&self, writer: &mut WriterState, batch: &WriteBatch) -> Result<u64, EngineError> {
        self.parts.store.check_writable()?;
        let BatchEffect { rows_added, rows_removed, long_values } = self.effect(batch)?;
        let rows = self.rows.load(Ordering::Relaxed) + rows_added;
        assert!(rows >= rows_removed, "{rows_removed} of {rows} rows are removed");
        let rows = rows - rows_removed;
        writer.long_values.added_bytes += long_values.added_bytes;
        writer.long_values.removed_bytes += long_values.removed_bytes;
        writer.last_batch += 1;
        let active = self.with_current(|current| current.active.clone());
        active.write(writer.last_batch, batch);
        self.published.store(writer.last_batch, Ordering::Release);
        self.rows.store(rows, Ordering::Relaxed);
        Ok(rows)
    }

    /// Takes steps of the background until few enough seals wait for the disk. They are counted, so
    /// that a server whose merges are late is not taken for one whose disk hangs.
    fn wait_for_room(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        while self.waiting() > SEALED_MAX {
            let mut background = self.background();
            batch.step();
            if self.waiting() > SEALED_MAX && !self.step(&mut background)? {
                // A merge that was due is given up: too many runs are better than no room.
                self.move_oldest(&mut background)?;
            }
        }
        Ok(())
    }

    /// The number of seals that wait for the disk.
    fn waiting(&self) -> usize {
        self.with_current(|current| current.sealed.len())
    }

    fn writer(&self) -> MutexGuard<'_, WriterState> {
        // After a panic under this lock the state machine does not write any more.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_current<T>(&self, use_it: impl FnOnce(&Current) -> T) -> T {
        // Each change of it is a single assignment or two that cannot fail, so a poisoned lock is
        // ignored.
        use_it(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_current_mut<T>(&self, change: impl FnOnce(&mut Current) -> T) -> T {
        change(&mut self.current.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn background(&self) -> MutexGuard<'_, Background> {
        // A merge is taken out of it while it is worked on, so a panic leaves it without one.
        self.background.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for TableEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.parts.store.check_sound()?;
        let view = self.tables_view();
        let found = view.get(key, |value| match value {
            TableValue::Inline(value) => Ok(Some(Bytes::copy_from_slice(value))),
            TableValue::Long(value) => view.levels.read_value(value).map(|it| Some(it.into())),
            TableValue::Deleted => Ok(None),
        })?;
        found.unwrap_or(Ok(None))
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        self.parts.store.check_sound()?;
        Ok(Box::new(self.tables_view()))
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.apply(&mut self.writer(), batch).map(drop)
    }

    fn seal(&self, batch: &WriteBatch, mark: u64) -> Result<(), EngineError> {
        let mut writer = self.writer();
        let rows = self.apply(&mut writer, batch)?;
        let is_empty = self.with_current(|current| current.active.is_empty());
        writer.last_seal += u64::from(!is_empty);
        let (seal, as_of) = (writer.last_seal, writer.last_batch);
        let long_values = std::mem::take(&mut writer.long_values);
        self.with_current_mut(|current| match current.sealed.back_mut() {
            _ if !is_empty => {
                let table = std::mem::take(&mut current.active);
                current.sealed.push_back(Sealed { table, seal, mark, as_of, rows, long_values });
            }
            // There is nothing new: this seal is durable when the one before it is.
            Some(sealed) => sealed.mark = mark,
            None => current.durable_mark = Some(mark),
        });
        self.wait_for_room(batch)
    }

    fn durable(&self) -> Option<u64> {
        self.with_current(|current| current.durable_mark)
    }

    fn flush(&self) -> Result<(), EngineError> {
        while self.waiting() > 0 {
            self.move_oldest(&mut self.background())?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        let active = self.with_current(|current| current.active.clone());
        active.bytes() >= self.parts.options.memory_table_bytes
    }

    fn work(&self) -> Result<bool, EngineError> {
        self.step(&mut self.background())
    }

    fn retire(&self) {
        self.parts.store.retire();
    }

    fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError> {
        self.parts.store.check_sound()?;
        let levels = self.with_current(|current| current.levels.clone());
        let next_block = scrub::scrub(&levels, from_block, blocks)?;
        Ok(Scrubbed { next_block })
    }
}

#[cfg(test)]
mod tests;
