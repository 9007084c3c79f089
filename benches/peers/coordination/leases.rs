//! Leases of Acervo: what it costs to keep very many alive, and what other clients notice when one
//! with very many keys ends.

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use acervo::bench::{Answer, Pace, Plan, Until};
use acervo::client::{Client, KeyRange, LeaseId, Timestamp, Txn, TxnOp, WatchEvent, WatchOptions};
use acervo::model::{LEASES_PER_REQUEST_MAX, LeaseGrant, OpResult, WriteAnswer, WriteOp};

use super::writers::{AcervoOps, AcervoWriters, WRITTEN};
use super::{ACERVO, Extent, Rounds, Target, print_row};
use crate::dialects::PeerOp;
use crate::driver::{self, Framed};
use crate::machine::{Accounts, processor_s};
use crate::systems::{PeerData, Running};
use crate::table::grouped;
use crate::{Outcome, drive, fill, plan};

const VALUE_BYTES: usize = 100;
const CLIENTS: usize = 64;
/// Leases that are granted before those that there are are kept alive again.
const GRANTED_AT_ONCE: usize = 10_000;
/// Keys that one transaction puts with the lease.
const KEYS_AT_ONCE: usize = 1_000;
/// The lease that ends is given this time when the load begins: long enough for a warm-up.
const ENDING_TTL: Duration = Duration::from_secs(2);
/// The load is measured from here on, and for a second: the end lies within.
const ENDING_WARM_UP: Duration = Duration::from_millis(1_600);
const ENDING_MEASURED: Duration = Duration::from_secs(1);
/// How long the lease's keys may take to go.
const ENDING_TIMEOUT: Duration = Duration::from_secs(30);

/// Grants of leases whose ids are the numbers from `next` on.
struct Grants {
    next: u64,
    ttl_ms: u64,
}

impl AcervoOps for Grants {
    fn op(&mut self, _client: usize) -> WriteOp {
        let id = Some(LeaseId(self.next));
        self.next += 1;
        LeaseGrant { id, ttl_ms: self.ttl_ms }.into()
    }

    fn learn(&mut self, _client: usize, answer: &WriteAnswer) -> Answer {
        if answer.result == OpResult::Done { WRITTEN } else { Answer::Failed("NOT_GRANTED") }
    }
}

/// The leader's processor time while a client keeps all leases alive, a third of their time after
/// the other, in requests of as many as one may name.
pub fn kept_alive(extent: &Extent) -> Outcome<()> {
    let running = Running::start(ACERVO)?;
    fill(&running, PeerData { keys: 1_000, value_bytes: VALUE_BYTES })?;
    let leases = extent.small_or(500, 100_000);
    let interval = Duration::from_millis(extent.small_or(1_000, 3_000) as u64);
    let (mut idle, mut busy) = (Rounds::default(), Rounds::default());
    let client = Client::connect([running.leader()?])?;
    for _ in 0..extent.rounds.min(2) {
        let (percent, foreign) = leader_percent(&running, interval, || Ok(()))?;
        idle.add(percent, foreign);
    }
    let ids: Vec<LeaseId> = (1..=leases as u64).map(LeaseId).collect();
    let keep = |ids: &[LeaseId]| -> Outcome<()> {
        let gone =
            client.keep_alive(ids.iter().copied())?.iter().filter(|left| left.is_none()).count();
        if gone > 0 {
            Err(format!("{gone} leases of {} are gone", ids.len()).into())
        } else {
            Ok(())
        }
    };
    let mut granted = 0;
    while granted < leases {
        let more = GRANTED_AT_ONCE.min(leases - granted);
        let ttl_ms = 3 * interval.as_millis() as u64;
        let grants = Grants { next: granted as u64 + 1, ttl_ms };
        let mut dialect = Framed(AcervoWriters::new(grants, CLIENTS));
        let leader = running.leader()?;
        let plan = plan(leader, CLIENTS, 1, Until::Requests(more as u64), 0);
        let seen = driver::run(&plan, &[leader], &mut dialect, || ())?;
        if seen.failures() > 0 {
            return Err(format!("grants fail: {:?}", seen.errors).into());
        }
        granted += more;
        keep(&ids[..granted])?;
    }
    for round in 0..extent.rounds {
        let (percent, foreign) = leader_percent(&running, interval, || keep(&ids))?;
        eprintln!(
            "round {round}  {leases} leases kept alive every {interval:?}: the leader takes \
             {percent:.1} % of a core, others {:.0} % of the machine",
            foreign * 100.0
        );
        busy.add(percent, foreign);
    }
    let what = format!(
        "{} leases kept alive every {} s, {} in a request: the leader",
        grouped(leases as u64),
        interval.as_secs_f64(),
        grouped(LEASES_PER_REQUEST_MAX as u64)
    );
    print_row(&what, &busy, " % of a core", Target::AtMost(20.0));
    print_row("the same without a lease", &idle, " % of a core", Target::None);
    Ok(())
}

/// The leader's share of one processor, in per cent, over two intervals, at the beginning of each
/// of which something is done; and the share of the machine that others took.
fn leader_percent(
    running: &Running,
    interval: Duration,
    mut each: impl FnMut() -> Outcome<()>,
) -> Outcome<(f64, f64)> {
    let leader = running.leader()?;
    let servers = running.servers();
    let at = running.addresses.iter().position(|address| *address == leader);
    let process = servers[at.ok_or("the leader is one of the servers")?];
    let accounts = Accounts::now(&servers);
    let (begun, before_s) = (Instant::now(), processor_s(process));
    for number in 1..=2 {
        each()?;
        let left = (interval * number).checked_sub(begun.elapsed());
        std::thread::sleep(left.ok_or("they are not kept alive within the interval")?);
    }
    let used_s = processor_s(process) - before_s;
    if running.leader()? != leader {
        return Err("the leader has changed".into());
    }
    let percent = used_s * 100.0 / begun.elapsed().as_secs_f64();
    Ok((percent, accounts.since(&servers).foreign))
}

/// What a round has found in which a lease ended, or none.
struct Meanwhile {
    p99_ms: f64,
    most_ms: f64,
    foreign: f64,
}

/// Other clients' PUTs in the second in which a lease ends that many keys were put with, and in
/// one in which none does. They are due at a rate, so that each waits through what holds them up.
pub fn end(extent: &Extent) -> Outcome<()> {
    let running = Running::start(ACERVO)?;
    let data = PeerData { keys: extent.keys, value_bytes: VALUE_BYTES };
    fill(&running, data)?;
    let keys = extent.small_or(500, 10_000);
    let per_second = extent.small_or(200, 5_000) as u64;
    let (mut with, mut without): ([Rounds; 2], [Rounds; 2]) = Default::default();
    let mut versions = Rounds::default();
    for round in 0..extent.rounds {
        let order = if round % 2 == 0 { [false, true] } else { [true, false] };
        for is_ending in order {
            let ending = if is_ending { Some(Ending::begin(&running, keys)?) } else { None };
            let seen = put_meanwhile(&running, data, per_second, round as u64)?;
            let measured_to = Instant::now();
            let rounds = match ending {
                None => &mut without,
                Some(ending) => {
                    let (in_versions, at) = ending.wait()?;
                    let since = measured_to.checked_sub(ENDING_MEASURED);
                    if since.is_some_and(|since| at < since) || at > measured_to {
                        eprintln!("round {round}  the lease ends outside of the measured second");
                        continue;
                    }
                    versions.add(in_versions as f64, 0.0);
                    &mut with
                }
            };
            eprintln!(
                "round {round}  {} PUTs a second, {}: p99 {:.2} ms, at most {:.1} ms, others \
                 {:.0} %",
                per_second,
                if is_ending { "a lease ends" } else { "no lease ends" },
                seen.p99_ms,
                seen.most_ms,
                seen.foreign * 100.0
            );
            rounds[0].add(seen.p99_ms, seen.foreign);
            rounds[1].add(seen.most_ms, seen.foreign);
        }
    }
    let (keys, rate) = (grouped(keys as u64), grouped(per_second));
    let what = format!("{keys} keys on a lease that ends: versions in which they go");
    print_row(&what, &versions, "", Target::AtMost(1.0));
    let what = format!("p99 of {rate} PUTs a second by others, in that second");
    print_row(&what, &with[0], " ms", Target::AtMost(50.0));
    print_row("the slowest of them", &with[1], " ms", Target::None);
    print_row("p99 in a second in which no lease ends", &without[0], " ms", Target::None);
    print_row("the slowest of those", &without[1], " ms", Target::None);
    Ok(())
}

fn put_meanwhile(
    running: &Running,
    data: PeerData,
    per_second: u64,
    seed: u64,
) -> Outcome<Meanwhile> {
    let leader = running.leader()?;
    let until = Until::Time { warm_up: ENDING_WARM_UP, measured: ENDING_MEASURED };
    let plan = Plan { pace: Pace::Open { per_second }, ..plan(leader, CLIENTS, 1, until, seed) };
    let mut dialect = running.dialect(PeerOp::Put, data, CLIENTS, 1);
    let (seen, used) = drive(running, &plan, &[leader], dialect.as_mut())?;
    if seen.failures() > 0 {
        return Err(format!("PUTs fail: {:?}", seen.errors).into());
    }
    let ms = |share: f64| seen.latencies_ns.value_at_quantile(share) as f64 / 1e6;
    Ok(Meanwhile { p99_ms: ms(0.99), most_ms: ms(1.0), foreign: used.foreign })
}

/// A lease that is about to end, and the thread that sees its keys go.
struct Ending {
    thread: JoinHandle<Result<(usize, Instant), String>>,
}

impl Ending {
    /// Grants a lease and puts keys with it. Its time begins as this returns.
    fn begin(running: &Running, keys: usize) -> Outcome<Ending> {
        let client = Client::connect(running.addresses.clone())?;
        let lease = client.grant_lease(ENDING_TTL, None)?.id;
        let mut put_at = Timestamp::ZERO;
        let numbers: Vec<usize> = (0..keys).collect();
        for at_once in numbers.chunks(KEYS_AT_ONCE) {
            let mut txn = Txn::default();
            for number in at_once {
                let key = format!("leased-{number:08}");
                txn = txn.then(TxnOp::put_with_lease(key, [b'a'; VALUE_BYTES], lease));
            }
            put_at = client.txn(txn)?.timestamp;
            client.keep_alive([lease])?;
        }
        let options = WatchOptions { after: Some(put_at), ..WatchOptions::default() };
        let mut watch = client.watch(KeyRange::prefix("leased-")?, options)?;
        let thread = std::thread::spawn(move || {
            let mut gone: BTreeMap<Timestamp, usize> = BTreeMap::new();
            while gone.values().sum::<usize>() < keys {
                let event = watch.next_within(ENDING_TIMEOUT).ok_or("the keys do not go")?;
                let event = event.map_err(|error| error.to_string())?;
                let WatchEvent::Changed { version, changes, .. } = event else {
                    return Err("the watch was reset".to_owned());
                };
                for _ in changes.iter().filter(|change| change.written.is_none()) {
                    *gone.entry(version).or_default() += 1;
                }
            }
            Ok((gone.len(), Instant::now()))
        });
        client.keep_alive([lease])?;
        Ok(Ending { thread })
    }

    /// The number of versions in which the keys went, and when the last one was seen to go.
    fn wait(self) -> Outcome<(usize, Instant)> {
        Ok(self.thread.join().map_err(|_| "the thread that watches the lease panics")??)
    }
}
