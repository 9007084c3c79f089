//! Long reads, a page at a time.
//!
//! A long read shows one state, whichever servers its pages come from and whatever is written and
//! removed meanwhile: the first page fixes it, and the others name it. It is at least as new as anything
//! this client had seen when the first row was asked for. What is held in memory is a page, however
//! long the read.

use std::fmt;
use std::iter::FusedIterator;
use std::time::Instant;
use std::vec;

use bytes::Bytes;

use super::attempts::{Verdict, judge_error, judge_unexpected};
use super::call::{Retry, Target};
use super::error::ClientError;
use super::reads::{ReadOptions, judge_behind};
use super::sync::lock;
use super::{Client, Inner, check_key, check_keys};
use crate::limits::{PAGE_BYTES_MAX, PAGE_ROWS_MAX};
use crate::types::Timestamp;
use crate::wire::message::{PageNext, PageOf, PageRequest, Reply, Request, Row};

/// The rows of a long read. Nothing is asked before the first is wanted.
///
/// Ends after the first error. [`ClientError::Expired`] says that the reader was so slow that what
/// was to come has been removed for good: begin again.
///
/// ```
/// use acervo::client::ReadOptions;
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::server::LocalGroup::start(dir.path())?;
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
    /// Which state is shown, once that is known.
    moment: Option<Moment>,
    page: vec::IntoIter<Row>,
    /// No more pages.
    done: bool,
}

/// The two times of a read: as of when, and whose removals count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    at: Timestamp,
    seen: Timestamp,
}

/// What is still to be read.
pub(super) enum Wanted {
    /// Keys from one to another.
    Range { from: Bytes, to: Bytes },
    /// Each of these keys, but for the first so many.
    Keys { keys: Vec<Bytes>, done: usize },
    /// The versions of a key, from this one down if some have been read.
    Versions { key: Bytes, from: Option<Timestamp> },
}

impl Client {
    /// The keys from `from` to `to`, both included, that have a value, in order. None when `from` is
    /// greater than `to`.
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
        let (from, to) = (check_key(from.as_ref())?, check_key(to.as_ref())?);
        Ok(Rows::new(self, Wanted::Range { from, to }, options, None))
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
}

impl Rows {
    fn new(client: &Client, wanted: Wanted, options: ReadOptions, moment: Option<Moment>) -> Rows {
        let done = matches!(&wanted, Wanted::Keys { keys, .. } if keys.is_empty());
        let client = client.clone();
        Rows { client, wanted, options, moment, page: Vec::new().into_iter(), done }
    }

    /// What there was just before the write that made `version`.
    pub(super) fn before(client: &Client, wanted: Wanted, version: Timestamp) -> Rows {
        let before = Timestamp(version.0.saturating_sub(1));
        let moment = Moment { at: before, seen: before };
        let mut rows = Rows::new(client, wanted, ReadOptions::default(), Some(moment));
        // Zero would ask for the newest; there is nothing before the first version there can be.
        rows.done |= before <= Timestamp::ZERO;
        rows
    }

    /// The version as of which rows are shown; `None` before the first.
    pub fn at(&self) -> Option<Timestamp> {
        self.moment.map(|moment| moment.at)
    }

    /// The state they come from holds every write, removals included, up to here; `None` before the
    /// first.
    pub fn seen(&self) -> Option<Timestamp> {
        self.moment.map(|moment| moment.seen)
    }

    /// Reads the next page, which may have no rows.
    fn turn(&mut self) -> Result<(), ClientError> {
        // Whatever goes wrong, there is no going on afterwards.
        self.done = true;
        let inner = &*self.client.inner;
        let deadline = inner.deadline();
        let options = self.options;
        let page = match (self.moment, options.version()) {
            (Some(moment), _) => {
                inner.page(&self.wanted, Asked::Next(moment), deadline, Retry::UntilDeadline)?
            }
            (None, None) => {
                let asked = Asked::first(options, Timestamp::ZERO);
                inner.page(&self.wanted, asked, deadline, Retry::UntilDeadline)?
            }
            (None, Some(at)) => inner.as_of(at, deadline, |at, retry| {
                inner.page(&self.wanted, Asked::first(options, at), deadline, retry)
            })?,
        };
        if self.moment.is_none() {
            self.moment = Some(page.moment);
            // What is missing here must not come back from an older state.
            lock(&inner.seen).saw(page.moment.seen);
        }
        self.done = !self.wanted.go_on(page.next);
        self.page = page.rows.into_iter();
        Ok(())
    }
}

impl Iterator for Rows {
    type Item = Result<Row, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.page.next() {
                return Some(Ok(row));
            }
            if self.done {
                return None;
            }
            if let Err(error) = self.turn() {
                return Some(Err(error));
            }
        }
    }
}

impl FusedIterator for Rows {}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Rows");
        shown.field("moment", &self.moment).field("done", &self.done).finish_non_exhaustive()
    }
}

impl Wanted {
    pub(super) fn keys(keys: Vec<Bytes>) -> Wanted {
        Wanted::Keys { keys, done: 0 }
    }

    /// What to ask for in the next page, and as of when if not as of the read's own time. Of keys, no
    /// more than a page can answer, so that a request has a bound, too.
    fn page_of(&self) -> (PageOf, Option<Timestamp>) {
        match self {
            Wanted::Range { from, to } => {
                (PageOf::Range { from: from.clone(), to: to.clone() }, None)
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
        }
    }

    /// Notes that a page was read, whose answer made sense; whether there is more.
    fn go_on(&mut self, next: Next) -> bool {
        match (self, next) {
            (Wanted::Keys { keys, done }, Next::Keys(count)) => {
                *done += count;
                *done < keys.len()
            }
            (Wanted::Range { from, .. }, Next::From(next)) => {
                *from = next;
                true
            }
            (Wanted::Versions { from, .. }, Next::At(next)) => {
                *from = Some(next);
                true
            }
            _ => false,
        }
    }
}

/// What a page is asked to show.
#[derive(Clone, Copy)]
enum Asked {
    /// The first.
    First { at: Timestamp, linearizable: bool },
    /// Another of the same state.
    Next(Moment),
}

impl Asked {
    fn first(options: ReadOptions, at: Timestamp) -> Asked {
        Asked::First { at, linearizable: options.linearizable }
    }
}

struct Page {
    rows: Vec<Row>,
    moment: Moment,
    next: Next,
}

/// Where a read goes on, made sure to be further on.
enum Next {
    Nowhere,
    From(Bytes),
    /// After so many more keys.
    Keys(usize),
    At(Timestamp),
}

impl Next {
    /// `None` for an answer that is none to `of`.
    fn after(of: &PageOf, at: Timestamp, rows: usize, next: Option<PageNext>) -> Option<Next> {
        match (of, next) {
            (PageOf::Range { from, .. }, Some(PageNext::From(next))) if next > *from => {
                Some(Next::From(next))
            }
            (PageOf::Versions { .. }, Some(PageNext::At(next)))
                if Timestamp::ZERO < next && next < at =>
            {
                Some(Next::At(next))
            }
            (PageOf::Keys { keys }, Some(PageNext::Skip(count))) => {
                let count = usize::try_from(count).ok()?;
                (0 < count && count < keys.len() && count == rows).then_some(Next::Keys(count))
            }
            (PageOf::Keys { keys }, None) => (keys.len() == rows).then_some(Next::Keys(keys.len())),
            (PageOf::Range { .. } | PageOf::Versions { .. }, None) => Some(Next::Nowhere),
            _ => None,
        }
    }
}

impl Inner {
    fn page(
        &self,
        wanted: &Wanted,
        asked: Asked,
        deadline: Instant,
        retry: Retry<'_>,
    ) -> Result<Page, ClientError> {
        let (of, from) = wanted.page_of();
        let build = || {
            let (of, rows_max) = (of.clone(), PAGE_ROWS_MAX as u32);
            let request = match asked {
                Asked::First { at, linearizable } => {
                    // No key by itself is meant, so all that was seen counts.
                    let session = lock(&self.seen).session();
                    let seen = Timestamp::ZERO;
                    PageRequest { of, at, seen, session, linearizable, rows_max }
                }
                Asked::Next(Moment { at, seen }) => {
                    let (at, session) = (from.unwrap_or(at), Timestamp::ZERO);
                    PageRequest { of, at, seen, session, linearizable: false, rows_max }
                }
            };
            (Request::Page(request), ())
        };
        let target = Target::AnyServer;
        self.request(target, deadline, retry, build, |server, (), reply| match reply {
            Reply::PageOk { rows, at, seen, next } => {
                let fixed = seen > Timestamp::ZERO || next.is_none();
                match Next::after(&of, at, rows.len(), next).filter(|_| fixed) {
                    Some(next) => Verdict::Done(Page { rows, moment: Moment { at, seen }, next }),
                    None => judge_unexpected(),
                }
            }
            Reply::TryOtherServerOrLater { .. } => judge_behind(server),
            Reply::Error(error) => judge_error(server, error),
            _ => judge_unexpected(),
        })
    }
}
