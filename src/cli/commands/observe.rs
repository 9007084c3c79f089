//! `acervo observe`: who leads, one after the other.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;

use super::super::args::RequestArgs;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::Object;
use super::super::stdout;
use super::session::{OneShot, Streams, builder, print};
use crate::client::Leader;
use crate::text::escape;

/// The flags and arguments of `acervo observe`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo observe scheduler
  acervo observe scheduler --limit 1          who leads now
  acervo observe scheduler --format json | jq .value

A line has the leader's fencing token, which is greater for each leader than for those before, its
key and its value, separated by tabs; or 'none' when nobody leads. Each leader comes once, and again
for each other value that it proclaims, also when servers fail.")]
pub struct ObserveArgs {
    /// The name of the election
    pub name: OsString,
    /// End after so many lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

impl OneShot for ObserveArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let RequestArgs { group, timeout, .. } = &self.request;
        let client = builder(&group.servers, *timeout).build()?;
        let mut leaders = client.observe(self.name.as_encoded_bytes())?;
        let mut left = self.limit.unwrap_or(u64::MAX);
        while left > 0 {
            let Some(leader) = leaders.next_within(stdout::READER_LOOK_PAUSE) else {
                stdout::end_without_reader();
                continue;
            };
            left -= 1;
            let out = &mut *streams.out;
            match leader? {
                Some(Leader { key, value, fence, timestamp, .. }) => {
                    let object = Object::default().with("found", json!(true));
                    let object = object.timestamp("fence", fence).bytes("key", &key);
                    let object = object.timestamp("timestamp", timestamp).bytes("value", &value);
                    let line = format_args!("{fence}\t{}\t{}", escape(&key), escape(&value));
                    print(out, &self.request, Some(&line), &object)?;
                }
                None => {
                    let object = Object::default().with("found", json!(false));
                    print(out, &self.request, Some(&"none"), &object)?;
                }
            }
            out.flush().map_err(CommandError::Output)?;
        }
        Ok(CommandOutcome::Done)
    }
}
