//! The engine on disk: one redb file.
//!
//! A lazy batch is a commit without durability. A durable one is an immediate commit that also
//! saves the allocator's state, so that opening after a crash takes a millisecond, whatever the
//! size.
//!
//! Values longer than a quarter of a page are stored in pieces that fill pages (`storage::pieces`).
//! The file never gets smaller by itself, and pages that random writes have split are half empty.
//! So an idle store is copied, row by row, into a file that replaces it ([`Engine::shrink`]).
//!
//! The engine's file is a `storage::checked_file`: a read of a damaged page is an error, and redb
//! never sees its bytes. After the first one every call fails with [`EngineError::Damaged`].
//!
//! Closing is crash-only: whether the process is killed or the engine is dropped, the file is as of
//! the last durable batch. By itself, redb would make pending lazy commits durable on a clean
//! close. The state machine writes its sessions only with a durable batch, so the two endings have
//! to be the same: on drop, the file first refuses further writes.

use std::fmt;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};

use super::checked_file::{Backend, CheckedFile, Damage, Reading};
use super::engine::{
    Direction, Durability, Engine, EngineError, EngineView, RowValue, RowVisitor, Scrubbed,
    WriteBatch, with_values,
};
use super::files::{self, Directory, DiskFile};
use super::keys::RowRange;
use super::pieces::{self, StoredValue};
use crate::limits::ShrinkLimits;

type Row = &'static [u8];
const ROWS: TableDefinition<'static, Row, Row> = TableDefinition::new("rows");
/// Pieces of long values, a table for each size, so that pieces of one size are stored side by
/// side.
const PIECES: [TableDefinition<'static, u64, Row>; pieces::SIZES] = [
    TableDefinition::new("large pieces"),
    TableDefinition::new("page pieces"),
    TableDefinition::new("small pieces"),
];
/// Facts about the file, as of its last durable batch.
const FACTS: TableDefinition<'static, &'static str, u64> = TableDefinition::new("facts");
const LIVE_BYTES: &str = "live bytes";
const LONG_BYTES: &str = "long bytes";

/// The purpose of a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The file is the store in use.
    Use,
    /// A store is built in the file. It is expendable: its writes fail on a full disk.
    Staging,
}

/// A redb file, and the copy that will replace it while one is being made.
pub struct DiskEngine {
    directory: Arc<dyn Directory>,
    name: String,
    cache_bytes: usize,
    /// Replaced by its copy when that is complete.
    file: RwLock<Arc<OpenFile>>,
    writer: Mutex<Writer>,
    /// The number of rows in the writer's tally, for threads that must not wait for a write.
    rows: AtomicU64,
}

/// An open file, shared by the engine and its views.
struct OpenFile {
    database: Database,
    checked: Arc<CheckedFile>,
    file: Arc<dyn DiskFile>,
    faults: Faults,
}

/// The state that only the writing thread uses.
struct Writer {
    tally: Tally,
    /// Some batch is not durable.
    dirty: bool,
    /// When the file was last copied: the bytes that the copy took, and the bytes of rows in it.
    /// Another copy does no better.
    last_copy: Option<(u64, u64)>,
    copy: Option<StoreCopy>,
}

/// The contents of a file, counted.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    rows: u64,
    /// Bytes of keys and values.
    live_bytes: u64,
    /// The part of `live_bytes` that is stored in pieces.
    long_bytes: u64,
    /// The number under which the pieces of the next long value are stored.
    next_id: u64,
}

/// A copy of the file under construction. It contains the rows before `next`; changes to these are
/// written to both files.
struct StoreCopy {
    file: Arc<OpenFile>,
    tally: Tally,
    /// The first row that is not copied yet; `None` if all are.
    next: Option<Bytes>,
    unsynced_bytes: usize,
}

/// Classifies the errors of redb.
struct Faults {
    /// The path of the file, for error messages.
    path: String,
    damage: Damage,
}

impl Faults {
    /// Damage if any was found in the file, else `other`.
    fn judge(
        &self,
        error: impl Into<redb::Error>,
        other: impl FnOnce(String, String) -> EngineError,
    ) -> EngineError {
        let error = error.into();
        let path = self.path.clone();
        match (self.damage.get(), &error) {
            (Some(detail), _) => EngineError::Damaged { path, detail: detail.clone() },
            (None, redb::Error::Corrupted(detail)) => {
                EngineError::Damaged { path, detail: detail.clone() }
            }
            (None, error) => other(path, error.to_string()),
        }
    }

    fn open(&self, error: impl Into<redb::Error>) -> EngineError {
        self.judge(error, |path, detail| EngineError::Open { path, detail })
    }

    fn read(&self, error: impl Into<redb::Error>) -> EngineError {
        self.judge(error, |_, detail| EngineError::Read(detail))
    }

    fn write(&self, error: impl Into<redb::Error>) -> EngineError {
        self.judge(error, |path, detail| EngineError::File { action: "write", path, detail })
    }
}

impl DiskEngine {
    /// Opens the file at `path`; see [`open_on`](DiskEngine::open_on).
    ///
    /// # Errors
    ///
    /// As [`open_on`](DiskEngine::open_on).
    #[cfg(any(test, feature = "internals"))]
    pub fn open(path: &Path, cache_bytes: usize) -> Result<DiskEngine, EngineError> {
        let failed = open_failed(path);
        let (Some(parent), Some(name)) =
            (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return Err(failed(&"it is not the name of a file"));
        };
        let directory = files::RealDirectory::open(parent).map_err(|error| failed(&error))?;
        DiskEngine::open_on(Arc::new(directory), name, cache_bytes, Purpose::Use)
    }

    /// Opens a file of a directory, creating it if it does not exist. A new one gets its name once
    /// it is a complete and durable store, so a file of this name always is one.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`]: the file cannot be opened, or is in use. [`EngineError::Damaged`]:
    /// its bytes are not those that were written. [`EngineError::File`]: it cannot be written.
    pub fn open_on(
        directory: Arc<dyn Directory>,
        name: &str,
        cache_bytes: usize,
        purpose: Purpose,
    ) -> Result<DiskEngine, EngineError> {
        let path = directory.path(name);
        let failed = open_failed(&path);
        files::remove_if_present(&*directory, &copy_of(name)).map_err(|error| failed(&error))?;
        let file = match directory.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let unfinished = unfinished(name);
                let file = files::remove_if_present(&*directory, &unfinished)
                    .and_then(|()| match purpose {
                        Purpose::Use => directory.create(&unfinished),
                        Purpose::Staging => directory.create_expendable(&unfinished),
                    })
                    .map_err(|error| failed(&error))?;
                let file = OpenFile::open(file, &path, cache_bytes)?;
                directory
                    .rename(&unfinished, name)
                    .and_then(|()| directory.sync())
                    .map_err(|error| failed(&error))?;
                file
            }
            opened => OpenFile::open(opened.map_err(|error| failed(&error))?, &path, cache_bytes)?,
        };
        let tally = file.tally()?;
        Ok(DiskEngine {
            directory,
            name: name.to_owned(),
            cache_bytes,
            file: RwLock::new(Arc::new(file)),
            rows: AtomicU64::new(tally.rows),
            writer: Mutex::new(Writer { tally, dirty: false, last_copy: None, copy: None }),
        })
    }

    /// Removes a store that is not open, and the files that an interrupted creation of it has left.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn remove(directory: &dyn Directory, name: &str) -> io::Result<()> {
        files::remove_if_present(directory, name)?;
        files::remove_if_present(directory, &copy_of(name))?;
        files::remove_if_present(directory, &unfinished(name))
    }

    fn file(&self) -> Arc<OpenFile> {
        // The reference is replaced by a single assignment, so a poisoned lock is ignored.
        self.file.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // After a panic under this lock the state machine does not write any more.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a copy would be enough smaller to be worth making, and there is room for it.
    fn wants_copy(&self, writer: &Writer, slack_bytes: u64) -> io::Result<bool> {
        let live_bytes = writer.tally.live_bytes;
        let used_bytes = self.file().file.used_bytes()?;
        let expected_bytes = match writer.last_copy {
            Some((used_bytes, held_bytes)) => {
                let scaled = u128::from(live_bytes) * u128::from(used_bytes);
                u64::try_from(scaled / u128::from(held_bytes.max(1))).unwrap_or(u64::MAX)
            }
            None => live_bytes,
        };
        let least_bytes = (live_bytes + live_bytes / 4).max(expected_bytes + expected_bytes / 10);
        let room_bytes = live_bytes + live_bytes / 2 + slack_bytes;
        Ok(used_bytes > least_bytes + slack_bytes
            && self.directory.space()?.free_bytes > room_bytes)
    }

    fn begin_copy(&self) -> Result<StoreCopy, EngineError> {
        let name = copy_of(&self.name);
        let file = files::remove_if_present(&*self.directory, &name)
            .and_then(|()| self.directory.create_expendable(&name))
            .map_err(|error| open_failed(&self.directory.path(&name))(&error))?;
        // Errors of the copy name the store.
        let path = self.directory.path(&self.name);
        let file = Arc::new(OpenFile::open(file, &path, self.cache_bytes)?);
        let next = Some(Bytes::new());
        Ok(StoreCopy { file, tally: Tally::default(), next, unsynced_bytes: 0 })
    }

    /// Copies the next rows, at most [`ShrinkLimits::step_bytes`] of them.
    fn copy_more(&self, copy: &mut StoreCopy, limits: &ShrinkLimits) -> Result<(), EngineError> {
        let Some(next) = copy.next.take() else { return Ok(()) };
        let mut batch = WriteBatch::default();
        let mut bytes = 0;
        let view = self.file().view()?;
        let rest = (Bound::Included(&next[..]), Bound::Unbounded);
        let mut visit = |key: &[u8], value: &[u8]| {
            if bytes >= limits.step_bytes {
                copy.next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            bytes += key.len() + value.len();
            batch.put(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            ControlFlow::Continue(())
        };
        with_values(&mut visit, |visit| view.scan_from(rest, Direction::Forward, visit))?;
        copy.unsynced_bytes += bytes;
        let durability = match copy.unsynced_bytes >= limits.sync_bytes {
            true => Durability::Durable,
            false => Durability::Lazy,
        };
        if durability == Durability::Durable {
            copy.unsynced_bytes = 0;
        }
        copy.file.write(&batch, durability, &mut copy.tally)
    }

    /// Makes the copy, which has all rows, durable, and replaces the file by it.
    fn finish_copy(&self, writer: &mut Writer, mut copy: StoreCopy) -> Result<(), CopyError> {
        copy.file
            .write(&WriteBatch::default(), Durability::Durable, &mut copy.tally)
            .map_err(CopyError::Harmless)?;
        let path = self.directory.path(&self.name).display().to_string();
        let failed = |action, error: io::Error| EngineError::File {
            action,
            path: path.clone(),
            detail: error.to_string(),
        };
        copy.file.file.keep();
        self.directory
            .rename(&copy_of(&self.name), &self.name)
            .map_err(|error| CopyError::Harmless(failed("replace", error)))?;
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = copy.file.clone();
        writer.tally = copy.tally;
        self.directory.sync().map_err(|error| CopyError::Fatal(failed("replace", error)))?;
        let used_bytes = copy.file.file.used_bytes().unwrap_or(u64::MAX);
        writer.last_copy = Some((used_bytes, copy.tally.live_bytes));
        Ok(())
    }

    fn give_up_copy(&self, writer: &mut Writer, error: &EngineError) {
        log::warn!("giving up making {} smaller: {error}", self.file().faults.path);
        self.remove_copy(writer);
    }

    /// Also removes the file if the copy was taken out of the writer to be finished: it would be
    /// left until the next start, and might fill the disk.
    fn remove_copy(&self, writer: &mut Writer) {
        writer.copy = None;
        if let Err(error) = files::remove_if_present(&*self.directory, &copy_of(&self.name)) {
            log::warn!("a copy of the store is left until the next start: {error}");
        }
    }
}

/// Why a copy has not replaced its file.
enum CopyError {
    /// The file is still in use.
    Harmless(EngineError),
    /// The copy is in use, and after a crash the old file may be found.
    Fatal(EngineError),
}

impl OpenFile {
    /// Opens the store in a file, which is empty or complete. `path` is for error messages.
    fn open(
        file: Arc<dyn DiskFile>,
        path: &Path,
        cache_bytes: usize,
    ) -> Result<OpenFile, EngineError> {
        let failed = open_failed(path);
        if !file.try_lock().map_err(|error| failed(&error))? {
            return Err(failed(&"it is in use"));
        }
        let faults = Faults { path: path.display().to_string(), damage: Damage::default() };
        let checked = CheckedFile::open(file.clone(), faults.damage.clone());
        let checked = Arc::new(checked.map_err(|error| faults.open(redb::Error::Io(error)))?);
        let is_new = checked.blocks() == 0;
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create_with_backend(Backend(checked.clone()))
            .map_err(|error| faults.open(error))?;
        let file = OpenFile { database, checked, file, faults };
        if is_new {
            file.create_tables().map_err(|error| file.faults.write(error))?;
        }
        Ok(file)
    }

    /// Creates the tables, which reads expect to exist.
    fn create_tables(&self) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_quick_repair(true);
        transaction.open_table(ROWS)?;
        for pieces in PIECES {
            transaction.open_table(pieces)?;
        }
        transaction.open_table(FACTS)?;
        Ok(transaction.commit()?)
    }

    fn tally(&self) -> Result<Tally, EngineError> {
        self.read_tally().map_err(|error| self.faults.open(error))
    }

    fn read_tally(&self) -> Result<Tally, redb::Error> {
        let transaction = self.database.begin_read()?;
        let mut next_id = 0;
        for pieces in PIECES {
            let table = transaction.open_table(pieces)?;
            if let Some((key, _)) = table.last()? {
                next_id = next_id.max(pieces::id_of(key.value()) + 1);
            }
        }
        let facts = transaction.open_table(FACTS)?;
        let fact = |name| {
            let found = facts.get(name)?;
            Ok::<u64, redb::Error>(found.map_or(0, |value| value.value()))
        };
        let rows = transaction.open_table(ROWS)?.len()?;
        Ok(Tally { rows, live_bytes: fact(LIVE_BYTES)?, long_bytes: fact(LONG_BYTES)?, next_id })
    }

    fn view(self: &Arc<OpenFile>) -> Result<DiskView, EngineError> {
        self.check_sound()?;
        let _reading = Reading::begin();
        let transaction = self.database.begin_read().map_err(|error| self.faults.read(error))?;
        let rows = transaction.open_table(ROWS).map_err(|error| self.faults.read(error))?;
        Ok(DiskView { rows, transaction, file: self.clone() })
    }

    fn write(
        &self,
        batch: &WriteBatch,
        durability: Durability,
        tally: &mut Tally,
    ) -> Result<(), EngineError> {
        self.check_sound()?;
        let mut written = *tally;
        self.write_rows(batch, durability, &mut written)
            .map_err(|error| self.faults.write(error))?;
        *tally = written;
        Ok(())
    }

    fn write_rows(
        &self,
        batch: &WriteBatch,
        durability: Durability,
        tally: &mut Tally,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        match durability {
            Durability::Lazy => transaction.set_durability(redb::Durability::None)?,
            Durability::Durable => transaction.set_quick_repair(true),
        }
        {
            let mut rows = transaction.open_table(ROWS)?;
            let mut pieces = Pieces { transaction: &transaction, tables: [None, None, None] };
            let mut stored = Vec::new();
            for (key, value) in batch.rows() {
                let replaced = match value {
                    Some(value) => {
                        tally.live_bytes += (key.len() + value.len()) as u64;
                        match pieces::is_long(key.len(), value.len()) {
                            true => stored = pieces.put(value, tally)?,
                            false => pieces::encode_short(value, &mut stored),
                        }
                        rows.insert(&key[..], &stored[..])?
                    }
                    None => rows.remove(&key[..])?,
                };
                let Some(replaced) = replaced else {
                    tally.rows += u64::from(value.is_some());
                    continue;
                };
                tally.rows = tally.rows.saturating_sub(u64::from(value.is_none()));
                let (id, len) = StoredValue::decode(replaced.value()).ok_or_else(not_a_row)?.kept();
                tally.live_bytes = tally.live_bytes.saturating_sub((key.len() + len) as u64);
                if let Some(id) = id {
                    tally.long_bytes = tally.long_bytes.saturating_sub(len as u64);
                    pieces.remove(id, len)?;
                }
            }
            if durability == Durability::Durable {
                let mut facts = transaction.open_table(FACTS)?;
                facts.insert(LIVE_BYTES, tally.live_bytes)?;
                facts.insert(LONG_BYTES, tally.long_bytes)?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Pages in the engine's cache are valid even if the file is damaged, but an answer must not
    /// depend on what happens to be cached.
    fn check_sound(&self) -> Result<(), EngineError> {
        let Some(detail) = self.faults.damage.get() else { return Ok(()) };
        Err(EngineError::Damaged { path: self.faults.path.clone(), detail: detail.clone() })
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.checked.close();
    }
}

/// The tables of pieces in a transaction, each opened when it is first needed.
struct Pieces<'t> {
    transaction: &'t WriteTransaction,
    tables: [Option<Table<'t, u64, Row>>; pieces::SIZES],
}

impl<'t> Pieces<'t> {
    fn table(&mut self, size: usize) -> Result<&mut Table<'t, u64, Row>, redb::Error> {
        let table = match self.tables[size].take() {
            Some(table) => table,
            None => self.transaction.open_table(PIECES[size])?,
        };
        Ok(self.tables[size].insert(table))
    }

    /// Stores a value in pieces; returns the contents of its row, which refers to them.
    fn put(&mut self, value: &[u8], tally: &mut Tally) -> Result<Vec<u8>, redb::Error> {
        let id = tally.next_id;
        tally.next_id += 1;
        tally.long_bytes += value.len() as u64;
        for piece in pieces::layout(value.len()) {
            let bytes = &value[piece.start..piece.end];
            self.table(piece.size)?.insert(pieces::key(id, piece.number), bytes)?;
        }
        Ok(pieces::encode_long(id, value.len()))
    }

    fn remove(&mut self, id: u64, len: usize) -> Result<(), redb::Error> {
        for piece in pieces::layout(len) {
            self.table(piece.size)?.remove(pieces::key(id, piece.number))?;
        }
        Ok(())
    }
}

fn not_a_row() -> redb::Error {
    redb::Error::Corrupted("a row is not as it was written".to_owned())
}

impl Engine for DiskEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let view = self.file().view()?;
        let _reading = Reading::begin();
        let found = view.rows.get(key).map_err(|error| view.file.faults.read(error))?;
        let Some(stored) = found else { return Ok(None) };
        view.with_value(stored.value(), |value| Ok(Some(value.read()?.into_owned().into())))?
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        Ok(Box::new(self.file().view()?))
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        let mut writer = self.writer();
        let writer = &mut *writer;
        writer.dirty = true;
        self.file().write(batch, durability, &mut writer.tally)?;
        writer.dirty = durability == Durability::Lazy;
        self.rows.store(writer.tally.rows, Ordering::Relaxed);
        if let Some(StoreCopy { file, tally, next, .. }) = &mut writer.copy {
            let mut copied = WriteBatch::default();
            for (key, value) in batch.rows() {
                match value {
                    _ if next.as_ref().is_some_and(|next| key >= next) => {}
                    Some(value) => copied.put(key.clone(), value.clone()),
                    None => copied.delete(key.clone()),
                }
            }
            if let Err(error) = file.write(&copied, Durability::Lazy, tally) {
                self.give_up_copy(writer, &error);
            }
        }
        Ok(())
    }

    fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError> {
        let file = self.file();
        file.check_sound()?;
        let checked = &file.checked;
        let failed = |error| file.faults.read(redb::Error::Io(error));
        if !checked.verify(from_block, blocks).map_err(failed)? {
            return Ok(Scrubbed { next_block: Some(from_block) });
        }
        let next = from_block.saturating_add(blocks);
        Ok(Scrubbed { next_block: (next < checked.blocks()).then_some(next) })
    }

    fn shrink(&self, limits: &ShrinkLimits) -> Result<bool, EngineError> {
        let mut writer = self.writer();
        let writer = &mut *writer;
        self.file().check_sound()?;
        let dirty = writer.dirty;
        let step = match &mut writer.copy {
            None => match self.wants_copy(writer, limits.slack_bytes) {
                Ok(false) => return Ok(false),
                Ok(true) => self.begin_copy().map(|copy| writer.copy = Some(copy)),
                Err(error) => {
                    log::warn!("cannot see whether the store takes too much room: {error}");
                    return Ok(false);
                }
            },
            Some(copy) if copy.next.is_some() => self.copy_more(copy, limits),
            // The copy is finished after the next durable batch.
            Some(_) if dirty => return Ok(true),
            Some(_) => {
                let Some(copy) = writer.copy.take() else { return Ok(false) };
                return match self.finish_copy(writer, copy) {
                    Ok(()) => Ok(false),
                    Err(CopyError::Fatal(error)) => Err(error),
                    Err(CopyError::Harmless(error)) => {
                        self.give_up_copy(writer, &error);
                        Ok(false)
                    }
                };
            }
        };
        match step {
            Ok(()) => Ok(true),
            Err(error) => {
                // Damage of the store itself is reported by the next call.
                self.give_up_copy(writer, &error);
                Ok(false)
            }
        }
    }

    fn stop_shrinking(&self) {
        let mut writer = self.writer();
        if writer.copy.is_some() {
            self.remove_copy(&mut writer);
        }
    }

    fn reusable_bytes(&self) -> u64 {
        let Tally { live_bytes, long_bytes, .. } = self.writer().tally;
        let used_bytes = self.file().file.used_bytes().unwrap_or_default();
        // The empty part of pages of short rows cannot be used for other rows. Pages of pieces are
        // full.
        let short_bytes = live_bytes.saturating_sub(long_bytes);
        used_bytes.saturating_sub(live_bytes + short_bytes / 4 * 3 + long_bytes / 8)
    }
}

/// A consistent read view of the rows.
struct DiskView {
    rows: ReadOnlyTable<Row, Row>,
    /// For opening the tables of pieces, which most reads do not need.
    transaction: ReadTransaction,
    /// Keeps the file open while it is read, also after the engine was dropped.
    file: Arc<OpenFile>,
}

impl DiskView {
    /// Passes the value that a row contains or refers to on to `take`.
    fn with_value<T>(
        &self,
        stored: &[u8],
        take: impl FnOnce(RowValue<'_>) -> T,
    ) -> Result<T, EngineError> {
        let failed = |error| self.file.faults.read(error);
        Ok(match StoredValue::decode(stored).ok_or_else(|| failed(not_a_row()))? {
            StoredValue::Short(value) => take(RowValue::Inline(value)),
            StoredValue::Long { id, len } => {
                let read = || self.long_value(id, len).map_err(failed);
                take(RowValue::OutOfLine { bytes: len, read: &read })
            }
        })
    }

    fn long_value(&self, id: u64, len: usize) -> Result<Vec<u8>, redb::Error> {
        let mut value = Vec::with_capacity(len);
        let mut table: Option<(usize, ReadOnlyTable<u64, Row>)> = None;
        for piece in pieces::layout(len) {
            let open = match table.take() {
                Some((size, open)) if size == piece.size => open,
                _ => self.transaction.open_table(PIECES[piece.size])?,
            };
            let (_, open) = table.insert((piece.size, open));
            let found = open.get(pieces::key(id, piece.number))?.ok_or_else(not_a_row)?;
            value.extend_from_slice(found.value());
            if value.len() != piece.end {
                return Err(not_a_row());
            }
        }
        Ok(value)
    }

    fn scan_from(
        &self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        let _reading = Reading::begin();
        let failed = |error| self.file.faults.read(error);
        let mut rows = self.rows.range::<&[u8]>(bounds).map_err(failed)?;
        loop {
            let row = match direction {
                Direction::Forward => rows.next(),
                Direction::Reverse => rows.next_back(),
            };
            let Some(row) = row else { return Ok(()) };
            let (key, stored) = row.map_err(failed)?;
            let flow = self.with_value(stored.value(), |value| visit(key.value(), value))?;
            if flow.is_break() {
                return Ok(());
            }
        }
    }
}

impl EngineView for DiskView {
    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.file.check_sound()?;
        if range.start >= range.end {
            return Ok(());
        }
        let bounds = (Bound::Included(&range.start[..]), Bound::Excluded(&range.end[..]));
        self.scan_from(bounds, direction, visit)
    }
}

/// The name of a copy of a store before it replaces the store.
fn copy_of(name: &str) -> String {
    format!("{name}.copy")
}

/// The name of a store before it is complete.
fn unfinished(name: &str) -> String {
    format!("{name}.new")
}

fn open_failed(path: &Path) -> impl Fn(&dyn fmt::Display) -> EngineError {
    let path = path.display().to_string();
    move |detail| EngineError::Open { path: path.clone(), detail: detail.to_string() }
}

impl fmt::Debug for DiskEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskEngine").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use tempfile::TempDir;

    use super::*;
    use crate::model::{
        ClientId, Command, LogEntry, PageOf, Put, ReadView, RequestId, StateLimits, Timestamp,
        WriteOp,
    };
    use crate::storage::apply::StateMachine;
    use crate::storage::gated_file::GatedFile;
    use crate::storage::reads::PageLimits;

    fn used_bytes(engine: &DiskEngine) -> u64 {
        engine.file().file.used_bytes().unwrap()
    }

    fn shrink(engine: &DiskEngine) {
        let limits = ShrinkLimits { slack_bytes: 0, ..ShrinkLimits::default() };
        let end = (0..100_000).find(|_| !engine.shrink(&limits).unwrap());
        assert!(end.is_some(), "it never ends");
    }

    fn all(engine: &DiskEngine) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut rows = BTreeMap::new();
        let range = RowRange { start: Bytes::new(), end: Bytes::from_static(&[0xff; 9]) };
        engine
            .scan(&range, Direction::Forward, &mut |key, value| {
                rows.insert(key.to_vec(), value.to_vec());
                ControlFlow::Continue(())
            })
            .unwrap();
        rows
    }

    /// Each row's pieces are there once, and no others: what is left behind costs room that nobody
    /// finds again.
    fn assert_pieces_match_rows(engine: &DiskEngine) {
        let transaction = engine.file().database.begin_read().unwrap();
        let mut wanted = BTreeSet::new();
        for row in transaction.open_table(ROWS).unwrap().range::<&[u8]>(..).unwrap() {
            if let StoredValue::Long { id, len } =
                StoredValue::decode(row.unwrap().1.value()).unwrap()
            {
                for piece in pieces::layout(len) {
                    let new = wanted.insert((piece.size, pieces::key(id, piece.number)));
                    assert!(new, "two rows have the same pieces");
                }
            }
        }
        let mut found = BTreeSet::new();
        for (size, table) in PIECES.into_iter().enumerate() {
            for piece in transaction.open_table(table).unwrap().range::<u64>(..).unwrap() {
                found.insert((size, piece.unwrap().0.value()));
            }
        }
        assert!(found == wanted, "{} pieces of {}", found.len(), wanted.len());
    }

    #[test]
    fn a_store_at_rest_takes_little_more_than_what_it_holds_whatever_the_size_of_values() {
        for len in [100, 1024, 4300, 66 * 1024, 1024 * 1024 + 1] {
            let dir = TempDir::new().unwrap();
            let engine = DiskEngine::open(&dir.path().join("store"), 1 << 20).unwrap();
            let count = (12_000_000 / len as u64).min(30_000);
            let key = |i: u64| {
                let scattered = i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
                Bytes::from([&scattered[..], b"and a version"].concat())
            };
            let durability = |first: u64| match first % 640 {
                0 => Durability::Durable,
                _ => Durability::Lazy,
            };
            for first in (0..count).step_by(64) {
                let mut batch = WriteBatch::default();
                for i in first..(first + 64).min(count) {
                    batch.put(key(i), Bytes::from(vec![i as u8; len]));
                }
                engine.write(&batch, durability(first)).unwrap();
            }
            for kept in [1, 10] {
                engine.write(&WriteBatch::default(), Durability::Durable).unwrap();
                let before = used_bytes(&engine);
                shrink(&engine);
                let live: u64 = all(&engine).iter().map(|(k, v)| (k.len() + v.len()) as u64).sum();
                let used = used_bytes(&engine);
                assert_eq!(engine.writer().tally.live_bytes, live);
                // Besides the rows, what the smallest file takes.
                assert!(
                    used <= live + live * 3 / 10 + 128 * 1024,
                    "values of {len}, one in {kept}: {used} bytes for {live}, {before} before"
                );
                let rows = all(&engine);
                assert_eq!(rows.len() as u64, count.div_ceil(kept));
                assert!(rows.values().all(|value| value.len() == len));
                for first in (0..count).step_by(64) {
                    let mut batch = WriteBatch::default();
                    let removed = (first..(first + 64).min(count)).filter(|i| i % 10 != 0);
                    removed.for_each(|i| batch.delete(key(i)));
                    engine.write(&batch, durability(first)).unwrap();
                }
            }
        }
    }

    /// The engine's reads wrote pages of lazy batches to make room in its cache, and then waited
    /// like any write.
    #[test]
    fn a_read_writes_nothing_and_waits_for_no_room_and_no_page_is_lost() {
        const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);
        const COUNT: u32 = 3_000;
        let gated = Arc::new(GatedFile::new(tempfile::tempfile().unwrap()));
        let open = || Arc::new(OpenFile::open(gated.clone(), Path::new("a"), 128 * 1024).unwrap());
        let file = open();
        let (mut tally, mut expected) = (Tally::default(), BTreeMap::new());
        let mut write = |keys: std::ops::Range<u32>, fill: u8, durability| {
            let mut batch = WriteBatch::default();
            for key in keys {
                let (key, value) = (key.to_be_bytes().to_vec(), vec![fill; 700]);
                batch.put(key.clone().into(), value.clone().into());
                expected.insert(key, value);
            }
            file.write(&batch, durability, &mut tally).unwrap();
            expected.clone()
        };
        write(0..COUNT, 1, Durability::Durable);
        // Less than the half of the cache that pages may take which are not written: they stay
        // there.
        let expected = write(7..27, 2, Durability::Lazy);
        let read = |file: Arc<OpenFile>| {
            let mut rows = BTreeMap::new();
            let range = RowRange { start: Bytes::new(), end: Bytes::from_static(&[0xff; 9]) };
            file.view()?.scan(&range, Direction::Forward, &mut |key, value| {
                rows.insert(key.to_vec(), value.to_vec());
                ControlFlow::Continue(())
            })?;
            Ok::<_, EngineError>(rows)
        };
        gated.shut(true);
        std::thread::scope(|scope| {
            let (done, found) = std::sync::mpsc::channel();
            let (read, file) = (&read, file.clone());
            // Once more than the cache holds, and again with the pages that are not written among
            // the others.
            scope.spawn(move || _ = done.send([read(file.clone()), read(file)]));
            let found = found.recv_timeout(DEADLINE);
            gated.shut(false);
            for found in found.expect("the read waits for a write") {
                assert!(found.unwrap() == expected);
            }
        });
        let expected = write(COUNT..COUNT + 1, 3, Durability::Durable);
        assert!(read(file.clone()).unwrap() == expected);
        drop(file);
        assert!(read(open()).unwrap() == expected);
    }

    /// Where the pieces are gone, nothing that reads them gets by.
    #[test]
    fn a_page_of_keys_reads_no_piece_of_a_long_value() {
        let dir = TempDir::new().unwrap();
        let engine = Arc::new(DiskEngine::open(&dir.path().join("store"), 1 << 20).unwrap());
        let mut machine = StateMachine::open(engine.clone(), StateLimits::default()).unwrap();
        let put = |index: u64| {
            let (key, value) = (Bytes::from(format!("k{index}")), Bytes::from(vec![7; 70_000]));
            let op = WriteOp::Put(Put { key, value, tells_previous: false });
            let request = RequestId {
                client: ClientId(1),
                sequence: index,
                answered_below: 1,
                begun: Timestamp::ZERO,
            };
            let data = Command::write(Timestamp(index as i64), request, op).encode();
            LogEntry { term: 1, index, data }
        };
        machine.apply(&(1..=3).map(put).collect::<Vec<_>>()).unwrap();
        let transaction = engine.file().database.begin_write().unwrap();
        for table in PIECES {
            transaction.open_table(table).unwrap().retain(|_, _| false).unwrap();
        }
        transaction.commit().unwrap();

        let store = machine.store();
        let (from, to) = (Bytes::from("a"), Bytes::from("z"));
        let pages = [
            PageOf::Range { from: from.clone(), to: to.clone() },
            PageOf::RangeReverse { from, to },
            PageOf::Keys { keys: ["k1", "k2", "k3"].map(Bytes::from).to_vec() },
        ];
        let view = ReadView::as_of(Timestamp(i64::MAX));
        for of in pages {
            let page = |keys_only| {
                store.first_page(&of, view, PageLimits { keys_only, ..PageLimits::default() })
            };
            assert_eq!(page(true).unwrap().rows.len(), 3, "{of:?}");
            assert!(page(false).is_err(), "{of:?}: a value without its pieces");
        }
    }

    #[test]
    fn what_is_written_while_a_copy_is_made_is_in_it_and_a_crash_loses_nothing_durable() {
        let seed = std::env::var("ACERVO_SEED")
            .map_or_else(|_| rand::random(), |seed| seed.parse().expect("ACERVO_SEED is a number"));
        println!("replay with ACERVO_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("store");
        let mut engine = DiskEngine::open(&path, 1 << 20).unwrap();
        let (mut rows, mut durable) = (BTreeMap::new(), BTreeMap::new());
        let mut copies = 0;
        for round in 0..400 {
            let mut batch = WriteBatch::default();
            for _ in 0..rng.random_range(0..20) {
                let key = vec![b'k', rng.random_range(0..200)];
                if rng.random_bool(0.4) {
                    batch.delete(key.clone().into());
                    rows.remove(&key);
                } else {
                    let most = [10, 1500, 5000, 70_000, 150_000][rng.random_range(0..5)];
                    let value = vec![rng.random(); rng.random_range(0..most)];
                    batch.put(key.clone().into(), value.clone().into());
                    rows.insert(key, value);
                }
            }
            let is_durable = rng.random_bool(0.3);
            let durability = if is_durable { Durability::Durable } else { Durability::Lazy };
            engine.write(&batch, durability).unwrap();
            if is_durable {
                durable = rows.clone();
            }
            let file = engine.file();
            if rng.random_bool(0.7) {
                let limits = ShrinkLimits {
                    slack_bytes: 0,
                    step_bytes: rng.random_range(1..1_000_000),
                    sync_bytes: rng.random_range(1..1_000_000),
                };
                engine.shrink(&limits).unwrap();
            } else if rng.random_bool(0.05) {
                engine.stop_shrinking();
            }
            copies += usize::from(!Arc::ptr_eq(&file, &engine.file()));
            drop(file);
            assert!(all(&engine) == rows, "round {round}");
            assert_pieces_match_rows(&engine);
            if rng.random_bool(0.03) {
                drop(engine);
                engine = DiskEngine::open(&path, 1 << 20).unwrap();
                rows = durable.clone();
                assert!(all(&engine) == rows, "after a crash in round {round}");
                let live: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
                assert_eq!(engine.writer().tally.live_bytes, live as u64);
                let names = std::fs::read_dir(dir.path()).unwrap().count();
                assert_eq!(names, 1, "a copy is left");
            }
        }
        assert!(copies > 0, "the store was never copied");
    }
}
