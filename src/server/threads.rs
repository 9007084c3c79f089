//! The two threads that write: the log writer and the applier.
//!
//! Both take work in order from a bounded queue and report on a channel, with a wake of the event
//! loop. A disk may hang for as long as it likes: the loop never waits for it. Consensus limits the
//! bytes that are under way and not their pieces, of which there is one for each small write; so
//! what waits is joined to longer pieces, of which there are few ([`WRITER_QUEUE_MAX`] is
//! never met).
//!
//! A failure of either ends the process: what a failed sync left on the disk is unknown, and so is
//! a state machine that could not apply. A damaged store ends only the applier: the server hands
//! over and starts again without its store.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::get::StoreFault;
use super::intake::Intake;
use super::snapshots::{SnapshotReport, SnapshotWork};
use crate::limits::{self, ShrinkLimits};
use crate::model::{DiskSpace, HardState, LogBatch, LogEntry, LogIndex, SnapshotId};
use crate::net::WakeHandle;
use crate::node::{Input, compares_states};
use crate::storage::apply::{Applied, ApplyError, StateMachine};
use crate::storage::log::compaction::{self, NeededByOthers, RetentionReasons};
use crate::storage::log::{DiskLog, LogError};
use crate::storage::reserve::DiskReserve;
use crate::storage::snapshot::DiskStaging;
use crate::workers::queue::{self, Receiver, RecvError};

/// Pieces of work waiting for the log writer or the applier. Consensus limits the bytes that are
/// under way, and what waits is joined to long pieces: a hundredth of this is enough for them, and
/// the rest for work on snapshots.
const WRITER_QUEUE_MAX: usize = 64 * 1024;
/// How long committed entries that nobody waits for gather before they are applied together: the
/// engine's commit costs as much for one as for many.
const APPLY_GATHER: Duration = Duration::from_millis(1);
/// Bytes of entries after which the engine makes a durable commit while there is little room on the
/// disk, so that the log before it can be deleted.
const CHECKPOINT_BYTES_LOW: u64 = 4 * 1024 * 1024;
/// Pause after each step of the copy that shrinks the store, in which whatever has come meanwhile
/// is applied.
const SHRINK_STEP_PAUSE: Duration = Duration::from_millis(5);

/// A report of one of the threads that touch the disk, to the event loop.
pub(super) enum Report {
    /// Work is done, of which the core is to know.
    Done(Input),
    /// The store is durable up to this index, so that the log need not reach further back.
    Checkpointed(LogIndex),
    /// Progress of a snapshot at the applier.
    Snapshot(SnapshotReport),
    /// The log before this index has been deleted.
    Compacted { first_index: LogIndex },
    /// The log has begun anew, which has this number among the log's batches.
    LogBegunAnew { number: u64 },
    /// The store is damaged, as this sentence says. Nothing is applied any more.
    StoreDamaged(String),
    /// The log is damaged, as this sentence says.
    LogDamaged(String),
    /// The last verdict about this server's data is durable, or cannot be made so, as this sentence
    /// says.
    VerdictSetDown(Result<(), String>),
    /// The room on the disk has changed to this.
    DiskSpace(DiskSpace),
    /// The process has to end, as this sentence says.
    Failed(String),
}

impl From<StoreFault> for Report {
    fn from(fault: StoreFault) -> Report {
        match fault {
            StoreFault::Damage(found) => Report::StoreDamaged(found),
            StoreFault::Failure(failure) => Report::Failed(failure),
        }
    }
}

/// Work that may be done together with what was handed over before it.
pub(super) trait Join: Sized {
    /// Adds the next piece of work, or gives it back where the two cannot be done as one. When so
    /// much waits that the queue is `crowded`, only what must stay apart is given back.
    fn join(&mut self, next: Self, crowded: bool) -> Option<Self>;
}

/// Work for the log writer.
pub(super) enum LogWork {
    /// Make a batch durable, whose entries have this many bytes.
    Append(LogBatch, usize),
    /// Begin the log anew after a snapshot.
    BeginAnew { number: u64, snapshot: SnapshotId, hard_state: HardState },
    /// Delete the log before what the store holds durably and no server needs.
    Compact { durable_index: LogIndex, needed: NeededByOthers },
}

impl LogWork {
    pub fn append(batch: LogBatch) -> LogWork {
        let bytes = entries_bytes(&batch.entries);
        LogWork::Append(batch, bytes)
    }
}

impl Join for LogWork {
    /// Batches are joined as far as their entries follow one another, to no more than a group that
    /// is made durable at once.
    fn join(&mut self, next: LogWork, _crowded: bool) -> Option<LogWork> {
        match (self, next) {
            (LogWork::Append(batch, bytes), LogWork::Append(more, more_bytes)) => {
                let (last, first) = (batch.entries.last(), more.entries.first());
                let follows = match (last, first) {
                    (Some(last), Some(first)) => first.index == last.index + 1,
                    _ => true,
                };
                if !follows || *bytes + more_bytes > limits::LOG_GROUP_BYTES_MAX {
                    return Some(LogWork::Append(more, more_bytes));
                }
                let LogBatch { number, hard_state, entries } = more;
                batch.number = number;
                batch.hard_state = hard_state.or(batch.hard_state);
                batch.entries.extend(entries);
                *bytes += more_bytes;
                None
            }
            (_, next) => Some(next),
        }
    }
}

/// Work for the applier.
pub(super) enum ApplierWork {
    /// Committed entries, to be applied in log order.
    Apply(EntriesPiece),
    /// A snapshot to be read from the store, or put in its place.
    Snapshot(SnapshotWork),
}

/// Committed entries that are applied together.
pub(super) struct EntriesPiece {
    entries: Vec<LogEntry>,
    bytes: usize,
    answering: bool,
}

impl EntriesPiece {
    /// One batch of the engine is cheaper than many. But a piece ends where replicas compare
    /// states, since the hash is that of its end.
    fn has_room(&self) -> bool {
        let compared =
            self.entries.last().is_some_and(|last| compares_states(last, limits::STATE_HASH_EVERY));
        self.is_short() && !compared
    }

    fn is_short(&self) -> bool {
        self.bytes < limits::APPLY_BYTES_MAX as usize
    }

    fn extend(&mut self, more: EntriesPiece) {
        self.entries.extend(more.entries);
        self.bytes += more.bytes;
        self.answering |= more.answering;
    }
}

impl ApplierWork {
    pub fn apply(entries: Vec<LogEntry>, answering: bool) -> ApplierWork {
        let bytes = entries_bytes(&entries);
        ApplierWork::Apply(EntriesPiece { entries, bytes, answering })
    }
}

impl Join for ApplierWork {
    /// A comparison more or less is no reason when much waits: entries without data, after each of
    /// which replicas compare, are so small that the bytes under way do not bound their number.
    fn join(&mut self, next: ApplierWork, crowded: bool) -> Option<ApplierWork> {
        match (self, next) {
            (ApplierWork::Apply(piece), ApplierWork::Apply(more))
                if piece.has_room() || (crowded && piece.is_short()) =>
            {
                piece.extend(more);
                None
            }
            (_, next) => Some(next),
        }
    }
}

/// A writing thread and its queue.
pub(super) struct WriterThread<T> {
    queue: queue::Sender<T>,
    thread: JoinHandle<()>,
    /// Disconnected when the thread ends.
    ended: crossbeam_channel::Receiver<()>,
}

impl<T: Join + Send + 'static> WriterThread<T> {
    fn start(
        name: &str,
        run: impl FnOnce(Receiver<T>) + Send + 'static,
    ) -> std::io::Result<WriterThread<T>> {
        let (queue, work) = queue::bounded(WRITER_QUEUE_MAX);
        let (end, ended) = crossbeam_channel::bounded(0);
        let run = move || {
            let _end: Sender<()> = end;
            run(work);
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(WriterThread { queue, thread, ended })
    }

    /// Hands over work, without ever waiting.
    ///
    /// # Panics
    /// Panics when the queue is full, since work must not be lost: see the module for why it is
    /// not.
    pub fn push(&self, work: T) {
        // Without a receiver the thread has reported its failure and ended.
        if let Err((_, true)) = self.queue.try_join(work, T::join) {
            panic!("{} pieces of work wait for a writing thread", WRITER_QUEUE_MAX);
        }
    }

    /// Somebody waits for what was handed over.
    pub fn hurry(&self) {
        self.queue.hurry();
    }

    /// Lets the thread finish what it has, and waits for it until `deadline`. Whether it has ended.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> bool {
        let WriterThread { queue, thread, ended } = self;
        drop(queue);
        if ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        if thread.join().is_err() {
            log::error!("a writing thread panicked");
        }
        true
    }
}

/// Starts the log writer: everything that has queued up becomes durable with one sync.
pub(super) fn log_writer(
    log: DiskLog,
    reserve: Arc<DiskReserve>,
    reports: Sender<Report>,
    wake: WakeHandle,
) -> io::Result<WriterThread<LogWork>> {
    WriterThread::start("acervo-log", move |work| {
        let mut thread = LogThread { log, reserve, batches: Vec::new() };
        while let Ok(first) = work.recv() {
            let outcome = thread.group(first, &work, &reports);
            let failed = outcome.is_err();
            if let Err(error) = outcome {
                // The receiver is gone only when the process ends anyway.
                let _ = reports.send(Report::Failed(error.to_string()));
            }
            wake.wake();
            if failed {
                return;
            }
        }
    })
}

struct LogThread {
    log: DiskLog,
    reserve: Arc<DiskReserve>,
    batches: Vec<LogBatch>,
}

impl LogThread {
    /// Does `first` and what has queued up behind it.
    fn group(
        &mut self,
        first: LogWork,
        work: &Receiver<LogWork>,
        reports: &Sender<Report>,
    ) -> Result<(), LogError> {
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(item) = next.take() {
            match item {
                LogWork::Append(batch, batch_bytes) => {
                    bytes += batch_bytes;
                    self.batches.push(batch);
                }
                LogWork::BeginAnew { number, snapshot, hard_state } => {
                    self.append(reports)?;
                    self.log.reset(snapshot.index, snapshot.term, hard_state)?;
                    let _ = reports.send(Report::LogBegunAnew { number });
                }
                LogWork::Compact { durable_index, needed } => {
                    self.append(reports)?;
                    self.compact(durable_index, needed, reports)?;
                }
            }
            if bytes < limits::LOG_GROUP_BYTES_MAX {
                next = work.try_recv();
            }
        }
        self.append(reports)
    }

    fn append(&mut self, reports: &Sender<Report>) -> Result<(), LogError> {
        let Some(number) = self.batches.last().map(|batch| batch.number) else { return Ok(()) };
        self.log.append(&self.batches)?;
        self.batches.clear();
        let _ = reports.send(Report::Done(Input::Persisted { number }));
        Ok(())
    }

    fn compact(
        &mut self,
        durable_index: LogIndex,
        needed: NeededByOthers,
        reports: &Sender<Report>,
    ) -> Result<(), LogError> {
        let (before, _) = self.log.reader().bounds();
        let first = compaction::first_kept(RetentionReasons {
            durable_index,
            recent_first_index: self.log.recent_first_index(),
            needed,
            longest_first_index: self.log.longest_first_index(),
            space: self.reserve.space(),
        });
        self.log.compact(first)?;
        let (first_index, _) = self.log.reader().bounds();
        if first_index > before {
            log::info!("the log now begins at index {first_index}");
            let _ = reports.send(Report::Compacted { first_index });
        }
        Ok(())
    }
}

/// Bytes of memory that entries take, about.
fn entries_bytes(entries: &[LogEntry]) -> usize {
    entries.iter().map(|entry| entry.data.len() + 64).sum()
}

/// Starts the applier: it runs the state machine, makes its checkpoints, and takes snapshots in.
pub(super) fn applier(
    machine: StateMachine,
    staging: DiskStaging,
    reserve: Arc<DiskReserve>,
    shrink_interval: Duration,
    reports: Sender<Report>,
    wake: WakeHandle,
) -> io::Result<WriterThread<ApplierWork>> {
    WriterThread::start("acervo-apply", move |work: Receiver<ApplierWork>| {
        let intake = Intake::new(staging);
        let now = Instant::now();
        let shrinking =
            Shrinking { interval: shrink_interval, active: false, looked: now, entries: 0 };
        let mut thread =
            ApplierThread { machine, intake, reserve, reports, started: now, shrinking };
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
                Ok(ApplierWork::Apply(mut piece)) => {
                    work.linger(APPLY_GATHER);
                    let next = gather(&mut piece, &work);
                    thread.apply(&piece.entries, piece.answering).and_then(|()| match next {
                        Some(work) => thread.snapshot(work),
                        None => Ok(()),
                    })
                }
                Ok(ApplierWork::Snapshot(work)) => thread.snapshot(work),
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
                // The receiver is gone only when the process ends anyway.
                let fault = StoreFault::of(&error, || "applying the log".to_owned());
                let _ = thread.reports.send(fault.into());
            }
            wake.wake();
            if failed {
                return;
            }
        }
    })
}

/// Adds the pieces that have gathered behind this one, and gives back what else came.
fn gather(piece: &mut EntriesPiece, work: &Receiver<ApplierWork>) -> Option<SnapshotWork> {
    while piece.has_room() {
        match work.try_recv()? {
            ApplierWork::Apply(more) => piece.extend(more),
            ApplierWork::Snapshot(work) => return Some(work),
        }
    }
    None
}

struct ApplierThread {
    machine: StateMachine,
    intake: Intake<DiskStaging>,
    reserve: Arc<DiskReserve>,
    reports: Sender<Report>,
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
    // A report is lost only when the event loop has ended.
    fn report(&self, report: Report) {
        let _ = self.reports.send(report);
    }

    fn apply(&mut self, entries: &[LogEntry], answering: bool) -> Result<(), ApplyError> {
        let applied = if answering {
            self.machine.apply_answering(entries)
        } else {
            self.machine.apply(entries)
        };
        let Applied { writes: outcomes, summary } = applied?;
        self.shrinking.entries += entries.len() as u64;
        let point = self.machine.applied();
        self.report(Report::Done(Input::Applied { outcomes, point, summary }));
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
            self.report(Report::Checkpointed(self.machine.durable_index()));
            self.reserve.set_reusable(self.machine.reusable_bytes());
        }
        Ok(())
    }

    /// A step when nothing else has come; what comes goes first. A copy that does not get done
    /// while much is written is given up, since it makes every write dearer.
    fn shrink_if_due(&mut self, idle: bool) -> Result<(), ApplyError> {
        let shrinking = &mut self.shrinking;
        if shrinking.looked.elapsed() >= shrinking.interval {
            let is_quiet = shrinking.entries <= limits::SHRINK_ENTRIES_MAX;
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
        for report in self.intake.handle(&mut self.machine, work)? {
            if let SnapshotReport::Prepared { .. } = report {
                self.report(Report::Checkpointed(self.machine.durable_index()));
            }
            self.report(Report::Snapshot(report));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::Bytes;

    use super::*;
    use crate::model::{ClusterId, NodeId};
    use crate::net::{EventLoop, LoopConfig};
    use crate::storage::datadir::DataDir;
    use crate::storage::files::{Directory, DiskFile, RealDirectory, Space};
    use crate::storage::log::LogOptions;

    /// A directory on a disk that answers no sync any more once it hangs.
    #[derive(Clone)]
    struct Hanging {
        directory: Arc<dyn Directory>,
        /// Filled until it hangs; what waits for it then waits for ever.
        healthy: crossbeam_channel::Receiver<()>,
    }

    struct HangingFile {
        file: Arc<dyn DiskFile>,
        disk: Hanging,
    }

    impl Hanging {
        fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
            Arc::new(HangingFile { file, disk: self.clone() })
        }
    }

    impl Directory for Hanging {
        fn list(&self) -> io::Result<Vec<String>> {
            self.directory.list()
        }

        fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
            Ok(self.file(self.directory.create(name)?))
        }

        fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
            Ok(self.file(self.directory.open(name)?))
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.directory.remove(name)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.directory.rename(from, to)
        }

        fn sync(&self) -> io::Result<()> {
            self.directory.sync()
        }

        fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
            self.directory.directory(name)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path(name)
        }

        fn space(&self) -> io::Result<Space> {
            self.directory.space()
        }

        fn is_in_place(&self, names: &[&str]) -> io::Result<bool> {
            self.directory.is_in_place(names)
        }
    }

    impl DiskFile for HangingFile {
        fn len_bytes(&self) -> io::Result<u64> {
            self.file.len_bytes()
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.file.read_at(buffer, offset)
        }

        fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            self.file.write_all_at(bytes, offset)
        }

        fn set_len(&self, len_bytes: u64) -> io::Result<()> {
            self.file.set_len(len_bytes)
        }

        fn allocate(&self, len_bytes: u64) -> io::Result<()> {
            self.file.allocate(len_bytes)
        }

        fn sync_data(&self) -> io::Result<()> {
            let _ = self.disk.healthy.recv();
            self.file.sync_data()
        }

        fn try_lock(&self) -> io::Result<bool> {
            self.file.try_lock()
        }
    }

    #[test]
    fn a_writer_whose_disk_hangs_is_not_waited_for_and_one_that_is_well_is() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&dir.path().join("data"), ClusterId(1), NodeId(1), 7).unwrap();
        let event_loop = EventLoop::new(LoopConfig::default(), None).unwrap();
        let (health, healthy) = crossbeam_channel::unbounded();
        let directory = Arc::new(RealDirectory::open(&dir.path().join("log")).unwrap());
        (0..100).for_each(|_| health.send(()).unwrap());
        let disk = Arc::new(Hanging { directory, healthy: healthy.clone() });
        for hangs in [false, true] {
            let (log, _) = DiskLog::open_on(disk.clone(), LogOptions::default()).unwrap();
            let (reports, reported) = crossbeam_channel::unbounded();
            let reserve = data_dir.reserve().clone();
            let writer = log_writer(log, reserve, reports, event_loop.wake_handle()).unwrap();
            if hangs {
                healthy.try_iter().for_each(drop);
            }
            let hard_state = Some(HardState { term: 1 + u64::from(hangs), ..HardState::default() });
            writer.push(LogWork::append(LogBatch { number: 1, hard_state, ..LogBatch::default() }));
            let patience = if hangs { Duration::from_millis(50) } else { Duration::from_secs(60) };
            assert_eq!(writer.finish(Instant::now() + patience), !hangs);
            assert_eq!(reported.try_iter().count(), usize::from(!hangs));
        }
        // Lets the thread that was given up end.
        drop(health);
    }

    /// A writer whose disk hangs: nothing is taken from its queue.
    fn hung<T>() -> (WriterThread<T>, Receiver<T>) {
        let (queue, work) = queue::bounded(WRITER_QUEUE_MAX);
        let (thread, (_, ended)) = (thread::spawn(|| {}), crossbeam_channel::bounded(0));
        (WriterThread { queue, thread, ended }, work)
    }

    fn entry(index: LogIndex) -> LogEntry {
        LogEntry { term: 1, index, data: Bytes::from_static(&[7; 100]) }
    }

    /// As many entries of a hundred bytes as may be committed and not applied, each in a piece of
    /// its own.
    const ENTRIES: LogIndex = (limits::UNAPPLIED_BYTES_MAX / 164) as LogIndex;

    #[test]
    fn an_engine_that_hangs_holds_up_nobody_who_hands_small_writes_over() {
        let (writer, work) = hung();
        for index in 1..=ENTRIES {
            writer.push(ApplierWork::apply(vec![entry(index)], index == ENTRIES));
        }
        let (mut pieces, mut applied, mut answering) = (0, 0, false);
        while let Some(ApplierWork::Apply(piece)) = work.try_recv() {
            assert_eq!(piece.entries[0].index, applied + 1);
            let last = piece.entries.len() - 1;
            for entry in &piece.entries[..last] {
                assert!(!entry.index.is_multiple_of(limits::STATE_HASH_EVERY));
            }
            assert!(piece.bytes < 2 * limits::APPLY_BYTES_MAX as usize);
            pieces += 1;
            applied = piece.entries[last].index;
            answering |= piece.answering;
        }
        assert_eq!((applied, answering), (ENTRIES, true));
        assert!(pieces < WRITER_QUEUE_MAX / 100, "{pieces} pieces");
    }

    /// Each was a piece of its own, and one message may hold as many of them as the queue has
    /// places.
    #[test]
    fn entries_without_data_never_fill_the_queue_of_an_engine_that_hangs() {
        let (writer, work) = hung();
        let mut applied = 0;
        for index in 1..=3 * WRITER_QUEUE_MAX as LogIndex {
            let entry = LogEntry { term: 1, index, data: Bytes::new() };
            writer.push(ApplierWork::apply(vec![entry], false));
        }
        while let Some(ApplierWork::Apply(piece)) = work.try_recv() {
            let indices = piece.entries.iter().map(|entry| entry.index);
            assert!(indices.eq(applied + 1..=applied + piece.entries.len() as LogIndex));
            applied += piece.entries.len() as LogIndex;
        }
        assert_eq!(applied, 3 * WRITER_QUEUE_MAX as LogIndex);
    }

    #[test]
    fn a_log_that_hangs_holds_up_nobody_and_nothing_is_replaced_that_should_not_be() {
        let (writer, work) = hung();
        let hard_state = |term| Some(HardState { term, ..HardState::default() });
        let batch = |number, hard_state, entries| {
            writer.push(LogWork::append(LogBatch { number, hard_state, entries }));
        };
        for index in 1..=ENTRIES {
            let term = (index % 1000 == 0).then_some(index / 1000);
            batch(index, term.and_then(hard_state), vec![entry(index)]);
        }
        batch(ENTRIES + 1, hard_state(1_000_000), Vec::new());
        // From here on the log is another one.
        batch(ENTRIES + 2, None, vec![entry(ENTRIES - 5)]);
        let mut batches = Vec::new();
        while let Some(LogWork::Append(batch, bytes)) = work.try_recv() {
            assert!(bytes <= limits::LOG_GROUP_BYTES_MAX);
            batches.push(batch);
        }
        assert!(batches.len() < WRITER_QUEUE_MAX / 100, "{} batches", batches.len());
        let replacing = batches.pop().unwrap();
        assert_eq!((replacing.number, replacing.entries.len()), (ENTRIES + 2, 1));
        let last = batches.last().unwrap();
        assert_eq!((last.number, last.hard_state), (ENTRIES + 1, hard_state(1_000_000)));
        let indices: Vec<_> = batches.iter().flat_map(|b| &b.entries).map(|e| e.index).collect();
        assert_eq!(indices, (1..=ENTRIES).collect::<Vec<_>>());
    }
}
