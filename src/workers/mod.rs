//! Threads for what the event loop must not do itself: reading the store, reading files, hashing.
//!
//! The loop submits jobs to a [`Pool`](pool::Pool), never waiting: a full queue is an answer
//! (`BUSY`), not a delay. Workers put completions on a channel and wake the loop, which collects
//! them when it next comes round. Jobs carry what names their requester and completions carry it
//! back; nothing is matched by order.
//!
//! A [`queue`] is what they wait on, and the threads that write too.
//!
//! Left out: order between jobs (each worker takes the next one that is free) and priorities. What
//! must happen in order, such as writing the log and applying it, has a thread of its own.

pub mod pool;
pub mod queue;

/// Makes the calling thread give way to event loops where there are fewer processors than threads with something
/// to do. Eight clients whose requests take workers long kept a loop from its processor for tens of milliseconds,
/// though it had next to nothing to do. Nobody needs a privilege for this.
///
/// Five steps of the system's scale give the thread a third of the weight of a loop: a loop takes the processor
/// from it at once, and other programs still do not keep it from its work.
pub fn give_way_to_event_loops() {
    // A thread has a priority of its own on Linux alone; elsewhere this would be the process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::getpriority_process(None)
        .and_then(|nice| rustix::process::setpriority_process(None, (nice + 5).min(19)))
    {
        log::debug!("a thread that computes keeps its priority: {error}");
    }
}
