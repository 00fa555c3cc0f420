//! Receiving on a stream.

use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::StreamSocket;

impl StreamSocket {
    /// Starts a receive into `buffer`'s capacity, from its start; what it held is discarded.
    ///
    /// The packet comes when there is at least one byte (rule 56), or the peer has ended the
    /// stream: 0 bytes, then and on every later receive (rule 57). The bytes are the buffer's
    /// contents: [`Operation::buffer`], [`Operation::take_buffer`].
    ///
    /// A buffer without capacity makes a *zero-length receive*: its packet comes when there is
    /// something to receive, and takes nothing (rule 60), so that an idle connection needs no
    /// buffer. Several receives may be pending: they are filled in the order of the calls (rule
    /// 61).
    ///
    /// # Errors
    /// [`NotConnected`](ErrorKind::NotConnected), [`ConnectionReset`](ErrorKind::ConnectionReset)
    /// where the peer's reset is known already (rule 59), [`ShutDown`](ErrorKind::ShutDown),
    /// [`InvalidInput`](ErrorKind::InvalidInput) while a continuous receive is pending,
    /// [`PortClosed`](ErrorKind::PortClosed).
    ///
    /// References: [recv(2)](https://man7.org/linux/man-pages/man2/recv.2.html); Microsoft Learn,
    /// "WSARecv function (winsock2.h)".
    pub fn recv(
        &self,
        mut operation: Operation,
        mut buffer: Vec<u8>,
    ) -> Result<OperationId, Rejected> {
        buffer.clear();
        let id = operation.prepare(OperationKind::Recv, Payload::Buffer(buffer));
        self.handle.start(operation).map(|()| id)
    }

    /// Starts a receive into several buffers, filled in order without holes (rule 62), each to its
    /// capacity. Otherwise as [`recv`](Self::recv).
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`InvalidInput`](ErrorKind::InvalidInput) without any buffer.
    pub fn recv_vectored(
        &self,
        mut operation: Operation,
        mut buffers: Vec<Vec<u8>>,
    ) -> Result<OperationId, Rejected> {
        let empty = buffers.is_empty();
        buffers.iter_mut().for_each(Vec::clear);
        let id = operation.prepare(OperationKind::Recv, Payload::Buffers(buffers));
        if empty {
            let error = Error::new(OperationKind::Recv, ErrorKind::InvalidInput);
            return Err(Rejected::new(error, operation));
        }
        self.handle.start(operation).map(|()| id)
    }

    /// Starts a continuous receive: a packet for each buffer of bytes, in buffers of the port's
    /// pool, until the stream ends, fails, or the receive is cancelled. Each but the last is
    /// marked [`Completion::more`](crate::Completion::more) and carries
    /// [`Completion::take_chunk`](crate::Completion::take_chunk); the last carries this operation,
    /// no bytes, and the reason (0 bytes and no error: the peer's orderly end).
    ///
    /// An idle connection holds no buffer. A connection whose buffers are not given back is not
    /// read further
    /// ([`Builder::receive_window_bytes`](crate::Builder::receive_window_bytes)).
    ///
    /// Packets of one connection are queued in order. Threads that dequeue them at the same time
    /// may handle them at the same time and in either order, the last packet included: put them in
    /// order by [`Completion::sequence`](crate::Completion::sequence). A lock alone does not.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`InvalidInput`](ErrorKind::InvalidInput) while any other
    /// receive is pending.
    ///
    /// References: [io_uring_prep_recv_multishot(3)](https://man7.org/linux/man-pages/man3/io_uring_prep_recv_multishot.3.html),
    /// which is what io_uring is asked for.
    pub fn recv_continuous(&self, mut operation: Operation) -> Result<OperationId, Rejected> {
        let id = operation.prepare(OperationKind::RecvContinuous, Payload::None);
        self.handle.start(operation).map(|()| id)
    }
}
