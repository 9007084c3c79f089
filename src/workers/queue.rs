//! A bounded queue whose receivers park at once.
//!
//! Channels made for throughput spin and yield for a while before they park. Here the processors that
//! a waiting thread would spin on are wanted by others: the threads of a server hand each write over
//! several times, and sleep in between. This one is a list under a lock with a condition, and tells
//! nobody who does not wait.
//!
//! A sender never waits: the event loop is one. It also lets a receiver [`linger`](Receiver::linger), for work that is
//! cheaper in batches, and a sender join what it sends to what waits already.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// The time is up.
    #[error("nothing came in time")]
    Timeout,
    /// The queue is empty and there is no sender left.
    #[error("nobody is left to send")]
    Disconnected,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// For receivers: there is an item, or no sender any more.
    filled: Condvar,
    /// For a lingering receiver: it is hurried, or there is no sender any more.
    hurried: Condvar,
    items_max: usize,
}

struct State<T> {
    items: VecDeque<T>,
    senders: usize,
    receivers: usize,
    /// Receivers that wait for an item.
    waiting_receivers: usize,
    lingering: bool,
    /// Somebody waits for what is in the queue, or for what a lingering receiver has taken.
    hurry: bool,
}

impl<T> Shared<T> {
    /// No step below leaves the state half-changed, so a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a queue for at most `items_max` items.
pub fn bounded<T>(items_max: usize) -> (Sender<T>, Receiver<T>) {
    let state = State {
        items: VecDeque::new(),
        senders: 1,
        receivers: 1,
        waiting_receivers: 0,
        lingering: false,
        hurry: false,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        filled: Condvar::new(),
        hurried: Condvar::new(),
        items_max,
    });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

/// The end that fills a queue.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Joins an item to the last one that waits, if there is one and `join` takes it; puts it at the end otherwise, as
    /// [`Sender::try_send`] does. `join` is told whether the queue is half full, and runs under its lock.
    ///
    /// # Errors
    /// The item, and whether there is a receiver.
    pub fn try_join(
        &self,
        item: T,
        join: impl FnOnce(&mut T, T, bool) -> Option<T>,
    ) -> Result<(), (T, bool)> {
        let mut state = self.shared.state();
        let crowded = state.items.len() >= self.shared.items_max / 2;
        let item = match state.items.back_mut() {
            Some(last) => join(last, item, crowded),
            None => Some(item),
        };
        let Some(item) = item else { return Ok(()) };
        let has_receiver = state.receivers > 0;
        if state.items.len() >= self.shared.items_max {
            return Err((item, has_receiver));
        }
        self.put(state, item).map_err(|item| (item, has_receiver))
    }

    /// Puts an item at the end. It comes back when there is no room or no receiver.
    ///
    /// # Errors
    /// The item.
    pub fn try_send(&self, item: T) -> Result<(), T> {
        let state = self.shared.state();
        if state.items.len() >= self.shared.items_max {
            return Err(item);
        }
        self.put(state, item)
    }

    fn put(&self, mut state: MutexGuard<'_, State<T>>, item: T) -> Result<(), T> {
        if state.receivers == 0 {
            return Err(item);
        }
        state.items.push_back(item);
        let wake = state.waiting_receivers > 0;
        drop(state);
        if wake {
            self.shared.filled.notify_one();
        }
        Ok(())
    }

    /// Somebody waits for what has been sent: a receiver that lingers, or would, goes on.
    pub fn hurry(&self) {
        let mut state = self.shared.state();
        if (state.items.is_empty() && !state.lingering) || state.hurry {
            return;
        }
        state.hurry = true;
        let wake = state.lingering;
        drop(state);
        if wake {
            self.shared.hurried.notify_all();
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.senders -= 1;
        drop(state);
        self.shared.filled.notify_all();
        self.shared.hurried.notify_all();
    }
}

/// The end that empties a queue. Of several, each item goes to one.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Receiver<T> {
    /// Takes the first item, waiting for one.
    ///
    /// # Errors
    /// [`RecvError::Disconnected`].
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_until(None)
    }

    /// Takes the first item, waiting for one for as long as `timeout`.
    ///
    /// # Errors
    /// [`RecvError`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
        self.recv_until(Some(Instant::now() + timeout))
    }

    /// Takes the first item, if there is one.
    pub fn try_recv(&self) -> Option<T> {
        self.shared.state().items.pop_front()
    }

    fn recv_until(&self, deadline: Option<Instant>) -> Result<T, RecvError> {
        let mut state = self.shared.state();
        loop {
            if let Some(item) = state.items.pop_front() {
                return Ok(item);
            }
            if state.senders == 0 {
                return Err(RecvError::Disconnected);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(RecvError::Timeout);
            }
            state.waiting_receivers += 1;
            state = wait(&self.shared.filled, state, left);
            state.waiting_receivers -= 1;
        }
    }

    /// Waits while others send, without being woken by each item, until `time` has passed, or
    /// [`Sender::hurry`] was called since the last time, or there is no sender any more. For the only
    /// receiver of a queue.
    pub fn linger(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut state = self.shared.state();
        state.lingering = true;
        while !state.hurry && state.senders > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = wait(&self.shared.hurried, state, Some(left));
        }
        state.lingering = false;
        state.hurry = false;
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.shared.state().receivers += 1;
        Receiver { shared: self.shared.clone() }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.state().receivers -= 1;
    }
}

fn wait<'a, T>(
    condition: &Condvar,
    state: MutexGuard<'a, State<T>>,
    time: Option<Duration>,
) -> MutexGuard<'a, State<T>> {
    match time {
        Some(time) => condition.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
        None => condition.wait(state).unwrap_or_else(PoisonError::into_inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Longer than any test may take.
    const FOREVER: Duration = Duration::from_secs(3600);

    fn send_all(sender: &Sender<u32>, items: std::ops::Range<u32>) {
        for item in items {
            while sender.try_send(item).is_err() {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn items_come_in_order_and_the_end_after_the_last() {
        let (sender, receiver) = bounded(2);
        let sending = thread::spawn(move || send_all(&sender, 0..1000));
        let received: Vec<u32> = std::iter::from_fn(|| receiver.recv().ok()).collect();
        assert_eq!(received, (0..1000).collect::<Vec<_>>());
        sending.join().unwrap();
        assert_eq!(receiver.recv_timeout(FOREVER), Err(RecvError::Disconnected));
        assert_eq!(receiver.try_recv(), None);
    }

    #[test]
    fn every_item_goes_to_one_of_several_receivers() {
        let (sender, receiver) = bounded(8);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let receiver = receiver.clone();
                thread::spawn(move || {
                    std::iter::from_fn(|| receiver.recv().ok()).collect::<Vec<u32>>()
                })
            })
            .collect();
        send_all(&sender, 0..1000);
        drop(sender);
        let mut received: Vec<u32> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        received.sort_unstable();
        assert_eq!(received, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_and_a_deserted_one_give_items_back() {
        let (sender, receiver) = bounded(1);
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.try_send(2), Err(2));
        assert_eq!(receiver.recv_timeout(FOREVER), Ok(1));
        assert_eq!(receiver.recv_timeout(Duration::ZERO), Err(RecvError::Timeout));
        assert_eq!(sender.try_send(3), Ok(()));
        assert_eq!(sender.try_join(4, |_, item, _| Some(item)), Err((4, true)));
        drop(receiver);
        assert_eq!(sender.try_send(5), Err(5));
        assert_eq!(sender.try_join(6, |_, item, _| Some(item)), Err((6, false)));
    }

    #[test]
    fn items_are_joined_to_the_last_that_waits() {
        let (sender, receiver) = bounded(2);
        let join = |last: &mut u32, item: u32, _| {
            let fits = *last + item <= 5;
            *last += if fits { item } else { 0 };
            (!fits).then_some(item)
        };
        for item in [1, 4, 3, 2] {
            assert_eq!(sender.try_join(item, join), Ok(()));
        }
        assert_eq!(sender.try_join(1, join), Err((1, true)));
        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Some(5), Some(5)));
        assert_eq!(receiver.try_recv(), None);
    }

    #[test]
    fn lingering_ends_when_hurried_and_at_the_end() {
        let (sender, receiver) = bounded(8);
        sender.hurry();
        receiver.linger(Duration::ZERO);

        sender.try_send(1).unwrap();
        sender.hurry();
        receiver.linger(FOREVER);
        assert_eq!(receiver.try_recv(), Some(1));

        let (reached, reach) = bounded(1);
        let lingering = thread::spawn(move || {
            reached.try_send(()).unwrap();
            receiver.linger(FOREVER);
            let received = receiver.try_recv();
            reached.try_send(()).unwrap();
            receiver.linger(FOREVER);
            received
        });
        reach.recv_timeout(FOREVER).unwrap();
        sender.try_send(2).unwrap();
        // It may not linger yet; then it is told that it need not.
        sender.hurry();
        reach.recv_timeout(FOREVER).unwrap();
        drop(sender);
        assert_eq!(lingering.join().unwrap(), Some(2));
    }
}
