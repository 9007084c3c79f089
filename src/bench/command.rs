//! `acervo bench`: finds the group, puts the load on it, prints.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt;
use rand::rngs::SmallRng;

use super::report::BenchReport;
use super::{LoadError, Plan, StoreProtocol, Until, Workload, load};
use crate::client::{Client, ClientError};
use crate::limits;
use crate::process::exit_status;
use crate::wire::message::Role;

/// Clients that write the keys before a bench of reads.
const BENCH_FILL_CLIENTS: usize = 64;

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
    /// The kind of requests.
    pub workload: Workload,
    /// The servers of the group.
    pub servers: Vec<SocketAddr>,
    /// The servers that requests go to.
    pub target: BenchTarget,
    /// Number of clients, each with one request under way.
    pub clients: usize,
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
    /// The report could not be printed.
    #[error("the report could not be printed: {0}")]
    Output(#[from] io::Error),
}

impl BenchError {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            BenchError::UnknownTarget(_) => exit_status::USAGE,
            BenchError::Client(error) if error.is_of_the_request() => exit_status::USAGE,
            BenchError::Client(_)
            | BenchError::NobodyAnswered(_)
            | BenchError::NoLeader
            | BenchError::Fill { .. }
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
    let targets = targets(options)?;
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    // The clients' identities must differ between two runs of one seed: a group remembers
    // what it has answered to whom.
    let mut identities: SmallRng = rand::make_rng();
    if options.fill {
        fill(options, &targets, seed, &mut identities)?;
    }
    let plan = Plan {
        clients: options.clients,
        targets,
        until: Until::Time { warm_up: options.warm_up, measured: options.measured },
        seed,
    };
    let mut protocol = StoreProtocol::new(
        options.workload,
        options.clients,
        options.keys,
        options.value_bytes,
        &mut identities,
    );
    let measured = load::run(&plan, &mut protocol)?;
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (operation, linearizable) = match options.workload {
        Workload::Put | Workload::Fill => ("put", false),
        Workload::Get => ("get", false),
        Workload::GetLinearizable => ("get", true),
        Workload::Range { linearizable } => ("range", linearizable),
    };
    let report = BenchReport {
        command,
        version: env!("CARGO_PKG_VERSION"),
        ended_at_s: ended.as_secs(),
        operation,
        clients: options.clients,
        targets: plan.targets,
        keys: options.keys,
        value_bytes: options.value_bytes,
        linearizable,
        warm_up_s: options.warm_up.as_secs_f64(),
        seed,
        elapsed_s: 0.0,
        operations: 0,
        operations_per_s: 0.0,
        not_found: 0,
        mean_us: 0.0,
        p50_us: 0.0,
        p99_us: 0.0,
        p999_us: 0.0,
        max_us: 0.0,
        errors: Default::default(),
        generator_busy: None,
    }
    .with_figures(&measured);
    if options.json {
        report.print_json(out)?
    } else {
        report.print_text(out)?
    }
    out.flush()?;
    Ok(())
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
) -> Result<(), BenchError> {
    let clients = BENCH_FILL_CLIENTS;
    let until = Until::Requests(options.keys);
    let plan = Plan { clients, targets: targets.to_vec(), until, seed };
    let (keys, value_bytes) = (options.keys, options.value_bytes);
    let mut protocol = StoreProtocol::new(Workload::Fill, clients, keys, value_bytes, identities);
    let measured = load::run(&plan, &mut protocol)?;
    let failed = measured.errors.values().sum();
    match measured.errors.iter().max_by_key(|(_, count)| **count) {
        Some((code, _)) => Err(BenchError::Fill { failed, keys, code }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_fill_starts_with_distinct_keys() {
        use super::super::Protocol;
        let mut random = SmallRng::seed_from_u64(1);
        let mut protocol = StoreProtocol::new(Workload::Fill, 1, 100, 0, &mut random);
        let mut frames = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let mut frame = Vec::new();
            protocol.request(0, &mut random, &mut frame);
            let Ok(crate::wire::message::Message::Request {
                body: crate::wire::message::Request::Write(write),
                ..
            }) = crate::wire::codec::decode(&frame[limits::FRAME_HEADER_BYTES..])
            else {
                panic!("a fill writes");
            };
            let crate::model::WriteOp::Put(crate::model::Put { key, .. }) = write.op else {
                panic!("a fill puts")
            };
            frames.insert(key);
        }
        assert_eq!(frames.len(), 100);
    }
}
