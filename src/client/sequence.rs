//! Numbers a client's writes and bounds what is under way.
//!
//! A write is applied once however often it is sent, because servers remember (client, sequence)
//! and its reply. They may forget what lies below `answered_below`, so the invariant here is: every
//! sequence below the number handed out is finished, and none of them will be sent again.
//!
//! Servers refuse a write of a client that they do not know unless it is its first, since it may be the retry
//! of one that was applied. So a client's first write is under way alone until it is answered; when it is
//! not, or when the servers have forgotten the client, the next write is the first of another one.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use super::sync::lock;
use crate::types::{ClientId, RequestId};

/// Lets at most so many through at once; one more waits.
pub(super) struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Leave to go on; given back when dropped.
pub(super) struct Permit<G: AsRef<Gate>>(G);

impl Gate {
    pub(super) fn new(count: usize) -> Gate {
        Gate { free: Mutex::new(count), freed: Condvar::new() }
    }

    /// Waits for a permit until `deadline`.
    pub(super) fn enter<G: AsRef<Gate>>(gate: G, deadline: Instant) -> Option<Permit<G>> {
        let this = gate.as_ref();
        let mut free = lock(&this.free);
        while *free == 0 {
            let left = deadline.checked_duration_since(Instant::now())?;
            free = super::sync::wait(&this.freed, free, left);
        }
        *free -= 1;
        drop(free);
        Some(Permit(gate))
    }
}

impl AsRef<Gate> for Gate {
    fn as_ref(&self) -> &Gate {
        self
    }
}

impl<G: AsRef<Gate>> Drop for Permit<G> {
    fn drop(&mut self) {
        let gate = self.0.as_ref();
        *lock(&gate.free) += 1;
        gate.freed.notify_one();
    }
}

/// Hands out the sequence numbers of one client.
pub(super) struct Sequencer {
    /// The most by which a new sequence may run ahead of the oldest unfinished one: servers
    /// remember only so many replies of one client, and the oldest write must stay among them.
    window: u64,
    state: Mutex<State>,
    finished: Condvar,
}

struct State {
    client: ClientId,
    /// The client's first write is answered.
    known: bool,
    next: u64,
    unfinished: BTreeSet<u64>,
}

/// A write under way. Dropping it says that it is finished: answered, or never to be sent again.
pub(super) struct Ticket<'a> {
    sequencer: &'a Sequencer,
    /// What to send, the same at every attempt.
    pub(super) request: RequestId,
}

impl Sequencer {
    pub(super) fn new(client: ClientId, window: u64) -> Sequencer {
        let state = State { client, known: false, next: 1, unfinished: BTreeSet::new() };
        Sequencer { window, state: Mutex::new(state), finished: Condvar::new() }
    }

    /// Begins a write, waiting until `deadline` for the window to have room.
    pub(super) fn begin(&self, deadline: Instant) -> Option<Ticket<'_>> {
        let mut state = lock(&self.state);
        loop {
            let sequence = state.next;
            let oldest = state.unfinished.first().copied().unwrap_or(sequence);
            let alone = state.known || state.unfinished.is_empty();
            if sequence - oldest < self.window && alone {
                state.next += 1;
                state.unfinished.insert(sequence);
                let request = RequestId { client: state.client, sequence, answered_below: oldest };
                return Some(Ticket { sequencer: self, request });
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = super::sync::wait(&self.finished, state, left);
        }
    }
}

impl Ticket<'_> {
    /// The write is answered: the servers know this client.
    pub(super) fn answered(&self) {
        let mut state = lock(&self.sequencer.state);
        if state.client == self.request.client {
            state.known = true;
        }
    }

    /// The servers do not know this client (any more).
    pub(super) fn forgotten(&self) {
        let mut state = lock(&self.sequencer.state);
        if state.client == self.request.client {
            state.begin_anew();
        }
    }
}

impl State {
    fn begin_anew(&mut self) {
        // As random as the last one; the factor is odd, so that none comes back soon.
        let ClientId(last) = self.client;
        let client = ClientId(last.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x632b_e5ab));
        *self = State { client, known: false, next: 1, unfinished: BTreeSet::new() };
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.sequencer.state);
        if state.client == self.request.client {
            state.unfinished.remove(&self.request.sequence);
            if !state.known {
                state.begin_anew();
            }
        }
        drop(state);
        self.sequencer.finished.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn numbers(ticket: &Ticket<'_>) -> (u64, u64) {
        (ticket.request.sequence, ticket.request.answered_below)
    }

    fn opened(sequencer: &Sequencer) {
        sequencer.begin(soon()).unwrap().answered();
    }

    #[test]
    fn the_first_write_goes_alone_and_is_the_first_of_another_client_when_it_fails() {
        let sequencer = Sequencer::new(ClientId(9), 100);
        let first = sequencer.begin(soon()).unwrap();
        assert_eq!(first.request.client, ClientId(9));
        assert!(sequencer.begin(Instant::now()).is_none());
        drop(first);
        let first = sequencer.begin(soon()).unwrap();
        assert_ne!(first.request.client, ClientId(9));
        assert_eq!(numbers(&first), (1, 1));
        first.answered();
        let second = sequencer.begin(soon()).unwrap();
        assert_eq!((second.request.client, numbers(&second)), (first.request.client, (2, 1)));
        second.forgotten();
        second.forgotten();
        let anew = sequencer.begin(soon()).unwrap();
        assert_ne!(anew.request.client, first.request.client);
        assert_eq!(numbers(&anew), (1, 1));
        drop((first, second));
        assert!(sequencer.begin(Instant::now()).is_none(), "the old ones do not count");
    }

    #[test]
    fn answered_below_is_the_oldest_unfinished() {
        let sequencer = Sequencer::new(ClientId(9), 100);
        opened(&sequencer);
        let first = sequencer.begin(soon()).unwrap();
        let second = sequencer.begin(soon()).unwrap();
        assert_eq!((numbers(&first), numbers(&second)), ((2, 2), (3, 2)));
        drop(second);
        let third = sequencer.begin(soon()).unwrap();
        assert_eq!(numbers(&third), (4, 2));
        drop(first);
        let fourth = sequencer.begin(soon()).unwrap();
        assert_eq!(numbers(&fourth), (5, 4));
        drop((third, fourth));
        assert_eq!(numbers(&sequencer.begin(soon()).unwrap()), (6, 6));
    }

    #[test]
    fn the_window_keeps_the_oldest_write_within_reach() {
        let sequencer = Sequencer::new(ClientId(9), 3);
        opened(&sequencer);
        let oldest = sequencer.begin(soon()).unwrap();
        for _ in 0..2 {
            drop(sequencer.begin(soon()).unwrap());
        }
        assert!(sequencer.begin(Instant::now()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sequencer.begin(soon()).map(|ticket| numbers(&ticket)));
            drop(oldest);
            assert_eq!(waiting.join().unwrap(), Some((5, 5)));
        });
    }

    #[test]
    fn one_more_than_the_gate_allows_waits() {
        let gate = Gate::new(1);
        let permit = Gate::enter(&gate, soon()).unwrap();
        assert!(Gate::enter(&gate, Instant::now()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Gate::enter(&gate, soon()).is_some());
            drop(permit);
            assert!(waiting.join().unwrap());
        });
        assert!(Gate::enter(&gate, Instant::now()).is_some());
    }
}
