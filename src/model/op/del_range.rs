//! `DEL_RANGE`: the keys of a range are deleted at one timestamp, and their past goes or stays.
//!
//! Of a range that is too long to look through at once only the ends are recorded, and what lies
//! between them is removed. For the past to stay each key has to be known and gets a tombstone: so
//! such a removal looks through as many keys as a write may name, takes its turn as a long write,
//! and is refused beyond.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, RangeDeletion, StoreChanges};
use crate::limits;
use crate::model::WriteAnswer;

/// Does to every key from `from` to `to`, both included, what [`Del`](super::Del) does; of a range
/// the wrong way round, nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelRange {
    /// The least key that is removed.
    pub from: Bytes,
    /// The greatest key that is removed.
    pub to: Bytes,
    /// Reads as of a time before go on to find what the keys had then. Nothing is done, and
    /// [`OpResult::TooLong`] told, if the range is longer than may be looked through.
    pub keeps_history: bool,
}

impl Operation for DelRange {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        show(&self.from, None);
        show(&self.to, None);
    }

    fn adds_data(&self) -> bool {
        self.keeps_history
    }

    fn scanned_rows_max(&self) -> usize {
        match self.keeps_history {
            true => limits::KEPT_REMOVAL_ROWS_MAX,
            false => limits::REMOVAL_SCAN_ROWS_MAX,
        }
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        Ok(match store.delete_range(&self.from, &self.to, self.keeps_history)? {
            RangeDeletion::Done => OpApplied::Result(OpResult::Done),
            RangeDeletion::TooLong => OpApplied::Result(OpResult::TooLong),
            RangeDeletion::TooManyRanges => OpApplied::Refused,
        })
    }

    /// Whether the range can be removed now is known only when everything before it is applied.
    fn known_at_commit(&self) -> Option<OpResult> {
        None
    }

    fn depends_on_state(&self) -> bool {
        self.keeps_history
    }

    fn may_come_to(&self, result: OpResult) -> bool {
        match result {
            OpResult::Done => true,
            OpResult::TooLong => self.keeps_history,
            _ => false,
        }
    }

    fn learned(&self, answer: &WriteAnswer) -> Learned<'_> {
        match answer.result.has_taken_effect() {
            true => Learned::ManyKeys,
            false => Learned::NoKey,
        }
    }
}
