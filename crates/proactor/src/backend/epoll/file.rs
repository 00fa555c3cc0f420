//! Files on a bounded pool of threads: `pread` and `pwrite`, which block, where no handler runs.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crate::backend::linux::errno;
use crate::backend::linux::file::{Deliver, FileRequest, FileService};
use crate::backend::linux::file_operation::{
    Direction, Outcome, Piece, Threads, Transfer, deliver, discard, take_matching,
};
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, OperationId};

/// The file service of the epoll backend.
///
/// Threads are started as requests wait and none is idle, up to the limit, and stay until the
/// service is closed. Dropping it closes it.
///
/// # Cancelling
/// A request that is queued ends at once: its packet is delivered by the thread that cancels, so
/// no lock that [`Deliver::deliver`] takes may be held then. One that is being served is marked:
/// no further system call is started for it, and where the current one finishes it, it succeeds.
/// Both count as found, as on Windows (rule 78).
pub(crate) struct ThreadFileService {
    shared: Arc<Shared>,
}

struct Shared {
    deliver: Weak<dyn Deliver>,
    state: Mutex<State>,
    /// Signalled once for each request that an idle thread is to take, and to all on close.
    work: Condvar,
    threads: Threads,
}

struct State {
    queue: VecDeque<Transfer>,
    /// What each thread is serving: its entry is its number.
    serving: Vec<Option<Serving>>,
    idle_threads: usize,
    maximum_threads: usize,
    closed: bool,
}

/// What can be said about a transfer while its thread has it.
struct Serving {
    source: u64,
    operation: OperationId,
    cancelled: bool,
}

impl ThreadFileService {
    /// A service of at most `threads` threads, none of them started yet.
    pub(crate) fn new(threads: usize, deliver: Weak<dyn Deliver>) -> Self {
        assert!(threads > 0, "without a thread no request would ever be served");
        let state = State {
            queue: VecDeque::new(),
            serving: Vec::new(),
            idle_threads: 0,
            maximum_threads: threads,
            closed: false,
        };
        let shared = Shared {
            deliver,
            state: Mutex::new(state),
            work: Condvar::new(),
            threads: Threads::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Cancels what matches, and says how much that was.
    fn cancel_matching(&self, source: u64, operation: Option<OperationId>) -> usize {
        let mut state = self.shared.lock();
        let cancelled = take_matching(&mut state.queue, source, operation);
        let mut found = cancelled.len();
        for serving in state.serving.iter_mut().flatten() {
            if serving.matches(source, operation) && !serving.cancelled {
                serving.cancelled = true;
                found += 1;
            }
        }
        drop(state);
        for transfer in cancelled {
            deliver(&self.shared.deliver, transfer.finish_cancelled());
        }
        found
    }
}

impl FileService for ThreadFileService {
    fn start(&self, request: FileRequest) -> Result<(), (Error, Operation)> {
        let transfer = Transfer::new(request)?;
        let mut state = self.shared.lock();
        if state.closed {
            let error = Error::new(transfer.kind(), ErrorKind::PortClosed);
            return Err((error, transfer.into_operation()));
        }
        if state.queue.len() >= state.idle_threads
            && state.serving.len() < state.maximum_threads
            && let Err(error) = self.shared.start_thread(&mut state)
            // The threads that there are will come to it.
            && state.serving.is_empty()
        {
            let error = errno::error_from_io(transfer.kind(), &error);
            return Err((error, transfer.into_operation()));
        }
        state.queue.push_back(transfer);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    fn cancel(&self, source: u64, operation: OperationId) -> bool {
        self.cancel_matching(source, Some(operation)) > 0
    }

    fn cancel_all(&self, source: u64) -> usize {
        self.cancel_matching(source, None)
    }

    fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        for serving in state.serving.iter_mut().flatten() {
            serving.cancelled = true;
        }
        let queued = std::mem::take(&mut state.queue);
        drop(state);
        self.shared.work.notify_all();
        // Outside of the lock: the operations carry contexts of the program.
        queued.into_iter().for_each(discard);
        self.shared.threads.join();
    }
}

impl Drop for ThreadFileService {
    fn drop(&mut self) {
        self.close();
    }
}

impl Serving {
    fn matches(&self, source: u64, operation: Option<OperationId>) -> bool {
        self.source == source && operation.is_none_or(|operation| operation == self.operation)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let number = state.serving.len();
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name("proactor-files".into());
        let handle = thread.spawn(move || {
            shared.threads.enter();
            shared.serve(number);
        })?;
        self.threads.add(handle);
        state.serving.push(None);
        Ok(())
    }

    /// What a thread of the pool does until the service is closed.
    fn serve(&self, number: usize) {
        while let Some(mut transfer) = self.next_transfer(number) {
            let mut piece = transfer.next_piece();
            let outcome = loop {
                let Some(current) = piece else { break Ok(()) };
                let result = perform(transfer.descriptor(), &current);
                if let Some(outcome) = transfer.record(result) {
                    break outcome;
                }
                // A second piece is rare; only then is it worth a look whether to go on.
                if self.is_cancelled(number) {
                    break Err(Error::new(transfer.kind(), ErrorKind::Cancelled));
                }
                piece = transfer.next_piece();
            };
            self.finish(number, transfer, outcome);
        }
    }

    /// Waits for a request; `None` once the service is closed.
    fn next_transfer(&self, number: usize) -> Option<Transfer> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(transfer) = state.queue.pop_front() {
                state.serving[number] = Some(Serving {
                    source: transfer.source(),
                    operation: transfer.id(),
                    cancelled: false,
                });
                return Some(transfer);
            }
            state.idle_threads += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle_threads -= 1;
        }
    }

    fn is_cancelled(&self, number: usize) -> bool {
        self.lock().serving[number].as_ref().is_some_and(|serving| serving.cancelled)
    }

    fn finish(&self, number: usize, transfer: Transfer, outcome: Outcome) {
        let mut state = self.lock();
        // Before the packet can be dequeued: then there is nothing to cancel (rule 80).
        state.serving[number] = None;
        let closed = state.closed;
        drop(state);
        if closed {
            discard(transfer);
        } else {
            deliver(&self.deliver, transfer.finish(outcome));
        }
    }
}

/// One system call: bytes moved, or the `errno`.
///
/// `pread`, `pwrite`, `pwritev2`: move bytes at an offset, without the file's own position.
/// References: [read(2)](https://man7.org/linux/man-pages/man2/pread.2.html),
/// [pwritev2(2)](https://man7.org/linux/man-pages/man2/preadv2.2.html).
fn perform(descriptor: i32, piece: &Piece) -> Result<usize, i32> {
    let len_bytes = piece.len_bytes as usize;
    // An offset is at most i64::MAX: checked when the request was taken in.
    let offset = piece.offset as i64;
    let vector = libc::iovec { iov_base: piece.address.cast(), iov_len: len_bytes };
    let memory = piece.address.cast();
    let result = match piece.direction {
        // SAFETY: the piece's memory is capacity of a buffer that is owned by its transfer, which
        // the caller holds, and that nothing else refers to.
        Direction::Read => unsafe { libc::pread64(descriptor, memory, len_bytes, offset) },
        // SAFETY: the vector lives for the call, and names bytes that the piece's transfer owns.
        Direction::Write if piece.append => unsafe {
            libc::pwritev2(descriptor, &vector, 1, 0, libc::RWF_APPEND)
        },
        // SAFETY: the bytes are owned by the piece's transfer, which the caller holds.
        Direction::Write => unsafe { libc::pwrite64(descriptor, memory, len_bytes, offset) },
    };
    usize::try_from(result)
        .map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::ThreadFileService;
    use crate::backend::linux::file_tests;

    file_tests::all!(1, |deliver| ThreadFileService::new(1, deliver));

    mod several_threads {
        use super::*;

        file_tests::all!(4, |deliver| ThreadFileService::new(4, deliver));
    }
}
