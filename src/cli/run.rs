//! The `acervo` command from its first argument to its exit status: it reads the flags, starts the
//! log, and hands each subcommand to the room that carries it out.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use signal_hook::consts::SIGXFSZ;

use super::args::{Switch, default_workers, parse_server};
use super::bench_args::BenchArgs;
use super::commands::{StoreCommand, Streams};
use super::outcome::{CommandError, CommandOutcome};
use super::repl::{self, ReplOptions};
use super::server_args::{ClusterArgs, ClusterFlags, ServerArgs};
use super::share::{self as share_commands, ShareError};
use super::share_args::{
    FetchArgs, ListArgs, PeerArgs, REGISTRY_VARIABLE, RegistriesArgs, RegistryArgs, ShareArgs,
};
use super::stdout::StandardOutput;
use super::units::parse_duration;
use crate::Client;
use crate::bench;
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

/// A replicated key-value store, and a registry and peers that pass files to each other: write
/// through any server, read from any server, and never see an older value than one you have already
/// seen.
#[derive(Debug, Parser)]
#[command(
    name = "acervo",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  acervo cluster              three servers under one terminal
  acervo put title 'Dom Casmurro'
  acervo get title
  acervo get title --at '10m ago'
  acervo client               a console with INIT, PUT and GET
  acervo registry             the registry of a share
  acervo share ~/Films        offer a folder
  acervo fetch aula.mp4       download from everybody who has it

Exit status: 0 found or done, 1 not found or a condition does not hold, 2 usage, 3 no server
reached or no majority, 4 anything else, such as an answer that cannot be written.
ACERVO_SERVERS and ACERVO_REGISTRY stand for --servers and --registry where these are not given.
The log goes to standard error; RUST_LOG chooses how much (error, warn, info, debug)."
)]
pub struct Cli {
    /// The command that was chosen, with its flags.
    #[command(subcommand)]
    pub command: CliCommand,
}

/// The commands of `acervo`; their own doc comments are its help.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Run one server; asks for its addresses on a terminal when no flag names them
    Server(ServerArgs),
    /// Open the interactive console with INIT, PUT and GET
    Client(ClientArgs),
    /// Run the three default servers as three processes under one terminal
    Cluster(ClusterArgs),
    // The commands on the store, which have a table of their own.
    #[command(flatten)]
    Store(StoreCommand),
    /// Print which release this is
    #[command(hide = true)]
    Version,
    /// Measure a running group: writes or reads of many clients
    Bench(BenchArgs),
    /// Run the registry of a share; asks for its address on a terminal when no flag names it
    Registry(RegistryArgs),
    /// Open a peer's console with JOIN, SEARCH and DOWNLOAD
    Peer(PeerArgs),
    /// Share a folder until stopped
    Share(ShareArgs),
    /// Download a file from every peer that has it
    Fetch(FetchArgs),
    /// List the peers that a registry knows
    Peers(ListArgs),
    /// List the files that a registry knows
    Files(ListArgs),
    /// Serve the store to any gRPC client
    #[cfg(feature = "grpc")]
    Gateway(super::gateway::GatewayArgs),
    /// Call a gateway as a gRPC client
    #[cfg(feature = "grpc")]
    Kvs(super::gateway::KvsArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// The flags and arguments of `acervo client`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo client
  acervo client --servers 127.0.0.1:10097,127.0.0.1:10098,127.0.0.1:10099

Entries are chosen by number or name; Ctrl-D, 'sair', 'exit' or 'quit' leave.")]
pub struct ClientArgs {
    /// The servers; INIT is then done already
    #[arg(long, env = "ACERVO_SERVERS", value_name = "A,B,C",
        value_delimiter = ',', value_parser = parse_server)]
    pub servers: Option<Vec<SocketAddr>>,
    /// The whole time of one request
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// The flags and arguments of `acervo completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo completions bash > ~/.local/share/bash-completion/completions/acervo
  acervo completions zsh > ~/.zfunc/_acervo
  acervo completions fish > ~/.config/fish/completions/acervo.fish")]
pub struct CompletionsArgs {
    /// The shell that is to complete
    pub shell: Shell,
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// GNU Bash, from 4.4 on.
    Bash,
    /// The Z shell, zsh.
    Zsh,
    /// The friendly interactive shell, fish.
    Fish,
}

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
        let error = format!("cannot start the thread that writes the log: {error}");
        return ExitCode::from(status_of(Err(failed(error))));
    }
    // A write past `ulimit -f` is an error like any other, with a sentence, and not the end of the
    // process.
    let file_too_large = Arc::new(AtomicBool::new(false));
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, file_too_large) {
        log::warn!("a write past `ulimit -f` will end this process: {error}");
    }
    let out = &mut StandardOutput::new();
    let status = status_of(match cli.command {
        CliCommand::Server(args) => run_server(args),
        CliCommand::Cluster(args) => run_cluster(&args),
        CliCommand::Client(args) => {
            let options = ReplOptions { servers: args.servers, request_timeout: args.timeout };
            repl::run(&options).map(done).map_err(failed)
        }
        CliCommand::Store(command) => {
            one_shot(command.run(&mut Streams { stdin: &mut io::stdin().lock(), out }))
        }
        CliCommand::Version => print(out, Cli::command().render_version().as_bytes()),
        CliCommand::Bench(args) => run_bench(&args, out),
        #[cfg(feature = "grpc")]
        CliCommand::Gateway(args) => crate::gateway::run(args.config()).map(done).map_err(failed),
        #[cfg(feature = "grpc")]
        CliCommand::Kvs(args) => run_kvs(&args, out),
        CliCommand::Registry(args) => run_registry(&args),
        CliCommand::Peer(args) => run_peer(&args),
        CliCommand::Share(args) => shared(&args.registries, share_commands::share(&args)),
        CliCommand::Fetch(args) => shared(&args.registries, share_commands::fetch(&args, out)),
        CliCommand::Peers(args) => shared(&args.registries, share_commands::peers(&args, out)),
        CliCommand::Files(args) => shared(&args.registries, share_commands::files(&args, out)),
        CliCommand::Completions(args) => print(out, &completions(&args)),
    });
    // The end of the answer may still be in the buffer.
    let status = match out.flush() {
        Err(error) if status <= exit_status::NOT_FOUND => {
            status_of(one_shot(Err(CommandError::Output(error))))
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
    // The error names a flag that is not on the command line, so its value is from the environment.
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
    let written = print(&mut out, error.render().to_string().as_bytes());
    let flushed = out.flush().map_err(CommandError::Output);
    let both = written.and_then(|_| one_shot(flushed.map(|()| CommandOutcome::Done)));
    std::process::exit(status_of(both).into())
}

/// A command's exit status, or the error that it ends with.
type Ending = Result<u8, Failure>;

/// What is said on standard error, and the exit status that goes with it.
struct Failure {
    status: u8,
    sentence: String,
}

impl Failure {
    fn new(status: u8, error: impl Display) -> Failure {
        Failure { status, sentence: format!("acervo: {error}") }
    }
}

fn done((): ()) -> u8 {
    exit_status::DONE
}

fn failed(error: impl Display) -> Failure {
    Failure::new(exit_status::FAILED, error)
}

/// The end of a command whose arguments or input cannot be used.
fn unusable(error: impl Display) -> Failure {
    Failure::new(exit_status::USAGE, error)
}

fn status_of(ending: Ending) -> u8 {
    ending.unwrap_or_else(|failure| {
        logging::say(&failure.sentence);
        failure.status
    })
}

fn one_shot(result: Result<CommandOutcome, CommandError>) -> Ending {
    let failure = |error: CommandError| Failure::new(error.exit_status(), error);
    result.map(CommandOutcome::exit_status).map_err(failure)
}

fn print(out: &mut dyn Write, answer: &[u8]) -> Ending {
    let printed = out.write_all(answer).map_err(CommandError::Output);
    one_shot(printed.map(|()| CommandOutcome::Done))
}

/// The end of a command of the share. An error about a registry says so where the environment has
/// named it, since that may be another one than is meant.
fn shared(registries: &RegistriesArgs, result: Result<CommandOutcome, ShareError>) -> Ending {
    let failure = |error: ShareError| match &error {
        ShareError::Registry(_) if registries.are_from_environment() => {
            Failure::new(error.exit_status(), format!("{error} (named by {REGISTRY_VARIABLE})"))
        }
        _ => Failure::new(error.exit_status(), error),
    };
    result.map(CommandOutcome::exit_status).map_err(failure)
}

fn run_registry(args: &RegistryArgs) -> Ending {
    let listen = match args.listen {
        Some(listen) => listen,
        None if io::stdin().is_terminal() => {
            // On standard error, since standard output is for the console's lines alone.
            let (mut input, mut output) = (io::stdin().lock(), io::stderr());
            registry::questions::ask(&mut input, &mut output, &probe).map_err(unusable)?
        }
        None => {
            let missing = "--listen is needed when there is no terminal to ask on";
            return Ok(usage("registry", missing));
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
            let client = Client::builder(servers.iter().copied());
            let client = client.request_timeout(limits::STORE_REQUEST_TIMEOUT).build();
            Arc::new(StoreDirectory::new(client.map_err(unusable)?, room, timeout))
        }
    };
    registry::run(&config, directory).map(done).map_err(failed)
}

fn run_peer(args: &PeerArgs) -> Ending {
    let registries = args.registries.registry.clone();
    let options = ConsoleOptions { registries, limit_bytes_per_s: args.limit };
    peer_console::run(&options).map(done).map_err(failed)
}

/// Built in memory, because the generator panics if writing fails.
fn completions(args: &CompletionsArgs) -> Vec<u8> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "acervo", &mut script);
    script
}

fn run_bench(args: &BenchArgs, out: &mut dyn Write) -> Ending {
    let options = match args.options(io::stderr().is_terminal() && !text::is_dumb_terminal()) {
        Ok(options) => options,
        Err(wrong) => return Ok(usage("bench", wrong)),
    };
    // As it was typed, with the program's bare name, so that it can be kept and repeated.
    let arguments = std::env::args_os().skip(1).map(|argument| argument.display().to_string());
    let command: Vec<String> = std::iter::once("acervo".to_owned()).chain(arguments).collect();
    let measured = bench::command::run(&options, command.join(" "), out);
    measured.map(done).map_err(|error| Failure::new(error.exit_status(), error))
}

#[cfg(feature = "grpc")]
fn run_kvs(args: &super::gateway::KvsArgs, out: &mut dyn Write) -> Ending {
    if let Err(wrong) = args.check() {
        return Ok(usage("kvs", wrong));
    }
    let called = super::kvs::run(args, out);
    let called = called.map(CommandOutcome::exit_status);
    called.map_err(|error| Failure::new(error.exit_status(), error))
}

fn run_server(mut args: ServerArgs) -> Ending {
    let (listen, leader) = match (args.listen, args.leader) {
        (Some(listen), Some(leader)) => (listen, leader),
        (None, None) if io::stdin().is_terminal() => {
            args.servers = check_group(args.servers).map_err(unusable)?;
            // On standard error, since standard output is for the console's lines alone.
            let (mut input, mut output) = (io::stdin().lock(), io::stderr());
            let answers = questions::ask(&args.servers, &mut input, &mut output, &probe);
            let answers = answers.map_err(unusable)?;
            (answers.listen, answers.leader)
        }
        (Some(_), _) => return Ok(usage("server", "--leader is needed together with --listen")),
        (None, Some(_)) => {
            return Ok(usage("server", "--listen is needed together with --leader"));
        }
        (None, None) => {
            let missing = "--listen and --leader are needed when there is no terminal to ask on";
            return Ok(usage("server", missing));
        }
    };
    #[cfg(feature = "grpc")]
    let (gateway, gateway_optional) = (args.gateway, args.gateway_optional);
    #[cfg_attr(not(feature = "grpc"), expect(unused_mut, reason = "the gateway has a port"))]
    let mut config = args.config(listen, leader).map_err(unusable)?;
    #[cfg(feature = "grpc")]
    let _gateway = match gateway {
        Some(address) => {
            super::gateway::start_beside(&mut config, address, gateway_optional).map_err(failed)?
        }
        None => None,
    };
    crate::server::run(config).map(done).map_err(failed)
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

fn run_cluster(args: &ClusterArgs) -> Ending {
    let ClusterFlags { servers, all, first, last } = args.checked().map_err(unusable)?;
    let program = std::env::current_exe()
        .map_err(|error| failed(format!("this program's own file could not be found: {error}")))?;
    if let Some(elsewhere) = args.not_asked_by(std::env::var("ACERVO_SERVERS").ok().as_deref()) {
        logging::say(&format!("acervo: {elsewhere}"));
    }
    let data_root = args.data_dir.clone();
    let config = ClusterConfig {
        program,
        servers,
        data_root,
        flags: all,
        first_flags: first,
        last_flags: last,
    };
    cluster::run(&config).map(done).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
