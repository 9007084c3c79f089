//! What befalls a server: damage of its data, verdicts about them, room on its disk, a clock that
//! is behind, failures. It is logged here, and the core and [`Lifecycle`](super::super::lifecycle)
//! are told.

use super::super::watch::LogNews;
use super::StoreService;
use crate::model::DiskSpace;
use crate::net::Net;
use crate::node::eligibility::Ineligible;
use crate::node::{Input, Now};
use crate::storage::datadir::Untrusted;
use crate::text::counted;

impl StoreService {
    pub(super) fn log_conditions(&mut self, net: &Net) {
        let Now { wall_us, .. } = self.now(net);
        let newest = self.core.node().newest_timestamp();
        let reads = self.watch.look_at_reads(self.read_hang(net.now()));
        for news in self.watch.look(net.now(), wall_us, newest.0).into_iter().chain(reads) {
            match news {
                LogNews::ClockBehind(behind) => log::warn!(
                    "this machine's clock is {behind:.0?} behind the newest version: versions go \
                     on counting from there, and are no times of the day until it has caught up; \
                     set the clock"
                ),
                LogNews::ClockCaughtUp => {
                    log::info!("this machine's clock has caught up with the versions")
                }
                LogNews::Busy(count) => log::warn!(
                    "{} refused with BUSY, to be tried again in a moment: more is asked than this \
                     server, or the group, can do",
                    counted(count, "request was", "requests were")
                ),
                LogNews::ReadsHang(hang) => log::warn!(
                    "a read has waited for the disk for {hang:.0?}: until it answers, reads that \
                     no thread has begun are refused with BUSY; check the disk of {}",
                    self.parts.config.data_dir.display()
                ),
                LogNews::ReadsGoOn => log::info!("the disk answers reads again"),
            }
        }
    }

    /// Handles damage that was found. It may be reported several times, and is logged once.
    pub(super) fn damaged(&mut self, net: &mut Net, found: &str, untrusted: Untrusted) {
        if self.parts.config.servers.len() == 1 {
            // No other server has the data. It stays as it is, so that an operator may save
            // something.
            return self.fail(net, found.to_owned());
        }
        if self.lifecycle.distrust(untrusted) {
            let what = match untrusted {
                Untrusted::Store => "rebuilds its store from the log or the others",
                Untrusted::State => "gets its state from the others",
                Untrusted::Everything => "starts as a blank one, which the others bring up to date",
            };
            log::error!("{found}; this server serves no reads, hands over if it leads, and {what}");
            self.set_verdict_down(net, untrusted);
        }
    }

    pub(super) fn restart(&mut self, net: &mut Net, untrusted: Untrusted) {
        if self.lifecycle.distrust(untrusted) {
            self.set_verdict_down(net, untrusted);
        }
    }

    /// Begins to start again without what is untrusted. From now on no read is answered, and others
    /// lead, whatever the disk does. Ending waits until a kill cannot undo the verdict.
    fn set_verdict_down(&mut self, net: &mut Net, untrusted: Untrusted) {
        let reason = Ineligible::StoreDamaged;
        self.input(net, Input::Eligibility { reason, holds: true });
        if let Err(error) = self.parts.threads.set_verdict_down(net.now(), untrusted) {
            self.verdict_not_set_down(net, &error.to_string());
        }
    }

    /// Notes that the verdict is durable: this server ends, to start again without its data.
    pub(super) fn verdict_set_down(&mut self, net: &mut Net) {
        if self.lifecycle.settle_verdict() {
            net.stop_accepting();
            self.input(net, Input::HandOver);
        }
    }

    /// Goes on although the verdict is not durable: setting the data aside may succeed all the
    /// same.
    pub(super) fn verdict_not_set_down(&mut self, net: &mut Net, error: &str) {
        if self.lifecycle.is_verdict_settled() {
            return;
        }
        log::error!(
            "{error}; until this server has set its data aside, a kill would make it trust them \
             again"
        );
        self.verdict_set_down(net);
    }

    pub(super) fn disk_space(&mut self, net: &mut Net, space: DiskSpace) {
        let before = std::mem::replace(&mut self.disk_space, space);
        let path = self.parts.config.data_dir.display();
        match space {
            DiskSpace::Ample => log::info!("there is room on the disk of {path} again"),
            DiskSpace::Low if before.is_full() => {
                log::warn!(
                    "there is some room on the disk of {path} again: writes are taken; make more"
                );
            }
            DiskSpace::Low => log::warn!(
                "the disk of {path} is getting full: make room on it, or remove or trim keys, \
                 before writes are refused"
            ),
            DiskSpace::Full | DiskSpace::Exhausted => log::error!(
                "the disk of {path} is nearly full: writes are refused and removals are not; make \
                 room on it, or remove or trim keys"
            ),
        }
        let steps = self.transfers.disk_space(space);
        self.take_steps(net, steps);
        self.input(net, Input::DiskSpace(space));
    }

    pub(super) fn fail(&mut self, net: &mut Net, failure: String) {
        log::error!("stopping at once: {failure}");
        self.lifecycle.fail(failure);
        net.exit();
    }
}
