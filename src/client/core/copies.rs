//! Which writes are sent to a second server while the first one is heard.
//!
//! A server that answers PING and not a write may never answer it, or may have to wait as the whole
//! group does. One client cannot tell the one from the other before another server has answered. So
//! one write at a time is sent to a second server, too, once it has been owed for long; its copies
//! are one write to the group, which knows its identity. When the second one answers first, the
//! first one counts as unhealthy, and all writes that it owes go to others. When the first one
//! answers after all, it was only slow: it is well again, and for a time that grows no write is
//! sent twice. So a group that is slow does not get its writes twice.
//!
//! A pure state machine: the time comes from outside.

use std::time::Duration;

/// After a server that was only slow no write is sent twice for so long at first …
const CLIENT_COPY_PAUSE_MIN: Duration = Duration::from_secs(4);
/// … and at most, doubling in between: one write a minute is nothing to a group that is slow.
const CLIENT_COPY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Grants copies of writes, one at a time.
pub(super) struct Copies {
    is_one_under_way: bool,
    /// No write is sent twice before.
    not_before: Duration,
    pause: Duration,
    /// When a server that had been slow with a write last answered one.
    late_at: Duration,
    /// By server: the copy of a write that it owes was answered by another one, and it has answered
    /// no write since.
    overtaken: Vec<bool>,
}

impl Copies {
    pub(super) fn new(servers: usize) -> Copies {
        Copies {
            is_one_under_way: false,
            not_before: Duration::ZERO,
            pause: Duration::ZERO,
            late_at: Duration::ZERO,
            overtaken: vec![false; servers],
        }
    }

    /// Whether a write may be sent to a second server; the grant is taken then, until
    /// [`Copies::ended`].
    pub(super) fn grant(&mut self, now: Duration) -> bool {
        if self.is_one_under_way || now < self.not_before {
            return false;
        }
        self.is_one_under_way = true;
        true
    }

    /// The write that had the grant is over.
    pub(super) fn ended(&mut self) {
        assert!(self.is_one_under_way, "a grant ends that nobody has");
        self.is_one_under_way = false;
    }

    /// Another server has answered a write that this one owes.
    pub(super) fn overtaken(&mut self, server: usize) {
        self.overtaken[server] = true;
    }

    /// This server has answered a write. `is_late`: although it was slow with that. Returns whether
    /// it had been overtaken.
    pub(super) fn answered(&mut self, now: Duration, server: usize, is_late: bool) -> bool {
        let was_overtaken = std::mem::take(&mut self.overtaken[server]);
        if is_late || was_overtaken {
            let goes_on = now < self.late_at + 2 * CLIENT_COPY_PAUSE_MAX;
            let pause = if goes_on { 2 * self.pause } else { Duration::ZERO };
            self.pause = pause.clamp(CLIENT_COPY_PAUSE_MIN, CLIENT_COPY_PAUSE_MAX);
            (self.not_before, self.late_at) = (now + self.pause, now);
        }
        was_overtaken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_write_at_a_time_is_sent_twice() {
        let mut copies = Copies::new(2);
        assert!(copies.grant(SECOND));
        assert!(!copies.grant(SECOND));
        copies.ended();
        assert!(copies.grant(SECOND));
    }

    #[test]
    fn while_servers_answer_late_writes_are_sent_twice_ever_more_seldom() {
        for second_is_first in [false, true] {
            let mut copies = Copies::new(2);
            let mut granted = Vec::new();
            for second in 0..600 {
                let now = second * SECOND;
                if copies.grant(now) {
                    granted.push(second);
                    if second_is_first {
                        copies.overtaken(0);
                    }
                    copies.ended();
                    let was_overtaken = copies.answered(now, 0, !second_is_first);
                    assert_eq!(was_overtaken, second_is_first);
                }
            }
            assert!((4..=14).contains(&granted.len()), "{granted:?}");
        }
    }
}
