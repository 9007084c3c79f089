//! The interface as generated code: messages, server, client, and its own description.
//!
//! Made from `proto/project.proto` when the crate is built; a test holds it against the tables of
//! the specification.

#![allow(missing_docs, reason = "generated; the interface file is its documentation")]

tonic::include_proto!("project");

/// The interface's description for reflection: an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("project");

/// A field of an answer's, or a status's, metadata: the write is done, but what there was before
/// could not be told, for the reason that is its value. The messages have no place for it, and an
/// error would be taken for a write undone.
pub const PREVIOUS_UNREAD: &str = "acervo-previous-unread";
