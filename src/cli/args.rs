//! The command line: every command, flag, default and example, those of the commands on keys apart
//! (`key_args`).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::key_args::{
    DelAllArgs, DelArgs, DelRangeArgs, GetAllArgs, GetArgs, GetRangeArgs, HistoryArgs, PutAllArgs,
    PutArgs, RangeArgs, ReadArgs, RowsArgs, TrimArgs,
};
use super::share_args::{FetchArgs, ListArgs, PeerArgs, RegistryArgs, ShareArgs};
use super::units::{parse_duration, parse_history, parse_size};
use crate::bench::Workload;
use crate::bench::command::{BenchOptions, BenchTarget};
use crate::limits;
use crate::model::History;
use crate::node::config::AckPolicy;
use crate::server::config::{
    ConfigError, DEFAULT_DATA_ROOT, DEFAULT_SERVERS, ServerConfig, check_group, data_dir_under,
};
use crate::text::escape;

/// The most clients of `acervo bench`, each of which has a connection to each server.
const BENCH_CLIENTS_MAX: usize = 1024;
/// The most keys of `acervo bench`, whose names have eight digits.
const BENCH_KEYS_MAX: u64 = 100_000_000;

pub(super) const DEFAULT_GROUP: &str = "127.0.0.1:10097,127.0.0.1:10098,127.0.0.1:10099";

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

Exit status: 0 found or done, 1 not found, 2 usage, 3 no server reached or no majority,
4 anything else, such as an answer that cannot be written.
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
    /// Print the value of a key, and nothing else
    Get(GetArgs),
    /// Print every key of a range, with its version and value
    #[command(name = "getrange")]
    GetRange(GetRangeArgs),
    /// Print several keys, all of one moment
    #[command(name = "getall")]
    GetAll(GetAllArgs),
    /// Print every version of a key, with its time
    History(HistoryArgs),
    /// Store a value under a key and print the version it made
    #[command(alias = "set")]
    Put(PutArgs),
    /// Store several keys at once, or none
    #[command(name = "putall")]
    PutAll(PutAllArgs),
    /// Delete a key and print the version of the deletion
    #[command(alias = "rm")]
    Del(DelArgs),
    /// Delete every key of a range at once
    #[command(name = "delrange")]
    DelRange(DelRangeArgs),
    /// Delete several keys at once, or none
    #[command(name = "delall")]
    DelAll(DelAllArgs),
    /// Delete every version of a key but the newest, and print that version
    Trim(TrimArgs),
    /// Change how long the group keeps old versions, and print the version of the change
    SetHistory(SetHistoryArgs),
    /// Describe every server of the group
    Status(StatusArgs),
    /// Check that the group can be read and written, for scripts and load balancers
    Health(HealthArgs),
    /// Print every key there is, or that begins so
    #[command(hide = true)]
    Ls(LsArgs),
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

/// The flags and arguments of `acervo server`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo server               on a terminal: asks for IP, port, leader's IP and leader's port
  acervo server --listen 127.0.0.1:10098 --leader 127.0.0.1:10097
  acervo server --listen 127.0.0.1:10099 --leader 127.0.0.1:10097 --replication-delay 10s")]
pub struct ServerArgs {
    /// The address to listen on, one of --servers
    #[arg(long, value_name = "IP:PORT", value_parser = parse_server)]
    pub listen: Option<SocketAddr>,
    /// Who leads first, one of --servers; ignored on a data directory that was in use before
    #[arg(long, value_name = "IP:PORT", value_parser = parse_server)]
    pub leader: Option<SocketAddr>,
    /// Every server of the group, the same list at each of them
    #[arg(long, env = "ACERVO_SERVERS", value_name = "A,B,C",
        value_delimiter = ',', value_parser = parse_server,
        default_value = DEFAULT_GROUP)]
    pub servers: Vec<SocketAddr>,
    /// Where everything durable lives [default: acervo-data/IP-PORT]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Store what is replicated to this server this much late, to watch a lagging server
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub replication_delay: Duration,
    /// Stop when standard input ends
    #[arg(long, hide = true)]
    pub stop_on_stdin_end: bool,
    /// Flags that every server of a group may be given.
    #[command(flatten)]
    pub tuning: TuningArgs,
}

/// Flags that `acervo cluster` passes on to its servers.
#[derive(Clone, Debug, Args)]
pub struct TuningArgs {
    /// When a write is acknowledged: stored by every server in sync, or durable on a majority
    #[arg(long, value_name = "RULE", default_value = "all")]
    pub ack: Ack,
    /// How long a server may owe a REPLICATION_OK before writes stop waiting for it
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub in_sync_timeout: Duration,
    /// Whether console lines are written
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub console: Switch,
    /// Whether the log is synced to disk; 'off' can lose acknowledged writes, for experiments only
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub sync: Switch,
    /// The most bytes a value may have, such as 64KiB or 1MiB
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_size)]
    pub max_value: usize,
    /// What a new group keeps of what newer versions have replaced: all, a time such as 24h, or a
    /// number of versions; of a group that has begun it changes nothing, 'acervo set-history' does
    /// [default: all]
    #[arg(long, value_name = "all|TIME|N", value_parser = parse_history)]
    pub history: Option<History>,
    /// How long to rest between two checks of the whole store for damage, which run in the
    /// background
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    pub scrub_interval: Duration,
    /// How often an idle store is looked at, and copied into a smaller file if it takes too much of
    /// the disk
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    pub shrink_interval: Duration,
    /// Threads that answer requests [default: one a processor]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
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

/// The flags and arguments of `acervo cluster`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo cluster
  acervo cluster --data-dir /var/lib/acervo --ack majority
  acervo cluster --replication-delay 10s       the third server lags, for all to see

Ctrl-C stops all servers cleanly.")]
pub struct ClusterArgs {
    /// Where each server gets a data directory of its own
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_ROOT)]
    pub data_dir: PathBuf,
    /// The servers of the group, in this order
    #[arg(long, hide = true, value_delimiter = ',', value_parser = parse_server,
        default_value = DEFAULT_GROUP)]
    pub servers: Vec<SocketAddr>,
    /// Store what is replicated to the last server this much late, to watch a lagging server;
    /// writes wait for it
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub replication_delay: Duration,
    /// Flags that every server of the group is started with.
    #[command(flatten)]
    pub tuning: TuningArgs,
}

/// The servers that a client can ask.
#[derive(Clone, Debug, Args)]
pub struct GroupArgs {
    /// The servers of the group
    #[arg(long, env = "ACERVO_SERVERS", value_name = "A,B,C",
        value_delimiter = ',', value_parser = parse_server,
        default_value = DEFAULT_GROUP)]
    pub servers: Vec<SocketAddr>,
}

/// Flags of every command that asks a server.
#[derive(Clone, Debug, Args)]
pub struct RequestArgs {
    /// The servers that can be asked.
    #[command(flatten)]
    pub group: GroupArgs,
    /// The whole time of the request, retries included
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Whether the answer is text or JSON.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Flags that choose between text and JSON.
#[derive(Clone, Copy, Debug, Args)]
pub struct FormatArgs {
    /// How to print the answer
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// The same as --format json
    #[arg(long, overrides_with = "format")]
    json: bool,
}

impl FormatArgs {
    /// The format that the two flags together ask for.
    pub fn get(self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

/// `acervo ls`, which nobody is told of: for whoever types it.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Every key that begins with this
    #[arg(default_value = "")]
    pub prefix: OsString,
    /// As of when the read is, and whether a majority confirms it.
    #[command(flatten)]
    pub read: ReadArgs,
}

impl LsArgs {
    /// The command that it stands for.
    pub fn into_range(self) -> GetRangeArgs {
        GetRangeArgs {
            range: RangeArgs { from: None, to: None, prefix: Some(self.prefix) },
            limit: None,
            reverse: false,
            rows: RowsArgs { keys_only: true, count: false },
            read: self.read,
        }
    }
}

/// The flags and arguments of `acervo health`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo health && acervo put title 'Dom Casmurro'
  acervo health --servers 10.0.0.1:10097 --timeout 2s      of one server

Prints 'healthy' and ends with status 0 when one of the servers answers a read that a majority
confirms, and no full disk keeps everybody from writing; else says why not, and ends with
status 3.")]
pub struct HealthArgs {
    /// The servers that can be asked.
    #[command(flatten)]
    pub group: GroupArgs,
    /// The whole time of the check
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// The flags and arguments of `acervo status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo status
  acervo status --json

'rows' counts the rows of a server's store: one a version of a key, what was removed in the last
minute included, and some of its own; so there are at most so many keys. 'acervo getrange .. ..
--count' tells how many.

Exit status 3 when no server answers, nobody leads, or disks are full, so that nothing can be
written.")]
pub struct StatusArgs {
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

/// The flags and arguments of `acervo set-history`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo set-history 24h
  acervo set-history 10      ten versions of each key
  acervo set-history all")]
pub struct SetHistoryArgs {
    /// What is kept of what newer versions have replaced: all, a time such as 24h, or a number of
    /// versions
    #[arg(value_name = "all|TIME|N", value_parser = parse_history)]
    pub history: History,
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

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
            // Within a limit that fits.
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

/// The formats of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people and pipes.
    Text,
    /// JSON objects, one a line.
    Json,
}

/// A flag's value that is `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// The value is `on`.
    On,
    /// The value is `off`.
    Off,
}

impl Switch {
    fn name(self) -> &'static str {
        if self == Switch::On { "on" } else { "off" }
    }
}

/// The acknowledgement rule's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    /// Durable on a majority and stored by every server in sync.
    All,
    /// Durable on a majority.
    Majority,
}

impl From<Ack> for AckPolicy {
    fn from(ack: Ack) -> AckPolicy {
        match ack {
            Ack::All => AckPolicy::All,
            Ack::Majority => AckPolicy::Majority,
        }
    }
}

/// The address of a server of a store.
pub(super) fn parse_server(text: &str) -> Result<SocketAddr, String> {
    parse_address(text, DEFAULT_SERVERS[0])
}

/// An address that can be dialled. Whoever wrote none is shown an example of the kind that is
/// meant.
pub(super) fn parse_address(text: &str, example: SocketAddr) -> Result<SocketAddr, String> {
    match parse_listen(text, example)? {
        address if address.port() == 0 => Err(format!("write IP:PORT, such as {example}")),
        address => Ok(address),
    }
}

/// An address to listen on, whose port 0 stands for any free one.
pub(super) fn parse_listen(text: &str, example: SocketAddr) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| format!("write IP:PORT, such as {example}"))
}

impl ServerArgs {
    /// The whole, checked configuration, once it is known where to listen and who leads.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn config(
        self,
        listen: SocketAddr,
        leader: SocketAddr,
    ) -> Result<ServerConfig, ConfigError> {
        let own_dir = || data_dir_under(Path::new(DEFAULT_DATA_ROOT), listen);
        ServerConfig {
            listen,
            leader,
            servers: self.servers,
            data_dir: self.data_dir.unwrap_or_else(own_dir),
            ack: self.tuning.ack.into(),
            in_sync_timeout: self.tuning.in_sync_timeout,
            replication_delay: self.replication_delay,
            history: self.tuning.history,
            scrub_interval: self.tuning.scrub_interval,
            shrink_interval: self.tuning.shrink_interval,
            value_bytes_max: self.tuning.max_value,
            console: self.tuning.console == Switch::On,
            sync: self.tuning.sync == Switch::On,
            workers: self.tuning.workers.unwrap_or_else(default_workers),
            stop_on_stdin_end: self.stop_on_stdin_end,
        }
        .checked()
    }
}

/// One worker a processor.
pub fn default_workers() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    processors.min(limits::WORKERS_MAX)
}

impl ClusterArgs {
    /// The group and the flags for each of its servers, checked as the servers will check them, so
    /// that a mistake is one sentence and not three processes.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn checked(&self) -> Result<ClusterFlags, ConfigError> {
        let mut tuning = self.tuning.clone();
        // A server that is late on purpose stays in the in-sync set, or nobody would see a write
        // wait for it.
        tuning.in_sync_timeout =
            tuning.in_sync_timeout.max(self.replication_delay.saturating_mul(3));
        let servers = check_group(self.servers.clone())?;
        // An empty group has been refused, so there is a first.
        let first = servers.first().copied().ok_or(ConfigError::NotOdd(0))?;
        let like_any_server = ServerArgs {
            listen: Some(first),
            leader: Some(first),
            servers: servers.clone(),
            data_dir: None,
            replication_delay: self.replication_delay,
            stop_on_stdin_end: true,
            tuning: tuning.clone(),
        };
        like_any_server.config(first, first)?;
        let delay = format!("--replication-delay={}us", self.replication_delay.as_micros());
        Ok(ClusterFlags { servers, all: tuning.flags(), last: vec![delay.into()] })
    }
}

impl ClusterArgs {
    /// A warning when the servers that the environment names in `variable` are not those of this
    /// cluster, so that commands would ask others.
    pub fn not_asked_by(&self, variable: Option<&str>) -> Option<String> {
        let variable = variable.filter(|variable| !variable.is_empty())?;
        let named: Result<BTreeSet<_>, _> = variable.split(',').map(parse_server).collect();
        let own: BTreeSet<_> = self.servers.iter().copied().collect();
        (named.as_ref() != Ok(&own)).then(|| {
            let own: Vec<_> = self.servers.iter().map(SocketAddr::to_string).collect();
            format!(
                "ACERVO_SERVERS is {} in this environment, so commands do not ask this cluster: \
                 unset it, or set it to {}",
                escape(variable.as_bytes()),
                own.join(",")
            )
        })
    }
}

/// The flags that the servers of a cluster are started with.
#[derive(Debug)]
pub struct ClusterFlags {
    /// The servers of the group, as every one of them is given them.
    pub servers: Vec<SocketAddr>,
    /// Flags of every server.
    pub all: Vec<OsString>,
    /// Further flags of the last one.
    pub last: Vec<OsString>,
}

impl TuningArgs {
    fn flags(&self) -> Vec<OsString> {
        let ack = if self.ack == Ack::All { "all" } else { "majority" };
        let mut flags = vec![
            format!("--ack={ack}"),
            format!("--in-sync-timeout={}us", self.in_sync_timeout.as_micros()),
            format!("--console={}", self.console.name()),
            format!("--sync={}", self.sync.name()),
            format!("--max-value={}", self.max_value),
            format!("--scrub-interval={}us", self.scrub_interval.as_micros()),
            format!("--shrink-interval={}us", self.shrink_interval.as_micros()),
        ];
        flags.extend(self.history.map(|history| format!("--history={history}")));
        flags.extend(self.workers.map(|workers| format!("--workers={workers}")));
        flags.into_iter().map(OsString::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn server(arguments: &[&str]) -> Result<ServerArgs, String> {
        let arguments = ["acervo", "server"].iter().chain(arguments);
        match Cli::try_parse_from(arguments).map_err(|error| error.to_string())?.command {
            CliCommand::Server(server) => Ok(server),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_those_of_the_specification() {
        let arguments = server(&[]).unwrap();
        assert_eq!((arguments.listen, arguments.leader), (None, None));
        let [first, ..] = DEFAULT_SERVERS;
        let config = arguments.config(first, first).unwrap();
        assert_eq!(config.servers, DEFAULT_SERVERS);
        assert_eq!(config.data_dir, Path::new("acervo-data/127.0.0.1-10097"));
        assert_eq!(config.ack, AckPolicy::All);
        assert_eq!(config.in_sync_timeout, limits::IN_SYNC_TIMEOUT_DEFAULT);
        assert_eq!(config.value_bytes_max, limits::VALUE_BYTES_MAX_DEFAULT);
        assert_eq!(config.scrub_interval, limits::SCRUB_INTERVAL_DEFAULT);
        assert_eq!(config.shrink_interval, limits::SHRINK_INTERVAL_DEFAULT);
        assert!(config.console && config.sync && !config.stop_on_stdin_end);
    }

    #[test]
    fn what_a_cluster_passes_on_is_what_it_was_given() {
        let given = [
            "--ack=majority",
            "--in-sync-timeout=30s",
            "--console=off",
            "--sync=off",
            "--max-value=64KiB",
            "--history=24h",
            "--scrub-interval=1h",
            "--shrink-interval=5s",
            "--workers=3",
        ];
        let passed = server(&given).unwrap().tuning.flags();
        let passed: Vec<_> = passed.iter().map(|flag| flag.to_str().unwrap()).collect();
        assert_eq!(
            passed[1..],
            [
                "--in-sync-timeout=30000000us",
                "--console=off",
                "--sync=off",
                "--max-value=65536",
                "--scrub-interval=3600000000us",
                "--shrink-interval=5000000us",
                "--history=1d",
                "--workers=3"
            ]
        );
        let again = server(&passed).unwrap().tuning;
        assert_eq!(again.ack, Ack::Majority);
        assert_eq!(again.in_sync_timeout, Duration::from_secs(30));
        assert_eq!(again.max_value, 64 * 1024);
    }

    #[test]
    fn a_cluster_says_when_the_environment_has_commands_ask_others() {
        let CliCommand::Cluster(cluster) = Cli::parse_from(["acervo", "cluster"]).command else {
            panic!("another command")
        };
        let turned = "127.0.0.1:10099,127.0.0.1:10098, 127.0.0.1:10097";
        for same in [None, Some(""), Some(DEFAULT_GROUP), Some(turned)] {
            assert_eq!(cluster.not_asked_by(same), None);
        }
        for other in ["10.0.0.1:10097", "127.0.0.1:10097", "nonsense"] {
            let said = cluster.not_asked_by(Some(other)).unwrap();
            assert!(said.starts_with(&format!("ACERVO_SERVERS is {other} in ")), "{said}");
            assert!(said.ends_with(&format!("set it to {DEFAULT_GROUP}")), "{said}");
        }
    }

    #[test]
    fn addresses_that_cannot_be_dialled_are_refused() {
        for text in ["localhost:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", ""] {
            assert!(server(&["--listen", text]).unwrap_err().contains("IP:PORT"), "{text}");
        }
    }
}
