//! Decides when the group's feature level may rise.
//!
//! Every server sends the others about once a second the level that its release knows. Rule: the
//! leader proposes a higher level once every server of the group has named that level or a higher
//! one, in the leader's term, and for [`limits::LEVEL_SETTLED`](crate::limits::LEVEL_SETTLED)
//! without a lower one in between. If a message in a server's name was forged, the server itself
//! corrects it within a second. A server that is down, or does not send its level, keeps the
//! group's level where it is: a level never leaves a server of the group behind.

use std::collections::BTreeMap;

use crate::model::NodeId;

/// The levels that the other servers have named to a leader, in its term.
#[derive(Debug, Default)]
pub(super) struct ServerLevels {
    /// By server: the level, and since when it has named no other.
    named: BTreeMap<NodeId, (u32, u64)>,
}

impl ServerLevels {
    /// Notes the level that another server's release knows.
    pub fn heard(&mut self, server: NodeId, level: u32, now_us: u64) {
        let named = self.named.entry(server).or_insert((level, now_us));
        if named.0 != level {
            *named = (level, now_us);
        }
    }

    /// The link to a server is down: it may come back with another release.
    pub fn lost(&mut self, server: NodeId) {
        self.named.remove(&server);
    }

    /// The newest level that this server, which knows `own`, and all of `others` know; `None` if
    /// one of them has named none, or has changed it less than `settled_us` ago.
    pub fn known_to_all(
        &self,
        others: impl IntoIterator<Item = NodeId>,
        own: u32,
        now_us: u64,
        settled_us: u64,
    ) -> Option<u32> {
        others.into_iter().try_fold(own, |lowest, server| {
            let (level, since_us) = self.named.get(&server)?;
            let is_settled = now_us.saturating_sub(*since_us) >= settled_us;
            is_settled.then_some(lowest.min(*level))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_the_lowest_that_every_server_has_named_for_long_enough() {
        let (a, b) = (NodeId(2), NodeId(3));
        let mut levels = ServerLevels::default();
        levels.heard(a, 3, 0);
        assert_eq!(levels.known_to_all([a, b], 2, 100, 10), None, "one has named none");
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
