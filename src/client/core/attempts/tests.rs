//! The choice of servers in virtual time, among servers that freeze, refuse, are slow and come
//! back.

use rand::{RngExt, SeedableRng};

use super::*;
use crate::limits::{
    CLIENT_CONSOLE_HEDGE_FACTOR, CLIENT_HEDGE_DELAY, CLIENT_MUTE_TIMEOUT, CLIENT_PROBE_BACKOFF_MAX,
    CLIENT_REACH_TIMEOUT, CLIENT_SILENCE_TIMEOUT, CLIENT_WRITE_GREETING_FACTOR,
    CLIENT_WRITE_HEDGE_FACTOR, CLIENT_WRITE_MUTE_FACTOR, CLIENT_WRITE_SLOW_FACTOR,
};

const MS: Duration = Duration::from_millis(1);
/// How long a PING, a refused connection and a quick answer take.
const TRIP: Duration = MS;

/// What a server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Answers after this long, and PING at once.
    Answer(Duration),
    /// Has not caught up.
    Behind,
    /// Says that there is no majority, after this long.
    NoMajority(Duration),
    /// The same, and greets only after [`LATE_GREETING`].
    NoMajorityLate(Duration),
    /// Says that it is stopping.
    Gone,
    /// Is down: connections are refused.
    Refuse,
    /// Says nothing; its connection is given up in the end.
    Freeze,
    /// Greets, and says nothing more.
    FreezeGreeted,
    /// Answers PING after this long, and the request after [`LONG`].
    AnswerPingsLate(Duration),
}

use Does::{
    Answer, AnswerPingsLate, Behind, Freeze, FreezeGreeted, Gone, NoMajority, NoMajorityLate,
    Refuse,
};

/// So late that a read looks elsewhere meanwhile.
const LATE_GREETING: Duration = Duration::from_millis(200);
/// As long as some writes take.
const LONG: Duration = Duration::from_secs(4);

/// A client's servers, and the time.
struct World {
    now: Duration,
    servers: Vec<Does>,
    health: Health,
    random: StdRng,
    /// How late the driver may be when it wakes by itself.
    late: Duration,
}

/// What became of a request.
#[derive(Debug)]
struct End {
    result: Result<usize, ClientError>,
    took: Duration,
    /// Whom it was sent to, in order.
    sent: Vec<usize>,
    passed_over: Vec<usize>,
}

/// Nothing has come of a server.
const SILENT: Signs = Signs { heard: None, unfinished: None, arriving: None, line_busy: None };

/// When a server that says something at these times was last heard.
fn heard(says: &[Duration], now: Duration) -> Option<Duration> {
    says.iter().copied().filter(|at| *at <= now).max()
}

fn address(server: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1 + server as u16))
}

fn read() -> Rules {
    let deadline = Duration::from_secs(60);
    Rules {
        one_round: false,
        greeting: CLIENT_HEDGE_DELAY,
        silence: CLIENT_HEDGE_DELAY,
        slow: Some(CLIENT_HEDGE_DELAY),
        spares_copies: false,
        stall: 10 * CLIENT_HEDGE_DELAY,
        mute: Some(CLIENT_MUTE_TIMEOUT),
        reach: CLIENT_REACH_TIMEOUT,
        deadline,
        timeout: deadline,
    }
}

fn write() -> Rules {
    Rules {
        greeting: CLIENT_WRITE_GREETING_FACTOR * CLIENT_HEDGE_DELAY,
        silence: CLIENT_WRITE_HEDGE_FACTOR * CLIENT_HEDGE_DELAY,
        slow: Some(CLIENT_WRITE_SLOW_FACTOR * CLIENT_HEDGE_DELAY),
        spares_copies: true,
        mute: Some(CLIENT_WRITE_MUTE_FACTOR * CLIENT_MUTE_TIMEOUT),
        ..read()
    }
}

impl World {
    fn new(seed: u64, servers: &[Does]) -> World {
        let health = Health::new(servers.len());
        let random = StdRng::seed_from_u64(seed);
        World {
            now: Duration::ZERO,
            servers: servers.to_vec(),
            health,
            random,
            late: Duration::ZERO,
        }
    }

    /// When a server's connection has something to say to a request sent at `sent`.
    fn event_at(&self, server: usize, sent: Duration) -> Duration {
        sent + match self.servers[server] {
            Answer(after) | NoMajority(after) | NoMajorityLate(after) => after.max(TRIP),
            AnswerPingsLate(_) => LONG,
            Behind | Gone | Refuse => TRIP,
            Freeze | FreezeGreeted => CLIENT_SILENCE_TIMEOUT,
        }
    }

    fn call(&mut self, rules: Rules) -> End {
        let (start, count) = (self.now, self.servers.len());
        let rules = Rules { deadline: start + rules.deadline, ..rules };
        let addresses = (0..count).map(address).collect();
        let servers = (0..count).collect();
        let random = &mut self.random;
        let mut attempts = Attempts::new(rules, addresses, servers, None, start, random);
        let mut flights: Vec<(usize, Duration)> = Vec::new();
        // When each server is heard: its greeting, and what it answers to PING.
        let mut says: Vec<Vec<Duration>> = vec![Vec::new(); count];
        let (mut sent, mut passed_over) = (Vec::new(), Vec::new());
        // A request of a minute does not poll as often as that.
        for _ in 0..100_000 {
            let now = self.now;
            let signs = |server: usize| Signs { heard: heard(&says[server], now), ..SILENT };
            let action = attempts.poll(now, signs, &mut self.health, &mut self.random);
            passed_over.extend(attempts.take_passed_over().into_iter().map(|failure| {
                (0..count).find(|server| address(*server) == failure.server).unwrap()
            }));
            let result = match action {
                Action::GiveUp(error) => Some(Err(error)),
                Action::Send { server, .. } => {
                    assert!(!flights.iter().any(|of| of.0 == server), "it is there already");
                    flights.push((server, self.now));
                    sent.push(server);
                    match self.servers[server] {
                        Freeze | Refuse => {}
                        NoMajorityLate(_) => says[server].push(self.now + LATE_GREETING),
                        _ => says[server].push(self.now + TRIP),
                    }
                    None
                }
                Action::Ping(server) => {
                    match self.servers[server] {
                        Freeze | FreezeGreeted | Refuse => {}
                        AnswerPingsLate(after) => says[server].push(self.now + after),
                        _ => says[server].push(self.now + TRIP),
                    }
                    None
                }
                Action::Wait(until) => {
                    assert!(until > self.now, "it waits for what has been");
                    let next = (0..flights.len())
                        .min_by_key(|at| self.event_at(flights[*at].0, flights[*at].1));
                    let next =
                        next.filter(|at| self.event_at(flights[*at].0, flights[*at].1) <= until);
                    match next {
                        None => {
                            let late = self.random.random_range(0..=self.late.as_micros() as u64);
                            self.now = until + Duration::from_micros(late);
                            None
                        }
                        Some(at) => {
                            let (server, sent) = flights.remove(at);
                            self.now = self.now.max(self.event_at(server, sent));
                            self.happens(&mut attempts, server, &says)
                        }
                    }
                }
            };
            if let Some(result) = result {
                attempts.ended(&mut self.health);
                return End { result, took: self.now - start, sent, passed_over };
            }
        }
        panic!("it never ends");
    }

    /// A server answers, or its connection breaks.
    fn happens(
        &mut self,
        attempts: &mut Attempts,
        server: usize,
        says: &[Vec<Duration>],
    ) -> Option<Result<usize, ClientError>> {
        let (now, health, random) = (self.now, &mut self.health, &mut self.random);
        let verdict = match self.servers[server] {
            Answer(_) | AnswerPingsLate(_) => Verdict::Done(server),
            Behind => Verdict::Other("it is behind".to_owned()),
            Gone => Verdict::Gone("it is stopping".to_owned()),
            NoMajority(_) | NoMajorityLate(_) => Verdict::NoMajority(no_majority(server)),
            Refuse | Freeze | FreezeGreeted => {
                attempts.broke(now, server, "down".to_owned(), None, health, random);
                return None;
            }
        };
        let signs = |server: usize| Signs { heard: heard(&says[server], now), ..SILENT };
        attempts.answered(now, server, verdict, signs, health, random)
    }

    /// What a driver does between requests.
    fn probe(&mut self) {
        if let Some(server) = self.health.take_probe(self.now, &mut self.random)
            && matches!(self.servers[server], Answer(_) | Behind)
        {
            self.health.answered(self.now, server);
        }
    }
}

fn no_majority(server: usize) -> ClientError {
    ClientError::NoMajority { server: address(server), message: "1 of 3".to_owned() }
}

fn for_seeds(servers: &[Does], mut check: impl FnMut(&mut World)) {
    (0..32).for_each(|seed| {
        println!("seed {seed}");
        check(&mut World::new(seed, servers));
    });
}

#[test]
fn the_first_server_is_chosen_at_random_among_the_healthy() {
    let mut world = World::new(1, &[Answer(TRIP), Freeze, Answer(TRIP), Answer(TRIP)]);
    world.call(read());
    (0..20).for_each(|_| drop(world.call(read())));
    let first: Vec<usize> = (0..300).map(|_| world.call(read()).sent[0]).collect();
    for healthy in [0, 2, 3] {
        let share = first.iter().filter(|server| **server == healthy).count();
        assert!((60..140).contains(&share), "server {healthy} was asked {share} times of 300");
    }
}

#[test]
fn a_frozen_server_costs_one_hedge_and_then_nothing() {
    for rules in [read(), write()] {
        for_seeds(&[Answer(TRIP), Freeze, Answer(TRIP)], |world| {
            let mut slow = 0;
            for _ in 0..1000 {
                let end = world.call(rules.clone());
                assert!(end.result.is_ok());
                assert!(end.took <= rules.silence + TRIP, "{end:?}");
                slow += usize::from(end.took > TRIP);
                world.probe();
            }
            assert!(slow <= 1, "{slow} requests waited for the frozen server");
        });
    }
}

/// A machine is never quite on time: the request was often answered by the second server a moment
/// before the first one counted as silent, and so the first was asked first again by every later
/// request.
#[test]
fn a_frozen_server_costs_one_request_also_when_the_client_is_late() {
    for (rules, frozen, late) in [read(), write()].into_iter().flat_map(|rules| {
        let late = [MS, rules.silence / 4, rules.silence / 2, 2 * rules.silence];
        let frozen = [Freeze, FreezeGreeted];
        let cases = frozen.into_iter().flat_map(move |frozen| late.map(|late| (frozen, late)));
        cases.map(move |(frozen, late)| (rules.clone(), frozen, late))
    }) {
        println!("{frozen:?}, up to {late:?} late");
        for_seeds(&[Answer(TRIP), frozen, Answer(TRIP)], |world| {
            world.late = late;
            let mut asked = 0;
            for _ in 0..300 {
                let end = world.call(rules.clone());
                assert!(end.result.is_ok());
                asked += end.sent.iter().filter(|server| **server == 1).count();
                world.probe();
            }
            assert_eq!(asked, 1, "requests that were sent to the frozen server");
        });
    }
}

#[test]
fn a_server_that_comes_back_is_used_again_soon_and_nobody_waits_to_find_out() {
    for broken in [Freeze, Refuse, Gone, NoMajority(50 * MS)] {
        for_seeds(&[Answer(TRIP), broken, Answer(TRIP)], |world| {
            (0..20).for_each(|_| drop(world.call(write())));
            world.now += Duration::from_secs(30);
            world.probe();
            world.servers[1] = Answer(TRIP);
            let until = world.now + CLIENT_PROBE_BACKOFF_MAX + 10 * MS;
            while !world.health.is_healthy(1) {
                assert!(world.now < until, "it is not used again");
                assert_eq!(world.call(write()).took, TRIP);
                world.probe();
            }
        });
    }
}

#[test]
fn a_console_s_write_that_takes_long_at_a_server_that_is_heard_is_not_sent_twice() {
    let console = CLIENT_CONSOLE_HEDGE_FACTOR * CLIENT_HEDGE_DELAY;
    let rules =
        Rules { one_round: true, greeting: console, silence: console, slow: None, ..write() };
    // The busiest machine on which the answer to a PING still counts.
    let late = rules.silence / 2 - TRIP;
    for server in [Answer(LONG), AnswerPingsLate(late)] {
        for_seeds(&[server; 3], |world| {
            let end = world.call(rules.clone());
            assert_eq!((end.sent.len(), end.took), (1, LONG));
        });
    }
}

#[test]
fn of_the_writes_of_a_group_that_is_slow_few_are_sent_twice() {
    // The busiest machine on which the answer to a PING still counts.
    let late = write().silence / 2 - TRIP;
    for server in [Answer(LONG), AnswerPingsLate(late)] {
        for_seeds(&[server; 3], |world| {
            let ends: Vec<_> = (0..100).map(|_| world.call(write())).collect();
            assert!(ends.iter().all(|end| end.took == LONG), "{ends:?}");
            // One a minute, and a few while that time grows.
            let copies: usize = ends.iter().map(|end| end.sent.len() - 1).sum();
            assert!((1..=12).contains(&copies), "{copies} of 100 writes were sent twice");
            let well = (0..3).filter(|server| world.health.is_healthy(*server)).count();
            assert_eq!(well, 3, "slow is not unwell");
        });
    }
}

#[test]
fn a_server_that_has_greeted_and_then_freezes_costs_the_silence_timeout_once() {
    for_seeds(&[FreezeGreeted, Answer(TRIP), FreezeGreeted], |world| {
        let took: Duration = (0..100).map(|_| world.call(write()).took).sum();
        assert!(took <= 2 * (write().silence + TRIP) + 100 * TRIP, "{took:?}");
    });
}

/// On a busy machine several servers greet late. Each of those that the write had been sent to got
/// a copy of it then.
#[test]
fn a_write_waits_where_it_left_first_of_several_servers_that_greet_late() {
    let mut random = StdRng::seed_from_u64(1);
    let mut health = Health::new(2);
    let servers: Arc<[SocketAddr]> = [address(0), address(1)].into();
    let start = Duration::ZERO;
    let rules = write();
    let mut attempts =
        Attempts::new(rules.clone(), servers, vec![0, 1], Some(0), start, &mut random);
    let mut poll = |attempts: &mut Attempts, now, greeted: Option<Duration>| {
        let signs = |server| Signs { heard: greeted.filter(|_| server == 0), ..SILENT };
        attempts.poll(now, signs, &mut health, &mut random)
    };
    assert_eq!(poll(&mut attempts, start, None), Action::Send { server: 0, instead: true });
    assert!(matches!(poll(&mut attempts, start, None), Action::Wait(_)));
    let second = Action::Send { server: 1, instead: true };
    assert_eq!(poll(&mut attempts, rules.greeting, None), second);
    // The first one greets after all, and takes it.
    let greeted = Some(rules.greeting + TRIP);
    attempts.withheld(1);
    let mut now = rules.greeting + 2 * TRIP;
    let sent = loop {
        match poll(&mut attempts, now, greeted) {
            Action::Wait(until) => now = until,
            Action::Ping(server) => assert_eq!(server, 0),
            other => break other,
        }
    };
    // It has as long to be heard as any server that has greeted.
    assert_eq!((sent, now), (second, rules.greeting + 2 * TRIP + rules.silence));
}

/// A process that was stopped, or a machine that slept, finds all its time-outs over when it goes
/// on, before it has read what came meanwhile.
#[test]
fn time_in_which_the_client_did_not_run_is_nobodys_silence() {
    for has_greeted in [false, true] {
        let mut random = StdRng::seed_from_u64(1);
        let mut health = Health::new(2);
        let servers: Arc<[SocketAddr]> = [address(0), address(1)].into();
        let start = Duration::ZERO;
        let mut attempts = Attempts::new(write(), servers, vec![0, 1], Some(0), start, &mut random);
        let signs = |_| Signs { heard: has_greeted.then_some(TRIP), ..SILENT };
        let mut poll = |now| attempts.poll(now, signs, &mut health, &mut random);
        assert_eq!(poll(start), Action::Send { server: 0, instead: true });
        let mut now = 2 * TRIP;
        let mut away = 0;
        let server = loop {
            match poll(now) {
                Action::Wait(until) if away < 3 => {
                    away += 1;
                    now = until + 10 * write().silence;
                }
                Action::Wait(until) => now = until,
                Action::Ping(server) => assert_eq!(server, 0),
                Action::Send { server, .. } => break server,
                Action::GiveUp(error) => panic!("{error}"),
            }
        };
        assert_eq!(
            (server, away),
            (1, 3),
            "it was asked only when the client had been there to listen"
        );
    }
}

#[test]
fn a_slow_read_is_sent_to_one_more_server_and_late_to_a_third_and_the_first_answer_counts() {
    for_seeds(&[Answer(4000 * MS), Answer(TRIP), Answer(4000 * MS)], |world| {
        let end = world.call(read());
        let third_at = CLIENT_STUCK_FACTOR * CLIENT_HEDGE_DELAY;
        assert!(end.took <= CLIENT_HEDGE_DELAY + third_at + TRIP, "{end:?}");
        assert!(end.sent.len() <= 2 || end.took > third_at, "{end:?}");
        if end.sent[..2.min(end.sent.len())].contains(&1) {
            assert!(end.took <= CLIENT_HEDGE_DELAY + TRIP, "{end:?}");
        }
        assert!(world.health.is_healthy(0) && world.health.is_healthy(2), "slow is not unwell");
    });
}

#[test]
fn with_all_but_one_frozen_the_one_is_found() {
    for_seeds(&[Freeze, Freeze, Answer(TRIP), Freeze, Freeze], |world| {
        // Each frozen one is met once.
        let ends: Vec<_> = (0..100).map(|_| world.call(read())).collect();
        assert!(ends.iter().all(|end| end.result == Ok(2)), "{ends:?}");
        let took: Duration = ends.iter().map(|end| end.took).sum();
        assert!(took <= 4 * CLIENT_HEDGE_DELAY + 100 * TRIP, "{took:?}");
    });
}

#[test]
fn no_majority_of_one_server_is_not_final() {
    let second = Duration::from_secs(1);
    for_seeds(&[NoMajority(5 * second), Answer(TRIP), Answer(TRIP)], |world| {
        let ends: Vec<_> = (0..100).map(|_| world.call(write())).collect();
        assert!(ends.iter().all(|end| end.result.is_ok()));
        let slow = ends.iter().filter(|end| end.took > TRIP).count();
        assert!(slow <= 1, "{slow} requests waited for the server that is cut off");
    });
}

#[test]
fn no_majority_is_final_when_no_other_server_has_anything_better_to_say() {
    let second = Duration::from_secs(1);
    // All say so, the others at once when the first one has; nobody else is up; nobody else speaks.
    let cases = [
        ([NoMajority(5 * second); 3], 10 * second),
        ([NoMajority(5 * second), Refuse, Refuse], 5 * second),
        ([NoMajority(5 * second), Refuse, Freeze], 5 * second),
    ];
    for (servers, time) in cases {
        for_seeds(&servers, |world| {
            let end = world.call(write());
            assert!(matches!(end.result, Err(ClientError::NoMajority { .. })), "{end:?}");
            assert!(end.took <= time + 3 * write().silence, "{end:?}");
        });
    }
}

/// Its greeting came so late that it counted as silent and a new round began; its answer, after
/// five seconds, was then not known to be one of that round, and it was asked for five more.
#[test]
fn no_majority_of_a_server_that_greets_late_is_final() {
    for_seeds(&[NoMajorityLate(Duration::from_secs(5)), Refuse, Refuse], |world| {
        let end = world.call(read());
        assert!(matches!(end.result, Err(ClientError::NoMajority { .. })), "{end:?}");
        assert!(end.sent.iter().filter(|server| **server == 0).count() == 1, "{end:?}");
    });
}

#[test]
fn a_time_out_tells_what_the_servers_have_said_and_not_that_one_is_asked_again() {
    for_seeds(&[NoMajority(300 * MS), Behind], |world| {
        let end = world.call(Rules { deadline: Duration::from_secs(2), ..read() });
        let Err(ClientError::TimedOut { last, .. }) = &end.result else { panic!("{end:?}") };
        assert!(!last.contains("had not answered yet"), "{last}");
    });
}

#[test]
fn servers_that_are_behind_are_asked_until_one_has_caught_up() {
    for_seeds(&[Behind, Behind, Freeze], |world| {
        let end = world.call(Rules { deadline: Duration::from_secs(2), ..read() });
        assert!(matches!(end.result, Err(ClientError::TimedOut { .. })), "{end:?}");
        // The frozen one has been asked once, and holds up nobody.
        assert!(end.sent.iter().filter(|server| **server == 2).count() == 1, "{end:?}");
        assert!(end.sent.len() > 20, "{end:?}");
        world.servers[0] = Answer(TRIP);
        assert_eq!(world.call(read()).result.unwrap(), 0);
    });
}

#[test]
fn with_no_server_reachable_it_ends_after_the_reach_timeout() {
    for servers in [[Refuse, Refuse, Refuse], [Refuse, Freeze, Refuse], [Freeze; 3]] {
        for_seeds(&servers, |world| {
            let end = world.call(read());
            let Err(ClientError::Unreachable { servers, .. }) = &end.result else {
                panic!("{end:?}")
            };
            assert_eq!(servers.len(), 3);
            let time = CLIENT_REACH_TIMEOUT.max(CLIENT_SILENCE_TIMEOUT) + 3 * CLIENT_HEDGE_DELAY;
            assert!((CLIENT_REACH_TIMEOUT..=time).contains(&end.took), "{end:?}");
        });
    }
}

#[test]
fn in_one_round_each_server_is_asked_once_and_those_passed_over_are_named() {
    let rules = Rules { one_round: true, slow: None, ..read() };
    for_seeds(&[Refuse, Freeze, Gone, Answer(TRIP)], |world| {
        let end = world.call(rules.clone());
        assert_eq!(end.result.unwrap(), 3);
        let before: Vec<usize> = end.sent.into_iter().take_while(|server| *server != 3).collect();
        assert_eq!(end.passed_over, before);
    });
    for_seeds(&[Refuse, Freeze, Refuse], |world| {
        let end = world.call(rules.clone());
        assert!(matches!(end.result, Err(ClientError::Unreachable { .. })), "{end:?}");
        let mut passed_over = end.passed_over;
        passed_over.sort_unstable();
        assert_eq!(passed_over, [0, 1, 2], "each once");
    });
    for_seeds(&[Behind, Freeze, Behind], |world| {
        let end = world.call(rules.clone());
        assert!(matches!(end.result, Err(ClientError::Unavailable { .. })), "{end:?}");
        assert!(end.took <= CLIENT_HEDGE_DELAY + 3 * TRIP, "the silent one is not waited for");
    });
}
