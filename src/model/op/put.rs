//! `PUT`: a new newest version of one key.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::WriteAnswer;

/// Stores a new newest version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// From 1 byte to [`limits::KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX).
    pub key: Bytes,
    /// Any bytes, and perhaps none.
    pub value: Bytes,
    /// The answer tells what the key had before, and so comes only when the write is applied.
    pub tells_previous: bool,
}

impl Operation for Put {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        show(&self.key, Some(&self.value));
    }

    fn adds_data(&self) -> bool {
        true
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        store.put(&self.key, &self.value)?;
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
