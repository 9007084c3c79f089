//! Which servers are worth asking first, as one client sees it.
//!
//! A server that did not answer, or said that it cannot serve, is *unhealthy*: requests go to it
//! only when no healthy server is left to ask. Meanwhile it is *probed*: one question in the
//! background each back-off, which grows as long as nothing comes of it, so that nobody's request
//! waits to find out whether it is back. Any useful answer makes it healthy again. One that fails
//! again soon afterwards, as one does that answers probes and refuses reads, has its back-off go on
//! where it was.
//!
//! A pure state machine: the time and the randomness come from outside.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::copies::Copies;
use crate::limits::{CLIENT_PROBE_BACKOFF_MAX, CLIENT_PROBE_BACKOFF_MIN};

/// The health of all servers of a client, by their place in its list.
pub(super) struct Health {
    servers: Vec<State>,
    /// For each server, how many times in a row another one that was asked later answered first.
    overtaken: Vec<u32>,
    /// Which writes may be sent to a second server, and what came of those that were.
    pub(super) copies: Copies,
}

/// A server that is overtaken so often without one answer of its own counts as unhealthy: a busy
/// one is late now and then, and one that answers no reads is always.
const CLIENT_OVERTAKEN_MAX: u32 = 3;

#[derive(Clone, Copy)]
enum State {
    /// `relapse` is what the back-off goes on from if the server fails before the time given.
    Healthy {
        relapse: Option<(Duration, Duration)>,
    },
    Unhealthy {
        probe_at: Duration,
        backoff: Duration,
    },
}

impl Health {
    pub(super) fn new(servers: usize) -> Health {
        Health {
            servers: vec![State::Healthy { relapse: None }; servers],
            overtaken: vec![0; servers],
            copies: Copies::new(servers),
        }
    }

    pub(super) fn is_healthy(&self, server: usize) -> bool {
        matches!(self.servers[server], State::Healthy { .. })
    }

    /// The server gave an answer that is of use.
    pub(super) fn answered(&mut self, now: Duration, server: usize) {
        self.overtaken[server] = 0;
        self.recovered(now, server);
    }

    /// The server answers probes, which says nothing about how it answers requests.
    pub(super) fn recovered(&mut self, now: Duration, server: usize) {
        if let State::Unhealthy { backoff, .. } = self.servers[server] {
            let relapse = Some((now + 2 * backoff, backoff));
            self.servers[server] = State::Healthy { relapse };
        }
    }

    /// The server could not be reached, was silent, or cannot serve. What requests find out about a
    /// server that is known to be unhealthy changes nothing: only probes lengthen its back-off.
    pub(super) fn failed(&mut self, now: Duration, server: usize, random: &mut StdRng) {
        if let State::Healthy { relapse } = self.servers[server] {
            let backoff = match relapse {
                Some((until, backoff)) if now < until => longer(backoff),
                _ => CLIENT_PROBE_BACKOFF_MIN,
            };
            let probe_at = now + jittered(backoff, random);
            self.servers[server] = State::Unhealthy { probe_at, backoff };
        }
    }

    /// Another server has answered a write that this one has owed for long.
    pub(super) fn overtaken_in_write(&mut self, now: Duration, server: usize, random: &mut StdRng) {
        self.copies.overtaken(server);
        self.failed(now, server, random);
    }

    /// The server has answered a write. `is_late`: although it was slow with that.
    pub(super) fn answered_write(&mut self, now: Duration, server: usize, is_late: bool) {
        if self.copies.answered(now, server, is_late) {
            self.recovered(now, server);
        }
    }

    /// Another server that was asked later has answered a read that this one owes.
    pub(super) fn overtaken(&mut self, now: Duration, server: usize, random: &mut StdRng) {
        self.overtaken[server] += 1;
        if self.overtaken[server] >= CLIENT_OVERTAKEN_MAX {
            self.failed(now, server, random);
        }
    }

    /// A server to be probed now, if one is due. While all servers are unhealthy no probe is due,
    /// as requests ask them all then.
    pub(super) fn take_probe(&mut self, now: Duration, random: &mut StdRng) -> Option<usize> {
        if !(0..self.servers.len()).any(|server| self.is_healthy(server)) {
            return None;
        }
        for (server, state) in self.servers.iter_mut().enumerate() {
            if let State::Unhealthy { probe_at, backoff } = state
                && *probe_at <= now
            {
                *backoff = longer(*backoff);
                *probe_at = now + jittered(*backoff, random);
                return Some(server);
            }
        }
        None
    }

    /// When the next server is to be probed, if one is.
    pub(super) fn next_probe(&self) -> Option<Duration> {
        if !(0..self.servers.len()).any(|server| self.is_healthy(server)) {
            return None;
        }
        let probes = self.servers.iter().filter_map(|state| match state {
            State::Healthy { .. } => None,
            State::Unhealthy { probe_at, .. } => Some(*probe_at),
        });
        probes.min()
    }
}

fn longer(backoff: Duration) -> Duration {
    (backoff * 2).min(CLIENT_PROBE_BACKOFF_MAX)
}

/// Between half of it and all of it, so that clients that failed together do not return together.
pub(super) fn jittered(backoff: Duration, random: &mut StdRng) -> Duration {
    backoff.mul_f64(random.random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn an_unhealthy_server_is_probed_ever_more_seldom_until_it_answers() {
        let mut random = StdRng::seed_from_u64(1);
        let mut health = Health::new(3);
        health.failed(Duration::ZERO, 1, &mut random);
        assert!(!health.is_healthy(1) && health.is_healthy(0) && health.is_healthy(2));
        assert_eq!(health.take_probe(Duration::ZERO, &mut random), None);

        let mut probes = Vec::new();
        for ms in 0..20_000 {
            let now = Duration::from_millis(ms);
            // However many requests find it down, it is probed no more often.
            health.failed(now, 1, &mut random);
            if let Some(probed) = health.take_probe(now, &mut random) {
                assert_eq!(probed, 1);
                probes.push(now);
            }
        }
        assert!(probes[0] <= CLIENT_PROBE_BACKOFF_MIN);
        let pauses: Vec<_> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let slack = Duration::from_millis(1);
        assert!(pauses.iter().all(|pause| *pause <= CLIENT_PROBE_BACKOFF_MAX + slack));
        let last = pauses.last().unwrap();
        assert!(*last >= CLIENT_PROBE_BACKOFF_MAX / 2, "{pauses:?}");

        health.answered(Duration::from_secs(20), 1);
        assert!(health.is_healthy(1));
        assert_eq!(health.take_probe(Duration::from_secs(99), &mut random), None);
    }

    #[test]
    fn a_server_that_answers_probes_and_refuses_requests_is_left_alone_ever_longer() {
        let mut random = StdRng::seed_from_u64(1);
        let mut health = Health::new(2);
        let mut refused = Vec::new();
        for ms in 0..60_000 {
            let now = Duration::from_millis(ms);
            if health.is_healthy(1) {
                health.failed(now, 1, &mut random);
                refused.push(ms);
            }
            if health.take_probe(now, &mut random) == Some(1) {
                health.answered(now, 1);
            }
        }
        let most = 60_000 / (CLIENT_PROBE_BACKOFF_MAX.as_millis() as usize / 2) + 10;
        assert!(refused.len() <= most, "{refused:?}");

        // It was well for longer than it had been away: what fails next begins from the start.
        let later = Duration::from_secs(600);
        health.answered(Duration::from_secs(60), 1);
        health.failed(later, 1, &mut random);
        assert_eq!(health.take_probe(later + CLIENT_PROBE_BACKOFF_MIN, &mut random), Some(1));
    }

    #[test]
    fn nobody_is_probed_while_all_are_unhealthy() {
        let mut random = StdRng::seed_from_u64(1);
        let mut health = Health::new(1);
        health.failed(Duration::ZERO, 0, &mut random);
        assert_eq!(health.take_probe(Duration::from_secs(9), &mut random), None);
    }
}
