//! `acervo import` and `acervo export` as processes: between two groups, one of which is reached by
//! a gateway as an etcd is, and with a real etcd where one is installed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use acervo::client::{Client, KeyRange, ReadOptions};

use crate::etcd_process::{Etcd, is_installed};
use crate::support::gateway::Gateway;
use crate::support::{ACERVO, Group, PATIENCE, eventually, free_addresses};

const FLAGS: [&str; 2] = ["--console", "off"];

/// All keys of a group with their values, or those that begin so.
fn all(client: &Client, prefix: &str) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let newest = ReadOptions { linearizable: true, ..ReadOptions::default() };
    let rows = client.scan(KeyRange::prefix(prefix).unwrap(), newest);
    rows.map(|row| row.unwrap())
        .map(|row| (text(&row.key), text(row.value().unwrap_or_default())))
        .collect()
}

fn acervo(args: &[&str]) -> Output {
    Command::new(ACERVO).args(args).output().unwrap()
}

/// Runs it and returns its line.
fn line(args: &[&str]) -> String {
    let output = acervo(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A copy that goes on. Dropping it kills it.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(args: &[&str]) -> Following {
        let mut child = Command::new(ACERVO).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let following = Following { child, lines };
        assert!(following.next().starts_with("copied "));
        following
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line in time")
    }

    /// Waits until it says that it has followed up to this version.
    fn comes_to(&self, version: i64) {
        loop {
            let line = self.next();
            let at = line.rsplit(' ').next().and_then(|at| at.parse::<i64>().ok());
            if at.expect("the line ends with a version") >= version {
                return;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_keys_of_an_etcd_come_into_the_group_and_back() {
    let (from, to) = (Group::start(1, &FLAGS), Group::start(1, &FLAGS));
    let gateway = Gateway::start(&from.dir, &from.list(), &[]);
    let (source, target) = (from.client(), to.client());
    // More than a page, values of which two fit into a write, an empty one, and what is left out.
    for batch in 0..30 {
        let row = |at| (format!("many/{:04}", 100 * batch + at), format!("{batch}.{at}"));
        source.put_all((0..100).map(row)).unwrap();
    }
    (0..20).for_each(|at| {
        source.put(format!("long/{at:02}"), "v".repeat(100_000 + at)).unwrap();
    });
    source.put("other", "").unwrap();
    source.put("gone", "1").unwrap();
    source.del("gone").unwrap();
    let lease = source.lease(PATIENCE).unwrap();
    source.put_with_lease("leased", "1", lease.id()).unwrap();
    target.put("many/own", "stays").unwrap();

    let (etcd, group) = (gateway.address.to_string(), to.list());
    let import = ["import", "--from-etcd", &etcd, "--servers", &group];
    let copied = line(&[&import[..], &["--prefix", "many/"]].concat());
    assert!(copied.starts_with("copied 3000 keys as of "), "{copied}");
    assert!(copied.ends_with("; left out 0 with leases\n"), "{copied}");
    let mut expected = all(&source, "many/");
    expected.push(("many/own".into(), "stays".into()));
    assert!(all(&target, "") == expected);

    let json = line(&[&import[..], &["--json"]].concat());
    assert!(
        json.starts_with(r#"{"at":"#) && json.contains(r#""copied":3021,"leased":1"#),
        "{json}"
    );
    target.del("many/own").unwrap();
    let mut expected = all(&source, "");
    expected.retain(|(key, _)| key != "leased");
    assert!(all(&target, "") == expected);

    // And back, into an etcd that is empty.
    let third = Group::start(1, &FLAGS);
    let gateway = Gateway::start(&third.dir, &third.list(), &[]);
    let etcd = gateway.address.to_string();
    let copied = line(&["export", "--to-etcd", &etcd, "--servers", &group]);
    assert!(copied.starts_with("copied 3021 keys as of "), "{copied}");
    assert!(all(&third.client(), "") == expected);
}

/// The programs that write go over to the other end while the copy follows: what they write until
/// then is there, also where the etcd loses its servers meanwhile.
#[test]
fn a_copy_follows_what_is_written_meanwhile_also_over_a_gateway_that_is_killed() {
    let (from, to) = (Group::start(1, &FLAGS), Group::start(1, &FLAGS));
    let mut gateways = [(); 2].map(|()| Some(Gateway::start(&from.dir, &from.list(), &[])));
    let (source, target) = (from.client(), to.client());
    source.put_all([("k/1", "a"), ("k/2", "a"), ("k/3", "a")]).unwrap();
    source.put("other", "1").unwrap();
    let etcd = gateways.each_ref().map(|at| at.as_ref().unwrap().address.to_string()).join(",");
    let group = to.list();
    let import = ["import", "--from-etcd", &etcd, "--servers", &group, "--prefix", "k/"];
    let following = Following::start(&[&import[..], &["--follow"]].concat());
    assert_eq!(all(&target, "k/").len(), 3);

    source.put("k/1", "b").unwrap();
    source.del_keeping_history("k/2").unwrap();
    let lease = source.lease(PATIENCE).unwrap();
    source.put_with_lease("k/3", "leased", lease.id()).unwrap();
    following.comes_to(source.put("k/4", "b").unwrap().timestamp.0);
    let row = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(all(&target, ""), [row("k/1", "b"), row("k/4", "b")]);

    for at in 0..2 {
        gateways[at] = None;
        let written = source.put("k/5", format!("{at}")).unwrap().timestamp.0;
        if at == 1 {
            // With nobody to ask it waits, and somebody comes.
            let address = etcd.split(',').next().unwrap().parse::<SocketAddr>().unwrap();
            gateways[0] = Some(Gateway::start_at(address, &from.dir, &from.list(), &[]));
        }
        following.comes_to(written);
        let rows = [row("k/1", "b"), row("k/4", "b"), row("k/5", &at.to_string())];
        assert_eq!(all(&target, ""), rows);
    }

    // Back, while the other one is written.
    let export = ["export", "--to-etcd", &etcd, "--servers", &group, "--prefix", "k/", "--follow"];
    drop(following);
    let following = Following::start(&export);
    target.del_keeping_history("k/4").unwrap();
    following.comes_to(target.put("k/6", "back").unwrap().timestamp.0);
    let rows = [row("k/1", "b"), row("k/5", "1"), row("k/6", "back"), row("other", "1")];
    let copied = || {
        let found: Vec<_> = all(&source, "").into_iter().filter(|(key, _)| key != "k/3").collect();
        (found == rows).then_some(())
    };
    eventually("the etcd has it, too", copied);
}

#[test]
fn what_cannot_be_copied_is_said_in_one_sentence() {
    let group = Group::start(1, &FLAGS);
    let list = group.list();
    let [nobody] = free_addresses(1)[..] else { unreachable!("one was asked for") };
    let nobody = nobody.to_string();
    let fails = |etcd: &str, status: i32, sentence: &str| {
        let args = ["import", "--from-etcd", etcd, "--servers", &list, "--timeout", "1s"];
        let output = acervo(&args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(error.contains(sentence), "{error}");
    };
    fails(&nobody, 3, &format!("no answer from etcd at {nobody} for 1s"));
    fails("https://127.0.0.1:1", 2, "TLS is not supported");
    fails("etcd", 2, "write HOST:PORT");
    // A server of a group is none of etcd.
    fails(&group.addresses()[0].to_string(), 3, "no answer from etcd at ");
}

#[test]
fn a_real_etcd_is_copied_and_followed_in_both_directions() {
    if !is_installed("etcd") {
        return;
    }
    let etcd = Etcd::start();
    let (first, second) = (Group::start(1, &FLAGS), Group::start(1, &FLAGS));
    let (client, other) = (first.client(), second.client());
    let address = etcd.address.to_string();
    (0..20).for_each(|batch| {
        let row = |at| (format!("k/{batch:02}/{at:03}"), "v".repeat(batch * 100));
        client.put_all((0..200).map(row)).unwrap();
    });
    let (from, to) = (first.list(), second.list());
    let export = ["export", "--to-etcd", &address, "--servers", &from, "--follow"];
    let exporting = Following::start(&export);
    let import = ["import", "--from-etcd", &address, "--servers", &to, "--follow"];
    let importing = Following::start(&import);
    assert!(all(&client, "") == all(&other, ""));

    client.put_all([("k/00/000", "new"), ("z", "1")]).unwrap();
    client.del_keeping_history("k/00/001").unwrap();
    eventually("the changes come through both", || {
        (all(&client, "") == all(&other, "")).then_some(())
    });
    assert!(importing.next().starts_with("followed "));
    drop((exporting, importing));
}
