//! Transfers between processes: what can only be seen when one of them is killed or stopped, or has
//! a disk or memory of its own.
//!
//! This file has its own `main`, because its tests start the same binary again as the processes
//! that they need. Left out: what two sides in one process can show (`tests/share/transfer.rs`).

mod share_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use acervo::limits::{CHUNK_BYTES, DOWNLOAD_CHUNKS_MAX, REQUESTS_AHEAD_MAX, SHARE_FRAME_BYTES_MAX};
use acervo::model::{ContentId, PeerId};
use acervo::share::content::Manifest;
use acervo::share::fetch::{Fetch, FetchError, FetchOptions, SourceState};
use acervo::share::greeting;
use acervo::share::offer::Catalog;
use acervo::share::serve::ServeOptions;
use acervo::wire::codec;
use acervo::wire::frame::Deframer;
use acervo::wire::message::Message;
use acervo::wire::share::{DenialCode, PeerReply, PeerRequest, Source};
use share_support::shelf::{Shelf, manifest_of, serve_with};
use share_support::{PATIENCE, options, source};

const MIB: usize = CHUNK_BYTES;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["child-serve", path, limit] => return child_serve(path, limit),
        ["child-fetch", to, size, content, limit, ref sources @ ..] => {
            return child_fetch(to, size, content, limit, sources);
        }
        _ => {}
    }
    let tests: [(&str, fn()); 4] = [
        ("a_download_killed_at_half_fetches_only_the_rest", killed_at_half),
        ("a_source_that_is_stopped_is_replaced", stopped_source),
        ("a_disk_too_small_is_said_before_the_first_byte", small_disk),
        ("twenty_downloads_at_once_take_little_memory", twenty_downloads),
    ];
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    let is_listing = arguments.iter().any(|argument| argument == "--list");
    let is_wanted = |name: &str| wanted.is_none_or(|wanted| name.contains(wanted.as_str()));
    let tests = tests.into_iter().filter(|(name, _)| is_wanted(name));
    if is_listing {
        return tests.for_each(|(name, _)| println!("{name}: test"));
    }
    // At the same time, because they wait for their children. One that fails panics.
    let running: Vec<JoinHandle<()>> = tests
        .map(|(name, test)| thread::Builder::new().name(name.to_owned()).spawn(test).unwrap())
        .collect();
    let mut failed = false;
    for test in running {
        let name = test.thread().name().unwrap_or_default().to_owned();
        let is_well = test.join().is_ok();
        println!("test {name} ... {}", if is_well { "ok" } else { "FAILED" });
        failed |= !is_well;
    }
    if failed {
        std::process::exit(1);
    }
}

// ---- children ----------------------------------------------------------------------------------

/// The id of every peer here, at whatever address.
const PEER: u64 = 7;

/// Serves a file until standard input is closed.
fn child_serve(path: &str, limit: &str) {
    let shelf = Arc::new(Shelf::default());
    shelf.add(Path::new(path));
    let catalogs: Vec<Arc<dyn Catalog>> = vec![shelf];
    let limit_bytes_per_s = limit.parse().ok().filter(|limit| *limit > 0);
    let peer = Arc::new(PEER.into());
    let server =
        serve_with(ServeOptions { peer, catalogs, limit_bytes_per_s, ..ServeOptions::default() });
    println!("{}", server.address());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Fetches a file and prints its progress: `done BYTES` and `lost ADDRESS`, and in the end `fetched
/// BYTES kept BYTES` or `error SENTENCE`.
fn child_fetch(to: &str, size: &str, content: &str, limit: &str, sources: &[&str]) {
    let id: Vec<u8> =
        (0..32).map(|i| u8::from_str_radix(&content[2 * i..2 * i + 2], 16).unwrap()).collect();
    let (content, size) = (ContentId(id.try_into().unwrap()), size.parse().unwrap());
    let sources: Vec<Source> = sources
        .iter()
        .map(|address| {
            let address: SocketAddr = address.parse().unwrap();
            Source { peer: PeerId(PEER), address, size, content }
        })
        .collect();
    let empty = Manifest::of_bytes(b"").unwrap();
    let handle = Fetch::start(FetchOptions {
        content,
        size,
        limit_bytes_per_s: limit.parse().ok().filter(|limit| *limit > 0),
        ..options(&empty, Path::new(to), sources)
    })
    .unwrap();
    loop {
        let result = handle.wait_for(Duration::from_millis(10));
        let progress = handle.progress();
        println!("done {}", progress.done_bytes);
        for source in progress.sources {
            if let SourceState::Lost(_) = source.state {
                println!("lost {}", source.address);
            }
        }
        match result {
            None => {}
            Some(Ok(outcome)) => {
                return println!("fetched {} kept {}", outcome.fetched_bytes, outcome.kept_bytes);
            }
            Some(Err(error @ FetchError::NoRoom { .. })) => return println!("no room: {error}"),
            Some(Err(error)) => return println!("error {error}"),
        }
    }
}

/// A child whose output is read line by line. Dropping it kills it.
struct Process {
    child: Child,
    _input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(command: &mut Command) -> Process {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Process { child, _input: input, output }
    }

    fn serve(path: &Path, limit: usize) -> (Process, SocketAddr) {
        let mut process = Process::start(own().arg("child-serve").arg(path).arg(limit.to_string()));
        let address = process.line().unwrap().parse().unwrap();
        (process, address)
    }

    fn fetch(to: &Path, manifest: &Manifest, limit: usize, sources: &[SocketAddr]) -> Process {
        let mut command = own();
        command.arg("child-fetch").arg(to).arg(manifest.size().to_string());
        command.arg(manifest.content().to_string()).arg(limit.to_string());
        Process::start(command.args(sources.iter().map(SocketAddr::to_string)))
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line).unwrap();
        (length > 0).then(|| line.trim_end().to_owned())
    }

    /// Waits for the line that begins with `word`, and returns the rest of it.
    fn line_with(&mut self, word: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline
            && let Some(line) = self.line()
        {
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
            assert!(!line.starts_with("error"), "{line}");
        }
        panic!("no line with {word:?}");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The child may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

fn assert_same(one: &Path, other: &Path) {
    assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap(), "the files differ");
}

// ---- tests -------------------------------------------------------------------------------------

fn killed_at_half() {
    let folder = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let path = share_support::file(folder.path(), 96 * MIB + 1000, 1);
    let manifest = manifest_of(&path);
    let (_server, address) = Process::serve(&path, 0);
    let (address, carried) = counted(address);
    // Slow enough that it can be killed half-way.
    let mut first = Process::fetch(to.path(), &manifest, 48 * MIB, &[address]);
    let mut done = 0;
    while done < manifest.size() / 2 {
        done = first.line_with("done").parse().unwrap();
    }
    first.signal(rustix::process::Signal::KILL);
    drop(first);
    assert!(!to.path().join("film.mkv").exists());

    let mut second = Process::fetch(to.path(), &manifest, 0, &[address]);
    let told = second.line_with("fetched");
    let (fetched, kept) = told.split_once(" kept ").unwrap();
    let (fetched, kept): (u64, u64) = (fetched.parse().unwrap(), kept.parse().unwrap());
    assert!(kept >= done, "{kept} kept of {done}");
    assert_eq!(fetched + kept, manifest.size());
    assert_same(&path, &to.path().join("film.mkv"));
    // What came twice is at most what had been requested, or was not stored yet, when the process
    // was killed.
    drop(second);
    let twice = carried.load(Ordering::SeqCst).saturating_sub(manifest.size());
    let most = (REQUESTS_AHEAD_MAX + DOWNLOAD_CHUNKS_MAX) * MIB;
    assert!(twice <= most as u64, "{twice} bytes were fetched twice");
}

/// A proxy to an address, which counts the bytes that come back.
fn counted(to: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let carried = Arc::clone(&count);
    thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect(to).unwrap());
            let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
            let nothing = Arc::new(AtomicU64::new(0));
            for ((from, to), count) in [((near, far), nothing), (back, Arc::clone(&count))] {
                thread::spawn(move || carry(from, to, &count));
            }
        }
    });
    (address, carried)
}

/// Copies until one side ends or breaks, and then ends the other, too.
fn carry(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
        count.fetch_add(length as u64, Ordering::SeqCst);
    }
    // A side that has closed already cannot be shut down.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn stopped_source() {
    let folder = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let path = share_support::file(folder.path(), 80 * MIB, 2);
    let manifest = manifest_of(&path);
    let (_one, first) = Process::serve(&path, 16 * MIB);
    let (two, second) = Process::serve(&path, 16 * MIB);
    let mut fetch = Process::fetch(to.path(), &manifest, 0, &[first, second]);
    let mut done: u64 = 0;
    while done < 8 * MIB as u64 {
        done = fetch.line_with("done").parse().unwrap();
    }
    two.signal(rustix::process::Signal::STOP);
    let lost = fetch.line_with("lost");
    assert_eq!(lost, second.to_string());
    fetch.line_with("fetched");
    assert_same(&path, &to.path().join("film.mkv"));
    two.signal(rustix::process::Signal::CONT);
}

/// Runs only where the user may mount a file system in a namespace of its own.
fn small_disk() {
    let folder = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let path = share_support::file(folder.path(), 16 * MIB, 3);
    let manifest = manifest_of(&path);
    let (_server, address) = Process::serve(&path, 0);
    let unshare = ["--mount", "--map-root-user", "sh", "-c"];
    let mount = format!("mount -t tmpfs -o size=9m none '{}'", to.path().display());
    let permitted =
        Command::new("unshare").args(unshare).arg(&mount).stderr(Stdio::null()).status();
    if !permitted.is_ok_and(|status| status.success()) {
        return println!("not permitted to mount a file system: the small disk is not tried");
    }
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "{mount} && '{}' child-fetch '{}' {} {} 0 {address}; echo left $(ls -A '{}' | wc -l)",
        own.display(),
        to.path().display(),
        manifest.size(),
        manifest.content(),
        to.path().display(),
    );
    let mut fetch = Process::start(Command::new("unshare").args(unshare).arg(script));
    let mut said = Vec::new();
    while let Some(line) = fetch.line() {
        said.push(line);
    }
    let (done, rest): (Vec<&String>, Vec<&String>) =
        said.iter().partition(|line| line.starts_with("done"));
    assert!(done.iter().all(|line| *line == "done 0"), "{said:?}");
    assert_eq!(rest.len(), 2, "{said:?}");
    assert!(rest[0].starts_with("no room: no room for") && rest[0].contains("free"), "{said:?}");
    assert_eq!(rest[1], "left 0");
}

/// The peak resident memory of a process in bytes.
fn peak_memory(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

fn twenty_downloads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.bin");
    // The holes of a sparse file are read like any other bytes.
    std::fs::File::create(&path).unwrap().set_len(512 * MIB as u64).unwrap();
    let manifest = manifest_of(&path);
    let (server, address) = Process::serve(&path, 0);
    let content = source(address, &manifest).content;
    let threads: Vec<_> =
        (0..20).map(|_| thread::spawn(move || take_chunks(address, content, 40))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let peak = peak_memory(server.child.id());
    assert!(peak < 64 << 20, "{peak} bytes resident");
}

/// Requests chunks, as many at once as a server allows one peer, and discards them.
fn take_chunks(address: SocketAddr, content: ContentId, count: u64) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = |id| {
        let body = PeerRequest::Chunk { content, index: id };
        greeting::frame(&Message::Share { id, body }).unwrap()
    };
    let mut said = greeting::frame(&greeting::hello()).unwrap();
    (0..count).for_each(|id| said.extend(ask(id)));
    stream.write_all(&said).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut deframer = Deframer::new(SHARE_FRAME_BYTES_MAX);
    let (mut taken, mut nowhere) = (0, vec![0; MIB]);
    while taken < count {
        let Some(frame) = deframer.next_frame().unwrap() else {
            let received = stream.read(deframer.spare()).unwrap();
            assert!(received > 0, "closed after {taken} chunks");
            deframer.commit(received);
            continue;
        };
        match codec::decode(frame).unwrap() {
            Message::ShareWelcome { .. } => {}
            Message::ShareReply { body: PeerReply::Chunk { length }, .. } => {
                let length = length as usize;
                let here = deframer.take_raw(&mut nowhere[..length]);
                stream.read_exact(&mut nowhere[here..length]).unwrap();
                taken += 1;
            }
            // So is told whoever would wait for long, which on a busy machine may be anybody.
            Message::ShareReply { id, body: PeerReply::Denied { code: DenialCode::Busy, .. } } => {
                assert!(Instant::now() < deadline, "chunk {id} is refused for ever");
                stream.write_all(&ask(id)).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}
