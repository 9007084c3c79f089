//! The engine on disk: one redb file.
//!
//! Lazy batches are commits without durability; a durable one is an immediate commit that also
//! saves the allocator's state, so that opening after a crash takes a millisecond, whatever the
//! size.
//!
//! Closing is crash-only: whether the process is killed or the engine is dropped, the file stands
//! at the last durable batch. redb by itself would make pending lazy commits durable on a clean
//! close; the state machine, whose sessions are only written with a durable batch, needs the two
//! endings to be the same. So on drop the file is first shut to further writes.

use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use redb::{
    Database, ReadOnlyTable, ReadableDatabase, StorageBackend, TableDefinition, TableError,
};

use super::engine::{Direction, Durability, Engine, EngineError, EngineView, Visitor, WriteBatch};
use super::files::{self, Directory, DiskFile, RealDirectory};
use super::keys::RowRange;

type Row = &'static [u8];
const ROWS: TableDefinition<'static, Row, Row> = TableDefinition::new("rows");

/// A redb file.
pub struct DiskEngine {
    file: Arc<OpenFile>,
    /// For whoever reads that it cannot be written.
    path: String,
}

/// Kept by the engine and by its views.
struct OpenFile {
    database: Database,
    shut: Arc<AtomicBool>,
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
        DiskEngine::open_on(&directory, name, cache_bytes)
    }

    /// Opens a file of a directory, creating it when it does not exist. A new one gets its name when
    /// it is a whole and durable store: so there never is a file of this name that is not.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`]: the file cannot be opened, is in use, or is not such a file.
    /// [`EngineError::File`]: it cannot be written.
    pub fn open_on(
        directory: &dyn Directory,
        name: &str,
        cache_bytes: usize,
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
            .and_then(|()| directory.create(&unfinished))
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
        let shut = Arc::new(AtomicBool::new(false));
        let backend = FileBackend { file, shut: shut.clone() };
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create_with_backend(backend)
            .map_err(|error| failed(&error))?;
        let engine = DiskEngine {
            file: Arc::new(OpenFile { database, shut }),
            path: path.display().to_string(),
        };
        // Reads expect the table.
        engine.write(&WriteBatch::default(), Durability::Durable)?;
        Ok(engine)
    }

    fn table(&self) -> Result<ReadOnlyTable<Row, Row>, EngineError> {
        let transaction = self.file.database.begin_read().map_err(read)?;
        transaction.open_table(ROWS).map_err(read)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.shut.store(true, Ordering::Release);
    }
}

fn read(error: impl Display) -> EngineError {
    EngineError::Read(error.to_string())
}

impl Engine for DiskEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.table()?.get(key).map_err(read)?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        scan(&self.table()?, range, direction, visit)
    }

    fn view(&self) -> Result<Box<dyn EngineView>, EngineError> {
        Ok(Box::new(DiskView { table: self.table()?, _file: self.file.clone() }))
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        let failed = |detail: &dyn Display| EngineError::File {
            action: "write",
            path: self.path.clone(),
            detail: detail.to_string(),
        };
        let mut transaction = self.file.database.begin_write().map_err(|error| failed(&error))?;
        match durability {
            Durability::Lazy => {
                transaction
                    .set_durability(redb::Durability::None)
                    .map_err(|error| failed(&error))?;
            }
            Durability::Durable => transaction.set_quick_repair(true),
        }
        {
            let table = transaction.open_table(ROWS);
            let mut table = table.map_err(|error: TableError| failed(&error))?;
            for (key, value) in batch.rows() {
                match value {
                    Some(value) => {
                        table.insert(&key[..], &value[..]).map_err(|error| failed(&error))?
                    }
                    None => table.remove(&key[..]).map_err(|error| failed(&error))?,
                };
            }
        }
        transaction.commit().map_err(|error| failed(&error))
    }
}

/// A table in a read transaction.
struct DiskView {
    table: ReadOnlyTable<Row, Row>,
    /// Open for as long as it is read, also when the engine is gone.
    _file: Arc<OpenFile>,
}

impl EngineView for DiskView {
    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        scan(&self.table, range, direction, visit)
    }
}

fn scan(
    table: &ReadOnlyTable<Row, Row>,
    range: &RowRange,
    direction: Direction,
    visit: &mut Visitor<'_>,
) -> Result<(), EngineError> {
    if range.start >= range.end {
        return Ok(());
    }
    let bounds = (Bound::Included(&range.start[..]), Bound::Excluded(&range.end[..]));
    let mut rows = table.range::<&[u8]>(bounds).map_err(read)?;
    loop {
        let row = match direction {
            Direction::Forward => rows.next(),
            Direction::Reverse => rows.next_back(),
        };
        let Some(row) = row else { return Ok(()) };
        let (key, value) = row.map_err(read)?;
        if visit(key.value(), value.value()).is_break() {
            return Ok(());
        }
    }
}

/// What a store is called before it is whole.
fn unfinished(name: &str) -> String {
    format!("{name}.new")
}

fn open_failed(path: &Path) -> impl Fn(&dyn Display) -> EngineError {
    let path = path.display().to_string();
    move |detail| EngineError::Open { path: path.clone(), detail: detail.to_string() }
}

/// The engine's file, which can be shut to writes; reading goes on. It is locked before the engine
/// gets it, so the engine's own locks are left out.
struct FileBackend {
    file: Arc<dyn DiskFile>,
    shut: Arc<AtomicBool>,
}

impl FileBackend {
    fn check_open(&self) -> io::Result<()> {
        if self.shut.load(Ordering::Acquire) {
            return Err(io::Error::other("the store is closed"));
        }
        Ok(())
    }
}

impl fmt::Debug for FileBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBackend").finish_non_exhaustive()
    }
}

impl StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.file.read_at(out, offset)? < out.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_open()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check_open()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_open()?;
        self.file.write_all_at(data, offset)
    }
}

impl fmt::Debug for DiskEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskEngine").finish_non_exhaustive()
    }
}
