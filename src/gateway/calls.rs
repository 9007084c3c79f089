//! Requests of calls to the group, by the client library.
//!
//! A call waits for its requests without a thread. Only so many requests are under way at once
//! ([`limits::GATEWAY_REQUESTS_MAX`]); one more call waits, and the one whose connection has asked
//! for least goes next (`turns`). The call's deadline goes with each request. A call that is given
//! up (its deadline has passed, its client has reset it or is gone) drops what waits for the
//! request, which cancels it and frees its place.

use std::future::Future;
use std::net::SocketAddr;

use tonic::Status;

use super::accounting::Call;
use super::policy::CallLimits;
use super::turns::{RequestPlace, Requests, Usage};
use crate::client::{AsyncClient, Client, ClientError};
use crate::limits::{self, GATEWAY_CLIENTS};

/// The way to the group. Clones share everything.
#[derive(Clone)]
pub(super) struct Calls {
    client: AsyncClient,
    /// A session of its own for writes of several keys, and one for long ones. The leader keeps the
    /// writes of one session in order, and these wait for their turns: in the session of all other
    /// writes they would hold up those of every caller, and a long one those of several keys.
    several_keys: AsyncClient,
    long_writes: AsyncClient,
    requests: Requests,
}

impl Calls {
    /// The clients are for reads and writes of one key, for writes of several, and for long writes.
    pub(super) fn new(clients: &[Client; GATEWAY_CLIENTS]) -> Calls {
        let requests = Requests::new(limits::GATEWAY_REQUESTS_MAX);
        let [client, several_keys, long_writes] = clients.each_ref().map(Client::asynchronous);
        Calls { client, several_keys, long_writes, requests }
    }

    /// The client of a call with one answer, which ends by the call's deadline. What it reads is
    /// charged to the call when it comes in, and held until the answer is made of it.
    pub(super) fn client(&self, call: &CallLimits) -> AsyncClient {
        within(&self.client, call).with_room(call.room(Call::hold))
    }

    /// The client of a call whose answer is a stream of what it reads, likewise.
    pub(super) fn reader(&self, call: &CallLimits) -> AsyncClient {
        within(&self.client, call).with_room(call.room(Call::hold_page))
    }

    /// The client of a call that watches. What a watch was shown and has not been taken is bounded
    /// by the library.
    pub(super) fn watcher(&self, call: &CallLimits) -> AsyncClient {
        within(&self.client, call)
    }

    /// The client of a call's write of so many keys, whose answer is a stream; of a range nobody
    /// knows how many it has.
    pub(super) fn writer(&self, call: &CallLimits, keys: Option<usize>) -> AsyncClient {
        within(self.session(keys), call).with_room(call.room(Call::hold_page))
    }

    /// The client of a call that writes so many keys, or reads, and has one answer made of all that
    /// it reads.
    pub(super) fn gatherer(&self, call: &CallLimits, keys: Option<usize>) -> AsyncClient {
        within(self.session(keys), call).with_room(call.room_for_all())
    }

    /// The servers of the group.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        self.client.blocking().servers()
    }

    /// The client of what is to be done though its call is over.
    pub(super) fn afterwards(&self) -> &AsyncClient {
        &self.client
    }

    /// In which session so many keys are written.
    fn session(&self, keys: Option<usize>) -> &AsyncClient {
        match keys {
            Some(..=1) => &self.client,
            Some(..=limits::SHORT_WRITE_ROWS_MAX) => &self.several_keys,
            Some(_) | None => &self.long_writes,
        }
    }

    /// Waits for a request of the client library when the call's turn has come.
    pub(super) async fn request<T>(
        &self,
        call: &CallLimits,
        request: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Status> {
        self.in_turn(call, request).await.map_err(|error| call.failed(&error))
    }

    /// Does work that is one request to the group at a time when the call's turn has come.
    pub(super) async fn in_turn<T>(&self, call: &CallLimits, work: impl Future<Output = T>) -> T {
        let _place = self.turn(call.usage()).await;
        work.await
    }

    /// Waits for the turn of what is done for a connection, whether its call is over or not. It
    /// lasts until it is dropped, and is for one request to the group at a time.
    pub(super) async fn turn(&self, usage: &Usage) -> RequestPlace {
        self.requests.take(usage).await
    }
}

fn within(client: &AsyncClient, call: &CallLimits) -> AsyncClient {
    match call.deadline() {
        Some(deadline) => client.until(deadline),
        None => client.clone(),
    }
}
