//! Connecting and disconnecting.

use std::net::{Shutdown, SocketAddr};

use socket2::SockAddr;

#[cfg(unix)]
use crate::error::ErrorKind;
use crate::error::{Error, Rejected};
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::StreamSocket;

impl StreamSocket {
    /// Starts a connect to `peer`; the packet comes when the connection stands or is refused
    /// (rules 104, 105): with [`ConnectionRefused`](crate::ErrorKind::ConnectionRefused) where nobody
    /// listens, [`TimedOut`](crate::ErrorKind::TimedOut) where no answer came in the system's time,
    /// [`NetworkUnreachable`](crate::ErrorKind::NetworkUnreachable) or
    /// [`HostUnreachable`](crate::ErrorKind::HostUnreachable) where there is no way there. After a
    /// failure the socket may be tried again (rule 106).
    ///
    /// # Errors
    /// [`AlreadyConnected`](crate::ErrorKind::AlreadyConnected) also while a connect is pending;
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) where the address is of another family;
    /// [`PortClosed`](crate::ErrorKind::PortClosed).
    ///
    /// References: [connect(2)](https://man7.org/linux/man-pages/man2/connect.2.html); Microsoft
    /// Learn, "LPFN_CONNECTEX callback function (mswsock.h)".
    pub fn connect(&self, operation: Operation, peer: SocketAddr) -> Result<OperationId, Rejected> {
        self.connect_to(operation, peer.into())
    }

    /// Starts a connect to the Unix socket at `path`. Otherwise as [`connect`](Self::connect).
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and [`InvalidInput`](crate::ErrorKind::InvalidInput) where the
    /// path is too long for a socket address.
    #[cfg(unix)]
    pub fn connect_unix(
        &self,
        operation: Operation,
        path: impl AsRef<std::path::Path>,
    ) -> Result<OperationId, Rejected> {
        match SockAddr::unix(path) {
            Ok(address) => self.connect_to(operation, address),
            Err(_) => {
                let error = Error::new(OperationKind::Connect, ErrorKind::InvalidInput);
                Err(Rejected::new(error, operation))
            }
        }
    }

    fn connect_to(
        &self,
        mut operation: Operation,
        address: SockAddr,
    ) -> Result<OperationId, Rejected> {
        let payload = Payload::Address(Box::new(address));
        let id = operation.prepare(OperationKind::Connect, payload);
        self.handle.start(operation).map(|()| id)
    }

    /// Starts an orderly end of the sending side: behind the sends that are queued, the peer sees
    /// the end of the stream. This side still receives; sending is refused from now on (rule 109).
    ///
    /// # Errors
    /// [`NotConnected`](crate::ErrorKind::NotConnected); [`ShutDown`](crate::ErrorKind::ShutDown) where it was
    /// ended before; [`PortClosed`](crate::ErrorKind::PortClosed).
    pub fn disconnect(&self, mut operation: Operation) -> Result<OperationId, Rejected> {
        let id = operation.prepare(OperationKind::Disconnect, Payload::None);
        self.handle.start(operation).map(|()| id)
    }

    /// Shuts a direction down, at once and without a packet (rule 50).
    ///
    /// For the sending side, sends that are queued still go out before the end of the stream does.
    /// For the receiving side, pending receives stay pending, and new ones are refused (rule 84).
    ///
    /// # Errors
    /// [`NotConnected`](crate::ErrorKind::NotConnected) before a connection stands;
    /// [`ConnectionReset`](crate::ErrorKind::ConnectionReset) where the peer has reset it.
    ///
    /// References: [shutdown(2)](https://man7.org/linux/man-pages/man2/shutdown.2.html); Microsoft
    /// Learn, "shutdown function (winsock.h)".
    pub fn shutdown(&self, how: Shutdown) -> Result<(), Error> {
        self.handle.source.shutdown(how)
    }
}
