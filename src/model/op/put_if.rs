//! `PUT_IF`: a new newest version of one key, if the key is as its client has last seen it
//! (compare-and-set).
//!
//! The condition is about the newest version and not about the value: a version is never used
//! twice, so a key that has the version its client knows has not been written or removed since.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::{Timestamp, WriteAnswer};

/// Stores a new newest version of a key if the condition holds, and else changes nothing and tells
/// what the key has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutIf {
    /// From 1 byte to [`limits::KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX).
    pub key: Bytes,
    /// Any bytes, and perhaps none.
    pub value: Bytes,
    /// What must hold just before the write.
    pub condition: Condition,
}

/// What must hold of a key for a conditional write to take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The key has no value: it was never written, or it was removed.
    #[serde(rename = "ABSENT")]
    Absent,
    /// The newest version of the key is this one.
    #[serde(rename = "VERSION")]
    Version(Timestamp),
}

impl Condition {
    /// Refuses what holds of no key.
    ///
    /// # Errors
    /// One sentence for a person.
    pub(super) fn check(self) -> Result<(), String> {
        match self {
            Condition::Version(version) if version <= Timestamp::ZERO => Err(format!(
                "no key can have version {version}: name a version that is greater than 0, or that \
                 the key is absent"
            )),
            Condition::Version(_) | Condition::Absent => Ok(()),
        }
    }

    pub(super) fn holds(self, newest: Option<Timestamp>) -> bool {
        match self {
            Condition::Absent => newest.is_none(),
            Condition::Version(version) => newest == Some(version),
        }
    }
}

impl Operation for PutIf {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        show(&self.key, Some(&self.value));
    }

    fn adds_data(&self) -> bool {
        true
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        let newest = store.newest(&self.key)?.map(|newest| newest.version);
        if !self.condition.holds(newest) {
            return Ok(OpApplied::Result(OpResult::ConditionFailed { newest }));
        }
        store.put(&self.key, &self.value)?;
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
        Learned::Newest(&self.key, answer.timestamp)
    }
}
