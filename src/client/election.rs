//! Elections: one of those who campaign for a name leads, and everybody can see who.
//!
//! An election is a lock whose keys have values. `leaders` follows who leads.

mod leaders;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
#[cfg(feature = "async")]
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::leaders::Leader;
use self::leaders::LeaderBook;
use super::call::wait;
use super::contender::ContestName;
use super::faces::calls;
use super::latch::Latch;
use super::locks::{LEAVE_PATIENCE, LockOptions, QueuePlace, held};
use super::reads::ReadOptions;
use super::watch::{Watch, WatchOptions};
use super::{Client, ClientError, check_value};
use crate::model::{Comparison, Timestamp};

calls! {
    /// Waits until nobody else leads under this name, and leads. Those who campaign come to lead in
    /// the order in which they came; the value is what [`Client::leader`] and [`Client::observe`]
    /// tell of the one who leads.
    ///
    /// # Errors
    /// Those of [`Client::lock`]; [`ClientError::ValueTooLong`].
    fn campaign(
        client,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: LockOptions,
    ) -> Election | AsyncElection {
        let (name, value) = (ContestName::new(name.as_ref())?, check_value(value.as_ref())?);
        client.contend(name, &value, options, std::future::pending()).await.map(Election)
    }

    /// Who leads under this name; `None` if nobody does. Linearizable: whoever had begun to lead
    /// before the call is known.
    ///
    /// # Errors
    /// [`ClientError::NameEmpty`] and [`ClientError::NameTooLong`]; those of [`Client::read`].
    fn leader(client, name: impl AsRef<[u8]>) -> Option<Leader> {
        let book = client.leader_book(ContestName::new(name.as_ref())?, true).await?.0;
        Ok(book.leader())
    }

    /// Tells who leads under this name, now and whenever that changes, in order and each once, for
    /// ever.
    ///
    /// It holds in memory what every contender for the name has as its value.
    ///
    /// # Errors
    /// As [`Client::leader`]; [`ClientError::Thread`].
    fn observe(client, name: impl AsRef<[u8]>) -> Leaders {
        let name = ContestName::new(name.as_ref())?;
        let range = name.range()?;
        let (mut book, at) = client.leader_book(name, false).await?;
        let options = WatchOptions { after: Some(at), ..WatchOptions::default() };
        let watch = client.follow(range, options)?;
        let ready = book.settled().into_iter().collect();
        Ok(Leaders { book, watch, ready, is_over: false })
    }
}

impl Client {
    /// As [`Client::campaign`], until this is done.
    pub(crate) fn campaign_unless(
        &self,
        name: &[u8],
        value: &[u8],
        options: LockOptions,
        given_up: impl Future<Output = ()>,
    ) -> Result<Election, ClientError> {
        let (name, value) = (ContestName::new(name)?, check_value(value)?);
        wait(async { self.contend(name, &value, options, given_up).await.map(Election) })
    }

    /// All contenders for a name, and the version as of which they are.
    async fn leader_book(
        &self,
        name: ContestName,
        linearizable: bool,
    ) -> Result<(LeaderBook, Timestamp), ClientError> {
        let options = ReadOptions { linearizable, ..ReadOptions::default() };
        let mut rows = self.scan(name.range()?, options);
        let mut book = LeaderBook::new(name);
        while let Some(row) = rows.advance().await {
            book.row(row?)?;
        }
        Ok((book, rows.at().unwrap_or(Timestamp::ZERO)))
    }
}

/// An election that is won: leadership, which is held as a [`Lock`](super::Lock) is. What a lock
/// says of being lost, and of the condition under which a leader writes, holds here.
///
/// Dropping it gives it up in the background; [`Election::resign`] waits until that is done.
///
/// ```
/// use acervo::client::LockOptions;
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let client = acervo::Client::connect(group.servers())?;
///
/// let leadership = client.campaign("scheduler", "10.0.0.7:80", LockOptions::default())?;
/// leadership.proclaim("10.0.0.7:8080")?;
/// let leader = client.leader("scheduler")?.expect("somebody leads");
/// assert_eq!((&leader.value[..], leader.fence), (&b"10.0.0.7:8080"[..], leadership.fence()));
///
/// leadership.resign()?;
/// assert_eq!(client.leader("scheduler")?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Election(QueuePlace);

held!(Election);

impl Election {
    /// Tells another value from now on; the version of that.
    ///
    /// # Errors
    /// [`ClientError::ContenderGone`] if it is lost, so that nothing was written; those of
    /// [`Client::txn`].
    pub fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<Timestamp, ClientError> {
        wait(self.0.rewrite(value.as_ref()))
    }

    /// Gives it up; the version of that, or `None` if it was lost before.
    ///
    /// # Errors
    /// As [`Client::txn`]. It is not kept alive any more, and over when its time is.
    pub fn resign(self) -> Result<Option<Timestamp>, ClientError> {
        wait(self.0.leave())
    }
}

/// An [`Election`] that is changed and given up without blocking.
#[cfg(feature = "async")]
#[derive(Debug)]
pub struct AsyncElection(Election);

#[cfg(feature = "async")]
impl From<Election> for AsyncElection {
    fn from(leadership: Election) -> AsyncElection {
        AsyncElection(leadership)
    }
}

#[cfg(feature = "async")]
impl Deref for AsyncElection {
    type Target = Election;

    fn deref(&self) -> &Election {
        &self.0
    }
}

#[cfg(feature = "async")]
impl AsyncElection {
    /// Tells another value from now on, as [`Election::proclaim`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<Timestamp, ClientError> {
        self.0.0.rewrite(value.as_ref()).await
    }

    /// Gives it up, as [`Election::resign`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn resign(self) -> Result<Option<Timestamp>, ClientError> {
        self.0.0.leave().await
    }
}

/// Who leads, one after the other; `None` where nobody does.
///
/// The first item tells who leads now. As an iterator it waits for the next change, and ends only
/// after an error: [`ClientError::NoRoom`] when the values of all contenders together are more than
/// it holds, and those of [`Watch`]. Dropping it ends it.
///
/// ```
/// use acervo::client::LockOptions;
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// # let client = acervo::Client::connect(group.servers())?;
///
/// let mut leaders = client.observe("scheduler")?;
/// assert_eq!(leaders.next().unwrap()?, None);
/// let leadership = client.campaign("scheduler", "ana", LockOptions::default())?;
/// assert_eq!(leaders.next().unwrap()?.unwrap().value, "ana");
/// # leadership.resign()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Leaders {
    book: LeaderBook,
    watch: Watch,
    /// What is told next.
    ready: VecDeque<Option<Leader>>,
    /// An error was told, after which the book may lack somebody.
    is_over: bool,
}

impl Leaders {
    /// Who leads next, if that changes within this time; `None` after an error, too.
    pub fn next_within(&mut self, time: Duration) -> Option<Result<Option<Leader>, ClientError>> {
        let until = Instant::now().checked_add(time);
        loop {
            if let Some(leader) = self.ready.pop_front() {
                return Some(Ok(leader));
            }
            if self.is_over {
                return None;
            }
            let event = match until {
                Some(until) => {
                    self.watch.next_within(until.saturating_duration_since(Instant::now()))?
                }
                None => self.watch.next()?,
            };
            if let Err(error) = event.and_then(|event| self.book.take(event)) {
                self.is_over = true;
                return Some(Err(error));
            }
            self.ready.extend(self.book.settled());
        }
    }

    /// Who leads next, for whoever polls; `None` after an error.
    pub async fn next_leader(&mut self) -> Option<Result<Option<Leader>, ClientError>> {
        loop {
            if let Some(leader) = self.ready.pop_front() {
                return Some(Ok(leader));
            }
            if self.is_over {
                return None;
            }
            let event = self.watch.next_event().await?;
            if let Err(error) = event.and_then(|event| self.book.take(event)) {
                self.is_over = true;
                return Some(Err(error));
            }
            self.ready.extend(self.book.settled());
        }
    }
}

impl Iterator for Leaders {
    type Item = Result<Option<Leader>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_within(Duration::MAX)
    }
}
