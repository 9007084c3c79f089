//! Tells which registries are dead, by nothing but this registry's own clock.
//!
//! A live registry rewrites its row regularly, so its row gets a new version each time. If the
//! version has stayed the same for the registry's whole time-out while this registry was able to
//! scan, the registry is dead.
//!
//! Rule: versions are only compared with each other and never with a clock, so neither clocks that
//! differ nor one that jumps make a registry seem dead.
//!
//! The module is pure: the caller passes the time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::rows::RegistryId;
use crate::model::Timestamp;

/// The row of a registry as a scan has found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegistryHeartbeat {
    pub registry: RegistryId,
    pub version: Timestamp,
    /// How long the version may stay the same.
    pub timeout: Duration,
}

/// What the scans so far have found.
#[derive(Debug, Default)]
pub(super) struct SilenceTracker {
    /// The version of each registry, and since when it has had it.
    seen: HashMap<RegistryId, (Timestamp, Instant)>,
    updated_at: Option<Instant>,
}

impl SilenceTracker {
    /// Records the rows of a scan and returns the registries that are dead. If the previous scan
    /// was longer ago than `gap_max`, every registry's time starts anew, since the others may not
    /// have reached the store either.
    pub fn update(
        &mut self,
        found: &[RegistryHeartbeat],
        gap_max: Duration,
        now: Instant,
    ) -> Vec<RegistryHeartbeat> {
        let was_blind =
            self.updated_at.is_some_and(|at| now.saturating_duration_since(at) > gap_max);
        self.updated_at = Some(now);
        let before = std::mem::take(&mut self.seen);
        let mut dead = Vec::new();
        for heartbeat in found {
            let RegistryHeartbeat { registry, version, timeout } = *heartbeat;
            let known = before.get(&registry).filter(|(seen, _)| *seen == version && !was_blind);
            let since = known.map_or(now, |(_, since)| *since);
            self.seen.insert(registry, (version, since));
            if now.saturating_duration_since(since) > timeout {
                dead.push(*heartbeat);
            }
        }
        dead
    }

    /// How long a registry has been silent; `None` if no scan has found it.
    pub fn seen_silence(&self, registry: RegistryId, now: Instant) -> Option<Duration> {
        let (_, since) = self.seen.get(&registry)?;
        Some(now.saturating_duration_since(*since))
    }

    /// How long a registry has been silent; zero if no scan has found it.
    pub fn silence(&self, registry: RegistryId, now: Instant) -> Duration {
        self.seen_silence(registry, now).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RegistryId = RegistryId(1);
    const B: RegistryId = RegistryId(2);
    const GAP: Duration = Duration::from_secs(5);

    fn found(registry: RegistryId, version: i64) -> RegistryHeartbeat {
        RegistryHeartbeat {
            registry,
            version: Timestamp(version),
            timeout: Duration::from_secs(10),
        }
    }

    #[test]
    fn only_a_version_that_stays_the_same_is_silence() {
        let (mut tracker, start) = (SilenceTracker::default(), Instant::now());
        for second in 0..=10 {
            let now = start + Duration::from_secs(second);
            // Versions may jump as they like, even back.
            let version = if second % 2 == 0 { 1_000_000_000 + second } else { second } as i64;
            let dead = tracker.update(&[found(A, version), found(B, 7)], GAP, now);
            assert_eq!(dead, [], "second {second}");
        }
        let now = start + Duration::from_secs(11);
        assert_eq!(tracker.silence(A, now), Duration::from_secs(1));
        assert_eq!(tracker.update(&[found(A, 3), found(B, 7)], GAP, now), [found(B, 7)]);
    }

    #[test]
    fn time_between_scans_that_were_missed_is_no_silence() {
        let (mut tracker, start) = (SilenceTracker::default(), Instant::now());
        assert_eq!(tracker.update(&[found(A, 1)], GAP, start), []);
        let later = start + Duration::from_secs(60);
        assert_eq!(tracker.update(&[found(A, 1)], GAP, later), [], "nobody could look meanwhile");
        for second in 1..=10 {
            let now = later + Duration::from_secs(second);
            assert_eq!(tracker.update(&[found(A, 1)], GAP, now), [], "second {second}");
        }
        assert_eq!(
            tracker.update(&[found(A, 1)], GAP, later + Duration::from_secs(11)),
            [found(A, 1)]
        );
    }

    #[test]
    fn a_row_that_vanishes_is_forgotten_and_starts_anew() {
        let (mut tracker, start) = (SilenceTracker::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(tracker.update(&[found(A, 1)], GAP, at(0)), []);
        assert_eq!(tracker.update(&[], GAP, at(4)), []);
        assert_eq!(tracker.update(&[found(A, 1)], GAP, at(8)), []);
        assert_eq!(tracker.silence(A, at(9)), Duration::from_secs(1));
        assert_eq!(tracker.update(&[found(A, 1)], GAP, at(12)), []);
    }
}
