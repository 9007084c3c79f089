//! Versions through the client: reads of the past, long reads in pages, and writes that tell what was
//! before (SPEC B).
//!
//! A long read shows one state, whichever servers its pages come from and whatever is written
//! meanwhile: the first page fixes it, and the others name it. A server that has not come so far
//! refuses, and the next one is asked.
//!
//! As of a version that no server has reached, nobody can answer yet: perhaps nothing was written
//! since, perhaps it lies in the future. A *mark* settles it. It is a write that only takes a timestamp:
//! when that is past the version asked for, everything up to the version is decided; when it is not, the
//! version lies in the future, and the newest one is the greatest that is not past it.

use std::collections::VecDeque;
use std::mem;
use std::net::SocketAddr;

use bytes::Bytes;

use super::attempts::{Persistence, Verdict, judge_error, judge_unexpected};
use super::error::ClientError;
use super::sync::lock;
use super::{Client, Got, check_key, check_value};
use crate::command::WriteOp;
use crate::limits;
use crate::types::Timestamp;
use crate::wire::message::{
    GetRequest, PageNext, PageOf, PageRequest, Previous, Reply, Request, Row,
};

/// What a read is to show.
///
/// ```
/// use acervo::client::ReadOptions;
/// use acervo::types::Timestamp;
///
/// let past = ReadOptions::at(Timestamp(1_763_700_000_000_000));
/// let newest_of_all = ReadOptions { linearizable: true, ..ReadOptions::default() };
/// # let _ = (past, newest_of_all);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The greatest version that is not greater than this; the newest for `None`, and for a version of
    /// zero or less.
    pub at: Option<Timestamp>,
    /// Miss no write that was acknowledged to anybody before the call.
    pub linearizable: bool,
}

impl ReadOptions {
    /// As of a version.
    pub fn at(version: Timestamp) -> ReadOptions {
        ReadOptions { at: Some(version), linearizable: false }
    }

    fn version(self) -> Option<Timestamp> {
        self.at.filter(|version| *version > Timestamp::ZERO)
    }
}

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The version.
    pub timestamp: Timestamp,
    /// The value.
    pub value: Bytes,
}

/// A write on one key that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version it made.
    pub timestamp: Timestamp,
    /// What the key had just before; after a `trim`, what it still has.
    pub previous: Option<Version>,
    /// The server that answered.
    pub server: SocketAddr,
}

/// A write on many keys that is done, all at one version.
pub struct WrittenMany {
    /// The version it made.
    pub timestamp: Timestamp,
    /// The server that answered.
    pub server: SocketAddr,
    /// What the keys had just before: of a range, those that had something, in order; of given keys, one
    /// row each, in the order given. Read as it is consumed, and to be begun within
    /// [`limits::REMOVAL_GRACE`].
    pub previous: Rows,
}

/// The rows of a long read, a page at a time: what is held in memory is a page, whatever the length.
///
/// Ends after the first error. [`ClientError::Expired`] says that the reader was so slow that
/// what it was to be shown has been removed for good.
///
/// ```no_run
/// # fn read(client: &acervo::Client) -> Result<(), acervo::client::ClientError> {
/// for row in client.range("a", "z", Default::default())? {
///     let row = row?;
///     println!("{:?} has version {}", row.key, row.timestamp);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Rows {
    client: Client,
    state: State,
    page: VecDeque<Row>,
}

enum State {
    /// Not begun: what to read, and how.
    Fresh {
        of: PageOf,
        options: ReadOptions,
    },
    /// The next page begins here.
    Next {
        of: PageOf,
        at: Timestamp,
        seen: Timestamp,
    },
    Done,
}

impl Client {
    /// Reads a key: [`Client::get`] and [`Client::get_linearizable`] are the usual cases. As of a version,
    /// a later read says the same, until that version is removed or trimmed away.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn read(&self, key: impl AsRef<[u8]>, options: ReadOptions) -> Result<Got, ClientError> {
        let key = check_key(key.as_ref())?;
        let Some(at) = options.version() else {
            return self.inner.get(key, options.linearizable);
        };
        match self.reach(at)? {
            // It lies in the future: the newest is the greatest up to it.
            None => self.inner.get(key, options.linearizable),
            Some(session) => self.inner.get_at(key, at, session, options.linearizable),
        }
    }

    /// [`Client::put`] that tells what the key had before.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn replace(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Written, ClientError> {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        self.write_one(key.clone(), WriteOp::Put { key, value })
    }

    /// Removes every version of a key, durably.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn del(&self, key: impl AsRef<[u8]>) -> Result<Written, ClientError> {
        let key = check_key(key.as_ref())?;
        self.write_one(key.clone(), WriteOp::Del { key })
    }

    /// Removes every version of a key but the newest, which it tells.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn trim(&self, key: impl AsRef<[u8]>) -> Result<Written, ClientError> {
        let key = check_key(key.as_ref())?;
        self.write_one(key.clone(), WriteOp::Trim { key })
    }

    /// Stores a value under each key, all or none, at one version. Of a key given twice the last value
    /// counts.
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::TooManyKeys`] and [`ClientError::TooManyBytes`] when it is
    /// more than can be written at once.
    pub fn put_all<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<WrittenMany, ClientError> {
        let pairs = pairs
            .into_iter()
            .map(|(key, value)| Ok((check_key(key.as_ref())?, check_value(value.as_ref())?)));
        let pairs: Vec<(Bytes, Bytes)> = pairs.collect::<Result<_, ClientError>>()?;
        let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
        self.write_many(WriteOp::PutAll { pairs }, PageOf::Keys { keys })
    }

    /// Removes every version of each key, all or none.
    ///
    /// # Errors
    /// As [`Client::put_all`].
    pub fn del_all<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<WrittenMany, ClientError> {
        let keys: Vec<Bytes> =
            keys.into_iter().map(|key| check_key(key.as_ref())).collect::<Result<_, _>>()?;
        self.write_many(WriteOp::DelAll { keys: keys.clone() }, PageOf::Keys { keys })
    }

    /// Removes every version of every key from `from` to `to`, both included, at once, however many they
    /// are.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn del_range(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
    ) -> Result<WrittenMany, ClientError> {
        let (from, to) = (check_key(from.as_ref())?, check_key(to.as_ref())?);
        let of = PageOf::Range { from: from.clone(), to: to.clone() };
        self.write_many(WriteOp::DelRange { from, to }, of)
    }

    /// The keys from `from` to `to`, both included, that have a value, in order.
    ///
    /// # Errors
    /// A key that no server takes; the rest of what can go wrong comes with the rows.
    pub fn range(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
        options: ReadOptions,
    ) -> Result<Rows, ClientError> {
        let (from, to) = (check_key(from.as_ref())?, check_key(to.as_ref())?);
        Ok(self.rows(PageOf::Range { from, to }, options))
    }

    /// One row for each key, in the order given, whether it has a value or not.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn get_all<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: ReadOptions,
    ) -> Result<Rows, ClientError> {
        let keys: Vec<Bytes> =
            keys.into_iter().map(|key| check_key(key.as_ref())).collect::<Result<_, _>>()?;
        check_count(keys.len())?;
        Ok(self.rows(PageOf::Keys { keys }, options))
    }

    /// The versions of a key, newest first.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn versions(
        &self,
        key: impl AsRef<[u8]>,
        options: ReadOptions,
    ) -> Result<Rows, ClientError> {
        Ok(self.rows(PageOf::Versions { key: check_key(key.as_ref())? }, options))
    }

    fn rows(&self, of: PageOf, options: ReadOptions) -> Rows {
        let state = State::Fresh { of, options };
        Rows { client: self.clone(), state, page: VecDeque::new() }
    }

    fn write_one(&self, key: Bytes, op: WriteOp) -> Result<Written, ClientError> {
        let (timestamp, previous, server) = self.inner.write_telling(op)?;
        let previous = match previous {
            Previous { timestamp: Timestamp::ZERO, .. } => None,
            Previous { timestamp, value: Some(value) } => Some(Version { timestamp, value }),
            // Too long to be sent unasked.
            Previous { value: None, .. } => {
                let mut rows = self.before(PageOf::Keys { keys: vec![key] }, timestamp);
                let row = rows.next().transpose()?;
                row.and_then(|Row { timestamp, value, .. }| {
                    Some(Version { timestamp, value: value? })
                })
            }
        };
        Ok(Written { timestamp, previous, server })
    }

    fn write_many(&self, op: WriteOp, of: PageOf) -> Result<WrittenMany, ClientError> {
        check_count(op.pairs().count())?;
        if op.bytes() > limits::TRANSACTION_BYTES_MAX {
            return Err(ClientError::TooManyBytes(op.bytes()));
        }
        let (timestamp, server) = self.inner.write_plainly(op)?;
        Ok(WrittenMany { timestamp, server, previous: self.before(of, timestamp) })
    }

    /// What there was just before the write that made `version`.
    fn before(&self, of: PageOf, version: Timestamp) -> Rows {
        let before = Timestamp(version.0 - 1);
        // Nothing is before the first version there can be.
        let state = if before <= Timestamp::ZERO {
            State::Done
        } else {
            State::Next { of, at: before, seen: before }
        };
        Rows { client: self.clone(), state, page: VecDeque::new() }
    }

    /// Sees to it that everything up to `at` is decided; the state that a server must have reached then,
    /// or `None` when `at` lies in the future.
    fn reach(&self, at: Timestamp) -> Result<Option<Timestamp>, ClientError> {
        if lock(&self.inner.seen).session() >= at {
            return Ok(Some(at));
        }
        let (mark, _) = self.inner.write_plainly(WriteOp::Mark)?;
        Ok((mark > at).then_some(mark))
    }
}

fn check_count(count: usize) -> Result<(), ClientError> {
    if count > limits::TRANSACTION_KEYS_MAX {
        return Err(ClientError::TooManyKeys(count));
    }
    Ok(())
}

impl Rows {
    /// Reads pages until one holds something.
    fn fill(&mut self) -> Result<(), ClientError> {
        while self.page.is_empty() {
            self.state = match mem::replace(&mut self.state, State::Done) {
                State::Done => return Ok(()),
                State::Fresh { of, options } => self.first(of, options)?,
                State::Next { of, at, seen } => {
                    self.fetch(of, PageSight { at, seen, session: seen, linearizable: false })?
                }
            };
        }
        Ok(())
    }

    fn first(&mut self, of: PageOf, options: ReadOptions) -> Result<State, ClientError> {
        let reached = match options.version() {
            Some(at) => self.client.reach(at)?.map(|session| (at, session)),
            None => None,
        };
        let (at, session) = reached.unwrap_or_default();
        let session = session.max(lock(&self.client.inner.seen).session());
        let (seen, linearizable) = (Timestamp::ZERO, options.linearizable);
        self.fetch(of, PageSight { at, seen, session, linearizable })
    }

    fn fetch(&mut self, mut of: PageOf, sight: PageSight) -> Result<State, ClientError> {
        let first = sight.seen == Timestamp::ZERO;
        let (rows, at, seen, next) = self.client.inner.page(&of, sight)?;
        self.page = rows.into();
        if first {
            // What was missing from that state must not come back from an older one.
            lock(&self.client.inner.seen).raise_session(seen);
        }
        let Some(next) = next else { return Ok(State::Done) };
        let mut going_on_at = at;
        match (next, &mut of) {
            (PageNext::From(next), PageOf::Range { from, .. }) if next > *from => *from = next,
            (PageNext::Skip(count), PageOf::Keys { keys })
                if count > 0 && count as usize <= keys.len() =>
            {
                keys.drain(..count as usize);
            }
            (PageNext::At(next), PageOf::Versions { .. }) if next < at => going_on_at = next,
            _ => {
                let last = "a server's page does not say where the next one begins".to_owned();
                return Err(ClientError::Unavailable { last });
            }
        }
        Ok(State::Next { of, at: going_on_at, seen })
    }
}

impl Iterator for Rows {
    type Item = Result<Row, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty()
            && let Err(error) = self.fill()
        {
            return Some(Err(error));
        }
        self.page.pop_front().map(Ok)
    }
}

/// Which state a page is to show.
#[derive(Clone, Copy)]
struct PageSight {
    at: Timestamp,
    seen: Timestamp,
    session: Timestamp,
    linearizable: bool,
}

type PageRead = (Vec<Row>, Timestamp, Timestamp, Option<PageNext>);

impl super::Inner {
    /// A write of whose answer only the version counts.
    fn write_plainly(&self, op: WriteOp) -> Result<(Timestamp, SocketAddr), ClientError> {
        self.write(op, false, Persistence::Untiring, |server, reply| match reply {
            Reply::WriteOk { timestamp, .. } => Ok((timestamp, (timestamp, server))),
            other => Err(other),
        })
    }

    /// A write on one key that tells what was before.
    fn write_telling(&self, op: WriteOp) -> Result<(Timestamp, Previous, SocketAddr), ClientError> {
        self.write(op, true, Persistence::Untiring, |server, reply| match reply {
            Reply::WriteOk { timestamp, previous: Some(previous) } => {
                Ok((timestamp, (timestamp, previous, server)))
            }
            other => Err(other),
        })
    }

    /// A key as of a version, from a server that has reached `session` as well.
    fn get_at(
        &self,
        key: Bytes,
        at: Timestamp,
        session: Timestamp,
        linearizable: bool,
    ) -> Result<Got, ClientError> {
        let timestamp = Timestamp::ZERO;
        let build =
            || Request::Get(GetRequest { key: key.clone(), timestamp, session, linearizable, at });
        self.request(self.deadline(), Persistence::Untiring, build, |server, reply| match reply {
            Reply::GetOk { value, timestamp, .. } => {
                Verdict::Done(Got { value, timestamp, server })
            }
            Reply::TryOtherServerOrLater { .. } => behind(server),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        })
    }

    fn page(&self, of: &PageOf, sight: PageSight) -> Result<PageRead, ClientError> {
        let PageSight { at, seen, session, linearizable } = sight;
        let build = || {
            let rows_max = limits::PAGE_ROWS_MAX as u32;
            let of = of.clone();
            Request::Page(PageRequest { of, at, seen, session, linearizable, rows_max })
        };
        self.request(self.deadline(), Persistence::Untiring, build, |server, reply| match reply {
            Reply::PageOk { rows, at, seen, next } => Verdict::Done((rows, at, seen, next)),
            Reply::TryOtherServerOrLater { .. } => behind(server),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        })
    }
}

fn behind<T>(server: SocketAddr) -> Verdict<T> {
    Verdict::Other(format!("{server} has not yet applied what is asked for"))
}
