//! How many watches a connection, an origin and the process may have, and how much memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;

use crate::limits::WATCHES_PER_CONNECTION_MAX;
use crate::net::ConnectionId;

/// Watches of one origin: what one machine of a large installation may need.
const ORIGIN_WATCHES_MAX: usize = 128 * 1024;
/// Watches of all clients. With [`WATCH_BYTES`] each, they take 128 MiB.
const PROCESS_WATCHES_MAX: usize = 256 * 1024;
/// Memory that a watch takes besides its keys, about.
const WATCH_BYTES: usize = 512;
/// Bytes of one connection's watches, so that keys of 4 KiB are not watched by the ten thousand.
const CONNECTION_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of one origin's watches: 128 Ki of them with keys of 256 bytes in all.
const ORIGIN_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Bytes of the watches of all clients.
const PROCESS_BYTES_MAX: usize = 192 * 1024 * 1024;

/// The watches of somebody and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    watches: usize,
    bytes: usize,
}

impl Taken {
    /// With one watch more, if it fits.
    fn with(self, bytes: usize, watches_max: usize, bytes_max: usize) -> Option<Taken> {
        let taken = Taken { watches: self.watches + 1, bytes: self.bytes + bytes };
        (taken.watches <= watches_max && taken.bytes <= bytes_max).then_some(taken)
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
    /// Whose watches are too many, in a clause.
    pub fn add(
        &mut self,
        connection: ConnectionId,
        origin: IpAddr,
        key_bytes: usize,
    ) -> Result<(), String> {
        let bytes = WATCH_BYTES + key_bytes;
        let too_many = |whose: &str, most: usize, bytes_max: usize| {
            format!("{whose} may have {most} watches with {bytes_max} bytes of keys")
        };
        let of = |taken: Option<&Taken>| taken.copied().unwrap_or_default();
        let mine = of(self.connections.get(&connection))
            .with(bytes, WATCHES_PER_CONNECTION_MAX, CONNECTION_BYTES_MAX)
            .ok_or_else(|| {
                too_many("a connection", WATCHES_PER_CONNECTION_MAX, CONNECTION_BYTES_MAX)
            })?;
        let origins = of(self.origins.get(&origin))
            .with(bytes, ORIGIN_WATCHES_MAX, ORIGIN_BYTES_MAX)
            .ok_or_else(|| too_many("an address", ORIGIN_WATCHES_MAX, ORIGIN_BYTES_MAX))?;
        let process = self
            .process
            .with(bytes, PROCESS_WATCHES_MAX, PROCESS_BYTES_MAX)
            .ok_or_else(|| too_many("a server", PROCESS_WATCHES_MAX, PROCESS_BYTES_MAX))?;
        self.connections.insert(connection, mine);
        self.origins.insert(origin, origins);
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
        let long = 8 * 1024;
        let mut of_origin = of_one;
        'connections: for number in 2.. {
            for _ in 0..WATCHES_PER_CONNECTION_MAX {
                match quota.add(connection(number), origin(1), 2) {
                    Ok(()) => of_origin += 1,
                    Err(why) => {
                        assert!(why.starts_with("an address may have"), "{why}");
                        break 'connections;
                    }
                }
            }
        }
        assert_eq!(of_origin, ORIGIN_WATCHES_MAX);
        let mut others = 0;
        let other = |number: u64| origin(2 + (number % 200) as u8);
        while quota.add(connection(1_000 + others / 100), other(others), long).is_ok() {
            others += 1;
        }
        let why = quota.add(connection(5_000_000), origin(2), long).unwrap_err();
        assert!(why.starts_with("a server may have"), "{why}");
    }
}
