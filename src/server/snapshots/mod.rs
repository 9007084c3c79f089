//! Snapshot transfers: to servers that the log no longer reaches, and from the leader.
//!
//! `sending` has the leader's side, `log_claims` the part of the log that receivers need next,
//! `receiving` the other side, and [`intake`] what the applier does of it. A transfer belongs to a
//! term: it is dropped at both ends when another term begins, since the receiver could not use it.
//! One that breaks is begun again from the start when consensus asks for it; nothing of a broken
//! one is kept.
//!
//! This part is bookkeeping without IO, clock or randomness: what is to be done comes out as
//! [`TransferStep`]s, which the event loop and the simulator in `tests/simulation` carry out alike.

pub mod intake;
mod log_claims;
mod receiving;
mod sending;
mod step;

use self::receiving::Receiving;
use self::sending::Sending;
use self::step::SnapshotOffer;
pub use self::step::{TransferLimits, TransferStep};
use super::work::{CatchUpWork, SnapshotReport};
use crate::model::{DiskSpace, LogIndex, NodeId, SnapshotId, Term, Timestamp};
use crate::node::config::{Distrust, NodeStatus};
use crate::node::{CheckedMessage, InstallRequest};
use crate::wire::message::{Role, ServerMessage};

/// All transfers of a server.
#[derive(Debug)]
pub struct Transfers {
    sending: Sending,
    receiving: Receiving,
}

impl Transfers {
    /// `first_id` is random, so that what belongs to an earlier run is not taken for this one's,
    /// and `offer_key`, so that nobody guesses it.
    pub fn new(first_id: u64, offer_key: u64, limits: TransferLimits) -> Transfers {
        let sending = Sending::new(first_id, limits);
        Transfers { sending, receiving: Receiving::new(offer_key, limits) }
    }

    /// Notes how much room there is on this server's disk.
    pub fn disk_space(&mut self, space: DiskSpace) -> Vec<TransferStep> {
        self.sending.claims_mut().disk_space(space).into_iter().collect()
    }

    /// Notes that the store is durable up to `index`, so that the log before it may go.
    pub fn checkpointed(&mut self, index: LogIndex) -> Vec<TransferStep> {
        vec![self.sending.claims_mut().checkpointed(index)]
    }

    /// Notes that the log before `first_index` is gone, whoever needed it.
    pub fn compacted(&mut self, now_us: u64, first_index: LogIndex) -> Vec<TransferStep> {
        self.sending.compacted(now_us, first_index)
    }

    /// Begins a transfer that the core wants.
    pub fn start(&mut self, now_us: u64, to: NodeId, leader_term: Term) -> Vec<TransferStep> {
        self.sending.start(now_us, to, leader_term)
    }

    /// Takes back work for which there was no place: it is tried again with the next tick.
    pub fn refused(&mut self, work: CatchUpWork) {
        if let CatchUpWork::Chunk { to, id, source, .. } = work {
            self.sending.not_read((to, id), source);
        }
    }

    /// Installs the received snapshot, which the core has taken over.
    pub fn install(&mut self, request: InstallRequest) -> Vec<TransferStep> {
        vec![self.receiving.install(request)]
    }

    /// Throws the received snapshot away, of which the core has no use.
    pub fn discard(&mut self) -> Vec<TransferStep> {
        self.receiving.refuse("it is not needed any more")
    }

    /// Takes in a message about snapshots ([`CheckedMessage::is_about_a_snapshot`]); `wanted` says
    /// whether one that is offered is of use.
    pub fn message(
        &mut self,
        now_us: u64,
        from: NodeId,
        message: CheckedMessage,
        wanted: impl FnOnce(NodeId, SnapshotId, Timestamp) -> bool,
    ) -> Vec<TransferStep> {
        match message.into_inner() {
            ServerMessage::Snapshot { id, key, snapshot, timestamp, hash } => {
                let offer = SnapshotOffer { id, snapshot, timestamp, hash };
                let is_wanted = wanted(from, snapshot, timestamp);
                self.receiving.offered(now_us, from, key, offer, is_wanted)
            }
            ServerMessage::SnapshotChunk { id, sequence, data } => {
                self.receiving.chunk(now_us, (from, id), sequence, data)
            }
            ServerMessage::SnapshotEnd { id, chunks } => {
                self.receiving.ended(now_us, (from, id), chunks)
            }
            ServerMessage::SnapshotAnswer { id, stored, outcome } => {
                self.sending.answered(now_us, (from, id), stored, outcome)
            }
            other => unreachable!("{other:?} is about no snapshot"),
        }
    }

    /// Takes in what the applier or a worker reports. `term_at` gives the term of an entry of this
    /// server's log.
    pub fn report(
        &mut self,
        now_us: u64,
        report: SnapshotReport,
        term_at: impl Fn(LogIndex) -> Option<Term>,
    ) -> Vec<TransferStep> {
        match report {
            SnapshotReport::Pinned { to, id, source } => {
                self.sending.pinned(now_us, (to, id), source, term_at)
            }
            SnapshotReport::Read { to, id, source, chunk } => {
                self.sending.read(now_us, (to, id), source, chunk)
            }
            SnapshotReport::Begun => {
                self.receiving.begun();
                Vec::new()
            }
            SnapshotReport::Stored { id, stored } => self.receiving.stored(id, stored),
            SnapshotReport::Staged { id } => self.receiving.staged(id),
            SnapshotReport::Failed { id, reason } => self.receiving.failed(id, &reason),
            SnapshotReport::Installed { point, summary, leases } => {
                self.receiving.installed(point, summary, leases)
            }
        }
    }

    /// Notes that the link on which this server sends to `server` is up.
    pub fn link_up(&mut self, server: NodeId) {
        self.sending.link_up(server);
    }

    /// Notes that the link on which this server sends to `server` is gone.
    pub fn link_down(&mut self, now_us: u64, server: NodeId) -> Vec<TransferStep> {
        self.sending.link_down(server);
        self.inbound_down(now_us, server)
    }

    /// Notes that the link on which `server` sends to this one is gone, or another has taken its
    /// place before that was noticed: what was said on it last is lost all the same.
    pub fn inbound_down(&mut self, now_us: u64, server: NodeId) -> Vec<TransferStep> {
        let mut steps = self.sending.broken(now_us, server);
        steps.extend(self.receiving.broken(server));
        steps
    }

    /// Lets time pass: begins what is due, and gives up what makes no progress or has lost its
    /// leader. `matched` is how far the leader knows a server's log to reach.
    pub fn tick(
        &mut self,
        now_us: u64,
        status: &NodeStatus,
        matched: impl Fn(NodeId) -> LogIndex,
    ) -> Vec<TransferStep> {
        let led = (status.role == Role::Leader).then_some(status.term);
        self.sending.claims_mut().set_disputed(status.distrust == Some(Distrust::Disputed));
        let mut steps = self.sending.tick(now_us, led, status.commit, matched);
        steps.extend(self.receiving.tick(now_us, status.term, status.leader));
        steps
    }
}
