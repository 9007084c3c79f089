//! Locks and waits that outlive a panicking thread.
//!
//! Every structure behind these locks is left whole between statements, so a thread that panicked
//! while holding one (only a caller's own callback could) has broken nothing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a notice or a time-out; may also wake for nothing, so callers look again.
pub(super) fn wait<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
}

/// One value for the one thread that waits for it. A channel looks a while for what comes before it
/// sleeps; where many threads wait at once, that takes the processor from those that work.
pub(super) struct Handover<T> {
    value: Mutex<Option<T>>,
    given: Condvar,
}

impl<T> Handover<T> {
    pub(super) fn new() -> Handover<T> {
        Handover { value: Mutex::new(None), given: Condvar::new() }
    }

    /// Whoever waits may have left; then the value is dropped with this.
    pub(super) fn give(&self, value: T) {
        *lock(&self.value) = Some(value);
        self.given.notify_one();
    }

    /// Waits for the value until `deadline`.
    pub(super) fn take(&self, deadline: Instant) -> Option<T> {
        let mut value = lock(&self.value);
        loop {
            if let Some(value) = value.take() {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            value = wait(&self.given, value, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_taken_once_whichever_comes_first() {
        let soon = || Instant::now() + Duration::from_secs(60);
        let handover = Handover::new();
        assert_eq!(handover.take(Instant::now()), None::<u8>);
        handover.give(1);
        assert_eq!(handover.take(Instant::now()), Some(1));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| handover.take(soon()));
            handover.give(2);
            assert_eq!(waiting.join().unwrap(), Some(2));
        });
        assert_eq!(handover.take(Instant::now()), None);
    }
}
