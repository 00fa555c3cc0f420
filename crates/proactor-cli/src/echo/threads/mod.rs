//! `--model threads`: a thread for each client, and blocking calls.
//!
//! The oldest model and the simplest to read: what a session does next stands in the next line.
//! Nothing is shared between sessions, the scheduler does what the other models do by hand, and a
//! handler may block as long as it likes. What it costs is a stack and a task of the kernel's for
//! each client, and two context switches for each message that a client waits for.
//!
//! One thread accepts. Each client gets a thread with a small stack, which ends with the session.
//! A client that does not read blocks its own thread, and nothing else.

mod interrupt;
mod session;

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::args::EchoArgs;
use super::listen::Listening;
use super::pause::{self, Pause, RETRY_INTERVAL};
use super::stall::Handler;
use super::totals::{SessionCounts, Tally, Totals, Work};
use super::{announce_drain, cannot_start, first_line, print_line, print_totals, watch};
use crate::failure::Failure;

/// A session needs little of it, and thousands of threads need address space.
const STACK_BYTES: usize = 256 * 1024;
/// How often threads that have not noticed the drain are interrupted.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(20);
/// How long threads may take to end once their sockets are shut down.
const CUT_OFF_LIMIT: Duration = Duration::from_secs(2);

/// What the threads share.
#[derive(Debug)]
struct Server {
    listener: Socket,
    handler: Handler,
    maximum_sessions: usize,
    is_draining: AtomicBool,
    state: Mutex<State>,
    /// A session has ended, or the drain has begun.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    clients: HashMap<u64, Client>,
    sessions: SessionCounts,
    tally: Tally,
    is_cut_off: bool,
}

/// A client, as the rest of the program reaches it.
#[derive(Debug)]
struct Client {
    connection: Arc<Connection>,
    thread: JoinHandle<()>,
}

/// What a client's thread shares with the rest of the program.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    /// The thread ends the session because the server drains.
    has_noticed_drain: AtomicBool,
}

/// Serves until told to stop.
pub(super) fn run(args: &EchoArgs, listening: Listening) -> Result<(), Failure> {
    let line =
        first_line(listening.address(), "a thread for each client", "blocking sockets", args);
    // The path of a Unix socket is removed when `_path` goes, at the end.
    let (listener, _path) = listening.into_parts();
    let server = Arc::new(Server {
        listener,
        handler: args.handler(),
        maximum_sessions: args.max_sessions.unwrap_or(usize::MAX),
        is_draining: AtomicBool::new(false),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let _watch = {
        let server = Arc::clone(&server);
        watch(args, move || server.begin_drain())?
    };
    print_line(&line);

    server.accept_clients().map_err(|error| cannot_start(&error))?;
    server.drain(args);
    let state = server.state();
    let work = Work::Threads { receives: state.tally.completions };
    print_totals(args, &Totals::new(args.model, &state.tally, state.sessions, work));
    Ok(())
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }

    /// Accepts until the drain begins.
    fn accept_clients(self: &Arc<Self>) -> io::Result<()> {
        let mut pause = Pause::default();
        while self.await_room() {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    self.serve_client(socket, &mut pause)?;
                    if pause.is_on() {
                        self.listener.set_nonblocking(true)?;
                    }
                }
                Err(_) if self.is_draining() => break,
                Err(error) if pause::is_of_the_client(&error) => {}
                // In a pause accepts do not block: it has to be noticed that they go well again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    pause.went_well();
                    self.listener.set_nonblocking(pause.is_on())?;
                    if pause.is_on() {
                        self.await_change(RETRY_INTERVAL);
                    }
                }
                Err(error) => {
                    pause.failed(&error, self.state().sessions.open);
                    self.listener.set_nonblocking(true)?;
                    self.await_change(RETRY_INTERVAL);
                }
            }
        }
        Ok(())
    }

    /// Starts the thread of a client. Where the system has no thread left, the client waits until
    /// it has.
    fn serve_client(self: &Arc<Self>, socket: Socket, pause: &mut Pause) -> io::Result<()> {
        // Some systems hand the listener's mode on.
        socket.set_nonblocking(false)?;
        session::prepare(&socket)?;
        let connection = Arc::new(Connection { socket, has_noticed_drain: AtomicBool::new(false) });
        loop {
            // Locked until the thread is noted, so that it cannot end before.
            let mut state = self.state();
            if self.is_draining() {
                return Ok(());
            }
            let number = state.sessions.total;
            match self.spawn(number, &connection) {
                Ok(thread) => {
                    state.sessions.begin();
                    state.clients.insert(number, Client { connection, thread });
                    return Ok(());
                }
                Err(error) => pause.failed(&error, state.sessions.open),
            }
            drop(state);
            self.await_change(RETRY_INTERVAL);
        }
    }

    fn spawn(
        self: &Arc<Self>,
        number: u64,
        connection: &Arc<Connection>,
    ) -> io::Result<JoinHandle<()>> {
        let (server, connection) = (Arc::clone(self), Arc::clone(connection));
        let builder = thread::Builder::new().name("echo-client".into()).stack_size(STACK_BYTES);
        builder.spawn(move || {
            let tally = session::serve(&server, &connection);
            server.session_ended(number, connection, &tally);
        })
    }

    fn session_ended(&self, number: u64, connection: Arc<Connection>, tally: &Tally) {
        let mut state = self.state();
        let client = state.clients.remove(&number);
        state.sessions.open -= 1;
        state.tally.add(tally);
        // Closed under the lock: who finds room finds the descriptor free too.
        drop((client, connection));
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until one more session may begin; `false` where the server drains.
    fn await_room(&self) -> bool {
        let is_full =
            |state: &mut State| state.sessions.open >= self.maximum_sessions && !self.is_draining();
        let state = self.changed.wait_while(self.state(), is_full);
        drop(state.unwrap_or_else(PoisonError::into_inner));
        !self.is_draining()
    }

    /// Waits until a session ends, but not for long.
    fn await_change(&self, limit: Duration) {
        let state = self.state();
        if !self.is_draining() {
            drop(self.changed.wait_timeout(state, limit));
        }
    }

    /// Stops accepting; called on the thread that watches for signals.
    fn begin_drain(&self) {
        let state = self.state();
        self.is_draining.store(true, Ordering::SeqCst);
        stop_listening(&self.listener);
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the sessions, and cuts off those that take too long.
    fn drain(&self, args: &EchoArgs) {
        let deadline = Instant::now() + args.drain_timeout;
        let mut state = self.state();
        if state.sessions.open > 0 && !args.quiet {
            announce_drain(state.sessions.open, args.drain_timeout);
        }
        if let Err(error) = interrupt::prepare() {
            tracing::warn!(%error, "idle sessions cannot be interrupted");
        }
        while state.sessions.open > 0 && Instant::now() < deadline {
            for client in state.clients.values() {
                if !client.connection.has_noticed_drain.load(Ordering::SeqCst) {
                    interrupt::interrupt(&client.thread);
                }
            }
            state = self.await_sessions(state, deadline.min(Instant::now() + INTERRUPT_INTERVAL));
        }
        if state.sessions.open == 0 {
            return;
        }
        state.is_cut_off = true;
        state.tally.cut_off += state.sessions.open as u64;
        for client in state.clients.values() {
            // Where it is broken already, its thread is about to notice.
            let _ = client.connection.socket.shutdown(Shutdown::Both);
        }
        drop(self.await_sessions(state, Instant::now() + CUT_OFF_LIMIT));
    }

    /// Waits until every session is over, but not beyond `deadline`.
    fn await_sessions<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> MutexGuard<'a, State> {
        let mut state = state;
        while state.sessions.open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        state
    }

    /// Whether the drain's time is up: what fails now fails because of it.
    fn is_cut_off(&self) -> bool {
        self.state().is_cut_off
    }
}

/// Ends a blocked accept, and refuses further clients.
fn stop_listening(listener: &Socket) {
    #[cfg(unix)]
    // It fails where the socket does not listen any more: then there is nothing to end.
    let _ = listener.shutdown(Shutdown::Both);
    // A listening socket cannot be shut down elsewhere; a client of our own ends the accept.
    #[cfg(not(unix))]
    if let Ok(address) = listener.local_addr()
        && let Ok(client) = Socket::new(address.domain(), socket2::Type::STREAM, None)
    {
        let _ = client.connect_timeout(&address, RETRY_INTERVAL);
    }
}
