//! Registries with their index in the replicated store, as real processes: each knows what was told
//! to any other, and neither a registry nor a server of the store is a single point of failure.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use acervo::client::{Client, ReadOptions, Row};
use acervo::limits;
use acervo::model::{ContentId, FileEntry, FileName, PeerId};
use acervo::share::index::{IndexLimits, Member, PeerEndpoint};
use acervo::share::registry::directory::{DirectoryError, MemoryDirectory, PeerDirectory};
use acervo::share::registry::store::StoreDirectory;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde_json::json;

use crate::support::share::{Process, Registry, noise, run, write};
use crate::support::{ACERVO, Group, eventually};

/// `acervo share` with several registries, once it has joined.
fn share(dir: &std::path::Path, folder: &PathBuf, registries: &str) -> Process {
    let mut command = Command::new(ACERVO);
    command.arg("share").arg(folder).args(["--registry", registries]);
    let process = Process::start(command, dir, folder.file_name().unwrap().to_str().unwrap());
    eventually("the peer joins", || process.err().contains("joined at ").then_some(()));
    process
}

fn files(registry: SocketAddr) -> serde_json::Value {
    run(&["files", "--format", "json", "--registry", &registry.to_string()]).json()
}

fn names(registry: SocketAddr) -> Vec<String> {
    let listed = files(registry);
    let rows = listed["files"].as_array().unwrap();
    rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn several_registries_serve_one_index_and_none_is_needed() {
    let mut group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let flags = ["--servers", &servers, "--silence-timeout", "7s", "--console", "off"];
    let mut first = Registry::start(&flags);
    let second = Registry::start(&flags);
    let both = format!("{},{}", first.address, second.address);
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (a, b, to) = (folder("a"), folder("b"), folder("to"));
    let film = noise(3_000_000, "film");
    write(&a, "film.mkv", &film);
    write(&b, "film.mkv", &film);
    write(&b, "ação.txt", b"b");
    let peers = [share(dir.path(), &a, &first.address()), share(dir.path(), &b, &both)];
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_string();
    let expected = json!({"files": [
        {"name": "ação.txt", "size": 1, "content": hash(b"b"), "peers": 1},
        {"name": "film.mkv", "size": film.len(), "content": hash(&film), "peers": 2},
    ]});
    assert_eq!(files(first.address), expected);
    assert_eq!(files(second.address), expected, "the other registry was told nothing");

    // A server of the store is killed, and changes are known all the same.
    group.kill(0);
    write(&b, "new.txt", b"new");
    std::fs::remove_file(b.join("ação.txt")).unwrap();
    eventually("the change is known", || {
        (names(second.address) == ["film.mkv", "new.txt"]).then_some(())
    });
    let arguments = ["fetch", "film.mkv", "--to", to.to_str().unwrap(), "--quiet", "--registry"];
    let ran = run(&[&arguments[..], &[&second.address()]].concat());
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(std::fs::read(to.join("film.mkv")).unwrap() == film);

    // A registry is killed. The peer that knows another one joins there; the one that does not is
    // forgotten.
    first.kill();
    let listed = || run(&["peers", "--format", "json", "--registry", &second.address()]).json();
    eventually("one peer is left", || {
        let peers = listed();
        let peers = peers["peers"].as_array().unwrap();
        (peers.len() == 1 && peers[0]["files"] == json!(2)).then_some(())
    });
    assert_eq!(names(second.address), ["film.mkv", "new.txt"]);
    // It is alive, and stays.
    let moved = eventually("it has joined elsewhere", || {
        let err = peers[1].err();
        err.contains(&format!("joined at {}", second.address)).then_some(err)
    });
    assert!(!moved.is_empty());
    // The other comes back with its registry.
    first.restart();
    eventually("both peers are known again", || {
        (listed()["peers"].as_array().unwrap().len() == 2).then_some(())
    });
    // A peer that is stopped leaves at once.
    let [mut one, _two] = peers;
    one.signal(Signal::TERM);
    one.wait();
    eventually("it has left", || (listed()["peers"].as_array().unwrap().len() == 1).then_some(()));
}

/// Its peer joins at another one meanwhile, and what it does about that peer when it goes on is in
/// vain.
#[test]
fn a_registry_that_was_stopped_takes_no_peer_back_when_it_goes_on() {
    let group = Group::start(1, &["--console", "off"]);
    let servers = group.list();
    let flags = ["--servers", &servers, "--silence-timeout", "7s", "--console", "off"];
    let mut first = Registry::start(&flags);
    let second = Registry::start(&flags);
    let folder = first.folder("a");
    write(&folder, "film.mkv", b"film");
    let both = format!("{},{}", first.address, second.address);
    let peer = share(first.dir.path(), &folder, &both);
    assert_eq!(names(second.address), ["film.mkv"]);
    first.process().signal(Signal::STOP);
    eventually("the peer joins at the other registry", || {
        peer.err().contains(&format!("joined at {}", second.address)).then_some(())
    });
    write(&folder, "new.txt", b"new");
    eventually("the other registry is told of its files", || {
        (names(second.address) == ["film.mkv", "new.txt"]).then_some(())
    });
    first.process().signal(Signal::CONT);
    // The connection of the peer has ended meanwhile, and so has its lease: whichever it notices
    // first.
    eventually("the one that was stopped removes a peer", || {
        let log = first.process().err();
        let is_over = log.contains("is gone: ") || log.contains("it is to join again");
        is_over.then_some(())
    });
    for file in ["third.txt", "fourth.txt"] {
        write(&folder, file, file.as_bytes());
        eventually("the new file is known at both", || {
            let known = |registry| names(registry).iter().any(|name| name == file);
            (known(first.address) && known(second.address)).then_some(())
        });
        assert_eq!(names(first.address).len(), names(second.address).len());
    }
    assert_eq!(names(first.address), ["film.mkv", "fourth.txt", "new.txt", "third.txt"]);
    assert_eq!(peer.err().matches("joined at").count(), 2, "{}", peer.err());
}

fn peers(registry: SocketAddr) -> Vec<serde_json::Value> {
    let listed = run(&["peers", "--format", "json", "--registry", &registry.to_string()]).json();
    listed["peers"].as_array().unwrap().clone()
}

/// Its connections end with it, so that its own peers know; nobody else need find it out.
#[test]
fn of_a_registry_that_was_killed_nothing_is_offered_after_the_timeout_and_no_row_is_left() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let flags = ["--servers", &servers, "--silence-timeout", "7s", "--console", "off"];
    let mut first = Registry::start(&flags);
    let second = Registry::start(&flags);
    let folders = [first.folder("a"), second.folder("b")];
    folders.iter().for_each(|folder| write(folder, "film.mkv", b"film"));
    write(&folders[0], "mine.txt", b"mine");
    let _lost = share(first.dir.path(), &folders[0], &first.address());
    let _stays = share(second.dir.path(), &folders[1], &second.address());
    assert_eq!(names(second.address), ["film.mkv", "mine.txt"]);
    let client = group.client();
    let then = everything(&client).iter().filter_map(Row::timestamp).max().unwrap();
    assert_eq!(everything(&client).len(), 2 + 3 * 3);

    first.kill();
    eventually("its peer is not offered any more", || {
        (names(second.address) == ["film.mkv"]).then_some(())
    });
    assert_eq!(peers(second.address).len(), 1);
    assert_eq!(everything(&client).len(), 1 + 3, "the rows of the other peer");
    let leases = client.leases().unwrap();
    assert_eq!(leases.len(), 1, "{leases:?}");
    eventually("what has ended is not stepped over for ever", || {
        let past = client.range("share/", "share/\u{10ffff}", ReadOptions::at(then)).unwrap();
        (past.count() == 1 + 3).then_some(())
    });
    assert_eq!(names(second.address), ["film.mkv"]);
}

#[test]
fn peers_of_a_registry_that_was_stopped_past_their_leases_join_again_and_none_is_shown_twice() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let flags = ["--servers", &servers, "--silence-timeout", "7s", "--console", "off"];
    let mut first = Registry::start(&flags);
    let second = Registry::start(&flags);
    let folders = [first.folder("a"), first.folder("b")];
    folders.iter().for_each(|folder| write(folder, "film.mkv", b"film"));
    // One of them knows no other registry, and moves nowhere.
    let both = format!("{},{}", first.address, second.address);
    let sharing = [
        share(first.dir.path(), &folders[0], &first.address()),
        share(first.dir.path(), &folders[1], &both),
    ];
    let shown = || {
        let listed = peers(second.address);
        let files = files(second.address);
        let film = files["files"].as_array().unwrap().iter().find(|row| row["name"] == "film.mkv");
        let holders = film.map_or(0, |row| row["peers"].as_u64().unwrap() as usize);
        let mut ids: Vec<&str> = listed.iter().map(|of| of["peer"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), listed.len(), "shown twice: {listed:?}");
        assert!(listed.len() <= 2 && holders <= 2, "{listed:?} {files}");
        (listed.len(), holders)
    };
    assert_eq!(shown(), (2, 2));
    first.process().signal(Signal::STOP);
    eventually("one has moved and the other's leases have ended", || {
        let has_moved = sharing[1].err().contains(&format!("joined at {}", second.address));
        (has_moved && shown() == (1, 1)).then_some(())
    });
    assert_eq!(everything(&group.client()).len(), 1 + 3);
    first.process().signal(Signal::CONT);
    eventually("the other has joined again", || {
        (shown() == (2, 2) && sharing[0].err().matches("joined at").count() > 1).then_some(())
    });
    // What its registry does about them when it goes on ends nothing that is another's.
    write(&folders[0], "new.txt", b"new");
    write(&folders[1], "more.txt", b"more");
    for registry in [first.address, second.address] {
        eventually("both offer what is new", || {
            (names(registry) == ["film.mkv", "more.txt", "new.txt"]).then_some(())
        });
    }
    assert_eq!(shown(), (2, 2));
    assert_eq!(everything(&group.client()).len(), 2 + 3 * 4);
    assert_eq!(sharing[1].err().matches("joined at").count(), 2, "{}", sharing[1].err());
}

#[test]
fn without_its_store_a_registry_says_so_and_goes_on_when_it_is_back() {
    let mut group = Group::start(1, &["--console", "off"]);
    let servers = group.list();
    let flags = ["--servers", &servers, "--silence-timeout", "7s", "--console", "off"];
    let mut registry = Registry::start(&flags);
    let folder = registry.folder("a");
    write(&folder, "film.mkv", b"film");
    let peer = registry.share(&folder, &[]);
    let address = registry.address;
    let listed = || files(address)["files"].as_array().unwrap().len();
    eventually("the file is known", || (listed() == 1).then_some(()));

    group.kill(0);
    let ran = registry.run(&["files"]);
    assert_eq!(ran.status, 3, "{ran:?}");
    assert!(ran.err.contains("the store behind this registry does not answer: "), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    let told = |registry: &mut Registry, what| registry.process().err().matches(what).count();
    eventually("it says so itself", || (told(&mut registry, "does not answer") > 0).then_some(()));

    group.start_server(0);
    eventually("it says that this is over", || {
        (told(&mut registry, "the store answers again") > 0).then_some(())
    });
    // However long that took, no peer was forgotten, and none has noticed.
    assert_eq!(listed(), 1);
    assert_eq!(told(&mut registry, "does not answer"), 1, "{}", registry.process().err());
    assert_eq!(peer.err().matches("joined at").count(), 1, "{}", peer.err());
    assert!(!registry.process().err().contains("fallen silent"), "{}", registry.process().err());
}

// ---- the directory itself, against the same one in memory ---------------------------------------

const SMALL: IndexLimits = IndexLimits {
    peers_max: 3,
    files_per_peer_max: 5,
    files_max: 9,
    peers_per_origin_max: 3,
    files_per_origin_max: 9,
    bytes_per_origin_max: usize::MAX,
    bytes_max: usize::MAX,
    fetching_per_peer_max: 2,
};
const LONG: Duration = Duration::from_secs(3600);

fn name(number: u8) -> FileName {
    FileName::new(&format!("file-{number}.bin")).unwrap()
}

fn entry((of, what): (u8, u8)) -> FileEntry {
    // The size follows from the content.
    FileEntry { name: name(of), size: u64::from(what) * 10, content: ContentId([what; 32]) }
}

fn address(peer: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1000 + peer as u16))
}

fn place(peer: u64) -> PeerEndpoint {
    // Each is another process, which has only the id in common.
    static KEYS: AtomicU64 = AtomicU64::new(0);
    let key = KEYS.fetch_add(1, Ordering::Relaxed);
    PeerEndpoint { address: address(peer), origin: address(peer).ip(), key }
}

fn everything(client: &Client) -> Vec<Row> {
    // This client may not have seen what the registries have written.
    let newest = ReadOptions { linearizable: true, ..ReadOptions::default() };
    let rows = client.range("share/", "share/\u{10ffff}", newest).unwrap();
    rows.map(Result::unwrap).collect()
}

/// The peers that are found to be silent, or gone, of which something is removed.
fn expired(directory: &StoreDirectory) -> Vec<(PeerId, SocketAddr)> {
    let silent = directory.expire().unwrap();
    silent.iter().for_each(|(peer, _)| directory.remove_silent(*peer).unwrap());
    silent
}

/// Every answer of every kind, without what depends on time.
fn answers(directory: &dyn PeerDirectory) -> Vec<String> {
    let mut answers: Vec<String> =
        (0..5).map(|of| format!("{:?}", directory.search(&name(of)).unwrap())).collect();
    let sources = |what| format!("{:?}", directory.sources_of(ContentId([what; 32])).unwrap());
    answers.extend((0..4).map(sources));
    let (mut peers, more) = directory.peers(None).unwrap();
    peers.iter_mut().for_each(|peer| peer.silent_ms = 0);
    answers.push(format!("{peers:?} {more}"));
    answers.push(format!("{:?}", directory.peers(Some(PeerId(1))).unwrap().0.len()));
    answers.push(format!("{:?}", directory.files(None).unwrap()));
    answers.push(format!("{:?}", directory.files(Some(&name(2))).unwrap()));
    answers
}

#[test]
fn several_registries_over_one_store_answer_as_one_index_in_memory() {
    // Totals are estimates of each registry, and are not compared.
    play(
        IndexLimits {
            peers_max: 100,
            files_max: 100,
            peers_per_origin_max: 100,
            files_per_origin_max: 100,
            ..SMALL
        },
        3,
    );
}

#[test]
fn a_registry_over_a_store_has_the_limits_of_one_in_memory() {
    play(SMALL, 1);
}

#[test]
fn what_is_full_is_counted_again_before_anybody_is_refused() {
    let group = Group::start(1, &["--console", "off"]);
    let [one, other] = [0, 1].map(|_| StoreDirectory::new(group.client(), SMALL, LONG));
    let member = |peer| Member { peer: PeerId(peer), session: peer };
    let join = |directory: &StoreDirectory, peer, files: &[(u8, u8)]| {
        let files = files.iter().copied().map(entry).collect();
        directory.join(member(peer), place(peer), files).map_err(|error| error.to_string())
    };
    for peer in 1..=3 {
        join(&one, peer, &[(0, 0), (1, 0), (2, 0)]).unwrap();
    }
    assert!(join(&other, 4, &[]).unwrap_err().contains("knows 3 peers"));
    one.leave(member(1)).unwrap();
    assert!(
        join(&other, 4, &[(0, 0), (1, 0), (2, 0), (3, 0)]).unwrap_err().contains("so many files")
    );
    join(&other, 4, &[(0, 0), (1, 0), (2, 0)]).unwrap();
}

/// Random steps on an index in memory and on `registries` that share one in a store. After every
/// step each has to give the same answers.
fn play(room: IndexLimits, registries: usize) {
    let group = Group::start(1, &["--console", "off"]);
    let client = group.client();
    let memory = MemoryDirectory::new(room, LONG);
    // Each has a client of its own, which has not seen what the others have written.
    let store = || StoreDirectory::new(group.client(), room, LONG);
    let stores: Vec<StoreDirectory> = (0..registries).map(|_| store()).collect();
    let seed = std::env::var("ACERVO_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("replay with ACERVO_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut session = 0;
    // The registry that each peer is connected to, and its session.
    let mut connected: HashMap<u64, (usize, Member)> = HashMap::new();
    for step in 0..150 {
        let peer = random.random_range(0..5);
        let files: Vec<FileEntry> = (0..random.random_range(0..7))
            .map(|_| entry((random.random_range(0..5), random.random_range(0..3))))
            .collect();
        let content = ContentId([random.random_range(0..4); 32]);
        let known = connected.get(&peer).copied();
        let (at, member) = known.unwrap_or((0, Member { peer: PeerId(peer), session: u64::MAX }));
        let both = |act: &dyn Fn(&dyn PeerDirectory) -> String| (act(&memory), act(&stores[at]));
        let what = random.random_range(0..10);
        let (expected, got) = match what {
            0..=3 => {
                // A new connection at any registry. The old one ends when its registry notices;
                // until then no other registry accepts the peer.
                session += 1;
                let at = random.random_range(0..registries);
                let elsewhere = known.filter(|(before, _)| *before != at);
                if let Some((before, old)) = elsewhere {
                    let member = Member { peer: PeerId(peer), session };
                    let refused = stores[at].join(member, place(peer), vec![]).unwrap_err();
                    assert!(refused.to_string().contains("another registry"), "{refused}");
                    memory.leave(old).unwrap();
                    stores[before].leave(old).unwrap();
                    connected.remove(&peer);
                }
                let known = known.filter(|_| elsewhere.is_none());
                let member = Member { peer: PeerId(peer), session };
                let join = |directory: &dyn PeerDirectory| {
                    let joined = directory.join(member, place(peer), files.clone());
                    joined.map_err(|error| error.to_string())
                };
                let (expected, got) = (join(&memory), join(&stores[at]));
                if expected.is_ok() {
                    connected.insert(peer, (at, member));
                }
                if let Some((at, before)) = known.filter(|_| expected.is_ok()) {
                    memory.leave(before).unwrap();
                    stores[at].leave(before).unwrap();
                    // In memory its downloads survive; a peer announces them again in any case.
                    (0..4).for_each(|what| {
                        memory.fetched(member, ContentId([what; 32])).unwrap();
                    });
                }
                (format!("{expected:?}"), format!("{got:?}"))
            }
            4..=6 => {
                let removed = [name(random.random_range(0..5)), name(random.random_range(0..5))];
                both(&|directory| {
                    let updated = directory.update(member, files.clone(), &removed);
                    format!("{:?}", updated.map_err(|error| error.to_string()))
                })
            }
            7 => both(&|directory| {
                let told = directory.fetching(member, content, u64::from(content.0[0]) * 10);
                format!("{:?}", told.map_err(|error| error.to_string()))
            }),
            8 => both(&|directory| format!("{:?}", directory.fetched(member, content).unwrap())),
            _ => {
                connected.remove(&peer);
                both(&|directory| format!("{:?}", directory.leave(member).unwrap()))
            }
        };
        assert_eq!(got, expected, "step {step}, kind {what}");
        let expected = answers(&memory);
        for store in &stores {
            assert_eq!(answers(store), expected, "after step {step}, kind {what}");
            assert_eq!(expired(store), []);
        }
    }
    // No row has old versions, which would fill the disk.
    for row in everything(&client) {
        let versions = client.versions(&row.key, ReadOptions::default()).unwrap();
        assert_eq!(versions.count(), 1, "{:?}", row.key);
    }
    for (_, (at, member)) in connected {
        stores[at].leave(member).unwrap();
    }
    assert_eq!(everything(&client), [], "nobody is left, and nothing");
    assert_eq!(client.leases().unwrap(), []);
}

/// One of its peers comes back elsewhere, as a process that does not know the secret of the one
/// before, and is let in when that one's time is over.
#[test]
fn all_rows_of_a_dead_registry_end_and_leave_no_past_behind() {
    let group = Group::start(1, &["--console", "off"]);
    let client = group.client();
    let room = IndexLimits::default();
    let (dead, alive) = ([1, 2], Duration::from_millis(400));
    let left_behind = StoreDirectory::new(group.client(), room, alive);
    let member = |peer| Member { peer: PeerId(peer), session: 1 };
    for peer in dead {
        left_behind.join(member(peer), place(peer), vec![entry((0, 1)), entry((1, 2))]).unwrap();
        left_behind.fetching(member(peer), ContentId([3; 32]), 30).unwrap();
    }
    drop(left_behind);

    let other = StoreDirectory::new(group.client(), room, alive);
    assert_eq!(expired(&other), []);
    assert_eq!(other.search(&name(1)).unwrap().len(), 2, "their time is not over yet");
    let then = everything(&client).iter().filter_map(Row::timestamp).max().unwrap();
    // One of its peers comes back at another registry, as a process that does not know the secret.
    let back = Member { peer: PeerId(2), session: 2 };
    eventually("its registry is not waited for any more", || {
        other.join(back, place(2), vec![entry((0, 1))]).ok()
    });
    eventually("nothing of the other is left, nor of what it had", || {
        // The live one sends heartbeats all the time.
        assert!(other.heartbeat(back).unwrap());
        expired(&other);
        let past = client.range("share/", "share/\u{10ffff}", ReadOptions::at(then)).unwrap();
        let key = PeerId(1).to_string();
        let of_dead = |row: &Row| String::from_utf8_lossy(&row.key).contains(&key);
        (!past.map(Result::unwrap).any(|row| of_dead(&row))).then_some(())
    });
    let sources = other.search(&name(0)).unwrap();
    assert_eq!(sources.iter().map(|source| source.peer).collect::<Vec<_>>(), [PeerId(2)]);
    assert_eq!(other.search(&name(1)).unwrap(), []);
    assert_eq!(other.sources_of(ContentId([3; 32])).unwrap(), []);
    other.leave(back).unwrap();
    assert_eq!(everything(&client), []);
}

/// A peer knows that its connection is dead; other registries learn it only from its silence.
#[test]
fn a_peer_that_proves_who_it_is_changes_its_registry_at_once() {
    let group = Group::start(1, &["--console", "off"]);
    let room = IndexLimits::default();
    let [first, second] =
        [(); 2].map(|()| StoreDirectory::new(group.client(), room, Duration::from_secs(600)));
    let at = place(1);
    let (before, after) = [1, 2].map(|session| Member { peer: PeerId(1), session }).into();
    first.join(before, at, vec![entry((0, 1))]).unwrap();
    let other = second.join(after, place(1), vec![entry((0, 1))]);
    assert!(matches!(other, Err(DirectoryError::JoinedElsewhere)), "{other:?}");
    second.join(after, at, vec![entry((0, 1))]).unwrap();
    // Late messages of the old connection, its end included, remove nothing.
    first.leave(before).unwrap();
    assert_eq!(second.search(&name(0)).unwrap().len(), 1);
    assert!(second.heartbeat(after).unwrap());
}

/// Also one that was stopped in the middle of a change, which is in vain when it goes on.
#[test]
fn a_registry_from_which_a_peer_was_taken_is_told_so_at_its_next_change() {
    let group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let [first, second] =
        [(); 2].map(|()| StoreDirectory::new(group.client(), IndexLimits::default(), LONG));
    let (at, other) = (place(1), Member { peer: PeerId(1), session: 99 });
    let acts: [&dyn Fn(Member) -> bool; 3] = [
        &|member| first.update(member, vec![entry((3, 1))], &[name(0)]).unwrap(),
        &|member| first.fetching(member, ContentId([5; 32]), 50).unwrap(),
        &|member| first.fetched(member, ContentId([3; 32])).unwrap(),
    ];
    for (session, act) in acts.into_iter().enumerate() {
        let member = Member { peer: PeerId(1), session: session as u64 };
        first.join(member, at, vec![entry((0, 1)), entry((1, 2))]).unwrap();
        assert!(first.fetching(member, ContentId([3; 32]), 30).unwrap());
        second.join(other, at, vec![entry((0, 1))]).unwrap();
        let rows = everything(&client);
        assert!(!act(member) && !first.heartbeat(member).unwrap(), "change {session}");
        first.leave(member).unwrap();
        assert_eq!(everything(&client), rows, "change {session}");
        assert!(second.heartbeat(other).unwrap());
    }
}

#[test]
fn a_peer_whose_rows_somebody_took_away_is_told_to_join_anew() {
    let group = Group::start(1, &["--console", "off"]);
    let client = group.client();
    let directory =
        StoreDirectory::new(group.client(), IndexLimits::default(), Duration::from_millis(400));
    let member = Member { peer: PeerId(7), session: 1 };
    directory.join(member, place(7), vec![entry((0, 1))]).unwrap();
    expired(&directory);
    assert!(directory.heartbeat(member).unwrap());
    // As somebody does who may write to the store.
    let row = everything(&client).into_iter().find(|row| row.key.starts_with(b"share/peer/"));
    client.del(row.unwrap().key).unwrap();
    assert_eq!(directory.search(&name(0)).unwrap(), [], "a peer without a row is not found");
    eventually("it is told", || {
        expired(&directory);
        (!directory.heartbeat(member).unwrap()).then_some(())
    });
    assert!(!directory.update(member, vec![entry((1, 1))], &[]).unwrap());
    directory.join(member, place(7), vec![entry((0, 1))]).unwrap();
    assert_eq!(directory.search(&name(0)).unwrap().len(), 1);
    // A peer that sends nothing any more is forgotten by its own registry.
    let gone = eventually("its silence is noticed", || expired(&directory).pop());
    assert_eq!(gone, (PeerId(7), address(7)));
    assert!(!directory.heartbeat(member).unwrap());
}

#[test]
fn a_peer_of_as_many_files_as_there_may_be_joins_comes_back_and_goes() {
    let group = Group::start(3, &["--console", "off"]);
    let [directory, other] =
        [0, 1].map(|_| StoreDirectory::new(group.client(), IndexLimits::default(), LONG));
    let files: Vec<FileEntry> = (0..limits::FILES_PER_PEER_MAX)
        .map(|at| FileEntry {
            name: FileName::new(&format!("{at:06} {}.mkv", "x".repeat(at % 200))).unwrap(),
            size: at as u64,
            content: ContentId(*blake3::hash(&at.to_le_bytes()).as_bytes()),
        })
        .collect();
    // More rows than one write may have.
    assert!(3 * files.len() > limits::TRANSACTION_KEYS_MAX);
    let last = files.last().unwrap().clone();
    let member = |session| Member { peer: PeerId(1), session };
    let first = files[0].name.clone();
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| directory.join(member(1), place(1), files.clone()).unwrap());
        // These are many writes; a search that finds one of the files finds all.
        while !joining.is_finished() {
            if !other.search(&first).unwrap().is_empty() {
                assert_eq!(other.search(&last.name).unwrap().len(), 1);
            }
        }
    });
    assert_eq!(other.search(&last.name).unwrap().len(), 1);
    assert_eq!(other.peers(None).unwrap().0[0].files, files.len() as u64);
    let leases = group.client().leases().unwrap();
    // And more keys than one lease may have, without half of them empty.
    assert!(leases.len() > 3 * files.len() / limits::LEASE_KEYS_MAX, "{leases:?}");
    assert!(leases.len() < 2 * 3 * files.len() / limits::LEASE_KEYS_MAX, "{leases:?}");

    // It comes back over another connection with one file changed: nothing else is written again.
    let version = |name: &FileName| {
        let key = format!("share/name/{name}\0{}", PeerId(1));
        group.client().get_linearizable(key).unwrap().timestamp()
    };
    let (changed, before) = (files[0].name.clone(), version(&last.name));
    let first = version(&changed);
    let mut files = files;
    files[0].size += 1;
    directory.join(member(2), place(1), files).unwrap();
    assert_eq!(group.client().leases().unwrap().len(), leases.len());
    assert_eq!(version(&last.name), before);
    assert!(version(&changed) > first);
    assert_eq!(other.search(&changed).unwrap()[0].size, 1);

    directory.leave(member(2)).unwrap();
    assert_eq!(everything(&group.client()).len(), 0);
    assert_eq!(group.client().leases().unwrap(), []);
}
