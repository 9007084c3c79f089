//! The asynchronous face of the client library.
//!
//! It brings no runtime: its futures are completed by the client's own thread, or by another that
//! is about to wait for a call of the client, and wait with whatever executor polls them. A future
//! that is dropped gives its call up: what has not left for a server is never sent, and a write
//! that has left may still take effect. Whatever else holds of the blocking calls holds here.

use std::time::Instant;

use super::core::Retry;
use super::rows::KeyRange;
use super::writes::check_pairs;
use super::{
    Client, ClientError, Got, PutOk, ReadOptions, Row, Rows, Written, WrittenMany, check_key,
    check_keys, check_value,
};
use crate::model::{Del, Put, Trim};
use crate::wire::message::ServerStatus;

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
/// assert!(client.get("title").await?.timestamp >= written.timestamp);
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

    /// Asks any server to describe itself, as [`Client::any_status`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn any_status(&self) -> Result<ServerStatus, ClientError> {
        self.0.status_by(super::Target::AnyServer, Retry::UntilDeadline).await
    }

    /// Reads the newest value of a key, as [`Client::get`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Got, ClientError> {
        self.read(key, ReadOptions::default()).await
    }

    /// Reads a key, newest or as of a version, as [`Client::read`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn read(
        &self,
        key: impl AsRef<[u8]>,
        options: ReadOptions,
    ) -> Result<Got, ClientError> {
        self.0.get_as(check_key(key.as_ref())?, options).await
    }

    /// Stores a new newest version of a key, as [`Client::put`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<PutOk, ClientError> {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        self.0.put_with(key, value, Retry::UntilDeadline).await
    }

    /// Stores a version, and tells what the key had before, as [`Client::replace`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn replace(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Written, ClientError> {
        let (key, value) = (check_key(key.as_ref())?, check_value(value.as_ref())?);
        self.0.write_one(key.clone(), Put { key, value, tells_previous: true }).await
    }

    /// Removes a key, and tells what it had, as [`Client::del`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn del(&self, key: impl AsRef<[u8]>) -> Result<Written, ClientError> {
        let key = check_key(key.as_ref())?;
        self.0.write_one(key.clone(), Del { key, tells_previous: true }).await
    }

    /// Removes every version of a key but the newest, as [`Client::trim`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn trim(&self, key: impl AsRef<[u8]>) -> Result<Written, ClientError> {
        let key = check_key(key.as_ref())?;
        self.0.write_one(key.clone(), Trim { key, tells_previous: true }).await
    }

    /// Stores a value under each key, all or none, as [`Client::put_all`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn put_all<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<AsyncWrittenMany, ClientError> {
        let pairs = check_pairs(pairs)?;
        self.0.put_pairs(pairs).await.map(AsyncWrittenMany::from)
    }

    /// Removes each key, all or none, as [`Client::del_all`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn del_all<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<AsyncWrittenMany, ClientError> {
        let keys = check_keys(keys)?;
        self.0.del_keys(keys).await.map(AsyncWrittenMany::from)
    }

    /// Removes the keys of a range, as [`Client::del_scan`].
    ///
    /// # Errors
    /// Those of the blocking call.
    pub async fn del_scan(&self, range: KeyRange) -> Result<AsyncWrittenMany, ClientError> {
        self.0.del_keys_of(range).await.map(AsyncWrittenMany::from)
    }

    /// The keys of a range that have a value, as by [`Client::scan`].
    pub fn scan(&self, range: KeyRange, options: ReadOptions) -> AsyncRows {
        AsyncRows(self.0.scan(range, options))
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
        self.0.get_all(keys, options).map(AsyncRows)
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
        self.0.versions(key, options).map(AsyncRows)
    }
}

/// A [`WrittenMany`] whose rows do not block.
#[derive(Debug)]
pub struct AsyncWrittenMany {
    /// The version that the write made; of a removal, its time.
    pub timestamp: crate::model::Timestamp,
    /// The server that answered the write.
    pub server: std::net::SocketAddr,
    /// What the keys had just before, as [`WrittenMany::rows`] tells it.
    pub rows: AsyncRows,
}

impl From<WrittenMany> for AsyncWrittenMany {
    fn from(WrittenMany { timestamp, server, rows }: WrittenMany) -> AsyncWrittenMany {
        AsyncWrittenMany { timestamp, server, rows: AsyncRows(rows) }
    }
}

/// The rows of a long read, as [`Rows`], whose pages are waited for without blocking.
#[derive(Debug)]
pub struct AsyncRows(Rows);

impl AsyncRows {
    /// The next row; `None` after the last one, and after an error.
    pub async fn next(&mut self) -> Option<Result<Row, ClientError>> {
        self.0.advance().await
    }

    /// No more than the first so many rows, as by [`Rows::limit`].
    pub fn limit(self, rows: u64) -> AsyncRows {
        AsyncRows(self.0.limit(rows))
    }

    /// Rows without their values, as by [`Rows::keys_only`].
    pub fn keys_only(self) -> AsyncRows {
        AsyncRows(self.0.keys_only())
    }
}
