//! Which part of the log may go: the decision apart from the files, so that simulations make the same one.

use crate::model::{DiskSpace, LogIndex};

/// The reasons to keep a part of the log.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The store is durable up to here: what lies behind is needed after a crash.
    pub durable_index: LogIndex,
    /// From here on the log spares servers that are a little late a snapshot.
    pub recent_from: LogIndex,
    /// What other servers need of it.
    pub needed: Needed,
    /// From here on the log is as long as it may become for them.
    pub longest_from: LogIndex,
    /// How much room there is on the disk. A disk may be [`DiskSpace::Low`] for weeks, in which a lost server is to be
    /// rebuilt all the same: then no more is kept for it than servers are spared on other days. On a full one, nothing.
    pub space: DiskSpace,
}

/// What other servers need of the log, beyond what spares late ones a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// Nothing.
    Nothing,
    /// From this index on it is for servers that are being sent a snapshot.
    From(LogIndex),
    /// All that there is, however full the disk: it is not known whose state is right, and servers that lag behind can
    /// decide that when they have come so far.
    All,
}

/// The first index to keep.
pub fn first_kept(kept: Kept) -> LogIndex {
    let is_ample = kept.space == DiskSpace::Ample;
    let late = is_ample.then_some(kept.recent_from);
    let needed = match kept.needed {
        Needed::All => Some(kept.longest_from),
        Needed::From(from) if is_ample => Some(from.max(kept.longest_from)),
        Needed::From(from) if kept.space == DiskSpace::Low => Some(from.max(kept.recent_from)),
        Needed::From(_) | Needed::Nothing => None,
    };
    late.into_iter().chain(needed).fold(kept.durable_index + 1, LogIndex::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_kept_up_to_a_bound() {
        let kept = Kept {
            durable_index: 900,
            recent_from: 800,
            needed: Needed::Nothing,
            longest_from: 100,
            space: DiskSpace::Ample,
        };
        assert_eq!(first_kept(kept), 800);
        assert_eq!(first_kept(Kept { needed: Needed::From(500), ..kept }), 500);
        assert_eq!(
            first_kept(Kept { needed: Needed::From(50), ..kept }),
            100,
            "no longer than that"
        );
        assert_eq!(first_kept(Kept { needed: Needed::From(850), ..kept }), 800);
        assert_eq!(first_kept(Kept { durable_index: 300, needed: Needed::From(500), ..kept }), 301);
        assert_eq!(first_kept(Kept { durable_index: 9, longest_from: 700, ..kept }), 10);

        let low = Kept { space: DiskSpace::Low, ..kept };
        assert_eq!(first_kept(low), 901, "nothing for servers that are a little late");
        assert_eq!(first_kept(Kept { needed: Needed::From(850), ..low }), 850);
        assert_eq!(
            first_kept(Kept { needed: Needed::From(500), ..low }),
            800,
            "no longer than that"
        );
        let full = Kept { space: DiskSpace::Full, needed: Needed::From(850), ..kept };
        assert_eq!(first_kept(full), 901);
        assert_eq!(first_kept(Kept { needed: Needed::All, ..full }), 100);
    }
}
