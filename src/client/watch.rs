//! Watches: every change of a range of keys, in order, each once, for as long as somebody asks.
//!
//! All watches of a client and its clones are carried by one connection, and by the client's own
//! thread ([`multiplexer`], driven by `client::driver`), whether there are one or ten thousand. A
//! reader who takes his time holds up nothing else: what was read and not taken waits in the
//! watch's own [`queue`], bounded by the credit that the server is given
//! ([`WATCH_CREDIT_BYTES_MAX`] a watch, and [`CLIENT_WATCH_BYTES_MAX`] for all), and credit is
//! given as events are taken. When the connection breaks, or nothing is heard on it, each watch
//! goes on at the next server after what it has (`following`). It gives up only what no server will
//! ever do.
//!
//! [`WATCH_CREDIT_BYTES_MAX`]: crate::limits::WATCH_CREDIT_BYTES_MAX
//! [`CLIENT_WATCH_BYTES_MAX`]: crate::limits::CLIENT_WATCH_BYTES_MAX

mod following;
mod link;
mod multiplexer;
mod queue;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use self::following::Following;
pub use self::following::WatchEvent;
use self::multiplexer::{FedQueue, NewWatch};
pub(super) use self::multiplexer::{LinkId, Multiplexer, MultiplexerOutput, WatchOrder};
pub(super) use self::queue::WatchTotals;
use self::queue::{EventQueue, Taken};
use super::call::is_driver;
use super::faces::calls;
use super::rows::KeyRange;
use super::sync::lock;
use super::{Client, ClientError};
use crate::limits::CLIENT_WATCHES_MAX;
use crate::model::{KeyInterval, Timestamp};

/// The number of a watch within the process, which is not given twice.
pub(super) type WatchId = u64;

/// The longest pause between two attempts to reach a server.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What a watch is to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// The version after which changes are told; `None` for those from now on.
    pub after: Option<Timestamp>,
    /// Each change tells what its key had before.
    pub previous: bool,
}

/// The changes of a range of keys, from one version on and for ever.
///
/// As an iterator it waits for the next event, and ends only after an error, which says that the
/// watch can never go on. Dropping it ends it.
///
/// ```
/// use acervo::client::{Client, KeyRange, WatchEvent, WatchOptions};
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// let client = Client::connect(group.servers())?;
/// let before = client.put("title", "Dom Casmurro")?.timestamp;
/// client.put("title", "Esaú e Jacó")?;
///
/// let options = WatchOptions { after: Some(before), ..WatchOptions::default() };
/// let mut watch = client.watch(KeyRange::between("title", "title")?, options)?;
/// let Some(Ok(WatchEvent::Changed { changes, .. })) = watch.next() else { panic!("no change") };
/// let written = changes[0].written.as_ref().expect("it was written");
/// assert_eq!(written.value, "Esaú e Jacó".as_bytes());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Watch {
    id: WatchId,
    queue: Arc<EventQueue>,
    client: Client,
}

calls! {
    /// Tells every change of some keys, in order, each once, over reconnections and changes of
    /// server and leader.
    ///
    /// A watch from now on has begun when this returns: it misses no write that begins then, and
    /// shows nothing that this client had seen before. One after a version is asked for later.
    ///
    /// # Errors
    /// [`ClientError::Thread`]; [`ClientError::TooManyWatches`]; [`ClientError::TimedOut`] where no
    /// server begins a watch from now on. What a server refuses for ever is the watch's first
    /// event.
    fn watch(client, range: KeyRange, options: WatchOptions) -> Watch {
        let watch = client.follow(range, options)?;
        if options.after.is_none() {
            watch.wait_begun().await?;
        }
        Ok(watch)
    }
}

impl Client {
    /// Begins to follow. Nothing is dialled before this returns.
    pub(super) fn follow(
        &self,
        range: KeyRange,
        options: WatchOptions,
    ) -> Result<Watch, ClientError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let totals = self.inner.driver.watch_totals();
        let count = totals.watches.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new(EventQueue::new(Arc::clone(totals)));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        // Dropped, it counts no more.
        let watch = Watch { id, queue, client: self.clone() };
        if count >= CLIENT_WATCHES_MAX {
            return Err(ClientError::TooManyWatches);
        }
        let new = NewWatch {
            queue: FedQueue(Arc::clone(&watch.queue)),
            range: KeyInterval { from: range.from, to: range.to },
            previous: options.previous,
            following: Following::new(options.after),
            seen: lock(&self.inner.seen).session(),
        };
        self.inner.driver.order(WatchOrder::Begin(id, Box::new(new)))?;
        Ok(watch)
    }
}

impl Watch {
    /// The next event, if one has come within this time; `None` after an error, too.
    pub fn next_within(&mut self, time: Duration) -> Option<Result<WatchEvent, ClientError>> {
        self.wait(Instant::now().checked_add(time))
    }

    /// The next event, for whoever polls; `None` after an error.
    pub async fn next_event(&mut self) -> Option<Result<WatchEvent, ClientError>> {
        std::future::poll_fn(|context| {
            let (taken, is_thread_to_be_told) = self.queue.take(Some(context.waker()));
            match self.taken(taken, is_thread_to_be_told) {
                Taken::Next(next) => Poll::Ready(next),
                Taken::Nothing => Poll::Pending,
            }
        })
        .await
    }

    /// How far it has come, for whoever does not have the watch itself.
    pub fn progress(&self) -> WatchProgress {
        WatchProgress(Arc::clone(&self.queue))
    }

    /// Waits until a server has begun the watch, or refuses it for ever.
    async fn wait_begun(&self) -> Result<(), ClientError> {
        let deadline = self.client.deadline();
        let mut time = pin!(self.client.time_is(deadline));
        std::future::poll_fn(|context| {
            if self.queue.has_begun(context.waker()) {
                return Poll::Ready(Ok(()));
            }
            time.as_mut().poll(context).map(|_| {
                let timeout = self.client.inner.request_timeout;
                let last = self.queue.take_last_failure();
                let last = last.unwrap_or_else(|| "no server has begun the watch".to_owned());
                Err(ClientError::TimedOut { timeout, last, effect: None })
            })
        })
        .await
    }

    fn wait(&self, until: Option<Instant>) -> Option<Result<WatchEvent, ClientError>> {
        loop {
            let (taken, is_thread_to_be_told) = self.queue.take(None);
            if let Taken::Next(next) = self.taken(taken, is_thread_to_be_told) {
                return next;
            }
            // Events come by this very thread.
            if is_driver() {
                return Some(Err(ClientError::WouldBlock));
            }
            if !self.queue.wait(until) {
                return None;
            }
        }
    }

    /// Notes what was taken.
    fn taken(&self, taken: Taken, is_thread_to_be_told: bool) -> Taken {
        if is_thread_to_be_told {
            // A thread that has ended has said so to the watch.
            let _ = self.client.inner.driver.order(WatchOrder::Look(self.id));
        }
        if let Taken::Next(Some(Ok(event))) = &taken {
            lock(&self.client.inner.seen).saw(event.version());
        }
        taken
    }
}

/// How far a watch has come.
#[derive(Clone)]
pub struct WatchProgress(Arc<EventQueue>);

impl WatchProgress {
    /// The version up to which every change of the range has been given out by now; `None` before
    /// that is known, and within a reset. It grows about once a second while anything changes in
    /// the store, also when nothing of the range does: how far that was is how late the watch may
    /// be.
    pub fn up_to(&self) -> Option<Timestamp> {
        self.0.up_to()
    }
}

impl Iterator for Watch {
    type Item = Result<WatchEvent, ClientError>;

    fn next(&mut self) -> Option<Result<WatchEvent, ClientError>> {
        self.wait(None)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.queue.end();
        self.client.inner.driver.watch_totals().watches.fetch_sub(1, Ordering::Relaxed);
        // A thread that has ended has forgotten it.
        let _ = self.client.inner.driver.order(WatchOrder::End(self.id));
    }
}
