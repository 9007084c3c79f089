//! The recipe of locks and elections, as a state machine: rows and events go in, and what is to be
//! read or watched next comes out. It performs no I/O and reads no clock.
//!
//! The keys are laid out as etcd's `clientv3/concurrency` lays them out, so that its clients and
//! ours can contend for the same name. A contender for NAME puts the key NAME/ID, where ID is the
//! id of its lease in lower-case hexadecimal, with that lease, unless the key exists. Of all keys
//! of the name, whose `created` is the lowest holds the lock, or leads. That version is its fencing
//! token, the *fence*.
//!
//! **Why nobody else holds.** A contender holds when a state that has its own key has no key of the
//! name with a lower `created`. A key that comes into being later gets a higher one, since versions
//! only rise, so none can come before it as long as its own key stays. That is so whichever state
//! was read, as long as it is no older than the contender's own key. The library reads linearizably
//! all the same: otherwise a server that lags might show a key that has long been deleted, and its
//! contender would believe for a while that it holds what it has lost before it got it.
//!
//! **Why nobody waits for ever.** A contender watches the one key before its own, from the version
//! of the read that has shown it; so it learns of its end, whenever that was. Then it reads again,
//! because the one before may have given up while others are still before both. Whose own key has
//! gone is told so ([`Step::Lose`]), be it waiting or holding.
//!
//! **Why few are woken.** Each key is watched by the one contender that comes next.
//!
//! One departure from etcd: a key that has another '/' behind NAME/ belongs to a longer name, and
//! is no contender for this one, so that the names `a` and `a/b` have nothing to do with each
//! other. etcd's clients wait for such a key, too; since they only wait for more, both still agree
//! on who holds.

use std::fmt;

use bytes::Bytes;

use super::rows::KeyRange;
use super::{ClientError, WatchEvent};
use crate::limits::KEY_BYTES_MAX;
use crate::model::{Comparison, LeaseId, Row, Timestamp, Txn, TxnOp};
use crate::text::escape;

#[cfg(test)]
mod tests;

/// Bytes of a key behind its name at most: '/' and the 16 digits of the longest id.
const SUFFIX_BYTES_MAX: usize = 17;
/// Bytes of a name at most: what a key has room for.
pub(super) const NAME_BYTES_MAX: usize = KEY_BYTES_MAX - SUFFIX_BYTES_MAX;

/// The name of a lock or an election, which has been checked.
#[derive(Clone, PartialEq, Eq)]
pub struct ContestName {
    /// The name, and '/' behind it.
    prefix: Bytes,
}

impl ContestName {
    /// A name that leaves room in its keys for the id of a lease.
    ///
    /// # Errors
    /// [`ClientError::NameEmpty`] and [`ClientError::NameTooLong`].
    pub fn new(name: &[u8]) -> Result<ContestName, ClientError> {
        match name.len() {
            0 => Err(ClientError::NameEmpty),
            1..=NAME_BYTES_MAX => Ok(ContestName { prefix: [name, b"/"].concat().into() }),
            length => Err(ClientError::NameTooLong(length)),
        }
    }

    fn name(&self) -> &[u8] {
        &self.prefix[..self.prefix.len() - 1]
    }

    /// The key of the contender that has this lease.
    pub fn key(&self, lease: LeaseId) -> Bytes {
        [&self.prefix[..], format!("{:x}", lease.0).as_bytes()].concat().into()
    }

    /// All keys of the name, and those of longer names that begin with it.
    ///
    /// # Errors
    /// None: a name leaves room for more than a '/'.
    pub fn range(&self) -> Result<KeyRange, ClientError> {
        KeyRange::prefix(&self.prefix)
    }

    /// Whether a key is one of a contender for this very name.
    pub fn has(&self, key: &[u8]) -> bool {
        let rest = key.strip_prefix(&self.prefix[..]);
        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(&b'/'))
    }
}

/// As people are told of it, escaped so that a terminal can show it.
impl fmt::Display for ContestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", escape(self.name()))
    }
}

impl fmt::Debug for ContestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContestName({self})")
    }
}

/// The version with which a row's key came into being; `None` if it has no value. Rows of ranges
/// come with their facts.
pub(super) fn created(row: &Row) -> Option<Timestamp> {
    row.found.as_ref()?.facts.map(|facts| facts.created)
}

/// A key that is watched, since it came into being with a certain version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedKey {
    key: Bytes,
    created: Timestamp,
    /// A reset that is not whole yet has shown that it is still there.
    is_in_reset: bool,
}

impl WatchedKey {
    pub fn new(key: Bytes, created: Timestamp) -> WatchedKey {
        WatchedKey { key, created, is_in_reset: false }
    }

    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// Whether the key has gone, says an event of a watch of this one key: it was deleted, and
    /// perhaps came into being again since.
    pub fn has_gone(&mut self, event: &WatchEvent) -> bool {
        let created = self.created;
        match event {
            WatchEvent::Changed { changes, .. } => changes.iter().any(|change| {
                let facts = change.written.as_ref().and_then(|written| written.facts);
                change.key == self.key && facts.map(|facts| facts.created) != Some(created)
            }),
            WatchEvent::Reset { rows, begins, continues, .. } => {
                let shown = rows
                    .iter()
                    .any(|row| row.key == self.key && self::created(row) == Some(created));
                self.is_in_reset = shown || (self.is_in_reset && !begins);
                !continues && !self.is_in_reset
            }
        }
    }
}

/// What a contender is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the rows of [`ContestName::range`], all of one state that is no older than its own key,
    /// and give them to [`Contender::row`] and then [`Contender::looked`].
    Look,
    /// Watch this key after this version, and give what comes to [`Contender::ahead`]. An earlier
    /// watch is over.
    Watch {
        /// The one before its own.
        key: Bytes,
        /// The version as of which it was there.
        after: Timestamp,
    },
    /// It holds the lock, or leads, as long as its own key stays.
    Hold {
        /// Its fencing token: the version with which its key came into being.
        fence: Timestamp,
    },
    /// Its own key has gone, and everything is over.
    Lose,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Its key is to be put.
    Entering,
    /// It is shown rows. Of the keys before its own, which one came last so far.
    Looking {
        fence: Timestamp,
        ahead: Option<WatchedKey>,
        is_there: bool,
    },
    /// It waits for the end of the key before its own.
    Waiting {
        fence: Timestamp,
        ahead: WatchedKey,
    },
    Holding,
    Lost,
}

/// Somebody who wants what only one may have at a time.
///
/// Its owner first carries out [`Contender::entering`], then does what each [`Step`] says, and from
/// the beginning on watches [`Contender::own`] and the lease, whose end it tells by
/// [`Contender::lost`].
#[derive(Debug)]
pub struct Contender {
    name: ContestName,
    key: Bytes,
    lease: LeaseId,
    stage: Stage,
}

impl Contender {
    /// A contender that has not entered yet.
    pub fn new(name: ContestName, lease: LeaseId) -> Contender {
        let key = name.key(lease);
        Contender { name, key, lease, stage: Stage::Entering }
    }

    /// The key that stands for it.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// The transaction that puts its key, or tells what there is already.
    pub fn entering(&self, value: &[u8]) -> Txn {
        Txn::when(Comparison::absent(&self.key))
            .then(TxnOp::put_with_lease(&self.key, value, self.lease))
            .or_else(TxnOp::get(&self.key))
    }

    /// Its key is there, has come into being with this version, and goes with this lease.
    pub fn entered(&mut self, created: Timestamp, lease: Option<LeaseId>) -> Step {
        assert_eq!(self.stage, Stage::Entering, "{} enters twice", self.name);
        if lease != Some(self.lease) {
            // Somebody else's, which would not go when the lease ends.
            return self.lost();
        }
        self.look(created)
    }

    /// Its own key, since when it has entered; its owner watches it after that version.
    pub fn own(&self, fence: Timestamp) -> WatchedKey {
        WatchedKey::new(self.key.clone(), fence)
    }

    /// Reads from the beginning: also after a read that was broken off.
    pub fn look(&mut self, fence: Timestamp) -> Step {
        self.stage = Stage::Looking { fence, ahead: None, is_there: false };
        Step::Look
    }

    /// A row of the read that it has asked for.
    pub fn row(&mut self, row: &Row) {
        let Stage::Looking { fence, ahead, is_there } = &mut self.stage else {
            panic!("{} is shown {row:?} in {:?}", self.name, self.stage);
        };
        let Some(created) = created(row).filter(|_| self.name.has(&row.key)) else { return };
        *is_there |= row.key == self.key && created == *fence;
        // Two keys of one transaction have one version; then their order decides.
        let place = (created, &row.key);
        let is_before = place < (*fence, &self.key);
        if is_before && ahead.as_ref().is_none_or(|last| (last.created, &last.key) < place) {
            *ahead = Some(WatchedKey::new(row.key.clone(), created));
        }
    }

    /// Those were all rows, as of this version.
    pub fn looked(&mut self, at: Timestamp) -> Step {
        let Stage::Looking { fence, ahead, is_there } = &self.stage else {
            panic!("{} has looked in {:?}", self.name, self.stage);
        };
        let fence = *fence;
        if at < fence {
            // A state from before it had entered tells nothing.
            return self.look(fence);
        }
        if !is_there {
            return self.lost();
        }
        match ahead.clone() {
            Some(ahead) => {
                let key = ahead.key.clone();
                self.stage = Stage::Waiting { fence, ahead };
                Step::Watch { key, after: at }
            }
            None => {
                self.stage = Stage::Holding;
                Step::Hold { fence }
            }
        }
    }

    /// An event of the watch of the key before its own; what follows from it, if anything.
    pub fn ahead(&mut self, event: &WatchEvent) -> Option<Step> {
        let Stage::Waiting { fence, ahead } = &mut self.stage else { return None };
        let fence = *fence;
        // It may have gone out of turn.
        ahead.has_gone(event).then(|| self.look(fence))
    }

    /// Its own key has gone, or its lease may have ended.
    pub fn lost(&mut self) -> Step {
        self.stage = Stage::Lost;
        Step::Lose
    }
}
