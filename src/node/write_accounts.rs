//! What each origin has under way of a server's writes.
//!
//! One limit for all is none for one: an origin with a thousand connections would have everybody
//! else's writes refused. Rule: where three quarters of a limit are taken, an origin that has a
//! quarter of it gets no more, so that the rest is there for others.

use std::collections::HashMap;
use std::net::IpAddr;

use slab::Slab;

/// What one origin has under way.
#[derive(Clone, Copy, Debug)]
struct OriginAccount {
    origin: IpAddr,
    writes: usize,
    bytes: usize,
}

/// The accounts of all origins that have writes under way.
///
/// That of the origin that wrote last is kept at hand, also when it is empty: where all writes come
/// from one origin, none of them is looked up.
#[derive(Debug, Default)]
pub(super) struct OriginAccounts {
    all: Slab<OriginAccount>,
    by_origin: HashMap<IpAddr, usize>,
    last: Option<(IpAddr, usize)>,
}

impl OriginAccounts {
    /// Writes, and their bytes, that an origin has under way.
    pub fn of(&self, origin: IpAddr) -> (usize, usize) {
        let place = self.find(origin);
        place.map_or((0, 0), |place| (self.all[place].writes, self.all[place].bytes))
    }

    fn find(&self, origin: IpAddr) -> Option<usize> {
        match self.last {
            Some((last, place)) if last == origin => Some(place),
            _ => self.by_origin.get(&origin).copied(),
        }
    }

    /// Counts a write of `bytes`. Returns the account's place, for [`end`](OriginAccounts::end).
    pub fn begin(&mut self, origin: IpAddr, bytes: usize) -> usize {
        let place = self.find(origin).unwrap_or_else(|| {
            let place = self.all.insert(OriginAccount { origin, writes: 0, bytes: 0 });
            self.by_origin.insert(origin, place);
            place
        });
        let account = &mut self.all[place];
        account.writes += 1;
        account.bytes += bytes;
        if let Some((_, before)) = self.last.replace((origin, place))
            && before != place
        {
            self.drop_if_empty(before);
        }
        place
    }

    /// Takes back what [`begin`](OriginAccounts::begin) has counted.
    pub fn end(&mut self, place: usize, bytes: usize) {
        let account = &mut self.all[place];
        assert!(
            account.writes > 0 && account.bytes >= bytes,
            "a write of {bytes} bytes ends that {account:?} does not count"
        );
        account.writes -= 1;
        account.bytes -= bytes;
        if self.last.is_none_or(|(_, last)| last != place) {
            self.drop_if_empty(place);
        }
    }

    fn drop_if_empty(&mut self, place: usize) {
        let OriginAccount { origin, writes, .. } = self.all[place];
        if writes == 0 {
            self.all.remove(place);
            self.by_origin.remove(&origin);
        }
    }
}

/// Whether an origin that has `own` of a limit of `most`, of which `all` are taken, gets no more.
pub(super) fn is_over_share(own: usize, all: usize, most: usize) -> bool {
    all >= most - most / 4 && own >= most / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_kept_as_long_as_something_is_under_way() {
        let mut accounts = OriginAccounts::default();
        let origin = |last: u8| IpAddr::from([10, 0, 0, last]);
        let first = accounts.begin(origin(1), 100);
        assert_eq!(accounts.begin(origin(1), 20), first);
        let other = accounts.begin(origin(2), 5);
        assert_eq!([1, 2, 3].map(|n| accounts.of(origin(n))), [(2, 120), (1, 5), (0, 0)]);
        accounts.end(first, 20);
        accounts.end(other, 5);
        assert_eq!(accounts.begin(origin(2), 7), other, "it is at hand");
        accounts.end(other, 7);
        accounts.end(first, 100);
        accounts.begin(origin(3), 1);
        assert_eq!((accounts.all.len(), accounts.by_origin.len()), (1, 1), "no other is left");
    }

    #[test]
    fn what_is_left_of_a_limit_is_for_those_who_have_little() {
        assert!(!is_over_share(74, 74, 100), "there is room");
        assert!(is_over_share(75, 75, 100));
        assert!(is_over_share(25, 80, 100) && !is_over_share(24, 80, 100));
    }
}
