//! `acervo lease`: granted, kept alive, revoked and shown.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;

use super::super::args::{Format, RequestArgs};
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Object, print_json};
use super::super::units::parse_any_duration;
use super::session::{OneShot, Streams, builder, of_done, print, remark};
use crate::client::{Client, ClientError, LeaseId, LeaseShown, ReadOptions};
use crate::text::escape;

/// Between two times that `keep-alive` asks: a third of what the lease has left, and no longer than
/// this, so that a person sees that it goes on.
const KEEP_ALIVE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// And no shorter, whatever a server says: it is less than a sixth of the shortest TTL.
const KEEP_ALIVE_PAUSE_MIN: Duration = Duration::from_millis(150);
/// After a failure `keep-alive` asks again when this part of the TTL has passed …
const RETRY_PART: u32 = 20;
/// … and within these bounds: a group that is away is not asked more often, and one that is back
/// not noticed later.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The commands on leases.
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Grant a lease for a time and print its id
    Grant(GrantArgs),
    /// Keep a lease alive until interrupted, or until it is gone
    KeepAlive(KeepAliveArgs),
    /// End a lease, delete its keys, and print the version of that
    Revoke(LeaseArgs),
    /// Print every lease: its id, its time, and how much of it is left
    List(LeaseListArgs),
    /// Print one lease: its id, its time, how much of it is left, the version of its grant, and
    /// then its keys, one a line
    Show(LeaseArgs),
}

/// The flags and arguments of `acervo lease grant`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo lease grant 10s
  acervo lease grant 1h --id 7

The lease ends when it was not kept alive for so long, from 1s to 366d, and its keys with it.")]
pub struct GrantArgs {
    /// How long the lease lives after it was kept alive
    #[arg(value_name = "TTL", value_parser = parse_any_duration)]
    pub ttl: Duration,
    /// The id of the lease; without it, the version of its grant
    #[arg(long, value_name = "ID", value_parser = parse_lease)]
    pub id: Option<LeaseId>,
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

/// The flags and arguments of `acervo lease keep-alive`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo lease keep-alive 7
  acervo lease keep-alive 7 --once

Prints a line each time that the lease was kept alive. When no server answers it goes on asking
until the lease may have ended, because its time has passed since it was kept alive last. Exit
status 1 when there is no such lease (any more), 3 when that is not known.")]
pub struct KeepAliveArgs {
    /// Keep it alive once and end
    #[arg(long)]
    pub once: bool,
    /// Which lease, and how to ask.
    #[command(flatten)]
    pub shared: LeaseArgs,
}

/// The flags and arguments of the commands on one lease.
#[derive(Debug, Args)]
pub struct LeaseArgs {
    /// The id of the lease
    #[arg(value_parser = parse_lease)]
    pub id: LeaseId,
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

/// The flags of `acervo lease list`.
#[derive(Debug, Args)]
pub struct LeaseListArgs {
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

/// Reads the id of a lease.
pub(super) fn parse_lease(text: &str) -> Result<LeaseId, String> {
    let id = text.parse().ok().filter(|id| *id > 0).map(LeaseId);
    id.ok_or_else(|| "write the id of a lease, such as 'acervo lease grant' prints".to_owned())
}

impl OneShot for LeaseCommand {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let out = &mut *streams.out;
        match self {
            LeaseCommand::Grant(args) => grant(args, out),
            LeaseCommand::KeepAlive(args) => keep_alive(args, out),
            LeaseCommand::Revoke(args) => revoke(args, out),
            LeaseCommand::List(args) => list(args, out),
            LeaseCommand::Show(args) => show(args, out),
        }
    }
}

fn client(request: &RequestArgs) -> Result<Client, ClientError> {
    builder(&request.group.servers, request.timeout).build()
}

fn no_lease(id: LeaseId) -> CommandOutcome {
    remark(&format_args!("there is no lease {id}"));
    CommandOutcome::NotFound
}

fn grant(args: &GrantArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let granted = match client(&args.request)?.grant_lease(args.ttl, args.id) {
        Err(error @ ClientError::LeaseExists(_)) => {
            remark(&error);
            return Ok(CommandOutcome::Conflict);
        }
        granted => granted?,
    };
    let object = Object::default().with("lease", json!(granted.id.0));
    let object = object.with("ttl_ms", json!(granted.ttl.as_millis() as u64));
    let object = object.timestamp("timestamp", granted.timestamp);
    let printed = print(out, &args.request, Some(&granted.id), &object);
    printed.map_err(|error| of_done(granted.timestamp, error))?;
    Ok(CommandOutcome::Done)
}

fn keep_alive(args: &KeepAliveArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let KeepAliveArgs { once, shared: LeaseArgs { id, request } } = args;
    let client = client(request)?;
    // Its TTL, and until when it lives for certain: known from the first answer on.
    let mut alive: Option<(Duration, Instant)> = None;
    let mut is_failing = false;
    loop {
        let asked = Instant::now();
        let client = alive.map_or_else(|| client.clone(), |(_, until)| client.until(until));
        let left = match (client.keep_alive([*id]), alive) {
            (Ok(left), _) => left.into_iter().next().flatten(),
            (Err(error), Some((ttl, until))) if !error.is_of_the_request() => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(CommandError::NotKeptAlive { lease: *id, ttl, error });
                }
                if !std::mem::replace(&mut is_failing, true) {
                    remark(&format_args!(
                        "lease {id} was not kept alive: {error}; it has {left:.0?} left, in which \
                         that is tried again"
                    ));
                }
                thread::sleep((ttl / RETRY_PART).clamp(RETRY_MIN, RETRY_MAX).min(left));
                continue;
            }
            (Err(error), _) => return Err(error.into()),
        };
        let Some(left) = left else { return Ok(no_lease(*id)) };
        let object = Object::default().with("lease", json!(id.0));
        let object = object.with("left_ms", json!(left.as_millis() as u64));
        print(out, request, Some(&format_args!("{id}\t{left:?}")), &object)?;
        if *once {
            return Ok(CommandOutcome::Done);
        }
        out.flush().map_err(CommandError::Output)?;
        (alive, is_failing) = (Some((left, asked + left)), false);
        thread::sleep((left / 3).clamp(KEEP_ALIVE_PAUSE_MIN, KEEP_ALIVE_PAUSE_MAX));
    }
}

fn revoke(args: &LeaseArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let Some(version) = client(&args.request)?.revoke_lease(args.id)? else {
        return Ok(no_lease(args.id));
    };
    let object = Object::default().with("lease", json!(args.id.0));
    let object = object.timestamp("timestamp", version);
    let printed = print(out, &args.request, Some(&version), &object);
    printed.map_err(|error| of_done(version, error))?;
    Ok(CommandOutcome::Done)
}

fn list(args: &LeaseListArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    for lease in client(&args.request)?.leases()? {
        let LeaseShown { name, .. } = lease;
        let line = format_args!("{}\t{:?}\t{:?}", name.id, ttl(&lease), left(&lease));
        print(out, &args.request, Some(&line), &described(&lease))?;
    }
    Ok(CommandOutcome::Done)
}

fn show(args: &LeaseArgs, out: &mut dyn Write) -> Result<CommandOutcome, CommandError> {
    let client = client(&args.request)?;
    let Some(lease) = client.lease_shown(args.id)? else {
        return Ok(no_lease(args.id));
    };
    let keys = client.lease_keys(args.id, ReadOptions::default()).keys_only();
    let keys = keys.map(|row| row.map(|row| row.key)).collect::<Result<Vec<_>, ClientError>>()?;
    match args.request.format.get() {
        Format::Text => {
            let LeaseShown { name, .. } = lease;
            let (ttl, left) = (ttl(&lease), left(&lease));
            let line = writeln!(out, "{}\t{ttl:?}\t{left:?}\t{}", name.id, name.granted);
            line.and_then(|()| keys.iter().try_for_each(|key| writeln!(out, "{}", escape(key))))
        }
        Format::Json => {
            let keys = keys.iter().map(|key| Object::default().bytes("key", key));
            print_json(out, &described(&lease).list("keys", keys))
        }
    }
    .map_err(CommandError::Output)?;
    Ok(CommandOutcome::Done)
}

fn ttl(lease: &LeaseShown) -> Duration {
    Duration::from_millis(lease.ttl_ms)
}

fn left(lease: &LeaseShown) -> Duration {
    Duration::from_millis(lease.left_ms)
}

fn described(lease: &LeaseShown) -> Object {
    let object = Object::default().with("lease", json!(lease.name.id.0));
    let object = object.with("ttl_ms", json!(lease.ttl_ms)).with("left_ms", json!(lease.left_ms));
    object.timestamp("granted", lease.name.granted)
}
