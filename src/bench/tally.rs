//! What a load counts: latencies by kind, failures by code, and a window for the live line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::{CreationError, Histogram};

use super::{Answer, OpKind};

/// Latencies beyond this, in nanoseconds, are recorded as this.
const BENCH_LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Decimal digits of a latency that are kept.
const LATENCY_DIGITS: u8 = 3;
/// Groups in which requests that nobody could send are recorded when an open load ends: each has
/// the latency of its oldest one, and there may be millions.
const UNSENT_GROUPS_MAX: u64 = 10_000;

/// The figures of one kind of operations.
#[derive(Clone, Debug)]
pub struct KindFigures {
    /// Which operations they are of.
    pub kind: OpKind,
    /// Nanoseconds, as of [`Measured::latencies_ns`].
    pub latencies_ns: Histogram<u64>,
}

/// The figures of a load.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Time from the first request that is measured to the end.
    pub elapsed: Duration,
    /// Number of operations that were done or found empty.
    pub operations: u64,
    /// Nanoseconds from when an operation was due to its answer. In a closed load it is due when it
    /// is sent. In an open one those of `unanswered` are among them, with the time that they had
    /// waited at the end.
    pub latencies_ns: Histogram<u64>,
    /// The same of those operations that were answered, by kind; no kind is there in vain.
    pub kinds: Vec<KindFigures>,
    /// Nanoseconds from when an operation was sent to its answer, of an open load.
    pub service_ns: Option<Histogram<u64>>,
    /// Number of operations that found no such key.
    pub empty: u64,
    /// Number of operations of an open load that were due and not answered at its end.
    pub unanswered: u64,
    /// Number of operations that failed, by code.
    pub errors: BTreeMap<&'static str, u64>,
    /// Processor time of the generator's own thread meanwhile, where the system tells it. Close to
    /// `elapsed` means that the generator was the limit.
    pub generator_busy: Option<Duration>,
}

impl Measured {
    /// Successful operations a second.
    pub fn per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.operations as f64 / seconds } else { 0.0 }
    }

    /// Number of operations that failed.
    pub fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The code with which most operations failed.
    pub fn most_frequent_error(&self) -> Option<&'static str> {
        self.errors.iter().max_by_key(|(_, count)| **count).map(|(code, _)| *code)
    }
}

/// The figures of the time since the window before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowFigures {
    /// Successful operations a second.
    pub operations_per_s: f64,
    /// Latency that half of them did not exceed.
    pub p50: Duration,
    /// Latency that 99 % did not exceed.
    pub p99: Duration,
    /// Number of operations that failed.
    pub failures: u64,
    /// Number of operations of an open load that are due and not sent.
    pub behind: u64,
}

/// The counters of a load that is under way.
pub(super) struct Tally {
    operations: u64,
    all: Histogram<u64>,
    kinds: [Option<Histogram<u64>>; OpKind::ALL.len()],
    service: Option<Histogram<u64>>,
    empty: u64,
    unanswered: u64,
    errors: BTreeMap<&'static str, u64>,
    window: Histogram<u64>,
    window_failures: u64,
    window_since: Instant,
}

fn histogram() -> Result<Histogram<u64>, CreationError> {
    Histogram::new_with_bounds(1, BENCH_LATENCY_NS_MAX, LATENCY_DIGITS)
}

fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1)
}

impl Tally {
    /// An empty one. `is_open` says whether to keep the time from sending apart.
    pub(super) fn new(is_open: bool, now: Instant) -> Result<Tally, CreationError> {
        Ok(Tally {
            operations: 0,
            all: histogram()?,
            kinds: [const { None }; OpKind::ALL.len()],
            service: if is_open { Some(histogram()?) } else { None },
            empty: 0,
            unanswered: 0,
            errors: BTreeMap::new(),
            window: histogram()?,
            window_failures: 0,
            window_since: now,
        })
    }

    /// Counts an answer in the window of the live line, and where it `is_measured`, for good.
    pub(super) fn count(
        &mut self,
        answer: &Answer,
        is_measured: bool,
        latency: Duration,
        service: Duration,
    ) {
        let (kind, is_empty) = match answer {
            Answer::Done(kind) => (*kind, false),
            Answer::Empty(kind) => (*kind, true),
            Answer::Failed(code) => {
                self.window_failures += 1;
                if is_measured {
                    *self.errors.entry(code).or_default() += 1;
                }
                return;
            }
            // An operation is counted when it is done.
            Answer::Half => return,
        };
        let latency_ns = nanoseconds(latency);
        self.window.saturating_record(latency_ns);
        if !is_measured {
            return;
        }
        self.operations += 1;
        self.empty += u64::from(is_empty);
        self.all.saturating_record(latency_ns);
        if let Some(service_ns) = &mut self.service {
            service_ns.saturating_record(nanoseconds(service));
        }
        // Made when the first one comes: of most kinds a load has none.
        let slot = &mut self.kinds[kind as usize];
        if slot.is_none() {
            *slot = Some(Histogram::new_from(&self.all));
        }
        if let Some(kind) = slot {
            kind.saturating_record(latency_ns);
        }
    }

    /// Counts a request of an open load that has waited so long and is not answered.
    pub(super) fn count_unanswered(&mut self, waited: Duration) {
        self.unanswered += 1;
        self.all.saturating_record(nanoseconds(waited));
    }

    /// Counts `requests` that were due and not sent: number n, from 0, has waited `waited(n)`.
    pub(super) fn count_unsent(&mut self, requests: u64, waited: impl Fn(u64) -> Duration) {
        self.unanswered += requests;
        let group = requests.div_ceil(UNSENT_GROUPS_MAX).max(1);
        let mut first = 0;
        while first < requests {
            let count = group.min(requests - first);
            self.all.saturating_record_n(nanoseconds(waited(first)), count);
            first += count;
        }
    }

    /// The figures since the last call, and an empty window.
    pub(super) fn take_window(&mut self, now: Instant, behind: u64) -> WindowFigures {
        let seconds = now.saturating_duration_since(self.window_since).as_secs_f64().max(1e-3);
        let at = |share: f64| Duration::from_nanos(self.window.value_at_quantile(share));
        let figures = WindowFigures {
            operations_per_s: self.window.len() as f64 / seconds,
            p50: at(0.5),
            p99: at(0.99),
            failures: self.window_failures,
            behind,
        };
        self.window.reset();
        self.window_failures = 0;
        self.window_since = now;
        figures
    }

    /// The figures of all that was measured in `elapsed`.
    pub(super) fn finish(self, elapsed: Duration) -> Measured {
        let kinds = OpKind::ALL.into_iter().zip(self.kinds);
        Measured {
            elapsed,
            operations: self.operations,
            latencies_ns: self.all,
            kinds: kinds
                .filter_map(|(kind, seen)| Some(KindFigures { kind, latencies_ns: seen? }))
                .collect(),
            service_ns: self.service,
            empty: self.empty,
            unanswered: self.unanswered,
            errors: self.errors,
            generator_busy: None,
        }
    }
}
