//! How many watches a connection, an origin and the process may have, and how much memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;

use crate::limits::{HELD_FEW, WATCHES_PER_CONNECTION_MAX, is_within_share};
use crate::net::ConnectionId;

/// Watches of all clients. With [`WATCH_BYTES`] each, they take 128 MiB. An origin has its share of
/// them ([`is_within_share`]), the first one up to nearly half: what one machine of a large
/// installation may need.
const PROCESS_WATCHES_MAX: usize = 256 * 1024;
/// Memory that a watch takes besides its keys, about.
const WATCH_BYTES: usize = 512;
/// Bytes of one connection's watches, so that keys of 4 KiB are not watched by the ten thousand.
const CONNECTION_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of the watches of all clients, of which an origin has its share, too: 120 Ki of them with
/// keys of 256 bytes in all.
const PROCESS_BYTES_MAX: usize = 192 * 1024 * 1024;

/// The watches of somebody and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    watches: usize,
    bytes: usize,
}

impl Taken {
    fn with(self, bytes: usize) -> Taken {
        Taken { watches: self.watches + 1, bytes: self.bytes + bytes }
    }

    fn without(self, bytes: usize) -> Taken {
        assert!(self.watches > 0 && self.bytes >= bytes, "{bytes} bytes of {self:?}");
        Taken { watches: self.watches - 1, bytes: self.bytes - bytes }
    }
}

/// The accounts of all watches.
#[derive(Debug, Default)]
pub(super) struct WatchQuota {
    connections: HashMap<ConnectionId, Taken>,
    origins: HashMap<IpAddr, Taken>,
    process: Taken,
}

impl WatchQuota {
    /// Counts a watch whose keys have so many bytes.
    ///
    /// # Errors
    /// Which limit has no room for it, and what to do: a sentence.
    pub fn add(
        &mut self,
        connection: ConnectionId,
        origin: IpAddr,
        key_bytes: usize,
    ) -> Result<(), String> {
        let bytes = WATCH_BYTES + key_bytes;
        let of = |taken: Option<&Taken>| taken.copied().unwrap_or_default();
        let mine = of(self.connections.get(&connection)).with(bytes);
        let (of_origin, of_all) = (of(self.origins.get(&origin)), self.process);
        let process = of_all.with(bytes);
        if mine.watches > WATCHES_PER_CONNECTION_MAX {
            return Err(format!(
                "a connection may have {WATCHES_PER_CONNECTION_MAX} watches: end some, watch \
                 ranges, or use another connection"
            ));
        }
        if mine.bytes > CONNECTION_BYTES_MAX {
            return Err(format!(
                "the watches of a connection may take {CONNECTION_BYTES_MAX} bytes, each those of \
                 its keys and {WATCH_BYTES} more: end some, watch ranges, or use another connection"
            ));
        }
        let elsewhere = "end some, or watch at another server";
        if process.watches > PROCESS_WATCHES_MAX {
            return Err(format!("a server may have {PROCESS_WATCHES_MAX} watches: {elsewhere}"));
        }
        if process.bytes > PROCESS_BYTES_MAX {
            return Err(format!(
                "the watches of a server may take {PROCESS_BYTES_MAX} bytes, each those of its \
                 keys and {WATCH_BYTES} more: {elsewhere}"
            ));
        }
        let has_few = of_origin.watches < HELD_FEW;
        if !has_few && !is_within_share(of_origin.watches, of_all.watches, PROCESS_WATCHES_MAX) {
            return Err(format!(
                "this address has {} of the {PROCESS_WATCHES_MAX} watches that a server may have, \
                 and leaves the rest to others: {elsewhere}",
                of_origin.watches
            ));
        }
        if !has_few && !is_within_share(of_origin.bytes, of_all.bytes, PROCESS_BYTES_MAX) {
            return Err(format!(
                "the watches of this address take {} of the {PROCESS_BYTES_MAX} bytes that those \
                 of a server may take, and leave the rest to others: {elsewhere}",
                of_origin.bytes
            ));
        }
        self.connections.insert(connection, mine);
        self.origins.insert(origin, of_origin.with(bytes));
        self.process = process;
        Ok(())
    }

    /// Counts a watch no more.
    pub fn remove(&mut self, connection: ConnectionId, origin: IpAddr, key_bytes: usize) {
        let bytes = WATCH_BYTES + key_bytes;
        take(&mut self.connections, connection, bytes);
        take(&mut self.origins, origin, bytes);
        self.process = self.process.without(bytes);
    }
}

fn take<K: Eq + Hash>(accounts: &mut HashMap<K, Taken>, key: K, bytes: usize) {
    let Entry::Occupied(mut account) = accounts.entry(key) else {
        panic!("a watch of nobody with {bytes} bytes")
    };
    let left = account.get().without(bytes);
    match left.watches {
        0 => drop(account.remove()),
        _ => *account.get_mut() = left,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn origin(number: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, number).into()
    }

    #[test]
    fn each_scope_has_its_own_bound_and_what_goes_makes_room() {
        let mut quota = WatchQuota::default();
        let connection = ConnectionId::from_u64;
        let mut of_one = 0;
        while quota.add(connection(1), origin(1), 2).is_ok() {
            of_one += 1;
        }
        assert_eq!(of_one, WATCHES_PER_CONNECTION_MAX);
        quota.remove(connection(1), origin(1), 2);
        quota.add(connection(1), origin(1), 2).unwrap();
        let why = quota.add(connection(1), origin(1), 2).unwrap_err();
        assert!(why.starts_with("a connection may have"), "{why}");
        let long = 8 * 1024;
        let mut of_long = 0;
        let why = loop {
            match quota.add(connection(2), origin(2), long) {
                Ok(()) => of_long += 1,
                Err(why) => break why,
            }
        };
        assert!(why.starts_with("the watches of a connection may take"), "{why}");
        assert_eq!(of_long, CONNECTION_BYTES_MAX / (WATCH_BYTES + long));
        let mut others = 0;
        let other = |number: u64| IpAddr::from([10, 1, (number / 250) as u8, (number % 250) as u8]);
        while quota.add(connection(1_000 + others / 10), other(others / 10), long).is_ok() {
            others += 1;
        }
        let why = quota.add(connection(5_000_000), origin(250), long).unwrap_err();
        assert!(why.starts_with("the watches of a server may take"), "{why}");
    }

    /// Two addresses took all watches of a server, and nobody else got one.
    #[test]
    fn whatever_some_addresses_take_another_one_has_some_watches() {
        let mut quota = WatchQuota::default();
        let mut taken = Vec::new();
        for number in 1..=20 {
            let mut own = 0;
            let why = loop {
                let connection =
                    (u64::from(number) << 32) | (own / WATCHES_PER_CONNECTION_MAX as u64);
                match quota.add(ConnectionId::from_u64(connection), origin(number), 2) {
                    Ok(()) => own += 1,
                    Err(why) => break why,
                }
            };
            assert!(why.starts_with("this address has"), "{why}");
            taken.push(own as usize);
        }
        assert_eq!(taken[0], (PROCESS_WATCHES_MAX - PROCESS_WATCHES_MAX / 16) / 2);
        assert_eq!(taken[19], HELD_FEW);
        let long = 8 * 1024;
        let mut quota = WatchQuota::default();
        for number in 1..=20 {
            let mut own = 0;
            let why = loop {
                let connection = (u64::from(number) << 32) | (own / 1_000);
                match quota.add(ConnectionId::from_u64(connection), origin(number), long) {
                    Ok(()) => own += 1,
                    Err(why) => break why,
                }
            };
            assert!(why.starts_with("the watches of this address take"), "{why}");
            assert!(own >= HELD_FEW as u64, "{number} has {own}");
        }
    }
}
