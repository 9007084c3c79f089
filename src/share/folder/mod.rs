//! A shared folder: which files are in it, what is in them, and what of it is offered.
//!
//! Offered are the regular files directly in the folder that have a name a [`FileName`] can be. Left out,
//! because names are never paths and a folder is not more than its owner put into it: folders
//! below it, links, FIFOs, devices; hidden files (`.name`), so that nobody shares settings by accident;
//! and `.part` files and others' like them, which are still arriving. [`Folder::left_out`] says how many of each there are.
//!
//! Every file is hashed once, all processors at work, the smallest first ([`hash`]), and is offered as soon as it
//! is known. What came of it is kept in a hidden file
//! of the folder ([`state`]), under the file's size, times of modification and change, and inode: what still looks the
//! same is not hashed again. The folder is looked at every few seconds, rather than watched through the
//! system: that works on every file system, network ones included, and costs one look a file. A file
//! that is new or has changed is hashed when it has looked the same twice, so that one that is being
//! copied in is left alone until it is whole. What vanishes, or is not found as it was by a server that is asked
//! for it, is not offered any more, and is remembered for a while: when it is seen again and looks as it did it is
//! offered as it was, so that a disk that was away for seconds is not hashed anew. A link or another folder in the place
//! of the one that was opened is not followed: everything has vanished then (`root`).
//!
//! Whoever changes a file in place and turns its modification time back is found out by the time of its last change. A disk
//! that gives other bytes than it was given is not: so the server checks some of the chunks that it reads, every one
//! that is asked for a second time, and every one that its taker says was wrong. A file that does not hold what was hashed
//! ([`Catalog::corrupted`]) is not offered from that moment, and is hashed anew at once.

pub mod hash;
mod root;
mod scan;
pub mod state;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use self::hash::{HashError, HashProgress, HashQueue};
use self::root::FolderRoot;
pub use self::scan::LeftOut;
use self::scan::{FolderScan, ScannedFile};
use self::state::{FolderState, SavedFile};
use super::content::Manifest;
use super::member::OfferedFiles;
use super::offer::{Available, Catalog, FileStamp, Offer};
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::text::escape;

/// What a file of a folder looks like from outside. As long as it looks the same it is taken to be the same. The device
/// is no part of it: a disk that was taken out and put back may get another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Length, and times of modification and of change.
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
struct OfferedFile {
    identity: FileIdentity,
    manifest: Arc<Manifest>,
}

/// A file that could not be hashed: a mode that forbids it, a disk that was away, leave no trace in its look when
/// they end.
#[derive(Clone, Copy, Debug)]
struct FailedFile {
    identity: FileIdentity,
    /// Doubles with each failure of the file as it looks, so that a bad disk is not read without end.
    wait: Duration,
    retry_at: Instant,
}

/// What is known of a folder. `contents` names exactly the files of `files`.
#[derive(Debug, Default)]
struct FolderFiles {
    files: BTreeMap<FileName, OfferedFile>,
    contents: HashMap<ContentId, Vec<FileName>>,
    /// Files that were not there any more when last looked at, and since when.
    vanished: HashMap<FileName, (OfferedFile, Instant)>,
    /// Files that a server has found changed or gone, until a look that began later decides: what still looks
    /// the same is offered again, and only what looks different is hashed.
    suspects: HashMap<FileName, OfferedFile>,
    /// What files had that look different since, or that are hashed anew for another reason, until that is done: they may
    /// have it again.
    in_doubt: HashMap<FileName, ContentId>,
    /// Files that could not be hashed, and are hashed again when they look different, or after a while.
    failed: HashMap<FileName, FailedFile>,
    /// Files about which something was learnt after the look under way began. What that look lists of them may be
    /// older, so it decides nothing about them; the next one does.
    changed_since_scan: HashSet<FileName>,
}

impl FolderFiles {
    fn insert(&mut self, name: FileName, shared: OfferedFile) {
        self.remove(&name);
        self.vanished.remove(&name);
        self.suspects.remove(&name);
        self.in_doubt.remove(&name);
        self.contents.entry(shared.manifest.content()).or_default().push(name.clone());
        self.files.insert(name, shared);
    }

    fn remove(&mut self, name: &FileName) -> Option<OfferedFile> {
        let shared = self.files.remove(name)?;
        let content = shared.manifest.content();
        if let Some(names) = self.contents.get_mut(&content) {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.contents.remove(&content);
            }
        }
        Some(shared)
    }

    /// Remembers what has vanished, for as long as there is room.
    fn remember(&mut self, name: FileName, shared: OfferedFile, now: Instant) {
        if self.vanished.len() < limits::FILES_PER_PEER_MAX {
            self.vanished.insert(name, (shared, now));
        }
    }

    /// Takes in what a look has found, at `now`. Says whether anything is offered that was not, or is not
    /// that was.
    fn apply(&mut self, identities: &HashMap<&FileName, FileIdentity>, now: Instant) -> bool {
        let gone: Vec<FileName> = self
            .files
            .iter()
            .filter(|(name, shared)| identities.get(name) != Some(&shared.identity))
            .filter(|(name, _)| !self.changed_since_scan.contains(*name))
            .map(|(name, _)| name.clone())
            .collect();
        let mut is_different = !gone.is_empty();
        for name in gone {
            let Some(shared) = self.remove(&name) else { continue };
            if identities.contains_key(&name) {
                self.in_doubt.insert(name, shared.manifest.content());
            } else {
                self.remember(name, shared, now);
            }
        }
        for (name, shared) in std::mem::take(&mut self.suspects) {
            if self.changed_since_scan.contains(&name) {
                self.suspects.insert(name, shared);
            } else {
                // Decided below, like anything else that was away.
                self.remember(name, shared, now);
            }
        }
        let is_recent = |since: Instant| now.duration_since(since) < limits::FOLDER_MEMORY;
        let mut back = Vec::new();
        let in_doubt = &mut self.in_doubt;
        in_doubt.retain(|name, _| identities.contains_key(name));
        self.vanished.retain(|name, (shared, since)| match identities.get(name) {
            None => is_recent(*since),
            Some(identity) => {
                if *identity == shared.identity {
                    back.push((name.clone(), shared.clone()));
                } else {
                    in_doubt.insert(name.clone(), shared.manifest.content());
                }
                false
            }
        });
        is_different |= !back.is_empty();
        for (name, shared) in back {
            self.insert(name, shared);
        }
        let FolderFiles { failed, changed_since_scan, .. } = self;
        failed.retain(|name, file| {
            identities.get(name) == Some(&file.identity) || changed_since_scan.contains(name)
        });
        is_different
    }
}

/// A folder that is shared by this process and no other.
#[derive(Debug)]
pub struct Folder {
    root: FolderRoot,
    peer: PeerId,
    known: Mutex<FolderFiles>,
    queue: HashQueue,
    /// What the last look has found and is not offered.
    left_out: Mutex<BTreeMap<OsString, LeftOut>>,
    /// Something has changed that the watcher has not told yet.
    dirty: AtomicBool,
    /// Something has changed that is not kept yet.
    unsaved: AtomicBool,
    stopping: AtomicBool,
    /// Wakes the watcher; one wake that waits is enough.
    wake: (Sender<()>, Receiver<()>),
}

impl Folder {
    /// Looks at a folder. What is known from before is offered at once, the rest when a [`Watcher`] has had it
    /// hashed. `peer` is the id for a folder that has none yet.
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

    /// How far hashing is.
    pub fn hashing(&self) -> HashProgress {
        self.queue.progress()
    }

    /// Waits until every file that is to be hashed has been, at most this long.
    pub fn wait_until_hashed(&self, timeout: Duration) {
        self.queue.wait_until_idle(timeout);
    }

    /// How many of what the folder holds are not offered, by why.
    pub fn left_out(&self) -> BTreeMap<LeftOut, usize> {
        let mut counts = BTreeMap::new();
        for why in self.left_out.lock().unwrap_or_else(PoisonError::into_inner).values() {
            *counts.entry(*why).or_default() += 1;
        }
        counts
    }

    /// Looks at the folder. What is not offered, and was not when last looked, gets a line in the log.
    fn scan(&self) -> io::Result<Vec<ScannedFile>> {
        let FolderScan { files, left_out } = scan::scan(&*self.root.in_place(self.peer)?)?;
        let mut before = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, why) in left_out.iter().filter(|(name, why)| before.get(*name) != Some(why)) {
            log::info!("{} is not offered: {why}", escape(name.as_encoded_bytes()));
        }
        *before = left_out;
        Ok(files)
    }

    /// Who shares it: drawn once for each folder, and kept with it.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Offers a file that was downloaded into the folder and is known to be this, as long as it looks
    /// like `stamp`.
    pub fn add(&self, name: FileName, manifest: Arc<Manifest>, stamp: FileStamp) {
        // A file that is gone already, or has changed, is found by the next look at the folder.
        let Some(identity) = scan::identity_of(&self.root.folder(), &name) else { return };
        if identity.stamp == stamp {
            let mut known = self.known();
            known.changed_since_scan.insert(name.clone());
            known.insert(name, OfferedFile { identity, manifest });
            drop(known);
            self.unsaved.store(true, Ordering::Relaxed);
            self.save();
        }
    }

    fn known(&self) -> MutexGuard<'_, FolderFiles> {
        // Its methods leave it whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file has been hashed, or cannot be.
    fn hashed(
        &self,
        ScannedFile { name, identity }: &ScannedFile,
        result: Result<Manifest, HashError>,
        now: Instant,
    ) {
        let mut known = self.known();
        known.changed_since_scan.insert(name.clone());
        known.in_doubt.remove(name);
        let before = known.failed.remove(name).filter(|file| file.identity == *identity);
        match result {
            Ok(manifest) => {
                known.insert(
                    name.clone(),
                    OfferedFile { identity: *identity, manifest: Arc::new(manifest) },
                );
                self.note_change();
            }
            Err(error) => {
                let wait = match before {
                    None => {
                        log::warn!("{name} is not offered: {error}");
                        limits::FOLDER_RETRY_MIN
                    }
                    Some(FailedFile { wait, .. }) => (2 * wait).min(limits::FOLDER_RETRY_MAX),
                };
                let failed = FailedFile { identity: *identity, wait, retry_at: now + wait };
                known.failed.insert(name.clone(), failed);
            }
        }
    }

    fn note_change(&self) {
        self.dirty.store(true, Ordering::Relaxed);
        self.unsaved.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        // A wake that is there already is enough.
        let _ = self.wake.0.try_send(());
    }

    /// Keeps what is known for the next time, if that has changed. A folder that cannot be written to is hashed
    /// again then.
    fn save(&self) {
        if !self.unsaved.swap(false, Ordering::Relaxed) {
            return;
        }
        // Where a disk was taken out there may be another folder, which is none of ours.
        let Ok(folder) = self.root.in_place(self.peer) else {
            self.unsaved.store(true, Ordering::Relaxed);
            return;
        };
        let files = self.known().files.clone();
        let files = files
            .into_iter()
            .map(|(name, OfferedFile { identity, manifest })| (name, identity, manifest));
        if let Err(error) = state::save(&folder, self.peer, self.root.inode(), files) {
            log::warn!(
                "cannot keep what was found in {}, it will be hashed again next time: {error}",
                self.path().display()
            );
        }
    }
}

impl OfferedFiles for Folder {
    fn files(&self) -> Vec<FileEntry> {
        let entry = |(name, shared): (&FileName, &OfferedFile)| FileEntry {
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
            folder: Arc::clone(self.root.path()),
            file: name.as_str().to_owned(),
            opened: None,
            stamp: Some(shared.identity.stamp),
            available: Available::Whole,
        })
    }

    fn may_return(&self, content: ContentId) -> bool {
        let known = self.known();
        let is_it = |shared: &OfferedFile| shared.manifest.content() == content;
        known.in_doubt.values().any(|one| *one == content) || known.suspects.values().any(is_it)
    }

    fn changed(&self, offer: &Offer) {
        let Ok(name) = FileName::new(&offer.file) else { return };
        let mut known = self.known();
        // By now it may have been looked at again.
        if known.files.get(&name).is_some_and(|shared| Some(shared.identity.stamp) == offer.stamp) {
            log::info!(
                "{name} was not found as it was, and is not offered until it has been looked at"
            );
            if let Some(shared) = known.remove(&name) {
                known.changed_since_scan.insert(name.clone());
                known.suspects.insert(name, shared);
            }
            self.note_change();
        }
    }

    fn corrupted(&self, offer: &Offer) {
        let Ok(name) = FileName::new(&offer.file) else { return };
        let mut known = self.known();
        if known.files.get(&name).is_some_and(|shared| Some(shared.identity.stamp) == offer.stamp) {
            log::warn!(
                "{name} does not hold what was hashed, although nothing has changed it: it is hashed anew; \
                 compare it with a copy, and look after the disk"
            );
            // Not a suspect, which would be offered again as it looks the same; and it has settled long since.
            if let Some(OfferedFile { identity, manifest }) = known.remove(&name) {
                known.changed_since_scan.insert(name.clone());
                known.in_doubt.insert(name.clone(), manifest.content());
                self.queue.add(ScannedFile { name, identity });
            }
            self.note_change();
        }
    }
}

/// Threads that hash a folder's files and look at it every few seconds. They end when it is dropped.
#[derive(Debug)]
pub struct Watcher {
    folder: Arc<Folder>,
    threads: Vec<JoinHandle<()>>,
}

impl Watcher {
    /// Begins. `progress` is told how far hashing is, on any of the threads; `changed` is called when what is
    /// offered has changed, at most every [`FOLDER_TELL_INTERVAL`](limits::FOLDER_TELL_INTERVAL).
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(
        folder: Arc<Folder>,
        options: FolderOptions,
        progress: impl Fn(HashProgress) + Send + Sync + 'static,
        changed: impl Fn() + Send + 'static,
    ) -> io::Result<Watcher> {
        let mut watcher = Watcher { folder: Arc::clone(&folder), threads: Vec::new() };
        let progress = Arc::new(progress);
        for _ in 0..options.threads.max(1) {
            let folder = Arc::clone(&folder);
            let progress = Arc::clone(&progress);
            watcher.spawn("share-hash", move || {
                let done =
                    |found: &ScannedFile, result| folder.hashed(found, result, Instant::now());
                let told = |state: HashProgress| {
                    progress(state);
                    folder.wake();
                };
                folder.queue.work(&folder.root, &done, &told);
            })?;
        }
        watcher
            .spawn("share-folder", move || FolderScanner::new(&folder, options).run(&changed))?;
        Ok(watcher)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.folder.stopping.store(true, Ordering::Relaxed);
        self.folder.queue.stop();
        self.folder.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread that looks after the shared folder panicked");
            }
        }
        // Hashing a large folder takes a while, which should not be lost with the process.
        self.folder.save();
    }
}

/// One look after the other.
struct FolderScanner<'a> {
    folder: &'a Folder,
    options: FolderOptions,
    /// Files that were new or different when last looked at. One that looks the same next time is hashed.
    pending: HashMap<FileName, FileIdentity>,
}

impl FolderScanner<'_> {
    fn new(folder: &Folder, options: FolderOptions) -> FolderScanner<'_> {
        FolderScanner { folder, options, pending: HashMap::new() }
    }

    fn run(&mut self, changed: &dyn Fn()) {
        let began = Instant::now();
        let mut scan_at = began + self.options.rescan_interval;
        let (mut tell_at, mut save_at) = (began, began + limits::FOLDER_SAVE_INTERVAL);
        while !self.folder.stopping.load(Ordering::Relaxed) {
            let is_dirty = self.folder.dirty.load(Ordering::Relaxed);
            let until = if is_dirty { scan_at.min(tell_at) } else { scan_at };
            // It has come, or it is time; the folder itself holds the other end.
            let _ = self.folder.wake.1.recv_deadline(until);
            let mut now = Instant::now();
            if now >= scan_at {
                self.scan_now(now);
                let took = now.elapsed();
                now = Instant::now();
                // A folder that takes long to look at is looked at less often.
                scan_at = now + self.options.rescan_interval.max(20 * took);
            }
            let is_hashed = self.folder.hashing().is_done();
            if (now >= tell_at || is_hashed) && self.folder.dirty.swap(false, Ordering::Relaxed) {
                tell_at = now + limits::FOLDER_TELL_INTERVAL;
                changed();
            }
            if now >= save_at || is_hashed {
                save_at = now + limits::FOLDER_SAVE_INTERVAL;
                self.folder.save();
            }
        }
    }

    fn scan_now(&mut self, now: Instant) {
        if let Some(found) = self.list() {
            self.apply_scan(found, now);
        }
    }

    /// Lists the folder. What is learnt from now on is newer than the list. `None`: it cannot be listed now, and nothing
    /// follows from that for what is there.
    fn list(&self) -> Option<Vec<ScannedFile>> {
        self.folder.known().changed_since_scan.clear();
        let found = self.folder.scan();
        if let Some(error) = found.as_ref().err().filter(|error| scan::is_out_of_resources(error)) {
            log::warn!("{} is not looked at just now: {error}", self.folder.path().display());
            return None;
        }
        self.folder.root.tell(found.as_ref().map(|_| ()));
        // It may come back: a disk that was taken out, a network that is away.
        Some(found.unwrap_or_default())
    }

    /// Forgets what has gone or changed, has hashed what has settled.
    fn apply_scan(&mut self, found: Vec<ScannedFile>, now: Instant) {
        let identities: HashMap<&FileName, FileIdentity> =
            found.iter().map(|f| (&f.name, f.identity)).collect();
        self.folder.queue.retain(|name, identity| identities.get(name) == Some(&identity));
        self.pending.retain(|name, identity| identities.get(name) == Some(identity));
        let mut known = self.folder.known();
        if known.apply(&identities, now) {
            self.folder.note_change();
        }
        for found in found {
            let is_known = known.files.contains_key(&found.name)
                || known.changed_since_scan.contains(&found.name)
                || known.failed.get(&found.name).is_some_and(|file| now < file.retry_at)
                || self.folder.queue.contains(&found);
            if is_known {
                self.pending.remove(&found.name);
            } else if self.pending.remove(&found.name).is_some() {
                self.folder.queue.add(found);
            } else {
                self.pending.insert(found.name, found.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests;
