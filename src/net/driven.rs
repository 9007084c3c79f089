//! An event loop without a thread of its own: a task of somebody's executor gives it its turns.
//!
//! Whoever has an executor saves two switches of threads for everything that it asks through the
//! loop, and what many tasks have asked travels together: the loop's task comes after those that
//! were to be polled before it.
//!
//! The task polls the loop's descriptor, keeps the time, and is woken by its wake handles.
//! It gives the loop a turn whenever one of them says so.

use std::io;
use std::os::fd::OwnedFd;
use std::task::Waker;
use std::time::Duration;

use super::event_loop::{EventLoop, LoopError, Sleeper, Turns};
use super::service::Service;

/// An [`EventLoop`] that was set up [to be driven](EventLoop::driven), and its service.
pub(crate) struct DrivenLoop<S> {
    sleeper: Sleeper,
    turns: Turns,
    service: S,
    has_started: bool,
}

/// What a turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrivenTurn {
    /// Work is left over, for a turn after everybody else's.
    Again,
    /// Nothing is to be done before a socket is ready or a wake handle is used, or this much time
    /// has passed.
    Sleep(Option<Duration>),
    /// The service has ended the loop.
    Ended,
}

impl<S: Service> DrivenLoop<S> {
    pub(crate) fn new(event_loop: EventLoop, service: S) -> DrivenLoop<S> {
        let EventLoop { sleeper, turns } = event_loop;
        DrivenLoop { sleeper, turns, service, has_started: false }
    }

    /// Does what is due, without sleeping. `is_ready` says whether the descriptor has become
    /// readable since the last turn; `waker` wakes the task.
    ///
    /// # Errors
    /// The system's readiness notification failed.
    pub(crate) fn turn(&mut self, is_ready: bool, waker: &Waker) -> Result<DrivenTurn, LoopError> {
        let DrivenLoop { sleeper, turns, service, has_started } = self;
        if !std::mem::replace(has_started, true) {
            turns.start(service);
        }
        sleeper.look(is_ready)?;
        turns.work(service, sleeper);
        turns.finish(service);
        if turns.net.exiting {
            return Ok(DrivenTurn::Ended);
        }
        let timeout = turns.time_to_sleep();
        if timeout == Some(Duration::ZERO) {
            return Ok(DrivenTurn::Again);
        }
        sleeper.wake.rouses(waker);
        match sleeper.wake.may_sleep() {
            true => Ok(DrivenTurn::Sleep(timeout)),
            false => Ok(DrivenTurn::Again),
        }
    }

    /// A descriptor that is readable while a socket of the loop is ready.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.sleeper.descriptor()
    }

    /// Works with the service when the loop gets no more turns.
    pub(crate) fn close(&mut self, work: impl FnOnce(&mut S)) {
        work(&mut self.service);
    }
}
