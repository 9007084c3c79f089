//! `DEL_RANGE`: every version of every key of a range goes, at one timestamp.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::limits;
use crate::model::WriteAnswer;

/// Removes every version of every key from `from` to `to`, both included; of a range the wrong way
/// round, nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelRange {
    /// The least key that is removed.
    pub from: Bytes,
    /// The greatest key that is removed.
    pub to: Bytes,
}

impl Operation for DelRange {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        show(&self.from, None);
        show(&self.to, None);
    }

    fn adds_data(&self) -> bool {
        false
    }

    fn scanned_rows_max(&self) -> usize {
        limits::REMOVAL_SCAN_ROWS_MAX
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        Ok(match store.delete_range(&self.from, &self.to)? {
            true => OpApplied::Result(OpResult::Done),
            false => OpApplied::Refused,
        })
    }

    /// Whether the range can be removed now is known only when everything before it is applied.
    fn known_at_commit(&self) -> Option<OpResult> {
        None
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::ManyKeys
    }
}
