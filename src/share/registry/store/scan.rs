//! Reads all rows of peers and registries now and then, and removes what dead registries have left.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::StoreDirectory;
use super::local::ScannedRows;
use super::row_store::{Result, RowStore};
use super::rows::*;
use super::silence::RegistryHeartbeat;
use crate::client::{Condition, ReadOptions};
use crate::model::PeerId;

impl<S: RowStore> StoreDirectory<S> {
    /// Writes this registry's heartbeat.
    pub(super) fn write_heartbeat(&self) -> Result<()> {
        let key = registry_key(self.id);
        let silence_timeout_ms = self.silence_timeout.as_millis() as u64;
        self.store.put(&key, encode(&RegistryRow { silence_timeout_ms }))?;
        if self.state().wrote_heartbeat() {
            self.store.trim(&key)?;
        }
        Ok(())
    }

    /// Writes the heartbeat, reads all rows, and removes the registries that are dead. Returns the
    /// peers that are orphaned: removing them may take long, and the next heartbeat is due soon.
    pub(super) fn scan(&self) -> Result<Vec<(PeerId, SocketAddr)>> {
        self.write_heartbeat()?;
        let began = Instant::now();
        let rows = self.read_rows()?;
        let now = self.now();
        let verdict = self.state().scanned(&rows, began, now);
        for peer in verdict.taken_over {
            log::info!("peer {peer} has joined at another registry, or was removed by one");
        }
        for RegistryHeartbeat { registry, version, .. } in verdict.dead {
            log::warn!("a registry on this store is silent: its peers are removed");
            // One that goes on meanwhile has a newer row, and keeps it.
            let key = registry_key(registry);
            self.store.write_if(&key, Condition::Version(version), vec![], vec![key.clone()])?;
        }
        let orphaned = verdict.orphaned.into_iter();
        Ok(orphaned.map(|(peer, orphan)| (peer, orphan.address())).collect())
    }

    fn read_rows(&self) -> Result<ScannedRows> {
        // Cleanup rows before peers: one whose peer has no row by then is of a removed peer.
        let cleanups = self.rows_of_peers(CLEANUPS, CLEANUPS, ReadOptions::default())?;
        let stored = |(peer, row, version)| (peer, StoredCleanup { row, version });
        let cleanups = cleanups.into_iter().map(stored).collect();
        // Peers before registries: a registry that a peer's row names has its own row by then.
        let peers = self.peer_rows(PEERS, ReadOptions::default())?;
        let mut registries = Vec::new();
        for row in self.store.range(REGISTRIES, &end(REGISTRIES), ReadOptions::default())? {
            let row = row?;
            let registry = rest(&row, REGISTRIES).and_then(registry_of);
            let value: Option<RegistryRow> = value(row.value());
            let heartbeat = registry.zip(row.timestamp()).zip(value);
            registries.extend(heartbeat.map(|((registry, version), value)| RegistryHeartbeat {
                registry,
                version,
                timeout: Duration::from_millis(value.silence_timeout_ms),
            }));
        }
        Ok(ScannedRows { cleanups, peers, registries })
    }
}
