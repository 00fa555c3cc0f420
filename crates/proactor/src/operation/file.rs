//! Files, at explicit offsets.

use crate::buffer::SendBuffer;
use crate::error::Rejected;
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::AssociatedFile;

impl AssociatedFile {
    /// Starts a read at `offset` into `buffer`'s capacity. Fewer bytes come where the file ends
    /// before (rule 120); a read at or behind the end fails with
    /// [`EndOfFile`](crate::ErrorKind::EndOfFile); one without capacity succeeds with 0 bytes
    /// (rule 122).
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for an offset that does not fit into an
    /// `i64`, in which systems count; [`PortClosed`](crate::ErrorKind::PortClosed).
    ///
    /// References: [pread(2)](https://man7.org/linux/man-pages/man2/pread.2.html); Microsoft Learn,
    /// "ReadFile function (fileapi.h)".
    pub fn read_at(
        &self,
        mut operation: Operation,
        mut buffer: Vec<u8>,
        offset: u64,
    ) -> Result<OperationId, Rejected> {
        buffer.clear();
        let id = operation.prepare(OperationKind::ReadAt, Payload::Buffer(buffer));
        operation.inner.offset = offset;
        self.handle.start(operation).map(|()| id)
    }

    /// Starts a write of the whole buffer at `offset`; behind the end it extends the file, and
    /// `u64::MAX` appends (rule 121).
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for any other offset that does not fit into
    /// an `i64`, in which systems count; [`PortClosed`](crate::ErrorKind::PortClosed).
    ///
    /// References: [pwrite(2)](https://man7.org/linux/man-pages/man2/pwrite.2.html); Microsoft Learn,
    /// "WriteFile function (fileapi.h)".
    pub fn write_at(
        &self,
        mut operation: Operation,
        buffer: impl Into<SendBuffer>,
        offset: u64,
    ) -> Result<OperationId, Rejected> {
        let id = operation.prepare(OperationKind::WriteAt, Payload::Data(buffer.into()));
        operation.inner.offset = offset;
        self.handle.start(operation).map(|()| id)
    }
}
