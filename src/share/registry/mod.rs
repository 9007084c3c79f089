//! The registry: who has which files.
//!
//! It is a service on the event loop, as a server of the store is one. The loop greets, counts, gathers
//! the parts of a JOIN and hands each whole request to a pool of workers, which ask the [`Directory`]:
//! an [`Index`](super::index::Index) in memory, or one that is kept in the replicated [`store`]. While a
//! request of a connection is with the workers nothing more is read from it: so its requests take
//! effect in order, and one that asks much waits for itself only. Requests that change many files wait for each
//! other: one of two threads is always left to questions. What requests hold while they wait is counted in
//! the event loop's budget, and one for which there is no room is told to come later.
//!
//! A peer is in the directory until it leaves, its connection ends, or nothing is heard of it for the
//! silence time-out, in which the registry itself has to have run. A peer that has been forgotten is told so (`NOT_JOINED`) when it speaks again, and
//! joins anew: so a registry may be restarted whenever one likes.
//!
//! A peer's id proves nothing, so whoever has joined under one keeps it: a JOIN under the same id over another
//! connection waits until the first has ended or has been silent for the silence time-out, unless it comes with the
//! same secret, which a peer draws when it starts and tells nobody but registries. And an address is only
//! offered to others if it is the IP that the peer's connection comes from, or has answered like a peer when the
//! registry dialled it. What one IP may have joined is a part of what all may, and where all is taken the IP that has
//! most makes room for one that has less: peers in the index, and parts of unfinished JOINs.
//!
//! Left out: files themselves never come near a registry.

pub mod directory;
pub mod questions;
mod service;
pub mod store;
mod work;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use rand::Rng;

use self::directory::Directory;
use self::service::RegistryService;
use crate::console::{self, Console};
use crate::limits;
use crate::model::FileName;
use crate::net::{
    BudgetLimits, EventLoop, ListenError, Listener, LoopConfig, LoopError, WakeHandle,
};
use crate::process::files::{self, TooFewFiles};
use crate::process::watch_signals;
use crate::text::escape;
use crate::workers::pool::Pool;

/// Where a registry listens unless it is told otherwise.
pub const DEFAULT_REGISTRY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1099);

/// How a registry is set up.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Whether console lines are written.
    pub console: bool,
    /// Threads that ask the directory.
    pub workers: usize,
    /// A peer that is silent for longer is taken for dead, here as in the directory.
    pub silence_timeout: Duration,
    /// The most peers that may have joined; fewer if the system allows fewer open files.
    pub peers_max: usize,
}

/// Why a registry could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
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
}

/// A line of SPEC C1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryEvent {
    /// A peer has joined.
    Joined {
        /// Where it serves.
        address: SocketAddr,
        /// What it offers, in the order it gave.
        names: Vec<FileName>,
    },
    /// Somebody looks for a file.
    Searched {
        /// Where it serves, if it has joined; else where it asked from.
        address: SocketAddr,
        /// The name.
        name: FileName,
    },
}

impl fmt::Display for RegistryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegistryEvent::Joined { address, names } => {
                write!(f, "Peer {address} adicionado com arquivos {}.", spaced(names))
            }
            RegistryEvent::Searched { address, name } => {
                write!(f, "Peer {address} solicitou arquivo {}.", escape(name.as_str().as_bytes()))
            }
        }
    }
}

impl console::ConsoleEntry for RegistryEvent {
    fn weight(&self) -> usize {
        const EACH: usize = size_of::<FileName>();
        match self {
            RegistryEvent::Joined { names, .. } => {
                names.iter().map(|name| name.as_str().len() + EACH).sum()
            }
            RegistryEvent::Searched { name, .. } => name.as_str().len() + EACH,
        }
    }
}

/// File names as the console lines of SPEC C show several: escaped, one space between them.
pub fn spaced<'a>(names: impl IntoIterator<Item = &'a FileName> + Clone) -> impl fmt::Display {
    let mut line = String::new();
    for name in names {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&escape(name.as_str().as_bytes()).to_string());
    }
    line
}

/// Runs a registry until SIGINT or SIGTERM.
///
/// # Errors
/// It could not start, or its event loop failed.
pub fn run(config: &RegistryConfig, directory: Arc<dyn Directory>) -> Result<(), RegistryError> {
    let listener = Listener::bind(config.listen)?;
    let (stop_in, stop) = bounded(1);
    let watch = |wake: &WakeHandle| {
        let (stop, wake) = (stop_in.clone(), wake.clone());
        let stop = move || {
            // A stop that was asked for already needs no second word.
            let _ = stop.try_send(());
            wake.wake();
        };
        watch_signals(stop).map_err(RegistryError::Signals)
    };
    serve(config, directory, listener, io::stdout(), stop, watch)
}

/// The same on an address that is bound already, writing the console's lines to `out`, until something
/// comes over `stop`. `started` is given the loop's wake handle, to be used after that.
///
/// # Errors
/// As [`run`], and those of `started`.
pub fn serve(
    config: &RegistryConfig,
    directory: Arc<dyn Directory>,
    listener: Listener,
    out: impl io::Write + Send + 'static,
    stop: Receiver<()>,
    started: impl FnOnce(&WakeHandle) -> Result<(), RegistryError>,
) -> Result<(), RegistryError> {
    let room = files::room()?;
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
    let pool = Pool::start(
        "acervo-registry",
        config.workers,
        limits::REGISTRY_QUEUE_JOBS_MAX,
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
    let mut service = RegistryService::new(pool, config, peers_max, stop, rand::rng().next_u64());
    let ended = event_loop.run(&mut service);
    service.finish();
    if let Some(thread) = console_thread {
        drop(console);
        thread.join();
    }
    Ok(ended?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_specification_whole() {
        let address: SocketAddr = "10.0.0.1:8776".parse().unwrap();
        let name = |name: &str| FileName::new(name).unwrap();
        let joined = |names: Vec<FileName>| RegistryEvent::Joined { address, names }.to_string();
        assert_eq!(
            joined(vec![name("aula.mp4"), name("ação.txt")]),
            "Peer 10.0.0.1:8776 adicionado com arquivos aula.mp4 ação.txt."
        );
        assert_eq!(joined(vec![]), "Peer 10.0.0.1:8776 adicionado com arquivos .");
        assert_eq!(
            RegistryEvent::Searched { address, name: name("a\u{202e}b") }.to_string(),
            r"Peer 10.0.0.1:8776 solicitou arquivo a\xe2\x80\xaeb."
        );
    }
}
