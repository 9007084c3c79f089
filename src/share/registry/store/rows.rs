//! The layout of the index in the store: keys and values of its rows.
//!
//! | key | value |
//! | --- | --- |
//! | `share/peer/ID` | the peer's address, session, registry, number of files and bytes |
//! | `share/file/ID/NAME` | size and content |
//! | `share/name/NAME\0ID` | size and content |
//! | `share/content/HASH/ID/NAME` | size; NAME is empty while the peer is downloading it |
//! | `share/part/ID/HASH` | size of a content that the peer is downloading |
//!
//! Ids and hashes are in hexadecimal. No name has a control character, so `\0` ends a name and
//! sorts before anything that could follow. Every question is one range, and one lookup of the
//! peers that it names. All rows of a peer are put with its leases (`peer_leases`).
//!
//! Rule: a row of another form was written by someone else, and is ignored.

use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::row_store::LeasedRow;
use crate::model::{ContentId, FileName, LeaseId, PeerId, Row, Timestamp};

/// Identifies a registry from its start to its end. Drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct RegistryId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PeerRow {
    pub address: SocketAddr,
    pub session: u64,
    /// The hash of its secret.
    pub key: u64,
    /// The registry it is connected to.
    pub registry: RegistryId,
    /// Whether all its files are written. Without that it is not named as a source.
    pub offered: bool,
    pub files: u64,
    pub bytes: u64,
}

/// A peer's row and its version, under which whoever has read or written it may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredPeer {
    pub row: PeerRow,
    pub version: Timestamp,
}

/// The value of a file's rows by peer and by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRow {
    pub size: u64,
    pub content: ContentId,
}

/// A file as it is found, with the lease that its rows were put with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundFile {
    pub file: FileRow,
    /// `None` if somebody else has written the row.
    pub lease: Option<LeaseId>,
}

/// The value of a content's row at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContentRow {
    pub size: u64,
}

pub(super) const PEERS: &str = "share/peer/";
pub(super) const NAMES: &str = "share/name/";

/// The end of the range of keys with a prefix: the byte 0xff occurs in no UTF-8 text.
pub(super) fn end(prefix: &str) -> Vec<u8> {
    [prefix.as_bytes(), &[0xff]].concat()
}

pub(super) fn peer_key(peer: PeerId) -> String {
    format!("{PEERS}{peer}")
}

pub(super) fn files_prefix(peer: PeerId) -> String {
    format!("share/file/{peer}/")
}

pub(super) fn file_key(peer: PeerId, name: &FileName) -> String {
    format!("share/file/{peer}/{name}")
}

pub(super) fn name_prefix(name: &FileName) -> String {
    format!("{NAMES}{name}\0")
}

pub(super) fn name_key(name: &FileName, peer: PeerId) -> String {
    format!("{NAMES}{name}\0{peer}")
}

pub(super) fn content_prefix(content: ContentId) -> String {
    format!("share/content/{content}/")
}

/// The key of a content at a peer. Without a name, the peer is downloading it.
pub(super) fn content_key(content: ContentId, peer: PeerId, name: Option<&FileName>) -> String {
    let name = name.map_or("", FileName::as_str);
    format!("share/content/{content}/{peer}/{name}")
}

pub(super) fn parts_prefix(peer: PeerId) -> String {
    format!("share/part/{peer}/")
}

/// The keys of a content that a peer is downloading.
pub(super) fn keys_of_part(peer: PeerId, content: ContentId) -> [String; 2] {
    [content_key(content, peer, None), format!("share/part/{peer}/{content}")]
}

pub(super) fn keys_of_file(peer: PeerId, name: &FileName, content: ContentId) -> [String; 3] {
    [file_key(peer, name), name_key(name, peer), content_key(content, peer, Some(name))]
}

pub(super) fn rows_of_file(
    peer: PeerId,
    name: &FileName,
    file: FileRow,
    lease: LeaseId,
) -> [LeasedRow; 3] {
    let [by_peer, by_name, by_content] = keys_of_file(peer, name, file.content);
    let content = encode(&ContentRow { size: file.size });
    let rows = [(by_peer, encode(&file)), (by_name, encode(&file)), (by_content, content)];
    rows.map(|(key, value)| LeasedRow { key, value, lease })
}

/// The part of a key behind `prefix`; `None` for a key of another form.
pub(super) fn rest<'a>(row: &'a Row, prefix: &str) -> Option<&'a str> {
    std::str::from_utf8(&row.key).ok()?.strip_prefix(prefix)
}

/// The peer whose id a key has; `None` for one that is written otherwise, of which no row would be
/// found.
pub(super) fn peer_of(hex: &str) -> Option<PeerId> {
    let peer = PeerId(u64::from_str_radix(hex, 16).ok()?);
    (peer.to_string() == hex).then_some(peer)
}

/// The content that a key names; `None` for text that no registry writes so.
pub(super) fn content_of(hex: &str) -> Option<ContentId> {
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    let content = ContentId(bytes);
    (content.to_string() == hex).then_some(content)
}

/// Decodes a row's value; `None` for one of another form.
pub(super) fn value<T: DeserializeOwned>(value: Option<&[u8]>) -> Option<T> {
    rmp_serde::from_slice(value?).ok()
}

pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    // Encoding into memory fails only for maps and sequences of unknown length, which no row has.
    rmp_serde::to_vec(value).expect("a row can be encoded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_no_registry_writes_so_is_none() {
        assert_eq!(peer_of("00000000000000fe"), Some(PeerId(0xfe)));
        assert_eq!(peer_key(PeerId(0xfe)), format!("{PEERS}00000000000000fe"));
        for other in ["fe", "+0000000000000fe", "00000000000000FE", "000000000000000fe", ""] {
            assert_eq!(peer_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_content_that_no_registry_writes_so_is_none() {
        let hex = "0a".repeat(32);
        assert_eq!(content_of(&hex), Some(ContentId([10; 32])));
        let wrong =
            [&hex[1..], &hex.to_uppercase(), &format!("{hex}0a"), "", "é", &"+a".repeat(32)];
        for other in wrong {
            assert_eq!(content_of(other), None, "{other}");
        }
    }
}
