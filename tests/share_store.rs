//! Registries whose index is in the replicated store: any of them knows what was told to any other, and
//! none of them, nor any one server of the store, is needed. With real processes.

mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;
use support::share::{Process, Registry, noise, run, write};
use support::{ACERVO, Group, eventually};

/// `acervo share` that knows several registries, once it has joined.
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

#[test]
fn several_registries_serve_one_index_and_none_is_needed() {
    let mut group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let flags = ["--servers", &servers, "--silence-timeout", "3s", "--console", "off"];
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

    // A server of the store goes, and what changes is known all the same.
    group.kill(0);
    write(&b, "new.txt", b"new");
    std::fs::remove_file(b.join("ação.txt")).unwrap();
    let names = |registry| -> Vec<String> {
        let listed = files(registry);
        let rows = listed["files"].as_array().unwrap();
        rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    eventually("the change is known", || {
        (names(second.address) == ["film.mkv", "new.txt"]).then_some(())
    });
    let arguments = ["fetch", "film.mkv", "--to", to.to_str().unwrap(), "--quiet", "--registry"];
    let ran = run(&[&arguments[..], &[&second.address()]].concat());
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(std::fs::read(to.join("film.mkv")).unwrap() == film);

    // A registry goes. The peer that knows another one joins there; the one that does not is forgotten.
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
    // Who stops leaves at once.
    let [mut one, _two] = peers;
    one.signal(Signal::TERM);
    one.wait();
    eventually("it has left", || (listed()["peers"].as_array().unwrap().len() == 1).then_some(()));
}

#[test]
fn without_its_store_a_registry_says_so() {
    let nobody = support::free_addresses(1)[0].to_string();
    let registry = Registry::start(&["--servers", &nobody]);
    let ran = registry.run(&["files"]);
    assert_eq!(ran.status, 3, "{ran:?}");
    assert!(ran.err.contains("the store behind this registry does not answer"), "{}", ran.err);
}
