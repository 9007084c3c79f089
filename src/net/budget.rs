//! How much memory others may make a process hold, and which connections are closed when it is too
//! much.
//!
//! Every byte that the other side of a connection causes to be held is counted here, of three
//! kinds: *received* and not yet a whole frame, *queued* and not yet taken by the other side, and
//! *held* by requests that are under way (a decoded write that waits for a majority, a value that
//! is being read). Each is counted in three scopes: its connection, the connection's origin (the
//! other side's IP), and the process.
//!
//! What happens past a limit:
//!
//! - **A connection's own**: nothing more is read from it until it is less, so that its sender
//!   waits.
//! - **An origin's, or the process's**: nothing that would take more memory is read from anybody it
//!   concerns, and connections are closed, in the heaviest origin first, until a quarter of the
//!   limit is free again. Which ones: those of the most *byte-seconds*, what a connection has
//!   others hold times how long it has waited for a whole frame, or for its queued bytes to be
//!   taken. So a client that sends a large frame and is done, or asks for much and reads it,
//!   outlives one that keeps much or little for long; many connections do not help, nor does a byte
//!   now and then.
//! - **Requests** may hold half of each scope; one more is refused by whoever asks
//!   ([`MemoryBudget::try_hold`]). Closing a connection frees nothing of what its requests hold:
//!   the other half is what closing can free.
//!
//! An IPv6 origin is its first 64 bits, since whoever has one address has them all.
//!
//! There are no sockets and no clock here: `now` is given.

use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::connections::ConnectionId;
use super::map::ConnectionMap;
use crate::limits::{
    BUDGET_CONNECTION_BYTES_MAX, BUDGET_ORIGIN_BYTES_MAX, BUDGET_PROCESS_BYTES_MAX, origin_of,
};

/// The limits of the three scopes; [`Default`] takes them from [`limits`](crate::limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Bytes that one connection may make this process hold.
    pub connection_bytes_max: usize,
    /// Bytes that all connections of one origin may make it hold together.
    pub origin_bytes_max: usize,
    /// Bytes that all accepted connections may make it hold together.
    pub process_bytes_max: usize,
}

impl Default for BudgetLimits {
    fn default() -> BudgetLimits {
        BudgetLimits {
            connection_bytes_max: BUDGET_CONNECTION_BYTES_MAX,
            origin_bytes_max: BUDGET_ORIGIN_BYTES_MAX,
            process_bytes_max: BUDGET_PROCESS_BYTES_MAX,
        }
    }
}

/// A connection that is to be closed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Victim {
    pub id: ConnectionId,
    /// Bytes that closing it frees.
    pub bytes: usize,
    /// The limit that was passed: of its origin, or of the process.
    pub max: usize,
}

/// Bytes that closing a connection frees, and since when the oldest of them have been held.
#[derive(Clone, Copy, Debug, Default)]
struct AgedBytes {
    bytes: usize,
    since: Option<Instant>,
}

impl AgedBytes {
    /// Bytes times milliseconds. Less than a millisecond counts as one, so that of two that have
    /// just come the larger weighs more.
    fn byte_ms(&self, now: Instant) -> u128 {
        let age = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.bytes as u128 * (age.as_millis() + 1)
    }
}

#[derive(Debug)]
struct ConnectionAccount {
    origin: IpAddr,
    received: AgedBytes,
    queued: AgedBytes,
    held: usize,
    /// The connection is gone, and requests of it are still under way.
    is_closed: bool,
}

impl ConnectionAccount {
    fn freeable(&self) -> usize {
        self.received.bytes + self.queued.bytes
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct BudgetTotals {
    /// Received, queued and held bytes together.
    bytes: usize,
    held: usize,
    connections: usize,
}

/// The accounts of all accepted connections, by the rules of the module.
///
/// Invariants: an origin's sum is that of its accounts, and the process's that of all origins; an
/// origin without accounts is not there.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    limits: BudgetLimits,
    accounts: ConnectionMap<ConnectionAccount>,
    origins: HashMap<IpAddr, BudgetTotals>,
    process: BudgetTotals,
    /// Number of origins that are at or over their limit.
    origins_over: usize,
}

/// Connections are closed until no more than this is held, where `max` was reached.
fn low_water(max: usize) -> usize {
    max - max / 4
}

impl MemoryBudget {
    pub(super) fn new(limits: BudgetLimits) -> MemoryBudget {
        MemoryBudget {
            limits,
            accounts: ConnectionMap::default(),
            origins: HashMap::new(),
            process: BudgetTotals::default(),
            origins_over: 0,
        }
    }

    /// Opens the account of a connection that was accepted from `ip`.
    pub(super) fn open(&mut self, id: ConnectionId, ip: IpAddr) {
        let origin = origin_of(ip);
        let (received, queued) = (AgedBytes::default(), AgedBytes::default());
        let account = ConnectionAccount { origin, received, queued, held: 0, is_closed: false };
        self.accounts.insert(id, account);
        self.origins.entry(origin).or_default().connections += 1;
    }

    /// Closes the account: what was received and queued is free. What its requests hold counts
    /// until it is released.
    pub(super) fn close(&mut self, id: ConnectionId) {
        self.set_received(id, 0, None);
        self.set_queued(id, 0, None);
        if let Some(account) = self.accounts.get_mut(&id) {
            account.is_closed = true;
        }
        self.forget_if_settled(id);
    }

    /// Sets the bytes of memory that hold what was received from a connection, and since when its
    /// unfinished frame has been waited for.
    pub(super) fn set_received(&mut self, id: ConnectionId, bytes: usize, since: Option<Instant>) {
        let Some(account) = self.accounts.get_mut(&id) else { return };
        let before = std::mem::replace(&mut account.received, AgedBytes { bytes, since }).bytes;
        let origin = account.origin;
        self.change(origin, before, bytes, 0, 0);
    }

    /// Sets the bytes of memory that hold what is queued for a connection, and since when the
    /// oldest have been queued.
    pub(super) fn set_queued(&mut self, id: ConnectionId, bytes: usize, since: Option<Instant>) {
        let Some(account) = self.accounts.get_mut(&id) else { return };
        let before = std::mem::replace(&mut account.queued, AgedBytes { bytes, since }).bytes;
        let origin = account.origin;
        self.change(origin, before, bytes, 0, 0);
    }

    /// Charges what a request is about to hold, or answers `false` where that is more than half of
    /// one of the three scopes. What was charged is to be released, also when the connection has
    /// gone meanwhile.
    pub(super) fn try_hold(&mut self, id: ConnectionId, bytes: usize) -> bool {
        let Some(ConnectionAccount { origin, held, .. }) = self.accounts.get(&id) else {
            return false;
        };
        let of_origin = self.origins.get(origin).map_or(0, |sum| sum.held);
        let fits = held + bytes <= self.limits.connection_bytes_max / 2
            && of_origin + bytes <= self.limits.origin_bytes_max / 2
            && self.process.held + bytes <= self.limits.process_bytes_max / 2;
        if fits {
            self.hold(id, bytes);
        }
        fits
    }

    fn hold(&mut self, id: ConnectionId, bytes: usize) {
        let Some(account) = self.accounts.get_mut(&id) else { return };
        account.held += bytes;
        let origin = account.origin;
        self.change(origin, 0, bytes, 0, bytes);
    }

    /// Takes back a charge of [`MemoryBudget::try_hold`].
    pub(super) fn release(&mut self, id: ConnectionId, bytes: usize) {
        let Some(account) = self.accounts.get_mut(&id) else { return };
        debug_assert!(account.held >= bytes, "{bytes} of {account:?}");
        let bytes = bytes.min(account.held);
        account.held -= bytes;
        let origin = account.origin;
        self.change(origin, bytes, 0, bytes, 0);
        self.forget_if_settled(id);
    }

    /// Whether there is room for more of what a connection sends.
    pub(super) fn may_grow(&self, id: ConnectionId) -> bool {
        // The usual case, without looking anything up: all together hold less than one may.
        if self.process.bytes < self.limits.connection_bytes_max {
            return true;
        }
        let Some(account) = self.accounts.get(&id) else { return true };
        let of_origin = self.origins.get(&account.origin).map_or(0, |sum| sum.bytes);
        account.freeable() + account.held < self.limits.connection_bytes_max
            && of_origin < self.limits.origin_bytes_max
            && self.process.bytes < self.limits.process_bytes_max
    }

    /// Whether a limit of an origin or of the process is reached, so that connections have to be
    /// closed.
    pub(super) fn is_over(&self) -> bool {
        self.process.bytes >= self.limits.process_bytes_max || self.origins_over > 0
    }

    /// The connections to close, in this order, until a quarter of each limit that is reached is
    /// free.
    pub(super) fn victims(&self, now: Instant) -> Vec<Victim> {
        if !self.is_over() {
            return Vec::new();
        }
        // Of each origin, the least byte-seconds first, to be taken from the end.
        let mut by_origin: HashMap<IpAddr, Vec<(u128, ConnectionId, usize)>> = HashMap::new();
        for (id, account) in &self.accounts {
            if account.freeable() > 0 {
                let byte_ms = account.received.byte_ms(now) + account.queued.byte_ms(now);
                let candidates = by_origin.entry(account.origin).or_default();
                candidates.push((byte_ms, *id, account.freeable()));
            }
        }
        by_origin.values_mut().for_each(|candidates| candidates.sort_unstable());

        let mut victims = Vec::new();
        let mut heaviest: BinaryHeap<(usize, IpAddr)> = BinaryHeap::new();
        let mut process_bytes = self.process.bytes;
        for (origin, sum) in &self.origins {
            let mut bytes = sum.bytes;
            let max = self.limits.origin_bytes_max;
            if bytes >= max {
                while bytes > low_water(max)
                    && let Some((_, id, freed)) = by_origin.get_mut(origin).and_then(Vec::pop)
                {
                    victims.push(Victim { id, bytes: freed, max });
                    bytes -= freed;
                    process_bytes -= freed;
                }
            }
            heaviest.push((bytes, *origin));
        }
        let max = self.limits.process_bytes_max;
        if process_bytes >= max {
            while process_bytes > low_water(max)
                && let Some((bytes, origin)) = heaviest.pop()
            {
                let Some((_, id, freed)) = by_origin.get_mut(&origin).and_then(Vec::pop) else {
                    continue;
                };
                victims.push(Victim { id, bytes: freed, max });
                process_bytes -= freed;
                heaviest.push((bytes - freed, origin));
            }
        }
        victims
    }

    /// Bytes of all kinds that all accepted connections make this process hold.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn bytes(&self) -> usize {
        self.process.bytes
    }

    /// Takes `less` bytes away from the sums of an origin and the process and adds `more`;
    /// `less_held` and `held` are the parts of these that requests hold.
    fn change(&mut self, origin: IpAddr, less: usize, more: usize, less_held: usize, held: usize) {
        if less == more {
            return;
        }
        let Some(sum) = self.origins.get_mut(&origin) else { return };
        let max = self.limits.origin_bytes_max;
        self.origins_over -= usize::from(sum.bytes >= max);
        for sum in [&mut *sum, &mut self.process] {
            debug_assert!(sum.bytes >= less && sum.held >= less_held, "{less} of {sum:?}");
            sum.bytes = sum.bytes - less + more;
            sum.held = sum.held - less_held + held;
        }
        self.origins_over += usize::from(sum.bytes >= max);
    }

    fn forget_if_settled(&mut self, id: ConnectionId) {
        let settled = |account: &ConnectionAccount| account.is_closed && account.held == 0;
        if !self.accounts.get(&id).is_some_and(settled) {
            return;
        }
        let Some(ConnectionAccount { origin, .. }) = self.accounts.remove(&id) else { return };
        if let Some(sum) = self.origins.get_mut(&origin) {
            sum.connections -= 1;
            if sum.connections == 0 {
                debug_assert!(sum.bytes == 0 && sum.held == 0, "{sum:?}");
                self.origins.remove(&origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: BudgetLimits =
        BudgetLimits { connection_bytes_max: 400, origin_bytes_max: 600, process_bytes_max: 1_000 };

    fn id(n: u64) -> ConnectionId {
        ConnectionId::from_u64(n)
    }

    fn ip(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn at(start: Instant, ms: u64) -> Option<Instant> {
        Some(start + Duration::from_millis(ms))
    }

    fn gone(budget: &MemoryBudget, now: Option<Instant>) -> Vec<u64> {
        budget.victims(now.unwrap()).into_iter().map(|victim| victim.id.to_u64()).collect()
    }

    #[test]
    fn the_one_that_has_made_others_hold_most_for_longest_goes() {
        let start = Instant::now();
        let mut budget = MemoryBudget::new(LIMITS);
        (0..4).for_each(|n| budget.open(id(n), ip(1)));
        budget.set_received(id(0), 300, at(start, 990));
        budget.set_received(id(1), 100, at(start, 0));
        budget.set_queued(id(2), 150, at(start, 500));
        assert_eq!(gone(&budget, at(start, 1_000)), [0; 0], "there is room");
        budget.set_received(id(3), 100, at(start, 900));
        // 101,000 byte-milliseconds, 75,150, 10,100 and 3,300: the large one has only just come.
        assert_eq!(gone(&budget, at(start, 1_000)), [1, 2]);
        budget.close(id(1));
        assert!(!budget.is_over());
        assert_eq!(budget.bytes(), 550);
    }

    #[test]
    fn of_several_origins_the_heaviest_pays() {
        let start = Instant::now();
        let mut budget = MemoryBudget::new(LIMITS);
        for n in 0..5 {
            budget.open(id(n), ip(1));
            budget.set_received(id(n), 110, at(start, 900));
        }
        budget.open(id(9), ip(2));
        // It has stood for longer than all of them together.
        budget.set_received(id(9), 300, at(start, 0));
        assert_eq!(budget.victims(start).len(), 0);
        budget.open(id(8), ip(3));
        budget.set_queued(id(8), 150, at(start, 0));
        let victims = gone(&budget, at(start, 1_000));
        // 250 are to be free, and each frees 110; after the second the heaviest has 330 left.
        assert_eq!(victims.len(), 3);
        assert!(victims.iter().all(|n| *n < 5), "{victims:?}");
    }

    #[test]
    fn requests_have_half_of_each_scope_and_outlive_their_connection() {
        let mut budget = MemoryBudget::new(LIMITS);
        (0..8).for_each(|n| budget.open(id(n), ip((n / 2) as u8)));
        assert!(budget.try_hold(id(0), 200));
        assert!(!budget.try_hold(id(0), 1), "half of the connection's");
        assert!(budget.try_hold(id(1), 100));
        assert!(!budget.try_hold(id(1), 1), "half of the origin's");
        assert!(budget.try_hold(id(2), 200));
        assert!(!budget.try_hold(id(4), 1), "half of the process's");
        budget.close(id(0));
        assert!(!budget.try_hold(id(1), 1), "its requests are still there");
        budget.release(id(0), 200);
        assert!(budget.try_hold(id(1), 100));
        assert!(!budget.try_hold(id(0), 1), "it is gone");
        budget.close(id(1));
        budget.release(id(1), 200);
        assert!(!budget.origins.contains_key(&ip(0)));
        // Held bytes cannot be freed by closing, so nobody is closed for them.
        budget.hold(id(2), 800);
        assert!(budget.is_over() && gone(&budget, Some(Instant::now())).is_empty());
        assert!(!budget.may_grow(id(7)));
    }

    #[test]
    fn a_connection_over_its_own_limit_is_held_back_and_nobody_else() {
        let mut budget = MemoryBudget::new(LIMITS);
        (0..2).for_each(|n| budget.open(id(n), ip(1)));
        budget.set_queued(id(0), 250, None);
        budget.hold(id(0), 150);
        assert!(!budget.may_grow(id(0)) && budget.may_grow(id(1)) && !budget.is_over());
        budget.release(id(0), 150);
        assert!(budget.may_grow(id(0)));
    }

    proptest! {
        /// Whatever happens, the sums are those of the accounts; who has to go frees enough if
        /// closing can; and nobody goes when nothing is over.
        #[test]
        fn sums_are_right_and_victims_free_enough(
            steps in prop::collection::vec((0u64..6, 0u8..6, 0usize..400, 0u64..1_000), 1..200),
        ) {
            let start = Instant::now();
            let mut budget = MemoryBudget::new(LIMITS);
            let mut held: HashMap<u64, usize> = HashMap::new();
            (0..6).for_each(|n| budget.open(id(n), ip((n % 3) as u8)));
            for (n, step, bytes, ms) in steps {
                match step {
                    0 => budget.set_received(id(n), bytes, at(start, ms)),
                    1 => budget.set_queued(id(n), bytes, at(start, ms)),
                    2 => *held.entry(n).or_default() +=
                        if budget.try_hold(id(n), bytes) { bytes } else { 0 },
                    3 => {
                        let held = held.entry(n).or_default();
                        budget.release(id(n), bytes.min(*held));
                        *held -= bytes.min(*held);
                    }
                    4 => {
                        budget.close(id(n));
                        budget.release(id(n), held.remove(&n).unwrap_or_default());
                        budget.open(id(n), ip((n % 3) as u8));
                    }
                    _ => {
                        let was_over = budget.is_over();
                        let victims = budget.victims(start + Duration::from_millis(ms));
                        prop_assert_eq!(was_over, !victims.is_empty());
                        for Victim { id: victim, bytes, .. } in victims {
                            prop_assert!(bytes > 0);
                            budget.close(victim);
                            let bytes = held.remove(&victim.to_u64()).unwrap_or_default();
                            budget.release(victim, bytes);
                            budget.open(victim, ip((victim.to_u64() % 3) as u8));
                        }
                        prop_assert!(!budget.is_over());
                    }
                }
                let sum = |of: &dyn Fn(&ConnectionAccount) -> bool| -> usize {
                    let accounts = budget.accounts.values().filter(|account| of(account));
                    accounts.map(|account| account.freeable() + account.held).sum()
                };
                prop_assert_eq!(budget.bytes(), sum(&|_| true));
                for (origin, of_origin) in &budget.origins {
                    prop_assert_eq!(of_origin.bytes, sum(&|account| account.origin == *origin));
                }
                let over = budget.origins.values().filter(|s| s.bytes >= LIMITS.origin_bytes_max);
                prop_assert_eq!(budget.origins_over, over.count());
                prop_assert_eq!(budget.process.held, held.values().sum::<usize>());
            }
        }
    }
}
