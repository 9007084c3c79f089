//! What receivers of snapshots still need of this server's log.
//!
//! Rule: from the moment a snapshot's view is pinned the leader keeps its log from there on, until
//! the receiver has stored everything that is committed. Otherwise a store that takes longer to
//! send than the log takes to be cut is sent again and again. The log kept so is bounded in bytes
//! by the log's owner, and in time: a receiver that gets no further for
//! [`TransferLimits::stall_timeout_us`](super::step::TransferLimits::stall_timeout_us) loses its
//! claim. And it is the first to go on a disk that is getting full: a receiver can have another
//! snapshot later, a group that refuses writes cannot wait.

use std::collections::BTreeMap;

use super::step::TransferStep;
use crate::model::{DiskSpace, LogIndex, NodeId};
use crate::server::work::{LogWork, Work};
use crate::storage::log::compaction::NeededByOthers;

/// What a server that was sent a snapshot needs next of the log.
#[derive(Clone, Copy, Debug)]
struct LogClaim {
    from: LogIndex,
    /// All chunks were sent, so that the receiver may have the snapshot even if nobody hears of it.
    whole: bool,
    progress_us: u64,
}

/// The claims of all receivers, and how far the log may be cut.
#[derive(Debug)]
pub(super) struct LogClaims {
    stall_timeout_us: u64,
    claims: BTreeMap<NodeId, LogClaim>,
    /// Servers hold different states and it is not known who is right.
    disputed: bool,
    /// The room on this server's disk.
    space: DiskSpace,
    /// The index that this server's newest checkpoint covers.
    durable_index: LogIndex,
}

impl LogClaims {
    pub fn new(stall_timeout_us: u64) -> LogClaims {
        LogClaims {
            stall_timeout_us,
            claims: BTreeMap::new(),
            disputed: false,
            space: DiskSpace::Ample,
            durable_index: 0,
        }
    }

    /// The part of the log that receivers of snapshots still need. While it is not known whose
    /// state is right, no snapshot is sent.
    pub fn needed(&self) -> NeededByOthers {
        if self.disputed {
            return NeededByOthers::All;
        }
        let oldest = self.claims.values().map(|claim| claim.from).min();
        oldest.map_or(NeededByOthers::Nothing, NeededByOthers::From)
    }

    /// Has the log cut, as far as that may be.
    fn compact(&self) -> TransferStep {
        let (durable_index, needed) = (self.durable_index, self.needed());
        TransferStep::Work(Work::Log(LogWork::Compact { durable_index, needed }))
    }

    /// Notes whether servers hold different states and it is not known who is right.
    pub fn set_disputed(&mut self, disputed: bool) {
        self.disputed = disputed;
    }

    /// Notes how much room there is. Where it gets scarcer, what is kept for receivers goes at
    /// once.
    pub fn disk_space(&mut self, space: DiskSpace) -> Option<TransferStep> {
        let before = std::mem::replace(&mut self.space, space);
        (space > before && !self.claims.is_empty()).then(|| self.compact())
    }

    /// Notes that the store is durable up to `index`, so that the log before it may go.
    pub fn checkpointed(&mut self, index: LogIndex) -> TransferStep {
        self.durable_index = self.durable_index.max(index);
        self.compact()
    }

    /// Notes that the log before `first_index` is gone, whoever needed it: more was written than is
    /// kept, or there is no room. Returns the servers whose claims were overrun.
    pub fn compacted(&mut self, first_index: LogIndex) -> Vec<NodeId> {
        let overrun = self.claims.extract_if(.., |_, claim| claim.from < first_index);
        let overrun: Vec<(NodeId, LogClaim)> = overrun.collect();
        for (server, LogClaim { from, .. }) in &overrun {
            match self.space {
                DiskSpace::Ample => log::warn!(
                    "server {server} takes in its snapshot so slowly that the log, which is kept \
                     for it from index {from} on, has grown too long and was cut: it needs another \
                     snapshot, best while less is written"
                ),
                DiskSpace::Low | DiskSpace::Full | DiskSpace::Exhausted => log::warn!(
                    "the disk is too full to keep all of the log for server {server} from index \
                     {from} on, and it was cut: that server needs another snapshot, best when \
                     there is room again"
                ),
            }
        }
        overrun.into_iter().map(|(server, _)| server).collect()
    }

    /// Notes that a view at `index` is pinned for a server. A claim by a snapshot that may be in
    /// place already is kept until this one is whole.
    pub fn begin(&mut self, now_us: u64, server: NodeId, index: LogIndex) {
        let claim = LogClaim { from: index + 1, whole: false, progress_us: now_us };
        let kept = self.claims.entry(server).or_insert(claim);
        if !kept.whole {
            *kept = claim;
        }
    }

    /// Notes that a server was sent the last chunk of its snapshot at `index`.
    pub fn sent_whole(&mut self, now_us: u64, server: NodeId, index: LogIndex) {
        let claim = LogClaim { from: index + 1, whole: true, progress_us: now_us };
        let claim = self.claims.entry(server).and_modify(|kept| kept.whole = true).or_insert(claim);
        claim.progress_us = now_us;
    }

    /// Whether a server was sent a whole snapshot, and is not known to have caught up.
    pub fn was_sent_whole(&self, server: NodeId) -> bool {
        self.claims.get(&server).is_some_and(|claim| claim.whole)
    }

    /// Notes that a server makes progress with its snapshot.
    pub fn progress(&mut self, now_us: u64, server: NodeId) {
        if let Some(claim) = self.claims.get_mut(&server) {
            claim.progress_us = now_us;
        }
    }

    /// Drops the claim of a server whose transfer broke, unless it may have the snapshot.
    pub fn broken(&mut self, server: NodeId) {
        if self.claims.get(&server).is_some_and(|claim| !claim.whole) {
            self.claims.remove(&server);
        }
    }

    /// Moves the claims along with their servers, whose logs are known to reach to `matched`, and
    /// ends those that are met or in vain. Returns the servers whose claims are met, and has the
    /// log cut if any claim has ended: nothing else may come for long that would.
    pub fn tick(
        &mut self,
        now_us: u64,
        leads: bool,
        commit: LogIndex,
        matched: impl Fn(NodeId) -> LogIndex,
    ) -> (Vec<NodeId>, Option<TransferStep>) {
        let before = self.claims.len();
        let stall_timeout_us = self.stall_timeout_us;
        let mut met = Vec::new();
        self.claims.retain(|server, claim| {
            let next = matched(*server) + 1;
            if next > claim.from {
                claim.from = next;
                claim.progress_us = now_us;
            }
            let caught_up = claim.whole && next > commit;
            if caught_up {
                met.push(*server);
            }
            let stalled = now_us.saturating_sub(claim.progress_us) > stall_timeout_us;
            leads && !caught_up && !stalled
        });
        (met, (self.claims.len() < before).then(|| self.compact()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL_US: u64 = 1000;

    fn needed(step: Option<TransferStep>) -> Option<NeededByOthers> {
        match step? {
            TransferStep::Work(Work::Log(LogWork::Compact { needed, .. })) => Some(needed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_log_is_kept_until_the_receiver_has_all_that_is_committed() {
        let (mut claims, server) = (LogClaims::new(STALL_US), NodeId(2));
        claims.begin(0, server, 10);
        assert_eq!(needed(Some(claims.checkpointed(50))), Some(NeededByOthers::From(11)));
        claims.sent_whole(1, server, 10);
        let (met, step) = claims.tick(2, true, 100, |_| 40);
        assert_eq!((met, needed(step)), (vec![], None));
        assert_eq!(claims.needed(), NeededByOthers::From(41), "it has stored what is before");
        let (met, step) = claims.tick(3, true, 100, |_| 100);
        assert_eq!((met, needed(step)), (vec![server], Some(NeededByOthers::Nothing)));
    }

    #[test]
    fn a_claim_ends_with_the_progress_of_its_server_the_leadership_or_the_room() {
        let (mut claims, server) = (LogClaims::new(STALL_US), NodeId(2));
        claims.begin(0, server, 10);
        claims.progress(STALL_US, server);
        assert!(claims.tick(2 * STALL_US, true, 100, |_| 0).1.is_none());
        assert!(claims.tick(2 * STALL_US + 1, true, 100, |_| 0).1.is_some(), "it has stalled");
        claims.begin(0, server, 10);
        assert!(claims.tick(1, false, 100, |_| 0).1.is_some(), "another server leads");
        claims.begin(0, server, 10);
        assert!(claims.disk_space(DiskSpace::Low).is_some());
        assert!(claims.disk_space(DiskSpace::Ample).is_none());
        assert!(claims.compacted(11).is_empty());
        assert_eq!(claims.compacted(12), [server], "the log is gone all the same");
    }

    #[test]
    fn a_server_that_may_have_its_snapshot_keeps_its_claim_while_another_is_sent() {
        let (mut claims, server) = (LogClaims::new(STALL_US), NodeId(2));
        claims.begin(0, server, 10);
        claims.sent_whole(0, server, 10);
        claims.begin(1, server, 30);
        claims.broken(server);
        assert_eq!(claims.needed(), NeededByOthers::From(11));
        claims.set_disputed(true);
        assert_eq!(claims.needed(), NeededByOthers::All);
    }
}
