//! The way from the threads of a server to its event loop, and how their ends are taken in.

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::super::work::Completion;
use crate::net::WakeHandle;
use crate::workers::thread::ShutDownError;

/// The way from the threads to the event loop: one channel, and one wake.
#[derive(Clone)]
pub(super) struct CompletionSender {
    completions: Sender<Completion>,
    wake: WakeHandle,
}

impl CompletionSender {
    /// A channel to the event loop that `wake` wakes. It has no bound of its own: completions are
    /// as many as pieces of work, which the queues of the threads bound.
    pub fn new(wake: WakeHandle) -> (CompletionSender, Receiver<Completion>) {
        let (completions, received) = unbounded();
        (CompletionSender { completions, wake }, received)
    }

    /// Puts a completion on the channel. It is lost only when the event loop has ended.
    pub fn send(&self, completion: Completion) {
        let _ = self.completions.send(completion);
    }

    /// Wakes the event loop, which then takes in what is on the channel.
    pub fn wake(&self) {
        self.wake.wake();
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
