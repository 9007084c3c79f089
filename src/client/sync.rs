//! Locks and waits that outlive a panicking thread.
//!
//! Every structure behind these locks is left whole between statements, so a thread that panicked
//! while holding one (only a caller's own callback could) has broken nothing.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a notice or a time-out; may also wake for nothing, so callers look again.
pub(crate) fn wait<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
}

/// Values for the one thread that waits for them. A channel looks a while for what comes before it
/// sleeps; where many threads wait at once, that takes the processor from those that work.
pub(super) struct Mailbox<T> {
    values: Mutex<VecDeque<T>>,
    given: Condvar,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Mailbox<T> {
        Mailbox { values: Mutex::default(), given: Condvar::new() }
    }

    /// Whoever waits may have left; then the value is dropped with this.
    pub(super) fn give(&self, value: T) {
        lock(&self.values).push_back(value);
        self.given.notify_one();
    }

    /// Waits for the next value until `deadline`.
    pub(super) fn take(&self, deadline: Instant) -> Option<T> {
        let mut values = lock(&self.values);
        loop {
            if let Some(value) = values.pop_front() {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            values = wait(&self.given, values, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_taken_once_in_order_whichever_comes_first() {
        let soon = || Instant::now() + Duration::from_secs(60);
        let mailbox = Mailbox::new();
        assert_eq!(mailbox.take(Instant::now()), None::<u8>);
        mailbox.give(1);
        mailbox.give(2);
        assert_eq!(mailbox.take(Instant::now()), Some(1));
        assert_eq!(mailbox.take(Instant::now()), Some(2));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| mailbox.take(soon()));
            mailbox.give(3);
            assert_eq!(waiting.join().unwrap(), Some(3));
        });
        assert_eq!(mailbox.take(Instant::now()), None);
    }
}
