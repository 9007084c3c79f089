//! Connections that say nothing or read nothing, calls that never come whole, answers that nobody
//! reads, calls that are given up: none of them keeps anybody else out, or makes the gateway grow.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use acervo::limits;
use acervo::wire::message::Request;
use futures_util::stream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::fake_server::{FakeServer, write_ok};
use crate::site::{
    Site, channel, connect, connect_without_window, key, pair, row, waiting, within,
};
use crate::support::gateway::Gateway;
use crate::support::{PATIENCE, allow_open_files, eventually};

/// Files for the connections of these tests, at both ends.
const OPEN_FILES: u64 = 4_096;

/// What a call was answered; `None` if there was no room for it.
fn unless_busy<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(busy) => {
            assert_eq!(busy.code(), Code::ResourceExhausted, "{busy}");
            None
        }
    }
}

/// A call over a connection of its own.
fn is_served(site: &Site) -> bool {
    let read = site.runtime.block_on(async {
        let mut client = connect(&site.gateway).await;
        client.get(waiting(key("k"))).await
    });
    read.is_ok_and(|answer| answer.into_inner() == row("k", "v", site.get(key("k")).unwrap().ver))
}

#[test]
fn connections_that_do_not_ask_for_anything_keep_nobody_out() {
    allow_open_files(OPEN_FILES);
    let site = Site::start();
    site.write("k", "v");
    let openings: [&[u8]; 2] = [
        b"P",
        // All of an opening, and no request.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    for opening in openings {
        let idle: Vec<TcpStream> = (0..limits::GATEWAY_CONNECTIONS_MAX + 50)
            .map(|_| {
                let mut stream = TcpStream::connect(site.gateway.address).unwrap();
                // It may have had to make room already.
                let _ = stream.write_all(opening);
                stream
            })
            .collect();
        assert!(is_served(&site));
        // Those that are left are not waited for for ever. After an opening that takes longer than
        // a test may.
        if opening.len() == 1 {
            let mut last = idle.into_iter().next_back().unwrap();
            last.set_read_timeout(Some(PATIENCE)).unwrap();
            let ended = last.read_to_end(&mut Vec::new());
            let is_late = matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!is_late, "{ended:?}");
        }
    }
}

#[test]
fn connections_that_have_just_called_keep_nobody_out() {
    allow_open_files(OPEN_FILES);
    let site = Site::start();
    site.write("k", "v");
    const END_STREAM: u8 = 1;
    let get = |stream| {
        let message = frame(0, END_STREAM, stream, b"\0\0\0\0\x03\x0a\x01k");
        [headers(stream, "/project.KeyValueStore/Get"), message].concat()
    };
    let mut crowd: Vec<RawHttp2> = (0..limits::GATEWAY_CONNECTIONS_MAX)
        .map(|_| {
            let mut raw = RawHttp2::dial(&site.gateway);
            raw.send(&get(1));
            assert!(raw.is_answered());
            raw
        })
        .collect();
    // Nobody has been idle for long, and the newcomer comes from the crowd's own address.
    for raw in &mut crowd {
        let _ = raw.try_send(&get(3));
    }
    assert!(is_served(&site));
    // The others go on, but for the few that made room.
    let served = crowd.iter_mut().rev().take(500).filter_map(|raw| {
        (raw.try_send(&get(5)) && (0..2).all(|_| raw.is_answered())).then_some(())
    });
    let served = served.count();
    assert!(served > 480, "{served} of 500");
}

#[test]
fn streams_and_requests_that_never_come_keep_nobody_out_and_end() {
    let site = Site::start();
    site.write("k", "v");
    // A call of one request, of which nothing but the headers comes.
    let mut raw = RawHttp2::dial(&site.gateway);
    raw.send(&headers(1, "/project.KeyValueStore/Get"));
    site.runtime.block_on(async {
        let mut silent = JoinSet::new();
        for _ in 0..10 {
            let client = connect(&site.gateway).await;
            for _ in 0..limits::GATEWAY_CALLS_PER_CONNECTION_MAX {
                let mut client = client.clone();
                silent.spawn(async move {
                    let first = stream::iter([pair("k", "w")]);
                    let requests = futures_util::StreamExt::chain(first, stream::pending());
                    client.put_all(requests).await.map(drop)
                });
            }
        }
        // Some were refused at once: nobody has all places.
        let refused = silent.join_next().await.unwrap().unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        for _ in 0..3 {
            let channel = channel(&site.gateway).await;
            let mut health = HealthClient::new(channel.clone());
            let request = HealthCheckRequest { service: String::new() };
            health.check(waiting(request)).await.unwrap();
            let mut client = connect(&site.gateway).await;
            let read = client.get(waiting(key("k"))).await.unwrap().into_inner();
            assert_eq!(read.val, "v", "nothing of what never came whole was written");
        }
        // And the others end by themselves.
        while let Some(ended) = silent.join_next().await {
            let status = ended.unwrap().unwrap_err();
            let codes = [Code::ResourceExhausted, Code::DeadlineExceeded];
            // Or their whole connection has given way to those who came, being the one that had
            // stood still for longest.
            let gave_way = status.code() == Code::Unknown && status.message() == "transport error";
            assert!(gave_way || codes.contains(&status.code()), "{status}");
        }
    });
    assert!(raw.is_answered());
    assert!(is_served(&site));
}

#[test]
fn a_connection_that_reads_nothing_gives_way() {
    allow_open_files(OPEN_FILES);
    let site = Site::start();
    site.write("k", "v");
    // Pings until neither side's buffers take any more: the gateway has answers to write, and
    // nobody reads them.
    let mut flood = RawHttp2::dial(&site.gateway);
    flood.0.set_nonblocking(true).unwrap();
    let ping = frame(6, 0, 0, &[7; 8]);
    let pings = ping.repeat(4096);
    let (mut sent, mut blocked_for) = (0, 0);
    // Each look is 5 ms; a gateway that is only busy goes on within them.
    eventually("all buffers are full", || {
        match flood.0.write(&pings[sent % ping.len()..]) {
            Ok(count) => (sent, blocked_for) = (sent + count, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => blocked_for += 1,
            Err(error) => panic!("closed before anybody needed its place: {error}"),
        }
        (blocked_for == 100).then_some(())
    });
    let others: Vec<TcpStream> = (0..limits::GATEWAY_CONNECTIONS_MAX + 50)
        .map(|_| TcpStream::connect(site.gateway.address).unwrap())
        .collect();
    assert!(is_served(&site));
    let is_closed = |flood: &mut RawHttp2| match flood.0.write(&pings) {
        Ok(_) => false,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    eventually("it was closed", || is_closed(&mut flood).then_some(()));
    drop(others);
}

#[test]
fn answers_that_are_not_read_are_bounded_and_keep_nobody_out() {
    let site = Site::start();
    site.write("k", "v");
    site.write("large", &"v".repeat(1024 * 1024));
    let (mut others, greedy) = site.runtime.block_on(async {
        let mut greedy = JoinSet::new();
        for _ in 0..6 {
            let client = connect_without_window(&site.gateway).await;
            for _ in 0..100 {
                let mut client = client.clone();
                greedy.spawn(async move { client.get(waiting(key("large"))).await.map(drop) });
            }
        }
        // One origin has half of the bytes. Who asks for more is told so; the others wait for a
        // window in vain.
        let refused = greedy.join_next().await.unwrap().unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        let mut others = connect(&site.gateway).await;
        for _ in 0..30 {
            let read = others.get(waiting(key("k"))).await.unwrap().into_inner();
            assert_eq!(read.val, "v");
        }
        (others, greedy)
    });
    // And who asks for much gets it, once the others have let it lie for long enough.
    let read = eventually("there is room for it", || {
        unless_busy(site.runtime.block_on(others.get(waiting(key("large")))))
    });
    assert_eq!(read.val.len(), 1024 * 1024);
    drop(greedy);
    let peak = peak_memory_mib(&site.gateway);
    assert!(peak < 512, "600 MiB were asked for, and {peak} MiB were held");
}

#[test]
fn keys_of_answers_that_are_not_read_keep_nobody_out() {
    let site = Site::start();
    let long = "k".repeat(4000);
    let keys: Vec<_> = (0..1500).map(|at| key(&format!("{at:04}{long}"))).collect();
    let pairs: Vec<_> = (0..1500).map(|at| pair(&format!("{at:04}{long}"), "v")).collect();
    let mut hoard = Vec::new();
    let mut others = site.runtime.block_on(async {
        let mut greedy = connect_without_window(&site.gateway).await;
        // Six megabytes each, and no end of one answer.
        loop {
            match greedy.get_all(stream::iter(keys.clone())).await {
                Ok(rows) => hoard.push(rows.into_inner()),
                Err(busy) => break assert_eq!(busy.code(), Code::ResourceExhausted, "{busy}"),
            }
            assert!(hoard.len() < 32, "{} answers are held", hoard.len());
        }
        connect(&site.gateway).await
    });
    drop(eventually("there is room for it", || {
        let requests = waiting(stream::iter(pairs.clone()));
        unless_busy(site.runtime.block_on(others.put_all(requests)))
    }));
    drop(hoard);
}

#[test]
fn a_thousand_connections_that_call_at_once_are_dealt_with_one_after_the_other() {
    allow_open_files(OPEN_FILES);
    let site = Site::start();
    site.write("k", "v");
    // Whole requests, and unfinished ones that announce a mebibyte, on as many streams as there may
    // be.
    let calls = |path: &str, message: &[u8]| {
        let streams = (1..2 * limits::GATEWAY_CALLS_PER_CONNECTION_MAX).step_by(2);
        let call = |stream| [headers(stream, path), frame(0, 0, stream, message)].concat();
        streams.flat_map(call).collect::<Vec<u8>>()
    };
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let list = calls(reflection, b"\0\0\0\0\x02\x3a\0");
    let announced = [&b"\0\0\x10\0\0"[..], &[0; 100]].concat();
    let puts = calls("/project.KeyValueStore/Put", &announced);
    let mut crowd = Vec::new();
    for at in 0..900 {
        let mut raw = RawHttp2::dial(&site.gateway);
        raw.0.set_nonblocking(true).unwrap();
        // What does not fit into the buffers would be read later.
        let _ = raw.0.write(if at % 2 == 0 { &list } else { &puts });
        crowd.push(raw);
    }
    assert!(is_served(&site));
    let peak = peak_memory_mib(&site.gateway);
    assert!(peak < 512, "{peak} MiB were held");
}

/// The most memory a gateway has had so far.
pub fn peak_memory_mib(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

/// Threads of a gateway.
fn threads(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap().count()
}

#[test]
fn calls_have_no_thread_each_and_leave_their_places_when_they_are_given_up() {
    // A server that answers the greeting, and nothing else before it is told to.
    let answers = Arc::new(AtomicBool::new(false));
    let answering = Arc::clone(&answers);
    let server = FakeServer::start(move |id, _, link| {
        if answering.load(Ordering::SeqCst) {
            link.reply(id, write_ok(7, Some((0, ""))));
        }
    });
    let dir = tempfile::tempdir().unwrap();
    // Longer than anything is waited for here.
    let gateway = Gateway::start(&dir, &server.address.to_string(), &["--timeout", "1h"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let clients = [connect(&gateway).await, connect(&gateway).await, connect(&gateway).await];
        let (give_up, is_told) = watch::channel(false);
        let mut given_up = JoinSet::new();
        for at in 0..2 * limits::GATEWAY_REQUESTS_MAX {
            let mut client = clients[at % clients.len()].clone();
            let mut is_told = is_told.clone();
            // Half of them by their deadline, before which all that can be are at the server, and
            // half by their client.
            let gives_up = at % 2 == 1;
            let deadline = if gives_up { PATIENCE } else { Duration::from_secs(5) };
            given_up.spawn(async move {
                tokio::select! {
                    put = client.put(within(pair("k", "v"), deadline)) => put.is_ok(),
                    _ = is_told.wait_for(|told| *told), if gives_up => false,
                }
            });
        }
        // As many of them are at the server as may be, and the others wait.
        let are_writes = || {
            let requests = &server.shared.heard.lock().unwrap().requests;
            requests.iter().filter(|request| matches!(request, Request::Write(_))).count()
        };
        let all_are_there = async {
            while are_writes() < limits::GATEWAY_REQUESTS_MAX {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, all_are_there).await.expect("as many as may be come");
        assert!(threads(&gateway) <= 4, "{} threads", threads(&gateway));
        give_up.send(true).unwrap();
        while let Some(ended) = given_up.join_next().await {
            assert!(!ended.unwrap(), "nobody has answered");
        }
        answers.store(true, Ordering::SeqCst);
        let put = clients[0].clone().put(waiting(pair("k", "v"))).await.unwrap();
        assert_eq!(put.into_inner().ver, 7);
    });
}

#[test]
fn calls_that_are_reset_at_once_cost_their_own_connection_at_most() {
    let site = Site::start();
    site.write("k", "v");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for path in ["/project.KeyValueStore/Get", "/project.KeyValueStore/PutAll"] {
            let (stop, gateway) = (&stop, &site.gateway);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut raw = RawHttp2::dial(gateway);
                    for stream in (1..20_000).step_by(2) {
                        let reset = frame(3, 0, stream, &[0, 0, 0, 8]);
                        let both = [headers(stream, path), reset].concat();
                        if stop.load(Ordering::Relaxed) || !raw.try_send(&both) {
                            break;
                        }
                    }
                }
            });
        }
        let served = (0..30).all(|_| is_served(&site));
        stop.store(true, Ordering::Relaxed);
        assert!(served);
    });
    eventually("it serves as before", || is_served(&site).then_some(()));
}

/// Clients that stream small messages lost their connection, and with it all of their calls.
#[test]
fn small_messages_of_several_calls_that_come_at_once_end_no_connection() {
    const END_STREAM: u8 = 1;
    let site = Site::start();
    let streams = [1, 3, 5, 7];
    let calls = streams.map(|stream| headers(stream, "/project.KeyValueStore/GetAll"));
    let mut bytes = calls.concat();
    // As many as the windows take.
    for number in 0..1000 {
        let message = [&[0, 0, 0, 0, 6, 0x0a, 4][..], format!("{number:04}").as_bytes()].concat();
        streams.iter().for_each(|stream| bytes.extend(frame(0, 0, *stream, &message)));
    }
    streams.iter().for_each(|stream| bytes.extend(frame(0, END_STREAM, *stream, &[])));
    let mut raw = RawHttp2::dial(&site.gateway);
    raw.send(&bytes);
    assert!(streams.iter().all(|_| raw.is_answered()));
}

/// HTTP/2 made by hand.
struct RawHttp2(TcpStream);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a gRPC call, without its message.
fn headers(stream: u32, path: &str) -> Vec<u8> {
    // `:method: POST`, `:scheme: http`, and the rest as literals that nobody need remember.
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x01x");
    block.extend(b"\x0f\x10\x10application/grpc");
    block.extend(b"\x00\x02te\x08trailers");
    const END_HEADERS: u8 = 4;
    frame(1, END_HEADERS, stream, &block)
}

impl RawHttp2 {
    fn dial(gateway: &Gateway) -> RawHttp2 {
        let mut stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(4, 0, 0, &[])).unwrap();
        RawHttp2(stream)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// `false` when the other side has had enough.
    fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Whether headers come, as they do with a call's status, before the connection ends.
    fn is_answered(&mut self) -> bool {
        let mut header = [0; 9];
        while self.0.read_exact(&mut header).is_ok() {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).unwrap();
            if header[3] == 1 {
                return true;
            }
        }
        false
    }
}
