//! The messages that open a connection of the share, and frames around messages.
//!
//! The side that connects sends HELLO with the role `Share`; the side that accepts answers
//! SHARE_WELCOME, or REFUSED with a reason and then closes.

use crate::limits::{HELLO_FRAME_BYTES_MAX, SHARE_FRAME_BYTES_MAX};
use crate::model::PeerId;
use crate::wire::codec::{self, CodecError};
use crate::wire::message::{Hello, HelloRole, Message, PROTOCOL_VERSION};

/// The HELLO with which a connection to a registry or to a peer begins.
pub fn hello() -> Message {
    Message::Hello(Hello { protocol: PROTOCOL_VERSION, role: HelloRole::Share })
}

/// The SHARE_WELCOME of a peer, or of a registry, which is none.
pub fn welcome(peer: Option<PeerId>) -> Message {
    Message::ShareWelcome { protocol: PROTOCOL_VERSION, peer }
}

/// The peer that a SHARE_WELCOME names.
///
/// # Errors
/// It is a registry's.
pub fn peer_in_welcome(peer: Option<PeerId>) -> Result<PeerId, String> {
    peer.ok_or_else(|| "a registry answers there, and no peer".to_owned())
}

/// Checks that a SHARE_WELCOME comes from the expected peer, and not from another process that
/// happens to listen at its address.
///
/// # Errors
/// The sender is a registry or another peer; the text says which.
pub fn check_welcome(found: Option<PeerId>, expected: PeerId) -> Result<(), String> {
    match peer_in_welcome(found)? {
        other if other != expected => Err(format!("another peer answers there, {other}")),
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
