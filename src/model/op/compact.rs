//! `COMPACT`: ends reads as of versions below one, so that what they would show may go.
//!
//! Rule: once it is applied, a server refuses every read as of an earlier version, whether what
//! that would show is still on its disk or not. So all servers refuse the same, and not each what
//! it happens to have deleted. Reads as of that version and later ones find what they have always
//! found, and garbage collection takes its time (`storage::garbage_collection`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::{Timestamp, WriteAnswer};

/// Ends reads as of versions below this one, or below the write's own version if that is less:
/// nobody can end reads of what is still to be written. An older one than before changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compact {
    /// The earliest version as of which reads go on.
    pub version: Timestamp,
}

impl Operation for Compact {
    fn visit(&self, _show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {}

    fn check(&self) -> Result<(), String> {
        if self.version > Timestamp::ZERO {
            return Ok(());
        }
        Err(format!(
            "the past cannot be compacted up to version {}: name a version, which is greater than \
             0",
            self.version
        ))
    }

    fn adds_data(&self) -> bool {
        false
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        store.compact(self.version)?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        Some(OpResult::Done)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        // Any key may have lost its past: a client that has had its answer is shown none of it by a
        // server that has not applied this.
        Learned::ManyKeys
    }
}
