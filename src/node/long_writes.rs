//! Long writes take turns, so that short ones do not wait for all of them.
//!
//! Entries are applied in order, and one of a hundred thousand keys takes a good part of a second,
//! in which nothing behind it is applied. So the log of a leader holds only so many rows of long
//! writes that are not applied. The next long write waits for its turn, and short ones of other
//! clients go past it: the writes of one client are proposed in the order in which they came.
//!
//! A follower has long writes of its clients in the leader's hands up to as many rows, and short
//! ones of other clients go past the rest. A write that waits for its turn may wait for longer than
//! others: after a time-out its client would send it again, behind those of all other clients, and
//! might never come to its turn.
//!
//! While a long write is applied, reads that ask for the newest state wait, and so do writes of new
//! sessions. So after one that took long the next rests for some times as long, if anybody else has
//! asked for something meanwhile: else one client that sends one long write after another would
//! leave the others nothing.
//!
//! A write of several keys that is not long is short work, but many of them are as much as a long
//! one. So what they look at is counted, too, with a bound of the same size, and beyond it they
//! wait for each other, in order. They neither wait for long ones nor rest: what may be before them
//! is a tenth of a second's work.
//!
//! The measure of a write is the number of rows that applying it looks at: its keys, and for the
//! removal of a range as many as it may scan, though it names two. Writes of one row are not
//! counted; their number has a bound.
//!
//! What an earlier leader has proposed is not counted.

use std::collections::{HashSet, VecDeque};

use super::clock::micros;
use super::writes::{WriteLength, Writes};
use crate::limits::{self, NodeLimits};
use crate::model::LogIndex;

/// Writes in a leader's log that are not applied, and the rows that they look at.
#[derive(Debug, Default)]
struct Unapplied {
    writes: VecDeque<(LogIndex, usize)>,
    rows: usize,
}

impl Unapplied {
    fn push(&mut self, index: LogIndex, rows: usize) {
        self.writes.push_back((index, rows));
        self.rows += rows;
    }

    /// Everything up to `index` is applied; whether that takes any away.
    fn applied(&mut self, index: LogIndex) -> bool {
        let before = self.writes.len();
        while let Some((_, rows)) = self.writes.pop_front_if(|(first, _)| *first <= index) {
            self.rows -= rows;
        }
        self.writes.len() < before
    }
}

/// The writes in this leader's log that take turns.
#[derive(Debug, Default)]
pub(super) struct LongWrites {
    long: Unapplied,
    several: Unapplied,
    /// Since when the first long one is committed, and nothing long is before it: replicating it
    /// and making it durable holds up nobody else's reads. `None` until then.
    began_us: Option<u64>,
    /// Somebody has asked for something else since then.
    is_awaited: bool,
    /// No further long one is proposed before this.
    rest_until_us: u64,
    /// One waits for nothing but that.
    is_resting: bool,
}

impl LongWrites {
    /// A write that looks at so many rows was proposed at `index`.
    pub fn proposed(&mut self, index: LogIndex, rows: usize, length: WriteLength) {
        match length {
            WriteLength::Single => {}
            WriteLength::Several => self.several.push(index, rows),
            WriteLength::Long => {
                if self.long.writes.is_empty() {
                    self.is_awaited = false;
                }
                self.long.push(index, rows);
            }
        }
    }

    /// Everything up to `index` is committed.
    pub fn committed(&mut self, index: LogIndex, now_us: u64) {
        if self.began_us.is_none() && self.long.writes.front().is_some_and(|(at, _)| *at <= index) {
            self.began_us = Some(now_us);
        }
    }

    /// Everything up to `index` is applied.
    pub fn applied(&mut self, index: LogIndex, now_us: u64) {
        self.several.applied(index);
        if !self.long.applied(index) {
            return;
        }
        let took_us = self.began_us.take().map_or(0, |began_us| now_us.saturating_sub(began_us));
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

    /// When a long one that was held back may go, if only the time is in its way.
    pub fn due_us(&self) -> Option<u64> {
        self.is_resting.then_some(self.rest_until_us)
    }

    /// What was held back is looked at: whether anything still is, [`hold_back`](Self::hold_back)
    /// says.
    pub fn look(&mut self) {
        self.is_resting = false;
    }

    /// Whether any that waits may have to wait for its turn: on most days not, when there may be
    /// many to look through.
    pub fn may_hold_back(&self, writes: &Writes, limits: &NodeLimits) -> bool {
        writes.may_have_long_ones()
            || self.several.rows + writes.work_rows() > limits.long_write_rows_max
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
        let rows_max = limits.long_write_rows_max;
        let mut clients = HashSet::new();
        let (mut long_rows, mut several_rows) = (self.long.rows, self.several.rows);
        let (mut is_long_held, mut is_several_held) = (false, false);
        waiting.retain(|key| {
            let write = &writes.get(*key).write;
            let (client, rows) = (write.request.client, write.shape.work_rows);
            // One may always be there, however long it is. None goes past another one.
            let fits = |before: usize| before == 0 || before + rows <= rows_max;
            let has_turn = match writes.length(&write.shape) {
                WriteLength::Single => true,
                WriteLength::Several => !is_several_held && fits(several_rows),
                WriteLength::Long => {
                    !is_long_held && fits(long_rows) && now_us >= self.rest_until_us
                }
            };
            let goes = has_turn && !clients.contains(&client);
            if !goes {
                clients.insert(client);
                held.push_back(*key);
            }
            match writes.length(&write.shape) {
                WriteLength::Single => {}
                WriteLength::Several if goes => several_rows += rows,
                WriteLength::Several => is_several_held = true,
                WriteLength::Long if goes => long_rows += rows,
                WriteLength::Long => is_long_held = true,
            }
            goes
        });
        self.is_resting = is_long_held && long_rows == 0 && now_us < self.rest_until_us;
        held
    }
}
