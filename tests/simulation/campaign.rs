//! Many seeds, each its own mix of faults; then peace, in which all debts must be paid.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use acervo::limits::{self, NodeLimits};
use acervo::model::{History, KeyInterval, MachineSummary, StateLimits};
use acervo::node::config::{AckPolicy, LeaseNotes};
use acervo::node::garbage_collection::GarbageCollectionConfig;
use acervo::server::snapshots::TransferLimits;
use acervo::storage::keys;
use acervo::storage::reads::PageLimits;
use bytes::Bytes;

use crate::checker::{Verdict, Violation, ensure};
use crate::clients::{Memory, Outcome};
use crate::linearizability;
use crate::nemesis::Fault;
use crate::network::Quality;
use crate::rng::Rng;
use crate::server::node_id;
use crate::trace::Trace;
use crate::world::{Event, MILLISECOND, SECOND, Setup, World};

/// Seeds of an ordinary test run.
const SEEDS_DEFAULT: u64 = 1000;
/// How long everything that is under way may take to end once all faults have.
const PEACE_US_MAX: u64 = 40 * SECOND;

/// What a run was like, so that a campaign that tests nothing is noticed.
#[derive(Default)]
struct Report {
    acknowledged: u64,
    read: u64,
    pages: u64,
    /// Transactions that have taken `then`, and others.
    txns: (u64, u64),
    /// Transactions that only read.
    read_txns: u64,
    /// Questions that came too late, too early, or named no key.
    refused: u64,
    terms: u64,
    faults: u64,
    /// Snapshots that took a store's place.
    snapshots: u64,
    /// Changes that watchers were shown, and states that they were shown instead.
    watched: u64,
    resets: u64,
    /// How often a lock was held, and waited for.
    held: u64,
    waited: u64,
}

/// Limits that a short run reaches, each often enough.
fn state_limits(rng: &mut Rng, removal_grace_us: u64, short_sessions: bool) -> StateLimits {
    let default = StateLimits::default();
    StateLimits {
        removal_scan_rows_max: rng.pick(&[0, 1, 4, 1024]),
        kept_removal_rows_max: rng.pick(&[1, 4, 1024, default.kept_removal_rows_max]),
        // One range too many is refused until the grace of another is over.
        range_removals_max: match removal_grace_us < PEACE_US_MAX / 2 {
            true => rng.pick(&[1, 2, 64]),
            false => 64,
        },
        removal_grace_us,
        session_expiry_us: match short_sessions {
            true => rng.pick(&[SECOND, 5 * SECOND, default.session_expiry_us]),
            false => default.session_expiry_us,
        },
        sessions_max: match short_sessions {
            true => rng.pick(&[2, 3, 5, default.sessions_max]),
            false => default.sessions_max,
        },
        session_replies_max: rng.pick(&[
            4,
            default.session_replies_max,
            default.session_replies_max,
        ]),
        session_replies_total_max: rng.pick(&[9, default.session_replies_total_max]),
        transaction_rows_max: default.transaction_rows_max,
        transaction_compared_bytes_max: default.transaction_compared_bytes_max,
        leases_max: rng.pick(&[2, default.leases_max]),
        lease_keys_max: default.lease_keys_max,
    }
}

fn setup(seed: u64) -> (Setup, Rng) {
    // The plan's chance is not the world's, so that a change of one leaves the other.
    let mut rng = Rng::new(seed ^ 0x706c_616e);
    let ordered = rng.chance(500);
    let servers = rng.pick(&[3, 3, 3, 3, 5]);
    let mut replication_delay = vec![Duration::ZERO; servers];
    if rng.chance(100) {
        replication_delay[rng.index(servers)] = Duration::from_millis(rng.range(1..=1_000));
    }
    let removal_grace_us = rng.pick(&[100 * MILLISECOND, 2 * SECOND, 60 * SECOND]);
    let delayed = replication_delay.iter().any(|delay| !delay.is_zero());
    let short_sessions = rng.chance(300);
    let setup = Setup {
        servers,
        replication_delay,
        first_leader: rng.index(servers),
        ack: rng.pick(&[AckPolicy::All, AckPolicy::Majority]),
        in_sync_timeout: Duration::from_millis(rng.pick(&[100, 500, 2000])),
        stall_timeout: Duration::from_millis(rng.pick(&[200, 600, 2000])),
        quality: Quality {
            loss: if short_sessions { 0 } else { rng.pick(&[0, 0, 10]) },
            duplication: if short_sessions { 0 } else { rng.pick(&[0, 0, 10]) },
            straggling: if short_sessions { 0 } else { rng.pick(&[0, 10]) },
            delay_us: rng.pick(&[(50, 300), (100, 5_000)]),
            ordered,
        },
        sync_us_max: rng.pick(&[300, 5_000, 20_000]),
        apply_us_max: rng.pick(&[100, 2_000, 20_000]),
        checkpoints: rng.pick(&[5, 50, 500]),
        compactions: rng.pick(&[0, 300, 1_000]),
        fetch_failures: rng.pick(&[0, 100]),
        piece_us_max: rng.pick(&[500, 5_000, 20_000]),
        limits: small_limits(&mut rng, delayed),
        transfers: TransferLimits {
            chunk_bytes_max: rng.pick(&[100, 2_000, 20_000]),
            chunks_in_flight_max: rng.pick(&[1, 2, 4]),
            stall_timeout_us: rng.pick(&[2 * SECOND, 5 * SECOND]),
            retry_us_min: rng.pick(&[10, 200]) * MILLISECOND,
            retry_us_max: rng.pick(&[200, 2_000]) * MILLISECOND,
        },
        held_entries_max: rng.pick(&[40, 1_000, u64::MAX]),
        state_limits: state_limits(&mut rng, removal_grace_us, short_sessions),
        other_limits: state_limits(&mut rng, removal_grace_us, short_sessions),
        newest_level: rng.pick(&[1, 2, 3]),
        lease_notes: match rng.chance(500) {
            true => LeaseNotes::DEFAULT,
            false => LeaseNotes {
                ttl_min: Duration::from_secs(1),
                step_min: Duration::from_millis(rng.pick(&[200, 600])),
                step_max: Duration::from_millis(rng.pick(&[600, 1_000])),
            },
        },
        cut_off_us: rng.pick(&[40 * MILLISECOND, SECOND, 3 * SECOND]),
        level_settled_us: rng.pick(&[100 * MILLISECOND, SECOND, 4 * SECOND]),
        short_sessions,
        late_copies: rng.pick(&[0, 20, 200]),
        page_limits: PageLimits {
            rows: rng.pick(&[2, 1000]),
            bytes: rng.pick(&[1, 30, 1000]),
            visits: rng.pick(&[1, 3, 10, 1000]),
            scan_bytes: rng.pick(&[1, 40, 10_000]),
            keys_only: false,
        },
        state_hash_every: rng.pick(&[3, 20, limits::STATE_HASH_EVERY]),
        garbage_collection: GarbageCollectionConfig {
            history: rng.pick(&[
                History::All,
                History::For { age_us: 500 * MILLISECOND },
                History::For { age_us: 4 * SECOND },
                History::Versions { count: 1 },
                History::Versions { count: 3 },
            ]),
            removal_grace_us,
            history_pause_us: rng.pick(&[100 * MILLISECOND, SECOND]),
            history_late_us: rng.pick(&[
                0,
                SECOND,
                limits::HISTORY_COMPACTION_LATE.as_micros() as u64,
            ]),
            rows_max: rng.pick(&[1, 2, 3, 5, 1024]),
            bytes_max: rng.pick(&[0, 10, 100, limits::COLLECTION_BYTES_MAX]),
        },
        ..Setup::calm(seed)
    };
    (tell_differently(setup), rng)
}

/// In some seeds the servers are told different first leaders. Who founds the group follows from
/// that alone.
fn tell_differently(setup: Setup) -> Setup {
    let mut rng = Rng::new(setup.seed ^ 0x746f_6c64);
    let servers = setup.servers;
    if !rng.chance(200) {
        return setup;
    }
    let told: Vec<usize> = (0..servers).map(|_| rng.index(servers)).collect();
    let told_by = |name: usize| told.iter().filter(|told| **told == name).count();
    let of_most = (0..servers).find(|name| 2 * told_by(*name) > servers);
    let lowest = told.iter().min().copied();
    let first_leader = of_most.or(lowest).unwrap_or(setup.first_leader);
    Setup { told, first_leader, ..setup }
}

/// Limits that a few clients reach, each drawn for itself.
fn small_limits(rng: &mut Rng, delayed: bool) -> NodeLimits {
    // A server that stores late on purpose would catch up by an entry for each of its delays.
    let append_bytes_max = match rng.pick(&[1, 200, 2_000, limits::APPEND_BYTES_MAX]) {
        1 | 200 if delayed => 2_000,
        bytes => bytes,
    };
    let appends_in_flight_max = rng.pick(&[1, 2, 16]);
    NodeLimits {
        append_bytes_max,
        appends_in_flight_max: if delayed { 16 } else { appends_in_flight_max },
        // The library wants room for a message.
        uncommitted_bytes_max: append_bytes_max.max(rng.pick(&[
            1,
            500,
            limits::UNCOMMITTED_BYTES_MAX,
        ])),
        unapplied_bytes_max: rng.pick(&[1, 1_000, 20_000]),
        apply_bytes_max: rng.pick(&[1, 1_000, 100_000]),
        apply_lag_entries_max: rng.pick(&[1, 20, 4_096]),
        apply_lag_bytes_max: rng.pick(&[100, 5_000, 1_000_000]),
        log_cache_bytes_max: rng.pick(&[1, 1_000, 100_000]),
        fetched_ranges_max: rng.pick(&[1, 8]),
        pending_writes_max: rng.pick(&[4, 64]),
        pending_write_bytes_max: rng.pick(&[500, 100_000]),
        answered_writes_max: rng.pick(&[0, 3, limits::ANSWERED_WRITES_MAX]),
        pending_reads_max: rng.pick(&[4, 64]),
        delayed_appends_max: rng.pick(&[16, 1_000]),
        forward_bytes_max: rng.pick(&[1, 20, limits::FORWARD_BYTES_MAX]),
        propose_bytes_max: rng.pick(&[1, 500, limits::PROPOSE_BYTES_MAX]),
        propose_writes_max: rng.pick(&[1, 3, limits::PROPOSE_WRITES_MAX]),
        short_write_rows_max: rng.pick(&[0, 1, limits::SHORT_WRITE_ROWS_MAX]),
        long_write_rows_max: rng.pick(&[1, 3, limits::LONG_WRITE_ROWS_MAX]),
    }
}

fn run(seed: u64, trace: Trace) -> Result<Report, Violation> {
    let (setup, mut rng) = setup(seed);
    let mut world = World::new(setup, trace);
    // Each seed has its own mix: a fault that is always there hides what others would show.
    let others = Fault::ALL.into_iter().filter(|fault| *fault != Fault::FullDisk);
    let mut faults: Vec<Fault> = others.filter(|_| rng.chance(450)).collect();
    if Rng::new(seed ^ 0x726f_6f6d).chance(300) {
        faults.push(Fault::FullDisk);
    }
    for _ in 0..rng.range(2..=4) {
        let memory = rng.pick(&[Memory::Session, Memory::PerKey]);
        let patience_us = rng.range(SECOND..=9 * SECOND);
        let client = world.add_client(memory, rng.index(8) + 1, patience_us);
        world.clients[client].wishes = 300;
        world.after(0, Event::Think { client });
    }
    let ranges = [("a", "z"), ("key-0", "key-0"), ("key-1", "key-3")];
    for (from, to) in ranges.into_iter().take(1 + rng.index(3)) {
        world.add_watcher(KeyInterval { from: from.into(), to: to.into() }, rng.chance(500));
    }
    let mut steady = Rng::new(seed ^ 0x7374_6561);
    for _ in 0..steady.range(0..=2) {
        let range = KeyInterval { from: "a".into(), to: "z".into() };
        let server = steady.index(world.servers.len());
        world.add_steady_watcher(range, server);
    }
    for _ in 0..rng.range(0..=3) {
        world.add_holder(20);
    }
    for _ in 0..Rng::new(seed ^ 0x6c6f_636b).range(0..=5) {
        world.add_rival(20);
    }
    world.unleash(faults, rng.pick(&[300, 1_000, 3_000]) * MILLISECOND);
    world.run_for(rng.range(5..=12) * SECOND)?;
    make_peace(&mut world)?;
    let ended = |wanted: fn(&Outcome) -> bool| {
        let outcomes = (0..world.operations.len()).filter_map(|at| world.outcome(at));
        outcomes.filter(|outcome| wanted(outcome)).count() as u64
    };
    Ok(Report {
        acknowledged: ended(|outcome| matches!(outcome, Outcome::Written(_))),
        read: world.spans().iter().filter(|span| !span.write).count() as u64,
        pages: ended(|outcome| matches!(outcome, Outcome::Paged(_))),
        txns: world.checker.model.txns(),
        read_txns: ended(|outcome| matches!(outcome, Outcome::Transacted(_))),
        refused: ended(|outcome| matches!(outcome, Outcome::Refused(_))),
        terms: world.checker.terms_led() as u64,
        faults: world.nemesis.struck.values().sum(),
        snapshots: world.snapshots.1,
        watched: world.watchers.iter().map(|watcher| watcher.changes).sum(),
        resets: world.watchers.iter().map(|watcher| watcher.resets).sum(),
        held: world.contests.held,
        waited: world.contests.waited,
    })
}

/// Ends all faults and checks that the group recovers and that nothing was lost.
pub fn make_peace(world: &mut World) -> Verdict {
    world.heal()?;
    for client in &mut world.clients {
        client.wishes = 0;
    }
    world.let_leases_end();
    world.let_rivals_end();
    world.rivals_end()?;
    let quiet = world.run_until(PEACE_US_MAX, |world| {
        world.clients.iter().all(|client| client.under_way == 0)
    })?;
    ensure!(quiet, "{} operations never ended: {}", unanswered(world), standing(world));
    world.leases_end()?;

    // The group is alive through every server, and all of them agree about the present.
    let client = world.add_client(Memory::Session, 16, 6 * SECOND);
    let mut probes = Vec::new();
    for server in 0..world.servers.len() {
        probes.push(world.put(client, Some(server), "probe", &format!("probe {server}")));
        probes.push(world.read(client, Some(server), Bytes::from_static(b"key-0"), true));
    }
    let alive =
        world.run_until(PEACE_US_MAX, |world| probes.iter().all(|probe| world.ended(*probe)))?;
    ensure!(alive, "the group does not answer after all faults have ended: {}", standing(world));

    // Garbage collection goes on in peace, so that the log never ends for long.
    let last = world.checker.last_index();
    let timely = world.setup.garbage_collection.removal_grace_us < PEACE_US_MAX / 2;
    // A follower that is a second behind on purpose is sent its log in messages that may be tiny,
    // one a second.
    let delayed = world.setup.replication_delay.iter().any(|delay| !delay.is_zero());
    let patience_us = PEACE_US_MAX * if delayed { 4 } else { 1 };
    let converged = world.run_until(patience_us, |world| {
        let servers = world.servers.iter();
        world.checker.kept().is_ok()
            && servers.filter_map(|server| server.process.as_ref()).all(|process| {
                let removals_left = process.machine.summary().oldest_removal_us.is_some();
                process.machine.point().index >= last
                    && process.status.applied.index >= last
                    && process.owed.is_empty()
                    && !(timely && removals_left)
            })
            && world.statuses().count() == world.servers.len()
    })?;
    ensure!(converged, "the servers do not converge, or owe answers: {}", standing(world));
    let whole = world.run_until(PEACE_US_MAX, |world| {
        world.servers.iter().all(|server| !server.store_lost && !server.rotten)
    })?;
    ensure!(whole, "a server does not get its state back: {}", standing(world));
    // All servers tell what they know, so the level rises to what the oldest release knows. One
    // that is rebuilt meanwhile may come back with a newer one.
    let known = |world: &World| world.servers.iter().map(|server| 1 + server.upgrades).min();
    let raised = world.run_until(PEACE_US_MAX, |world| {
        world.statuses().all(|(_, status)| Some(status.level) == known(world))
    })?;
    ensure!(raised, "the level does not rise to {:?}: {}", known(world), standing(world));
    let watched = world.run_until(PEACE_US_MAX, |world| world.watchers_are_whole())?;
    ensure!(watched, "a watcher is not shown what has happened: {}", standing(world));
    world.checker.kept()?;
    let mut rows_at = BTreeMap::new();
    for (server, state) in world.servers.iter_mut().enumerate() {
        if let Some(process) = &mut state.process {
            world.checker.converged(node_id(server), &process.machine)?;
            let rows = process.machine.rows()?;
            let MachineSummary { oldest_removal_us, history_due_us, .. } =
                process.machine.summary();
            if oldest_removal_us.is_none() && history_due_us.is_none() {
                let needless = needless_tombstone(&rows);
                ensure!(needless.is_none(), "{} keeps {needless:?} for ever", node_id(server));
            }
            let index = process.machine.point().index;
            let same = *rows_at.entry(index).or_insert_with(|| rows.clone()) == rows;
            ensure!(same, "{} ended with other rows than others", node_id(server));
        }
    }
    linearizability::check(&world.spans())
}

/// The row of a tombstone that hides nothing, since nothing older of its key is left.
fn needless_tombstone(rows: &[(Bytes, Bytes)]) -> Option<&Bytes> {
    let all = keys::all_versions();
    let versions: Vec<&(Bytes, Bytes)> =
        rows.iter().filter(|(row, _)| all.start <= *row && *row < all.end).collect();
    let key = |row| keys::version_prefix(row);
    let mut oldest =
        versions.chunk_by(|(a, _), (b, _)| key(a) == key(b)).filter_map(|of| of.last());
    // A tombstone is one byte, and a value has its facts beside it.
    oldest.find(|(_, stored)| stored.len() == 1).map(|(row, _)| row)
}

fn unanswered(world: &World) -> usize {
    world.operations.iter().filter(|operation| operation.ended.is_none()).count()
}

fn standing(world: &World) -> String {
    let of = |(server, status)| format!("{}: {status:?}", server + 1);
    world.statuses().map(of).collect::<Vec<_>>().join("; ")
}

/// Runs a seed; a panic of the core is a violation like any other.
fn run_caught(seed: u64, trace: Trace) -> Result<Report, String> {
    match catch_unwind(AssertUnwindSafe(|| run(seed, trace))) {
        Ok(result) => result.map_err(|Violation(reason)| reason),
        Err(panic) => Err(describe(panic.as_ref())),
    }
}

/// What a panic said.
pub fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", text.unwrap_or("(no message)"))
}

/// A failed seed, told so that it can be understood.
fn explain(seed: u64, reason: &str) -> String {
    let trace = Trace::on();
    let again = match run_caught(seed, trace.clone()) {
        Ok(_) => "the second run did NOT fail: something is not deterministic".to_owned(),
        Err(again) if again == reason => String::new(),
        Err(again) => format!("the second run failed otherwise: {again}"),
    };
    format!(
        "{}\nseed {seed}: {reason}\n{again}\nreplay: ACERVO_SEED={seed} cargo test --test \
         simulation seeds\n",
        trace.tail()
    )
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

#[test]
fn random_seeds_keep_every_promise() {
    if let Some(seed) = number_from("ACERVO_SEED") {
        let trace = Trace::on();
        let result = run_caught(seed, trace.clone());
        println!("{}", trace.tail());
        match result {
            Ok(_) => return,
            Err(reason) => panic!("seed {seed}: {reason}"),
        }
    }
    let seeds = number_from("ACERVO_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let next = AtomicU64::new(1);
    let failures: Mutex<Vec<(u64, String)>> = Mutex::default();
    let total = Mutex::new(Report::default());
    let threads = std::thread::available_parallelism().map_or(2, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        break;
                    }
                    match run_caught(seed, Trace::default()) {
                        Ok(report) => {
                            let mut total = total.lock().unwrap();
                            total.acknowledged += report.acknowledged;
                            total.read += report.read;
                            total.pages += report.pages;
                            total.txns.0 += report.txns.0;
                            total.txns.1 += report.txns.1;
                            total.read_txns += report.read_txns;
                            total.refused += report.refused;
                            total.terms += report.terms;
                            total.faults += report.faults;
                            total.snapshots += report.snapshots;
                            total.watched += report.watched;
                            total.resets += report.resets;
                            total.held += report.held;
                            total.waited += report.waited;
                        }
                        Err(reason) => failures.lock().unwrap().push((seed, reason)),
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    if let Some((seed, reason)) = failures.first() {
        let list: Vec<String> =
            failures.iter().map(|(seed, reason)| format!("seed {seed}: {reason}")).collect();
        panic!(
            "{}\n{} of {seeds} seeds failed:\n{}",
            explain(*seed, reason),
            failures.len(),
            list.join("\n")
        );
    }
    let total = total.into_inner().unwrap();
    println!(
        "{seeds} seeds: {} writes, {} linearizable reads, {} pages, {:?} transactions and {} that \
         only read, {} refusals, {} leaders, {} faults, {} snapshots, \
         {} changes watched, {} resets, a lock held {} times and waited for {}",
        total.acknowledged,
        total.read,
        total.pages,
        total.txns,
        total.read_txns,
        total.refused,
        total.terms,
        total.faults,
        total.snapshots,
        total.watched,
        total.resets,
        total.held,
        total.waited
    );
    // A campaign in which nothing happens proves nothing.
    assert!(total.acknowledged > seeds * 10 && total.read > seeds && total.faults > seeds);
    assert!(total.pages > seeds * 10 && total.refused > seeds);
    assert!(total.txns.0.min(total.txns.1).min(total.read_txns) > seeds, "few transactions");
    assert!(total.terms > seeds, "no leader was ever replaced");
    assert!(total.watched > seeds * 10 && total.resets > seeds / 10, "hardly anything watched");
    assert!(total.held.min(total.waited) > seeds, "a lock is hardly ever held, or waited for");
    assert!(total.snapshots > seeds / 10, "hardly a snapshot was taken in");
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    let mut events = 0;
    for seed in [5, 6, 7] {
        let traces = [Trace::on(), Trace::on()];
        let runs: Vec<Option<String>> =
            traces.iter().map(|trace| run_caught(seed, trace.clone()).err()).collect();
        assert_eq!(runs[0], runs[1]);
        events += traces[0].digest().0;
        assert_eq!(traces[0].digest(), traces[1].digest());
    }
    assert!(events > 1000, "nothing happened in {events} events");
}
