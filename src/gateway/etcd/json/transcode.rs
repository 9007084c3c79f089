//! JSON for protobuf messages, and back, as etcd's clients write and read it.
//!
//! It is protobuf's own JSON mapping (the library's), with the fields' names as the interface has
//! them: bytes in base64, 64-bit numbers as strings, and what has its default left out. Requests
//! may also name fields in camel case, give numbers as numbers, and have fields that nobody knows.
//!
//! Around each message of gRPC lie five bytes, the last four of which say how long it is.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::Status;

/// The most objects that a request may have, one within another or beside it. A transaction has
/// 128 operations a branch at most, and as many comparisons. Each takes a few hundred bytes of
/// memory, however few of the text.
const JSON_OBJECTS_MAX: usize = 8 * 1024;
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
    let objects = json.iter().filter(|byte| **byte == b'{').count();
    if objects > JSON_OBJECTS_MAX {
        return Err(format!("the request has more than {JSON_OBJECTS_MAX} objects"));
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

/// Appends an answer's message as JSON.
///
/// # Errors
/// It is no message of its kind, which would be the gateway's own fault.
pub(super) fn answer(
    output: &MessageDescriptor,
    message: Bytes,
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    let fault = |error: &dyn std::fmt::Display| {
        Status::internal(format!("an answer cannot be written as JSON: {error}"))
    };
    let message = DynamicMessage::decode(output.clone(), message).map_err(|error| fault(&error))?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    message
        .serialize_with_options(&mut serde_json::Serializer::new(out), &options)
        .map_err(|error| fault(&error))
}
