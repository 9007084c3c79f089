//! `etcdctl watch` through the gateway, as installed here. Where it is not, the tests say so and
//! show nothing.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use acervo::client::Client;

use crate::etcd_process::{is_installed, program};
use crate::support::gateway::Gateway;
use crate::support::{Group, PATIENCE, eventually, patient_client};

struct World {
    group: Group,
    gateway: Gateway,
    client: Client,
}

/// `None`, aloud, where there is no etcdctl.
fn start(servers: usize) -> Option<World> {
    if !is_installed("etcdctl") {
        return None;
    }
    let group = Group::start(servers, &["--console", "off"]);
    let gateway = Gateway::start(&group.dir, &group.list(), &[]);
    let client = patient_client(group.addresses());
    Some(World { group, gateway, client })
}

/// A running etcdctl. Dropping it kills it.
struct Etcdctl {
    child: Child,
    lines: Receiver<String>,
}

impl World {
    fn etcdctl(&self, args: &[&str]) -> Etcdctl {
        let mut child = Command::new(program("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.gateway.address.to_string()])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Etcdctl { child, lines }
    }

    fn put(&self, key: &str, value: &str) -> i64 {
        self.client.put(key, value).unwrap().timestamp.0
    }
}

impl Etcdctl {
    fn expects(&self, lines: &[&str]) {
        for right in lines {
            let line = self.lines.recv_timeout(PATIENCE).expect("a line in time");
            assert_eq!(line, *right);
        }
    }

    fn types(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Etcdctl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn etcdctl_watches_keys_prefixes_and_the_past() {
    let Some(world) = start(1) else { return };
    let first = world.put("w/a", "1").to_string();
    world.client.del_keeping_history("w/a").unwrap();
    world.put("x", "elsewhere");
    let rev = format!("--rev={first}");
    let key = world.etcdctl(&["watch", "w/a", &rev]);
    key.expects(&["PUT", "w/a", "1", "DELETE", "w/a", ""]);
    let prefix = world.etcdctl(&["watch", "--prefix", "w/", &rev, "--prev-kv"]);
    prefix.expects(&["PUT", "w/a", "1", "DELETE", "w/a", "1", "w/a", ""]);
    world.put("w/b", "2");
    prefix.expects(&["PUT", "w/b", "2"]);
    world.put("w/b", "3");
    prefix.expects(&["PUT", "w/b", "2", "w/b", "3"]);
    world.put("w/a", "4");
    key.expects(&["PUT", "w/a", "4"]);
    let first = format!("--rev={}", world.put("c", "1"));
    let command =
        world.etcdctl(&["watch", "c", &first, "--", "sh", "-c", "echo ran $ETCD_WATCH_EVENT_TYPE"]);
    command.expects(&["PUT", "c", "1", "ran \"PUT\""]);
    world.client.del_keeping_history("c").unwrap();
    command.expects(&["DELETE", "c", "", "ran \"DELETE\""]);
}

#[test]
fn etcdctl_watches_several_keys_interactively_and_asks_for_progress() {
    let Some(world) = start(1) else { return };
    let first = world.put("a", "1");
    let mut etcdctl = world.etcdctl(&["watch", "-i"]);
    etcdctl.types(&format!("watch a --rev={first}"));
    etcdctl.expects(&["PUT", "a", "1"]);
    etcdctl.types(&format!("watch b --rev={first}"));
    let newest = world.put("b", "2");
    etcdctl.expects(&["PUT", "b", "2"]);
    etcdctl.types("progress");
    let line = etcdctl.lines.recv_timeout(PATIENCE).expect("a line in time");
    let told = line.strip_prefix("progress notify: ").expect("progress");
    assert!(told.parse::<i64>().unwrap() >= newest, "{line}");
    world.put("a", "3");
    // Each of its watches says how far it is.
    eventually("the next change", || {
        let line = etcdctl.lines.recv_timeout(PATIENCE).expect("a line in time");
        assert!(line.starts_with("progress notify: ") || line == "PUT", "{line}");
        (line == "PUT").then_some(())
    });
    etcdctl.expects(&["a", "3"]);
}

#[test]
fn etcdctl_watches_on_when_servers_are_killed() {
    let Some(mut world) = start(3) else { return };
    let first = world.put("k", "0");
    let etcdctl = world.etcdctl(&["watch", "k", &format!("--rev={first}")]);
    etcdctl.expects(&["PUT", "k", "0"]);
    for round in 0..3 {
        world.group.kill(round);
        let value = (round + 1).to_string();
        world.put("k", &value);
        etcdctl.expects(&["PUT", "k", &value]);
        world.group.start_server(round);
        world.group.wait_until_listening(round);
    }
}
