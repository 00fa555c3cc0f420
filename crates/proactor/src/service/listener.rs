//! Accepting: several accepts outstanding, and no error that ends it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[cfg(unix)]
use socket2::{Domain, Socket, Type};

use super::runtime::{Key, Source};
use super::session::SessionId;
use super::shared::ServiceShared;
use crate::sync::{Mutex, lock};
use crate::{Accepted, Completion, ErrorKind, ListenSocket, Operation, OperationKind};

/// How long an accept that failed pauses, for want of a descriptor or of anything else.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a service listens.
pub(super) enum Place {
    Address(SocketAddr),
    #[cfg(unix)]
    Path(PathBuf),
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(formatter, "listening at {address}"),
            #[cfg(unix)]
            Self::Path(path) => write!(formatter, "listening at {}", path.display()),
            Self::Tcp(_) => formatter.write_str("taking a listener over"),
            #[cfg(unix)]
            Self::Unix(_) => formatter.write_str("taking a Unix listener over"),
        }
    }
}

pub(super) struct Listener {
    key: Key,
    service: Arc<ServiceShared>,
    /// `None` once it is closed.
    socket: Mutex<Option<ListenSocket>>,
    /// Accepts, and pauses of accepts, that are in flight.
    outstanding: AtomicUsize,
    address: Option<SocketAddr>,
    /// A Unix socket's file that is ours to remove.
    path: Option<PathBuf>,
}

impl Listener {
    /// Opens a listener and associates it, but accepts nothing yet.
    pub(super) fn open(service: &Arc<ServiceShared>, place: Place) -> io::Result<Arc<Self>> {
        let key = service.runtime.registry.reserve();
        let opened = Self::associate(service, place, key);
        let (socket, path) = opened.inspect_err(|_| service.runtime.registry.release(key))?;
        let listener = Arc::new(Self {
            key,
            service: Arc::clone(service),
            address: socket.local_address().ok(),
            socket: Mutex::new(Some(socket)),
            outstanding: AtomicUsize::new(0),
            path,
        });
        service.runtime.registry.set(key, Arc::clone(&listener) as _);
        service.other_opened();
        Ok(listener)
    }

    fn associate(
        service: &ServiceShared,
        place: Place,
        key: Key,
    ) -> io::Result<(ListenSocket, Option<PathBuf>)> {
        let port = &service.runtime.port;
        let key = key.completion_key();
        let backlog = service.limits.backlog;
        Ok(match place {
            Place::Tcp(listener) => (port.associate(listener, key)?, None),
            Place::Address(address) => (ListenSocket::bind(port, &address, backlog, key)?, None),
            #[cfg(unix)]
            Place::Unix(listener) => (port.associate(listener, key)?, None),
            #[cfg(unix)]
            Place::Path(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.bind(&socket2::SockAddr::unix(&path)?)?;
                socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
                (port.associate(UnixListener::from(socket), key)?, Some(path))
            }
        })
    }

    /// Starts the accepts.
    pub(super) fn start(&self) {
        let accepts = self.service.limits.outstanding_accepts.max(1);
        // All are counted before any can come back.
        self.outstanding.fetch_add(accepts, Ordering::SeqCst);
        for _ in 0..accepts {
            self.accept(Operation::new());
        }
    }

    /// Closes it before it was started.
    pub(super) fn give_up(&self) {
        self.close();
        self.service.runtime.registry.release(self.key);
        self.service.other_closed();
    }

    /// The address that it listens at; `None` for a Unix socket.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Accepts nothing any more.
    pub(super) fn close(&self) {
        let socket = lock(&self.socket).take();
        if socket.is_some()
            && let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "the Unix socket's file stays");
        }
    }

    fn accept(&self, operation: Operation) {
        let Some(socket) = lock(&self.socket).clone() else { return self.accept_ended() };
        if let Err(rejected) = socket.accept(operation) {
            // Where the port is closed the pause cannot be started either, and accepting ends.
            tracing::debug!(service = self.service.name, error = %rejected, "an accept is refused");
            self.pause(rejected.into_operation());
        }
    }

    /// One of the accepts is not in flight any more, and will not be again.
    fn accept_ended(&self) {
        if self.outstanding.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.service.runtime.registry.release(self.key);
            self.service.other_closed();
        }
    }

    /// Tries again a little later: the connection stays in the backlog, and nothing spins.
    fn pause(&self, operation: Operation) {
        let key = self.key.completion_key();
        if self.service.runtime.port.start_timer(key, ACCEPT_PAUSE, operation).is_err() {
            self.accept_ended();
        }
    }

    fn admit(&self, accepted: Accepted) {
        let service = &self.service;
        let peer = accepted.peer_address();
        if !service.admit(peer.map(|peer| peer.ip())) {
            tracing::debug!(service = service.name, ?peer, "a connection is turned away");
            return;
        }
        if service.nodelay && peer.is_some() {
            // A connection that is reset already cannot be set; its session will tell.
            let _ = accepted.set_nodelay(true);
        }
        let key = service.runtime.registry.reserve();
        match service.runtime.port.associate(accepted, key.completion_key()) {
            Ok(stream) => service.begin_session(key, stream, peer, SessionId::next()),
            Err(refused) => {
                tracing::warn!(service = service.name, error = %refused, "a connection is lost");
                service.counters.rejected_failed.fetch_add(1, Ordering::Relaxed);
                service.runtime.registry.release(key);
                service.leave(peer.map(|peer| peer.ip()));
            }
        }
    }
}

impl Source for Listener {
    fn completed(self: Arc<Self>, mut completion: Completion) {
        let Some(mut operation) = completion.take_operation() else { return };
        if completion.kind() == OperationKind::Timer {
            return self.accept(operation);
        }
        match completion.error() {
            None => {
                let accepted = operation.take_accepted();
                // First, so that other workers accept while this one calls back.
                self.accept(operation);
                if let Some(accepted) = accepted {
                    self.admit(accepted);
                }
            }
            Some(error) if error.kind() == ErrorKind::Cancelled => self.accept_ended(),
            Some(error) => {
                let pauses = self.service.counters.accept_pauses.fetch_add(1, Ordering::Relaxed);
                if pauses.is_power_of_two() || pauses == 0 {
                    tracing::warn!(service = self.service.name, %error, pauses, "accepting pauses");
                }
                if !planted!(AcceptNotTriedAgain) {
                    self.pause(operation);
                }
            }
        }
    }

    fn abandoned(self: Arc<Self>) {
        self.close();
        self.service.other_closed();
    }
}
