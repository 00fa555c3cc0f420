//! What says which sockets are ready: mio, `poll` or `select`.
//!
//! They differ in two ways that the loop has to know. mio (epoll) is told of a socket once, and
//! reports when readiness *begins*; `poll` and `select` are told of every socket at every call, and
//! report what *is* ready.

use std::io;
#[cfg(unix)]
use std::io::{Read, Write};
#[cfg(unix)]
use std::os::fd::AsFd;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mio::{Registry, Token};

#[cfg(unix)]
use super::select;
use super::stream::Descriptor;
use crate::echo::args::Readiness;

/// The token of the loop's own wake-up.
pub(super) const WAKE: usize = usize::MAX;
/// The token of the listening socket.
pub(super) const LISTENER: usize = usize::MAX - 1;
/// How many events mio brings at once.
const EVENTS: usize = 1024;

/// What became of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) token: usize,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer has ended its side, or the connection is broken.
    pub(super) is_closed: bool,
}

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) read: bool,
    pub(super) write: bool,
}

/// A socket, as `poll` and `select` are told of it at every call.
#[cfg_attr(not(unix), expect(dead_code, reason = "there is neither elsewhere"))]
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched<'a> {
    pub(super) token: usize,
    pub(super) descriptor: Descriptor<'a>,
    pub(super) wanted: Wanted,
}

/// What a loop waits with.
#[derive(Debug)]
pub(super) enum Poller {
    Mio {
        poll: mio::Poll,
        events: mio::Events,
    },
    #[cfg(unix)]
    Poll {
        wake: UnixStream,
    },
    #[cfg(unix)]
    Select {
        wake: UnixStream,
        sets: select::Sets,
    },
}

/// Ends a loop's wait, from any thread.
#[derive(Debug)]
pub(super) enum Waker {
    Mio(mio::Waker),
    #[cfg(unix)]
    Pair(UnixStream),
}

/// What the first line calls it.
pub(super) fn name(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Epoll if cfg!(target_os = "linux") => "epoll",
        Readiness::Epoll => "the system's selector",
        #[cfg(unix)]
        Readiness::Poll => "poll",
        #[cfg(unix)]
        Readiness::Select => "select",
    }
}

impl Poller {
    /// Opens one, and what wakes it.
    pub(super) fn open(readiness: Readiness) -> io::Result<(Self, Waker)> {
        match readiness {
            Readiness::Epoll => {
                let poll = mio::Poll::new()?;
                let waker = mio::Waker::new(poll.registry(), Token(WAKE))?;
                let events = mio::Events::with_capacity(EVENTS);
                Ok((Self::Mio { poll, events }, Waker::Mio(waker)))
            }
            #[cfg(unix)]
            Readiness::Poll | Readiness::Select => {
                let (wake, waker) = UnixStream::pair()?;
                wake.set_nonblocking(true)?;
                waker.set_nonblocking(true)?;
                let poller = match readiness {
                    Readiness::Select => Self::Select { wake, sets: select::Sets::default() },
                    _ => Self::Poll { wake },
                };
                Ok((poller, Waker::Pair(waker)))
            }
        }
    }

    /// Where sockets are registered; `None` where they are named at every call.
    pub(super) fn registry(&self) -> Option<&Registry> {
        match self {
            Self::Mio { poll, .. } => Some(poll.registry()),
            #[cfg(unix)]
            _ => None,
        }
    }

    /// Whether a socket that stays ready is reported only once.
    pub(super) fn is_edge_triggered(&self) -> bool {
        self.registry().is_some()
    }

    /// Whether this socket can be watched at all.
    pub(super) fn can_watch(&self, descriptor: Descriptor<'_>) -> bool {
        match self {
            #[cfg(unix)]
            Self::Select { .. } => select::can_watch(descriptor),
            _ => {
                let _ = descriptor;
                true
            }
        }
    }

    /// Waits for readiness, or a wake-up, or `timeout`, and puts what is ready into `ready`.
    /// `watched` is asked for only where sockets are named at every call.
    pub(super) fn wait<'a>(
        &mut self,
        timeout: Option<Duration>,
        watched: impl Iterator<Item = Watched<'a>>,
        ready: &mut Vec<Event>,
    ) -> io::Result<()> {
        ready.clear();
        let result = match self {
            Self::Mio { poll, events } => {
                drop(watched);
                let result = poll.poll(events, timeout);
                ready.extend(events.iter().map(Event::from));
                result
            }
            #[cfg(unix)]
            Self::Poll { wake } => {
                let result = select::poll(with_wake(wake, watched), timeout, ready);
                empty(wake);
                result
            }
            #[cfg(unix)]
            Self::Select { wake, sets } => {
                let result = sets.wait(with_wake(wake, watched), timeout, ready);
                empty(wake);
                result
            }
        };
        match result {
            // By a signal: the loop looks what there is to do, and waits again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                ready.clear();
                Ok(())
            }
            result => result,
        }
    }
}

impl From<&mio::event::Event> for Event {
    fn from(event: &mio::event::Event) -> Self {
        let is_broken = event.is_error() || event.is_write_closed();
        Self {
            token: event.token().0,
            readable: event.is_readable() || event.is_read_closed() || is_broken,
            writable: event.is_writable() || is_broken,
            is_closed: event.is_read_closed() || is_broken,
        }
    }
}

#[cfg(unix)]
fn with_wake<'wait, 'a: 'wait>(
    wake: &'wait UnixStream,
    watched: impl Iterator<Item = Watched<'a>>,
) -> impl Iterator<Item = Watched<'wait>> {
    let wanted = Wanted { read: true, write: false };
    let wake = Watched { token: WAKE, descriptor: wake.as_fd(), wanted };
    #[expect(clippy::map_identity, reason = "each item is given the shorter lifetime")]
    let watched =
        watched.map(|Watched { token, descriptor, wanted }| Watched { token, descriptor, wanted });
    std::iter::once(wake).chain(watched)
}

/// Takes the bytes that wake-ups have written.
#[cfg(unix)]
fn empty(mut wake: &UnixStream) {
    let mut bytes = [0; 64];
    while matches!(wake.read(&mut bytes), Ok(count) if count == bytes.len()) {}
}

impl Waker {
    /// Ends the wait, or else the next one.
    pub(super) fn wake(&self) {
        match self {
            Self::Mio(waker) => {
                if let Err(error) = waker.wake() {
                    tracing::error!(%error, "a loop could not be woken");
                }
            }
            // Full of bytes it wakes just as well.
            #[cfg(unix)]
            Self::Pair(socket) => drop((&*socket).write(&[0])),
        }
    }
}
