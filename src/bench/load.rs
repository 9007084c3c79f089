//! The driver of a load over the event loop: it dials, sends what the [`Generator`] asks for, and
//! hands it what comes. What requests are made of is said by a [`Protocol`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::generator::{Ask, Generator, GeneratorTurn, Pace, Plan};
use super::live::LiveLine;
use super::tally::Measured;
use super::{Answer, Protocol};
use crate::limits;
use crate::net::{
    CloseReason, ConnectionId, EventLoop, LoopConfig, LoopError, Net, SendLimits, Service,
    WakeHandle,
};

/// How often a load looks whether its time is over, and so the precision of its length.
const BENCH_TICK: Duration = Duration::from_millis(10);
/// How long a client waits before it dials again a server that it has lost.
const BENCH_REDIAL_INTERVAL: Duration = Duration::from_millis(100);
/// How often the live line is written, and overdue answers are looked for.
const BENCH_WINDOW: Duration = Duration::from_secs(1);
/// The loop's own sleep is rounded up to a millisecond, which would be counted as latency of an
/// open load. So a thread wakes it when requests are due, at most this often: of higher rates
/// several are sent at once.
const PACER_INTERVAL_MIN: Duration = Duration::from_micros(100);

/// The error code under which a request is counted whose connection ended, or was given up.
pub const CONNECTION_LOST: &str = "CONNECTION_LOST";
/// The error code under which a request is counted that got a frame which is no answer.
pub const NOT_UNDERSTOOD: &str = "NOT_UNDERSTOOD";

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

/// Puts `plan`'s load on its targets, in `protocol`, and measures. `live` shows how it goes.
///
/// # Errors
/// See [`LoadError`]. What goes wrong once all clients are connected is counted and not an error.
pub fn run(
    plan: &Plan,
    protocol: &mut dyn Protocol,
    live: Option<&LiveLine>,
) -> Result<Measured, LoadError> {
    let frame_bytes_max = limits::client_frame_bytes_max(limits::VALUE_BYTES_MAX);
    let config = LoopConfig {
        tick_interval: Some(BENCH_TICK),
        dialled_max: plan.clients.saturating_mul(plan.targets.len()),
        first_frame_bytes_max: frame_bytes_max,
        // All that a client may have under way, so that no connection is closed for it.
        send_limits: SendLimits {
            pause_bytes: frame_bytes_max.saturating_mul(plan.pipeline),
            max_bytes: frame_bytes_max.saturating_mul(plan.pipeline),
        },
        // Whatever is still under way at the end is of no interest.
        close_linger: Duration::ZERO,
        ..LoopConfig::default()
    };
    let event_loop = EventLoop::new(config, None)?;
    let now = Instant::now();
    let mut load = Load {
        plan,
        protocol,
        generator: Generator::new(plan, now)?,
        random: SmallRng::seed_from_u64(plan.seed),
        live,
        window_ends: now + BENCH_WINDOW,
        lines: Vec::new(),
        owners: Owners::default(),
        is_lost: vec![false; plan.targets.len()],
        frame: Vec::new(),
        busy_at_start: None,
        busy: None,
        pacer: None,
        wake: event_loop.wake_handle(),
        failed: None,
    };
    let ran = event_loop.run(&mut load);
    if let Some(live) = live {
        live.clear();
    }
    ran?;
    match load.failed {
        Some(error) => Err(error),
        None => Ok(Measured { generator_busy: load.busy, ..load.generator.finish() }),
    }
}

/// Wakes the loop when requests of an open load are due. Dropping it ends its thread.
struct Pacer {
    is_over: Arc<AtomicBool>,
}

impl Pacer {
    fn start(per_second: u64, began: Instant, wake: WakeHandle) -> io::Result<Pacer> {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let interval = Duration::from_nanos(1_000_000_000 / per_second).max(PACER_INTERVAL_MIN);
        std::thread::Builder::new().name("pacer".to_owned()).spawn(move || {
            let mut next = began;
            while !over.load(Ordering::Relaxed) {
                let now = Instant::now();
                if next > now {
                    // Never longer than a tick, to see when it is over.
                    std::thread::sleep((next - now).min(BENCH_TICK));
                    continue;
                }
                wake.wake();
                // Those that were slept through are due at once, and were woken for just now.
                let passed = (now - next).as_nanos() / interval.as_nanos();
                next += interval * u32::try_from(passed + 1).unwrap_or(u32::MAX);
            }
        })?;
        Ok(Pacer { is_over })
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// One of a client's connections.
#[derive(Clone, Copy)]
struct LoadConnection {
    id: ConnectionId,
    /// The greeting is done, so that requests may be sent.
    up: bool,
    /// When to dial it again, if it has ended.
    redial_at: Option<Instant>,
}

/// The client and the target of each connection.
type Owners = HashMap<ConnectionId, (usize, usize)>;

struct Load<'a> {
    plan: &'a Plan,
    protocol: &'a mut dyn Protocol,
    generator: Generator,
    random: SmallRng,
    live: Option<&'a LiveLine>,
    window_ends: Instant,
    /// The connections of each client, in the order of the plan's targets.
    lines: Vec<Vec<LoadConnection>>,
    owners: Owners,
    /// Targets of whose loss the log has told, and that nobody has reached since.
    is_lost: Vec<bool>,
    /// The frame that is being made, kept for its memory.
    frame: Vec<u8>,
    busy_at_start: Option<Duration>,
    busy: Option<Duration>,
    pacer: Option<Pacer>,
    wake: WakeHandle,
    failed: Option<LoadError>,
}

impl Load<'_> {
    fn dial(&mut self, net: &mut Net, client: usize, target: usize) -> LoadConnection {
        let id = net.dial(self.plan.targets[target]);
        self.owners.insert(id, (client, target));
        LoadConnection { id, up: false, redial_at: None }
    }

    /// Notes that a connection can be used.
    fn connection_up(&mut self, net: &mut Net, client: usize, target: usize) {
        self.lines[client][target].up = true;
        self.is_lost[target] = false;
        let now = Instant::now();
        let was_connecting = self.generator.is_connecting();
        let turn = self.generator.connection_up(client, target, now);
        if was_connecting && !self.generator.is_connecting() {
            if let Pace::Open { per_second } = self.plan.pace {
                match Pacer::start(per_second, now, self.wake.clone()) {
                    Ok(pacer) => self.pacer = Some(pacer),
                    Err(error) => log::warn!("requests are sent on whole milliseconds: {error}"),
                }
            }
            // Only now, so that the first second of the live line is one of load.
            self.window_ends = now + BENCH_WINDOW;
            self.generator.take_window(now);
        }
        self.after(net, turn);
        self.send_due(net);
    }

    /// Notes that a connection is gone. While the clients are still being connected that ends the
    /// load.
    fn connection_down(
        &mut self,
        net: &mut Net,
        id: ConnectionId,
        code: &'static str,
        reason: String,
    ) {
        let Some((client, target)) = self.owners.remove(&id) else { return };
        let server = self.plan.targets[target];
        if self.generator.is_connecting() {
            self.failed.get_or_insert(LoadError::Connect { server, reason });
            return net.exit();
        }
        // Once for all clients, and not again each time that it cannot be dialled.
        if !std::mem::replace(&mut self.is_lost[target], true) {
            log::warn!("a connection to {server} is lost: {reason}");
        }
        let now = Instant::now();
        let redial_at = Some(now + BENCH_REDIAL_INTERVAL);
        self.lines[client][target] = LoadConnection { id, up: false, redial_at };
        self.generator.connection_down(client, target, code, now);
        self.send_due(net);
    }

    /// Sends every request that is due and can be asked.
    fn send_due(&mut self, net: &mut Net) {
        // Read once: a slot that is free now is asked for now.
        let now = Instant::now();
        while let Some(ask) = self.generator.next(now, &mut self.random) {
            self.send(net, ask);
        }
    }

    fn send(&mut self, net: &mut Net, Ask { client, slot, target }: Ask) {
        self.frame.clear();
        self.protocol.request(client, slot, &mut self.random, &mut self.frame);
        // If the connection is just being lost, `connection_down` will count the request.
        net.send(self.lines[client][target].id, |out| out.extend_from_slice(&self.frame));
    }

    /// Does what a turn of the generator asks for.
    fn after(&mut self, net: &mut Net, turn: GeneratorTurn) {
        match turn {
            GeneratorTurn::Running => {}
            GeneratorTurn::BeginsToMeasure => self.busy_at_start = thread_busy(),
            GeneratorTurn::Over => {
                let busy = thread_busy().zip(self.busy_at_start);
                self.busy = busy.map(|(end, start)| end.saturating_sub(start));
                self.pacer = None;
                net.exit();
            }
        }
    }

    /// Gives up connections on which nothing comes, and shows how it goes.
    fn end_window(&mut self, net: &mut Net, now: Instant) {
        for (client, target) in self.generator.overdue(now) {
            let id = self.lines[client][target].id;
            let reason = "an answer has not come in time".to_owned();
            self.connection_down(net, id, CONNECTION_LOST, reason);
            net.close(id);
        }
        self.window_ends = now + BENCH_WINDOW;
        let figures = self.generator.take_window(now);
        if let Some(live) = self.live {
            live.show(&figures);
        }
    }
}

impl Service for Load<'_> {
    fn on_start(&mut self, net: &mut Net) {
        for client in 0..self.plan.clients {
            let targets = 0..self.plan.targets.len();
            let lines = targets.map(|target| self.dial(net, client, target)).collect();
            self.lines.push(lines);
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
        self.connection_down(net, connection, CONNECTION_LOST, error.to_string());
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        let Some(&(client, target)) = self.owners.get(&connection) else { return };
        if !self.lines[client][target].up {
            match self.protocol.welcomed(frame) {
                Ok(()) => {
                    net.greeted(connection);
                    self.connection_up(net, client, target);
                }
                Err(reason) => {
                    self.connection_down(net, connection, CONNECTION_LOST, reason);
                    net.close(connection);
                }
            }
            return;
        }
        let (slot, answer) = match self.protocol.answer(client, frame) {
            Ok((slot, answer)) => (slot, answer),
            Err(reason) => {
                // Nobody knows whose answer it was to be: all of this connection are given up.
                self.connection_down(net, connection, NOT_UNDERSTOOD, reason);
                return net.close(connection);
            }
        };
        if !self.generator.waits(client, slot, target) {
            return log::warn!("{}: an answer nobody waits for", self.plan.targets[target]);
        }
        if answer == Answer::Half {
            return self.send(net, Ask { client, slot, target });
        }
        self.generator.answered(client, slot, &answer, Instant::now());
        self.send_due(net);
        if self.generator.is_counted_in_requests() {
            let turn = self.generator.turn(Instant::now());
            self.after(net, turn);
        }
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        self.connection_down(net, connection, CONNECTION_LOST, reason.to_string());
    }

    fn on_wake(&mut self, net: &mut Net) {
        self.send_due(net);
    }

    fn on_tick(&mut self, net: &mut Net) {
        let now = Instant::now();
        let turn = self.generator.turn(now);
        self.after(net, turn);
        if turn == GeneratorTurn::Over || self.generator.is_connecting() {
            return;
        }
        if now >= self.window_ends {
            self.end_window(net, now);
        }
        for client in 0..self.lines.len() {
            for target in 0..self.plan.targets.len() {
                if self.lines[client][target].redial_at.is_some_and(|at| now >= at) {
                    self.lines[client][target] = self.dial(net, client, target);
                }
            }
        }
        self.send_due(net);
    }
}

/// Processor time of the calling thread, where the system keeps the account in its proc tree.
fn thread_busy() -> Option<Duration> {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds = account.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}
