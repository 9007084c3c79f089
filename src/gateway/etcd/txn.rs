//! Txn: etcd's transactions as the store's.
//!
//! `checks` refuses what etcd refuses before anything runs, and `translate` makes of the rest a
//! transaction of the store, and of what that has come to the answer. Two things an operation can
//! ask for have no place in one of the store's, and are read before:
//!
//! - *A range as of a revision.* The past stays as it is, so it may be read at any time.
//! - *The value or the lease that a key has already* (`ignore_value`, `ignore_lease`). The
//!   transaction is done under the condition that the keys have not changed since they were read;
//!   when they have, they are read again.

mod checks;
mod translate;

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use tonic::Status;

pub(super) use self::checks::check_put;
use self::translate::{Kept, Past, TxnCarriedOut};
use super::super::interface::etcd::etcdserverpb::request_op::Request as Op;
use super::super::interface::etcd::etcdserverpb::response_op::Response as OpAnswer;
use super::super::interface::etcd::etcdserverpb::{
    LeaseTimeToLiveRequest, PutRequest, PutResponse, RequestOp, TxnRequest, TxnResponse,
};
use super::super::policy::CallLimits;
use super::EtcdServices;
use super::errors::{EtcdError, failed, no_room};
use super::range::KeySpan;
use crate::client::{ReadOptions, Txn, TxnDone, TxnKeys, TxnOp};

/// How often a transaction is tried whose keys keep changing between a read and it. With a handful
/// of clients that write one key a few are enough.
const TRIES_MAX: usize = 32;

impl EtcdServices {
    /// Carries out a transaction.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn run_txn(
        &self,
        call: &CallLimits,
        request: TxnRequest,
    ) -> Result<TxnResponse, Status> {
        checks::check(&request)?;
        if !call.hold(checks::bytes_beside(&request)) {
            return Err(EtcdError::TooManyRequests.into());
        }
        let (done, past) = self.carry_out(call, &request).await?;
        let TxnCarriedOut { at, succeeded, results, writes } = done;
        let header = Some(self.headers().at(at));
        // A range of the past is read once, and told as often as it is asked for.
        let has_room = call.hold(translate::told_of_past(&request, &past));
        let answer = match has_room {
            true => translate::answer(&request, results, succeeded, &past, at),
            false => Err(no_room()),
        };
        let answer = answer.and_then(|answer| match call.hold(answer.encoded_len()) {
            true => Ok(TxnResponse { header, ..answer }),
            false => Err(no_room()),
        });
        answer.map_err(|why| if writes { translate::done_untold(at, &why) } else { why })
    }

    /// Writes a key by a transaction of its own.
    pub(super) async fn put_by_txn(
        &self,
        call: &CallLimits,
        request: PutRequest,
    ) -> Result<PutResponse, Status> {
        let (lease, absent) = (request.lease, Status::from(EtcdError::KeyNotFound));
        let answer = match self.run_txn(call, alone(Op::RequestPut(request))).await {
            // Of a put that is no transaction's etcd looks for the lease first.
            Err(status) if lease != 0 && status.message() == absent.message() => {
                let lease = LeaseTimeToLiveRequest { id: lease, keys: false };
                let shown = self.describe_lease(call, lease).await?;
                let is_missing = shown.ttl < 0;
                return Err(if is_missing { EtcdError::LeaseNotFound.into() } else { status });
            }
            answer => answer?,
        };
        match answer.responses.into_iter().next().and_then(|answer| answer.response) {
            Some(OpAnswer::ResponsePut(put)) => Ok(PutResponse { header: answer.header, ..put }),
            other => unreachable!("a put has come to {other:?}"),
        }
    }

    async fn carry_out(
        &self,
        call: &CallLimits,
        request: &TxnRequest,
    ) -> Result<(TxnCarriedOut, Past), Status> {
        let past = self.read_past(call, request).await?;
        let ignoring = translate::ignoring(request);
        if ignoring.is_empty() {
            let txn = translate::txn(request, &Kept::new())?;
            let TxnDone { timestamp, succeeded, results, .. } = self.do_txn(call, txn).await?;
            let writes = translate::writes(request);
            return Ok((TxnCarriedOut { at: timestamp, succeeded, results, writes }, past));
        }
        for _ in 0..TRIES_MAX {
            let kept = self.read_kept(call, &ignoring).await?;
            let txn = translate::unchanged_since(&kept, translate::txn(request, &kept)?);
            let is_absent = kept.values().any(Option::is_none);
            match self.do_txn(call, txn).await {
                // A put of a key that is not there has been given a lease that is not there.
                Err(status) if is_absent && status.message() == translate::NO_LEASE => {
                    return Err(EtcdError::KeyNotFound.into());
                }
                Err(status) => return Err(status),
                Ok(done) => {
                    if let Some(done) = translate::inner(done) {
                        return Ok((done, past));
                    }
                }
            }
        }
        Err(EtcdError::TooManyRequests.into())
    }

    async fn do_txn(&self, call: &CallLimits, txn: Txn) -> Result<TxnDone, Status> {
        let client = self.calls().gatherer(call, keys_written(&txn));
        let done = self.calls().in_turn(call, client.txn(txn)).await;
        done.map_err(|error| failed(call, &error))
    }

    /// Reads the ranges that are asked for as of a revision, on whichever branch.
    async fn read_past(&self, call: &CallLimits, request: &TxnRequest) -> Result<Past, Status> {
        let (mut past, mut held) = (Past::new(), 0);
        for range in translate::past_ranges(request) {
            if !past.contains_key(range) {
                let answer = self.read_range(call, range.clone(), &mut held).await?;
                past.insert(range.clone(), answer);
            }
        }
        Ok(past)
    }

    /// Reads keys that are to keep what they have.
    async fn read_kept(&self, call: &CallLimits, keys: &[Bytes]) -> Result<Kept, Status> {
        let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
        let rows = self.calls().gatherer(call, Some(1)).get_all(keys, options);
        let rows = rows.map_err(|error| failed(call, &error))?;
        let mut kept = HashMap::new();
        self.each_row(call, rows, |row| {
            kept.insert(row.key, row.found);
            Ok(())
        })
        .await?;
        Ok(kept)
    }
}

/// A transaction that always does one operation.
fn alone(op: Op) -> TxnRequest {
    TxnRequest { success: vec![RequestOp { request: Some(op) }], ..TxnRequest::default() }
}

/// How many keys it writes at most; `None` where ranges are deleted.
fn keys_written(txn: &Txn) -> Option<usize> {
    let of = |ops: &[TxnOp]| {
        ops.iter().try_fold(0, |keys, op| match op {
            TxnOp::Put { .. } | TxnOp::Del { .. } => Some(keys + 1),
            TxnOp::DelRange { from, to, .. } => (from == to).then_some(keys + 1),
            TxnOp::Txn(txn) => keys_written(txn).map(|more| keys + more),
            TxnOp::Get { .. } | TxnOp::Range { .. } => Some(keys),
        })
    };
    Some(of(&txn.then)?.max(of(&txn.or_else)?))
}

/// The keys that a comparison or an operation is about.
fn txn_keys(span: KeySpan) -> TxnKeys {
    match span.from == span.to {
        true => TxnKeys::One(span.from),
        false => TxnKeys::Range { from: span.from, to: span.to },
    }
}
