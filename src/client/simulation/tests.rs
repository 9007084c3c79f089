//! What holds of a client, whatever its servers do.

use rand::seq::IndexedRandom;

use super::servers::*;
use super::*;
use crate::limits::CLIENT_MUTE_TIMEOUT;

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("CLIENT_SEED") {
        Ok(seed) => vec![seed.parse().expect("CLIENT_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

/// Says which seed has failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay it with CLIENT_SEED={}", self.0);
        }
    }
}

#[test]
fn whatever_servers_do_no_call_reads_backwards_or_lasts_too_long_and_no_write_is_applied_twice() {
    for seed in seeds(150) {
        let _named = Named(seed);
        let causality = if seed % 2 == 0 { Causality::Session } else { Causality::PerKey };
        let pause = Duration::from_millis(2);
        let timeout = TIMEOUT;
        let load = Load {
            calls: 300,
            callers: 6,
            writes: 40,
            given_up: 10,
            as_of: 12,
            timeout,
            pause,
            keys: 7,
        };
        let mut world = World::new(seed, &[Well; 3], causality, load);
        assert_eq!(world.seed, seed);
        for _ in 0..30 {
            let at = Duration::from_micros(world.random.random_range(0..8_000_000));
            let server = world.random.random_range(0..3);
            let mood = *MOODS.choose(&mut world.random).expect("there are some");
            world.after(at, Event::Change { server, mood });
            // Most of them do not last.
            let back = at + Duration::from_micros(world.random.random_range(0..2_000_000));
            world.after(back, Event::Change { server, mood: Well });
        }
        for _ in 0..2 {
            let at = Duration::from_micros(world.random.random_range(0..6_000_000));
            world.after(at, Event::Forget);
            let at = Duration::from_micros(world.random.random_range(0..6_000_000));
            let server = world.random.random_range(0..3);
            world.after(at, Event::Blackout { server });
        }
        world.run(Duration::from_secs(600));
        assert_eq!(world.calls_ended, load.calls);
        world.check_end();
    }
}

/// How many of these calls have been answered within ten seconds, by three servers of which the
/// first, which leads, has been in this mood since `settling` before.
fn answered_beside(mood: Mood, settling: Duration, seed: u64, writes: u32) -> u64 {
    let (calls, timeout, pause) = (u64::MAX, 4 * CLIENT_MUTE_TIMEOUT, 20 * MS);
    let load =
        Load { calls, callers: 16, writes, given_up: 0, as_of: 0, timeout, pause, keys: 1000 };
    let mut world = World::new(seed, &[Well; 3], Causality::Session, load);
    // Writes go to the first one.
    world.core.hint_leader(Some(0));
    world.run(Duration::from_secs(1));
    world.change(0, mood);
    world.run(Duration::from_secs(1) + settling);
    let before = world.calls_ended;
    world.run(Duration::from_secs(11) + settling);
    if mood == Mute {
        assert_eq!(world.calls_failed, 0, "another server has answered in its place");
    }
    world.calls_ended - before - world.calls_failed
}

#[test]
fn beside_one_server_of_three_that_is_of_no_use_nine_calls_of_ten_are_answered_as_before() {
    for seed in seeds(1) {
        let _named = Named(seed);
        for writes in [0, 100] {
            let well = answered_beside(Well, Duration::ZERO, seed, writes);
            for mood in MOODS {
                let settling = match mood {
                    // A slow server is well: its answers are waited for, and reads hedged.
                    Slow(_) => continue,
                    // One that only answers PING is not told from one that is slow any sooner.
                    Mute => Duration::from_secs(2),
                    _ => Duration::ZERO,
                };
                let answered = answered_beside(mood, settling, seed, writes);
                assert!(
                    answered * 10 >= well * 9,
                    "{mood:?}, {writes} % writes: {answered} of {well}"
                );
            }
        }
    }
}

#[test]
fn a_connection_that_is_lost_without_a_word_is_given_up_however_short_the_calls_are() {
    for (timeout, callers) in [(300 * MS, 1), (1000 * MS, 1), (1000 * MS, 4)] {
        for servers in [1, 3] {
            for writes in [0, 100] {
                let (calls, pause) = (u64::MAX, 20 * MS);
                let load = Load {
                    calls,
                    callers,
                    writes,
                    given_up: 0,
                    as_of: 0,
                    timeout,
                    pause,
                    keys: 10,
                };
                let moods = vec![Well; servers];
                let mut world = World::new(1, &moods, Causality::Session, load);
                let second = Duration::from_secs(1);
                world.run(second);
                for server in 0..servers {
                    world.after(Duration::ZERO, Event::Blackout { server });
                }
                // One after the other may be found out.
                let silence = Timing::default().silence_timeout;
                world.run(second + servers as u32 * silence + timeout);
                let (ended, failed) = (world.calls_ended, world.calls_failed);
                world.run(world.now + 2 * second);
                assert!(world.calls_ended > ended + 10, "{timeout:?}, {servers} servers");
                assert_eq!(world.calls_failed, failed, "{timeout:?}, {servers} servers");
            }
        }
    }
}

#[test]
fn a_read_is_not_held_up_by_one_slow_server_when_the_others_are_behind_for_a_moment() {
    for mood in [Behind, Busy(5), Busy(300)] {
        for seed in seeds(4) {
            let _named = Named(seed);
            let (calls, timeout, pause) = (u64::MAX, TIMEOUT, 20 * MS);
            let load = Load {
                calls,
                callers: 8,
                writes: 0,
                given_up: 0,
                as_of: 0,
                timeout,
                pause,
                keys: 3,
            };
            let mut world = World::new(seed, &[Well; 3], Causality::Session, load);
            let second = Duration::from_secs(1);
            world.run(second);
            world.change(0, Mute);
            // What the client has seen elsewhere, the others have not applied.
            let timestamp = world.group.write_elsewhere(world.now);
            lock(&world.client.inner.seen).raise_session(Some(timestamp));
            for server in [1, 2] {
                world.change(server, mood);
                world.after(100 * MS, Event::Change { server, mood: Well });
            }
            world.run(2 * second + TIMEOUT);
            assert_eq!(world.calls_failed, 0);
            assert!(world.longest < second, "{mood:?}: a read took {:?}", world.longest);
        }
    }
}

/// It was asked every 75 ms, whatever it said, by each call.
#[test]
fn servers_that_are_busy_are_asked_ever_more_seldom_and_again_when_they_are_not() {
    for (retry_after_ms, most) in [(5, 3 * 14), (50, 3 * 11), (u32::MAX, 3 * 8)] {
        for seed in seeds(4) {
            let _named = Named(seed);
            let (calls, timeout, pause) = (8, TIMEOUT, MS);
            let load = Load {
                calls,
                callers: 8,
                writes: 50,
                given_up: 0,
                as_of: 0,
                timeout,
                pause,
                keys: 10,
            };
            let moods = [Busy(retry_after_ms); 3];
            let mut world = World::new(seed, &moods, Causality::Session, load);
            world.run(TIMEOUT - MS);
            let each = world.requests_sent / calls;
            assert!(each <= most, "{retry_after_ms} ms: {each} requests a call");
            world.run(2 * TIMEOUT);
            assert_eq!((world.calls_ended, world.calls_failed), (calls, calls));
            assert!(world.longest <= TIMEOUT, "the caller's deadline is the end");

            let mut world = World::new(seed, &moods, Causality::Session, load);
            for server in 0..3 {
                world.after(3 * TIMEOUT / 5, Event::Change { server, mood: Well });
            }
            world.run(2 * TIMEOUT);
            assert_eq!(world.calls_failed, 0);
        }
    }
}

#[test]
fn a_server_that_comes_back_is_asked_again() {
    for mood in MOODS.into_iter().filter(|mood| *mood != Well) {
        for seed in seeds(2) {
            let _named = Named(seed);
            let (calls, timeout, pause) = (u64::MAX, TIMEOUT, 20 * MS);
            let load = Load {
                calls,
                callers: 4,
                writes: 30,
                given_up: 0,
                as_of: 0,
                timeout,
                pause,
                keys: 10,
            };
            let mut world = World::new(seed, &[mood, Well, Well], Causality::Session, load);
            world.run(Duration::from_secs(5));
            world.change(0, Well);
            world.run(Duration::from_secs(10));
            let before = world.group.applied(0);
            world.run(Duration::from_secs(11));
            assert!(world.group.applied(0) > before, "{mood:?}: it is not asked any more");
        }
    }
}

#[test]
fn more_calls_than_there_is_room_for_wait_and_end_by_their_deadlines() {
    for mood in [Well, Frozen, Down] {
        for seed in seeds(1) {
            let _named = Named(seed);
            let callers = limits::CLIENT_REQUESTS_MAX + 200;
            let (calls, timeout, pause) = (2 * callers as u64, TIMEOUT, MS);
            let load = Load {
                calls,
                callers,
                writes: 50,
                given_up: 5,
                as_of: 12,
                timeout,
                pause,
                keys: 100,
            };
            let mut world = World::new(seed, &[mood; 3], Causality::PerKey, load);
            world.run(Duration::from_secs(60));
            assert_eq!(world.calls_ended, calls);
            world.check_end();
        }
    }
}

#[test]
fn a_server_that_gives_old_values_is_not_asked_again_and_again() {
    for seed in seeds(5) {
        let _named = Named(seed);
        let (calls, timeout, pause) = (u64::MAX, TIMEOUT, 2 * MS);
        let load =
            Load { calls, callers: 4, writes: 20, given_up: 0, as_of: 0, timeout, pause, keys: 1 };
        let mut world = World::new(seed, &[Stale, Well, Well], Causality::PerKey, load);
        world.run(Duration::from_secs(4));
        let World { calls_ended, calls_failed, requests_sent, .. } = world;
        assert_eq!(calls_failed, 0);
        assert!(requests_sent <= 2 * calls_ended, "{requests_sent} for {calls_ended} calls");
    }
}

/// A copy of the write may have had an effect at a server that is `mood`, whichever way the call
/// comes to its end: at its deadline, or because the servers have forgotten the client.
#[test]
fn what_may_be_done_is_neither_said_to_be_undone_nor_done_again() {
    for mood in [WrongKind, Closing, Mute, Regreeting, Slow(2 * TIMEOUT)] {
        for forgets in [false, true] {
            for seed in seeds(20) {
                let _named = Named(seed);
                let (calls, timeout, pause) = (24, TIMEOUT, 2 * MS);
                let load = Load {
                    calls,
                    callers: 4,
                    writes: 100,
                    given_up: 0,
                    as_of: 0,
                    timeout,
                    pause,
                    keys: 5,
                };
                let others = if forgets { Well } else { mood };
                let mut world = World::new(seed, &[mood, mood, others], Causality::Session, load);
                if forgets {
                    for at in 1..100 {
                        world.after(at * 50 * MS, Event::Forget);
                    }
                } else {
                    world.after(3 * TIMEOUT, Event::Change { server: 0, mood: Well });
                }
                world.run(Duration::from_secs(120));
                assert_eq!(world.calls_ended, calls);
                world.check_end();
            }
        }
    }
}
