//! What a log is opened with.
//!
//! Servers use the default with a salt of their own; tests make segments small.

use crate::limits;

/// The options of a log, fixed while it is open.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Whether an append is synced. `false` only for experiments.
    pub sync: bool,
    /// Approximate size of a segment: a frame that does not fit starts the next one.
    pub segment_bytes: u64,
    /// The step in which a segment is zero-filled ahead of the writer.
    pub zero_fill_bytes: u64,
    /// A frame is complete when its payload exceeds this.
    pub group_bytes_max: usize,
    /// Approximate length up to which the log is kept for servers that are being sent a snapshot.
    pub held_bytes_max: u64,
    /// A random number, drawn anew for each opening, from which the frames' markers are derived: so
    /// a client cannot plant in a value what recovery would take for a frame. Nothing else depends
    /// on it.
    pub salt: u64,
}

impl Default for LogOptions {
    /// The sizes of [`limits`], synced, with no salt.
    fn default() -> LogOptions {
        LogOptions {
            sync: true,
            segment_bytes: limits::LOG_SEGMENT_BYTES,
            zero_fill_bytes: limits::LOG_ZERO_FILL_BYTES,
            group_bytes_max: limits::LOG_GROUP_BYTES_MAX,
            held_bytes_max: limits::LOG_HELD_BYTES_MAX,
            salt: 0,
        }
    }
}
