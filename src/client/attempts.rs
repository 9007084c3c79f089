//! Which server is asked, in what order, how often, and when to give up.
//!
//! The servers are asked in a random order, one after the other, until one gives an answer that
//! counts; after a whole round there is a pause that grows. What ends it otherwise: an answer that
//! no other server can better, the request's whole time, or no server at all being reachable for
//! the reach time-out.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::SliceRandom;

use super::Inner;
use super::connection::CallError;
use super::error::{ClientError, ServerFailure};
use super::sequence::Gate;
use super::sync::lock;
use crate::limits::{CLIENT_BACKOFF_MAX, CLIENT_BACKOFF_MIN};
use crate::wire::message::{ErrorCode, ErrorReply, Reply, Request};

/// How persistent a request is.
pub(super) enum Persistence<'a> {
    /// Round after round.
    Untiring,
    /// Each server once; whoever could not be reached, or is leaving, is reported.
    OneRound(&'a mut dyn FnMut(&ServerFailure)),
}

/// What an answer means for its request.
pub(super) enum Verdict<T> {
    /// That is the answer.
    Done(T),
    /// The answer was overtaken: the same server once more.
    Again,
    /// Another server, or this one later, may do better.
    Other(String),
    /// So it may, but not before this long.
    OtherAfter(Duration, String),
    /// This server is of no use now.
    Gone(String),
    /// Nothing will help.
    Fail(ClientError),
}

/// What an `ERROR` reply means, the same for every request.
pub(super) fn judge_error<T>(server: SocketAddr, error: ErrorReply) -> Verdict<T> {
    // What a server says is shown to people, so it is made fit for a terminal.
    let message = crate::text::escape(error.message.as_bytes()).to_string();
    match error.code {
        ErrorCode::NoMajority => Verdict::Fail(ClientError::NoMajority { server, message }),
        ErrorCode::Invalid => Verdict::Fail(ClientError::Invalid { server, message }),
        ErrorCode::StaleRequest => Verdict::Fail(ClientError::StaleRequest { server, message }),
        ErrorCode::Expired => Verdict::Fail(ClientError::Expired { server, message }),
        ErrorCode::Busy => {
            let after = Duration::from_millis(u64::from(error.retry_after_ms));
            Verdict::OtherAfter(after, format!("{server}: {message}"))
        }
        ErrorCode::ShuttingDown | ErrorCode::Internal => Verdict::Gone(message),
    }
}

/// What a reply of the wrong kind means.
pub(super) fn judge_unexpected<T>() -> Verdict<T> {
    Verdict::Gone("it answered another question than was asked".to_owned())
}

impl Inner {
    /// Sends what `build` makes until `judge` is content with a reply. `build` is called anew for
    /// every attempt, so that a retry asks with what is known by then.
    pub(super) fn request<T>(
        &self,
        deadline: Instant,
        persistence: Persistence<'_>,
        build: impl FnMut() -> Request,
        judge: impl FnMut(SocketAddr, Reply) -> Verdict<T>,
    ) -> Result<T, ClientError> {
        self.request_in(self.random_order(), deadline, persistence, build, judge)
    }

    /// As [`Inner::request`], of the servers in this order.
    pub(super) fn request_in<T>(
        &self,
        order: Vec<usize>,
        deadline: Instant,
        mut persistence: Persistence<'_>,
        mut build: impl FnMut() -> Request,
        mut judge: impl FnMut(SocketAddr, Reply) -> Verdict<T>,
    ) -> Result<T, ClientError> {
        let mut last = "too many requests of this client are under way".to_owned();
        let _permit = Gate::enter(&self.gate, deadline).ok_or_else(|| self.timed_out(&last))?;
        let mut reach = Reach::new(order.len());
        let mut backoff = CLIENT_BACKOFF_MIN;
        loop {
            let mut next = 0;
            while let Some(&index) = order.get(next) {
                next += 1;
                let server = self.pool.server(index);
                let reply = match self.pool.call(index, build(), deadline) {
                    Ok(reply) => reply,
                    Err(CallError::DeadlinePassed) => {
                        return Err(self.timed_out(&format!("{server} had not answered yet")));
                    }
                    Err(CallError::Broken(failure)) => {
                        last = format!("{server}: {}", failure.reason);
                        let failed = ServerFailure { server, reason: failure.reason };
                        if let Persistence::OneRound(report) = &mut persistence {
                            report(&failed);
                        }
                        reach.failed(index, failed, failure.heard);
                        if let Some(servers) = reach.none_for(self.timing.reach_timeout) {
                            return Err(ClientError::Unreachable { servers });
                        }
                        continue;
                    }
                };
                reach.answered(index);
                match judge(server, reply) {
                    Verdict::Done(answer) => return Ok(answer),
                    Verdict::Again => next -= 1,
                    Verdict::Other(why) => last = why,
                    Verdict::OtherAfter(after, why) => {
                        last = why;
                        self.pause(after, deadline, &last)?;
                    }
                    Verdict::Gone(reason) => {
                        last = format!("{server}: {reason}");
                        if let Persistence::OneRound(report) = &mut persistence {
                            report(&ServerFailure { server, reason });
                        }
                    }
                    Verdict::Fail(error) => return Err(error),
                }
            }
            if let Persistence::OneRound(_) = persistence {
                let none = reach.none_for(Duration::ZERO);
                return Err(none.map_or(ClientError::Unavailable { last }, |servers| {
                    ClientError::Unreachable { servers }
                }));
            }
            // Half of it at random, so that clients that failed together do not return together.
            let jitter = lock(&self.random).random_range(0.5..=1.0);
            self.pause(backoff.mul_f64(jitter), deadline, &last)?;
            backoff = (backoff * 2).min(CLIENT_BACKOFF_MAX);
        }
    }

    fn random_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.pool.len()).collect();
        order.shuffle(&mut *lock(&self.random));
        order
    }

    /// At random, but for the server that is thought to lead, which orders writes by itself.
    pub(super) fn order_for_writes(&self) -> Vec<usize> {
        let mut order = self.random_order();
        let leader = self.thought_leader.load(Ordering::Relaxed);
        if let Some(at) = order.iter().position(|index| *index == leader) {
            order.swap(0, at);
        }
        order
    }

    /// Waits, unless the request's time ends before.
    fn pause(&self, wait: Duration, deadline: Instant, last: &str) -> Result<(), ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        thread::sleep(wait.min(left));
        if wait < left { Ok(()) } else { Err(self.timed_out(last)) }
    }

    pub(super) fn timed_out(&self, last: &str) -> ClientError {
        ClientError::TimedOut { timeout: self.request_timeout, last: last.to_owned() }
    }
}

/// Keeps account of which servers can be reached.
struct Reach {
    /// By server: how the last attempt failed, if it did.
    failures: Vec<Option<ServerFailure>>,
    /// When any server was last heard.
    heard: Instant,
}

impl Reach {
    fn new(servers: usize) -> Reach {
        Reach { failures: vec![None; servers], heard: Instant::now() }
    }

    fn answered(&mut self, index: usize) {
        self.failures[index] = None;
        self.heard = Instant::now();
    }

    fn failed(&mut self, index: usize, failure: ServerFailure, heard: Option<Instant>) {
        self.failures[index] = Some(failure);
        self.heard = heard.map_or(self.heard, |heard| heard.max(self.heard));
    }

    /// Every server's failure, when none has been heard for as long as `silence`.
    fn none_for(&self, silence: Duration) -> Option<Vec<ServerFailure>> {
        if self.heard.elapsed() < silence {
            return None;
        }
        self.failures.iter().cloned().collect()
    }
}
