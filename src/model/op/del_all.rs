//! `DEL_ALL`: many keys are deleted at one timestamp, and their past goes or stays.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::{WriteAnswer, bounded};

/// Does to each key what [`Del`](super::Del) does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelAll {
    /// As many as [`TRANSACTION_KEYS_MAX`](crate::limits::TRANSACTION_KEYS_MAX) and
    /// [`TRANSACTION_BYTES_MAX`](crate::limits::TRANSACTION_BYTES_MAX) allow; a key may be given
    /// twice.
    #[serde(deserialize_with = "bounded::keys")]
    pub keys: Vec<Bytes>,
    /// Reads as of a time before go on to find what the keys had then.
    pub keeps_history: bool,
}

impl Operation for DelAll {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        self.keys.iter().for_each(|key| show(key, None));
    }

    fn adds_data(&self) -> bool {
        self.keeps_history
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        // One that is given twice has no value the second time, and removing that does nothing.
        self.keys.iter().try_for_each(|key| store.delete(key, self.keeps_history))?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        Some(OpResult::Done)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::ManyKeys
    }
}
