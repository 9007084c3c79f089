//! The applier: it runs the state machine, makes its checkpoints, shrinks its file, and does what
//! snapshots need of the store.
//!
//! A failure ends the process, because a state machine that could not apply has no known state. A
//! damaged store ends only the applier: the server hands over and starts again without its store.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::get::StoreFault;
use super::super::snapshots::intake::Intake;
use super::super::work::{Completion, EntriesPiece, SnapshotReport, SnapshotWork, StoreWork};
use super::completions::CompletionSender;
use super::writer::WriterThread;
use crate::limits::{self, ShrinkLimits};
use crate::model::DiskSpace;
use crate::storage::apply::{Applied, ApplyError, StateMachine};
use crate::storage::reserve::DiskReserve;
use crate::storage::snapshot::DiskStaging;
use crate::workers::queue::{Receiver, RecvError};

/// How long committed entries that nobody waits for gather before they are applied together: the
/// engine's commit costs as much for one as for many.
const APPLY_GATHER: Duration = Duration::from_millis(1);
/// Bytes of entries after which the engine makes a durable commit while there is little room on the
/// disk, so that the log before it can be deleted.
const CHECKPOINT_BYTES_LOW: u64 = 4 * 1024 * 1024;
/// A store to which no more entries than these were applied since the last look has little to do,
/// and may be copied into a smaller file: a few writes a second do not keep it from that.
const SHRINK_ENTRIES_MAX: u64 = 128;
/// Pause after each step of the copy that shrinks the store, in which whatever has come meanwhile
/// is applied.
const SHRINK_STEP_PAUSE: Duration = Duration::from_millis(5);

/// Starts the applier: it runs the state machine, makes its checkpoints, and takes snapshots in.
pub(super) fn start(
    machine: StateMachine,
    staging: DiskStaging,
    reserve: Arc<DiskReserve>,
    shrink_interval: Duration,
    completions: CompletionSender,
) -> io::Result<WriterThread<StoreWork>> {
    WriterThread::start("acervo-apply", move |work: Receiver<StoreWork>| {
        let intake = Intake::new(staging);
        let now = Instant::now();
        let shrinking =
            Shrinking { interval: shrink_interval, active: false, looked: now, entries: 0 };
        let mut thread =
            ApplierThread { machine, intake, reserve, completions, started: now, shrinking };
        thread.reserve.set_reusable(thread.machine.reusable_bytes());
        loop {
            let unsaved = thread.machine.durable_index() < thread.machine.applied().index;
            let wait = match () {
                () if thread.shrinking.active => SHRINK_STEP_PAUSE,
                () if unsaved => limits::CHECKPOINT_INTERVAL.min(shrink_interval),
                () => shrink_interval,
            };
            let received = work.recv_timeout(wait);
            let idle = matches!(received, Err(RecvError::Timeout));
            let done = match received {
                Ok(StoreWork::Apply(mut piece)) => {
                    work.linger(APPLY_GATHER);
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
            let done = done.and_then(|()| thread.checkpoint_if_due());
            let done = done.and_then(|()| thread.shrink_if_due(idle));
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
    completions: CompletionSender,
    started: Instant,
    shrinking: Shrinking,
}

/// Whether the store is being copied into a smaller file, and when to look whether it should be.
struct Shrinking {
    interval: Duration,
    active: bool,
    looked: Instant,
    /// Entries applied since the last durable batch.
    entries: u64,
}

impl ApplierThread {
    fn apply(&mut self, piece: &EntriesPiece) -> Result<(), ApplyError> {
        let (entries, answering) = piece.entries();
        let applied = if answering {
            self.machine.apply_answering(entries)
        } else {
            self.machine.apply(entries)
        };
        let Applied { writes: outcomes, summary } = applied?;
        self.shrinking.entries += entries.len() as u64;
        let point = self.machine.applied();
        self.completions.send(Completion::Applied { outcomes, point, summary });
        Ok(())
    }

    fn checkpoint_if_due(&mut self) -> Result<(), ApplyError> {
        let bytes_max = match self.reserve.space() {
            DiskSpace::Ample => limits::CHECKPOINT_BYTES,
            DiskSpace::Low | DiskSpace::Full | DiskSpace::Exhausted => CHECKPOINT_BYTES_LOW,
        };
        let now_us = self.started.elapsed().as_micros() as u64;
        if self.machine.needs_checkpoint(now_us, bytes_max) {
            self.machine.checkpoint()?;
            self.completions.send(Completion::Checkpointed(self.machine.durable_index()));
            self.reserve.set_reusable(self.machine.reusable_bytes());
        }
        Ok(())
    }

    /// A step when nothing else has come; what comes goes first. A copy that does not get done
    /// while much is written is given up, since it makes every write dearer.
    fn shrink_if_due(&mut self, idle: bool) -> Result<(), ApplyError> {
        let shrinking = &mut self.shrinking;
        if shrinking.looked.elapsed() >= shrinking.interval {
            let is_quiet = shrinking.entries <= SHRINK_ENTRIES_MAX;
            (shrinking.looked, shrinking.entries) = (Instant::now(), 0);
            if shrinking.active && !is_quiet {
                self.machine.stop_shrinking();
            }
            shrinking.active = is_quiet;
        }
        if shrinking.active && idle {
            shrinking.active = self.machine.shrink(&ShrinkLimits::default())?;
            if !shrinking.active {
                self.reserve.set_reusable(self.machine.reusable_bytes());
            }
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
            self.completions.send(Completion::Snapshot(report));
        }
        Ok(())
    }
}
