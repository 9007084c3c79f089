//! The engine on disk: one redb file.
//!
//! Lazy batches are commits without durability; a durable one is an immediate commit that also
//! saves the allocator's state, so that opening after a crash takes a millisecond, whatever the
//! size.
//!
//! It stands on a `storage::checked_file`: a damaged page is an error, and never seen by
//! the engine. After the first one everything fails with [`EngineError::Damaged`].
//!
//! Closing is crash-only: whether the process is killed or the engine is dropped, the file stands
//! at the last durable batch. redb by itself would make pending lazy commits durable on a clean
//! close; the state machine, whose sessions are only written with a durable batch, needs the two
//! endings to be the same. So on drop the file is first shut to further writes.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::checked_file::{Backend, CheckedFile, Damage};
use super::engine::{
    Direction, Durability, Engine, EngineError, EngineView, Scrubbed, Visitor, WriteBatch,
};
use super::files::{self, Directory, DiskFile, RealDirectory};
use super::keys::RowRange;

type Row = &'static [u8];
const ROWS: TableDefinition<'static, Row, Row> = TableDefinition::new("rows");

/// What a new file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is the store.
    Use,
    /// A store is built in it. It can be done without, and fails on a full disk.
    Staging,
}

/// A redb file.
pub struct DiskEngine {
    file: Arc<OpenFile>,
}

/// Kept by the engine and by its views.
struct OpenFile {
    database: Database,
    checked: Arc<CheckedFile>,
    faults: Faults,
}

/// Tells what an error of the engine comes to.
struct Faults {
    /// For whoever reads of it.
    path: String,
    damage: Damage,
}

impl Faults {
    /// `other` says what it is when the file is not damaged.
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
    pub fn open(path: &Path, cache_bytes: usize) -> Result<DiskEngine, EngineError> {
        let failed = open_failed(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
        else {
            return Err(failed(&"it is not the name of a file"));
        };
        let directory = RealDirectory::open(parent).map_err(|error| failed(&error))?;
        DiskEngine::open_on(&directory, name, cache_bytes, Purpose::Use)
    }

    /// Opens a file of a directory, creating it when it does not exist. A new one gets its name when
    /// it is a whole and durable store: so there never is a file of this name that is not.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`]: the file cannot be opened, or is in use. [`EngineError::Damaged`]: it is
    /// not what was written. [`EngineError::File`]: it cannot be written.
    pub fn open_on(
        directory: &dyn Directory,
        name: &str,
        cache_bytes: usize,
        purpose: Purpose,
    ) -> Result<DiskEngine, EngineError> {
        let path = directory.path(name);
        let failed = open_failed(&path);
        match directory.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => {
                let file = opened.map_err(|error| failed(&error))?;
                return DiskEngine::on_file(file, &path, cache_bytes);
            }
        }
        let unfinished = unfinished(name);
        let file = files::remove_if_present(directory, &unfinished)
            .and_then(|()| match purpose {
                Purpose::Use => directory.create(&unfinished),
                Purpose::Staging => directory.create_expendable(&unfinished),
            })
            .map_err(|error| failed(&error))?;
        let engine = DiskEngine::on_file(file, &path, cache_bytes)?;
        directory
            .rename(&unfinished, name)
            .and_then(|()| directory.sync())
            .map_err(|error| failed(&error))?;
        Ok(engine)
    }

    /// Removes a store that nobody has open, and what a creation of it that was cut short has left.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn remove(directory: &dyn Directory, name: &str) -> io::Result<()> {
        files::remove_if_present(directory, name)?;
        files::remove_if_present(directory, &unfinished(name))
    }

    /// The store in a file, which is empty or whole. `path` is for whoever reads that it failed.
    fn on_file(
        file: Arc<dyn DiskFile>,
        path: &Path,
        cache_bytes: usize,
    ) -> Result<DiskEngine, EngineError> {
        let failed = open_failed(path);
        if !file.try_lock().map_err(|error| failed(&error))? {
            return Err(failed(&"it is in use"));
        }
        let faults = Faults { path: path.display().to_string(), damage: Damage::default() };
        let checked = CheckedFile::open(file, faults.damage.clone());
        let checked = Arc::new(checked.map_err(|error| faults.open(redb::Error::Io(error)))?);
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create_with_backend(Backend(checked.clone()))
            .map_err(|error| faults.open(error))?;
        let engine = DiskEngine { file: Arc::new(OpenFile { database, checked, faults }) };
        // Reads expect the table.
        engine.write(&WriteBatch::default(), Durability::Durable)?;
        Ok(engine)
    }
}

impl OpenFile {
    fn table(&self) -> Result<ReadOnlyTable<Row, Row>, EngineError> {
        self.check_sound()?;
        let transaction = self.database.begin_read().map_err(|error| self.faults.read(error))?;
        transaction.open_table(ROWS).map_err(|error| self.faults.read(error))
    }

    /// What is in the engine's cache is right also when the file is not; but no answer is to depend on
    /// what happens to be there.
    fn check_sound(&self) -> Result<(), EngineError> {
        let Some(detail) = self.faults.damage.get() else { return Ok(()) };
        Err(EngineError::Damaged { path: self.faults.path.clone(), detail: detail.clone() })
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.checked.shut();
    }
}

impl Engine for DiskEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.file.table()?.get(key).map_err(|error| self.file.faults.read(error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        scan(&self.file, &self.file.table()?, range, direction, visit)
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        Ok(Box::new(DiskView { table: self.file.table()?, file: self.file.clone() }))
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        self.file.check_sound()?;
        let faults = &self.file.faults;
        let mut transaction =
            self.file.database.begin_write().map_err(|error| faults.write(error))?;
        match durability {
            Durability::Lazy => {
                transaction
                    .set_durability(redb::Durability::None)
                    .map_err(|error| faults.write(error))?;
            }
            Durability::Durable => transaction.set_quick_repair(true),
        }
        {
            let table = transaction.open_table(ROWS);
            let mut table = table.map_err(|error| faults.write(error))?;
            for (key, value) in batch.rows() {
                match value {
                    Some(value) => {
                        table.insert(&key[..], &value[..]).map_err(|error| faults.write(error))?
                    }
                    None => table.remove(&key[..]).map_err(|error| faults.write(error))?,
                };
            }
        }
        transaction.commit().map_err(|error| faults.write(error))
    }

    fn scrub(&self, from_block: u64, blocks: u64) -> Result<Scrubbed, EngineError> {
        self.file.check_sound()?;
        let checked = &self.file.checked;
        let failed = |error| self.file.faults.read(redb::Error::Io(error));
        checked.verify(from_block, blocks).map_err(failed)?;
        let next = from_block.saturating_add(blocks);
        Ok(Scrubbed { next_block: (next < checked.blocks()).then_some(next) })
    }
}

/// A table in a read transaction.
struct DiskView {
    table: ReadOnlyTable<Row, Row>,
    /// Open for as long as it is read, also when the engine is gone.
    file: Arc<OpenFile>,
}

impl EngineView for DiskView {
    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.file.check_sound()?;
        scan(&self.file, &self.table, range, direction, visit)
    }
}

fn scan(
    file: &OpenFile,
    table: &ReadOnlyTable<Row, Row>,
    range: &RowRange,
    direction: Direction,
    visit: &mut Visitor<'_>,
) -> Result<(), EngineError> {
    if range.start >= range.end {
        return Ok(());
    }
    let bounds = (Bound::Included(&range.start[..]), Bound::Excluded(&range.end[..]));
    let mut rows = table.range::<&[u8]>(bounds).map_err(|error| file.faults.read(error))?;
    loop {
        let row = match direction {
            Direction::Forward => rows.next(),
            Direction::Reverse => rows.next_back(),
        };
        let Some(row) = row else { return Ok(()) };
        let (key, value) = row.map_err(|error| file.faults.read(error))?;
        if visit(key.value(), value.value()).is_break() {
            return Ok(());
        }
    }
}

/// What a store is called before it is whole.
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
