//! The client's connections: one a server, opened when first needed, kept, opened again when lost.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::Timing;
use super::connection::{CallError, Connection, Failure};
use super::sync::{lock, wait};
use crate::types::ClusterId;
use crate::wire::message::{Reply, Request};

/// All of a client's servers.
pub(super) struct Pool {
    slots: Vec<Slot>,
    timing: Timing,
    /// The group of the first server reached. Timestamps of two groups do not compare, so a
    /// server of another one is as good as unreachable.
    cluster: Mutex<Option<ClusterId>>,
}

struct Slot {
    server: SocketAddr,
    state: Mutex<SlotState>,
    dialled: Condvar,
}

#[derive(Default)]
struct SlotState {
    connection: Option<Arc<Connection>>,
    /// One thread dials for all.
    dialling: bool,
    /// Counts finished dials, so that who waited for one knows that it is over …
    dials: u64,
    /// … and how the last one failed.
    failure: Option<Failure>,
}

impl Pool {
    pub(super) fn new(servers: Vec<SocketAddr>, timing: Timing) -> Pool {
        let slot = |server| Slot { server, state: Mutex::default(), dialled: Condvar::new() };
        Pool { slots: servers.into_iter().map(slot).collect(), timing, cluster: Mutex::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn server(&self, index: usize) -> SocketAddr {
        self.slots[index].server
    }

    pub(super) fn index_of(&self, server: SocketAddr) -> Option<usize> {
        self.slots.iter().position(|slot| slot.server == server)
    }

    /// One request to one server. A connection that had been kept and turns out to have ended is
    /// opened once more: idle ones are closed by servers, which says nothing about their health.
    /// Every request may be sent twice: reads change nothing, writes carry their identity.
    pub(super) fn call(
        &self,
        index: usize,
        body: Request,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        let (connection, kept) = self.connect(index, deadline)?;
        let again = kept.then(|| body.clone());
        match (connection.call(body, deadline), again) {
            (Err(CallError::Broken(failure)), Some(body)) if failure.ended => {
                self.connect(index, deadline)?.0.call(body, deadline)
            }
            (result, _) => result,
        }
    }

    /// The server's connection, and whether it was there already.
    fn connect(
        &self,
        index: usize,
        deadline: Instant,
    ) -> Result<(Arc<Connection>, bool), CallError> {
        let slot = &self.slots[index];
        let mut state = lock(&slot.state);
        while state.dialling {
            let dial = state.dials;
            let left = deadline.checked_duration_since(Instant::now());
            state = wait(&slot.dialled, state, left.ok_or(CallError::DeadlinePassed)?);
            if let (true, Some(failure)) = (state.dials != dial, &state.failure) {
                return Err(CallError::Broken(failure.clone()));
            }
        }
        if let Some(connection) = state.connection.as_ref().filter(|known| !known.is_closed()) {
            return Ok((Arc::clone(connection), true));
        }
        state.dialling = true;
        drop(state);
        let result = Connection::open(slot.server, self.timing, deadline)
            .and_then(|(connection, welcome)| {
                self.check_cluster(welcome.cluster).map(|()| connection)
            })
            .map(Arc::new);
        let mut state = lock(&slot.state);
        state.dialling = false;
        state.dials += 1;
        state.failure = result.as_ref().err().cloned();
        state.connection = result.as_ref().ok().cloned();
        slot.dialled.notify_all();
        result.map(|connection| (connection, false)).map_err(CallError::Broken)
    }

    fn check_cluster(&self, cluster: ClusterId) -> Result<(), Failure> {
        let mut known = lock(&self.cluster);
        match *known {
            Some(known) if known != cluster => Err(Failure {
                reason: format!("it belongs to group {cluster}, the others to {known}"),
                heard: None,
                ended: false,
            }),
            _ => {
                *known = Some(cluster);
                Ok(())
            }
        }
    }
}
