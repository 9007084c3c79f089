//! Long writes take turns, so that short ones do not wait for all of them.
//!
//! Entries are applied in order, and one of a hundred thousand keys takes a good part of a second,
//! in which nothing behind it is applied. So the log of a leader holds only so many keys of long
//! writes that are not applied. The next long write waits for its turn, and short ones of other
//! clients go past it: the writes of one client are proposed in the order in which they came.
//!
//! A follower has one long write of its clients in the leader's hands, and short ones of other
//! clients go past the rest. A write that waits for its turn may wait for longer than others: after
//! a time-out its client would send it again, behind those of all other clients, and might never
//! come to its turn.
//!
//! While a long write is applied, reads that ask for the newest state wait, and so do writes of new
//! sessions. So after one that took long the next rests for some times as long, if anybody else has
//! asked for something meanwhile: else one client that sends one long write after another would
//! leave the others nothing.
//!
//! What an earlier leader has proposed is not counted.

use std::collections::{HashSet, VecDeque};

use super::clock::micros;
use super::writes::Writes;
use crate::limits::{self, NodeLimits};
use crate::model::LogIndex;

/// The long writes in this leader's log.
#[derive(Debug, Default)]
pub(super) struct LongWrites {
    unapplied: VecDeque<(LogIndex, usize)>,
    unapplied_keys: usize,
    /// Since when the first of them, and nothing long before it, waits to be applied.
    began_us: u64,
    /// Somebody has asked for something else since then.
    is_awaited: bool,
    /// No further one is proposed before this.
    rest_until_us: u64,
    /// One waits for that.
    is_held: bool,
}

impl LongWrites {
    /// A write of so many keys was proposed at `index`.
    pub fn proposed(&mut self, index: LogIndex, keys: usize, writes: &Writes, now_us: u64) {
        if writes.is_long(keys) {
            if self.unapplied.is_empty() {
                self.began_us = now_us;
                self.is_awaited = false;
            }
            self.unapplied.push_back((index, keys));
            self.unapplied_keys += keys;
        }
    }

    /// Everything up to `index` is applied.
    pub fn applied(&mut self, index: LogIndex, now_us: u64) {
        let before = self.unapplied.len();
        while let Some((_, keys)) = self.unapplied.pop_front_if(|(first, _)| *first <= index) {
            self.unapplied_keys -= keys;
        }
        if self.unapplied.len() == before {
            return;
        }
        let took_us = now_us.saturating_sub(self.began_us);
        self.began_us = now_us;
        let is_awaited = std::mem::take(&mut self.is_awaited);
        if is_awaited && took_us >= micros(limits::LONG_WRITE_REST_FROM) {
            let rest_us = u64::from(limits::LONG_WRITE_REST_TIMES) * took_us;
            self.rest_until_us = now_us + rest_us.min(micros(limits::LONG_WRITE_REST_MAX));
        }
    }

    /// Somebody reads, or makes a short write.
    pub fn something_else_is_asked(&mut self) {
        self.is_awaited = true;
    }

    /// When one that was held back may go, if one was and only the time is in its way.
    pub fn due_us(&self) -> Option<u64> {
        (self.is_held && self.unapplied.is_empty()).then_some(self.rest_until_us)
    }

    /// What was held back is looked at: whether anything still is, [`hold_back`](Self::hold_back)
    /// says.
    pub fn look(&mut self) {
        self.is_held = false;
    }

    /// Takes those out of `waiting` that have to wait for their turn, in order.
    pub fn hold_back(
        &mut self,
        writes: &Writes,
        waiting: &mut VecDeque<usize>,
        limits: &NodeLimits,
        now_us: u64,
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
            let fits = fits && now_us >= self.rest_until_us;
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
        self.is_held = !held.is_empty();
        held
    }
}
