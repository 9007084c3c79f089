//! What a watch has been given so far, and what of a server's frames is new to it: without sockets
//! and threads.
//!
//! Rule: what is given out is every change of the range after where the watch began, in order, each
//! once, over any number of connections; or, from a reset on, a state and all changes after it. So
//! a connection begins after the version up to which everything was given out, and of what it shows
//! again, of a version of which a part was given out, nothing is given out twice.

use bytes::Bytes;

use crate::model::{KeyChange, Row, Timestamp};
use crate::wire::message::WatchFrame;

/// What a watch gives out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// What one write has changed of the keys that are watched.
    Changed {
        /// The version that the write made.
        version: Timestamp,
        /// In order of keys.
        changes: Vec<KeyChange>,
        /// Whether the write has changed more, which the next event tells, or may have: then that
        /// one has no changes.
        continues: bool,
    },
    /// Changes that were to be told may be gone for good. This is what the keys have instead as of
    /// a version, and the changes after that follow. Keys that are not named have no value.
    Reset {
        /// The version as of which these are the rows.
        version: Timestamp,
        /// In order of keys.
        rows: Vec<Row>,
        /// Whether these are the first rows: none that came before count, those of a reset included
        /// that was not whole, because it was read so slowly that it had to begin anew.
        begins: bool,
        /// Whether the next event has more of them.
        continues: bool,
    },
}

impl WatchEvent {
    /// The version that the event tells of.
    pub fn version(&self) -> Timestamp {
        match self {
            WatchEvent::Changed { version, .. } | WatchEvent::Reset { version, .. } => *version,
        }
    }
}

/// How far a watch has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Following {
    /// Everything up to here was given out; `None` before a server has said where it begins.
    up_to: Option<Timestamp>,
    /// The last change that was given out.
    last: Option<(Timestamp, Bytes)>,
    /// A part of what this write has changed was given out, and it was said that there is more.
    within: Option<Timestamp>,
    /// Rows of a reset were given out, and more are to come on this connection.
    resetting: bool,
}

impl Following {
    /// A watch that begins after a version, or with what changes from now on.
    pub fn new(after: Option<Timestamp>) -> Following {
        Following { up_to: after, ..Following::default() }
    }

    /// The version after which a connection is to show changes. What was known before a reset is
    /// given up with its first row, so that after one that broke off everything is wanted.
    pub fn after(&self) -> Option<Timestamp> {
        if self.resetting { Some(Timestamp::ZERO) } else { self.up_to }
    }

    /// Everything up to here was given out; `None` before that is known, and within a reset.
    pub fn up_to(&self) -> Option<Timestamp> {
        self.up_to.filter(|_| !self.resetting)
    }

    /// Rows of a reset were given out, and more are to come.
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// A server has begun the watch after this version, or the one that was asked for. Nothing up
    /// to `seen` is given out where no version was asked for: one that lags begins in the past.
    pub fn begun(&mut self, after: Timestamp, seen: Option<Timestamp>) {
        if self.resetting {
            *self = Following::new(Some(Timestamp::ZERO));
        }
        self.up_to.get_or_insert(seen.map_or(after, |seen| after.max(seen)));
    }

    /// A server says that no change up to here is to come any more.
    pub fn progress(&mut self, up_to: Timestamp) {
        if !self.resetting {
            self.up_to = self.up_to.max(Some(up_to));
        }
    }

    /// What is new in a frame.
    pub fn take(&mut self, frame: WatchFrame) -> Vec<WatchEvent> {
        match frame {
            WatchFrame::Events { changes, up_to, continues } => {
                let events = self.new_changes(changes, continues);
                self.progress(up_to);
                events
            }
            WatchFrame::Reset { rows, at, begins, continues } => {
                self.resetting = continues;
                if !continues {
                    // It may be older than what was given out, if the server lags: what follows
                    // belongs to this state.
                    (self.up_to, self.last, self.within) = (Some(at), None, None);
                }
                vec![WatchEvent::Reset { version: at, rows, begins, continues }]
            }
        }
    }

    fn new_changes(&mut self, changes: Vec<KeyChange>, continues: bool) -> Vec<WatchEvent> {
        let mut events: Vec<WatchEvent> = Vec::new();
        for change in changes {
            let place = (change.at, change.key.clone());
            if Some(change.at) <= self.up_to || Some(&place) <= self.last.as_ref() {
                continue;
            }
            self.last = Some(place);
            match events.last_mut() {
                Some(WatchEvent::Changed { version, changes, .. }) if *version == change.at => {
                    changes.push(change);
                }
                _ => {
                    let version = change.at;
                    let changes = vec![change];
                    events.push(WatchEvent::Changed { version, changes, continues: false });
                }
            }
        }
        let is_over = |events: &[WatchEvent], version| match events.first() {
            Some(WatchEvent::Changed { version: first, .. }) => *first != version,
            _ => !continues,
        };
        if let Some(version) = self.within
            && is_over(&events, version)
        {
            // Nothing was left of it.
            let (changes, continues) = (Vec::new(), false);
            events.insert(0, WatchEvent::Changed { version, changes, continues });
            self.within = None;
        }
        if let Some(WatchEvent::Changed { version, continues: last, changes }) = events.last_mut()
            && !changes.is_empty()
        {
            *last = continues;
            self.within = continues.then_some(*version);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(at: i64, key: &'static str) -> KeyChange {
        let (at, key) = (Timestamp(at), Bytes::from_static(key.as_bytes()));
        KeyChange { at, key, written: None, previous: None }
    }

    fn frame(changes: &[(i64, &'static str)], up_to: i64, continues: bool) -> WatchFrame {
        let changes = changes.iter().map(|(at, key)| change(*at, key)).collect();
        WatchFrame::Events { changes, up_to: Timestamp(up_to), continues }
    }

    fn shown(events: Vec<WatchEvent>) -> Vec<(i64, usize, bool)> {
        let shown = events.into_iter().map(|event| match event {
            WatchEvent::Changed { version, changes, continues } => {
                (version.0, changes.len(), continues)
            }
            WatchEvent::Reset { version, rows, continues, .. } => {
                (-version.0, rows.len(), continues)
            }
        });
        shown.collect()
    }

    #[test]
    fn what_a_second_connection_shows_again_is_given_out_once() {
        let mut watch = Following::new(None);
        assert_eq!(watch.after(), None);
        watch.begun(Timestamp(4), Some(Timestamp(3)));
        let first = frame(&[(5, "a"), (7, "a"), (7, "b")], 6, true);
        assert_eq!(shown(watch.take(first)), [(5, 1, false), (7, 2, true)]);
        assert_eq!(watch.after(), Some(Timestamp(6)), "a part of 7 is to come");
        watch.begun(Timestamp(6), Some(Timestamp(9)));
        let again = frame(&[(7, "a"), (7, "b"), (7, "c"), (8, "a")], 8, false);
        assert_eq!(shown(watch.take(again)), [(7, 1, false), (8, 1, false)]);
        watch.progress(Timestamp(20));
        assert_eq!(watch.after(), Some(Timestamp(20)));
        watch.progress(Timestamp(10));
        assert_eq!(shown(watch.take(frame(&[(9, "a")], 9, false))), []);
    }

    #[test]
    fn a_watch_from_now_on_begins_no_earlier_than_what_its_client_has_seen() {
        let mut watch = Following::new(None);
        watch.begun(Timestamp(4), Some(Timestamp(6)));
        assert_eq!(watch.after(), Some(Timestamp(6)));
        assert_eq!(shown(watch.take(frame(&[(5, "a"), (7, "a")], 7, false))), [(7, 1, false)]);
    }

    /// The next server may lag, so that nothing is gone there: then it showed only the changes from
    /// before the reset on, to a reader who had given up what they change.
    #[test]
    fn after_a_reset_that_broke_off_everything_is_asked_for() {
        let mut watch = Following::new(Some(Timestamp(100)));
        watch.begun(Timestamp(100), None);
        let (rows, at, begins, continues) = (Vec::new(), Timestamp(200), true, true);
        watch.take(WatchFrame::Reset { rows, at, begins, continues });
        assert_eq!(watch.after(), Some(Timestamp::ZERO));
        watch.begun(Timestamp::ZERO, Some(Timestamp(200)));
        let all = frame(&[(5, "a"), (150, "b")], 150, false);
        assert_eq!(shown(watch.take(all)), [(5, 1, false), (150, 1, false)]);
        assert_eq!(watch.after(), Some(Timestamp(150)));
    }

    #[test]
    fn a_reset_that_begins_anew_counts_when_it_is_whole() {
        let mut watch = Following::new(Some(Timestamp(4)));
        let reset = |begins, continues| WatchFrame::Reset {
            rows: Vec::new(),
            at: Timestamp(50),
            begins,
            continues,
        };
        assert_eq!(shown(watch.take(reset(true, true))), [(-50, 0, true)]);
        watch.progress(Timestamp(60));
        assert_eq!(watch.after(), Some(Timestamp::ZERO));
        assert_eq!(shown(watch.take(reset(true, false))), [(-50, 0, false)]);
        assert_eq!(watch.after(), Some(Timestamp(50)));
        assert_eq!(shown(watch.take(frame(&[(51, "a")], 51, false))), [(51, 1, false)]);
    }
}
