//! Numbers a client's writes.
//!
//! A write is applied once however often it is sent, because servers remember (client, sequence)
//! and its reply. They may forget what lies below `answered_below`, so the invariant here is: every
//! sequence below the number handed out is finished, and none of them will be sent again.
//!
//! Servers forget a client that has not written for long. From then on they refuse its writes,
//! which may be retries of what they have forgotten, and know them by the time when the client has
//! begun. So when a write is refused like that, the next one is the first of another client, which
//! begins with the time that came with the refusal.

use std::collections::BTreeSet;

use crate::model::{ClientId, RequestId, Timestamp};

/// Hands out the sequence numbers of one client.
pub(super) struct Sequencer {
    /// The most by which a new sequence may run ahead of the oldest unfinished one: servers
    /// remember only so many replies of one client, and the oldest write must stay among them.
    window: u64,
    client: ClientId,
    /// [`RequestId::begun`] of all its writes. Of the first client 0 until a server has greeted: it
    /// is told with each write when that leaves.
    begun: Timestamp,
    next: u64,
    unfinished: BTreeSet<u64>,
}

impl Sequencer {
    pub(super) fn new(client: ClientId, window: u64) -> Sequencer {
        let (begun, unfinished) = (Timestamp::ZERO, BTreeSet::new());
        Sequencer { window, client, begun, next: 1, unfinished }
    }

    /// Begins a write; `None` when the window has no room.
    pub(super) fn begin(&mut self) -> Option<RequestId> {
        let sequence = self.next;
        let oldest = self.unfinished.first().copied().unwrap_or(sequence);
        if sequence - oldest >= self.window {
            return None;
        }
        self.next += 1;
        self.unfinished.insert(sequence);
        let (client, begun) = (self.client, self.begun);
        Some(RequestId { client, sequence, answered_below: oldest, begun })
    }

    /// A write is answered, or never sent again.
    pub(super) fn finish(&mut self, request: RequestId) {
        if self.client == request.client {
            let was_unfinished = self.unfinished.remove(&request.sequence);
            assert!(was_unfinished, "{request:?} is finished twice");
        }
    }

    /// The servers do not know the client of this write (any more): writes from here on are those
    /// of another one, which begins with what they have said. The write itself is still to be
    /// finished.
    pub(super) fn forgotten(&mut self, request: RequestId, begun: Timestamp) {
        if self.client == request.client {
            // As random as the last one; the factor is odd, so that none comes back soon.
            let ClientId(last) = self.client;
            let next = last.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x632b_e5ab);
            *self = Sequencer { begun, ..Sequencer::new(ClientId(next), self.window) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(request: RequestId) -> (u64, u64) {
        (request.sequence, request.answered_below)
    }

    #[test]
    fn a_forgotten_client_begins_anew_once() {
        let mut sequencer = Sequencer::new(ClientId(9), 100);
        let (first, second) = (sequencer.begin().unwrap(), sequencer.begin().unwrap());
        assert_eq!((first.client, numbers(first)), (ClientId(9), (1, 1)));
        assert_eq!((second.client, numbers(second)), (ClientId(9), (2, 1)));
        assert_eq!(second.begun, Timestamp::ZERO);
        sequencer.forgotten(second, Timestamp(70));
        sequencer.forgotten(first, Timestamp(80));
        let anew = sequencer.begin().unwrap();
        assert_ne!(anew.client, ClientId(9));
        assert_eq!((anew.begun, numbers(anew)), (Timestamp(70), (1, 1)));
        sequencer.finish(first);
        sequencer.finish(second);
        let next = sequencer.begin().unwrap();
        assert_eq!(next.client, anew.client);
        assert_eq!((next.begun, numbers(next)), (Timestamp(70), (2, 1)), "the old do not count");
    }

    #[test]
    fn answered_below_is_the_oldest_unfinished() {
        let mut sequencer = Sequencer::new(ClientId(9), 100);
        let (first, second) = (sequencer.begin().unwrap(), sequencer.begin().unwrap());
        assert_eq!((numbers(first), numbers(second)), ((1, 1), (2, 1)));
        sequencer.finish(second);
        let third = sequencer.begin().unwrap();
        assert_eq!(numbers(third), (3, 1));
        sequencer.finish(first);
        let fourth = sequencer.begin().unwrap();
        assert_eq!(numbers(fourth), (4, 3));
        sequencer.finish(third);
        sequencer.finish(fourth);
        assert_eq!(numbers(sequencer.begin().unwrap()), (5, 5));
    }

    #[test]
    fn the_window_keeps_the_oldest_write_within_reach() {
        let mut sequencer = Sequencer::new(ClientId(9), 3);
        let oldest = sequencer.begin().unwrap();
        for _ in 0..2 {
            let write = sequencer.begin().unwrap();
            sequencer.finish(write);
        }
        assert_eq!(sequencer.begin(), None);
        sequencer.finish(oldest);
        assert_eq!(sequencer.begin().map(numbers), Some((4, 4)));
    }
}
