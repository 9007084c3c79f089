//! What travels between machines: frames, messages, their encoding.

pub mod message;
