//! `PUT_ALL`: a new newest version of many keys, all at one timestamp.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::{WriteAnswer, bounded};

/// Stores a new newest version of each key. Of a key given twice the last value counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAll {
    /// Keys and values: as many as [`TRANSACTION_KEYS_MAX`](crate::limits::TRANSACTION_KEYS_MAX)
    /// and [`TRANSACTION_BYTES_MAX`](crate::limits::TRANSACTION_BYTES_MAX) allow.
    #[serde(deserialize_with = "bounded::keys")]
    pub pairs: Vec<(Bytes, Bytes)>,
}

impl Operation for PutAll {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        self.pairs.iter().for_each(|(key, value)| show(key, Some(value)));
    }

    fn adds_data(&self) -> bool {
        true
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        // A key has one version at one timestamp. Sorted, so that all replicas change their rows in
        // the same order.
        let pairs: BTreeMap<&Bytes, &Bytes> = self.pairs.iter().map(|(k, v)| (k, v)).collect();
        pairs.into_iter().try_for_each(|(key, value)| store.put(key, value))?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        Some(OpResult::Done)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::ManyKeys
    }
}
