//! The shared folder: which files are in it, which content they have, and which of them are
//! offered.
//!
//! Offered are the regular files directly in the folder whose name a [`FileName`] can be. Left out
//! are: folders below it, links, FIFOs and devices, because a folder is no more than its owner has
//! put into it; hidden files (`.name`), so that no one shares settings by accident; and `.part`
//! files and their like in other programs, which are incomplete. [`Folder::left_out`] counts them.
//!
//! Rules:
//!
//! - Each file is hashed once, the smallest first, with all processors ([`hash`]), and is offered
//!   as soon as it is hashed. The results are kept in a hidden file of the folder ([`state`]) with
//!   the file's identity (size, times of modification and change, inode). A file with the same
//!   identity is not hashed again.
//! - The folder is scanned every few seconds (`watcher`). That works on every file system,
//!   including network ones, and costs one `stat` for each file. A file that is new or has changed
//!   is hashed when two scans have found it with the same identity, so that a file is not hashed
//!   while it is being copied.
//! - A file that vanishes, or that a server finds changed, is not offered any more, and is
//!   remembered for a while. If it is found again with the same identity it is offered again, so
//!   that a disk that was away for seconds is not hashed again.
//! - Only the folder that was opened is shared (`root`). If a link or another folder is in its
//!   place, all files have vanished.
//! - A file that was changed in place with its modification time set back is found by its time of
//!   change. A file that a broken disk has corrupted has its old identity, so the server compares
//!   some chunks with their hashes: every chunk that is requested a second time, and every one that
//!   a peer reports as wrong. A corrupted file ([`Catalog::corrupted`]) is withdrawn at once and
//!   hashed again.
//!
//! Left out: notification by the system (inotify), which does not work on network file systems.

mod files;
pub mod hash;
mod identity;
mod root;
mod scan;
pub mod state;
mod watcher;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use self::files::{FolderFiles, OfferedFile};
use self::hash::{HashError, HashProgress, HashQueue};
pub use self::identity::{FileIdentity, FolderError};
use self::root::FolderRoot;
pub use self::scan::LeftOut;
use self::scan::{FolderScan, ScannedFile};
use self::state::{FolderState, SavedFile};
pub use self::watcher::Watcher;
use super::content::Manifest;
use super::member::OfferedFiles;
use super::offer::{Available, Catalog, FileStamp, Offer};
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::text::escape;

/// The parameters of a [`Watcher`].
#[derive(Clone, Copy, Debug)]
pub struct FolderOptions {
    /// The number of threads that hash.
    pub threads: usize,
    /// The time from the end of one scan to the start of the next.
    pub rescan_interval: Duration,
}

impl Default for FolderOptions {
    /// One thread for each processor.
    fn default() -> FolderOptions {
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        FolderOptions { threads, rescan_interval: limits::FOLDER_RESCAN_INTERVAL }
    }
}

/// A folder that this process shares, and no other.
#[derive(Debug)]
pub struct Folder {
    root: FolderRoot,
    peer: PeerId,
    known: Mutex<FolderFiles>,
    queue: HashQueue,
    /// What the last scan has left out.
    left_out: Mutex<BTreeMap<OsString, LeftOut>>,
    /// Whether a change has not been announced by the watcher.
    dirty: AtomicBool,
    /// Whether a change has not been saved.
    unsaved: AtomicBool,
    /// Whether it has been reported that they cannot be saved.
    has_reported_unsaved: AtomicBool,
    stopping: AtomicBool,
    /// Wakes the watcher. One pending wake is enough.
    wake: (Sender<()>, Receiver<()>),
}

impl Folder {
    /// Locks and scans a folder. Files whose identity is known from an earlier process are offered
    /// at once; a [`Watcher`] has to hash the others. `peer` is the id for a folder that has none.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn open(path: &Path, peer: PeerId) -> Result<Arc<Folder>, FolderError> {
        let root = FolderRoot::open(path)?;
        let unreadable = |source| FolderError::Unreadable { path: path.to_owned(), source };
        let (path, inode) = (root.path(), root.inode());
        state::clean(path);
        let state = state::load(path, inode).unwrap_or_else(|| FolderState::new(peer, inode));
        let folder = Folder {
            peer: state.peer,
            known: Mutex::default(),
            queue: HashQueue::default(),
            left_out: Mutex::default(),
            dirty: AtomicBool::new(false),
            unsaved: AtomicBool::new(true),
            has_reported_unsaved: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            wake: bounded(1),
            root,
        };
        let scan = folder.scan().map_err(unreadable)?;
        let mut saved: HashMap<FileName, SavedFile> =
            state.files.into_iter().map(|file| (file.name.clone(), file)).collect();
        for found in scan {
            let kept = saved.remove(&found.name).filter(|saved| saved.identity == found.identity);
            match kept {
                Some(SavedFile { name, identity, manifest }) => {
                    folder
                        .known()
                        .insert(name, OfferedFile { identity, manifest: Arc::new(manifest) });
                }
                None => folder.queue.add(found),
            }
        }
        folder.save();
        Ok(Arc::new(folder))
    }

    pub fn hashing(&self) -> HashProgress {
        self.queue.progress()
    }

    /// Waits until all files have been hashed, at most `timeout`.
    pub fn wait_until_hashed(&self, timeout: Duration) {
        self.queue.wait_until_idle(timeout);
    }

    /// The number of entries of the folder that are not offered, by reason.
    pub fn left_out(&self) -> BTreeMap<LeftOut, usize> {
        let mut counts = BTreeMap::new();
        for why in self.left_out.lock().unwrap_or_else(PoisonError::into_inner).values() {
            *counts.entry(*why).or_default() += 1;
        }
        counts
    }

    /// Scans the folder, and logs what has newly been left out.
    fn scan(&self) -> io::Result<Vec<ScannedFile>> {
        let FolderScan { files, left_out } = scan::scan(&*self.root.in_place(self.peer)?)?;
        let mut before = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, why) in left_out.iter().filter(|(name, why)| before.get(*name) != Some(why)) {
            log::info!("{} is not offered: {why}", escape(name.as_encoded_bytes()));
        }
        *before = left_out;
        Ok(files)
    }

    /// The id of the peer that shares the folder. It is kept in the folder.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Offers a file that was downloaded into the folder and verified, if it still has this stamp.
    pub fn add(&self, name: FileName, manifest: Arc<Manifest>, stamp: FileStamp) {
        // A file that is already gone or changed is found by the next scan.
        let Some(identity) = scan::identity_of(&self.root.folder(), &name) else { return };
        if identity.stamp == stamp {
            self.known().downloaded(name, OfferedFile { identity, manifest });
            self.unsaved.store(true, Ordering::Relaxed);
            self.save();
        }
    }

    fn known(&self) -> MutexGuard<'_, FolderFiles> {
        // No method panics half-way through a change, so a poisoned state is still consistent.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the result of hashing a file.
    fn hashed(&self, found: &ScannedFile, result: Result<Manifest, HashError>, now: Instant) {
        let is_different = self.known().hashed(found, result, now);
        if is_different {
            self.note_change();
        }
    }

    fn note_change(&self) {
        self.dirty.store(true, Ordering::Relaxed);
        self.unsaved.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        // The channel is full if a wake is pending.
        let _ = self.wake.0.try_send(());
    }

    /// Saves the known files if they have changed. If the folder cannot be written to, the next
    /// process hashes it again.
    fn save(&self) {
        if !self.unsaved.swap(false, Ordering::Relaxed) {
            return;
        }
        // Another folder may be in the place of one whose disk was taken out: never write there.
        let Ok(folder) = self.root.in_place(self.peer) else {
            self.unsaved.store(true, Ordering::Relaxed);
            return;
        };
        let files: Vec<(FileName, OfferedFile)> =
            self.known().offered().map(|(name, file)| (name.clone(), file.clone())).collect();
        let files = files.into_iter().map(|(name, file)| (name, file.identity, file.manifest));
        let saved = state::save(&folder, self.peer, self.root.inode(), files);
        let has_failed_before = self.has_reported_unsaved.swap(saved.is_err(), Ordering::Relaxed);
        if let Err(error) = saved
            && !has_failed_before
        {
            log::warn!(
                "cannot keep what was found in {}, it will be hashed again next time: {error}",
                self.path().display()
            );
        }
    }
}

impl OfferedFiles for Folder {
    fn files(&self) -> Vec<FileEntry> {
        let entry = |(name, file): (&FileName, &OfferedFile)| entry_of(name, file);
        self.known().offered().map(entry).take(limits::FILES_PER_PEER_MAX).collect()
    }
}

fn entry_of(name: &FileName, file: &OfferedFile) -> FileEntry {
    let manifest = &file.manifest;
    FileEntry { name: name.clone(), size: manifest.size(), content: manifest.content() }
}

impl Catalog for Folder {
    fn find(&self, name: &FileName) -> Option<FileEntry> {
        Some(entry_of(name, self.known().get(name)?))
    }

    fn offer(&self, content: ContentId) -> Option<Offer> {
        let known = self.known();
        let (name, file) = known.with_content(content)?;
        Some(Offer {
            manifest: Arc::clone(&file.manifest),
            folder: Arc::clone(self.root.path()),
            file: name.as_str().to_owned(),
            opened: None,
            stamp: Some(file.identity.stamp),
            available: Available::Whole,
        })
    }

    fn may_return(&self, content: ContentId) -> bool {
        self.known().may_return(content)
    }

    fn changed(&self, offer: &Offer) {
        let Ok(name) = FileName::new(&offer.file) else { return };
        let is_withdrawn = self.known().suspect(name.clone(), offer.stamp);
        if is_withdrawn {
            log::info!(
                "{name} was not found as it was, and is not offered until it has been looked at"
            );
            self.note_change();
        }
    }

    fn corrupted(&self, offer: &Offer) {
        let Ok(name) = FileName::new(&offer.file) else { return };
        let mut known = self.known();
        if let Some(identity) = known.corrupted(&name, offer.stamp) {
            log::warn!(
                "{name} does not hold what was hashed, although nothing has changed it: it is \
                 hashed anew; compare it with a copy, and look after the disk"
            );
            // At once, because it has not changed for long. Under the lock, so that no scan finds
            // it neither known nor queued.
            self.queue.add(ScannedFile { name, identity });
            self.note_change();
        }
    }
}

#[cfg(test)]
mod tests;
