//! Floods against real processes: whatever somebody sends, or does not read, memory stays within
//! its budget, the log stays short, and a well-behaved client of the same process is served all the
//! while.
//!
//! In the ordinary run the floods are just large enough to tell. With `ACERVO_FLOODS=full` they
//! have the full size (300 connections with unfinished frames of 9 MB, 4,000 of 64 KB, 1,000
//! JOINs), and the peaks are printed; for an optimised build:
//!
//! `ACERVO_FLOODS=full cargo test --release --test memory floods:: -- --nocapture --test-threads 1`

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use acervo::limits::{self, CHUNK_BYTES};
use acervo::model::{ChunkHash, ClientId, ContentId, FileEntry, FileName, NodeId, PageOf, PeerId};
use acervo::net::Listener;
use acervo::share::content::Manifest;
use acervo::share::offer::{Available, Catalog, FileStamp, Offer};
use acervo::share::serve::{PeerServer, ServeOptions};
use acervo::wire::message::{Channel, HelloRole, Message, PageRequest, PageView, Reply, Request};
use acervo::wire::share::{PeerReply, PeerRequest, RegistryReply, RegistryRequest};
use bytes::Bytes;
use rustix::process::Signal;

use crate::support::raw::{Raw, Witness, frame, frame_of, get, hello, one_server, put};
use crate::support::share::Registry;
use crate::support::{
    self, ACERVO, Group, allow_open_files, eventually, exited_with, memory, resident,
};

const MIB: usize = 1024 * 1024;

/// What no flood takes a process past.
const PROCESS_BYTES_MAX: usize = 512 * MIB;

/// The one of full size, or else the one that is large enough to tell.
fn sized(lean: usize, full: usize) -> usize {
    let wanted = std::env::var_os("ACERVO_FLOODS").is_some_and(|size| size == "full");
    if wanted { full } else { lean }
}

/// Files for the connections of the largest flood, at both ends.
const OPEN_FILES: u64 = 10_000;

/// The most memory that a process has had, checked and said.
fn peak(process: u32, flood: &str) -> usize {
    let peak = memory(process, "VmHWM");
    println!("{flood}: at most {} MiB, now {} MiB", peak / MIB, resident(process) / MIB);
    assert!(peak <= PROCESS_BYTES_MAX, "{flood}: {} MiB", peak / MIB);
    peak
}

/// Sends what the other side takes of `bytes`. It may close meanwhile: that is its right.
fn pour(stream: &mut TcpStream, bytes: &[u8]) {
    match stream.write_all(bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => panic!("{error}"),
    }
}

/// The beginning of a frame that says it is `announced` bytes long.
fn unfinished(announced: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![b'x'; length];
    bytes[..4].copy_from_slice(&(announced as u32).to_be_bytes());
    bytes
}

/// A greeted client connection.
fn client(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&frame_of(&hello(HelloRole::CLIENT))).unwrap();
    stream
}

#[test]
fn unfinished_frames_take_no_more_than_the_budget_and_it_is_given_back() {
    let _alone = crate::alone();
    allow_open_files(OPEN_FILES);
    let (group, address, witness) = one_server();
    let before = resident(group.pid(0));
    let announced = limits::client_frame_bytes_max(limits::VALUE_BYTES_MAX);
    let floods = [(sized(40, 300), 9_000_000), (sized(400, 4_000), 64_000)];
    for (count, length) in floods {
        let bytes = unfinished(announced, length);
        let mut held: Vec<TcpStream> = Vec::new();
        for n in 0..count {
            let mut stream = client(address);
            pour(&mut stream, &bytes);
            held.push(stream);
            if n % (count / 4) == 0 {
                witness.goes_on();
            }
        }
        let grown = peak(group.pid(0), &format!("{count} frames of {length} bytes")) - before;
        // As much again for what buffers have room for, and for a buffer that is copied as it
        // grows.
        assert!(grown < 2 * limits::BUDGET_PROCESS_BYTES_MAX, "{} MiB", grown / MIB);
        witness.goes_on();
    }
    eventually("the memory is given back", || {
        (resident(group.pid(0)) < before + 64 * MIB).then_some(())
    });
    witness.finish();
}

#[test]
fn somebody_who_says_it_is_a_server_gets_no_more_room() {
    let _alone = crate::alone();
    let mut group = Group::prepare(3, &["--console", "off"]);
    (0..2).for_each(|at| group.start_server(at));
    let witness = Witness::start(group.client());
    let address = group.addresses()[0];
    let cluster = support::raw::status(address).cluster;
    let role =
        HelloRole::Server { cluster, node: NodeId(3), incarnation: 7, channel: Channel::Bulk };
    let bytes = unfinished(limits::SERVER_FRAME_BYTES_MAX, sized(8, 16) * MIB - 1);
    // Each takes the place of the one before.
    let held: Vec<TcpStream> = (0..sized(8, 100))
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&frame_of(&hello(role))).unwrap();
            pour(&mut stream, &bytes);
            stream
        })
        .collect();
    witness.goes_on();
    peak(group.pid(0), "frames of a server that proves nothing");
    drop(held);
    witness.finish();
}

#[test]
fn requests_that_wait_are_counted_whatever_they_look_like_on_the_wire() {
    let _alone = crate::alone();
    let mut group = Group::prepare(3, &["--console", "off"]);
    group.start_server(0);
    let address = group.addresses()[0];
    eventually("the server listens", || TcpStream::connect(address).ok());
    let before = resident(group.pid(0));
    // Nothing is committed without the others, so writes wait, and linearizable reads too. Keys of
    // two bytes take fifty times as much in memory.
    let keys = |count: usize| -> Vec<Bytes> {
        (0..count).map(|n| Bytes::copy_from_slice(&(n as u16).to_be_bytes())).collect()
    };
    let page = Request::Page(PageRequest {
        of: PageOf::Keys { keys: keys(sized(20_000, 100_000)) },
        view: PageView::First { at: None, session: None, linearizable: true },
        rows_max: 10,
        keys_only: false,
    });
    let write = put(1, b"k", vec![b'v'; MIB]);
    let mut raws: Vec<Raw> = Vec::new();
    for body in [page, write] {
        for _ in 0..sized(6, 40) {
            let mut raw = Raw::client(address);
            let frames = (0..20).map(|id| frame_of(&Message::Request { id, body: body.clone() }));
            raw.bytes(&frames.collect::<Vec<_>>().concat());
            raws.push(raw);
        }
    }
    let grown = peak(group.pid(0), "requests that wait") - before;
    assert!(grown < 3 * limits::BUDGET_PROCESS_BYTES_MAX, "{} MiB", grown / MIB);
    // Each is answered, most of them at once, that there is no room.
    for raw in &mut raws {
        for _ in 0..20 {
            match raw.receive() {
                Some(Message::Reply { body: Reply::Error(_), .. }) => {}
                other => panic!("every request is answered, with an error, and not {other:?}"),
            }
        }
    }
    let mut raw = Raw::client(address);
    raw.assert_alive();
}

#[test]
fn answers_that_nobody_reads_take_no_more_than_the_budget() {
    let _alone = crate::alone();
    let (group, address, witness) = one_server();
    let store = group.client();
    store.put("long", vec![b'v'; MIB]).unwrap();
    let asking: Vec<Raw> = (0..sized(100, 1_000))
        .map(|_| {
            let mut raw = Raw::client(address);
            let frames = (0..8).map(|id| {
                let body = get(b"long", false);
                frame_of(&Message::Request { id, body })
            });
            raw.bytes(&frames.collect::<Vec<_>>().concat());
            raw
        })
        .collect();
    witness.goes_on();
    peak(group.pid(0), "answers that nobody reads");
    drop(asking);
    witness.finish();
}

#[test]
fn more_large_writes_than_a_group_can_take_are_refused_before_they_drown_it() {
    let _alone = crate::alone();
    let group = Group::start(3, &["--console", "off"]);
    let witness = Witness::start(group.client());
    let leader = group.addresses()[group.leader()];
    let value = vec![b'v'; MIB];
    let mut raws: Vec<Raw> = (0..sized(16, 100))
        .map(|n| {
            let mut raw = Raw::client(leader);
            let frames = (1..=sized(8, 6) as u64).map(|id| {
                let mut body = put(id, b"k", value.clone());
                if let Request::Write(write) = &mut body {
                    write.request.client = ClientId(1_000 + n as u64);
                }
                frame_of(&Message::Request { id, body })
            });
            pour(&mut raw.stream, &frames.collect::<Vec<_>>().concat());
            raw
        })
        .collect();
    witness.goes_on();
    // Each that was not closed is answered: done, or not now.
    for raw in &mut raws {
        for _ in 0..sized(8, 6) {
            match raw.receive() {
                Some(Message::Reply { .. }) => {}
                None => break,
                other => panic!("{other:?}"),
            }
        }
    }
    for at in 0..3 {
        peak(group.pid(at), "large writes");
    }
    witness.finish();
}

// ---- the log -----------------------------------------------------------------------------------

#[test]
fn a_flood_of_refusals_is_some_lines_in_the_log_and_each_is_counted() {
    let _alone = crate::alone();
    const REFUSED: usize = 1_500;
    let (mut group, address, witness) = one_server();
    for _ in 0..REFUSED {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&frame(b"\xc1")).unwrap();
        // To the end, so that no more than the server takes are under way.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    witness.finish();
    assert!(exited_with(group.terminate(0), 0));
    let log = group.log(0);
    let lines = log.lines().filter(|line| line.contains("refusing 127.")).count();
    assert!((1..200).contains(&lines), "{lines} lines");
    let gathered = |line: &str| {
        let (count, _) = line.split_once(" more like this")?;
        line.contains("refusing").then(|| count.rsplit(' ').next()?.parse::<usize>().ok())?
    };
    let counted: usize = log.lines().filter_map(gathered).sum();
    let told = log.lines().filter(|line| gathered(line).is_some()).count();
    assert_eq!(lines - told + counted, REFUSED, "{log}");
}

/// A server whose standard error is a pipe that nobody reads, with a log of every detail.
fn with_a_log_that_nobody_reads(mut command: Command) -> Child {
    let command = command.env("RUST_LOG", "trace").stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether the pipe is as full as whole lines make it.
fn is_full(child: &Child) -> bool {
    // A pipe holds 64 KiB unless it is told otherwise.
    let waiting = rustix::io::ioctl_fionread(child.stderr.as_ref().unwrap()).unwrap();
    waiting >= 60 * 1024
}

#[test]
fn a_standard_error_that_nobody_reads_keeps_nobody_waiting() {
    let _alone = crate::alone();
    let group = Group::prepare(1, &["--console", "off"]);
    let mut server = with_a_log_that_nobody_reads(group.command(0));
    let address = group.addresses()[0];
    eventually("the server listens", || TcpStream::connect(address).ok());
    let witness = Witness::start(group.client());
    eventually("the pipe is full", || {
        witness.goes_on();
        for _ in 0..50 {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&frame(b"\xc1")).unwrap();
            // The refusal, and the end.
            let _ = stream.read_to_end(&mut Vec::new());
        }
        is_full(&server).then_some(())
    });
    (0..5).for_each(|_| witness.goes_on());
    // What is lost is said when somebody reads again.
    let mut stderr = server.stderr.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut log = Vec::new();
        stderr.read_to_end(&mut log).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    });
    witness.finish();
    let pid = rustix::process::Pid::from_raw(server.id() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = eventually("the server ends", || server.try_wait().unwrap());
    assert!(exited_with(status, 0));
    let log = reading.join().unwrap();
    assert!(log.lines().last().is_some_and(|line| !line.is_empty()));
}

#[test]
fn a_registry_is_not_held_up_by_its_log_either_and_ends_all_the_same() {
    let _alone = crate::alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut command = Command::new(ACERVO);
    command.args(["registry", "--console", "off", "--listen", &address.to_string()]);
    let mut registry = with_a_log_that_nobody_reads(command);
    eventually("the registry listens", || TcpStream::connect(address).ok());
    eventually("the pipe is full", || {
        for _ in 0..50 {
            let mut raw = greeted(address);
            assert_eq!(ask(&mut raw, RegistryRequest::KeepAlive), RegistryReply::NotJoined);
            raw.send(&Message::Pong { nonce: 1 });
            raw.bytes(&frame(b"\xc1"));
            drop(raw.refusal());
        }
        is_full(&registry).then_some(())
    });
    let mut raw = greeted(address);
    assert_eq!(ask(&mut raw, RegistryRequest::KeepAlive), RegistryReply::NotJoined);
    // Its last lines are not waited for without end.
    let pid = rustix::process::Pid::from_raw(registry.id() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = eventually("the registry ends", || registry.try_wait().unwrap());
    assert!(exited_with(status, 0));
}

// ---- the share ---------------------------------------------------------------------------------

fn greeted(address: SocketAddr) -> Raw {
    let mut raw = Raw::dial(address);
    raw.send(&hello(HelloRole::Share));
    assert!(matches!(raw.receive(), Some(Message::ShareWelcome { .. })));
    raw
}

fn ask(raw: &mut Raw, body: RegistryRequest) -> RegistryReply {
    raw.send(&Message::Registry { id: 1, body });
    match raw.receive() {
        Some(Message::RegistryReply { id: 1, body }) => body,
        other => panic!("{other:?}"),
    }
}

#[test]
fn joins_take_no_more_than_the_budget_and_keep_nobody_from_searching() {
    let _alone = crate::alone();
    allow_open_files(OPEN_FILES);
    let mut registry = Registry::start(&["--console", "off"]);
    let address = registry.address;
    let mut honest = greeted(address);
    let name = FileName::new("honest").unwrap();
    let content = ContentId([1; 32]);
    let file = FileEntry { name: name.clone(), size: 1, content };
    let at = SocketAddr::from(([127, 0, 0, 1], 5_000));
    let join = |peer: u64, files, part, last| RegistryRequest::Join {
        peer: PeerId(peer),
        address: at,
        files,
        part,
        last,
        secret: peer,
        shares: true,
    };
    assert_eq!(ask(&mut honest, join(0, vec![file], 0, true)), RegistryReply::JoinOk);

    // Each in one frame, as much as fits one.
    let joins: Vec<Raw> = (1..=sized(60, 1_000) as u64)
        .map(|peer| {
            let files = (0..2_500).map(|n| FileEntry {
                name: FileName::new(&format!("{peer:-<100}{n:-<140}.bin")).unwrap(),
                size: 1,
                content,
            });
            let mut raw = greeted(address);
            let body = join(peer, files.collect(), 0, true);
            raw.send(&Message::Registry { id: 1, body });
            raw
        })
        .collect();
    let asked = Instant::now();
    let search = RegistryRequest::Search { name };
    match ask(&mut honest, search) {
        RegistryReply::Sources(sources) => assert_eq!(sources.len(), 1),
        other => panic!("{other:?}"),
    }
    println!("a search behind {} JOINs: {:?}", joins.len(), asked.elapsed());
    let mut joined = 0;
    for mut raw in joins {
        match raw.receive() {
            Some(Message::RegistryReply { body: RegistryReply::JoinOk, .. }) => joined += 1,
            Some(Message::RegistryReply { body: RegistryReply::Error { .. }, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(joined > 0, "some have room");
    peak(registry.process().child.id(), "JOINs");
    assert_eq!(ask(&mut honest, RegistryRequest::KeepAlive), RegistryReply::AliveOk);
}

/// A file with as many chunks as hashes fit a frame, of which nothing is on the disk.
struct Sparse(Offer);

impl Catalog for Sparse {
    fn find(&self, _: &FileName) -> Option<FileEntry> {
        None
    }

    fn offer(&self, content: ContentId) -> Option<Offer> {
        (content == self.0.manifest.content()).then(|| self.0.clone())
    }

    fn changed(&self, _: &Offer) {}
}

/// Serves a [`Sparse`] file in this process.
fn sharing_sparsely(folder: &Path, limit_bytes_per_s: Option<u64>) -> (PeerServer, ContentId) {
    let path = folder.join("sparse");
    let size = (limits::HASHES_PER_FRAME_MAX * CHUNK_BYTES) as u64;
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    let hashes = vec![ChunkHash([7; 32]); limits::HASHES_PER_FRAME_MAX];
    let manifest = Manifest::new(size, hashes).unwrap();
    let content = manifest.content();
    let offer = Offer {
        manifest: Arc::new(manifest),
        folder: Arc::new(folder.to_owned()),
        file: "sparse".to_owned(),
        opened: None,
        stamp: Some(FileStamp::of(&std::fs::metadata(&path).unwrap())),
        available: Available::Whole,
    };
    let catalogs: Vec<Arc<dyn Catalog>> = vec![Arc::new(Sparse(offer))];
    let options = ServeOptions { catalogs, limit_bytes_per_s, ..ServeOptions::default() };
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (PeerServer::start(listener, options).unwrap(), content)
}

#[test]
fn answers_of_a_peer_that_nobody_takes_stay_within_the_budget() {
    let _alone = crate::alone();
    allow_open_files(OPEN_FILES);
    let here = std::process::id();
    let before = resident(here);
    let folder = tempfile::tempdir().unwrap();
    let (server, content) = sharing_sparsely(folder.path(), None);
    // Each asks for five megabytes of hashes, and reads none.
    let deaf: Vec<Raw> = (0..sized(150, limits::SHARE_CONNECTIONS_MAX - 1))
        .map(|_| {
            let mut raw = greeted(server.address());
            let body = PeerRequest::Hashes { content, first: 0 };
            let ask = |id: u64| frame_of(&Message::Share { id, body: body.clone() });
            pour(&mut raw.stream, &(0..60).map(ask).collect::<Vec<_>>().concat());
            raw
        })
        .collect();
    let mut honest = greeted(server.address());
    honest.send(&Message::Share { id: 1, body: PeerRequest::Hashes { content, first: 0 } });
    assert!(matches!(
        honest.receive(),
        Some(Message::ShareReply { id: 1, body: PeerReply::Hashes { .. } })
    ));
    let grown = resident(here).saturating_sub(before);
    println!("answers of a peer that nobody takes: {} MiB", grown / MIB);
    assert!(grown < 2 * limits::BUDGET_PROCESS_BYTES_MAX, "{} MiB", grown / MIB);
    drop(deaf);
    drop(server);
}

#[test]
fn questions_behind_a_chunk_that_is_sent_slowly_are_answered_when_there_is_room() {
    let _alone = crate::alone();
    const QUESTIONS: u64 = 1_000;
    let here = std::process::id();
    let before = resident(here);
    let folder = tempfile::tempdir().unwrap();
    let (server, content) = sharing_sparsely(folder.path(), Some(CHUNK_BYTES as u64));
    let mut raw = greeted(server.address());
    let ask = |id: u64, body: PeerRequest| frame_of(&Message::Share { id, body });
    raw.bytes(&ask(0, PeerRequest::Chunk { content, index: 0 }));
    let hashes = (1..=QUESTIONS).map(|id| ask(id, PeerRequest::Hashes { content, first: 0 }));
    // 58 KB of questions, 139 MB of answers. They come while the chunk is on its way.
    let mut header = [0; 1];
    raw.stream.read_exact(&mut header).unwrap();
    raw.bytes(&hashes.collect::<Vec<_>>().concat());
    // The frame that announces the chunk, and the chunk.
    let mut rest = vec![0; 3];
    raw.stream.read_exact(&mut rest).unwrap();
    let length = u32::from_be_bytes([header[0], rest[0], rest[1], rest[2]]) as usize;
    let mut chunk = vec![0; length + CHUNK_BYTES];
    raw.stream.read_exact(&mut chunk).unwrap();
    // Right behind it comes what waited for its end: not much, since this side has not been read
    // since.
    assert!(resident(here) < before + 100 * MIB);
    for id in 1..=QUESTIONS {
        match raw.receive() {
            Some(Message::ShareReply { id: answered, body: PeerReply::Hashes { hashes } }) => {
                assert_eq!((answered, hashes.len()), (id, limits::HASHES_PER_FRAME_MAX));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(resident(here) < before + 100 * MIB);
    drop(server);
}
