//! The client library against scripted servers: what it sends, to whom, how often, and what it
//! makes of the answers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use acervo::client::{
    Ask, Causality, Client, ClientBuilder, ClientError, Condition, Event, Timing,
};
use acervo::model::{
    ClientId, Effect, Facts, OpResult, Operation, PageNext, Previous, Put, ReadView, RequestId,
    Timestamp, Version, WriteAnswer, WriteOp,
};
use acervo::wire::message::{ErrorCode, ErrorReply, GetRequest, Message, ReadAt, Reply, Request};

use crate::fake_server::{
    FakeOptions, FakeServer, Heard, Link, busy, error, missing, nobody, put_ok, value, write_ok,
};

/// Seeds under which a client of two servers is certain to have started with each of them.
const SEEDS: std::ops::Range<u64> = 0..16;

/// How long anything that must happen may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn client_of(servers: impl IntoIterator<Item = SocketAddr>) -> ClientBuilder {
    let timing = Timing { hedge_delay: PATIENCE, ..Timing::default() };
    Client::builder(servers).client_id(ClientId(42)).timing(timing)
}

/// Short where a test waits for them on purpose. No request is sent to a second server while the
/// first may still answer, so that a slow machine changes nothing.
fn brisk() -> Timing {
    Timing {
        hedge_delay: PATIENCE,
        ping_interval: Duration::from_millis(20),
        silence_timeout: Duration::from_millis(200),
        reach_timeout: Duration::from_millis(50),
        ..Timing::default()
    }
}

/// Greets, and never says another word.
fn silent_server() -> FakeServer {
    FakeServer::start_silent(|_, _, _| {})
}

fn close(link: &Link) {
    link.0.lock().unwrap().shutdown(Shutdown::Both).unwrap();
}

fn try_other(timestamp: i64) -> Reply {
    let applied = Timestamp(timestamp);
    Reply::TryOtherServerOrLater { timestamp: Some(applied), applied }
}

fn connections(server: &FakeServer) -> usize {
    server.shared.heard.lock().unwrap().connections.len()
}

fn wait_until(server: &FakeServer, condition: impl Fn(&Heard) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut heard = server.shared.heard.lock().unwrap();
    while !condition(&heard) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "gave up waiting; heard {:?}", heard.requests);
        heard = server.shared.changed.wait_timeout(heard, left).unwrap().0;
    }
}

fn writes(server: &FakeServer) -> Vec<RequestId> {
    let request = |request| match request {
        Request::Write(write) => Some(write.request),
        _ => None,
    };
    server.requests().into_iter().filter_map(request).collect()
}

/// The greatest version seen of the key, and the session, of a GET of the newest.
fn floors(get: &GetRequest) -> (Option<i64>, Option<i64>) {
    let ReadAt::Newest { seen } = get.read_at else { panic!("{get:?}") };
    (seen.map(|seen| seen.0), get.session.map(|session| session.0))
}

fn gets(server: &FakeServer) -> Vec<GetRequest> {
    let request = |request| match request {
        Request::Get(get) => Some(get),
        _ => None,
    };
    server.requests().into_iter().filter_map(request).collect()
}

#[test]
fn a_retried_write_keeps_its_identity_on_another_server() {
    let mut broken_attempts = 0;
    for seed in SEEDS {
        let breaking = FakeServer::start(|_, _, link| close(link));
        let good = FakeServer::start(|id, _, link| link.reply(id, put_ok(5)));
        let client = client_of([breaking.address, good.address]).seed(seed).build().unwrap();
        let done = client.put("k", "v").unwrap();
        assert_eq!((done.timestamp, done.server), (Timestamp(5), good.address));
        // Whichever server greeted first has said when it begins.
        let begun = writes(&good)[0].begun;
        assert!([breaking.shared.applied(), good.shared.applied()].contains(&begun));
        let (client, sequence, answered_below) = (ClientId(42), 1, 1);
        let identity = RequestId { client, sequence, answered_below, begun };
        assert_eq!(writes(&good), [identity]);
        assert!(writes(&breaking).iter().all(|sent| *sent == identity));
        broken_attempts += writes(&breaking).len();
    }
    assert!(broken_attempts > 0, "no seed of {SEEDS:?} asked the breaking server first");
}

#[test]
fn the_first_server_is_chosen_at_random() {
    let servers: Vec<_> =
        (0..3).map(|_| FakeServer::start(|id, _, link| link.reply(id, missing(0)))).collect();
    let client = client_of(servers.iter().map(|server| server.address)).seed(1).build().unwrap();
    let asked: BTreeSet<_> = (0..64).map(|_| client.get("k").unwrap().server).collect();
    assert_eq!(asked.len(), 3);
    // And each is asked on one connection that is kept.
    assert!(servers.iter().all(|server| connections(server) == 1));
}

#[test]
fn a_server_that_is_behind_sends_the_client_to_another() {
    for seed in SEEDS {
        let behind = FakeServer::start(|id, _, link| link.reply(id, try_other(1)));
        let good = FakeServer::start(|id, _, link| link.reply(id, value("new", 9)));
        let client = client_of([behind.address, good.address]).seed(seed).build().unwrap();
        let got = client.get("k").unwrap();
        assert_eq!((got.value(), got.server), (Some(&b"new"[..]), good.address));
    }
}

#[test]
fn one_lagging_server_is_asked_again_until_it_has_caught_up() {
    let count = AtomicUsize::new(0);
    let server = FakeServer::start(move |id, _, link| {
        let late = count.fetch_add(1, Ordering::SeqCst) < 5;
        link.reply(id, if late { try_other(1) } else { value("v", 9) });
    });
    let client = client_of([server.address]).build().unwrap();
    assert_eq!(client.get("k").unwrap().timestamp(), Some(Timestamp(9)));
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn a_busy_server_is_given_the_time_it_asks_for() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let server = FakeServer::start(move |id, _, link| {
        let mut times = seen.lock().unwrap();
        times.push(Instant::now());
        let busy = busy("the queue is full", 120);
        link.reply(id, if times.len() == 1 { busy } else { put_ok(3) });
    });
    let client = client_of([server.address]).build().unwrap();
    assert_eq!(client.put("k", "v").unwrap().timestamp, Timestamp(3));
    let times = times.lock().unwrap();
    assert!(times[1] - times[0] >= Duration::from_millis(120));
    let sent = writes(&server);
    assert_eq!(sent[0], sent[1]);
}

#[test]
fn servers_that_stop_or_cannot_read_their_store_are_left_for_others() {
    for code in [ErrorCode::ShuttingDown, ErrorCode::Internal] {
        for seed in SEEDS {
            let useless = FakeServer::start(move |id, _, link| link.reply(id, error(code, "no")));
            let good = FakeServer::start(|id, _, link| link.reply(id, put_ok(3)));
            let client = client_of([useless.address, good.address]).seed(seed).build().unwrap();
            assert_eq!(client.put("k", "v").unwrap().server, good.address);
        }
    }
}

#[test]
fn what_nothing_can_cure_is_handed_to_the_caller_at_once() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Write(write) = request else { panic!("{request:?}") };
        let WriteOp::Put(Put { key, .. }) = write.op else { panic!("{:?}", write.op) };
        let code = match &key[..] {
            b"majority" => ErrorCode::NoMajority,
            b"invalid" => ErrorCode::Invalid,
            _ => ErrorCode::StaleRequest,
        };
        link.reply(id, error(code, "1 of 3 servers\nanswers"));
    });
    let client = client_of([server.address]).build().unwrap();
    let (server_address, message) = (server.address, r"1 of 3 servers\x0aanswers".to_owned());
    let expected = ClientError::NoMajority { server: server_address, message: message.clone() };
    assert_eq!(client.put("majority", "v"), Err(expected));
    let expected = ClientError::Invalid { server: server_address, message: message.clone() };
    assert_eq!(client.put("invalid", "v"), Err(expected));
    let effect = Effect::MayBeDone;
    let expected = ClientError::StaleRequest { server: server_address, message, effect };
    assert_eq!(client.put("stale", "v"), Err(expected));
    assert_eq!(server.requests().len(), 3);
    // What came to nothing is not sent again, and what is sent later does not rest on it.
    let numbers = |write: &RequestId| (write.sequence, write.answered_below);
    let numbers: Vec<_> = writes(&server).iter().map(numbers).collect();
    assert_eq!(numbers, [(1, 1), (2, 2), (3, 3)]);
}

/// The group may have forgotten a client that has not written for long.
#[test]
fn a_forgotten_client_begins_anew_with_what_it_is_told_unless_its_write_may_have_been_applied() {
    let forgetting = |effect| {
        FakeServer::start(move |id, request, link| {
            let Request::Write(write) = request else { panic!("{request:?}") };
            let known = write.request.begun == Timestamp(70_000);
            let code = ErrorCode::UnknownSession { begin_anew_at: Timestamp(70_000) };
            let unknown = ErrorReply { code, message: "who?".to_owned(), effect };
            link.reply(id, if known { put_ok(80_000) } else { Reply::Error(unknown) });
        })
    };
    let server = forgetting(Effect::NotDone);
    let client = client_of([server.address]).build().unwrap();
    assert_eq!(client.put("k", "v").unwrap().timestamp, Timestamp(80_000));
    client.put("k", "v").unwrap();
    let sent = writes(&server);
    assert_eq!((sent[0].client, sent[0].begun), (ClientId(42), server.shared.applied()));
    assert_ne!(sent[1].client, ClientId(42));
    let begun = Timestamp(70_000);
    let anew = RequestId { client: sent[1].client, sequence: 1, answered_below: 1, begun };
    assert_eq!(sent[1..], [anew, RequestId { sequence: 2, answered_below: 2, ..anew }]);

    let server = forgetting(Effect::MayBeDone);
    let client = client_of([server.address]).build().unwrap();
    let error = client.put("k", "v").unwrap_err();
    assert_eq!((error.effect(), writes(&server).len()), (Effect::MayBeDone, 1), "{error}");
    client.put("k", "v").unwrap();
}

/// An attempt that found nobody listening counted as one that may have been carried out.
#[test]
fn a_forgotten_client_begins_anew_also_when_another_server_was_not_there() {
    for seed in SEEDS {
        let server = FakeServer::start(move |id, request, link| {
            let Request::Write(write) = request else { panic!("{request:?}") };
            let known = write.request.begun == Timestamp(70_000);
            let code = ErrorCode::UnknownSession { begin_anew_at: Timestamp(70_000) };
            link.reply(id, if known { put_ok(80_000) } else { error(code, "who?") });
        });
        let client = client_of([nobody(), server.address]).seed(seed).build().unwrap();
        assert_eq!(client.put("k", "v").unwrap().timestamp, Timestamp(80_000), "seed {seed}");
    }
}

#[test]
fn refused_connections_are_reported_at_once() {
    assert!(Timing::default().reach_timeout < Duration::from_secs(1), "a person waits");
    let client = Client::connect([nobody(), nobody()]).unwrap();
    let error = client.get("k").unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("connection refused"), "{error}");
}

#[test]
fn a_silent_server_is_given_up_and_its_requests_go_elsewhere() {
    let mut silent_attempts = 0;
    for seed in 0..6 {
        let silent = silent_server();
        let good = FakeServer::start(|id, _, link| link.reply(id, put_ok(5)));
        let servers = [silent.address, good.address];
        let client = client_of(servers).seed(seed).timing(brisk()).build().unwrap();
        assert_eq!(client.put("k", "v").unwrap().server, good.address);
        if let Some(first) = writes(&silent).first() {
            silent_attempts += 1;
            assert_eq!(*first, writes(&good)[0]);
            assert!(
                silent.shared.heard.lock().unwrap().pings > 0,
                "it was asked before it was given up"
            );
        }
    }
    assert!(silent_attempts > 0, "no seed asked the silent server first");
}

#[test]
fn a_frozen_server_is_passed_over_long_before_its_connection_is_given_up() {
    // Both what it owes and what it does not even greet.
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mute, greeting) = (listening.local_addr().unwrap(), silent_server());
    let never = Timing {
        connect_timeout: PATIENCE,
        silence_timeout: PATIENCE,
        hedge_delay: Duration::from_millis(20),
        ..Timing::default()
    };
    for frozen in [mute, greeting.address] {
        for seed in SEEDS {
            let good = FakeServer::start(|id, request, link| match request {
                Request::Write(_) => link.reply(id, put_ok(5)),
                _ => link.reply(id, missing(5)),
            });
            let client = client_of([frozen, good.address]).seed(seed).timing(never);
            let client = client.request_timeout(PATIENCE).build().unwrap();
            assert_eq!(client.get("k").unwrap().server, good.address);
            assert_eq!(client.put("k", "v").unwrap().server, good.address);
        }
    }
    // It got each request under the identity that the other got.
    assert!(writes(&greeting).iter().all(|write| write.sequence == 1));
}

/// Healthy was whoever greeted: a server that had frozen since was asked first by every third call,
/// and each of them waited for it.
#[test]
fn a_server_that_froze_after_it_greeted_is_asked_by_the_calls_under_way_and_no_later_one() {
    const CALLERS: usize = 4;
    const CALLS: usize = 60;
    let answer = |id, request, link: &Link| match request {
        Request::Write(_) => link.reply(id, put_ok(5)),
        Request::Get(_) => link.reply(id, value("v", 5)),
        _ => link.reply(id, busy("asked for something else", 0)),
    };
    fn in_the_middle(_: u64, request: Request, link: &Link) {
        if matches!(request, Request::Get(_) | Request::Write(_)) {
            // A frame of a hundred bytes, of which one comes.
            let _ = link.0.lock().unwrap().write_all(&[0, 0, 0, 100, 0x93]);
        }
    }
    let kinds: [fn() -> FakeServer; 2] =
        [silent_server, || FakeServer::start_silent(in_the_middle)];
    for (seed, start) in (0..3).flat_map(|seed| kinds.map(|start| (seed, start))) {
        println!("seed {seed}");
        let frozen = start();
        let good = [FakeServer::start(answer), FakeServer::start(answer)];
        // A busy machine is not to look like a server that is frozen.
        let timing = Timing {
            hedge_delay: Duration::from_millis(200),
            silence_timeout: PATIENCE,
            ..Timing::default()
        };
        let client = client_of([good[0].address, frozen.address, good[1].address]).seed(seed);
        let client = client.timing(timing).build().unwrap();
        // The leader is the one that freezes.
        client.hint_leader(Some(frozen.address));
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    for call in 0..CALLS {
                        match call % 2 {
                            0 => assert_ne!(client.get("k").unwrap().server, frozen.address),
                            _ => assert_ne!(client.put("k", "v").unwrap().server, frozen.address),
                        }
                    }
                });
            }
        });
        let asked = gets(&frozen).len() + writes(&frozen).len();
        assert!((1..=CALLERS).contains(&asked), "{asked} of {} calls", CALLERS * CALLS);
    }
}

/// Passes everything on, both ways, until one of them ends.
fn pass_all(client: &TcpStream, server: SocketAddr) {
    let server = &TcpStream::connect(server).unwrap();
    for (from, to) in [(client, server), (server, client)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

/// Each server that had not greeted in time got the write as soon as it did, and passed it on.
#[test]
fn a_write_leaves_for_one_of_several_servers_that_greet_late_and_for_another_when_that_one_breaks()
{
    for breaks in [false, true] {
        let held: Arc<Mutex<Vec<(u64, Link)>>> = Arc::default();
        let start = || {
            let held = Arc::clone(&held);
            FakeServer::start(move |id, request, link| match request {
                Request::Write(_) => held.lock().unwrap().push((id, link.clone())),
                _ => link.reply(id, error(ErrorCode::Invalid, "no status")),
            })
        };
        let (servers, gates) =
            ([start(), start()], [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap()));
        let addresses = gates.each_ref().map(|gate| gate.local_addr().unwrap());
        let timing = Timing {
            connect_timeout: PATIENCE,
            silence_timeout: PATIENCE,
            hedge_delay: Duration::from_millis(200),
            ..Timing::default()
        };
        let client = client_of(addresses).timing(timing).request_timeout(PATIENCE).build().unwrap();
        // Both are asked, one after the other, and neither has greeted.
        let putting = client.clone();
        let put = thread::spawn(move || putting.put("k", "v"));
        let clients = gates.each_ref().map(|gate| gate.accept().unwrap().0);
        for (client, server) in clients.iter().zip(&servers) {
            pass_all(client, server.address);
        }
        // What was sent on either connection before has arrived when this is answered.
        for address in addresses {
            client.status(address).unwrap_err();
        }
        let deadline = Instant::now() + PATIENCE;
        while held.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "no server has got the write");
            thread::yield_now();
        }
        let all = || servers.iter().flat_map(writes).collect::<Vec<_>>();
        assert_eq!(all().len(), 1);
        let (id, link) = held.lock().unwrap().remove(0);
        match breaks {
            false => link.reply(id, put_ok(5)),
            true => {
                close(&link);
                while held.lock().unwrap().is_empty() {
                    assert!(Instant::now() < deadline, "the other server does not get the write");
                    thread::yield_now();
                }
                let (id, link) = held.lock().unwrap().remove(0);
                link.reply(id, put_ok(5));
            }
        }
        assert_eq!(put.join().unwrap().unwrap().timestamp, Timestamp(5));
        let sent = all();
        assert_eq!(sent.len(), 1 + usize::from(breaks));
        assert!(sent.iter().all(|write| *write == sent[0]), "{sent:?}");
    }
}

#[test]
fn a_large_write_is_not_held_up_by_a_frozen_server_that_takes_no_more_of_it() {
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let frozen_at = frozen.local_addr().unwrap();
    // Greets, and reads no more than that.
    let greeted = thread::spawn(move || {
        let greeting = silent_server();
        let (client, _) = frozen.accept().unwrap();
        let server = TcpStream::connect(greeting.address).unwrap();
        pass_frame(&client, &server);
        pass_frame(&server, &client);
        (client, server, greeting)
    });
    let good = FakeServer::start(|id, _, link| link.reply(id, put_ok(5)));
    let timing = Timing {
        silence_timeout: PATIENCE,
        hedge_delay: Duration::from_millis(50),
        ..Timing::default()
    };
    let client = client_of([frozen_at, good.address]).seed(1).timing(timing).build().unwrap();
    client.hint_leader(Some(frozen_at));
    thread::scope(|scope| {
        let put = |_| scope.spawn(|| client.put("k", vec![7; 7 << 20]).unwrap().server);
        let puts: Vec<_> = (0..4).map(put).collect();
        for put in puts {
            assert_eq!(put.join().unwrap(), good.address);
        }
    });
    drop(client);
    drop(greeted.join().unwrap());
}

/// Passes one frame on, and nothing that follows it.
fn pass_frame(mut from: &TcpStream, mut to: &TcpStream) {
    let mut header = [0; 4];
    from.read_exact(&mut header).unwrap();
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    from.read_exact(&mut body).unwrap();
    to.write_all(&header).unwrap();
    to.write_all(&body).unwrap();
}

#[test]
fn no_majority_of_one_server_is_not_final_while_another_can_write() {
    for seed in SEEDS {
        let cut_off =
            FakeServer::start(|id, _, link| link.reply(id, error(ErrorCode::NoMajority, "1")));
        let good = FakeServer::start(|id, _, link| link.reply(id, put_ok(5)));
        let client = client_of([cut_off.address, good.address]).seed(seed).build().unwrap();
        for _ in 0..8 {
            assert_eq!(client.put("k", "v").unwrap().server, good.address);
        }
        assert!(writes(&cut_off).len() <= 1, "it is remembered");
    }
    let cut_off =
        || FakeServer::start(|id, _, link| link.reply(id, error(ErrorCode::NoMajority, "1 of 2")));
    let servers = [cut_off(), cut_off()];
    let client = client_of(servers.iter().map(|server| server.address)).build().unwrap();
    assert!(matches!(client.put("k", "v"), Err(ClientError::NoMajority { .. })));
    assert!(servers.iter().all(|server| writes(server).len() == 1));
}

#[test]
fn an_answer_may_take_long_as_long_as_the_server_is_heard() {
    let held = Arc::new(Mutex::new(None));
    let hold = Arc::clone(&held);
    let server = FakeServer::start(move |id, _, link| {
        *hold.lock().unwrap() = Some((id, link.clone()));
    });
    // Patient enough for a slow machine's PONGs to be in time.
    let timing = Timing { silence_timeout: Duration::from_secs(2), ..brisk() };
    let client = client_of([server.address]).timing(timing).build().unwrap();
    thread::scope(|scope| {
        let writing = scope.spawn(|| client.put("k", "v"));
        // Pings go out at least an interval apart, so this is longer than any silence allowed.
        let intervals = timing.silence_timeout.as_millis() / timing.ping_interval.as_millis();
        wait_until(&server, |heard| heard.pings > intervals as usize);
        let (id, link) = held.lock().unwrap().take().unwrap();
        link.reply(id, put_ok(8));
        assert_eq!(writing.join().unwrap().unwrap().timestamp, Timestamp(8));
    });
    assert_eq!((server.requests().len(), connections(&server)), (1, 1));
}

#[test]
fn a_server_that_asks_whether_the_client_is_there_hears_that_it_is() {
    let server = FakeServer::start(move |id, _, link| {
        link.send(&Message::Ping { nonce: 77 });
        link.reply(id, put_ok(1));
    });
    let client = client_of([server.address]).build().unwrap();
    client.put("k", "v").unwrap();
    wait_until(&server, |heard| heard.pongs == [77]);
}

#[test]
fn answers_may_come_in_any_order() {
    const COUNT: usize = 16;
    let held = Mutex::new(Vec::new());
    let server = FakeServer::start(move |id, request, link| {
        let Request::Get(get) = request else { panic!("{request:?}") };
        let mut held = held.lock().unwrap();
        held.push((id, get.key));
        if held.len() == COUNT {
            for (id, key) in held.drain(..).rev() {
                let timestamp = Timestamp(1);
                let found = Some(Version { timestamp, value: key, facts: None });
                link.reply(id, Reply::GetOk { found, as_of: timestamp });
            }
        }
    });
    let client = client_of([server.address]).build().unwrap();
    thread::scope(|scope| {
        for number in 0..COUNT {
            let client = &client;
            scope.spawn(move || {
                let key = format!("key {number}");
                assert_eq!(client.get(&key).unwrap().value(), Some(key.as_bytes()));
            });
        }
    });
    assert_eq!(connections(&server), 1);
}

#[test]
fn answered_below_never_passes_a_write_that_is_under_way() {
    // The server checks, as the replicated session would: a sequence at or above every
    // `answered_below` it has been told of, and each only once.
    let seen = Mutex::new((BTreeSet::new(), 0));
    let clock = AtomicI64::new(1);
    let failures = Arc::new(Mutex::new(Vec::new()));
    let failed = Arc::clone(&failures);
    let server = FakeServer::start(move |id, request, link| {
        let Request::Write(write) = request else { panic!("{request:?}") };
        let RequestId { sequence, answered_below, .. } = write.request;
        let mut seen = seen.lock().unwrap();
        let (sequences, below) = &mut *seen;
        if sequence < *below || answered_below > sequence || !sequences.insert(sequence) {
            failed.lock().unwrap().push(write.request);
        }
        *below = answered_below.max(*below);
        link.reply(id, put_ok(clock.fetch_add(1, Ordering::SeqCst)));
    });
    let client = client_of([server.address]).build().unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    client.put("k", "v").unwrap();
                }
            });
        }
    });
    assert_eq!(*failures.lock().unwrap(), []);
    assert_eq!(server.requests().len(), 800);
    client.put("k", "v").unwrap();
    let last = *writes(&server).last().unwrap();
    assert_eq!((last.sequence, last.answered_below), (801, 801));
}

#[test]
fn a_session_sends_the_greatest_timestamp_with_every_key() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(_) => link.reply(id, put_ok(10)),
        Request::Get(get) if get.key == "missing" => {
            link.reply(id, missing(if get.linearizable { 50 } else { 30 }));
        }
        Request::Get(_) => link.reply(id, value("v", 40)),
        other => panic!("nobody asked {other:?}"),
    });
    let client = client_of([server.address]).build().unwrap();
    client.put("a", "v").unwrap();
    client.get("missing").unwrap();
    client.get("a").unwrap();
    client.get_linearizable("missing").unwrap();
    let sent: Vec<_> = gets(&server).iter().map(|get| (floors(get), get.linearizable)).collect();
    let expected =
        [((None, Some(10)), false), ((Some(10), Some(30)), false), ((None, Some(40)), true)];
    assert_eq!(sent, expected);

    // Another client continues where this one stands.
    let other = client_of([server.address]).session(client.session_token()).build().unwrap();
    other.get("a").unwrap();
    assert_eq!(gets(&server).last().unwrap().session, Some(Timestamp(50)));
}

#[test]
fn per_key_a_client_sends_what_it_saw_of_that_key() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(write)
            if write.op.tells_before(OpResult::Done).is_some_and(|key| key == "gone") =>
        {
            link.reply(id, write_ok(20, Some((5, "old"))));
        }
        Request::Write(_) => link.reply(id, put_ok(10)),
        Request::Get(_) => link.reply(id, missing(30)),
        other => panic!("nobody asked {other:?}"),
    });
    let client = client_of([server.address]).causality(Causality::PerKey).build().unwrap();
    client.put("a", "v").unwrap();
    assert_eq!(client.del("gone").unwrap().previous.unwrap().timestamp, Timestamp(5));
    for key in ["a", "a", "gone", "other"] {
        client.get(key).unwrap();
    }
    let sent: Vec<_> = gets(&server).iter().map(floors).collect();
    let expected = [(Some(10), None), (Some(10), Some(30)), (Some(20), None), (None, None)];
    assert_eq!(sent, expected);
}

#[test]
fn no_thread_is_given_a_value_older_than_one_another_thread_was_given() {
    let (hold, held) = mpsc::channel();
    let server = FakeServer::start(move |id, request, link| {
        let Request::Get(get) = request else { panic!("{request:?}") };
        match get.read_at {
            ReadAt::Newest { seen: None } => hold.send((id, link.clone())).unwrap(),
            _ => link.reply(id, value("newest", 11)),
        }
    });
    let client = client_of([server.address]).build().unwrap();
    thread::scope(|scope| {
        let early = scope.spawn(|| client.get("k").unwrap());
        let (first, first_link): (u64, Link) = held.recv_timeout(PATIENCE).unwrap();
        let late = scope.spawn(|| client.get("k").unwrap());
        let (second, second_link) = held.recv_timeout(PATIENCE).unwrap();
        second_link.reply(second, value("new", 9));
        assert_eq!(late.join().unwrap().timestamp(), Some(Timestamp(9)));
        first_link.reply(first, value("old", 7));
        assert_eq!(early.join().unwrap().timestamp(), Some(Timestamp(11)));
    });
    assert_eq!(floors(&gets(&server)[2]).0, Some(9));
}

#[test]
fn with_no_server_reachable_each_is_named_with_the_reason() {
    let servers = [nobody(), nobody()];
    let client = client_of(servers).timing(brisk()).build().unwrap();
    let Err(ClientError::Unreachable { servers: failures, .. }) = client.get("k") else {
        panic!("reached somebody")
    };
    let listed: Vec<_> = failures.iter().map(|failure| failure.server).collect();
    assert_eq!(listed, servers);
    assert!(failures.iter().all(|failure| failure.reason == "connection refused"), "{failures:?}");
}

#[test]
fn a_request_ends_within_its_time_and_says_what_stood_in_the_way() {
    let behind = FakeServer::start(|id, _, link| link.reply(id, try_other(1)));
    let timeout = Duration::from_millis(100);
    let client = client_of([behind.address]).request_timeout(timeout).build().unwrap();
    let Err(ClientError::TimedOut { timeout: told, last, effect: None }) = client.get("k") else {
        panic!("an answer came")
    };
    assert_eq!(told, timeout);
    assert!(last.contains(&behind.address.to_string()), "{last}");

    let mute = FakeServer::start(|_, _, _| {});
    let client = client_of([mute.address]).request_timeout(timeout).build().unwrap();
    assert!(matches!(client.put("k", "v"), Err(ClientError::TimedOut { .. })));
    // The write is finished for good; the next does not wait for it.
    assert!(matches!(client.put("k", "v"), Err(ClientError::TimedOut { .. })));
    let sent = writes(&mute);
    assert!(sent.iter().all(|write| write.answered_below == write.sequence), "{sent:?}");
}

#[test]
fn a_kept_connection_that_ended_is_opened_again_without_a_word() {
    let server = FakeServer::start(|id, _, link| link.reply(id, put_ok(1)));
    let client = client_of([server.address]).build().unwrap();
    client.put("k", "v").unwrap();
    server.break_connections();
    let (events, reports) = mpsc::channel();
    let ask = Ask::Put { key: "k".into(), value: "v".into() };
    client.submit(ask, move |event| events.send(event).unwrap()).unwrap();
    assert!(matches!(reports.recv_timeout(PATIENCE), Ok(Event::PutOk(_))));
    assert_eq!(connections(&server), 2);
}

#[test]
fn a_server_of_another_group_is_not_believed() {
    let [ours, theirs] = [(7, 1), (8, 2)].map(|(cluster, timestamp)| {
        let options = FakeOptions { cluster, ..Default::default() };
        FakeServer::start_with(options, move |id, _, link| link.reply(id, put_ok(timestamp)))
    });
    let client = client_of([ours.address, theirs.address]).seed(3).build().unwrap();
    let first = client.put("k", "v").unwrap().server;
    assert!((0..16).all(|_| client.put("k", "v").unwrap().server == first));
}

#[test]
fn status_is_asked_of_the_server_named() {
    let server = FakeServer::start(|id, _, link| link.reply(id, busy("full", 1)));
    let down = nobody();
    let client = client_of([server.address, down]).build().unwrap();
    let last = format!("{}: full", server.address);
    assert_eq!(client.status(server.address), Err(ClientError::Unavailable { last, effect: None }));
    let Err(ClientError::Unreachable { servers, .. }) = client.status(down) else {
        panic!("reached")
    };
    assert_eq!(servers.len(), 1);
    let stranger = nobody();
    assert_eq!(client.status(stranger), Err(ClientError::UnknownServer(stranger)));
}

/// Submits, and collects the events up to the last one.
fn submit(client: &Client, ask: Ask) -> Vec<Event> {
    let (events, reports) = mpsc::channel();
    client.submit(ask, move |event| drop(events.send(event))).unwrap();
    // The sender goes away with the request, whose time is bounded.
    reports.iter().collect()
}

#[test]
fn a_submitted_request_shows_the_refusal_instead_of_retrying() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(_) => link.reply(id, put_ok(9)),
        _ => link.reply(id, try_other(4)),
    });
    let client = client_of([server.address]).causality(Causality::PerKey).build().unwrap();
    client.put("k", "v").unwrap();
    let refusal = Event::TryOtherServerOrLater {
        client_timestamp: Some(Timestamp(9)),
        timestamp: Some(Timestamp(4)),
        server: server.address,
    };
    assert_eq!(submit(&client, Ask::Get { key: "k".into() }), [refusal]);
    assert_eq!(gets(&server).len(), 1);
}

#[test]
fn a_submitted_request_goes_past_servers_that_cannot_be_reached_and_names_them() {
    let mut unreachable = 0;
    for seed in SEEDS {
        let down = nobody();
        let good = FakeServer::start(|id, _, link| link.reply(id, missing(2)));
        let client = client_of([down, good.address]).seed(seed).build().unwrap();
        let events = submit(&client, Ask::Get { key: "k".into() });
        let (last, before) = events.split_last().unwrap();
        assert!(matches!(last, Event::Got { found: None, .. }), "{last:?}");
        for event in before {
            let Event::Unreachable(failure) = event else { panic!("{event:?}") };
            assert_eq!(failure.server, down);
            unreachable += 1;
        }
    }
    assert!(unreachable > 0, "no seed asked the dead server first");

    let client = client_of([nobody(), nobody()]).build().unwrap();
    let events = submit(&client, Ask::Put { key: "k".into(), value: "v".into() });
    assert!(
        matches!(
            &events[..],
            [
                Event::Unreachable(_),
                Event::Unreachable(_),
                Event::Failed(ClientError::Unreachable { .. })
            ]
        ),
        "{events:?}"
    );
}

/// "No majority" was said of writes that had taken effect.
#[test]
fn an_error_of_a_write_says_what_is_known_of_its_effect() {
    let timeout = Duration::from_millis(200);
    let effect = |servers: Vec<SocketAddr>| {
        let client = client_of(servers).request_timeout(timeout).timing(brisk()).build().unwrap();
        let error = client.put("k", "v").unwrap_err();
        (error.effect(), error)
    };
    let answering = |code, effect| {
        FakeServer::start(move |id, _, link| {
            let reply = ErrorReply::not_done(code, "1 of 3".to_owned());
            link.reply(id, Reply::Error(ErrorReply { effect, ..reply }));
        })
    };
    let mute = || FakeServer::start(|_, _, _| {});

    let (known, error) = effect(vec![nobody(), nobody()]);
    assert_eq!(known, Effect::NotDone, "{error}");
    assert!(error.to_string().ends_with("Nothing was written"), "{error}");
    let refusing = answering(ErrorCode::NoMajority, Effect::NotDone);
    let (known, error) = effect(vec![refusing.address]);
    assert_eq!(known, Effect::NotDone, "{error}");
    assert!(matches!(error, ClientError::NoMajority { .. }), "{error}");
    let silent = mute();
    let (known, error) = effect(vec![silent.address]);
    assert_eq!(known, Effect::MayBeDone, "{error}");
    // One server has it, perhaps; that the other knows of no majority does not change that.
    let (known, error) = effect(vec![silent.address, refusing.address]);
    if silent.requests().len() > 1 {
        assert_eq!(known, Effect::MayBeDone, "{error}");
        assert!(!error.to_string().contains("majority"), "{error}");
    }
    for effect_told in [Effect::MayBeDone, Effect::Done] {
        let server = answering(ErrorCode::Unconfirmed, effect_told);
        let (known, error) = effect(vec![server.address]);
        assert_eq!(known, effect_told, "{error}");
    }
}

/// "Nothing was written" was said of a write that waited for the server's greeting, and left when
/// it came.
#[test]
fn a_write_that_was_given_up_before_the_server_greeted_is_never_sent() {
    let late = TcpListener::bind("127.0.0.1:0").unwrap();
    let behind = FakeServer::start(|id, _, link| link.reply(id, put_ok(5)));
    let patient =
        Timing { connect_timeout: PATIENCE, reach_timeout: PATIENCE, ..Timing::default() };
    let client = client_of([late.local_addr().unwrap()]).timing(patient);
    let client = client.request_timeout(Duration::from_millis(100)).build().unwrap();
    let error = client.put("k", "given up").unwrap_err();
    assert_eq!(error.effect(), Effect::NotDone, "{error}");

    // Now it greets, on the connection that has waited for it all the time.
    let (to_client, _) = late.accept().unwrap();
    let to_server = TcpStream::connect(behind.address).unwrap();
    let relay = |mut from: TcpStream, mut to: TcpStream| {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        })
    };
    relay(to_client.try_clone().unwrap(), to_server.try_clone().unwrap());
    relay(to_server, to_client);
    while client.put("k", "wanted").is_err() {}
    let values = behind.requests().into_iter().map(|request| match request {
        Request::Write(write) => write.op,
        other => panic!("{other:?}"),
    });
    let wanted =
        WriteOp::Put(Put { key: "k".into(), value: "wanted".into(), tells_previous: false });
    assert!(values.collect::<Vec<_>>().iter().all(|sent| *sent == wanted));
}

/// A server that refuses a write for what it is knows nothing of the copy that another one took.
#[test]
fn a_refusal_of_one_server_does_not_hide_what_another_may_have_done() {
    let mut taken = [0, 0];
    let codes = [ErrorCode::Invalid, ErrorCode::DiskFull];
    for (at, seed) in [0, 1].into_iter().flat_map(|at| SEEDS.map(move |seed| (at, seed))) {
        let breaking = FakeServer::start(|_, _, link| close(link));
        let refusing = FakeServer::start(move |id, _, link| {
            link.reply(id, error(codes[at], "the value is too long"));
        });
        let servers = [breaking.address, refusing.address];
        let client = client_of(servers).seed(seed).build().unwrap();
        let error = client.put("k", "v").unwrap_err();
        let took = !writes(&breaking).is_empty();
        let known = if took { Effect::MayBeDone } else { Effect::NotDone };
        assert_eq!(error.effect(), known, "{error}");
        assert!(error.to_string().contains("the value is too long"), "{error}");
        taken[at] += usize::from(took);
    }
    assert!(taken.iter().all(|taken| *taken > 0));
}

/// What is read after a write was given a time of its own, so that a call took twice its time.
#[test]
fn what_a_call_reads_after_its_write_has_the_rest_of_its_time() {
    let newest = Some(Timestamp(5));
    let facts = Facts::following(None, Timestamp(5));
    let unsent = Some(Previous::Value { timestamp: Timestamp(5), facts, value: None });
    let server = FakeServer::start(move |id, request, link| {
        if let Request::Write(write) = request {
            let (result, previous) = match write.op {
                WriteOp::PutIf(_) => (OpResult::ConditionFailed { newest }, unsent.clone()),
                _ => (OpResult::Done, None),
            };
            link.reply(
                id,
                Reply::WriteOk(WriteAnswer {
                    timestamp: Timestamp(9),
                    result,
                    previous,
                    txn: None,
                }),
            );
        }
        // Nothing else is ever answered.
    });
    let timeout = Duration::from_millis(500);
    let client = client_of([server.address]).request_timeout(timeout).build().unwrap();
    let is_rest = |why: &ClientError| match why {
        ClientError::TimedOut { timeout: rest, .. } => *rest < timeout,
        _ => false,
    };
    match client.replace("k", "v").unwrap_err() {
        ClientError::PreviousUnread { timestamp: Timestamp(9), why } if is_rest(&why) => {}
        other => panic!("{other:?}"),
    }
    // What came of a condition is told, although the value is not known.
    let error = client.put_if("k", "v", Condition::Absent).unwrap_err();
    match &error {
        ClientError::ConflictUnread { newest: Timestamp(5), why } if is_rest(why) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(error.effect(), Effect::NotDone);
    assert!(error.to_string().starts_with("nothing was written: the key has version 5"), "{error}");
}

#[test]
fn a_row_is_waited_for_no_longer_than_a_call_lasts_however_many_empty_pages_come() {
    let pages = AtomicI64::new(0);
    let server = FakeServer::start(move |id, _, link| {
        let (at, page) = (Timestamp(9), pages.fetch_add(1, Ordering::Relaxed));
        let next = Some(PageNext::From(format!("k{page:020}").into()));
        link.reply(id, Reply::PageOk { rows: Vec::new(), view: ReadView::as_of(at), next });
    });
    let timeout = Duration::from_millis(300);
    let client = client_of([server.address]).request_timeout(timeout).build().unwrap();
    let mut rows = client.range("a", "z", Default::default()).unwrap();
    let error = rows.next().unwrap().unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
}

#[test]
fn a_connection_whose_other_end_has_gone_is_given_up_although_each_call_is_short() {
    let connections_made = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&connections_made);
    // What comes first on the first connection, and all that follows there, is never answered.
    let server = FakeServer::start_silent(move |id, _, link| {
        if asked.load(Ordering::SeqCst) > 1 {
            link.reply(id, missing(2));
        }
    });
    let timing = Timing { silence_timeout: Duration::from_millis(500), ..brisk() };
    let client = Client::builder([server.address]).timing(timing);
    let client = client.request_timeout(Duration::from_millis(100)).build().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        connections_made.store(connections(&server), Ordering::SeqCst);
        match client.get("k") {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}
