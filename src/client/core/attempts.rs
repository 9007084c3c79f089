//! Which server a request is sent to, when another one is tried, and when to give up.
//!
//! [`Attempts`] is a pure state machine, one for each call. The core ([`super::Core`]) tells it the
//! time and what came of what was sent, and does what [`Attempts::poll`] says next.
//!
//! - The order is random, healthy servers first. A *round* asks each server once; after a round
//!   without an answer that counts there is a pause, which grows.
//! - A server that owes an answer is asked with PING whether it is there. It is *silent* when it
//!   has not greeted within the greeting time-out, or has and nothing at all comes of it for the
//!   silence time-out: then it counts as unhealthy, and the request goes to the next server, too.
//!   Time in which this client itself did not run is nobody's silence. Any request may be sent
//!   twice: reads change nothing, writes carry their identity. A read with which a server that
//!   answers PING is *slow* is hedged, which means sent to one more server, and when both are slow
//!   for long to a third. Whichever answers first counts. When that is the second one and the first
//!   has not even answered PING, the first counts as unhealthy, although its time to be silent is
//!   not over; so does one that is overtaken several times running.
//! - A server is *mute* that has owed the answer for longer than any server takes, PINGs answered
//!   or not: it may still answer, a write as well as a read, but nobody waits for it alone any
//!   more.
//! - A server of which the answer is arriving is waited for, however long the line takes: asked of
//!   another, the same answer would come over the same line. It is slow, or mute, when the answer
//!   stands still.
//! - A write with which a server is slow goes to a second one as well, but much later than a read,
//!   and only as often as [`super::copies`] grants, so that a group that is slow as a whole is not
//!   given its writes twice. A server that is overtaken in that way, too, counts as unhealthy.
//! - A server that is busy is left alone for as long as it says, and longer each time that it says
//!   so again.
//! - A write leaves as soon as a server has greeted. Those that had not greeted in time and do so
//!   later do not get a copy of it as well, unless the one that has it comes to nothing. What has
//!   left cannot be called back.
//! - `NO_MAJORITY` is the word of one server, which may be cut off from the others. It is final
//!   when no server of a round has anything better to say; the others are then asked all at once,
//!   because each may take its whole time to find out.
//! - When a server says that it may do better later, whoever owes no answer is asked again, also
//!   while a slow one still owes its own.
//! - A request ends with an answer, at its deadline, or when no server at all has been heard for
//!   the reach time-out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::super::error::{ClientError, ServerFailure};
use super::health::{Health, jittered};
use super::verdict::Verdict;
use crate::limits::{
    BUSY_RETRY_AFTER_MS, CLIENT_BACKOFF_MAX, CLIENT_BACKOFF_MIN, CLIENT_PING_INTERVAL,
};

/// A server that is busy is asked again after this long at most, whatever it says: many times what
/// one that is well says, and short beside a call's whole time.
const CLIENT_BUSY_PAUSE_MAX: Duration = Duration::from_secs(1);
const _: () = assert!(CLIENT_BUSY_PAUSE_MAX.as_millis() >= 4 * BUSY_RETRY_AFTER_MS as u128);
/// How many times as long as a slow read two servers may owe it before a third one is asked: longer
/// than a busy group takes, so that a hedge never triples its load.
const CLIENT_STUCK_FACTOR: u32 = 10;
/// A write that was refused a copy asks so often whether it may have one: short beside the time
/// after which it asked first.
const CLIENT_GRANT_INTERVAL: Duration = Duration::from_millis(100);

/// How a request is tried.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Each server is asked at most once, instead of round after round until the deadline.
    pub(super) one_round: bool,
    /// A server that has not greeted for this long is silent.
    pub(super) greeting: Duration,
    /// One that has, and of which nothing comes for this long though it was asked with PING, is
    /// silent, too.
    pub(super) silence: Duration,
    /// After this long the request is sent to a second server, even if the first is heard.
    pub(super) slow: Option<Duration>,
    /// But only if a copy is granted ([`super::copies`]), or the first counts as unhealthy.
    pub(super) spares_copies: bool,
    /// An answer that is arriving may stand still for so long.
    pub(super) stall: Duration,
    /// After this long a server that is heard is mute; for `None` it is waited for.
    pub(super) mute: Option<Duration>,
    /// With no server heard for this long the request fails.
    pub(super) reach: Duration,
    /// When the request ends.
    pub(super) deadline: Duration,
    /// The whole time it had, for its error.
    pub(super) timeout: Duration,
}

/// What has come of a server that owes an answer, and when it last did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Signs {
    /// Anything at all; `None` before the greeting.
    pub(super) heard: Option<Duration>,
    /// More of a long answer to whomever, which is not whole yet: no PONG comes before its end.
    pub(super) unfinished: Option<Duration>,
    /// The same, if it is the answer that is owed here.
    pub(super) arriving: Option<Duration>,
    /// More of a long answer to whomever, be it whole by now.
    pub(super) line_busy: Option<Duration>,
}

/// What the driver is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send the request to this server. `instead`: all those that it was sent to before are silent,
    /// so that of a write, which may not have left for any of them, one copy is enough.
    Send { server: usize, instead: bool },
    /// Ask this server, which owes an answer, whether it is there.
    Ping(usize),
    /// Wait for something to happen, until this time at most.
    Wait(Duration),
    /// The request has failed.
    GiveUp(ClientError),
}

/// Where a request stands at one server.
struct Flight {
    server: usize,
    sent: Duration,
    /// Since when it has been waited for to greet; `None` when it has.
    greeting_since: Option<Duration>,
    /// When it was last asked with PING, if that is not answered yet.
    pinged: Option<Duration>,
    /// When it is asked next, and how long after that again.
    ping_at: Duration,
    ping_interval: Duration,
    /// Since when it owes the answer, as far as it may be slow.
    slow_since: Duration,
    /// As was told last.
    signs: Signs,
    state: FlightState,
}

impl Flight {
    /// When the server counts as slow. A reply that is arriving is waited for until it stops, and
    /// while the line brings long replies to others, this one's turn may be yet to come.
    fn slow_at(&self, rules: &Rules) -> Option<Duration> {
        let slow = rules.slow?;
        let arriving = self.signs.arriving.map(|at| at + rules.stall);
        let behind_others = self.signs.line_busy.map(|at| {
            let at = at + slow;
            rules.mute.map_or(at, |mute| at.min(self.sent + mute))
        });
        Some(self.slow_since + slow).max(arriving).max(behind_others)
    }

    fn mute_at(&self, rules: &Rules) -> Option<Duration> {
        rules.mute.map(|mute| self.sent.max(self.signs.arriving.unwrap_or_default()) + mute)
    }

    /// When it is silent if a PING that was sent then is not answered.
    fn silent_at(&self, rules: &Rules, pinged: Duration) -> Duration {
        let at = pinged + rules.silence / 2;
        self.signs.unfinished.map_or(at, |moved| at.max(moved + rules.stall))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlightState {
    Waiting,
    /// It is heard, but a second server is asked.
    Slow,
    /// It is heard, and does not answer; others are asked.
    Mute,
    /// Nothing is heard of it; others are asked.
    Silent,
}

/// The attempts of one request.
pub(super) struct Attempts {
    rules: Rules,
    /// The servers' addresses by their place in the client's list.
    addresses: Arc<[SocketAddr]>,
    /// In which the servers are asked, but for their health.
    order: Vec<usize>,
    /// Those asked in this round.
    asked: Vec<usize>,
    flights: Vec<Flight>,
    /// A server to be asked once more, out of turn.
    again: Option<usize>,
    /// No server is asked before.
    not_before: Duration,
    /// By server: it has said that it is busy, and is not asked before; and for how long it was
    /// left alone at least, if that is what it has said last.
    busy_until: Vec<Duration>,
    busy_pause: Vec<Duration>,
    /// It has been granted a copy.
    has_copy: bool,
    backoff: Duration,
    /// Somebody has said in this round that there is no majority.
    no_majority: Option<ClientError>,
    /// Somebody has said in this round that it, or another, may answer later.
    undecided: bool,
    /// By server: how the last attempt failed, if it did.
    failures: Vec<Option<ServerFailure>>,
    /// When any server was last heard.
    heard: Duration,
    /// When the driver was to be back, if it waits.
    back_at: Option<Duration>,
    /// What stood in the way last.
    last: String,
    /// By server: why it could not serve this request, as it has said itself.
    said: Vec<Option<String>>,
    /// Servers passed over, to be reported.
    passed_over: Vec<ServerFailure>,
}

impl Attempts {
    /// A request to one of the servers at these places; `first` goes before all healthy ones.
    pub(super) fn new(
        rules: Rules,
        addresses: Arc<[SocketAddr]>,
        mut servers: Vec<usize>,
        first: Option<usize>,
        now: Duration,
        random: &mut StdRng,
    ) -> Attempts {
        servers.shuffle(random);
        if let Some(at) = servers.iter().position(|server| Some(*server) == first) {
            servers.swap(0, at);
        }
        Attempts {
            failures: vec![None; addresses.len()],
            said: vec![None; addresses.len()],
            busy_until: vec![now; addresses.len()],
            busy_pause: vec![Duration::ZERO; addresses.len()],
            has_copy: false,
            order: servers,
            rules,
            addresses,
            asked: Vec::new(),
            flights: Vec::new(),
            again: None,
            not_before: now,
            backoff: CLIENT_BACKOFF_MIN,
            no_majority: None,
            undecided: false,
            heard: now,
            back_at: None,
            last: "no server has been asked yet".to_owned(),
            passed_over: Vec::new(),
        }
    }

    /// Servers that could not be reached, are leaving, or say nothing, since this was asked last.
    pub(super) fn take_passed_over(&mut self) -> Vec<ServerFailure> {
        std::mem::take(&mut self.passed_over)
    }

    /// What to do next. `signs` tells what has come of a server that owes an answer.
    pub(super) fn poll(
        &mut self,
        now: Duration,
        signs: impl Fn(usize) -> Signs,
        health: &mut Health,
        random: &mut StdRng,
    ) -> Action {
        if now >= self.rules.deadline {
            // When no server could be reached that is what is wrong, and not the time.
            return Action::GiveUp(match self.all_failed() {
                Some(servers) => ClientError::Unreachable { servers, effect: None },
                None => self.timed_out(),
            });
        }
        if let Some(server) = self.watch(now, signs, health, random) {
            return Action::Ping(server);
        }
        if let Some(server) = self.again.take() {
            return self.send(now, server);
        }
        if self.heard + self.rules.reach <= now
            && let Some(servers) = self.all_failed()
        {
            return Action::GiveUp(ClientError::Unreachable { servers, effect: None });
        }
        if self.is_waiting(now) {
            return self.wait(now, None);
        }
        match self.next(now, health) {
            Some((_, at)) if now < at => self.wait(now, Some(at)),
            Some((server, _)) => self.send(now, server),
            None => self.end_round(now, random),
        }
    }

    /// Looks after the servers that owe an answer. One of them may have to be asked with PING.
    fn watch(
        &mut self,
        now: Duration,
        signs: impl Fn(usize) -> Signs,
        health: &mut Health,
        random: &mut StdRng,
    ) -> Option<usize> {
        let Rules { greeting, silence, slow, spares_copies, .. } = self.rules;
        let was_away = self.back_at.take().is_some_and(|back_at| back_at + silence / 4 <= now);
        for flight in &mut self.flights {
            flight.signs = signs(flight.server);
            let last_heard = flight.signs.heard;
            self.heard = self.heard.max(last_heard.unwrap_or_default());
            let heard = last_heard.unwrap_or_default().max(flight.sent);
            if flight.state == FlightState::Silent {
                // Whoever has greeted late has the request only now.
                if flight.greeting_since.is_none() || last_heard.is_none() {
                    continue;
                }
                flight.state = FlightState::Waiting;
                flight.ping_at = now + silence / 2;
            }
            if was_away {
                // What has come meanwhile may not have been read yet.
                flight.greeting_since = flight.greeting_since.map(|_| now);
                flight.pinged = flight.pinged.map(|_| now);
                if spares_copies {
                    flight.slow_since = now;
                }
            }
            if flight.mute_at(&self.rules).is_some_and(|at| at <= now) {
                flight.state = FlightState::Mute;
                health.failed(now, flight.server, random);
                continue;
            }
            if flight.slow_at(&self.rules).is_some_and(|at| at <= now) {
                // Who is known to be of no use is not one that has much to do.
                let is_free = !spares_copies || self.has_copy || !health.is_healthy(flight.server);
                if flight.state == FlightState::Waiting && (is_free || health.copies.grant(now)) {
                    self.has_copy |= !is_free;
                    flight.state = FlightState::Slow;
                }
            } else if slow.is_some() && flight.signs.arriving.is_some() {
                flight.state = FlightState::Waiting;
            }
            if last_heard.is_some() {
                flight.greeting_since = None;
            }
            if flight.pinged.is_some_and(|pinged| heard > pinged) {
                flight.pinged = None;
                flight.ping_at = now + flight.ping_interval;
                flight.ping_interval = (flight.ping_interval * 2).min(CLIENT_PING_INTERVAL);
            }
            let waited = match (flight.greeting_since, flight.pinged) {
                (Some(since), _) => (since + greeting <= now).then_some(greeting),
                (None, Some(pinged)) => {
                    (flight.silent_at(&self.rules, pinged) <= now).then_some(silence)
                }
                (None, None) => {
                    if flight.ping_at <= now {
                        // Whoever has just been heard need not be asked.
                        flight.ping_at = heard + silence / 2;
                        if flight.ping_at <= now {
                            flight.pinged = Some(now);
                            return Some(flight.server);
                        }
                    }
                    None
                }
            };
            if let Some(waited) = waited {
                flight.state = FlightState::Silent;
                health.failed(now, flight.server, random);
                let server = self.addresses[flight.server];
                let reason = format!("no answer within {waited:?}");
                self.last = format!("{server}: {reason}");
                self.passed_over.push(ServerFailure { server, reason });
            }
        }
        None
    }

    /// Whether the answers that are owed are to be waited for before another server is asked.
    fn is_waiting(&self, now: Duration) -> bool {
        let waiting = self.owing().any(|flight| flight.state == FlightState::Waiting);
        // Two that are slow are enough where all are busy, and not where they never answer.
        let late = self.owing().filter(|flight| self.stuck_at(flight).is_none_or(|at| now < at));
        self.no_majority.is_none() && (waiting || late.count() >= 2)
    }

    /// When a slow server keeps nobody from asking one more.
    fn stuck_at(&self, flight: &Flight) -> Option<Duration> {
        let (slow_at, slow) = (flight.slow_at(&self.rules)?, self.rules.slow?);
        Some(slow_at + slow * (CLIENT_STUCK_FACTOR - 1))
    }

    /// Those whose answers are still expected.
    fn owing(&self) -> impl Iterator<Item = &Flight> {
        let is_expected =
            |state: FlightState| matches!(state, FlightState::Waiting | FlightState::Slow);
        self.flights.iter().filter(move |flight| is_expected(flight.state))
    }

    /// The next server of this round, and when it is asked. One that is busy for longer is left out
    /// of a round in which others have been asked.
    fn next(&self, now: Duration, health: &Health) -> Option<(usize, Duration)> {
        let is_free = |server: &&usize| {
            !self.asked.contains(server) && !self.flights.iter().any(|of| of.server == **server)
        };
        let free = self.order.iter().filter(is_free).copied();
        let from = now.max(self.not_before);
        let mut ready = free.clone().filter(|server| self.busy_until[*server] <= from);
        let first = ready.clone().find(|server| health.is_healthy(*server));
        if let Some(server) = first.or_else(|| ready.next()) {
            return Some((server, self.not_before));
        }
        let soonest =
            free.map(|server| (server, self.busy_until[server])).min_by_key(|(_, at)| *at);
        soonest.filter(|_| {
            // A NO_MAJORITY is final only when the busy ones have been asked again.
            self.asked.is_empty() || (self.no_majority.is_some() && !self.undecided)
        })
    }

    fn send(&mut self, now: Duration, server: usize) -> Action {
        if !self.asked.contains(&server) {
            self.asked.push(server);
        }
        let half = self.rules.silence / 2;
        let instead = self.flights.iter().all(|flight| flight.state == FlightState::Silent);
        self.flights.push(Flight {
            server,
            sent: now,
            greeting_since: Some(now),
            pinged: None,
            ping_at: now + half,
            ping_interval: half,
            slow_since: now,
            signs: Signs::default(),
            state: FlightState::Waiting,
        });
        Action::Send { server, instead }
    }

    /// Until when to wait, if nothing happens before: for the next server to be asked, if one is,
    /// or to look after those that owe an answer.
    fn wait(&mut self, now: Duration, next: Option<Duration>) -> Action {
        let Rules { greeting, deadline, .. } = self.rules;
        let mut until = next.map_or(deadline, |next| next.min(deadline));
        for flight in self.owing() {
            until = until.min(match (flight.greeting_since, flight.pinged) {
                (Some(since), _) => since + greeting,
                (None, Some(pinged)) => flight.silent_at(&self.rules, pinged),
                (None, None) => flight.ping_at,
            });
            if let (Some(slow_at), FlightState::Waiting) =
                (flight.slow_at(&self.rules), flight.state)
            {
                // It may be granted later what it was refused.
                let at = if now < slow_at { slow_at } else { now + CLIENT_GRANT_INTERVAL };
                until = until.min(at);
            }
            if let Some(mute_at) = flight.mute_at(&self.rules) {
                until = until.min(mute_at);
            }
            until = self.stuck_at(flight).filter(|at| now < *at).map_or(until, |at| until.min(at));
        }
        self.back_at = Some(until);
        Action::Wait(until)
    }

    /// Every server has been asked, or owes an answer already.
    fn end_round(&mut self, now: Duration, random: &mut StdRng) -> Action {
        let heard = self.owing().next().is_some();
        // Nobody else is waited for when somebody has had something to say.
        if !heard
            && !self.undecided
            && let Some(error) = self.no_majority.take()
        {
            return Action::GiveUp(error);
        }
        if self.rules.one_round {
            if heard || !(self.flights.is_empty() || self.undecided) {
                return self.wait(now, None);
            }
            let last = self.last.clone();
            return Action::GiveUp(match self.all_failed() {
                Some(servers) => ClientError::Unreachable { servers, effect: None },
                None => ClientError::Unavailable { last, effect: None },
            });
        }
        let is_free = self.flights.len() < self.order.len();
        if !is_free || (heard && !self.undecided) {
            return self.wait(now, None);
        }
        self.asked.clear();
        (self.no_majority, self.undecided) = (None, false);
        self.not_before = self.not_before.max(now + jittered(self.backoff, random));
        self.backoff = (self.backoff * 2).min(CLIENT_BACKOFF_MAX);
        self.wait(now, Some(self.not_before))
    }

    /// The connection to a server could not be made, or broke. `heard` is when something last came
    /// on it.
    pub(super) fn broke(
        &mut self,
        now: Duration,
        server: usize,
        reason: String,
        heard: Option<Duration>,
        health: &mut Health,
        random: &mut StdRng,
    ) {
        health.failed(now, server, random);
        self.heard = heard.map_or(self.heard, |heard| heard.max(self.heard));
        let landed = self.land(server);
        let was_silent = landed.is_some_and(|flight| flight.state == FlightState::Silent);
        let failure = ServerFailure { server: self.addresses[server], reason };
        self.last = format!("{}: {}", failure.server, failure.reason);
        if !was_silent {
            self.passed_over.push(failure.clone());
        }
        self.failures[server] = Some(failure);
    }

    /// The request did not leave for a server that has greeted meanwhile, since another one has it.
    /// That one may be asked if the other comes to nothing.
    pub(super) fn withheld(&mut self, server: usize) {
        self.land(server);
        self.asked.retain(|asked| *asked != server);
    }

    /// A server has answered. Returns how the request ends, if it does with that. `signs` as for
    /// [`Attempts::poll`].
    pub(super) fn answered<T>(
        &mut self,
        now: Duration,
        server: usize,
        verdict: Verdict<T>,
        signs: impl Fn(usize) -> Signs,
        health: &mut Health,
        random: &mut StdRng,
    ) -> Option<Result<T, ClientError>> {
        self.heard = now;
        self.failures[server] = None;
        let spares_copies = self.rules.spares_copies;
        if let Some(answered) = self.land(server) {
            for overdue in self.overtaken(&answered, signs) {
                health.failed(now, overdue, random);
            }
            let is_overtaken =
                |flight: &&Flight| flight.state == FlightState::Slow && flight.sent < answered.sent;
            let slow = self.flights.iter().filter(is_overtaken);
            for slow in slow.filter(|_| matches!(verdict, Verdict::Done(_))) {
                match spares_copies {
                    false => health.overtaken(now, slow.server, random),
                    true => health.overtaken_in_write(now, slow.server, random),
                }
            }
            if spares_copies {
                health.answered_write(now, server, answered.state == FlightState::Slow);
            }
        }
        if !matches!(verdict, Verdict::OtherAfter(..)) {
            self.busy_pause[server] = Duration::ZERO;
        }
        match &verdict {
            Verdict::Gone(_) | Verdict::NoMajority(_) => health.failed(now, server, random),
            _ => health.answered(now, server),
        }
        match verdict {
            Verdict::Done(answer) => return Some(Ok(answer)),
            Verdict::Fail(error) | Verdict::Forgotten { error, .. } => return Some(Err(error)),
            Verdict::Again => {
                self.again = Some(server);
                return None;
            }
            Verdict::Other(why) => (self.undecided, self.last) = (true, why),
            Verdict::OtherAfter(after, why) => {
                (self.undecided, self.last) = (true, why);
                self.busy_until[server] = now + self.busy_pause(server, after, random);
            }
            Verdict::Gone(reason) => {
                let server = self.addresses[server];
                self.last = format!("{server}: {reason}");
                self.passed_over.push(ServerFailure { server, reason });
            }
            Verdict::NoMajority(error) => {
                self.last = error.to_string();
                self.no_majority.get_or_insert(error);
                // It may come so late that a new round has begun meanwhile, without this server.
                if !self.asked.contains(&server) {
                    self.asked.push(server);
                }
            }
        }
        self.said[server] = Some(self.last.clone());
        None
    }

    /// How long a server is left alone that is busy, and says for how long: so long at least, and
    /// longer each time that it says so again, since others heed it, too.
    fn busy_pause(&mut self, server: usize, after: Duration, random: &mut StdRng) -> Duration {
        let pause = (2 * self.busy_pause[server]).max(after).max(CLIENT_BACKOFF_MIN);
        let pause = pause.min(CLIENT_BUSY_PAUSE_MAX);
        self.busy_pause[server] = pause;
        // Up to half as long again, so that clients that were refused together do not return
        // together.
        let most = (pause * 3 / 2).min(CLIENT_BUSY_PAUSE_MAX);
        most.mul_f64(random.random_range(2.0 / 3.0..=1.0)).max(after.min(CLIENT_BUSY_PAUSE_MAX))
    }

    /// The request is over, or will be made anew.
    pub(super) fn ended(self, health: &mut Health) {
        if self.has_copy {
            health.copies.ended();
        }
    }

    /// The request is no more under way at a server.
    fn land(&mut self, server: usize) -> Option<Flight> {
        let at = self.flights.iter().position(|flight| flight.server == server)?;
        Some(self.flights.swap_remove(at))
    }

    /// Servers of which nothing was heard, though they were asked whether they are there before the
    /// request was even sent to the one that has answered it, and have owed an answer for the
    /// hedging time. The request ends before they count as silent, and the next one would go to
    /// them first. Time in which this client did not run is not held against them, since the
    /// other's request and answer went both ways within the same time.
    fn overtaken(&self, answered: &Flight, signs: impl Fn(usize) -> Signs) -> Vec<usize> {
        let is_overdue = |flight: &&Flight| {
            let heard = signs(flight.server).heard;
            flight.state == FlightState::Slow
                && match (flight.greeting_since, flight.pinged) {
                    (Some(_), _) => heard.is_none(),
                    (None, Some(pinged)) => {
                        pinged <= answered.sent && heard.is_none_or(|heard| heard <= pinged)
                    }
                    (None, None) => false,
                }
        };
        self.flights.iter().filter(is_overdue).map(|flight| flight.server).collect()
    }

    /// Every server's failure, when all that may be asked have failed.
    fn all_failed(&self) -> Option<Vec<ServerFailure>> {
        let mut servers = self.order.clone();
        servers.sort_unstable();
        servers.into_iter().map(|server| self.failures[server].clone()).collect()
    }

    fn timed_out(&self) -> ClientError {
        // A server that has said why it cannot serve is asked again, and what it said tells more
        // than that it owes the next answer.
        let last = match self.flights.iter().find(|flight| self.said[flight.server].is_none()) {
            Some(silent) => format!("{} had not answered yet", self.addresses[silent.server]),
            None => {
                let mut said = self.flights.iter().filter_map(|at| self.said[at.server].clone());
                said.next().unwrap_or_else(|| self.last.clone())
            }
        };
        ClientError::TimedOut { timeout: self.rules.timeout, last, effect: None }
    }
}

#[cfg(test)]
mod tests;
