//! Leases: how long they may be, what the log says of them, and what a state machine tells of them.
//!
//! A lease is granted for a time, its TTL, and lives for as long as its holder keeps it alive. When
//! it ends, all keys that were put with it are deleted in one version. *When* it ends is decided by
//! the leader alone, in its monotonic time (`node::leases`), and takes effect by an entry of the
//! log: the state machine reads no clock.
//!
//! **A lease is named by its id and the version that granted it.** An id may be granted again once
//! its lease has ended. An entry that ends the earlier one, and was proposed before, must not end
//! the later one.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LeaseId, Timestamp, bounded};

/// The shortest TTL. A change of leader takes about a second, and a holder that cannot renew
/// meanwhile should find its lease alive.
const LEASE_TTL_MIN: Duration = Duration::from_secs(1);
/// The longest TTL: a year. Whoever means for ever puts keys without a lease.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Leases that an entry of the log ends or whose remaining time it notes: some tens of KiB.
pub const LEASES_PER_RECORD_MAX: usize = 1024;
/// Leases that one request keeps alive. It is a frame of at most 40 KiB, which the event loop
/// decodes at once; a hundred thousand leases take 25 requests.
pub const LEASES_PER_REQUEST_MAX: usize = 4096;
/// Leases that one answer describes: a frame of at most 40 KiB, too.
pub const LEASES_PER_PAGE_MAX: usize = 1024;

/// Refuses a TTL that no lease can have.
///
/// # Errors
/// One sentence for a person.
pub fn check_lease_ttl(ttl_ms: u64) -> Result<(), String> {
    let ttl = Duration::from_millis(ttl_ms);
    if (LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(&ttl) {
        return Ok(());
    }
    Err(format!(
        "a lease cannot last {ttl:?}: from {} second to {} days are possible",
        LEASE_TTL_MIN.as_secs(),
        LEASE_TTL_MAX.as_secs() / (24 * 3600)
    ))
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One lease for ever: an id may be granted again after its lease has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseName {
    /// The number by which keys and requests name it.
    pub id: LeaseId,
    /// The version of the write that granted it.
    pub granted: Timestamp,
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.id, self.granted)
    }
}

/// What the state machine knows of a lease, but for its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseState {
    pub name: LeaseName,
    /// How long it lives after it was kept alive.
    pub ttl_ms: u64,
    /// How long it lives once a new leader begins to count: its TTL, unless less was noted for a
    /// lease that nobody keeps alive. Never more than the TTL.
    pub rest_ms: u64,
}

/// What a leader has found out about leases, as an entry of the log. What it says of a lease that
/// has ended has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Leases whose time is over. Not all need end with this entry: after so many keys that the
    /// next leases' would make it long, the rest is left to another one.
    #[serde(deserialize_with = "bounded::recorded_leases")]
    pub ends: Vec<LeaseName>,
    /// How long leases have left, in milliseconds, for the next leader to go on from.
    #[serde(deserialize_with = "bounded::recorded_leases")]
    pub rests: Vec<(LeaseName, u64)>,
}

impl LeaseRecord {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty() && self.rests.is_empty()
    }
}

/// What applying entries has changed about leases, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// A snapshot has replaced the state: only the leases of the events after this one are left.
    Replaced,
    /// The lease is like this now: it was granted, or its remaining time was noted.
    Is(LeaseState),
    /// The lease has ended, and its keys are gone.
    Ended(LeaseName),
}

/// What a client asks about leases, and the leader answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseQuestion {
    /// Give each of these its whole TTL again.
    #[serde(rename = "KEEP_ALIVE")]
    KeepAlive(#[serde(deserialize_with = "bounded::leases")] Vec<LeaseId>),
    /// Describe the lease of this id.
    #[serde(rename = "SHOW")]
    Show(LeaseId),
    /// Describe all, a page at a time: those with greater ids than this, in the order of their ids.
    #[serde(rename = "LIST")]
    List {
        /// The last one of the page before; nil for the first page.
        after: Option<LeaseId>,
    },
}

impl LeaseQuestion {
    /// The number of leases that it names.
    pub fn names(&self) -> usize {
        match self {
            LeaseQuestion::KeepAlive(leases) => leases.len(),
            LeaseQuestion::Show(_) => 1,
            LeaseQuestion::List { .. } => 0,
        }
    }

    /// The leases that it is to keep alive.
    pub fn kept_alive(&self) -> &[LeaseId] {
        match self {
            LeaseQuestion::KeepAlive(ids) => ids,
            LeaseQuestion::Show(_) | LeaseQuestion::List { .. } => &[],
        }
    }

    /// The most leases that are looked at for its answer.
    pub fn looks(&self) -> usize {
        match self {
            LeaseQuestion::KeepAlive(_) | LeaseQuestion::Show(_) => self.names().max(1),
            LeaseQuestion::List { .. } => LEASES_PER_PAGE_MAX,
        }
    }
}

/// What the leader answers to a [`LeaseQuestion`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseAnswer {
    /// How long each lease has left now, in milliseconds, in the order of the question; `None` for
    /// one that there is not: it has ended, or was never granted.
    #[serde(rename = "KEPT_ALIVE")]
    KeptAlive(#[serde(deserialize_with = "bounded::leases")] Vec<Option<u64>>),
    /// The lease that was asked for, if there is one, or a page of all.
    #[serde(rename = "LEASES")]
    Leases {
        #[serde(deserialize_with = "bounded::leases")]
        leases: Vec<LeaseShown>,
        /// Whether there are leases after these.
        has_more: bool,
    },
}

impl LeaseAnswer {
    /// Whether it can be the answer to this question.
    pub fn answers(&self, question: &LeaseQuestion) -> bool {
        match (self, question) {
            (LeaseAnswer::KeptAlive(left), LeaseQuestion::KeepAlive(leases)) => {
                left.len() == leases.len()
            }
            (LeaseAnswer::Leases { leases, has_more }, LeaseQuestion::Show(id)) => {
                !has_more && leases.len() <= 1 && leases.iter().all(|lease| lease.name.id == *id)
            }
            (LeaseAnswer::Leases { leases, .. }, LeaseQuestion::List { after }) => {
                let ids = leases.iter().map(|lease| Some(lease.name.id));
                std::iter::once(*after).chain(ids).is_sorted_by(|one, next| one < next)
            }
            _ => false,
        }
    }
}

/// A lease as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseShown {
    /// Its id, and the version of its grant.
    pub name: LeaseName,
    /// How long it lives after it was kept alive.
    pub ttl_ms: u64,
    /// How long it has left; 0 for one that is about to end.
    pub left_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_from_a_second_to_a_year() {
        for ttl_ms in [1_000, 60_000, 366 * 24 * 3_600_000] {
            assert_eq!(check_lease_ttl(ttl_ms), Ok(()), "{ttl_ms}");
        }
        for ttl_ms in [0, 999, 366 * 24 * 3_600_000 + 1, 100 * 366 * 24 * 3_600_000, u64::MAX] {
            let fault = check_lease_ttl(ttl_ms).unwrap_err();
            assert!(fault.ends_with("from 1 second to 366 days are possible"), "{fault}");
        }
    }
}
