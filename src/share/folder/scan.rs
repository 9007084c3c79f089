//! Scans a folder: which of its entries can be offered, and why the others are left out.
//!
//! Rule: an entry is looked at through the folder's descriptor and without following links.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use super::identity::FileIdentity;
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

/// The result of a scan.
#[derive(Debug, Default)]
pub(super) struct FolderScan {
    /// In order of name.
    pub files: Vec<ScannedFile>,
    /// The other entries, and why each is not offered.
    pub left_out: BTreeMap<OsString, LeftOut>,
}

/// Why an entry of a folder is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// It is a folder. Only files directly in the shared folder are offered.
    Folder,
    /// It is a link, which could lead anywhere.
    Link,
    /// It is a FIFO, a socket or a device.
    Special,
    /// Its name begins with a dot. Such files hold settings, which no one shares on purpose.
    Hidden,
    /// It is the incomplete file of a download.
    Partial,
    /// Its name is not UTF-8.
    NotUtf8,
    /// Its name cannot be that of a shared file.
    Name(NameError),
    /// It is larger than a shared file may be.
    TooLarge,
    /// The folder has more files than a peer may offer.
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

/// The suffixes that browsers and other programs give to incomplete files.
const OTHERS_PARTS: [&str; 4] = [".crdownload", ".aria2", ".!qb", ".download"];

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
            // It was removed just now.
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

/// Whether an error means that this process or machine lacks a resource, and nothing about the
/// file.
pub(super) fn is_out_of_resources(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| lacking.contains(&errno))
}

/// A file to offer, or the reason why not; `None` for Acervo's own files, which are not reported.
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

/// The metadata of an entry; of a link itself, not of what it leads to.
fn metadata(folder: &File, name: &OsStr) -> io::Result<Metadata> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?).metadata()
}

/// The identity of a regular file; `None` if there is none of that name.
pub(super) fn identity_of(folder: &File, name: &FileName) -> Option<FileIdentity> {
    let metadata = metadata(folder, name.as_str().as_ref()).ok()?;
    metadata.is_file().then(|| identity(&metadata))
}
