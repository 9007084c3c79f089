//! Asks one peer, over a blocking connection, for the file it offers under a name.
//!
//! Used where a person names a peer directly. Everywhere else files are found through the registry.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::dialogue::{DialogueError, PeerDialogue};
use crate::model::{FileEntry, FileName, PeerId};
use crate::text::sentence;
use crate::wire::share::{DenialCode, PeerReply, PeerRequest};

/// Why a peer has not named a file.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// It could not be reached, or did not answer in time.
    #[error("peer {address} does not answer: {source}")]
    Unreachable { address: SocketAddr, source: io::Error },
    /// It answered with a refusal.
    #[error("peer {address} refuses: {}", sentence(reason))]
    Refused {
        address: SocketAddr,
        /// The code of the refusal; `None` if HELLO was refused.
        code: Option<DenialCode>,
        /// The peer's sentence, not escaped.
        reason: String,
    },
    /// What answers does not speak the protocol of a peer.
    #[error("{0} does not answer like a peer; check the address")]
    Protocol(SocketAddr),
}

/// Asks the peer at `address` for its id and for the file that it offers under `name`.
///
/// # Errors
/// The peer does not answer within `timeout`, refuses, or does not have the file.
pub fn find(
    address: SocketAddr,
    name: &FileName,
    timeout: Duration,
) -> Result<(PeerId, FileEntry), FindError> {
    let asked = PeerDialogue::open(address, timeout, timeout, &|| false).and_then(|mut peer| {
        let id = peer.greet()?;
        Ok((id, peer.ask(PeerRequest::Find { name: name.clone() })?))
    });
    let refused = |code, reason| Err(FindError::Refused { address, code, reason });
    let unreachable = |source| Err(FindError::Unreachable { address, source });
    match asked {
        Ok((peer, PeerReply::Found(entry))) => Ok((peer, entry)),
        Ok((_, PeerReply::Denied { code, message })) => refused(Some(code), message),
        Err(DialogueError::Denied(reason)) => refused(None, reason),
        Ok(_) | Err(DialogueError::Lie(_)) => Err(FindError::Protocol(address)),
        Err(DialogueError::Lost(source)) => unreachable(source),
        Err(DialogueError::Late) => unreachable(io::ErrorKind::TimedOut.into()),
    }
}
