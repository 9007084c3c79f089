//! The peer's console of SPEC C2: a menu with JOIN, SEARCH and DOWNLOAD, while the peer serves.
//!
//! Whatever takes time runs on a thread of its own and prints its line when it is done, so that
//! several downloads can be under way and the menu stays usable.
//!
//! Rule: if the input is not a terminal, standard output has the lines of the specification only;
//! prompts and remarks go to standard error.

mod explain;
mod search;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use rand::Rng;

use self::explain::{
    explain_fetch, explain_find, explain_folder, explain_hashing, explain_left_out, explain_listen,
    explain_name, explain_registry_error,
};
use self::search::{LastSearch, SearchResult, SearchSlot};
use super::fetch::{FindError, find};
use super::folder::Folder;
use super::member::MembershipNotice;
use super::peer::{DownloadRequest, Peer, PeerError, PeerOptions};
use super::registry::spaced;
use crate::limits;
use crate::model::{FileEntry, FileName, PeerId};
use crate::net::Listener;
use crate::prompt::questions::{check_own_ip, explain_probe, probe};
use crate::prompt::{
    self, Input, InputKind, OutputError, Screen, Stop, explain_io, invalid, parse_ip, parse_port,
};
use crate::text::{LineError as InputError, escape};
use crate::wire::share::{DenialCode, Source};

/// Searches and downloads under way at once in one peer's console.
const CONSOLE_TASKS_MAX: usize = 16;

/// The parameters of [`run`].
#[derive(Clone, Debug)]
pub struct ConsoleOptions {
    /// The registries to join at.
    pub registries: Vec<SocketAddr>,
    /// Upper bound of the sending rate, and of each download's receiving rate.
    pub limit_bytes_per_s: Option<u64>,
}

/// Why the console has ended, if its user has not left.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Reading the input has failed.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Lines of the specification could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Runs the console until its input ends or its user leaves.
///
/// # Errors
/// See [`ConsoleError`].
pub fn run(options: &ConsoleOptions) -> Result<(), ConsoleError> {
    prompt::run(|input, screen, kind| {
        let mut dialogue = PeerDialogue::new(input, screen, options.clone());
        let result = dialogue.run();
        dialogue.end(kind);
        Ok(result?)
    })
}

const MENU: &str = "[1] JOIN  [2] SEARCH  [3] DOWNLOAD > ";
/// The first port to offer if it is free: the one behind the registry's default, 1099.
const FIRST_PORT: u16 = 1100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MenuEntry {
    Join,
    Search,
    Download,
    Leave,
}

impl MenuEntry {
    fn parse(line: &str) -> Option<MenuEntry> {
        match line.to_ascii_uppercase().as_str() {
            "1" | "JOIN" => Some(MenuEntry::Join),
            "2" | "SEARCH" => Some(MenuEntry::Search),
            "3" | "DOWNLOAD" => Some(MenuEntry::Download),
            "SAIR" | "EXIT" | "QUIT" => Some(MenuEntry::Leave),
            _ => None,
        }
    }
}

/// The state that the dialogue shares with its threads.
struct ConsoleShared {
    screen: Arc<dyn Screen>,
    search: SearchSlot,
    stopping: AtomicBool,
}

/// The peer, once the user has joined.
struct JoinedPeer {
    peer: Peer,
    address: SocketAddr,
    folder: PathBuf,
}

struct PeerDialogue<'a> {
    input: &'a mut dyn Input,
    options: ConsoleOptions,
    shared: Arc<ConsoleShared>,
    joined: Option<Arc<JoinedPeer>>,
    /// The threads of searches and downloads.
    tasks: Vec<JoinHandle<()>>,
    /// The number of tasks that have not reported their end.
    under_way: usize,
    /// Each task sends once, as the last thing it does.
    ended: (Sender<()>, Receiver<()>),
}

impl PeerDialogue<'_> {
    fn new<'a>(
        input: &'a mut dyn Input,
        screen: Arc<dyn Screen>,
        options: ConsoleOptions,
    ) -> PeerDialogue<'a> {
        let shared = Arc::new(ConsoleShared {
            screen,
            search: SearchSlot::default(),
            stopping: AtomicBool::new(false),
        });
        PeerDialogue {
            input,
            options,
            shared,
            joined: None,
            tasks: Vec::new(),
            under_way: 0,
            ended: mpsc::channel(),
        }
    }

    /// Shows the menu until the user leaves or the input ends.
    fn run(&mut self) -> Result<(), InputError> {
        loop {
            let entry = self.ask(MENU, |line| match line.trim() {
                "" => Ok(None),
                line => MenuEntry::parse(line).map(Some).ok_or_else(|| {
                    let line = escape(line.as_bytes());
                    format!(
                        "Opção desconhecida \"{line}\": escolha JOIN, SEARCH ou DOWNLOAD (1, 2 ou \
                         3), ou SAIR."
                    )
                }),
            });
            if matches!(entry, Err(Stop::Cancelled)) {
                self.say("Para sair, escolha SAIR ou tecle Ctrl-D.");
            }
            let done = entry.and_then(|entry| match entry {
                None => Ok(()),
                Some(MenuEntry::Join) => self.join(),
                Some(MenuEntry::Search) => self.search(),
                Some(MenuEntry::Download) => self.download(),
                Some(MenuEntry::Leave) => Err(Stop::Leave),
            });
            match done {
                Ok(()) | Err(Stop::Cancelled) => {}
                Err(Stop::Leave) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }

    /// Ends the tasks. On a pipe they are waited for; a user who leaves a terminal has them
    /// stopped.
    fn end(&mut self, kind: InputKind) {
        if kind == InputKind::Terminal {
            self.shared.stopping.store(true, Ordering::Relaxed);
        }
        for task in self.tasks.drain(..) {
            if task.join().is_err() {
                log::error!("a thread of the console panicked");
            }
        }
    }

    fn ask<T>(
        &mut self,
        prompt: &str,
        parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Result<T, Stop> {
        prompt::ask(self.input, &*self.shared.screen, prompt, parse)
    }

    fn say(&self, line: &str) {
        self.shared.screen.say(line);
    }

    /// Starts a task. If that is impossible, the user is told why and it returns false.
    fn task(&mut self, run: impl FnOnce(&ConsoleShared) + Send + 'static) -> bool {
        self.tasks.retain(|task| !task.is_finished());
        self.under_way -= self.ended.1.try_iter().count();
        if self.under_way >= CONSOLE_TASKS_MAX {
            // Requests that were typed ahead wait for their turn, as long as a search may take.
            if self.ended.1.recv_timeout(limits::REGISTRY_CALL_TIMEOUT).is_err() {
                self.say("Há pedidos demais em andamento: espere algum terminar.");
                return false;
            }
            self.under_way -= 1;
        }
        let (shared, ended) = (Arc::clone(&self.shared), self.ended.0.clone());
        let task = thread::Builder::new().name("share-task".to_owned());
        match task.spawn(move || {
            run(&shared);
            // The receiver is in the dialogue, which joins all tasks before it ends.
            let _ = ended.send(());
        }) {
            Ok(task) => {
                self.tasks.push(task);
                self.under_way += 1;
                true
            }
            Err(error) => {
                self.say(&format!("Não foi possível atender: {}.", explain_io(&error)));
                false
            }
        }
    }

    // ---- JOIN --------------------------------------------------------------------------------

    fn join(&mut self) -> Result<(), Stop> {
        self.tasks.retain(|task| !task.is_finished());
        if self.joined.is_some() && !self.tasks.is_empty() {
            self.say("Há pedidos em andamento: espere que terminem para fazer outro JOIN.");
            return Ok(());
        }
        let screen = Arc::clone(&self.shared.screen);
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ip = prompt::ask_or(self.input, &*screen, "IP deste peer", &local, |text| {
            // Checked before the port is asked for: no port of an IP of another machine is of use.
            let ip = parse_ip(text).and_then(|ip| check_own_ip(ip, &probe));
            ip.map_err(|why| invalid(&why))
        })?;
        // Its present port will be free when the peer joins again, and is offered first.
        let own = self.joined.as_ref().map(|joined| joined.address);
        let usable = |address: SocketAddr| match own.is_some_and(|own| is_taken_by(own, address)) {
            true => Ok(()),
            false => probe(address),
        };
        let mut ports = own.map(|own| own.port()).into_iter().chain(FIRST_PORT..u16::MAX);
        let free = ports.find(|port| usable(SocketAddr::new(ip, *port)).is_ok());
        let default = free.unwrap_or(FIRST_PORT);
        let address = self.ask(&format!("Porta deste peer [{default}]: "), |line| {
            let port = match line.trim() {
                "" => default,
                text => parse_port(text).map_err(|why| invalid(&why))?,
            };
            let address = SocketAddr::new(ip, port);
            let why = usable(address).map_err(|error| explain_probe(address, &error));
            why.map(|()| address).map_err(|why| invalid(&why))
        })?;
        let folder = self.ask("Pasta deste peer: ", |line| {
            let path = from_home(line.trim());
            let shown = escape(line.trim().as_bytes());
            match path.metadata() {
                Ok(found) if found.is_dir() => Ok(path),
                Ok(_) => Err(invalid(&format!("\"{shown}\" não é uma pasta"))),
                Err(_) => Err(invalid(&format!("não há uma pasta \"{shown}\" que se possa ler"))),
            }
        })?;
        // The present peer leaves first: the new one may have the same folder and port.
        self.joined = None;
        match self.begin(address, &folder) {
            Ok(joined) => self.joined = Some(Arc::new(joined)),
            Err(why) => self.say(&format!("JOIN falhou: {why}.")),
        }
        Ok(())
    }

    fn begin(&self, address: SocketAddr, path: &Path) -> Result<JoinedPeer, String> {
        let folder = Folder::open(path, PeerId(rand::rng().next_u64()));
        let folder = folder.map_err(|error| explain_folder(&error))?;
        let left_out: usize = folder.left_out().values().sum();
        if left_out > 0 {
            self.shared.screen.remark(&explain_left_out(left_out));
        }
        let listener = Listener::bind(address).map_err(|error| explain_listen(&error))?;
        let options = PeerOptions {
            peer: folder.peer(),
            folder: Some(Arc::clone(&folder)),
            listener,
            address,
            registries: self.options.registries.clone(),
            limit_bytes_per_s: self.options.limit_bytes_per_s,
            congestion: None,
            stop: Arc::default(),
            // A remark says how much is left after a few seconds, in the console's language.
            hashing: Arc::new(|_| {}),
        };
        let screen = Arc::clone(&self.shared.screen);
        let notice = move |notice: MembershipNotice| match notice {
            MembershipNotice::Joined { names, again: false, .. } => {
                screen.event(&format!("Sou peer {address} com arquivos {}", spaced(&names)));
            }
            MembershipNotice::Joined { registry, again: true, .. } => {
                screen.remark(&format!("Registro {registry} alcançado de novo."));
            }
            MembershipNotice::Lost(error) => {
                screen.remark(&format!("{} Tentando de novo.", explain_registry_error(&error)));
            }
        };
        let peer = Peer::start(options, notice).map_err(|error| match error {
            PeerError::Serve(_) | PeerError::Thread(_) => {
                log::error!("{error}");
                "o sistema não permite mais threads ou arquivos abertos".to_owned()
            }
        })?;
        let hashing = folder.hashing();
        if !hashing.is_done() {
            self.shared.screen.remark(&explain_hashing(hashing.files - hashing.files_done));
        }
        Ok(JoinedPeer { peer, address, folder: folder.path().to_owned() })
    }

    /// The peer; if the user has not joined, tells so.
    fn joined(&self) -> Option<Arc<JoinedPeer>> {
        if self.joined.is_none() {
            self.say("Faça JOIN antes de SEARCH e DOWNLOAD.");
        }
        self.joined.clone()
    }

    // ---- SEARCH ------------------------------------------------------------------------------

    fn search(&mut self) -> Result<(), Stop> {
        let Some(joined) = self.joined() else { return Ok(()) };
        let name = self.ask("Arquivo: ", |line| {
            FileName::new(line).map_err(|error| invalid(&explain_name(error)))
        })?;
        self.shared.search.begin(name.clone());
        let asked = name.clone();
        // The result's line comes before the questions of what was typed ahead.
        let is_begun = self.task(move |shared| match joined.peer.search(&asked) {
            Ok(sources) => {
                let addresses: Vec<_> =
                    sources.iter().map(|source| source.address.to_string()).collect();
                let addresses = addresses.join(" ");
                shared.screen.event(&format!("peers com arquivo solicitado: {addresses}"));
                shared.search.end(&asked, SearchResult::Sources(sources));
            }
            Err(error) => {
                shared.screen.remark(&explain_registry_error(&error));
                shared.search.end(&asked, SearchResult::Unanswered);
            }
        });
        if !is_begun {
            self.shared.search.end(&name, SearchResult::Unanswered);
        }
        Ok(())
    }

    // ---- DOWNLOAD ----------------------------------------------------------------------------

    fn download(&mut self) -> Result<(), Stop> {
        let Some(joined) = self.joined() else { return Ok(()) };
        let screen = &*self.shared.screen;
        let Some(LastSearch { name, result }) = self.shared.search.wait(screen) else {
            self.say("Faça SEARCH antes de DOWNLOAD.");
            return Ok(());
        };
        let sources = match &result {
            SearchResult::Sources(sources) => &sources[..],
            SearchResult::Pending | SearchResult::Unanswered => &[],
        };
        let other = sources.iter().find(|source| source.address != joined.address);
        let offered = other.map(|source| source.address);
        if offered.is_none() {
            let why = match &result {
                SearchResult::Pending | SearchResult::Unanswered => "O SEARCH não teve resposta",
                SearchResult::Sources(sources) if sources.is_empty() => {
                    "O SEARCH não achou nenhum peer"
                }
                SearchResult::Sources(_) => "O SEARCH só achou este peer",
            };
            let name = escape(name.as_str().as_bytes());
            self.say(&format!(
                "{why}: dê o IP e a porta de um que tenha {name}, ou tecle Enter para voltar ao \
                 menu."
            ));
        }
        let default = offered.map(|address| address.ip().to_string()).unwrap_or_default();
        let ip =
            self.ask(&question("IP do peer", &default), |line| match or_default(line, &default) {
                "" => Ok(None),
                answer => parse_ip(answer).map(Some).map_err(|why| invalid(&why)),
            })?;
        let Some(ip) = ip else { return Ok(()) };
        let default = offered.filter(|address| address.ip() == ip);
        let default = default.map(|address| address.port().to_string()).unwrap_or_default();
        let address = self.ask(&question("Porta do peer", &default), |line| {
            let port = parse_port(or_default(line, &default)).map_err(|why| invalid(&why))?;
            let address = SocketAddr::new(ip, port);
            if address == joined.address {
                return Err(invalid("este é o próprio peer"));
            }
            Ok(address)
        })?;
        // If the task was not started, the user has been told.
        let _ = self.task(move |shared| match fetch_from(&joined, &name, address, shared) {
            Ok(()) => {
                let (name, folder) = (escape(name.as_str().as_bytes()), joined.folder.display());
                shared
                    .screen
                    .event(&format!("Arquivo {name} baixado com sucesso na pasta {folder}"));
            }
            Err(why) => {
                let name = escape(name.as_str().as_bytes());
                shared.screen.remark(&format!("Arquivo {name} não foi baixado: {why}."));
            }
        });
        Ok(())
    }
}

/// A typed path in which `~` is the home folder, as in a shell.
fn from_home(typed: &str) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    match (typed.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            Path::new(&home).join(rest.trim_start_matches('/'))
        }
        _ => PathBuf::from(typed),
    }
}

/// Whether no one else can listen on `address` while this peer listens on `own`.
fn is_taken_by(own: SocketAddr, address: SocketAddr) -> bool {
    let is_any = own.ip().is_unspecified() || address.ip().is_unspecified();
    own.port() == address.port() && (own.ip() == address.ip() || is_any)
}

fn question(text: &str, default: &str) -> String {
    if default.is_empty() { format!("{text}: ") } else { format!("{text} [{default}]: ") }
}

fn or_default<'a>(line: &'a str, default: &'a str) -> &'a str {
    match line.trim() {
        "" => default,
        line => line,
    }
}

/// Asks a peer for the first of these names that it has. If it has none, returns its answer for the
/// first.
fn find_any(address: SocketAddr, names: &[FileName]) -> Result<(PeerId, FileEntry), FindError> {
    let mut said = None;
    for name in names {
        match find(address, name, limits::REGISTRY_CALL_TIMEOUT) {
            Err(error @ FindError::Refused { code: Some(DenialCode::NotFound), .. }) => {
                said.get_or_insert(error);
            }
            other => return other,
        }
    }
    Err(said.unwrap_or(FindError::Protocol(address)))
}

/// Downloads a file from one peer into the folder of another.
fn fetch_from(
    joined: &JoinedPeer,
    name: &FileName,
    address: SocketAddr,
    shared: &ConsoleShared,
) -> Result<(), String> {
    let (peer, file) =
        find_any(address, &name.spellings()).map_err(|error| explain_find(&error))?;
    let source = Source { peer, address, size: file.size, content: file.content };
    let wanted = DownloadRequest {
        name: name.clone(),
        content: file.content,
        size: file.size,
        to: joined.folder.clone(),
        sources: vec![source],
        look_for_more: false,
        patience: limits::FETCH_PATIENCE_DEFAULT,
        gone_after: Some(limits::SOURCES_GONE_AFTER),
    };
    let mut transfer = joined.peer.download(wanted).map_err(|error| explain_fetch(&error))?;
    let mut told = false;
    loop {
        if let Some(result) = transfer.wait_for(limits::STOP_LOOK_INTERVAL) {
            return result.map(drop).map_err(|error| explain_fetch(&error));
        }
        if !told && transfer.progress().waits_for_a_source() {
            told = true;
            let name = escape(name.as_str().as_bytes());
            let seconds = limits::FETCH_PATIENCE_DEFAULT.as_secs();
            shared.screen.remark(&format!(
                "O peer {address} deixou de enviar {name}: espera-se por ele até {seconds} \
                 segundos."
            ));
        }
        if shared.stopping.load(Ordering::Relaxed) {
            transfer.cancel();
        }
    }
}

#[cfg(test)]
mod tests;
