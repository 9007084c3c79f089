//! `BARRIER`: nothing changes, and time has passed.
//!
//! A client that wants to read as of a version that no server has reached yet cannot know whether
//! somebody will still write at that version. After a barrier with a later timestamp nobody will.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::WriteAnswer;

/// Takes a timestamp, after which no write can have an older one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {}

impl Operation for Barrier {
    fn visit(&self, _show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {}

    fn adds_data(&self) -> bool {
        false
    }

    fn apply<S: StoreChanges>(&self, _store: &mut S) -> Result<OpApplied, S::Error> {
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        Some(OpResult::Done)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::NoKey
    }
}
