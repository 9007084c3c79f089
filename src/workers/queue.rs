//! A bounded queue whose receivers park at once.
//!
//! Channels made for throughput spin and yield for a while before they park. The threads of a
//! server pass each write on several times and sleep in between, and a thread that spins takes the
//! processor from the thread that it waits for. This queue is a list under a lock with a condition
//! variable, and notifies only receivers that wait.
//!
//! A sender never waits, because the event loop is one. A receiver may
//! [`linger`](Receiver::linger), for work that is cheaper in batches, and a sender may join an item
//! to the last one that is queued.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// No item came within the time given.
    #[error("nothing came in time")]
    Timeout,
    /// The queue is empty and there is no sender left.
    #[error("nobody is left to send")]
    Disconnected,
}

/// What the ends of one queue share.
struct QueueShared<T> {
    state: Mutex<QueueState<T>>,
    /// Notified for receivers: there is an item, or no sender any more.
    filled: Condvar,
    /// Notified for a lingering receiver: it is to go on, or there is no sender any more.
    hurried: Condvar,
    items_max: usize,
}

struct QueueState<T> {
    items: VecDeque<T>,
    senders: usize,
    receivers: usize,
    /// The number of receivers that wait for an item.
    waiting_receivers: usize,
    lingering: bool,
    /// A requester waits for an item in the queue, or for one that a lingering receiver has taken.
    hurry: bool,
}

impl<T> QueueShared<T> {
    /// No method leaves the state inconsistent at a point where it can panic, so a poisoned lock is
    /// ignored.
    fn state(&self) -> MutexGuard<'_, QueueState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates a queue of at most `items_max` items.
pub fn bounded<T>(items_max: usize) -> (Sender<T>, Receiver<T>) {
    let state = QueueState {
        items: VecDeque::new(),
        senders: 1,
        receivers: 1,
        waiting_receivers: 0,
        lingering: false,
        hurry: false,
    };
    let shared = Arc::new(QueueShared {
        state: Mutex::new(state),
        filled: Condvar::new(),
        hurried: Condvar::new(),
        items_max,
    });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

/// The sending end of a queue. Never waits.
pub struct Sender<T> {
    shared: Arc<QueueShared<T>>,
}

impl<T> Sender<T> {
    /// Joins an item to the last one that is queued, if there is one and `join` accepts it;
    /// otherwise puts it at the end, as [`Sender::try_send`] does. The last argument of `join` says
    /// whether the queue is half full. `join` runs under the queue's lock.
    ///
    /// # Errors
    /// The item, and whether there is a receiver.
    pub fn try_join(
        &self,
        item: T,
        join: impl FnOnce(&mut T, T, bool) -> Option<T>,
    ) -> Result<(), (T, bool)> {
        let mut state = self.shared.state();
        let is_half_full = state.items.len() >= self.shared.items_max / 2;
        let item = match state.items.back_mut() {
            Some(last) => join(last, item, is_half_full),
            None => Some(item),
        };
        let Some(item) = item else { return Ok(()) };
        let has_receiver = state.receivers > 0;
        if state.items.len() >= self.shared.items_max {
            return Err((item, has_receiver));
        }
        self.put(state, item).map_err(|item| (item, has_receiver))
    }

    /// Puts an item at the end of the queue.
    ///
    /// # Errors
    /// The item, if there is no room or no receiver.
    pub fn try_send(&self, item: T) -> Result<(), T> {
        let state = self.shared.state();
        if state.items.len() >= self.shared.items_max {
            return Err(item);
        }
        self.put(state, item)
    }

    fn put(&self, mut state: MutexGuard<'_, QueueState<T>>, item: T) -> Result<(), T> {
        if state.receivers == 0 {
            return Err(item);
        }
        state.items.push_back(item);
        assert!(
            state.items.len() <= self.shared.items_max
                && state.waiting_receivers <= state.receivers,
            "{} items of {}, {} waiting receivers of {}",
            state.items.len(),
            self.shared.items_max,
            state.waiting_receivers,
            state.receivers
        );
        let wake = state.waiting_receivers > 0;
        drop(state);
        if wake {
            self.shared.filled.notify_one();
        }
        Ok(())
    }

    /// Takes back items from the front of the queue, as long as `is_due` says so.
    pub fn take_back(&self, is_due: impl Fn(&T) -> bool) -> Vec<T> {
        let mut state = self.shared.state();
        std::iter::from_fn(|| state.items.pop_front_if(|item| is_due(item))).collect()
    }

    /// Ends the lingering of a receiver, or the next one, because a requester waits for an item
    /// that has been sent.
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

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.state().senders += 1;
        Sender { shared: self.shared.clone() }
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

/// The receiving end of a queue. Each item goes to one receiver.
pub struct Receiver<T> {
    shared: Arc<QueueShared<T>>,
}

impl<T> Receiver<T> {
    /// Takes the first item, waiting until there is one.
    ///
    /// # Errors
    /// [`RecvError::Disconnected`] if the queue is empty and there is no sender.
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_until(None)
    }

    /// Takes the first item, waiting for at most `timeout`.
    ///
    /// # Errors
    /// [`RecvError`] if no item came, or none can come.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
        self.recv_until(Some(Instant::now() + timeout))
    }

    /// Takes the first item, if there is one, without waiting.
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

    /// Lets items gather: waits, without being woken by each item, until `time` has passed, or
    /// [`Sender::hurry`] was called since the last call, or there is no sender any more. Only for a
    /// queue with one receiver.
    pub fn linger(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut state = self.shared.state();
        assert!(!state.lingering && state.receivers == 1, "{} receivers linger", state.receivers);
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
    state: MutexGuard<'a, QueueState<T>>,
    time: Option<Duration>,
) -> MutexGuard<'a, QueueState<T>> {
    match time {
        Some(time) => condition.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
        None => condition.wait(state).unwrap_or_else(PoisonError::into_inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A time that no test reaches.
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
