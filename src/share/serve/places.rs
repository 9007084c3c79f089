//! Who is read a chunk for, and who gives way: the rules by which peers share a server's buffers. Pure.
//!
//! - Peers are quick, slow, or new, by how long they keep this side waiting over a chunk. Of the buffers some are only for
//!   those who are not slow, and a few only for who is quick: so no number of peers that take nothing keeps a quick
//!   one waiting, or hides one that has just come. A slow one has one buffer at a time.
//! - **Places change hands between chunks.** The next one is for the origin (an IP) that holds the fewest, so that a
//!   hundred connections of one do not get a hundred turns; among its peers for new ones, as far as there are
//!   places to try them, and then for those that have waited longest.
//! - **A connection is closed early only at a small price.** When all peers are slow, because this side's line is, whoever is cut
//!   off within a chunk has taken bytes in vain, and will ask for them again. So only a small part of what is
//!   served may be lost that way: those go first that have taken least, which are those who take nothing.

use std::time::Duration;

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
        if self.took.is_some() { Taker::Quick } else { Taker::New }
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
    /// Peers among them that are not known to be slow.
    pub not_slow: usize,
}

/// Whose connections to close, when these wait: no more than are waited for, but those that have come to a stop in any case.
/// What they have taken in vain is taken off `early_bytes`, which is what may be lost.
pub(super) fn to_close(
    holders: &[Holder],
    mut waiting: Waiting,
    early_bytes: &mut u64,
) -> Vec<usize> {
    let is_slow = |at: &usize| holders[*at].taker == Taker::Slow;
    let mut slow_buffers: usize =
        (0..holders.len()).filter(is_slow).map(|at| holders[at].buffers).sum();
    let best = holders.iter().map(Holder::rate).fold(0.0, f64::max);
    // One that was slow and has just begun is given its time.
    let had_time = |at: &usize| holders[*at].taking >= limits::UPLOAD_SLOW_AFTER;
    let mut order: Vec<usize> = (0..holders.len()).filter(is_slow).filter(had_time).collect();
    order.sort_by_key(|at| holders[*at].lost_bytes());
    let mut close = Vec::new();
    for at in order {
        let holder = &holders[at];
        let has_stopped = holder.taking >= limits::UPLOAD_CHUNK_TIMEOUT
            && holder.rate() < limits::SOURCE_RATE_MIN as f64;
        // New ones that have turned out to be slow, in places where others are to be tried.
        let is_one_too_many = waiting.not_slow > 0 && slow_buffers > limits::UPLOAD_SLOW_CHUNKS_MAX;
        let is_far_slower = waiting.all > 0
            && holder.taking >= limits::UPLOAD_CHUNK_TIMEOUT_CROWDED
            && holder.rate() * limits::UPLOAD_FAR_FACTOR < best;
        let is_cheap = holder.lost_bytes() <= *early_bytes;
        if has_stopped || is_cheap && (is_one_too_many || is_far_slower) {
            if !has_stopped {
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
        last_turn: u64,
        /// When it asks next, if it is not in the line.
        asks_at: Duration,
        waits_since: Option<Duration>,
        /// What is left of each chunk that it has.
        left: VecDeque<f64>,
        taking: Duration,
        took: Option<Duration>,
        chunks: u64,
        failures: u32,
    }

    impl Peer {
        fn of(rate: f64) -> Peer {
            Peer { rate, ..Peer::default() }
        }

        fn taken_bytes(&self) -> f64 {
            self.left.front().map_or(0.0, |left| CHUNK - left)
        }
    }

    /// A server with a line of its own, in virtual time.
    struct Server {
        peers: Vec<Peer>,
        line: Vec<usize>,
        now: Duration,
        step: Duration,
        uplink: f64,
        early_bytes: u64,
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
                now: Duration::ZERO,
                step,
                uplink,
                early_bytes: limits::UPLOAD_EARLY_BYTES_MAX,
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
            self.peers.push(peer);
        }

        fn takers(&self) -> Vec<Taker> {
            let uploading =
                self.peers.iter().filter(|p| p.waits_since.is_some() || !p.left.is_empty());
            let quickest = uploading.filter_map(|peer| peer.took).min();
            let times = |peer: &Peer| Times { took: peer.took, taking: peer.taking };
            self.peers.iter().map(|peer| times(peer).taker(quickest)).collect()
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
                    peer.took = Some(std::mem::take(&mut peer.taking));
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
            let is_not_slow = |at: &&usize| takers[**at] != Taker::Slow;
            let not_slow = self.line.iter().filter(waits).filter(is_not_slow).count();
            for at in to_close(&holders, Waiting { all, not_slow }, &mut self.early_bytes) {
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

        fn read_ahead(&mut self) {
            let takers = self.takers();
            let held = |of: Option<Taker>| -> usize {
                let all = self.peers.iter().zip(&takers);
                all.filter(|(_, taker)| of.is_none_or(|of| **taker == of))
                    .map(|(p, _)| p.left.len())
                    .sum()
            };
            let mut places = Places {
                free: limits::UPLOAD_CHUNKS_MAX - held(None),
                slow: held(Some(Taker::Slow)),
                new: held(Some(Taker::New)),
            };
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
                    self.peers[at].left.push_back(CHUNK);
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
        let others = vec![Peer::of(rate); others];
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

    /// On a line of ten megabits a second everybody is slow. Whoever came cut off who had taken most: of the 720 chunks that
    /// the line carries in this time, 255 arrived at 30 takers, 55 at 60 and none at 100.
    #[test]
    fn a_crowd_on_a_slow_line_loses_next_to_nothing() {
        let uplink = 1.2 * CHUNK;
        for takers in [20, 30, 60, 100] {
            let peers = vec![Peer::of(f64::MAX); takers];
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
        let times = |took: u64, taking: u64| Times { took: Some(secs(took)), taking: secs(taking) };
        assert_eq!(times(0, 0).taker(None), Taker::Quick);
        assert_eq!(times(9, 0).taker(None), Taker::Slow);
        assert_eq!(times(0, 9).taker(None), Taker::Slow);
        assert_eq!(Times::default().taker(Some(secs(2))), Taker::New);
        let ms = Duration::from_millis;
        let beside = |took, quickest| {
            Times { took: Some(ms(took)), taking: ms(0) }.taker(Some(ms(quickest)))
        };
        assert_eq!([beside(60, 20), beside(100, 20)], [Taker::Quick, Taker::Slow]);
    }
}
