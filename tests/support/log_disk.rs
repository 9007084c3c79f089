//! A simulated disk for the log: it keeps apart what was written from what is durable, and loses,
//! tears and refuses writes on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use acervo::storage::log::{LogFile, LogFs};
use rand::RngExt;
use rand::rngs::StdRng;

const SECTOR_BYTES: usize = 512;

/// A disk with one directory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Content>,
    /// Removed, but not durably so.
    removed: BTreeMap<String, Content>,
    durable_names: BTreeSet<String>,
    syncs: u64,
    faults: Faults,
    powered_off: bool,
}

/// What is to go wrong.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// The power goes at this sync, counted from 1: it and everything after it fails.
    pub power_loss_at_sync: Option<u64>,
    /// This sync fails, and the operating system forgets what it should have written.
    pub fail_sync: Option<u64>,
    /// No file grows past this many bytes.
    pub file_bytes_max: Option<usize>,
}

#[derive(Clone, Default)]
struct Content {
    visible: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl SimDisk {
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// Sets what is to go wrong and starts counting syncs from 0.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        state.syncs = 0;
    }

    /// How many syncs there were since the faults were set.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The power goes and comes back: each change that was not synced is kept, lost, or kept in some
    /// of its sectors only.
    pub fn power_cycle(&self, rng: &mut StdRng) {
        let mut state = self.state();
        let State { files, removed, durable_names, .. } = &mut *state;
        for (name, content) in std::mem::take(removed) {
            if rng.random_bool(0.5) {
                files.entry(name).or_insert(content);
            }
        }
        files.retain(|name, _| durable_names.contains(name) || rng.random_bool(0.5));
        for content in files.values_mut() {
            for change in std::mem::take(&mut content.pending) {
                match rng.random_range(0..3) {
                    0 => {}
                    1 => change.apply(&mut content.durable),
                    _ => change.apply_torn(&mut content.durable, rng),
                }
            }
            content.visible = content.durable.clone();
        }
        *durable_names = files.keys().cloned().collect();
        state.powered_off = false;
        state.faults = Faults::default();
    }

    /// The files' names and bytes, as a process sees them.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.state();
        state.files.iter().map(|(name, file)| (name.clone(), file.visible.clone())).collect()
    }

    /// Another disk with the same durable contents.
    pub fn copy(&self) -> SimDisk {
        let state = self.state();
        let files = state.files.clone();
        let durable_names = state.durable_names.clone();
        SimDisk { state: Arc::new(Mutex::new(State { files, durable_names, ..State::default() })) }
    }

    /// Flips one bit, for good.
    pub fn flip(&self, name: &str, byte: usize, bit: u8) {
        let mut state = self.state();
        let file = state.files.get_mut(name).expect("a file to damage");
        file.visible[byte] ^= 1 << bit;
        file.durable[byte] ^= 1 << bit;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::SetLen(len) => bytes.resize(*len, 0),
            Change::Write { offset, bytes: new } => {
                let end = offset + new.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(new);
            }
        }
    }

    fn apply_torn(&self, bytes: &mut Vec<u8>, rng: &mut StdRng) {
        let Change::Write { offset, bytes: new } = self else { return };
        let mut start = 0;
        while start < new.len() {
            // To the next sector's boundary on the disk.
            let end = ((offset + start) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset;
            let end = end.min(new.len());
            if rng.random_bool(0.5) {
                let bytes_kept = new[start..end].to_vec();
                Change::Write { offset: offset + start, bytes: bytes_kept }.apply(bytes);
            }
            start = end;
        }
    }
}

impl State {
    fn check_power(&self) -> io::Result<()> {
        if self.powered_off { Err(io::Error::other("no power")) } else { Ok(()) }
    }

    fn count_sync(&mut self) -> io::Result<bool> {
        self.check_power()?;
        self.syncs += 1;
        if self.faults.power_loss_at_sync == Some(self.syncs) {
            self.powered_off = true;
            return self.check_power().map(|()| false);
        }
        Ok(self.faults.fail_sync != Some(self.syncs))
    }
}

impl LogFs for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_power()?;
        Ok(state.files.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.state();
        state.check_power()?;
        if state.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.files.insert(name.to_owned(), Content::default());
        Ok(Arc::new(SimFile { disk: self.clone(), name: name.to_owned() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let state = self.state();
        state.check_power()?;
        if !state.files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(SimFile { disk: self.clone(), name: name.to_owned() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check_power()?;
        let content = state.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        if state.durable_names.contains(name) {
            state.removed.insert(name.to_owned(), content);
        }
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        if !state.count_sync()? {
            return Err(io::Error::other("the disk failed"));
        }
        state.durable_names = state.files.keys().cloned().collect();
        state.removed.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/sim").join(name)
    }
}

struct SimFile {
    disk: SimDisk,
    name: String,
}

impl SimFile {
    fn with<T>(&self, step: impl FnOnce(&mut Content, &Faults) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        state.check_power()?;
        let State { files, faults, .. } = &mut *state;
        step(files.get_mut(&self.name).ok_or(io::ErrorKind::NotFound)?, faults)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.with(|file, faults| {
            if let (Change::Write { offset, bytes }, Some(max)) = (&change, faults.file_bytes_max)
                && offset + bytes.len() > max
            {
                return Err(io::ErrorKind::StorageFull.into());
            }
            change.apply(&mut file.visible);
            file.pending.push(change);
            Ok(())
        })
    }
}

impl LogFile for SimFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.with(|file, _| Ok(file.visible.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|file, _| {
            let rest = file.visible.get(offset as usize..).unwrap_or_default();
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(Change::Write { offset: offset as usize, bytes: bytes.to_vec() })
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Change::SetLen(len_bytes as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let good = self.disk.state().count_sync()?;
        self.with(|file, _| {
            let changes = std::mem::take(&mut file.pending);
            if !good {
                // What the changes did stays visible and will never be written.
                return Err(io::Error::other("the disk failed"));
            }
            changes.iter().for_each(|change| change.apply(&mut file.durable));
            Ok(())
        })
    }
}
