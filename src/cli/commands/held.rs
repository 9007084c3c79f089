//! What `acervo lock` and `acervo elect` do with what they hold: they run a command under it, or
//! wait until they are told to stop.
//!
//! The command has to end before what it runs under is given back. When that is lost, others may
//! have it at once, so the command is asked to stop, and ended soon if it does not.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::Command;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;

use super::super::args::RequestArgs;
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::Object;
use super::super::units::{parse_any_duration, parse_duration};
use super::session::{builder, print, remark};
use crate::client::latch::Latch;
use crate::client::{Client, ClientError, Election, Lock, LockOptions, Timestamp};
use crate::process::stop_signals;
use crate::process::supervised::{Supervised, status_of, status_of_signal};
use crate::text::escape;

/// How often it is looked whether what a stopped command has started is gone, too: nobody is told
/// of the end of processes that are not his own.
const LEFT_PAUSE: Duration = Duration::from_millis(20);
/// The longest that a thread waits before it looks again.
const WAIT: Duration = Duration::from_secs(3600);

/// Flags of the commands that hold something.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// How long it is held for whoever is not heard of any more, from 1s to 366d
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_any_duration)]
    pub ttl: Duration,
    /// Give up when its turn has not come after so long; 0s does not wait
    #[arg(long, value_name = "TIME", value_parser = parse_any_duration)]
    pub wait: Option<Duration>,
    /// How long the command has to stop by itself when what it runs under is lost. Others may have
    /// that meanwhile, so the default leaves time to finish a request, and no more
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub kill_after: Duration,
    /// Run this, and give back what is held when it has ended
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

impl HoldArgs {
    /// A client of the servers that are asked.
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        builder(&self.request.group.servers, self.request.timeout).build()
    }

    /// How it is held, and waited for.
    pub(super) fn options(&self) -> LockOptions {
        LockOptions { ttl: self.ttl, wait: self.wait }
    }
}

/// What is held, by whichever command.
pub(super) enum Held {
    Lock(Lock),
    Election(Election),
}

impl Held {
    fn key(&self) -> &[u8] {
        match self {
            Held::Lock(lock) => lock.key(),
            Held::Election(leadership) => leadership.key(),
        }
    }

    fn fence(&self) -> Timestamp {
        match self {
            Held::Lock(lock) => lock.fence(),
            Held::Election(leadership) => leadership.fence(),
        }
    }

    /// What tells that it is lost, or given back.
    fn loss(&self) -> Arc<Latch> {
        match self {
            Held::Lock(lock) => lock.loss(),
            Held::Election(leadership) => leadership.loss(),
        }
    }

    fn release(self) -> Result<Option<Timestamp>, ClientError> {
        match self {
            Held::Lock(lock) => lock.unlock(),
            Held::Election(leadership) => leadership.resign(),
        }
    }

    /// Gives back what may be left of it once it is lost.
    fn abandon(self) {
        match self {
            Held::Lock(lock) => lock.abandon(),
            Held::Election(leadership) => leadership.abandon(),
        }
    }
}

/// What a command that holds something is told while it runs.
enum Told {
    Signal(i32),
    Lost,
}

/// The signals that come to this process, from when it begins to wait for its turn.
pub(super) struct Stops {
    told: mpsc::Receiver<Told>,
    teller: mpsc::Sender<Told>,
    /// Is given when a stop signal has come.
    notice: Arc<Latch>,
    /// The first of them; 0 before.
    first: Arc<AtomicI32>,
    /// How many have come.
    count: Arc<AtomicUsize>,
}

impl Stops {
    /// Takes signals from now on.
    pub(super) fn listen() -> Result<Stops, CommandError> {
        let refused = |error: io::Error| ClientError::Thread(error.to_string());
        let stops = stop_signals();
        let signals = stops.iter().copied().chain([SIGCHLD]);
        let mut signals = Signals::new(signals).map_err(refused)?;
        let (teller, told) = mpsc::channel();
        let (notice, first) = (Arc::new(Latch::default()), Arc::new(AtomicI32::new(0)));
        let (tell, given, number) = (teller.clone(), Arc::clone(&notice), Arc::clone(&first));
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let listen = move || {
            for signal in signals.forever() {
                if stops.contains(&signal) {
                    let _ = number.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
                    counted.fetch_add(1, Ordering::SeqCst);
                    given.open();
                }
                // The one who is told ends with the process.
                let _ = tell.send(Told::Signal(signal));
            }
        };
        let thread = thread::Builder::new().name("acervo-signal".into());
        thread.spawn(listen).map_err(refused)?;
        Ok(Stops { told, teller, notice, first, count })
    }

    /// Is done when this process is told to stop.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + use<> {
        self.notice.opened()
    }

    /// The stop signal that has come first.
    fn signal(&self) -> Option<i32> {
        Some(self.first.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    /// Tells also when this is lost, or given back.
    fn tell_loss(&self, loss: Arc<Latch>) -> Result<(), CommandError> {
        let tell = self.teller.clone();
        let wait = move || {
            while !loss.wait_for(WAIT) {}
            let _ = tell.send(Told::Lost);
        };
        let thread = thread::Builder::new().name("acervo-loss".into());
        let refused = |error: io::Error| ClientError::Thread(error.to_string());
        thread.spawn(wait).map(drop).map_err(refused)?;
        Ok(())
    }

    /// What comes next, within a time if there is one.
    fn next(&self, time: Option<Duration>) -> Option<Told> {
        match time {
            Some(time) => self.told.recv_timeout(time).ok(),
            None => self.told.recv().ok(),
        }
    }

    /// Ends the process when it is told to stop for the second time: whoever does so will not wait
    /// until something is given back that nobody takes. The first time does not count, also where
    /// nobody has heard of it yet.
    fn stop_at_once(self) {
        let thread = thread::Builder::new().name("acervo-stop".into());
        // Without it the time of a request is waited for.
        let _ = thread.spawn(move || {
            while let Some(told) = self.next(None) {
                if let Told::Signal(signal) = told
                    && signal != SIGCHLD
                    && self.count.load(Ordering::SeqCst) > 1
                {
                    std::process::exit(status_of_signal(signal).into());
                }
            }
        });
    }
}

/// How holding has ended.
enum End {
    /// It is still held.
    Ended(CommandOutcome),
    Lost,
}

/// Holds until the command has ended, or until told to stop.
pub(super) fn hold(
    args: &HoldArgs,
    stops: Stops,
    held: Result<Held, ClientError>,
    out: &mut dyn Write,
) -> Result<CommandOutcome, CommandError> {
    let held = match (held, stops.signal()) {
        (Ok(held), None) => held,
        (held, Some(signal)) => {
            stops.stop_at_once();
            // It has come just when it was given up.
            if let Ok(held) = held {
                held.abandon();
            }
            return Ok(CommandOutcome::Ended(status_of_signal(signal)));
        }
        (Err(error @ ClientError::StillTaken { .. }), None) => {
            remark(&error);
            return Ok(CommandOutcome::Conflict);
        }
        (Err(error), None) => return Err(error.into()),
    };
    let (fence, key) = (held.fence(), escape(held.key()).to_string());
    let end = stops.tell_loss(held.loss()).and_then(|()| match args.command.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command.env("ACERVO_FENCE", fence.to_string()).env("ACERVO_LOCK_KEY", &key);
            run(command, args.kill_after, &stops)
        }
        None => {
            let object = Object::default().bytes("key", held.key()).timestamp("fence", fence);
            print(out, &args.request, Some(&format_args!("{key}\t{fence}")), &object)?;
            out.flush().map_err(CommandError::Output)?;
            Ok(wait(&stops))
        }
    });
    stops.stop_at_once();
    let outcome = match end {
        Ok(End::Lost) => {
            held.abandon();
            return Err(ClientError::ContenderGone(key).into());
        }
        Ok(End::Ended(outcome)) => Ok(outcome),
        Err(error) => Err(error),
    };
    match held.release() {
        Ok(Some(_)) => {}
        // It was lost at the last moment.
        Ok(None) => return Err(ClientError::ContenderGone(key).into()),
        Err(error) => {
            remark(&format_args!("'{key}' goes when its lease ends, not before: {error}"));
        }
    }
    outcome
}

/// Waits until told to stop, or until it is lost.
fn wait(stops: &Stops) -> End {
    loop {
        match stops.next(None) {
            Some(Told::Signal(SIGCHLD)) => {}
            Some(Told::Signal(_)) | None => return End::Ended(CommandOutcome::Done),
            Some(Told::Lost) => return End::Lost,
        }
    }
}

/// Runs the command to its end.
fn run(command: Command, kill_after: Duration, stops: &Stops) -> Result<End, CommandError> {
    let mut command = Supervised::start(command).map_err(CommandError::NotRun)?;
    loop {
        if let Some(ended) = command.ended().map_err(CommandError::NotRun)? {
            return Ok(End::Ended(CommandOutcome::Ended(status_of(ended))));
        }
        match stops.next(None) {
            Some(Told::Signal(SIGCHLD)) | None => {}
            Some(Told::Signal(signal)) => command.pass_on(signal),
            Some(Told::Lost) => {
                stop(&mut command, kill_after, stops).map_err(CommandError::NotRun)?;
                return Ok(End::Lost);
            }
        }
    }
}

/// Stops the command, and what it has started, by its own hand or by force.
fn stop(command: &mut Supervised, kill_after: Duration, stops: &Stops) -> io::Result<()> {
    let until = Instant::now() + kill_after;
    command.stop();
    loop {
        let has_ended = command.ended()?.is_some();
        if has_ended && !command.is_left() {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let pause = if has_ended { LEFT_PAUSE } else { left };
        if let Some(Told::Signal(signal)) = stops.next(Some(pause.min(left)))
            && signal != SIGCHLD
        {
            command.pass_on(signal);
        }
    }
    remark(&format_args!("the command has not stopped within {kill_after:?}, and is killed"));
    command.kill();
    while command.ended()?.is_none() {
        // Nothing survives SIGKILL, but it may take its time where a disk hangs.
        stops.next(None);
    }
    Ok(())
}
