//! The command line: flags, their units, what comes in, how answers are printed, and the client's
//! console.
//!
//! [`main`] is all that the binary calls. Nothing here talks to a server except through
//! [`Client`](crate::Client); what is on no command line is in the room that it is about.

mod args;
pub mod at;
mod bench_args;
mod choice;
mod commands;
#[cfg(feature = "grpc")]
mod gateway;
mod input;
#[cfg(feature = "grpc")]
mod kvs;
mod outcome;
mod output;
mod repl;
mod run;
mod server_args;
mod share;
mod share_args;
mod stdout;
pub mod txn;
mod units;

pub use self::run::main;
