//! How connections of a share begin, and frames made of messages.

use crate::limits::{HELLO_FRAME_BYTES_MAX, SHARE_FRAME_BYTES_MAX};
use crate::model::{ClusterId, NodeId, PeerId, Timestamp};
use crate::wire::codec::{self, CodecError};
use crate::wire::message::{Hello, HelloRole, Message, PROTOCOL_VERSION, Welcome};

/// The first message on a connection to a registry or to a peer.
pub fn hello() -> Message {
    let cluster = ClusterId(0);
    Message::Hello(Hello { protocol: PROTOCOL_VERSION, cluster, role: HelloRole::Share })
}

/// The answer to a good one, of a peer with this id; a registry has none, and 0 for it. A share has no group, no log and no
/// terms: they are zero.
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

/// Which peer answers with this.
///
/// # Errors
/// It is none.
pub fn peer_in_welcome(welcome: &Welcome) -> Result<PeerId, String> {
    match PeerId(welcome.incarnation) {
        PeerId(0) => Err("a registry answers there, and no peer".to_owned()),
        peer => Ok(peer),
    }
}

/// Whether who answers with this is the peer that was meant, and not whoever else listens at its address.
///
/// # Errors
/// Why it is another one.
pub fn check_welcome(welcome: &Welcome, peer: PeerId) -> Result<(), String> {
    match peer_in_welcome(welcome)? {
        other if other != peer => Err(format!("another peer answers there, {other}")),
        _ => Ok(()),
    }
}

/// Whether a message is the greeting of somebody who may speak here; else what to tell them.
///
/// # Errors
///
/// The reason for refusing.
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

/// A refusal as a frame: the last word on a connection.
pub fn refusal(reason: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    let message = Message::Refused { reason: reason.to_owned() };
    if let Err(error) = codec::encode(&message, HELLO_FRAME_BYTES_MAX, &mut frame) {
        log::debug!("a refusal is not said: {error}");
    }
    frame
}

/// A message between peers as a frame.
///
/// # Errors
///
/// It does not fit one.
pub fn frame(message: &Message) -> Result<Vec<u8>, CodecError> {
    let mut frame = Vec::new();
    codec::encode(message, SHARE_FRAME_BYTES_MAX, &mut frame)?;
    Ok(frame)
}
