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
//! - The first damage that is found is final: every later call fails with it, because it is not
//!   known what else is damaged. A read that the system refuses is not damage: the storage may be
//!   unreachable for a while, for all servers at once, and its contents be sound.
//!
//! What it leaves out: making names durable, which the manifest does once for all files that it is
//! going to name.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::section::{self, Place, SectionError};
use crate::storage::engine::EngineError;
use crate::storage::files::{self, Directory, DiskFile};

/// Written bytes are collected to pieces of this size: fewer calls, and little memory beside that
/// of a memory table.
const WRITE_BYTES: usize = 256 * 1024;

/// The kind of a numbered file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
        let number = number.parse().ok()?;
        // `+1` and `01` are numbers, too.
        (kind.name(number) == name).then_some((kind, number))
    }
}

/// The directory of one store, which no other process uses.
pub(super) struct TableDirectory {
    directory: Arc<dyn Directory>,
    /// The number of the next file.
    next_number: AtomicU64,
    damage: OnceLock<FoundDamage>,
    /// Set when it is unknown what a crash would leave: what was tried, the path, and the detail.
    failed: OnceLock<(&'static str, String, String)>,
}

struct FoundDamage {
    path: String,
    detail: String,
}

impl TableDirectory {
    pub fn new(directory: Arc<dyn Directory>) -> TableDirectory {
        TableDirectory {
            directory,
            next_number: AtomicU64::new(1),
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

    /// Has numbers below this one never be given again.
    pub fn skip_numbers(&self, below: u64) {
        self.next_number.fetch_max(below, Ordering::Relaxed);
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
        let name = kind.name(number);
        let opened = self.directory.open(&name);
        let file = match opened.and_then(|file| Ok((file.len_bytes()?, file))) {
            Ok((found, file)) if found == bytes => file,
            Ok((found, _)) => {
                let detail = format!("it has {found} bytes, where the manifest says {bytes}");
                return Err(self.damaged(&name, detail));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.damaged(&name, "it is missing".to_owned()));
            }
            Err(error) => return Err(self.unreadable(&name, &error)),
        };
        let is_obsolete = AtomicBool::new(false);
        Ok(StoreFile { store: self.clone(), file, name, number, bytes, is_obsolete })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path(name).display().to_string()
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
    file: Arc<dyn DiskFile>,
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
        match self.file.read_at(&mut buffer, position) {
            Ok(read) if read == length => Ok(buffer),
            Ok(_) => Err(self.damaged(position, "the file has become shorter")),
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
        Arc::new(TableDirectory::new(Arc::new(disk.clone())))
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
