//! Tells whether another program has opened the partial file since its download began.
//!
//! Hashing the whole file once more before it is published would be safe, but it would read back
//! everything that was written past the page cache: on a slow disk a download would take twice as
//! long. Instead inotify reports every `open` of the file. A program that changes the file in any
//! way, through a mapping or by punching a hole, has to open it first.
//!
//! Rule: any open since the download began makes the file doubtful, which costs one check of the
//! whole file. Events are not counted, because inotify merges equal ones. Without inotify, of which
//! each user has a limited number, the file is always doubtful.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::part::descriptor_path;

/// Size of the buffer for events. An event of a watched file without a name takes 16 bytes, so this
/// is room for 256 at once; more are read in further turns.
const EVENTS_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct OpenWatch {
    events: Option<OwnedFd>,
}

impl OpenWatch {
    /// Starts to watch. Every descriptor that is opened after this belongs to another program.
    pub(super) fn start(file: &File) -> OpenWatch {
        let events = OpenWatch::listen(file);
        if let Err(error) = &events {
            log::info!("a partial file cannot be watched and will be checked again: {error}");
        }
        OpenWatch { events: events.ok() }
    }

    fn listen(file: &File) -> Result<OwnedFd, Errno> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, descriptor_path(file), WatchFlags::OPEN)?;
        Ok(events)
    }

    /// Whether the file may have been opened since the start, or since the last call.
    pub(super) fn was_opened(&self) -> bool {
        let Some(events) = &self.events else { return true };
        let mut room = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut reader = Reader::new(events, &mut room);
        let mut was_opened = false;
        loop {
            match reader.next() {
                // Also when events were lost, or the file system was unmounted.
                Ok(_) => was_opened = true,
                Err(Errno::AGAIN) => return was_opened,
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::info!("a partial file is watched no more: {error}");
                    return true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_downloads_own_writes_are_not_reported_and_other_openers_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.part");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        let watch = OpenWatch::start(&file);
        for at in 0..50 {
            file.write_all_at(b"own", at).unwrap();
            assert!(!watch.was_opened(), "write {at}");
        }
        for _ in 0..2 {
            drop(File::open(&path).unwrap());
            drop(File::options().write(true).open(&path).unwrap());
            assert!(watch.was_opened());
            assert!(!watch.was_opened(), "told already");
        }
    }
}
