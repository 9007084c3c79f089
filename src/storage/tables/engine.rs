//! The engine: batches into the active memory table, seals, views, and steps of the background.
//!
//! A lazy batch is visible and is lost with the process. A durable batch ends the active memory
//! table, which is then a seal, and returns when that is in the manifest: whatever a crash leaves
//! is the state of a seal.
//!
//! A view takes the number of the last batch, the memory tables and the levels under one lock that
//! is held for a few copies of references. When a seal is moved, the memory table and the new
//! levels are exchanged under this lock, so a view has its rows in the one or in the other.
//!
//! Locks, in this order: `writer`, of the one thread that writes; `background`, held for a step;
//! `current`, never held while anything waits.
//!
//! The number of rows is exact: a row of a batch is looked for, unless the batch says whether it
//! was there. Versions say so: looking for each in the runs, which mostly have its key, made a PUT
//! five to ten times as dear.
//!
//! What it leaves out: ending a full memory table, which the thread that writes has to do with a
//! durable batch, and threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;

use super::TablesOptions;
use super::background::{MergeJob, Sealed, StoreParts};
use super::block::TableValue;
use super::cache::TableCache;
use super::directory::TableDirectory;
use super::levels::Levels;
use super::manifest::{SealNumber, TableManifest};
use super::memory_table::{BatchNumber, MemoryTable};
use super::policy::{self, BackgroundStep, RunSize, SizeClasses};
use super::scrub;
use super::view::TablesView;
use crate::storage::engine::{Durability, Engine, EngineError, EngineView, Scrubbed, WriteBatch};
use crate::storage::files::Directory;

/// A store of tables in a directory of its own.
pub struct TableEngine {
    parts: StoreParts,
    writer: Mutex<WriterState>,
    background: Mutex<Option<MergeJob>>,
    current: RwLock<Current>,
    /// The last batch that is visible.
    published: AtomicU64,
    rows: AtomicU64,
}

struct WriterState {
    last_batch: BatchNumber,
    last_seal: SealNumber,
}

/// What views are made of.
struct Current {
    active: Arc<MemoryTable>,
    /// In the order of their seals, the oldest first.
    sealed: VecDeque<Sealed>,
    levels: Arc<Levels>,
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
        let store = Arc::new(TableDirectory::new(directory));
        let manifest = TableManifest::open(&store)?;
        let cache = Arc::new(TableCache::new(options.cache_bytes));
        let levels = Levels::open(&store, &cache, manifest)?;
        let (rows, last_seal) = (levels.rows(), levels.last_seal());
        let (active, sealed) = (Arc::default(), VecDeque::new());
        Ok(TableEngine {
            parts: StoreParts { store, cache, options },
            writer: Mutex::new(WriterState { last_batch: 0, last_seal }),
            background: Mutex::new(None),
            current: RwLock::new(Current { active, sealed, levels: Arc::new(levels) }),
            published: AtomicU64::new(0),
            rows: AtomicU64::new(rows),
        })
    }

    /// Whether the active memory table has reached its bytes, so that the next batch should be a
    /// durable one.
    pub fn is_full(&self) -> bool {
        let active = self.with_current(|current| current.active.clone());
        active.bytes() >= self.parts.options.memory_table_bytes
    }

    /// Takes one bounded step of the background. Returns whether to go on at once: not if there was
    /// nothing to do, and not after a merge was given up, as the next one would be, too.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`]: a seal could not be made durable, or it is unknown what a crash would
    /// leave; the engine must not be written to any more. [`EngineError::Damaged`],
    /// [`EngineError::Read`]. A merge that could not be written for another reason is given up, and
    /// is no error.
    pub fn work(&self) -> Result<bool, EngineError> {
        let mut background = self.background();
        self.parts.store.check_writable()?;
        let (seals, levels) =
            self.with_current(|current| (current.sealed.len(), current.levels.clone()));
        if seals == 0 && background.is_some() {
            return self.merge_on(&mut background);
        }
        let size = |run: &Arc<super::run::Run>| RunSize {
            bytes: run.bytes(),
            rows: run.rows(),
            deleted_rows: run.deleted_rows(),
        };
        let sizes: Vec<RunSize> = levels.runs.iter().map(size).collect();
        let TablesOptions { fan, small_run_bytes: lowest_bytes, .. } = self.parts.options;
        match policy::next_step(seals, &sizes, SizeClasses { fan, lowest_bytes }) {
            Some(BackgroundStep::Move) => self.move_oldest(&background).map(|()| true),
            Some(BackgroundStep::Merge(runs)) => {
                let drops_deleted = runs.end == levels.runs.len();
                *background =
                    Some(MergeJob::begin(&self.parts, &levels.runs[runs], drops_deleted)?);
                self.merge_on(&mut background)
            }
            None => Ok(false),
        }
    }

    /// Moves the oldest seal to the disk. The caller holds `background`.
    fn move_oldest(&self, _: &MutexGuard<'_, Option<MergeJob>>) -> Result<(), EngineError> {
        self.parts.store.check_writable()?;
        let (oldest, levels) =
            self.with_current(|current| (current.sealed.front().cloned(), current.levels.clone()));
        let Some(sealed) = oldest else { return Ok(()) };
        let levels = self.parts.move_seal(&sealed, &levels);
        // Without the seal there is no way on: the log would be cut short by later ones.
        let levels = levels.inspect_err(|error| self.parts.store.set_failed(error))?;
        self.with_current_mut(|current| {
            current.sealed.pop_front();
            current.levels = Arc::new(levels);
        });
        Ok(())
    }

    /// Takes a step of the merge that is under way. Returns false if it was given up.
    fn merge_on(
        &self,
        background: &mut MutexGuard<'_, Option<MergeJob>>,
    ) -> Result<bool, EngineError> {
        let Some(mut job) = background.take() else { return Ok(false) };
        let merged = match job.step(&self.parts) {
            Ok(false) => {
                **background = Some(job);
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
                self.with_current_mut(|current| current.levels = Arc::new(levels));
                Ok(true)
            }
            Err(EngineError::File { action, path, detail }) => {
                self.parts.store.check_writable()?;
                log::warn!("a merge is given up: cannot {action} {path}: {detail}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn tables_view(&self) -> TablesView {
        self.with_current(|current| {
            let sealed = current.sealed.iter().rev().map(|sealed| &sealed.table);
            let memory = std::iter::once(&current.active).chain(sealed).cloned().collect();
            let as_of = self.published.load(Ordering::Acquire);
            TablesView { as_of, memory, levels: current.levels.clone() }
        })
    }

    /// How a batch changes the number of rows.
    fn count(&self, batch: &WriteBatch) -> Result<(u64, u64), EngineError> {
        let view = self.tables_view();
        let (mut added, mut removed) = (0, 0);
        for (key, stays, existed) in batch.presence() {
            let existed = match existed {
                Some(existed) => existed,
                None => view.get(key, |state| state != TableValue::Deleted)?.unwrap_or(false),
            };
            added += u64::from(!existed && stays);
            removed += u64::from(existed && !stays);
        }
        Ok((added, removed))
    }

    fn with_current<T>(&self, use_it: impl FnOnce(&Current) -> T) -> T {
        // Each change of it is a single assignment or two that cannot fail, so a poisoned lock is
        // ignored.
        use_it(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_current_mut(&self, change: impl FnOnce(&mut Current)) {
        change(&mut self.current.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn background(&self) -> MutexGuard<'_, Option<MergeJob>> {
        // A merge is taken out of it while it is worked on, so a panic leaves it without one.
        self.background.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for TableEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
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

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        // After a panic under this lock the state machine does not write any more.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.parts.store.check_writable()?;
        let (added, removed) = self.count(batch)?;
        let rows = self.rows.load(Ordering::Relaxed) + added;
        assert!(rows >= removed, "{removed} of {rows} rows are removed");
        let rows = rows - removed;
        writer.last_batch += 1;
        let active = self.with_current(|current| current.active.clone());
        active.write(writer.last_batch, batch);
        self.published.store(writer.last_batch, Ordering::Release);
        self.rows.store(rows, Ordering::Relaxed);
        if durability == Durability::Lazy {
            return Ok(());
        }
        if !active.is_empty() {
            writer.last_seal += 1;
            let (seal, as_of) = (writer.last_seal, writer.last_batch);
            self.with_current_mut(|current| {
                let table = std::mem::take(&mut current.active);
                current.sealed.push_back(Sealed { table, seal, as_of, rows });
            });
        }
        let background = self.background();
        while self.with_current(|current| !current.sealed.is_empty()) {
            self.move_oldest(&background)?;
        }
        Ok(())
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
