//! Servers that die, bytes that are no HTTP/2, and the gateway's own end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use acervo::limits::SHORT_WRITE_ROWS_MAX;
use acervo::wire::message::{ErrorCode, Request};
use futures_util::stream;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::fake_server::{FakeServer, Link, busy, error, value};
use crate::site::{Site, channel, connect, key, pair, range, row, waiting, within};
use crate::support::gateway::Gateway;
use crate::support::{PATIENCE, eventually, exited_with, hangups_are_ignored};

#[test]
fn a_server_killed_in_the_middle_costs_no_acknowledged_write_and_no_call() {
    let mut site = Site::start();
    site.write("warm", "up");
    let leader = site.group.leader();
    let mut written = Vec::new();
    for at in 0..60 {
        if at == 20 {
            site.group.kill(leader);
        }
        if at == 40 {
            site.group.start_server(leader);
        }
        let (name, val) = (format!("k{}", at % 7), at.to_string());
        let ver = site.write(&name, &val);
        written.push(row(&name, &val, ver));
        assert_eq!(site.get(key(&name)).unwrap(), row(&name, &val, ver));
    }
    assert!(written.is_sorted_by(|one, next| one.ver < next.ver));
    for row in written {
        let asked = crate::site::key_at(&row.key, row.ver);
        assert_eq!(site.get(asked).unwrap(), row);
    }
}

fn health(site: &Site, service: &str) -> ServingStatus {
    site.runtime.block_on(async {
        let mut client = HealthClient::new(channel(&site.gateway).await);
        let request = HealthCheckRequest { service: service.into() };
        client.check(waiting(request)).await.unwrap().into_inner().status()
    })
}

/// The leader keeps a session's writes in order, and writes of several keys wait for their turns.
#[test]
fn writes_of_several_keys_and_long_ones_each_have_a_session_of_their_own() {
    let server = FakeServer::start(|id, _, link| {
        link.reply(id, error(ErrorCode::Invalid, "nothing is wanted here"));
    });
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(&dir, &server.address.to_string(), &[]);
    let most = SHORT_WRITE_ROWS_MAX;
    let pairs = |count: usize| stream::iter((0..count).map(|at| pair(&format!("{at:04}"), "v")));
    let keys = |count: usize| stream::iter((0..count).map(|at| key(&format!("{at:04}"))));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = connect(&gateway).await;
        client.put(waiting(pair("a", "v"))).await.unwrap_err();
        client.put_all(waiting(pairs(1))).await.unwrap_err();
        client.put_all(waiting(pairs(2))).await.unwrap_err();
        client.put_all(waiting(pairs(most))).await.unwrap_err();
        client.del_all(waiting(keys(most))).await.unwrap_err();
        client.put_all(waiting(pairs(most + 1))).await.unwrap_err();
        client.del_all(waiting(keys(most + 1))).await.unwrap_err();
        client.del_range(waiting(range(key("a"), key("b")))).await.unwrap_err();
    });
    let sessions: Vec<_> = server
        .requests()
        .into_iter()
        .filter_map(|request| match request {
            Request::Write(write) => Some(write.request.client),
            _ => None,
        })
        .collect();
    let [one, several, long] = [sessions[0], sessions[2], sessions[5]];
    assert!(one != several && several != long && one != long);
    assert_eq!(sessions, [one, one, several, several, several, long, long, long]);
}

#[test]
fn one_frozen_server_of_three_is_not_asked_by_every_third_call() {
    const CALLS: usize = 200;
    let count = |server: &FakeServer| {
        let requests = server.requests();
        requests.iter().filter(|request| matches!(request, Request::Get(_))).count()
    };
    let answer = |id, request, link: &Link| match request {
        Request::Get(_) => link.reply(id, value("v", 5)),
        _ => link.reply(id, busy("asked for something else", 0)),
    };
    // Greets, and says nothing more.
    let frozen = FakeServer::start_silent(|_, _, _| {});
    let good = [FakeServer::start(answer), FakeServer::start(answer)];
    let servers = [good[0].address, frozen.address, good[1].address].map(|at| at.to_string());
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(&dir, &servers.join(","), &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = connect(&gateway).await;
        for _ in 0..CALLS {
            assert_eq!(client.get(waiting(key("k"))).await.unwrap().into_inner().val, "v");
        }
    });
    // A busy machine may find the others silent for a moment, too.
    let asked = count(&frozen);
    assert!(asked <= CALLS / 20, "{asked} of {CALLS} calls");
    assert!(good.iter().map(count).sum::<usize>() >= CALLS);
}

#[test]
fn without_a_majority_and_without_servers_calls_are_unavailable_and_say_why() {
    let mut site = Site::start();
    site.write("k", "v");
    eventually("health", || (health(&site, "") == ServingStatus::Serving).then_some(()));
    site.group.kill(0);
    site.group.kill(1);

    let deadline = within(pair("k", "w"), Duration::from_millis(300));
    let status = site.runtime.block_on(site.client.clone().put(deadline)).unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    for status in [
        site.put(pair("k", "w")).unwrap_err(),
        site.get(key("k")).unwrap_err(),
        site.get_range(range(key("a"), key("z"))).unwrap_err(),
        site.del_all(vec![key("k")]).unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("of 3 servers"), "{status}");
    }

    site.group.kill(2);
    for service in ["", "project.KeyValueStore"] {
        let gone = || (health(&site, service) == ServingStatus::NotServing).then_some(());
        eventually("health turns", gone);
    }
    let status = site.get(key("k")).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("no server could be reached"), "{status}");

    (0..3).for_each(|at| site.group.start_server(at));
    let back = || (health(&site, "") == ServingStatus::Serving).then_some(());
    eventually("health comes back", back);
    eventually("the gateway works again", || site.put(pair("k", "x")).ok());
    assert_eq!(site.get(key("k")).unwrap().val, "x");
}

#[test]
fn the_gateway_describes_itself() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let site = Site::start();
    let ask = |message_request| {
        let request =
            ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
        site.runtime.block_on(async {
            let mut client = ServerReflectionClient::new(channel(&site.gateway).await);
            let requests = waiting(futures_util::stream::iter([request]));
            let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
            let answer: ServerReflectionResponse = answers.message().await.unwrap().unwrap();
            answer.message_response.unwrap()
        })
    };
    let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices("".into()))
    else {
        panic!("no list of services")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["project.KeyValueStore", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
    }
    let symbol = MessageRequest::FileContainingSymbol("project.KeyValueStore".into());
    let MessageResponse::FileDescriptorResponse(file) = ask(symbol) else {
        panic!("no description of the interface")
    };
    assert_eq!(file.file_descriptor_proto.len(), 1);
}

#[test]
fn garbage_costs_its_own_connection_and_nothing_else() {
    let seed = std::env::var("ACERVO_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("ACERVO_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let site = Site::start();
    let ver = site.write("k", "v");
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let openings: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        // Acervo's own protocol.
        b"\x00\x00\x00\x05HELLO",
        PREFACE,
        // A preface, good settings, and a headers frame that is cut off.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x10\x01\x04\0\0\0\x01",
    ];
    for round in 0..40 {
        let mut bytes = openings[round % openings.len()].to_vec();
        bytes.extend((0..random.random_range(16..4096)).map(|_| random.random::<u8>()));
        let mut stream = TcpStream::connect(site.gateway.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may close in the middle.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        let timed_out = matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "round {round}: the connection is kept");
        assert_eq!(site.get(key("k")).unwrap(), row("k", "v", ver), "round {round}");
    }
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let site = Site::start();
    let mut silent = TcpStream::connect(site.gateway.address).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    // HTTP/2 lets the server speak first; what matters is that it ends.
    let mut heard = Vec::new();
    let ended = silent.read_to_end(&mut heard);
    assert!(!matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "{ended:?}");
}

#[test]
fn a_stopping_gateway_answers_what_is_under_way() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        if signal == Signal::HUP && hangups_are_ignored() {
            continue;
        }
        let mut site = Site::start();
        let big = "v".repeat(100_000);
        let names: Vec<String> = (0..60).map(|at| format!("k{at:02}")).collect();
        site.put_all(names.iter().map(|name| pair(name, &big)).collect()).unwrap();
        let runtime = &site.runtime;
        let mut rows = runtime.block_on(async {
            let mut client = site.client.clone();
            let asked = waiting(range(key("k00"), key("k59")));
            let mut rows = client.get_range(asked).await.unwrap().into_inner();
            rows.message().await.unwrap().unwrap();
            rows
        });
        site.gateway.signal(signal);
        let stopping = || site.gateway.log().contains("stopping").then_some(());
        eventually("the gateway stops", stopping);
        let rest = runtime.block_on(async {
            let mut rest = 0;
            while let Some(row) = rows.message().await.unwrap() {
                assert_eq!(row.val, big);
                rest += 1;
            }
            rest
        });
        assert_eq!(rest, 59);
        drop(rows);
        let status = {
            let Site { gateway, client, runtime, .. } = &mut site;
            // The connection itself goes when the client has heard of it.
            let late = runtime.block_on(client.get(waiting(key("k00")))).unwrap_err();
            assert_eq!(late.code(), Code::Unavailable, "{late}");
            gateway.wait()
        };
        assert!(exited_with(status, 0), "{status}");
        assert!(TcpStream::connect(site.gateway.address).is_err(), "nobody listens any more");
    }
}

#[test]
fn a_gateway_says_in_a_line_what_keeps_it_from_starting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = std::process::Command::new(crate::support::ACERVO)
        .args(["gateway", "--listen", &address])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(exited_with(output.status, 4), "{}", output.status);
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
}
