//! What a group of servers goes by: the limits on which results depend, the history that it keeps,
//! and the feature level that says which entries its log may hold.
//!
//! All of it stands in the log, so that no replica applies an entry by what its own release has
//! compiled in.

use serde::{Deserialize, Serialize};

use super::History;
use crate::limits;

/// The limits on which the result of applying an entry depends: replicas with different ones would
/// diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateLimits {
    /// Rows, one of each key, that the removal of a range looks at before it is remembered as a
    /// whole; see
    /// [`limits::REMOVAL_SCAN_ROWS_MAX`].
    pub removal_scan_rows_max: u32,
    /// Rows that the removals of ranges look at that keep history; see
    /// [`limits::KEPT_REMOVAL_ROWS_MAX`].
    pub kept_removal_rows_max: u32,
    /// Removals of whole ranges that may be under way; see [`limits::RANGE_REMOVALS_MAX`].
    pub range_removals_max: u32,
    /// Time for which what was removed can still be read; see [`limits::REMOVAL_GRACE`].
    pub removal_grace_us: u64,
    /// Silence of a client after which its session ends; see [`limits::SESSION_EXPIRY`].
    pub session_expiry_us: u64,
    /// Clients whose sessions are kept; see [`limits::SESSIONS_MAX`].
    pub sessions_max: u32,
    /// Answers that are remembered of one client; see [`limits::SESSION_REPLIES_MAX`].
    pub session_replies_max: u32,
    /// Answers that are remembered of all clients; see [`limits::SESSION_REPLIES_TOTAL_MAX`].
    pub session_replies_total_max: u32,
    /// Rows that the ranges of a transaction may look at; see [`limits::TRANSACTION_ROWS_MAX`].
    pub transaction_rows_max: u32,
    /// Bytes of values that the comparisons of a transaction may read; see
    /// [`limits::TRANSACTION_COMPARED_BYTES_MAX`].
    pub transaction_compared_bytes_max: u32,
    /// Leases that there may be; see [`limits::LEASES_MAX`].
    pub leases_max: u32,
    /// Keys that a lease may have; see [`limits::LEASE_KEYS_MAX`].
    pub lease_keys_max: u32,
}

impl Default for StateLimits {
    /// What this release proposes to a new group.
    fn default() -> StateLimits {
        StateLimits {
            removal_scan_rows_max: limits::REMOVAL_SCAN_ROWS_MAX as u32,
            kept_removal_rows_max: limits::KEPT_REMOVAL_ROWS_MAX as u32,
            range_removals_max: limits::RANGE_REMOVALS_MAX as u32,
            removal_grace_us: limits::REMOVAL_GRACE.as_micros() as u64,
            session_expiry_us: limits::SESSION_EXPIRY.as_micros() as u64,
            sessions_max: limits::SESSIONS_MAX as u32,
            session_replies_max: limits::SESSION_REPLIES_MAX as u32,
            session_replies_total_max: limits::SESSION_REPLIES_TOTAL_MAX as u32,
            transaction_rows_max: limits::TRANSACTION_ROWS_MAX as u32,
            transaction_compared_bytes_max: limits::TRANSACTION_COMPARED_BYTES_MAX as u32,
            leases_max: limits::LEASES_MAX as u32,
            lease_keys_max: limits::LEASE_KEYS_MAX as u32,
        }
    }
}

/// What a group goes by. It stands in the log before the first write, so that no replica applies an
/// entry by what its own release has compiled in: a release with other limits can take part in the
/// group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRules {
    /// The limits; those of the release that founded the group.
    pub limits: StateLimits,
    /// What is kept of what newer versions have replaced.
    pub history: History,
}

/// What entries may be in the log, and how they are applied: a number that rises with every release
/// that changes that. A group uses what its own level holds and no more, and its level rises when
/// every server knows the next one. A release that does not know the group's level cannot take
/// part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureLevel {
    /// The number. Every group begins at [`FeatureLevel::FIRST`].
    pub level: u32,
    /// A release that knows it, for those that do not.
    pub release: ReleaseVersion,
}

/// A release's version: major, minor and patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseVersion(pub u16, pub u16, pub u16);

impl std::fmt::Display for ReleaseVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FeatureLevel {
    /// The level that every release knows and at which every group begins.
    pub const FIRST: FeatureLevel = FeatureLevel { level: 1, release: ReleaseVersion(0, 1, 0) };

    /// The newest level that this release knows.
    pub const NEWEST: FeatureLevel = FeatureLevel {
        level: 1,
        release: ReleaseVersion(
            decimal(env!("CARGO_PKG_VERSION_MAJOR")),
            decimal(env!("CARGO_PKG_VERSION_MINOR")),
            decimal(env!("CARGO_PKG_VERSION_PATCH")),
        ),
    };

    /// What there is to say when this is the group's level and a release knows no more than
    /// `known`: the end of a sentence.
    pub fn unknown_to(self, known: FeatureLevel) -> String {
        format!(
            "the group is at feature level {}, and this release ({}) knows levels up to {}: \
             run release {} or a newer one",
            self.level, known.release, known.level, self.release
        )
    }
}

/// Reads a number of the build's own environment.
const fn decimal(digits: &str) -> u16 {
    let (digits, mut value, mut at) = (digits.as_bytes(), 0, 0);
    while at < digits.len() {
        value = value * 10 + (digits[at] - b'0') as u16;
        at += 1;
    }
    value
}

/// What a release has compiled in that replicas could differ by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The newest feature level that it knows.
    pub level: FeatureLevel,
    /// The limits that it gives a group that it founds.
    pub limits: StateLimits,
}

impl Default for Release {
    fn default() -> Release {
        StateLimits::default().into()
    }
}

impl From<StateLimits> for Release {
    /// This release with other limits.
    fn from(limits: StateLimits) -> Release {
        Release { level: FeatureLevel::NEWEST, limits }
    }
}
