//! The check between the network and the consensus library.
//!
//! raft-rs trusts its input: some messages make it panic, others quietly corrupt its bookkeeping.
//! A server may be broken, wiped or hostile, so every message is held against what is known before
//! it is stepped. A message that no correct server sends is a [`PeerFault`]: the connection closes.
//! One that a correct server may send late is merely ignored.
//!
//! A greater term deposes whoever leads, so what raises a term is held short:
//!
//! - An answer does so only if this server asks: a leader may be told that it is deposed, and who
//!   rehearses a vote that it is behind. The library's other answers never carry a greater term.
//! - What claims a leadership or asks for a vote does so only within the [`Known::term_credit`],
//!   which grows with time. Beyond it is ignored for now, not refused for ever: whoever was led to a
//!   term far ahead is followed as soon as the credit reaches there.

use crate::limits;
use crate::types::{LogIndex, NodeId, Term};
use crate::wire::message::{RaftBody, RaftMessage, Role};

/// A message that no correct server would have sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// The sender or the receiver it names is not who it should be.
    #[error("a consensus message from server {from} to server {to} came on another server's link")]
    WrongNode {
        /// The sender it names.
        from: NodeId,
        /// The receiver it names.
        to: NodeId,
    },
    /// No election ever reaches such a term.
    #[error("there is no term {term}")]
    NoSuchTerm {
        /// The message's.
        term: Term,
    },
    /// Entries do not follow one another.
    #[error("the entries of a REPLICATION after index {previous_index} do not follow one another")]
    BrokenEntries {
        /// What they claim to follow.
        previous_index: LogIndex,
    },
    /// An entry contradicts one that is committed here.
    #[error("a REPLICATION contradicts the committed entry at index {index}")]
    ContradictsCommitted {
        /// Where.
        index: LogIndex,
    },
    /// Acknowledges what was never sent.
    #[error("a REPLICATION_OK for index {index} is beyond the log's end at {last_index}")]
    AcknowledgesTooMuch {
        /// The message's.
        index: LogIndex,
        /// This server's.
        last_index: LogIndex,
    },
    /// Two servers say they lead in one term.
    #[error("server {from} claims to lead in term {term}, which another server leads")]
    SecondLeader {
        /// The second.
        from: NodeId,
        /// The term.
        term: Term,
    },
}

/// What the guard needs to know of this server.
pub(super) struct Known<'a> {
    pub me: NodeId,
    pub term: Term,
    /// By how much others may raise the term now.
    pub term_credit: u64,
    pub role: Role,
    /// It asks whether it would be voted for.
    pub is_rehearsing: bool,
    pub leader: Option<NodeId>,
    pub commit: LogIndex,
    pub last_index: LogIndex,
    /// The term at an index of the log, whatever part of the log holds it; `None` where the log does
    /// not reach (any more).
    pub term_at: &'a dyn Fn(LogIndex) -> Option<Term>,
    /// Whether everything this server has said of itself is durable, so that answers can be due.
    pub all_durable: bool,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Step(RaftMessage),
    Ignore,
}

/// Judges one message that came on `link`'s connection.
pub(super) fn check(
    known: &Known<'_>,
    link: NodeId,
    mut message: RaftMessage,
) -> Result<Verdict, PeerFault> {
    let RaftMessage { from, to, term, .. } = message;
    if from != link || to != known.me || from == known.me {
        return Err(PeerFault::WrongNode { from, to });
    }
    // Term 0 marks a local message inside the library; nothing that travels has it.
    if term == 0 {
        return Ok(Verdict::Ignore);
    }
    if term > limits::TERM_MAX {
        return Err(PeerFault::NoSuchTerm { term });
    }
    // The library takes nothing from an older term; what a deposed leader had in its log may well
    // contradict what was committed since.
    if term < known.term {
        return Ok(Verdict::Step(message));
    }
    if term > known.term && !may_raise_term(known, term, &message.body) {
        return Ok(Verdict::Ignore);
    }
    let same_term = term == known.term;
    match &mut message.body {
        RaftBody::Append { previous_index, previous_term, entries, .. } => {
            check_leadership(known, from, term)?;
            check_entries(known, term, *previous_index, *previous_term, entries)?;
        }
        RaftBody::Heartbeat { commit, .. } => {
            check_leadership(known, from, term)?;
            // A leader that remembers more of us than we do ourselves: this data directory was
            // lost. Answering lets the leader find out what we have; believing would panic.
            if *commit > known.last_index {
                *commit = 0;
            }
        }
        RaftBody::AppendReply { index, reject_hint, snapshot_wanted, .. } => {
            let too_much =
                PeerFault::AcknowledgesTooMuch { index: *index, last_index: known.last_index };
            if let Some((hint, _)) = reject_hint {
                // The library adds to the hint; real logs never come near.
                if *hint > u64::MAX / 2 {
                    return Err(too_much);
                }
                // It asks in the term of its last entry, which this leader sent then. What lies further
                // would never be reached, and nothing else would be sent to it.
                let beyond = snapshot_wanted.is_some_and(|index| index > known.last_index);
                if same_term && known.role == Role::Leader && beyond {
                    return Err(too_much);
                }
            } else if same_term && known.role == Role::Leader && *index > known.last_index {
                return Err(too_much);
            }
        }
        RaftBody::VoteReply { pre: false, .. } => {
            // Our request leaves only when everything before it is durable, so a correct answer
            // cannot come earlier; believing a forged one would make an undurable leader.
            if !known.all_durable {
                return Ok(Verdict::Ignore);
            }
        }
        RaftBody::TimeoutNow => {
            if !same_term || known.leader != Some(from) {
                return Ok(Verdict::Ignore);
            }
        }
        // Nothing of a rehearsal waits for a disk, nor does winning one make a leader.
        RaftBody::VoteReply { pre: true, .. }
        | RaftBody::HeartbeatReply { .. }
        | RaftBody::Vote { .. } => {}
    }
    Ok(Verdict::Step(message))
}

/// Whether a message of a greater term is to be taken, which makes the term this server's unless it
/// is about a rehearsal.
fn may_raise_term(known: &Known<'_>, term: Term, body: &RaftBody) -> bool {
    let in_credit = term - known.term <= known.term_credit;
    match body {
        RaftBody::Append { .. } | RaftBody::Heartbeat { .. } => in_credit,
        RaftBody::Vote { pre, .. } => *pre || in_credit,
        // To a leader that has been deposed and does not know it.
        RaftBody::AppendReply { index: 0, reject_hint: None, .. } => {
            known.role == Role::Leader && in_credit
        }
        RaftBody::VoteReply { pre: true, reject: true, .. } => known.is_rehearsing && in_credit,
        RaftBody::VoteReply { pre: true, reject: false, .. } => {
            known.is_rehearsing && term == known.term + 1
        }
        RaftBody::AppendReply { .. }
        | RaftBody::VoteReply { pre: false, .. }
        | RaftBody::HeartbeatReply { .. }
        | RaftBody::TimeoutNow => false,
    }
}

fn check_leadership(known: &Known<'_>, from: NodeId, term: Term) -> Result<(), PeerFault> {
    let another_leads = known.leader.is_some_and(|leader| leader != from);
    if term == known.term && another_leads {
        return Err(PeerFault::SecondLeader { from, term });
    }
    Ok(())
}

fn check_entries(
    known: &Known<'_>,
    term: Term,
    previous_index: LogIndex,
    previous_term: Term,
    entries: &[crate::types::LogEntry],
) -> Result<(), PeerFault> {
    let broken = PeerFault::BrokenEntries { previous_index };
    if previous_term > term || previous_index > u64::MAX / 2 {
        return Err(broken);
    }
    // To the library an index past its log has term 0, and so would match.
    if (previous_term == 0) != (previous_index == 0) {
        return Err(broken);
    }
    let mut index = previous_index;
    let mut entry_term = previous_term;
    for entry in entries {
        index += 1;
        let rises = entry.term >= entry_term.max(1) && entry.term <= term;
        if entry.index != index || !rises {
            return Err(broken);
        }
        entry_term = entry.term;
        let known_term = (known.term_at)(entry.index);
        if entry.index <= known.commit && known_term.is_some_and(|term| term != entry.term) {
            return Err(PeerFault::ContradictsCommitted { index });
        }
    }
    Ok(())
}
