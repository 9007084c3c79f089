//! Reads that wait for a worker: origins take turns, and within an origin its clients.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::super::work::ReadJob;
use crate::net::ConnectionId;

/// Reads that wait for a worker, in turns by origin.
#[derive(Debug, Default)]
pub(super) struct ReadTurns {
    origins: HashMap<IpAddr, OriginTurns>,
    /// Each of them once; the first is next.
    order: VecDeque<IpAddr>,
}

/// The waiting reads of one origin, in turns by client.
#[derive(Debug, Default)]
struct OriginTurns {
    clients: HashMap<ConnectionId, VecDeque<ReadJob>>,
    /// Each of them once; the first is next.
    order: VecDeque<ConnectionId>,
}

impl ReadTurns {
    pub fn push(&mut self, origin: IpAddr, connection: ConnectionId, read: ReadJob) {
        let turns = self.origins.entry(origin).or_insert_with(|| {
            self.order.push_back(origin);
            OriginTurns::default()
        });
        let reads = turns.clients.entry(connection).or_insert_with(|| {
            turns.order.push_back(connection);
            VecDeque::new()
        });
        reads.push_back(read);
    }

    pub fn pop(&mut self) -> Option<ReadJob> {
        while let Some(origin) = self.order.pop_front() {
            let Some(turns) = self.origins.get_mut(&origin) else { continue };
            let read = turns.pop();
            match turns.clients.is_empty() {
                true => drop(self.origins.remove(&origin)),
                false => self.order.push_back(origin),
            }
            if read.is_some() {
                return read;
            }
        }
        None
    }

    /// Takes out the reads that have waited since `tick` or before.
    pub fn take_waiting_since(&mut self, tick: u64) -> Vec<ReadJob> {
        let mut taken = Vec::new();
        for turns in self.origins.values_mut() {
            for reads in turns.clients.values_mut() {
                // Those of one client are in the order in which they came.
                let is_due = |read: &mut ReadJob| read.waits_since <= tick;
                taken.extend(std::iter::from_fn(|| reads.pop_front_if(is_due)));
            }
            turns.clients.retain(|_, reads| !reads.is_empty());
            turns.order.retain(|connection| turns.clients.contains_key(connection));
        }
        self.origins.retain(|_, turns| !turns.clients.is_empty());
        self.order.retain(|origin| self.origins.contains_key(origin));
        taken
    }

    /// Takes out all reads of a client.
    pub fn remove(&mut self, origin: IpAddr, connection: ConnectionId) -> VecDeque<ReadJob> {
        let turns = self.origins.get_mut(&origin);
        turns.and_then(|turns| turns.clients.remove(&connection)).unwrap_or_default()
    }
}

impl OriginTurns {
    fn pop(&mut self) -> Option<ReadJob> {
        // A client that is gone is still in the order, and has no reads.
        while let Some(connection) = self.order.pop_front() {
            let Some(reads) = self.clients.get_mut(&connection) else { continue };
            let read = reads.pop_front();
            match reads.is_empty() {
                true => drop(self.clients.remove(&connection)),
                false => self.order.push_back(connection),
            }
            if read.is_some() {
                return read;
            }
        }
        None
    }
}
