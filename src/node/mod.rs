//! The node core: one server's mind, without a body.
//!
//! A [`Node`](core::Node) is a pure state machine. A driver hands it [`Input`]s with the time, and
//! calls `flush` when it has no more for now; the core answers with [`Output`]s, which the driver
//! carries out in order. It reads no clock, draws no random number, opens no file and no socket,
//! prints nothing. The mio server is one driver, the simulator in `tests/` another.
//!
//! What it does: orders writes through consensus, forwards them when it does not lead, answers when
//! the acknowledgement rule is met, keeps the in-sync set, and confirms linearizable reads.
//!
//! What it leaves out: plain reads, which need no agreement and go from the event loop straight to
//! the workers; membership change.

pub mod core;

use std::net::SocketAddr;

use crate::command::WriteOutcome;
use crate::types::{AppliedPoint, LogBatch, LogEntry, LogIndex, NodeId, Term, Timestamp};
use crate::wire::message::{PeerMessage, Reply, WriteRequest};

/// The time, from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds from some fixed moment, never going back. Time-outs are measured by it.
    pub monotonic_us: u64,
    /// Microseconds since the Unix epoch, as the machine's clock has it. Only timestamps use it,
    /// and they keep their order whatever it does.
    pub wall_us: i64,
}

/// Names a request at the driver: the driver chose it and gets it back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestToken {
    /// The driver's connection (slot and generation packed as it likes).
    pub connection: u64,
    /// The client's request id on that connection.
    pub request: u64,
}

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// One tick of the election clock ([`limits::TICK`](crate::limits::TICK) of real time).
    Tick,
    /// The link on which this node sends to `peer` is ready; `last_index` is what the peer said its
    /// durable log reaches.
    PeerUp {
        /// The other server.
        peer: NodeId,
        /// From its greeting.
        last_index: LogIndex,
    },
    /// That link is gone.
    PeerDown {
        /// The other server.
        peer: NodeId,
    },
    /// A message from another server, as decoded from the network: not trusted.
    Peer {
        /// Whose connection it came on.
        from: NodeId,
        /// What it says.
        message: PeerMessage,
    },
    /// A client of this server wants a write.
    Write {
        /// For the answer.
        token: RequestToken,
        /// The client's own address.
        client: SocketAddr,
        /// The write.
        write: WriteRequest,
    },
    /// A client of this server wants a linearizable read; the driver keeps what it was about.
    Read {
        /// For [`Output::ReadReady`] or [`Output::Reply`] (on failure).
        token: RequestToken,
    },
    /// The client's connection closed: no answer is needed any more. Writes go on.
    Gone {
        /// The closed connection.
        connection: u64,
    },
    /// Log batches up to `number` are durable.
    Persisted {
        /// From [`LogBatch::number`].
        number: u64,
    },
    /// The state machine has applied a piece of the log.
    Applied {
        /// One outcome a command, in log order; no-ops have none.
        outcomes: Vec<AppliedWrite>,
        /// Where the state machine stands now.
        point: AppliedPoint,
    },
    /// Entries read from disk for a late follower, as [`Output::Fetch`] asked; empty on failure.
    Fetched {
        /// From the request.
        fetch: u64,
        /// Contiguous from the index asked for; at least one unless reading failed.
        entries: Vec<LogEntry>,
    },
    /// Stop: refuse new writes, let the pending ones finish, hand the leadership over.
    Stop,
}

/// One applied command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedWrite {
    /// Where it stood in the log.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// What came of it: the first application's outcome, also for a retry. `None` when its
    /// session had already forgotten this sequence.
    pub outcome: Option<WriteOutcome>,
}

/// What a node wants done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send to another server, or drop it when there is no link: the protocol resends.
    Send {
        /// The other server.
        to: NodeId,
        /// What to say.
        message: PeerMessage,
    },
    /// Answer a client of this server.
    Reply {
        /// From the request.
        token: RequestToken,
        /// The answer.
        reply: Reply,
    },
    /// Make durable, in order, then report [`Input::Persisted`].
    Persist(LogBatch),
    /// Apply committed entries, in order, then report [`Input::Applied`].
    Apply(Vec<LogEntry>),
    /// A linearizable read may be answered from this node's state now.
    ReadReady {
        /// From [`Input::Read`].
        token: RequestToken,
    },
    /// Read durable log entries from disk, then report [`Input::Fetched`].
    Fetch {
        /// Names this request.
        fetch: u64,
        /// First index wanted.
        low: LogIndex,
        /// One past the last index wanted.
        high: LogIndex,
        /// Stop after about this many bytes (but give at least one entry).
        bytes_max: u64,
    },
    /// Something the console shows.
    Console(ConsoleEvent),
    /// A peer broke the protocol: close its connections. The driver logs the reason.
    Disconnect {
        /// The other server.
        peer: NodeId,
        /// One sentence.
        reason: String,
    },
    /// After [`Input::Stop`]: nothing is pending and nobody waits for this node to lead.
    Stopped,
}

/// What the core knows of SPEC A6's lines; the driver formats them off the request path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// The leader received a PUT.
    Put {
        /// The client's own address.
        client: SocketAddr,
        /// The key.
        key: bytes::Bytes,
        /// The value.
        value: bytes::Bytes,
    },
    /// Another server received a PUT.
    Forwarding {
        /// The key.
        key: bytes::Bytes,
        /// The value.
        value: bytes::Bytes,
    },
    /// A server received a replicated PUT.
    Replication {
        /// The key.
        key: bytes::Bytes,
        /// The value.
        value: bytes::Bytes,
        /// The leader's timestamp.
        timestamp: Timestamp,
    },
    /// The leader has every REPLICATION_OK it waits for.
    PutOk {
        /// The client's own address.
        client: SocketAddr,
        /// The key.
        key: bytes::Bytes,
        /// The write's timestamp.
        timestamp: Timestamp,
    },
    /// A server answered a GET.
    Get {
        /// The client's own address.
        client: SocketAddr,
        /// The key.
        key: bytes::Bytes,
        /// What the client had seen.
        client_timestamp: Timestamp,
        /// What the server has; 0 for nothing.
        key_timestamp: Timestamp,
        /// What was answered.
        answer: GetAnswer,
    },
}

/// The last field of the GET line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetAnswer {
    /// The value.
    Value(bytes::Bytes),
    /// `NULL`.
    Null,
    /// `TRY_OTHER_SERVER_OR_LATER`.
    TryOtherServerOrLater,
}
