//! The thread of a client: it drives the [`Core`] with an event loop, for the client and all its
//! clones.
//!
//! Whoever makes a call leaves it in the [`Inbox`] and wakes the loop; what has gathered there is
//! taken together, so that requests of many callers travel in one write. A thread that is going to
//! wait for the answer works with the core and the sockets itself for a moment if nobody else does,
//! and so saves a switch of threads. Another call that has ended by then is completed there, too;
//! what is reported to a console always comes by the client's own thread. That starts with the
//! first call. It ends when the last clone is gone, once the calls under way are over.
//!
//! A program with an executor of its own, as the gateway is, can do without the thread: then a task
//! gives the loop its turns ([`DrivenClient`]).
//!
//! Futures can be [spawned](Driver::spawn) on the thread, too: that is how a call is reported whose
//! caller does not wait. They must not block: everybody's answers come by this thread.
//!
//! The watches of the client have connections of their own on the same loop, and a state machine of
//! their own ([`Multiplexer`]), which the core knows nothing of. They need no second thread: what
//! the thread does for them is to take a frame apart and put it into a queue, whose bound is the
//! watch's credit; it never waits for a reader. Frames of one connection are taken in turn with
//! those of the others, so that a watch that is shown much does not hold up the answer to a call.
//!
//! What waits to be sent is bounded by the core, which is told how much that is, and by the number
//! of requests about watches under way. What comes in is one frame of each connection at most, an
//! answer for each call, and what watches have credit for.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::call::{CallFuture, Overdue, Promise, Question, as_driver, is_waiting};
use super::core::{CallSpec, Core, CoreConfig, Exchange, Loss, Output, Verdict};
use super::error::ClientError;
use super::greeting::{describe, is_end};
use super::inbox::{Command, Inbox, Open};
use super::sync::lock;
use super::transport::{self, FRAME_BYTES_MAX};
use super::watch::{LinkId, Multiplexer, MultiplexerOutput, WatchOrder, WatchTotals};
use crate::limits::{
    CLIENT_QUEUED_BYTES_MAX, CLIENT_QUEUED_BYTES_PAUSE, CLIENT_REQUEST_TIMEOUT_MAX,
    SERVER_FRAME_BYTES_MAX,
};
use crate::model::RequestId;
use crate::net::{
    CloseReason, ConnectionId, ConnectionMap, EventLoop, LocalPort, LoopConfig, Net, SendLimits,
    Service, SharedLoop,
};
#[cfg(feature = "grpc")]
use crate::net::{DrivenLoop, DrivenTurn, LoopError};
use crate::wire::codec;
use crate::wire::message::{Reply, Request};

/// The way to a client's thread, which is started when it is first needed.
pub(super) struct Driver {
    servers: Arc<[SocketAddr]>,
    /// The server that is in this process.
    local: Option<(SocketAddr, LocalPort)>,
    config: CoreConfig,
    clock: Clock,
    next_call: AtomicU64,
    watch_totals: Arc<WatchTotals>,
    /// Who leads, as far as somebody has said, for a thread that is still to be started.
    leader: Mutex<Option<usize>>,
    way: OnceLock<Way>,
    /// Held while the thread is being started.
    starting: Mutex<()>,
}

/// What makes a web server speak.
const LINE_END: &[u8] = b"\r\n\r\n";

/// What time it is for the core.
enum Clock {
    /// The system's monotonic clock, from here on.
    Monotonic { started: Instant },
    /// The time that a simulation sets, in microseconds.
    #[cfg(test)]
    Virtual { now_us: Arc<AtomicU64> },
}

/// How to reach a client's thread.
struct Way {
    inbox: Arc<Inbox>,
    /// The loop, with which a thread that waits for its answer works itself; none in the
    /// simulation.
    shared: Option<Arc<SharedLoop<ClientService>>>,
    /// The process that has the thread.
    process: u32,
}

impl Way {
    /// Leaves the beginning of a call, or sees to it at once: whoever waits for the answer sends
    /// the request without waking the client's thread, if nobody else is at work. What others make
    /// travels together, when the thread wakes.
    fn begin(&self, command: Command) -> Result<(), Command> {
        let mut command = Some(command);
        if is_waiting()
            && let Some(shared) = &self.shared
        {
            as_driver(|| shared.try_with(|service, net| service.begin(net, &mut command)));
        }
        command.map_or(Ok(()), |command| self.inbox.push(command))
    }
}

impl Driver {
    pub(super) fn new(
        servers: Arc<[SocketAddr]>,
        config: CoreConfig,
        local: Option<(SocketAddr, LocalPort)>,
    ) -> Driver {
        Driver {
            local,
            servers,
            config,
            clock: Clock::Monotonic { started: Instant::now() },
            next_call: AtomicU64::new(1),
            watch_totals: Arc::default(),
            leader: Mutex::default(),
            way: OnceLock::new(),
            starting: Mutex::new(()),
        }
    }

    /// One without a thread, and what is to be given turns in its place.
    ///
    /// # Errors
    /// The system refuses an event loop.
    #[cfg(feature = "grpc")]
    pub(super) fn driven(
        servers: Arc<[SocketAddr]>,
        config: CoreConfig,
        local: Option<(SocketAddr, LocalPort)>,
    ) -> Result<(Driver, DrivenClient), ClientError> {
        let event_loop = EventLoop::driven(loop_config());
        let event_loop = event_loop.map_err(|error| ClientError::Thread(error.to_string()))?;
        let inbox = Arc::new(Inbox::new(Some(event_loop.wake_handle())));
        let mut driver = Driver::new(servers, config, local);
        let driven = DrivenClient(DrivenLoop::new(event_loop, driver.service(&inbox)));
        driver.way = OnceLock::from(Way { inbox, shared: None, process: process::id() });
        Ok((driver, driven))
    }

    /// One without a thread: a simulation takes what is in the inbox, and tells the time.
    #[cfg(test)]
    pub(super) fn simulated(
        servers: Arc<[SocketAddr]>,
        config: CoreConfig,
        now_us: Arc<AtomicU64>,
    ) -> (Driver, Arc<Inbox>) {
        let inbox = Arc::new(Inbox::new(None));
        let (clock, next_call) = (Clock::Virtual { now_us }, AtomicU64::new(1));
        let (shared, process) = (None, process::id());
        let way = OnceLock::from(Way { inbox: Arc::clone(&inbox), shared, process });
        let (leader, starting) = (Mutex::default(), Mutex::new(()));
        let (watch_totals, local) = (Arc::default(), None);
        let driver = Driver {
            servers,
            local,
            config,
            clock,
            next_call,
            watch_totals,
            leader,
            way,
            starting,
        };
        (driver, inbox)
    }

    /// The time that the core knows: since the client was made.
    pub(super) fn now(&self) -> Duration {
        match &self.clock {
            Clock::Monotonic { .. } => self.time(Instant::now()),
            #[cfg(test)]
            Clock::Virtual { now_us } => Duration::from_micros(now_us.load(Ordering::Relaxed)),
        }
    }

    /// That time, at another moment.
    pub(super) fn time(&self, at: Instant) -> Duration {
        match &self.clock {
            Clock::Monotonic { started } => at.saturating_duration_since(*started),
            #[cfg(test)]
            Clock::Virtual { .. } => panic!("the machine's time {at:?} means nothing here"),
        }
    }

    /// When that is by the machine's clock; `None` in the simulation.
    fn instant(&self, at: Duration) -> Option<Instant> {
        match &self.clock {
            Clock::Monotonic { started } => started.checked_add(at),
            #[cfg(test)]
            Clock::Virtual { .. } => None,
        }
    }

    /// Begins a call, which ends by the deadline in `spec`.
    pub(super) fn call<T, C>(
        &self,
        spec: CallSpec,
        build: impl FnMut(Option<RequestId>) -> (Request, C) + Send + 'static,
        judge: impl FnMut(SocketAddr, C, Reply) -> Verdict<T> + Send + 'static,
    ) -> CallFuture<T>
    where
        T: Send + 'static,
        C: Send + 'static,
    {
        let (question, slot) = Question::new(build, judge);
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let exchange: Box<dyn Exchange> = Box::new(question);
        let overdue = Overdue::after(self.instant(spec.deadline), &spec);
        let inbox = match self.way() {
            // An exchange that cannot be left is dropped, which ends the call.
            Ok(way) => match way.begin(Command::Begin { id, spec, exchange }) {
                Ok(()) => Some(Arc::clone(&way.inbox)),
                Err(_) => None,
            },
            Err(error) => {
                exchange.end(Err(error));
                None
            }
        };
        CallFuture { slot, id, overdue, inbox }
    }

    /// Ends after a while, between half of `longest` and all of it, and by the deadline.
    pub(super) fn pause(&self, longest: Duration, deadline: Duration) -> CallFuture<()> {
        let (promise, slot) = Promise::new();
        let timeout = deadline.saturating_sub(self.now());
        let overdue = Overdue::of_pause(self.instant(deadline), timeout);
        match self.way() {
            // A promise that cannot be left is dropped, which ends the pause.
            Ok(way) => {
                drop(way.inbox.push(Command::Pause { longest: longest.min(timeout), promise }))
            }
            Err(error) => promise.keep(Err(error)),
        }
        CallFuture { slot, id: 0, overdue, inbox: None }
    }

    /// Has the client's thread poll a future until it is completed.
    ///
    /// # Errors
    /// There is no thread.
    pub(super) fn spawn(
        &self,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ClientError> {
        self.way()?.inbox.spawn(future)
    }

    /// What all watches of the client have together.
    pub(super) fn watch_totals(&self) -> &Arc<WatchTotals> {
        &self.watch_totals
    }

    /// Has the client's thread do something for a watch.
    ///
    /// # Errors
    /// There is no thread.
    pub(super) fn order(&self, order: WatchOrder) -> Result<(), ClientError> {
        let pushed = self.way()?.inbox.push(Command::Watch(order));
        pushed.map_err(|_| ClientError::Ended)
    }

    /// Says who leads, as far as somebody knows. A thread is not started for that.
    pub(super) fn hint_leader(&self, leader: Option<usize>) {
        *lock(&self.leader) = leader;
        // A child of the process that has the thread has nobody who reads it.
        if let Some(way) = self.way.get().filter(|way| way.process == process::id()) {
            // Of no use to a thread that has ended.
            let _ = way.inbox.push(Command::HintLeader(leader));
        }
    }

    fn way(&self) -> Result<&Way, ClientError> {
        if let Some(way) = self.way.get() {
            // Nobody answers in a child of the process that has the thread.
            return match way.process == process::id() {
                true => Ok(way),
                false => Err(ClientError::Forked(way.process)),
            };
        }
        let _starting = lock(&self.starting);
        match self.way.get() {
            Some(way) => Ok(way),
            None => {
                let way = self.start()?;
                Ok(self.way.get_or_init(|| way))
            }
        }
    }

    fn start(&self) -> Result<Way, ClientError> {
        let refused = |error: &dyn std::fmt::Display| ClientError::Thread(error.to_string());
        let event_loop = EventLoop::new(loop_config(), None).map_err(|error| refused(&error))?;
        let inbox = Arc::new(Inbox::new(Some(event_loop.wake_handle())));
        let service = self.service(&inbox);
        let shared = Arc::new(SharedLoop::new(event_loop, service));
        let running = Arc::clone(&shared);
        let run = move || {
            let ended = Ended(running);
            if let Err(error) = as_driver(|| ended.0.run()) {
                log::error!("a client's thread ends: {error}");
            }
        };
        let thread = thread::Builder::new().name("acervo-client".to_owned());
        thread.spawn(run).map_err(|error| refused(&error))?;
        Ok(Way { inbox, shared: Some(shared), process: process::id() })
    }

    /// What the event loop works for, which takes what is left in `inbox`.
    fn service(&self, inbox: &Arc<Inbox>) -> ClientService {
        let mut core = Core::new(Arc::clone(&self.servers), self.config);
        core.hint_leader(*lock(&self.leader));
        let started = match &self.clock {
            Clock::Monotonic { started } => *started,
            #[cfg(test)]
            Clock::Virtual { .. } => unreachable!("the simulation has no event loop"),
        };
        let totals = Arc::clone(&self.watch_totals);
        let (timing, seed) = (self.config.timing, self.config.seed);
        ClientService {
            core,
            watches: Multiplexer::new(Arc::clone(&self.servers), timing, seed, totals),
            watch_links: BTreeMap::new(),
            watch_places: ConnectionMap::default(),
            inbox: Open(Arc::clone(inbox)),
            servers: Arc::clone(&self.servers),
            local: self.local.clone(),
            started,
            links: self.servers.iter().map(|_| None).collect(),
            places: ConnectionMap::default(),
            commands: Vec::new(),
            alarm: None,
            is_leaving: false,
        }
    }
}

/// What a client does by turns that a task of somebody's executor gives it, instead of by a thread.
/// When it is dropped all calls of the client end, and all later ones are refused.
#[cfg(feature = "grpc")]
pub(crate) struct DrivenClient(DrivenLoop<ClientService>);

#[cfg(feature = "grpc")]
impl DrivenClient {
    /// A descriptor that is readable while something has come for it.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn descriptor(&self) -> io::Result<std::os::fd::OwnedFd> {
        self.0.descriptor()
    }

    /// Does what is due, without waiting: see [`DrivenLoop::turn`].
    ///
    /// # Errors
    /// The system's readiness notification failed.
    pub(crate) fn turn(
        &mut self,
        is_ready: bool,
        waker: &std::task::Waker,
    ) -> Result<DrivenTurn, LoopError> {
        as_driver(|| self.0.turn(is_ready, waker))
    }
}

#[cfg(feature = "grpc")]
impl Drop for DrivenClient {
    fn drop(&mut self) {
        self.0.close(ClientService::close);
    }
}

/// When the thread ends, whyever, so do all calls.
struct Ended(Arc<SharedLoop<ClientService>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.close(ClientService::close);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(way) = self.way.get() {
            way.inbox.leave();
        }
    }
}

/// All time-outs are the core's own. A frame may take as long as its server is heard.
fn loop_config() -> LoopConfig {
    let never = CLIENT_REQUEST_TIMEOUT_MAX;
    // More than the core lets wait on one connection.
    let max_bytes = CLIENT_QUEUED_BYTES_MAX + 2 * CLIENT_QUEUED_BYTES_PAUSE;
    LoopConfig {
        // Answers are read whatever waits to be sent: a server that waits for their being read
        // reads nothing more.
        send_limits: SendLimits { pause_bytes: max_bytes + 1, max_bytes },
        handshake_timeout: never,
        frame_timeout: never,
        write_stall_timeout: never,
        ..LoopConfig::default()
    }
}

/// What is noted of a server's connection, to tell when something moves on it.
struct LinkState {
    connection: ConnectionId,
    received_bytes: u64,
    /// Everything that was queued for it, how much of that the socket has taken, and how much was
    /// queued when it was last to be written to.
    queued_ever: u64,
    taken_ever: u64,
    due_ever: u64,
    /// How much had been queued when the core was last told how much waits.
    told_ever: u64,
    /// The socket did not take all that was due.
    is_stuck: bool,
}

impl LinkState {
    fn new(connection: ConnectionId) -> LinkState {
        LinkState {
            connection,
            received_bytes: 0,
            queued_ever: 0,
            taken_ever: 0,
            due_ever: 0,
            told_ever: 0,
            is_stuck: false,
        }
    }

    /// Whether something has come since this was asked last, be it less than a frame, or the server
    /// takes again what it did not take before: that its system takes what there was room for says
    /// nothing about the server.
    fn has_moved(&mut self, net: &Net) -> bool {
        let received_bytes = net.received_bytes(self.connection);
        let taken_ever = self.queued_ever - net.queued_bytes(self.connection) as u64;
        let has_received = received_bytes > self.received_bytes;
        let has_moved = has_received || (self.is_stuck && taken_ever > self.taken_ever);
        self.is_stuck = taken_ever < self.due_ever;
        (self.received_bytes, self.taken_ever) = (received_bytes, taken_ever);
        self.due_ever = self.queued_ever;
        has_moved
    }
}

/// What the event loop of a client works for.
struct ClientService {
    core: Core,
    watches: Multiplexer,
    /// The connections that carry watches, with the bytes that had come when that was last told.
    watch_links: BTreeMap<LinkId, (ConnectionId, u64)>,
    watch_places: ConnectionMap<LinkId>,
    inbox: Open,
    servers: Arc<[SocketAddr]>,
    local: Option<(SocketAddr, LocalPort)>,
    started: Instant,
    /// By server: its connection, made or being made, that the core knows.
    links: Vec<Option<LinkState>>,
    places: ConnectionMap<usize>,
    /// Taken from the inbox; kept for its capacity.
    commands: Vec<Command>,
    alarm: Option<Instant>,
    is_leaving: bool,
}

impl ClientService {
    fn now(&self, net: &Net) -> Duration {
        net.now().saturating_duration_since(self.started)
    }

    /// The server of a connection that the core knows.
    fn forget(&mut self, connection: ConnectionId) -> Option<usize> {
        let server = self.places.remove(&connection)?;
        self.links[server] = None;
        Some(server)
    }

    fn lost(&mut self, net: &Net, connection: ConnectionId, loss: Loss) {
        let now = self.now(net);
        if let Some(server) = self.forget(connection) {
            self.core.lost(now, server, loss);
        } else if let Some(link) = self.watch_places.remove(&connection) {
            self.watch_links.remove(&link);
            self.watches.lost(now, link, loss);
        }
    }

    /// Begins a call on the thread of whoever waits for it, unless others have come before.
    fn begin(&mut self, net: &mut Net, command: &mut Option<Command>) {
        let is_free = self.inbox.0.is_free();
        if let Some(command) = command.take_if(|_| is_free) {
            let now = self.now(net);
            command.perform(&mut self.core, &mut self.watches, now);
            self.perform_all(net);
        }
    }

    /// The thread has ended: nothing is left of what was under way.
    fn close(&mut self) {
        self.inbox.close();
        self.core.abandon();
        self.watches.abandon();
    }

    fn take_commands(&mut self, net: &mut Net) {
        let now = self.now(net);
        let mut commands = std::mem::take(&mut self.commands);
        self.is_leaving = self.inbox.0.take(&mut commands);
        let (core, watches) = (&mut self.core, &mut self.watches);
        commands.drain(..).for_each(|command| command.perform(core, watches, now));
        self.commands = commands;
        self.perform_all(net);
    }

    /// Begins to connect to a server: within the process, if it is there.
    fn dial(&self, net: &mut Net, server: usize) -> ConnectionId {
        let address = self.servers[server];
        match &self.local {
            Some((local, port)) if *local == address => net.dial_local(port, address),
            _ => net.dial(address),
        }
    }

    /// Does what the core wants, and the watches. After every input, so that nothing more is told
    /// of a connection that is to be closed.
    fn perform_all(&mut self, net: &mut Net) {
        while let Some(output) = self.core.take_output() {
            self.perform(net, output);
        }
        while let Some(output) = self.watches.take_output() {
            self.perform_for_watches(net, output);
        }
    }

    fn perform_for_watches(&mut self, net: &mut Net, output: MultiplexerOutput) {
        let of = |link| self.watch_links.get(&link).map(|(connection, _)| *connection);
        match output {
            MultiplexerOutput::Dial { link, server } => {
                let connection = self.dial(net, server);
                net.set_deadline(connection, None);
                self.watch_places.insert(connection, link);
                self.watch_links.insert(link, (connection, 0));
            }
            MultiplexerOutput::Send { link, message } => {
                let Some(connection) = of(link) else { return };
                let mut encoded = Ok(());
                net.send(connection, |out| encoded = transport::encode(&message, out));
                encoded.unwrap_or_else(|error| panic!("{message:?} is short: {error}"));
            }
            MultiplexerOutput::Greeted(link) => {
                if let Some(connection) = of(link) {
                    net.set_frame_cap(connection, FRAME_BYTES_MAX.max(SERVER_FRAME_BYTES_MAX));
                }
            }
            MultiplexerOutput::Provoke(link) => {
                if let Some(connection) = of(link) {
                    net.send_raw(connection, Bytes::from_static(LINE_END));
                }
            }
            MultiplexerOutput::Close(link) => {
                if let Some((connection, _)) = self.watch_links.remove(&link) {
                    self.watch_places.remove(&connection);
                    net.close(connection);
                }
            }
        }
    }

    /// Tells the watches on which of their connections something has come.
    fn tell_what_moves(&mut self, net: &Net, now: Duration) {
        for (link, (connection, told)) in &mut self.watch_links {
            let received = net.received_bytes(*connection);
            if received > *told {
                *told = received;
                self.watches.heard(now, *link);
            }
        }
    }

    fn perform(&mut self, net: &mut Net, output: Output) {
        match output {
            Output::Dial(server) => {
                let connection = self.dial(net, server);
                net.set_deadline(connection, None);
                self.places.insert(connection, server);
                let before = self.links[server].replace(LinkState::new(connection));
                assert!(before.is_none(), "server {server} is dialled and has a connection");
            }
            Output::Send { server, message } => {
                let Some(link) = &mut self.links[server] else { return };
                let (connection, mut encoded) = (link.connection, Ok(0));
                net.send(connection, |out| {
                    let before = out.len();
                    encoded = transport::encode(&message, out).map(|()| out.len() - before);
                });
                match encoded {
                    Ok(bytes) => link.queued_ever += bytes as u64,
                    Err(error) => {
                        net.close(connection);
                        let loss = Loss::Broken { reason: error.to_string(), ended: false };
                        self.lost(net, connection, loss);
                    }
                }
            }
            Output::Greeted(server) => {
                if let Some(connection) = self.connection(server) {
                    net.set_frame_cap(connection, FRAME_BYTES_MAX);
                }
            }
            Output::Provoke(server) => {
                if let Some(link) = &mut self.links[server] {
                    link.queued_ever += LINE_END.len() as u64;
                    net.send_raw(link.connection, Bytes::from_static(LINE_END));
                }
            }
            Output::Close(server) => {
                if let Some(connection) = self.connection(server) {
                    self.forget(connection);
                    net.close(connection);
                }
            }
            Output::PassedOver { report, failure } => {
                // A stranger's thread may be at work here, and reports are the client's own.
                let _ = self.inbox.0.push(Command::PassedOver { report, failure });
            }
            Output::Resume(promise) => promise.keep(Ok(())),
            Output::End { exchange, result } => exchange.end(result),
        }
    }

    fn connection(&self, server: usize) -> Option<ConnectionId> {
        self.links[server].as_ref().map(|link| link.connection)
    }
}

impl Service for ClientService {
    fn on_accepted(&mut self, net: &mut Net, connection: ConnectionId, _: SocketAddr) {
        // Nobody listens.
        net.close(connection);
    }

    fn on_connected(&mut self, net: &mut Net, connection: ConnectionId) {
        if let Some(server) = self.places.get(&connection) {
            self.core.connected(*server);
        } else if let Some(link) = self.watch_places.get(&connection) {
            self.watches.connected(*link);
        }
        self.perform_all(net);
    }

    fn on_dial_failed(&mut self, net: &mut Net, connection: ConnectionId, error: &io::Error) {
        let loss = Loss::Broken { reason: describe(error), ended: is_end(error) };
        self.lost(net, connection, loss);
        self.perform_all(net);
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        let now = self.now(net);
        if let Some(server) = self.places.get(&connection) {
            self.core.queued(*server, net.queued_bytes(connection));
            self.core.frame(now, *server, frame);
        } else if let Some(link) = self.watch_places.get(&connection) {
            self.watches.frame(now, *link, frame);
        }
        self.perform_all(net);
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        let loss = match reason {
            CloseReason::Remote => Loss::Ended,
            CloseReason::Frame(error) => Loss::Frame(*error),
            CloseReason::Io(error) => {
                Loss::Broken { reason: describe(error), ended: is_end(error) }
            }
            other => Loss::Broken { reason: other.to_string(), ended: false },
        };
        self.lost(net, connection, loss);
        self.perform_all(net);
    }

    fn on_wake(&mut self, net: &mut Net) {
        self.take_commands(net);
    }

    fn before_sleep(&mut self, net: &mut Net) {
        let now = self.now(net);
        let mut has_queued = false;
        for (server, link) in self.links.iter_mut().enumerate() {
            let Some(link) = link else { continue };
            if link.has_moved(net) {
                self.core.heard(now, server);
                let unfinished = net.unfinished_frame(link.connection);
                if let Some(id) = codec::reply_id(unfinished) {
                    self.core.arrives(now, server, id, unfinished.len());
                }
            }
            self.core.queued(server, net.queued_bytes(link.connection));
        }
        self.core.resume(now);
        self.core.poll(now);
        self.tell_what_moves(net, now);
        self.watches.poll(now);
        self.perform_all(net);
        for link in self.links.iter_mut().flatten() {
            has_queued |= link.queued_ever > link.told_ever;
            link.told_ever = link.queued_ever;
        }
        // An earlier time that was set before stays: the time of a call that is over is when the
        // next one would be looked after soonest, and so the thread is not woken by each of many
        // short calls.
        let next = match has_queued && self.core.is_holding() {
            // The sockets are about to take what was queued, and perhaps all of it: then nothing
            // else says that there is room.
            true => Some(net.now()),
            false => {
                let next = self.core.next_at().into_iter().chain(self.watches.next_at()).min();
                next.map(|at| self.started + at)
            }
        };
        let before = self.alarm.filter(|alarm| *alarm > net.now());
        self.alarm = before.into_iter().chain(next).min();
        net.set_alarm(self.alarm);
        if self.is_leaving && self.core.is_idle() {
            net.exit();
        }
    }
}

#[cfg(test)]
mod tests;
