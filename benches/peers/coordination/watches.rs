//! Watches of Acervo: what those cost that nothing is shown, how soon a change is shown, and how
//! fast those are shown that are far behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use acervo::bench::Until;
use acervo::client::{Client, KeyRange, Timestamp, WatchEvent, WatchOptions};
use acervo::limits::WATCH_CREDIT_BYTES_MAX;
use acervo::model::KeyInterval;
use acervo::wire::message::{Message, Reply, Request, WatchRequest};

use super::writers::encode;
use super::{ACERVO, Extent, Rounds, Target, print_row};
use crate::dialects::PeerOp;
use crate::machine::Accounts;
use crate::support::raw::Raw;
use crate::systems::{PeerData, Running};
use crate::table::{grouped, spread};
use crate::{Outcome, drive, fill, plan};

const PUT_CLIENTS: usize = 64;
const VALUE_BYTES: usize = 100;
/// Watches that a connection begins before it reads the answers: fewer than the requests that it
/// may have under way.
const BEGUN_AT_ONCE: usize = 512;
/// Watches of one connection, of which a server allows 16,384.
const CONNECTION_WATCHES: usize = 10_000;
/// How long an event may take before the measurement is given up.
const EVENT_TIMEOUT: Duration = Duration::from_secs(30);
/// What a server is given to let go of watches that have ended, before anything else is measured.
const SETTLED: Duration = Duration::from_millis(500);
/// How often a thread that waits for events looks whether it is to end.
const STOP_POLL: Duration = Duration::from_millis(50);

/// PUTs with no watch, and with many of other keys, all at the server that leads.
pub fn cost_of_idle(extent: &Extent) -> Outcome<()> {
    let running = Running::start(ACERVO)?;
    let data = PeerData { keys: extent.keys, value_bytes: VALUE_BYTES };
    fill(&running, data)?;
    let watches = extent.small_or(2_000, 100_000);
    let (mut without, mut with): ([Rounds; 2], [Rounds; 2]) = Default::default();
    let (mut rates, mut costs) = (Rounds::default(), Rounds::default());
    for round in 0..extent.rounds {
        let mut measured = [None, None];
        let order = if round % 2 == 0 { [false, true] } else { [true, false] };
        for is_watched in order {
            let leader = running.leader()?;
            let idle = match is_watched {
                true => begin_idle(leader, watches)?,
                false => Vec::new(),
            };
            let seconds = Duration::from_secs_f64(extent.seconds);
            let until = Until::Time { warm_up: seconds / 5, measured: seconds };
            let plan = plan(leader, PUT_CLIENTS, 1, until, round as u64);
            let mut dialect = running.dialect(PeerOp::Put, data, PUT_CLIENTS, 1);
            let (seen, used) = drive(&running, &plan, &[leader], dialect.as_mut())?;
            for mut connection in idle {
                // A server that had ended its watches would have cost nothing.
                connection.send(&Message::Ping { nonce: 1 });
                loop {
                    match connection.receive() {
                        Some(Message::Pong { .. }) => break,
                        Some(Message::WatchProgress { .. }) => {}
                        other => return Err(format!("an idle watch is shown {other:?}").into()),
                    }
                }
            }
            if is_watched {
                std::thread::sleep(SETTLED);
            }
            if seen.failures() > 0 {
                return Err(format!("PUTs fail: {:?}", seen.errors).into());
            }
            let put_us = used.servers_s * 1e6 / seen.operations.max(1) as f64;
            eprintln!(
                "round {round}  {} watches: {:.0} PUTs a second, servers {put_us:.1} µs each, \
                 others {:.0} %",
                if is_watched { watches } else { 0 },
                seen.per_second(),
                used.foreign * 100.0
            );
            measured[usize::from(is_watched)] = Some((seen.per_second(), put_us, used.foreign));
        }
        let [Some(free), Some(watched)] = measured else { continue };
        for (rounds, (rate, put_us, foreign)) in [(&mut without, free), (&mut with, watched)] {
            rounds[0].add(rate, foreign);
            rounds[1].add(put_us, foreign);
        }
        let foreign = free.2.max(watched.2);
        rates.add(watched.0 / free.0, foreign);
        costs.add(watched.1 / free.1, foreign);
    }
    let many = grouped(watches as u64);
    let none = Target::None;
    print_row("64 clients, PUT, no watch", &without[0], " a second", none);
    print_row("processor time of all servers", &without[1], " µs each", none);
    print_row(&format!("the same, {many} watches of other keys"), &with[0], " a second", none);
    print_row("processor time of all servers", &with[1], " µs each", none);
    print_row("rate beside that without a watch", &rates, " ×", none);
    print_row("cost beside that without a watch", &costs, " ×", Target::AtMost(1.02));
    Ok(())
}

/// Begins watches of keys that nobody writes.
fn begin_idle(server: SocketAddr, watches: usize) -> Outcome<Vec<Raw>> {
    let mut connections = Vec::new();
    let numbers: Vec<usize> = (0..watches).collect();
    for of_connection in numbers.chunks(CONNECTION_WATCHES) {
        let mut connection = Raw::client(server);
        for at_once in of_connection.chunks(BEGUN_AT_ONCE) {
            let mut frames = Vec::new();
            for number in at_once {
                let key = format!("idle-{number:08}");
                let request = watch_of(*number as u64, &key);
                encode(&Message::Request { id: *number as u64, body: request }, &mut frames);
            }
            connection.bytes(&frames);
            let mut begun = 0;
            while begun < at_once.len() {
                match connection.receive() {
                    Some(Message::Reply { body: Reply::WatchOk { .. }, .. }) => begun += 1,
                    Some(Message::WatchProgress { .. }) => {}
                    other => return Err(format!("a watch is answered with {other:?}").into()),
                }
            }
        }
        connections.push(connection);
    }
    Ok(connections)
}

/// The request of a watch of one key, from now on.
pub fn watch_of(watch: u64, key: &str) -> Request {
    let key = bytes::Bytes::copy_from_slice(key.as_bytes());
    Request::Watch(WatchRequest {
        watch,
        range: KeyInterval { from: key.clone(), to: key },
        after: None,
        tells_previous: false,
        credit_bytes: WATCH_CREDIT_BYTES_MAX,
    })
}

/// A client that puts one value after the other at the leader, and when a watch of the library
/// shows each: at the leader, and at a server that follows.
pub fn latency(extent: &Extent) -> Outcome<()> {
    let running = Running::start(ACERVO)?;
    let data = PeerData { keys: extent.keys, value_bytes: VALUE_BYTES };
    fill(&running, data)?;
    let puts = extent.small_or(50, 2_000);
    let places = ["at the leader", "at a server that follows"];
    let mut all: [[Rounds; 3]; 2] = Default::default();
    for round in 0..extent.rounds {
        for place in [round % 2, 1 - round % 2] {
            let leader = running.leader()?;
            let follower = running.addresses.iter().find(|address| **address != leader);
            let server = if place == 0 { leader } else { *follower.ok_or("nobody follows")? };
            let accounts = Accounts::now(&running.servers());
            let (put_us, event_us) = put_and_watch(leader, server, puts)?;
            let foreign = accounts.since(&running.servers()).foreign;
            eprintln!(
                "round {round}  {}: PUT p50 {put_us:.0} µs, its event {event_us:.0} µs, others \
                 {:.0} %",
                places[place],
                foreign * 100.0
            );
            for (at, found) in [put_us, event_us, event_us / put_us].into_iter().enumerate() {
                all[place][at].add(found, foreign);
            }
        }
    }
    for (place, [puts, events, ratios]) in places.into_iter().zip(&all) {
        print_row(&format!("1 client, PUT, p50, watched {place}"), puts, " µs", Target::None);
        print_row("PUT to its event, p50", events, " µs", Target::None);
        print_row("event beside PUT", ratios, " ×", Target::AtMost(1.5));
    }
    Ok(())
}

/// The medians of PUTs and of their events, in microseconds from when the PUT was called.
fn put_and_watch(leader: SocketAddr, server: SocketAddr, puts: usize) -> Outcome<(f64, f64)> {
    let (key, value) = ("watched", vec![b'a'; VALUE_BYTES]);
    let writer = Client::connect([leader])?;
    let (events, _thread) = Events::begin(server, KeyRange::between(key, key)?)?;
    // The watch begins some time after it was asked for.
    let deadline = Instant::now() + EVENT_TIMEOUT;
    loop {
        let put = writer.put(key, &value)?;
        match events.recv_timeout(STOP_POLL) {
            Ok((version, _)) if version == put.timestamp => break,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err("the watch has ended".into()),
            _ if Instant::now() > deadline => return Err("the watch shows nothing".into()),
            _ => {}
        }
    }
    let (mut put_us, mut event_us) = (Vec::new(), Vec::new());
    // A tenth before, to be warm.
    for number in 0..puts + puts / 10 {
        let asked = Instant::now();
        let put = writer.put(key, &value)?;
        let answered = asked.elapsed();
        let shown = loop {
            let (version, at) = events.recv_timeout(EVENT_TIMEOUT)?;
            if version == put.timestamp {
                break at.saturating_duration_since(asked);
            }
        };
        if number >= puts / 10 {
            put_us.push(answered.as_secs_f64() * 1e6);
            event_us.push(shown.as_secs_f64() * 1e6);
        }
    }
    let median = |values| spread(values).map_or(f64::NAN, |(median, ..)| median);
    Ok((median(put_us), median(event_us)))
}

/// A thread that notes when a watch shows which version. It ends when this is dropped.
struct Events {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    fn begin(
        server: SocketAddr,
        range: KeyRange,
    ) -> Outcome<(mpsc::Receiver<(Timestamp, Instant)>, Events)> {
        let client = Client::connect([server])?;
        let mut watch = client.watch(range, WatchOptions::default())?;
        let (shown, events) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match watch.next_within(STOP_POLL) {
                    Some(Ok(event)) => {
                        let _ = shown.send((event.version(), Instant::now()));
                    }
                    Some(Err(_)) => return,
                    None => {}
                }
            }
        });
        Ok((events, Events { stop, thread: Some(thread) }))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A watch of the library that begins before everything that was written.
pub fn resume(extent: &Extent) -> Outcome<()> {
    let running = Running::start(ACERVO)?;
    let writer = Client::connect(running.addresses.clone())?;
    let before = writer.put("bench-", "before")?.timestamp;
    let versions = extent.small_or(5_000, 1_000_000);
    fill(&running, PeerData { keys: versions as u64, value_bytes: VALUE_BYTES })?;
    let last = writer.put("bench-~", "after")?.timestamp;
    let mut rates = Rounds::default();
    for round in 0..extent.rounds {
        let leader = running.leader()?;
        let accounts = Accounts::now(&running.servers());
        let begun = Instant::now();
        let client = Client::connect([leader])?;
        let options = WatchOptions { after: Some(before), ..WatchOptions::default() };
        let mut watch = client.watch(KeyRange::prefix("bench-")?, options)?;
        let (mut shown, mut version) = (0, before);
        while version < last {
            let event = watch.next_within(EVENT_TIMEOUT).ok_or("the watch shows nothing")??;
            version = event.version();
            match event {
                WatchEvent::Changed { changes, .. } => shown += changes.len(),
                WatchEvent::Reset { .. } => return Err("changes are gone: it was reset".into()),
            }
        }
        let elapsed = begun.elapsed();
        if shown <= versions {
            return Err(format!("only {shown} of more than {versions} changes are shown").into());
        }
        let used = accounts.since(&running.servers());
        let per_second = shown as f64 / elapsed.as_secs_f64();
        eprintln!(
            "round {round}  {shown} events in {elapsed:.2?}: {per_second:.0} a second, servers \
             {:.2} µs each, client {:.2} µs each, others {:.0} %",
            used.servers_s * 1e6 / shown as f64,
            used.generator_s * 1e6 / shown as f64,
            used.foreign * 100.0
        );
        rates.add(per_second, used.foreign);
    }
    let what = format!("a watch resumed from {} versions ago", grouped(versions as u64));
    print_row(&what, &rates, " events a second", Target::AtLeast(200_000.0));
    Ok(())
}
