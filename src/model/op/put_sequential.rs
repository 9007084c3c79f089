//! `PUT_SEQUENTIAL`: a value under a key that ends in its own version, as ZooKeeper's sequential
//! nodes do.
//!
//! Only the leader knows the version, and no client can ask for it in advance: so the key is made
//! where the write is applied. Versions rise, so that the keys of one prefix stand in the order of
//! their writes.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::limits;
use crate::model::{Timestamp, WriteAnswer};

/// Digits of the version in a key: as many as the greatest 64-bit number has, with zeros in front,
/// so that keys sort like versions.
const DIGITS: usize = 20;

/// Stores a value under `prefix` and the version of the write in 20 digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutSequential {
    /// From 1 byte to 20 less than a key may have.
    pub prefix: Bytes,
    /// Any bytes, and perhaps none.
    pub value: Bytes,
}

impl PutSequential {
    /// The key that the write at `version` makes.
    pub fn key(&self, version: Timestamp) -> Bytes {
        let mut key = BytesMut::with_capacity(self.prefix.len() + DIGITS);
        key.put_slice(&self.prefix);
        key.put_slice(format!("{version:0DIGITS$}", version = version.0).as_bytes());
        key.freeze()
    }
}

impl Operation for PutSequential {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        show(&self.prefix, Some(&self.value));
    }

    fn check(&self) -> Result<(), String> {
        let (bytes, most) = (self.prefix.len(), limits::KEY_BYTES_MAX - DIGITS);
        if bytes > most {
            return Err(format!(
                "the prefix has {bytes} bytes and at most {most} are allowed, since {DIGITS} \
                 digits follow it: use a shorter one"
            ));
        }
        Ok(())
    }

    fn adds_data(&self) -> bool {
        true
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        let key = self.key(store.timestamp());
        store.put(&key, &self.value)?;
        Ok(OpApplied::Result(OpResult::Done))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        Some(OpResult::Done)
    }

    /// Nothing of a key that anybody has read before.
    fn learned(&self, _answer: &WriteAnswer) -> Learned<'_> {
        Learned::ManyKeys
    }
}
