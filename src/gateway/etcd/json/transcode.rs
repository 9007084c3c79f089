//! JSON for protobuf messages, and back, as etcd's clients write and read it.
//!
//! It is protobuf's own JSON mapping (the library's), with the fields' names as the interface has
//! them: bytes in base64, 64-bit numbers as strings, and what has its default left out. Requests
//! may also name fields in camel case, give numbers as numbers, and have fields that nobody knows.
//!
//! Around each message of gRPC lie five bytes, the last four of which say how long it is.

use std::collections::VecDeque;
use std::fmt::Display;
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions,
};
use tonic::Status;

/// The most objects that a request may have, one within another or beside it. A transaction has
/// 128 operations a branch at most, and as many comparisons. Each takes a few hundred bytes of
/// memory, however few of the text.
const JSON_OBJECTS_MAX: usize = 8 * 1024;
/// The most commas, each of which may stand before a number of a list or another field, and takes
/// some tens of bytes of memory. An object of a transaction has up to a dozen fields.
const JSON_COMMAS_MAX: usize = 12 * JSON_OBJECTS_MAX;
/// Rows that are made text of at once. Each takes some twenty times its own bytes while it is.
const ROWS_AT_ONCE: usize = 256;
/// What lies before each message of gRPC.
const FRAME_HEADER_BYTES: usize = 5;

/// Turns the objects of a request, one after the other, into framed messages. Nothing at all is a
/// message without fields; `is_stream` says whether there may be several.
///
/// # Errors
/// What is wrong with it, for a person.
pub(super) fn request(
    input: &MessageDescriptor,
    is_stream: bool,
    json: &[u8],
) -> Result<Bytes, String> {
    let count = |sign| json.iter().filter(|byte| **byte == sign).count();
    if count(b'{') > JSON_OBJECTS_MAX {
        return Err(format!("the request has more than {JSON_OBJECTS_MAX} objects"));
    }
    if count(b',') > JSON_COMMAS_MAX {
        return Err(format!("the request has more than {JSON_COMMAS_MAX} values"));
    }
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut framed = BytesMut::new();
    let mut rest = serde_json::Deserializer::from_slice(json);
    while rest.end().is_err() {
        if !is_stream && !framed.is_empty() {
            return Err("the request has more than one object".to_owned());
        }
        let message = DynamicMessage::deserialize_with_options(input.clone(), &mut rest, &options)
            .map_err(|error| error.to_string())?;
        frame(&message, &mut framed);
    }
    if framed.is_empty() {
        frame(&DynamicMessage::new(input.clone()), &mut framed);
    }
    Ok(framed.freeze())
}

fn frame(message: &DynamicMessage, out: &mut BytesMut) {
    let encoded = message.encode_to_vec();
    out.put_u8(0);
    // A request is bounded far below four gigabytes.
    out.put_u32(encoded.len() as u32);
    out.put_slice(&encoded);
}

/// Takes the first message from the front of what an answer has brought, if all of it has come.
///
/// # Errors
/// It is compressed, which nobody has asked for.
pub(super) fn take_message(received: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    let Some(header) = received.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let [compressed, length @ ..] = *header;
    if compressed != 0 {
        return Err(Status::internal("an answer came compressed, and nobody had asked for that"));
    }
    let length = u32::from_be_bytes(length) as usize;
    if received.len() - FRAME_HEADER_BYTES < length {
        return Ok(None);
    }
    let mut message = received.split_to(FRAME_HEADER_BYTES + length);
    Ok(Some(message.split_off(FRAME_HEADER_BYTES).freeze()))
}

/// An answer's message that is made JSON of, some of its rows at a time: a long one would hold up
/// everybody else, and take many times its own memory.
pub(super) struct JsonAnswer {
    message: Bytes,
    /// Its lists of messages, with where each element lies.
    lists: VecDeque<(FieldDescriptor, VecDeque<Range<usize>>)>,
    /// The first of them is begun.
    is_in_list: bool,
}

impl JsonAnswer {
    /// Begins with all that is no list of messages.
    ///
    /// # Errors
    /// It is no message of its kind, which would be the gateway's own fault.
    pub(super) fn begin(
        output: &MessageDescriptor,
        message: Bytes,
        out: &mut Vec<u8>,
    ) -> Result<JsonAnswer, Status> {
        let mut rest = BytesMut::new();
        let mut lists: VecDeque<(FieldDescriptor, VecDeque<Range<usize>>)> = VecDeque::new();
        let mut left = message.clone();
        while left.has_remaining() {
            let begin = message.len() - left.len();
            let (number, wire) = decode_key(&mut left).map_err(|error| fault(&error))?;
            let field = output.get_field(number).filter(is_list_of_messages);
            let Some(field) = field.filter(|_| wire == WireType::LengthDelimited) else {
                let skipped = skip_field(wire, number, &mut left, DecodeContext::default());
                skipped.map_err(|error| fault(&error))?;
                rest.extend_from_slice(&message[begin..message.len() - left.len()]);
                continue;
            };
            let length = decode_varint(&mut left).map_err(|error| fault(&error))?;
            let length = usize::try_from(length).ok().filter(|length| *length <= left.len());
            let length = length.ok_or_else(|| fault(&"an element ends behind its message"))?;
            let begin = message.len() - left.len();
            left.advance(length);
            // The elements of one list come one after the other.
            if lists.back().is_none_or(|(last, _)| *last != field) {
                lists.push_back((field, VecDeque::new()));
            }
            if let Some((_, elements)) = lists.back_mut() {
                elements.push_back(begin..begin + length);
            }
        }
        append(output, rest.freeze(), out)?;
        // What follows stands within the same object.
        let end = out.pop();
        assert_eq!(end, Some(b'}'), "a message is an object");
        Ok(JsonAnswer { message, lists, is_in_list: false })
    }

    /// Appends some more; whether that was all.
    ///
    /// # Errors
    /// As [`JsonAnswer::begin`].
    pub(super) fn go_on(&mut self, out: &mut Vec<u8>) -> Result<bool, Status> {
        let Some((field, elements)) = self.lists.front_mut() else {
            out.push(b'}');
            return Ok(true);
        };
        if !self.is_in_list {
            if out.last() != Some(&b'{') {
                out.push(b',');
            }
            out.extend_from_slice(format!("\"{}\":[", field.name()).as_bytes());
        }
        let Kind::Message(kind) = field.kind() else {
            unreachable!("{field:?} is a list of messages")
        };
        for element in elements.drain(..elements.len().min(ROWS_AT_ONCE)) {
            if std::mem::replace(&mut self.is_in_list, true) {
                out.push(b',');
            }
            append(&kind, self.message.slice(element), out)?;
        }
        if elements.is_empty() {
            out.push(b']');
            self.lists.pop_front();
            self.is_in_list = false;
        }
        Ok(false)
    }
}

fn is_list_of_messages(field: &FieldDescriptor) -> bool {
    field.is_list() && matches!(field.kind(), Kind::Message(_))
}

fn fault(error: &dyn Display) -> Status {
    Status::internal(format!("an answer cannot be written as JSON: {error}"))
}

/// Appends a message as JSON.
fn append(kind: &MessageDescriptor, message: Bytes, out: &mut Vec<u8>) -> Result<(), Status> {
    let message = DynamicMessage::decode(kind.clone(), message).map_err(|error| fault(&error))?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    message
        .serialize_with_options(&mut serde_json::Serializer::new(out), &options)
        .map_err(|error| fault(&error))
}

#[cfg(test)]
mod tests {
    use super::super::JsonMethods;
    use super::*;
    use crate::gateway::interface::etcd::etcdserverpb::{RangeResponse, ResponseHeader};
    use crate::gateway::interface::etcd::mvccpb::KeyValue;

    fn output() -> MessageDescriptor {
        JsonMethods::new().unwrap().find("/v3/kv/range").unwrap().descriptor.output()
    }

    fn in_pieces(message: &RangeResponse) -> (String, usize) {
        let mut text = Vec::new();
        let mut answer =
            JsonAnswer::begin(&output(), message.encode_to_vec().into(), &mut text).unwrap();
        let pieces = (1..).find(|_| answer.go_on(&mut text).unwrap()).unwrap();
        (String::from_utf8(text).unwrap(), pieces)
    }

    #[test]
    fn an_answer_in_pieces_is_the_same_as_at_once() {
        let row = |number: i64| KeyValue {
            key: format!("k{number}").into(),
            value: "v".into(),
            mod_revision: number,
            ..KeyValue::default()
        };
        let header = Some(ResponseHeader { revision: 7, ..ResponseHeader::default() });
        for (rows, header) in [(0, None), (0, header), (1, None), (1, header), (1_000, header)] {
            let kvs = (0..rows).map(row).collect();
            let message = RangeResponse { header, kvs, more: rows > 1, count: rows };
            let mut at_once = Vec::new();
            append(&output(), message.encode_to_vec().into(), &mut at_once).unwrap();
            let at_once: serde_json::Value = serde_json::from_slice(&at_once).unwrap();
            let (text, pieces) = in_pieces(&message);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), at_once);
            assert!(pieces > rows as usize / ROWS_AT_ONCE, "{rows} rows in {pieces} pieces");
        }
    }

    /// Two million numbers in four megabytes of text took a hundred of memory.
    #[test]
    fn a_request_of_many_small_values_is_refused() {
        let input = JsonMethods::new().unwrap().find("/v3/watch").unwrap().descriptor.input();
        let filters = vec!["0"; 2 * JSON_COMMAS_MAX].join(",");
        let json = format!(r#"{{"create_request":{{"filters":[{filters}]}}}}"#);
        let refused = request(&input, true, json.as_bytes()).unwrap_err();
        assert!(refused.contains("values"), "{refused}");
    }
}
