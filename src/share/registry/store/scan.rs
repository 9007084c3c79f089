//! Reads all rows of peers and registries now and then, and removes what dead registries have left.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::local::ScannedRows;
use super::rows::*;
use super::silence::RegistryHeartbeat;
use super::{Result, StoreDirectory};
use crate::client::ReadOptions;
use crate::model::PeerId;

impl StoreDirectory {
    /// Writes this registry's heartbeat.
    pub(super) fn write_heartbeat(&self) -> Result<()> {
        let key = registry_key(self.id);
        let silence_timeout_ms = self.silence_timeout.as_millis() as u64;
        self.client.put(&key, encode(&RegistryRow { silence_timeout_ms }))?;
        if self.state().wrote_heartbeat() {
            self.client.trim(&key)?;
        }
        Ok(())
    }

    /// Writes the heartbeat, reads all rows, and removes the registries that are dead and the peers
    /// that are orphaned. Returns those peers.
    pub(super) fn scan(&self) -> Result<Vec<(PeerId, SocketAddr)>> {
        self.write_heartbeat()?;
        let began = Instant::now();
        let rows = self.read_rows()?;
        let now = self.now();
        let verdict = self.state().scanned(&rows, began, now);
        for peer in verdict.taken_over {
            log::info!("peer {peer} was taken away by another registry: it is to join anew");
        }
        for registry in verdict.dead {
            log::warn!("a registry that shares this store has fallen silent: its peers go");
            self.client.del(registry_key(registry))?;
        }
        let mut removed = Vec::new();
        for (peer, session) in verdict.orphaned {
            removed.extend(self.remove_peer(peer, session)?.map(|address| (peer, address)));
        }
        Ok(removed)
    }

    fn read_rows(&self) -> Result<ScannedRows> {
        // Peers before registries: a registry that a peer's row names has its own row by then.
        let peers = self.peer_rows(PEERS, ReadOptions::default())?;
        let mut registries = Vec::new();
        for row in self.rows(REGISTRIES, &end(REGISTRIES), ReadOptions::default())? {
            let row = row?;
            let registry = rest(&row, REGISTRIES).and_then(registry_of);
            let value: Option<RegistryRow> = value(row.value.as_ref());
            registries.extend(registry.zip(value).map(|(registry, value)| RegistryHeartbeat {
                registry,
                version: row.timestamp,
                timeout: Duration::from_millis(value.silence_timeout_ms),
            }));
        }
        Ok(ScannedRows { peers, registries })
    }
}
