//! The one-shot commands against real servers: what they print, and with which status they exit.

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{ACERVO, Group, exited_with, free_addresses};

/// What a command left behind.
struct Ran {
    status: i32,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn json(&self) -> Value {
        assert!(self.text().ends_with("}\n"), "one object and a line end: {}", self.text());
        serde_json::from_slice(&self.out).unwrap()
    }

    /// The version that a write printed, and nothing else.
    fn version(&self) -> i64 {
        assert_eq!(self.status, 0, "{}", self.err);
        self.text().strip_suffix('\n').unwrap().parse().unwrap()
    }
}

/// Runs a command against the servers of a list.
fn run(servers: &str, arguments: &[&str]) -> Ran {
    run_with_input(servers, arguments, b"")
}

fn run_with_input(servers: &str, arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = Command::new(ACERVO)
        .args(arguments)
        .args(["--servers", servers])
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads what a command does not ask for.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Ran {
        status: output.status.code().expect("it ended by itself"),
        out: output.stdout,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn text_is_the_answer_and_nothing_else() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let missing = run(&servers, &["get", "title"]);
    assert_eq!((missing.status, missing.text()), (1, ""));
    assert_eq!(missing.err, "acervo: there is no key \"title\"\n");

    let first = run(&servers, &["put", "title", "Dom Casmurro"]).version();
    let put = run(&servers, &["put", "title", "Quincas Borba", "--print-session"]);
    let (second, token) = (put.version(), put.err.trim_end());
    assert!(second > first);
    for how in [&["--linearizable"][..], &["--session", token]] {
        let got = run(&servers, &[&["get", "title"], how].concat());
        assert_eq!((got.status, got.text(), got.err.as_str()), (0, "Quincas Borba\n", ""));
    }
    assert!(run(&servers, &["del", "title"]).version() > second);
    let gone = run(&servers, &["get", "title", "--linearizable"]);
    assert_eq!((gone.status, gone.text()), (1, ""));
    let again = run(&servers, &["del", "title"]);
    assert_eq!(again.status, 1);
    assert_eq!(again.err, "acervo: there is no key \"title\"\n");

    // A negative number is a value; an empty value is one too.
    run(&servers, &["put", "number", "-5"]).version();
    assert_eq!(run(&servers, &["get", "number", "--linearizable"]).text(), "-5\n");
    run(&servers, &["put", "number", ""]).version();
    let empty = run(&servers, &["get", "number", "--linearizable"]);
    assert_eq!((empty.status, empty.text()), (0, "\n"));
}

#[test]
fn json_is_one_object() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let check_server = |object: &Value| {
        let server = object["server"].as_str().unwrap();
        assert!(servers.split(',').any(|known| known == server), "{server}");
    };
    let put = run(&servers, &["put", "k", "v\"á", "--format", "json"]);
    assert_eq!(put.status, 0, "{}", put.err);
    let written = put.json();
    check_server(&written);
    let timestamp = written["timestamp"].as_i64().unwrap();
    let server = &written["server"];
    assert_eq!(
        written,
        json!({"key": "k", "found": true, "timestamp": timestamp, "server": server})
    );

    let got = run(&servers, &["get", "k", "--linearizable", "--format", "json"]).json();
    check_server(&got);
    let server = &got["server"];
    assert_eq!(
        got,
        json!({
            "key": "k", "found": true, "timestamp": timestamp, "server": server, "value": "v\"á"
        })
    );
    let missing = run(&servers, &["get", "nothing", "--format", "json"]);
    assert_eq!(missing.status, 1);
    let object = missing.json();
    let server = &object["server"];
    assert_eq!(
        object,
        json!({"key": "nothing", "found": false, "timestamp": 0, "server": server, "value": null})
    );
    let deleted = run(&servers, &["del", "k", "--format", "json"]);
    assert_eq!((deleted.status, &deleted.json()["found"]), (0, &json!(true)));
    let again = run(&servers, &["del", "k", "--format", "json"]);
    assert_eq!((again.status, &again.json()["found"]), (1, &json!(false)));
}

#[test]
fn a_value_from_standard_input_keeps_every_byte() {
    let group = Group::start(1, &["--console", "off"]);
    let servers = group.list();
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_eq!(run_with_input(&servers, &["put", "bytes", "-"], &value).status, 0);
    let got = run(&servers, &["get", "bytes"]);
    assert_eq!(got.status, 0);
    assert!(got.out.strip_suffix(b"\n") == Some(&value[..]), "{} bytes came back", got.out.len());

    assert_eq!(run_with_input(&servers, &["put", "bytes", "-"], b"\xff\x00a\n").status, 0);
    let got = run(&servers, &["get", "bytes", "--format", "json"]).json();
    assert_eq!((&got["value_hex"], got.get("value")), (&json!("ff00610a"), None));

    // More than the servers were told to take is refused, by them, for what it is.
    let large = vec![b'x'; acervo::limits::VALUE_BYTES_MAX_DEFAULT + 1];
    let refused = run_with_input(&servers, &["put", "bytes", "-"], &large);
    assert_eq!((refused.status, refused.text()), (2, ""));
    assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);
}

#[test]
fn a_session_is_handed_from_one_process_to_another() {
    // The last server stores what is replicated to it only after the end of this test.
    let mut group = Group::prepare(3, &["--console", "off", "--ack", "majority"]);
    group.start_server(0);
    group.start_server(1);
    group.start_server_with(2, &["--replication-delay", "1h"]);
    let (all, slow) = (group.list(), group.addresses()[2].to_string());
    let put = run(&all, &["put", "k", "v", "--print-session"]);
    let version = put.version();
    let token = put.err.strip_suffix('\n').unwrap();

    let without = run(&slow, &["get", "k"]);
    assert_eq!((without.status, without.text()), (1, ""), "it has not seen the write");
    let refused = run(&slow, &["get", "k", "--session", token, "--timeout", "2s"]);
    assert_eq!((refused.status, refused.text()), (3, ""));
    assert!(refused.err.contains("has not yet applied what this client has seen"));
    let other_key = run(&slow, &["get", "other", "--session", token, "--timeout", "2s"]);
    assert_eq!(other_key.status, 3, "the promise covers every key");

    let got = run(&all, &["get", "k", "--session", token, "--print-session"]);
    assert_eq!((got.status, got.text()), (0, "v\n"));
    assert_eq!(got.err.strip_suffix('\n'), Some(token), "nothing newer was seen");
    let newer = run(&all, &["put", "k", "w", "--session", token, "--print-session"]);
    assert!(newer.version() > version && newer.err.as_str() > put.err.as_str());

    let bad = run(&all, &["get", "k", "--session", "yesterday"]);
    assert_eq!(bad.status, 2);
    assert!(bad.err.starts_with("acervo: 'yesterday' is not a session token"), "{}", bad.err);
}

#[test]
fn what_is_used_wrongly_exits_2_and_what_is_not_there_exits_3() {
    let nobody = free_addresses(1)[0].to_string();
    let usages: [&[&str]; 6] = [
        &["put", "k"],
        &["get"],
        &["get", ""],
        &["put", "k", "v", "--format", "xml"],
        &["get", "k", "--timeout", "soon"],
        &["shelve", "k"],
    ];
    for arguments in usages {
        let ran = run(&nobody, arguments);
        assert_eq!((ran.status, ran.text()), (2, ""), "{arguments:?}");
        assert!(!ran.err.is_empty(), "{arguments:?} says why");
    }
    for servers in ["127.0.0.1", "127.0.0.1:0", &format!("{nobody},{nobody}")] {
        assert_eq!(run(servers, &["get", "k"]).status, 2, "{servers}");
    }
    for arguments in [&["put", "k", "v"][..], &["get", "k"], &["del", "k"]] {
        let ran = run(&nobody, &[arguments, &["--timeout", "200ms"]].concat());
        assert_eq!((ran.status, ran.text()), (3, ""), "{arguments:?}");
        assert!(ran.err.contains(&nobody), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
}

#[test]
fn without_a_majority_writes_exit_3_and_reads_go_on() {
    let mut group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    // Through the server that will be left, so that it is sure to have the write.
    let left = group.addresses()[1].to_string();
    run(&left, &["put", "k", "v"]).version();
    assert_eq!(run(&left, &["get", "k", "--linearizable"]).text(), "v\n");
    group.kill(0);
    group.kill(2);
    // Each takes as long as a server waits for a majority.
    std::thread::scope(|scope| {
        for arguments in [&["put", "k", "w"][..], &["del", "k"], &["get", "k", "--linearizable"]] {
            let servers = &servers;
            scope.spawn(move || {
                let ran = run(servers, arguments);
                assert_eq!((ran.status, ran.text()), (3, ""), "{arguments:?}");
                assert!(ran.err.contains("1 of 3 servers answer"), "{}", ran.err);
            });
        }
    });
    let got = run(&servers, &["get", "k"]);
    assert_eq!((got.status, got.text()), (0, "v\n"));
}

#[test]
fn status_describes_every_server() {
    let mut group = Group::start(3, &["--console", "off", "--in-sync-timeout", "60s"]);
    let servers = group.list();
    let version = run(&servers, &["put", "k", "v"]).version();
    let status = run(&servers, &["status"]);
    assert_eq!(status.status, 0, "{}", status.err);
    let rows: Vec<Vec<&str>> =
        status.text().lines().map(|line| line.split_whitespace().collect()).collect();
    let header =
        ["address", "role", "term", "commit", "applied", "in", "sync", "connections", "uptime"];
    assert_eq!(rows[0], header);
    let names: Vec<String> = group.addresses().iter().map(|a| a.to_string()).collect();
    for (row, (name, role)) in
        rows[1..].iter().zip(names.iter().zip(["leader", "follower", "follower"]))
    {
        assert_eq!((row[0], row[1], row[5]), (name.as_str(), role, "yes"), "{row:?}");
    }
    assert_eq!(rows.len(), 4);

    let object = run(&servers, &["status", "--format", "json"]).json();
    let described = object["servers"].as_array().unwrap();
    assert_eq!(described.len(), 3);
    let leader = &described[0];
    assert_eq!(leader["role"], "leader");
    assert_eq!(leader["in_sync"], json!(names));
    assert_eq!(leader["applied_timestamp"], json!(version));
    for (number, (server, name)) in (1..).zip(described.iter().zip(&names)) {
        assert_eq!(server["address"], json!(name));
        assert_eq!(server["node"], json!(number));
        assert_eq!(server["leader"], json!(names[0]));
        assert_eq!(server["term"], leader["term"]);
        assert_eq!(server["cluster"], leader["cluster"]);
        assert_eq!(server["version"], json!(env!("CARGO_PKG_VERSION")));
        for field in ["commit", "applied", "last_index", "client_connections", "uptime_ms"] {
            assert!(server[field].is_u64(), "{field}: {server}");
        }
    }

    group.kill(2);
    let object = run(&servers, &["status", "--format", "json"]);
    assert_eq!(object.status, 0, "who is there answers");
    assert_eq!(
        object.json()["servers"][2],
        json!({"address": names[2], "role": "unreachable", "reason": "connection refused"})
    );
    let table = run(&servers, &["status"]);
    let last = table.text().lines().last().unwrap();
    assert_eq!(last.split_once(' ').unwrap().1.trim_start(), "unreachable: connection refused");

    assert!(exited_with(group.terminate(1), 0));
    group.kill(0);
    let nobody = run(&servers, &["status"]);
    assert_eq!(nobody.status, 3);
    assert_eq!(nobody.text().matches("unreachable").count(), 3);
}
