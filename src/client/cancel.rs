//! Requests that nobody waits for any more.
//!
//! A request blocks the thread that makes it, so its token belongs to the thread while it makes one: whoever calls
//! for somebody else, as the gateway does, sets it around the call.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::limits::CLIENT_CANCEL_LOOK_INTERVAL;

thread_local! {
    static TOKEN: RefCell<Option<CancellationToken>> = const { RefCell::new(None) };
}

/// Ends the requests of a call that has been given up. Clones are the same token.
#[derive(Clone, Debug, Default)]
pub struct CancellationToken(Arc<AtomicBool>);

/// Puts back what held before.
struct Restore(Option<CancellationToken>);

impl Drop for Restore {
    fn drop(&mut self) {
        TOKEN.replace(self.0.take());
    }
}

impl CancellationToken {
    /// Ends the requests made [within](CancellationToken::within) this token, at the latest
    /// [`CLIENT_CANCEL_LOOK_INTERVAL`](crate::limits::CLIENT_CANCEL_LOOK_INTERVAL) later. A write that was sent may
    /// still take effect.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Does something on this thread, whose requests this token can end.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let _restore = Restore(TOKEN.replace(Some(self.clone())));
        work()
    }
}

/// Whether this thread's requests have been cancelled; `None` when nobody can.
pub(super) fn is_cancelled() -> Option<bool> {
    TOKEN.with_borrow(|token| token.as_ref().map(|token| token.0.load(Ordering::Relaxed)))
}

/// How long to wait before `deadline` and the token are to be looked at again; `None` when there is nothing to wait
/// for any more.
pub(super) fn wait_time(deadline: Instant) -> Option<Duration> {
    let left = deadline.checked_duration_since(Instant::now())?;
    match is_cancelled() {
        Some(true) => None,
        Some(false) => Some(left.min(CLIENT_CANCEL_LOOK_INTERVAL)),
        None => Some(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_waited_for_by_who_has_given_up() {
        let soon = Instant::now() + Duration::from_secs(60);
        let token = CancellationToken::default();
        assert!(wait_time(soon).is_some_and(|left| left > CLIENT_CANCEL_LOOK_INTERVAL));
        token.within(|| {
            assert_eq!(wait_time(soon), Some(CLIENT_CANCEL_LOOK_INTERVAL));
            token.cancel();
            assert_eq!(wait_time(soon), None);
        });
    }

    #[test]
    fn a_token_holds_for_its_thread_and_as_long_as_the_call() {
        let (outer, inner) = (CancellationToken::default(), CancellationToken::default());
        assert_eq!(is_cancelled(), None);
        outer.within(|| {
            assert_eq!(is_cancelled(), Some(false));
            inner.cancel();
            inner.within(|| assert_eq!(is_cancelled(), Some(true)));
            assert_eq!(is_cancelled(), Some(false));
            let elsewhere = std::thread::spawn(is_cancelled);
            assert_eq!(elsewhere.join().unwrap(), None);
            outer.cancel();
            assert_eq!(is_cancelled(), Some(true));
        });
        assert_eq!(is_cancelled(), None);
    }
}
