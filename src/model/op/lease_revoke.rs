//! `LEASE_REVOKE`: a lease ends now, and its keys are deleted in this version.
//!
//! How many keys a lease has is known when the write is applied, and how long a write may be, when
//! it is ordered: long ones take turns. So a client that expects few keys says so, and asks again
//! where there are more.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::limits;
use crate::model::{LeaseId, WriteAnswer};

/// Ends a lease before its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRevoke {
    pub id: LeaseId,
    /// With more keys than this nothing is done ([`OpResult::TooLong`]); long ones count as
    /// several, as for the most keys of a lease. `None`: it ends whatever it has, and counts as a
    /// long write.
    pub keys_max: Option<u32>,
}

impl Operation for LeaseRevoke {
    fn visit(&self, _show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {}

    /// Its keys keep their history, and each gets a tombstone: as for a deletion that keeps it,
    /// there must be room.
    fn adds_data(&self) -> bool {
        true
    }

    fn scanned_rows_max(&self) -> usize {
        let keys_max = self.keys_max.map_or(usize::MAX, |keys| keys as usize);
        keys_max.min(limits::LEASE_KEYS_MAX)
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        Ok(OpApplied::Result(store.end_lease(self.id, self.keys_max)?))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        None
    }

    fn depends_on_state(&self) -> bool {
        true
    }

    fn may_come_to(&self, result: OpResult) -> bool {
        match result {
            OpResult::Done | OpResult::NoLease => true,
            OpResult::TooLong => self.keys_max.is_some(),
            _ => false,
        }
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::ManyKeys
    }
}
