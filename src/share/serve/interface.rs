//! What a server of chunks is given, and what it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::share::offer::Catalog;

/// The parameters of [`PeerServer::start`](super::PeerServer::start).
#[derive(Clone, Default)]
pub struct ServeOptions {
    /// The peer id to answer HELLO with. It changes if the membership draws a new one.
    pub peer: Arc<AtomicU64>,
    /// The offers, in order of preference.
    pub catalogs: Vec<Arc<dyn Catalog>>,
    /// Upper bound of the average sending rate to all peers together, in bytes a second; `None` for
    /// no limit.
    pub limit_bytes_per_s: Option<u64>,
    /// TCP congestion control algorithm by the system's name (`reno`, `cubic`, `bbr`); `None` for
    /// the system's default.
    pub congestion: Option<String>,
    /// The number of connections at once. `None`:
    /// [`SHARE_CONNECTIONS_MAX`](crate::limits::SHARE_CONNECTIONS_MAX), or fewer if the system
    /// allows few open files.
    pub connections_max: Option<usize>,
}

/// The fields of `ServeStatus`, written by the loop and read by others.
#[derive(Debug, Default)]
pub(super) struct ServeCounters {
    pub(super) peers: AtomicU64,
    pub(super) chunks: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) longest_stall_us: AtomicU64,
    pub(super) stop: AtomicBool,
}
