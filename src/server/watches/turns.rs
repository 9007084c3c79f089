//! Watches that are behind: origins take turns, within an origin its clients, and within a client
//! its watches.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use super::WatchKey;
use crate::net::ConnectionId;

/// The watches that are to be served, each at most once.
#[derive(Debug, Default)]
pub(super) struct WatchTurns {
    origins: Rounds<IpAddr, Rounds<ConnectionId, Rounds<WatchKey, ()>>>,
    owners: HashMap<WatchKey, (IpAddr, ConnectionId)>,
}

impl WatchTurns {
    /// Puts a watch behind the others of its client, unless it is there.
    pub fn push(&mut self, origin: IpAddr, connection: ConnectionId, watch: WatchKey) {
        if self.owners.insert(watch, (origin, connection)).is_some() {
            return;
        }
        self.origins.of(origin).of(connection).of(watch);
    }

    /// The watch whose turn it is.
    pub fn pop(&mut self) -> Option<WatchKey> {
        let (origin, mut connections) = self.origins.pop()?;
        let Some((connection, mut watches)) = connections.pop() else {
            panic!("{origin} has a turn and no clients")
        };
        let Some((watch, ())) = watches.pop() else {
            panic!("{connection:?} has a turn and no watches")
        };
        if !watches.is_empty() {
            connections.push(connection, watches);
        }
        if !connections.is_empty() {
            self.origins.push(origin, connections);
        }
        self.owners.remove(&watch);
        Some(watch)
    }

    /// Takes out a watch that has ended, if it is there.
    pub fn remove(&mut self, watch: WatchKey) {
        let Some((origin, connection)) = self.owners.remove(&watch) else { return };
        let connections = self.origins.of(origin);
        let watches = connections.of(connection);
        watches.remove(&watch);
        if watches.is_empty() {
            connections.remove(&connection);
        }
        if connections.is_empty() {
            self.origins.remove(&origin);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}

/// Somebody each, in the order in which they came, who can be found and taken out.
#[derive(Debug)]
struct Rounds<K, V> {
    places: HashMap<K, u64>,
    order: BTreeMap<u64, (K, V)>,
    next: u64,
}

impl<K, V> Default for Rounds<K, V> {
    fn default() -> Rounds<K, V> {
        Rounds { places: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }
}

impl<K: Copy + Eq + Hash, V: Default> Rounds<K, V> {
    /// What belongs to somebody, who is put behind all others if he is not there.
    fn of(&mut self, key: K) -> &mut V {
        let place = *self.places.entry(key).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        &mut self.order.entry(place).or_insert_with(|| (key, V::default())).1
    }

    fn push(&mut self, key: K, value: V) {
        *self.of(key) = value;
    }

    fn pop(&mut self) -> Option<(K, V)> {
        let (_, (key, value)) = self.order.pop_first()?;
        self.places.remove(&key);
        Some((key, value))
    }

    fn remove(&mut self, key: &K) {
        if let Some(place) = self.places.remove(key) {
            self.order.remove(&place);
        }
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn nobody_with_many_watches_is_before_another_with_one() {
        let mut turns = WatchTurns::default();
        let origin = |number| IpAddr::from(Ipv4Addr::new(10, 0, 0, number));
        let connection = ConnectionId::from_u64;
        (0..3).for_each(|watch| turns.push(origin(1), connection(1), WatchKey(watch)));
        turns.push(origin(1), connection(2), WatchKey(8));
        turns.push(origin(2), connection(3), WatchKey(7));
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order, [0, 7, 8, 1, 2].map(WatchKey));
        assert!(turns.is_empty());
    }

    #[test]
    fn a_watch_is_in_turn_once_and_leaves_nothing_when_it_ends() {
        let mut turns = WatchTurns::default();
        let (origin, connection) = (Ipv4Addr::LOCALHOST.into(), ConnectionId::from_u64(1));
        for watch in 0..1_000 {
            turns.push(origin, connection, WatchKey(watch % 2));
            turns.push(origin, connection, WatchKey(7));
            turns.remove(WatchKey(watch % 2));
        }
        assert_eq!(turns.pop(), Some(WatchKey(7)));
        assert_eq!(turns.pop(), None);
        turns.push(origin, connection, WatchKey(1));
        turns.remove(WatchKey(1));
        turns.remove(WatchKey(1));
        assert!(turns.origins.is_empty() && turns.owners.is_empty());
    }
}
