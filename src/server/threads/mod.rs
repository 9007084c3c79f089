//! The threads of a server besides its event loop.
//!
//! - `log_writer` and `applier` do their work in order, each from a queue that joins what waits
//!   (`writer`).
//! - `background` makes durable what the applier has sealed, and merges what was written before.
//! - `workers` answer reads and read what servers that are late need; `decoders` decode long
//!   frames.
//! - `watcher` drives the watches.
//! - `scrubber` reads the store again, `disk_watch` looks at the disk, `judge` makes verdicts
//!   about this server's data durable.
//!
//! Rule: they tell the event loop what has come of their work as a [`Completion`], on one channel,
//! and wake it. A disk may hang for as long as it likes, and none of them is waited for past a
//! deadline.

mod applier;
mod background;
mod catch_up;
mod completions;
mod decoders;
mod disk_watch;
mod judge;
mod log_writer;
mod scrubber;
mod watcher;
mod workers;
mod writer;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use self::applier::ApplierParts;
use self::background::Background;
use self::completions::{CompletionSender, has_ended};
use self::decoders::Decoders;
use self::disk_watch::DiskWatch;
use self::judge::Judge;
use self::scrubber::Scrubber;
use self::watcher::WatchThread;
use self::workers::StoreWorker;
use self::writer::WriterThread;
use super::console::ServerConsole;
use super::watches::{WatchInput, WatchOutput};
use super::work::{CatchUpWork, Completion, LogWork, ReadJob, SnapshotReport, StoreWork};
use crate::limits;
use crate::net::{ConnectionId, WakeHandle};
use crate::storage::apply::StateMachine;
use crate::storage::datadir::{DataDir, Untrusted};
use crate::storage::log::DiskLog;
use crate::storage::reserve::DiskReserve;
use crate::workers::pool::{SubmitError, Workers};

/// What the threads of a server are started with.
pub(super) struct ThreadsConfig {
    /// The number of workers.
    pub workers: usize,
    pub scrub_interval: Duration,
    /// Drawn at random, for the tree of the watches.
    pub watches_seed: u64,
    pub console: ServerConsole,
}

/// All threads of a server, with the work that each has.
pub(super) struct Threads {
    log: WriterThread<LogWork>,
    applier: WriterThread<StoreWork>,
    background: Background,
    workers: Workers<ReadJob>,
    catch_up: Workers<CatchUpWork>,
    decoders: Decoders,
    scrubber: Scrubber,
    watcher: WatchThread,
    disk_watch: DiskWatch,
    judge: Judge,
    reserve: Arc<DiskReserve>,
    completions: Receiver<Completion>,
    watched: Receiver<WatchOutput>,
}

impl Threads {
    /// Starts the threads on opened storage.
    ///
    /// # Errors
    /// The system did not start a thread.
    pub fn start(
        config: ThreadsConfig,
        machine: StateMachine,
        log: DiskLog,
        data_dir: &DataDir,
        wake: WakeHandle,
    ) -> io::Result<Threads> {
        let (sender, completions) = CompletionSender::new(wake);
        let reserve = data_dir.reserve().clone();
        let worker = StoreWorker {
            store: machine.store(),
            console: config.console,
            completions: sender.clone(),
        };
        let workers = Threads::start_workers(config.workers, &sender, |_| {
            let worker = worker.clone();
            move |read| worker.answer(read)
        })?;
        let catch_up = catch_up::start(log.reader(), &sender)?;
        let scrubber = Scrubber::start(machine.store(), config.scrub_interval, sender.clone())?;
        let (sealed, background) = Background::start(machine.store(), sender.clone())?;
        let staging = data_dir.staging();
        // Beside the completions: whatever a thousand clients are to be shown, what the log and the
        // state machine have done is not behind it.
        let (outputs, watched) = unbounded();
        let seed = config.watches_seed;
        let watcher = WatchThread::start(machine.store(), seed, outputs, sender.clone())?;
        let writes = ApplierParts {
            staging,
            reserve: reserve.clone(),
            sealed,
            watches: watcher.queue(),
            completions: sender.clone(),
        };
        let applier = applier::start(machine, writes)?;
        let log = log_writer::start(log, reserve.clone(), applier.queue(), sender.clone())?;
        let verdicts = data_dir.verdicts();
        let set_down = Arc::new(move |untrusted| verdicts.set_down(untrusted));
        Ok(Threads {
            log,
            applier,
            background,
            workers,
            catch_up,
            decoders: Decoders::start(&sender)?,
            scrubber,
            watcher,
            disk_watch: disk_watch::start(data_dir, sender.clone())?,
            judge: Judge::new(set_down, sender),
            reserve,
            completions,
            watched,
        })
    }

    fn start_workers<R: FnMut(ReadJob) -> Completion + Send + 'static>(
        count: usize,
        completions: &CompletionSender,
        make_worker: impl FnMut(usize) -> R,
    ) -> io::Result<Workers<ReadJob>> {
        let (sender, waker) = (completions.clone(), completions.clone());
        let complete = move |completion| sender.send(completion);
        let wake = move || waker.wake();
        let jobs_max = limits::WORKER_QUEUE_JOBS_MAX;
        Workers::start("acervo-work", count, jobs_max, complete, wake, make_worker)
    }

    /// Hands work to the log writer.
    pub fn write(&self, work: LogWork) {
        self.log.push(work);
    }

    /// Hands work to the applier.
    pub fn apply(&self, work: StoreWork) {
        self.applier.push(work);
    }

    /// Has the applier go on at once, because somebody waits for what it was handed.
    pub fn hurry_applier(&self) {
        self.applier.hurry();
    }

    /// Has something read for a server that lags. Gives it back when too much waits for that.
    pub fn catch_up(&mut self, work: CatchUpWork) -> Option<CatchUpWork> {
        match self.catch_up.submit(work) {
            Ok(()) => None,
            Err(SubmitError::Full(work)) => Some(work),
            Err(SubmitError::Stopped(work)) => {
                log::error!("no thread is left to read for servers that lag");
                Some(work)
            }
        }
    }

    /// Hands several reads to one worker, or gives all of them back.
    pub fn read_batch(&mut self, batch: Vec<ReadJob>) -> Result<(), SubmitError<Vec<ReadJob>>> {
        self.workers.submit_batch(batch)
    }

    /// Takes back the reads that no worker has begun and that wait since `tick` or before.
    pub fn take_back_reads(&mut self, tick: u64) -> Vec<ReadJob> {
        self.workers.take_back(|read| read.waits_since <= tick)
    }

    /// When the read was begun that a worker has been at for longest; `None` when none is.
    pub fn reading_since(&self) -> Option<Instant> {
        self.workers.busy_since()
    }

    /// Has a long frame decoded, or gives it back when too many wait for that.
    pub fn decode(
        &mut self,
        of_server: bool,
        connection: ConnectionId,
        pieces: Vec<Vec<u8>>,
        held: usize,
    ) -> Result<(), Vec<Vec<u8>>> {
        self.decoders.submit(of_server, connection, pieces, held)
    }

    /// Hands over what a client asks of its watches. Returns false if too much waits.
    #[must_use]
    pub fn ask_watches(&self, input: WatchInput) -> bool {
        self.watcher.ask(input)
    }

    /// Hands over the credit that a client gives a watch. Returns false where that is for one of
    /// many watches that do not exist.
    #[must_use]
    pub fn credit_watch(
        &self,
        connection: ConnectionId,
        watch: u64,
        bytes: u32,
        watches: usize,
    ) -> bool {
        self.watcher.credit(connection, watch, bytes, watches)
    }

    /// Tells the watches how much has left for a connection.
    pub fn sent_of_watches(&self, connection: ConnectionId, bytes: usize) {
        self.watcher.sent(connection, bytes);
    }

    /// Tells the watches that no leader has been known for a while.
    pub fn cut_off_watches(&self) {
        self.watcher.cut_off();
    }

    /// Tells the watches that a connection is gone that has asked something of them.
    pub fn end_watches(&self, connection: ConnectionId) {
        self.watcher.closed(connection);
    }

    /// Takes what clients are to be shown by their watches. Never waits.
    pub fn collect_watched(&self) -> Option<WatchOutput> {
        self.watched.try_recv().ok()
    }

    /// Begins to make a verdict about this server's data durable.
    pub fn set_verdict_down(&mut self, now: Instant, untrusted: Untrusted) -> io::Result<()> {
        self.judge.set_down(now, untrusted)
    }

    /// Whether a verdict has waited for the disk for so long that it is not waited for any more.
    pub fn is_verdict_overdue(&self, now: Instant) -> bool {
        self.judge.is_overdue(now)
    }

    /// Bytes that the data directory took on the disk at the last look; `None` before the first.
    pub fn disk_bytes(&self) -> Option<u64> {
        self.disk_watch.taken_bytes()
    }

    /// Takes what has come of some work, if anything has. Never waits.
    pub fn collect(&mut self) -> Option<Completion> {
        let completion = self.completions.try_recv().ok()?;
        match &completion {
            Completion::Answered { .. } | Completion::TooLong { .. } => self.workers.completed(),
            Completion::Entries { .. } | Completion::Snapshot(SnapshotReport::Read { .. }) => {
                self.catch_up.completed();
            }
            Completion::Decoded { of_server, .. } => self.decoders.completed(*of_server),
            _ => {}
        }
        Some(completion)
    }

    /// Ends the threads in order. Returns whether all have ended by `deadline`.
    pub fn finish(self, deadline: Instant) -> bool {
        let Threads {
            log,
            applier,
            background,
            workers,
            catch_up,
            decoders,
            scrubber,
            watcher,
            disk_watch,
            judge,
            reserve,
            ..
        } = self;
        drop(disk_watch);
        // Ends the waiting of writes for room on a full disk.
        reserve.close();
        // They wait for no disk, and hold no file.
        let _ = decoders.finish(deadline);
        let scrubber = scrubber.finish(deadline);
        let workers = has_ended(workers.finish(deadline));
        let catch_up = has_ended(catch_up.finish(deadline));
        // The log writer hands work to the applier, and so ends before it.
        let log = log.finish(deadline);
        let applier = applier.finish(deadline);
        // It ends when the applier cannot seal any more.
        let background = background.finish(deadline);
        let judge = judge.finish(deadline);
        let watcher = watcher.finish(deadline);
        watcher && scrubber && workers && catch_up && log && applier && background && judge
    }
}

#[cfg(test)]
impl Threads {
    /// Replaces the disk that takes verdicts in, and how long it is waited for.
    pub fn set_verdict_disk(&mut self, set_down: Arc<judge::SetDown>, patience: Duration) {
        self.judge.set_disk(set_down, patience);
    }

    /// Replaces the workers by one.
    pub fn set_worker(
        &mut self,
        worker: impl FnMut(ReadJob) -> Completion + Send + Clone + 'static,
    ) {
        let sender = self.judge.completions();
        self.workers = Threads::start_workers(1, &sender, |_| worker.clone()).unwrap();
    }

    /// Tells the event loop that the store is damaged, as the threads do that find it out.
    pub fn accuser(&self) -> impl FnOnce() + use<> {
        let sender = self.judge.completions();
        move || {
            sender.send(Completion::StoreDamaged("a test says so".to_owned()));
            sender.wake();
        }
    }
}
