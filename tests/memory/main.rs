//! What floods and large stores cost a process in memory.
//!
//! A binary of its own, because two tests of `floods` measure the memory of this process, in which
//! they run one end of the share.

mod floods;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
