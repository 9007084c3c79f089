//! Locks of Acervo: how long it takes from when one gives a lock back until the next one of many
//! that wait has it.
//!
//! All waiters are threads of one process with one client, as the threads of a program are. That
//! each hand-over wakes one of them is what the unit tests of the recipe show.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use acervo::client::{Client, KeyRange, LockOptions, ReadOptions};

use super::{ACERVO, Extent, Rounds, Target, print_row};
use crate::Outcome;
use crate::machine::Accounts;
use crate::systems::Running;

/// How long all of them may take to stand in the queue, and each hand-over.
const TIMEOUT: Duration = Duration::from_secs(60);

/// When a waiter had the lock, and when it began to give it back.
type Held = (Instant, Instant);

/// Hand-overs among many that wait.
pub fn hand_over(extent: &Extent) -> Outcome<()> {
    let running = Running::start(ACERVO)?;
    let client = Client::connect(running.addresses.clone())?;
    let waiters = extent.small_or(10, 100);
    let (mut median, mut slowest) = (Rounds::default(), Rounds::default());
    for round in 0..extent.rounds {
        let name = format!("lock-{round}");
        let first = client.lock(&name, LockOptions::default())?;
        let (held, holds) = mpsc::channel();
        let threads: Vec<JoinHandle<()>> = (0..waiters)
            .map(|_| {
                let (client, name, held) = (client.clone(), name.clone(), held.clone());
                thread::spawn(move || {
                    let options = LockOptions { wait: Some(TIMEOUT), ..LockOptions::default() };
                    let done = client.lock(&name, options).and_then(|lock| {
                        let had = Instant::now();
                        let released = Instant::now();
                        lock.unlock().map(|_| (had, released))
                    });
                    // Nobody listens any more after an error.
                    let _ = held.send(done);
                })
            })
            .collect();
        wait_for(&client, &name, waiters + 1)?;
        let accounts = Accounts::now(&running.servers());
        let mut released = Instant::now();
        first.unlock()?;
        let mut took_ms = Vec::new();
        for _ in 0..waiters {
            let (had, gave_back): Held = holds.recv_timeout(TIMEOUT)??;
            took_ms.push(had.saturating_duration_since(released).as_secs_f64() * 1_000.0);
            released = gave_back;
        }
        let foreign = accounts.since(&running.servers()).foreign;
        for thread in threads {
            thread.join().map_err(|_| "a waiter panics")?;
        }
        took_ms.sort_by(f64::total_cmp);
        let (middle, most) = (took_ms[took_ms.len() / 2], took_ms[took_ms.len() - 1]);
        eprintln!("round {round}  {waiters} waiters: median {middle:.2} ms, at most {most:.1} ms");
        median.add(middle, foreign);
        slowest.add(most, foreign);
    }
    let what = format!("a lock that {waiters} wait for: the median hand-over");
    print_row(&what, &median, " ms", Target::AtMost(2.0));
    print_row("the slowest of them", &slowest, " ms", Target::None);
    Ok(())
}

/// Waits until so many stand in the queue.
fn wait_for(client: &Client, name: &str, count: usize) -> Outcome<()> {
    let until = Instant::now() + TIMEOUT;
    let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
    while client.scan(KeyRange::prefix(format!("{name}/"))?, options).count() < count {
        if Instant::now() > until {
            return Err(format!("not all of {count} stand in the queue in time").into());
        }
    }
    Ok(())
}
