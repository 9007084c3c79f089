//! Who is read a chunk for, and who gives way: the rules by which peers share a server's buffers. Pure.
//!
//! - Peers are quick, slow, or new, by how long they keep this side waiting over a chunk. Of the buffers some are only for
//!   those who are not slow, and a few only for who is quick: so no number of peers that take nothing keeps a quick
//!   one waiting, or hides one that has just come. A slow one has one buffer at a time.
//! - **Places change hands between chunks.** The next one is for the origin (an IP) that holds the fewest, so that a
//!   hundred connections of one do not get a hundred turns; among its peers for new ones, as far as there are
//!   places to try them, and then for those that have waited longest.
//! - **Who has shown nothing has one try.** A new peer's first chunk shows within half a second whether it is slow.
//!   If it is, and the slow ones have all places that they may have while somebody waits who is not known to be slow, one of them goes: one that
//!   takes far less than the others if there is one, else whoever loses least. Its address counts as slow for a while
//!   ([`KnownSlow`]): however often it comes again, it waits behind those that take, and for places of slow ones only. So
//!   a crowd of slow ones costs each of its addresses one short try a while, and a newcomer need not wait for theirs.
//! - **Apart from that a connection is closed early only at a small price.** When all peers are slow, because this side's line is, whoever is cut
//!   off within a chunk has taken bytes in vain, and will ask for them again. So only a small part of what is
//!   served may be lost so that one slow peer makes room for another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits;

/// How a peer takes its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taker {
    /// It has taken none yet.
    New,
    Quick,
    Slow,
}

/// How long a peer keeps this side waiting: without a limit on its rate, from handing over a chunk until it is taken; with
/// one, while it has not taken what it was given already.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// Over the last chunk.
    pub took: Option<Duration>,
    /// Over the present one so far.
    pub taking: Duration,
    /// Its address was slow a short while ago.
    pub is_known_slow: bool,
}

impl Times {
    /// What a peer is beside one that takes `quickest` over a chunk, if they are to be compared.
    pub(super) fn taker(self, quickest: Option<Duration>) -> Taker {
        let time = self.took.unwrap_or_default().max(self.taking);
        let beside_others = quickest
            .is_some_and(|quickest| time >= limits::UPLOAD_SLOW_AFTER_MIN && time >= 4 * quickest);
        if beside_others || time >= limits::UPLOAD_SLOW_AFTER {
            return Taker::Slow;
        }
        match self.took {
            Some(_) => Taker::Quick,
            None if self.is_known_slow => Taker::Slow,
            None => Taker::New,
        }
    }
}

/// Origins (IPs) that had a try and were slow, and until when that counts.
#[derive(Debug, Default)]
pub(super) struct KnownSlow {
    until: HashMap<IpAddr, Instant>,
}

impl KnownSlow {
    /// Until when a peer of this origin that has taken nothing yet counts as slow.
    pub(super) fn until(&self, origin: IpAddr) -> Option<Instant> {
        self.until.get(&origin).copied()
    }

    /// A connection of it ended over a chunk that it was slow to take. Until when that counts.
    pub(super) fn was_slow(&mut self, origin: IpAddr, now: Instant) -> Instant {
        if self.until.len() >= limits::UPLOAD_KNOWN_SLOW_MAX && !self.until.contains_key(&origin) {
            self.until.retain(|_, until| now < *until);
            let oldest = self.until.iter().min_by_key(|(_, until)| **until);
            if self.until.len() >= limits::UPLOAD_KNOWN_SLOW_MAX
                && let Some(oldest) = oldest.map(|(origin, _)| *origin)
            {
                self.until.remove(&oldest);
            }
        }
        let until = now + limits::UPLOAD_KNOWN_SLOW_FOR;
        self.until.insert(origin, until);
        until
    }

    /// A peer of it has taken a chunk quickly. Whether it counted as slow.
    pub(super) fn was_quick(&mut self, origin: IpAddr) -> bool {
        self.until.remove(&origin).is_some()
    }
}

/// The buffers at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// Those that nobody has.
    pub free: usize,
    /// Those of slow peers.
    pub slow: usize,
    /// Those of new ones.
    pub new: usize,
}

/// A peer that wants a chunk and may have a buffer for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// Buffers of all peers of its origin.
    pub origin_holds: usize,
    pub taker: Taker,
    /// When it had its last turn, or connected, in order. That it was told to come later does not matter.
    pub last_turn: u64,
}

impl Places {
    /// Whether a peer that has `holds` buffers may have one more, the second round of turns being for those who have
    /// some already.
    pub(super) fn may_have_one(&self, holds: usize, taker: Taker, second_round: bool) -> bool {
        let is_its_round = holds == 0 || second_round && holds < limits::UPLOAD_CHUNKS_PER_PEER_MAX;
        let is_for_all = self.slow + self.new < limits::UPLOAD_UNPROVED_CHUNKS_MAX;
        self.free > 0
            && match taker {
                Taker::Quick => is_its_round,
                Taker::New => is_its_round && is_for_all,
                Taker::Slow => {
                    holds == 0 && is_for_all && self.slow < limits::UPLOAD_SLOW_CHUNKS_MAX
                }
            }
    }

    /// Which of these has the next turn. `turn` counts the turns of new ones.
    pub(super) fn next(&self, claims: &[Claim], turn: u64) -> Option<usize> {
        const TRIED_AT_ONCE: usize =
            limits::UPLOAD_UNPROVED_CHUNKS_MAX - limits::UPLOAD_SLOW_CHUNKS_MAX;
        let has_room_to_try = self.new < TRIED_AT_ONCE;
        let rank = |claim: &Claim| {
            let is_tried = has_room_to_try && claim.taker == Taker::New;
            let is_newest_first = is_tried && !turn.is_multiple_of(limits::UPLOAD_OLDEST_EACH);
            let order = if is_newest_first { u64::MAX - claim.last_turn } else { claim.last_turn };
            (claim.origin_holds, has_room_to_try && !is_tried, order)
        };
        (0..claims.len()).min_by_key(|at| rank(&claims[*at]))
    }

    /// How many of so many quick and new peers that wait have no place to come to.
    pub(super) fn lacking(&self, quick: usize, new: usize) -> usize {
        let unproved = self.slow + self.new;
        let for_new = limits::UPLOAD_UNPROVED_CHUNKS_MAX.saturating_sub(unproved).min(self.free);
        let for_quick = self.free - new.min(for_new);
        new.saturating_sub(for_new) + quick.saturating_sub(for_quick)
    }

    pub(super) fn taken(&mut self, taker: Taker) {
        self.free -= 1;
        match taker {
            Taker::Quick => {}
            Taker::New => self.new += 1,
            Taker::Slow => self.slow += 1,
        }
    }
}

/// A peer that has buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub taker: Taker,
    pub buffers: usize,
    /// For how long it has kept this side waiting over its present chunk.
    pub taking: Duration,
    /// Bytes that it has taken of that.
    pub taken_bytes: u64,
    /// For how long it has taken nothing at all.
    pub stalled: Duration,
}

impl Holder {
    /// What is lost when it is cut off.
    fn lost_bytes(&self) -> u64 {
        if self.stalled >= limits::UPLOAD_STALL { 0 } else { self.taken_bytes }
    }

    /// In bytes a second.
    fn rate(&self) -> f64 {
        let over = self.taking.max(limits::UPLOAD_RATE_OVER_MIN);
        self.taken_bytes as f64 / over.as_secs_f64()
    }
}

/// Buffers that peers without any wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub all: usize,
    /// Peers that are not slow, and have no place to come to ([`Places::lacking`]).
    pub not_slow: usize,
    /// What the quickest of them took over its last chunk, if one has taken any.
    pub quickest: Option<Duration>,
}

/// Whose connections to close, when these wait: no more than are waited for, but those that have come to a stop in any case.
/// What is lost for the sake of other slow ones is taken off `early_bytes`, which is what may be. What gives way to those
/// that are not slow costs nothing: an origin counts as such but once in a while, so that it bounds itself, and with a price that
/// many slow ones had used up they would all stay.
pub(super) fn to_close(
    holders: &[Holder],
    mut waiting: Waiting,
    early_bytes: &mut u64,
) -> Vec<usize> {
    let is_slow = |at: &usize| holders[*at].taker == Taker::Slow;
    let mut slow_buffers: usize =
        (0..holders.len()).filter(is_slow).map(|at| holders[at].buffers).sum();
    // One that waits counts by what it has shown: else those that take next to nothing have nobody to be compared with, once
    // they have all places of slow ones.
    let shown = waiting.quickest.map_or(0.0, |took| {
        limits::CHUNK_BYTES as f64 / took.max(limits::UPLOAD_RATE_OVER_MIN).as_secs_f64()
    });
    let best = holders.iter().map(Holder::rate).fold(shown, f64::max);
    // One that was slow and has just begun is given its time.
    let had_time = |at: &usize| holders[*at].taking >= limits::UPLOAD_SLOW_AFTER;
    let mut order: Vec<usize> = (0..holders.len()).filter(is_slow).filter(had_time).collect();
    let best_slow = order.iter().map(|at| holders[*at].rate()).fold(0.0, f64::max);
    order.sort_by_key(|at| {
        let rate = holders[*at].rate();
        if rate * limits::UPLOAD_FAR_FACTOR < best_slow {
            // Whoever has just begun seems slower than it is: the slowest goes, not who loses least.
            (0, rate as u64)
        } else {
            (1, holders[*at].lost_bytes())
        }
    });
    let mut close = Vec::new();
    for at in order {
        let holder = &holders[at];
        let has_stopped = holder.taking >= limits::UPLOAD_CHUNK_TIMEOUT
            && holder.rate() < limits::SOURCE_RATE_MIN as f64;
        // Slow ones in places where others are to be tried, or are known to be quick.
        let is_one_too_many = waiting.not_slow > 0 && slow_buffers > limits::UPLOAD_SLOW_CHUNKS_MAX;
        let is_far_slower = waiting.all > 0
            && holder.taking >= limits::UPLOAD_CHUNK_TIMEOUT_CROWDED
            && holder.rate() * limits::UPLOAD_FAR_FACTOR < best;
        let is_cheap = holder.lost_bytes() <= *early_bytes;
        if has_stopped || is_one_too_many || is_cheap && is_far_slower {
            if !has_stopped && !is_one_too_many {
                *early_bytes -= holder.lost_bytes();
            }
            slow_buffers -= holder.buffers;
            waiting.all = waiting.all.saturating_sub(holder.buffers);
            waiting.not_slow = waiting.not_slow.saturating_sub(holder.buffers);
            close.push(at);
        }
    }
    close
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const CHUNK: f64 = limits::CHUNK_BYTES as f64;

    /// A peer that wants chunk after chunk.
    #[derive(Clone, Default)]
    struct Peer {
        origin: usize,
        /// Bytes a second that its own line takes.
        rate: f64,
        /// Comes back at once when it was cut off.
        is_stubborn: bool,
        /// Bytes of a chunk that its system takes at once, whatever it does with them.
        burst: f64,
        last_turn: u64,
        /// When it asks next, if it is not in the line.
        asks_at: Duration,
        waits_since: Option<Duration>,
        /// What is left of each chunk that it has.
        left: VecDeque<f64>,
        taking: Duration,
        took: Option<Duration>,
        known_slow_until: Option<Instant>,
        chunks: u64,
        failures: u32,
    }

    fn ip(origin: usize) -> IpAddr {
        std::net::Ipv4Addr::from(origin as u32).into()
    }

    impl Peer {
        fn of(rate: f64) -> Peer {
            Peer { rate, ..Peer::default() }
        }

        fn times(&self, now: Instant) -> Times {
            let is_known_slow = self.known_slow_until.is_some_and(|until| now < until);
            Times { took: self.took, taking: self.taking, is_known_slow }
        }

        fn taken_bytes(&self) -> f64 {
            self.left.front().map_or(0.0, |left| CHUNK - left)
        }
    }

    /// A server with a line of its own, in virtual time.
    struct Server {
        peers: Vec<Peer>,
        line: Vec<usize>,
        start: Instant,
        now: Duration,
        step: Duration,
        uplink: f64,
        early_bytes: u64,
        known_slow: KnownSlow,
        earned: f64,
        new_turns: u64,
        marks: u64,
        random: SmallRng,
    }

    impl Server {
        fn new(peers: Vec<Peer>, uplink: f64, step: Duration) -> Server {
            let mut server = Server {
                peers: Vec::new(),
                line: Vec::new(),
                start: Instant::now(),
                now: Duration::ZERO,
                step,
                uplink,
                early_bytes: limits::UPLOAD_EARLY_BYTES_MAX,
                known_slow: KnownSlow::default(),
                earned: 0.0,
                new_turns: 0,
                marks: 0,
                random: SmallRng::seed_from_u64(1),
            };
            peers.into_iter().for_each(|peer| server.connect(peer));
            server
        }

        fn connect(&mut self, mut peer: Peer) {
            self.marks += 1;
            (peer.last_turn, peer.asks_at) = (self.marks, self.now);
            peer.known_slow_until = self.known_slow.until(ip(peer.origin));
            self.peers.push(peer);
        }

        fn takers(&self) -> Vec<Taker> {
            let uploading =
                self.peers.iter().filter(|p| p.waits_since.is_some() || !p.left.is_empty());
            let quickest = uploading.filter_map(|peer| peer.took).min();
            let now = self.start + self.now;
            self.peers.iter().map(|peer| peer.times(now).taker(quickest)).collect()
        }

        /// The line is shared equally, and nobody takes more than it can.
        fn send(&mut self) {
            let seconds = self.step.as_secs_f64();
            let rates =
                self.peers.iter().filter(|peer| !peer.left.is_empty()).map(|peer| peer.rate);
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
                let mut bytes = peer.rate.min(share) * seconds;
                if !peer.left.is_empty() {
                    peer.taking += self.step;
                    self.earned += bytes / limits::UPLOAD_EARLY_SHARE as f64;
                }
                while let Some(left) = peer.left.front_mut() {
                    if *left > bytes {
                        *left -= bytes;
                        break;
                    }
                    bytes -= *left;
                    peer.left.pop_front();
                    let took = std::mem::take(&mut peer.taking);
                    peer.took = Some(took);
                    if took < limits::UPLOAD_SLOW_AFTER {
                        self.known_slow.was_quick(ip(peer.origin));
                    }
                    peer.chunks += 1;
                    peer.failures = 0;
                }
            }
            let earned = self.early_bytes + self.earned as u64;
            self.early_bytes = earned.min(limits::UPLOAD_EARLY_BYTES_MAX);
            self.earned = self.earned.fract();
        }

        fn ask(&mut self) {
            for (at, peer) in self.peers.iter_mut().enumerate() {
                if peer.waits_since.is_none() && peer.asks_at <= self.now {
                    peer.waits_since = Some(self.now);
                    self.line.push(at);
                }
            }
        }

        fn make_room(&mut self) {
            let takers = self.takers();
            let ids: Vec<usize> =
                (0..self.peers.len()).filter(|at| !self.peers[*at].left.is_empty()).collect();
            let holder = |at: &usize| {
                let peer = &self.peers[*at];
                Holder {
                    taker: takers[*at],
                    buffers: peer.left.len(),
                    taking: peer.taking,
                    taken_bytes: peer.taken_bytes() as u64,
                    stalled: if peer.rate > 0.0 { Duration::ZERO } else { peer.taking },
                }
            };
            let holders: Vec<Holder> = ids.iter().map(holder).collect();
            let waits = |at: &&usize| self.peers[**at].left.is_empty();
            let all = self.line.iter().filter(waits).count();
            let wait = |kind: Taker| {
                self.line.iter().filter(waits).filter(|at| takers[**at] == kind).count()
            };
            let not_slow = self.places(&takers).lacking(wait(Taker::Quick), wait(Taker::New));
            let waiting = self.line.iter().filter(waits);
            let quickest = waiting.filter_map(|at| self.peers[*at].took).min();
            let waiting = Waiting { all, not_slow, quickest };
            for at in to_close(&holders, waiting, &mut self.early_bytes) {
                let origin = self.peers[ids[at]].origin;
                let until = self.known_slow.was_slow(ip(origin), self.start + self.now);
                let alike = self.peers.iter_mut().filter(|peer| peer.origin == origin);
                alike.for_each(|peer| peer.known_slow_until = Some(until));
                let peer = &mut self.peers[ids[at]];
                self.marks += 1;
                peer.last_turn = self.marks;
                // As the swarm of a download does.
                let away = limits::SOURCE_AWAY_MIN * (1 << peer.failures.min(5));
                peer.failures += 1;
                peer.asks_at = self.now + if peer.is_stubborn { Duration::ZERO } else { away };
                (peer.waits_since, peer.took, peer.taking) = (None, None, Duration::ZERO);
                peer.left.clear();
                self.line.retain(|other| *other != ids[at]);
            }
        }

        fn refuse_waiting(&mut self) {
            let (peers, now, random) = (&mut self.peers, self.now, &mut self.random);
            self.line.retain(|at| {
                let peer = &mut peers[*at];
                let waited = peer.waits_since.is_some_and(|at| now - at >= limits::UPLOAD_WAIT_MAX);
                let is_refused = peer.left.is_empty() && waited;
                if is_refused {
                    peer.waits_since = None;
                    peer.asks_at = now + Duration::from_millis(random.random_range(200..1000));
                }
                !is_refused
            });
        }

        fn places(&self, takers: &[Taker]) -> Places {
            let held = |of: Option<Taker>| -> usize {
                let all = self.peers.iter().zip(takers);
                all.filter(|(_, taker)| of.is_none_or(|of| **taker == of))
                    .map(|(p, _)| p.left.len())
                    .sum()
            };
            Places {
                free: limits::UPLOAD_CHUNKS_MAX - held(None),
                slow: held(Some(Taker::Slow)),
                new: held(Some(Taker::New)),
            }
        }

        fn read_ahead(&mut self) {
            let takers = self.takers();
            let mut places = self.places(&takers);
            for second_round in [false, true] {
                while places.free > 0 {
                    let may = |at: &usize| {
                        places.may_have_one(self.peers[*at].left.len(), takers[*at], second_round)
                    };
                    let ids: Vec<usize> = self.line.iter().copied().filter(may).collect();
                    let claim = |at: &usize| {
                        let origin = self.peers[*at].origin;
                        let alike = self.peers.iter().filter(|peer| peer.origin == origin);
                        Claim {
                            origin_holds: alike.map(|peer| peer.left.len()).sum(),
                            taker: takers[*at],
                            last_turn: self.peers[*at].last_turn,
                        }
                    };
                    let claims: Vec<Claim> = ids.iter().map(claim).collect();
                    let Some(next) = places.next(&claims, self.new_turns) else { break };
                    let at = ids[next];
                    places.taken(takers[at]);
                    self.new_turns += u64::from(takers[at] == Taker::New);
                    self.line.retain(|other| *other != at);
                    self.line.push(at);
                    self.marks += 1;
                    self.peers[at].last_turn = self.marks;
                    let left = CHUNK - self.peers[at].burst;
                    self.peers[at].left.push_back(left);
                    self.peers[at].waits_since = Some(self.now);
                }
            }
        }

        fn step(&mut self) {
            self.now += self.step;
            self.send();
            self.ask();
            if self.now.as_millis().is_multiple_of(limits::SHARE_TICK.as_millis()) {
                self.make_room();
                self.refuse_waiting();
            }
            self.read_ahead();
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

    /// How long a peer that comes when the others have long been there takes over a hundred chunks.
    fn time_of_one_more(others: usize, others_take: Duration) -> Duration {
        let rate = CHUNK / others_take.as_secs_f64();
        let other = |at: usize| Peer { origin: 1 + at, ..Peer::of(rate) };
        let others = (0..others).map(other).collect();
        let mut server = Server::new(others, f64::INFINITY, Duration::from_millis(2));
        server.run(secs(8));
        server.connect(Peer::of(110.0 * CHUNK));
        while server.peers.last().is_some_and(|peer| peer.chunks < 100) {
            server.step();
            assert!(server.now < secs(60), "beside peers that take {others_take:?}");
        }
        server.now - secs(8)
    }

    /// 24 takers of 300 KiB/s had all places, and a download of a second took 26.
    #[test]
    fn slow_takers_never_make_a_quick_one_slower() {
        let alone = time_of_one_more(0, secs(1));
        for (others, take_ms) in [(24, 3400), (24, 600), (24, 60_000), (60, 45), (60, 100)] {
            let beside = time_of_one_more(others, Duration::from_millis(take_ms));
            println!("{others} of {take_ms} ms: {alone:?} alone, then {beside:?}");
            let most = alone * 11 / 10 + 3 * limits::SHARE_TICK;
            assert!(beside <= most, "{others} of {take_ms} ms: {alone:?}, then {beside:?}");
        }
        // Beyond the places that there are: until it has its first turn it is one of many that nobody knows.
        for (others, take_ms) in [(100, 3400), (200, 3400), (200, 60_000)] {
            let beside = time_of_one_more(others, Duration::from_millis(take_ms));
            println!("{others} of {take_ms} ms: {alone:?} alone, then {beside:?}");
            assert!(beside <= alone + secs(4), "{others} of {take_ms} ms: {beside:?}");
        }
    }

    /// Two hundred addresses that take 5 KB a second, and come again when they are cut off, had every place for as long as
    /// they liked.
    #[test]
    fn slow_takers_that_come_again_never_keep_a_quick_one_out() {
        for (others, at_secs) in
            [(48, 1), (200, 0), (200, 1), (200, 7), (200, 29), (200, 35), (200, 100)]
        {
            let other = |at: usize| Peer {
                origin: 1 + at,
                is_stubborn: true,
                burst: 128.0 * 1024.0,
                ..Peer::of(5000.0)
            };
            let others_there = (0..others).map(other).collect();
            let mut server = Server::new(others_there, f64::INFINITY, Duration::from_millis(5));
            server.run(secs(at_secs));
            server.connect(Peer::of(110.0 * CHUNK));
            let chunks = |server: &Server| server.peers.last().map_or(0, |peer| peer.chunks);
            while chunks(&server) == 0 {
                server.step();
                assert!(
                    server.now < secs(at_secs + 2),
                    "no try among {others} from {at_secs} s on"
                );
            }
            let tried = server.now - secs(at_secs);
            while chunks(&server) < 100 {
                server.step();
                assert!(server.now < secs(at_secs + 5), "beside {others} from {at_secs} s on");
            }
            let all = server.now - secs(at_secs);
            println!(
                "beside {others} from {at_secs} s on: a try after {tried:?}, all after {all:?}"
            );
            assert!(
                tried <= secs(1) && all <= secs(3),
                "{others}, {at_secs} s: {tried:?}, {all:?}"
            );
        }
    }

    /// Whoever is remembered to be slow is so for a while only, and no number of addresses takes more memory than there is.
    #[test]
    fn an_address_is_known_to_be_slow_for_a_while() {
        let start = Instant::now();
        let mut known = KnownSlow::default();
        for origin in 0..limits::UPLOAD_KNOWN_SLOW_MAX + 10 {
            known.was_slow(ip(origin), start + Duration::from_millis(origin as u64));
        }
        assert_eq!(known.until.len(), limits::UPLOAD_KNOWN_SLOW_MAX);
        assert_eq!((known.until(ip(9)), known.until(ip(10)).is_some()), (None, true));
        assert!(known.was_quick(ip(10)) && !known.was_quick(ip(10)));
        let until = known.until(ip(11)).unwrap();
        let of = |is_known_slow| Times { is_known_slow, ..Times::default() }.taker(None);
        assert_eq!([of(true), of(false)], [Taker::Slow, Taker::New]);
        known.was_slow(ip(0), until);
        known.was_slow(ip(1), until + limits::UPLOAD_KNOWN_SLOW_FOR);
        assert!(known.until.len() <= limits::UPLOAD_KNOWN_SLOW_MAX);
    }

    /// On a line of ten megabits a second everybody is slow. Whoever came cut off who had taken most: of the 720 chunks that
    /// the line carries in this time, 255 arrived at 30 takers, 55 at 60 and none at 100.
    #[test]
    fn a_crowd_on_a_slow_line_loses_next_to_nothing() {
        let uplink = 1.2 * CHUNK;
        for takers in [20, 30, 60, 100] {
            let peers = (0..takers).map(|origin| Peer { origin, ..Peer::of(f64::MAX) }).collect();
            let mut server = Server::new(peers, uplink, Duration::from_millis(50));
            server.run(secs(600));
            let chunks: Vec<u64> = server.peers.iter().map(|peer| peer.chunks).collect();
            let all: u64 = chunks.iter().sum();
            let without = chunks.iter().filter(|chunks| **chunks == 0).count();
            println!("{takers} takers: {all} of 720 chunks, {without} have none");
            assert!(all >= 650, "{takers} takers: {all} of 720 chunks");
            assert!(without <= takers / 10, "{takers} takers: {chunks:?}");
        }
    }

    /// Connections that take nothing, or very little, and come back as soon as they are cut off.
    #[test]
    fn whoever_takes_nothing_costs_the_others_next_to_nothing() {
        for (honest, rate) in [(10, 5_000.0), (30, 0.0)] {
            let dribbler = Peer { is_stubborn: true, origin: 1, ..Peer::of(rate) };
            let peers = [vec![Peer::of(f64::MAX); honest], vec![dribbler; 60]].concat();
            let mut server = Server::new(peers, 1.2 * CHUNK, Duration::from_millis(50));
            server.run(secs(300));
            let chunks: Vec<u64> = server.peers[..honest].iter().map(|peer| peer.chunks).collect();
            let all: u64 = chunks.iter().sum();
            println!("beside sixty at {rate} bytes/s: {all} of 360 chunks");
            assert!(all >= 280 && chunks.iter().all(|chunks| *chunks > 0), "{chunks:?}");
        }
    }

    /// Two hundred connections of one origin that take whatever they get, and one of another.
    #[test]
    fn an_origin_has_as_much_as_another_however_many_its_connections() {
        let peers = [vec![Peer::of(f64::MAX); 200], vec![Peer { origin: 1, ..Peer::of(f64::MAX) }]];
        let mut server = Server::new(peers.concat(), 50.0 * CHUNK, Duration::from_millis(10));
        server.run(secs(20));
        let chunks = server.peers.last().map_or(0, |peer| peer.chunks);
        println!("{chunks} of a thousand chunks");
        // One place of 32, all the time. By turns of connections it would have had five.
        assert!(chunks >= 25, "{chunks} of a thousand chunks");
    }

    #[test]
    fn who_keeps_this_side_waiting_is_slow() {
        let times = |took: u64, taking: u64| Times {
            took: Some(secs(took)),
            taking: secs(taking),
            is_known_slow: true,
        };
        assert_eq!(times(0, 0).taker(None), Taker::Quick);
        assert_eq!(times(9, 0).taker(None), Taker::Slow);
        assert_eq!(times(0, 9).taker(None), Taker::Slow);
        assert_eq!(Times::default().taker(Some(secs(2))), Taker::New);
        let ms = Duration::from_millis;
        let beside = |took, quickest| {
            Times { took: Some(ms(took)), ..Times::default() }.taker(Some(ms(quickest)))
        };
        assert_eq!([beside(60, 20), beside(100, 20)], [Taker::Quick, Taker::Slow]);
    }
}
