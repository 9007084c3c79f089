//! Which conditions that last go to the log, and when: at their beginning, at their end, and not
//! with every request in between. This part has no clock: it is given the time.

use std::time::{Duration, Instant};

use crate::limits;

/// How often the number of requests that were refused with `BUSY` is logged at most.
const BUSY_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A change of a condition, to be written to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogNews {
    /// The machine's clock is this much behind the newest version.
    ClockBehind(Duration),
    /// The machine's clock is no longer behind the newest version.
    ClockCaughtUp,
    /// Number of requests that were refused with `BUSY` since the last such line.
    Busy(u64),
    /// A read has waited for the disk for this long, so that others are refused.
    ReadsHang(Duration),
    /// No read hangs any more.
    ReadsGoOn,
}

/// What the log has been told of these conditions.
#[derive(Debug, Default)]
pub(super) struct LogWatch {
    clock_is_behind: bool,
    busy: u64,
    busy_said: Option<Instant>,
    reads_hang: bool,
}

impl LogWatch {
    /// Counts a request that was refused with `BUSY`.
    pub fn busy(&mut self) {
        self.busy += 1;
    }

    /// Takes in for how long a read has hung, if one does.
    pub fn look_at_reads(&mut self, hang: Option<Duration>) -> Option<LogNews> {
        let hung_before = std::mem::replace(&mut self.reads_hang, hang.is_some());
        match hang {
            Some(hang) if !hung_before => Some(LogNews::ReadsHang(hang)),
            None if hung_before => Some(LogNews::ReadsGoOn),
            _ => None,
        }
    }

    /// Compares the machine's clock `wall_us` with the newest version `newest_us`. A condition that
    /// begins is logged at once; refusals that go on, every [`BUSY_LOG_INTERVAL`].
    pub fn look(&mut self, now: Instant, wall_us: i64, newest_us: i64) -> Vec<LogNews> {
        let mut news = Vec::new();
        let behind = Duration::from_micros(newest_us.saturating_sub(wall_us).max(0) as u64);
        let is_behind = behind >= limits::CLOCK_BEHIND_WARNING;
        // Said again only after it has caught up for good, lest a clock at the edge fill the log.
        if is_behind && !self.clock_is_behind {
            self.clock_is_behind = true;
            news.push(LogNews::ClockBehind(behind));
        } else if behind.is_zero() && self.clock_is_behind {
            self.clock_is_behind = false;
            news.push(LogNews::ClockCaughtUp);
        }
        let quiet = |said: Instant| now.duration_since(said) < BUSY_LOG_INTERVAL;
        if self.busy > 0 && !self.busy_said.is_some_and(quiet) {
            news.push(LogNews::Busy(std::mem::take(&mut self.busy)));
            self.busy_said = Some(now);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;

    #[test]
    fn a_clock_that_jumps_back_is_told_once_and_so_is_its_end() {
        let (mut watch, now) = (LogWatch::default(), Instant::now());
        let mut look = |wall_us| watch.look(now, wall_us, HOUR_US);
        assert_eq!(look(HOUR_US - 1000), [], "versions are a little ahead under load");
        assert_eq!(look(0), [LogNews::ClockBehind(Duration::from_secs(3600))]);
        assert_eq!(look(1), []);
        assert_eq!(look(HOUR_US - 1), [], "not quite");
        assert_eq!(look(HOUR_US + 1), [LogNews::ClockCaughtUp]);
        assert_eq!(look(HOUR_US + 2), []);
        assert_eq!(look(i64::MIN), [LogNews::ClockBehind(Duration::from_micros(i64::MAX as u64))]);
    }

    #[test]
    fn a_disk_that_hangs_is_told_once_and_so_is_its_end() {
        let mut watch = LogWatch::default();
        assert_eq!(watch.look_at_reads(None), None);
        let hang = Duration::from_secs(5);
        assert_eq!(watch.look_at_reads(Some(hang)), Some(LogNews::ReadsHang(hang)));
        assert_eq!(watch.look_at_reads(Some(2 * hang)), None);
        assert_eq!(watch.look_at_reads(None), Some(LogNews::ReadsGoOn));
    }

    #[test]
    fn refusals_are_counted_and_told_at_intervals() {
        let (mut watch, began) = (LogWatch::default(), Instant::now());
        assert_eq!(watch.look(began, 0, 0), []);
        watch.busy();
        assert_eq!(watch.look(began, 0, 0), [LogNews::Busy(1)]);
        (0..500).for_each(|_| watch.busy());
        assert_eq!(watch.look(began + BUSY_LOG_INTERVAL / 2, 0, 0), []);
        watch.busy();
        assert_eq!(watch.look(began + BUSY_LOG_INTERVAL, 0, 0), [LogNews::Busy(501)]);
        assert_eq!(watch.look(began + 9 * BUSY_LOG_INTERVAL, 0, 0), []);
    }
}
