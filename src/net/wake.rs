//! Waking an event loop from other threads.
//!
//! Rule: whatever a thread has left for the loop before it calls [`WakeHandle::wake`], the loop
//! looks for before it next sleeps. A loop that is awake costs no system call.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
#[cfg(any(test, feature = "grpc"))]
use std::sync::{Mutex, PoisonError};
#[cfg(any(test, feature = "grpc"))]
use std::task;

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
    rouser: Rouser,
}

/// What ends the sleep of a loop.
#[derive(Debug)]
enum Rouser {
    /// An event among those of its sockets.
    System(Waker),
    /// The task that gives a loop its turns which has no thread of its own; none before the first.
    #[cfg(any(test, feature = "grpc"))]
    Task(Mutex<Option<task::Waker>>),
}

impl Rouser {
    fn rouse(&self) -> io::Result<()> {
        match self {
            Rouser::System(waker) => waker.wake(),
            #[cfg(any(test, feature = "grpc"))]
            Rouser::Task(task) => {
                let task = task.lock().unwrap_or_else(PoisonError::into_inner).clone();
                task.inspect(task::Waker::wake_by_ref);
                Ok(())
            }
        }
    }
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
            && let Err(error) = self.shared.rouser.rouse()
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
        Ok(WakeSource::of(Rouser::System(Waker::new(registry, token)?)))
    }

    /// That of a loop to which a task gives its turns.
    #[cfg(any(test, feature = "grpc"))]
    pub(super) fn of_task() -> WakeSource {
        WakeSource::of(Rouser::Task(Mutex::default()))
    }

    fn of(rouser: Rouser) -> WakeSource {
        WakeSource { shared: Arc::new(WakeShared { state: AtomicU8::new(AWAKE), rouser }) }
    }

    /// The task that is woken from now on. To be called before [`WakeSource::may_sleep`].
    #[cfg(any(test, feature = "grpc"))]
    pub(super) fn rouses(&self, waker: &task::Waker) {
        if let Rouser::Task(task) = &self.shared.rouser {
            let mut task = task.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *task {
                Some(task) => task.clone_from(waker),
                None => *task = Some(waker.clone()),
            }
        }
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
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_is_woken_once_for_each_sleep_and_not_while_it_is_at_work() {
        let (source, woken) = (WakeSource::of_task(), Arc::new(Woken::default()));
        let times = || woken.0.load(Ordering::Relaxed);
        source.handle().wake();
        assert!(source.take(), "a notice from before the task's first turn is not lost");
        source.rouses(&task::Waker::from(Arc::clone(&woken)));
        source.handle().wake();
        assert!(!source.may_sleep());
        assert_eq!(times(), 0);
        assert!(source.take());
        assert!(source.may_sleep());
        source.handle().wake();
        source.handle().wake();
        assert_eq!(times(), 1);
        assert!(source.take());
    }

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
