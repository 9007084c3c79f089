//! The report of a bench, as text for people or as a JSON object to keep.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Measured;
use crate::text::counted;

/// Latencies in microseconds, of operations that have some kind or cause in common.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LatencyReport {
    /// The mean of them all.
    pub mean_us: f64,
    /// Latency that half of the operations did not exceed.
    pub p50_us: f64,
    /// Latency that 99 % of the operations did not exceed.
    pub p99_us: f64,
    /// Latency that 99.9 % of the operations did not exceed.
    pub p999_us: f64,
    /// The longest of them all.
    pub max_us: f64,
}

impl LatencyReport {
    fn of(latencies_ns: &Histogram<u64>) -> LatencyReport {
        let us = |share: f64| latencies_ns.value_at_quantile(share) as f64 / 1e3;
        LatencyReport {
            mean_us: latencies_ns.mean() / 1e3,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: us(1.0),
        }
    }

    fn print(&self, name: &str, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "{name:<13}mean {:.1}  p50 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            self.mean_us, self.p50_us, self.p99_us, self.p999_us, self.max_us
        )
    }
}

/// The figures of one kind of operations of a mix.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KindReport {
    /// Number of successful operations.
    pub operations: u64,
    /// Their latencies, as of the whole.
    #[serde(flatten)]
    pub latency: LatencyReport,
}

/// A measurement with everything that is needed to repeat it.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The command line, as it was given.
    pub command: String,
    /// The release that measured.
    pub version: &'static str,
    /// Seconds since the Unix epoch when it ended.
    pub ended_at_s: u64,
    /// The mix, by the name by which it is chosen.
    pub operation: &'static str,
    /// Number of clients, each with a connection to each target.
    pub clients: usize,
    /// Requests that each client may have under way.
    pub pipeline: usize,
    /// Requests a second at which they are due in an open load; `None` of a closed one.
    pub rate: Option<u64>,
    /// The servers that the requests went to.
    pub targets: Vec<SocketAddr>,
    /// Number of keys at the beginning.
    pub keys: u64,
    /// How a request's key was drawn from them.
    pub distribution: &'static str,
    /// Bytes of a written value.
    pub value_bytes: usize,
    /// Whether reads were confirmed by a majority.
    pub linearizable: bool,
    /// Seconds under load before anything was measured.
    pub warm_up_s: f64,
    /// Seed of the random choices.
    pub seed: u64,
    /// The figures, which stand beside all this.
    #[serde(flatten)]
    pub figures: BenchFigures,
}

/// What a bench has measured.
#[derive(Clone, Debug, Serialize)]
pub struct BenchFigures {
    /// Seconds that were measured.
    pub elapsed_s: f64,
    /// Number of successful operations.
    pub operations: u64,
    /// Successful operations a second.
    pub operations_per_s: f64,
    /// Reads among them that found no such key.
    pub not_found: u64,
    /// From when operations were due to their answers.
    #[serde(flatten)]
    pub latency: LatencyReport,
    /// From when they were sent to their answers, of an open load.
    pub service: Option<LatencyReport>,
    /// Number of operations of an open load that were due and not answered at the end. They are
    /// among the latencies, with the time that they had waited.
    pub unanswered: u64,
    /// The figures of each kind of operations that there was.
    pub kinds: BTreeMap<&'static str, KindReport>,
    /// Number of failed operations by code.
    pub errors: BTreeMap<&'static str, u64>,
    /// Share of a processor that the generator's thread took, 0 to 1; near 1 the generator was the
    /// limit.
    pub generator_busy: Option<f64>,
}

impl BenchFigures {
    /// The figures of a load.
    pub fn of(measured: &Measured) -> BenchFigures {
        let elapsed_s = measured.elapsed.as_secs_f64();
        let busy =
            |busy: Duration| if elapsed_s > 0.0 { busy.as_secs_f64() / elapsed_s } else { 0.0 };
        let kinds = measured.kinds.iter().map(|figures| {
            let latency = LatencyReport::of(&figures.latencies_ns);
            (figures.kind.name(), KindReport { operations: figures.latencies_ns.len(), latency })
        });
        BenchFigures {
            elapsed_s,
            operations: measured.operations,
            operations_per_s: measured.per_second(),
            not_found: measured.empty,
            latency: LatencyReport::of(&measured.latencies_ns),
            service: measured.service_ns.as_ref().map(LatencyReport::of),
            unanswered: measured.unanswered,
            kinds: kinds.collect(),
            errors: measured.errors.clone(),
            generator_busy: measured.generator_busy.map(busy),
        }
    }
}

impl BenchReport {
    /// Prints the report for people: a name and a value a line.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn print_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let targets: Vec<String> = self.targets.iter().map(SocketAddr::to_string).collect();
        let figures = &self.figures;
        writeln!(out, "command      {}", self.command)?;
        writeln!(
            out,
            "load         {}{}, {}, {} each{}",
            self.operation,
            if self.linearizable { " --linearizable" } else { "" },
            counted(self.clients as u64, "client", "clients"),
            counted(self.pipeline as u64, "request", "requests"),
            self.rate.map(|rate| format!(", {rate} due a second")).unwrap_or_default()
        )?;
        writeln!(out, "servers      {}", targets.join(" "))?;
        writeln!(
            out,
            "data         {}, {}; values of {} B",
            counted(self.keys, "key", "keys"),
            self.distribution,
            self.value_bytes
        )?;
        writeln!(
            out,
            "time         {:.2} s after {:.2} s of warm-up",
            figures.elapsed_s, self.warm_up_s
        )?;
        writeln!(
            out,
            "operations   {}, {:.0} a second",
            figures.operations, figures.operations_per_s
        )?;
        figures.latency.print("latency µs", out)?;
        if let Some(service) = &figures.service {
            service.print(" as sent", out)?;
            writeln!(out, "unanswered   {}", figures.unanswered)?;
        }
        if figures.kinds.len() > 1 {
            for (kind, of_kind) in &figures.kinds {
                writeln!(
                    out,
                    "{kind}: {}",
                    counted(of_kind.operations, "operation", "operations")
                )?;
                of_kind.latency.print("  latency µs", out)?;
            }
        }
        if figures.kinds.keys().any(|kind| kind.contains("read")) {
            writeln!(out, "not found    {}", figures.not_found)?;
        }
        let errors: Vec<String> =
            figures.errors.iter().map(|(code, n)| format!("{code} {n}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join("  ") };
        writeln!(out, "errors       {errors}")?;
        if let Some(busy) = figures.generator_busy {
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
