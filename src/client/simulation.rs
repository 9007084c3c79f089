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
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::core::{Core, CoreConfig, Loss, Output};
use super::driver::{Command, Driver, Inbox};
use super::submit::Gate;
use super::*;
use crate::limits::CLIENT_MUTE_TIMEOUT;
use crate::model::{
    ClientId, ClusterId, NodeId, OpResult, Put, ReadView, RequestId, Timestamp, Version,
    WriteAnswer, WriteOp,
};
use crate::wire::codec;
use crate::wire::message::{
    ErrorCode, ErrorReply, GetRequest, Message, PROTOCOL_VERSION, ReadAt, Reply, Request, Welcome,
    WriteRequest,
};

const MS: Duration = Duration::from_millis(1);
/// One way between a client and a server.
const TRIP: Duration = Duration::from_micros(100);
const FRAME_BYTES_MAX: usize = 1 << 20;
/// The whole time of most calls.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// Is stopped: connections are made by its system, and what comes waits.
    Frozen,
    /// Is down, so that connections are refused.
    Down,
    /// Answers after this long, and PING at once.
    Slow(Duration),
    /// Applies nothing more, and says so of what it has not applied.
    Behind,
    /// Is cut off from the others, and says so after some time.
    CutOff,
    /// Has too much to do, and says for how many milliseconds.
    Busy(u32),
    /// Does what it is asked, and answers with a reply of another kind.
    WrongKind,
    /// Answers what it was not asked.
    WrongId,
    /// Ends each connection on which it is asked for something, which it does or does not do.
    Closing,
    /// Answers nothing but PING, and does what it is asked or does not.
    Mute,
    /// Says each answer twice, one after the other.
    Repeating,
    /// Does what it is asked, and greets once more before it answers.
    Regreeting,
    /// Answers reads with a value that is older than any other. No random test has it: nobody can
    /// tell of a key that is not remembered.
    Stale,
}

use Mood::*;

const MOODS: [Mood; 14] = [
    Well,
    Frozen,
    Down,
    Slow(Duration::from_millis(200)),
    Behind,
    CutOff,
    Busy(5),
    Busy(u32::MAX),
    WrongKind,
    WrongId,
    Closing,
    Mute,
    Repeating,
    Regreeting,
];

struct Server {
    mood: Mood,
    /// The number of its present connection.
    link: Option<u64>,
    /// What has come while it was frozen.
    held: Vec<(u64, Message)>,
    /// How many entries of the log it has applied.
    applied: usize,
}

/// A write that the group has ordered.
struct Entry {
    timestamp: Timestamp,
    key: Bytes,
    value: Option<Bytes>,
}

/// What all servers together have.
#[derive(Default)]
struct Store {
    log: Vec<Entry>,
    /// By key, the places of its entries in the log.
    of_key: HashMap<Bytes, Vec<usize>>,
    /// The timestamp of each write that sessions remember.
    sessions: HashMap<(ClientId, u64), Timestamp>,
    known: HashSet<ClientId>,
    /// When sessions were last dropped.
    forgotten_at: Timestamp,
}

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
    inbox: Arc<Inbox>,
    client: Client,
    servers: Vec<Server>,
    store: Store,
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
        let inner = Inner {
            driver,
            servers,
            request_timeout: load.timeout,
            submits: Arc::new(Gate::new(1)),
            // Few keys, so that they are forgotten.
            seen: Arc::new(Mutex::new(Seen::new(causality, 4, None))),
        };
        let server = |mood: &Mood| Server { mood: *mood, link: None, held: Vec::new(), applied: 0 };
        let mut world = World {
            seed,
            random: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            now_us,
            core,
            inbox,
            client: Client { inner: Arc::new(inner), until: None },
            servers: moods.iter().map(server).collect(),
            store: Store::default(),
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

    fn jittered(&mut self, delay: Duration) -> Duration {
        delay.mul_f64(self.random.random_range(0.5..1.5))
    }

    fn timestamp(&self) -> Timestamp {
        let last = self.store.log.last().map_or(0, |entry| entry.timestamp.0);
        Timestamp((1_000_000 + self.now.as_micros() as i64).max(last + 1))
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
            Event::Blackout { server } => self.black.extend(self.servers[server].link),
            Event::Dialled { server, link } => {
                if self.servers[server].link != Some(link) {
                    return;
                }
                match self.servers[server].mood {
                    Down => {
                        self.servers[server].link = None;
                        let loss =
                            Loss::Broken { reason: "connection refused".to_owned(), ended: false };
                        self.core.lost(now, server, loss);
                    }
                    _ => self.core.connected(server),
                }
            }
            Event::ToServer { server, link, message } => {
                if self.servers[server].link == Some(link) {
                    self.serve(server, link, message);
                }
            }
            Event::ToClient { server, link, message } => {
                if self.servers[server].link == Some(link) {
                    let mut frame = Vec::new();
                    codec::encode(&message, FRAME_BYTES_MAX, &mut frame).unwrap();
                    self.core.frame(now, server, &frame[4..]);
                }
            }
            Event::Ended { server, link } => {
                if self.servers[server].link == Some(link) {
                    self.servers[server].link = None;
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
                self.store.forgotten_at = self.timestamp();
                self.store.sessions.clear();
                self.store.known.clear();
            }
        }
    }

    fn change(&mut self, server: usize, mood: Mood) {
        self.servers[server].mood = mood;
        if mood == Down {
            if let Some(link) = self.servers[server].link {
                self.after(TRIP, Event::Ended { server, link });
            }
            self.servers[server].held.clear();
        } else if mood != Frozen {
            for (link, message) in std::mem::take(&mut self.servers[server].held) {
                if self.servers[server].link == Some(link) {
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
                command.perform(&mut self.core, self.now);
            }
            for server in 0..self.servers.len() {
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
                assert_eq!(self.servers[server].link, None, "it has a connection");
                self.links_made += 1;
                let link = self.links_made;
                self.servers[server].link = Some(link);
                self.after(2 * TRIP, Event::Dialled { server, link });
            }
            Output::Send { server, message } => {
                self.requests_sent += u64::from(matches!(message, Message::Request { .. }));
                if let Message::Request { body: Request::Write(write), .. } = &message {
                    self.is_sent(write);
                }
                if let Some(link) = self.servers[server].link {
                    self.after(TRIP, Event::ToServer { server, link, message });
                }
            }
            Output::Close(server) => self.servers[server].link = None,
            Output::Greeted(_) | Output::Provoke(_) => {}
            Output::PassedOver { report, failure } => report(failure),
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
        let delay = self.jittered(TRIP);
        let mood = self.servers[server].mood;
        match (mood, message) {
            (Down, _) => {}
            (Frozen, message) => self.servers[server].held.push((link, message)),
            (_, Message::Hello(_)) => {
                let message = self.welcome(server);
                self.after(delay, Event::ToClient { server, link, message });
            }
            (_, Message::Ping { nonce }) => {
                self.after(
                    delay,
                    Event::ToClient { server, link, message: Message::Pong { nonce } },
                );
            }
            (Closing | Mute, Message::Request { body, .. }) => {
                if self.random.random_ratio(1, 2) {
                    self.answer(server, body);
                }
                if mood == Closing {
                    self.after(delay, Event::Ended { server, link });
                }
            }
            (_, Message::Request { id, body }) => {
                let (delay, body) = match mood {
                    Slow(slow) => (self.jittered(slow), self.answer(server, body)),
                    CutOff => {
                        let code = ErrorCode::NoMajority;
                        (50 * MS, Reply::Error(ErrorReply::not_done(code, "1 of 3".to_owned())))
                    }
                    Busy(retry_after_ms) => {
                        let code = ErrorCode::Busy { retry_after_ms };
                        (delay, Reply::Error(ErrorReply::not_done(code, "full".to_owned())))
                    }
                    WrongKind => {
                        self.answer(server, body);
                        let (rows, view) = (Vec::new(), ReadView::as_of(Timestamp(1)));
                        (delay, Reply::PageOk { rows, view, next: None })
                    }
                    Stale if matches!(body, Request::Get(_)) => {
                        let (timestamp, value) = (Timestamp(1), Bytes::from("old"));
                        let found = Some(Version { timestamp, value });
                        (delay, Reply::GetOk { found, as_of: timestamp })
                    }
                    _ => (delay, self.answer(server, body)),
                };
                let id = if mood == WrongId { id + 1000 } else { id };
                let message = Message::Reply { id, body };
                let before = match mood {
                    Repeating => Some(message.clone()),
                    Regreeting => Some(self.welcome(server)),
                    _ => None,
                };
                for message in before.into_iter().chain([message]) {
                    self.after(delay, Event::ToClient { server, link, message });
                }
            }
            (_, Message::Pong { .. }) => {}
            (_, other) => panic!("a client says {other:?}"),
        }
    }

    fn welcome(&self, server: usize) -> Message {
        let applied = self.store.log[..self.servers[server].applied].last();
        Message::Welcome(Welcome {
            protocol: PROTOCOL_VERSION,
            cluster: ClusterId(7),
            node: NodeId(1 + server as u64),
            incarnation: 1,
            last_index: 0,
            term: 1,
            first_leader: None,
            applied_timestamp: applied.map(|entry| entry.timestamp).unwrap_or_default(),
        })
    }

    fn answer(&mut self, server: usize, request: Request) -> Reply {
        if self.servers[server].mood != Behind {
            // It may be a little behind.
            let behind = if self.random.random_ratio(1, 4) { 1 } else { 0 };
            let newest = self.store.log.len().saturating_sub(behind);
            self.servers[server].applied = newest.max(self.servers[server].applied);
        }
        match request {
            Request::Write(write) => self.write(write),
            Request::Get(get) => self.get(server, &get),
            Request::Status => {
                // Of use is whoever says that it is busy, too; that needs no status to be made up.
                let code = ErrorCode::Busy { retry_after_ms: 5 };
                Reply::Error(ErrorReply::not_done(code, "here".to_owned()))
            }
            Request::Page(_) => panic!("nobody asks for pages here"),
        }
    }

    fn write(&mut self, write: WriteRequest) -> Reply {
        let WriteRequest { request, op, .. } = write;
        let (client, sequence) = (request.client, request.sequence);
        let timestamp = self.timestamp();
        let known = self.store.sessions.get(&(client, sequence)).copied();
        let is_unknown =
            !self.store.known.contains(&client) && request.begun < self.store.forgotten_at;
        if known.is_none() && is_unknown {
            let code = ErrorCode::UnknownSession { begin_anew_at: timestamp };
            return Reply::Error(ErrorReply::not_done(code, "who?".to_owned()));
        }
        let timestamp = known.unwrap_or(timestamp);
        if known.is_none() {
            self.store.known.insert(client);
            self.store.sessions.insert((client, sequence), timestamp);
            let (key, value) = match &op {
                WriteOp::Put(Put { key, value, .. }) => (key.clone(), Some(value.clone())),
                _ => (Bytes::new(), None),
            };
            self.store.of_key.entry(key.clone()).or_default().push(self.store.log.len());
            self.store.log.push(Entry { timestamp, key, value });
        }
        Reply::WriteOk(WriteAnswer { timestamp, result: OpResult::Done, previous: None })
    }

    fn get(&self, server: usize, get: &GetRequest) -> Reply {
        let log = match get.linearizable {
            true => &self.store.log[..],
            false => &self.store.log[..self.servers[server].applied],
        };
        let as_of = log.last().map(|entry| entry.timestamp).unwrap_or_default();
        let (at, seen, wanted) = match get.read_at {
            ReadAt::Newest { seen } => (Timestamp(i64::MAX), seen, get.session),
            ReadAt::Version(at) => (at, None, get.session.max(Some(at))),
        };
        let of_key = self.store.of_key.get(&get.key).map_or(&[][..], |places| &places[..]);
        let version = of_key.iter().rev().filter_map(|place| log.get(*place));
        let version = version.into_iter().find(|entry| entry.timestamp <= at);
        let timestamp = version.map(|entry| entry.timestamp);
        if Some(as_of) < wanted || timestamp < seen {
            return Reply::TryOtherServerOrLater { timestamp, applied: as_of };
        }
        let found = version.and_then(|Entry { timestamp, value, .. }| {
            Some(Version { timestamp: *timestamp, value: value.clone()? })
        });
        Reply::GetOk { found, as_of }
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
                let at = is_as_of.then(|| self.timestamp());
                Box::pin(async move {
                    let options = ReadOptions { at, linearizable };
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
                let log = &self.store.log;
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
        for server in 0..self.servers.len() {
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
        for value in self.store.log.iter().filter_map(|entry| entry.value.as_ref()) {
            *applied.entry(value).or_default() += 1;
        }
        assert!(applied.values().all(|times| *times == 1), "a write was applied twice");
        assert!(self.acknowledged.iter().all(|value| applied.contains_key(value)));
        let undone = self.without_effect.iter().find(|value| applied.contains_key(*value));
        assert_eq!(undone, None, "a write had an effect that was said to have none");
        assert!(self.core.is_idle());
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("CLIENT_SEED") {
        Ok(seed) => vec![seed.parse().expect("CLIENT_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

/// Says which seed has failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay it with CLIENT_SEED={}", self.0);
        }
    }
}

#[test]
fn whatever_servers_do_no_call_reads_backwards_or_lasts_too_long_and_no_write_is_applied_twice() {
    for seed in seeds(150) {
        let _named = Named(seed);
        let causality = if seed % 2 == 0 { Causality::Session } else { Causality::PerKey };
        let pause = Duration::from_millis(2);
        let timeout = TIMEOUT;
        let load = Load {
            calls: 300,
            callers: 6,
            writes: 40,
            given_up: 10,
            as_of: 12,
            timeout,
            pause,
            keys: 7,
        };
        let mut world = World::new(seed, &[Well; 3], causality, load);
        assert_eq!(world.seed, seed);
        for _ in 0..30 {
            let at = Duration::from_micros(world.random.random_range(0..8_000_000));
            let server = world.random.random_range(0..3);
            let mood = *MOODS.choose(&mut world.random).expect("there are some");
            world.after(at, Event::Change { server, mood });
            // Most of them do not last.
            let back = at + Duration::from_micros(world.random.random_range(0..2_000_000));
            world.after(back, Event::Change { server, mood: Well });
        }
        for _ in 0..2 {
            let at = Duration::from_micros(world.random.random_range(0..6_000_000));
            world.after(at, Event::Forget);
            let at = Duration::from_micros(world.random.random_range(0..6_000_000));
            let server = world.random.random_range(0..3);
            world.after(at, Event::Blackout { server });
        }
        world.run(Duration::from_secs(600));
        assert_eq!(world.calls_ended, load.calls);
        world.check_end();
    }
}

/// How many of these calls have been answered within ten seconds, by three servers of which the
/// first, which leads, has been in this mood since `settling` before.
fn answered_beside(mood: Mood, settling: Duration, seed: u64, writes: u32) -> u64 {
    let (calls, timeout, pause) = (u64::MAX, 4 * CLIENT_MUTE_TIMEOUT, 20 * MS);
    let load =
        Load { calls, callers: 16, writes, given_up: 0, as_of: 0, timeout, pause, keys: 1000 };
    let mut world = World::new(seed, &[Well; 3], Causality::Session, load);
    // Writes go to the first one.
    world.core.hint_leader(Some(0));
    world.run(Duration::from_secs(1));
    world.change(0, mood);
    world.run(Duration::from_secs(1) + settling);
    let before = world.calls_ended;
    world.run(Duration::from_secs(11) + settling);
    if mood == Mute {
        assert_eq!(world.calls_failed, 0, "another server has answered in its place");
    }
    world.calls_ended - before - world.calls_failed
}

#[test]
fn beside_one_server_of_three_that_is_of_no_use_nine_calls_of_ten_are_answered_as_before() {
    for seed in seeds(1) {
        let _named = Named(seed);
        for writes in [0, 100] {
            let well = answered_beside(Well, Duration::ZERO, seed, writes);
            for mood in MOODS {
                let settling = match mood {
                    // A slow server is well: its answers are waited for, and reads hedged.
                    Slow(_) => continue,
                    // One that only answers PING is not told from one that is slow any sooner.
                    Mute => 2 * CLIENT_MUTE_TIMEOUT,
                    _ => Duration::ZERO,
                };
                let answered = answered_beside(mood, settling, seed, writes);
                assert!(
                    answered * 10 >= well * 9,
                    "{mood:?}, {writes} % writes: {answered} of {well}"
                );
            }
        }
    }
}

#[test]
fn a_connection_that_is_lost_without_a_word_is_given_up_however_short_the_calls_are() {
    for (timeout, callers) in [(300 * MS, 1), (1000 * MS, 1), (1000 * MS, 4)] {
        for servers in [1, 3] {
            for writes in [0, 100] {
                let (calls, pause) = (u64::MAX, 20 * MS);
                let load = Load {
                    calls,
                    callers,
                    writes,
                    given_up: 0,
                    as_of: 0,
                    timeout,
                    pause,
                    keys: 10,
                };
                let moods = vec![Well; servers];
                let mut world = World::new(1, &moods, Causality::Session, load);
                let second = Duration::from_secs(1);
                world.run(second);
                for server in 0..servers {
                    world.after(Duration::ZERO, Event::Blackout { server });
                }
                // One after the other may be found out.
                let silence = Timing::default().silence_timeout;
                world.run(second + servers as u32 * silence + timeout);
                let (ended, failed) = (world.calls_ended, world.calls_failed);
                world.run(world.now + 2 * second);
                assert!(world.calls_ended > ended + 10, "{timeout:?}, {servers} servers");
                assert_eq!(world.calls_failed, failed, "{timeout:?}, {servers} servers");
            }
        }
    }
}

#[test]
fn a_read_is_not_held_up_by_one_slow_server_when_the_others_are_behind_for_a_moment() {
    for mood in [Behind, Busy(5), Busy(300)] {
        for seed in seeds(4) {
            let _named = Named(seed);
            let (calls, timeout, pause) = (u64::MAX, TIMEOUT, 20 * MS);
            let load = Load {
                calls,
                callers: 8,
                writes: 0,
                given_up: 0,
                as_of: 0,
                timeout,
                pause,
                keys: 3,
            };
            let mut world = World::new(seed, &[Well; 3], Causality::Session, load);
            let second = Duration::from_secs(1);
            world.run(second);
            world.change(0, Mute);
            // What the client has seen elsewhere, the others have not applied.
            let (timestamp, key) = (world.timestamp(), Bytes::from("elsewhere"));
            world.store.log.push(Entry { timestamp, key, value: None });
            lock(&world.client.inner.seen).raise_session(Some(timestamp));
            for server in [1, 2] {
                world.change(server, mood);
                world.after(100 * MS, Event::Change { server, mood: Well });
            }
            world.run(2 * second + TIMEOUT);
            assert_eq!(world.calls_failed, 0);
            assert!(world.longest < second, "{mood:?}: a read took {:?}", world.longest);
        }
    }
}

#[test]
fn a_server_that_comes_back_is_asked_again() {
    for mood in MOODS.into_iter().filter(|mood| *mood != Well) {
        for seed in seeds(2) {
            let _named = Named(seed);
            let (calls, timeout, pause) = (u64::MAX, TIMEOUT, 20 * MS);
            let load = Load {
                calls,
                callers: 4,
                writes: 30,
                given_up: 0,
                as_of: 0,
                timeout,
                pause,
                keys: 10,
            };
            let mut world = World::new(seed, &[mood, Well, Well], Causality::Session, load);
            world.run(Duration::from_secs(5));
            world.change(0, Well);
            world.run(Duration::from_secs(10));
            let before = world.servers[0].applied;
            world.run(Duration::from_secs(11));
            assert!(world.servers[0].applied > before, "{mood:?}: it is not asked any more");
        }
    }
}

#[test]
fn more_calls_than_there_is_room_for_wait_and_end_by_their_deadlines() {
    for mood in [Well, Frozen, Down] {
        for seed in seeds(1) {
            let _named = Named(seed);
            let callers = limits::CLIENT_REQUESTS_MAX + 200;
            let (calls, timeout, pause) = (2 * callers as u64, TIMEOUT, MS);
            let load = Load {
                calls,
                callers,
                writes: 50,
                given_up: 5,
                as_of: 12,
                timeout,
                pause,
                keys: 100,
            };
            let mut world = World::new(seed, &[mood; 3], Causality::PerKey, load);
            world.run(Duration::from_secs(60));
            assert_eq!(world.calls_ended, calls);
            world.check_end();
        }
    }
}

#[test]
fn a_server_that_gives_old_values_is_not_asked_again_and_again() {
    for seed in seeds(5) {
        let _named = Named(seed);
        let (calls, timeout, pause) = (u64::MAX, TIMEOUT, 2 * MS);
        let load =
            Load { calls, callers: 4, writes: 20, given_up: 0, as_of: 0, timeout, pause, keys: 1 };
        let mut world = World::new(seed, &[Stale, Well, Well], Causality::PerKey, load);
        world.run(Duration::from_secs(4));
        let World { calls_ended, calls_failed, requests_sent, .. } = world;
        assert_eq!(calls_failed, 0);
        assert!(requests_sent <= 2 * calls_ended, "{requests_sent} for {calls_ended} calls");
    }
}

/// A copy of the write may have had an effect at a server that is `mood`, whichever way the call
/// comes to its end: at its deadline, or because the servers have forgotten the client.
#[test]
fn what_may_be_done_is_neither_said_to_be_undone_nor_done_again() {
    for mood in [WrongKind, Closing, Mute, Regreeting, Slow(2 * TIMEOUT)] {
        for forgets in [false, true] {
            for seed in seeds(20) {
                let _named = Named(seed);
                let (calls, timeout, pause) = (24, TIMEOUT, 2 * MS);
                let load = Load {
                    calls,
                    callers: 4,
                    writes: 100,
                    given_up: 0,
                    as_of: 0,
                    timeout,
                    pause,
                    keys: 5,
                };
                let others = if forgets { Well } else { mood };
                let mut world = World::new(seed, &[mood, mood, others], Causality::Session, load);
                if forgets {
                    for at in 1..100 {
                        world.after(at * 50 * MS, Event::Forget);
                    }
                } else {
                    world.after(3 * TIMEOUT, Event::Change { server: 0, mood: Well });
                }
                world.run(Duration::from_secs(120));
                assert_eq!(world.calls_ended, calls);
                world.check_end();
            }
        }
    }
}
