//! What a download's state machine is given, and what it has its driver do.

use std::net::SocketAddr;
use std::time::Duration;

use crate::model::ContentId;
use crate::share::swarm::{SourceId, SwarmConfig};
use crate::wire::message::Message;

/// The parameters of a download's state machine.
#[derive(Debug)]
pub struct DownloadConfig {
    pub content: ContentId,
    pub size: u64,
    /// Whether the partial file is one that an earlier download has left.
    pub is_resumed: bool,
    /// The value of [`more_may_come`](crate::share::fetch::FetchOptions::more_may_come).
    pub more_may_come: bool,
    /// The value of [`FetchOptions::patience`](crate::share::fetch::FetchOptions::patience).
    pub patience: Duration,
    /// The value of [`FetchOptions::gone_after`](crate::share::fetch::FetchOptions::gone_after).
    pub gone_after: Option<Duration>,
    /// The chunks that one job checks at most.
    pub checks_per_job: u64,
    /// The number of worker threads.
    pub workers: usize,
    pub swarm: SwarmConfig,
}

/// What the driver has to do, in this order.
#[derive(Debug, PartialEq)]
pub enum DownloadAction {
    /// Open a connection to a source, in place of the one that it may have had.
    Connect(SourceId, SocketAddr),
    /// Send a message to a source.
    Send(SourceId, Message),
    /// The source's handshake is complete.
    Greeted(SourceId),
    /// Close the connection with a source, if there is one.
    Close(SourceId),
    /// Close the connection with a source when everything has been sent.
    CloseAfterFlush(SourceId),
    /// The chunk hashes are known: offer the chunks that are stored to others.
    OfferPart,
    /// Have the registry asked for further sources, and tell the number of that search to
    /// [`Download::search_requested`].
    RequestSearch,
    /// Publish the file, and report to [`Download::doubtful`] if it has to be checked again.
    Finish,
    /// The download has failed.
    Fail(DownloadFailure),
}

/// Why the state machine gives up.
#[derive(Debug, PartialEq, Eq)]
pub enum DownloadFailure {
    /// No source has the content any more.
    Gone,
    /// No source has sent anything for too long, for this reason.
    NoSource(String),
    /// Another program keeps changing the partial file.
    Touched,
}
