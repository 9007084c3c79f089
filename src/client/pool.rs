//! The client's connections: one for each server, opened when first needed, kept, opened again when lost.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::Timing;
use super::connection::{Claim, Connection, Failure, Met, OnReply};
use super::sync::lock;
use crate::model::ClusterId;
use crate::wire::message::{Request, Welcome};

/// All of a client's servers.
pub(super) struct Pool {
    slots: Vec<Slot>,
    timing: Timing,
    /// The group of the first server reached. Timestamps of two groups do not compare, so a
    /// server of another one is as good as unreachable.
    cluster: Arc<Mutex<Option<ClusterId>>>,
    met: Met,
}

struct Slot {
    server: SocketAddr,
    connection: Mutex<Option<Arc<Connection>>>,
}

/// A request under way on a connection. Dropping it says that nobody waits for the reply any more.
pub(super) struct Sent {
    pub(super) connection: Arc<Connection>,
    /// The connection was there before the request.
    pub(super) was_kept: bool,
    id: Option<u64>,
}

impl Sent {
    /// Lets the reply come although nobody waits here.
    pub(super) fn leave(mut self) {
        self.id = None;
    }

    /// Gives the request up. Returns whether it may have reached the server; if not, it never will.
    pub(super) fn withdraw(mut self) -> bool {
        self.id.take().is_some_and(|id| self.connection.forget(id))
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.connection.forget(id);
        }
    }
}

impl Pool {
    pub(super) fn new(servers: &[SocketAddr], timing: Timing) -> Pool {
        let slot = |server: &SocketAddr| Slot { server: *server, connection: Mutex::default() };
        let slots = servers.iter().map(slot).collect();
        Pool { slots, timing, cluster: Arc::default(), met: Met::default() }
    }

    /// Sends a request on the server's connection, which is opened if there is none, unless the `claim` to it is taken
    /// before it can leave. Waits for neither: whatever happens is told to `on_reply`.
    pub(super) fn send(
        &self,
        index: usize,
        body: Request,
        claim: Option<Claim>,
        on_reply: OnReply,
    ) -> Result<Sent, Failure> {
        let (connection, was_kept) = self.connect(index)?;
        let id = connection.send(body, claim, on_reply);
        Ok(Sent { connection, was_kept, id })
    }

    /// The server's connection, and whether it was open already.
    fn connect(&self, index: usize) -> Result<(Arc<Connection>, bool), Failure> {
        let slot = &self.slots[index];
        let mut kept = lock(&slot.connection);
        if let Some(connection) = kept.as_ref().filter(|known| !known.is_closed()) {
            return Ok((Arc::clone(connection), connection.heard().is_some()));
        }
        let cluster = Arc::clone(&self.cluster);
        let met = self.met.clone();
        let admit = move |welcome: &Welcome| {
            check_cluster(&cluster, welcome.cluster)?;
            met.greeted(welcome);
            Ok(())
        };
        let connection = Connection::open(slot.server, self.timing, self.met.clone(), admit)?;
        let connection = Arc::new(connection);
        *kept = Some(Arc::clone(&connection));
        Ok((connection, false))
    }
}

fn check_cluster(known: &Mutex<Option<ClusterId>>, cluster: ClusterId) -> Result<(), Failure> {
    let mut known = lock(known);
    match *known {
        Some(known) if known != cluster => {
            Err(Failure::new(format!("it belongs to group {cluster}, the others to {known}")))
        }
        _ => {
            *known = Some(cluster);
            Ok(())
        }
    }
}
