//! What travels between machines: frames, messages, their encoding.
//!
//! [`frame`] cuts a stream of bytes into frames, [`codec`] turns one frame into a
//! [`Message`](message::Message) and back. Both are pure: no socket, no clock. Everything they are
//! given is hostile until proven otherwise, and the worst it can get out of them is an error.
//!
//! Left out: who may send which message when. That is the business of whoever owns the connection.

pub mod codec;
pub mod frame;
mod get;
pub mod message;
mod replication;
pub mod share;
pub mod watched;
