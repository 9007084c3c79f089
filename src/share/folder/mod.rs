//! A shared folder: which files are in it, what is in them, and what of it is offered.
//!
//! Offered are the regular files directly in the folder that have a name a [`FileName`] can be. Not
//! offered, because names are never paths and a folder is not more than its owner put into it: folders
//! below it, links, FIFOs, devices; hidden files (`.name`), so that nobody shares settings by accident;
//! and `.part` files, which are still arriving.
//!
//! Every file is hashed once, all processors at work ([`hash`]). What came of it is kept in a hidden file
//! of the folder ([`state`]), under the file's size, modification time and inode: what still looks the
//! same is not hashed again. The folder is looked at every few seconds, rather than watched through the
//! system: that works on every file system, network ones included, and costs one look a file. A file
//! that is new or has changed is hashed when it has looked the same twice, so that one that is being
//! copied in is left alone until it is whole.
//!
//! Whoever changes a file in place and turns its modification time back is not noticed here. The peers
//! that fetch it notice: each chunk is verified where it arrives.

pub mod hash;
mod scan;
pub mod state;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use self::hash::{HashProgress, Hasher};
use self::scan::{Found, Scan};
use self::state::{Saved, State};
use super::content::Manifest;
use super::member::Files;
use super::names::FileName;
use super::offer::{Available, Catalog, FileStamp, Offer};
use super::types::{ContentId, FileEntry, PeerId};
use crate::limits;

/// What a file looks like from outside. As long as it looks the same it is taken to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Length and modification time.
    pub stamp: FileStamp,
    /// The file's number in its file system; another file under the same name has another one.
    pub inode: u64,
}

/// Why a folder cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not there, or not a folder, or cannot be read.
    #[error("cannot share {}: {source}; name a folder that can be read", .path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process shares it.
    #[error("{} is shared by another process already; stop that one first", .0.display())]
    InUse(PathBuf),
}

/// How a folder is looked after.
#[derive(Clone, Copy, Debug)]
pub struct FolderOptions {
    /// Threads that hash.
    pub threads: usize,
    /// How long after one look at the folder the next one comes.
    pub rescan_interval: Duration,
}

impl Default for FolderOptions {
    /// As many threads as processors.
    fn default() -> FolderOptions {
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        FolderOptions { threads, rescan_interval: limits::FOLDER_RESCAN_INTERVAL }
    }
}

/// A file that is offered.
#[derive(Clone, Debug)]
struct Shared {
    look: Look,
    manifest: Arc<Manifest>,
}

/// What is known of a folder. `contents` names exactly the files of `files`.
#[derive(Debug, Default)]
struct Known {
    files: BTreeMap<FileName, Shared>,
    contents: HashMap<ContentId, Vec<FileName>>,
}

impl Known {
    fn insert(&mut self, name: FileName, shared: Shared) {
        self.remove(&name);
        self.contents.entry(shared.manifest.content()).or_default().push(name.clone());
        self.files.insert(name, shared);
    }

    fn remove(&mut self, name: &FileName) -> bool {
        let Some(shared) = self.files.remove(name) else { return false };
        let content = shared.manifest.content();
        if let Some(names) = self.contents.get_mut(&content) {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.contents.remove(&content);
            }
        }
        true
    }
}

/// A folder that is shared by this process and no other.
#[derive(Debug)]
pub struct Folder {
    path: Arc<PathBuf>,
    peer: PeerId,
    inode: u64,
    known: Mutex<Known>,
    /// Something has changed that the watcher has not told yet.
    dirty: AtomicBool,
    stopping: AtomicBool,
    /// Held open for its lock.
    _lock: File,
}

impl Folder {
    /// Looks at a folder and hashes what is not known from before. `peer` is the id for a folder that
    /// has none yet; `progress` is told how far hashing is, from any thread.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn open(
        path: &Path,
        peer: PeerId,
        options: FolderOptions,
        progress: &(dyn Fn(HashProgress) + Sync),
    ) -> Result<Arc<Folder>, FolderError> {
        let unreadable = |source| FolderError::Unreadable { path: path.to_owned(), source };
        // Where it is now, whatever becomes of the present working directory.
        let path = path.canonicalize().map_err(unreadable)?;
        let lock = File::open(&path).map_err(unreadable)?;
        let metadata = lock.metadata().map_err(unreadable)?;
        if !metadata.is_dir() {
            return Err(unreadable(io::ErrorKind::NotADirectory.into()));
        }
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FolderError::InUse(path)),
            // Some network file systems know no locks.
            Err(TryLockError::Error(error)) => {
                log::warn!("cannot make sure that nobody else shares {}: {error}", path.display());
            }
        }
        let inode = scan::inode(&metadata);
        let state = state::load(&path, inode).unwrap_or_else(|| State::new(peer, inode));
        let folder = Folder {
            peer: state.peer,
            inode,
            known: Mutex::default(),
            dirty: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            _lock: lock,
            path: Arc::new(path),
        };
        let mut watch = Watch::new(&folder, options);
        let scan = watch.scan().map_err(unreadable)?;
        let mut saved: HashMap<FileName, Saved> =
            state.files.into_iter().map(|file| (file.name.clone(), file)).collect();
        let mut unknown = Vec::new();
        for found in scan {
            let kept = saved.remove(&found.name).filter(|saved| saved.look == found.look);
            match kept {
                Some(Saved { name, look, manifest }) => {
                    folder.known().insert(name, Shared { look, manifest: Arc::new(manifest) });
                }
                None => unknown.push(found),
            }
        }
        watch.hash(unknown, progress);
        folder.save();
        folder.dirty.store(false, Ordering::Relaxed);
        Ok(Arc::new(folder))
    }

    /// Who shares it: drawn once for each folder, and kept with it.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Offers a file that was downloaded into the folder and is known to be this, as long as it looks
    /// like `stamp`.
    pub fn add(&self, name: FileName, manifest: Arc<Manifest>, stamp: FileStamp) {
        // A file that is gone already, or has changed, is found by the next look at the folder.
        let Some(look) = scan::look_at(&self.path.join(name.as_str())) else { return };
        if look.stamp == stamp {
            self.known().insert(name, Shared { look, manifest });
            self.save();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Its methods leave it whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what is known for the next time. A folder that cannot be written to is hashed again then.
    fn save(&self) {
        let files = self.known().files.clone();
        let files =
            files.into_iter().map(|(name, Shared { look, manifest })| (name, look, manifest));
        if let Err(error) = state::save(&self.path, self.peer, self.inode, files) {
            log::warn!(
                "cannot keep what was found in {}, it will be hashed again next time: {error}",
                self.path.display()
            );
        }
    }
}

impl Files for Folder {
    fn files(&self) -> Vec<FileEntry> {
        let entry = |(name, shared): (&FileName, &Shared)| FileEntry {
            name: name.clone(),
            size: shared.manifest.size(),
            content: shared.manifest.content(),
        };
        self.known().files.iter().map(entry).take(limits::FILES_PER_PEER_MAX).collect()
    }
}

impl Catalog for Folder {
    fn find(&self, name: &FileName) -> Option<FileEntry> {
        let known = self.known();
        let shared = known.files.get(name)?;
        let (size, content) = (shared.manifest.size(), shared.manifest.content());
        Some(FileEntry { name: name.clone(), size, content })
    }

    fn offer(&self, content: ContentId) -> Option<Offer> {
        let known = self.known();
        let name = known.contents.get(&content)?.first()?;
        let shared = known.files.get(name)?;
        Some(Offer {
            manifest: Arc::clone(&shared.manifest),
            folder: Arc::clone(&self.path),
            file: name.as_str().to_owned(),
            stamp: Some(shared.look.stamp),
            available: Available::Whole,
        })
    }

    fn changed(&self, offer: &Offer) {
        let Ok(name) = FileName::new(&offer.file) else { return };
        let mut known = self.known();
        // By now it may have been looked at again.
        if known.files.get(&name).is_some_and(|shared| Some(shared.look.stamp) == offer.stamp) {
            log::info!(
                "{name} is not what it was, and is not offered until it has been hashed anew"
            );
            known.remove(&name);
            self.dirty.store(true, Ordering::Relaxed);
        }
    }
}

/// A thread that looks at a folder every few seconds. It ends when it is dropped.
#[derive(Debug)]
pub struct Watcher {
    folder: Arc<Folder>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins. After a look that found something different, `changed` is called on its thread.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(
        folder: Arc<Folder>,
        options: FolderOptions,
        changed: impl Fn() + Send + 'static,
    ) -> io::Result<Watcher> {
        let (stop, stopped) = bounded::<()>(0);
        let watched = Arc::clone(&folder);
        let thread = thread::Builder::new()
            .name("share-folder".to_owned())
            .spawn(move || Watch::new(&watched, options).run(&stopped, &changed))?;
        Ok(Watcher { folder, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.folder.stopping.store(true, Ordering::Relaxed);
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that watches the shared folder panicked");
        }
    }
}

/// One look after the other.
struct Watch<'a> {
    folder: &'a Folder,
    options: FolderOptions,
    /// Files that were new or different when last looked at, or could not be hashed as they look.
    pending: HashMap<FileName, (Look, Pending)>,
    /// What is not offered and was said to be so.
    told: HashSet<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    /// Hash it if it looks the same next time.
    Once,
    /// Do not try again while it looks the same.
    Failed,
}

impl Watch<'_> {
    fn new(folder: &Folder, options: FolderOptions) -> Watch<'_> {
        Watch { folder, options, pending: HashMap::new(), told: HashSet::new() }
    }

    fn run(&mut self, stop: &Receiver<()>, changed: &dyn Fn()) {
        let mut wait = self.options.rescan_interval;
        while stop.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            let began = Instant::now();
            self.look();
            if self.folder.dirty.swap(false, Ordering::Relaxed) {
                self.folder.save();
                changed();
            }
            // A folder that takes long to look at is looked at less often.
            wait = self.options.rescan_interval.max(20 * began.elapsed());
        }
    }

    fn scan(&mut self) -> io::Result<Vec<Found>> {
        let Scan { files, told } = scan::scan(&self.folder.path, &self.told)?;
        self.told = told;
        Ok(files)
    }

    /// Looks once: forgets what has gone or changed, hashes what has settled.
    fn look(&mut self) {
        let found = match self.scan() {
            Ok(found) => found,
            Err(error) => {
                // It may come back: a disk that was taken out, a network that is away.
                log::debug!("cannot look at {}: {error}", self.folder.path.display());
                Vec::new()
            }
        };
        let looks: HashMap<&FileName, Look> = found.iter().map(|f| (&f.name, f.look)).collect();
        let mut settled = Vec::new();
        {
            let mut known = self.folder.known();
            let gone: Vec<FileName> = known
                .files
                .iter()
                .filter(|(name, shared)| looks.get(name) != Some(&shared.look))
                .map(|(name, _)| name.clone())
                .collect();
            for name in gone {
                known.remove(&name);
                self.folder.dirty.store(true, Ordering::Relaxed);
            }
            self.pending.retain(|name, (look, _)| looks.get(name) == Some(look));
            for found in &found {
                if known.files.contains_key(&found.name) {
                    self.pending.remove(&found.name);
                    continue;
                }
                match self.pending.get(&found.name) {
                    None => {
                        self.pending.insert(found.name.clone(), (found.look, Pending::Once));
                    }
                    Some((_, Pending::Once)) => settled.push(found.clone()),
                    Some((_, Pending::Failed)) => {}
                }
            }
        }
        if !settled.is_empty() {
            self.hash(settled, &|_| {});
        }
    }

    /// Hashes files and offers them.
    fn hash(&mut self, files: Vec<Found>, progress: &(dyn Fn(HashProgress) + Sync)) {
        let hasher = Hasher {
            folder: &self.folder.path,
            threads: self.options.threads,
            stop: &self.folder.stopping,
        };
        let mut saved_at = Instant::now();
        hasher.hash(&files, progress, &mut |found, result| {
            let Found { name, look } = found.clone();
            match result {
                Ok(manifest) => {
                    self.pending.remove(&name);
                    let manifest = Arc::new(manifest);
                    self.folder.known().insert(name, Shared { look, manifest });
                    self.folder.dirty.store(true, Ordering::Relaxed);
                }
                Err(error) => {
                    log::warn!("{name} is not offered: {error}");
                    self.pending.insert(name, (look, Pending::Failed));
                }
            }
            // Hashing a large folder takes a while, which should not be lost with the process.
            if saved_at.elapsed() > limits::FOLDER_SAVE_INTERVAL {
                self.folder.save();
                saved_at = Instant::now();
            }
        });
    }
}

#[cfg(test)]
mod tests;
