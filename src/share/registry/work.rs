//! The work of a registry's threads: each takes one complete request, asks the directory, and
//! returns the answer as a frame.
//!
//! Rule: a worker changes nothing but the directory. What a request means for its connection is
//! returned ([`MembershipChange`]) and applied by the event loop.

use std::net::SocketAddr;
use std::sync::Arc;

use super::directory::{DirectoryError, PeerDirectory};
use super::interface::RegistryEvent;
use crate::console::Console;
use crate::limits;
use crate::model::{FileEntry, FileName, PeerId};
use crate::net::ConnectionId;
use crate::share::index::{Member, PeerEndpoint};
use crate::text::counted;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{RegistryReply, RegistryRequest};

/// A JOIN or UPDATE of more files than this is long, and so is a JOIN that replaces more. Long
/// requests leave a thread free for searches.
const REGISTRY_LONG_FILES_MIN: usize = 128;

/// What a complete request asks for.
#[derive(Debug)]
pub(super) enum RegistryWork {
    /// All parts of a JOIN.
    Join { member: Member, place: PeerEndpoint, files: Vec<FileEntry>, shares: bool },
    /// Any other request, as it was sent.
    Other {
        /// The peer as which its connection has joined.
        member: Option<Member>,
        /// The address at which that peer serves, or the one that the connection comes from.
        asker: SocketAddr,
        body: RegistryRequest,
    },
}

/// A job for a worker.
#[derive(Debug)]
pub(super) enum RegistryJob {
    /// A request that holds `held` bytes of memory.
    Request {
        connection: ConnectionId,
        id: u64,
        work: RegistryWork,
        held: usize,
        /// Whether it changes many files.
        is_long: bool,
    },
    /// Remove a member whose connection has ended.
    Gone(Member),
    /// Find members that have been silent for too long.
    Expire,
    /// Remove one of those.
    RemoveSilent(PeerId),
}

impl RegistryJob {
    /// Whether it may take long, because it changes many files.
    pub fn is_long(&self) -> bool {
        match self {
            RegistryJob::Request { is_long, .. } => *is_long,
            // A peer that leaves may have many.
            RegistryJob::Gone(_) | RegistryJob::RemoveSilent(_) => true,
            RegistryJob::Expire => false,
        }
    }
}

impl RegistryWork {
    /// Whether it is known to change many files.
    pub fn is_long(&self) -> bool {
        match self {
            RegistryWork::Other { body: RegistryRequest::Leave, .. } => true,
            _ => self.files() > REGISTRY_LONG_FILES_MIN,
        }
    }

    /// The number of files that it says it adds or removes.
    fn files(&self) -> usize {
        match self {
            RegistryWork::Join { files, .. } => files.len(),
            RegistryWork::Other { body: RegistryRequest::Update { added, removed }, .. } => {
                added.len() + removed.len()
            }
            RegistryWork::Other { .. } => 0,
        }
    }
}

/// How a request has changed its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MembershipChange {
    /// It has joined as before, or still has not.
    None,
    /// It has joined as this member, which serves at this address.
    Joined(Member, SocketAddr),
    /// It is not a member any more.
    Out,
}

/// The completion of a job.
#[derive(Debug)]
pub(super) enum RegistryCompletion {
    /// The answer as a complete frame, and the memory that the request held.
    Reply {
        connection: ConnectionId,
        frame: Vec<u8>,
        effect: MembershipChange,
        held: usize,
        was_long: bool,
    },
    /// The request was not carried out, since it replaces many files: it is to come again as a long
    /// one.
    Long { connection: ConnectionId, id: u64, work: RegistryWork, held: usize },
    /// The member was removed.
    Gone,
    /// The silent members that are still to be removed, and their addresses.
    Expired(Vec<(PeerId, SocketAddr)>),
    /// One of them was removed.
    RemovedSilent(PeerId),
}

pub(super) struct RegistryWorker {
    pub directory: Arc<dyn PeerDirectory>,
    pub console: Console<RegistryEvent>,
}

impl RegistryWorker {
    pub fn run(&self, job: RegistryJob) -> RegistryCompletion {
        let was_long = job.is_long();
        match job {
            RegistryJob::Request { connection, id, work, held, is_long } => {
                let answered = match self.turns_out_long(&work, is_long) {
                    Ok(true) => {
                        return RegistryCompletion::Long { connection, id, work, held };
                    }
                    Ok(false) => self.answer(work),
                    Err(error) => Err(error),
                };
                let (reply, effect) = answered.unwrap_or_else(|error| {
                    let reply = match error {
                        DirectoryError::JoinedElsewhere => {
                            let retry_after_ms = limits::JOINED_ELSEWHERE_RETRY_AFTER_MS;
                            RegistryReply::IdTaken { retry_after_ms }
                        }
                        error => RegistryReply::Error {
                            message: error.to_string(),
                            retry_after_ms: error.retry_after_ms(),
                        },
                    };
                    (reply, MembershipChange::None)
                });
                let frame = frame(id, reply);
                RegistryCompletion::Reply { connection, frame, effect, held, was_long }
            }
            RegistryJob::Gone(member) => {
                if let Err(error) = self.directory.leave(member) {
                    // It will be removed after its silence time-out.
                    log::warn!("peer {} is gone and cannot be forgotten yet: {error}", member.peer);
                }
                RegistryCompletion::Gone
            }
            RegistryJob::Expire => {
                let silent = self.directory.expire().unwrap_or_else(|error| {
                    log::debug!("cannot look for silent peers: {error}");
                    Vec::new()
                });
                RegistryCompletion::Expired(silent)
            }
            RegistryJob::RemoveSilent(peer) => {
                if let Err(error) = self.directory.remove_silent(peer) {
                    // It is found again.
                    log::warn!("peer {peer} is silent and cannot be forgotten yet: {error}");
                }
                RegistryCompletion::RemovedSilent(peer)
            }
        }
    }

    /// Whether a request that is not known to be long replaces many files.
    fn turns_out_long(&self, work: &RegistryWork, is_long: bool) -> Result<bool, DirectoryError> {
        match work {
            RegistryWork::Join { member, .. } if !is_long => {
                self.directory.has_more_files(member.peer, REGISTRY_LONG_FILES_MIN)
            }
            _ => Ok(false),
        }
    }

    fn answer(
        &self,
        work: RegistryWork,
    ) -> Result<(RegistryReply, MembershipChange), DirectoryError> {
        let (member, asker, body) = match work {
            RegistryWork::Join { member, place, files, shares } => {
                return self.join(member, place, files, shares);
            }
            RegistryWork::Other { member, asker, body } => (member, asker, body),
        };
        // Any request of a member is a sign of life. A peer that searches all the time sends no
        // KEEP_ALIVE.
        if let Some(member) = member
            && !self.directory.heartbeat(member)?
        {
            return Ok((RegistryReply::NotJoined, MembershipChange::Out));
        }
        let reply = match (body, member) {
            (RegistryRequest::Update { added, removed }, Some(member)) => {
                let (new, gone) = (added.len(), removed.len());
                let known = self.directory.update(member, added, &removed)?;
                if known {
                    let new = counted(new as u64, "file", "files");
                    log::debug!("peer {}: {new} added, {gone} removed", member.peer);
                }
                return Ok(if_known(known, RegistryReply::UpdateOk));
            }
            (RegistryRequest::Fetching { content, size }, Some(member)) => {
                let known = self.directory.fetching(member, content, size)?;
                return Ok(if_known(known, RegistryReply::UpdateOk));
            }
            (RegistryRequest::Fetched { content }, Some(member)) => {
                let known = self.directory.fetched(member, content)?;
                return Ok(if_known(known, RegistryReply::UpdateOk));
            }
            (RegistryRequest::KeepAlive, Some(_)) => RegistryReply::AliveOk,
            (RegistryRequest::Leave, Some(member)) => {
                self.directory.leave(member)?;
                log::info!("peer {} has left", member.peer);
                return Ok((RegistryReply::LeaveOk, MembershipChange::Out));
            }
            (RegistryRequest::Search { name }, _) => {
                let mut sources = Vec::new();
                for name in name.spellings() {
                    sources = self.directory.search(&name)?;
                    if !sources.is_empty() {
                        break;
                    }
                }
                if self.console.is_on() {
                    self.console.show(RegistryEvent::Searched { address: asker, name });
                }
                RegistryReply::Sources(sources)
            }
            (RegistryRequest::SearchContent { content }, _) => {
                RegistryReply::Sources(self.directory.sources_of(content)?)
            }
            (RegistryRequest::Peers { after }, _) => {
                let (peers, more) = self.directory.peers(after)?;
                RegistryReply::Peers { peers, more }
            }
            (RegistryRequest::Files { after }, _) => {
                let (files, more) = self.directory.files(after.as_ref())?;
                RegistryReply::Files { files, more }
            }
            // The event loop puts JOINs together, and asks for nothing in the name of no member.
            (body @ RegistryRequest::Join { .. }, _) | (body, None) => {
                panic!("{body:?} of {member:?} is no work for a thread")
            }
        };
        Ok((reply, MembershipChange::None))
    }

    fn join(
        &self,
        member: Member,
        place: PeerEndpoint,
        files: Vec<FileEntry>,
        shares: bool,
    ) -> Result<(RegistryReply, MembershipChange), DirectoryError> {
        let address = place.address;
        // The console line is for peers that share files. A peer that only downloads has its own
        // line when it searches.
        let names = (shares && self.console.is_on()).then(|| names(&files));
        let files_count = files.len();
        self.directory.join(member, place, files)?;
        let files = counted(files_count as u64, "file", "files");
        log::info!("peer {} at {address} has joined with {files}", member.peer);
        if let Some(names) = names {
            self.console.show(RegistryEvent::Joined { address, names });
        }
        Ok((RegistryReply::JoinOk, MembershipChange::Joined(member, address)))
    }
}

fn names(files: &[FileEntry]) -> Vec<FileName> {
    files.iter().map(|file| file.name.clone()).collect()
}

fn if_known(known: bool, reply: RegistryReply) -> (RegistryReply, MembershipChange) {
    if known {
        (reply, MembershipChange::None)
    } else {
        (RegistryReply::NotJoined, MembershipChange::Out)
    }
}

/// Encodes an answer as one frame. Every answer fits: see the relations in `limits`. If one did
/// not, it would be lost and not sent in part.
pub(super) fn frame(id: u64, body: RegistryReply) -> Vec<u8> {
    let mut frame = Vec::new();
    let reply = Message::RegistryReply { id, body };
    if let Err(error) = codec::encode(&reply, limits::REGISTRY_FRAME_BYTES_MAX, &mut frame) {
        log::error!("cannot send a reply: {error}");
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::super::directory::MemoryDirectory;
    use super::*;
    use crate::model::{ContentId, PeerId};
    use crate::share::index::IndexLimits;

    fn join(files: usize, is_long: bool) -> RegistryJob {
        let address = SocketAddr::from(([10, 0, 0, 1], 1));
        let file = |number| FileEntry {
            name: FileName::new(&format!("file-{number}")).unwrap(),
            size: 1,
            content: ContentId([1; 32]),
        };
        let work = RegistryWork::Join {
            member: Member { peer: PeerId(1), session: 1 },
            place: PeerEndpoint { address, origin: address.ip(), key: 1 },
            files: (0..files).map(file).collect(),
            shares: false,
        };
        let connection = ConnectionId::from_u64(1);
        RegistryJob::Request {
            connection,
            id: 1,
            is_long: is_long || work.is_long(),
            work,
            held: 7,
        }
    }

    /// Once a JOIN of one file removed 64 Ki others as a short request, beside a long one on the
    /// only other thread, and searches waited for both.
    #[test]
    fn a_small_join_that_replaces_many_files_is_long() {
        let silence = limits::REGISTRY_SILENCE_TIMEOUT_DEFAULT;
        let directory = MemoryDirectory::new(IndexLimits::default(), silence);
        let worker = RegistryWorker { directory: Arc::new(directory), console: Console::off() };
        let replied = |job| match worker.run(job) {
            RegistryCompletion::Reply { was_long, .. } => was_long,
            other => panic!("{other:?}"),
        };
        assert!(!replied(join(1, false)));
        assert!(!replied(join(REGISTRY_LONG_FILES_MIN, false)));
        assert!(!replied(join(1, false)), "it replaces no more than a short one may add");
        assert!(replied(join(REGISTRY_LONG_FILES_MIN + 1, false)));
        let again = worker.run(join(1, false));
        assert!(matches!(again, RegistryCompletion::Long { held: 7, .. }), "{again:?}");
        let name = FileName::new("file-1").unwrap();
        assert_eq!(worker.directory.search(&name).unwrap().len(), 1, "nothing was done yet");
        assert!(replied(join(1, true)));
        assert_eq!(worker.directory.search(&name).unwrap(), []);
    }
}
