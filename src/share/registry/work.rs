//! What a registry's workers do: one whole request each, from the directory's answer to the frame.

use std::net::SocketAddr;
use std::sync::Arc;

use super::RegistryEvent;
use super::directory::{Directory, DirectoryError};
use crate::console::Console;
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::net::ConnectionId;
use crate::share::index::{Member, PeerEndpoint};
use crate::text::counted;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::RegistryReply;

/// What is to be done.
#[derive(Debug)]
pub(super) enum RegistryWork {
    Join { member: Member, place: PeerEndpoint, files: Vec<FileEntry>, shares: bool },
    Update { member: Member, added: Vec<FileEntry>, removed: Vec<FileName> },
    Fetching { member: Member, content: ContentId, size: u64 },
    Fetched { member: Member, content: ContentId },
    KeepAlive,
    Leave(Member),
    Search { asker: SocketAddr, name: FileName },
    SearchContent(ContentId),
    Peers(Option<PeerId>),
    Files(Option<FileName>),
}

/// A piece of work.
#[derive(Debug)]
pub(super) enum RegistryJob {
    /// A request, which holds so many bytes. `member` is who the connection has joined as, except for a JOIN.
    Request {
        connection: ConnectionId,
        id: u64,
        member: Option<Member>,
        work: RegistryWork,
        held: usize,
    },
    /// A member whose connection has ended.
    Gone(Member),
    /// Time passes.
    Expire,
}

impl RegistryJob {
    /// Whether it may take long: it changes many files.
    pub fn is_long(&self) -> bool {
        match self {
            RegistryJob::Request { work, .. } => work.files() > limits::REGISTRY_LONG_FILES_MIN,
            RegistryJob::Gone(_) => true,
            RegistryJob::Expire => false,
        }
    }
}

impl RegistryWork {
    /// Files that come or go.
    fn files(&self) -> usize {
        match self {
            RegistryWork::Join { files, .. } => files.len(),
            RegistryWork::Update { added, removed, .. } => added.len() + removed.len(),
            _ => 0,
        }
    }
}

/// What a request has done to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MembershipChange {
    /// Nothing.
    None,
    /// It has joined as this member, which serves there.
    Joined(Member, SocketAddr),
    /// It is not a member any more.
    Out,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum RegistryCompletion {
    /// The answer as a whole frame, and what the request held.
    Reply {
        connection: ConnectionId,
        frame: Vec<u8>,
        effect: MembershipChange,
        held: usize,
        was_long: bool,
    },
    /// A member that is gone has been forgotten.
    Gone,
    /// So have those who were silent.
    Expired,
}

/// What a worker needs.
pub(super) struct RegistryWorker {
    pub directory: Arc<dyn Directory>,
    pub console: Console<RegistryEvent>,
}

impl RegistryWorker {
    /// Does one job.
    pub fn run(&self, job: RegistryJob) -> RegistryCompletion {
        let was_long = job.is_long();
        match job {
            RegistryJob::Request { connection, id, member, work, held } => {
                let (reply, effect) = self.answer(member, work).unwrap_or_else(|error| {
                    let retry_after_ms = error.retry_after_ms();
                    let reply = match error {
                        DirectoryError::JoinedElsewhere => {
                            RegistryReply::IdTaken { retry_after_ms }
                        }
                        error => {
                            RegistryReply::Error { message: error.to_string(), retry_after_ms }
                        }
                    };
                    (reply, MembershipChange::None)
                });
                let frame = frame(id, reply);
                RegistryCompletion::Reply { connection, frame, effect, held, was_long }
            }
            RegistryJob::Gone(member) => {
                if let Err(error) = self.directory.leave(member) {
                    // Its silence will take it away.
                    log::warn!("peer {} is gone and cannot be forgotten yet: {error}", member.peer);
                }
                RegistryCompletion::Gone
            }
            RegistryJob::Expire => {
                match self.directory.expire() {
                    Ok(expired) => expired.into_iter().for_each(|(peer, address)| {
                        log::info!("peer {peer} at {address} has fallen silent");
                    }),
                    Err(error) => log::debug!("cannot look for silent peers: {error}"),
                }
                RegistryCompletion::Expired
            }
        }
    }

    fn answer(
        &self,
        member: Option<Member>,
        work: RegistryWork,
    ) -> Result<(RegistryReply, MembershipChange), DirectoryError> {
        // Whatever a member asks shows that it lives: one that searches all the while sends no KEEP_ALIVE.
        if let Some(member) = member
            && !self.directory.heartbeat(member)?
        {
            return Ok((RegistryReply::NotJoined, MembershipChange::Out));
        }
        let reply = match work {
            RegistryWork::Join { member, place, files, shares } => {
                let address = place.address;
                // The line is about who shares something; that somebody fetches shows in who asks.
                let names = (shares && self.console.is_on()).then(|| names(&files));
                let files_count = files.len();
                self.directory.join(member, place, files)?;
                let files = counted(files_count as u64, "file", "files");
                log::info!("peer {} at {address} has joined with {files}", member.peer);
                if let Some(names) = names {
                    self.console.show(RegistryEvent::Joined { address, names });
                }
                return Ok((RegistryReply::JoinOk, MembershipChange::Joined(member, address)));
            }
            RegistryWork::Update { member, added, removed } => {
                let (new, gone) = (added.len(), removed.len());
                let known = self.directory.update(member, added, &removed)?;
                if known {
                    let new = counted(new as u64, "file", "files");
                    log::debug!("peer {}: {new} added, {gone} removed", member.peer);
                }
                return Ok(if_known(known, RegistryReply::UpdateOk));
            }
            RegistryWork::Fetching { member, content, size } => {
                let known = self.directory.fetching(member, content, size)?;
                return Ok(if_known(known, RegistryReply::UpdateOk));
            }
            RegistryWork::Fetched { member, content } => {
                let known = self.directory.fetched(member, content)?;
                return Ok(if_known(known, RegistryReply::UpdateOk));
            }
            RegistryWork::KeepAlive => RegistryReply::AliveOk,
            RegistryWork::Leave(member) => {
                self.directory.leave(member)?;
                log::info!("peer {} has left", member.peer);
                return Ok((RegistryReply::LeaveOk, MembershipChange::Out));
            }
            RegistryWork::Search { asker, name } => {
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
            RegistryWork::SearchContent(content) => {
                RegistryReply::Sources(self.directory.sources_of(content)?)
            }
            RegistryWork::Peers(after) => {
                let (peers, more) = self.directory.peers(after)?;
                RegistryReply::Peers { peers, more }
            }
            RegistryWork::Files(after) => {
                let (files, more) = self.directory.files(after.as_ref())?;
                RegistryReply::Files { files, more }
            }
        };
        Ok((reply, MembershipChange::None))
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

/// A reply as one frame. Replies fit by construction (see the relations checked in `limits`); one that
/// did not would be lost, not sent in half.
pub(super) fn frame(id: u64, body: RegistryReply) -> Vec<u8> {
    let mut frame = Vec::new();
    let reply = Message::RegistryReply { id, body };
    if let Err(error) = codec::encode(&reply, limits::REGISTRY_FRAME_BYTES_MAX, &mut frame) {
        log::error!("cannot send a reply: {error}");
    }
    frame
}
