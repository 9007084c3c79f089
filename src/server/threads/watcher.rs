//! The thread of the watches: it drives the hub, and others read the store for it.
//!
//! It waits for no disk and no socket, so that watches that have caught up are shown changes at
//! once whatever others have to read. Its queue takes what the event loop tells it of clients, up
//! to [`CLIENT_INPUTS_MAX`]; everything else in it is bounded by itself: there is one word that the
//! state machine has gone on, and an answer to each page and to each piece that was sent.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::super::get::StoreFault;
use super::super::watches::{WatchHub, WatchInput, WatchOutput, WatchPage, WatchRead};
use super::super::work::Completion;
use super::completions::{CompletionSender, has_ended};
use crate::limits;
use crate::storage::apply::ApplyError;
use crate::storage::feed::ChangesError;
use crate::storage::reads::{PageError, Store};
use crate::workers::pool::Workers;
use crate::workers::queue::{self, Receiver, RecvError, Sender};
use crate::workers::thread::DeadlineThread;

/// What clients have asked of their watches and the hub has not taken in. One that fills it is
/// refused: the hub takes a million a second.
const CLIENT_INPUTS_MAX: usize = 64 * 1024;
/// Everything in the queue: besides what is above, an answer for each connection, twice.
const QUEUE_MAX: usize = CLIENT_INPUTS_MAX + 32 * limits::CONNECTIONS_MAX;
/// Pages that are read at once. Each thread may wait for a disk.
const READERS: usize = 2;
/// How often clients are told how far their watches have come that are shown nothing. A client that
/// begins anew then asks for no more than the changes of this time.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

enum WatchWork {
    Input(WatchInput),
    /// The same from a client, which is counted.
    OfClient(WatchInput),
    Stop,
}

/// The way to the thread, from any other.
#[derive(Clone)]
pub(super) struct WatchQueue {
    queue: Sender<WatchWork>,
    of_clients: Arc<AtomicUsize>,
    store: Store,
}

impl WatchQueue {
    /// The state machine has gone on, or a snapshot has taken its place.
    pub fn applied(&self) {
        if self.store.is_followed() {
            self.push(WatchWork::Input(WatchInput::Applied));
        }
    }

    fn push(&self, work: WatchWork) {
        let join = |last: &mut WatchWork, work| match (last, work) {
            (WatchWork::Input(WatchInput::Applied), WatchWork::Input(WatchInput::Applied)) => None,
            (_, work) => Some(work),
        };
        // Without a receiver the server ends.
        if let Err((_, true)) = self.queue.try_join(work, |last, work, _| join(last, work)) {
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
    /// Starts the thread, and those that read for it. `seed` is drawn at random.
    ///
    /// # Errors
    /// The system did not start a thread.
    pub fn start(
        store: Store,
        seed: u64,
        completions: CompletionSender,
    ) -> io::Result<WatchThread> {
        let (sender, receiver) = queue::bounded(QUEUE_MAX);
        let of_clients = Arc::new(AtomicUsize::new(0));
        let queue = WatchQueue { queue: sender, of_clients, store: store.clone() };
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
        let of_clients = queue.of_clients.clone();
        let thread = DeadlineThread::spawn("acervo-watch", move || {
            let hub = WatchHub::new(store, seed);
            let mut thread = WatcherThread { hub, readers, completions, of_clients };
            thread.run(&receiver);
            let deadline = Instant::now() + limits::STOP_DISK_TIMEOUT;
            has_ended(thread.readers.finish(deadline));
        })?;
        Ok(WatchThread { queue, thread })
    }

    pub fn queue(&self) -> WatchQueue {
        self.queue.clone()
    }

    /// Hands over what a client asks for, or gives it back if too much waits.
    pub fn ask(&self, input: WatchInput) -> Result<(), Box<WatchInput>> {
        let waiting = self.queue.of_clients.fetch_add(1, Ordering::Relaxed);
        if waiting >= CLIENT_INPUTS_MAX {
            self.queue.of_clients.fetch_sub(1, Ordering::Relaxed);
            return Err(Box::new(input));
        }
        self.queue.push(WatchWork::OfClient(input));
        Ok(())
    }

    /// Tells what has become of what was to be sent, or of a connection.
    pub fn tell(&self, input: WatchInput) {
        self.queue.push(WatchWork::Input(input));
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
    completions: CompletionSender,
    of_clients: Arc<AtomicUsize>,
}

impl WatcherThread {
    fn run(&mut self, work: &Receiver<WatchWork>) {
        let mut progress_due = Instant::now() + PROGRESS_INTERVAL;
        loop {
            let left = progress_due.saturating_duration_since(Instant::now());
            let mut next = match work.recv_timeout(left) {
                Ok(work) => Some(work),
                Err(RecvError::Timeout) => None,
                Err(RecvError::Disconnected) => return,
            };
            while let Some(received) = next {
                match received {
                    WatchWork::Stop => return,
                    WatchWork::Input(input) => self.take(input),
                    WatchWork::OfClient(input) => {
                        self.of_clients.fetch_sub(1, Ordering::Relaxed);
                        self.take(input);
                    }
                }
                self.carry_out();
                next = work.try_recv();
            }
            if Instant::now() >= progress_due {
                self.hub.handle(WatchInput::Progress);
                progress_due = Instant::now() + PROGRESS_INTERVAL;
            }
            self.carry_out();
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
                output @ (WatchOutput::Reply { .. } | WatchOutput::Send { .. }) => {
                    self.completions.send(Completion::Watched(output));
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
        | WatchPage::Rows(Err(PageError::Store(error))) = &page
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
