//! The server: its routines, and what they share.
//!
//! The routines run on one thread and one at a time, so they share the server by reference count
//! and its state in cells. No cell is borrowed across an alertable wait: the only one is in the main
//! loop.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proactor::overlapped::{ApcQueue, Completed, Routine, StreamSocket};
use proactor::{Error, ErrorKind, Operation};

use super::accept::{Acceptor, Source};
use super::session::Session;
use crate::echo::announce_drain;
use crate::echo::kit::Kit;
use crate::echo::pause::RETRY_INTERVAL;
use crate::echo::stall::Handler;
use crate::echo::totals::{SessionCounts, Tally};

/// How often a draining server looks for sessions to close.
const DRAIN_TICK: Duration = Duration::from_millis(100);

/// How many connections an alternating server accepts before its routines have their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// What a server is told once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) accepts: usize,
    pub(super) maximum_sessions: usize,
    pub(super) drain_timeout: Duration,
    pub(super) handler: Handler,
    pub(super) quiet: bool,
}

/// An echo server on a queue of routines. A clone is the same server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    state: Rc<RefCell<State>>,
    settings: Settings,
}

#[derive(Debug)]
struct State {
    acceptor: Acceptor,
    sessions: HashMap<u64, Rc<RefCell<Session>>>,
    next_session: u64,
    kit: Kit,
    /// Until the drain begins.
    accept_routine: Option<Routine>,
    /// Set when the drain begins.
    drain_deadline: Option<Instant>,
}

impl Server {
    /// A server of the connections of `source`.
    pub(super) fn new(settings: Settings, source: Source) -> Self {
        let acceptor = Acceptor::new(source, settings.accepts, settings.maximum_sessions);
        let state = State {
            acceptor,
            sessions: HashMap::new(),
            next_session: 0,
            kit: Kit::new(),
            accept_routine: None,
            drain_deadline: None,
        };
        Self { state: Rc::new(RefCell::new(state)), settings }
    }

    /// Starts the first accepts.
    pub(super) fn start(&self) -> Result<(), Error> {
        let server = self.clone();
        let routine = Routine::new(move |completed| server.accept_ended(completed));
        let mut state = self.state.borrow_mut();
        state.accept_routine = Some(routine.clone());
        state.acceptor.start_idle(&routine)
    }

    /// Whether the drain is done.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.acceptor.is_stopped() && state.acceptor.sessions.open == 0
    }

    /// What has been counted.
    pub(super) fn counts(&self) -> (Tally, SessionCounts) {
        let state = self.state.borrow();
        (state.kit.tally, state.acceptor.sessions)
    }
}

/// Accepting.
impl Server {
    /// The routine of an accept.
    fn accept_ended(&self, mut completed: Completed<'_>) {
        let (queue, routine, error) = (completed.queue(), completed.routine(), completed.error());
        let operation = completed.take_operation().expect("an accept ends with its operation");
        let mut state = self.state.borrow_mut();
        state.kit.tally.completions += 1;
        let accepted = state.acceptor.accept_ended(operation);
        match (accepted, error) {
            (Some(accepted), _) => match queue.open(accepted) {
                Ok(stream) => self.begin_session(&mut state, stream),
                Err(refused) => {
                    state.kit.tally.failures += 1;
                    tracing::debug!(error = %refused.error(), "a connection was not taken");
                    state.acceptor.sessions.open -= 1;
                }
            },
            // The next accept is started when a session has ended, or after a while.
            (None, Some(error)) if !is_of_the_client(error) => {
                return self.pause(&mut state, queue, error);
            }
            (None, _) => {}
        }
        self.start_accepts(&mut state, queue, routine);
    }

    fn start_accepts(&self, state: &mut State, queue: &ApcQueue, routine: &Routine) {
        if let Err(error) = state.acceptor.start_idle(routine) {
            self.pause(state, queue, error);
        }
    }

    fn pause(&self, state: &mut State, queue: &ApcQueue, error: Error) {
        if state.acceptor.is_stopped() {
            return;
        }
        state.acceptor.pause.failed(&error, state.acceptor.sessions.open);
        if !std::mem::replace(&mut state.acceptor.has_retry_timer, true) {
            let server = self.clone();
            let routine = Routine::new(move |completed| server.retry(completed));
            start_timer(queue, RETRY_INTERVAL, Operation::new(), &routine);
        }
    }

    /// The routine of the timer that looks after a pause.
    fn retry(&self, mut completed: Completed<'_>) {
        let (queue, routine) = (completed.queue(), completed.routine());
        let timer = completed.take_operation().unwrap_or_default();
        let mut state = self.state.borrow_mut();
        if state.acceptor.is_stopped() {
            return;
        }
        // An accept that is still in flight has not failed since the last look.
        if state.acceptor.has_outstanding() {
            state.acceptor.pause.went_well();
        }
        self.go_on_accepting(&mut state, queue);
        state.acceptor.has_retry_timer = state.acceptor.pause.is_on();
        if state.acceptor.has_retry_timer {
            start_timer(queue, RETRY_INTERVAL, timer, routine);
        }
    }

    /// A session has ended, or the pause: there is room for an accept.
    fn go_on_accepting(&self, state: &mut State, queue: &ApcQueue) {
        if let Some(routine) = state.accept_routine.clone() {
            self.start_accepts(state, queue, &routine);
        }
    }

    /// Takes what connections there are, if that is done by turns; says whether it is.
    pub(super) fn accept_by_turns(&self, queue: &ApcQueue) -> bool {
        let mut state = self.state.borrow_mut();
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(stream) = state.acceptor.take(queue) else { break };
            self.begin_session(&mut state, stream);
        }
        state.acceptor.is_by_turns()
    }
}

/// Sessions.
impl Server {
    fn begin_session(&self, state: &mut State, stream: StreamSocket) {
        let number = state.next_session;
        state.next_session += 1;
        let session = Rc::new(RefCell::new(Session::vacant()));
        let routine = {
            let (server, session) = (self.clone(), Rc::clone(&session));
            Routine::new(move |completed| server.session_completed(number, &session, completed))
        };
        session.borrow_mut().open(stream, &routine, &mut state.kit);
        if session.borrow().is_over() {
            state.acceptor.sessions.open -= 1;
        } else {
            state.sessions.insert(number, session);
        }
    }

    /// The routine of everything that a session starts.
    fn session_completed(&self, number: u64, session: &RefCell<Session>, done: Completed<'_>) {
        let queue = done.queue();
        let mut state = self.state.borrow_mut();
        state.kit.tally.completions += 1;
        let mut session = session.borrow_mut();
        session.completed(done, self.settings.handler, &mut state.kit);
        if session.is_over() {
            self.session_ended(&mut state, number, queue);
        }
    }

    fn session_ended(&self, state: &mut State, number: u64, queue: &ApcQueue) {
        if state.sessions.remove(&number).is_some() {
            state.acceptor.sessions.open -= 1;
            self.go_on_accepting(state, queue);
        }
    }
}

/// The drain.
impl Server {
    /// Stops accepting and reading. The server is over when every session is.
    pub(super) fn begin_drain(&self, queue: &ApcQueue) {
        let mut state = self.state.borrow_mut();
        if state.drain_deadline.is_some() {
            return;
        }
        state.drain_deadline = Some(Instant::now() + self.settings.drain_timeout);
        state.acceptor.stop();
        state.accept_routine = None;
        let open_sessions = state.acceptor.sessions.open;
        if open_sessions == 0 {
            return;
        }
        if !self.settings.quiet {
            announce_drain(open_sessions, self.settings.drain_timeout);
        }
        state.sessions.values().for_each(|session| session.borrow_mut().drain());
        let server = self.clone();
        let routine = Routine::new(move |completed| server.drain_tick(completed));
        start_timer(queue, DRAIN_TICK, Operation::new(), &routine);
    }

    /// The routine of the timer that looks after the drain.
    fn drain_tick(&self, mut completed: Completed<'_>) {
        let (queue, routine) = (completed.queue(), completed.routine());
        let timer = completed.take_operation().unwrap_or_default();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let time_is_up = state.drain_deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let mut ended = Vec::new();
        for (&number, session) in &state.sessions {
            let mut session = session.borrow_mut();
            if time_is_up {
                session.cut_off(&mut state.kit);
            } else {
                session.close_if_quiet(&mut state.kit);
            }
            if session.is_over() {
                ended.push(number);
            }
        }
        for number in ended {
            self.session_ended(state, number, queue);
        }
        start_timer(queue, DRAIN_TICK, timer, routine);
    }
}

fn start_timer(queue: &ApcQueue, delay: Duration, timer: Operation, routine: &Routine) {
    // Refused only where the queue is gone, and then so is the server.
    let _ = queue.start_timer(delay, timer, routine);
}

/// Whether an accept failed because of its client: then nothing is wrong here.
fn is_of_the_client(error: Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::TimedOut
            | ErrorKind::Cancelled
    )
}
