//! The messages that open a connection of the share, and frames around messages.
//!
//! The side that connects sends HELLO with the role `Share`; the side that accepts answers WELCOME,
//! or REFUSED with a reason and then closes. The share reuses the store's HELLO and WELCOME and
//! leaves their group, log and term fields at zero, because a share has none of these.

use crate::limits::{HELLO_FRAME_BYTES_MAX, SHARE_FRAME_BYTES_MAX};
use crate::model::{ClusterId, NodeId, PeerId, Timestamp};
use crate::wire::codec::{self, CodecError};
use crate::wire::message::{Hello, HelloRole, Message, PROTOCOL_VERSION, Welcome};

/// The HELLO with which a connection to a registry or to a peer begins.
pub fn hello() -> Message {
    let cluster = ClusterId(0);
    Message::Hello(Hello { protocol: PROTOCOL_VERSION, cluster, role: HelloRole::Share })
}

/// The WELCOME of the peer with this id. A registry is no peer and passes `PeerId(0)`.
pub fn welcome(peer: PeerId) -> Message {
    Message::Welcome(Welcome {
        protocol: PROTOCOL_VERSION,
        cluster: ClusterId(0),
        node: NodeId(0),
        incarnation: peer.0,
        last_index: 0,
        term: 0,
        first_leader: None,
        applied_timestamp: Timestamp::ZERO,
    })
}

/// The id of the peer that sent this WELCOME.
///
/// # Errors
/// The sender is a registry, which sends the id 0.
pub fn peer_in_welcome(welcome: &Welcome) -> Result<PeerId, String> {
    match PeerId(welcome.incarnation) {
        PeerId(0) => Err("a registry answers there, and no peer".to_owned()),
        peer => Ok(peer),
    }
}

/// Checks that the WELCOME comes from the expected peer, and not from another process that
/// happens to listen at its address.
///
/// # Errors
/// The sender is a registry or another peer; the text says which.
pub fn check_welcome(welcome: &Welcome, peer: PeerId) -> Result<(), String> {
    match peer_in_welcome(welcome)? {
        other if other != peer => Err(format!("another peer answers there, {other}")),
        _ => Ok(()),
    }
}

/// Checks the first message on an accepted connection.
///
/// # Errors
/// The message is not a HELLO of the share; the text is the reason to send in REFUSED.
pub fn check_hello(message: &Message) -> Result<(), String> {
    match message {
        Message::Hello(hello) if hello.protocol != PROTOCOL_VERSION => Err(format!(
            "protocol version {} is not spoken here, but {PROTOCOL_VERSION}",
            hello.protocol
        )),
        Message::Hello(Hello { role: HelloRole::Share, .. }) => Ok(()),
        Message::Hello(_) => {
            Err("this is a registry or a peer of a share and not a store: ask an acervo server"
                .to_owned())
        }
        _ => Err("a connection begins with HELLO".to_owned()),
    }
}

/// A REFUSED frame. The sender closes the connection after it.
pub fn refusal(reason: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    let message = Message::Refused { reason: reason.to_owned() };
    if let Err(error) = codec::encode(&message, HELLO_FRAME_BYTES_MAX, &mut frame) {
        log::debug!("a refusal is not said: {error}");
    }
    frame
}

/// Encodes a message between peers as one frame.
///
/// # Errors
/// The message is longer than [`SHARE_FRAME_BYTES_MAX`].
pub fn frame(message: &Message) -> Result<Vec<u8>, CodecError> {
    let mut frame = Vec::new();
    codec::encode(message, SHARE_FRAME_BYTES_MAX, &mut frame)?;
    Ok(frame)
}
