//! The messages of the share's two protocols: between a peer and a registry, and between two peers.
//!
//! Every request carries an id that the sender chose, and its reply repeats it, so that many
//! requests can be under way on one connection. A reply that refuses has one sentence for a person.
//!
//! Left out: frames and their encoding (`codec`), the handshake (`message`), and who may send what
//! when, which `docs/PROTOCOL.md` describes and the share itself enforces.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::{ChunkHash, ContentId, FileEntry, FileName, PeerId, bounded};

/// A request to a registry, from a peer or from a command that searches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryRequest {
    /// Joins the share with the files that the peer offers. More files than fit one frame follow in
    /// further `JOIN`s, whose `part` counts from 0. The registry lists them when `last` has come.
    #[serde(rename = "JOIN")]
    Join {
        peer: PeerId,
        /// The address on which the peer serves others.
        address: SocketAddr,
        #[serde(deserialize_with = "bounded::files")]
        files: Vec<FileEntry>,
        part: u32,
        last: bool,
        /// A random number that the peer sends to registries only. On another connection it proves
        /// that the id is the peer's own.
        secret: u64,
        /// Whether the peer shares a folder, even an empty one. One that does not only passes on
        /// what it is fetching.
        shares: bool,
    },
    /// Asks which peers have a file of exactly this name, extension included.
    #[serde(rename = "SEARCH")]
    Search { name: FileName },
    /// Changes the peer's list of files. It does not repeat what stays as it is.
    #[serde(rename = "UPDATE")]
    Update {
        /// Files that are new or have other content than before.
        #[serde(deserialize_with = "bounded::files")]
        added: Vec<FileEntry>,
        #[serde(deserialize_with = "bounded::files")]
        removed: Vec<FileName>,
    },
    /// Asks which peers have this content, whole or in part, under any name.
    #[serde(rename = "SEARCH_CONTENT")]
    SearchContent { content: ContentId },
    /// The peer is fetching this content and serves the chunks that it has so far. From now on it
    /// is a source of the content, and offers no file with it.
    #[serde(rename = "FETCHING")]
    Fetching {
        content: ContentId,
        /// The length of the whole content in bytes.
        size: u64,
    },
    /// The download has ended, well or not. `UPDATE` announces the file if there is one.
    #[serde(rename = "FETCHED")]
    Fetched { content: ContentId },
    /// The peer's heartbeat. A registry removes a peer that sends nothing for longer than its
    /// timeout.
    #[serde(rename = "KEEP_ALIVE")]
    KeepAlive,
    /// The peer leaves the share, and its files leave with it.
    #[serde(rename = "LEAVE")]
    Leave,
    /// Asks for a page of the list of peers, which is in order of their ids.
    #[serde(rename = "PEERS")]
    Peers {
        /// The last entry of the page before; absent for the first page.
        after: Option<PeerId>,
    },
    /// Asks for a page of the list of files, which is in order of their names.
    #[serde(rename = "FILES")]
    Files {
        /// The last entry of the page before; absent for the first page.
        after: Option<FileName>,
    },
}

/// A registry's reply to a [`RegistryRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryReply {
    /// The part of the `JOIN` was accepted. After the last part the peer's files are listed.
    #[serde(rename = "JOIN_OK")]
    JoinOk,
    /// The peers that have what was searched; empty when none does.
    #[serde(rename = "SOURCES")]
    Sources(Vec<Source>),
    #[serde(rename = "UPDATE_OK")]
    UpdateOk,
    #[serde(rename = "ALIVE_OK")]
    AliveOk,
    #[serde(rename = "LEAVE_OK")]
    LeaveOk,
    /// A page of the list of peers, with `more` set when it is not the last page.
    #[serde(rename = "PEERS_OK")]
    Peers { peers: Vec<PeerSummary>, more: bool },
    /// A page of the list of files, with `more` set when it is not the last page.
    #[serde(rename = "FILES_OK")]
    Files { files: Vec<FileSummary>, more: bool },
    /// No peer has joined on this connection, or the registry has removed the one that had. The
    /// peer has to `JOIN`.
    #[serde(rename = "NOT_JOINED")]
    NotJoined,
    /// A peer with this id has joined on another connection, which counts as alive.
    #[serde(rename = "ID_TAKEN")]
    IdTaken {
        /// How long to wait before the next `JOIN`, because the other connection may be a dead one
        /// of the same peer.
        retry_after_ms: u32,
    },
    /// The request was refused.
    #[serde(rename = "SHARE_ERROR")]
    Error {
        /// One sentence for a person: what happened, to what, and what to do about it.
        message: String,
        /// How long to wait before the next attempt; `None` when waiting does not help.
        retry_after_ms: Option<u32>,
    },
}

/// A peer that has a file, and what it has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub peer: PeerId,
    /// The address on which the peer serves others.
    pub address: SocketAddr,
    /// The length of the whole content in bytes.
    pub size: u64,
    /// The content, since files of one name need not be the same.
    pub content: ContentId,
}

/// A row of the registry's list of peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSummary {
    pub peer: PeerId,
    /// The address on which the peer serves others.
    pub address: SocketAddr,
    /// The number of files that it offers.
    pub files: u64,
    /// The sum of the lengths of its files.
    pub bytes: u64,
    /// Milliseconds since its last message.
    pub silent_ms: u64,
}

/// A row of the registry's list of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSummary {
    pub file: FileEntry,
    /// The number of peers that offer it.
    pub peers: u32,
}

/// A request to a peer, from one that downloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Asks for the size and content of the file of exactly this name.
    #[serde(rename = "FIND")]
    Find { name: FileName },
    /// Asks for the chunk hashes of a content, from chunk `first` on, as many as fit a frame.
    #[serde(rename = "HASHES")]
    Hashes { content: ContentId, first: u64 },
    /// Asks which chunks of a content the peer has. From now on it also sends a `HAVE` for each
    /// further chunk that it gets.
    #[serde(rename = "WATCH")]
    Watch { content: ContentId },
    /// Asks for one chunk. The reply is a `CHUNK_OK` frame, right after which the chunk's bytes
    /// follow outside of any frame.
    #[serde(rename = "CHUNK")]
    Chunk { content: ContentId, index: u64 },
    /// Cancels a request: a chunk that has not begun to be read is not sent. There is no reply to
    /// this message. The request that it names has one reply, as every other, which may be `DENIED`
    /// with `CANCELLED`.
    #[serde(rename = "CANCEL")]
    Cancel {
        /// The id of the request to cancel.
        request: u64,
    },
    /// The bytes that came for this chunk do not match its hash, so the peer should check its file.
    /// There is no reply to this message.
    #[serde(rename = "DOUBT")]
    Doubt { content: ContentId, index: u64 },
}

/// A peer's reply to a [`PeerRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerReply {
    /// The file that the peer offers under the requested name.
    #[serde(rename = "FOUND")]
    Found(FileEntry),
    /// Chunk hashes in order, beginning with the first one that was requested.
    #[serde(rename = "HASHES_OK")]
    Hashes {
        /// At least one, and as many as fit a frame.
        hashes: Vec<ChunkHash>,
    },
    /// Chunks that the peer has: the reply to `WATCH`, and sent again with the same id whenever it
    /// has got more.
    #[serde(rename = "HAVE")]
    Have {
        /// Runs of chunks as (first index, count), in ascending order and with gaps between them.
        runs: Vec<(u64, u64)>,
    },
    /// The next `length` bytes on this connection are the chunk; the next frame follows them.
    #[serde(rename = "CHUNK_OK")]
    Chunk { length: u32 },
    /// The peer does not give what was requested.
    #[serde(rename = "DENIED")]
    Denied {
        code: DenialCode,
        /// One sentence for a person: what happened, to what, and what to do about it.
        message: String,
    },
}

/// Why a peer does not give what was requested, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DenialCode {
    /// The peer does not have what was requested.
    #[serde(rename = "NOT_FOUND")]
    NotFound,
    /// The peer serves as many others as it may. A later attempt may succeed.
    #[serde(rename = "BUSY")]
    Busy,
    /// The file has changed since it was hashed.
    #[serde(rename = "CHANGED")]
    Changed,
    /// The file could not be read.
    #[serde(rename = "UNREADABLE")]
    Unreadable,
    /// No peer could answer the request, whatever it has.
    #[serde(rename = "INVALID")]
    Invalid,
    /// A `CANCEL` came before the chunk was read.
    #[serde(rename = "CANCELLED")]
    Cancelled,
}
