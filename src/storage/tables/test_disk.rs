//! A disk in memory for the unit tests of tables: it counts what changes it, stops before any of
//! that, and then shows the two extremes of what a crash leaves: everything, or what was synced.
//!
//! What it leaves out: everything between the extremes, such as torn writes. The simulated disk of
//! the integration tests has that.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::files::{Directory, DiskFile, Space};

/// Clones are the same disk.
#[derive(Clone, Default)]
pub(in crate::storage) struct TestDisk(Arc<Mutex<DiskState>>);

#[derive(Clone, Default)]
struct DiskState {
    files: Vec<FileBytes>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// Operations that would change something.
    operations: u64,
    /// This operation and all later ones fail.
    stop_at: Option<u64>,
    refuses_reads: bool,
    reads: u64,
}

#[derive(Clone, Default)]
struct FileBytes {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

impl TestDisk {
    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// The bytes of all files that have a name.
    pub fn used_bytes(&self) -> usize {
        let state = self.state();
        state.names.values().map(|file| state.files[*file].bytes.len()).sum()
    }

    /// The number of operations that have changed something.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Has operation number `stop_at`, counted from 1, and all after it fail.
    pub fn stop_at(&self, stop_at: u64) {
        self.state().stop_at = Some(stop_at);
    }

    /// The number of reads of files so far.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    pub fn refuse_reads(&self, refuses_reads: bool) {
        self.state().refuses_reads = refuses_reads;
    }

    /// Another disk with everything that was written, as after the process was killed.
    pub fn after_kill(&self) -> TestDisk {
        let state = DiskState { operations: 0, stop_at: None, ..self.state().clone() };
        TestDisk(Arc::new(Mutex::new(state)))
    }

    /// Another disk with what was synced alone, as after a power loss at its worst.
    pub fn after_power_loss(&self) -> TestDisk {
        let disk = self.after_kill();
        let mut state = disk.state();
        state.names = state.synced_names.clone();
        for file in &mut state.files {
            file.bytes.clone_from(&file.synced);
        }
        drop(state);
        disk
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.files[state.names[name]].bytes.clone()
    }

    pub fn set_bytes(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let file = state.names[name];
        let bytes = bytes.to_vec();
        state.files[file] = FileBytes { synced: bytes.clone(), bytes };
    }

    pub fn flip(&self, name: &str, bit: usize) {
        let mut bytes = self.bytes(name);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.set_bytes(name, &bytes);
    }

    pub fn cut(&self, name: &str, length: usize) {
        self.set_bytes(name, &self.bytes(name)[..length]);
    }
}

impl DiskState {
    fn count(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.stop_at.is_some_and(|stop_at| self.operations >= stop_at) {
            true => Err(io::Error::other("the disk was stopped")),
            false => Ok(()),
        }
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Directory for TestDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.count()?;
        let file = state.files.len();
        state.files.push(FileBytes::default());
        state.names.insert(name.to_owned(), file);
        Ok(Arc::new(TestFile { disk: self.clone(), file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.state().file(name)?;
        Ok(Arc::new(TestFile { disk: self.clone(), file }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.file(name)?;
        state.count()?;
        state.names.remove(name);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let file = state.file(from)?;
        state.count()?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.count()?;
        state.synced_names = state.names.clone();
        Ok(())
    }

    fn remove_directory(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn directory(&self, _name: &str) -> io::Result<Arc<dyn Directory>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { free_bytes: 1 << 30, total_bytes: 1 << 30 })
    }

    fn is_in_place(&self, names: &[&str]) -> io::Result<bool> {
        Ok(names.iter().all(|name| self.state().names.contains_key(*name)))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/test").join(name)
    }
}

struct TestFile {
    disk: TestDisk,
    file: usize,
}

impl TestFile {
    fn change(&self, change: impl FnOnce(&mut FileBytes)) -> io::Result<()> {
        let mut state = self.disk.state();
        state.count()?;
        change(&mut state.files[self.file]);
        Ok(())
    }
}

impl DiskFile for TestFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.file].bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.reads += 1;
        if state.refuses_reads {
            return Err(io::Error::other("the disk refuses to read"));
        }
        let rest = state.files[self.file].bytes.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(|file| {
            let end = offset as usize + bytes.len();
            file.bytes.resize(file.bytes.len().max(end), 0);
            file.bytes[offset as usize..end].copy_from_slice(bytes);
        })
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(|file| file.bytes.resize(len_bytes as usize, 0))
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.change(|file| file.bytes.resize(file.bytes.len().max(len_bytes as usize), 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|file| file.synced.clone_from(&file.bytes))
    }

    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}
