//! Watches that are behind: origins take turns, and within an origin its watches.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::WatchKey;

/// The watches that are to be served, each at most once.
#[derive(Debug, Default)]
pub(super) struct WatchTurns {
    origins: HashMap<IpAddr, VecDeque<WatchKey>>,
    /// Each origin with watches once; the first is next.
    order: VecDeque<IpAddr>,
}

impl WatchTurns {
    /// Puts a watch behind the others of its origin.
    pub fn push(&mut self, origin: IpAddr, watch: WatchKey) {
        let watches = self.origins.entry(origin).or_default();
        if watches.is_empty() {
            self.order.push_back(origin);
        }
        watches.push_back(watch);
    }

    /// The watch whose turn it is.
    pub fn pop(&mut self) -> Option<WatchKey> {
        let origin = self.order.pop_front()?;
        let Some(watches) = self.origins.get_mut(&origin) else {
            panic!("{origin} has a turn and no watches")
        };
        let watch = watches.pop_front();
        match watches.is_empty() {
            true => drop(self.origins.remove(&origin)),
            false => self.order.push_back(origin),
        }
        watch
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_origin_with_many_watches_is_not_before_another_with_one() {
        let mut turns = WatchTurns::default();
        let origin = |number| IpAddr::from(Ipv4Addr::new(10, 0, 0, number));
        (0..3).for_each(|watch| turns.push(origin(1), WatchKey(watch)));
        turns.push(origin(2), WatchKey(7));
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order, [0, 7, 1, 2].map(WatchKey));
        turns.push(origin(1), WatchKey(0));
        assert_eq!(turns.pop(), Some(WatchKey(0)));
        assert_eq!(turns.pop(), None);
    }
}
