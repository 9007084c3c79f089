//! The load as a state machine: who asks when, and what is counted. It takes events and the time
//! and performs no IO, so that minutes of load are tested in no time.
//!
//! Its driver owns the sockets: it tells of connections and answers, and after each event sends
//! what [`Generator::next`] gives until that gives nothing.
//!
//! Rules:
//! - A request is *due* when its schedule says so ([`Pace::Open`]), or when its slot is free and
//!   connected ([`Pace::Closed`]). Latency counts from then, whether it could be sent or not: that
//!   corrects coordinated omission.
//! - Of a closed load everything is counted that is answered in the measured time; of an open one,
//!   everything that is due in it. What is due and not answered at the end is counted with the time
//!   that it has waited, since leaving it out would hide a stall at the end.
//! - A slot has one request under way. Due requests are taken by slots in the order in which these
//!   became free.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::CreationError;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::Answer;
use super::tally::{Measured, Tally, WindowFigures};
use crate::limits;

/// An answer that takes longer than the whole time of a client's request does not come any more:
/// its connection is given up, or a load that is counted in requests would never end.
const BENCH_ANSWER_TIMEOUT: Duration = limits::CLIENT_REQUEST_TIMEOUT_DEFAULT;

/// The load to generate: how much, where and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of clients, numbered from 0.
    pub clients: usize,
    /// Requests that each client may have under way.
    pub pipeline: usize,
    /// Each client has a connection to each of these and draws one for every request.
    pub targets: Vec<SocketAddr>,
    /// When requests are due.
    pub pace: Pace,
    /// When the load ends.
    pub until: Until,
    /// Seed of the random choices.
    pub seed: u64,
}

/// When requests are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Whenever a client has a slot free.
    Closed,
    /// At equal intervals, so many a second, whatever becomes of those before.
    Open {
        /// Requests a second of all clients together, at least one.
        per_second: u64,
    },
}

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After the warm-up, which is not counted, and this long.
    Time {
        /// Time under load before anything is measured.
        warm_up: Duration,
        /// Time that is measured.
        measured: Duration,
    },
    /// When this many requests have been answered, with everything counted.
    Requests(u64),
}

/// A request to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub client: usize,
    /// The client's slot that waits for the answer.
    pub slot: usize,
    /// Number of the target, in the order of the plan.
    pub target: usize,
}

/// What passing time has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeneratorTurn {
    /// The load goes on.
    Running,
    /// From now on everything is counted.
    BeginsToMeasure,
    /// The load is over: nothing is asked any more.
    Over,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    target: usize,
    due: Instant,
    sent: Instant,
}

struct GeneratorClient {
    /// Which of its connections can be used.
    up: Vec<bool>,
    slots: Vec<Option<UnderWay>>,
    /// Free slots that found no connection to ask on.
    cut_off: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GeneratorStage {
    Connecting { missing: usize },
    WarmUp { until: Instant },
    Measuring { since: Instant },
    Over { since: Instant, end: Instant },
}

/// The load, as the module describes it.
pub struct Generator {
    pace: Pace,
    until: Until,
    stage: GeneratorStage,
    clients: Vec<GeneratorClient>,
    /// Free slots with a connection, by client and slot.
    idle: VecDeque<(usize, usize)>,
    /// When the load began, from which an open load's schedule counts.
    began: Instant,
    /// Requests that were asked so far; of an open load the number of the next one on the schedule.
    asked: u64,
    under_way: usize,
    tally: Tally,
}

impl Generator {
    /// A generator none of whose clients is connected.
    ///
    /// # Errors
    /// The histograms could not be made.
    pub fn new(plan: &Plan, now: Instant) -> Result<Generator, CreationError> {
        assert!(plan.clients > 0 && plan.pipeline > 0 && !plan.targets.is_empty(), "{plan:?}");
        assert!(!matches!(plan.pace, Pace::Open { per_second: 0 }), "{plan:?}");
        let client = || GeneratorClient {
            up: vec![false; plan.targets.len()],
            slots: vec![None; plan.pipeline],
            cut_off: (0..plan.pipeline).collect(),
        };
        Ok(Generator {
            pace: plan.pace,
            until: plan.until,
            stage: GeneratorStage::Connecting { missing: plan.clients * plan.targets.len() },
            clients: (0..plan.clients).map(|_| client()).collect(),
            idle: VecDeque::with_capacity(plan.clients * plan.pipeline),
            began: now,
            asked: 0,
            under_way: 0,
            tally: Tally::new(plan.pace != Pace::Closed, now)?,
        })
    }

    /// Whether the clients are still being connected for the first time.
    pub fn is_connecting(&self) -> bool {
        matches!(self.stage, GeneratorStage::Connecting { .. })
    }

    /// Whether the load ends after a number of requests, so that a turn after each answer tells.
    pub fn is_counted_in_requests(&self) -> bool {
        matches!(self.until, Until::Requests(_))
    }

    /// Notes that a connection can be used. The last one of all begins the load.
    pub fn connection_up(&mut self, client: usize, target: usize, now: Instant) -> GeneratorTurn {
        let state = &mut self.clients[client];
        assert!(!state.up[target], "client {client} is connected to target {target} twice");
        state.up[target] = true;
        self.idle.extend(state.cut_off.drain(..).map(|slot| (client, slot)));
        let GeneratorStage::Connecting { missing } = &mut self.stage else {
            return GeneratorTurn::Running;
        };
        *missing -= 1;
        if *missing > 0 {
            return GeneratorTurn::Running;
        }
        self.began = now;
        match self.until {
            Until::Time { warm_up, .. } if warm_up > Duration::ZERO => {
                self.stage = GeneratorStage::WarmUp { until: now + warm_up };
                GeneratorTurn::Running
            }
            Until::Time { .. } | Until::Requests(_) => {
                self.stage = GeneratorStage::Measuring { since: now };
                GeneratorTurn::BeginsToMeasure
            }
        }
    }

    /// Notes that a connection is gone: what was under way on it has failed with this code.
    pub fn connection_down(
        &mut self,
        client: usize,
        target: usize,
        code: &'static str,
        now: Instant,
    ) {
        self.clients[client].up[target] = false;
        for slot in 0..self.clients[client].slots.len() {
            if self.waits(client, slot, target) {
                self.answered(client, slot, &Answer::Failed(code), now);
            }
        }
    }

    /// Whether this slot waits for an answer from this target.
    pub fn waits(&self, client: usize, slot: usize, target: usize) -> bool {
        let slot = self.clients[client].slots.get(slot);
        slot.is_some_and(|slot| slot.is_some_and(|under_way| under_way.target == target))
    }

    /// The next request, if one is due and a slot can ask it.
    pub fn next(&mut self, now: Instant, random: &mut SmallRng) -> Option<Ask> {
        let due = self.next_due(now).filter(|due| *due <= now)?;
        loop {
            let (client, slot) = self.idle.pop_front()?;
            let state = &mut self.clients[client];
            let up = state.up.iter().filter(|up| **up).count();
            if up == 0 {
                state.cut_off.push(slot);
                continue;
            }
            let chosen = if up == 1 { 0 } else { random.random_range(0..up) };
            let mut usable = state.up.iter().enumerate().filter(|(_, up)| **up);
            let Some((target, _)) = usable.nth(chosen) else { continue };
            state.slots[slot] = Some(UnderWay { target, due, sent: now });
            self.asked += 1;
            self.under_way += 1;
            return Some(Ask { client, slot, target });
        }
    }

    /// When the next request is due, if there is to be one.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        match self.stage {
            GeneratorStage::WarmUp { .. } | GeneratorStage::Measuring { .. } => {}
            GeneratorStage::Connecting { .. } | GeneratorStage::Over { .. } => return None,
        }
        if let Until::Requests(requests) = self.until
            && self.asked >= requests
        {
            return None;
        }
        match self.pace {
            Pace::Closed => Some(now),
            Pace::Open { per_second } => Some(self.scheduled(per_second, self.asked)),
        }
    }

    /// When request `number` of the schedule is due.
    fn scheduled(&self, per_second: u64, number: u64) -> Instant {
        self.began + schedule_offset(per_second, number)
    }

    /// Number of requests of the schedule that are due before `time`.
    fn due_before(&self, per_second: u64, time: Instant) -> u64 {
        let nanoseconds = time.saturating_duration_since(self.began).as_nanos();
        let due = (nanoseconds * u128::from(per_second)).div_ceil(1_000_000_000);
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    /// Counts the answer to a slot's operation, and frees the slot, unless the operation has a
    /// second half.
    pub fn answered(&mut self, client: usize, slot: usize, answer: &Answer, now: Instant) {
        if *answer == Answer::Half {
            return;
        }
        let Some(under_way) = self.clients[client].slots[slot].take() else { return };
        self.under_way -= 1;
        let is_measured = match (self.stage, self.pace) {
            (GeneratorStage::Measuring { .. }, Pace::Closed) => true,
            (GeneratorStage::Measuring { since }, Pace::Open { .. }) => {
                let end = self.end_of_measuring(since);
                under_way.due >= since && end.is_none_or(|end| under_way.due < end)
            }
            _ => false,
        };
        let latency = now.saturating_duration_since(under_way.due);
        let service = now.saturating_duration_since(under_way.sent);
        self.tally.count(answer, is_measured, latency, service);
        self.idle.push_back((client, slot));
    }

    fn end_of_measuring(&self, since: Instant) -> Option<Instant> {
        match self.until {
            Until::Time { measured, .. } => Some(since + measured),
            Until::Requests(_) => None,
        }
    }

    /// Lets time pass: to be called when anything was answered, and every so often.
    pub fn turn(&mut self, now: Instant) -> GeneratorTurn {
        match self.stage {
            GeneratorStage::WarmUp { until } if now >= until => {
                self.stage = GeneratorStage::Measuring { since: now };
                GeneratorTurn::BeginsToMeasure
            }
            GeneratorStage::Measuring { since } => {
                let is_over = match self.until {
                    Until::Time { measured, .. } => now >= since + measured,
                    Until::Requests(requests) => self.asked >= requests && self.under_way == 0,
                };
                if is_over {
                    self.end(since, now);
                    return GeneratorTurn::Over;
                }
                GeneratorTurn::Running
            }
            GeneratorStage::Over { .. } => GeneratorTurn::Over,
            GeneratorStage::Connecting { .. } | GeneratorStage::WarmUp { .. } => {
                GeneratorTurn::Running
            }
        }
    }

    fn end(&mut self, since: Instant, now: Instant) {
        self.stage = GeneratorStage::Over { since, end: now };
        let Pace::Open { per_second } = self.pace else { return };
        // An open load is over when its schedule is, and not when that was noticed.
        let end = self.end_of_measuring(since).unwrap_or(now);
        self.stage = GeneratorStage::Over { since, end };
        let under_way = self.clients.iter().flat_map(|client| client.slots.iter().flatten());
        for request in under_way.filter(|request| request.due >= since && request.due < end) {
            self.tally.count_unanswered(now.saturating_duration_since(request.due));
        }
        let first = self.asked.max(self.due_before(per_second, since));
        let unsent = match self.until {
            Until::Time { .. } => self.due_before(per_second, end).saturating_sub(first),
            Until::Requests(_) => 0,
        };
        let began = self.began;
        self.tally.count_unsent(unsent, |number| {
            let due = began + schedule_offset(per_second, first + number);
            now.saturating_duration_since(due)
        });
    }

    /// The connections on which an answer is awaited for longer than any client would.
    pub fn overdue(&self, now: Instant) -> Vec<(usize, usize)> {
        let mut overdue = Vec::new();
        for (client, state) in self.clients.iter().enumerate() {
            for request in state.slots.iter().flatten() {
                let waited = now.saturating_duration_since(request.sent);
                if waited >= BENCH_ANSWER_TIMEOUT && !overdue.contains(&(client, request.target)) {
                    overdue.push((client, request.target));
                }
            }
        }
        overdue
    }

    /// The figures since the last call, for the live line.
    pub fn take_window(&mut self, now: Instant) -> WindowFigures {
        let behind = match self.pace {
            Pace::Open { per_second } if !self.is_connecting() => {
                self.due_before(per_second, now).saturating_sub(self.asked)
            }
            _ => 0,
        };
        self.tally.take_window(now, behind)
    }

    /// The figures of the load, or of as much of it as there was.
    pub fn finish(self) -> Measured {
        let elapsed = match self.stage {
            GeneratorStage::Over { since, end } => end.saturating_duration_since(since),
            _ => Duration::ZERO,
        };
        self.tally.finish(elapsed)
    }
}

/// How long after the beginning of a schedule its request `number`, from 0, is due.
fn schedule_offset(per_second: u64, number: u64) -> Duration {
    let nanoseconds = u128::from(number) * 1_000_000_000 / u128::from(per_second);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::super::OpKind;
    use super::*;

    const DONE: Answer = Answer::Done(OpKind::Update);
    const STEP: Duration = Duration::from_micros(50);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn plan(pace: Pace, warm_up: f64, measured: f64) -> Plan {
        Plan {
            clients: 1,
            pipeline: 1,
            targets: vec![([127, 0, 0, 1], 1).into()],
            pace,
            until: Until::Time { warm_up: seconds(warm_up), measured: seconds(measured) },
            seed: 1,
        }
    }

    /// A generator all of whose clients are connected, and when they were.
    fn connected(plan: &Plan) -> (Generator, Instant) {
        let now = Instant::now();
        let mut generator = Generator::new(plan, now).unwrap();
        for client in 0..plan.clients {
            for target in 0..plan.targets.len() {
                generator.connection_up(client, target, now);
            }
        }
        (generator, now)
    }

    /// The figures of a load in virtual time, at a server that answers a request when `answered`
    /// says, from when it was sent; both count from the beginning.
    fn measure(plan: &Plan, answered: impl Fn(Duration) -> Duration) -> Measured {
        let (mut generator, began) = connected(plan);
        let mut random = SmallRng::seed_from_u64(1);
        let mut answers = BTreeSet::new();
        let mut now = began;
        loop {
            while let Some(ask) = generator.next(now, &mut random) {
                let at = began + answered(now - began).max(now - began);
                answers.insert((at, ask.client, ask.slot));
            }
            if generator.turn(now) == GeneratorTurn::Over {
                return generator.finish();
            }
            match answers.first() {
                Some((at, ..)) if *at <= now + STEP => {
                    let (at, client, slot) = answers.pop_first().unwrap();
                    now = at;
                    generator.answered(client, slot, &DONE, now);
                }
                _ => now += STEP,
            }
        }
    }

    /// Answers in a tenth of a millisecond, but nothing between these two times.
    fn stalls(from: f64, to: f64) -> impl Fn(Duration) -> Duration {
        move |sent| {
            let stalled = sent >= seconds(from) && sent < seconds(to);
            if stalled { seconds(to) } else { sent + Duration::from_micros(100) }
        }
    }

    fn slower_than(measured: &Measured, latency: Duration) -> u64 {
        let latencies = &measured.latencies_ns;
        latencies.len() - latencies.count_between(0, latency.as_nanos() as u64)
    }

    fn quantile(measured: &Measured, share: f64) -> Duration {
        Duration::from_nanos(measured.latencies_ns.value_at_quantile(share))
    }

    #[test]
    fn an_open_load_counts_what_a_stall_does_to_those_who_would_have_asked() {
        let open = plan(Pace::Open { per_second: 1_000 }, 0.0, 10.0);
        let measured = measure(&open, stalls(4.0, 5.0));
        assert_eq!(measured.operations, 10_000);
        assert_eq!(measured.unanswered, 0);
        // A thousand were due in that second; the first waited for all of it, the last for what
        // it takes to answer those before it.
        let waited = slower_than(&measured, seconds(0.1));
        assert!((980..=1_020).contains(&waited), "{waited}");
        assert!(quantile(&measured, 1.0) >= seconds(0.999));
        let half = quantile(&measured, 0.95);
        assert!(half > seconds(0.4) && half < seconds(0.7), "{half:?}");
        // One alone was under way.
        let service = measured.service_ns.as_ref().unwrap();
        assert_eq!(service.len() - service.count_between(0, 1_000_000), 1);

        // A closed load meets the same stall once.
        let closed = plan(Pace::Closed, 0.0, 10.0);
        assert_eq!(slower_than(&measure(&closed, stalls(4.0, 5.0)), seconds(0.1)), 1);
    }

    #[test]
    fn a_stall_at_the_end_is_not_left_out() {
        let open = plan(Pace::Open { per_second: 1_000 }, 0.0, 10.0);
        let measured = measure(&open, stalls(9.0, 99.0));
        assert_eq!((measured.operations, measured.unanswered), (9_000, 1_000));
        let half = quantile(&measured, 0.95);
        assert!(half > seconds(0.4) && half < seconds(0.6), "{half:?}");
        assert_eq!(measured.latencies_ns.len(), 10_000);
        assert_eq!(measured.elapsed, seconds(10.0));
    }

    #[test]
    fn what_the_server_cannot_keep_up_with_waits_longer_and_longer() {
        // It answers 500 a second.
        let open = plan(Pace::Open { per_second: 1_000 }, 0.0, 4.0);
        let measured = measure(&open, |sent| sent + Duration::from_millis(2));
        assert!((1_990..=2_000).contains(&measured.operations), "{}", measured.operations);
        assert_eq!(measured.operations + measured.unanswered, 4_000);
        assert!(quantile(&measured, 1.0) >= seconds(1.9));
    }

    #[test]
    fn the_warm_up_is_not_counted() {
        let slow_at_first = |sent: Duration| {
            let service = if sent < seconds(1.0) { seconds(0.02) } else { seconds(0.0001) };
            sent + service
        };
        let closed = measure(&plan(Pace::Closed, 1.5, 2.0), slow_at_first);
        assert!(quantile(&closed, 1.0) < seconds(0.001));
        assert!(closed.operations > 9_000, "{}", closed.operations);

        let open = plan(Pace::Open { per_second: 40 }, 1.5, 2.0);
        let open = measure(&open, slow_at_first);
        assert_eq!(open.operations, 80);
        assert!(quantile(&open, 1.0) < seconds(0.001));
    }

    #[test]
    fn no_more_is_under_way_than_the_pipelines_hold() {
        let mut random = SmallRng::seed_from_u64(1);
        let plan = Plan { clients: 3, pipeline: 4, ..plan(Pace::Closed, 0.0, 1.0) };
        let (mut generator, now) = connected(&plan);
        let mut asked = BTreeSet::new();
        while let Some(ask) = generator.next(now, &mut random) {
            assert!(asked.insert((ask.client, ask.slot)), "{ask:?} is under way already");
        }
        assert_eq!(asked.len(), 12);
        generator.answered(1, 2, &DONE, now);
        let next = generator.next(now, &mut random).unwrap();
        assert_eq!((next.client, next.slot), (1, 2));
        assert_eq!(generator.next(now, &mut random), None);
    }

    #[test]
    fn a_lost_connection_fails_what_was_on_it_and_the_others_go_on() {
        let mut random = SmallRng::seed_from_u64(1);
        let targets = vec![([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()];
        let plan = Plan { targets, pipeline: 8, ..plan(Pace::Closed, 0.0, 1.0) };
        let (mut generator, now) = connected(&plan);
        let mut on_first = 0;
        while let Some(ask) = generator.next(now, &mut random) {
            on_first += u64::from(ask.target == 0);
        }
        generator.connection_down(0, 0, "LOST", now);
        for _ in 0..on_first {
            assert_eq!(generator.next(now, &mut random).unwrap().target, 1);
        }
        assert_eq!(generator.next(now, &mut random), None);

        // Without any connection nothing is asked, and everything again when there is one.
        generator.connection_down(0, 1, "LOST", now);
        assert_eq!(generator.next(now, &mut random), None);
        generator.connection_up(0, 1, now);
        let asked = std::iter::from_fn(|| generator.next(now, &mut random)).count();
        assert_eq!(asked, 8);

        assert_eq!(generator.turn(now + seconds(1.0)), GeneratorTurn::Over);
        assert_eq!(generator.next(now + seconds(1.0), &mut random), None);
        assert_eq!(generator.finish().errors["LOST"], 8 + on_first);
    }

    #[test]
    fn an_open_load_without_a_connection_knows_what_it_owes() {
        let mut random = SmallRng::seed_from_u64(1);
        let (mut generator, now) = connected(&plan(Pace::Open { per_second: 100 }, 0.0, 2.0));
        generator.connection_down(0, 0, "LOST", now);
        assert_eq!(generator.next(now + seconds(1.0), &mut random), None);
        assert_eq!(generator.take_window(now + seconds(1.0)).behind, 100);
        assert_eq!(generator.turn(now + seconds(2.0)), GeneratorTurn::Over);
        let measured = generator.finish();
        assert_eq!((measured.operations, measured.unanswered), (0, 200));
    }

    #[test]
    fn a_load_that_is_counted_ends_when_all_are_answered() {
        let mut random = SmallRng::seed_from_u64(1);
        let until = Until::Requests(5);
        let (mut generator, now) = connected(&Plan { until, ..plan(Pace::Closed, 0.0, 1.0) });
        for left in (0..5).rev() {
            let ask = generator.next(now, &mut random).unwrap();
            assert_eq!(generator.turn(now), GeneratorTurn::Running);
            generator.answered(ask.client, ask.slot, &DONE, now);
            assert_eq!(generator.turn(now) == GeneratorTurn::Over, left == 0);
        }
        assert_eq!(generator.next(now, &mut random), None);
        assert_eq!(generator.finish().operations, 5);
    }

    #[test]
    fn an_operation_with_two_halves_has_one_latency() {
        let mut random = SmallRng::seed_from_u64(1);
        let (mut generator, now) = connected(&plan(Pace::Closed, 0.0, 1.0));
        let ask = generator.next(now, &mut random).unwrap();
        generator.answered(ask.client, ask.slot, &Answer::Half, now + seconds(0.1));
        assert!(generator.waits(ask.client, ask.slot, ask.target));
        generator.answered(ask.client, ask.slot, &DONE, now + seconds(0.3));
        generator.turn(now + seconds(1.0));
        let measured = generator.finish();
        assert_eq!(measured.operations, 1);
        assert!(quantile(&measured, 0.5) >= seconds(0.299));
    }
}
