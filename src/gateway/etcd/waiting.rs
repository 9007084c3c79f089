//! Places of calls that wait for others: locks, campaigns, and elections that are observed.
//!
//! A place is kept until nothing of its call is left, which for a lock or a campaign is later than
//! its client is told or gone: what it has written is taken back behind it. So whoever begins such
//! calls and gives them up at once does not make the gateway do more than whoever waits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::limits::{HELD_FEW, is_within_share};

/// Locks and campaigns under way and elections that are observed, at once: each watches keys. One
/// more is refused. An address that comes first may have nearly half of them, which is as many as a
/// site has processes that take turns.
const ETCD_WAITING_MAX: usize = 1024;
/// What such a call has brought is held for as long as its place is, and so much of it makes one
/// place: a campaign with a longer value takes several.
const BYTES_PER_PLACE: usize = 16 * 1024;

/// The places that are taken. Clones share everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting(Arc<WaitingState>);

#[derive(Debug, Default)]
struct WaitingState {
    taken: Mutex<Taken>,
    /// Told when none is taken any more.
    is_left: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of each origin that has some.
    by_origin: HashMap<IpAddr, usize>,
}

/// Places of one call, until they are dropped.
#[derive(Debug)]
pub(super) struct WaitingPlace {
    waiting: Waiting,
    origin: IpAddr,
    places: usize,
}

impl Waiting {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Each change leaves it whole.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places for a call of this origin that has brought so many bytes; `None` if there are none
    /// left for it.
    pub(super) fn take(&self, origin: IpAddr, bytes: usize) -> Option<WaitingPlace> {
        let places = 1 + bytes / BYTES_PER_PLACE;
        let mut taken = self.taken();
        let all = taken.all + places;
        let own = taken.by_origin.get(&origin).copied().unwrap_or(0) + places;
        let has_few = own <= HELD_FEW && all <= ETCD_WAITING_MAX;
        if !has_few && !is_within_share(own - 1, all - 1, ETCD_WAITING_MAX) {
            return None;
        }
        taken.all = all;
        taken.by_origin.insert(origin, own);
        Some(WaitingPlace { waiting: self.clone(), origin, places })
    }

    /// Waits until no place is taken.
    pub(super) async fn left(&self) {
        loop {
            let is_left = self.0.is_left.notified();
            if self.taken().all == 0 {
                return;
            }
            is_left.await;
        }
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        let mut taken = self.waiting.taken();
        taken.all -= self.places;
        if taken.all == 0 {
            self.waiting.0.is_left.notify_waiters();
        }
        let own = taken.by_origin.get(&self.origin).map_or(0, |own| own - self.places);
        match own {
            0 => drop(taken.by_origin.remove(&self.origin)),
            own => drop(taken.by_origin.insert(self.origin, own)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn all_of(waiting: &Waiting, origin: IpAddr, bytes: usize) -> Vec<WaitingPlace> {
        std::iter::from_fn(|| waiting.take(origin, bytes)).collect()
    }

    #[test]
    fn one_address_leaves_places_to_others_and_has_them_back_when_its_calls_are_over() {
        let waiting = Waiting::default();
        let here = all_of(&waiting, HERE, 0);
        assert!((400..600).contains(&here.len()), "about half of them: {}", here.len());
        let there = all_of(&waiting, THERE, 0);
        assert!(there.len() > 200, "half of the rest: {}", there.len());
        drop(here);
        assert!(waiting.take(HERE, 0).is_some());
        drop(there);
        assert_eq!(waiting.taken().all, 0);
        assert!(waiting.taken().by_origin.is_empty(), "who has none is forgotten");
    }

    #[test]
    fn whoever_brings_much_has_fewer() {
        let waiting = Waiting::default();
        let long = all_of(&waiting, HERE, 1024 * 1024);
        assert!((1..10).contains(&long.len()), "{}", long.len());
        assert!(waiting.take(THERE, 1024 * 1024).is_some());
    }
}
