//! `WRITE_IF`: many keys are stored and removed, all at one timestamp, if one key is as its client
//! has last seen it.
//!
//! The key of the condition guards the others: whoever changes it takes from all who know its
//! earlier version the right to write under it. So rows that belong together have one owner at a
//! time, also when an owner was stopped in the middle of a write and goes on much later.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Condition, Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::{WriteAnswer, bounded};

/// Stores and removes keys if the condition holds, and else changes nothing and tells what the key
/// of the condition has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteIf {
    /// The key that the condition is about. It may be among those that are stored or removed.
    pub key: Bytes,
    /// What must hold of `key` just before the write.
    pub condition: Condition,
    /// Keys and values to store; of a key given twice the last value counts. All keys together are
    /// as many as [`TRANSACTION_KEYS_MAX`](crate::limits::TRANSACTION_KEYS_MAX) and
    /// [`TRANSACTION_BYTES_MAX`](crate::limits::TRANSACTION_BYTES_MAX) allow.
    #[serde(deserialize_with = "bounded::keys")]
    pub puts: Vec<(Bytes, Bytes)>,
    /// Keys of which every version goes. One that is stored as well is only stored.
    #[serde(deserialize_with = "bounded::keys")]
    pub removes: Vec<Bytes>,
}

impl Operation for WriteIf {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        show(&self.key, None);
        self.puts.iter().for_each(|(key, value)| show(key, Some(value)));
        self.removes.iter().for_each(|key| show(key, None));
    }

    fn adds_data(&self) -> bool {
        !self.puts.is_empty()
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        let newest = store.newest(&self.key)?.map(|newest| newest.version);
        if !self.condition.holds(newest) {
            return Ok(OpApplied::Result(OpResult::ConditionFailed { newest }));
        }
        // As in PUT_ALL: a key has one version at one timestamp, and replicas change their rows in
        // one order.
        let puts: BTreeMap<&Bytes, &Bytes> = self.puts.iter().map(|(k, v)| (k, v)).collect();
        let mut removes = self.removes.iter().filter(|key| !puts.contains_key(key));
        removes.try_for_each(|key| store.delete(key))?;
        puts.into_iter().try_for_each(|(key, value)| store.put(key, value))?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn condition(&self) -> Option<(&Bytes, Condition)> {
        Some((&self.key, self.condition))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        None
    }

    fn learned(&self, answer: &WriteAnswer) -> Learned<'_> {
        if let OpResult::ConditionFailed { newest } = answer.result {
            return Learned::of(&self.key, newest);
        }
        Learned::ManyKeys
    }
}
