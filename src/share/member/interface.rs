//! What a membership is given, what it tells its owner, and what its thread is sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::share::registry_client::RegistryCallError;
use crate::wire::share::{RegistryReply, RegistryRequest};

/// The files that a peer offers. Implementations are asked from the membership's thread.
pub trait OfferedFiles: Send + Sync {
    /// All files in order of name, at most
    /// [`FILES_PER_PEER_MAX`](crate::limits::FILES_PER_PEER_MAX).
    fn files(&self) -> Vec<FileEntry>;
}

/// The empty list, for a peer that only downloads.
pub struct NoFiles;

impl OfferedFiles for NoFiles {
    fn files(&self) -> Vec<FileEntry> {
        Vec::new()
    }
}

/// The parameters of [`Membership::start`](super::Membership::start).
pub struct MemberOptions {
    /// The registries. One at a time is used; the next one when it fails.
    pub registries: Vec<SocketAddr>,
    /// The id to join under at first.
    pub peer: PeerId,
    /// Where other threads read the current id, which changes if another connection has taken it.
    pub id: Arc<AtomicU64>,
    /// The address to announce. The registry replaces an unspecified IP by the connection's own.
    pub address: SocketAddr,
    pub files: Arc<dyn OfferedFiles>,
    /// Whether the peer shares a folder. A peer that does not gets no line on the registry's
    /// console.
    pub shares: bool,
    /// How long to retry JOIN while another connection holds the id, before joining under a new id.
    pub id_patience: Duration,
    /// How long after its JOIN a registry has to know the peer to count as having kept it.
    pub settled_after: Duration,
}

/// What the owner of a membership is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipNotice {
    /// A registry has accepted the JOIN. If registries accept JOINs and then forget the peer, this
    /// is reported again only when one has kept it.
    Joined {
        registry: SocketAddr,
        /// The names of the files that were announced with the JOIN.
        names: Vec<FileName>,
        /// Whether the peer had joined before.
        again: bool,
    },
    /// There is no membership, and the thread goes on trying. Each reason is reported once; a
    /// refusal is repeated once a minute, since a person may have to do something about it.
    Lost(RegistryCallError),
}

pub(super) enum MemberCommand {
    /// The files have changed: look at `Membership::is_changed`.
    Changed,
    /// A download of a content of this size has begun, whose chunks are served.
    Fetching(ContentId, u64),
    /// A download of a content has ended.
    Fetched(ContentId),
    /// Send a request on the membership's connection and return the answer.
    Ask(Box<RegistryRequest>, Sender<Result<RegistryReply, RegistryCallError>>),
}
