//! The disk of the *store* is full, while the log has room: the server has acknowledged writes that it
//! cannot apply. It says so in a sentence and stops, says so again when it is started before there is
//! room, and has every acknowledged write once there is.
//!
//! The small disk is a tmpfs in a mount namespace of its own, with the log's folder bound into it from the
//! real one. Where mounting is not permitted, the test says so and limits the size of the server's files
//! instead (`ulimit -f`), to more than a log file ever has: the store then fails in the same place, with another
//! error of the system.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use acervo::cli::commands::exit_status;
use acervo::client::Client;
use rustix::process::Signal;
use support::{Group, PATIENCE, exited_with};

const MIB: usize = 1024 * 1024;

/// A namespace in which the data directory is on a small disk that something else has nearly filled; it
/// lives as long as the process that holds it.
struct SmallDisk {
    holder: Child,
    ballast: String,
}

impl SmallDisk {
    /// `None` where mounting is not permitted.
    fn mount(group: &Group) -> Option<SmallDisk> {
        let (data, disk) = (group.data_dir(0), group.dir.path().join("disk"));
        std::fs::create_dir(&disk).unwrap();
        let script = "mount -t tmpfs -o size=96m,mode=700 none \"$2\" \
                      && mkdir \"$2/log\" && mount --bind \"$1/log\" \"$2/log\" \
                      && cp \"$1/IDENTITY\" \"$1/store.redb\" \"$2/\" \
                      && head -c 80m /dev/zero > \"$2/ballast\" \
                      && mount --rbind \"$2\" \"$1\" && echo mounted && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
            .args([&data, &disk])
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
        Some(SmallDisk { holder, ballast: data.join("ballast").display().to_string() })
    }

    /// What a process in the namespace is started with.
    fn wrapper(&self) -> [String; 6] {
        let holder = self.holder.id().to_string();
        ["nsenter", "--target", &holder, "--mount", "--user", "--preserve-credentials"]
            .map(str::to_owned)
    }

    fn make_room(&self) {
        let wrapper = self.wrapper();
        let mut remove = Command::new(&wrapper[0]);
        remove.args(&wrapper[1..]).args(["rm", &self.ballast]);
        assert!(remove.status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The namespace goes with its last process.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_server_whose_store_has_no_room_loses_nothing_and_comes_back_when_there_is_room() {
    let mut group = Group::start(1, &["--console", "off"]);
    group.client().put("first", "write").unwrap();
    assert!(exited_with(group.terminate(0), 0));
    let disk = SmallDisk::mount(&group);
    let wrapper = disk.as_ref().map_or_else(Vec::new, |disk| disk.wrapper().to_vec());
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let (preparation, detail) = match &disk {
        Some(_) => ("true", "No space left on device"),
        None => {
            println!("mounting is not permitted here: the size of files is limited instead");
            // Blocks of half a kibibyte or of one, as the shell likes: 68 MiB or 136.
            ("trap '' XFSZ && ulimit -S -f 139264", "File too large")
        }
    };

    // The log has room for more than the store: so it is the store that ends it.
    let value = vec![b'v'; MIB / 4];
    let client = Client::builder(group.addresses()).request_timeout(PATIENCE).build().unwrap();
    let mut acknowledged = Vec::new();
    let store = group.data_dir(0).join("store.redb").display().to_string();
    for life in 1..=2 {
        group.start_server_from_shell(0, &wrapper, preparation);
        // The second time nothing has been done about it. What is replayed takes a little less room than
        // what is written one by one, so that even then it may work for a moment.
        let said = |log: String| log.lines().filter(|line| line.starts_with("acervo: ")).count();
        while said(group.log(0)) < life {
            let key = format!("key-{}", acknowledged.len());
            if client.put(&key, &value).is_ok() {
                acknowledged.push(key);
            }
            assert!(acknowledged.len() < 1000, "the disk is never full");
        }
        assert!(exited_with(group.wait(0), i32::from(exit_status::FAILED)), "life {life}");
        let log = group.log(0);
        let last = log.lines().last().unwrap();
        println!("{last}");
        assert!(last.starts_with("acervo: "), "life {life}: {last}");
        for part in [&store, detail, "make room", "start the server again"] {
            assert!(last.contains(part), "life {life}, '{part}': {last}");
        }
    }
    assert!(!acknowledged.is_empty());

    match &disk {
        Some(disk) => {
            disk.make_room();
            group.start_server_from_shell(0, &wrapper, "true");
        }
        None => group.start_server(0),
    }
    // It waits until the server has replayed up to what was seen.
    let client = group.client().with_session(&client.session_token()).unwrap();
    for key in &acknowledged {
        let got = client.get(key).unwrap();
        assert!(got.value.as_deref() == Some(&value[..]), "{key} was acknowledged");
    }
    client.put("first", "again").unwrap();
    group.signal(0, Signal::TERM);
    assert!(exited_with(group.wait(0), 0));
}
