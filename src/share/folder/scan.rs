//! One look at a folder: which of its files can be offered.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Look;
use crate::limits;
use crate::share::names::{FileName, NameError};
use crate::share::offer::FileStamp;
use crate::text::escape;

/// A file that can be offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub name: FileName,
    pub look: Look,
}

/// What a look has found.
pub(super) struct Scan {
    /// In order of name.
    pub files: Vec<Found>,
    /// What is not offered and has been said to be so, now or before.
    pub told: HashSet<OsString>,
}

/// Looks at a folder. What cannot be offered, and is not in `told`, gets a line in the log.
pub(super) fn scan(folder: &Path, told: &HashSet<OsString>) -> io::Result<Scan> {
    let mut scan = Scan { files: Vec::new(), told: HashSet::new() };
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let file_name = entry.file_name();
        // Not of what a link leads to, but of the link.
        let Ok(metadata) = entry.metadata() else { continue };
        match judge(&file_name, &metadata) {
            Ok(found) => scan.files.push(found),
            Err(None) => {}
            Err(Some(why)) => {
                if !told.contains(&file_name) {
                    let name = escape(file_name.as_encoded_bytes());
                    log::info!("{name} is not offered: {why}");
                }
                scan.told.insert(file_name);
            }
        }
    }
    scan.files.sort_by(|a, b| a.name.cmp(&b.name));
    let max = limits::FILES_PER_PEER_MAX;
    if scan.files.len() > max {
        let everything = OsString::new();
        if !told.contains(&everything) {
            log::warn!("only the first {max} of {} files are offered", scan.files.len());
        }
        scan.told.insert(everything);
        scan.files.truncate(max);
    }
    Ok(scan)
}

/// A file to offer, or why not; without a reason where nobody would expect it.
fn judge(file_name: &OsString, metadata: &Metadata) -> Result<Found, Option<String>> {
    let Some(name) = file_name.to_str() else {
        return Err(Some("its name is not UTF-8".to_owned()));
    };
    if name.starts_with('.') || metadata.is_dir() {
        return Err(None);
    }
    if metadata.is_symlink() {
        return Err(Some("it is a link; put the file itself into the folder".to_owned()));
    }
    if !metadata.is_file() {
        return Err(Some("it is not a regular file".to_owned()));
    }
    let name = FileName::new(name).map_err(|error| match error {
        NameError::Partial => None,
        error => Some(error.to_string()),
    })?;
    if metadata.len() > limits::FILE_BYTES_MAX {
        let max = limits::FILE_BYTES_MAX;
        return Err(Some(format!("it has more than {max} bytes")));
    }
    Ok(Found { name, look: look(metadata) })
}

pub(super) fn look(metadata: &Metadata) -> Look {
    Look { stamp: FileStamp::of(metadata), inode: inode(metadata) }
}

pub(super) fn inode(metadata: &Metadata) -> u64 {
    metadata.ino()
}

/// What a regular file looks like; `None` when there is none.
pub(super) fn look_at(path: &Path) -> Option<Look> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.is_file().then(|| look(&metadata))
}
