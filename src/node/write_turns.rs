//! Writes that are left over, in turns by origin and by client.
//!
//! As long as everything that waits is proposed, or forwarded, at once, writes go in the order in
//! which they came. What is left over then waits here, and origins take turns, and within an origin
//! its clients: an origin with a thousand connections that write as fast as they can has one turn
//! in each round, as one with a single connection has.
//!
//! The writes of one client stay in the order in which they came, also where they come from several
//! addresses: all of them wait with the origin of the first.
//!
//! Each step takes the same time, however many writes wait.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::model::ClientId;

/// Writes by their keys, in turns by origin and by client.
#[derive(Debug, Default)]
pub(super) struct WriteTurns {
    /// The writes of each client that wait, by their keys in `writes`, in order; none is empty.
    clients: HashMap<ClientId, VecDeque<usize>>,
    /// The clients of each origin with writes that wait, each once; the first is next. None is
    /// empty.
    origins: HashMap<IpAddr, VecDeque<ClientId>>,
    /// The origins with clients, each once; the first is next.
    order: VecDeque<IpAddr>,
    len: usize,
}

impl WriteTurns {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a write behind those of its client.
    pub fn push(&mut self, key: usize, client: ClientId, origin: IpAddr) {
        self.len += 1;
        if let Some(keys) = self.clients.get_mut(&client) {
            return keys.push_back(key);
        }
        self.clients.insert(client, VecDeque::from([key]));
        let clients = self.origins.entry(origin).or_insert_with(|| {
            self.order.push_back(origin);
            VecDeque::new()
        });
        clients.push_back(client);
    }

    /// Puts a write back before those of its client.
    pub fn put_back(&mut self, key: usize, client: ClientId, origin: IpAddr) {
        self.len += 1;
        if let Some(keys) = self.clients.get_mut(&client) {
            return keys.push_front(key);
        }
        self.clients.insert(client, VecDeque::from([key]));
        let clients = self.origins.entry(origin).or_insert_with(|| {
            self.order.push_front(origin);
            VecDeque::new()
        });
        clients.push_front(client);
    }

    /// Takes the write whose turn it is.
    pub fn pop(&mut self) -> Option<usize> {
        let origin = self.order.pop_front()?;
        let Some(clients) = self.origins.get_mut(&origin) else {
            panic!("{origin} has a turn and no clients")
        };
        let client = clients.pop_front();
        let Some((client, keys)) =
            client.and_then(|client| Some((client, self.clients.get_mut(&client)?)))
        else {
            panic!("{client:?} of {origin} has a turn and no writes")
        };
        let key = keys.pop_front();
        match keys.is_empty() {
            true => drop(self.clients.remove(&client)),
            false => clients.push_back(client),
        }
        match clients.is_empty() {
            true => drop(self.origins.remove(&origin)),
            false => self.order.push_back(origin),
        }
        self.len -= 1;
        key
    }

    /// Takes all of them, in the order of their turns.
    pub fn take_all(&mut self) -> VecDeque<usize> {
        let WriteTurns { mut clients, mut origins, order, len } = std::mem::take(self);
        let mut rounds: VecDeque<VecDeque<VecDeque<usize>>> = order
            .iter()
            .filter_map(|origin| origins.remove(origin))
            .map(|of_origin| of_origin.iter().filter_map(|client| clients.remove(client)).collect())
            .collect();
        let mut taken = VecDeque::with_capacity(len);
        while let Some(mut of_origin) = rounds.pop_front() {
            let Some(mut keys) = of_origin.pop_front() else { continue };
            taken.extend(keys.pop_front());
            if !keys.is_empty() {
                of_origin.push_back(keys);
            }
            rounds.push_back(of_origin);
        }
        assert_eq!(taken.len(), len, "not all writes that wait have a turn");
        taken
    }

    /// Takes out those that `keeps` does not keep.
    pub fn retain(&mut self, mut keeps: impl FnMut(usize) -> bool) {
        // In the order of turns, and not of the maps, which is not the same in every run.
        for origin in &self.order {
            let Some(of_origin) = self.origins.get_mut(origin) else { continue };
            of_origin.retain(|client| {
                let Some(keys) = self.clients.get_mut(client) else { return false };
                let before = keys.len();
                keys.retain(|key| keeps(*key));
                self.len -= before - keys.len();
                let is_left = !keys.is_empty();
                if !is_left {
                    self.clients.remove(client);
                }
                is_left
            });
        }
        self.origins.retain(|_, clients| !clients.is_empty());
        self.order.retain(|origin| self.origins.contains_key(origin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn pop_all(turns: &mut WriteTurns) -> Vec<usize> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    /// Whoever wrote one thing came behind the thousand connections of somebody else.
    #[test]
    fn each_origin_has_one_turn_in_each_round() {
        let filled = || {
            let mut turns = WriteTurns::default();
            (0..6).for_each(|key| turns.push(key, ClientId(key as u64), origin(1)));
            turns.push(10, ClientId(10), origin(2));
            turns.push(20, ClientId(20), origin(3));
            turns.push(21, ClientId(21), origin(3));
            turns
        };
        let expected = [0, 10, 20, 1, 21, 2, 3, 4, 5];
        assert_eq!(pop_all(&mut filled()), expected);
        assert_eq!(Vec::from(filled().take_all()), expected);
        // What is put back keeps its place, and who has had a turn waits for the others.
        let mut turns = filled();
        let taken: Vec<usize> = (0..4).filter_map(|_| turns.pop()).collect();
        assert_eq!(taken, [0, 10, 20, 1]);
        for key in [1, 20] {
            turns.put_back(key, ClientId(key as u64), origin(if key == 1 { 1 } else { 3 }));
        }
        assert_eq!(turns.len(), 7);
        assert_eq!(pop_all(&mut turns), [20, 1, 21, 2, 3, 4, 5]);
        assert!(turns.is_empty());
    }

    #[test]
    fn the_writes_of_a_client_stay_in_order_whatever_addresses_they_come_from() {
        let mut turns = WriteTurns::default();
        let client = ClientId(1);
        (0..3).for_each(|key| turns.push(key, ClientId(9), origin(1)));
        turns.push(5, client, origin(1));
        // By way of another network, in which nobody waits.
        turns.push(6, client, origin(2));
        turns.push(7, ClientId(2), origin(2));
        assert_eq!(pop_all(&mut turns), [0, 7, 5, 1, 6, 2]);
        // Nothing of it waits any more.
        turns.push(8, client, origin(2));
        turns.push(0, ClientId(9), origin(1));
        turns.push(1, ClientId(9), origin(1));
        assert_eq!(pop_all(&mut turns), [8, 0, 1]);
    }

    #[test]
    fn what_is_taken_out_leaves_the_turns_of_the_others() {
        let mut turns = WriteTurns::default();
        (0..4).for_each(|key| turns.push(key, ClientId(1), origin(1)));
        turns.push(10, ClientId(2), origin(2));
        turns.push(20, ClientId(3), origin(3));
        turns.retain(|key| ![1, 10].contains(&key));
        assert_eq!(turns.len(), 4);
        turns.push(11, ClientId(2), origin(2));
        assert_eq!(pop_all(&mut turns), [0, 20, 11, 2, 3]);
    }
}
