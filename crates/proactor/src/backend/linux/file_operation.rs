//! One file operation on its way: what is still to be moved, and which packet comes of it. Shared
//! by the services of both drivers, so that files behave the same on each.
//!
//! - A read fills the buffer's capacity and ends short only where the file ends (rule 120); at or
//!   behind the end it fails with [`EndOfFile`](ErrorKind::EndOfFile).
//! - A write goes on until the whole buffer is written; at `u64::MAX` it appends (rule 121).
//! - Without any bytes to move both succeed at once (rule 122).
//! - A cancelled operation that had moved everything succeeds; one that had moved a part fails
//!   with [`Cancelled`](ErrorKind::Cancelled) and says how many bytes it moved (rule 78).

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use crate::backend::linux::errno;
use crate::backend::linux::file::{Deliver, FileRequest};
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::Completion;

/// The most that one system call moves: what `read(2)` and `write(2)` transfer at most.
const MAXIMUM_PIECE_BYTES: usize = 0x7fff_f000;

/// A file request and how far it is. It owns the memory that its [`Piece`]s point to.
pub(crate) struct Transfer {
    request: FileRequest,
    cancelled: bool,
}

/// The next system call of a transfer.
///
/// The address stays valid until the transfer is finished or dropped, also while it is moved: it
/// points into a buffer on the heap or into static memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) direction: Direction,
    pub(crate) address: *mut u8,
    pub(crate) len_bytes: u32,
    pub(crate) offset: u64,
    /// To be written at the end of the file, wherever that is (`RWF_APPEND`).
    pub(crate) append: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Into the piece's memory.
    Read,
    /// From the piece's memory, which is not changed.
    Write,
}

/// How a transfer ended.
pub(crate) type Outcome = Result<(), Error>;

impl Transfer {
    /// Takes a request in.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput), with the operation, where the offset is beyond
    /// what a file can have, or the operation is none for files.
    pub(crate) fn new(mut request: FileRequest) -> Result<Self, (Error, Operation)> {
        let inner = &mut *request.operation.inner;
        inner.done_bytes = 0;
        let (fits, may_append) = match (inner.kind, &mut inner.payload) {
            (OperationKind::ReadAt, Payload::Buffer(buffer)) => {
                buffer.clear();
                (true, false)
            }
            (OperationKind::WriteAt, Payload::Data(_)) => (true, true),
            _ => (false, false),
        };
        // The kernel takes some offsets behind i64::MAX for the file's own position.
        let offset_fits = i64::try_from(inner.offset).is_ok();
        if fits && (offset_fits || (may_append && inner.offset == u64::MAX)) {
            return Ok(Self { request, cancelled: false });
        }
        Err((Error::new(inner.kind, ErrorKind::InvalidInput), request.operation))
    }

    pub(crate) fn id(&self) -> OperationId {
        self.request.operation.id()
    }

    pub(crate) fn kind(&self) -> OperationKind {
        self.request.operation.kind()
    }

    pub(crate) fn source(&self) -> u64 {
        self.request.source
    }

    /// Whether this is about `source`, and about `operation` where one is named.
    pub(crate) fn matches(&self, source: u64, operation: Option<OperationId>) -> bool {
        self.source() == source && operation.is_none_or(|operation| operation == self.id())
    }

    pub(crate) fn descriptor(&self) -> i32 {
        self.request.file.as_raw_fd()
    }

    /// No further piece is to be started; the one on its way may still succeed.
    pub(crate) fn set_cancelled(&mut self) {
        self.cancelled = true;
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// What to do next; `None` where nothing is left to move.
    pub(crate) fn next_piece(&mut self) -> Option<Piece> {
        let inner = &mut *self.request.operation.inner;
        let (direction, start, total_bytes) = match &mut inner.payload {
            Payload::Buffer(buffer) => (Direction::Read, buffer.as_mut_ptr(), buffer.capacity()),
            Payload::Data(data) => {
                let bytes = data.as_slice();
                (Direction::Write, bytes.as_ptr().cast_mut(), bytes.len())
            }
            _ => unreachable!("checked when the request was taken in"),
        };
        let left_bytes = total_bytes - inner.done_bytes;
        if left_bytes == 0 {
            return None;
        }
        let append = inner.offset == u64::MAX;
        Some(Piece {
            direction,
            // SAFETY: `done_bytes` is less than the length of the memory that starts here.
            address: unsafe { start.add(inner.done_bytes) },
            len_bytes: left_bytes.min(MAXIMUM_PIECE_BYTES) as u32,
            // An appending write ignores the offset; -1 would move the file's own position.
            offset: if append { 0 } else { inner.offset + inner.done_bytes as u64 },
            append,
        })
    }

    /// Notes what a piece brought: bytes, or an `errno`. `None` where another piece is to follow.
    pub(crate) fn record(&mut self, result: Result<usize, i32>) -> Option<Outcome> {
        let kind = self.kind();
        let more = match result {
            Ok(0) => return Some(self.ended_at(kind)),
            Ok(bytes) => {
                self.request.operation.inner.done_bytes += bytes;
                self.next_piece().is_some()
            }
            Err(libc::EINTR) => true,
            Err(libc::ECANCELED) => return Some(Err(Error::new(kind, ErrorKind::Cancelled))),
            Err(errno) => return Some(Err(error_of(kind, errno))),
        };
        match (more, self.cancelled) {
            (true, false) => None,
            (true, true) => Some(Err(Error::new(kind, ErrorKind::Cancelled))),
            (false, _) => Some(Ok(())),
        }
    }

    /// A call moved nothing: the end of the file for a read.
    fn ended_at(&self, kind: OperationKind) -> Outcome {
        match kind {
            OperationKind::ReadAt if self.request.operation.inner.done_bytes > 0 => Ok(()),
            OperationKind::ReadAt => Err(Error::new(kind, ErrorKind::EndOfFile)),
            // No file does this; without an end here the write would be tried for ever.
            _ => Err(Error::new(kind, ErrorKind::Other)),
        }
    }

    /// The packet.
    pub(crate) fn finish(mut self, outcome: Outcome) -> Completion {
        let inner = &mut *self.request.operation.inner;
        let bytes = inner.done_bytes;
        if let Payload::Buffer(buffer) = &mut inner.payload {
            assert!(bytes <= buffer.capacity(), "the kernel read more than it was asked to");
            // SAFETY: the kernel has written the first `bytes` of the capacity, piece by piece.
            unsafe { buffer.set_len(bytes) };
        }
        Completion::finished(self.request.key, self.request.operation, bytes, outcome.err())
    }

    /// The packet of a transfer that was cancelled before any piece was started.
    pub(crate) fn finish_cancelled(self) -> Completion {
        let kind = self.kind();
        self.finish(Err(Error::new(kind, ErrorKind::Cancelled)))
    }

    /// Gives the operation back: the request was not taken after all.
    pub(crate) fn into_operation(self) -> Operation {
        self.request.operation
    }
}

/// Takes what matches out of a queue, and leaves the rest in its order.
pub(crate) fn take_matching(
    queue: &mut VecDeque<Transfer>,
    source: u64,
    operation: Option<OperationId>,
) -> Vec<Transfer> {
    let mut taken = Vec::new();
    let mut index = 0;
    while index < queue.len() {
        if queue[index].matches(source, operation) {
            taken.extend(queue.remove(index));
        } else {
            index += 1;
        }
    }
    taken
}

/// Delivers a packet; where the port is gone, nobody waits for it and it is dropped.
///
/// What it carries is the program's, and may panic as it is dropped. That was reported where it
/// happened, and must not end a thread that the kernel's work on other requests depends on.
pub(crate) fn deliver(port: &Weak<dyn Deliver>, packet: Completion) {
    drop(catch_unwind(AssertUnwindSafe(|| match port.upgrade() {
        Some(port) => port.deliver(packet),
        None => drop(packet),
    })));
}

/// Drops a transfer that ended after its service was closed; see [`deliver`] about panics.
pub(crate) fn discard(transfer: Transfer) {
    drop(catch_unwind(AssertUnwindSafe(|| drop(transfer))));
}

/// Says whether a file can be served at offsets: regular files, block devices, and character
/// devices that can seek. For pipes, sockets and terminals an offset means nothing, and a read of
/// one could hold up a thread of a service for ever.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput), or the system's own (`fstat`).
pub(crate) fn check_servable(file: &File) -> Result<(), Error> {
    let kind = OperationKind::Associate;
    let file_type = file.metadata().map_err(|e| errno::error_from_io(kind, &e))?.file_type();
    let servable = file_type.is_file() || file_type.is_block_device() || {
        // SAFETY: the descriptor is open; asking for the position changes nothing.
        let position = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_CUR) };
        file_type.is_char_device() && position >= 0
    };
    if servable { Ok(()) } else { Err(Error::new(kind, ErrorKind::InvalidInput)) }
}

/// The error of a file operation for an `errno`; some mean another thing here than on a socket.
fn error_of(operation: OperationKind, code: i32) -> Error {
    let kind = match code {
        // The descriptor is open, so it is open for the other direction only.
        libc::EBADF => ErrorKind::PermissionDenied,
        libc::EPIPE => ErrorKind::BrokenPipe,
        libc::ESPIPE => ErrorKind::Unsupported,
        // The disk is full, which is no want of memory.
        libc::ENOSPC => ErrorKind::Other,
        _ => errno::kind_of(code),
    };
    Error::with_raw(operation, kind, code)
}

/// The threads of a service.
pub(crate) struct Threads {
    handles: Mutex<Vec<JoinHandle<()>>>,
}

thread_local! {
    /// Which service this thread works for, by the address of its [`Threads`].
    static MEMBER_OF: Cell<*const Threads> = const { Cell::new(std::ptr::null()) };
}

impl Threads {
    pub(crate) const fn new() -> Self {
        Self { handles: Mutex::new(Vec::new()) }
    }

    pub(crate) fn add(&self, handle: JoinHandle<()>) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }

    /// Called by each of the threads as it starts.
    pub(crate) fn enter(&self) {
        MEMBER_OF.set(self);
    }

    /// Waits until all of them have ended. They must have been told to end, and no more may be
    /// added.
    ///
    /// A service may be closed from one of its own threads: a delivered packet can hold the last
    /// reference to the port. That thread cannot wait for itself, nor for somebody who waits for
    /// it; it waits for the others only where nobody does already.
    pub(crate) fn join(&self) {
        let handles = if std::ptr::eq(MEMBER_OF.get(), self) {
            self.handles.try_lock().ok()
        } else {
            Some(self.handles.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let Some(mut handles) = handles else { return };
        for handle in handles.drain(..) {
            if handle.thread().id() != std::thread::current().id() {
                // A panic would have been reported where it happened; the others are to be
                // waited for all the same.
                drop(handle.join());
            }
        }
    }
}
