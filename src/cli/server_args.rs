//! The flags of `acervo server` and `acervo cluster`, and what they come to.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
#[cfg(feature = "grpc")]
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

#[cfg(feature = "grpc")]
use super::args::parse_listen;
use super::args::{DEFAULT_GROUP, Switch, default_workers, parse_server};
use super::units::{parse_duration, parse_history, parse_size};
use crate::model::History;
use crate::node::config::AckPolicy;
use crate::server::config::{
    ConfigError, DEFAULT_DATA_ROOT, ServerConfig, check_group, data_dir_under,
};
use crate::text::escape;

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
    /// Serve gRPC there, from this process: the store, and etcd's interface
    #[cfg(feature = "grpc")]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_beside)]
    pub gateway: Option<SocketAddr>,
    /// Go on without a gateway where its address cannot be listened on
    #[cfg(feature = "grpc")]
    #[arg(long, hide = true, requires = "gateway")]
    pub gateway_optional: bool,
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
    /// Threads that answer requests [default: one a processor]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
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
    /// Where the first server serves gRPC, the store and etcd's interface; 'off' for nowhere
    /// [default: 127.0.0.1:2379, unless another program has it]
    #[cfg(feature = "grpc")]
    #[arg(long, value_name = "IP:PORT|off", value_parser = parse_gateway_or_off)]
    pub gateway: Option<GatewayChoice>,
    /// Store what is replicated to the last server this much late, to watch a lagging server;
    /// writes wait for it
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub replication_delay: Duration,
    /// Flags that every server of the group is started with.
    #[command(flatten)]
    pub tuning: TuningArgs,
}

/// Where etcd's clients look for a server when they are told nothing.
#[cfg(feature = "grpc")]
const ETCD_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2379);

/// Where a cluster serves gRPC, if it was told.
#[cfg(feature = "grpc")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayChoice {
    /// At this address, or not at all.
    At(SocketAddr),
    /// Nowhere, whatever address is free.
    Off,
}

#[cfg(feature = "grpc")]
fn parse_beside(text: &str) -> Result<SocketAddr, String> {
    parse_listen(text, ETCD_ADDRESS)
}

#[cfg(feature = "grpc")]
fn parse_gateway_or_off(text: &str) -> Result<GatewayChoice, String> {
    match text {
        "off" => Ok(GatewayChoice::Off),
        _ => parse_beside(text).map(GatewayChoice::At),
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
            value_bytes_max: self.tuning.max_value,
            console: self.tuning.console == Switch::On,
            sync: self.tuning.sync == Switch::On,
            workers: self.tuning.workers.unwrap_or_else(default_workers),
            local_port: None,
            files_beside: 0,
            stop_on_stdin_end: self.stop_on_stdin_end,
        }
        .checked()
    }
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
            #[cfg(feature = "grpc")]
            gateway: None,
            #[cfg(feature = "grpc")]
            gateway_optional: false,
            stop_on_stdin_end: true,
            tuning: tuning.clone(),
        };
        like_any_server.config(first, first)?;
        let delay = format!("--replication-delay={}us", self.replication_delay.as_micros());
        let (all, last) = (tuning.flags(), vec![delay.into()]);
        Ok(ClusterFlags { servers, all, first: self.gateway_flags(), last })
    }

    #[cfg(feature = "grpc")]
    fn gateway_flags(&self) -> Vec<OsString> {
        let flags = match self.gateway {
            None => vec![format!("--gateway={ETCD_ADDRESS}"), "--gateway-optional".to_owned()],
            Some(GatewayChoice::At(address)) => vec![format!("--gateway={address}")],
            Some(GatewayChoice::Off) => Vec::new(),
        };
        flags.into_iter().map(OsString::from).collect()
    }

    #[cfg(not(feature = "grpc"))]
    fn gateway_flags(&self) -> Vec<OsString> {
        Vec::new()
    }

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
    /// Further flags of the first one.
    pub first: Vec<OsString>,
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
        ];
        flags.extend(self.history.map(|history| format!("--history={history}")));
        flags.extend(self.workers.map(|workers| format!("--workers={workers}")));
        flags.into_iter().map(OsString::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::limits;
    use crate::server::config::DEFAULT_SERVERS;

    #[derive(Debug, Parser)]
    struct Typed<T: Args> {
        #[command(flatten)]
        args: T,
    }

    fn server(arguments: &[&str]) -> Result<ServerArgs, String> {
        let arguments = ["acervo"].iter().chain(arguments);
        let typed = Typed::try_parse_from(arguments).map_err(|error| error.to_string())?;
        Ok(typed.args)
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
        let cluster: ClusterArgs = Typed::parse_from(["acervo"]).args;
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
