//! The two threads that write: one for the log, one for the store.
//!
//! Both take work in order from a bounded queue and report on a channel, with a wake of the event
//! loop. The bounds are never met in practice, because consensus limits what is under way; if one
//! were, the event loop would wait, which is back-pressure and not loss.
//!
//! A failure of either ends the process: what a failed sync left on the disk is unknown, and so is
//! a state machine that could not apply.

use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::limits;
use crate::net::WakeHandle;
use crate::node::Input;
use crate::storage::apply::StateMachine;
use crate::storage::log::DiskLog;
use crate::types::{LogBatch, LogEntry};

/// What a writing thread reports.
pub(super) enum Report {
    /// For the node core.
    Done(Input),
    /// The end: one sentence.
    Failed(String),
}

/// A writing thread and its queue.
pub(super) struct Writer<T> {
    queue: Option<Sender<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Writer<T> {
    fn start(
        name: &str,
        run: impl FnOnce(Receiver<T>) + Send + 'static,
    ) -> std::io::Result<Writer<T>> {
        let (queue, work) = bounded(limits::WRITER_QUEUE_MAX);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || run(work))?;
        Ok(Writer { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands over work.
    pub fn push(&self, work: T) {
        if let Some(queue) = &self.queue {
            // Fails only when the thread has reported its failure and ended.
            let _ = queue.send(work);
        }
    }

    /// Lets the thread finish what it has, and waits for it.
    pub fn finish(mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a writing thread panicked");
        }
    }
}

/// Starts the log writer: everything that has queued up becomes durable with one sync.
pub(super) fn log_writer(
    mut log: DiskLog,
    reports: Sender<Report>,
    wake: WakeHandle,
) -> std::io::Result<Writer<LogBatch>> {
    Writer::start("acervo-log", move |work| {
        let mut batches = Vec::new();
        while let Ok(first) = work.recv() {
            let mut bytes = batch_bytes(&first);
            batches.push(first);
            while bytes < limits::LOG_GROUP_BYTES_MAX
                && let Ok(next) = work.try_recv()
            {
                bytes += batch_bytes(&next);
                batches.push(next);
            }
            let number = batches.last().map_or(0, |batch| batch.number);
            let report = match log.append(&batches) {
                Ok(()) => Report::Done(Input::Persisted { number }),
                Err(error) => Report::Failed(error.to_string()),
            };
            batches.clear();
            let failed = matches!(report, Report::Failed(_));
            if reports.send(report).is_err() {
                return;
            }
            wake.wake();
            if failed {
                return;
            }
        }
    })
}

fn batch_bytes(batch: &LogBatch) -> usize {
    batch.entries.iter().map(|entry| entry.data.len() + 64).sum()
}

/// Starts the applier: it runs the state machine and makes its checkpoints.
pub(super) fn applier(
    mut machine: StateMachine,
    reports: Sender<Report>,
    wake: WakeHandle,
) -> std::io::Result<Writer<Vec<LogEntry>>> {
    Writer::start("acervo-apply", move |work: Receiver<Vec<LogEntry>>| {
        let started = Instant::now();
        loop {
            let unsaved = machine.durable_index() < machine.applied().index;
            let received = if unsaved {
                work.recv_timeout(limits::CHECKPOINT_INTERVAL)
            } else {
                work.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let done = match received {
                Ok(entries) => apply(&mut machine, &entries, &reports, &wake),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => {
                    if let Err(error) = machine.checkpoint() {
                        log::error!(
                            "the last checkpoint failed, the log will be replayed: {error}"
                        );
                    }
                    return;
                }
            };
            let done = done.and_then(|()| {
                if machine.needs_checkpoint(started.elapsed().as_micros() as u64) {
                    machine.checkpoint().map_err(|error| error.to_string())?;
                }
                Ok(())
            });
            if let Err(failure) = done {
                // The receiver is gone only when the process ends anyway.
                let _ = reports.send(Report::Failed(failure));
                wake.wake();
                return;
            }
        }
    })
}

fn apply(
    machine: &mut StateMachine,
    entries: &[LogEntry],
    reports: &Sender<Report>,
    wake: &WakeHandle,
) -> Result<(), String> {
    let outcomes = machine.apply(entries).map_err(|error| error.to_string())?;
    let report = Report::Done(Input::Applied { outcomes, point: machine.applied() });
    let _ = reports.send(report);
    wake.wake();
    Ok(())
}
