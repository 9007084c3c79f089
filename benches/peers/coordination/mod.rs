//! What programs coordinate themselves by: compare-and-set, beside plain writes and beside etcd;
//! watches, leases and locks.
//!
//! `cargo bench --bench peers -- coordination` prints a row for each figure, with what it is to
//! reach beside it. Where two systems or two states are compared, they are measured in turns:
//! Acervo before etcd, and of two states every other round begins with the other one. Ratios are
//! those of a round, and what is shown are medians, with the least and the greatest. A round in
//! which others took more than [`FOREIGN_MAX`] of the machine is left out, unless there are no
//! others, and then the figure has a star.
//!
//! Acervo runs with `--ack all`: all three servers have synced what is answered, where etcd waits
//! for two.

mod compare;
mod fan_out;
mod leases;
mod locks;
mod watches;
mod writers;

use clap::Args;

use super::systems::System;
use super::table::{spread, thousands};
use super::{FOREIGN_MAX, Outcome};

const ACERVO: System = System::Acervo { is_ack_all: true };

#[derive(Args)]
pub struct CoordinationArgs {
    /// Rounds of each figure, of which the median is shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement of a load
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Which figures, by name: compare, idle-watches, watch-latency, fan-out, resume, keep-alive,
    /// lease-end, hand-over
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// How much is measured.
struct Extent {
    rounds: usize,
    seconds: f64,
    /// Keys that are there before.
    keys: u64,
    is_test: bool,
}

impl Extent {
    /// A number that a test need not reach.
    fn small_or(&self, small: usize, number: usize) -> usize {
        if self.is_test { small } else { number }
    }
}

/// Figures, by name, and what measures and prints each.
type Measure = fn(&Extent) -> Outcome<()>;
const ALL: [(&str, Measure); 8] = [
    ("compare", compare::run),
    ("idle-watches", watches::cost_of_idle),
    ("watch-latency", watches::latency),
    ("fan-out", fan_out::run),
    ("resume", watches::resume),
    ("keep-alive", leases::kept_alive),
    ("lease-end", leases::end),
    ("hand-over", locks::hand_over),
];

/// Measures and prints what `args` names; as a test, a little of each.
pub fn run(args: &CoordinationArgs, is_test: bool) -> Outcome<()> {
    if let Some(unknown) = args.only.iter().find(|only| ALL.iter().all(|(name, _)| name != only)) {
        return Err(format!("there is no figure '{unknown}'").into());
    }
    let extent = match is_test {
        true => Extent { rounds: 1, seconds: 0.2, keys: 2_000, is_test },
        false => Extent { rounds: args.rounds, seconds: args.seconds, keys: 100_000, is_test },
    };
    println!("| what | measured, median (range) | to reach | |\n| --- | --- | --- | --- |");
    let mut failed = Vec::new();
    for (name, measure) in ALL.iter().filter(|(name, _)| super::is_chosen(&args.only, name)) {
        // The others can be measured all the same.
        if let Err(error) = measure(&extent) {
            println!("| {name} | {error} | | **failed** |");
            failed.push(*name);
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!("not measured: {}", failed.join(", ")).into()),
    }
}

/// What the rounds of a figure have found.
#[derive(Default)]
struct Rounds {
    /// What each has found, and the share of the machine that others took meanwhile.
    found: Vec<(f64, f64)>,
}

impl Rounds {
    fn add(&mut self, found: f64, foreign: f64) {
        self.found.push((found, foreign));
    }

    /// The median, the least and the greatest of the rounds that count; and whether others took
    /// too much of all of them.
    fn spread(&self) -> Option<((f64, f64, f64), bool)> {
        let count = |foreign_max: f64| {
            let clean = self.found.iter().filter(|(_, foreign)| *foreign <= foreign_max);
            spread(clean.map(|(found, _)| *found).collect())
        };
        let clean = count(FOREIGN_MAX).map(|spread| (spread, false));
        clean.or_else(|| count(f64::INFINITY).map(|spread| (spread, true)))
    }

    fn median(&self) -> Option<f64> {
        self.spread().map(|((median, ..), _)| median)
    }

    /// The median and the range, with a unit.
    fn shown(&self, unit: &str) -> String {
        let Some(((median, least, most), is_disturbed)) = self.spread() else {
            return "–".to_owned();
        };
        let star = if is_disturbed { "\\*" } else { "" };
        let [median, least, most] = [median, least, most].map(thousands);
        match least == most {
            true => format!("{median}{star}{unit}"),
            false => format!("{median}{star} ({least}–{most}){unit}"),
        }
    }
}

/// What a figure is to reach, in its unit.
#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing was asked for.
    None,
}

/// Prints the row of a figure whose unit follows the numbers.
fn print_row(what: &str, found: &Rounds, unit: &str, target: Target) {
    let (asked, is_reached) = match target {
        Target::AtLeast(least) => {
            (format!("≥ {}{unit}", thousands(least)), found.median().map(|found| found >= least))
        }
        Target::AtMost(most) => {
            (format!("≤ {}{unit}", thousands(most)), found.median().map(|found| found <= most))
        }
        Target::None => (String::new(), None),
    };
    let verdict = match is_reached {
        Some(true) => "reached",
        Some(false) => "**missed**",
        None => "",
    };
    println!("| {what} | {} | {asked} | {verdict} |", found.shown(unit));
}
