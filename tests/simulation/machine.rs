//! A replica's state machine: the real one of `storage`, on its engine in memory.
//!
//! The checker holds it against the `model`, which is small enough to be obviously right. The real
//! machine rather than the model in each replica: so the core's crashes, retries, snapshots and
//! late pages meet the code that has to stand them (sessions, removals, horizons), and replicas can
//! be compared by their own state hash and row by row.
//!
//! What it leaves out: engines on disks.

use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use acervo::model::{
    Action, AppliedPoint, AppliedWrite, Command, LogEntry, MachineSummary, OpResult, Release,
    WriteAnswer, WriteFate,
};
use acervo::server::snapshots::intake::Intake;
use acervo::server::work::{SnapshotReport, SnapshotWork};
use acervo::storage::apply::{Applied, StateMachine};
use acervo::storage::engine::{Direction, Engine, EngineView, WriteBatch};
use acervo::storage::keys;
use acervo::storage::memory::MemoryEngine;
use acervo::storage::reads::Store;
use acervo::storage::snapshot::MemoryStaging;
use bytes::Bytes;

pub struct Machine {
    engine: Arc<MemoryEngine>,
    machine: StateMachine,
    /// Where it claims to stand, once it has believed entries instead of applying them.
    believed: Option<AppliedPoint>,
}

/// A durable checkpoint, or a snapshot.
#[derive(Clone, Default)]
pub struct Saved {
    point: AppliedPoint,
    rows: Option<Rc<dyn EngineView>>,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn visit(view: &dyn EngineView, mut row: impl FnMut(&[u8], &[u8])) -> Result<(), String> {
    let mut each = |key: &[u8], value: &[u8]| {
        row(key, value);
        ControlFlow::Continue(())
    };
    view.scan(&keys::all(), Direction::Forward, &mut each).map_err(text)
}

impl Saved {
    /// What `engine` holds, which stands at `point`.
    pub fn of(engine: &MemoryEngine, point: AppliedPoint) -> Result<Saved, String> {
        let view = engine.view().map_err(text)?;
        Ok(Saved { point, rows: Some(view.into()) })
    }

    pub fn point(&self) -> AppliedPoint {
        self.point
    }
}

impl Machine {
    /// Opens what was saved.
    pub fn restore(saved: &Saved, release: Release) -> Result<Machine, String> {
        let mut batch = WriteBatch::default();
        if let Some(view) = &saved.rows {
            visit(&**view, |key, value| {
                batch.put(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            })?;
        }
        let engine = Arc::new(MemoryEngine::new());
        engine.fill(&batch);
        let machine = StateMachine::open(engine.clone(), release).map_err(text)?;
        let believed = (machine.applied() != saved.point).then_some(saved.point);
        Ok(Machine { engine, machine, believed })
    }

    /// Makes everything durable that is applied.
    pub fn save(&mut self) -> Result<Saved, String> {
        self.machine.checkpoint().map_err(text)?;
        Saved::of(&self.engine, self.point())
    }

    /// Does the applier's work on snapshots, pieces and all.
    pub fn snapshot(
        &mut self,
        intake: &mut Intake<MemoryStaging>,
        staging: &MemoryStaging,
        work: SnapshotWork,
    ) -> Result<Vec<SnapshotReport>, String> {
        let reports = intake.handle(&mut self.machine, work).map_err(text)?;
        if let [SnapshotReport::Installed { point, .. }] = reports.as_slice() {
            self.engine = staging.promoted().ok_or("nothing was promoted")?;
            self.believed = None;
            if self.machine.applied() != *point {
                return Err(format!("installed {point:?}, stands at {:?}", self.machine.applied()));
            }
        }
        Ok(reports)
    }

    /// Where this replica stands.
    pub fn point(&self) -> AppliedPoint {
        self.believed.unwrap_or(self.machine.applied())
    }

    /// What is left to do in the background.
    pub fn summary(&self) -> MachineSummary {
        self.machine.summary()
    }

    pub fn store(&self) -> Store {
        self.machine.store()
    }

    /// Applies the next entries of the log, as one batch.
    pub fn apply(&mut self, entries: &[LogEntry], answering: bool) -> Result<Applied, String> {
        let applied = match answering {
            true => self.machine.apply_answering(entries),
            false => self.machine.apply(entries),
        };
        applied.map_err(text)
    }

    /// Takes an entry that a hostile server may have made, without a look at what it says: the real
    /// machine may come to another state by it than others. What it does to the core is the
    /// question. But the real machine stops at a timestamp that does not rise, and so does this.
    pub fn believe(&mut self, entry: &LogEntry) -> Result<Option<AppliedWrite>, String> {
        let point = self.believed.get_or_insert(self.machine.applied());
        point.index = entry.index;
        let Ok(Some(Command { timestamp, action, .. })) = Command::decode(&entry.data) else {
            return Ok(None);
        };
        if timestamp <= point.timestamp {
            let before = point.timestamp;
            return Err(format!("entry {} has {timestamp} after {before}", entry.index));
        }
        point.timestamp = timestamp;
        let Action::Write { request, .. } = action else { return Ok(None) };
        Ok(Some(AppliedWrite {
            index: entry.index,
            term: entry.term,
            fate: WriteFate::Answered(WriteAnswer {
                timestamp,
                result: OpResult::Done,
                previous: None,
            }),
            newest_sequence: request.sequence,
        }))
    }

    /// Every row there is, sessions and removals included.
    pub fn rows(&mut self) -> Result<Vec<(Bytes, Bytes)>, String> {
        let saved = self.save()?;
        let mut rows = Vec::new();
        if let Some(view) = saved.rows {
            visit(&*view, |key, value| {
                rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            })?;
        }
        Ok(rows)
    }
}
