//! What the core wants done, and what has come of it.
//!
//! Rule: outputs of the core and steps of snapshot transfers are carried out in order, and
//! [`StoreService::complete`] is the one place where what a thread tells becomes an input of the
//! core.

use super::super::snapshots::TransferStep;
use super::super::work::{CatchUpWork, Completion, LogWork, StoreWork, Work};
use super::StoreService;
use crate::model::History;
use crate::net::Net;
use crate::node::{Input, Notice, Output};
use crate::storage::datadir::Untrusted;

impl StoreService {
    pub(super) fn carry_out(&mut self, net: &mut Net, mut outputs: Vec<Output>) {
        for output in outputs.drain(..) {
            match output {
                Output::Send { to, message } => self.send_to_server(net, to, message),
                Output::Reply { token, reply } => self.reply(net, token, reply),
                Output::Persist(batch) => self.parts.threads.write(LogWork::append(batch)),
                Output::Apply { entries, answering } => {
                    self.parts.threads.apply(StoreWork::apply(entries, answering));
                }
                Output::ReadReady { token } => {
                    if let Some((client, request)) = self.clients.take_waiting(token) {
                        self.read(net, token, client, request);
                    }
                }
                Output::Fetch { fetch, low, high, bytes_max } => {
                    self.catch_up(net, CatchUpWork::Entries { fetch, low, high, bytes_max });
                }
                Output::SendSnapshot { to, leader_term } => {
                    let now_us = self.now(net).monotonic_us;
                    let steps = self.transfers.start(now_us, to, leader_term);
                    self.take_steps(net, steps);
                }
                Output::InstallSnapshot(request) => {
                    let steps = self.transfers.install(request);
                    self.take_steps(net, steps);
                }
                Output::DiscardSnapshot => {
                    let steps = self.transfers.discard();
                    self.take_steps(net, steps);
                }
                Output::Console(event) => self.parts.console.show(event),
                Output::Notice(notice) => {
                    let level = match notice {
                        Notice::Diverged { .. }
                        | Notice::Disputed { .. }
                        | Notice::LogContradicted { .. }
                        | Notice::LogRefuted { .. } => log::Level::Error,
                        Notice::OutOfSync { .. }
                        | Notice::ServerDiverged { .. }
                        | Notice::ClockApart { .. } => log::Level::Warn,
                        _ => log::Level::Info,
                    };
                    // A target a kind, so that many of one kind are gathered without hiding
                    // another.
                    match &notice {
                        Notice::NoLeader { reason } => {
                            let why = reason.sentence(|node| self.address(node));
                            log::log!(target: notice.target(), level, "{why}");
                        }
                        notice => log::log!(target: notice.target(), level, "{notice}"),
                    }
                    if let Notice::History { history } = notice {
                        self.compare_history(history);
                    }
                }
                Output::Disconnect { server, reason } => {
                    self.disconnect(net, server, &reason);
                }
                Output::CutOff => {
                    if !self.watching.is_empty() {
                        self.parts.threads.cut_off_watches();
                    }
                }
                Output::RebuildState => self.restart(net, Untrusted::State),
                Output::BeginAnew => self.restart(net, Untrusted::Everything),
                Output::Stopped => self.lifecycle.core_stopped(),
            }
        }
        self.core.reuse(outputs);
    }

    /// Logs once if `--history` is not what the group keeps.
    fn compare_history(&mut self, group: History) {
        if !self.history_compared {
            self.history_compared = self.parts.config.warn_of_other_history(group);
        }
    }

    /// Takes in what has come of some work: the one place where that becomes inputs of the core.
    pub(super) fn complete(&mut self, net: &mut Net, completion: Completion) {
        let now_us = self.now(net).monotonic_us;
        let steps = match completion {
            Completion::Persisted { number } => {
                return self.input(net, Input::Persisted { number });
            }
            Completion::Applied { outcomes, point, summary, leases } => {
                return self.input(net, Input::Applied { outcomes, point, summary, leases });
            }
            Completion::Answered { charge, frame } => {
                return self.read_answered(net, charge, frame);
            }
            Completion::TooLong { read, bytes } => {
                self.clients.read_done(net, read.charge());
                return self.clients.defer(net, read, bytes);
            }
            Completion::Entries { fetch, entries } => {
                return self.input(net, Input::Fetched { fetch, entries });
            }
            Completion::Decoded { connection, decoded, held, .. } => {
                net.release(connection, held);
                // It is handed on before the frames that were sent behind it.
                self.incoming(net, connection, decoded);
                return net.release_frames(connection);
            }
            Completion::StoreDamaged(found) => {
                return self.damaged(net, &found, Untrusted::Store);
            }
            Completion::LogDamaged(found) => {
                return self.damaged(net, &found, Untrusted::Everything);
            }
            Completion::VerdictSetDown(Ok(())) => return self.verdict_set_down(net),
            Completion::VerdictSetDown(Err(error)) => {
                return self.verdict_not_set_down(net, &error);
            }
            Completion::DiskSpace(space) => return self.disk_space(net, space),
            Completion::Failed(failure) => return self.fail(net, failure),
            Completion::Checkpointed(index) => self.transfers.checkpointed(index),
            Completion::Compacted { first_index } => {
                self.input(net, Input::Compacted { first_index });
                self.transfers.compacted(now_us, first_index)
            }
            Completion::Snapshot(report) => {
                let node = self.core.node();
                self.transfers.report(now_us, report, |index| node.term_at(index))
            }
        };
        self.take_steps(net, steps);
    }

    pub(super) fn take_steps(&mut self, net: &mut Net, steps: Vec<TransferStep>) {
        for step in steps {
            match step {
                TransferStep::Send { to, message } => self.send_to_server(net, to, message),
                TransferStep::Work(Work::Log(work)) => self.parts.threads.write(work),
                TransferStep::Work(Work::Store(work)) => self.parts.threads.apply(work),
                TransferStep::Work(Work::CatchUp(work)) => self.catch_up(net, work),
                TransferStep::Input(input) => self.input(net, input),
            }
        }
    }

    /// Hands over what servers that lag need to have read.
    fn catch_up(&mut self, net: &mut Net, work: CatchUpWork) {
        match self.parts.threads.catch_up(work) {
            None => {}
            // Consensus asks again, as it would if the entries were not there.
            Some(CatchUpWork::Entries { fetch, .. }) => {
                self.input(net, Input::Fetched { fetch, entries: Vec::new() });
            }
            Some(refused) => self.transfers.refused(refused),
        }
    }
}
