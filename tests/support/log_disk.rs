//! A simulated disk: it keeps apart what was written from what is durable, and loses, tears and
//! refuses writes on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use acervo::storage::files::{Directory, DiskFile, Space};
use rand::RngExt;
use rand::rngs::StdRng;

const SECTOR_BYTES: usize = 512;
const BLOCK_BYTES: usize = 4096;

/// A directory of a disk. Clones are the same one.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// Its number among the directories that were opened.
    number: usize,
}

#[derive(Default)]
struct State {
    /// What the names in each directory begin with, which changes when a directory is renamed that
    /// somebody has open.
    directories: Vec<String>,
    /// Every file there was, by its number; without a name it is still there for who has it open.
    files: Vec<Content>,
    /// Full names and the files they stand for, as a process sees them …
    names: BTreeMap<String, usize>,
    /// … and as they are on the disk.
    durable_names: BTreeMap<String, usize>,
    /// How the first came about from the second.
    renaming: Vec<NameChange>,
    operations: u64,
    syncs: u64,
    reads: u64,
    faults: Faults,
    stopped: bool,
}

/// What is to go wrong.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// This operation that would change anything, counted from 1, and everything after it fails: as
    /// if the process had been killed just before.
    pub stop_at_operation: Option<u64>,
    /// The power goes at this sync, counted from 1: it and everything after it fails.
    pub power_loss_at_sync: Option<u64>,
    /// This sync fails, and the operating system forgets what it should have written.
    pub fail_sync: Option<u64>,
    /// This read, counted from 1, fails, and no other.
    pub fail_read: Option<u64>,
    /// No file grows past this many bytes.
    pub file_bytes_max: Option<usize>,
    /// All files together take no more than this, counted in blocks that were written to.
    pub disk_bytes_max: Option<usize>,
}

#[derive(Clone, Default)]
struct Content {
    visible: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Those that take room on the disk.
    blocks: BTreeSet<usize>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
    Allocate(usize),
}

#[derive(Clone)]
enum NameChange {
    Create(String, usize),
    Remove(String),
    Rename(String, String),
    RenameDirectory(String, String),
}

impl SimDisk {
    pub fn new() -> SimDisk {
        SimDisk::of(State { directories: vec![String::new()], ..State::default() })
    }

    /// Sets what is to go wrong and starts counting from 0.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        (state.syncs, state.operations, state.reads) = (0, 0, 0);
    }

    /// How many reads there were since the faults were set.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// How many syncs there were since the faults were set.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Another process finds what the one before it has written, synced or not.
    pub fn restart(&self) {
        let mut state = self.state();
        state.stopped = false;
        state.faults = Faults::default();
    }

    /// The power goes and comes back: each change that was not synced is kept, lost, or kept in
    /// some of its sectors only.
    pub fn power_cycle(&self, rng: &mut StdRng) {
        let mut state = self.state();
        let State { files, names, durable_names, renaming, .. } = &mut *state;
        for change in std::mem::take(renaming) {
            if rng.random_bool(0.5) {
                change.apply(durable_names);
            }
        }
        for content in files {
            for change in std::mem::take(&mut content.pending) {
                match rng.random_range(0..3) {
                    0 => {}
                    1 => change.apply(&mut content.durable),
                    _ => change.apply_torn(&mut content.durable, rng),
                }
            }
            content.visible = content.durable.clone();
        }
        names.clone_from(durable_names);
        drop(state);
        self.restart();
    }

    /// The files' names and bytes, as a process sees them.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.state();
        let content =
            |(name, file): (&String, &usize)| (name.clone(), state.files[*file].visible.clone());
        state.names.iter().map(content).collect()
    }

    /// Another disk with the same contents, without those of files that have no name any more.
    pub fn copy(&self) -> SimDisk {
        let state = self.state();
        let mut copy = State {
            directories: vec![state.directories[self.number].clone()],
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            renaming: state.renaming.clone(),
            ..State::default()
        };
        let State { files, names, durable_names, renaming, .. } = &mut copy;
        let created = renaming.iter_mut().filter_map(|change| match change {
            NameChange::Create(_, file) => Some(file),
            _ => None,
        });
        let mut numbers = BTreeMap::new();
        for file in names.values_mut().chain(durable_names.values_mut()).chain(created) {
            *file = *numbers.entry(*file).or_insert_with(|| {
                files.push(state.files[*file].clone());
                files.len() - 1
            });
        }
        SimDisk::of(copy)
    }

    /// Flips one bit, for good.
    pub fn flip(&self, name: &str, byte: usize, bit: u8) {
        let mut state = self.state();
        let file = state.names[name];
        let file = &mut state.files[file];
        file.visible[byte] ^= 1 << bit;
        file.durable[byte] ^= 1 << bit;
    }

    /// The first directory of a disk.
    fn of(state: State) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(state)), number: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn file(&self, number: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), number })
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Create(name, file) => _ = names.insert(name.clone(), *file),
            NameChange::Remove(name) => _ = names.remove(name),
            // Of a file whose creation was lost there is nothing to rename.
            NameChange::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            NameChange::RenameDirectory(from, to) => {
                let moved: Vec<String> =
                    names.keys().filter(|name| is_below(name, from)).cloned().collect();
                for name in moved {
                    if let Some(file) = names.remove(&name) {
                        names.insert(format!("{to}{}", &name[from.len()..]), file);
                    }
                }
            }
        }
    }

    /// The directory that its file is in has another name now.
    fn moved(self, from: &str, to: &str) -> NameChange {
        let moved = |name: String| match is_below(&name, from) {
            true => format!("{to}{}", &name[from.len()..]),
            false => name,
        };
        match self {
            NameChange::Create(name, file) => NameChange::Create(moved(name), file),
            NameChange::Remove(name) => NameChange::Remove(moved(name)),
            NameChange::Rename(from, to) => NameChange::Rename(moved(from), moved(to)),
            other @ NameChange::RenameDirectory(..) => other,
        }
    }

    /// Whether it is about the directory whose names begin so.
    fn is_in(&self, prefix: &str) -> bool {
        let (NameChange::Create(name, _)
        | NameChange::Remove(name)
        | NameChange::Rename(name, _)
        | NameChange::RenameDirectory(name, _)) = self;
        is_in(name, prefix)
    }
}

fn is_in(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| !rest.contains('/'))
}

fn is_below(name: &str, directory: &str) -> bool {
    name.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::SetLen(len) => bytes.resize(*len, 0),
            Change::Allocate(len) => bytes.resize(bytes.len().max(*len), 0),
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
    /// A name in a directory, with that of the directory.
    fn full(&self, directory: &SimDisk, name: &str) -> String {
        format!("{}{name}", self.directories[directory.number])
    }

    fn check_running(&self) -> io::Result<()> {
        if self.stopped { Err(io::Error::other("no power")) } else { Ok(()) }
    }

    fn count_operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        self.stopped |= self.faults.stop_at_operation == Some(self.operations);
        self.check_running()
    }

    fn count_sync(&mut self) -> io::Result<bool> {
        self.count_operation()?;
        self.syncs += 1;
        self.stopped |= self.faults.power_loss_at_sync == Some(self.syncs);
        self.check_running()?;
        Ok(self.faults.fail_sync != Some(self.syncs))
    }

    fn used_bytes(&self) -> usize {
        let named: BTreeSet<usize> = self.names.values().copied().collect();
        named.into_iter().map(|file| self.files[file].blocks.len() * BLOCK_BYTES).sum()
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.renaming.push(change);
    }
}

impl Directory for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_running()?;
        let prefix = &*state.directories[self.number];
        let below = state.names.keys().filter_map(|name| name.strip_prefix(prefix));
        // A directory below shows as the first part of the names in it.
        let mut names: Vec<String> =
            below.filter_map(|name| Some(name.split('/').next()?.to_owned())).collect();
        names.dedup();
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.check_running()?;
        if state.names.contains_key(&state.full(self, name)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.count_operation()?;
        let number = state.files.len();
        state.files.push(Content::default());
        let name = state.full(self, name);
        state.change_names(NameChange::Create(name, number));
        Ok(self.file(number))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state();
        state.check_running()?;
        let file = state.names.get(&state.full(self, name)).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(*file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check_running()?;
        if !state.names.contains_key(&state.full(self, name)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.count_operation()?;
        let name = state.full(self, name);
        state.change_names(NameChange::Remove(name));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let (from, to) = (state.full(self, from), state.full(self, to));
        let change = if state.names.contains_key(&from) {
            NameChange::Rename(from, to)
        } else if state.names.keys().any(|name| is_below(name, &from)) {
            assert!(!state.names.keys().any(|name| is_below(name, &to)), "{to} is not empty");
            for open in &mut state.directories {
                if let Some(below) = open.strip_prefix(&format!("{from}/")) {
                    *open = format!("{to}/{below}");
                }
            }
            NameChange::RenameDirectory(from, to)
        } else {
            return Err(io::ErrorKind::NotFound.into());
        };
        state.count_operation()?;
        state.change_names(change);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        if !state.count_sync()? {
            return Err(io::Error::other("the disk failed"));
        }
        let State { durable_names, renaming, directories, .. } = &mut *state;
        let mut unsynced: Vec<NameChange> = Vec::new();
        for change in std::mem::take(renaming) {
            if !change.is_in(&directories[self.number]) {
                unsynced.push(change);
                continue;
            }
            change.apply(durable_names);
            if let NameChange::RenameDirectory(from, to) = change {
                unsynced = unsynced.into_iter().map(|earlier| earlier.moved(&from, &to)).collect();
            }
        }
        *renaming = unsynced;
        Ok(())
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        let mut state = self.state();
        state.check_running()?;
        let prefix = format!("{}/", state.full(self, name));
        let open = state.directories.iter().position(|open| *open == prefix);
        let number = open.unwrap_or(state.directories.len());
        if open.is_none() {
            state.directories.push(prefix);
        }
        drop(state);
        Ok(Arc::new(SimDisk { state: self.state.clone(), number }))
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let full = state.full(self, name);
        if state.names.keys().any(|name| is_below(name, &full)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        // A directory without files has no name here.
        state.count_operation()
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state();
        state.check_running()?;
        // Small, so that its reserve is.
        let total_bytes = state.faults.disk_bytes_max.map_or(1 << 16, |max| max as u64);
        let free_bytes = match state.faults.disk_bytes_max {
            Some(max) => max.saturating_sub(state.used_bytes()) as u64,
            None => 1 << 40,
        };
        Ok(Space { free_bytes, total_bytes })
    }

    fn is_in_place(&self, names: &[&str]) -> io::Result<bool> {
        let state = self.state();
        Ok(names.iter().all(|name| state.names.contains_key(&state.full(self, name))))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/sim").join(self.state().full(self, name))
    }
}

struct SimFile {
    disk: SimDisk,
    number: usize,
}

impl SimFile {
    fn with<T>(&self, step: impl FnOnce(&mut Content, &Faults) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        state.check_running()?;
        let State { files, faults, .. } = &mut *state;
        step(&mut files[self.number], faults)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.disk.state();
        state.count_operation()?;
        let (used_bytes, disk_bytes_max) = (state.used_bytes(), state.faults.disk_bytes_max);
        drop(state);
        self.with(|file, faults| {
            let mut blocks = file.blocks.clone();
            match &change {
                Change::SetLen(len) => _ = blocks.split_off(&len.div_ceil(BLOCK_BYTES)),
                Change::Allocate(len) => blocks.extend(0..len.div_ceil(BLOCK_BYTES)),
                Change::Write { offset, bytes } => {
                    let end = (offset + bytes.len()).div_ceil(BLOCK_BYTES);
                    blocks.extend(offset / BLOCK_BYTES..end);
                }
            }
            let more_bytes = blocks.len().saturating_sub(file.blocks.len()) * BLOCK_BYTES;
            if more_bytes > 0 && disk_bytes_max.is_some_and(|max| used_bytes + more_bytes > max) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            file.blocks = blocks;
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

impl DiskFile for SimFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.with(|file, _| Ok(file.visible.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        {
            let mut state = self.disk.state();
            state.reads += 1;
            if state.faults.fail_read == Some(state.reads) {
                return Err(io::Error::other("the disk failed to read"));
            }
        }
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

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Change::Allocate(len_bytes as usize))
    }

    /// A process that was killed holds no lock.
    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}
