//! A server whose data are refuted while it runs, or whose disk hangs: what it answers, and when it
//! ends.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::Client;
use crate::limits;
use crate::model::{ClientId, Command, LogEntry, Put, RequestId, StateLimits, Timestamp, Version};
use crate::net::Listener;
use crate::node::RequestToken;
use crate::process::files;
use crate::server::get::ReadRequest;
use crate::server::loop_reads::LoopReads;
use crate::server::work::{CatchUpWork, Completion, ReadJob};
use crate::server::{OpenedServer, Stopper, local};
use crate::storage::apply::StateMachine;
use crate::storage::memory::MemoryEngine;
use crate::wire::codec;
use crate::wire::message::{
    ErrorCode, GetRequest, Hello, HelloRole, Message, PROTOCOL_VERSION, ReadAt, Reply, Request,
};

/// How long anything here may take before a test gives up.
const DEADLINE: Duration = Duration::from_secs(60);
/// More long values than a client's queue, its grants and two sockets hold.
const READS: u64 = 64;

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(began.elapsed() < DEADLINE, "{what}: not in time");
        thread::yield_now();
    }
}

fn send(stream: &mut TcpStream, message: &Message) {
    let mut frame = Vec::new();
    codec::encode(message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
    stream.write_all(&frame).unwrap();
}

fn receive(stream: &mut TcpStream) -> Message {
    let mut header = [0; 4];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut body).unwrap();
    codec::decode(&body).unwrap()
}

/// Opens so many servers of a group of three. Their disks take no verdict in before the sender
/// is dropped.
fn open(
    dir: &Path,
    count: usize,
    patience: Duration,
) -> (Vec<OpenedServer>, Vec<Stopper>, Sender<()>) {
    let any_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let mut listeners = [(); 3].map(|()| Listener::bind(any_port).unwrap());
    listeners.sort_by_key(Listener::address);
    let addresses = listeners.each_ref().map(Listener::address);
    let stoppers: Vec<Stopper> = (0..count).map(|_| Stopper::new()).collect();
    let (answer, answered) = bounded::<()>(0);
    let open = |(listener, stopper): (Listener, &Stopper)| {
        let config = local::config(dir, listener.address(), &addresses);
        let room = files::room(0).unwrap();
        let mut server = OpenedServer::open(config, listener, room, stopper.clone()).unwrap();
        let answered = answered.clone();
        let set_down = move |_| {
            let _ = answered.recv();
            Ok(())
        };
        server.service.parts.threads.set_verdict_disk(Arc::new(set_down), patience);
        server
    };
    let servers = listeners.into_iter().zip(&stoppers).map(open).collect();
    (servers, stoppers, answer)
}

/// Tells a server that its store is damaged, which it is not.
fn accuser(server: &OpenedServer) -> impl FnOnce() + use<> {
    server.service.parts.threads.accuser()
}

fn greet(server: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (protocol, role) = (PROTOCOL_VERSION, HelloRole::CLIENT);
    send(&mut stream, &Message::Hello(Hello { protocol, role }));
    assert!(matches!(receive(&mut stream), Message::Welcome(_)));
    stream
}

/// Once the leader led on for as long as the disk did not answer, and reads that waited for
/// room for their values were answered from what was not to be read.
#[test]
fn while_the_disk_does_not_take_a_verdict_in_others_lead_and_no_read_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (servers, stoppers, answer) = open(dir.path(), 3, 10 * DEADLINE);
    let addresses = servers[0].service.parts.config.servers.clone();
    let mut accusers: Vec<_> = servers.iter().map(accuser).collect();
    let threads: Vec<_> = servers
        .into_iter()
        .map(|server| thread::spawn(move || server.run().map_err(|error| error.to_string())))
        .collect();

    let client = Client::connect(addresses.clone()).unwrap();
    client.put("k", vec![7; limits::VALUE_BYTES_MAX_DEFAULT]).unwrap();
    let leader = eventually("one leads", || {
        let leader = client.status(addresses[0]).ok()?.leader?;
        addresses.iter().position(|address| address.to_string() == leader)
    });
    let own = Client::connect([addresses[leader]]).unwrap();
    own.get_linearizable("k").unwrap();
    let mut reader = greet(addresses[leader]);
    (0..READS).for_each(|id| get(&mut reader, id));
    let first = receive(&mut reader);
    assert!(matches!(first, Message::Reply { body: Reply::GetOk { .. }, .. }));

    accusers.remove(leader)();
    eventually("another one leads", || {
        let next = client.status(addresses[(leader + 1) % 3]).ok()?.leader?;
        (next != addresses[leader].to_string()).then_some(())
    });
    assert!(!threads[leader].is_finished(), "it ends before its verdict is durable");
    let mut refused = 0;
    for _ in 1..READS {
        match receive(&mut reader) {
            // It was on its way already.
            Message::Reply { body: Reply::GetOk { .. }, .. } if refused == 0 => {}
            Message::Reply { body: Reply::Error(error), .. } => {
                assert_eq!(error.code, ErrorCode::Internal, "{}", error.message);
                refused += 1;
            }
            _ => panic!("it is read after {refused} refusals"),
        }
    }
    assert!(refused > 0, "reads that were held are answered");
    drop(answer);
    let others = stoppers.iter().enumerate().filter(|(at, _)| *at != leader);
    others.for_each(|(_, stopper)| stopper.stop());
    for (at, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), Ok(at == leader), "only that one is to start again");
    }
}

fn get(reader: &mut TcpStream, id: u64) {
    get_key(reader, id, b"k");
}

fn get_key(reader: &mut TcpStream, id: u64, key: &'static [u8]) {
    let (key, read_at) = (Bytes::from_static(key), ReadAt::Newest { seen: None });
    let get = GetRequest { key, read_at, session: None, linearizable: false, facts: false };
    send(reader, &Message::Request { id, body: Request::Get(get) });
}

/// Leaves a server one worker for all reads, which says when it begins a read, and answers it with
/// another value than the store's when it is told to.
fn gate_worker(server: &mut OpenedServer) -> (Receiver<()>, Sender<()>) {
    let (begun, begins) = bounded::<()>(0);
    let (end, ends) = bounded::<()>(0);
    server.service.loop_reads = LoopReads::none();
    server.service.parts.threads.set_worker(move |read: ReadJob| {
        let charge = read.charge();
        // Where nobody listens any more the test is over.
        let _ = begun.send(());
        let _ = ends.recv();
        let (value, timestamp) = (Bytes::from_static(b"wrong"), Timestamp(1));
        let found = Some(Version { timestamp, value, facts: None });
        let body = Reply::GetOk { found, as_of: timestamp };
        let mut frame = Vec::new();
        let reply = Message::Reply { id: charge.token.request, body };
        codec::encode(&reply, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
        Completion::Answered { charge, frame }
    });
    (begins, end)
}

/// A read that a worker has begun before the verdict, and ends after it.
#[test]
fn a_read_that_is_running_when_the_state_is_refuted_is_not_answered_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut servers, _stoppers, answer) = open(dir.path(), 1, 10 * DEADLINE);
    let mut server = servers.remove(0);
    let address = server.service.parts.config.listen;
    let (begins, end) = gate_worker(&mut server);
    let accuse = accuser(&server);
    let thread = thread::spawn(move || server.run().map_err(|error| error.to_string()));
    let mut reader = greet(address);
    let mut read = |accuse: Option<Box<dyn FnOnce()>>| {
        get(&mut reader, 7);
        begins.recv_timeout(DEADLINE).unwrap();
        // What is reported comes before what is completed later.
        accuse.into_iter().for_each(|accuse| accuse());
        end.send(()).unwrap();
        receive(&mut reader)
    };
    assert!(matches!(read(None), Message::Reply { body: Reply::GetOk { .. }, .. }));
    let Message::Reply { body: Reply::Error(error), .. } = read(Some(Box::new(accuse))) else {
        panic!("it is answered from what is not to be read");
    };
    assert_eq!(error.code, ErrorCode::Internal, "{}", error.message);
    drop(answer);
    assert_eq!(thread.join().unwrap(), Ok(true), "it is to start again");
}

/// A client that asks one server waited for as long as that server's disk hung, and so did the
/// memory of what it had asked for.
#[test]
fn reads_that_wait_for_a_disk_that_hangs_are_refused_and_the_begun_one_is_answered_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut servers, stoppers, answer) = open(dir.path(), 1, 10 * DEADLINE);
    let mut server = servers.remove(0);
    let address = server.service.parts.config.listen;
    let (begins, end) = gate_worker(&mut server);
    server.service.clients.set_read_wait_max(2 * limits::TICK);
    let thread = thread::spawn(move || server.run().map_err(|error| error.to_string()));

    let mut first = greet(address);
    get(&mut first, 1);
    begins.recv_timeout(DEADLINE).unwrap();
    // More than are handed to the worker.
    let mut others = greet(address);
    (0..200).for_each(|id| get(&mut others, id));
    for _ in 0..200 {
        let Message::Reply { body: Reply::Error(error), .. } = receive(&mut others) else {
            panic!("it is answered, and the disk hangs");
        };
        assert!(matches!(error.code, ErrorCode::Busy { .. }), "{:?}", error.code);
        assert!(error.message.contains("the disk does not answer"), "{}", error.message);
    }
    send(&mut others, &Message::Request { id: 7, body: Request::Status });
    let Message::Reply { body: Reply::StatusOk(status), .. } = receive(&mut others) else {
        panic!("no status");
    };
    let tells = |warning: &String| warning.contains("a read has waited for its disk");
    assert!(status.warnings.iter().any(tells), "{:?}", status.warnings);

    end.send(()).unwrap();
    assert!(matches!(receive(&mut first), Message::Reply { body: Reply::GetOk { .. }, .. }));
    get(&mut others, 300);
    begins.recv_timeout(DEADLINE).unwrap();
    end.send(()).unwrap();
    assert!(matches!(receive(&mut others), Message::Reply { body: Reply::GetOk { .. }, .. }));
    stoppers[0].stop();
    drop(answer);
    assert_eq!(thread.join().unwrap(), Ok(false));
}

/// What a server that lags needs was behind all reads of clients, and behind a disk that held up
/// the workers: and the group may need that server for its majority.
#[test]
fn what_servers_that_lag_need_is_read_while_every_worker_waits_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (mut servers, _stoppers, _answer) = open(dir.path(), 1, 10 * DEADLINE);
    let (_begins, end) = gate_worker(&mut servers[0]);
    let threads = &mut servers[0].service.parts.threads;
    let read = |request| {
        let (key, read_at) = (Bytes::from_static(b"k"), ReadAt::Newest { seen: None });
        let get = GetRequest { key, read_at, session: None, linearizable: false, facts: false };
        ReadJob {
            token: RequestToken { connection: 1, request },
            client: SocketAddr::from(([127, 0, 0, 1], 1)),
            request: ReadRequest::Get(get),
            budget_bytes: 0,
            waits_since: 0,
        }
    };
    threads.read_batch((0..128).map(read).collect()).unwrap();
    let entries = CatchUpWork::Entries { fetch: 7, low: 1, high: 2, bytes_max: 100 };
    assert!(threads.catch_up(entries).is_none(), "there is no place for it");
    eventually("the entries are read", || match threads.collect() {
        Some(Completion::Entries { fetch: 7, .. }) => Some(()),
        _ => None,
    });
    drop(end);
}

#[test]
fn a_verdict_that_the_disk_does_not_take_in_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (mut servers, _stoppers, answer) = open(dir.path(), 1, Duration::ZERO);
    let server = servers.remove(0);
    let address = server.service.parts.config.listen;
    let accuse = accuser(&server);
    let thread = thread::spawn(move || server.run().map_err(|error| error.to_string()));
    let mut witness = greet(address);
    accuse();
    witness.read_to_end(&mut Vec::new()).unwrap();
    drop(answer);
    assert_eq!(thread.join().unwrap(), Ok(true), "it is to start again");
}

#[test]
fn short_values_in_memory_are_read_without_a_worker_and_long_ones_by_one() {
    let mut machine =
        StateMachine::open(Arc::new(MemoryEngine::new()), StateLimits::default()).unwrap();
    let value = |length| Bytes::from(vec![7; length]);
    let (short, long) = (value(limits::READ_SMALL_BYTES_MAX), limits::READ_SMALL_BYTES_MAX + 1);
    for (index, key, value) in [(1, "short", short.clone()), (2, "long", value(long))] {
        let (client, begun) = (ClientId(1), Timestamp::ZERO);
        let request = RequestId { client, sequence: index, answered_below: index, begun };
        let op = Put { key: key.into(), value, tells_previous: false }.into();
        let data = Command::write(Timestamp(index as i64), request, op).encode();
        machine.apply(&[LogEntry { term: 1, index, data }]).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut servers, stoppers, answer) = open(dir.path(), 1, 10 * DEADLINE);
    let mut server = servers.remove(0);
    let address = server.service.parts.config.listen;
    let (begins, end) = gate_worker(&mut server);
    server.service.loop_reads = LoopReads::default();
    server.service.parts.store = machine.store();
    let thread = thread::spawn(move || server.run().map_err(|error| error.to_string()));
    let mut reader = greet(address);
    get_key(&mut reader, 1, b"long");
    begins.recv_timeout(DEADLINE).unwrap();
    // The worker is at the long one until it is told to go on.
    let mut found = |id, key| {
        get_key(&mut reader, id, key);
        match receive(&mut reader) {
            Message::Reply { id: answered, body: Reply::GetOk { found, .. } } if answered == id => {
                found.map(|version| version.value)
            }
            other => panic!("no answer to {id} but {other:?}"),
        }
    };
    assert_eq!(found(2, b"short"), Some(short));
    assert_eq!(found(3, b"absent"), None);
    end.send(()).unwrap();
    assert!(matches!(receive(&mut reader), Message::Reply { id: 1, body: Reply::GetOk { .. } }));
    stoppers[0].stop();
    drop(answer);
    assert_eq!(thread.join().unwrap(), Ok(false));
}
