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
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::threads::Report;
use crate::limits;
use crate::net::WakeHandle;
use crate::storage::datadir::{DataDirError, Untrusted};

/// How long a server waits for a verdict to be durable. A disk that has not taken it in by then may
/// never do so, and what is to be set aside may be on another one that does.
const PATIENCE: Duration = limits::STOP_DISK_TIMEOUT;

/// Makes a verdict durable, which waits for the disk.
pub(super) type SetDown = dyn Fn(Untrusted) -> Result<(), DataDirError> + Send + Sync;

/// The threads that make verdicts durable.
pub(super) struct Judge {
    set_down: Arc<SetDown>,
    patience: Duration,
    /// When the first verdict was reached.
    since: Option<Instant>,
    reports: Sender<Report>,
    wake: WakeHandle,
    /// The threads, each with a channel that is disconnected when it ends.
    threads: Vec<(JoinHandle<()>, Receiver<()>)>,
}

impl Judge {
    /// Begins without a verdict, and so without a thread.
    pub fn new(set_down: Arc<SetDown>, reports: Sender<Report>, wake: WakeHandle) -> Judge {
        Judge { set_down, patience: PATIENCE, since: None, reports, wake, threads: Vec::new() }
    }

    /// Begins to make a verdict durable. The outcome comes as [`Report::VerdictSetDown`].
    pub fn set_down(&mut self, now: Instant, untrusted: Untrusted) -> io::Result<()> {
        self.since.get_or_insert(now);
        let (set_down, reports, wake) =
            (self.set_down.clone(), self.reports.clone(), self.wake.clone());
        let (end, ended) = bounded(0);
        let run = move || {
            let _end: Sender<()> = end;
            let done = set_down(untrusted).map_err(|error| error.to_string());
            // Nobody listens only when the event loop has ended.
            let _ = reports.send(Report::VerdictSetDown(done));
            wake.wake();
        };
        let thread = thread::Builder::new().name("acervo-verdict".into()).spawn(run)?;
        self.threads.push((thread, ended));
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
        for (thread, ended) in self.threads {
            if ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
                return false;
            }
            if thread.join().is_err() {
                log::error!("a thread that sets a verdict down panicked");
            }
        }
        true
    }
}

#[cfg(test)]
impl Judge {
    /// Replaces the disk that takes verdicts in, and how long it is waited for.
    pub(super) fn set_disk(&mut self, set_down: Arc<SetDown>, patience: Duration) {
        (self.set_down, self.patience) = (set_down, patience);
    }

    /// Tells the event loop that the store is damaged, as the threads do that find it out.
    pub(super) fn accuser(&self) -> impl FnOnce() + use<> {
        let (reports, wake) = (self.reports.clone(), self.wake.clone());
        move || {
            reports.send(Report::StoreDamaged("a test says so".to_owned())).unwrap();
            wake.wake();
        }
    }
}
