//! Requests of calls to the group, by the client library.
//!
//! A call waits for its requests without a thread. Only so many requests are under way at once
//! ([`limits::GATEWAY_REQUESTS_MAX`]); one more call waits, and the one whose connection has asked
//! for least goes next (`turns`). The call's deadline goes with each request. A call that is given
//! up (its deadline has passed, its client has reset it or is gone) drops what waits for the
//! request, which cancels it and frees its place.

use std::future::Future;

use tonic::Status;

use super::policy::CallLimits;
use super::turns::Requests;
use crate::client::{AsyncClient, Client, ClientError};
use crate::limits;

/// The way to the group. Clones share everything.
#[derive(Clone)]
pub(super) struct Calls {
    client: AsyncClient,
    /// A session of its own for long writes. The leader keeps the writes of one session in order,
    /// and a long one waits for its turn: in the session of all other writes it would hold up those
    /// of every caller.
    long_writes: AsyncClient,
    requests: Requests,
}

impl Calls {
    pub(super) fn new(client: &Client, long_writes: &Client) -> Calls {
        let requests = Requests::new(limits::GATEWAY_REQUESTS_MAX);
        let [client, long_writes] = [client, long_writes].map(Client::asynchronous);
        Calls { client, long_writes, requests }
    }

    /// The client of a call's reads and short writes, which end by its deadline.
    pub(super) fn client(&self, call: &CallLimits) -> AsyncClient {
        within(&self.client, call)
    }

    /// The client of a call's write of so many keys; of a range nobody knows how many it has.
    pub(super) fn writer(&self, call: &CallLimits, keys: Option<usize>) -> AsyncClient {
        let is_short = keys.is_some_and(|keys| keys <= limits::SHORT_WRITE_ROWS_MAX);
        within(if is_short { &self.client } else { &self.long_writes }, call)
    }

    /// Waits for a request of the client library when the call's turn has come. What came of it is
    /// to be charged to the call within: until then it is bounded by the number of requests alone.
    pub(super) async fn request<T>(
        &self,
        call: &CallLimits,
        request: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Status> {
        let _place = self.requests.take(call.usage()).await;
        request.await.map_err(|error| call.failed(&error))
    }
}

fn within(client: &AsyncClient, call: &CallLimits) -> AsyncClient {
    match call.deadline() {
        Some(deadline) => client.until(deadline),
        None => client.clone(),
    }
}
