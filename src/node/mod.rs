//! The node core: one server's mind, without a body.
//!
//! A [`Node`](core::Node) is a pure state machine. A driver hands it [`Input`]s with the time, and
//! calls `flush` when it has no more for now, and again when the core asks for it; the core answers with [`Output`]s, which the driver
//! carries out in order. It reads no clock, draws no random number, opens no file and no socket,
//! prints nothing. The mio server is one driver, the simulator in `tests/` another.
//!
//! What it does: orders writes through consensus, forwards them when it does not lead, answers when
//! the acknowledgement rule is met, keeps the in-sync set, and confirms linearizable reads.
//!
//! What it leaves out: plain reads, which need no agreement and go from the event loop straight to
//! the workers; membership change.

mod certainty;
mod clock;
mod clocks;
mod commit_news;
pub mod core;
mod disk_space;
mod disputes;
pub mod eligibility;
mod in_sync;
mod levels;
mod long_writes;
mod peers;
mod progress;
mod reads;
#[cfg(test)]
mod tests;
pub mod upkeep;
mod writes;

use std::net::SocketAddr;

use self::eligibility::Ineligible;
use crate::model::{
    Action, AppliedPoint, AppliedWrite, Command, DiskSpace, EncodedWrite, FeatureLevel, HardState,
    History, LogBatch, LogEntry, LogIndex, NodeId, SnapshotId, Term, Timestamp, UpkeepState,
};
use crate::wire::message::{PeerMessage, RaftBody, RaftMessage, Reply};

pub use crate::consensus::NoLeader;

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
    /// One tick of the election clock ([`limits::TICK`](crate::limits::TICK) of real time). A driver that was
    /// away first hands over what has come meanwhile.
    Tick,
    /// A further tick for time in which the driver was away. A leader owes its heartbeats by the time that has
    /// passed; but nobody may campaign because of time in which it could not have heard a leader.
    LateTick,
    /// The link on which this node sends to `peer` is ready. From now on nothing may reach this
    /// node that an earlier incarnation of the peer's data directory sent.
    PeerUp {
        /// The other server.
        peer: NodeId,
        /// How far its log reaches, from its greeting.
        last_index: LogIndex,
        /// Its term, from its greeting.
        term: Term,
        /// Whom it was told leads first, if its data directory is blank.
        first_leader: Option<NodeId>,
    },
    /// That link is gone.
    PeerDown {
        /// The other server.
        peer: NodeId,
    },
    /// The link on which `peer` sends to this node broke, or another has taken its place: what was under way on it
    /// is lost.
    InboundDown {
        /// The other server.
        peer: NodeId,
    },
    /// A message from another server, as decoded from the network: not trusted.
    Peer {
        /// Whose connection it came on.
        from: NodeId,
        /// What it says.
        message: CheckedMessage,
    },
    /// A client of this server wants a write.
    Write {
        /// For the answer.
        token: RequestToken,
        /// The client's own address.
        client: SocketAddr,
        /// The write.
        write: EncodedWrite,
    },
    /// A client of this server wants a linearizable read; the driver keeps what it was about.
    Read {
        /// For [`Output::ReadReady`] or [`Output::Reply`] (on failure).
        token: RequestToken,
    },
    /// How much room there is on this server's disk, when that changes.
    DiskSpace(DiskSpace),
    /// Log batches up to `number` are durable.
    Persisted {
        /// From [`LogBatch::number`].
        number: u64,
    },
    /// The state machine has applied a piece of the log.
    Applied {
        /// One outcome a client's write, in log order.
        outcomes: Vec<AppliedWrite>,
        /// What is left to do in the background.
        upkeep: UpkeepState,
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
    /// The snapshot that [`Output::SendSnapshot`] asked for is in place at its receiver, or will not be.
    SnapshotSent {
        /// The server it was for.
        to: NodeId,
        /// The index it reaches to; `None` when it is not in place.
        reached: Option<LogIndex>,
    },
    /// A whole snapshot from another server lies ready beside the store. The answer, in the same
    /// call or flush, is [`Output::InstallSnapshot`] or [`Output::DiscardSnapshot`].
    SnapshotReceived {
        /// Who sent it.
        from: NodeId,
        /// What it is.
        snapshot: SnapshotId,
    },
    /// The log's older part has been deleted.
    Compacted {
        /// The first index that is left.
        first_index: LogIndex,
    },
    /// The state machine has got on with what it was given to apply since the last tick, if only within one entry.
    ApplierWorks,
    /// The driver has found a reason why this node may not lead, or finds it no more. What the core can see itself
    /// (a stalled disk) is not told to it.
    Eligibility {
        /// Which reason.
        reason: Ineligible,
        /// Whether it holds.
        holds: bool,
    },
    /// Stop: refuse new writes, let the pending ones finish, hand the leadership over.
    Stop,
    /// Stop without finishing anything, as what it would take cannot be trusted: refuse new writes, hand
    /// the leadership over.
    HandOver,
}

/// A message from another server that holds nothing which a state machine would stop at. Checking it takes as
/// long as the message is, and needs nothing of the node: a driver does it where it decodes.
#[derive(Clone, Debug)]
pub struct CheckedMessage {
    message: PeerMessage,
    /// The highest level that it raises the group to.
    level: Option<FeatureLevel>,
}

impl CheckedMessage {
    /// Checks a message.
    ///
    /// # Errors
    /// Why the link that it came on is to be closed; one sentence.
    pub fn new(message: PeerMessage) -> Result<CheckedMessage, String> {
        let mut level: Option<FeatureLevel> = None;
        if let PeerMessage::Raft(RaftMessage { body: RaftBody::Append { entries, .. }, .. }) =
            &message
        {
            for entry in entries {
                // What is stored here is applied one day, by a state machine that stops at what it does not
                // understand.
                let Ok(command) = Command::decode(&entry.data) else {
                    return Err("a REPLICATION holds an entry that is no command".to_owned());
                };
                if let Some(Command { action: Action::Level(raised), .. }) = command {
                    level = level.filter(|level| level.level > raised.level).or(Some(raised));
                }
            }
        }
        Ok(CheckedMessage { message, level })
    }

    /// Whether it is the driver's own business: a part of a snapshot's transfer.
    pub fn is_about_a_snapshot(&self) -> bool {
        matches!(
            self.message,
            PeerMessage::Snapshot { .. }
                | PeerMessage::SnapshotChunk { .. }
                | PeerMessage::SnapshotEnd { .. }
                | PeerMessage::SnapshotAnswer { .. }
        )
    }

    /// The message.
    pub fn into_inner(self) -> PeerMessage {
        self.message
    }
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
    Apply {
        /// Contiguous.
        entries: Vec<LogEntry>,
        /// Somebody here may wait for what their keys had before.
        answering: bool,
    },
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
    /// A server is too far behind for the log: send it a snapshot of the state machine as it stands
    /// now or later, then report [`Input::SnapshotSent`].
    SendSnapshot {
        /// The late server.
        to: NodeId,
        /// This node's term, for [`SnapshotId::leader_term`].
        leader_term: Term,
    },
    /// Begin the log anew after the snapshot that was received, then put it in the store's place, then
    /// report [`Input::Applied`]; report [`Input::Persisted`] when the log has been begun anew.
    InstallSnapshot {
        /// For [`Input::Persisted`], in one row with the numbers of batches.
        number: u64,
        /// Which snapshot.
        snapshot: SnapshotId,
        /// To be durable with it.
        hard_state: HardState,
    },
    /// The snapshot that was received is of no use.
    DiscardSnapshot,
    /// Something the console shows; only when [`core::NodeConfig::console`] is set.
    Console(ConsoleEvent),
    /// Something the operator should find in the log.
    Notice(Notice),
    /// A peer broke the protocol: close its connections. The driver logs the reason.
    Disconnect {
        /// The other server.
        peer: NodeId,
        /// One sentence.
        reason: String,
    },
    /// The state of this server cannot be trusted, and its log can: hand over and start again with the
    /// log and without a store ([`core::Recovered::store_lost`]).
    RebuildStore,
    /// The log of this server cannot be trusted: hand over and start again as a blank server.
    BeginAnew,
    /// After [`Input::Stop`] or [`Input::HandOver`]: nothing is pending and nobody waits for this node to
    /// lead.
    Stopped,
}

/// What an operator may want to know; the driver writes it to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This node leads from now on.
    BecameLeader {
        /// In this term.
        term: Term,
    },
    /// This node led and does no more.
    LostLeadership,
    /// This node follows another leader, or none.
    Following {
        /// Whom.
        leader: Option<NodeId>,
        /// In this term.
        term: Term,
    },
    /// At the leader: a server owed a REPLICATION_OK for too long; writes no longer wait for it.
    OutOfSync {
        /// Which.
        peer: NodeId,
    },
    /// At the leader: a server has caught up; writes wait for it again.
    InSync {
        /// Which.
        peer: NodeId,
    },
    /// This node may not lead while this reason holds; another server is to lead if it can.
    MayNotLead {
        /// Why.
        reason: Ineligible,
    },
    /// No leader can be elected although enough servers are up.
    NoLeader {
        /// What keeps the group from electing one.
        reason: NoLeader,
    },
    /// A reason why this node may not lead holds no more.
    MayLeadAgain {
        /// What it was.
        reason: Ineligible,
    },
    /// At the leader: its clock is far from the other servers'.
    ClockApart {
        /// How far theirs are ahead.
        ahead_us: i64,
    },
    /// What the group keeps of what newer versions have replaced, when it becomes known, and when it changes.
    History {
        /// What is kept.
        history: History,
    },
    /// The group uses from here on what this level holds.
    LevelRaised {
        /// The level.
        level: u32,
    },
    /// This node's data directory was blank; it is up to date now and takes part in elections.
    Admitted,
    /// A majority of the group holds one state and this server another: it is to be rebuilt.
    Diverged {
        /// The index at which the states were compared.
        index: LogIndex,
    },
    /// A majority of the group, this server included, holds one state and `peer` another.
    PeerDiverged {
        /// The other replica.
        peer: NodeId,
        /// The index at which the states were compared.
        index: LogIndex,
    },
    /// Replicas hold different states, and no majority holds the same one, as far as is known.
    Disputed {
        /// The index at which the states were compared.
        index: LogIndex,
    },
    /// The dispute is over: a majority holds the same state as this server.
    Undisputed,
    /// Another server sent an entry that contradicts one that is committed here.
    LogContradicted {
        /// Who sent it.
        peer: NodeId,
        /// The index of the entry in question.
        index: LogIndex,
    },
    /// A majority of the group holds another entry than this server there: its log is to be thrown away.
    LogRefuted {
        /// The index of the entry in question.
        index: LogIndex,
    },
    /// The lost store has been rebuilt from a snapshot: this server serves reads again.
    StoreRebuilt,
}

/// Whether replicas compare their states after an entry: after every so many, and after each without data, as every
/// term's first entry is and those that a leader appends for this.
pub fn compares_states(entry: &LogEntry, every: LogIndex) -> bool {
    entry.data.is_empty() || entry.index.is_multiple_of(every)
}

/// What it means that the other servers' clocks are so far ahead of the leader's.
pub fn clock_apart(ahead_us: i64) -> String {
    let seconds = ahead_us.unsigned_abs() / 1_000_000;
    let direction = if ahead_us < 0 { "ahead of" } else { "behind" };
    format!(
        "this server leads, and its clock is {seconds} s {direction} the other servers' clocks: versions get \
         wrong times; set the clock, or synchronize it by NTP"
    )
}

impl Notice {
    /// The log target of its kind: many lines of one target are gathered into one, and what is said once must
    /// not be among them.
    pub fn target(&self) -> &'static str {
        match self {
            Notice::BecameLeader { .. }
            | Notice::LostLeadership
            | Notice::Following { .. }
            | Notice::MayNotLead { .. }
            | Notice::MayLeadAgain { .. } => "acervo::leadership",
            Notice::NoLeader { .. } => "acervo::no_leader",
            Notice::OutOfSync { .. } | Notice::InSync { .. } => "acervo::in_sync",
            Notice::ClockApart { .. } => "acervo::clock",
            Notice::Admitted => "acervo::admission",
            Notice::History { .. } | Notice::LevelRaised { .. } => "acervo::rules",
            Notice::Diverged { .. } => "acervo::diverged",
            Notice::PeerDiverged { .. } => "acervo::peer_diverged",
            Notice::Disputed { .. } | Notice::Undisputed => "acervo::dispute",
            Notice::LogContradicted { .. } => "acervo::log_contradicted",
            Notice::LogRefuted { .. } => "acervo::log_refuted",
            Notice::StoreRebuilt => "acervo::store_rebuilt",
        }
    }
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Notice::BecameLeader { term } => write!(f, "this server leads in term {term}"),
            Notice::LostLeadership => write!(f, "this server leads no more"),
            Notice::Following { leader: Some(leader), term } => {
                write!(f, "following server {leader} in term {term}")
            }
            Notice::Following { leader: None, term } => {
                write!(
                    f,
                    "no leader is known in term {term}: writes wait until a majority of the servers is up \
                     and has elected one"
                )
            }
            Notice::OutOfSync { peer } => {
                write!(
                    f,
                    "server {peer} is out of sync: writes no longer wait for it; it catches up by itself once it \
                     is up and within reach"
                )
            }
            Notice::InSync { peer } => write!(f, "server {peer} is in sync: writes wait for it"),
            Notice::MayNotLead { reason } => {
                write!(f, "this server leaves it to others to lead: {reason}")
            }
            Notice::MayLeadAgain { reason: Ineligible::LogStalled } => {
                write!(f, "the disk under the log answers again: this server may lead")
            }
            Notice::MayLeadAgain { reason: Ineligible::ApplierStalled } => {
                write!(f, "the disk under the store answers again: this server may lead")
            }
            Notice::MayLeadAgain { reason: Ineligible::StoreDamaged } => {
                write!(f, "the store is whole again: this server may lead")
            }
            Notice::ClockApart { ahead_us } => f.write_str(&clock_apart(*ahead_us)),
            Notice::NoLeader { reason } => f.write_str(&reason.sentence(by_place)),
            Notice::Admitted => {
                write!(f, "this server is up to date and takes part in elections")
            }
            Notice::Diverged { index } => write!(
                f,
                "the state of this server differs from that of the majority at log index {index}: it serves no \
                 reads and rebuilds its store from the others"
            ),
            Notice::PeerDiverged { peer, index } => write!(
                f,
                "server {peer} holds another state than the majority at log index {index}: it rebuilds its store \
                 by itself"
            ),
            Notice::Disputed { index } => write!(
                f,
                "servers hold different states at log index {index} and no majority holds the same: none of them \
                 serves reads before the others are up and have decided; if they never will be, keep one data \
                 directory and start the other servers on empty ones"
            ),
            Notice::Undisputed => {
                write!(f, "a majority holds the same state as this server: it serves reads again")
            }
            Notice::LogContradicted { peer, index } => write!(
                f,
                "server {peer} sent another entry than the one that is committed here at log index {index}: this \
                 server serves no reads before the others have said which one is theirs"
            ),
            Notice::LogRefuted { index } => write!(
                f,
                "the log of this server contradicts that of the majority at log index {index}: it sets its data \
                 aside and starts as a blank server"
            ),
            Notice::History { history } => {
                write!(
                    f,
                    "the group keeps a history of {history}: 'acervo set-history' changes that"
                )
            }
            Notice::LevelRaised { level } => write!(
                f,
                "every server knows feature level {level}, and the group uses it: no release that does not \
                 know it can take part any more"
            ),
            Notice::StoreRebuilt => {
                write!(
                    f,
                    "the store has been rebuilt from the others: this server serves reads again"
                )
            }
        }
    }
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

/// Names a server where its address is not known.
fn by_place(node: NodeId) -> String {
    format!("the server at place {node} of the group's list")
}
