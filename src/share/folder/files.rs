//! The known files of a folder: which are offered, have vanished, are suspected of having changed,
//! wait to be hashed again, or could not be hashed.
//!
//! Rule: an offered file is in `files` and, under its content, in `contents`; the two agree. A file
//! is in `files`, `vanished` or `suspects`, and in no two of them.
//!
//! The module is pure: the caller passes the time and the result of a scan.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hash::HashError;
use super::identity::FileIdentity;
use super::scan::ScannedFile;
use crate::limits;
use crate::model::{ContentId, FileName};
use crate::share::content::Manifest;
use crate::share::offer::FileStamp;

/// A file that could not be hashed is tried again after this, doubling with each failure.
pub(super) const FOLDER_RETRY_MIN: Duration = Duration::from_secs(10);
/// The longest pause before a file is hashed again: what a person mends should be offered while the
/// person still looks, and a disk that fails is read once in this time.
const FOLDER_RETRY_MAX: Duration = Duration::from_secs(320);

/// What was hashed of a file that has vanished from a folder is remembered this long, so that a
/// disk that comes back is not hashed anew.
const VANISHED_FILES_KEPT: Duration = Duration::from_secs(3600);

/// A file that is offered.
#[derive(Clone, Debug)]
pub(super) struct OfferedFile {
    pub identity: FileIdentity,
    pub manifest: Arc<Manifest>,
}

/// A file that could not be hashed. It is tried again although its identity stays the same, because
/// a mode that forbids reading, or a disk that was away, leaves no trace in it.
#[derive(Clone, Copy, Debug)]
struct FailedFile {
    identity: FileIdentity,
    /// Doubles with each failure, so that a broken disk is not read all the time.
    wait: Duration,
    retry_at: Instant,
}

/// The known files of a folder.
#[derive(Debug, Default)]
pub(super) struct FolderFiles {
    files: BTreeMap<FileName, OfferedFile>,
    contents: HashMap<ContentId, Vec<FileName>>,
    /// Files that the last scan has not found, and since when.
    vanished: HashMap<FileName, (OfferedFile, Instant)>,
    /// Files that a server has found changed or gone, until the next scan. Those that it finds with
    /// the same identity are offered again; the others are hashed.
    suspects: HashMap<FileName, OfferedFile>,
    /// The previous contents of files that are waiting to be hashed again, and may turn out to have
    /// the same content.
    in_doubt: HashMap<FileName, ContentId>,
    /// Files that could not be hashed. They are hashed again after a while, or when they change.
    failed: HashMap<FileName, FailedFile>,
    /// Files that have changed since the scan under way began. Its list may be older than the
    /// change, so it decides nothing about them; the next scan does.
    changed_since_scan: HashSet<FileName>,
}

impl FolderFiles {
    /// The offered files in order of name.
    pub(super) fn offered(&self) -> impl Iterator<Item = (&FileName, &OfferedFile)> {
        self.files.iter()
    }

    pub(super) fn get(&self, name: &FileName) -> Option<&OfferedFile> {
        self.files.get(name)
    }

    /// An offered file that has this content.
    pub(super) fn with_content(&self, content: ContentId) -> Option<(&FileName, &OfferedFile)> {
        let name = self.contents.get(&content)?.first()?;
        let file = self.files.get(name);
        Some((name, file.expect("a name under a content is that of an offered file")))
    }

    /// Whether a file that had this content may be offered with it again soon.
    pub(super) fn may_return(&self, content: ContentId) -> bool {
        let is_it = |file: &OfferedFile| file.manifest.content() == content;
        self.in_doubt.values().any(|one| *one == content) || self.suspects.values().any(is_it)
    }

    /// Offers a file that is known to have this content.
    pub(super) fn insert(&mut self, name: FileName, file: OfferedFile) {
        self.remove(&name);
        self.vanished.remove(&name);
        self.suspects.remove(&name);
        self.in_doubt.remove(&name);
        self.contents.entry(file.manifest.content()).or_default().push(name.clone());
        self.files.insert(name, file);
        self.check_sizes();
    }

    /// Offers a file that has been downloaded into the folder.
    pub(super) fn downloaded(&mut self, name: FileName, file: OfferedFile) {
        self.changed_since_scan.insert(name.clone());
        self.insert(name, file);
    }

    /// A file was hashed, or could not be. Returns whether the offered files have changed, and logs
    /// the first failure of a file.
    pub(super) fn hashed(
        &mut self,
        ScannedFile { name, identity }: &ScannedFile,
        result: Result<Manifest, HashError>,
        now: Instant,
    ) -> bool {
        self.changed_since_scan.insert(name.clone());
        self.in_doubt.remove(name);
        let before = self.failed.remove(name).filter(|file| file.identity == *identity);
        match result {
            Ok(manifest) => {
                let manifest = Arc::new(manifest);
                self.insert(name.clone(), OfferedFile { identity: *identity, manifest });
                true
            }
            Err(error) => {
                let wait = match before {
                    None => {
                        log::warn!("{name} is not offered: {error}");
                        FOLDER_RETRY_MIN
                    }
                    Some(FailedFile { wait, .. }) => (2 * wait).min(FOLDER_RETRY_MAX),
                };
                let failed = FailedFile { identity: *identity, wait, retry_at: now + wait };
                self.failed.insert(name.clone(), failed);
                false
            }
        }
    }

    /// A server has found a file changed or gone that was offered with this stamp. Returns whether
    /// it still was.
    pub(super) fn suspect(&mut self, name: FileName, stamp: Option<FileStamp>) -> bool {
        let Some(file) = self.withdraw(&name, stamp) else { return false };
        self.suspects.insert(name, file);
        true
    }

    /// A server has found that a file with this stamp does not hold what was hashed. Returns its
    /// identity if it was still offered: it has to be hashed again.
    pub(super) fn corrupted(
        &mut self,
        name: &FileName,
        stamp: Option<FileStamp>,
    ) -> Option<FileIdentity> {
        // Not among the suspects, which are offered again if their identity is the same.
        let OfferedFile { identity, manifest } = self.withdraw(name, stamp)?;
        self.in_doubt.insert(name.clone(), manifest.content());
        Some(identity)
    }

    /// Stops to offer a file, unless it has been hashed again since it had this stamp.
    fn withdraw(&mut self, name: &FileName, stamp: Option<FileStamp>) -> Option<OfferedFile> {
        let file = self.files.get(name)?;
        if Some(file.identity.stamp) != stamp {
            return None;
        }
        self.changed_since_scan.insert(name.clone());
        self.remove(name)
    }

    fn remove(&mut self, name: &FileName) -> Option<OfferedFile> {
        let file = self.files.remove(name)?;
        let content = file.manifest.content();
        let names = self.contents.get_mut(&content);
        let names = names.expect("an offered file is listed under its content");
        let before = names.len();
        names.retain(|other| other != name);
        assert_eq!(names.len() + 1, before, "{name} is listed once under its content");
        if names.is_empty() {
            self.contents.remove(&content);
        }
        self.check_sizes();
        Some(file)
    }

    fn check_sizes(&self) {
        let (files, contents) = (self.files.len(), self.contents.len());
        assert!(
            contents <= files && (contents == 0) == (files == 0),
            "{files} files, {contents} contents"
        );
    }

    /// A scan begins to list the folder. Changes from now on are newer than its list.
    pub(super) fn scan_begins(&mut self) {
        self.changed_since_scan.clear();
    }

    /// Applies the result of a scan. Returns whether the offered files have changed.
    pub(super) fn apply(
        &mut self,
        identities: &HashMap<&FileName, FileIdentity>,
        now: Instant,
    ) -> bool {
        let gone: Vec<FileName> = self
            .files
            .iter()
            .filter(|(name, file)| identities.get(name) != Some(&file.identity))
            .filter(|(name, _)| !self.changed_since_scan.contains(*name))
            .map(|(name, _)| name.clone())
            .collect();
        let mut is_different = !gone.is_empty();
        for name in gone {
            let Some(file) = self.remove(&name) else { continue };
            if identities.contains_key(&name) {
                self.in_doubt.insert(name, file.manifest.content());
            } else {
                self.remember(name, file, now);
            }
        }
        for (name, file) in std::mem::take(&mut self.suspects) {
            if self.changed_since_scan.contains(&name) {
                self.suspects.insert(name, file);
            } else {
                // Treated below like any file that had vanished.
                self.remember(name, file, now);
            }
        }
        let is_recent = |since: Instant| now.duration_since(since) < VANISHED_FILES_KEPT;
        let mut back = Vec::new();
        let in_doubt = &mut self.in_doubt;
        in_doubt.retain(|name, _| identities.contains_key(name));
        self.vanished.retain(|name, (file, since)| match identities.get(name) {
            None => is_recent(*since),
            Some(identity) => {
                if *identity == file.identity {
                    back.push((name.clone(), file.clone()));
                } else {
                    in_doubt.insert(name.clone(), file.manifest.content());
                }
                false
            }
        });
        is_different |= !back.is_empty();
        for (name, file) in back {
            self.insert(name, file);
        }
        let FolderFiles { failed, changed_since_scan, .. } = self;
        failed.retain(|name, file| {
            identities.get(name) == Some(&file.identity) || changed_since_scan.contains(name)
        });
        is_different
    }

    /// Remembers a file that has vanished, up to a limit.
    fn remember(&mut self, name: FileName, file: OfferedFile, now: Instant) {
        if self.vanished.len() < limits::FILES_PER_PEER_MAX {
            self.vanished.insert(name, (file, now));
        }
    }

    /// Whether a file that a scan has found need not be hashed now: it is offered, has changed
    /// since the scan began, or could not be hashed a short while ago.
    pub(super) fn is_settled(&self, name: &FileName, now: Instant) -> bool {
        self.files.contains_key(name)
            || self.changed_since_scan.contains(name)
            || self.failed.get(name).is_some_and(|file| now < file.retry_at)
    }

    /// Has a file appear unchanged although it holds other bytes.
    #[cfg(test)]
    pub(super) fn set_identity(&mut self, name: &FileName, identity: FileIdentity) {
        self.files.get_mut(name).expect("it is offered").identity = identity;
    }
}
