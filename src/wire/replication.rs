//! Decodes REPLICATIONs, apart from all other messages.
//!
//! Most of what a follower receives are short entries. So the data of all entries of a message are
//! parts of one copy, which the log, the state machine and the core then share: none is allocated
//! by itself. The copy lives as long as the last of them. Entries of one message come and go
//! together, and are no longer than [`APPEND_BYTES_MAX`](crate::limits::APPEND_BYTES_MAX)
//! but where there is only one.
//!
//! A message in another form than servers write is left to the decoder of all messages.

use bytes::Bytes;
use serde::Deserialize;

use super::codec::{is_at_end, short_number};
use super::message::{Message, RaftBody, RaftMessage, ServerMessage};
use crate::model::{LogEntry, LogIndex, NodeId, Term, bounded};

/// The beginning of every Raft message: maps of one entry, and a list of four.
const RAFT_HEAD: &[u8] = b"\x81\xa6SERVER\x81\xa4RAFT\x94";
/// What comes after its sender, its receiver and its term, of a REPLICATION.
const REPLICATION_HEAD: &[u8] = b"\x81\xabREPLICATION";

/// The fields of a REPLICATION in their order; the entries are lent.
#[derive(Deserialize)]
struct LentReplication<'a>(
    LogIndex,
    Term,
    LogIndex,
    #[serde(borrow, deserialize_with = "bounded::entries")] Vec<LentEntry<'a>>,
);

/// The fields of an entry in their order.
#[derive(Deserialize)]
struct LentEntry<'a>(Term, LogIndex, &'a [u8]);

/// Decodes a frame's body, if it is a REPLICATION and nothing else.
pub(super) fn decode(body: &[u8]) -> Option<Message> {
    let (from, rest) = short_number(body.strip_prefix(RAFT_HEAD)?)?;
    let (to, rest) = short_number(rest)?;
    let (term, rest) = short_number(rest)?;
    let mut fields = rmp_serde::Deserializer::from_read_ref(rest.strip_prefix(REPLICATION_HEAD)?);
    let LentReplication(previous_index, previous_term, commit, lent) =
        Deserialize::deserialize(&mut fields).ok()?;
    if !is_at_end(&mut fields) {
        return None;
    }
    let mut all = Vec::with_capacity(lent.iter().map(|LentEntry(_, _, data)| data.len()).sum());
    lent.iter().for_each(|LentEntry(_, _, data)| all.extend_from_slice(data));
    let mut all = Bytes::from(all);
    let share = |LentEntry(term, index, data): LentEntry<'_>| {
        let data = all.split_to(data.len());
        LogEntry { term, index, data }
    };
    let entries = lent.into_iter().map(share).collect();
    let body = RaftBody::Append { previous_index, previous_term, commit, entries };
    let message = RaftMessage { from: NodeId(from), to: NodeId(to), term, body };
    Some(Message::Server(ServerMessage::Raft(message)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::wire::codec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_decoded_is_what_was_encoded_and_nothing_else_is(
            numbers in any::<[u64; 6]>(),
            entries in prop::collection::vec(any::<(u64, u64, Vec<u8>)>(), 0..20),
        ) {
            let [from, to, term, previous_index, previous_term, commit] = numbers;
            let entry = |(term, index, data)| LogEntry { term, index, data: Bytes::from(data) };
            let entries = entries.into_iter().map(entry).collect();
            let body = RaftBody::Append { previous_index, previous_term, commit, entries };
            let (from, to) = (NodeId(from), NodeId(to));
            let raft = RaftMessage { from, to, term, body };
            let message = Message::Server(ServerMessage::Raft(raft));
            let mut frame = Vec::new();
            codec::encode(&message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
            let body = &frame[limits::FRAME_HEADER_BYTES..];
            prop_assert_eq!(decode(body), Some(message));
            for length in 0..body.len() {
                prop_assert_eq!(decode(&body[..length]), None);
            }
            prop_assert_eq!(decode(&[body, b"\xc0"].concat()), None);
        }
    }

    #[test]
    fn entries_lie_one_behind_the_other() {
        let entry = |index| LogEntry { term: 1, index, data: Bytes::from(vec![7; 100]) };
        let entries = (1..10).map(entry).collect();
        let (previous_index, previous_term, commit) = (0, 0, 0);
        let body = RaftBody::Append { previous_index, previous_term, commit, entries };
        let raft = RaftMessage { from: NodeId(1), to: NodeId(2), term: 1, body };
        let mut frame = Vec::new();
        let message = Message::Server(ServerMessage::Raft(raft));
        codec::encode(&message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
        let decoded = codec::decode(&frame[limits::FRAME_HEADER_BYTES..]).unwrap();
        let Message::Server(ServerMessage::Raft(RaftMessage {
            body: RaftBody::Append { entries, .. },
            ..
        })) = decoded
        else {
            panic!("no REPLICATION but {decoded:?}");
        };
        let ends = entries.iter().map(|entry| entry.data.as_ptr_range().end);
        let starts = entries.iter().skip(1).map(|entry| entry.data.as_ptr());
        assert!(ends.zip(starts).all(|(end, start)| end == start));
    }
}
