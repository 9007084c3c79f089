//! Downloads: fetches one content from all sources that have it, verifies it chunk by chunk, and
//! stores it as a file.
//!
//! One thread owns the sockets (`driver`). It runs a pure state machine that decides everything
//! (`download`), which uses the [`swarm`](super::swarm) to decide which source is asked for which
//! chunk. Chunks are received straight into page-aligned buffers; worker threads verify them and
//! write them to the partial file (`disk`, `part`). At most
//! [`DOWNLOAD_CHUNKS_MAX`](crate::limits::DOWNLOAD_CHUNKS_MAX) chunks wait to be written. Beyond
//! that no source is read, so that a slow disk slows the network down and costs no memory.
//!
//! A download checks whether the file exists already; locks, identifies and allocates the partial
//! file; fetches the chunk hashes from any source and verifies them against the content's id;
//! checks what an earlier download has left; fetches what is missing; and makes the file durable
//! and renames it.
//!
//! Rule: no byte is trusted before it is verified against the content's id, and a download that
//! fails keeps its partial file for the next one.
//!
//! Left out: host names (the registry sends addresses), several files in one download, and the
//! order of a file's chunks.

mod api;
mod dialogue;
mod disk;
mod download;
mod driver;
mod find;
mod hashes;
mod links;
mod part;
mod part_check;
mod shared;
mod size;
mod watch;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::limits;
use crate::net::{EventLoop, LoopConfig};
use crate::share::content::{Manifest, chunk_count, chunk_len, chunk_offset, hash_chunk};
use crate::share::offer::FileStamp;
use crate::wire::share::Source;
pub use api::{
    FetchError, FetchOptions, FetchOutcome, FetchPhase, FetchProgress, KeptPart, SourceProgress,
    SourceState,
};
use driver::{DownloadSizes, Driver};
pub use find::{FindError, find};
use hashes::HashLists;
#[cfg(feature = "internals")]
pub use part::Trailer;
use part::{Existing, Finish, Part};
use shared::FetchShared;
pub use size::{SizeOptions, prove_size};

/// Bytes that are read from one source before the others get their turn.
const SHARE_READ_BUDGET_BYTES: usize = limits::CHUNK_BYTES;

/// How often to try again when another download is just finishing the file. Each try sees a later
/// state of that download, which ends soon.
const OPEN_ATTEMPTS_MAX: usize = 3;

#[derive(Debug)]
pub struct Fetch;

/// A download under way. Dropping it stops the download and waits for its thread.
#[derive(Debug)]
pub struct FetchHandle {
    shared: Arc<FetchShared>,
    result: Receiver<Result<FetchOutcome, FetchError>>,
    thread: Option<JoinHandle<()>>,
}

impl Fetch {
    /// Starts a download on threads of its own. It reports later failures through
    /// [`FetchHandle::wait`].
    ///
    /// # Errors
    /// The file is larger than may be shared, or the system refuses an event loop or a thread.
    pub fn start(options: FetchOptions) -> Result<FetchHandle, FetchError> {
        if options.size > limits::FILE_BYTES_MAX {
            return Err(FetchError::TooLarge { name: options.name, size: options.size });
        }
        let name = options.name.clone();
        let internal = |reason: String| FetchError::Internal {
            name: name.clone(),
            reason,
            kept: KeptPart(false),
        };
        let event_loop = EventLoop::new(loop_config(&options), None)
            .map_err(|error| internal(error.to_string()))?;
        let shared = Arc::new(FetchShared::new(&options, event_loop.wake_handle()));
        let (result_in, result) = bounded(1);
        let run = {
            let shared = Arc::clone(&shared);
            move || {
                let outcome = run(options, event_loop, &shared);
                shared.progress().phase = FetchPhase::Ended;
                // The receiver is gone if the handle is being dropped.
                let _ = result_in.send(outcome);
            }
        };
        let thread = std::thread::Builder::new().name("share-fetch".to_owned()).spawn(run);
        let thread =
            thread.map_err(|error| internal(format!("no thread can be started: {error}")))?;
        let thread = Some(thread);
        Ok(FetchHandle { shared, result, thread })
    }
}

impl FetchHandle {
    pub fn progress(&self) -> FetchProgress {
        self.shared.progress().clone()
    }

    /// Adds a source. One whose address is known already is ignored.
    pub fn add_source(&self, source: Source) {
        let mut added = self.shared.added();
        // A download takes no more sources than this anyway.
        if added.sources.len() < limits::SOURCES_KNOWN_MAX {
            added.sources.push(source);
        }
        drop(added);
        self.shared.wake();
    }

    /// The number of the last search that the download has requested because none of its sources
    /// has the content any more; 0 before the first. To be read before searching, and passed to
    /// [`FetchHandle::searched`] afterwards.
    pub fn search_requested(&self) -> u64 {
        self.shared.search_requested()
    }

    /// The search with this number has ended, and all sources that it found have been added.
    pub fn searched(&self, number: u64) {
        self.shared.added().searched = number;
        self.shared.wake();
    }

    /// Stops the download and keeps the partial file. It ends with [`FetchError::Cancelled`],
    /// unless it has already ended.
    pub fn cancel(&self) {
        self.shared.cancel();
    }

    /// Waits for the end, at most `timeout`; `None` if the download is still running. The result is
    /// returned once, and [`FetchError::Cancelled`] after that.
    pub fn wait_for(&self, timeout: Duration) -> Option<Result<FetchOutcome, FetchError>> {
        match self.result.recv_timeout(timeout) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(FetchError::Cancelled(KeptPart(false))))
            }
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The reason why there is no file.
    #[cfg(any(test, feature = "internals"))]
    pub fn wait(self) -> Result<FetchOutcome, FetchError> {
        self.result.recv().unwrap_or(Err(FetchError::Cancelled(KeptPart(false))))
    }
}

impl Drop for FetchHandle {
    fn drop(&mut self) {
        self.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of a download panicked");
        }
    }
}

fn loop_config(options: &FetchOptions) -> LoopConfig {
    let default_budget = SHARE_READ_BUDGET_BYTES as u64;
    // With a rate limit each turn reads one tick's worth, so that the bytes are spread over time.
    let budget = options.limit_bytes_per_s.map_or(default_budget, |rate| {
        let tick_bytes = rate / (1000 / limits::PACED_TICK.as_millis() as u64);
        tick_bytes.clamp(limits::PACED_PIECE_BYTES_MIN as u64, default_budget)
    });
    LoopConfig {
        tick_interval: Some(match options.limit_bytes_per_s {
            Some(_) => limits::PACED_TICK,
            None => limits::SHARE_TICK,
        }),
        read_budget_bytes: budget as usize,
        first_frame_bytes_max: limits::SHARE_FRAME_BYTES_MAX,
        handshake_timeout: limits::SOURCE_DIAL_TIMEOUT,
        congestion: options.congestion.clone(),
        turn_max: Some(limits::SHARE_TURN_MAX),
        ..LoopConfig::default()
    }
}

/// Runs a download on its own thread, from start to end.
fn run(
    options: FetchOptions,
    event_loop: EventLoop,
    shared: &Arc<FetchShared>,
) -> Result<FetchOutcome, FetchError> {
    let whole = options.to.join(options.name.as_str());
    check_folder(&options)?;
    for _ in 0..OPEN_ATTEMPTS_MAX {
        match part::existing(&whole, options.size)? {
            Existing::Candidate(file) => return compare(&options, &file, shared),
            Existing::Nothing => {}
        }
        let part = Part::open(&options.to, &options.name, options.content, options.size)?;
        if let Some(part) = part {
            return fetch(options, event_loop, shared, part);
        }
    }
    Err(FetchError::UnderWay(whole))
}

fn check_folder(options: &FetchOptions) -> Result<(), FetchError> {
    let failed = |source| FetchError::Folder { path: options.to.clone(), source };
    let metadata = std::fs::metadata(&options.to).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    Ok(())
}

/// Verifies a file of the wanted name and length that exists already.
fn compare(
    options: &FetchOptions,
    file: &File,
    shared: &FetchShared,
) -> Result<FetchOutcome, FetchError> {
    shared.progress().phase = FetchPhase::Checking;
    let path = options.to.join(options.name.as_str());
    let disk = |source| FetchError::Disk { path: path.clone(), source, kept: KeptPart(false) };
    let stamp = FileStamp::of(&file.metadata().map_err(disk)?);
    let mut hashes = Vec::new();
    let mut buffer = vec![0; limits::CHUNK_BYTES];
    for index in 0..chunk_count(options.size) {
        if shared.is_cancelled() {
            return Err(FetchError::Cancelled(KeptPart(false)));
        }
        let bytes = &mut buffer[..chunk_len(index, options.size)];
        file.read_exact_at(bytes, chunk_offset(index)).map_err(disk)?;
        hashes.extend(hash_chunk(index, options.size, bytes));
        shared.progress().done_bytes += bytes.len() as u64;
    }
    match Manifest::verified(options.content, options.size, hashes) {
        Ok(manifest) => {
            part::remove_leftovers(&options.to, &options.name, options.content, file);
            let manifest = Arc::new(manifest);
            let kept_bytes = options.size;
            Ok(FetchOutcome {
                path,
                manifest,
                stamp,
                fetched_bytes: 0,
                received_bytes: 0,
                kept_bytes,
                already_there: true,
            })
        }
        Err(_) => Err(FetchError::Exists(path)),
    }
}

/// Fetches what is missing of a partial file.
fn fetch(
    options: FetchOptions,
    event_loop: EventLoop,
    shared: &Arc<FetchShared>,
    part: Part,
) -> Result<FetchOutcome, FetchError> {
    let name = options.name.clone();
    let internal =
        |reason: String| FetchError::Internal { name: name.clone(), reason, kept: KeptPart(false) };
    if chunk_count(options.size) == 0 {
        let manifest =
            HashLists::without_asking(options.content, options.size).ok_or_else(|| {
                part.remove();
                let last = "they give it no bytes, which do not have its hash".to_owned();
                FetchError::NoSource { name: name.clone(), last, kept: KeptPart(false) }
            })?;
        let mut finish = part.finish()?;
        if finish == Finish::Doubtful {
            // An empty file has no bytes that another program could have changed.
            finish = part.finish()?;
        }
        let Finish::Published(stamp) = finish else {
            return Err(FetchError::Touched(part.path().to_owned()));
        };
        return Ok(FetchOutcome {
            path: part.whole_path().to_owned(),
            manifest: Arc::new(manifest),
            stamp,
            fetched_bytes: 0,
            received_bytes: 0,
            kept_bytes: 0,
            already_there: false,
        });
    }
    let partials = options.partials.clone();
    let mut driver = Driver::new(options, Arc::clone(shared), part, DownloadSizes::default())
        .map_err(|error| internal(error.to_string()))?;
    let ran = event_loop.run(&mut driver);
    let result = match (driver.into_result(), ran) {
        (Some(result), _) => result,
        (None, Err(error)) => Err(internal(error.to_string())),
        (None, Ok(())) => Err(FetchError::Cancelled(KeptPart(false))),
    };
    if let (Err(_), Some(partials)) = (&result, &partials) {
        partials.remove();
    }
    result
}

#[cfg(test)]
mod tests;
