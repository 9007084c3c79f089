//! Bytes that are on their way to clients, in three scopes: a connection, an origin, the process.
//!
//! A watch of a connection or an origin that has too much on its way is stopped, and goes on when
//! some of that has left. Clients of one address cannot take all of the process's room. Where
//! several fill it, clients that take what they are shown go on
//! ([`WatchLimits::few_bytes_max`]), and the connection that has kept others waiting for longest
//! gives way ([`BytesOnWay::heaviest`]).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::{FEW_CONNECTIONS, WatchKey, WatchLimits};
use crate::limits::origin_of;
use crate::net::ConnectionId;

/// Whether a watch may be shown something, as far as others are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    ConnectionFull,
    OriginFull,
    ProcessFull,
}

#[derive(Debug)]
struct ConnectionWay {
    origin: IpAddr,
    bytes: usize,
    /// Watches that are stopped because of them.
    stopped: BTreeSet<WatchKey>,
    /// Watches that are stopped because the process is full, and these are not few.
    stopped_by_process: BTreeSet<WatchKey>,
    /// The bytes at each second since there were few, without those that have left.
    byte_seconds: u64,
    is_closing: bool,
}

#[derive(Debug, Default)]
struct OriginWay {
    bytes: usize,
    stopped: BTreeSet<WatchKey>,
}

/// The accounts of what is on its way.
#[derive(Debug)]
pub(super) struct BytesOnWay {
    limits: WatchLimits,
    connections: HashMap<ConnectionId, ConnectionWay>,
    origins: HashMap<IpAddr, OriginWay>,
    bytes: usize,
    /// Watches that are stopped because the process is full.
    stopped: BTreeSet<WatchKey>,
}

impl BytesOnWay {
    pub fn new(limits: WatchLimits) -> BytesOnWay {
        let (connections, origins) = (HashMap::new(), HashMap::new());
        BytesOnWay { limits, connections, origins, bytes: 0, stopped: BTreeSet::new() }
    }

    /// Whether only those may be shown anything to whom little is on its way.
    fn is_full(&self) -> bool {
        self.bytes >= self.limits.process_bytes_max
    }

    /// The room for a watch of a connection from an address.
    pub fn room(&self, ip: IpAddr, connection: ConnectionId) -> Room {
        let of_connection = self.connections.get(&connection).map_or(0, |way| way.bytes);
        let of_origin = self.origins.get(&origin_of(ip)).map_or(0, |way| way.bytes);
        if of_connection >= self.limits.connection_bytes_max {
            Room::ConnectionFull
        } else if of_origin >= self.limits.origin_bytes_max {
            Room::OriginFull
        } else if self.is_full() && !self.is_few(of_connection, of_origin) {
            Room::ProcessFull
        } else {
            Room::Free
        }
    }

    fn is_few(&self, of_connection: usize, of_origin: usize) -> bool {
        let few = self.limits.few_bytes_max;
        of_connection < few && of_origin < few * FEW_CONNECTIONS
    }

    /// Whether nothing is on its way to a connection.
    pub fn is_idle(&self, connection: ConnectionId) -> bool {
        !self.connections.contains_key(&connection)
    }

    /// Notes that a watch waits until there is room again.
    pub fn stop(&mut self, ip: IpAddr, connection: ConnectionId, watch: WatchKey, room: Room) {
        let way = self.connections.get_mut(&connection);
        match (room, way) {
            (Room::ConnectionFull, Some(way)) => _ = way.stopped.insert(watch),
            (Room::OriginFull, _) => {
                self.origins.entry(origin_of(ip)).or_default().stopped.insert(watch);
            }
            (Room::ProcessFull, way) => {
                self.stopped.insert(watch);
                if let Some(way) = way {
                    way.stopped_by_process.insert(watch);
                }
            }
            (room, _) => panic!("{watch:?} of {connection:?} is stopped by {room:?}"),
        }
    }

    /// Notes that a watch waits no more.
    pub fn forget(&mut self, ip: IpAddr, connection: ConnectionId, watch: WatchKey) {
        self.stopped.remove(&watch);
        if let Some(way) = self.connections.get_mut(&connection) {
            way.stopped.remove(&watch);
            way.stopped_by_process.remove(&watch);
        }
        if let Some(way) = self.origins.get_mut(&origin_of(ip)) {
            way.stopped.remove(&watch);
        }
    }

    /// Counts bytes that are on their way from now on.
    pub fn add(&mut self, ip: IpAddr, connection: ConnectionId, bytes: usize) {
        let origin = origin_of(ip);
        let way = self.connections.entry(connection).or_insert_with(|| ConnectionWay {
            origin,
            bytes: 0,
            stopped: BTreeSet::new(),
            stopped_by_process: BTreeSet::new(),
            byte_seconds: 0,
            is_closing: false,
        });
        way.bytes += bytes;
        self.origins.entry(origin).or_default().bytes += bytes;
        self.bytes += bytes;
    }

    /// Counts bytes no more that have left. Returns the watches that may go on.
    pub fn sent(&mut self, connection: ConnectionId, bytes: usize) -> Vec<WatchKey> {
        // Those of a connection that is gone were taken back.
        let Some(way) = self.connections.get_mut(&connection) else { return Vec::new() };
        assert!(way.bytes >= bytes, "{bytes} sent of {}", way.bytes);
        way.bytes -= bytes;
        // A client that takes much is shown much, and does not get heavier by that.
        way.byte_seconds = way.byte_seconds.saturating_sub(bytes as u64);
        let origin = way.origin;
        let mut go_on = BTreeSet::new();
        if way.bytes < self.limits.connection_bytes_max {
            go_on.append(&mut way.stopped);
        }
        if way.bytes < self.limits.few_bytes_max || way.bytes == 0 {
            let few = std::mem::take(&mut way.stopped_by_process);
            few.iter().for_each(|watch| _ = self.stopped.remove(watch));
            go_on.extend(few);
        }
        if way.bytes == 0 {
            self.connections.remove(&connection);
        }
        self.take_from_origin(origin, bytes, &mut go_on);
        go_on.into_iter().collect()
    }

    /// Takes back everything that was on its way to a connection. Returns the watches of others
    /// that may go on.
    pub fn closed(&mut self, connection: ConnectionId) -> Vec<WatchKey> {
        let mut go_on = BTreeSet::new();
        if let Some(way) = self.connections.remove(&connection) {
            self.take_from_origin(way.origin, way.bytes, &mut go_on);
        }
        go_on.into_iter().collect()
    }

    fn take_from_origin(&mut self, ip: IpAddr, bytes: usize, go_on: &mut BTreeSet<WatchKey>) {
        self.bytes -= bytes;
        let Some(way) = self.origins.get_mut(&ip) else {
            panic!("{bytes} bytes of {ip}, to which none are on their way")
        };
        way.bytes -= bytes;
        if way.bytes < self.limits.origin_bytes_max {
            go_on.append(&mut way.stopped);
        }
        if way.bytes == 0 {
            self.origins.remove(&ip);
        }
        // Not at once, or each few bytes that leave would have all of them looked at again.
        if self.bytes * 8 <= self.limits.process_bytes_max * 7 {
            go_on.append(&mut self.stopped);
        }
    }

    /// Called once a second: the connection that is to be closed, if others wait for room in the
    /// process. It is the one to which much was on its way for longest, beside what it took; a byte
    /// now and then does not help.
    pub fn heaviest(&mut self) -> Option<ConnectionId> {
        // A client that is shown something all the time always has a little on its way, and does
        // not get heavier by that.
        for way in self.connections.values_mut() {
            match way.bytes.saturating_sub(self.limits.few_bytes_max) {
                0 => way.byte_seconds = 0,
                much => way.byte_seconds += much as u64,
            }
        }
        let open = self.connections.iter_mut().filter(|(_, way)| !way.is_closing);
        let (connection, way) = open.max_by_key(|(id, way)| (way.byte_seconds, **id))?;
        if self.stopped.is_empty() || way.byte_seconds == 0 {
            return None;
        }
        way.is_closing = true;
        Some(*connection)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LIMITS: WatchLimits = WatchLimits {
        connection_bytes_max: 10,
        origin_bytes_max: 20,
        process_bytes_max: 30,
        few_bytes_max: 2,
        ..WatchLimits::DEFAULT
    };

    fn ip(number: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, number).into()
    }

    #[test]
    fn each_scope_stops_its_own_and_goes_on_when_something_has_left() {
        let mut ways = BytesOnWay::new(LIMITS);
        let id = ConnectionId::from_u64;
        ways.add(ip(1), id(1), 12);
        assert_eq!(ways.room(ip(1), id(1)), Room::ConnectionFull);
        assert_eq!(ways.room(ip(1), id(2)), Room::Free);
        ways.stop(ip(1), id(1), WatchKey(1), Room::ConnectionFull);
        ways.add(ip(1), id(2), 9);
        assert_eq!(ways.room(ip(1), id(3)), Room::OriginFull);
        assert_eq!(ways.room(ip(2), id(4)), Room::Free, "another address has its own");
        ways.stop(ip(1), id(3), WatchKey(3), Room::OriginFull);
        assert_eq!(ways.sent(id(1), 1), []);
        assert_eq!(ways.sent(id(1), 2), [WatchKey(1), WatchKey(3)]);
        ways.add(ip(2), id(4), 12);
        assert!(ways.is_full());
        ways.closed(id(4));
        assert!(!ways.is_full());
        ways.sent(id(1), 9);
        ways.sent(id(2), 9);
        assert!(ways.connections.is_empty() && ways.origins.is_empty() && ways.bytes == 0);
    }

    /// Two addresses whose clients took nothing stopped the watches of all others.
    #[test]
    fn who_takes_what_it_is_shown_goes_on_beside_those_who_fill_the_process() {
        let mut ways = BytesOnWay::new(LIMITS);
        let id = ConnectionId::from_u64;
        for (address, connection) in [(1, 1), (1, 2), (2, 3), (2, 4)] {
            ways.add(ip(address), id(connection), 9);
        }
        ways.add(ip(3), id(5), 3);
        assert_eq!(ways.room(ip(3), id(5)), Room::ProcessFull, "it has not taken what it has");
        assert_eq!(ways.room(ip(2), id(4)), Room::ProcessFull);
        ways.stop(ip(3), id(5), WatchKey(5), Room::ProcessFull);
        ways.stop(ip(2), id(4), WatchKey(4), Room::ProcessFull);
        assert_eq!(ways.room(ip(4), id(6)), Room::Free, "another one");
        assert_eq!(ways.sent(id(5), 1), []);
        assert_eq!(ways.sent(id(5), 1), [WatchKey(5)]);
        assert_eq!(ways.room(ip(3), id(5)), Room::Free);
        for connection in 7..100 {
            ways.add(ip(5), id(connection), 1);
        }
        assert_eq!(ways.room(ip(5), id(100)), Room::OriginFull);
        for connection in 7..100 {
            ways.closed(id(connection));
        }
        assert_eq!(ways.closed(id(1)), [], "there is little room");
        assert_eq!(ways.closed(id(2)), [WatchKey(4)]);
    }

    #[test]
    fn who_has_much_for_long_gives_way_and_nobody_while_there_is_room() {
        let mut ways = BytesOnWay::new(LIMITS);
        let id = ConnectionId::from_u64;
        ways.add(ip(1), id(1), 9);
        (0..5).for_each(|_| assert_eq!(ways.heaviest(), None));
        ways.sent(id(1), 1);
        ways.add(ip(2), id(2), 12);
        ways.add(ip(3), id(3), 12);
        assert!(ways.is_full());
        assert_eq!(ways.heaviest(), None, "nobody waits");
        ways.stop(ip(4), id(4), WatchKey(4), Room::ProcessFull);
        assert_eq!(ways.heaviest(), Some(id(1)), "a byte now and then does not help");
        assert_eq!(ways.heaviest(), Some(id(3)), "and each is closed once");
        assert_eq!(ways.closed(id(1)), [WatchKey(4)]);
        ways.closed(id(3));
        assert_eq!(ways.heaviest(), None);
    }

    /// Whoever was shown something for a day, and took all of it, was taken for the one who keeps
    /// others waiting.
    #[test]
    fn who_takes_what_it_is_shown_does_not_get_heavier_with_time() {
        let mut ways = BytesOnWay::new(LIMITS);
        let id = ConnectionId::from_u64;
        // There is always something on its way.
        ways.add(ip(1), id(1), 1);
        for _ in 0..1_000 {
            ways.add(ip(1), id(1), 1);
            assert_eq!(ways.heaviest(), None);
            ways.sent(id(1), 1);
        }
        ways.add(ip(2), id(2), 30);
        ways.stop(ip(3), id(3), WatchKey(3), Room::ProcessFull);
        assert_eq!(ways.heaviest(), Some(id(2)));
    }

    /// Nor does one that always has much on its way, and takes it as fast as it comes.
    #[test]
    fn who_is_shown_much_all_the_time_and_takes_it_does_not_give_way() {
        let mut ways = BytesOnWay::new(LIMITS);
        let id = ConnectionId::from_u64;
        ways.add(ip(1), id(1), 9);
        for _ in 0..1_000 {
            assert_eq!(ways.heaviest(), None);
            ways.add(ip(1), id(1), 9);
            ways.sent(id(1), 9);
        }
        ways.add(ip(2), id(2), 12);
        ways.add(ip(3), id(3), 9);
        ways.stop(ip(4), id(4), WatchKey(4), Room::ProcessFull);
        assert_eq!(ways.heaviest(), Some(id(2)));
    }
}
