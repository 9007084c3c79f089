//! The state machine: committed entries in, outcomes out, the same on every replica.
//!
//! Apply is deterministic. It reads no clock: a version's timestamp is the command's, and sessions
//! expire by the timestamps of the log. The same log gives the same rows, the same outcomes and
//! the same hash.
//!
//! Every [`apply`](StateMachine::apply) is one lazy engine batch. A
//! [`checkpoint`](StateMachine::checkpoint) is a durable one, which also holds the applied point, and
//! the sessions as of it: nobody reads these rows before. After a crash the engine stands at its last
//! checkpoint, versions and sessions together, and the log from
//! [`durable_index`](StateMachine::durable_index) on is applied again.
//!
//! A snapshot for another server is read from a view as of a checkpoint
//! ([`begin_snapshot`](StateMachine::begin_snapshot)); one from another server replaces the whole
//! engine ([`install`](StateMachine::install)).
//!
//! What it leaves out: deciding when to checkpoint (the driver asks
//! [`needs_checkpoint`](StateMachine::needs_checkpoint)).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Buf, BufMut, Bytes};

use super::engine::{Durability, Engine, EngineError, EngineView, WriteBatch};
use super::hash::StateHash;
use super::sessions::{Admission, Sessions};
use super::snapshot::{SnapshotSource, StagedSnapshot};
use super::{keys, versions};
use crate::command::{Command, CommandError, WriteOp, WriteOutcome};
use crate::limits;
use crate::node::AppliedWrite;
use crate::types::{AppliedPoint, LogEntry, LogIndex, Timestamp};

/// The layout of the rows this build writes, and the newest it reads.
pub const STATE_FORMAT_VERSION: u32 = 1;

const META_FORMAT: &str = "format";
const META_APPLIED: &str = "applied";
const POINT_BYTES: usize = 24;

/// Why the state machine stopped. All of these are final for the process.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An entry is neither a no-op nor a command this release knows.
    #[error("log entry {index} cannot be applied: {source}; run a release that knows it")]
    Undecodable {
        /// The entry.
        index: LogIndex,
        /// What is wrong with it.
        source: CommandError,
    },
    /// An entry is not the next one.
    #[error("log entry {found} was to be applied where entry {expected} should follow")]
    OutOfOrder {
        /// The next index.
        expected: LogIndex,
        /// What came.
        found: LogIndex,
    },
    /// A command's timestamp is not past the one before: versions would change their order.
    #[error("log entry {index} has timestamp {found}, not past {last} of the entry before")]
    TimestampOrder {
        /// The entry.
        index: LogIndex,
        /// Its timestamp.
        found: Timestamp,
        /// The timestamp it should be past.
        last: Timestamp,
    },
    /// A row cannot be read.
    #[error(
        "the store is damaged ({0} cannot be read): move this server's data directory away and \
         start it on an empty one, so that the group can bring it up to date"
    )]
    Damaged(&'static str),
    /// A later release wrote the rows.
    #[error(
        "the store has format {0}, newer than this release reads ({STATE_FORMAT_VERSION}): run the \
         release that wrote it"
    )]
    NewerFormat(u32),
    /// A snapshot that is older than the state. Nothing was changed.
    #[error("a snapshot of entry {found} was to replace the newer state at entry {applied}")]
    OlderSnapshot {
        /// What the snapshot holds.
        found: LogIndex,
        /// Where the state machine stands.
        applied: LogIndex,
    },
    /// An earlier call failed half-way.
    #[error("the state machine stopped after a failure: start the server again")]
    Poisoned,
}

/// What readers on other threads and the apply thread share.
struct Shared {
    /// Replaced when a snapshot is installed.
    engine: RwLock<Arc<dyn Engine>>,
    applied: RwLock<AppliedPoint>,
    applying_timestamp: AtomicI64,
}

/// A reader's handle: cheap to clone, for any thread.
///
/// A read sees the state between two applied batches. To know which: load
/// [`applied`](Store::applied) *before* reading (the state read is at least that new), and
/// [`applying_timestamp`](Store::applying_timestamp) *after* (it is at most that new).
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

impl Store {
    /// The newest version of a key.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`] and [`ApplyError::Damaged`].
    pub fn get(&self, key: &[u8]) -> Result<Option<(Timestamp, Bytes)>, ApplyError> {
        let engine = self.shared.engine.read().unwrap_or_else(PoisonError::into_inner).clone();
        versions::newest(&*engine, key)
    }

    /// A lower bound of the state that any later read sees: set after a batch became visible.
    pub fn applied(&self) -> AppliedPoint {
        *self.shared.applied.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// An upper bound of the state that any earlier read saw: set before a batch becomes visible.
    pub fn applying_timestamp(&self) -> Timestamp {
        Timestamp(self.shared.applying_timestamp.load(Ordering::SeqCst))
    }
}

/// The state machine: one owner, one thread.
pub struct StateMachine {
    shared: Arc<Shared>,
    /// The same one that is shared.
    engine: Arc<dyn Engine>,
    sessions: Sessions,
    point: AppliedPoint,
    durable_index: LogIndex,
    /// What was applied since the last checkpoint.
    lazy_entries: u64,
    lazy_bytes: u64,
    /// When the driver was first seen with something applied since the last checkpoint.
    lazy_since_us: Option<u64>,
    poisoned: bool,
}

impl StateMachine {
    /// Opens the state that the engine's last durable batch left.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`], [`ApplyError::Damaged`], [`ApplyError::NewerFormat`].
    pub fn open(engine: Arc<dyn Engine>) -> Result<StateMachine, ApplyError> {
        let point = stored_point(&*engine)?;
        let sessions = Sessions::load(&*engine)?;
        let shared = Shared {
            engine: RwLock::new(engine.clone()),
            applied: RwLock::new(point),
            applying_timestamp: AtomicI64::new(point.timestamp.0),
        };
        Ok(StateMachine {
            shared: Arc::new(shared),
            engine,
            sessions,
            point,
            durable_index: point.index,
            lazy_entries: 0,
            lazy_bytes: 0,
            lazy_since_us: None,
            poisoned: false,
        })
    }

    /// A handle for readers.
    pub fn store(&self) -> Store {
        Store { shared: self.shared.clone() }
    }

    /// Where the state machine stands.
    pub fn applied(&self) -> AppliedPoint {
        self.point
    }

    /// The applied index of the last durable commit: the log is to be kept from here on.
    pub fn durable_index(&self) -> LogIndex {
        self.durable_index
    }

    /// Applies entries, in order, as one atomic batch; one outcome a command, none for no-ops.
    ///
    /// # Errors
    ///
    /// Any; then nothing of the batch is visible, and every later call fails with
    /// [`ApplyError::Poisoned`].
    pub fn apply(&mut self, entries: &[LogEntry]) -> Result<Vec<AppliedWrite>, ApplyError> {
        self.guarded(|machine| machine.apply_batch(entries))
    }

    fn apply_batch(&mut self, entries: &[LogEntry]) -> Result<Vec<AppliedWrite>, ApplyError> {
        let view = self.engine.view()?;
        let mut batch = WriteBatch::default();
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut point = self.point;
        let mut hash = StateHash(point.hash);
        for entry in entries {
            let expected = point.index + 1;
            if entry.index != expected {
                return Err(ApplyError::OutOfOrder { expected, found: entry.index });
            }
            let command = Command::decode(&entry.data)
                .map_err(|source| ApplyError::Undecodable { index: entry.index, source })?;
            point.index = entry.index;
            self.lazy_entries += 1;
            self.lazy_bytes += entry.data.len() as u64;
            let Some(command) = command else { continue };
            if command.timestamp <= point.timestamp {
                return Err(ApplyError::TimestampOrder {
                    index: entry.index,
                    found: command.timestamp,
                    last: point.timestamp,
                });
            }
            point.timestamp = command.timestamp;
            let outcome = self.apply_command(&command, &*view, &mut batch, &mut hash)?;
            outcomes.push(AppliedWrite {
                index: entry.index,
                term: entry.term,
                outcome,
                newest_sequence: self.sessions.newest_sequence(command.request.client),
            });
        }
        if entries.is_empty() {
            return Ok(outcomes);
        }
        drop(view);
        point.hash = hash.0;
        self.shared.applying_timestamp.store(point.timestamp.0, Ordering::SeqCst);
        self.engine.write(&batch, Durability::Lazy)?;
        self.point = point;
        *self.shared.applied.write().unwrap_or_else(PoisonError::into_inner) = point;
        Ok(outcomes)
    }

    fn apply_command(
        &mut self,
        command: &Command,
        view: &dyn EngineView,
        batch: &mut WriteBatch,
        hash: &mut StateHash,
    ) -> Result<Option<WriteOutcome>, ApplyError> {
        match self.sessions.admit(&command.request, command.timestamp, hash) {
            Admission::Repeated(outcome) => return Ok(Some(outcome)),
            Admission::Forgotten => return Ok(None),
            Admission::New => {}
        }
        let existed = match &command.op {
            WriteOp::Put { key, value } => {
                versions::put(batch, hash, key, command.timestamp, value);
                false
            }
            WriteOp::Del { key } => versions::delete(view, batch, hash, key)?,
        };
        let outcome = WriteOutcome { timestamp: command.timestamp, existed };
        self.sessions.record(&command.request, outcome, hash);
        Ok(Some(outcome))
    }

    /// Whether a [`checkpoint`](StateMachine::checkpoint) is due, by what was applied since the last
    /// one or by the time: the interval begins with the first call that finds something to save.
    /// `now_us` is monotonic, in microseconds.
    pub fn needs_checkpoint(&mut self, now_us: u64) -> bool {
        if self.lazy_entries == 0 {
            return false;
        }
        let since_us = *self.lazy_since_us.get_or_insert(now_us);
        self.lazy_entries >= limits::CHECKPOINT_ENTRIES
            || self.lazy_bytes >= limits::CHECKPOINT_BYTES
            || now_us.saturating_sub(since_us) >= limits::CHECKPOINT_INTERVAL.as_micros() as u64
    }

    /// Makes everything applied so far durable, sessions included.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`]; then every later call fails with [`ApplyError::Poisoned`].
    pub fn checkpoint(&mut self) -> Result<(), ApplyError> {
        self.guarded(|machine| {
            if machine.lazy_entries == 0 {
                return Ok(());
            }
            let mut batch = WriteBatch::default();
            machine.sessions.save(&mut batch);
            batch.put(keys::meta(META_FORMAT), STATE_FORMAT_VERSION.to_le_bytes().to_vec().into());
            batch.put(keys::meta(META_APPLIED), encode_point(&machine.point));
            machine.engine.write(&batch, Durability::Durable)?;
            machine.sessions.saved();
            machine.durable_index = machine.point.index;
            machine.nothing_lazy();
            Ok(())
        })
    }

    /// Makes everything applied so far durable, and gives it for another server to read, as it is
    /// now, while writes go on here.
    ///
    /// # Errors
    ///
    /// As [`checkpoint`](StateMachine::checkpoint).
    pub fn begin_snapshot(&mut self) -> Result<SnapshotSource, ApplyError> {
        self.checkpoint()?;
        Ok(SnapshotSource::new(self.engine.view()?, self.point))
    }

    /// Goes on from the state of another server, which takes the place of the one here; where it
    /// then stands. Readers see the one state or the other.
    ///
    /// # Errors
    ///
    /// [`ApplyError::OlderSnapshot`] changes nothing. After any other error every later call fails
    /// with [`ApplyError::Poisoned`], and the next start settles which of the two states it is.
    pub fn install(&mut self, staged: StagedSnapshot) -> Result<AppliedPoint, ApplyError> {
        let (found, applied) = (staged.point(), self.point);
        if found.index < applied.index || found.timestamp < applied.timestamp {
            return Err(ApplyError::OlderSnapshot { found: found.index, applied: applied.index });
        }
        self.guarded(|machine| {
            let engine = staged.promote()?;
            let point = stored_point(&*engine)?;
            if point != found {
                return Err(ApplyError::Damaged("the applied index of a snapshot"));
            }
            machine.sessions = Sessions::load(&*engine)?;
            // In the same order as around a batch.
            let shared = &machine.shared;
            shared.applying_timestamp.store(point.timestamp.0, Ordering::SeqCst);
            *shared.engine.write().unwrap_or_else(PoisonError::into_inner) = engine.clone();
            *shared.applied.write().unwrap_or_else(PoisonError::into_inner) = point;
            machine.engine = engine;
            (machine.point, machine.durable_index) = (point, point.index);
            machine.nothing_lazy();
            Ok(point)
        })
    }

    /// Notes that everything applied is durable.
    fn nothing_lazy(&mut self) {
        (self.lazy_entries, self.lazy_bytes) = (0, 0);
        self.lazy_since_us = None;
    }

    /// Runs a step after whose failure the sessions in memory no longer match the engine.
    fn guarded<T>(
        &mut self,
        step: impl FnOnce(&mut StateMachine) -> Result<T, ApplyError>,
    ) -> Result<T, ApplyError> {
        if self.poisoned {
            return Err(ApplyError::Poisoned);
        }
        step(self).inspect_err(|_| self.poisoned = true)
    }
}

/// Where the state that an engine holds durably stands.
pub(super) fn stored_point(engine: &dyn Engine) -> Result<AppliedPoint, ApplyError> {
    let format = read_meta::<4>(engine, META_FORMAT)?.map(u32::from_le_bytes);
    let point = read_meta::<POINT_BYTES>(engine, META_APPLIED)?.map(decode_point);
    if let Some(newer) = format.filter(|format| *format > STATE_FORMAT_VERSION) {
        return Err(ApplyError::NewerFormat(newer));
    }
    Ok(point.unwrap_or_default())
}

/// What a row about the store itself says.
pub(super) enum MetaRow {
    /// Where the state stands.
    Applied(AppliedPoint),
    /// Something else that this release knows.
    Other,
}

/// Reads a row about the store itself; `None` when it is not one that this release writes.
pub(super) fn decode_meta(row: &[u8], value: &[u8]) -> Option<MetaRow> {
    if row == keys::meta(META_APPLIED) {
        return Some(MetaRow::Applied(decode_point(value.try_into().ok()?)));
    }
    let known = row == keys::meta(META_FORMAT) && value == STATE_FORMAT_VERSION.to_le_bytes();
    known.then_some(MetaRow::Other)
}

fn read_meta<const N: usize>(
    engine: &dyn Engine,
    name: &str,
) -> Result<Option<[u8; N]>, ApplyError> {
    let Some(value) = engine.get(&keys::meta(name))? else { return Ok(None) };
    let value = value[..].try_into().map_err(|_| ApplyError::Damaged("the applied index"))?;
    Ok(Some(value))
}

/// `index u64 | timestamp i64 | hash u64`, little-endian.
fn encode_point(point: &AppliedPoint) -> Bytes {
    let mut out = Vec::with_capacity(POINT_BYTES);
    out.put_u64_le(point.index);
    out.put_i64_le(point.timestamp.0);
    out.put_u64_le(point.hash);
    out.into()
}

fn decode_point(bytes: [u8; POINT_BYTES]) -> AppliedPoint {
    let mut fields = &bytes[..];
    AppliedPoint {
        index: fields.get_u64_le(),
        timestamp: Timestamp(fields.get_i64_le()),
        hash: fields.get_u64_le(),
    }
}

#[cfg(test)]
mod tests;
