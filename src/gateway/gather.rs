//! Request streams, taken in whole: an operation on many keys is one transaction, so nothing can
//! begin before its last key is known. What one call may bring is bounded by the transaction's
//! limits, and charged to the call for as long as it lasts (`accounting`); how long it may take, by
//! a time for each frame (`policy`) and one for all of it.

use std::time::Duration;
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};

use super::policy::CallLimits;
use crate::limits;

/// A stream of requests has so long in all: 8 MiB, the most a transaction holds, over a line of one
/// and a half megabits a second.
const GATEWAY_GATHER_TIMEOUT: Duration = Duration::from_secs(45);

/// What an item takes up beside its own bytes, which are charged as they come: its fields, and what
/// the allocator rounds them up to.
const ITEM_BYTES: usize = 128;

/// Reads a request stream to its end. `measure` checks an item and says how many bytes of keys and
/// values it has.
pub(super) async fn gather<T>(
    request: Request<Streaming<T>>,
    measure: impl Fn(&T) -> Result<usize, Status>,
) -> Result<Vec<T>, Status> {
    let call = CallLimits::of(&request)?;
    let gathering = read_all(request.into_inner(), &call, measure);
    timeout(GATEWAY_GATHER_TIMEOUT, gathering).await.map_err(|_| {
        let seconds = GATEWAY_GATHER_TIMEOUT.as_secs();
        Status::deadline_exceeded(format!("the stream of requests took over {seconds} s: split it"))
    })?
}

async fn read_all<T>(
    mut stream: Streaming<T>,
    call: &CallLimits,
    measure: impl Fn(&T) -> Result<usize, Status>,
) -> Result<Vec<T>, Status> {
    let mut items = Vec::new();
    let mut total = 0;
    while let Some(item) = stream.message().await.map_err(rename_overlong)? {
        total += measure(&item)?;
        if items.len() == limits::TRANSACTION_KEYS_MAX {
            return Err(too_much("keys", limits::TRANSACTION_KEYS_MAX));
        }
        if total > limits::TRANSACTION_BYTES_MAX {
            return Err(too_much("bytes of keys and values", limits::TRANSACTION_BYTES_MAX));
        }
        call.charge(ITEM_BYTES)?;
        items.push(item);
    }
    Ok(items)
}

fn too_much(what: &str, most: usize) -> Status {
    Status::invalid_argument(format!(
        "one call has at most {most} {what}, since it takes effect as a whole: split it"
    ))
}

/// As for messages that do not come in a stream (see `policy`).
fn rename_overlong(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::invalid_argument(status.message()),
        _ => status,
    }
}
