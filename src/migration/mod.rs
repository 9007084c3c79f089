//! Copies the keys of an etcd into a group, and those of a group into an etcd, while both are
//! living.
//!
//! Two ends, each of which can be read from and written to: [`etcd`] speaks etcd's interface with
//! any server of it, [`group`] is a client of the group. A copy is of one moment: all pages are
//! read as of the revision, or version, of the first. With `follows` the changes after that moment
//! are made at the other end as well, write by write and in their order, until whoever is moving
//! has turned the writers over and ends it.
//!
//! What has a lease is left out, and a key that gets one goes from the copy: whoever keeps the
//! lease alive puts the key anew at the other end, and without a lease it would stay for ever. What
//! the other end has besides stays as it is. A copy that has failed can be made again, which writes
//! the same values once more. Of the past only the moment itself is copied.
//!
//! A write to the group is made once, whatever is lost. A write to an etcd whose answer is lost is
//! made again, and etcd may carry out the first one late, after a newer one of the same key, as for
//! every client of its that tries again: where that matters, a last copy once nobody writes any
//! more puts it right.
//!
//! Left out: encryption and users.

mod etcd;
mod group;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use self::etcd::Etcd;
pub use self::etcd::EtcdEndpoint;
use self::group::GroupEnd;
use crate::client::{Client, ClientError};

/// Changes in one write at the other end: as many as etcd takes in a transaction by default, …
const WRITE_CHANGES_MAX: usize = 128;
/// … and bytes of keys and values, far below the 1.5 MiB that etcd takes. One change may be longer.
const WRITE_BYTES_MAX: usize = 256 * 1024;
/// Writes of a page that are under way at once. With one there would be a disk's pause for each.
const WRITES_UNDER_WAY_MAX: usize = 8;
/// How often the one who moves is told how far the copy follows.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// What is copied, and between which ends.
#[derive(Clone)]
pub struct Migration {
    /// A client of the group.
    pub client: Client,
    /// Servers of the etcd, which are asked one after the other until one answers.
    pub endpoints: Vec<EtcdEndpoint>,
    /// All keys that begin so; all there are where it is empty.
    pub prefix: Bytes,
    /// How long the etcd may be out of reach.
    pub timeout: Duration,
    /// Goes on with the changes that are made after the copy.
    pub follows: bool,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationStage {
    /// Everything of one moment is copied.
    Copied {
        /// Keys that were written.
        keys: u64,
        /// Keys that were left out because of their leases.
        leased: u64,
        /// The revision, or version, of which they are.
        at: i64,
    },
    /// Every change up to this revision, or version, is made as well.
    Followed {
        /// Changes since the copy.
        changes: u64,
        /// The revision, or version.
        at: i64,
    },
}

/// Why a migration has ended.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// No server of the etcd has answered.
    #[error("no answer from etcd at {endpoint} for {timeout:?}: {reason}; what was copied stays")]
    Unreachable {
        /// The last that was asked.
        endpoint: String,
        /// How long it was tried.
        timeout: Duration,
        /// What it came to.
        reason: String,
    },
    /// The etcd refuses what it was asked.
    #[error("etcd at {endpoint} refuses: {reason}; what was copied stays")]
    Refused {
        /// Who has said so.
        endpoint: String,
        /// What it has said.
        reason: String,
    },
    /// What was to be read next is gone.
    #[error(
        "changes that were still to be copied are gone: they were compacted meanwhile; begin again"
    )]
    Compacted,
    /// The group cannot be read or written.
    #[error(transparent)]
    Group(#[from] ClientError),
    /// How far it is could not be printed.
    #[error("the progress could not be printed: {0}")]
    Output(io::Error),
    /// The system refuses what a runtime needs.
    #[error("the copy cannot begin: {0}")]
    System(io::Error),
}

/// A key at one end, as it is to be at the other: `None` if it has no value that is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    key: Bytes,
    value: Option<Bytes>,
}

impl Change {
    fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// Some keys of the moment that is copied.
#[derive(Debug, Default)]
struct Page {
    changes: Vec<Change>,
    leased: u64,
    is_last: bool,
}

/// News of who is followed.
#[derive(Debug)]
enum News {
    /// One write, or a part of one that is more than fits into a write.
    Changed(Vec<Change>),
    /// Every change up to here has been told.
    UpTo(i64),
}

type Told<'a, T> = Pin<Box<dyn Future<Output = Result<T, MigrationError>> + 'a>>;

/// Where keys are read.
trait Source {
    /// The moment that is copied, which is now.
    fn moment(&mut self) -> Told<'_, i64>;
    /// The next keys of that moment, in their order.
    fn page(&mut self, at: i64) -> Told<'_, Page>;
    /// What has changed after that moment, beginning with the oldest: to be asked again and again.
    fn next(&mut self, at: i64) -> Told<'_, News>;
}

/// Where they are written.
trait Sink {
    /// Makes changes of different keys, all at once.
    fn write(&self, changes: Vec<Change>) -> Told<'_, ()>;
}

/// Copies from an etcd into the group.
///
/// # Errors
/// See [`MigrationError`]. With `follows` it ends with an error, or where `tell` has one.
pub fn import(
    migration: &Migration,
    tell: &mut dyn FnMut(MigrationStage) -> io::Result<()>,
) -> Result<(), MigrationError> {
    run(async {
        let (etcd, group) = ends(migration);
        copy(etcd, &group, migration.follows, tell).await
    })
}

/// Copies from the group into an etcd.
///
/// # Errors
/// Those of [`import`].
pub fn export(
    migration: &Migration,
    tell: &mut dyn FnMut(MigrationStage) -> io::Result<()>,
) -> Result<(), MigrationError> {
    run(async {
        let (etcd, group) = ends(migration);
        copy(group, &etcd, migration.follows, tell).await
    })
}

fn ends(migration: &Migration) -> (Etcd, GroupEnd) {
    let Migration { client, endpoints, prefix, timeout, .. } = migration;
    let etcd = Etcd::new(endpoints.clone(), prefix.clone(), *timeout);
    (etcd, GroupEnd::new(client.asynchronous(), prefix.clone()))
}

fn run(work: impl Future<Output = Result<(), MigrationError>>) -> Result<(), MigrationError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(MigrationError::System)?.block_on(work)
}

async fn copy(
    mut source: impl Source,
    sink: &impl Sink,
    follows: bool,
    tell: &mut dyn FnMut(MigrationStage) -> io::Result<()>,
) -> Result<(), MigrationError> {
    let mut tell = |stage| tell(stage).map_err(MigrationError::Output);
    let at = source.moment().await?;
    let (mut keys, mut leased) = (0, 0);
    loop {
        let page = source.page(at).await?;
        (keys, leased) = (keys + page.changes.len() as u64, leased + page.leased);
        let writes = stream::iter(writes_of(page.changes).into_iter().map(Ok));
        writes.try_for_each_concurrent(WRITES_UNDER_WAY_MAX, |write| sink.write(write)).await?;
        if page.is_last {
            break;
        }
    }
    tell(MigrationStage::Copied { keys, leased, at })?;
    if !follows {
        return Ok(());
    }
    let (mut changes, mut told) = (0, at);
    let mut due = tokio::time::Instant::now();
    loop {
        match source.next(at).await? {
            News::Changed(changed) => {
                changes += changed.len() as u64;
                // One after the other: they are of the same keys, in this order.
                let mut writes = stream::iter(writes_of(changed));
                while let Some(write) = writes.next().await {
                    sink.write(write).await?;
                }
            }
            News::UpTo(up_to) if up_to > told && due <= tokio::time::Instant::now() => {
                told = up_to;
                due = tokio::time::Instant::now() + TELL_INTERVAL;
                tell(MigrationStage::Followed { changes, at: told })?;
            }
            News::UpTo(_) => {}
        }
    }
}

/// Cuts changes into writes that both ends take.
fn writes_of(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut writes: Vec<Vec<Change>> = Vec::new();
    let mut bytes = 0;
    for change in changes {
        bytes += change.bytes();
        match writes.last_mut() {
            Some(last) if last.len() < WRITE_CHANGES_MAX && bytes <= WRITE_BYTES_MAX => {
                last.push(change);
            }
            _ => {
                bytes = change.bytes();
                writes.push(vec![change]);
            }
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_cut_by_their_number_and_by_their_bytes() {
        let change = |bytes| Change { key: "k".into(), value: Some(vec![0; bytes].into()) };
        let lens = |changes: Vec<Change>| -> Vec<usize> {
            writes_of(changes).iter().map(Vec::len).collect()
        };
        assert_eq!(lens(vec![change(1); 2 * WRITE_CHANGES_MAX + 1]), [128, 128, 1]);
        assert_eq!(lens(vec![change(100_000); 5]), [2, 2, 1]);
        assert_eq!(lens(vec![change(1), change(2 * WRITE_BYTES_MAX), change(1)]), [1, 1, 1]);
        assert!(lens(Vec::new()).is_empty());
    }
}
