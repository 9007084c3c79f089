//! What etcd refuses of a transaction before anything of it runs, in etcd's order.

use std::collections::HashSet;

use bytes::Bytes;
use tonic::Status;

use super::super::super::interface::etcd::etcdserverpb::request_op::Request as Op;
use super::super::super::interface::etcd::etcdserverpb::{PutRequest, RequestOp, TxnRequest};
use super::super::errors::EtcdError;
use super::super::range::{KeySpan, Selection};
use crate::limits::{TRANSACTION_LOOKS_MAX, TRANSACTIONS_WITHIN_MAX};

/// Comparisons of a transaction, and operations of each of its branches, at most: etcd's own
/// default. What is within another counts as much less as the one around it has.
const OPS_MAX: usize = 128;

/// Refuses what can never be carried out.
///
/// # Errors
/// Etcd's.
pub(super) fn check(txn: &TxnRequest) -> Result<(), Status> {
    check_parts(txn, OPS_MAX)?;
    let transactions = transactions(txn);
    if transactions > TRANSACTIONS_WITHIN_MAX {
        return Err(Status::invalid_argument(format!(
            "the transaction is made of {transactions} and at most {TRANSACTIONS_WITHIN_MAX} are \
             allowed: make it several transactions"
        )));
    }
    let looks = looks(txn).len();
    if looks > TRANSACTION_LOOKS_MAX {
        return Err(Status::invalid_argument(format!(
            "the transaction compares, reads and deletes ranges {looks} times and at most \
             {TRANSACTION_LOOKS_MAX} are allowed: make it several transactions"
        )));
    }
    Written::by(&txn.success)?;
    Written::by(&txn.failure)?;
    Ok(())
}

/// The ends of the ranges that the store looks at, one for each time, on all paths together.
/// Ranges as of a revision are read beside the transaction.
fn looks(txn: &TxnRequest) -> Vec<&Bytes> {
    let mut ends: Vec<&Bytes> = txn.compare.iter().map(|compare| &compare.range_end).collect();
    for op in txn.success.iter().chain(&txn.failure).filter_map(|op| op.request.as_ref()) {
        match op {
            Op::RequestRange(range) if range.revision <= 0 => ends.push(&range.range_end),
            Op::RequestDeleteRange(delete) => ends.push(&delete.range_end),
            Op::RequestTxn(txn) => ends.append(&mut looks(txn)),
            Op::RequestRange(_) | Op::RequestPut(_) => {}
        }
    }
    ends
}

/// Bytes that the store's transaction takes up beside the request that it is made of: the ends of
/// its ranges.
pub(super) fn bytes_beside(txn: &TxnRequest) -> usize {
    looks(txn).into_iter().map(KeySpan::bytes_beside).sum()
}

/// How many transactions there are, this one and those within it.
fn transactions(txn: &TxnRequest) -> usize {
    let within = txn.success.iter().chain(&txn.failure).map(|op| match &op.request {
        Some(Op::RequestTxn(txn)) => transactions(txn),
        _ => 0,
    });
    1 + within.sum::<usize>()
}

fn check_parts(txn: &TxnRequest, ops_max: usize) -> Result<(), Status> {
    let most = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if most > ops_max {
        return Err(EtcdError::TooManyOps.into());
    }
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(EtcdError::KeyEmpty.into());
    }
    txn.success.iter().chain(&txn.failure).try_for_each(|op| check_op(op, ops_max - most))
}

fn check_op(op: &RequestOp, ops_max: usize) -> Result<(), Status> {
    match &op.request {
        Some(Op::RequestRange(range)) => {
            Selection::of(range)?;
            KeySpan::of(&range.key, &range.range_end).map(drop)
        }
        Some(Op::RequestPut(put)) => check_put(put),
        Some(Op::RequestDeleteRange(delete)) => {
            KeySpan::of(&delete.key, &delete.range_end).map(drop)
        }
        Some(Op::RequestTxn(txn)) => check_parts(txn, ops_max),
        // So etcd says of an operation that is none.
        None => Err(EtcdError::KeyNotFound.into()),
    }
}

/// Refuses a put that contradicts itself.
///
/// # Errors
/// Etcd's.
pub(in crate::gateway::etcd) fn check_put(put: &PutRequest) -> Result<(), Status> {
    KeySpan::of(&put.key, &Bytes::new())?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(EtcdError::ValueProvided.into());
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(EtcdError::LeaseProvided.into());
    }
    Ok(())
}

/// What a branch may write: no key is put twice, or put and deleted.
#[derive(Default)]
struct Written<'a> {
    puts: HashSet<&'a Bytes>,
    /// In order; none touches another.
    deleted: Vec<KeySpan>,
}

impl<'a> Written<'a> {
    fn by(branch: &'a [RequestOp]) -> Result<Written<'a>, Status> {
        let mut written = Written::default();
        let ops = || branch.iter().filter_map(|op| op.request.as_ref());
        for op in ops() {
            if let Op::RequestDeleteRange(delete) = op {
                written.deleted.extend(KeySpan::of(&delete.key, &delete.range_end)?);
            }
        }
        written.join_deleted();
        for op in ops() {
            let Op::RequestTxn(txn) = op else { continue };
            let [then, or_else] = [Written::by(&txn.success)?, Written::by(&txn.failure)?];
            // Of its branches only one is taken, so that both may put a key.
            let both: HashSet<&Bytes> = then.puts.union(&or_else.puts).copied().collect();
            both.into_iter().try_for_each(|key| written.put(key))?;
            written.deleted.extend(then.deleted.into_iter().chain(or_else.deleted));
            written.join_deleted();
        }
        for op in ops() {
            if let Op::RequestPut(put) = op {
                written.put(&put.key)?;
            }
        }
        Ok(written)
    }

    /// Joins those that overlap, so that a key is soon found among thousands.
    fn join_deleted(&mut self) {
        self.deleted.sort_unstable_by(|one, other| one.from.cmp(&other.from));
        self.deleted.dedup_by(|next, last| {
            let overlaps = next.from <= last.to;
            if overlaps && next.to > last.to {
                last.to = next.to.clone();
            }
            overlaps
        });
    }

    fn put(&mut self, key: &'a Bytes) -> Result<(), Status> {
        let before = self.deleted.partition_point(|span| span.to < *key);
        let is_deleted = self.deleted.get(before).is_some_and(|span| span.from <= *key);
        match is_deleted || !self.puts.insert(key) {
            true => Err(EtcdError::DuplicateKey.into()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::interface::etcd::etcdserverpb::RangeRequest;
    use super::*;

    fn ranges(count: usize, revision: i64) -> Vec<RequestOp> {
        let (key, range_end) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let range = RangeRequest { key, range_end, revision, ..RangeRequest::default() };
        let op = |range| RequestOp { request: Some(Op::RequestRange(range)) };
        vec![op(range); count]
    }

    /// Transactions of so many ranges within one.
    fn within(transactions: usize, of_each: &[RequestOp]) -> TxnRequest {
        let txn = TxnRequest { success: of_each.to_vec(), ..TxnRequest::default() };
        let op = RequestOp { request: Some(Op::RequestTxn(txn)) };
        TxnRequest { success: vec![op; transactions], ..TxnRequest::default() }
    }

    /// A few hundred kilobytes of such a request made a transaction of 70 MB, which then waited for
    /// its turn.
    #[test]
    fn more_ranges_than_a_transaction_may_have_are_refused_before_it_is_made() {
        let refused = check(&within(63, &ranges(64, 0))).unwrap_err();
        assert!(refused.message().contains("4032 times and at most 1000"), "{refused}");
        let most = within(50, &ranges(20, 0));
        assert!(check(&most).is_ok());
        assert!(bytes_beside(&most) >= 1000 * 4096, "and what it takes up is known");
        assert!(check(&within(63, &ranges(64, 7))).is_ok(), "these are read beside it");
    }
}
