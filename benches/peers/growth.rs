//! How Acervo's figures change with what there is more of: clients, bytes of a value, keys,
//! versions of a key, servers. Each point is measured on a group of its own.
//!
//! `cargo bench --bench peers -- growth` prints a table for each, and with `--plots DIR` draws each
//! as a picture. `--short` takes the smaller half of the points, and a second for each.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use acervo::bench::Until;
use clap::Args;

use super::dialects::PeerOp;
use super::systems::{PeerData, Running, System};
use super::table::{grouped, spread, thousands};
use super::{Figures, Outcome, Workload, driver, measure, plan, workload};

/// Bytes of all values that are written before a point of long values is measured.
const FILLED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Versions that are there in all, when those of a key are varied.
const VERSIONS_IN_ALL: u64 = 1_000_000;

#[derive(Args)]
pub struct GrowthArgs {
    /// The smaller half of the points, a second for each
    #[arg(long)]
    short: bool,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Measurements of each point, of which the median is shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Which, by name: clients, values, keys, versions, servers
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Draw each as a picture into this folder
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// A group, its data and its load.
#[derive(Clone, Copy)]
struct Point {
    servers: usize,
    clients: usize,
    keys: u64,
    versions: u64,
    value_bytes: usize,
}

const USUAL: Point =
    Point { servers: 3, clients: 64, keys: 100_000, versions: 1, value_bytes: 100 };

/// What is varied, as it is named; its values; and the point that belongs to one.
struct Sweep {
    name: &'static str,
    title: &'static str,
    values: &'static [u64],
    point: fn(u64) -> Point,
}

const SWEEPS: [Sweep; 5] = [
    Sweep {
        name: "clients",
        title: "clients",
        values: &[1, 4, 16, 64, 256, 1_000],
        point: |clients| Point { clients: clients as usize, ..USUAL },
    },
    Sweep {
        name: "values",
        title: "bytes of a value",
        values: &[16, 128, 1_024, 8_192, 65_536, 1_048_576],
        point: |bytes| Point {
            value_bytes: bytes as usize,
            keys: (FILLED_BYTES_MAX / bytes).min(USUAL.keys),
            ..USUAL
        },
    },
    Sweep {
        name: "keys",
        title: "keys",
        values: &[1_000, 10_000, 100_000, 1_000_000, 10_000_000],
        point: |keys| Point { keys, ..USUAL },
    },
    Sweep {
        name: "versions",
        title: "versions of each key, a million in all",
        values: &[1, 10, 100, 1_000, 10_000],
        point: |versions| Point { versions, keys: VERSIONS_IN_ALL / versions, ..USUAL },
    },
    Sweep {
        name: "servers",
        title: "servers",
        values: &[1, 3, 5, 7],
        point: |servers| Point { servers: servers as usize, ..USUAL },
    },
];

/// The medians of a point: of its writes and of its reads.
struct Measurement {
    value: u64,
    put: Medians,
    get: Medians,
}

struct Medians {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    server_us: f64,
    memory_bytes: f64,
    foreign: f64,
}

impl Medians {
    fn of(all: &[Figures]) -> Medians {
        let median = |figure: fn(&Figures) -> f64| {
            spread(all.iter().map(figure).collect()).map_or(f64::NAN, |(median, ..)| median)
        };
        Medians {
            per_second: median(|figures| figures.per_second),
            p50_us: median(|figures| figures.p50_us),
            p99_us: median(|figures| figures.p99_us),
            server_us: median(|figures| figures.server_us),
            memory_bytes: median(|figures| figures.memory_bytes as f64),
            foreign: median(|figures| figures.foreign),
        }
    }
}

/// Measures and prints what `args` names; as a test, one small point of each.
pub fn run(args: &GrowthArgs, is_test: bool) -> Outcome<()> {
    for sweep in &SWEEPS {
        if !super::is_chosen(&args.only, sweep.name) {
            continue;
        }
        let values = match (is_test, args.short) {
            (true, _) => &sweep.values[..1],
            (false, true) => &sweep.values[..sweep.values.len().div_ceil(2)],
            (false, false) => sweep.values,
        };
        let mut measured = Vec::new();
        for value in values {
            let mut point = (sweep.point)(*value);
            if is_test {
                point.keys = point.keys.min(2_000);
            }
            let (rounds, seconds) = match (is_test, args.short) {
                (true, _) => (1, 0.2),
                (false, true) => (1, 1.0),
                (false, false) => (args.rounds, args.seconds),
            };
            let (put, get) = measure_point(point, rounds, Duration::from_secs_f64(seconds))
                .map_err(|error| format!("{} {}: {error}", value, sweep.title))?;
            let (put, get) = (Medians::of(&put), Medians::of(&get));
            eprintln!(
                "{value} {}: {} PUTs and {} GETs a second, others {:.0} %",
                sweep.title,
                thousands(put.per_second),
                thousands(get.per_second),
                put.foreign.max(get.foreign) * 100.0
            );
            measured.push(Measurement { value: *value, put, get });
        }
        print(sweep, &measured);
        if let Some(folder) = &args.plots {
            draw(sweep, &measured, folder)?;
        }
    }
    Ok(())
}

/// The writes and the reads of a point, each as often as there are rounds.
fn measure_point(
    point: Point,
    rounds: usize,
    seconds: Duration,
) -> Outcome<(Vec<Figures>, Vec<Figures>)> {
    let system = System::Acervo { is_ack_all: true };
    let running = Running::start_servers(system, point.servers)?;
    let data = PeerData { keys: point.keys, value_bytes: point.value_bytes };
    super::fill(&running, data)?;
    fill_versions(&running, data, point.versions)?;
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let put = Workload { clients: point.clients, ..workload("put", "", PeerOp::Put, 1, 1) };
        let get = Workload { clients: point.clients, ..workload("get", "", PeerOp::Get, 1, 1) };
        // Reads first: the writes of the last round have made versions of their own.
        gets.push(measure(&running, &get, data, seconds, round as u64)?);
        puts.push(measure(&running, &put, data, seconds, round as u64)?);
    }
    Ok((puts, gets))
}

/// Writes every key again until it has so many versions.
fn fill_versions(running: &Running, data: PeerData, versions: u64) -> Outcome<()> {
    if versions <= 1 {
        return Ok(());
    }
    let leader = running.leader()?;
    let (clients, pipeline) = (super::FILL_CLIENTS, super::FILL_PIPELINE);
    let mut dialect = running.dialect(PeerOp::Fill, data, clients, pipeline);
    let until = Until::Requests(data.keys * (versions - 1));
    let plan = plan(leader, clients, pipeline, until, 0);
    let measured = driver::run(&plan, &[leader], dialect.as_mut(), || ())?;
    match measured.most_frequent_error() {
        Some(code) => Err(format!("{} writes failed with {code}", measured.failures()).into()),
        None => Ok(()),
    }
}

fn print(sweep: &Sweep, measured: &[Measurement]) {
    println!(
        "\n| {} | PUT a second | p50, µs | p99, µs | processor µs each | GET a second | p50, µs | \
         p99, µs | processor µs each | memory of all servers, MB | others, % |\n|{}",
        sweep.title,
        " --- |".repeat(11)
    );
    for Measurement { value, put, get } in measured {
        let half = |of: &Medians| {
            [of.per_second, of.p50_us, of.p99_us, of.server_us].map(thousands).join(" | ")
        };
        println!(
            "| {} | {} | {} | {} | {:.0} |",
            grouped(*value),
            half(put),
            half(get),
            thousands(put.memory_bytes / 1e6),
            put.foreign.max(get.foreign) * 100.0
        );
    }
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 60.0;

/// Draws operations a second over what is varied, both on a logarithmic scale.
fn draw(sweep: &Sweep, measured: &[Measurement], folder: &Path) -> Outcome<()> {
    let rates = measured.iter().flat_map(|point| [point.put.per_second, point.get.per_second]);
    let (least, most) = decades(rates);
    let (from, to) = decades(measured.iter().map(|point| point.value as f64));
    let across =
        |value: f64| MARGIN + (value.log10() - from) / (to - from) * (WIDTH - 2.0 * MARGIN);
    let down = |rate: f64| {
        HEIGHT - MARGIN - (rate.log10() - least) / (most - least) * (HEIGHT - 2.0 * MARGIN)
    };
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n"
    );
    for decade in least as i32..=most as i32 {
        let (rate, y) = (10_f64.powi(decade), down(10_f64.powi(decade)));
        writeln!(
            picture,
            "<path d=\"M{MARGIN} {y:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            WIDTH - MARGIN,
            MARGIN - 6.0,
            y + 4.0,
            grouped(rate as u64)
        )?;
    }
    for point in measured {
        let x = across(point.value as f64);
        let y = HEIGHT - MARGIN + 18.0;
        let label = grouped(point.value);
        writeln!(picture, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>")?;
    }
    type Rate = fn(&Measurement) -> f64;
    let lines: [(&str, &str, Rate); 2] = [
        ("PUT a second", "#b3261e", |point| point.put.per_second),
        ("GET a second", "#1e5fb3", |point| point.get.per_second),
    ];
    for (at, (name, colour, rate)) in lines.into_iter().enumerate() {
        let place = |point: &Measurement| (across(point.value as f64), down(rate(point)));
        let path: Vec<String> =
            measured.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let path = path.join(" ");
        writeln!(picture, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\"/>")?;
        for (x, y) in measured.iter().map(place) {
            writeln!(picture, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>")?;
        }
        let y = 20 + 16 * at;
        writeln!(picture, "<text x=\"{MARGIN}\" y=\"{y}\" fill=\"{colour}\">{name}</text>")?;
    }
    let (x, y) = (WIDTH / 2.0, HEIGHT - 16.0);
    let title = sweep.title;
    writeln!(picture, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{title}</text>\n</svg>")?;
    std::fs::create_dir_all(folder)?;
    Ok(std::fs::write(folder.join(format!("{}.svg", sweep.name)), picture)?)
}

/// The powers of ten between which the values lie, at least one decade apart.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let logarithms: Vec<f64> = values.map(|value| value.max(1.0).log10()).collect();
    let (_, least, most) = spread(logarithms).unwrap_or((0.0, 0.0, 1.0));
    (least.floor(), most.ceil().max(least.floor() + 1.0))
}
