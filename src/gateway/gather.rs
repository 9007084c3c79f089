//! Request streams, taken in whole: an operation on many keys is one transaction, so nothing can begin
//! before its last key is known. What one call may bring is bounded by the transaction's limits, what
//! all of them hold together by [`limits::GATEWAY_GATHERED_BYTES_MAX`].

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::policy::too_slow;
use crate::limits;

/// What all calls together may still gather.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new() -> Room {
        Room(Arc::new(Semaphore::new(limits::GATEWAY_GATHERED_BYTES_MAX)))
    }
}

/// All of a request stream, and the room it takes up as long as it lives.
pub(super) struct Gathered<T> {
    pub(super) items: Vec<T>,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// Reads a request stream to its end. `measure` checks an item and says how many bytes of keys and values
/// it has.
pub(super) async fn gather<T>(
    room: &Room,
    mut stream: Streaming<T>,
    measure: impl Fn(&T) -> Result<usize, Status>,
) -> Result<Gathered<T>, Status> {
    let mut gathered = Gathered { items: Vec::new(), room: None };
    let mut total = 0;
    while let Some(item) = next(&mut stream).await? {
        let bytes = measure(&item)?;
        total += bytes;
        if gathered.items.len() == limits::TRANSACTION_KEYS_MAX {
            return Err(too_much("keys", limits::TRANSACTION_KEYS_MAX));
        }
        if total > limits::TRANSACTION_BYTES_MAX {
            return Err(too_much("bytes of keys and values", limits::TRANSACTION_BYTES_MAX));
        }
        // Far below 4 GiB: a message is shorter.
        let permit = Arc::clone(&room.0).try_acquire_many_owned(bytes as u32).map_err(|_| {
            Status::resource_exhausted("this gateway takes in too much at once: try again later")
        })?;
        match &mut gathered.room {
            Some(room) => room.merge(permit),
            none => *none = Some(permit),
        }
        gathered.items.push(item);
    }
    Ok(gathered)
}

/// The next item, within its time: a stream that stands still holds a place and the room of what it brought.
async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    match timeout(limits::GATEWAY_MESSAGE_TIMEOUT, stream.message()).await {
        Ok(item) => item.map_err(rename_overlong),
        Err(_) => Err(too_slow()),
    }
}

fn too_much(what: &str, most: usize) -> Status {
    Status::resource_exhausted(format!(
        "one call has at most {most} {what}, since it takes effect as a whole: split it"
    ))
}

/// As for messages that do not come in a stream (see `policy`).
fn rename_overlong(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}
