//! Watches the disk on a thread of its own, which a disk that hangs may hold up.
//!
//! It looks how much room there is, how much the data directory takes, and whether the directory is
//! still where it was, and reports changes to the event loop. What follows from them is decided
//! there and in the core.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::super::work::Completion;
use super::completions::CompletionSender;
use crate::model::DiskSpace;
use crate::storage::datadir::{DataDir, Presence};
use crate::storage::reserve::DiskReserve;

/// How often a server looks how much room there is on its disk, and whether its data directory is
/// still there: often enough that a fast writer does not fill the reserve in between.
const DISK_LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Number of looks between two sums of what the data directory takes on the disk: once a second.
const DISK_LOOKS_PER_SIZE: u64 = 20;

/// The watch, which ends when this is dropped.
pub(super) struct DiskWatch {
    _stop: Sender<()>,
    taken_bytes: Arc<AtomicU64>,
}

impl DiskWatch {
    /// Bytes that the data directory took on the disk at the last look; `None` before the first.
    pub(super) fn taken_bytes(&self) -> Option<u64> {
        // A directory with a log in it takes some.
        Some(self.taken_bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}

/// Starts the watch. It reports how much room there is when that changes, and the end of the
/// directory.
pub(super) fn start(data_dir: &DataDir, completions: CompletionSender) -> io::Result<DiskWatch> {
    let (stop, stopped) = bounded(0);
    // Not the directory itself, whose lock must not last as long as a thread that hangs.
    let (presence, reserve) = (data_dir.presence(), data_dir.reserve().clone());
    let taken_bytes = Arc::new(AtomicU64::new(0));
    let taken = Arc::clone(&taken_bytes);
    let watch = move || look_on(&presence, &reserve, &taken, &stopped, &completions);
    thread::Builder::new().name("acervo-disk".into()).spawn(watch)?;
    Ok(DiskWatch { _stop: stop, taken_bytes })
}

fn look_on(
    presence: &Presence,
    reserve: &Arc<DiskReserve>,
    taken_bytes: &AtomicU64,
    stopped: &Receiver<()>,
    completions: &CompletionSender,
) {
    let mut reported = DiskSpace::Ample;
    let mut failing = false;
    for look in 0_u64.. {
        if look.is_multiple_of(DISK_LOOKS_PER_SIZE) {
            match presence.taken_bytes() {
                Ok(bytes) => taken_bytes.store(bytes, Ordering::Relaxed),
                Err(error) => log::debug!("cannot tell how large the data directory is: {error}"),
            }
        }
        match presence.is_in_place() {
            Ok(false) => {
                let path = presence.path();
                let gone = format!(
                    "the data directory {} was removed or replaced while this server used it: put \
                     it back, or start this server on an empty one, so that the group can bring it \
                     up to date",
                    path.display()
                );
                completions.send(Completion::Failed(gone));
                completions.wake();
                return;
            }
            Ok(true) => {}
            Err(error) => log::debug!("cannot look for the data directory: {error}"),
        }
        match reserve.check() {
            Ok(space) => {
                failing = false;
                if space != reported {
                    reported = space;
                    completions.send(Completion::DiskSpace(space));
                    completions.wake();
                }
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                log::warn!("cannot ask for the room on the disk: {error}");
            }
            Err(_) => {}
        }
        if stopped.recv_timeout(DISK_LOOK_INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}
