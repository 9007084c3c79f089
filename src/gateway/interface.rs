//! What the gateway serves, as generated code: messages, servers, clients, and descriptions for
//! reflection.
//!
//! It is made from `proto/project.proto` when the crate is built, which a test compares with the
//! tables of SPEC B1, and from `proto/acervo.proto`, which has what that interface has no place for
//! ([`conditional`]).

#![allow(missing_docs, reason = "generated; the interface file is its documentation")]

tonic::include_proto!("project");

/// The interface's description for reflection: an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("project");

/// Writes under a condition, in a package of their own.
pub mod conditional {
    tonic::include_proto!("acervo");

    /// This part's description for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("acervo");
}

/// A field of an answer's, or a status's, metadata: the write is done, but what there was before
/// could not be told, for the reason that is its value. The messages have no place for it, and an
/// error would be taken for a write undone.
pub const PREVIOUS_UNREAD: &str = "acervo-previous-unread";
