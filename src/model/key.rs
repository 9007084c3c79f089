//! What can be a key: the one check, and its sentences.
//!
//! Keys are carried as bytes. Operations lie in the log, where no replica may refuse what a group
//! has committed, and a range may begin one byte after the longest key there can be; so a key is
//! checked where a request comes in, by its client, its gateway or its server, and nowhere behind
//! that.

use crate::limits;

/// Why bytes are not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("the key is empty: give it at least one byte")]
    Empty,
    /// It has this many bytes, more than [`limits::KEY_BYTES_MAX`].
    #[error(
        "the key has {0} bytes and at most {most} are allowed: use a shorter one",
        most = limits::KEY_BYTES_MAX
    )]
    TooLong(usize),
}

/// Checks a key: 1 to [`limits::KEY_BYTES_MAX`] bytes.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_key(key: &[u8]) -> Result<(), InvalidKey> {
    check_key_bytes(key.len())
}

/// Checks a key of which only the length is known.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn check_key_bytes(length: usize) -> Result<(), InvalidKey> {
    match length {
        0 => Err(InvalidKey::Empty),
        length if length > limits::KEY_BYTES_MAX => Err(InvalidKey::TooLong(length)),
        _ => Ok(()),
    }
}
