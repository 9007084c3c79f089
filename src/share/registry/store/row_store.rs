//! What the index needs of the store: reads, writes under a condition, and leases.
//!
//! [`Client`] is the store of a registry. Tests have one in memory, in which they decide what other
//! registries do between two calls, and when a lease ends.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Client;
use crate::client::{ClientError, Comparison, Condition, ReadOptions, Txn, TxnOp};
use crate::model::{LeaseId, Row, Timestamp};
use crate::share::registry::directory::DirectoryError;

pub(super) type Result<T> = std::result::Result<T, DirectoryError>;

/// A row that is to be stored, and the lease with which it goes.
#[derive(Clone, Debug)]
pub struct LeasedRow {
    pub key: String,
    pub value: Vec<u8>,
    pub lease: LeaseId,
}

/// Rows of the store. What is read is never older than what this store has read or written before,
/// and comes with its facts.
pub trait RowStore: Send + Sync {
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

    /// All these rows at once, and the version of the state that they are read in.
    ///
    /// # Errors
    /// The store does not answer.
    fn rows(&self, from: &str, to: &[u8], options: ReadOptions) -> Result<(Vec<Row>, Timestamp)>;

    /// Removes all versions of a key but the newest.
    ///
    /// # Errors
    /// The store does not answer.
    fn trim(&self, key: &str) -> Result<()>;

    /// Stores and removes keys, all or none, if the condition holds of `key` and the leases are
    /// alive. Returns their new version, or `None` if that was not so. Of a key given twice the
    /// last value counts, and one that is stored as well as removed is only stored.
    ///
    /// # Errors
    /// The store does not answer; the write may take effect later, if the condition holds then.
    fn write_if(
        &self,
        key: &str,
        condition: Condition,
        puts: Vec<LeasedRow>,
        removes: Vec<String>,
    ) -> Result<Option<Timestamp>>;

    /// Grants a lease that lives for this time unless it is kept alive.
    ///
    /// # Errors
    /// The store does not answer, or has no room for another lease.
    fn grant(&self, ttl: Duration) -> Result<LeaseId>;

    /// Gives leases their whole time again. Whether each is alive, in this order.
    ///
    /// # Errors
    /// The store does not answer.
    fn keep_alive(&self, leases: &[LeaseId]) -> Result<Vec<bool>>;

    /// Ends a lease, if it is alive, with all rows that were put with it.
    ///
    /// # Errors
    /// The store does not answer.
    fn revoke(&self, lease: LeaseId) -> Result<()>;
}

impl RowStore for Client {
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

    fn rows(&self, from: &str, to: &[u8], options: ReadOptions) -> Result<(Vec<Row>, Timestamp)> {
        let mut reading = Client::range(self, from, to, options)?;
        let rows = reading.by_ref().collect::<std::result::Result<_, _>>()?;
        let at = reading.at().unwrap_or_else(|| panic!("{from} was read as of no version"));
        Ok((rows, at))
    }

    fn trim(&self, key: &str) -> Result<()> {
        Ok(Client::trim(self, key).map(drop)?)
    }

    fn write_if(
        &self,
        key: &str,
        condition: Condition,
        puts: Vec<LeasedRow>,
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
        writes.extend(puts.into_iter().map(|LeasedRow { key, value, lease }| {
            let put = TxnOp::put_with_lease(&key, value, lease);
            (key, put)
        }));
        let then = writes.into_values().collect();
        match Client::txn(self, Txn { then, ..Txn::when(own) }) {
            Ok(done) => Ok(done.succeeded.then_some(done.timestamp)),
            // A lease has room for what its registry counts: others have put keys with it.
            Err(ClientError::NoLease | ClientError::LeaseFull) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        match self.grant_lease(ttl, None) {
            Ok(granted) => Ok(granted.id),
            Err(ClientError::TooManyLeases) => Err(DirectoryError::TooManyLeases),
            Err(error) => Err(error.into()),
        }
    }

    fn keep_alive(&self, leases: &[LeaseId]) -> Result<Vec<bool>> {
        let left = Client::keep_alive(self, leases.iter().copied())?;
        Ok(left.into_iter().map(|left| left.is_some()).collect())
    }

    fn revoke(&self, lease: LeaseId) -> Result<()> {
        Ok(self.revoke_lease(lease).map(drop)?)
    }
}
