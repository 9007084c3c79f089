//! Which origin has been granted how many leases, so that one cannot keep others from getting any.
//!
//! A leader counts the leases that it has granted itself, by the origins of the clients who asked,
//! from when it proposes a grant until the lease ends. Rule: an origin that has more than few is
//! granted no more than it leaves to others ([`is_within_share`]). A grant beyond that is refused
//! before it is ordered; what is ordered is for the state machine alone to judge. Grants that are
//! ordered together are counted when all of them are, so that it may be some thousands more.
//!
//! It is the leader's own account and no part of the replicated state: the log knows no addresses.
//! So a new leader begins anew, and whoever has much already may be granted half of what is left
//! then, and so on with each further leader. It is not for an origin to bring about an election.
//!
//! Not covered: somebody with many addresses, and one who asks through a gateway, whose clients are
//! all of the gateway's address here.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::limits::{HELD_FEW, is_within_share};
use crate::model::{LeaseName, LogIndex};

/// The leases that a leader has granted.
#[derive(Debug, Default)]
pub(super) struct LeaseShares {
    by_origin: HashMap<IpAddr, usize>,
    /// Whose each lease is that there is.
    granted: HashMap<LeaseName, IpAddr>,
    /// Grants that are proposed and not applied, in their order.
    under_way: VecDeque<(LogIndex, LeaseName, IpAddr)>,
}

impl LeaseShares {
    /// Whether an origin may be granted another lease, where there are `known` leases and may be
    /// `most`. One more than that is left to the state machine to refuse.
    pub fn may_grant(&self, origin: IpAddr, known: usize, most: usize) -> bool {
        let own = self.by_origin.get(&origin).copied().unwrap_or_default();
        own < HELD_FEW || is_within_share(own, known + self.under_way.len(), most)
    }

    /// A grant to this origin was proposed, in the entry at `index`, later than all before.
    pub fn proposed(&mut self, index: LogIndex, name: LeaseName, origin: IpAddr) {
        *self.by_origin.entry(origin).or_default() += 1;
        self.under_way.push_back((index, name, origin));
    }

    /// Everything up to `index` is applied; whether a lease has come of a grant.
    pub fn applied(&mut self, index: LogIndex, is_there: impl Fn(LeaseName) -> bool) {
        while let Some((_, name, origin)) = self.under_way.pop_front_if(|(at, ..)| *at <= index) {
            match is_there(name) {
                true => drop(self.granted.insert(name, origin)),
                false => self.forget(origin),
            }
        }
    }

    /// A lease has ended.
    pub fn ended(&mut self, name: LeaseName) {
        if let Some(origin) = self.granted.remove(&name) {
            self.forget(origin);
        }
    }

    fn forget(&mut self, origin: IpAddr) {
        let own = self.by_origin.remove(&origin).unwrap_or_default();
        assert!(own > 0, "a lease of {origin} was not counted");
        if own > 1 {
            self.by_origin.insert(origin, own - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LeaseId, Timestamp};

    fn name(id: u64) -> LeaseName {
        LeaseName { id: LeaseId(id), granted: Timestamp(id as i64) }
    }

    #[test]
    fn an_origin_is_granted_no_more_than_it_leaves_to_others_until_some_have_ended() {
        let [greedy, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let (mut shares, most) = (LeaseShares::default(), 1_600);
        let mut id = 0;
        while shares.may_grant(greedy, id as usize / 2, most) {
            id += 1;
            shares.proposed(id, name(id), greedy);
            // Half of them are applied.
            shares.applied(id / 2, |_| true);
        }
        assert_eq!(id, 750, "those under way count, too");
        assert!(shares.may_grant(other, 375, most));
        assert!(shares.may_grant(other, most, most), "what is full is for others to say");
        // One of the next ten comes to nothing, and one ends.
        shares.applied(id / 2 + 10, |granted| granted != name(id / 2 + 1));
        shares.ended(name(id / 2 + 2));
        shares.ended(name(id / 2 + 1));
        assert!(shares.may_grant(greedy, 375 + 8, most));
        shares.applied(id, |_| true);
        (1..=id).for_each(|id| shares.ended(name(id)));
        let LeaseShares { by_origin, granted, under_way } = shares;
        assert!(by_origin.is_empty() && granted.is_empty() && under_way.is_empty());
    }
}
