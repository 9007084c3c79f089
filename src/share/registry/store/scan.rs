//! What a registry does by its own timer: it keeps the leases of its peers alive, and reads all
//! rows of peers.

use std::net::SocketAddr;
use std::time::Instant;

use super::local::ScannedPeers;
use super::row_store::{Result, RowStore};
use super::rows::*;
use super::{StoreDirectory, stored_peers};
use crate::client::ReadOptions;
use crate::model::{LEASES_PER_REQUEST_MAX, PeerId};
use crate::share::index::Member;

impl<S: RowStore> StoreDirectory<S> {
    /// Keeps leases alive and reads the peers' rows. Returns the peers of which something is to be
    /// removed, which may take long, and the leases are due again soon.
    pub(super) fn scan(&self) -> Result<Vec<(PeerId, SocketAddr)>> {
        self.keep_leases_alive()?;
        let began = Instant::now();
        let scanned = self.scanned_peers(ReadOptions::default())?;
        let now = self.now();
        let verdict = self.state().scanned(&scanned, began, now);
        for peer in verdict.lost {
            log::info!("peer {peer} has joined at another registry, or its rows are gone");
        }
        Ok(verdict.removable)
    }

    /// Forgets the peers of which a lease has ended: they join again.
    fn keep_leases_alive(&self) -> Result<()> {
        let now = self.now();
        let mut peers = self.state().leases(now).into_iter().peekable();
        while peers.peek().is_some() {
            // All leases of a peer in one request, so that its first one ends first.
            let (mut batch, mut ids) = (Vec::new(), Vec::new());
            while let Some((member, leases)) =
                peers.next_if(|(_, of)| ids.len() + of.len() <= LEASES_PER_REQUEST_MAX)
            {
                batch.push((member, leases.len()));
                ids.extend(leases);
            }
            assert!(!batch.is_empty(), "a peer has more leases than a request: {:?}", peers.peek());
            let alive = self.store.keep_alive(&ids)?;
            let mut alive = alive.as_slice();
            for (member, leases) in batch {
                let (of_peer, others) = alive.split_at(leases);
                alive = others;
                if of_peer.contains(&false) {
                    self.lost_lease(member, of_peer[0])?;
                }
            }
        }
        Ok(())
    }

    fn lost_lease(&self, member: Member, is_first_alive: bool) -> Result<()> {
        let forgotten = self.state().forget(member);
        let Some((stored, leases)) = forgotten else { return Ok(()) };
        log::info!("a lease of peer {} has ended: it is to join again", member.peer);
        // Somebody has revoked a lease of its files, and nobody is to be shown the others alone.
        if is_first_alive {
            self.remove_peer(member.peer, stored, &leases)?;
        }
        Ok(())
    }

    pub(super) fn scanned_peers(&self, options: ReadOptions) -> Result<ScannedPeers> {
        let (rows, at) = self.store.rows(PEERS, &end(PEERS), options)?;
        Ok(ScannedPeers { peers: stored_peers(&rows), at })
    }
}
