//! `acervo bench` against real groups: what it prints and how it ends. No figure is judged.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{ACERVO, Group, exited_with, free_addresses};

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
    let mistakes: [&[&str]; 8] = [
        &[],
        &["delete"],
        &["put", "--clients", "0"],
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
