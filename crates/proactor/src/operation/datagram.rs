//! Datagrams.

use std::net::SocketAddr;

use crate::buffer::SendBuffer;
use crate::error::Rejected;
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::DatagramSocket;

impl DatagramSocket {
    /// Starts a receive of one datagram into `buffer`'s capacity. The packet carries the bytes and
    /// [`Operation::peer_address`]. An empty datagram is a success with 0 bytes (rule 114).
    ///
    /// A longer datagram fills the buffer, the rest is lost, and the packet says
    /// [`MessageTruncated`](crate::ErrorKind::MessageTruncated) with the bytes kept (rule 113).
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) on a socket without a local address (rule
    /// 115); [`PortClosed`](crate::ErrorKind::PortClosed).
    ///
    /// References: [recvmsg(2)](https://man7.org/linux/man-pages/man2/recvmsg.2.html); Microsoft
    /// Learn, "WSARecvFrom function (winsock2.h)".
    pub fn recv_from(
        &self,
        mut operation: Operation,
        mut buffer: Vec<u8>,
    ) -> Result<OperationId, Rejected> {
        buffer.clear();
        let id = operation.prepare(OperationKind::RecvFrom, Payload::Datagram(buffer, None));
        self.handle.start(operation).map(|()| id)
    }

    /// Starts a send of one datagram to `peer`, or to the connected peer where it is `None`.
    ///
    /// # Errors
    /// [`MessageTooLong`](crate::ErrorKind::MessageTooLong): nothing is sent (rule 117);
    /// [`NotConnected`](crate::ErrorKind::NotConnected) without a peer;
    /// [`PortClosed`](crate::ErrorKind::PortClosed).
    ///
    /// References: [sendmsg(2)](https://man7.org/linux/man-pages/man2/sendmsg.2.html); Microsoft
    /// Learn, "WSASendTo function (winsock2.h)".
    pub fn send_to(
        &self,
        mut operation: Operation,
        buffer: impl Into<SendBuffer>,
        peer: impl Into<Option<SocketAddr>>,
    ) -> Result<OperationId, Rejected> {
        let payload = Payload::DatagramTo(buffer.into(), peer.into());
        let id = operation.prepare(OperationKind::SendTo, payload);
        self.handle.start(operation).map(|()| id)
    }
}
