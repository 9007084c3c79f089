//! How a server is set up, after flags and questions have been answered and checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::node::core::AckPolicy;
use crate::types::{ClusterId, NodeId};

/// A checked server configuration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The address this server listens on; one of `servers`.
    pub listen: SocketAddr,
    /// Every server of the group, sorted, without repetition, an odd number of them.
    pub servers: Vec<SocketAddr>,
    /// Who leads first; one of `servers`.
    pub leader: SocketAddr,
    /// Where everything durable lives.
    pub data_dir: PathBuf,
    /// The acknowledgement rule.
    pub ack: AckPolicy,
    /// How long a REPLICATION_OK may be owed.
    pub in_sync_timeout: Duration,
    /// Store what is replicated here this much late (SPEC A7); zero normally.
    pub replication_delay: Duration,
    /// The most bytes a value may have.
    pub value_bytes_max: usize,
    /// Whether console lines are written.
    pub console: bool,
    /// Whether the log is synced; `false` only for experiments.
    pub sync: bool,
    /// Worker threads that answer requests.
    pub workers: usize,
    /// Stop when standard input ends: how `acervo cluster` keeps its children from outliving it.
    pub stop_on_stdin_end: bool,
}

impl ServerConfig {
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
