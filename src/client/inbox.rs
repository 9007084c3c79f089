//! The way to a client's thread: what is left there for it to do.
//!
//! Commands are taken together, in their order. What is left is bounded by those who leave it: each
//! call is here or in the core, each report belongs to a call, a future that was spawned is here at
//! most as often as something wakes it, and of each watch its beginning, its end, and that
//! somebody is to look at it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use super::call::Promise;
use super::core::{CallId, CallSpec, Core, Exchange, Report};
use super::error::{ClientError, ServerFailure};
use super::sync::lock;
use super::watch::{Multiplexer, WatchOrder};
use crate::net::WakeHandle;

/// What is left for a client's thread. It holds no more than those who have left something: a
/// call's place is in it or in the core, and whoever cancels a call that is still here takes it
/// out.
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    wake: Option<WakeHandle>,
}

#[derive(Default)]
struct InboxState {
    commands: Vec<Command>,
    /// No client is left.
    is_leaving: bool,
    /// The thread has ended.
    is_closed: bool,
}

pub(super) enum Command {
    Begin { id: CallId, spec: CallSpec, exchange: Box<dyn Exchange> },
    Cancel(CallId),
    HintLeader(Option<usize>),
    Pause { longest: Duration, promise: Promise<()> },
    Poll(Arc<Task>),
    Watch(WatchOrder),
    PassedOver { report: Report, failure: ServerFailure },
}

impl Command {
    /// Does on the client's thread what was left for it.
    pub(super) fn perform(self, core: &mut Core, watches: &mut Multiplexer, now: Duration) {
        match self {
            Command::Begin { id, spec, exchange } => core.begin(now, id, spec, exchange),
            Command::Cancel(id) => core.cancel(now, id),
            Command::HintLeader(leader) => core.hint_leader(leader),
            Command::Pause { longest, promise } => core.pause(now, longest, promise),
            Command::Poll(task) => task.poll(),
            Command::Watch(order) => watches.order(now, order),
            Command::PassedOver { report, failure } => {
                foreign(|| report(failure));
            }
        }
    }
}

impl Inbox {
    /// `wake` wakes the thread; with `None` somebody looks by himself, as the simulation does.
    pub(super) fn new(wake: Option<WakeHandle>) -> Inbox {
        Inbox { state: Mutex::default(), wake }
    }

    /// Leaves a command, or gives it back when nobody takes it any more.
    pub(super) fn push(&self, command: Command) -> Result<(), Command> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(command);
        }
        state.commands.push(command);
        drop(state);
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake.wake();
        }
    }

    /// Takes what is left here, in exchange for an empty list. Returns whether no client is left.
    pub(super) fn take(&self, commands: &mut Vec<Command>) -> bool {
        let mut state = lock(&self.state);
        std::mem::swap(&mut state.commands, commands);
        state.is_leaving
    }

    /// Nobody waits for a call any more.
    pub(super) fn cancel(&self, id: CallId) {
        let mut state = lock(&self.state);
        let is_it =
            |command: &Command| matches!(command, Command::Begin { id: begun, .. } if *begun == id);
        let unbegun = state.commands.iter().rposition(is_it).map(|at| state.commands.remove(at));
        drop(state);
        if unbegun.is_none() {
            // If the thread has ended there is nothing to cancel.
            let _ = self.push(Command::Cancel(id));
        }
    }

    /// Whether it takes commands and has none, so that one more may be done at once.
    pub(super) fn is_free(&self) -> bool {
        let state = lock(&self.state);
        state.commands.is_empty() && !state.is_closed
    }

    /// Has the thread poll a future until it is completed.
    ///
    /// # Errors
    /// There is no thread any more.
    pub(super) fn spawn(
        self: &Arc<Inbox>,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ClientError> {
        let future = Mutex::new(Some(Box::pin(future) as Pin<Box<_>>));
        let task = Arc::new(Task { future, inbox: Arc::clone(self) });
        self.push(Command::Poll(task)).map_err(|_| ClientError::Ended)
    }

    /// No client is left.
    pub(super) fn leave(&self) {
        lock(&self.state).is_leaving = true;
        self.wake();
    }
}

/// A future that the client's thread polls.
pub(super) struct Task {
    /// `None` once it is completed.
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    inbox: Arc<Inbox>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let inbox = Arc::clone(&self.inbox);
        // If the thread has ended, so have the calls that the future waits for.
        let _ = inbox.push(Command::Poll(self));
    }
}

impl Task {
    fn poll(self: &Arc<Task>) {
        let waker = Waker::from(Arc::clone(self));
        let mut future = lock(&self.future);
        let Some(polled) = &mut *future else { return };
        let poll = foreign(|| polled.as_mut().poll(&mut Context::from_waker(&waker)));
        if poll.is_none_or(|poll| poll.is_ready()) {
            *future = None;
        }
    }
}

/// Does what somebody else's code does; `None` when that panics, which ends nothing but itself: the
/// thread is everybody's.
pub(super) fn foreign<T>(work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.inspect_err(|_| log::error!("what is done with an answer has panicked")).ok()
}

/// The thread's end of an inbox.
pub(super) struct Open(pub(super) Arc<Inbox>);

impl Open {
    /// Whatever is in it goes, and nothing more is taken.
    pub(super) fn close(&self) {
        let mut state = lock(&self.0.state);
        state.is_closed = true;
        let commands = std::mem::take(&mut state.commands);
        drop(state);
        drop(commands);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close();
    }
}
