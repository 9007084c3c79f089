//! Sets down on the disk that what this server holds must not be used again.
//!
//! Invariant: a server hands over and ends only when its verdict is durable. A kill at any moment after that
//! leaves a directory whose next start sets aside what was refuted, before anything is read from it. A thread
//! is started for each verdict, of which a server has two at the most: the queues of the threads that write
//! may be full, or their ends may be what the verdict is about.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::threads::Report;
use crate::net::WakeHandle;
use crate::storage::datadir::{Untrusted, Verdicts};

/// The threads that set verdicts down.
pub(super) struct Judge {
    verdicts: Verdicts,
    reports: Sender<Report>,
    wake: WakeHandle,
    /// Each with a channel that is disconnected when the thread ends.
    threads: Vec<(JoinHandle<()>, Receiver<()>)>,
}

impl Judge {
    /// A server's data is not in doubt yet: no thread is started.
    pub fn new(verdicts: Verdicts, reports: Sender<Report>, wake: WakeHandle) -> Judge {
        Judge { verdicts, reports, wake, threads: Vec::new() }
    }

    /// Begins to make a verdict durable; a report tells the outcome.
    pub fn set_down(&mut self, untrusted: Untrusted) -> io::Result<()> {
        let (verdicts, reports, wake) =
            (self.verdicts.clone(), self.reports.clone(), self.wake.clone());
        let (end, ended) = bounded(0);
        let run = move || {
            let _end: Sender<()> = end;
            let done = verdicts.set_down(untrusted).map_err(|error| error.to_string());
            // Nobody listens only when the event loop has ended.
            let _ = reports.send(Report::VerdictSetDown(done));
            wake.wake();
        };
        let thread = thread::Builder::new().name("acervo-verdict".into()).spawn(run)?;
        self.threads.push((thread, ended));
        Ok(())
    }

    /// Waits until `deadline` for verdicts that are being set down. Whether all are.
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
