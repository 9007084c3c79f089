//! Waking an event loop from other threads.
//!
//! Rule: whatever a thread has left for the loop before it calls [`WakeHandle::wake`], the loop
//! looks for before it next sleeps. A loop that is awake costs no system call.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use mio::{Registry, Token, Waker};

/// The loop is awake, and looks at the state again before it sleeps.
const AWAKE: u8 = 0;
/// The loop sleeps, or is about to.
const ASLEEP: u8 = 1;
/// There is something for the loop that it has not noticed yet.
const NOTIFIED: u8 = 2;

#[derive(Debug)]
struct WakeShared {
    state: AtomicU8,
    waker: Waker,
}

/// Wakes an event loop from any thread, after which the loop calls
/// [`Service::on_wake`](super::Service::on_wake).
///
/// Put what you have where the service will look *before* waking. Wakes coalesce: however many
/// there are, a sleeping loop costs one system call and a busy one costs none.
#[derive(Clone, Debug)]
pub struct WakeHandle {
    shared: Arc<WakeShared>,
}

impl WakeHandle {
    /// Makes the loop call its service's `on_wake` soon.
    pub fn wake(&self) {
        // Always a read-modify-write: it is ordered after what the caller stored before, and before
        // or after the loop's own swap in `take`. Before it, the loop takes the notice and then
        // looks; after it, the notice is still there when the loop next wants to sleep.
        if self.shared.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP
            && let Err(error) = self.shared.waker.wake()
        {
            // The notice stands; the loop finds it at its next tick at the latest.
            log::error!("cannot wake the event loop: {error}");
        }
    }
}

/// The loop's end of its wake handles.
#[derive(Debug)]
pub(super) struct WakeSource {
    shared: Arc<WakeShared>,
}

impl WakeSource {
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<WakeSource> {
        let waker = Waker::new(registry, token)?;
        Ok(WakeSource { shared: Arc::new(WakeShared { state: AtomicU8::new(AWAKE), waker }) })
    }

    pub(super) fn handle(&self) -> WakeHandle {
        WakeHandle { shared: Arc::clone(&self.shared) }
    }

    /// Notes that the loop is about to sleep. `false` when a handle was used, so that it must not.
    pub(super) fn may_sleep(&self) -> bool {
        self.shared
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Notes that the loop is awake, and returns whether a handle was used. To be called before
    /// looking for what the other thread has left.
    pub(super) fn take(&self) -> bool {
        self.shared.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_before_sleeping_prevents_the_sleep_and_is_taken_once() {
        let poll = mio::Poll::new().unwrap();
        let source = WakeSource::new(poll.registry(), Token(0)).unwrap();
        let handle = source.handle();
        assert!(!source.take());
        handle.wake();
        handle.clone().wake();
        assert!(!source.may_sleep());
        assert!(source.take());
        assert!(!source.take());
        assert!(source.may_sleep());
    }

    #[test]
    fn only_the_first_wake_of_a_sleeping_loop_reaches_the_system() {
        let mut poll = mio::Poll::new().unwrap();
        let source = WakeSource::new(poll.registry(), Token(7)).unwrap();
        let mut events = mio::Events::with_capacity(4);
        let now = Some(std::time::Duration::ZERO);

        source.handle().wake();
        poll.poll(&mut events, now).unwrap();
        assert!(events.is_empty(), "a loop that is awake needs no event");
        assert!(source.take());

        assert!(source.may_sleep());
        source.handle().wake();
        poll.poll(&mut events, now).unwrap();
        assert_eq!(events.iter().map(|e| e.token()).collect::<Vec<_>>(), [Token(7)]);
        source.handle().wake();
        poll.poll(&mut events, now).unwrap();
        assert!(events.is_empty(), "the notice already stands");
        assert!(source.take());
    }
}
