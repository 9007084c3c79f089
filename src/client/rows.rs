//! Long reads, a page at a time.
//!
//! A long read shows one state, whichever servers its pages come from and whatever is written and
//! removed meanwhile: the first page fixes it, and the others name it. It is at least as new as
//! anything this client had seen when the first row was asked for. What is held in memory is a
//! page, however long the read.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use bytes::Bytes;

use super::call::wait;
use super::core::{Retry, Target, Verdict, judge_error, judge_unexpected};
use super::error::ClientError;
use super::reads::{ReadOptions, judge_behind, judge_stale};
use super::sync::lock;
use super::{Client, check_key, check_keys};
use crate::limits::{KEY_BYTES_MAX, PAGE_BYTES_MAX, PAGE_ROWS_MAX};
use crate::model::{LeaseId, PageNext, PageOf, ReadView, Row, Timestamp};
use crate::wire::message::{PageRequest, PageView, Reply, Request};

/// The rows of a long read. Nothing is asked before the first is wanted.
///
/// Ends after the first error. [`ClientError::Expired`] says that the reader was so slow that what
/// was to come has been removed for good: begin again.
///
/// ```
/// use acervo::client::ReadOptions;
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let client = acervo::Client::connect(group.servers())?;
/// client.put_all([("ana", "1"), ("bia", "2"), ("caio", "3")])?;
/// let mut rows = client.range("a", "bz", ReadOptions::default())?;
/// let mut names = Vec::new();
/// for row in &mut rows {
///     names.push(row?.key);
/// }
/// assert_eq!(names, ["ana", "bia"]);
///
/// // The same state again, whatever has been written since.
/// let then = rows.at().expect("it has been read");
/// client.put("bela", "4")?;
/// assert_eq!(client.range("a", "bz", ReadOptions::at(then))?.count(), 2);
/// assert_eq!(client.range("a", "bz", ReadOptions::default())?.count(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// To read the same state again, ask as of the version that [`Rows::at`] tells.
pub struct Rows {
    client: Client,
    wanted: Wanted,
    options: ReadOptions,
    /// The state that is shown, once that is known.
    view: Option<ReadView>,
    page: vec::IntoIter<Row>,
    /// There is no further page, or asking for one has failed.
    done: bool,
    /// Rows still to be given, where their number is limited.
    left: Option<u64>,
    keys_only: bool,
}

/// The keys of a range, both ends included, and in which order they are wanted.
///
/// ```
/// use acervo::client::{KeyRange, ReadOptions};
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let client = acervo::Client::connect(group.servers())?;
/// client.put_all([("user:ana", "1"), ("user:bia", "2"), ("user;", "3")])?;
/// let users = KeyRange::prefix("user:")?;
/// assert_eq!(client.scan(users.clone(), ReadOptions::default()).keys_only().count(), 2);
///
/// let last = client.scan(users.reversed(), ReadOptions::default()).limit(1).next();
/// assert_eq!(last.unwrap()?.key, "user:bia");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub(super) from: Bytes,
    pub(super) to: Bytes,
    reverse: bool,
}

impl KeyRange {
    /// From one key to another. Empty when `from` is greater than `to`.
    ///
    /// # Errors
    /// A key that no server takes.
    pub fn between(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<KeyRange, ClientError> {
        let (from, to) = (check_key(from.as_ref())?, check_key(to.as_ref())?);
        Ok(KeyRange { from, to, reverse: false })
    }

    /// All keys that begin with `prefix`; with an empty one, all keys.
    ///
    /// # Errors
    /// [`ClientError::KeyTooLong`].
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Result<KeyRange, ClientError> {
        let prefix = prefix.as_ref();
        if prefix.is_empty() {
            return Ok(KeyRange::all());
        }
        // The greatest key there can be that begins with the prefix.
        let mut to = check_key(prefix)?.to_vec();
        to.resize(KEY_BYTES_MAX, 0xff);
        KeyRange::between(prefix, to)
    }

    /// The key `from` and all keys after it.
    ///
    /// # Errors
    /// A key that no server takes.
    pub fn starting_at(from: impl AsRef<[u8]>) -> Result<KeyRange, ClientError> {
        Ok(KeyRange { from: check_key(from.as_ref())?, ..KeyRange::all() })
    }

    /// The key `to` and all keys before it.
    ///
    /// # Errors
    /// A key that no server takes.
    pub fn ending_at(to: impl AsRef<[u8]>) -> Result<KeyRange, ClientError> {
        Ok(KeyRange { to: check_key(to.as_ref())?, ..KeyRange::all() })
    }

    /// All keys there are.
    pub fn all() -> KeyRange {
        // The smallest key and the greatest.
        let (from, to) = (Bytes::from_static(&[0]), vec![0xff; KEY_BYTES_MAX].into());
        KeyRange { from, to, reverse: false }
    }

    /// The first key and the last.
    pub(crate) fn ends(self) -> (Bytes, Bytes) {
        (self.from, self.to)
    }

    /// The prefix that all keys between these ends have, and no others, if there is one.
    pub(crate) fn prefix_of<'a>(from: &'a [u8], to: &[u8]) -> Option<&'a [u8]> {
        let rest = to.strip_prefix(from).filter(|rest| !rest.is_empty())?;
        let is_last = to.len() == KEY_BYTES_MAX && rest.iter().all(|byte| *byte == 0xff);
        is_last.then_some(from)
    }

    pub(super) fn is_reversed(&self) -> bool {
        self.reverse
    }

    /// The same keys, the last one first.
    pub fn reversed(self) -> KeyRange {
        KeyRange { reverse: !self.reverse, ..self }
    }
}

/// What is still to be read.
pub(super) enum Wanted {
    /// Keys from one to another.
    Range(KeyRange),
    /// Each of these keys, but for the first so many.
    Keys { keys: Vec<Bytes>, done: usize },
    /// The versions of a key, from this one down if some have been read.
    Versions { key: Bytes, from: Option<Timestamp> },
    /// The keys of a lease from this one on.
    Lease { lease: LeaseId, from: Bytes },
}

impl Client {
    /// The keys from `from` to `to`, both included, that have a value, in order. None when `from`
    /// is greater than `to`.
    ///
    /// # Errors
    /// A key that no server takes. With the rows come those of [`Client::read`], and
    /// [`ClientError::Expired`].
    pub fn range(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
        options: ReadOptions,
    ) -> Result<Rows, ClientError> {
        Ok(self.scan(KeyRange::between(from, to)?, options))
    }

    /// The keys of any kind of range that have a value, as [`Client::range`].
    pub fn scan(&self, range: KeyRange, options: ReadOptions) -> Rows {
        Rows::new(self, Wanted::Range(range), options, None)
    }

    /// One row for each key, in the order given, whether it has a value or not; all of one state.
    ///
    /// # Errors
    /// As [`Client::range`].
    pub fn get_all<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: ReadOptions,
    ) -> Result<Rows, ClientError> {
        Ok(Rows::new(self, Wanted::keys(check_keys(keys)?), options, None))
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
        let wanted = Wanted::Versions { key: check_key(key.as_ref())?, from: None };
        Ok(Rows::new(self, wanted, options, None))
    }

    /// The keys that go with a lease, in order. Those that leave it while this is read may be left
    /// out. None when there is no such lease.
    pub fn lease_keys(&self, id: LeaseId, options: ReadOptions) -> Rows {
        Rows::new(self, Wanted::Lease { lease: id, from: Bytes::new() }, options, None)
    }
}

impl Rows {
    fn new(client: &Client, wanted: Wanted, options: ReadOptions, view: Option<ReadView>) -> Rows {
        let done = matches!(&wanted, Wanted::Keys { keys, .. } if keys.is_empty());
        let (client, page) = (client.clone(), Vec::new().into_iter());
        Rows { client, wanted, options, view, page, done, left: None, keys_only: false }
    }

    /// No more than the first so many rows, and no more is read.
    pub fn limit(self, rows: u64) -> Rows {
        Rows { left: Some(rows), ..self }
    }

    /// Rows with an empty value in the place of each value. Servers send no values then.
    pub fn keys_only(self) -> Rows {
        Rows { keys_only: true, ..self }
    }

    /// What there was just before the write that made `version`.
    pub(super) fn before(client: &Client, wanted: Wanted, version: Timestamp) -> Rows {
        Rows::new(client, wanted, ReadOptions::default(), Some(ReadView::before(version)))
    }

    /// The version as of which rows are shown; `None` before the first.
    pub fn at(&self) -> Option<Timestamp> {
        self.view.map(|view| view.at)
    }

    /// The state they come from holds every write, removals included, up to here; `None` before the
    /// first.
    pub fn seen(&self) -> Option<Timestamp> {
        self.view.map(|view| view.removals_up_to)
    }

    /// Reads the next page, which may have no rows.
    async fn turn(&mut self, deadline: Duration) -> Result<(), ClientError> {
        // Whatever goes wrong, there is no going on afterwards.
        self.done = true;
        let client = &self.client;
        let options = self.options;
        let rows_max =
            self.left.map_or(PAGE_ROWS_MAX as u64, |left| left.min(PAGE_ROWS_MAX as u64));
        // At most `PAGE_ROWS_MAX`, which fits in 32 bits.
        let size = PageSize { rows_max: rows_max as u32, keys_only: self.keys_only };
        let page = |asked, retry| client.page(&self.wanted, asked, size, deadline, retry);
        let first = |at| Asked::First { at, linearizable: options.linearizable };
        let page = match (self.view, options.version()) {
            (Some(view), _) => page(Asked::Next(view), Retry::UntilDeadline).await?,
            (None, None) => page(first(None), Retry::UntilDeadline).await?,
            (None, Some(at)) => {
                let read = |at, retry| page(first(Some(at)), retry);
                client.as_of(at, deadline, read).await?
            }
        };
        if self.view.is_none() {
            self.view = Some(page.view);
            // What is missing here must not come back from an older state.
            lock(&client.inner.seen).saw(page.view.removals_up_to);
        }
        self.done = !self.wanted.go_on(page.next);
        self.page = page.rows.into_iter();
        Ok(())
    }

    /// The next row; `None` after the last one. It ends in the time of one request, also where
    /// servers answer with one page after the other that has no rows.
    pub(super) async fn advance(&mut self) -> Option<Result<Row, ClientError>> {
        if self.left == Some(0) {
            return None;
        }
        let mut until = None;
        loop {
            if let Some(row) = self.page.next() {
                self.left = self.left.map(|left| left - 1);
                return Some(Ok(row));
            }
            if self.done {
                return None;
            }
            let until = *until.get_or_insert_with(|| self.client.deadline());
            if let Err(error) = self.turn(until).await {
                return Some(Err(error));
            }
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        wait(async { self.advance().await.transpose() }).transpose()
    }
}

impl FusedIterator for Rows {}

/// The rows of a long read, as [`Rows`], whose pages are waited for without blocking.
#[cfg(feature = "async")]
#[derive(Debug)]
pub struct AsyncRows(Rows);

#[cfg(feature = "async")]
impl From<Rows> for AsyncRows {
    fn from(rows: Rows) -> AsyncRows {
        AsyncRows(rows)
    }
}

#[cfg(feature = "async")]
impl AsyncRows {
    /// The next row; `None` after the last one, and after an error.
    pub async fn next(&mut self) -> Option<Result<Row, ClientError>> {
        self.0.advance().await
    }

    /// No more than the first so many rows, as by [`Rows::limit`].
    pub fn limit(self, rows: u64) -> AsyncRows {
        AsyncRows(self.0.limit(rows))
    }

    /// The version as of which rows are shown, as by [`Rows::at`].
    pub fn at(&self) -> Option<Timestamp> {
        self.0.at()
    }

    /// Rows without their values, as by [`Rows::keys_only`].
    pub fn keys_only(self) -> AsyncRows {
        AsyncRows(self.0.keys_only())
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Rows");
        shown.field("view", &self.view).field("done", &self.done).finish_non_exhaustive()
    }
}

impl Wanted {
    pub(super) fn keys(keys: Vec<Bytes>) -> Wanted {
        Wanted::Keys { keys, done: 0 }
    }

    /// What to ask for in the next page, and as of when if not as of the read's own time. Of keys,
    /// no more than a page can answer, so that a request has a bound, too.
    fn page_of(&self) -> (PageOf, Option<Timestamp>) {
        match self {
            Wanted::Range(KeyRange { from, to, reverse }) => {
                let (from, to) = (from.clone(), to.clone());
                let of = match reverse {
                    false => PageOf::Range { from, to },
                    true => PageOf::RangeReverse { from, to },
                };
                (of, None)
            }
            Wanted::Keys { keys, done } => {
                let mut bytes = 0;
                let fit = keys[*done..].iter().take(PAGE_ROWS_MAX).take_while(|key| {
                    let first = bytes == 0;
                    bytes += key.len();
                    first || bytes <= PAGE_BYTES_MAX
                });
                (PageOf::Keys { keys: fit.cloned().collect() }, None)
            }
            Wanted::Versions { key, from } => (PageOf::Versions { key: key.clone() }, *from),
            Wanted::Lease { lease, from } => {
                (PageOf::Lease { lease: *lease, from: from.clone() }, None)
            }
        }
    }

    /// Notes that a page was read, whose answer made sense; whether there is more.
    fn go_on(&mut self, next: Next) -> bool {
        match (self, next) {
            (Wanted::Keys { keys, done }, Next::Keys(count)) => {
                *done += count;
                *done < keys.len()
            }
            (Wanted::Range(range), Next::From(next)) => {
                range.from = next;
                true
            }
            (Wanted::Range(range), Next::To(next)) => {
                range.to = next;
                true
            }
            (Wanted::Versions { from, .. }, Next::At(next)) => {
                *from = Some(next);
                true
            }
            (Wanted::Lease { from, .. }, Next::From(next)) => {
                *from = next;
                true
            }
            _ => false,
        }
    }
}

/// What a page is asked to show.
#[derive(Clone, Copy)]
enum Asked {
    /// The first page of a read, which fixes the state.
    First { at: Option<Timestamp>, linearizable: bool },
    /// Another of the same state.
    Next(ReadView),
}

/// How much of each row, and of how many, a page is to have.
#[derive(Clone, Copy)]
struct PageSize {
    rows_max: u32,
    keys_only: bool,
}

struct Page {
    rows: Vec<Row>,
    view: ReadView,
    next: Next,
}

/// Where a read goes on, made sure to be further on.
enum Next {
    Nowhere,
    From(Bytes),
    To(Bytes),
    /// After so many more keys.
    Keys(usize),
    At(Timestamp),
}

impl Next {
    /// `None` for an answer that is none to `of`.
    fn after(of: &PageOf, at: Timestamp, rows: usize, next: Option<PageNext>) -> Option<Next> {
        match (of, next) {
            (
                PageOf::Range { from, .. } | PageOf::Lease { from, .. },
                Some(PageNext::From(next)),
            ) if next > *from => Some(Next::From(next)),
            (PageOf::RangeReverse { to, .. }, Some(PageNext::To(next))) if next < *to => {
                Some(Next::To(next))
            }
            (PageOf::Versions { .. }, Some(PageNext::At(next))) if next < at => {
                Some(Next::At(next))
            }
            (PageOf::Keys { keys }, Some(PageNext::Skip(count))) => {
                let count = usize::try_from(count).ok()?;
                (0 < count && count < keys.len() && count == rows).then_some(Next::Keys(count))
            }
            (PageOf::Keys { keys }, None) => (keys.len() == rows).then_some(Next::Keys(keys.len())),
            (
                PageOf::Range { .. }
                | PageOf::RangeReverse { .. }
                | PageOf::Versions { .. }
                | PageOf::Lease { .. },
                None,
            ) => Some(Next::Nowhere),
            _ => None,
        }
    }
}

/// Whether a page shows an older state than it was asked to.
fn is_older(view: ReadView, asked: PageView) -> bool {
    let at = match asked {
        PageView::First { at, session, .. } => at.or(session),
        PageView::Next(view) => Some(view.at),
    };
    Some(view.at) < at || Some(view.removals_up_to) < asked.wanted()
}

impl Client {
    async fn page(
        &self,
        wanted: &Wanted,
        asked: Asked,
        size: PageSize,
        deadline: Duration,
        retry: Retry,
    ) -> Result<Page, ClientError> {
        let (of, from) = wanted.page_of();
        let PageSize { rows_max, keys_only } = size;
        let (page_of, seen) = (of.clone(), Arc::clone(&self.inner.seen));
        let build = move |_| {
            let view = match asked {
                Asked::First { at, linearizable } => {
                    // No key by itself is meant, so all that was seen counts.
                    PageView::First { at, session: lock(&seen).session(), linearizable }
                }
                Asked::Next(view) => {
                    PageView::Next(ReadView { at: from.unwrap_or(view.at), ..view })
                }
            };
            (Request::Page(PageRequest { of: page_of.clone(), view, rows_max, keys_only }), view)
        };
        let request_bytes = build(None).0.memory_bytes();
        let judge = move |server, sent, reply| match reply {
            Reply::PageOk { view, .. } if is_older(view, sent) => judge_stale(),
            Reply::PageOk { rows, view, next } => {
                match Next::after(&of, view.at, rows.len(), next) {
                    Some(next) => Verdict::Done(Page { rows, view, next }),
                    None => judge_unexpected(),
                }
            }
            Reply::TryOtherServerOrLater { .. } => judge_behind(server),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        };
        self.request(Target::AnyServer, deadline, retry, request_bytes, build, judge).await
    }
}
