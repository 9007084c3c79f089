//! Writes: on one key, on many at once, and what the keys had before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::call::wait;
use super::core::{Retry, Target, Verdict, judge_error, judge_unexpected};
use super::error::ClientError;
use super::rows::{KeyRange, Rows, Wanted};
use super::seen::Seen;
use super::sync::lock;
use super::{Client, PutOk, check_key, check_value};
use crate::limits;
use crate::model::{History, Previous, RequestId, Row, Timestamp, WriteOp};
use crate::wire::message::{Reply, Request, WriteRequest};

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// When the value was written, in microseconds since the Unix epoch.
    pub timestamp: Timestamp,
    /// The value, whose bytes are the application's own.
    pub value: Bytes,
}

/// A write on one key that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version it made; of a removal, its time.
    pub timestamp: Timestamp,
    /// What the key had just before; after a `trim`, what it still has.
    pub previous: Option<Version>,
    /// The server that answered.
    pub server: SocketAddr,
}

/// A write on many keys that is done, all at one version.
#[derive(Debug)]
pub struct WrittenMany {
    /// The version it made; of a removal, its time.
    pub timestamp: Timestamp,
    /// The server that answered.
    pub server: SocketAddr,
    /// What the keys had just before: of a range, those that had something, in order; of given
    /// keys, one row each, in the order given. Nothing is read until it is asked for; what is not
    /// read within [`limits::REMOVAL_GRACE`] of the write may be [`ClientError::Expired`].
    pub rows: Rows,
}

impl Client {
    /// Stores a new newest version of a key, durably.
    ///
    /// # Errors
    /// Any [`ClientError`] of a request; [`ClientError::effect`] says whether the write has taken
    /// effect, as far as that is known.
    pub fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<PutOk, ClientError> {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        wait(self.put_with(key, value, Retry::UntilDeadline))
    }

    /// As [`Client::put`], and tells what the key had before.
    ///
    /// # Errors
    /// As [`Client::put`]. A previous value that is longer than [`limits::READ_SMALL_BYTES_MAX`],
    /// or that the leader does not trust itself to tell, is read after the write:
    /// [`ClientError::PreviousUnread`] when that fails.
    pub fn replace(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Written, ClientError> {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        wait(self.write_one(key.clone(), WriteOp::Put { key, value }))
    }

    /// Removes every version of a key, durably, and tells the newest.
    ///
    /// # Errors
    /// As [`Client::replace`].
    pub fn del(&self, key: impl AsRef<[u8]>) -> Result<Written, ClientError> {
        let key = check_key(key.as_ref())?;
        wait(self.write_one(key.clone(), WriteOp::Del { key }))
    }

    /// Removes every version of a key but the newest, durably, and tells that one.
    ///
    /// # Errors
    /// As [`Client::replace`].
    pub fn trim(&self, key: impl AsRef<[u8]>) -> Result<Written, ClientError> {
        let key = check_key(key.as_ref())?;
        wait(self.write_one(key.clone(), WriteOp::Trim { key }))
    }

    /// Stores a value under each key, all or none, at one version. Of a key given twice the last
    /// value counts.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::LocalGroup::start(dir.path())?;
    /// # let client = acervo::Client::connect(group.servers())?;
    /// client.put("debit", "100")?;
    /// let done = client.put_all([("debit", "90"), ("credit", "110")])?;
    /// println!("both have version {}", done.timestamp);
    ///
    /// let before = done.rows.collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(before[0].value.as_deref(), Some(&b"100"[..]));
    /// assert_eq!(before[1].value, None, "there was no credit before");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::TooManyKeys`] and [`ClientError::TooManyBytes`] when it
    /// is more than can be written at once.
    pub fn put_all<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<WrittenMany, ClientError> {
        wait(self.put_pairs(check_pairs(pairs)?))
    }

    /// Removes every version of each key, all or none.
    ///
    /// # Errors
    /// As [`Client::put_all`].
    pub fn del_all<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<WrittenMany, ClientError> {
        wait(self.del_keys(super::check_keys(keys)?))
    }

    /// Removes every version of every key from `from` to `to`, both included, at once, however many
    /// they are. Nothing is removed when `from` is greater than `to`.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn del_range(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
    ) -> Result<WrittenMany, ClientError> {
        self.del_scan(KeyRange::between(from, to)?)
    }

    /// Removes the keys of any kind of range, as [`Client::del_range`].
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn del_scan(&self, range: KeyRange) -> Result<WrittenMany, ClientError> {
        wait(self.del_keys_of(range))
    }

    /// Changes what the group keeps of what newer versions have replaced, from now on: `--history`
    /// of its servers counts only when it is founded. The write's timestamp.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn set_history(&self, history: History) -> Result<Timestamp, ClientError> {
        let op = WriteOp::SetHistory { history };
        let (timestamp, _) = wait(self.write_plainly(op, self.deadline()))?;
        Ok(timestamp)
    }
}

impl Client {
    pub(super) async fn put_pairs(
        &self,
        pairs: Vec<(Bytes, Bytes)>,
    ) -> Result<WrittenMany, ClientError> {
        let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
        self.write_many(WriteOp::PutAll { pairs }, Wanted::keys(keys)).await
    }

    pub(super) async fn del_keys(&self, keys: Vec<Bytes>) -> Result<WrittenMany, ClientError> {
        self.write_many(WriteOp::DelAll { keys: keys.clone() }, Wanted::keys(keys)).await
    }

    pub(super) async fn del_keys_of(&self, range: KeyRange) -> Result<WrittenMany, ClientError> {
        let (from, to) = (range.from.clone(), range.to.clone());
        self.write_many(WriteOp::DelRange { from, to }, Wanted::Range(range)).await
    }

    pub(super) async fn write_one(&self, key: Bytes, op: WriteOp) -> Result<Written, ClientError> {
        let (timestamp, previous, server) = self.write_telling(op).await?;
        let at = timestamp;
        let previous = match previous {
            Some(Previous { timestamp: Timestamp::ZERO, .. }) => None,
            Some(Previous { timestamp, value: Some(value) }) => Some(Version { timestamp, value }),
            // Too long to be sent unasked, or not known where the write was done.
            Some(Previous { value: None, .. }) | None => {
                let mut before = Rows::before(self, Wanted::keys(vec![key]), timestamp);
                let before = before.advance().await;
                let version =
                    |Row { timestamp, value, .. }| Some(Version { timestamp, value: value? });
                let why = |why| ClientError::PreviousUnread { timestamp: at, why: Box::new(why) };
                before.transpose().map_err(why)?.and_then(version)
            }
        };
        Ok(Written { timestamp, previous, server })
    }

    async fn write_many(&self, op: WriteOp, wanted: Wanted) -> Result<WrittenMany, ClientError> {
        let keys = op.pairs().count();
        if keys > limits::TRANSACTION_KEYS_MAX {
            return Err(ClientError::TooManyKeys(keys));
        }
        if op.bytes() > limits::TRANSACTION_BYTES_MAX {
            return Err(ClientError::TooManyBytes(op.bytes()));
        }
        let (timestamp, server) = self.write_plainly(op, self.deadline()).await?;
        Ok(WrittenMany { timestamp, server, rows: Rows::before(self, wanted, timestamp) })
    }

    pub(super) async fn put_with(
        &self,
        key: Bytes,
        value: Bytes,
        retry: Retry,
    ) -> Result<PutOk, ClientError> {
        let take = |server, reply| match reply {
            Reply::PutOk { timestamp } => Ok((timestamp, PutOk { timestamp, server })),
            other => Err(other),
        };
        self.write(WriteOp::Put { key, value }, false, self.deadline(), retry, take).await
    }

    /// A write of whose answer only the timestamp counts.
    pub(super) async fn write_plainly(
        &self,
        op: WriteOp,
        deadline: Duration,
    ) -> Result<(Timestamp, SocketAddr), ClientError> {
        let take = |server, reply| match reply {
            Reply::WriteOk { timestamp, .. } => Ok((timestamp, (timestamp, server))),
            other => Err(other),
        };
        self.write(op, false, deadline, Retry::UntilDeadline, take).await
    }

    /// A write on one key that tells what was before.
    async fn write_telling(
        &self,
        op: WriteOp,
    ) -> Result<(Timestamp, Option<Previous>, SocketAddr), ClientError> {
        let take = |server, reply| match reply {
            Reply::WriteOk { timestamp, previous } => {
                Ok((timestamp, (timestamp, previous, server)))
            }
            other => Err(other),
        };
        self.write(op, true, self.deadline(), Retry::UntilDeadline, take).await
    }

    /// A write under one identity, however often it is sent. `take` picks the answer and its
    /// timestamp out of the right reply and gives back any other.
    async fn write<T: Send + 'static>(
        &self,
        op: WriteOp,
        previous: bool,
        deadline: Duration,
        retry: Retry,
        take: impl Fn(SocketAddr, Reply) -> Result<(Timestamp, T), Reply> + Send + 'static,
    ) -> Result<T, ClientError> {
        let request_bytes = op.memory_bytes();
        let op = Arc::new(op);
        let (sent, seen) = (Arc::clone(&op), Arc::clone(&self.inner.seen));
        let build = move |identity: Option<RequestId>| {
            let Some(request) = identity else { panic!("a write without an identity: {sent:?}") };
            let op = WriteOp::clone(&sent);
            (Request::Write(WriteRequest { request, op, previous }), ())
        };
        let judge = move |server, (), reply| match take(server, reply) {
            Ok((timestamp, answer)) => {
                saw_written(&mut lock(&seen), &op, timestamp);
                Verdict::Done(answer)
            }
            Err(Reply::Error(error)) => judge_error(server, error),
            Err(_) => judge_unexpected(),
        };
        let target = Target::LeaderFirst;
        self.request(target, deadline, retry, request_bytes, build, judge).await
    }
}

pub(super) fn check_pairs<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    pairs: impl IntoIterator<Item = (K, V)>,
) -> Result<Vec<(Bytes, Bytes)>, ClientError> {
    let check = |(key, value): (K, V)| Ok((check_key(key.as_ref())?, check_value(value.as_ref())?));
    pairs.into_iter().map(check).collect()
}

fn saw_written(seen: &mut Seen, op: &WriteOp, timestamp: Timestamp) {
    match op {
        WriteOp::Put { key, .. } | WriteOp::Del { key } => seen.wrote(key, timestamp),
        // It makes no version of its key.
        WriteOp::Trim { key } => seen.absent(key, timestamp),
        WriteOp::PutAll { .. } | WriteOp::DelAll { .. } | WriteOp::DelRange { .. } => {
            seen.saw(timestamp);
        }
        WriteOp::Mark | WriteOp::SetHistory { .. } => seen.raise_session(timestamp),
    }
}
