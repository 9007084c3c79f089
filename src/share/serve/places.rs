//! Who is read a chunk for: the rule by which peers share a server's buffers. Pure.
//!
//! Peers are quick, slow, or new, by how long they take over a chunk. Chunks go round among those who ask, and of the buffers
//! some are only for those who are not slow, and a few only for who is quick: so no number of peers that take nothing
//! keeps a quick one waiting, or hides one that has just come. A slow one has one buffer at a time.

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

/// How long a peer takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// Over the last chunk.
    pub took: Option<Duration>,
    /// Over the present one so far.
    pub taking: Option<Duration>,
}

impl Times {
    /// What a peer is beside one that takes `quickest` over a chunk. When this side keeps to a rate, how long
    /// a chunk takes says nothing but in comparison.
    pub(super) fn taker(self, quickest: Option<Duration>, is_paced: bool) -> Taker {
        let time = self.took.max(self.taking).unwrap_or_default();
        let beside_others = quickest
            .is_some_and(|quickest| time >= limits::UPLOAD_SLOW_AFTER_MIN && time >= 4 * quickest);
        if beside_others || !is_paced && time >= limits::UPLOAD_SLOW_AFTER {
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

    pub(super) fn taken(&mut self, taker: Taker) {
        self.free -= 1;
        match taker {
            Taker::Quick => {}
            Taker::New => self.new += 1,
            Taker::Slow => self.slow += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const STEP: Duration = Duration::from_millis(1);

    /// A peer that wants chunk after chunk, and takes each in this time.
    struct Peer {
        takes: Duration,
        /// When those it has are taken.
        done: VecDeque<Duration>,
        since: Duration,
        took: Option<Duration>,
        chunks: usize,
    }

    struct Server {
        peers: Vec<Peer>,
        line: VecDeque<usize>,
        now: Duration,
        /// How long the quickest takes.
        quickest: Option<Duration>,
    }

    impl Server {
        fn taker(&self, at: usize) -> Taker {
            let peer = &self.peers[at];
            let taking = (!peer.done.is_empty()).then(|| self.now - peer.since);
            Times { took: peer.took, taking }.taker(self.quickest, false)
        }

        fn held(&self, of: Taker) -> usize {
            let peers = (0..self.peers.len()).filter(|at| self.taker(*at) == of);
            peers.map(|at| self.peers[at].done.len()).sum()
        }

        fn step(&mut self) {
            self.now += STEP;
            for peer in &mut self.peers {
                while peer.done.front().is_some_and(|at| *at <= self.now) {
                    peer.done.pop_front();
                    peer.took = Some(self.now - peer.since);
                    peer.since = self.now;
                    peer.chunks += 1;
                }
            }
            self.quickest = self.line.iter().filter_map(|at| self.peers[*at].took).min();
            if self.now.as_millis().is_multiple_of(limits::SHARE_TICK.as_millis()) {
                self.drop_slow();
            }
            let (slow, new) = (self.held(Taker::Slow), self.held(Taker::New));
            let all: usize = self.peers.iter().map(|peer| peer.done.len()).sum();
            let mut places = Places { free: limits::UPLOAD_CHUNKS_MAX - all, slow, new };
            for second_round in [false, true] {
                let mut passed = 0;
                while passed < self.line.len()
                    && let Some(at) = self.line.pop_front()
                {
                    self.line.push_back(at);
                    let taker = self.taker(at);
                    let peer = &mut self.peers[at];
                    if !places.may_have_one(peer.done.len(), taker, second_round) {
                        passed += 1;
                        continue;
                    }
                    passed = 0;
                    places.taken(taker);
                    if peer.done.is_empty() {
                        peer.since = self.now;
                    }
                    let begins = peer.done.back().copied().unwrap_or(self.now);
                    peer.done.push_back(begins + peer.takes);
                }
            }
        }

        /// As the service does: whoever has been found slow makes room for others.
        fn drop_slow(&mut self) {
            let waits =
                |at: &&usize| self.peers[**at].done.is_empty() && self.taker(**at) != Taker::Slow;
            let waiting = self.line.iter().filter(waits).count();
            let excess = self.held(Taker::Slow).saturating_sub(limits::UPLOAD_SLOW_CHUNKS_MAX);
            let is_slow =
                |at: &usize| !self.peers[*at].done.is_empty() && self.taker(*at) == Taker::Slow;
            let mut slow: Vec<usize> = (0..self.peers.len()).filter(is_slow).collect();
            slow.sort_by_key(|at| self.peers[*at].since);
            for at in slow.into_iter().take(excess.min(waiting)) {
                self.peers[at].done.clear();
                self.line.retain(|other| *other != at);
            }
        }
    }

    /// How long a peer that comes when the others have long been there takes over a hundred chunks.
    fn time_of_one_more(others: usize, others_take: Duration) -> Duration {
        let peer = |takes| Peer {
            takes,
            done: VecDeque::new(),
            since: Duration::ZERO,
            took: None,
            chunks: 0,
        };
        let mut peers: Vec<Peer> = (0..others).map(|_| peer(others_take)).collect();
        peers.push(peer(Duration::from_millis(10)));
        let line = (0..others).collect();
        let mut server = Server { peers, line, now: Duration::ZERO, quickest: None };
        let came = Duration::from_secs(8);
        while server.peers[others].chunks < 100 {
            if server.now == came {
                // Whoever is new comes first.
                server.line.push_front(others);
            }
            server.step();
            assert!(server.now < Duration::from_secs(60), "{others} of {others_take:?}");
        }
        server.now - came
    }

    /// 24 takers of 300 KiB/s had all places, and a download of a second took 26.
    #[test]
    fn slow_takers_never_make_a_quick_one_slower() {
        let alone = time_of_one_more(0, Duration::ZERO);
        for (others, take_ms) in
            [(24, 3400), (100, 3400), (200, 3400), (24, 600), (200, 60_000), (60, 45), (60, 100)]
        {
            let beside = time_of_one_more(others, Duration::from_millis(take_ms));
            // Whoever has just turned out to be slow makes room at the next tick.
            let most = alone * 11 / 10 + 3 * limits::SHARE_TICK;
            assert!(beside <= most, "{others} of {take_ms} ms: {alone:?}, then {beside:?}");
        }
    }

    #[test]
    fn under_a_rate_only_comparison_makes_a_peer_slow() {
        let seconds = Duration::from_secs;
        let times = Times { took: Some(seconds(9)), taking: None };
        assert_eq!(times.taker(None, true), Taker::Quick);
        assert_eq!(times.taker(None, false), Taker::Slow);
        assert_eq!(times.taker(Some(seconds(9)), true), Taker::Quick);
        assert_eq!(times.taker(Some(seconds(2)), true), Taker::Slow);
        assert_eq!(Times::default().taker(Some(seconds(2)), true), Taker::New);
    }
}
