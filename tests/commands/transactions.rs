//! Transactions, counters and sequential keys against real servers, by many at once and while a
//! server dies; and what the commands say where an answer is incomplete.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use acervo::client::{Comparison, KeyRange, ReadOptions, Txn, TxnOp, TxnOutput};
use acervo::model::{OpResult, Timestamp, TxnAnswer, WriteAnswer};
use acervo::wire::message::{Reply, Request};
use bytes::Bytes;

use crate::fake_server::FakeServer;
use crate::support::{ACERVO, Group};

/// A command's exit status, what it printed, and what it said beside.
fn run(servers: &str, arguments: &[&str], input: &str) -> (i32, String, String) {
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
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code().expect("it ended by itself"), out, err)
}

/// Which branch was done is what a script needs, whatever else is not known.
#[test]
fn a_transaction_whose_results_are_lost_still_tells_its_branch() {
    for branches in [1, 0] {
        let server = FakeServer::start(move |id, request, link| {
            let Request::Write(_) = request else { panic!("{request:?}") };
            link.reply(
                id,
                Reply::WriteOk(WriteAnswer {
                    timestamp: Timestamp(70),
                    result: OpResult::Txn { branches },
                    previous: None,
                    txn: Some(Box::new(TxnAnswer { succeeded: branches == 1, results: None })),
                }),
            );
        });
        let servers = server.address.to_string();
        let branch = ["else", "then"][branches as usize];
        let status = 1 - branches as i32;
        let text = "if k is absent\nthen put k v\nelse get k";
        let (exit, out, err) = run(&servers, &["txn"], text);
        assert_eq!((exit, out), (status, format!("{branch}\t70\n")));
        assert!(err.contains("the transaction is done, with version 70"), "{err}");
        let (exit, out, _) = run(&servers, &["txn", "--format", "json"], text);
        assert_eq!(
            (exit, out),
            (status, format!("{{\"branch\":\"{branch}\",\"timestamp\":70}}\n"))
        );
        let (exit, out, err) = run(&servers, &["del", "k", "--if-version", "7"], "");
        assert_eq!((exit, out.as_str()), (status, ["", "70\n"][branches as usize]));
        assert!(err.contains("could not be read"), "{err}");
    }
}

/// Eight threads with a client each add to one number, also while a server is killed.
#[test]
fn each_addition_to_a_counter_counts_once_while_a_server_dies() {
    let mut group = Group::start(3, &["--console", "off"]);
    let leader = group.leader_of_all();
    let clients: Vec<_> = (0..8).map(|_| group.client()).collect();
    let sums = thread::scope(|scope| {
        let adding: Vec<_> = clients
            .iter()
            .map(|client| {
                scope.spawn(move || {
                    (0..25).map(|_| client.incr("visits", 1).unwrap().value).collect::<Vec<_>>()
                })
            })
            .collect();
        group.kill(leader);
        adding.into_iter().flat_map(|adding| adding.join().unwrap()).collect::<Vec<i64>>()
    });
    assert_eq!(sums.len(), 200);
    let all: BTreeSet<i64> = sums.into_iter().collect();
    assert_eq!(all, (1..=200).collect(), "each has a number of its own");
    assert_eq!(clients[0].get_linearizable("visits").unwrap().value(), Some(&b"200"[..]));
}

/// Money moves to and fro between accounts, and no reader ever sees another sum.
#[test]
fn nobody_sees_a_part_of_a_transaction() {
    let mut group = Group::start(3, &["--console", "off"]);
    let accounts: Vec<String> = (0..4).map(|account| format!("account:{account}")).collect();
    let (writer, reader) = (group.client(), group.client());
    writer.put_all(accounts.iter().map(|account| (account, "100"))).unwrap();
    let leader = group.leader_of_all();
    let balance = |value: &[u8]| str::from_utf8(value).unwrap().parse::<i64>().unwrap();
    thread::scope(|scope| {
        let moving = scope.spawn(|| {
            let mut moved = 0;
            for round in 0..60 {
                let (from, to) = (&accounts[round % 4], &accounts[(round + 1) % 4]);
                let look = Txn::default().then(TxnOp::get(from)).then(TxnOp::get(to));
                let seen: Vec<(Timestamp, i64)> = writer
                    .txn(look)
                    .unwrap()
                    .results
                    .into_iter()
                    .map(|result| match result {
                        TxnOutput::Get(Some(found)) => (found.timestamp, balance(&found.value)),
                        other => panic!("{other:?}"),
                    })
                    .collect();
                let [(from_version, from_has), (to_version, to_has)] = seen[..] else { panic!() };
                let done = writer.txn(
                    Txn::when(Comparison::version(from).equals(from_version))
                        .and(Comparison::version(to).equals(to_version))
                        .then(TxnOp::put(from, (from_has - 7).to_string()))
                        .then(TxnOp::put(to, (to_has + 7).to_string())),
                );
                moved += usize::from(done.unwrap().succeeded);
            }
            moved
        });
        group.kill(leader);
        let range = || KeyRange::prefix("account:").unwrap();
        while !moving.is_finished() {
            let rows = reader.scan(range(), ReadOptions::default());
            let sum: i64 = rows.map(|row| balance(row.unwrap().value().unwrap())).sum();
            assert_eq!(sum, 400);
            let look = Txn::default().then(TxnOp::range(range(), 9));
            let TxnOutput::Range { rows, .. } = &reader.txn(look).unwrap().results[0] else {
                panic!()
            };
            assert_eq!(rows.iter().map(|row| balance(row.value().unwrap())).sum::<i64>(), 400);
        }
        assert_eq!(moving.join().unwrap(), 60, "nobody else has changed an account");
    });
}

/// What has no room in an answer comes whole nevertheless: values that the transaction has met, and
/// those that it has written itself.
#[test]
fn long_values_come_whole_from_a_transaction() {
    let group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let long = |letter: u8| Bytes::from(vec![letter; 600_000]);
    for (key, letter) in [("a", b'a'), ("b", b'b'), ("c", b'c')] {
        client.put(key, long(letter)).unwrap();
    }
    let done = client
        .txn(
            Txn::default()
                .then(TxnOp::range(KeyRange::between("a", "c").unwrap(), 9))
                .then(TxnOp::replace("a", long(b'x')))
                .then(TxnOp::get("a"))
                .then(TxnOp::del("b")),
        )
        .unwrap();
    let value = |found: &Option<acervo::client::Version>| found.as_ref().unwrap().value.clone();
    let [
        TxnOutput::Range { rows, .. },
        TxnOutput::Put { previous: a },
        TxnOutput::Get(own),
        TxnOutput::Del { previous: b },
    ] = &done.results[..]
    else {
        panic!("other results")
    };
    let values: Vec<Bytes> = rows.iter().map(|row| value(&row.found)).collect();
    assert!(values == [long(b'a'), long(b'b'), long(b'c')]);
    assert!(value(a) == long(b'a') && value(own) == long(b'x') && value(b) == long(b'b'));
}

#[test]
fn sequential_keys_of_many_at_once_are_all_there_in_the_order_of_their_versions() {
    let group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let made: BTreeSet<Bytes> = thread::scope(|scope| {
        let making: Vec<_> = (0..8)
            .map(|_| {
                let client = &client;
                scope.spawn(move || {
                    let put = |_| {
                        let done = client.put_sequential("queue/", "task").unwrap();
                        let digits = format!("queue/{:020}", done.timestamp.0);
                        assert_eq!(done.key, digits);
                        done.key
                    };
                    (0..20).map(put).collect::<Vec<_>>()
                })
            })
            .collect();
        making.into_iter().flat_map(|making| making.join().unwrap()).collect()
    });
    assert_eq!(made.len(), 160);
    let rows = client.scan(KeyRange::prefix("queue/").unwrap(), ReadOptions::default());
    let found: Vec<Bytes> = rows.map(|row| row.unwrap().key).collect();
    assert_eq!(found, made.into_iter().collect::<Vec<_>>());
}
