//! An event loop in which other threads can work for a moment.
//!
//! Its own thread has the sockets and the service but while it sleeps. Meanwhile another thread may
//! queue frames, dial, or set the alarm: what it queues is written before it leaves, and the loop
//! is woken only if it would sleep past what is due. Two threads never work at once: who comes
//! second is refused, and leaves what it has where the service looks when it is woken.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
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
}

impl<S: Service> SharedLoop<S> {
    /// A loop that does not run yet.
    pub fn new(event_loop: EventLoop, service: S) -> SharedLoop<S> {
        let EventLoop { sleeper, turns } = event_loop;
        let wake = sleeper.wake.handle();
        let sleeper = Some(sleeper);
        SharedLoop(Mutex::new(SharedState { turns, service, sleeps_until: None, wake, sleeper }))
    }

    /// As [`EventLoop::run`], on the thread that is the loop's own. A second thread that runs it
    /// returns at once.
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
            state = self.lock();
            let SharedState { turns, service, .. } = &mut *state;
            turns.work(service, &sleeper);
        }
    }

    /// Works with the service at once, unless the loop itself, or another thread, is at work with
    /// it. What it queues is written before this returns.
    pub fn try_with<T>(&self, work: impl FnOnce(&mut S, &mut Net) -> T) -> Option<T> {
        let mut state = match self.0.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
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

    /// Works with the service alone: for one whose loop has ended.
    pub fn with_service<T>(&self, work: impl FnOnce(&mut S) -> T) -> T {
        work(&mut self.lock().service)
    }

    fn lock(&self) -> MutexGuard<'_, SharedState<S>> {
        // A service that has panicked is not called again by its own thread, which has ended.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
