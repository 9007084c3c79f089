//! `acervo compact`: gives up the past before a version.

use clap::Args;

use super::super::args::RequestArgs;
use super::super::at::At;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::Object;
use super::session::{OneShot, Streams, builder, print};

/// The flags and arguments of `acervo compact`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo compact '24h ago'
  acervo compact 1795224871548738
  acervo compact now

From then on every read as of an earlier version fails, at every server, and what only such reads
would show is removed for good in the background, once it is a minute old. The newest version of
every key stays, whatever its age. There is no way back. To keep as much at any time,
'set-history' says so once and for all.")]
pub struct CompactArgs {
    /// The earliest version as of which reads go on
    #[arg(value_name = "VERSION|TIME", allow_hyphen_values = true)]
    pub up_to: At,
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

impl OneShot for CompactArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let up_to = self.up_to.resolve(jiff::Timestamp::now())?;
        let client = builder(&self.request.group.servers, self.request.timeout).build()?;
        let version = client.compact(up_to)?;
        let object = Object::default().timestamp("version", version);
        print(streams.out, &self.request, Some(&version), &object)?;
        Ok(CommandOutcome::Done)
    }
}
