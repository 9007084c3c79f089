//! Reads the whole store again in the background, so that damage is found while the other servers
//! can still replace it.
//!
//! A pass reads every block of the store's files from the disk, past the engine's cache. It goes at
//! [`SCRUB_BYTES_PER_SECOND`].

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::super::get::StoreFault;
use super::completions::{CompletionSender, has_ended};
use crate::storage::apply::ApplyError;
use crate::storage::reads::Store;
use crate::workers::thread::DeadlineThread;

/// How fast the store is read again in the background, to find what rots: a few per cent of what a
/// disk can do. A store of 10 GiB is read in half an hour.
const SCRUB_BYTES_PER_SECOND: usize = 8 * 1024 * 1024;
/// Bytes read between two pauses: a millisecond of a disk's time. A larger row is read at once.
const SCRUB_PIECE_BYTES: usize = 256 * 1024;

/// Bytes of a block of the store's files, each of which has a checksum.
const BLOCK_BYTES: usize = 8 * 1024;

/// The thread that reads the store again and again.
pub(super) struct Scrubber {
    stop: Sender<()>,
    thread: DeadlineThread,
}

/// The thread was told to stop.
struct Over;

struct Pass<'a> {
    store: &'a Store,
    stop: &'a Receiver<()>,
}

impl Scrubber {
    /// Starts the thread. The first pass begins at once, and each further one `interval` after the
    /// end of the one before.
    pub fn start(
        store: Store,
        interval: Duration,
        completions: CompletionSender,
    ) -> io::Result<Scrubber> {
        let (stop, stopped) = bounded(0);
        let run = move || {
            crate::workers::lower_thread_priority();
            let pass = Pass { store: &store, stop: &stopped };
            while let Ok(passed) = pass.run() {
                if let Err(error) = passed {
                    let fault = StoreFault::of(&error, || "checking the whole store".to_owned());
                    completions.send(fault.into());
                    completions.wake();
                    return;
                }
                if pass.wait(interval).is_err() {
                    return;
                }
            }
        };
        Ok(Scrubber { stop, thread: DeadlineThread::spawn("acervo-scrub", run)? })
    }

    /// Stops the thread and waits for it until `deadline`. Returns whether it has ended.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> bool {
        drop(self.stop);
        has_ended(self.thread.finish(deadline))
    }
}

impl Pass<'_> {
    fn run(&self) -> Result<Result<(), ApplyError>, Over> {
        let mut next = Some(0);
        while let Some(from) = next {
            let blocks = (SCRUB_PIECE_BYTES / BLOCK_BYTES) as u64;
            match self.store.scrub_blocks(from, blocks) {
                Ok(rest) => next = rest,
                Err(error) => return Ok(Err(error)),
            }
            self.pause()?;
        }
        Ok(Ok(()))
    }

    fn pause(&self) -> Result<(), Over> {
        let pieces_per_second = SCRUB_BYTES_PER_SECOND / SCRUB_PIECE_BYTES;
        self.wait(Duration::from_secs(1) / pieces_per_second as u32)
    }

    fn wait(&self, time: Duration) -> Result<(), Over> {
        match self.stop.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Over),
        }
    }
}
