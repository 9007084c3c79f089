//! The one `Message` type that every connection carries, and its parts.
//!
//! `docs/PROTOCOL.md` describes the same bytes for someone who writes a client in another
//! language; a test holds the two together. Structs travel as MessagePack arrays in field order,
//! enum variants as a one-entry map from the variant's name, a variant without fields as its name.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::share::{PeerReply, PeerRequest, RegistryReply, RegistryRequest};
use crate::limits::ELEMENT_OVERHEAD_BYTES;
use crate::model::{
    ClusterId, Effect, EncodedWrite, History, KeyChange, KeyInterval, LeaseAnswer, LeaseId,
    LeaseQuestion, LogEntry, LogIndex, NodeId, OpShape, PageNext, PageOf, PeerId, Previous,
    ReadView, RequestId, Row, SnapshotId, Term, Timestamp, Txn, TxnAnswer, Version, WriteAnswer,
    WriteOp, bounded,
};

/// Entries and values of at least this many bytes are not copied into the frame they go out in: of
/// shorter ones the copy costs less than a piece of its own to write.
const SHARED_BYTES_MIN: usize = 16 * 1024;

/// Everything that travels, in both directions, on client and on server connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first frame of a connection, from the side that dialled.
    #[serde(rename = "HELLO")]
    Hello(Hello),
    /// The answer of a store's server to a good `HELLO`.
    #[serde(rename = "WELCOME")]
    Welcome(Welcome),
    /// The answer of a registry or a peer of a share to a good `HELLO`.
    #[serde(rename = "SHARE_WELCOME")]
    ShareWelcome {
        /// [`PROTOCOL_VERSION`] of the sender.
        protocol: u32,
        /// The peer that answers; nil from a registry.
        peer: Option<PeerId>,
    },
    /// The answer to a bad `HELLO`, or the last word on a connection that broke a rule; the sender
    /// closes after it.
    #[serde(rename = "REFUSED")]
    Refused {
        /// One sentence for a person.
        reason: String,
    },
    /// A client asks. Answers may come in any order.
    #[serde(rename = "REQUEST")]
    Request {
        /// Chosen by the client, echoed in the reply; unique among its outstanding requests.
        id: u64,
        body: Request,
    },
    /// A server answers the request of this id.
    #[serde(rename = "REPLY")]
    Reply { id: u64, body: Reply },
    /// A server shows what a watch is to see, without being asked each time.
    #[serde(rename = "WATCHED")]
    Watched {
        /// The watch's number, as [`WatchRequest::watch`] chose it.
        watch: u64,
        body: WatchFrame,
    },
    /// No watch of this connection will be shown a change of this version or an older one any more,
    /// but for those that are behind. A client that begins anew may begin all others after it.
    #[serde(rename = "WATCH_PROGRESS")]
    WatchProgress {
        up_to: Timestamp,
        /// The numbers of the watches of which it is not said, in order.
        #[serde(deserialize_with = "bounded::watches")]
        behind: Vec<u64>,
    },
    /// A client has taken what a watch was shown, and may be shown so much more.
    #[serde(rename = "WATCH_CREDIT")]
    WatchCredit {
        watch: u64,
        /// As [`WatchFrame::credit_bytes`] counts them.
        bytes: u32,
    },
    /// Are you there? Either side of a client connection may ask.
    #[serde(rename = "PING")]
    Ping { nonce: u64 },
    /// The answer to a `PING`.
    #[serde(rename = "PONG")]
    Pong { nonce: u64 },
    /// What servers of a group send to each other, and nobody else.
    #[serde(rename = "SERVER")]
    Server(ServerMessage),
    /// To a registry of a share.
    #[serde(rename = "REGISTRY")]
    Registry {
        /// Chosen by the asker, echoed in the reply.
        id: u64,
        body: RegistryRequest,
    },
    /// From a registry of a share.
    #[serde(rename = "REGISTRY_REPLY")]
    RegistryReply { id: u64, body: RegistryReply },
    /// From one peer of a share to another.
    #[serde(rename = "SHARE")]
    Share {
        /// Chosen by the asker, echoed in the reply.
        id: u64,
        body: PeerRequest,
    },
    /// The other peer's answer.
    #[serde(rename = "SHARE_REPLY")]
    ShareReply { id: u64, body: PeerReply },
}

impl Message {
    /// Parts of the message that are long enough not to be copied into its frame, in the order in
    /// which they are encoded.
    pub fn shared_parts(&self) -> Vec<&Bytes> {
        let is_long = |part: &&Bytes| part.len() >= SHARED_BYTES_MIN;
        match self {
            Message::Server(ServerMessage::Raft(RaftMessage {
                body: RaftBody::Append { entries, .. },
                ..
            })) => entries.iter().map(|entry| &entry.data).filter(is_long).collect(),
            Message::Server(ServerMessage::Forward { write, .. }) => {
                Some(write.data()).filter(is_long).into_iter().collect()
            }
            Message::Server(ServerMessage::SnapshotChunk { data, .. }) => {
                Some(data).filter(is_long).into_iter().collect()
            }
            Message::Watched { body, .. } => body.values().filter(is_long).collect(),
            _ => Vec::new(),
        }
    }
}

/// The protocol version this build speaks.
pub const PROTOCOL_VERSION: u32 = 3;

/// The first frame of a connection: who dials, and which protocol it speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub protocol: u32,
    /// What kind of connection this is to be.
    pub role: HelloRole,
}

/// What the dialling side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloRole {
    /// A client: requests, replies, pings.
    #[serde(rename = "CLIENT")]
    Client {
        /// The group meant; nil for whichever the server belongs to.
        cluster: Option<ClusterId>,
    },
    /// Another server of the group: the connection carries `SERVER` messages from it.
    #[serde(rename = "SERVER")]
    Server {
        /// The group that both belong to.
        cluster: ClusterId,
        node: NodeId,
        /// Drawn when its data directory was created. A new one under an old node number means
        /// the directory was lost; what still comes in from the old one is not to be believed.
        incarnation: u64,
        /// Which of the two connections of the link this is to be.
        channel: Channel,
    },
    /// A peer of a share, or somebody who looks for files, to a registry or to another peer.
    #[serde(rename = "SHARE")]
    Share,
}

impl HelloRole {
    /// A client of whichever group it reaches.
    pub const CLIENT: HelloRole = HelloRole::Client { cluster: None };
}

/// What one of the two connections of a link between servers carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// What is short and must not wait: heartbeats, votes, acknowledgements, read indices.
    #[serde(rename = "CONTROL")]
    Control,
    /// What may be long: entries, clients' writes passed on and their answers, snapshots. In the
    /// order in which it was sent.
    #[serde(rename = "BULK")]
    Bulk,
}

impl Channel {
    /// Both, in the order of their numbers.
    pub const ALL: [Channel; 2] = [Channel::Control, Channel::Bulk];

    /// The connection on which a message is sent. Receivers take any message on either.
    pub fn of(message: &ServerMessage) -> Channel {
        match message {
            // A REPLICATION without entries, too, must not overtake those that it counts on. An
            // answer to a client comes behind the entry it is about, which the client may want to
            // read next.
            ServerMessage::Raft(RaftMessage { body: RaftBody::Append { .. }, .. })
            | ServerMessage::Forward { .. }
            | ServerMessage::Forwarded { .. }
            | ServerMessage::Leases { .. }
            | ServerMessage::LeasesOk { .. }
            | ServerMessage::Snapshot { .. }
            | ServerMessage::SnapshotChunk { .. }
            | ServerMessage::SnapshotEnd { .. } => Channel::Bulk,
            ServerMessage::Raft(_)
            | ServerMessage::ReadIndex { .. }
            | ServerMessage::ReadIndexOk { .. }
            | ServerMessage::SnapshotAnswer { .. }
            | ServerMessage::LogTerm { .. }
            | ServerMessage::LogTermOk { .. }
            | ServerMessage::About { .. }
            | ServerMessage::Disk { .. }
            | ServerMessage::StateHash { .. }
            | ServerMessage::StateHashAt { .. }
            | ServerMessage::StateHashOk { .. } => Channel::Control,
        }
    }
}

/// The answer to a good [`Hello`]: who was reached, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub protocol: u32,
    /// The group the answering server belongs to.
    pub cluster: ClusterId,
    pub node: NodeId,
    /// Drawn when the answering server's data directory was created.
    pub incarnation: u64,
    /// The last index of the answering server's log, by which a leader notices that a server lost
    /// its data directory.
    pub last_index: LogIndex,
    /// The answering server's term.
    pub term: Term,
    /// Whom the answering server was told leads first, as long as its data directory is blank;
    /// `None` once it has taken part in the group.
    pub first_leader: Option<NodeId>,
    /// The timestamp of the last write that the answering server has applied: with it a client
    /// begins.
    pub applied_timestamp: Timestamp,
}

/// What a client can ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Carry out one operation, once, however often the request comes.
    #[serde(rename = "WRITE")]
    Write(WriteRequest),
    /// Read one version of one key.
    #[serde(rename = "GET")]
    Get(GetRequest),
    /// Read many keys, or many versions, a page at a time.
    #[serde(rename = "PAGE")]
    Page(PageRequest),
    /// Carry out a transaction that only reads.
    #[serde(rename = "TXN")]
    Txn(TxnRequest),
    /// Be shown every change of a range of keys from now on, or from a version on.
    #[serde(rename = "WATCH")]
    Watch(WatchRequest),
    /// End one watch of this connection.
    #[serde(rename = "UNWATCH")]
    Unwatch { watch: u64 },
    /// Have the server describe itself and its group.
    #[serde(rename = "STATUS")]
    Status,
    /// Keep leases alive, or describe them.
    #[serde(rename = "LEASES")]
    Leases(LeaseQuestion),
}

impl Request {
    /// Bytes of memory that it takes, about.
    pub fn memory_bytes(&self) -> usize {
        let element = |bytes: &Bytes| bytes.len() + ELEMENT_OVERHEAD_BYTES;
        match self {
            Request::Write(write) => OpShape::of(&write.op).memory_bytes(),
            Request::Get(request) => element(&request.key),
            Request::Page(PageRequest { of, .. }) => match of {
                PageOf::Range { from, to } | PageOf::RangeReverse { from, to } => {
                    element(from) + element(to)
                }
                PageOf::Keys { keys } => keys.iter().map(element).sum(),
                PageOf::Versions { key } => element(key),
                PageOf::Lease { from, .. } => element(from),
            },
            Request::Txn(request) => request.txn.memory_bytes(),
            Request::Watch(WatchRequest { range, .. }) => element(&range.from) + element(&range.to),
            Request::Unwatch { .. } | Request::Status => 0,
            Request::Leases(question) => question.names() * size_of::<LeaseId>(),
        }
    }
}

/// A write, identified so that a retry is applied once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// The same whenever the write is sent again, so that it is applied once.
    pub request: RequestId,
    /// The operation that is asked for.
    pub op: WriteOp,
}

/// A read of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRequest {
    pub key: Bytes,
    pub read_at: ReadAt,
    /// A server that has not applied everything up to here must not answer.
    pub session: Option<Timestamp>,
    /// Read through the leader's read index.
    pub linearizable: bool,
    /// Tell the facts of the version, too. They are known only when it is applied.
    pub facts: bool,
}

/// A transaction that only reads. All of it is answered from one state of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnRequest {
    pub txn: Txn,
    /// It means what it means in a [`GetRequest`].
    pub session: Option<Timestamp>,
    /// It means what it means in a [`GetRequest`].
    pub linearizable: bool,
}

/// Which version of a key a GET is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadAt {
    /// The newest that the server has.
    #[serde(rename = "NEWEST")]
    Newest {
        /// The greatest version of the key that the client has seen. A server that has only an
        /// older one must not answer.
        seen: Option<Timestamp>,
    },
    /// The greatest that is not greater than this. A server that has not applied everything up to
    /// here must not answer.
    #[serde(rename = "VERSION")]
    Version(Timestamp),
}

/// A page of a longer read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequest {
    pub of: PageOf,
    pub view: PageView,
    /// At most so many rows; the server may give fewer.
    pub rows_max: u32,
    /// Leave the values out: an empty one stands for each value that there is.
    pub keys_only: bool,
}

/// The read view of a page: all pages of one read show the same, whatever is written, removed or
/// trimmed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageView {
    /// The first page of a read: the server chooses the read view, and names it in the answer.
    #[serde(rename = "FIRST")]
    First {
        /// The version as of which to read; nil for the newest.
        at: Option<Timestamp>,
        /// It means what it means in a [`GetRequest`].
        session: Option<Timestamp>,
        /// It means what it means in a [`GetRequest`].
        linearizable: bool,
    },
    /// A further page, in the read view that the answer to the first one named, beginning with what
    /// the page before said under `next`.
    #[serde(rename = "NEXT")]
    Next(ReadView),
}

impl PageView {
    /// A server that has not applied everything up to here must not answer; `None` if any may.
    pub fn wanted(&self) -> Option<Timestamp> {
        match self {
            PageView::First { at, session, .. } => *at.max(session),
            PageView::Next(view) => Some(view.at.max(view.removals_up_to)),
        }
    }
}

/// A watch of a range of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// Chosen by the client, and no number of another watch of the connection.
    pub watch: u64,
    pub range: KeyInterval,
    /// The version after which changes are shown; nil for those that the server applies from now
    /// on. A server that has not come so far shows nothing until it has.
    pub after: Option<Timestamp>,
    /// Each change says what its key had before.
    pub tells_previous: bool,
    /// How much may be shown before the client says that it has taken it, as
    /// [`WatchFrame::credit_bytes`] counts; at most
    /// [`WATCH_CREDIT_BYTES_MAX`](crate::limits::WATCH_CREDIT_BYTES_MAX).
    pub credit_bytes: u32,
}

/// A part of what a watch is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchFrame {
    /// Changes of the range, in order of their versions, and of one version in order of keys.
    #[serde(rename = "EVENTS")]
    Events {
        #[serde(deserialize_with = "bounded::rows")]
        changes: Vec<KeyChange>,
        /// Everything up to this version was shown.
        up_to: Timestamp,
        /// The last change's version has more changes, which the next frame begins with.
        continues: bool,
    },
    /// Changes that were to be shown may be gone. This is the range as of a version instead; what
    /// is not in it does not exist. Changes after that version follow.
    #[serde(rename = "RESET")]
    Reset {
        /// In order of keys.
        #[serde(deserialize_with = "bounded::rows")]
        rows: Vec<Row>,
        /// The version as of which the rows are shown.
        at: Timestamp,
        /// Whether these are the first rows. If others have come before, those do not count.
        begins: bool,
        /// Whether the next frame has more of them.
        continues: bool,
    },
}

impl WatchFrame {
    /// The values that it carries, in the order in which they are encoded.
    fn values(&self) -> impl Iterator<Item = &Bytes> {
        let (changes, rows) = match self {
            WatchFrame::Events { changes, .. } => (&changes[..], &[][..]),
            WatchFrame::Reset { rows, .. } => (&[][..], &rows[..]),
        };
        let of_changes = changes.iter().flat_map(|change| {
            let previous = match &change.previous {
                Some(Previous::Value { value, .. }) => value.as_ref(),
                Some(Previous::Absent) | None => None,
            };
            change.written.iter().map(|version| &version.value).chain(previous)
        });
        of_changes.chain(rows.iter().filter_map(|row| Some(&row.found.as_ref()?.value)))
    }

    /// The credit that it takes: the bytes of keys and values, and
    /// [`WATCH_ELEMENT_BYTES`] for each change or row.
    pub fn credit_bytes(&self) -> u32 {
        let keys: usize = match self {
            WatchFrame::Events { changes, .. } => {
                changes.iter().map(|change| change.key.len() + WATCH_ELEMENT_BYTES).sum()
            }
            WatchFrame::Reset { rows, .. } => {
                rows.iter().map(|row| row.key.len() + WATCH_ELEMENT_BYTES).sum()
            }
        };
        let bytes = keys + self.values().map(Bytes::len).sum::<usize>();
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

/// What a change or a row takes of a watch's credit besides the bytes of its key and its values.
pub const WATCH_ELEMENT_BYTES: usize = 64;

/// What a server can answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// A write is over, and durable as the acknowledgement rule asks. What a write on many keys
    /// removed or replaced can be read, for
    /// [`limits::REMOVAL_GRACE`](crate::limits::REMOVAL_GRACE), in the read view
    /// [`ReadView::before`] its timestamp.
    #[serde(rename = "WRITE_OK")]
    WriteOk(WriteAnswer),
    /// A GET is answered.
    #[serde(rename = "GET_OK")]
    GetOk {
        /// What the key has; nil when it has no value.
        found: Option<Version>,
        /// The state the answer comes from holds every write up to some point, and none past
        /// this one. A client that must not read backwards sends it as `session` next time.
        as_of: Timestamp,
    },
    /// This server has not applied enough to answer without going back in time.
    #[serde(rename = "TRY_OTHER_SERVER_OR_LATER")]
    TryOtherServerOrLater {
        /// The version this server has of the key; nil when it has none, and of a page.
        timestamp: Option<Timestamp>,
        /// The last timestamp this server has applied.
        applied: Timestamp,
    },
    /// A PAGE is answered.
    #[serde(rename = "PAGE_OK")]
    PageOk {
        /// The rows, in the order asked for.
        #[serde(deserialize_with = "bounded::rows")]
        rows: Vec<Row>,
        /// For the next page, and for whoever wants to read this state again. The state that the
        /// rows come from holds every write up to its `removals_up_to`.
        view: ReadView,
        /// Nil when this was the last page.
        next: Option<PageNext>,
    },
    /// A transaction that only reads is answered.
    #[serde(rename = "TXN_OK")]
    TxnOk {
        answer: TxnAnswer,
        /// The state that the answer comes from holds every write up to here and none after.
        as_of: Timestamp,
    },
    /// A watch has begun.
    #[serde(rename = "WATCH_OK")]
    WatchOk {
        /// It shows every change after this version.
        after: Timestamp,
    },
    /// A watch has ended: nothing of it follows.
    #[serde(rename = "UNWATCH_OK")]
    UnwatchOk {},
    /// A STATUS is answered.
    #[serde(rename = "STATUS_OK")]
    StatusOk(Box<ServerStatus>),
    /// A LEASES is answered, by a leader that was confirmed as leader after the request had come.
    #[serde(rename = "LEASES_OK")]
    LeasesOk(LeaseAnswer),
    /// The request failed; the reply says how, and what is known of its effect.
    #[serde(rename = "ERROR")]
    Error(ErrorReply),
}

/// Why a request failed, and what is known of its effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What programs decide by.
    pub code: ErrorCode,
    /// One sentence for a person: what happened, to what, what to do.
    pub message: String,
    /// Of a write: whether it has taken effect, as far as this server knows. A read has none.
    pub effect: Effect,
}

impl ErrorReply {
    /// An error of a request that has had no effect.
    pub fn not_done(code: ErrorCode, message: String) -> ErrorReply {
        ErrorReply { code, message, effect: Effect::NotDone }
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// Not enough servers answer to order a write or confirm a read in the time allowed.
    #[serde(rename = "NO_MAJORITY")]
    NoMajority,
    /// A write was ordered, or passed on, and not confirmed in the time allowed: its effect is
    /// known as little as `effect` says. A retry with the same sequence is safe.
    #[serde(rename = "UNCONFIRMED")]
    Unconfirmed,
    /// A queue is full; nothing was done, unless the effect says otherwise: what a transaction
    /// tells may find no room when it is done.
    #[serde(rename = "BUSY")]
    Busy {
        /// Try again after this long.
        retry_after_ms: u32,
    },
    /// The server is stopping; nothing was done, ask another.
    #[serde(rename = "SHUTTING_DOWN")]
    ShuttingDown,
    /// The request breaks a rule or a limit; repeating it will not help.
    #[serde(rename = "INVALID")]
    Invalid,
    /// The write's sequence was declared answered before, so its outcome is forgotten.
    #[serde(rename = "STALE_REQUEST")]
    StaleRequest,
    /// The group knows no session of the client, and may have dropped one: the write was not
    /// applied, and may have been before. A client that has sent it only once begins anew as
    /// another client.
    #[serde(rename = "UNKNOWN_SESSION")]
    UnknownSession {
        /// The timestamp with which the client begins anew: [`RequestId::begun`] of its writes.
        begin_anew_at: Timestamp,
    },
    /// What a later page was to show has been taken off the disk: the read, or the one before that
    /// page, took too long. Begin it again.
    #[serde(rename = "EXPIRED")]
    Expired,
    /// The read is one as of an earlier version than the one from which on reads are answered:
    /// somebody has compacted what was before. No server answers it any more.
    #[serde(rename = "COMPACTED")]
    Compacted {
        /// The earliest version as of which reads go on.
        version: Timestamp,
    },
    /// A disk of the group is nearly full; this request did nothing. Removals and reads go on.
    #[serde(rename = "DISK_FULL")]
    DiskFull,
    /// The server could not read its own store; ask another.
    #[serde(rename = "INTERNAL")]
    Internal,
}

/// A server's own account of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// The address it listens on.
    pub address: String,
    /// Its number in the group.
    pub node: NodeId,
    /// The group that the server belongs to.
    pub cluster: ClusterId,
    /// Leader, follower or candidate.
    pub role: Role,
    /// The address of the leader it knows of.
    pub leader: Option<String>,
    /// The newest term that it has seen.
    pub term: Term,
    /// The last index known committed.
    pub commit: LogIndex,
    /// The last index applied.
    pub applied: LogIndex,
    /// The timestamp of the last write applied.
    pub applied_timestamp: Timestamp,
    /// The last index in its log.
    pub last_index: LogIndex,
    /// At the leader: the addresses of the servers in sync, itself included. Empty elsewhere.
    #[serde(deserialize_with = "bounded::servers")]
    pub in_sync: Vec<String>,
    /// The addresses of the servers whose full disks keep the group from taking what adds to the
    /// store; empty when it takes that.
    #[serde(deserialize_with = "bounded::servers")]
    pub full_disks: Vec<String>,
    /// Connections of clients that are open now.
    pub client_connections: u32,
    /// Open connections from and to other servers.
    pub server_connections: u32,
    /// Time since the process started.
    pub uptime_ms: u64,
    /// The longest time since then in which its event loop did not look at its sockets.
    pub longest_stall_us: u64,
    /// Bytes that its data directory takes on the disk; nil when it has not looked yet.
    pub disk_bytes: Option<u64>,
    /// Rows of its store, each version of each key among them: an upper bound of the number of
    /// keys.
    pub store_rows: u64,
    /// Leases that have not ended, in the state that it has applied.
    pub leases: u32,
    /// The release, as in `acervo --version`.
    pub version: String,
    /// The group's feature level.
    pub level: u32,
    /// What the group keeps of what newer versions have replaced; nil when it has written nothing
    /// yet.
    pub history: Option<History>,
    /// What is wrong at this server and what to do about it, a sentence each; empty when all is
    /// well.
    pub warnings: Vec<String>,
}

/// A server's part in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// It orders the writes of its group.
    #[serde(rename = "leader")]
    Leader,
    /// Follows a leader, or waits for one.
    #[serde(rename = "follower")]
    Follower,
    /// It asks the others for their votes.
    #[serde(rename = "candidate")]
    Candidate,
}

/// What one server tells another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerMessage {
    /// A message of the Raft protocol.
    #[serde(rename = "RAFT")]
    Raft(RaftMessage),
    /// A client's write, passed on by a server that does not lead.
    #[serde(rename = "FORWARD")]
    Forward {
        /// Chosen by the forwarding server, echoed in the reply.
        id: u64,
        /// The client's own address.
        client: SocketAddr,
        /// The write, as the log is to have it.
        write: EncodedWrite,
    },
    /// The leader's answer to a `FORWARD`.
    #[serde(rename = "FORWARDED")]
    Forwarded {
        id: u64,
        /// For the client. Absent when this server does not lead (any more): forward elsewhere.
        reply: Option<Reply>,
    },
    /// Asks the leader for an index by which a read is linearizable.
    #[serde(rename = "READ_INDEX")]
    ReadIndex {
        /// Chosen by the asking server, echoed.
        id: u64,
    },
    /// The answer to a `READ_INDEX`.
    #[serde(rename = "READ_INDEX_OK")]
    ReadIndexOk {
        id: u64,
        /// Read once this index is applied.
        index: LogIndex,
    },
    /// The leader offers a snapshot of its state to a server that is too far behind for the log.
    #[serde(rename = "SNAPSHOT")]
    Snapshot {
        /// Chosen by the leader, echoed in everything about this transfer.
        id: u64,
        /// What the receiver has answered the offer with: the transfer begins when the offer comes
        /// with it. Nil at first.
        key: Option<u64>,
        snapshot: SnapshotId,
        /// The timestamp of the last write in it.
        timestamp: Timestamp,
        /// The hash of the state.
        hash: u64,
    },
    /// A piece of it.
    #[serde(rename = "SNAPSHOT_CHUNK")]
    SnapshotChunk {
        /// The transfer's number, as its offer gave it.
        id: u64,
        /// From 0, without gaps.
        sequence: u64,
        /// Rows, as the storage encodes them.
        data: Bytes,
    },
    /// There are no more pieces.
    #[serde(rename = "SNAPSHOT_END")]
    SnapshotEnd {
        /// The transfer's number, as its offer gave it.
        id: u64,
        /// How many there were.
        chunks: u64,
    },
    /// How the receiver is getting on.
    #[serde(rename = "SNAPSHOT_OK")]
    SnapshotAnswer {
        /// The transfer's number, as its offer gave it.
        id: u64,
        /// Pieces stored so far.
        stored: u64,
        /// Whether to go on.
        outcome: SnapshotOutcome,
    },
    /// What a server says of itself, about once a second.
    #[serde(rename = "ABOUT")]
    About {
        /// What its clock says, for comparison: microseconds since the Unix epoch.
        wall_us: i64,
        /// The newest feature level that its release knows.
        level: u32,
    },
    /// Whether the sender's disk is full, so that the leader can refuse what adds to the store.
    #[serde(rename = "DISK")]
    Disk {
        /// It is: said when it begins, from time to time while it lasts, and when it ends.
        full: bool,
    },
    /// A replica's state hash, for comparison. Where it is not the receiver's, that one asks.
    #[serde(rename = "STATE_HASH")]
    StateHash {
        /// The applied index the hash belongs to.
        index: LogIndex,
        hash: u64,
    },
    /// Asks for a replica's state hash at an index. A server that was told of another one than its
    /// own asks all others, to learn whose state is wrong.
    #[serde(rename = "STATE_HASH_AT")]
    StateHashAt {
        /// Chosen by the asking server, echoed.
        id: u64,
        index: LogIndex,
    },
    /// The answer to a `STATE_HASH_AT`.
    #[serde(rename = "STATE_HASH_OK")]
    StateHashOk {
        id: u64,
        /// The hash; `None` when it is not remembered, or the server does not trust its own.
        hash: Option<u64>,
    },
    /// Asks for the term of a committed entry. A server that was sent an entry that contradicts one
    /// of its own asks all others, to learn whose log is wrong.
    #[serde(rename = "LOG_TERM")]
    LogTerm {
        /// Chosen by the asking server, echoed.
        id: u64,
        index: LogIndex,
    },
    /// The answer to a `LOG_TERM`.
    #[serde(rename = "LOG_TERM_OK")]
    LogTermOk {
        id: u64,
        /// Its term; `None` when it is not committed here, or not in the log any more.
        term: Option<Term>,
    },
    /// What clients ask about leases, passed on by a server that does not lead.
    #[serde(rename = "LEASES")]
    Leases {
        /// Chosen by the asking server, echoed.
        id: u64,
        question: LeaseQuestion,
    },
    /// The answer to a `LEASES`, as for a client. A server that does not lead gives none.
    #[serde(rename = "LEASES_OK")]
    LeasesOk { id: u64, answer: LeaseAnswer },
}

/// What becomes of a snapshot at its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotOutcome {
    /// Offer it again with this key. It is said on the connection that the receiver has dialled, so
    /// that nobody learns it who merely speaks in the leader's name.
    #[serde(rename = "KEY")]
    Key(u64),
    /// The receiver is ready for more pieces.
    #[serde(rename = "RECEIVING")]
    Receiving,
    /// It is in place of the receiver's store.
    #[serde(rename = "COMPLETE")]
    Complete,
    /// It is of no use, or could not be stored.
    #[serde(rename = "FAILED")]
    Failed,
}

/// A Raft message, in our own types so that no foreign encoding is ever read from the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftMessage {
    pub from: NodeId,
    pub to: NodeId,
    /// The sender's term, or in (pre-)votes the term asked for.
    pub term: Term,
    /// The kind and its fields.
    pub body: RaftBody,
}

/// The kinds of Raft message that servers need between them, and no others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RaftBody {
    /// Entries to store, or none, to tell the commit index.
    #[serde(rename = "REPLICATION")]
    Append {
        /// Index of the entry just before.
        previous_index: LogIndex,
        /// The term of the entry at `previous_index`.
        previous_term: Term,
        /// The leader's commit index.
        commit: LogIndex,
        /// Contiguous from `previous_index + 1`.
        #[serde(deserialize_with = "bounded::entries")]
        entries: Vec<LogEntry>,
    },
    /// Stored durably up to `index`, or refused.
    #[serde(rename = "REPLICATION_OK")]
    AppendReply {
        /// The last index stored; when refused, the `previous_index` that did not match.
        index: LogIndex,
        /// The follower's commit index.
        commit: LogIndex,
        /// Set when refused: where the logs may still agree (index, term).
        reject_hint: Option<(LogIndex, Term)>,
        /// Set in a refusal by a server whose store is lost: it needs a snapshot that reaches to
        /// this index or further, although its log is whole.
        snapshot_wanted: Option<LogIndex>,
    },
    /// The leader is alive, and knows this commit index.
    #[serde(rename = "HEARTBEAT")]
    Heartbeat {
        /// min(the leader's commit index, what it knows the receiver has).
        commit: LogIndex,
        /// A read-index round, echoed.
        context: Bytes,
    },
    /// So does the follower.
    #[serde(rename = "HEARTBEAT_OK")]
    HeartbeatReply {
        /// The follower's commit index.
        commit: LogIndex,
        context: Bytes,
    },
    /// Asks for a vote.
    #[serde(rename = "VOTE")]
    Vote {
        /// A rehearsal that changes no state.
        pre: bool,
        /// The candidate's last index.
        last_index: LogIndex,
        /// The term of the entry at `last_index`.
        last_term: Term,
        /// The candidate's commit index.
        commit: LogIndex,
        /// The term of the entry at `commit`.
        commit_term: Term,
        /// Asked for by the leader: do not refuse for having heard of one.
        transfer: bool,
    },
    /// Grants or refuses it.
    #[serde(rename = "VOTE_OK")]
    VoteReply {
        /// It answers a rehearsal (pre-vote).
        pre: bool,
        reject: bool,
        /// When refusing, the voter's commit index.
        commit: LogIndex,
        /// The term of the entry at `commit`.
        commit_term: Term,
    },
    /// The leader hands over: campaign now.
    #[serde(rename = "TIMEOUT_NOW")]
    TimeoutNow,
}
