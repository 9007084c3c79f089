//! `acervo kvs` as it is used from a shell.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use acervo::wire::message::Request;

use crate::fake_server::{FakeServer, write_ok};
use crate::site::{Site, pair};
use crate::support::ACERVO;
use crate::support::gateway::Gateway;

fn kvs(site: &Site, operation: &str, arguments: &[&str]) -> Command {
    kvs_at(site.gateway.address, operation, arguments)
}

fn kvs_at(gateway: SocketAddr, operation: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(ACERVO);
    command.args(["kvs", operation, "--host", &gateway.ip().to_string()]);
    command.args(["--porta", &gateway.port().to_string()]).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// Runs it and gives standard output, standard error and the exit status.
fn run(site: &Site, operation: &str, arguments: &[&str]) -> (String, String, i32) {
    run_at(site.gateway.address, operation, arguments)
}

fn run_at(gateway: SocketAddr, operation: &str, arguments: &[&str]) -> (String, String, i32) {
    let output = kvs_at(gateway, operation, arguments).output().unwrap();
    let Output { status, stdout, stderr } = output;
    let code = status.code().expect("it ends by itself");
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), code)
}

fn version(line: &str) -> i64 {
    line.split('\t').nth(1).unwrap().parse().unwrap()
}

/// A gateway that hung was told as something that does not speak gRPC, and a write as one that
/// cannot have been done.
#[test]
fn a_gateway_that_takes_connections_and_answers_nothing_is_told_as_that() {
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hung.local_addr().unwrap();
    let of = |operation, arguments: &[&str]| {
        let arguments = [&["--timeout", "300ms", "--chave", "a"], arguments].concat();
        let (_, said, status) = run_at(address, operation, &arguments);
        assert_eq!(status, 3, "{said}");
        said
    };
    let silent = "connections are taken there, and nothing is answered";
    let unreachable = format!("acervo: the gateway at {address} cannot be reached ({silent})");
    let said = of("get", &[]);
    assert!(said.starts_with(&unreachable), "{said}");
    let unanswered = format!("acervo: the gateway at {address} has not answered ({silent}), so");
    let said = of("put", &["--valor", "1"]);
    assert!(said.starts_with(&unanswered), "{said}");
}

#[test]
fn the_nine_operations_from_a_shell() {
    let site = Site::start();
    let (put, quiet, status) = run(&site, "put", &["--chave", "a", "--valor", "1"]);
    let ver = version(&put);
    assert_eq!((&*put, &*quiet, status), (&*format!("a\t{ver}\t0\t\n"), "", 0));
    let get = |arguments: &[&str]| run(&site, "get", arguments);
    assert_eq!(get(&["--chave", "a"]), (format!("a\t{ver}\t1\n"), String::new(), 0));
    assert_eq!(get(&["--chave", "none"]), ("none\t0\t\n".into(), String::new(), 1));
    let asked = (ver - 1).to_string();
    let early = get(&["--chave", "a", "--versao", &asked]);
    assert_eq!(early, (format!("a\t{asked}\t\n"), String::new(), 1));

    let pairs = ["--chave", "b", "--valor", "2", "--chave", "c", "--valor", "line\n\ttab"];
    let (all, _, status) = run(&site, "putall", &pairs);
    let ver2 = version(all.lines().next().unwrap());
    assert_eq!((&*all, status), (&*format!("b\t{ver2}\t0\t\nc\t{ver2}\t0\t\n"), 0));
    let (rows, _, status) = run(&site, "getrange", &["--chave", "b", "--chave", "z"]);
    assert_eq!((&*rows, status), (&*format!("b\t{ver2}\t2\nc\t{ver2}\tline\\x0a\\x09tab\n"), 0));
    let (rows, _, status) = run(&site, "getrange", &["--chave", "x", "z", "--format", "json"]);
    assert_eq!((&*rows, status), ("", 0));
    let json = ["--chave", "c", "none", "--format", "json"];
    let (rows, _, status) = run(&site, "getall", &json);
    let lines = format!(
        "{{\"key\":\"c\",\"val\":\"line\\n\\ttab\",\"ver\":{ver2}}}\n\
         {{\"key\":\"none\",\"val\":\"\",\"ver\":0}}\n"
    );
    assert_eq!((rows, status), (lines, 0));

    let again = ["--chave", "a", "--valor", "3", "--format", "json"];
    let (put, _, _) = run(&site, "put", &again);
    assert!(put.starts_with("{\"key\":\"a\",\"old_val\":\"1\",\"old_ver\":"), "{put}");
    let (trimmed, _, status) = run(&site, "trim", &["--chave", "a"]);
    assert_eq!((trimmed.ends_with("\t3\n"), status), (true, 0), "{trimmed}");
    assert_eq!(run(&site, "del", &["--chave", "a"]), (trimmed, String::new(), 0));
    assert_eq!(run(&site, "del", &["--chave", "a"]), ("a\t0\t\n".into(), String::new(), 1));
    let (rows, _, status) = run(&site, "delrange", &["--chave", "b", "--chave", "b"]);
    assert_eq!((&*rows, status), (&*format!("b\t{ver2}\t2\n"), 0));
    let (rows, _, status) = run(&site, "delall", &["--chave", "b", "--chave", "c"]);
    assert_eq!((rows.lines().count(), status), (2, 0), "{rows}");
    assert_eq!(run(&site, "delall", &["--chave", "b", "--chave", "c"]).2, 0);
}

#[test]
fn what_fails_is_one_line_and_an_exit_status() {
    let mut site = Site::start();
    let (out, said, status) = run(&site, "get", &["--chave", ""]);
    assert_eq!((&*out, status), ("", 2));
    assert!(said.starts_with("acervo: INVALID_ARGUMENT: the key is empty"), "{said}");
    let (_, said, status) = run(&site, "put", &["--chave", "a"]);
    assert_eq!(status, 2);
    assert!(said.contains("--valor") && said.contains("Usage"), "{said}");

    (0..3).for_each(|at| site.group.kill(at));
    let (_, said, status) = run(&site, "get", &["--chave", "a"]);
    assert_eq!((status, said.lines().count()), (3, 1), "{said}");
    assert!(said.starts_with("acervo: UNAVAILABLE: no server could be reached"), "{said}");
    let (_, _, status) = run(&site, "get", &["--chave", "a", "--timeout", "100ms"]);
    assert_eq!(status, 3);

    site.gateway.signal(rustix::process::Signal::KILL);
    site.gateway.wait();
    let (_, said, status) = run(&site, "get", &["--chave", "a"]);
    assert_eq!((status, said.lines().count()), (3, 1), "{said}");
    assert!(said.contains("acervo gateway"), "{said}");
}

#[test]
fn a_closed_pipe_ends_a_long_range_without_a_word() {
    let site = Site::start();
    let pairs = (0..20_000).map(|at| pair(&format!("{at:05}"), &"v".repeat(100))).collect();
    site.put_all(pairs).unwrap();
    let mut command = kvs(&site, "getrange", &["--chave", "0", "--chave", "9"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("00000\t") && line.ends_with("vvv\n"), "{line}");
    drop(out);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    // By the signal, as it ends any other command.
    assert_eq!(status.signal(), Some(rustix::process::Signal::PIPE.as_raw()), "{status}");
    assert_eq!(String::from_utf8(stderr).unwrap(), "");
}

#[test]
fn a_write_that_is_done_is_done_though_what_it_replaced_cannot_be_read() {
    // Tells of no previous value, and answers no read.
    let server = FakeServer::start(|id, request, link| {
        if matches!(request, Request::Write(_)) {
            link.reply(id, write_ok(7, None));
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(&dir, &server.address.to_string(), &["--timeout", "500ms"]);
    let cases: [(&str, &[&str], &str); 4] = [
        ("put", &["--chave", "k", "--valor", "v"], "k\t7\t0\t\n"),
        ("del", &["--chave", "k"], ""),
        ("putall", &["--chave", "k", "--valor", "v"], ""),
        ("delall", &["--chave", "k"], ""),
    ];
    for (operation, arguments, printed) in cases {
        let (out, said, status) = run_at(gateway.address, operation, arguments);
        assert_eq!((&*out, status), (printed, 0), "{operation}: {said}");
        assert!(said.contains("the write is done"), "{operation}: {said}");
    }
}

/// Speaks as much HTTP/2 as begins a connection, or nothing of it, and closes when something was
/// asked.
fn breaking_off(opening: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(opening);
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    address
}

#[test]
fn a_write_that_breaks_off_may_have_taken_effect_and_what_is_no_gateway_is_named() {
    let put = ["--chave", "k", "--valor", "v"];
    let broken = breaking_off(b"\0\0\0\x04\0\0\0\0\0");
    let (_, said, status) = run_at(broken, "put", &put);
    assert_eq!((status, said.lines().count()), (3, 1), "{said}");
    assert!(said.contains("the write may have taken effect"), "{said}");
    let (_, said, status) = run_at(broken, "get", &["--chave", "k"]);
    assert_eq!(status, 3, "{said}");
    assert!(said.contains("broke off") && !said.contains("write"), "{said}");

    let web = breaking_off(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let site = Site::start();
    let store = site.group.addresses()[0];
    for (address, name) in [(web, "a web server"), (store, "a server of an acervo store")] {
        let (_, said, status) = run_at(address, "put", &put);
        assert_eq!(status, 3, "{said}");
        assert!(said.contains(&format!("found there: {name}")), "{said}");
        assert!(!said.contains("taken effect"), "{said}");
    }
}
