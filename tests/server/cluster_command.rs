//! `acervo cluster`: real processes under one parent, and what happens when one of them, or the
//! parent itself, is killed.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use acervo::client::{Client, Timing};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{ACERVO, PATIENCE, eventually, exited_with, free_addresses};

/// A running `acervo cluster`. Dropping it kills it, and with it, as these tests show, its servers.
struct Cluster {
    dir: TempDir,
    servers: Vec<SocketAddr>,
    process: Child,
}

impl Cluster {
    fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let servers = free_addresses(3);
        let list: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
        let file = |name: &str| File::create(dir.path().join(name)).unwrap();
        let process = Command::new(ACERVO)
            .args(["cluster", "--in-sync-timeout", "300ms", "--servers", &list.join(",")])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("log"))
            .spawn()
            .unwrap();
        Cluster { dir, servers, process }
    }

    fn client(&self) -> Client {
        let timing = Timing { reach_timeout: PATIENCE, ..Timing::default() };
        let builder = Client::builder(self.servers.iter().copied()).timing(timing);
        builder.request_timeout(PATIENCE).build().unwrap()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read(self.dir.path().join(name)).unwrap();
        String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
    }

    /// The process of each server, in order, as the system knows them.
    fn children(&self) -> Vec<Process> {
        let parent = self.process.id();
        let of_server = |server: &SocketAddr| {
            let listen = format!("\0--listen\0{server}\0");
            let own = |process: &Process| {
                process.parent() == Some(parent) && process.command_line().contains(&listen)
            };
            eventually("the server's process", || Process::all().into_iter().find(own))
        };
        self.servers.iter().map(of_server).collect()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        eventually("the cluster ends", || self.process.try_wait().unwrap())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("---- log\n{}", self.lines("log").join("\n"));
        }
    }
}

/// A process, found under `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process(u32);

impl Process {
    fn all() -> Vec<Process> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process)).collect()
    }

    fn path(self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.0).into()
    }

    /// State and parent, behind the name in parentheses; `None` when it is gone.
    fn stat(self) -> Option<(char, u32)> {
        let stat = std::fs::read_to_string(self.path("stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
    }

    fn parent(self) -> Option<u32> {
        self.stat().map(|(_, parent)| parent)
    }

    fn command_line(self) -> String {
        let line = std::fs::read(self.path("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// It has ended; somebody who is not this test may still have to take note of it.
    fn has_ended(self) -> bool {
        self.stat().is_none_or(|(state, _)| state == 'Z' || state == 'X')
    }

    fn kill(self) {
        kill_process(Pid::from_raw(self.0 as i32).unwrap(), Signal::KILL).unwrap();
    }
}

#[test]
fn three_servers_live_and_die_under_one_terminal() {
    let mut cluster = Cluster::start();
    let client = cluster.client();
    let children = cluster.children();
    let written = client.put("title", "Dom Casmurro").unwrap();
    assert_eq!(client.get("title").unwrap().value(), Some(&b"Dom Casmurro"[..]));

    // Every console line is a server's, behind its port; the first server leads.
    let ports: Vec<u16> = cluster.servers.iter().map(SocketAddr::port).collect();
    let replication = |port| {
        format!("{port} | REPLICATION key:title value:Dom Casmurro ts:{}.", written.timestamp)
    };
    let acknowledged = format!(" da key:title ts:{}.", written.timestamp);
    eventually("the lines", || {
        let lines = cluster.lines("out");
        let leaders = |line: &&String| {
            line.starts_with(&format!("{} | Enviando PUT_OK ao Cliente ", ports[0]))
                && line.ends_with(&acknowledged)
        };
        let all = lines.iter().any(|line| leaders(&line))
            && ports[1..].iter().all(|port| lines.contains(&replication(port)))
            && lines.iter().any(|line| line.contains(" GET key:title "));
        all.then_some(())
    });
    let prefixes: Vec<String> = ports.iter().map(|port| format!("{port} | ")).collect();
    for line in cluster.lines("out").iter().chain(&cluster.lines("log")) {
        assert!(prefixes.iter().any(|prefix| line.starts_with(prefix)), "{line}");
    }

    // One is killed: one line says so, the others go on, whoever led.
    children[0].kill();
    let ended = format!("the server on {} ended by itself", cluster.servers[0]);
    eventually("a line about the killed server", || {
        let lines = cluster.lines("log");
        let about: Vec<_> = lines.iter().filter(|line| line.contains(&ended)).collect();
        assert!(about.len() <= 1, "{about:?}");
        about.first().map(|line| {
            assert!(line.contains("signal: 9"), "{line}");
            assert!(line.ends_with("; 2 go on"), "{line}");
        })
    });
    client.put("title", "Quincas Borba").unwrap();
    let got = client.get_linearizable("title").unwrap();
    assert_eq!(got.value(), Some(&b"Quincas Borba"[..]));

    // Ctrl-C.
    cluster.signal(Signal::INT);
    let status = cluster.wait();
    assert!(exited_with(status, 0), "{status:?}");
    assert!(children.iter().all(|child| child.has_ended()), "no server is left");
    let killed = cluster.lines("log").iter().any(|line| line.contains("is killed"));
    assert!(!killed, "every server stopped by itself");
}

#[test]
fn servers_do_not_outlive_a_killed_cluster() {
    let mut cluster = Cluster::start();
    let children = cluster.children();
    cluster.client().put("k", "v").unwrap();
    cluster.signal(Signal::KILL);
    assert!(!exited_with(cluster.wait(), 0));
    for (child, server) in children.iter().zip(&cluster.servers) {
        eventually("the server ends too", || child.has_ended().then_some(()));
        assert!(TcpStream::connect(server).is_err(), "{server} is free again");
    }
}

#[test]
fn a_cluster_without_any_server_left_says_so_and_fails() {
    let mut cluster = Cluster::start();
    cluster.children().into_iter().for_each(Process::kill);
    let status = cluster.wait();
    assert!(exited_with(status, 4), "{status:?}");
    let last = cluster.lines("log").pop().unwrap();
    assert!(last.starts_with("acervo: all servers of the cluster have ended"), "{last}");
}
