//! The files of a store: their names and numbers, how they are written and read, and the first
//! damage.
//!
//! Rules:
//!
//! - A file is written once, from its beginning to its end, and synced. One that is dropped before
//!   it is whole is removed, and so is a file that the manifest names no longer, when its last
//!   reader has gone. What a crash leaves is removed at the next opening.
//! - A read is within the length that the manifest tells of the file, which is compared with the
//!   file when it is opened. So no damaged length makes a read allocate more than the file holds.
//! - Files are open while they are used, and the last ones stay open for a while, up to a number:
//!   a store has as many files as it is large, and a process may open only so many.
//! - The first damage that is found is final: every later call fails with it, because it is not
//!   known what else is damaged. A read that the system refuses is not damage: the storage may be
//!   unreachable for a while, for all servers at once, and its contents be sound.
//!
//! What it leaves out: making names durable, which the manifest does once for all files that it is
//! going to name.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::section::{self, Place, SectionError};
use crate::storage::engine::EngineError;
use crate::storage::files::{self, Directory, DiskFile};

/// Written bytes are collected to pieces of this size: fewer calls, and little memory beside that
/// of a memory table.
const WRITE_BYTES: usize = 256 * 1024;

/// Files have lower numbers. No store creates so many, so that a greater number in a name or in a
/// manifest is not one that was given. A position of the scrubber has room for no greater one.
pub(super) const NUMBERS_END: u64 = 1 << 30;

/// The kind of a numbered file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum FileKind {
    Table,
    /// Long values, to which rows of tables refer.
    Values,
}

impl FileKind {
    const ALL: [FileKind; 2] = [FileKind::Table, FileKind::Values];

    fn extension(self) -> &'static str {
        match self {
            FileKind::Table => "table",
            FileKind::Values => "values",
        }
    }

    pub fn name(self, number: u64) -> String {
        format!("{number}.{}", self.extension())
    }

    /// The kind and the number of a file with this name; `None` if no file of a store has it.
    pub fn parse(name: &str) -> Option<(FileKind, u64)> {
        let (number, extension) = name.split_once('.')?;
        let kind = FileKind::ALL.into_iter().find(|kind| kind.extension() == extension)?;
        let number = number.parse().ok().filter(|number| *number < NUMBERS_END)?;
        // `+1` and `01` are numbers, too.
        (kind.name(number) == name).then_some((kind, number))
    }
}

/// The directory of one store, which no other process uses.
pub(super) struct TableDirectory {
    directory: Arc<dyn Directory>,
    /// The number of the next file.
    next_number: AtomicU64,
    open_files: Mutex<OpenFiles>,
    /// Another store has taken the place of this one.
    is_retired: AtomicBool,
    damage: OnceLock<FoundDamage>,
    /// Set when it is unknown what a crash would leave: what was tried, the path, and the detail.
    failed: OnceLock<(&'static str, String, String)>,
}

struct FoundDamage {
    path: String,
    detail: String,
}

impl TableDirectory {
    /// Keeps at most so many files open between two reads.
    pub fn new(directory: Arc<dyn Directory>, open_files_max: usize) -> TableDirectory {
        TableDirectory {
            directory,
            next_number: AtomicU64::new(1),
            open_files: Mutex::new(OpenFiles { files: HashMap::new(), uses: 0, open_files_max }),
            is_retired: AtomicBool::new(false),
            damage: OnceLock::new(),
            failed: OnceLock::new(),
        }
    }

    pub fn files(&self) -> &dyn Directory {
        &*self.directory
    }

    /// The number of the next file that is created.
    pub fn next_number(&self) -> u64 {
        self.next_number.load(Ordering::Relaxed)
    }

    /// Has numbers below this one never be given again. A name may have any number, so that half of
    /// them are left in any case.
    pub fn skip_numbers(&self, below: u64) {
        self.next_number.fetch_max(below.min(NUMBERS_END / 2), Ordering::Relaxed);
    }

    /// # Errors
    ///
    /// [`EngineError::Damaged`] if damage was found before.
    pub fn check_sound(&self) -> Result<(), EngineError> {
        self.damage.get().map_or(Ok(()), |found| Err(found.error()))
    }

    /// # Errors
    ///
    /// [`EngineError::File`] if it is unknown what a crash would leave, so that nothing may be
    /// written; [`EngineError::Damaged`] if damage was found before.
    pub fn check_writable(&self) -> Result<(), EngineError> {
        self.check_sound()?;
        self.failed.get().map_or(Ok(()), |(action, path, detail)| {
            Err(EngineError::File { action, path: path.clone(), detail: detail.clone() })
        })
    }

    /// Has everything that would write fail from now on as this has failed.
    pub fn set_failed(&self, error: &EngineError) {
        if let EngineError::File { action, path, detail } = error {
            let _ = self.failed.set((action, path.clone(), detail.clone()));
        }
    }

    /// The error for damage in a file: that of the first one that was found.
    pub fn damaged(&self, name: &str, detail: String) -> EngineError {
        let path = self.path(name);
        self.damage.get_or_init(|| FoundDamage { path, detail }).error()
    }

    pub fn refused(&self, action: &'static str, name: &str, error: &io::Error) -> EngineError {
        EngineError::File { action, path: self.path(name), detail: error.to_string() }
    }

    pub fn unreadable(&self, name: &str, error: &io::Error) -> EngineError {
        EngineError::Read(format!("{} cannot be read: {error}", self.path(name)))
    }

    /// Creates the next file.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn create(
        self: &Arc<Self>,
        kind: FileKind,
        expendable: Expendable,
    ) -> Result<FileWriter, EngineError> {
        self.check_writable()?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        assert!(number < NUMBERS_END, "file number {number}");
        let name = kind.name(number);
        let created = match expendable {
            Expendable::No => self.directory.create(&name),
            Expendable::Yes => self.directory.create_expendable(&name),
        };
        let file = created.map_err(|error| self.refused("create", &name, &error))?;
        let store = self.clone();
        let buffer = Vec::new();
        Ok(FileWriter { store, file, name, number, written: 0, buffer, is_whole: false })
    }

    /// Opens a file, which must be as long as the manifest says.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn open(
        self: &Arc<Self>,
        kind: FileKind,
        number: u64,
        bytes: u64,
    ) -> Result<StoreFile, EngineError> {
        let is_obsolete = AtomicBool::new(false);
        let store = self.clone();
        let file = StoreFile { store, kind, name: kind.name(number), number, bytes, is_obsolete };
        let found = file.opened()?.len_bytes();
        match found.map_err(|error| self.unreadable(&file.name, &error))? {
            found if found == bytes => Ok(file),
            found => {
                let detail = format!("it has {found} bytes, where the manifest says {bytes}");
                Err(self.damaged(&file.name, detail))
            }
        }
    }

    /// Has all files removed with the last reader of any of them.
    pub fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
        let mut open_files = self.open_files();
        open_files.open_files_max = 1;
        open_files.files.clear();
    }

    fn open_files(&self) -> MutexGuard<'_, OpenFiles> {
        // Each step is one change of the map.
        self.open_files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> String {
        self.directory.path(name).display().to_string()
    }
}

impl Drop for TableDirectory {
    fn drop(&mut self) {
        if *self.is_retired.get_mut() {
            match self.directory.list() {
                Ok(names) => names.iter().for_each(|name| remove(self, name)),
                Err(error) => {
                    log::warn!("{} is left until the next start: {error}", self.path(""));
                }
            }
        }
    }
}

/// The files that stay open between two reads.
struct OpenFiles {
    /// With the number of the last use.
    files: HashMap<(FileKind, u64), (Arc<dyn DiskFile>, u64)>,
    uses: u64,
    open_files_max: usize,
}

impl OpenFiles {
    fn get(&mut self, file: (FileKind, u64)) -> Option<Arc<dyn DiskFile>> {
        self.uses += 1;
        let (open, used) = self.files.get_mut(&file)?;
        *used = self.uses;
        Some(open.clone())
    }

    /// Adds a file, and closes the one that was used least lately if there are too many.
    fn add(&mut self, file: (FileKind, u64), open: Arc<dyn DiskFile>) {
        while self.files.len() >= self.open_files_max.max(1) {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(file, _)| *file) else { break };
            self.files.remove(&oldest);
        }
        self.files.insert(file, (open, self.uses));
    }
}

impl FoundDamage {
    fn error(&self) -> EngineError {
        EngineError::Damaged { path: self.path.clone(), detail: self.detail.clone() }
    }
}

/// Whether a file that is written may use the reserve of a full disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expendable {
    /// It is a seal, which makes the log shorter.
    No,
    /// It is the output of a merge, which can be done another time.
    Yes,
}

/// A file that is being written.
pub(super) struct FileWriter {
    store: Arc<TableDirectory>,
    file: Arc<dyn DiskFile>,
    name: String,
    pub number: u64,
    /// Bytes that were handed to the system.
    written: u64,
    buffer: Vec<u8>,
    is_whole: bool,
}

impl FileWriter {
    /// The place of the next byte.
    pub fn place(&self) -> Place {
        Place { file: self.number, position: self.bytes() }
    }

    /// The bytes so far.
    pub fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Appends what `append` appends to a buffer, at the place that it is given.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn append(&mut self, append: impl FnOnce(Place, &mut Vec<u8>)) -> Result<(), EngineError> {
        let place = self.place();
        append(place, &mut self.buffer);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), EngineError> {
        let written = self.file.write_all_at(&self.buffer, self.written);
        written.map_err(|error| self.store.refused("write", &self.name, &error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes the bytes durable, though not yet the name, and returns their number.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn finish(mut self) -> Result<u64, EngineError> {
        if !self.buffer.is_empty() {
            self.flush()?;
        }
        let synced = self.file.sync_data();
        synced.map_err(|error| self.store.refused("sync", &self.name, &error))?;
        self.is_whole = true;
        Ok(self.written)
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if !self.is_whole {
            remove(&self.store, &self.name);
        }
    }
}

/// A file that is whole. It is removed with its last reader if it has become obsolete.
pub(super) struct StoreFile {
    store: Arc<TableDirectory>,
    kind: FileKind,
    name: String,
    number: u64,
    bytes: u64,
    is_obsolete: AtomicBool,
}

impl StoreFile {
    /// The manifest does not name the file any more.
    pub fn set_obsolete(&self) {
        self.is_obsolete.store(true, Ordering::Release);
    }

    pub fn place(&self, position: u64) -> Place {
        Place { file: self.number, position }
    }

    /// Reads bytes, which are compared with no checksum.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`] if they are not all within the file, [`EngineError::Read`].
    pub fn read(&self, position: u64, bytes: u64) -> Result<Vec<u8>, EngineError> {
        self.store.check_sound()?;
        let is_within = position.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        let length = usize::try_from(bytes).ok().filter(|_| is_within);
        let Some(length) = length else {
            return Err(self.damaged(position, "it reaches beyond the end of the file"));
        };
        let mut buffer = vec![0; length];
        match self.opened()?.read_at(&mut buffer, position) {
            Ok(read) if read == length => Ok(buffer),
            Ok(_) => Err(self.damaged(position, "the file has become shorter")),
            Err(error) => Err(self.store.unreadable(&self.name, &error)),
        }
    }

    fn opened(&self) -> Result<Arc<dyn DiskFile>, EngineError> {
        let file = (self.kind, self.number);
        if let Some(open) = self.store.open_files().get(file) {
            return Ok(open);
        }
        // Two readers may both open it: the lock is not held while the disk is waited for.
        match self.store.directory.open(&self.name) {
            Ok(open) => {
                self.store.open_files().add(file, open.clone());
                Ok(open)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(self.store.damaged(&self.name, "it is missing".to_owned()))
            }
            Err(error) => Err(self.store.unreadable(&self.name, &error)),
        }
    }

    /// Reads a section and has it decoded.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn read_section<T>(
        &self,
        position: u64,
        bytes: u64,
        decode: impl FnOnce(&[u8]) -> Result<T, SectionError>,
    ) -> Result<T, EngineError> {
        let read = self.read(position, bytes)?;
        section::open(self.place(position), &read)
            .and_then(decode)
            .map_err(|error| self.damaged(position, error))
    }

    /// The error for damage of what lies at a position.
    pub fn damaged(&self, position: u64, detail: impl std::fmt::Display) -> EngineError {
        self.store.damaged(&self.name, format!("what lies at byte {position}: {detail}"))
    }
}

impl Drop for StoreFile {
    fn drop(&mut self) {
        if *self.is_obsolete.get_mut() {
            // While it is open it takes room on the disk.
            self.store.open_files().files.remove(&(self.kind, self.number));
            remove(&self.store, &self.name);
        }
    }
}

/// Removes a file that nothing refers to. If that fails, the next opening does it.
pub(super) fn remove(store: &TableDirectory, name: &str) {
    if let Err(error) = files::remove_if_present(store.files(), name) {
        log::warn!("{} is left until the next start: {error}", store.path(name));
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_disk::TestDisk;
    use super::*;

    fn store(disk: &TestDisk) -> Arc<TableDirectory> {
        Arc::new(TableDirectory::new(Arc::new(disk.clone()), 2))
    }

    fn write(store: &Arc<TableDirectory>, bytes: &[u8]) -> u64 {
        let mut file = store.create(FileKind::Values, Expendable::No).unwrap();
        file.append(|_, out| out.extend_from_slice(bytes)).unwrap();
        let number = file.number;
        assert_eq!(file.finish().unwrap(), bytes.len() as u64);
        number
    }

    #[test]
    fn names_are_parsed_as_they_are_given_and_no_others() {
        for kind in FileKind::ALL {
            assert_eq!(FileKind::parse(&kind.name(70)), Some((kind, 70)));
        }
        for name in ["MANIFEST", "1", "1.tables", "+1.table", "01.table", "-1.values", ".table"] {
            assert_eq!(FileKind::parse(name), None, "{name}");
        }
        assert_eq!(FileKind::parse(&format!("{NUMBERS_END}.table")), None);
    }

    /// The number after the greatest was zero, and the store ended with an assertion.
    #[test]
    fn after_any_number_that_a_file_may_have_there_are_more() {
        let disk = TestDisk::default();
        let store = store(&disk);
        store.skip_numbers(NUMBERS_END);
        let number = write(&store, b"bytes");
        assert!(store.open(FileKind::Values, number, 5).is_ok());
        assert!(store.next_number() < NUMBERS_END);
    }

    /// One of a process's files for each file of a store was one too many when the store grew.
    #[test]
    fn of_many_files_few_are_open_and_all_are_read() {
        let disk = TestDisk::default();
        let store = store(&disk);
        let open = |number| store.open(FileKind::Values, number, 5).unwrap();
        let files: Vec<StoreFile> = (0..9).map(|_| write(&store, b"bytes")).map(open).collect();
        for _ in 0..2 {
            files.iter().for_each(|file| assert_eq!(file.read(0, 5).unwrap(), b"bytes"));
            assert!(store.open_files().files.len() <= 2);
        }
    }

    #[test]
    fn the_files_of_a_retired_store_go_with_its_last_reader() {
        let disk = TestDisk::default();
        let store = store(&disk);
        let number = write(&store, b"bytes");
        let file = store.open(FileKind::Values, number, 5).unwrap();
        store.retire();
        drop(store);
        assert_eq!(file.read(0, 5).unwrap(), b"bytes");
        drop(file);
        assert!(disk.names().is_empty());
    }

    #[test]
    fn a_file_that_is_not_finished_is_removed_and_its_number_not_used_again() {
        let disk = TestDisk::default();
        let store = store(&disk);
        let file = store.create(FileKind::Table, Expendable::Yes).unwrap();
        assert_eq!((disk.names().len(), file.number), (1, 1));
        drop(file);
        assert_eq!((disk.names().len(), write(&store, b"bytes")), (0, 2));
    }

    #[test]
    fn an_obsolete_file_goes_with_its_last_reader() {
        let disk = TestDisk::default();
        let store = store(&disk);
        let number = write(&store, b"bytes");
        let file = store.open(FileKind::Values, number, 5).unwrap();
        file.set_obsolete();
        assert_eq!(file.read(1, 4).unwrap(), b"ytes");
        drop(file);
        assert!(disk.names().is_empty());
    }

    #[test]
    fn nothing_is_read_beyond_the_end_and_the_first_damage_is_final() {
        let disk = TestDisk::default();
        let store = store(&disk);
        let number = write(&store, b"bytes");
        let file = store.open(FileKind::Values, number, 5).unwrap();
        for (position, bytes) in [(1, 5), (6, 0), (u64::MAX, 2), (0, u64::MAX)] {
            let store = self::store(&disk);
            let file = store.open(FileKind::Values, number, 5).unwrap();
            let error = file.read(position, bytes).unwrap_err();
            assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
        }
        disk.cut("1.values", 4);
        let first = file.read(0, 5).unwrap_err().to_string();
        assert!(first.contains("1.values"), "{first}");
        assert_eq!(file.read(0, 1).unwrap_err().to_string(), first);
        let error = store.open(FileKind::Values, 9, 5).map(drop).unwrap_err();
        assert_eq!(error.to_string(), first, "a missing file is damage, too");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_damaged() {
        let disk = TestDisk::default();
        let store = store(&disk);
        let number = write(&store, b"bytes");
        let file = store.open(FileKind::Values, number, 5).unwrap();
        disk.refuse_reads(true);
        assert!(matches!(file.read(0, 5), Err(EngineError::Read(_))));
        disk.refuse_reads(false);
        assert_eq!(file.read(0, 5).unwrap(), b"bytes");
    }
}
