//! The state machine: committed entries in, outcomes out, the same on every replica.
//!
//! Apply is deterministic. It reads no clock: a version's timestamp is the command's, and things
//! grow old by the log's clock, which stands in the commands. The same log gives the same rows, the
//! same outcomes and the same hash.
//!
//! An [`apply`](StateMachine::apply) is one batch of the engine, or a few if there is much to do. A
//! [`seal`](StateMachine::seal) ends them with one that also holds the applied point, and the
//! sessions as of it: nobody reads these rows before. The engine makes a seal durable behind the
//! back of the state machine. After a crash it stands at its last durable seal, versions and
//! sessions together, and the log from [`durable_index`](StateMachine::durable_index) on is applied
//! again.
//!
//! A snapshot for another server is read from a view as of a seal
//! ([`begin_snapshot`](StateMachine::begin_snapshot)); one from another server replaces the whole
//! engine ([`install`](StateMachine::install)).
//!
//! What it leaves out: deciding when to seal (the driver asks
//! [`needs_seal`](StateMachine::needs_seal)), and the work behind the engine's writes, which
//! another thread does ([`Store::work`]).

mod op_writer;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Buf, BufMut, Bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::op_writer::OpWriter;
use super::changes::Changes;
use super::engine::{Engine, EngineError, EngineView, Steps, WriteBatch};
use super::garbage_collection::{
    self, Budget, ChangesFront, META_COMPACTED, META_COMPACTED_AS_OF, META_COMPACTED_PROGRESS,
    META_HISTORY_PROGRESS, META_REMOVED_UP_TO,
};
use super::hash::StateHash;
use super::keys;
use super::leases;
use super::log_clock::{ClockSamples, LogClock};
use super::newest::NewestVersions;
use super::queue_front::QueueFront;
use super::reads::Store;
use super::recent::RecentChanges;
use super::removals::{self, KnownRemovals, PendingRemovals, RangeRemoval};
use super::row_buffer::RowBuffer;
use super::rows::{Rows, RowsInMemory, ViewRows};
use super::sessions::{DedupVerdict, META_KNOWN_SINCE, Sessions, decode_known_since};
use super::snapshot::{SnapshotSource, StagedSnapshot};
use crate::limits;
use crate::model::{
    Action, AppliedPoint, AppliedWrite, Command, EntryError, FeatureLevel, GarbageCollection,
    GroupRules, History, LeaseEvent, LeaseName, LeaseRecord, LeaseState, LogEntry, LogIndex,
    MachineSummary, OpApplied, OpResult, Operation, ReadView, Release, RequestId, StateLimits,
    Timestamp, TxnLimits, WriteAnswer, WriteFate, WriteOp, WriteOutcome,
};

/// The layout of the rows this build writes and reads. `storage::formats` holds the bytes of each
/// version's rows.
pub const STATE_FORMAT_VERSION: u32 = 15;

const META_FORMAT: &str = "format";
const META_APPLIED: &str = "applied";
const META_CLOCK: &str = "clock";
const META_RULES: &str = "rules";
const META_LEVEL: &str = "level";
const POINT_BYTES: usize = 24;
/// Rows looked at or changed in one batch, after which the next entry begins another: a fraction of
/// a second's work, and some tens of megabytes of changes in memory. Small entries can ask for
/// much, and a follower that lags may have thousands of them at once.
const BATCH_ROWS_MAX: u64 = 64 * 1024;

/// Bytes of memory of the answers to transactions that are applied in one call, after which no
/// further one is told: a small entry may ask for [`limits::TRANSACTION_RESULT_BYTES_MAX`], and
/// thousands are applied at once. Whoever waits for the others asks again.
const TOLD_BYTES_MAX: usize = 8 * limits::TRANSACTION_RESULT_BYTES_MAX;

/// Why the state machine stopped. All of these are final for the process.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The engine could not read or write its file, or found it damaged.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An entry is neither a no-op nor a command this release knows.
    #[error("log entry {index} cannot be applied: {source}; run a release that knows it")]
    Undecodable { index: LogIndex, source: EntryError },
    /// The group has been brought to a feature level that this release does not know.
    #[error("{}", level.unknown_to(*known))]
    UnknownLevel {
        /// The level that the group has reached.
        level: FeatureLevel,
        /// The newest level that this release knows.
        known: FeatureLevel,
    },
    /// An entry is not the next one.
    #[error("log entry {found} was to be applied where entry {expected} should follow")]
    OutOfOrder { expected: LogIndex, found: LogIndex },
    /// A command's timestamp is not past the one before: versions would change their order.
    #[error(
        "log entry {index} has timestamp {found}, not past {last} before it: no leader has made \
         it; move the data directory away and start on an empty one, so that the group can bring \
         this server up to date"
    )]
    TimestampOrder {
        index: LogIndex,
        found: Timestamp,
        /// The timestamp it should be past.
        last: Timestamp,
    },
    /// A row cannot be read.
    #[error("the store is damaged: {0} cannot be read")]
    Damaged(&'static str),
    /// Another release wrote the rows.
    #[error(
        "the store has format {0}, and this release reads {STATE_FORMAT_VERSION}: run the release \
         that wrote it"
    )]
    OtherFormat(u32),
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

impl ApplyError {
    /// Whether the store is not what was written, so that it has to be rebuilt.
    pub fn is_damage(&self) -> bool {
        matches!(self, ApplyError::Damaged(_) | ApplyError::Engine(EngineError::Damaged { .. }))
    }
}

/// What readers on other threads and the apply thread share.
pub(super) struct Shared {
    opened: RwLock<OpenedEngine>,
    applied: RwLock<AppliedPoint>,
    applying_timestamp: AtomicI64,
    /// The earliest version as of which reads go on. Set before a batch becomes visible that
    /// compacts, so that whoever asks when it has taken a view refuses all that is compacted
    /// there.
    compacted: AtomicI64,
    /// Of what is being applied.
    steps: Steps,
    limits: RwLock<StateLimits>,
    /// When timestamps were given out, by the log's clock.
    samples: RwLock<Arc<ClockSamples>>,
    /// The removals in what a reader sees: changing while a batch that changes them is written.
    removals: RwLock<Arc<KnownRemovals>>,
    pub(super) newest: NewestVersions,
    pub(super) recent: RecentChanges,
}

/// The engine in use, which the installation of a snapshot replaces.
#[derive(Clone)]
struct OpenedEngine {
    engine: Arc<dyn Engine>,
    /// The applied index that it was opened with.
    index: LogIndex,
}

impl Shared {
    fn set_removals(&self, removals: KnownRemovals) {
        *self.removals.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(removals);
    }

    /// A view, and the removals in it.
    pub(super) fn view(&self) -> Result<(Box<dyn EngineView>, PendingRemovals), EngineError> {
        let (view, removals) = self.view_and_known()?;
        let pending = removals.of(&ViewRows(&*view))?;
        Ok((view, pending))
    }

    /// The same if memory alone tells it, and [`EngineError::NotInMemory`] otherwise.
    pub(super) fn view_in_memory(
        &self,
    ) -> Result<(Box<dyn EngineView>, PendingRemovals), EngineError> {
        let (view, removals) = self.view_and_known()?;
        let pending = removals.of(&RowsInMemory(&*view))?;
        Ok((view, pending))
    }

    fn view_and_known(&self) -> Result<(Box<dyn EngineView>, Arc<KnownRemovals>), EngineError> {
        // The view is taken before the lock is given back, and so while these removals are known.
        // The state machine waits for that, and holds no lock of the engine meanwhile.
        let removals = self.removals.read().unwrap_or_else(PoisonError::into_inner);
        Ok((self.engine().view()?, removals.clone()))
    }

    pub(super) fn limits(&self) -> StateLimits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_limits(&self, limits: StateLimits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    fn opened(&self) -> OpenedEngine {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn engine(&self) -> Arc<dyn Engine> {
        self.opened().engine
    }

    pub(super) fn durable_index(&self) -> LogIndex {
        let OpenedEngine { engine, index } = self.opened();
        engine.durable().unwrap_or(index)
    }

    /// Whether a read view looks further back than what was removed stays.
    pub(super) fn looks_far_back(&self, read_view: ReadView) -> bool {
        let ReadView { at, removals_up_to } = read_view;
        let samples = self.samples.read().unwrap_or_else(PoisonError::into_inner).clone();
        samples.are_apart(at, removals_up_to, self.limits().removal_grace_us)
    }

    fn set_samples(&self, clock: &LogClock) {
        let samples = Arc::new(clock.samples().clone());
        *self.samples.write().unwrap_or_else(PoisonError::into_inner) = samples;
    }

    pub(super) fn applied(&self) -> AppliedPoint {
        *self.applied.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn applying_timestamp(&self) -> Timestamp {
        Timestamp(self.applying_timestamp.load(Ordering::SeqCst))
    }

    /// The earliest version as of which reads go on, to be asked after a view was taken.
    pub(super) fn compacted(&self) -> Timestamp {
        Timestamp(self.compacted.load(Ordering::SeqCst))
    }

    fn set_compacted(&self, compacted: Timestamp) {
        self.compacted.store(compacted.0, Ordering::SeqCst);
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.count()
    }
}

/// What applying entries comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// One for each write of a client, in log order.
    pub writes: Vec<AppliedWrite>,
    /// What is left to do in the background.
    pub summary: MachineSummary,
    /// What has changed about leases.
    pub leases: Vec<LeaseEvent>,
}

/// The state machine: one owner, one thread.
pub struct StateMachine {
    shared: Arc<Shared>,
    /// The same one that is shared.
    engine: Arc<dyn Engine>,
    sessions: Sessions,
    point: AppliedPoint,
    clock: LogClock,
    /// The newest feature level that this release knows.
    known_level: FeatureLevel,
    level: FeatureLevel,
    /// What the group goes by; `None` before anything was written.
    rules: Option<GroupRules>,
    /// What was applied since the last seal.
    unsealed_entries: u64,
    unsealed_bytes: u64,
    /// When the driver was first seen with something applied since the last seal.
    unsealed_since_us: Option<u64>,
    left: Left,
    /// The earliest version as of which reads go on.
    compacted: Timestamp,
    buffer: RowBuffer,
    /// Bytes of memory of the answers to transactions of one call.
    told_bytes: usize,
    /// The number of leases.
    leases: usize,
    /// What has changed about leases and was not reported yet.
    lease_events: Vec<LeaseEvent>,
    /// The engine that a snapshot has replaced, and where that one was staged.
    retired: Option<(Arc<dyn Engine>, StagedSnapshot)>,
    poisoned: bool,
}

impl StateMachine {
    /// Opens the state that the engine's last durable seal left. The limits of `release` count
    /// where the group has settled on none.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`], [`ApplyError::Damaged`], [`ApplyError::OtherFormat`],
    /// [`ApplyError::UnknownLevel`].
    pub fn open(
        engine: Arc<dyn Engine>,
        release: impl Into<Release>,
    ) -> Result<StateMachine, ApplyError> {
        let Release { level: known_level, limits } = release.into();
        check_format(&*engine)?;
        let level = stored_level(&*engine, known_level)?;
        let point = stored_point(&*engine)?;
        let rules = stored_rules(&*engine)?;
        let limits = rules.map_or(limits, |rules| rules.limits);
        let sessions = Sessions::load(&*engine, limits)?;
        let clock = stored_clock(&*engine, point.timestamp, limits)?;
        let left = Left::stored(&*engine, point)?;
        let compacted = stored_compacted(&*engine)?;
        let leases = stored_leases(&*engine)?.len();
        let shared = Shared {
            opened: RwLock::new(OpenedEngine { engine: engine.clone(), index: point.index }),
            applied: RwLock::new(point),
            applying_timestamp: AtomicI64::new(point.timestamp.0),
            compacted: AtomicI64::new(compacted.0),
            steps: Steps::default(),
            limits: RwLock::new(limits),
            samples: RwLock::new(Arc::new(clock.samples().clone())),
            removals: RwLock::new(Arc::new(KnownRemovals::Settled(left.pending.clone()))),
            newest: NewestVersions::default(),
            recent: RecentChanges::default(),
        };
        Ok(StateMachine {
            shared: Arc::new(shared),
            engine,
            sessions,
            point,
            clock,
            known_level,
            level,
            rules,
            unsealed_entries: 0,
            unsealed_bytes: 0,
            unsealed_since_us: None,
            left,
            compacted,
            buffer: RowBuffer::default(),
            told_bytes: 0,
            leases,
            lease_events: Vec::new(),
            retired: None,
            poisoned: false,
        })
    }

    /// A handle for readers.
    pub fn store(&self) -> Store {
        Store::new(self.shared.clone())
    }

    /// Replaces the most bytes of newest versions that are kept in memory for readers. None are
    /// kept now.
    #[cfg(any(test, feature = "internals"))]
    pub fn set_newest_bytes_max(&mut self, bytes_max: usize) {
        self.shared.newest.set_bytes_max(bytes_max);
    }

    /// Replaces the most bytes of recent changes that are kept in memory for who follows them.
    #[cfg(any(test, feature = "internals"))]
    pub fn set_recent_bytes_max(&mut self, bytes_max: usize) {
        self.shared.recent.set_bytes_max(bytes_max);
    }

    /// Where the state machine stands.
    pub fn applied(&self) -> AppliedPoint {
        self.point
    }

    /// The applied index of the last durable seal: the log is to be kept from here on.
    pub fn durable_index(&self) -> LogIndex {
        self.shared.durable_index()
    }

    /// The newest feature level that this release knows.
    pub fn known_level(&self) -> FeatureLevel {
        self.known_level
    }

    /// What is left to do in the background.
    pub fn summary(&self) -> MachineSummary {
        MachineSummary {
            clock_us: self.clock.now_us(),
            oldest_removal_us: self.left.oldest_removal.map(|oldest| self.clock.when(oldest)),
            history_due_us: self.left.history_due.map(|due| self.clock.when(due)),
            compacted_due_us: self.left.compacted_due.map(|due| self.clock.when(due)),
            level: self.level.level,
            rules: self.rules,
        }
    }

    /// Applies entries, in order, in atomic batches of one or more entries.
    ///
    /// # Errors
    ///
    /// Any; then nothing of the batch that failed is visible, and every later call fails with
    /// [`ApplyError::Poisoned`].
    pub fn apply(&mut self, entries: &[LogEntry]) -> Result<Applied, ApplyError> {
        self.guarded(|machine| machine.apply_all(entries, false))
    }

    /// The same where somebody waits for answers: what keys had before is looked up for the writes
    /// that ask for it.
    ///
    /// # Errors
    ///
    /// As [`apply`](StateMachine::apply).
    pub fn apply_answering(&mut self, entries: &[LogEntry]) -> Result<Applied, ApplyError> {
        self.guarded(|machine| machine.apply_all(entries, true))
    }

    fn apply_all(
        &mut self,
        mut entries: &[LogEntry],
        answering: bool,
    ) -> Result<Applied, ApplyError> {
        let mut applied = Applied::default();
        self.told_bytes = 0;
        while !entries.is_empty() {
            let count = self.apply_batch(entries, answering, &mut applied.writes)?;
            entries = &entries[count..];
        }
        applied.summary = self.summary();
        applied.leases = std::mem::take(&mut self.lease_events);
        Ok(applied)
    }

    /// Every lease that has not ended, for the core, which counts their time.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`], [`ApplyError::Damaged`].
    pub fn leases(&self) -> Result<Vec<LeaseState>, ApplyError> {
        stored_leases(&*self.engine)
    }

    /// Applies the first entries, at least one, and returns how many.
    fn apply_batch(
        &mut self,
        entries: &[LogEntry],
        answering: bool,
        writes: &mut Vec<AppliedWrite>,
    ) -> Result<usize, ApplyError> {
        let view = self.engine.view()?;
        let mut point = self.point;
        let mut clock = self.clock.clone();
        let mut is_marked = false;
        let ranges = self.left.pending.ranges.clone();
        let steps = self.shared.steps.clone();
        let steps_before = steps.count();
        let front = self.left.fronts.queue;
        let hash = StateHash(point.hash);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut changes = Changes::new(&*view, hash, ranges, front, &mut buffer, steps.clone());
        let mut left_touched = false;
        let mut count = 0;
        for entry in entries {
            if count > 0 && steps.count() - steps_before >= BATCH_ROWS_MAX {
                break;
            }
            count += 1;
            let expected = point.index + 1;
            if entry.index != expected {
                return Err(ApplyError::OutOfOrder { expected, found: entry.index });
            }
            let command = Command::decode(&entry.data)
                .map_err(|source| ApplyError::Undecodable { index: entry.index, source })?;
            point.index = entry.index;
            self.unsealed_entries += 1;
            self.unsealed_bytes += entry.data.len() as u64;
            let Some(Command { timestamp, clock_us, action }) = command else { continue };
            if timestamp <= point.timestamp {
                return Err(ApplyError::TimestampOrder {
                    index: entry.index,
                    found: timestamp,
                    last: point.timestamp,
                });
            }
            point.timestamp = timestamp;
            let now_us = clock.now_us().max(clock_us);
            match action {
                Action::Write { request, op } => {
                    let at = (timestamp, now_us);
                    let (fate, removes) =
                        self.apply_write(&request, &op, at, answering, &mut changes)?;
                    left_touched |= removes;
                    let newest_sequence = self.sessions.newest_sequence(request.client);
                    let (index, term) = (entry.index, entry.term);
                    writes.push(AppliedWrite { index, term, fate, newest_sequence });
                }
                Action::GarbageCollection(GarbageCollection::Removed {
                    before_us,
                    rows_max,
                    bytes_max,
                }) => {
                    left_touched = true;
                    let before = clock.reached(before_us);
                    garbage_collection::delete_removed(
                        &mut changes,
                        before,
                        Budget::new(rows_max, bytes_max),
                    )?;
                }
                // Proposed before the history was changed: it would remove what is to be kept now.
                Action::GarbageCollection(GarbageCollection::History { history, .. })
                    if self.history() != history => {}
                Action::GarbageCollection(GarbageCollection::History {
                    history,
                    as_of_us,
                    rows_max,
                    bytes_max,
                }) => {
                    left_touched = true;
                    let as_of = clock.reached(as_of_us);
                    let budget = Budget::new(rows_max, bytes_max);
                    garbage_collection::compact_history(&mut changes, history, as_of, budget)?;
                }
                Action::GarbageCollection(GarbageCollection::Compacted {
                    as_of_us,
                    rows_max,
                    bytes_max,
                }) => {
                    left_touched = true;
                    let as_of = clock.reached(as_of_us);
                    let budget = Budget::new(rows_max, bytes_max);
                    garbage_collection::remove_compacted(&mut changes, as_of, budget)?;
                }
                Action::Rules(rules) => {
                    if self.rules.is_none() {
                        left_touched = true;
                        garbage_collection::change_history(
                            &mut changes,
                            self.history(),
                            rules.history,
                        )?;
                        changes.put(keys::meta(META_RULES), encode_fact(&rules));
                        self.rules = Some(rules);
                        self.sessions.set_limits(rules.limits);
                        clock.set_grace(rules.limits.removal_grace_us);
                        self.shared.set_limits(rules.limits);
                    }
                }
                Action::Level(level) if level.level > self.known_level.level => {
                    return Err(ApplyError::UnknownLevel { level, known: self.known_level });
                }
                Action::Level(level) => {
                    if self.level.level < level.level {
                        if self.level != FeatureLevel::FIRST {
                            changes.delete(keys::meta(META_LEVEL), &encode_fact(&self.level));
                        }
                        changes.put(keys::meta(META_LEVEL), encode_fact(&level));
                        self.level = level;
                    }
                }
                Action::Leases(record) => {
                    left_touched |= self.apply_lease_record(record, timestamp, &mut changes)?;
                }
            }
            is_marked |= clock.advance(clock_us, timestamp);
        }
        let before = self.left.pending.clone();
        if left_touched {
            let ranges = changes.ranges();
            let fronts = Fronts { queue: changes.front, ..self.left.fronts };
            self.left = Left::read(&changes.rows(), ranges, fronts, point.timestamp)?;
        }
        let (batch, hash) = changes.into_batch();
        point.hash = hash.0;
        drop(view);
        self.buffer = buffer;
        let after = self.left.pending.clone();
        let is_same = before == after;
        let removes_range = after.has_later_range_than(&before);
        if !is_same {
            self.shared.set_removals(KnownRemovals::changing(before, after.clone()));
        }
        if is_marked {
            self.shared.set_samples(&clock);
        }
        self.shared.applying_timestamp.store(point.timestamp.0, Ordering::SeqCst);
        self.shared.set_compacted(self.compacted);
        // What is removed with a range may be anything that is known.
        let newest = self.shared.newest.begin(&batch, removes_range);
        self.engine.write(&batch)?;
        self.shared.newest.finish(newest);
        let before = std::mem::replace(&mut self.point, point);
        self.clock = clock;
        *self.shared.applied.write().unwrap_or_else(PoisonError::into_inner) = point;
        let times = (before.timestamp, point.timestamp);
        self.shared.recent.add(times, &batch, &after.ranges);
        if !is_same {
            self.shared.set_removals(KnownRemovals::Settled(after));
        }
        Ok(count)
    }

    /// What becomes of a client's write. `answering`: whoever waits for it may be told what was
    /// before.
    fn apply_write(
        &mut self,
        request: &RequestId,
        op: &WriteOp,
        (timestamp, now_us): (Timestamp, u64),
        answering: bool,
        changes: &mut Changes<'_>,
    ) -> Result<(WriteFate, bool), ApplyError> {
        let mut removes = false;
        let outcome = match self.sessions.admit(request, timestamp, now_us, &mut changes.hash) {
            DedupVerdict::UnknownSession => return Ok((WriteFate::UnknownSession, false)),
            DedupVerdict::Forgotten => return Ok((WriteFate::Forgotten, false)),
            DedupVerdict::Repeated(outcome) => outcome,
            DedupVerdict::New => {
                let mut writer = OpWriter::new(self, changes, timestamp);
                let applied = op.apply(&mut writer)?;
                removes = writer.removes();
                match applied {
                    // There is nothing to remember: the client asks again under the same identity.
                    OpApplied::Refused => return Ok((WriteFate::Refused, removes)),
                    OpApplied::Result(result) => {
                        let outcome = WriteOutcome { timestamp, result };
                        self.sessions.record(request, outcome, &mut changes.hash);
                        outcome
                    }
                }
            }
        };
        let told = op.tells_before(outcome.result).filter(|_| answering);
        let previous = match told {
            Some(key) => op_writer::previous(changes, key, outcome.timestamp)?,
            None => None,
        };
        let txn = match (op, outcome.result) {
            (WriteOp::Txn(txn), OpResult::Txn { branches }) if answering => {
                let limits = TxnLimits::of(&self.shared.limits());
                let written = outcome.timestamp;
                match self.told_bytes < TOLD_BYTES_MAX {
                    // All of it, whatever others tell: a retry is told the same.
                    true => {
                        let answer =
                            op_writer::txn_answer(changes, txn, branches, written, limits)?;
                        self.told_bytes += answer.memory_bytes();
                        Some(Box::new(answer))
                    }
                    // Whoever waits asks again.
                    false => None,
                }
            }
            _ => None,
        };
        let answer = WriteAnswer { previous, txn, ..WriteAnswer::of(outcome) };
        Ok((WriteFate::Answered(answer), removes))
    }

    /// Ends leases and notes what others have left. Returns whether a lease has ended.
    fn apply_lease_record(
        &mut self,
        record: LeaseRecord,
        timestamp: Timestamp,
        changes: &mut Changes<'_>,
    ) -> Result<bool, ApplyError> {
        let most = self.shared.limits().lease_keys_max;
        let (mut ended, mut keys) = (false, 0);
        for name in record.ends {
            let found = leases::find(changes, name.id)?;
            let Some(lease) = found.filter(|lease| lease.state.name == name) else { continue };
            // The leader sees that this one has not ended, and orders its end anew.
            if keys > 0 && keys + lease.keys > most {
                continue;
            }
            keys += lease.keys;
            leases::end(changes, timestamp, &lease)?;
            self.lease_ended(name);
            ended = true;
        }
        for (name, rest_ms) in record.rests {
            let noted = leases::note_rest(changes, name, rest_ms)?;
            self.lease_events.extend(noted.map(LeaseEvent::Is));
        }
        Ok(ended)
    }

    fn lease_ended(&mut self, name: LeaseName) {
        assert!(self.leases > 0, "{name} ends, and there is no lease");
        self.leases -= 1;
        self.lease_events.push(LeaseEvent::Ended(name));
    }

    /// What is kept of what newer versions have replaced.
    fn history(&self) -> History {
        self.rules.map_or(History::All, |rules| rules.history)
    }

    /// Whether a [`seal`](StateMachine::seal) is due, by what was applied since the last one, by
    /// the time, or because the engine's memory for it is full. The interval begins with the first
    /// call that finds something to save. `now_us` is monotonic, in microseconds; `bytes_max` is
    /// normally [`limits::SEAL_BYTES`].
    pub fn needs_seal(&mut self, now_us: u64, bytes_max: u64) -> bool {
        if self.unsealed_entries == 0 {
            return false;
        }
        let since_us = *self.unsealed_since_us.get_or_insert(now_us);
        self.unsealed_entries >= limits::SEAL_ENTRIES
            || self.unsealed_bytes >= bytes_max
            || now_us.saturating_sub(since_us) >= limits::SEAL_INTERVAL.as_micros() as u64
            || self.engine.is_full()
    }

    /// Ends what was applied since the last seal, sessions included: the engine makes it durable.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`]; then every later call fails with [`ApplyError::Poisoned`].
    pub fn seal(&mut self) -> Result<(), ApplyError> {
        self.guarded(|machine| {
            if machine.unsealed_entries == 0 {
                return Ok(());
            }
            let mut batch = WriteBatch::counted(machine.shared.steps.clone());
            machine.sessions.save(&mut batch);
            batch.put(keys::meta(META_FORMAT), STATE_FORMAT_VERSION.to_le_bytes().to_vec().into());
            batch.put(keys::meta(META_APPLIED), encode_point(&machine.point));
            batch.put(keys::meta(META_CLOCK), machine.clock.encode());
            machine.engine.seal(&batch, machine.point.index)?;
            machine.sessions.saved();
            machine.nothing_unsealed();
            Ok(())
        })
    }

    /// Returns when everything applied so far is durable, sessions included.
    ///
    /// # Errors
    ///
    /// As [`seal`](StateMachine::seal).
    pub fn checkpoint(&mut self) -> Result<(), ApplyError> {
        self.seal()?;
        self.guarded(|machine| Ok(machine.engine.flush()?))
    }

    /// Gives everything applied so far for another server to read, as it is now, while writes go on
    /// here.
    ///
    /// # Errors
    ///
    /// As [`seal`](StateMachine::seal).
    pub fn begin_snapshot(&mut self) -> Result<SnapshotSource, ApplyError> {
        self.seal()?;
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
        self.forget_retired();
        self.guarded(|machine| {
            let engine = staged.promote()?;
            check_format(&*engine)?;
            machine.level = stored_level(&*engine, machine.known_level)?;
            let point = stored_point(&*engine)?;
            if point != found {
                return Err(ApplyError::Damaged("the applied index of a snapshot"));
            }
            machine.rules = stored_rules(&*engine)?;
            let own = machine.shared.limits();
            let limits = machine.rules.map_or(own, |rules| rules.limits);
            machine.shared.set_limits(limits);
            machine.sessions = Sessions::load(&*engine, limits)?;
            machine.clock = stored_clock(&*engine, point.timestamp, limits)?;
            let left = Left::stored(&*engine, point)?;
            machine.compacted = stored_compacted(&*engine)?;
            machine.leases = stored_leases(&*engine)?.len();
            let (before, after) = (machine.left.pending.clone(), left.pending.clone());
            machine.shared.set_removals(KnownRemovals::changing(before, after.clone()));
            // In the same order as around a batch.
            let shared = &machine.shared;
            let newest = shared.newest.begin(&WriteBatch::default(), true);
            shared.set_samples(&machine.clock);
            shared.applying_timestamp.store(point.timestamp.0, Ordering::SeqCst);
            shared.set_compacted(machine.compacted);
            let opened = OpenedEngine { engine: engine.clone(), index: point.index };
            *shared.opened.write().unwrap_or_else(PoisonError::into_inner) = opened;
            *shared.applied.write().unwrap_or_else(PoisonError::into_inner) = point;
            shared.set_removals(KnownRemovals::Settled(after));
            shared.newest.finish(newest);
            shared.recent.replaced(point.timestamp);
            machine.left = left;
            let old = std::mem::replace(&mut machine.engine, engine);
            old.retire();
            machine.retired = Some((old, staged));
            machine.point = point;
            machine.nothing_unsealed();
            Ok(point)
        })
    }

    /// Lets go of an engine that a snapshot has replaced. Called a moment later, so that no reader
    /// that must not wait is the last one to let go of it, which removes its files.
    pub fn forget_retired(&mut self) {
        if let Some((engine, staged)) = self.retired.take() {
            drop(engine);
            staged.tidy();
        }
    }

    /// Notes that everything applied is in a seal.
    fn nothing_unsealed(&mut self) {
        (self.unsealed_entries, self.unsealed_bytes) = (0, 0);
        self.unsealed_since_us = None;
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

/// What is left to do in the background.
struct Left {
    /// Removals that are not off the disk yet.
    pending: PendingRemovals,
    /// The time of the oldest of them.
    oldest_removal: Option<Timestamp>,
    /// The earliest time as of which compaction of the history has something to do.
    history_due: Option<Timestamp>,
    /// The same of what was compacted.
    compacted_due: Option<Timestamp>,
    fronts: Fronts,
}

/// Where the rows begin of what is left to do.
#[derive(Clone, Copy)]
struct Fronts {
    queue: QueueFront,
    history: ChangesFront,
    compacted: ChangesFront,
}

impl Left {
    /// Of a state with these removals of ranges, of which no row is later than `now`.
    fn read(
        rows: &dyn Rows,
        ranges: &Arc<Vec<RangeRemoval>>,
        mut fronts: Fronts,
        now: Timestamp,
    ) -> Result<Left, ApplyError> {
        let queued = removals::oldest_queued(rows, &fronts.queue)?;
        fronts.queue.set_oldest(queued, now);
        Ok(Left {
            pending: PendingRemovals { keys: queued.is_some(), ranges: ranges.clone() },
            oldest_removal: queued.into_iter().chain(ranges.first().map(|range| range.at)).min(),
            history_due: garbage_collection::history_due(rows, &mut fronts.history, now)?,
            compacted_due: garbage_collection::compacted_due(rows, &mut fronts.compacted, now)?,
            fronts,
        })
    }

    /// Of the state at `point` that an engine holds durably.
    fn stored(engine: &dyn Engine, point: AppliedPoint) -> Result<Left, ApplyError> {
        let view = engine.view()?;
        let rows = ViewRows(&*view);
        let ranges = removals::read_ranges(&rows, point.timestamp)?;
        let (history, compacted) = (ChangesFront::UNKNOWN, ChangesFront::UNKNOWN);
        let fronts = Fronts { queue: QueueFront::UNKNOWN, history, compacted };
        Left::read(&rows, &Arc::new(ranges), fronts, point.timestamp)
    }
}

/// Refuses the rows of another release. Asked before anything else: what else is in rows of another
/// format is not known, and what cannot be read there is not damage.
fn check_format(engine: &dyn Engine) -> Result<(), ApplyError> {
    match read_meta(engine, META_FORMAT, "the format of the store")?.map(u32::from_le_bytes) {
        Some(other) if other != STATE_FORMAT_VERSION => Err(ApplyError::OtherFormat(other)),
        _ => Ok(()),
    }
}

/// Where the state that an engine holds durably stands.
pub(super) fn stored_point(engine: &dyn Engine) -> Result<AppliedPoint, ApplyError> {
    check_format(engine)?;
    let point = read_meta(engine, META_APPLIED, "the applied index")?;
    Ok(point.map(decode_point).unwrap_or_default())
}

/// What a row about the store itself says.
pub(super) enum MetaRow {
    /// The format of all rows, without which nobody may read them.
    Format,
    /// Where the state stands.
    Applied(AppliedPoint),
    /// The group's feature level, which the state's hash covers, too.
    Level(FeatureLevel),
    /// The group's rules, which the state's hash covers, too.
    Rules,
    /// The progress of compaction, or what was compacted, which the state's hash covers, too.
    Compaction,
    /// Since when every client that writes has a session, which the state's hash covers, too.
    KnownSince(Timestamp),
    /// Something else that this release knows.
    Other,
}

/// Reads a row about the store itself; `None` when it is not one that this release writes.
pub(super) fn decode_meta(row: &[u8], value: &[u8]) -> Option<MetaRow> {
    if row == keys::meta(META_APPLIED) {
        return Some(MetaRow::Applied(decode_point(value.try_into().ok()?)));
    }
    if row == keys::meta(META_LEVEL) {
        return decode_fact(value).map(MetaRow::Level);
    }
    if row == keys::meta(META_RULES) {
        return decode_fact::<GroupRules>(value).map(|_| MetaRow::Rules);
    }
    if [META_HISTORY_PROGRESS, META_COMPACTED_PROGRESS].iter().any(|name| row == keys::meta(name)) {
        return garbage_collection::CompactionProgress::decode(value).map(|_| MetaRow::Compaction);
    }
    if row == keys::meta(META_COMPACTED) {
        return garbage_collection::decode_time(value).map(|_| MetaRow::Compaction);
    }
    if row == keys::meta(META_KNOWN_SINCE) {
        return decode_known_since(value).map(MetaRow::KnownSince);
    }
    if row == keys::meta(META_FORMAT) {
        return (value == STATE_FORMAT_VERSION.to_le_bytes()).then_some(MetaRow::Format);
    }
    let clock = LogClock::decode(value, Timestamp::ZERO, 0);
    let known = row == keys::meta(META_CLOCK) && clock.is_some();
    let is_time = row == keys::meta(META_REMOVED_UP_TO) || row == keys::meta(META_COMPACTED_AS_OF);
    let known = known || (is_time && garbage_collection::decode_time(value).is_some());
    known.then_some(MetaRow::Other)
}

/// The group's rules, its level or the progress of compaction, as MessagePack.
pub(super) fn encode_fact(fact: &impl Serialize) -> Bytes {
    // Numbers and a key: there is nothing that could fail.
    rmp_serde::to_vec(fact).expect("encoding numbers and a key into memory").into()
}

pub(super) fn decode_fact<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    rmp_serde::from_slice(value).ok()
}

fn stored_rules(engine: &dyn Engine) -> Result<Option<GroupRules>, ApplyError> {
    let Some(stored) = engine.get(&keys::meta(META_RULES))? else { return Ok(None) };
    let rules = decode_fact(&stored).ok_or(ApplyError::Damaged("what the group goes by"))?;
    Ok(Some(rules))
}

fn stored_compacted(engine: &dyn Engine) -> Result<Timestamp, ApplyError> {
    let view = engine.view()?;
    garbage_collection::compacted(&ViewRows(&*view))
}

fn stored_leases(engine: &dyn Engine) -> Result<Vec<LeaseState>, ApplyError> {
    let view = engine.view()?;
    leases::read_all(&ViewRows(&*view))
}

/// The group's feature level, if it is one of those up to `known`. Asked right after the format: of
/// a level that is not known nothing else need be readable.
fn stored_level(engine: &dyn Engine, known: FeatureLevel) -> Result<FeatureLevel, ApplyError> {
    let Some(stored) = engine.get(&keys::meta(META_LEVEL))? else {
        return Ok(FeatureLevel::FIRST);
    };
    let level: FeatureLevel =
        decode_fact(&stored).ok_or(ApplyError::Damaged("the group's feature level"))?;
    if level.level > known.level {
        return Err(ApplyError::UnknownLevel { level, known });
    }
    Ok(level)
}

/// The log's clock as of the last seal.
fn stored_clock(
    engine: &dyn Engine,
    timestamp: Timestamp,
    limits: StateLimits,
) -> Result<LogClock, ApplyError> {
    let grace_us = limits.removal_grace_us;
    let Some(stored) = engine.get(&keys::meta(META_CLOCK))? else {
        return Ok(LogClock::new(grace_us));
    };
    LogClock::decode(&stored, timestamp, grace_us).ok_or(ApplyError::Damaged("the log's clock"))
}

/// Reads a fact of `N` bytes; `what` is it called where it has another length.
fn read_meta<const N: usize>(
    engine: &dyn Engine,
    name: &str,
    what: &'static str,
) -> Result<Option<[u8; N]>, ApplyError> {
    let Some(value) = engine.get(&keys::meta(name))? else { return Ok(None) };
    let value = value[..].try_into().map_err(|_| ApplyError::Damaged(what))?;
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
