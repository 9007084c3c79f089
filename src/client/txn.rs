//! Transactions, and what is made of them: counters, and keys that are numbered by their versions.
//!
//! **What a client learns.** A transaction has read and written one state, which its timestamp
//! names; from then on every read of this client is answered from that state or a later one,
//! whatever branch was taken and whichever keys are meant.
//!
//! **Values that an answer leaves out** are read here, so that callers get all of them: what the
//! transaction itself has written is known, and the rest is read as of just before it, where it
//! stays for [`REMOVAL_GRACE`](crate::limits::REMOVAL_GRACE). A transaction that is done and whose
//! results cannot be told any more ends with [`ClientError::ResultsUnread`].

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::core::{Retry, Target, Verdict, judge_error, judge_unexpected};
use super::error::ClientError;
use super::faces::calls;
use super::reads::{ReadOptions, judge_behind, judge_stale};
use super::rows::{Rows, Wanted};
use super::sync::lock;
use super::writes::{ConditionalPut, check_size};
use super::{Client, PutOk, check_key, check_value};
use crate::limits::VALUE_BYTES_MAX;
use crate::model::{
    Condition, OpResult, OpShape, Operation, PutSequential, Row, Timestamp, Txn, TxnAnswer, TxnOp,
    TxnResult, TxnRow, TxnVersion, Version, WriteOp,
};
use crate::wire::message::{Reply, Request, TxnRequest};

/// Bytes of left-out values that are read for one transaction. Its answer has a mebibyte of values
/// by itself; whoever wants more than this reads a range row by row.
const LEFT_OUT_BYTES_MAX: usize = 64 << 20;

/// How long a counter waits before it is tried again, once somebody else has been faster: about
/// the time of a write on a fast network, so that the next one in the queue is not late.
const INCR_PAUSE_MIN: Duration = Duration::from_millis(1);
/// The wait doubles up to this: hundreds may count at once, and each of them is to get its turn
/// well within a request's time.
const INCR_PAUSE_MAX: Duration = Duration::from_millis(250);

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnDone {
    /// The version that its writes made; of one that writes on no branch, the version as of which
    /// it has read.
    pub timestamp: Timestamp,
    /// Whether every comparison held, so that the operations of `then` were done, and else those
    /// of `or_else`.
    pub succeeded: bool,
    /// One for each operation of that branch, in their order.
    pub results: Vec<TxnOutput>,
    /// The server that answered.
    pub server: SocketAddr,
}

/// What an operation of a transaction answers. Versions come with their facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutput {
    /// What a key had; `None` for no value.
    Get(Option<Version>),
    /// Keys of a range that had a value.
    Range {
        /// In the order asked for; none where only their number was asked for.
        rows: Vec<Row>,
        /// The number of rows, or of the keys that were counted.
        count: u64,
        /// The range has more keys, of which nothing is told.
        has_more: bool,
    },
    /// A value is stored.
    Put {
        /// What the key had before, if that was asked for and there was something.
        previous: Option<Version>,
    },
    /// A key is removed, if it was there.
    Del {
        /// What the key had before, if that was asked for and there was something.
        previous: Option<Version>,
    },
    /// The keys of a range are removed.
    DelRange {
        /// How many there were.
        removed: u64,
        /// What they had before, if that was asked for; fewer than `removed` where an answer has
        /// no room for more.
        rows: Vec<Row>,
    },
    /// What a transaction inside came to.
    Txn {
        /// Whether its comparisons held.
        succeeded: bool,
        /// One for each operation of the branch that it took.
        results: Vec<TxnOutput>,
    },
}

/// A counter that has been raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incremented {
    /// The number that the key has now.
    pub value: i64,
    /// The version of that value.
    pub timestamp: Timestamp,
    /// The server that answered.
    pub server: SocketAddr,
}

/// A value that is stored under a key of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutSequentialOk {
    /// The prefix with the value's version behind it, in 20 digits.
    pub key: Bytes,
    /// The version of the value.
    pub timestamp: Timestamp,
    /// The server that answered.
    pub server: SocketAddr,
}

calls! {
    /// Carries out a transaction: if every comparison holds, its `then`, and else its `or_else`;
    /// as one write, with one version, and nobody reads a part of it. Each operation sees what the
    /// ones before it have done. However often it is sent, it is carried out once, and a retry is
    /// told what came of the first. One that only reads is no write: it reads one state, which has
    /// every write that was acknowledged before.
    ///
    /// ```
    /// use acervo::client::{Comparison, Txn, TxnOp, TxnOutput};
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::LocalGroup::start(dir.path())?;
    /// # let client = acervo::Client::connect(group.servers())?;
    /// client.put_all([("account:ana", "100"), ("account:bia", "100")])?;
    ///
    /// // Ten from one to the other, if neither has changed since they were looked at.
    /// let (ana, bia) = (client.get("account:ana")?, client.get("account:bia")?);
    /// let moved = client.txn(
    ///     Txn::when(Comparison::version("account:ana").equals(ana.timestamp().unwrap()))
    ///         .and(Comparison::version("account:bia").equals(bia.timestamp().unwrap()))
    ///         .then(TxnOp::put("account:ana", "90"))
    ///         .then(TxnOp::put("account:bia", "110"))
    ///         .or_else(TxnOp::get("account:ana"))
    ///         .or_else(TxnOp::get("account:bia")),
    /// )?;
    /// assert!(moved.succeeded);
    ///
    /// // The same once more: now it does not hold, and tells what there is instead.
    /// let stale = client.txn(
    ///     Txn::when(Comparison::version("account:ana").equals(ana.timestamp().unwrap()))
    ///         .then(TxnOp::put("account:ana", "80"))
    ///         .or_else(TxnOp::get("account:ana")),
    /// )?;
    /// assert!(!stale.succeeded);
    /// let TxnOutput::Get(Some(found)) = &stale.results[0] else { panic!("{stale:?}") };
    /// assert_eq!((&found.value[..], found.timestamp), (&b"90"[..], moved.timestamp));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::put_all`]. [`ClientError::InvalidTxn`] for one that no group takes, such as one
    /// that writes a key twice on a path through its branches; [`ClientError::TxnTooLong`] when a
    /// range that it compares or removes has more keys than a transaction may look through, and
    /// [`ClientError::Invalid`] when that happens to one that only reads;
    /// [`ClientError::ResultsUnread`] when it is done, and what its operations have answered cannot
    /// be told.
    fn txn(client, txn: Txn) -> TxnDone {
        match txn.writes() {
            true => client.write_txn(txn).await,
            false => client.read_txn(txn).await,
        }
    }

    /// Adds to the number that a key has, which is 0 where there is no such key, and tells the sum.
    /// However many do so at once, each addition counts, and counts once. The value is the number
    /// in decimal digits.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::LocalGroup::start(dir.path())?;
    /// # let client = acervo::Client::connect(group.servers())?;
    /// assert_eq!(client.incr("visits", 1)?.value, 1);
    /// assert_eq!(client.incr("visits", 41)?.value, 42);
    /// assert_eq!(client.get("visits")?.value(), Some(&b"42"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::NotANumber`] and [`ClientError::SumTooGreat`] when there
    /// is nothing to add to, and nothing was written.
    fn incr(client, key: impl AsRef<[u8]>, by: i64) -> Incremented {
        client.add(check_key(key.as_ref())?, by).await
    }

    /// Stores a value under a new key: the prefix with the value's version behind it, in 20 digits.
    /// So keys of one prefix are in the order in which they were stored, whoever stored them, and
    /// no two are the same: a queue.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let group = acervo::LocalGroup::start(dir.path())?;
    /// # let client = acervo::Client::connect(group.servers())?;
    /// use acervo::client::{KeyRange, ReadOptions};
    ///
    /// let first = client.put_sequential("queue/", "wash")?;
    /// client.put_sequential("queue/", "iron")?;
    /// let queue = client.scan(KeyRange::prefix("queue/")?, ReadOptions::default());
    /// let rows = queue.collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(rows[0].key, first.key);
    /// assert_eq!(rows[1].value(), Some(&b"iron"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::put`]; a prefix has to leave room for the digits.
    fn put_sequential(
        client,
        prefix: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> PutSequentialOk {
        let (prefix, value) = (check_key(prefix.as_ref())?, check_value(value.as_ref())?);
        let op = PutSequential { prefix, value };
        // The key of any version is as long as the one to come.
        check_key(&op.key(Timestamp::ZERO))?;
        let (answer, server, _) = client.write_in_time(op.clone()).await?;
        let timestamp = answer.timestamp;
        Ok(PutSequentialOk { key: op.key(timestamp), timestamp, server })
    }
}

impl Client {
    /// Refuses what can be told to be refused by every server, and what could not be sent.
    fn check_txn(op: &WriteOp) -> Result<(), ClientError> {
        let WriteOp::Txn(txn) = op else { panic!("no transaction: {op:?}") };
        let checked = if txn.writes() { txn.check() } else { txn.check_read() };
        checked.map_err(ClientError::InvalidTxn)?;
        let shape = OpShape::of(op);
        shape.check_keys()?;
        if shape.value_bytes_max > VALUE_BYTES_MAX {
            return Err(ClientError::ValueTooLong(shape.value_bytes_max));
        }
        check_size(op)
    }

    pub(super) async fn write_txn(&self, txn: Txn) -> Result<TxnDone, ClientError> {
        let op = WriteOp::from(txn.clone());
        Self::check_txn(&op)?;
        let (answer, server, rest) = self.write_in_time(op).await?;
        let timestamp = answer.timestamp;
        let branches = match answer.result {
            OpResult::Txn { branches } => branches,
            OpResult::NoLease => return Err(ClientError::NoLease),
            OpResult::LeaseFull => return Err(ClientError::LeaseFull),
            _ => return Err(ClientError::TxnTooLong),
        };
        // The bit of the outermost one.
        let succeeded = branches & 1 == 1;
        let before = Timestamp(timestamp.0.saturating_sub(1));
        let unread = |why| ClientError::ResultsUnread { timestamp, succeeded, why: Box::new(why) };
        let Some(results) = answer.txn.and_then(|answer| answer.results) else {
            let message = "they are not known any more, so late after the write".to_owned();
            return Err(unread(ClientError::Expired { server, message }));
        };
        let answer = TxnAnswer { succeeded, results: Some(results) };
        let told = LeftOut::of(&txn, &answer, Some(timestamp)).read(&rest, server, before).await;
        let results = told.and_then(|values| values.outputs(&txn, answer)).map_err(unread)?;
        Ok(TxnDone { timestamp, succeeded, results, server })
    }

    async fn read_txn(&self, txn: Txn) -> Result<TxnDone, ClientError> {
        let op = WriteOp::from(txn);
        Self::check_txn(&op)?;
        let WriteOp::Txn(txn) = op else { panic!("no transaction: {op:?}") };
        let deadline = self.deadline();
        let rest = Client { until: Some(deadline), ..self.clone() };
        let txn = Arc::new(txn);
        let (asked, sent, seen) = (txn.clone(), txn.clone(), Arc::clone(&self.inner.seen));
        let request_bytes = txn.memory_bytes();
        let sending = Arc::clone(&seen);
        let build = move |_| {
            let session = lock(&sending).session();
            let txn = Txn::clone(&sent);
            (Request::Txn(TxnRequest { txn, session, linearizable: true }), session)
        };
        let judge = move |server, session, reply| match reply {
            Reply::TxnOk { as_of, .. } if Some(as_of) < session => judge_stale(),
            Reply::TxnOk { answer, as_of } if answer.results.is_some() && asked.fits(&answer) => {
                lock(&seen).saw(as_of);
                Verdict::Done((answer, as_of, server))
            }
            Reply::TryOtherServerOrLater { .. } => judge_behind(server),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        };
        let (target, retry) = (Target::AnyServer, Retry::UntilDeadline);
        let asked = self.request(target, deadline, retry, request_bytes, build, judge);
        let (answer, timestamp, server) = asked.await?;
        let succeeded = answer.succeeded;
        let values = LeftOut::of(&txn, &answer, None).read(&rest, server, timestamp).await?;
        Ok(TxnDone { timestamp, succeeded, results: values.outputs(&txn, answer)?, server })
    }

    async fn add(&self, key: Bytes, by: i64) -> Result<Incremented, ClientError> {
        let deadline = self.deadline();
        let rest = Client { until: Some(deadline), ..self.clone() };
        let mut pause = INCR_PAUSE_MIN;
        let mut options = ReadOptions::default();
        let mut found = rest.get_as(key.clone(), options).await?.found;
        loop {
            let condition = match &found {
                None => Condition::Absent,
                Some(found) => Condition::Version(found.timestamp),
            };
            let sum = match sum(found.as_ref(), by) {
                Ok(sum) => sum,
                Err(error) if options.linearizable => return Err(error),
                // A server that lags may have said so, and something else may be true by now.
                Err(_) => {
                    options.linearizable = true;
                    found = rest.get_as(key.clone(), options).await?.found;
                    continue;
                }
            };
            let value = Bytes::from(sum.to_string());
            match rest.put_under(key.clone(), value, condition).await? {
                ConditionalPut::Stored(PutOk { timestamp, server }) => {
                    return Ok(Incremented { value: sum, timestamp, server });
                }
                ConditionalPut::Conflict(_) => {}
            }
            // What the conflict tells would be old after the pause: those who do not pause would
            // win every time.
            options.linearizable = true;
            rest.inner.driver.pause(pause, deadline).await?;
            pause = (2 * pause).min(INCR_PAUSE_MAX);
            found = rest.get_as(key.clone(), options).await?.found;
        }
    }
}

/// The number that a key has, and this in addition.
fn sum(found: Option<&Version>, by: i64) -> Result<i64, ClientError> {
    let Some(Version { timestamp, value, .. }) = found else { return Ok(by) };
    let number = str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
    let number = number.ok_or(ClientError::NotANumber(*timestamp))?;
    number.checked_add(by).ok_or(ClientError::SumTooGreat { number, by })
}

/// What an answer leaves out, and what is known of it without asking.
struct LeftOut {
    /// The version that the transaction itself has made.
    own: Option<Timestamp>,
    /// Values that it has stored.
    stored: HashMap<Bytes, Bytes>,
    /// Keys of which older values are to be read.
    missing: BTreeSet<Bytes>,
}

impl LeftOut {
    /// Looks through the answer to a transaction, which fits it.
    fn of(txn: &Txn, answer: &TxnAnswer, own: Option<Timestamp>) -> LeftOut {
        let mut left_out = LeftOut { own, stored: HashMap::new(), missing: BTreeSet::new() };
        left_out.look_through(txn, answer);
        left_out
    }

    fn look_through(&mut self, txn: &Txn, answer: &TxnAnswer) {
        for (op, result) in taken(txn, answer) {
            match (op, result) {
                (TxnOp::Get { key }, TxnResult::Get(found)) => self.note(key, found.as_ref()),
                (TxnOp::Put { key, value, .. }, TxnResult::Put { previous }) => {
                    self.note(key, previous.as_ref());
                    self.stored.insert(key.clone(), value.clone());
                }
                (TxnOp::Del { key, .. }, TxnResult::Del { previous }) => {
                    self.note(key, previous.as_ref());
                }
                (TxnOp::Range { keys_only: false, .. }, TxnResult::Range { rows, .. })
                | (TxnOp::DelRange { .. }, TxnResult::DelRange { rows, .. }) => {
                    rows.iter().for_each(|row| self.note(&row.key, Some(&row.found)));
                }
                (TxnOp::Txn(txn), TxnResult::Txn(answer)) => self.look_through(txn, answer),
                _ => {}
            }
        }
    }

    fn note(&mut self, key: &Bytes, found: Option<&TxnVersion>) {
        let is_missing =
            |found: &TxnVersion| found.value.is_none() && self.own != Some(found.timestamp);
        if found.is_some_and(is_missing) {
            self.missing.insert(key.clone());
        }
    }

    /// Reads what is missing, as of the newest version that the transaction can have met.
    async fn read(
        self,
        client: &Client,
        server: SocketAddr,
        at: Timestamp,
    ) -> Result<LeftOutValues, ClientError> {
        let LeftOut { own, stored, missing } = self;
        let mut older = HashMap::new();
        let mut bytes = 0;
        let wanted = Wanted::keys(missing.into_iter().collect());
        let mut rows = Rows::before(client, wanted, Timestamp(at.0.saturating_add(1)));
        while let Some(row) = rows.advance().await {
            let Row { key, found } = row?;
            let Some(found) = found else { continue };
            bytes += found.value.len();
            if bytes > LEFT_OUT_BYTES_MAX {
                return Err(ClientError::NoRoom(bytes));
            }
            older.insert(key, found);
        }
        Ok(LeftOutValues { own, stored, older, server })
    }
}

/// The values that an answer leaves out.
struct LeftOutValues {
    own: Option<Timestamp>,
    stored: HashMap<Bytes, Bytes>,
    older: HashMap<Bytes, Version>,
    /// The server that has answered, for the error.
    server: SocketAddr,
}

impl LeftOutValues {
    /// The results of a transaction with all values.
    fn outputs(&self, txn: &Txn, answer: TxnAnswer) -> Result<Vec<TxnOutput>, ClientError> {
        let ops = if answer.succeeded { &txn.then } else { &txn.or_else };
        let results = answer.results.unwrap_or_default();
        ops.iter().zip(results).map(|(op, result)| self.output(op, result)).collect()
    }

    fn output(&self, op: &TxnOp, result: TxnResult) -> Result<TxnOutput, ClientError> {
        let of_op = |found: Option<TxnVersion>| match (op, found) {
            (TxnOp::Get { key } | TxnOp::Put { key, .. } | TxnOp::Del { key, .. }, Some(found)) => {
                self.version(key, found).map(Some)
            }
            _ => Ok(None),
        };
        let all = |rows: Vec<TxnRow>| -> Result<Vec<Row>, ClientError> {
            rows.into_iter().map(|row| self.row(op, row)).collect()
        };
        Ok(match result {
            TxnResult::Get(found) => TxnOutput::Get(of_op(found)?),
            TxnResult::Put { previous } => TxnOutput::Put { previous: of_op(previous)? },
            TxnResult::Del { previous } => TxnOutput::Del { previous: of_op(previous)? },
            TxnResult::Range { rows, count, has_more } => {
                TxnOutput::Range { rows: all(rows)?, count, has_more }
            }
            TxnResult::DelRange { removed, rows } => {
                TxnOutput::DelRange { removed, rows: all(rows)? }
            }
            TxnResult::Txn(answer) => {
                let succeeded = answer.succeeded;
                let results = match op {
                    TxnOp::Txn(txn) => self.outputs(txn, answer)?,
                    _ => Vec::new(),
                };
                TxnOutput::Txn { succeeded, results }
            }
        })
    }

    fn row(&self, op: &TxnOp, TxnRow { key, found }: TxnRow) -> Result<Row, ClientError> {
        let found = match op {
            TxnOp::Range { keys_only: true, .. } => {
                let TxnVersion { timestamp, facts, .. } = found;
                Version { timestamp, value: Bytes::new(), facts: Some(facts) }
            }
            _ => self.version(&key, found)?,
        };
        Ok(Row { key, found: Some(found) })
    }

    fn version(&self, key: &Bytes, found: TxnVersion) -> Result<Version, ClientError> {
        let TxnVersion { timestamp, facts, value } = found;
        let stored = || self.stored.get(key).filter(|_| self.own == Some(timestamp)).cloned();
        let older = || {
            let read = self.older.get(key).filter(|read| read.timestamp == timestamp);
            read.map(|read| read.value.clone())
        };
        let value = value.or_else(stored).or_else(older).ok_or_else(|| ClientError::Expired {
            server: self.server,
            message: "a value that it has read has been removed for good meanwhile".to_owned(),
        })?;
        Ok(Version { timestamp, value, facts: Some(facts) })
    }
}

/// The operations that a transaction has done, with what they have answered.
fn taken<'a>(
    txn: &'a Txn,
    answer: &'a TxnAnswer,
) -> impl Iterator<Item = (&'a TxnOp, &'a TxnResult)> {
    let ops = if answer.succeeded { &txn.then } else { &txn.or_else };
    ops.iter().zip(answer.results.iter().flatten())
}
