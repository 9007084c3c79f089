//! The clients of the gateway get their turns on the gateway's own thread.
//!
//! A task a client: it comes after the calls that were to be polled before it, so that what they
//! ask of the group travels in one write; and what has come for many calls is taken in one turn.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::client::DrivenClient;
use crate::net::{DrivenTurn, LoopError};

/// The longest that a client is left alone. It says itself when it is to have a turn, and is woken.
const CLIENT_TURN_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Gives a client its turns until nobody has it any more.
///
/// # Errors
/// The system's readiness notification failed; all calls of the client have ended with that.
pub(super) async fn drive(mut client: DrivenClient) -> io::Result<()> {
    let sockets = watched(client.descriptor()?)?;
    let mut alarm = pin!(sleep_until(Instant::now()));
    poll_fn(move |cx| {
        let mut is_ready = false;
        // Until the system has nothing to say: then it wakes this task when it has.
        while let Poll::Ready(ready) = sockets.poll_read_ready(cx) {
            ready?.clear_ready();
            is_ready = true;
        }
        let slept = match client.turn(is_ready, cx.waker()) {
            Ok(DrivenTurn::Ended) => return Poll::Ready(Ok(())),
            Ok(DrivenTurn::Again) => Duration::ZERO,
            Ok(DrivenTurn::Sleep(timeout)) => {
                timeout.unwrap_or(CLIENT_TURN_INTERVAL_MAX).min(CLIENT_TURN_INTERVAL_MAX)
            }
            Err(LoopError::Setup(error) | LoopError::Poll(error)) => {
                return Poll::Ready(Err(error));
            }
        };
        if slept.is_zero() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // A turn that comes too early does no harm, and to set the alarm costs more.
        let (now, until) = (Instant::now(), Instant::now() + slept);
        if alarm.is_elapsed() || alarm.deadline() <= now || alarm.deadline() > until {
            alarm.as_mut().reset(until);
        }
        if alarm.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

/// Has the runtime watch a descriptor, which nobody else has.
///
/// # Errors
/// The system cannot watch it.
#[allow(unsafe_code)]
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay open, and stand for the same thing, as long as it is
    // watched. An `OwnedFd` does, and what is returned owns it and lends it to nobody who could
    // close it. The runtime offers no way without `unsafe`.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(io::Error::from)
}
