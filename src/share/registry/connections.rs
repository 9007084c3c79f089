//! The connections of a registry, and which of them has which peer id.
//!
//! Rule: each peer id has at most one connection, which has joined or is about to join under it,
//! and a connection has at most two ids: the one it has joined under and the one it is joining
//! under.
//!
//! Left out: the index, which the workers ask (`work`), and the sockets (`service`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::partial_join::PartialJoin;
use crate::limits;
use crate::model::PeerId;
use crate::net::{ConnectionId, ConnectionMap};
use crate::share::index::Member;
use crate::wire::share::RegistryReply;

/// The state of a connection.
#[derive(Debug)]
pub(super) struct RegistryConnection {
    /// The address it comes from.
    pub address: SocketAddr,
    pub greeted: bool,
    /// Whether it has made a request, after which it has no deadline any more.
    pub asked: bool,
    /// Whether a request of it is under way.
    pub waits: bool,
    /// When it last sent a message, or had a request under way.
    pub last_seen: Instant,
    /// The parts of an unfinished JOIN.
    pub partial: Option<PartialJoin>,
    /// The peer id of the JOIN that is under way.
    joining: Option<PeerId>,
    /// The key of the peer as which it has joined, or is about to join.
    key: u64,
    /// The member as which it has joined, and the address at which that peer serves.
    joined: Option<(Member, SocketAddr)>,
}

impl RegistryConnection {
    pub(super) fn new(address: SocketAddr, now: Instant) -> RegistryConnection {
        RegistryConnection {
            address,
            greeted: false,
            asked: false,
            waits: false,
            last_seen: now,
            partial: None,
            joining: None,
            key: 0,
            joined: None,
        }
    }

    /// The member as which it has joined.
    pub(super) fn member(&self) -> Option<Member> {
        self.joined.map(|(member, _)| member)
    }

    /// The address at which its peer serves, or the one that it comes from.
    pub(super) fn serving_address(&self) -> SocketAddr {
        self.joined.map_or(self.address, |(_, address)| address)
    }

    pub(super) fn is_unused(&self) -> bool {
        !self.waits && self.joined.is_none()
    }
}

#[derive(Debug, Default)]
pub(super) struct RegistryConnections {
    connections: ConnectionMap<RegistryConnection>,
    /// The connection that has joined, or is about to join, under each peer id.
    id_holders: HashMap<PeerId, ConnectionId>,
}

impl RegistryConnections {
    pub(super) fn insert(&mut self, id: ConnectionId, connection: RegistryConnection) {
        self.connections.insert(id, connection);
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&RegistryConnection> {
        self.connections.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut RegistryConnection> {
        self.connections.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionId, &RegistryConnection)> + Clone {
        self.connections.iter().map(|(id, connection)| (*id, connection))
    }

    /// Forgets a connection that has closed, with its peer ids. The second value is the member as
    /// which it had joined and that peer's address.
    pub(super) fn remove(
        &mut self,
        id: ConnectionId,
    ) -> Option<(RegistryConnection, Option<(Member, SocketAddr)>)> {
        let connection = self.connections.remove(&id)?;
        if let Some(peer) = connection.joining {
            self.give_up_id(peer, id);
        }
        let joined = connection.joined;
        if let Some((member, _)) = joined {
            self.give_up_id(member.peer, id);
        }
        let holds = |(peer, holder): (&PeerId, &ConnectionId)| (*holder == id).then_some(*peer);
        debug_assert_eq!(self.id_holders.iter().find_map(holds), None, "{id:?} is closed");
        Some((connection, joined))
    }

    /// The number of peer ids that connections have.
    pub(super) fn ids(&self) -> usize {
        self.id_holders.len()
    }

    pub(super) fn has_id(&self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(|caller| caller.joined.is_some() || caller.joining.is_some())
    }

    /// Gives a connection the peer id of its JOIN, unless another live connection has it.
    ///
    /// # Errors
    /// The reply that the id is taken.
    pub(super) fn take_id(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        key: u64,
        now: Instant,
        silence_timeout: Duration,
    ) -> Result<(), RegistryReply> {
        let holder = self.id_holders.get(&peer).filter(|holder| **holder != id);
        let is_alive = |caller: &RegistryConnection| {
            // The same peer: its first connection is dead, which only the peer itself knows.
            caller.key != key
                && (caller.joining == Some(peer)
                    || now.saturating_duration_since(caller.last_seen) <= silence_timeout)
        };
        if holder.and_then(|holder| self.connections.get(holder)).is_some_and(is_alive) {
            let retry_after_ms = limits::JOINED_ELSEWHERE_RETRY_AFTER_MS;
            return Err(RegistryReply::IdTaken { retry_after_ms });
        }
        if let Some(caller) = self.connections.get_mut(&id) {
            // One request of a connection is under way at a time, and a JOIN is one.
            assert!(caller.joining.is_none(), "{peer} joins beside a JOIN of {:?}", caller.joining);
            caller.joining = Some(peer);
            caller.key = key;
            self.id_holders.insert(peer, id);
        }
        Ok(())
    }

    /// A connection's JOIN was accepted. Returns the member as which it had joined before, if that
    /// was another peer: a connection is one peer at a time.
    pub(super) fn joined(
        &mut self,
        id: ConnectionId,
        member: Member,
        address: SocketAddr,
    ) -> Option<Member> {
        let before = self.connections.get_mut(&id)?.joined.replace((member, address));
        let (before, _) = before.filter(|(before, _)| before.peer != member.peer)?;
        self.give_up_id(before.peer, id);
        Some(before)
    }

    /// The peer of a connection has left, or was forgotten.
    pub(super) fn left(&mut self, id: ConnectionId) {
        let joined = self.connections.get_mut(&id).and_then(|caller| caller.joined.take());
        if let Some((member, _)) = joined {
            self.give_up_id(member.peer, id);
        }
    }

    /// A connection's JOIN has been answered: it has the id of the peer as which it has joined, if
    /// any.
    pub(super) fn join_is_over(&mut self, id: ConnectionId) {
        let Some(caller) = self.connections.get_mut(&id) else { return };
        let joined = caller.joined.map(|(member, _)| member.peer);
        if let Some(peer) = caller.joining.take().filter(|peer| joined != Some(*peer)) {
            self.give_up_id(peer, id);
        }
    }

    /// Another connection may have the id meanwhile, and keeps it.
    fn give_up_id(&mut self, peer: PeerId, id: ConnectionId) {
        if self.id_holders.get(&peer) == Some(&id) {
            self.id_holders.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(30);
    const PEER: PeerId = PeerId(7);

    fn connection(number: u64) -> ConnectionId {
        ConnectionId::from_u64(number)
    }

    fn address(number: u64) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number as u16))
    }

    fn member(peer: PeerId, session: u64) -> Member {
        Member { peer, session }
    }

    /// Connections 1 to 3, accepted now.
    fn three(now: Instant) -> RegistryConnections {
        let mut connections = RegistryConnections::default();
        for number in 1..=3 {
            let caller = RegistryConnection::new(address(number), now);
            connections.insert(connection(number), caller);
        }
        connections
    }

    /// Joins as a peer with the secret `key`, and has the JOIN accepted.
    fn join(
        connections: &mut RegistryConnections,
        number: u64,
        peer: PeerId,
        key: u64,
        now: Instant,
    ) {
        let id = connection(number);
        connections.take_id(id, peer, key, now, SILENCE).unwrap();
        connections.joined(id, member(peer, number), address(number));
        connections.join_is_over(id);
    }

    #[test]
    fn an_id_is_taken_while_its_connection_is_alive() {
        let now = Instant::now();
        let mut connections = three(now);
        join(&mut connections, 1, PEER, 1, now);
        let mut take = |now| connections.take_id(connection(2), PEER, 2, now, SILENCE);
        assert!(matches!(take(now + SILENCE), Err(RegistryReply::IdTaken { .. })));
        take(now + SILENCE + Duration::from_millis(1)).unwrap();
        assert_eq!(connections.ids(), 1);
    }

    #[test]
    fn the_same_secret_takes_the_id_over_and_the_old_connection_does_not_take_it_back() {
        let now = Instant::now();
        let mut connections = three(now);
        join(&mut connections, 1, PEER, 1, now);
        join(&mut connections, 2, PEER, 1, now);
        let (_, joined) = connections.remove(connection(1)).unwrap();
        assert_eq!(joined, Some((member(PEER, 1), address(1))));
        let taken = connections.take_id(connection(3), PEER, 3, now, SILENCE);
        assert!(matches!(taken, Err(RegistryReply::IdTaken { .. })), "{taken:?}");
        connections.left(connection(2));
        connections.take_id(connection(3), PEER, 3, now, SILENCE).unwrap();
    }

    #[test]
    fn a_join_that_is_refused_gives_its_id_back_and_keeps_the_one_before() {
        let now = Instant::now();
        let mut connections = three(now);
        join(&mut connections, 1, PEER, 1, now);
        connections.take_id(connection(1), PeerId(8), 1, now, SILENCE).unwrap();
        assert_eq!(connections.ids(), 2);
        connections.join_is_over(connection(1));
        assert_eq!(connections.ids(), 1);
        assert!(connections.has_id(connection(1)) && !connections.has_id(connection(2)));
        assert!(connections.take_id(connection(2), PeerId(8), 2, now, SILENCE).is_ok());
    }

    #[test]
    fn a_connection_that_joins_as_another_peer_is_the_one_before_no_more() {
        let now = Instant::now();
        let mut connections = three(now);
        join(&mut connections, 1, PEER, 1, now);
        connections.take_id(connection(1), PeerId(8), 1, now, SILENCE).unwrap();
        let before = connections.joined(connection(1), member(PeerId(8), 1), address(1));
        assert_eq!(before, Some(member(PEER, 1)));
        connections.join_is_over(connection(1));
        assert!(connections.take_id(connection(2), PEER, 2, now, SILENCE).is_ok());
        assert_eq!(connections.ids(), 2);
    }

    #[test]
    fn a_connection_that_closes_gives_all_its_ids_back() {
        let now = Instant::now();
        let mut connections = three(now);
        join(&mut connections, 1, PEER, 1, now);
        connections.take_id(connection(1), PeerId(8), 1, now, SILENCE).unwrap();
        connections.remove(connection(1)).unwrap();
        assert_eq!(connections.ids(), 0);
    }
}
