//! Sending on a stream.

use crate::buffer::SendBuffer;
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::StreamSocket;

impl StreamSocket {
    /// Starts a send. Its one packet comes when the whole buffer was taken by the system (rule
    /// 67), which does not mean that the peer has it (rule 68).
    ///
    /// Sends go out in the order of the calls; those behind one that waits for room are queued
    /// (rule 69). The queue is the caller's to bound: by how many sends it starts before their
    /// packets come.
    ///
    /// The operation owns the buffer also after its packet was dequeued, until the operation is
    /// started again or dropped, or the buffer is taken out ([`Operation::take_send_buffer`]). A
    /// buffer of the pool that was sent on counts against its receive window until then.
    ///
    /// # Errors
    /// [`NotConnected`](ErrorKind::NotConnected), [`ConnectionReset`](ErrorKind::ConnectionReset),
    /// [`ShutDown`](ErrorKind::ShutDown) after a shutdown of the sending side (rule 70),
    /// [`PortClosed`](ErrorKind::PortClosed).
    ///
    /// References: [send(2)](https://man7.org/linux/man-pages/man2/send.2.html); Microsoft Learn,
    /// "WSASend function (winsock2.h)".
    pub fn send(
        &self,
        mut operation: Operation,
        buffer: impl Into<SendBuffer>,
    ) -> Result<OperationId, Rejected> {
        let id = operation.prepare(OperationKind::Send, Payload::Data(buffer.into()));
        self.handle.start(operation).map(|()| id)
    }

    /// Starts a gathered send: all buffers in order, one packet when all of them are out.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`InvalidInput`](ErrorKind::InvalidInput) without any buffer.
    pub fn send_vectored(
        &self,
        mut operation: Operation,
        buffers: Vec<SendBuffer>,
    ) -> Result<OperationId, Rejected> {
        let empty = buffers.is_empty();
        let id = operation.prepare(OperationKind::Send, Payload::Gather(buffers));
        if empty {
            let error = Error::new(OperationKind::Send, ErrorKind::InvalidInput);
            return Err(Rejected::new(error, operation));
        }
        self.handle.start(operation).map(|()| id)
    }
}
