//! What the command line is made of: flags, their units, what comes in, and how answers are printed.
//!
//! `main.rs` wires these to the client and the server. Nothing here talks to a server except
//! through [`Client`](crate::Client).

pub mod args;
pub mod at;
pub mod commands;
mod input;
pub mod key_args;
mod output;
mod status;
pub mod units;
