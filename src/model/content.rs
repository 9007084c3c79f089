//! What registry and peers call things by.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::FileName;

/// One peer, drawn at random when its folder is first shared and kept with it: a peer is its id,
/// not its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(pub u64);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The BLAKE3 hash of a file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub [u8; 32]);

/// The chaining value of one chunk's subtree in the content's BLAKE3 tree; of a content of one
/// chunk, the content's hash itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkHash(pub [u8; 32]);

macro_rules! hash_on_the_wire {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        /// As MessagePack binary of 32 bytes.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let bytes = bytes::Bytes::deserialize(from)?;
                let length = serde::de::Error::invalid_length(bytes.len(), &"32 bytes");
                <[u8; 32]>::try_from(&bytes[..]).map($name).map_err(|_| length)
            }
        }
    };
}

hash_on_the_wire!(ContentId);
hash_on_the_wire!(ChunkHash);

/// A file that a peer offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name, which is never a path.
    pub name: FileName,
    /// Its length in bytes.
    pub size: u64,
    /// What is in it.
    pub content: ContentId,
}
