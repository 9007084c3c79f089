//! The rows of the index in the store: their keys and values.
//!
//! | key | value |
//! | --- | --- |
//! | `share/registry/ID` | how long it may be silent; written again and again while the registry lives |
//! | `share/peer/ID` | where the peer serves, its session, its registry, how many files and bytes |
//! | `share/file/ID/NAME` | size and content |
//! | `share/name/NAME\0ID` | size and content |
//! | `share/content/HASH/ID/NAME` | size; NAME is empty while the peer is fetching it |
//! | `share/part/ID/HASH` | size of a content that the peer is fetching |
//!
//! Ids and hashes are in hexadecimal; no name has a control character, so `\0` ends one and sorts before
//! all that could follow. Every question is one range, and one look at the peers that were found in it.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{ContentId, FileName, PeerId, Row};

/// A registry, from one start to its end, drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct RegistryId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RegistryRow {
    /// With its row as old as this, it is taken for dead.
    pub silence_timeout_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PeerRow {
    pub address: SocketAddr,
    pub session: u64,
    /// A hash of its secret.
    pub key: u64,
    /// Whom it is connected to.
    pub registry: RegistryId,
    /// Its files are all there; without that nobody is sent to it.
    pub offered: bool,
    pub files: u64,
    pub bytes: u64,
}

/// What is known of a file, by the peer that has it and by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRow {
    pub size: u64,
    pub content: ContentId,
}

/// A content at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContentRow {
    pub size: u64,
}

pub(super) const REGISTRIES: &str = "share/registry/";
pub(super) const PEERS: &str = "share/peer/";
pub(super) const NAMES: &str = "share/name/";

/// Where the keys with a prefix end: no UTF-8 has this byte.
pub(super) fn end(prefix: &str) -> Vec<u8> {
    [prefix.as_bytes(), &[0xff]].concat()
}

pub(super) fn registry_key(registry: RegistryId) -> String {
    format!("{REGISTRIES}{:016x}", registry.0)
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

/// Without a name: the peer is fetching it.
pub(super) fn content_key(content: ContentId, peer: PeerId, name: Option<&FileName>) -> String {
    let name = name.map_or("", FileName::as_str);
    format!("share/content/{content}/{peer}/{name}")
}

pub(super) fn parts_prefix(peer: PeerId) -> String {
    format!("share/part/{peer}/")
}

pub(super) fn part_key(peer: PeerId, content: ContentId) -> String {
    format!("share/part/{peer}/{content}")
}

/// The three keys under which a file is found.
pub(super) fn keys_of_file(peer: PeerId, name: &FileName, content: ContentId) -> [String; 3] {
    [file_key(peer, name), name_key(name, peer), content_key(content, peer, Some(name))]
}

/// Its three rows.
pub(super) fn rows_of_file(peer: PeerId, name: &FileName, file: FileRow) -> [(String, Vec<u8>); 3] {
    let [by_peer, by_name, by_content] = keys_of_file(peer, name, file.content);
    let content = encode(&ContentRow { size: file.size });
    [(by_peer, encode(&file)), (by_name, encode(&file)), (by_content, content)]
}

/// The last part of a key, behind `prefix`; nothing for a key that is not ours.
pub(super) fn rest<'a>(row: &'a Row, prefix: &str) -> Option<&'a str> {
    std::str::from_utf8(&row.key).ok()?.strip_prefix(prefix)
}

pub(super) fn peer_of(hex: &str) -> Option<PeerId> {
    u64::from_str_radix(hex, 16).ok().map(PeerId)
}

pub(super) fn registry_of(hex: &str) -> Option<RegistryId> {
    u64::from_str_radix(hex, 16).ok().map(RegistryId)
}

/// A row's value; nothing for one that somebody else has written.
pub(super) fn value<T: DeserializeOwned>(value: Option<&Bytes>) -> Option<T> {
    rmp_serde::from_slice(value?).ok()
}

pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    // Writing MessagePack into memory cannot fail for types without maps of unknown length.
    rmp_serde::to_vec(value).unwrap_or_default()
}
