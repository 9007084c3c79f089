//! The names of a file during its download: partial name, first name, claim, final name.
//!
//! Rule: a name is removed only if it leads to the open file itself.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::limits::FILE_NAME_BYTES_MAX;
use crate::model::{ContentId, FileName};
use crate::share::fetch::api::FetchError;

const SUFFIX: &str = ".part";

/// The partial file's name for a file of this name.
pub(super) fn part_name(name: &FileName, content: ContentId) -> String {
    let name = name.as_str();
    if name.len() + SUFFIX.len() <= FILE_NAME_BYTES_MAX {
        return format!("{name}{SUFFIX}");
    }
    // Too long for the suffix: the name is cut, and a part of the content's id keeps it unique.
    let content = &content.to_string()[..16];
    let room = FILE_NAME_BYTES_MAX - SUFFIX.len() - content.len() - 1;
    let kept = (0..=room).rev().find(|length| name.is_char_boundary(*length)).unwrap_or(0);
    format!("{}~{content}{SUFFIX}", &name[..kept])
}

/// The random name under which a partial file is created where it cannot be without a name.
pub(super) fn first_name(random: u64) -> String {
    format!(".{random:016x}{SUFFIX}")
}

pub(super) fn is_first_name(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(SUFFIX));
    number.is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The second name of a partial file while it has no trailer: hidden, and unique to this file.
pub(super) fn claim_name(name: &FileName, content: ContentId) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&content.0).update(name.as_str().as_bytes());
    format!(".{}{SUFFIX}", &hasher.finalize().to_hex()[..32])
}

/// What has the final name.
#[derive(Debug)]
pub(in crate::share::fetch) enum Existing {
    Nothing,
    /// A regular file of the right length, which may be the wanted one.
    Candidate(File),
}

/// Looks at the final name. Anything but a regular file of the right length is an error.
pub(in crate::share::fetch) fn existing(whole: &Path, size: u64) -> Result<Existing, FetchError> {
    let in_the_way = || FetchError::Exists(whole.to_owned());
    match std::fs::symlink_metadata(whole) {
        Ok(metadata) if metadata.is_file() && metadata.len() == size => {}
        Ok(_) => return Err(in_the_way()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Existing::Nothing),
        Err(source) => return Err(FetchError::Folder { path: whole.to_owned(), source }),
    }
    // It may have been replaced by a link or a FIFO meanwhile.
    let file = open(whole, OFlags::RDONLY).map_err(|_| in_the_way())?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() == size => {
            Ok(Existing::Candidate(file))
        }
        _ => Err(in_the_way()),
    }
}

/// Removes the names that a file which was published just before a crash has kept.
pub(in crate::share::fetch) fn remove_leftovers(
    folder: &Path,
    name: &FileName,
    content: ContentId,
    whole: &File,
) {
    for leftover in [part_name(name, content), claim_name(name, content)] {
        remove_ours(whole, &folder.join(leftover));
    }
}

/// Removes the claim of a part that somebody has removed by hand while it was being published: it
/// would keep all bytes of the file on the disk, and would be in the way of the next part's. A
/// download that is under way holds the lock of its part.
pub(super) fn remove_stale_claim(folder: &Path, name: &FileName, content: ContentId) {
    let claim = folder.join(claim_name(name, content));
    let Ok(file) = open(&claim, OFlags::RDONLY) else { return };
    let is_alone =
        file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1);
    let lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    if is_alone && lock().is_ok() {
        remove_ours(&file, &claim);
    }
}

/// Opens a path, unless it leads to a link or to something that would block.
pub(super) fn open(path: &Path, access: OFlags) -> Result<File, Errno> {
    let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, access | safe, Mode::from_raw_mode(0o666)).map(File::from)
}

/// A path that leads to an open file, whatever its names are.
pub(in crate::share::fetch) fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Gives an open file another name, which has to be free.
pub(super) fn link(file: &File, to: &Path) -> Result<(), Errno> {
    rustix::fs::linkat(CWD, descriptor_path(file), CWD, to, AtFlags::SYMLINK_FOLLOW)
}

/// Whether `path` leads to the file with this metadata.
pub(super) fn is_at(metadata: &Metadata, path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|there| there.ino() == metadata.ino() && there.dev() == metadata.dev())
}

/// Removes a name, if it leads to this open file.
pub(super) fn remove_ours(file: &File, path: &Path) {
    if file.metadata().is_ok_and(|metadata| is_at(&metadata, path))
        && let Err(error) = std::fs::remove_file(path)
    {
        log::warn!("{} is left behind: {error}", path.display());
    }
}
