//! Writes that are left over, in turns by origin.
//!
//! As long as everything that waits is proposed, or forwarded, at once, writes go in the order in
//! which they came. What is left over then waits here, and origins take turns: an origin with a
//! thousand connections that write as fast as they can has one turn in each round, as one with a
//! single connection has.
//!
//! The writes of one client stay in the order in which they came, also where they come from several
//! addresses: all of them wait with those of the origin of the first.
//!
//! Each step takes the same time, however many writes wait.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::model::ClientId;

/// A write that waits for its turn.
#[derive(Clone, Copy, Debug)]
struct WaitingWrite {
    /// Its key in `writes`.
    key: usize,
    client: ClientId,
}

/// The writes of a client that wait: with which origin, and how many.
#[derive(Debug)]
struct ClientTurn {
    origin: IpAddr,
    writes: usize,
}

/// Writes by their keys, in turns by origin.
#[derive(Debug, Default)]
pub(super) struct WriteTurns {
    /// The writes of each origin, in order; none is empty.
    origins: HashMap<IpAddr, VecDeque<WaitingWrite>>,
    /// Each origin once; the first is next.
    order: VecDeque<IpAddr>,
    clients: HashMap<ClientId, ClientTurn>,
    len: usize,
}

impl WriteTurns {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a write behind those of its origin.
    pub fn push(&mut self, key: usize, client: ClientId, origin: IpAddr) {
        let origin = self.count(client, origin);
        let writes = self.origins.entry(origin).or_insert_with(|| {
            self.order.push_back(origin);
            VecDeque::new()
        });
        writes.push_back(WaitingWrite { key, client });
    }

    /// Puts a write back before those of its origin.
    pub fn put_back(&mut self, key: usize, client: ClientId, origin: IpAddr) {
        let origin = self.count(client, origin);
        let writes = self.origins.entry(origin).or_insert_with(|| {
            self.order.push_front(origin);
            VecDeque::new()
        });
        writes.push_front(WaitingWrite { key, client });
    }

    /// Counts a write, and tells with which origin it waits.
    fn count(&mut self, client: ClientId, origin: IpAddr) -> IpAddr {
        self.len += 1;
        let turn = self.clients.entry(client).or_insert(ClientTurn { origin, writes: 0 });
        turn.writes += 1;
        turn.origin
    }

    /// Takes the write whose turn it is.
    pub fn pop(&mut self) -> Option<usize> {
        let origin = self.order.pop_front()?;
        let Some(writes) = self.origins.get_mut(&origin) else {
            panic!("{origin} has a turn and no writes")
        };
        let taken = writes.pop_front();
        match writes.is_empty() {
            true => drop(self.origins.remove(&origin)),
            false => self.order.push_back(origin),
        }
        let WaitingWrite { key, client } = taken?;
        self.discount(client);
        Some(key)
    }

    fn discount(&mut self, client: ClientId) {
        self.len -= 1;
        let Some(turn) = self.clients.get_mut(&client) else {
            panic!("{client:?} has a write that waits and is not counted")
        };
        turn.writes -= 1;
        if turn.writes == 0 {
            self.clients.remove(&client);
        }
    }

    /// Takes all of them, in the order of their turns.
    pub fn take_all(&mut self) -> VecDeque<usize> {
        let WriteTurns { mut origins, order, len, .. } = std::mem::take(self);
        let mut queues: VecDeque<VecDeque<WaitingWrite>> =
            order.iter().filter_map(|origin| origins.remove(origin)).collect();
        let mut taken = VecDeque::with_capacity(len);
        while let Some(mut writes) = queues.pop_front() {
            if let Some(write) = writes.pop_front() {
                taken.push_back(write.key);
                queues.push_back(writes);
            }
        }
        assert_eq!(taken.len(), len, "not all writes that wait have a turn");
        taken
    }

    /// Takes out those that `keeps` does not keep.
    pub fn retain(&mut self, mut keeps: impl FnMut(usize) -> bool) {
        let mut gone = Vec::new();
        // In the order of turns, and not of the map, which is not the same in every run.
        for origin in &self.order {
            let Some(writes) = self.origins.get_mut(origin) else { continue };
            writes.retain(|write| {
                let is_kept = keeps(write.key);
                if !is_kept {
                    gone.push(write.client);
                }
                is_kept
            });
        }
        gone.into_iter().for_each(|client| self.discount(client));
        self.origins.retain(|_, writes| !writes.is_empty());
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
        assert_eq!(pop_all(&mut turns), [0, 7, 1, 2, 5, 6]);
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
