//! A disk fills up, first by what is written and then to the last byte by something else. Writes are refused
//! before it is full, a warning has come before that, and reads, removals and restarts go on throughout.
//!
//! The small disk is a tmpfs in a mount namespace of its own. Where mounting is not permitted the test says so
//! and ends: `datadir_crash` fills a simulated disk, and `node` refuses, everywhere.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use acervo::client::{Client, ClientError};
use support::{Group, eventually, exited_with};

const KIB: usize = 1024;
/// What something else has put on the disk, and removes in the end.
const BALLAST: &str = "32m";

/// A namespace in which the first server's data directory is on a small disk; it lives as long as the process that
/// holds it.
struct SmallDisk {
    holder: Child,
    /// Where the disk is, for what is not the server's.
    disk: String,
}

impl SmallDisk {
    /// `None` where mounting is not permitted.
    fn mount(group: &Group) -> Option<SmallDisk> {
        let (data, disk) = (group.data_dir(0), group.dir.path().join("disk"));
        std::fs::create_dir(&disk).unwrap();
        std::fs::create_dir(&data).unwrap();
        let script = "mount -t tmpfs -o size=128m,mode=700 none \"$2\" && mkdir \"$2/data\" \
                      && mount --bind \"$2/data\" \"$1\" && head -c \"$3\" /dev/zero > \"$2/ballast\" \
                      && echo mounted && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
            .args([&data, &disk])
            .arg(BALLAST)
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

fn assert_only_adding_is_refused(client: &Client, keys: &[String], value: &[u8], at: usize) {
    let refused = client.put("more", "data").unwrap_err();
    assert!(matches!(refused, ClientError::DiskFull { .. }), "{refused}");
    assert!(refused.to_string().contains("make room on it"), "{refused}");
    let got = client.get_linearizable(&keys[at + 1]).unwrap();
    assert!(got.value.as_deref() == Some(value), "{} was acknowledged", keys[at + 1]);
    client.del(&keys[at]).unwrap();
    assert_eq!(client.get_linearizable(&keys[at]).unwrap().value, None);
    client.trim(&keys[at + 1]).unwrap();
}

#[test]
fn a_full_disk_refuses_what_adds_to_it_and_nothing_else_until_there_is_room() {
    let mut group = Group::prepare(1, &["--console", "off"]);
    let Some(disk) = SmallDisk::mount(&group) else {
        println!("mounting is not permitted here: nothing was tried");
        return;
    };
    let wrapper = disk.wrapper();
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    group.start_server_from_shell(0, &wrapper, "true");
    let client = group.client();
    let value = vec![b'v'; 100 * KIB];
    let mut keys = Vec::new();
    let refused = loop {
        let key = format!("key-{}", keys.len());
        match client.put(&key, &value) {
            Ok(_) => keys.push(key),
            Err(refused) => break refused,
        }
        assert!(keys.len() < 2000, "the disk is never full");
        if keys.len() == 180 {
            // Less than half of the disk is left, and more than is kept.
            eventually("a warning", || group.log(0).contains("is getting full").then_some(()));
        }
    };
    println!("refused after {} values: {refused}", keys.len());
    assert!(matches!(refused, ClientError::DiskFull { .. }), "{refused}");
    assert!(keys.len() > 50);
    let log = group.log(0);
    let warning = log.find("is getting full").expect("a warning came before");
    assert!(warning < log.find("is nearly full").unwrap(), "{log}");
    assert_only_adding_is_refused(&client, &keys, &value, 0);
    let status = client.status(group.servers[0].address).unwrap();
    assert!(status.warnings.iter().any(|warning| warning.contains("nearly full")), "{status:?}");

    // Something else takes what is left, to the last byte.
    assert!(!disk.run("cat /dev/zero > rest"));
    assert_only_adding_is_refused(&client, &keys, &value, 2);
    group.kill(0);
    disk.run("cat /dev/zero >> rest");
    group.start_server_from_shell(0, &wrapper, "true");
    assert_only_adding_is_refused(&client, &keys, &value, 4);
    assert!(exited_with(group.terminate(0), 0));
    group.start_server_from_shell(0, &wrapper, "true");
    assert_only_adding_is_refused(&client, &keys, &value, 6);

    assert!(disk.run("rm ballast rest"));
    eventually("writes are taken again", || client.put("more", "data").ok());
    for key in &keys[7..] {
        let got = client.get(key).unwrap();
        assert!(got.value.as_deref() == Some(&value[..]), "{key} was acknowledged");
    }
}
