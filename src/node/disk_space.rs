//! Writes while disks are full.
//!
//! A server whose disk is nearly full says so to the others. The leader refuses what would add to the
//! store when its own disk is full, or when servers with room are no majority any more. Reads, removals
//! and what cleans the disk in the background go on: they make the room, and servers keep a reserve for
//! them (`storage::reserve`).
//!
//! A leader whose disk is full hands over to a server that has room, and until that has taken over
//! the writes wait. A full disk keeps nobody from leading, though: when all are full, somebody has
//! to lead the removals.
//!
//! A full follower among others that have room is no worse than one that is down: it takes what comes
//! until half of its reserve is gone, and then no more entries until there is room again.

use std::collections::BTreeSet;

use super::Output;
use super::core::{Node, error};
use crate::limits;
use crate::model::{DiskSpace, NodeId};
use crate::wire::message::{ErrorCode, PeerMessage, RaftBody, RaftMessage, Reply};

/// What is known of the disks of the group.
#[derive(Debug, Default)]
pub(super) struct Disks {
    pub own: DiskSpace,
    /// Other servers that have said that theirs are full.
    full: BTreeSet<NodeId>,
    ticks_since_told: u32,
}

impl Node {
    /// This server's own disk.
    pub(super) fn disk_space(&mut self, space: DiskSpace, out: &mut Vec<Output>) {
        let was_full = self.disks.own.is_full();
        self.disks.own = space;
        if space.is_full() != was_full {
            self.tell_disk(out);
        }
    }

    /// Another server's disk.
    pub(super) fn disk_of_peer(&mut self, from: NodeId, full: bool) {
        if full {
            self.disks.full.insert(from);
        } else {
            self.disks.full.remove(&from);
        }
    }

    /// Nothing is known of a server that is out of reach.
    pub(super) fn forget_disk_of(&mut self, peer: NodeId) {
        self.disks.full.remove(&peer);
    }

    /// Again and again, whichever it is: what is said once may be lost, and others may have said it in this
    /// server's name.
    pub(super) fn repeat_disk(&mut self, out: &mut Vec<Output>) {
        self.disks.ticks_since_told += 1;
        if self.disks.ticks_since_told >= limits::DISK_FULL_TOLD_TICKS {
            self.tell_disk(out);
        }
    }

    /// A server that has just come into reach.
    pub(super) fn tell_disk_to(&self, to: NodeId, out: &mut Vec<Output>) {
        let full = self.disks.own.is_full();
        out.push(Output::Send { to, message: PeerMessage::Disk { full } });
    }

    /// Whether the disk of another server is not known to be full.
    pub(super) fn has_room(&self, peer: NodeId) -> bool {
        !self.disks.full.contains(&peer)
    }

    /// At a leader whose disk is full: somebody who has room leads soon.
    pub(super) fn waits_for_a_leader_with_room(&self) -> bool {
        self.disks.own.is_full()
            && (self.consensus.is_handing_over() || self.successor(true).is_some())
    }

    fn tell_disk(&mut self, out: &mut Vec<Output>) {
        self.disks.ticks_since_told = 0;
        let full = self.disks.own.is_full();
        for to in &self.links {
            out.push(Output::Send { to: *to, message: PeerMessage::Disk { full } });
        }
    }

    /// The servers whose full disks keep the group from taking what adds to the store; none when it takes that. Not the
    /// leader alone can tell: every server is told of the others' disks.
    pub(super) fn full_disks(&self) -> BTreeSet<NodeId> {
        let mut full = self.disks.full.clone();
        full.extend(self.disks.own.is_full().then_some(self.config.node));
        // A server out of reach stores nothing either: with one full and one away, every write would come out of the
        // full one's reserve, and at its end removals could be stored no more.
        let own_room = usize::from(!self.disks.own.is_full());
        let with_room = own_room + self.links.iter().filter(|peer| self.has_room(**peer)).count();
        let leader_is_full = self.consensus.leader().is_some_and(|leader| full.contains(&leader));
        if leader_is_full || with_room <= self.config.nodes.len() / 2 {
            return full;
        }
        BTreeSet::new()
    }

    /// At a leader: whether there is room in the group for more data.
    pub(super) fn check_room(&self) -> Result<(), Reply> {
        let full: Vec<String> = self.full_disks().iter().map(NodeId::to_string).collect();
        if full.is_empty() {
            return Ok(());
        }
        Err(error(
            ErrorCode::DiskFull,
            &format!(
                "the write was refused: the disk of server {} is nearly full: make room on it, or remove or \
                 trim keys and wait a minute or two; reading and removing go on",
                full.join(" and of server ")
            ),
        ))
    }

    /// Whether a message is to be left alone for want of room; its sender sends it again.
    pub(super) fn has_no_room_for(&self, message: &RaftMessage) -> bool {
        self.disks.own == DiskSpace::Exhausted
            && matches!(&message.body, RaftBody::Append { entries, .. } if !entries.is_empty())
    }
}
