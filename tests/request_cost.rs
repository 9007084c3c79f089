//! Counts the allocations and the instructions of a request on its way through a server, against
//! recorded bounds.
//!
//! Times change with the machine and counts do not: a change that makes every PUT or GET dearer is
//! found here, whatever else runs. The way is the pure one, from a frame's body by way of the core
//! and of the memory table of a store to the answer's frame; what is applied is counted by itself.
//! Left out are sockets and the log.
//!
//! Allocations are counted by the allocator, and compared exactly. Instructions are counted by
//! callgrind, where valgrind is installed: it runs the tests of this file once more, and counts
//! what happens within [`counted`]. They are those of a build for tests, and depend on the
//! compiler, so that a bound leaves a fifth more than was counted.
//!
//! A bound may be lowered whenever the count is lower. Who raises one says why in the commit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::Command as Process;
use std::sync::Arc;
use std::time::Duration;

use acervo::limits::{self, NodeLimits};
use acervo::model::{
    Action, AppliedPoint, AppliedWrite, ClientId, Command, GroupRules, History, LogEntry,
    MachineSummary, NodeId, OpResult, PageOf, Put, Recovered, Release, RequestId, StateLimits,
    Timestamp, WriteAnswer, WriteFate, WriteOp, WriteOutcome,
};
use acervo::node::config::{AckPolicy, LeaseNotes, NodeConfig};
use acervo::node::core::Node;
use acervo::node::garbage_collection::GarbageCollectionConfig;
use acervo::node::{Input, Now, Output, RequestToken};
use acervo::server::decoding::{DecodedFrame, decode};
use acervo::server::get::{answer_get, answer_page};
use acervo::storage::apply::StateMachine;
use acervo::storage::reads::{PageLimits, Store};
use acervo::storage::tables::TableEngine;
use acervo::wire::codec;
use acervo::wire::message::{
    GetRequest, Message, PageRequest, PageView, ReadAt, Reply, Request, Role, WriteRequest,
};
use bytes::Bytes;
use tempfile::TempDir;

/// The system's allocator, with a count of each thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may allocate when its count is gone.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

/// An allocator cannot be written without `unsafe`; this one only counts and passes on.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does `work` and adds its allocations to `sum`. Callgrind knows it by its name.
#[inline(never)]
fn counted<T>(sum: &mut u64, work: impl FnOnce() -> T) -> T {
    let before = ALLOCATIONS.get();
    let done = work();
    *sum += ALLOCATIONS.get() - before;
    done
}

/// Compares allocations for one of `requests` with the bound, in hundredths.
fn hold(what: &str, allocations: u64, requests: u64, bound: u64) {
    let each = allocations * 100 / requests;
    println!("{what}: {}.{:02} allocations", each / 100, each % 100);
    assert!(
        each <= bound,
        "{what}: {}.{:02} allocations where {}.{:02} are recorded",
        each / 100,
        each % 100,
        bound / 100,
        bound % 100
    );
}

/// The body of a message's frame, as it comes from a socket.
fn body(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    codec::encode(message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
    frame.split_off(limits::FRAME_HEADER_BYTES)
}

/// The frames that a server has put in its queues, for whom.
#[derive(Default)]
struct Sent {
    to_servers: Vec<(usize, Vec<u8>)>,
    replies: usize,
}

/// One core with what a driver keeps for it.
struct Server {
    node: Node,
    /// What it was told, and is to be handed over next.
    inputs: Vec<Input>,
    applied: AppliedPoint,
    outputs: Vec<Output>,
    /// Allocations of decoding, of the core and of encoding since the count began.
    allocations: u64,
}

/// Three cores that pass frames to each other, with logs that are durable at once.
struct Group {
    servers: Vec<Server>,
    frames: Vec<Vec<(usize, Vec<u8>)>>,
    replies: usize,
    now: Now,
    /// Where what is encoded goes, as in a connection's queue.
    queue: Vec<u8>,
}

const SERVERS: usize = 3;
const LEADER: usize = 0;

impl Group {
    fn new() -> Group {
        let nodes: Vec<NodeId> = (1..=SERVERS as u64).map(NodeId).collect();
        let server = |id: &NodeId| {
            let config = NodeConfig {
                node: *id,
                nodes: nodes.clone(),
                names: Vec::new(),
                first_leader: NodeId(LEADER as u64 + 1),
                ack: AckPolicy::All,
                in_sync_timeout: Duration::from_secs(2),
                stall_timeout: limits::STALL_TIMEOUT,
                election_ticks: Some(15 + id.0 as usize),
                value_bytes_max: limits::VALUE_BYTES_MAX_DEFAULT,
                replication_delay: Duration::ZERO,
                console: false,
                garbage_collection: GarbageCollectionConfig::new(History::All),
                limits: NodeLimits::default(),
                state_hash_every: limits::STATE_HASH_EVERY,
                release: Release::default(),
                level_settled: limits::LEVEL_SETTLED,
                lease_notes: LeaseNotes::DEFAULT,
                cut_off_timeout: limits::CUT_OFF_TIMEOUT,
                first_question: id.0,
            };
            Server {
                node: Node::new(config, Recovered::default()).unwrap(),
                inputs: Vec::new(),
                applied: AppliedPoint::default(),
                outputs: Vec::new(),
                allocations: 0,
            }
        };
        let mut group = Group {
            servers: nodes.iter().map(server).collect(),
            frames: vec![Vec::new(); SERVERS],
            replies: 0,
            now: Now { monotonic_us: 1, wall_us: 1_000_000 },
            queue: Vec::new(),
        };
        for at in 0..SERVERS {
            for server in nodes.iter().filter(|node| node.0 as usize != at + 1) {
                let first_leader = Some(NodeId(LEADER as u64 + 1));
                let (server, last_index, term) = (*server, 0, 0);
                let up = Input::LinkUp { server, last_index, term, first_leader };
                group.servers[at].inputs.push(up);
            }
        }
        group.settle();
        while group.servers[LEADER].node.status().role != Role::Leader {
            group.tick();
        }
        group
    }

    fn tick(&mut self) {
        self.now.monotonic_us += 10_000;
        self.servers.iter_mut().for_each(|server| server.inputs.push(Input::Tick));
        self.settle();
    }

    /// Runs all servers until nothing is under way.
    fn settle(&mut self) {
        while self.servers.iter().any(|server| !server.inputs.is_empty())
            || self.frames.iter().any(|frames| !frames.is_empty())
        {
            (0..SERVERS).for_each(|at| self.run(at));
        }
    }

    /// One iteration of a server's loop.
    fn run(&mut self, at: usize) {
        let mut sent = Sent::default();
        let frames = std::mem::take(&mut self.frames[at]);
        let server = &mut self.servers[at];
        let inputs = std::mem::take(&mut server.inputs);
        let Server { node, outputs, allocations, .. } = server;
        for (from, frame) in &frames {
            counted(allocations, || {
                let input = match decode(frame).unwrap() {
                    DecodedFrame::Server(message) => {
                        Input::Message { from: NodeId(*from as u64 + 1), message }
                    }
                    DecodedFrame::Write { id, write } => Input::Write {
                        token: RequestToken { connection: 7, request: id },
                        client: ([127, 0, 0, 1], 7).into(),
                        write,
                    },
                    DecodedFrame::Message(_) => return,
                };
                node.handle(self.now, input, outputs);
            });
        }
        for input in inputs {
            counted(allocations, || node.handle(self.now, input, outputs));
        }
        counted(allocations, || node.flush(self.now, outputs));
        for output in std::mem::take(outputs) {
            self.carry_out(at, output, &mut sent);
        }
        sent.to_servers.into_iter().for_each(|(to, frame)| self.frames[to].push((at, frame)));
        self.replies += sent.replies;
    }

    fn carry_out(&mut self, at: usize, output: Output, sent: &mut Sent) {
        let server = &mut self.servers[at];
        let mut encode = |message: &Message, allocations: &mut u64| {
            self.queue.clear();
            counted(allocations, || {
                assert!(message.shared_parts().is_empty());
                codec::encode(message, limits::SERVER_FRAME_BYTES_MAX, &mut self.queue).unwrap();
            });
        };
        match output {
            Output::Send { to, message } => {
                encode(&Message::Server(message), &mut server.allocations);
                let body = self.queue[limits::FRAME_HEADER_BYTES..].to_vec();
                sent.to_servers.push((to.0 as usize - 1, body));
            }
            Output::Reply { token, reply } => {
                assert!(matches!(reply, Reply::WriteOk(_)), "{reply:?}");
                let reply = Message::Reply { id: token.request, body: reply };
                encode(&reply, &mut server.allocations);
                sent.replies += 1;
            }
            Output::Persist(batch) => {
                server.inputs.push(Input::Persisted { number: batch.number });
            }
            Output::Apply { entries, .. } => {
                let applied = apply(&mut server.applied, &entries);
                server.inputs.push(applied);
            }
            Output::Notice(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Has clients write, each a PUT to the leader, and runs the servers until all are answered.
    fn put(&mut self, requests: std::ops::Range<u64>) {
        for id in requests.clone() {
            let frame = body(&put(id));
            self.frames[LEADER].push((LEADER, frame));
        }
        self.now.monotonic_us += 100;
        self.now.wall_us += 100;
        self.replies = 0;
        self.settle();
        assert_eq!(self.replies as u64, requests.end - requests.start);
    }
}

/// What applying entries tells the core, without a store.
fn apply(point: &mut AppliedPoint, entries: &[LogEntry]) -> Input {
    let mut outcomes = Vec::new();
    for entry in entries {
        point.index = entry.index;
        let Some(command) = Command::decode(&entry.data).unwrap() else { continue };
        point.timestamp = command.timestamp;
        let Action::Write { request, .. } = command.action else { continue };
        let outcome = WriteOutcome { timestamp: command.timestamp, result: OpResult::Done };
        outcomes.push(AppliedWrite {
            index: entry.index,
            term: entry.term,
            fate: WriteFate::Answered(WriteAnswer::of(outcome)),
            newest_sequence: request.sequence,
        });
    }
    let rules = Some(GroupRules { limits: StateLimits::default(), history: History::All });
    let summary = MachineSummary { rules, level: 1, ..MachineSummary::default() };
    Input::Applied { outcomes, point: *point, summary, leases: Vec::new() }
}

const CLIENTS: u64 = 64;

/// The PUT of the client whose turn it is.
fn put(id: u64) -> Message {
    let (client, sequence) = (ClientId(id % CLIENTS), 1 + id / CLIENTS);
    let request = RequestId { client, sequence, answered_below: sequence, begun: Timestamp::ZERO };
    let (key, value) = (Bytes::from(format!("key-{:08}", id % 1000)), Bytes::from(vec![7; 100]));
    let op = WriteOp::Put(Put { key, value, tells_previous: false });
    Message::Request { id, body: Request::Write(WriteRequest { request, op }) }
}

/// The requests of a count of PUTs: until every list is as long as it gets, and counted ones.
const WARM_UP: u64 = 2 * limits::ANSWERED_WRITES_MAX as u64;
const PUTS: u64 = 4096;

/// PUTs of 64 clients, as many at once as a loop finds when it wakes; at most so many allocations
/// of each in hundredths at the leader and at a follower.
fn put_all(at_once: u64, leader: u64, follower: u64) {
    let mut group = Group::new();
    for first in (0..WARM_UP + PUTS).step_by(at_once as usize) {
        if first == WARM_UP {
            group.servers.iter_mut().for_each(|server| server.allocations = 0);
        }
        group.put(first..first + at_once);
    }
    let counts: Vec<u64> = group.servers.iter().map(|server| server.allocations).collect();
    hold(&format!("PUT, {at_once} at once, leader"), counts[LEADER], PUTS, leader);
    hold(&format!("PUT, {at_once} at once, follower"), counts[1], PUTS, follower);
}

#[test]
fn a_put_alone_allocates_no_more_than_is_recorded() {
    put_all(1, 2100, 1900);
}

#[test]
fn a_put_beside_others_allocates_no_more_than_is_recorded() {
    put_all(16, 362, 143);
}

/// Blank, with everything in memory.
fn blank_store(folder: &TempDir) -> StateMachine {
    let engine = Arc::new(TableEngine::open_at(folder.path()).unwrap());
    StateMachine::open(engine, StateLimits::default()).unwrap()
}

/// The entries of so many PUTs over a thousand keys.
fn put_entries(puts: u64) -> Vec<LogEntry> {
    let entry = |id| {
        let Message::Request { body: Request::Write(WriteRequest { request, op }), .. } = put(id)
        else {
            unreachable!("it is a write");
        };
        let data = Command::write(Timestamp(id as i64 + 1), request, op).encode();
        LogEntry { term: 1, index: id + 1, data }
    };
    (0..puts).map(entry).collect()
}

/// A store of a thousand keys.
fn store(folder: &TempDir) -> StateMachine {
    let mut machine = blank_store(folder);
    machine.apply(&put_entries(1000)).unwrap();
    machine
}

/// Batches as an applier finds them with 64 clients.
#[test]
fn applying_a_put_allocates_no_more_than_is_recorded() {
    let folder = TempDir::new().unwrap();
    let mut machine = blank_store(&folder);
    let entries = put_entries(PUTS);
    let mut allocations = 0;
    for batch in entries.chunks(16) {
        counted(&mut allocations, || machine.apply(batch)).unwrap();
    }
    hold("PUT applied", allocations, PUTS, 640);
}

/// Decodes a frame, answers it and encodes the answer; returns the allocations.
fn answer(frame: &[u8], answer: impl FnOnce(Request) -> Reply) -> u64 {
    let mut out = Vec::with_capacity(1024 * 1024);
    let mut allocations = 0;
    counted(&mut allocations, || {
        let DecodedFrame::Message(Message::Request { id, body }) = decode(frame).unwrap() else {
            panic!("it is a request");
        };
        let reply = Message::Reply { id, body: answer(body) };
        codec::encode(&reply, limits::SERVER_FRAME_BYTES_MAX, &mut out).unwrap();
    });
    allocations
}

/// Answers a GET of a key; returns the allocations.
fn get(store: &Store, key: &'static [u8]) -> u64 {
    let (key, read_at) = (Bytes::from_static(key), ReadAt::Newest { seen: None });
    let get = GetRequest { key, read_at, session: None, linearizable: false, facts: false };
    let frame = body(&Message::Request { id: 7, body: Request::Get(get) });
    answer(&frame, |request| {
        let Request::Get(request) = request else { panic!("it is a GET") };
        let reply = answer_get(store, &request).reply;
        assert!(matches!(&reply, Reply::GetOk { found: Some(_), .. }));
        reply
    })
}

#[test]
fn a_get_allocates_no_more_than_is_recorded() {
    let folder = TempDir::new().unwrap();
    let mut machine = store(&folder);
    // Nothing that is read stays known, but for the room for it.
    machine.set_newest_bytes_max(0);
    let store = machine.store();
    store.get(b"key-00000500").unwrap();
    hold("GET", get(&store, b"key-00000500"), 1, 800);
}

#[test]
fn a_get_of_what_is_known_allocates_no_more_than_is_recorded() {
    let folder = TempDir::new().unwrap();
    let store = store(&folder).store();
    store.get(b"key-00000500").unwrap();
    hold("GET of what is known", get(&store, b"key-00000500"), 1, 300);
}

#[test]
fn a_row_of_a_page_allocates_no_more_than_is_recorded() {
    let folder = TempDir::new().unwrap();
    let machine = store(&folder);
    let store = machine.store();
    let of = PageOf::Range { from: Bytes::from_static(b"key"), to: Bytes::from_static(b"kez") };
    let view = PageView::First { at: None, session: None, linearizable: false };
    let page = PageRequest { of, view, rows_max: 1000, keys_only: false };
    let frame = body(&Message::Request { id: 7, body: Request::Page(page) });
    let allocations = answer(&frame, |request| {
        let Request::Page(request) = request else { panic!("it is a page") };
        let reply = answer_page(&store, &request, PageLimits::default()).reply;
        assert!(matches!(&reply, Reply::PageOk { rows, .. } if rows.len() == 1000));
        reply
    });
    hold("row of a page", allocations, 1000, 202);
}

/// The number of instructions within [`counted`] while a test of this file runs; `None` where there
/// is no valgrind.
fn instructions(test: &str) -> Option<u64> {
    let output = Process::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*request_cost*counted*"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("valgrind: {error}"),
    };
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stdout));
    let collected = told.lines().find_map(|line| line.split_once("Collected : "));
    Some(collected.unwrap_or_else(|| panic!("{told}")).1.trim().parse().unwrap())
}

#[test]
fn requests_take_no_more_instructions_than_are_recorded() {
    // With the number of requests and the instructions of each, of all three servers for a PUT.
    let recorded = [
        ("a_put_beside_others_allocates_no_more_than_is_recorded", WARM_UP + PUTS, 29_500),
        // A quarter of it keeps the facts of keys, and the row by which changes are found.
        ("applying_a_put_allocates_no_more_than_is_recorded", PUTS, 19_800),
        ("a_get_allocates_no_more_than_is_recorded", 1, 9_400),
        ("a_get_of_what_is_known_allocates_no_more_than_is_recorded", 1, 4_300),
        ("a_row_of_a_page_allocates_no_more_than_is_recorded", 1000, 4_660),
    ];
    let mut dearer = Vec::new();
    for (test, requests, recorded) in recorded {
        let Some(instructions) = instructions(test) else {
            println!("instructions are not counted: valgrind is not installed");
            return;
        };
        let each = instructions / requests;
        println!("{test}: {each} instructions");
        assert!(each > recorded / 2, "{test}: {each} instructions: were they counted?");
        if each > recorded + recorded / 5 {
            dearer.push(format!("{test}: {each} instructions where {recorded} are recorded"));
        }
    }
    assert!(dearer.is_empty(), "{}", dearer.join("\n"));
}
