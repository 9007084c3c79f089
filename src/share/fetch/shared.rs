//! What a download's thread shares with the handle of its owner.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::api::{FetchOptions, FetchPhase, FetchProgress};
use crate::net::WakeHandle;
use crate::wire::share::Source;

/// The state that a download's thread shares with its handle.
#[derive(Debug)]
pub(super) struct FetchShared {
    progress: Mutex<FetchProgress>,
    /// Sources that the thread has not taken over yet.
    added: Mutex<AddedSources>,
    /// How many searches for further sources the download has requested.
    searches_requested: AtomicU64,
    cancelled: AtomicBool,
    wake: WakeHandle,
}

/// The results of searches for further sources.
#[derive(Debug, Default)]
pub(super) struct AddedSources {
    pub(super) sources: Vec<Source>,
    /// The number of the last requested search whose sources have all been added.
    pub(super) searched: u64,
}

impl FetchShared {
    pub(super) fn new(options: &FetchOptions, wake: WakeHandle) -> FetchShared {
        FetchShared {
            progress: Mutex::new(FetchProgress {
                phase: FetchPhase::Preparing,
                size: options.size,
                done_bytes: 0,
                kept_bytes: 0,
                fetched_bytes: 0,
                rate_bytes_per_s: 0.0,
                longest_stall: Duration::ZERO,
                sources: Vec::new(),
            }),
            added: Mutex::new(AddedSources { sources: options.sources.clone(), searched: 0 }),
            searches_requested: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            wake,
        }
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, FetchProgress> {
        // Progress is replaced as a whole or by single fields, and any state of it can be shown.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn added(&self) -> MutexGuard<'_, AddedSources> {
        // Its two fields are independent of each other.
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests a search for further sources and returns its number.
    pub(super) fn request_search(&self) -> u64 {
        self.searches_requested.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the last search that was requested; 0 before the first.
    pub(super) fn search_requested(&self) -> u64 {
        self.searches_requested.load(Ordering::Acquire)
    }

    /// Wakes the thread, to look at what has changed here.
    pub(super) fn wake(&self) {
        self.wake.wake();
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}
