//! One event loop: waits for readiness, and lets the sessions that are ready go on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::Token;

use super::Shared;
use super::acceptor::Acceptor;
use super::poller::{Event, LISTENER, Poller, WAKE, Watched};
use super::session::{Lent, Next, Session};
use super::stream::Stream;
use crate::echo::pause::RETRY_INTERVAL;
use crate::echo::totals::Tally;

/// The most that one call receives.
const BUFFER_BYTES: usize = 64 * 1024;
/// How often a draining loop looks for sessions to close.
const DRAIN_TICK: Duration = Duration::from_millis(100);

/// A loop, which is run by one thread.
pub(super) struct EventLoop {
    shared: Arc<Shared>,
    index: usize,
    poller: Poller,
    /// On the first loop, until the drain.
    acceptor: Option<Acceptor>,
    /// By token.
    sessions: Vec<Option<Session>>,
    vacant: Vec<usize>,
    /// Tokens of sessions that have had their turn and are still ready.
    again: Vec<usize>,
    buffer: Box<[u8]>,
    tally: Tally,
    wait_calls: u64,
    /// When a draining loop looks next.
    next_tick: Option<Instant>,
    has_warned: bool,
}

impl EventLoop {
    /// Loop number `index`; the one with an acceptor accepts.
    pub(super) fn new(
        shared: Arc<Shared>,
        index: usize,
        poller: Poller,
        mut acceptor: Option<Acceptor>,
    ) -> io::Result<Self> {
        if let Some(acceptor) = &mut acceptor {
            acceptor.register(&poller)?;
        }
        Ok(Self {
            shared,
            index,
            poller,
            acceptor,
            sessions: Vec::new(),
            vacant: Vec::new(),
            again: Vec::new(),
            buffer: vec![0; BUFFER_BYTES].into(),
            tally: Tally::default(),
            wait_calls: 0,
            next_tick: None,
            has_warned: false,
        })
    }

    /// Serves until the drain is over. Gives what it has counted, and how often it has waited.
    pub(super) fn run(mut self) -> io::Result<(Tally, u64)> {
        let mut events = Vec::new();
        loop {
            self.wait(&mut events)?;
            self.wait_calls += 1;
            for &event in &events {
                match event.token {
                    WAKE => {}
                    LISTENER => self.acceptor.iter_mut().for_each(Acceptor::is_ready),
                    token => self.ready(token, event),
                }
            }
            self.go_on_again();
            if let Some(acceptor) = &mut self.acceptor {
                acceptor.accept();
            }
            self.take_connections();
            self.drain();
            if self.is_over() {
                return Ok((self.tally, self.wait_calls));
            }
        }
    }

    fn wait(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = self.timeout();
        let listener = self.acceptor.as_ref().and_then(Acceptor::watched);
        let sessions = self.sessions.iter().enumerate().filter_map(|(token, session)| {
            let session = session.as_ref()?;
            let descriptor = session.stream().descriptor();
            Some(Watched { token, descriptor, wanted: session.wanted() })
        });
        self.poller.wait(timeout, listener.into_iter().chain(sessions), events)
    }

    fn timeout(&self) -> Option<Duration> {
        let accepts = self.acceptor.as_ref();
        if !self.again.is_empty() || accepts.is_some_and(Acceptor::has_work) {
            return Some(Duration::ZERO);
        }
        match self.next_tick {
            Some(tick) => Some(tick.saturating_duration_since(Instant::now())),
            None if accepts.is_some_and(|acceptor| acceptor.pause.is_on()) => Some(RETRY_INTERVAL),
            None => None,
        }
    }

    /// A socket is ready. Events of a session that has gone meet the next one with its token, which
    /// finds that nothing is there.
    fn ready(&mut self, token: usize, event: Event) {
        self.tally.completions += 1;
        if let Some(Some(session)) = self.sessions.get_mut(token) {
            session.note(event);
            // One that is still to have its turn has it below.
            if !session.is_queued {
                self.go_on(token);
            }
        }
    }

    /// Lets those go on that had their turn in the round before, and were still ready.
    fn go_on_again(&mut self) {
        let mut again = std::mem::take(&mut self.again);
        for token in again.drain(..) {
            if let Some(Some(session)) = self.sessions.get_mut(token)
                && std::mem::take(&mut session.is_queued)
            {
                self.go_on(token);
            }
        }
        if self.again.is_empty() {
            self.again = again;
        }
    }

    fn go_on(&mut self, token: usize) {
        let Some(Some(session)) = self.sessions.get_mut(token) else { return };
        let mut lent = Lent {
            buffer: &mut self.buffer,
            handler: self.shared.handler,
            tally: &mut self.tally,
            is_edge_triggered: self.poller.is_edge_triggered(),
        };
        match session.go_on(&mut lent) {
            Next::Waits => {}
            Next::Again if session.is_queued => {}
            Next::Again => {
                session.is_queued = true;
                self.again.push(token);
            }
            Next::Over => self.end(token),
        }
    }

    /// Closes a session.
    fn end(&mut self, token: usize) {
        // Closing the socket takes it out of the epoll set too.
        self.sessions[token] = None;
        self.vacant.push(token);
        self.shared.session_ended();
    }

    /// Takes the connections in that were given to this loop.
    fn take_connections(&mut self) {
        let connections = std::mem::take(&mut *self.shared.loops[self.index].connections());
        for stream in connections {
            self.begin(stream);
        }
    }

    fn begin(&mut self, mut stream: Stream) {
        if !self.poller.can_watch(stream.descriptor()) {
            self.refuse(stream);
            return;
        }
        let token = self.vacant.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() - 1
        });
        if let Some(registry) = self.poller.registry()
            && let Err(error) = stream.register(registry, Token(token))
        {
            self.tally.count_failure(&error);
            drop(stream);
            self.vacant.push(token);
            self.shared.session_ended();
            return;
        }
        let mut session = Session::new(stream);
        if self.next_tick.is_some() {
            session.drain();
        }
        self.sessions[token] = Some(session);
        self.go_on(token);
    }

    /// Turns a client away that cannot be watched.
    fn refuse(&mut self, stream: Stream) {
        self.tally.refused += 1;
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                "clients are refused: select cannot watch descriptors from 1024 on; poll and epoll \
                 have no such limit"
            );
        }
        drop(stream);
        self.shared.session_ended();
    }

    /// Begins the drain, or goes on with it.
    fn drain(&mut self) {
        if self.acceptor.is_some() && self.shared.drain_is_wanted.load(Ordering::SeqCst) {
            // Connections in the backlog are refused; what was accepted has been given out.
            self.acceptor = None;
            self.shared.begin_drain();
        }
        let Some(&deadline) = self.shared.drain_deadline.get() else { return };
        let Some(tick) = self.next_tick else {
            self.next_tick = Some(Instant::now() + DRAIN_TICK);
            // Connections that were given to this loop before the drain began are in it by now.
            self.take_connections();
            for token in 0..self.sessions.len() {
                if let Some(session) = &mut self.sessions[token] {
                    session.drain();
                    self.go_on(token);
                }
            }
            return;
        };
        let now = Instant::now();
        if now < tick {
            return;
        }
        self.next_tick = Some(now + DRAIN_TICK);
        for token in 0..self.sessions.len() {
            let Some(session) = &mut self.sessions[token] else { continue };
            if now >= deadline {
                self.tally.cut_off += 1;
                self.end(token);
            } else if session.is_quiet() {
                self.end(token);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.next_tick.is_some() && self.vacant.len() == self.sessions.len()
    }
}
