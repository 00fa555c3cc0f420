//! The server: workers that dequeue packets, and what each kind of packet means.
//!
//! Every worker runs [`Server::serve`], and any worker may get any packet. What a packet is about
//! is told by its key (a session's number, or one of the keys below) and its kind.

use std::sync::{MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use proactor::{
    Completion, CompletionPort, DequeueError, Error, ListenSocket, Operation, OperationKind,
};

use super::accept::Acceptor;
use super::kit::Kit;
use super::meter::{Meter, Meters};
use super::session::{Arrival, Session};
use super::stall::Handler;
use super::table::{SESSION_LIMIT, SessionTable};
use super::totals::{SessionCounts, Tally};

/// The listening socket's packets.
pub(crate) const KEY_LISTENER: usize = usize::MAX;
/// The timer that ends or prolongs a pause in accepting.
pub(crate) const KEY_ACCEPT_RETRY: usize = usize::MAX - 1;
/// Posted to begin the drain.
pub(crate) const KEY_DRAIN: usize = usize::MAX - 2;
/// The timer that looks after the drain.
const KEY_DRAIN_TICK: usize = usize::MAX - 3;

/// How often a draining server looks for sessions to close.
const DRAIN_TICK: Duration = Duration::from_millis(100);

/// What a server is told once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) accepts: usize,
    pub(crate) maximum_sessions: Option<usize>,
    pub(crate) drain_timeout: Duration,
    pub(crate) handler: Handler,
    pub(crate) quiet: bool,
    /// Whether workers measure for `--status`.
    pub(crate) is_metered: bool,
}

/// An echo server on a port.
#[derive(Debug)]
pub(crate) struct Server {
    port: CompletionPort,
    acceptor: Acceptor,
    sessions: SessionTable,
    settings: Settings,
    meters: Meters,
    /// Set once, when the drain begins.
    drain_deadline: OnceLock<Instant>,
}

impl Server {
    /// A server that accepts on `listener`, which is associated under [`KEY_LISTENER`].
    pub(crate) fn new(port: CompletionPort, listener: ListenSocket, settings: Settings) -> Self {
        let maximum_sessions = settings.maximum_sessions.unwrap_or(SESSION_LIMIT);
        Self {
            port,
            acceptor: Acceptor::new(listener, settings.accepts, maximum_sessions),
            sessions: SessionTable::new(),
            settings,
            meters: Meters::new(),
            drain_deadline: OnceLock::new(),
        }
    }

    /// The port that it serves.
    pub(crate) fn port(&self) -> &CompletionPort {
        &self.port
    }

    /// What the workers measure.
    pub(crate) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// The client of a session, if it has one now.
    pub(crate) fn peer_of(&self, session: usize) -> Option<String> {
        self.sessions.used().contains(&session).then(|| self.sessions.lock(session).peer())?
    }

    /// Starts accepting.
    pub(crate) fn start(&self) -> Result<(), Error> {
        self.acceptor.start()
    }

    /// How many sessions there are and were.
    pub(crate) fn session_counts(&self) -> SessionCounts {
        self.acceptor.sessions()
    }

    /// Handles packets until the server has ended, and says what this thread has done. Calls
    /// `entered` once the thread belongs to the port.
    ///
    /// # Errors
    /// Where the system refuses this thread what waiting takes: that is at its first dequeue.
    pub(crate) fn serve(&self, entered: impl FnOnce()) -> Result<Tally, DequeueError> {
        let mut kit = Kit::new();
        let meter = self.settings.is_metered.then(|| self.meters.add());
        match self.port.dequeue(Some(Duration::ZERO)) {
            Ok(completion) => self.handle(completion, &mut kit),
            Err(DequeueError::TimedOut | DequeueError::Closed) => {}
            Err(error) => return Err(error),
        }
        entered();
        loop {
            match self.port.dequeue(None) {
                Ok(completion) => match &meter {
                    None => self.handle(completion, &mut kit),
                    Some(meter) => self.handle_metered(completion, &mut kit, meter),
                },
                Err(DequeueError::Closed) => {
                    // A worker's buffers go with its thread: who leaves first sees all of them.
                    kit.tally.pool_bytes = self.port.counters().pool_bytes;
                    return Ok(kit.tally);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn handle_metered(&self, completion: Completion, kit: &mut Kit, meter: &Meter) {
        let session = Some(completion.key()).filter(|key| *key < SESSION_LIMIT);
        let begin = self.meters.is_watched().then(Instant::now);
        self.handle(completion, kit);
        meter.count(&kit.tally);
        if let Some(begin) = begin {
            meter.handled(session, begin.elapsed());
        }
    }

    fn handle(&self, mut completion: Completion, kit: &mut Kit) {
        kit.tally.completions += 1;
        match completion.kind() {
            OperationKind::RecvContinuous => self.received(completion, kit),
            OperationKind::Send => {
                kit.tally.bytes_sent += completion.bytes() as u64;
                keep_operation(&mut completion, kit);
                self.with_session(completion.key(), |session| {
                    session.sent(completion.error(), kit);
                });
            }
            OperationKind::Disconnect => {
                keep_operation(&mut completion, kit);
                self.with_session(completion.key(), |session| {
                    session.disconnected(completion.error(), kit);
                });
            }
            OperationKind::Accept => self.accepted(completion, kit),
            OperationKind::Timer if completion.key() == KEY_ACCEPT_RETRY => {
                let timer = completion.into_operation().unwrap_or_default();
                self.acceptor.retry(timer, &self.port);
            }
            OperationKind::Timer => {
                let timer = completion.into_operation().unwrap_or_default();
                self.drain_tick(timer, kit);
            }
            OperationKind::Post => self.begin_drain(),
            kind => unreachable!("no {} is ever started here", kind.name()),
        }
    }

    fn received(&self, mut completion: Completion, kit: &mut Kit) {
        let arrival = match completion.take_chunk() {
            Some(chunk) => {
                // Before the lock: the session's next chunk must not have to wait here too.
                self.settings.handler.handle(&chunk);
                Arrival::Chunk(chunk)
            }
            None => Arrival::End(completion.error()),
        };
        keep_operation(&mut completion, kit);
        self.with_session(completion.key(), |session| {
            session.received(completion.sequence(), arrival, kit);
        });
    }

    fn accepted(&self, completion: Completion, kit: &mut Kit) {
        let error = completion.error();
        let mut operation = completion.into_operation().expect("an accept ends with its packet");
        let connection = operation.take_accepted();
        let Some(connection) = connection else {
            if let Some(error) = error {
                self.acceptor.failed(operation, error, &self.port);
            }
            return;
        };
        if !self.acceptor.accepted(operation, &self.port) {
            return;
        }
        // On Linux it is inherited from the listening socket.
        #[cfg(not(target_os = "linux"))]
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "a session keeps Nagle's delay");
        }
        let Some(number) = self.sessions.reserve() else {
            self.session_ended();
            return;
        };
        // Packets of the new session can be dequeued by others from the first start on: they wait
        // for this lock until the session is complete.
        let mut session = self.sessions.lock(number);
        match self.port.associate(connection, number) {
            Ok(stream) => session.open(stream, kit),
            Err(refused) => {
                kit.tally.failures += 1;
                tracing::debug!(error = %refused.error(), "a connection was not taken by the port");
            }
        }
        // Either the sweep that begins the drain finds this session, or it is noticed here.
        if self.drain_deadline.get().is_some() {
            session.drain();
        }
        self.settle(number, session);
    }

    fn with_session(&self, number: usize, handle: impl FnOnce(&mut Session)) {
        let mut session = self.sessions.lock(number);
        handle(&mut session);
        self.settle(number, session);
    }

    /// Unlocks a session, and gives up its number if it is over.
    fn settle(&self, number: usize, session: MutexGuard<'_, Session>) {
        let is_over = session.is_over();
        drop(session);
        if is_over {
            self.sessions.release(number);
            self.session_ended();
        }
    }

    fn session_ended(&self) {
        let sessions_left = self.acceptor.session_ended(&self.port);
        if sessions_left == 0 && self.drain_deadline.get().is_some() {
            self.port.close();
        }
    }

    /// Stops accepting and reading. Workers go on until every session is over, which closes the
    /// port, which ends the workers.
    fn begin_drain(&self) {
        if self.drain_deadline.set(Instant::now() + self.settings.drain_timeout).is_err() {
            return;
        }
        let open_sessions = self.acceptor.drain();
        if open_sessions == 0 {
            self.port.close();
            return;
        }
        if !self.settings.quiet {
            super::announce_drain(open_sessions, self.settings.drain_timeout);
        }
        for number in self.sessions.used() {
            self.sessions.lock(number).drain();
        }
        self.start_drain_tick(Operation::new());
    }

    fn drain_tick(&self, timer: Operation, kit: &mut Kit) {
        let time_is_up = self.drain_deadline.get().is_some_and(|at| Instant::now() >= *at);
        for number in self.sessions.used() {
            let mut session = self.sessions.lock(number);
            if session.is_over() {
                continue;
            }
            if time_is_up {
                session.cut_off(kit);
            } else {
                session.close_if_quiet(kit);
            }
            self.settle(number, session);
        }
        self.start_drain_tick(timer);
    }

    fn start_drain_tick(&self, timer: Operation) {
        // Refused only where the port is closed: then the drain is done.
        let _ = self.port.start_timer(KEY_DRAIN_TICK, DRAIN_TICK, timer);
    }
}

/// Keeps the operation of a packet, if this is its last, and gives up the buffers that it owns.
fn keep_operation(completion: &mut Completion, kit: &mut Kit) {
    if let Some(operation) = completion.take_operation() {
        kit.keep_operation(operation);
    }
}
