//! The log's own clock, by which things grow old.
//!
//! Timestamps leap when a machine's clock does, and stand still while they are ahead of the leader's. How old a
//! removal, a version or a session is must not follow them: one leap would end the grace of what was removed a
//! moment ago, and destroy history. So every command carries the time of another clock beside its timestamp. It
//! counts the microseconds that leaders have led, by their monotonic clocks, each step of which is bounded
//! (`node::clock`); it goes on from one leader to the next and never goes back.
//!
//! Rows hold timestamps. What the clock said at a timestamp is known from *marks*, pairs of the two, one about
//! every [`StateLimits::removal_grace_us`](crate::model::StateLimits) / 16 and fewer for the distant past.
//! Every answer errs to the side on which too much is kept.

use bytes::{Buf, BufMut, Bytes};

use crate::model::Timestamp;

/// Marks kept; of the older half of them every second one is dropped then, so that their distance grows with
/// their age.
const MARKS_MAX: usize = 256;

/// A time of the log's clock, and the last timestamp that was given out until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    clock_us: u64,
    timestamp: Timestamp,
}

const MARK_BYTES: usize = 16;

/// What is remembered of the log's clock, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    marks: Vec<Mark>,
    spacing_us: u64,
}

impl Marks {
    /// At least what the clock said when `timestamp` was given out.
    fn at_most(&self, timestamp: Timestamp) -> u64 {
        let after = self.marks.partition_point(|mark| mark.timestamp < timestamp);
        match (self.marks.get(after), self.marks.last()) {
            (Some(mark), _) => mark.clock_us,
            // Later, there would be a mark.
            (None, Some(last)) => last.clock_us.saturating_add(self.spacing_us),
            (None, None) => self.spacing_us,
        }
    }

    /// At most what the clock said then.
    fn at_least(&self, timestamp: Timestamp) -> u64 {
        let after = self.marks.partition_point(|mark| mark.timestamp <= timestamp);
        after.checked_sub(1).map_or(0, |last| self.marks[last].clock_us)
    }

    /// Whether more than `age_us` passed between two timestamps for certain.
    pub fn are_apart(&self, earlier: Timestamp, later: Timestamp, age_us: u64) -> bool {
        self.at_least(later).saturating_sub(self.at_most(earlier)) > age_us
    }
}

/// The log's clock as of the last command that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogClock {
    now_us: u64,
    /// Of the last command.
    timestamp: Timestamp,
    marks: Marks,
}

impl LogClock {
    /// A blank one, with marks for ages of `grace_us` and more.
    pub fn new(grace_us: u64) -> LogClock {
        let marks = Marks { marks: Vec::new(), spacing_us: grace_us / 16 };
        LogClock { now_us: 0, timestamp: Timestamp::ZERO, marks }
    }

    /// There are marks for ages of `grace_us` and more from here on.
    pub fn set_grace(&mut self, grace_us: u64) {
        self.marks.spacing_us = grace_us / 16;
    }

    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// A command is applied that was stamped so. Whether there is another mark.
    pub fn advance(&mut self, clock_us: u64, timestamp: Timestamp) -> bool {
        let before = Mark { clock_us: self.now_us, timestamp: self.timestamp };
        self.now_us = self.now_us.max(clock_us);
        self.timestamp = timestamp;
        let (now_us, spacing_us) = (self.now_us, self.marks.spacing_us);
        let is_apart = |last: &Mark| now_us > last.clock_us && now_us - last.clock_us >= spacing_us;
        let marks = &mut self.marks.marks;
        let is_due = marks.last().is_none_or(is_apart);
        if is_due {
            // The command before a pause is not to pass for one of its end.
            if is_apart(&before) && marks.last().is_some_and(|last| before.clock_us > last.clock_us)
            {
                marks.push(before);
            }
            marks.push(Mark { clock_us: self.now_us, timestamp });
            if marks.len() > MARKS_MAX {
                let mut position = 0;
                marks.retain(|_| {
                    position += 1;
                    position > MARKS_MAX / 2 || position % 2 == 1
                });
            }
        }
        is_due
    }

    /// The last timestamp that was given out for certain when the clock said `clock_us`.
    pub fn reached(&self, clock_us: u64) -> Timestamp {
        if clock_us >= self.now_us {
            return self.timestamp;
        }
        let marks = &self.marks.marks;
        let after = marks.partition_point(|mark| mark.clock_us <= clock_us);
        after.checked_sub(1).map_or(Timestamp::ZERO, |last| marks[last].timestamp)
    }

    /// When the clock has come so far, `timestamp` has been [`reached`](LogClock::reached).
    pub fn when(&self, timestamp: Timestamp) -> u64 {
        let marks = &self.marks.marks;
        let after = marks.partition_point(|mark| mark.timestamp < timestamp);
        marks.get(after).map_or(self.now_us, |mark| mark.clock_us)
    }

    /// `now u64`, then for each mark `clock u64 | timestamp i64`, little-endian.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(8 + self.marks.marks.len() * MARK_BYTES);
        out.put_u64_le(self.now_us);
        for mark in &self.marks.marks {
            out.put_u64_le(mark.clock_us);
            out.put_i64_le(mark.timestamp.0);
        }
        out.into()
    }

    /// `timestamp` is the last command's.
    pub fn decode(mut bytes: &[u8], timestamp: Timestamp, grace_us: u64) -> Option<LogClock> {
        let mut clock = LogClock { timestamp, ..LogClock::new(grace_us) };
        clock.now_us = bytes.try_get_u64_le().ok()?;
        let (marks, []) = bytes.as_chunks::<MARK_BYTES>() else { return None };
        for mark in marks {
            let mut fields = &mark[..];
            let clock_us = fields.get_u64_le();
            let timestamp = Timestamp(fields.get_i64_le());
            clock.marks.marks.push(Mark { clock_us, timestamp });
        }
        let is_sorted = clock
            .marks
            .marks
            .is_sorted_by(|a, b| a.clock_us < b.clock_us && a.timestamp < b.timestamp);
        (is_sorted && clock.marks.marks.len() <= MARKS_MAX).then_some(clock)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However timestamps and clock run, and whatever marks are left, nothing is taken for older than it is.
        #[test]
        fn nothing_is_older_than_it_is(
            steps in prop::collection::vec((1..400i64, 0..300u64), 1..2_000),
            (grace_us, asked) in (0..2_000u64, 0..200_000u64),
        ) {
            let mut clock = LogClock::new(grace_us);
            let mut all = Vec::new();
            let (mut timestamp, mut now_us) = (0, 0);
            for (step, passed_us) in steps {
                timestamp += step;
                now_us += passed_us;
                clock.advance(now_us, Timestamp(timestamp));
                all.push((Timestamp(timestamp), now_us));
            }
            prop_assert!(clock.marks.marks.len() <= MARKS_MAX);
            let reached = clock.reached(asked);
            prop_assert!(all.iter().all(|(at, us)| *at > reached || *us <= asked));
            for (at, us) in all.iter().step_by(7) {
                prop_assert!(clock.reached(clock.when(*at)) >= *at, "it becomes due");
                prop_assert!(clock.marks.at_least(*at) <= *us && *us <= clock.marks.at_most(*at));
            }
            let decoded = LogClock::decode(&clock.encode(), Timestamp(timestamp), grace_us);
            prop_assert_eq!(decoded, Some(clock));
        }
    }
}
