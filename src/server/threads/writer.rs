//! A thread that does its work in order, from a bounded queue: the log writer and the applier.
//!
//! A disk may hang for as long as it likes: the loop never waits for it. Consensus limits the bytes
//! that are under way and not their pieces, of which there is one for each small write; so what
//! waits is joined to longer pieces, of which there are few ([`WRITER_QUEUE_MAX`] is never met).

use std::io;
use std::time::Instant;

use super::super::work::Join;
use super::completions::has_ended;
use crate::workers::queue::{self, Receiver, Sender};
use crate::workers::thread::DeadlineThread;

/// Pieces of work waiting for the log writer or the applier. Consensus limits the bytes that are
/// under way, and what waits is joined to long pieces: a hundredth of this is enough for them, and
/// the rest for work on snapshots.
const WRITER_QUEUE_MAX: usize = 64 * 1024;

/// The queue of a writing thread.
pub(super) struct WriterQueue<T> {
    queue: Sender<T>,
}

/// A writing thread and its queue.
pub(super) struct WriterThread<T> {
    queue: WriterQueue<T>,
    thread: DeadlineThread,
}

impl<T: Join> WriterQueue<T> {
    /// Hands over work, without ever waiting.
    ///
    /// # Panics
    /// Panics when the queue is full, since work must not be lost: see the module for why it is
    /// not.
    pub fn push(&self, work: T) {
        // Without a receiver the thread has reported its failure and ended.
        if let Err((_, true)) = self.queue.try_join(work, T::join) {
            panic!("{} pieces of work wait for a writing thread", WRITER_QUEUE_MAX);
        }
    }
}

impl<T: Join + Send + 'static> WriterThread<T> {
    /// Starts a thread that is given the receiving end of the queue.
    pub fn start(
        name: &str,
        run: impl FnOnce(Receiver<T>) + Send + 'static,
    ) -> io::Result<WriterThread<T>> {
        let (queue, work) = queue::bounded(WRITER_QUEUE_MAX);
        let thread = DeadlineThread::spawn(name, move || run(work))?;
        Ok(WriterThread { queue: WriterQueue { queue }, thread })
    }

    /// Hands over work, as [`WriterQueue::push`] does.
    pub fn push(&self, work: T) {
        self.queue.push(work);
    }

    /// The queue, for another thread that hands over work.
    pub fn queue(&self) -> WriterQueue<T> {
        WriterQueue { queue: self.queue.queue.clone() }
    }

    /// Somebody waits for what was handed over.
    pub fn hurry(&self) {
        self.queue.queue.hurry();
    }

    /// Lets the thread finish what it has, and waits for it until `deadline`. Returns whether it
    /// has ended.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> bool {
        let WriterThread { queue, thread } = self;
        drop(queue);
        has_ended(thread.finish(deadline))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::super::work::{LogWork, StoreWork};
    use super::*;
    use crate::limits;
    use crate::model::{HardState, LogBatch, LogEntry, LogIndex};

    /// A writer whose disk hangs: nothing is taken from its queue.
    fn hung<T>() -> (WriterQueue<T>, Receiver<T>) {
        let (queue, work) = queue::bounded(WRITER_QUEUE_MAX);
        (WriterQueue { queue }, work)
    }

    fn entry(index: LogIndex) -> LogEntry {
        LogEntry { term: 1, index, data: Bytes::from_static(&[7; 100]) }
    }

    /// As many entries of a hundred bytes as may be committed and not applied, each in a piece of
    /// its own.
    const ENTRIES: LogIndex = (limits::UNAPPLIED_BYTES_MAX / 164) as LogIndex;

    #[test]
    fn an_engine_that_hangs_holds_up_nobody_who_hands_small_writes_over() {
        let (writer, work) = hung();
        for index in 1..=ENTRIES {
            writer.push(StoreWork::apply(vec![entry(index)], index == ENTRIES));
        }
        let (mut pieces, mut applied, mut answering) = (0, 0, false);
        while let Some(StoreWork::Apply(piece)) = work.try_recv() {
            let (entries, is_answering) = piece.entries();
            assert_eq!(entries[0].index, applied + 1);
            let last = entries.len() - 1;
            for entry in &entries[..last] {
                assert!(!entry.index.is_multiple_of(limits::STATE_HASH_EVERY));
            }
            let bytes: usize = entries.iter().map(|entry| entry.data.len() + 64).sum();
            assert!(bytes < 2 * limits::APPLY_BYTES_MAX as usize);
            pieces += 1;
            applied = entries[last].index;
            answering |= is_answering;
        }
        assert_eq!((applied, answering), (ENTRIES, true));
        assert!(pieces < WRITER_QUEUE_MAX / 100, "{pieces} pieces");
    }

    /// Each was a piece of its own, and one message may hold as many of them as the queue has
    /// places.
    #[test]
    fn entries_without_data_never_fill_the_queue_of_an_engine_that_hangs() {
        let (writer, work) = hung();
        let mut applied = 0;
        for index in 1..=3 * WRITER_QUEUE_MAX as LogIndex {
            let entry = LogEntry { term: 1, index, data: Bytes::new() };
            writer.push(StoreWork::apply(vec![entry], false));
        }
        while let Some(StoreWork::Apply(piece)) = work.try_recv() {
            let (entries, _) = piece.entries();
            let indices = entries.iter().map(|entry| entry.index);
            assert!(indices.eq(applied + 1..=applied + entries.len() as LogIndex));
            applied += entries.len() as LogIndex;
        }
        assert_eq!(applied, 3 * WRITER_QUEUE_MAX as LogIndex);
    }

    #[test]
    fn a_log_that_hangs_holds_up_nobody_and_nothing_is_replaced_that_should_not_be() {
        let (writer, work) = hung();
        let hard_state = |term| Some(HardState { term, ..HardState::default() });
        let batch = |number, hard_state, entries| {
            writer.push(LogWork::append(LogBatch { number, hard_state, entries }));
        };
        for index in 1..=ENTRIES {
            let term = (index % 1000 == 0).then_some(index / 1000);
            batch(index, term.and_then(hard_state), vec![entry(index)]);
        }
        batch(ENTRIES + 1, hard_state(1_000_000), Vec::new());
        // From here on the log is another one.
        batch(ENTRIES + 2, None, vec![entry(ENTRIES - 5)]);
        let mut batches = Vec::new();
        while let Some(LogWork::Append(batch, bytes)) = work.try_recv() {
            assert!(bytes <= limits::LOG_GROUP_BYTES_MAX);
            batches.push(batch);
        }
        assert!(batches.len() < WRITER_QUEUE_MAX / 100, "{} batches", batches.len());
        let replacing = batches.pop().unwrap();
        assert_eq!((replacing.number, replacing.entries.len()), (ENTRIES + 2, 1));
        let last = batches.last().unwrap();
        assert_eq!((last.number, last.hard_state), (ENTRIES + 1, hard_state(1_000_000)));
        let indices: Vec<_> = batches.iter().flat_map(|b| &b.entries).map(|e| e.index).collect();
        assert_eq!(indices, (1..=ENTRIES).collect::<Vec<_>>());
    }
}
