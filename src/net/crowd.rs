//! Which connection gives way when all places are taken.
//!
//! Rule: who takes many places, or takes one and does nothing, must not keep others out. Accepted
//! connections are of three kinds:
//!
//! - *Newcomers* have not greeted yet, or are being closed, or have nothing under way where a
//!   service counts that ([`Net::set_idle`](super::Net::set_idle)). A client that wants something
//!   greets and asks within a round trip. So when all places are taken the oldest newcomer gives
//!   way, of the origin that has the most of them; a flood shortens the time in which to greet, and
//!   never leaves a server or a client without a place.
//! - *Settled* ones have greeted. One of them gives way only where another origin would otherwise
//!   have at least two fewer than the origin with the most: of that one, the connection that has
//!   been silent for longest. An origin never makes room for more of its own.
//! - *Protected* ones, the group's own servers, never give way, and are not known here.
//!
//! An origin is an IP address as [`origin_of`] counts it. There are no sockets and no clock here:
//! the caller closes what is named.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::connections::ConnectionId;
use super::map::ConnectionMap;
use crate::limits::origin_of;

/// An origin with no more newcomers than this is not taken for a flood: a server dials another one
/// with two connections at once, and dials again before the old ones are gone.
const NEWCOMERS_FAIR: usize = 4;

/// Connections by origin, in the order in which they came.
#[derive(Debug, Default)]
struct ConnectionList {
    origins: HashMap<IpAddr, BTreeMap<u64, ConnectionId>>,
    by_size: BTreeSet<(usize, IpAddr)>,
    by_age: BTreeMap<u64, ConnectionId>,
    members: ConnectionMap<(IpAddr, u64)>,
    last: u64,
}

impl ConnectionList {
    fn insert(&mut self, id: ConnectionId, origin: IpAddr) {
        self.last += 1;
        self.members.insert(id, (origin, self.last));
        self.by_age.insert(self.last, id);
        let members = self.origins.entry(origin).or_default();
        self.by_size.remove(&(members.len(), origin));
        members.insert(self.last, id);
        self.by_size.insert((members.len(), origin));
    }

    fn remove(&mut self, id: ConnectionId) -> Option<IpAddr> {
        let (origin, number) = self.members.remove(&id)?;
        self.by_age.remove(&number);
        if let Some(members) = self.origins.get_mut(&origin) {
            self.by_size.remove(&(members.len(), origin));
            members.remove(&number);
            match members.len() {
                0 => drop(self.origins.remove(&origin)),
                left => drop(self.by_size.insert((left, origin))),
            }
        }
        Some(origin)
    }

    /// The number of connections of the origin with the most, and that origin.
    fn largest(&self) -> Option<(usize, IpAddr)> {
        self.by_size.last().copied()
    }

    fn size_of(&self, origin: IpAddr) -> usize {
        self.origins.get(&origin).map_or(0, BTreeMap::len)
    }

    fn of(&self, origin: IpAddr) -> impl Iterator<Item = ConnectionId> {
        self.origins.get(&origin).into_iter().flat_map(|members| members.values().copied())
    }
}

/// The accepted connections that may have to give way.
#[derive(Debug, Default)]
pub struct Crowd {
    newcomers: ConnectionList,
    settled: ConnectionList,
}

impl Crowd {
    /// Adds a connection that was accepted from `ip`, as a newcomer.
    pub fn came(&mut self, id: ConnectionId, ip: IpAddr) {
        self.newcomers.insert(id, origin_of(ip));
    }

    /// Notes that a newcomer has greeted, or has something under way again.
    pub fn settled(&mut self, id: ConnectionId) {
        if let Some(origin) = self.newcomers.remove(id) {
            self.settled.insert(id, origin);
        }
    }

    /// Counts a settled connection as the youngest newcomer: it is being closed, or has nothing
    /// under way.
    pub fn yields(&mut self, id: ConnectionId) {
        if let Some(origin) = self.settled.remove(id) {
            self.newcomers.insert(id, origin);
        }
    }

    /// Removes a connection that is gone, or that is never to give way.
    pub fn forget(&mut self, id: ConnectionId) {
        if self.newcomers.remove(id).is_none() {
            self.settled.remove(id);
        }
    }

    /// The newcomer to close when all places are taken: [`Crowd::newcomer_of_many`], or else the
    /// oldest.
    pub fn newcomer_to_go(&self) -> Option<ConnectionId> {
        self.newcomer_of_many().or_else(|| self.newcomers.by_age.values().next().copied())
    }

    /// The oldest newcomer of the origin that has the most of them, if that has more than
    /// [`NEWCOMERS_FAIR`].
    pub fn newcomer_of_many(&self) -> Option<ConnectionId> {
        let (most, origin) = self.newcomers.largest()?;
        (most > NEWCOMERS_FAIR).then(|| self.newcomers.of(origin).next()).flatten()
    }

    /// All newcomers, the oldest first.
    #[cfg(feature = "grpc")]
    pub fn all_newcomers(&self) -> impl Iterator<Item = ConnectionId> {
        self.newcomers.by_age.values().copied()
    }

    /// Number of newcomers, connections that are being closed included.
    #[cfg(feature = "grpc")]
    pub fn newcomers(&self) -> usize {
        self.newcomers.by_age.len()
    }

    /// The settled connections of which one may give way to one from `ip`: those of the origin with
    /// the most, if that would still have one more than the origin of `ip`.
    pub fn settled_to_go(&self, ip: IpAddr) -> impl Iterator<Item = ConnectionId> {
        let own = self.settled.size_of(origin_of(ip));
        let largest = self.settled.largest().filter(|(most, _)| *most > own + 1);
        largest.into_iter().flat_map(|(_, origin)| self.settled.of(origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ConnectionId {
        ConnectionId::from_u64(number)
    }

    fn ip(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[test]
    fn the_oldest_newcomer_of_whoever_has_the_most_goes() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.newcomer_to_go(), None);
        // A server's two, and then a flood from elsewhere.
        crowd.came(id(1), ip(9));
        crowd.came(id(2), ip(9));
        (10..30).for_each(|number| crowd.came(id(number), ip(1)));
        for number in 10..26 {
            assert_eq!(crowd.newcomer_to_go(), Some(id(number)));
            crowd.forget(id(number));
        }
        assert_eq!(crowd.newcomer_to_go(), Some(id(1)), "four are no more than anybody's");
        crowd.settled(id(1));
        crowd.forget(id(2));
        assert_eq!(crowd.newcomer_to_go(), Some(id(26)));
        (26..30).for_each(|number| crowd.settled(id(number)));
        assert_eq!(crowd.newcomer_to_go(), None);
        crowd.yields(id(27));
        crowd.yields(id(26));
        assert_eq!(crowd.newcomer_to_go(), Some(id(27)), "it has been idle for longer");
        crowd.settled(id(27));
        assert_eq!(crowd.newcomer_to_go(), Some(id(26)), "the other is busy again");
    }

    #[test]
    fn settled_ones_make_room_for_other_origins_until_nobody_has_more() {
        let mut crowd = Crowd::default();
        (0..6).for_each(|number| crowd.came(id(number), ip(1)));
        (0..6).for_each(|number| crowd.settled(id(number)));
        let to_go = |crowd: &Crowd, from| crowd.settled_to_go(ip(from)).collect::<Vec<_>>();
        assert!(to_go(&crowd, 1).is_empty(), "not for more of its own");
        for (gone, came) in [(0, 10), (1, 11), (2, 12)] {
            assert_eq!(to_go(&crowd, 2)[0], id(gone));
            crowd.forget(id(gone));
            crowd.came(id(came), ip(2));
            crowd.settled(id(came));
        }
        assert!(to_go(&crowd, 2).is_empty(), "three each");
        crowd.forget(id(12));
        assert!(to_go(&crowd, 2).is_empty(), "one more is no reason: the next would take it back");
        crowd.came(id(12), ip(2));
        crowd.settled(id(12));
        assert_eq!(to_go(&crowd, 3).len(), 3);
        // A protected one is never named.
        crowd.came(id(20), ip(1));
        crowd.settled(id(20));
        crowd.forget(id(20));
        assert!(!to_go(&crowd, 3).contains(&id(20)));
    }
}
