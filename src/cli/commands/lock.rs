//! `acervo lock` and `acervo elect`: one at a time, in the order in which they came.

use std::ffi::OsString;

use clap::Args;

use super::super::outcome::{CommandError, CommandOutcome};
use super::held::{Held, HoldArgs, Stops, hold};
use super::session::{OneShot, Streams};

/// The flags and arguments of `acervo lock`.
#[derive(Debug, Args)]
#[command(
    override_usage = "acervo lock [OPTIONS] <NAME> [-- COMMAND...]",
    after_help = "\
Examples:
  acervo lock report -- ./make-report.sh
  acervo lock report --wait 0s -- ./make-report.sh     or not at all
  acervo lock report                                   until Ctrl-C

A COMMAND has in its environment ACERVO_FENCE, the fencing token, which is greater for each who
gets the lock than for those before, and ACERVO_LOCK_KEY, the key that stands for the lock. Signals
to stop are passed on to it. Its exit status is that of acervo, 128 and the signal's number if one
has ended it, 126 or 127 if it could not be run. When the lock is lost, the command is sent SIGTERM,
after --kill-after SIGKILL, and the exit status is 5. It is 1 if the turn has not come in the time
of --wait. Without a COMMAND the key and the fencing token are printed, separated by a tab."
)]
pub struct LockArgs {
    /// The name of the lock
    pub name: OsString,
    /// How it is held, and for which command.
    #[command(flatten)]
    pub hold: HoldArgs,
}

/// The flags and arguments of `acervo elect`.
#[derive(Debug, Args)]
#[command(
    override_usage = "acervo elect [OPTIONS] <NAME> <VALUE> [-- COMMAND...]",
    after_help = "\
Examples:
  acervo elect scheduler 10.0.0.7:80 -- ./scheduler.sh
  acervo elect scheduler 10.0.0.7:80                   until Ctrl-C

One leads at a time, and 'acervo observe' tells the VALUE of who does. Whoever waits, the COMMAND,
and the exit status are as 'acervo lock' has them."
)]
pub struct ElectArgs {
    /// The name of the election
    pub name: OsString,
    /// What others are told of whoever leads, such as an address
    #[arg(allow_hyphen_values = true)]
    pub value: OsString,
    /// How leadership is held, and for which command.
    #[command(flatten)]
    pub hold: HoldArgs,
}

impl OneShot for LockArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let client = self.hold.client()?;
        let stops = Stops::listen()?;
        let name = self.name.as_encoded_bytes();
        let lock = client.lock_unless(name, self.hold.options(), stops.stopped());
        hold(&self.hold, stops, lock.map(Held::Lock), streams.out)
    }
}

impl OneShot for ElectArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let client = self.hold.client()?;
        let stops = Stops::listen()?;
        let (name, value) = (self.name.as_encoded_bytes(), self.value.as_encoded_bytes());
        let options = self.hold.options();
        let leadership = client.campaign_unless(name, value, options, stops.stopped());
        hold(&self.hold, stops, leadership.map(Held::Election), streams.out)
    }
}
