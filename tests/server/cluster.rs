//! Real processes, real disks, real kills.
//!
//! `ACERVO_KILLS=20 cargo test --release --test server leader_is_killed` runs the long
//! campaign; the default kills less often.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use acervo::client::{Client, ClientError, ReadOptions};
use acervo::limits;
use acervo::model::{History, Timestamp};
use acervo::wire::message::Role;
use rustix::process::Signal;

use crate::support::{self, Group, PATIENCE, eventually, exited_with};

/// Writers that keep a group busy and write down what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, Timestamp>>>,
    count: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// Each thread writes keys of its own, each key once, the value equal to the key.
    fn start(client: &Client, threads: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        let count = Arc::new(AtomicU64::new(0));
        let writer = |thread: usize| {
            let (client, stop) = (client.clone(), stop.clone());
            let (acknowledged, count) = (acknowledged.clone(), count.clone());
            std::thread::spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("writer-{thread}-{number}");
                    match client.put(&key, &key) {
                        Ok(done) => {
                            acknowledged.lock().unwrap().insert(key, done.timestamp);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        // The group may be without a majority for a while: not acknowledged.
                        Err(ClientError::NoMajority { .. } | ClientError::Unconfirmed { .. }) => {}
                        Err(error) => panic!("a write failed: {error}"),
                    }
                }
            })
        };
        let threads = (0..threads).map(writer).collect();
        Load { stop, acknowledged, count, threads }
    }

    /// Waits until `more` writes have been acknowledged from now on.
    fn wait_for_more(&self, more: u64) {
        let target = self.count.load(Ordering::Relaxed) + more;
        eventually("writes go on", || (self.count.load(Ordering::Relaxed) >= target).then_some(()));
    }

    fn finish(self) -> BTreeMap<String, Timestamp> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.acknowledged.lock().unwrap())
    }
}

/// Every acknowledged write is there, at the version it was acknowledged with, at every server.
fn check_all_there(group: &Group, acknowledged: &BTreeMap<String, Timestamp>) {
    let newest = acknowledged.values().max().copied().unwrap_or_default();
    for at in 0..group.servers.len() {
        let client = group.client_of(at);
        let address = group.servers[at].address;
        eventually("the server has applied everything", || {
            (client.status(address).ok()?.applied_timestamp >= newest).then_some(())
        });
        for (key, timestamp) in acknowledged {
            let got = client.get(key).unwrap();
            assert_eq!(got.value(), Some(key.as_bytes()), "{key} at server {at}");
            assert_eq!(got.timestamp(), Some(*timestamp), "{key} at server {at} was applied once");
        }
    }
    let mut versions: Vec<&Timestamp> = acknowledged.values().collect();
    versions.sort();
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "no version is given twice");
}

fn kills() -> usize {
    std::env::var("ACERVO_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

fn leader_is_killed_under_load(ack: &str) {
    let mut group = Group::start(3, &["--console", "off", "--ack", ack]);
    let client = group.client();
    client.put("first", "write").unwrap();
    let load = Load::start(&client, 4);
    for _ in 0..kills() {
        load.wait_for_more(100);
        let leader = group.leader();
        group.kill(leader);
        load.wait_for_more(50);
        group.start_server(leader);
    }
    load.wait_for_more(50);
    let acknowledged = load.finish();
    check_all_there(&group, &acknowledged);
}

#[test]
fn leader_is_killed_under_load_and_every_acknowledged_write_is_found_ack_all() {
    leader_is_killed_under_load("all");
}

#[test]
fn leader_is_killed_under_load_and_every_acknowledged_write_is_found_ack_majority() {
    leader_is_killed_under_load("majority");
}

#[test]
fn follower_is_killed_under_load_and_catches_up() {
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    client.put("first", "write").unwrap();
    let load = Load::start(&client, 4);
    for _ in 0..kills() {
        load.wait_for_more(100);
        let follower = (group.leader() + 1) % 3;
        group.kill(follower);
        load.wait_for_more(50);
        group.start_server(follower);
    }
    let acknowledged = load.finish();
    check_all_there(&group, &acknowledged);
}

#[test]
fn whole_group_is_killed_and_comes_back_by_itself_with_everything() {
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let load = Load::start(&client, 4);
    load.wait_for_more(200);
    for at in 0..3 {
        group.kill(at);
    }
    for at in 0..3 {
        group.start_server(at);
    }
    load.wait_for_more(50);
    let acknowledged = load.finish();
    check_all_there(&group, &acknowledged);
    assert!(
        (0..3).all(|at| group.log(at).matches("--leader is ignored").count() == 1),
        "a restart on a data directory ignores --leader and says so once"
    );
}

#[test]
fn any_server_takes_writes_and_reads_and_deletes() {
    let group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    assert_eq!(client.get("k").unwrap().found, None);
    let mut last = Timestamp::ZERO;
    for at in 0..3 {
        let value = format!("value {at}");
        let done = group.client_of(at).put("k", &value).unwrap();
        assert!(done.timestamp > last);
        last = done.timestamp;
        let reader = group.client_of((at + 1) % 3);
        assert_eq!(reader.get_linearizable("k").unwrap().value(), Some(value.as_bytes()));
    }
    assert_eq!(group.leader(), 0, "the named server leads first");
    let gone = client.del("k").unwrap();
    assert!(gone.previous.is_some() && gone.timestamp > last);
    assert_eq!(client.del("k").unwrap().previous, None);
    for at in 0..3 {
        assert_eq!(group.client_of(at).get_linearizable("k").unwrap().found, None);
    }
    let empty = client.put("empty", "").unwrap();
    let got = client.get("empty").unwrap();
    assert_eq!((got.value(), got.timestamp()), (Some(&b""[..]), Some(empty.timestamp)));
}

/// The history once was that of whichever server led.
#[test]
fn the_history_is_the_groups_over_restarts_and_changes_of_leader() {
    let mut group = Group::start(3, &["--console", "off", "--history", "24h"]);
    let client = group.client();
    client.put("k", "v").unwrap();
    let all_keep = |group: &Group, history: History| {
        let client = group.client();
        eventually("every server goes by the group's history", || {
            let keeps =
                |at: SocketAddr| client.status(at).is_ok_and(|s| s.history == Some(history));
            group.addresses().into_iter().all(keeps).then_some(())
        });
    };
    all_keep(&group, History::For { age_us: 24 * 3_600_000_000 });
    let history = History::Versions { count: 10 };
    client.set_history(history).unwrap();
    all_keep(&group, history);
    let leader = group.leader();
    group.kill(leader);
    client.put("k", "w").unwrap();
    assert_ne!(group.leader(), leader);
    group.start_server(leader);
    all_keep(&group, history);
    let log = group.log(leader);
    assert!(log.contains("--history 1d is ignored, the group keeps a history of 10: "), "{log}");
    for at in 0..3 {
        group.kill(at);
    }
    for at in 0..3 {
        group.start_server(at);
    }
    client.put("k", "x").unwrap();
    all_keep(&group, history);
}

#[test]
fn group_of_one_and_group_of_five_work() {
    for size in [1, 5] {
        let group = Group::start(size, &["--console", "off"]);
        let client = group.client();
        client.put("k", "v").unwrap();
        assert_eq!(client.get_linearizable("k").unwrap().value(), Some(&b"v"[..]));
        let status = client.status(group.servers[group.leader()].address).unwrap();
        assert_eq!(status.in_sync.len(), size);
    }
}

#[test]
fn terminated_leader_hands_over_and_exits_0() {
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let load = Load::start(&client, 2);
    load.wait_for_more(20);
    let leader = group.leader();
    let term = client.status(group.servers[leader].address).unwrap().term;
    let status = group.terminate(leader);
    assert!(exited_with(status, 0), "{status:?}");
    let next = group.leader();
    assert_ne!(next, leader);
    assert_eq!(
        client.status(group.servers[next].address).unwrap().term,
        term + 1,
        "handed over, not fought for"
    );
    load.wait_for_more(20);
    group.start_server(leader);
    let acknowledged = load.finish();
    check_all_there(&group, &acknowledged);
}

#[test]
fn without_a_majority_a_write_fails_in_time_and_says_how_many_answer() {
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    client.put("k", "v").unwrap();
    group.kill(1);
    group.kill(2);
    // A client that had a connection to one of them could not tell what became of what it sent
    // there.
    let client = group.client();
    match client.put("k", "w") {
        Err(ClientError::NoMajority { message, .. }) => {
            assert!(message.contains("1 of 3 servers answer"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.get("k").unwrap().value(), Some(&b"v"[..]), "reads go on");
    group.start_server(1);
    client.put("k", "x").unwrap();
}

#[test]
fn frozen_leader_is_replaced_and_follows_when_it_thaws() {
    let group = Group::start(3, &["--console", "off", "--in-sync-timeout", "500ms"]);
    let client = group.client();
    client.put("k", "v").unwrap();
    let leader = group.leader();
    group.signal(leader, Signal::STOP);
    let done = client.put("k", "w").unwrap();
    group.signal(leader, Signal::CONT);
    let frozen = group.client_of(leader);
    let address = group.servers[leader].address;
    eventually("the old leader follows and has caught up", || {
        let status = frozen.status(address).ok()?;
        (status.role == Role::Follower && status.applied_timestamp >= done.timestamp).then_some(())
    });
    assert_eq!(frozen.get("k").unwrap().value(), Some(&b"w"[..]));
}

#[test]
fn server_whose_data_was_lost_is_brought_back_by_the_others() {
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let load = Load::start(&client, 4);
    load.wait_for_more(200);
    let lost = (group.leader() + 1) % 3;
    group.kill(lost);
    std::fs::remove_dir_all(group.data_dir(lost)).unwrap();
    group.start_server(lost);
    load.wait_for_more(50);
    let acknowledged = load.finish();
    check_all_there(&group, &acknowledged);
}

/// How much the store holds at least when a server has to be brought back by a snapshot.
fn rejoin_store_bytes() -> u64 {
    let mib = std::env::var("ACERVO_REJOIN_MIB").ok().and_then(|mib| mib.parse().ok());
    mib.unwrap_or(0) * 1024 * 1024
}

/// The length of a server's log on its disk.
fn log_bytes(group: &Group, at: usize) -> u64 {
    let files = std::fs::read_dir(group.data_dir(at).join("log")).unwrap();
    // One may be deleted in the meantime.
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

/// `ACERVO_REJOIN_MIB=600` makes the store so large that the leader's log would be cut several
/// times while the snapshot is on its way; without it the store is as large as it takes to have the
/// log cut once.
#[test]
fn server_behind_the_log_is_brought_back_by_one_snapshot_while_writes_go_on() {
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let first = client.put("first", "write").unwrap().timestamp;
    let compacted = client.compact(Timestamp(i64::MAX)).unwrap();
    let late = (group.leader() + 1) % 3;
    group.kill(late);
    std::fs::remove_dir_all(group.data_dir(late)).unwrap();
    // Enough to fill several segments of the log and to call for checkpoints.
    let value = vec![7; 1024 * 1024];
    let leader = group.leader();
    let mut sizes = Vec::new();
    for number in 0.. {
        client.put(format!("big-{number}"), &value).unwrap();
        sizes.push(number);
        let is_cut = group.log(leader).contains("the log now begins at");
        if is_cut && number * 1024 * 1024 >= rejoin_store_bytes() {
            break;
        }
        assert!(number < 10_000, "the log never shrinks");
    }
    let load = Load::start(&client, 2);
    group.start_server(late);
    let address = group.servers[late].address;
    let patience = Instant::now() + PATIENCE + Duration::from_millis(rejoin_store_bytes() >> 13);
    let mut longest_log_bytes = 0;
    for number in 0.. {
        // What makes the log long enough to be cut.
        client.put(format!("meanwhile-{}", number % 100), &value[..64 * 1024]).unwrap();
        longest_log_bytes = longest_log_bytes.max(log_bytes(&group, leader));
        let status = client.status(group.servers[leader].address).unwrap();
        if status.in_sync.contains(&address.to_string()) {
            break;
        }
        assert!(Instant::now() < patience, "the late server never gets in sync");
    }
    load.wait_for_more(50);
    let acknowledged = load.finish();
    // It says REPLICATION_OK when the snapshot is durable, a moment before it is in place.
    eventually("the snapshot is in place", || {
        group.log(late).contains("the snapshot to log index").then_some(())
    });
    check_all_there(&group, &acknowledged);
    let reader = group.client_of(late);
    for number in sizes {
        let got = reader.get(format!("big-{number}")).unwrap();
        assert_eq!(got.value(), Some(&value[..]), "big-{number}");
    }
    let prepared = |at| group.log(at).matches("sending it a snapshot").count();
    assert_eq!((0..3).map(prepared).sum::<usize>(), 1, "snapshots were prepared");
    assert!(longest_log_bytes <= limits::LOG_HELD_BYTES_MAX + 2 * limits::LOG_SEGMENT_BYTES);
    // The log kept for it goes when it has caught up; the last segments stay, one of them just
    // begun.
    eventually("the leader's log is short again", || {
        (log_bytes(&group, leader) <= 4 * limits::LOG_SEGMENT_BYTES).then_some(())
    });
    println!("the leader's log was {} MiB at its longest", longest_log_bytes >> 20);
    // And it starts again on what it was sent.
    group.kill(late);
    group.start_server(late);
    let got = group.client_of(late).get("big-0").unwrap();
    assert_eq!(got.value(), Some(&value[..]));
    refuses_all_before(&group, late, (first, compacted));
}

/// A server refuses to read what the key `first` had at its first version, since everything before
/// another version was compacted.
fn refuses_all_before(group: &Group, at: usize, (first, compacted): (Timestamp, Timestamp)) {
    let read = |at_version| group.client_of(at).read("first", ReadOptions::at(at_version));
    let refused = read(first).unwrap_err();
    assert!(
        matches!(refused, ClientError::Compacted { version, .. } if version == compacted),
        "{refused}"
    );
    assert_eq!(read(compacted).unwrap().value(), Some(&b"write"[..]));
}

#[test]
fn what_was_compacted_stays_so_when_all_servers_are_killed() {
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let first = client.put("first", "write").unwrap().timestamp;
    let compacted = client.compact(Timestamp(i64::MAX)).unwrap();
    // This client never asks a server that has not come so far.
    let refused = client.read("first", ReadOptions::at(first)).unwrap_err();
    assert!(matches!(refused, ClientError::Compacted { .. }), "{refused}");
    assert!(client.compact(Timestamp::ZERO).is_err(), "that is no version");
    for round in 0..2 {
        (0..3).for_each(|at| group.kill(at));
        (0..3).for_each(|at| group.start_server(at));
        // All have applied the log up to here once they answer as of it.
        let last = group.client().put("other", round.to_string()).unwrap().timestamp;
        for at in 0..3 {
            group.client_of(at).read("other", ReadOptions::at(last)).unwrap();
            refuses_all_before(&group, at, (first, compacted));
        }
    }
}

#[test]
fn delayed_server_refuses_until_it_has_stored_what_the_client_saw() {
    // SPEC A7, with less patience.
    let flags = ["--console", "off", "--in-sync-timeout", "30s"];
    let group = Group::start_with_a_late_server(&flags, "2s");
    let client = group.client();
    let first = client.put("k", "old").unwrap();
    let of_slow = group.client_of(2);
    // PUT_OK says that the slow server has stored it; it applies it a moment later.
    eventually("the slow server has applied the first write", || {
        let status = of_slow.status(group.servers[2].address).ok()?;
        (status.applied_timestamp >= first.timestamp).then_some(())
    });
    let writer = client.clone();
    let second = std::thread::spawn(move || writer.put("k", "new").unwrap());
    let leader = group.leader();
    let of_leader = group.client_of(leader);
    let seen = eventually("the leader has the new value before it acknowledges", || {
        let got = of_leader.get("k").unwrap();
        (got.timestamp() > Some(first.timestamp)).then_some(got)
    });
    assert!(!second.is_finished(), "the acknowledgement waits for the slow server");
    assert_eq!(of_slow.get("k").unwrap().value(), Some(&b"old"[..]));
    // With what was seen at the leader, the slow server may answer only when it has it too.
    let token = of_leader.session_token();
    let got = group.client_of(2).with_session(&token).unwrap().get("k").unwrap();
    assert_eq!(got.found, seen.found);
    assert_eq!(Some(second.join().unwrap().timestamp), seen.timestamp());
}

#[test]
fn dead_follower_delays_writes_once() {
    let mut group = Group::start(3, &["--console", "off", "--in-sync-timeout", "300ms"]);
    let client = group.client();
    client.put("k", "v").unwrap();
    let leader = group.leader();
    group.kill((leader + 1) % 3);
    client.put("k", "w").unwrap();
    let status = client.status(group.servers[leader].address).unwrap();
    assert_eq!(status.in_sync.len(), 2, "the dead server is not waited for any more");
    group.start_server((leader + 1) % 3);
    eventually("it is in sync again", || {
        let status = client.status(group.servers[leader].address).ok()?;
        (status.in_sync.len() == 3).then_some(())
    });
}

#[test]
fn data_directory_of_another_server_or_of_a_running_one_is_refused_in_a_sentence() {
    let mut group = Group::start(3, &["--console", "off"]);
    group.client().put("k", "v").unwrap();
    let run = |command: &mut std::process::Command| {
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let running = run(&mut group.command(1));
    assert!(running.contains("in use"), "{running}");
    group.kill(1);
    group.kill(2);
    std::fs::rename(group.data_dir(1), group.dir.path().join("elsewhere")).unwrap();
    std::fs::rename(group.data_dir(2), group.data_dir(1)).unwrap();
    let other = run(&mut group.command(1));
    assert!(other.contains("server 3"), "{other}");
    // The same directory under another list of servers is another cluster.
    let mut elsewhere = std::process::Command::new(support::ACERVO);
    let alone = group.servers[0].address.to_string();
    group.kill(0);
    elsewhere.args(["server", "--listen", &alone, "--leader", &alone, "--servers", &alone]);
    elsewhere.arg("--data-dir").arg(group.data_dir(0));
    let other = run(&mut elsewhere);
    assert!(other.contains("belongs to group"), "{other}");
}

#[test]
fn sync_off_says_so_loudly() {
    let group = Group::start(1, &["--console", "off", "--sync", "off"]);
    group.client().put("k", "v").unwrap();
    assert!(group.log(0).contains("WARN"), "{}", group.log(0));
    assert!(group.log(0).contains("--sync off"), "{}", group.log(0));
}

#[test]
fn patience_is_longer_than_any_timeout_of_the_product() {
    assert!(PATIENCE > Duration::from_secs(30));
    assert!(PATIENCE >= acervo::limits::CLIENT_REQUEST_TIMEOUT_DEFAULT);
}
