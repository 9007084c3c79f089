//! The thread that reads for servers that lag: old log entries, and chunks of snapshots.
//!
//! It is a thread of its own because the workers may have a hundred reads of clients before them,
//! and all of them may hang at the disk: whatever clients ask for, a server that lags gets on, and
//! with it the group gets back the majority that it may lack.

use std::io;

use super::super::get::StoreFault;
use super::super::work::{CatchUpWork, Completion, SnapshotReport};
use super::completions::CompletionSender;
use crate::storage::log::LogReader;
use crate::workers::pool::Workers;

/// Pieces of work that wait or are done. Each server that lags has a chunk or a few ranges of the
/// log under way; what does not fit is asked for again, by consensus or with the next tick.
const CATCH_UP_JOBS_MAX: usize = 64;

/// Starts the thread, which reads the log by itself and snapshots by their sources.
pub(super) fn start(
    log: LogReader,
    completions: &CompletionSender,
) -> io::Result<Workers<CatchUpWork>> {
    let (sender, waker) = (completions.clone(), completions.clone());
    let complete = move |completion| sender.send(completion);
    let wake = move || waker.wake();
    Workers::start("acervo-behind", 1, CATCH_UP_JOBS_MAX, complete, wake, |_| {
        let reader = CatchUpReader { log: log.clone(), completions: completions.clone() };
        move |work| reader.read(work)
    })
}

struct CatchUpReader {
    log: LogReader,
    /// Damage is reported at once, besides in the answer.
    completions: CompletionSender,
}

impl CatchUpReader {
    fn read(&self, work: CatchUpWork) -> Completion {
        match work {
            CatchUpWork::Entries { fetch, low, high, bytes_max } => {
                let entries = self.log.read(low, high, bytes_max).unwrap_or_else(|error| {
                    if error.is_damage() {
                        self.completions.send(Completion::LogDamaged(error.to_string()));
                    } else {
                        log::error!("cannot read log entries {low} to {high}: {error}");
                    }
                    Vec::new()
                });
                Completion::Entries { fetch, entries }
            }
            CatchUpWork::Chunk { to, id, mut source, bytes_max } => {
                let chunk = source.next_chunk(bytes_max);
                if let Err(error) = &chunk {
                    let what = || format!("reading a snapshot for server {to}");
                    self.completions.send(StoreFault::of(error, what).into());
                }
                let chunk = chunk.map_err(|error| error.to_string());
                Completion::Snapshot(SnapshotReport::Read { to, id, source, chunk })
            }
        }
    }
}
