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
use crate::model::{
    Condition, Del, DelAll, DelRange, History, Learned, OpResult, OpShape, Operation, Previous,
    Put, PutAll, PutIf, RequestId, Row, SetHistory, Timestamp, Trim, WriteAnswer, WriteOp,
};
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

/// What came of a write on one key under a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionalPut {
    /// The condition held, and the value is stored.
    Stored(PutOk),
    /// The condition did not hold, and nothing was written.
    Conflict(Conflict),
}

/// What a key had instead of what a condition asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The newest version and value of the key when the write was tried; `None` where there was no
    /// such key.
    pub found: Option<Version>,
    /// When that was, in microseconds since the Unix epoch. No key has this version.
    pub timestamp: Timestamp,
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
    /// read within a minute of the write may be [`ClientError::Expired`].
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
    /// As [`Client::put`]. A previous value that is longer than 16 KiB,
    /// or that the leader does not trust itself to tell, is read after the write:
    /// [`ClientError::PreviousUnread`] when that fails.
    pub fn replace(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Written, ClientError> {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        wait(self.write_one(key.clone(), Put { key, value, tells_previous: true }))
    }

    /// Stores a new newest version of a key, durably, if `condition` holds, and else changes
    /// nothing and tells what the key has: compare-and-set, by versions. However often the write is
    /// sent, the condition is looked at once: a retry is told what came of the first, whatever has
    /// been written since.
    ///
    /// ```
    /// use acervo::client::{Condition, ConditionalPut};
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::server::LocalGroup::start(dir.path())?;
    /// # let client = acervo::Client::connect(group.servers())?;
    /// // Counts to 1, however many do so at the same time.
    /// let mut condition = Condition::Absent;
    /// let mut count = 0;
    /// loop {
    ///     match client.put_if("visits", (count + 1).to_string(), condition)? {
    ///         ConditionalPut::Stored(_) => break,
    ///         ConditionalPut::Conflict(conflict) => {
    ///             let found = conflict.found.as_ref();
    ///             condition = match found {
    ///                 Some(found) => Condition::Version(found.timestamp),
    ///                 None => Condition::Absent,
    ///             };
    ///             let value = found.map(|found| String::from_utf8_lossy(&found.value));
    ///             count = value.and_then(|value| value.parse().ok()).unwrap_or(0);
    ///         }
    ///     }
    /// }
    /// assert_eq!(client.get("visits")?.value.as_deref(), Some(&b"1"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::put`]. When what the key has instead is longer than
    /// 16 KiB, or the leader does not trust itself to tell, it is read
    /// after the write, and an error of that read says so; nothing was written then.
    pub fn put_if(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        condition: Condition,
    ) -> Result<ConditionalPut, ClientError> {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        wait(self.put_conditionally(PutIf { key, value, condition }))
    }

    /// Removes every version of a key, durably, and tells the newest.
    ///
    /// # Errors
    /// As [`Client::replace`].
    pub fn del(&self, key: impl AsRef<[u8]>) -> Result<Written, ClientError> {
        let key = check_key(key.as_ref())?;
        wait(self.write_one(key.clone(), Del { key, tells_previous: true }))
    }

    /// Removes every version of a key but the newest, durably, and tells that one.
    ///
    /// # Errors
    /// As [`Client::replace`].
    pub fn trim(&self, key: impl AsRef<[u8]>) -> Result<Written, ClientError> {
        let key = check_key(key.as_ref())?;
        wait(self.write_one(key.clone(), Trim { key, tells_previous: true }))
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
        let (deadline, retry) = (self.deadline(), Retry::UntilDeadline);
        let (answer, _) = wait(self.write(SetHistory { history }, deadline, retry))?;
        Ok(answer.timestamp)
    }
}

impl Client {
    async fn put_conditionally(&self, op: PutIf) -> Result<ConditionalPut, ClientError> {
        let key = op.key.clone();
        let (answer, server) = self.write(op, self.deadline(), Retry::UntilDeadline).await?;
        let timestamp = answer.timestamp;
        match answer.result {
            OpResult::Done => Ok(ConditionalPut::Stored(PutOk { timestamp, server })),
            OpResult::ConditionFailed { .. } => {
                let found = self.previous(key, answer).await?;
                Ok(ConditionalPut::Conflict(Conflict { found, timestamp, server }))
            }
        }
    }

    pub(super) async fn put_pairs(
        &self,
        pairs: Vec<(Bytes, Bytes)>,
    ) -> Result<WrittenMany, ClientError> {
        let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
        self.write_many(PutAll { pairs }, Wanted::keys(keys)).await
    }

    pub(super) async fn del_keys(&self, keys: Vec<Bytes>) -> Result<WrittenMany, ClientError> {
        self.write_many(DelAll { keys: keys.clone() }, Wanted::keys(keys)).await
    }

    pub(super) async fn del_keys_of(&self, range: KeyRange) -> Result<WrittenMany, ClientError> {
        let (from, to) = (range.from.clone(), range.to.clone());
        self.write_many(DelRange { from, to }, Wanted::Range(range)).await
    }

    /// A write on one key that tells what the key had before.
    pub(super) async fn write_one(
        &self,
        key: Bytes,
        op: impl Into<WriteOp>,
    ) -> Result<Written, ClientError> {
        let (answer, server) = self.write(op, self.deadline(), Retry::UntilDeadline).await?;
        let timestamp = answer.timestamp;
        let unread = |why| ClientError::PreviousUnread { timestamp, why: Box::new(why) };
        let previous = self.previous(key, answer).await.map_err(unread)?;
        Ok(Written { timestamp, previous, server })
    }

    /// The version that a key had before a write: as the answer tells it, or read where the answer
    /// leaves it out.
    async fn previous(
        &self,
        key: Bytes,
        answer: WriteAnswer,
    ) -> Result<Option<Version>, ClientError> {
        match answer.previous {
            Some(Previous::Absent) => Ok(None),
            Some(Previous::Value { timestamp, value: Some(value) }) => {
                Ok(Some(Version { timestamp, value }))
            }
            // Too long to be sent unasked, or not known where the write was done.
            Some(Previous::Value { value: None, .. }) | None => {
                let mut before = Rows::before(self, Wanted::keys(vec![key]), answer.timestamp);
                let before = before.advance().await;
                let version =
                    |Row { timestamp, value, .. }| Some(Version { timestamp, value: value? });
                Ok(before.transpose()?.and_then(version))
            }
        }
    }

    async fn write_many(
        &self,
        op: impl Into<WriteOp>,
        wanted: Wanted,
    ) -> Result<WrittenMany, ClientError> {
        let op = op.into();
        let OpShape { keys, bytes, .. } = OpShape::of(&op);
        if keys > limits::TRANSACTION_KEYS_MAX {
            return Err(ClientError::TooManyKeys(keys));
        }
        if bytes > limits::TRANSACTION_BYTES_MAX {
            return Err(ClientError::TooManyBytes(bytes));
        }
        let (answer, server) = self.write(op, self.deadline(), Retry::UntilDeadline).await?;
        let timestamp = answer.timestamp;
        Ok(WrittenMany { timestamp, server, rows: Rows::before(self, wanted, timestamp) })
    }

    pub(super) async fn put_with(
        &self,
        key: Bytes,
        value: Bytes,
        retry: Retry,
    ) -> Result<PutOk, ClientError> {
        let op = Put { key, value, tells_previous: false };
        let (answer, server) = self.write(op, self.deadline(), retry).await?;
        Ok(PutOk { timestamp: answer.timestamp, server })
    }

    /// A write under one identity, however often it is sent; its answer, and the server that gave
    /// it.
    pub(super) async fn write(
        &self,
        op: impl Into<WriteOp>,
        deadline: Duration,
        retry: Retry,
    ) -> Result<(WriteAnswer, SocketAddr), ClientError> {
        let op = Arc::new(op.into());
        let request_bytes = OpShape::of(&op).memory_bytes();
        let (sent, seen) = (Arc::clone(&op), Arc::clone(&self.inner.seen));
        let build = move |identity: Option<RequestId>| {
            let Some(request) = identity else { panic!("a write without an identity: {sent:?}") };
            let op = WriteOp::clone(&sent);
            (Request::Write(WriteRequest { request, op }), ())
        };
        let judge = move |server, (), reply| match reply {
            Reply::WriteOk(answer) if answer.result == OpResult::Done || op.is_conditional() => {
                learn(&mut lock(&seen), &op, &answer);
                Verdict::Done((answer, server))
            }
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
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

/// Remembers what the answer to a write says of the newest versions, so that no later read goes
/// back behind it.
fn learn(seen: &mut Seen, op: &WriteOp, answer: &WriteAnswer) {
    seen.raise_session(answer.timestamp);
    match op.learned(answer) {
        Learned::Newest(key, version) => seen.wrote(key, version),
        Learned::Gone(key) => seen.absent(key, answer.timestamp),
        Learned::ManyKeys => seen.saw(answer.timestamp),
        Learned::NoKey => {}
    }
}
