//! Long answers as streams, a chunk of rows at a time.
//!
//! The transport asks for the next row when its client has room for it, and drops the stream when
//! the client leaves or the deadline passes. So a chunk is read when the one before has gone out,
//! and never for anyone who does not listen any more; between two chunks no request is under way.

use std::pin::Pin;

use futures_util::stream::{self, Stream, TryStreamExt};
use tonic::Status;

use super::calls::Calls;
use super::policy::CallLimits;
use super::translate::previous_unread;
use crate::client::{AsyncRows, ClientError};
use crate::limits;
use crate::model::{Row, Timestamp};

/// Bytes of rows (one larger row apart) that a gateway takes from its client library in one step
/// and holds for a stream whose reader is slow.
const GATEWAY_CHUNK_BYTES: usize = 64 * 1024;
/// Rows that a gateway takes from its client library in one step.
const GATEWAY_CHUNK_ROWS: usize = 1024;

/// The answer of an operation on many keys.
pub(super) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Streams the rows of a read, each made into a message by `translate`, within the call's limits.
pub(super) fn of_read<T: Send + 'static>(
    calls: Calls,
    rows: AsyncRows,
    call: CallLimits,
    translate: impl Fn(Row) -> Result<T, Status> + Clone + Send + 'static,
) -> Replies<T> {
    stream(calls, rows, call, false, translate)
}

/// As [`of_read`], what the write at `ver` replaced or removed. The write is done, so that no error
/// may look as if it could be repeated.
pub(super) fn of_write<T: Send + 'static>(
    calls: Calls,
    rows: AsyncRows,
    ver: Timestamp,
    call: CallLimits,
    translate: impl Fn(Row) -> T + Clone + Send + 'static,
) -> Replies<T> {
    let rows = stream(calls, rows, call, true, move |row| Ok(translate(row)));
    Box::pin(rows.map_err(move |status| previous_unread(ver, &status)))
}

fn stream<T: Send + 'static>(
    calls: Calls,
    rows: AsyncRows,
    call: CallLimits,
    is_done: bool,
    translate: impl Fn(Row) -> Result<T, Status> + Clone + Send + 'static,
) -> Replies<T> {
    let (first, limits_of) = (Some(rows), call.clone());
    let chunks = stream::try_unfold(first, move |state| {
        let (calls, call) = (calls.clone(), call.clone());
        async move {
            let Some(rows) = state else { return Ok(None) };
            let reading = async {
                let Chunk { rows, bytes, rest } = read_chunk(rows).await;
                // The rest of a page stays in memory while its rows are read one chunk after the
                // other.
                let bytes = if rest.is_some() { limits::PAGE_BYTES_MAX } else { bytes };
                Ok(call.hold_page(bytes, is_done).map(|()| (rows, rest)))
            };
            let chunk = call.within(async { calls.request(&call, reading).await? }).await?;
            Ok::<_, Status>(Some(chunk))
        }
    });
    let messages = chunks.map_ok(move |rows| {
        let (translate, call) = (translate.clone(), limits_of.clone());
        let message = move |row: Result<Row, ClientError>| match row {
            Ok(row) => translate(row),
            Err(error) => Err(call.failed(&error)),
        };
        stream::iter(rows.into_iter().map(message))
    });
    Box::pin(messages.try_flatten())
}

/// The next rows of an answer.
struct Chunk {
    /// The last one is the error that ended them, if one did.
    rows: Vec<Result<Row, ClientError>>,
    /// Of their keys and values.
    bytes: usize,
    /// Where there may be more.
    rest: Option<AsyncRows>,
}

async fn read_chunk(mut rest: AsyncRows) -> Chunk {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while rows.len() < GATEWAY_CHUNK_ROWS && bytes < GATEWAY_CHUNK_BYTES {
        match rest.next().await {
            None => return Chunk { rows, bytes, rest: None },
            Some(Ok(row)) => {
                bytes += row.key.len() + row.value().map_or(0, <[u8]>::len);
                rows.push(Ok(row));
            }
            Some(Err(error)) => {
                rows.push(Err(error));
                return Chunk { rows, bytes, rest: None };
            }
        }
    }
    Chunk { rows, bytes, rest: Some(rest) }
}
