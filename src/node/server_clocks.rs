//! Compares the clocks of the servers, so that a leader whose clock is far from the others' says
//! so, and does not go by it where they would not follow.
//!
//! Servers send each other the time about once a second. Timestamps keep their order whatever a
//! clock does. But users ask for the state as of a time, and while the leader's clock is wrong they
//! get the state of another one. And what a leader stamps must not be further ahead of the others'
//! clocks than they take ([`limits::TIMESTAMP_LEAP_MAX`]): an entry that they refuse stays at the
//! head of the leader's log, and nothing behind it is ever committed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Now;
use super::clock::micros;
use crate::limits;
use crate::model::NodeId;

/// Interval at which servers send each other their time and the feature level of their release: a
/// wrong clock and a new release are noticed within a second or two.
const ABOUT_INTERVAL: Duration = Duration::from_secs(1);

/// The clock of another server when it last sent its time.
#[derive(Clone, Copy, Debug)]
struct HeardClock {
    wall_us: i64,
    /// How far it was ahead of this server's.
    ahead_us: i64,
    /// When it came, by the monotonic clock.
    heard_us: u64,
}

/// The clocks of the other servers, as they last sent their time.
#[derive(Debug, Default)]
pub(super) struct ServerClocks {
    heard: BTreeMap<NodeId, HeardClock>,
    /// When this server last sent its time to the others, by the monotonic clock.
    sent_us: Option<u64>,
    /// The operator has been warned that this server's clock is far from the others'.
    is_reported: bool,
}

impl ServerClocks {
    /// Notes the time that another server has sent.
    pub fn heard(&mut self, server: NodeId, wall_us: i64, now: Now) {
        let (ahead_us, heard_us) = (wall_us.saturating_sub(now.wall_us), now.monotonic_us);
        self.heard.insert(server, HeardClock { wall_us, ahead_us, heard_us });
    }

    /// The time that the clocks of `count` other servers have reached by now, as far as that can be
    /// told without this server's own; `None` where fewer are known.
    pub fn reached_by(&self, count: usize, now: Now) -> Option<i64> {
        let clock_us = |heard: &HeardClock| {
            let passed_us = now.monotonic_us.saturating_sub(heard.heard_us);
            heard.wall_us.saturating_add_unsigned(passed_us)
        };
        let mut clocks: Vec<i64> = self.heard.values().map(clock_us).collect();
        clocks.sort_unstable();
        clocks.iter().rev().nth(count.checked_sub(1)?).copied()
    }

    /// The link to a server is down: its clock is not known any more.
    pub fn lost(&mut self, server: NodeId) {
        self.heard.remove(&server);
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
        let mut ahead: Vec<i64> = self.heard.values().map(|heard| heard.ahead_us).collect();
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

    fn at(wall_us: i64) -> Now {
        Now { monotonic_us: 0, wall_us }
    }

    #[test]
    fn what_other_clocks_have_reached_is_told_without_ones_own() {
        let mut clocks = ServerClocks::default();
        clocks.heard(NodeId(2), 1000, at(7));
        assert_eq!(clocks.reached_by(2, at(7)), None);
        clocks.heard(NodeId(3), 1500, at(i64::MAX));
        let later = Now { monotonic_us: 100, wall_us: i64::MIN };
        assert_eq!([1, 2, 3].map(|n| clocks.reached_by(n, later)), [Some(1600), Some(1100), None]);
    }

    #[test]
    fn a_clock_far_from_the_others_is_reported_once() {
        let mut clocks = ServerClocks::default();
        assert_eq!(clocks.take_warning(), None, "nobody is known");
        clocks.heard(NodeId(2), FAR_US, at(0));
        clocks.heard(NodeId(3), 5, at(0));
        assert_eq!(clocks.take_warning(), None, "one of two is wrong, and it is not this server");
        clocks.heard(NodeId(3), FAR_US + 1, at(0));
        assert_eq!(clocks.take_warning(), Some(FAR_US));
        assert_eq!((clocks.take_warning(), clocks.apart_us()), (None, Some(FAR_US)));
        clocks.heard(NodeId(2), i64::MIN, at(i64::MAX));
        clocks.lost(NodeId(3));
        assert_eq!((clocks.take_warning(), clocks.apart_us()), (None, Some(i64::MIN)));
        clocks.lost(NodeId(2));
        assert_eq!((clocks.take_warning(), clocks.apart_us()), (None, None));
        clocks.heard(NodeId(2), -FAR_US, at(0));
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
