//! The applier's side of snapshots: it pins views of the store, stores a snapshot that arrives, and
//! installs it.
//!
//! Rule: an error of the store itself ends the process, and an error of an arriving snapshot ends
//! that snapshot. Which snapshots are sent and taken in is decided by `sending` and `receiving`.

use crate::model::LeaseEvent;
use crate::server::work::{SnapshotReport, SnapshotWork};
use crate::storage::apply::{ApplyError, StateMachine};
use crate::storage::snapshot::{SnapshotSink, StagedSnapshot, StagingArea};

/// A snapshot that is arriving.
enum Arriving {
    Nothing,
    Open { id: u64, sink: SnapshotSink, stored: u64 },
    Staged(StagedSnapshot),
}

/// The snapshot that is arriving, one at a time, in a staging area beside the store.
pub struct Intake<A> {
    staging: A,
    arriving: Arriving,
}

impl<A: StagingArea + Clone + 'static> Intake<A> {
    /// An intake in which nothing is arriving.
    pub fn new(staging: A) -> Intake<A> {
        Intake { staging, arriving: Arriving::Nothing }
    }

    /// Does one piece of work on the state machine's thread, and gives what is to be reported.
    ///
    /// # Errors
    /// The store failed: the process cannot go on.
    pub fn handle(
        &mut self,
        machine: &mut StateMachine,
        work: SnapshotWork,
    ) -> Result<Vec<SnapshotReport>, ApplyError> {
        Ok(match work {
            SnapshotWork::Pin { to, id } => {
                let source = machine.begin_snapshot()?;
                vec![SnapshotReport::Pinned { to, id, source }]
            }
            SnapshotWork::Begin { id, point } => {
                // An earlier one is removed first, since there is room for one.
                self.arriving = Arriving::Nothing;
                match SnapshotSink::create(self.staging.clone(), point) {
                    Ok(sink) => {
                        let sink = sink.knowing(machine.known_level());
                        self.arriving = Arriving::Open { id, sink, stored: 0 };
                        vec![SnapshotReport::Begun]
                    }
                    Err(error) => {
                        vec![SnapshotReport::Begun, self.refuse(id, error.to_string())]
                    }
                }
            }
            SnapshotWork::Store { id, chunk } => match &mut self.arriving {
                Arriving::Open { id: open, sink, stored } if *open == id => {
                    match sink.push(&chunk) {
                        Ok(()) => {
                            *stored += 1;
                            vec![SnapshotReport::Stored { id, stored: Some(*stored) }]
                        }
                        Err(error) => {
                            let taken = SnapshotReport::Stored { id, stored: None };
                            vec![taken, self.refuse(id, error.to_string())]
                        }
                    }
                }
                _ => vec![SnapshotReport::Stored { id, stored: None }],
            },
            SnapshotWork::Stage { id } => {
                match std::mem::replace(&mut self.arriving, Arriving::Nothing) {
                    Arriving::Open { id: open, sink, .. } if open == id => match sink.finish() {
                        Ok(staged) => {
                            self.arriving = Arriving::Staged(staged);
                            vec![SnapshotReport::Staged { id }]
                        }
                        Err(error) => vec![self.refuse(id, error.to_string())],
                    },
                    other => {
                        self.arriving = other;
                        Vec::new()
                    }
                }
            }
            SnapshotWork::Install { .. } => {
                match std::mem::replace(&mut self.arriving, Arriving::Nothing) {
                    Arriving::Staged(staged) => {
                        let point = machine.install(staged)?;
                        let summary = machine.summary();
                        let states = machine.leases()?.into_iter().map(LeaseEvent::Is);
                        let leases = [LeaseEvent::Replaced].into_iter().chain(states).collect();
                        vec![SnapshotReport::Installed { point, summary, leases }]
                    }
                    _ => Vec::new(),
                }
            }
            SnapshotWork::Discard => {
                // The log does not rely on it, or it would be installed.
                if let Arriving::Staged(staged) =
                    std::mem::replace(&mut self.arriving, Arriving::Nothing)
                {
                    staged.discard();
                }
                Vec::new()
            }
        })
    }

    fn refuse(&mut self, id: u64, reason: String) -> SnapshotReport {
        self.arriving = Arriving::Nothing;
        SnapshotReport::Failed { id, reason }
    }
}
