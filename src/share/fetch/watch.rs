//! Whether another program may have changed a partial file since its chunks were verified.
//!
//! Hashing the whole file once more before it gets its name would be certain, and would read from the disk all that was
//! written past the page cache: on a slow disk the download would take twice as long. So the file is watched, and checked
//! again in whole only when there is a doubt. There are two signs, each of which sees what the other does not:
//!
//! - **Somebody had it open for writing**, as inotify tells. Whatever they did to it, through a mapping or a hole punched,
//!   and however close to a write of ours, they had to open it first. Somebody who still has it open may be reading: that is
//!   a doubt as well.
//! - **Its length or its time of change is not what our own last write left.** That shows those who had it open before this
//!   download began, who change it by its path or on another machine. While a write of ours is under way it shows nothing.
//!
//! Without inotify (a user has a limited number of them) there is a doubt from the beginning.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::part::descriptor_path;

/// Room for the events that are read at once. An event of a file that is watched itself takes 16 bytes.
const EVENTS_BYTES: usize = 4096;

/// A watch over one file.
#[derive(Debug)]
pub(super) struct Watch {
    events: Option<OwnedFd>,
    state: Mutex<WatchState>,
}

#[derive(Debug)]
struct WatchState {
    /// Writes of our own under way.
    writers: usize,
    /// What the last of them has left; none where it could not be seen.
    stamp: Option<Stamp>,
    /// Others who have it open.
    readers: usize,
    is_doubtful: bool,
}

/// What no write leaves as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    changed_s: i64,
    changed_ns: i64,
}

impl Stamp {
    fn of(file: &File) -> Option<Stamp> {
        let metadata = file.metadata().ok()?;
        let (changed_s, changed_ns) = (metadata.ctime(), metadata.ctime_nsec());
        Some(Stamp { size: metadata.len(), changed_s, changed_ns })
    }
}

impl Watch {
    /// Begins to watch. Descriptors that are opened later are others'.
    pub(super) fn start(file: &File) -> Watch {
        let events = Watch::listen(file);
        if let Err(error) = &events {
            log::info!("a partial file cannot be watched and will be checked again: {error}");
        }
        let events = events.ok();
        let state = WatchState {
            writers: 0,
            stamp: Stamp::of(file),
            readers: 0,
            is_doubtful: events.is_none(),
        };
        Watch { events, state: Mutex::new(state) }
    }

    fn listen(file: &File) -> Result<OwnedFd, Errno> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let wanted = WatchFlags::OPEN | WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE;
        inotify::add_watch(&events, descriptor_path(file), wanted)?;
        Ok(events)
    }

    fn state(&self) -> MutexGuard<'_, WatchState> {
        // No method leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the file that is no reason for doubt.
    pub(super) fn own<T>(&self, file: &File, change: impl FnOnce() -> T) -> T {
        {
            let mut state = self.state();
            self.look(file, &mut state);
            state.writers += 1;
        }
        let done = change();
        let mut state = self.state();
        state.writers -= 1;
        if state.writers == 0 {
            state.stamp = Stamp::of(file);
        }
        done
    }

    /// Whether somebody else may have changed it since the beginning, or since [`Watch::forget`].
    pub(super) fn is_doubtful(&self, file: &File) -> bool {
        let mut state = self.state();
        self.look(file, &mut state);
        state.is_doubtful || state.readers > 0
    }

    /// The whole of it is checked from now on: what was before does not matter.
    pub(super) fn forget(&self, file: &File) {
        let mut state = self.state();
        self.look(file, &mut state);
        (state.readers, state.is_doubtful) = (0, false);
        state.stamp = Stamp::of(file);
    }

    fn look(&self, file: &File, state: &mut WatchState) {
        if let Some(events) = &self.events
            && let Err(error) = Watch::take(events, state)
        {
            log::info!("a partial file is watched no more: {error}");
            state.is_doubtful = true;
        }
        if state.writers == 0 {
            let stamp = Stamp::of(file);
            state.is_doubtful |= stamp.is_none() || stamp != state.stamp;
        }
    }

    fn take(events: &OwnedFd, state: &mut WatchState) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut reader = Reader::new(events, &mut room);
        loop {
            let event = match reader.next() {
                Ok(event) => event.events(),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if event.contains(ReadFlags::OPEN) {
                state.readers += 1;
            } else {
                // Equal events in a row may be told as one.
                state.readers = state.readers.saturating_sub(1);
                // Else events were lost, or the file system is gone.
                state.is_doubtful |= !event.contains(ReadFlags::CLOSE_NOWRITE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(folder: &tempfile::TempDir) -> File {
        let path = folder.path().join("a.part");
        let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        file.set_len(1 << 16).unwrap();
        file
    }

    #[test]
    fn own_writes_and_others_reads_are_no_doubt() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        let watch = Watch::start(&file);
        for at in 0..50 {
            watch.own(&file, || file.write_all_at(b"own", at)).unwrap();
            std::fs::read(folder.path().join("a.part")).unwrap();
            assert!(!watch.is_doubtful(&file), "write {at}");
        }
        let reader = File::open(folder.path().join("a.part")).unwrap();
        assert!(watch.is_doubtful(&file), "it may write");
        drop(reader);
        assert!(!watch.is_doubtful(&file));
    }

    /// Between the beginning and the end of a write of ours the times tell nothing, and a mapping is written
    /// without any call.
    #[test]
    fn whoever_has_it_open_for_writing_is_seen_also_beside_a_write_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        let watch = Watch::start(&file);
        watch.own(&file, || {
            let other = File::options().write(true).open(folder.path().join("a.part")).unwrap();
            other.write_all_at(b"foreign", 7).unwrap();
        });
        assert!(watch.is_doubtful(&file));
        watch.forget(&file);
        assert!(!watch.is_doubtful(&file));
    }

    #[test]
    fn whoever_had_it_open_before_is_seen_by_what_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        let other = File::options().write(true).open(folder.path().join("a.part")).unwrap();
        let watch = Watch::start(&file);
        watch.own(&file, || file.write_all_at(b"own", 0)).unwrap();
        other.set_len(1 << 10).unwrap();
        watch.own(&file, || file.write_all_at(b"own", 0)).unwrap();
        assert!(watch.is_doubtful(&file));
    }
}
