//! Sockets and files whose operations end in routines.
//!
//! Each method is that of the port's source of the same name, with a routine: what it does to the
//! socket, which errors it gives and when, stands there.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::queue::Inner;
use super::{ApcQueue, Routine};
use crate::buffer::SendBuffer;
use crate::error::{Error, Rejected};
use crate::operation::{Operation, OperationId};
use crate::port;

mod sealed {
    pub trait Sealed {}
}

/// What [`ApcQueue::open`] makes of a source. Sealed: it is what ties the sources of a port to
/// those of a queue.
pub trait Open: sealed::Sealed {
    /// The source as it is open on a queue.
    type Opened;

    #[doc(hidden)]
    #[allow(private_interfaces)]
    fn opened(self, queue: Rc<Inner>) -> Self::Opened;
}

macro_rules! opened_source {
    ($(#[$attribute:meta])* $name:ident, $associated:ty) => {
        $(#[$attribute])*
        ///
        /// It belongs to the thread of its queue. A clone is the same source; dropping the last one
        /// closes it, and what is pending then still ends in its routine (rule 131). A routine that
        /// owns a clone of the source that it is pending on keeps it open: cancel to end it.
        #[derive(Clone)]
        pub struct $name {
            source: $associated,
            queue: Rc<Inner>,
        }

        impl sealed::Sealed for $associated {}

        impl Open for $associated {
            type Opened = $name;

            #[allow(private_interfaces)]
            fn opened(self, queue: Rc<Inner>) -> $name {
                $name { source: self, queue }
            }
        }

        impl $name {
            /// Asks to cancel one operation. Its routine still runs: with
            /// [`Cancelled`](crate::ErrorKind::Cancelled), or with its result where it had in fact
            /// succeeded (rules 78, 131). Returns `false` where there is nothing to cancel, also
            /// where its routine is queued already.
            pub fn cancel(&self, operation: OperationId) -> bool {
                self.source.cancel(operation)
            }

            /// Asks to cancel every operation of this source, and returns how many there were.
            pub fn cancel_all(&self) -> usize {
                self.source.cancel_all()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

opened_source! {
    /// A listening socket: it accepts.
    ListenSocket, port::ListenSocket
}
opened_source! {
    /// A stream socket (TCP or Unix): it connects, receives, sends.
    StreamSocket, port::StreamSocket
}
opened_source! {
    /// A UDP socket.
    DatagramSocket, port::DatagramSocket
}
opened_source! {
    /// A file, read and written at offsets.
    File, port::AssociatedFile
}

macro_rules! socket_properties {
    ($name:ident) => {
        impl $name {
            /// The address that the socket is bound to; an error for Unix sockets, which have
            /// paths.
            ///
            /// # Errors
            /// The system's (`getsockname`).
            pub fn local_address(&self) -> io::Result<SocketAddr> {
                self.source.local_address()
            }

            /// The socket's options, by reference. Its blocking mode is to be left as it is.
            ///
            /// # Errors
            /// Where the queue was dropped.
            pub fn options(&self) -> io::Result<SockRef<'_>> {
                self.source.options()
            }
        }
    };
}
socket_properties!(ListenSocket);
socket_properties!(StreamSocket);
socket_properties!(DatagramSocket);

type Started = Result<OperationId, Rejected>;

impl ListenSocket {
    /// Starts an accept; the connection is in the operation:
    /// [`Operation::take_accepted`]. See [`port::ListenSocket::accept`](crate::ListenSocket::accept).
    ///
    /// # Errors
    /// As there.
    pub fn accept(&self, operation: Operation, routine: &Routine) -> Started {
        self.queue.start(routine, || self.source.accept(operation))
    }
}

impl StreamSocket {
    /// A new, unconnected TCP socket of the family of `peer`, open on `queue`, for
    /// [`connect`](Self::connect).
    ///
    /// # Errors
    /// The system's (`socket`), or as [`ApcQueue::open`].
    pub fn for_peer(queue: &ApcQueue, peer: &SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(*peer), Type::STREAM, Some(Protocol::TCP))?;
        Ok(queue.open(socket)?)
    }

    /// A new, unconnected Unix stream socket, open on `queue`, for
    /// [`connect_unix`](Self::connect_unix).
    ///
    /// # Errors
    /// The system's (`socket`), or as [`ApcQueue::open`].
    #[cfg(unix)]
    pub fn for_unix(queue: &ApcQueue) -> io::Result<Self> {
        Ok(queue.open(Socket::new(Domain::UNIX, Type::STREAM, None)?)?)
    }

    /// Starts a connect to `peer`. See [`StreamSocket::connect`](crate::StreamSocket::connect).
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self, operation: Operation, peer: SocketAddr, routine: &Routine) -> Started {
        self.queue.start(routine, || self.source.connect(operation, peer))
    }

    /// Starts a connect to the Unix socket at `path`. See
    /// [`StreamSocket::connect_unix`](crate::StreamSocket::connect_unix).
    ///
    /// # Errors
    /// As there.
    #[cfg(unix)]
    pub fn connect_unix(
        &self,
        operation: Operation,
        path: impl AsRef<std::path::Path>,
        routine: &Routine,
    ) -> Started {
        self.queue.start(routine, || self.source.connect_unix(operation, path))
    }

    /// Starts a receive into `buffer`'s capacity; without capacity it takes nothing and ends when
    /// there is something to receive. See [`StreamSocket::recv`](crate::StreamSocket::recv).
    ///
    /// # Errors
    /// As there.
    pub fn recv(&self, operation: Operation, buffer: Vec<u8>, routine: &Routine) -> Started {
        self.queue.start(routine, || self.source.recv(operation, buffer))
    }

    /// Starts a receive into several buffers. See
    /// [`StreamSocket::recv_vectored`](crate::StreamSocket::recv_vectored).
    ///
    /// # Errors
    /// As there.
    pub fn recv_vectored(
        &self,
        operation: Operation,
        buffers: Vec<Vec<u8>>,
        routine: &Routine,
    ) -> Started {
        self.queue.start(routine, || self.source.recv_vectored(operation, buffers))
    }

    /// Starts a continuous receive: the routine runs for each buffer of bytes, in the order of the
    /// stream, and once more at the end. See
    /// [`StreamSocket::recv_continuous`](crate::StreamSocket::recv_continuous).
    ///
    /// # Errors
    /// As there.
    pub fn recv_continuous(&self, operation: Operation, routine: &Routine) -> Started {
        self.queue.start(routine, || self.source.recv_continuous(operation))
    }

    /// Starts a send. See [`StreamSocket::send`](crate::StreamSocket::send).
    ///
    /// # Errors
    /// As there.
    pub fn send(
        &self,
        operation: Operation,
        buffer: impl Into<SendBuffer>,
        routine: &Routine,
    ) -> Started {
        self.queue.start(routine, || self.source.send(operation, buffer))
    }

    /// Starts a gathered send. See
    /// [`StreamSocket::send_vectored`](crate::StreamSocket::send_vectored).
    ///
    /// # Errors
    /// As there.
    pub fn send_vectored(
        &self,
        operation: Operation,
        buffers: Vec<SendBuffer>,
        routine: &Routine,
    ) -> Started {
        self.queue.start(routine, || self.source.send_vectored(operation, buffers))
    }

    /// Starts an orderly end of the sending side. See
    /// [`StreamSocket::disconnect`](crate::StreamSocket::disconnect).
    ///
    /// # Errors
    /// As there.
    pub fn disconnect(&self, operation: Operation, routine: &Routine) -> Started {
        self.queue.start(routine, || self.source.disconnect(operation))
    }

    /// Shuts a direction down, at once and without a routine. See
    /// [`StreamSocket::shutdown`](crate::StreamSocket::shutdown).
    ///
    /// # Errors
    /// As there.
    pub fn shutdown(&self, how: Shutdown) -> Result<(), Error> {
        self.source.shutdown(how)
    }

    /// The address of the peer; an error where the socket is not connected or is a Unix socket.
    ///
    /// # Errors
    /// The system's (`getpeername`).
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.source.peer_address()
    }

    /// Turns Nagle's delay off (`true`) or on.
    ///
    /// # Errors
    /// The system's (`setsockopt`).
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.source.set_nodelay(nodelay)
    }
}

impl DatagramSocket {
    /// Starts a receive of one datagram. See
    /// [`DatagramSocket::recv_from`](crate::DatagramSocket::recv_from).
    ///
    /// # Errors
    /// As there.
    pub fn recv_from(&self, operation: Operation, buffer: Vec<u8>, routine: &Routine) -> Started {
        self.queue.start(routine, || self.source.recv_from(operation, buffer))
    }

    /// Starts a send of one datagram. See
    /// [`DatagramSocket::send_to`](crate::DatagramSocket::send_to).
    ///
    /// # Errors
    /// As there.
    pub fn send_to(
        &self,
        operation: Operation,
        buffer: impl Into<SendBuffer>,
        peer: impl Into<Option<SocketAddr>>,
        routine: &Routine,
    ) -> Started {
        self.queue.start(routine, || self.source.send_to(operation, buffer, peer))
    }
}

impl File {
    /// Starts a read at `offset`. See
    /// [`AssociatedFile::read_at`](crate::AssociatedFile::read_at). (On Windows: `ReadFileEx`.)
    ///
    /// # Errors
    /// As there.
    pub fn read_at(
        &self,
        operation: Operation,
        buffer: Vec<u8>,
        offset: u64,
        routine: &Routine,
    ) -> Started {
        self.queue.start(routine, || self.source.read_at(operation, buffer, offset))
    }

    /// Starts a write of the whole buffer at `offset`. See
    /// [`AssociatedFile::write_at`](crate::AssociatedFile::write_at). (On Windows: `WriteFileEx`.)
    ///
    /// # Errors
    /// As there.
    pub fn write_at(
        &self,
        operation: Operation,
        buffer: impl Into<SendBuffer>,
        offset: u64,
        routine: &Routine,
    ) -> Started {
        self.queue.start(routine, || self.source.write_at(operation, buffer, offset))
    }
}
