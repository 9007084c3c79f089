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
