//! The jobs of a registry's workers, and the order in which the workers get them.
//!
//! Rule: requests that change many files run one after the other, on all threads but one, so that
//! one thread is always free for searches.
//!
//! Left out: what a job does (`work`), and the memory that it holds, which the service counts and
//! which bounds the number of jobs that wait here.

use std::collections::VecDeque;
use std::time::Instant;

use super::work::{RegistryCompletion, RegistryJob};
use crate::limits;
use crate::workers::pool::{Pool, SubmitError};

/// Requests that wait for a registry's workers; past it they are told to come later.
pub(super) const REGISTRY_QUEUE_JOBS_MAX: usize = 4 * 1024;

pub(super) struct JobQueue {
    pool: Pool<RegistryJob, RegistryCompletion>,
    /// Long jobs that wait for their turn.
    long: VecDeque<RegistryJob>,
    /// The number of long jobs with the workers, and the most there may be.
    long_under_way: usize,
    long_max: usize,
}

impl JobQueue {
    pub(super) fn new(pool: Pool<RegistryJob, RegistryCompletion>, workers: usize) -> JobQueue {
        let long_max = workers.saturating_sub(1).max(1);
        JobQueue { pool, long: VecDeque::new(), long_under_way: 0, long_max }
    }

    /// Hands a job to the workers, or queues it if it is long.
    ///
    /// # Errors
    /// The queue is full, or there is no worker left.
    pub(super) fn submit(&mut self, job: RegistryJob) -> Result<(), SubmitError<()>> {
        if !job.is_long() {
            return self.pool.submit(job).map_err(|error| match error {
                SubmitError::Full(_) => SubmitError::Full(()),
                SubmitError::Stopped(_) => SubmitError::Stopped(()),
            });
        }
        if self.long.len() >= REGISTRY_QUEUE_JOBS_MAX {
            return Err(SubmitError::Full(()));
        }
        self.long.push_back(job);
        self.submit_long();
        Ok(())
    }

    /// Hands long jobs to the workers, as many as may run and have room in the workers' queue.
    pub(super) fn submit_long(&mut self) {
        while self.long_under_way < self.long_max
            && let Some(job) = self.long.pop_front()
        {
            match self.pool.submit(job) {
                Ok(()) => self.long_under_way += 1,
                Err(SubmitError::Full(job)) => return self.long.push_front(job),
                Err(SubmitError::Stopped(job)) => {
                    log::error!("a long request has no thread to be done by");
                    return self.long.push_front(job);
                }
            }
        }
    }

    /// The completion of a long job has been collected.
    pub(super) fn long_done(&mut self) {
        let (under_way, max) = (self.long_under_way, self.long_max);
        assert!((1..=max).contains(&under_way), "one of {under_way} long jobs is done, of {max}");
        self.long_under_way -= 1;
        self.submit_long();
    }

    pub(super) fn collect(&mut self) -> Option<RegistryCompletion> {
        self.pool.collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pool.outstanding() == 0 && self.long.is_empty()
    }

    /// Waits for the jobs under way and ends the workers.
    pub(super) fn finish(self) {
        if let Err(panicked) = self.pool.shut_down(Instant::now() + limits::STOP_DISK_TIMEOUT) {
            log::error!("{panicked}");
        }
    }
}
