//! Threads for what an event loop must not do itself: reading the store, reading files, hashing.
//!
//! The loop submits jobs to a [`Pool`](pool::Pool) and never waits: if the queue is full the
//! request is answered with `BUSY`. Workers put completions on a channel and wake the loop, which
//! collects them in its next iteration; a loop with other threads, too, has one channel for all
//! ([`Workers`](pool::Workers)). A job carries the identity of its requester and its
//! completion carries it back; nothing is matched by order.
//!
//! A [`queue`] is what workers wait on, and so do the threads that write the log and the store. A
//! [`thread`] that a disk may hold up is waited for until a deadline.
//!
//! What it leaves out: order between jobs (each goes to the next worker that is free) and
//! priorities. Work that must be done in order, such as writing the log and applying it, has a
//! thread of its own.

pub mod pool;
pub mod queue;
pub mod thread;

/// Lowers the priority of the calling thread, so that event loops go first where there are fewer
/// processors than busy threads. Without it, eight clients whose requests take workers long kept an
/// event loop waiting for its processor for tens of milliseconds. No privilege is needed.
///
/// Five steps of the system's scale (nice) give the thread a third of the weight of a loop: a loop
/// preempts it at once, and it still gets its share beside other programs.
pub fn lower_thread_priority() {
    // Only on Linux does a thread have a priority of its own; elsewhere this would change the
    // process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::getpriority_process(None)
        .and_then(|nice| rustix::process::setpriority_process(None, (nice + 5).min(19)))
    {
        log::debug!("a thread that computes keeps its priority: {error}");
    }
}
