//! What the real server's wiring does for its core, done in virtual time: inputs in, outputs
//! carried out in order, the disk, the state machine, start and stop.

use std::time::Duration;

use acervo::limits::{self, NodeLimits};
use acervo::model::{
    AppliedPoint, DiskSpace, FeatureLevel, LogBatch, LogEntry, LogIndex, NodeId, Recovered,
    Release, ReleaseVersion,
};
use acervo::node::config::{AckPolicy, NodeConfig, NodeStatus};
use acervo::node::core::Node;
use acervo::node::eligibility::Ineligible;
use acervo::node::{Input, InstallRequest, Notice, Output, RequestToken};
use acervo::server::snapshots::{TransferLimits, TransferStep, Transfers};
use acervo::server::work::{CatchUpWork, LogWork, SnapshotReport, SnapshotWork, StoreWork, Work};
use acervo::storage::log::compaction::{self, NeededByOthers, RetentionReasons};
use acervo::storage::snapshot::SnapshotSource;
use acervo::wire::message::{Reply, Role, ServerMessage};

use crate::checker::{Verdict, Violation, ensure};
use crate::leases::HOLDERS_CONNECTION;
use crate::machine::{Machine, SimStaging};
use crate::nemesis::Fault;
use crate::server::{Piece, Process, node_id, position};
use crate::world::{Event, MILLISECOND, SECOND, Setup, World};

/// An answer may take the commit time-out here, again at a leader that then dies, the in-sync
/// time-out twice, and this much for the machinery.
const ANSWER_SLACK_US: u64 = 2 * SECOND;
/// No client here writes more at once.
const ENTRY_BYTES_MAX: usize = 4 * 1024;

impl World {
    /// Gives a core one input and carries out what it answers.
    pub fn input(&mut self, server: usize, input: Input) -> Verdict {
        let now = self.now_of(server);
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        if let Input::Applied { point, .. } = &input {
            process.unapplied = process.unapplied.split_off(&(point.index + 1));
        }
        if !matches!(input, Input::Tick | Input::LateTick) {
            self.trace.note(self.now_us, || format!("{} <- {input:?}", server + 1));
        }
        let mut outputs = Vec::new();
        process.node.handle(now, input, &mut outputs);
        if !process.flush_due {
            process.flush_due = true;
            let life = self.servers[server].life;
            let delay_us = self.rng.below(100);
            self.after(delay_us, Event::Flush { server, life });
        }
        self.carry_out(server, outputs)
    }

    /// The core's driver has no more input for now.
    pub fn flush(&mut self, server: usize) -> Verdict {
        let now = self.now_of(server);
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        process.flush_due = false;
        let mut outputs = Vec::new();
        process.node.flush(now, &mut outputs);
        if let Some(due_us) = process.node.flush_due_us() {
            let life = self.servers[server].life;
            let delay_us = due_us.saturating_sub(now.monotonic_us) + self.rng.below(MILLISECOND);
            self.after(delay_us, Event::Flush { server, life });
        }
        self.carry_out(server, outputs)
    }

    /// The election clock; also the moment to look for answers that are overdue.
    pub fn tick(&mut self, server: usize) -> Verdict {
        let life = self.servers[server].life;
        let delay_us = limits::TICK.as_micros() as u64 + self.rng.below(MILLISECOND);
        self.after(delay_us, Event::Tick { server, life });
        let Some(process) = &self.servers[server].process else { return Ok(()) };
        // A long write waits for its turn at a follower, and then as long at the leader.
        let patience = 3 * limits::COMMIT_TIMEOUT + 2 * self.setup.in_sync_timeout;
        let patience_us = patience.as_micros() as u64 + ANSWER_SLACK_US;
        for (token, since_us) in &process.owed {
            ensure!(
                self.now_us - since_us < patience_us,
                "{} has owed {token:?} an answer since {since_us} µs",
                node_id(server)
            );
        }
        self.input(server, Input::Tick)?;
        let now_us = self.now_us;
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        let node = &process.node;
        let steps = process.transfers.tick(now_us, &node.status(), |peer| node.matched(peer));
        self.take_steps(server, steps)?;
        // Its driver was away for a moment.
        if self.rng.chance(10) { self.input(server, Input::LateTick) } else { Ok(()) }
    }

    fn carry_out(&mut self, server: usize, outputs: Vec<Output>) -> Verdict {
        self.observe(server)?;
        for output in outputs {
            self.trace.note(self.now_us, || format!("{} -> {output:?}", server + 1));
            match output {
                Output::Send { to, message } => {
                    if let ServerMessage::Forwarded { reply: Some(reply), .. } = &message {
                        self.check_acknowledgement(server, reply)?;
                    }
                    let vouches =
                        matches!(message, ServerMessage::StateHashOk { hash: Some(_), .. });
                    ensure!(
                        !(vouches && self.servers[server].refuted),
                        "{} vouches for a state that was refuted",
                        node_id(server)
                    );
                    let to = position(to, self.servers.len())
                        .ok_or_else(|| Violation(format!("a message to {to}")))?;
                    self.send(server, to, &message)?;
                }
                Output::Reply { token, reply } => {
                    self.check_acknowledgement(server, &reply)?;
                    if self.settle(server, token)? {
                        match token.connection {
                            HOLDERS_CONNECTION => self.lease_replied(token, reply),
                            _ => self.reply(server, token.request as usize, reply, 0),
                        }
                    }
                }
                Output::ReadReady { token } => {
                    if self.settle(server, token)? {
                        self.start_get(server, token.request as usize)?;
                    }
                }
                Output::Persist(batch) => self.persist(server, batch)?,
                Output::Apply { entries, answering } => self.apply(server, entries, answering)?,
                Output::Fetch { fetch, low, high, bytes_max } => {
                    let life = self.servers[server].life;
                    let delay_us = self.rng.range(50..=5 * MILLISECOND);
                    let range = (low, high);
                    self.after(delay_us, Event::Fetched { server, life, fetch, range, bytes_max });
                }
                Output::SendSnapshot { to, leader_term } => {
                    let now_us = self.now_us;
                    let steps = self.transfers(server, |t| t.start(now_us, to, leader_term));
                    self.take_steps(server, steps)?;
                }
                Output::InstallSnapshot(request) => {
                    let steps = self.transfers(server, |t| t.install(request));
                    self.take_steps(server, steps)?;
                }
                Output::DiscardSnapshot => {
                    let steps = self.transfers(server, Transfers::discard);
                    self.take_steps(server, steps)?;
                }
                Output::Console(event) => {
                    if let Some(process) = &mut self.servers[server].process {
                        process.console.push(event);
                    }
                }
                Output::Disconnect { server: blamed, reason } => {
                    self.disconnect(server, blamed, reason)?
                }
                Output::Notice(notice) => {
                    let contradicts = matches!(
                        notice,
                        Notice::Diverged { .. }
                            | Notice::ServerDiverged { .. }
                            | Notice::Disputed { .. }
                            | Notice::LogContradicted { .. }
                            | Notice::LogRefuted { .. }
                    );
                    let planted = self.nemesis.struck.contains_key(&Fault::Diverge);
                    ensure!(
                        !contradicts || planted || !self.setup.honest,
                        "{}: {notice}",
                        node_id(server)
                    );
                    if let Some(process) = &mut self.servers[server].process {
                        process.notices.push(notice);
                    }
                }
                Output::CutOff => self.watches_are_cut_off(server)?,
                Output::RebuildState => {
                    let (life, longest_us) =
                        (self.servers[server].life, self.servers[server].sync_us_max);
                    let delay_us = self.rng.range(longest_us / 4..=longest_us);
                    self.after(delay_us, Event::VerdictSetDown { server, life });
                    let patience_us = limits::STOP_DISK_TIMEOUT.as_micros() as u64;
                    self.after(patience_us, Event::VerdictOverdue { server, life });
                    let reason = Ineligible::StoreDamaged;
                    self.input(server, Input::Eligibility { reason, holds: true })?;
                }
                Output::BeginAnew => {
                    // Whoever is honest has no such log here.
                    ensure!(!self.setup.honest, "{} throws its log away", node_id(server));
                }
                Output::Stopped => return self.exit(server),
            }
        }
        Ok(())
    }

    /// A server closes its links with one that has sent what no server sends.
    pub fn disconnect(&mut self, server: usize, peer: NodeId, reason: String) -> Verdict {
        let peer = position(peer, self.servers.len())
            .ok_or_else(|| Violation(format!("disconnects {peer}: {reason}")))?;
        ensure!(
            !self.setup.honest || self.setup.outdated == Some(server),
            "{} accuses honest {}: {reason}",
            node_id(server),
            node_id(peer)
        );
        self.accusations.push((server, peer, reason));
        self.reset_links(server, peer);
        Ok(())
    }

    /// Takes the core's account of itself and checks what must hold of it.
    fn observe(&mut self, server: usize) -> Verdict {
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        let led_in = process.term_led();
        process.status = process.node.status();
        let begins_to_lead = process.term_led() > led_in;
        let forwarded = process.node.forwarded();
        let (rows_max, bytes_max) =
            (self.setup.limits.long_write_rows_max, self.setup.limits.forward_bytes_max);
        ensure!(
            (forwarded.long <= 1 || forwarded.long_rows <= rows_max)
                && (forwarded.short <= 1 || forwarded.short_bytes <= bytes_max),
            "{} has {forwarded:?}, and may have {rows_max} rows of long writes, and {bytes_max} \
             bytes of others",
            node_id(server)
        );
        if !self.setup.honest {
            return Ok(());
        }
        let status = process.status.clone();
        self.leader_in_doubt |= status.role == Role::Leader && status.distrust.is_some();
        if status.role == Role::Leader {
            // A lost vote is enough for another to be elected.
            let undisturbed = self.nemesis.struck.is_empty() && self.setup.quality.loss == 0;
            self.checker.leads(node_id(server), status.term, undisturbed)?;
        }
        if begins_to_lead {
            self.ask_changing_leaders(server);
        }
        let commit = status.commit;
        let disks: Vec<_> = self.servers.iter().map(|server| &server.disk).collect();
        self.checker.commits(node_id(server), commit, &disks)
    }

    fn check_acknowledgement(&self, server: usize, reply: &Reply) -> Verdict {
        let Reply::WriteOk(answer) = reply else { return Ok(()) };
        let Some(process) = self.servers[server].process.as_ref().filter(|_| self.setup.honest)
        else {
            return Ok(());
        };
        // One that does not lead passes on what the leader tells.
        let tells_previous = process.status.role == Role::Leader && answer.previous.is_some();
        ensure!(
            !tells_previous || process.status.distrust.is_none(),
            "{} tells what was previous from a state that is not to be read",
            node_id(server)
        );
        let in_sync = match self.setup.ack {
            AckPolicy::All => process.status.in_sync.as_slice(),
            AckPolicy::Majority => &[],
        };
        let disks: Vec<_> = self.servers.iter().map(|server| &server.disk).collect();
        self.checker.acknowledges(answer.timestamp, in_sync, &disks)
    }

    /// Strikes out an owed answer; false when the process is no more.
    fn settle(&mut self, server: usize, token: RequestToken) -> Result<bool, Violation> {
        let Some(process) = &mut self.servers[server].process else { return Ok(false) };
        let owed = process.owed.remove(&token).is_some();
        ensure!(owed, "{} answered {token:?}, which it does not owe", node_id(server));
        Ok(true)
    }

    // ---- disk ---------------------------------------------------------------------------------

    fn persist(&mut self, server: usize, batch: LogBatch) -> Verdict {
        let applied = self.servers[server].process.as_ref().map_or(0, |process| process.handed);
        if let Some(first) = batch.entries.first()
            && self.setup.honest
        {
            ensure!(
                first.index > applied,
                "{} rewrites its log from {}, but has applied {applied}",
                node_id(server),
                first.index
            );
        }
        if let Some(process) = &mut self.servers[server].process
            && let Some(first) = batch.entries.first()
        {
            process.unapplied.split_off(&first.index);
            let bytes = |entry: &LogEntry| (entry.index, entry.data.len() + 64);
            process.unapplied.extend(batch.entries.iter().map(bytes));
            let NodeLimits { unapplied_bytes_max, append_bytes_max, appends_in_flight_max, .. } =
                self.setup.limits;
            let held: usize = process.unapplied.values().sum();
            // As much may be committed here as is not committed at its leader: each with what may
            // arrive between two flushes more. One entry that is longer than a message may be
            // travels alone, in each of them.
            let messages = appends_in_flight_max.max(4);
            let message_bytes = messages * ENTRY_BYTES_MAX.max(append_bytes_max as usize);
            let held_max = 2 * (unapplied_bytes_max + message_bytes);
            ensure!(
                held <= held_max,
                "{} holds {held} bytes that are not applied",
                node_id(server)
            );
        }
        self.servers[server].disk.write(batch);
        self.start_sync(server);
        Ok(())
    }

    fn start_sync(&mut self, server: usize) {
        let state = &mut self.servers[server];
        if state.disk.start_sync() {
            let (life, longest_us) = (state.life, state.sync_us_max);
            let delay_us = self.rng.range(longest_us / 4..=longest_us);
            self.after(delay_us, Event::Synced { server, life });
        }
    }

    pub fn synced(&mut self, server: usize) -> Verdict {
        let (newest, begun) = self.servers[server].disk.finish_sync()?;
        if let Some((number, index)) = begun
            && let Some(process) = &mut self.servers[server].process
        {
            process.handed = index;
            self.snapshot_work(server, SnapshotWork::Install { number })?;
            self.input(server, Input::Persisted { number })?;
        }
        self.start_sync(server);
        match newest {
            Some(number) => self.input(server, Input::Persisted { number }),
            None => Ok(()),
        }
    }

    /// Entries for a late follower come from the disk, or sometimes do not.
    pub fn fetched(
        &mut self,
        server: usize,
        fetch: u64,
        (low, high): (LogIndex, LogIndex),
        bytes_max: u64,
    ) -> Verdict {
        let failed = self.rng.chance(self.setup.fetch_failures);
        let entries = match failed {
            true => Vec::new(),
            false => self.servers[server].disk.read(low, high, bytes_max),
        };
        self.input(server, Input::Fetched { fetch, entries })
    }

    // ---- state machine ------------------------------------------------------------------------

    fn apply(&mut self, server: usize, entries: Vec<LogEntry>, answering: bool) -> Verdict {
        let state = &mut self.servers[server];
        let Some(process) = &mut state.process else { return Ok(()) };
        for entry in &entries {
            ensure!(
                entry.index == process.handed + 1,
                "{} hands over {} after {}",
                node_id(server),
                entry.index,
                process.handed
            );
            ensure!(
                state.disk.entry(entry.index) == Some(entry),
                "{} applies {}, which its own disk does not hold",
                node_id(server),
                entry.index
            );
            process.handed = entry.index;
        }
        process.applying.push_back(Piece::Entries { entries, answering });
        if process.applying.len() == 1 {
            self.start_apply(server);
        }
        Ok(())
    }

    fn start_apply(&mut self, server: usize) {
        let life = self.servers[server].life;
        let delay_us = self.rng.range(10..=self.servers[server].apply_us_max);
        self.after(delay_us, Event::ApplyDone { server, life });
    }

    /// The piece at hand is applied; the core learns of it a little later.
    pub fn apply_done(&mut self, server: usize) -> Verdict {
        // However the log is cut into batches, the state must become the same.
        let one_by_one = self.rng.chance(500);
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        let mut outcomes = Vec::new();
        let mut leases = Vec::new();
        let mut reports = None;
        match process.applying.pop_front() {
            Some(Piece::Entries { entries, .. }) if !self.setup.honest => {
                for entry in &entries {
                    outcomes.extend(process.machine.believe(entry)?);
                }
            }
            Some(Piece::Entries { entries, answering }) => {
                let size = if one_by_one { 1 } else { entries.len().max(1) };
                for batch in entries.chunks(size) {
                    let applied = process.machine.apply(batch, answering)?;
                    let point = process.machine.point();
                    let now_us = self.now_us;
                    self.checker.applied(batch, &applied.writes, answering, point, now_us)?;
                    outcomes.extend(applied.writes);
                    leases.extend(applied.leases);
                }
            }
            Some(Piece::Snapshot(work)) => {
                let done = process.machine.snapshot(&mut process.intake, &process.staging, work)?;
                let installed =
                    |report: &SnapshotReport| matches!(report, SnapshotReport::Installed { .. });
                let durable = |report: &SnapshotReport| {
                    installed(report) || matches!(report, SnapshotReport::Pinned { .. })
                };
                let (saves, replaced) = (done.iter().any(durable), done.iter().any(installed));
                reports = Some(done);
                if replaced {
                    process.skew = 0;
                    self.servers[server].store_lost = false;
                    self.servers[server].refuted = false;
                }
                if saves && let Some(process) = &mut self.servers[server].process {
                    let saved = process.machine.save()?;
                    let skew = process.skew;
                    self.servers[server].save(saved, skew);
                }
            }
            None => {}
        }
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        let summary = process.machine.summary();
        let point = process.machine.point();
        let told = AppliedPoint { hash: point.hash ^ process.skew, ..point };
        let delay_us = self.rng.range(5..=50);
        let notice_us = (self.now_us + delay_us).max(process.applied_notice_us);
        process.applied_notice_us = notice_us;
        if !process.applying.is_empty() {
            self.start_apply(server);
        }
        let life = self.servers[server].life;
        if let Some(reports) = reports {
            for report in reports {
                self.at(notice_us, Event::SnapshotReport { server, life, report });
            }
        } else {
            let point = told;
            let applied = Event::Applied { server, life, outcomes, summary, leases, point };
            self.at(notice_us, applied);
        }
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        if self.rng.chance(self.setup.checkpoints) {
            let saved = process.machine.save()?;
            let skew = process.skew;
            self.servers[server].save(saved, skew);
            self.at(notice_us, Event::Checkpointed { server, life, index: point.index });
        }
        Ok(())
    }

    /// The loop learns up to where the store is durable.
    pub fn checkpointed(&mut self, server: usize, index: LogIndex) -> Verdict {
        let steps = self.transfers(server, |t| t.checkpointed(index));
        self.take_steps(server, steps)
    }

    // ---- snapshots ----------------------------------------------------------------------------

    /// Lets a server's bookkeeping of snapshots take in what happened.
    pub fn transfers(
        &mut self,
        server: usize,
        happened: impl FnOnce(&mut Transfers) -> Vec<TransferStep>,
    ) -> Vec<TransferStep> {
        let process = self.servers[server].process.as_mut();
        process.map_or_else(Vec::new, |process| happened(&mut process.transfers))
    }

    /// Does what the bookkeeping of snapshots wants done.
    pub fn take_steps(&mut self, server: usize, steps: Vec<TransferStep>) -> Verdict {
        for step in steps {
            self.trace.note(self.now_us, || format!("{} => {step:?}", server + 1));
            match step {
                TransferStep::Send { to, message } => {
                    let to = position(to, self.servers.len())
                        .ok_or_else(|| Violation(format!("a piece for {to}")))?;
                    self.send_in_order(server, to, &message)?;
                }
                TransferStep::Input(input) => {
                    if let Input::SnapshotSent { to, reached: Some(_) } = &input
                        && let Some(process) = &mut self.servers[server].process
                    {
                        process.prepared_us.remove(to);
                    }
                    self.input(server, input)?;
                }
                TransferStep::Work(work) => self.work(server, work)?,
            }
        }
        Ok(())
    }

    /// Has a thread of the server do what the bookkeeping of snapshots wants done.
    fn work(&mut self, server: usize, work: Work) -> Verdict {
        match work {
            Work::Store(StoreWork::Snapshot(work)) => self.snapshot_work(server, work),
            Work::Log(LogWork::Install(InstallRequest { number, snapshot, hard_state })) => {
                let state = &mut self.servers[server];
                let Some(process) = &mut state.process else { return Ok(()) };
                let Some(saved) = process.staging.staged(process.arriving) else {
                    return Err(Violation(format!("{} installs nothing", node_id(server))));
                };
                process.unapplied.clear();
                state.disk.write_snapshot(number, snapshot, hard_state, saved);
                self.start_sync(server);
                Ok(())
            }
            Work::Log(LogWork::Compact { durable_index, needed }) => {
                self.compact(server, durable_index, needed)
            }
            Work::CatchUp(work) if self.servers[server].workers_busy_until_us > self.now_us => {
                self.transfers(server, |t| {
                    t.refused(work);
                    Vec::new()
                });
                Ok(())
            }
            Work::CatchUp(CatchUpWork::Chunk { to, id, source, bytes_max }) => {
                let life = self.servers[server].life;
                let delay_us = self.rng.range(50..=self.setup.piece_us_max);
                let event = Event::Piece { server, life, to, transfer: id, source, bytes_max };
                self.after(delay_us, event);
                Ok(())
            }
            work => Err(Violation(format!("{work:?} is no work on a snapshot"))),
        }
    }

    fn compact(
        &mut self,
        server: usize,
        durable_index: LogIndex,
        needed: NeededByOthers,
    ) -> Verdict {
        // A server whose state is wrong and one that is behind the log would be two without a
        // state: nobody could decide.
        if !self.rng.chance(self.setup.compactions) || self.somebody_is_wrong() {
            return Ok(());
        }
        let last_index = self.servers[server].disk.last_index();
        let first_index = compaction::first_kept(RetentionReasons {
            durable_index,
            recent_first_index: (durable_index + 1).saturating_sub(self.rng.below(30)),
            needed,
            longest_first_index: (last_index + 1).saturating_sub(self.setup.held_entries_max),
            space: self.servers[server].disk_space,
        });
        if self.servers[server].disk.compact(first_index) {
            self.input(server, Input::Compacted { first_index })?;
            let now_us = self.now_us;
            let steps = self.transfers(server, |t| t.compacted(now_us, first_index));
            self.take_steps(server, steps)?;
        }
        Ok(())
    }

    fn snapshot_work(&mut self, server: usize, work: SnapshotWork) -> Verdict {
        let now_us = self.now_us;
        let Setup { transfers: TransferLimits { retry_us_min, chunks_in_flight_max, .. }, .. } =
            self.setup;
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        match &work {
            SnapshotWork::Pin { to, .. } => {
                let before_us = process.prepared_us.insert(*to, now_us);
                ensure!(
                    before_us.is_none_or(|before_us| now_us - before_us >= retry_us_min),
                    "{} prepares snapshots for {to} at {before_us:?} and {now_us} µs",
                    node_id(server)
                );
                self.snapshots.0 += 1;
            }
            SnapshotWork::Begin { point, .. } => process.arriving = *point,
            _ => {}
        }
        process.applying.push_back(Piece::Snapshot(work));
        let is_chunk =
            |piece: &&Piece| matches!(piece, Piece::Snapshot(SnapshotWork::Store { .. }));
        let waiting = process.applying.iter().filter(is_chunk).count() as u64;
        ensure!(
            waiting <= chunks_in_flight_max,
            "{waiting} pieces of a snapshot wait for the applier of {}",
            node_id(server)
        );
        if process.applying.len() == 1 {
            self.start_apply(server);
        }
        Ok(())
    }

    /// A worker reads a piece of a snapshot.
    pub fn piece(
        &mut self,
        server: usize,
        to: NodeId,
        transfer: u64,
        mut source: SnapshotSource,
        bytes_max: usize,
    ) -> Verdict {
        let failed = self.rng.chance(self.setup.fetch_failures / 50);
        let chunk = match failed {
            true => Err("the disk does not answer".to_owned()),
            false => source.next_chunk(bytes_max).map_err(|error| error.to_string()),
        };
        self.snapshot_report(server, SnapshotReport::Read { to, id: transfer, source, chunk })
    }

    /// The loop learns what the applier or a worker did about a snapshot.
    pub fn snapshot_report(&mut self, server: usize, report: SnapshotReport) -> Verdict {
        let now_us = self.now_us;
        match &report {
            SnapshotReport::Pinned { source, .. } => {
                let index = source.point().index;
                self.checkpointed(server, index)?;
            }
            SnapshotReport::Installed { .. } => self.snapshots.1 += 1,
            _ => {}
        }
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        let node = &process.node;
        let steps = process.transfers.report(now_us, report, |index| node.term_at(index));
        self.take_steps(server, steps)
    }

    // ---- start and stop -----------------------------------------------------------------------

    /// Starts a server that is down on what its disk holds.
    pub fn start(&mut self, server: usize) -> Verdict {
        if self.servers[server].process.is_some() {
            return Ok(());
        }
        self.servers[server].disk_space = DiskSpace::Ample;
        // Two servers never share an election time-out, so that elections end without luck.
        let spread = limits::ELECTION_TICKS / self.setup.servers;
        let election_ticks = limits::ELECTION_TICKS
            + spread * ((server + self.setup.seed as usize) % self.setup.servers)
            + self.rng.index(spread);
        let release = self.release_of(server);
        let config = NodeConfig {
            node: node_id(server),
            nodes: (0..self.setup.servers).map(node_id).collect(),
            names: Vec::new(),
            first_leader: node_id(
                self.setup.told.get(server).copied().unwrap_or(self.setup.first_leader),
            ),
            ack: self.setup.ack,
            in_sync_timeout: self.setup.in_sync_timeout,
            stall_timeout: self.setup.stall_timeout,
            election_ticks: Some(election_ticks),
            value_bytes_max: limits::VALUE_BYTES_MAX_DEFAULT,
            replication_delay: self.setup.replication_delay[server],
            console: true,
            garbage_collection: self.setup.garbage_collection,
            limits: self.setup.limits,
            state_hash_every: self.setup.state_hash_every,
            release,
            cut_off_timeout: Duration::from_micros(self.setup.cut_off_us),
            level_settled: Duration::from_micros(self.setup.level_settled_us),
            lease_notes: self.setup.lease_notes,
            first_question: self.rng.next_u64(),
        };
        let (first, key) = (self.rng.next_u64() >> 1, self.rng.next_u64());
        let transfers = Transfers::new(first, key, self.setup.transfers);
        if self.servers[server].untrusted {
            self.lose_state(server);
            // The log may be what made it wrong.
            self.servers[server].store_lost = true;
        }
        let state = &mut self.servers[server];
        if let Some(snapshot) = state.disk.snapshot()
            && snapshot.point().index > state.checkpoint.point().index
        {
            // The installation of a snapshot that a crash interrupted is finished.
            state.checkpoint = snapshot.clone();
            (state.store_lost, state.saved_skew, state.refuted) = (false, 0, false);
        }
        // Drawn from nothing that anything else is drawn from.
        let engine_seed = self.setup.seed ^ (server as u64 + 1) << 48 ^ state.life << 32;
        let machine = Machine::restore(&state.checkpoint, release, engine_seed)?;
        let staging = SimStaging::new(!engine_seed);
        let recovered = match state.store_lost {
            true => state.disk.recover_without_state(),
            false => state.disk.recover(machine.point(), machine.summary(), machine.leases()?),
        };
        let handed = recovered.applied.index;
        self.trace.note(self.now_us, || {
            let Recovered { hard_state, last_index, applied, .. } = &recovered;
            let applied = applied.index;
            format!("{} starts: {hard_state:?}, log to {last_index}, applied {applied}", server + 1)
        });
        let node = Node::new(config, recovered)
            .map_err(|error| Violation(format!("{} cannot start: {error}", node_id(server))))?;
        state.life += 1;
        let skew = state.saved_skew;
        state.process =
            Some(Process { handed, skew, ..Process::new(node, machine, staging, transfers) });
        let life = state.life;
        let delay_us = self.rng.range(0..=limits::TICK.as_micros() as u64);
        self.after(delay_us, Event::Tick { server, life });
        self.dial_everyone(server);
        Ok(())
    }

    /// The release that a server starts with: the one it had, or now and then a newer one.
    fn release_of(&mut self, server: usize) -> Release {
        let may_upgrade = 1 + self.servers[server].upgrades < self.setup.newest_level;
        if may_upgrade && self.rng.chance(400) {
            self.servers[server].upgrades += 1;
        }
        let level = 1 + self.servers[server].upgrades;
        let level = FeatureLevel { level, release: ReleaseVersion(0, level as u16, 0) };
        Release { level, limits: self.setup.limits_of(server) }
    }

    /// Kill -9, or a power cut: the process and everything unsynced is gone.
    pub fn crash(&mut self, server: usize) -> Verdict {
        if self.servers[server].process.is_none() {
            return Ok(());
        }
        self.trace.note(self.now_us, || format!("{} crashes", server + 1));
        let state = &mut self.servers[server];
        state.disk.crash(&mut self.rng)?;
        self.depart(server);
        Ok(())
    }

    /// The data directory of a server that is down is lost.
    pub fn wipe(&mut self, server: usize) -> Verdict {
        self.crash(server)?;
        self.trace.note(self.now_us, || format!("{} loses its data directory", server + 1));
        self.servers[server].disk.wipe();
        self.servers[server].incarnation += 1;
        self.servers[server].forget_state();
        self.servers[server].store_lost = false;
        Ok(())
    }

    /// Log and store of a server that is down are lost, or are found damaged at its start: it knows
    /// that it had some.
    pub fn lose_data(&mut self, server: usize) -> Verdict {
        self.wipe(server)?;
        self.servers[server].disk.lose();
        Ok(())
    }

    /// Something in a server's state is found to be damaged while it runs: it hands over and starts
    /// again without it.
    pub fn rot(&mut self, server: usize) -> Verdict {
        self.trace.note(self.now_us, || format!("the state of {} is damaged", server + 1));
        if self.servers[server].process.is_none() {
            self.lose_state(server);
            return Ok(());
        }
        self.servers[server].rotten = true;
        self.end_soon(server)
    }

    fn end_soon(&mut self, server: usize) -> Verdict {
        let life = self.servers[server].life;
        let grace_us = limits::HANDOVER_TIMEOUT.as_micros() as u64 + SECOND;
        self.after(grace_us, Event::StopOverdue { server, life });
        self.input(server, Input::HandOver)
    }

    /// That a server's state was refuted is on its disk: now it hands over, and starts again
    /// without it.
    pub fn verdict_set_down(&mut self, server: usize) -> Verdict {
        (self.servers[server].untrusted, self.servers[server].refuted) = (true, true);
        self.end_soon(server)
    }

    /// A disk that does not take the verdict in keeps the server from ending no longer.
    pub fn verdict_overdue(&mut self, server: usize) -> Verdict {
        if self.servers[server].untrusted { Ok(()) } else { self.end_soon(server) }
    }

    fn lose_state(&mut self, server: usize) {
        let state = &mut self.servers[server];
        state.forget_state();
        state.store_lost = !state.disk.lose_state();
    }

    /// Asks a server to stop.
    pub fn stop(&mut self, server: usize) -> Verdict {
        let life = self.servers[server].life;
        let grace_us = limits::SHUTDOWN_GRACE.as_micros() as u64 + SECOND;
        self.after(grace_us, Event::StopOverdue { server, life });
        self.input(server, Input::Stop)
    }

    /// The driver waits no longer for a core that was asked to stop.
    pub fn stop_overdue(&mut self, server: usize) -> Verdict {
        self.nemesis.overdue_stops += 1;
        self.exit(server)
    }

    /// A clean exit: everything is synced, and the server starts again some time later.
    fn exit(&mut self, server: usize) -> Verdict {
        self.trace.note(self.now_us, || format!("{} exits", server + 1));
        let state = &mut self.servers[server];
        state.disk.close()?;
        if let Some(process) = state.process.as_mut().filter(|_| !state.store_lost) {
            let (saved, skew) = (process.machine.save()?, process.skew);
            state.save(saved, skew);
        }
        self.depart(server);
        let delay_us = self.rng.range(50 * MILLISECOND..=SECOND);
        self.after(delay_us, Event::Start { server });
        Ok(())
    }

    fn depart(&mut self, server: usize) {
        let state = &mut self.servers[server];
        state.life += 1;
        state.paused_until_us = 0;
        let attempts = state.process.take().map(|process| process.open_attempts);
        if state.rotten {
            self.lose_state(server);
        }
        for attempt in attempts.unwrap_or_default() {
            let delay_us = self.rng.range(50..=5 * MILLISECOND);
            self.after(delay_us, Event::Abandon { attempt });
        }
        self.drop_links_of(server);
    }

    /// The server that leads, by the newest term that has a leader running.
    pub fn leader(&self) -> Option<usize> {
        self.statuses()
            .filter(|(_, status)| status.role == Role::Leader)
            .max_by_key(|(_, status)| status.term)
            .map(|(server, _)| server)
    }

    /// What each running server says of itself.
    pub fn statuses(&self) -> impl Iterator<Item = (usize, &NodeStatus)> {
        let servers = self.servers.iter().enumerate();
        servers.filter_map(|(at, server)| Some((at, &server.process.as_ref()?.status)))
    }
}
