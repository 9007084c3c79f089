//! Long writes take turns, so that short ones do not wait for all of them.
//!
//! Entries are applied in order, and one of a hundred thousand keys takes a good part of a second, in which nothing
//! behind it is applied. So the log of a leader holds only so many keys of long writes that are not applied. The next
//! long write waits for its turn, and short ones of other clients go past it: the writes of one client are proposed in
//! the order in which they came.
//!
//! A follower has one long write of its clients in the leader's hands, and short ones of other clients go past the
//! rest. A write that waits for its turn may wait for longer than others: after a time-out its client would send it
//! again, behind those of all other clients, and might never come to its turn.
//!
//! What an earlier leader has proposed is not counted.

use std::collections::{HashSet, VecDeque};

use super::writes::Writes;
use crate::limits::NodeLimits;
use crate::types::LogIndex;

/// The long writes in this leader's log.
#[derive(Debug, Default)]
pub(super) struct LongWrites {
    unapplied: VecDeque<(LogIndex, usize)>,
    unapplied_keys: usize,
}

impl LongWrites {
    /// A write of so many keys was proposed at `index`.
    pub fn proposed(&mut self, index: LogIndex, keys: usize, writes: &Writes) {
        if writes.is_long(keys) {
            self.unapplied.push_back((index, keys));
            self.unapplied_keys += keys;
        }
    }

    /// Everything up to `index` is applied.
    pub fn applied(&mut self, index: LogIndex) {
        while let Some((_, keys)) = self.unapplied.pop_front_if(|(first, _)| *first <= index) {
            self.unapplied_keys -= keys;
        }
    }

    /// Takes those out of `waiting` that have to wait for their turn, in order.
    pub fn hold_back(
        &self,
        writes: &Writes,
        waiting: &mut VecDeque<usize>,
        limits: &NodeLimits,
    ) -> VecDeque<usize> {
        let mut held = VecDeque::new();
        // As on most days, when there may be many waiting ones to look through.
        if !writes.may_have_long_ones() {
            return held;
        }
        let mut clients = HashSet::new();
        let mut unapplied_keys = self.unapplied_keys;
        waiting.retain(|key| {
            let write = &writes.get(*key).write;
            let (client, keys) = (write.request.client, write.shape.keys);
            let is_long = writes.is_long(keys);
            // One may always be there, however long it is. None goes past another one.
            let fits = unapplied_keys == 0 || unapplied_keys + keys <= limits.long_write_keys_max;
            let goes = !clients.contains(&client) && (!is_long || fits && clients.is_empty());
            match goes {
                true if is_long => unapplied_keys += keys,
                true => {}
                false => {
                    clients.insert(client);
                    held.push_back(*key);
                }
            }
            goes
        });
        held
    }
}
