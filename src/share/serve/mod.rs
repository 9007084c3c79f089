//! Serving: a peer's event loop that gives chunks of its files to other peers.
//!
//! One thread owns the sockets (`service`); two others open and read the files (`source`), into
//! buffers that go to the sockets as they are. What bounds it:
//!
//! - Each connection has a buffer for a slice of a chunk, and those who are quick have more for whole chunks as long as there are
//!   some (`places`): so none waits for another one's slow line. Who has no turn within a second is told `BUSY`.
//!   Memory is the sum of the buffers, whatever the number and size of the files.
//! - A peer has a limit on what it may ask for ahead, and time limits on asking and on taking.
//! - A connection keeps its place as long as it waits for a chunk or takes one. Without, whatever else comes on it, it
//!   gives way to newcomers: so nobody keeps others out by being connected.
//! - Under a rate limit, chunks are cut into pieces of a tick's worth, and all peers share the rate.
//!
//! Every request has exactly one answer. What is offered is the business of [`Catalog`]; a file that
//! turns out to have changed is denied with `CHANGED`, and the catalogue is told.
//!
//! Left out: files that were never asked of the catalogue, folders below the shared one, choking.

mod peers;
mod places;
mod read;
mod service;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::limits;
use crate::net::{EventLoop, Listener, LoopConfig, LoopError, WakeHandle};
use crate::process::files::{self, TooFewFiles};
use crate::share::offer::Catalog;
use service::ShareService;

/// How to serve.
#[derive(Clone, Default)]
pub struct ServeOptions {
    /// Who serves, as it tells whoever connects; it may become another one.
    pub peer: Arc<AtomicU64>,
    /// What to serve; the first one that has something gives it.
    pub catalogs: Vec<Arc<dyn Catalog>>,
    /// The most bytes to send a second, on the average and to all together; no limit when absent.
    pub limit_bytes_per_s: Option<u64>,
    /// TCP congestion control by the system's name for it (`reno`, `cubic`, `bbr`); the system's own
    /// choice when absent.
    pub congestion: Option<String>,
    /// Connections at once; when absent [`SHARE_CONNECTIONS_MAX`](limits::SHARE_CONNECTIONS_MAX), or fewer where the system
    /// allows few open files.
    pub connections_max: Option<usize>,
}

/// Why a peer cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No event loop.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// No room for connections.
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    /// No threads.
    #[error("cannot start the threads that serve files: {0}; is the limit on processes too low?")]
    Threads(#[source] io::Error),
}

/// What a server has done so far.
#[cfg(any(test, feature = "internals"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServeStatus {
    /// Peers connected now.
    pub peers: u64,
    /// Chunks sent.
    pub chunks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The longest time that the event loop was away from its sockets.
    pub longest_stall: std::time::Duration,
}

/// A [`ServeStatus`] that one thread keeps up to date and others read.
#[derive(Debug, Default)]
struct ServeCounters {
    peers: AtomicU64,
    chunks: AtomicU64,
    bytes: AtomicU64,
    longest_stall_us: AtomicU64,
    stop: AtomicBool,
}

/// A running server. It stops when it is dropped.
#[derive(Debug)]
pub struct PeerServer {
    address: SocketAddr,
    counters: Arc<ServeCounters>,
    wake: WakeHandle,
    thread: Option<JoinHandle<()>>,
}

impl PeerServer {
    /// Starts to serve on a bound address.
    ///
    /// # Errors
    ///
    /// This process may not have another event loop or thread, or so few open files that there is room for nobody.
    pub fn start(listener: Listener, options: ServeOptions) -> Result<PeerServer, ServeError> {
        let address = listener.address();
        // The other half is for downloads and for the files themselves: else strangers who say nothing would take them all.
        let room = files::half_room(limits::SHARE_CONNECTIONS_MAX)?;
        let config = LoopConfig {
            tick_interval: Some(match options.limit_bytes_per_s {
                Some(_) => limits::PACED_TICK,
                None => limits::SHARE_TICK,
            }),
            accepted_max: options.connections_max.unwrap_or(room),
            refused_max: limits::REFUSALS_MAX.min(room / 2),
            congestion: options.congestion.clone(),
            turn_max: Some(limits::SHARE_TURN_MAX),
            ..LoopConfig::default()
        };
        let event_loop = EventLoop::new(config, Some(listener))?;
        let wake = event_loop.wake_handle();
        let counters = Arc::new(ServeCounters::default());
        let mut service = ShareService::new(options, &wake, Arc::clone(&counters))
            .map_err(ServeError::Threads)?;
        let run = move || {
            if let Err(error) = event_loop.run(&mut service) {
                log::error!("files are not served any more: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("share-serve".to_owned()).spawn(run);
        let thread = Some(thread.map_err(ServeError::Threads)?);
        Ok(PeerServer { address, counters, wake, thread })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has done so far.
    #[cfg(any(test, feature = "internals"))]
    pub fn status(&self) -> ServeStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServeStatus {
            peers: read(&self.counters.peers),
            chunks: read(&self.counters.chunks),
            bytes: read(&self.counters.bytes),
            longest_stall: std::time::Duration::from_micros(read(&self.counters.longest_stall_us)),
        }
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        self.counters.stop.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that serves files panicked");
        }
    }
}
