//! The interactive client of SPEC A2: a menu with INIT, PUT and GET, on a terminal or on a pipe.
//!
//! Every request goes to a server chosen at random, on its own, while the prompt stays usable; an
//! answer prints when it comes. The lines of SPEC A6 are the only ones on standard output when
//! input is not a terminal; prompts and remarks then go to standard error.
//!
//! [`run`] wires the real input and output ([`prompt`]) to the dialogue, which knows neither.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::client::sync::{lock, wait};
use crate::client::{Ask, Causality, Client, ClientError, Effect, Event, check_key, check_value};
use crate::limits::{CLIENT_SILENCE_TIMEOUT, CONSOLE_GET_HELD_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::prompt::{
    self, Input, OutputError, Screen, Stop, explain_reach, explain_reason, invalid, is_misdirected,
    parse_ip, parse_port,
};
use crate::server::config::DEFAULT_SERVERS;
use crate::text::{LineError, counted, escape};

/// Why the console ended, other than that its user left.
#[derive(Debug, thiserror::Error)]
pub enum ReplError {
    /// The list of servers cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The terminal or the pipe could not be read.
    #[error(transparent)]
    Input(#[from] LineError),
    /// Lines of the specification could not be printed.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The console has ended before requests had an answer.
    #[error(
        "{} sem resposta: leia as chaves antes de repetir",
        counted(*.0, "pedido ficou", "pedidos ficaram")
    )]
    Unanswered(u64),
}

/// The options of the console.
#[derive(Clone, Debug)]
pub struct ReplOptions {
    /// The servers, when INIT is done already.
    pub servers: Option<Vec<SocketAddr>>,
    /// The whole time of one request.
    pub request_timeout: Duration,
}

/// Runs the console until its input ends or its user leaves.
///
/// # Errors
/// A bad list of servers, or an input or output that fails.
pub fn run(options: &ReplOptions) -> Result<(), ReplError> {
    prompt::run(|input, screen, _| {
        let mut dialogue = Dialogue::new(input, screen, options)?;
        let result = dialogue.run();
        // Whoever has typed ahead, up to 'sair', has asked for it all. Ctrl-C ends the waiting,
        // too.
        let unanswered = dialogue.wait_for_pending();
        result?;
        match unanswered {
            0 => Ok(()),
            unanswered => Err(ReplError::Unanswered(unanswered)),
        }
    })
}

/// Requests that may be under way or wait for their turn; what is typed beyond waits where it was
/// typed.
const SUBMITTED_MAX: u64 = 1024;

const MENU: &str = "[1] INIT  [2] PUT  [3] GET > ";

/// An entry of the menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Init,
    Put,
    Get,
    Leave,
}

impl Entry {
    fn parse(line: &str) -> Option<Entry> {
        match line.to_ascii_uppercase().as_str() {
            "1" | "INIT" => Some(Entry::Init),
            "2" | "PUT" => Some(Entry::Put),
            "3" | "GET" => Some(Entry::Get),
            "SAIR" | "EXIT" | "QUIT" => Some(Entry::Leave),
            _ => None,
        }
    }
}

struct Dialogue<'a> {
    input: &'a mut dyn Input,
    screen: Arc<dyn Screen>,
    client: Option<Client>,
    request_timeout: Duration,
    pending: Arc<Pending>,
    order: Arc<Order>,
}

impl Dialogue<'_> {
    fn new<'a>(
        input: &'a mut dyn Input,
        screen: Arc<dyn Screen>,
        options: &ReplOptions,
    ) -> Result<Dialogue<'a>, ClientError> {
        let mut dialogue = Dialogue {
            input,
            screen,
            client: None,
            request_timeout: options.request_timeout,
            pending: Arc::default(),
            order: Arc::default(),
        };
        if let Some(servers) = &options.servers {
            dialogue.client = Some(dialogue.connect(servers)?);
        }
        Ok(dialogue)
    }

    fn connect(&self, servers: &[SocketAddr]) -> Result<Client, ClientError> {
        Client::builder(servers.iter().copied())
            .causality(Causality::PerKey)
            .request_timeout(self.request_timeout)
            .build()
    }

    /// Serves the menu until the user leaves or the input ends.
    fn run(&mut self) -> Result<(), LineError> {
        loop {
            let done = self.ask(MENU, |line| match line.trim() {
                "" => Ok(None),
                line => Entry::parse(line).map(Some).ok_or_else(|| {
                    let line = escape(line.as_bytes());
                    format!(
                        "Opção desconhecida \"{line}\": escolha INIT, PUT ou GET (1, 2 ou 3), ou \
                         SAIR."
                    )
                }),
            });
            if matches!(done, Err(Stop::Cancelled)) {
                self.screen.say("Para sair, escolha SAIR ou tecle Ctrl-D.");
            }
            let done = done.and_then(|entry| match entry {
                None => Ok(()),
                Some(Entry::Init) => self.init(),
                Some(Entry::Put) => self.put(),
                Some(Entry::Get) => self.get(),
                Some(Entry::Leave) => Err(Stop::Leave),
            });
            match done {
                Ok(()) | Err(Stop::Cancelled) => {}
                Err(Stop::Leave) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }

    /// Waits for the answers that are still to come, no longer than they may take. Returns how many
    /// did not come.
    fn wait_for_pending(&self) -> u64 {
        let count = self.pending.count();
        if count > 0 {
            let answers = counted(count, "resposta", "respostas");
            self.screen.say(&format!("Esperando {answers}; Ctrl-C desiste."));
        }
        self.pending.wait_below(1, self.request_timeout + CLIENT_SILENCE_TIMEOUT);
        self.pending.count()
    }

    /// Asks until the answer can be used, saying why when it cannot.
    fn ask<T>(
        &mut self,
        prompt: &str,
        parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Result<T, Stop> {
        prompt::ask(self.input, &*self.screen, prompt, parse)
    }

    fn init(&mut self) -> Result<(), Stop> {
        let mut servers: Vec<SocketAddr> = Vec::new();
        for (number, default) in (1..).zip(DEFAULT_SERVERS) {
            let wrong = |why: String| invalid(&why);
            let question = format!("IP do servidor {number}");
            let parse = |text: &str| parse_ip(text).map_err(wrong);
            let ip: IpAddr =
                prompt::ask_or(self.input, &*self.screen, &question, &default.ip(), parse)?;
            // The default port too must not repeat a server that was named before.
            let port =
                self.ask(&format!("Porta do servidor {number} [{}]: ", default.port()), |line| {
                    let port = match line.trim() {
                        "" => default.port(),
                        text => parse_port(text).map_err(wrong)?,
                    };
                    let server = SocketAddr::new(ip, port);
                    if servers.contains(&server) {
                        return Err(wrong(format!("{server} já é outro dos servidores")));
                    }
                    Ok(port)
                })?;
            servers.push(SocketAddr::new(ip, port));
        }
        // For the same servers the client is kept: a new one would have forgotten what was seen,
        // and could show an older value.
        let is_same = |client: &Client| {
            let known = client.servers();
            known.len() == servers.len() && servers.iter().all(|server| known.contains(server))
        };
        let known = self.client.clone().filter(is_same);
        match known.map_or_else(|| self.connect(&servers), Ok) {
            Ok(client) => {
                self.client = Some(client);
                let names: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
                self.screen.say(&format!("Servidores: {}.", names.join(", ")));
            }
            Err(error) => self.screen.say(&format!("INIT falhou: {}", explain(&error))),
        }
        Ok(())
    }

    /// The client, or a remark that there is none yet.
    fn client(&self) -> Option<Client> {
        if self.client.is_none() {
            self.screen.say("Faça INIT antes de PUT e GET.");
        }
        self.client.clone()
    }

    fn ask_key(&mut self) -> Result<Bytes, Stop> {
        self.ask("Chave: ", |line| check_key(line.as_bytes()).map_err(|error| explain(&error)))
    }

    fn put(&mut self) -> Result<(), Stop> {
        let Some(client) = self.client() else { return Ok(()) };
        let key = self.ask_key()?;
        let value = self
            .ask("Valor: ", |line| check_value(line.as_bytes()).map_err(|error| explain(&error)))?;
        self.submit(&client, Ask::Put { key, value });
        Ok(())
    }

    fn get(&mut self) -> Result<(), Stop> {
        let Some(client) = self.client() else { return Ok(()) };
        let key = self.ask_key()?;
        self.submit(&client, Ask::Get { key });
        Ok(())
    }

    fn submit(&self, client: &Client, ask: Ask) {
        // What is typed ahead without end waits where it was typed.
        self.pending.wait_below(SUBMITTED_MAX, self.request_timeout);
        let (client, under_way) = (client.clone(), Pending::begin(&self.pending));
        self.order.submit(Asked { client, ask, under_way }, &self.screen);
    }
}

/// A request, and its place among those that are not answered.
struct Asked {
    client: Client,
    ask: Ask,
    under_way: UnderWay,
}

/// Requests of one key go one after the other, as they were typed: at servers chosen at random a
/// later PUT would often be ordered before an earlier one, and a GET that was pasted behind a PUT
/// would miss it.
///
/// A GET does not wait for ever: behind a PUT that has been under way for [`CONSOLE_GET_HELD_MAX`]
/// it goes all the same, so that whoever waits for a server that is late can see what each has
/// meanwhile.
#[derive(Default)]
struct Order {
    state: Mutex<OrderState>,
    /// Signalled when a GET begins to wait behind a PUT.
    held: Condvar,
}

#[derive(Default)]
struct OrderState {
    /// The keys with a request under way.
    keys: HashMap<Bytes, KeyOrder>,
    /// A thread looks after the GETs that wait behind PUTs.
    is_watched: bool,
}

/// The requests of one key.
#[derive(Default)]
struct KeyOrder {
    /// Since when a PUT has been under way.
    put_since: Option<Instant>,
    get_is_under_way: bool,
    /// In the order in which they were typed.
    waiting: VecDeque<Asked>,
}

impl KeyOrder {
    /// When the first request that waits may be sent although a PUT is under way, if it is a GET.
    fn held_until(&self) -> Option<Instant> {
        let is_get = matches!(self.waiting.front()?.ask, Ask::Get { .. });
        let until = self.put_since? + CONSOLE_GET_HELD_MAX;
        (is_get && !self.get_is_under_way).then_some(until)
    }

    /// Takes the first request that waits, if it may be sent now, and counts it as under way.
    fn take_next(&mut self, now: Instant) -> Option<Asked> {
        let is_free = self.put_since.is_none() && !self.get_is_under_way;
        if !is_free && self.held_until().is_none_or(|until| now < until) {
            return None;
        }
        let next = self.waiting.pop_front()?;
        match next.ask {
            Ask::Put { .. } => self.put_since = Some(now),
            Ask::Get { .. } => self.get_is_under_way = true,
        }
        Some(next)
    }

    fn is_idle(&self) -> bool {
        self.put_since.is_none() && !self.get_is_under_way && self.waiting.is_empty()
    }
}

impl Order {
    fn submit(self: &Arc<Order>, asked: Asked, screen: &Arc<dyn Screen>) {
        let key = asked.ask.key().clone();
        lock(&self.state).keys.entry(key.clone()).or_default().waiting.push_back(asked);
        self.advance(&key, screen);
    }

    /// Sends those of a key's requests that may be sent now.
    fn advance(self: &Arc<Order>, key: &Bytes, screen: &Arc<dyn Screen>) {
        while let Some(next) = self.take_next(key, screen) {
            self.send(next, screen);
        }
    }

    fn take_next(self: &Arc<Order>, key: &Bytes, screen: &Arc<dyn Screen>) -> Option<Asked> {
        let mut state = lock(&self.state);
        let of_key = state.keys.get_mut(key)?;
        let next = of_key.take_next(Instant::now());
        if of_key.is_idle() {
            state.keys.remove(key);
        } else if next.is_none() && of_key.held_until().is_some() {
            self.held.notify_one();
            if !std::mem::replace(&mut state.is_watched, true) {
                let (order, screen) = (Arc::clone(self), Arc::clone(screen));
                let thread = thread::Builder::new().name("acervo-order".to_owned());
                // Without it the GET waits for the PUT.
                state.is_watched = thread.spawn(move || order.watch(&screen)).is_ok();
            }
        }
        next
    }

    /// Sends each GET that has waited long enough, until none waits behind a PUT.
    fn watch(self: &Arc<Order>, screen: &Arc<dyn Screen>) {
        let mut state = lock(&self.state);
        loop {
            let held = state.keys.iter().filter_map(|(key, of)| Some((of.held_until()?, key)));
            let Some((until, key)) = held.min() else {
                state.is_watched = false;
                return;
            };
            state = match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => wait(&self.held, state, left),
                _ => {
                    let key = key.clone();
                    drop(state);
                    self.advance(&key, screen);
                    lock(&self.state)
                }
            };
        }
    }

    fn send(self: &Arc<Order>, asked: Asked, screen: &Arc<dyn Screen>) {
        let Asked { client, ask, under_way } = asked;
        let turn = Turn { ask: ask.clone(), order: Arc::clone(self), screen: Arc::clone(screen) };
        let (shown_on, asked) = (Arc::clone(screen), ask.clone());
        let report = move |event| {
            match render(&asked, &event) {
                Rendered::Event(line) => shown_on.event(&line),
                Rendered::Remark(line) => shown_on.remark(&line),
            }
            // Held until the last report, and given back when this closure goes.
            let _ = (&turn, &under_way);
        };
        if let Err(error) = client.submit(ask, report) {
            screen.say(&explain(&error));
        }
    }
}

/// A request's turn; when it goes, the next ones of its key are sent.
struct Turn {
    ask: Ask,
    order: Arc<Order>,
    screen: Arc<dyn Screen>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let key = self.ask.key();
        if let Some(of_key) = lock(&self.order.state).keys.get_mut(key) {
            match self.ask {
                Ask::Put { .. } => of_key.put_since = None,
                Ask::Get { .. } => of_key.get_is_under_way = false,
            }
        }
        self.order.advance(key, &self.screen);
    }
}

/// A report as it is shown: a line of the specification, or a remark.
#[derive(Debug, PartialEq, Eq)]
enum Rendered {
    Event(String),
    Remark(String),
}

fn render(ask: &Ask, event: &Event) -> Rendered {
    let name = match ask {
        Ask::Put { .. } => "PUT",
        Ask::Get { .. } => "GET",
    };
    let key = escape(ask.key());
    let get_line = |value: &dyn fmt::Display, server, client_timestamp, timestamp| {
        Rendered::Event(format!(
            "GET key: {key} value: {value} obtido do servidor {server}, \
             meu timestamp {client_timestamp} e do servidor {timestamp}"
        ))
    };
    match event {
        Event::PutOk(done) => {
            let value = match ask {
                Ask::Put { value, .. } => escape(value),
                Ask::Get { .. } => escape(b""),
            };
            Rendered::Event(format!(
                "PUT_OK key: {key} value {value} timestamp {} realizada no servidor {}",
                done.timestamp, done.server
            ))
        }
        Event::Got { value, client_timestamp, timestamp, server } => match value {
            Some(value) => get_line(&escape(value), server, client_timestamp, timestamp),
            None => get_line(&"NULL", server, client_timestamp, timestamp),
        },
        Event::TryOtherServerOrLater { client_timestamp, timestamp, server } => {
            get_line(&"TRY_OTHER_SERVER_OR_LATER", server, client_timestamp, timestamp)
        }
        Event::Unreachable(failure) => Rendered::Remark(format!(
            "Servidor {} inacessível: {}.",
            failure.server,
            explain_reason(&failure.reason)
        )),
        Event::Failed(error) => {
            Rendered::Remark(format!("{name} key: {key} falhou: {}", explain(error)))
        }
    }
}

/// One sentence in the console's language for the errors its user can do something about.
fn explain(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { servers, effect } => {
            let why = match servers.iter().all(|failure| is_misdirected(&failure.reason)) {
                true => {
                    "nenhum destes endereços é de um servidor do acervo; faça INIT com os certos"
                }
                false => "nenhum servidor pôde ser alcançado; tente mais tarde",
            };
            format!("{why}{}.", known(*effect))
        }
        ClientError::TimedOut { timeout, last, effect } => {
            format!("sem resposta em {timeout:?} ({}){}.", explain_last(last), known(*effect))
        }
        ClientError::NoMajority { server, message } => explain_no_majority(*server, message),
        ClientError::Unconfirmed { server, effect: Effect::Done, .. } => {
            format!("o PUT teve efeito, diz {server}, mas nem todos os servidores o confirmaram.")
        }
        ClientError::Unconfirmed { server, effect, message } => {
            let reach = explain_reach(message).map_or(String::new(), |reach| format!(", {reach}"));
            format!(
                "sem confirmação de {server}{reach}{}; leia a chave antes de repetir.",
                known(Some(*effect))
            )
        }
        ClientError::Unavailable { last, effect } => {
            format!("nenhum servidor pôde atender ({}){}.", explain_last(last), known(*effect))
        }
        ClientError::StaleRequest { server, effect, .. } => {
            format!("{server} não conhece mais este cliente{}.", known(Some(*effect)))
        }
        ClientError::DiskFull { .. } => {
            "um disco do grupo está quase cheio e nada foi gravado; libere espaço ou remova chaves."
                .to_owned()
        }
        ClientError::KeyEmpty => "A chave não pode ser vazia.".to_owned(),
        ClientError::KeyTooLong(length) => {
            format!("Uma chave de {length} bytes é longa demais: são no máximo {KEY_BYTES_MAX}.")
        }
        ClientError::ValueTooLong(length) => {
            format!("Um valor de {length} bytes é longo demais: são no máximo {VALUE_BYTES_MAX}.")
        }
        other => format!("\"{other}\"."),
    }
}

/// Why nobody has ordered a PUT, of which nothing was done.
fn explain_no_majority(server: SocketAddr, message: &str) -> String {
    let reach = explain_reach(message);
    let reach = reach.map_or(String::new(), |reach| format!(": {reach}"));
    let first =
        message.split_once("it begins with ").and_then(|(_, rest)| rest.split_once(", which"));
    if let Some((first, _)) = first {
        return format!(
            "o grupo ainda não começou{reach}, mas falta {first}, com que ele começa, e nada foi \
             feito; inicie-o e tente de novo."
        );
    }
    if message.contains("has not begun") || message.contains("no leader can be elected") {
        return format!(
            "o grupo não pode eleger um líder{reach}, e nada foi feito; o que falta diz 'acervo \
             status'."
        );
    }
    if message.contains("no leader took") {
        return format!(
            "nenhum líder aceitou o PUT a tempo{reach}, e nada foi feito; tente de novo."
        );
    }
    format!("sem maioria{reach}, diz {server}, e nada foi feito; inicie os outros e tente de novo.")
}

/// The clause that says what is known of a PUT's effect.
fn known(effect: Option<Effect>) -> &'static str {
    match effect {
        None => "",
        Some(Effect::NotDone) => "; nada foi gravado",
        Some(Effect::MayBeDone) => "; o PUT pode ter tido efeito",
        Some(Effect::Done) => "; o PUT teve efeito",
    }
}

/// The last obstacle of a request, in the console's language: an address and what is wrong with it,
/// or a reason of this client.
fn explain_last(last: &str) -> String {
    let (server, rest) = last.split_once([' ', ':']).unwrap_or((last, ""));
    let server = server.trim_end_matches(':');
    let rest = rest.trim_start_matches([':', ' ']);
    if server.parse::<SocketAddr>().is_err() {
        return match last {
            "earlier requests are not answered" => "pedidos anteriores esperam resposta",
            "too many requests of this client are under way" => "há pedidos demais em andamento",
            "an earlier write of this client is not answered" => "um PUT anterior espera resposta",
            _ => "nenhum respondeu",
        }
        .to_owned();
    }
    let explained = match rest {
        "had not answered yet" => "ainda não respondeu".to_owned(),
        "has not yet applied what this client has seen" => {
            "ainda não tem o que este cliente já viu".to_owned()
        }
        _ => explain_reason(rest),
    };
    // A server's own sentence is in English.
    match (explained.starts_with('"'), explain_reach(rest)) {
        (true, Some(reach)) => format!("{server} não pode atender agora: {reach}"),
        (true, None) => format!("{server} não pode atender agora"),
        (false, _) => format!("{server}: {explained}"),
    }
}

/// Counts the requests under way.
#[derive(Default)]
struct Pending {
    count: Mutex<u64>,
    fewer: Condvar,
}

struct UnderWay(Arc<Pending>);

impl Pending {
    fn begin(pending: &Arc<Pending>) -> UnderWay {
        *lock(&pending.count) += 1;
        UnderWay(Arc::clone(pending))
    }

    fn count(&self) -> u64 {
        *lock(&self.count)
    }

    /// Waits until fewer than `most` are under way. Those of one key end one after the other, each
    /// in its own time: so the time begins anew whenever one has ended.
    fn wait_below(&self, most: u64, timeout: Duration) {
        let mut count = lock(&self.count);
        let (mut fewest, mut deadline) = (*count, Instant::now() + timeout);
        while *count >= most {
            if *count < fewest {
                (fewest, deadline) = (*count, Instant::now() + timeout);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            count = wait(&self.fewer, count, left);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *lock(&self.0.count) -= 1;
        self.0.fewer.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{PutOk, ServerFailure};
    use crate::model::Timestamp;
    use crate::prompt::Typed;

    /// Types the given things and keeps the prompts.
    struct Script {
        typed: std::vec::IntoIter<Typed>,
        prompts: Vec<String>,
    }

    impl Input for Script {
        fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError> {
            self.prompts.push(prompt.to_owned());
            Ok(self.typed.next().unwrap_or(Typed::End))
        }
    }

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Screen for Lines {
        fn event(&self, line: &str) {
            self.say(line);
        }
        fn remark(&self, line: &str) {
            self.say(line);
        }
        fn say(&self, line: &str) {
            lock(&self.0).push(line.to_owned());
        }
    }

    fn lines(text: &str) -> Vec<Typed> {
        text.lines().map(|line| Typed::Line(line.to_owned())).collect()
    }

    /// The prompts, what was said, and the servers INIT ended with.
    fn play(typed: Vec<Typed>) -> (Vec<String>, Vec<String>, Option<Vec<SocketAddr>>) {
        let mut input = Script { typed: typed.into_iter(), prompts: Vec::new() };
        let screen = Arc::new(Lines::default());
        let options = ReplOptions { servers: None, request_timeout: Duration::from_secs(1) };
        let mut dialogue =
            Dialogue::new(&mut input, Arc::<Lines>::clone(&screen) as Arc<dyn Screen>, &options)
                .unwrap();
        dialogue.run().unwrap();
        let servers = dialogue.client.map(|client| client.servers());
        let said = lock(&screen.0).clone();
        (input.prompts, said, servers)
    }

    /// What may go of a key's requests, and when.
    #[test]
    fn requests_of_one_key_go_in_order_and_a_get_waits_for_a_put_only_so_long() {
        let client = Client::builder(DEFAULT_SERVERS).build().unwrap();
        let mut key = KeyOrder::default();
        for number in 0..2 {
            let value = Bytes::from(format!("{number}"));
            for ask in [Ask::Put { key: "k".into(), value }, Ask::Get { key: "k".into() }] {
                let under_way = Pending::begin(&Arc::default());
                key.waiting.push_back(Asked { client: client.clone(), ask, under_way });
            }
        }
        let start = Instant::now();
        let next = |key: &mut KeyOrder, at: Duration| {
            key.take_next(start + at).map(|asked| matches!(asked.ask, Ask::Get { .. }))
        };
        let (short, long) = (CONSOLE_GET_HELD_MAX - Duration::from_millis(1), CONSOLE_GET_HELD_MAX);
        assert_eq!(next(&mut key, Duration::ZERO), Some(false));
        assert_eq!(key.held_until(), Some(start + long));
        assert_eq!(next(&mut key, short), None);
        // A PUT that lasts does not keep its GET for ever.
        assert_eq!(next(&mut key, long), Some(true));
        // A PUT waits for both, however long.
        assert_eq!((next(&mut key, 9 * long), key.held_until()), (None, None));
        key.put_since = None;
        assert_eq!(next(&mut key, 9 * long), None);
        key.get_is_under_way = false;
        assert_eq!(next(&mut key, 9 * long), Some(false));
        assert_eq!(next(&mut key, 9 * long), None);
        // One that is answered does not, either.
        key.put_since = None;
        assert_eq!(next(&mut key, 9 * long), Some(true));
        assert!(!key.is_idle());
        key.get_is_under_way = false;
        assert!(key.is_idle());
    }

    #[test]
    fn the_menu_takes_numbers_and_names_in_any_case() {
        for (line, entry) in [
            ("1", Entry::Init),
            ("init", Entry::Init),
            ("2", Entry::Put),
            ("Put", Entry::Put),
            ("3", Entry::Get),
            ("GET", Entry::Get),
            ("sair", Entry::Leave),
            ("exit", Entry::Leave),
            ("Quit", Entry::Leave),
        ] {
            assert_eq!(Entry::parse(line), Some(entry), "{line}");
        }
        assert_eq!(Entry::parse("DEL"), None);
    }

    #[test]
    fn before_init_one_line_says_so() {
        let (prompts, said, _) = play(lines("put\n3\n4"));
        let before = "Faça INIT antes de PUT e GET.";
        let unknown = "Opção desconhecida \"4\": escolha INIT, PUT ou GET (1, 2 ou 3), ou SAIR.";
        assert_eq!(said, [before, before, unknown]);
        assert!(prompts.iter().all(|prompt| prompt == MENU));
    }

    #[test]
    fn init_asks_ip_and_port_of_three_servers_with_defaults() {
        let (prompts, said, servers) = play(lines("1\n\n\n\n\n\n\n"));
        assert_eq!(
            prompts[1..7],
            [
                "IP do servidor 1 [127.0.0.1]: ",
                "Porta do servidor 1 [10097]: ",
                "IP do servidor 2 [127.0.0.1]: ",
                "Porta do servidor 2 [10098]: ",
                "IP do servidor 3 [127.0.0.1]: ",
                "Porta do servidor 3 [10099]: ",
            ]
        );
        assert_eq!(servers.unwrap(), DEFAULT_SERVERS);
        assert_eq!(said, ["Servidores: 127.0.0.1:10097, 127.0.0.1:10098, 127.0.0.1:10099."]);
    }

    /// A second INIT forgot what had been read, and a server that lagged gave an older value.
    #[test]
    fn init_with_the_same_servers_forgets_no_timestamp() {
        const SEEN: &str = "s1-000000000000002a";
        for (typed, remembers) in [
            ("1\n\n\n\n\n\n\n", true),
            ("1\n\n10099\n\n10098\n\n10097\n", true),
            ("1\n\n\n\n\n\n5000\n", false),
        ] {
            let mut input = Script { typed: lines(typed).into_iter(), prompts: Vec::new() };
            let screen = Arc::new(Lines::default());
            let servers = Some(DEFAULT_SERVERS.to_vec());
            let options = ReplOptions { servers, request_timeout: Duration::from_secs(1) };
            let mut dialogue = Dialogue::new(&mut input, screen, &options).unwrap();
            let client = dialogue.client.take().unwrap();
            dialogue.client = Some(client.with_session(SEEN).unwrap());
            dialogue.run().unwrap();
            assert_eq!(dialogue.client.unwrap().session_token() == SEEN, remembers, "{typed:?}");
        }
    }

    #[test]
    fn init_explains_what_it_cannot_use() {
        let (_, said, servers) = play(lines("init\nhost\n::1\n0\n5001\n\n10099\n\n\n5002\n"));
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let expected =
            [address("[::1]:5001"), address("127.0.0.1:10099"), address("127.0.0.1:5002")];
        assert_eq!(servers.unwrap(), expected);
        assert_eq!(
            said[..3],
            [
                "Resposta inválida: \"host\" não é um IP.",
                "Resposta inválida: \"0\" não é uma porta (1 a 65535).",
                "Resposta inválida: 127.0.0.1:10099 já é outro dos servidores.",
            ]
        );
    }

    #[test]
    fn a_cancelled_line_leads_back_to_the_menu() {
        let mut typed = lines("1\n10.0.0.1");
        typed.push(Typed::Cancelled);
        typed.extend(lines("quit\n1"));
        let (prompts, _, servers) = play(typed);
        assert_eq!(prompts.last().unwrap(), MENU);
        assert_eq!(servers, None);
        // At the menu itself it leads nowhere, and how to leave is told.
        let (_, said, _) = play(vec![Typed::Cancelled]);
        assert_eq!(said, ["Para sair, escolha SAIR ou tecle Ctrl-D."]);
    }

    #[test]
    fn a_put_that_fails_says_what_is_known_of_its_effect_in_one_language() {
        let server: SocketAddr = "127.0.0.1:10098".parse().unwrap();
        let put = Ask::Put { key: "k".into(), value: "v".into() };
        let silent = ServerFailure { server, reason: "no answer within 200ms".to_owned() };
        let message = "no majority: 1 of 3 servers answer".to_owned();
        let last = format!("{server}: this server is stopping: ask another one");
        for (effect, known) in [
            (Effect::NotDone, "nada foi gravado"),
            (Effect::MayBeDone, "o PUT pode ter tido efeito"),
            (Effect::Done, "o PUT teve efeito"),
        ] {
            let timeout = Duration::from_secs(60);
            for error in [
                ClientError::Unreachable { servers: vec![silent.clone()], effect: Some(effect) },
                ClientError::Unavailable { last: last.clone(), effect: Some(effect) },
                ClientError::TimedOut { timeout, last: last.clone(), effect: Some(effect) },
                ClientError::StaleRequest { server, message: message.clone(), effect },
            ] {
                let Rendered::Remark(line) = render(&put, &Event::Failed(error.clone())) else {
                    panic!("{error} is a remark")
                };
                assert!(line.contains(known), "{line}");
                assert!(!line.contains('"'), "{line}");
            }
        }
        let reason = "found there: a web server; expected: a server of an acervo store".to_owned();
        let servers = vec![ServerFailure { server, reason }];
        let line = explain(&ClientError::Unreachable { servers, effect: Some(Effect::NotDone) });
        assert!(line.contains("nenhum destes endereços é de um servidor do acervo"), "{line}");
        let unconfirmed = ClientError::Unconfirmed { server, message, effect: Effect::MayBeDone };
        assert_eq!(
            explain(&unconfirmed),
            "sem confirmação de 127.0.0.1:10098, 1 de 3 servidores responde; o PUT pode ter tido \
             efeito; leia a chave antes de repetir."
        );
        let no_majority = |message: &str| {
            explain(&ClientError::NoMajority { server, message: message.to_owned() })
        };
        for (message, said) in [
            (
                "no majority: 1 of 3 servers answer and 2 are needed: nothing was done; start the \
                 others",
                "sem maioria: 1 de 3 servidores responde, diz 127.0.0.1:10098, e nada foi feito; \
                 inicie os outros e tente de novo.",
            ),
            (
                "nothing was done: 2 of 3 servers answer, but the group has not begun, because it \
                 begins with 127.0.0.1:9, which has not been up: start that one",
                "o grupo ainda não começou: 2 de 3 servidores respondem, mas falta 127.0.0.1:9, \
                 com que ele começa, e nada foi feito; inicie-o e tente de novo.",
            ),
            (
                "no leader took the write in time although 3 of 3 servers answer: nothing was \
                 done; try again",
                "nenhum líder aceitou o PUT a tempo: 3 de 3 servidores respondem, e nada foi \
                 feito; tente de novo.",
            ),
        ] {
            assert_eq!(no_majority(message), said);
        }
    }

    #[test]
    fn the_lines_of_the_specification_whole() {
        let server: SocketAddr = "127.0.0.1:10098".parse().unwrap();
        let put = Ask::Put { key: "k\n".into(), value: "v".into() };
        let get = Ask::Get { key: "k".into() };
        let timestamp = Timestamp(9);
        let event = |line: &str| Rendered::Event(line.to_owned());
        assert_eq!(
            render(&put, &Event::PutOk(PutOk { timestamp, server })),
            event(r"PUT_OK key: k\x0a value v timestamp 9 realizada no servidor 127.0.0.1:10098")
        );
        let client_timestamp = Timestamp(5);
        let value = Some(Bytes::from("v"));
        assert_eq!(
            render(&get, &Event::Got { value, client_timestamp, timestamp, server }),
            event(
                "GET key: k value: v obtido do servidor 127.0.0.1:10098, \
                 meu timestamp 5 e do servidor 9"
            )
        );
        let none = Event::Got { value: None, client_timestamp, timestamp: Timestamp(0), server };
        assert_eq!(
            render(&get, &none),
            event(
                "GET key: k value: NULL obtido do servidor 127.0.0.1:10098, \
                 meu timestamp 5 e do servidor 0"
            )
        );
        let timestamp = Timestamp(3);
        assert_eq!(
            render(&get, &Event::TryOtherServerOrLater { client_timestamp, timestamp, server }),
            event(
                "GET key: k value: TRY_OTHER_SERVER_OR_LATER obtido do servidor \
                 127.0.0.1:10098, meu timestamp 5 e do servidor 3"
            )
        );
        let failure = ServerFailure { server, reason: "connection refused".to_owned() };
        assert_eq!(
            render(&get, &Event::Unreachable(failure)),
            Rendered::Remark("Servidor 127.0.0.1:10098 inacessível: conexão recusada.".to_owned())
        );
    }
}
