//! Golden scripts: the rules of SPEC B and D, one script each (`rules`), run through everything
//! that has to keep them. README.md says how scripts are written, and lists them.

mod commands;
mod engines;
#[cfg(feature = "grpc")]
mod gateway;
mod language;
mod library;
mod names;
mod run;
mod script;
mod servers;
mod shell;
#[path = "../support/mod.rs"]
mod support;
mod tests;

use std::path::{Path, PathBuf};

use commands::Commands;
use engines::Machine;
use library::Library;
use run::run;
use script::{Script, Through};
use servers::Servers;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

/// All scripts, by name.
fn scripts() -> Vec<Script> {
    let entries = std::fs::read_dir(folder().join("rules")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let (mut scripts, mut wrong) = (Vec::new(), Vec::new());
    for path in paths {
        let name = format!("tests/scripts/rules/{}", path.file_name().unwrap().display());
        match Script::parse(&name, &std::fs::read_to_string(&path).unwrap()) {
            Ok(script) => scripts.push(script),
            Err(why) => wrong.push(why),
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    scripts
}

/// What came of scripts.
#[derive(Default)]
struct Outcomes {
    count: usize,
    failures: Vec<String>,
}

impl Outcomes {
    fn add(&mut self, outcome: Result<(), String>) {
        self.count += 1;
        self.failures.extend(outcome.err());
    }

    /// Fails with all failures, or when nothing was run.
    fn check(self) {
        let Outcomes { count, failures } = self;
        assert!(count > 0, "no script was run");
        let (failed, all) = (failures.len(), failures.join("\n\n"));
        assert!(failed == 0, "{failed} of {count} scripts failed\n\n{all}\n");
    }
}

fn scripts_through(through: Through) -> impl Iterator<Item = Script> {
    scripts().into_iter().filter(move |script| script.through.contains(&through))
}

/// Runs the scripts on a machine each, with versions close together and with room between them.
fn run_on_engine(machine: impl Fn(i64) -> Machine) {
    let mut outcomes = Outcomes::default();
    for script in scripts_through(Through::Engine) {
        let both = [1, 10].map(|step_us| run(&script, &mut machine(step_us)));
        outcomes.add(both.into_iter().collect());
    }
    outcomes.check();
}

/// Runs the scripts on servers that are empty each time; those that ask one which is behind, on
/// servers of which one is.
fn run_on_servers(through: Through, run_one: impl Fn(&Script, &Servers) -> Result<(), String>) {
    let (behind, others): (Vec<Script>, Vec<Script>) =
        scripts_through(through).partition(Script::asks_one_behind);
    let mut outcomes = Outcomes::default();
    let mut run_all = |scripts: &[Script], servers: Servers| {
        for script in scripts {
            servers.clear();
            outcomes.add(run_one(script, &servers));
        }
    };
    run_all(&others, Servers::start());
    if !behind.is_empty() {
        run_all(&behind, Servers::start_with_one_behind());
    }
    outcomes.check();
}

#[test]
fn every_rule_holds_in_the_state_machine_on_the_memory_engine() {
    run_on_engine(Machine::memory);
}

#[test]
fn every_rule_holds_in_the_state_machine_on_the_disk_engine() {
    run_on_engine(Machine::disk);
}

#[test]
fn every_rule_holds_through_the_library() {
    run_on_servers(Through::Library, |script, servers| run(script, &mut Library(servers)));
}

#[test]
fn every_rule_holds_through_the_commands() {
    run_on_servers(Through::Command, |script, servers| run(script, &mut Commands::new(servers)));
}

#[cfg(feature = "grpc")]
#[test]
fn every_rule_holds_through_the_gateway() {
    let servers = Servers::start();
    let mut interface = gateway::Interface::start(&servers);
    let mut outcomes = Outcomes::default();
    for script in scripts_through(Through::Gateway) {
        servers.clear();
        outcomes.add(run(&script, &mut interface));
    }
    outcomes.check();
}

#[test]
fn the_list_of_scripts_is_complete() {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for script in scripts() {
        let name = Path::new(&script.name).file_stem().unwrap().display().to_string();
        assert!(readme.contains(&format!("`{name}`")), "README.md does not list {name}");
    }
}
