//! The log's clock, by which removals, versions and sessions grow old.
//!
//! Timestamps leap when a machine's clock does, and stand still while they are ahead of the
//! leader's clock. The age of a removal, a version or a session must not follow them: one leap
//! would end the grace period of recent removals, and destroy history. So every command carries the
//! time of another clock beside its timestamp. It counts the microseconds for which leaders have
//! led, by their monotonic clocks, each step of which is bounded (`node::clock`). It continues from
//! one leader to the next and never goes back.
//!
//! Rows contain timestamps. The clock's time at a timestamp is derived from *samples*, pairs of the
//! two, taken about every [`StateLimits::removal_grace_us`](crate::model::StateLimits) / 16 and
//! fewer for the distant past. Every answer errs on the side on which too much is kept.

use bytes::{Buf, BufMut, Bytes};

use crate::model::Timestamp;

/// Number of samples at which every second one of the older half is dropped, so that their distance
/// grows with their age.
const SAMPLES_MAX: usize = 256;

/// A time of the log's clock, and the last timestamp that was issued until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ClockSample {
    clock_us: u64,
    timestamp: Timestamp,
}

const SAMPLE_BYTES: usize = 16;

/// The samples of the log's clock, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClockSamples {
    samples: Vec<ClockSample>,
    spacing_us: u64,
}

impl ClockSamples {
    /// An upper bound of the clock's time when `timestamp` was issued.
    fn at_most(&self, timestamp: Timestamp) -> u64 {
        let after = self.samples.partition_point(|sample| sample.timestamp < timestamp);
        match (self.samples.get(after), self.samples.last()) {
            (Some(sample), _) => sample.clock_us,
            // If it had been later, there would be a sample.
            (None, Some(last)) => last.clock_us.saturating_add(self.spacing_us),
            (None, None) => self.spacing_us,
        }
    }

    /// A lower bound of the clock's time then.
    fn at_least(&self, timestamp: Timestamp) -> u64 {
        let after = self.samples.partition_point(|sample| sample.timestamp <= timestamp);
        after.checked_sub(1).map_or(0, |last| self.samples[last].clock_us)
    }

    /// Whether certainly more than `age_us` passed between two timestamps.
    pub fn are_apart(&self, earlier: Timestamp, later: Timestamp, age_us: u64) -> bool {
        self.at_least(later).saturating_sub(self.at_most(earlier)) > age_us
    }
}

/// The log's clock as of the last command that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogClock {
    now_us: u64,
    /// The timestamp of the last command.
    timestamp: Timestamp,
    samples: ClockSamples,
}

impl LogClock {
    /// A clock at zero, with samples for ages of `grace_us` and more.
    pub fn new(grace_us: u64) -> LogClock {
        let samples = ClockSamples { samples: Vec::new(), spacing_us: grace_us / 16 };
        LogClock { now_us: 0, timestamp: Timestamp::ZERO, samples }
    }

    /// Takes samples for ages of `grace_us` and more from now on.
    pub fn set_grace(&mut self, grace_us: u64) {
        self.samples.spacing_us = grace_us / 16;
    }

    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    pub fn samples(&self) -> &ClockSamples {
        &self.samples
    }

    /// Notes the times of a command that is applied. Returns whether a sample was taken.
    pub fn advance(&mut self, clock_us: u64, timestamp: Timestamp) -> bool {
        let before = ClockSample { clock_us: self.now_us, timestamp: self.timestamp };
        self.now_us = self.now_us.max(clock_us);
        self.timestamp = timestamp;
        let (now_us, spacing_us) = (self.now_us, self.samples.spacing_us);
        let is_apart =
            |last: &ClockSample| now_us > last.clock_us && now_us - last.clock_us >= spacing_us;
        let samples = &mut self.samples.samples;
        let is_due = samples.last().is_none_or(is_apart);
        if is_due {
            // A sample of the last command before a pause, so that its timestamp does not count as
            // one of the pause's end.
            if is_apart(&before)
                && samples.last().is_some_and(|last| before.clock_us > last.clock_us)
            {
                samples.push(before);
            }
            samples.push(ClockSample { clock_us: self.now_us, timestamp });
            if samples.len() > SAMPLES_MAX {
                let mut position = 0;
                samples.retain(|_| {
                    position += 1;
                    position > SAMPLES_MAX / 2 || position % 2 == 1
                });
            }
        }
        is_due
    }

    /// The greatest timestamp that was certainly issued when the clock was at `clock_us`.
    pub fn reached(&self, clock_us: u64) -> Timestamp {
        if clock_us >= self.now_us {
            return self.timestamp;
        }
        let samples = &self.samples.samples;
        let after = samples.partition_point(|sample| sample.clock_us <= clock_us);
        after.checked_sub(1).map_or(Timestamp::ZERO, |last| samples[last].timestamp)
    }

    /// The clock's time at which [`reached`](LogClock::reached) includes `timestamp`.
    pub fn when(&self, timestamp: Timestamp) -> u64 {
        let samples = &self.samples.samples;
        let after = samples.partition_point(|sample| sample.timestamp < timestamp);
        samples.get(after).map_or(self.now_us, |sample| sample.clock_us)
    }

    /// Encoding: `now u64`, then for each sample `clock u64 | timestamp i64`, little-endian.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(8 + self.samples.samples.len() * SAMPLE_BYTES);
        out.put_u64_le(self.now_us);
        for sample in &self.samples.samples {
            out.put_u64_le(sample.clock_us);
            out.put_i64_le(sample.timestamp.0);
        }
        out.into()
    }

    /// Decodes the clock; `timestamp` is that of the last command.
    pub fn decode(mut bytes: &[u8], timestamp: Timestamp, grace_us: u64) -> Option<LogClock> {
        let mut clock = LogClock { timestamp, ..LogClock::new(grace_us) };
        clock.now_us = bytes.try_get_u64_le().ok()?;
        let (samples, []) = bytes.as_chunks::<SAMPLE_BYTES>() else { return None };
        for sample in samples {
            let mut fields = &sample[..];
            let clock_us = fields.get_u64_le();
            let timestamp = Timestamp(fields.get_i64_le());
            clock.samples.samples.push(ClockSample { clock_us, timestamp });
        }
        let is_sorted = clock
            .samples
            .samples
            .is_sorted_by(|a, b| a.clock_us < b.clock_us && a.timestamp < b.timestamp);
        (is_sorted && clock.samples.samples.len() <= SAMPLES_MAX).then_some(clock)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However timestamps and clock run, and whatever samples are left, nothing is taken for
        /// older than it is.
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
            prop_assert!(clock.samples.samples.len() <= SAMPLES_MAX);
            let reached = clock.reached(asked);
            prop_assert!(all.iter().all(|(at, us)| *at > reached || *us <= asked));
            for (at, us) in all.iter().step_by(7) {
                prop_assert!(clock.reached(clock.when(*at)) >= *at, "it becomes due");
                let bounds = clock.samples.at_least(*at)..=clock.samples.at_most(*at);
                prop_assert!(bounds.contains(us));
            }
            let decoded = LogClock::decode(&clock.encode(), Timestamp(timestamp), grace_us);
            prop_assert_eq!(decoded, Some(clock));
        }
    }
}
