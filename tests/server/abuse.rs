//! Broken and hostile clients and servers, and machines that have no more to give, against real
//! server processes. Whoever causes trouble gets one clear sentence; a well-behaved client of the
//! same server, the [`Witness`], notices nothing.
//!
//! A clock that jumps cannot be had on a real process: that rule is held by
//! `a_clock_an_hour_behind_does_not_take_a_new_leaders_versions_back` in `tests/simulation/`. Data
//! directories of other nodes or formats are refused in `tests/server/cluster.rs` and by the tests
//! of `storage::datadir`; syncs that fail, and power that goes, in `tests/store/crash.rs`. Full
//! disks are in `tests/server/disk_full.rs`.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use acervo::client::Client;
use acervo::limits;
use acervo::model::{
    ClientId, ClusterId, Command as LogCommand, Del, LogEntry, NodeId, OpResult, Put, PutAll,
    RequestId, Timestamp, WriteAnswer, WriteOp,
};
use acervo::process::exit_status;
use acervo::wire::message::{
    Channel, ErrorCode, Hello, HelloRole, Message, PROTOCOL_VERSION, RaftBody, RaftMessage, Reply,
    Request, Role, ServerMessage, ServerStatus, Welcome, WriteRequest,
};
use bytes::Bytes;
use rustix::process::Signal;

use crate::support::raw::{Raw, Witness, frame, frame_of, get, hello, one_server, put, status};
use crate::support::{
    self, Group, allow_open_files, eventually, exited_with, memory, patient_client, resident,
};

fn done(timestamp: i64) -> Reply {
    let timestamp = Timestamp(timestamp);
    Reply::WriteOk(WriteAnswer { timestamp, result: OpResult::Done, previous: None, txn: None })
}

#[test]
fn frames_that_are_none_get_a_sentence_and_cost_one_connection() {
    let (_group, address, witness) = one_server();
    let before_the_greeting: [(&[u8], &str); 5] = [
        (&[0, 0, 0, 0], "a frame announces an empty body"),
        (&[0xff; 4], "a frame announces 4294967295 bytes where at most 1024 are allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", "announces"),
        (&[0, 0, 0, 3, 0xc1, 0xc1, 0xc1], "the frame does not hold a message"),
        (&[0, 0, 0, 5, 0xdd, 0x80, 0, 0, 0], "the frame does not hold a message"),
    ];
    for (bytes, said) in before_the_greeting {
        let mut raw = Raw::dial(address);
        raw.bytes(bytes);
        let reason = raw.refusal();
        assert!(reason.contains(said), "{reason}");
    }
    let request = [0x81, 0xa7, b'R', b'E', b'Q', b'U', b'E', b'S', b'T', 0x92, 1];
    let ping = frame_of(&Message::Ping { nonce: 1 });
    let after_it: [(Vec<u8>, &str); 7] = [
        (vec![0; 4], "a frame announces an empty body"),
        (vec![0xff; 4], "a frame announces 4294967295 bytes"),
        (frame(&[0x91; 100_000]), "the frame does not hold a message"),
        (frame(&[&request[..], &[0x91; 100_000]].concat()), "the frame does not hold a message"),
        (frame(&[&request[..], &[0xdd, 0x80, 0, 0, 0]].concat()), "the frame does not hold"),
        (frame(b"\x81\xa9\x1b[2J\x1b[31m\x01"), r"\x1b[2J"),
        (frame(&[&ping[4..]; 2].concat()), "more than one message"),
    ];
    for (bytes, said) in after_it {
        let mut raw = Raw::client(address);
        raw.bytes(&bytes);
        let reason = raw.refusal();
        assert!(reason.contains(said), "{reason}");
    }
    let cut = frame_of(&Message::Request { id: 1, body: put(1, b"k", vec![1; 1000]) });
    let mut raw = Raw::client(address);
    raw.bytes(&cut[..cut.len() / 2]);
    drop(raw);
    witness.finish();
}

#[test]
fn a_greeting_that_trickles_in_ends_at_its_deadline() {
    let (_group, address, witness) = one_server();
    let mut slow = Raw::dial(address);
    let greeting = frame_of(&hello(HelloRole::CLIENT));
    for byte in &greeting[..4] {
        slow.bytes(&[*byte]);
        witness.goes_on();
    }
    assert_eq!(slow.refusal(), "no whole HELLO came within 5 seconds");
    witness.finish();
}

#[test]
fn messages_out_of_place_are_refused_in_a_sentence() {
    let (_group, address, witness) = one_server();
    let cluster = status(address).cluster;
    let client_says = "a client sends REQUEST, WATCH_CREDIT and PING only";
    let out_of_place = [
        Message::Reply { id: 1, body: done(1) },
        Message::Server(ServerMessage::ReadIndex { id: 1 }),
        hello(HelloRole::CLIENT),
        Message::Refused { reason: "no".into() },
    ];
    for message in out_of_place {
        let mut raw = Raw::client(address);
        raw.send(&message);
        assert_eq!(raw.refusal(), client_says);
    }
    let of = |cluster| HelloRole::Client { cluster: Some(cluster) };
    let (node, channel) = (NodeId(2), Channel::Control);
    let nobody = HelloRole::Server { cluster, node, incarnation: 1, channel };
    let first_messages = [
        (Message::Ping { nonce: 1 }, "the first message must be HELLO".to_owned()),
        (
            Message::Hello(Hello { protocol: 9, role: of(cluster) }),
            format!(
                "this server speaks protocol version {PROTOCOL_VERSION} and not 9: use a client of \
                 its release"
            ),
        ),
        (
            hello(of(ClusterId(77))),
            format!(
                "this server belongs to cluster {cluster} and not to 000000000000004d: \
                 check the server lists"
            ),
        ),
        (hello(nobody), "server 2 is not another server of this group".into()),
    ];
    for (message, said) in first_messages {
        let mut raw = Raw::dial(address);
        raw.send(&message);
        assert_eq!(raw.refusal(), said);
    }
    witness.finish();
}

#[test]
fn keys_and_values_out_of_bounds_are_invalid_and_the_connection_goes_on() {
    let (_group, address, witness) = one_server();
    let mut raw = Raw::client(address);
    let long_key = [b'k'; 5 * 1024];
    let too_long = vec![0; limits::VALUE_BYTES_MAX_DEFAULT + 1];
    let invalid = [
        (get(b"", false), "the key is empty"),
        (get(b"", true), "the key is empty"),
        (put(1, b"", vec![1]), "the key is empty"),
        (get(&long_key, false), "the key has 5120 bytes and at most 4096 are allowed"),
        (get(&long_key, true), "the key has 5120 bytes and at most 4096 are allowed"),
        (put(1, &long_key, vec![1]), "the key has 5120 bytes and at most 4096 are allowed"),
        (put(1, b"k", too_long), "the value has 1048577 bytes and at most 1048576 are allowed"),
    ];
    for (request, said) in invalid {
        let (code, message) = raw.error(request);
        assert_eq!(code, ErrorCode::Invalid);
        assert!(message.starts_with(said), "{message}");
    }
    raw.assert_alive();
    // Longer than any value may be: the frame itself is out of bounds.
    let cap = limits::client_frame_bytes_max(limits::VALUE_BYTES_MAX);
    raw.bytes(&(cap as u32 + 1).to_be_bytes());
    let reason = raw.refusal();
    assert!(reason.contains("where at most"), "{reason}");
    witness.finish();
}

#[test]
fn a_request_id_in_use_is_refused_where_answers_could_be_confused() {
    // Nobody confirms a read at a server that is alone.
    let mut group = Group::prepare(3, &["--console", "off"]);
    group.start_server(0);
    let address = group.addresses()[0];
    eventually("the server listens", || TcpStream::connect(address).ok());
    let mut raw = Raw::client(address);
    for _ in 0..2 {
        raw.send(&Message::Request { id: 3, body: get(b"k", true) });
    }
    assert_eq!(raw.refusal(), "request id 3 is in use");
    // Whatever the other one asks for.
    let mut raw = Raw::client(address);
    raw.send(&Message::Request { id: 3, body: get(b"k", true) });
    raw.send(&Message::Request { id: 3, body: Request::Status });
    assert_eq!(raw.refusal(), "request id 3 is in use");
}

#[test]
fn a_client_that_asks_faster_than_it_reads_is_held_back_and_loses_nothing() {
    let (group, address, witness) = one_server();
    const READS: u64 = 200;
    let value = vec![b'v'; 512 * 1024];
    group.client().put("long", &value).unwrap();
    // More than twice what may wait for a client.
    assert!(READS as usize * value.len() > 2 * limits::CLIENT_SEND_BYTES_MAX);
    let ask = |raw: &mut Raw| {
        for id in 0..READS {
            raw.send(&Message::Request { id, body: get(b"long", id % 2 == 0) });
        }
    };
    let (mut late, mut never) = (Raw::client(address), Raw::client(address));
    ask(&mut late);
    ask(&mut never);
    witness.goes_on();
    let mut answered: Vec<u64> = (0..READS)
        .map(|_| match late.receive() {
            Some(Message::Reply { id, body: Reply::GetOk { found: Some(got), .. } }) => {
                assert!(got.value == value);
                id
            }
            other => panic!("no value but {other:?}"),
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..READS).collect::<Vec<_>>(), "each request is answered once");
    late.assert_alive();
    // The other one takes no byte and is given up in the end: the witness, the late one and whoever
    // asks are left.
    let count = |expected| {
        eventually("connections are counted", || {
            (status(address).client_connections == expected).then_some(())
        });
    };
    count(4);
    count(3);
    drop(never);
    witness.finish();
}

#[test]
fn many_clients_that_never_read_cost_a_bounded_memory_and_nobody_else() {
    const MIB: usize = 1024 * 1024;
    const CLIENTS: usize = 120;
    let group = Group::start(1, &["--console", "off", "--max-value", "8MiB"]);
    let address = group.addresses()[0];
    let witness = Witness::start(group.client());
    let value = vec![b'v'; 7 * MIB];
    group.client().put("long", &value).unwrap();
    // Far more than may wait for all together, though for each of them it is no more than for an
    // honest one.
    assert!(CLIENTS * value.len() > 3 * limits::BUDGET_PROCESS_BYTES_MAX);

    let before = resident(group.pid(0));
    let asking: Vec<Raw> = (0..CLIENTS)
        .map(|_| {
            let mut raw = Raw::client(address);
            raw.send(&Message::Request { id: 1, body: get(b"long", false) });
            raw
        })
        .collect();
    eventually("slow readers are told from others", || {
        group.log(0).contains("bytes are held for it, and for all together more than").then_some(())
    });
    witness.goes_on();
    // Some are left alone: what waits for them is within the limit.
    let late = status(address).client_connections;
    assert!(late > 3, "all of them were disconnected");
    // What waits, and as much again for values on their way there, which are in memory several
    // times for a moment, and for what the allocator keeps.
    let bound = 2 * limits::BUDGET_PROCESS_BYTES_MAX;
    let grown = memory(group.pid(0), "VmHWM").saturating_sub(before);
    assert!(grown < bound, "{grown} bytes");
    drop(asking);
    witness.finish();
}

#[test]
fn a_server_without_a_majority_says_busy_before_it_drowns() {
    let mut group = Group::prepare(3, &["--console", "off"]);
    group.start_server(0);
    let address = group.addresses()[0];
    eventually("the server listens", || TcpStream::connect(address).ok());
    // Each client has as much under way as it may; writes and linearizable reads wait for others.
    let each = limits::REQUESTS_PER_CONNECTION_MAX as u64 - 1;
    let mut clients: Vec<Raw> = (0..limits::REQUESTS_MAX as u64 / each + 1)
        .map(|n| {
            let mut raw = Raw::client(address);
            let requests = (1..=each).map(|id| {
                let body = if n % 2 == 0 { get(b"k", true) } else { put(id, b"k", vec![1]) };
                frame_of(&Message::Request { id, body })
            });
            raw.bytes(&requests.collect::<Vec<_>>().concat());
            raw
        })
        .collect();
    let (mut busy, mut no_majority) = (0, 0);
    for raw in &mut clients {
        for _ in 1..=each {
            let Some(Message::Reply { body: Reply::Error(error), .. }) = raw.receive() else {
                panic!("every request is answered, with an error");
            };
            match error.code {
                ErrorCode::Busy { retry_after_ms } => {
                    assert_eq!(retry_after_ms, limits::BUSY_RETRY_AFTER_MS);
                    assert!(error.message.ends_with("try again in a moment"), "{}", error.message);
                    busy += 1;
                }
                ErrorCode::NoMajority => no_majority += 1,
                other => panic!("{other:?}: {}", error.message),
            }
        }
    }
    assert!(busy > 0 && no_majority > 0, "{busy} {no_majority}");
}

#[test]
fn two_thousand_idle_connections_hurt_nobody() {
    allow_open_files(5_000);
    let (_group, address, witness) = one_server();
    let mut idle: Vec<Raw> = (0..2000).map(|_| Raw::client(address)).collect();
    let silent: Vec<Raw> = (0..100).map(|_| Raw::dial(address)).collect();
    witness.goes_on();
    assert!(status(address).client_connections >= 2000);
    idle.iter_mut().step_by(100).for_each(Raw::assert_alive);
    drop(silent);
    drop(idle);
    eventually("they are gone", || (status(address).client_connections <= 3).then_some(()));
    witness.finish();
}

#[test]
fn a_flood_of_connections_keeps_nobody_out_even_with_few_files() {
    let mut group = Group::prepare(1, &["--console", "off"]);
    group.start_server_from_shell(0, &[], "ulimit -n 160");
    let address = group.addresses()[0];
    let witness = Witness::start(group.client());
    assert!(group.log(0).contains("the limit of 160 open files leaves room for"));

    // More than there is room for: whoever has asked for nothing for longest has given way.
    let mut crowd: Vec<Raw> = (0..96).map(|_| Raw::client(address)).collect();
    let ping = frame_of(&Message::Ping { nonce: 1 });
    let is_alive = |raw: &mut Raw| {
        raw.stream.write_all(&ping).is_ok() && matches!(raw.receive(), Some(Message::Pong { .. }))
    };
    let alive: Vec<bool> = crowd.iter_mut().map(is_alive).collect();
    let left = alive.iter().position(|alive| *alive).expect("somebody has a place");
    assert!(left > 0 && alive[left..].iter().all(|alive| *alive), "{alive:?}");
    // Ones that never greet, more than there are files.
    let flood: Vec<Raw> = (0..200).map(|_| Raw::dial(address)).collect();
    witness.goes_on();
    crowd[left..].iter_mut().for_each(Raw::assert_alive);
    // Places that are taken by one address, whether it greets or not, keep nobody else out.
    Raw::client_from(Ipv4Addr::new(127, 0, 0, 2), address).assert_alive();
    drop(flood);
    // Nor do as many addresses as there are places.
    let from = |last| Raw::client_from(Ipv4Addr::new(127, 0, 1, last), address);
    let mut addresses: Vec<Raw> = (1..=96).map(from).collect();
    witness.goes_on();
    addresses.iter_mut().rev().take(3).for_each(Raw::assert_alive);
    witness.finish();
}

#[test]
fn a_server_that_cannot_start_says_why_in_one_sentence() {
    let mut group = Group::start(1, &["--console", "off"]);
    let address = group.addresses()[0];
    group.client().put("k", "v").unwrap();
    let run = |command: &mut Command| -> Output {
        command.stdin(Stdio::null()).env("RUST_LOG", "error").output().unwrap()
    };
    let sentence = |output: &Output| {
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };

    let other = group.dir.path().join("other");
    let server = |listen: &str, servers: &str| {
        let mut command = Command::new(support::ACERVO);
        command.args(["server", "--listen", listen, "--leader", listen, "--servers", servers]);
        command.arg("--data-dir").arg(&other);
        command
    };
    let taken = address.to_string();
    let output = run(&mut server(&taken, &taken));
    assert!(exited_with(output.status, i32::from(exit_status::FAILED)));
    let said = format!("acervo: the address {taken} is in use; choose another port");
    assert!(sentence(&output).starts_with(&said), "{}", sentence(&output));

    let output = run(&mut server("127.0.0.1:9", &taken));
    assert!(exited_with(output.status, i32::from(exit_status::USAGE)));
    let said = format!("--listen 127.0.0.1:9 is not one of the group's servers ({taken})");
    assert!(sentence(&output).contains(&said), "{}", sentence(&output));

    group.terminate(0);
    let mut few = Command::new("sh");
    few.args(["-c", "ulimit -n 40 && exec \"$0\" \"$@\""]);
    let server = server(&taken, &taken);
    few.arg(server.get_program()).args(server.get_args());
    let output = run(&mut few);
    assert!(exited_with(output.status, i32::from(exit_status::FAILED)));
    let said = "the limit of 40 open files leaves no room for connections: raise it to";
    assert!(sentence(&output).contains(said), "{}", sentence(&output));
}

/// A group whose third server's place is taken by the test: two servers and a way to be the third.
fn two_servers_and_a_place() -> (Group, TcpListener, Witness) {
    let mut group = Group::prepare(3, &["--console", "off", "--in-sync-timeout", "300ms"]);
    let third = TcpListener::bind(group.addresses()[2]).unwrap();
    group.start_server(0);
    group.start_server(1);
    let witness = Witness::start(patient_client(group.addresses()[..2].to_vec()));
    (group, third, witness)
}

#[test]
fn forged_messages_between_servers_cost_the_forger_its_connection_at_most() {
    let (mut group, _third, witness) = two_servers_and_a_place();
    let cluster = status(group.addresses()[0]).cluster;
    let entry = |term, index, data: &'static [u8]| LogEntry { term, index, data: data.into() };
    // Told the victim's own standing, what to send and what is said to it; nothing: it is ignored.
    type Trick = fn(&ServerStatus, &dyn Fn(u64, u64, &'static [u8]) -> LogEntry) -> (u64, RaftBody);
    let tricks: [(Trick, Option<&str>); 11] = [
        (
            |s, _| {
                (s.term, RaftBody::Heartbeat { commit: s.last_index + 9, context: Bytes::new() })
            },
            Some("which another server leads"),
        ),
        (
            |s, _| (s.term + 1, RaftBody::Heartbeat { commit: u64::MAX, context: Bytes::new() }),
            None,
        ),
        (
            |s, entry| {
                (
                    s.term + 1,
                    RaftBody::Append {
                        previous_index: s.last_index,
                        previous_term: s.term,
                        commit: u64::MAX,
                        entries: vec![
                            entry(s.term, s.last_index + 1, b""),
                            entry(s.term, s.last_index + 3, b""),
                        ],
                    },
                )
            },
            Some("do not follow one another"),
        ),
        (
            |s, _| {
                (
                    s.term + 1,
                    RaftBody::Append {
                        previous_index: u64::MAX,
                        previous_term: s.term,
                        commit: 0,
                        entries: vec![],
                    },
                )
            },
            Some("do not follow one another"),
        ),
        (
            |s, entry| {
                (
                    s.term + 1,
                    RaftBody::Append {
                        previous_index: s.last_index,
                        previous_term: s.term,
                        commit: 0,
                        entries: vec![entry(s.term, s.last_index + 1, b"no command")],
                    },
                )
            },
            Some("holds an entry that is no command"),
        ),
        (
            |_, _| (u64::MAX, RaftBody::Heartbeat { commit: 0, context: Bytes::new() }),
            Some("there is no term"),
        ),
        (
            |_, _| {
                (
                    u64::MAX,
                    RaftBody::VoteReply { pre: true, reject: false, commit: 0, commit_term: 0 },
                )
            },
            Some("there is no term"),
        ),
        (
            |s, _| {
                (
                    s.term,
                    RaftBody::VoteReply { pre: false, reject: false, commit: 0, commit_term: 0 },
                )
            },
            None,
        ),
        (|s, _| (s.term, RaftBody::TimeoutNow), None),
        (
            |s, _| {
                (s.term, RaftBody::HeartbeatReply { commit: u64::MAX, context: vec![1; 3].into() })
            },
            None,
        ),
        (|_, _| (0, RaftBody::TimeoutNow), None),
    ];
    for at in 0..2 {
        let address = group.addresses()[at];
        for (number, (trick, said)) in tricks.iter().enumerate() {
            loop {
                let standing = status(address);
                let (term, body) = trick(&standing, &entry);
                let message =
                    RaftMessage { from: NodeId(3), to: NodeId(at as u64 + 1), term, body };
                let mut forger = Raw::third_server(address, cluster);
                forger.send(&Message::Server(ServerMessage::Raft(message)));
                forger.send(&Message::Ping { nonce: 5 });
                let mut heard = forger.receive();
                if heard == Some(Message::Pong { nonce: 5 }) {
                    // What is wrong with a message is told after everything that came with it.
                    let _ = forger.stream.write_all(&frame_of(&Message::Ping { nonce: 6 }));
                    heard = forger.receive();
                }
                let heard = match heard {
                    Some(Message::Pong { nonce: 6 }) => None,
                    Some(Message::Refused { reason }) => Some(reason),
                    other => panic!("trick {number}: {other:?}"),
                };
                let as_expected = match (said, &heard) {
                    (Some(said), Some(heard)) => heard.contains(said),
                    (None, None) => true,
                    _ => false,
                };
                if as_expected {
                    break;
                }
                // An election in between makes another message of it.
                assert!(status(address).term != standing.term, "trick {number}: {heard:?}");
            }
        }
        witness.goes_on();
    }

    // Only a leader is told what is stored elsewhere.
    let leader = group.leader();
    let address = group.addresses()[leader];
    let standing = status(address);
    assert_eq!(standing.role, Role::Leader);
    let body = RaftBody::AppendReply {
        index: u64::MAX,
        commit: 0,
        reject_hint: None,
        snapshot_wanted: None,
    };
    let to = NodeId(leader as u64 + 1);
    let message = |from, body| {
        Message::Server(ServerMessage::Raft(RaftMessage { from, to, term: standing.term, body }))
    };
    let mut forger = Raw::third_server(address, cluster);
    forger.send(&message(NodeId(3), body));
    let reason = forger.refusal();
    assert!(reason.contains("is beyond the log's end"), "{reason}");

    let mut forger = Raw::third_server(address, cluster);
    forger.send(&message(NodeId(1 + (leader as u64 + 1) % 2), RaftBody::TimeoutNow));
    let reason = forger.refusal();
    assert!(reason.contains("came on another server's link"), "{reason}");

    let mut confused = Raw::third_server(address, cluster);
    confused.send(&Message::Request { id: 1, body: Request::Status });
    assert_eq!(confused.refusal(), "a server sends SERVER and PING only");
    for at in 0..2 {
        assert!(!group.log(at).contains("panicked"), "{}", group.log(at));
    }
    witness.finish();
    assert!(exited_with(group.terminate(0), 0));
}

/// Speaks as server 3 of a group, and lies in everything that it says. It keeps what is promised to
/// whoever trusts a server's word: it grants no vote and acknowledges no entry.
struct Liar {
    cluster: ClusterId,
    addresses: Vec<SocketAddr>,
    place: SocketAddr,
    left: Arc<AtomicBool>,
    dialled: Arc<Mutex<Vec<TcpStream>>>,
    asked: Arc<AtomicU64>,
    listening: JoinHandle<()>,
}

impl Liar {
    fn take(place: TcpListener, cluster: ClusterId, addresses: Vec<SocketAddr>) -> Liar {
        let (left, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let dialled: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let address = place.local_addr().unwrap();
        let listening = {
            let (left, dialled, asked) = (left.clone(), dialled.clone(), asked.clone());
            let addresses = addresses.clone();
            thread::spawn(move || {
                for stream in place.incoming() {
                    let stream = stream.unwrap();
                    if left.load(Ordering::Relaxed) {
                        return;
                    }
                    dialled.lock().unwrap().push(stream.try_clone().unwrap());
                    let (addresses, asked) = (addresses.clone(), asked.clone());
                    thread::spawn(move || Liar::answer(stream, cluster, &addresses, &asked));
                }
            })
        };
        Liar { cluster, addresses, place: address, left, dialled, asked, listening }
    }

    /// Whatever a server asks on a connection that it has dialled is answered, and not truly.
    fn answer(
        stream: TcpStream,
        cluster: ClusterId,
        addresses: &[SocketAddr],
        asked: &AtomicU64,
    ) -> Option<()> {
        let mut raw = Raw::over(stream);
        let Message::Hello(Hello { role: HelloRole::Server { node, .. }, .. }) = raw.receive()?
        else {
            return None;
        };
        let welcome = Welcome {
            protocol: PROTOCOL_VERSION,
            cluster,
            node: NodeId(3),
            incarnation: 9,
            last_index: u64::MAX,
            term: u64::MAX,
            first_leader: Some(NodeId(3)),
            applied_timestamp: Timestamp(i64::MAX),
        };
        let say = |raw: &mut Raw, message| raw.stream.write_all(&frame_of(&message)).ok();
        say(&mut raw, Message::Welcome(welcome))?;
        loop {
            let lie = match raw.receive()? {
                Message::Ping { nonce } => {
                    say(&mut raw, Message::Pong { nonce })?;
                    continue;
                }
                Message::Server(ServerMessage::StateHashAt { id, .. }) => {
                    ServerMessage::StateHashOk { id, hash: Some(5) }
                }
                Message::Server(ServerMessage::LogTerm { id, .. }) => {
                    ServerMessage::LogTermOk { id, term: Some(1 << 40) }
                }
                Message::Server(ServerMessage::ReadIndex { id }) => {
                    ServerMessage::ReadIndexOk { id, index: u64::MAX }
                }
                Message::Server(ServerMessage::Forward { id, .. }) => {
                    ServerMessage::Forwarded { id, reply: None }
                }
                _ => continue,
            };
            asked.fetch_add(1, Ordering::Relaxed);
            let mut link = Raw::third_server(addresses[node.0 as usize - 1], cluster);
            say(&mut link, Message::Server(lie));
        }
    }

    /// Everything that nobody asked, to each server: each on a connection of its own, which it may
    /// cost.
    fn say_everything(&self) {
        for (at, address) in self.addresses.iter().enumerate() {
            let ServerStatus { term, last_index, .. } = status(*address);
            let to = NodeId(at as u64 + 1);
            let mut lies = Vec::new();
            let mut raft = |term, body| {
                lies.push(ServerMessage::Raft(RaftMessage { from: NodeId(3), to, term, body }));
            };
            let ahead = term + (1 << 32);
            for _ in 0..4 {
                raft(ahead, RaftBody::HeartbeatReply { commit: 0, context: Bytes::new() });
            }
            for (pre, reject) in [(false, false), (false, true), (true, false), (true, true)] {
                raft(ahead, RaftBody::VoteReply { pre, reject, commit: 0, commit_term: 0 });
            }
            raft(ahead, RaftBody::Heartbeat { commit: 0, context: Bytes::new() });
            raft(ahead, RaftBody::TimeoutNow);
            for pre in [true, false] {
                let (last_index, last_term) = (last_index + 100, ahead);
                raft(
                    ahead,
                    RaftBody::Vote {
                        pre,
                        last_index,
                        last_term,
                        commit: 0,
                        commit_term: 0,
                        transfer: !pre,
                    },
                );
            }
            let (index, snapshot_wanted) = (last_index, Some(u64::MAX));
            let reject_hint = Some((0, 0));
            raft(
                ahead,
                RaftBody::AppendReply { index, commit: index, reject_hint, snapshot_wanted },
            );
            let mut append = |previous_index, previous_term, data: Bytes| {
                let entries = vec![LogEntry { term: term + 1, index: previous_index + 1, data }];
                let body = RaftBody::Append { previous_index, previous_term, commit: 0, entries };
                raft(term + 1, body);
            };
            let request = RequestId {
                client: ClientId(1),
                sequence: 1,
                answered_below: 1,
                begun: Timestamp::ZERO,
            };
            let op = WriteOp::Del(Del {
                key: Bytes::from_static(b"before"),
                tells_previous: false,
                keeps_history: false,
            });
            let last_of_all = LogCommand::write(Timestamp(i64::MAX), request, op).encode();
            append(last_index, term, last_of_all);
            append(0, 0, Bytes::new());
            lies.extend([
                ServerMessage::StateHashOk { id: 1, hash: Some(5) },
                ServerMessage::LogTermOk { id: 1, term: Some(ahead) },
                ServerMessage::ReadIndexOk { id: 1, index: u64::MAX },
                ServerMessage::Forwarded { id: 1, reply: Some(done(i64::MAX)) },
                ServerMessage::About { wall_us: i64::MAX, level: u32::MAX },
                ServerMessage::Disk { full: true },
            ]);
            // Among them those at which states are compared: the first entry of each term.
            lies.extend(
                (1..=last_index.min(30)).map(|index| ServerMessage::StateHash { index, hash: 5 }),
            );
            for lie in lies {
                let mut link = Raw::third_server(*address, self.cluster);
                link.send(&Message::Server(lie));
                link.send(&Message::Ping { nonce: 5 });
                // It has been heard then, or has cost the connection.
                let _ = link.receive();
            }
        }
    }

    /// It is gone, and the place is free.
    fn leave(self) -> u64 {
        self.left.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.place);
        self.listening.join().unwrap();
        for stream in self.dialled.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.asked.load(Ordering::Relaxed)
    }
}

/// Whatever a lying server has raised or mis-stated is put right when it has left, also where it
/// was written down.
#[test]
fn what_a_lying_server_has_said_does_not_outlast_its_leaving() {
    let flags = ["--console", "off", "--in-sync-timeout", "300ms"];
    let mut group = Group::prepare(3, &flags);
    let place = TcpListener::bind(group.addresses()[2]).unwrap();
    let addresses = group.addresses()[..2].to_vec();
    for at in [0, 1] {
        group.start_server(at);
    }
    let two = patient_client(addresses.clone());
    two.put("before", "it came").unwrap();
    let liar = Liar::take(place, status(addresses[0]).cluster, addresses.clone());
    // Twice: what is believed the first time must not open a door for the second.
    for _ in 0..2 {
        liar.say_everything();
    }
    assert!(liar.leave() > 0, "nobody asked anything");

    let goes_on = |group: &Group, servers: usize, value: &str| {
        let client = group.client();
        let version = eventually("writes go on", || client.put("after", value).ok()).timestamp;
        let day_us = 24 * 3600 * 1_000_000;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(version.0 < now.as_micros() as i64 + day_us, "{version}");
        for at in 0..servers {
            let own = group.client_of(at);
            for (key, value) in [("before", "it came"), ("after", value)] {
                eventually("reads go on", || {
                    let confirmed = own.get_linearizable(key).ok()?;
                    assert_eq!(confirmed.value(), Some(value.as_bytes()), "{key} at {at}");
                    let plain = own.get(key).ok()?;
                    assert_eq!(plain.value(), Some(value.as_bytes()), "{key} at {at}");
                    Some(())
                });
            }
        }
    };
    goes_on(&group, 2, "it left");
    for at in [0, 1] {
        group.kill(at);
    }
    for at in [0, 1] {
        group.start_server(at);
    }
    goes_on(&group, 2, "the servers were killed");
    group.start_server(2);
    goes_on(&group, 3, "the true one came");
    for at in 0..3 {
        assert!(!group.log(at).contains("panicked"), "{}", group.log(at));
    }
}

#[test]
fn a_server_that_asks_for_the_read_index_without_end_costs_nobody_anything() {
    let (group, _third, witness) = two_servers_and_a_place();
    let leader = group.leader();
    let address = group.addresses()[leader];
    let cluster = status(address).cluster;
    let before = resident(group.pid(leader));
    let mut greedy = Raw::third_server(address, cluster);
    const QUESTIONS: u64 = 2_000_000;
    assert!(QUESTIONS > 100 * limits::READ_INDEX_REQUESTS_MAX as u64);
    let mut piece = Vec::new();
    for id in 0..QUESTIONS {
        piece.extend_from_slice(&frame_of(&Message::Server(ServerMessage::ReadIndex { id })));
        if piece.len() > 256 * 1024 {
            greedy.bytes(&piece);
            piece.clear();
        }
    }
    greedy.bytes(&piece);
    greedy.assert_alive();
    witness.goes_on();
    // Others' linearizable reads are confirmed as before.
    assert!(group.client_of(leader).get_linearizable("witness").unwrap().found.is_some());
    let grown = memory(group.pid(leader), "VmHWM").saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "{grown} bytes");
    witness.finish();
}

/// A frame of nine and a half megabytes of empty pairs: a request that breaks a limit is told so,
/// and its connection goes on.
#[test]
fn a_request_with_too_many_pairs_is_invalid_and_its_connection_goes_on() {
    let (_group, address, witness) = one_server();
    let mut raw = Raw::client(address);
    let body = too_many_pairs();
    for _ in 0..3 {
        raw.bytes(&frame(&body));
        match raw.receive() {
            Some(Message::Reply { id: 7, body: Reply::Error(error) }) => {
                assert_eq!(error.code, ErrorCode::Invalid);
                let said = "a list announces 1900000 elements and may have 131072: make it several \
                            requests";
                assert_eq!(error.message, said);
            }
            other => panic!("no error but {other:?}"),
        }
    }
    raw.assert_alive();
    witness.finish();
}

/// One attacker: frames of nine and a half megabytes of empty pairs, which are refused, or writes
/// on 125,000 keys, which are not, each with a short write behind it.
fn attack_with_large_frames(address: SocketAddr, number: u64, rounds: u64) {
    let mut raw = Raw::client(address);
    let refused = too_many_pairs();
    for round in 0..rounds {
        if number.is_multiple_of(2) {
            raw.bytes(&frame(&refused));
            match raw.receive() {
                Some(Message::Reply { id: 7, body: Reply::Error(error) }) => {
                    // Or there was no memory for it.
                    let is_expected =
                        matches!(error.code, ErrorCode::Invalid | ErrorCode::Busy { .. });
                    assert!(is_expected, "{}", error.message);
                }
                other => panic!("no error but {other:?}"),
            }
            continue;
        }
        let pair = |key: u32| (Bytes::from(format!("{number}-{key}")), Bytes::from_static(b"v"));
        let all = WriteOp::PutAll(PutAll { pairs: (0..125_000).map(pair).collect() });
        let (key, value) = (Bytes::from(format!("{number}-1")), Bytes::from_static(b"after"));
        let mut made = [Timestamp::ZERO; 2];
        let ops = [all, WriteOp::Put(Put { key, value, tells_previous: false })];
        let requests = (0..).zip(ops).map(|(id, op)| {
            let sequence = 2 * round + id + 1;
            let client = ClientId(1_000 + number);
            let request = RequestId {
                client,
                sequence,
                answered_below: 2 * round + 1,
                begun: Timestamp::ZERO,
            };
            let body = Request::Write(WriteRequest { request, op });
            Message::Request { id, body }
        });
        let requests: Vec<Message> = requests.collect();
        requests.iter().for_each(|request| raw.send(request));
        let mut is_sent_late = false;
        while made.contains(&Timestamp::ZERO) {
            match raw.receive() {
                Some(Message::Reply {
                    id,
                    body: Reply::WriteOk(WriteAnswer { timestamp, .. }),
                }) => made[id as usize] = timestamp,
                // A million keys at once may take a slow machine longer than a server waits for
                // them, or than they wait for their turn.
                Some(Message::Reply { id, body: Reply::Error(error) })
                    if matches!(error.code, ErrorCode::Unconfirmed | ErrorCode::Busy { .. }) =>
                {
                    // Sent again, it may come after what was sent once.
                    is_sent_late |= id == 0;
                    raw.send(&requests[id as usize]);
                }
                other => panic!("not written but {other:?}"),
            }
        }
        assert!(is_sent_late || made[0] < made[1], "in the order sent: {made:?}");
    }
}

/// A request of 1.9 million empty pairs, as a frame's body.
fn too_many_pairs() -> Vec<u8> {
    let pairs = 1_900_000_u32;
    let head =
        b"\x81\xa7REQUEST\x92\x07\x81\xa5WRITE\x93\x94\x01\x01\x01\x01\x81\xa7PUT_ALL\x91\xdd";
    let mut body = [&head[..], &pairs.to_be_bytes()].concat();
    body.extend_from_slice(&[0x92, 0xc4, 0, 0xc4, 0].repeat(pairs as usize));
    body.push(0xc2);
    body
}

#[test]
fn eight_clients_with_large_frames_hold_up_nobody_and_change_no_leader() {
    let group = Group::start(3, &["--console", "off"]);
    let address = group.addresses()[0];
    let witness = Witness::start(group.client());
    let before = status(address);
    std::thread::scope(|scope| {
        let attackers: Vec<_> = (0..8)
            .map(|number| scope.spawn(move || attack_with_large_frames(address, number, 1)))
            .collect();
        while !attackers.iter().all(|attacker| attacker.is_finished()) {
            witness.goes_on();
        }
    });
    witness.finish();
    let after = status(address);
    assert_eq!((after.term, after.role), (before.term, Role::Leader));
}

/// Not a test but a measurement, for a quiet machine: what eight such attackers cost another
/// client, and the event loops. `ACERVO_MEASURE=1 cargo test --release --test server measure_ --
/// --nocapture`
#[test]
fn measure_what_large_frames_cost_others() {
    if std::env::var_os("ACERVO_MEASURE").is_none() {
        return;
    }
    let group = Group::start(3, &["--console", "off"]);
    let address = group.addresses()[0];
    let client = group.client();
    client.put("measure", "warm").unwrap();
    // Nobody; frames that are refused; writes that are not.
    for (kind, attackers) in
        [("no attackers", 0..0), ("refused frames", 0..8), ("long writes", 0..8)]
    {
        let term = status(address).term;
        let (mut puts, mut gets) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let (odd, rounds) = if kind == "long writes" { (1, 3) } else { (0, 50) };
            let attack =
                move |number: u64| attack_with_large_frames(address, 2 * number + odd, rounds);
            let attackers: Vec<_> =
                attackers.map(|number| scope.spawn(move || attack(number))).collect();
            let until = Instant::now() + Duration::from_secs(5);
            let attacked = || attackers.iter().any(|attacker| !attacker.is_finished());
            while attacked() || (attackers.is_empty() && Instant::now() < until) {
                let began = Instant::now();
                client.put("measure", "value").unwrap();
                puts.push(began.elapsed());
                let began = Instant::now();
                client.get("measure").unwrap();
                gets.push(began.elapsed());
            }
        });
        let terms = status(address).term - term;
        println!("{kind}: terms gone by: {terms}");
        let all = puts.iter().chain(&gets).copied().collect();
        for (what, mut latencies) in [("puts", puts), ("gets", gets), ("both", all)] {
            latencies.sort_unstable();
            let at =
                |part: usize| latencies[(latencies.len() * part / 1000).min(latencies.len() - 1)];
            println!(
                "  {} {what}: p50 {:?}, p90 {:?}, p99 {:?}, p999 {:?}, most {:?}",
                latencies.len(),
                at(500),
                at(900),
                at(990),
                at(999),
                at(1000),
            );
        }
        for server in group.addresses() {
            let status = status(server);
            println!("  {server} {:?}: longest stall {} us", status.role, status.longest_stall_us);
        }
    }
}

#[test]
fn a_server_that_answers_the_greeting_wrongly_is_named_in_the_log() {
    let (group, third, witness) = two_servers_and_a_place();
    let address = third.local_addr().unwrap();
    let cluster = status(group.addresses()[0]).cluster;
    let welcome = |cluster, node| {
        let node = NodeId(node);
        let (protocol, incarnation) = (PROTOCOL_VERSION, 9);
        Message::Welcome(Welcome {
            protocol,
            cluster,
            node,
            incarnation,
            last_index: 0,
            term: 0,
            first_leader: None,
            applied_timestamp: Timestamp::ZERO,
        })
    };
    let refused = Message::Refused { reason: "go\naway".into() };
    let answers = [
        (welcome(ClusterId(77), 3), "it belongs to another cluster, 000000000000004d"),
        (welcome(cluster, 2), "it says it is server 2"),
        (Message::Pong { nonce: 1 }, "it does not answer the greeting"),
        (refused, r"it refuses this server: go\x0aaway"),
    ];
    // Accepts until the leader dials, which is server 1 whatever the other one does.
    let accept_of = |wanted: Channel| loop {
        let mut raw = Raw::over(third.accept().unwrap().0);
        match raw.receive() {
            Some(Message::Hello(Hello {
                role: HelloRole::Server { node, channel, .. }, ..
            })) => {
                if node == NodeId(1) && channel == wanted {
                    return raw;
                }
            }
            // Dialled before, and given up since.
            None => {}
            other => panic!("no greeting but {other:?}"),
        }
    };
    let accept = || accept_of(Channel::Control);
    for (answer, said) in answers {
        let said = format!("no link to server 3 at {address}: {said}");
        eventually("the log says so", || {
            // One that was dialled a while ago may have been given up before it is answered.
            let mut raw = accept();
            raw.send(&answer);
            assert_eq!(raw.receive(), None, "the connection is given up");
            group.log(0).contains(&said).then_some(())
        });
    }

    // One that greets well, and then forgets that it was asked nothing.
    let mut odd = accept();
    odd.send(&welcome(cluster, 3));
    odd.send(&Message::Reply { id: 1, body: done(1) });
    while odd.receive().is_some() {}
    let said = format!("no link to server 3 at {address}: it sent what no server expects");
    eventually("the log says so", || group.log(0).contains(&said).then_some(()));

    // One that greets well and is silent ever after.
    let mut silent = accept();
    silent.send(&welcome(cluster, 3));
    let mut other = accept_of(Channel::Bulk);
    other.send(&welcome(cluster, 3));
    let mut pings = 0;
    while let Some(message) = silent.receive() {
        pings += u32::from(matches!(message, Message::Ping { .. }));
    }
    assert!(pings > 1, "{pings}");
    let said = format!("no link to server 3 at {address}: it is silent");
    eventually("the log says so", || group.log(0).contains(&said).then_some(()));
    accept();
    witness.finish();
}

/// Writes long values until the server is gone; the keys that were acknowledged.
fn fill(client: &Client, value: &[u8], mut gone: impl FnMut() -> bool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0..2000 {
        if gone() {
            return acknowledged;
        }
        let key = format!("key-{number}");
        if client.put(&key, value).is_ok() {
            acknowledged.push(key);
        }
    }
    panic!("the disk is never full");
}

#[test]
fn a_server_that_cannot_write_stops_and_has_acknowledged_nothing_it_does_not_have() {
    let mut group = Group::prepare(1, &["--console", "off"]);
    // Blocks of half a kibibyte or of one, as the shell likes; without the trap a signal would end
    // the process before it could see the error.
    group.start_server_from_shell(0, &[], "trap '' XFSZ && ulimit -f 20000");
    let value = vec![b'v'; 256 * 1024];
    group.leader();
    let client =
        Client::builder(group.addresses()).request_timeout(Duration::from_secs(5)).build().unwrap();
    let log = group.log_path(0);
    let broken = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains("acervo: this server stopped because it could not go on safely")
    };
    let acknowledged = fill(&client, &value, broken);
    let status = group.wait(0);
    assert!(exited_with(status, i32::from(exit_status::FAILED)), "{status}");
    assert!(!acknowledged.is_empty());

    group.start_server(0);
    // The same client: it waits until the server has replayed up to what it has seen.
    for key in &acknowledged {
        let got = client.get(key).unwrap();
        assert!(got.value() == Some(&value[..]), "{key} was acknowledged");
    }
}

#[test]
fn a_server_asked_to_stop_answers_what_it_has_taken_first() {
    let mut group = Group::start(1, &["--console", "off"]);
    let value = vec![b'v'; 100 * 1024];
    group.client().put("k", &value).unwrap();
    let mut raw = Raw::client(group.addresses()[0]);
    const READS: u64 = 500;
    let requests = (0..READS).map(|id| frame_of(&Message::Request { id, body: get(b"k", false) }));
    raw.bytes(&requests.collect::<Vec<_>>().concat());
    // All of them came in one piece: with the first answer all have been taken.
    let mut answers = 0;
    while let Some(message) = raw.receive() {
        assert!(matches!(message, Message::Reply { body: Reply::GetOk { .. }, .. }));
        if answers == 0 {
            group.signal(0, Signal::TERM);
        }
        answers += 1;
    }
    assert_eq!(answers, READS);
    assert!(exited_with(group.wait(0), 0));
    assert!(group.log(0).contains("stopping: nothing is under way"));
}

#[test]
fn a_console_that_nobody_reads_keeps_nobody_waiting() {
    let mut group = Group::prepare(1, &[]);
    let pipe = group.dir.path().join("console");
    // Opened for both directions, so that opening does not wait for a reader that never comes.
    let preparation = format!("mkfifo '{0}' && exec 1<>'{0}'", pipe.display());
    group.start_server_from_shell(0, &[], &preparation);
    let client = group.client();
    // Each line is longer than a pipe holds.
    for number in 0..3 {
        client.put(format!("key-{number}"), vec![b'v'; 1024 * 1024]).unwrap();
    }
    assert!(exited_with(group.terminate(0), 0));
    assert!(group.log(0).contains("console: nobody reads standard output"), "{}", group.log(0));
}
