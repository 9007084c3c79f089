//! The content of a frame: it is decoded, a server's message is checked, and a client's write is
//! encoded for the log.
//!
//! All of this takes time in proportion to the length of the frame. Short frames are decoded on the
//! event loop, long ones by `threads::decoders`.

use crate::model::EncodedWrite;
use crate::node::CheckedMessage;
use crate::text::sentence;
use crate::wire::codec::{self, CodecError};
use crate::wire::message::{Message, Request, WriteRequest};

/// The content of a frame.
#[derive(Debug)]
pub enum DecodedFrame {
    /// A client's write, encoded for the log.
    Write {
        /// The id of its request.
        id: u64,
        write: EncodedWrite,
    },
    /// A message of another server, checked.
    Server(CheckedMessage),
    /// Any other message, as it was decoded.
    Message(Message),
}

/// Why a frame could not be decoded.
#[derive(Debug)]
pub struct Undecodable {
    /// One sentence, no longer than a reason may be.
    pub reason: String,
    /// The request's id, where it is a request that breaks no rule but a limit, and so gets an
    /// answer.
    pub request: Option<u64>,
}

/// Decodes a frame's body, and does all that takes time in proportion to its length: checks a
/// server's message, and encodes a write for the log.
pub fn decode(body: &[u8]) -> Result<DecodedFrame, Undecodable> {
    // Most requests that write: nothing of them is taken apart and put together again.
    if let Some((id, request)) = codec::split_request(body)
        && let Some(write) = EncodedWrite::of_put(request)
    {
        return Ok(DecodedFrame::Write { id, write });
    }
    match codec::decode(body) {
        Ok(Message::Request { id, body: Request::Write(write) }) => {
            let WriteRequest { request, op } = write;
            Ok(DecodedFrame::Write { id, write: EncodedWrite::new(request, op) })
        }
        Ok(Message::Server(message)) => CheckedMessage::new(message)
            .map(DecodedFrame::Server)
            .map_err(|reason| Undecodable { reason, request: None }),
        Ok(message) => Ok(DecodedFrame::Message(message)),
        Err(error) => {
            let only_too_long = matches!(error, CodecError::TooMany(_));
            let request = if only_too_long { codec::request_id(body) } else { None };
            Err(Undecodable { reason: sentence(&error.to_string()), request })
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::limits;
    use crate::model::{
        ClientId, Del, Facts, OpResult, Put, RequestId, Timestamp, Txn, TxnAnswer, TxnOp,
        TxnResult, TxnRow, TxnVersion, WriteAnswer, WriteOp, WriteOutcome,
    };
    use crate::wire::message::{Reply, ServerMessage};

    fn body(id: u64, request: RequestId, op: WriteOp) -> Vec<u8> {
        let body = Request::Write(WriteRequest { request, op });
        let mut frame = Vec::new();
        let message = Message::Request { id, body };
        codec::encode(&message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
        frame.split_off(limits::FRAME_HEADER_BYTES)
    }

    fn decoded(body: &[u8]) -> Result<(u64, EncodedWrite), String> {
        match decode(body) {
            Ok(DecodedFrame::Write { id, write }) => Ok((id, write)),
            Ok(other) => panic!("no write but {other:?}"),
            Err(error) => Err(error.reason),
        }
    }

    proptest! {
        /// What is copied from the frame is what would have been encoded.
        #[test]
        fn a_write_is_the_same_whichever_way_it_goes(
            (id, client, sequence, below, begun) in any::<(u64, u64, u64, u64, i64)>(),
            (key, value) in any::<(Vec<u8>, Vec<u8>)>(),
            tells_previous: bool,
            is_put: bool,
        ) {
            let (client, begun) = (ClientId(client), Timestamp(begun));
            let request = RequestId { client, sequence, answered_below: below, begun };
            let (key, value) = (Bytes::from(key), Bytes::from(value));
            let op: WriteOp = match is_put {
                true => Put { key, value, tells_previous }.into(),
                false => Del { key, tells_previous, keeps_history: false }.into(),
            };
            let mut body = body(id, request, op.clone());
            prop_assert_eq!(decoded(&body), Ok((id, EncodedWrite::new(request, op))));
            body.push(0xc0);
            let reason = decoded(&body).unwrap_err();
            prop_assert!(reason.contains("more than one message"), "{}", reason);
            for length in 0..body.len() - 1 {
                prop_assert!(decoded(&body[..length]).is_err());
            }
        }
    }

    /// A transaction that holds another, and so on, so many in all.
    fn nested(depth: usize) -> Txn {
        let (from, to) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let (keeps_history, tells_previous) = (false, true);
        let del_range = TxnOp::DelRange { from, to, keeps_history, tells_previous };
        let innermost = Txn { or_else: vec![del_range], ..Txn::default() };
        (1..depth).fold(innermost, |txn, _| Txn {
            or_else: vec![TxnOp::Txn(Box::new(txn))],
            ..Txn::default()
        })
    }

    #[test]
    fn transactions_nest_as_deep_as_they_may_and_deeper_ones_are_answered() {
        let request = RequestId {
            client: ClientId(1),
            sequence: 2,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let deepest = limits::TRANSACTION_DEPTH_MAX;
        let op: WriteOp = nested(deepest).into();
        let write = EncodedWrite::new(request, op.clone());
        assert_eq!(write.check(limits::VALUE_BYTES_MAX), Ok(()));
        assert_eq!(decoded(&body(7, request, op)), Ok((7, write)));
        for depth in [deepest + 1, 3 * deepest] {
            let deeper = decode(&body(7, request, nested(depth).into())).unwrap_err();
            assert!(deeper.reason.contains("nest at most 8 deep"), "{}", deeper.reason);
            assert_eq!(deeper.request, Some(7));
        }
        // Its answer comes through, too, as it is forwarded.
        let facts = Facts { created: Timestamp(1), count: 1, lease: None };
        let found = TxnVersion { timestamp: Timestamp(1), facts, value: Some(Bytes::new()) };
        let rows = vec![TxnRow { key: Bytes::from_static(b"a"), found }];
        let results = Some(vec![TxnResult::DelRange { removed: 1, rows }]);
        let innermost = TxnAnswer { succeeded: false, results };
        let answer = (1..deepest).fold(innermost, |answer, _| TxnAnswer {
            succeeded: false,
            results: Some(vec![TxnResult::Txn(answer)]),
        });
        assert!(nested(deepest).fits(&answer));
        let outcome =
            WriteOutcome { timestamp: Timestamp(2), result: OpResult::Txn { branches: 0 } };
        let answer = WriteAnswer { txn: Some(Box::new(answer)), ..WriteAnswer::of(outcome) };
        let reply = Some(Reply::WriteOk(answer));
        let message = Message::Server(ServerMessage::Forwarded { id: 7, reply });
        let mut frame = Vec::new();
        codec::encode(&message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
        assert_eq!(codec::decode(&frame[limits::FRAME_HEADER_BYTES..]).unwrap(), message);
    }

    /// A client may encode otherwise than this one does: what goes into the log is the same.
    #[test]
    fn a_put_in_another_form_lies_in_the_log_as_every_other() {
        let request = RequestId {
            client: ClientId(1),
            sequence: 2,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
        let op: WriteOp = Put { key, value, tells_previous: false }.into();
        let usual = body(7, request, op.clone());
        let (list, map) = (
            b"\x93\xc4\x01k\xc4\x01v\xc2",
            b"\x83\xa3key\xc4\x01k\xa5value\xc4\x01v\xaetells_previous\xc2",
        );
        let at = usual.windows(list.len()).position(|part| part == list).unwrap();
        let other = [&usual[..at], map].concat();
        assert_eq!(decoded(&other), Ok((7, EncodedWrite::new(request, op))));
    }
}
