//! What the command line is made of: flags, their units, and how answers are printed.
//!
//! `main.rs` wires these to the client and the server. Nothing here talks to a server except
//! through [`Client`](crate::Client).

pub mod args;
pub mod commands;
pub mod share;
pub mod share_args;
mod status;
pub mod units;
