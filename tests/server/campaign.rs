//! Real processes under every fault that this machine can produce, for as long as is wanted,
//! against a checker that knows nothing of how the store works.
//!
//! The ordinary suite runs some seconds of kills and pauses. The long campaign also takes disks
//! away:
//!
//! ```text
//! ACERVO_CAMPAIGN_S=3600 cargo test --release --test server campaign:: -- --nocapture
//! ```
//!
//! As root, and where loop devices can be mounted, each server then has a small file system of its
//! own, which is frozen (`fsfreeze`: a disk that hangs), frozen again and again for a moment (a
//! slow disk), and filled up. Elsewhere it says so and leaves these faults out. `ACERVO_SEED`
//! replays the order of the faults (not what the machine makes of it).
//!
//! What is checked, whatever happens:
//!
//! - a linearizable read shows the last write that was acknowledged before it began, or a later
//!   one;
//! - a reader's session never goes back;
//! - versions of acknowledged writes rise in the order in which one client made them;
//! - in the end every server holds every acknowledged write, as of its version and as the newest;
//! - after each fault is over, writes and linearizable reads go on within the tests' patience (a
//!   minute);
//! - no server ends by itself, unless its disk was full.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use acervo::client::{Client, ReadOptions, Timing};
use acervo::model::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

use crate::support::{Group, eventually};

const WRITERS: u64 = 4;
const KEYS_PER_WRITER: u64 = 24;
const SERVERS: usize = 3;
/// Room on each server's disk: an hour of what the writers write, with its history, and its log.
const DISK_MIB: u64 = 3072;
/// Between two writes of a writer, so that an hour's history fits on the disks.
const WRITE_PAUSE: Duration = Duration::from_millis(8);

// ---- what clients saw -----------------------------------------------------------------------

/// One key's acknowledged past. Its writer numbers its operations on the key from 1; a put's value
/// is the number.
#[derive(Default)]
struct Past {
    attempted: u64,
    /// Number and version of the last acknowledged operation.
    acknowledged: Option<(u64, Timestamp)>,
    /// Numbers of the removals that were attempted.
    removals: Vec<u64>,
    /// Numbers and versions of some acknowledged puts, all after the last removal that was
    /// attempted.
    puts: Vec<(u64, Timestamp)>,
}

struct Checker {
    pasts: Vec<Mutex<Past>>,
    writes: AtomicU64,
    unknown: AtomicU64,
    reads: AtomicU64,
    stop: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

impl Checker {
    fn new() -> Checker {
        Checker {
            pasts: (0..WRITERS * KEYS_PER_WRITER).map(|_| Mutex::default()).collect(),
            writes: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            wrong: Mutex::default(),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn wrong(&self, what: String) {
        eprintln!("WRONG: {what}");
        self.wrong.lock().unwrap().push(what);
    }

    /// The number of the last operation on a key that was acknowledged by now.
    fn acknowledged(&self, key: usize) -> u64 {
        self.pasts[key].lock().unwrap().acknowledged.map_or(0, |(number, _)| number)
    }

    /// Judges what a read found that began when operation `floor` had been acknowledged; the least
    /// number that it proves to have taken effect.
    fn judge(&self, key: usize, value: Option<&[u8]>, floor: u64, who: &str) -> u64 {
        let past = self.pasts[key].lock().unwrap();
        let attempted = past.attempted;
        match value {
            Some(value) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                let number: u64 = number.unwrap_or_default();
                if !(floor.max(1)..=attempted).contains(&number) {
                    drop(past);
                    self.wrong(format!(
                        "{who} of {}: write {number}, where {floor} was acknowledged or seen and \
                         {attempted} attempted",
                        name(key)
                    ));
                }
                number
            }
            None => {
                let removal = past.removals.iter().copied().find(|number| *number >= floor);
                if floor > 0 && removal.is_none() {
                    drop(past);
                    self.wrong(format!(
                        "{who} of {}: nothing, where write {floor} was acknowledged or seen and no \
                         removal came after it",
                        name(key)
                    ));
                }
                floor
            }
        }
    }
}

fn name(key: usize) -> String {
    format!("key-{key:04}")
}

/// A client that is as patient as a fault may last, but notices when a server is gone.
fn client(group: &Group) -> Client {
    let timing = Timing { reach_timeout: Duration::from_secs(10), ..Timing::default() };
    Client::builder(group.addresses())
        .timing(timing)
        .request_timeout(Duration::from_secs(12))
        .build()
        .unwrap()
}

fn writer(checker: Arc<Checker>, client: Client, writer: u64, seed: u64) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut last = Timestamp::ZERO;
        while !checker.stopped() {
            std::thread::park_timeout(WRITE_PAUSE);
            let key = (writer * KEYS_PER_WRITER + rng.random_range(0..KEYS_PER_WRITER)) as usize;
            // Of every other key the history stays whole, to be read as of its versions in the end.
            let removes = key % 2 == 1 && rng.random_ratio(1, 6);
            let number = {
                let mut past = checker.pasts[key].lock().unwrap();
                past.attempted += 1;
                let number = past.attempted;
                if removes {
                    past.removals.push(number);
                    past.puts.clear();
                }
                number
            };
            let done = match removes {
                true => client.del(name(key)).map(|done| done.timestamp),
                false => client.put(name(key), number.to_string()).map(|done| done.timestamp),
            };
            let Ok(version) = done else {
                // It may have taken effect, and the next one says that it will not any more.
                checker.unknown.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            checker.writes.fetch_add(1, Ordering::Relaxed);
            if version <= last {
                checker.wrong(format!("version {version} follows {last}"));
            }
            last = version;
            let mut past = checker.pasts[key].lock().unwrap();
            past.acknowledged = Some((number, version));
            if !removes && (past.puts.len() < 64 || rng.random_ratio(1, 50)) {
                past.puts.push((number, version));
            }
        }
    })
}

fn linearizable_reader(checker: Arc<Checker>, client: Client, seed: u64) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut rng = StdRng::seed_from_u64(seed);
        while !checker.stopped() {
            let key = rng.random_range(0..checker.pasts.len());
            let floor = checker.acknowledged(key);
            if let Ok(got) = client.get_linearizable(name(key)) {
                checker.judge(key, got.value(), floor, "a linearizable read");
                checker.reads.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
    })
}

fn session_reader(checker: Arc<Checker>, client: Client, seed: u64) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut seen: HashMap<usize, u64> = HashMap::new();
        while !checker.stopped() {
            let key = rng.random_range(0..checker.pasts.len());
            let floor = seen.get(&key).copied().unwrap_or(0);
            if let Ok(got) = client.get(name(key)) {
                let number = checker.judge(key, got.value(), floor, "a session's read");
                seen.insert(key, number.max(floor));
                checker.reads.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
    })
}

// ---- disks ----------------------------------------------------------------------------------

/// A file system of one server, in a file. Unmounted when it is dropped.
struct Disk {
    mount: PathBuf,
    frozen: bool,
}

impl Disk {
    /// `None` where mounting is not permitted.
    fn mount(image: &Path, mount: &Path) -> Option<Disk> {
        let file = std::fs::File::create(image).unwrap();
        file.set_len(DISK_MIB * 1024 * 1024).unwrap();
        std::fs::create_dir_all(mount).unwrap();
        let made = run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-F"]).arg(image));
        let mounted = made && run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(mount));
        if !mounted {
            return None;
        }
        Some(Disk { mount: mount.to_path_buf(), frozen: false })
    }

    fn freeze(&mut self) {
        self.frozen = run(Command::new("fsfreeze").arg("-f").arg(&self.mount));
    }

    fn thaw(&mut self) {
        if self.frozen {
            run(Command::new("fsfreeze").arg("-u").arg(&self.mount));
            self.frozen = false;
        }
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("lost+found").join("ballast")
    }

    /// Takes all the room there is, but for what is given.
    fn fill(&self, but_bytes: u64) {
        std::fs::create_dir_all(self.mount.join("lost+found")).unwrap();
        let free = rustix::fs::statvfs(&self.mount).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        let ballast = std::fs::File::create(self.ballast()).unwrap();
        let len = free.saturating_sub(but_bytes);
        let _ = rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, len);
    }

    fn make_room(&self) {
        let _ = std::fs::remove_file(self.ballast());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        // Lazily: a process that is only being killed may have files open.
        run(Command::new("umount").arg("-l").arg(&self.mount));
    }
}

fn run(command: &mut Command) -> bool {
    command.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
}

// ---- faults ---------------------------------------------------------------------------------

struct Campaign {
    group: Group,
    disks: Vec<Disk>,
    checker: Arc<Checker>,
    rng: StdRng,
    counts: HashMap<&'static str, u64>,
    started: Instant,
}

impl Campaign {
    fn pause(&mut self, least_ms: u64, most_ms: u64) {
        let wait = Duration::from_millis(self.rng.random_range(least_ms..=most_ms));
        let deadline = Instant::now() + wait;
        while Instant::now() < deadline {
            std::thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }

    fn fault(&mut self) {
        let at = self.rng.random_range(0..SERVERS);
        let kinds = if self.disks.is_empty() { 5 } else { 9 };
        let kind = match self.rng.random_range(0..kinds) {
            0 => self.kill(at),
            1 => self.pause_process(at),
            2 => self.kill_leader(),
            3 => self.kill_everybody(),
            4 => self.wipe(at),
            5 => self.hang_disk(at),
            6 => self.slow_disk(at),
            7 => self.fill_disk(at),
            _ => self.hang_leaders_disk(),
        };
        *self.counts.entry(kind).or_default() += 1;
        self.still_works(kind, at);
    }

    fn kill(&mut self, at: usize) -> &'static str {
        self.group.kill(at);
        self.pause(50, 4000);
        self.group.start_server(at);
        "a server killed"
    }

    fn kill_leader(&mut self) -> &'static str {
        let leader = self.group.leader();
        self.kill(leader);
        "the leader killed"
    }

    fn kill_everybody(&mut self) -> &'static str {
        for at in 0..SERVERS {
            self.group.kill(at);
        }
        for at in 0..SERVERS {
            self.group.start_server(at);
        }
        "all killed"
    }

    fn pause_process(&mut self, at: usize) -> &'static str {
        self.group.signal(at, Signal::STOP);
        self.pause(100, 6000);
        self.group.signal(at, Signal::CONT);
        "a server paused"
    }

    /// A directory is lost. Only when everybody has confirmed everything: two lost copies of three
    /// is what the promise leaves out.
    fn wipe(&mut self, at: usize) -> &'static str {
        let client = client(&self.group);
        let addresses = self.group.addresses();
        eventually("all servers are in sync", || {
            let leader = self.group.leader();
            let status = client.status(addresses[leader]).ok()?;
            (status.in_sync.len() == SERVERS).then_some(())
        });
        self.group.kill(at);
        for entry in std::fs::read_dir(self.group.data_dir(at)).unwrap().flatten() {
            let path = entry.path();
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            removed.unwrap();
        }
        self.group.start_server(at);
        // It has to be whole again before another directory may be lost.
        eventually("the lost directory is replaced", || {
            let leader = self.group.leader();
            let status = client.status(addresses[leader]).ok()?;
            (status.in_sync.len() == SERVERS).then_some(())
        });
        "a directory lost"
    }

    fn hang_disk(&mut self, at: usize) -> &'static str {
        self.disks[at].freeze();
        self.pause(200, 9000);
        self.disks[at].thaw();
        "a disk hung"
    }

    fn hang_leaders_disk(&mut self) -> &'static str {
        let leader = self.group.leader();
        self.disks[leader].freeze();
        // The others are healthy: writes go on although this disk does not come back.
        let before = self.checker.writes.load(Ordering::Relaxed);
        eventually("writes go on beside a leader's disk that hangs", || {
            (self.checker.writes.load(Ordering::Relaxed) > before + 20).then_some(())
        });
        self.disks[leader].thaw();
        "the leader's disk hung"
    }

    fn slow_disk(&mut self, at: usize) -> &'static str {
        for _ in 0..self.rng.random_range(10..60) {
            self.disks[at].freeze();
            self.pause(20, 120);
            self.disks[at].thaw();
            self.pause(1, 30);
        }
        "a disk slow"
    }

    fn fill_disk(&mut self, at: usize) -> &'static str {
        let left = self.rng.random_range(0..64u64) * 1024 * 1024;
        self.disks[at].fill(left);
        self.pause(1000, 8000);
        // Now and then it has to start on the full disk.
        if self.rng.random_ratio(1, 3) && self.group.is_running(at) {
            self.group.kill(at);
            self.group.start_server(at);
            self.pause(500, 3000);
        }
        self.disks[at].make_room();
        if !self.group.is_running(at) {
            self.group.start_server(at);
        }
        "a disk full"
    }

    /// After a fault is over the group serves again, and nobody has ended by himself.
    fn still_works(&mut self, kind: &str, at: usize) {
        for server in 0..SERVERS {
            assert!(self.group.is_running(server), "server {server} ended after: {kind} ({at})");
        }
        let (writes, reads) = (&self.checker.writes, &self.checker.reads);
        let before = (writes.load(Ordering::Relaxed), reads.load(Ordering::Relaxed));
        let since = Instant::now();
        eventually("writes and reads go on after the fault", || {
            let wrote = writes.load(Ordering::Relaxed) > before.0 + 10;
            (wrote && reads.load(Ordering::Relaxed) > before.1 + 10).then_some(())
        });
        println!(
            "{:6.1} s: {kind} ({at}); served after {:.1} s; {} writes, {} unknown, {} reads",
            self.started.elapsed().as_secs_f64(),
            since.elapsed().as_secs_f64(),
            writes.load(Ordering::Relaxed),
            self.checker.unknown.load(Ordering::Relaxed),
            reads.load(Ordering::Relaxed),
        );
        let wrong = self.checker.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "wrong answers: {wrong:#?}");
    }
}

#[test]
fn no_answer_is_wrong_whatever_happens_to_servers_and_disks() {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let length = number("ACERVO_CAMPAIGN_S");
    let drawn = || std::hash::RandomState::new().build_hasher().finish();
    let seed = number("ACERVO_SEED").unwrap_or_else(drawn);
    println!("ACERVO_SEED={seed}");

    let mut group = Group::prepare(SERVERS, &["--console", "off"]);
    let mut disks = Vec::new();
    if length.is_some() {
        for at in 0..SERVERS {
            let image = group.dir.path().join(format!("disk-{at}"));
            disks.extend(Disk::mount(&image, &group.data_dir(at)));
        }
        if disks.len() < SERVERS {
            println!("loop devices cannot be mounted here: no fault of a disk is tried");
            disks.clear();
        }
    }
    for at in 0..SERVERS {
        group.start_server(at);
    }
    let checker = Arc::new(Checker::new());
    let mut threads = Vec::new();
    for number in 0..WRITERS {
        threads.push(writer(checker.clone(), client(&group), number, seed ^ number));
    }
    threads.push(linearizable_reader(checker.clone(), client(&group), seed ^ 100));
    threads.push(session_reader(checker.clone(), client(&group), seed ^ 101));

    let rng = StdRng::seed_from_u64(seed);
    let counts = HashMap::new();
    let started = Instant::now();
    let mut campaign = Campaign { group, disks, checker, rng, counts, started };
    campaign.still_works("nothing yet", 0);
    let length = Duration::from_secs(length.unwrap_or(8));
    while campaign.started.elapsed() < length {
        campaign.pause(100, 2500);
        campaign.fault();
    }
    campaign.checker.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    let checked = check_the_end(&campaign);
    let mut counts: Vec<_> = campaign.counts.iter().collect();
    counts.sort();
    println!(
        "{} writes acknowledged, {} unknown, {} reads, {checked} read again as of their versions; \
         {counts:?}",
        campaign.checker.writes.load(Ordering::Relaxed),
        campaign.checker.unknown.load(Ordering::Relaxed),
        campaign.checker.reads.load(Ordering::Relaxed),
    );
    // Processes end before their disks are unmounted.
    let Campaign { group, disks, .. } = campaign;
    drop(group);
    drop(disks);
}

/// Every server holds every acknowledged write; how many were looked at.
fn check_the_end(campaign: &Campaign) -> usize {
    let Campaign { group, checker, .. } = campaign;
    let newest = |past: &Mutex<Past>| past.lock().unwrap().acknowledged.map(|(_, version)| version);
    let newest = checker.pasts.iter().filter_map(newest).max().unwrap_or_default();
    let mut checked = 0;
    for at in 0..SERVERS {
        let client = group.client_of(at);
        eventually("the server has applied everything", || {
            (client.status(group.servers[at].address).ok()?.applied_timestamp >= newest)
                .then_some(())
        });
        for key in 0..checker.pasts.len() {
            let floor = checker.acknowledged(key);
            let got = client.get(name(key)).unwrap();
            checker.judge(key, got.value(), floor, &format!("the last read at server {at}"));
            for (number, version) in &checker.pasts[key].lock().unwrap().puts {
                let got = client.read(name(key), ReadOptions::at(*version)).unwrap();
                let expected = number.to_string();
                assert_eq!(got.value(), Some(expected.as_bytes()), "{} at {version}", name(key));
                assert_eq!(got.timestamp(), Some(*version), "{} at server {at}", name(key));
                checked += 1;
            }
        }
    }
    let wrong = checker.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "wrong answers: {wrong:#?}");
    checked
}

#[test]
fn the_checker_of_the_campaign_sees_what_is_wrong() {
    let checker = Checker::new();
    {
        let mut past = checker.pasts[0].lock().unwrap();
        past.attempted = 5;
        past.acknowledged = Some((4, Timestamp(40)));
        past.removals = vec![2];
    }
    assert_eq!(checker.judge(0, Some(b"4"), 4, "a read"), 4);
    assert_eq!(checker.judge(0, Some(b"5"), 4, "a read"), 5);
    assert!(checker.wrong.lock().unwrap().is_empty());
    for (wrong, value) in [Some(&b"3"[..]), Some(b"6"), Some(b"x"), None].into_iter().enumerate() {
        checker.judge(0, value, 4, "a read");
        assert_eq!(checker.wrong.lock().unwrap().len(), wrong + 1, "{value:?}");
    }
}
