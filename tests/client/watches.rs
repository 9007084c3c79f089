//! Watches of the client library against scripted servers: what is given out of a reset that begins
//! anew, and how long a server may be silent.

use std::net::Shutdown;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use acervo::client::{
    Client, ClientError, KeyRange, Row, Timestamp, Version, WatchEvent, WatchOptions,
};
use acervo::model::KeyChange;
use acervo::wire::message::{ErrorCode, Message, Reply, Request, WatchFrame, WatchRequest};

use crate::fake_server::{FakeServer, Heard, Link, error};

/// The longest time that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn all() -> KeyRange {
    KeyRange::prefix("k").unwrap()
}

fn begun(id: u64, request: &WatchRequest, link: &Link) {
    let after = request.after.unwrap_or(Timestamp(10));
    link.reply(id, Reply::WatchOk { after });
}

/// Returns whether the client is still there.
fn show(link: &Link, body: WatchFrame) -> bool {
    link.send(&Message::Watched { watch: 1, body })
}

fn reset(key: &'static str, at: i64, begins: bool, continues: bool) -> WatchFrame {
    let version = Version { timestamp: Timestamp(9), value: "v".into(), facts: None };
    let rows = vec![Row { key: key.into(), found: Some(version) }];
    WatchFrame::Reset { rows, at: Timestamp(at), begins, continues }
}

fn change(at: i64) -> WatchFrame {
    let at = Timestamp(at);
    let changes = vec![KeyChange { at, key: "k1".into(), written: None, previous: None }];
    WatchFrame::Events { changes, up_to: at, continues: false }
}

/// The server shows a state so slowly that it is gone, and begins anew in the middle. Then the
/// connection breaks, and the watch goes on after the state that was whole.
#[test]
fn a_reset_that_begins_anew_is_given_out_from_its_beginning() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Watch(request) = request else { panic!("{request:?}") };
        begun(id, &request, link);
        match request.after {
            Some(Timestamp(1)) => {
                show(link, reset("k1", 20, true, true));
                show(link, reset("k2", 20, false, true));
                show(link, reset("k1", 30, true, true));
                show(link, reset("k3", 30, false, false));
            }
            Some(Timestamp(30)) => _ = show(link, change(31)),
            after => panic!("it goes on after {after:?}"),
        }
    });
    let client = Client::connect([server.address]).unwrap();
    let options = WatchOptions { after: Some(Timestamp(1)), ..WatchOptions::default() };
    let mut watch = client.watch(all(), options).unwrap();
    let mut next = || watch.next_within(PATIENCE).expect("an event in time").unwrap();
    let mut shown = Vec::new();
    for _ in 0..4 {
        let WatchEvent::Reset { version, rows, begins, continues } = next() else {
            panic!("no reset")
        };
        shown.push((version.0, rows[0].key.clone(), begins, continues));
    }
    let right = [
        (20, "k1".into(), true, true),
        (20, "k2".into(), false, true),
        (30, "k1".into(), true, true),
        (30, "k3".into(), false, false),
    ];
    assert_eq!(shown, right);
    server.break_connections();
    let WatchEvent::Changed { version, .. } = next() else { panic!("no change") };
    assert_eq!(version, Timestamp(31));
}

/// With the defaults three PINGs at most are sent before a silent server is given up.
#[test]
fn a_watch_has_the_timing_of_its_client() {
    let server = FakeServer::start_silent(|id, request, link| {
        if let Request::Watch(request) = request {
            begun(id, &request, link);
        }
    });
    let timing = acervo::client::Timing {
        ping_interval: Duration::from_millis(5),
        ..acervo::client::Timing::default()
    };
    let client = Client::builder([server.address]).timing(timing).build().unwrap();
    let _watch = client.watch(all(), WatchOptions::default()).unwrap();
    let heard = server.shared.heard.lock().unwrap();
    let until = |heard: &mut Heard| heard.pings < 20 && heard.connections.len() == 1;
    let (heard, _) = server.shared.changed.wait_timeout_while(heard, PATIENCE, until).unwrap();
    assert!(heard.pings >= 20, "{} PINGs until the server was given up", heard.pings);
}

/// As one does that is cut off, or has no room: it is not dialled hundreds of times a second.
#[test]
fn a_server_that_ends_each_watch_at_once_is_asked_less_and_less_often() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Watch(request) = request else { panic!("{request:?}") };
        begun(id, &request, link);
        let _ = link.0.lock().unwrap().shutdown(Shutdown::Both);
    });
    let client = Client::connect([server.address]).unwrap();
    let options = WatchOptions { after: Some(Timestamp(1)), ..WatchOptions::default() };
    let began = Instant::now();
    let _watch = client.watch(all(), options).unwrap();
    let heard = server.shared.heard.lock().unwrap();
    let few = |heard: &mut Heard| heard.requests.len() < 10;
    let (heard, _) = server.shared.changed.wait_timeout_while(heard, PATIENCE, few).unwrap();
    assert!(heard.requests.len() >= 10, "it is given up");
    // The pauses alone take longer; without them it is a hundredth of that.
    assert!(began.elapsed() >= Duration::from_millis(500), "after {:?}", began.elapsed());
}

/// The versions after which the server was asked to begin.
fn asked_after(server: &FakeServer) -> Vec<Option<Timestamp>> {
    let of_watch = |request| match request {
        Request::Watch(request) => request.after,
        other => panic!("{other:?}"),
    };
    server.requests().into_iter().map(of_watch).collect()
}

/// A server that goes on without credit filled the memory of a client whose events were not taken.
#[test]
fn a_server_that_shows_more_than_it_has_credit_for_is_left() {
    let (left, is_left) = mpsc::channel();
    let server = FakeServer::start(move |id, request, link| {
        let Request::Watch(request) = request else { panic!("{request:?}") };
        begun(id, &request, link);
        let after = request.after.expect("it was asked for").0;
        let shown = (after + 1..).take(2_000).take_while(|at| {
            let (at, key) = (Timestamp(*at), "k1".into());
            let value = vec![b'v'; 60_000].into();
            let written = Some(Version { timestamp: at, value, facts: None });
            let changes = vec![KeyChange { at, key, written, previous: None }];
            show(link, WatchFrame::Events { changes, up_to: at, continues: false })
        });
        let _ = left.send(shown.count());
    });
    let client = Client::connect([server.address]).unwrap();
    let options = WatchOptions { after: Some(Timestamp(10)), ..WatchOptions::default() };
    let mut watch = client.watch(all(), options).unwrap();
    // What the sockets hold is sent, and not read.
    let shown = is_left.recv_timeout(PATIENCE).expect("an end in time");
    assert!(shown < 2_000, "all was read, and nothing taken");
    for at in 11..31 {
        let event = watch.next_within(PATIENCE).expect("an event in time").unwrap();
        assert_eq!(event.version(), Timestamp(at), "each once, whoever shows it");
    }
    let asked = asked_after(&server);
    assert!(asked.len() > 1 && asked[1] < Some(Timestamp(20)), "{asked:?}");
}

#[test]
fn a_server_that_shows_other_keys_is_left_and_nothing_of_that_is_given_out() {
    let server = FakeServer::start(|id, request, link| {
        let Request::Watch(request) = request else { panic!("{request:?}") };
        begun(id, &request, link);
        match request.after {
            Some(Timestamp(1)) => {
                show(link, change(5));
                let (at, key) = (Timestamp(6), "other".into());
                let changes = vec![KeyChange { at, key, written: None, previous: None }];
                show(link, WatchFrame::Events { changes, up_to: at, continues: false });
            }
            _ => _ = show(link, change(7)),
        }
    });
    let client = Client::connect([server.address]).unwrap();
    let options = WatchOptions { after: Some(Timestamp(1)), ..WatchOptions::default() };
    let mut watch = client.watch(all(), options).unwrap();
    let mut next = || watch.next_within(PATIENCE).expect("an event in time").unwrap().version();
    assert_eq!((next(), next()), (Timestamp(5), Timestamp(7)));
    assert_eq!(asked_after(&server), [Some(Timestamp(1)), Some(Timestamp(5))]);
}

#[test]
fn a_watch_that_no_server_begins_says_what_the_last_one_has_said() {
    let server = FakeServer::start(|id, _, link| {
        let code = ErrorCode::Busy { retry_after_ms: 1 };
        link.reply(id, error(code, "too many watches are open on this server"));
    });
    let client = Client::builder([server.address]).request_timeout(Duration::from_millis(300));
    let failed = client.build().unwrap().watch(all(), WatchOptions::default()).map(drop);
    let Err(ClientError::TimedOut { last, .. }) = failed else { panic!("{failed:?}") };
    let address = server.address.to_string();
    assert!(last.starts_with(&address) && last.contains("too many watches are open"), "{last}");
}
