//! Leases: granted, kept alive, described and revoked; and a [`Lease`] that keeps itself alive.

mod kept;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use self::kept::KeptLeases;
use super::core::{Retry, Target, Verdict, judge_error, judge_unexpected};
use super::error::ClientError;
use super::faces::calls;
use super::latch::Latch;
use super::sync::{lock, wait};
use super::{Client, PutOk, Timestamp, check_key, check_value};
use crate::model::{
    LEASES_PER_REQUEST_MAX, LeaseAnswer, LeaseGrant, LeaseId, LeaseQuestion, LeaseRevoke,
    LeaseShown, OpResult, Operation, Txn, TxnOp,
};
use crate::wire::message::{Reply, Request};

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGranted {
    /// The id that was asked for, or the version of the grant.
    pub id: LeaseId,
    /// How long it lives after it was kept alive.
    pub ttl: Duration,
    /// The version of the grant.
    pub timestamp: Timestamp,
}

/// Keys that a lease is expected to have at most when it is revoked: so few that 256 revokes may
/// wait to be applied.
const FEW_KEYS: u32 = 64;

/// The TTL as servers count it.
fn ttl_ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

calls! {
    /// Grants a lease, under an id of one's own or under the version of the grant. It ends unless
    /// it is kept alive within `ttl`, and then all keys that were put with it are deleted at once.
    /// [`Client::lease`] grants one that keeps itself alive.
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::InvalidLease`] for a time that no lease can have,
    /// [`ClientError::LeaseExists`] for an id that a lease has, and
    /// [`ClientError::TooManyLeases`].
    fn grant_lease(client, ttl: Duration, id: Option<LeaseId>) -> LeaseGranted {
        client.granted(ttl, id).await
    }

    /// Grants a lease that is kept alive until it is dropped or revoked, by a thread that all
    /// leases of this client share.
    ///
    /// # Errors
    /// Those of [`Client::grant_lease`]; [`ClientError::Thread`].
    fn lease(client, ttl: Duration) -> Lease {
        client.granted_and_kept(ttl).await
    }

    /// Stores a new newest version of a key, which goes when the lease ends; a put without a lease
    /// takes it out of the lease again.
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::NoLease`] if there is no such lease (any more), and
    /// [`ClientError::LeaseFull`].
    fn put_with_lease(
        client,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        lease: LeaseId,
    ) -> PutOk {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        let put = TxnOp::Put { key, value, tells_previous: false, lease: Some(lease) };
        let txn = Txn { then: vec![put], ..Txn::default() };
        let (answer, server, _) = client.write_in_time(txn).await?;
        match answer.result {
            OpResult::NoLease => Err(ClientError::NoLease),
            OpResult::LeaseFull => Err(ClientError::LeaseFull),
            _ => Ok(PutOk { timestamp: answer.timestamp, server }),
        }
    }

    /// Ends a lease now and deletes its keys, all in the version that is returned; `None` if there
    /// is no such lease.
    ///
    /// # Errors
    /// As [`Client::put`].
    fn revoke_lease(client, id: LeaseId) -> Option<Timestamp> {
        client.revoked(id).await
    }

    /// Gives leases their whole time again, counted from no earlier than this call. How long each
    /// has left, in the order given; `None` for one that there is not.
    ///
    /// # Errors
    /// Any [`ClientError`] of a request. The leases may have been kept alive all the same.
    fn keep_alive(
        client,
        leases: impl IntoIterator<Item = LeaseId>,
    ) -> Vec<Option<Duration>> {
        let leases: Vec<LeaseId> = leases.into_iter().collect();
        let deadline = client.deadline();
        let mut left = Vec::with_capacity(leases.len());
        for leases in leases.chunks(LEASES_PER_REQUEST_MAX) {
            let question = LeaseQuestion::KeepAlive(leases.to_vec());
            if let LeaseAnswer::KeptAlive(answered) = client.ask_leases(question, deadline).await? {
                left.extend(answered.into_iter().map(|left| left.map(Duration::from_millis)));
            }
        }
        Ok(left)
    }

    /// Describes a lease as the leader knows it; `None` if there is no such lease.
    ///
    /// # Errors
    /// Any [`ClientError`] of a request.
    fn lease_shown(client, id: LeaseId) -> Option<LeaseShown> {
        match client.ask_leases(LeaseQuestion::Show(id), client.deadline()).await? {
            LeaseAnswer::Leases { leases, .. } => Ok(leases.into_iter().next()),
            LeaseAnswer::KeptAlive(_) => Ok(None),
        }
    }

    /// Describes all leases, in the order of their ids.
    ///
    /// # Errors
    /// Any [`ClientError`] of a request.
    fn leases(client) -> Vec<LeaseShown> {
        let deadline = client.deadline();
        let mut all: Vec<LeaseShown> = Vec::new();
        loop {
            let after = all.last().map(|lease| lease.name.id);
            let question = LeaseQuestion::List { after };
            let LeaseAnswer::Leases { leases, has_more } =
                client.ask_leases(question, deadline).await?
            else {
                return Ok(all);
            };
            let is_over = leases.is_empty() || !has_more;
            all.extend(leases);
            if is_over {
                return Ok(all);
            }
        }
    }
}

impl Client {
    /// Asks any server, which passes the question on to the leader.
    async fn ask_leases(
        &self,
        question: LeaseQuestion,
        deadline: Duration,
    ) -> Result<LeaseAnswer, ClientError> {
        let request_bytes = question.names() * size_of::<LeaseId>();
        let sent = question.clone();
        let build = move |_| (Request::Leases(sent.clone()), ());
        let judge = move |server, (), reply| match reply {
            Reply::LeasesOk(answer) if answer.answers(&question) => Verdict::Done(answer),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        };
        let (target, retry) = (Target::AnyServer, Retry::UntilDeadline);
        self.request(target, deadline, retry, request_bytes, build, judge).await
    }

    /// Grants a lease, as [`Client::grant_lease`].
    async fn granted(
        &self,
        ttl: Duration,
        id: Option<LeaseId>,
    ) -> Result<LeaseGranted, ClientError> {
        let grant = LeaseGrant { id, ttl_ms: ttl_ms(ttl) };
        grant.check().map_err(ClientError::InvalidLease)?;
        let (answer, ..) = self.write_in_time(grant).await?;
        let id = grant.id_at(answer.timestamp);
        match answer.result {
            OpResult::Done => {
                let ttl = Duration::from_millis(grant.ttl_ms);
                Ok(LeaseGranted { id, ttl, timestamp: answer.timestamp })
            }
            OpResult::LeaseExists => Err(ClientError::LeaseExists(id.0)),
            _ => Err(ClientError::TooManyLeases),
        }
    }

    /// Grants a lease that is kept alive, as [`Client::lease`].
    pub(super) async fn granted_and_kept(&self, ttl: Duration) -> Result<Lease, ClientError> {
        // The lease began later, when the leader had applied the grant.
        let asked = Instant::now();
        let LeaseGranted { id, ttl, timestamp } = self.granted(ttl, None).await?;
        let lost = Arc::new(Latch::default());
        self.inner.leases.keep(self, id, ttl, asked, Arc::clone(&lost))?;
        Ok(Lease { client: self.clone(), id, ttl, timestamp, lost })
    }

    /// Ends a lease, as [`Client::revoke_lease`].
    pub(super) async fn revoked(&self, id: LeaseId) -> Result<Option<Timestamp>, ClientError> {
        // Whoever has a lock has one key. A revoke of few keys need not wait for long writes.
        let few = LeaseRevoke { id, keys_max: Some(FEW_KEYS) };
        let (mut answer, ..) = self.write_in_time(few).await?;
        if answer.result == OpResult::TooLong {
            (answer, ..) = self.write_in_time(LeaseRevoke { id, keys_max: None }).await?;
        }
        Ok((answer.result == OpResult::Done).then_some(answer.timestamp))
    }
}

/// A lease that keeps itself alive.
///
/// It is lost when a server says that it is gone, or when it could not be kept alive for as long as
/// its TTL: by this machine's clock, counted from when the request was sent, so that its holder
/// knows before anybody else can. Dropping it gives it up: it ends when its time is over.
///
/// ```
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let client = acervo::Client::connect(group.servers())?;
/// let lease = client.lease(Duration::from_secs(10))?;
/// assert!(!lease.is_lost());
/// assert!(lease.revoke()?.is_some());
/// assert_eq!(client.leases()?, []);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Lease {
    client: Client,
    id: LeaseId,
    ttl: Duration,
    timestamp: Timestamp,
    lost: Arc<Latch>,
}

impl Lease {
    /// The id with which keys are put.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// How long it lives after it was kept alive.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The version of its grant.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// Whether it is lost, or may be by now.
    pub fn is_lost(&self) -> bool {
        self.lost.is_open() || !self.client.inner.leases.is_valid(self.id, Instant::now())
    }

    /// Waits until it is lost, for no longer than this. Whether it is.
    pub fn wait_lost(&self, timeout: Duration) -> bool {
        self.lost.wait_for(timeout)
    }

    /// Is done when it is lost, or given up.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        self.lost.opened()
    }

    /// What tells that it is lost, or given up.
    pub(super) fn loss(&self) -> &Arc<Latch> {
        &self.lost
    }

    /// Ends it and deletes its keys now; `None` if it had ended before.
    ///
    /// # Errors
    /// Those of [`Client::revoke_lease`]. It is not kept alive any more, and ends when its time is
    /// over.
    pub fn revoke(self) -> Result<Option<Timestamp>, ClientError> {
        self.client.inner.leases.give_up(self.id);
        self.client.revoke_lease(self.id)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lease { id, ttl, timestamp, .. } = self;
        f.debug_struct("Lease")
            .field("id", id)
            .field("ttl", ttl)
            .field("timestamp", timestamp)
            .finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.client.inner.leases.give_up(self.id);
    }
}

/// The leases that a client keeps alive, and the thread that does.
#[derive(Default)]
pub(super) struct LeaseKeeper {
    shared: Arc<KeeperShared>,
}

#[derive(Default)]
struct KeeperShared {
    state: Mutex<KeeperState>,
    /// There is another lease, or one less.
    changed: Condvar,
}

#[derive(Default)]
struct KeeperState {
    kept: KeptLeases<Arc<Latch>>,
    has_thread: bool,
}

impl LeaseKeeper {
    fn keep(
        &self,
        client: &Client,
        id: LeaseId,
        ttl: Duration,
        asked: Instant,
        lost: Arc<Latch>,
    ) -> Result<(), ClientError> {
        let mut state = lock(&self.shared.state);
        state.kept.insert(id, ttl, asked, lost);
        if !state.has_thread {
            // What its caller's calls have left of their time is not the lease's.
            let client = Client { until: None, ..client.clone() };
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("acervo-leases".to_owned());
            if let Err(error) = thread.spawn(move || shared.run(&client)) {
                state.kept.remove(id);
                return Err(ClientError::Thread(error.to_string()));
            }
            state.has_thread = true;
        }
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Whoever waits for its loss need not wait any more.
    pub(super) fn give_up(&self, id: LeaseId) {
        let given_up = lock(&self.shared.state).kept.remove(id);
        if let Some(lost) = given_up {
            lost.open();
        }
        self.shared.changed.notify_all();
    }

    fn is_valid(&self, id: LeaseId, now: Instant) -> bool {
        lock(&self.shared.state).kept.is_valid(id, now)
    }
}

impl KeeperShared {
    /// Keeps leases alive until there are none.
    fn run(&self, client: &Client) {
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            for lost in state.kept.take_lost(now) {
                lost.open();
            }
            let Some(next) = state.kept.next_due() else {
                state.has_thread = false;
                return;
            };
            let Some((due, until)) = state.kept.due(now, LEASES_PER_REQUEST_MAX) else {
                state = wait(&self.changed, state, next.saturating_duration_since(now));
                continue;
            };
            drop(state);
            let answer = client.until(until).keep_alive(due.iter().copied());
            state = lock(&self.state);
            match answer {
                Ok(left) => {
                    for (id, left) in due.into_iter().zip(left) {
                        if let Some(lost) = state.kept.answered(id, now, left.is_some()) {
                            lost.open();
                        }
                    }
                }
                // Whatever it is, it may be over in a moment.
                Err(_) => state.kept.failed(&due, Instant::now()),
            }
        }
    }
}
