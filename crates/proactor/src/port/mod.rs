//! The completion port: associate, dequeue, post, timers, close.

mod builder;
mod completion;
mod snapshot;
mod source;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{Backend, BackendDescription, JoinThread, ThreadBody, VirtualCondition};
use crate::error::{AssociateError, DequeueError, Error, Rejected};
use crate::operation::{Operation, OperationId, OperationKind, Payload};

pub use builder::Builder;
pub(crate) use builder::Config;
pub use completion::Completion;
pub use snapshot::{BatchSizes, PortSnapshot, WorkerSnapshot, WorkerState};
pub use source::{Accepted, Associate, AssociatedFile, DatagramSocket, ListenSocket, StreamSocket};

const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// One queue of finished I/O, with a limit on how many threads handle packets at once.
///
/// The port creates no worker threads: whichever thread calls [`dequeue`](Self::dequeue) is one.
/// Share it by reference or in an [`Arc`]; every method may be called from any thread.
///
/// # Threads
/// A thread belongs to the port from its first dequeue until it exits, dequeues from another port,
/// or the port closes (rule 39). Packets are dequeued in the order in which they were queued, and
/// a waiting thread is released last-in-first-out (rules 35 to 37). While as many threads as the
/// concurrency limit are handling packets, further packets stay queued even where other threads
/// wait (rule 38); a thread that blocks in its handler gives its slot up (rule 40), see
/// [`blocking`](Self::blocking).
///
/// # Dropping
/// Dropping the port [closes](Self::close) it, cancels what is in flight and frees it once the
/// kernel has let go of it. The sources stay valid and refuse further operations.
pub struct CompletionPort {
    backend: Arc<dyn Backend>,
}

/// What a port has done since it was created. Counts are collected without locks and may be a
/// little behind each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortCounters {
    /// Packets handed to threads that dequeued.
    pub dequeued_packets: u64,
    /// System calls that waited for or submitted I/O in a batch (`io_uring_enter`, `epoll_wait`,
    /// `GetQueuedCompletionStatusEx`).
    pub wait_calls: u64,
    /// Packets or ready sockets taken over from a thread that was stuck in its handler. This and
    /// the next two are 0 on Windows, whose kernel does these things and does not count them.
    pub rescues: u64,
    /// Times a thread gave up its slot: found blocked in its handler, in a
    /// [`blocking`](CompletionPort::blocking) section, or gone to another port.
    pub blocked_threads: u64,
    /// Times a parked thread was woken by another one.
    pub wakes: u64,
    /// Bytes of receive buffers that the pools hold.
    pub pool_bytes: u64,
}

impl CompletionPort {
    /// Creates a port on which at most `concurrency` threads handle packets at once; 0 means one
    /// per processor (rule 2).
    ///
    /// On Linux the backend is io_uring where the kernel offers what it needs, else epoll; on
    /// Windows it is the kernel's own port. See [`backend`](Self::backend) for which and why, and
    /// [`Builder`] for more choices. The variable `PROACTOR_BACKEND` (`io_uring`, `epoll` or
    /// `iocp`) forces one.
    ///
    /// # Errors
    /// Where a forced backend is not to be had, or the system has no descriptor left.
    pub fn new(concurrency: usize) -> Result<Self, Error> {
        Builder::new().concurrency(concurrency).build()
    }

    /// A builder with every option at its default.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn from_backend(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    pub(crate) fn backend_handle(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Which backend the port uses, which kernel features, and why any is missing.
    pub fn backend(&self) -> &BackendDescription {
        self.backend.describe()
    }

    /// The concurrency limit in force.
    pub fn concurrency(&self) -> usize {
        self.backend.concurrency()
    }

    /// What the port has done so far.
    pub fn counters(&self) -> PortCounters {
        self.backend.counters()
    }

    /// How the port is doing right now: its queue, what each thread is doing, batch sizes, buffers.
    ///
    /// Any thread may ask, at any time, also one that does not belong to the port; no thread of
    /// the port is stopped for it, nor waits longer than it takes to copy a number. It allocates a
    /// list of the threads, so ask some times a second, not for each packet.
    pub fn snapshot(&self) -> PortSnapshot {
        self.backend.snapshot()
    }

    /// What the port's clock says, for [`start_timer_at`](Self::start_timer_at): the system's
    /// monotonic clock, or in a simulated world (feature `sim`) its virtual one.
    pub fn now(&self) -> Instant {
        self.backend.now()
    }

    /// A random number, from the world that the port is part of.
    pub(crate) fn random(&self) -> u64 {
        self.backend.random()
    }

    /// Starts a thread in the world that the port is part of.
    pub(crate) fn spawn(&self, name: String, body: ThreadBody) -> std::io::Result<JoinThread> {
        self.backend.spawn(name, body)
    }

    /// The calling thread pauses, in the time of the world that the port is part of.
    pub(crate) fn pause(&self, time: Duration) {
        self.backend.pause(time);
    }

    /// A condition to wait for; `None`: the system's does.
    pub(crate) fn condition(&self) -> Option<Box<dyn VirtualCondition>> {
        self.backend.condition()
    }

    /// Associates a socket or a file with the port: packets of its operations carry `key`.
    ///
    /// The port takes the source and gives a handle that starts operations. Clones of the handle
    /// are duplicates: the key belongs to the source (rule 9), and dropping the last one closes it
    /// (rules 10, 74). A socket can be associated once in its life, with one port (rule 8).
    ///
    /// The source's own blocking mode is managed by the port from here on. Bytes that the port
    /// has read ahead for a stream are seen by `recv` only, not by plain reads on a duplicate of
    /// the descriptor made elsewhere, and closing the handle may end the connection for such a
    /// duplicate too.
    ///
    /// On Windows a file that was not opened with `FILE_FLAG_OVERLAPPED` is opened again for
    /// overlapped I/O, with the access that it has (`ReOpenFile`): its share mode has to allow that,
    /// as the standard library's default does.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) where the socket is associated already
    /// through a duplicate, or is of a kind that the port cannot serve;
    /// [`PortClosed`](crate::ErrorKind::PortClosed). The source is in the error.
    pub fn associate<S: Associate>(
        &self,
        source: S,
        key: usize,
    ) -> Result<S::Associated, AssociateError<S>> {
        source.associate_with(self, key)
    }

    /// Takes the oldest packet, waiting for one up to `timeout` (`None`: for ever; zero: not at
    /// all). A timeout never ends early.
    ///
    /// # Errors
    /// [`TimedOut`](DequeueError::TimedOut); [`Closed`](DequeueError::Closed) where the port is
    /// closed before or during the wait; [`Failed`](DequeueError::Failed) where the system refuses
    /// this thread the descriptors that waiting takes. A packet of a *failed operation* is a
    /// packet: see [`Completion::result`] (rule 16).
    ///
    /// References: Microsoft Learn, "GetQueuedCompletionStatus function", and "I/O Completion Ports"
    /// for the order in which threads are released.
    pub fn dequeue(&self, timeout: Option<Duration>) -> Result<Completion, DequeueError> {
        let mut slot = None;
        self.backend.dequeue(std::slice::from_mut(&mut slot), timeout)?;
        Ok(slot.expect("a successful dequeue fills the first entry"))
    }

    /// Takes as many packets as are there, at most `completions.len()`, oldest first, and returns
    /// how many; waits only while there is none (rules 24, 27).
    ///
    /// The packets are written as `Some` to the front of `completions`; the rest is untouched.
    /// On a port that several threads serve, prefer small batches: what one thread has taken no
    /// other thread can handle.
    ///
    /// # Errors
    /// As [`dequeue`](Self::dequeue).
    ///
    /// # Panics
    /// Where `completions` is empty.
    pub fn dequeue_many(
        &self,
        completions: &mut [Option<Completion>],
        timeout: Option<Duration>,
    ) -> Result<usize, DequeueError> {
        assert!(!completions.is_empty(), "dequeue_many needs room for one packet");
        self.backend.dequeue(completions, timeout)
    }

    /// Queues a packet of the program's own. `key` and `bytes` come back as they are, and so does
    /// the operation (rules 32, 33); its payload and context are untouched.
    ///
    /// # Errors
    /// [`PortClosed`](crate::ErrorKind::PortClosed); the operation is in the error where one was
    /// given, else a new empty one. On Windows also
    /// [`InsufficientResources`](crate::ErrorKind::InsufficientResources) where the kernel has no
    /// memory for the packet.
    ///
    /// References: Microsoft Learn, "PostQueuedCompletionStatus function".
    pub fn post(
        &self,
        key: usize,
        bytes: usize,
        operation: Option<Operation>,
    ) -> Result<(), Rejected> {
        self.backend.post(Completion::posted(key, bytes, operation))
    }

    /// Starts a timer: a packet with `key` and this operation is queued once `delay` has passed,
    /// never before.
    ///
    /// # Errors
    /// [`PortClosed`](crate::ErrorKind::PortClosed). On Windows, with the port's first timer, what
    /// the system has against one more thread or timer object. The operation is in the error.
    ///
    /// References: [clock_gettime(2)](https://man7.org/linux/man-pages/man2/clock_gettime.2.html) for
    /// `CLOCK_MONOTONIC`; Microsoft Learn, "SetWaitableTimer function (synchapi.h)".
    pub fn start_timer(
        &self,
        key: usize,
        delay: Duration,
        operation: Operation,
    ) -> Result<OperationId, Rejected> {
        let now = self.backend.now();
        // Beyond what the clock can name, a century is for ever.
        let deadline = now.checked_add(delay).unwrap_or_else(|| now + CENTURY);
        self.start_timer_at(key, deadline, operation)
    }

    /// Starts a timer that is due at `deadline`; see [`start_timer`](Self::start_timer).
    ///
    /// # Errors
    /// As [`start_timer`](Self::start_timer).
    pub fn start_timer_at(
        &self,
        key: usize,
        deadline: Instant,
        mut operation: Operation,
    ) -> Result<OperationId, Rejected> {
        let id = operation.prepare(OperationKind::Timer, Payload::None);
        self.backend.start_timer(key, deadline, operation)?;
        Ok(id)
    }

    /// Cancels a timer; its packet comes at once, with
    /// [`Cancelled`](crate::ErrorKind::Cancelled). Returns whether there was such a timer that had
    /// not expired (rule 80).
    pub fn cancel_timer(&self, timer: OperationId) -> bool {
        self.backend.cancel_timer(timer)
    }

    /// Runs `section`, which may block, without this thread's slot: another thread may be released
    /// in its place at once (rule 40). Without it the port finds out by itself where a thread is
    /// idle to look: within a few milliseconds, and within half of one for a second after that.
    ///
    /// On return the thread counts again, even where that exceeds the limit for a while (rule 41).
    /// On Windows the kernel sees for itself when a thread blocks, at once, and this adds nothing
    /// to that: a section that computes and never blocks keeps the slot there.
    /// On a thread that is not handling a packet of this port it just runs `section`.
    pub fn blocking<R>(&self, section: impl FnOnce() -> R) -> R {
        struct Guard<'a>(&'a dyn Backend, bool);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if self.1 {
                    self.0.leave_blocking();
                }
            }
        }
        let guard = Guard(&*self.backend, self.backend.enter_blocking());
        let result = section();
        drop(guard);
        result
    }

    /// Closes the port: every waiting thread returns [`DequeueError::Closed`], and so does every
    /// later dequeue. Operations in flight are cancelled and freed without a packet, and so are
    /// packets still queued (rule 21); a connection among them is closed. Closing twice is
    /// harmless.
    pub fn close(&self) {
        self.backend.close();
    }
}

impl Drop for CompletionPort {
    fn drop(&mut self) {
        self.backend.close();
    }
}

impl std::fmt::Debug for CompletionPort {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CompletionPort")
            .field("backend", &self.backend.describe().name())
            .field("concurrency", &self.backend.concurrency())
            .finish_non_exhaustive()
    }
}
