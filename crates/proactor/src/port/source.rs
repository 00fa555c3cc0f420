//! What can be associated with a port, and the handles that association gives.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

#[cfg(unix)]
use socket2::{Domain, Type};
use socket2::{SockRef, Socket};

use crate::backend::{BackendSource, RawSource};
use crate::error::{AssociateError, Error, Rejected};
use crate::operation::Operation;
use crate::port::CompletionPort;

mod sealed {
    pub trait Sealed {}
}

/// A source of I/O that [`CompletionPort::associate`] takes. Sealed: the port has to know what
/// each source can do.
pub trait Associate: sealed::Sealed + Sized {
    /// The handle that starts this source's operations.
    type Associated;

    #[doc(hidden)]
    fn associate_with(
        self,
        port: &CompletionPort,
        key: usize,
    ) -> Result<Self::Associated, AssociateError<Self>>;
}

/// The user's side of an associated source: when the last clone goes, the source is closed.
pub(crate) struct Handle {
    pub(crate) source: Arc<dyn BackendSource>,
}

impl Handle {
    pub(crate) fn start(&self, operation: Operation) -> Result<(), Rejected> {
        Arc::clone(&self.source).start(operation)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.source.close();
    }
}

fn associate_raw(
    port: &CompletionPort,
    source: RawSource,
    key: usize,
) -> Result<Arc<Handle>, (Error, RawSource)> {
    let source = Arc::clone(port.backend_handle()).associate(source, key)?;
    Ok(Arc::new(Handle { source }))
}

macro_rules! associated_handle {
    ($(#[$attribute:meta])* $name:ident) => {
        $(#[$attribute])*
        ///
        /// A clone is a duplicate of the handle: same source, same key (rule 9). Dropping the last
        /// one closes the source; what is pending then ends with a packet each (rules 10, 74).
        #[derive(Clone)]
        pub struct $name {
            pub(crate) handle: Arc<Handle>,
        }

        impl $name {
            /// The key that this source's packets carry.
            pub fn key(&self) -> usize {
                self.handle.source.key()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.debug_struct(stringify!($name)).field("key", &self.key()).finish_non_exhaustive()
            }
        }
    };
}

associated_handle! {
    /// A listening socket that is associated with a port: it accepts.
    ListenSocket
}
associated_handle! {
    /// A stream socket (TCP or Unix) that is associated with a port: it connects, receives, sends.
    StreamSocket
}
associated_handle! {
    /// A UDP socket that is associated with a port.
    DatagramSocket
}
associated_handle! {
    /// A file that is associated with a port: it is read and written at offsets.
    AssociatedFile
}

macro_rules! socket_addresses {
    ($name:ident) => {
        impl $name {
            /// The address that the socket is bound to; an error for Unix sockets, which have
            /// paths.
            ///
            /// # Errors
            /// The system's (`getsockname`).
            pub fn local_address(&self) -> io::Result<SocketAddr> {
                self.handle.source.local_address()
            }

            /// The socket's options, by reference.
            ///
            /// Its blocking mode belongs to the port: leave it as it is.
            ///
            /// # Errors
            /// Where the socket was closed with its port.
            pub fn options(&self) -> io::Result<SockRef<'_>> {
                self.handle.source.socket()
            }
        }
    };
}
socket_addresses!(ListenSocket);
socket_addresses!(StreamSocket);
socket_addresses!(DatagramSocket);

impl ListenSocket {
    /// A TCP socket that listens at `address`, associated under `key`.
    pub(crate) fn bind(
        port: &CompletionPort,
        address: &SocketAddr,
        backlog: u32,
        key: usize,
    ) -> io::Result<Self> {
        let source = port.backend_handle().open_listener(address, backlog)?;
        let handle = associate_raw(port, source, key).map_err(|(error, _)| error)?;
        Ok(Self { handle })
    }
}

impl StreamSocket {
    /// From now on closing it resets the connection.
    pub(crate) fn reset_on_close(&self) -> io::Result<()> {
        self.handle.source.reset_on_close()
    }

    /// A new, unconnected TCP socket of the family of `peer`, associated under `key`, for
    /// [`connect`](Self::connect).
    ///
    /// # Errors
    /// The system's (`socket`), or as [`CompletionPort::associate`].
    pub fn for_peer(port: &CompletionPort, peer: &SocketAddr, key: usize) -> io::Result<Self> {
        let source = port.backend_handle().open_stream(peer)?;
        let handle = associate_raw(port, source, key).map_err(|(error, _)| error)?;
        Ok(Self { handle })
    }

    /// A new, unconnected Unix stream socket, associated under `key`, for
    /// [`connect_unix`](Self::connect_unix).
    ///
    /// # Errors
    /// The system's (`socket`), or as [`CompletionPort::associate`].
    #[cfg(unix)]
    pub fn for_unix(port: &CompletionPort, key: usize) -> io::Result<Self> {
        Ok(port.associate(Socket::new(Domain::UNIX, Type::STREAM, None)?, key)?)
    }

    /// The address of the peer; an error where the socket is not connected or is a Unix socket.
    ///
    /// # Errors
    /// The system's (`getpeername`).
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.handle.source.peer_address()
    }

    /// Turns Nagle's delay off (`true`) or on.
    ///
    /// # Errors
    /// The system's (`setsockopt`).
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.handle.source.set_nodelay(nodelay)
    }
}

/// A connection that an accept brought. It is an ordinary socket, not associated with any port yet.
pub struct Accepted {
    socket: AcceptedSocket,
    peer: Option<SocketAddr>,
}

enum AcceptedSocket {
    Real(Socket),
    #[cfg(feature = "sim")]
    Simulated(crate::backend::sim::SimulatedSource),
}

impl Accepted {
    pub(crate) fn new(socket: Socket, peer: Option<SocketAddr>) -> Self {
        Self { socket: AcceptedSocket::Real(socket), peer }
    }

    /// A connection of a simulated world.
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(
        source: crate::backend::sim::SimulatedSource,
        peer: SocketAddr,
    ) -> Self {
        Self { socket: AcceptedSocket::Simulated(source), peer: Some(peer) }
    }

    /// The peer's address; `None` for a Unix socket.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Turns Nagle's delay off (`true`) or on.
    ///
    /// # Errors
    /// The system's (`setsockopt`).
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match &self.socket {
            AcceptedSocket::Real(socket) => socket.set_tcp_nodelay(nodelay),
            #[cfg(feature = "sim")]
            AcceptedSocket::Simulated(_) => Ok(()),
        }
    }

    /// The socket itself, with every option.
    ///
    /// # Panics
    /// For a connection of a simulated world (feature `sim`), as the next two: it is no socket of
    /// the system, and can only be associated.
    pub fn into_socket(self) -> Socket {
        match self.socket {
            AcceptedSocket::Real(socket) => socket,
            #[cfg(feature = "sim")]
            AcceptedSocket::Simulated(_) => {
                panic!("a connection of a simulated world is no socket of the system")
            }
        }
    }

    /// The connection as a TCP stream of the standard library.
    pub fn into_tcp_stream(self) -> TcpStream {
        self.into_socket().into()
    }

    /// The connection as a Unix stream of the standard library.
    #[cfg(unix)]
    pub fn into_unix_stream(self) -> UnixStream {
        self.into_socket().into()
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Accepted").field("peer", &self.peer).finish_non_exhaustive()
    }
}

macro_rules! associate_socket {
    ($source:ty, $raw:ident, $associated:ident) => {
        impl sealed::Sealed for $source {}
        impl Associate for $source {
            type Associated = $associated;

            fn associate_with(
                self,
                port: &CompletionPort,
                key: usize,
            ) -> Result<$associated, AssociateError<Self>> {
                match associate_raw(port, RawSource::$raw(self.into()), key) {
                    Ok(handle) => Ok($associated { handle }),
                    Err((error, RawSource::$raw(socket))) => {
                        Err(AssociateError::new(error, socket.into()))
                    }
                    Err(_) => unreachable!("a refused source comes back as it went in"),
                }
            }
        }
    };
}
associate_socket!(TcpStream, Connected, StreamSocket);
associate_socket!(TcpListener, Listener, ListenSocket);
associate_socket!(UdpSocket, Datagram, DatagramSocket);
associate_socket!(Socket, Stream, StreamSocket);
associate_socket!(std::fs::File, File, AssociatedFile);
#[cfg(unix)]
associate_socket!(UnixStream, Connected, StreamSocket);
#[cfg(unix)]
associate_socket!(UnixListener, Listener, ListenSocket);

impl sealed::Sealed for Accepted {}
impl Associate for Accepted {
    type Associated = StreamSocket;

    fn associate_with(
        self,
        port: &CompletionPort,
        key: usize,
    ) -> Result<StreamSocket, AssociateError<Self>> {
        let source = match self.socket {
            AcceptedSocket::Real(socket) => RawSource::Connected(socket),
            #[cfg(feature = "sim")]
            AcceptedSocket::Simulated(source) => RawSource::Simulated(source),
        };
        let restore = |socket| Accepted { socket, peer: self.peer };
        match associate_raw(port, source, key) {
            Ok(handle) => Ok(StreamSocket { handle }),
            Err((error, RawSource::Connected(socket))) => {
                Err(AssociateError::new(error, restore(AcceptedSocket::Real(socket))))
            }
            #[cfg(feature = "sim")]
            Err((error, RawSource::Simulated(source))) => {
                Err(AssociateError::new(error, restore(AcceptedSocket::Simulated(source))))
            }
            Err(_) => unreachable!("a refused source comes back as it went in"),
        }
    }
}

#[cfg(feature = "sim")]
macro_rules! associate_simulated {
    ($source:ty, $associated:ident) => {
        impl sealed::Sealed for $source {}
        impl Associate for $source {
            type Associated = $associated;

            fn associate_with(
                self,
                port: &CompletionPort,
                key: usize,
            ) -> Result<$associated, AssociateError<Self>> {
                match associate_raw(port, RawSource::Simulated(self.into_source()), key) {
                    Ok(handle) => Ok($associated { handle }),
                    Err((error, RawSource::Simulated(source))) => {
                        Err(AssociateError::new(error, <$source>::from_source(source)))
                    }
                    Err(_) => unreachable!("a refused source comes back as it went in"),
                }
            }
        }
    };
}
#[cfg(feature = "sim")]
associate_simulated!(crate::sim::SimListener, ListenSocket);
#[cfg(feature = "sim")]
associate_simulated!(crate::sim::SimDatagramSocket, DatagramSocket);
#[cfg(feature = "sim")]
associate_simulated!(crate::sim::SimFile, AssociatedFile);
