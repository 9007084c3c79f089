//! Locks and elections as commands and programs meet them, against real servers: holders, commands
//! and servers are stopped and killed.

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use acervo::Client;
use acervo::client::{ClientError, KeyRange, LockOptions, ReadOptions, Txn, TxnOp};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::one_shot::run;
use crate::support::{ACERVO, Group, eventually, exited_with};

/// Takes a lock that is free, and waits for none.
const AT_ONCE: LockOptions =
    LockOptions { ttl: Duration::from_secs(10), wait: Some(Duration::ZERO) };

/// A command that is running.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(servers: &str, arguments: &[&str]) -> Running {
        let mut child = Command::new(ACERVO)
            .args(arguments)
            .env("ACERVO_SERVERS", servers)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }

    /// The next line that it prints, cut at its tabs.
    fn line(&mut self) -> Vec<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().split('\t').map(str::to_owned).collect()
    }

    /// The key and the fence that it prints when it holds.
    fn held(&mut self) -> (String, i64) {
        let line = self.line();
        let [key, fence] = &line[..] else { panic!("it does not hold: {line:?}") };
        (key.clone(), fence.parse().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Runs a command to its end: its status, and what it printed.
    fn run(servers: &str, arguments: &[&str]) -> (i32, String, String) {
        let Running { child, mut lines } = Running::start(servers, arguments);
        let mut printed = String::new();
        lines.read_to_string(&mut printed).unwrap();
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        (status.code().unwrap(), printed, String::from_utf8(stderr).unwrap())
    }

    /// Its end, and what it said on standard error.
    fn end(self) -> (ExitStatus, String) {
        let Output { status, stderr, .. } = self.child.wait_with_output().unwrap();
        (status, String::from_utf8(stderr).unwrap())
    }
}

fn contenders(client: &Client, name: &str) -> usize {
    let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
    let range = KeyRange::prefix(format!("{name}/")).unwrap();
    client.scan(range, options).map(Result::unwrap).count()
}

/// Waits until so many hold a lock or wait for it.
fn await_contenders(client: &Client, name: &str, count: usize) {
    let are_there = || (contenders(client, name) == count).then_some(());
    eventually(&format!("{count} contend for {name}"), are_there);
}

fn nobody_has_a_lease(client: &Client) {
    eventually("leases are revoked", || client.leases().unwrap().is_empty().then_some(()));
}

/// A script that prints a line, tells a file when it is asked to stop, and ends or does not.
fn stubborn(trap: &str) -> String {
    format!(
        "trap '{trap}' TERM INT; echo \"$ACERVO_LOCK_KEY\t$ACERVO_FENCE\"; \
         while :; do sleep 0.05; done"
    )
}

#[test]
fn who_observes_ends_with_its_reader_before_the_next_change() {
    let group = Group::start(1, &["--console", "off"]);
    let mut observe = Command::new(ACERVO);
    observe.args(["observe", "x", "--servers", &group.list()]);
    let mut observe = observe.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(observe.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "none\n");
    let ended = eventually("it ends", || observe.try_wait().unwrap());
    assert_eq!(ended.signal(), Some(Signal::PIPE.as_raw()), "{ended}");
}

#[test]
fn commands_under_one_lock_run_one_after_the_other_with_rising_fences() {
    let group = Group::start(3, &["--console", "off"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let script = "echo begin $ACERVO_FENCE >> \"$0\"; sleep 0.02; echo end $ACERVO_FENCE >> \"$0\"";
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let log = path.to_str().unwrap();
                    let command = ["lock", "report", "--", "sh", "-c", script, log];
                    let ran = Running::run(&group.list(), &command);
                    assert_eq!(ran, (0, String::new(), String::new()));
                }
            });
        }
    });
    let log = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let mut last = 0;
    for pair in lines.chunks(2) {
        let fence = pair[0].strip_prefix("begin ").unwrap();
        assert_eq!(pair[1], format!("end {fence}"), "{log}");
        let fence: i64 = fence.parse().unwrap();
        assert!(fence > last, "{log}");
        last = fence;
    }
    assert_eq!(lines.len(), 18);
    let client = group.client();
    assert_eq!(contenders(&client, "report"), 0);
    assert_eq!(client.leases().unwrap(), [], "whoever has ended has revoked his lease");
}

#[test]
fn the_next_one_gets_the_lock_of_one_that_was_killed_when_its_time_is_over() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let client = group.client();
    let mut first = Running::start(&servers, &["lock", "report", "--ttl", "2s"]);
    let (key, fence) = first.held();
    assert!(key.starts_with("report/"), "{key}");
    let mut second = Running::start(&servers, &["lock", "report", "--format", "json"]);
    await_contenders(&client, "report", 2);
    first.signal(Signal::KILL);
    first.end();
    let line = second.line();
    let held: Value = serde_json::from_str(&line[0]).unwrap();
    assert!(held["fence"].as_i64().unwrap() > fence, "{held} after {fence}");
    // Told to stop, it gives the lock back.
    second.signal(Signal::TERM);
    let (status, error) = second.end();
    assert!(exited_with(status, 0), "{status}: {error}");
    assert_eq!(contenders(&client, "report"), 0);
    nobody_has_a_lease(&client);
}

#[test]
fn a_command_whose_lock_is_lost_is_stopped() {
    let group = Group::start(1, &["--console", "off"]);
    let client = group.client();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stopped");
    // By the end of the lease, and the command does as it is told.
    let script = stubborn(&format!("echo stopped > {}; exit 0", path.display()));
    let arguments =
        ["lock", "report", "--ttl", "3s", "--kill-after", "1h", "--", "sh", "-c", &script];
    let mut running = Running::start(&group.list(), &arguments);
    let (key, _) = running.held();
    let lease = u64::from_str_radix(key.strip_prefix("report/").unwrap(), 16).unwrap();
    client.revoke_lease(acervo::client::LeaseId(lease)).unwrap().unwrap();
    let (status, error) = running.end();
    assert!(exited_with(status, 5), "{status}: {error}");
    assert!(error.contains(&format!("acervo: '{key}' is lost")), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "stopped\n");

    // By an operator, long before the lease would end; the command and what it has started want to
    // live on.
    let script =
        format!("sleep 3600 & child=$!; echo $child > {}; {}", path.display(), stubborn(""));
    let arguments =
        ["elect", "leader", "v", "--ttl", "1h", "--kill-after", "100ms", "--", "sh", "-c", &script];
    let mut running = Running::start(&group.list(), &arguments);
    let (key, _) = running.held();
    client.del(&key).unwrap();
    let (status, error) = running.end();
    assert!(exited_with(status, 5), "{status}: {error}");
    assert!(error.contains("the command has not stopped within 100ms"), "{error}");
    let child: i32 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    let child = Pid::from_raw(child).unwrap();
    // Whoever inherits it may be slow to take notice of its end.
    eventually("the command's child is gone", || {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        (test_kill_process(child).is_err() || stat.contains(") Z ")).then_some(())
    });
    nobody_has_a_lease(&client);
}

#[test]
fn whoever_waits_gives_up_in_time_or_when_told_to_and_leaves_the_queue() {
    let group = Group::start(1, &["--console", "off"]);
    let (servers, client) = (group.list(), group.client());
    let lock = client.lock("report", LockOptions::default()).unwrap();
    for (wait, said) in
        [("0s", "'report' is taken:"), ("50ms", "'report' is taken, also after 50ms:")]
    {
        let command = ["lock", "report", "--wait", wait, "--", "echo", "never"];
        let (status, printed, error) = Running::run(&servers, &command);
        assert_eq!((status, printed.as_str()), (1, ""), "{error}");
        assert!(error.starts_with(&format!("acervo: {said}")), "{error}");
        await_contenders(&client, "report", 1);
    }
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let waiting = Running::start(&servers, &["lock", "report", "--", "echo", "never"]);
        await_contenders(&client, "report", 2);
        waiting.signal(signal);
        let (ended, error) = waiting.end();
        assert!(exited_with(ended, status), "{ended}: {error}");
        await_contenders(&client, "report", 1);
    }
    // Whose key an operator deletes is told at once, though the holder goes on.
    let waiting = Running::start(&servers, &["lock", "report", "--ttl", "1h"]);
    await_contenders(&client, "report", 2);
    let rows = client.range("report/", "report/~", ReadOptions::default()).unwrap();
    let other = rows.map(Result::unwrap).find(|row| row.key != lock.key()).unwrap();
    client.del(&other.key).unwrap();
    let (status, error) = waiting.end();
    assert!(exited_with(status, 5), "{status}: {error}");
    assert!(!lock.is_lost());
    assert!(lock.unlock().unwrap().is_some());
    nobody_has_a_lease(&client);
}

#[test]
fn a_lock_ends_as_its_command_does_and_passes_signals_on() {
    let group = Group::start(1, &["--console", "off"]);
    let servers = group.list();
    let status = |command: &[&str]| {
        let (status, _, error) =
            Running::run(&servers, &[&["lock", "report", "--"], command].concat());
        (status, error)
    };
    assert_eq!(status(&["sh", "-c", "exit 7"]), (7, String::new()));
    assert_eq!(status(&["sh", "-c", "kill -9 $$"]), (137, String::new()));
    let (code, error) = status(&["/there/is/no/such/program"]);
    assert!(code == 127 && error.starts_with("acervo: the command cannot be run"), "{error}");
    let (code, error) = status(&["/"]);
    assert!(code == 126 && error.starts_with("acervo: the command cannot be run"), "{error}");
    // What it prints is the command's alone.
    let command = ["elect", "leader", "v", "--", "sh", "-c", "echo $ACERVO_FENCE"];
    let (_, printed, _) = Running::run(&servers, &command);
    assert!(printed.trim_end().parse::<i64>().unwrap() > 0, "{printed}");

    let script = stubborn("exit 9");
    let mut running = Running::start(&servers, &["lock", "report", "--", "sh", "-c", &script]);
    running.held();
    running.signal(Signal::TERM);
    let (ended, error) = running.end();
    assert!(exited_with(ended, 9), "{ended}: {error}");
    // One that ignores the signal goes on, and keeps the lock.
    let script = "trap '' INT; echo \"$ACERVO_LOCK_KEY\t$ACERVO_FENCE\"; \
                  while [ ! -e \"$0\" ]; do sleep 0.05; done";
    let dir = tempfile::tempdir().unwrap();
    let end = dir.path().join("end");
    let path = end.to_str().unwrap();
    let mut running = Running::start(&servers, &["lock", "report", "--", "sh", "-c", script, path]);
    running.held();
    running.signal(Signal::INT);
    let client = group.client();
    assert!(matches!(client.lock("report", AT_ONCE), Err(ClientError::StillTaken { .. })));
    fs::write(Path::new(path), "").unwrap();
    let (ended, error) = running.end();
    assert!(exited_with(ended, 0), "{ended}: {error}");
    nobody_has_a_lease(&client);
}

#[test]
fn a_lock_and_those_who_wait_for_it_outlive_the_server_that_leads() {
    let mut group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let client = group.client();
    let mut first = Running::start(&servers, &["lock", "report"]);
    let mut fences = vec![first.held().1];
    let mut waiting = Vec::new();
    for number in 2..=4 {
        waiting.push(Running::start(&servers, &["lock", "report"]));
        await_contenders(&client, "report", number);
    }
    for mut next in waiting {
        let leader = group.leader();
        group.kill(leader);
        first.signal(Signal::TERM);
        let (status, error) = first.end();
        assert!(exited_with(status, 0), "{status}: {error}");
        fences.push(next.held().1);
        first = next;
        group.start_server(leader);
    }
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
    first.signal(Signal::TERM);
    assert!(exited_with(first.end().0, 0));
}

#[test]
fn each_leader_is_observed_once_and_in_order_while_servers_are_killed() {
    let mut group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let client = group.client();
    let mut observing = Running::start(&servers, &["observe", "leader", "--limit", "8"]);
    assert_eq!(observing.line(), ["none"]);
    let ana = client.campaign("leader", "ana", LockOptions::default()).unwrap();
    let line = |value: &str, of: &acervo::client::Election| {
        let key = String::from_utf8(of.key().to_vec()).unwrap();
        vec![of.fence().to_string(), key, value.to_owned()]
    };
    assert_eq!(observing.line(), line("ana", &ana));
    let mut bia = Running::start(&servers, &["elect", "leader", "bia"]);
    await_contenders(&client, "leader", 2);
    let killed = group.leader();
    group.kill(killed);
    ana.proclaim("ana 2").unwrap();
    assert_eq!(observing.line(), line("ana 2", &ana));
    let leader = client.leader("leader").unwrap().unwrap();
    assert_eq!((&leader.value[..], leader.fence), (&b"ana 2"[..], ana.fence()));
    group.start_server(killed);
    assert!(ana.resign().unwrap().is_some());
    let (key, fence) = bia.held();
    assert_eq!(observing.line(), [fence.to_string(), key.clone(), "bia".to_owned()]);
    let killed = group.leader();
    group.kill(killed);
    client.del(&key).unwrap();
    assert!(exited_with(bia.end().0, 5));
    assert_eq!(observing.line(), ["none"]);
    // Whoever led for a moment only has led.
    for value in ["caio", "dora"] {
        client.campaign("leader", value, AT_ONCE).unwrap().resign().unwrap();
    }
    let lines: Vec<_> = (0..3).map(|_| observing.line()).collect();
    assert_eq!((lines[0][2].as_str(), lines[2][2].as_str()), ("caio", "dora"));
    assert_eq!(lines[1], ["none"]);
    assert!(exited_with(observing.end().0, 0));
    let json = run(&servers, &["observe", "leader", "--limit", "1", "--json"]).json();
    assert_eq!(json["found"], false);
}

#[test]
fn programs_get_a_lock_in_the_order_in_which_they_came() {
    let group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let first = client.lock("l", LockOptions::default()).unwrap();
    let (got, gets) = mpsc::channel();
    let mut last = first.fence();
    thread::scope(|scope| {
        for number in 0..8 {
            let (asking, got) = (client.clone(), got.clone());
            scope.spawn(move || {
                let client = asking;
                let lock = client.lock("l", LockOptions::default()).unwrap();
                let guarded = Txn::when(lock.guard()).then(TxnOp::put("last", number.to_string()));
                assert!(client.txn(guarded).unwrap().succeeded);
                got.send((number, lock.fence())).unwrap();
                // By hand, or in the background.
                if number % 2 == 0 {
                    assert!(lock.unlock().unwrap().is_some());
                }
            });
            await_contenders(&client, "l", number + 2);
        }
        let guard = first.guard();
        assert!(first.unlock().unwrap().is_some());
        assert!(!client.txn(Txn::when(guard)).unwrap().succeeded);
        for number in 0..8 {
            let (who, fence) = gets.recv().unwrap();
            assert_eq!(who, number);
            assert!(fence > last);
            last = fence;
        }
    });
    await_contenders(&client, "l", 0);
    nobody_has_a_lease(&client);
}

#[test]
fn a_name_that_no_lock_can_have_is_a_wrong_command() {
    let nobody = "127.0.0.1:1";
    let long = "n".repeat(4_080);
    for (name, said) in [("", "cannot be empty"), (&long, "is too long: at most 4079")] {
        for command in [&["lock", name][..], &["elect", name, "v"], &["observe", name]] {
            let ran = run(nobody, command);
            assert_eq!((ran.status, ran.text()), (2, ""), "{}", ran.err);
            assert!(ran.err.contains(said), "{}", ran.err);
        }
    }
}

/// With futures, whoever drops one has left the queue.
#[cfg(feature = "grpc")]
#[test]
fn a_future_that_is_dropped_leaves_the_queue() {
    let group = Group::start(1, &["--console", "off"]);
    let client = group.client();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let asking = client.asynchronous();
    let lock = runtime.block_on(asking.lock("l", LockOptions::default())).unwrap();
    let mut waiting = Box::pin(asking.lock("l", LockOptions::default()));
    let mut context = Context::from_waker(Waker::noop());
    eventually("it waits", || {
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        (contenders(&client, "l") == 2).then_some(())
    });
    drop(waiting);
    await_contenders(&client, "l", 1);
    runtime.block_on(async {
        assert!(lock.unlock().await.unwrap().is_some());
        let leadership = asking.campaign("e", "v", AT_ONCE).await.unwrap();
        let mut leaders = asking.observe("e").await.unwrap();
        assert!(leaders.next_leader().await.unwrap().unwrap().is_some());
        leadership.proclaim("w").await.unwrap();
        assert_eq!(leaders.next_leader().await.unwrap().unwrap().unwrap().value, "w");
        assert!(leadership.resign().await.unwrap().is_some());
        assert_eq!(leaders.next_leader().await.unwrap().unwrap(), None);
    });
    nobody_has_a_lease(&client);
}
