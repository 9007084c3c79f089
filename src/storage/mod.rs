//! storage

pub mod disk;
pub mod engine;
pub mod keys;
pub mod log;
pub mod memory;
