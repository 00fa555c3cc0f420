//! A port with its worker threads, for any number of services.

mod registry;
mod timers;

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::error::StartError;
use super::job_queue::PortScheduler;
use super::timer_wheel::TimerKey;
use crate::backend::JoinThread;
use crate::sync::{Mutex, lock, thread_local};
use crate::{Builder, Completion, CompletionPort, DequeueError};

pub(super) use registry::{Key, Registry, Source};
pub(super) use timers::Timed;
use timers::Timers;

/// How long a worker that the system refuses what it needs to wait pauses before it tries again.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// The runtime whose packet this thread is handling.
    static HANDLING: Cell<usize> = const { Cell::new(0) };
}

/// A completion port and the threads that serve it. Any number of services run on one runtime.
///
/// Clones are handles of the same runtime. When the last one goes, services included, the port is
/// closed and the threads are joined.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<RuntimeShared>,
    owner: Arc<Owner>,
}

/// Options of a [`Runtime`].
pub struct RuntimeBuilder {
    port: Builder,
    concurrency: usize,
    threads: Option<usize>,
    name: String,
}

impl RuntimeBuilder {
    /// How many threads may handle packets at once; 0, the default, means one per processor.
    pub fn concurrency(mut self, threads: usize) -> Self {
        self.concurrency = threads;
        self
    }

    /// How many worker threads there are. More than the concurrency limit are spares, which take
    /// over from those that block in a callback. Default: twice the limit, at least 4.
    ///
    /// With 0 threads the program serves the port itself: see [`Runtime::dispatch`].
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Further options of the port. Its concurrency is set by [`concurrency`](Self::concurrency).
    pub fn port(mut self, port: Builder) -> Self {
        self.port = port;
        self
    }

    /// What the threads are called, with a number behind. Default `proactor`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Opens the port and starts the threads.
    ///
    /// # Errors
    /// As [`CompletionPort::new`], or the system refuses a thread.
    pub fn build(self) -> Result<Runtime, StartError> {
        let port = self
            .port
            .concurrency(self.concurrency)
            .build()
            .map_err(|error| StartError::new("opening the completion port", error))?;
        let threads = self.threads.unwrap_or_else(|| (2 * port.concurrency()).max(4));
        let runtime = Runtime::on(Arc::new(port));
        for index in 0..threads {
            let shared = Arc::clone(&runtime.shared);
            let name = format!("{}-{index}", self.name);
            let port = &runtime.shared.port;
            let thread = port
                .spawn(name, Box::new(move || shared.work()))
                .map_err(|error| StartError::new("starting a worker thread", error))?;
            lock(&runtime.owner.threads).push(thread);
        }
        Ok(runtime)
    }
}

impl Runtime {
    /// A runtime with every option at its default.
    ///
    /// # Errors
    /// As [`RuntimeBuilder::build`].
    pub fn new() -> Result<Self, StartError> {
        Self::builder().build()
    }

    /// A builder with every option at its default.
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder {
            port: Builder::new(),
            concurrency: 0,
            threads: None,
            name: "proactor".to_owned(),
        }
    }

    /// A runtime on a port of the program's, without threads: the program dequeues, and gives each
    /// packet to [`dispatch`](Self::dispatch). One runtime on a port, at most.
    pub fn on(port: Arc<CompletionPort>) -> Self {
        let epoch = port.now();
        let shared = Arc::new_cyclic(|me| RuntimeShared {
            me: Weak::clone(me),
            port,
            registry: Registry::new(),
            timers: Timers::new(epoch),
            timer_key: OnceLock::new(),
            scheduler: OnceLock::new(),
            closed: AtomicBool::new(false),
            epoch,
        });
        let owner = Owner { shared: Arc::clone(&shared), threads: Mutex::default() };
        Self { shared, owner: Arc::new(owner) }
    }

    /// Handles a packet that a thread of the program has dequeued. A packet that is not about a
    /// service of this runtime comes back: its key has the highest bit clear.
    ///
    /// # Errors
    /// The packet, where it is the program's own.
    #[allow(clippy::result_large_err)]
    pub fn dispatch(&self, completion: Completion) -> Result<(), Completion> {
        self.shared.dispatch(completion)
    }

    /// The completion port. Keys with the highest bit set are the runtime's.
    pub fn port(&self) -> &Arc<CompletionPort> {
        &self.shared.port
    }

    /// What brings [job queues](super::job_queue) and their timers to the threads of this runtime.
    /// Job queues do not keep the runtime: they are closed with it.
    pub fn scheduler(&self) -> PortScheduler {
        let shared = &self.shared;
        if let Some(scheduler) = shared.scheduler.get() {
            return scheduler.clone();
        }
        let key = shared.registry.reserve();
        shared.registry.set(key, Arc::new(JobSource));
        let made = PortScheduler::new(&shared.port, key.completion_key());
        if shared.scheduler.set(made.clone()).is_err() {
            // Another thread was quicker.
            shared.registry.release(key);
        }
        shared.scheduler.get().cloned().unwrap_or(made)
    }

    /// Closes the port and joins the threads. Sessions that are left end at once, each with its
    /// `disconnected`. Stop the services first for an orderly end. Also done when the last handle
    /// goes; a second time is harmless.
    ///
    /// Waits for callbacks that are running, unless it is called from one: then a thread of its own
    /// waits, and this returns at once.
    pub fn shut_down(&self) {
        self.owner.shut_down();
    }

    /// Timers that wait for their time, for the simulated world's checks.
    #[cfg(feature = "sim")]
    pub(crate) fn waiting_timers(&self) -> usize {
        self.shared.timers.len()
    }

    pub(super) fn shared(&self) -> &Arc<RuntimeShared> {
        &self.shared
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Runtime").field("port", &self.shared.port).finish_non_exhaustive()
    }
}

/// Ends the runtime when the last handle goes.
struct Owner {
    shared: Arc<RuntimeShared>,
    threads: Mutex<Vec<JoinThread>>,
}

impl Owner {
    fn shut_down(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.port.close();
        let threads = std::mem::take(&mut *lock(&self.threads));
        let shared = Arc::clone(&self.shared);
        let wait = move || shared.wait_for(threads);
        if !self.shared.is_handling() {
            wait();
        } else if let Err(error) = self.shared.port.spawn("proactor-end".to_owned(), Box::new(wait))
        {
            tracing::error!(%error, "nobody waits for the worker threads; sessions end untold");
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// What services, listeners and sessions know of their runtime.
pub(super) struct RuntimeShared {
    me: Weak<Self>,
    pub(super) port: Arc<CompletionPort>,
    pub(super) registry: Registry,
    timers: Timers,
    timer_key: OnceLock<Key>,
    scheduler: OnceLock<PortScheduler>,
    closed: AtomicBool,
    epoch: Instant,
}

impl RuntimeShared {
    /// The runtime's clock: milliseconds since it was made, never 0.
    pub(super) fn milliseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    /// What the runtime's clock says now.
    pub(super) fn now_ms(&self) -> u64 {
        self.milliseconds(self.port.now())
    }

    /// The moment of a reading of the runtime's clock.
    pub(super) fn instant(&self, milliseconds: u64) -> Instant {
        self.epoch + Duration::from_millis(milliseconds.saturating_sub(1))
    }

    /// Whether the calling thread is handling a packet of this runtime.
    pub(super) fn is_handling(&self) -> bool {
        HANDLING.with(Cell::get) == std::ptr::from_ref(self) as usize
    }

    /// Asks for a packet with `key`, of which the source makes what it likes; `false` where the
    /// port is closed.
    pub(super) fn post(&self, key: Key) -> bool {
        self.port.post(key.completion_key(), 0, None).is_ok()
    }

    /// Calls `timed` at `deadline`, once, on a worker.
    pub(super) fn start_timer(&self, deadline: Instant, timed: Weak<dyn Timed>) -> TimerKey {
        self.timers.insert(&self.port, self.timer_key().completion_key(), deadline, timed)
    }

    fn timer_key(&self) -> Key {
        if let Some(key) = self.timer_key.get() {
            return *key;
        }
        let key = self.registry.reserve();
        self.registry.set(key, Arc::new(TimerSource(Weak::clone(&self.me))));
        let kept = *self.timer_key.get_or_init(|| key);
        if kept != key {
            // Another thread was quicker.
            self.registry.release(key);
        }
        kept
    }

    /// Takes a timer out before its time. Harmless where it has been due.
    pub(super) fn cancel_timer(&self, timer: TimerKey) {
        self.timers.remove(timer);
    }

    #[allow(clippy::result_large_err)]
    pub(super) fn dispatch(&self, completion: Completion) -> Result<(), Completion> {
        let Some(key) = Key::from_completion_key(completion.key()) else { return Err(completion) };
        let Some(source) = self.registry.get(key) else {
            debug_assert!(false, "a packet came for a place that was given back: {completion:?}");
            return Ok(());
        };
        let before = HANDLING.with(|handling| handling.replace(std::ptr::from_ref(self) as usize));
        let outcome = catch_unwind(AssertUnwindSafe(|| source.completed(completion)));
        HANDLING.with(|handling| handling.set(before));
        if outcome.is_err() {
            // Callbacks of the program are caught nearer to them.
            tracing::error!("the service layer panicked; the worker goes on");
        }
        Ok(())
    }

    /// Waits for the worker threads of a closed port, and ends what is left.
    fn wait_for(&self, threads: Vec<JoinThread>) {
        for join in threads {
            if join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
        for source in self.registry.take_all() {
            source.abandoned();
        }
    }

    /// A worker thread.
    fn work(&self) {
        let mut refusals = 0_u32;
        loop {
            match self.port.dequeue(None) {
                Ok(completion) => {
                    if let Err(completion) = self.dispatch(completion) {
                        tracing::warn!(key = completion.key(), "a packet that is for nobody");
                    }
                }
                Err(DequeueError::Closed) => return,
                Err(DequeueError::TimedOut) => {}
                Err(DequeueError::Failed(error)) => {
                    refusals += 1;
                    if refusals.is_power_of_two() {
                        tracing::error!(%error, refusals, "a worker cannot wait; it tries again");
                    }
                    if self.closed.load(Ordering::SeqCst) {
                        return;
                    }
                    self.port.pause(REFUSED_PAUSE);
                }
            }
        }
    }
}

/// Where the packets of the port's timer go.
struct TimerSource(Weak<RuntimeShared>);

impl Source for TimerSource {
    fn completed(self: Arc<Self>, completion: Completion) {
        if let Some(runtime) = self.0.upgrade() {
            runtime.timers.completed(&runtime.port, completion);
        }
    }

    fn abandoned(self: Arc<Self>) {}
}

/// Where the packets of job queues and job timers go.
struct JobSource;

impl Source for JobSource {
    fn completed(self: Arc<Self>, mut completion: Completion) {
        let ours = PortScheduler::run(&mut completion);
        debug_assert!(ours, "only the scheduler posts under its key: {completion:?}");
    }

    fn abandoned(self: Arc<Self>) {}
}
