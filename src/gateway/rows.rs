//! Long answers as streams, a chunk of rows at a time.
//!
//! The transport asks for the next row when its client has room for it, and drops the stream when the
//! client leaves or the deadline passes. So a chunk is read when the one before has gone out, and never
//! for anyone who does not listen any more; between two chunks no thread waits.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{self, Stream, TryStreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::calls::Calls;
use super::policy::CallLimits;
use super::translate::status;
use crate::client::{ClientError, Rows};
use crate::limits;
use crate::wire::message::Row;

/// The answer of an operation on many keys.
pub(super) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Streams rows, each made into a message by `translate`, as long as the call's limits allow. `room` is
/// what the rows take up meanwhile.
pub(super) fn stream<T: Send + 'static>(
    calls: Calls,
    rows: Rows,
    room: Option<OwnedSemaphorePermit>,
    call: Option<CallLimits>,
    translate: impl Fn(Row) -> Result<T, Status> + Clone + Send + 'static,
) -> Replies<T> {
    let chunks = stream::try_unfold(Some((rows, room)), move |state| {
        let (calls, call) = (calls.clone(), call.clone());
        async move {
            let Some((rows, room)) = state else { return Ok(None) };
            let reading = calls.wait_for(move || read_chunk(rows));
            let (chunk, rest) = CallLimits::within(call.as_ref(), reading).await?;
            Ok::<_, Status>(Some((chunk, rest.map(|rows| (rows, room)))))
        }
    });
    let messages = chunks.map_ok(move |chunk| {
        let translate = translate.clone();
        let message = move |row: Result<Row, ClientError>| match row {
            Ok(row) => translate(row),
            Err(error) => Err(status(&error)),
        };
        stream::iter(chunk.into_iter().map(message))
    });
    Box::pin(messages.try_flatten())
}

/// The next rows, or the error that ended them, and the rest if there may be more.
fn read_chunk(mut rows: Rows) -> (Vec<Result<Row, ClientError>>, Option<Rows>) {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while chunk.len() < limits::GATEWAY_CHUNK_ROWS && bytes < limits::GATEWAY_CHUNK_BYTES {
        match rows.next() {
            None => return (chunk, None),
            Some(Ok(row)) => {
                bytes += row.key.len() + row.value.as_ref().map_or(0, Bytes::len);
                chunk.push(Ok(row));
            }
            Some(Err(error)) => {
                chunk.push(Err(error));
                return (chunk, None);
            }
        }
    }
    (chunk, Some(rows))
}
