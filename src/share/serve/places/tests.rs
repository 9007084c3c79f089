//! Takers of all kinds at a server with a limited line, in virtual time.

use std::collections::{HashMap, VecDeque};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::share::seeds::{Replay, random_seed};

const CHUNK: f64 = limits::CHUNK_BYTES as f64;

/// A simulated peer that requests chunk after chunk.
#[derive(Clone, Debug, Default)]
struct SimPeer {
    origin: usize,
    /// Bytes a second that its own line carries.
    rate: f64,
    /// Whether it comes back at once after it was cut off.
    is_stubborn: bool,
    /// Until this time it takes nothing, because its disk is busy.
    pauses_until: Duration,
    last_turn: u64,
    /// When it requests a chunk again, if it is not waiting.
    asks_at: Duration,
    waits_since: Option<Duration>,
    /// The bytes left of each chunk that it is being sent.
    left: VecDeque<f64>,
    /// Whether it is being sent a chunk in slices.
    has_slices: bool,
    taking: Duration,
    took: Option<Duration>,
    chunks: u64,
    failures: u32,
}

impl SimPeer {
    fn of(rate: f64) -> SimPeer {
        SimPeer { rate, ..SimPeer::default() }
    }

    fn times(&self) -> TakerTimes {
        TakerTimes { took: self.took, taking: self.taking }
    }

    fn taker(&self) -> TakerSpeed {
        self.times().taker()
    }

    fn holds(&self) -> usize {
        self.left.len()
    }

    fn waits(&self) -> bool {
        self.waits_since.is_some() && self.left.is_empty()
    }

    fn taken_bytes(&self) -> f64 {
        self.left.front().map_or(0.0, |left| CHUNK - left)
    }
}

/// A simulated server with a limited line, in virtual time.
struct SimServer {
    peers: Vec<SimPeer>,
    rules: PlaceRules,
    whole_max: usize,
    now: Duration,
    step: Duration,
    uplink: f64,
    marks: u64,
    random: SmallRng,
}

impl SimServer {
    fn new(peers: Vec<SimPeer>, uplink: f64, step: Duration) -> SimServer {
        let mut server = SimServer {
            peers: Vec::new(),
            rules: PlaceRules::default(),
            whole_max: limits::UPLOAD_CHUNKS_MAX,
            now: Duration::ZERO,
            step,
            uplink,
            marks: 0,
            random: SmallRng::seed_from_u64(1),
        };
        peers.into_iter().for_each(|peer| server.connect(peer));
        server
    }

    fn connect(&mut self, mut peer: SimPeer) {
        self.marks += 1;
        (peer.last_turn, peer.asks_at) = (self.marks, self.now);
        self.peers.push(peer);
    }

    /// Sends for one step. The line is shared equally, and no peer takes more than it can.
    fn send(&mut self) {
        let seconds = self.step.as_secs_f64();
        let now = self.now;
        let takes = |peer: &&SimPeer| !peer.left.is_empty() && peer.pauses_until <= now;
        let rates = self.peers.iter().filter(takes).map(|peer| peer.rate);
        let mut rates: Vec<f64> = rates.collect();
        rates.sort_by(f64::total_cmp);
        let (mut uplink, mut share) = (self.uplink, f64::INFINITY);
        for (at, rate) in rates.iter().enumerate() {
            share = uplink / (rates.len() - at) as f64;
            if *rate > share {
                break;
            }
            (uplink, share) = (uplink - rate, f64::INFINITY);
        }
        for peer in &mut self.peers {
            let pauses = peer.pauses_until > now;
            let mut bytes = if pauses { 0.0 } else { peer.rate.min(share) * seconds };
            if !peer.left.is_empty() {
                peer.taking += self.step;
            }
            while let Some(left) = peer.left.front_mut() {
                if *left > bytes {
                    *left -= bytes;
                    break;
                }
                bytes -= *left;
                peer.left.pop_front();
                peer.has_slices = false;
                peer.took = Some(std::mem::take(&mut peer.taking));
                peer.chunks += 1;
                peer.failures = 0;
            }
        }
    }

    fn ask(&mut self) {
        for peer in &mut self.peers {
            if peer.waits_since.is_none() && peer.asks_at <= self.now {
                peer.waits_since = Some(self.now);
            }
        }
    }

    fn make_room(&mut self) {
        for peer in self.peers.iter_mut().filter(|peer| !peer.left.is_empty()) {
            if !peer.times().has_stopped(peer.taken_bytes() as u64) {
                continue;
            }
            self.marks += 1;
            peer.last_turn = self.marks;
            // The back-off of a download's swarm.
            let away = limits::SOURCE_AWAY_MIN * (1 << peer.failures.min(5));
            peer.failures += 1;
            peer.asks_at = self.now + if peer.is_stubborn { Duration::ZERO } else { away };
            (peer.waits_since, peer.took, peer.taking) = (None, None, Duration::ZERO);
            peer.has_slices = false;
            peer.left.clear();
        }
    }

    fn refuse_waiting(&mut self) {
        let (now, random) = (self.now, &mut self.random);
        for peer in self.peers.iter_mut().filter(|peer| peer.waits()) {
            if peer.waits_since.is_some_and(|at| now - at >= limits::UPLOAD_WAIT_MAX) {
                peer.waits_since = None;
                peer.asks_at = now + Duration::from_millis(random.random_range(200..1000));
            }
        }
    }

    fn origin_holds(&self, origin: usize) -> usize {
        self.peers.iter().filter(|peer| peer.origin == origin).map(SimPeer::holds).sum()
    }

    fn whole_free(&self) -> usize {
        let whole = self.peers.iter().filter(|peer| !peer.has_slices).map(SimPeer::holds);
        self.whole_max - whole.sum::<usize>()
    }

    fn give(&mut self, at: usize) {
        self.marks += 1;
        let peer = &mut self.peers[at];
        peer.last_turn = self.marks;
        peer.left.push_back(CHUNK);
        peer.waits_since = Some(self.now);
    }

    /// Gives out buffers. Returns the slow peers that have had a turn.
    fn read_ahead(&mut self) -> Vec<usize> {
        for second_round in [false, true] {
            loop {
                let free = self.whole_free();
                let may_have = |peer: &SimPeer| {
                    let (holds, taker) = (peer.holds(), peer.taker());
                    let is_asking = peer.waits_since.is_some() && !peer.has_slices;
                    is_asking && self.rules.may_have_whole(free, holds, taker, second_round)
                };
                let all = 0..self.peers.len();
                let ids: Vec<usize> = all.filter(|at| may_have(&self.peers[*at])).collect();
                let claim = |at: &usize| BufferClaim {
                    origin_holds: self.origin_holds(self.peers[*at].origin),
                    last_turn: self.peers[*at].last_turn,
                };
                let claims: Vec<BufferClaim> = ids.iter().map(claim).collect();
                let Some(next) = next_whole(&claims) else { break };
                self.give(ids[next]);
            }
        }
        let mut slow: HashMap<usize, Vec<f64>> = HashMap::new();
        let is_slow = |peer: &&SimPeer| !peer.left.is_empty() && peer.taker() == TakerSpeed::Slow;
        for peer in self.peers.iter().filter(is_slow) {
            let rate = peer.times().rate(peer.taken_bytes() as u64);
            slow.entry(peer.origin).or_default().push(rate);
        }
        let mut line: Vec<usize> =
            (0..self.peers.len()).filter(|at| self.peers[*at].waits()).collect();
        line.sort_by_key(|at| self.peers[*at].last_turn);
        let mut slow_turns = Vec::new();
        for at in line {
            let times = self.peers[at].times();
            let slow = slow.entry(self.peers[at].origin).or_default();
            if self.rules.may_begin(times, slow) {
                if times.taker() == TakerSpeed::Slow {
                    slow.push(times.shown_rate());
                    slow_turns.push(at);
                }
                self.give(at);
                self.peers[at].has_slices = true;
            }
        }
        slow_turns
    }

    /// Lets one step of time pass. Returns the slow peers that have had a turn.
    fn step(&mut self) -> Vec<usize> {
        self.now += self.step;
        self.send();
        self.ask();
        if self.now.as_millis().is_multiple_of(limits::SHARE_TICK.as_millis()) {
            self.make_room();
            self.refuse_waiting();
        }
        self.read_ahead()
    }

    fn run(&mut self, until: Duration) {
        while self.now < until {
            self.step();
        }
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How long a fast peer takes over a hundred chunks if it comes when the others have been
/// served for a while.
fn time_of_one_more(others: usize, others_take: Duration) -> Duration {
    let rate = CHUNK / others_take.as_secs_f64();
    let other = |at: usize| SimPeer { origin: 1 + at, ..SimPeer::of(rate) };
    let others = (0..others).map(other).collect();
    let mut server = SimServer::new(others, f64::INFINITY, Duration::from_millis(2));
    server.run(secs(8));
    server.connect(SimPeer::of(110.0 * CHUNK));
    while server.peers.last().is_some_and(|peer| peer.chunks < 100) {
        server.step();
        assert!(server.now < secs(60), "beside peers that take {others_take:?}");
    }
    server.now - secs(8)
}

/// Once 24 takers of 300 KiB/s had all places, and a download of one second took 26.
#[test]
fn slow_peers_never_make_a_fast_one_slower() {
    let alone = time_of_one_more(0, secs(1));
    for (others, take_ms) in [(24, 3400), (24, 600), (24, 60_000), (60, 45), (60, 100)] {
        let beside = time_of_one_more(others, Duration::from_millis(take_ms));
        let most = alone * 11 / 10 + 3 * limits::SHARE_TICK;
        assert!(beside <= most, "{others} of {take_ms} ms: {alone:?}, then {beside:?}");
    }
    for (others, take_ms) in [(100, 3400), (200, 3400), (200, 60_000), (1000, 60_000)] {
        let beside = time_of_one_more(others, Duration::from_millis(take_ms));
        let most = alone * 11 / 10 + 3 * limits::SHARE_TICK;
        assert!(beside <= most, "{others} of {take_ms} ms: {beside:?}");
    }
}

/// Once two hundred addresses that took 5 KB a second, and came back when they were cut off,
/// had every place for as long as they liked. A fast peer whose disk had been busy for a second
/// counted as slow, and was not served again for half a minute.
#[test]
fn slow_peers_that_reconnect_never_keep_a_fast_one_out() {
    let crowds = [(48, 48), (200, 200), (1000, 1000), (200, 1), (1000, 4)];
    for (others, origins) in crowds {
        for (at_secs, pauses_ms) in [(1, 0), (7, 1500)] {
            let other = |at: usize| SimPeer {
                origin: 1 + at % origins,
                is_stubborn: true,
                ..SimPeer::of(5000.0)
            };
            let others_there = (0..others).map(other).collect();
            let mut server = SimServer::new(others_there, f64::INFINITY, Duration::from_millis(20));
            server.run(secs(at_secs));
            server.connect(SimPeer::of(110.0 * CHUNK));
            let quick = others;
            let begun = server.now;
            let mut waited = Duration::ZERO;
            while server.peers[quick].chunks < 100 {
                if server.peers[quick].chunks == 50 && pauses_ms > 0 {
                    let peer = &mut server.peers[quick];
                    let pause = Duration::from_millis(pauses_ms);
                    peer.pauses_until = peer.pauses_until.max(begun + pause + secs(1));
                }
                waited += if server.peers[quick].waits() { server.step } else { Duration::ZERO };
                server.step();
                let so_far = server.now - begun;
                assert!(so_far < secs(6), "{others} of {origins}, {at_secs} s, {pauses_ms} ms");
            }
            assert!(waited < 3 * limits::SHARE_TICK, "{others} of {origins}: {waited:?}");
        }
    }
}

/// A fast peer at the very address of a crowd of slow ones is served again after its disk was
/// busy once.
#[test]
fn many_slow_peers_of_an_address_do_not_keep_out_a_fast_one_of_it() {
    for others in [48, 200] {
        let dribbler = SimPeer { is_stubborn: true, ..SimPeer::of(5000.0) };
        let mut server =
            SimServer::new(vec![dribbler; others], f64::INFINITY, Duration::from_millis(20));
        server.run(secs(20));
        server.connect(SimPeer { pauses_until: secs(21), ..SimPeer::of(110.0 * CHUNK) });
        while server.peers[others].chunks < 100 {
            server.step();
            assert!(server.now < secs(30), "beside {others}");
        }
    }
}

/// A person on a slow line makes progress, however many others there are and whatever they
/// take.
#[test]
fn a_peer_on_a_slow_line_makes_progress_beside_any_number_of_others() {
    for (rate, others_take) in [(50_000.0, 5000.0), (5000.0, 5000.0), (20_000.0, 100.0 * CHUNK)] {
        let other =
            |at: usize| SimPeer { origin: 1 + at, is_stubborn: true, ..SimPeer::of(others_take) };
        let others = (0..200).map(other).collect();
        let mut server = SimServer::new(others, 100.0 * CHUNK, Duration::from_millis(100));
        server.run(secs(5));
        server.connect(SimPeer::of(rate));
        let alone = Duration::from_secs_f64(3.0 * CHUNK / rate);
        server.run(secs(5) + alone + alone / 8);
        let chunks = server.peers[200].chunks;
        assert!(chunks >= 3, "at {rate} beside {others_take}: {chunks}");
    }
}

/// With random peers and small numbers: there are never more buffers than exist, a peer that is
/// not slow is served at once, and a slow one waits for no more turns of peers no faster than
/// itself than its address has peers.
#[test]
fn a_peer_waits_for_at_most_as_many_turns_as_its_address_has_peers() {
    let seed = random_seed();
    let _replay = Replay(seed);
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..200 {
        let origins = random.random_range(1..5);
        let count = random.random_range(1..25);
        let mut peer = || SimPeer {
            origin: random.random_range(0..origins),
            is_stubborn: random.random(),
            rate: CHUNK * [0.0, 0.005, 0.5, 1.5, 100.0][random.random_range(0..5)],
            pauses_until: Duration::from_millis(random.random_range(0..1500)),
            ..SimPeer::default()
        };
        let peers: Vec<SimPeer> = (0..count).map(|_| peer()).collect();
        let mut server = SimServer::new(peers, 8.0 * CHUNK, Duration::from_millis(50));
        server.whole_max = random.random_range(2..6);
        let whole_per_peer_max = random.random_range(1..3);
        let slow_per_origin_max = random.random_range(1..4);
        server.rules = PlaceRules { whole_per_peer_max, slow_per_origin_max };
        let mut turns_of_others = vec![0; count];
        for _ in 0..1000 {
            let alike = |server: &SimServer, at: usize| {
                let origin = server.peers[at].origin;
                server.peers.iter().filter(|peer| peer.origin == origin).count()
            };
            for slow in server.step() {
                for (at, turns) in turns_of_others.iter_mut().enumerate() {
                    let is_alike = server.peers[at].origin == server.peers[slow].origin;
                    let shown = |at: usize| server.peers[at].times().shown_rate();
                    let is_no_better = shown(slow) <= shown(at);
                    let waits = server.peers[at].waits();
                    *turns += usize::from(is_alike && is_no_better && waits);
                }
            }
            assert!(server.whole_free() >= 1);
            for (at, turns) in turns_of_others.iter_mut().enumerate() {
                let peer = &server.peers[at];
                if !peer.left.is_empty() {
                    *turns = 0;
                }
                assert!(!peer.waits() || peer.taker() == TakerSpeed::Slow, "{peer:?}");
                assert!(*turns <= alike(&server, at), "{at}: {peer:?}");
            }
        }
    }
}

/// On a line of ten megabits a second every peer is slow. When new connections cut off those
/// that had taken most, of the 720 chunks that the line carries in this time 255 arrived at 30
/// takers, 55 at 60 and none at 100.
#[test]
fn many_peers_on_a_slow_line_get_nearly_all_that_it_carries() {
    let uplink = 1.2 * CHUNK;
    for takers in [20, 30, 60, 100] {
        let peers = (0..takers).map(|origin| SimPeer { origin, ..SimPeer::of(f64::MAX) }).collect();
        let mut server = SimServer::new(peers, uplink, Duration::from_millis(50));
        server.run(secs(600));
        let chunks: Vec<u64> = server.peers.iter().map(|peer| peer.chunks).collect();
        let all: u64 = chunks.iter().sum();
        let without = chunks.iter().filter(|chunks| **chunks == 0).count();
        assert!(all >= 650, "{takers} takers: {all} of 720 chunks");
        assert!(without <= takers / 10, "{takers} takers: {chunks:?}");
    }
}

/// Connections that take nothing or very little, and come back as soon as they are cut off.
#[test]
fn peers_that_read_nothing_cost_the_others_little() {
    for (honest, rate) in [(10, 5_000.0), (30, 0.0)] {
        let dribbler = SimPeer { is_stubborn: true, origin: 1, ..SimPeer::of(rate) };
        let peers = [vec![SimPeer::of(f64::MAX); honest], vec![dribbler; 60]].concat();
        let mut server = SimServer::new(peers, 1.2 * CHUNK, Duration::from_millis(50));
        server.run(secs(300));
        let chunks: Vec<u64> = server.peers[..honest].iter().map(|peer| peer.chunks).collect();
        let all: u64 = chunks.iter().sum();
        assert!(all >= 280 && chunks.iter().all(|chunks| *chunks > 0), "{chunks:?}");
    }
}

/// Two hundred connections of one address that take all they get, and one of another address.
#[test]
fn an_origin_gets_its_share_beside_one_with_many_connections() {
    let peers =
        [vec![SimPeer::of(f64::MAX); 200], vec![SimPeer { origin: 1, ..SimPeer::of(f64::MAX) }]];
    let mut server = SimServer::new(peers.concat(), 50.0 * CHUNK, Duration::from_millis(10));
    server.run(secs(20));
    let chunks = server.peers.last().map_or(0, |peer| peer.chunks);
    // One share of 17, but for the start when all others are new. By connections it would be
    // five.
    assert!(chunks >= 25, "{chunks} of a thousand chunks");
}

#[test]
fn a_peer_that_keeps_the_server_waiting_is_slow() {
    let ms = Duration::from_millis;
    let of =
        |took: Option<u64>, taking| TakerTimes { took: took.map(ms), taking: ms(taking) }.taker();
    assert_eq!(
        [of(None, 0), of(None, 499), of(None, 500)],
        [TakerSpeed::New, TakerSpeed::New, TakerSpeed::Slow]
    );
    assert_eq!([of(Some(499), 0), of(Some(0), 500)], [TakerSpeed::Quick, TakerSpeed::Slow]);
    // It is slow until it has taken another chunk in time.
    assert_eq!([of(Some(500), 0), of(Some(20), 0)], [TakerSpeed::Slow, TakerSpeed::Quick]);
}

#[test]
fn a_stopped_peer_is_closed_and_peers_wait_only_for_their_like() {
    let times =
        |took: Option<u64>, taking| TakerTimes { took: took.map(secs), taking: secs(taking) };
    assert!(times(None, 61).has_stopped(61 * 1000) && !times(None, 61).has_stopped(61 * 1100));
    assert!(!times(None, 59).has_stopped(0));
    // The rate of the previous chunk counts until more is known.
    assert_eq!(times(Some(2), 1).rate(0), CHUNK / 2.0);
    assert_eq!(times(Some(2), 4).rate(4000), 1000.0);
    let rules = PlaceRules { slow_per_origin_max: 2, whole_per_peer_max: 1 };
    let alike = times(Some(2), 1).rate(0);
    assert!(!rules.may_begin(times(Some(2), 0), &[alike, alike]));
    assert!(rules.may_begin(times(Some(2), 0), &[alike, 1000.0, 1000.0]));
    assert!(!rules.may_begin(times(Some(900), 0), &[1000.0, 1000.0]));
    assert!(rules.may_begin(times(None, 0), &[alike, alike, alike]));
}
