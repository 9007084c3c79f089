//! The flags of `acervo bench`.

use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::args::{Format, FormatArgs, GroupArgs, parse_server};
use super::units::parse_size;
use crate::bench::command::{BenchOptions, BenchTarget};
use crate::bench::{Distribution, Mix, Pace};
use crate::limits;

/// The most clients of `acervo bench`, each of which has a connection to each server.
const BENCH_CLIENTS_MAX: usize = 1024;
/// The most keys of `acervo bench`, whose names have eight digits.
const BENCH_KEYS_MAX: u64 = 100_000_000;
/// The most requests that a client of `acervo bench` has under way: beyond, a server stops reading.
const BENCH_PIPELINE_MAX: usize = limits::REQUESTS_PER_CONNECTION_MAX;
/// The highest rate of `acervo bench`, far above what one generator sends.
const BENCH_RATE_MAX: u64 = 10_000_000;

/// The flags and arguments of `acervo bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo bench put
  acervo bench put --clients 1 --target leader --seconds 30
  acervo bench get --fill --json >> figures.jsonl
  acervo bench ycsb-a --fill --clients 16 --pipeline 16
  acervo bench ycsb-b --rate 5000

The mixes ycsb-a to ycsb-f are YCSB's core workloads: a half reads half updates, b 5 % updates,
c reads alone, d 5 % inserts and reads of what is new, e scans of up to 100 keys and 5 % inserts,
f half reads, half reads with a write of the same key after them. Without --rate a client asks
again when it is answered; with it, requests are due at that rate whatever the group does, and
latency counts from then.
A bench writes keys named bench-NUMBER to the group and leaves them there.")]
pub struct BenchArgs {
    /// Which requests to measure
    #[arg(value_name = "MIX", value_parser = chosen(Mix::CHOICES, Mix::name))]
    pub mix: Mix,
    /// Clients, each with a connection to each server
    #[arg(long, value_name = "N", default_value = "64",
        value_parser = clap::value_parser!(u64).range(1..=BENCH_CLIENTS_MAX as u64))]
    pub clients: u64,
    /// Requests that each client may have under way
    #[arg(long, value_name = "N", default_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=BENCH_PIPELINE_MAX as u64))]
    pub pipeline: u64,
    /// Requests a second of all clients together, due at equal intervals; as many as go without it
    #[arg(long, value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=BENCH_RATE_MAX))]
    pub rate: Option<u64>,
    /// How long to measure
    #[arg(long, value_name = "S", default_value = "10",
        value_parser = clap::value_parser!(u64).range(1..=limits::FLAG_DURATION_MAX.as_secs()))]
    pub seconds: u64,
    /// How long to wait under load before measuring
    #[arg(long, value_name = "S", default_value = "1",
        value_parser = clap::value_parser!(u64).range(0..=limits::FLAG_DURATION_MAX.as_secs()))]
    pub warm_up: u64,
    /// Bytes of each value, such as 100 or 64KiB
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = parse_value_size)]
    pub value_size: usize,
    /// Keys to choose from
    #[arg(long, value_name = "K", default_value = "100000",
        value_parser = clap::value_parser!(u64).range(1..=BENCH_KEYS_MAX))]
    pub keys: u64,
    /// How to choose: uniform; zipfian; latest, zipfian from the newest on. The mix says it if this
    /// does not
    #[arg(long, value_name = "HOW", value_parser = chosen(Distribution::ALL, Distribution::name))]
    pub distribution: Option<Distribution>,
    /// The servers that can be asked.
    #[command(flatten)]
    pub group: GroupArgs,
    /// Where requests go: random, leader, or one of the servers
    #[arg(long, value_name = "WHERE", default_value = "random", value_parser = parse_target)]
    pub target: BenchTarget,
    /// Confirm every read by a majority
    #[arg(long)]
    pub linearizable: bool,
    /// Write every key once before measuring
    #[arg(long)]
    pub fill: bool,
    /// Repeat the random choices of an earlier run
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Whether the answer is text or JSON.
    #[command(flatten)]
    pub format: FormatArgs,
}

impl BenchArgs {
    /// The options of the bench; `live` says whether somebody sees how it goes.
    ///
    /// # Errors
    /// One sentence for a person.
    pub fn options(&self, live: bool) -> Result<BenchOptions, &'static str> {
        if self.linearizable && !self.mix.reads() {
            return Err("--linearizable is for reads, and this mix has none");
        }
        Ok(BenchOptions {
            mix: self.mix,
            linearizable: self.linearizable,
            distribution: self.distribution.unwrap_or(self.mix.distribution()),
            servers: self.group.servers.clone(),
            target: self.target,
            // The flags admit no more than fits in 32 bits.
            clients: self.clients as usize,
            pipeline: self.pipeline as usize,
            pace: self.rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second }),
            measured: Duration::from_secs(self.seconds),
            warm_up: Duration::from_secs(self.warm_up),
            keys: self.keys,
            value_bytes: self.value_size,
            fill: self.fill,
            seed: self.seed,
            json: self.format.get() == Format::Json,
            live,
        })
    }
}

/// Takes one of these by its name.
fn chosen<T, const N: usize>(
    choices: [T; N],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(choices.map(name)).try_map(move |chosen| {
        let named = choices.into_iter().find(|choice| name(*choice) == chosen);
        named.ok_or("it is none of the possible values")
    })
}

fn parse_value_size(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    if bytes <= limits::VALUE_BYTES_MAX {
        Ok(bytes)
    } else {
        Err(format!("a value has at most {} bytes", limits::VALUE_BYTES_MAX))
    }
}

fn parse_target(text: &str) -> Result<BenchTarget, String> {
    match text {
        "random" => Ok(BenchTarget::Random),
        "leader" => Ok(BenchTarget::Leader),
        address => parse_server(address)
            .map(BenchTarget::One)
            .map_err(|_| "write random, leader or IP:PORT of one of the servers".to_owned()),
    }
}
