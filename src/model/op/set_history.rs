//! `SET_HISTORY`: what the group keeps of versions that newer ones have replaced.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::limits;
use crate::model::{History, WriteAnswer};

/// Changes what the group keeps. Nothing is removed at once: garbage collection goes by the new
/// rule from here on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetHistory {
    /// What is kept from now on.
    pub history: History,
}

impl Operation for SetHistory {
    fn visit(&self, _show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {}

    fn check(&self) -> Result<(), String> {
        if self.history.can_be_kept() {
            return Ok(());
        }
        Err(format!(
            "a history of {} cannot be kept: keep all, a time that is not zero, or 1 to {} \
             versions of a key",
            self.history,
            limits::HISTORY_VERSIONS_MAX
        ))
    }

    fn adds_data(&self) -> bool {
        false
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        store.set_history(self.history)?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        Some(OpResult::Done)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::NoKey
    }
}
