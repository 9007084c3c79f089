//! What the command line is made of: flags, their units, what comes in, and how answers are printed.
//!
//! `main.rs` wires these to the client and the server. Nothing here talks to a server except
//! through [`Client`](crate::Client).

pub mod args;
pub mod at;
mod choice;
pub mod commands;
#[cfg(feature = "grpc")]
pub mod gateway;
mod input;
pub mod key_args;
#[cfg(feature = "grpc")]
pub mod kvs;
mod output;
pub mod share;
pub mod share_args;
mod status;
pub mod stdout;
pub mod units;
