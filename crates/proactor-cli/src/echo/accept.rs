//! Accepting connections: how many accepts are outstanding, and when none should be.
//!
//! Accepts are held back ("idle") for one of two reasons.
//! - There are as many sessions as allowed. Each session that ends lets one accept go.
//! - An accept failed for lack of descriptors or memory. Then accepting *pauses*: one accept at a
//!   time tries again, when a session has ended and every 100 ms, so it never spins and it needs
//!   nobody's help to recover. The pause is over after 100 ms without a failure. It is logged when
//!   it begins and when it ends. Clients meanwhile wait in the backlog.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proactor::{CompletionPort, Error, ErrorKind, ListenSocket, Operation};

use super::server::KEY_ACCEPT_RETRY;
use super::totals::SessionCounts;

/// How long a pause lasts at least, and how often a paused server tries to accept.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Starts accepts, and counts the sessions that come of them.
#[derive(Debug)]
pub(crate) struct Acceptor {
    maximum_sessions: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once the server drains.
    listener: Option<ListenSocket>,
    idle: Vec<Operation>,
    outstanding: usize,
    sessions: SessionCounts,
    pause: Option<Pause>,
}

#[derive(Debug)]
struct Pause {
    began: Instant,
    failures: u64,
    /// An accept has failed since the timer was last started.
    has_failed_since_timer: bool,
}

impl Acceptor {
    /// An acceptor with `accepts` operations, none of them started.
    pub(crate) fn new(listener: ListenSocket, accepts: usize, maximum_sessions: usize) -> Self {
        Self {
            maximum_sessions,
            state: Mutex::new(State {
                listener: Some(listener),
                idle: (0..accepts).map(|_| Operation::new()).collect(),
                outstanding: 0,
                sessions: SessionCounts::default(),
                pause: None,
            }),
        }
    }

    /// Starts the first accepts.
    pub(crate) fn start(&self) -> Result<(), Error> {
        let mut state = self.state();
        match self.start_idle(&mut state) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// An accept brought a connection: counts a session and starts the next accept. `false` where
    /// the server drains, and the connection is to be dropped.
    pub(crate) fn accepted(&self, operation: Operation, port: &CompletionPort) -> bool {
        let mut state = self.state();
        state.outstanding -= 1;
        if state.listener.is_none() {
            return false;
        }
        state.idle.push(operation);
        state.sessions.begin();
        self.go_on(&mut state, port);
        true
    }

    /// An accept failed: starts it again, or pauses.
    pub(crate) fn failed(&self, operation: Operation, error: Error, port: &CompletionPort) {
        let mut state = self.state();
        state.outstanding -= 1;
        if state.listener.is_none() {
            return;
        }
        state.idle.push(operation);
        match error.kind() {
            // The client went away before it was accepted: nothing is wrong here.
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::TimedOut => {
                self.go_on(&mut state, port);
            }
            // Whatever else it is, trying again at once might fail again at once.
            _ => pause(&mut state, error, port),
        }
    }

    /// A session has ended: its descriptor is free, and so is its place. Says how many are left.
    pub(crate) fn session_ended(&self, port: &CompletionPort) -> usize {
        let mut state = self.state();
        state.sessions.open -= 1;
        self.go_on(&mut state, port);
        state.sessions.open
    }

    /// The retry timer has expired.
    pub(crate) fn retry(&self, timer: Operation, port: &CompletionPort) {
        let mut state = self.state();
        if state.listener.is_none() {
            return;
        }
        let Some(pause) = &mut state.pause else { return };
        if std::mem::take(&mut pause.has_failed_since_timer) {
            start_retry_timer(timer, port);
        } else {
            tracing::warn!(
                "accepting again after {:.1} s and {} failed accepts",
                pause.began.elapsed().as_secs_f64(),
                pause.failures
            );
            state.pause = None;
        }
        self.go_on(&mut state, port);
    }

    /// Stops accepting: closes the listening socket. Says how many sessions are open.
    pub(crate) fn drain(&self) -> usize {
        let mut state = self.state();
        state.pause = None;
        state.idle.clear();
        // The accepts in flight end with a packet each. Connections in the backlog are refused.
        state.listener = None;
        state.sessions.open
    }

    /// How many sessions there are and were.
    pub(crate) fn sessions(&self) -> SessionCounts {
        self.state().sessions
    }

    /// Starts as many accepts as may be outstanding now.
    fn go_on(&self, state: &mut State, port: &CompletionPort) {
        if let Some(error) = self.start_idle(state) {
            pause(state, error, port);
        }
    }

    fn start_idle(&self, state: &mut State) -> Option<Error> {
        let listener = state.listener.as_ref()?;
        while self.may_start(state.outstanding, state.sessions.open, state.pause.is_some()) {
            let operation = state.idle.pop()?;
            match listener.accept(operation) {
                Ok(_) => state.outstanding += 1,
                Err(rejected) => {
                    let error = rejected.error();
                    state.idle.push(rejected.into_operation());
                    return Some(error);
                }
            }
        }
        None
    }

    fn may_start(&self, outstanding: usize, open_sessions: usize, is_paused: bool) -> bool {
        let has_room = open_sessions + outstanding < self.maximum_sessions;
        has_room && (!is_paused || outstanding == 0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins a pause, or notes that it is not over yet.
fn pause(state: &mut State, error: Error, port: &CompletionPort) {
    if let Some(pause) = &mut state.pause {
        pause.failures += 1;
        pause.has_failed_since_timer = true;
        return;
    }
    tracing::warn!(
        "accepting pauses with {} sessions open: {error}; it is tried again every {} ms, and when \
         a session ends",
        state.sessions.open,
        RETRY_INTERVAL.as_millis()
    );
    state.pause = Some(Pause { began: Instant::now(), failures: 1, has_failed_since_timer: true });
    start_retry_timer(Operation::new(), port);
}

fn start_retry_timer(timer: Operation, port: &CompletionPort) {
    // Refused only where the port is closed, and then there is nothing to retry.
    let _ = port.start_timer(KEY_ACCEPT_RETRY, RETRY_INTERVAL, timer);
}
