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
    /// A session of its own for long writes. The leader keeps the writes of one session in order, and a long one waits
    /// for its turn: in the session of all other writes it would hold up those of every caller.
    long_writes: Client,
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
    pub(super) fn new(client: Client, long_writes: Client) -> Calls {
        Calls { client, long_writes, threads: Threads::new(limits::GATEWAY_THREADS_MAX) }
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

    /// As [`Calls::request`], a write of so many keys; of a range nobody knows how many it has.
    pub(super) async fn write_many<T: Send + 'static>(
        &self,
        call: &CallLimits,
        keys: Option<usize>,
        write: impl FnOnce(&Client) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, Status> {
        let is_short = keys.is_some_and(|keys| keys <= limits::SHORT_WRITE_KEYS_MAX);
        let client = if is_short { &self.client } else { &self.long_writes }.clone();
        self.wait_for(call, move || write(&client)).await?.map_err(|error| status(&error))
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
