//! Decides when a download ends because no source has the content any more.
//!
//! Rule: every source has to have said so for a while, and a search for others that began after
//! that has to have ended. A source that says anything else begins the time anew.
//!
//! Left out: whether a source has said so, which the caller tells. The module is pure: time comes
//! from outside.

use std::time::Duration;

/// What follows from the present answers of the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoneVerdict {
    /// The download goes on.
    Wait,
    /// It goes on, and a search for others is to be requested.
    Search,
    /// It fails: nobody has the content.
    Gone,
}

#[derive(Debug, Default)]
pub(super) struct GoneWatch {
    /// Since when every source has answered that it does not have the content any more.
    since: Option<Duration>,
    /// The search that was requested because of that; `Some(None)` until its number is known.
    search: Option<Option<u64>>,
    /// The last search that has ended.
    searched: u64,
}

impl GoneWatch {
    /// A search that was requested has this number.
    pub(super) fn search_requested(&mut self, number: u64) {
        assert_eq!(self.search, Some(None), "search {number} was requested");
        self.search = Some(Some(number));
    }

    /// The search with this number has ended, and the sources that it found are known.
    pub(super) fn searched(&mut self, number: u64) {
        self.searched = number;
    }

    /// Some source may have the content, or the download waits however many say that they do not.
    pub(super) fn reset(&mut self) {
        (self.since, self.search) = (None, None);
    }

    /// Every source says that it does not have the content any more. The download fails when that
    /// has been so for `after`, and after a search if `is_searched`.
    pub(super) fn all_say_so(
        &mut self,
        after: Duration,
        is_searched: bool,
        now: Duration,
    ) -> GoneVerdict {
        if now.saturating_sub(*self.since.get_or_insert(now)) < after {
            return GoneVerdict::Wait;
        }
        match self.search {
            _ if !is_searched => GoneVerdict::Gone,
            None => {
                self.search = Some(None);
                GoneVerdict::Search
            }
            Some(Some(number)) if self.searched >= number => GoneVerdict::Gone,
            Some(_) => GoneVerdict::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(5);

    #[test]
    fn a_download_ends_when_a_search_has_ended_that_began_after_the_time() {
        let mut gone = GoneWatch::default();
        let at = Duration::from_secs;
        assert_eq!(gone.all_say_so(AFTER, true, at(1)), GoneVerdict::Wait);
        // A search that nobody has requested because of that may have come too early.
        gone.searched(3);
        assert_eq!(gone.all_say_so(AFTER, true, at(6)), GoneVerdict::Search);
        assert_eq!(gone.all_say_so(AFTER, true, at(7)), GoneVerdict::Wait, "it has no number");
        gone.search_requested(4);
        assert_eq!(gone.all_say_so(AFTER, true, at(8)), GoneVerdict::Wait);
        gone.searched(4);
        assert_eq!(gone.all_say_so(AFTER, true, at(9)), GoneVerdict::Gone);
    }

    #[test]
    fn a_source_that_says_anything_else_begins_the_time_anew() {
        let mut gone = GoneWatch::default();
        let at = Duration::from_secs;
        assert_eq!(gone.all_say_so(AFTER, true, at(1)), GoneVerdict::Wait);
        gone.reset();
        assert_eq!(gone.all_say_so(AFTER, true, at(6)), GoneVerdict::Wait);
        assert_eq!(gone.all_say_so(AFTER, false, at(10)), GoneVerdict::Wait);
        assert_eq!(gone.all_say_so(AFTER, false, at(11)), GoneVerdict::Gone, "nobody searches");
    }
}
