//! An event loop in which other threads can work for a moment.
//!
//! The loop's own thread owns the sockets and the service, except while it sleeps. Meanwhile
//! another thread may queue frames, dial, or set the alarm: what it queues is written before it
//! leaves, and the loop is woken only if it would sleep past what is due. Two threads never work at
//! once: the second is refused, and queues its work where the service finds it when woken.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::event_loop::{EventLoop, LoopError, Sleeper, Turns};
use super::handle::Net;
use super::service::Service;
use super::wake::WakeHandle;

/// An event loop and its service, with which other threads can work for a moment while the loop
/// sleeps: whoever waits for an answer anyway sends the question without waking the loop's thread.
pub struct SharedLoop<S>(Mutex<SharedState<S>>);

struct SharedState<S> {
    turns: Turns,
    service: S,
    /// Until when the loop sleeps, unless it is woken; `None` for ever.
    sleeps_until: Option<Instant>,
    wake: WakeHandle,
    /// Taken by the thread that runs the loop.
    sleeper: Option<Sleeper>,
    /// The loop has ended.
    is_closed: bool,
}

/// Wakes the loop when whoever works with it panics, so that its own thread sees that.
struct WakeOnPanic(WakeHandle);

impl Drop for WakeOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.wake();
        }
    }
}

impl<S: Service> SharedLoop<S> {
    /// A loop that does not run yet.
    pub fn new(event_loop: EventLoop, service: S) -> SharedLoop<S> {
        let EventLoop { sleeper, turns } = event_loop;
        let wake = sleeper.wake.handle();
        let sleeper = Some(sleeper);
        let (sleeps_until, is_closed) = (None, false);
        let state = SharedState { turns, service, sleeps_until, wake, sleeper, is_closed };
        SharedLoop(Mutex::new(state))
    }

    /// As [`EventLoop::run`], on the thread that is the loop's own. A second thread that runs it
    /// returns at once. It ends, too, when a thread has panicked in [`SharedLoop::try_with`]:
    /// nobody knows then in what state the service is.
    pub fn run(&self) -> Result<(), LoopError> {
        let mut state = self.lock();
        let Some(mut sleeper) = state.sleeper.take() else { return Ok(()) };
        let SharedState { turns, service, .. } = &mut *state;
        turns.start(service);
        loop {
            let SharedState { turns, service, .. } = &mut *state;
            turns.finish(service);
            if turns.net.exiting {
                return turns.leave(&mut sleeper);
            }
            let timeout = turns.time_to_sleep();
            state.sleeps_until = timeout.map(|timeout| Instant::now() + timeout);
            drop(state);
            sleeper.sleep(timeout)?;
            let Ok(woken) = self.0.lock() else { return Ok(()) };
            state = woken;
            let SharedState { turns, service, .. } = &mut *state;
            turns.work(service, &sleeper);
        }
    }

    /// Works with the service at once, unless the loop itself, or another thread, is at work with
    /// it, or the loop has ended. What it queues is written before this returns.
    pub fn try_with<T>(&self, work: impl FnOnce(&mut S, &mut Net) -> T) -> Option<T> {
        // The state of a service that has panicked is unknown.
        let mut state = self.0.try_lock().ok().filter(|state| !state.is_closed)?;
        let _wakes = WakeOnPanic(state.wake.clone());
        let SharedState { turns, service, sleeps_until, wake, .. } = &mut *state;
        turns.net.now = turns.clock.at(Instant::now());
        let done = work(service, &mut turns.net);
        turns.finish(service);
        let wakes_at = turns.time_to_sleep().map(|timeout| turns.net.now + timeout);
        // A loop that wakes too early looks again and sleeps on.
        let is_late = wakes_at.is_some_and(|at| sleeps_until.is_none_or(|until| at < until));
        if is_late || turns.net.exiting {
            wake.wake();
        }
        Some(done)
    }

    /// The loop has ended: nobody else works with the service any more, after `work`.
    pub fn close<T>(&self, work: impl FnOnce(&mut S) -> T) -> T {
        let mut state = self.lock();
        state.is_closed = true;
        work(&mut state.service)
    }

    fn lock(&self) -> MutexGuard<'_, SharedState<S>> {
        // Whoever comes after a panic only closes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, mpsc};
    use std::thread;
    use std::time::Duration;

    use super::super::connection::CloseReason;
    use super::super::connections::ConnectionId;
    use super::*;
    use crate::net::LoopConfig;

    /// A service that has no connections.
    struct Idle;

    impl Service for Idle {
        fn on_accepted(&mut self, _: &mut Net, _: ConnectionId, _: SocketAddr) {}
        fn on_frame(&mut self, _: &mut Net, _: ConnectionId, _: &[u8]) {}
        fn on_closed(&mut self, _: &mut Net, _: ConnectionId, _: &CloseReason) {}
    }

    #[test]
    fn a_panic_of_a_thread_that_works_with_it_ends_the_loop() {
        let event_loop = EventLoop::new(LoopConfig::default(), None).unwrap();
        let shared = Arc::new(SharedLoop::new(event_loop, Idle));
        let (running, failing) = (Arc::clone(&shared), Arc::clone(&shared));
        let (ends, ended) = mpsc::channel();
        let thread = thread::spawn(move || ends.send(running.run().is_ok()));
        let fails = thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(30);
            while Instant::now() < deadline {
                // It is refused while the loop itself is at work.
                failing.try_with(|_, _| panic!("planted"));
                thread::yield_now();
            }
        });
        assert!(fails.join().is_err());
        assert_eq!(ended.recv_timeout(Duration::from_secs(30)), Ok(true));
        thread.join().unwrap().unwrap();
        assert!(shared.try_with(|_, _| ()).is_none(), "nobody works with it any more");
        assert_eq!(shared.close(|_| 7), 7);
        assert!(shared.try_with(|_, _| ()).is_none());
    }
}
