//! The parts of a JOIN that has not been received completely.
//!
//! A JOIN with many files comes in several parts over one connection. The parts are collected here
//! and become one request.
//!
//! Rule: parts are joined only if they belong to the same peer and follow each other. The memory
//! they hold is counted, and the youngest parts of the origin (an IP address) that holds most make
//! room for others.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::limits;
use crate::model::{FileEntry, PeerId};

/// The parts of a JOIN that have been received so far, or a single one.
#[derive(Clone, Debug)]
pub(super) struct PartialJoin {
    pub peer: PeerId,
    pub address: SocketAddr,
    /// The number of the part that has to come next; of a single part, its own number.
    pub next_part: u32,
    pub files: Vec<FileEntry>,
    pub key: u64,
    pub shares: bool,
    /// When the first part came.
    pub since: Instant,
    /// The bytes of memory that the parts hold.
    pub held: usize,
}

impl PartialJoin {
    /// Joins this part with the earlier parts from the same connection, which comes from `from`.
    ///
    /// # Errors
    /// The sentence with which to refuse the JOIN.
    pub(super) fn after(
        mut self,
        before: Option<PartialJoin>,
        from: SocketAddr,
    ) -> Result<PartialJoin, String> {
        self.address.set_ip(self.address.ip().to_canonical());
        if self.address.ip().is_unspecified() {
            // It listens on all addresses: the one it connects from reaches it.
            self.address.set_ip(from.ip());
        }
        if self.address.ip().is_loopback() && !from.ip().is_loopback() {
            let reason = "a peer on another machine than its registry cannot serve on a loopback \
                          address: give the address at which others reach it";
            return Err(reason.to_owned());
        }
        if self.address.port() == 0 {
            return Err("a peer cannot serve on port 0".to_owned());
        }
        let joined = match before {
            _ if self.next_part == 0 => self,
            Some(mut before) if before.is_followed_by(&self) => {
                before.files.append(&mut self.files);
                before.held += self.held;
                before
            }
            _ => {
                let reason = "this part of a JOIN does not follow the one before, or that one had \
                              to make room: send all of them again";
                return Err(reason.to_owned());
            }
        };
        if joined.files.len() > limits::FILES_PER_PEER_MAX {
            let max = limits::FILES_PER_PEER_MAX;
            return Err(format!("a peer offers at most {max} files: share fewer"));
        }
        Ok(joined)
    }

    fn is_followed_by(&self, part: &PartialJoin) -> bool {
        let of =
            |join: &PartialJoin| (join.peer, join.address, join.key, join.shares, join.next_part);
        of(self) == of(part)
    }
}

/// Chooses the connection whose parts are discarded to make room for `bytes` of a request from
/// `own`, or `None` if none gives way.
///
/// It is the youngest of the origin that holds most, if that holds more than `own` would; of `own`
/// itself, only one younger than what the requesting connection has sent so far (`own_since`). So
/// unfinished JOINs keep no one else out, and several do not block each other: the oldest always
/// continues. `partial` are the unfinished JOINs of the other connections and their origins.
pub(super) fn giving_way<'a, K: Copy>(
    partial: impl Iterator<Item = (K, IpAddr, &'a PartialJoin)> + Clone,
    own: IpAddr,
    own_since: Option<Instant>,
    own_held: usize,
    bytes: usize,
) -> Option<K> {
    let mut origins: HashMap<IpAddr, usize> = HashMap::from([(own, own_held)]);
    for (_, origin, join) in partial.clone() {
        *origins.entry(origin).or_default() += join.held;
    }
    let own_held = origins.get(&own).copied().unwrap_or_default() + bytes;
    let (heaviest, held) = origins.into_iter().max_by_key(|(_, held)| *held)?;
    let gives_way = |origin: IpAddr, since: Instant| match origin == own {
        true => own_since.is_some_and(|own_since| since > own_since),
        false => origin == heaviest && held > own_held,
    };
    let victims = partial.filter(|(_, origin, join)| gives_way(*origin, join.since));
    let youngest = victims.max_by_key(|(_, origin, join)| (*origin != own, join.since));
    youngest.map(|(key, ..)| key)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{ContentId, FileName};

    fn part(number: u32, since: Instant) -> PartialJoin {
        let name = FileName::new(&format!("file-{number}")).unwrap();
        PartialJoin {
            peer: PeerId(1),
            address: SocketAddr::from(([10, 0, 0, 1], 5000)),
            next_part: number,
            files: vec![FileEntry { name, size: 1, content: ContentId([1; 32]) }],
            key: 7,
            shares: true,
            since,
            held: 100,
        }
    }

    fn from(ip: [u8; 4]) -> SocketAddr {
        SocketAddr::from((ip, 40_000))
    }

    #[test]
    fn parts_are_joined_only_if_they_belong_together_and_follow_each_other() {
        let now = Instant::now();
        let after = |before: &PartialJoin, part: PartialJoin| {
            let before = PartialJoin { next_part: before.next_part + 1, ..before.clone() };
            part.after(Some(before), from([10, 0, 0, 1]))
        };
        let first = part(0, now).after(None, from([10, 0, 0, 1])).unwrap();
        let joined = after(&first, part(1, now)).unwrap();
        assert_eq!((joined.files.len(), joined.held), (2, 200));
        assert!(after(&first, part(2, now)).is_err(), "one is missing");
        assert!(after(&first, PartialJoin { key: 8, ..part(1, now) }).is_err());
        assert!(after(&first, PartialJoin { peer: PeerId(2), ..part(1, now) }).is_err());
        assert!(part(1, now).after(None, from([10, 0, 0, 1])).is_err());
        let again = after(&first, part(0, now)).unwrap();
        assert_eq!(again.files.len(), 1, "the first part begins a JOIN anew");
    }

    #[test]
    fn an_address_that_others_cannot_reach_is_replaced_or_refused() {
        let at = |ip: [u8; 4], port: u16| PartialJoin {
            address: SocketAddr::from((ip, port)),
            ..part(0, Instant::now())
        };
        let joined = at([0, 0, 0, 0], 5000).after(None, from([10, 0, 0, 9])).unwrap();
        assert_eq!(joined.address, SocketAddr::from(([10, 0, 0, 9], 5000)));
        assert!(at([127, 0, 0, 1], 5000).after(None, from([10, 0, 0, 9])).is_err());
        assert!(at([127, 0, 0, 1], 5000).after(None, from([127, 0, 0, 1])).is_ok());
        assert!(at([10, 0, 0, 9], 0).after(None, from([10, 0, 0, 9])).is_err());
    }

    #[test]
    fn the_youngest_of_the_origin_that_holds_most_gives_way_and_the_oldest_goes_on() {
        let now = Instant::now();
        let at = |second: u64| now + Duration::from_secs(second);
        let [a, b] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let joins = [(1, a, part(0, at(1))), (2, a, part(0, at(2))), (3, b, part(0, at(3)))];
        let choose = |own, own_since: Option<Instant>, own_held, bytes| {
            let others = joins.iter().map(|(key, origin, join)| (*key, *origin, join));
            giving_way(others, own, own_since, own_held, bytes)
        };
        let c = IpAddr::from([10, 0, 0, 3]);
        assert_eq!(choose(c, None, 0, 50), Some(2), "of the heaviest the youngest");
        assert_eq!(choose(c, None, 0, 200), None, "it would hold as much itself");
        assert_eq!(choose(b, Some(at(3)), 0, 50), Some(2), "100 of its own and 50 are less");
        assert_eq!(choose(a, Some(at(0)), 100, 50), Some(2), "of its own one that is younger");
        assert_eq!(choose(a, Some(at(5)), 100, 50), None, "and none that is older");
    }
}
