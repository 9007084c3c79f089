//! `DEL`: one key is deleted, and its past goes or stays.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::WriteAnswer;

/// Removes every version of a key, or only makes it have no value from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Del {
    /// From 1 byte to [`limits::KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX); it need not have a
    /// value.
    pub key: Bytes,
    /// The answer tells what the key had, and so comes only when the write is applied.
    pub tells_previous: bool,
    /// Reads as of a time before go on to find what the key had then.
    pub keeps_history: bool,
}

impl Operation for Del {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        show(&self.key, None);
    }

    fn adds_data(&self) -> bool {
        self.keeps_history
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        store.delete(&self.key, self.keeps_history)?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        (!self.tells_previous).then_some(OpResult::Done)
    }

    fn tells_before(&self, _result: OpResult) -> Option<&Bytes> {
        self.tells_previous.then_some(&self.key)
    }

    fn learned(&self, answer: &WriteAnswer) -> Learned<'_> {
        Learned::Newest(&self.key, answer.timestamp)
    }
}
