//! The thread of the watches: it drives the hub, and others read the store for it.
//!
//! It waits for no disk and no socket, so that watches that have caught up are shown changes at
//! once whatever others have to read. Its queue takes what the event loop tells it of clients, up
//! to [`CLIENT_INPUTS_MAX`]; everything else in it is bounded by itself. That the state machine has
//! gone on, how much has left for each connection, and what credit each watch is given, is marked
//! beside the queue, however often it is said, and is taken in before what clients ask.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::get::StoreFault;
use super::super::watches::{WatchHub, WatchInput, WatchLimits, WatchOutput, WatchPage, WatchRead};
use super::super::work::Completion;
use super::completions::{CompletionSender, has_ended};
use crate::limits;
use crate::net::ConnectionId;
use crate::storage::apply::ApplyError;
use crate::storage::feed::ChangesError;
use crate::storage::reads::{Store, StoreReadError};
use crate::workers::pool::Workers;
use crate::workers::queue::{self, Receiver, RecvError, Sender};
use crate::workers::thread::DeadlineThread;

/// Requests of clients that the hub has not taken in. Past it they are told to ask again: the hub
/// takes a million a second, and each connection has few requests under way.
const CLIENT_INPUTS_MAX: usize = 64 * 1024;
/// Everything in the queue. The end of a connection is told only where it has asked for something,
/// so that there are as many ends as connections and inputs of clients. Besides there are an answer
/// to each page, the word that something is marked, and the end.
const QUEUE_MAX: usize = 2 * CLIENT_INPUTS_MAX + limits::CONNECTIONS_MAX + 1024;
/// Watches of one connection that may have marks of credit and do not exist: they have just ended.
const CREDITS_SPARE: usize = 1024;
/// Pages that are read at once. Each thread may wait for a disk.
const READERS: usize = 2;
/// How often clients are told how far their watches have come that are shown nothing. A client that
/// begins anew then asks for no more than the changes of this time.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

enum WatchWork {
    Input(WatchInput),
    /// The same from a client, which is counted.
    OfClient(WatchInput),
    /// Something was marked when nothing was.
    Marked,
    Stop,
}

/// What may be said very often, and is taken in once.
#[derive(Default)]
struct WatchMarks {
    applied: bool,
    cut_off: bool,
    sent: HashMap<ConnectionId, usize>,
    /// By the numbers of the watches, as many of each connection as it may have.
    credits: HashMap<ConnectionId, HashMap<u64, u32>>,
}

impl WatchMarks {
    fn is_empty(&self) -> bool {
        !self.applied && !self.cut_off && self.sent.is_empty() && self.credits.is_empty()
    }
}

/// The way to the thread, from any other.
#[derive(Clone)]
pub(super) struct WatchQueue {
    queue: Sender<WatchWork>,
    marks: Arc<Mutex<WatchMarks>>,
    of_clients: Arc<AtomicUsize>,
    store: Store,
}

impl WatchQueue {
    /// The state machine has gone on, or a snapshot has taken its place.
    pub fn applied(&self) {
        if self.is_watched() {
            self.mark(|marks| marks.applied = true);
        }
    }

    /// Whether there are watches.
    pub fn is_watched(&self) -> bool {
        self.store.is_followed()
    }

    fn credit(&self, connection: ConnectionId, watch: u64, bytes: u32, watches: usize) -> bool {
        self.mark(|marks| {
            let credits = marks.credits.entry(connection).or_default();
            let has_room = credits.len() < watches + CREDITS_SPARE;
            match credits.entry(watch) {
                Entry::Occupied(mut credit) => {
                    *credit.get_mut() = credit.get().saturating_add(bytes);
                }
                Entry::Vacant(place) if has_room => _ = place.insert(bytes),
                Entry::Vacant(_) => return false,
            }
            true
        })
    }

    fn mark<T>(&self, mark: impl FnOnce(&mut WatchMarks) -> T) -> T {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = marks.is_empty();
        let marked = mark(&mut marks);
        drop(marks);
        if was_empty {
            self.push(WatchWork::Marked);
        }
        marked
    }

    fn take_marks(&self) -> WatchMarks {
        std::mem::take(&mut *self.marks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, work: WatchWork) {
        // Without a receiver the server ends.
        if let Err((_, true)) = self.queue.try_join(work, |_, work, _| Some(work)) {
            panic!("{QUEUE_MAX} pieces of work wait for the thread of the watches");
        }
    }
}

/// The thread and its queue.
pub(super) struct WatchThread {
    queue: WatchQueue,
    thread: DeadlineThread,
}

impl WatchThread {
    /// Starts the thread, and those that read for it. `seed` is drawn at random. What clients are
    /// shown goes to `outputs`, beside everything else that the event loop is told.
    ///
    /// # Errors
    /// The system did not start a thread.
    pub fn start(
        store: Store,
        seed: u64,
        outputs: crossbeam_channel::Sender<WatchOutput>,
        completions: CompletionSender,
    ) -> io::Result<WatchThread> {
        let (sender, receiver) = queue::bounded(QUEUE_MAX);
        let (marks, of_clients) = Default::default();
        let queue = WatchQueue { queue: sender, marks, of_clients, store: store.clone() };
        let reader = WatchReader { store: store.clone(), completions: completions.clone() };
        let answers = queue.clone();
        let complete = move |input| answers.push(WatchWork::Input(input));
        let readers = Workers::start(
            "acervo-feed",
            READERS,
            READERS * 8,
            complete,
            || {},
            |_| {
                let reader = reader.clone();
                move |read| reader.read(read)
            },
        )?;
        let of_thread = queue.clone();
        let thread = DeadlineThread::spawn("acervo-watch", move || {
            let hub = WatchHub::new(store, seed, WatchLimits::DEFAULT);
            let mut thread = WatcherThread { hub, readers, queue: of_thread, outputs, completions };
            thread.run(&receiver);
            let deadline = Instant::now() + limits::STOP_DISK_TIMEOUT;
            has_ended(thread.readers.finish(deadline));
        })?;
        Ok(WatchThread { queue, thread })
    }

    pub fn queue(&self) -> WatchQueue {
        self.queue.clone()
    }

    /// Hands over what a client asks for. Returns false if too much waits.
    #[must_use]
    pub fn ask(&self, input: WatchInput) -> bool {
        let waiting = self.queue.of_clients.fetch_add(1, Ordering::Relaxed);
        if waiting >= CLIENT_INPUTS_MAX {
            self.queue.of_clients.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.queue.push(WatchWork::OfClient(input));
        true
    }

    /// So much has left for a connection.
    pub fn sent(&self, connection: ConnectionId, bytes: usize) {
        self.queue.mark(|marks| *marks.sent.entry(connection).or_default() += bytes);
    }

    /// A client gives a watch credit; it has begun so many and not ended them. Returns false where
    /// that is for one of many watches that do not exist.
    #[must_use]
    pub fn credit(&self, connection: ConnectionId, watch: u64, bytes: u32, watches: usize) -> bool {
        self.queue.credit(connection, watch, bytes, watches)
    }

    /// No leader has been known for a while.
    pub fn cut_off(&self) {
        self.queue.mark(|marks| marks.cut_off = true);
    }

    /// A connection is gone that has asked for something.
    pub fn closed(&self, connection: ConnectionId) {
        self.queue.push(WatchWork::Input(WatchInput::Closed { connection }));
    }

    /// Ends the thread, and waits for it until `deadline`. Returns whether it has ended.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> bool {
        self.queue.push(WatchWork::Stop);
        has_ended(self.thread.finish(deadline))
    }
}

struct WatcherThread {
    hub: WatchHub,
    readers: Workers<WatchRead>,
    queue: WatchQueue,
    outputs: crossbeam_channel::Sender<WatchOutput>,
    completions: CompletionSender,
}

impl WatcherThread {
    fn run(&mut self, work: &Receiver<WatchWork>) {
        let mut progress_due = Instant::now() + PROGRESS_INTERVAL;
        loop {
            let left = progress_due.saturating_duration_since(Instant::now());
            let received = match self.hub.is_behind() {
                true => work.try_recv(),
                false => match work.recv_timeout(left) {
                    Ok(work) => Some(work),
                    Err(RecvError::Timeout) => None,
                    Err(RecvError::Disconnected) => return,
                },
            };
            self.take_marked();
            match received {
                None | Some(WatchWork::Marked) => {}
                Some(WatchWork::Stop) => return,
                Some(WatchWork::Input(input)) => self.take(input),
                Some(WatchWork::OfClient(input)) => {
                    self.queue.of_clients.fetch_sub(1, Ordering::Relaxed);
                    self.take(input);
                }
            }
            if Instant::now() >= progress_due {
                self.hub.handle(WatchInput::Progress);
                progress_due = Instant::now() + PROGRESS_INTERVAL;
            }
            self.carry_out();
        }
    }

    fn take_marked(&mut self) {
        let WatchMarks { applied, cut_off, sent, credits } = self.queue.take_marks();
        if applied {
            self.hub.handle(WatchInput::Applied);
        }
        for (connection, bytes) in sent {
            self.hub.handle(WatchInput::Sent { connection, bytes });
        }
        for (connection, credits) in credits {
            for (watch, bytes) in credits {
                self.hub.handle(WatchInput::Credit { connection, watch, bytes });
            }
        }
        if cut_off {
            self.hub.handle(WatchInput::CutOff);
        }
    }

    fn take(&mut self, input: WatchInput) {
        if let WatchInput::Read { .. } = input {
            self.readers.completed();
        }
        self.hub.handle(input);
    }

    /// Does what the hub wants done, and wakes the event loop if there is something for it.
    fn carry_out(&mut self) {
        let mut wakes = false;
        for output in self.hub.flush() {
            match output {
                WatchOutput::Read(read) => {
                    // The hub has fewer under way than the readers take.
                    if self.readers.submit(read).is_err() {
                        let failure = "no thread is left to read for watches".to_owned();
                        self.completions.send(Completion::Failed(failure));
                        wakes = true;
                    }
                }
                output => {
                    // Lost only when the event loop has ended.
                    let _ = self.outputs.send(output);
                    wakes = true;
                }
            }
        }
        if wakes {
            self.completions.wake();
        }
    }
}

/// Reads pages for watches.
#[derive(Clone)]
struct WatchReader {
    store: Store,
    /// Damage of the store is reported at once.
    completions: CompletionSender,
}

impl WatchReader {
    fn read(&self, WatchRead { watch, of }: WatchRead) -> WatchInput {
        let page = of.read(&self.store);
        if let WatchPage::Changes(Err(ChangesError::Store(error)))
        | WatchPage::Rows(Err(StoreReadError::Store(error))) = &page
        {
            self.report(error);
        }
        WatchInput::Read { watch, page }
    }

    fn report(&self, error: &ApplyError) {
        let fault = StoreFault::of(error, || "reading changes for a watch".to_owned());
        self.completions.send(fault.into());
        self.completions.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StateLimits;
    use crate::storage::apply::StateMachine;
    use crate::storage::memory::MemoryEngine;

    /// A queue of clients' inputs behind which the hub does not come, while a server applies and
    /// sends, filled up and ended the process.
    #[test]
    fn what_is_said_very_often_takes_one_place_in_the_queue() {
        let engine = Arc::new(MemoryEngine::new());
        let store = StateMachine::open(engine, StateLimits::default()).unwrap().store();
        store.follow(true);
        let (sender, receiver) = queue::bounded(3);
        let (marks, of_clients) = Default::default();
        let queue = WatchQueue { queue: sender, marks, of_clients, store };
        let id = ConnectionId::from_u64;
        for round in 0..1_000 {
            queue.applied();
            queue.mark(|marks| *marks.sent.entry(id(round % 2)).or_default() += 3);
            if round < 2 {
                queue.push(WatchWork::OfClient(WatchInput::Progress));
            }
        }
        let marked = queue.take_marks();
        assert!(marked.applied);
        assert_eq!(marked.sent, HashMap::from([(id(0), 1_500), (id(1), 1_500)]));
        let taken = std::iter::from_fn(|| receiver.try_recv()).count();
        assert_eq!(taken, 3);
        queue.applied();
        assert!(matches!(receiver.try_recv(), Some(WatchWork::Marked)));
    }

    /// Credit without end, which costs eight bytes a time, filled the queue, and whoever came next
    /// was refused.
    #[test]
    fn credit_is_added_up_and_bounded_by_the_watches_of_its_connection() {
        let engine = Arc::new(MemoryEngine::new());
        let store = StateMachine::open(engine, StateLimits::default()).unwrap().store();
        let (sender, _receiver) = queue::bounded(1);
        let (marks, of_clients) = Default::default();
        let queue = WatchQueue { queue: sender, marks, of_clients, store };
        let id = ConnectionId::from_u64;
        for _ in 0..100_000 {
            assert!(queue.credit(id(1), 7, u32::MAX / 2, 1));
        }
        let most = 1 + CREDITS_SPARE;
        let taken = (0..).take_while(|watch| queue.credit(id(2), *watch, 1, 1)).count();
        assert_eq!(taken, most);
        assert!(queue.credit(id(2), 0, 1, 1) && queue.credit(id(3), 0, 1, 1));
        let credits = queue.take_marks().credits;
        assert_eq!(credits[&id(1)], HashMap::from([(7, u32::MAX)]));
        assert_eq!((credits[&id(2)].len(), credits[&id(2)][&0], credits.len()), (most, 2, 3));
    }
}
