//! What the index needs of the store: reads, and writes under a condition.
//!
//! [`Client`] is the store of a registry. Tests have one in memory, in which they decide what other
//! registries do between two calls.

use std::collections::BTreeMap;

use crate::Client;
use crate::client::{Comparison, Condition, ReadOptions, Txn, TxnOp};
use crate::model::{Row, Timestamp, Version};
use crate::share::registry::directory::DirectoryError;

pub(super) type Result<T> = std::result::Result<T, DirectoryError>;

/// Rows of the store. What is read is never older than what this store has read or written before.
pub trait RowStore: Send + Sync {
    /// The newest version of a key; `None` if it has none.
    ///
    /// # Errors
    /// The store does not answer.
    fn get(&self, key: &str) -> Result<Option<Version>>;

    /// One row for each key, in this order.
    ///
    /// # Errors
    /// The store does not answer.
    fn get_all(&self, keys: impl Iterator<Item = String>) -> Result<Vec<Row>>;

    /// The rows from one key to another, both included, in the state at the first of them.
    ///
    /// # Errors
    /// The store does not answer.
    fn range(
        &self,
        from: &str,
        to: &[u8],
        options: ReadOptions,
    ) -> Result<impl Iterator<Item = Result<Row>>>;

    /// Writes a key whatever it has.
    ///
    /// # Errors
    /// The store does not answer; the write may take effect later.
    fn put(&self, key: &str, value: Vec<u8>) -> Result<()>;

    /// Removes all versions of a key but the newest.
    ///
    /// # Errors
    /// The store does not answer.
    fn trim(&self, key: &str) -> Result<()>;

    /// Stores and removes keys, all or none, if the condition holds of `key`. Returns their new
    /// version, or `None` if it did not hold. Of a key given twice the last value counts, and one
    /// that is stored as well as removed is only stored.
    ///
    /// # Errors
    /// The store does not answer; the write may take effect later, if the condition holds then.
    fn write_if(
        &self,
        key: &str,
        condition: Condition,
        puts: Vec<(String, Vec<u8>)>,
        removes: Vec<String>,
    ) -> Result<Option<Timestamp>>;
}

impl RowStore for Client {
    fn get(&self, key: &str) -> Result<Option<Version>> {
        Ok(Client::get(self, key)?.found)
    }

    fn get_all(&self, keys: impl Iterator<Item = String>) -> Result<Vec<Row>> {
        Ok(Client::get_all(self, keys, ReadOptions::default())?
            .collect::<std::result::Result<_, _>>()?)
    }

    fn range(
        &self,
        from: &str,
        to: &[u8],
        options: ReadOptions,
    ) -> Result<impl Iterator<Item = Result<Row>>> {
        Ok(Client::range(self, from, to, options)?.map(|row| Ok(row?)))
    }

    fn put(&self, key: &str, value: Vec<u8>) -> Result<()> {
        Ok(Client::put(self, key, value).map(drop)?)
    }

    fn trim(&self, key: &str) -> Result<()> {
        Ok(Client::trim(self, key).map(drop)?)
    }

    fn write_if(
        &self,
        key: &str,
        condition: Condition,
        puts: Vec<(String, Vec<u8>)>,
        removes: Vec<String>,
    ) -> Result<Option<Timestamp>> {
        let own = Comparison::version(key);
        let own = match condition {
            Condition::Absent => Comparison::absent(key),
            Condition::Version(version) => own.equals(version),
        };
        // A transaction writes each key once.
        let mut writes: BTreeMap<String, TxnOp> = BTreeMap::new();
        // What is removed is not looked at, of which a transaction does only so much.
        let remove = |key: String| TxnOp::Del {
            key: key.into(),
            keeps_history: false,
            tells_previous: false,
        };
        writes.extend(removes.into_iter().map(|key| (key.clone(), remove(key))));
        writes.extend(puts.into_iter().map(|(key, value)| (key.clone(), TxnOp::put(key, value))));
        let then = writes.into_values().collect();
        let done = Client::txn(self, Txn { then, ..Txn::when(own) })?;
        Ok(done.succeeded.then_some(done.timestamp))
    }
}
