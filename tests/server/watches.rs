//! Watches of real servers: what is written while servers are killed comes once and in order, a
//! client that does not read holds up nobody, and what is asked wrongly is refused.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use acervo::client::{Client, KeyRange, Timestamp, WatchEvent, WatchOptions};
use acervo::limits;
use acervo::model::{KeyChange, KeyInterval};
use acervo::wire::message::{ErrorCode, Message, Reply, Request, WatchFrame, WatchRequest};
use bytes::Bytes;
use rustix::process::Signal;

use crate::support::raw::{Raw, one_server};
use crate::support::{Group, PATIENCE, patient_client};

fn of_one(key: &str) -> KeyRange {
    KeyRange::between(key, key).unwrap()
}

/// The changes up to and with one that is recognised.
fn changes_until(
    watch: &mut acervo::client::Watch,
    is_last: impl Fn(&KeyChange) -> bool,
) -> Vec<KeyChange> {
    let mut seen: Vec<KeyChange> = Vec::new();
    loop {
        let event =
            watch.next_within(PATIENCE).expect("an event in time").expect("a watch goes on");
        let WatchEvent::Changed { changes, .. } = event else { panic!("{event:?}") };
        for change in changes {
            let place = |change: &KeyChange| (change.at, change.key.clone());
            assert!(seen.last().is_none_or(|last| place(last) < place(&change)), "{change:?}");
            let is_over = is_last(&change);
            seen.push(change);
            if is_over {
                return seen;
            }
        }
    }
}

/// The next reply. Servers tell the progress of watches in between.
fn reply(raw: &mut Raw) -> Reply {
    loop {
        match raw.receive() {
            Some(Message::Reply { body, .. }) => return body,
            Some(Message::WatchProgress { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn refusal(raw: &mut Raw, body: Request) -> (ErrorCode, String) {
    raw.send(&Message::Request { id: 7, body });
    match reply(raw) {
        Reply::Error(error) => (error.code, error.message),
        other => panic!("no error but {other:?}"),
    }
}

fn is_end(change: &KeyChange) -> bool {
    change.key == "w/end"
}

/// The leader is killed and comes back, twice, while two clients write and three watch.
#[test]
fn what_is_written_while_servers_are_killed_comes_once_and_in_order() {
    let mut group = Group::start(3, &[]);
    let client = group.client();
    let before = client.put("w/begin", "").unwrap().timestamp;
    let options = WatchOptions { after: Some(before), previous: false };
    let watches = [
        client.watch(KeyRange::prefix("w/").unwrap(), options).unwrap(),
        client.watch(KeyRange::all(), options).unwrap(),
        group.client().watch(KeyRange::prefix("w/").unwrap(), options).unwrap(),
    ];
    let stop = AtomicBool::new(false);
    let written: Vec<(Timestamp, Bytes)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (client, stop) = (patient_client(group.addresses()), &stop);
                scope.spawn(move || {
                    let mut written = Vec::new();
                    for number in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return written;
                        }
                        let key = format!("w/{writer}/{}", number % 7);
                        let done = client.put(&key, number.to_string()).unwrap();
                        written.push((done.timestamp, Bytes::from(key)));
                    }
                    unreachable!("it is told to stop")
                })
            })
            .collect();
        for _ in 0..2 {
            let leader = group.leader();
            group.kill(leader);
            let witness = patient_client(group.addresses());
            for _ in 0..50 {
                witness.put("elsewhere", "").unwrap();
            }
            group.start_server(leader);
            group.wait_until_listening(leader);
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    patient_client(group.addresses()).put("w/end", "").unwrap();
    let written: BTreeSet<(Timestamp, Bytes)> = written.into_iter().collect();
    for mut watch in watches {
        let seen = changes_until(&mut watch, is_end);
        let of_writers = seen.iter().filter(|change| change.key.starts_with(b"w/"));
        let seen: BTreeSet<(Timestamp, Bytes)> = of_writers
            .filter(|change| !is_end(change))
            .map(|change| (change.at, change.key.clone()))
            .collect();
        assert_eq!(seen, written);
    }
}

#[test]
fn a_watch_tells_of_deletions_and_of_what_was_before() {
    let (_group, address, witness) = one_server();
    let client = Client::connect([address]).unwrap();
    let options = WatchOptions { after: Some(Timestamp::ZERO), previous: true };
    let mut watch = client.watch(of_one("k"), options).unwrap();
    client.put("k", "one").unwrap();
    client.put_all([("k", "two"), ("l", "")]).unwrap();
    client.del("k").unwrap();
    let seen = changes_until(&mut watch, |change| change.written.is_none());
    let values: Vec<_> = seen
        .iter()
        .map(|change| change.written.as_ref().map(|version| version.value.clone()))
        .collect();
    assert_eq!(values, [Some("one".into()), Some("two".into()), None]);
    assert_eq!(seen[1].written.as_ref().unwrap().facts.unwrap().count, 2);
    witness.finish();
}

/// It has credit for a few changes, and reads none of them.
#[test]
fn a_client_that_reads_nothing_holds_up_nobody() {
    let (_group, address, witness) = one_server();
    let client = patient_client([address]);
    let range = KeyInterval { from: "a".into(), to: "z".into() };
    let mut idle: Vec<Raw> = (0..8).map(|_| Raw::client(address)).collect();
    for (number, raw) in idle.iter_mut().enumerate() {
        let request = WatchRequest {
            watch: number as u64,
            range: range.clone(),
            after: None,
            tells_previous: false,
            credit_bytes: limits::WATCH_CREDIT_BYTES_MAX,
        };
        raw.send(&Message::Request { id: 1, body: Request::Watch(request) });
        assert!(matches!(reply(raw), Reply::WatchOk { .. }));
    }
    let options = WatchOptions { after: Some(Timestamp::ZERO), ..WatchOptions::default() };
    let mut watch = client.watch(KeyRange::prefix("w/").unwrap(), options).unwrap();
    let value = vec![b'v'; 100_000];
    for number in 0..40 {
        client.put(format!("w/{number:02}"), &value[..]).unwrap();
    }
    client.put("w/end", "").unwrap();
    assert_eq!(changes_until(&mut watch, is_end).len(), 41);
    // What they did not read is still there for them, in order.
    let mut raw = idle.pop().unwrap();
    let mut seen = 0;
    while seen < 41 {
        match raw.receive() {
            Some(Message::Watched { watch, body }) => {
                let bytes = body.credit_bytes();
                let WatchFrame::Events { changes, .. } = body else { panic!("{body:?}") };
                let of_test = changes.iter().filter(|change| change.key.starts_with(b"w/"));
                for change in of_test {
                    let right = if seen == 40 { "w/end".into() } else { format!("w/{seen:02}") };
                    assert_eq!(change.key, right);
                    seen += 1;
                }
                raw.send(&Message::WatchCredit { watch, bytes });
            }
            Some(Message::WatchProgress { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    witness.finish();
}

#[test]
fn what_is_asked_wrongly_of_watches_is_one_error_each() {
    let (_group, address, witness) = one_server();
    let mut raw = Raw::client(address);
    let good = || WatchRequest {
        watch: 1,
        range: KeyInterval { from: "a".into(), to: "b".into() },
        after: None,
        tells_previous: false,
        credit_bytes: 100,
    };
    let long = Bytes::from(vec![b'k'; limits::KEY_BYTES_MAX + 1]);
    let interval = |from: &Bytes, to: &Bytes| KeyInterval { from: from.clone(), to: to.clone() };
    let (a, b) = (Bytes::from("a"), Bytes::from("b"));
    let wrong = [
        (WatchRequest { range: interval(&Bytes::new(), &b), ..good() }, "the key"),
        (WatchRequest { range: interval(&a, &long), ..good() }, "key"),
        (WatchRequest { range: interval(&b, &a), ..good() }, "ends before it begins"),
        (WatchRequest { credit_bytes: 0, ..good() }, "without credit"),
        (WatchRequest { after: Some(Timestamp(-1)), ..good() }, "not negative"),
    ];
    for (request, why) in wrong {
        let (code, message) = refusal(&mut raw, Request::Watch(request));
        assert!(code == ErrorCode::Invalid && message.contains(why), "{code:?}, {message}");
    }
    raw.send(&Message::Request { id: 9, body: Request::Watch(good()) });
    assert!(matches!(reply(&mut raw), Reply::WatchOk { .. }));
    let (code, message) = refusal(&mut raw, Request::Watch(good()));
    assert!(code == ErrorCode::Invalid && message.contains("there is a watch 1"), "{message}");
    let (code, message) = refusal(&mut raw, Request::Unwatch { watch: 2 });
    assert!(code == ErrorCode::Invalid && message.contains("there is no watch 2"), "{message}");
    // Credit for a watch that there is not means nothing.
    raw.send(&Message::WatchCredit { watch: 77, bytes: u32::MAX });
    raw.send(&Message::WatchCredit { watch: 1, bytes: u32::MAX });
    raw.send(&Message::Request { id: 10, body: Request::Unwatch { watch: 1 } });
    assert!(matches!(reply(&mut raw), Reply::UnwatchOk {}));
    raw.assert_alive();
    witness.finish();
}

/// A connection has as many watches as it may have, and is told so of the next. When it is gone
/// there is room again.
#[test]
fn watches_without_end_from_one_connection_are_refused() {
    let (_group, address, witness) = one_server();
    let watches_until_refused = || {
        let mut raw = Raw::client(address);
        for watch in 1.. {
            let key = Bytes::from(format!("{watch:06}"));
            let range = KeyInterval { from: key.clone(), to: key };
            let request =
                WatchRequest { watch, range, after: None, tells_previous: false, credit_bytes: 1 };
            raw.send(&Message::Request { id: watch, body: Request::Watch(request) });
            match reply(&mut raw) {
                Reply::WatchOk { .. } => {}
                Reply::Error(error) => {
                    assert!(matches!(error.code, ErrorCode::Busy { .. }), "{error:?}");
                    assert!(error.message.starts_with("a connection may have"), "{error:?}");
                    return watch;
                }
                other => panic!("{other:?}"),
            }
        }
        unreachable!("some watch is one too many")
    };
    let first = watches_until_refused();
    assert!(first > 10_000, "{first}");
    assert_eq!(watches_until_refused(), first);
    witness.finish();
}

/// The two others are frozen, so that the third has no leader: it sends the clients of its watches
/// away, also one that had to come back because nobody else answers. A watch of the library goes
/// on when they are well again.
#[test]
fn a_server_without_a_leader_sends_the_clients_of_its_watches_away() {
    let group = Group::start(3, &[]);
    let leader = group.leader_of_all();
    let client = group.client();
    let mut watch = client.watch(KeyRange::prefix("w/").unwrap(), WatchOptions::default()).unwrap();
    let lonely = (leader + 1) % 3;
    let others = (0..3).filter(|server| *server != lonely);
    let mut clients: Vec<Raw> =
        (0..2).map(|_| Raw::client(group.servers[lonely].address)).collect();
    let watched = |raw: &mut Raw, after: Option<Timestamp>| {
        let range = KeyInterval { from: "a".into(), to: "z".into() };
        let (watch, tells_previous, credit_bytes) = (1, false, 1_000);
        let request = WatchRequest { watch, range, after, tells_previous, credit_bytes };
        raw.send(&Message::Request { id: 1, body: Request::Watch(request) });
        assert!(matches!(reply(raw), Reply::WatchOk { .. }));
    };
    watched(&mut clients[0], None);
    others.clone().for_each(|server| group.signal(server, Signal::STOP));
    let sent_away = |raw: &mut Raw| loop {
        match raw.receive() {
            Some(Message::Refused { reason }) => {
                assert!(reason.contains("knows no leader"), "{reason}");
                return;
            }
            Some(Message::WatchProgress { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    sent_away(&mut clients[0]);
    watched(&mut clients[1], None);
    sent_away(&mut clients[1]);
    others.for_each(|server| group.signal(server, Signal::CONT));
    client.put("w/end", "").unwrap();
    assert_eq!(changes_until(&mut watch, is_end).len(), 1);
}

/// One that is shown a long past, of which its client takes nothing, held back what the idle ones
/// of its connection were told: at a gateway those of all others.
#[test]
fn a_watch_that_is_far_behind_holds_back_the_progress_of_no_other() {
    let (_group, address, witness) = one_server();
    let client = patient_client([address]);
    // Far more than one frame, which is shown whatever credit there is.
    let value = vec![b'v'; 100_000];
    for number in 0..60 {
        client.put(format!("w/{number:02}"), &value[..]).unwrap();
    }
    let mut raw = Raw::client(address);
    for (watch, key, after) in [(1, "w/", Some(Timestamp::ZERO)), (2, "idle", None)] {
        let range = KeyInterval { from: key.into(), to: format!("{key}~").into() };
        let credit_bytes = 1;
        let request = WatchRequest { watch, range, after, tells_previous: false, credit_bytes };
        raw.send(&Message::Request { id: watch, body: Request::Watch(request) });
    }
    let newest = client.put("w/end", "").unwrap().timestamp;
    loop {
        match raw.receive() {
            Some(Message::Reply { body: Reply::WatchOk { .. }, .. }) => {}
            Some(Message::Watched { watch: 1, .. }) => {}
            Some(Message::WatchProgress { up_to, behind }) if up_to >= newest => {
                assert_eq!(behind, [1]);
                break;
            }
            Some(Message::WatchProgress { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    witness.finish();
}

/// All of them are on one connection, wherever that leads.
#[test]
fn the_watches_of_a_client_go_on_together_when_their_server_is_killed() {
    let mut group = Group::start(3, &[]);
    let client = group.client();
    let writer = patient_client(group.addresses());
    // A first write waits until all servers have taken part in the group. Before that it may need
    // the one that is killed.
    writer.put("before", "").unwrap();
    let keys: Vec<String> = (0..300).map(|number| format!("w/{number:03}")).collect();
    let mut watches: Vec<_> = keys
        .iter()
        .map(|key| client.watch(of_one(key), WatchOptions::default()).unwrap())
        .collect();
    for round in 0..3 {
        // Each server once, so that the one is among them that they are at.
        group.kill(round);
        let value = round.to_string();
        writer.put_all(keys.iter().map(|key| (key, &value))).unwrap();
        for (watch, key) in watches.iter_mut().zip(&keys) {
            let seen = changes_until(watch, |_| true);
            let written = seen[0].written.as_ref().expect("it was written");
            assert_eq!((&seen[0].key[..], &written.value[..]), (key.as_bytes(), value.as_bytes()));
        }
        group.start_server(round);
        group.wait_until_listening(round);
    }
}

#[test]
fn a_reader_that_takes_nothing_delays_no_other_watch_and_no_call_of_its_client() {
    let (_group, address, witness) = one_server();
    let client = patient_client([address]);
    let options = WatchOptions { after: Some(Timestamp::ZERO), ..WatchOptions::default() };
    let mut idle = client.watch(KeyRange::prefix("w/").unwrap(), options).unwrap();
    let mut taken = client.watch(KeyRange::prefix("w/").unwrap(), options).unwrap();
    let value = vec![b'v'; 100_000];
    for number in 0..40 {
        client.put(format!("w/{number:02}"), &value[..]).unwrap();
    }
    client.put("w/end", "").unwrap();
    assert_eq!(changes_until(&mut taken, is_end).len(), 41);
    assert_eq!(client.get("w/39").unwrap().value(), Some(&value[..]));
    // What it did not take is still there for it.
    assert_eq!(changes_until(&mut idle, is_end).len(), 41);
    witness.finish();
}

#[test]
fn watches_that_begin_and_end_under_load_disturb_no_other() {
    let (_group, address, witness) = one_server();
    let client = patient_client([address]);
    let options = WatchOptions { after: Some(Timestamp::ZERO), ..WatchOptions::default() };
    let mut steady = client.watch(KeyRange::prefix("w/").unwrap(), options).unwrap();
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                client.put(format!("w/{}", written % 7), vec![b'v'; 1_000]).unwrap();
                written += 1;
            }
            written
        });
        let others: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for number in 0..200 {
                        let range = KeyRange::prefix("w/").unwrap();
                        let mut watch = client.watch(range, options).unwrap();
                        // Some end before they have begun, some with events that nobody took.
                        if number % 3 > 0 {
                            watch.next_within(PATIENCE).expect("an event in time").unwrap();
                        }
                    }
                })
            })
            .collect();
        others.into_iter().for_each(|other| other.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    client.put("w/end", "").unwrap();
    assert_eq!(changes_until(&mut steady, is_end).len(), written + 1);
    witness.finish();
}
