//! What a dequeue gives.

use crate::buffer::PoolBuffer;
use crate::error::{Error, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};

/// A packet: what was done, for which key, with what result.
///
/// One packet comes for each operation that was accepted, successful or not (rules 44, 45). The
/// one exception says so: a *continuous receive* gives a packet per buffer, each marked
/// [`more`](Self::more), and a last one, unmarked, with the operation.
#[derive(Debug)]
pub struct Completion {
    pub(crate) key: usize,
    pub(crate) bytes: usize,
    pub(crate) kind: OperationKind,
    pub(crate) error: Option<Error>,
    /// The operation, unless more packets of it will come or a post carried none.
    pub(crate) operation: Option<Operation>,
    /// What a continuous receive delivers.
    pub(crate) chunk: Option<PoolBuffer>,
    /// The continuous receive of which more packets will come.
    pub(crate) receive: Option<OperationId>,
    /// The place of a continuous receive's packet in the stream.
    pub(crate) sequence: u64,
}

impl Completion {
    /// The packet of an operation that is finished.
    pub(crate) fn finished(
        key: usize,
        operation: Operation,
        bytes: usize,
        error: Option<Error>,
    ) -> Self {
        let kind = operation.kind();
        Self {
            key,
            bytes,
            kind,
            error,
            operation: Some(operation),
            chunk: None,
            receive: None,
            sequence: 0,
        }
    }

    /// One buffer of a continuous receive that goes on.
    pub(crate) fn chunk(
        key: usize,
        receive: OperationId,
        sequence: u64,
        buffer: PoolBuffer,
    ) -> Self {
        Self {
            key,
            bytes: buffer.len(),
            kind: OperationKind::RecvContinuous,
            error: None,
            operation: None,
            chunk: Some(buffer),
            receive: Some(receive),
            sequence,
        }
    }

    /// What the program posts.
    pub(crate) fn posted(key: usize, bytes: usize, operation: Option<Operation>) -> Self {
        let kind = OperationKind::Post;
        Self { key, bytes, kind, error: None, operation, chunk: None, receive: None, sequence: 0 }
    }

    /// The packet did not get in: hands back what it carried.
    pub(crate) fn reject(self, error: Error) -> Rejected {
        Rejected::new(error, self.operation.unwrap_or_default())
    }

    /// The key of the source, or of the post or timer.
    pub fn key(&self) -> usize {
        self.key
    }

    /// What the packet is about.
    pub fn kind(&self) -> OperationKind {
        self.kind
    }

    /// Bytes moved, also where the operation failed after it had moved some (rules 17, 46); for a
    /// post, the number that was posted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Why the operation failed, if it did.
    pub fn error(&self) -> Option<Error> {
        self.error
    }

    /// The bytes moved, or why the operation failed.
    ///
    /// # Errors
    /// The operation's own; receiving 0 bytes is not one, it is the peer's orderly end (rule 57).
    pub fn result(&self) -> Result<usize, Error> {
        match self.error {
            None => Ok(self.bytes),
            Some(error) => Err(error),
        }
    }

    /// Which start of which operation this is about; `None` for a post without an operation.
    pub fn operation_id(&self) -> Option<OperationId> {
        self.receive.or_else(|| self.operation.as_ref().map(Operation::id))
    }

    /// Whether more packets of this continuous receive will come.
    pub fn more(&self) -> bool {
        self.receive.is_some()
    }

    /// The place of this packet in its continuous receive: 0 for the first, one more for each
    /// packet, the last included. Threads that dequeue packets of one connection at the same time
    /// put them in order by it. 0 for every other operation.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Takes the bytes that a continuous receive delivered.
    pub fn take_chunk(&mut self) -> Option<PoolBuffer> {
        self.chunk.take()
    }

    /// The operation, to read its context or its buffers.
    pub fn operation(&self) -> Option<&Operation> {
        self.operation.as_ref()
    }

    /// The operation, to change.
    pub fn operation_mut(&mut self) -> Option<&mut Operation> {
        self.operation.as_mut()
    }

    /// Takes the operation with its buffers and context, to use it again.
    ///
    /// `None` where [`more`](Self::more) packets come, or a post carried none.
    pub fn take_operation(&mut self) -> Option<Operation> {
        self.operation.take()
    }

    /// The operation with its buffers and context.
    pub fn into_operation(self) -> Option<Operation> {
        self.operation
    }
}
