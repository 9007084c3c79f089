//! A fixed number of worker threads behind one bounded queue.
//!
//! Invariant: every job has exactly one completion. So the number of outstanding jobs, which are
//! submitted and whose completions are not collected, bounds both the queue of jobs and the channel
//! of completions. The one thread that submits and collects counts it. No worker ever waits for
//! room in the channel.
//!
//! A job that no worker has begun may be taken back, also one of a batch whose first job takes
//! long; it then has no completion and is not outstanding any more.
//!
//! [`Workers`] hand their completions to a function, for an owner with one channel for everything;
//! a [`Pool`] is workers with a channel of their own.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel as channel;

use super::queue::{self, Receiver, Sender};
use super::thread::{DeadlineThread, ShutDownError};

/// The part of a pool that runs on one thread: it does one job at a time, and may keep state
/// between jobs. Any `FnMut(J) -> C` is one.
///
/// A worker must not panic: a job that fails is a completion like any other. The release build
/// aborts on a panic, so that the process does not go on with a worker less and a requester that
/// waits for ever. Where panics unwind, as in tests, [`Workers::finish`] reports them.
pub trait Worker<J, C>: Send + 'static {
    /// Called before the jobs of a batch, to open what they can share, such as a read view of the
    /// store.
    fn batch_begins(&mut self) {}

    /// Does one job; called in the order of the batch.
    fn work(&mut self, job: J) -> C;

    /// Called after the last job of a batch.
    fn batch_ends(&mut self) {}
}

impl<J, C, F: FnMut(J) -> C + Send + 'static> Worker<J, C> for F {
    fn work(&mut self, job: J) -> C {
        self(job)
    }
}

/// Why a job was not accepted; it is returned.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError<T> {
    /// Too many jobs are outstanding.
    #[error("too many jobs are outstanding")]
    Full(T),
    /// All worker threads have ended, which happens only after a panic.
    #[error("no worker is left")]
    Stopped(T),
}

/// What is sent to a worker.
enum PoolJob<J> {
    One(J),
    Batch(Vec<J>),
}

/// What a worker has in hand.
struct InHand<J> {
    /// When it began the job that it does.
    began: Option<Instant>,
    /// The jobs of its batch that it has not begun.
    rest: VecDeque<J>,
}

/// The same, where the thread that submits sees it. Neither holds the lock for longer than it takes
/// to move jobs.
struct SharedInHand<J>(Mutex<InHand<J>>);

impl<J> SharedInHand<J> {
    fn lock(&self) -> MutexGuard<'_, InHand<J>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the next job of the batch, if there is one.
    fn begin_next(&self) -> Option<J> {
        let mut in_hand = self.lock();
        let job = in_hand.rest.pop_front();
        in_hand.began = job.is_some().then(Instant::now);
        job
    }
}

/// Threads that do jobs `J`, and hand each completion to a function of their owner. Owned by the
/// thread that submits, which says when it has taken a completion in.
pub struct Workers<J> {
    jobs: Sender<PoolJob<J>>,
    threads: Vec<DeadlineThread>,
    /// What each thread has in hand.
    in_hand: Vec<Arc<SharedInHand<J>>>,
    outstanding: usize,
    jobs_max: usize,
}

impl<J: Send + 'static> Workers<J> {
    /// Starts `threads` threads, named `name-0` and so on, each with its own worker from
    /// `make_worker`. At most `jobs_max` jobs are outstanding. `complete` is called with each
    /// completion, and `wake` after each job, or batch, both on the worker's thread; they must be
    /// cheap and must not block.
    ///
    /// # Errors
    /// The system did not start a thread.
    pub fn start<C, W: Worker<J, C>>(
        name: &str,
        threads: usize,
        jobs_max: usize,
        complete: impl Fn(C) + Clone + Send + 'static,
        wake: impl Fn() + Clone + Send + 'static,
        mut make_worker: impl FnMut(usize) -> W,
    ) -> io::Result<Workers<J>> {
        let (jobs, jobs_out) = queue::bounded(jobs_max);
        let in_hand: Vec<_> = (0..threads)
            .map(|_| {
                let nothing = InHand { began: None, rest: VecDeque::new() };
                Arc::new(SharedInHand(Mutex::new(nothing)))
            })
            .collect();
        let threads = in_hand
            .iter()
            .enumerate()
            .map(|(i, in_hand)| {
                let (mut worker, in_hand) = (make_worker(i), in_hand.clone());
                let (jobs, complete, wake) = (jobs_out.clone(), complete.clone(), wake.clone());
                let run = move || run(&mut worker, &jobs, &in_hand, &complete, &wake);
                DeadlineThread::spawn(&format!("{name}-{i}"), run)
            })
            .collect::<io::Result<_>>()?;
        Ok(Workers { jobs, threads, in_hand, outstanding: 0, jobs_max })
    }

    /// Submits one job.
    ///
    /// # Errors
    /// The job, if too many are outstanding or no worker is left.
    pub fn submit(&mut self, job: J) -> Result<(), SubmitError<J>> {
        if self.room() == 0 {
            return Err(SubmitError::Full(job));
        }
        match self.send(PoolJob::One(job), 1) {
            Ok(()) => Ok(()),
            Err(PoolJob::One(job)) => Err(SubmitError::Stopped(job)),
            // The queue returns the item that was sent.
            Err(PoolJob::Batch(_)) => unreachable!("one job was sent"),
        }
    }

    /// Submits several jobs, all or none, for one worker to do in order and with one wake at the
    /// end. To use several workers, submit several batches.
    ///
    /// # Errors
    /// The jobs, if too many are outstanding or no worker is left.
    pub fn submit_batch(&mut self, batch: Vec<J>) -> Result<(), SubmitError<Vec<J>>> {
        let count = batch.len();
        if count > self.room() {
            return Err(SubmitError::Full(batch));
        }
        if count == 0 {
            return Ok(());
        }
        match self.send(PoolJob::Batch(batch), count) {
            Ok(()) => Ok(()),
            Err(PoolJob::Batch(batch)) => Err(SubmitError::Stopped(batch)),
            // The queue returns the item that was sent.
            Err(PoolJob::One(_)) => unreachable!("a batch was sent"),
        }
    }

    /// The number of jobs that would be accepted now.
    fn room(&self) -> usize {
        self.jobs_max - self.outstanding
    }

    /// The number of jobs submitted whose completions have not been taken in.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Notes that the completion of a job has been taken in.
    pub fn completed(&mut self) {
        assert!(self.outstanding > 0, "a completion of no job");
        self.outstanding -= 1;
    }

    /// Takes back the jobs that no worker has begun and that are due, of each batch and of the
    /// queue from the front.
    pub fn take_back(&mut self, is_due: impl Fn(&J) -> bool) -> Vec<J> {
        let is_work_due = |work: &PoolJob<J>| match work {
            PoolJob::One(job) => is_due(job),
            PoolJob::Batch(batch) => batch.first().is_some_and(&is_due),
        };
        let queued = self.jobs.take_back(is_work_due).into_iter().flat_map(|work| match work {
            PoolJob::One(job) => vec![job],
            PoolJob::Batch(batch) => batch,
        });
        let mut taken: Vec<J> = queued.collect();
        for in_hand in &self.in_hand {
            let mut in_hand = in_hand.lock();
            taken.extend(std::iter::from_fn(|| in_hand.rest.pop_front_if(|job| is_due(job))));
        }
        assert!(
            taken.len() <= self.outstanding,
            "{} jobs were taken back, and {} were outstanding",
            taken.len(),
            self.outstanding
        );
        self.outstanding -= taken.len();
        taken
    }

    /// When the worker that has been at one job for longest began it; `None` when all are idle.
    pub fn busy_since(&self) -> Option<Instant> {
        self.in_hand.iter().filter_map(|in_hand| in_hand.lock().began).min()
    }

    /// Lets the workers finish all jobs submitted, and ends them. Workers that have not ended by
    /// `deadline` are abandoned.
    ///
    /// # Errors
    /// A worker had panicked, or was still busy at the deadline.
    pub fn finish(self, deadline: Instant) -> Result<(), ShutDownError> {
        let Workers { jobs, threads, .. } = self;
        // Workers end when the queue is empty and nobody can fill it any more.
        drop(jobs);
        let mut panicked = Ok(());
        for thread in threads {
            match thread.finish(deadline) {
                Err(ShutDownError::Late) => return Err(ShutDownError::Late),
                outcome => panicked = panicked.and(outcome),
            }
        }
        panicked
    }

    fn send(&mut self, work: PoolJob<J>, count: usize) -> Result<(), PoolJob<J>> {
        // The queue has a place for every job that may be outstanding, so it is never full.
        self.jobs.try_send(work)?;
        self.outstanding += count;
        assert!(
            self.outstanding <= self.jobs_max,
            "{} jobs are outstanding, and {} may be",
            self.outstanding,
            self.jobs_max
        );
        Ok(())
    }
}

impl<J> fmt::Debug for Workers<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("threads", &self.threads.len())
            .field("outstanding", &self.outstanding)
            .field("jobs_max", &self.jobs_max)
            .finish()
    }
}

/// Workers with a channel of their own for completions `C`. Owned by the thread that submits and
/// collects.
#[derive(Debug)]
pub struct Pool<J, C> {
    workers: Workers<J>,
    completions: channel::Receiver<C>,
}

impl<J: Send + 'static, C: Send + 'static> Pool<J, C> {
    /// Starts workers as [`Workers::start`] does.
    ///
    /// # Errors
    /// The system did not start a thread.
    pub fn start<W: Worker<J, C>>(
        name: &str,
        threads: usize,
        jobs_max: usize,
        wake: impl Fn() + Clone + Send + 'static,
        make_worker: impl FnMut(usize) -> W,
    ) -> io::Result<Pool<J, C>> {
        let (completions_in, completions) = channel::bounded(jobs_max);
        // Sending never waits, by the invariant of the module, and fails only if the pool was
        // dropped: then the completion is of no use.
        let complete = move |completion| drop(completions_in.send(completion));
        let workers = Workers::start(name, threads, jobs_max, complete, wake, make_worker)?;
        Ok(Pool { workers, completions })
    }

    /// Submits one job, as [`Workers::submit`] does.
    ///
    /// # Errors
    /// The job, if too many are outstanding or no worker is left.
    pub fn submit(&mut self, job: J) -> Result<(), SubmitError<J>> {
        self.workers.submit(job)
    }

    /// The number of jobs submitted whose completions have not been collected.
    pub fn outstanding(&self) -> usize {
        self.workers.outstanding()
    }

    /// Collects one completion, if there is one. Never waits.
    pub fn collect(&mut self) -> Option<C> {
        let completion = self.completions.try_recv().ok()?;
        self.workers.completed();
        Some(completion)
    }

    /// Lets the workers finish all jobs submitted, ends them, and returns the completions that were
    /// not collected. Workers that have not ended by `deadline` are abandoned.
    ///
    /// # Errors
    /// A worker had panicked, or was still busy at the deadline.
    pub fn shut_down(self, deadline: Instant) -> Result<Vec<C>, ShutDownError> {
        let Pool { workers, completions } = self;
        workers.finish(deadline)?;
        Ok(completions.try_iter().collect())
    }
}

fn run<J, C>(
    worker: &mut impl Worker<J, C>,
    jobs: &Receiver<PoolJob<J>>,
    in_hand: &SharedInHand<J>,
    complete: &impl Fn(C),
    wake: &impl Fn(),
) {
    super::lower_thread_priority();
    while let Ok(work) = jobs.recv() {
        worker.batch_begins();
        let batch = match work {
            PoolJob::One(job) => vec![job],
            PoolJob::Batch(batch) => batch,
        };
        in_hand.lock().rest = batch.into();
        while let Some(job) = in_hand.begin_next() {
            complete(worker.work(job));
        }
        worker.batch_ends();
        wake();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }
    use crossbeam_channel::{Receiver, Sender, bounded};
    use std::sync::{Arc, Mutex};

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A pool whose wakes can be waited for, and a way to hold its workers up: each job receives
    /// once from `permits` before it is done.
    fn gated(threads: usize, jobs_max: usize) -> (Pool<u32, u32>, Sender<()>, Receiver<()>) {
        let (permits, permits_out) = bounded::<()>(64);
        let (woken_in, woken) = bounded::<()>(64);
        let wake = move || woken_in.send(()).unwrap();
        let pool = Pool::start("gated", threads, jobs_max, wake, |_| {
            let permits = permits_out.clone();
            move |job: u32| {
                permits.recv_timeout(PATIENCE).unwrap();
                job * 2
            }
        });
        (pool.unwrap(), permits, woken)
    }

    #[test]
    fn every_job_is_completed_once_and_followed_by_a_wake() {
        let (mut pool, permits, woken) = gated(3, 10);
        for job in 0..10 {
            pool.submit(job).unwrap();
            permits.send(()).unwrap();
        }
        let mut results = Vec::new();
        for _ in 0..10 {
            woken.recv_timeout(PATIENCE).unwrap();
            results.extend(std::iter::from_fn(|| pool.collect()));
        }
        results.sort_unstable();
        assert_eq!(results, (0..10).map(|job| job * 2).collect::<Vec<_>>());
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_full_pool_gives_jobs_back_until_completions_are_collected() {
        let (mut pool, permits, woken) = gated(1, 3);
        pool.submit(1).unwrap();
        let refused = pool.workers.submit_batch(vec![7, 8, 9]);
        assert!(matches!(refused, Err(SubmitError::Full(jobs)) if jobs == [7, 8, 9]));
        pool.workers.submit_batch(vec![2, 3]).unwrap();
        assert!(matches!(pool.submit(4), Err(SubmitError::Full(4))));
        permits.send(()).unwrap();
        woken.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(pool.submit(4), Err(SubmitError::Full(4))), "done is not collected");
        assert_eq!(pool.collect(), Some(2));
        pool.submit(4).unwrap();
        for _ in 0..3 {
            permits.send(()).unwrap();
        }
        assert_eq!(pool.shut_down(soon()), Ok(vec![4, 6, 8]));
    }

    /// Whoever waited for a disk that hung waited for as long as it did, whatever was before it.
    #[test]
    fn what_no_worker_has_begun_is_taken_back_and_what_one_has_begun_is_counted_on() {
        let (mut pool, permits, woken) = gated(1, 8);
        pool.workers.submit_batch(vec![1, 2, 30]).unwrap();
        pool.submit(4).unwrap();
        pool.workers.submit_batch(vec![5, 6]).unwrap();
        pool.submit(70).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while pool.workers.busy_since().is_none() {
            assert!(Instant::now() < deadline, "nothing is begun");
            std::thread::yield_now();
        }
        let mut taken = pool.workers.take_back(|job| *job < 10);
        taken.sort_unstable();
        assert_eq!(taken, [2, 4, 5, 6], "from the front: what came later is not due before");
        assert_eq!(pool.outstanding(), 3);
        for _ in 0..3 {
            permits.send(()).unwrap();
        }
        for _ in 0..2 {
            woken.recv_timeout(PATIENCE).unwrap();
        }
        assert_eq!(std::iter::from_fn(|| pool.collect()).collect::<Vec<_>>(), [2, 60, 140]);
        assert_eq!(pool.workers.busy_since(), None);
        assert_eq!(pool.shut_down(soon()), Ok(Vec::new()));
    }

    #[test]
    fn shutting_down_finishes_what_was_submitted() {
        let mut pool = Pool::start("p", 2, 100, || {}, |_| |job: u32| job + 1).unwrap();
        pool.workers.submit_batch((0..60).collect()).unwrap();
        pool.workers.submit_batch((60..100).collect()).unwrap();
        let mut results = pool.shut_down(soon()).unwrap();
        results.sort_unstable();
        assert_eq!(results, (1..=100).collect::<Vec<_>>());
    }

    #[test]
    fn a_batch_stays_together_on_one_named_thread() {
        struct Recorder(Arc<Mutex<Vec<String>>>);
        impl Worker<u32, ()> for Recorder {
            fn batch_begins(&mut self) {
                let name = std::thread::current().name().unwrap_or_default().to_owned();
                self.0.lock().unwrap().push(format!("begin on {name}"));
            }
            fn work(&mut self, job: u32) {
                self.0.lock().unwrap().push(format!("job {job}"));
            }
            fn batch_ends(&mut self) {
                self.0.lock().unwrap().push("end".to_owned());
            }
        }
        let record = Arc::new(Mutex::new(Vec::new()));
        let mut pool =
            Pool::start("reader", 1, 8, || {}, |_| Recorder(Arc::clone(&record))).unwrap();
        pool.workers.submit_batch(vec![1, 2]).unwrap();
        pool.submit(3).unwrap();
        pool.workers.submit_batch(Vec::new()).unwrap();
        pool.shut_down(soon()).unwrap();
        assert_eq!(
            *record.lock().unwrap(),
            ["begin on reader-0", "job 1", "job 2", "end", "begin on reader-0", "job 3", "end"]
        );
    }

    #[test]
    fn a_panic_is_reported_and_a_dead_pool_gives_jobs_back() {
        let mut pool = Pool::start(
            "fragile",
            1,
            1 << 20,
            || {},
            |_| |job: u32| assert!(job != 13, "this panic is part of the test"),
        )
        .unwrap();
        pool.submit(13).unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let refusal = loop {
            match pool.submit(1) {
                Ok(()) => assert!(std::time::Instant::now() < deadline, "the thread goes on"),
                Err(refusal) => break refusal,
            }
            std::thread::yield_now();
        };
        assert!(matches!(refusal, SubmitError::Stopped(1)), "{refusal:?}");
        assert_eq!(pool.shut_down(soon()), Err(ShutDownError::Panicked("fragile-0".to_owned())));
    }

    /// What workers compute held up the event loop that they compute for, where processors were
    /// few.
    #[cfg(target_os = "linux")]
    #[test]
    fn workers_have_a_lower_priority_than_the_thread_that_submits() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let pool = Pool::start("nice", 1, 1, || {}, |_| move |()| priority());
        let mut pool: Pool<(), i32> = pool.unwrap();
        let mine = priority();
        pool.submit(()).unwrap();
        let workers = pool.shut_down(soon()).unwrap();
        assert_eq!(priority(), mine, "only the workers have a lower one");
        assert_eq!(workers, [(mine + 5).min(19)], "the lowest priority there is has 19");
    }

    #[test]
    fn a_worker_that_hangs_is_not_waited_for() {
        let (mut pool, started, gate) = gated(1, 4);
        pool.submit(1).unwrap();
        assert_eq!(pool.shut_down(Instant::now()), Err(ShutDownError::Late));
        drop((started, gate));
    }
}
