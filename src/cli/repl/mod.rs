//! The interactive client of SPEC A2: a menu with INIT, PUT and GET, on a terminal or on a pipe.
//!
//! Every request goes to a server chosen at random, on its own, while the prompt stays usable; an
//! answer prints when it comes. The lines of SPEC A6 are the only ones on standard output when
//! input is not a terminal; prompts and remarks then go to standard error.
//!
//! [`run`] wires the real input and output ([`prompt`]) to the dialogue, which knows neither.

mod explain;
mod order;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::explain::explain;
use self::order::{Asked, Order, RequestCount};
use crate::client::{Ask, Causality, Client, ClientError, check_key, check_value};
use crate::limits::CLIENT_SILENCE_TIMEOUT;
use crate::prompt::{self, Input, OutputError, Screen, Stop, invalid, parse_ip, parse_port};
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
    pending: Arc<RequestCount>,
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
        let (client, under_way) = (client.clone(), RequestCount::begin(&self.pending));
        self.order.submit(Asked { client, ask, under_way }, &self.screen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Typed;
    use crate::prompt::script::{Said, Script, lines};

    /// The prompts, what was said, and the servers INIT ended with.
    fn play(typed: Vec<Typed>) -> (Vec<String>, Vec<String>, Option<Vec<SocketAddr>>) {
        let mut input = Script::new(typed);
        let screen = Arc::new(Said::default());
        let options = ReplOptions { servers: None, request_timeout: Duration::from_secs(1) };
        let mut dialogue =
            Dialogue::new(&mut input, Arc::<Said>::clone(&screen) as Arc<dyn Screen>, &options)
                .unwrap();
        dialogue.run().unwrap();
        let servers = dialogue.client.map(|client| client.servers());
        let said = screen.said();
        (input.prompts, said, servers)
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
            let mut input = Script::new(lines(typed));
            let screen = Arc::new(Said::default());
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
}
