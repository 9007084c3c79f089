//! Clients that watch ranges of keys at any server, through all faults.
//!
//! The hub of each process is the real one. It is told late that the state machine has gone on, its
//! pages are read late, what it sends is lost with its connection, credit is given late, and
//! connections end for no reason. A watcher that has lost its server goes on at another one, after
//! the version that it has come to.
//!
//! Checked: each is shown exactly the changes of its range that the one history has, in order, each
//! once; a reset only where something may be gone, and then the state that the history has; nothing
//! from a server whose state is in doubt; and none is left without a word at a server that knows no
//! leader.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use acervo::client::WatchEvent;
use acervo::model::{KeyInterval, Previous, Row, Timestamp, Version};
use acervo::net::ConnectionId;
use acervo::node::RequestToken;
use acervo::server::watches::{WatchEnd, WatchInput, WatchOutput};
use acervo::wire::codec;
use acervo::wire::frame::Deframer;
use acervo::wire::message::{Message, Reply, WatchFrame, WatchRequest};
use bytes::Bytes;

use crate::checker::{Verdict, Violation, ensure};
use crate::server::{Server, node_id};
use crate::world::{Event, MILLISECOND, World};

/// How much later than it should be a watcher may be sent away: some ticks.
const CUT_OFF_SLACK_US: u64 = 500 * MILLISECOND;

/// A time and a key: where a change stands among all.
pub type Place = (Timestamp, Bytes);

/// What was changed of a key.
#[derive(Clone, Debug)]
pub struct Changed {
    pub place: Place,
    pub written: Option<Version>,
    pub previous: Option<Version>,
}

/// A client that watches.
pub struct Watcher {
    range: KeyInterval,
    tells_previous: bool,
    /// It stays with its server for as long as that has it, and goes to the next one then, as the
    /// library does; others go to any.
    steady: bool,
    /// The server that it asks next, if it is steady.
    next_server: usize,
    /// The server and its life that it watches at.
    at: Option<(usize, u64)>,
    /// The number of its connection, which no other has had.
    connection: u64,
    has_begun: bool,
    /// The version that it begins after at the next server; `None` before its first.
    after: Option<Timestamp>,
    /// Everything up to here was shown.
    shown: Place,
    rows: Option<Vec<Row>>,
    /// What is on its way to it, and for how much the hub counts it.
    coming: VecDeque<(Vec<u8>, usize)>,
    untaken_credit: u32,
    /// What it was shown and nobody has taken, if somebody does.
    told: Option<Vec<WatchEvent>>,
    /// Nobody wants to be told any more.
    is_over: bool,
    pub changes: u64,
    pub resets: u64,
    /// How often a server has sent it away because that was cut off.
    pub sent_away: u64,
    /// Since when it has been whole at a server that knows no leader.
    waits_in_vain_since_us: Option<u64>,
}

/// Greater than every key that clients write.
fn last_key() -> Bytes {
    Bytes::from_static(&[0xff; 8])
}

impl World {
    /// Adds a client that watches a range from some moment on.
    pub fn add_watcher(&mut self, range: KeyInterval, tells_previous: bool) -> usize {
        self.add_any_watcher(range, tells_previous, None)
    }

    /// Adds a client that watches at this server, and does not leave it by itself.
    pub fn add_steady_watcher(&mut self, range: KeyInterval, server: usize) {
        self.add_any_watcher(range, false, Some(server));
    }

    fn add_any_watcher(
        &mut self,
        range: KeyInterval,
        tells_previous: bool,
        stays_at: Option<usize>,
    ) -> usize {
        let watcher = self.watchers.len();
        self.watchers.push(Watcher {
            range,
            tells_previous,
            steady: stays_at.is_some(),
            next_server: stays_at.unwrap_or_default(),
            at: None,
            connection: 0,
            has_begun: false,
            after: None,
            shown: (Timestamp::ZERO, Bytes::new()),
            rows: None,
            coming: VecDeque::new(),
            untaken_credit: 0,
            told: None,
            is_over: false,
            changes: 0,
            resets: 0,
            sent_away: 0,
            waits_in_vain_since_us: None,
        });
        self.after(0, Event::Watch { watcher });
        watcher
    }

    /// Adds one that watches one key after a version, for somebody who takes what it is shown.
    pub fn add_watcher_of(&mut self, key: Bytes, after: Timestamp) -> usize {
        let watcher = self.add_watcher(KeyInterval { from: key.clone(), to: key }, false);
        let state = &mut self.watchers[watcher];
        (state.after, state.shown) = (Some(after), (after, last_key()));
        state.told = Some(Vec::new());
        watcher
    }

    /// Takes what a watcher was shown.
    pub fn take_told(&mut self, watcher: usize) -> Vec<WatchEvent> {
        self.watchers[watcher].told.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Nobody wants to be told any more.
    pub fn end_watcher(&mut self, watcher: usize) {
        self.watchers[watcher].is_over = true;
    }

    /// A moment of a watcher, in which something happens to it or to the hub that it watches at.
    pub fn watch(&mut self, watcher: usize) -> Verdict {
        if self.watchers[watcher].is_over {
            let connection = ConnectionId::from_u64(self.watchers[watcher].connection);
            let at = self.watchers[watcher].at;
            self.watchers[watcher].disconnect();
            return match at {
                Some((server, life)) if self.servers[server].life == life => {
                    self.tell_hub(server, WatchInput::Closed { connection })
                }
                _ => Ok(()),
            };
        }
        let delay_us = self.rng.range(MILLISECOND..=40 * MILLISECOND);
        self.after(delay_us, Event::Watch { watcher });
        let Some((server, life)) = self.watchers[watcher].at else {
            return self.begin_watch(watcher);
        };
        if self.servers[server].process.is_none() || self.servers[server].life != life {
            self.watchers[watcher].disconnect();
            return Ok(());
        }
        self.is_not_left_alone(watcher, server)?;
        if !self.watchers[watcher].steady && self.rng.chance(20) {
            let connection = ConnectionId::from_u64(self.watchers[watcher].connection);
            self.watchers[watcher].disconnect();
            return self.tell_hub(server, WatchInput::Closed { connection });
        }
        if self.rng.chance(700) {
            self.tell_hub(server, WatchInput::Applied)?;
        }
        if self.rng.chance(700) {
            self.read_for_watch(server)?;
        }
        if self.rng.chance(100) {
            self.tell_hub(server, WatchInput::Progress)?;
        }
        while self.rng.chance(800) {
            let Some((frames, bytes)) = self.watchers[watcher].coming.pop_front() else {
                break;
            };
            self.arrives(watcher, &frames)?;
            let connection = ConnectionId::from_u64(self.watchers[watcher].connection);
            if bytes > 0 {
                self.tell_hub(server, WatchInput::Sent { connection, bytes })?;
            }
        }
        if self.rng.chance(500) {
            let bytes = std::mem::take(&mut self.watchers[watcher].untaken_credit);
            let connection = ConnectionId::from_u64(self.watchers[watcher].connection);
            self.tell_hub(server, WatchInput::Credit { connection, watch: 1, bytes })?;
        }
        Ok(())
    }

    /// Nobody stays for long at a server that knows no leader, and waits for what may have happened
    /// elsewhere.
    fn is_not_left_alone(&mut self, watcher: usize, server: usize) -> Verdict {
        let (now_us, limit_us) = (self.now_us, self.setup.cut_off_us + CUT_OFF_SLACK_US);
        let Server { process: Some(process), paused_until_us, .. } = &self.servers[server] else {
            return Ok(());
        };
        let state = &mut self.watchers[watcher];
        let is_idle = state.coming.is_empty() && state.untaken_credit == 0;
        let waits = is_idle && state.has_begun && process.watch_reads.is_empty();
        let runs = *paused_until_us <= now_us;
        if !waits || !runs || process.status.leader.is_some() {
            state.waits_in_vain_since_us = None;
            return Ok(());
        }
        let since_us = *state.waits_in_vain_since_us.get_or_insert(now_us);
        ensure!(
            now_us - since_us <= limit_us,
            "a watcher is left for {} µs at {}, which knows no leader",
            now_us - since_us,
            node_id(server)
        );
        Ok(())
    }

    fn begin_watch(&mut self, watcher: usize) -> Verdict {
        let server = match self.watchers[watcher].steady {
            true => self.watchers[watcher].next_server,
            false => self.rng.index(self.servers.len()),
        };
        self.watchers[watcher].next_server = (server + 1) % self.servers.len();
        let state = &self.servers[server];
        let Some(process) = &state.process else { return Ok(()) };
        if process.node.distrust().is_some() || state.refuted {
            return Ok(());
        }
        self.connections += 1;
        let (connection, life) = (self.connections, state.life);
        let state = &mut self.watchers[watcher];
        state.at = Some((server, life));
        state.connection = connection;
        let request = WatchRequest {
            watch: 1,
            range: state.range.clone(),
            after: state.after,
            tells_previous: state.tells_previous,
            credit_bytes: 1_000,
        };
        let origin = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let token = RequestToken { connection, request: 1 };
        self.tell_hub(server, WatchInput::Watch { token, origin, request })
    }

    fn read_for_watch(&mut self, server: usize) -> Verdict {
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        if process.watch_reads.is_empty() {
            return Ok(());
        }
        let at = self.rng.index(process.watch_reads.len());
        let read = process.watch_reads.swap_remove(at);
        let page = read.of.read(&process.machine.store());
        self.tell_hub(server, WatchInput::Read { watch: read.watch, page })
    }

    /// The core says that its server is cut off.
    pub fn watches_are_cut_off(&mut self, server: usize) -> Verdict {
        self.tell_hub(server, WatchInput::CutOff)
    }

    fn tell_hub(&mut self, server: usize, input: WatchInput) -> Verdict {
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        process.watches.handle(input);
        let outputs = process.watches.flush();
        let in_doubt = process.node.distrust().is_some() || self.servers[server].refuted;
        for output in outputs {
            match output {
                WatchOutput::Read(read) => {
                    if let Some(process) = &mut self.servers[server].process {
                        process.watch_reads.push(read);
                    }
                }
                WatchOutput::Reply { token, reply } => {
                    let frame = Message::Reply { id: token.request, body: reply };
                    let mut bytes = Vec::new();
                    let most = acervo::limits::SERVER_FRAME_BYTES_MAX;
                    codec::encode(&frame, most, &mut bytes).map_err(|e| e.to_string())?;
                    self.send_to_watcher(token.connection, bytes, 0);
                }
                WatchOutput::Send { connection, .. } if in_doubt => {
                    let number = connection.to_u64();
                    let watcher = self.watchers.iter_mut().find(|w| w.connection == number);
                    if let Some(watcher) = watcher {
                        watcher.disconnect();
                    }
                    // The loop closes the connection, and tells the hub so.
                    if let Some(process) = &mut self.servers[server].process {
                        process.watches.handle(WatchInput::Closed { connection });
                    }
                }
                WatchOutput::Send { connection, frames } => {
                    let bytes = frames.bytes();
                    let frames = frames.into_pieces().concat();
                    self.send_to_watcher(connection.to_u64(), frames, bytes);
                }
                WatchOutput::Close { connection, why: WatchEnd::TooSlow } => {
                    return Err(Violation(format!("{connection:?} is closed for being slow")));
                }
                WatchOutput::Close { connection, why: WatchEnd::CutOff } => {
                    let number = connection.to_u64();
                    let watcher = self.watchers.iter_mut().find(|w| w.connection == number);
                    if let Some(watcher) = watcher {
                        watcher.disconnect();
                        watcher.sent_away += 1;
                    }
                    if let Some(process) = &mut self.servers[server].process {
                        process.watches.handle(WatchInput::Closed { connection });
                    }
                }
            }
        }
        Ok(())
    }

    fn send_to_watcher(&mut self, connection: u64, frames: Vec<u8>, bytes: usize) {
        let watcher = self.watchers.iter_mut().find(|watcher| watcher.connection == connection);
        if let Some(watcher) = watcher {
            watcher.coming.push_back((frames, bytes));
        }
    }

    fn arrives(&mut self, watcher: usize, bytes: &[u8]) -> Verdict {
        let mut deframer = Deframer::new(acervo::limits::SERVER_FRAME_BYTES_MAX);
        deframer.push(bytes);
        while let Some(body) = deframer.next_frame().map_err(|error| error.to_string())? {
            let message = codec::decode(body).map_err(|error| error.to_string())?;
            self.watched(watcher, message)?;
        }
        Ok(())
    }

    fn watched(&mut self, watcher: usize, message: Message) -> Verdict {
        let state = &mut self.watchers[watcher];
        match message {
            Message::Reply { body: Reply::WatchOk { after }, .. } => {
                ensure!(!state.has_begun, "a watch begins twice");
                state.has_begun = true;
                if state.after.is_none() {
                    state.shown = (after, last_key());
                }
                let after = *state.after.get_or_insert(after);
                // What was shown of a version in part is shown again.
                if state.shown.0 > after {
                    state.shown = (after, last_key());
                }
                Ok(())
            }
            // It has one watch, and what is not said of that is of no use.
            Message::WatchProgress { behind, .. } if !behind.is_empty() => {
                Err(Violation(format!("progress but of {behind:?}, which is all there is")))
            }
            Message::WatchProgress { up_to, .. } => {
                let next = self.checker.next_change(&state.range, &state.shown);
                ensure!(
                    next.is_none_or(|next| next.place.0 > up_to),
                    "progress to {up_to}, but {next:?} was not shown"
                );
                state.after = state.after.max(Some(up_to));
                Ok(())
            }
            Message::Watched { body, .. } => {
                ensure!(state.has_begun, "shown something before it has begun: {body:?}");
                state.untaken_credit += body.credit_bytes();
                self.shown(watcher, body)
            }
            other => Err(Violation(format!("a watcher is told {other:?}"))),
        }
    }

    fn shown(&mut self, watcher: usize, frame: WatchFrame) -> Verdict {
        let state = &mut self.watchers[watcher];
        if let Some(told) = &mut state.told {
            told.push(match frame.clone() {
                WatchFrame::Events { changes, up_to, continues } => {
                    WatchEvent::Changed { version: up_to, changes, continues }
                }
                WatchFrame::Reset { rows, at, begins, continues } => {
                    WatchEvent::Reset { version: at, rows, begins, continues }
                }
            });
        }
        match frame {
            WatchFrame::Events { changes, up_to, continues } => {
                for change in changes {
                    let right = self.checker.next_change(&state.range, &state.shown);
                    let Some(right) = right else {
                        return Err(Violation(format!("{change:?} never happened")));
                    };
                    let place = (change.at, change.key.clone());
                    ensure!(
                        place == right.place && change.written == right.written,
                        "{change:?} was shown instead of {right:?}"
                    );
                    let previous = change.previous.map(|previous| match previous {
                        Previous::Absent => None,
                        Previous::Value { timestamp, value, .. } => Some((timestamp, value)),
                    });
                    let had = right.previous.as_ref();
                    let had = had.map(|version| (version.timestamp, Some(version.value.clone())));
                    ensure!(
                        previous == state.tells_previous.then_some(had),
                        "{previous:?} was shown as what was before {right:?}"
                    );
                    state.shown = place;
                    state.changes += 1;
                }
                if !continues {
                    let next = self.checker.next_change(&state.range, &state.shown);
                    ensure!(
                        next.is_none_or(|next| next.place.0 > up_to),
                        "{next:?} was left out up to {up_to}"
                    );
                    state.shown = state.shown.clone().max((up_to, last_key()));
                }
                state.after = state.after.max(Some(up_to));
            }
            WatchFrame::Reset { rows, at, begins, continues } => {
                let horizon = self.checker.horizon();
                ensure!(
                    state.after <= Some(horizon),
                    "reset after {:?}, and nothing later than {horizon} is gone",
                    state.after
                );
                if begins {
                    state.rows = Some(Vec::new());
                }
                let Some(all) = &mut state.rows else {
                    return Err(Violation("rows of no reset".to_owned()));
                };
                all.extend(rows);
                if !continues {
                    let rows = state.rows.take().unwrap_or_default();
                    let right = self.checker.state_at(&state.range, at);
                    ensure!(rows == right, "reset to {rows:?} as of {at}, not {right:?}");
                    state.shown = (at, last_key());
                    state.after = Some(at);
                    state.resets += 1;
                }
            }
        }
        Ok(())
    }

    /// Whether every watcher has been shown everything.
    pub fn watchers_are_whole(&self) -> bool {
        self.watchers.iter().filter(|watcher| !watcher.is_over).all(|watcher| {
            let next = self.checker.next_change(&watcher.range, &watcher.shown);
            watcher.at.is_some() && watcher.has_begun && watcher.rows.is_none() && next.is_none()
        })
    }
}

impl Watcher {
    /// What was on its way is lost. A reset that was not whole has taken what was known before.
    fn disconnect(&mut self) {
        (self.at, self.has_begun, self.waits_in_vain_since_us) = (None, false, None);
        if self.rows.take().is_some() {
            self.after = Some(Timestamp::ZERO);
            self.shown = (Timestamp::ZERO, Bytes::new());
        }
        self.connection = 0;
        self.coming.clear();
        self.untaken_credit = 0;
    }
}
