//! The report of a bench, as text for people or as a JSON object to keep.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::Measured;
use crate::text::counted;

/// A measurement with everything that is needed to repeat it. Latencies are in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The command line, as it was given.
    pub command: String,
    /// The release that measured.
    pub version: &'static str,
    /// Seconds since the Unix epoch when it ended.
    pub ended_at_s: u64,
    /// `put`, `get` or `range`.
    pub operation: &'static str,
    /// Clients with one request under way each.
    pub clients: usize,
    /// The servers that the requests went to.
    pub targets: Vec<SocketAddr>,
    /// Number of keys from which each request draws one, uniformly.
    pub keys: u64,
    /// Bytes of a written value.
    pub value_bytes: usize,
    /// Whether reads were confirmed by a majority.
    pub linearizable: bool,
    /// Seconds under load before anything was measured.
    pub warm_up_s: f64,
    /// Seed of the random choices.
    pub seed: u64,
    /// Seconds that were measured.
    pub elapsed_s: f64,
    /// Number of successful requests.
    pub operations: u64,
    /// Successful requests a second.
    pub operations_per_s: f64,
    /// Reads among them that found no such key.
    pub not_found: u64,
    /// Mean latency in microseconds.
    pub mean_us: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// Latency that 99 % of the requests did not exceed, in microseconds.
    pub p99_us: f64,
    /// Latency that 99.9 % of the requests did not exceed, in microseconds.
    pub p999_us: f64,
    /// The longest latency, in microseconds.
    pub max_us: f64,
    /// Number of failed requests by code.
    pub errors: BTreeMap<&'static str, u64>,
    /// Share of a processor that the generator's thread took, 0 to 1; near 1 the generator was the
    /// limit.
    pub generator_busy: Option<f64>,
}

impl BenchReport {
    /// Takes the figures over from `measured`; what describes the run is left as it is.
    pub fn with_figures(self, measured: &Measured) -> BenchReport {
        let elapsed_s = measured.elapsed.as_secs_f64();
        let us = |duration: Duration| duration.as_nanos() as f64 / 1e3;
        let busy =
            |busy: Duration| if elapsed_s > 0.0 { busy.as_secs_f64() / elapsed_s } else { 0.0 };
        BenchReport {
            elapsed_s,
            operations: measured.latencies_ns.len(),
            operations_per_s: measured.per_second(),
            not_found: measured.empty,
            mean_us: measured.latencies_ns.mean() / 1e3,
            p50_us: us(measured.quantile(0.5)),
            p99_us: us(measured.quantile(0.99)),
            p999_us: us(measured.quantile(0.999)),
            max_us: us(measured.quantile(1.0)),
            errors: measured.errors.clone(),
            generator_busy: measured.generator_busy.map(busy),
            ..self
        }
    }

    /// Prints the report for people: a name and a value a line.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn print_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let targets: Vec<String> = self.targets.iter().map(SocketAddr::to_string).collect();
        let kind = if self.linearizable { " --linearizable" } else { "" };
        writeln!(out, "command      {}", self.command)?;
        writeln!(
            out,
            "load         {}{kind}, {}, one request each",
            self.operation,
            counted(self.clients as u64, "client", "clients")
        )?;
        writeln!(out, "servers      {}", targets.join(" "))?;
        writeln!(
            out,
            "data         {}, uniform; values of {} B",
            counted(self.keys, "key", "keys"),
            self.value_bytes
        )?;
        writeln!(
            out,
            "time         {:.2} s after {:.2} s of warm-up",
            self.elapsed_s, self.warm_up_s
        )?;
        writeln!(out, "operations   {}, {:.0} a second", self.operations, self.operations_per_s)?;
        writeln!(
            out,
            "latency µs   mean {:.1}  p50 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            self.mean_us, self.p50_us, self.p99_us, self.p999_us, self.max_us
        )?;
        if self.operation == "get" {
            writeln!(out, "not found    {}", self.not_found)?;
        }
        let errors: Vec<String> =
            self.errors.iter().map(|(code, n)| format!("{code} {n}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join("  ") };
        writeln!(out, "errors       {errors}")?;
        if let Some(busy) = self.generator_busy {
            writeln!(out, "generator    {:.0} % of one processor", busy * 100.0)?;
        }
        writeln!(
            out,
            "release      acervo {}, seed {}, ended at {}",
            self.version, self.seed, self.ended_at_s
        )
    }

    /// Prints the report as one JSON object on a line of its own.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn print_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        out.write_all(b"\n")
    }
}
