//! One look at a folder: which of its files can be offered, and what is left out.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use super::FileIdentity;
use super::state;
use crate::limits;
use crate::model::{FileName, NameError};
use crate::share::offer::FileStamp;

/// A file that can be offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScannedFile {
    pub name: FileName,
    pub identity: FileIdentity,
}

/// What a look has found.
#[derive(Debug, Default)]
pub(super) struct FolderScan {
    /// In order of name.
    pub files: Vec<ScannedFile>,
    /// Everything else, and why it is not offered.
    pub left_out: BTreeMap<OsString, LeftOut>,
}

/// Why something in a folder is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// A folder: what is offered is directly in the shared one.
    Folder,
    /// A link, which could lead anywhere.
    Link,
    /// A FIFO, a socket, a device.
    Special,
    /// A name that begins with a dot, so that nobody shares settings by accident.
    Hidden,
    /// A file that is still arriving.
    Partial,
    /// A name that is no text.
    NotUtf8,
    /// A name that cannot be one of a shared file.
    Name(NameError),
    /// More bytes than a shared file may have.
    TooLarge,
    /// One more than a peer may offer.
    TooMany,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeftOut::Folder => f.write_str("it is a folder"),
            LeftOut::Link => f.write_str("it is a link; put the file itself into the folder"),
            LeftOut::Special => f.write_str("it is not a regular file"),
            LeftOut::Hidden => f.write_str("its name begins with a dot"),
            LeftOut::Partial => f.write_str("it is still arriving"),
            LeftOut::NotUtf8 => f.write_str("its name is not UTF-8"),
            LeftOut::Name(error) => error.fmt(f),
            LeftOut::TooLarge => write!(f, "it has more than {} bytes", limits::FILE_BYTES_MAX),
            LeftOut::TooMany => write!(f, "a peer offers {} files", limits::FILES_PER_PEER_MAX),
        }
    }
}

/// What browsers and other programs call a file that they have not got whole, or what they know of one.
const OTHERS_PARTS: [&str; 4] = [".crdownload", ".aria2", ".!qb", ".download"];

/// Looks at a folder.
pub(super) fn scan(folder: &File) -> io::Result<FolderScan> {
    let mut scan = FolderScan::default();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let file_name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if file_name == "." || file_name == ".." {
            continue;
        }
        let metadata = match metadata(folder, &file_name) {
            Ok(metadata) => metadata,
            Err(error) if is_out_of_resources(&error) => return Err(error),
            // It went just now.
            Err(_) => continue,
        };
        match judge(&file_name, &metadata) {
            Ok(found) => scan.files.push(found),
            Err(None) => {}
            Err(Some(why)) => drop(scan.left_out.insert(file_name, why)),
        }
    }
    scan.files.sort_by(|a, b| a.name.cmp(&b.name));
    let rest = scan.files.split_off(scan.files.len().min(limits::FILES_PER_PEER_MAX));
    let too_many = rest.into_iter().map(|found| (found.name.as_str().into(), LeftOut::TooMany));
    scan.left_out.extend(too_many);
    Ok(scan)
}

/// Whether an error says that this process or its machine lacks something, and nothing of what was looked at.
pub(super) fn is_out_of_resources(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| lacking.contains(&errno))
}

/// A file to offer, or why not; without a reason what Acervo itself keeps there.
fn judge(file_name: &OsStr, metadata: &Metadata) -> Result<ScannedFile, Option<LeftOut>> {
    if state::is_own(file_name) {
        return Err(None);
    }
    if file_name.as_encoded_bytes().starts_with(b".") {
        return Err(Some(LeftOut::Hidden));
    }
    if metadata.is_dir() {
        return Err(Some(LeftOut::Folder));
    }
    if metadata.is_symlink() {
        return Err(Some(LeftOut::Link));
    }
    if !metadata.is_file() {
        return Err(Some(LeftOut::Special));
    }
    let name = file_name.to_str().ok_or(Some(LeftOut::NotUtf8))?;
    let lower = name.to_ascii_lowercase();
    if OTHERS_PARTS.iter().any(|suffix| lower.ends_with(suffix)) {
        return Err(Some(LeftOut::Partial));
    }
    let name = FileName::new(name).map_err(|error| match error {
        NameError::Partial => Some(LeftOut::Partial),
        error => Some(LeftOut::Name(error)),
    })?;
    if metadata.len() > limits::FILE_BYTES_MAX {
        return Err(Some(LeftOut::TooLarge));
    }
    Ok(ScannedFile { name, identity: identity(metadata) })
}

pub(super) fn identity(metadata: &Metadata) -> FileIdentity {
    FileIdentity { stamp: FileStamp::of(metadata), inode: metadata.ino() }
}

/// Of what is in a folder under a name: not of what a link leads to, but of the link.
fn metadata(folder: &File, name: &OsStr) -> io::Result<Metadata> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?).metadata()
}

/// What a regular file looks like; `None` when there is none.
pub(super) fn identity_of(folder: &File, name: &FileName) -> Option<FileIdentity> {
    let metadata = metadata(folder, name.as_str().as_ref()).ok()?;
    metadata.is_file().then(|| identity(&metadata))
}
