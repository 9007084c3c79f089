//! The flags of `acervo bench`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::args::{Format, FormatArgs, GroupArgs, parse_server};
use super::units::parse_size;
use crate::bench::Workload;
use crate::bench::command::{BenchOptions, BenchTarget};
use crate::limits;

/// The most clients of `acervo bench`, each of which has a connection to each server.
const BENCH_CLIENTS_MAX: usize = 1024;
/// The most keys of `acervo bench`, whose names have eight digits.
const BENCH_KEYS_MAX: u64 = 100_000_000;

/// The flags and arguments of `acervo bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo bench put
  acervo bench put --clients 1 --target leader --seconds 30
  acervo bench get --fill --json >> figures.jsonl

A bench writes keys named bench-NUMBER to the group and leaves them there.")]
pub struct BenchArgs {
    /// Which requests to measure
    pub operation: BenchOperation,
    /// Clients with one request under way each
    #[arg(long, value_name = "N", default_value = "64",
        value_parser = clap::value_parser!(u64).range(1..=BENCH_CLIENTS_MAX as u64))]
    pub clients: u64,
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
    /// Keys to choose from, uniformly
    #[arg(long, value_name = "K", default_value = "100000",
        value_parser = clap::value_parser!(u64).range(1..=BENCH_KEYS_MAX))]
    pub keys: u64,
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

/// The kinds of requests that a bench can measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchOperation {
    /// Writes of one key each.
    Put,
    /// Reads of one key each.
    Get,
    /// Pages of 1,000 keys.
    Range,
}

impl BenchArgs {
    /// The options of the bench.
    ///
    /// # Errors
    /// One sentence for a person.
    pub fn options(&self) -> Result<BenchOptions, &'static str> {
        let workload = match (self.operation, self.linearizable) {
            (BenchOperation::Put, false) => Workload::Put,
            (BenchOperation::Get, false) => Workload::Get,
            (BenchOperation::Get, true) => Workload::GetLinearizable,
            (BenchOperation::Range, linearizable) => Workload::Range { linearizable },
            (BenchOperation::Put, true) => {
                return Err("--linearizable is for reads: bench get or range");
            }
        };
        Ok(BenchOptions {
            workload,
            servers: self.group.servers.clone(),
            target: self.target,
            // The flag admits no more than fits in 32 bits.
            clients: self.clients as usize,
            measured: Duration::from_secs(self.seconds),
            warm_up: Duration::from_secs(self.warm_up),
            keys: self.keys,
            value_bytes: self.value_size,
            fill: self.fill,
            seed: self.seed,
            json: self.format.get() == Format::Json,
        })
    }
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
