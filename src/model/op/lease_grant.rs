//! `LEASE_GRANT`: a lease begins, with which keys can be put.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::model::{LeaseId, Timestamp, WriteAnswer, check_lease_ttl};

/// Grants a lease. Its TTL begins when the leader has applied the grant, and so after the client
/// has sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// The id that the client wishes; without one it is the version of this write. An id that a
    /// lease has is refused.
    pub id: Option<LeaseId>,
    /// How long the lease lives after it was granted or kept alive.
    pub ttl_ms: u64,
}

impl LeaseGrant {
    /// The id of the lease that the write at `timestamp` grants.
    pub fn id_at(&self, timestamp: Timestamp) -> LeaseId {
        // Timestamps of writes are greater than 0.
        self.id.unwrap_or(LeaseId(timestamp.0 as u64))
    }
}

impl Operation for LeaseGrant {
    fn visit(&self, _show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {}

    fn check(&self) -> Result<(), String> {
        if let Some(id @ (LeaseId(0) | LeaseId::NOBODYS)) = self.id {
            let LeaseId(id) = id;
            return Err(format!("no lease can have id {id}: name another one, or none"));
        }
        check_lease_ttl(self.ttl_ms)
    }

    fn adds_data(&self) -> bool {
        true
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        Ok(OpApplied::Result(store.grant_lease(self)?))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        None
    }

    fn depends_on_state(&self) -> bool {
        true
    }

    fn may_come_to(&self, result: OpResult) -> bool {
        matches!(result, OpResult::Done | OpResult::LeaseExists | OpResult::TooManyLeases)
    }

    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::NoKey
    }
}
