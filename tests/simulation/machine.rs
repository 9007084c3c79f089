//! A replica's state machine: the real one of `storage`, on its engine of tables.
//!
//! The checker holds it against the `model`, which is small enough to be obviously right. The real
//! machine rather than the model in each replica: so the core's crashes, retries, snapshots and
//! late pages meet the code that has to stand them (sessions, removals, horizons), and replicas can
//! be compared by their own state hash and row by row.
//!
//! Each life of each replica draws its own sizes of tables, so small that a few rows make several
//! of them, and when seals are written and runs merged. So the files of replicas differ, and their
//! states may not.
//!
//! What it leaves out: crashes within a step of the engine, which the crash tests of the store
//! have.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use acervo::model::{
    Action, AppliedPoint, AppliedWrite, Command, LeaseState, LogEntry, MachineSummary, OpResult,
    Release, WriteAnswer, WriteFate, WriteOutcome,
};
use acervo::server::snapshots::intake::Intake;
use acervo::server::work::{SnapshotReport, SnapshotWork};
use acervo::storage::apply::{Applied, StateMachine};
use acervo::storage::engine::{Direction, Engine, EngineError, StoreBuilder};
use acervo::storage::keys;
use acervo::storage::reads::Store;
use acervo::storage::snapshot::StagingArea;
use acervo::storage::tables::{TableEngine, TableStoreBuilder, TablesOptions};
use bytes::Bytes;

use crate::log_disk::SimDisk;
use crate::rng::Rng;

pub struct Machine {
    disk: SimDisk,
    engine: Arc<dyn Engine>,
    machine: StateMachine,
    /// Where it claims to stand, once it has believed entries instead of applying them.
    believed: Option<AppliedPoint>,
    /// Decides when the engine works.
    rng: Rng,
}

/// A durable state of a replica, or a snapshot: the files of a store.
#[derive(Clone, Default)]
pub struct Saved {
    point: AppliedPoint,
    disk: Option<SimDisk>,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn draw_options(rng: &mut Rng) -> TablesOptions {
    TablesOptions {
        memory_table_bytes: rng.range(1..=10_000) as usize,
        block_bytes: rng.range(1..=500) as usize,
        fan: rng.range(2..=4) as usize,
        small_run_bytes: rng.range(1..=10_000),
        table_bytes: rng.range(500..=20_000),
        merge_step_rows: rng.range(1..=200) as usize,
        long_value_bytes: rng.range(4..=60) as usize,
        cache_bytes: rng.range(0..=10_000) as usize,
        open_files_max: rng.range(1..=9) as usize,
    }
}

impl Saved {
    pub fn point(&self) -> AppliedPoint {
        self.point
    }
}

impl Machine {
    /// Opens what was saved, in a life that `seed` stands for.
    pub fn restore(saved: &Saved, release: Release, seed: u64) -> Result<Machine, String> {
        let mut rng = Rng::new(seed);
        let disk = saved.disk.as_ref().map_or_else(SimDisk::new, SimDisk::copy);
        let opened = TableEngine::open(Arc::new(disk.clone()), draw_options(&mut rng));
        let engine: Arc<dyn Engine> = Arc::new(opened.map_err(text)?);
        let mut machine = StateMachine::open(engine.clone(), release).map_err(text)?;
        machine.set_newest_bytes_max(rng.pick(&[0, 10_000, 100_000]));
        let believed = (machine.applied() != saved.point).then_some(saved.point);
        Ok(Machine { disk, engine, machine, believed, rng })
    }

    /// Makes everything durable that is applied.
    pub fn save(&mut self) -> Result<Saved, String> {
        self.machine.checkpoint().map_err(text)?;
        Ok(Saved { point: self.point(), disk: Some(self.disk.copy()) })
    }

    /// Does the applier's work on snapshots, pieces and all.
    pub fn snapshot(
        &mut self,
        intake: &mut Intake<SimStaging>,
        staging: &SimStaging,
        work: SnapshotWork,
    ) -> Result<Vec<SnapshotReport>, String> {
        let reports = intake.handle(&mut self.machine, work).map_err(text)?;
        if let [SnapshotReport::Installed { point, .. }] = reports.as_slice() {
            let (disk, engine) = staging.promoted().ok_or("nothing was promoted")?;
            (self.disk, self.engine) = (disk, engine);
            self.believed = None;
            if self.machine.applied() != *point {
                return Err(format!("installed {point:?}, stands at {:?}", self.machine.applied()));
            }
        }
        Ok(reports)
    }

    /// The engine does some of the work behind the writes, and what was applied may be sealed.
    fn work(&mut self) -> Result<(), String> {
        if self.rng.chance(100) || self.engine.is_full() {
            self.machine.seal().map_err(text)?;
        }
        for _ in 0..self.rng.below(3) {
            self.engine.work().map_err(text)?;
        }
        Ok(())
    }

    /// Where this replica stands.
    pub fn point(&self) -> AppliedPoint {
        self.believed.unwrap_or(self.machine.applied())
    }

    /// What is left to do in the background.
    pub fn summary(&self) -> MachineSummary {
        self.machine.summary()
    }

    /// The leases that there are.
    pub fn leases(&self) -> Result<Vec<LeaseState>, String> {
        self.machine.leases().map_err(text)
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
        let applied = applied.map_err(text)?;
        self.work()?;
        Ok(applied)
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
            fate: WriteFate::Answered(WriteAnswer::of(WriteOutcome {
                timestamp,
                result: OpResult::Done,
            })),
            newest_sequence: request.sequence,
        }))
    }

    /// Every row there is, sessions and removals included.
    pub fn rows(&mut self) -> Result<Vec<(Bytes, Bytes)>, String> {
        self.machine.checkpoint().map_err(text)?;
        let mut rows = Vec::new();
        let view = self.engine.view().map_err(text)?;
        let mut each = |key: &[u8], value: &[u8]| {
            rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        };
        view.scan(&keys::all(), Direction::Forward, &mut each).map_err(text)?;
        Ok(rows)
    }
}

/// Where a replica builds the stores of snapshots. Clones share them.
#[derive(Clone)]
pub struct SimStaging {
    options: TablesOptions,
    stores: Arc<Mutex<StagedDisks>>,
}

#[derive(Default)]
struct StagedDisks {
    partial: Option<SimDisk>,
    staged: Option<SimDisk>,
    promoted: Option<(SimDisk, Arc<dyn Engine>)>,
}

impl SimStaging {
    /// The area of a life that `seed` stands for.
    pub fn new(seed: u64) -> SimStaging {
        SimStaging { options: draw_options(&mut Rng::new(seed)), stores: Arc::default() }
    }

    /// The snapshot of the state at `point`, which is complete and waits for its installation.
    pub fn staged(&self, point: AppliedPoint) -> Option<Saved> {
        let disk = self.stores.lock().unwrap().staged.as_ref().map(SimDisk::copy);
        disk.map(|disk| Saved { point, disk: Some(disk) })
    }

    fn promoted(&self) -> Option<(SimDisk, Arc<dyn Engine>)> {
        self.stores.lock().unwrap().promoted.take()
    }
}

impl StagingArea for SimStaging {
    fn begin(&self) -> Result<Box<dyn StoreBuilder>, EngineError> {
        let disk = SimDisk::new();
        self.stores.lock().unwrap().partial = Some(disk.clone());
        Ok(Box::new(TableStoreBuilder::new(Arc::new(disk), self.options)))
    }

    fn complete(&self) -> Result<(), EngineError> {
        let mut stores = self.stores.lock().unwrap();
        stores.staged = stores.partial.take();
        Ok(())
    }

    fn promote(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let mut stores = self.stores.lock().unwrap();
        let disk = stores.staged.take().expect("a snapshot is staged");
        let opened = TableEngine::open(Arc::new(disk.clone()), self.options)?;
        let engine: Arc<dyn Engine> = Arc::new(opened);
        stores.promoted = Some((disk, engine.clone()));
        Ok(engine)
    }

    fn abandon(&self) {
        self.stores.lock().unwrap().partial = None;
    }

    fn discard(&self) {
        self.stores.lock().unwrap().staged = None;
    }
}
