//! Disks that fill up while a file arrives, and processes without open files to spare. The user is
//! told at once, what has arrived is kept, and the rest is fetched when there is room again.
//!
//! Left out: the bytes on the wire (`transfer`) and processes that die (`share_processes`).

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::FallocateFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::support::share::{FetchCommand, Process, Ran, Registry, arrived, noise, part_of, write};
use crate::support::{self, ACERVO, eventually, exited_with, free_addresses};

const MIB: usize = 1024 * 1024;

/// The `kept` and `fetched` bytes that a fetch with `--format json` prints.
fn kept_and_fetched(ran: &Ran) -> (u64, u64) {
    let object = ran.json();
    (object["kept_bytes"].as_u64().unwrap(), object["fetched_bytes"].as_u64().unwrap())
}

#[test]
fn a_download_whose_file_may_not_grow_ends_at_once_and_resumes_later() {
    let registry = Registry::start(&[]);
    let film = noise(24 * MIB, "film");
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &film);
    let _peer = registry.share(&folder, &[]);
    let part = part_of(&to, "film.mkv");
    let mut fetch = FetchCommand {
        registry: &registry,
        name: "film.mkv",
        to: &to,
        flags: &["--quiet", "--limit", "8MiB/s"],
    }
    .start();
    eventually("some of it has arrived", || (arrived(&part) >= 8 * MIB).then_some(()));

    // From now on no chunk can be written, as on a file system that allows no larger file. Unlike a
    // mount, a limit needs no privilege.
    let least = Some(MIB as u64);
    let nothing = Rlimit { current: least, maximum: least };
    prlimit(Some(Pid::from_child(&fetch.child)), Resource::Fsize, nothing).unwrap();
    let status = fetch.wait();
    assert!(exited_with(status, 4), "{status:?} {}", fetch.err());
    assert_eq!(fetch.err().lines().count(), 1, "{}", fetch.err());
    let expected = format!("acervo: {} may not grow to the {} bytes", part.display(), film.len());
    assert!(fetch.err().starts_with(&expected), "{}", fetch.err());
    let kept = arrived(&part);
    assert!(kept >= 8 * MIB && kept < film.len() && !to.join("film.mkv").exists(), "{kept}");

    let to_text = to.to_str().unwrap();
    let resumed = registry.run(&["fetch", "film.mkv", "--to", to_text, "--format", "json"]);
    assert_eq!(resumed.status, 0, "{}", resumed.err);
    assert!(std::fs::read(to.join("film.mkv")).unwrap() == film);
    assert_eq!(kept_and_fetched(&resumed), (kept as u64, (film.len() - kept) as u64));
    assert!(!part.exists());
}

#[test]
fn a_file_size_limit_below_the_file_fails_before_the_first_byte() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &noise(2 * MIB, "film"));
    let _peer = registry.share(&folder, &[]);
    // Shells count this limit in blocks of 512 or of 1024 bytes.
    let script = "ulimit -f 1024 && exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, ACERVO, "fetch", "film.mkv", "--quiet", "--registry"]);
    command.arg(registry.address()).arg("--to").arg(&to);
    let mut fetch = Process::start(command, registry.dir.path(), "limited");
    let status = fetch.wait();
    assert!(exited_with(status, 4), "{status:?} {}", fetch.err());
    assert!(fetch.err().contains("may not grow to the 2097152 bytes"), "{}", fetch.err());
    assert_eq!(fetch.err().lines().count(), 1, "{}", fetch.err());
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0, "nothing is left behind");
}

/// A regression: silent connections used up the files that the peer may open, its scan of the
/// folder failed, and it withdrew all files for as long as they stayed.
#[test]
fn silent_connections_withdraw_no_files_of_a_peer_with_few_descriptors() {
    let registry = Registry::start(&[]);
    let folder = registry.folder("a");
    write(&folder, "first", b"first");
    let at = free_addresses(1)[0];
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 200 && exec \"$0\" \"$@\"", ACERVO, "share"]);
    command.arg(&folder).args(["--listen", &at.to_string(), "--registry", &registry.address()]);
    let peer = Process::start(command, registry.dir.path(), "few");
    let offers = |file: &str| registry.run(&["files"]).out.contains(file);
    eventually("the first is offered", || offers("first").then_some(()));
    let crowd: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(at).unwrap()).collect();
    // Once the second file is offered, the folder has been scanned with the crowd connected.
    write(&folder, "second", b"second");
    eventually("the second is offered", || {
        assert!(offers("first"), "{}", peer.err());
        offers("second").then_some(())
    });
    drop(crowd);
}

/// The writing end of a pipe that is full, and its reading end, from which nothing is read.
fn full_pipe() -> (PipeWriter, PipeReader) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() || writer.write(b"x").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (writer, reader)
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Killed {
    fn ended(&mut self) -> ExitStatus {
        eventually("the process ends", || self.0.try_wait().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // A process that has ended by itself cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A regression: a peer blocked on a standard error that nobody read. It offered nothing new, did
/// not join again, and no signal ended it.
#[test]
fn share_and_fetch_go_on_when_their_output_is_not_read() {
    let mut registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "first", b"first");
    let (full, _unread) = full_pipe();
    let address = registry.address();
    let start = |arguments: &[&str]| {
        let mut command = Command::new(ACERVO);
        command.args(arguments).args(["--registry", &address]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full.try_clone().unwrap());
        Killed(command.spawn().unwrap())
    };
    let mut share = start(&["share", folder.to_str().unwrap()]);
    let offers = |registry: &Registry, file: &str| registry.run(&["files"]).out.contains(file);
    eventually("the first is offered", || offers(&registry, "first").then_some(()));
    let mut fetch = start(&["fetch", "first", "--to", to.to_str().unwrap()]);
    assert_eq!(fetch.ended().code(), Some(0));
    write(&folder, "second", b"second");
    eventually("the second is offered", || offers(&registry, "second").then_some(()));
    registry.kill();
    registry.restart();
    eventually("it joins again", || offers(&registry, "second").then_some(()));
    kill_process(Pid::from_raw(share.0.id() as i32).unwrap(), Signal::TERM).unwrap();
    assert_eq!(share.ended().code(), Some(0));
}

/// A shell in a mount namespace of its own, with a small file system in memory at `at`.
struct SmallDisk {
    shell: std::process::Child,
    at: PathBuf,
}

impl SmallDisk {
    /// `None` where this user may not mount file systems.
    fn mount(at: &Path, size: &str) -> Option<SmallDisk> {
        let unshare = ["--mount", "--map-root-user", "sh"];
        let mut shell = Command::new("unshare")
            .args(unshare)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let script = format!(
            "mount -t tmpfs -o size={size} none '{0}' && touch '{0}/mounted' || exit\n",
            at.display()
        );
        shell.stdin.as_mut()?.write_all(script.as_bytes()).ok()?;
        let mut disk = SmallDisk { shell, at: at.to_owned() };
        let mounted = disk.path("mounted");
        let is_mounted = eventually("a file system, or the shell's end", || {
            let ended = disk.shell.try_wait().unwrap().is_some();
            (ended || mounted.exists()).then(|| mounted.exists())
        });
        is_mounted.then_some(disk)
    }

    /// The path outside of the namespace of a file on the small file system.
    fn path(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.shell.id()));
        root.join(self.at.strip_prefix("/").unwrap()).join(name)
    }

    /// A command that runs `acervo` with these arguments inside the namespace.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.shell.id().to_string();
        command.args(["--target", &target, "--user", "--preserve-credentials", "--mount", ACERVO]);
        command.args(arguments);
        command
    }

    /// Fills the file system with one more file.
    fn fill(&self) {
        let mut hog = File::create(self.path("hog")).unwrap();
        while hog.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Where the user may not mount a file system, the first test of this file has to do.
#[test]
fn a_download_that_fills_the_disk_ends_at_once_and_resumes_later() {
    let registry = Registry::start(&[]);
    let film = noise(24 * MIB, "film");
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &film);
    let Some(disk) = SmallDisk::mount(&to, "40m") else {
        return println!("not permitted to mount a file system: only the limit on files is tried");
    };
    let _peer = registry.share(&folder, &[]);
    let (to_text, address) = (to.to_str().unwrap(), registry.address());
    let arguments = ["fetch", "film.mkv", "--to", to_text, "--registry", &address];
    let slowly = [&arguments[..], &["--quiet", "--limit", "8MiB/s"]].concat();
    let mut fetch = Process::start(disk.command(&slowly), registry.dir.path(), "fetch");
    let part = disk.path("film.mkv.part");
    eventually("some of it has arrived", || (arrived(&part) >= 8 * MIB).then_some(()));

    // The download reserved the space of the whole file. On a file system that copies on write the
    // reservation does not help, so the test takes it back.
    fetch.signal(Signal::STOP);
    let bytes = std::fs::read(&part).unwrap();
    let file = File::options().write(true).open(&part).unwrap();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for (index, chunk) in bytes[..film.len()].chunks(MIB).enumerate() {
        if chunk.iter().all(|byte| *byte == 0) {
            rustix::fs::fallocate(&file, hole, (index * MIB) as u64, MIB as u64).unwrap();
        }
    }
    // A file that is open for writing would not be published.
    drop(file);
    disk.fill();
    fetch.signal(Signal::CONT);

    let status = fetch.wait();
    assert!(exited_with(status, 4), "{status:?} {}", fetch.err());
    assert_eq!(fetch.err().lines().count(), 1, "{}", fetch.err());
    let expected = format!("acervo: no room for {}", to.join("film.mkv.part").display());
    assert!(fetch.err().starts_with(&expected), "{}", fetch.err());
    assert!(
        fetch
            .err()
            .contains("and 0 free; make room and fetch the file again; what has arrived is kept"),
        "{}",
        fetch.err()
    );
    let kept = arrived(&part);
    assert!(kept >= 8 * MIB && kept < film.len() && !disk.path("film.mkv").exists(), "{kept}");

    // The disk is still full: the user is told before the first byte, and nothing is lost.
    let command = || disk.command(&[&arguments[..], &["--format", "json"]].concat());
    let ran = support::share::to_end(command());
    assert_eq!(ran.status, 4, "{}", ran.err);
    assert!(ran.err.starts_with("acervo: no room for "), "{}", ran.err);
    assert_eq!(arrived(&part), kept);

    std::fs::remove_file(disk.path("hog")).unwrap();
    let resumed = support::share::to_end(command());
    assert_eq!(resumed.status, 0, "{}", resumed.err);
    assert!(std::fs::read(disk.path("film.mkv")).unwrap() == film);
    assert_eq!(kept_and_fetched(&resumed), (kept as u64, (film.len() - kept) as u64));
}
