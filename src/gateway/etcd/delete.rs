//! DeleteRange: the keys of a range are deleted, and their past can still be read.
//!
//! It is one transaction, which tells how many keys there were, as long as one may look through so
//! many. A longer range is deleted in pieces, each of which is a transaction: the keys that were
//! there when it began, and whatever has come between them. Whoever needs it to be one change puts
//! it into a transaction of its own, where what is too long is refused.

use bytes::Bytes;
use tonic::Status;

use super::super::interface::etcd::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse};
use super::super::interface::etcd::mvccpb::KeyValue;
use super::super::policy::CallLimits;
use super::EtcdServices;
use super::errors::{failed, no_room};
use super::kv::check_length;
use super::range::{KeptRows, KeySpan, key_value};
use crate::client::{ClientError, ReadOptions, Timestamp, Txn, TxnOp, TxnOutput};

/// Keys of a piece, if no more rows are between them than a transaction looks through: as many as
/// the store collects of its garbage in one log entry, so that other writes are not held up for
/// long.
const PIECE_KEYS: u64 = 1024;

/// What was deleted so far.
struct Deleted {
    /// The revision of the last deletion.
    at: Timestamp,
    count: i64,
    /// What the keys had, if that is to be told.
    rows: Vec<KeyValue>,
    /// Bytes that the call holds of it.
    held: usize,
}

impl EtcdServices {
    /// Deletes the keys of a range.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn delete_keys(
        &self,
        call: &CallLimits,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Status> {
        check_length(&request)?;
        let nothing = |header| DeleteRangeResponse { header: Some(header), ..Default::default() };
        let Some(span) = KeySpan::of(&request.key, &request.range_end)? else {
            return Ok(nothing(self.headers().now()));
        };
        // Where there is nothing to delete no revision is made.
        let newest = ReadOptions { linearizable: true, ..ReadOptions::default() };
        let (first, at) = self.first_keys(call, &span, 1, newest, 0).await?;
        if first.is_empty() {
            return Ok(nothing(self.headers().at(at)));
        }
        let mut done = Deleted { at, count: 0, rows: Vec::new(), held: 0 };
        let is_whole = self.delete_span(call, &span, request.prev_kv, &mut done).await;
        let deleted = match is_whole {
            Ok(false) => self.delete_in_pieces(call, span, request.prev_kv, &mut done).await,
            whole => whole.map(drop),
        };
        deleted.map_err(|status| done.and_then(status))?;
        let Deleted { at, count: deleted, rows: prev_kvs, .. } = done;
        Ok(DeleteRangeResponse { header: Some(self.headers().at(at)), deleted, prev_kvs })
    }

    /// Deletes the keys of a range that is too long for one transaction.
    async fn delete_in_pieces(
        &self,
        call: &CallLimits,
        span: KeySpan,
        tells_rows: bool,
        done: &mut Deleted,
    ) -> Result<(), Status> {
        // All pages are of the state in which the first one is read.
        let mut options = ReadOptions { linearizable: true, ..ReadOptions::default() };
        let (mut rest, mut is_first) = (span, true);
        loop {
            let (keys, at) = self.first_keys(call, &rest, PIECE_KEYS, options, done.held).await?;
            options.at = Some(at);
            // The last key of the page before comes again.
            let mut left = if is_first { &keys[..] } else { keys.get(1..).unwrap_or_default() };
            let Some(last) = left.last().cloned() else { return Ok(()) };
            while !left.is_empty() {
                let mut count = left.len();
                loop {
                    let (from, to) = (left[0].clone(), left[count - 1].clone());
                    let piece = KeySpan { from, to };
                    if self.delete_span(call, &piece, tells_rows, done).await? {
                        break;
                    }
                    // Between the keys lie many that are deleted and have not left the disk.
                    count /= 2;
                    if count == 0 {
                        return Err(Status::internal("one key is too much for a transaction"));
                    }
                }
                left = &left[count..];
            }
            (rest.from, is_first) = (last, false);
        }
    }

    /// Deletes the keys of a span by one transaction; `false` if it is too long for that.
    async fn delete_span(
        &self,
        call: &CallLimits,
        span: &KeySpan,
        tells_rows: bool,
        done: &mut Deleted,
    ) -> Result<bool, Status> {
        let KeySpan { from, to } = span.clone();
        let (keeps_history, tells_previous) = (true, false);
        let keys = (from == to).then_some(1);
        let del = TxnOp::DelRange { from, to, keeps_history, tells_previous };
        let client = self.calls().gatherer(call, keys);
        let txn = match self.calls().in_turn(call, client.txn(Txn::default().then(del))).await {
            Ok(txn) => txn,
            Err(ClientError::TxnTooLong) => return Ok(false),
            Err(error) => return Err(failed(call, &error)),
        };
        let Some(TxnOutput::DelRange { removed, .. }) = txn.results.first() else {
            unreachable!("a deletion has come to {:?}", txn.results)
        };
        done.at = txn.timestamp;
        done.count += *removed as i64;
        if tells_rows && *removed > 0 {
            // Where a transaction would not tell all of it.
            self.deleted_rows(call, span, done).await?;
        }
        Ok(true)
    }

    /// The first keys of a span, and as of when, where the call holds so many bytes already.
    async fn first_keys(
        &self,
        call: &CallLimits,
        span: &KeySpan,
        limit: u64,
        options: ReadOptions,
        mut held: usize,
    ) -> Result<(Vec<Bytes>, Timestamp), Status> {
        let rows = self.calls().reader(call).scan(span.range()?, options).keys_only().limit(limit);
        let mut keys = Vec::new();
        let at = self.each_row(call, rows, |row| {
            held += row.key.len() + size_of::<Bytes>();
            keys.push(row.key);
            if call.hold(held) { Ok(()) } else { Err(no_room()) }
        });
        let at = at.await?;
        Ok((keys, at))
    }

    /// Reads what the keys of a span had just before they were deleted.
    async fn deleted_rows(
        &self,
        call: &CallLimits,
        span: &KeySpan,
        done: &mut Deleted,
    ) -> Result<(), Status> {
        let before = ReadOptions { facts: true, ..ReadOptions::at(Timestamp(done.at.0 - 1)) };
        let rows = self.calls().reader(call).scan(span.range()?, before);
        let mut kept = KeptRows::of(call, &mut done.held);
        self.each_row(call, rows, |row| match row.found {
            Some(found) => kept.keep(key_value(row.key, found)),
            None => Ok(()),
        })
        .await?;
        done.rows.append(&mut kept.kvs);
        Ok(())
    }
}

impl Deleted {
    /// What is said of what failed after this: never what would have a client ask again for what
    /// is done.
    fn and_then(&self, status: Status) -> Status {
        match self.count {
            0 => status,
            count => Status::unknown(format!(
                "{count} keys are deleted, at revision {}, and then this failed, so that what they \
                 had is not told, or others of the range are not deleted: {}",
                self.at,
                status.message()
            )),
        }
    }
}
