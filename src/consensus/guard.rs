//! Checks every consensus message before raft-rs sees it.
//!
//! raft-rs trusts its input: some messages make it panic, others silently corrupt its bookkeeping.
//! Another server may be broken, wiped or hostile, so each message is compared with the local state
//! before it is stepped. A message that no correct server sends is a [`RaftMessageFault`]: the
//! connection is closed. One that a correct server may send late is ignored.
//!
//! A greater term deposes the leader, so two rules limit which messages may raise the term:
//!
//! - An answer may do so only if this server has asked for it: a leader may learn that it is
//!   deposed, and a pre-candidate that its term is behind. The library's other answers never carry
//!   a greater term.
//! - A message that claims leadership or requests a vote may do so only within
//!   [`LocalState::term_credit`], which grows with time. Beyond the credit it is ignored for now
//!   and not refused for good: a leader whose term is far ahead is followed once the credit
//!   suffices.

use crate::model::{Command, LogEntry, LogIndex, NodeId, Term, Timestamp};
use crate::wire::message::{RaftBody, RaftMessage, Role};

/// Greater terms are no servers' but a forger's.
const TERM_MAX: u64 = u64::MAX / 2;

/// Why no correct server would have sent a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RaftMessageFault {
    /// The sender or the receiver in the message is not the server at that end of the link.
    #[error("a consensus message from server {from} to server {to} came on another server's link")]
    WrongNode {
        /// The sender that the message names.
        from: NodeId,
        /// The receiver that the message names.
        to: NodeId,
    },
    /// The term is beyond any that a sequence of elections reaches.
    #[error("there is no term {term}")]
    NoSuchTerm {
        /// The term of the message.
        term: Term,
    },
    /// The indices are not contiguous, or the terms fall.
    #[error("the entries of a REPLICATION after index {previous_index} do not follow one another")]
    BrokenEntries {
        /// The index that the entries claim to follow.
        previous_index: LogIndex,
    },
    /// An entry has a timestamp that is not past those before it, in this log and the message: no
    /// state machine could apply it.
    #[error(
        "the timestamps of a REPLICATION do not rise: entry {index} has {found}, not past {last} \
         before it"
    )]
    TimestampOrder {
        /// The index of the entry.
        index: LogIndex,
        found: Timestamp,
        /// The timestamp that it should be past.
        last: Timestamp,
    },
    /// An entry contradicts one that is committed here.
    #[error("a REPLICATION contradicts the committed entry at index {index}")]
    ContradictsCommitted {
        /// The index of the entry.
        index: LogIndex,
    },
    /// A follower acknowledges entries that the leader does not have.
    #[error("a REPLICATION_OK for index {index} is beyond the log's end at {last_index}")]
    AcknowledgesTooMuch {
        /// The index that is acknowledged.
        index: LogIndex,
        /// The last index of the leader's log.
        last_index: LogIndex,
    },
    /// Two servers say they lead in one term.
    #[error("server {from} claims to lead in term {term}, which another server leads")]
    SecondLeader {
        /// The server that sent the message.
        from: NodeId,
        /// The term that both claim to lead.
        term: Term,
    },
}

/// The state of this server that messages are checked against.
pub(super) struct LocalState<'a> {
    pub me: NodeId,
    pub term: Term,
    /// By how much messages may raise the term now.
    pub term_credit: u64,
    pub role: Role,
    pub is_pre_candidate: bool,
    pub leader: Option<NodeId>,
    pub commit: LogIndex,
    pub last_index: LogIndex,
    /// The term of the entry at an index; `None` beyond the log's end and where it is compacted.
    pub term_at: &'a dyn Fn(LogIndex) -> Option<Term>,
    /// The greatest timestamp in the log up to an index that is not below the commit index.
    pub timestamp_up_to: &'a dyn Fn(LogIndex) -> Timestamp,
    /// Whether everything that this server has sent is durable, so that answers to it can have
    /// come.
    pub all_durable: bool,
}

/// What to do with a message that is not a fault.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum GuardVerdict {
    Step(RaftMessage),
    Ignore,
}

/// Checks one message that came on `link`'s connection. May change it, so that the library survives
/// it.
pub(super) fn check(
    local: &LocalState<'_>,
    link: NodeId,
    mut message: RaftMessage,
) -> Result<GuardVerdict, RaftMessageFault> {
    let RaftMessage { from, to, term, .. } = message;
    if from != link || to != local.me || from == local.me {
        return Err(RaftMessageFault::WrongNode { from, to });
    }
    // In raft-rs term 0 stands for a message within the process; no message on the wire has it.
    if term == 0 {
        return Ok(GuardVerdict::Ignore);
    }
    if term > TERM_MAX {
        return Err(RaftMessageFault::NoSuchTerm { term });
    }
    // The library ignores messages of older terms. Entries of a deposed leader may well contradict
    // what was committed since, so they are no fault.
    if term < local.term {
        return Ok(GuardVerdict::Step(message));
    }
    if term > local.term && !may_raise_term(local, term, &message.body) {
        return Ok(GuardVerdict::Ignore);
    }
    let same_term = term == local.term;
    match &mut message.body {
        RaftBody::Append { previous_index, previous_term, entries, .. } => {
            check_leadership(local, from, term)?;
            check_entries(local, term, *previous_index, *previous_term, entries)?;
        }
        RaftBody::Heartbeat { commit, .. } => {
            check_leadership(local, from, term)?;
            // The leader remembers entries of this server that its log does not hold: its data
            // directory was lost. raft-rs panics on such a commit index. The answer shows the
            // leader what this log holds.
            if *commit > local.last_index {
                *commit = 0;
            }
        }
        RaftBody::AppendReply { index, reject_hint, snapshot_wanted, .. } => {
            let too_much = RaftMessageFault::AcknowledgesTooMuch {
                index: *index,
                last_index: local.last_index,
            };
            if let Some((hint, _)) = reject_hint {
                // The library adds to the hint, which overflows beyond; no real log comes near.
                if *hint > u64::MAX / 2 {
                    return Err(too_much);
                }
                // A follower requests a snapshot in the term of its last entry, which this leader
                // has sent. A snapshot of a later index would never exist, and nothing else would
                // be sent to the follower.
                let beyond = snapshot_wanted.is_some_and(|index| index > local.last_index);
                if same_term && local.role == Role::Leader && beyond {
                    return Err(too_much);
                }
            } else if same_term && local.role == Role::Leader && *index > local.last_index {
                return Err(too_much);
            }
        }
        RaftBody::VoteReply { pre: false, .. } => {
            // The request for votes is sent only when everything before it is durable, so a correct
            // answer cannot come earlier. A forged one would elect a leader whose own vote is not
            // durable, or whose entries are not, on which the library panics.
            if !local.all_durable {
                return Ok(GuardVerdict::Ignore);
            }
        }
        RaftBody::TimeoutNow => {
            if !same_term || local.leader != Some(from) {
                return Ok(GuardVerdict::Ignore);
            }
        }
        // A pre-vote waits for no disk, and winning one makes no leader.
        RaftBody::VoteReply { pre: true, .. }
        | RaftBody::HeartbeatReply { .. }
        | RaftBody::Vote { .. } => {}
    }
    Ok(GuardVerdict::Step(message))
}

/// Whether a message of a greater term is to be stepped. That raises this server's term, except for
/// pre-votes.
fn may_raise_term(local: &LocalState<'_>, term: Term, body: &RaftBody) -> bool {
    let in_credit = term - local.term <= local.term_credit;
    match body {
        RaftBody::Append { .. } | RaftBody::Heartbeat { .. } => in_credit,
        RaftBody::Vote { pre, .. } => *pre || in_credit,
        // The answer to a leader that has been deposed and does not know it.
        RaftBody::AppendReply { index: 0, reject_hint: None, .. } => {
            local.role == Role::Leader && in_credit
        }
        RaftBody::VoteReply { pre: true, reject: true, .. } => local.is_pre_candidate && in_credit,
        RaftBody::VoteReply { pre: true, reject: false, .. } => {
            local.is_pre_candidate && term == local.term + 1
        }
        RaftBody::AppendReply { .. }
        | RaftBody::VoteReply { pre: false, .. }
        | RaftBody::HeartbeatReply { .. }
        | RaftBody::TimeoutNow => false,
    }
}

fn check_leadership(
    local: &LocalState<'_>,
    from: NodeId,
    term: Term,
) -> Result<(), RaftMessageFault> {
    let another_leads = local.leader.is_some_and(|leader| leader != from);
    if term == local.term && another_leads {
        return Err(RaftMessageFault::SecondLeader { from, term });
    }
    Ok(())
}

fn check_entries(
    local: &LocalState<'_>,
    term: Term,
    previous_index: LogIndex,
    previous_term: Term,
    entries: &[LogEntry],
) -> Result<(), RaftMessageFault> {
    let broken = RaftMessageFault::BrokenEntries { previous_index };
    if previous_term > term || previous_index > u64::MAX / 2 {
        return Err(broken);
    }
    // raft-rs takes the term of an index past its log for 0, which would match.
    if (previous_term == 0) != (previous_index == 0) {
        return Err(broken);
    }
    let mut index = previous_index;
    let mut entry_term = previous_term;
    // The last of the entries that this log has, as far as their terms say.
    let mut last_known = previous_index;
    for entry in entries {
        index += 1;
        let rises = entry.term >= entry_term.max(1) && entry.term <= term;
        if entry.index != index || !rises {
            return Err(broken);
        }
        entry_term = entry.term;
        let known_term = (local.term_at)(entry.index);
        if entry.index <= local.commit && known_term.is_some_and(|term| term != entry.term) {
            return Err(RaftMessageFault::ContradictsCommitted { index });
        }
        if last_known + 1 == index && known_term == Some(entry.term) {
            last_known = index;
        }
    }
    // Otherwise the library answers and stores nothing: what a leader believes this log to hold may
    // have been replaced since, by entries with lower timestamps than those that are here.
    let follows = previous_index == 0 || (local.term_at)(previous_index) == Some(previous_term);
    if follows && previous_index >= local.commit {
        check_timestamps(local, last_known, &entries[(last_known - previous_index) as usize..])?;
    }
    Ok(())
}

/// Checks the timestamps of entries that are to follow index `last_known`. The comparison begins
/// with this log's own timestamps, also of entries that are not committed: the library keeps an
/// entry that it has in the term of the message, whatever that says of it.
fn check_timestamps(
    local: &LocalState<'_>,
    last_known: LogIndex,
    entries: &[LogEntry],
) -> Result<(), RaftMessageFault> {
    let stamped = entries
        .iter()
        .filter_map(|entry| Some((entry.index, Command::peek_timestamp(&entry.data)?)));
    let mut last = None;
    for (index, found) in stamped {
        let before = last.unwrap_or_else(|| (local.timestamp_up_to)(last_known));
        if found <= before {
            return Err(RaftMessageFault::TimestampOrder { index, found, last: before });
        }
        last = Some(found);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClientId, Del, RequestId, WriteOp};
    use bytes::Bytes;

    fn entry(index: LogIndex, term: Term, timestamp: Option<i64>) -> LogEntry {
        let request = RequestId {
            client: ClientId(1),
            sequence: index,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let op = || {
            WriteOp::Del(Del {
                key: Bytes::from_static(b"k"),
                tells_previous: false,
                keeps_history: false,
            })
        };
        let data = |at| Command::write(Timestamp(at), request, op()).encode();
        LogEntry { term, index, data: timestamp.map_or_else(Bytes::new, data) }
    }

    /// What becomes of a REPLICATION after index `previous` at a follower in term 3, in whose log
    /// the entries 1 to 4 have the terms 1, 1, 2 and 3 and the first two are committed; their
    /// timestamps are 10, 20, none, and one far ahead.
    fn replicated(
        previous: (LogIndex, Term),
        entries: Vec<LogEntry>,
    ) -> Result<GuardVerdict, RaftMessageFault> {
        let terms = [1, 1, 2, 3];
        let local = LocalState {
            me: NodeId(2),
            term: 3,
            term_credit: 10,
            role: Role::Follower,
            is_pre_candidate: false,
            leader: None,
            commit: 2,
            last_index: 4,
            term_at: &|index| terms.get((index as usize).checked_sub(1)?).copied(),
            timestamp_up_to: &|index| Timestamp([0, 10, 20, 20, 9000][index as usize]),
            all_durable: true,
        };
        let (previous_index, previous_term) = previous;
        let body = RaftBody::Append { previous_index, previous_term, commit: 0, entries };
        check(&local, NodeId(1), RaftMessage { from: NodeId(1), to: NodeId(2), term: 4, body })
    }

    #[test]
    fn timestamps_must_rise_from_those_of_the_log_that_they_follow() {
        let order = |index, found, last| {
            let (found, last) = (Timestamp(found), Timestamp(last));
            Err(RaftMessageFault::TimestampOrder { index, found, last })
        };
        let first = |outcome: Result<GuardVerdict, RaftMessageFault>| outcome.map(|_| ());
        let cases = [
            ("after the forged entry", (4, 3), vec![entry(5, 4, Some(30))], order(5, 30, 9000)),
            (
                "the forged one is known by its term, whatever this one says of it",
                (3, 2),
                vec![entry(4, 3, Some(30)), entry(5, 4, Some(40))],
                order(5, 40, 9000),
            ),
            ("in the place of the forged one", (3, 2), vec![entry(4, 4, Some(30))], Ok(())),
            ("no later than its own", (3, 2), vec![entry(4, 4, Some(20))], order(4, 20, 20)),
            (
                "one without a timestamp between them",
                (4, 3),
                vec![entry(5, 4, Some(9001)), entry(6, 4, None), entry(7, 4, Some(9001))],
                order(7, 9001, 9001),
            ),
            ("after what this log does not have", (4, 2), vec![entry(5, 4, Some(1))], Ok(())),
            ("before what is committed", (1, 1), vec![entry(2, 1, Some(1))], Ok(())),
        ];
        for (name, previous, entries, expected) in cases {
            assert_eq!(first(replicated(previous, entries)), expected, "{name}");
        }
    }
}
