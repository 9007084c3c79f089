//! The load generator: a [`Service`] with many clients, each with one request under way.
//!
//! Rule: what is measured is the time from sending a request to its answer, on one thread, of
//! requests that began and ended after the warm-up. What requests are made of is said by a
//! [`Protocol`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{Answer, Protocol};
use crate::limits;
use crate::net::{CloseReason, ConnectionId, EventLoop, LoopConfig, LoopError, Net, Service};

/// How often a load looks whether its time is over, and so the precision of its length.
const BENCH_TICK: Duration = Duration::from_millis(10);
/// Latencies beyond this, in nanoseconds, are recorded as this.
const BENCH_LATENCY_NS_MAX: u64 = 600_000_000_000;

/// An answer that takes longer than the whole time of a client's request does not come any more:
/// its connection is given up, or a load that is counted in requests would never end.
const BENCH_ANSWER_TIMEOUT: Duration = limits::CLIENT_REQUEST_TIMEOUT_DEFAULT;

/// The error code under which a request is counted whose connection ended, or was given up.
pub const CONNECTION_LOST: &str = "CONNECTION_LOST";
/// The error code under which a request is counted that got a frame which is no answer.
pub const NOT_UNDERSTOOD: &str = "NOT_UNDERSTOOD";

/// The load to generate: how much, where and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of clients, each with one request under way.
    pub clients: usize,
    /// Each client has a connection to each of these and draws one for every request.
    pub targets: Vec<SocketAddr>,
    /// When the load ends.
    pub until: Until,
    /// Seed of the random choices.
    pub seed: u64,
}

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After the warm-up, whose answers are forgotten, and this long. Requests still under way then
    /// are abandoned and not counted.
    Time {
        /// Time under load before anything is measured.
        warm_up: Duration,
        /// Time that is measured.
        measured: Duration,
    },
    /// When this many requests have been answered, with everything counted.
    Requests(u64),
}

/// The figures of a load.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Time from the first request that is measured to the end.
    pub elapsed: Duration,
    /// Nanoseconds from asking to being answered, of every request that was done or found empty.
    pub latencies_ns: Histogram<u64>,
    /// Number of those that found no such key.
    pub empty: u64,
    /// Number of requests that failed, by code.
    pub errors: BTreeMap<&'static str, u64>,
    /// Processor time of the generator's own thread meanwhile, where the system tells it. Close to
    /// `elapsed` means that the generator was the limit.
    pub generator_busy: Option<Duration>,
}

impl Measured {
    /// Successful requests a second.
    pub fn per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.latencies_ns.len() as f64 / seconds } else { 0.0 }
    }

    /// The latency that this share (0 to 1) of the successful requests did not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.latencies_ns.value_at_quantile(share))
    }
}

/// Why a load has no figures.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The clients could not all be connected.
    #[error(
        "{server} could not be reached by all clients: {reason}; is it running, and is the limit \
         on open files high enough?"
    )]
    Connect {
        /// The server that could not be reached.
        server: SocketAddr,
        /// The reason, as a clause.
        reason: String,
    },
    /// The event loop failed.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The histogram could not be made.
    #[error("latencies cannot be recorded: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
}

/// Puts `plan`'s load on its targets, in `protocol`, and measures.
///
/// # Errors
/// See [`LoadError`]. What goes wrong once all clients are connected is counted and not an error.
pub fn run(plan: &Plan, protocol: &mut dyn Protocol) -> Result<Measured, LoadError> {
    let config = LoopConfig {
        tick_interval: Some(BENCH_TICK),
        dialled_max: plan.clients.saturating_mul(plan.targets.len()),
        first_frame_bytes_max: limits::client_frame_bytes_max(limits::VALUE_BYTES_MAX),
        // Whatever is still under way at the end is of no interest.
        close_linger: Duration::ZERO,
        ..LoopConfig::default()
    };
    let event_loop = EventLoop::new(config, None)?;
    let latencies_ns = Histogram::new_with_bounds(1, BENCH_LATENCY_NS_MAX, 3)?;
    let mut load = Load {
        plan,
        protocol,
        random: SmallRng::seed_from_u64(plan.seed),
        clients: Vec::new(),
        owners: Owners::default(),
        stage: LoadStage::Connecting { missing: plan.clients * plan.targets.len() },
        left_to_ask: match plan.until {
            Until::Requests(requests) => requests,
            Until::Time { .. } => u64::MAX,
        },
        under_way: 0,
        frame: Vec::new(),
        busy_at_start: None,
        measured: Measured {
            elapsed: Duration::ZERO,
            latencies_ns,
            empty: 0,
            errors: BTreeMap::new(),
            generator_busy: None,
        },
        failed: None,
    };
    event_loop.run(&mut load)?;
    match load.failed {
        Some(error) => Err(error),
        None => Ok(load.measured),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LoadStage {
    Connecting { missing: usize },
    WarmUp { until: Instant },
    Measuring { since: Instant },
}

/// One of a client's connections.
#[derive(Clone, Copy)]
struct LoadConnection {
    id: ConnectionId,
    /// The greeting is done, so that requests may be sent.
    up: bool,
    /// It has ended, and is dialled again at the next tick.
    down: bool,
}

struct LoadClient {
    /// In the order of the plan's targets.
    connections: Vec<LoadConnection>,
    /// The connection on which an answer is awaited, and since when.
    waiting: Option<(usize, Instant)>,
}

/// The client and the target of each connection.
type Owners = std::collections::HashMap<ConnectionId, (usize, usize)>;

struct Load<'a> {
    plan: &'a Plan,
    protocol: &'a mut dyn Protocol,
    random: SmallRng,
    clients: Vec<LoadClient>,
    owners: Owners,
    stage: LoadStage,
    left_to_ask: u64,
    under_way: usize,
    /// The frame that is being made, kept for its memory.
    frame: Vec<u8>,
    busy_at_start: Option<Duration>,
    measured: Measured,
    failed: Option<LoadError>,
}

impl Load<'_> {
    fn dial(&mut self, net: &mut Net, client: usize, target: usize) -> LoadConnection {
        let id = net.dial(self.plan.targets[target]);
        self.owners.insert(id, (client, target));
        LoadConnection { id, up: false, down: false }
    }

    /// Notes that a connection can be used.
    fn connection_up(&mut self, net: &mut Net, client: usize, target: usize) {
        self.clients[client].connections[target].up = true;
        match &mut self.stage {
            LoadStage::Connecting { missing } => {
                *missing -= 1;
                if *missing == 0 {
                    self.begin(net);
                }
            }
            LoadStage::WarmUp { .. } | LoadStage::Measuring { .. } => self.ask(net, client),
        }
    }

    /// Notes that a connection is gone. While the clients are still being connected that ends the
    /// load.
    fn connection_down(&mut self, net: &mut Net, id: ConnectionId, reason: String) {
        let Some((client, target)) = self.owners.remove(&id) else { return };
        if matches!(self.stage, LoadStage::Connecting { .. }) {
            let server = self.plan.targets[target];
            self.failed.get_or_insert(LoadError::Connect { server, reason });
            return net.exit();
        }
        log::warn!("the connection to {} is lost: {reason}", self.plan.targets[target]);
        let state = &mut self.clients[client];
        state.connections[target] = LoadConnection { id, up: false, down: true };
        if state.waiting.is_some_and(|(line, _)| line == target) {
            state.waiting = None;
            self.under_way -= 1;
            self.count_error(CONNECTION_LOST);
            self.ask(net, client);
        }
    }

    fn count_error(&mut self, code: &'static str) {
        if matches!(self.stage, LoadStage::Measuring { .. }) {
            *self.measured.errors.entry(code).or_default() += 1;
        }
    }

    /// Begins the load when all clients are connected.
    fn begin(&mut self, net: &mut Net) {
        let now = Instant::now();
        match self.plan.until {
            Until::Time { warm_up, .. } if warm_up > Duration::ZERO => {
                self.stage = LoadStage::WarmUp { until: now + warm_up };
            }
            Until::Time { .. } | Until::Requests(_) => self.measure(now),
        }
        for client in 0..self.clients.len() {
            self.ask(net, client);
        }
        self.end_if_done(net);
    }

    fn measure(&mut self, now: Instant) {
        self.stage = LoadStage::Measuring { since: now };
        self.busy_at_start = thread_busy();
    }

    fn ask(&mut self, net: &mut Net, client: usize) {
        self.ask_at(net, client, Instant::now());
    }

    /// Sends the client's next request over a connection drawn from those that are up. Without any,
    /// the client asks when one comes up again.
    fn ask_at(&mut self, net: &mut Net, client: usize, now: Instant) {
        let state = &mut self.clients[client];
        if state.waiting.is_some() || self.left_to_ask == 0 {
            return;
        }
        let up = state.connections.iter().filter(|line| line.up).count();
        if up == 0 {
            return;
        }
        let chosen = if up == 1 { 0 } else { self.random.random_range(0..up) };
        let mut connections = state.connections.iter().enumerate().filter(|(_, line)| line.up);
        let Some((target, line)) = connections.nth(chosen) else { return };
        let id = line.id;
        self.frame.clear();
        self.protocol.request(client, &mut self.random, &mut self.frame);
        // If the connection is just being lost, `connection_down` will count the request.
        net.send(id, |out| out.extend_from_slice(&self.frame));
        state.waiting = Some((target, now));
        self.left_to_ask -= 1;
        self.under_way += 1;
    }

    fn answered(&mut self, net: &mut Net, client: usize, answer: Answer) {
        let now = Instant::now();
        let Some((_, since)) = self.clients[client].waiting.take() else { return };
        self.under_way -= 1;
        if matches!(self.stage, LoadStage::Measuring { .. }) {
            match answer {
                Answer::Done | Answer::Empty => {
                    let latency_ns = now.saturating_duration_since(since).as_nanos();
                    let latency_ns = u64::try_from(latency_ns).unwrap_or(u64::MAX);
                    self.measured.latencies_ns.saturating_record(latency_ns.max(1));
                    self.measured.empty += u64::from(answer == Answer::Empty);
                }
                Answer::Failed(code) => self.count_error(code),
            }
        }
        self.ask_at(net, client, now);
        self.end_if_done(net);
    }

    /// Ends a load that is counted in requests when all are answered.
    fn end_if_done(&mut self, net: &mut Net) {
        if self.left_to_ask == 0 && self.under_way == 0 {
            self.end(net, Instant::now());
        }
    }

    fn end(&mut self, net: &mut Net, now: Instant) {
        if let LoadStage::Measuring { since } = self.stage {
            self.measured.elapsed = now.saturating_duration_since(since);
            self.measured.generator_busy =
                thread_busy().zip(self.busy_at_start).map(|(end, start)| end.saturating_sub(start));
        }
        net.exit();
    }
}

impl Service for Load<'_> {
    fn on_start(&mut self, net: &mut Net) {
        for client in 0..self.plan.clients {
            let targets = 0..self.plan.targets.len();
            let connections = targets.map(|target| self.dial(net, client, target)).collect();
            self.clients.push(LoadClient { connections, waiting: None });
        }
    }

    fn on_accepted(&mut self, net: &mut Net, connection: ConnectionId, _peer: SocketAddr) {
        // There is no listener, so this does not happen.
        net.close(connection);
    }

    fn on_connected(&mut self, net: &mut Net, connection: ConnectionId) {
        let Some(&(client, target)) = self.owners.get(&connection) else { return };
        self.frame.clear();
        if self.protocol.greeting(&mut self.frame) {
            net.send(connection, |out| out.extend_from_slice(&self.frame));
        } else {
            net.greeted(connection);
            self.connection_up(net, client, target);
        }
    }

    fn on_dial_failed(&mut self, net: &mut Net, connection: ConnectionId, error: &io::Error) {
        self.connection_down(net, connection, error.to_string());
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        let Some(&(client, target)) = self.owners.get(&connection) else { return };
        if !self.clients[client].connections[target].up {
            match self.protocol.welcomed(frame) {
                Ok(()) => {
                    net.greeted(connection);
                    self.connection_up(net, client, target);
                }
                Err(reason) => {
                    self.connection_down(net, connection, reason);
                    net.close(connection);
                }
            }
            return;
        }
        let owes = self.clients[client].waiting.is_some_and(|(line, _)| line == target);
        match self.protocol.answer(client, frame) {
            Ok(answer) if owes => self.answered(net, client, answer),
            Ok(_) => log::warn!("{}: an answer that was not asked for", self.plan.targets[target]),
            Err(reason) => {
                log::warn!("{}: {reason}", self.plan.targets[target]);
                if owes {
                    self.answered(net, client, Answer::Failed(NOT_UNDERSTOOD));
                }
                net.close(connection);
            }
        }
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        self.connection_down(net, connection, reason.to_string());
    }

    fn on_tick(&mut self, net: &mut Net) {
        let now = Instant::now();
        match (self.stage, self.plan.until) {
            (LoadStage::WarmUp { until }, _) if now >= until => self.measure(now),
            (LoadStage::Measuring { since }, Until::Time { measured, .. })
                if now.saturating_duration_since(since) >= measured =>
            {
                return self.end(net, now);
            }
            _ => {}
        }
        for client in 0..self.clients.len() {
            if let Some((target, since)) = self.clients[client].waiting
                && now.saturating_duration_since(since) >= BENCH_ANSWER_TIMEOUT
            {
                let id = self.clients[client].connections[target].id;
                self.connection_down(net, id, format!("no answer in {BENCH_ANSWER_TIMEOUT:?}"));
                net.close(id);
            }
            for target in 0..self.plan.targets.len() {
                if self.clients[client].connections[target].down {
                    self.clients[client].connections[target] = self.dial(net, client, target);
                }
            }
        }
    }
}

/// Processor time of the calling thread, where the system keeps the account in its proc tree.
fn thread_busy() -> Option<Duration> {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds = account.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}
