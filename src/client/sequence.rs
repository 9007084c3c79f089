//! Numbers a client's writes and bounds what is under way.
//!
//! A write is applied once however often it is sent, because servers remember (client, sequence)
//! and its reply. They may forget what lies below `answered_below`, so the invariant here is: every
//! sequence below the number handed out is finished, and none of them will be sent again.
//!
//! Servers forget a client that has not written for long. From then on they refuse its writes, which may be retries
//! of what they have forgotten, and know them by the time when the client has begun. So when a write is refused
//! like that, the next one is the first of another client, which begins with the time that came with the refusal.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use super::cancel;
use super::sync::lock;
use crate::model::{ClientId, RequestId, Timestamp};

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

    /// Waits for a permit until `deadline`, or until this thread's requests are cancelled.
    pub(super) fn enter<G: AsRef<Gate>>(gate: G, deadline: Instant) -> Option<Permit<G>> {
        let this = gate.as_ref();
        let mut free = lock(&this.free);
        while *free == 0 {
            free = super::sync::wait(&this.freed, free, cancel::wait_time(deadline)?);
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
    /// [`RequestId::begun`] of all its writes. Of the first client 0, which stands for what the first server said
    /// that was reached: see [`Met`](super::connection::Met).
    begun: Timestamp,
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
        let state = Mutex::new(State::begin(client, Timestamp::ZERO));
        Sequencer { window, state, finished: Condvar::new() }
    }

    /// Begins a write, waiting until `deadline` for the window to have room, or until this thread's requests are
    /// cancelled.
    pub(super) fn begin(&self, deadline: Instant) -> Option<Ticket<'_>> {
        let mut state = lock(&self.state);
        loop {
            let sequence = state.next;
            let oldest = state.unfinished.first().copied().unwrap_or(sequence);
            if sequence - oldest < self.window {
                state.next += 1;
                state.unfinished.insert(sequence);
                let State { client, begun, .. } = *state;
                let request = RequestId { client, sequence, answered_below: oldest, begun };
                return Some(Ticket { sequencer: self, request });
            }
            state = super::sync::wait(&self.finished, state, cancel::wait_time(deadline)?);
        }
    }
}

impl Ticket<'_> {
    /// The servers do not know this client (any more): writes from here on are those of another one, which begins
    /// with what they have said.
    pub(super) fn forgotten(&self, begun: Timestamp) {
        let mut state = lock(&self.sequencer.state);
        if state.client == self.request.client {
            // As random as the last one; the factor is odd, so that none comes back soon.
            let ClientId(last) = state.client;
            let next = last.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x632b_e5ab);
            *state = State::begin(ClientId(next), begun);
        }
    }
}

impl State {
    fn begin(client: ClientId, begun: Timestamp) -> State {
        State { client, begun, next: 1, unfinished: BTreeSet::new() }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.sequencer.state);
        if state.client == self.request.client {
            state.unfinished.remove(&self.request.sequence);
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

    #[test]
    fn a_forgotten_client_begins_anew_once() {
        let sequencer = Sequencer::new(ClientId(9), 100);
        let begin = || sequencer.begin(soon()).unwrap();
        let (first, second) = (begin(), begin());
        assert_eq!((first.request.client, numbers(&first)), (ClientId(9), (1, 1)));
        assert_eq!((second.request.client, numbers(&second)), (ClientId(9), (2, 1)));
        assert_eq!(second.request.begun, Timestamp::ZERO);
        second.forgotten(Timestamp(70));
        first.forgotten(Timestamp(80));
        let anew = begin();
        assert_ne!(anew.request.client, ClientId(9));
        assert_eq!((anew.request.begun, numbers(&anew)), (Timestamp(70), (1, 1)));
        drop((first, second));
        let next = begin();
        assert_eq!(next.request.client, anew.request.client);
        assert_eq!(
            (next.request.begun, numbers(&next)),
            (Timestamp(70), (2, 1)),
            "the old ones do not count"
        );
    }

    #[test]
    fn answered_below_is_the_oldest_unfinished() {
        let sequencer = Sequencer::new(ClientId(9), 100);
        let first = sequencer.begin(soon()).unwrap();
        let second = sequencer.begin(soon()).unwrap();
        assert_eq!((numbers(&first), numbers(&second)), ((1, 1), (2, 1)));
        drop(second);
        let third = sequencer.begin(soon()).unwrap();
        assert_eq!(numbers(&third), (3, 1));
        drop(first);
        let fourth = sequencer.begin(soon()).unwrap();
        assert_eq!(numbers(&fourth), (4, 3));
        drop((third, fourth));
        assert_eq!(numbers(&sequencer.begin(soon()).unwrap()), (5, 5));
    }

    #[test]
    fn the_window_keeps_the_oldest_write_within_reach() {
        let sequencer = Sequencer::new(ClientId(9), 3);
        let oldest = sequencer.begin(soon()).unwrap();
        for _ in 0..2 {
            drop(sequencer.begin(soon()).unwrap());
        }
        assert!(sequencer.begin(Instant::now()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sequencer.begin(soon()).map(|ticket| numbers(&ticket)));
            drop(oldest);
            assert_eq!(waiting.join().unwrap(), Some((4, 4)));
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
