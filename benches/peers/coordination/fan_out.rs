//! One key with a thousand watchers, written a thousand times a second: whether each is shown every
//! value, how many events a second that makes, and how late they are.
//!
//! Each watcher has a connection of its own, and they are spread over the three servers. PUTs go to
//! the leader, and are due at their rate whatever the system does. Each value has its number, by
//! which a watcher knows what it has been shown. One thread reads all watchers, and looks for
//! the numbers and at no more of a message, the same for both systems: a million events a second
//! leave it a microsecond each.
//!
//! Events count from the first PUT to the last event of all, those after the last PUT included.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use acervo::bench::{Answer, Pace, Plan, Until};
use acervo::limits::WATCH_CREDIT_BYTES_MAX;
use acervo::model::{Put, WriteAnswer, WriteOp};
use acervo::wire::codec;
use acervo::wire::message::{Message, Reply, WATCH_ELEMENT_BYTES};
use bytes::Bytes;
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Poll, Token};

use super::watches::watch_of;
use super::writers::{
    AcervoOps, AcervoWriters, EtcdCalls, EtcdWriters, WRITTEN, encode, encode_greeting,
};
use super::{ACERVO, Extent, Rounds, Target, print_row};
use crate::driver::{Dialect, Framed, frame};
use crate::grpc::{GrpcLine, number_of, protobuf_bytes};
use crate::machine::Accounts;
use crate::systems::{PeerData, Running, System};
use crate::table::grouped;
use crate::{Outcome, drive, fill, plan};

/// What is said of Acervo where it is asked as if it was etcd.
const AS_ETCD: &str = "Acervo, asked as etcd is";
const KEY: &str = "watched";
const VALUE_BYTES: usize = 100;
/// Clients that take turns with the PUTs.
const PUT_CLIENTS: usize = 64;
/// Comes before the number in a value, and nowhere else.
const MARK: [u8; 8] = *b"\xf5event\xf6\xf7";
const WATCH: u64 = 1;
/// How long watchers may be shown nothing, while something is to come, before they are given up.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How long a system may take to begin a watch.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the thread of the watchers looks whether all are done.
const TICK: Duration = Duration::from_millis(5);
const READ_BYTES: usize = 64 * 1024;

/// What a round has found of a system.
struct FanOut {
    events: u64,
    missing: u64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    most_ms: f64,
    foreign: f64,
}

#[derive(Default)]
struct FanOuts {
    per_second: Rounds,
    p50_ms: Rounds,
    p99_ms: Rounds,
    missing: u64,
}

pub fn run(extent: &Extent) -> Outcome<()> {
    let mut acervo = FanOuts::default();
    let mut etcd = FanOuts::default();
    let mut beside_etcd = Rounds::default();
    let (mut as_etcd, mut as_etcd_beside) = (FanOuts::default(), Rounds::default());
    let has_etcd = System::Etcd.version().map_err(|reason| eprintln!("no etcd: {reason}")).is_ok();
    for round in 0..extent.rounds {
        let ours = measure_round(ACERVO, round, extent, &mut acervo)?;
        let asked = measure_round(System::AcervoAsEtcd, round, extent, &mut as_etcd)?;
        if !has_etcd {
            continue;
        }
        match measure_round(System::Etcd, round, extent, &mut etcd) {
            Ok(theirs) => {
                let foreign = ours.foreign.max(theirs.foreign);
                beside_etcd.add(ours.per_second / theirs.per_second, foreign);
                let foreign = asked.foreign.max(theirs.foreign);
                as_etcd_beside.add(asked.per_second / theirs.per_second, foreign);
            }
            Err(error) => eprintln!("round {round}, etcd: {error}"),
        }
    }
    let (watchers, rate) = (grouped(watchers(extent) as u64), grouped(rate(extent)));
    let none = Target::None;
    for (name, found) in [("Acervo", &acervo), (AS_ETCD, &as_etcd), ("etcd", &etcd)] {
        let what = format!("{name}: {watchers} watchers of one key, {rate} PUTs a second");
        print_row(&what, &found.per_second, " events a second", none);
        print_row("PUT to event, p50", &found.p50_ms, " ms", none);
        print_row("PUT to event, p99", &found.p99_ms, " ms", none);
        let mut missing = Rounds::default();
        missing.add(found.missing as f64, 0.0);
        let target = if name == "etcd" { none } else { Target::AtMost(0.0) };
        print_row("events that did not come, of all rounds", &missing, "", target);
    }
    print_row("Acervo's events beside etcd's", &beside_etcd, " ×", Target::AtLeast(3.0));
    print_row("those that are asked for as etcd's", &as_etcd_beside, " ×", Target::AtLeast(3.0));
    Ok(())
}

fn watchers(extent: &Extent) -> usize {
    extent.small_or(20, 1_000)
}

fn rate(extent: &Extent) -> u64 {
    extent.small_or(100, 1_000) as u64
}

fn measure_round(
    system: System,
    round: usize,
    extent: &Extent,
    all: &mut FanOuts,
) -> Outcome<FanOut> {
    let running = Running::start(system)?;
    fill(&running, PeerData { keys: 1_000, value_bytes: VALUE_BYTES })
        .map_err(|error| format!("{error}: {}", running.last_words()))?;
    let found = measure(&running, round, extent)?;
    eprintln!(
        "round {round}  {}: {:.0} events a second, {} in all and {} missing, PUT to event p50 \
         {:.2} ms, p99 {:.2}, at most {:.0}, others {:.0} %",
        system.name(),
        found.per_second,
        found.events,
        found.missing,
        found.p50_ms,
        found.p99_ms,
        found.most_ms,
        found.foreign * 100.0
    );
    all.per_second.add(found.per_second, found.foreign);
    all.p50_ms.add(found.p50_ms, found.foreign);
    all.p99_ms.add(found.p99_ms, found.foreign);
    all.missing += found.missing;
    Ok(found)
}

fn measure(running: &Running, round: usize, extent: &Extent) -> Outcome<FanOut> {
    let leader = running.leader()?;
    let (watchers, per_second) = (watchers(extent), rate(extent));
    let puts = (extent.seconds * per_second as f64).ceil() as u64;
    let mut open = Vec::new();
    for number in 0..watchers {
        let server = running.addresses[number % running.addresses.len()];
        open.push(Watcher::begin(running.system, server)?);
    }
    let sent = Arc::new(Sent::new(puts));
    let accounts = Accounts::now(&running.servers());
    let reader = {
        let sent = Arc::clone(&sent);
        std::thread::spawn(move || read_all(open, &sent).map_err(|error| error.to_string()))
    };
    let mut dialect: Box<dyn Dialect> = match running.system {
        System::Etcd | System::AcervoAsEtcd => {
            Box::new(EtcdWriters::new(Numbered(sent), PUT_CLIENTS, leader))
        }
        _ => Box::new(Framed(AcervoWriters::new(Numbered(sent), PUT_CLIENTS))),
    };
    let plan = Plan {
        pace: Pace::Open { per_second },
        ..plan(leader, PUT_CLIENTS, 1, Until::Requests(puts), round as u64)
    };
    let (seen, _) = drive(running, &plan, &[leader], dialect.as_mut())?;
    let read = reader.join().map_err(|_| "the thread of the watchers panics")??;
    let foreign = accounts.since(&running.servers()).foreign;
    if seen.failures() > 0 {
        return Err(format!("PUTs fail: {:?}", seen.errors).into());
    }
    let ms = |share: f64| read.late_ns.value_at_quantile(share) as f64 / 1e6;
    Ok(FanOut {
        events: read.events,
        missing: read.missing,
        per_second: read.events as f64 / read.elapsed.as_secs_f64().max(1e-9),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        most_ms: ms(1.0),
        foreign,
    })
}

/// When the PUT of each number was sent, in nanoseconds since the beginning; 0 before it was.
struct Sent {
    begun: Instant,
    next: AtomicU64,
    at_ns: Vec<AtomicU64>,
}

impl Sent {
    fn new(puts: u64) -> Sent {
        let at_ns = (0..puts).map(|_| AtomicU64::new(0)).collect();
        Sent { begun: Instant::now(), next: AtomicU64::new(0), at_ns }
    }

    fn now_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// The value of the next PUT, which is sent now.
    fn value(&self) -> Vec<u8> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.at_ns[number as usize].store(self.now_ns(), Ordering::Relaxed);
        let mut value = [MARK, number.to_be_bytes()].concat();
        value.resize(VALUE_BYTES, b'a');
        value
    }
}

/// PUTs of values that have numbers.
struct Numbered(Arc<Sent>);

impl AcervoOps for Numbered {
    fn op(&mut self, _client: usize) -> WriteOp {
        let (key, value) = (Bytes::from_static(KEY.as_bytes()), self.0.value().into());
        Put { key, value, tells_previous: false }.into()
    }

    fn learn(&mut self, _client: usize, _answer: &WriteAnswer) -> Answer {
        WRITTEN
    }
}

impl EtcdCalls for Numbered {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Put"
    }

    fn message(&mut self, _client: usize) -> Vec<u8> {
        let mut put = Vec::new();
        protobuf_bytes(1, KEY.as_bytes(), &mut put);
        protobuf_bytes(2, &self.0.value(), &mut put);
        put
    }

    fn learn(&mut self, _client: usize, _message: &[u8]) -> Answer {
        WRITTEN
    }
}

/// The numbers of the values in a message, in order.
fn numbers_in(mut message: &[u8], found: &mut impl FnMut(u64)) {
    while let Some(at) = message.iter().position(|byte| *byte == MARK[0]) {
        message = &message[at..];
        match message.strip_prefix(&MARK).and_then(|rest| rest.split_first_chunk::<8>()) {
            Some((number, rest)) => {
                found(u64::from_be_bytes(*number));
                message = rest;
            }
            None => message = &message[1..],
        }
    }
}

/// A connection with one watch of the key.
struct Watcher {
    stream: std::net::TcpStream,
    words: WatchWords,
    /// What has come and is not understood yet.
    partial: Vec<u8>,
}

enum WatchWords {
    Acervo {
        /// Credit that was used up and not given back.
        taken_bytes: u32,
    },
    Etcd(Box<GrpcLine>),
}

impl Watcher {
    /// Connects, and waits until the watch has begun.
    fn begin(system: System, server: SocketAddr) -> Outcome<Watcher> {
        let stream = std::net::TcpStream::connect_timeout(&server, BEGIN_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(BEGIN_TIMEOUT))?;
        let mut out = Vec::new();
        let words = match system {
            System::Etcd | System::AcervoAsEtcd => {
                let mut line = GrpcLine::new("/etcdserverpb.Watch/Watch", server);
                line.greeting(&mut out);
                let (mut create, mut request) = (Vec::new(), Vec::new());
                protobuf_bytes(1, KEY.as_bytes(), &mut create);
                protobuf_bytes(1, &create, &mut request);
                line.call(0, &request, false, &mut out);
                WatchWords::Etcd(Box::new(line))
            }
            _ => {
                encode_greeting(&mut out);
                WatchWords::Acervo { taken_bytes: 0 }
            }
        };
        let mut watcher = Watcher { stream, words, partial: Vec::new() };
        watcher.stream.write_all(&out)?;
        let mut piece = [0; 4096];
        while !watcher.has_begun()? {
            match watcher.stream.read(&mut piece)? {
                0 => return Err("a watch is answered by closing the connection".into()),
                length => watcher.partial.extend_from_slice(&piece[..length]),
            }
        }
        watcher.stream.set_nonblocking(true)?;
        Ok(watcher)
    }

    /// Takes what has come, and says what is to be said to it. Whether the watch has begun.
    fn has_begun(&mut self) -> Outcome<bool> {
        let (mut out, mut has_begun) = (Vec::new(), false);
        loop {
            let taken = match &mut self.words {
                WatchWords::Acervo { .. } => {
                    let Some((frame, taken)) = frame(&self.partial) else { break };
                    match codec::decode(frame)? {
                        Message::Welcome(_) => {
                            let body = watch_of(WATCH, KEY);
                            encode(&Message::Request { id: WATCH, body }, &mut out);
                        }
                        Message::Reply { body: Reply::WatchOk { .. }, .. } => has_begun = true,
                        Message::WatchProgress { .. } => {}
                        other => return Err(format!("a watch begins with {other:?}").into()),
                    }
                    taken
                }
                WatchWords::Etcd(line) => {
                    let heard = line.heard(&self.partial, &mut out, &mut |_, message| {
                        // `created` is field 3.
                        has_begun |= number_of(message, 3) == 1;
                        Ok(())
                    })?;
                    let Some((taken, over)) = heard else { break };
                    if over.is_some() {
                        return Err("etcd ends a watch".into());
                    }
                    taken
                }
            };
            self.partial.drain(..taken);
        }
        self.stream.write_all(&out)?;
        Ok(has_begun)
    }
}

/// Understands what comes first in `bytes`: its length, if it is all there.
fn heard(
    words: &mut WatchWords,
    bytes: &[u8],
    out: &mut Vec<u8>,
    found: &mut impl FnMut(u64),
) -> Outcome<Option<usize>> {
    match words {
        WatchWords::Acervo { taken_bytes } => {
            let Some((frame, taken)) = frame(bytes) else { return Ok(None) };
            numbers_in(frame, &mut |number| {
                *taken_bytes += (WATCH_ELEMENT_BYTES + KEY.len() + VALUE_BYTES) as u32;
                found(number);
            });
            if *taken_bytes >= WATCH_CREDIT_BYTES_MAX / 4 {
                encode(&Message::WatchCredit { watch: WATCH, bytes: *taken_bytes }, out);
                *taken_bytes = 0;
            }
            Ok(Some(taken))
        }
        WatchWords::Etcd(line) => {
            let heard = line.heard(bytes, out, &mut |_, message| {
                numbers_in(message, found);
                Ok(())
            })?;
            match heard {
                Some((_, Some(_))) => Err("etcd ends a watch".into()),
                Some((taken, None)) => Ok(Some(taken)),
                None => Ok(None),
            }
        }
    }
}

/// What all watchers have been shown.
struct AllRead {
    events: u64,
    missing: u64,
    /// From the first PUT to the last event.
    elapsed: Duration,
    late_ns: Histogram<u64>,
}

/// What one watcher has been shown: each number's own bit.
struct Shown {
    numbers: Vec<u64>,
    count: u64,
}

/// Reads what all watchers are shown until each has seen every number, or nothing comes any more.
fn read_all(watchers: Vec<Watcher>, sent: &Sent) -> Outcome<AllRead> {
    let puts = sent.at_ns.len() as u64;
    let mut poll = Poll::new()?;
    let mut lines = Vec::new();
    for (number, Watcher { stream, words, partial }) in watchers.into_iter().enumerate() {
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(number), mio::Interest::READABLE)?;
        let shown = Shown { numbers: vec![0; puts.div_ceil(64) as usize], count: 0 };
        lines.push((stream, words, partial, shown));
    }
    let mut late_ns = Histogram::new_with_bounds(1, 600_000_000_000, 3)?;
    let (mut events_shown, mut last_ns) = (0, 0);
    let mut ready = mio::Events::with_capacity(1024);
    let (mut buffer, mut out) = (vec![0; READ_BYTES], Vec::new());
    let mut heard_at = Instant::now();
    while events_shown < puts * lines.len() as u64 && heard_at.elapsed() < SILENCE_MAX {
        match poll.poll(&mut ready, Some(TICK)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &ready {
            let (stream, words, partial, shown) = &mut lines[event.token().0];
            loop {
                let length = match stream.read(&mut buffer) {
                    Ok(0) => return Err("a watching connection was closed".into()),
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error.into()),
                };
                let now_ns = sent.now_ns();
                let before = events_shown;
                let is_whole = partial.is_empty();
                if !is_whole {
                    partial.extend_from_slice(&buffer[..length]);
                }
                let bytes = if is_whole { &buffer[..length] } else { &partial[..] };
                let mut taken = 0;
                let mut stray = None;
                while let Some(length) = heard(words, &bytes[taken..], &mut out, &mut |number| {
                    let (word, bit) = ((number / 64) as usize, 1_u64 << (number % 64));
                    match shown.numbers.get_mut(word) {
                        Some(bits) if *bits & bit == 0 && number < puts => {
                            *bits |= bit;
                            shown.count += 1;
                            events_shown += 1;
                            let sent_ns = sent.at_ns[number as usize].load(Ordering::Relaxed);
                            late_ns.saturating_record(now_ns.saturating_sub(sent_ns).max(1));
                        }
                        _ => stray = Some(number),
                    }
                })? {
                    taken += length;
                }
                if let Some(number) = stray {
                    return Err(format!("event {number} of {puts} comes twice").into());
                }
                if is_whole {
                    partial.extend_from_slice(&buffer[taken..length]);
                } else {
                    partial.drain(..taken);
                }
                if events_shown > before {
                    (heard_at, last_ns) = (Instant::now(), now_ns);
                }
                if !out.is_empty() {
                    // Some twenty bytes, for which an idle socket has room.
                    stream.write_all(&out)?;
                    out.clear();
                }
                if length < buffer.len() {
                    break;
                }
            }
        }
    }
    let first_ns = sent.at_ns[0].load(Ordering::Relaxed);
    Ok(AllRead {
        events: events_shown,
        missing: lines.iter().map(|(.., shown)| puts - shown.count).sum(),
        elapsed: Duration::from_nanos(last_ns.saturating_sub(first_ns)),
        late_ns,
    })
}
