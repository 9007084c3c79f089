//! What a watch has been shown and its reader has not taken: the one thing that the client's thread
//! and the reader of a watch share.
//!
//! The thread puts whole frames in, the reader takes events out, and each wakes the other. A queue
//! is bounded by the credit that the server is given for it, and all queues of a client by
//! [`CLIENT_WATCH_BYTES_MAX`](crate::limits::CLIENT_WATCH_BYTES_MAX): beyond, the longest ones are
//! [`parked`](EventQueue::park). Of a parked queue the frames that nobody has begun to take are
//! gone, and each frame has with it how far the watch had come before, so that the watch goes on
//! there when its reader comes back for more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::Waker;
use std::time::Instant;

use super::following::{Following, WatchEvent};
use crate::client::ClientError;
use crate::client::inbox::foreign;
use crate::client::sync::lock;
use crate::limits::WATCH_CREDIT_BYTES_MAX;
use crate::model::Timestamp;

/// So much credit is given back at once: a frame for each event would cost more than the event.
const CREDIT_BYTES_MIN: u32 = WATCH_CREDIT_BYTES_MAX / 4;

/// What all watches of a client have together.
#[derive(Debug, Default)]
pub(in crate::client) struct WatchTotals {
    /// Watches that were begun and not dropped.
    pub(super) watches: AtomicUsize,
    /// Bytes, as credit counts them, that were read and not taken.
    held_bytes: AtomicUsize,
}

impl WatchTotals {
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }
}

/// The events of one frame.
struct QueuedFrame {
    events: VecDeque<WatchEvent>,
    /// Credit that the server gets back for it.
    credit_bytes: u32,
    /// How far the watch had come before it.
    before: Following,
    /// Everything up to this version was told with it, or before.
    up_to: Option<Timestamp>,
}

/// The queue of one watch.
pub(super) struct EventQueue {
    state: Mutex<QueueState>,
    /// There is an event, or an error.
    filled: Condvar,
    totals: Arc<WatchTotals>,
}

#[derive(Default)]
struct QueueState {
    frames: VecDeque<QueuedFrame>,
    /// Of the first frame an event was taken.
    is_first_begun: bool,
    queued_bytes: u32,
    /// Credit of frames that were taken, which the server has not been given back.
    taken_bytes: u32,
    /// Everything up to this version was taken.
    up_to: Option<Timestamp>,
    /// Nothing comes until the reader wants more.
    is_parked: bool,
    /// The client's thread has been told to look at this queue, and has not yet.
    is_thread_told: bool,
    /// Why the server that was asked last has not begun the watch.
    last_failure: Option<String>,
    error: Option<ClientError>,
    /// Nobody wants any more events.
    is_over: bool,
    /// A server has said where the watch begins.
    has_begun: bool,
    waker: Option<Waker>,
}

/// What a reader finds.
pub(super) enum Taken {
    /// An event or an error; `None` after an error.
    Next(Option<Result<WatchEvent, ClientError>>),
    /// Something is to be waited for.
    Nothing,
}

impl EventQueue {
    pub(super) fn new(totals: Arc<WatchTotals>) -> EventQueue {
        EventQueue { state: Mutex::default(), filled: Condvar::new(), totals }
    }

    /// Takes what comes next, and says whether the client's thread is to be told that something was
    /// taken. A reader who waits leaves `waker`.
    pub(super) fn take(&self, waker: Option<&Waker>) -> (Taken, bool) {
        let mut state = lock(&self.state);
        let taken = self.take_event(&mut state);
        if let (Taken::Nothing, Some(waker)) = (&taken, waker) {
            state.waker = Some(waker.clone());
        }
        (taken, state.is_thread_to_be_told())
    }

    /// Waits until there is something to take, until then at most. `false`: nothing came.
    pub(super) fn wait(&self, until: Option<Instant>) -> bool {
        let mut state = lock(&self.state);
        while state.is_to_be_waited_for() {
            state = match until {
                None => self.filled.wait(state).unwrap_or_else(|e| e.into_inner()),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.filled.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0
                }
            };
        }
        true
    }

    fn take_event(&self, state: &mut QueueState) -> Taken {
        if let Some(frame) = state.frames.front_mut() {
            let event = frame.events.pop_front().expect("a frame without events is not queued");
            state.is_first_begun = true;
            if frame.events.is_empty()
                && let Some(frame) = state.frames.pop_front()
            {
                state.is_first_begun = false;
                state.queued_bytes -= frame.credit_bytes;
                state.taken_bytes += frame.credit_bytes;
                state.up_to = frame.up_to;
                self.released(frame.credit_bytes);
            }
            return Taken::Next(Some(Ok(event)));
        }
        if let Some(error) = state.error.take() {
            state.is_over = true;
            return Taken::Next(Some(Err(error)));
        }
        if state.is_over { Taken::Next(None) } else { Taken::Nothing }
    }

    fn released(&self, bytes: u32) {
        self.totals.held_bytes.fetch_sub(bytes as usize, Ordering::Relaxed);
    }

    /// Whether the watch has begun, or never will; if not, `waker` is woken when that changes.
    pub(super) fn has_begun(&self, waker: &Waker) -> bool {
        let mut state = lock(&self.state);
        let has_begun = state.has_begun || state.error.is_some();
        if !has_begun {
            state.waker = Some(waker.clone());
        }
        has_begun
    }

    pub(super) fn take_last_failure(&self) -> Option<String> {
        lock(&self.state).last_failure.take()
    }

    /// Everything up to this version was taken.
    pub(super) fn up_to(&self) -> Option<Timestamp> {
        lock(&self.state).up_to
    }

    /// The reader is gone: nothing is kept for it any more.
    pub(super) fn end(&self) {
        let mut state = lock(&self.state);
        state.is_over = true;
        state.frames.clear();
        self.released(std::mem::take(&mut state.queued_bytes));
    }

    // What follows is for the client's thread.

    /// Notes why no server has begun the watch yet.
    pub(super) fn failed(&self, why: &str) {
        lock(&self.state).last_failure = Some(why.to_owned());
    }

    /// The watch can never go on. Events that were queued are taken first.
    pub(super) fn break_off(&self, error: ClientError) {
        let mut state = lock(&self.state);
        if !state.is_over {
            state.error.get_or_insert(error);
        }
        self.wake(state);
    }

    /// The credit with which a server is asked to begin the watch: as much as there is room for.
    /// `None`: there is none, and so it is parked.
    pub(super) fn credit_to_begin(&self) -> Option<u32> {
        let mut state = lock(&self.state);
        let credit_bytes = WATCH_CREDIT_BYTES_MAX.saturating_sub(state.queued_bytes);
        state.is_parked = credit_bytes == 0;
        state.taken_bytes = 0;
        (credit_bytes > 0).then_some(credit_bytes)
    }

    /// A server has begun the watch. Everything up to this version was told before.
    pub(super) fn begun(&self, up_to: Option<Timestamp>) {
        let mut state = lock(&self.state);
        state.came_to(up_to);
        if !std::mem::replace(&mut state.has_begun, true) {
            self.wake(state);
        }
    }

    /// Everything up to this version was shown.
    pub(super) fn came_to(&self, up_to: Option<Timestamp>) {
        lock(&self.state).came_to(up_to);
    }

    /// Queues the events of a frame. `before` and `up_to` say how far the watch had come before it,
    /// and has now.
    pub(super) fn show(
        &self,
        events: Vec<WatchEvent>,
        credit_bytes: u32,
        before: Following,
        up_to: Option<Timestamp>,
    ) {
        let mut state = lock(&self.state);
        if state.is_over {
            return;
        }
        if events.is_empty() {
            // All of it was known.
            state.taken_bytes += credit_bytes;
            return state.came_to(up_to);
        }
        state.queued_bytes += credit_bytes;
        self.totals.held_bytes.fetch_add(credit_bytes as usize, Ordering::Relaxed);
        let events = events.into();
        state.frames.push_back(QueuedFrame { events, credit_bytes, before, up_to });
        self.wake(state);
    }

    /// The credit that the server is to be given now, if it is worth a frame.
    pub(super) fn take_credit(&self) -> Option<u32> {
        let mut state = lock(&self.state);
        let is_enough = state.taken_bytes >= CREDIT_BYTES_MIN;
        is_enough.then(|| std::mem::take(&mut state.taken_bytes))
    }

    /// The client's thread has been told, and looks. Whether the reader of a parked watch wants
    /// more.
    pub(super) fn look(&self) -> bool {
        let mut state = lock(&self.state);
        state.is_thread_told = false;
        state.is_parked && state.frames.is_empty()
    }

    /// Nothing is to come until the reader has taken all of it.
    pub(super) fn stop(&self) {
        lock(&self.state).is_parked = true;
    }

    /// Bytes that parking this queue would free.
    pub(super) fn bytes_to_park(&self) -> u32 {
        let state = lock(&self.state);
        let begun = state.frames.front().filter(|_| state.is_first_begun);
        state.queued_bytes - begun.map_or(0, |frame| frame.credit_bytes)
    }

    /// Forgets what nobody has begun to take. Returns how far the watch has come without it.
    pub(super) fn park(&self) -> Option<Following> {
        let mut state = lock(&self.state);
        // Only a frame that is still there is begun.
        let kept = usize::from(state.is_first_begun);
        let forgotten = state.frames.split_off(kept);
        let bytes: u32 = forgotten.iter().map(|frame| frame.credit_bytes).sum();
        state.queued_bytes -= bytes;
        state.is_parked = true;
        self.released(bytes);
        forgotten.into_iter().next().map(|frame| frame.before)
    }

    fn wake(&self, mut state: MutexGuard<'_, QueueState>) {
        let waker = state.waker.take();
        drop(state);
        self.filled.notify_all();
        if let Some(waker) = waker {
            foreign(|| waker.wake());
        }
    }
}

impl QueueState {
    /// Nothing is there, and whoever brings more knows that it is wanted.
    fn is_to_be_waited_for(&self) -> bool {
        let is_empty = self.frames.is_empty() && self.error.is_none() && !self.is_over;
        is_empty && (!self.is_parked || self.is_thread_told)
    }

    fn came_to(&mut self, up_to: Option<Timestamp>) {
        match self.frames.back_mut() {
            Some(last) => last.up_to = up_to,
            None => self.up_to = up_to,
        }
    }

    /// Whether the client's thread has something to do for this watch that it does not know of.
    fn is_thread_to_be_told(&mut self) -> bool {
        let wants_more = self.is_parked && self.frames.is_empty();
        let gives_credit = self.taken_bytes >= CREDIT_BYTES_MIN && !self.is_parked;
        let tells = (wants_more || gives_credit) && !self.is_over && !self.is_thread_told;
        self.is_thread_told |= tells;
        tells
    }
}
