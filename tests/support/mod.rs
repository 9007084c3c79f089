//! What the tests with real processes share: a group of servers in a temporary folder, and waiting
//! for a condition with a deadline.

#![allow(dead_code, reason = "each test binary uses its own part of what is shared")]

#[cfg(feature = "grpc")]
pub mod gateway;
pub mod raw;
pub mod share;
pub mod terminal;

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use acervo::client::{Client, Timing};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tempfile::TempDir;

/// How long anything may take before a test fails. Far beyond what it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub const ACERVO: &str = env!("CARGO_BIN_EXE_acervo");

/// Waits until `check` gives something.
///
/// # Panics
/// Panics when it does not within [`PATIENCE`], naming `what` was awaited.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Free addresses for a group. Each group gets a loopback IP of its own, so that no connection of
/// another test, whose ports the system chooses, can take one of them in the meantime.
pub fn free_addresses(count: usize) -> Vec<SocketAddr> {
    static GROUPS: AtomicU32 = AtomicU32::new(0);
    loop {
        let group = GROUPS.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let part = |number: u32| (1 + number % 250) as u8;
        let ip: std::net::IpAddr =
            [127, part(process), part(process / 250 + group / 250), part(group)].into();
        let bound: Vec<TcpListener> =
            (0..count).map_while(|_| TcpListener::bind((ip, 0)).ok()).collect();
        if bound.len() == count {
            let mut addresses: Vec<SocketAddr> =
                bound.iter().map(|l| l.local_addr().unwrap()).collect();
            addresses.sort();
            return addresses;
        }
        assert!(group < 10_000, "no loopback address is free");
    }
}

/// One server process of a group, running or not.
pub struct Server {
    pub address: SocketAddr,
    child: Option<Child>,
}

/// A group of servers on fresh data directories. Dropping it kills what still runs.
pub struct Group {
    pub dir: TempDir,
    pub servers: Vec<Server>,
    flags: Vec<String>,
}

impl Group {
    /// Starts `size` servers, the first of which leads first, with `flags` for each, and waits
    /// until all of them listen: a client that finds nobody there says so at once, and does not ask
    /// again.
    pub fn start(size: usize, flags: &[&str]) -> Group {
        let mut group = Group::prepare(size, flags);
        for at in 0..size {
            group.start_server(at);
        }
        (0..size).for_each(|at| group.wait_until_listening(at));
        group
    }

    /// As [`Group::start`] with three servers, the last of which stores what is replicated to it
    /// by `delay` late.
    pub fn start_with_a_late_server(flags: &[&str], delay: &str) -> Group {
        let mut group = Group::prepare(3, flags);
        group.start_server(0);
        group.start_server(1);
        group.start_server_with(2, &["--replication-delay", delay]);
        (0..3).for_each(|at| group.wait_until_listening(at));
        group
    }

    /// As [`Group::start`], without starting anything yet.
    pub fn prepare(size: usize, flags: &[&str]) -> Group {
        let server = |address| Server { address, child: None };
        Group {
            dir: tempfile::tempdir().unwrap(),
            servers: free_addresses(size).into_iter().map(server).collect(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }

    /// The value of `--servers`.
    pub fn list(&self) -> String {
        let addresses: Vec<String> = self.addresses().iter().map(|a| a.to_string()).collect();
        addresses.join(",")
    }

    pub fn data_dir(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("server-{at}"))
    }

    /// Where a server's standard error goes, over all its lives.
    pub fn log_path(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("server-{at}.log"))
    }

    pub fn log(&self, at: usize) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path(at)).unwrap_or_default()).into_owned()
    }

    /// Where a server's console lines go, over all its lives.
    pub fn console_path(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("server-{at}.out"))
    }

    /// The command that starts server `at`.
    pub fn command(&self, at: usize) -> Command {
        let mut command = Command::new(ACERVO);
        command
            .arg("server")
            .args(["--listen", &self.servers[at].address.to_string()])
            .args(["--leader", &self.servers[0].address.to_string()])
            .args(["--servers", &self.list()])
            .arg("--data-dir")
            .arg(self.data_dir(at))
            .args(&self.flags)
            .env_remove("RUST_LOG");
        command
    }

    /// Starts server `at` on whatever its data directory holds.
    pub fn start_server(&mut self, at: usize) {
        self.start_server_with(at, &[]);
    }

    pub fn start_server_with(&mut self, at: usize, more_flags: &[&str]) {
        assert!(self.servers[at].child.is_none(), "server {at} runs already");
        let mut command = self.command(at);
        command
            .args(more_flags)
            .stdin(Stdio::null())
            .stdout(appending(&self.console_path(at)))
            .stderr(appending(&self.log_path(at)));
        self.servers[at].child = Some(command.spawn().unwrap());
    }

    /// Waits until server `at` listens, or has ended: for those who cannot ask twice, as a person
    /// at the menu.
    pub fn wait_until_listening(&mut self, at: usize) {
        eventually("the server listens", || {
            (self.log(at).contains(" listens on ") || !self.is_running(at)).then_some(())
        });
    }

    /// Starts server `at` from a shell that runs `preparation` first, in which it can set limits.
    /// `wrapper` is what the shell itself is started with, if anything.
    pub fn start_server_from_shell(&mut self, at: usize, wrapper: &[&str], preparation: &str) {
        assert!(self.servers[at].child.is_none(), "server {at} runs already");
        let server = self.command(at);
        let script = format!("{preparation} && exec \"$0\" \"$@\"");
        let mut line: Vec<&std::ffi::OsStr> = wrapper.iter().map(|word| word.as_ref()).collect();
        line.extend(["sh", "-c", &script].map(std::ffi::OsStr::new));
        line.push(server.get_program());
        line.extend(server.get_args());
        let mut command = Command::new(line[0]);
        command
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(appending(&self.console_path(at)))
            .stderr(appending(&self.log_path(at)));
        self.servers[at].child = Some(command.spawn().unwrap());
    }

    /// Whether server `at` was started and has not ended by itself. One that has can be started
    /// again.
    pub fn is_running(&mut self, at: usize) -> bool {
        let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
        if self.servers[at].child.as_mut().is_some_and(ended) {
            self.servers[at].child = None;
        }
        self.servers[at].child.is_some()
    }

    pub fn pid(&self, at: usize) -> u32 {
        self.servers[at].child.as_ref().expect("the server runs").id()
    }

    pub fn signal(&self, at: usize, signal: Signal) {
        let pid = Pid::from_raw(self.pid(at) as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ends a process with SIGKILL, without any warning to it.
    pub fn kill(&mut self, at: usize) {
        let mut child = self.servers[at].child.take().expect("the server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self, at: usize) -> ExitStatus {
        self.signal(at, Signal::TERM);
        self.wait(at)
    }

    /// Waits until server `at` has ended by itself.
    pub fn wait(&mut self, at: usize) -> ExitStatus {
        let child = self.servers[at].child.as_mut().expect("the server runs");
        let status = eventually("the server ends", || child.try_wait().unwrap());
        self.servers[at].child = None;
        status
    }

    /// A client of the whole group.
    pub fn client(&self) -> Client {
        patient_client(self.addresses())
    }

    /// A client that knows one server only.
    pub fn client_of(&self, at: usize) -> Client {
        patient_client([self.servers[at].address])
    }

    /// Waits until every server is in sync with the leader; which one leads. Only then can any of
    /// them be killed and the others elect a leader: a server that has not taken part yet does not
    /// vote.
    pub fn leader_of_all(&self) -> usize {
        let client = self.client();
        eventually("a leader with everybody in sync", || {
            (0..self.servers.len()).find(|at| {
                let status = client.status(self.servers[*at].address);
                status.is_ok_and(|status| {
                    status.role == acervo::wire::message::Role::Leader
                        && status.in_sync.len() == self.servers.len()
                })
            })
        })
    }

    /// Waits until some running server leads and says so; which one.
    pub fn leader(&self) -> usize {
        let client = self.client();
        eventually("a leader", || {
            let mut leaders: Vec<(u64, usize)> = Vec::new();
            for at in (0..self.servers.len()).filter(|at| self.servers[*at].child.is_some()) {
                if let Ok(status) = client.status(self.servers[at].address)
                    && status.role == acervo::wire::message::Role::Leader
                {
                    leaders.push((status.term, at));
                }
            }
            leaders.into_iter().max().map(|(_, at)| at)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Some(mut child) = server.child.take() {
                // A stopped process does not die of SIGKILL's politer cousins; this is the real
                // one.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for at in 0..self.servers.len() {
                eprintln!("---- log of server {at}\n{}", self.log(at));
            }
        }
    }
}

/// Raises the number of files that this process, and those that it starts from here on, may have
/// open to `wanted`, as far as it may be raised. It is lowered never: other tests may need more.
pub fn allow_open_files(wanted: u64) {
    static RAISING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = RAISING.lock().unwrap();
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = wanted.min(maximum.unwrap_or(u64::MAX));
    if current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).unwrap();
    }
}

/// A figure of `/proc/PID/status` as `VmRSS` and `VmHWM`, the peak of it, in bytes.
pub fn memory(process: u32, field: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib = line.trim_start_matches(':').trim().trim_end_matches("kB").trim();
    kib.parse::<usize>().unwrap() * 1024
}

/// What is resident now; the peak is counted from here on.
pub fn resident(process: u32) -> usize {
    std::fs::write(format!("/proc/{process}/clear_refs"), "5").unwrap();
    memory(process, "VmRSS")
}

fn appending(path: &Path) -> File {
    File::options().create(true).append(true).open(path).unwrap()
}

/// Whether a process ended by itself with this code.
pub fn exited_with(status: ExitStatus, code: i32) -> bool {
    status.signal().is_none() && status.code() == Some(code)
}

/// Whether these tests, and so what they start, were started with SIGHUP ignored, as `nohup` does.
pub fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1);
    if ignored {
        println!("NOT TESTED: SIGHUP, because these tests were started with it ignored");
    }
    ignored
}

/// A client of servers that may be starting still, or be down for as long as a test likes: the
/// request's own time decides.
pub fn patient_client(servers: impl IntoIterator<Item = SocketAddr>) -> Client {
    let timing = Timing { reach_timeout: PATIENCE, ..Timing::default() };
    Client::builder(servers).timing(timing).request_timeout(PATIENCE).build().unwrap()
}
