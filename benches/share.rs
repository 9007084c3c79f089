//! What moving a file costs, beside plain copies over TCP and, where they are installed, other
//! programs.
//!
//! Every subject is a pair of processes, a sender and a receiver (or three senders), on this
//! machine:
//!
//! - `acervo`: a peer that serves and a download that verifies, through the library.
//! - `floor`: a sender that reads a mebibyte and writes it to a socket, a receiver that reads a
//!   mebibyte and writes it to a file. It verifies nothing.
//! - `nginx → curl`, `aria2` from nginx with piece hashes of a mebibyte: as people use them.
//!
//! Rounds are interleaved, and one before the first warms up memory and is not counted. For each
//! subject the medians of: MiB/s, processor seconds of both sides together a GiB, peak resident MiB
//! of the receiver and of the largest sender, the longest time an event loop was away.
//!
//! In the end: of two sources, one is frozen (SIGSTOP) in the middle; how long until the download
//! has left it and goes on with the other alone.
//!
//! `cargo bench --bench share`; `-- --test` makes a quick run of everything. Variables: `SHARE_MIB`
//! (the file's size, 2048), `SHARE_ROUNDS` (5), `SHARE_MEMORY` (`/dev/shm`), `SHARE_DISK` (the
//! target folder).
//!
//! Everything is measured under the system's congestion control, and once more, for every program
//! alike, under `cubic` where the kernel has it and `reno` where it does not, in a network
//! namespace whose routes say so (`congctl`). Each table says which it was, as a socket says it.
//! Where no namespace may be made, that is said instead.
//!
//! Not here is a BitTorrent client: `rqbit`, the fastest seen elsewhere (640 MiB/s under bbr and
//! 615 under cubic from three sources), is in no distribution that the others are from, and needs a
//! tracker.

#[path = "../tests/share_support/shelf.rs"]
mod shelf;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use acervo::limits::CHUNK_BYTES;
use acervo::model::ContentId;
use acervo::share::fetch::{Fetch, FetchHandle, SourceState};
use acervo::share::offer::Catalog;
use acervo::share::serve::ServeOptions;
use rustix::process::{Pid, Signal};
use shelf::Shelf;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What one run of a subject took.
#[derive(Clone, Copy, Default)]
struct Run {
    seconds: f64,
    cpu_s: f64,
    receiver_mib: f64,
    sender_mib: f64,
    stall_ms: f64,
}

/// What a process has used when it is done.
#[derive(Clone, Copy, Default)]
struct Usage {
    cpu_s: f64,
    peak_mib: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Subject {
    Floor,
    Acervo { sources: usize },
    NginxCurl,
    Aria2 { sources: usize },
}

impl Subject {
    fn name(self) -> String {
        match self {
            Subject::Floor => "floor (plain copy)".to_owned(),
            Subject::Acervo { sources } => format!("acervo, {sources} source(s)"),
            Subject::NginxCurl => "nginx → curl".to_owned(),
            Subject::Aria2 { sources } => format!("aria2 + piece hashes, {sources} source(s)"),
        }
    }
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", path] => serve(Path::new(path), None),
        ["serve", path, limit] => serve(Path::new(path), Some(limit.parse()?)),
        ["fetch", to, content, size, ref sources @ ..] => fetch(to, content, size, sources),
        ["floor-send", path] => floor_send(path),
        ["floor-receive", to, address] => floor_receive(to, address),
        _ => {
            let quick = arguments.iter().any(|argument| argument == "--test");
            measure(quick)?;
            if arguments.iter().any(|argument| argument == "--once") {
                return Ok(());
            }
            measure_again(quick)
        }
    }
}

/// Everything once more, in a network namespace with another congestion control.
fn measure_again(quick: bool) -> Outcome<()> {
    let available = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?;
    let has_cubic = available.split_whitespace().any(|name| name == "cubic");
    let control = if has_cubic { "cubic" } else { "reno" };
    if control == congestion_control()? {
        return Ok(());
    }
    let route = |to: &str| {
        let kind = "dev lo table local proto kernel scope host src 127.0.0.1";
        format!("ip route replace local {to} {kind} congctl {control}")
    };
    let script = format!(
        "ip link set lo up && {} && {} || exit 3; exec \"$0\" \"$@\"",
        route("127.0.0.0/8"),
        route("127.0.0.1")
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--map-root-user", "sh", "-c", &script]);
    command.arg(std::env::current_exe()?).arg("--once").args(quick.then_some("--test"));
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) if status.code() != Some(3) && status.code() != Some(1) => {
            return Err(format!("under {control}: {status}").into());
        }
        _ => println!("\nnothing under {control}: this user may not make a network namespace"),
    }
    Ok(())
}

/// Under which connections on this machine are.
fn congestion_control() -> Outcome<String> {
    let listener = TcpListener::bind(shelf::local())?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    Ok(rustix::net::sockopt::tcp_congestion(&stream)?)
}

// ---- the processes ------------------------------------------------------------------------------

fn serve(path: &Path, limit_bytes_per_s: Option<u64>) -> Outcome<()> {
    let shelf = Arc::new(Shelf::default());
    let manifest = shelf.add(path);
    let catalogs: Vec<Arc<dyn Catalog>> = vec![shelf];
    let server =
        shelf::serve_with(ServeOptions { catalogs, limit_bytes_per_s, ..ServeOptions::default() });
    let before = usage(std::process::id())?;
    println!("{} {} {}", server.address(), manifest.content(), before.cpu_s);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{}", server.status().longest_stall.as_micros());
    Ok(())
}

fn fetch(to: &str, content: &str, size: &str, sources: &[&str]) -> Outcome<()> {
    let handle = start_fetch(to, content, size.parse()?, sources)?;
    let outcome = handle.wait_for(Duration::from_secs(600)).ok_or("too slow")??;
    println!("{} {}", handle.progress().longest_stall.as_micros(), outcome.received_bytes);
    Ok(())
}

fn start_fetch(to: &str, content: &str, size: u64, sources: &[&str]) -> Outcome<FetchHandle> {
    let mut id = [0; 32];
    for (i, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&content[2 * i..2 * i + 2], 16)?;
    }
    let content = ContentId(id);
    let sources = sources.iter().map(|address| {
        let address: SocketAddr = address.parse().expect("an address");
        let peer = acervo::model::PeerId(u64::from(address.port()));
        acervo::wire::share::Source { peer, address, size, content }
    });
    Ok(Fetch::start(acervo::share::fetch::FetchOptions {
        content,
        size,
        name: acervo::model::FileName::new("fetched")?,
        to: to.into(),
        sources: sources.collect(),
        limit_bytes_per_s: None,
        partials: None,
        congestion: None,
        more_may_come: false,
        patience: Duration::from_secs(10),
        gone_after: None,
        seed: 1,
    })?)
}

fn floor_send(path: &str) -> Outcome<()> {
    let listener = TcpListener::bind(shelf::local())?;
    println!("{} - 0", listener.local_addr()?);
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut file = File::open(path)?;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            stream.write_all(&buffer[..read])?;
        }
    }
}

fn floor_receive(to: &str, address: &str) -> Outcome<()> {
    let mut stream = TcpStream::connect(address)?;
    let mut file = File::create(Path::new(to).join("fetched"))?;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
    }
    file.sync_all()?;
    println!("0 0");
    Ok(())
}

/// Processor time and peak memory of a process so far. One that has ended tells no memory any more.
fn usage(process: u32) -> Outcome<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    // Fields 14 and 15 of the line, in hundredths of a second on every Linux of today.
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kib = peak.and_then(|rest| rest.split_whitespace().next()).unwrap_or("0");
    Ok(Usage { cpu_s: ticks / 100.0, peak_mib: peak_kib.parse::<f64>()? / 1024.0 })
}

// ---- a run --------------------------------------------------------------------------------------

/// A sender, stopped when it is dropped.
struct Sender {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    address: String,
    content: String,
    /// Processor time it had used before the transfer.
    before_s: f64,
}

impl Sender {
    fn start(arguments: &[&str]) -> Outcome<Sender> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let [address, content, before] =
            <[String; 3]>::try_from(words).map_err(|_| "no address")?;
        Ok(Sender { child, output, address, content, before_s: before.parse()? })
    }

    /// Its usage since it was ready, and the longest stall of its loop in milliseconds.
    fn finish(mut self, reports: bool) -> Outcome<(Usage, f64)> {
        let mut used = usage(self.child.id())?;
        used.cpu_s -= self.before_s;
        drop(self.child.stdin.take());
        let mut stall_ms = 0.0;
        if reports {
            let mut line = String::new();
            self.output.read_line(&mut line)?;
            stall_ms = line.trim().parse::<f64>()? / 1000.0;
        }
        Ok((used, stall_ms))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a receiver to its end: the time it took, what it used, what it printed.
fn receive(command: &mut Command) -> Outcome<(f64, Usage, String)> {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut output = child.stdout.take().ok_or("no output")?;
    let process = child.id();
    // Memory has to be looked at while there is some.
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        let mut peak_mib: f64 = 0.0;
        while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
            ended.recv_timeout(Duration::from_millis(10))
        {
            peak_mib = peak_mib.max(usage(process).map_or(0.0, |used| used.peak_mib));
        }
        peak_mib
    });
    let mut said = String::new();
    output.read_to_string(&mut said)?;
    while !has_ended(process)? {
        std::thread::yield_now();
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut used = usage(process)?;
    drop(done);
    used.peak_mib = watcher.join().map_err(|_| "the watcher panicked")?;
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("{command:?} failed: {status}").into());
    }
    Ok((seconds, used, said))
}

/// Whether a child has ended and only waits to be waited for.
fn has_ended(process: u32) -> Outcome<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    Ok(stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// nginx for one file, on a free port; with its worker, whose usage counts.
struct Nginx {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Nginx {
    fn start(path: &Path) -> Outcome<Nginx> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind(shelf::local())?.local_addr()?.port();
        let root = path.parent().ok_or("no folder")?.display();
        let at = folder.path().display();
        let config = format!(
            "worker_processes 1;\nuser root;\npid {at}/pid;\nerror_log {at}/log;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on;\n\
             client_body_temp_path {at}/a; proxy_temp_path {at}/b; fastcgi_temp_path {at}/c;\n\
             uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;\n\
             server {{ listen 127.0.0.1:{port} reuseport; root {root}; }} }}\n"
        );
        let file = folder.path().join("conf");
        std::fs::write(&file, config)?;
        let child = Command::new("nginx")
            .args(["-g", "daemon off;", "-c"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()?;
        let nginx = Nginx { child, port, _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                return Err("nginx does not start".into());
            }
            std::thread::yield_now();
        }
        Ok(nginx)
    }

    fn usage(&self) -> Outcome<Usage> {
        let master = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
        let worker = children.split_whitespace().next().ok_or("nginx has no worker")?;
        usage(worker.parse()?)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Killed, the master would leave its worker behind.
        let quit = Command::new("kill").arg(self.child.id().to_string()).status();
        if quit.is_ok() {
            let _ = self.child.wait();
        }
    }
}

// ---- the comparison
// -------------------------------------------------------------------------------

/// What is moved, and where to.
struct Stage {
    source: PathBuf,
    size: u64,
    to: PathBuf,
    metalink: Option<PathBuf>,
}

impl Stage {
    fn run(&self, subject: Subject) -> Outcome<Run> {
        let fetched = self.to.join("fetched");
        let source = self.source.to_str().ok_or("the path is not UTF-8")?;
        let to = self.to.to_str().ok_or("the path is not UTF-8")?;
        let own = std::env::current_exe()?;
        let (senders, command): (Vec<Sender>, Command) = match subject {
            Subject::Floor => {
                let sender = Sender::start(&["floor-send", source])?;
                let mut command = Command::new(own);
                command.args(["floor-receive", to, &sender.address]);
                (vec![sender], command)
            }
            Subject::Acervo { sources } => {
                let senders = (0..sources)
                    .map(|_| Sender::start(&["serve", source]))
                    .collect::<Outcome<Vec<Sender>>>()?;
                let mut command = Command::new(own);
                command.args(["fetch", to, &senders[0].content, &self.size.to_string()]);
                command.args(senders.iter().map(|sender| &sender.address));
                (senders, command)
            }
            Subject::NginxCurl => {
                return self.run_http(1, |urls| {
                    let mut command = Command::new("curl");
                    command.args(["-sf", "-o"]).arg(&fetched).args(urls);
                    command
                });
            }
            Subject::Aria2 { sources } => {
                return self.run_http(sources, |urls| self.aria2(urls, sources));
            }
        };
        let mut command = command;
        let (seconds, receiver, said) = receive(&mut command)?;
        std::fs::remove_file(&fetched)?;
        let said: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let mut run = Run {
            seconds,
            cpu_s: receiver.cpu_s,
            receiver_mib: receiver.peak_mib,
            stall_ms: said.first().copied().unwrap_or_default() / 1000.0,
            ..Run::default()
        };
        for sender in senders {
            let (used, stall_ms) = sender.finish(matches!(subject, Subject::Acervo { .. }))?;
            run.cpu_s += used.cpu_s;
            run.sender_mib = run.sender_mib.max(used.peak_mib);
            run.stall_ms = run.stall_ms.max(stall_ms);
        }
        Ok(run)
    }

    fn run_http(
        &self,
        sources: usize,
        command: impl FnOnce(Vec<String>) -> Command,
    ) -> Outcome<Run> {
        let nginx =
            (0..sources).map(|_| Nginx::start(&self.source)).collect::<Outcome<Vec<_>>>()?;
        let file = self.source.file_name().and_then(|name| name.to_str()).ok_or("no name")?;
        let urls = nginx.iter().map(|one| format!("http://127.0.0.1:{}/{file}", one.port));
        let (seconds, receiver, _) = receive(&mut command(urls.collect()))?;
        let mut run = Run {
            seconds,
            cpu_s: receiver.cpu_s,
            receiver_mib: receiver.peak_mib,
            ..Run::default()
        };
        std::fs::remove_file(self.to.join("fetched"))?;
        for one in &nginx {
            let used = one.usage()?;
            run.cpu_s += used.cpu_s;
            run.sender_mib = run.sender_mib.max(used.peak_mib);
        }
        Ok(run)
    }

    /// aria2 takes piece hashes from a metalink file; the addresses in it are replaced.
    fn aria2(&self, urls: Vec<String>, sources: usize) -> Command {
        let mut command = Command::new("aria2c");
        let split = sources.to_string();
        command
            .args(["-q", "--file-allocation=none", "--min-split-size=1M", "--split"])
            .arg(&split);
        command.args(["--max-connection-per-server", "1", "--allow-overwrite=true"]);
        command.arg("--dir").arg(&self.to).arg("--metalink-preferred-protocol=http");
        if let Some(template) = &self.metalink
            && let Ok(text) = std::fs::read_to_string(template)
        {
            // A host name of its own for each: aria2 counts sources by host name.
            let urls = urls.iter().enumerate().map(|(i, url)| {
                format!("<url>{}</url>", url.replace("127.0.0.1", &format!("127.0.0.{}", i + 1)))
            });
            let filled = text.replace("<urls/>", &urls.collect::<String>());
            let path = template.with_extension("meta4");
            if std::fs::write(&path, filled).is_ok() {
                command.arg("-M").arg(path);
            }
        }
        command
    }
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A file of bytes that do not repeat, in memory by then.
fn make_file(path: &Path, size: u64) -> Outcome<()> {
    let mut file = File::create(path)?;
    let mut reader = blake3::Hasher::new().update(b"share bench").finalize_xof();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut left = size;
    while left > 0 {
        let length = left.min(buffer.len() as u64) as usize;
        reader.fill(&mut buffer[..length]);
        file.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    Ok(())
}

fn measure(quick: bool) -> Outcome<()> {
    let size = if quick { 32 } else { variable("SHARE_MIB", 2048) } << 20;
    let rounds = if quick { 1 } else { variable("SHARE_ROUNDS", 5) };
    let memory = std::env::var("SHARE_MEMORY").unwrap_or_else(|_| "/dev/shm".to_owned());
    let disk =
        std::env::var("SHARE_DISK").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    let control = congestion_control()?;
    let shared = tempfile::tempdir_in(&memory)?;
    let source = shared.path().join("source.bin");
    make_file(&source, size)?;
    let installed = |program: &str| {
        Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let mut subjects =
        vec![Subject::Floor, Subject::Acervo { sources: 1 }, Subject::Acervo { sources: 3 }];
    if !quick && installed("nginx") {
        subjects.push(Subject::NginxCurl);
        if installed("aria2c") {
            subjects.push(Subject::Aria2 { sources: 3 });
        }
    }
    for (place, folder) in [("memory", &memory), ("disk, synced", &disk)] {
        let to = tempfile::tempdir_in(folder)?;
        let stage = Stage {
            source: source.clone(),
            size,
            to: to.path().to_owned(),
            metalink: metalink(shared.path(), &source, size)?,
        };
        let mut runs = vec![Vec::new(); subjects.len()];
        for round in 0..=rounds {
            for (subject, runs) in subjects.iter().zip(&mut runs) {
                let run = stage.run(*subject)?;
                if round > 0 {
                    runs.push(run);
                }
            }
        }
        println!("\n{} MiB to {place}, {} rounds, {}", size >> 20, rounds, control);
        println!(
            "{:32} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "MiB/s", "cpu s/GiB", "recv MiB", "send MiB", "away ms"
        );
        for (subject, runs) in subjects.iter().zip(&runs) {
            let mib = size as f64 / f64::from(1 << 20);
            println!(
                "{:32} {:>9.0} {:>9.2} {:>9.1} {:>9.1} {:>9.1}",
                subject.name(),
                mib / median(runs, |run| run.seconds),
                median(runs, |run| run.cpu_s) / (mib / 1024.0),
                median(runs, |run| run.receiver_mib),
                median(runs, |run| run.sender_mib),
                runs.iter().map(|run| run.stall_ms).fold(0.0, f64::max),
            );
        }
    }
    let to = tempfile::tempdir_in(&memory)?;
    let times = (0..rounds).map(|_| freeze(&source, size, to.path()));
    let mut times = times.collect::<Outcome<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    println!(
        "\none of two sources frozen, {rounds} rounds, {control}: left after {:.0} ms, at most \
         {:.0} ms",
        times[times.len() / 2],
        times[times.len() - 1],
    );
    Ok(())
}

/// Milliseconds from freezing one of two sources until the download has left it; it ends with the
/// other source alone.
fn freeze(source: &Path, size: u64, to: &Path) -> Outcome<f64> {
    // So slow that a second passes before the end, with both at work.
    let limit = (size / 4).to_string();
    let source = source.to_str().ok_or("the path is not UTF-8")?;
    let senders =
        [Sender::start(&["serve", source, &limit])?, Sender::start(&["serve", source, &limit])?];
    let addresses = senders.each_ref().map(|sender| &*sender.address);
    let path = to.to_str().ok_or("the path is not UTF-8")?;
    let handle = start_fetch(path, &senders[0].content, size, &addresses)?;
    let until = |what: &str, holds: &dyn Fn() -> bool| -> Outcome<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds() {
            if Instant::now() > deadline {
                return Err(format!("in vain: {what}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    until("a quarter arrives", &|| handle.progress().done_bytes >= size / 4)?;
    rustix::process::kill_process(Pid::from_child(&senders[1].child), Signal::STOP)?;
    let frozen = Instant::now();
    until("the frozen source is left", &|| {
        let sources = handle.progress().sources;
        sources.iter().any(|source| {
            source.address.to_string() == addresses[1]
                && matches!(source.state, SourceState::Lost(_))
        })
    })?;
    let left_ms = frozen.elapsed().as_secs_f64() * 1000.0;
    handle.wait_for(Duration::from_secs(60)).ok_or("too slow")??;
    std::fs::remove_file(to.join("fetched"))?;
    Ok(left_ms)
}

/// A metalink with SHA-1 hashes of mebibyte pieces and a place for addresses; nothing where there
/// is no `sha1sum`.
fn metalink(folder: &Path, source: &Path, size: u64) -> Outcome<Option<PathBuf>> {
    let pieces = folder.join("pieces");
    std::fs::create_dir_all(&pieces)?;
    let split = Command::new("split")
        .args(["-b", "1M", "-a", "6", "--filter=sha1sum"])
        .arg(source)
        .output();
    let Ok(output) = split else { return Ok(None) };
    let hashes: String = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(|hash| format!("<hash>{hash}</hash>"))
        .collect();
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <metalink xmlns=\"urn:ietf:params:xml:ns:metalink\"><file name=\"fetched\">\
         <size>{size}</size><pieces length=\"1048576\" type=\"sha-1\">{hashes}</pieces>\
         <urls/></file></metalink>"
    );
    let path = folder.join("fetched.template");
    std::fs::write(&path, text)?;
    Ok(Some(path))
}
