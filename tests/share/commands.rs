//! The commands `acervo share`, `fetch`, `peers` and `files` as processes of their own: what they
//! print, with which status they exit, and what is left of a file when a process dies.
//!
//! Left out: the protocols (`registry`, `transfer`), the console (`console`), and full disks
//! (`disk`).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;

use crate::support::share::{FetchCommand, Process, Registry, arrived, noise, part_of, run, write};
use crate::support::terminal::Terminal;
use crate::support::{self, ACERVO, eventually, exited_with, free_addresses};

const MIB: usize = 1024 * 1024;

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

/// Compares whole files. A failing test does not print their bytes, which are megabytes.
fn assert_same(path: &Path, expected: &[u8]) {
    let found = std::fs::read(path).unwrap();
    assert!(found == expected, "{}: {} bytes", path.display(), found.len());
}

#[test]
fn a_download_uses_every_peer_that_has_the_file() {
    let registry = Registry::start(&[]);
    let film = noise(40 * MIB + 17, "film");
    let folders: Vec<PathBuf> = ["a", "b", "c"].map(|name| registry.folder(name)).into();
    let to = registry.folder("to");
    let peers: Vec<Process> = folders
        .iter()
        .map(|folder| {
            write(folder, "film.mkv", &film);
            // Slow enough that no peer sends everything before the others are asked.
            registry.share(folder, &["--limit", "40MiB/s"])
        })
        .collect();
    let to_text = to.to_str().unwrap();
    let fetched = registry.run(&["fetch", "film.mkv", "--to", to_text, "--format", "json"]);
    assert_eq!(fetched.status, 0, "{}", fetched.err);
    let path = to.canonicalize().unwrap().join("film.mkv");
    assert_same(&path, &film);
    let object = fetched.json();
    assert_eq!(object["name"], "film.mkv");
    assert_eq!(object["path"], json!(path));
    assert_eq!(object["size"], json!(film.len()));
    assert_eq!(object["content"], json!(hash(&film)));
    assert_eq!(object["already_there"], json!(false));
    assert_eq!(object["kept_bytes"], json!(0));
    let sources = object["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 3, "{object}");
    assert!(sources.iter().all(|source| source["bytes"].as_u64() > Some(0)), "{object}");
    assert!(!part_of(&to, "film.mkv").exists());
    // Without a terminal, progress is lines.
    assert!(fetched.err.lines().any(|line| line.starts_with("film.mkv: ")), "{}", fetched.err);

    let again = registry.run(&["fetch", "film.mkv", "--to", to_text, "--quiet"]);
    assert_eq!((again.status, again.err.as_str()), (0, ""));
    assert_eq!(again.out, format!("{}\n", path.display()));
    drop(peers);
}

#[test]
fn the_registry_lists_peers_and_files() {
    let registry = Registry::start(&[]);
    let empty = registry.run(&["peers", "--format", "json"]);
    assert_eq!((empty.status, empty.json()), (0, json!({"peers": []})));
    assert_eq!(registry.run(&["files", "--format", "json"]).json(), json!({"files": []}));

    for list in ["peers", "files"] {
        let empty = registry.run(&[list]);
        assert_eq!((empty.status, empty.out.lines().count()), (0, 1));
        assert_eq!(empty.err, format!("acervo: registry {} knows no {list}\n", registry.address()));
    }

    let (a, b) = (registry.folder("a"), registry.folder("b"));
    write(&a, "both.txt", b"both");
    write(&b, "both.txt", b"both");
    write(&b, "b \u{1f3ac}.txt", b"only b's");
    let addresses = free_addresses(2);
    let _peers = [
        registry.share(&a, &["--listen", &addresses[0].to_string()]),
        registry.share(&b, &["--listen", &addresses[1].to_string()]),
    ];
    let file = |name: &str, bytes: &[u8], peers: u32| {
        let (size, content) = (bytes.len(), hash(bytes));
        json!({"name": name, "size": size, "content": content, "peers": peers})
    };
    assert_eq!(
        registry.run(&["files", "--format", "json"]).json(),
        json!({"files": [file("b 🎬.txt", b"only b's", 1), file("both.txt", b"both", 2)]})
    );
    let mut peers = registry.run(&["peers", "--format", "json"]).json();
    let peers = peers["peers"].as_array_mut().unwrap();
    peers.sort_by_key(|peer| peer["files"].as_u64());
    for (peer, (address, files, bytes)) in
        peers.iter().zip([(addresses[0], 1, 4), (addresses[1], 2, 12)])
    {
        assert_eq!(peer["address"], json!(address));
        assert_eq!((&peer["files"], &peer["bytes"]), (&json!(files), &json!(bytes)));
        assert!(peer["silent_ms"].is_u64() && peer["peer"].as_str().unwrap().len() == 16);
    }
    assert_eq!(peers.len(), 2);

    let files = registry.run(&["files"]);
    let rows: Vec<Vec<&str>> =
        files.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["content", "size", "peers", "name"]);
    assert_eq!(rows[2], [&hash(b"both")[..16], "4", "B", "2", "both.txt"]);
    let peers = registry.run(&["peers"]);
    assert_eq!(peers.out.lines().count(), 3);
    assert!(peers.out.contains(&addresses[1].to_string()), "{}", peers.out);
}

#[test]
fn each_kind_of_failure_has_its_exit_status() {
    let registry = Registry::start(&[]);
    let folder = registry.folder("a");
    write(&folder, "film.mkv", b"film");
    let _peer = registry.share(&folder, &[]);
    let to = registry.folder("to");
    let to_text = to.to_str().unwrap();

    let nobody = registry.run(&["fetch", "other.mkv", "--to", to_text]);
    assert_eq!((nobody.status, nobody.out.as_str()), (1, ""));
    let who = format!("acervo: no peer that registry {} knows has", registry.address());
    assert_eq!(nobody.err, format!("{who} \"other.mkv\"\n"));

    for arguments in [
        &["fetch"][..],
        &["fetch", "../film.mkv"],
        &["fetch", "/etc/passwd"],
        &["fetch", "a\nb"],
        &["fetch", "film.mkv.part"],
        &["fetch", "film.mkv", "--limit", "fast"],
        &["fetch", "film.mkv", "--content", "xyz"],
        &["fetch", "film.mkv", "--format", "xml"],
        &["share"],
        &["peers", "--format", "table"],
    ] {
        let ran = registry.run(arguments);
        assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{arguments:?}");
        assert!(!ran.err.is_empty(), "{arguments:?} says why");
    }
    let missing = to.join("missing");
    let ran = registry.run(&["share", missing.to_str().unwrap()]);
    assert_eq!((ran.status, ran.err.lines().count()), (2, 1), "{}", ran.err);
    let again = registry.run(&["share", folder.to_str().unwrap()]);
    assert_eq!(again.status, 2);
    assert!(again.err.contains("shared by another process already"), "{}", again.err);

    let away = free_addresses(1)[0].to_string();
    for arguments in
        [&["fetch", "film.mkv", "--to", to_text][..], &["peers"], &["files", "--format", "json"]]
    {
        let ran = run(&[arguments, &["--registry", &away]].concat());
        assert_eq!((ran.status, ran.out.as_str()), (3, ""), "{arguments:?}");
        assert_eq!(
            ran.err,
            format!("acervo: registry {away} cannot be reached: connection refused\n"),
            "{arguments:?}"
        );
    }
    // The address comes from the environment here, and the message says so.
    let mut command = Command::new(ACERVO);
    command.arg("files").env("ACERVO_REGISTRY", &away);
    let said = support::share::to_end(command).err;
    let from = "connection refused (named by ACERVO_REGISTRY)";
    assert_eq!(said, format!("acervo: registry {away} cannot be reached: {from}\n"));
    // One of several registries is enough.
    let both = format!("{away},{}", registry.address());
    let ran = run(&["fetch", "film.mkv", "--to", to_text, "--quiet", "--registry", &both]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_same(&to.join("film.mkv"), b"film");
}

#[test]
fn the_registry_without_a_terminal_needs_its_address() {
    let ran = run(&["registry"]);
    assert_eq!((ran.status, ran.out.as_str()), (2, ""));
    assert!(ran.err.contains("--listen is needed") && ran.err.contains("Usage: acervo registry"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ran = run(&["registry", "--listen", &taken.local_addr().unwrap().to_string()]);
    assert_eq!(ran.status, 4);
    assert!(ran.err.contains("is in use"), "{}", ran.err);
}

#[test]
fn of_several_contents_the_one_of_most_peers_is_fetched_unless_named() {
    let registry = Registry::start(&[]);
    let folders: Vec<PathBuf> = ["a", "b", "c"].map(|name| registry.folder(name)).into();
    write(&folders[0], "f.txt", b"often");
    write(&folders[1], "f.txt", b"once");
    write(&folders[2], "f.txt", b"often");
    let _peers: Vec<Process> = folders.iter().map(|f| registry.share(f, &[])).collect();
    let to = registry.folder("to");
    let to_text = to.to_str().unwrap();
    let often = registry.run(&["fetch", "f.txt", "--to", to_text]);
    assert_eq!(often.status, 0, "{}", often.err);
    assert!(often.err.contains("2 files are called \"f.txt\"") && often.err.contains("2 peers"));
    assert_same(&to.join("f.txt"), b"often");

    // A fetch never replaces another file.
    let once = hash(b"once");
    let refused = registry.run(&["fetch", "f.txt", "--to", to_text, "--content", &once]);
    assert_eq!((refused.status, refused.out.as_str()), (4, ""), "{}", refused.err);
    assert!(refused.err.contains("exists and is not the file to fetch"), "{}", refused.err);
    assert_same(&to.join("f.txt"), b"often");
    let other = registry.folder("other");
    let arguments =
        ["fetch", "f.txt", "--to", other.to_str().unwrap(), "--content", &once[..12], "--quiet"];
    assert_eq!(registry.run(&arguments).status, 0);
    assert_same(&other.join("f.txt"), b"once");
    let unknown = "0123456789abcdef";
    let ran = registry.run(&["fetch", "f.txt", "--to", to_text, "--content", unknown]);
    assert_eq!(ran.status, 1);
    let who = format!("acervo: no peer that registry {} knows has", registry.address());
    assert_eq!(ran.err, format!("{who} \"f.txt\" with content {unknown}\n"));
}

#[test]
fn empty_and_tiny_files_arrive_whole() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "none", b"");
    write(&folder, "one", b"1");
    let _peer = registry.share(&folder, &[]);
    for (name, bytes) in [("none", &b""[..]), ("one", b"1")] {
        let ran = registry.run(&["fetch", name, "--to", to.to_str().unwrap()]);
        assert_eq!(ran.status, 0, "{}", ran.err);
        assert_same(&to.join(name), bytes);
    }
}

#[test]
fn a_target_folder_without_write_permission_fails_before_any_download() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &noise(MIB, "film"));
    let _peer = registry.share(&folder, &[]);
    std::fs::set_permissions(&to, PermissionsExt::from_mode(0o555)).unwrap();
    // The superuser may write in spite of the permissions, but not in a folder of /proc.
    let root = rustix::process::geteuid().is_root();
    let unwritable = if root { Path::new("/proc/self") } else { &to };
    let below = folder.join("film.mkv/below");
    let cannot_be_made = format!("acervo: the folder {} cannot be made: ", below.display());
    for (bad, why) in [
        (unwritable, "acervo: cannot write to "),
        (&below, &*cannot_be_made),
        (&folder.join("film.mkv"), "acervo: cannot write to "),
    ] {
        let ran = registry.run(&["fetch", "film.mkv", "--to", bad.to_str().unwrap(), "--quiet"]);
        assert_eq!((ran.status, ran.out.as_str()), (4, ""), "{}", bad.display());
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        assert!(ran.err.starts_with(why), "{}", ran.err);
    }
    std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_read_only_folder_can_be_shared() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", b"film");
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o555)).unwrap();
    let _peer = registry.share(&folder, &[]);
    let ran = registry.run(&["fetch", "film.mkv", "--to", to.to_str().unwrap()]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_same(&to.join("film.mkv"), b"film");
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_killed_download_resumes_where_it_was() {
    let registry = Registry::start(&[]);
    let film = noise(24 * MIB, "film");
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &film);
    let slow = registry.share(&folder, &["--limit", "8MiB/s"]);
    let part = part_of(&to, "film.mkv");
    let fetch =
        FetchCommand { registry: &registry, name: "film.mkv", to: &to, flags: &["--quiet"] }
            .start();
    eventually("some of it has arrived", || (arrived(&part) >= 8 * MIB).then_some(()));
    // Another fetch of the same file refuses to run beside it.
    let second = registry.run(&["fetch", "film.mkv", "--to", to.to_str().unwrap(), "--quiet"]);
    assert_eq!(second.status, 4, "{}", second.err);
    assert!(second.err.contains("is being fetched by another process"), "{}", second.err);
    // Dropping the process kills it with SIGKILL.
    drop(fetch);
    let kept = arrived(&part);
    assert!(kept < film.len() && !to.join("film.mkv").exists());
    drop(slow);
    let _quick = registry.share(&folder, &[]);

    let to_text = to.to_str().unwrap();
    let resumed = registry.run(&["fetch", "film.mkv", "--to", to_text, "--format", "json"]);
    assert_eq!(resumed.status, 0, "{}", resumed.err);
    assert_same(&to.join("film.mkv"), &film);
    let object = resumed.json();
    let (kept, fetched) =
        (object["kept_bytes"].as_u64().unwrap(), object["fetched_bytes"].as_u64().unwrap());
    assert!(kept >= 8 * MIB as u64, "{object}");
    assert!(kept + fetched <= film.len() as u64 + MIB as u64, "only what was missing: {object}");
    assert!(!part.exists());
}

#[test]
fn a_download_survives_a_restart_of_the_registry() {
    let mut registry = Registry::start(&[]);
    let film = noise(16 * MIB, "film");
    let (a, b) = (registry.folder("a"), registry.folder("b"));
    let to = registry.folder("to");
    write(&a, "film.mkv", &film);
    // Alone it takes half a minute, in which the other comes on any machine, and gives the rest.
    let _slow = registry.share(&a, &["--limit", "512KiB/s"]);
    let mut fetch = FetchCommand {
        registry: &registry,
        name: "film.mkv",
        to: &to,
        flags: &["--format", "json"],
    }
    .start();
    let part = part_of(&to, "film.mkv");
    eventually("it has begun", || (arrived(&part) > 0).then_some(()));
    registry.kill();
    registry.restart();
    // The fetch also uses a source that joins after the registry has restarted.
    write(&b, "film.mkv", &film);
    let late = registry.share(&b, &[]);
    assert!(exited_with(fetch.wait(), 0), "{}", fetch.err());
    assert_same(&to.join("film.mkv"), &film);
    let object: serde_json::Value = serde_json::from_str(&fetch.out()).unwrap();
    let sources = object["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 2, "{object}");
    drop(late);
}

#[test]
fn a_registry_that_hangs_does_not_delay_a_download() {
    let mut registry = Registry::start(&[]);
    let film = noise(12 * MIB, "film");
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &film);
    let _slow = registry.share(&folder, &["--limit", "4MiB/s"]);
    let mut fetch =
        FetchCommand { registry: &registry, name: "film.mkv", to: &to, flags: &["--quiet"] }
            .start();
    let part = part_of(&to, "film.mkv");
    eventually("it has begun", || (arrived(&part) > 0).then_some(()));
    // A stopped registry neither answers nor closes a connection.
    registry.process().signal(Signal::STOP);
    assert!(exited_with(fetch.wait(), 0), "{}", fetch.err());
    assert_same(&to.join("film.mkv"), &film);
}

#[test]
fn a_peer_that_is_fetching_serves_the_chunks_it_has() {
    let registry = Registry::start(&[]);
    let film = noise(16 * MIB, "film");
    let (folder, first, second) =
        (registry.folder("a"), registry.folder("first"), registry.folder("second"));
    write(&folder, "film.mkv", &film);
    let slow = registry.share(&folder, &["--limit", "4MiB/s"]);
    let sharing =
        registry.run(&["peers", "--format", "json"]).json()["peers"][0]["address"].clone();
    assert!(sharing.is_string(), "{sharing}");
    let mut one =
        FetchCommand { registry: &registry, name: "film.mkv", to: &first, flags: &["--quiet"] }
            .start();
    let part = part_of(&first, "film.mkv");
    eventually("the first has something", || (arrived(&part) > 2 * MIB).then_some(()));
    let second_text = second.to_str().unwrap();
    let two = registry.run(&["fetch", "film.mkv", "--to", second_text, "--format", "json"]);
    assert_eq!(two.status, 0, "{}", two.err);
    assert_same(&second.join("film.mkv"), &film);
    assert!(exited_with(one.wait(), 0), "{}", one.err());
    assert_same(&first.join("film.mkv"), &film);
    let object = two.json();
    let sources = object["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 2, "{object}");
    // On a loaded machine the peer that shares the file may be busy with the first fetch all the
    // time.
    let fetching = sources.iter().find(|source| source["address"] != sharing).unwrap();
    assert!(fetching["bytes"].as_u64() > Some(0), "{object}");
    drop(slow);
}

#[test]
fn a_download_whose_only_source_dies_ends_with_an_error() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &noise(16 * MIB, "film"));
    let source = registry.share(&folder, &["--limit", "4MiB/s"]);
    let mut fetch = FetchCommand {
        registry: &registry,
        name: "film.mkv",
        to: &to,
        flags: &["--quiet", "--patience", "2s"],
    }
    .start();
    let part = part_of(&to, "film.mkv");
    eventually("it has begun", || (arrived(&part) > 0).then_some(()));
    drop(source);
    assert!(exited_with(fetch.wait(), 3), "{}", fetch.err());
    assert!(fetch.err().starts_with("acervo: no peer gives film.mkv any more"), "{}", fetch.err());
    assert_eq!(fetch.err().lines().count(), 1);
    assert!(part.exists() && !to.join("film.mkv").exists());
}

/// A regression: the fetch waited for a source that had said that it no longer has the file.
#[test]
fn a_download_ends_when_its_file_is_removed_and_survives_a_rename() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &noise(16 * MIB, "film"));
    let _source = registry.share(&folder, &["--limit", "4MiB/s"]);
    let mut fetch =
        FetchCommand { registry: &registry, name: "film.mkv", to: &to, flags: &["--quiet"] }
            .start();
    let part = part_of(&to, "film.mkv");
    eventually("it has begun", || (arrived(&part) > 0).then_some(()));
    std::fs::remove_file(folder.join("film.mkv")).unwrap();
    assert!(exited_with(fetch.wait(), 1), "{}", fetch.err());
    let said = fetch.err();
    assert_eq!(said, "acervo: no peer has film.mkv any more; what has arrived is kept\n");
    assert!(part.exists());
    // The same content under another name is the same file.
    write(&folder, "film.mkv", &noise(16 * MIB, "film"));
    eventually("it is offered again", || {
        registry.run(&["files"]).out.contains("film.mkv").then_some(())
    });
    let mut fetch =
        FetchCommand { registry: &registry, name: "film.mkv", to: &to, flags: &["--quiet"] }
            .start();
    let began = arrived(&part);
    eventually("it goes on", || (arrived(&part) > began).then_some(()));
    std::fs::rename(folder.join("film.mkv"), folder.join("other.mkv")).unwrap();
    assert!(exited_with(fetch.wait(), 0), "{}", fetch.err());
    assert_same(&to.join("film.mkv"), &noise(16 * MIB, "film"));
}

/// The source hashes the touched file anew and offers the same content again.
#[test]
fn a_download_survives_a_touch_of_its_file() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    let film = noise(12 * MIB, "film");
    write(&folder, "film.mkv", &film);
    let _source = registry.share(&folder, &["--limit", "6MiB/s"]);
    let mut fetch =
        FetchCommand { registry: &registry, name: "film.mkv", to: &to, flags: &["--quiet"] }
            .start();
    let part = part_of(&to, "film.mkv");
    eventually("it has begun", || (arrived(&part) > 0).then_some(()));
    let file = std::fs::File::options().write(true).open(folder.join("film.mkv")).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    drop(file);
    assert!(exited_with(fetch.wait(), 0), "{}", fetch.err());
    assert_same(&to.join("film.mkv"), &film);
}

#[test]
fn an_interrupted_download_keeps_what_has_arrived() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    write(&folder, "film.mkv", &noise(16 * MIB, "film"));
    let _slow = registry.share(&folder, &["--limit", "4MiB/s"]);
    let mut fetch =
        FetchCommand { registry: &registry, name: "film.mkv", to: &to, flags: &["--quiet"] }
            .start();
    let part = part_of(&to, "film.mkv");
    eventually("it has begun", || (arrived(&part) > 0).then_some(()));
    fetch.signal(Signal::INT);
    assert!(exited_with(fetch.wait(), 4));
    assert_eq!(fetch.err(), "acervo: stopped; what has arrived is kept\n");
    assert!(part.exists());
    // The interrupted peer has left the share.
    eventually("only the source is known", || {
        let peers = registry.run(&["peers", "--format", "json"]).json();
        (peers["peers"].as_array().unwrap().len() == 1).then_some(())
    });
}

#[test]
fn links_and_fifos_are_not_served_even_when_they_take_a_files_place() {
    let registry = Registry::start(&[]);
    let (folder, to) = (registry.folder("a"), registry.folder("to"));
    let secret = registry.dir.path().join("secret");
    std::fs::write(&secret, b"secret").unwrap();
    write(&folder, "film.mkv", b"film!!");
    std::os::unix::fs::symlink(&secret, folder.join("link.txt")).unwrap();
    let _peer = registry.share(&folder, &[]);
    let ran = registry.run(&["fetch", "link.txt", "--to", to.to_str().unwrap()]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    // Between two scans of the folder the file is replaced by a link to one that is not shared.
    std::fs::remove_file(folder.join("film.mkv")).unwrap();
    std::os::unix::fs::symlink(&secret, folder.join("film.mkv")).unwrap();
    let arguments =
        ["fetch", "film.mkv", "--to", to.to_str().unwrap(), "--quiet", "--patience", "1s"];
    let ran = registry.run(&arguments);
    assert!([1, 3].contains(&ran.status), "{}", ran.err);
    assert!(!to.join("film.mkv").exists());
}

#[test]
fn a_list_ends_silently_when_its_reader_closes_the_pipe() {
    let registry = Registry::start(&["--console", "off"]);
    let folder = registry.folder("a");
    for number in 0..2000 {
        write(&folder, &format!("a rather long name of a file, {number}.txt"), b"");
    }
    let _peer = registry.share(&folder, &[]);
    for list in [&["files"][..], &["files", "--format", "json"]] {
        let mut child = Command::new(ACERVO)
            .args(list)
            .args(["--registry", &registry.address()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        // SIGPIPE ends this command as it ends `cat`.
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(Signal::PIPE.as_raw()), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    assert_eq!(registry.run(&["files"]).out.lines().count(), 2001);
}

#[test]
fn a_small_file_is_found_while_a_large_one_is_still_being_hashed() {
    let registry = Registry::start(&["--console", "off"]);
    let folder = registry.folder("films");
    // A sparse file takes no room on the disk, and hashing it takes far longer than the test.
    let large = std::fs::File::create(folder.join("a-large.img")).unwrap();
    large.set_len(512 << 30).unwrap();
    write(&folder, "small.txt", b"small");
    let peer = registry.share(&folder, &[]);
    let names = || -> Vec<String> {
        let listed = registry.run(&["files", "--format", "json"]).json();
        let rows = listed["files"].as_array().unwrap();
        rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    eventually("the small file is offered", || (names() == ["small.txt"]).then_some(()));
    // A file that is added while the large one is being hashed is found as well.
    write(&folder, "later.txt", b"later");
    eventually("the late file is offered", || {
        (names() == ["later.txt", "small.txt"]).then_some(())
    });
    eventually("hashing is shown", || peer.err().contains("hashing 2 files").then_some(()));
    assert!(peer.err().contains("1 file still to hash"), "{}", peer.err());
}

/// A regression: a terminal that cannot move its cursor, such as a shell in an editor, showed no
/// progress at all.
#[test]
fn a_dumb_terminal_gets_the_lines_that_a_pipe_gets() {
    let registry = Registry::start(&["--console", "off"]);
    let (folder, to) = (registry.folder("films"), registry.folder("to"));
    write(&folder, "film.bin", &noise(3 * MIB, "film"));
    // Slow enough that there is progress to show.
    let _peer = registry.share(&folder, &["--limit", "4MiB/s"]);
    let shown = |terminal: &str| {
        let mut command = Command::new(ACERVO);
        command.args(["fetch", "film.bin", "--registry", &registry.address(), "--to"]).arg(&to);
        let mut terminal = Terminal::run_on(command, terminal);
        assert!(terminal.wait_for_end().success());
        std::fs::remove_file(to.join("film.bin")).unwrap();
        let lines = terminal.lines(|line| line.contains(" % of 3.00 MiB"));
        (!lines.is_empty(), terminal.raw().contains(&0x1b))
    };
    for dumb in ["dumb", ""] {
        assert_eq!(shown(dumb), (true, false), "lines, and nothing that moves a cursor");
    }
    assert!(!shown("xterm").0, "bars");
}

/// SPEC C1 has a line for a peer that shares something, and for no other.
#[test]
fn the_registrys_console_shows_no_peer_that_only_fetches() {
    let registry = Registry::start(&[]);
    let (folder, empty, to) =
        (registry.folder("films"), registry.folder("empty"), registry.folder("to"));
    write(&folder, "a.txt", b"x");
    let _peers = [registry.share(&folder, &[]), registry.share(&empty, &[])];
    let ran = registry.run(&["fetch", "a.txt", "--to", to.to_str().unwrap(), "--quiet"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    // This search comes after the download's, so a line for the peer that fetched would be there by
    // then.
    assert_eq!(registry.run(&["fetch", "none", "--quiet"]).status, 1);
    let lines = eventually("the last question", || {
        let lines = registry.console();
        lines.iter().any(|line| line.ends_with(" none.")).then_some(lines)
    });
    let joined: Vec<&str> =
        lines.iter().filter_map(|line| line.split(" adicionado com arquivos ").nth(1)).collect();
    assert_eq!(joined, ["a.txt.", "."], "{lines:?}");
}

#[test]
fn a_name_as_files_prints_it_can_be_fetched() {
    let registry = Registry::start(&["--console", "off"]);
    let (folder, to) = (registry.folder("films"), registry.folder("to"));
    write(&folder, "a\u{202e}gnp.txt", b"x");
    let _peer = registry.share(&folder, &[]);
    let listed = registry.run(&["files"]);
    let shown = listed.out.lines().last().unwrap().split_whitespace().last().unwrap();
    assert_eq!(shown, r"a\xe2\x80\xaegnp.txt");
    let to_text = to.to_str().unwrap();
    let fetched = registry.run(&["fetch", shown, "--to", to_text, "--quiet"]);
    assert_eq!(fetched.status, 2, "{}", fetched.err);
    assert!(fetched.err.contains("cannot hold"), "{}", fetched.err);
    assert!(
        fetched.err.contains("--escaped reads it as 'acervo files' shows it"),
        "{}",
        fetched.err
    );
    // The target folder is made, with its parents.
    let new = to.join("new/below");
    let fetch = |to: &Path| {
        let to = to.to_str().unwrap();
        registry.run(&["fetch", "--escaped", shown, "--to", to, "--quiet"])
    };
    let fetched = fetch(&new);
    assert_eq!(fetched.status, 0, "{}", fetched.err);
    assert_same(&new.join("a\u{202e}gnp.txt"), b"x");
}

/// An é is one character or an e with a combining accent, as macOS stores it. Each finds the other.
#[test]
fn a_file_is_found_however_its_accents_are_written() {
    let registry = Registry::start(&["--console", "off"]);
    let (folder, to) = (registry.folder("films"), registry.folder("to"));
    let (composed, decomposed) =
        (["caf\u{e9}.txt", "\u{e3}o.txt"], ["cafe\u{301}.txt", "a\u{303}o.txt"]);
    write(&folder, decomposed[0], b"coffee");
    write(&folder, composed[1], b"on");
    let _peer = registry.share(&folder, &[]);
    for (typed, bytes) in [(composed[0], &b"coffee"[..]), (decomposed[1], b"on")] {
        let fetched = registry.run(&["fetch", typed, "--to", to.to_str().unwrap(), "--quiet"]);
        assert_eq!(fetched.status, 0, "{}", fetched.err);
        assert_same(&to.join(typed), bytes);
    }
}

/// A row that is wider than the terminal is cut, and the bar is left out instead of shown in part.
#[test]
fn a_narrow_terminal_gets_no_bar_without_room() {
    let registry = Registry::start(&["--console", "off"]);
    let (folder, to) = (registry.folder("films"), registry.folder("to"));
    write(&folder, "film.bin", &noise(3 * MIB, "film"));
    let _peer = registry.share(&folder, &["--limit", "4MiB/s"]);
    let shown = |columns| {
        let mut command = Command::new(ACERVO);
        command.args(["fetch", "film.bin", "--registry", &registry.address(), "--to"]).arg(&to);
        let mut terminal = Terminal::run_wide(command, columns);
        assert!(terminal.wait_for_end().success());
        std::fs::remove_file(to.join("film.bin")).unwrap();
        terminal.lines(|line| line.contains(" MiB/3.00 MiB"))
    };
    let wide = shown(100);
    assert!(!wide.is_empty() && wide.iter().all(|line| line.starts_with('[')), "{wide:?}");
    let narrow = shown(30);
    assert!(!narrow.is_empty() && narrow.iter().all(|line| !line.contains('[')), "{narrow:?}");
}

/// A name in other case is another name, so the command names it and does not fetch it.
#[test]
fn a_name_in_other_case_is_named_and_not_fetched() {
    let registry = Registry::start(&["--console", "off"]);
    let (folder, to) = (registry.folder("films"), registry.folder("to"));
    write(&folder, "cafe\u{301}'s.txt", b"x");
    let _peer = registry.share(&folder, &[]);
    let to_text = to.to_str().unwrap();
    let missed = registry.run(&["fetch", "Caf\u{e9}'s.txt", "--to", to_text, "--quiet"]);
    assert_eq!(missed.status, 1, "{}", missed.err);
    let hint = missed.err.split("fetch --escaped '").nth(1).expect("a hint").split('\'').next();
    assert_eq!(hint, Some(r"cafe\xcc\x81\x27s.txt"), "{}", missed.err);
    let fetched = registry.run(&["fetch", "--escaped", hint.unwrap(), "--to", to_text, "--quiet"]);
    assert_eq!(fetched.status, 0, "{}", fetched.err);
    let missed = registry.run(&["fetch", "caf.txt", "--to", to_text, "--quiet"]);
    assert!(!missed.err.contains("--escaped"), "{}", missed.err);
}

#[test]
fn what_a_folder_leaves_out_is_counted_in_one_line() {
    let registry = Registry::start(&["--console", "off"]);
    let folder = registry.folder("mixed");
    let offered = ["2026-11-28 12:30:05.mkv", "Who are you?.txt", "con.txt", "etc.", "good.txt"];
    for name in offered.iter().chain(&["archive.part", "a\\b", "a\tb"]) {
        write(&folder, name, name.as_bytes());
    }
    std::fs::create_dir(folder.join("season1")).unwrap();
    std::fs::create_dir(folder.join("season2")).unwrap();
    std::os::unix::fs::symlink("good.txt", folder.join("link.txt")).unwrap();
    let not_utf8: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9.txt");
    std::fs::write(folder.join(not_utf8), b"1").unwrap();
    let peer = registry.share(&folder, &[]);
    let line = "7 left out: 2 folders, 1 link, 1 unfinished file, 1 name that is not UTF-8, \
                2 unusable names";
    assert_eq!(peer.err().lines().filter(|found| found.contains("left out")).count(), 1);
    assert!(peer.err().lines().any(|found| found == line), "{}", peer.err());
    let listed = registry.run(&["files", "--format", "json"]).json();
    let rows = listed["files"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, offered);
    // Each of the listed names can be fetched.
    let to = registry.folder("to");
    for name in offered {
        let fetched = registry.run(&["fetch", name, "--to", to.to_str().unwrap(), "--quiet"]);
        assert_eq!(fetched.status, 0, "{}", fetched.err);
        assert_same(&to.join(name), name.as_bytes());
    }
    // A folder of nothing but plain files leaves nothing out, and no message is printed.
    let peer = registry.share(&to, &[]);
    assert!(!peer.err().contains("left out"), "{}", peer.err());
}
