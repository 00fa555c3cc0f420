//! `--model readiness`: event loops that ask which sockets are ready, and then do what does not
//! block.
//!
//! One loop accepts and gives the connections out in turn; each loop serves its own with
//! non-blocking calls. That is the shape of most servers on Unix. With epoll (through mio) there is
//! a loop per CPU, readiness is reported once when it begins (edge-triggered), and a session is
//! registered once in its life. `--readiness poll` and `--readiness select` are the loops of the
//! books: every descriptor is handed to the system at every call, and looked at by it.
//!
//! Bytes are read into one buffer of the loop and written from it at once. A session has memory of
//! its own only while its client does not take what was written, and is not read meanwhile: so a
//! slow reader costs at most one such buffer. A handler that blocks holds up every session of its
//! loop; that is the model's price.
//!
//! | module | what it holds |
//! |---|---|
//! | `event_loop` | one loop: events, sessions, the drain |
//! | `acceptor` | accepting, on the first loop |
//! | `session` | one connection: what is done when it is ready |
//! | `stream` | listening and connected sockets, TCP or Unix |
//! | `poller`, `select` | what says which sockets are ready |

mod acceptor;
mod event_loop;
mod poller;
#[cfg(unix)]
mod select;
mod session;
mod stream;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::args::{EchoArgs, Readiness};
use super::listen::Listening;
use super::stall::Handler;
use super::totals::{SessionCounts, Tally, Totals, Work};
use super::{announce_drain, cannot_start, first_line, print_line, print_totals, watch};
use crate::failure::Failure;
use acceptor::Acceptor;
use event_loop::EventLoop;
use poller::{Poller, Waker};
use stream::{Listener, Stream};

/// Descriptors that are none of clients: standard streams, the listener, wake-ups.
#[cfg(unix)]
const OTHER_DESCRIPTORS: usize = 24;

/// What the loops share.
#[derive(Debug)]
struct Shared {
    handler: Handler,
    maximum_sessions: usize,
    drain_timeout: Duration,
    quiet: bool,
    sessions: Mutex<SessionCounts>,
    loops: Box<[Mailbox]>,
    /// The first loop waits for a session to end: for its place, or for its descriptor.
    accepting_is_held: AtomicBool,
    /// Set by the signal; the first loop stops accepting.
    drain_is_wanted: AtomicBool,
    /// Set by the first loop once nothing is accepted any more; all loops drain.
    drain_deadline: OnceLock<Instant>,
}

/// How others reach a loop.
#[derive(Debug)]
struct Mailbox {
    waker: Waker,
    connections: Mutex<Vec<Stream>>,
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, SessionCounts> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has ended, and its descriptor is closed.
    fn session_ended(&self) {
        self.sessions().open -= 1;
        if self.accepting_is_held.load(Ordering::SeqCst) {
            self.loops[0].waker.wake();
        }
    }

    /// Nothing is accepted any more: every loop ends its sessions.
    fn begin_drain(&self) {
        // Only the first loop does it, once.
        let _ = self.drain_deadline.set(Instant::now() + self.drain_timeout);
        let open_sessions = self.sessions().open;
        if open_sessions > 0 && !self.quiet {
            announce_drain(open_sessions, self.drain_timeout);
        }
        self.loops.iter().for_each(|mailbox| mailbox.waker.wake());
    }
}

impl Mailbox {
    fn connections(&self) -> MutexGuard<'_, Vec<Stream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until told to stop.
pub(super) fn run(args: &EchoArgs, listening: Listening) -> Result<(), Failure> {
    let readiness = args.readiness.unwrap_or(Readiness::Epoll);
    let loops = args.workers.unwrap_or_else(|| default_loops(readiness));
    let maximum_sessions = maximum_sessions(args, readiness)?;
    let threads = if loops == 1 { "1 event loop".into() } else { format!("{loops} event loops") };
    let line = first_line(listening.address(), &threads, poller::name(readiness), args);

    let is_unix = listening.is_unix();
    // The path of a Unix socket is removed when `_path` goes, at the end.
    let (socket, _path) = listening.into_parts();
    let listener = Listener::new(socket, is_unix).map_err(|error| cannot_start(&error))?;
    let (pollers, mailboxes) = open(readiness, loops).map_err(|error| cannot_start(&error))?;
    let shared = Arc::new(Shared {
        handler: args.handler(),
        maximum_sessions,
        drain_timeout: args.drain_timeout,
        quiet: args.quiet,
        sessions: Mutex::default(),
        loops: mailboxes,
        accepting_is_held: AtomicBool::new(false),
        drain_is_wanted: AtomicBool::new(false),
        drain_deadline: OnceLock::new(),
    });
    let watch = {
        let shared = Arc::clone(&shared);
        watch(args, move || {
            shared.drain_is_wanted.store(true, Ordering::SeqCst);
            shared.loops[0].waker.wake();
        })?
    };
    let threads = start_loops(&shared, pollers, listener).map_err(|error| cannot_start(&error))?;
    print_line(&line);

    let (tally, wait_calls) = join(threads)?;
    let work = Work::Readiness { events: tally.completions, wait_calls, refused: tally.refused };
    print_totals(args, &Totals::new(args.model, &tally, *shared.sessions(), work));
    drop(watch);
    Ok(())
}

fn default_loops(readiness: Readiness) -> usize {
    match readiness {
        Readiness::Epoll => thread::available_parallelism().map_or(1, usize::from),
        // The books have one loop, and so every descriptor in one call.
        #[cfg(unix)]
        Readiness::Poll | Readiness::Select => 1,
    }
}

/// How many sessions there may be at once.
fn maximum_sessions(args: &EchoArgs, readiness: Readiness) -> Result<usize, Failure> {
    #[cfg(unix)]
    if readiness == Readiness::Select {
        let most = select::DESCRIPTORS - OTHER_DESCRIPTORS;
        if args.max_sessions.is_some_and(|sessions| sessions > most) {
            return Err(Failure::usage(format!(
                "--max-sessions: select cannot watch descriptors from {} on, which leaves room \
                 for {most} sessions; poll and epoll have no such limit",
                select::DESCRIPTORS
            )));
        }
    }
    let _ = readiness;
    Ok(args.max_sessions.unwrap_or(usize::MAX))
}

fn open(readiness: Readiness, loops: usize) -> io::Result<(Vec<Poller>, Box<[Mailbox]>)> {
    let mut pollers = Vec::with_capacity(loops);
    let mut mailboxes = Vec::with_capacity(loops);
    for _ in 0..loops {
        let (poller, waker) = Poller::open(readiness)?;
        pollers.push(poller);
        mailboxes.push(Mailbox { waker, connections: Mutex::default() });
    }
    Ok((pollers, mailboxes.into()))
}

type Thread = thread::JoinHandle<io::Result<(Tally, u64)>>;

fn start_loops(
    shared: &Arc<Shared>,
    pollers: Vec<Poller>,
    listener: Listener,
) -> io::Result<Vec<Thread>> {
    let mut listener = Some(listener);
    let mut threads = Vec::with_capacity(pollers.len());
    for (index, poller) in pollers.into_iter().enumerate() {
        let acceptor = listener.take().map(|listener| Acceptor::new(listener, shared));
        let event_loop = EventLoop::new(Arc::clone(shared), index, poller, acceptor)?;
        let builder = thread::Builder::new().name(format!("echo-{index}"));
        threads.push(builder.spawn(move || event_loop.run())?);
    }
    Ok(threads)
}

fn join(threads: Vec<Thread>) -> Result<(Tally, u64), Failure> {
    let mut sum = Tally::default();
    let mut wait_calls = 0;
    for thread in threads {
        match thread.join() {
            Ok(Ok((tally, calls))) => {
                sum.add(&tally);
                wait_calls += calls;
            }
            Ok(Err(error)) => {
                return Err(Failure::new(format!("an event loop cannot wait: {error}")));
            }
            Err(_) => return Err(Failure::new("an event loop panicked")),
        }
    }
    Ok((sum, wait_calls))
}
