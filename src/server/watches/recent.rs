//! The window of the latest changes by key, for watches that are behind: what each of them is to
//! see next, at most a page.
//!
//! It is made when the first watch needs it, and let go of when none has for a while: as long as
//! all wait, what is applied costs nothing here. Without it a watch of one key had to walk through
//! all changes of the window, and when the clients of a server that has failed resume elsewhere, a
//! hundred thousand do so at once.
//!
//! What a key had before a change is in the store alone. It is kept beside the change once it has
//! been read for one watch, for the others that tell it: without it a write in the range of ten
//! thousand watches was ten thousand pages of the store.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::limits::PAGE_ROWS_MAX;
use crate::model::{FeedPosition, KeyChange, KeyInterval, Previous, Timestamp};
use crate::storage::feed::ChangesLimits;
use crate::storage::reads::Store;
use crate::storage::recent::{RecentChange, RecentPart};

/// Of a range with more changes than this in the window, they are looked at in order of time, of
/// which so many are soon found.
const SORTED_CHANGES_MAX: usize = 2 * PAGE_ROWS_MAX;

/// Bytes of what keys had before recent changes that are kept. Of what is beyond, each watch reads
/// the store by itself.
const PREVIOUS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What memory has for a watch that is behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recent {
    Changes {
        changes: Vec<KeyChange>,
        position: FeedPosition,
        has_more: bool,
    },
    /// Only the store can tell.
    ReadStore,
}

/// What the window holds after one time and up to another.
#[derive(Debug, Default)]
pub(super) struct RecentByKey {
    after: Timestamp,
    up_to: Timestamp,
    changes: BTreeMap<(Bytes, Timestamp), KeyChange>,
    /// The same, in their order.
    order: VecDeque<(Timestamp, Bytes)>,
    /// Long ranges that were removed, in order of time.
    removed: VecDeque<(Timestamp, KeyInterval)>,
    /// Bytes of what is kept of values before the changes.
    previous_bytes: usize,
    /// Changes that were looked at since somebody has asked.
    looks: usize,
}

impl RecentByKey {
    /// Takes in what the window has got and let go of.
    pub fn renew(&mut self, store: &Store) {
        let begins = store.recent_begins();
        if begins > self.up_to {
            *self = RecentByKey { after: begins, up_to: begins, ..RecentByKey::default() };
        }
        self.after = self.after.max(begins);
        while let Some((at, _)) = self.order.front()
            && *at <= self.after
            && let Some((at, key)) = self.order.pop_front()
        {
            let gone = self.changes.remove(&(key, at));
            self.previous_bytes -= gone.as_ref().map_or(0, previous_bytes);
        }
        while self.removed.front().is_some_and(|(at, _)| *at <= self.after) {
            self.removed.pop_front();
        }
        // A window that has begun anew meanwhile is met next time.
        let RecentPart::Batches(batches) = store.recent_changes(self.up_to) else { return };
        let Some(last) = batches.last().map(|batch| batch.up_to) else { return };
        for change in batches.iter().flat_map(|batch| &batch.changes) {
            if change.at() <= self.up_to {
                continue;
            }
            self.looks += 1;
            match change {
                RecentChange::Key(change) => {
                    self.order.push_back((change.at, change.key.clone()));
                    self.changes.insert((change.key.clone(), change.at), change.clone());
                }
                RecentChange::Range { at, range } => {
                    self.removed.push_back((*at, range.clone()));
                }
            }
        }
        self.up_to = last;
    }

    /// Keeps what the store has said that keys had before changes of the window.
    pub fn learn(&mut self, changes: &[KeyChange]) {
        for change in changes {
            let bytes = previous_bytes(change);
            if self.previous_bytes + bytes <= PREVIOUS_BYTES_MAX
                && let Some(known) = self.changes.get_mut(&(change.key.clone(), change.at))
                && known.previous.is_none()
            {
                known.previous = change.previous.clone();
                self.previous_bytes += bytes;
            }
        }
    }

    /// The changes that were looked at since the last time.
    pub fn take_looks(&mut self) -> usize {
        std::mem::take(&mut self.looks)
    }

    /// What there is of a range after a position.
    pub fn page(
        &mut self,
        range: &KeyInterval,
        tells_previous: bool,
        after: &FeedPosition,
        most: ChangesLimits,
    ) -> Recent {
        self.looks += 1;
        if after.up_to < self.after {
            return Recent::ReadStore;
        }
        if after.up_to >= self.up_to {
            let position = after.clone();
            return Recent::Changes { changes: Vec::new(), position, has_more: false };
        }
        // The store tells which keys were removed with a range.
        let removed = self.removed.iter().filter(|(at, _)| after.up_to < *at);
        let removed = removed.filter(|(_, removed)| removed.overlaps(range)).map(|(at, _)| *at);
        let until = removed.min();
        let mut page = Page {
            most,
            until,
            tells_previous,
            lacks_previous: false,
            changes: Vec::new(),
            bytes: 0,
            next: None,
        };
        let mut looks = 0;
        match self.few_of(range, after) {
            Ok(mut few) => {
                looks += few.len();
                few.sort_unstable_by_key(|change| (change.at, &change.key));
                let _ = few.into_iter().try_for_each(|change| page.add(change));
            }
            Err(seen) => {
                looks += seen;
                let from = self.order.partition_point(|(at, _)| *at <= after.up_to);
                for (at, key) in self.order.range(from..) {
                    looks += 1;
                    if !range.covers(key) || !after.is_before(*at, key) {
                        continue;
                    }
                    let Some(change) = self.changes.get(&(key.clone(), *at)) else {
                        panic!("the change of {key:?} at {at} is in order and not there")
                    };
                    if page.add(change).is_err() {
                        break;
                    }
                }
            }
        }
        self.looks += looks;
        let Page { changes, next, lacks_previous, .. } = page;
        match (next, until) {
            _ if lacks_previous => Recent::ReadStore,
            (Some(position), _) => Recent::Changes { changes, position, has_more: true },
            (None, Some(_)) if changes.is_empty() => Recent::ReadStore,
            (None, Some(at)) => {
                let position = FeedPosition::after(Timestamp(at.0 - 1));
                Recent::Changes { changes, position, has_more: true }
            }
            (None, None) => {
                let position = FeedPosition::after(self.up_to);
                Recent::Changes { changes, position, has_more: false }
            }
        }
    }

    /// The changes of a range after a position, in order of keys; or how many were looked at where
    /// they are too many to be sorted.
    fn few_of(&self, range: &KeyInterval, after: &FeedPosition) -> Result<Vec<&KeyChange>, usize> {
        if range.from > range.to {
            return Ok(Vec::new());
        }
        let from = match range.is_one_key() {
            true => after.up_to,
            false => Timestamp(i64::MIN),
        };
        let ends = (range.from.clone(), from)..=(range.to.clone(), Timestamp(i64::MAX));
        let mut few = Vec::new();
        for (seen, (_, change)) in self.changes.range(ends).enumerate() {
            if seen >= SORTED_CHANGES_MAX {
                return Err(seen);
            }
            if after.is_before(change.at, &change.key) {
                few.push(change);
            }
        }
        Ok(few)
    }
}

/// A page under construction.
struct Page {
    most: ChangesLimits,
    /// Changes from this time on are left to the store.
    until: Option<Timestamp>,
    tells_previous: bool,
    /// It tells what was before its changes, and of one that is not known.
    lacks_previous: bool,
    changes: Vec<KeyChange>,
    bytes: usize,
    /// Where the next page begins, if this one is full.
    next: Option<FeedPosition>,
}

impl Page {
    /// Adds the next change; an error where the page ends.
    fn add(&mut self, change: &KeyChange) -> Result<(), ()> {
        if self.until.is_some_and(|until| until <= change.at) {
            return Err(());
        }
        let previous = change.previous.as_ref().filter(|_| self.tells_previous);
        self.bytes += change_bytes(change) + previous.map_or(0, |_| previous_bytes(change));
        let is_full = self.changes.len() >= self.most.changes || self.bytes > self.most.bytes;
        if is_full && !self.changes.is_empty() {
            self.next = Some(FeedPosition::before(change.at, change.key.clone()));
            return Err(());
        }
        if self.tells_previous && previous.is_none() {
            self.lacks_previous = true;
            return Err(());
        }
        self.changes.push(KeyChange { previous: previous.cloned(), ..change.clone() });
        Ok(())
    }
}

/// Bytes of what a key had before a change, as far as that is known.
fn previous_bytes(change: &KeyChange) -> usize {
    let value = match &change.previous {
        Some(Previous::Value { value, .. }) => value.as_ref(),
        Some(Previous::Absent) | None => None,
    };
    value.map_or(0, Bytes::len)
}

/// Bytes of a change's key and value.
pub(super) fn change_bytes(change: &KeyChange) -> usize {
    change.key.len() + change.written.as_ref().map_or(0, |version| version.value.len())
}
