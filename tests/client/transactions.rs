//! Transactions of the client library, and what it makes of them, against scripted servers: what it
//! sends, what it reads when an answer leaves something out, and what it believes.

use std::sync::Mutex;
use std::time::Duration;

use acervo::client::{
    Client, ClientError, Comparison, Effect, Facts, KeyRange, Row, Timestamp, Txn, TxnDone, TxnOp,
    TxnOutput, Version,
};
use acervo::limits;
use acervo::model::{
    OpResult, PageOf, Previous, PutIf, PutSequential, ReadView, TxnAnswer, TxnResult, TxnRow,
    TxnVersion, WriteAnswer, WriteOp,
};
use acervo::wire::message::{ErrorCode, PageRequest, PageView, Reply, Request};
use bytes::Bytes;

use crate::fake_server::{FakeServer, Link, error, nobody, put_ok, value};

/// The version of the transactions here.
const T: i64 = 40;

fn client_of(server: &FakeServer) -> Client {
    Client::connect([server.address]).unwrap()
}

fn facts(of: i64) -> Facts {
    Facts::following(None, Timestamp(of))
}

fn found(timestamp: i64, value: Option<&'static str>) -> TxnVersion {
    let facts = facts(timestamp);
    TxnVersion { timestamp: Timestamp(timestamp), facts, value: value.map(Bytes::from) }
}

fn version(timestamp: i64, value: &'static str) -> Version {
    let facts = Some(facts(timestamp));
    Version { timestamp: Timestamp(timestamp), value: value.into(), facts }
}

fn txn_ok(branches: u64, results: Option<Vec<TxnResult>>) -> Reply {
    let answer = TxnAnswer { succeeded: branches & 1 == 1, results };
    Reply::WriteOk(WriteAnswer {
        timestamp: Timestamp(T),
        result: OpResult::Txn { branches },
        previous: None,
        txn: Some(Box::new(answer)),
    })
}

/// A transaction that writes, with these operations.
fn writing(ops: impl IntoIterator<Item = TxnOp>) -> Txn {
    ops.into_iter().fold(Txn::default(), Txn::then)
}

/// A server that answers every write like this, and every page with the rows that `has` tells.
fn server_with(
    answer: impl Fn() -> Reply + Send + Sync + 'static,
    has: impl Fn(&Bytes) -> Option<Version> + Send + Sync + 'static,
) -> FakeServer {
    FakeServer::start(move |id, request, link: &Link| match request {
        Request::Write(_) | Request::Txn(_) => link.reply(id, answer()),
        Request::Page(PageRequest { of: PageOf::Keys { keys }, view, .. }) => {
            let PageView::Next(view) = view else { panic!("{view:?}") };
            let row = |key: Bytes| Row { found: has(&key), key };
            let rows = keys.into_iter().map(row).collect();
            link.reply(id, Reply::PageOk { rows, view, next: None });
        }
        other => panic!("{other:?}"),
    })
}

fn pages(server: &FakeServer) -> Vec<PageRequest> {
    let page = |request| match request {
        Request::Page(page) => Some(page),
        _ => None,
    };
    server.requests().into_iter().filter_map(page).collect()
}

#[test]
fn a_transaction_is_sent_as_it_is_written_and_tells_its_branch_and_results() {
    let txn = Txn::when(Comparison::version("a").equals(Timestamp(7)))
        .and(Comparison::count(KeyRange::prefix("b").unwrap()).is_less_than(3))
        .then(TxnOp::put("a", "1"))
        .or_else(TxnOp::get("a"))
        .or_else(TxnOp::get("b"));
    let results = || vec![TxnResult::Get(Some(found(20, Some("has")))), TxnResult::Get(None)];
    let server = server_with(move || txn_ok(0, Some(results())), |_| panic!("nothing is missing"));
    let TxnDone { timestamp, succeeded, results, server: by } =
        client_of(&server).txn(txn.clone()).unwrap();
    assert_eq!((timestamp, succeeded, by), (Timestamp(T), false, server.address));
    assert_eq!(results, [TxnOutput::Get(Some(version(20, "has"))), TxnOutput::Get(None)]);
    let [Request::Write(sent)] = &server.requests()[..] else { panic!() };
    assert_eq!(sent.op, WriteOp::Txn(txn));
}

#[test]
fn values_that_an_answer_leaves_out_are_known_or_read_as_of_just_before() {
    let inside = writing([TxnOp::get("own"), TxnOp::del("gone")]);
    let txn = writing([
        TxnOp::get("old"),
        TxnOp::get("own"),
        TxnOp::replace("own", "new"),
        TxnOp::range(KeyRange::between("a", "z").unwrap(), 9),
        TxnOp::count(KeyRange::all()),
    ])
    .then(inside);
    let row = |key: &'static str, found| TxnRow { key: key.into(), found };
    let results = move || {
        vec![
            TxnResult::Get(Some(found(20, None))),
            TxnResult::Get(Some(found(21, None))),
            TxnResult::Put { previous: Some(found(21, None)) },
            TxnResult::Range {
                rows: vec![row("m", found(22, None)), row("own", found(T, None))],
                count: 2,
                has_more: true,
            },
            TxnResult::Range { rows: Vec::new(), count: 5, has_more: false },
            TxnResult::Txn(TxnAnswer {
                succeeded: true,
                results: Some(vec![
                    TxnResult::Get(Some(found(T, None))),
                    TxnResult::Del { previous: Some(found(23, Some("short"))) },
                ]),
            }),
        ]
    };
    let server = server_with(
        move || txn_ok(0b11, Some(results())),
        |key| match &key[..] {
            b"old" => Some(version(20, "old value")),
            b"own" => Some(version(21, "older")),
            b"m" => Some(version(22, "in the range")),
            other => panic!("{other:?} is not missing"),
        },
    );
    let done = client_of(&server).txn(txn).unwrap();
    let row = |key: &'static str, version| Row { key: key.into(), found: Some(version) };
    assert_eq!(
        done.results,
        [
            TxnOutput::Get(Some(version(20, "old value"))),
            TxnOutput::Get(Some(version(21, "older"))),
            TxnOutput::Put { previous: Some(version(21, "older")) },
            TxnOutput::Range {
                rows: vec![row("m", version(22, "in the range")), row("own", version(T, "new"))],
                count: 2,
                has_more: true,
            },
            TxnOutput::Range { rows: Vec::new(), count: 5, has_more: false },
            TxnOutput::Txn {
                succeeded: true,
                results: vec![
                    TxnOutput::Get(Some(version(T, "new"))),
                    TxnOutput::Del { previous: Some(version(23, "short")) },
                ],
            },
        ]
    );
    let [page] = &pages(&server)[..] else { panic!("one read for all of them") };
    assert_eq!(page.view, PageView::Next(ReadView::before(Timestamp(T))));
}

#[test]
fn a_transaction_whose_results_are_lost_says_what_is_known() {
    let get = || writing([TxnOp::put("k", "v"), TxnOp::get("old")]);
    let told = || vec![TxnResult::Put { previous: None }, TxnResult::Get(Some(found(20, None)))];
    let lost: [(Option<Vec<TxnResult>>, Option<Version>); 3] = [
        // A very late retry.
        (None, None),
        // What is to be read is off the disk by then, or is another one.
        (Some(told()), None),
        (Some(told()), Some(version(30, "other"))),
    ];
    for (results, has) in lost {
        let server = server_with(move || txn_ok(1, results.clone()), move |_| has.clone());
        let error = client_of(&server).txn(get()).unwrap_err();
        let ClientError::ResultsUnread { timestamp, succeeded, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((*timestamp, *succeeded), (Timestamp(T), true));
        assert_eq!(error.effect(), Effect::Done);
        assert!(error.to_string().contains("with version 40, by its branch 'then'"), "{error}");
    }
}

#[test]
fn a_transaction_that_would_look_through_too_much_has_done_nothing() {
    let server = server_with(
        || {
            let (timestamp, result) = (Timestamp(T), OpResult::TooLong);
            Reply::WriteOk(WriteAnswer { timestamp, result, previous: None, txn: None })
        },
        |_| None,
    );
    let txn = writing([TxnOp::del_range(KeyRange::all())]);
    let error = client_of(&server).txn(txn).unwrap_err();
    assert_eq!((&error, error.effect()), (&ClientError::TxnTooLong, Effect::NotDone));
    assert!(error.is_of_the_request());
    assert!(error.to_string().contains("more than 10000 keys"), "{error}");
}

#[test]
fn what_no_group_carries_out_is_sent_to_nobody() {
    let client = Client::connect([nobody()]).unwrap();
    let refused = |txn: Txn| client.txn(txn).unwrap_err();
    let twice = refused(writing([TxnOp::put("k", "1"), TxnOp::del("k")]));
    assert!(matches!(&twice, ClientError::InvalidTxn(why) if why.contains("twice")), "{twice}");
    assert!(twice.is_of_the_request());
    let mut deep = writing([TxnOp::put("k", "1")]);
    for _ in 0..limits::TRANSACTION_DEPTH_MAX {
        deep = Txn::default().then(deep);
    }
    assert!(matches!(refused(deep), ClientError::InvalidTxn(_)));
    assert_eq!(refused(writing([TxnOp::get("")])), ClientError::KeyEmpty);
    let long = vec![0; limits::KEY_BYTES_MAX + 1];
    assert_eq!(refused(writing([TxnOp::get(&long)])), ClientError::KeyTooLong(long.len()));
    let long = vec![0; limits::VALUE_BYTES_MAX + 1];
    assert_eq!(refused(writing([TxnOp::put("k", &long)])), ClientError::ValueTooLong(long.len()));
    let half = vec![0; limits::VALUE_BYTES_MAX];
    let both = writing([TxnOp::put("k", &half), TxnOp::put("l", &half)]);
    assert!(matches!(refused(both), ClientError::TooManyBytes(_)));
}

/// What has another shape than the transaction is the answer to something else.
#[test]
fn an_answer_that_does_not_fit_is_not_believed() {
    let wrong: [fn() -> Reply; 4] = [
        || txn_ok(1, Some(Vec::new())),
        || txn_ok(1, Some(vec![TxnResult::Get(None)])),
        || txn_ok(0b10, Some(vec![TxnResult::Put { previous: None }])),
        || put_ok(T),
    ];
    for answer in wrong {
        let server = server_with(answer, |_| None);
        let timeout = Duration::from_millis(100);
        let client = Client::builder([server.address]).request_timeout(timeout).build().unwrap();
        let error = client.txn(writing([TxnOp::put("k", "v")])).unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    }
}

#[test]
fn a_transaction_that_only_reads_is_no_write_and_never_goes_back() {
    let as_of = Mutex::new(vec![55, 60, 50]);
    let server = FakeServer::start(move |id, request, link| match request {
        Request::Txn(request) => {
            assert!(request.linearizable && request.txn == writing([TxnOp::get("k")]));
            let results = Some(vec![TxnResult::Get(Some(found(50, None)))]);
            let answer = TxnAnswer { succeeded: true, results };
            let as_of = Timestamp(as_of.lock().unwrap().pop().unwrap());
            link.reply(id, Reply::TxnOk { answer, as_of });
        }
        Request::Page(request) => {
            assert_eq!(request.view, PageView::Next(ReadView::as_of(Timestamp(60))));
            let rows = vec![Row { key: "k".into(), found: Some(version(50, "long")) }];
            let view = ReadView::as_of(Timestamp(60));
            link.reply(id, Reply::PageOk { rows, view, next: None });
        }
        Request::Get(request) => {
            assert_eq!(request.session, Some(Timestamp(60)), "what a transaction saw is seen");
            link.reply(id, value("later", 61));
        }
        other => panic!("{other:?}"),
    });
    // The first answer is older than what the client has seen.
    let client = client_of(&server).with_session("s1-0000000000000037").unwrap();
    let done = client.txn(writing([TxnOp::get("k")])).unwrap();
    assert_eq!((done.timestamp, done.succeeded), (Timestamp(60), true));
    assert_eq!(done.results, [TxnOutput::Get(Some(version(50, "long")))]);
    client.get("k").unwrap();
    let asked = server.requests().into_iter().filter(|asked| matches!(asked, Request::Txn(_)));
    assert_eq!(asked.count(), 2);
}

#[test]
fn what_a_transaction_has_written_is_never_read_older() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(_) => {
            link.reply(id, txn_ok(1, Some(vec![TxnResult::Put { previous: None }])));
        }
        Request::Get(request) => {
            assert_eq!(request.session, Some(Timestamp(T)));
            link.reply(id, value("v", T));
        }
        other => panic!("{other:?}"),
    });
    let client = client_of(&server);
    client.txn(writing([TxnOp::put("k", "v")])).unwrap();
    client.get("other").unwrap();
}

/// Each attempt is a write of its own under the version that is there just before it, and the sum
/// is that of the number which was there. An attempt under what a conflict had told before the
/// pause failed as good as always beside others, and two of sixteen hundred additions gave up.
#[test]
fn a_counter_goes_on_from_what_was_there_instead() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Get(request) if request.linearizable => link.reply(id, value("41", 21)),
        Request::Get(_) => link.reply(id, value("5", 10)),
        Request::Write(write) => {
            let WriteOp::PutIf(PutIf { value, condition, .. }) = write.op else { panic!() };
            let newest = match &value[..] {
                b"7" => Some((20, "41")),
                b"43" => None,
                other => panic!("{other:?} under {condition:?}"),
            };
            let reply = newest.map_or(put_ok(30), |(timestamp, value)| {
                let timestamp = Timestamp(timestamp);
                let value = Some(value.into());
                Reply::WriteOk(WriteAnswer {
                    timestamp: Timestamp(T),
                    result: OpResult::ConditionFailed { newest: Some(timestamp) },
                    previous: Some(Previous::Value { timestamp, facts: facts(20), value }),
                    txn: None,
                })
            });
            link.reply(id, reply);
        }
        other => panic!("{other:?}"),
    });
    let sum = client_of(&server).incr("k", 2).unwrap();
    assert_eq!((sum.value, sum.timestamp), (43, Timestamp(30)));
    let conditions: Vec<_> = server
        .requests()
        .into_iter()
        .filter_map(|request| match request {
            Request::Write(write) => Some((write.request.sequence, write.op)),
            _ => None,
        })
        .map(|(sequence, op)| match op {
            WriteOp::PutIf(PutIf { condition, .. }) => (sequence, format!("{condition:?}")),
            other => panic!("{other:?}"),
        })
        .collect();
    let under = |version| format!("Version(Timestamp({version}))");
    assert_eq!(conditions, [(1, under(10)), (2, under(21))]);
}

/// A server that lags may have said so: before a person is told, a majority has confirmed it.
#[test]
fn what_cannot_be_added_to_is_looked_at_twice_and_left_alone() {
    let has = |value: &'static str| {
        FakeServer::start(move |id, request, link| match request {
            Request::Get(request) if request.linearizable => {
                link.reply(id, crate::fake_server::value(value, 20));
            }
            Request::Get(_) => link.reply(id, crate::fake_server::value("many", 10)),
            _ => link.reply(id, put_ok(30)),
        })
    };
    let incr = |value, by| client_of(&has(value)).incr("k", by);
    assert_eq!(incr("more", 1), Err(ClientError::NotANumber(Timestamp(20))));
    let (number, by) = (i64::MAX, 1);
    assert_eq!(incr("9223372036854775807", 1), Err(ClientError::SumTooGreat { number, by }));
    assert_eq!(incr("-1", -4).unwrap().value, -5);
}

#[test]
fn a_write_of_a_counter_that_may_be_done_is_not_tried_under_another_version() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Get(_) => link.reply(id, value("5", 10)),
        _ => {
            let mut reply = error(ErrorCode::Unconfirmed, "not all servers have it");
            let Reply::Error(told) = &mut reply else { panic!() };
            told.effect = Effect::Done;
            link.reply(id, reply);
        }
    });
    let error = client_of(&server).incr("k", 1).unwrap_err();
    assert_eq!(error.effect(), Effect::Done);
    let writes = server.requests().into_iter().filter(|asked| matches!(asked, Request::Write(_)));
    assert_eq!(writes.count(), 1);
}

#[test]
fn a_sequential_key_ends_in_the_version_of_its_write() {
    let server = FakeServer::start(|id, _, link| link.reply(id, put_ok(T)));
    let done = client_of(&server).put_sequential("queue/", "v").unwrap();
    assert_eq!((&done.key[..], done.timestamp.0), (&b"queue/00000000000000000040"[..], T));
    let [Request::Write(sent)] = &server.requests()[..] else { panic!() };
    let op = PutSequential { prefix: "queue/".into(), value: "v".into() };
    assert_eq!(sent.op, WriteOp::PutSequential(op));

    let client = Client::connect([nobody()]).unwrap();
    let long = vec![b'k'; limits::KEY_BYTES_MAX - 19];
    let too_long = ClientError::KeyTooLong(limits::KEY_BYTES_MAX + 1);
    assert_eq!(client.put_sequential(&long, "v"), Err(too_long));
    assert_eq!(client.put_sequential("", "v"), Err(ClientError::KeyEmpty));
}
