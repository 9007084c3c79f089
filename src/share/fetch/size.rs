//! Proves the size of a content for which the registry names several sizes.
//!
//! A content has exactly one size, and every peer that has it can prove it, whatever size was
//! announced. The list of its chunk hashes is verified against the content's id, and ends where it
//! gives that id. The last chunk is verified against the last hash of the list at its place in the
//! content: its place and length give the size.
//!
//! The list alone proves nothing. If the hashes of inner nodes of the tree stand in for those of
//! chunks, a shorter list gives the same id. But a node's hash depends on the offset at which its
//! bytes begin, so no bytes of one chunk hash to it at the place that such a list claims.
//!
//! Rule: no source delays the others. [`SIZE_QUESTIONS_MAX`] sources
//! are asked at once, each on its own thread. Each has a moment at first, and twice as long each
//! time that all have had theirs. Sources of one IP address have their turns after one of each
//! other address. A source that has sent the whole list may take longer for the chunk, as long as
//! half of the threads are left for others.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use rand::seq::SliceRandom;

use super::api::{FetchError, KeptPart};
use super::dialogue::{DialogueError, PeerDialogue};
use crate::limits::{self, origin_of};
use crate::model::{ChunkHash, ContentId, FileName};
use crate::share::content::{chunk_count, chunk_offset, hash_chunk, root_of, subtree_hash};
use crate::wire::share::{PeerReply, PeerRequest, Source};

/// Where several sizes of a content are told, sources that are asked at once to prove one, each on
/// a thread of its own.
const SIZE_QUESTIONS_MAX: usize = 16;
/// The time that a source has at first for its proof, from the dial on. It doubles when all have
/// had it: sixty that say nothing cost two seconds, and a line of 100 KB/s gets a page of chunk
/// hashes through on the third attempt.
const SIZE_QUESTION_TIME: Duration = Duration::from_millis(500);
/// Sources are asked for the last chunk one after the other in this time, in which a near one has
/// sent it.
const SIZE_CHUNK_AFTER: Duration = Duration::from_millis(50);

/// How often a thread that waits for its turn checks whether it has come.
const SIZE_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The parameters of [`prove_size`].
#[derive(Clone, Debug)]
pub struct SizeOptions {
    /// The file's name, for error messages.
    pub name: FileName,
    pub content: ContentId,
    /// The peers that claim to have the content, whatever size they announce.
    pub sources: Vec<Source>,
    /// How long to try in all.
    pub patience: Duration,
    /// Ends the search when set.
    pub stop: Arc<AtomicBool>,
}

/// Returns the first source that proves the size, with that size. `more` is called now and then, on
/// a thread of its own, for further sources.
///
/// # Errors
/// No source has proved a size within the patience, `stop` was set, or the system refuses a thread.
pub fn prove_size(
    options: SizeOptions,
    mut more: impl FnMut() -> Vec<Source> + Send + 'static,
) -> Result<Source, FetchError> {
    let SizeOptions { name, content, sources, patience, stop } = options;
    // An empty content has no chunk to ask for.
    if let Some(source) = sources.first()
        && content == root_of(&[])
    {
        return Ok(Source { size: 0, ..source.clone() });
    }
    let (found, proofs) = bounded(1);
    let deadline = Instant::now() + patience;
    let inquiry = Arc::new(Inquiry {
        content,
        deadline,
        is_over: AtomicBool::new(false),
        state: Mutex::default(),
        found,
    });
    // The threads end by themselves. One that is dialling is not waited for.
    let _end = StopOnDrop(Arc::clone(&inquiry));
    inquiry.add(sources);
    let begin = |run: Box<dyn FnOnce() + Send>| {
        let thread = thread::Builder::new().name("share-size".to_owned()).spawn(run);
        thread.map(drop).map_err(|error| FetchError::Internal {
            name: name.clone(),
            reason: format!("no thread can be started: {error}"),
            kept: KeptPart(false),
        })
    };
    for _ in 0..SIZE_QUESTIONS_MAX {
        let inquiry = Arc::clone(&inquiry);
        begin(Box::new(move || inquiry.work()))?;
    }
    let seeking = Arc::clone(&inquiry);
    begin(Box::new(move || {
        while seeking.pause_until(Instant::now() + limits::SOURCES_REFRESH_INTERVAL) {
            seeking.add(more());
        }
    }))?;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(FetchError::Cancelled(KeptPart(false)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match proofs.recv_timeout(left.min(limits::STOP_LOOK_INTERVAL)) {
            Ok(source) => return Ok(source),
            Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
            Err(_) => {
                let mut last = std::mem::take(&mut inquiry.state().last);
                if last.is_empty() {
                    "nobody has answered".clone_into(&mut last);
                }
                return Err(FetchError::NoSize { name, last });
            }
        }
    }
}

/// Ends the threads of an inquiry when it is dropped.
struct StopOnDrop(Arc<Inquiry>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// The state that the asking threads share.
struct Inquiry {
    content: ContentId,
    deadline: Instant,
    is_over: AtomicBool,
    state: Mutex<InquiryState>,
    found: Sender<Source>,
}

#[derive(Default)]
struct InquiryState {
    /// Sources to be asked, those that have been asked least often first.
    waiting: VecDeque<Attempt>,
    /// The addresses of all sources that were ever added.
    known: HashSet<SocketAddr>,
    /// Why the last source has failed.
    last: String,
    /// The number of threads that take longer for a last chunk.
    patient: usize,
    /// The earliest time at which another last chunk may be requested.
    next_chunk: Option<Instant>,
}

/// The next attempt at a source.
struct Attempt {
    source: Source,
    /// The earliest time of the attempt.
    from: Instant,
    /// The time allowed for all answers; doubled with each failed attempt.
    time: Duration,
}

impl Inquiry {
    fn state(&self) -> MutexGuard<'_, InquiryState> {
        // Its fields are independent of each other.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire) || Instant::now() >= self.deadline
    }

    /// Sleeps until then. Returns false if the inquiry has ended meanwhile.
    fn pause_until(&self, at: Instant) -> bool {
        while !self.is_over() {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(SIZE_POLL_INTERVAL));
        }
        false
    }

    /// Adds the sources whose address is new, in random order, one of each IP address first.
    fn add(&self, mut sources: Vec<Source>) {
        sources.shuffle(&mut rand::rng());
        let mut of_origin: HashMap<_, usize> = HashMap::new();
        let mut ranked: Vec<(usize, Source)> = sources
            .into_iter()
            .filter(|source| source.content == self.content)
            .map(|source| {
                let rank = of_origin.entry(origin_of(source.address.ip())).or_default();
                *rank += 1;
                (*rank, source)
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let (mut state, from) = (self.state(), Instant::now());
        let mut fresh = VecDeque::new();
        for (_, source) in ranked {
            if state.known.len() < limits::SOURCES_KNOWN_MAX && state.known.insert(source.address) {
                fresh.push_back(Attempt { source, from, time: SIZE_QUESTION_TIME });
            }
        }
        fresh.append(&mut state.waiting);
        state.waiting = fresh;
    }

    /// Makes one attempt after the other until a source has proved the size.
    fn work(&self) {
        while !self.is_over() {
            let begun = Instant::now();
            let attempt = {
                let mut state = self.state();
                let due = state.waiting.iter().position(|attempt| attempt.from <= begun);
                due.and_then(|at| state.waiting.remove(at))
            };
            let Some(mut attempt) = attempt else {
                self.pause_until(begun + SIZE_POLL_INTERVAL);
                continue;
            };
            let failure = match self.ask(&attempt) {
                Ok(size) => {
                    attempt.source.size = size;
                    // The channel is full if another thread was faster.
                    let _ = self.found.try_send(attempt.source);
                    return;
                }
                Err(failure) => failure,
            };
            let why = format!("{}: {failure}", attempt.source.address);
            log::info!("source {why}");
            let mut state = self.state();
            state.last = why;
            if !matches!(failure, DialogueError::Lie(_)) {
                attempt.from = begun + limits::SOURCE_REDIAL_MIN;
                attempt.time = attempt.time.saturating_mul(2);
                state.waiting.push_back(attempt);
            }
        }
    }

    /// Asks a source for its proof within the time of the attempt.
    fn ask(&self, attempt: &Attempt) -> Result<u64, DialogueError> {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(DialogueError::Late);
        }
        let (time, is_over) = (attempt.time.min(left), || self.is_over());
        let silence_max = limits::SOURCE_SILENCE_MAX;
        let peer = PeerDialogue::open(attempt.source.address, time, silence_max, &is_over)?;
        let mut dialogue = SizeDialogue { inquiry: self, peer };
        dialogue.peer.greet()?;
        let (count, last) = dialogue.list()?;
        let is_patient = {
            let mut state = self.state();
            let may = state.patient < SIZE_QUESTIONS_MAX / 2;
            state.patient += usize::from(may);
            may
        };
        if is_patient {
            dialogue.peer.deadline = self.deadline;
        }
        let size = dialogue.last_chunk(count, last);
        self.state().patient -= usize::from(is_patient);
        size
    }

    /// Waits until a last chunk may be requested, and returns how long that took. They are
    /// requested one after the other, so that not every source that has one sends it.
    fn await_chunk_turn(&self) -> Result<Duration, DialogueError> {
        let now = Instant::now();
        let attempt = {
            let mut state = self.state();
            let attempt = state.next_chunk.map_or(now, |next| next.max(now));
            state.next_chunk = Some(attempt + SIZE_CHUNK_AFTER);
            attempt
        };
        if !self.pause_until(attempt) {
            return Err(DialogueError::Late);
        }
        Ok(now.elapsed())
    }
}

struct SizeDialogue<'a> {
    inquiry: &'a Inquiry,
    peer: PeerDialogue<'a>,
}

impl SizeDialogue<'_> {
    fn ask(&mut self, body: PeerRequest) -> Result<PeerReply, DialogueError> {
        match self.peer.ask(body)? {
            PeerReply::Denied { message, .. } => Err(DialogueError::Denied(message)),
            body => Ok(body),
        }
    }

    /// Fetches the list of hashes. Returns the number of chunks and the last chunk's hash.
    fn list(&mut self) -> Result<(u64, ChunkHash), DialogueError> {
        let content = self.inquiry.content;
        let (mut list, mut first) = (ListProof::new(content), 0);
        loop {
            let PeerReply::Hashes { hashes } = self.ask(PeerRequest::Hashes { content, first })?
            else {
                return Err(DialogueError::lie("it answers what it was not asked"));
            };
            match list.take(&hashes) {
                PageVerdict::More(next) => first = next,
                PageVerdict::Whole(count, last) => return Ok((count, last)),
                PageVerdict::Wrong => return Err(DialogueError::lie("its chunk hashes are false")),
            }
        }
    }

    /// Fetches the last of `count` chunks, and returns the size that it proves.
    fn last_chunk(&mut self, count: u64, last: ChunkHash) -> Result<u64, DialogueError> {
        self.peer.deadline += self.inquiry.await_chunk_turn()?;
        let (content, index) = (self.inquiry.content, count - 1);
        let PeerReply::Chunk { length } = self.ask(PeerRequest::Chunk { content, index })? else {
            return Err(DialogueError::lie("it answers what it was not asked"));
        };
        if length == 0 || length as usize > limits::CHUNK_BYTES {
            return Err(DialogueError::lie("its last chunk has a false length"));
        }
        let mut bytes = vec![0; length as usize];
        self.peer.receive(&mut bytes)?;
        let size = chunk_offset(index) + u64::from(length);
        if hash_chunk(index, size, &bytes) == Some(last) {
            Ok(size)
        } else {
            Err(DialogueError::lie("its last chunk is false"))
        }
    }
}

/// Verifies a list of chunk hashes of unknown length page by page. All pages but the last are full,
/// so each is a whole subtree, and only its hash is kept. So a list of any length takes little
/// memory.
#[derive(Debug)]
struct ListProof {
    content: ContentId,
    pages: Vec<ChunkHash>,
    count: u64,
}

/// What a page means for the list.
#[derive(Debug, PartialEq, Eq)]
enum PageVerdict {
    /// The list goes on with this chunk.
    More(u64),
    /// The list is complete: the number of chunks, and the last chunk's hash.
    Whole(u64, ChunkHash),
    /// This cannot be a page of the content's list.
    Wrong,
}

impl ListProof {
    fn new(content: ContentId) -> ListProof {
        ListProof { content, pages: Vec::new(), count: 0 }
    }

    fn take(&mut self, page: &[ChunkHash]) -> PageVerdict {
        let Some(last) = page.last() else { return PageVerdict::Wrong };
        self.count += page.len() as u64;
        let is_too_long = self.count > chunk_count(limits::FILE_BYTES_MAX);
        if is_too_long || page.len() > limits::HASHES_PER_FRAME_MAX {
            return PageVerdict::Wrong;
        }
        self.pages.push(subtree_hash(page));
        // A full page covers a power of two of chunks, so the tree over pages is the tree over
        // chunks.
        let root = if self.pages.len() == 1 { root_of(page) } else { root_of(&self.pages) };
        if root == self.content {
            PageVerdict::Whole(self.count, *last)
        } else if page.len() == limits::HASHES_PER_FRAME_MAX {
            PageVerdict::More(self.count)
        } else {
            PageVerdict::Wrong
        }
    }
}

#[cfg(test)]
mod tests;
