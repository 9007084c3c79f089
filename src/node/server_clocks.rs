//! Compares the clocks of the servers, so that a leader whose clock is far from the others' says
//! so.
//!
//! Servers send each other the time about once a second. Nothing is decided by it: timestamps keep
//! their order whatever a clock does. But users ask for the state as of a time, and while the
//! leader's clock is wrong they get the state of another one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::clock::micros;
use crate::limits;
use crate::model::NodeId;

/// Interval at which servers send each other their time and the feature level of their release: a
/// wrong clock and a new release are noticed within a second or two.
const ABOUT_INTERVAL: Duration = Duration::from_secs(1);

/// How far each other server's clock was ahead of this server's when it last sent its time.
#[derive(Debug, Default)]
pub(super) struct ServerClocks {
    ahead_us: BTreeMap<NodeId, i64>,
    /// When this server last sent its time to the others, by the monotonic clock.
    sent_us: Option<u64>,
    /// The operator has been warned that this server's clock is far from the others'.
    is_reported: bool,
}

impl ServerClocks {
    /// Notes the time that another server has sent, which came when this server's clock said
    /// `wall_us`.
    pub fn heard(&mut self, server: NodeId, server_wall_us: i64, wall_us: i64) {
        self.ahead_us.insert(server, server_wall_us.saturating_sub(wall_us));
    }

    /// The link to a server is down: its clock is not known any more.
    pub fn lost(&mut self, server: NodeId) {
        self.ahead_us.remove(&server);
    }

    /// Whether the time is to be sent to the others now; if so, takes it as sent.
    pub fn is_due(&mut self, now_us: u64) -> bool {
        let interval_us = micros(ABOUT_INTERVAL);
        let due = self.sent_us.is_none_or(|sent_us| now_us.saturating_sub(sent_us) >= interval_us);
        if due {
            self.sent_us = Some(now_us);
        }
        due
    }

    /// How far the others are ahead of this server, when that is more than
    /// [`limits::CLOCK_BEHIND_WARNING`]. Of two others the closer one counts, and of more the one
    /// in the middle: one wrong clock of another server says nothing about this one.
    pub fn apart_us(&self) -> Option<i64> {
        let mut ahead: Vec<i64> = self.ahead_us.values().copied().collect();
        ahead.sort_unstable_by_key(|ahead_us| ahead_us.unsigned_abs());
        let ahead_us = *ahead.get(ahead.len().checked_sub(1)? / 2)?;
        (ahead_us.unsigned_abs() > micros(limits::CLOCK_BEHIND_WARNING)).then_some(ahead_us)
    }

    /// The same as [`ServerClocks::apart_us`], but once each time that it becomes so.
    pub fn take_warning(&mut self) -> Option<i64> {
        let apart_us = self.apart_us();
        let was_reported = std::mem::replace(&mut self.is_reported, apart_us.is_some());
        apart_us.filter(|_| !was_reported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR_US: i64 = 3_600_000_000;

    #[test]
    fn a_clock_far_from_the_others_is_reported_once() {
        let mut clocks = ServerClocks::default();
        assert_eq!(clocks.take_warning(), None, "nobody is known");
        clocks.heard(NodeId(2), FAR_US, 0);
        clocks.heard(NodeId(3), 5, 0);
        assert_eq!(clocks.take_warning(), None, "one of two is wrong, and it is not this server");
        clocks.heard(NodeId(3), FAR_US + 1, 0);
        assert_eq!(clocks.take_warning(), Some(FAR_US));
        assert_eq!((clocks.take_warning(), clocks.apart_us()), (None, Some(FAR_US)));
        clocks.heard(NodeId(2), i64::MIN, i64::MAX);
        clocks.lost(NodeId(3));
        assert_eq!((clocks.take_warning(), clocks.apart_us()), (None, Some(i64::MIN)));
        clocks.lost(NodeId(2));
        assert_eq!((clocks.take_warning(), clocks.apart_us()), (None, None));
        clocks.heard(NodeId(2), -FAR_US, 0);
        assert_eq!(clocks.take_warning(), Some(-FAR_US));
    }

    #[test]
    fn the_time_is_sent_at_intervals() {
        let mut clocks = ServerClocks::default();
        let interval_us = micros(ABOUT_INTERVAL);
        let sent = [7, 8, 6 + interval_us, 7 + interval_us].map(|now_us| clocks.is_due(now_us));
        assert_eq!(sent, [true, false, false, true]);
    }
}
