//! Drives the [`Attempts`] of a request: sends what they say, waits for what comes.
//!
//! Calls block their caller's thread. Nothing else waits: connections are dialled and read by threads
//! of their own, and unhealthy servers are probed on the way.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use super::Inner;
use super::attempts::{Action, Attempts, Rules, Verdict};
use super::cancel;
use super::connection::{Claim, Failure};
use super::error::{ClientError, ServerFailure};
use super::health::Health;
use super::pool::Sent;
use super::sequence::Gate;
use super::sync::{Mailbox, lock};
use crate::limits::{
    CLIENT_CANCEL_LOOK_INTERVAL, CLIENT_CONSOLE_HEDGE_FACTOR, CLIENT_WRITE_GREETING_FACTOR,
    CLIENT_WRITE_HEDGE_FACTOR, CLIENT_WRITE_SLICE,
};
use crate::model::Effect;
use crate::wire::message::{ErrorCode, Reply, Request};

/// How long a request goes on.
pub(super) enum Retry<'a> {
    /// Round after round, until its deadline.
    UntilDeadline,
    /// Each server once.
    EachServerOnce,
    /// Each server once, for a person: whoever could not be reached, is leaving, or says nothing is reported, and so
    /// has longer to say something.
    Console(&'a mut dyn FnMut(&ServerFailure)),
}

impl Retry<'_> {
    /// The same for another request.
    pub(super) fn again(&mut self) -> Retry<'_> {
        match self {
            Retry::UntilDeadline => Retry::UntilDeadline,
            Retry::EachServerOnce => Retry::EachServerOnce,
            Retry::Console(report) => Retry::Console(&mut **report),
        }
    }
}

/// Whom a request is for.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// Any server, at random among the healthy ones.
    AnyServer,
    /// Likewise, but the one first that is thought to lead, which orders writes by itself.
    LeaderFirst,
    /// The server at this place alone.
    Server(usize),
}

/// An attempt under way, and what was kept of its request to judge the reply by.
struct Flight<C> {
    server: usize,
    tag: u64,
    /// `None` when it could not even be sent.
    sent: Option<Sent>,
    /// Its connection had ended, and it was sent once more on a new one.
    resent: bool,
    context: C,
}

/// More is known of a write's effect; of a read there is nothing to know.
fn raise(known: &mut Option<Effect>, effect: Effect) {
    if let Some(known) = known {
        *known = effect.max(*known);
    }
}

/// The call ends without waiting for these. Whoever was sent one of them may still carry it out.
fn withdraw_all<C>(flights: Vec<Flight<C>>, known: &mut Option<Effect>) {
    for sent in flights.into_iter().filter_map(|flight| flight.sent) {
        if sent.withdraw() {
            raise(known, Effect::MayBeDone);
        }
    }
}

/// When something last came from a server that owes an answer.
fn heard_of<C>(flights: &[Flight<C>], started: Instant, server: usize) -> Option<Duration> {
    let flight = flights.iter().find(|flight| flight.server == server)?;
    flight.sent.as_ref()?.connection.heard()?.checked_duration_since(started)
}

/// Replies by the tag of their attempt.
type Replies = Arc<Mailbox<(u64, Result<Reply, Failure>)>>;

impl Inner {
    /// Sends what `build` makes until `judge` is content with a reply. `build` is called anew for
    /// every attempt, so that a retry asks with what is known by then; what it returns beside the
    /// request is handed to `judge` with that attempt's reply.
    pub(super) fn request<T, C>(
        &self,
        target: Target,
        deadline: Instant,
        mut retry: Retry<'_>,
        mut build: impl FnMut() -> (Request, C),
        mut judge: impl FnMut(SocketAddr, C, Reply) -> Verdict<T>,
    ) -> Result<T, ClientError> {
        let _permit = Gate::enter(&self.gate, deadline)
            .ok_or_else(|| self.timed_out("too many requests of this client are under way"))?;
        let mut attempts = self.attempts(target, deadline, &retry);
        let replies: Replies = Arc::new(Mailbox::new());
        let mut flights: Vec<Flight<C>> = Vec::new();
        let mut tags = 0;
        // Of a write: the claim of the copies that were sent instead of each other.
        let mut claim: Option<Claim> = None;
        // Of a write: what is known of the effect of those attempts that have ended.
        let mut effect = None;
        loop {
            if cancel::is_cancelled() == Some(true) {
                withdraw_all(flights, &mut effect);
                return Err(self.timed_out("whoever asked has given up").of_write(effect));
            }
            let action = {
                let heard = |server| heard_of(&flights, self.started, server);
                let (now, mut health, mut random) = self.state();
                attempts.poll(now, heard, &mut health, &mut random)
            };
            for failure in attempts.take_passed_over() {
                if let Retry::Console(report) = &mut retry {
                    report(&failure);
                }
            }
            match action {
                Action::GiveUp(error) => {
                    withdraw_all(flights, &mut effect);
                    return Err(error.of_write(effect));
                }
                Action::Ping(server) => {
                    let of_server = flights.iter().find(|flight| flight.server == server);
                    if let Some(sent) = of_server.and_then(|flight| flight.sent.as_ref()) {
                        sent.connection.ping();
                    }
                }
                Action::Send { server, instead } => {
                    let (request, context) = build();
                    if matches!(request, Request::Write(_)) {
                        effect.get_or_insert(Effect::NotDone);
                        // A copy that has left cannot be taken back.
                        let shared = claim.take().filter(|claim| instead && !claim.is_taken());
                        claim = Some(shared.unwrap_or_default());
                    }
                    tags += 1;
                    let sent = self.send(server, request, claim.clone(), tags, &replies);
                    flights.push(Flight { server, tag: tags, sent, resent: false, context });
                }
                Action::Wait(until) => {
                    let mut until = self.started + until;
                    if cancel::is_cancelled().is_some() {
                        until = until.min(Instant::now() + CLIENT_CANCEL_LOOK_INTERVAL);
                    }
                    for sent in flights.iter().filter_map(|flight| flight.sent.as_ref()) {
                        if sent.connection.is_stuck() {
                            sent.connection.push();
                            until = until.min(Instant::now() + CLIENT_WRITE_SLICE);
                        }
                    }
                    self.probe();
                    let Some((tag, result)) = replies.take(until) else { continue };
                    let Some(at) = flights.iter().position(|flight| flight.tag == tag) else {
                        continue;
                    };
                    let Flight { server, sent, resent, context, .. } = flights.swap_remove(at);
                    let was_kept = !resent && sent.is_some_and(|sent| sent.was_kept);
                    match &result {
                        Ok(Reply::Error(error)) => raise(&mut effect, error.effect),
                        Err(failure) if failure.may_have_left => {
                            raise(&mut effect, Effect::MayBeDone);
                        }
                        _ => {}
                    }
                    match result {
                        Ok(reply) => {
                            let verdict = judge(self.servers[server], context, reply);
                            let (now, mut health, mut random) = self.state();
                            let (health, random) = (&mut health, &mut random);
                            let heard = |server| heard_of(&flights, self.started, server);
                            let end =
                                attempts.answered(now, server, verdict, heard, health, random);
                            if let Some(result) = end {
                                return result.map_err(|error| {
                                    withdraw_all(flights, &mut effect);
                                    error.of_write(effect)
                                });
                            }
                        }
                        // Idle connections are closed by servers, which says nothing about their
                        // health: the request goes on a new one.
                        Err(failure) if failure.ended && was_kept => {
                            let (request, context) = build();
                            let sent = self.send(server, request, None, tag, &replies);
                            flights.push(Flight { server, tag, sent, resent: true, context });
                        }
                        Err(failure) if failure.withheld => attempts.withheld(server),
                        Err(failure) => {
                            let heard = failure.heard.and_then(|at| self.since_start(at));
                            let (now, mut health, mut random) = self.state();
                            let (health, random) = (&mut health, &mut random);
                            attempts.broke(now, server, failure.reason, heard, health, random);
                        }
                    }
                }
            }
        }
    }

    fn attempts(&self, target: Target, deadline: Instant, retry: &Retry<'_>) -> Attempts {
        let hedge = self.timing.hedge_delay;
        let one_round = !matches!(retry, Retry::UntilDeadline);
        let (greeting, silence, slow) = match (retry, target) {
            (Retry::Console(_), _) => {
                let patience = hedge * CLIENT_CONSOLE_HEDGE_FACTOR;
                (patience, patience, None)
            }
            (_, Target::LeaderFirst) => {
                (hedge * CLIENT_WRITE_GREETING_FACTOR, hedge * CLIENT_WRITE_HEDGE_FACTOR, None)
            }
            (_, Target::AnyServer | Target::Server(_)) => (hedge, hedge, Some(hedge)),
        };
        let servers = match target {
            Target::Server(server) => vec![server],
            Target::AnyServer | Target::LeaderFirst => (0..self.servers.len()).collect(),
        };
        let first = match target {
            Target::LeaderFirst => Some(self.thought_leader.load(Ordering::Relaxed)),
            Target::AnyServer | Target::Server(_) => None,
        };
        let rules = Rules {
            one_round,
            greeting,
            silence,
            slow,
            reach: self.timing.reach_timeout,
            deadline: self.since_start(deadline).unwrap_or_default(),
            timeout: self.request_timeout,
        };
        let now = self.started.elapsed();
        Attempts::new(
            rules,
            Arc::clone(&self.servers),
            servers,
            first,
            now,
            &mut lock(&self.random),
        )
    }

    /// The reply comes by `replies`, and so does the news that there will be none.
    fn send(
        &self,
        server: usize,
        request: Request,
        claim: Option<Claim>,
        tag: u64,
        replies: &Replies,
    ) -> Option<Sent> {
        let told = Arc::clone(replies);
        let on_reply = Box::new(move |result| told.give((tag, result)));
        let sent = self.pool.send(server, request, claim, on_reply);
        sent.map_err(|failure| replies.give((tag, Err(failure)))).ok()
    }

    /// Asks an unhealthy server, if one is due, whether it has a leader to follow by now.
    fn probe(&self) {
        let probed = {
            let (now, mut health, mut random) = self.state();
            health.take_probe(now, &mut random)
        };
        let Some(server) = probed else { return };
        let health = Arc::clone(&self.health);
        let started = self.started;
        let on_reply = Box::new(move |result| {
            let useful = match result {
                Ok(Reply::StatusOk(status)) => status.leader.is_some(),
                Ok(Reply::Error(error)) => error.code == ErrorCode::Busy,
                _ => false,
            };
            if useful {
                lock(&health).answered(started.elapsed(), server);
            }
        });
        if let Ok(sent) = self.pool.send(server, Request::Status, None, on_reply) {
            sent.leave();
        }
    }

    /// The time, the servers' health, and the source of randomness.
    fn state(&self) -> (Duration, MutexGuard<'_, Health>, MutexGuard<'_, StdRng>) {
        // Always in this order.
        let (health, random) = (lock(&self.health), lock(&self.random));
        (self.started.elapsed(), health, random)
    }

    fn since_start(&self, at: Instant) -> Option<Duration> {
        at.checked_duration_since(self.started)
    }

    pub(super) fn timed_out(&self, last: &str) -> ClientError {
        ClientError::TimedOut { timeout: self.request_timeout, last: last.to_owned(), effect: None }
    }
}
