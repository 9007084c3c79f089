//! Serves chunks of a peer's files to other peers.
//!
//! One thread owns the sockets (`service`). Worker threads open and read the files (`read`), into
//! buffers that are handed to the sockets without copying. Rules that bound it:
//!
//! - Memory is the sum of the buffers, whatever the number and size of the files. Each connection
//!   has a buffer for a slice of a chunk; fast takers get one of a few buffers for whole chunks
//!   (`places`). So no peer waits for memory that another's slow line holds. A peer whose turn does
//!   not come within a second is answered BUSY.
//! - A peer has a limited number of requests outstanding, and limited times for sending and for
//!   taking.
//! - A connection keeps its place while it waits for a chunk or takes one. Otherwise it gives way
//!   to new connections, so that no one keeps others out by being connected.
//! - Under a rate limit, chunks are cut into pieces of one tick's worth, and all peers share the
//!   rate.
//! - Every request has exactly one answer. A file that has changed is answered CHANGED, and its
//!   [`Catalog`] is told.
//!
//! Left out: choosing what is offered, which a [`Catalog`] does; and choking as in BitTorrent,
//! because a peer owes nothing for what it gets.

mod interface;
mod jobs;
mod peers;
mod places;
mod read;
mod service;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(any(test, feature = "internals"))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crate::limits;
use crate::net::{EventLoop, Listener, LoopConfig, LoopError, WakeHandle};
use crate::process::files::{self, TooFewFiles};
use interface::ServeCounters;
pub use interface::ServeOptions;
use service::ShareService;

/// Why a peer could not start to serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The event loop could not be created.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The system allows too few open files.
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    /// The system refused a thread.
    #[error("cannot start the threads that serve files: {0}; is the limit on processes too low?")]
    Threads(#[source] io::Error),
}

/// What a server has done since its start.
#[cfg(any(test, feature = "internals"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServeStatus {
    /// The number of connections now.
    pub peers: u64,
    /// The number of chunks sent.
    pub chunks: u64,
    /// The number of bytes of chunks sent.
    pub bytes: u64,
    /// The longest time that the event loop has been away from its sockets.
    pub longest_stall: std::time::Duration,
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct PeerServer {
    address: SocketAddr,
    counters: Arc<ServeCounters>,
    wake: WakeHandle,
    thread: Option<JoinHandle<()>>,
}

impl PeerServer {
    /// Starts to serve on a bound socket.
    ///
    /// # Errors
    /// The system refuses an event loop or a thread, or allows too few open files.
    pub fn start(listener: Listener, options: ServeOptions) -> Result<PeerServer, ServeError> {
        let address = listener.address();
        // Half of the open files is left to downloads and to the files themselves. Otherwise
        // connections that send nothing could take them all.
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

    pub fn address(&self) -> SocketAddr {
        self.address
    }

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
