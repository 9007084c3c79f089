//! The share's commands without a menu: `share`, `fetch`, `peers` and `files`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use rand::Rng;
use serde::Serialize;
use unicode_normalization::UnicodeNormalization;

use super::args::Format;
use super::choice::{AmbiguousContent, Choice, choices};
use super::outcome::CommandOutcome;
use super::output::print_json;
use super::share_args::{FetchArgs, ListArgs, ShareArgs};
use super::stdout;
use crate::limits;
use crate::logging;
use crate::model::{FileEntry, FileName, PeerId};
use crate::net::{ListenError, Listener};
use crate::process;
use crate::process::exit_status;
use crate::share::display::{DisplayStyle, FetchDisplay, HashDisplay, print_line, rate};
use crate::share::fetch::{self, FetchError, SizeOptions};
use crate::share::folder::{Folder, FolderError, LeftOut};
use crate::share::member::MembershipNotice;
use crate::share::peer::{DownloadRequest, Peer, PeerError, PeerOptions, sources};
use crate::share::registry_client::{PageReader, RegistryCallError, RegistryClient};
use crate::text::{counted, escape};
use crate::wire::share::{FileSummary, PeerSummary, RegistryReply, RegistryRequest, Source};

/// Pages of the list of files that a fetch reads to find a name that looks like the one that nobody
/// has.
const LOOK_ALIKE_PAGES_MAX: usize = 16;

/// Why a command of the share failed.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The registry cannot be asked.
    #[error(transparent)]
    Registry(#[from] RegistryCallError),
    /// The folder cannot be shared.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The address cannot be served on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The peer cannot begin.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The download could not be finished.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What is to be fetched cannot be the name of a shared file.
    #[error("\"{}\" cannot be fetched: {why}", escape(.name.as_encoded_bytes()))]
    Name {
        /// The name that was given.
        name: OsString,
        /// Why it cannot be one, as a sentence for a person.
        why: String,
    },
    /// The folder to fetch to is not there, and cannot be made.
    #[error(
        "the folder {} cannot be made: {source}; fetch to another one with --to",
        .path.display()
    )]
    MakeFolder {
        /// The folder that was named.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The beginning of a hash fits more than one content.
    #[error(transparent)]
    Ambiguous(#[from] AmbiguousContent),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// The answer could not be printed.
    #[error("the answer could not be printed: {0}")]
    Output(#[source] io::Error),
}

impl ShareError {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            ShareError::Registry(_) => exit_status::UNAVAILABLE,
            ShareError::Fetch(FetchError::NoSource { .. } | FetchError::NoSize { .. }) => {
                exit_status::UNAVAILABLE
            }
            ShareError::Fetch(FetchError::Gone { .. }) => exit_status::NOT_FOUND,
            ShareError::Folder(_) | ShareError::Ambiguous(_) | ShareError::Name { .. } => {
                exit_status::USAGE
            }
            ShareError::Fetch(_)
            | ShareError::MakeFolder { .. }
            | ShareError::Listen(_)
            | ShareError::Peer(_)
            | ShareError::Signals(_)
            | ShareError::Output(_) => exit_status::FAILED,
        }
    }
}

/// A flag that the signals which stop a process set. A second signal ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>, ShareError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in process::stop_signals() {
        let second = i32::from(exit_status::FAILED);
        signal_hook::flag::register_conditional_shutdown(signal, second, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(ShareError::Signals)?;
    }
    Ok(stop)
}

/// Has changes of the membership written to standard error.
fn notice(quiet: bool, display: Arc<HashDisplay>) -> impl FnMut(MembershipNotice) + Send + 'static {
    move |notice| match notice {
        MembershipNotice::Joined { registry, names, .. } if !quiet => {
            let files = counted(names.len() as u64, "file", "files");
            display.print_line(&format!("joined at {registry} with {files}"));
        }
        MembershipNotice::Joined { .. } => {}
        MembershipNotice::Lost(error) => {
            display.print_line(&format!("acervo: {error}; trying again"))
        }
    }
}

/// One line on what is not offered of a folder; none when everything is.
fn left_out(reasons: &BTreeMap<LeftOut, usize>) -> Option<String> {
    let total: usize = reasons.values().sum();
    // Names are left out for several reasons of their own, which the log tells one by one.
    let mut kinds: Vec<((&str, &str), u64)> = Vec::new();
    for (why, number) in reasons {
        let kind = match why {
            LeftOut::Folder => ("folder", "folders"),
            LeftOut::Link => ("link", "links"),
            LeftOut::Special => ("special file", "special files"),
            LeftOut::Hidden => ("hidden name", "hidden names"),
            LeftOut::Partial => ("unfinished file", "unfinished files"),
            LeftOut::NotUtf8 => ("name that is not UTF-8", "names that are not UTF-8"),
            LeftOut::Name(_) => ("unusable name", "unusable names"),
            LeftOut::TooLarge => ("file beyond 1 TiB", "files beyond 1 TiB"),
            LeftOut::TooMany => ("file beyond the first 65,536", "files beyond the first 65,536"),
        };
        match kinds.last_mut() {
            Some((last, sum)) if *last == kind => *sum += *number as u64,
            _ => kinds.push((kind, *number as u64)),
        }
    }
    let kinds: Vec<String> =
        kinds.into_iter().map(|((one, many), number)| counted(number, one, many)).collect();
    (total > 0).then(|| format!("{total} left out: {}", kinds.join(", ")))
}

/// Does what `acervo share` asks for, and prints the answer.
///
/// # Errors
/// See [`ShareError`].
pub fn share(args: &ShareArgs) -> Result<CommandOutcome, ShareError> {
    let listener = Listener::bind(args.listen.unwrap_or_else(|| args.registries.anywhere()))?;
    let address = listener.address();
    let display = Arc::new(HashDisplay::new(DisplayStyle::choose(args.quiet)));
    let folder = Folder::open(&args.dir, PeerId(rand::rng().next_u64()))?;
    let stop = stop_flag()?;
    let shown = escape(folder.path().as_os_str().as_encoded_bytes()).to_string();
    if let Some(line) = left_out(&folder.left_out()).filter(|_| !args.quiet) {
        display.print_line(&line);
    }
    let hashing = Arc::clone(&display);
    let options = PeerOptions {
        peer: folder.peer(),
        folder: Some(Arc::clone(&folder)),
        listener,
        address,
        registries: args.registries.registry.clone(),
        limit_bytes_per_s: args.limit,
        congestion: args.congestion.clone(),
        stop: Arc::clone(&stop),
        hashing: Arc::new(move |progress| hashing.show(progress)),
    };
    let peer = Peer::start(options, notice(args.quiet, Arc::clone(&display)))?;
    if !args.quiet {
        display.print_line(&format!("sharing {shown} at {}", peer.serving_at()));
        let hashing = folder.hashing();
        if !hashing.is_done() {
            let left = counted(hashing.files - hashing.files_done, "file", "files");
            display.print_line(&format!(
                "{left} still to hash: each is offered as soon as it is known"
            ));
        }
    }
    while !stop.load(Ordering::Relaxed) {
        thread::park_timeout(limits::STOP_LOOK_INTERVAL);
    }
    Ok(CommandOutcome::Done)
}

/// Does what `acervo fetch` asks for, and prints the answer.
///
/// # Errors
/// See [`ShareError`].
pub fn fetch(args: &FetchArgs, out: &mut dyn Write) -> Result<CommandOutcome, ShareError> {
    let refused = |why| ShareError::Name { name: args.name.clone(), why };
    let name = &args.file_name().map_err(refused)?;
    let started = Instant::now();
    let deadline = started + limits::REGISTRY_CALL_TIMEOUT;
    let search = RegistryRequest::Search { name: name.clone() };
    let (mut line, asked) = RegistryClient::ask_any(&args.registries.registry, &search, deadline)?;
    let choices = choices(sources(asked), args.content.as_deref())?;
    let Some(first) = choices.first() else {
        let wanted = args.content.as_ref().map(|hash| format!(" with content {hash}"));
        let (name, wanted) = (shown(name), wanted.unwrap_or_default());
        let registry = line.address();
        print_line(&format!(
            "acervo: no peer that registry {registry} knows has \"{name}\"{wanted}"
        ));
        // A hint that cannot be had is none.
        if args.content.is_none()
            && let Ok(Some(other)) = look_alike(&mut line, &args.file_name().map_err(refused)?)
        {
            let other = typable(&other);
            print_line(&format!(
                "acervo: there is a name that looks the same: fetch --escaped '{other}'"
            ));
        }
        return Ok(CommandOutcome::NotFound);
    };
    drop(line);
    if choices.len() > 1 {
        let (number, name) = (choices.len(), shown(name));
        print_line(&format!(
            "acervo: {number} files are called \"{name}\"; fetching the one of {first} (--content \
             chooses another)"
        ));
    }
    let stop = stop_flag()?;
    // Something else that has the name is told of below.
    if let Err(source) = std::fs::create_dir_all(&args.to)
        && !args.to.exists()
    {
        return Err(ShareError::MakeFolder { path: args.to.clone(), source });
    }
    let to = args.to.canonicalize().map_err(|source| {
        ShareError::Fetch(FetchError::Folder { path: args.to.clone(), source })
    })?;
    let listener = Listener::bind(args.listen.unwrap_or_else(|| args.registries.anywhere()))?;
    let options = PeerOptions {
        peer: PeerId(rand::rng().next_u64()),
        folder: None,
        address: listener.address(),
        listener,
        registries: args.registries.registry.clone(),
        limit_bytes_per_s: args.limit,
        congestion: args.congestion.clone(),
        stop: Arc::clone(&stop),
        hashing: Arc::new(|_| {}),
    };
    // An unreachable registry is not reported here, since the download goes on without it.
    let peer = Peer::start(options, |_| {})?;
    let mut choices = choices.into_iter().peekable();
    while let Some(choice) = choices.next() {
        let transferred = wanted(args, name, &to, &choice, &peer, &stop)
            .map_err(|error| (error, 0))
            .and_then(|wanted| {
                let size = wanted.size;
                let (outcome, progress) = transfer(&peer, wanted, args.quiet, &stop)?;
                Ok((size, outcome, progress))
            });
        match (transferred, choices.peek()) {
            (Ok((size, outcome, progress)), _) => {
                // Nothing is left to be ended in order: a signal ends the process at once, whoever
                // does not read its output.
                stop.store(true, Ordering::Relaxed);
                let fetched = FileEntry { name: name.clone(), size, content: choice.content };
                print_fetched(args, out, &fetched, &outcome, &progress, started.elapsed())
                    .map_err(ShareError::Output)?;
                return Ok(CommandOutcome::Done);
            }
            (Err((error, 0)), Some(next)) if is_nobodys(&error) => {
                print_line(&format!(
                    "acervo: nobody gives {}; fetching the file of {next} instead",
                    choice.content
                ));
            }
            (Err((FetchError::NoRoom { .. } | FetchError::NotSoLarge { .. }, 0)), Some(next))
                if !is_size_true(args, name, &choice, &peer, &stop) =>
            {
                print_line(&format!(
                    "acervo: nobody proves the size of {}; fetching the file of {next} instead",
                    choice.content
                ));
            }
            (Err((error, _)), _) => return Err(error.into()),
        }
    }
    // There was one to fetch.
    Ok(CommandOutcome::NotFound)
}

/// Whether there is nobody who gives the content that was asked for.
fn is_nobodys(error: &FetchError) -> bool {
    use FetchError::{Gone, NoSize, NoSource};
    matches!(error, NoSource { .. } | NoSize { .. } | Gone { .. })
}

/// The download of a content, whose size is known when all sources tell the same, and else has to
/// be proved.
fn wanted(
    args: &FetchArgs,
    name: &FileName,
    to: &Path,
    choice: &Choice,
    peer: &Peer,
    stop: &Arc<AtomicBool>,
) -> Result<DownloadRequest, FetchError> {
    let patience = args.patience.unwrap_or(limits::FETCH_PATIENCE_DEFAULT);
    let (content, mut sources) = (choice.content, choice.sources.clone());
    let (sizes, there) = (choice.sizes(), std::fs::symlink_metadata(to.join(name.as_str())));
    let size = match (sizes.first(), there) {
        (Some(only), _) if sizes.len() == 1 => *only,
        // A file that is there is this one, whoever proves it, or in the way of any.
        (_, Ok(there)) => there.len().min(limits::FILE_BYTES_MAX),
        (_, Err(_)) => {
            let proved = prove_size(args, name, choice, peer, stop)?;
            let size = proved.size;
            // First whoever is known to have it.
            sources.insert(0, proved);
            size
        }
    };
    Ok(DownloadRequest {
        name: name.clone(),
        content,
        size,
        to: to.to_owned(),
        sources,
        look_for_more: true,
        patience,
        // With --patience, sources that may come back are waited for, too.
        gone_after: args.patience.is_none().then_some(limits::SOURCES_GONE_AFTER),
    })
}

fn prove_size(
    args: &FetchArgs,
    name: &FileName,
    choice: &Choice,
    peer: &Peer,
    stop: &Arc<AtomicBool>,
) -> Result<Source, FetchError> {
    let options = SizeOptions {
        name: name.clone(),
        content: choice.content,
        sources: choice.sources.clone(),
        patience: args.patience.unwrap_or(limits::FETCH_PATIENCE_DEFAULT),
        stop: Arc::clone(stop),
    };
    fetch::prove_size(options, peer.who_has(choice.content))
}

/// Whether a content for which there is no room has its size. Sources that all tell the same were
/// believed, and may have told a large one to keep the next content from being fetched.
fn is_size_true(
    args: &FetchArgs,
    name: &FileName,
    choice: &Choice,
    peer: &Peer,
    stop: &Arc<AtomicBool>,
) -> bool {
    let sizes = choice.sizes();
    let proved = || prove_size(args, name, choice, peer, stop);
    sizes.len() != 1 || proved().is_ok_and(|source| sizes.contains(&source.size))
}

/// One download, shown while it lasts: how it ended, and how far it had come; of one that failed,
/// how many bytes of it had been found good.
fn transfer(
    peer: &Peer,
    wanted: DownloadRequest,
    quiet: bool,
    stop: &AtomicBool,
) -> Result<(fetch::FetchOutcome, fetch::FetchProgress), (FetchError, u64)> {
    let mut display = FetchDisplay::new(DisplayStyle::choose(quiet), &wanted.name, wanted.size);
    let mut transfer = peer.download(wanted).map_err(|error| (error, 0))?;
    let result = loop {
        if let Some(result) = transfer.wait_for(limits::STOP_LOOK_INTERVAL) {
            break result;
        }
        display.show(&transfer.progress(), Instant::now());
        if stop.load(Ordering::Relaxed) {
            transfer.cancel();
        }
    };
    display.finish();
    let progress = transfer.progress();
    match result {
        Ok(outcome) => Ok((outcome, progress)),
        Err(error) => {
            let given = progress.sources.iter().map(|source| source.given_bytes).sum::<u64>();
            Err((error, progress.kept_bytes + given))
        }
    }
}

/// A name that somebody offers which people take for this one: of other case, or with its accents
/// written as other characters, as some systems store them.
fn look_alike(
    line: &mut RegistryClient,
    wanted: &FileName,
) -> Result<Option<FileName>, RegistryCallError> {
    let key = folded(wanted);
    let mut listing = PageReader::new(limits::REGISTRY_FILES_MAX);
    for _ in 0..LOOK_ALIKE_PAGES_MAX {
        let request = |after| RegistryRequest::Files { after };
        let RegistryReply::Files { files, more } = listing.next_page(line, request)? else { break };
        let alike = files.iter().find(|row| folded(&row.file.name) == key);
        if let Some(row) = alike {
            return Ok(Some(row.file.name.clone()));
        }
        if !listing.has_next(line, files.iter().map(|row| &row.file.name), more)? {
            break;
        }
    }
    Ok(None)
}

fn folded(name: &FileName) -> String {
    name.as_str().to_lowercase().nfkc().collect()
}

/// A name as `--escaped` takes it between single quotes, of characters that every keyboard has.
fn typable(name: &FileName) -> String {
    let mut typed = String::new();
    for byte in name.as_str().bytes() {
        if (byte.is_ascii_graphic() || byte == b' ') && byte != b'\\' && byte != b'\'' {
            typed.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            let _ = write!(typed, "\\x{byte:02x}");
        }
    }
    typed
}

fn shown(name: &FileName) -> impl std::fmt::Display {
    escape(name.as_str().as_bytes())
}

/// The JSON object that `fetch` prints.
#[derive(Serialize)]
struct FetchedJson<'a> {
    name: &'a str,
    path: String,
    size: u64,
    content: String,
    already_there: bool,
    fetched_bytes: u64,
    kept_bytes: u64,
    seconds: f64,
    sources: Vec<SourceJson>,
}

#[derive(Serialize)]
struct SourceJson {
    peer: String,
    address: SocketAddr,
    bytes: u64,
}

fn print_fetched(
    args: &FetchArgs,
    out: &mut dyn Write,
    FileEntry { name, size, content }: &FileEntry,
    outcome: &fetch::FetchOutcome,
    progress: &fetch::FetchProgress,
    took: Duration,
) -> io::Result<()> {
    if !args.quiet {
        let fetched = outcome.fetched_bytes;
        let given = progress.sources.iter().filter(|source| source.given_bytes > 0).count();
        print_line(&match outcome.already_there {
            true => format!("{} was there already, whole", shown(name)),
            false => format!(
                "{}: {} from {} in {:.1} s, {}",
                shown(name),
                HumanBytes(fetched),
                counted(given as u64, "peer", "peers"),
                took.as_secs_f64(),
                rate(fetched as f64 / took.as_secs_f64())
            ),
        });
        // On a terminal the line goes before the answer.
        logging::finish();
    }
    let path = outcome.path.display().to_string();
    match args.format.get() {
        // Scripts want the path as it is.
        Format::Text if !stdout::is_terminal() => {
            out.write_all(outcome.path.as_os_str().as_encoded_bytes())?;
            writeln!(out)
        }
        Format::Text => writeln!(out, "{}", escape(path.as_bytes())),
        Format::Json => {
            let sources = progress.sources.iter().map(|source| SourceJson {
                peer: source.peer.to_string(),
                address: source.address,
                bytes: source.given_bytes,
            });
            print_json(
                out,
                &FetchedJson {
                    name: name.as_str(),
                    path,
                    size: *size,
                    content: content.to_string(),
                    already_there: outcome.already_there,
                    fetched_bytes: outcome.fetched_bytes,
                    kept_bytes: outcome.kept_bytes,
                    seconds: took.as_secs_f64(),
                    sources: sources.collect(),
                },
            )
        }
    }
}

// ---- what the registry knows -----------------------------------------------------------------

#[derive(Serialize)]
struct PeerJson {
    peer: String,
    address: SocketAddr,
    files: u64,
    bytes: u64,
    silent_ms: u64,
}

#[derive(Serialize)]
struct FileJson<'a> {
    name: &'a str,
    size: u64,
    content: String,
    peers: u32,
}

/// `acervo peers`: a page at a time, so that it takes no memory to speak of.
///
/// # Errors
/// See [`ShareError`].
pub fn peers(args: &ListArgs, out: &mut dyn Write) -> Result<CommandOutcome, ShareError> {
    let headings =
        format!("{:16}  {:21}  {:>7}  {:>10}  silent", "peer", "address", "files", "bytes");
    let request = |after| RegistryRequest::Peers { after };
    let mut listing = PageReader::new(limits::REGISTRY_PEERS_MAX);
    let (line, mut page) = listing.first_page(&args.registries.registry, request)?;
    let mut list = PagedList::new(args, line, "peers", headings);
    loop {
        let RegistryReply::Peers { peers, more } = page else {
            return list.end(out);
        };
        let has_next = listing.has_next(&list.line, peers.iter().map(|peer| &peer.peer), more)?;
        for peer in &peers {
            list.row(
                out,
                &text_of_peer(peer),
                &PeerJson {
                    peer: peer.peer.to_string(),
                    address: peer.address,
                    files: peer.files,
                    bytes: peer.bytes,
                    silent_ms: peer.silent_ms,
                },
            )?;
        }
        if !has_next {
            return list.end(out);
        }
        page = listing.next_page(&mut list.line, request)?;
    }
}

fn text_of_peer(peer: &PeerSummary) -> String {
    let PeerSummary { peer, address, files, bytes, silent_ms } = peer;
    let bytes = HumanBytes(*bytes).to_string();
    let address = address.to_string();
    format!("{peer:16}  {address:21}  {files:>7}  {bytes:>10}  {}s", silent_ms / 1000)
}

/// Does what `acervo files` asks for, and prints the answer.
///
/// # Errors
/// See [`ShareError`].
pub fn files(args: &ListArgs, out: &mut dyn Write) -> Result<CommandOutcome, ShareError> {
    let headings = format!("{:16}  {:>10}  {:>5}  name", "content", "size", "peers");
    let request = |after| RegistryRequest::Files { after };
    let mut listing = PageReader::new(limits::REGISTRY_FILES_MAX);
    let (line, mut page) = listing.first_page(&args.registries.registry, request)?;
    let mut list = PagedList::new(args, line, "files", headings);
    loop {
        let RegistryReply::Files { files, more } = page else {
            return list.end(out);
        };
        let names = files.iter().map(|row| &row.file.name);
        let has_next = listing.has_next(&list.line, names, more)?;
        for FileSummary { file, peers } in &files {
            let content = file.content.to_string();
            let size = HumanBytes(file.size).to_string();
            let text = format!("{:.16}  {size:>10}  {peers:>5}  {}", content, shown(&file.name));
            let (name, size) = (file.name.as_str(), file.size);
            list.row(out, &text, &FileJson { name, size, content, peers: *peers })?;
        }
        if !has_next {
            return list.end(out);
        }
        page = listing.next_page(&mut list.line, request)?;
    }
}

/// A list that is printed as it comes. Nothing is printed before a page has come that can be.
struct PagedList {
    line: RegistryClient,
    format: Format,
    /// The member of the JSON object that holds it.
    name: &'static str,
    headings: String,
    has_begun: bool,
    rows: u64,
}

impl PagedList {
    fn new(
        args: &ListArgs,
        line: RegistryClient,
        name: &'static str,
        headings: String,
    ) -> PagedList {
        PagedList { line, format: args.format.get(), name, headings, has_begun: false, rows: 0 }
    }

    /// In text, a line of headings; in JSON, the beginning of an object with one list in it.
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut self.has_begun, true) {
            return Ok(());
        }
        match self.format {
            Format::Text => writeln!(out, "{}", self.headings),
            Format::Json => write!(out, "{{\"{}\":[", self.name),
        }
    }

    fn row(
        &mut self,
        out: &mut dyn Write,
        text: &str,
        object: &impl Serialize,
    ) -> Result<(), ShareError> {
        self.begin(out).map_err(ShareError::Output)?;
        let first = self.rows == 0;
        self.rows += 1;
        match self.format {
            Format::Text => writeln!(out, "{text}"),
            Format::Json => {
                let separator = if first { "" } else { "," };
                write!(out, "{separator}")
                    .and_then(|()| serde_json::to_writer(&mut *out, object).map_err(Into::into))
            }
        }
        .map_err(ShareError::Output)
    }

    fn end(&mut self, out: &mut dyn Write) -> Result<CommandOutcome, ShareError> {
        self.begin(out).map_err(ShareError::Output)?;
        if self.rows == 0 && self.format == Format::Text {
            // It may be another registry than is meant.
            print_line(&format!("acervo: registry {} knows no {}", self.line.address(), self.name));
        }
        if self.format == Format::Json {
            writeln!(out, "]}}").map_err(ShareError::Output)?;
        }
        Ok(CommandOutcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_as_people_count() {
        let line = |of: &[(LeftOut, usize)]| left_out(&of.iter().copied().collect());
        assert_eq!(line(&[]), None);
        let one = line(&[(LeftOut::Folder, 1), (LeftOut::NotUtf8, 1), (LeftOut::TooMany, 1)]);
        let expected =
            "3 left out: 1 folder, 1 name that is not UTF-8, 1 file beyond the first 65,536";
        assert_eq!(one.unwrap(), expected);
        let two = line(&[(LeftOut::Folder, 2), (LeftOut::NotUtf8, 2), (LeftOut::TooLarge, 2)]);
        let expected = "6 left out: 2 folders, 2 names that are not UTF-8, 2 files beyond 1 TiB";
        assert_eq!(two.unwrap(), expected);
    }
}
