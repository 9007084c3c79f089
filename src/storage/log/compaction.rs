//! Decides how much of the log to keep. The decision is apart from the files, so that the simulator
//! makes the same one.

use crate::model::{DiskSpace, LogIndex};

/// The reasons to keep entries of the log.
#[derive(Clone, Copy, Debug)]
pub struct RetentionReasons {
    /// The store is durable up to here: the entries after it are needed after a crash.
    pub durable_index: LogIndex,
    /// From here on the log is kept so that a server that is slightly behind needs no snapshot.
    pub recent_first_index: LogIndex,
    /// The entries that other servers need.
    pub needed: NeededByOthers,
    /// The log must not begin before this index for their sake.
    pub longest_first_index: LogIndex,
    /// The room on the disk. A disk may be [`DiskSpace::Low`] for weeks, and a lost server must be
    /// rebuilt all the same: then as much is kept for it as is otherwise kept for servers that are
    /// slightly behind. On a full disk nothing is kept for other servers.
    pub space: DiskSpace,
}

/// The entries that other servers need, apart from those that are slightly behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeededByOthers {
    /// No server needs any.
    Nothing,
    /// Servers that are being sent a snapshot need the log from this index on.
    From(LogIndex),
    /// Everything, however full the disk: replicas hold different states, and servers that are
    /// behind can decide which is right once they have caught up.
    All,
}

/// Returns the first index to keep.
pub fn first_kept(kept: RetentionReasons) -> LogIndex {
    let is_ample = kept.space == DiskSpace::Ample;
    let late = is_ample.then_some(kept.recent_first_index);
    let needed = match kept.needed {
        NeededByOthers::All => Some(kept.longest_first_index),
        NeededByOthers::From(from) if is_ample => Some(from.max(kept.longest_first_index)),
        NeededByOthers::From(from) if kept.space == DiskSpace::Low => {
            Some(from.max(kept.recent_first_index))
        }
        NeededByOthers::From(_) | NeededByOthers::Nothing => None,
    };
    late.into_iter().chain(needed).fold(kept.durable_index + 1, LogIndex::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_kept_up_to_a_bound() {
        let kept = RetentionReasons {
            durable_index: 900,
            recent_first_index: 800,
            needed: NeededByOthers::Nothing,
            longest_first_index: 100,
            space: DiskSpace::Ample,
        };
        assert_eq!(first_kept(kept), 800);
        assert_eq!(first_kept(RetentionReasons { needed: NeededByOthers::From(500), ..kept }), 500);
        assert_eq!(
            first_kept(RetentionReasons { needed: NeededByOthers::From(50), ..kept }),
            100,
            "no longer than that"
        );
        assert_eq!(first_kept(RetentionReasons { needed: NeededByOthers::From(850), ..kept }), 800);
        assert_eq!(
            first_kept(RetentionReasons {
                durable_index: 300,
                needed: NeededByOthers::From(500),
                ..kept
            }),
            301
        );
        assert_eq!(
            first_kept(RetentionReasons { durable_index: 9, longest_first_index: 700, ..kept }),
            10
        );

        let low = RetentionReasons { space: DiskSpace::Low, ..kept };
        assert_eq!(first_kept(low), 901, "nothing for servers that are a little late");
        assert_eq!(first_kept(RetentionReasons { needed: NeededByOthers::From(850), ..low }), 850);
        assert_eq!(
            first_kept(RetentionReasons { needed: NeededByOthers::From(500), ..low }),
            800,
            "no longer than that"
        );
        let full =
            RetentionReasons { space: DiskSpace::Full, needed: NeededByOthers::From(850), ..kept };
        assert_eq!(first_kept(full), 901);
        assert_eq!(first_kept(RetentionReasons { needed: NeededByOthers::All, ..full }), 100);
    }
}
