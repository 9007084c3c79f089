//! Writes: on one key, on many at once, and what the keys had before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::core::{Retry, Target, Verdict, judge_error, judge_unexpected};
use super::error::ClientError;
use super::faces::calls;
#[cfg(feature = "async")]
use super::rows::AsyncRows;
use super::rows::{KeyRange, Rows, Wanted};
use super::seen::Seen;
use super::sync::lock;
use super::{Client, PutOk, check_key, check_keys, check_value};
use crate::limits;
use crate::model::{
    Compact, Condition, Del, DelAll, DelRange, History, Learned, OpResult, OpShape, Operation,
    Previous, Put, PutAll, PutIf, RequestId, SetHistory, Timestamp, Trim, Version, WriteAnswer,
    WriteOp,
};
use crate::wire::message::{Reply, Request, WriteRequest};

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
pub struct WrittenMany<R = Rows> {
    /// The version it made; of a removal, its time.
    pub timestamp: Timestamp,
    /// The server that answered.
    pub server: SocketAddr,
    /// What the keys had just before: of a range, those that had something, in order; of given
    /// keys, one row each, in the order given. Nothing is read until it is asked for; what is not
    /// read within a minute of the write may be [`ClientError::Expired`].
    pub rows: R,
}

calls! {
    /// Stores a new newest version of a key, durably.
    ///
    /// # Errors
    /// Any [`ClientError`] of a request; [`ClientError::effect`] says whether the write has taken
    /// effect, as far as that is known.
    fn put(client, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> PutOk {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        client.put_with(key, value, Retry::UntilDeadline).await
    }

    /// As [`Client::put`], and tells what the key had before.
    ///
    /// # Errors
    /// As [`Client::put`]. A previous value that is longer than 16 KiB,
    /// or that the leader does not trust itself to tell, is read after the write:
    /// [`ClientError::PreviousUnread`] when that fails.
    fn replace(client, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Written {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        client.write_one(key.clone(), Put { key, value, tells_previous: true }).await
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
    /// assert_eq!(client.get("visits")?.value(), Some(&b"1"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::put`]. When what the key has instead is longer than
    /// 16 KiB, or the leader does not trust itself to tell, it is read after the write:
    /// [`ClientError::ConflictUnread`] when that fails.
    fn put_if(
        client,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        condition: Condition,
    ) -> ConditionalPut {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        client.put_under(key, value, condition).await
    }

    /// Removes every version of a key, durably, and tells the newest.
    ///
    /// # Errors
    /// As [`Client::replace`].
    fn del(client, key: impl AsRef<[u8]>) -> Written {
        let key = check_key(key.as_ref())?;
        client.write_one(key.clone(), Del { key, tells_previous: true, keeps_history: false }).await
    }

    /// Removes a key, durably, and tells what it had. Unlike after [`Client::del`], it can still be
    /// read as of an earlier time.
    ///
    /// ```
    /// # use acervo::client::{Client, ReadOptions};
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::LocalGroup::start(dir.path())?;
    /// # let client = Client::connect(group.servers())?;
    /// let written = client.put("title", "Helena")?;
    /// client.del_keeping_history("title")?;
    /// assert_eq!(client.get("title")?.value(), None);
    /// let then = client.read("title", ReadOptions::at(written.timestamp))?;
    /// assert_eq!(then.value(), Some(&b"Helena"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::replace`].
    fn del_keeping_history(client, key: impl AsRef<[u8]>) -> Written {
        let key = check_key(key.as_ref())?;
        let op = Del { key: key.clone(), tells_previous: true, keeps_history: true };
        client.write_one(key, op).await
    }

    /// Removes every version of a key but the newest, durably, and tells that one.
    ///
    /// # Errors
    /// As [`Client::replace`].
    fn trim(client, key: impl AsRef<[u8]>) -> Written {
        let key = check_key(key.as_ref())?;
        client.write_one(key.clone(), Trim { key, tells_previous: true }).await
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
    /// assert_eq!(before[0].value(), Some(&b"100"[..]));
    /// assert_eq!(before[1].value(), None, "there was no credit before");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::TooManyKeys`] and [`ClientError::TooManyBytes`] when it
    /// is more than can be written at once.
    fn put_all(
        client,
        pairs: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
    ) -> WrittenMany | WrittenMany<AsyncRows> {
        let pairs = pairs.into_iter().map(|(key, value)| {
            Ok((check_key(key.as_ref())?, check_value(value.as_ref())?))
        });
        let pairs = pairs.collect::<Result<Vec<_>, ClientError>>()?;
        let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
        client.write_many(PutAll { pairs }, Wanted::keys(keys)).await
    }

    /// Removes every version of each key, all or none.
    ///
    /// # Errors
    /// As [`Client::put_all`].
    fn del_all(
        client,
        keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> WrittenMany | WrittenMany<AsyncRows> {
        let keys = check_keys(keys)?;
        let op = DelAll { keys: keys.clone(), keeps_history: false };
        client.write_many(op, Wanted::keys(keys)).await
    }

    /// Removes every version of every key from `from` to `to`, both included, at once, however many
    /// they are. Nothing is removed when `from` is greater than `to`.
    ///
    /// # Errors
    /// As [`Client::put`].
    fn del_range(
        client,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
    ) -> WrittenMany | WrittenMany<AsyncRows> {
        client.remove(KeyRange::between(from, to)?, false).await
    }

    /// Removes the keys of any kind of range, as [`Client::del_range`].
    ///
    /// # Errors
    /// As [`Client::put`].
    fn del_scan(client, range: KeyRange) -> WrittenMany | WrittenMany<AsyncRows> {
        client.remove(range, false).await
    }

    /// Deletes the keys of any kind of range as [`Client::del_keeping_history`] does a key, all at
    /// one version: reads as of a time before go on to find them. That takes a place for each key,
    /// so a range of more than 131,072 is refused.
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::RangeTooLong`].
    fn del_scan_keeping_history(
        client,
        range: KeyRange,
    ) -> WrittenMany | WrittenMany<AsyncRows> {
        client.remove(range, true).await
    }

    /// Changes what the group keeps of what newer versions have replaced, from now on: `--history`
    /// of its servers counts only when it is founded. The write's timestamp.
    ///
    /// # Errors
    /// As [`Client::put`].
    fn set_history(client, history: History) -> Timestamp {
        Ok(client.write_in_time(SetHistory { history }).await?.0.timestamp)
    }

    /// Ends reads as of versions below `version`, or below that of this write if it is less: from
    /// now on they fail with [`ClientError::Compacted`], and what only they would show is removed
    /// for good in the background. An older version than before changes nothing. The write's
    /// timestamp.
    ///
    /// # Errors
    /// As [`Client::put`].
    fn compact(client, version: Timestamp) -> Timestamp {
        Ok(client.write_in_time(Compact { version }).await?.0.timestamp)
    }
}

#[cfg(feature = "async")]
impl From<WrittenMany> for WrittenMany<AsyncRows> {
    fn from(WrittenMany { timestamp, server, rows }: WrittenMany) -> WrittenMany<AsyncRows> {
        WrittenMany { timestamp, server, rows: rows.into() }
    }
}

impl Client {
    /// Stores a value if a condition holds.
    pub(super) async fn put_under(
        &self,
        key: Bytes,
        value: Bytes,
        condition: Condition,
    ) -> Result<ConditionalPut, ClientError> {
        let op = PutIf { key: key.clone(), value, condition };
        let (answer, server, rest) = self.write_in_time(op).await?;
        let timestamp = answer.timestamp;
        // It comes to nothing else: `may_come_to` was asked.
        let OpResult::ConditionFailed { newest } = answer.result else {
            return Ok(ConditionalPut::Stored(PutOk { timestamp, server }));
        };
        let found = match newest {
            None => None,
            Some(newest) => rest
                .previous(key, answer)
                .await
                .map_err(|why| ClientError::ConflictUnread { newest, why: Box::new(why) })?,
        };
        Ok(ConditionalPut::Conflict(Conflict { found, timestamp, server }))
    }

    async fn remove(
        &self,
        range: KeyRange,
        keeps_history: bool,
    ) -> Result<WrittenMany, ClientError> {
        let (from, to) = (range.from.clone(), range.to.clone());
        self.write_many(DelRange { from, to, keeps_history }, Wanted::Range(range)).await
    }

    /// A write on one key that tells what the key had before.
    pub(super) async fn write_one(
        &self,
        key: Bytes,
        op: impl Into<WriteOp>,
    ) -> Result<Written, ClientError> {
        let (answer, server, rest) = self.write_in_time(op).await?;
        let timestamp = answer.timestamp;
        let unread = |why| ClientError::PreviousUnread { timestamp, why: Box::new(why) };
        let previous = rest.previous(key, answer).await.map_err(unread)?;
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
            Some(Previous::Value { timestamp, facts, value: Some(value) }) => {
                Ok(Some(Version { timestamp, value, facts: Some(facts) }))
            }
            // Too long to be sent unasked, or not known where the write was done.
            Some(Previous::Value { value: None, .. }) | None => {
                let mut before = Rows::before(self, Wanted::keys(vec![key]), answer.timestamp);
                Ok(before.advance().await.transpose()?.and_then(|row| row.found))
            }
        }
    }

    async fn write_many(
        &self,
        op: impl Into<WriteOp>,
        wanted: Wanted,
    ) -> Result<WrittenMany, ClientError> {
        let op = op.into();
        check_size(&op)?;
        let (answer, server, _) = self.write_in_time(op).await?;
        let timestamp = answer.timestamp;
        if answer.result == OpResult::TooLong {
            return Err(ClientError::RangeTooLong);
        }
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

    /// A write that has a call's whole time; its answer, the server that gave it, and a client for
    /// what the call has yet to do in the rest of that time.
    pub(super) async fn write_in_time(
        &self,
        op: impl Into<WriteOp>,
    ) -> Result<(WriteAnswer, SocketAddr, Client), ClientError> {
        let deadline = self.deadline();
        let (answer, server) = self.write(op, deadline, Retry::UntilDeadline).await?;
        let rest = Client { until: Some(deadline), ..self.clone() };
        Ok((answer, server, rest))
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
            Reply::WriteOk(answer) if op.may_come_to(answer.result) && fits(&op, &answer) => {
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

/// Whether an answer tells as much of a transaction as this operation has.
fn fits(op: &WriteOp, answer: &WriteAnswer) -> bool {
    match (op, answer.result, &answer.txn) {
        (WriteOp::Txn(txn), OpResult::Txn { branches }, Some(answer)) => {
            // The lowest bit is that of the outermost one.
            answer.succeeded == (branches & 1 == 1) && txn.fits(answer)
        }
        (_, _, told) => told.is_none(),
    }
}

/// Checks that an operation is no larger than one write may be.
pub(super) fn check_size(op: &WriteOp) -> Result<(), ClientError> {
    let OpShape { keys, bytes, .. } = OpShape::of(op);
    if keys > limits::TRANSACTION_KEYS_MAX {
        return Err(ClientError::TooManyKeys(keys));
    }
    if bytes > limits::TRANSACTION_BYTES_MAX {
        return Err(ClientError::TooManyBytes(bytes));
    }
    Ok(())
}

/// Remembers what the answer to a write says of the newest versions, so that no later read goes
/// back behind it.
fn learn(seen: &mut Seen, op: &WriteOp, answer: &WriteAnswer) {
    seen.raise_session(Some(answer.timestamp));
    match op.learned(answer) {
        Learned::Newest(key, version) => seen.wrote(key, version),
        Learned::Gone(key) => seen.absent(key, answer.timestamp),
        Learned::ManyKeys => seen.saw(answer.timestamp),
        Learned::NoKey => {}
    }
}
