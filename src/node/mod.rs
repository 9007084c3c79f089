//! The node core: the replication logic of one server, as a deterministic state machine.
//!
//! A driver hands a [`Node`](core::Node) [`Input`]s with the time, calls `flush` when it has no
//! more for now, and again when the core asks for it. The core answers with [`Output`]s, which the
//! driver carries out in order. The core reads no clock, opens no file and no socket, and prints
//! nothing. The mio server is one driver, the simulator in `tests/` another.
//!
//! The core orders writes through consensus, forwards them when it does not lead, answers when the
//! acknowledgement rule is met, keeps the in-sync set, and confirms linearizable reads.
//!
//! What it leaves out: plain reads, which need no agreement and go from the event loop straight to
//! the workers, unless they wait for the state machine; membership change. The election time-out is
//! drawn at random inside raft-rs, unless
//! [`NodeConfig::election_ticks`](config::NodeConfig::election_ticks) fixes it.

mod by_index;
mod clock;
mod commit_notification;
pub mod config;
mod consistency_check;
pub mod core;
mod disk_space;
mod early_ack;
pub mod eligibility;
pub mod garbage_collection;
mod in_sync;
mod leadership;
mod lease_questions;
mod lease_shares;
mod leases;
mod long_writes;
mod notice;
mod origins;
mod reachability;
mod reads;
mod replies;
mod server_clocks;
mod server_levels;
mod write_accounts;
mod write_turns;
mod writes;

use std::net::SocketAddr;

use self::eligibility::Ineligible;
use self::notice::by_place;
use crate::model::{
    Action, AppliedPoint, AppliedWrite, Command, DiskSpace, EncodedWrite, FeatureLevel, LeaseEvent,
    LeaseQuestion, LogBatch, LogEntry, LogIndex, MachineSummary, NodeId, OpShape, Operation,
    SnapshotId, Term, Timestamp,
};
use crate::wire::message::{RaftBody, RaftMessage, Reply, ServerMessage};

pub use self::notice::{Notice, clock_apart};
pub use self::replies::not_to_be_read;
pub use crate::consensus::{InstallRequest, NoLeader};

/// The time, as the driver reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since a fixed time, never going back. Time-outs are measured by it.
    pub monotonic_us: u64,
    /// Microseconds since the Unix epoch, by the machine's clock. Only timestamps use it, and they
    /// keep their order whatever it does.
    pub wall_us: i64,
}

/// Identifies a request at the driver, which chooses it and gets it back with the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestToken {
    /// The driver's connection (slot and generation packed as it likes).
    pub connection: u64,
    /// The client's request id on that connection.
    pub request: u64,
}

/// An event that the driver reports to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// One tick of the election clock ([`limits::TICK`](crate::limits::TICK) of real time). A
    /// driver that has stalled first hands over the messages that have come meanwhile.
    Tick,
    /// A further tick for time in which the driver has stalled. A leader's heartbeats are due by
    /// the time that has passed, but a node must not campaign because of time in which it could not
    /// receive a leader's messages.
    LateTick,
    /// The link on which this node sends to `server` is up. From now on the driver must not pass on
    /// messages that an earlier incarnation of that server's data directory has sent.
    LinkUp {
        server: NodeId,
        /// The last index of its log, from its greeting.
        last_index: LogIndex,
        /// Its term, from its greeting.
        term: Term,
        /// The first leader that it has configured, if its data directory is blank.
        first_leader: Option<NodeId>,
    },
    /// That link is down.
    LinkDown { server: NodeId },
    /// The link on which `server` sends to this node broke, or was replaced by another: the
    /// messages on it are lost.
    InboundDown { server: NodeId },
    /// A message from another server, decoded from the network and not trusted.
    Message {
        /// The server whose connection it came on.
        from: NodeId,
        /// The message, checked for what a state machine would stop at.
        message: CheckedMessage,
    },
    /// A client of this server requests a write.
    Write {
        token: RequestToken,
        /// The client's own address.
        client: SocketAddr,
        write: EncodedWrite,
    },
    /// A client of this server requests a read that has to wait; the driver keeps what is to be
    /// read.
    Read {
        /// For [`Output::ReadReady`] or [`Output::Reply`] (on failure).
        token: RequestToken,
        /// What the read waits for.
        condition: ReadCondition,
    },
    /// A client of this server asks about leases.
    Leases {
        token: RequestToken,
        /// The client's own address.
        client: SocketAddr,
        question: LeaseQuestion,
    },
    /// The room on this server's disk has changed.
    DiskSpace(DiskSpace),
    /// The log batches up to `number` are durable.
    Persisted {
        /// The number from [`LogBatch::number`] or [`InstallRequest::number`].
        number: u64,
    },
    /// The state machine has applied entries of the log.
    Applied {
        /// The outcome of each client's write among them, in log order.
        outcomes: Vec<AppliedWrite>,
        /// The garbage that is left to collect.
        summary: MachineSummary,
        /// What has changed about leases.
        leases: Vec<LeaseEvent>,
        /// The last index that it has applied, with its timestamp and the hash of the state.
        point: AppliedPoint,
    },
    /// Entries were read from disk for a follower that is behind, as [`Output::Fetch`] requested.
    Fetched {
        fetch: u64,
        /// Contiguous from the index requested; none if reading failed.
        entries: Vec<LogEntry>,
    },
    /// The transfer that [`Output::SendSnapshot`] requested has ended.
    SnapshotSent {
        /// The receiver of the snapshot.
        to: NodeId,
        /// The index of the snapshot that the receiver has installed; `None` if it has not.
        reached: Option<LogIndex>,
    },
    /// A complete snapshot from another server is stored beside the store. The answer, in the same
    /// call or the next flush, is [`Output::InstallSnapshot`] or [`Output::DiscardSnapshot`].
    SnapshotReceived {
        /// The server that has sent it.
        from: NodeId,
        /// The index and the term that it reaches to, and the term of its sender.
        snapshot: SnapshotId,
        /// The timestamp that it reaches to, as its rows have it.
        timestamp: Timestamp,
    },
    /// The log was compacted.
    Compacted {
        /// The first index that is left in it.
        first_index: LogIndex,
    },
    /// The state machine has made progress since the last tick, if only within one entry.
    ApplierWorks,
    /// A reason why this node may not lead has begun or ceased to hold. The driver reports only
    /// what the core cannot see itself, as it can a stalled disk.
    Eligibility {
        /// The reason that has changed.
        reason: Ineligible,
        /// Whether the reason holds from now on.
        holds: bool,
    },
    /// Stop: refuse new requests, finish those under way, transfer the leadership.
    Stop,
    /// Stop without finishing the requests under way, because this server's state cannot be
    /// trusted: refuse new requests, transfer the leadership.
    HandOver,
}

/// What a read waits for before it may be answered from a node's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadCondition {
    /// That the state has everything that was acknowledged anywhere before the read came.
    Linearizable,
    /// That everything up to this timestamp, which the node's log has reached
    /// ([`Node::reaches_soon`](core::Node::reaches_soon)), is applied. That is waited for briefly:
    /// then the read is judged by what is applied.
    Applied(Timestamp),
}

/// A message from another server that contains no entry at which a state machine would stop. The
/// check takes time in proportion to the message and needs no state of the node, so the driver
/// makes it where it decodes.
#[derive(Clone, Debug)]
pub struct CheckedMessage {
    message: ServerMessage,
    /// The highest feature level that its entries raise the group to.
    level: Option<FeatureLevel>,
}

impl CheckedMessage {
    /// Checks a message.
    ///
    /// # Errors
    /// One sentence that says why the link is to be closed.
    pub fn new(message: ServerMessage) -> Result<CheckedMessage, String> {
        let mut level: Option<FeatureLevel> = None;
        if let ServerMessage::Raft(RaftMessage { body: RaftBody::Append { entries, .. }, .. }) =
            &message
        {
            // Nearly all are PUTs, of which nothing needs to be copied to tell.
            for entry in entries.iter().filter(|entry| !Command::is_put(&entry.data)) {
                // A stored entry is applied later, by a state machine that stops at one that it
                // cannot decode.
                let Ok(command) = Command::decode(&entry.data) else {
                    return Err("a REPLICATION holds an entry that is no command".to_owned());
                };
                match command.map(|command| command.action) {
                    // One that no correct leader orders would be applied, and could not be stored.
                    Some(Action::Write { op, .. })
                        if OpShape::of(&op).check_keys().is_err() || op.check().is_err() =>
                    {
                        return Err("a REPLICATION holds a write that breaks a rule".to_owned());
                    }
                    Some(Action::Rules(rules)) if !rules.history.can_be_kept() => {
                        return Err("a REPLICATION holds rules that cannot be kept".to_owned());
                    }
                    Some(Action::Level(raised)) => {
                        level = level.filter(|level| level.level > raised.level).or(Some(raised));
                    }
                    _ => {}
                }
            }
        }
        Ok(CheckedMessage { message, level })
    }

    /// Whether it belongs to the transfer of a snapshot, which the driver handles.
    pub fn is_about_a_snapshot(&self) -> bool {
        matches!(
            self.message,
            ServerMessage::Snapshot { .. }
                | ServerMessage::SnapshotChunk { .. }
                | ServerMessage::SnapshotEnd { .. }
                | ServerMessage::SnapshotAnswer { .. }
        )
    }

    pub fn into_inner(self) -> ServerMessage {
        self.message
    }
}

/// An effect that the driver is to carry out for a node.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a message to another server, or drop it if there is no link: the protocol repeats it.
    Send {
        to: NodeId,
        /// The message to send.
        message: ServerMessage,
    },
    /// Reply to a client of this server.
    Reply { token: RequestToken, reply: Reply },
    /// Make a batch of the log durable, in order, then report [`Input::Persisted`].
    Persist(LogBatch),
    /// Apply committed entries, in order, then report [`Input::Applied`].
    Apply {
        /// Contiguous in their indices, and at least one.
        entries: Vec<LogEntry>,
        /// A client may wait for the previous values of their keys.
        answering: bool,
    },
    /// A read that had to wait may be answered from this node's state.
    ReadReady { token: RequestToken },
    /// Read durable log entries from disk, then report [`Input::Fetched`].
    Fetch {
        /// The number of the request, for [`Input::Fetched`].
        fetch: u64,
        /// The first index wanted.
        low: LogIndex,
        /// The index after the last one wanted.
        high: LogIndex,
        /// Read about this many bytes at most, but at least one entry.
        bytes_max: u64,
    },
    /// The log does not reach back to what a server needs: send it a snapshot of the current or a
    /// later state, then report [`Input::SnapshotSent`].
    SendSnapshot {
        /// The server that is behind.
        to: NodeId,
        /// This node's term, for [`SnapshotId::leader_term`].
        leader_term: Term,
    },
    /// Install the snapshot that was received: replace the log by an empty one that begins after it
    /// and report [`Input::Persisted`], then replace the store and report [`Input::Applied`].
    InstallSnapshot(InstallRequest),
    /// Discard the snapshot that was received: it is of no use.
    DiscardSnapshot,
    /// Show an event on the console; only if [`config::NodeConfig::console`] is set.
    Console(ConsoleEvent),
    /// Write a notice for the operator to the log.
    Notice(Notice),
    /// Close the connections of a server that has violated the protocol, and log the reason.
    Disconnect {
        server: NodeId,
        /// One sentence for the log, which names what was violated.
        reason: String,
    },
    /// No leader has been known for [`config::NodeConfig::cut_off_timeout`], and no change reaches
    /// this node: whoever waits for one is to ask another server. Said again after each time as
    /// long, until there is a leader.
    CutOff,
    /// Restart with the log and without the state ([`crate::model::Recovered::store_lost`]), which
    /// the group has refuted and which comes from the others.
    RebuildState,
    /// Restart with a blank data directory: the log of this server cannot be trusted.
    BeginAnew,
    /// After [`Input::Stop`] or [`Input::HandOver`]: no request is under way, and another node
    /// leads or the time for that is over.
    Stopped,
}

/// Whether replicas compare their states after an entry: after every `every`th index, and after
/// each entry without data, as the first of every term and those that a leader appends for this
/// purpose.
pub fn compares_states(entry: &LogEntry, every: LogIndex) -> bool {
    entry.data.is_empty() || entry.index.is_multiple_of(every)
}

/// The contents of a console line of SPEC A6; the driver formats it off the request path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// The leader has received a PUT.
    Put {
        /// The client's own address.
        client: SocketAddr,
        key: bytes::Bytes,
        value: bytes::Bytes,
    },
    /// Another server has received a PUT and forwards it.
    Forwarding { key: bytes::Bytes, value: bytes::Bytes },
    /// A follower has received a replicated PUT.
    Replication { key: bytes::Bytes, value: bytes::Bytes, timestamp: Timestamp },
    /// The leader has every REPLICATION_OK that the acknowledgement waits for.
    PutOk {
        /// The client's own address.
        client: SocketAddr,
        key: bytes::Bytes,
        timestamp: Timestamp,
    },
    /// A server has answered a GET.
    Get {
        /// The client's own address.
        client: SocketAddr,
        key: bytes::Bytes,
        /// The greatest version of the key that the client had seen.
        client_timestamp: Option<Timestamp>,
        /// The version of the key that the server has.
        key_timestamp: Option<Timestamp>,
        /// The value or refusal that was answered.
        answer: GetAnswer,
    },
}

/// The answer in the last field of the GET line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetAnswer {
    Value(bytes::Bytes),
    Null,
    TryOtherServerOrLater,
}
