//! Servers connecting to each other, speaking, and losing each other.

use acervo::limits;
use acervo::node::{CheckedMessage, Input};
use acervo::wire::message::{Channel, ServerMessage};

use crate::checker::{Verdict, Violation};
use crate::network::LinkState;
use crate::server::node_id;
use crate::world::{Event, MILLISECOND, SECOND, World};

impl World {
    /// Sends a message as the wire carries it, or loses it.
    pub fn send(&mut self, from: usize, to: usize, message: &ServerMessage) -> Verdict {
        let link = self.network.link(from, to);
        let epoch = link.epoch;
        let mut times = link.deliveries(Channel::of(message), self.now_us, &mut self.rng);
        // No connection brings a message twice. Most are taken so all the same, but of two copies
        // of a write the first may be refused as not done.
        if matches!(message, ServerMessage::Forward { .. }) {
            times.truncate(1);
        }
        if times.is_empty() {
            return Ok(());
        }
        let frame = rmp_serde::to_vec(message)
            .map_err(|error| Violation(format!("{message:?} cannot be encoded: {error}")))?;
        for at_us in times {
            self.at(at_us, Event::Deliver { from, to, epoch, frame: frame.clone() });
        }
        Ok(())
    }

    /// Sends a message that the real link delivers in order, or breaks.
    pub fn send_in_order(&mut self, from: usize, to: usize, message: &ServerMessage) -> Verdict {
        let frame = rmp_serde::to_vec(message)
            .map_err(|error| Violation(format!("{message:?} cannot be encoded: {error}")))?;
        let link = self.network.link(from, to);
        if link.state == LinkState::Up {
            let epoch = link.epoch;
            let at_us = link.append(self.now_us, frame, &mut self.rng);
            self.at(at_us, Event::Carry { from, to, epoch });
        }
        Ok(())
    }

    /// The next message of a link's stream arrives, unless the link broke; it waits while nothing
    /// gets through.
    pub fn carry(&mut self, from: usize, to: usize, epoch: u64) -> Verdict {
        let link = self.network.link(from, to);
        link.stream.retain(|(sent_in, _)| *sent_in == link.epoch);
        if link.epoch != epoch {
            return Ok(());
        }
        if link.blocked {
            self.after(20 * MILLISECOND, Event::Carry { from, to, epoch });
            return Ok(());
        }
        match link.stream.pop_front() {
            Some((_, frame)) => self.deliver(from, to, epoch, &frame),
            None => Ok(()),
        }
    }

    /// A message arrives, unless its link broke meanwhile.
    pub fn deliver(&mut self, from: usize, to: usize, epoch: u64, frame: &[u8]) -> Verdict {
        if self.network.link(from, to).epoch != epoch {
            return Ok(());
        }
        let message = rmp_serde::from_slice(frame)
            .map_err(|error| Violation(format!("a message cannot be decoded: {error}")))?;
        match CheckedMessage::new(message) {
            Ok(message) => self.peer_message(from, to, message),
            Err(reason) => self.disconnect(to, node_id(from), reason),
        }
    }

    /// A message is taken in as the real wiring does it.
    pub fn peer_message(&mut self, from: usize, to: usize, message: CheckedMessage) -> Verdict {
        let (now, from) = (self.now_of(to), node_id(from));
        if !message.is_about_a_snapshot() {
            return self.input(to, Input::Message { from, message });
        }
        let Some(process) = &mut self.servers[to].process else { return Ok(()) };
        let node = &process.node;
        let wanted =
            |from, snapshot, timestamp| node.wants_snapshot(now, from, snapshot, timestamp);
        let steps = process.transfers.message(now.monotonic_us, from, message, wanted);
        self.take_steps(to, steps)
    }

    /// Schedules first attempts to connect to every other server.
    pub fn dial_everyone(&mut self, from: usize) {
        for to in 0..self.servers.len() {
            if to != from {
                self.network.link(from, to).dialling = false;
                self.redial(from, to, 5 * MILLISECOND);
            }
        }
    }

    fn redial(&mut self, from: usize, to: usize, delay_us_max: u64) {
        let link = self.network.link(from, to);
        if link.dialling {
            return;
        }
        link.dialling = true;
        let life = self.servers[from].life;
        let delay_us = self.rng.range(delay_us_max / 10..=delay_us_max);
        self.after(delay_us, Event::Dial { from, to, life });
    }

    /// A server tries to connect to another; the greeting tells how far the other's log reaches.
    pub fn dial(&mut self, from: usize, to: usize) -> Verdict {
        let reachable = self.servers[to].process.is_some()
            && self.servers[to].paused_until_us <= self.now_us
            && !self.network.parted(from, to);
        let link = self.network.link(from, to);
        link.dialling = false;
        if link.state != LinkState::Down {
            return Ok(());
        }
        if !reachable {
            // An attempt into a hole takes a while to fail.
            let parted = self.network.parted(from, to);
            let patience_us =
                if parted { limits::SERVER_DIAL_TIMEOUT.as_micros() as u64 } else { 0 };
            self.redial(from, to, patience_us + limits::DIAL_BACKOFF_MAX.as_micros() as u64);
            return Ok(());
        }
        link.state = LinkState::Up;
        link.epoch += 1;
        link.session += 1;
        link.incarnation = self.servers[from].incarnation;
        // The greeting names the other's data directory: what an earlier one sent is not believed.
        let incarnation = self.servers[to].incarnation;
        let inbound = self.network.link(to, from);
        if inbound.incarnation != incarnation {
            inbound.epoch += 1;
        }
        let Some(process) = &self.servers[to].process else { return Ok(()) };
        let (last_index, term) = (process.status.last_index, process.status.term);
        let first_leader = process.status.first_leader;
        let was_replaced = std::mem::replace(&mut self.network.link(from, to).heard, true);
        if was_replaced {
            self.inbound_down(from, to)?;
        }
        if let Some(process) = &mut self.servers[from].process {
            process.transfers.link_up(node_id(to));
        }
        self.input(from, Input::LinkUp { server: node_id(to), last_index, term, first_leader })
    }

    /// The receiving end of a link learns that it broke, unless it is up again.
    pub fn inbound_lost(&mut self, from: usize, to: usize) -> Verdict {
        let link = self.network.link(from, to);
        if link.state == LinkState::Up || !std::mem::take(&mut link.heard) {
            return Ok(());
        }
        self.inbound_down(from, to)
    }

    fn inbound_down(&mut self, from: usize, to: usize) -> Verdict {
        let peer = node_id(from);
        self.input(to, Input::InboundDown { server: peer })?;
        let now_us = self.now_us;
        let Some(process) = &mut self.servers[to].process else { return Ok(()) };
        let steps = process.transfers.inbound_down(now_us, peer);
        self.take_steps(to, steps)
    }

    /// Breaks one direction: what is in flight is lost now, the sender learns of it later.
    pub fn break_link(&mut self, from: usize, to: usize, notice_us: u64) {
        let link = self.network.link(from, to);
        link.epoch += 1;
        if link.state == LinkState::Up {
            link.state = LinkState::Broken;
            let session = link.session;
            self.after(notice_us, Event::LinkLost { from, to, session });
            let notice_us = self.rng.range(100..=notice_us.max(100) * 2);
            self.after(notice_us, Event::InboundLost { from, to });
        }
    }

    /// Nothing is heard on a link.
    pub fn link_silent(&mut self, from: usize, to: usize, session: u64) {
        let link = self.network.link(from, to);
        if link.session == session && link.state == LinkState::Up && self.network.parted(from, to) {
            self.break_link(from, to, 0);
        }
    }

    /// A server learns that its link broke, and dials again.
    pub fn link_lost(&mut self, from: usize, to: usize, session: u64) -> Verdict {
        let link = self.network.link(from, to);
        if link.state != LinkState::Broken || link.session != session {
            return Ok(());
        }
        link.state = LinkState::Down;
        self.input(from, Input::LinkDown { server: node_id(to) })?;
        let now_us = self.now_us;
        if let Some(process) = &mut self.servers[from].process {
            let steps = process.transfers.link_down(now_us, node_id(to));
            self.take_steps(from, steps)?;
        }
        self.redial(from, to, 100 * MILLISECOND);
        Ok(())
    }

    /// Closes both directions between two servers, as an accusation does.
    pub fn reset_links(&mut self, a: usize, b: usize) {
        self.reset_link(a, b);
        self.reset_link(b, a);
    }

    /// The connection on which one server sends to another breaks.
    pub fn reset_link(&mut self, from: usize, to: usize) {
        let notice_us = self.rng.range(100..=5 * MILLISECOND);
        self.break_link(from, to, notice_us);
    }

    /// A process is gone, and its connections with it. What it had sent may still arrive.
    pub fn drop_links_of(&mut self, server: usize) {
        for other in (0..self.servers.len()).filter(|other| *other != server) {
            let slow = self.rng.chance(100);
            let longest_us = if slow { 2 * SECOND } else { 20 * MILLISECOND };
            let notice_us = self.rng.range(100..=longest_us);
            self.break_link(other, server, notice_us);
            let in_flight_lost = self.rng.chance(500);
            let link = self.network.link(server, other);
            link.state = LinkState::Down;
            link.dialling = false;
            if in_flight_lost {
                link.epoch += 1;
            }
            self.after(notice_us, Event::InboundLost { from: server, to: other });
        }
    }
}
