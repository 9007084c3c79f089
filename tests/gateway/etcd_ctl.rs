//! `etcdctl` as it is, against the gateway: and against a real etcd beside it, where one is
//! installed, which has to print the same.
//!
//! What differs by nature is mapped before it is compared: revisions to their rank among those of
//! the whole run, ids of leases to the order in which they came, times to a letter.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::etcd_process::{Etcd, is_installed, program};
use crate::support::Group;
use crate::support::gateway::Gateway;

/// One command, what goes to its standard input, and how its output is compared.
struct Line {
    args: &'static [&'static str],
    input: &'static str,
    shown: Shown,
}

#[derive(Clone, Copy, PartialEq)]
enum Shown {
    /// As it is, but for ids of leases and times.
    Text,
    /// Rows of JSON: keys, values, versions, counts, and revisions by their rank.
    Rows,
    /// Only whether it succeeds.
    Status,
}

const fn text(args: &'static [&'static str]) -> Line {
    Line { args, input: "", shown: Shown::Text }
}

const fn rows(args: &'static [&'static str]) -> Line {
    Line { args, input: "", shown: Shown::Rows }
}

const fn status(args: &'static [&'static str]) -> Line {
    Line { args, input: "", shown: Shown::Status }
}

const fn txn(input: &'static str) -> Line {
    Line { args: &["txn"], input, shown: Shown::Text }
}

/// `LEASE` stands for the id of the lease that was granted last.
const SCRIPT: &[Line] = &[
    text(&["put", "a", "1"]),
    text(&["put", "b", "2"]),
    text(&["put", "a", "3", "--prev-kv"]),
    text(&["get", "a"]),
    text(&["get", "a", "--print-value-only"]),
    text(&["get", "nothing"]),
    text(&["get", "", "--prefix"]),
    text(&["get", "a", "c"]),
    text(&["get", "b", "--from-key"]),
    text(&["get", "", "--prefix", "--keys-only"]),
    text(&["get", "", "--prefix", "--limit=1"]),
    text(&["get", "", "--prefix", "--sort-by=MODIFY", "--order=DESCEND"]),
    text(&["get", "", "--prefix", "--consistency=s"]),
    rows(&["get", "", "--prefix", "-w", "json"]),
    rows(&["get", "", "--prefix", "-w", "json", "--limit=1"]),
    text(&["put", "a", "--ignore-value", ""]),
    text(&["get", "a", "--rev=9007199254740000"]),
    text(&["put", "c", "x", "--lease=4711"]),
    text(&["put", "", "x"]),
    txn("value(\"a\") = \"3\"\n\nput t yes\nget a\n\nput t no\n\n"),
    txn("version(\"a\") > \"9\"\n\nput t yes\n\nput t no\nget t\n\n"),
    txn("\nput d 1\nput d 2\n\n\n"),
    text(&["del", "t"]),
    text(&["del", "t"]),
    text(&["put", "p/1", "x"]),
    text(&["put", "p/2", "y"]),
    text(&["del", "p/", "--prefix", "--prev-kv"]),
    rows(&["get", "", "--prefix", "-w", "json"]),
    text(&["lease", "grant", "100"]),
    text(&["put", "leased", "v", "--lease=LEASE"]),
    text(&["lease", "timetolive", "LEASE", "--keys"]),
    text(&["lease", "list"]),
    text(&["lease", "keep-alive", "--once", "LEASE"]),
    text(&["lease", "revoke", "LEASE"]),
    text(&["lease", "revoke", "LEASE"]),
    text(&["lease", "timetolive", "LEASE"]),
    text(&["get", "leased"]),
    status(&["member", "list"]),
    status(&["endpoint", "status"]),
    status(&["endpoint", "health"]),
    text(&["lock", "m", "echo", "held"]),
    status(&["endpoint", "hashkv"]),
    text(&["alarm", "list"]),
    text(&["alarm", "disarm"]),
    status(&["defrag"]),
    text(&["user", "list"]),
    text(&["auth", "enable"]),
];

/// Where `etcdctl` is asked, and what it has told so far.
struct Side {
    endpoint: SocketAddr,
    lease: String,
}

impl Side {
    fn etcdctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("etcdctl"));
        // Without a scheme: with one, etcdctl 3.4 puts it into its requests' authority, which is
        // none then, and the transport here refuses it.
        let endpoint = format!("--endpoints={}", self.endpoint);
        command.env("ETCDCTL_API", "3").arg(endpoint).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a line; what it has printed, and whether it succeeded.
    fn run(&mut self, line: &Line) -> (String, bool) {
        let lease = self.lease.clone();
        let args: Vec<String> = line.args.iter().map(|arg| arg.replace("LEASE", &lease)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = self.etcdctl(&args).spawn().unwrap();
        child.stdin.take().unwrap().write_all(line.input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(granted) = printed.strip_prefix("lease ")
            && printed.contains(" granted")
        {
            self.lease = granted.split(' ').next().unwrap().to_owned();
        }
        // Of an error the sentence counts, not where in the program it came up.
        printed += &errors(&String::from_utf8_lossy(&output.stderr));
        if !self.lease.is_empty() {
            printed = printed.replace(&self.lease, "LEASE");
        }
        (printed, output.status.success())
    }
}

/// The last line of what was said on standard error: its sentence, and not where it came up.
fn errors(text: &str) -> String {
    let last = text.lines().rfind(|line| line.starts_with("Error:"));
    last.map_or_else(String::new, |line| format!("{line}\n"))
}

/// Takes seconds that pass out of a line about leases.
fn without_times(printed: &str) -> String {
    match printed.split_once("remaining(") {
        Some((before, rest)) => {
            let after = rest.split_once(')').map_or("", |(_, after)| after);
            format!("{before}remaining(N){after}")
        }
        None => printed.to_owned(),
    }
}

/// The rows of an answer in JSON, and the revisions that it names.
fn json_rows(printed: &str) -> (Vec<BTreeMap<String, String>>, BTreeSet<i64>) {
    let answer: serde_json::Value = serde_json::from_str(printed).expect(printed);
    let mut revisions = BTreeSet::new();
    let rows = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice).iter().map(|row| {
        let fields = row.as_object().unwrap().iter();
        fields
            .map(|(name, value)| {
                if name.ends_with("_revision") {
                    revisions.insert(value.as_i64().unwrap());
                }
                (name.clone(), value.to_string())
            })
            .collect()
    });
    let mut rows: Vec<BTreeMap<String, String>> = rows.collect();
    let of_all = ["count", "more"].map(|name| (name.to_owned(), answer[name].to_string()));
    rows.push(of_all.into_iter().collect());
    (rows, revisions)
}

/// What the script prints, made comparable.
fn transcript(endpoint: SocketAddr) -> Vec<String> {
    let mut side = Side { endpoint, lease: String::new() };
    let mut all = Vec::new();
    let (mut tables, mut revisions) = (Vec::new(), BTreeSet::new());
    for line in SCRIPT {
        let (printed, succeeded) = side.run(line);
        let head = format!("etcdctl {} -> {succeeded}\n", line.args.join(" "));
        match line.shown {
            Shown::Text => all.push(head + &without_times(&printed)),
            Shown::Status => all.push(head),
            Shown::Rows => {
                let (rows, named) = json_rows(&printed);
                revisions.extend(named);
                tables.push((all.len(), rows));
                all.push(head);
            }
        }
    }
    let ranks: BTreeMap<String, usize> =
        revisions.iter().enumerate().map(|(rank, at)| (at.to_string(), rank)).collect();
    for (at, rows) in tables {
        for row in rows {
            let fields = row.into_iter().map(|(name, value)| match ranks.get(&value) {
                Some(rank) if name.ends_with("_revision") => format!(" {name}=#{rank}"),
                _ => format!(" {name}={value}"),
            });
            all[at] += &(fields.collect::<String>() + "\n");
        }
    }
    all
}

#[test]
fn etcdctl_prints_what_it_prints_with_etcd() {
    if !is_installed("etcdctl") {
        return;
    }
    let group = Group::start(3, &["--console", "off"]);
    let gateway = Gateway::start(&group.dir, &group.list(), &[]);
    let ours = transcript(gateway.address);
    assert!(ours[0].ends_with("true\nOK\n"), "{}", ours[0]);
    if !is_installed("etcd") {
        return;
    }
    let etcd = Etcd::start();
    let theirs = transcript(etcd.address);
    let differences: Vec<String> = std::iter::zip(&ours, &theirs)
        .filter(|(ours, theirs)| ours != theirs)
        .map(|(ours, theirs)| format!("with Acervo: {ours}with etcd: {theirs}"))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
