//! The threads that keep a folder's known files up to date: some hash, one scans.
//!
//! Rule: a scan decides nothing about a file that has changed since it began to list the folder.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::hash::HashProgress;
use super::scan::{self, ScannedFile};
use super::{FileIdentity, Folder, FolderOptions};
use crate::model::FileName;

/// While a folder is being hashed, the files that are ready are announced this often, in one
/// UPDATE.
const FOLDER_ANNOUNCE_INTERVAL: Duration = Duration::from_millis(500);
/// While a folder is being hashed, its state is saved this often.
const FOLDER_SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// The threads that hash a folder's files and scan it. Dropping it ends them.
#[derive(Debug)]
pub struct Watcher {
    folder: Arc<Folder>,
    threads: Vec<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the threads. `progress` is called on any of them. `changed` is called when the
    /// offered files have changed, at most every
    /// [`FOLDER_ANNOUNCE_INTERVAL`].
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
        // Hashing a large folder takes long, and is not to be lost with the process.
        self.folder.save();
    }
}

/// The thread that scans.
pub(super) struct FolderScanner<'a> {
    folder: &'a Folder,
    options: FolderOptions,
    /// Files that the last scan has found new or changed. They are hashed if the next scan finds
    /// them with the same identity.
    pending: HashMap<FileName, FileIdentity>,
}

impl FolderScanner<'_> {
    pub(super) fn new(folder: &Folder, options: FolderOptions) -> FolderScanner<'_> {
        FolderScanner { folder, options, pending: HashMap::new() }
    }

    fn run(&mut self, changed: &dyn Fn()) {
        let began = Instant::now();
        let mut scan_at = began + self.options.rescan_interval;
        let (mut tell_at, mut save_at) = (began, began + FOLDER_SAVE_INTERVAL);
        while !self.folder.stopping.load(Ordering::Relaxed) {
            let is_dirty = self.folder.dirty.load(Ordering::Relaxed);
            let until = if is_dirty { scan_at.min(tell_at) } else { scan_at };
            // A wake has come or it is time. The sender is kept in the folder, so it cannot be
            // gone.
            let _ = self.folder.wake.1.recv_deadline(until);
            let mut now = Instant::now();
            if now >= scan_at {
                self.scan_now(now);
                let took = now.elapsed();
                now = Instant::now();
                // A folder that takes long to scan is scanned less often.
                scan_at = now + self.options.rescan_interval.max(20 * took);
            }
            let is_hashed = self.folder.hashing().is_done();
            if (now >= tell_at || is_hashed) && self.folder.dirty.swap(false, Ordering::Relaxed) {
                tell_at = now + FOLDER_ANNOUNCE_INTERVAL;
                changed();
            }
            if now >= save_at || is_hashed {
                save_at = now + FOLDER_SAVE_INTERVAL;
                self.folder.save();
            }
        }
    }

    pub(super) fn scan_now(&mut self, now: Instant) {
        if let Some(found) = self.list() {
            self.apply_scan(found, now);
        }
    }

    /// Lists the folder. Changes from now on are newer than the list. `None` if it cannot be listed
    /// for lack of resources, which says nothing about its files.
    pub(super) fn list(&self) -> Option<Vec<ScannedFile>> {
        self.folder.known().scan_begins();
        let found = self.folder.scan();
        if let Some(error) = found.as_ref().err().filter(|error| scan::is_out_of_resources(error)) {
            log::warn!("{} is not looked at just now: {error}", self.folder.path().display());
            return None;
        }
        self.folder.root.report_scan(found.as_ref().map(|_| ()));
        // An empty list: the disk or the network is away, and may come back.
        Some(found.unwrap_or_default())
    }

    /// Updates the known files, and has files hashed that have settled.
    pub(super) fn apply_scan(&mut self, found: Vec<ScannedFile>, now: Instant) {
        let identities: HashMap<&FileName, FileIdentity> =
            found.iter().map(|f| (&f.name, f.identity)).collect();
        self.folder.queue.retain(|name, identity| identities.get(name) == Some(&identity));
        self.pending.retain(|name, identity| identities.get(name) == Some(identity));
        let mut known = self.folder.known();
        if known.apply(&identities, now) {
            self.folder.note_change();
        }
        for found in found {
            let is_known = known.is_settled(&found.name, now) || self.folder.queue.contains(&found);
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
