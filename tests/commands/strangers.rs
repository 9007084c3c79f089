//! Every command that is given the address of a service of another kind, as a table of all pairs.
//! Each names what it found there, without waiting long, and exits with the status of a service
//! that is unavailable.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::support::gateway::Gateway;
use crate::support::share::{Ran, Registry, run, write};
use crate::support::{Group, free_addresses};

/// Serves each connection on a thread of its own until the test ends.
fn listener(serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Reads a line, as web servers do, and refuses it as no request.
fn web_server(mut stream: TcpStream) {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    if reader.read_until(b'\n', &mut line).is_ok() {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    }
}

/// Refuses without a header, as old servers do for a request without a version.
fn old_web_server(mut stream: TcpStream) {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    if reader.read_until(b'\n', &mut line).is_ok() {
        let _ = stream.write_all(b"<!DOCTYPE HTML>\n<html>bad request</html>\n");
    }
}

fn ssh_server(mut stream: TcpStream) {
    let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
    hold(stream);
}

/// Accepts the connection and sends nothing.
fn hold(mut stream: TcpStream) {
    let _ = io::copy(&mut stream, &mut io::sink());
}

#[test]
fn a_service_of_another_kind_is_named_by_every_command() {
    let group = Group::start(1, &["--console", "off"]);
    let registry = Registry::start(&[]);
    let folder = registry.folder("shared");
    write(&folder, "film", b"bytes");
    let [of_peer, nobody] = free_addresses(2)[..] else { unreachable!("two were asked for") };
    let _peer = registry.share(&folder, &["--listen", &of_peer.to_string()]);
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(&dir, &group.list(), &[]);

    const STORE: &str = "expected: a server of an acervo store";
    const SHARE: &str = "expected: an acervo registry or peer";
    const NO_STORE: &str = "this is a registry or a peer of a share and not a store";
    let web = "found there: a web server";
    // The service, what a command of the store prints about it, and what a command of the share
    // does.
    let table: [(&str, String, [&[&str]; 2]); 10] = [
        (
            "store",
            group.list(),
            [&[], &["this is a server of a store: a share needs an acervo registry"]],
        ),
        (
            "gateway",
            gateway.address.to_string(),
            [&["acervo gateway", STORE], &["acervo gateway", SHARE]],
        ),
        ("registry", registry.address(), [&[NO_STORE], &[]]),
        (
            "peer",
            of_peer.to_string(),
            [&[NO_STORE], &["this is a peer of a share and no registry"]],
        ),
        ("web server", listener(web_server).to_string(), [&[web, STORE], &[web, SHARE]]),
        ("old web server", listener(old_web_server).to_string(), [&[web, STORE], &[web, SHARE]]),
        (
            "SSH server",
            listener(ssh_server).to_string(),
            [&["an SSH server", STORE], &["an SSH server", SHARE]],
        ),
        (
            "mute",
            listener(hold).to_string(),
            [&["did not greet in time"], &["was reached, but does not answer"]],
        ),
        (
            "closing",
            listener(drop).to_string(),
            [
                &["closed without a greeting: is it a server"],
                &["closed without a greeting: is it an acervo registry"],
            ],
        ),
        ("nobody", nobody.to_string(), [&["connection refused"], &["connection refused"]]),
    ];
    let of_store: [&[&str]; 4] = [&["get", "k"], &["put", "k", "v"], &["health"], &["status"]];
    let of_share: [&[&str]; 2] = [&["files"], &["fetch", "film"]];
    thread::scope(|scope| {
        // All at the same time, because each waits for a silent service.
        for (who, address, [at_store, at_share]) in &table {
            let kinds =
                [("--servers", &of_store[..], at_store), ("--registry", &of_share[..], at_share)];
            for (flag, commands, named) in kinds {
                // A command and a service that belong together have nothing to be told.
                for command in commands.iter().filter(|_| !named.is_empty()) {
                    scope.spawn(move || check(who, command, &[flag, address], named));
                }
            }
        }
    });
}

fn check(who: &str, command: &[&str], at: &[&str], named: &[&str]) {
    let Ran { status, out, err } = run(&[command, at].concat());
    assert_eq!(status, 3, "{command:?} at {who}: {err}");
    // The table that `status` prints is its answer, on standard output.
    let said = if command[0] == "status" { out } else { err };
    for name in named {
        assert!(said.contains(name), "{command:?} at {who} does not say {name:?}: {said}");
    }
    if command[0] == "status" {
        assert!(said.contains("none of these servers answered"), "{said}");
        assert!(!said.contains("elected"), "nothing is known of an election: {said}");
    }
}
