//! The client core: a deterministic state machine that brings a client's calls to its servers and
//! the answers back.
//!
//! It takes inputs ([`Core::begin`] a call, [`Core::cancel`] one, a connection is there, a frame
//! came, a connection is gone, the time) and returns outputs ([`Output`]: dial, send, close, a call
//! is over) and the time at which it wants to be called next. It reads no clock, draws no
//! randomness but from the seed that it is given, and performs no I/O: `client::driver` does that,
//! and the tests of this module do it in virtual time.
//!
//! How it is cut: [`attempts`] decides for one call which server is asked next and when to give up,
//! by what [`verdict`] says of answers; [`health`] knows which servers are worth asking first, and
//! [`copies`] which writes may be sent twice; [`link`] is the connection to one server, and
//! [`line`] what is on its way there; [`places`] has the room for calls, and [`sequence`] numbers
//! the writes. This file brings calls and links together. What is sent, and what an answer means,
//! is the call's own affair ([`Exchange`]): the core knows neither keys nor values.
//!
//! A call goes this way. It waits until there is room: for it among the calls under way
//! ([`places`]), and, if it is a write, in the window of sequence numbers. Calls that wait go in
//! the order of their numbers, but a read passes writes that wait, for the window or for bytes, and
//! a write reads. Then its attempts begin. Each is sent on its server's link: at once if that is
//! open and its server takes what it is sent, else when it does. The request is built at that
//! moment, so that a retry asks with what is known by then. The first answer that its [`Exchange`]
//! takes ends the call, and so do its deadline and what [`attempts`] counts as final.
//!
//! Invariants:
//!
//! - A call ends exactly once, by its deadline, or is cancelled; then the core keeps nothing of it.
//! - A write has one identity, however often it is sent. It is given another one only when the
//!   servers do not know its client any more and no copy of it can have had an effect.
//! - A copy of a write that is sent in the place of another one which may still leave shares its
//!   *claim*: whichever server greets first gets it, and the others do not.
//! - What has not left is never sent once its call is over. What has left cannot be called back: of
//!   a write that ends without its answer the effect is not known then ([`Effect::MayBeDone`]).
//! - What waits to be sent is bounded, also when nobody waits for it any more: a request leaves
//!   while its server takes what is queued for it ([`CLIENT_QUEUED_BYTES_PAUSE`]), and a large one
//!   while little is queued for all servers ([`CLIENT_QUEUED_BYTES_MAX`]).
//! - Requests under way at a server are known by the ids that this core gave them. A server that
//!   answers what it was not asked loses its connection, and one that answers with the wrong kind
//!   of reply counts as of no use for now.
//!
//! What it leaves out: the sockets, how much waits to be sent on each (the driver tells it), and
//! timestamps that a client has seen (`client::seen`, which the exchanges ask).

mod attempts;
mod call;
mod copies;
mod health;
mod line;
mod link;
mod places;
mod sequence;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use self::attempts::{Action, Attempts, Signs};
use self::call::{Call, Flight, rules, timed_out};
use self::health::{Health, jittered};
use self::link::{Due, Early, Link, Owed, Waiter};
use self::places::Places;
use self::sequence::Sequencer;
use super::call::Promise;
use super::error::{ClientError, ServerFailure};
use super::greeting::{self, Failure};
use super::timing::Timing;
use crate::limits::{CLIENT_QUEUED_BYTES_MAX, CLIENT_QUEUED_BYTES_PAUSE, SESSION_REPLIES_MAX};
use crate::model::{ClientId, ClusterId, Effect, Timestamp};
use crate::wire::codec;
use crate::wire::frame::FrameError;
use crate::wire::message::{ErrorCode, HelloRole, Message, Reply, Request};

pub(super) use self::call::{CallId, CallSpec, Exchange, Report, Retry, Target};
pub(super) use self::verdict::{Verdict, judge_error, judge_unexpected};

/// What a driver is to do.
pub(super) enum Output {
    /// Connect to the server. What comes of it is to be told by [`Core::connected`] or
    /// [`Core::lost`].
    Dial(usize),
    /// Send a message on the server's connection.
    Send { server: usize, message: Message },
    /// The server has greeted: from now on frames may be as long as those of any client.
    Greeted(usize),
    /// Send a line end, upon which a web server answers, where no greeting came.
    Provoke(usize),
    /// Close the server's connection, about which nothing more is to be told.
    Close(usize),
    /// A console's call passes over a server.
    PassedOver { report: Report, failure: ServerFailure },
    /// A pause is over.
    Resume(Promise<()>),
    /// A call is over.
    End { exchange: Box<dyn Exchange>, result: Result<(), ClientError> },
}

/// How a connection was lost, as a driver sees it.
#[derive(Debug)]
pub(super) enum Loss {
    /// The server has closed it.
    Ended,
    /// It failed. `ended`: as idle connections do that have ended meanwhile.
    Broken { reason: String, ended: bool },
    /// What came is not a sequence of frames.
    Frame(FrameError),
}

/// What a client is made of, apart from its servers' addresses.
#[derive(Clone, Copy)]
pub(super) struct CoreConfig {
    pub(super) timing: Timing,
    pub(super) client: ClientId,
    /// All randomness follows from it.
    pub(super) seed: u64,
}

/// About how many bytes PING and PONG take, and what a frame has around its request.
const SMALL_BYTES: usize = 128;

/// About how many bytes a call's request brings to its server's queue.
fn queue_bytes(spec: &CallSpec) -> usize {
    spec.request_bytes + SMALL_BYTES
}

/// What is queued for a server.
struct Room {
    queued_bytes: usize,
    /// What is queued for all servers together.
    in_all: usize,
}

impl Room {
    /// Whether so many bytes more may be queued: a few always, and many if little waits.
    fn takes(&self, bytes: usize) -> bool {
        let Room { queued_bytes, in_all } = *self;
        queued_bytes + bytes <= CLIENT_QUEUED_BYTES_PAUSE
            || (queued_bytes < CLIENT_QUEUED_BYTES_PAUSE / 2
                && in_all + bytes <= CLIENT_QUEUED_BYTES_MAX)
    }
}

/// What has come of a server that concerns one of a call's attempts.
fn signs(link: &Link, flights: &[Flight], server: usize) -> Signs {
    let flight = flights.iter().find(|flight| flight.server == server);
    link.signs(flight.and_then(|flight| flight.request_id))
}

/// All calls and connections of a client.
pub(super) struct Core {
    servers: Arc<[SocketAddr]>,
    timing: Timing,
    random: StdRng,
    health: Health,
    links: Vec<Link>,
    calls: HashMap<CallId, Call>,
    places: Places,
    /// When each call is next looked at.
    timers: BTreeSet<(Duration, CallId)>,
    /// Pauses between two calls, by when they end and in the order in which they began; each ends
    /// soon, and whoever is in one makes no call meanwhile.
    pauses: BTreeMap<(Duration, u64), Promise<()>>,
    pauses_made: u64,
    sequencer: Sequencer,
    /// The group of the first server that has greeted. Timestamps of two groups do not compare, so
    /// a server of another one is as good as unreachable.
    cluster: Option<ClusterId>,
    /// When the client met its group: the timestamp of the last write that the first server that
    /// greeted had applied. A write must be sent with the same time to whichever server.
    met: Option<Timestamp>,
    /// Whom a hint named.
    leader: Option<usize>,
    outputs: VecDeque<Output>,
    is_admitting: bool,
}

impl Core {
    pub(super) fn new(servers: Arc<[SocketAddr]>, config: CoreConfig) -> Core {
        let CoreConfig { timing, client, seed } = config;
        Core {
            timing,
            random: StdRng::seed_from_u64(seed),
            health: Health::new(servers.len()),
            links: servers.iter().map(|_| Link::new()).collect(),
            calls: HashMap::new(),
            places: Places::default(),
            timers: BTreeSet::new(),
            pauses: BTreeMap::new(),
            pauses_made: 0,
            sequencer: Sequencer::new(client, SESSION_REPLIES_MAX as u64),
            cluster: None,
            met: None,
            leader: None,
            outputs: VecDeque::new(),
            is_admitting: false,
            servers,
        }
    }

    /// Begins a call: at once if there is room, else when there is.
    pub(super) fn begin(
        &mut self,
        now: Duration,
        id: CallId,
        spec: CallSpec,
        exchange: Box<dyn Exchange>,
    ) {
        let (timer, is_write) = (spec.deadline, spec.is_write);
        let effect = is_write.then_some(Effect::NotDone);
        let call = Call {
            exchange,
            spec,
            attempts: None,
            identity: None,
            is_renewed: false,
            flights: Vec::new(),
            attempts_made: 0,
            claims: BTreeMap::new(),
            effect,
            timer,
        };
        let before = self.calls.insert(id, call);
        assert!(before.is_none(), "two calls have the number {id}");
        self.timers.insert((timer, id));
        self.places.wait(id, is_write);
        self.admit(now);
    }

    /// Nobody waits for the call any more: it ends without a word. A write that has left may still
    /// take effect.
    pub(super) fn cancel(&mut self, now: Duration, id: CallId) {
        if let Some(call) = self.calls.remove(&id) {
            self.release(id, call);
            self.admit(now);
        }
    }

    /// Keeps a promise after a while, between half of `longest` and all of it.
    pub(super) fn pause(&mut self, now: Duration, longest: Duration, promise: Promise<()>) {
        let until = now + jittered(longest, &mut self.random);
        self.pauses_made += 1;
        self.pauses.insert((until, self.pauses_made), promise);
    }

    /// Who leads, as far as somebody knows: writes go there first.
    pub(super) fn hint_leader(&mut self, leader: Option<usize>) {
        self.leader = leader;
    }

    /// Whether no call is under way, and none waits.
    pub(super) fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// Drops all calls: nobody drives this core any more.
    pub(super) fn abandon(&mut self) {
        self.calls.clear();
        self.timers.clear();
        self.pauses.clear();
        self.places = Places::default();
        self.outputs.clear();
        self.links.fill_with(Link::new);
        self.health = Health::new(self.servers.len());
        self.is_admitting = false;
    }

    /// What to do next, in this order.
    pub(super) fn take_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Core::poll`] is to be called, if no input comes before.
    pub(super) fn next_at(&self) -> Option<Duration> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let pause = self.pauses.first_key_value().map(|((until, _), _)| *until);
        let links = self.links.iter().filter_map(|link| link.next_due(&self.timing));
        let probe = self.health.next_probe().filter(|_| !self.is_idle());
        links.chain(timer).chain(pause).chain(probe).min()
    }

    /// Does what the time has come for.
    pub(super) fn poll(&mut self, now: Duration) {
        for server in 0..self.links.len() {
            while let Some(due) = self.links[server].take_due(now, &self.timing) {
                let reason = match due {
                    Due::Provoke => {
                        self.outputs.push_back(Output::Provoke(server));
                        continue;
                    }
                    Due::Ping => {
                        self.ping(server);
                        continue;
                    }
                    Due::Mute => {
                        self.health.failed(now, server, &mut self.random);
                        continue;
                    }
                    Due::NotDialled => greeting::TIMED_OUT.to_owned(),
                    Due::NotGreeted => greeting::NO_GREETING.to_owned(),
                    Due::Silent => format!("nothing heard for {:?}", self.timing.silence_timeout),
                };
                self.give_up(now, server, Failure::new(reason));
            }
        }
        while let Some((at, id)) = self.timers.first().copied()
            && at <= now
        {
            self.look_after(now, id);
            assert!(!self.timers.contains(&(at, id)), "call {id} is not looked after at {now:?}");
        }
        while let Some(pause) = self.pauses.first_entry().filter(|pause| pause.key().0 <= now) {
            self.outputs.push_back(Output::Resume(pause.remove()));
        }
        self.probe(now);
    }

    /// The server's connection is there, and is to be greeted on.
    pub(super) fn connected(&mut self, server: usize) {
        if self.links[server].connected() {
            self.send(server, greeting::hello(HelloRole::CLIENT));
        }
    }

    /// Something came of the server, or it took more of what waits to be sent.
    pub(super) fn heard(&mut self, now: Duration, server: usize) {
        self.links[server].moves(now);
    }

    /// So many bytes have come of the reply to the request with this id, and not all of it.
    pub(super) fn arrives(&mut self, now: Duration, server: usize, request_id: u64, bytes: usize) {
        self.links[server].arrives(now, request_id, bytes);
    }

    /// So many bytes wait to be sent to the server.
    pub(super) fn queued(&mut self, server: usize, bytes: usize) {
        self.links[server].set_queued_bytes(bytes);
    }

    /// Lets those requests leave for which servers have made room.
    pub(super) fn resume(&mut self, now: Duration) {
        for server in 0..self.links.len() {
            self.let_leave(now, server);
        }
    }

    /// Whether a request waits for room in a server's queue.
    pub(super) fn is_holding(&self) -> bool {
        self.links.iter().any(Link::is_holding)
    }

    /// A whole frame came.
    pub(super) fn frame(&mut self, now: Duration, server: usize, body: &[u8]) {
        self.links[server].hear(now);
        let taken = match codec::decode(body) {
            Ok(message) if self.links[server].is_open() => self.message(now, server, message),
            Ok(message) => self.greeted(now, server, message),
            Err(_) if !self.links[server].is_open() => {
                Err(greeting::stranger(None, HelloRole::CLIENT))
            }
            Err(error) => Err(Failure::new(error.to_string())),
        };
        if let Err(failure) = taken {
            self.give_up(now, server, failure);
        }
    }

    /// The server's connection could not be made, or is gone.
    pub(super) fn lost(&mut self, now: Duration, server: usize, loss: Loss) {
        let link = &self.links[server];
        let failure = match loss {
            Loss::Ended if link.is_open() => {
                Failure { ended: true, ..Failure::new("the server closed the connection") }
            }
            Loss::Broken { reason, ended } if link.is_open() => {
                Failure { ended, ..Failure::new(reason) }
            }
            Loss::Broken { reason, ended } if !ended || link.is_dialling() => Failure::new(reason),
            Loss::Ended | Loss::Broken { .. } => greeting::not_greeted(HelloRole::CLIENT),
            Loss::Frame(error) if link.is_open() => Failure::new(error.to_string()),
            Loss::Frame(error) => greeting::stranger(Some(&error), HelloRole::CLIENT),
        };
        self.fail_link(now, server, failure);
    }

    // ---- calls --------------------------------------------------------------------------------

    /// Begins the attempts of calls that wait, as far as there is room.
    fn admit(&mut self, now: Duration) {
        // A call that ends at once makes room for the next one, which the loop below finds.
        if std::mem::replace(&mut self.is_admitting, true) {
            return;
        }
        self.admit_each(now);
        self.is_admitting = false;
    }

    fn admit_each(&mut self, now: Duration) {
        while let Some(id) = self.places.next().find(|id| self.reserve(*id)) {
            self.start(now, id);
        }
    }

    /// Takes what a call needs to begin, if there is room for it.
    fn reserve(&mut self, id: CallId) -> bool {
        let Some(call) = self.calls.get_mut(&id) else { panic!("call {id} waits, and is over") };
        let CallSpec { is_write, request_bytes, .. } = call.spec;
        if !self.places.has_room(is_write, request_bytes) {
            return false;
        }
        if is_write {
            call.identity = self.sequencer.begin();
            if call.identity.is_none() {
                return false;
            }
        }
        self.places.take(id, is_write, request_bytes);
        true
    }

    fn start(&mut self, now: Duration, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let rules = rules(&call.spec, &self.timing);
        let servers = match call.spec.target {
            Target::Server(server) => vec![server],
            Target::AnyServer | Target::LeaderFirst => (0..self.servers.len()).collect(),
        };
        let first = self.leader.filter(|_| call.spec.target == Target::LeaderFirst);
        let addresses = Arc::clone(&self.servers);
        let random = &mut self.random;
        call.attempts = Some(Attempts::new(rules, addresses, servers, first, now, random));
        self.look_after(now, id);
    }

    /// Does what a call has to do by now, and notes when it is next to be looked at.
    fn look_after(&mut self, now: Duration, id: CallId) {
        // Taken out, so that it can be lent together with the rest.
        let Some(mut call) = self.calls.remove(&id) else { return };
        match self.next_step(now, id, &mut call) {
            Ok(until) => {
                self.set_timer(id, &mut call, until);
                self.calls.insert(id, call);
            }
            Err(error) => self.end(now, id, call, Err(error)),
        }
    }

    /// Until when the call waits, if nothing happens before.
    ///
    /// # Errors
    /// The one that it ends with.
    fn next_step(
        &mut self,
        now: Duration,
        id: CallId,
        call: &mut Call,
    ) -> Result<Duration, ClientError> {
        loop {
            let Some(attempts) = &mut call.attempts else {
                if now < call.spec.deadline {
                    return Ok(call.spec.deadline);
                }
                let last = match call.spec.is_write && !self.places.is_full() {
                    false => "too many requests of this client are under way",
                    true => "an earlier write of this client is not answered",
                };
                return Err(timed_out(&call.spec, last));
            };
            let signs = |server: usize| signs(&self.links[server], &call.flights, server);
            let action = attempts.poll(now, signs, &mut self.health, &mut self.random);
            for failure in attempts.take_passed_over() {
                if let Retry::Console(report) = &call.spec.retry {
                    let report = Arc::clone(report);
                    self.outputs.push_back(Output::PassedOver { report, failure });
                }
            }
            match action {
                Action::GiveUp(error) => return Err(error),
                Action::Wait(until) => return Ok(until),
                Action::Ping(server) => {
                    if self.links[server].is_open() {
                        self.ping(server);
                    }
                }
                Action::Send { server, instead } => {
                    let claim = call.spec.is_write.then(|| call.claim(instead));
                    let was_kept = self.links[server].is_open();
                    self.attempt(now, id, call, server, claim, was_kept);
                }
            }
        }
    }

    /// Sends one attempt, now or when the server greets.
    fn attempt(
        &mut self,
        now: Duration,
        id: CallId,
        call: &mut Call,
        server: usize,
        claim: Option<u64>,
        was_kept: bool,
    ) {
        call.attempts_made += 1;
        let attempt = call.attempts_made;
        call.flights.push(Flight { server, attempt, request_id: None, claim, was_kept });
        let (is_write, bytes) = (call.spec.is_write, queue_bytes(&call.spec));
        let link = &self.links[server];
        let is_behind = is_write && link.holds_writes();
        if link.is_open() && !is_behind && self.room(server).takes(bytes) {
            return self.leave(now, id, call, attempt);
        }
        let waiter = Waiter::Call { call: id, attempt };
        self.links[server].hold(now, Early { waiter, is_write, bytes });
        self.dial(now, server);
    }

    /// Lets an attempt's request leave, unless another copy of the write has left in its place.
    fn leave(&mut self, now: Duration, id: CallId, call: &mut Call, attempt: u64) {
        let Some(flight) = call.flights.iter_mut().find(|flight| flight.attempt == attempt) else {
            return;
        };
        let server = flight.server;
        if let Some(claim) = flight.claim
            && call.claims.insert(claim, true) == Some(true)
        {
            call.take_flight(attempt);
            if let Some(attempts) = &mut call.attempts {
                attempts.withheld(server);
            }
            return;
        }
        if let (Some(identity), Some(met)) = (&mut call.identity, self.met)
            && identity.begun == Timestamp::ZERO
        {
            // Of the client's first identity, which may have been given before any server was
            // reached.
            identity.begun = met;
        }
        let body = call.exchange.request(attempt, call.identity);
        let request_id = self.links[server].issue(
            now,
            Waiter::Call { call: id, attempt },
            queue_bytes(&call.spec),
        );
        flight.request_id = Some(request_id);
        self.queued(server, self.links[server].queued_bytes() + queue_bytes(&call.spec));
        self.send(server, Message::Request { id: request_id, body });
    }

    /// A reply to an attempt came.
    fn replied(&mut self, now: Duration, id: CallId, attempt: u64, reply: Reply) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        let Some(flight) = call.take_flight(attempt) else {
            self.calls.insert(id, call);
            return;
        };
        let server = flight.server;
        let effect = match &reply {
            Reply::Error(error) => error.effect,
            // Whoever answers something else than was asked may have done what was asked.
            _ => Effect::MayBeDone,
        };
        call.raise(effect);
        let verdict = call.exchange.judge(attempt, self.servers[server], reply);
        let begun = match &verdict {
            Verdict::Forgotten { begun, .. } => Some(*begun),
            _ => None,
        };
        let end = call.attempts.as_mut().and_then(|attempts| {
            let signs = |server: usize| signs(&self.links[server], &call.flights, server);
            let (health, random) = (&mut self.health, &mut self.random);
            attempts.answered(now, server, verdict, signs, health, random)
        });
        match end {
            Some(result) => match (result, begun) {
                (Err(error), Some(begun)) => self.forgotten(now, id, call, error, begun),
                (result, _) => self.end(now, id, call, result),
            },
            None => {
                self.calls.insert(id, call);
                self.look_after(now, id);
            }
        }
    }

    /// The servers do not know the write's client any more.
    fn forgotten(
        &mut self,
        now: Duration,
        id: CallId,
        mut call: Call,
        error: ClientError,
        begun: Timestamp,
    ) {
        if let Some(identity) = call.identity {
            self.sequencer.forgotten(identity, begun);
        }
        let effect = self.withdraw(&mut call, id);
        let error = error.of_write(effect);
        if error.effect() > Effect::NotDone || call.is_renewed {
            return self.end(now, id, call, Err(error));
        }
        // It was never applied under this identity, so it is safe under another.
        self.make_room(&mut call);
        call.is_renewed = true;
        call.claims.clear();
        let deadline = call.spec.deadline;
        self.set_timer(id, &mut call, deadline);
        self.calls.insert(id, call);
        // Before all writes that have begun later.
        self.places.wait(id, true);
        self.admit(now);
    }

    /// A call is over. Whoever was sent a request that is not answered may still carry it out.
    fn end(&mut self, now: Duration, id: CallId, mut call: Call, result: Result<(), ClientError>) {
        let effect = self.withdraw(&mut call, id);
        let result = result.map_err(|error| error.of_write(effect));
        let exchange = self.release(id, call);
        self.outputs.push_back(Output::End { exchange, result });
        self.admit(now);
    }

    /// Gives up the attempts of a call that are under way. Returns what is known of its effect
    /// then.
    fn withdraw(&mut self, call: &mut Call, id: CallId) -> Option<Effect> {
        for Flight { server, attempt, request_id, .. } in std::mem::take(&mut call.flights) {
            match request_id {
                Some(request_id) => {
                    call.raise(Effect::MayBeDone);
                    call.exchange.forget(attempt);
                    self.links[server].forget(request_id, call.spec.is_write);
                }
                None => self.links[server].forget_early(Waiter::Call { call: id, attempt }),
            }
        }
        call.effect
    }

    /// Takes back all that a call has of the core, which forgets it.
    fn release(&mut self, id: CallId, mut call: Call) -> Box<dyn Exchange> {
        self.withdraw(&mut call, id);
        match call.attempts {
            Some(_) => self.make_room(&mut call),
            None => self.places.leave(id, call.spec.is_write),
        }
        self.timers.remove(&(call.timer, id));
        call.exchange
    }

    /// A call is not under way any more.
    fn make_room(&mut self, call: &mut Call) {
        if let Some(attempts) = call.attempts.take() {
            attempts.ended(&mut self.health);
        }
        self.places.give_back(call.spec.is_write, call.spec.request_bytes);
        if let Some(identity) = call.identity.take() {
            self.sequencer.finish(identity);
        }
    }

    fn set_timer(&mut self, id: CallId, call: &mut Call, timer: Duration) {
        if call.timer != timer {
            self.timers.remove(&(call.timer, id));
            call.timer = timer;
        }
        self.timers.insert((timer, id));
    }

    // ---- links --------------------------------------------------------------------------------

    fn send(&mut self, server: usize, message: Message) {
        self.outputs.push_back(Output::Send { server, message });
    }

    /// Sends what is no request, unless so much waits already that the server takes nothing.
    fn send_small(&mut self, server: usize, message: Message) {
        let link = &mut self.links[server];
        if link.takes_small() {
            link.set_queued_bytes(link.queued_bytes() + SMALL_BYTES);
            self.send(server, message);
        }
    }

    fn ping(&mut self, server: usize) {
        let nonce = self.links[server].nonce();
        self.send_small(server, Message::Ping { nonce });
    }

    /// How much waits for a server, and for all of them.
    fn room(&self, server: usize) -> Room {
        let queued_bytes = self.links[server].queued_bytes();
        Room { queued_bytes, in_all: self.links.iter().map(Link::queued_bytes).sum() }
    }

    /// Lets those requests leave for which there is room by now.
    fn let_leave(&mut self, now: Duration, server: usize) {
        loop {
            let room = self.room(server);
            match self.links[server].take_early(|bytes| room.takes(bytes)) {
                None => return,
                Some(Waiter::Probe) => self.ask_probe(now, server),
                Some(Waiter::Call { call: id, attempt }) => {
                    let Some(mut call) = self.calls.remove(&id) else { continue };
                    self.leave(now, id, &mut call, attempt);
                    self.calls.insert(id, call);
                    self.look_after(now, id);
                }
            }
        }
    }

    fn dial(&mut self, now: Duration, server: usize) {
        if self.links[server].is_closed() {
            self.links[server].dial(now + self.timing.connect_timeout);
            self.outputs.push_back(Output::Dial(server));
        }
    }

    /// The first message of a server.
    fn greeted(&mut self, now: Duration, server: usize, message: Message) -> Result<(), Failure> {
        let welcome = greeting::welcomed(message)?;
        if let Some(known) = self.cluster.filter(|known| *known != welcome.cluster) {
            let other = welcome.cluster;
            let reason = format!("it belongs to group {other}, the others to {known}");
            return Err(Failure::new(reason));
        }
        self.cluster = Some(welcome.cluster);
        self.met.get_or_insert(welcome.applied_timestamp);
        self.outputs.push_back(Output::Greeted(server));
        self.links[server].open(now);
        self.let_leave(now, server);
        Ok(())
    }

    /// A message of a server that has greeted.
    fn message(&mut self, now: Duration, server: usize, message: Message) -> Result<(), Failure> {
        match message {
            Message::Reply { id, body } => {
                let owed = self.links[server].answered(id).map_err(|()| {
                    Failure::new("the server answered a request that was never made")
                })?;
                match owed {
                    Owed::To(Waiter::Call { call, attempt }) => {
                        self.replied(now, call, attempt, body);
                    }
                    Owed::To(Waiter::Probe) => self.probed(now, server, &body),
                    Owed::LateWrite => self.health.answered_write(now, server, false),
                    Owed::ToNobody => {}
                }
                Ok(())
            }
            Message::Ping { nonce } => {
                self.send_small(server, Message::Pong { nonce });
                Ok(())
            }
            Message::Pong { nonce } => {
                self.links[server].ponged(nonce);
                Ok(())
            }
            Message::Refused { reason } => Err(greeting::refused(&reason)),
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::ShareWelcome { .. }
            | Message::Request { .. }
            | Message::Watched { .. }
            | Message::WatchProgress { .. }
            | Message::WatchCredit { .. }
            | Message::Server(_)
            | Message::Registry { .. }
            | Message::RegistryReply { .. }
            | Message::Share { .. }
            | Message::ShareReply { .. } => {
                Err(Failure::new("the server sent a message that no client expects"))
            }
        }
    }

    /// Closes a connection, of which the server may not know yet.
    fn give_up(&mut self, now: Duration, server: usize, failure: Failure) {
        self.outputs.push_back(Output::Close(server));
        self.fail_link(now, server, failure);
    }

    /// A connection is gone: whoever waited on it is told.
    fn fail_link(&mut self, now: Duration, server: usize, failure: Failure) {
        let heard = self.links[server].heard();
        for (waiter, has_left) in self.links[server].close() {
            let Waiter::Call { call: id, attempt } = waiter else { continue };
            let Some(mut call) = self.calls.remove(&id) else { continue };
            let Some(flight) = call.take_flight(attempt) else {
                self.calls.insert(id, call);
                continue;
            };
            if has_left {
                call.raise(Effect::MayBeDone);
                call.exchange.forget(attempt);
            }
            if failure.ended && flight.was_kept {
                // Servers close idle connections, which says nothing about their health: the
                // request goes on a new one.
                self.attempt(now, id, &mut call, server, None, false);
            } else if let Some(attempts) = &mut call.attempts {
                let reason = failure.reason.clone();
                let (health, random) = (&mut self.health, &mut self.random);
                attempts.broke(now, server, reason, heard, health, random);
            }
            self.calls.insert(id, call);
            self.look_after(now, id);
        }
    }

    /// Asks an unhealthy server, if one is due, whether it has a leader to follow by now.
    fn probe(&mut self, now: Duration) {
        if self.is_idle() {
            return;
        }
        while let Some(server) = self.health.take_probe(now, &mut self.random) {
            if self.links[server].is_open() {
                self.ask_probe(now, server);
            } else {
                self.links[server].forget_early(Waiter::Probe);
                let early = Early { waiter: Waiter::Probe, is_write: false, bytes: 0 };
                self.links[server].hold(now, early);
                self.dial(now, server);
            }
        }
    }

    fn ask_probe(&mut self, now: Duration, server: usize) {
        // A server that owes one answer like that owes it also to those who ask once more.
        if self.links[server].is_probed() {
            return;
        }
        let id = self.links[server].issue(now, Waiter::Probe, SMALL_BYTES);
        self.send(server, Message::Request { id, body: Request::Status });
    }

    fn probed(&mut self, now: Duration, server: usize, reply: &Reply) {
        let is_useful = match reply {
            Reply::StatusOk(status) => status.leader.is_some(),
            Reply::Error(error) => matches!(error.code, ErrorCode::Busy { .. }),
            _ => false,
        };
        if is_useful {
            self.health.recovered(now, server);
        }
    }
}

#[cfg(test)]
impl Core {
    /// What must hold between any two inputs.
    pub(super) fn check(&self) {
        for is_write in [true, false] {
            let alike = self.calls.iter().filter(|(_, call)| call.spec.is_write == is_write);
            let (begun, waiting): (Vec<_>, Vec<_>) =
                alike.partition(|(_, call)| call.attempts.is_some());
            let begun: Vec<usize> =
                begun.into_iter().map(|(_, call)| call.spec.request_bytes).collect();
            let waiting = waiting.into_iter().map(|(id, _)| *id).collect();
            self.places.check(is_write, &waiting, &begun);
        }
        assert_eq!(self.timers.len(), self.calls.len(), "each call is looked at again");
        for call in self.calls.values() {
            assert!(call.flights.len() <= self.servers.len(), "one attempt a server");
            assert_eq!(call.identity.is_some(), call.spec.is_write && call.attempts.is_some());
        }
        let flights: usize = self.calls.values().map(|call| call.flights.len()).sum();
        let waiters: usize = self.links.iter().map(Link::waiting_calls).sum();
        assert_eq!(flights, waiters, "who waits on a link is an attempt of a call");
    }
}

#[cfg(test)]
mod tests;
