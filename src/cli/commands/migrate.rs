//! `acervo import` and `acervo export`: the way from etcd, and back.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::super::args::{Format, RequestArgs};
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::print_json;
use super::session::{OneShot, Streams, builder};
use crate::migration::{self, EtcdEndpoint, Migration, MigrationError, MigrationStage};

/// What both have in common.
#[derive(Debug, Args)]
pub struct MigrationArgs {
    /// Only keys that begin with this
    #[arg(long, value_name = "P", allow_hyphen_values = true, default_value = "")]
    prefix: OsString,
    /// Go on with every change that is made after the copy, until interrupted
    #[arg(long)]
    follow: bool,
    /// The group, how long either end may be out of reach, and how progress is printed.
    #[command(flatten)]
    request: RequestArgs,
}

/// The flags of `acervo import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo import --from-etcd 10.0.0.1:2379,10.0.0.2:2379
  acervo import --from-etcd 10.0.0.1:2379 --prefix /service/ --follow

It copies the newest value of every key as of one revision. Keys with leases are left out: whoever
keeps their leases alive puts them anew. With --follow, let it run, point the programs that write at
the group, wait for a line with a revision that is as new as etcd's, and interrupt it. What the
group has besides stays; a copy that failed can be made again.")]
pub struct ImportArgs {
    /// Servers of the etcd
    #[arg(long, required = true, value_name = "HOST:PORT,...", value_delimiter = ',')]
    from_etcd: Vec<EtcdEndpoint>,
    /// What is copied and whereto.
    #[command(flatten)]
    shared: MigrationArgs,
}

/// The flags of `acervo export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo export --to-etcd 10.0.0.1:2379
  acervo export --to-etcd 10.0.0.1:2379 --prefix /service/ --follow

It copies the newest value of every key as of one version, as 'import' does in the other direction.
A write whose answer is lost is made again, and etcd may do the first one late: once nobody writes
any more, a last copy without --follow makes sure.")]
pub struct ExportArgs {
    /// Servers of the etcd
    #[arg(long, required = true, value_name = "HOST:PORT,...", value_delimiter = ',')]
    to_etcd: Vec<EtcdEndpoint>,
    /// What is copied and where from.
    #[command(flatten)]
    shared: MigrationArgs,
}

impl MigrationArgs {
    fn migration(&self, endpoints: &[EtcdEndpoint]) -> Result<Migration, CommandError> {
        let RequestArgs { group, timeout, .. } = &self.request;
        Ok(Migration {
            client: builder(&group.servers, *timeout).build()?,
            endpoints: endpoints.to_vec(),
            prefix: Bytes::copy_from_slice(self.prefix.as_bytes()),
            timeout: *timeout,
            follows: self.follow,
        })
    }

    fn print(&self, out: &mut dyn Write, stage: MigrationStage) -> io::Result<()> {
        let is_text = self.request.format.get() == Format::Text;
        match stage {
            MigrationStage::Copied { keys, leased, at } if is_text => {
                writeln!(out, "copied {keys} keys as of {at}; left out {leased} with leases")?;
            }
            MigrationStage::Followed { changes, at } if is_text => {
                writeln!(out, "followed {changes} changes up to {at}")?;
            }
            MigrationStage::Copied { keys, leased, at } => {
                print_json(out, &json!({ "copied": keys, "leased": leased, "at": at }))?;
            }
            MigrationStage::Followed { changes, at } => {
                print_json(out, &json!({ "followed": changes, "at": at }))?;
            }
        }
        out.flush()
    }
}

impl OneShot for ImportArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let migration = self.shared.migration(&self.from_etcd)?;
        let tell = &mut |stage| self.shared.print(streams.out, stage);
        ended(migration::import(&migration, tell))
    }
}

impl OneShot for ExportArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let migration = self.shared.migration(&self.to_etcd)?;
        let tell = &mut |stage| self.shared.print(streams.out, stage);
        ended(migration::export(&migration, tell))
    }
}

fn ended(result: Result<(), MigrationError>) -> Result<CommandOutcome, CommandError> {
    match result {
        Ok(()) => Ok(CommandOutcome::Done),
        Err(MigrationError::Group(error)) => Err(CommandError::Client(error)),
        Err(MigrationError::Output(error)) => Err(CommandError::Output(error)),
        Err(error) => Err(CommandError::Migration(error)),
    }
}
