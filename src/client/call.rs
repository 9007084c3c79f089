//! A call between the core and whoever waits for it: an [`Exchange`] made of two closures, and a
//! future for its answer.
//!
//! The client's thread completes the future through its [`Waker`], or another thread does that
//! begins a call, so that any executor can wait for it, and so can a thread ([`wait`]). A future
//! that is dropped cancels its call.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, LocalKey, Thread};
use std::time::{Duration, Instant};

use super::core::{CallId, CallSpec, Exchange, Verdict, judge_unexpected};
use super::error::ClientError;
use super::inbox::{Inbox, foreign};
use super::sync::lock;
use crate::model::{Effect, RequestId};
use crate::wire::message::{Reply, Request};

/// An exchange whose requests `build` makes, with what is to be remembered of each attempt, and
/// whose replies `judge` looks at with that.
pub(super) struct Question<B, J, C, T> {
    build: B,
    judge: J,
    /// What is remembered of the attempts that are under way, by their numbers.
    sent: Vec<(u64, C)>,
    answer: Option<T>,
    promise: Promise<T>,
}

impl<B, J, C, T> Question<B, J, C, T> {
    pub(super) fn new(build: B, judge: J) -> (Question<B, J, C, T>, Arc<Slot<T>>) {
        let (promise, slot) = Promise::new();
        (Question { build, judge, sent: Vec::new(), answer: None, promise }, slot)
    }
}

impl<B, J, C, T> Exchange for Question<B, J, C, T>
where
    B: FnMut(Option<RequestId>) -> (Request, C) + Send,
    J: FnMut(SocketAddr, C, Reply) -> Verdict<T> + Send,
    C: Send,
    T: Send,
{
    fn request(&mut self, attempt: u64, identity: Option<RequestId>) -> Request {
        let (request, context) = (self.build)(identity);
        self.sent.push((attempt, context));
        request
    }

    fn judge(&mut self, attempt: u64, server: SocketAddr, reply: Reply) -> Verdict<()> {
        let Some(at) = self.sent.iter().position(|(sent, _)| *sent == attempt) else {
            return judge_unexpected();
        };
        let (_, context) = self.sent.swap_remove(at);
        (self.judge)(server, context, reply).map(|answer| self.answer = Some(answer))
    }

    fn forget(&mut self, attempt: u64) {
        self.sent.retain(|(sent, _)| *sent != attempt);
    }

    fn end(self: Box<Self>, result: Result<(), ClientError>) {
        let Question { answer, promise, .. } = *self;
        promise.keep(match (result, answer) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(answer)) => Ok(answer),
            (Ok(()), None) => unreachable!("a call is done, and has no answer"),
        });
    }
}

/// Where an answer is left for who waits for it.
pub(super) struct Slot<T>(Mutex<SlotState<T>>);

enum SlotState<T> {
    /// There is no answer yet; who is to be woken by it.
    Open(Option<Waker>),
    Kept(Result<T, ClientError>),
    Taken,
}

/// The answer that is to come. Dropped without one it leaves an error, so that nobody waits for
/// ever.
pub(super) struct Promise<T>(Arc<Slot<T>>);

impl<T> Promise<T> {
    pub(super) fn new() -> (Promise<T>, Arc<Slot<T>>) {
        let slot = Arc::new(Slot(Mutex::new(SlotState::Open(None))));
        (Promise(Arc::clone(&slot)), slot)
    }

    pub(super) fn keep(self, result: Result<T, ClientError>) {
        self.0.fill(result);
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.0.fill(Err(ClientError::Ended));
    }
}

impl<T> Slot<T> {
    fn fill(&self, result: Result<T, ClientError>) {
        let mut state = lock(&self.0);
        let SlotState::Open(waker) = &mut *state else { return };
        let waker = waker.take();
        *state = SlotState::Kept(result);
        drop(state);
        if let Some(waker) = waker {
            foreign(|| waker.wake());
        }
    }
}

/// Calls end by their deadlines, unless something holds up the thread that brings the answers. Who
/// waits for one gives it up this much later: far more than a busy machine is ever late.
const CALL_OVERDUE_GRACE: Duration = Duration::from_secs(2);

/// When a call is over whatever its thread does.
pub(super) struct Overdue {
    /// `None` in the simulation, which has no thread.
    pub(super) at: Option<Instant>,
    pub(super) timeout: Duration,
    pub(super) is_write: bool,
}

impl Overdue {
    /// That of a call with this deadline.
    pub(super) fn after(deadline: Option<Instant>, spec: &CallSpec) -> Overdue {
        let CallSpec { timeout, is_write, .. } = *spec;
        Overdue { is_write, ..Overdue::of_pause(deadline, timeout) }
    }

    /// That of a pause which ends by the deadline.
    pub(super) fn of_pause(deadline: Option<Instant>, timeout: Duration) -> Overdue {
        let at = deadline.map(|deadline| deadline + CALL_OVERDUE_GRACE);
        Overdue { at, timeout, is_write: false }
    }

    fn error(&self) -> ClientError {
        let last = "what is done with another answer holds up this client".to_owned();
        let effect = self.is_write.then_some(Effect::MayBeDone);
        ClientError::TimedOut { timeout: self.timeout, last, effect }
    }
}

/// A call that was begun. Dropping it cancels the call.
pub(super) struct CallFuture<T> {
    pub(super) slot: Arc<Slot<T>>,
    pub(super) id: CallId,
    pub(super) overdue: Overdue,
    /// `None` when the call could not be begun.
    pub(super) inbox: Option<Arc<Inbox>>,
}

impl<T> Future for CallFuture<T> {
    type Output = Result<T, ClientError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.slot.0);
        match &mut *state {
            SlotState::Open(waker) => {
                if let Some(at) = self.overdue.at.filter(|_| is_waiting()) {
                    if at <= Instant::now() {
                        return Poll::Ready(Err(self.overdue.error()));
                    }
                    WAITS_UNTIL.set(WAITS_UNTIL.get().max(Some(at)));
                }
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            SlotState::Kept(_) => match std::mem::replace(&mut *state, SlotState::Taken) {
                SlotState::Kept(result) => Poll::Ready(result),
                SlotState::Open(_) | SlotState::Taken => unreachable!("it was looked at"),
            },
            SlotState::Taken => panic!("a future is polled that has been completed"),
        }
    }
}

impl<T> Drop for CallFuture<T> {
    fn drop(&mut self) {
        let is_open = matches!(&*lock(&self.slot.0), SlotState::Open(_));
        if let (true, Some(inbox)) = (is_open, self.inbox.take()) {
            inbox.cancel(self.id);
        }
    }
}

thread_local! {
    /// This thread is at work with a client's calls, and so the one that brings answers: nobody may
    /// wait for them on it.
    static IS_DRIVER: Cell<bool> = const { Cell::new(false) };
    /// This thread is going to wait for the call that it begins.
    static IS_WAITING: Cell<bool> = const { Cell::new(false) };
    /// When the calls that this thread waits for are over whatever the client's thread does.
    static WAITS_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
    static UNPARK: Waker = Waker::from(Arc::new(Unpark(thread::current())));
}

/// Does what a client's own thread does.
pub(super) fn as_driver<T>(work: impl FnOnce() -> T) -> T {
    with_flag(&IS_DRIVER, true, work)
}

/// Works with the flag set like this, and sets it back, even after a panic.
fn with_flag<T>(flag: &'static LocalKey<Cell<bool>>, value: bool, work: impl FnOnce() -> T) -> T {
    struct Restore(&'static LocalKey<Cell<bool>>, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(flag, flag.replace(value));
    work()
}

pub(super) fn is_driver() -> bool {
    IS_DRIVER.get()
}

pub(super) fn is_waiting() -> bool {
    IS_WAITING.get()
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread for calls, which end by their deadlines.
pub(super) fn wait<T>(
    calls: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    if is_driver() {
        return Err(ClientError::WouldBlock);
    }
    let mut calls = pin!(calls);
    let waker = UNPARK.with(Waker::clone);
    let mut cx = Context::from_waker(&waker);
    loop {
        WAITS_UNTIL.set(None);
        let poll = with_flag(&IS_WAITING, true, || calls.as_mut().poll(&mut cx));
        if let Poll::Ready(result) = poll {
            return result;
        }
        // Also when it was woken before.
        match WAITS_UNTIL.get() {
            Some(until) => thread::park_timeout(until.saturating_duration_since(Instant::now())),
            None => thread::park(),
        }
    }
}
