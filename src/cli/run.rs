//! The `acervo` command from its first argument to its exit status: it reads the flags, starts the
//! log, and hands each subcommand to the room that carries it out.

use std::fmt::Display;
use std::io::{self, IsTerminal, StdinLock, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::error::ErrorKind;
use clap::{ColorChoice, CommandFactory, FromArgMatches};
use signal_hook::consts::SIGXFSZ;

use super::args::{
    BenchArgs, Cli, CliCommand, ClusterArgs, ClusterFlags, CompletionsArgs, ServerArgs, Shell,
    Switch, default_workers,
};
use super::commands::{self, CommandError, CommandOutcome};
use super::key_args::ReadArgs;
use super::repl::{self, ReplOptions};
use super::share::{self as share_commands, ShareError};
use super::share_args::{PeerArgs, REGISTRY_VARIABLE, RegistriesArgs, RegistryArgs};
use super::stdout::StandardOutput;
use crate::Client;
use crate::bench;
use crate::client::ClientError;
use crate::limits;
use crate::logging;
use crate::process::exit_status;
use crate::prompt::questions::probe;
use crate::server::cluster::{self, ClusterConfig};
use crate::server::config::check_group;
use crate::server::questions;
use crate::share::console::{self as peer_console, ConsoleOptions};
use crate::share::index::IndexLimits;
use crate::share::registry::directory::{MemoryDirectory, PeerDirectory};
use crate::share::registry::store::StoreDirectory;
use crate::share::registry::{self, RegistryConfig};
use crate::text;

/// Runs the command that this process was started with, and gives the status that it exits with.
pub fn main() -> ExitCode {
    let cli = parse().unwrap_or_else(|error| refuse_arguments(&error));
    let level = match &cli.command {
        // A person who is asked for addresses on a terminal sees the console's lines there, and
        // only what is wrong.
        CliCommand::Server(args) if args.listen.is_none() && io::stdin().is_terminal() => "warn",
        CliCommand::Registry(args) if args.listen.is_none() && io::stdin().is_terminal() => "warn",
        // Likewise where the registry's lines and the log share a terminal.
        CliCommand::Registry(_) if io::stdout().is_terminal() && io::stderr().is_terminal() => {
            "warn"
        }
        CliCommand::Server(_) | CliCommand::Cluster(_) | CliCommand::Registry(_) => "info",
        #[cfg(feature = "grpc")]
        CliCommand::Gateway(_) => "info",
        // With --quiet the outcome is the only sentence.
        CliCommand::Fetch(args) if args.quiet => "off",
        _ => "warn",
    };
    if let Err(error) = logging::start(level) {
        return ExitCode::from(fail(
            exit_status::FAILED,
            &format!("cannot start the thread that writes the log: {error}"),
        ));
    }
    // A write past `ulimit -f` is an error like any other, with a sentence, and not the end of the
    // process.
    let file_too_large = Arc::new(AtomicBool::new(false));
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, file_too_large) {
        log::warn!("a write past `ulimit -f` will end this process: {error}");
    }
    let out = &mut StandardOutput::new();
    let status = match cli.command {
        CliCommand::Server(args) => run_server(args),
        CliCommand::Cluster(args) => run_cluster(&args),
        CliCommand::Client(args) => {
            let options = ReplOptions { servers: args.servers, request_timeout: args.timeout };
            repl::run(&options)
                .map_or_else(|error| fail(exit_status::FAILED, &error), |()| exit_status::DONE)
        }
        CliCommand::Get(args) => read(&args.read, commands::get(&args, out)),
        CliCommand::GetRange(args) => read(&args.read, commands::get_range(&args, out)),
        CliCommand::GetAll(args) => read(&args.read, commands::get_all(&args, &mut stdin(), out)),
        CliCommand::History(args) => read(&args.read, commands::history(&args, out)),
        CliCommand::Put(args) => one_shot(commands::put(&args, &mut stdin(), out)),
        CliCommand::PutAll(args) => one_shot(commands::put_all(&args, &mut stdin(), out)),
        CliCommand::Del(args) => one_shot(commands::del(&args, out)),
        CliCommand::DelRange(args) => one_shot(commands::del_range(&args, out)),
        CliCommand::DelAll(args) => one_shot(commands::del_all(&args, &mut stdin(), out)),
        CliCommand::Trim(args) => one_shot(commands::trim(&args, out)),
        CliCommand::SetHistory(args) => one_shot(commands::set_history(&args, out)),
        CliCommand::Health(args) => one_shot(commands::health(&args, out)),
        CliCommand::Ls(args) => {
            let args = args.into_range();
            read(&args.read, commands::get_range(&args, out))
        }
        CliCommand::Version => {
            let version = Cli::command().render_version();
            let printed = write!(out, "{version}").map_err(CommandError::Output);
            one_shot(printed.map(|()| CommandOutcome::Done))
        }
        CliCommand::Status(args) => one_shot(commands::status(&args, out)),
        CliCommand::Bench(args) => run_bench(&args, out),
        #[cfg(feature = "grpc")]
        CliCommand::Gateway(args) => crate::gateway::run(&args.config())
            .map_or_else(|error| fail(exit_status::FAILED, &error), |()| exit_status::DONE),
        #[cfg(feature = "grpc")]
        CliCommand::Kvs(args) => run_kvs(&args, out),
        CliCommand::Registry(args) => run_registry(&args),
        CliCommand::Peer(args) => run_peer(&args),
        CliCommand::Share(args) => shared(&args.registries, share_commands::share(&args)),
        CliCommand::Fetch(args) => shared(&args.registries, share_commands::fetch(&args, out)),
        CliCommand::Peers(args) => shared(&args.registries, share_commands::peers(&args, out)),
        CliCommand::Files(args) => shared(&args.registries, share_commands::files(&args, out)),
        CliCommand::Completions(args) => one_shot(print_completions(&args, out)),
    };
    // The end of the answer may still be in the buffer.
    let status = match out.flush() {
        Err(error) if status <= exit_status::NOT_FOUND => {
            let error = CommandError::Output(error);
            fail(error.exit_status(), &error)
        }
        _ => status,
    };
    logging::finish();
    ExitCode::from(status)
}

/// Reads the command line, and the environment, of which an empty variable counts as not set.
fn parse() -> Result<Cli, clap::Error> {
    let mut command = without_empty_variables(command_line());
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The command line, whose help and errors have no colours where the terminal would show them as
/// signs.
fn command_line() -> clap::Command {
    match text::is_dumb_terminal() {
        true => Cli::command().color(ColorChoice::Never),
        false => Cli::command(),
    }
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |argument: &clap::Arg| {
        let value = argument.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.is_empty())
    };
    let unset = |argument: clap::Arg| match is_empty(&argument) {
        true => argument.env(None::<&'static str>),
        false => argument,
    };
    command.mut_args(unset).mut_subcommands(without_empty_variables)
}

/// Prints what is wrong with the command line, or the help that was asked for, and ends the
/// process.
fn refuse_arguments(error: &clap::Error) -> ! {
    let typed: Vec<_> =
        std::env::args_os().map(|typed| typed.to_string_lossy().into_owned()).collect();
    let said = error.to_string();
    // The flag is named, and nobody has typed it.
    for (flag, variable) in [("--servers", "ACERVO_SERVERS"), ("--registry", REGISTRY_VARIABLE)] {
        let is_typed = typed.iter().any(|argument| argument.starts_with(flag));
        if said.contains(&format!("'{flag} <")) && !is_typed && std::env::var_os(variable).is_some()
        {
            logging::say(&format!(
                "acervo: what is wrong with {flag} is in the environment, in {variable}"
            ));
        }
    }
    if error.use_stderr() || io::stdout().is_terminal() {
        error.exit()
    }
    // Help that was asked for is an answer like others, and clap does not tell when it cannot be
    // written.
    let mut out = StandardOutput::new();
    let written = write!(out, "{}", error.render()).and_then(|()| out.flush());
    let status = one_shot(written.map(|()| CommandOutcome::Done).map_err(CommandError::Output));
    std::process::exit(status.into())
}

fn stdin() -> StdinLock<'static> {
    io::stdin().lock()
}

/// Writes an error to standard error, in one line, and returns the exit status.
fn fail(status: u8, error: &dyn Display) -> u8 {
    logging::say(&format!("acervo: {error}"));
    status
}

fn one_shot(result: Result<CommandOutcome, CommandError>) -> u8 {
    match result {
        Ok(outcome) => outcome.exit_status(),
        Err(error) => fail(error.exit_status(), &error),
    }
}

/// The exit status of a read. Where no majority confirmed it, the error mentions `--serializable`.
fn read(args: &ReadArgs, result: Result<CommandOutcome, CommandError>) -> u8 {
    match result {
        Err(error @ CommandError::Client(ClientError::NoMajority { .. }))
            if args.is_linearizable() =>
        {
            let hint = "--serializable reads what one server has, without a majority";
            fail(error.exit_status(), &format!("{error}; {hint}"))
        }
        other => one_shot(other),
    }
}

/// The exit status of a command of the share. An error about a registry says so where the
/// environment has named it, since that may be another one than is meant.
fn shared(registries: &RegistriesArgs, result: Result<CommandOutcome, ShareError>) -> u8 {
    match result {
        Ok(outcome) => outcome.exit_status(),
        Err(error @ ShareError::Registry(_)) if registries.are_from_environment() => {
            fail(error.exit_status(), &format!("{error} (named by {REGISTRY_VARIABLE})"))
        }
        Err(error) => fail(error.exit_status(), &error),
    }
}

fn run_registry(args: &RegistryArgs) -> u8 {
    let listen = match args.listen {
        Some(listen) => listen,
        None if io::stdin().is_terminal() => {
            // On standard error, since standard output is for the console's lines alone.
            let (mut input, mut output) = (io::stdin().lock(), io::stderr());
            match registry::questions::ask(&mut input, &mut output, &probe) {
                Ok(listen) => listen,
                Err(error) => return fail(exit_status::USAGE, &error),
            }
        }
        None => {
            let missing = "--listen is needed when there is no terminal to ask on";
            return usage("registry", missing);
        }
    };
    let config = RegistryConfig {
        listen,
        console: args.console == Switch::On,
        workers: args.workers.map_or_else(default_workers, |workers| workers as usize),
        silence_timeout: args.silence_timeout,
        peers_max: args.peers_max as usize,
    };
    let (room, timeout) = (IndexLimits::default(), args.silence_timeout);
    let directory: Arc<dyn PeerDirectory> = match &args.servers {
        None => Arc::new(MemoryDirectory::new(room, timeout)),
        Some(servers) => {
            let servers = servers.iter().copied();
            let client = Client::builder(servers).request_timeout(limits::STORE_REQUEST_TIMEOUT);
            match client.build() {
                Ok(client) => Arc::new(StoreDirectory::new(client, room, timeout)),
                Err(error) => return fail(exit_status::USAGE, &error),
            }
        }
    };
    registry::run(&config, directory)
        .map_or_else(|error| fail(exit_status::FAILED, &error), |()| exit_status::DONE)
}

fn run_peer(args: &PeerArgs) -> u8 {
    let registries = args.registries.registry.clone();
    let options = ConsoleOptions { registries, limit_bytes_per_s: args.limit };
    peer_console::run(&options)
        .map_or_else(|error| fail(exit_status::FAILED, &error), |()| exit_status::DONE)
}

fn print_completions(
    args: &CompletionsArgs,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // Made in memory first: the generator panics on an output that fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "acervo", &mut script);
    out.write_all(&script).map_err(CommandError::Output)?;
    Ok(CommandOutcome::Done)
}

fn run_bench(args: &BenchArgs, out: &mut dyn Write) -> u8 {
    let options = match args.options() {
        Ok(options) => options,
        Err(wrong) => return usage("bench", wrong),
    };
    // As it was typed, with the program's bare name, so that it can be kept and repeated.
    let arguments = std::env::args_os().skip(1).map(|argument| argument.display().to_string());
    let command: Vec<String> = std::iter::once("acervo".to_owned()).chain(arguments).collect();
    match bench::command::run(&options, command.join(" "), out) {
        Ok(()) => exit_status::DONE,
        Err(error) => fail(error.exit_status(), &error),
    }
}

#[cfg(feature = "grpc")]
fn run_kvs(args: &super::gateway::KvsArgs, out: &mut dyn Write) -> u8 {
    if let Err(wrong) = args.check() {
        return usage("kvs", wrong);
    }
    match super::kvs::run(args, out) {
        Ok(outcome) => outcome.exit_status(),
        Err(error) => fail(error.exit_status(), &error),
    }
}

fn run_server(mut args: ServerArgs) -> u8 {
    let (listen, leader) = match (args.listen, args.leader) {
        (Some(listen), Some(leader)) => (listen, leader),
        (None, None) if io::stdin().is_terminal() => match ask(&mut args) {
            Ok(answers) => answers,
            Err(status) => return status,
        },
        (listen, _) => {
            let missing = match (listen, args.leader) {
                (Some(_), _) => "--leader is needed together with --listen",
                (None, Some(_)) => "--listen is needed together with --leader",
                (None, None) => {
                    "--listen and --leader are needed when there is no terminal to ask on"
                }
            };
            return usage("server", missing);
        }
    };
    match args.config(listen, leader) {
        Err(error) => fail(exit_status::USAGE, &error),
        Ok(config) => crate::server::run(config)
            .map_or_else(|error| fail(exit_status::FAILED, &error), |()| exit_status::DONE),
    }
}

fn ask(args: &mut ServerArgs) -> Result<(SocketAddr, SocketAddr), u8> {
    args.servers =
        check_group(args.servers.clone()).map_err(|error| fail(exit_status::USAGE, &error))?;
    // On standard error, since standard output is for the console's lines alone.
    let (mut input, mut output) = (io::stdin().lock(), io::stderr());
    let answers = questions::ask(&args.servers, &mut input, &mut output, &probe)
        .map_err(|error| fail(exit_status::USAGE, &error))?;
    Ok((answers.listen, answers.leader))
}

/// Prints a command's usage and what is missing, as for any other mistake on the command line.
fn usage(command: &str, message: &str) -> u8 {
    let mut cli = command_line();
    // Built, so that the usage line names the whole command.
    cli.build();
    let error = match cli.find_subcommand_mut(command) {
        Some(command) => command.error(ErrorKind::MissingRequiredArgument, message),
        None => cli.error(ErrorKind::MissingRequiredArgument, message),
    };
    // Without standard error the exit status has to say it alone.
    let _ = error.print();
    exit_status::USAGE
}

fn run_cluster(args: &ClusterArgs) -> u8 {
    let ClusterFlags { servers, all, last } = match args.checked() {
        Ok(checked) => checked,
        Err(error) => return fail(exit_status::USAGE, &error),
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            let message = format!("this program's own file could not be found: {error}");
            return fail(exit_status::FAILED, &message);
        }
    };
    if let Some(elsewhere) = args.not_asked_by(std::env::var("ACERVO_SERVERS").ok().as_deref()) {
        logging::say(&format!("acervo: {elsewhere}"));
    }
    let data_root = args.data_dir.clone();
    cluster::run(&ClusterConfig { program, servers, data_root, flags: all, last_flags: last })
        .map_or_else(|error| fail(exit_status::FAILED, &error), |()| exit_status::DONE)
}
