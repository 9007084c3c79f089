//! Hashes files with all processors: each thread takes the next chunk of the smallest file in the
//! queue.
//!
//! So a small file is ready at once, whatever else is being hashed, even if it comes late; and one
//! large file, or a thousand small ones, keeps every thread busy. The queue stays as long as the
//! folder is shared: the scanner adds files that have settled and removes those that have changed.
//!
//! Rule: of a file that was removed from the queue, or added again in another version, late results
//! are ignored. Each addition has a number by which they are recognized.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::identity::FileIdentity;
use super::root::FolderRoot;
use super::scan::{self, ScannedFile};
use crate::limits::CHUNK_BYTES;
use crate::model::{ChunkHash, FileName};
use crate::share::content::{
    Manifest, ManifestError, chunk_count, chunk_len, chunk_offset, hash_chunk,
};

/// The progress since the queue was last empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashProgress {
    /// Files to hash, including those that are done.
    pub files: u64,
    /// Files that are hashed or could not be.
    pub files_done: u64,
    /// Bytes of all files to hash.
    pub bytes: u64,
    pub bytes_done: u64,
}

impl HashProgress {
    pub fn is_done(&self) -> bool {
        self.files_done == self.files
    }
}

/// Why a file could not be hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The system refuses to read it.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It was written to during the hashing.
    #[error("it changed while it was being hashed")]
    Changed,
    /// The chunk hashes are not those of a file that may be shared.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// The queue of files to hash.
#[derive(Debug, Default)]
pub(super) struct HashQueue {
    state: Mutex<HashQueueState>,
    /// Signalled when there is a chunk to hash, and when the queue is stopped.
    work: Condvar,
    /// Signalled when the queue is empty, and when it is stopped.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct HashQueueState {
    /// By size and then by name, so that the smallest file is the first.
    files: BTreeMap<(u64, FileName), HashingFile>,
    progress: HashProgress,
    /// The number of the file that was added last.
    last_number: u64,
    is_stopping: bool,
}

/// A file of the queue and the hashes of its chunks so far.
#[derive(Debug)]
struct HashingFile {
    number: u64,
    identity: FileIdentity,
    /// The number of chunks that threads have taken.
    taken: u64,
    /// Empty until the first chunk is hashed, so that only files that have been started take
    /// memory.
    hashes: Vec<Option<ChunkHash>>,
    missing: u64,
    bytes_done: u64,
}

/// One chunk to hash. An empty file, which has no chunk, is one task as well.
struct HashTask {
    found: ScannedFile,
    number: u64,
    chunk: u64,
}

/// A file that a thread keeps open, so that it need not be opened for each chunk.
struct OpenFile {
    number: u64,
    file: File,
}

impl HashQueue {
    fn state(&self) -> MutexGuard<'_, HashQueueState> {
        // No method panics half-way through a change, so a poisoned state is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file, unless it is in the queue with the same identity.
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

    pub fn contains(&self, found: &ScannedFile) -> bool {
        let key = (found.identity.stamp.size, found.name.clone());
        self.state().files.get(&key).is_some_and(|file| file.identity == found.identity)
    }

    /// Removes every file for which `stays` returns false.
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

    pub fn progress(&self) -> HashProgress {
        self.state().progress
    }

    /// Waits until the queue is empty, at most `timeout`.
    pub fn wait_until_idle(&self, timeout: Duration) {
        let busy = |state: &mut HashQueueState| !state.files.is_empty() && !state.is_stopping;
        // The result does not matter, not even that of a poisoned lock.
        drop(self.idle.wait_timeout_while(self.state(), timeout, busy));
    }

    /// Ends the threads when they have hashed their present chunk.
    pub fn stop(&self) {
        self.state().is_stopping = true;
        self.work.notify_all();
        self.idle.notify_all();
    }

    /// Hashes until the queue is stopped. `done` is called with each file and its result. `told` is
    /// called with the progress after that and after each chunk.
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

    /// Waits for the next chunk; `None` when the queue is stopped. Before it waits, it frees the
    /// buffer and closes the open file.
    fn next_task(&self, buffer: &mut Vec<u8>, opened: &mut Option<OpenFile>) -> Option<HashTask> {
        let mut state = self.state();
        loop {
            if state.is_stopping {
                return None;
            }
            // The files before it have all their chunks taken: there are no more of them than
            // threads.
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

    /// Records the hash of a chunk. Returns the result for the file if it was the last chunk or a
    /// failure.
    fn take(
        &self,
        task: &HashTask,
        hashed: Result<Option<ChunkHash>, HashError>,
    ) -> Option<Result<Vec<ChunkHash>, HashError>> {
        let size = task.found.identity.stamp.size;
        let mut state = self.state();
        let HashQueueState { files, progress, .. } = &mut *state;
        let file = files.get_mut(&(size, task.found.name.clone()))?;
        // The file was removed, or has failed.
        if file.number != task.number || file.missing == 0 {
            return None;
        }
        let hash = match hashed {
            Ok(hash) => hash,
            Err(error) => {
                // No further chunk of it is taken.
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

    /// Removes a file whose result has been reported.
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

/// The number of tasks that a file is: one for each chunk, or one if it is empty.
fn task_count(size: u64) -> u64 {
    chunk_count(size).max(1)
}

/// Hashes one chunk; `None` for an empty file.
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

/// The manifest of a file, if the file still has the identity that it had before it was read.
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

/// Opens a scanned file, if it still has its identity.
fn open(root: &FolderRoot, found: &ScannedFile) -> Result<File, HashError> {
    // Something else may be there by now: a link is not followed, a FIFO not waited for.
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
    fn the_smallest_file_is_hashed_first_even_if_it_is_added_late() {
        let dir = tempfile::tempdir().unwrap();
        let chunk = CHUNK_BYTES as u64;
        let sizes = [("large", 5 * chunk), ("small", 1), ("none", 0), ("middle", 2 * chunk)];
        let [large, rest @ ..] = sizes.map(|(name, bytes)| sparse(dir.path(), name, bytes));
        let queue = HashQueue::default();
        queue.add(large);
        let (done, order) = mpsc::channel();
        // A single thread; the other files are added after the first chunk of the large one.
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
    fn a_file_that_has_changed_since_the_scan_is_not_hashed() {
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
    fn a_file_that_is_withdrawn_from_hashing_is_not_counted() {
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
