//! Which registries are dead, told by nothing but this one's own clock.
//!
//! A registry that lives writes its row again and again, and each time the row has another version. One
//! whose version has stayed the same for its whole time-out, while this registry could look, is dead. The
//! versions themselves are never compared with a clock, so that neither clocks that differ nor one that
//! jumps take a registry away.
//!
//! Pure: `now` comes from outside.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::rows::RegistryId;
use crate::model::Timestamp;

/// A registry's row as it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegistryHeartbeat {
    pub registry: RegistryId,
    pub version: Timestamp,
    /// How long the version may stay the same.
    pub timeout: Duration,
}

/// What the looks so far have shown.
#[derive(Debug, Default)]
pub(super) struct SilenceTracker {
    /// The version each had, and since when.
    seen: HashMap<RegistryId, (Timestamp, Instant)>,
    updated_at: Option<Instant>,
}

impl SilenceTracker {
    /// Takes in what a look at all rows has found, and says who is dead. After a pause longer than
    /// `gap_max` without a look everybody's time begins anew: perhaps they, too, could not reach the store.
    pub fn update(
        &mut self,
        found: &[RegistryHeartbeat],
        gap_max: Duration,
        now: Instant,
    ) -> Vec<RegistryId> {
        let was_blind =
            self.updated_at.is_some_and(|at| now.saturating_duration_since(at) > gap_max);
        self.updated_at = Some(now);
        let before = std::mem::take(&mut self.seen);
        let mut dead = Vec::new();
        for RegistryHeartbeat { registry, version, timeout } in found {
            let known = before.get(registry).filter(|(seen, _)| seen == version && !was_blind);
            let since = known.map_or(now, |(_, since)| *since);
            self.seen.insert(*registry, (*version, since));
            if now.saturating_duration_since(since) > *timeout {
                dead.push(*registry);
            }
        }
        dead
    }

    /// For how long a registry has been silent; `None` for one that no look has found.
    pub fn seen_silence(&self, registry: RegistryId, now: Instant) -> Option<Duration> {
        let (_, since) = self.seen.get(&registry)?;
        Some(now.saturating_duration_since(*since))
    }

    /// The same, of one that has not been looked at none.
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
            // The store's time may jump as it likes, even back.
            let version = if second % 2 == 0 { 1_000_000_000 + second } else { second } as i64;
            let dead = tracker.update(&[found(A, version), found(B, 7)], GAP, now);
            assert_eq!(dead, [], "second {second}");
        }
        let now = start + Duration::from_secs(11);
        assert_eq!(tracker.silence(A, now), Duration::from_secs(1));
        assert_eq!(tracker.update(&[found(A, 3), found(B, 7)], GAP, now), [B]);
    }

    #[test]
    fn time_without_a_look_does_not_count() {
        let (mut tracker, start) = (SilenceTracker::default(), Instant::now());
        assert_eq!(tracker.update(&[found(A, 1)], GAP, start), []);
        let later = start + Duration::from_secs(60);
        assert_eq!(tracker.update(&[found(A, 1)], GAP, later), [], "nobody could look meanwhile");
        for second in 1..=10 {
            let now = later + Duration::from_secs(second);
            assert_eq!(tracker.update(&[found(A, 1)], GAP, now), [], "second {second}");
        }
        assert_eq!(tracker.update(&[found(A, 1)], GAP, later + Duration::from_secs(11)), [A]);
    }

    #[test]
    fn one_that_is_gone_is_forgotten_and_begins_anew() {
        let (mut tracker, start) = (SilenceTracker::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(tracker.update(&[found(A, 1)], GAP, at(0)), []);
        assert_eq!(tracker.update(&[], GAP, at(4)), []);
        assert_eq!(tracker.update(&[found(A, 1)], GAP, at(8)), []);
        assert_eq!(tracker.silence(A, at(9)), Duration::from_secs(1));
        assert_eq!(tracker.update(&[found(A, 1)], GAP, at(12)), []);
    }
}
