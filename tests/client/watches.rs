//! Watches of the client library against scripted servers: what is given out of a reset that begins
//! anew, and how long a server may be silent.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use acervo::client::{Client, KeyRange, Row, Timestamp, Version, WatchEvent, WatchOptions};
use acervo::model::KeyChange;
use acervo::wire::message::{Message, Reply, Request, WatchFrame, WatchRequest};

use crate::fake_server::{FakeServer, Heard, Link};

/// The longest time that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn all() -> KeyRange {
    KeyRange::prefix("k").unwrap()
}

fn begun(id: u64, request: &WatchRequest, link: &Link) {
    let after = request.after.unwrap_or(Timestamp(10));
    link.reply(id, Reply::WatchOk { after });
}

fn show(link: &Link, body: WatchFrame) {
    link.send(&Message::Watched { watch: 1, body });
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
            Some(Timestamp(30)) => show(link, change(31)),
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
