//! What the registry and the peers of a share say to each other.
//!
//! Requests carry an id of the asker's choice, echoed in the answer, so that many can be under way.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::{ChunkHash, ContentId, FileEntry, FileName, PeerId, bounded};

/// A peer, or somebody who looks for files, asks the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryRequest {
    /// A peer offers files. More files than fit one frame follow in further `JOIN`s with `part`
    /// counting from 0; the registry offers them together when `last` has come.
    #[serde(rename = "JOIN")]
    Join {
        /// Who.
        peer: PeerId,
        /// Where it serves.
        address: SocketAddr,
        /// Its files, or a part of them.
        #[serde(deserialize_with = "bounded::files")]
        files: Vec<FileEntry>,
        /// Which part.
        part: u32,
        /// Nothing follows.
        last: bool,
        /// Drawn by the peer, and told to registries only: over another connection it proves that the id is its own.
        secret: u64,
        /// It shares a folder, which may be empty. A peer that only fetches passes on what it fetches.
        shares: bool,
    },
    /// Who has a file of exactly this name?
    #[serde(rename = "SEARCH")]
    Search {
        /// The name, with its extension.
        name: FileName,
    },
    /// The peer has new files (downloaded, or put into its folder), and others no more.
    #[serde(rename = "UPDATE")]
    Update {
        /// New or changed.
        #[serde(deserialize_with = "bounded::files")]
        added: Vec<FileEntry>,
        /// Gone.
        #[serde(deserialize_with = "bounded::files")]
        removed: Vec<FileName>,
    },
    /// Who has this content, whole or in part, under whatever name?
    #[serde(rename = "SEARCH_CONTENT")]
    SearchContent {
        /// Which.
        content: ContentId,
    },
    /// The peer is fetching this and serves the chunks it has already. It is a source of the content
    /// from now on, but has no file of any name.
    #[serde(rename = "FETCHING")]
    Fetching {
        /// What.
        content: ContentId,
        /// Its length in bytes.
        size: u64,
    },
    /// It fetches this no more; a file that has come of it is announced by `UPDATE`.
    #[serde(rename = "FETCHED")]
    Fetched {
        /// What.
        content: ContentId,
    },
    /// The peer is alive. Its silence, for longer than the registry's time-out, takes its files away.
    #[serde(rename = "KEEP_ALIVE")]
    KeepAlive,
    /// The peer goes.
    #[serde(rename = "LEAVE")]
    Leave,
    /// Which peers are there? In pages, by id.
    #[serde(rename = "PEERS")]
    Peers {
        /// After this one; absent for the first page.
        after: Option<PeerId>,
    },
    /// Which files are there? In pages, by name.
    #[serde(rename = "FILES")]
    Files {
        /// After this one; absent for the first page.
        after: Option<FileName>,
    },
}

/// The registry answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryReply {
    /// The peer's files are offered (or its part has been noted).
    #[serde(rename = "JOIN_OK")]
    JoinOk,
    /// Who has it; empty when nobody does.
    #[serde(rename = "SOURCES")]
    Sources(Vec<Source>),
    /// Noted.
    #[serde(rename = "UPDATE_OK")]
    UpdateOk,
    /// Noted.
    #[serde(rename = "ALIVE_OK")]
    AliveOk,
    /// Forgotten.
    #[serde(rename = "LEAVE_OK")]
    LeaveOk,
    /// A page of peers; `more` when others follow.
    #[serde(rename = "PEERS_OK")]
    Peers {
        /// In order of id.
        peers: Vec<PeerSummary>,
        /// Ask again after the last one.
        more: bool,
    },
    /// A page of files; `more` when others follow.
    #[serde(rename = "FILES_OK")]
    Files {
        /// In order of name.
        files: Vec<FileSummary>,
        /// Ask again after the last one.
        more: bool,
    },
    /// This connection has not joined, or was forgotten: JOIN (again).
    #[serde(rename = "NOT_JOINED")]
    NotJoined,
    /// Another connection has joined as this peer, and is alive.
    #[serde(rename = "ID_TAKEN")]
    IdTaken {
        /// Try again after this long: it may be a connection of the same peer that is dead.
        retry_after_ms: u32,
    },
    /// No: one sentence for a person.
    #[serde(rename = "SHARE_ERROR")]
    Error {
        /// What happened, to what, what to do.
        message: String,
        /// Try again after this long; 0 when waiting does not help.
        retry_after_ms: u32,
    },
}

/// Somebody who has a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub address: SocketAddr,
    /// The length in bytes of what it has.
    pub size: u64,
    /// And the content: files of one name need not be the same.
    pub content: ContentId,
}

/// A peer as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSummary {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub address: SocketAddr,
    /// How many files it offers.
    pub files: u64,
    /// How many bytes they have together.
    pub bytes: u64,
    /// Milliseconds since it was last heard.
    pub silent_ms: u64,
}

/// A file as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSummary {
    /// Its name, size and content.
    pub file: FileEntry,
    /// How many peers have it.
    pub peers: u32,
}

/// Somebody who downloads asks a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// What do you have under this name?
    #[serde(rename = "FIND")]
    Find {
        /// The name, with its extension.
        name: FileName,
    },
    /// The chunk hashes of a content, from chunk `first` on, as many as fit.
    #[serde(rename = "HASHES")]
    Hashes {
        /// Of what.
        content: ContentId,
        /// The first wanted.
        first: u64,
    },
    /// Which chunks of it do you have, and from now on tell me (`HAVE`) of each further one.
    #[serde(rename = "WATCH")]
    Watch {
        /// Of what.
        content: ContentId,
    },
    /// The bytes of one chunk. Answered by `CHUNK` and, right after that frame, the bytes as they
    /// are.
    #[serde(rename = "CHUNK")]
    Chunk {
        /// Of what.
        content: ContentId,
        /// Which.
        index: u64,
    },
    /// Never mind: what has not begun to be read is not sent. It has no answer of its own; the request
    /// it names is answered once, as every other, if by `DENIED` with `CANCELLED`.
    #[serde(rename = "CANCEL")]
    Cancel {
        /// The id of the request.
        request: u64,
    },
    /// The bytes that came for this chunk are not what its hash says: look at the file. It has no answer.
    #[serde(rename = "DOUBT")]
    Doubt {
        /// Of what.
        content: ContentId,
        /// Which.
        index: u64,
    },
}

/// A peer answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerReply {
    /// This is what it has under that name.
    #[serde(rename = "FOUND")]
    Found(FileEntry),
    /// Chunk hashes in order, from the one asked for on.
    #[serde(rename = "HASHES_OK")]
    Hashes {
        /// As many as fit a frame; at least one.
        hashes: Vec<ChunkHash>,
    },
    /// Chunks it has, as runs: first index, how many. Also sent later, unasked, with the watch's id.
    #[serde(rename = "HAVE")]
    Have {
        /// Ascending, apart from each other.
        runs: Vec<(u64, u64)>,
    },
    /// The next `length` bytes on this connection are the chunk, raw; frames go on after them.
    #[serde(rename = "CHUNK_OK")]
    Chunk {
        /// Bytes.
        length: u32,
    },
    /// Not had (any more), busy, changed under way: one sentence for a person.
    #[serde(rename = "DENIED")]
    Denied {
        /// For programs.
        code: DenialCode,
        /// What happened, to what, what to do.
        message: String,
    },
}

/// Why a peer does not give something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DenialCode {
    /// It does not have it.
    #[serde(rename = "NOT_FOUND")]
    NotFound,
    /// It serves as many as it may: try again later.
    #[serde(rename = "BUSY")]
    Busy,
    /// The file is not what was hashed any more.
    #[serde(rename = "CHANGED")]
    Changed,
    /// It could not be read.
    #[serde(rename = "UNREADABLE")]
    Unreadable,
    /// The request makes no sense.
    #[serde(rename = "INVALID")]
    Invalid,
    /// It was called off: what a `CANCEL` that came in time brings about.
    #[serde(rename = "CANCELLED")]
    Cancelled,
}
