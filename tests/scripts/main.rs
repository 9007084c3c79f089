//! Golden scripts: the rules of SPEC B, one script each (`rules`), run through everything that has to
//! keep them. README.md says how scripts are written.

mod commands;
mod engines;
#[cfg(feature = "grpc")]
mod gateway;
mod library;
mod names;
mod run;
mod script;
mod servers;
mod shell;
#[path = "../support/mod.rs"]
mod support;
mod tests;

use std::path::Path;

use commands::Commands;
use engines::Machine;
use library::Library;
use run::run;
use script::{Prompt, Script, Through};
use servers::Servers;

/// All scripts, by name.
fn scripts() -> Vec<Script> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/rules");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
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

/// Runs each of the scripts through what `prepare` makes ready for it, and fails with all that failed.
fn run_all<'a>(
    scripts: impl IntoIterator<Item = &'a Script>,
    mut one: impl FnMut(&Script) -> Result<(), String>,
) {
    let mut count = 0;
    let mut failures = Vec::new();
    for script in scripts {
        count += 1;
        failures.extend(one(script).err());
    }
    assert!(count > 0, "no script was run");
    let failed = failures.len();
    assert!(failed == 0, "{failed} of {count} scripts failed\n\n{}\n", failures.join("\n\n"));
}

fn of(scripts: &[Script], through: Through) -> Vec<&Script> {
    scripts.iter().filter(|script| script.through.contains(&through)).collect()
}

#[test]
fn every_rule_holds_in_the_state_machine_on_the_memory_engine() {
    run_all(of(&scripts(), Through::Engine), |script| run(script, &mut Machine::memory()));
}

#[test]
fn every_rule_holds_in_the_state_machine_on_the_disk_engine() {
    run_all(of(&scripts(), Through::Engine), |script| run(script, &mut Machine::disk()));
}

/// Runs scripts on servers, those that ask one which is behind on servers of which one is.
fn run_on_servers(
    scripts: &[Script],
    through: Through,
    run_one: impl Fn(&Script, &Servers) -> Result<(), String>,
) {
    let asks_behind =
        |script: &&&Script| script.steps.iter().any(|step| step.prompt == Prompt::Behind);
    let scripts = of(scripts, through);
    let (behind, others): (Vec<&Script>, Vec<&Script>) =
        scripts.into_iter().partition(|script| asks_behind(&script));
    let run_cleared = |scripts: Vec<&Script>, servers: Servers| {
        run_all(scripts, |script| {
            servers.clear();
            run_one(script, &servers)
        });
    };
    run_cleared(others, Servers::start());
    if !behind.is_empty() {
        run_cleared(behind, Servers::start_with_one_behind());
    }
}

#[test]
fn every_rule_holds_through_the_library() {
    run_on_servers(&scripts(), Through::Library, |script, servers| {
        run(script, &mut Library(servers))
    });
}

#[test]
fn every_rule_holds_through_the_commands() {
    run_on_servers(&scripts(), Through::Command, |script, servers| {
        run(script, &mut Commands::new(servers))
    });
}

#[cfg(feature = "grpc")]
#[test]
fn every_rule_holds_through_the_gateway() {
    let servers = Servers::start();
    let mut interface = gateway::Interface::start(&servers);
    run_all(of(&scripts(), Through::Gateway), |script| {
        servers.clear();
        run(script, &mut interface)
    });
}
