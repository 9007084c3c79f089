//! What a swarm is told at its start and what it tells its driver to do.

use std::time::Duration;

/// Index of a source within one swarm. The index of a source that has failed may be reused for
/// another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub usize);

/// What the driver of a swarm has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwarmAction {
    /// Open a connection to a source.
    Connect(SourceId),
    /// Ask a source for a chunk.
    Request(SourceId, u64),
    /// Cancel the request for a chunk.
    Cancel(SourceId, u64),
    /// Close the connection with a source. The swarm has already released its chunks.
    Drop(SourceId, DropReason),
}

/// Why the connection with a source is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DropReason {
    /// It had requests outstanding and sent nothing for too long.
    #[error("it fell silent")]
    Silent,
    /// It is far slower than other sources, or than [`SwarmConfig::rate_min`].
    #[error("it is too slow")]
    Slow,
    /// A chunk or a list of hashes from it does not match the content's id.
    #[error("it sent wrong bytes")]
    WrongBytes,
    /// It violated the protocol.
    #[error("it sent what was not asked for")]
    Protocol,
    /// It refused, with this reason.
    #[error("{0}")]
    Refused(String),
    /// It had no chunk that was missing, and an untried source may have one.
    #[error("it had nothing to give")]
    Useless,
}

/// The parameters of a swarm.
#[derive(Clone, Debug)]
pub struct SwarmConfig {
    /// The content's length in bytes.
    pub size: u64,
    /// Seed of all random choices.
    pub seed: u64,
    /// Time constant of the average of a source's rate.
    pub rate_constant: Duration,
    /// Lower bound of a source's rate in bytes a second. A slower one is dropped even if it is the
    /// only one.
    pub rate_min: u64,
    /// The number of sources in use at once, see [`crate::limits::SOURCES_MAX`].
    pub sources_max: usize,
    /// The number of sources known at once, see [`crate::limits::SOURCES_KNOWN_MAX`].
    pub known_max: usize,
    /// The number of chunks that may have arrived and not be stored yet, see
    /// [`crate::limits::DOWNLOAD_CHUNKS_MAX`].
    pub chunks_max: usize,
    /// How long after the last verified chunk unverified bytes still count as progress.
    pub unchecked_max: Duration,
}
