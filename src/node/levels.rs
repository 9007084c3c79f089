//! When the group's feature level may rise.
//!
//! Every server tells the others about once a second which level its release knows. The leader proposes a higher
//! level once every server of the group has told, in its term and for [`limits::LEVEL_SETTLED`] without a lower
//! one in between, that it knows it: what one forged message says for a server, the server itself puts right
//! within a second. A server that is down, or does not tell, holds the level where it is. That is the price of a
//! level that never leaves a server of the group behind.

use std::collections::BTreeMap;

use crate::model::NodeId;

/// What the other servers have told a leader, in its term.
#[derive(Debug, Default)]
pub(super) struct PeerLevels {
    /// The level, and since when the server has told nothing else.
    told: BTreeMap<NodeId, (u32, u64)>,
}

impl PeerLevels {
    /// A server says which level it knows.
    pub fn heard(&mut self, peer: NodeId, level: u32, now_us: u64) {
        let told = self.told.entry(peer).or_insert((level, now_us));
        if told.0 != level {
            *told = (level, now_us);
        }
    }

    /// A server is out of reach: another release may come back in its place.
    pub fn lost(&mut self, peer: NodeId) {
        self.told.remove(&peer);
    }

    /// The newest level that all of `others` know, and this server, which knows `own`, as far as that has been so
    /// for `settled_us`.
    pub fn known_to_all(
        &self,
        others: impl IntoIterator<Item = NodeId>,
        own: u32,
        now_us: u64,
        settled_us: u64,
    ) -> Option<u32> {
        others.into_iter().try_fold(own, |lowest, peer| {
            let (level, since_us) = self.told.get(&peer)?;
            let is_settled = now_us.saturating_sub(*since_us) >= settled_us;
            is_settled.then_some(lowest.min(*level))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_what_everybody_has_told_for_long_enough() {
        let (a, b) = (NodeId(2), NodeId(3));
        let mut levels = PeerLevels::default();
        levels.heard(a, 3, 0);
        assert_eq!(levels.known_to_all([a, b], 2, 100, 10), None, "one has told nothing");
        levels.heard(b, 2, 95);
        assert_eq!(levels.known_to_all([a, b], 3, 104, 10), None, "not for long enough");
        levels.heard(b, 2, 104);
        assert_eq!(levels.known_to_all([a, b], 3, 105, 10), Some(2), "repeating is no news");
        assert_eq!(levels.known_to_all([a, b], 1, 105, 10), Some(1), "its own counts");
        levels.heard(b, 1, 106);
        levels.heard(b, 2, 107);
        assert_eq!(levels.known_to_all([a, b], 3, 116, 10), None, "it said something else between");
        assert_eq!(levels.known_to_all([a, b], 3, 117, 10), Some(2));
        levels.lost(a);
        assert_eq!(levels.known_to_all([a, b], 3, 200, 10), None);
        assert_eq!(levels.known_to_all([], 3, 0, 10), Some(3), "a group of one");
    }
}
