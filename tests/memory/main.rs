//! What floods and large stores cost a process in memory, and what watches cost it in threads.
//!
//! A binary of its own, because two tests of `floods` measure the memory of this process, in which
//! they run one end of the share. So one test runs at a time here.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod floods;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
mod watches;

/// Has the test run alone until it drops this: what another one allocates meanwhile would count as
/// its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
