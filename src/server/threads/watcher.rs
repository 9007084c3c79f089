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
/// Bytes of their keys, which are held also when their connections are gone: two thousand of the
/// longest, and many times what the hub leaves behind.
const CLIENT_INPUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Pieces of work that are taken in before watches are shown something, which takes some ten
/// milliseconds at most. So nobody's request waits for many pages of others.
const INPUTS_PER_FLUSH_MAX: usize = 256;
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
    /// The same from a client, which is counted, with the bytes of its keys.
    OfClient(WatchInput, usize),
    /// Something is marked. There is one at most in the queue.
    Marked,
    Stop,
}

/// What may be said very often, and is taken in once.
#[derive(Default)]
struct WatchMarks {
    /// The queue has a [`WatchWork::Marked`], whoever has taken the marks meanwhile.
    is_told: bool,
    applied: bool,
    cut_off: bool,
    sent: HashMap<ConnectionId, usize>,
    /// By the numbers of the watches, as many of each connection as it may have.
    credits: HashMap<ConnectionId, HashMap<u64, u32>>,
}

/// The way to the thread, from any other.
#[derive(Clone)]
pub(super) struct WatchQueue {
    queue: Sender<WatchWork>,
    marks: Arc<Mutex<WatchMarks>>,
    of_clients: Arc<AtomicUsize>,
    bytes_of_clients: Arc<AtomicUsize>,
    store: Store,
}

impl WatchQueue {
    fn new(queue: Sender<WatchWork>, store: Store) -> WatchQueue {
        let (marks, of_clients, bytes_of_clients) = Default::default();
        WatchQueue { queue, marks, of_clients, bytes_of_clients, store }
    }

    /// Counts a request of a client, if there is room for it.
    fn count(&self, bytes: usize) -> bool {
        let waiting = self.of_clients.fetch_add(1, Ordering::Relaxed);
        let waiting_bytes = self.bytes_of_clients.fetch_add(bytes, Ordering::Relaxed);
        let has_room = waiting < CLIENT_INPUTS_MAX && waiting_bytes < CLIENT_INPUT_BYTES_MAX;
        if !has_room {
            self.forget(bytes);
        }
        has_room
    }

    /// A request that was counted is taken in.
    fn forget(&self, bytes: usize) {
        self.of_clients.fetch_sub(1, Ordering::Relaxed);
        self.bytes_of_clients.fetch_sub(bytes, Ordering::Relaxed);
    }

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
        let is_told = std::mem::replace(&mut marks.is_told, true);
        let marked = mark(&mut marks);
        drop(marks);
        if !is_told {
            self.push(WatchWork::Marked);
        }
        marked
    }

    /// Takes what is marked; `was_told` that the queue has just given out its word of it. As long
    /// as that is in the queue there is no second one, or the queue would grow by one with each
    /// request that is taken in meanwhile.
    fn take_marks(&self, was_told: bool) -> WatchMarks {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told = marks.is_told && !was_told;
        std::mem::replace(&mut *marks, WatchMarks { is_told, ..WatchMarks::default() })
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
        let queue = WatchQueue::new(sender, store.clone());
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
        let bytes = match &input {
            WatchInput::Watch { request, .. } => request.range.from.len() + request.range.to.len(),
            _ => 0,
        };
        let has_room = self.queue.count(bytes);
        if has_room {
            self.queue.push(WatchWork::OfClient(input, bytes));
        }
        has_room
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
            let mut received = match self.hub.is_behind() {
                true => work.try_recv(),
                false => match work.recv_timeout(left) {
                    Ok(work) => Some(work),
                    Err(RecvError::Timeout) => None,
                    Err(RecvError::Disconnected) => return,
                },
            };
            self.take_marked(false);
            for room in (0..INPUTS_PER_FLUSH_MAX).rev() {
                match received.take() {
                    None => break,
                    Some(WatchWork::Marked) => self.take_marked(true),
                    Some(WatchWork::Stop) => return,
                    Some(WatchWork::Input(input)) => self.take(input),
                    Some(WatchWork::OfClient(input, bytes)) => {
                        self.queue.forget(bytes);
                        self.take(input);
                    }
                }
                received = if room > 0 { work.try_recv() } else { None };
            }
            if Instant::now() >= progress_due {
                self.hub.handle(WatchInput::Progress);
                progress_due = Instant::now() + PROGRESS_INTERVAL;
            }
            self.carry_out();
        }
    }

    fn take_marked(&mut self, was_told: bool) {
        let WatchMarks { is_told: _, applied, cut_off, sent, credits } =
            self.queue.take_marks(was_told);
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
        let queue = WatchQueue::new(sender, store);
        let id = ConnectionId::from_u64;
        for round in 0..1_000 {
            queue.applied();
            queue.mark(|marks| *marks.sent.entry(id(round % 2)).or_default() += 3);
            if round < 2 {
                queue.push(WatchWork::OfClient(WatchInput::Progress, 0));
            }
        }
        let marked = queue.take_marks(false);
        assert!(marked.applied);
        assert_eq!(marked.sent, HashMap::from([(id(0), 1_500), (id(1), 1_500)]));
        let taken = std::iter::from_fn(|| receiver.try_recv()).count();
        assert_eq!(taken, 3);
        assert!(!queue.take_marks(true).applied);
        queue.applied();
        assert!(matches!(receiver.try_recv(), Some(WatchWork::Marked)));
    }

    /// The marks were taken with each request that was taken in, and the word of them stayed in the
    /// queue, beside a new one: the queue grew by one with each request, up to where the process
    /// ended.
    #[test]
    fn a_queue_that_is_not_worked_off_does_not_grow_by_words_of_marks() {
        let engine = Arc::new(MemoryEngine::new());
        let store = StateMachine::open(engine, StateLimits::default()).unwrap().store();
        store.follow(true);
        let (sender, receiver) = queue::bounded(5);
        let queue = WatchQueue::new(sender, store);
        let ask = || {
            assert!(queue.count(0));
            queue.push(WatchWork::OfClient(WatchInput::Progress, 0));
        };
        (0..4).for_each(|_| ask());
        for _ in 0..100 {
            queue.applied();
            let was_told = match receiver.try_recv() {
                Some(WatchWork::Marked) => true,
                Some(WatchWork::OfClient(..)) => {
                    queue.forget(0);
                    false
                }
                other => panic!("{}", other.is_some()),
            };
            assert!(queue.take_marks(was_told).applied);
            if !was_told {
                ask();
            }
        }
    }

    #[test]
    fn requests_are_bounded_by_their_number_and_by_the_bytes_of_their_keys() {
        let engine = Arc::new(MemoryEngine::new());
        let store = StateMachine::open(engine, StateLimits::default()).unwrap().store();
        let (sender, _receiver) = queue::bounded(1);
        let queue = WatchQueue::new(sender, store);
        let most = |bytes: usize| {
            let counted = (0..).take_while(|_| queue.count(bytes)).count();
            (0..counted).for_each(|_| queue.forget(bytes));
            counted
        };
        assert_eq!(most(1), CLIENT_INPUTS_MAX);
        assert_eq!(most(8 * 1024), CLIENT_INPUT_BYTES_MAX / (8 * 1024));
        assert_eq!(most(0), CLIENT_INPUTS_MAX, "nothing was counted that was refused");
    }

    /// Credit without end, which costs eight bytes a time, filled the queue, and whoever came next
    /// was refused.
    #[test]
    fn credit_is_added_up_and_bounded_by_the_watches_of_its_connection() {
        let engine = Arc::new(MemoryEngine::new());
        let store = StateMachine::open(engine, StateLimits::default()).unwrap().store();
        let (sender, _receiver) = queue::bounded(1);
        let queue = WatchQueue::new(sender, store);
        let id = ConnectionId::from_u64;
        for _ in 0..100_000 {
            assert!(queue.credit(id(1), 7, u32::MAX / 2, 1));
        }
        let most = 1 + CREDITS_SPARE;
        let taken = (0..).take_while(|watch| queue.credit(id(2), *watch, 1, 1)).count();
        assert_eq!(taken, most);
        assert!(queue.credit(id(2), 0, 1, 1) && queue.credit(id(3), 0, 1, 1));
        let credits = queue.take_marks(false).credits;
        assert_eq!(credits[&id(1)], HashMap::from([(7, u32::MAX)]));
        assert_eq!((credits[&id(2)].len(), credits[&id(2)][&0], credits.len()), (most, 2, 3));
    }
}
