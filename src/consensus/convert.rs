//! Converts between the consensus messages of the wire protocol and raft-rs's.
//!
//! [`RaftBody`] has only the kinds that servers need between them, so no other kind of library
//! message can come in or go out: raft-rs panics on some of them.

use raft::eraftpb::{Entry, EntryType, Message as RaftPb, MessageType};

use crate::model::{LogEntry, NodeId};
use crate::wire::message::{RaftBody, RaftMessage};

/// The context by which raft-rs recognizes a campaign of a leadership transfer.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

pub(super) fn entry_to_raft(entry: LogEntry) -> Entry {
    let mut pb = Entry::default();
    pb.set_entry_type(EntryType::EntryNormal);
    pb.term = entry.term;
    pb.index = entry.index;
    pb.data = entry.data;
    pb
}

pub(super) fn entry_from_raft(pb: Entry) -> LogEntry {
    LogEntry { term: pb.term, index: pb.index, data: pb.data }
}

/// Converts a message that the guard has checked.
pub(super) fn message_to_raft(message: RaftMessage) -> RaftPb {
    let mut pb =
        RaftPb { from: message.from.0, to: message.to.0, term: message.term, ..RaftPb::default() };
    match message.body {
        RaftBody::Append { previous_index, previous_term, commit, entries } => {
            pb.set_msg_type(MessageType::MsgAppend);
            pb.index = previous_index;
            pb.log_term = previous_term;
            pb.commit = commit;
            pb.set_entries(entries.into_iter().map(entry_to_raft).collect());
        }
        RaftBody::AppendReply { index, commit, reject_hint, snapshot_wanted } => {
            pb.set_msg_type(MessageType::MsgAppendResponse);
            pb.index = index;
            pb.commit = commit;
            if let Some((hint, term)) = reject_hint {
                pb.reject = true;
                pb.reject_hint = hint;
                pb.log_term = term;
                pb.request_snapshot = snapshot_wanted.unwrap_or(raft::INVALID_INDEX);
            }
        }
        RaftBody::Heartbeat { commit, context } => {
            pb.set_msg_type(MessageType::MsgHeartbeat);
            pb.commit = commit;
            pb.context = context;
        }
        RaftBody::HeartbeatReply { commit, context } => {
            pb.set_msg_type(MessageType::MsgHeartbeatResponse);
            pb.commit = commit;
            pb.context = context;
        }
        RaftBody::Vote { pre, last_index, last_term, commit, commit_term, transfer } => {
            pb.set_msg_type(if pre {
                MessageType::MsgRequestPreVote
            } else {
                MessageType::MsgRequestVote
            });
            pb.index = last_index;
            pb.log_term = last_term;
            pb.commit = commit;
            pb.commit_term = commit_term;
            if transfer {
                pb.context = CAMPAIGN_TRANSFER.into();
            }
        }
        RaftBody::VoteReply { pre, reject, commit, commit_term } => {
            pb.set_msg_type(if pre {
                MessageType::MsgRequestPreVoteResponse
            } else {
                MessageType::MsgRequestVoteResponse
            });
            pb.reject = reject;
            pb.commit = commit;
            pb.commit_term = commit_term;
        }
        RaftBody::TimeoutNow => pb.set_msg_type(MessageType::MsgTimeoutNow),
    }
    pb
}

/// Converts a message that the library wants to send; `None` for a kind that the wire protocol does
/// not have.
pub(super) fn message_from_raft(mut pb: RaftPb) -> Option<RaftMessage> {
    let body = match pb.get_msg_type() {
        MessageType::MsgAppend => RaftBody::Append {
            previous_index: pb.index,
            previous_term: pb.log_term,
            commit: pb.commit,
            entries: pb.take_entries().into_iter().map(entry_from_raft).collect(),
        },
        MessageType::MsgAppendResponse => RaftBody::AppendReply {
            index: pb.index,
            commit: pb.commit,
            reject_hint: pb.reject.then_some((pb.reject_hint, pb.log_term)),
            snapshot_wanted: Some(pb.request_snapshot).filter(|i| *i != raft::INVALID_INDEX),
        },
        MessageType::MsgHeartbeat => {
            RaftBody::Heartbeat { commit: pb.commit, context: pb.take_context() }
        }
        MessageType::MsgHeartbeatResponse => {
            RaftBody::HeartbeatReply { commit: pb.commit, context: pb.take_context() }
        }
        kind @ (MessageType::MsgRequestVote | MessageType::MsgRequestPreVote) => RaftBody::Vote {
            pre: kind == MessageType::MsgRequestPreVote,
            last_index: pb.index,
            last_term: pb.log_term,
            commit: pb.commit,
            commit_term: pb.commit_term,
            transfer: pb.context == CAMPAIGN_TRANSFER,
        },
        kind @ (MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse) => {
            RaftBody::VoteReply {
                pre: kind == MessageType::MsgRequestPreVoteResponse,
                reject: pb.reject,
                commit: pb.commit,
                commit_term: pb.commit_term,
            }
        }
        MessageType::MsgTimeoutNow => RaftBody::TimeoutNow,
        other => {
            log::debug!("consensus wanted to send {other:?}, which does not travel");
            return None;
        }
    };
    Some(RaftMessage { from: NodeId(pb.from), to: NodeId(pb.to), term: pb.term, body })
}
