//! The queue of a thread, and the alertable waits that run its routines.
//!
//! Underneath is a completion port of its own that one thread dequeues from, with nothing but the
//! port's public calls: so it works on every backend, and inherits the port's promises. A packet
//! finds its routine by the id of its operation.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::handle::{KEY_EVENT, KEY_QUEUED, Queued, Shared};
use super::{ApcHandle, Event, Open, Routine};
use crate::backend::BackendDescription;
use crate::error::{AssociateError, DequeueError, Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::{Associate, Builder, Completion, CompletionPort, PortCounters};

/// How deep alertable waits may be nested in routines of one queue. Routines are run by what peers
/// do, and each level takes a part of the stack.
pub const NESTED_WAITS: usize = 32;

/// Packets dequeued at a time.
const BATCH: usize = 32;
/// After so many routines, a wait ends with what is queued by then.
const ROUTINES_BEFORE_MARKER: usize = 1024;
/// The key of the packets of sources and timers.
pub(super) const KEY_OPERATION: usize = 0;
/// The key of a packet that says: what was queued before it has been run.
const KEY_MARKER: usize = 3;

/// How an alertable wait ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wake {
    /// Routines have run: all that were queued (rule 127). (On Windows: `WAIT_IO_COMPLETION`.)
    Routines,
    /// The event was set. (On Windows: `WAIT_OBJECT_0`.)
    Signalled,
    /// The time was up, and no routine was queued. (On Windows: 0 from `SleepEx`, `WAIT_TIMEOUT`
    /// from `WaitForSingleObjectEx`.)
    TimedOut,
}

/// The completion routines of one thread, and the sources whose operations end in them. (On Windows
/// each thread has such a queue: that of its asynchronous procedure calls.)
///
/// See the [module](super) for the model. A thread may have several, each with waits of its own.
pub struct ApcQueue {
    inner: Rc<Inner>,
}

/// What the queue shares with its sources.
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    /// The routine of each operation in flight.
    routines: RefCell<HashMap<OperationId, Routine>>,
    /// Dequeued, and not run yet. A nested wait goes on with them.
    ready: RefCell<VecDeque<Completion>>,
    /// Packets of routines that are running further up the stack.
    postponed: RefCell<VecDeque<(Routine, Completion)>>,
    depth: Cell<usize>,
    markers_posted: Cell<usize>,
    markers_seen: Cell<usize>,
}

impl Inner {
    /// Starts an operation that ends in `routine`. Only this thread dequeues, so the packet cannot
    /// come before the routine is noted.
    pub(super) fn start(
        &self,
        routine: &Routine,
        start: impl FnOnce() -> Result<OperationId, Rejected>,
    ) -> Result<OperationId, Rejected> {
        let id = start()?;
        self.routines.borrow_mut().insert(id, routine.clone());
        Ok(id)
    }

    /// The routine of a packet: kept while more packets of its operation come.
    fn routine_of(&self, completion: &Completion) -> Option<Routine> {
        let id = completion.operation_id()?;
        let mut routines = self.routines.borrow_mut();
        if completion.more() { routines.get(&id).cloned() } else { routines.remove(&id) }
    }
}

impl ApcQueue {
    /// A queue for the calling thread, on the backend that
    /// [`CompletionPort::new`] would choose.
    ///
    /// # Errors
    /// As [`CompletionPort::new`].
    pub fn new() -> Result<Self, Error> {
        Self::with_builder(CompletionPort::builder())
    }

    /// A queue with a backend, buffers and windows of the caller's choice. The concurrency limit is
    /// of no account: only the calling thread runs routines.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn with_builder(builder: Builder) -> Result<Self, Error> {
        let port = builder.concurrency(1).build()?;
        let shared = Arc::new(Shared { port, queued_routines: AtomicUsize::new(0) });
        let inner = Inner {
            shared,
            routines: RefCell::new(HashMap::new()),
            ready: RefCell::new(VecDeque::with_capacity(BATCH)),
            postponed: RefCell::new(VecDeque::new()),
            depth: Cell::new(0),
            markers_posted: Cell::new(0),
            markers_seen: Cell::new(0),
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    fn port(&self) -> &CompletionPort {
        &self.inner.shared.port
    }

    /// Which backend it uses, and why.
    pub fn backend(&self) -> &BackendDescription {
        self.port().backend()
    }

    /// What has been done so far; `dequeued_packets` counts what ran routines, and what only woke
    /// the thread.
    pub fn counters(&self) -> PortCounters {
        self.port().counters()
    }

    /// Opens a socket or a file on this queue: its operations end in routines.
    ///
    /// A source is opened once in its life, on one queue, and then never associated with a port
    /// (rule 130); the other way round too. Otherwise as [`CompletionPort::associate`].
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) where the source is associated with a port, or open
    /// on a queue, through a duplicate, or is of a kind that cannot be served. The source is in the
    /// error.
    pub fn open<S>(&self, source: S) -> Result<<S::Associated as Open>::Opened, AssociateError<S>>
    where
        S: Associate,
        S::Associated: Open,
    {
        let associated = self.port().associate(source, KEY_OPERATION)?;
        Ok(associated.opened(Rc::clone(&self.inner)))
    }

    /// Starts a timer that ends in `routine` once `delay` has passed, never before. (On Windows:
    /// `SetWaitableTimer` with a routine.)
    ///
    /// # Errors
    /// As [`CompletionPort::start_timer`].
    pub fn start_timer(
        &self,
        delay: Duration,
        operation: Operation,
        routine: &Routine,
    ) -> Result<OperationId, Rejected> {
        self.inner.start(routine, || self.port().start_timer(KEY_OPERATION, delay, operation))
    }

    /// Cancels a timer. Its routine still runs, with [`Cancelled`](ErrorKind::Cancelled) (rule 131).
    /// Returns `false` where there is no such timer, or it has expired.
    pub fn cancel_timer(&self, timer: OperationId) -> bool {
        self.port().cancel_timer(timer)
    }

    /// A handle for other threads, to queue routines with.
    pub fn handle(&self) -> ApcHandle {
        ApcHandle { shared: Arc::clone(&self.inner.shared) }
    }

    /// A new event, not set, for [`wait`](Self::wait) on this queue.
    pub fn event(&self) -> Event {
        Event::new(&self.inner.shared)
    }

    /// Waits alertably: until routines have run, or `timeout` has passed (`None`: for ever; zero:
    /// runs what is queued, and waits for nothing). (On Windows: `SleepEx` with `bAlertable`.)
    ///
    /// Every routine that was queued when the wait began to run them has run when it returns (rule
    /// 127), oldest first (rule 132), and so have those that routines queued through a handle
    /// meanwhile. A wait that has run 1,024 ends with what is queued by then, so that peers that
    /// send and send cannot hold the thread in it. Operations that end meanwhile, also those that a
    /// routine has started, may be left to the next wait, which then does not wait.
    ///
    /// The timeout is never cut short; a wake by routines is no timeout.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) deeper than [`NESTED_WAITS`]; else the system's,
    /// where it refuses the thread the descriptors that waiting takes.
    ///
    /// # Panics
    /// Where a routine does; the others stay queued.
    pub fn sleep(&self, timeout: Option<Duration>) -> Result<Wake, Error> {
        self.wait_alertably(None, timeout)
    }

    /// As [`sleep`](Self::sleep), and also until `event` is set. (On Windows:
    /// `WaitForSingleObjectEx` with `bAlertable`.)
    ///
    /// An event that is set already ends the wait at once, and routines that are queued stay so.
    /// Where both come during the wait routines go first, and the event stays set (rule 134).
    ///
    /// # Errors
    /// As [`sleep`](Self::sleep), and [`InvalidInput`](ErrorKind::InvalidInput) for an event of
    /// another queue.
    pub fn wait(&self, event: &Event, timeout: Option<Duration>) -> Result<Wake, Error> {
        if !event.belongs_to(&self.inner.shared) {
            return Err(invalid());
        }
        self.wait_alertably(Some(event), timeout)
    }

    fn wait_alertably(
        &self,
        event: Option<&Event>,
        timeout: Option<Duration>,
    ) -> Result<Wake, Error> {
        let _level = Level::enter(&self.inner)?;
        if event.is_some_and(Event::take) {
            return Ok(Wake::Signalled);
        }
        // A time beyond the clock's range is for ever.
        let deadline = timeout
            .filter(|timeout| !timeout.is_zero())
            .map(|timeout| Instant::now().checked_add(timeout));
        let mut first_wait = timeout;
        let mut marker = None;
        // A nested wait first runs what the one around it has dequeued.
        let mut ran = self.run_ready();
        loop {
            let wait = if ran > 0 { Some(Duration::ZERO) } else { first_wait };
            let is_drained = match self.dequeue(wait) {
                Ok(is_drained) => is_drained,
                Err(DequeueError::TimedOut) if ran > 0 => return Ok(Wake::Routines),
                Err(DequeueError::TimedOut) => return Ok(Wake::TimedOut),
                Err(DequeueError::Closed) => {
                    return Err(Error::new(OperationKind::Dequeue, ErrorKind::PortClosed));
                }
                Err(DequeueError::Failed(error)) => return Err(error),
            };
            ran += self.run_ready();
            if ran == 0 {
                if event.is_some_and(Event::take) {
                    return Ok(Wake::Signalled);
                }
                // It was no routine, or one that is running: the wait goes on for what is left.
                first_wait = match deadline {
                    Some(Some(deadline)) => {
                        Some(deadline.saturating_duration_since(Instant::now()))
                    }
                    _ => first_wait,
                };
                continue;
            }
            let has_passed = marker.is_some_and(|marker| self.inner.markers_seen.get() >= marker);
            if has_passed || (is_drained && !self.has_queued_routines()) {
                return Ok(Wake::Routines);
            }
            if ran >= ROUTINES_BEFORE_MARKER && marker.is_none() {
                marker = Some(self.post_marker()?);
            }
        }
    }

    /// Dequeues a batch, and says whether that was all there was.
    fn dequeue(&self, timeout: Option<Duration>) -> Result<bool, DequeueError> {
        let mut batch: [Option<Completion>; BATCH] = [const { None }; BATCH];
        let count = self.port().dequeue_many(&mut batch, timeout)?;
        self.inner.ready.borrow_mut().extend(batch.into_iter().take(count).flatten());
        Ok(count < BATCH)
    }

    /// Runs what was dequeued, and says how many routines that were.
    fn run_ready(&self) -> usize {
        let mut ran = 0;
        loop {
            // No cell stays borrowed while a routine runs.
            let next = self.inner.ready.borrow_mut().pop_front();
            let Some(completion) = next else { return ran };
            ran += self.run(completion);
        }
    }

    fn run(&self, completion: Completion) -> usize {
        if completion.kind() == OperationKind::Post {
            return self.run_posted(completion);
        }
        let Some(routine) = self.inner.routine_of(&completion) else {
            unreachable!("every operation on a queue has a routine: {completion:?}")
        };
        if let Some(completion) = routine.run(self, completion) {
            self.inner.postponed.borrow_mut().push_back((routine, completion));
            return 0;
        }
        1 + self.run_postponed(&routine)
    }

    /// Runs what had to wait for this routine to return, in order.
    fn run_postponed(&self, routine: &Routine) -> usize {
        let mut ran = 0;
        loop {
            let next = {
                let mut postponed = self.inner.postponed.borrow_mut();
                let position = postponed.iter().position(|(other, _)| other.is(routine));
                position.and_then(|position| postponed.remove(position))
            };
            let Some((routine, completion)) = next else { return ran };
            let refused = routine.run(self, completion);
            assert!(refused.is_none(), "the routine has just returned");
            ran += 1;
        }
    }

    fn run_posted(&self, completion: Completion) -> usize {
        match completion.key() {
            KEY_QUEUED => {
                self.inner.shared.queued_routines.fetch_sub(1, Ordering::SeqCst);
                let mut operation = completion.into_operation().expect("it carries the routine");
                let routine = operation.take_context::<Queued>().expect("as it was queued");
                routine(self);
                1
            }
            KEY_MARKER => {
                self.inner.markers_seen.set(completion.bytes());
                0
            }
            KEY_EVENT => 0,
            key => unreachable!("nobody posts with key {key}"),
        }
    }

    fn has_queued_routines(&self) -> bool {
        self.inner.shared.queued_routines.load(Ordering::SeqCst) > 0
    }

    fn post_marker(&self) -> Result<usize, Error> {
        let marker = self.inner.markers_posted.get() + 1;
        self.port().post(KEY_MARKER, marker, None)?;
        self.inner.markers_posted.set(marker);
        Ok(marker)
    }
}

impl Drop for ApcQueue {
    fn drop(&mut self) {
        self.port().close();
        // Routines may own sources of this queue, which own a part of it in turn: that circle is
        // opened here. Nothing is borrowed while what they captured is dropped.
        let routines = std::mem::take(&mut *self.inner.routines.borrow_mut());
        let ready = std::mem::take(&mut *self.inner.ready.borrow_mut());
        let postponed = std::mem::take(&mut *self.inner.postponed.borrow_mut());
        drop((routines, ready, postponed));
    }
}

impl fmt::Debug for ApcQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ApcQueue")
            .field("backend", &self.backend().name())
            .field("operations", &self.inner.routines.borrow().len())
            .finish_non_exhaustive()
    }
}

/// One alertable wait on the stack.
struct Level<'a>(&'a Cell<usize>);

impl<'a> Level<'a> {
    fn enter(inner: &'a Inner) -> Result<Self, Error> {
        if inner.depth.get() == NESTED_WAITS {
            return Err(invalid());
        }
        inner.depth.set(inner.depth.get() + 1);
        Ok(Self(&inner.depth))
    }
}

impl Drop for Level<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn invalid() -> Error {
    Error::new(OperationKind::Dequeue, ErrorKind::InvalidInput)
}
