//! `DEL_ALL`: every version of many keys goes, at one timestamp.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::{WriteAnswer, bounded};

/// Removes every version of each key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelAll {
    /// As many as [`TRANSACTION_KEYS_MAX`](crate::limits::TRANSACTION_KEYS_MAX) and
    /// [`TRANSACTION_BYTES_MAX`](crate::limits::TRANSACTION_BYTES_MAX) allow; a key may be given
    /// twice.
    #[serde(deserialize_with = "bounded::keys")]
    pub keys: Vec<Bytes>,
}

impl Operation for DelAll {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        self.keys.iter().for_each(|key| show(key, None));
    }

    fn adds_data(&self) -> bool {
        false
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        // One that is given twice has no value the second time, and removing that does nothing.
        self.keys.iter().try_for_each(|key| store.delete(key))?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        Some(OpResult::Done)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::ManyKeys
    }
}
