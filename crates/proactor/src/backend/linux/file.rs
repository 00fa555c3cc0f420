//! What a driver's file service supplies. Files never go through a worker's own ring or epoll set:
//! a completion there could not be taken over while that worker is stuck in a handler.

use std::fs::File;
use std::sync::Arc;

use crate::error::Error;
use crate::operation::{Operation, OperationId};
use crate::port::Completion;

/// Where a file service puts packets. Called from the service's own threads.
pub(crate) trait Deliver: Send + Sync {
    /// Queues a packet and wakes a worker for it.
    fn deliver(&self, packet: Completion);
}

/// One operation on a file ([`ReadAt`](crate::OperationKind::ReadAt) or
/// [`WriteAt`](crate::OperationKind::WriteAt)).
pub(crate) struct FileRequest {
    /// Kept open by the request; a file is closed when its handle and its requests are gone.
    pub(crate) file: Arc<File>,
    /// Names the source that the file belongs to, for cancelling all of its requests.
    pub(crate) source: u64,
    pub(crate) key: usize,
    pub(crate) operation: Operation,
}

/// Serves file operations on threads that run no handlers.
pub(crate) trait FileService: Send + Sync {
    /// Takes a request; its packet is delivered when it is done, exactly once.
    ///
    /// # Errors
    /// Gives the operation back where the service cannot start (no thread, no ring, closed).
    fn start(&self, request: FileRequest) -> Result<(), (Error, Operation)>;
    /// Cancels one request: its packet comes, cancelled or not. `false` where there is none.
    fn cancel(&self, source: u64, operation: OperationId) -> bool;
    /// Cancels every request of a source, and says how many there were.
    fn cancel_all(&self, source: u64) -> usize;
    /// Cancels everything, waits until the kernel holds nothing more, drops what is left without
    /// packets, ends the service's threads. Further starts are refused. May be called twice.
    fn close(&self);
}
