//! The applier: it runs the state machine, seals what was applied, and does what snapshots need of
//! the store.
//!
//! A failure ends the process, because a state machine that could not apply has no known state. A
//! damaged store ends only the applier: the server hands over and starts again without its store.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::get::StoreFault;
use super::super::snapshots::intake::Intake;
use super::super::work::{Completion, EntriesPiece, SnapshotReport, SnapshotWork, StoreWork};
use super::background::SealedSender;
use super::completions::CompletionSender;
use super::watcher::WatchQueue;
use super::writer::WriterThread;
use crate::limits;
use crate::model::DiskSpace;
use crate::storage::apply::{Applied, ApplyError, StateMachine};
use crate::storage::reserve::DiskReserve;
use crate::storage::snapshot::DiskStaging;
use crate::workers::queue::{Receiver, RecvError};

/// How long committed entries that nobody waits for gather before they are applied together: the
/// engine's commit costs as much for one as for many.
const APPLY_GATHER: Duration = Duration::from_millis(1);
/// While somebody watches, entries are not gathered after a piece of no more than these: changes
/// are shown at once where they are few. Where they are many, as of 64 clients that write one after
/// the other, a piece has tens, and what a watch has to wait is a part of what a write takes.
const WATCHED_AT_ONCE_MAX: usize = 8;
/// Bytes of entries after which what was applied is sealed while there is little room on the disk,
/// so that the log before it can be deleted.
const SEAL_BYTES_LOW: u64 = 4 * 1024 * 1024;

/// What the applier works with besides its state machine.
pub(super) struct ApplierParts {
    pub staging: DiskStaging,
    pub reserve: Arc<DiskReserve>,
    pub sealed: SealedSender,
    pub watches: WatchQueue,
    pub completions: CompletionSender,
}

/// Starts the applier: it runs the state machine, seals, and takes snapshots in.
pub(super) fn start(
    machine: StateMachine,
    parts: ApplierParts,
) -> io::Result<WriterThread<StoreWork>> {
    WriterThread::start("acervo-apply", move |work: Receiver<StoreWork>| {
        let ApplierParts { staging, reserve, sealed, watches, completions } = parts;
        let intake = Intake::new(staging);
        let started = Instant::now();
        let applied_last = 0;
        let mut thread = ApplierThread {
            machine,
            intake,
            reserve,
            sealed,
            watches,
            completions,
            started,
            applied_last,
        };
        loop {
            let received = work.recv_timeout(limits::SEAL_INTERVAL);
            thread.machine.forget_retired();
            let done = match received {
                Ok(StoreWork::Apply(mut piece)) => {
                    if thread.may_gather() {
                        work.linger(APPLY_GATHER);
                    }
                    let next = gather(&mut piece, &work);
                    thread.apply(&piece).and_then(|()| match next {
                        Some(work) => thread.snapshot(work),
                        None => Ok(()),
                    })
                }
                Ok(StoreWork::Snapshot(work)) => thread.snapshot(work),
                Err(RecvError::Timeout) => Ok(()),
                Err(RecvError::Disconnected) => {
                    if let Err(error) = thread.machine.checkpoint()
                        && !error.is_damage()
                    {
                        log::error!(
                            "the last checkpoint failed, the log will be replayed: {error}"
                        );
                    }
                    return;
                }
            };
            let done = done.and_then(|()| thread.seal_if_due());
            let failed = done.is_err();
            if let Err(error) = done {
                let fault = StoreFault::of(&error, || "applying the log".to_owned());
                thread.completions.send(fault.into());
            }
            thread.completions.wake();
            if failed {
                return;
            }
        }
    })
}

/// Adds the pieces that have gathered behind this one, and gives back what else came.
fn gather(piece: &mut EntriesPiece, work: &Receiver<StoreWork>) -> Option<SnapshotWork> {
    while piece.has_room() {
        match work.try_recv()? {
            StoreWork::Apply(more) => piece.extend(more),
            StoreWork::Snapshot(work) => return Some(work),
        }
    }
    None
}

struct ApplierThread {
    machine: StateMachine,
    intake: Intake<DiskStaging>,
    reserve: Arc<DiskReserve>,
    sealed: SealedSender,
    watches: WatchQueue,
    completions: CompletionSender,
    started: Instant,
    /// The number of entries of the last piece.
    applied_last: usize,
}

impl ApplierThread {
    /// Whether entries may be kept waiting for more of them, unless somebody waits for an answer.
    fn may_gather(&self) -> bool {
        self.applied_last > WATCHED_AT_ONCE_MAX || !self.watches.is_watched()
    }

    fn apply(&mut self, piece: &EntriesPiece) -> Result<(), ApplyError> {
        let (entries, answering) = piece.entries();
        self.applied_last = entries.len();
        let applied = if answering {
            self.machine.apply_answering(entries)
        } else {
            self.machine.apply(entries)
        };
        let Applied { writes: outcomes, summary, leases } = applied?;
        let point = self.machine.applied();
        self.completions.send(Completion::Applied { outcomes, point, summary, leases });
        self.watches.applied();
        Ok(())
    }

    fn seal_if_due(&mut self) -> Result<(), ApplyError> {
        let bytes_max = match self.reserve.space() {
            DiskSpace::Ample => limits::SEAL_BYTES,
            DiskSpace::Low | DiskSpace::Full | DiskSpace::Exhausted => SEAL_BYTES_LOW,
        };
        let now_us = self.started.elapsed().as_micros() as u64;
        if self.machine.needs_seal(now_us, bytes_max) {
            self.machine.seal()?;
            self.sealed.notify();
        }
        Ok(())
    }

    fn snapshot(&mut self, work: SnapshotWork) -> Result<(), ApplyError> {
        if let SnapshotWork::Install { number } = work {
            // The log writer has handed it over once its part was durable.
            self.completions.send(Completion::Persisted { number });
            self.completions.wake();
        }
        for report in self.intake.handle(&mut self.machine, work)? {
            if let SnapshotReport::Pinned { .. } = report {
                self.completions.send(Completion::Checkpointed(self.machine.durable_index()));
            }
            if let SnapshotReport::Installed { .. } = report {
                self.watches.applied();
            }
            self.completions.send(Completion::Snapshot(report));
        }
        Ok(())
    }
}
