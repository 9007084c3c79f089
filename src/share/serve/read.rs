//! Reads chunks of offered files, on worker threads.
//!
//! A name in a shared folder may lead to anything by now: a link out of the folder, a FIFO whose
//! opening would block, a device, another file.
//!
//! Rule: each read opens the file anew, below the folder and through no link, and checks before and
//! after reading that it still is the regular file that was hashed. Which bytes are compared with
//! their hash as well is said at `read_by`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};

use crate::net::Buffer;
use crate::share::content::{chunk_len, chunk_offset};
use crate::share::offer::{FileStamp, Offer};
use crate::wire::share::DenialCode;

/// Why a chunk cannot be read from its file.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// There is no file of this name any more.
    #[error("{0} is not in the shared folder any more")]
    Gone(String),
    /// The name leads to something else than a regular file.
    #[error("{0} is not a regular file of the shared folder")]
    NotAFile(String),
    /// Its stamp or its content has changed.
    #[error("{0} was changed since it was offered")]
    Changed(String),
    /// Its stamp is unchanged, but it holds other bytes than were hashed.
    #[error("{0} does not hold what was hashed")]
    Corrupted(String),
    /// The system refuses to read it.
    #[error("{file} cannot be read: {source}")]
    Unreadable { file: String, source: io::Error },
}

impl ReadError {
    pub(super) fn code(&self) -> DenialCode {
        match self {
            ReadError::Gone(_) => DenialCode::NotFound,
            ReadError::NotAFile(_) | ReadError::Changed(_) | ReadError::Corrupted(_) => {
                DenialCode::Changed
            }
            ReadError::Unreadable { .. } => DenialCode::Unreadable,
        }
    }
}

fn open(offer: &Offer) -> Result<File, ReadError> {
    let name = || offer.file.clone();
    let folder_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // NONBLOCK: a FIFO opens at once instead of waiting for a writer. It has no effect on files.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // A catalogue gives names, not paths: joining one to the folder must not leave it.
    if offer.file.contains('/') || matches!(&*offer.file, "" | "." | "..") {
        return Err(ReadError::NotAFile(name()));
    }
    let opened = rustix::fs::open(&**offer.folder, folder_flags, Mode::empty())
        .and_then(|folder| rustix::fs::openat(&folder, &*offer.file, flags, Mode::empty()));
    match opened {
        Ok(file) => Ok(File::from(file)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Err(ReadError::Gone(name())),
        // A link, or a socket or device without a driver.
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => Err(ReadError::NotAFile(name())),
        Err(error) => Err(ReadError::Unreadable { file: name(), source: error.into() }),
    }
}

/// Checks that the file is a regular one and has its stamp.
fn check(file: &File, offer: &Offer) -> Result<(), ReadError> {
    let name = || offer.file.clone();
    let metadata =
        file.metadata().map_err(|source| ReadError::Unreadable { file: name(), source })?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile(name()));
    }
    match offer.stamp {
        Some(stamp) if stamp != FileStamp::of(&metadata) => Err(ReadError::Changed(name())),
        _ => Ok(()),
    }
}

/// Fills `buffer` from `offset` on in chunk `index`, which the content has to have. See
/// [`read_by`].
pub(super) fn read(
    offer: &Offer,
    index: u64,
    offset: usize,
    is_checked: bool,
    buffer: &mut Buffer,
    whole: &mut Vec<u8>,
) -> Result<(), ReadError> {
    let fill = |file: &File, bytes: &mut [u8], at: u64| file.read_exact_at(bytes, at);
    read_by(fill, offer, index, offset, is_checked, buffer, whole)
}

/// Has `fill` read the bytes, and checks the file before and after. With `is_checked`, or at the
/// start of a chunk of a file that is being written, the whole chunk is compared with its hash;
/// `whole` is scratch space for that if the buffer is shorter. Later slices are not compared: each
/// would cost reading the whole chunk, and the receiver compares it anyway.
fn read_by(
    fill: impl FnOnce(&File, &mut [u8], u64) -> io::Result<()>,
    offer: &Offer,
    index: u64,
    offset: usize,
    is_checked: bool,
    buffer: &mut Buffer,
    whole: &mut Vec<u8>,
) -> Result<(), ReadError> {
    let name = || offer.file.clone();
    let by_name;
    let file: &File = match &offer.opened {
        Some(file) => file,
        None => {
            by_name = open(offer)?;
            &by_name
        }
    };
    check(file, offer)?;
    let length = chunk_len(index, offer.manifest.size());
    let is_compared = is_checked || offer.stamp.is_none() && offset == 0;
    let is_slice = buffer.length() < length;
    let (read, begin): (&mut [u8], usize) = if is_compared && is_slice {
        whole.resize(length, 0);
        (whole, 0)
    } else {
        (buffer.as_mut(), offset)
    };
    match fill(file, read, chunk_offset(index) + begin as u64) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ReadError::Changed(name()));
        }
        Err(source) => return Err(ReadError::Unreadable { file: name(), source }),
    }
    // A write during the read shows now, or when the receiver verifies the chunk.
    check(file, offer)?;
    if is_compared && !offer.manifest.matches(index, read) {
        return Err(match offer.stamp {
            None => ReadError::Changed(name()),
            Some(_) => ReadError::Corrupted(name()),
        });
    }
    if is_compared && is_slice {
        let slice = offset..offset + buffer.length();
        buffer.as_mut().copy_from_slice(&whole[slice]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::limits::CHUNK_BYTES;
    use crate::net::BufferPool;
    use crate::share::content::Manifest;
    use crate::share::offer::Available;

    fn offer(folder: &Path, file: &str, bytes: &[u8]) -> Offer {
        let path = folder.join(file);
        std::fs::write(&path, bytes).unwrap();
        Offer {
            manifest: Arc::new(Manifest::of_bytes(bytes).unwrap()),
            folder: Arc::new(folder.to_owned()),
            file: file.to_owned(),
            opened: None,
            stamp: Some(FileStamp::of(&std::fs::metadata(&path).unwrap())),
            available: Available::Whole,
        }
    }

    fn read(offer: &Offer, index: u64) -> Result<Vec<u8>, ReadError> {
        let length = chunk_len(index, offer.manifest.size());
        read_part(offer, index, 0..length, false)
    }

    fn read_part(
        offer: &Offer,
        index: u64,
        part: std::ops::Range<usize>,
        is_checked: bool,
    ) -> Result<Vec<u8>, ReadError> {
        let mut buffer = BufferPool::new(CHUNK_BYTES, 1).take(part.len()).unwrap();
        super::read(offer, index, part.start, is_checked, &mut buffer, &mut Vec::new())
            .map(|()| buffer.as_ref().to_vec())
    }

    #[test]
    fn chunks_are_the_files_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..CHUNK_BYTES + 5).map(|i| (i % 251) as u8).collect();
        let offer = offer(folder.path(), "a.bin", &bytes);
        assert!(read(&offer, 0).unwrap() == bytes[..CHUNK_BYTES]);
        assert!(read(&offer, 1).unwrap() == bytes[CHUNK_BYTES..]);
        for is_checked in [false, true] {
            let (first, last) = (0..1000, CHUNK_BYTES - 1000..CHUNK_BYTES);
            assert!(read_part(&offer, 0, first.clone(), is_checked).unwrap() == bytes[first]);
            assert!(read_part(&offer, 0, last.clone(), is_checked).unwrap() == bytes[last]);
            let end = read_part(&offer, 1, 3..5, is_checked).unwrap();
            assert!(end == bytes[CHUNK_BYTES + 3..]);
        }
    }

    #[test]
    fn anything_but_the_hashed_regular_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, b"secret").unwrap();
        let replaced = |name: &str, replace: &dyn Fn(&Path)| {
            let offer = offer(folder.path(), name, b"secret");
            let path = folder.path().join(name);
            std::fs::remove_file(&path).unwrap();
            replace(&path);
            read(&offer, 0).unwrap_err().code()
        };
        let link = |path: &Path| std::os::unix::fs::symlink(&secret, path).unwrap();
        assert_eq!(replaced("link", &link), DenialCode::Changed);
        // Made without a child process, which would hold every open file for a moment, and with
        // them the locks of other tests' folders.
        let fifo = |path: &Path| {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
        };
        assert_eq!(replaced("fifo", &fifo), DenialCode::Changed);
        let socket = |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert_eq!(replaced("socket", &socket), DenialCode::Changed);
        let folder_there = |path: &Path| std::fs::create_dir(path).unwrap();
        assert_eq!(replaced("folder", &folder_there), DenialCode::Changed);
        assert_eq!(replaced("gone", &|_| {}), DenialCode::NotFound);

        let mut device = offer(folder.path(), "device", b"secret");
        device.folder = Arc::new("/dev".into());
        device.file = "zero".to_owned();
        device.stamp = None;
        assert_eq!(read(&device, 0).unwrap_err().code(), DenialCode::Changed);

        let mut path = offer(folder.path(), "path", b"secret");
        path.stamp = None;
        path.file = format!("../{}/secret", outside.path().file_name().unwrap().display());
        assert_eq!(read(&path, 0).unwrap_err().code(), DenialCode::Changed);
    }

    #[test]
    fn a_file_that_changed_is_noticed_by_size_time_or_content() {
        let folder = tempfile::tempdir().unwrap();
        let mut offer = offer(folder.path(), "file", b"before");
        let path = folder.path().join("file");
        let open = || File::options().write(true).open(&path).unwrap();

        open().set_len(3).unwrap();
        assert_eq!(read(&offer, 0).unwrap_err().code(), DenialCode::Changed);
        let shrunk = offer.stamp.take();
        assert_eq!(read(&offer, 0).unwrap_err().code(), DenialCode::Changed);

        std::fs::write(&path, b"behind").unwrap();
        let later = shrunk.unwrap().modified.unwrap() + Duration::from_secs(5);
        open().set_modified(later).unwrap();
        offer.stamp = shrunk;
        assert_eq!(read(&offer, 0).unwrap_err().code(), DenialCode::Changed);
        offer.stamp = None;
        assert_eq!(read(&offer, 0).unwrap_err().code(), DenialCode::Changed);
        std::fs::write(&path, b"before").unwrap();
        assert_eq!(read(&offer, 0).unwrap(), b"before");
    }

    /// The file is changed between the two checks.
    #[test]
    fn a_chunk_that_was_written_to_while_it_was_read_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let offer = offer(folder.path(), "file", b"before");
        let path = folder.path().join("file");
        let mut buffer = BufferPool::new(CHUNK_BYTES, 1).take(6).unwrap();
        let writes = |file: &File, bytes: &mut [u8], at: u64| {
            // It gets longer, which is noticed however coarse the clock is.
            std::fs::write(&path, b"changed").unwrap();
            file.read_exact_at(bytes, at)
        };
        let outcome = read_by(writes, &offer, 0, 0, false, &mut buffer, &mut Vec::new());
        assert!(matches!(outcome, Err(ReadError::Changed(_))), "{outcome:?}");
    }

    /// Changes a file as a broken disk does, so that its stamp stays the same.
    fn rot(offer: &mut Offer, path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
        offer.stamp = Some(FileStamp::of(&std::fs::metadata(path).unwrap()));
    }

    #[test]
    fn corruption_is_found_in_checked_chunks_and_a_reset_time_in_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut offer = offer(folder.path(), "file", b"before");
        let path = folder.path().join("file");
        let modified = offer.stamp.unwrap().modified.unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        // Until the clock of the file system has advanced.
        while FileStamp::of(&file.metadata().unwrap()).changed_ns == offer.stamp.unwrap().changed_ns
        {
            file.write_all_at(b"behind", 0).unwrap();
            file.set_modified(modified).unwrap();
        }
        let stamp = FileStamp::of(&file.metadata().unwrap());
        assert_eq!((stamp.size, stamp.modified), (6, Some(modified)));
        assert_eq!(read(&offer, 0).unwrap_err().code(), DenialCode::Changed);
        rot(&mut offer, &path, b"befoul");
        assert_eq!(read(&offer, 0).unwrap(), b"befoul", "not checked");
        for part in [0..6, 2..4] {
            let checked = read_part(&offer, 0, part, true);
            assert!(matches!(checked, Err(ReadError::Corrupted(_))), "{checked:?}");
        }
    }
}
