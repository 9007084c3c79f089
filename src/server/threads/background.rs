//! The thread that does the work behind the store's writes, so that applying never waits for it:
//! it makes seals durable, and merges what was written before.
//!
//! Rule: after each step that has made a seal durable, the loop hears of it, and has the log cut.
//!
//! What it leaves out: which step is next, which the engine decides.

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use super::super::get::StoreFault;
use super::super::work::Completion;
use super::completions::{CompletionSender, has_ended};
use crate::storage::apply::ApplyError;
use crate::storage::reads::Store;
use crate::workers::thread::DeadlineThread;

/// After so long it looks for work that nobody has told it of: a merge that was given up because
/// the disk was full.
const AGAIN: Duration = Duration::from_secs(1);

/// Tells the thread that there is a seal.
#[derive(Clone)]
pub(super) struct SealedSender(Sender<()>);

/// The thread, which ends when every [`SealedSender`] has gone.
pub(super) struct Background {
    thread: DeadlineThread,
}

impl SealedSender {
    /// Has the thread look for work.
    pub fn notify(&self) {
        // If the channel is full the thread is going to look anyway, and if it has ended it has
        // reported why.
        let _ = self.0.try_send(());
    }
}

impl Background {
    pub fn start(
        store: Store,
        completions: CompletionSender,
    ) -> io::Result<(SealedSender, Background)> {
        let (sender, sealed) = bounded(1);
        let run = move || {
            if let Err(error) = work(&store, &sealed, &completions) {
                let doing = || "writing the store behind the log".to_owned();
                completions.send(StoreFault::of(&error, doing).into());
                completions.wake();
            }
        };
        let thread = DeadlineThread::spawn("acervo-store", run)?;
        Ok((SealedSender(sender), Background { thread }))
    }

    /// Waits for the thread until `deadline`. Returns whether it has ended.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> bool {
        has_ended(self.thread.finish(deadline))
    }
}

/// Works until nobody can seal any more.
fn work(
    store: &Store,
    sealed: &Receiver<()>,
    completions: &CompletionSender,
) -> Result<(), ApplyError> {
    let mut told_index = store.durable_index();
    loop {
        let more = store.work()?;
        let durable_index = store.durable_index();
        if durable_index > told_index {
            told_index = durable_index;
            completions.send(Completion::Checkpointed(durable_index));
            completions.wake();
        }
        let ended = match more {
            true => sealed.try_recv() == Err(TryRecvError::Disconnected),
            false => sealed.recv_timeout(AGAIN) == Err(RecvTimeoutError::Disconnected),
        };
        if ended {
            return Ok(());
        }
    }
}
