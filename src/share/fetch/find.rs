//! Asks one peer, over a blocking connection, for the file it offers under a name.
//!
//! Used where a person names a peer directly. Everywhere else files are found through the registry.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::limits::SHARE_FRAME_BYTES_MAX;
use crate::model::{FileEntry, FileName, PeerId};
use crate::share::greeting;
use crate::text::sentence;
use crate::wire::codec;
use crate::wire::frame::Deframer;
use crate::wire::message::Message;
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
    let unreachable = |source| FindError::Unreachable { address, source };
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&address, timeout).map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let body = PeerRequest::Find { name: name.clone() };
    let mut question = Vec::new();
    for message in [greeting::hello(), Message::Share { id: 1, body }] {
        let frame = greeting::frame(&message).map_err(|_| FindError::Protocol(address))?;
        question.extend_from_slice(&frame);
    }
    stream.set_write_timeout(Some(timeout)).map_err(unreachable)?;
    stream.write_all(&question).map_err(unreachable)?;
    let mut deframer = Deframer::new(SHARE_FRAME_BYTES_MAX);
    let mut peer = None;
    loop {
        while let Some(frame) = deframer.next_frame().map_err(|_| FindError::Protocol(address))? {
            match codec::decode(frame) {
                Ok(Message::ShareWelcome { peer: found, .. }) => peer = found,
                Ok(Message::ShareReply { body: PeerReply::Found(entry), .. }) => {
                    return peer.map(|peer| (peer, entry)).ok_or(FindError::Protocol(address));
                }
                Ok(Message::Refused { reason }) => {
                    return Err(FindError::Refused { address, code: None, reason });
                }
                Ok(Message::ShareReply { body: PeerReply::Denied { code, message }, .. }) => {
                    let (code, reason) = (Some(code), message);
                    return Err(FindError::Refused { address, code, reason });
                }
                Ok(_) | Err(_) => return Err(FindError::Protocol(address)),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(unreachable(io::ErrorKind::TimedOut.into()));
        }
        stream.set_read_timeout(Some(left)).map_err(unreachable)?;
        match stream.read(deframer.spare()) {
            Ok(0) => return Err(unreachable(io::ErrorKind::UnexpectedEof.into())),
            Ok(received) => deframer.commit(received),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(unreachable(io::ErrorKind::TimedOut.into()));
            }
            Err(error) => return Err(unreachable(error)),
        }
    }
}
