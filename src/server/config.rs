//! The configuration of a server, checked as far as that can be done without touching disk or
//! network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::{SERVERS_MAX, VALUE_BYTES_MAX, WORKERS_MAX};
use crate::model::{ClusterId, History, NodeId};
use crate::net::LocalPort;
use crate::node::config::AckPolicy;

/// The group that is used when no other is named.
pub const DEFAULT_SERVERS: [SocketAddr; 3] = [local(10097), local(10098), local(10099)];

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The folder under which servers keep their data directories when no other is named.
pub const DEFAULT_DATA_ROOT: &str = "acervo-data";

/// The data directory of the server at `listen` under `root`: one of its own for every server.
pub fn data_dir_under(root: &Path, listen: SocketAddr) -> PathBuf {
    root.join(format!("{}-{}", listen.ip(), listen.port()))
}

/// Why a server cannot be set up like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A majority of an even number is no better than one of a smaller odd number.
    #[error(
        "a group needs an odd number of servers, and --servers names {0}: add or leave out one"
    )]
    NotOdd(usize),
    /// The list has more servers than [`SERVERS_MAX`].
    #[error("a group has at most {SERVERS_MAX} servers, and --servers names {0}")]
    TooMany(usize),
    /// A server is named twice.
    #[error("--servers names {0} twice: name each server once")]
    Repeated(SocketAddr),
    /// An address with port zero, or one that stands for every address of a machine.
    #[error("{0} is not an address that other servers can dial: name an IP and a port")]
    NotDialable(SocketAddr),
    /// The address to listen on is not in the list of servers.
    #[error("--listen {listen} is not one of the group's servers ({})", names(servers))]
    ListenNotInGroup {
        /// The address that was given.
        listen: SocketAddr,
        /// The servers of the group.
        servers: Vec<SocketAddr>,
    },
    /// The first leader is not in the list of servers.
    #[error("--leader {leader} is not one of the group's servers ({})", names(servers))]
    LeaderNotInGroup {
        /// The address that was given.
        leader: SocketAddr,
        /// The servers of the group.
        servers: Vec<SocketAddr>,
    },
    /// `--max-value` out of range.
    #[error("--max-value must be 1 to {VALUE_BYTES_MAX} bytes, not {0}")]
    MaxValue(usize),
    /// `--workers` out of range.
    #[error("--workers must be 1 to {WORKERS_MAX}, not {0}")]
    Workers(usize),
    /// No server could ever stay in sync.
    #[error("--in-sync-timeout must be longer than zero")]
    InSyncTimeout,
}

fn names(servers: &[SocketAddr]) -> String {
    servers.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// Checks a list of servers and sorts it.
///
/// # Errors
/// Not an odd number of different, dialable addresses within the limit.
pub fn check_group(mut servers: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, ConfigError> {
    servers.sort();
    if let Some(pair) = servers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ConfigError::Repeated(pair[0]));
    }
    let not_dialable = |server: &&SocketAddr| server.port() == 0 || server.ip().is_unspecified();
    match servers.len() {
        count if count > SERVERS_MAX => Err(ConfigError::TooMany(count)),
        count if count % 2 == 0 => Err(ConfigError::NotOdd(count)),
        _ => match servers.iter().find(not_dialable) {
            Some(server) => Err(ConfigError::NotDialable(*server)),
            None => Ok(servers),
        },
    }
}

/// A checked server configuration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The address this server listens on; one of `servers`.
    pub listen: SocketAddr,
    /// Every server of the group, sorted, without repetition, an odd number of them.
    pub servers: Vec<SocketAddr>,
    /// The server that leads first; one of `servers`.
    pub leader: SocketAddr,
    /// The directory of everything durable.
    pub data_dir: PathBuf,
    /// When a write is acknowledged: stored by all in sync, or by a majority.
    pub ack: AckPolicy,
    /// How long a REPLICATION_OK may be owed.
    pub in_sync_timeout: Duration,
    /// Store what is replicated here this much late (SPEC A7); zero normally.
    pub replication_delay: Duration,
    /// The history to found a group with; `None` keeps everything.
    pub history: Option<History>,
    /// From the end of one check of the whole store to the beginning of the next.
    pub scrub_interval: Duration,
    /// The most bytes a value may have.
    pub value_bytes_max: usize,
    /// Whether console lines are written.
    pub console: bool,
    /// Whether the log is synced; `false` only for experiments.
    pub sync: bool,
    /// Worker threads that answer requests.
    pub workers: usize,
    /// A port within this process on which the server listens, too: for the gateway beside it.
    pub local_port: Option<LocalPort>,
    /// Files that something else in this process may open.
    pub files_beside: usize,
    /// Stop when standard input ends: how `acervo cluster` keeps its children from outliving it.
    pub stop_on_stdin_end: bool,
}

impl ServerConfig {
    /// Logs it when this server was told another history than its group keeps. Returns whether it
    /// was.
    pub(super) fn warn_of_other_history(&self, group: History) -> bool {
        let differs = self.history.filter(|own| *own != group);
        if let Some(own) = differs {
            log::warn!(
                "--history {own} is ignored, the group keeps a history of {group}: change it with \
                 'acervo set-history'"
            );
        }
        differs.is_some()
    }

    /// Checks everything that can be checked without touching the disk or the network, and sorts
    /// the list of servers.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn checked(mut self) -> Result<ServerConfig, ConfigError> {
        self.servers = check_group(self.servers)?;
        if !self.servers.contains(&self.listen) {
            let (listen, servers) = (self.listen, self.servers);
            return Err(ConfigError::ListenNotInGroup { listen, servers });
        }
        if !self.servers.contains(&self.leader) {
            let (leader, servers) = (self.leader, self.servers);
            return Err(ConfigError::LeaderNotInGroup { leader, servers });
        }
        if !(1..=VALUE_BYTES_MAX).contains(&self.value_bytes_max) {
            return Err(ConfigError::MaxValue(self.value_bytes_max));
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return Err(ConfigError::Workers(self.workers));
        }
        if self.in_sync_timeout.is_zero() {
            return Err(ConfigError::InSyncTimeout);
        }
        Ok(self)
    }

    /// The node number of an address of the group: its position in the sorted list, from 1.
    pub fn node_of(&self, address: SocketAddr) -> Option<NodeId> {
        self.servers.iter().position(|a| *a == address).map(|i| NodeId(i as u64 + 1))
    }

    /// The group's id: the same for every server started with the same list.
    pub fn cluster_id(&self) -> ClusterId {
        let list: Vec<String> = self.servers.iter().map(|a| a.to_string()).collect();
        let hash = blake3::hash(format!("acervo cluster of {}", list.join(",")).as_bytes());
        let mut head = [0; 8];
        head.copy_from_slice(&hash.as_bytes()[..8]);
        // Zero means "any" on the wire; the chance is 2^-64, the guard costs nothing.
        ClusterId(u64::from_be_bytes(head).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ServerConfig {
        ServerConfig {
            listen: local(10098),
            servers: DEFAULT_SERVERS.into(),
            leader: local(10097),
            data_dir: data_dir_under(Path::new(DEFAULT_DATA_ROOT), local(10098)),
            ack: AckPolicy::All,
            in_sync_timeout: Duration::from_secs(2),
            replication_delay: Duration::ZERO,
            history: None,
            scrub_interval: crate::limits::SCRUB_INTERVAL_DEFAULT,
            value_bytes_max: 1024,
            console: true,
            sync: true,
            workers: 2,
            local_port: None,
            files_beside: 0,
            stop_on_stdin_end: false,
        }
    }

    #[test]
    fn a_good_configuration_is_sorted() {
        let mut config = config();
        config.servers.reverse();
        let checked = config.checked().unwrap();
        assert_eq!(checked.servers, DEFAULT_SERVERS);
        assert_eq!(checked.node_of(checked.listen), Some(NodeId(2)));
        assert_eq!(checked.data_dir, Path::new("acervo-data/127.0.0.1-10098"));
    }

    #[test]
    fn a_list_of_servers_must_make_a_group() {
        let of = |ports: &[u16]| check_group(ports.iter().map(|port| local(*port)).collect());
        assert_eq!(of(&[]), Err(ConfigError::NotOdd(0)));
        assert_eq!(of(&[1, 2]), Err(ConfigError::NotOdd(2)));
        assert_eq!(of(&[1, 2, 1]), Err(ConfigError::Repeated(local(1))));
        assert_eq!(of(&[0, 1, 2]), Err(ConfigError::NotDialable(local(0))));
        assert_eq!(of(&(1..=11).collect::<Vec<_>>()), Err(ConfigError::TooMany(11)));
        assert_eq!(of(&[9]), Ok(vec![local(9)]));
        let any: SocketAddr = "0.0.0.0:5".parse().unwrap();
        assert_eq!(check_group(vec![any]), Err(ConfigError::NotDialable(any)));
    }

    #[test]
    fn each_wrong_value_has_its_sentence() {
        let error = |change: fn(&mut ServerConfig)| {
            let mut config = config();
            change(&mut config);
            config.checked().unwrap_err().to_string()
        };
        let group = "127.0.0.1:10097, 127.0.0.1:10098, 127.0.0.1:10099";
        assert_eq!(
            error(|config| config.listen = local(1)),
            format!("--listen 127.0.0.1:1 is not one of the group's servers ({group})")
        );
        assert_eq!(
            error(|config| config.leader = local(1)),
            format!("--leader 127.0.0.1:1 is not one of the group's servers ({group})")
        );
        assert!(error(|config| config.value_bytes_max = 0).starts_with("--max-value"));
        assert!(error(|config| config.workers = 0).starts_with("--workers"));
        assert!(error(|config| config.in_sync_timeout = Duration::ZERO).starts_with("--in-sync"));
    }
}
