//! What a transaction of etcd's means to the store, and the store's answer to etcd's clients: pure
//! functions.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use tonic::Status;

use super::super::super::interface::etcd::etcdserverpb::compare::{
    CompareResult, CompareTarget, TargetUnion,
};
use super::super::super::interface::etcd::etcdserverpb::request_op::Request as Op;
use super::super::super::interface::etcd::etcdserverpb::response_op::Response as OpAnswer;
use super::super::super::interface::etcd::etcdserverpb::{
    Compare, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use super::super::super::interface::etcd::mvccpb::KeyValue;
use super::super::range::{KeySpan, Selection, key_value};
use super::txn_keys;
use crate::client::{
    Comparison, LeaseId, Relation, Row, Test, Timestamp, Txn, TxnDone, TxnKeys, TxnOp, TxnOutput,
    Version,
};
use crate::limits::TRANSACTION_ROWS_MAX;

/// What is said of a lease that there is not.
pub(super) const NO_LEASE: &str = "etcdserver: requested lease not found";

/// What keys had that are to keep a part of it.
pub(super) type Kept = HashMap<Bytes, Option<Version>>;
/// The answers of ranges as of a revision.
pub(super) type Past = HashMap<RangeRequest, RangeResponse>;

/// What a transaction has come to.
pub(super) struct TxnCarriedOut {
    /// The revision of its writes, or as of which it has read.
    pub(super) at: Timestamp,
    pub(super) succeeded: bool,
    pub(super) results: Vec<TxnOutput>,
    /// Whether it may have written.
    pub(super) writes: bool,
}

/// What is said of a transaction that has written when its results cannot be told: never what would
/// have a client do it again.
pub(super) fn done_untold(at: Timestamp, why: &Status) -> Status {
    Status::unknown(format!(
        "the transaction is done, at revision {at}; its results cannot be told: {}",
        why.message()
    ))
}

/// All operations, those of transactions within and of both branches included.
fn each_op<'a>(txn: &'a TxnRequest, show: &mut dyn FnMut(&'a Op)) {
    for op in txn.success.iter().chain(&txn.failure).filter_map(|op| op.request.as_ref()) {
        show(op);
        if let Op::RequestTxn(txn) = op {
            each_op(txn, show);
        }
    }
}

/// Whether it writes on some path.
pub(super) fn writes(txn: &TxnRequest) -> bool {
    let mut writes = false;
    each_op(txn, &mut |op| {
        writes |= matches!(op, Op::RequestPut(_) | Op::RequestDeleteRange(_));
    });
    writes
}

/// The ranges that are asked for as of a revision.
pub(super) fn past_ranges(txn: &TxnRequest) -> Vec<&RangeRequest> {
    let mut ranges = Vec::new();
    each_op(txn, &mut |op| match op {
        Op::RequestRange(range) if range.revision > 0 => ranges.push(range),
        _ => {}
    });
    ranges
}

/// The keys that are put and keep a part of what they have.
pub(super) fn ignoring(txn: &TxnRequest) -> Vec<Bytes> {
    let mut keys = Vec::new();
    each_op(txn, &mut |op| match op {
        Op::RequestPut(put) if put.ignore_value || put.ignore_lease => keys.push(put.key.clone()),
        _ => {}
    });
    keys
}

/// The transaction as the store has it.
///
/// # Errors
/// A key that no server takes.
pub(super) fn txn(request: &TxnRequest, kept: &Kept) -> Result<Txn, Status> {
    let compare = request.compare.iter().map(comparison).filter_map(Result::transpose);
    Ok(Txn {
        compare: compare.collect::<Result<_, _>>()?,
        then: ops(&request.success, kept)?,
        or_else: ops(&request.failure, kept)?,
    })
}

/// The same, if the keys have not changed.
pub(super) fn unchanged_since(kept: &Kept, txn: Txn) -> Txn {
    let mut guarded = Txn::default();
    for (key, found) in kept {
        let version = found.as_ref().map_or(Timestamp::ZERO, |found| found.timestamp);
        guarded = guarded.and(Comparison::version(key).equals(version));
    }
    guarded.then(txn)
}

/// What the transaction within has come to; `None` if the keys had changed.
pub(super) fn inner(done: TxnDone) -> Option<TxnCarriedOut> {
    let (at, within) = (done.timestamp, done.results.into_iter().next());
    match within {
        Some(TxnOutput::Txn { succeeded, results }) if done.succeeded => {
            Some(TxnCarriedOut { at, succeeded, results, writes: true })
        }
        _ => None,
    }
}

fn ops(requests: &[RequestOp], kept: &Kept) -> Result<Vec<TxnOp>, Status> {
    let mut ops = Vec::new();
    for request in requests.iter().filter_map(|op| op.request.as_ref()) {
        match request {
            Op::RequestRange(range) => ops.extend(range_ops(range)?),
            Op::RequestPut(put) => ops.push(put_op(put, kept)),
            Op::RequestDeleteRange(delete) => {
                let span = KeySpan::of(&delete.key, &delete.range_end)?;
                ops.extend(span.map(|KeySpan { from, to }| TxnOp::DelRange {
                    from,
                    to,
                    keeps_history: true,
                    tells_previous: delete.prev_kv,
                }));
            }
            Op::RequestTxn(within) => ops.push(txn(within, kept)?.into()),
        }
    }
    Ok(ops)
}

/// One operation for the rows, and one for their number where not all are read; none where there is
/// nothing to read of this state.
fn range_ops(request: &RangeRequest) -> Result<Vec<TxnOp>, Status> {
    let span = KeySpan::of(&request.key, &request.range_end)?;
    let Some(KeySpan { from, to }) = span.filter(|_| request.revision <= 0) else {
        return Ok(Vec::new());
    };
    let selection = Selection::of(request)?;
    let range = |rows_max, counts_only| TxnOp::Range {
        from: from.clone(),
        to: to.clone(),
        rows_max,
        keys_only: counts_only || !selection.needs_values(),
        reverse: selection.is_reversed(),
        counts_only,
    };
    if selection.count_only {
        return Ok(vec![range(0, true)]);
    }
    Ok(match selection.rows_enough() {
        None => vec![range(u32::MAX, false)],
        Some(enough) => {
            vec![range(u32::try_from(enough).unwrap_or(u32::MAX), false), range(0, true)]
        }
    })
}

fn put_op(put: &PutRequest, kept: &Kept) -> TxnOp {
    let (key, mut value) = (put.key.clone(), put.value.clone());
    let mut lease = Some(LeaseId(put.lease as u64)).filter(|lease| lease.0 != 0);
    if put.ignore_value || put.ignore_lease {
        match kept.get(&put.key).and_then(Option::as_ref) {
            Some(found) => {
                if put.ignore_value {
                    value = found.value.clone();
                }
                if put.ignore_lease {
                    lease = found.facts.and_then(|facts| facts.lease);
                }
            }
            // There is nothing to keep, so the transaction must come to nothing on this path.
            None => lease = Some(LeaseId::NOBODYS),
        }
    }
    TxnOp::Put { key, value, tells_previous: put.prev_kv, lease }
}

/// A comparison; `None` for one that always holds.
fn comparison(compare: &Compare) -> Result<Option<Comparison>, Status> {
    let unknown = |_| Status::invalid_argument("the comparison is of a kind that there is not");
    let relation = match CompareResult::try_from(compare.result).map_err(unknown)? {
        CompareResult::Equal => Relation::Equal,
        CompareResult::Greater => Relation::Greater,
        CompareResult::Less => Relation::Less,
        CompareResult::NotEqual => Relation::NotEqual,
    };
    let span = KeySpan::of(&compare.key, &compare.range_end)?;
    let target = CompareTarget::try_from(compare.target).map_err(unknown)?;
    // As in etcd, what is of another kind than the target says nothing.
    let number = || match (target, &compare.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(number)))
        | (CompareTarget::Create, Some(TargetUnion::CreateRevision(number)))
        | (CompareTarget::Mod, Some(TargetUnion::ModRevision(number)))
        | (CompareTarget::Lease, Some(TargetUnion::Lease(number))) => *number,
        _ => 0,
    };
    let value = match &compare.target_union {
        Some(TargetUnion::Value(value)) => value.clone(),
        _ => Bytes::new(),
    };
    let always = match target {
        CompareTarget::Value => {
            let never = span.is_none() || (relation == Relation::Less && value.is_empty());
            never.then_some(false)
        }
        // No key has a negative number of anything; a range without keys has zeros.
        _ if number() < 0 => Some(matches!(relation, Relation::NotEqual | Relation::Greater)),
        _ if number() == 0 && relation == Relation::Less => Some(false),
        _ if span.is_none() => Some(relation.holds(&0, &number())),
        _ => None,
    };
    let test = match target {
        CompareTarget::Version => Test::Count(relation, number() as u64),
        CompareTarget::Create => Test::Created(relation, Timestamp(number())),
        CompareTarget::Mod => Test::Version(relation, Timestamp(number())),
        CompareTarget::Lease => Test::Lease(relation, number() as u64),
        CompareTarget::Value => Test::Value(relation, value),
    };
    Ok(match (always, span) {
        (Some(true), _) => None,
        (Some(false), _) | (None, None) => Some(never(&compare.key)),
        (None, Some(span)) => Some(Comparison { keys: txn_keys(span), test }),
    })
}

/// A comparison that never holds: no key was written so often.
fn never(key: &Bytes) -> Comparison {
    Comparison { keys: TxnKeys::One(key.clone()), test: Test::Count(Relation::Equal, u64::MAX) }
}

/// The answer, without its header.
///
/// # Errors
/// A range has more keys than a transaction tells.
pub(super) fn answer(
    request: &TxnRequest,
    results: Vec<TxnOutput>,
    succeeded: bool,
    past: &Past,
    at: Timestamp,
) -> Result<TxnResponse, Status> {
    let branch = if succeeded { &request.success } else { &request.failure };
    let mut results = results.into_iter();
    let mut responses = Vec::with_capacity(branch.len());
    for op in branch {
        let response = op.request.as_ref().map(|op| op_answer(op, &mut results, past, at));
        responses.push(ResponseOp { response: response.transpose()? });
    }
    Ok(TxnResponse { header: None, succeeded, responses })
}

/// The header of an operation's own answer.
fn op_header(at: Timestamp) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision: at.0, ..ResponseHeader::default() })
}

fn op_answer(
    op: &Op,
    results: &mut impl Iterator<Item = TxnOutput>,
    past: &Past,
    at: Timestamp,
) -> Result<OpAnswer, Status> {
    Ok(match op {
        Op::RequestRange(range) => OpAnswer::ResponseRange(range_answer(range, results, past, at)?),
        Op::RequestPut(put) => {
            let Some(TxnOutput::Put { previous }) = results.next() else { return Err(unfit()) };
            let prev_kv = previous.map(|found| key_value(put.key.clone(), found));
            OpAnswer::ResponsePut(PutResponse { header: op_header(at), prev_kv })
        }
        Op::RequestDeleteRange(delete) => {
            let mut answer = DeleteRangeResponse { header: op_header(at), ..Default::default() };
            if KeySpan::of(&delete.key, &delete.range_end)?.is_some() {
                let Some(TxnOutput::DelRange { removed, rows }) = results.next() else {
                    return Err(unfit());
                };
                if delete.prev_kv && (rows.len() as u64) < removed {
                    return Err(too_long());
                }
                answer.deleted = removed as i64;
                answer.prev_kvs = key_values(rows);
            }
            OpAnswer::ResponseDeleteRange(answer)
        }
        Op::RequestTxn(within) => {
            let Some(TxnOutput::Txn { succeeded, results }) = results.next() else {
                return Err(unfit());
            };
            let within = answer(within, results, succeeded, past, at)?;
            OpAnswer::ResponseTxn(TxnResponse { header: op_header(at), ..within })
        }
    })
}

/// Bytes of the ranges of the past that a transaction tells at most, whichever branches it takes.
pub(super) fn told_of_past(request: &TxnRequest, past: &Past) -> usize {
    let ops = request.success.iter().chain(&request.failure);
    let of_op = |op: &RequestOp| match &op.request {
        Some(Op::RequestRange(range)) => past.get(range).map_or(0, RangeResponse::encoded_len),
        Some(Op::RequestTxn(within)) => told_of_past(within, past),
        Some(Op::RequestPut(_) | Op::RequestDeleteRange(_)) | None => 0,
    };
    ops.map(of_op).fold(0, usize::saturating_add)
}

fn range_answer(
    request: &RangeRequest,
    results: &mut impl Iterator<Item = TxnOutput>,
    past: &Past,
    at: Timestamp,
) -> Result<RangeResponse, Status> {
    let header = op_header(at);
    if request.revision > 0 {
        let read = past.get(request).cloned().unwrap_or_default();
        return Ok(RangeResponse { header, ..read });
    }
    let selection = Selection::of(request)?;
    if KeySpan::of(&request.key, &request.range_end)?.is_none() {
        return Ok(RangeResponse { header, ..RangeResponse::default() });
    }
    let Some(TxnOutput::Range { rows, mut count, has_more }) = results.next() else {
        return Err(unfit());
    };
    let enough = selection.rows_enough().filter(|_| !selection.count_only);
    let is_cut = match enough {
        None => has_more,
        Some(enough) => {
            let Some(TxnOutput::Range { count: all, has_more: is_cut, .. }) = results.next() else {
                return Err(unfit());
            };
            count = all;
            is_cut || (has_more && (rows.len() as u64) < enough)
        }
    };
    if is_cut {
        return Err(too_long());
    }
    let mut kvs = key_values(rows);
    kvs.retain(|row| selection.keeps(row));
    Ok(selection.answer(kvs, count, header.unwrap_or_default()))
}

fn key_values(rows: Vec<Row>) -> Vec<KeyValue> {
    let of_row = |Row { key, found }: Row| found.map(|found| key_value(key, found));
    rows.into_iter().filter_map(of_row).collect()
}

fn too_long() -> Status {
    Status::invalid_argument(format!(
        "a range of a transaction has more than {TRANSACTION_ROWS_MAX} keys, or more bytes of keys \
         than a transaction tells: read it outside of the transaction, or name less of it"
    ))
}

/// The client library makes sure that results fit their operations.
fn unfit() -> Status {
    Status::internal("the transaction's results are not those of its operations")
}
