//! Accepting, on the first loop, and giving the connections out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::poller::{LISTENER, Poller, Wanted, Watched};
use super::stream::{Listener, Stream};
use crate::echo::pause::{self, Pause};

/// How many connections are accepted before the sessions have their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// The listening socket, and why it may not be accepted on at the moment.
#[derive(Debug)]
pub(super) struct Acceptor {
    listener: Listener,
    shared: Arc<Shared>,
    pub(super) pause: Pause,
    /// A connection may be there.
    is_ready: bool,
    /// There are as many sessions as may be.
    is_full: bool,
    next_loop: usize,
}

impl Acceptor {
    /// An acceptor on this socket.
    pub(super) fn new(listener: Listener, shared: &Arc<Shared>) -> Self {
        Self {
            listener,
            shared: Arc::clone(shared),
            pause: Pause::default(),
            is_ready: true,
            is_full: false,
            next_loop: 0,
        }
    }

    /// Has the listener's readiness reported, where that is said once.
    pub(super) fn register(&mut self, poller: &Poller) -> io::Result<()> {
        match poller.registry() {
            Some(registry) => self.listener.register(registry, mio::Token(LISTENER)),
            None => Ok(()),
        }
    }

    /// The listener, where it has to be named at every call: unless accepting is held.
    pub(super) fn watched(&self) -> Option<Watched<'_>> {
        if self.pause.is_on() || self.is_full {
            return None;
        }
        let wanted = Wanted { read: true, write: false };
        Some(Watched { token: LISTENER, descriptor: self.listener.descriptor(), wanted })
    }

    /// A connection is there.
    pub(super) fn is_ready(&mut self) {
        self.is_ready = true;
    }

    /// Whether there is something to accept at once.
    pub(super) fn has_work(&self) -> bool {
        self.is_ready && !self.is_full && !self.pause.is_on()
    }

    /// Accepts what is there, and gives it out to the loops in turn.
    pub(super) fn accept(&mut self) {
        if !self.is_due() {
            return;
        }
        // In a pause and where there is no room the next session that ends wakes this loop.
        self.shared.accepting_is_held.store(true, Ordering::SeqCst);
        for _ in 0..ACCEPTS_PER_TURN {
            if self.shared.sessions().open >= self.shared.maximum_sessions {
                self.is_full = true;
                return;
            }
            self.is_full = false;
            if !self.is_ready && !self.pause.is_on() {
                break;
            }
            match self.listener.accept() {
                Ok(stream) => {
                    self.pause.succeeded();
                    self.give_out(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_ready = false;
                    self.pause.went_well();
                    break;
                }
                Err(error) if pause::is_of_the_client(&error) => {}
                Err(error) => {
                    self.is_ready = true;
                    self.pause.failed(&error, self.shared.sessions().open);
                    return;
                }
            }
        }
        if !self.pause.is_on() {
            self.shared.accepting_is_held.store(false, Ordering::SeqCst);
        }
    }

    /// Whether there may be something to accept, and room for it.
    fn is_due(&mut self) -> bool {
        if !self.pause.is_on() {
            return self.is_ready || self.is_full;
        }
        let sessions = *self.shared.sessions();
        self.pause.is_due(sessions)
    }

    fn give_out(&mut self, stream: Stream) {
        self.shared.sessions().begin();
        // The first loop is this one: it looks for them next.
        self.shared.loops[self.next_loop].connections().push(stream);
        if self.next_loop != 0 {
            self.shared.loops[self.next_loop].waker.wake();
        }
        self.next_loop = (self.next_loop + 1) % self.shared.loops.len();
    }
}
