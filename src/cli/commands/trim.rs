//! `acervo trim`: every version of a key goes but the newest.

use std::ffi::OsString;
use std::fmt::Display;

use clap::Args;

use super::super::outcome::{CommandError, CommandOutcome};
use super::flags::{KeyArgs, NoVersionArgs};
use super::session::{OneShot, Session, Streams, answer, no_key, of_done};
use crate::model::Timestamp;

/// The flags and arguments of `acervo trim`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo trim title

Exit status 1 when there is no such key.")]
pub struct TrimArgs {
    /// The key to remove all but the newest version of
    pub key: OsString,
    /// A version, which is accepted and means nothing to a removal.
    #[command(flatten)]
    pub no_version: NoVersionArgs,
    /// How keys are given, which servers are asked, and in which session.
    #[command(flatten)]
    pub shared: KeyArgs,
}

impl OneShot for TrimArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.shared, streams)?;
        let key = session.key(&self.key);
        let trimmed = session.client.trim(&key);
        let Some(done) = session.previous_told(trimmed)? else {
            return Ok(CommandOutcome::Done);
        };
        let kept = done.previous.as_ref();
        let version = kept.map_or(Timestamp::ZERO, |kept| kept.timestamp);
        let object = answer(&key, kept.is_some(), version, done.server);
        let object = object.value("value", kept.map(|kept| &kept.value[..]));
        let printed = session.print(kept.map(|_| &version as &dyn Display), &object);
        printed.map_err(|error| of_done(done.timestamp, error))?;
        session.found(kept.is_some(), || no_key(&key))
    }
}
