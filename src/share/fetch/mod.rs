//! Downloads: a content from everybody who has it, checked chunk by chunk, into a file.
//!
//! One thread owns the sockets and runs the [`swarm`](super::swarm), which decides who is asked for
//! what (`driver`). Chunks are received straight into page-aligned buffers; two other threads
//! check them and write them to the partial file (`part`, `store`). There are
//! [`DOWNLOAD_CHUNKS_MAX`](crate::limits::DOWNLOAD_CHUNKS_MAX) buffers: when all are in use no source
//! is read, so a slow disk slows the network and costs no memory.
//!
//! The steps of a download: look whether the file is there already; lock, identify and allocate the
//! partial file; get the chunk hashes from any source and check them against the content's name;
//! check what an earlier download has left; fetch what is missing; make it durable and rename it.
//! Whenever it ends before, the partial file stays for the next one.
//!
//! Left out: names of hosts (addresses come from the registry), several files at once (each is a
//! download of its own), priorities among a file's chunks other than rarity.

mod api;
mod disk;
mod driver;
mod find;
mod hashes;
mod links;
mod part;
mod size;
mod watch;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::limits;
use crate::net::{EventLoop, LoopConfig, WakeHandle};
use crate::share::content::{Manifest, chunk_count, chunk_len, chunk_offset, hash_chunk};
use crate::share::offer::FileStamp;
use crate::wire::share::Source;
pub use api::{
    FetchError, FetchOptions, FetchOutcome, FetchPhase, FetchProgress, Kept, SourceProgress,
    SourceState,
};
use driver::{DownloadSizes, Driver};
pub use find::{FindError, find};
use hashes::HashLists;
pub use part::Trailer;
use part::{Existing, Finish, Part};
pub use size::{SizeOptions, prove_size};

/// How often a file that another download is just finishing is looked for again.
const OPEN_ATTEMPTS_MAX: usize = 3;

/// What a download and its handle share.
#[derive(Debug)]
struct FetchShared {
    progress: Mutex<FetchProgress>,
    /// What the download has not noticed yet.
    added: Mutex<AddedSources>,
    /// How often the download has wanted others to be looked for at once.
    searches_requested: AtomicU64,
    cancelled: AtomicBool,
    wake: WakeHandle,
}

/// What came of looking for further sources.
#[derive(Debug, Default)]
struct AddedSources {
    sources: Vec<Source>,
    /// Of the looks that were wanted, the last one that has ended, and whose sources are all here.
    searched: u64,
}

impl FetchShared {
    fn new(options: &FetchOptions, wake: WakeHandle) -> FetchShared {
        FetchShared {
            progress: Mutex::new(FetchProgress {
                phase: FetchPhase::Preparing,
                size: options.size,
                done_bytes: 0,
                kept_bytes: 0,
                fetched_bytes: 0,
                rate_bytes_per_s: 0.0,
                longest_stall: Duration::ZERO,
                sources: Vec::new(),
            }),
            added: Mutex::new(AddedSources { sources: options.sources.clone(), searched: 0 }),
            searches_requested: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            wake,
        }
    }

    fn progress(&self) -> MutexGuard<'_, FetchProgress> {
        // It is replaced or changed field by field; any state of it is one to show.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn added(&self) -> MutexGuard<'_, AddedSources> {
        // Each of its fields may be ahead of the other.
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whoever looks for further sources to do so now; the number of that look.
    fn request_search(&self) -> u64 {
        self.searches_requested.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// Starts downloads.
#[derive(Debug)]
pub struct Fetch;

/// A download under way. Dropping it stops the download and waits until it has stopped.
#[derive(Debug)]
pub struct FetchHandle {
    shared: Arc<FetchShared>,
    result: Receiver<Result<FetchOutcome, FetchError>>,
    thread: Option<JoinHandle<()>>,
}

impl Fetch {
    /// Starts a download on threads of its own.
    ///
    /// # Errors
    ///
    /// The file is larger than may be shared, or this process may not have another event loop or
    /// thread. Everything else is told by [`FetchHandle::wait`].
    pub fn start(options: FetchOptions) -> Result<FetchHandle, FetchError> {
        if options.size > limits::FILE_BYTES_MAX {
            return Err(FetchError::TooLarge { name: options.name, size: options.size });
        }
        let name = options.name.clone();
        let internal =
            |reason: String| FetchError::Internal { name: name.clone(), reason, kept: Kept(false) };
        let event_loop = EventLoop::new(loop_config(&options), None)
            .map_err(|error| internal(error.to_string()))?;
        let shared = Arc::new(FetchShared::new(&options, event_loop.wake_handle()));
        let (result_in, result) = bounded(1);
        let run = {
            let shared = Arc::clone(&shared);
            move || {
                let outcome = run(options, event_loop, &shared);
                shared.progress().phase = FetchPhase::Ended;
                // Nobody may want to know any more.
                let _ = result_in.send(outcome);
            }
        };
        let thread = std::thread::Builder::new().name("share-fetch".to_owned()).spawn(run);
        let thread = Some(thread.map_err(|error| internal(error.to_string()))?);
        Ok(FetchHandle { shared, result, thread })
    }
}

impl FetchHandle {
    /// How far it is.
    pub fn progress(&self) -> FetchProgress {
        self.shared.progress().clone()
    }

    /// One more source. One that it knows already, by peer and address, is passed over.
    pub fn add_source(&self, source: Source) {
        let mut added = self.shared.added();
        // Whoever adds faster than a download can look has more than it takes anyway.
        if added.sources.len() < limits::SOURCES_KNOWN_MAX {
            added.sources.push(source);
        }
        drop(added);
        self.shared.wake.wake();
    }

    /// The number of the last look for further sources that the download has wanted at once, from 0 on: nobody has the
    /// content any more whom it knows. Read it before looking, and tell it to [`FetchHandle::searched`].
    pub fn search_requested(&self) -> u64 {
        self.shared.searches_requested.load(Ordering::Acquire)
    }

    /// The look of this number has ended: whoever was found is added.
    pub fn searched(&self, number: u64) {
        self.shared.added().searched = number;
        self.shared.wake.wake();
    }

    /// Stops it; what has arrived is kept. It ends with [`FetchError::Cancelled`], unless it has ended
    /// already.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Release);
        self.shared.wake.wake();
    }

    /// Waits this long for its end. `None`: it goes on. The result is given once; after that the
    /// answer is [`FetchError::Cancelled`].
    pub fn wait_for(&self, timeout: Duration) -> Option<Result<FetchOutcome, FetchError>> {
        match self.result.recv_timeout(timeout) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(FetchError::Cancelled(Kept(false)))),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// Why there is no file.
    pub fn wait(self) -> Result<FetchOutcome, FetchError> {
        self.result.recv().unwrap_or(Err(FetchError::Cancelled(Kept(false))))
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
    let default_budget = limits::SHARE_READ_BUDGET_BYTES as u64;
    // Under a rate, a turn reads a tick's worth, so that what comes is spread over time.
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

/// A download from beginning to end, on its own thread.
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

/// There is a file of this name and length: is it the one?
fn compare(
    options: &FetchOptions,
    file: &File,
    shared: &FetchShared,
) -> Result<FetchOutcome, FetchError> {
    shared.progress().phase = FetchPhase::Checking;
    let path = options.to.join(options.name.as_str());
    let disk = |source| FetchError::Disk { path: path.clone(), source, kept: Kept(false) };
    let stamp = FileStamp::of(&file.metadata().map_err(disk)?);
    let mut hashes = Vec::new();
    let mut buffer = vec![0; limits::CHUNK_BYTES];
    for index in 0..chunk_count(options.size) {
        if shared.is_cancelled() {
            return Err(FetchError::Cancelled(Kept(false)));
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
        |reason: String| FetchError::Internal { name: name.clone(), reason, kept: Kept(false) };
    if chunk_count(options.size) == 0 {
        let manifest =
            HashLists::without_asking(options.content, options.size).ok_or_else(|| {
                part.remove();
                internal("a file of no bytes does not have this hash".to_owned())
            })?;
        let mut finish = part.finish()?;
        if finish == Finish::Doubtful {
            // There is nothing in it that could be wrong.
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
        (None, Ok(())) => Err(FetchError::Cancelled(Kept(false))),
    };
    if let (Err(_), Some(partials)) = (&result, &partials) {
        partials.remove();
    }
    result
}

#[cfg(test)]
mod tests;
