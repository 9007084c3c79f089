//! The gateway in a server's own process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{ACERVO, Group, PATIENCE, eventually, exited_with};

/// Where a server's log says that its gateway listens.
fn gateway_of(group: &Group, at: usize) -> SocketAddr {
    eventually("the gateway listens", || {
        let log = group.log(at);
        let (_, rest) = log.rsplit_once("serving gRPC on ")?;
        rest.split_whitespace().next()?.parse().ok()
    })
}

/// What a gateway answers to a question in JSON.
fn ask(gateway: SocketAddr, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n");
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn each_server_serves_what_any_of_them_was_told_and_goes_on_without_the_leader() {
    let mut group = Group::start(3, &["--console", "off", "--gateway", "127.0.0.1:0"]);
    let gateways: Vec<_> = (0..3).map(|at| gateway_of(&group, at)).collect();
    for (at, gateway) in gateways.iter().enumerate() {
        let put = format!(r#"{{"key":"YQ==","value":"{}"}}"#, ["MQ==", "Mg==", "Mw=="][at]);
        let written = ask(*gateway, "/v3/kv/put", &put);
        assert!(written.starts_with("HTTP/1.1 200"), "{written}");
        for other in &gateways {
            let got = ask(*other, "/v3/kv/range", r#"{"key":"YQ=="}"#);
            assert!(got.contains(&format!(r#""version":"{}""#, at + 1)), "{got}");
        }
    }
    let leader = group.leader_of_all();
    group.kill(leader);
    for (at, gateway) in gateways.iter().enumerate().filter(|(at, _)| *at != leader) {
        let written = ask(*gateway, "/v3/kv/put", r#"{"key":"YQ==","value":"NA=="}"#);
        assert!(written.starts_with("HTTP/1.1 200"), "{at}: {written}");
    }
}

#[test]
fn a_server_that_stops_answers_what_its_gateway_was_asked() {
    let mut group = Group::start(1, &["--console", "off", "--gateway", "127.0.0.1:0"]);
    let gateway = gateway_of(&group, 0);
    // One that keeps its connection, and says nothing.
    let idle = TcpStream::connect(gateway).unwrap();
    let written = ask(gateway, "/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#);
    assert!(written.starts_with("HTTP/1.1 200"), "{written}");
    group.signal(0, Signal::TERM);
    assert!(exited_with(group.wait(0), 0), "{}", group.log(0));
    drop(idle);
}

#[test]
fn an_address_that_is_taken_is_said_and_only_a_clusters_own_choice_is_done_without() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let group = Group::prepare(1, &["--console", "off", "--gateway", &address]);
    let refused = group.command(0).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(exited_with(refused.status, 4), "{said}");
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");

    let mut group = Group::prepare(1, &["--console", "off", "--gateway", &address]);
    group.start_server_with(0, &["--gateway-optional"]);
    group.wait_until_listening(0);
    let log = group.log(0);
    assert!(log.contains("no gateway is served"), "{log}");
    assert!(group.client().put("a", "b").is_ok());

    let typo = Command::new(ACERVO).args(["server", "--gateway", "2379"]).output().unwrap();
    assert!(exited_with(typo.status, 2), "{}", String::from_utf8_lossy(&typo.stderr));
}
