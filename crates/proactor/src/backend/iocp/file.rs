//! A file that is associated: overlapped reads and writes at offsets.
//!
//! - A read fills the buffer's capacity and ends short only where the file ends (rule 120); at or
//!   behind the end it fails with [`EndOfFile`](ErrorKind::EndOfFile).
//! - A write goes on until the whole buffer is written; at `u64::MAX` it appends (rule 121).
//! - Without any bytes to move both succeed at once (rule 122).

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use socket2::SockRef;
use windows_sys::Win32::Foundation::{ERROR_INVALID_PARAMETER, HANDLE};

use super::code;
use super::overlapped::{Flight, Manner, Outcome, Owner, Pending, push_surely};
use super::port::Port;
use super::queue::Queue;
use super::syscall::{self, Code};
use crate::backend::BackendSource;
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Inner, Operation, OperationId, OperationKind, Payload};
use crate::port::Completion;

/// The most that one call moves.
const PIECE_BYTES: usize = 1 << 30;

/// The file, opened for overlapped I/O and associated.
pub(crate) struct OverlappedFile {
    /// As it was handed in: kept, because closing it may delete it, or end a lock on it.
    original: File,
    /// The same file opened for overlapped I/O, where the original is not.
    reopened: Option<OwnedHandle>,
}

impl OverlappedFile {
    fn handle(&self) -> HANDLE {
        match &self.reopened {
            Some(handle) => handle.as_raw_handle(),
            None => self.original.as_raw_handle(),
        }
    }

    /// Associates a file. One that was not opened for overlapped I/O cannot be (rule 7), so the
    /// same file is opened again, with the same access.
    pub(crate) fn associate(file: File, queue: &Queue, skips: bool) -> Result<Self, (Error, File)> {
        let error_of = |code| code::error_of(OperationKind::Associate, code);
        if !syscall::is_disk_file(file.as_raw_handle()) {
            return Err((error_of(ERROR_INVALID_PARAMETER as Code), file));
        }
        let mut opened = Self { original: file, reopened: None };
        let mut outcome = queue.associate(opened.handle());
        if outcome == Err(ERROR_INVALID_PARAMETER as Code) {
            outcome = syscall::reopen_overlapped(opened.handle()).and_then(|handle| {
                opened.reopened = Some(handle);
                queue.associate(opened.handle())
            });
        }
        match outcome.and_then(|()| syscall::set_notification_modes(opened.handle(), skips)) {
            Ok(()) => Ok(opened),
            Err(code) => Err((error_of(code).with_cause(reopen_cause()), opened.original)),
        }
    }
}

/// What to do about a file that could not be opened again.
fn reopen_cause() -> &'static String {
    static CAUSE: OnceLock<String> = OnceLock::new();
    CAUSE.get_or_init(|| {
        "the file was not opened for overlapped I/O (FILE_FLAG_OVERLAPPED) and could not be \
         opened again (its share mode has to allow that)"
            .to_owned()
    })
}

pub(crate) struct FileSource {
    me: Weak<Self>,
    port: Arc<Port>,
    key: usize,
    id: u64,
    skips: bool,
    state: Mutex<State>,
}

struct State {
    /// `None`: the last handle is gone.
    file: Option<OverlappedFile>,
    ended: bool,
    pending: Pending,
}

impl FileSource {
    pub(crate) fn new(
        port: Arc<Port>,
        file: OverlappedFile,
        key: usize,
        id: u64,
        skips: bool,
    ) -> Arc<Self> {
        let state = State { file: Some(file), ended: false, pending: Pending::default() };
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            port,
            key,
            id,
            skips,
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an operation, or its next piece, to the kernel; or ends it.
    fn issue(&self, state: &mut State, operation: Operation) -> Option<Completion> {
        let kind = operation.kind();
        let left_bytes = total_bytes(&operation.inner) - operation.inner.done_bytes;
        let (Some(file), Some(owner)) = (&state.file, self.me.upgrade()) else {
            let error = Error::new(kind, ErrorKind::Cancelled);
            return Some(self.finish(operation, Some(error)));
        };
        if left_bytes == 0 {
            return Some(self.finish(operation, None));
        }
        let handle = file.handle();
        let done = operation.inner.done_bytes;
        // An append (all ones) stays one.
        let offset = operation.inner.offset.saturating_add(done as u64);
        let piece_bytes = left_bytes.min(PIECE_BYTES) as u32;
        let manner = Manner { skips: self.skips, goes_on: left_bytes > PIECE_BYTES };
        let issued = state.pending.issue(self.port.queue(), owner, manner, operation, |flight| {
            // SAFETY: just launched, and no call was made with it.
            unsafe { flight.set_offset(offset) };
            // SAFETY: as above.
            let inner = unsafe { flight.inner() };
            match &mut inner.payload {
                Payload::Buffer(buffer) => {
                    // A piece ends within the capacity: `total_bytes` is all of it.
                    let start = buffer.as_mut_ptr().wrapping_add(done);
                    // SAFETY: the rest of the capacity, and the OVERLAPPED, are the operation's
                    // own: nobody touches them until it lands.
                    unsafe { syscall::read(handle, start, piece_bytes, flight.overlapped()) }
                }
                Payload::Data(data) => {
                    let start = data.as_slice()[done..].as_ptr();
                    // SAFETY: the operation owns the bytes, which do not change, and the
                    // OVERLAPPED: nobody touches them until it lands.
                    unsafe { syscall::write(handle, start, piece_bytes, flight.overlapped()) }
                }
                _ => unreachable!("checked when it was started"),
            }
        });
        match issued {
            Ok(_) => None,
            // The end of the file, a missing right: told by the packet, as on every backend.
            Err((code, operation)) => {
                let error = self.failure(&operation, code);
                Some(self.finish(operation, error))
            }
        }
    }

    /// What a code says of an operation: the end of the file is none for a read that has bytes.
    fn failure(&self, operation: &Operation, code: Code) -> Option<Error> {
        let mut error = code::error_of(operation.kind(), code);
        if error.kind() == ErrorKind::EndOfFile && operation.inner.done_bytes > 0 {
            return None;
        }
        if error.kind() == ErrorKind::ConnectionAborted {
            // The handle was closed meanwhile (rule 76).
            error = Error::with_raw(operation.kind(), ErrorKind::Cancelled, code);
        }
        Some(error)
    }

    /// The packet.
    fn finish(&self, mut operation: Operation, error: Option<Error>) -> Completion {
        let inner = &mut *operation.inner;
        let bytes = inner.done_bytes;
        if let Payload::Buffer(buffer) = &mut inner.payload {
            assert!(bytes <= buffer.capacity(), "the kernel read more than it was asked to");
            // SAFETY: the kernel has written the first `bytes` of the capacity, piece by piece.
            unsafe { buffer.set_len(bytes) };
        }
        Completion::finished(self.key, operation, bytes, error)
    }

    /// A piece of an operation is done.
    fn finish_piece(
        &self,
        state: &mut State,
        mut operation: Operation,
        outcome: Outcome,
    ) -> Option<Completion> {
        let kind = operation.kind();
        operation.inner.done_bytes += outcome.bytes;
        if outcome.code != 0 {
            let error = self.failure(&operation, outcome.code);
            return Some(self.finish(operation, error));
        }
        let whole = operation.inner.done_bytes == total_bytes(&operation.inner);
        if outcome.bytes == 0 && !whole {
            // No file does this to a write; without an end here it would be tried for ever.
            let reason = match kind {
                OperationKind::ReadAt => ErrorKind::EndOfFile,
                _ => ErrorKind::Other,
            };
            let some_read = kind == OperationKind::ReadAt && operation.inner.done_bytes > 0;
            let error = (!some_read).then(|| Error::new(kind, reason));
            return Some(self.finish(operation, error));
        }
        // A read that ends short has met the end of the file.
        let short = kind == OperationKind::ReadAt && !operation.inner.native.goes_on;
        if whole || short {
            return Some(self.finish(operation, None));
        }
        if operation.inner.cancelled || state.ended {
            let error = Error::new(kind, ErrorKind::Cancelled);
            return Some(self.finish(operation, Some(error)));
        }
        self.issue(state, operation)
    }
}

fn total_bytes(inner: &Inner) -> usize {
    match &inner.payload {
        Payload::Buffer(buffer) => buffer.capacity(),
        Payload::Data(data) => data.len(),
        _ => 0,
    }
}

impl Owner for FileSource {
    fn finished(self: Arc<Self>, flight: Flight, bytes: u32) -> Option<Completion> {
        let mut state = self.lock();
        // SAFETY: the packet was dequeued just now, with `bytes`, and the lock is held.
        let outcome = unsafe { flight.outcome(bytes) };
        // SAFETY: as above; each packet is dequeued once, so nobody else lands it.
        let operation = unsafe { state.pending.land(flight) };
        self.finish_piece(&mut state, operation, outcome)
    }

    fn abandon(&self) {
        let mut state = self.lock();
        state.ended = true;
        if let Some(file) = &state.file {
            cancel_pending(file, &state.pending);
        }
    }
}

impl BackendSource for FileSource {
    fn key(&self) -> usize {
        self.key
    }

    fn socket(&self) -> io::Result<SockRef<'_>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a file is not a socket"))
    }

    fn start(self: Arc<Self>, operation: Operation) -> Result<(), Rejected> {
        let kind = operation.kind();
        let refuse = |reason, operation| Err(Rejected::new(Error::new(kind, reason), operation));
        let mut state = self.lock();
        if state.ended || self.port.queue().is_closed() {
            drop(state);
            return refuse(ErrorKind::PortClosed, operation);
        }
        let may_append = kind == OperationKind::WriteAt;
        let offset = operation.inner.offset;
        // What the kernel counts offsets in.
        let fits = i64::try_from(offset).is_ok() || (may_append && offset == u64::MAX);
        if !fits || !matches!(kind, OperationKind::ReadAt | OperationKind::WriteAt) {
            drop(state);
            return refuse(ErrorKind::InvalidInput, operation);
        }
        if let Some(packet) = self.issue(&mut state, operation) {
            push_surely(self.port.queue(), packet);
        }
        Ok(())
    }

    fn cancel(&self, id: OperationId) -> bool {
        let state = self.lock();
        match (&state.file, state.pending.find(id)) {
            // SAFETY: it is in the table, so it has not landed; and the lock is held.
            (Some(file), Some(flight)) => unsafe { cancel_flight(file, flight) },
            _ => false,
        }
    }

    fn cancel_all(&self) -> usize {
        let state = self.lock();
        let Some(file) = &state.file else { return 0 };
        let flights = state.pending.in_order();
        // SAFETY: they are in the table, so they have not landed; and the lock is held.
        let cancelled = flights.iter().filter(|&&flight| unsafe { cancel_flight(file, flight) });
        cancelled.count()
    }

    fn shutdown(&self, _how: Shutdown) -> Result<(), Error> {
        Err(Error::new(OperationKind::Shutdown, ErrorKind::InvalidInput))
    }

    fn close(&self) {
        let file = {
            let mut state = self.lock();
            state.ended = true;
            let file = state.file.take();
            if let Some(file) = &file {
                cancel_pending(file, &state.pending);
            }
            file
        };
        drop(file);
    }
}

/// The source ends: cancels what the kernel has, the oldest first.
fn cancel_pending(file: &OverlappedFile, pending: &Pending) {
    for flight in pending.in_order() {
        syscall::cancel(file.handle(), flight.overlapped());
    }
}

/// Cancels one operation that the kernel has, or had just now.
///
/// # Safety
/// It has not landed, and the lock is held.
unsafe fn cancel_flight(file: &OverlappedFile, flight: Flight) -> bool {
    // SAFETY: as the caller promises.
    unsafe { flight.cancel(file.handle()) }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        self.port.forget(self.id);
    }
}
