//! Requests of asynchronous calls to the blocking client library.
//!
//! Each request under way is waited for by a thread of a bounded pool; one more call waits for one of
//! them, without a thread, and the one whose connection has asked for least gets the next (`turns`). A call that is given up (its deadline has passed, its client has reset it or is gone) has
//! its request cancelled, and keeps no thread.

use tonic::Status;

use super::policy::CallLimits;
use super::translate::status;
use super::turns::Threads;
use crate::client::{CancellationToken, Client, ClientError};
use crate::limits;

/// The way to the group. Clones share everything.
#[derive(Clone)]
pub(super) struct Calls {
    client: Client,
    threads: Threads,
}

/// Cancels a request when the call that waits for it is dropped: at its deadline, too.
struct CancelOnDrop(CancellationToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Calls {
    pub(super) fn new(client: Client) -> Calls {
        Calls { client, threads: Threads::new(limits::GATEWAY_THREADS_MAX) }
    }

    /// Makes a request of the client library.
    pub(super) async fn request<T: Send + 'static>(
        &self,
        call: &CallLimits,
        request: impl FnOnce(&Client) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, Status> {
        let client = self.client.clone();
        self.wait_for(call, move || request(&client)).await?.map_err(|error| status(&error))
    }

    /// Does something that waits for servers. The call keeps its place until the thread is free again, so that nobody
    /// takes more threads than places by giving calls up.
    pub(super) async fn wait_for<T: Send + 'static>(
        &self,
        call: &CallLimits,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let thread = self.threads.take(call.usage()).await;
        let cancelling = CancelOnDrop(CancellationToken::default());
        let (token, call) = (cancelling.0.clone(), call.clone());
        let waiting = tokio::task::spawn_blocking(move || {
            let done = token.within(work);
            drop((thread, call));
            done
        });
        waiting.await.map_err(|_| Status::unavailable("this gateway is stopping: use another one"))
    }
}
