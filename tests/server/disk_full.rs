//! A disk fills up, first by what is written and then to the last byte by something else. Writes
//! are refused before it is full, a warning has come before that, and reads, removals and restarts
//! go on throughout.
//!
//! An idle store gives back what it does not need of a disk, full or not.
//!
//! The small disk is a tmpfs in a mount namespace of its own. Where mounting is not permitted the
//! test says so and ends: `datadir_crash` fills a simulated disk, and `node` refuses, everywhere.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use acervo::client::{Client, ClientError};

use crate::support::{Group, eventually, exited_with};

const KIB: usize = 1024;

/// A namespace in which a server's data directory is on a small disk, of which something else has
/// taken a quarter. It lives as long as the process that holds it.
struct SmallDisk {
    holder: Child,
    /// Where the disk is, for what is not the server's.
    disk: String,
}

impl SmallDisk {
    /// For server `at`; `None` where mounting is not permitted.
    fn mount(group: &Group, at: usize, size_mib: usize) -> Option<SmallDisk> {
        let (data, disk) = (group.data_dir(at), group.dir.path().join(format!("disk-{at}")));
        std::fs::create_dir(&disk).unwrap();
        std::fs::create_dir(&data).unwrap();
        let script = "mount -t tmpfs -o size=\"$4\",mode=700 none \"$2\" && mkdir \"$2/data\" \
                      && mount --bind \"$2/data\" \"$1\" \
                      && head -c \"$3\" /dev/zero > \"$2/ballast\" \
                      && echo mounted && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
            .args([&data, &disk])
            .args([format!("{}m", size_mib / 4), format!("{size_mib}m")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "mounted\n" {
            holder.wait().unwrap();
            return None;
        }
        Some(SmallDisk { holder, disk: disk.display().to_string() })
    }

    /// What a process in the namespace is started with.
    fn wrapper(&self) -> Vec<String> {
        let holder = self.holder.id().to_string();
        ["nsenter", "--target", &holder, "--mount", "--user", "--preserve-credentials"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Runs a script on the disk; whether it succeeded.
    fn run(&self, script: &str) -> bool {
        let wrapper = self.wrapper();
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).args(["sh", "-c", &format!("cd \"$0\" && {script}")]);
        command.arg(&self.disk).stderr(Stdio::null()).status().unwrap().success()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The namespace goes with its last process.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Starts a server on its small disk.
fn start(group: &mut Group, at: usize, disk: &SmallDisk) {
    let wrapper = disk.wrapper();
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    group.start_server_from_shell(at, &wrapper, "true");
}

fn mounting_is_not_permitted() {
    println!("mounting is not permitted here: nothing was tried");
}

/// Puts long values until one is refused: the keys of the others.
fn fill(client: &Client, value: &[u8], mut each: impl FnMut(usize)) -> (Vec<String>, ClientError) {
    let mut keys = Vec::new();
    loop {
        let key = format!("key-{}", keys.len());
        match client.put(&key, value) {
            Ok(_) => keys.push(key),
            // A leader whose disk is full leaves writes that are under way to its successor: the
            // same is written again, as the error says.
            Err(ClientError::Unconfirmed { .. }) => continue,
            Err(refused) => return (keys, refused),
        }
        assert!(keys.len() < 2000, "the disk is never full");
        each(keys.len());
    }
}

/// Waits until `status` and `health` end as scripts want it. A log that is cut, or a merge, may
/// give room back at any moment, which is taken again.
fn until_scripts_are_told(group: &Group, client: &Client, value: &[u8], can_write: bool) {
    let are_told = |command: &&str| {
        let acervo = env!("CARGO_BIN_EXE_acervo");
        let mut run = std::process::Command::new(acervo);
        let done = run.args([*command, "--servers", &group.list()]).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        let server = group.servers[0].address;
        let sentence = format!("the disk of {server} is nearly full: make room there");
        exited_with(done.status, if can_write { 0 } else { 3 })
            && said.contains(&sentence) != can_write
    };
    eventually("scripts are told", || {
        if !can_write {
            fill(client, value, |_| {});
        }
        ["status", "health"].iter().all(are_told).then_some(())
    });
}

fn assert_only_adding_is_refused(client: &Client, keys: &[String], value: &[u8], at: usize) {
    // A put that leaves on a connection to a server that has been killed may have been carried out
    // for all the client knows.
    let refused = eventually("a put is refused", || match client.put("more", "data") {
        // Room was given back meanwhile, and is taken again.
        Ok(_) => Some(fill(client, value, |_| {}).1),
        Err(ClientError::Unconfirmed { .. }) => None,
        Err(refused) => Some(refused),
    });
    assert!(matches!(refused, ClientError::DiskFull { .. }), "{refused}");
    assert!(refused.to_string().contains("make room on it"), "{refused}");
    let got = client.get_linearizable(&keys[at + 1]).unwrap();
    assert!(got.value() == Some(value), "{} was acknowledged", keys[at + 1]);
    client.del(&keys[at]).unwrap();
    assert_eq!(client.get_linearizable(&keys[at]).unwrap().found, None);
    client.trim(&keys[at + 1]).unwrap();
}

#[test]
fn a_full_disk_refuses_what_adds_to_it_and_nothing_else_until_there_is_room() {
    let mut group = Group::prepare(1, &["--console", "off"]);
    let Some(disk) = SmallDisk::mount(&group, 0, 128) else {
        return mounting_is_not_permitted();
    };
    start(&mut group, 0, &disk);
    let client = group.client();
    let value = vec![b'v'; 100 * KIB];
    let (keys, refused) = fill(&client, &value, |count| {
        if count == 180 {
            // Less than half of the disk is left, and more than is kept.
            eventually("a warning", || group.log(0).contains("is getting full").then_some(()));
        }
    });
    println!("refused after {} values: {refused}", keys.len());
    assert!(matches!(refused, ClientError::DiskFull { .. }), "{refused}");
    assert!(keys.len() > 50);
    // The log is written by a thread of its own, and may come after the answer.
    let full = eventually("the log says so", || group.log(0).find("is nearly full"));
    let warning = group.log(0).find("is getting full").expect("a warning came before");
    assert!(warning < full, "{}", group.log(0));
    assert_only_adding_is_refused(&client, &keys, &value, 0);
    until_scripts_are_told(&group, &client, &value, false);

    // Something else takes what is left, to the last byte.
    assert!(!disk.run("cat /dev/zero > rest"));
    assert_only_adding_is_refused(&client, &keys, &value, 2);
    group.kill(0);
    disk.run("cat /dev/zero >> rest");
    start(&mut group, 0, &disk);
    assert_only_adding_is_refused(&client, &keys, &value, 4);
    assert!(exited_with(group.terminate(0), 0));
    start(&mut group, 0, &disk);
    assert_only_adding_is_refused(&client, &keys, &value, 6);

    assert!(disk.run("rm ballast rest"));
    eventually("writes are taken again", || client.put("more", "data").ok());
    until_scripts_are_told(&group, &client, &value, true);
    for key in &keys[7..] {
        let got = client.get(key).unwrap();
        assert!(got.value() == Some(&value[..]), "{key} was acknowledged");
    }
}

/// What a server's store takes of the disk. Files may go while this looks.
fn store_bytes(group: &Group, at: usize) -> u64 {
    let files = std::fs::read_dir(group.data_dir(at).join("store")).unwrap();
    let taken =
        |file: std::io::Result<std::fs::DirEntry>| Some(file.ok()?.metadata().ok()?.blocks());
    files.filter_map(taken).sum::<u64>() * 512
}

#[test]
fn a_store_takes_little_more_than_it_holds_in_whatever_order_it_was_written() {
    let mut group = Group::start(1, &["--console", "off"]);
    let client = group.client();
    let key = |i: u32| format!("{:08x}", i.wrapping_mul(0x9E37_79B1));
    let value = |i: u32| i.to_string().repeat(20);
    for first in (0..60_000).step_by(1000) {
        let pairs = (first..first + 1000).map(|i| (key(i), value(i)));
        client.put_all(pairs).unwrap();
    }
    let after = 60_000 * 185 * 13 / 10;
    let check = |client: &Client| {
        for i in (0..60_000).step_by(977) {
            let got = client.get_linearizable(key(i)).unwrap();
            assert!(got.value() == Some(value(i).as_bytes()), "{}", key(i));
        }
    };
    check(&client);
    client.put("more", "data").unwrap();
    assert!(exited_with(group.terminate(0), 0));
    let bytes = store_bytes(&group, 0);
    assert!((60_000 * 100..after).contains(&bytes), "{bytes} bytes");
    group.start_server(0);
    check(&client);
    assert_eq!(client.get("more").unwrap().value(), Some(&b"data"[..]));
}

#[test]
fn three_full_disks_keep_what_they_have_and_take_more_when_there_is_room() {
    let mut group = Group::prepare(3, &["--console", "off", "--in-sync-timeout", "500ms"]);
    let mut disks = Vec::new();
    for at in 0..3 {
        let Some(disk) = SmallDisk::mount(&group, at, 96) else {
            return mounting_is_not_permitted();
        };
        disks.push(disk);
    }
    (0..3).for_each(|at| start(&mut group, at, &disks[at]));
    let client = group.client();
    let value = vec![b'v'; 100 * KIB];
    let (keys, refused) = fill(&client, &value, |_| {});
    assert!(matches!(refused, ClientError::DiskFull { .. }), "{refused}");
    println!("refused after {} values: {refused}", keys.len());
    assert!(keys.len() > 50);
    assert_only_adding_is_refused(&client, &keys, &value, 0);

    // To the last byte, and then nobody stops in peace.
    assert!(disks.iter().all(|disk| !disk.run("cat /dev/zero > rest")));
    assert_only_adding_is_refused(&client, &keys, &value, 2);
    (0..3).for_each(|at| group.kill(at));
    disks.iter().for_each(|disk| _ = disk.run("cat /dev/zero >> rest"));
    (0..3).for_each(|at| start(&mut group, at, &disks[at]));
    assert_only_adding_is_refused(&client, &keys, &value, 4);

    assert!(disks.iter().all(|disk| disk.run("rm ballast rest")));
    eventually("writes are taken again", || client.put("more", "data").ok());
    for at in 0..3 {
        let one = group.client_of(at);
        for key in &keys[5..] {
            let found = eventually("it is applied here too", || one.get(key).unwrap().found);
            assert!(found.value == value, "{key} at server {at}");
        }
    }
}

#[test]
fn a_leader_with_a_full_disk_hands_over_goes_on_and_catches_up_when_there_is_room() {
    let mut group = Group::prepare(3, &["--console", "off", "--in-sync-timeout", "500ms"]);
    let Some(disk) = SmallDisk::mount(&group, 0, 64) else {
        return mounting_is_not_permitted();
    };
    start(&mut group, 0, &disk);
    group.start_server(1);
    group.start_server(2);
    assert_eq!(group.leader(), 0);
    let client = group.client();
    let value = vec![b'v'; 100 * KIB];
    // More than fits this disk: nothing is refused, since a majority has room.
    let keys: Vec<String> = (0..900).map(|number| format!("key-{number}")).collect();
    let (first, second) = keys.split_at(800);
    first.iter().for_each(|key| _ = client.put(key, &value).unwrap());
    assert_ne!(group.leader(), 0);
    let full = group.servers[0].address;
    let warnings = |client: &Client| client.status(full).unwrap().warnings;
    let warns_of_full = |client: &Client| {
        warnings(client).iter().any(|warning| warning.contains("nearly full")).then_some(())
    };
    // Segments of the log that go make a little room for a moment.
    eventually("status warns", || warns_of_full(&client));
    assert!(group.client_of(0).get(&keys[0]).unwrap().value() == Some(&value[..]));

    disk.run("cat /dev/zero > rest");
    second.iter().for_each(|key| _ = client.put(key, &value).unwrap());
    group.kill(0);
    disk.run("cat /dev/zero >> rest");
    start(&mut group, 0, &disk);
    let old = eventually("it serves what it has", || group.client_of(0).get(&keys[0]).ok());
    assert!(old.value() == Some(&value[..]));
    eventually("status warns", || warns_of_full(&client));
    client.put("more", "data").unwrap();
    assert!(group.is_running(0), "{}", group.log(0));

    // Somebody enlarges the disk.
    assert!(disk.run("rm ballast rest && mount -o remount,size=1g ."));
    let one = group.client_of(0);
    for key in &keys {
        let found = eventually("it catches up", || one.get(key).unwrap().found);
        assert!(found.value == value, "{key}");
    }
    eventually("it warns no more", || warnings(&client).is_empty().then_some(()));
}
