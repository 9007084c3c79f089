//! Accepts and refuses writes while disks are full.
//!
//! A server whose disk is nearly full says so to the others. Rule: the leader refuses writes that
//! add to the store while its own disk is full, or while the servers with room are no majority.
//! Reads, removals and garbage collection go on: they make room, and every server keeps a reserve
//! of disk space for them (`storage::reserve`).
//!
//! A leader whose disk is full transfers the leadership to a server that has room, and the writes
//! wait until that one leads. A full disk does not make a server ineligible to lead: if all are
//! full, one of them has to order the removals.
//!
//! A full follower among others that have room is no worse than one that is down: it stores entries
//! until half of its reserve is used, and then none until there is room again.

use std::collections::BTreeSet;

use super::Output;
use super::core::{Node, error};
use crate::limits;
use crate::model::{DiskSpace, NodeId};
use crate::wire::message::{ErrorCode, PeerMessage, RaftBody, RaftMessage, Reply};

/// The disk space of the servers of the group, as far as this server knows.
#[derive(Debug, Default)]
pub(super) struct Disks {
    pub own: DiskSpace,
    /// The other servers that have said that their disks are full.
    full: BTreeSet<NodeId>,
    ticks_since_sent: u32,
}

impl Node {
    /// Notes the room on this server's own disk.
    pub(super) fn disk_space(&mut self, space: DiskSpace, out: &mut Vec<Output>) {
        let was_full = self.disks.own.is_full();
        self.disks.own = space;
        if space.is_full() != was_full {
            self.send_disk_state(out);
        }
    }

    /// Notes whether another server's disk is full.
    pub(super) fn disk_state_of(&mut self, from: NodeId, full: bool) {
        if full {
            self.disks.full.insert(from);
        } else {
            self.disks.full.remove(&from);
        }
    }

    /// Forgets what a server has said, because its link is down.
    pub(super) fn forget_disk_state_of(&mut self, server: NodeId) {
        self.disks.full.remove(&server);
    }

    /// Sends the state of this server's disk at intervals, also if it has not changed: a message
    /// may be lost, and others may have been forged in this server's name.
    pub(super) fn repeat_disk_state(&mut self, out: &mut Vec<Output>) {
        self.disks.ticks_since_sent += 1;
        if self.disks.ticks_since_sent >= limits::DISK_FULL_TOLD_TICKS {
            self.send_disk_state(out);
        }
    }

    /// Sends the state of this server's disk to a server whose link has just come up.
    pub(super) fn send_disk_state_to(&self, to: NodeId, out: &mut Vec<Output>) {
        let full = self.disks.own.is_full();
        out.push(Output::Send { to, message: PeerMessage::Disk { full } });
    }

    /// Whether the disk of another server is not known to be full.
    pub(super) fn has_room(&self, server: NodeId) -> bool {
        !self.disks.full.contains(&server)
    }

    /// At a leader whose disk is full: whether a server with room is about to lead.
    pub(super) fn waits_for_a_leader_with_room(&self) -> bool {
        self.disks.own.is_full()
            && (self.consensus.is_handing_over() || self.successor(true).is_some())
    }

    fn send_disk_state(&mut self, out: &mut Vec<Output>) {
        self.disks.ticks_since_sent = 0;
        let full = self.disks.own.is_full();
        for to in &self.links {
            out.push(Output::Send { to: *to, message: PeerMessage::Disk { full } });
        }
    }

    /// The servers whose full disks keep the group from accepting writes that add to the store;
    /// none if it accepts them. Every server can tell, because each sends its state to all others.
    pub(super) fn full_disks(&self) -> BTreeSet<NodeId> {
        let mut full = self.disks.full.clone();
        full.extend(self.disks.own.is_full().then_some(self.config.node));
        // A server that is down stores nothing either: with one full and one down, every write
        // would use up the reserve of the full one, until not even removals could be stored.
        let own_room = usize::from(!self.disks.own.is_full());
        let with_room =
            own_room + self.links.iter().filter(|server| self.has_room(**server)).count();
        let leader_is_full = self.consensus.leader().is_some_and(|leader| full.contains(&leader));
        if leader_is_full || with_room <= self.config.nodes.len() / 2 {
            return full;
        }
        BTreeSet::new()
    }

    /// At a leader: refuses a write that adds data if the group has no room for it.
    pub(super) fn check_room(&self) -> Result<(), Reply> {
        let full: Vec<String> = self.full_disks().iter().map(NodeId::to_string).collect();
        if full.is_empty() {
            return Ok(());
        }
        Err(error(
            ErrorCode::DiskFull,
            &format!(
                "the write was refused: the disk of server {} is nearly full: make room on it, or \
                 remove or trim keys and wait a minute or two; reading and removing go on",
                full.join(" and of server ")
            ),
        ))
    }

    /// Whether a message is to be dropped because there is no room for its entries; its sender
    /// repeats it.
    pub(super) fn has_no_room_for(&self, message: &RaftMessage) -> bool {
        self.disks.own == DiskSpace::Exhausted
            && matches!(&message.body, RaftBody::Append { entries, .. } if !entries.is_empty())
    }
}
