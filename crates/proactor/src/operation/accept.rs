//! Accepting connections.

use crate::error::Rejected;
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::ListenSocket;

impl ListenSocket {
    /// Starts an accept. Its packet goes to the listening socket's key (rule 91) and carries the
    /// connection: [`Operation::take_accepted`]. Several may be pending: the oldest gets the first
    /// connection (rule 99). No connection is accepted without one.
    ///
    /// A lack of descriptors ends the accept with
    /// [`TooManyOpenFiles`](crate::ErrorKind::TooManyOpenFiles); the connection stays in the
    /// backlog.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) where the socket does not listen (rule
    /// 92); [`PortClosed`](crate::ErrorKind::PortClosed).
    ///
    /// References: [accept(2)](https://man7.org/linux/man-pages/man2/accept.2.html); Microsoft Learn,
    /// "AcceptEx function (mswsock.h)".
    pub fn accept(&self, mut operation: Operation) -> Result<OperationId, Rejected> {
        let id = operation.prepare(OperationKind::Accept, Payload::None);
        self.handle.start(operation).map(|()| id)
    }
}
