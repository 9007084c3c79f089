//! Looking through the rows now and then: who lives, and what is left of those who do not.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::rows::*;
use super::silence::RegistryHeartbeat;
use super::{LocalPeer, LocalState, Result, StoreDirectory, count};
use crate::client::ReadOptions;
use crate::model::PeerId;

impl StoreDirectory {
    /// Says in the store that this registry lives.
    pub(super) fn write_heartbeat(&self) -> Result<()> {
        let key = registry_key(self.id);
        let silence_timeout_ms = self.silence_timeout.as_millis() as u64;
        self.client.put(&key, encode(&RegistryRow { silence_timeout_ms }))?;
        if std::mem::replace(&mut self.state().has_heartbeat_row, true) {
            self.client.trim(&key)?;
        }
        Ok(())
    }

    /// Says that this registry lives, and finds out which others do not, whose peers nobody has, and
    /// which of its own peers have fallen silent or been taken away by somebody.
    pub(super) fn scan(&self) -> Result<Vec<(PeerId, SocketAddr)>> {
        self.write_heartbeat()?;
        let began = Instant::now();
        // The peers before the registries: whoever is named here has its own row by then.
        let peers = self.peer_rows(PEERS, ReadOptions::default())?;
        let mut found = Vec::new();
        for row in self.rows(REGISTRIES, &end(REGISTRIES), ReadOptions::default())? {
            let row = row?;
            let registry = rest(&row, REGISTRIES).and_then(registry_of);
            let value: Option<RegistryRow> = value(row.value.as_ref());
            found.extend(registry.zip(value).map(|(registry, value)| RegistryHeartbeat {
                registry,
                version: row.timestamp,
                timeout: Duration::from_millis(value.silence_timeout_ms),
            }));
        }
        let (dead, orphaned) = self.judge(began, &peers, &found);
        for registry in dead {
            log::warn!("a registry that shares this store has fallen silent: its peers go");
            self.client.del(registry_key(registry))?;
        }
        let mut removed = Vec::new();
        for (peer, session) in orphaned {
            removed.extend(self.remove_peer(peer, session)?.map(|address| (peer, address)));
        }
        Ok(removed)
    }

    /// Which registries are dead, and whose rows are to go.
    fn judge(
        &self,
        began: Instant,
        peers: &[(PeerId, PeerRow)],
        found: &[RegistryHeartbeat],
    ) -> (Vec<RegistryId>, Vec<(PeerId, u64)>) {
        let now = self.now();
        let mut state = self.state();
        let LocalState { local_peers, silence_tracker, totals, .. } = &mut *state;
        let mut dead = silence_tracker.update(found, self.silence_timeout / 2, now);
        dead.retain(|registry| *registry != self.id);
        let alive: HashSet<RegistryId> = found
            .iter()
            .map(|found| found.registry)
            .filter(|registry| !dead.contains(registry))
            .chain([self.id])
            .collect();
        *totals = Some(count(peers));
        let is_silent = |local: &LocalPeer| {
            local.joined.is_some()
                && now.saturating_duration_since(local.last_seen) > self.silence_timeout
        };
        local_peers.retain(|_, local| !is_silent(local));
        let orphaned = peers.iter().filter(|(peer, row)| {
            if row.registry == self.id {
                !local_peers.contains_key(peer)
            } else {
                !alive.contains(&row.registry)
            }
        });
        let orphaned = orphaned.map(|(peer, row)| (*peer, row.session)).collect();
        let rows: HashMap<PeerId, &PeerRow> =
            peers.iter().map(|(peer, row)| (*peer, row)).collect();
        local_peers.retain(|peer, local| {
            let is_theirs =
                |row: &&PeerRow| (row.registry, row.session) == (self.id, local.session);
            let is_due = local.joined.is_some_and(|joined| joined < began);
            let stays = !is_due || rows.get(peer).is_some_and(is_theirs);
            if !stays {
                log::info!("peer {peer} was taken away by another registry: it is to join anew");
            }
            stays
        });
        (dead, orphaned)
    }
}
