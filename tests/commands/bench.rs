//! `acervo bench` against real groups: what it prints and how it ends. No figure is judged.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::terminal::Terminal;
use crate::support::{ACERVO, Group, eventually, exited_with, free_addresses};

fn bench(arguments: &[&str]) -> Output {
    Command::new(ACERVO).arg("bench").args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn group() -> Group {
    let group = Group::start(3, &["--console", "off"]);
    group.client().put("before", "the bench").unwrap();
    group
}

/// A bench of one second that must succeed; its JSON.
fn figures(group: &Group, arguments: &[&str]) -> Value {
    let list = group.list();
    let common = ["--seconds", "1", "--warm-up", "0", "--format", "json", "--servers", &list];
    let done = bench(&[arguments, &common].concat());
    assert!(exited_with(done.status, 0), "{}", text(&done.stderr));
    serde_json::from_str(&text(&done.stdout)).unwrap()
}

#[track_caller]
fn is_sound(figures: &Value) {
    let number = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("{name}: {figures}"));
    assert!(number("operations") > 0.0, "{figures}");
    assert_eq!(figures["errors"], serde_json::json!({}), "{figures}");
    assert!(number("elapsed_s") >= 1.0, "{figures}");
    let per_second = number("operations") / number("elapsed_s");
    assert!((number("operations_per_s") - per_second).abs() <= per_second / 1000.0, "{figures}");
    let latencies = ["p50_us", "p99_us", "p999_us", "max_us"].map(number);
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{figures}");
}

#[test]
fn puts_at_random_servers_and_at_the_leader() {
    let group = group();
    let random = figures(&group, &["put", "--clients", "8"]);
    is_sound(&random);
    assert_eq!(random["targets"].as_array().unwrap().len(), 3);
    assert!(random["command"].as_str().unwrap().starts_with("acervo bench put --clients 8"));

    let at_leader = figures(&group, &["put", "--clients", "1", "--target", "leader"]);
    is_sound(&at_leader);
    let leader = group.addresses()[group.leader()].to_string();
    assert_eq!(at_leader["targets"], serde_json::json!([leader]));
}

#[test]
fn gets_find_what_was_filled_in() {
    let group = group();
    let before = figures(&group, &["get", "--clients", "4", "--keys", "50"]);
    is_sound(&before);
    assert_eq!(before["not_found"], before["operations"], "nothing was written: {before}");

    // Confirmed by a majority, so that no server answers from before the fill.
    let confirmed = ["get", "--clients", "4", "--keys", "50", "--fill", "--linearizable"];
    let after = figures(&group, &confirmed);
    is_sound(&after);
    assert_eq!(after["not_found"], 0, "{after}");
}

#[test]
fn ranges_are_read_a_page_at_a_time() {
    let group = group();
    let range = ["range", "--clients", "2", "--keys", "50", "--linearizable"];
    let before = figures(&group, &range);
    assert_eq!(before["not_found"], before["operations"], "nothing was written: {before}");
    let after = figures(&group, &[&range[..], &["--fill"]].concat());
    is_sound(&after);
    assert_eq!(after["not_found"], 0, "{after}");
    assert_eq!(after["operation"], "range");
}

#[test]
fn every_mix_of_ycsb_has_the_operations_that_it_names() {
    let group = group();
    let kinds: [(&str, &[&str], &str); 6] = [
        ("ycsb-a", &["read", "update"], "zipfian"),
        ("ycsb-b", &["read", "update"], "zipfian"),
        ("ycsb-c", &["read"], "zipfian"),
        ("ycsb-d", &["insert", "read"], "latest"),
        ("ycsb-e", &["insert", "scan"], "zipfian"),
        ("ycsb-f", &["read", "read-modify-write"], "zipfian"),
    ];
    figures(&group, &["put", "--keys", "200", "--fill"]);
    for (mix, wanted, distribution) in kinds {
        // Confirmed by a majority, so that no server answers from before the fill.
        let pipelined = ["--clients", "2", "--pipeline", "8", "--keys", "200", "--linearizable"];
        let seen = figures(&group, &[&[mix], &pipelined[..]].concat());
        is_sound(&seen);
        let kinds = seen["kinds"].as_object().unwrap();
        assert_eq!(kinds.keys().map(String::as_str).collect::<Vec<_>>(), wanted, "{seen}");
        let each: u64 = kinds.values().map(|kind| kind["operations"].as_u64().unwrap()).sum();
        assert_eq!(seen["operations"], each, "{seen}");
        assert_eq!(seen["distribution"], distribution);
        assert_eq!(seen["not_found"], 0, "{seen}");
    }
}

#[test]
fn an_open_load_keeps_its_rate() {
    let group = group();
    let seen = figures(&group, &["put", "--clients", "4", "--pipeline", "4", "--rate", "200"]);
    is_sound(&seen);
    assert_eq!(seen["rate"], 200);
    // All that was due in the second, answered or not.
    let answered = seen["operations"].as_u64().unwrap();
    assert_eq!(answered + seen["unanswered"].as_u64().unwrap(), 200, "{seen}");
    assert!(seen["service"]["p50_us"].as_f64() <= seen["p50_us"].as_f64(), "{seen}");
}

#[test]
fn a_server_that_dies_in_the_middle_is_counted_and_the_load_goes_on() {
    let mut group = group();
    let list = group.list();
    let mut command = Command::new(ACERVO);
    command
        .args([
            "bench",
            "put",
            "--clients",
            "8",
            "--pipeline",
            "4",
            "--seconds",
            "3",
            "--keys",
            "9",
        ])
        .args(["--warm-up", "0", "--json", "--servers", &list])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let running = command.spawn().unwrap();
    let victim = (0..3).find(|at| *at != group.leader()).unwrap();
    // What it has written tells that all of its clients are connected.
    let client = group.client();
    eventually("the load runs", || client.get("bench-00000003").ok()?.value().map(|_| ()));
    group.kill(victim);
    let done = running.wait_with_output().unwrap();
    assert!(exited_with(done.status, 0), "{}", text(&done.stderr));
    let seen: Value = serde_json::from_str(&text(&done.stdout)).unwrap();
    assert!(seen["operations"].as_u64() > Some(0), "{seen}");
    assert!(seen["errors"]["CONNECTION_LOST"].as_u64() > Some(0), "{seen}");
}

#[test]
fn a_bench_of_which_nothing_is_done_fails_and_says_so() {
    let mut group = group();
    let leader = group.leader();
    let [one, other] = [1, 2].map(|step| (leader + step) % 3);
    group.kill(one);
    group.kill(other);
    let list = group.addresses()[leader].to_string();
    // Without a majority no write is done; in some seconds the server knows it and says so.
    let common = ["--seconds", "1", "--clients", "2", "--servers", &list, "--json"];
    let done = bench(&[&["put"], &common[..]].concat());
    assert!(exited_with(done.status, 3), "{}", text(&done.stderr));
    assert!(text(&done.stderr).contains("no operation was done"), "{}", text(&done.stderr));
    let seen: Value = serde_json::from_str(&text(&done.stdout)).unwrap();
    assert_eq!(seen["operations"], 0, "{seen}");
}

#[test]
fn a_terminal_is_shown_how_it_goes() {
    let group = group();
    let mut command = Command::new(ACERVO);
    let list = group.list();
    command.args(["bench", "put", "--clients", "2", "--seconds", "2", "--warm-up", "0"]);
    command.args(["--servers", &list]);
    let terminal = Terminal::run(command);
    let shown = terminal
        .wait_for("the report", |shown| shown.contains("release ").then(|| shown.to_owned()));
    let live = shown.find(" a second   p50 ").unwrap_or_else(|| panic!("{shown:?}"));
    assert!(live < shown.find("command ").unwrap(), "{shown:?}");
}

#[test]
fn the_text_has_a_line_for_everything() {
    let group = group();
    let list = group.list();
    let done = bench(&["put", "--clients", "2", "--seconds", "1", "--servers", &list]);
    assert!(exited_with(done.status, 0), "{}", text(&done.stderr));
    let printed = text(&done.stdout);
    let names: Vec<&str> =
        printed.lines().filter_map(|line| line.split("  ").next()).map(str::trim).collect();
    let wanted = ["command", "load", "servers", "data", "time", "operations", "latency µs"];
    assert_eq!(&names[..wanted.len()], wanted, "{printed}");
    assert!(printed.contains("errors       none"), "{printed}");
}

#[test]
fn mistakes_are_usage_errors() {
    let mistakes: [&[&str]; 14] = [
        &[],
        &["delete"],
        &["ycsb-g"],
        &["put", "--clients", "0"],
        &["put", "--pipeline", "0"],
        &["put", "--rate", "0"],
        &["put", "--distribution", "normal"],
        &["put", "--clients", "1024", "--pipeline", "1024"],
        &["put", "--value-size", "8MiB", "--pipeline", "64"],
        &["put", "--seconds", "0"],
        &["put", "--value-size", "9MiB"],
        &["put", "--linearizable"],
        &["put", "--target", "nowhere"],
        &["put", "--target", "127.0.0.1:1"],
    ];
    for mistake in mistakes {
        let done = bench(mistake);
        assert!(exited_with(done.status, 2), "{mistake:?}: {}", text(&done.stderr));
        assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{mistake:?}");
    }
}

#[test]
fn without_a_server_there_is_nothing_to_measure() {
    let nobody = free_addresses(1)[0].to_string();
    for target in ["random", "leader", &nobody] {
        let done = bench(&["put", "--servers", &nobody, "--target", target]);
        assert!(exited_with(done.status, 3), "{target}: {}", text(&done.stderr));
        assert!(text(&done.stderr).contains(&nobody), "{target}: {}", text(&done.stderr));
        assert!(done.stdout.is_empty());
    }
}
