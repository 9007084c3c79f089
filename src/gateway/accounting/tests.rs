//! What connections hold, and who gives way, without a network.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::books::left;
use super::*;

/// Room for everything, but for what a test changes.
pub(in crate::gateway) const AMPLE: AccountLimits = AccountLimits {
    connections_max: 100,
    store_calls_max: 100,
    auxiliary_calls_max: 100,
    streams_max: 100,
    bytes_max: 1 << 30,
    own_bytes: 0,
    stalled_min: Duration::MAX,
    pressed_min: Duration::MAX,
};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

fn is_displaced(account: &Account) -> bool {
    account.is_displaced(Waker::noop())
}

fn set_stalled_min(accounts: &Accounts, min: Duration) {
    accounts.books().set_stalled_min(min);
}

fn owed(account: &Account) -> Call {
    let call = account.begin(Pool::Store).unwrap();
    call.turn(Turn::Gateway);
    call
}

#[test]
fn newcomers_give_way_then_those_of_many_and_then_the_idle() {
    let accounts = Accounts::new(AccountLimits { connections_max: 4, ..AMPLE });
    let open = |ip| accounts.open(ip);
    let [silent, busy, idle, idler] = [0; 4].map(|_| open(HERE).unwrap());
    let _busy_calls = [owed(&busy), owed(&busy)];
    let idle_call = owed(&idle);
    let _idler_call = owed(&idler);
    // Who has not called gives way, also to one of the same address.
    let new = open(HERE).unwrap();
    assert!(is_displaced(&silent) && !is_displaced(&busy));
    drop(silent);
    assert_eq!(accounts.books().connections(), 4, "its place was free before it went");
    let _new_call = owed(&new);
    assert!(open(HERE).is_none(), "all have calls under way");
    // One of another address has a right to a place, as long as it has fewer.
    drop(idle_call);
    let other = open(THERE).unwrap();
    assert!(is_displaced(&idle), "it has no call under way");
    let _other_call = owed(&other);
    let second = open(THERE).unwrap();
    assert_eq!([&busy, &idler, &new].iter().filter(|one| is_displaced(one)).count(), 1);
    let second_call = owed(&second);
    assert!(open(THERE).is_none(), "each has two");
    // Who has been idle for long gives way to anybody.
    drop(second_call);
    assert!(open(HERE).is_none(), "it may be about to call again, and its origin has no more");
    set_stalled_min(&accounts, Duration::ZERO);
    assert!(open(HERE).is_some() && is_displaced(&second));
}

#[test]
fn who_waits_for_its_client_is_idle_and_so_is_who_only_watches() {
    let limits = AccountLimits { connections_max: 3, stalled_min: Duration::ZERO, ..AMPLE };
    let accounts = Accounts::new(limits);
    let [unread, watching, owing] = [0; 3].map(|_| accounts.open(HERE).unwrap());
    let answer = owed(&unread);
    answer.turn(Turn::Client);
    let watch = watching.begin(Pool::Auxiliary).unwrap();
    watch.turn(Turn::Gateway);
    let _owed = owed(&owing);
    let _new = [0; 2].map(|_| {
        let new = accounts.open(HERE).unwrap();
        let call = owed(&new);
        (new, call)
    });
    assert!(is_displaced(&unread) && is_displaced(&watching) && !is_displaced(&owing));
    assert!(accounts.open(HERE).is_none(), "the gateway owes each of them an answer");
}

/// Its client may be there for days without an event, and its connection is not kept for that.
#[test]
fn each_connection_may_have_a_stream_and_counts_as_idle_while_it_has_nothing_else() {
    let limits =
        AccountLimits { connections_max: 2, streams_max: 0, stalled_min: Duration::ZERO, ..AMPLE };
    let accounts = Accounts::new(limits);
    let [watching, owing] = [0; 2].map(|_| accounts.open(HERE).unwrap());
    let stream = watching.begin(Pool::Stream).unwrap();
    stream.turn(Turn::Gateway);
    assert!(watching.begin(Pool::Stream).is_none(), "all other places are taken");
    drop(watching.begin(Pool::Store).expect("a stream takes no place of a call"));
    let _owed = owed(&owing);
    let _new = accounts.open(HERE).unwrap();
    assert!(is_displaced(&watching) && !is_displaced(&owing));
}

#[test]
fn each_connection_has_a_call_of_its_own_and_another_beside_the_store() {
    let limits = AccountLimits { store_calls_max: 0, auxiliary_calls_max: 0, ..AMPLE };
    let accounts = Accounts::new(limits);
    let account = accounts.open(HERE).unwrap();
    let _watch = account.begin(Pool::Auxiliary).unwrap();
    assert!(account.begin(Pool::Auxiliary).is_none());
    let call = account.begin(Pool::Store).unwrap();
    assert!(account.begin(Pool::Store).is_none());
    drop(call);
    assert!(account.begin(Pool::Store).is_some());
}

#[test]
fn shared_places_are_never_one_connections_alone_and_stalled_calls_keep_none() {
    let accounts = Accounts::new(AccountLimits { store_calls_max: 8, ..AMPLE });
    let greedy: Vec<Account> = (0..3).map(|_| accounts.open(HERE).unwrap()).collect();
    let take_all = |account: &Account| {
        std::iter::from_fn(|| account.begin(Pool::Store)).collect::<Vec<Call>>()
    };
    let calls: Vec<Vec<Call>> = greedy.iter().map(take_all).collect();
    assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [5, 1, 1], "an origin has half");
    let late = accounts.open(HERE).unwrap();
    assert_eq!(take_all(&late).len(), 1);
    // Whoever lets its calls lie gives way.
    let own = owed(&late);
    set_stalled_min(&accounts, Duration::ZERO);
    let more: Vec<Call> = (0..3).map(|_| late.begin(Pool::Store).unwrap()).collect();
    more.iter().for_each(|call| call.turn(Turn::Gateway));
    assert!(is_displaced(&greedy[0]) && !is_displaced(&late));
    drop((own, more, calls));
    assert_eq!(accounts.books().shared().0, 0);
}

/// Hundreds whose clients had gone kept their places, as what they had sent waited to be read,
/// and whoever came was cut off in the first call.
#[test]
fn whose_client_has_left_gives_way_before_anybody_else() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let accounts = Accounts::new(AccountLimits { connections_max: 2, ..AMPLE });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = Arc::new(listener.accept().await.unwrap().0);
        let newcomer = accounts.open(THERE).unwrap();
        let abandoned = accounts.open(HERE).unwrap();
        abandoned.is_of(&stream);
        let call = owed(&abandoned);
        client.write_all(b"what nobody has read").await.unwrap();
        assert!(left(&[(abandoned.0.id, Arc::clone(&stream))]).is_empty());
        drop(client);
        let deadline = Instant::now() + Duration::from_secs(10);
        while left(&[(abandoned.0.id, Arc::clone(&stream))]).is_empty() {
            assert!(Instant::now() < deadline, "the end has not come");
            tokio::task::yield_now().await;
        }
        let _third = accounts.open([127, 0, 0, 9].into()).unwrap();
        assert!(is_displaced(&abandoned) && !is_displaced(&newcomer));
        drop(call);
    });
}

#[test]
fn bytes_are_shared_by_connections_and_origins_and_stalled_calls_keep_none() {
    let limits = AccountLimits { bytes_max: 1000, own_bytes: 10, ..AMPLE };
    let accounts = Accounts::new(limits);
    let [one, two] = [0; 2].map(|_| accounts.open(HERE).unwrap());
    let [first, second] = [&one, &two].map(owed);
    assert!(first.charge(510), "half of all, and its own");
    assert!(!first.charge(1));
    assert!(second.charge(10), "every connection has its own");
    assert!(!second.charge(1), "its origin has half");
    let other = accounts.open(THERE).unwrap();
    let third = owed(&other);
    assert!(third.charge(260) && !third.charge(1), "another origin gets half of the rest");
    first.release(300);
    assert!(second.charge(50));
    drop(first);
    assert!(second.charge(300) && !third.charge(250), "only 400 are left");
    // What is not read, or does not come, gives way to who asks.
    second.turn(Turn::Client);
    set_stalled_min(&accounts, Duration::ZERO);
    assert!(third.charge(250) && is_displaced(&two) && !is_displaced(&other));
    assert!(!third.charge(1), "nobody has more than half");
    drop((second, third));
    drop((one, two, other));
    let books = accounts.books();
    assert!(books.shared() == (0, 0) && books.is_left());
}

#[test]
fn those_that_call_again_and_again_keep_no_newcomer_out() {
    let accounts = Accounts::new(AccountLimits { connections_max: 16, ..AMPLE });
    let call = |account: &Account| drop(owed(account));
    let crowd: Vec<Account> = (0..16).map(|_| accounts.open(HERE).unwrap()).collect();
    // Each has called; the first has called again since.
    crowd.iter().for_each(call);
    call(&crowd[0]);
    // Of the crowd's own address, and of another, which has a right to more.
    let newcomers: Vec<Account> =
        [HERE, THERE].map(|ip| accounts.open(ip).expect("there is room")).into();
    assert!(is_displaced(&crowd[1]) && is_displaced(&crowd[2]));
    assert_eq!(crowd.iter().filter(|one| is_displaced(one)).count(), 2);
    // A flood that dials leaves newcomers the time to call: two of them are left as they are.
    let flood = accounts.open(HERE).unwrap();
    assert!(is_displaced(&newcomers[0]) && !is_displaced(&newcomers[1]));
    call(&newcomers[1]);
    let more: Vec<Account> = (0..20).map(|_| accounts.open(HERE).unwrap()).collect();
    assert!(is_displaced(&flood) && !is_displaced(&more[18]) && !is_displaced(&more[19]));
    assert!(!is_displaced(&newcomers[1]), "others' dialling costs another address nothing");
    assert_eq!(accounts.books().connections(), 16);
}

#[test]
fn unfinished_requests_give_way_to_who_asks_for_less_and_to_nobody_else() {
    let limits = AccountLimits { bytes_max: 1000, pressed_min: Duration::ZERO, ..AMPLE };
    let accounts = Accounts::new(limits);
    let flood: Vec<Account> = (0..5).map(|_| accounts.open(HERE).unwrap()).collect();
    let unfinished: Vec<Call> = flood.iter().map(|one| one.begin(Pool::Store).unwrap()).collect();
    assert!(unfinished.iter().all(|call| call.charge(100)));
    let another = accounts.open(HERE).unwrap();
    let call = another.begin(Pool::Store).unwrap();
    assert!(!call.charge(100), "it asks for no less than the others hold");
    let answering = owed(&flood[4]);
    assert!(call.charge(60), "it asks for less");
    assert_eq!(flood.iter().filter(|one| is_displaced(one)).count(), 1);
    assert!(!is_displaced(&flood[4]), "it is owed an answer");
    // Another address has its own half of the rest, and the origin that holds more gives way to
    // it.
    let other = accounts.open(THERE).unwrap();
    let large = other.begin(Pool::Store).unwrap();
    assert!(large.charge(270), "there is room");
    let late = accounts.open(HERE).unwrap();
    let small = late.begin(Pool::Store).unwrap();
    assert!(small.charge(10) && !is_displaced(&other));
    drop(answering);
}

#[test]
fn unfinished_calls_give_way_to_who_has_fewer() {
    let limits = AccountLimits { store_calls_max: 8, pressed_min: Duration::ZERO, ..AMPLE };
    let accounts = Accounts::new(limits);
    let [greedy, modest] = [0; 2].map(|_| accounts.open(HERE).unwrap());
    let unfinished: Vec<Call> = std::iter::from_fn(|| greedy.begin(Pool::Store)).collect();
    assert_eq!(unfinished.len(), 5);
    let first = owed(&modest);
    let _second = modest.begin(Pool::Store).expect("it has fewer");
    assert!(is_displaced(&greedy) && !is_displaced(&modest));
    drop(first);
}

#[test]
fn an_origin_at_its_half_cuts_nobody_else() {
    let limits =
        AccountLimits { bytes_max: 1000, store_calls_max: 4, stalled_min: Duration::ZERO, ..AMPLE };
    let accounts = Accounts::new(limits);
    let there = accounts.open(THERE).unwrap();
    let stalled = [there.begin(Pool::Store).unwrap(), there.begin(Pool::Store).unwrap()];
    assert!(stalled[0].charge(100));
    let here: Vec<Account> = (0..3).map(|_| accounts.open(HERE).unwrap()).collect();
    let calls: Vec<Call> = here.iter().map(owed).collect();
    assert!(calls[0].charge(250) && calls[1].charge(250));
    assert!(!calls[2].charge(10), "its origin has half");
    let more: Vec<Call> = here
        .iter()
        .filter_map(|one| one.begin(Pool::Store))
        .inspect(|c| c.turn(Turn::Gateway))
        .collect();
    assert_eq!(more.len(), 2, "its origin has half of the places");
    assert!(!is_displaced(&there), "what it holds is of no use to them");
    // Its own are.
    calls[1].turn(Turn::Client);
    assert!(calls[2].charge(10) && is_displaced(&here[1]));
}

#[test]
fn who_has_two_connections_is_not_cut_off_in_a_call_while_others_are_idle() {
    let accounts = Accounts::new(AccountLimits { connections_max: 16, ..AMPLE });
    let origin = |number: u8| IpAddr::from([10, 0, 1, number]);
    let pair = [0; 2].map(|_| accounts.open(HERE).unwrap());
    let calls = pair.each_ref().map(owed);
    let idle: Vec<Account> = (0..14).map(|at| accounts.open(origin(at)).unwrap()).collect();
    idle.iter().for_each(|one| drop(owed(one)));
    // Each of another address.
    let come = |from, to| -> Vec<(Account, Call)> {
        let open = |at| accounts.open(origin(at)).expect("there is room");
        (from..to).map(open).map(|one| (one.clone(), owed(&one))).collect()
    };
    let busy = come(20, 34);
    assert!(pair.iter().all(|one| !is_displaced(one)) && idle.iter().all(is_displaced));
    // With nobody idle left the second of two is one more than another gets.
    let _last = come(40, 41);
    assert_eq!(pair.iter().filter(|one| is_displaced(one)).count(), 1);
    assert!(accounts.open(origin(50)).is_none() && busy.iter().all(|(one, _)| !is_displaced(one)));
    drop(calls);
}

#[test]
fn a_request_is_released_before_its_call_ends() {
    let accounts = Accounts::new(AccountLimits { bytes_max: 100, ..AMPLE });
    let account = accounts.open(HERE).unwrap();
    let call = owed(&account);
    assert!(call.charge_request(20) && call.charge_request(20) && call.charge(5));
    call.release_request();
    assert_eq!(accounts.books().shared().1, 5);
    call.release_request();
    drop(call);
    assert_eq!(accounts.books().shared().1, 0);
}

/// An answer is charged where it comes in, and once more by whoever makes the call's answer of it.
#[test]
fn an_answer_of_the_servers_is_counted_once_and_one_that_is_refused_not_at_all() {
    let accounts = Accounts::new(AccountLimits { bytes_max: 1_000, ..AMPLE });
    let account = accounts.open(HERE).unwrap();
    let bytes = || accounts.books().shared().1;
    let one = owed(&account);
    assert!(one.hold(100) && one.hold(100) && one.hold(60));
    assert_eq!(bytes(), 100);
    assert!(!one.hold(501), "a connection has half");
    assert_eq!(bytes(), 100);
    // The call's own answer takes its place.
    assert!(one.charge_answer(120));
    assert_eq!(bytes(), 120);
    let stream = owed(&account);
    assert!(stream.hold_page(200) && stream.hold_page(150) && !stream.hold_page(400));
    assert!(stream.charge_answer(10));
    assert_eq!(bytes(), 330, "a page stays charged for the next one");
    drop((one, stream));
    assert_eq!(bytes(), 0);
}
