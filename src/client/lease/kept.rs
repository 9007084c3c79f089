//! When leases are to be kept alive, and until when each is valid: a state machine without a clock.
//!
//! A lease is asked for again when a third of its TTL has passed, so that two attempts may fail.
//! Those that are due soon go with those that are due, in one request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::LeaseId;

/// A request is given up after this time at the latest: leases that are added meanwhile may be as
/// short, and nobody is told that one is lost while an answer is waited for.
const REQUEST_MAX: Duration = Duration::from_secs(1);
/// After a failure a lease is asked for again after this part of its TTL, within …
const RETRY_PART: u32 = 20;
/// … and within these bounds.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Kept<W> {
    ttl: Duration,
    /// Until when it has been kept alive for certain.
    valid_until: Instant,
    /// When to ask for it again.
    due: Instant,
    /// Is told when it is lost.
    watch: W,
}

/// The leases that one client keeps alive.
#[derive(Debug)]
pub(super) struct KeptLeases<W> {
    kept: BTreeMap<LeaseId, Kept<W>>,
}

impl<W> Default for KeptLeases<W> {
    fn default() -> KeptLeases<W> {
        KeptLeases { kept: BTreeMap::new() }
    }
}

impl<W> KeptLeases<W> {
    /// Adds a lease that was asked for at this time, and has been granted since.
    pub fn insert(&mut self, id: LeaseId, ttl: Duration, asked: Instant, watch: W) {
        let kept = Kept { ttl, valid_until: asked + ttl, due: asked + ttl / 3, watch };
        self.kept.insert(id, kept);
    }

    pub fn remove(&mut self, id: LeaseId) -> Option<W> {
        self.kept.remove(&id).map(|kept| kept.watch)
    }

    /// Whether the lease is kept, and has not ended for anybody yet.
    pub fn is_valid(&self, id: LeaseId, now: Instant) -> bool {
        self.kept.get(&id).is_some_and(|kept| now < kept.valid_until)
    }

    /// When there is something to do next; `None` without leases.
    pub fn next_due(&self) -> Option<Instant> {
        self.kept.values().map(|kept| kept.due.min(kept.valid_until)).min()
    }

    /// The leases to ask for now, at most so many, and when an answer would be too late for others.
    /// `None` if none is due.
    pub fn due(&self, now: Instant, most: usize) -> Option<(Vec<LeaseId>, Instant)> {
        if !self.kept.values().any(|kept| kept.due <= now) {
            return None;
        }
        let soon = self.kept.iter().filter(|(_, kept)| kept.due <= now + kept.ttl / 6);
        let mut soon: Vec<_> = soon.map(|(id, kept)| (kept.due, *id)).collect();
        soon.sort_unstable();
        soon.truncate(most);
        // While an answer is waited for nobody is told that a lease is lost.
        let shortest = self.kept.values().map(|kept| kept.ttl).min().unwrap_or_default();
        let first_lost = self.kept.values().map(|kept| kept.valid_until).min();
        let soonest = now + (shortest / 3).min(REQUEST_MAX);
        let until = first_lost.map_or(now, |lost| lost.min(soonest));
        Some((soon.into_iter().map(|(_, id)| id).collect(), until))
    }

    /// Notes the answer to a request that was sent no earlier than `asked`. Returns whom to tell
    /// that the lease is gone.
    pub fn answered(&mut self, id: LeaseId, asked: Instant, is_there: bool) -> Option<W> {
        if !is_there {
            return self.remove(id);
        }
        let kept = self.kept.get_mut(&id)?;
        (kept.valid_until, kept.due) = (asked + kept.ttl, asked + kept.ttl / 3);
        None
    }

    /// Notes that these were asked for in vain.
    pub fn failed(&mut self, ids: &[LeaseId], now: Instant) {
        for id in ids {
            if let Some(kept) = self.kept.get_mut(id) {
                kept.due = now + (kept.ttl / RETRY_PART).clamp(RETRY_MIN, RETRY_MAX);
            }
        }
    }

    /// Takes those whose time has passed without an answer: others may take them for ended.
    pub fn take_lost(&mut self, now: Instant) -> Vec<W> {
        let lost = self.kept.extract_if(.., |_, kept| kept.valid_until <= now);
        lost.map(|(_, kept)| kept.watch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(9);

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_lease_is_asked_for_after_a_third_of_its_time_and_valid_from_when_it_was() {
        let start = Instant::now();
        let mut leases = KeptLeases::default();
        assert_eq!(leases.next_due(), None);
        leases.insert(LeaseId(1), TTL, start, "one");
        assert_eq!(leases.next_due(), Some(start + second(3)));
        assert_eq!(leases.due(start + second(2), 10), None);
        let asked = start + second(3);
        assert_eq!(leases.due(asked, 10), Some((vec![LeaseId(1)], asked + REQUEST_MAX)));
        assert_eq!(leases.answered(LeaseId(1), asked, true), None);
        assert!(leases.is_valid(LeaseId(1), start + second(11)));
        assert!(!leases.is_valid(LeaseId(1), start + second(12)), "not from when it was answered");
        assert_eq!(leases.take_lost(start + second(11)), Vec::<&str>::new());
        assert_eq!(leases.take_lost(start + second(12)), ["one"]);
        assert!(!leases.is_valid(LeaseId(1), start));
    }

    #[test]
    fn those_that_are_due_soon_go_along_and_failures_are_tried_again() {
        let start = Instant::now();
        let mut leases = KeptLeases::default();
        for (id, after) in [(1, 0), (2, 1), (3, 2)] {
            leases.insert(LeaseId(id), TTL, start + second(after), id);
        }
        let now = start + second(3);
        let (due, until) = leases.due(now, 10).unwrap();
        assert_eq!((due, until), (vec![LeaseId(1), LeaseId(2)], now + REQUEST_MAX));
        assert_eq!(leases.due(now, 1).unwrap().0, [LeaseId(1)]);
        let failed = now + second(3);
        leases.failed(&[LeaseId(1), LeaseId(2)], failed);
        assert_eq!(leases.due(failed, 10).unwrap().0, [LeaseId(3), LeaseId(1), LeaseId(2)]);
        assert_eq!(leases.answered(LeaseId(3), failed, false), Some(3), "it is gone");
        assert_eq!(leases.next_due(), Some(failed + TTL / RETRY_PART));
        assert_eq!(leases.take_lost(start + second(9)), [1]);
        assert_eq!(leases.remove(LeaseId(2)), Some(2));
        assert_eq!(leases.answered(LeaseId(2), failed, true), None, "it was given up meanwhile");
        assert_eq!(leases.next_due(), None);
    }
}
