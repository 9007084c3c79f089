//! `TRIM`: every version of a key goes but the newest.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::WriteAnswer;

/// Removes every version of a key but the newest. It makes no version itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trim {
    /// From 1 byte to [`limits::KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX); it need not have a
    /// value.
    pub key: Bytes,
    /// The answer tells the version that stays, and so comes only when the write is applied.
    pub tells_previous: bool,
}

impl Operation for Trim {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        show(&self.key, None);
    }

    fn adds_data(&self) -> bool {
        false
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        store.trim(&self.key)?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        (!self.tells_previous).then_some(OpResult::Done)
    }

    fn tells_before(&self, _result: OpResult) -> Option<&Bytes> {
        self.tells_previous.then_some(&self.key)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::Gone(&self.key)
    }
}
