//! One server process: event loop, core, workers, log writer and state machine wired together.
//!
//! [`run`] opens the data directory, starts the threads and works until it is told to stop or
//! something breaks.
//!
//! - `service`: the event loop's callbacks; below it `outputs` of the core and completions of
//!   threads, `requests` of clients, `greetings` (greetings, and how links come up and go down),
//!   and `conditions` such as a full disk or damage.
//! - `clients`, `get`, `loop_reads`: the accounts of clients, the rules for reads, and how many of
//!   them the loop answers by itself.
//! - `driver`, `lifecycle`, `links`: the core and its time, whether the server goes on and how it
//!   ends, the state of the links to the other servers.
//! - [`work`], `threads`: what the loop has its threads do and what they tell it, and the threads.
//! - [`watches`]: who is shown which changes.
//! - [`snapshots`], `decoding`, `watch`: decisions about snapshots, the content of frames,
//!   conditions that go to the log.
//! - [`config`], [`questions`], [`console`]: the configuration, the questions on a keyboard, the
//!   console lines.
//! - [`cluster`], `local`: three servers under one terminal, and three in one process for tests.

mod clients;
pub mod cluster;
pub mod config;
pub mod console;
pub mod decoding;
mod driver;
pub mod get;
mod lifecycle;
mod links;
mod local;
mod loop_reads;
pub mod questions;
mod service;
pub mod snapshots;
mod threads;
mod watch;
pub mod watches;
pub mod work;

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use rand::Rng;

use self::config::ServerConfig;
use self::console::ServerConsole;
use self::lifecycle::Restart;
pub use self::local::LocalGroup;
use self::service::{Parts, StoreService};
use self::threads::{Threads, ThreadsConfig};
use crate::console::ConsoleThread;
use crate::limits;
use crate::model::{NodeId, Release};
use crate::net::{EventLoop, ListenError, Listener, LoopConfig, LoopError, WakeHandle};
use crate::node::config::{LeaseNotes, NodeConfig, NodeError};
use crate::node::core::Node;
use crate::node::garbage_collection::GarbageCollectionConfig;
use crate::process::files::ConnectionRoom;
pub use crate::process::files::TooFewFiles;
use crate::process::{files, watch_signals};
use crate::storage::log::LogOptions;
use crate::storage::{
    self, Redundancy, Storage, StorageError, datadir::DataDir, datadir::DataDirError,
};

/// Why a server could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The addresses do not belong together; the command line checks this first.
    #[error("{0} is not one of the servers of the group: check --listen, --leader and --servers")]
    NotInGroup(std::net::SocketAddr),
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The data directory is not this server's to use.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The content of the data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The core refuses what was recovered.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The event loop failed.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}; is the limit on processes too low?")]
    Thread(#[source] io::Error),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// The system allows too few open files.
    #[error(transparent)]
    TooFewFiles(#[from] TooFewFiles),
    /// Something broke that must not be survived.
    #[error("this server stopped because it could not go on safely: {0}")]
    Broken(String),
}

/// Runs a server until SIGINT or SIGTERM, or until something breaks.
///
/// # Errors
/// See [`ServerError`].
pub fn run(config: ServerConfig) -> Result<(), ServerError> {
    if !config.sync {
        log::warn!(
            "--sync off: acknowledged writes are LOST when the machine fails; for experiments only"
        );
    }
    let room = files::room(config.files_beside)?;
    // The port first: a second server started by mistake says so, whatever its directory.
    let listener = Listener::bind(config.listen)?;
    let stopper = Stopper::new();
    let server = OpenedServer::open(config.clone(), listener, room, stopper.clone())?;
    {
        let stopper = stopper.clone();
        watch_signals(move || stopper.stop()).map_err(ServerError::Signals)?;
    }
    if config.stop_on_stdin_end {
        watch_stdin(stopper.clone())?;
    }
    serve(server, config, room, &stopper)
}

/// Serves until the server is asked to stop. When its data turned out not to be trusted, it starts
/// again without it, on the same address.
fn serve(
    mut server: OpenedServer,
    config: ServerConfig,
    room: ConnectionRoom,
    stopper: &Stopper,
) -> Result<(), ServerError> {
    while server.run()? {
        let listener = Listener::bind(config.listen)?;
        server = OpenedServer::open(config.clone(), listener, room, stopper.clone())?;
    }
    Ok(())
}

/// A server that is set up: its threads run, and its event loop does not yet.
struct OpenedServer {
    event_loop: EventLoop,
    service: StoreService,
    console: Option<ConsoleThread>,
    /// It holds the directory's lock for as long as anything writes in it.
    data_dir: DataDir,
}

/// Asks a server to stop, from any thread, also while it starts again.
#[derive(Clone, Debug)]
struct Stopper {
    stop: Sender<()>,
    stopped: Receiver<()>,
    /// The event loop that runs, or ran last.
    wake: Arc<Mutex<Option<WakeHandle>>>,
}

impl Stopper {
    fn new() -> Stopper {
        let (stop, stopped) = bounded(1);
        Stopper { stop, stopped, wake: Arc::default() }
    }

    fn stop(&self) {
        // A full channel holds an earlier request to stop.
        let _ = self.stop.try_send(());
        self.wake();
    }

    fn wake(&self) {
        if let Some(wake) = &*self.wake.lock().unwrap_or_else(PoisonError::into_inner) {
            wake.wake();
        }
    }

    /// Sets the event loop to wake, and wakes it, so that it finds a stop that was asked for in
    /// between.
    fn wakes(&self, wake: WakeHandle) {
        *self.wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(wake);
        self.wake();
    }
}

impl OpenedServer {
    /// Sets a server up on a bound address, which is the configuration's.
    fn open(
        config: ServerConfig,
        listener: Listener,
        room: ConnectionRoom,
        stopper: Stopper,
    ) -> Result<OpenedServer, ServerError> {
        let me = config.node_of(config.listen).ok_or(ServerError::NotInGroup(config.listen))?;
        let first_leader =
            config.node_of(config.leader).ok_or(ServerError::NotInGroup(config.leader))?;
        let mut data_dir =
            DataDir::open(&config.data_dir, config.cluster_id(), me, rand::rng().next_u64())?;
        let options = LogOptions {
            sync: config.sync,
            salt: rand::rng().next_u64(),
            segment_bytes: data_dir.log_segment_bytes(),
            held_bytes_max: data_dir.log_held_bytes_max(),
            ..LogOptions::default()
        };
        let redundancy = match config.servers.len() {
            1 => Redundancy::Alone,
            _ => Redundancy::Replicated,
        };
        let storage = storage::open(&mut data_dir, options, redundancy)?;
        if storage.recovered.store_lost {
            log::warn!(
                "the store is lost or was damaged: this server votes, serves no reads, and waits \
                 for a snapshot of everything from the leader"
            );
        }
        // A directory that has never taken part in the group still needs to know.
        if storage.recovered.hard_state.admitted {
            log::info!(
                "restarting on {}: --leader is ignored, the group elects by itself",
                config.data_dir.display()
            );
        }
        let node = Node::new(node_config(&config, me, first_leader), storage.recovered)?;

        let loop_config = LoopConfig {
            tick_interval: Some(limits::TICK),
            accepted_max: room.accepted_max,
            refused_max: room.refused_max,
            large_frame_bytes: Some(limits::LARGE_FRAME_BYTES),
            ..LoopConfig::default()
        };
        let mut event_loop = EventLoop::new(loop_config, Some(listener))?;
        if let Some(port) = &config.local_port {
            event_loop.listen_local(port.clone());
        }
        let wake = event_loop.wake_handle();
        let (console, console_thread) = if config.console {
            let (console, thread) =
                ServerConsole::start(io::stdout()).map_err(ServerError::Thread)?;
            (console, Some(thread))
        } else {
            (ServerConsole::off(), None)
        };
        let store = storage.machine.store();
        let threads = ThreadsConfig {
            workers: config.workers,
            scrub_interval: config.scrub_interval,
            watches_seed: rand::rng().next_u64(),
            console: console.clone(),
        };
        let Storage { machine, log, .. } = storage;
        let threads = Threads::start(threads, machine, log, &data_dir, wake.clone())
            .map_err(ServerError::Thread)?;
        stopper.wakes(wake);
        log::info!(
            "server {me} of {} listens on {}, data in {}",
            config.servers.len(),
            config.listen,
            config.data_dir.display()
        );
        let parts = Parts {
            clients_max: room.clients_max,
            incarnation: data_dir.incarnation(),
            first_transfer: rand::rng().next_u64() >> 1,
            snapshot_key: rand::rng().next_u64(),
            console,
            threads,
            store,
            stop: stopper.stopped,
            config,
        };
        Ok(OpenedServer {
            event_loop,
            service: StoreService::new(node, parts, me),
            console: console_thread,
            data_dir,
        })
    }

    /// Serves until it is asked to stop, or something breaks, or its data cannot be trusted, which
    /// is then set aside. Returns whether the server is to start again.
    fn run(self) -> Result<bool, ServerError> {
        let OpenedServer { event_loop, mut service, console, mut data_dir } = self;
        let ended = event_loop.run(&mut service);
        let finished = service.finish();
        if let Some(thread) = console {
            thread.join();
        }
        ended?;
        let Restart { without, now } = finished.map_err(ServerError::Broken)?;
        if let Some(untrusted) = without {
            data_dir.set_aside(untrusted)?;
        }
        Ok(now)
    }
}

fn node_config(config: &ServerConfig, me: NodeId, first_leader: NodeId) -> NodeConfig {
    NodeConfig {
        node: me,
        nodes: (1..=config.servers.len() as u64).map(NodeId).collect(),
        names: config.servers.iter().map(ToString::to_string).collect(),
        first_leader,
        ack: config.ack,
        in_sync_timeout: config.in_sync_timeout,
        stall_timeout: limits::STALL_TIMEOUT,
        election_ticks: None,
        value_bytes_max: config.value_bytes_max,
        replication_delay: config.replication_delay,
        console: config.console,
        garbage_collection: GarbageCollectionConfig::new(config.history.unwrap_or_default()),
        limits: limits::NodeLimits::default(),
        state_hash_every: limits::STATE_HASH_EVERY,
        release: Release::default(),
        level_settled: limits::LEVEL_SETTLED,
        lease_notes: LeaseNotes::DEFAULT,
        cut_off_timeout: limits::CUT_OFF_TIMEOUT,
        first_question: rand::rng().next_u64() >> 1,
    }
}

fn watch_stdin(stopper: Stopper) -> Result<(), ServerError> {
    let watch = move || {
        let mut scratch = [0; 256];
        while matches!(io::stdin().read(&mut scratch), Ok(1..)) {}
        stopper.stop();
    };
    thread::Builder::new().name("acervo-stdin".into()).spawn(watch).map_err(ServerError::Thread)?;
    Ok(())
}
