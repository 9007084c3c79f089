//! Locks, and the way by which locks and elections do what [`contender`](super::contender) says.
//!
//! A contender has a lease of its own and, from when it has entered, a watch of its own key, which
//! the client's thread looks at. When the key has gone, the lease is given up: so whoever waits for
//! the loss of a lock waits for that of its lease, and nothing else has to be told.
//!
//! A lock costs its lease, which one thread keeps alive for all leases of a client, and a watch,
//! which is a connection and a thread. While it waits for its turn it costs another watch.
//!
//! Whatever ends a wait early, the future that is dropped included, has the key taken away: at once
//! if a server can be reached, and otherwise when the lease ends.

use std::fmt;
use std::future::Future;
#[cfg(feature = "async")]
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::call::wait;
use super::contender::{Contender, ContestName, Step, WatchedKey};
use super::faces::calls;
use super::latch::Latch;
use super::lease::Lease;
use super::reads::ReadOptions;
use super::rows::KeyRange;
use super::txn::{TxnDone, TxnOutput};
use super::watch::{Watch, WatchOptions};
use super::{Client, ClientError};
use crate::model::{Comparison, LeaseId, Timestamp, Txn, TxnOp};
use crate::text::escape;

/// The TTL of a lock unless another is asked for: longer than a group takes to elect a leader, and
/// not so long that those who wait for one that has died lose patience.
const TTL_DEFAULT: Duration = Duration::from_secs(10);
/// How long a read of the queue that has failed is left alone. What fails at once is a server that
/// refuses, so that more haste would only be more load.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// How long whoever gives up, or has lost what was held, waits until its key is taken away: a
/// write, also where the group has much to do. What takes longer is done by the client's thread, or
/// by the lease's end.
pub(super) const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// How a lock is held, and waited for.
///
/// ```
/// use std::time::Duration;
/// use acervo::client::LockOptions;
///
/// // Whoever does not get it at once does something else.
/// let at_once = LockOptions { wait: Some(Duration::ZERO), ..LockOptions::default() };
/// # let _ = at_once;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockOptions {
    /// How long a lock is held for somebody of whom nothing is heard: the TTL of its lease. Ten
    /// seconds unless set.
    pub ttl: Duration,
    /// How long its turn is waited for, counted from when its place in the queue is known; `None`
    /// for as long as it takes, and as [`Client::until`] allows. The requests before that have the
    /// time that every request has.
    pub wait: Option<Duration>,
}

impl Default for LockOptions {
    fn default() -> LockOptions {
        LockOptions { ttl: TTL_DEFAULT, wait: None }
    }
}

calls! {
    /// Waits until nobody else has the lock of this name, and takes it. Those who wait get it in
    /// the order in which they came. It is held until it is unlocked or dropped, or lost: see
    /// [`Lock`].
    ///
    /// # Errors
    /// [`ClientError::NameEmpty`] and [`ClientError::NameTooLong`]; those of [`Client::lease`] and
    /// [`Client::txn`]; [`ClientError::StillTaken`] if the time to wait is over, and
    /// [`ClientError::ContenderGone`] if the place in the queue was lost.
    fn lock(client, name: impl AsRef<[u8]>, options: LockOptions) -> Lock | AsyncLock {
        let name = ContestName::new(name.as_ref())?;
        client.contend(name, b"", options, std::future::pending()).await.map(Lock)
    }
}

impl Client {
    /// As [`Client::lock`], until this is done.
    pub(crate) fn lock_unless(
        &self,
        name: &[u8],
        options: LockOptions,
        given_up: impl Future<Output = ()>,
    ) -> Result<Lock, ClientError> {
        let name = ContestName::new(name)?;
        wait(async { self.contend(name, b"", options, given_up).await.map(Lock) })
    }

    /// Contends for a name until it holds, or until `given_up` is done.
    pub(super) async fn contend(
        &self,
        name: ContestName,
        value: &[u8],
        options: LockOptions,
        given_up: impl Future<Output = ()>,
    ) -> Result<QueuePlace, ClientError> {
        let began = Instant::now();
        let still_taken = || ClientError::StillTaken {
            name: name.to_string(),
            wait: options.wait.unwrap_or_else(|| began.elapsed()),
        };
        let mut given_up = pin!(given_up);
        let granting = unless(given_up.as_mut(), self.granted_and_kept(options.ttl)).await;
        let lease = granting.map_err(|()| still_taken())??;
        // What is left of its caller's time is not that of whoever holds it.
        let client = Client { until: None, ..self.clone() };
        let mut place =
            QueuePlace { client, key: name.key(lease.id()), fence: None, lease: Some(lease) };
        let given_up =
            std::future::poll_fn(|cx| given_up.as_mut().poll(cx).map(|()| still_taken()));
        match self.take_turn(&name, value, options.wait, given_up, &mut place).await {
            Ok(()) => Ok(place),
            Err(error) => {
                // Whose process ends next has left the queue, if that is soon done.
                let left = pin!(place.leave_behind().opened());
                let patience = self.inner.driver.now() + LEAVE_PATIENCE;
                let _ = unless(left, self.time_is(patience)).await;
                Err(error)
            }
        }
    }

    /// Enters, and waits for its turn, for so long if there is a limit.
    async fn take_turn(
        &self,
        name: &ContestName,
        value: &[u8],
        wait: Option<Duration>,
        given_up: impl Future<Output = ClientError>,
        place: &mut QueuePlace,
    ) -> Result<(), ClientError> {
        let id = place.lease().id();
        let mut contender = Contender::new(name.clone(), id);
        let key = contender.key().clone();
        let gone = || has_gone(&key);
        let (mut lost, mut given_up) = (pin!(place.lease().lost()), pin!(given_up));
        let mut stop = pin!(std::future::poll_fn(|cx| {
            if lost.as_mut().poll(cx).is_ready() {
                return Poll::Ready(gone());
            }
            given_up.as_mut().poll(cx)
        }));

        let entering = self.write_txn(contender.entering(value));
        let entered = match unless(stop.as_mut(), entering).await? {
            Err(ClientError::NoLease) => return Err(gone()),
            entered => entered?,
        };
        let (fence, lease) = entered_with(&entered, id);
        place.fence = Some(fence);
        let mut step = contender.entered(fence, lease);
        self.notice_end(contender.own(fence), place)?;
        // The time to wait begins when it is known who is ahead.
        let mut time = None;
        loop {
            step = match step {
                Step::Look => {
                    let looking = self.look_at(name, fence, &mut contender);
                    let looking = unless(stop.as_mut(), looking);
                    match &mut time {
                        None => looking.await??,
                        Some(time) => unless(Pin::as_mut(time), looking).await???,
                    }
                }
                Step::Watch { key, after } => {
                    let time = time.get_or_insert_with(|| Box::pin(self.wait_over(name, wait)));
                    let waiting = self.next_step(&mut contender, key, after);
                    unless(time.as_mut(), unless(stop.as_mut(), waiting)).await???
                }
                Step::Hold { .. } if !place.is_lost() => return Ok(()),
                Step::Hold { .. } | Step::Lose => return Err(gone()),
            };
        }
    }

    /// Is done when no more time may be waited, and says so.
    async fn wait_over(&self, name: &ContestName, wait: Option<Duration>) -> ClientError {
        let began = self.inner.driver.now();
        let own = wait.map(|wait| began.saturating_add(wait));
        let Some(until) = own.into_iter().chain(self.until).min() else {
            return std::future::pending().await;
        };
        match self.time_is(until).await {
            Ok(()) => {
                let wait = until.saturating_sub(began);
                ClientError::StillTaken { name: name.to_string(), wait }
            }
            Err(error) => error,
        }
    }

    /// Reads the queue until that succeeds; what follows from it. A group that cannot be read for
    /// so long that it matters has not kept the lease alive either, and then the wait is over.
    async fn look_at(
        &self,
        name: &ContestName,
        fence: Timestamp,
        contender: &mut Contender,
    ) -> Result<Step, ClientError> {
        loop {
            let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
            let mut rows = self.scan(name.range()?, options).keys_only();
            let failed = loop {
                match rows.advance().await {
                    Some(Ok(row)) => contender.row(&row),
                    Some(Err(error)) => break Some(error),
                    None => break None,
                }
            };
            match failed {
                None => return Ok(contender.looked(rows.at().unwrap_or(Timestamp::ZERO))),
                Some(
                    ClientError::Unreachable { .. }
                    | ClientError::TimedOut { .. }
                    | ClientError::NoMajority { .. }
                    | ClientError::Unavailable { .. }
                    | ClientError::Expired { .. }
                    | ClientError::Compacted { .. },
                ) => {
                    contender.look(fence);
                    let again = self.inner.driver.now() + LOOK_PAUSE;
                    self.inner.driver.pause(LOOK_PAUSE, again).await?;
                }
                Some(error) => return Err(error),
            }
        }
    }

    /// Watches the key that is ahead until something follows from it.
    async fn next_step(
        &self,
        contender: &mut Contender,
        key: Bytes,
        after: Timestamp,
    ) -> Result<Step, ClientError> {
        let mut watch = self.watch_of(key, after)?;
        loop {
            match watch.next_event().await {
                Some(Ok(event)) => {
                    if let Some(step) = contender.ahead(&event) {
                        return Ok(step);
                    }
                }
                Some(Err(error)) => return Err(error),
                // It ends only after an error.
                None => return Err(ClientError::Ended),
            }
        }
    }

    /// Watches one key after a version.
    fn watch_of(&self, key: Bytes, after: Timestamp) -> Result<Watch, ClientError> {
        let options = WatchOptions { after: Some(after), ..WatchOptions::default() };
        self.follow(KeyRange::between(&key, &key)?, options)
    }

    /// Has the client's thread give up the lease when the key that it is for has gone, until the
    /// lease is lost or given up anyway.
    fn notice_end(&self, mut own: WatchedKey, place: &QueuePlace) -> Result<(), ClientError> {
        let Some(lease) = &place.lease else { return Ok(()) };
        let Some(fence) = place.fence else { return Ok(()) };
        let (client, id, lost) = (self.clone(), lease.id(), lease.lost());
        let mut watch = self.watch_of(own.key().clone(), fence)?;
        self.inner.driver.spawn(async move {
            let mut lost = pin!(lost);
            // A watch that ends tells nothing any more.
            while let Ok(Some(Ok(event))) = unless(lost.as_mut(), watch.next_event()).await {
                if own.has_gone(&event) {
                    break;
                }
            }
            client.inner.leases.give_up(id);
        })
    }
}

/// Does the work, unless something else is done before.
async fn unless<T, S>(
    mut stop: Pin<&mut impl Future<Output = S>>,
    work: impl Future<Output = T>,
) -> Result<T, S> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(stop) = stop.as_mut().poll(cx) {
            return Poll::Ready(Err(stop));
        }
        work.as_mut().poll(cx).map(Ok)
    })
    .await
}

/// The version with which the contender's key came into being, and the lease that it has: what the
/// transaction has done, or what it has found.
pub(crate) fn entered_with(done: &TxnDone, lease: LeaseId) -> (Timestamp, Option<LeaseId>) {
    match done.results.first() {
        Some(TxnOutput::Get(Some(found))) if !done.succeeded => {
            let created = found.facts.map_or(found.timestamp, |facts| facts.created);
            (created, found.facts.and_then(|facts| facts.lease))
        }
        _ => (done.timestamp, done.succeeded.then_some(lease)),
    }
}

fn has_gone(key: &[u8]) -> ClientError {
    ClientError::ContenderGone(escape(key).to_string())
}

/// A contender's key and lease, which are given back in the background when this is dropped.
pub(super) struct QueuePlace {
    client: Client,
    key: Bytes,
    /// `None` until the key is known to be there.
    fence: Option<Timestamp>,
    /// `None` once it is given back.
    lease: Option<Lease>,
}

impl QueuePlace {
    pub(super) fn key(&self) -> &Bytes {
        &self.key
    }

    pub(super) fn lease(&self) -> &Lease {
        match &self.lease {
            Some(lease) => lease,
            None => unreachable!("{:?} was given back, by whoever gave it away", self.key),
        }
    }

    pub(super) fn fence(&self) -> Timestamp {
        match self.fence {
            Some(fence) => fence,
            None => unreachable!("{:?} is held, and has not entered", self.key),
        }
    }

    pub(super) fn guard(&self) -> Comparison {
        Comparison::created(&self.key).equals(self.fence())
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lease().is_lost()
    }

    /// Writes another value to its key, if that is still its own; the version of that.
    pub(super) async fn rewrite(&self, value: &[u8]) -> Result<Timestamp, ClientError> {
        let put = TxnOp::put_with_lease(&self.key, value, self.lease().id());
        match self.client.write_txn(Txn::when(self.guard()).then(put)).await {
            Ok(TxnDone { succeeded: true, timestamp, .. }) => Ok(timestamp),
            Ok(_) | Err(ClientError::NoLease) => Err(has_gone(&self.key)),
            Err(error) => Err(error),
        }
    }

    /// Gives everything back, and tells the version of that; `None` if it was lost before.
    pub(super) async fn leave(mut self) -> Result<Option<Timestamp>, ClientError> {
        match self.lease.take() {
            Some(lease) => withdraw(&self.client, self.key.clone(), self.fence, lease).await,
            None => Ok(None),
        }
    }
}

impl QueuePlace {
    /// Has the client's thread give everything back; what tells that it has.
    pub(super) fn leave_behind(&mut self) -> Arc<Latch> {
        let left = Arc::new(Latch::default());
        let Some(lease) = self.lease.take() else {
            left.open();
            return left;
        };
        let (client, key, fence) = (self.client.clone(), self.key.clone(), self.fence);
        let leaving = Arc::clone(&left);
        let spawned = self.client.inner.driver.spawn(async move {
            // Where nobody answers, the lease ends by itself.
            let _ = withdraw(&client, key, fence, lease).await;
            leaving.open();
        });
        if spawned.is_err() {
            // Likewise where there is no thread that could ask.
            left.open();
        }
        left
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        drop(self.leave_behind());
    }
}

/// Deletes the key and then revokes the lease, in the time of one request. The key is removed with
/// its history, which the end of a lease would keep: reads of the queue would have to step over it
/// for as long as the group keeps its history.
async fn withdraw(
    client: &Client,
    key: Bytes,
    fence: Option<Timestamp>,
    lease: Lease,
) -> Result<Option<Timestamp>, ClientError> {
    let client = Client { until: Some(client.deadline()), ..client.clone() };
    let id = lease.id();
    // It is not kept alive any more, and whoever waits for its loss is told.
    drop(lease);
    let deleted = match fence {
        Some(fence) => {
            let del = TxnOp::Del { key: key.clone(), keeps_history: false, tells_previous: false };
            let own = Comparison::created(&key).equals(fence);
            let deleted = client.write_txn(Txn::when(own).then(del)).await;
            deleted.map(|done| done.succeeded.then_some(done.timestamp))
        }
        None => Ok(None),
    };
    // Which deletes the key, too, if it is still there; or else it ends by itself.
    let revoked = client.revoked(id).await;
    match deleted {
        Ok(deleted) => Ok(deleted),
        Err(error) => revoked.map_err(|_| error),
    }
}

/// Declares what a held lock and a leadership have in common.
macro_rules! held {
    ($held:ident) => {
        impl $held {
            /// The key that stands for it, in the order of versions one of those that wait.
            pub fn key(&self) -> &[u8] {
                self.0.key()
            }

            /// Its fencing token: the version with which its key came into being, greater than that
            /// of everybody who had it before.
            pub fn fence(&self) -> Timestamp {
                self.0.fence()
            }

            /// Holds as long as it is not lost: the condition for a transaction that changes what
            /// it protects.
            pub fn guard(&self) -> Comparison {
                self.0.guard()
            }

            /// Whether it is lost, or may be by now.
            pub fn is_lost(&self) -> bool {
                self.0.is_lost()
            }

            /// Waits until it is lost, for no longer than this. Whether it is.
            pub fn wait_lost(&self, timeout: Duration) -> bool {
                self.0.lease().wait_lost(timeout)
            }

            /// Is done when it is lost, or given back.
            pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
                self.0.lease().lost()
            }

            /// What tells that it is lost, or given back.
            pub(crate) fn loss(&self) -> Arc<Latch> {
                Arc::clone(self.0.lease().loss())
            }

            /// Gives back what may be left of it once it is lost, if that is soon done.
            pub(crate) fn abandon(mut self) {
                self.0.leave_behind().wait_for(LEAVE_PATIENCE);
            }
        }

        impl fmt::Debug for $held {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut shown = f.debug_struct(stringify!($held));
                shown.field("key", self.0.key()).field("fence", &self.fence());
                shown.finish_non_exhaustive()
            }
        }
    };
}

pub(super) use held;

/// A lock that is held.
///
/// It is lost when its lease is: when it could not be kept alive for as long as its TTL, by this
/// machine's clock; and when somebody revokes the lease or deletes the key. Its holder is told, but
/// may be paused just then, and notice late: so what the lock protects is to be changed under the
/// condition that the lock is still held, which [`Lock::guard`] makes, or by a service that refuses
/// a lower [`fence`](Lock::fence) than it has seen.
///
/// Dropping it gives it back in the background; [`Lock::unlock`] waits until that is done.
///
/// ```
/// use acervo::client::{LockOptions, Txn, TxnOp};
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let client = acervo::Client::connect(group.servers())?;
///
/// let lock = client.lock("report", LockOptions::default())?;
/// let done = client.txn(Txn::when(lock.guard()).then(TxnOp::put("total", "42")))?;
/// assert!(done.succeeded, "the lock was lost, and nothing was written");
/// assert!(lock.unlock()?.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Lock(QueuePlace);

held!(Lock);

impl Lock {
    /// Gives it back; the version of that, or `None` if it was lost before.
    ///
    /// # Errors
    /// As [`Client::txn`]. It is not kept alive any more, and free when its time is over.
    pub fn unlock(self) -> Result<Option<Timestamp>, ClientError> {
        wait(self.0.leave())
    }
}

/// A [`Lock`] that is given back without blocking.
#[cfg(feature = "async")]
#[derive(Debug)]
pub struct AsyncLock(Lock);

#[cfg(feature = "async")]
impl From<Lock> for AsyncLock {
    fn from(lock: Lock) -> AsyncLock {
        AsyncLock(lock)
    }
}

#[cfg(feature = "async")]
impl Deref for AsyncLock {
    type Target = Lock;

    fn deref(&self) -> &Lock {
        &self.0
    }
}

#[cfg(feature = "async")]
impl AsyncLock {
    /// Gives it back, as [`Lock::unlock`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn unlock(self) -> Result<Option<Timestamp>, ClientError> {
        self.0.0.leave().await
    }
}
