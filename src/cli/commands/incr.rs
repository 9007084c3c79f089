//! `acervo incr`: a counter.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;

use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::Object;
use super::flags::KeyArgs;
use super::session::{OneShot, Session, Streams};
use crate::client::Incremented;

/// The flags and arguments of `acervo incr`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo incr visits
  acervo incr stock -3
  acervo incr visits 0                    the number there is, or 0, which is then stored
The key has a whole number of 64 bits in decimal digits; without a value it counts as 0. However
many count at once, each counts once. Exit status 1 when the value is no number, or the sum is too
great: then nothing is written.")]
pub struct IncrArgs {
    /// The key with the number
    pub key: OsString,
    /// What is added to it
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    pub by: i64,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

impl OneShot for IncrArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.shared, streams)?;
        let key = session.key(&self.key);
        let Incremented { value, timestamp, server } = session.client.incr(&key, self.by)?;
        let object = Object::default().bytes("key", &key).timestamp("timestamp", timestamp);
        let object = object.with("value", json!(value.to_string()));
        session.print_answer(timestamp, &value, &object.with("server", json!(server)))?;
        session.done()
    }
}
