//! `acervo history`, and `set-history`, which says how much of it the group keeps.

use std::ffi::OsString;

use clap::Args;

use super::super::args::RequestArgs;
use super::super::at::At;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Object, Shape, Shown};
use super::super::units::parse_history;
use super::flags::ReadArgs;
use super::session::{OneShot, Session, Streams, builder, no_key, print};
use crate::model::History;
use crate::text::escape;

/// The flags and arguments of `acervo history`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo history title
  acervo history title --at '2h ago'      the versions that there were then
  acervo history title --since '3h ago' --at '1h ago'
  acervo history title --versions-only | tail -n 1       the oldest there is

A line has the version, its time and the value, separated by tabs, the newest first, since that is
how they lie in the store; 'tac' turns lines round. Escapes are those of getrange. One key at a
time: 'getrange --prefix P --keys-only' tells which there are. Exit status 1 when there is no such
key, or nothing of it since then.")]
pub struct HistoryArgs {
    /// The key whose versions are read
    pub key: OsString,
    /// Print no more than the newest so many versions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Print no version older than this
    #[arg(long, value_name = "VERSION|TIME", allow_hyphen_values = true)]
    pub since: Option<At>,
    /// Print only the versions, one a line
    #[arg(long)]
    pub versions_only: bool,
    /// Print only how many versions there are
    #[arg(long, conflicts_with = "versions_only")]
    pub count: bool,
    /// As of when the read is, and whether a majority confirms it.
    #[command(flatten)]
    pub read: ReadArgs,
}

impl OneShot for HistoryArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let mut session = Session::new(&self.read.shared, streams)?;
        let key = session.key(&self.key);
        let rows = session.client.versions(&key, self.read.options()?)?;
        let rows = rows.limit(self.limit.unwrap_or(u64::MAX));
        let since = self.since.map(|since| since.resolve(jiff::Timestamp::now())).transpose()?;
        let shown = match (self.count, self.versions_only) {
            (true, _) => Shown::Count,
            (false, true) => Shown::Keys,
            (false, false) => Shown::Whole,
        };
        let found = session.print_rows(Shape::History { since }, shown, rows)?;
        session.found(found > 0, || match since {
            Some(since) => {
                format!("the key \"{}\" has no version since {since}", escape(&key))
            }
            None => no_key(&key),
        })
    }

    fn read_args(&self) -> Option<&ReadArgs> {
        Some(&self.read)
    }
}

/// The flags and arguments of `acervo set-history`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo set-history 24h
  acervo set-history 10      ten versions of each key
  acervo set-history all")]
pub struct SetHistoryArgs {
    /// What is kept of what newer versions have replaced: all, a time such as 24h, or a number of
    /// versions
    #[arg(value_name = "all|TIME|N", value_parser = parse_history)]
    pub history: History,
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

impl OneShot for SetHistoryArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let client = builder(&self.request.group.servers, self.request.timeout).build()?;
        let version = client.set_history(self.history)?;
        let object = Object::default().timestamp("version", version);
        print(streams.out, &self.request, Some(&version), &object)?;
        Ok(CommandOutcome::Done)
    }
}
