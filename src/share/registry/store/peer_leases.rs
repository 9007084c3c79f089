//! The leases of one peer: which there are, and which of its files is put with which.
//!
//! A lease has at most [`limits::LEASE_KEYS_MAX`] keys, and a file takes three, so that a peer of
//! many files needs several: one more whenever all have as many files as they take. The first one
//! has the peer's own row and its downloads besides.
//!
//! Rule: **the first lease ends before the others.** They are kept alive by the same request, and
//! the first has the shorter TTL. Without the peer's own row its other rows are not found, so that
//! nobody is shown a part of its files.
//!
//! The module is pure.

use std::time::Duration;

use crate::limits;
use crate::model::{LEASE_TTL_MAX, LeaseId};
use crate::share::index::FETCHING_PER_PEER_MAX;

/// Files whose rows are put with one lease. Room is left for the peer's own row and its downloads.
const FILES_PER_LEASE: usize = 5 * 1024;

/// Leases that one peer has at most. Of a peer that was taken over no more are kept, whatever its
/// rows say.
pub(super) const LEASES_PER_PEER_MAX: usize = limits::FILES_PER_PEER_MAX.div_ceil(FILES_PER_LEASE);

/// A lease lives for so much longer than its peer may be silent: as long as a request to the store
/// may take, so that one which is not answered in its time ends no lease. While the registry runs
/// it removes a silent peer by itself, and this time does not count.
const LEASE_TTL_SLACK: Duration = limits::STORE_REQUEST_TIMEOUT;

/// The leases after the first live for so much longer: many times the step in which leaders count.
const FURTHER_TTL_SLACK: Duration = Duration::from_secs(2);

const _: () = {
    // A file has three rows and a download two.
    let rows = 1 + 2 * FETCHING_PER_PEER_MAX + 3 * FILES_PER_LEASE;
    assert!(rows <= limits::LEASE_KEYS_MAX);
    // More than half of a group's leases are left for others.
    assert!(2 * limits::REGISTRY_PEERS_MAX * LEASES_PER_PEER_MAX <= limits::LEASES_MAX);
};

/// The TTL of a peer's first lease, and of its further ones.
pub(super) fn lease_ttls(silence_timeout: Duration) -> [Duration; 2] {
    let first = silence_timeout.saturating_add(LEASE_TTL_SLACK);
    let first = first.min(LEASE_TTL_MAX - FURTHER_TTL_SLACK);
    [first, first + FURTHER_TTL_SLACK]
}

/// A lease, and how many files are put with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FilesOnLease {
    lease: LeaseId,
    files: usize,
}

/// The leases of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerLeases {
    /// There is always the first.
    leases: Vec<FilesOnLease>,
}

impl PeerLeases {
    /// A peer without files.
    pub(super) fn new(first: LeaseId) -> PeerLeases {
        PeerLeases { leases: vec![FilesOnLease { lease: first, files: 0 }] }
    }

    /// The lease of the peer's own row and of its downloads.
    pub(super) fn first(&self) -> LeaseId {
        self.leases[0].lease
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.iter().map(|on| on.lease)
    }

    pub(super) fn has(&self, lease: LeaseId) -> bool {
        self.ids().any(|id| id == lease)
    }

    /// Adds a lease, with which no file is put yet.
    pub(super) fn add(&mut self, lease: LeaseId) {
        self.leases.push(FilesOnLease { lease, files: 0 });
    }

    /// Puts a file with one of the leases that have room; `None` if another lease is needed.
    pub(super) fn put_file(&mut self) -> Option<LeaseId> {
        let on = self.leases.iter_mut().find(|on| on.files < FILES_PER_LEASE)?;
        on.files += 1;
        Some(on.lease)
    }

    /// A file is there that was put with this lease.
    pub(super) fn count_file(&mut self, lease: LeaseId) {
        if let Some(on) = self.leases.iter_mut().find(|on| on.lease == lease) {
            on.files += 1;
        }
    }

    /// A file that was put with this lease is removed.
    pub(super) fn remove_file(&mut self, lease: LeaseId) {
        if let Some(on) = self.leases.iter_mut().find(|on| on.lease == lease) {
            // Somebody else may have put rows of files with it, which were not counted.
            on.files = on.files.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_fill_leases_and_the_room_of_removed_ones_is_used_again() {
        let [first, second, third] = [1, 2, 3].map(LeaseId);
        let mut leases = PeerLeases::new(first);
        for _ in 0..FILES_PER_LEASE {
            assert_eq!(leases.put_file(), Some(first));
        }
        assert_eq!(leases.put_file(), None);
        leases.add(second);
        assert_eq!(leases.put_file(), Some(second));
        leases.remove_file(first);
        leases.remove_file(third);
        assert_eq!(leases.put_file(), Some(first));
        assert_eq!(leases.put_file(), Some(second));
        assert_eq!((leases.first(), leases.has(second), leases.has(third)), (first, true, false));
    }

    #[test]
    fn the_first_lease_ends_first_and_neither_before_its_peer_is_silent() {
        for silence in [Duration::ZERO, Duration::from_secs(30), Duration::MAX] {
            let [first, further] = lease_ttls(silence);
            assert!(first < further && further <= LEASE_TTL_MAX, "{silence:?}");
            assert!(first > silence.min(Duration::from_secs(365 * 24 * 3600)), "{silence:?}");
        }
    }
}
