//! Where connections come from: accepts with a routine, or a non-blocking accept by turns.

use std::io;

use proactor::overlapped::{ApcQueue, ListenSocket, Routine, StreamSocket};
use proactor::{Accepted, Error, Operation};
use socket2::Socket;

use crate::echo::pause::{self, Pause};
use crate::echo::totals::SessionCounts;

/// The listening socket.
#[derive(Debug)]
pub(super) enum Source {
    /// It accepts with a routine.
    Routine(ListenSocket),
    /// It is asked by turns.
    ByTurns { socket: Socket, is_unix: bool },
}

impl Source {
    /// A source of connections on this socket.
    pub(super) fn new(
        queue: &ApcQueue,
        socket: Socket,
        is_unix: bool,
        by_turns: bool,
    ) -> io::Result<Self> {
        if by_turns {
            socket.set_nonblocking(true)?;
            return Ok(Self::ByTurns { socket, is_unix });
        }
        #[cfg(unix)]
        if is_unix {
            return Ok(Self::Routine(queue.open(std::os::unix::net::UnixListener::from(socket))?));
        }
        Ok(Self::Routine(queue.open(std::net::TcpListener::from(socket))?))
    }
}

/// Accepts in flight, how many sessions there are, and the pause.
#[derive(Debug)]
pub(super) struct Acceptor {
    /// `None` once the server drains.
    source: Option<Source>,
    maximum_sessions: usize,
    idle: Vec<Operation>,
    outstanding: usize,
    pub(super) sessions: SessionCounts,
    pub(super) pause: Pause,
    /// A timer for the pause is running.
    pub(super) has_retry_timer: bool,
}

impl Acceptor {
    /// An acceptor with `accepts` operations, none of them started.
    pub(super) fn new(source: Source, accepts: usize, maximum_sessions: usize) -> Self {
        Self {
            source: Some(source),
            maximum_sessions,
            idle: (0..accepts).map(|_| Operation::new()).collect(),
            outstanding: 0,
            sessions: SessionCounts::default(),
            pause: Pause::default(),
            has_retry_timer: false,
        }
    }

    /// Starts as many accepts as may be in flight now.
    pub(super) fn start_idle(&mut self, routine: &Routine) -> Result<(), Error> {
        let Some(Source::Routine(listener)) = &self.source else { return Ok(()) };
        // In a pause one accept at a time tries whether it is over.
        while self.sessions.open + self.outstanding < self.maximum_sessions
            && (!self.pause.is_on() || self.outstanding == 0)
        {
            let Some(operation) = self.idle.pop() else { return Ok(()) };
            match listener.accept(operation, routine) {
                Ok(_) => self.outstanding += 1,
                Err(rejected) => {
                    let error = rejected.error();
                    self.idle.push(rejected.into_operation());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The routine of an accept runs: takes the operation back. Gives the connection, if it brought
    /// one and the server does not drain; it is counted as a session.
    pub(super) fn accept_ended(&mut self, mut operation: Operation) -> Option<Accepted> {
        self.outstanding -= 1;
        let accepted = operation.take_accepted();
        self.source.as_ref()?;
        self.idle.push(operation);
        if accepted.is_some() {
            self.sessions.begin();
        }
        accepted
    }

    /// Whether an accept is in flight.
    pub(super) fn has_outstanding(&self) -> bool {
        self.outstanding > 0
    }

    /// Whether connections are taken by turns.
    pub(super) fn is_by_turns(&self) -> bool {
        matches!(self.source, Some(Source::ByTurns { .. }))
    }

    /// Takes a connection without waiting; `None` where there is none, or no room for it.
    pub(super) fn take(&mut self, queue: &ApcQueue) -> Option<StreamSocket> {
        let Some(Source::ByTurns { socket, is_unix }) = &self.source else { return None };
        if !self.pause.is_due(self.sessions) {
            return None;
        }
        loop {
            if self.sessions.open >= self.maximum_sessions {
                return None;
            }
            match socket.accept() {
                Ok((connection, _)) => match open(queue, connection, *is_unix) {
                    Ok(stream) => {
                        self.pause.succeeded();
                        self.sessions.begin();
                        return Some(stream);
                    }
                    Err(error) => tracing::debug!(%error, "a connection was not taken"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pause.went_well();
                    return None;
                }
                Err(error) if pause::is_of_the_client(&error) => {}
                Err(error) => {
                    self.pause.failed(&error, self.sessions.open);
                    return None;
                }
            }
        }
    }

    /// Stops accepting: closes the listening socket.
    pub(super) fn stop(&mut self) {
        self.source = None;
        self.idle.clear();
    }

    /// Whether accepting has stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.source.is_none()
    }
}

fn open(queue: &ApcQueue, connection: Socket, is_unix: bool) -> Result<StreamSocket, Error> {
    #[cfg(unix)]
    if is_unix {
        return Ok(queue.open(std::os::unix::net::UnixStream::from(connection))?);
    }
    let _ = is_unix;
    Ok(queue.open(std::net::TcpStream::from(connection))?)
}
