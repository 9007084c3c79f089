//! Which addresses a registry dials to see whether a peer answers there.
//!
//! Rule: whoever joins can name any address. So the registry dials only a few addresses in a period
//! for each origin (an IP address) and a few at once for all, and the origin that has most checks
//! under way gives way to one that has fewer. A port scan by way of a registry learns no more than
//! that.
//!
//! The module is pure: the caller dials, and passes the time.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits;

/// When too many addresses are being checked at once, one that has not answered within this time,
/// several round trips of a site, makes room for the next.
const ADDRESS_CHECK_YIELD_AFTER: Duration = Duration::from_millis(500);
/// IP addresses whose recent checks are counted. For one more the registry asks the peer to retry.
const ADDRESS_CHECK_ORIGINS_MAX: usize = 1024;

/// A check under way, and what waits for it.
#[derive(Debug)]
struct Check<T> {
    origin: IpAddr,
    begun: Instant,
    waiting: T,
}

/// The checks under way, each named by the connection that was dialled for it.
#[derive(Debug)]
pub(super) struct AddressChecks<K, T> {
    /// At most [`ADDRESS_CHECKS_MAX`](limits::ADDRESS_CHECKS_MAX) are under way at once.
    checks: HashMap<K, Check<T>>,
    /// When each check of the last [`ADDRESS_CHECKS_PERIOD`](limits::ADDRESS_CHECKS_PERIOD) began,
    /// by origin. At most [`ADDRESS_CHECK_ORIGINS_MAX`] origins.
    recent: HashMap<IpAddr, VecDeque<Instant>>,
}

/// Whether one more address may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckAdmission<K> {
    Refused,
    Admitted,
    /// Only if this check is given up.
    InPlaceOf(K),
}

impl<K: Copy + Eq + Hash, T> AddressChecks<K, T> {
    pub(super) fn new() -> AddressChecks<K, T> {
        AddressChecks { checks: HashMap::new(), recent: HashMap::new() }
    }

    /// Whether one more address may be dialled for an origin. If so, it is counted.
    pub(super) fn admit(&mut self, origin: IpAddr, now: Instant) -> CheckAdmission<K> {
        let is_recent =
            |at: &Instant| now.saturating_duration_since(*at) < limits::ADDRESS_CHECKS_PERIOD;
        self.recent.retain(|_, begun| {
            begun.retain(is_recent);
            !begun.is_empty()
        });
        let begun = self.recent.get(&origin).map_or(0, VecDeque::len);
        if begun >= limits::ADDRESS_CHECKS_PER_ORIGIN_MAX
            || begun == 0 && self.recent.len() >= ADDRESS_CHECK_ORIGINS_MAX
        {
            return CheckAdmission::Refused;
        }
        let admission = if self.checks.len() < limits::ADDRESS_CHECKS_MAX {
            CheckAdmission::Admitted
        } else {
            match self.giving_way(origin, now) {
                None => return CheckAdmission::Refused,
                Some(dialled) => CheckAdmission::InPlaceOf(dialled),
            }
        };
        self.recent.entry(origin).or_default().push_back(now);
        admission
    }

    /// The check that gives way to one of this origin: one of the origin that has most, if that has
    /// more than the other would; else the oldest, if it has waited longer than most addresses need
    /// to answer.
    fn giving_way(&self, origin: IpAddr, now: Instant) -> Option<K> {
        let mut origins: HashMap<IpAddr, usize> = HashMap::new();
        self.checks.values().for_each(|check| *origins.entry(check.origin).or_default() += 1);
        let own = origins.get(&origin).copied().unwrap_or_default();
        let (heaviest, most) = origins.into_iter().max_by_key(|(_, count)| *count)?;
        let mut alike = self.checks.iter().filter(|(_, check)| check.origin == heaviest);
        let of_most = alike.next().map(|(dialled, _)| *dialled).filter(|_| most > own + 1);
        let is_late = |check: &Check<T>| {
            now.saturating_duration_since(check.begun) >= ADDRESS_CHECK_YIELD_AFTER
        };
        let oldest = || {
            let late = self.checks.iter().filter(|(_, check)| is_late(check));
            late.min_by_key(|(_, check)| check.begun).map(|(dialled, _)| *dialled)
        };
        of_most.or_else(oldest)
    }

    /// An address was dialled for an origin.
    pub(super) fn begin(&mut self, dialled: K, origin: IpAddr, now: Instant, waiting: T) {
        let check = Check { origin, begun: now, waiting };
        let before = self.checks.insert(dialled, check);
        assert!(before.is_none(), "a connection is dialled for one check");
        let count = self.checks.len();
        assert!(count <= limits::ADDRESS_CHECKS_MAX, "{count} checks are under way");
    }

    /// What waits for a check that is under way.
    pub(super) fn get(&self, dialled: K) -> Option<&T> {
        self.checks.get(&dialled).map(|check| &check.waiting)
    }

    /// A check has ended, or is given up.
    pub(super) fn end(&mut self, dialled: K) -> Option<T> {
        self.checks.remove(&dialled).map(|check| check.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(number: usize) -> IpAddr {
        IpAddr::from([10, 0, (number / 250) as u8, (number % 250) as u8])
    }

    /// Begins checks for origins, as many as they say, and returns how many were admitted.
    fn fill(checks: &mut AddressChecks<usize, ()>, origins: &[usize], now: Instant) -> usize {
        let mut count = 0;
        for number in origins {
            if checks.admit(origin(*number), now) == CheckAdmission::Admitted {
                let dialled = 1000 * number + checks.checks.len();
                checks.begin(dialled, origin(*number), now, ());
                count += 1;
            }
        }
        count
    }

    #[test]
    fn an_origin_has_few_checks_in_a_period() {
        let (mut checks, now) = (AddressChecks::new(), Instant::now());
        for _ in 0..limits::ADDRESS_CHECKS_PER_ORIGIN_MAX {
            assert_eq!(checks.admit(origin(1), now), CheckAdmission::Admitted);
            checks.begin(1, origin(1), now, ());
            checks.end(1);
        }
        assert_eq!(checks.admit(origin(1), now), CheckAdmission::Refused);
        assert_eq!(checks.admit(origin(2), now), CheckAdmission::Admitted);
        let later = now + limits::ADDRESS_CHECKS_PERIOD;
        assert_eq!(checks.admit(origin(1), later), CheckAdmission::Admitted);
    }

    #[test]
    fn the_origin_with_most_checks_gives_way_and_an_old_check_to_anyone() {
        let (mut checks, now) = (AddressChecks::new(), Instant::now());
        // Each has one but for the first, which has two.
        let mut origins: Vec<usize> = (1..limits::ADDRESS_CHECKS_MAX).collect();
        origins.push(1);
        assert_eq!(fill(&mut checks, &origins, now), limits::ADDRESS_CHECKS_MAX);
        let CheckAdmission::InPlaceOf(dialled) = checks.admit(origin(500), now) else {
            panic!("the first gives way");
        };
        assert_eq!(dialled / 1000, 1);
        checks.end(dialled);
        checks.begin(500_000, origin(500), now, ());
        assert_eq!(checks.admit(origin(501), now), CheckAdmission::Refused, "all have one");
        let later = now + ADDRESS_CHECK_YIELD_AFTER;
        let admission = checks.admit(origin(502), later);
        assert!(matches!(admission, CheckAdmission::InPlaceOf(_)), "{admission:?}");
    }
}
