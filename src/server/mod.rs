//! One server process: event loop, core, workers, log writer and state machine wired together.

pub mod config;
