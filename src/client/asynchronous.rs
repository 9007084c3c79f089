//! The asynchronous face of the client library.
//!
//! It brings no runtime: its futures are completed by the client's own thread, or by another that
//! is about to wait for a call of the client, and wait with whatever executor polls them. A future
//! that is dropped gives its call up: what has not left for a server is never sent, and a write
//! that has left may still take effect. Whatever else holds of the blocking calls holds here; those
//! with one answer are made by `faces`, those with rows stand here.

use std::time::Instant;

use super::rows::{AsyncRows, KeyRange};
use super::{Client, ClientError, LeaseId, ReadOptions};

/// A [`Client`] whose calls are futures. Clones share everything, as clones of a client do.
///
/// ```
/// use acervo::Client;
///
/// # let dir = tempfile::tempdir()?;
/// # let group = acervo::LocalGroup::start(dir.path())?;
/// let client = Client::connect(group.servers())?.asynchronous();
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let written = client.put("title", "Dom Casmurro").await?;
/// assert!(client.get("title").await?.timestamp() >= Some(written.timestamp));
/// # Ok::<(), acervo::client::ClientError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct AsyncClient(Client);

impl Client {
    /// The same client, with calls that do not block.
    pub fn asynchronous(&self) -> AsyncClient {
        AsyncClient(self.clone())
    }
}

impl AsyncClient {
    /// The same client, with calls that block.
    pub fn blocking(&self) -> Client {
        self.0.clone()
    }

    /// A clone whose calls end at `deadline` at the latest, as [`Client::until`] makes one.
    pub fn until(&self, deadline: Instant) -> AsyncClient {
        AsyncClient(self.0.until(deadline))
    }

    /// A clone whose reads ask whether their answers may be kept, as [`Client::with_room`] makes
    /// one.
    pub fn with_room(&self, room: impl Fn(usize) -> bool + Send + Sync + 'static) -> AsyncClient {
        AsyncClient(self.0.with_room(room))
    }

    pub(super) fn client(&self) -> &Client {
        &self.0
    }

    /// The keys of a range that have a value, as by [`Client::scan`].
    pub fn scan(&self, range: KeyRange, options: ReadOptions) -> AsyncRows {
        self.0.scan(range, options).into()
    }

    /// One row for each key, as [`Client::get_all`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub fn get_all<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: ReadOptions,
    ) -> Result<AsyncRows, ClientError> {
        self.0.get_all(keys, options).map(AsyncRows::from)
    }

    /// The keys that go with a lease, as [`Client::lease_keys`].
    pub fn lease_keys(&self, id: LeaseId, options: ReadOptions) -> AsyncRows {
        self.0.lease_keys(id, options).into()
    }

    /// The versions of a key, newest first, as [`Client::versions`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub fn versions(
        &self,
        key: impl AsRef<[u8]>,
        options: ReadOptions,
    ) -> Result<AsyncRows, ClientError> {
        self.0.versions(key, options).map(AsyncRows::from)
    }
}
