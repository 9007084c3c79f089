//! Decodes GETs, apart from all other messages.
//!
//! A GET that memory answers costs little more than its bytes, and the decoder of all messages was
//! a twentieth of that. So its fields are read where they lie, in the forms in which clients write
//! them. A GET in any other form is left to the decoder of all messages, which gives the same.

use bytes::Bytes;

use super::codec::{short_number, split_request};
use super::message::{GetRequest, Message, ReadAt, Request};
use crate::model::Timestamp;

/// The beginning of what is asked for: a map of one entry, its name, and a list of five.
const GET_HEAD: &[u8] = b"\x81\xa3GET\x95";
/// The beginning of a [`ReadAt::Newest`].
const NEWEST_HEAD: &[u8] = b"\x81\xa6NEWEST\x91";
/// The beginning of a [`ReadAt::Version`].
const VERSION_HEAD: &[u8] = b"\x81\xa7VERSION";

/// Decodes a frame's body, if it is a GET and nothing else.
pub(super) fn decode(body: &[u8]) -> Option<Message> {
    let (id, rest) = split_request(body)?;
    let (key, rest) = short_bytes(rest.strip_prefix(GET_HEAD)?)?;
    let (read_at, rest) = match rest.strip_prefix(NEWEST_HEAD) {
        Some(rest) => {
            let (seen, rest) = optional_timestamp(rest)?;
            (ReadAt::Newest { seen }, rest)
        }
        None => {
            let (at, rest) = timestamp(rest.strip_prefix(VERSION_HEAD)?)?;
            (ReadAt::Version(at), rest)
        }
    };
    let (session, rest) = optional_timestamp(rest)?;
    let (linearizable, rest) = boolean(rest)?;
    let (facts, rest) = boolean(rest)?;
    if !rest.is_empty() {
        return None;
    }
    let key = Bytes::copy_from_slice(key);
    let get = GetRequest { key, read_at, session, linearizable, facts };
    Some(Message::Request { id, body: Request::Get(get) })
}

/// Up to 65,535 bytes, and what is behind them.
fn short_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (form, rest) = bytes.split_first()?;
    let (length, rest) = match form {
        0xc4 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        0xc5 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn boolean(bytes: &[u8]) -> Option<(bool, &[u8])> {
    match bytes.split_first()? {
        (0xc2, rest) => Some((false, rest)),
        (0xc3, rest) => Some((true, rest)),
        _ => None,
    }
}

fn timestamp(bytes: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (number, rest) = short_number(bytes)?;
    Some((Timestamp(i64::try_from(number).ok()?), rest))
}

fn optional_timestamp(bytes: &[u8]) -> Option<(Option<Timestamp>, &[u8])> {
    match bytes.strip_prefix(b"\xc0") {
        Some(rest) => Some((None, rest)),
        None => timestamp(bytes).map(|(timestamp, rest)| (Some(timestamp), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::wire::codec;
    use proptest::prelude::*;

    fn get(
        id: u64,
        key: Vec<u8>,
        read_at: ReadAt,
        session: Option<i64>,
        (linearizable, facts): (bool, bool),
    ) -> Message {
        let (key, session) = (Bytes::from(key), session.map(Timestamp));
        let get = GetRequest { key, read_at, session, linearizable, facts };
        Message::Request { id, body: Request::Get(get) }
    }

    fn body(message: &Message) -> Vec<u8> {
        let mut frame = Vec::new();
        codec::encode(message, limits::SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
        frame.split_off(limits::FRAME_HEADER_BYTES)
    }

    proptest! {
        /// Numbers of all lengths, which have forms of their own.
        #[test]
        fn what_is_decoded_is_what_was_encoded_and_nothing_else_is(
            (id, at, session) in any::<(u64, i64, Option<i64>)>(),
            (id_bits, at_bits, session_bits) in (0u32..64, 1u32..64, 1u32..64),
            key in prop_oneof![any::<Vec<u8>>(), Just(vec![7; 300])],
            (newest, seen, flags) in any::<(bool, bool, (bool, bool))>(),
        ) {
            let at = Timestamp((at as u64 >> at_bits) as i64);
            let read_at = match newest {
                true => ReadAt::Newest { seen: seen.then_some(at) },
                false => ReadAt::Version(at),
            };
            let session = session.map(|session| (session as u64 >> session_bits) as i64);
            let message = get(id >> id_bits, key, read_at, session, flags);
            let body = body(&message);
            prop_assert_eq!(decode(&body), Some(message));
            for length in 0..body.len() {
                prop_assert_eq!(decode(&body[..length]), None);
            }
            prop_assert_eq!(decode(&[&body[..], b"\xc0"].concat()), None);
        }
    }

    /// A number in one of its forms, from the shortest to the longest.
    fn number(number: u8, form: usize) -> Vec<u8> {
        let long = u64::from(number).to_be_bytes();
        match form {
            0 => vec![number & 0x7f],
            _ => [&[0xcb + form as u8][..], &long[8 - (1 << (form - 1))..]].concat(),
        }
    }

    proptest! {
        /// Numbers and lengths in longer forms than needed, and bytes that were changed.
        #[test]
        fn what_is_decoded_here_the_decoder_of_all_messages_decodes_to_the_same(
            (id, session, (linearizable, facts)) in any::<(u8, u8, (bool, bool))>(),
            (id_form, session_form, is_long) in (0usize..5, 0usize..5, any::<bool>()),
            key in any::<[u8; 3]>(),
            change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let length = if is_long { &b"\xc5\x00\x03"[..] } else { b"\xc4\x03" };
            let (id, session) = (number(id, id_form), number(session, session_form));
            let end = [linearizable, facts].map(|flag| 0xc2 + u8::from(flag));
            let (head, newest) = (b"\x81\xa7REQUEST\x92", [NEWEST_HEAD, b"\xc0"].concat());
            let parts = [&head[..], &id, GET_HEAD, length, &key, &newest, &session, &end];
            let mut body = parts.concat();
            if let Some((index, byte)) = change {
                let index = index.index(body.len());
                body[index] = byte;
            }
            let decoded = decode(&body);
            prop_assert!(decoded.is_some() || change.is_some());
            if let Some(message) = decoded {
                prop_assert_eq!(codec::decode_any(&body).ok(), Some(message));
            }
        }
    }

    /// Whatever the forms of its parts are, a GET is decoded to the same.
    #[test]
    fn another_form_is_left_to_the_decoder_of_all_messages() {
        let before_all = Some(Timestamp(-1));
        let message =
            get(1, b"k".to_vec(), ReadAt::Newest { seen: before_all }, Some(-5), (true, false));
        let encoded = body(&message);
        assert_eq!(decode(&encoded), None, "no clock shows such a time");
        assert_eq!(codec::decode(&encoded).unwrap(), message);
        let message = get(1, b"k".to_vec(), ReadAt::Newest { seen: None }, None, (false, true));
        let map = b"\x81\xa7REQUEST\x92\x01\x81\xa3GET\x85\xa3key\xc4\x01k\xa7read_at\
            \x81\xa6NEWEST\x81\xa4seen\xc0\xa7session\xc0\xaclinearizable\xc2\xa5facts\xc3";
        assert_eq!(decode(map), None);
        assert_eq!(codec::decode(map).unwrap(), message);
        for wrong in [&b"\x91"[..], b"\xc4\x05k", b"\xcd\x01"] {
            let at = encoded.windows(3).position(|part| part == b"\xc4\x01k").unwrap();
            let broken = [&encoded[..at], wrong].concat();
            assert_eq!(decode(&broken), None);
            codec::decode(&broken).unwrap_err();
        }
    }
}
