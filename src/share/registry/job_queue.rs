//! The jobs of a registry's workers, and the order in which the workers get them.
//!
//! Rules: jobs that change many files run on all threads but one, so that one thread is always
//! free for searches. Requests, and removals of peers that are gone, take turns: so neither waits
//! for more of the other than there are of itself. Both go round by origin (an IP address), so that
//! one address waits for at most one of each other address, however many others have queued.
//!
//! Left out: what a job does (`work`), and the memory that it holds, which the service counts and
//! which bounds the number of jobs that wait here.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use super::work::{RegistryCompletion, RegistryJob};
use crate::limits;
use crate::net::ConnectionId;
use crate::workers::pool::{Pool, SubmitError};

/// Requests that wait for a registry's workers; past it they are told to come later.
pub(super) const REGISTRY_QUEUE_JOBS_MAX: usize = 4 * 1024;
/// Long jobs that wait, of requests and of removals each: all peers may go at once, and none has to
/// be found silent because there was no room for its removal.
const LONG_JOBS_MAX: usize = limits::REGISTRY_PEERS_MAX;
/// Those of one origin: all peers that it may have, which is a quarter of the queue, so that no
/// address alone takes it from all others.
const LONG_JOBS_PER_ORIGIN_MAX: usize = limits::REGISTRY_PEERS_PER_ORIGIN_MAX;

const _: () = assert!(4 * LONG_JOBS_PER_ORIGIN_MAX <= LONG_JOBS_MAX);

pub(super) struct JobQueue {
    pool: Pool<RegistryJob, RegistryCompletion>,
    long: LongJobs,
    /// The number of long jobs with the workers, and the most there may be.
    long_under_way: usize,
    long_max: usize,
}

impl JobQueue {
    pub(super) fn new(pool: Pool<RegistryJob, RegistryCompletion>, workers: usize) -> JobQueue {
        assert!(workers >= 2, "of {workers} workers none is free for searches");
        JobQueue { pool, long: LongJobs::default(), long_under_way: 0, long_max: workers - 1 }
    }

    /// Hands a job of an origin to the workers, or queues it if it is long.
    ///
    /// # Errors
    /// The queue is full, or there is no worker left.
    pub(super) fn submit(
        &mut self,
        job: RegistryJob,
        origin: IpAddr,
    ) -> Result<(), SubmitError<()>> {
        if !job.is_long() {
            return self.submit_short(job);
        }
        if !self.long.push(job, origin) {
            return Err(SubmitError::Full(()));
        }
        self.submit_long();
        Ok(())
    }

    /// Hands a job that is not long to the workers.
    ///
    /// # Errors
    /// Their queue is full, or there is no worker left.
    pub(super) fn submit_short(&mut self, job: RegistryJob) -> Result<(), SubmitError<()>> {
        self.pool.submit(job).map_err(|error| match error {
            SubmitError::Full(_) => SubmitError::Full(()),
            SubmitError::Stopped(_) => SubmitError::Stopped(()),
        })
    }

    /// Hands long jobs to the workers, as many as may run and have room in the workers' queue.
    pub(super) fn submit_long(&mut self) {
        while self.long_under_way < self.long_max
            && let Some((job, origin)) = self.long.pop()
        {
            match self.pool.submit(job) {
                Ok(()) => self.long_under_way += 1,
                Err(SubmitError::Full(job)) => return self.long.put_back(job, origin),
                Err(SubmitError::Stopped(job)) => {
                    log::error!("a long request has no thread to be done by");
                    return self.long.put_back(job, origin);
                }
            }
        }
    }

    /// Drops the request of a connection that has closed, if it waits here: nobody waits for its
    /// answer any more. Returns the memory that it holds.
    pub(super) fn drop_request(&mut self, connection: ConnectionId) -> usize {
        self.long.remove(connection)
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

/// The long jobs that wait.
#[derive(Default)]
struct LongJobs {
    /// Of peers, who wait for an answer.
    requests: OriginRing,
    /// Of what nobody waits for.
    removals: OriginRing,
    /// Whether the next turn is a removal's, if there is one.
    is_removals_turn: bool,
}

impl LongJobs {
    /// Queues a job. Returns false if there is no room, for all or for its origin.
    fn push(&mut self, job: RegistryJob, origin: IpAddr) -> bool {
        self.ring(&job).push(job, origin)
    }

    /// Takes the next job: a request and a removal in turn.
    fn pop(&mut self) -> Option<(RegistryJob, IpAddr)> {
        let [first, second] = match self.is_removals_turn {
            true => [&mut self.removals, &mut self.requests],
            false => [&mut self.requests, &mut self.removals],
        };
        let next = first.pop().or_else(|| second.pop())?;
        self.is_removals_turn = is_request(&next.0);
        Some(next)
    }

    /// Puts a job back that was taken just now, and gives it the next turn.
    fn put_back(&mut self, job: RegistryJob, origin: IpAddr) {
        self.is_removals_turn = !is_request(&job);
        self.ring(&job).put_back(job, origin);
    }

    /// Removes the request of a connection. Returns the memory that it holds.
    fn remove(&mut self, connection: ConnectionId) -> usize {
        self.requests.remove(connection)
    }

    fn is_empty(&self) -> bool {
        self.requests.count + self.removals.count == 0
    }

    fn ring(&mut self, job: &RegistryJob) -> &mut OriginRing {
        if is_request(job) { &mut self.requests } else { &mut self.removals }
    }
}

fn is_request(job: &RegistryJob) -> bool {
    matches!(job, RegistryJob::Request { .. })
}

/// Jobs in turn by origin.
#[derive(Default)]
struct OriginRing {
    /// The jobs of each origin that has some, in their order; whose turn it is first.
    origins: VecDeque<(IpAddr, VecDeque<RegistryJob>)>,
    count: usize,
}

impl OriginRing {
    /// Queues a job. Returns false if there is no room, for all or for its origin.
    fn push(&mut self, job: RegistryJob, origin: IpAddr) -> bool {
        if self.count >= LONG_JOBS_MAX {
            return false;
        }
        match self.origins.iter_mut().find(|(of, _)| *of == origin) {
            Some((_, jobs)) if jobs.len() >= LONG_JOBS_PER_ORIGIN_MAX => return false,
            Some((_, jobs)) => jobs.push_back(job),
            None => self.origins.push_back((origin, VecDeque::from([job]))),
        }
        self.count += 1;
        true
    }

    /// Takes the next job. The next one of its origin comes after one of each other origin.
    fn pop(&mut self) -> Option<(RegistryJob, IpAddr)> {
        let (origin, mut jobs) = self.origins.pop_front()?;
        let job = jobs.pop_front().unwrap_or_else(|| panic!("{origin} waits without a job"));
        if !jobs.is_empty() {
            self.origins.push_back((origin, jobs));
        }
        self.count -= 1;
        Some((job, origin))
    }

    /// Puts a job back that was taken just now, and gives its origin the next turn.
    fn put_back(&mut self, job: RegistryJob, origin: IpAddr) {
        let at = self.origins.iter().position(|(of, _)| *of == origin);
        let rest = at.and_then(|at| self.origins.remove(at)).map(|(_, jobs)| jobs);
        let mut jobs = rest.unwrap_or_default();
        jobs.push_front(job);
        self.origins.push_front((origin, jobs));
        self.count += 1;
    }

    /// Removes the request of a connection. Returns the memory that it holds.
    fn remove(&mut self, connection: ConnectionId) -> usize {
        let (mut freed, mut removed) = (0, 0);
        for (_, jobs) in &mut self.origins {
            jobs.retain(|job| match job {
                RegistryJob::Request { connection: of, held, .. } if *of == connection => {
                    (freed, removed) = (freed + held, removed + 1);
                    false
                }
                _ => true,
            });
        }
        self.origins.retain(|(_, jobs)| !jobs.is_empty());
        self.count -= removed;
        freed
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::work::RegistryWork;
    use super::*;
    use crate::model::PeerId;
    use crate::share::index::{Member, PeerEndpoint};

    fn origin(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn gone(session: u64) -> RegistryJob {
        RegistryJob::Gone(Member { peer: PeerId(1), session })
    }

    fn request(number: u64) -> RegistryJob {
        let member = Member { peer: PeerId(1), session: number };
        let address = SocketAddr::from(([10, 0, 0, 1], 1));
        let place = PeerEndpoint { address, origin: address.ip(), key: 1 };
        RegistryJob::Request {
            connection: ConnectionId::from_u64(number),
            id: 1,
            work: RegistryWork::Join { member, place, files: Vec::new(), shares: false },
            held: 10,
            is_long: true,
        }
    }

    /// The numbers of all jobs that wait, in their order.
    fn all(jobs: &mut LongJobs) -> Vec<u64> {
        let number = |job| match job {
            RegistryJob::Gone(Member { session, .. }) => session,
            RegistryJob::Request { connection, .. } => connection.to_u64(),
            other => panic!("{other:?}"),
        };
        let order = std::iter::from_fn(|| jobs.pop()).map(|(job, _)| number(job)).collect();
        assert!(jobs.is_empty());
        order
    }

    /// Once a JOIN waited for all long JOINs of another address that were queued before it: for a
    /// minute and more, over a store.
    #[test]
    fn an_origin_waits_for_one_job_of_each_other() {
        let [crowd, one] = [1, 2].map(origin);
        for job in [gone, request] {
            let mut jobs = LongJobs::default();
            (0..9).for_each(|number| assert!(jobs.push(job(number), crowd)));
            assert!(jobs.push(job(100), one) && jobs.push(job(101), one));
            // What finds no room with the workers does not lose its turn.
            let (taken, of) = jobs.pop().unwrap();
            jobs.put_back(taken, of);
            assert_eq!(all(&mut jobs), [0, 100, 1, 101, 2, 3, 4, 5, 6, 7, 8]);
        }
    }

    /// Once a JOIN waited for a removal of each address of which a dead registry had left peers,
    /// and removals for a JOIN of each address.
    #[test]
    fn a_request_waits_for_one_removal_and_a_removal_for_one_request() {
        let mut jobs = LongJobs::default();
        for number in 0..5 {
            assert!(jobs.push(gone(100 + number), origin(number as u8)));
        }
        for number in 0..3 {
            assert!(jobs.push(request(number), origin(100 + number as u8)));
        }
        let (taken, of) = jobs.pop().unwrap();
        jobs.put_back(taken, of);
        assert_eq!(all(&mut jobs), [0, 100, 1, 101, 2, 102, 103, 104]);
        // However long there were only removals, a request is next.
        jobs.push(gone(1), origin(1));
        jobs.push(request(2), origin(1));
        assert_eq!(all(&mut jobs), [2, 1]);
    }

    #[test]
    fn an_origin_has_a_share_of_the_queue_that_all_its_peers_fit_in() {
        let mut jobs = LongJobs::default();
        for last in 0..4 {
            for session in 0..=limits::REGISTRY_PEERS_PER_ORIGIN_MAX as u64 {
                let fits = session < limits::REGISTRY_PEERS_PER_ORIGIN_MAX as u64;
                assert_eq!(jobs.push(gone(session), origin(last)), fits, "{last}: {session}");
            }
        }
        assert!(!jobs.push(gone(1), origin(5)), "it is full");
        assert!(jobs.push(request(1), origin(0)), "removals take no room from requests");
    }

    #[test]
    fn a_request_whose_connection_has_closed_is_dropped() {
        let mut jobs = LongJobs::default();
        (1..=3).for_each(|number| assert!(jobs.push(request(number), origin(number as u8 % 2))));
        assert_eq!(jobs.remove(ConnectionId::from_u64(2)), 10);
        assert_eq!(jobs.remove(ConnectionId::from_u64(2)), 0);
        assert_eq!(all(&mut jobs), [1, 3]);
    }
}
