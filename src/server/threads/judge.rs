//! Makes verdicts durable: that this server's store, or all of its data, must not be used again.
//!
//! A server that leads hands over as soon as it has a verdict about its own data, and answers
//! nothing from them any more. Invariant: it ends only when the verdict is durable, or cannot be
//! made so in [`PATIENCE`]. A kill at any moment after that leaves a directory whose next start
//! sets aside what was refuted, before anything is read from it. A thread is started for each
//! verdict, of which a server has two at the most: the queues of the threads that write may be
//! full, or their ends may be what the verdict is about.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::work::Completion;
use super::completions::{CompletionSender, has_ended};
use crate::limits;
use crate::storage::datadir::{DataDirError, Untrusted};
use crate::workers::thread::DeadlineThread;

/// How long a server waits for a verdict to be durable. A disk that has not taken it in by then may
/// never do so, and what is to be set aside may be on another one that does.
const PATIENCE: Duration = limits::STOP_DISK_TIMEOUT;

/// Makes a verdict durable, which waits for the disk.
pub(in super::super) type SetDown = dyn Fn(Untrusted) -> Result<(), DataDirError> + Send + Sync;

/// The threads that make verdicts durable.
pub(super) struct Judge {
    set_down: Arc<SetDown>,
    patience: Duration,
    /// When the first verdict was reached.
    since: Option<Instant>,
    completions: CompletionSender,
    threads: Vec<DeadlineThread>,
}

impl Judge {
    /// Begins without a verdict, and so without a thread.
    pub fn new(set_down: Arc<SetDown>, completions: CompletionSender) -> Judge {
        Judge { set_down, patience: PATIENCE, since: None, completions, threads: Vec::new() }
    }

    /// Begins to make a verdict durable. The outcome comes as [`Completion::VerdictSetDown`].
    pub fn set_down(&mut self, now: Instant, untrusted: Untrusted) -> io::Result<()> {
        self.since.get_or_insert(now);
        let (set_down, completions) = (self.set_down.clone(), self.completions.clone());
        let run = move || {
            let done = set_down(untrusted).map_err(|error| error.to_string());
            completions.send(Completion::VerdictSetDown(done));
            completions.wake();
        };
        self.threads.push(DeadlineThread::spawn("acervo-verdict", run)?);
        Ok(())
    }

    /// Whether the first verdict is older than [`PATIENCE`], so that its durability is not waited
    /// for any more.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= self.patience)
    }

    /// Waits until `deadline` for the threads. Returns whether all have ended.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> bool {
        self.threads.into_iter().all(|thread| has_ended(thread.finish(deadline)))
    }
}

#[cfg(test)]
impl Judge {
    /// Replaces the disk that takes verdicts in, and how long it is waited for.
    pub fn set_disk(&mut self, set_down: Arc<SetDown>, patience: Duration) {
        (self.set_down, self.patience) = (set_down, patience);
    }

    pub fn completions(&self) -> CompletionSender {
        self.completions.clone()
    }
}
