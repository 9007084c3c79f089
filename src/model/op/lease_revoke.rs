//! `LEASE_REVOKE`: a lease ends now, and its keys are deleted in this version.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::limits;
use crate::model::{LeaseId, WriteAnswer};

/// Ends a lease before its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRevoke {
    pub id: LeaseId,
}

impl Operation for LeaseRevoke {
    fn visit(&self, _show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {}

    fn adds_data(&self) -> bool {
        false
    }

    fn scanned_rows_max(&self) -> usize {
        limits::LEASE_KEYS_MAX
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        Ok(OpApplied::Result(match store.end_lease(self.id)? {
            true => OpResult::Done,
            false => OpResult::NoLease,
        }))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        None
    }

    fn depends_on_state(&self) -> bool {
        true
    }

    fn may_come_to(&self, result: OpResult) -> bool {
        matches!(result, OpResult::Done | OpResult::NoLease)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::ManyKeys
    }
}
