//! Whether another program has had a partial file open since its download began.
//!
//! Hashing the whole file once more before it gets its name would be certain, and would read from the disk all that was
//! written past the page cache: on a slow disk the download would take twice as long. So inotify tells whether anybody
//! has opened it meanwhile: whatever they did to it, through a mapping or a hole punched, and however close to a write of
//! ours, they had to open it first. Nothing is counted, as equal events in a row may be told as one: whoever has opened
//! it at all is a doubt, and costs one check of the whole. Without inotify, of which a user has a limited number, there
//! always is a doubt.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::part::descriptor_path;

/// Room for the events that are read at once. An event of a file that is watched itself takes 16 bytes.
const EVENTS_BYTES: usize = 4096;

/// A watch over one file.
#[derive(Debug)]
pub(super) struct OpenWatch {
    events: Option<OwnedFd>,
}

impl OpenWatch {
    /// Begins to watch. Descriptors that are opened later are others'.
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

    /// Whether anybody may have opened it since the beginning, or since this was asked last.
    pub(super) fn was_opened(&self) -> bool {
        let Some(events) = &self.events else { return true };
        let mut room = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut reader = Reader::new(events, &mut room);
        let mut was_opened = false;
        loop {
            match reader.next() {
                // Or events were lost, or the file system is gone.
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
    fn own_writes_are_no_doubt_and_whoever_opens_it_is() {
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
