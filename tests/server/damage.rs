//! Real processes whose data rots or contradicts the group's: they notice, are never wrong, come
//! back without a hand, and say once what happened.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use acervo::client::{Client, ClientError};
use acervo::wire::message::Role;

use crate::support::{Group, eventually, patient_client};

/// So that a pass over a small store comes round while a test looks on.
const FLAGS: [&str; 4] = ["--console", "off", "--scrub-interval", "50ms"];
const KEYS: usize = 300;

fn fill(client: &Client, round: usize) {
    for number in 0..KEYS {
        client.put(format!("key {number}"), value(number, round)).unwrap();
    }
}

fn value(number: usize, round: usize) -> String {
    format!("value {number} of round {round} ").repeat(20)
}

/// Flips a bit in every value that the store's tables hold, in a running server's tables, too.
fn rot(data_dir: &Path) -> usize {
    let files = std::fs::read_dir(data_dir.join("store")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "table")).map(rot_table).sum()
}

fn rot_table(path: PathBuf) -> usize {
    let bytes = std::fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let mut flipped = 0;
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(6).position(|window| window == b"value ") {
        at += found;
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        flipped += 1;
        at += 400;
    }
    flipped
}

fn said(group: &Group, at: usize, what: &str) -> usize {
    group.log(at).matches(what).count()
}

/// Asks one server alone, until it answers with the newest value. It may refuse, it may lag, and it
/// never shows what was never written.
fn reads_right(group: &Group, at: usize, round: usize) {
    let client = Client::builder([group.servers[at].address])
        .request_timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    for number in (0..KEYS).step_by(37) {
        eventually("the server answers reads", || match client.get(format!("key {number}")) {
            Ok(got) => {
                let written = |round| got.value() == Some(value(number, round).as_bytes());
                assert!(got.found.is_none() || (1..=round).any(written), "key {number} at {at}");
                written(round).then_some(())
            }
            Err(ClientError::StaleRequest { .. }) => panic!("a read is no write"),
            Err(_) => None,
        });
    }
}

fn is_whole(group: &Group, at: usize) -> Option<()> {
    let status = group.client().status(group.servers[at].address).ok()?;
    status.warnings.is_empty().then_some(())
}

fn wait_until_durable(group: &Group) {
    // A clean end makes a checkpoint; the kills below then find everything in the engine's file.
    for at in 0..group.servers.len() {
        let newest = group.client().status(group.servers[group.leader()].address).unwrap().applied;
        let client = group.client();
        eventually("everything is applied", || {
            (client.status(group.servers[at].address).ok()?.applied >= newest).then_some(())
        });
    }
}

#[test]
fn a_store_that_rots_at_rest_is_refused_and_comes_back() {
    let mut group = Group::start(3, &FLAGS);
    fill(&group.client(), 1);
    wait_until_durable(&group);
    group.terminate(2);
    assert!(rot(&group.data_dir(2)) > 0);
    group.start_server(2);
    reads_right(&group, 2, 1);
    eventually("it is whole again", || is_whole(&group, 2));
    assert!(said(&group, 2, ".table is damaged") >= 1, "it names the file");
    fill(&group.client(), 2);
    wait_until_durable(&group);
    reads_right(&group, 2, 2);
}

/// The leader's file rots while it runs, below the cache; and a lost directory is replaced
/// meanwhile.
#[test]
fn a_leader_whose_store_rots_hands_over_and_a_lost_directory_can_be_replaced() {
    let mut group = Group::start(3, &FLAGS);
    let client = group.client();
    fill(&client, 1);
    wait_until_durable(&group);
    // A restart makes everything durable in the file, and nothing of it is in the cache.
    for at in 0..3 {
        group.terminate(at);
        group.start_server(at);
        group.leader();
    }
    let leader = group.leader();
    let lost = (leader + 1) % 3;
    group.kill(lost);
    std::fs::remove_dir_all(group.data_dir(lost)).unwrap();
    assert!(rot(&group.data_dir(leader)) > 0);
    eventually("it is noticed", || {
        (said(&group, leader, "serves no reads, hands over") == 1).then_some(())
    });
    group.start_server(lost);
    for at in 0..3 {
        reads_right(&group, at, 1);
        eventually("all are whole again", || is_whole(&group, at));
    }
    fill(&client, 2);
    wait_until_durable(&group);
    for at in 0..3 {
        reads_right(&group, at, 2);
    }
    assert_eq!(said(&group, leader, "serves no reads, hands over"), 1, "it is said once");
}

/// What was found wrong may look sound to the next start, and only the verdict tells. It was once
/// lost with a process that ended before it had set its store aside.
#[test]
fn a_server_that_ends_between_a_verdict_and_its_rebuilding_does_not_trust_its_store_again() {
    let mut group = Group::start(3, &FLAGS);
    fill(&group.client(), 1);
    wait_until_durable(&group);
    for at in 0..3 {
        group.terminate(at);
        group.start_server(at);
        group.leader();
    }
    let leader = group.leader();
    // There is no name left under which anything could be set aside.
    let names = (1..=8).map(|number| match number {
        1 => "store.damaged".to_owned(),
        _ => format!("store.damaged.{number}"),
    });
    let taken: Vec<PathBuf> = names.map(|name| group.data_dir(leader).join(name)).collect();
    taken.iter().for_each(|path| std::fs::write(path, "").unwrap());
    let sound = group.dir.path().join("sound");
    copy_dir(&group.data_dir(leader).join("store"), &sound);
    assert!(rot(&group.data_dir(leader)) > 0);
    let identity = group.data_dir(leader).join("IDENTITY");
    assert!(!group.wait(leader).success());
    assert!(std::fs::read_to_string(&identity).unwrap().contains("untrusted store"));
    taken.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    std::fs::remove_dir_all(group.data_dir(leader).join("store")).unwrap();
    copy_dir(&sound, &group.data_dir(leader).join("store"));
    group.start_server(leader);
    eventually("it is set aside", || {
        (said(&group, leader, "not yet set aside") == 1).then_some(())
    });
    for at in 0..3 {
        reads_right(&group, at, 1);
        eventually("all are whole again", || is_whole(&group, at));
    }
    assert!(std::fs::read_to_string(&identity).unwrap().contains("untrusted nothing"));
}

/// The two data directories that had the group's newest writes are not what they were: one was put
/// back to an older state, the other one slept. The third one, which has them still, contradicts
/// the group.
#[test]
fn a_server_whose_log_contradicts_the_group_is_refuted_once_and_starts_blank() {
    let mut group = Group::start(3, &["--console", "off", "--ack", "majority"]);
    let client = group.client();
    client.put("first", "write").unwrap();
    assert_eq!(group.leader(), 0);
    wait_until_durable(&group);
    group.terminate(1);
    let copy = group.dir.path().join("copy");
    copy_dir(&group.data_dir(1), &copy);
    group.start_server(1);
    for number in 0..20 {
        client.put(format!("early {number}"), "v").unwrap();
    }
    wait_until_durable(&group);
    // Not merely stopped: what lies in its sockets would not be lost.
    group.kill(2);
    for number in 0..20 {
        client.put(format!("late {number}"), "v").unwrap();
    }
    let at_0 = group.client_of(0);
    eventually("it has applied them", || at_0.get("late 19").ok()?.found.map(drop));
    group.kill(1);
    std::fs::remove_dir_all(group.data_dir(1)).unwrap();
    copy_dir(&copy, &group.data_dir(1));
    group.kill(0);
    group.start_server(1);
    group.start_server(2);
    let pair = patient_client([group.servers[1].address, group.servers[2].address]);
    pair.put("after", "the loss").unwrap();
    group.start_server(0);
    eventually("it starts blank and catches up", || {
        let client = group.client();
        let status = client.status(group.servers[0].address).ok()?;
        let same = status.role == Role::Follower && status.warnings.is_empty();
        let got = at_0.get("after").ok()?;
        (same && got.found.is_some()).then_some(())
    });
    assert_eq!(at_0.get("late 19").unwrap().found, None, "what the group lost is lost here, too");
    assert_eq!(said(&group, 0, "ERROR"), 2, "suspected and refuted, once each");
    assert_eq!(said(&group, 0, "starts as a blank server"), 1);
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
