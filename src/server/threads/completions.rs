//! The way from the threads of a server to its event loop, and how their ends are taken in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::super::work::Completion;
use crate::net::WakeHandle;
use crate::workers::thread::ShutDownError;

/// The way from the threads to the event loop: one channel, and one wake.
#[derive(Clone)]
pub(super) struct CompletionSender {
    completions: Sender<Completion>,
    wake: WakeHandle,
    awaited: Awaited,
}

/// Whether the event loop waits for what the applier does. If not, news of that alone are no reason
/// to wake it: it takes them in when it is awake anyway, at its next tick at the latest.
#[derive(Clone, Default)]
pub(super) struct Awaited(Arc<AtomicBool>);

impl Awaited {
    /// The event loop is about to sleep, and waits for it. What was put on the channel before it
    /// has to look for afterwards: of that nobody may wake it.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

impl CompletionSender {
    /// A channel to the event loop that `wake` wakes. It has no bound of its own: completions are
    /// as many as pieces of work, which the queues of the threads bound.
    pub fn new(wake: WakeHandle) -> (CompletionSender, Receiver<Completion>) {
        let (completions, received) = unbounded();
        (CompletionSender { completions, wake, awaited: Awaited::default() }, received)
    }

    /// Puts a completion on the channel. It is lost only when the event loop has ended.
    pub fn send(&self, completion: Completion) {
        let _ = self.completions.send(completion);
    }

    /// Wakes the event loop, which then takes in what is on the channel.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// Wakes the event loop if it waits for what was put on the channel.
    pub fn wake_if_awaited(&self) {
        // Either this sees that it waits, or the loop sees what is on the channel.
        fence(Ordering::SeqCst);
        if self.awaited.0.swap(false, Ordering::SeqCst) {
            self.wake.wake();
        }
    }

    /// What the event loop says that it waits.
    pub fn awaited(&self) -> Awaited {
        self.awaited.clone()
    }
}

/// Whether a thread has ended, if only by a panic, which is logged.
pub(super) fn has_ended(finished: Result<(), ShutDownError>) -> bool {
    match finished {
        Ok(()) => true,
        Err(ShutDownError::Late) => false,
        Err(panicked @ ShutDownError::Panicked(_)) => {
            log::error!("{panicked}");
            true
        }
    }
}
