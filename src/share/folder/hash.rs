//! Hashing files with all processors: each thread takes the next chunk of the smallest file that waits.
//!
//! So a small file is ready at once, whatever else is being hashed, also one that comes late; and one large file or
//! a thousand small ones keep every thread busy. The queue outlives any one set of files: whoever looks at the
//! folder adds what has settled and takes back what has changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::FileIdentity;
use super::root::FolderRoot;
use super::scan::{self, ScannedFile};
use crate::limits::CHUNK_BYTES;
use crate::model::{ChunkHash, FileName};
use crate::share::content::{
    Manifest, ManifestError, chunk_count, chunk_len, chunk_offset, hash_chunk,
};

/// How far hashing is, since the queue was empty last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashProgress {
    /// Files to hash, those that are done included.
    pub files: u64,
    /// Files that are done, or turned out to be none to share.
    pub files_done: u64,
    /// Bytes of all files to hash.
    pub bytes: u64,
    /// Bytes that have been hashed.
    pub bytes_done: u64,
}

impl HashProgress {
    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.files_done == self.files
    }
}

/// Why a file could not be hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It was written to meanwhile.
    #[error("it changed while it was being hashed")]
    Changed,
    /// What was hashed makes no manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Files that wait to be hashed, or are being hashed.
#[derive(Debug, Default)]
pub(super) struct HashQueue {
    state: Mutex<HashQueueState>,
    /// There is something to do, or nothing more to be expected.
    work: Condvar,
    /// The queue is empty.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct HashQueueState {
    /// By size and then by name, so that the smallest is the first.
    files: BTreeMap<(u64, FileName), HashingFile>,
    progress: HashProgress,
    /// Numbers given to files so far: what comes of one that was taken back is told by its number.
    last_number: u64,
    is_stopping: bool,
}

/// A file whose chunks are coming in.
#[derive(Debug)]
struct HashingFile {
    number: u64,
    identity: FileIdentity,
    /// Chunks that threads have taken.
    taken: u64,
    /// Empty until the first of them is done, so that only files that have begun take memory.
    hashes: Vec<Option<ChunkHash>>,
    missing: u64,
    bytes_done: u64,
}

/// One chunk to hash; of an empty file, which has none, the file itself.
struct HashTask {
    found: ScannedFile,
    number: u64,
    chunk: u64,
}

/// A file that a thread has open, so that not each chunk costs an `open`.
struct OpenFile {
    number: u64,
    file: File,
}

impl HashQueue {
    fn state(&self) -> MutexGuard<'_, HashQueueState> {
        // Its methods leave it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file, unless it is there already as it looks.
    pub fn add(&self, found: ScannedFile) {
        if self.contains(&found) {
            return;
        }
        let mut state = self.state();
        if state.files.is_empty() {
            state.progress = HashProgress::default();
        }
        state.last_number += 1;
        let size = found.identity.stamp.size;
        let file = HashingFile {
            number: state.last_number,
            identity: found.identity,
            taken: 0,
            hashes: Vec::new(),
            missing: task_count(size),
            bytes_done: 0,
        };
        if let Some(before) = state.files.insert((size, found.name), file) {
            state.progress.files -= 1;
            state.progress.bytes -= size - before.bytes_done;
        }
        state.progress.files += 1;
        state.progress.bytes += size;
        self.work.notify_all();
    }

    /// Whether a file is here as it looks.
    pub fn contains(&self, found: &ScannedFile) -> bool {
        let key = (found.identity.stamp.size, found.name.clone());
        self.state().files.get(&key).is_some_and(|file| file.identity == found.identity)
    }

    /// Takes back every file for which `stays` does not hold.
    pub fn retain(&self, stays: impl Fn(&FileName, FileIdentity) -> bool) {
        let mut state = self.state();
        let HashQueueState { files, progress, .. } = &mut *state;
        files.retain(|(size, name), file| {
            let stays = stays(name, file.identity);
            if !stays {
                progress.files -= 1;
                progress.bytes -= size - file.bytes_done;
            }
            stays
        });
        if files.is_empty() {
            self.idle.notify_all();
        }
    }

    /// How far it is.
    pub fn progress(&self) -> HashProgress {
        self.state().progress
    }

    /// Waits until nothing is left to hash, at most this long.
    pub fn wait_until_idle(&self, timeout: Duration) {
        let busy = |state: &mut HashQueueState| !state.files.is_empty() && !state.is_stopping;
        // A poisoned lock is one whose state is whole all the same.
        drop(self.idle.wait_timeout_while(self.state(), timeout, busy));
    }

    /// Nothing more is begun: the threads end.
    pub fn stop(&self) {
        self.state().is_stopping = true;
        self.work.notify_all();
        self.idle.notify_all();
    }

    /// Hashes until the queue is stopped. `done` is called with each file and what came of it, and then `told`
    /// with how far all of it is, which is also called in between.
    pub fn work(
        &self,
        root: &FolderRoot,
        done: &dyn Fn(&ScannedFile, Result<Manifest, HashError>),
        told: &dyn Fn(HashProgress),
    ) {
        let (mut buffer, mut opened) = (Vec::new(), None);
        while let Some(task) = self.next_task(&mut buffer, &mut opened) {
            buffer.resize(CHUNK_BYTES, 0);
            let hashed = hash(root, &task, &mut opened, &mut buffer);
            if let Some(hashes) = self.take(&task, hashed) {
                opened = None;
                let HashTask { found, number, .. } = task;
                let manifest = hashes.and_then(|hashes| finish(root, &found, hashes));
                done(&found, manifest);
                self.remove(&found, number);
            }
            told(self.progress());
        }
    }

    /// Waits for the next chunk, having given back what takes memory or keeps a file open; `None` at the end.
    fn next_task(&self, buffer: &mut Vec<u8>, opened: &mut Option<OpenFile>) -> Option<HashTask> {
        let mut state = self.state();
        loop {
            if state.is_stopping {
                return None;
            }
            // Before the first file with something to take there are no more of them than threads.
            let next = state.files.iter_mut().find(|((size, _), f)| f.taken < task_count(*size));
            if let Some(((_, name), file)) = next {
                file.taken += 1;
                let found = ScannedFile { name: name.clone(), identity: file.identity };
                return Some(HashTask { found, number: file.number, chunk: file.taken - 1 });
            }
            (*buffer, *opened) = (Vec::new(), None);
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes in the hash of a chunk. When it was the last, or one failed, what is to become of the file.
    fn take(
        &self,
        task: &HashTask,
        hashed: Result<Option<ChunkHash>, HashError>,
    ) -> Option<Result<Vec<ChunkHash>, HashError>> {
        let size = task.found.identity.stamp.size;
        let mut state = self.state();
        let HashQueueState { files, progress, .. } = &mut *state;
        let file = files.get_mut(&(size, task.found.name.clone()))?;
        // Of a file that was taken back, or has failed, further chunks are of no use.
        if file.number != task.number || file.missing == 0 {
            return None;
        }
        let hash = match hashed {
            Ok(hash) => hash,
            Err(error) => {
                // Nobody takes further chunks of it.
                (file.missing, file.taken) = (0, task_count(size));
                return Some(Err(error));
            }
        };
        if let Some(hash) = hash {
            if file.hashes.is_empty() {
                file.hashes.resize(chunk_count(size) as usize, None);
            }
            file.hashes[task.chunk as usize] = Some(hash);
            let bytes = chunk_len(task.chunk, size) as u64;
            file.bytes_done += bytes;
            progress.bytes_done += bytes;
        }
        file.missing -= 1;
        (file.missing == 0)
            .then(|| Ok(std::mem::take(&mut file.hashes).into_iter().flatten().collect()))
    }

    /// A file is done with, and known to whoever has to know it.
    fn remove(&self, found: &ScannedFile, number: u64) {
        let mut state = self.state();
        let HashQueueState { files, progress, .. } = &mut *state;
        let key = (found.identity.stamp.size, found.name.clone());
        if files.get(&key).is_some_and(|file| file.number == number)
            && let Some(file) = files.remove(&key)
        {
            progress.files_done += 1;
            progress.bytes_done += found.identity.stamp.size - file.bytes_done;
        }
        if files.is_empty() {
            self.idle.notify_all();
        }
    }
}

/// Turns that a file takes: one a chunk, and one for a file without any.
fn task_count(size: u64) -> u64 {
    chunk_count(size).max(1)
}

/// Hashes one chunk; nothing of a file without any.
fn hash(
    root: &FolderRoot,
    task: &HashTask,
    opened: &mut Option<OpenFile>,
    buffer: &mut [u8],
) -> Result<Option<ChunkHash>, HashError> {
    let size = task.found.identity.stamp.size;
    if size == 0 {
        return Ok(None);
    }
    let file = match opened.take().filter(|opened| opened.number == task.number) {
        Some(OpenFile { file, .. }) => file,
        None => open(root, &task.found)?,
    };
    let file = &opened.insert(OpenFile { number: task.number, file }).file;
    let piece = &mut buffer[..chunk_len(task.chunk, size)];
    file.read_exact_at(piece, chunk_offset(task.chunk)).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => HashError::Changed,
        _ => HashError::Unreadable(error),
    })?;
    hash_chunk(task.chunk, size, piece).map(Some).ok_or(HashError::Changed)
}

/// A manifest, provided that the file still looks as it did before it was read.
fn finish(
    root: &FolderRoot,
    found: &ScannedFile,
    hashes: Vec<ChunkHash>,
) -> Result<Manifest, HashError> {
    let identity = scan::identity_of(&root.folder(), &found.name);
    if identity != Some(found.identity) {
        return Err(HashError::Changed);
    }
    Ok(Manifest::new(found.identity.stamp.size, hashes)?)
}

/// Opens a file that was found, if it is still that one.
fn open(root: &FolderRoot, found: &ScannedFile) -> Result<File, HashError> {
    // Whatever has taken its place: a link is not followed, a FIFO not waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root.folder(), found.name.as_str(), flags, Mode::empty())
        .map_err(io::Error::from)?;
    let file = File::from(file);
    let metadata = file.metadata()?;
    let identity: FileIdentity = scan::identity(&metadata);
    if metadata.is_file() && identity == found.identity {
        Ok(file)
    } else {
        Err(HashError::Changed)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn found(folder: &Path, name: &str) -> ScannedFile {
        let name = FileName::new(name).unwrap();
        let identity = scan::identity_of(&File::open(folder).unwrap(), &name).unwrap();
        ScannedFile { name, identity }
    }

    fn sparse(folder: &Path, name: &str, bytes: u64) -> ScannedFile {
        fs::File::create(folder.join(name)).unwrap().set_len(bytes).unwrap();
        found(folder, name)
    }

    #[test]
    fn the_smallest_is_first_also_when_it_comes_late() {
        let dir = tempfile::tempdir().unwrap();
        let chunk = CHUNK_BYTES as u64;
        let sizes = [("large", 5 * chunk), ("small", 1), ("none", 0), ("middle", 2 * chunk)];
        let [large, rest @ ..] = sizes.map(|(name, bytes)| sparse(dir.path(), name, bytes));
        let queue = HashQueue::default();
        queue.add(large);
        let (done, order) = mpsc::channel();
        // One thread; the rest comes after the first chunk of the large one.
        let rest = std::cell::RefCell::new(Some(rest));
        let bytes_before = std::cell::Cell::new(0);
        let told = |progress: HashProgress| {
            assert!(progress.bytes_done >= bytes_before.replace(progress.bytes_done));
            rest.take().into_iter().flatten().for_each(|found| queue.add(found));
            if progress.is_done() {
                assert_eq!((progress.files, progress.bytes_done), (4, 7 * chunk + 1));
                assert_eq!(progress.bytes_done, progress.bytes);
                queue.stop();
            }
        };
        let work_done = |found: &ScannedFile, result: Result<Manifest, HashError>| {
            done.send((found.name.to_string(), result.unwrap().size())).unwrap();
        };
        queue.work(&FolderRoot::open(dir.path()).unwrap(), &work_done, &told);
        let order: Vec<_> = order.try_iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["none", "small", "middle", "large"]);
    }

    #[test]
    fn a_file_that_is_not_what_was_found_any_more_is_not_hashed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, before, after) in
            [("grows", &b"1"[..], &b"22"[..]), ("shrinks", b"22", b"1"), ("fills", b"", b"1")]
        {
            fs::write(dir.path().join(name), before).unwrap();
            let queue = HashQueue::default();
            queue.add(found(dir.path(), name));
            fs::write(dir.path().join(name), after).unwrap();
            let root = FolderRoot::open(dir.path()).unwrap();
            let (done, results) = mpsc::channel();
            thread::scope(|scope| {
                for done in [done.clone(), done] {
                    let (queue, root) = (&queue, &root);
                    let done = move |_: &ScannedFile, result| done.send(result).unwrap();
                    scope.spawn(move || queue.work(root, &done, &|_| {}));
                }
                queue.wait_until_idle(PATIENCE);
                queue.stop();
            });
            let results: Vec<_> = results.into_iter().collect();
            assert!(matches!(results[..], [Err(HashError::Changed)]), "{name}: {results:?}");
        }
    }

    #[test]
    fn what_is_taken_back_counts_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, gone) = (sparse(dir.path(), "kept", 10), sparse(dir.path(), "gone", 1000));
        let queue = HashQueue::default();
        for found in [kept.clone(), gone.clone(), kept.clone()] {
            queue.add(found);
        }
        assert_eq!((queue.progress().files, queue.progress().bytes), (2, 1010));
        queue.retain(|name, _| *name == kept.name);
        assert!(queue.contains(&kept) && !queue.contains(&gone));
        assert_eq!((queue.progress().files, queue.progress().bytes), (1, 10));
        queue.retain(|_, _| false);
        queue.wait_until_idle(Duration::MAX);
        assert!(queue.progress().is_done());
    }
}
