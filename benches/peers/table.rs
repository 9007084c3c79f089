//! The table at the end: a row for each figure, a column for each system, medians and ranges.

use super::{FOREIGN_MAX, Figures, System, Workload};

/// A figure of a measurement, with the name of its row.
type Row = (&'static str, fn(&Figures) -> f64);

const EACH: [Row; 3] = [
    ("a second", |figures| figures.per_second),
    ("p99, ms", |figures| figures.p99_us / 1e3),
    ("processor µs each, all servers", |figures| figures.server_us),
];
const ALONE: [Row; 2] =
    [("p50, µs", |figures| figures.p50_us), ("p99, µs", |figures| figures.p99_us)];
const MEMORY: Row =
    ("memory of three servers after it, MB", |figures| figures.memory_bytes as f64 / 1e6);

/// A measurement as a line.
pub fn line(figures: &Figures) -> String {
    format!(
        "{:<16}{:<9}{:>9} a second  p50 {:>8.1} µs  p99 {:>9.1}  servers {:>6.1} µs each  \
         generator {:>5.1}  others {:>3.0} %  failed {}",
        figures.system.name(),
        figures.workload,
        thousands(figures.per_second),
        figures.p50_us,
        figures.p99_us,
        figures.server_us,
        figures.generator_us,
        figures.foreign * 100.0,
        figures.failures
    )
}

/// Prints the table as Markdown.
pub fn print(all: &[Figures], systems: &[System], workloads: &[Workload], rounds: usize) {
    println!("{}", header(systems));
    for workload in workloads {
        let rows: &[Row] = if workload.clients == 1 { &ALONE } else { &EACH };
        let memory = if workload.name == "put64" { &[MEMORY][..] } else { &[] };
        for (name, figure) in rows.iter().chain(memory) {
            let cells = systems.iter().map(|system| cell(all, *system, workload.name, *figure));
            println!("| {}, {name} | {} |", workload.title, cells.collect::<Vec<_>>().join(" | "));
        }
    }
    let dropped = all.iter().filter(|figures| !figures.is_clean()).count();
    println!(
        "\nMedians (and ranges) of interleaved rounds, {rounds} in all. In {dropped} of {} \
         measurements others took more than {:.0} % of the machine; they are left out, and where \
         none was left the figure has a star.",
        all.len(),
        FOREIGN_MAX * 100.0
    );
    let failures: u64 = all.iter().map(|figures| figures.failures).sum();
    if failures > 0 {
        println!("{failures} requests failed or found nothing, and are not among them.");
    }
}

fn header(systems: &[System]) -> String {
    let titles: Vec<&str> = systems.iter().map(|system| system.title()).collect();
    let rule = vec!["---"; systems.len() + 1].join(" | ");
    format!("| | {} |\n| {rule} |", titles.join(" | "))
}

fn cell(all: &[Figures], system: System, workload: &str, figure: fn(&Figures) -> f64) -> String {
    let of_it = || all.iter().filter(|seen| seen.system == system && seen.workload == workload);
    let clean: Vec<f64> = of_it().filter(|seen| seen.is_clean()).map(figure).collect();
    let (values, star) = match clean.is_empty() {
        true => (of_it().map(figure).collect(), "\\*"),
        false => (clean, ""),
    };
    match spread(values) {
        None => "–".to_owned(),
        Some((median, least, most)) if least == most => format!("{}{star}", thousands(median)),
        Some((median, least, most)) => {
            format!("{}{star} ({}–{})", thousands(median), thousands(least), thousands(most))
        }
    }
}

/// The median, the least and the greatest.
pub fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (least, most) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    Some((median, least, most))
}

/// A figure with three digits that count, and commas between thousands.
pub fn thousands(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let scale = 10_f64.powi((value.log10().floor() as i32 - 2).max(0));
    grouped(((value / scale).round() * scale) as u64)
}

/// A whole number with commas between its thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
