//! `acervo watch` against a real server: what it prints, what it runs, and how it ends.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use acervo::client::{Row, Timestamp, Version};
use acervo::model::KeyChange;
use acervo::wire::message::{Message, Reply, Request, WatchFrame};
use rustix::process::Signal;
use serde_json::Value;

use crate::fake_server::FakeServer;
use crate::support::{ACERVO, Group, eventually};

fn acervo(group: &Group, arguments: &[&str]) -> Command {
    let mut command = Command::new(ACERVO);
    command
        .args(arguments)
        .env("ACERVO_SERVERS", group.list())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn run(group: &Group, arguments: &[&str]) -> Output {
    acervo(group, arguments).output().unwrap()
}

fn done(group: &Group, arguments: &[&str]) -> String {
    let ran = run(group, arguments);
    let error = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{arguments:?}: {error}");
    String::from_utf8(ran.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn a_watch_prints_what_has_changed_since_a_version_and_what_changes() {
    let group = Group::start(1, &[]);
    let first = done(&group, &["put", "config/a", "one"]);
    let second = done(&group, &["put", "config/a", "two\n"]);
    let third = done(&group, &["del", "config/a"]);
    done(&group, &["put", "other", "x"]);
    let from = ["watch", "--prefix", "config/", "--from", "1", "--limit", "3", "--previous"];
    assert_eq!(
        done(&group, &from),
        format!(
            "{first}\tput\tconfig/a\tone\t0\t\n\
             {second}\tput\tconfig/a\ttwo\\x0a\t{first}\tone\n\
             {third}\tdel\tconfig/a\t\t{second}\ttwo\\x0a"
        )
    );
    let json = done(&group, &["watch", "config/a", "--from", "1", "--limit", "2", "--json"]);
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[1]["kind"], "put");
    assert_eq!(lines[1]["timestamp"].to_string(), second);
    assert_eq!((&lines[1]["count"], &lines[1]["value"]), (&2.into(), &"two\n".into()));
    // What changes while it waits.
    let mut waiting = acervo(&group, &["watch", "later", "--limit", "1", "--from", &third]);
    let waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let fourth = done(&group, &["put", "later", "now"]);
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&waited.stdout), format!("{fourth}\tput\tlater\tnow\n"));
}

#[test]
fn a_command_is_run_for_each_change_with_what_has_changed() {
    let group = Group::start(1, &[]);
    let first = done(&group, &["put", "k", "v w"]);
    let second = done(&group, &["del", "k"]);
    let script = "echo \"$ACERVO_KIND $ACERVO_VERSION $ACERVO_KEY $ACERVO_VALUE/$(cat)\"";
    let watch = ["watch", "k", "--from", "1", "--limit", "2", "--", "sh", "-c", script];
    assert_eq!(done(&group, &watch), format!("put {first} k v w/v w\ndel {second} k /"));
    let none = run(&group, &["watch", "k", "--from", "1", "--", "/there/is/no/such/program"]);
    assert_eq!(none.status.code(), Some(127));
    let error = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(error.contains("the command cannot be run"), "{error}");
}

#[test]
fn what_cannot_be_watched_is_a_wrong_command() {
    let group = Group::start(1, &[]);
    let wrong: [&[&str]; 4] = [
        &["watch"],
        &["watch", "a", "--prefix", "b"],
        &["watch", "b", "a"],
        &["watch", "a", "--from", "yesterday"],
    ];
    for arguments in wrong {
        assert_eq!(run(&group, arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// The server begins a reset anew in the middle, as it does when it was read too slowly.
#[test]
fn a_reset_that_begins_anew_is_printed_as_one_and_each_line_counts() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Watch(request) = request else { panic!("{request:?}") };
        link.reply(id, Reply::WatchOk { after: request.after.unwrap() });
        for (at, key, begins, continues) in
            [(20, "old", true, true), (30, "new", true, true), (30, "newer", false, false)]
        {
            let found = Version { timestamp: Timestamp(9), value: "v".into(), facts: None };
            let rows = vec![Row { key: key.into(), found: Some(found) }];
            let body = WatchFrame::Reset { rows, at: Timestamp(at), begins, continues };
            link.send(&Message::Watched { watch: 1, body });
        }
    });
    let watch = |limit: &str| {
        let servers = server.address.to_string();
        let watch = ["watch", "..", "..", "--from", "1", "--limit", limit, "--servers", &servers];
        let ran = Command::new(ACERVO).args(watch).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let all = [
        "20\treset\n",
        "9\trow\told\tv\n",
        "30\treset\n",
        "9\trow\tnew\tv\n",
        "9\trow\tnewer\tv\n",
        "30\treset-end\n",
    ];
    assert_eq!(watch("6"), all.concat());
    assert_eq!(watch("3"), all[..3].concat());
}

/// A server that shows one change, of a key that is watched.
fn one_change(value: Vec<u8>) -> FakeServer {
    FakeServer::start(move |id, request, link| {
        let Request::Watch(request) = request else { panic!("{request:?}") };
        link.reply(id, Reply::WatchOk { after: request.after.unwrap() });
        let (at, value) = (Timestamp(9), value.clone().into());
        let written = Some(Version { timestamp: at, value, facts: None });
        let changes = vec![KeyChange { at, key: "k".into(), written, previous: None }];
        let body = WatchFrame::Events { changes, up_to: at, continues: false };
        link.send(&Message::Watched { watch: 1, body });
    })
}

fn watch_of(server: &FakeServer) -> Command {
    let mut command = Command::new(ACERVO);
    let servers = server.address.to_string();
    command.args(["watch", "k", "--from", "1", "--servers", &servers]).stdin(Stdio::null());
    command
}

/// Such a value took four times its bytes as text, the command could not be run, and a watch that
/// was started again met it again.
#[test]
fn a_value_that_is_long_as_text_is_on_standard_input_alone() {
    let server = one_change(vec![0; 60_000]);
    let script = "echo \"${ACERVO_VALUE-none} $(wc -c)\"";
    let mut watch = watch_of(&server);
    let ran = watch.args(["--limit", "1", "--", "sh", "-c", script]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(String::from_utf8_lossy(&ran.stdout).trim_end(), "none 60000");
}

#[test]
fn a_watch_whose_reader_has_gone_ends_before_the_next_change() {
    let server = one_change(b"v".to_vec());
    let mut watch = watch_of(&server).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "9\tput\tk\tv\n");
    let ended = eventually("the watch ends", || watch.try_wait().unwrap());
    assert_eq!(ended.signal(), Some(Signal::PIPE.as_raw()), "{ended}");
}
