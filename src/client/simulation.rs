//! A client in virtual time, among servers that freeze, lie, are slow, are mute, are behind, repeat
//! themselves, refuse, forget it, and come back.
//!
//! The client is a real one, with its operations and its core; only the thread is replaced by the
//! [`World`], which has the servers, the network and the time. Everything follows from a seed.
//! `CLIENT_SEED=7 cargo test --lib client::simulation` replays one.
//!
//! What must hold:
//! - no call is given a value older than one that any call had been given, or had written, before
//!   it began;
//! - each call ends by its deadline;
//! - a write has one sequence number, no number stands for two writes, and none is sent again that
//!   was said to be answered;
//! - a write that is acknowledged is applied once, and one that is said to have had no effect never
//!   is;
//! - what is under way is bounded, and of what is over nothing is left.

mod servers;
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::servers::{Does, Down, Frozen, Group, Mood, Surroundings, Well};
use super::core::{Core, CoreConfig, Loss, Output};
use super::driver::Driver;
use super::inbox::{Command, Inbox};
use super::submit::Gate;
use super::watch::Multiplexer;
use super::*;
use crate::model::{ClientId, RequestId, Timestamp, WriteOp};
use crate::wire::codec;
use crate::wire::message::{Message, Request, WriteRequest};

const MS: Duration = Duration::from_millis(1);
/// One way between a client and a server.
const TRIP: Duration = Duration::from_micros(100);
const FRAME_BYTES_MAX: usize = 1 << 20;
/// The whole time of most calls.
const TIMEOUT: Duration = Duration::from_secs(5);

enum Event {
    Dialled {
        server: usize,
        link: u64,
    },
    ToServer {
        server: usize,
        link: u64,
        message: Message,
    },
    ToClient {
        server: usize,
        link: u64,
        message: Message,
    },
    Ended {
        server: usize,
        link: u64,
    },
    /// The core has asked to be called.
    Timer,
    Begin {
        caller: usize,
    },
    GiveUp {
        caller: usize,
        number: u64,
    },
    Change {
        server: usize,
        mood: Mood,
    },
    /// The group drops its sessions.
    Forget,
    /// The server's present connection is lost on the way, and neither end is told.
    Blackout {
        server: usize,
    },
}

/// What a call was for, and what came of it.
enum Done {
    Put { value: Bytes, result: Result<PutOk, ClientError> },
    Get { key: Bytes, floor: Option<Timestamp>, result: Result<Got, ClientError> },
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Running {
    number: u64,
    future: Pin<Box<dyn Future<Output = Done>>>,
    woken: Arc<Flag>,
    begun: Duration,
}

/// Who calls, one call after the other.
#[derive(Default)]
struct Caller {
    running: Option<Running>,
}

#[derive(Clone, Copy)]
struct Load {
    calls: u64,
    callers: usize,
    /// Of a hundred calls, how many are writes, and how many are given up.
    writes: u32,
    given_up: u32,
    /// Of a hundred reads, how many are as of a version that may lie in the future: those ask each
    /// server once, a frozen one too, before they write.
    as_of: u32,
    /// The whole time of a call.
    timeout: Duration,
    /// Between two calls of a caller.
    pause: Duration,
    keys: u64,
}

struct World {
    seed: u64,
    random: StdRng,
    now: Duration,
    now_us: Arc<AtomicU64>,
    core: Core,
    /// Nobody watches here: `watch::multiplexer` has a simulation of its own.
    watches: Multiplexer,
    inbox: Arc<Inbox>,
    client: Client,
    group: Group,
    /// By server: the number of its present connection, and what has come while it was frozen.
    links: Vec<Option<u64>>,
    held: Vec<Vec<(u64, Message)>>,
    events: BTreeMap<(Duration, u64), Event>,
    events_made: u64,
    links_made: u64,
    /// Connections on which nothing arrives any more.
    black: HashSet<u64>,
    timer: Option<Duration>,
    load: Load,
    callers: Vec<Caller>,
    calls_begun: u64,
    calls_ended: u64,
    calls_failed: u64,
    /// What the longest call took.
    longest: Duration,
    requests_sent: u64,
    /// By key, the newest version that any call was given or has written.
    newest: HashMap<Bytes, Timestamp>,
    /// Which operation each sequence number stands for.
    sequences: HashMap<(ClientId, u64), WriteOp>,
    answered_below: HashMap<ClientId, u64>,
    /// Values whose write is acknowledged, and values whose write is said to have had no effect.
    acknowledged: HashSet<Bytes>,
    without_effect: HashSet<Bytes>,
}

fn address(server: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1 + server as u16))
}

impl World {
    fn new(seed: u64, moods: &[Mood], causality: Causality, load: Load) -> World {
        let now_us = Arc::new(AtomicU64::new(0));
        let servers: Arc<[SocketAddr]> = (0..moods.len()).map(address).collect();
        let config = CoreConfig { timing: Timing::default(), client: ClientId(seed), seed };
        let core = Core::new(Arc::clone(&servers), config);
        let (driver, inbox) = Driver::simulated(Arc::clone(&servers), config, now_us.clone());
        let totals = Arc::clone(driver.watch_totals());
        let watches = Multiplexer::new(Arc::clone(&servers), config.timing, seed, totals);
        let inner = Inner {
            leases: LeaseKeeper::default(),
            driver,
            servers,
            request_timeout: load.timeout,
            submits: Arc::new(Gate::new(1)),
            // Few keys, so that they are forgotten.
            seen: Arc::new(Mutex::new(Seen::new(causality, 4, None))),
        };
        let mut world = World {
            seed,
            random: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            now_us,
            core,
            watches,
            inbox,
            client: Client { inner: Arc::new(inner), until: None, room: None },
            group: Group::new(moods),
            links: vec![None; moods.len()],
            held: vec![Vec::new(); moods.len()],
            events: BTreeMap::new(),
            events_made: 0,
            links_made: 0,
            black: HashSet::new(),
            timer: None,
            load,
            callers: (0..load.callers).map(|_| Caller::default()).collect(),
            calls_begun: 0,
            calls_ended: 0,
            calls_failed: 0,
            longest: Duration::ZERO,
            requests_sent: 0,
            newest: HashMap::new(),
            sequences: HashMap::new(),
            answered_below: HashMap::new(),
            acknowledged: HashSet::new(),
            without_effect: HashSet::new(),
        };
        for caller in 0..load.callers {
            world.after(Duration::ZERO, Event::Begin { caller });
        }
        world
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.events_made += 1;
        self.events.insert((self.now + delay, self.events_made), event);
    }

    /// Goes on until the calls are over, or the time is.
    fn run(&mut self, until: Duration) {
        while let Some((&(at, number), _)) = self.events.first_key_value() {
            if at > until || (self.calls_ended == self.load.calls && self.core.is_idle()) {
                break;
            }
            assert!(at >= self.now, "time goes back");
            self.now = at;
            self.now_us.store(at.as_micros() as u64, Ordering::Relaxed);
            if let Some(event) = self.events.remove(&(at, number)) {
                self.happens(event);
            }
            self.settle();
        }
    }

    fn happens(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::ToServer { link, .. }
            | Event::ToClient { link, .. }
            | Event::Ended { link, .. }
                if self.black.contains(&link) => {}
            Event::Blackout { server } => self.black.extend(self.links[server]),
            Event::Dialled { server, link } => {
                if self.links[server] != Some(link) {
                    return;
                }
                match self.group.mood(server) {
                    Down => {
                        self.links[server] = None;
                        let loss =
                            Loss::Broken { reason: "connection refused".to_owned(), ended: false };
                        self.core.lost(now, server, loss);
                    }
                    _ => self.core.connected(server),
                }
            }
            Event::ToServer { server, link, message } => {
                if self.links[server] == Some(link) {
                    self.serve(server, link, message);
                }
            }
            Event::ToClient { server, link, message } => {
                if self.links[server] == Some(link) {
                    let mut frame = Vec::new();
                    codec::encode(&message, FRAME_BYTES_MAX, &mut frame).unwrap();
                    self.core.frame(now, server, &frame[4..]);
                }
            }
            Event::Ended { server, link } => {
                if self.links[server] == Some(link) {
                    self.links[server] = None;
                    self.core.lost(now, server, Loss::Ended);
                }
            }
            Event::Timer => self.timer = None,
            Event::Begin { caller } => self.begin(caller),
            Event::GiveUp { caller, number } => {
                let running = &mut self.callers[caller].running;
                if running.take_if(|running| running.number == number).is_some() {
                    self.calls_ended += 1;
                    self.after(self.load.pause, Event::Begin { caller });
                }
            }
            Event::Change { server, mood } => self.change(server, mood),
            Event::Forget => {
                self.group.forget(self.now);
            }
        }
    }

    fn change(&mut self, server: usize, mood: Mood) {
        self.group.set_mood(server, mood);
        if mood == Down {
            if let Some(link) = self.links[server] {
                self.after(TRIP, Event::Ended { server, link });
            }
            self.held[server].clear();
        } else if mood != Frozen {
            for (link, message) in std::mem::take(&mut self.held[server]) {
                if self.links[server] == Some(link) {
                    self.serve(server, link, message);
                }
            }
        }
    }

    /// Lets client and core do what they have to do at this moment.
    fn settle(&mut self) {
        loop {
            let mut commands: Vec<Command> = Vec::new();
            self.inbox.take(&mut commands);
            for command in commands {
                command.perform(&mut self.core, &mut self.watches, self.now);
            }
            for server in 0..self.group.len() {
                // What is sent is taken at once.
                self.core.queued(server, 0);
            }
            self.core.resume(self.now);
            self.core.poll(self.now);
            let mut is_quiet = true;
            while let Some(output) = self.core.take_output() {
                is_quiet = false;
                self.output(output);
            }
            for caller in 0..self.callers.len() {
                is_quiet &= !self.poll(caller);
            }
            if is_quiet {
                break;
            }
        }
        // Looks at every call, so not at each of thousands of events.
        if self.load.callers < 100 || self.events_made.is_multiple_of(500) {
            self.core.check();
        }
        if let Some(at) = self.core.next_at() {
            assert!(at > self.now, "it is to be called at {at:?}, and it is {:?}", self.now);
            if self.timer.is_none_or(|timer| timer > at) {
                self.timer = Some(at);
                self.after(at - self.now, Event::Timer);
            }
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Dial(server) => {
                assert_eq!(self.links[server], None, "it has a connection");
                self.links_made += 1;
                let link = self.links_made;
                self.links[server] = Some(link);
                self.after(2 * TRIP, Event::Dialled { server, link });
            }
            Output::Send { server, message } => {
                self.requests_sent += u64::from(matches!(message, Message::Request { .. }));
                if let Message::Request { body: Request::Write(write), .. } = &message {
                    self.is_sent(write);
                }
                if let Some(link) = self.links[server] {
                    self.after(TRIP, Event::ToServer { server, link, message });
                }
            }
            Output::Close(server) => self.links[server] = None,
            Output::Greeted(_) | Output::Provoke(_) => {}
            Output::PassedOver { report, failure } => report(failure),
            Output::Resume(promise) => promise.keep(Ok(())),
            Output::End { exchange, result } => exchange.end(result),
        }
    }

    /// A write leaves the client.
    fn is_sent(&mut self, write: &WriteRequest) {
        let RequestId { client, sequence, answered_below, .. } = write.request;
        let before = self.sequences.insert((client, sequence), write.op.clone());
        assert!(before.is_none_or(|op| op == write.op), "sequence {sequence} has two writes");
        let answered = self.answered_below.entry(client).or_default();
        assert!(sequence >= *answered, "{sequence} is sent, and what is below {answered} answered");
        *answered = answered_below.max(*answered);
    }

    /// A server has something from the client.
    fn serve(&mut self, server: usize, link: u64, message: Message) {
        if self.group.mood(server) == Frozen {
            return self.held[server].push((link, message));
        }
        let mut surroundings = Surroundings { now: self.now, random: &mut self.random };
        for (delay, does) in self.group.take(&mut surroundings, server, message) {
            self.after(
                delay,
                match does {
                    Does::Says(message) => Event::ToClient { server, link, message: *message },
                    Does::Ends => Event::Ended { server, link },
                },
            );
        }
    }

    /// A caller's next call.
    fn begin(&mut self, caller: usize) {
        if self.calls_begun == self.load.calls {
            return;
        }
        self.calls_begun += 1;
        let number = self.calls_begun;
        let key = Bytes::from(format!("k{}", self.random.random_range(0..self.load.keys)));
        let client = self.client.clone();
        let future: Pin<Box<dyn Future<Output = Done>>> =
            if self.random.random_range(0..100) < self.load.writes {
                let value = Bytes::from(format!("v{number}"));
                Box::pin(async move {
                    let retry = Retry::UntilDeadline;
                    let result = client.put_with(key, value.clone(), retry).await;
                    Done::Put { value, result }
                })
            } else {
                let floor = self.newest.get(&key).copied();
                let linearizable = self.random.random_ratio(1, 3);
                let is_as_of = self.random.random_range(0..100) < self.load.as_of;
                let at = is_as_of.then(|| self.group.timestamp(self.now));
                Box::pin(async move {
                    let options = ReadOptions { at, linearizable, facts: false };
                    let result = client.get_as(key.clone(), options).await;
                    Done::Get { key, floor, result }
                })
            };
        if self.random.random_range(0..100) < self.load.given_up {
            let delay = Duration::from_micros(self.random.random_range(0..200_000));
            self.after(delay, Event::GiveUp { caller, number });
        }
        let woken = Arc::new(Flag(AtomicBool::new(true)));
        let running = Running { number, future, woken, begun: self.now };
        self.callers[caller].running = Some(running);
    }

    /// Whether the caller's call has gone on.
    fn poll(&mut self, caller: usize) -> bool {
        let Some(running) = &mut self.callers[caller].running else { return false };
        if !running.woken.0.swap(false, Ordering::Relaxed) {
            return false;
        }
        let waker = Waker::from(Arc::clone(&running.woken));
        if let Poll::Ready(done) = running.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            let took = self.now - running.begun;
            assert!(took <= self.load.timeout, "a call took {took:?}");
            self.longest = self.longest.max(took);
            self.callers[caller].running = None;
            self.calls_ended += 1;
            self.ended(done);
            self.after(self.load.pause, Event::Begin { caller });
        }
        true
    }

    fn ended(&mut self, done: Done) {
        match done {
            Done::Put { value, result: Ok(done) } => {
                let log = self.group.log();
                let at = log.binary_search_by_key(&done.timestamp, |entry| entry.timestamp);
                let entry = &log[at.expect("an acknowledged write is in the log")];
                assert_eq!(entry.value.as_ref(), Some(&value));
                let newest = self.newest.entry(entry.key.clone()).or_default();
                *newest = done.timestamp.max(*newest);
                self.acknowledged.insert(value);
            }
            Done::Put { value, result: Err(error) } => {
                self.calls_failed += 1;
                if error.effect() == Effect::NotDone {
                    self.without_effect.insert(value);
                }
            }
            Done::Get { key, floor, result: Ok(got) } => {
                assert!(got.timestamp() >= floor, "{key:?}: {got:?} is older than {floor:?}");
                if let Some(version) = got.found {
                    let newest = self.newest.entry(key).or_default();
                    *newest = version.timestamp.max(*newest);
                }
            }
            Done::Get { result: Err(_), .. } => self.calls_failed += 1,
        }
    }

    /// What must hold when nothing more is to come.
    fn check_end(&mut self) {
        // Whatever was sent arrives.
        for server in 0..self.group.len() {
            self.change(server, Well);
        }
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at.max(self.now);
            if let Event::ToServer { server, link, message: message @ Message::Request { .. } } =
                event
            {
                self.serve(server, link, message);
            }
        }
        let mut applied: HashMap<&Bytes, usize> = HashMap::new();
        for value in self.group.log().iter().filter_map(|entry| entry.value.as_ref()) {
            *applied.entry(value).or_default() += 1;
        }
        assert!(applied.values().all(|times| *times == 1), "a write was applied twice");
        assert!(self.acknowledged.iter().all(|value| applied.contains_key(value)));
        let undone = self.without_effect.iter().find(|value| applied.contains_key(*value));
        assert_eq!(undone, None, "a write had an effect that was said to have none");
        assert!(self.core.is_idle());
    }
}
