//! The registry: a server that knows which peer has which files.
//!
//! It is a service on an event loop (`service`). The loop greets, applies quotas, collects the
//! parts of a JOIN, and hands each complete request to a pool of workers (`work`), which ask the
//! [`PeerDirectory`]: an [`Index`](super::index::Index) in memory, or one in the replicated
//! [`store`].
//!
//! Rules:
//!
//! - While a request of a connection is with the workers, nothing more is read from the connection.
//!   So its requests take effect in order, and one that asks much delays only itself.
//! - Requests that change many files leave one thread free for searches, and go round by IP
//!   address. The memory of requests that wait is counted in the loop's budget; one for which
//!   there is no room is told to come later.
//! - A peer is known until it leaves, its connection ends, or it has been silent for the time-out
//!   while the registry was running. A peer that was forgotten is answered NOT_JOINED and joins
//!   again, so a registry may be restarted at any time.
//! - A peer id proves nothing, so the first connection that joins under an id keeps it: a JOIN
//!   under the same id over another connection has to wait until the first has ended or has been
//!   silent for the time-out, unless it brings the same secret, which a peer draws at its start and
//!   sends to registries only.
//! - An address is offered to others only if its IP is the one the connection comes from, or if a
//!   peer with the right id has answered there when the registry dialled it.
//! - Each IP address has a share of every limit. When all of a limit is taken, the IP address that
//!   has most makes room for one that has less: peers in the index, and parts of unfinished JOINs.
//!
//! Left out: the files themselves, which never pass through a registry.

mod address_checks;
mod connections;
pub mod directory;
mod interface;
mod job_queue;
mod partial_join;
pub mod questions;
mod service;
pub mod store;
mod work;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use rand::Rng;

use self::directory::PeerDirectory;
pub use self::interface::{RegistryConfig, spaced};
use self::service::RegistryService;
use crate::console::Console;
use crate::limits;
use crate::net::{
    BudgetLimits, EventLoop, ListenError, Listener, LoopConfig, LoopError, WakeHandle,
};
use crate::process::files::{self, TooFewFiles};
use crate::process::watch_signals;
use crate::workers::pool::Pool;

/// A registry has one thread that changes many files and one that is free for searches, also on a
/// machine with one processor.
const REGISTRY_WORKERS_MIN: usize = 2;

/// The address on which a registry listens by default.
pub const DEFAULT_REGISTRY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1099);

/// Why a registry could not start, or has stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot listen on its address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The event loop has failed.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The system refused a thread.
    #[error("cannot start a thread: {0}; is the limit on processes too low?")]
    Thread(#[source] io::Error),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// The system allows too few open files.
    #[error(transparent)]
    TooFewFiles(#[from] TooFewFiles),
}

/// Runs a registry until SIGINT or SIGTERM.
///
/// # Errors
/// It could not start, or its event loop has failed.
pub fn run(
    config: &RegistryConfig,
    directory: Arc<dyn PeerDirectory>,
) -> Result<(), RegistryError> {
    let listener = Listener::bind(config.listen)?;
    let (stop_in, stop) = bounded(1);
    let watch = |wake: &WakeHandle| {
        let (stop, wake) = (stop_in.clone(), wake.clone());
        let stop = move || {
            // The channel is full if a stop was requested already.
            let _ = stop.try_send(());
            wake.wake();
        };
        watch_signals(stop).map_err(RegistryError::Signals)
    };
    serve(config, directory, listener, io::stdout(), stop, watch)
}

/// Like [`run`], but on a bound socket, with the console lines written to `out`, until something is
/// received from `stop`. `started` is called with the loop's wake handle, which has to be used
/// after sending a stop.
///
/// # Errors
/// Those of [`run`] and of `started`.
pub fn serve(
    config: &RegistryConfig,
    directory: Arc<dyn PeerDirectory>,
    listener: Listener,
    out: impl io::Write + Send + 'static,
    stop: Receiver<()>,
    started: impl FnOnce(&WakeHandle) -> Result<(), RegistryError>,
) -> Result<(), RegistryError> {
    let room = files::room(0)?;
    let address = listener.address();
    let loop_config = LoopConfig {
        tick_interval: Some(limits::REGISTRY_EXPIRY_INTERVAL),
        accepted_max: room.accepted_max,
        refused_max: room.refused_max,
        budget: BudgetLimits {
            origin_bytes_max: limits::REGISTRY_BUDGET_ORIGIN_BYTES_MAX,
            process_bytes_max: limits::REGISTRY_BUDGET_PROCESS_BYTES_MAX,
            ..BudgetLimits::default()
        },
        turn_max: Some(limits::SHARE_TURN_MAX),
        ..LoopConfig::default()
    };
    let event_loop = EventLoop::new(loop_config, Some(listener))?;
    let wake = event_loop.wake_handle();
    let (console, console_thread) = if config.console {
        let (console, thread) = Console::start(out).map_err(RegistryError::Thread)?;
        (console, Some(thread))
    } else {
        (Console::off(), None)
    };
    let wake_pool = {
        let wake = wake.clone();
        move || wake.wake()
    };
    let workers = config.workers.max(REGISTRY_WORKERS_MIN);
    let pool = Pool::start(
        "acervo-registry",
        workers,
        job_queue::REGISTRY_QUEUE_JOBS_MAX,
        wake_pool,
        |_| {
            let worker = work::RegistryWorker {
                directory: Arc::clone(&directory),
                console: console.clone(),
            };
            move |job| worker.run(job)
        },
    );
    let pool = pool.map_err(RegistryError::Thread)?;
    started(&wake)?;
    log::info!("the registry listens on {address}");
    let peers_max = config.peers_max.min(room.clients_max);
    let mut service =
        RegistryService::new(pool, workers, config, peers_max, stop, rand::rng().next_u64());
    let ended = event_loop.run(&mut service);
    service.finish();
    if let Some(thread) = console_thread {
        drop(console);
        thread.join();
    }
    Ok(ended?)
}
