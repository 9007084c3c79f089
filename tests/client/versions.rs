//! The client library's reads of the past, long reads and writes that tell what was before, against
//! scripted servers: what it sends, to whom, and what it makes of the answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use acervo::client::{
    Causality, Client, ClientError, Condition, ConditionalPut, ReadOptions, Row, Rows, Timing,
    Version,
};
use acervo::limits;
use acervo::model::{
    Barrier, DelAll, DelRange, Facts, OpResult, Operation, PageNext, PageOf, Previous, PutAll,
    PutIf, ReadView, Timestamp, WriteAnswer, WriteOp,
};
use acervo::wire::message::{
    ErrorCode, GetRequest, PageRequest, PageView, ReadAt, Reply, Request, WriteRequest,
};
use bytes::Bytes;

use crate::fake_server::{FakeServer, Link, busy, error, missing, nobody, put_ok, value, write_ok};

/// Seeds under which a client of two servers is certain to have started with each of them.
const SEEDS: std::ops::Range<u64> = 0..16;

const REFUSAL: Reply = Reply::TryOtherServerOrLater { timestamp: None, applied: Timestamp(1) };

/// No request is sent to a second server while the first may still answer, so that a slow machine
/// changes nothing.
fn unhurried() -> Timing {
    Timing { hedge_delay: Duration::from_secs(60), ..Timing::default() }
}

fn client_of(server: &FakeServer) -> Client {
    Client::connect([server.address]).unwrap()
}

fn at(version: i64) -> ReadOptions {
    ReadOptions::at(Timestamp(version))
}

/// The facts of a key that came into being with this version.
fn new(version: Timestamp) -> Facts {
    Facts::following(None, version)
}

fn row(key: impl Into<Bytes>, value: &'static str, timestamp: i64) -> Row {
    let timestamp = Timestamp(timestamp);
    let version = || Version { timestamp, value: value.into(), facts: None };
    Row { key: key.into(), found: (timestamp > Timestamp::ZERO).then(version) }
}

fn page(rows: Vec<Row>, at: i64, seen: i64, next: Option<PageNext>) -> Reply {
    Reply::PageOk { rows, view: view(at, seen), next }
}

fn view(at: i64, seen: i64) -> ReadView {
    ReadView { at: Timestamp(at), removals_up_to: Timestamp(seen) }
}

/// The first page of a newest state, by a client that has seen something up to `session`.
fn first(session: Option<i64>) -> PageView {
    PageView::First { at: None, session: session.map(Timestamp), linearizable: false }
}

/// A client's floors as a GET tells them: the version asked for, the greatest seen of the key, and
/// the session.
fn floors(get: &GetRequest) -> [Option<i64>; 3] {
    let (at, seen) = match get.read_at {
        ReadAt::Newest { seen } => (None, seen),
        ReadAt::Version(at) => (Some(at), None),
    };
    [at, seen, get.session].map(|timestamp| timestamp.map(|timestamp| timestamp.0))
}

fn range_from(from: &'static str) -> PageOf {
    PageOf::Range { from: from.into(), to: "z".into() }
}

fn keys(keys: &[&'static str]) -> PageOf {
    PageOf::Keys { keys: keys.iter().map(|key| Bytes::from(*key)).collect() }
}

fn gets(server: &FakeServer) -> Vec<GetRequest> {
    let get = |request| if let Request::Get(get) = request { Some(get) } else { None };
    server.requests().into_iter().filter_map(get).collect()
}

fn pages(server: &FakeServer) -> Vec<PageRequest> {
    let page = |request| if let Request::Page(page) = request { Some(page) } else { None };
    server.requests().into_iter().filter_map(page).collect()
}

fn writes(server: &FakeServer) -> Vec<WriteRequest> {
    let write = |request| if let Request::Write(write) = request { Some(write) } else { None };
    server.requests().into_iter().filter_map(write).collect()
}

fn all(rows: Rows) -> Vec<Row> {
    rows.map(|row| row.unwrap()).collect()
}

/// Answers a page of the range a to z, two rows each, as of 50 seen from 60.
fn three_pages(id: u64, request: &PageRequest, link: &Link) {
    let PageOf::Range { from, .. } = &request.of else { panic!("{request:?}") };
    let (rows, next) = match &from[..] {
        b"a" => (vec![row("a", "1", 10), row("c", "2", 11)], Some("d")),
        // A page without rows is no end.
        b"d" => (vec![], Some("e")),
        b"e" => (vec![row("e", "3", 12)], None),
        _ => panic!("{request:?}"),
    };
    link.reply(id, page(rows, 50, 60, next.map(|next| PageNext::From(next.into()))));
}

#[test]
fn the_pages_of_a_read_show_the_state_of_the_first_whoever_answers() {
    let mut answered = [0, 0];
    for seed in SEEDS {
        let start = || {
            FakeServer::start(|id, request, link| match request {
                Request::Write(_) => link.reply(id, put_ok(40)),
                Request::Page(request) => three_pages(id, &request, link),
                other => panic!("{other:?}"),
            })
        };
        let servers = [start(), start()];
        let addresses = servers.iter().map(|server| server.address);
        let client = Client::builder(addresses).seed(seed).timing(unhurried()).build().unwrap();
        client.put("k", "v").unwrap();
        let mut rows = client.range("a", "z", ReadOptions::default()).unwrap();
        assert_eq!((rows.at(), rows.seen()), (None, None));
        let first = rows.next().unwrap().unwrap();
        assert_eq!((rows.at(), rows.seen()), (Some(Timestamp(50)), Some(Timestamp(60))));
        let rest = all(rows);
        assert_eq!(
            [vec![first], rest].concat(),
            [row("a", "1", 10), row("c", "2", 11), row("e", "3", 12)]
        );
        let mut asked: Vec<PageRequest> = servers.iter().flat_map(pages).collect();
        asked.sort_by_key(|request| match &request.of {
            PageOf::Range { from, .. } => from.clone(),
            other => panic!("{other:?}"),
        });
        let next = PageView::Next(view(50, 60));
        let expected = [("a", self::first(Some(40))), ("d", next), ("e", next)];
        for (request, (from, view)) in asked.iter().zip(expected) {
            assert_eq!((&request.of, request.view), (&range_from(from), view));
        }
        assert_eq!(asked.len(), 3);
        for (count, server) in answered.iter_mut().zip(&servers) {
            *count += pages(server).len();
        }
    }
    assert!(answered.iter().all(|count| *count > 0), "{answered:?} of the pages came from each");
}

#[test]
fn a_server_that_is_behind_a_page_sends_the_reader_to_another() {
    for seed in SEEDS {
        let behind = FakeServer::start(|id, request, link| match request {
            Request::Page(PageRequest { view: PageView::Next(_), .. }) => link.reply(id, REFUSAL),
            Request::Page(request) => three_pages(id, &request, link),
            other => panic!("{other:?}"),
        });
        let good = FakeServer::start(|id, request, link| {
            let Request::Page(request) = request else { panic!("{request:?}") };
            three_pages(id, &request, link);
        });
        let servers = [behind.address, good.address];
        let client = Client::builder(servers).seed(seed).timing(unhurried()).build().unwrap();
        assert_eq!(all(client.range("a", "z", ReadOptions::default()).unwrap()).len(), 3);
    }
}

#[test]
fn a_page_is_asked_for_again_when_its_connection_breaks() {
    let count = AtomicUsize::new(0);
    let server = FakeServer::start(move |id, request, link| {
        let Request::Page(request) = request else { panic!("{request:?}") };
        if count.fetch_add(1, Ordering::SeqCst) == 1 {
            link.0.lock().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
        } else {
            three_pages(id, &request, link);
        }
    });
    assert_eq!(all(client_of(&server).range("a", "z", ReadOptions::default()).unwrap()).len(), 3);
    let asked = pages(&server);
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[1], asked[2]);
}

#[test]
fn nothing_is_asked_before_the_first_row_is_wanted_nor_after_the_last() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Page(request) = request else { panic!("{request:?}") };
        three_pages(id, &request, link);
    });
    let client = client_of(&server);
    let mut rows = client.range("a", "z", ReadOptions::default()).unwrap();
    assert_eq!(server.requests().len(), 0);
    rows.next().unwrap().unwrap();
    assert_eq!(server.requests().len(), 1, "a page at a time");
    rows.next().unwrap().unwrap();
    assert_eq!(server.requests().len(), 1);
    rows.next().unwrap().unwrap();
    assert!(rows.next().is_none() && rows.next().is_none());
    assert_eq!(server.requests().len(), 3);
    assert_eq!(all(client.get_all::<&str>([], ReadOptions::default()).unwrap()), []);
    assert_eq!(server.requests().len(), 3, "no keys, no question");
}

#[test]
fn an_expired_read_ends_with_that_error() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Page(request) if matches!(request.view, PageView::First { .. }) => {
            three_pages(id, &request, link)
        }
        _ => link.reply(id, error(ErrorCode::Expired, "too late")),
    });
    let mut rows = client_of(&server).range("a", "z", ReadOptions::default()).unwrap();
    assert_eq!(rows.by_ref().take(2).filter(|row| row.is_ok()).count(), 2);
    let expected = ClientError::Expired { server: server.address, message: "too late".to_owned() };
    assert_eq!(rows.next(), Some(Err(expected)));
    assert_eq!(rows.next(), None);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn an_answer_that_is_none_to_the_question_is_left_for_another_server() {
    let bad: [fn() -> Reply; 5] = [
        // No further on, of another kind, or no page.
        || page(vec![], 50, 60, Some(PageNext::From("a".into()))),
        || page(vec![], 50, 60, Some(PageNext::Skip(1))),
        || page(vec![], 50, 60, Some(PageNext::At(Timestamp(3)))),
        || value("v", 5),
        || put_ok(5),
    ];
    for answer in bad {
        let mut misled = 0;
        for seed in SEEDS {
            let liar = FakeServer::start(move |id, _, link| link.reply(id, answer()));
            let good = FakeServer::start(|id, request, link| {
                let Request::Page(request) = request else { panic!("{request:?}") };
                three_pages(id, &request, link);
            });
            let servers = [liar.address, good.address];
            let client = Client::builder(servers).seed(seed).timing(unhurried()).build().unwrap();
            assert_eq!(all(client.range("a", "z", ReadOptions::default()).unwrap()).len(), 3);
            misled += liar.requests().len();
        }
        assert!(misled > 0, "no seed asked the liar first");
    }
    // Of keys, as many rows as were asked for.
    for next in [None, Some(PageNext::Skip(0)), Some(PageNext::Skip(2)), Some(PageNext::Skip(9))] {
        let liar = FakeServer::start(move |id, _, link| {
            link.reply(id, page(vec![row("a", "1", 5)], 50, 60, next.clone()));
        });
        let client = Client::builder([liar.address]).request_timeout(Duration::from_millis(50));
        let client = client.build().unwrap();
        let first = client.get_all(["a", "b"], ReadOptions::default()).unwrap().next().unwrap();
        assert!(matches!(first, Err(ClientError::TimedOut { .. })), "{first:?}");
    }
}

#[test]
fn keys_are_asked_for_a_page_at_a_time_and_go_on_after_what_was_answered() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Page(request) = request else { panic!("{request:?}") };
        let PageOf::Keys { keys } = request.of else { panic!("{:?}", request.of) };
        // Never more than a thousand at once.
        let rows: Vec<Row> = keys.iter().take(1000).map(|key| row(key.clone(), "", 0)).collect();
        let next = (keys.len() > rows.len()).then_some(PageNext::Skip(rows.len() as u32));
        link.reply(id, page(rows, 50, 60, next));
    });
    let wanted: Vec<String> = (0..5_000).map(|number| format!("key {number}")).collect();
    let rows = all(client_of(&server).get_all(&wanted, ReadOptions::default()).unwrap());
    assert!(rows.iter().map(|row| &row.key[..]).eq(wanted.iter().map(String::as_bytes)));
    let asked: Vec<(usize, PageView)> = pages(&server)
        .iter()
        .map(|request| match &request.of {
            PageOf::Keys { keys } => (keys.len(), request.view),
            other => panic!("{other:?}"),
        })
        .collect();
    let further = [4000, 3000, 2000, 1000].map(|count| (count, PageView::Next(view(50, 60))));
    assert_eq!(asked, [&[(4096, first(None))], &further[..]].concat());
}

#[test]
fn a_request_for_long_keys_has_a_bound() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Page(request) = request else { panic!("{request:?}") };
        let PageOf::Keys { keys } = request.of else { panic!("{:?}", request.of) };
        let rows = keys.into_iter().map(|key| row(key, "", 0)).collect();
        link.reply(id, page(rows, 50, 60, None));
    });
    let wanted = vec![vec![b'k'; limits::KEY_BYTES_MAX]; 1000];
    let rows = all(client_of(&server).get_all(&wanted, ReadOptions::default()).unwrap());
    assert_eq!(rows.len(), 1000);
    for request in pages(&server) {
        let PageOf::Keys { keys } = request.of else { panic!("{:?}", request.of) };
        assert!(keys.len() * limits::KEY_BYTES_MAX <= limits::PAGE_BYTES_MAX, "{}", keys.len());
    }
}

#[test]
fn versions_go_on_at_the_one_that_did_not_fit() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Page(request) = request else { panic!("{request:?}") };
        assert_eq!(request.of, PageOf::Versions { key: "k".into() });
        let next = |next| Some(PageNext::At(Timestamp(next)));
        let (at, rows, next) = match request.view {
            PageView::First { .. } => (50, vec![row("k", "d", 40), row("k", "c", 30)], next(20)),
            PageView::Next(shown) if shown == view(20, 50) => {
                (20, vec![row("k", "b", 20)], next(10))
            }
            PageView::Next(shown) if shown == view(10, 50) => (10, vec![row("k", "a", 10)], None),
            other => panic!("{other:?}"),
        };
        link.reply(id, page(rows, at, 50, next));
    });
    let mut rows = client_of(&server).versions("k", ReadOptions::default()).unwrap();
    let versions: Vec<i64> = rows.by_ref().map(|row| row.unwrap().timestamp().unwrap().0).collect();
    assert_eq!(versions, [40, 30, 20, 10]);
    assert_eq!(rows.at(), Some(Timestamp(50)), "the read is as of one version throughout");
}

#[test]
fn the_past_is_read_from_whoever_has_been_there_without_a_write() {
    let mut refused = 0;
    for seed in SEEDS {
        let behind = FakeServer::start(|id, _, link| link.reply(id, REFUSAL));
        let good = FakeServer::start(|id, request, link| match request {
            Request::Get(_) => link.reply(id, value("then", 20)),
            Request::Page(_) => link.reply(id, page(vec![row("a", "then", 20)], 200, 200, None)),
            other => panic!("{other:?}"),
        });
        let servers = [behind.address, good.address, nobody()];
        let client = Client::builder(servers).seed(seed).timing(unhurried()).build().unwrap();
        let got = client.read("k", at(30)).unwrap();
        let then = Version { timestamp: Timestamp(20), value: "then".into(), facts: None };
        assert_eq!(got.found, Some(then));
        let rows = client.range("a", "z", at(200)).unwrap();
        assert_eq!(all(rows), [row("a", "then", 20)]);
        assert!(writes(&behind).is_empty() && writes(&good).is_empty());
        refused += behind.requests().len();
    }
    assert!(refused > 0, "no seed asked the server that is behind");
}

/// A server that has applied everything up to a mark, once one was written, and up to 10 before.
fn server_with_marks(mark: i64) -> FakeServer {
    let applied = Arc::new(Mutex::new(10));
    FakeServer::start(move |id, request, link| {
        let mut applied = applied.lock().unwrap();
        let refuses = |at: Option<Timestamp>, session| at.max(session) > Some(Timestamp(*applied));
        match request {
            Request::Write(write) => {
                assert_eq!(write.op, WriteOp::Barrier(Barrier {}));
                *applied = mark;
                link.reply(id, write_ok(mark, None));
            }
            Request::Get(GetRequest { read_at: ReadAt::Version(at), session, .. }) => {
                match refuses(Some(at), session) {
                    true => link.reply(id, REFUSAL),
                    false => link.reply(id, value("v", 5)),
                }
            }
            Request::Page(PageRequest { view: PageView::First { at, session, .. }, .. }) => {
                match (at, refuses(at, session)) {
                    (Some(at), false) => {
                        link.reply(id, page(vec![row("k", "v", 5)], at.0, *applied, None));
                    }
                    _ => link.reply(id, REFUSAL),
                }
            }
            other => panic!("{other:?}"),
        }
    })
}

#[test]
fn as_of_what_nobody_has_reached_a_mark_settles_whether_it_is_past() {
    // The version asked for, and the one read as of: the mark's own when it lies in the future.
    for (mark, read_as_of) in [(100, 50), (51, 50), (50, 50), (49, 49), (11, 11)] {
        let server = server_with_marks(mark);
        let client = client_of(&server);
        assert_eq!(client.read("k", at(50)).unwrap().timestamp(), Some(Timestamp(5)));
        assert_eq!(writes(&server).len(), 1, "one mark");
        let asked: Vec<ReadAt> = gets(&server).iter().map(|get| get.read_at).collect();
        assert_eq!(asked, [50, read_as_of].map(|at| ReadAt::Version(Timestamp(at))));

        let server = server_with_marks(mark);
        let client = client_of(&server);
        let mut rows = client.range("a", "z", at(50)).unwrap();
        assert_eq!(rows.by_ref().count(), 1);
        assert_eq!(rows.at(), Some(Timestamp(read_as_of)));
        assert_eq!(writes(&server).len(), 1, "one mark");
        // What was marked has been seen: up to there nobody needs another.
        client.read("k", at(mark)).unwrap();
        assert_eq!(writes(&server).len(), 1);
    }
}

#[test]
fn as_of_what_this_client_has_seen_no_mark_is_needed() {
    let refusals = AtomicUsize::new(0);
    let server = FakeServer::start(move |id, request, link| match request {
        Request::Write(write) => {
            assert_ne!(write.op, WriteOp::Barrier(Barrier {}));
            link.reply(id, put_ok(50));
        }
        _ if refusals.fetch_add(1, Ordering::SeqCst) < 5 => link.reply(id, REFUSAL),
        _ => link.reply(id, value("v", 50)),
    });
    let client = client_of(&server);
    client.put("k", "v").unwrap();
    assert_eq!(client.read("k", at(50)).unwrap().timestamp(), Some(Timestamp(50)));
    assert_eq!(gets(&server).len(), 6, "it will come so far by itself");
}

#[test]
fn without_a_majority_what_is_past_what_was_reached_cannot_be_read() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(_) => link.reply(id, error(ErrorCode::NoMajority, "1 of 3")),
        Request::Get(get) if get.read_at == ReadAt::Version(Timestamp(11)) => {
            link.reply(id, REFUSAL);
        }
        _ => link.reply(id, value("v", 5)),
    });
    let client = client_of(&server);
    assert!(client.read("k", at(10)).is_ok());
    assert!(matches!(client.read("k", at(11)), Err(ClientError::NoMajority { .. })));
}

#[test]
fn a_version_of_zero_or_less_means_the_newest() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Get(_) => link.reply(id, value("v", 5)),
        Request::Page(_) => link.reply(id, page(vec![], 8, 8, None)),
        other => panic!("{other:?}"),
    });
    let client = client_of(&server);
    for version in [0, -1, i64::MIN] {
        client.read("k", at(version)).unwrap();
        assert_eq!(all(client.range("a", "z", at(version)).unwrap()), []);
    }
    assert!(gets(&server).iter().all(|get| matches!(get.read_at, ReadAt::Newest { .. })));
    let newest = |page: &PageRequest| matches!(page.view, PageView::First { at: None, .. });
    assert!(pages(&server).iter().all(newest));
}

#[test]
fn the_past_neither_moves_nor_obeys_a_keys_timestamp() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(_) => link.reply(id, put_ok(50)),
        Request::Get(get) => match get.read_at {
            ReadAt::Version(Timestamp(20)) => link.reply(id, value("old", 15)),
            ReadAt::Version(_) => link.reply(id, missing(70)),
            ReadAt::Newest { .. } => link.reply(id, value("new", 50)),
        },
        other => panic!("{other:?}"),
    });
    let client = client_of(&server);
    client.put("k", "new").unwrap();
    assert_eq!(client.read("k", at(20)).unwrap().timestamp(), Some(Timestamp(15)));
    client.get("k").unwrap();
    // Absent, perhaps because it was removed: that must not be undone.
    assert_eq!(client.read("k", at(5)).unwrap().found, None);
    client.get("k").unwrap();
    client.read("k", at(20)).unwrap();
    let sent: Vec<_> = gets(&server).iter().map(floors).collect();
    let expected = [
        [Some(20), None, Some(50)],
        [None, Some(50), Some(50)],
        [Some(5), None, Some(50)],
        [None, Some(50), Some(70)],
        [Some(20), None, Some(70)],
    ];
    assert_eq!(sent, expected);
}

#[test]
fn per_key_too_the_past_of_a_removed_key_stays_removed() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(write)
            if write.op.tells_before(OpResult::Done).is_some_and(|key| key == "trimmed") =>
        {
            link.reply(id, write_ok(60, Some((40, "kept"))));
        }
        Request::Write(_) => link.reply(id, write_ok(50, Some((40, "old")))),
        _ => link.reply(id, missing(70)),
    });
    let client = Client::builder([server.address]).causality(Causality::PerKey).build().unwrap();
    client.del("gone").unwrap();
    client.trim("trimmed").unwrap();
    for key in ["gone", "trimmed", "other"] {
        client.read(key, at(20)).unwrap();
    }
    client.get("trimmed").unwrap();
    let sent: Vec<_> = gets(&server).iter().map(floors).collect();
    let past = |session| [Some(20), None, session];
    // A trim makes no version, so none may be asked for.
    let newest = [None, None, Some(70)];
    assert_eq!(sent, [past(Some(50)), past(Some(60)), past(None), newest]);
}

#[test]
fn what_a_long_read_did_not_show_does_not_come_back() {
    for causality in [Causality::Session, Causality::PerKey] {
        let server = FakeServer::start(|id, request, link| match request {
            Request::Page(_) => link.reply(id, page(vec![], 60, 60, None)),
            _ => link.reply(id, missing(60)),
        });
        let client = Client::builder([server.address]).causality(causality).build().unwrap();
        assert_eq!(all(client.range("a", "z", ReadOptions::default()).unwrap()), []);
        client.get("k").unwrap();
        assert_eq!(gets(&server)[0].session, Some(Timestamp(60)), "{causality:?}");
        assert_eq!(client.session_token(), "s1-000000000000003c");
    }
}

#[test]
fn linearizable_reads_say_so_on_the_first_page_only() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Page(request) => three_pages(id, &request, link),
        _ => link.reply(id, value("v", 5)),
    });
    let client = client_of(&server);
    let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
    all(client.range("a", "z", options).unwrap());
    client.read("k", options).unwrap();
    client
        .read("k", ReadOptions { at: Some(Timestamp(3)), linearizable: true, facts: false })
        .unwrap();
    let sent: Vec<PageView> = pages(&server).iter().map(|page| page.view).collect();
    let first = PageView::First { at: None, session: None, linearizable: true };
    assert_eq!(sent[0], first);
    assert!(sent[1..].iter().all(|view| matches!(view, PageView::Next(_))), "{sent:?}");
    assert!(gets(&server).iter().all(|get| get.linearizable));
}

/// To read the past, a client may have to write a mark that changes nothing: its reader has written
/// nothing.
#[test]
fn a_read_that_fails_speaks_of_no_write() {
    let brisk = Timing { silence_timeout: Duration::from_millis(100), ..unhurried() };
    let failed = |client: &Client| {
        let errors = [
            client.read("k", at(50)).unwrap_err(),
            client.range("a", "z", at(50)).unwrap().next().unwrap().unwrap_err(),
            client.versions("k", at(50)).unwrap().next().unwrap().unwrap_err(),
        ];
        for error in errors {
            let sentence = error.to_string();
            assert!(!sentence.to_lowercase().contains("writ"), "{sentence}");
            assert_eq!(error.effect(), acervo::client::Effect::NotDone);
        }
    };
    failed(&Client::connect([nobody()]).unwrap());
    // It is behind, and what becomes of the mark nobody knows.
    let replies: [fn() -> Option<Reply>; 4] = [
        || None,
        || Some(error(ErrorCode::Unconfirmed, "the write was not confirmed")),
        || Some(error(ErrorCode::StaleRequest, "the write is forgotten")),
        || Some(error(ErrorCode::ShuttingDown, "stopping")),
    ];
    for mark in replies {
        let server = FakeServer::start(move |id, request, link| match request {
            Request::Write(_) => mark().into_iter().for_each(|reply| link.reply(id, reply)),
            _ => link.reply(id, REFUSAL),
        });
        let timeout = Duration::from_millis(300);
        let client = Client::builder([server.address]).timing(brisk).request_timeout(timeout);
        failed(&client.build().unwrap());
    }
}

#[test]
fn reads_of_keys_alone_say_so_on_every_page() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Page(request) => three_pages(id, &request, link),
        other => panic!("{other:?}"),
    });
    // Each has seen nothing yet, so that the first page may show the same state to both.
    let range = || client_of(&server).range("a", "z", ReadOptions::default()).unwrap();
    assert_eq!(all(range().keys_only()).len(), 3);
    assert_eq!(all(range()).len(), 3);
    let sent: Vec<bool> = pages(&server).iter().map(|page| page.keys_only).collect();
    assert_eq!(sent, [true, true, true, false, false, false]);
}

#[test]
fn writes_on_one_key_tell_what_was_before() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Write(write) = request else { panic!("{request:?}") };
        assert!(write.op.tells_before(OpResult::Done).is_some());
        let previous = match write.op {
            WriteOp::Put(_) => (0, ""),
            WriteOp::Del(_) => (20, ""),
            WriteOp::Trim(_) => (30, "kept"),
            other => panic!("{other:?}"),
        };
        link.reply(id, write_ok(40, Some(previous)));
    });
    let client = client_of(&server);
    let version = |timestamp, value: &'static str| {
        let timestamp = Timestamp(timestamp);
        Some(Version { timestamp, value: value.into(), facts: Some(new(timestamp)) })
    };
    let put = client.replace("k", "v").unwrap();
    assert_eq!((put.timestamp, put.previous), (Timestamp(40), None));
    assert_eq!(client.del("k").unwrap().previous, version(20, ""));
    assert_eq!(client.trim("k").unwrap().previous, version(30, "kept"));
}

/// It may be too long, or the leader may distrust its own state: then it tells nothing at all,
/// which does not mean that there was nothing.
#[test]
fn a_previous_value_that_is_not_sent_is_read_as_it_was_before_the_write() {
    let timestamp = Timestamp(20);
    let too_long = Some(Previous::Value { timestamp, facts: new(timestamp), value: None });
    for told in [too_long, None] {
        let server = FakeServer::start(move |id, request, link| match request {
            Request::Write(_) => {
                let previous = told.clone();
                link.reply(
                    id,
                    Reply::WriteOk(WriteAnswer {
                        timestamp: Timestamp(40),
                        result: OpResult::Done,
                        previous,
                        txn: None,
                    }),
                );
            }
            Request::Page(request) => {
                assert_eq!(request.of, keys(&["k"]));
                assert_eq!(request.view, PageView::Next(view(39, 39)));
                link.reply(id, page(vec![row("k", "long", 20)], 39, 39, None));
            }
            other => panic!("{other:?}"),
        });
        let previous = client_of(&server).replace("k", "v").unwrap().previous.unwrap();
        assert_eq!((previous.timestamp.0, &previous.value[..]), (20, &b"long"[..]));
    }
}

#[test]
fn a_condition_that_fails_tells_what_the_key_has() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(write) => {
            let WriteOp::PutIf(PutIf { key, condition, .. }) = write.op else { panic!() };
            assert_eq!(condition, Condition::Version(Timestamp(7)));
            let timestamp = Timestamp(20);
            let value = |value| Previous::Value { timestamp, facts: new(timestamp), value };
            let (newest, previous) = match &key[..] {
                b"none" => (None, Some(Previous::Absent)),
                b"short" => (Some(Timestamp(20)), Some(value(Some("has".into())))),
                b"long" => (Some(Timestamp(20)), Some(value(None))),
                b"untold" => (Some(Timestamp(20)), None),
                _ => return link.reply(id, write_ok(40, None)),
            };
            let result = OpResult::ConditionFailed { newest };
            let answer = WriteAnswer { timestamp: Timestamp(40), result, previous, txn: None };
            link.reply(id, Reply::WriteOk(answer));
        }
        Request::Page(request) => {
            assert_eq!(request.view, PageView::Next(view(39, 39)));
            link.reply(id, page(vec![row("k", "has", 20)], 39, 39, None));
        }
        other => panic!("{other:?}"),
    });
    let client = client_of(&server);
    let put_if = |key| client.put_if(key, "new", Condition::Version(Timestamp(7))).unwrap();
    for (key, has) in [("none", None), ("short", Some("has")), ("long", Some("has"))] {
        let ConditionalPut::Conflict(conflict) = put_if(key) else { panic!("{key}") };
        assert_eq!((conflict.timestamp, conflict.server), (Timestamp(40), server.address));
        let found = conflict.found.as_ref().map(|found| (found.timestamp.0, &found.value[..]));
        assert_eq!(found, has.map(|value: &str| (20, value.as_bytes())), "{key}");
    }
    let ConditionalPut::Conflict(untold) = put_if("untold") else { panic!() };
    assert_eq!(untold.found.unwrap().timestamp, Timestamp(20), "it is read");
    assert!(matches!(put_if("other"), ConditionalPut::Stored(_)));
    assert_eq!(writes(&server).len(), 5, "each is one write");
}

#[test]
fn no_write_without_a_condition_is_believed_to_have_failed_one() {
    let server = FakeServer::start(|id, _, link| {
        let result = OpResult::ConditionFailed { newest: None };
        let answer = WriteAnswer { timestamp: Timestamp(40), result, previous: None, txn: None };
        link.reply(id, Reply::WriteOk(answer));
    });
    let client = Client::builder([server.address]).request_timeout(Duration::from_millis(50));
    let put = client.build().unwrap().put("k", "v");
    assert!(matches!(put, Err(ClientError::TimedOut { .. })), "{put:?}");
}

#[test]
fn writes_on_many_keys_are_one_write_and_what_was_before_is_read_when_wanted() {
    let server = FakeServer::start(|id, request, link| match request {
        Request::Write(_) => link.reply(id, write_ok(40, None)),
        Request::Page(request) => {
            assert_eq!(request.view, PageView::Next(view(39, 39)));
            let rows = match request.of {
                PageOf::Keys { keys } => keys.into_iter().map(|key| row(key, "", 0)).collect(),
                _ => vec![row("m", "was", 12)],
            };
            link.reply(id, page(rows, 39, 39, None));
        }
        other => panic!("{other:?}"),
    });
    let client = client_of(&server);
    let done = client.put_all([("b", "1"), ("a", "2"), ("b", "3")]).unwrap();
    assert_eq!((done.timestamp, done.server), (Timestamp(40), server.address));
    assert_eq!(server.requests().len(), 1);
    assert_eq!(
        all(done.rows),
        ["b", "a", "b"].map(|key| row(key, "", 0)),
        "a row a pair, in order"
    );
    assert_eq!(all(client.del_all(["x"]).unwrap().rows), [row("x", "", 0)]);
    assert_eq!(all(client.del_range("a", "z").unwrap().rows), [row("m", "was", 12)]);
    drop(client.del_range("a", "z").unwrap());

    let sent = writes(&server);
    let pair = |key: &'static str, value: &'static str| (key.into(), value.into());
    assert_eq!(
        sent[0].op,
        WriteOp::PutAll(PutAll { pairs: vec![pair("b", "1"), pair("a", "2"), pair("b", "3")] })
    );
    assert_eq!(
        sent[1].op,
        WriteOp::DelAll(DelAll { keys: vec!["x".into()], keeps_history: false })
    );
    assert_eq!(
        sent[2].op,
        WriteOp::DelRange(DelRange { from: "a".into(), to: "z".into(), keeps_history: false })
    );
    assert_eq!(pages(&server).len(), 3, "what nobody wants is not read");
}

#[test]
fn a_retried_write_on_many_keys_keeps_its_identity() {
    let count = AtomicUsize::new(0);
    let server = FakeServer::start(move |id, _, link| match count.fetch_add(1, Ordering::SeqCst) {
        0 => link.0.lock().unwrap().shutdown(std::net::Shutdown::Both).unwrap(),
        1 => link.reply(id, busy("full", 1)),
        _ => link.reply(id, write_ok(40, None)),
    });
    let client = client_of(&server);
    client.del_range("a", "z").unwrap();
    let sent = writes(&server);
    assert!(sent.len() == 3 && sent.iter().all(|write| *write == sent[0]), "{sent:?}");
    client.put_all([("k", "v")]).unwrap();
    let next = writes(&server).pop().unwrap().request;
    assert_eq!((next.sequence, next.answered_below), (2, 2));
}

#[test]
fn more_than_one_write_can_hold_is_refused_with_the_limit_and_all_that_it_can_is_sent() {
    let server = FakeServer::start(|id, _, link| link.reply(id, write_ok(40, None)));
    let client = client_of(&server);
    let most = limits::TRANSACTION_KEYS_MAX;
    let many = vec!["k"; most + 1];
    let error = client.del_all(&many).unwrap_err();
    assert_eq!(error, ClientError::TooManyKeys(most + 1));
    assert!(error.to_string().contains(&most.to_string()), "{error}");
    let long = vec![b'v'; limits::VALUE_BYTES_MAX];
    let pairs = [("a", &long[..]), ("b", &long[..limits::KEY_BYTES_MAX])];
    let error = client.put_all(pairs).unwrap_err();
    assert_eq!(error, ClientError::TooManyBytes(limits::TRANSACTION_BYTES_MAX + 2));
    assert!(error.to_string().contains(&limits::TRANSACTION_BYTES_MAX.to_string()), "{error}");
    assert_eq!(client.put_all([("", "v")]).unwrap_err(), ClientError::KeyEmpty);
    assert_eq!(server.requests().len(), 0);

    // As many keys as there may be with as many bytes as there may be: it fits a frame.
    let key_bytes = limits::TRANSACTION_BYTES_MAX / most / 2;
    let (key, value) = (vec![b'k'; key_bytes], vec![b'v'; key_bytes]);
    client.put_all(vec![(&key, &value); most]).unwrap();
    assert_eq!(writes(&server).len(), 1);
}

#[test]
fn keys_that_no_server_takes_are_refused_here() {
    let client = Client::connect([nobody()]).unwrap();
    let long = vec![0; limits::KEY_BYTES_MAX + 1];
    let too_long = ClientError::KeyTooLong(long.len());
    assert_eq!(client.range("", "z", ReadOptions::default()).err(), Some(ClientError::KeyEmpty));
    assert_eq!(client.range(b"a", &long, ReadOptions::default()).err(), Some(too_long.clone()));
    assert_eq!(client.get_all([&long], ReadOptions::default()).err(), Some(too_long));
    assert_eq!(client.versions("", ReadOptions::default()).err(), Some(ClientError::KeyEmpty));
    assert_eq!(client.del_range("a", "").err(), Some(ClientError::KeyEmpty));
    assert_eq!(client.trim("").err(), Some(ClientError::KeyEmpty));
}
