//! The interface as generated code: messages, server, client, and its own description.
//!
//! Made from `proto/project.proto` when the crate is built; a test holds it against the tables of the
//! specification.

#![allow(missing_docs, reason = "generated; the interface file is its documentation")]

tonic::include_proto!("project");

/// The interface's description for reflection: an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("project");
