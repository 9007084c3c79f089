//! `acervo bench`: finds the group, puts the load on it, prints.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt;
use rand::rngs::SmallRng;

use super::live::LiveLine;
use super::report::{BenchFigures, BenchReport};
use super::{
    Distribution, LoadError, Measured, Mix, Pace, Plan, StoreLoad, StoreProtocol, Until, load,
};
use crate::client::{Client, ClientError};
use crate::limits;
use crate::process::exit_status;
use crate::wire::message::Role;

/// Clients that write the keys before a bench that reads them.
const BENCH_FILL_CLIENTS: usize = 64;
/// Writes that each of them has under way: the keys are to be there soon, and nothing is measured.
const BENCH_FILL_PIPELINE: usize = 16;
/// The most bytes of values that all clients may have under way together, so that the generator
/// holds no more of them.
const BENCH_UNDER_WAY_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// The most requests that all clients may have under way together: a group takes no more than
/// [`limits::REQUESTS_MAX`] of them at each of a few servers.
const BENCH_UNDER_WAY_MAX: usize = 64 * 1024;

/// The servers that the requests of a bench go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchTarget {
    /// Each to a server drawn from those that answered at the start.
    Random,
    /// All to the server that leads at the start.
    Leader,
    /// All to this one.
    One(SocketAddr),
}

/// The options of `acervo bench`.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What the requests are.
    pub mix: Mix,
    /// Whether a majority confirms reads.
    pub linearizable: bool,
    /// How keys are drawn.
    pub distribution: Distribution,
    /// The servers of the group.
    pub servers: Vec<SocketAddr>,
    /// The servers that requests go to.
    pub target: BenchTarget,
    /// Number of clients, each with a connection to each server.
    pub clients: usize,
    /// Requests that each client may have under way.
    pub pipeline: usize,
    /// When requests are due.
    pub pace: Pace,
    /// Time that is measured.
    pub measured: Duration,
    /// Time under load before it is measured.
    pub warm_up: Duration,
    /// Number of keys from which each request draws one.
    pub keys: u64,
    /// Bytes of a written value.
    pub value_bytes: usize,
    /// Write every key once before.
    pub fill: bool,
    /// Seed of the random choices; drawn at random when absent.
    pub seed: Option<u64>,
    /// Print JSON instead of text.
    pub json: bool,
    /// Show on standard error how it goes.
    pub live: bool,
}

/// Why a bench has no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server list cannot be used, or no server answered.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No server of the list answered.
    #[error("no server answered; last: {0}")]
    NobodyAnswered(String),
    /// `--target` names a server that is not in the list.
    #[error("the target {0} is not one of --servers")]
    UnknownTarget(SocketAddr),
    /// The servers that answer have no leader.
    #[error("no server that answers leads the group: try again once one has been elected")]
    NoLeader,
    /// The keys could not all be written first.
    #[error("{failed} of {keys} keys could not be written before the reads: {code}")]
    Fill {
        /// Number of keys that could not be written.
        failed: u64,
        /// Number of keys that were to be written.
        keys: u64,
        /// The most frequent code.
        code: &'static str,
    },
    /// The load could not be put on the group.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The clients together would have more under way than the generator can hold.
    #[error(
        "{clients} clients with {pipeline} requests of {value_bytes} bytes each are too many: all \
         together have at most {BENCH_UNDER_WAY_MAX} requests and 1 GiB of values under way"
    )]
    TooMuch { clients: usize, pipeline: usize, value_bytes: usize },
    /// The report is printed, and has no operation that was done.
    #[error("no operation was done{}", code.map(|code| format!("; most failed with {code}"))
        .unwrap_or_else(|| ", and none was answered".to_owned()))]
    NothingDone {
        /// The most frequent code.
        code: Option<&'static str>,
    },
    /// The report could not be printed.
    #[error("the report could not be printed: {0}")]
    Output(#[from] io::Error),
}

impl BenchError {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            BenchError::UnknownTarget(_) | BenchError::TooMuch { .. } => exit_status::USAGE,
            BenchError::Client(error) if error.is_of_the_request() => exit_status::USAGE,
            BenchError::Client(_)
            | BenchError::NobodyAnswered(_)
            | BenchError::NoLeader
            | BenchError::Fill { .. }
            | BenchError::NothingDone { .. }
            | BenchError::Load(LoadError::Connect { .. }) => exit_status::UNAVAILABLE,
            BenchError::Load(_) | BenchError::Output(_) => exit_status::FAILED,
        }
    }
}

/// Runs `options` and prints the report to `out`; `command` is repeated in it.
///
/// # Errors
/// See [`BenchError`].
pub fn run(options: &BenchOptions, command: String, out: &mut dyn Write) -> Result<(), BenchError> {
    let BenchOptions { clients, pipeline, value_bytes, .. } = *options;
    let under_way = clients.saturating_mul(pipeline);
    if under_way > BENCH_UNDER_WAY_MAX
        || under_way.saturating_mul(value_bytes) > BENCH_UNDER_WAY_BYTES_MAX
    {
        return Err(BenchError::TooMuch { clients, pipeline, value_bytes });
    }
    let live = if options.live { LiveLine::start().ok() } else { None };
    let targets = targets(options)?;
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    // The clients' identities must differ between two runs of one seed: a group remembers
    // what it has answered to whom.
    let mut identities: SmallRng = rand::make_rng();
    if options.fill {
        fill(options, &targets, seed, &mut identities, live.as_ref())?;
    }
    let plan = Plan {
        clients,
        pipeline,
        targets,
        pace: options.pace,
        until: Until::Time { warm_up: options.warm_up, measured: options.measured },
        seed,
    };
    let load = options.store_load(options.mix);
    let mut protocol = StoreProtocol::new(load, clients, pipeline, &mut identities);
    let measured = load::run(&plan, &mut protocol, live.as_ref())?;
    // What is left of the live line is gone before the report comes.
    drop(live);
    report(options, command, plan, &measured, out)?;
    if measured.operations == 0 {
        return Err(BenchError::NothingDone { code: measured.most_frequent_error() });
    }
    Ok(())
}

impl BenchOptions {
    fn store_load(&self, mix: Mix) -> StoreLoad {
        StoreLoad {
            mix,
            linearizable: self.linearizable,
            distribution: self.distribution,
            keys: self.keys,
            value_bytes: self.value_bytes,
        }
    }
}

fn report(
    options: &BenchOptions,
    command: String,
    plan: Plan,
    measured: &Measured,
    out: &mut dyn Write,
) -> io::Result<()> {
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let report = BenchReport {
        command,
        version: env!("CARGO_PKG_VERSION"),
        ended_at_s: ended.as_secs(),
        operation: options.mix.name(),
        clients: plan.clients,
        pipeline: plan.pipeline,
        rate: match plan.pace {
            Pace::Closed => None,
            Pace::Open { per_second } => Some(per_second),
        },
        targets: plan.targets,
        keys: options.keys,
        distribution: options.distribution.name(),
        value_bytes: options.value_bytes,
        linearizable: options.linearizable,
        warm_up_s: options.warm_up.as_secs_f64(),
        seed: plan.seed,
        figures: BenchFigures::of(measured),
    };
    if options.json {
        report.print_json(out)?
    } else {
        report.print_text(out)?
    }
    out.flush()
}

/// The servers meant by `--target`, among those that answer.
fn targets(options: &BenchOptions) -> Result<Vec<SocketAddr>, BenchError> {
    if let BenchTarget::One(address) = options.target {
        return if options.servers.contains(&address) {
            Ok(vec![address])
        } else {
            Err(BenchError::UnknownTarget(address))
        };
    }
    let client = Client::builder(options.servers.iter().copied())
        .request_timeout(limits::CLIENT_CONNECT_TIMEOUT)
        .build()?;
    let mut answering = Vec::new();
    let mut leaders = Vec::new();
    let mut last = String::new();
    for (server, answer) in client.status_of_each(limits::CLIENT_CONNECT_TIMEOUT)? {
        let late = || Err(ClientError::Unavailable { last: "no answer".to_owned(), effect: None });
        match answer.unwrap_or_else(late) {
            Ok(status) => {
                answering.push(server);
                if status.role == Role::Leader {
                    leaders.push((status.term, server));
                }
            }
            Err(error) => {
                last = error.to_string();
                log::warn!("{server} is left out: {last}");
            }
        }
    }
    if answering.is_empty() {
        return Err(BenchError::NobodyAnswered(last));
    }
    if options.target == BenchTarget::Random {
        return Ok(answering);
    }
    // A leader of an older term does not know yet that it was deposed.
    let (_, leader) = leaders.into_iter().max().ok_or(BenchError::NoLeader)?;
    Ok(vec![leader])
}

fn fill(
    options: &BenchOptions,
    targets: &[SocketAddr],
    seed: u64,
    identities: &mut SmallRng,
    live: Option<&LiveLine>,
) -> Result<(), BenchError> {
    let keys = options.keys;
    let (clients, mut pipeline) = (BENCH_FILL_CLIENTS, BENCH_FILL_PIPELINE);
    // Long values are not sent faster for being many at once.
    while pipeline > 1 && clients * pipeline * options.value_bytes > BENCH_UNDER_WAY_BYTES_MAX / 8 {
        pipeline /= 2;
    }
    let plan = Plan {
        clients,
        pipeline,
        targets: targets.to_vec(),
        pace: Pace::Closed,
        until: Until::Requests(keys),
        seed,
    };
    let load = options.store_load(Mix::Fill);
    let mut protocol = StoreProtocol::new(load, clients, pipeline, identities);
    let measured = load::run(&plan, &mut protocol, live)?;
    match measured.most_frequent_error() {
        Some(code) => Err(BenchError::Fill { failed: measured.failures(), keys, code }),
        None => Ok(()),
    }
}
