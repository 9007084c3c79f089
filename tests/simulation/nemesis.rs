//! What goes wrong: faults at random moments, each seed with its own mix, and their end.

use acervo::limits;
use acervo::model::DiskSpace;
use acervo::node::Input;
use std::collections::BTreeMap;

use crate::checker::Verdict;
use crate::network::Quality;
use crate::server::Server;
use crate::world::{Event, MILLISECOND, SECOND, World};

/// The kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// One server is killed.
    Crash,
    /// Two are killed at once.
    CrashTwo,
    /// One server's process is frozen.
    Pause,
    /// One server is cut off, both ways.
    Isolate,
    /// One direction between two servers is cut.
    CutOneWay,
    /// A connection between two servers breaks.
    Reset,
    /// All links get worse.
    BadNetwork,
    /// One disk gets slow.
    SlowDisk,
    /// Every disk but one gets slow.
    SlowDisks,
    /// One disk hangs: under the log, under the store, or under both.
    HungDisk,
    /// One store takes long for everything it is to apply.
    SlowStore,
    /// The workers of one server take no job.
    BusyWorkers,
    /// One wall clock jumps.
    ClockJump,
    /// One data directory is lost.
    Wipe,
    /// The state of one server is damaged, and its log is not.
    Rot,
    /// One server's state differs from the others'.
    Diverge,
    /// One server is asked to stop.
    Stop,
    /// A client's connection breaks.
    ClientReset,
    /// One disk, or every disk, gets full.
    FullDisk,
}

impl Fault {
    pub const ALL: [Fault; 19] = [
        Fault::Crash,
        Fault::CrashTwo,
        Fault::Pause,
        Fault::Isolate,
        Fault::CutOneWay,
        Fault::Reset,
        Fault::BadNetwork,
        Fault::SlowDisk,
        Fault::SlowDisks,
        Fault::HungDisk,
        Fault::SlowStore,
        Fault::BusyWorkers,
        Fault::ClockJump,
        Fault::Wipe,
        Fault::Rot,
        Fault::Diverge,
        Fault::Stop,
        Fault::ClientReset,
        Fault::FullDisk,
    ];
}

/// Which of a server's files are on the disk that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HungFiles {
    Both,
    Log,
    Store,
}

impl HungFiles {
    const ALL: [HungFiles; 3] = [HungFiles::Both, HungFiles::Log, HungFiles::Store];
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Mend {
    Partition,
    /// The links behave again.
    Network,
    /// The disk, and the store on it, is quick again.
    Disk {
        server: usize,
    },
    /// There is room on every disk.
    Room,
}

/// What goes wrong in one seed.
#[derive(Default)]
pub struct Nemesis {
    /// The kinds of fault of this seed; none when the faults are over.
    pub faults: Vec<Fault>,
    /// The longest time between two faults.
    pub interval_us_max: u64,
    /// How often each kind struck.
    pub struck: BTreeMap<Fault, u64>,
    /// Servers that were asked to stop and had to be cut short.
    pub overdue_stops: u64,
}

impl World {
    /// Lets the faults begin.
    pub fn unleash(&mut self, faults: Vec<Fault>, interval_us_max: u64) {
        self.nemesis.faults = faults;
        self.nemesis.interval_us_max = interval_us_max;
        self.after(interval_us_max / 2, Event::Strike);
    }

    /// One fault, and the next one scheduled.
    pub fn strike(&mut self) -> Verdict {
        if self.nemesis.faults.is_empty() {
            return Ok(());
        }
        let delay_us = self.rng.range(MILLISECOND..=self.nemesis.interval_us_max);
        self.after(delay_us, Event::Strike);
        let fault = self.nemesis.faults[self.rng.index(self.nemesis.faults.len())];
        // The leader is where it hurts.
        let anyone = self.rng.index(self.servers.len());
        let victim = match self.leader() {
            Some(leader) if self.rng.chance(400) => leader,
            _ => anyone,
        };
        self.trace.note(self.now_us, || format!("fault: {fault:?} at {}", victim + 1));
        *self.nemesis.struck.entry(fault).or_default() += 1;
        match fault {
            Fault::Crash => self.crash_for_a_while(victim),
            Fault::CrashTwo => {
                let other = self.other_than(victim);
                self.crash_for_a_while(victim)?;
                self.crash_for_a_while(other)
            }
            Fault::Pause => {
                let duration_us = self.rng.range(10 * MILLISECOND..=3 * SECOND);
                self.pause(victim, duration_us);
                Ok(())
            }
            Fault::Isolate => {
                self.isolate(victim);
                self.mend_partition_later();
                Ok(())
            }
            Fault::CutOneWay => {
                let other = self.other_than(victim);
                self.cut(victim, other);
                self.mend_partition_later();
                Ok(())
            }
            Fault::Reset => {
                let other = self.other_than(victim);
                self.reset_links(victim, other);
                Ok(())
            }
            Fault::BadNetwork => {
                let quality = self.bad_quality();
                self.set_quality(quality);
                let duration_us = self.rng.range(100 * MILLISECOND..=4 * SECOND);
                self.after(duration_us, Event::Mend(Mend::Network));
                Ok(())
            }
            Fault::SlowDisk => {
                self.servers[victim].sync_us_max = self.rng.range(5 * MILLISECOND..=SECOND);
                let duration_us = self.rng.range(100 * MILLISECOND..=4 * SECOND);
                self.after(duration_us, Event::Mend(Mend::Disk { server: victim }));
                Ok(())
            }
            Fault::SlowDisks => {
                for server in (0..self.servers.len()).filter(|server| *server != victim) {
                    self.servers[server].sync_us_max = self.rng.range(5 * MILLISECOND..=SECOND);
                    let duration_us = self.rng.range(100 * MILLISECOND..=4 * SECOND);
                    self.after(duration_us, Event::Mend(Mend::Disk { server }));
                }
                Ok(())
            }
            Fault::HungDisk => {
                let duration_us = self.rng.range(100 * MILLISECOND..=8 * SECOND);
                let files = self.rng.pick(&HungFiles::ALL);
                self.hang_disk(victim, files, duration_us);
                Ok(())
            }
            Fault::SlowStore => {
                self.servers[victim].apply_us_max = self.rng.range(5 * MILLISECOND..=SECOND);
                let duration_us = self.rng.range(100 * MILLISECOND..=4 * SECOND);
                self.after(duration_us, Event::Mend(Mend::Disk { server: victim }));
                Ok(())
            }
            Fault::BusyWorkers => {
                let duration_us = self.rng.range(10 * MILLISECOND..=2 * SECOND);
                self.servers[victim].workers_busy_until_us = self.now_us + duration_us;
                Ok(())
            }
            Fault::ClockJump => {
                // Further than sessions live.
                let far_us = 2 * limits::SESSION_EXPIRY.as_micros() as i64;
                let offset_us = &mut self.servers[victim].clock_offset_us;
                *offset_us = match self.rng.pick(&[-far_us, -1_000_000, -10, 10, 50_000, far_us]) {
                    far if far.abs() == far_us => far,
                    jump_us => *offset_us + jump_us,
                };
                Ok(())
            }
            Fault::Wipe => self.wipe_if_allowed(victim),
            Fault::Rot => self.rot_if_allowed(victim),
            Fault::Diverge => {
                if self.others_are_whole(victim)
                    && self.logs_meet()
                    && let Some(process) = &mut self.servers[victim].process
                {
                    process.skew = self.rng.next_u64() | 1;
                }
                Ok(())
            }
            Fault::Stop => self.stop(victim),
            Fault::ClientReset => {
                let client = self.rng.index(self.clients.len());
                self.reset_connection(client, victim);
                Ok(())
            }
            Fault::FullDisk => {
                let duration_us = self.rng.range(100 * MILLISECOND..=4 * SECOND);
                self.after(duration_us, Event::Mend(Mend::Room));
                if self.rng.chance(300) {
                    return self.disks_are(DiskSpace::Full);
                }
                let space = self.rng.pick(&[DiskSpace::Full, DiskSpace::Exhausted]);
                self.disk_is(victim, space)
            }
        }
    }

    /// Tells a server how much room there is on its disk. One that is started anew believes that
    /// there is enough.
    pub fn disk_is(&mut self, server: usize, space: DiskSpace) -> Verdict {
        self.servers[server].disk_space = space;
        let steps = self.transfers(server, |transfers| transfers.disk_space(space));
        self.take_steps(server, steps)?;
        self.input(server, Input::DiskSpace(space))
    }

    fn disks_are(&mut self, space: DiskSpace) -> Verdict {
        (0..self.servers.len()).try_for_each(|server| self.disk_is(server, space))
    }

    /// A disk does not answer for a while.
    pub fn hang_disk(&mut self, server: usize, files: HungFiles, duration_us: u64) {
        let until_us = self.now_us + duration_us;
        let state = &mut self.servers[server];
        if files != HungFiles::Store {
            state.log_hung_until_us = state.log_hung_until_us.max(until_us);
        }
        if files != HungFiles::Log {
            state.store_hung_until_us = state.store_hung_until_us.max(until_us);
        }
    }

    /// A disk that hung answers again.
    pub fn mend_disk(&mut self, server: usize) {
        self.servers[server].log_hung_until_us = 0;
        self.servers[server].store_hung_until_us = 0;
    }

    /// Another server; the same one in a group of one.
    pub fn other_than(&mut self, server: usize) -> usize {
        let servers = self.servers.len();
        (server + 1 + self.rng.index((servers - 1).max(1))) % servers
    }

    fn crash_for_a_while(&mut self, server: usize) -> Verdict {
        self.crash(server)?;
        let down_us = self.rng.range(20 * MILLISECOND..=4 * SECOND);
        self.after(down_us, Event::Start { server });
        Ok(())
    }

    /// Freezes a process: what would happen to it happens when the time is over.
    pub fn pause(&mut self, server: usize, duration_us: u64) {
        let until_us = self.now_us + duration_us;
        let state = &mut self.servers[server];
        state.paused_until_us = state.paused_until_us.max(until_us);
        // Its debts are not overdue for having slept.
        if let Some(process) = &mut state.process {
            process.owed.values_mut().for_each(|since_us| *since_us = until_us);
        }
    }

    /// A directory may be lost when the others are whole: members in good standing, which hold
    /// everything that was ever acknowledged by a majority.
    fn wipe_if_allowed(&mut self, server: usize) -> Verdict {
        if self.others_are_whole(server) {
            match self.rng.chance(500) {
                true => self.wipe(server)?,
                false => self.lose_data(server)?,
            }
            let down_us = self.rng.range(20 * MILLISECOND..=SECOND);
            self.after(down_us, Event::Start { server });
        }
        Ok(())
    }

    /// A state may be damaged under the same condition. It is found at a start, or while the server
    /// runs.
    fn rot_if_allowed(&mut self, server: usize) -> Verdict {
        if !self.others_are_whole(server) {
            return Ok(());
        }
        if self.rng.chance(500) {
            self.crash_for_a_while(server)?;
        }
        self.rot(server)
    }

    /// Whether a server's state differs from the others', found out or not.
    pub fn somebody_is_wrong(&self) -> bool {
        self.servers.iter().any(Server::is_wrong)
    }

    /// Whether what every server knows to be committed reaches to where the others' logs begin, so
    /// that all can compare their states.
    fn logs_meet(&self) -> bool {
        let ends = self.servers.iter().map(|server| server.disk.hard_state().commit);
        let begins = self.servers.iter().map(|server| server.disk.begins_after());
        ends.min() >= begins.max()
    }

    fn others_are_whole(&self, server: usize) -> bool {
        self.servers.iter().enumerate().all(|(at, other)| {
            let whole = other.disk.hard_state().admitted && !other.store_lost && !other.rotten;
            at == server || (whole && !other.is_wrong())
        })
    }

    /// Cuts one direction. The sender does not notice.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.network.link(from, to).blocked = true;
        // A ping, or its answer, is lost either way.
        for (from, to) in [(from, to), (to, from)] {
            let session = self.network.link(from, to).session;
            let silence_us = limits::SERVER_SILENCE_TIMEOUT.as_micros() as u64;
            let notice_us = self.rng.range(silence_us..=silence_us * 5 / 4);
            self.after(notice_us, Event::LinkSilent { from, to, session });
        }
    }

    /// Cuts a server off, both ways; at times the connections break as well.
    pub fn isolate(&mut self, server: usize) {
        for other in (0..self.servers.len()).filter(|other| *other != server) {
            self.cut(server, other);
            self.cut(other, server);
            if self.rng.chance(300) {
                self.reset_links(server, other);
            }
        }
    }

    fn mend_partition_later(&mut self) {
        let duration_us = self.rng.range(50 * MILLISECOND..=5 * SECOND);
        self.after(duration_us, Event::Mend(Mend::Partition));
    }

    fn bad_quality(&mut self) -> Quality {
        let delay_us = self.rng.pick(&[(50, 300), (500, 20_000), (5_000, 60_000)]);
        let (loss, duplication) = (self.rng.pick(&[0, 20, 200]), self.rng.pick(&[0, 50, 300]));
        let straggling = self.rng.pick(&[0, 20, 200]);
        // A FORWARD that comes twice on one connection, or whose answer is lost on it, would make a
        // write whose session ends meanwhile pass for one that was never applied. No connection
        // does that.
        let faithful = self.setup.short_sessions;
        let unless_faithful = |often| if faithful { 0 } else { often };
        Quality {
            loss: unless_faithful(loss),
            duplication: unless_faithful(duplication),
            straggling: unless_faithful(straggling),
            delay_us,
            ordered: self.rng.chance(300),
        }
    }

    fn set_quality(&mut self, quality: Quality) {
        self.network.links().for_each(|link| link.quality = quality);
    }

    pub fn mend(&mut self, mend: Mend) -> Verdict {
        self.trace.note(self.now_us, || format!("mended: {mend:?}"));
        match mend {
            Mend::Partition => self.heal_partitions(),
            Mend::Network => self.set_quality(self.setup.quality),
            Mend::Disk { server } => self.quicken_disk(server),
            Mend::Room => self.disks_are(DiskSpace::Ample)?,
        }
        Ok(())
    }

    fn quicken_disk(&mut self, server: usize) {
        self.servers[server].sync_us_max = self.setup.sync_us_max;
        self.servers[server].apply_us_max = self.setup.apply_us_max;
    }

    /// Everyone reaches everyone again.
    pub fn heal_partitions(&mut self) {
        self.network.links().for_each(|link| link.blocked = false);
    }

    /// All faults end now, and the servers that are down start.
    pub fn heal(&mut self) -> Verdict {
        self.trace.note(self.now_us, || "all faults end".to_owned());
        self.nemesis.faults.clear();
        self.heal_partitions();
        self.set_quality(self.setup.quality);
        self.disks_are(DiskSpace::Ample)?;
        for server in 0..self.servers.len() {
            self.mend_disk(server);
            self.quicken_disk(server);
            self.servers[server].workers_busy_until_us = 0;
            self.after(MILLISECOND, Event::Start { server });
        }
        Ok(())
    }
}
