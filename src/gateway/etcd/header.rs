//! What every answer begins with: whose it is, and a revision at which it is true.
//!
//! **Revisions never go back.** A write has a higher one than everything that was told before it
//! began, and so has the state of a linearizable read. Both are told as they are, since a client
//! may watch on from there: more would have it miss what came between. What has no revision of its
//! own tells the greatest that was told, or that a server has applied: whoever reads then reads at
//! least that.
//!
//! **Ids.** A group has an id. A server has no number that outlives the list of servers, so that
//! its id is made of the group's and of its address.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::interface::etcd::etcdserverpb::ResponseHeader;
use crate::client::ServerStatus;
use crate::model::{ClusterId, Timestamp};

/// What is told of the group and of what it has written.
#[derive(Debug, Default)]
pub(super) struct Headers {
    /// The greatest revision that was told, or applied by a server.
    told: AtomicI64,
    group: Mutex<Option<GroupFacts>>,
}

/// What a server has told of its group, as far as headers tell it.
#[derive(Clone, Copy, Debug)]
struct GroupFacts {
    cluster: ClusterId,
    member: u64,
    term: u64,
}

impl Headers {
    fn group(&self) -> MutexGuard<'_, Option<GroupFacts>> {
        // It is replaced as a whole.
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what a server has told.
    pub(super) fn learn(&self, status: &ServerStatus) {
        self.raise(status.applied_timestamp);
        let mut group = self.group();
        let member = match *group {
            // The server that was heard first stands for all: a connection has one member.
            Some(known) if known.cluster == status.cluster => known.member,
            _ => member_id(status.cluster, &status.address),
        };
        let term = group.map_or(0, |known| known.term).max(status.term);
        *group = Some(GroupFacts { cluster: status.cluster, member, term });
    }

    fn raise(&self, revision: Timestamp) -> i64 {
        self.told.fetch_max(revision.0, Ordering::AcqRel).max(revision.0)
    }

    /// The greatest revision that is known.
    pub(super) fn told(&self) -> Timestamp {
        Timestamp(self.told.load(Ordering::Acquire))
    }

    /// The header of an answer that is true at this revision.
    pub(super) fn at(&self, revision: Timestamp) -> ResponseHeader {
        self.raise(revision);
        self.header(revision)
    }

    /// The header of an answer without a revision of its own.
    pub(super) fn now(&self) -> ResponseHeader {
        self.header(self.told())
    }

    fn header(&self, revision: Timestamp) -> ResponseHeader {
        let (cluster_id, member_id, raft_term) = match *self.group() {
            Some(GroupFacts { cluster, member, term }) => (cluster.0, member, term),
            None => (0, 0, 0),
        };
        // A store in which nothing was written has a revision, too.
        ResponseHeader { cluster_id, member_id, revision: revision.0.max(1), raft_term }
    }
}

/// The id of a server of a group: stable as long as its address is, and never 0.
pub(super) fn member_id(cluster: ClusterId, address: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&cluster.0.to_be_bytes());
    hasher.update(address.as_bytes());
    let mut id = [0; 8];
    hasher.finalize_xof().fill(&mut id);
    u64::from_be_bytes(id).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_and_a_read_tell_their_own_revision_and_the_rest_the_greatest() {
        let headers = Headers::default();
        assert_eq!(headers.now().revision, 1, "a store without a write");
        assert_eq!(headers.at(Timestamp(7)).revision, 7);
        // A read that began before and was made as of an earlier state.
        assert_eq!(headers.at(Timestamp(5)).revision, 5);
        assert_eq!((headers.now().revision, headers.told()), (7, Timestamp(7)));
    }

    #[test]
    fn a_server_has_the_same_id_whoever_asks_and_another_in_another_group() {
        let id = |cluster, address| member_id(ClusterId(cluster), address);
        assert_eq!(id(1, "127.0.0.1:10097"), id(1, "127.0.0.1:10097"));
        assert_ne!(id(1, "127.0.0.1:10097"), id(1, "127.0.0.1:10098"));
        assert_ne!(id(1, "127.0.0.1:10097"), id(2, "127.0.0.1:10097"));
    }
}
