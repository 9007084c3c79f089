//! Which step the background takes next, from sizes alone. Pure.
//!
//! Rule: seals are moved first, since they are what memory waits for. Then runs are merged that are
//! neighbours in time, by *size class*: a class holds sizes up to `fan` times those of the class
//! below, and the lowest ends where less is not worth a run of its own. A run counts as at least as
//! large as every newer one, so classes only grow from the newest run to the oldest, and the runs
//! of a class are neighbours. When a class has `fan` runs, these become one.
//!
//! So there are at most `fan - 1` runs a class when nothing is left to do, whatever the sizes of
//! the seals were. If each run counted with its own size, small runs between large ones would never
//! be merged. A row is written about once a class.
//!
//! A marker of a deleted row goes only with the oldest run, below which there is nothing that it
//! could hide. It cannot go together with the state that it hides, as two runs that are merged may
//! hold the marker and the newer of two states: without the marker, the older one would show again.
//! When an eighth of all rows are markers, so that a quarter may be dead, all runs become one.
//!
//! What it leaves out: merging a stretch of keys at a time, which would bound the room that the
//! largest merges take.

/// All runs become one when one of so many rows is a marker.
const DELETED_SHARE: u64 = 8;

/// How sizes of runs are classed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SizeClasses {
    /// How much larger the runs of a class are than those of the one below, and how many runs of a
    /// class become one.
    pub fan: usize,
    /// The size up to which a run is of the lowest class.
    pub lowest_bytes: u64,
}

impl SizeClasses {
    fn of(self, bytes: u64) -> u32 {
        let (mut class, mut class_bytes) = (0, self.lowest_bytes.max(1));
        while bytes > class_bytes {
            class += 1;
            class_bytes = class_bytes.saturating_mul(self.fan as u64);
        }
        class
    }
}

/// The size of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunSize {
    pub bytes: u64,
    /// The number of rows, deleted ones included.
    pub rows: u64,
    pub deleted_rows: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BackgroundStep {
    /// Moves the oldest seal to the disk.
    Move,
    /// Merges these runs, counted from the newest.
    Merge(std::ops::Range<usize>),
}

/// The next step; `None` if there is nothing to do. `runs` has the newest first.
pub(super) fn next_step(
    seals: usize,
    runs: &[RunSize],
    classes: SizeClasses,
) -> Option<BackgroundStep> {
    if seals > 0 {
        return Some(BackgroundStep::Move);
    }
    let all = 0..runs.len();
    let merge = full_class(runs, classes).or_else(|| wants_reclaiming(runs).then_some(all));
    merge.map(BackgroundStep::Merge)
}

/// The runs of the newest class that has `fan` of them.
fn full_class(runs: &[RunSize], classes: SizeClasses) -> Option<std::ops::Range<usize>> {
    let SizeClasses { fan, .. } = classes;
    assert!(fan >= 2, "runs are merged {fan} at a time");
    let (mut start, mut class) = (0, 0);
    for (at, run) in runs.iter().enumerate() {
        let own = classes.of(run.bytes);
        if own > class {
            if at - start >= fan {
                return Some(start..at);
            }
            (start, class) = (at, own);
        }
    }
    (runs.len() - start >= fan).then_some(start..runs.len())
}

fn wants_reclaiming(runs: &[RunSize]) -> bool {
    let rows: u64 = runs.iter().map(|run| run.rows).sum();
    let deleted_rows: u64 = runs.iter().map(|run| run.deleted_rows).sum();
    deleted_rows > 0 && deleted_rows >= rows / DELETED_SHARE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classes(fan: usize) -> SizeClasses {
        SizeClasses { fan, lowest_bytes: 64 * 1024 }
    }

    fn of_bytes(bytes: u64) -> RunSize {
        RunSize { bytes, rows: bytes / 100 + 1, deleted_rows: 0 }
    }

    fn settle(runs: &mut Vec<RunSize>, fan: usize) -> (u64, usize) {
        let (mut written, mut merges) = (0, 0);
        while let Some(step) = next_step(0, runs, classes(fan)) {
            let BackgroundStep::Merge(merged) = step else { panic!("there are no seals") };
            assert!(merged.len() >= 2 || runs[merged.clone()].iter().any(|it| it.deleted_rows > 0));
            let bytes = runs[merged.clone()].iter().map(|run| run.bytes).sum();
            runs.splice(merged, [of_bytes(bytes)]);
            (written, merges) = (written + bytes, merges + 1);
            assert!(merges < 10_000, "merging comes to an end");
        }
        (written, merges)
    }

    proptest! {
        #[test]
        fn few_runs_are_left_whatever_the_sizes_of_seals(
            seals in prop::collection::vec(
                prop_oneof![1..1000u64, 60_000..70_000u64, 1_000_000..16_000_000u64],
                1..300,
            ),
            fan in 2..9usize,
        ) {
            let mut runs = Vec::new();
            for bytes in &seals {
                runs.insert(0, of_bytes(*bytes));
                settle(&mut runs, fan);
                let most = classes(fan).of(seals.iter().sum()) as usize + 1;
                prop_assert!(runs.len() <= (fan - 1) * most, "{} runs", runs.len());
            }
        }
    }

    /// As in an hour of writes: seals of one size.
    #[test]
    fn a_byte_is_merged_about_once_a_class() {
        let (fan, seal_bytes, seals) = (8, 8 << 20, 512);
        let (mut runs, mut written) = (Vec::new(), 0);
        for _ in 0..seals {
            runs.insert(0, of_bytes(seal_bytes));
            written += settle(&mut runs, fan).0;
        }
        assert!(written <= 3 * seals * seal_bytes, "{} times", written / (seals * seal_bytes));
    }

    #[test]
    fn seals_come_first_and_markers_are_reclaimed() {
        let run = |rows, deleted_rows| RunSize { bytes: 1 << 20, rows, deleted_rows };
        assert_eq!(next_step(1, &[], classes(4)), Some(BackgroundStep::Move));
        assert_eq!(next_step(0, &[], classes(4)), None);
        assert_eq!(next_step(0, &[run(80, 9), run(100, 0)], classes(4)), None);
        let all = next_step(0, &[run(80, 30), run(100, 0)], classes(4));
        assert_eq!(all, Some(BackgroundStep::Merge(0..2)));
        assert_eq!(next_step(0, &[run(1, 0)], classes(4)), None);
    }

    #[test]
    fn a_class_is_a_stretch_of_neighbours_up_to_a_larger_run() {
        let sizes = |bytes: &[u64]| bytes.iter().map(|bytes| of_bytes(*bytes)).collect::<Vec<_>>();
        let step = |bytes: &[u64]| next_step(0, &sizes(bytes), classes(3));
        let large = 1 << 20;
        assert_eq!(step(&[1, 1, large, large]), None);
        assert_eq!(step(&[1, 1, 1, large]), Some(BackgroundStep::Merge(0..3)));
        assert_eq!(step(&[1, large, 1, 1]), Some(BackgroundStep::Merge(1..4)));
    }
}
