//! What the other servers' clocks say, so that a leader whose clock is far from theirs notices.
//!
//! Servers tell each other the time about once a second. Nothing is decided by it: timestamps keep their order
//! whatever a clock does. But users ask for the state as of a time, and get that of another one while the
//! leader's clock is wrong.

use std::collections::BTreeMap;

use super::core::micros;
use crate::limits;
use crate::model::NodeId;

/// How far the others' clocks were ahead of this server's when they were last heard.
#[derive(Debug, Default)]
pub(super) struct PeerClocks {
    ahead_us: BTreeMap<NodeId, i64>,
    /// When the others were last told the time, by the monotonic clock.
    told_us: Option<u64>,
    /// It has been said that this server's clock is far from theirs.
    is_said: bool,
}

impl PeerClocks {
    /// A server says what its clock says; this one's says `wall_us`.
    pub fn heard(&mut self, peer: NodeId, peer_wall_us: i64, wall_us: i64) {
        self.ahead_us.insert(peer, peer_wall_us.saturating_sub(wall_us));
    }

    /// A server is out of reach, and its clock not known any more.
    pub fn lost(&mut self, peer: NodeId) {
        self.ahead_us.remove(&peer);
    }

    /// Whether the others are to be told the time now.
    pub fn is_due(&mut self, now_us: u64) -> bool {
        let interval_us = micros(limits::ABOUT_INTERVAL);
        let due = self.told_us.is_none_or(|told_us| now_us.saturating_sub(told_us) >= interval_us);
        if due {
            self.told_us = Some(now_us);
        }
        due
    }

    /// How far the others are ahead of this server, when that is more than
    /// [`limits::CLOCK_BEHIND_WARNING`]. Of two others the closer one counts, and of more the one in the
    /// middle: one wrong clock of another server says nothing about this one.
    pub fn apart_us(&self) -> Option<i64> {
        let mut ahead: Vec<i64> = self.ahead_us.values().copied().collect();
        ahead.sort_unstable_by_key(|ahead_us| ahead_us.unsigned_abs());
        let ahead_us = *ahead.get(ahead.len().checked_sub(1)? / 2)?;
        (ahead_us.unsigned_abs() > micros(limits::CLOCK_BEHIND_WARNING)).then_some(ahead_us)
    }

    /// The same when it has not been said yet that it is so.
    pub fn news(&mut self) -> Option<i64> {
        let apart_us = self.apart_us();
        let was_said = std::mem::replace(&mut self.is_said, apart_us.is_some());
        apart_us.filter(|_| !was_said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR_US: i64 = 3_600_000_000;

    #[test]
    fn a_clock_far_from_the_others_is_told_once() {
        let mut clocks = PeerClocks::default();
        assert_eq!(clocks.news(), None, "nobody is known");
        clocks.heard(NodeId(2), FAR_US, 0);
        clocks.heard(NodeId(3), 5, 0);
        assert_eq!(clocks.news(), None, "one of two is wrong, and it is not this server");
        clocks.heard(NodeId(3), FAR_US + 1, 0);
        assert_eq!(clocks.news(), Some(FAR_US));
        assert_eq!((clocks.news(), clocks.apart_us()), (None, Some(FAR_US)));
        clocks.heard(NodeId(2), i64::MIN, i64::MAX);
        clocks.lost(NodeId(3));
        assert_eq!((clocks.news(), clocks.apart_us()), (None, Some(i64::MIN)));
        clocks.lost(NodeId(2));
        assert_eq!((clocks.news(), clocks.apart_us()), (None, None));
        clocks.heard(NodeId(2), -FAR_US, 0);
        assert_eq!(clocks.news(), Some(-FAR_US));
    }

    #[test]
    fn the_time_is_told_at_intervals() {
        let mut clocks = PeerClocks::default();
        let interval_us = micros(limits::ABOUT_INTERVAL);
        let told = [7, 8, 6 + interval_us, 7 + interval_us].map(|now_us| clocks.is_due(now_us));
        assert_eq!(told, [true, false, false, true]);
    }
}
