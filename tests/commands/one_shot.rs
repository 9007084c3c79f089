//! The one-shot commands against real servers: what they print, and with which status they exit.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fake_server::{FakeServer, error, write_ok};
use crate::support::terminal::Terminal;
use crate::support::{ACERVO, Group, eventually, exited_with, free_addresses};

/// What a command left behind.
pub struct Ran {
    pub status: i32,
    out: Vec<u8>,
    pub err: String,
}

impl Ran {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    /// Lines cut at their tabs.
    pub fn rows(&self) -> Vec<Vec<&str>> {
        self.text().lines().map(|line| line.split('\t').collect()).collect()
    }

    fn objects(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn json(&self) -> Value {
        assert!(self.text().ends_with("}\n"), "one object and a line end: {}", self.text());
        serde_json::from_slice(&self.out).unwrap()
    }

    /// The version that a write printed, and nothing else.
    pub fn version(&self) -> i64 {
        assert_eq!(self.status, 0, "{}", self.err);
        self.text().strip_suffix('\n').unwrap().parse().unwrap()
    }
}

/// Runs a command against the servers of a list.
pub fn run(servers: &str, arguments: &[&str]) -> Ran {
    run_with_input(servers, arguments, b"")
}

/// Runs a command that finds what it looks for and does what it is to; what it printed.
fn done(servers: &str, arguments: &[&str]) -> String {
    let ran = run(servers, arguments);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{arguments:?}");
    ran.text().to_owned()
}

fn run_with_input(servers: &str, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Ran {
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
    for how in [&[][..], &["--session", token]] {
        let got = run(&servers, &[&["get", "title"], how].concat());
        assert_eq!((got.status, got.text(), got.err.as_str()), (0, "Quincas Borba", ""));
    }
    assert!(run(&servers, &["del", "title"]).version() > second);
    let gone = run(&servers, &["get", "title"]);
    assert_eq!((gone.status, gone.text()), (1, ""));
    let again = run(&servers, &["del", "title"]);
    assert_eq!(again.status, 1);
    assert_eq!(again.err, "acervo: there is no key \"title\"\n");

    // A negative number is a value; an empty value is one too.
    run(&servers, &["put", "number", "-5"]).version();
    assert_eq!(run(&servers, &["get", "number"]).text(), "-5");
    run(&servers, &["put", "number", ""]).version();
    let empty = run(&servers, &["get", "number"]);
    assert_eq!((empty.status, empty.text()), (0, ""));
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
        json!({
            "key": "k", "found": false, "timestamp": timestamp, "server": server,
            "old_timestamp": 0, "old_value": null
        })
    );
    let again = run(&servers, &["put", "k", "v\"á", "--format", "json"]).json();
    assert_eq!((&again["old_timestamp"], &again["old_value"]), (&json!(timestamp), &json!("v\"á")));
    let (created, timestamp) = (timestamp, again["timestamp"].as_i64().unwrap());

    let got = run(&servers, &["get", "k", "--format", "json"]).json();
    check_server(&got);
    let server = &got["server"];
    assert_eq!(
        got,
        json!({
            "key": "k", "found": true, "timestamp": timestamp, "server": server,
            "created": created, "count": 2, "lease": 0, "value": "v\"á"
        })
    );
    let missing = run(&servers, &["get", "nothing", "--format", "json"]);
    assert_eq!(missing.status, 1);
    let object = missing.json();
    let server = &object["server"];
    assert_eq!(
        object,
        json!({
            "key": "nothing", "found": false, "timestamp": 0, "server": server,
            "created": 0, "count": 0, "lease": 0, "value": null
        })
    );
    let deleted = run(&servers, &["del", "k", "--format", "json"]);
    assert_eq!((deleted.status, &deleted.json()["found"]), (0, &json!(true)));
    let deleted = deleted.json();
    assert!(deleted["timestamp"].as_i64().unwrap() > timestamp, "of the deletion");
    assert_eq!(deleted["old_timestamp"], json!(timestamp));
    assert_eq!(deleted["old_value"], "v\"á");
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
    assert!(got.out == value, "{} bytes came back", got.out.len());

    // What it replaces is told, however long.
    let put = run_with_input(&servers, &["put", "bytes", "-", "--format", "json"], b"\xff\x00a\n");
    let old = put.json();
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(old["old_value_hex"] == json!(hex), "{}", old["old_timestamp"]);
    let got = run(&servers, &["get", "bytes", "--format", "json"]).json();
    assert_eq!((&got["value_hex"], got.get("value")), (&json!("ff00610a"), None));

    // More than the servers were told to take is refused, by them, for what it is.
    let large = vec![b'x'; acervo::limits::VALUE_BYTES_MAX_DEFAULT + 1];
    let refused = run_with_input(&servers, &["put", "bytes", "-"], &large);
    assert_eq!((refused.status, refused.text()), (2, ""));
    assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);
}

#[test]
fn the_past_of_a_key() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let versions: Vec<i64> = ["Helena", "Iaiá Garcia", "tab\tend"]
        .iter()
        .map(|title| run(&servers, &["put", "title", title]).version())
        .collect();
    let at = |at: &str| run(&servers, &["get", "title", "--at", at]);
    assert_eq!(at(&versions[0].to_string()).text(), "Helena");
    assert_eq!(at(&(versions[1] - 1).to_string()).text(), "Helena");
    assert_eq!(at(&versions[1].to_string()).text(), "Iaiá Garcia");
    let before = at(&(versions[0] - 1).to_string());
    assert_eq!((before.status, before.text()), (1, ""));
    assert!(before.err.contains("its oldest version is"), "{}", before.err);
    // A version of zero or less is the newest, and so is one that lies in the future.
    for newest in ["0", "-1", &i64::MAX.to_string(), "2999-12-31T23:59:59-03:00"] {
        assert_eq!(at(newest).text(), "tab\tend", "{newest}");
    }
    assert_eq!(at("now").text(), "tab\tend");
    assert_eq!(at("1d ago").status, 1);
    let missing = run(&servers, &["get", "nothing", "--at", "5", "--format", "json"]).json();
    assert_eq!((&missing["timestamp"], &missing["at"]), (&json!(5), &json!(5)));

    let history = run(&servers, &["history", "title"]);
    let (rows, newest_first) = (history.rows(), versions.iter().rev());
    assert_eq!(rows.len(), 3);
    for ((row, version), value) in
        rows.iter().zip(newest_first).zip([r"tab\x09end", "Iaiá Garcia", "Helena"])
    {
        assert_eq!((row[0], row[2]), (version.to_string().as_str(), value));
        // Its time is a time that --at takes, and means the version.
        let then = at(row[1]);
        assert_eq!(then.text().trim_end().replace('\t', r"\x09"), value, "{}", row[1]);
    }
    let then = run(&servers, &["history", "title", "--at", &versions[1].to_string()]);
    assert_eq!(then.rows()[0][2], "Iaiá Garcia");
    let objects = run(&servers, &["history", "title", "--format", "json"]).objects();
    let (time, version) = (rows[0][1], versions[2]);
    assert_eq!(
        objects[0],
        json!({
            "key": "title", "found": true, "timestamp": version, "time": time,
            "created": versions[0], "count": 3, "lease": 0, "value": "tab\tend"
        })
    );

    // Trimmed away is not found, and the newest is told.
    assert_eq!(run(&servers, &["trim", "title"]).version(), version);
    assert_eq!(at(&versions[0].to_string()).status, 1);
    assert_eq!(done(&servers, &["history", "title"]).lines().count(), 1);
    let trimmed = run(&servers, &["trim", "title", "--format", "json"]).json();
    assert_eq!((&trimmed["timestamp"], &trimmed["value"]), (&json!(version), &json!("tab\tend")));
    for command in ["trim", "history"] {
        let missing = run(&servers, &[command, "nothing"]);
        assert_eq!((missing.status, missing.text()), (1, ""));
        assert_eq!(missing.err, "acervo: there is no key \"nothing\"\n");
    }
    run(&servers, &["del", "title"]).version();
    assert_eq!(at(&version.to_string()).status, 1, "a deletion removes every version");
}

#[test]
fn many_keys_at_once() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let put = run(&servers, &["putall", "b=2", "a=1=1", "empty="]);
    let rows = put.rows();
    let version = rows[0][1];
    let expected = [["b", version, "0", ""], ["a", version, "0", ""], ["empty", version, "0", ""]];
    assert_eq!(rows, expected, "a row a pair, in the order given");

    // Ranges are in the order of keys, lists in the order asked for.
    let range = run(&servers, &["getrange", "a", "b"]);
    assert_eq!(range.rows(), [["a", version, "1=1"], ["b", version, "2"]]);
    let listed = run(&servers, &["getall", "nothing", "empty", "a", "a"]);
    assert_eq!(listed.status, 0, "what is not there is no error");
    assert_eq!(
        listed.rows(),
        [
            ["nothing", "0", ""],
            ["empty", version, ""],
            ["a", version, "1=1"],
            ["a", version, "1=1"]
        ]
    );
    assert_eq!(done(&servers, &["getrange", "b", "a"]), "", "the wrong way round is empty");
    assert_eq!(done(&servers, &["getrange", "x", "y"]), "");

    let stamp: i64 = version.parse().unwrap();
    let later = run(&servers, &["putall", "a=3", "--format", "json"]).objects();
    let newer = later[0]["timestamp"].as_i64().unwrap();
    assert_eq!(
        later,
        [json!({
            "key": "a", "found": true, "timestamp": newer,
            "old_timestamp": stamp, "old_value": "1=1"
        })]
    );
    let then = ["--at", version, "--format", "json"];
    let range = run(&servers, &[&["getrange", "a", "b"], &then[..]].concat()).objects();
    let object = |key: &str, timestamp: i64, value: Value| {
        let found = !value.is_null();
        let (created, count) = if found { (stamp, 1) } else { (0, 0) };
        json!({
            "key": key, "found": found, "timestamp": timestamp, "value": value, "at": stamp,
            "created": created, "count": count, "lease": 0
        })
    };
    let expected = [object("a", stamp, json!("1=1")), object("b", stamp, json!("2"))];
    assert_eq!(range, expected);
    let listed = run(&servers, &[&["getall", "b", "c"], &then[..]].concat()).objects();
    assert_eq!(listed, [object("b", stamp, json!("2")), object("c", stamp, Value::Null)]);

    let removed = run(&servers, &["delall", "c", "a"]);
    let at = removed.rows()[0][1];
    assert!(at.parse::<i64>().unwrap() > newer);
    assert_eq!(removed.rows(), [["c", at, "0", ""], ["a", at, &newer.to_string(), "3"]]);
    let removed = run(&servers, &["delrange", "a", "z", "--format", "json"]).objects();
    let at = removed[0]["timestamp"].as_i64().unwrap();
    let object = |key: &str, value: &str| {
        json!({
            "key": key, "found": true, "timestamp": at, "old_timestamp": stamp, "old_value": value
        })
    };
    assert_eq!(removed, [object("b", "2"), object("empty", "")]);
    assert_eq!(done(&servers, &["delrange", "a", "z"]), "");
    assert_eq!(done(&servers, &["getrange", "a", "z"]), "");
}

#[test]
fn keys_and_values_of_any_bytes() {
    let group = Group::start(1, &["--console", "off"]);
    let servers = group.list();
    let key = OsStr::from_bytes(b"k\xff,;:!");
    let put = [OsStr::new("put"), key, OsStr::from_bytes(b"v\xfe")];
    assert_eq!(run_with_input(&servers, &put, b"").status, 0);
    assert_eq!(run_with_input(&servers, &[OsStr::new("get"), key], b"").out, b"v\xfe");

    // As ranges print it, it can be given back.
    run(&servers, &["put", "--escaped", r"nul\x00\\x41", r"line\x0aend"]).version();
    let range = run(&servers, &["getrange", "--escaped", r"\x00", r"\xff"]);
    let columns: Vec<_> = range.rows().iter().map(|row| [row[0], row[2]]).collect();
    assert_eq!(columns, [[r"k\xff,;:!", r"v\xfe"], [r"nul\x00\\x41", r"line\x0aend"]]);
    for [key, value] in &columns {
        let row = run(&servers, &["getall", "--escaped", key]);
        assert_eq!(row.rows()[0], [key, row.rows()[0][1], value]);
    }
    assert_eq!(run(&servers, &["get", r"nul\x00\\x41"]).status, 1, "unescaped it is another key");
    let missing = run(&servers, &["get", "--escaped", r"\x1b"]);
    assert_eq!(missing.err, "acervo: there is no key \"\\x1b\"\n");

    let json = run(&servers, &["getrange", "--escaped", r"\x00", r"\xff", "--format", "json"]);
    let objects = json.objects();
    assert_eq!(
        (&objects[0]["key_hex"], &objects[0]["value_hex"]),
        (&json!("6bff2c3b3a21"), &json!("76fe"))
    );
    assert_eq!(
        (&objects[1]["key"], &objects[1]["value"]),
        (&json!("nul\0\\x41"), &json!("line\nend"))
    );

    // The rows of one group are the pairs of another, and the keys of a list.
    let keys: Vec<u8> =
        columns.iter().flat_map(|[key, _]| format!("{key}\n").into_bytes()).collect();
    let removed = run_with_input(&servers, &["delall", "--escaped", "-"], &keys);
    assert_eq!(removed.rows().len(), 2);
    assert_eq!(done(&servers, &["getrange", "--escaped", r"\x00", r"\xff"]), "");
    let put = run_with_input(&servers, &["putall", "more=1", "-"], json.text().as_bytes());
    assert_eq!((put.status, put.rows().len()), (0, 3));
    let again = run_with_input(&servers, &["getall", "--escaped", "-", "more"], &keys);
    let values: Vec<_> = again.rows().iter().map(|row| row[2]).collect();
    assert_eq!(values, [r"v\xfe", r"line\x0aend", "1"]);

    let bad = run_with_input(&servers, &["putall", "-"], b"{\"key\":\"k\",\"value\":\"v\"}\nk=v\n");
    assert_eq!((bad.status, bad.text()), (2, ""));
    assert!(bad.err.starts_with("acervo: line 2 of standard input is not a pair"), "{}", bad.err);
    assert_eq!(run(&servers, &["get", "k"]).status, 1, "nothing of it was written");
}

#[test]
fn a_long_range_streams_and_ends_without_a_word_when_its_pipe_is_closed() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    // Several pages, and far more than a pipe holds.
    let pairs: String = (0..3_000)
        .map(|number| format!("{{\"key\":\"k{number:05}\",\"value\":\"{}\"}}\n", "v".repeat(500)))
        .collect();
    let put = run_with_input(&servers, &["putall", "-"], pairs.as_bytes());
    assert_eq!((put.status, put.text().lines().count()), (0, 3_000), "{}", put.err);
    let version = put.rows()[0][1].to_owned();

    let mut child = Command::new(ACERVO)
        .args(["getrange", "k", "l", "--at", &version, "--servers", &servers])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("k00000\t"));
    // What is removed while the range is being printed is still in it.
    let removed = run(&servers, &["delrange", "k00100", "l"]);
    assert_eq!(removed.rows().len(), 2_900);
    assert!(lines.by_ref().take(2_000).all(|line| line.unwrap().ends_with('v')));
    drop(lines);
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    // As `cat` does.
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(Signal::PIPE.as_raw()));
    assert_eq!(err, "");
    assert_eq!(done(&servers, &["getrange", "k", "l"]).lines().count(), 100);
}

/// A group whose last server stores what is replicated to it late, and is not waited for.
fn with_a_late_server(delay: &str) -> Group {
    Group::start_with_a_late_server(&["--console", "off", "--ack", "majority"], delay)
}

#[test]
fn a_session_is_handed_from_one_process_to_another() {
    // The last server stores what is replicated to it only after the end of this test.
    let group = with_a_late_server("1h");
    let (all, slow) = (group.list(), group.addresses()[2].to_string());
    let put = run(&all, &["put", "k", "v", "--print-session"]);
    let version = put.version();
    let token = put.err.strip_suffix('\n').unwrap();

    let without = run(&slow, &["get", "k", "--serializable"]);
    assert_eq!((without.status, without.text()), (1, ""), "it has not seen the write");
    let refused = run(&slow, &["get", "k", "--session", token, "--timeout", "2s"]);
    assert_eq!((refused.status, refused.text()), (3, ""));
    assert!(refused.err.contains("has not yet applied what this client has seen"));
    let other_key = run(&slow, &["get", "other", "--session", token, "--timeout", "2s"]);
    assert_eq!(other_key.status, 3, "the promise covers every key");

    let got = run(&all, &["get", "k", "--session", token, "--print-session"]);
    assert_eq!((got.status, got.text()), (0, "v"));
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
    let usages: [&[&str]; 22] = [
        &["put", "k"],
        &["get"],
        &["get", ""],
        &["put", "k", "v", "--format", "xml"],
        &["get", "k", "--timeout", "soon"],
        &["shelve", "k"],
        &["getrange", "a"],
        &["getrange", "", "z"],
        &["getall"],
        &["getall", "a", ""],
        &["putall"],
        &["putall", "a=1", "b"],
        &["putall", "=1"],
        &["delall", "a", ""],
        &["trim", ""],
        &["get", "k", "--at", "yesterday"],
        &["history", "k", "--at", "1969-12-31T23:59:59Z"],
        &["set-history"],
        &["set-history", "0"],
        &["set-history", "soon"],
        &["compact"],
        &["compact", "yesterday"],
    ];
    for arguments in usages {
        let ran = run(&nobody, arguments);
        assert_eq!((ran.status, ran.text()), (2, ""), "{arguments:?}");
        assert!(!ran.err.is_empty(), "{arguments:?} says why");
    }
    for servers in ["127.0.0.1", "127.0.0.1:0", &format!("{nobody},{nobody}")] {
        assert_eq!(run(servers, &["get", "k"]).status, 2, "{servers}");
    }
    let commands: [&[&str]; 14] = [
        &["put", "k", "v"],
        &["get", "k"],
        &["get", "k", "--at", "10m ago"],
        &["del", "k"],
        &["getrange", "a", "z"],
        &["getrange", "a", "z", "--at", "now"],
        &["getall", "k"],
        &["putall", "k=v"],
        &["delrange", "a", "z"],
        &["delall", "k"],
        &["trim", "k"],
        &["history", "k"],
        &["set-history", "24h"],
        &["compact", "now"],
    ];
    for arguments in commands {
        let ran = run(&nobody, &[arguments, &["--timeout", "200ms"]].concat());
        assert_eq!((ran.status, ran.text()), (3, ""), "{arguments:?}");
        assert!(ran.err.contains(&nobody), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
}

#[test]
fn the_history_is_changed_for_the_whole_group() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let written = run(&servers, &["put", "k", "v"]).version();
    let set = run(&servers, &["set-history", "24h"]).version();
    assert!(set > written);
    let status = eventually("every server has heard of it", || {
        let status = run(&servers, &["status", "--format", "json"]).json();
        let servers = status["servers"].as_array().unwrap().clone();
        servers.iter().all(|server| server["history"] == json!("1d")).then_some(servers)
    });
    assert_eq!(status.len(), 3);
    let told = done(&servers, &["status"]);
    assert!(told.contains("\nthe group keeps a history of 1d\n"), "{told}");
    let object = run(&servers, &["set-history", "all", "--format", "json"]).json();
    assert!(object["version"].as_i64().unwrap() > set);
}

#[test]
fn a_long_range_is_deleted_at_once_and_keeps_its_history() {
    const KEYS: usize = 20_000;
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let pairs: String =
        (0..KEYS).map(|key| format!("{{\"key\":\"k{key:05}\",\"value\":\"v\"}}\n")).collect();
    let put = run_with_input(&servers, &["putall", "-"], pairs.as_bytes());
    assert_eq!((put.status, put.text().lines().count()), (0, KEYS), "{}", put.err);
    let version = put.rows()[0][1].to_owned();
    let after = (version.parse::<i64>().unwrap() + 1).to_string();
    let mut watch = Command::new(ACERVO)
        .args(["watch", "--prefix", "k", "--limit", &KEYS.to_string(), "--from", &after])
        .args(["--servers", &servers])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let removed = run(&servers, &["delrange", "--prefix", "k", "--keep-history"]);
    assert_eq!((removed.status, removed.rows().len()), (0, KEYS), "{}", removed.err);
    let at = removed.rows()[0][1].to_owned();
    assert!(removed.rows().iter().all(|row| row[1..] == [&at[..], &version, "v"]));
    assert_eq!(run(&servers, &["getrange", "..", "..", "--count"]).text(), "0\n");
    let past = run(&servers, &["getrange", "..", "..", "--count", "--at", &version]);
    assert_eq!(past.text(), format!("{KEYS}\n"));
    let mut shown = String::new();
    watch.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert_eq!(shown.lines().count(), KEYS, "a watch is shown each deletion");
    assert!(shown.lines().all(|line| line.contains(&at)), "all of one version");
    assert!(watch.wait().unwrap().success());
    // The same in a transaction, which tells how many there were.
    assert_eq!(run_with_input(&servers, &["putall", "-"], pairs.as_bytes()).status, 0);
    let txn = run_with_input(&servers, &["txn"], b"then delrange prefix k keeping history");
    assert_eq!(txn.status, 0, "{}", txn.err);
    assert!(txn.text().contains(&format!("count\t{KEYS}")), "{}", txn.text());
}

#[test]
fn reads_below_what_was_compacted_exit_2_and_all_others_go_on() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let written: Vec<i64> =
        ["u", "v", "w"].map(|value| run(&servers, &["put", "k", value]).version()).into();
    let [first, second] = [0, 1].map(|which: usize| written[which].to_string());
    assert_eq!(run(&servers, &["get", "k", "--at", &first]).text(), "u");
    let done = run(&servers, &["compact", &second, "--format", "json"]).json();
    assert!(done["version"].as_i64().unwrap() > written[2]);
    for address in group.addresses() {
        let server = address.to_string();
        for arguments in [
            &["get", "k", "--at", &first][..],
            &["getrange", "a", "z", "--at", &first],
            &["getall", "k", "--at", &first],
            &["get", "k", "--at", &first, "--serializable"],
        ] {
            // One that lags answers until it has caught up.
            let ran = eventually("every server refuses what is below", || {
                let ran = run(&server, arguments);
                (ran.status != 0).then_some(ran)
            });
            assert_eq!((ran.status, ran.text()), (2, ""), "{arguments:?}");
            let told = format!("what there was before version {second} has been compacted");
            assert!(ran.err.contains(&told), "{}", ran.err);
        }
        assert_eq!(run(&server, &["get", "k", "--at", &second]).text(), "v");
        assert_eq!(run(&server, &["get", "k"]).text(), "w");
    }
    // An earlier one changes nothing.
    assert_eq!(run(&servers, &["compact", &first]).status, 0);
    assert_eq!(run(&servers, &["get", "k", "--at", &second]).text(), "v");
    assert_eq!(run(&servers, &["compact", "now"]).status, 0);
    eventually("nobody reads the past any more", || {
        (run(&servers, &["get", "k", "--at", &second]).status == 2).then_some(())
    });
    assert_eq!(run(&servers, &["get", "k"]).text(), "w");
    let nothing = run(&servers, &["compact", "0"]);
    assert_eq!(nothing.status, 2);
    assert!(nothing.err.contains("name a version"), "{}", nothing.err);
}

#[test]
fn without_a_majority_writes_exit_3_and_reads_go_on() {
    let mut group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    // Through the server that will be left, so that it is sure to have the write.
    let left = group.addresses()[1].to_string();
    let version = run(&left, &["put", "k", "v"]).version();
    assert_eq!(run(&left, &["get", "k"]).text(), "v");
    group.kill(0);
    group.kill(2);
    // Each takes as long as a server waits for a majority.
    std::thread::scope(|scope| {
        let in_need: [&[&str]; 10] = [
            &["put", "k", "w"],
            &["putall", "k=w"],
            &["del", "k"],
            &["delall", "k"],
            &["delrange", "a", "z"],
            &["trim", "k"],
            &["set-history", "1"],
            &["get", "k"],
            &["getrange", "a", "z"],
            // Nobody can tell whether that is past.
            &["get", "k", "--serializable", "--at", "now"],
        ];
        for arguments in in_need {
            let servers = &servers;
            scope.spawn(move || {
                let ran = run(servers, arguments);
                assert_eq!((ran.status, ran.text()), (3, ""), "{arguments:?}");
                assert!(ran.err.contains("1 of 3 servers answer"), "{}", ran.err);
            });
        }
    });
    let got = run(&servers, &["get", "k", "--serializable"]);
    assert_eq!((got.status, got.text()), (0, "v"));
    // The past that this server has seen it can tell by itself.
    let past = ["get", "k", "--serializable", "--at", &version.to_string()];
    assert_eq!(done(&servers, &past), "v");
    assert_eq!(done(&servers, &["history", "k", "--serializable"]).lines().count(), 1);
}

#[test]
fn a_command_reads_what_the_one_before_it_wrote() {
    // One server has everything a minute late.
    let group = with_a_late_server("60s");
    let (servers, late) = (group.list(), group.addresses()[2].to_string());
    for number in 0..15 {
        let value = number.to_string();
        run(&servers, &["put", "k", &value]).version();
        assert_eq!(done(&servers, &["get", "k"]), value);
        let row = done(&servers, &["getrange", "a", "z"]);
        assert!(row.ends_with(&format!("\t{value}\n")), "{row}");
    }
    // By itself it says that it cannot, or, if it is asked for what it has, what that is.
    assert_eq!(run(&late, &["get", "k", "--timeout", "1s"]).status, 3);
    assert_eq!(run(&late, &["get", "k", "--serializable"]).status, 1);
}

/// A shell's line, with the program as `$A` and the servers as `$S`; its exit status and what it
/// said.
fn shell(servers: &str, line: &str) -> (i32, String, String) {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("A", ACERVO).env("S", servers).env_remove("RUST_LOG");
    let output = shell.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_log_level_that_cannot_be_meant_is_said_in_one_line_and_changes_nothing_else() {
    for (asked, said) in [
        ("debug", ""),
        ("inof", "acervo: RUST_LOG has inof, which is no level"),
        ("acervo=inof", "acervo: RUST_LOG=acervo=inof is not used"),
    ] {
        let mut command = Command::new(ACERVO);
        let output = command.args(["completions", "bash"]).env("RUST_LOG", asked).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{asked}: {err}");
        assert!(err.starts_with(said) && err.lines().count() == usize::from(!said.is_empty()));
    }
}

#[test]
fn what_cannot_be_written_or_read_is_not_taken_for_done() {
    let group = Group::start(1, &["--console", "off"]);
    let servers = group.list();
    run(&servers, &["put", "k", "v"]).version();
    let commands =
        ["get k", "get k --format json", "getrange a z", "put k v", "status", "completions bash"];
    for command in commands {
        let servers_flag = if command.starts_with("completions") { "" } else { "--servers $S" };
        for (redirection, why) in [(">/dev/full", "No space left"), (">&-", "closed")] {
            let line = format!("$A {command} {servers_flag} {redirection}");
            let (status, _, err) = shell(&servers, &line);
            assert_eq!(status, 4, "{line}: {err}");
            assert!(err.contains("the answer could not be printed") && err.contains(why), "{err}");
        }
        let (status, _, err) = shell(&servers, &format!("$A {command} {servers_flag} >/dev/null"));
        assert_eq!((status, err.as_str()), (0, ""), "{command}");
    }
    // A write is done, which is said.
    for command in ["putall k=v", "trim k", "delrange a z", "putall k=v", "delall k", "put k v"] {
        let line = format!("$A {command} --servers $S >/dev/full");
        let (status, _, err) = shell(&servers, &line);
        assert_eq!(status, 4, "{line}: {err}");
        assert!(err.contains("the write is done, with version"), "{line}: {err}");
    }
    // Help and the release are answers, too.
    for command in ["--version", "version", "--help", "help get", "get --help"] {
        for redirection in [">/dev/full", ">&-"] {
            let (status, _, err) = shell(&servers, &format!("$A {command} {redirection}"));
            assert_eq!(status, 4, "{command} {redirection}: {err}");
            assert!(err.contains("the answer could not be printed"), "{err}");
        }
        let (status, out, err) = shell(&servers, &format!("$A {command}"));
        assert_eq!((status, err.as_str()), (0, ""), "{command}");
        assert!(!out.is_empty() && !out.contains('\x1b'), "{command}: {out}");
    }
    for command in ["put k -", "putall -", "getall -", "delall -"] {
        let (status, out, err) = shell(&servers, &format!("$A {command} --servers $S <&-"));
        assert_eq!((status, out.as_str()), (2, ""), "{command}: {err}");
        assert!(err.contains("standard input could not be read"), "{err}");
    }
    assert_eq!(run(&servers, &["get", "k"]).text(), "v");
    // Not found, and nothing to write: not an error of writing.
    assert_eq!(shell(&servers, "$A get nothing --servers $S >&-").0, 1);
}

#[test]
fn a_value_comes_back_to_the_byte_and_a_terminal_gets_none_of_its_commands() {
    let group = Group::start(1, &["--console", "off"]);
    let servers = group.list();
    let value: Vec<u8> = (0..=255).chain(*b"\n\n").collect();
    let put = run_with_input(&servers, &["put", "k", "-"], &value);
    assert_eq!(put.status, 0, "{}", put.err);
    for flags in [&["get", "k"][..], &["get", "k", "--raw"]] {
        assert!(run(&servers, flags).out == value);
    }
    run(&servers, &["put", "text", "line\tone\nline two"]).version();
    let on_terminal = |arguments: &[&str]| {
        let mut command = Command::new(ACERVO);
        command.args(arguments).args(["--servers", &servers]).env_remove("RUST_LOG");
        let mut terminal = Terminal::run(command);
        let status = terminal.wait_for_end().code();
        (status, terminal.text())
    };
    let (status, shown) = on_terminal(&["get", "k"]);
    assert_eq!(status, Some(0));
    assert!(
        shown.contains(r"\x00\x01") && shown.contains(r"\x1b") && shown.contains(r"\xff"),
        "{shown}"
    );
    let (status, shown) = on_terminal(&["get", "k", "--raw"]);
    assert_eq!(status, Some(2), "{shown}");
    assert!(shown.contains("control characters"), "{shown}");
    let (status, shown) = on_terminal(&["get", "text", "--raw"]);
    assert_eq!((status, shown.trim_end()), (Some(0), "line\tone\nline two"));
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
    let header = "address role term commit applied in sync connections longest stall disk rows \
                  uptime version";
    assert_eq!(rows[0].join(" "), header);
    let names: Vec<String> = group.addresses().iter().map(|a| a.to_string()).collect();
    for (row, (name, role)) in
        rows[1..].iter().zip(names.iter().zip(["leader", "follower", "follower"]))
    {
        assert_eq!((row[0], row[1], row[5]), (name.as_str(), role, "yes"), "{row:?}");
    }
    assert_eq!(rows.len(), 4);

    // PUT_OK waits until all have stored a write, and not until all have applied it.
    let object = eventually("every server has applied the write", || {
        let object = run(&servers, &["status", "--format", "json"]).json();
        let described = object["servers"].as_array().unwrap();
        let has_applied = |server: &Value| server["applied"] == described[0]["commit"];
        described.iter().all(has_applied).then_some(object)
    });
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
        assert_eq!((&server["level"], &server["history"]), (&json!(1), &json!("all")));
        for field in [
            "commit",
            "applied",
            "last_index",
            "client_connections",
            "uptime_ms",
            "longest_stall_us",
            "disk_bytes",
            "store_rows",
            "leases",
        ] {
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
    let row = table.text().lines().find(|line| line.starts_with(&names[2])).unwrap().to_owned();
    assert_eq!(row.split_once(' ').unwrap().1.trim_start(), "unreachable: connection refused");

    assert!(exited_with(group.terminate(1), 0));
    group.kill(0);
    let nobody = run(&servers, &["status"]);
    assert_eq!(nobody.status, 3);
    assert_eq!(run(&servers, &["health", "--timeout", "1s"]).status, 3);
    assert_eq!(nobody.text().matches("unreachable").count(), 3);
}

/// A write that is done is done, whether or not what it replaced can be told.
#[test]
fn a_write_that_is_done_does_not_fail_for_what_it_cannot_tell_of_before() {
    use acervo::wire::message::{ErrorCode, Request};
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(_) => {
            link.reply(id, write_ok(70, None));
        }
        _ => link.reply(id, error(ErrorCode::Expired, "it has been removed for good")),
    });
    let servers = server.address.to_string();
    for command in [
        &["put", "k", "v", "--format", "json"][..],
        &["del", "k"],
        &["del", "k", "--format", "json"],
        &["trim", "k"],
        &["delall", "k"],
        &["putall", "k=v"],
        &["delrange", "a", "z", "--count"],
    ] {
        let ran = run(&servers, command);
        assert_eq!(ran.status, 0, "{command:?}: {}", ran.err);
        let told = "the write is done, with version 70; what was there before could not be read";
        assert!(ran.err.contains(told), "{command:?}: {}", ran.err);
    }
    assert_eq!(run(&servers, &["del", "k"]).text(), "70\n");
}

#[test]
fn a_console_whose_lines_are_lost_says_so_and_fails() {
    let group = Group::start(1, &["--console", "off"]);
    let console = |output: &str| {
        let line = format!("printf '2\\nk\\nv\\nsair\\n' | $A client --servers $S {output}");
        shell(&group.list(), &line)
    };
    let (status, out, err) = console("");
    assert_eq!(status, 0, "{err}");
    assert!(out.starts_with("PUT_OK key: k value v timestamp "), "{out}");
    let (status, _, err) = console("> /dev/full");
    assert_eq!(status, 4, "{err}");
    assert!(err.contains("the answers could not be printed: "), "{err}");
}

/// Those of one key are sent one after the other, so together they take longer than one may. The
/// console ended in the middle of them, with status 0 and without a word.
#[test]
fn a_console_at_the_end_of_its_input_waits_for_every_request_of_a_key() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let servers = silent.local_addr().unwrap().to_string();
    let line = "for i in $(seq 15); do printf '2\\nk\\n%s\\n' $i; done \
                | $A client --servers $S --timeout 300ms";
    let (status, out, err) = shell(&servers, line);
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
    assert_eq!(err.matches("PUT key: k falhou: ").count(), 15, "{err}");
}

#[test]
fn no_rows_at_all_is_no_limit() {
    for command in [&["getrange", "a", "z"][..], &["history", "k"]] {
        let ran = run("127.0.0.1:1", &[command, &["--limit", "0"]].concat());
        assert_eq!(ran.status, 2, "{}", ran.err);
    }
}

#[test]
fn status_and_health_tell_a_script_whether_the_group_is_of_use() {
    let mut group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    assert_eq!(done(&servers, &["health"]), "healthy\n");
    assert_eq!(run(&servers, &["status"]).status, 0);
    group.kill(0);
    group.kill(1);
    // The third answers, and knows after a moment that nobody can write.
    let table = eventually("the leader is missed", || {
        let status = run(&servers, &["status"]);
        (status.status == 3).then(|| status.text().to_owned())
    });
    assert!(table.contains("no leader is known"), "{table}");
    let health = run(&servers, &["health"]);
    assert_eq!((health.status, health.text()), (3, ""));
    assert!(health.err.contains("1 of 3 servers answer"), "{}", health.err);
    let put = run(&servers, &["put", "k", "v"]);
    assert_eq!((put.status, put.text()), (3, ""));
    assert!(put.err.contains("no majority: 1 of 3 servers answer and 2 are needed"), "{}", put.err);
}

#[test]
fn the_servers_may_come_from_the_environment_and_commands_have_kind_names() {
    let group = Group::start(1, &["--console", "off"]);
    let shell = |line: &str| {
        let (status, out, err) =
            shell("", &format!("export ACERVO_SERVERS={}; {line}", group.list()));
        assert_eq!((status, err.as_str()), (0, ""), "{line}");
        out
    };
    shell("$A set k v");
    assert_eq!(shell("$A get k"), "v");
    assert_eq!(shell("$A get k --json | grep -c '\"value\":\"v\"'"), "1\n");
    shell("$A set key v");
    assert_eq!(shell("$A ls"), "k\nkey\n");
    assert_eq!(shell("$A ls ke"), "key\n");
    shell("$A rm k");
    assert_eq!(shell("$A ls"), "key\n");
    assert_eq!(shell("$A health"), "healthy\n");
    assert_eq!(shell("$A version"), shell("$A --version"));
    // What is said on the line counts for more.
    // A variable that a script has emptied is not set: the default counts, whoever is there.
    for command in ["get k", "files"] {
        let line = format!("ACERVO_SERVERS= ACERVO_REGISTRY= $A {command}");
        let (status, _, said) = self::shell("", &line);
        assert_ne!(status, 2, "{said}");
    }
    // And what cannot be one is answered with an example of the right kind.
    for (line, example) in [
        ("ACERVO_SERVERS=nonsense $A get k", "127.0.0.1:10097"),
        ("ACERVO_REGISTRY=nonsense $A files", "127.0.0.1:1099"),
        ("$A registry --listen nonsense", "127.0.0.1:1099"),
        ("$A share . --listen nonsense", "127.0.0.1:5000"),
    ] {
        let (status, _, said) = self::shell("", line);
        assert_eq!(status, 2, "{line}");
        assert!(said.contains(&format!("write IP:PORT, such as {example}\n")), "{line}: {said}");
    }
    let line = format!("ACERVO_SERVERS=127.0.0.1:1 $A get key --servers {}", group.list());
    assert_eq!(self::shell("", &line), (0, "v".to_owned(), String::new()));
}

#[test]
fn sentences_say_what_is_the_matter() {
    let group = Group::start(1, &["--console", "off"]);
    let servers = group.list();
    let version = run(&servers, &["put", "k", "v"]).version();

    // Seconds and milliseconds are not taken for versions of 1970.
    for (text, unit) in [("1795224871", "seconds"), ("1795224871548", "milliseconds")] {
        let refused = run(&servers, &["get", "k", "--at", text]);
        assert_eq!(refused.status, 2);
        assert!(refused.err.contains(&format!("looks like {unit}")), "{}", refused.err);
    }
    assert_eq!(run(&servers, &["get", "k", "--at", "9999-12-31T23:59:59Z"]).text(), "v");
    let early = run(&servers, &["get", "k", "--at", &(version - 1).to_string()]);
    assert_eq!(early.status, 1);
    let oldest = format!("its oldest version is {version}, of ");
    assert!(early.err.contains(&oldest), "{}", early.err);

    // Nobody there: at once, and not as a lack of time, and nothing is said of writes when it was a
    // read.
    let nobody = free_addresses(1)[0].to_string();
    for timeout in ["100ms", "60s"] {
        let failed = run(&nobody, &["get", "k", "--timeout", timeout]);
        assert_eq!(failed.status, 3);
        assert!(failed.err.starts_with("acervo: no server could be reached"), "{}", failed.err);
        assert!(!failed.err.contains("write"), "{}", failed.err);
    }

    // A store is no registry and no gateway.
    let port = group.addresses()[0].port().to_string();
    let host = group.addresses()[0].ip().to_string();
    let (status, _, err) = shell(&servers, "$A files --registry $S");
    assert_eq!(status, 3);
    assert!(err.contains("this is a server of a store: a share needs an acervo registry"), "{err}");
    if cfg!(feature = "grpc") {
        let line = format!("$A kvs get --chave k --host {host} --porta {port}");
        let (status, _, err) = shell(&servers, &line);
        assert_eq!(status, 3);
        assert!(err.contains("does not speak gRPC"), "{err}");
    }

    // Something else is there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let web = listener.local_addr().unwrap().to_string();
    let answering = std::thread::spawn(move || {
        // One connection after the other, until the test is over.
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0; 8];
            if stream.read(&mut first).unwrap_or(0) == 1 {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let failed = run(&web, &["get", "k"]);
    assert_eq!(failed.status, 3);
    assert!(failed.err.contains("found there: a web server"), "{}", failed.err);
    assert!(failed.err.contains("expected: a server of an acervo store"), "{}", failed.err);
    std::net::TcpStream::connect(&web).unwrap().write_all(b"x").unwrap();
    answering.join().unwrap();
}

#[test]
fn the_usage_of_a_range_names_prefixes_and_open_ends() {
    for command in ["getrange", "delrange"] {
        for arguments in [&[command, "--help"][..], &[command]] {
            let ran = run("127.0.0.1:1", arguments);
            let said = ran.out.iter().chain(ran.err.as_bytes()).copied().collect();
            let said = String::from_utf8(said).unwrap();
            for form in ["<FROM|..> <TO|..>", "--prefix <P>"] {
                let form = format!("acervo {command} [OPTIONS] {form}\n");
                assert!(said.contains(&form), "{said}");
            }
        }
    }
}

/// A terminal that is not named gets what a dumb one gets: letters.
#[test]
fn a_terminal_without_a_name_gets_no_control_sequences() {
    for kind in ["dumb", ""] {
        for arguments in
            [&["--help"][..], &["getrange"], &["files", "--registry", "x"], &["client"]]
        {
            let mut command = Command::new(ACERVO);
            command.args(arguments).env_remove("NO_COLOR").env_remove("RUST_LOG");
            let mut terminal = Terminal::run_on(command, kind);
            if *arguments == ["client"] {
                terminal.wait_for_text("INIT", 1);
                terminal.type_keys(b"\x04");
            }
            terminal.wait_for_end();
            let shown = terminal.raw();
            assert!(
                !shown.is_empty() && !shown.contains(&0x1b),
                "{kind:?} {arguments:?}: {shown:?}"
            );
        }
    }
}
