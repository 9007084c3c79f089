//! The interface file says what SPEC B1 says: the same messages, fields, numbers and types, and the
//! same operations, streams included.

use prost::Message;

use acervo::gateway::interface::FILE_DESCRIPTOR_SET;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// The tables of SPEC B1, a message or an operation a line.
const MESSAGES: &str = "\
KeyRequest: string key = 1; optional int64 ver = 2;
KeyRange: KeyRequest fr = 1; KeyRequest to = 2;
KeyValueRequest: string key = 1; string val = 2;
KeyValueVersionReply: string key = 1; string val = 2; int64 ver = 3;
PutReply: string key = 1; string old_val = 2; int64 old_ver = 3; int64 ver = 4;
";
const OPERATIONS: &str = "\
Del: KeyRequest -> KeyValueVersionReply
DelAll: stream KeyRequest -> stream KeyValueVersionReply
DelRange: KeyRange -> stream KeyValueVersionReply
Get: KeyRequest -> KeyValueVersionReply
GetAll: stream KeyRequest -> stream KeyValueVersionReply
GetRange: KeyRange -> stream KeyValueVersionReply
Put: KeyValueRequest -> PutReply
PutAll: stream KeyValueRequest -> stream PutReply
Trim: KeyRequest -> KeyValueVersionReply
";

fn interface() -> FileDescriptorProto {
    let mut set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    assert_eq!(set.file.len(), 1, "one file, which imports nothing");
    set.file.remove(0)
}

fn type_name(full: &str) -> &str {
    full.strip_prefix(".project.").expect("a message of this package")
}

#[test]
fn the_messages_are_those_of_the_specification() {
    let file = interface();
    assert_eq!((file.package(), file.syntax()), ("project", "proto3"));
    assert!(file.enum_type.is_empty() && file.extension.is_empty());
    let messages: String = file
        .message_type
        .iter()
        .map(|message| {
            let fields: Vec<String> = message
                .field
                .iter()
                .map(|field| {
                    assert_eq!(field.label(), Label::Optional, "nothing repeats");
                    let optional = if field.proto3_optional() { "optional " } else { "" };
                    let kind = match field.r#type() {
                        Type::String => "string",
                        Type::Int64 => "int64",
                        Type::Message => type_name(field.type_name()),
                        other => panic!("no field is of type {other:?}"),
                    };
                    format!("{optional}{kind} {} = {};", field.name(), field.number())
                })
                .collect();
            format!("{}: {}\n", message.name(), fields.join(" "))
        })
        .collect();
    assert_eq!(messages, MESSAGES);
}

#[test]
fn the_operations_are_those_of_the_specification() {
    let file = interface();
    let [service] = &file.service[..] else { panic!("one service") };
    assert_eq!(service.name(), "KeyValueStore");
    let stream = |streams: bool| if streams { "stream " } else { "" };
    let mut operations: Vec<String> = service
        .method
        .iter()
        .map(|method| {
            let (asks, answers) = (type_name(method.input_type()), type_name(method.output_type()));
            let (in_stream, out_stream) =
                (stream(method.client_streaming()), stream(method.server_streaming()));
            format!("{}: {in_stream}{asks} -> {out_stream}{answers}\n", method.name())
        })
        .collect();
    operations.sort();
    assert_eq!(operations.concat(), OPERATIONS);
}
