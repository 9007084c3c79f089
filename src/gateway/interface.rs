//! What the gateway serves, as generated code: messages, servers, clients, and descriptions for
//! reflection.
//!
//! It is made from `proto/project.proto` when the crate is built, which a test compares with the
//! tables of SPEC B1, and from `proto/acervo.proto`, which has what that interface has no place for
//! ([`conditional`]). What is in `proto/etcd` is etcd's v3 interface ([`etcd`]).

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

/// etcd's v3 interface, a module a package, as the packages name each other.
#[allow(clippy::enum_variant_names, reason = "the names are etcd's")]
pub mod etcd {
    /// Keys with their values, and events.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }

    /// Users, roles and permissions.
    pub mod authpb {
        tonic::include_proto!("authpb");
    }

    /// Most services, and their messages.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }

    /// The service of locks.
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }

    /// The service of elections.
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }

    /// This part's description for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("etcd");
}

/// A field of an answer's, or a status's, metadata: the write is done, but what there was before
/// could not be told, for the reason that is its value. The messages have no place for it, and an
/// error would be taken for a write undone.
pub const PREVIOUS_UNREAD: &str = "acervo-previous-unread";
