//! One simulated server: a core and everything a crash takes from it or leaves it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use acervo::node::core::{Node, NodeStatus};
use acervo::node::{ConsoleEvent, Notice, RequestToken};
use acervo::types::{LogEntry, LogIndex, NodeId, Timestamp};
use acervo::wire::message::{
    ErrorCode, ErrorReply, GetRequest, PageNext, PageOf, PageRequest, Reply, Row,
};
use bytes::Bytes;

use crate::disk::Disk;
use crate::machine::{Machine, newest};

/// A server's number in the group for its position in the simulator.
pub fn node_id(server: usize) -> NodeId {
    NodeId(server as u64 + 1)
}

/// A client's number for the simulator's position; `None` when there is no such server.
pub fn position(node: NodeId, servers: usize) -> Option<usize> {
    (node.0 as usize).checked_sub(1).filter(|position| *position < servers)
}

/// What survives a crash, and what does not.
#[derive(Default)]
pub struct Server {
    /// Survives: the log.
    pub disk: Disk,
    /// Survives: the state machine at its last durable commit.
    pub checkpoint: Machine,
    /// Survives: names the data directory.
    pub incarnation: u64,
    /// Counts starts and stops; events of an earlier life are void.
    pub life: u64,
    /// The machine's clock, against the simulator's.
    pub clock_offset_us: i64,
    /// Longest sync.
    pub sync_us_max: u64,
    /// Until then nothing happens here.
    pub paused_until_us: u64,
    /// The running process; `None` while it is down.
    pub process: Option<Process>,
}

/// Work for the state machine.
pub enum Piece {
    /// Committed entries.
    Entries {
        /// Which.
        entries: Vec<LogEntry>,
        /// Whether somebody waits for what keys had before.
        answering: bool,
    },
    /// A snapshot that takes the state's place.
    Snapshot(Machine),
}

/// All that is volatile.
pub struct Process {
    /// The core.
    pub node: Node,
    /// The core's last account of itself.
    pub status: NodeStatus,
    /// The state machine.
    pub machine: Machine,
    /// Handed over and not yet applied, piece by piece.
    pub applying: VecDeque<Piece>,
    /// A snapshot that has arrived and that the core has not decided about.
    pub staged: Option<Machine>,
    /// The last index handed over for application.
    pub handed: LogIndex,
    /// When the last `Applied` reaches the core, so that they stay in order.
    pub applied_notice_us: u64,
    /// Whether a flush is scheduled.
    pub flush_due: bool,
    /// What the core owes an answer, and since when.
    pub owed: BTreeMap<RequestToken, u64>,
    /// Attempts of clients that a crash would cut off.
    pub open_attempts: BTreeSet<usize>,
    /// What the log would have said.
    pub notices: Vec<Notice>,
    /// What the console would have shown.
    pub console: Vec<ConsoleEvent>,
}

impl Process {
    /// A process that has just started.
    pub fn new(node: Node, machine: Machine) -> Process {
        let status = node.status();
        let handed = machine.point().index;
        Process {
            node,
            status,
            machine,
            applying: VecDeque::new(),
            staged: None,
            handed,
            applied_notice_us: 0,
            flush_due: false,
            owed: BTreeMap::new(),
            open_attempts: BTreeSet::new(),
            notices: Vec::new(),
            console: Vec::new(),
        }
    }

    /// A read of a key as a worker does it (SPEC A4). `applied` was read before the key: a lower bound
    /// of what the state holds; what the state stands at now is the upper bound.
    pub fn get(&self, request: &GetRequest, applied: Timestamp) -> Reply {
        let as_of = request.at > Timestamp::ZERO;
        let at = if as_of { request.at } else { Timestamp(i64::MAX) };
        let state = self.machine.now();
        let found = newest(&state, &request.key, at);
        let version = found.map_or(Timestamp::ZERO, |(timestamp, _)| timestamp);
        let reaches = match found {
            _ if as_of => applied >= request.at,
            Some(_) => version >= request.timestamp,
            None => applied >= request.timestamp,
        };
        if !reaches || applied < request.session {
            return Reply::TryOtherServerOrLater { timestamp: version, applied };
        }
        Reply::GetOk {
            value: found.map(|(_, value)| value.clone()),
            timestamp: version,
            as_of: self.machine.point().timestamp.max(applied),
        }
    }

    /// A page of a range or of keys, likewise.
    pub fn page(&self, request: &PageRequest, applied: Timestamp) -> Reply {
        let PageRequest { of, at, seen, session, rows_max, .. } = request;
        if applied < *at.max(seen).max(session) {
            return Reply::TryOtherServerOrLater { timestamp: Timestamp::ZERO, applied };
        }
        let seen = if *seen > Timestamp::ZERO { *seen } else { applied };
        let at = if *at > Timestamp::ZERO { *at } else { seen };
        let Some(state) = self.machine.seen(seen) else {
            let (code, message) = (ErrorCode::Expired, String::new());
            return Reply::Error(ErrorReply { code, message, retry_after_ms: 0 });
        };
        let keys: Vec<&Bytes> = match of {
            PageOf::Range { from, to } => {
                state.keys().filter(|key| from <= *key && *key <= to).collect()
            }
            PageOf::Keys { keys } => keys.iter().collect(),
            PageOf::Versions { .. } => Vec::new(),
        };
        let in_range = matches!(of, PageOf::Range { .. });
        let rows = keys.into_iter().map(|key| match newest(&state, key, at) {
            Some((timestamp, value)) => (key.clone(), Some(value.clone()), timestamp),
            None => (key.clone(), None, Timestamp::ZERO),
        });
        let rows = rows.filter(|(_, value, _)| value.is_some() || !in_range);
        let rows = rows.map(|(key, value, timestamp)| Row { key, value, timestamp });
        let (mut rows, max): (Vec<Row>, _) = (rows.collect(), *rows_max as usize);
        let next = rows.get(max).map(|row| match in_range {
            true => PageNext::From(row.key.clone()),
            false => PageNext::Skip(*rows_max),
        });
        rows.truncate(max);
        Reply::PageOk { rows, at, seen, next }
    }
}
