//! Reads of one key, newest or as of a version, and what has to be known before the past can be
//! read.
//!
//! As of a version, a server answers once it has applied everything up to it; one that has not
//! refuses, and another is asked. When none has come so far, nobody can answer yet: perhaps nothing
//! was written since, perhaps the version lies in the future. A *barrier* settles it, a write that
//! changes nothing and takes a timestamp: all that is written later is newer than the barrier. If
//! it is past the version asked for, everything up to that version is decided; if it is not, the
//! state as of the barrier is the newest one not past that version. So the answer is the state as
//! of the older of the two.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::core::{Retry, Target, Verdict, judge_error, judge_unexpected};
use super::error::ClientError;
use super::faces::calls;
use super::seen::{Answered, Floors, Judged};
use super::sync::lock;
use super::{Client, Got, check_key};
use crate::model::{Barrier, Timestamp, Version};
use crate::wire::message::{GetRequest, ReadAt, Reply, Request};

/// What a read is to show.
///
/// ```
/// use acervo::client::{ReadOptions, Timestamp};
///
/// let past = ReadOptions::at(Timestamp(1_763_700_000_000_000));
/// let newest_of_all = ReadOptions { linearizable: true, ..ReadOptions::default() };
/// # let _ = (past, newest_of_all);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Of each key the greatest version that is not greater than this; the newest for `None`, and
    /// for a version of zero or less. In microseconds since the Unix epoch, so that a time is a
    /// version.
    pub at: Option<Timestamp>,
    /// Miss no write that was acknowledged to anybody before the call, removals included.
    pub linearizable: bool,
    /// When one key is read, tell its [`Facts`](crate::client::Facts), too. The rows of a long read
    /// have them in any case.
    pub facts: bool,
}

impl ReadOptions {
    /// As of a version.
    pub fn at(version: Timestamp) -> ReadOptions {
        ReadOptions { at: Some(version), ..ReadOptions::default() }
    }

    pub(super) fn version(self) -> Option<Timestamp> {
        self.at.filter(|version| *version > Timestamp::ZERO)
    }
}

calls! {
    /// Reads the newest value of a key from any server that has caught up with what this client
    /// has seen.
    ///
    /// # Errors
    /// Any [`ClientError`] of a request; [`ClientError::TimedOut`] also when no server catches up.
    fn get(client, key: impl AsRef<[u8]>) -> Got {
        client.get_as(check_key(key.as_ref())?, ReadOptions::default()).await
    }

    /// Reads the newest committed value of a key: no write acknowledged to anyone before the call
    /// is missed.
    ///
    /// # Errors
    /// As [`Client::get`], and [`ClientError::NoMajority`].
    fn get_linearizable(client, key: impl AsRef<[u8]>) -> Got {
        let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
        client.get_as(check_key(key.as_ref())?, options).await
    }

    /// Reads a key; [`Client::get`] and [`Client::get_linearizable`] are the usual cases.
    ///
    /// As of a version, a later read says the same as an earlier one, whatever is written meanwhile
    /// and whichever servers answer, unless that version is removed or trimmed away. Any server
    /// that has come so far can answer, without a majority; when none has, one write of no effect
    /// is made to find out whether it lies in the future.
    ///
    /// ```
    /// # use acervo::client::{Client, ReadOptions};
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::LocalGroup::start(dir.path())?;
    /// # let client = Client::connect(group.servers())?;
    /// let first = client.put("title", "Helena")?;
    /// client.put("title", "Iaiá Garcia")?;
    /// let then = client.read("title", ReadOptions::at(first.timestamp))?;
    /// assert_eq!(then.value(), Some(&b"Helena"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::get`]; [`ClientError::NoMajority`] when the read is linearizable, or as of a
    /// version that no server has reached.
    fn read(client, key: impl AsRef<[u8]>, options: ReadOptions) -> Got {
        client.get_as(check_key(key.as_ref())?, options).await
    }
}

/// What a server said to a GET.
pub(super) enum Read {
    /// A value or none.
    Answer(Option<Version>),
    /// `TRY_OTHER_SERVER_OR_LATER`, with the version it has of the key.
    Behind { timestamp: Option<Timestamp> },
}

/// A server's refusal to go back in time.
pub(super) fn judge_behind<T>(server: SocketAddr) -> Verdict<T> {
    Verdict::Other(format!("{server} has not yet applied what this client has seen"))
}

/// A server's answer that goes back in time although it was told not to.
pub(super) fn judge_stale<T>() -> Verdict<T> {
    Verdict::Gone("it answered with an older state than asked for".to_owned())
}

impl Client {
    pub(super) async fn get_newest(
        &self,
        key: Bytes,
        options: ReadOptions,
    ) -> Result<Got, ClientError> {
        let take = |server, _, read| match read {
            Read::Answer(found) => Verdict::Done(Got { found, server }),
            Read::Behind { .. } => judge_behind(server),
        };
        self.read_with(key, options, Retry::UntilDeadline, take).await
    }

    pub(super) async fn get_as(
        &self,
        key: Bytes,
        options: ReadOptions,
    ) -> Result<Got, ClientError> {
        let Some(at) = options.version() else { return self.get_newest(key, options).await };
        let deadline = self.deadline();
        let read = |at, retry| self.get_at(key.clone(), at, options, deadline, retry);
        self.as_of(at, deadline, read).await
    }

    /// A read whose every attempt sends the oldest timestamps that may be answered by then; `take`
    /// is told what was sent.
    pub(super) async fn read_with<T: Send + 'static>(
        &self,
        key: Bytes,
        options: ReadOptions,
        retry: Retry,
        take: impl Fn(SocketAddr, Floors, Read) -> Verdict<T> + Send + 'static,
    ) -> Result<T, ClientError> {
        let (seen, sending) = (Arc::clone(&self.inner.seen), Arc::clone(&self.inner.seen));
        let (asked, request_bytes) = (key.clone(), key.len());
        let ReadOptions { linearizable, facts, .. } = options;
        let build = move |_| {
            let sent = lock(&sending).floors(&asked);
            let (key, read_at) = (asked.clone(), ReadAt::Newest { seen: sent.key });
            let session = sent.applied;
            (Request::Get(GetRequest { key, read_at, session, linearizable, facts }), sent)
        };
        let judge = move |server, sent: Floors, reply| match reply {
            Reply::GetOk { found, as_of } => {
                let version = found.as_ref().map(|version| version.timestamp);
                match lock(&seen).accept(&key, sent, Answered { version, as_of }) {
                    Judged::New => {}
                    Judged::Overtaken => return Verdict::Again,
                    Judged::Stale => return judge_stale(),
                }
                take(server, sent, Read::Answer(found))
            }
            Reply::TryOtherServerOrLater { timestamp, .. } => {
                take(server, sent, Read::Behind { timestamp })
            }
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        };
        let (target, deadline) = (Target::AnyServer, self.deadline());
        self.request(target, deadline, retry, request_bytes, build, judge).await
    }

    /// A key as of a version. What is seen of the past does not count as seen of the key, and what
    /// was seen of the key does not hold the past back; but a removal that was seen stays one.
    async fn get_at(
        &self,
        key: Bytes,
        at: Timestamp,
        options: ReadOptions,
        deadline: Duration,
        retry: Retry,
    ) -> Result<Got, ClientError> {
        let (seen, sending) = (Arc::clone(&self.inner.seen), Arc::clone(&self.inner.seen));
        let (asked, request_bytes) = (key.clone(), key.len());
        let ReadOptions { linearizable, facts, .. } = options;
        let build = move |_| {
            let Floors { key: written, applied } = lock(&sending).floors(&asked);
            let (key, session) = (asked.clone(), applied.max(written));
            let read_at = ReadAt::Version(at);
            let reached = session.max(Some(at));
            (Request::Get(GetRequest { key, read_at, session, linearizable, facts }), reached)
        };
        let judge = move |server, reached, reply| match reply {
            Reply::GetOk { as_of, .. } if Some(as_of) < reached => judge_stale(),
            Reply::GetOk { found, as_of } => {
                if found.is_none() {
                    // Perhaps it was removed only lately: it must not come back.
                    lock(&seen).absent(&key, as_of);
                }
                Verdict::Done(Got { found, server })
            }
            Reply::TryOtherServerOrLater { .. } => judge_behind(server),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        };
        let target = Target::AnyServer;
        self.request(target, deadline, retry, request_bytes, build, judge).await
    }

    /// Reads as of `at`, by `read`, which is told as of when and how long to go on.
    pub(super) async fn as_of<T, R>(
        &self,
        at: Timestamp,
        deadline: Duration,
        read: impl Fn(Timestamp, Retry) -> R,
    ) -> Result<T, ClientError>
    where
        R: Future<Output = Result<T, ClientError>>,
    {
        let seen = lock(&self.inner.seen).session();
        if Some(at) <= seen {
            // Some server has applied up to it, so the others will.
            return read(at, Retry::UntilDeadline).await;
        }
        match read(at, Retry::EachServerOnce).await {
            Err(ClientError::Unavailable { .. } | ClientError::Unreachable { .. }) => {}
            settled => return settled,
        }
        let barrier = self.write(Barrier {}, deadline, Retry::UntilDeadline).await;
        let (barrier, _) = barrier.map_err(ClientError::of_read)?;
        read(at.min(barrier.timestamp), Retry::UntilDeadline).await
    }
}
