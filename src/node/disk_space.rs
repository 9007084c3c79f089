//! Accepts and refuses writes while disks are full.
//!
//! A server whose disk is nearly full says so to the others. Rule: the leader refuses writes that
//! add to the store while its own disk is full, or while the servers with room are no majority.
//! Reads, removals that keep no history, and garbage collection go on: they make room, and every
//! server keeps a reserve of disk space for them (`storage::reserve`).
//!
//! A leader whose disk is full transfers the leadership to a server that has room, and the writes
//! wait until that one leads. A full disk does not make a server ineligible to lead: if all are
//! full, one of them has to order the removals.
//!
//! A full follower among others that have room is no worse than one that is down: it stores entries
//! until half of its reserve is used, and then none until there is room again.

use std::collections::BTreeSet;

use super::replies::error;
use crate::model::{DiskSpace, NodeId};
use crate::wire::message::{ErrorCode, RaftBody, RaftMessage, Reply, ServerMessage};

/// Ticks after which a server sends the state of its disk again: half a second, so that a lost
/// message delays a refusal no longer than that.
const DISK_STATE_TICKS: u32 = 50;

/// The disk space of the servers of the group, as far as this server knows.
#[derive(Debug, Default)]
pub(super) struct Disks {
    own: DiskSpace,
    /// The other servers that have said that their disks are full.
    full: BTreeSet<NodeId>,
    ticks_since_sent: u32,
}

impl Disks {
    /// Notes the room on this server's own disk. Returns whether the others are to be sent its
    /// state.
    pub fn set_own(&mut self, space: DiskSpace) -> bool {
        let was_full = self.own.is_full();
        self.own = space;
        space.is_full() != was_full
    }

    /// Whether this server's own disk is full.
    pub fn is_own_full(&self) -> bool {
        self.own.is_full()
    }

    /// Notes whether another server's disk is full.
    pub fn set(&mut self, server: NodeId, full: bool) {
        if full {
            self.full.insert(server);
        } else {
            self.full.remove(&server);
        }
    }

    /// Forgets what a server has said, because its link is down.
    pub fn forget(&mut self, server: NodeId) {
        self.full.remove(&server);
    }

    /// Counts a tick; returns whether the state of this server's disk is to be sent. It is sent at
    /// intervals, also if it has not changed: a message may be lost, and others may have been
    /// forged in this server's name.
    pub fn tick(&mut self) -> bool {
        self.ticks_since_sent += 1;
        self.ticks_since_sent >= DISK_STATE_TICKS
    }

    /// The message with the state of this server's disk, to be sent to all others.
    pub fn announce(&mut self) -> ServerMessage {
        self.ticks_since_sent = 0;
        self.message()
    }

    /// The message with the state of this server's disk.
    pub fn message(&self) -> ServerMessage {
        ServerMessage::Disk { full: self.own.is_full() }
    }

    /// Whether the disk of another server is not known to be full.
    pub fn has_room(&self, server: NodeId) -> bool {
        !self.full.contains(&server)
    }

    /// The servers whose full disks keep the group from accepting writes that add to the store;
    /// none if it accepts them. Every server can tell, because each sends its state to all others.
    pub fn full_servers(
        &self,
        node: NodeId,
        servers: usize,
        links: &BTreeSet<NodeId>,
        leader: Option<NodeId>,
    ) -> BTreeSet<NodeId> {
        let mut full = self.full.clone();
        full.extend(self.own.is_full().then_some(node));
        // A server that is down stores nothing either: with one full and one down, every write
        // would use up the reserve of the full one, until not even removals could be stored.
        let own_room = usize::from(!self.own.is_full());
        let with_room = own_room + links.iter().filter(|server| self.has_room(**server)).count();
        let leader_is_full = leader.is_some_and(|leader| full.contains(&leader));
        if leader_is_full || with_room <= servers / 2 {
            return full;
        }
        BTreeSet::new()
    }

    /// Whether a message is to be dropped because there is no room for its entries; its sender
    /// repeats it.
    pub fn has_no_room_for(&self, message: &RaftMessage) -> bool {
        self.own == DiskSpace::Exhausted
            && matches!(&message.body, RaftBody::Append { entries, .. } if !entries.is_empty())
    }
}

/// The reply to a write that is refused because the disks of these servers are full.
pub(super) fn disk_full(full: &BTreeSet<NodeId>) -> Reply {
    let full: Vec<String> = full.iter().map(NodeId::to_string).collect();
    error(
        ErrorCode::DiskFull,
        &format!(
            "the write was refused: the disk of server {} is nearly full: make room on it, or \
             remove or trim keys and wait a minute or two; reading and removing go on",
            full.join(" and of server ")
        ),
    )
}
