//! Something that happens once and for all, and whoever waits for it: threads and futures.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::sync::{lock, wait};

/// The longest that a thread sleeps before it looks again: some systems refuse longer times.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Tells everybody who waits that something has happened.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    state: Mutex<LatchState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LatchState {
    is_open: bool,
    /// By the number of the future that waits, which takes its own out when it is dropped.
    wakers: BTreeMap<u64, Waker>,
    futures: u64,
}

impl Latch {
    /// Tells that it has happened.
    pub(crate) fn open(&self) {
        let mut state = lock(&self.state);
        state.is_open = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        wakers.into_values().for_each(Waker::wake);
    }

    /// Whether it has happened.
    pub(crate) fn is_open(&self) -> bool {
        lock(&self.state).is_open
    }

    /// Waits until it has happened, for no longer than this. Whether it has.
    pub(crate) fn wait_for(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        let mut state = lock(&self.state);
        while !state.is_open {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.unwrap_or(Duration::MAX);
            if left.is_zero() {
                break;
            }
            state = wait(&self.changed, state, left.min(SLEEP_MAX));
        }
        state.is_open
    }

    /// Is done when it has happened.
    pub(crate) fn opened(self: &Arc<Latch>) -> impl Future<Output = ()> + Send + use<> {
        let mut state = lock(&self.state);
        state.futures += 1;
        Opened { number: state.futures, latch: Arc::clone(self) }
    }
}

struct Opened {
    number: u64,
    latch: Arc<Latch>,
}

impl Future for Opened {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.latch.state);
        if state.is_open {
            return Poll::Ready(());
        }
        state.wakers.insert(self.number, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        lock(&self.latch.state).wakers.remove(&self.number);
    }
}
