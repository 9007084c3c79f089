//! Who is served first when there is more to do than can be done at once.
//!
//! A gateway has two queues: of connections that have something to be read, and of calls that wait
//! for the group. In both, whoever has made the gateway work least lately goes first: of the
//! origins the one with the least work, and of its connections likewise. So a crowd that asks for
//! as much as it can waits for itself, and a call of somebody who asks for little, from the crowd's
//! own address too, waits for what is being done at that moment and for no queue. To dial is work,
//! too, and the more the more often an address does it, so that nobody gets ahead by coming again.
//!
//! Nobody starves who waits: work that is done counts, and whoever has waited has become the one
//! with the least. A call that is refused is work, too.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::limits;

/// Of who makes a gateway work, what a call counts beside its bytes, in bytes whose reading takes
/// as much of a processor …
pub(super) const GATEWAY_CALL_WORK_BYTES: usize = 4 * 1024;
/// … and a new connection, which also counts half of what its address has made the gateway work
/// lately: so whoever comes for the first time goes before a crowd that has been there for long,
/// and whoever comes again and again goes behind everybody who has asked for little …
const GATEWAY_DIAL_WORK_BYTES: usize = 16 * 1024;
/// … up to what the calls of a read of nothing but calls come to.
const GATEWAY_DIAL_WORK_BYTES_MAX: usize =
    GATEWAY_CALL_WORK_BYTES * limits::GATEWAY_CALLS_PER_CONNECTION_MAX as usize;

/// Work done lately, in kibibytes: of what was read, and [`GATEWAY_CALL_WORK_BYTES`] a
/// call. It halves every second, and for all meters at the same moment, so that which of two has
/// more changes by work only.
#[derive(Debug, Default)]
pub(super) struct Meter(
    /// The amount in the lower half; above it the second in which it was so much.
    AtomicU64,
);

impl Meter {
    pub(super) fn add(&self, bytes: usize) {
        let second = this_second();
        let more = bytes.div_ceil(1024) as u64;
        let added = |before| {
            let amount = (amount_in(before, second) + more).min(u64::from(u32::MAX));
            Some((u64::from(second) << 32) | amount)
        };
        // The closure always has a new value.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
    }

    fn amount(&self, second: u32) -> u64 {
        amount_in(self.0.load(Ordering::Relaxed), second)
    }

    /// The work made lately, in kibibytes: half of what it was a second ago, and what has been
    /// added since.
    pub(super) fn lately(&self) -> usize {
        usize::try_from(self.amount(this_second())).unwrap_or(usize::MAX)
    }
}

fn amount_in(meter: u64, second: u32) -> u64 {
    let passed = second.saturating_sub((meter >> 32) as u32);
    (meter & u64::from(u32::MAX)).checked_shr(passed).unwrap_or(0)
}

/// Seconds of the process's life.
fn this_second() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed().as_secs();
    u32::try_from(passed).unwrap_or(u32::MAX)
}

/// What one more connection counts of an origin that has made so many kibibytes of work lately.
fn dial_work_bytes(lately: usize) -> usize {
    let work = GATEWAY_DIAL_WORK_BYTES.saturating_add(lately.saturating_mul(1024) / 2);
    work.min(GATEWAY_DIAL_WORK_BYTES_MAX)
}

/// How much an origin will have made, in kibibytes, with one more connection.
pub(super) fn with_one_more(lately: usize) -> usize {
    lately + dial_work_bytes(lately).div_ceil(1024)
}

/// How much work a connection has made lately. Clones are the same connection's.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    origin: Arc<Meter>,
    own: Arc<Meter>,
}

impl Usage {
    /// That of a new connection of an origin. It has made some work by coming.
    pub(super) fn of(origin: Arc<Meter>) -> Usage {
        let work = dial_work_bytes(origin.lately());
        let usage = Usage { origin, own: Arc::default() };
        usage.add(work);
        usage
    }

    /// How much its origin has made lately, in kibibytes.
    pub(super) fn of_origin(&self) -> usize {
        self.origin.lately()
    }

    pub(super) fn add(&self, bytes: usize) {
        self.origin.add(bytes);
        self.own.add(bytes);
    }

    fn amounts(&self, second: u32) -> (u64, u64) {
        (self.origin.amount(second), self.own.amount(second))
    }
}

/// Those that wait, by the numbers under which they came.
#[derive(Debug)]
struct Waiting<T> {
    queue: BTreeMap<u64, (Usage, T)>,
    last: u64,
}

impl<T> Waiting<T> {
    fn new() -> Waiting<T> {
        Waiting { queue: BTreeMap::new(), last: 0 }
    }

    /// Whether somebody waits who has made less work than `usage`.
    fn has_lighter(&self, usage: &Usage) -> bool {
        let second = this_second();
        let amounts = usage.amounts(second);
        self.queue.values().any(|(other, _)| other.amounts(second) < amounts)
    }

    /// Takes out the one with the least work; of equals the one that came first.
    fn pop(&mut self) -> Option<T> {
        let second = this_second();
        let lightest = |(number, (usage, _)): (&u64, &(Usage, T))| (usage.amounts(second), *number);
        let (_, number) = self.queue.iter().map(lightest).min()?;
        self.queue.remove(&number).map(|(_, waiting)| waiting)
    }

    fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// What a call has at least of a read: the head of a frame, and a byte for each of its four fields
/// that no request is without.
const CALL_BYTES_MIN: usize = 13;
/// A read counts at most as one that brings all calls of a connection, which is what is kept for it
/// before anybody knows how much there is.
const READ_BYTES_MAX: usize = CALL_BYTES_MIN * limits::GATEWAY_CALLS_PER_CONNECTION_MAX as usize;

/// Turns to read, for so many reads that each bring all calls of a connection and whose calls have
/// not begun yet, and for more that bring less. Clones share everything.
///
/// While somebody waits and a turn is free, a task is under way that wakes those that wait, as many
/// as there are turns.
#[derive(Clone)]
pub(super) struct Reads(Arc<Mutex<ReadTurns>>);

struct ReadTurns {
    /// In bytes of what may be read, of which [`READ_BYTES_MAX`] are kept for each turn.
    free: usize,
    waiting: Waiting<Waker>,
}

impl Reads {
    pub(super) fn new(max: usize) -> Reads {
        let free = max * READ_BYTES_MAX;
        Reads(Arc::new(Mutex::new(ReadTurns { free, waiting: Waiting::new() })))
    }

    fn turns(&self) -> MutexGuard<'_, ReadTurns> {
        // Its methods leave it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a turn; when there is none, or others that wait come first, or what was read in the
    /// last one has not been dealt with, whoever asks gets a place among those that wait.
    pub(super) fn take(
        &self,
        place: &mut Option<u64>,
        usage: &Usage,
        is_ahead: &AtomicBool,
        waker: &Waker,
    ) -> bool {
        let mut turns = self.turns();
        if let Some(place) = place {
            turns.waiting.queue.remove(place);
        }
        let may_read = turns.free >= READ_BYTES_MAX && !is_ahead.load(Ordering::Relaxed);
        if may_read && !turns.waiting.has_lighter(usage) {
            turns.free -= READ_BYTES_MAX;
            *place = None;
            return true;
        }
        let number = *place.get_or_insert_with(|| turns.waiting.next_number());
        turns.waiting.queue.insert(number, (usage.clone(), waker.clone()));
        false
    }

    /// Nothing was read in a turn.
    pub(super) fn give_back(&self) {
        self.turns().free += READ_BYTES_MAX;
    }

    /// So much was read in a turn, which is over when the calls that it brings have begun: their
    /// tasks come into the runtime's one queue now, before the task of this goes to its end.
    pub(super) fn pass_on(&self, bytes: usize, is_ahead: &Arc<AtomicBool>) {
        let (reads, is_ahead) = (self.clone(), Arc::clone(is_ahead));
        is_ahead.store(true, Ordering::Relaxed);
        let kept = bytes.min(READ_BYTES_MAX);
        self.turns().free += READ_BYTES_MAX - kept;
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            is_ahead.store(false, Ordering::Relaxed);
            reads.turns().free += kept;
            // Whoever is woken may have no use for it: HTTP/2 does not read while it cannot write.
            while reads.wake_next() {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Wakes as many of those that wait as there are turns. Whether there are any of both.
    fn wake_next(&self) -> bool {
        let mut turns = self.turns();
        let count = turns.free / READ_BYTES_MAX;
        let next: Vec<Waker> = (0..count).map_while(|_| turns.waiting.pop()).collect();
        drop(turns);
        let is_any = !next.is_empty();
        next.into_iter().for_each(Waker::wake);
        is_any
    }

    pub(super) fn leave(&self, place: Option<u64>) {
        if let Some(place) = place {
            self.turns().waiting.queue.remove(&place);
        }
    }
}

/// The places of requests to the group that are under way. Clones share everything.
#[derive(Clone)]
pub(super) struct Requests(Arc<Mutex<RequestTurns>>);

struct RequestTurns {
    free: usize,
    waiting: Waiting<oneshot::Sender<RequestPlace>>,
}

/// One request's place, until it is dropped.
pub(super) struct RequestPlace(
    /// `None` once another has got it.
    Option<Requests>,
);

impl Requests {
    pub(super) fn new(max: usize) -> Requests {
        Requests(Arc::new(Mutex::new(RequestTurns { free: max, waiting: Waiting::new() })))
    }

    fn turns(&self) -> MutexGuard<'_, RequestTurns> {
        // Its methods leave it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
    pub(super) async fn take(&self, usage: &Usage) -> RequestPlace {
        loop {
            let (granted, _waiting) = {
                let mut turns = self.turns();
                if turns.free > 0 {
                    turns.free -= 1;
                    return RequestPlace(Some(self.clone()));
                }
                let (grant, granted) = oneshot::channel();
                let number = turns.waiting.next_number();
                turns.waiting.queue.insert(number, (usage.clone(), grant));
                (granted, WaitingCall { requests: self, number })
            };
            // Who waits is never forgotten, but to ask again is no harm.
            if let Ok(place) = granted.await {
                return place;
            }
        }
    }
}

/// A call that waits for a place, and leaves the queue when it is given up: nothing else counts
/// those that have been.
struct WaitingCall<'a> {
    requests: &'a Requests,
    number: u64,
}

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.requests.turns().waiting.queue.remove(&self.number);
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        let Some(requests) = self.0.take() else { return };
        loop {
            // Whoever is popped is dropped outside of the lock.
            let next = {
                let mut turns = requests.turns();
                let next = turns.waiting.pop();
                if next.is_none() {
                    turns.free += 1;
                }
                next
            };
            let Some(grant) = next else { return };
            match grant.send(RequestPlace(Some(requests.clone()))) {
                Ok(()) => return,
                // It has given up; the place is still this one's, which looks on.
                Err(mut unused) => unused.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    /// That of a connection which has read nothing.
    static FREE: AtomicBool = AtomicBool::new(false);

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn few_reads_are_ahead_of_their_calls_and_who_has_no_use_for_a_turn_keeps_none() {
        block_on(async {
            let reads = Reads::new(1);
            let usage = Usage::default();
            let begun = Arc::new(AtomicBool::new(false));
            let noop = Waker::noop();
            assert!(reads.take(&mut None, &usage, &FREE, noop));
            reads.pass_on(READ_BYTES_MAX, &Arc::default());
            let call = Arc::clone(&begun);
            tokio::spawn(async move { call.store(true, Ordering::Relaxed) });
            // Two wait, and the first of them has no use for its turn when it comes.
            let (mut useless, mut place) = (None, None);
            assert!(!reads.take(&mut useless, &usage, &FREE, noop));
            let turn = |cx: &mut std::task::Context<'_>| match reads.take(
                &mut place,
                &usage,
                &FREE,
                cx.waker(),
            ) {
                true => Poll::Ready(begun.load(Ordering::Relaxed)),
                false => Poll::Pending,
            };
            assert!(std::future::poll_fn(turn).await, "the call had begun before");
            reads.give_back();
            assert!(reads.turns().waiting.queue.is_empty());
        });
    }

    /// Of two origins, the first of which has done more, one light and one heavy connection each.
    fn four() -> [Usage; 4] {
        let [many, few] = [0; 2].map(|_| Arc::<Meter>::default());
        let all =
            [Usage::of(many.clone()), Usage::of(many), Usage::of(few.clone()), Usage::of(few)];
        for (usage, kib) in all.iter().zip([5000, 3000, 2000, 10]) {
            usage.add(kib * 1024);
        }
        all
    }

    #[test]
    fn who_has_made_the_least_work_reads_first() {
        block_on(async {
            let reads = Reads::new(1);
            let noop = Waker::noop();
            assert!(reads.take(&mut None, &Usage::default(), &FREE, noop));
            let order = Arc::new(Mutex::new(Vec::new()));
            let tasks = four().into_iter().enumerate().map(|(at, usage)| {
                let (reads, order) = (reads.clone(), Arc::clone(&order));
                tokio::spawn(async move {
                    let mut place = None;
                    let turn = |cx: &mut std::task::Context<'_>| match reads.take(
                        &mut place,
                        &usage,
                        &FREE,
                        cx.waker(),
                    ) {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    };
                    std::future::poll_fn(turn).await;
                    order.lock().unwrap().push(at);
                    reads.pass_on(READ_BYTES_MAX, &Arc::default());
                })
            });
            let tasks: Vec<_> = tasks.collect();
            tokio::task::yield_now().await;
            reads.pass_on(READ_BYTES_MAX, &Arc::default());
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*order.lock().unwrap(), [3, 2, 1, 0]);
        });
    }

    fn order_of(waiting: [(&'static str, Usage); 3]) -> Vec<&'static str> {
        let mut queue = Waiting::new();
        for (name, usage) in waiting {
            let number = queue.next_number();
            queue.queue.insert(number, (usage, name));
        }
        std::iter::from_fn(|| queue.pop()).collect()
    }

    /// A crowd that had been there for seconds, and had much to be read, went before everybody who
    /// came: nobody was served for as long as it stayed.
    #[test]
    fn who_comes_goes_before_a_crowd_and_who_comes_again_and_again_behind_who_asks_for_little() {
        let little = Usage::of(Arc::default());
        little.add(10 * GATEWAY_CALL_WORK_BYTES);
        let one_of_a_crowd = Usage::of(Arc::default());
        one_of_a_crowd.add(100 * 1024);
        let new = Usage::of(Arc::default());
        let waiting = [("crowd", one_of_a_crowd), ("little", little.clone()), ("new", new)];
        assert_eq!(order_of(waiting), ["new", "little", "crowd"]);

        let origin = Arc::<Meter>::default();
        (0..20).for_each(|_| drop(Usage::of(Arc::clone(&origin))));
        let again = Usage::of(origin);
        let waiting = [("again", again), ("new", Usage::of(Arc::default())), ("little", little)];
        assert_eq!(order_of(waiting), ["new", "little", "again"]);
    }

    #[test]
    fn a_read_of_little_leaves_room_for_others_whose_calls_have_not_begun_either() {
        block_on(async {
            let (reads, usage, noop) = (Reads::new(2), Usage::default(), Waker::noop());
            let read = |bytes| match reads.take(&mut None, &usage, &FREE, noop) {
                true => {
                    reads.pass_on(bytes, &Arc::default());
                    true
                }
                false => false,
            };
            let calls = (0..).take_while(|_| read(CALL_BYTES_MIN)).count();
            assert_eq!(calls, limits::GATEWAY_CALLS_PER_CONNECTION_MAX as usize + 1);
        });
    }

    #[test]
    fn who_has_read_reads_on_when_that_has_been_dealt_with() {
        block_on(async {
            let reads = Reads::new(4);
            let (usage, is_ahead) = (Usage::default(), Arc::default());
            let mut place = None;
            assert!(reads.take(&mut place, &usage, &is_ahead, Waker::noop()));
            reads.pass_on(READ_BYTES_MAX, &is_ahead);
            assert!(!reads.take(&mut place, &usage, &is_ahead, Waker::noop()), "turns are free");
            let other = Usage::default();
            assert!(reads.take(&mut None, &other, &FREE, Waker::noop()), "others go on");
            let turn = |cx: &mut std::task::Context<'_>| match reads.take(
                &mut place,
                &usage,
                &is_ahead,
                cx.waker(),
            ) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            };
            std::future::poll_fn(turn).await;
        });
    }

    #[test]
    fn a_free_turn_is_not_taken_from_who_waits_and_has_made_less_work() {
        let reads = Reads::new(1);
        let noop = Waker::noop();
        let [heavy, light, ..] = four();
        assert!(reads.take(&mut None, &heavy, &FREE, noop));
        let (mut waiting, mut late) = (None, None);
        assert!(!reads.take(&mut waiting, &light, &FREE, noop));
        reads.give_back();
        assert!(!reads.take(&mut late, &heavy, &FREE, noop));
        assert!(reads.take(&mut waiting, &light, &FREE, noop));
        reads.give_back();
        assert!(reads.take(&mut late, &heavy, &FREE, noop));
    }

    #[test]
    fn requests_go_to_who_has_made_the_least_work_and_grants_are_not_lost() {
        block_on(async {
            let requests = Requests::new(1);
            let held = requests.take(&Usage::default()).await;
            let order = Arc::new(Mutex::new(Vec::new()));
            let tasks = four().into_iter().enumerate().map(|(at, usage)| {
                let (requests, order) = (requests.clone(), Arc::clone(&order));
                tokio::spawn(async move {
                    let _place = requests.take(&usage).await;
                    order.lock().unwrap().push(at);
                })
            });
            let tasks: Vec<_> = tasks.collect();
            tokio::task::yield_now().await;
            // One gives up while it waits, and one when the place is already its own.
            tasks[2].abort();
            tokio::task::yield_now().await;
            assert_eq!(
                requests.turns().waiting.queue.len(),
                3,
                "nobody else counts who has given up"
            );
            drop(held);
            tasks[3].abort();
            for task in tasks {
                let _ = task.await;
            }
            assert_eq!(*order.lock().unwrap(), [1, 0]);
            let turns = requests.turns();
            assert_eq!((turns.free, turns.waiting.queue.len()), (1, 0));
        });
    }

    #[test]
    fn work_fades_by_half_a_second_and_never_overflows() {
        let meter = Meter::default();
        meter.add(64 * 1024);
        let second = this_second();
        assert!((32..=64).contains(&meter.amount(second)));
        let at = (u64::from(7u32) << 32) | 64;
        assert_eq!([7, 8, 9, 70, 6].map(|second| amount_in(at, second)), [64, 32, 16, 0, 64]);
        (0..10).for_each(|_| meter.add(usize::MAX / 2));
        assert!(meter.amount(this_second()) <= u64::from(u32::MAX));
    }
}
