//! The port: what it holds, posting, timers, closing.

mod clock;
mod dequeue;
mod homes;

use std::time::{Duration, Instant};

use crate::backend::linux::central::Central;
use crate::backend::linux::datagram::Datagrams;
use crate::backend::linux::driver::{Driver, Wait};
use crate::backend::linux::file::{Deliver, FileService};
use crate::backend::linux::file_operation::check_servable;
use crate::backend::linux::file_source::FileSource;
use crate::backend::linux::listener::Listener;
use crate::backend::linux::sink::Sink;
use crate::backend::linux::socket::{Context, Role, Socket, SourceKind};
use crate::backend::linux::stream::Stream;
use crate::backend::linux::watch::Watch;
use crate::backend::linux::worker::{self, Local, Worker};
use crate::backend::timers::TimerQueue;
use crate::backend::{Backend, BackendDescription, BackendSource, RawSource};
use crate::buffer::Pool;
use crate::error::{DequeueError, Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::{BatchSizes, Completion, Config, PortCounters, PortSnapshot};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::now as clock;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};

pub(crate) struct Engine<D: Driver> {
    me: Weak<Self>,
    /// Names this engine among all of the process.
    id: u64,
    pub(crate) config: Config,
    description: BackendDescription,
    pub(crate) central: Central,
    /// For receives that no worker's own pool serves.
    pub(crate) pool: Arc<Pool>,
    workers: RwLock<Vec<Option<Arc<Worker<D>>>>>,
    worker_count: AtomicUsize,
    /// Sources that were associated before there was any worker.
    orphans: Mutex<Vec<Arc<Socket<D>>>>,
    /// Sources that wait for a free receive buffer.
    starved: Mutex<Vec<Arc<Socket<D>>>>,
    starved_count: AtomicUsize,
    /// When they were last tried, in nanoseconds since `epoch`.
    last_feeding: AtomicU64,
    timers: Mutex<TimerQueue>,
    /// The earliest deadline, in nanoseconds since `epoch`; `u64::MAX`: none.
    next_deadline: AtomicU64,
    epoch: Instant,
    /// The parked worker that sleeps no longer than the next timer; 0: none, else its index + 1.
    timekeeper: AtomicUsize,
    files: Arc<dyn FileService>,
    pub(crate) watch: Watch,
    /// When a worker was last found stuck, in nanoseconds since `epoch`; 0: never.
    last_stuck: AtomicU64,
    pub(crate) rescues: AtomicU64,
    past_dequeued: AtomicU64,
    past_wait_calls: AtomicU64,
    past_batches: Mutex<BatchSizes>,
}

static NEXT_ENGINE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Driver> Engine<D> {
    pub(crate) fn new(config: &Config, description: BackendDescription) -> Arc<Self> {
        let limit = match config.concurrency {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            limit => limit,
        };
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            me: Weak::clone(me),
            id: NEXT_ENGINE.fetch_add(1, Ordering::Relaxed),
            config: config.clone(),
            description,
            central: Central::new(limit),
            pool: Pool::new(config.receive_buffer_bytes, config.maximum_receive_buffers),
            workers: RwLock::new(Vec::new()),
            worker_count: AtomicUsize::new(0),
            orphans: Mutex::new(Vec::new()),
            starved: Mutex::new(Vec::new()),
            starved_count: AtomicUsize::new(0),
            last_feeding: AtomicU64::new(0),
            timers: Mutex::new(TimerQueue::new()),
            next_deadline: AtomicU64::new(u64::MAX),
            epoch: clock(),
            timekeeper: AtomicUsize::new(0),
            files: D::file_service(config, Weak::clone(me) as Weak<dyn Deliver>),
            watch: Watch::new(),
            last_stuck: AtomicU64::new(0),
            rescues: AtomicU64::new(0),
            past_dequeued: AtomicU64::new(0),
            past_wait_calls: AtomicU64::new(0),
            past_batches: Mutex::new(BatchSizes::default()),
        })
    }

    /// For those that the engine must be able to outlive.
    pub(crate) fn downgrade(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    pub(crate) fn files(&self) -> &Arc<dyn FileService> {
        &self.files
    }

    pub(crate) fn workers(&self) -> RwLockReadGuard<'_, Vec<Option<Arc<Worker<D>>>>> {
        self.workers.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.worker_count.load(Ordering::Relaxed)
    }

    /// What workers that have gone had counted.
    pub(super) fn past_batches(&self) -> BatchSizes {
        *lock(&self.past_batches)
    }

    pub(super) fn pending_timers(&self) -> usize {
        lock(&self.timers).len()
    }

    /// Runs `act` as the worker that the calling thread is, or as none.
    pub(crate) fn in_context<R>(&self, act: impl FnOnce(&mut Context<'_, '_, D>) -> R) -> R {
        worker::with_current::<D, R>(self.id, |worker| {
            let Some(worker) = worker else {
                let mut sink = Sink::new(&self.central, None);
                return act(&mut Context::new(None, None, &mut sink));
            };
            let mut local = worker.lock();
            let Local { driver, queue, .. } = &mut *local;
            let mut sink = Sink::new(&self.central, Some(queue));
            act(&mut Context::new(driver.as_mut(), Some(worker.slot.index), &mut sink))
        })
    }
}

impl<D: Driver> Deliver for Engine<D> {
    fn deliver(&self, packet: Completion) {
        // A packet that is too late for its port is dropped here, where no lock is held.
        drop(self.central.push(packet));
    }
}

impl<D: Driver> Backend for Engine<D> {
    fn describe(&self) -> &BackendDescription {
        &self.description
    }

    fn concurrency(&self) -> usize {
        self.central.limit()
    }

    fn counters(&self) -> PortCounters {
        let (wakes, blocked_threads) = self.central.counts();
        let workers = self.workers();
        let mut counters = PortCounters {
            dequeued_packets: self.past_dequeued.load(Ordering::Relaxed),
            wait_calls: self.past_wait_calls.load(Ordering::Relaxed),
            rescues: self.rescues.load(Ordering::Relaxed),
            blocked_threads,
            wakes,
            pool_bytes: self.pool.held_bytes() as u64,
        };
        for worker in workers.iter().flatten() {
            counters.dequeued_packets += worker.slot.dequeued_packets.load(Ordering::Relaxed);
            counters.wait_calls += worker.counters.wait_calls.load(Ordering::Relaxed);
            counters.pool_bytes += worker.pool.held_bytes() as u64;
        }
        counters
    }

    fn snapshot(&self) -> PortSnapshot {
        self.snapshot_now()
    }

    fn associate(
        self: Arc<Self>,
        source: RawSource,
        key: usize,
    ) -> Result<Arc<dyn BackendSource>, (Error, RawSource)> {
        let was_connected = matches!(source, RawSource::Connected(_));
        let (socket, kind, restore): (_, _, fn(socket2::Socket) -> RawSource) = match source {
            RawSource::Stream(socket) => (socket, SourceKind::Stream, RawSource::Stream),
            RawSource::Connected(socket) => (socket, SourceKind::Stream, RawSource::Connected),
            RawSource::Listener(socket) => (socket, SourceKind::Listener, RawSource::Listener),
            RawSource::Datagram(socket) => (socket, SourceKind::Datagram, RawSource::Datagram),
            #[cfg(feature = "sim")]
            RawSource::Simulated(source) => {
                // It lives in its world only.
                let error = Error::new(OperationKind::Associate, ErrorKind::InvalidInput);
                return Err((error, RawSource::Simulated(source)));
            }
            RawSource::File(file) => {
                if self.central.is_closed() {
                    let error = Error::new(OperationKind::Associate, ErrorKind::PortClosed);
                    return Err((error, RawSource::File(file)));
                }
                if let Err(error) = check_servable(&file) {
                    return Err((error, RawSource::File(file)));
                }
                return Ok(Arc::new(FileSource::new(self, file, key)));
            }
        };
        match self.associate_socket(&socket, kind) {
            Err(error) => Err((error, restore(socket))),
            Ok(inode) => {
                let connected =
                    was_connected || (kind == SourceKind::Stream && socket.peer_addr().is_ok());
                let role = match kind {
                    SourceKind::Stream => Role::Stream(Stream::new(connected)),
                    SourceKind::Listener => Role::Listener(Listener::default()),
                    SourceKind::Datagram => Role::Datagram(Datagrams::default()),
                };
                let socket = Socket::new(Arc::clone(&self), socket, role, key, inode);
                self.find_home(&socket);
                Ok(socket)
            }
        }
    }

    fn dequeue(
        &self,
        completions: &mut [Option<Completion>],
        timeout: Option<Duration>,
    ) -> Result<usize, DequeueError> {
        if self.central.is_closed() {
            worker::leave(self.id);
            return Err(DequeueError::Closed);
        }
        let worker = self.enter_thread()?;
        let slot = &worker.slot;
        let result = {
            let mut local = worker.lock();
            let turn = slot.turn.load(Ordering::Relaxed) | 1;
            slot.turn.store(turn, Ordering::Release);
            if worker.comes_back() {
                self.hand_watch_on(&worker);
            }
            let result = self.dequeue_as(&worker, &mut local, completions, timeout);
            match result {
                Ok(count) => {
                    let packets = slot.dequeued_packets.load(Ordering::Relaxed) + count as u64;
                    slot.dequeued_packets.store(packets, Ordering::Relaxed);
                }
                Err(_) => self.central.hold_beyond_limit(slot),
            }
            worker.counters.queued_packets.store(local.queue.len(), Ordering::Relaxed);
            slot.turn.store(turn + 1, Ordering::Release);
            result
        };
        if result == Err(DequeueError::Closed) {
            worker::leave(self.id);
        }
        self.central.drop_late();
        result
    }

    fn post(&self, packet: Completion) -> Result<(), Rejected> {
        // Rule 33: what this thread's I/O has finished before is queued before.
        if self.central.queued() == 0
            && let Some(worker) = worker::current::<D>(self.id)
            && let Some(mut local) = worker.try_lock()
            && local.queue.is_empty()
            && local
                .driver
                .as_ref()
                .is_some_and(|driver| !D::KNOWS_COMPLETIONS || driver.has_completions())
        {
            let _ = self.turn(&worker, &mut local, Wait::No);
        }
        let outcome = self.central.push(packet);
        self.central.drop_late();
        outcome
            .map_err(|packet| packet.reject(Error::new(OperationKind::Post, ErrorKind::PortClosed)))
    }

    fn start_timer(
        &self,
        key: usize,
        deadline: Instant,
        operation: Operation,
    ) -> Result<(), Rejected> {
        let mut timers = lock(&self.timers);
        if self.central.is_closed() {
            drop(timers);
            let error = Error::new(OperationKind::Timer, ErrorKind::PortClosed);
            return Err(Rejected::new(error, operation));
        }
        let earliest = timers.insert(key, deadline, operation);
        if earliest {
            self.note_next_deadline(&timers);
        }
        drop(timers);
        if earliest {
            self.wake_timekeeper();
        }
        Ok(())
    }

    fn cancel_timer(&self, timer: OperationId) -> bool {
        let cancelled = {
            let mut timers = lock(&self.timers);
            let cancelled = timers.cancel(timer);
            self.note_next_deadline(&timers);
            cancelled
        };
        let Some((key, operation)) = cancelled else { return false };
        let error = Error::new(OperationKind::Timer, ErrorKind::Cancelled);
        let packet = Completion::finished(key, operation, 0, Some(error));
        drop(self.central.push(packet));
        true
    }

    fn enter_blocking(&self) -> bool {
        worker::current::<D>(self.id).is_some_and(|worker| {
            let mut local = worker.lock();
            if local.driver.as_ref().is_some_and(Driver::has_sends) {
                // The section may wait for what the peer answers to them. Where it fails, the next
                // dequeue meets the same error and reports it.
                let _ = self.turn(&worker, &mut local, Wait::No);
            }
            // Its packets go to whoever is released in its place, the oldest first.
            self.central.prepend(&mut local.queue);
            worker.counters.queued_packets.store(local.queue.len(), Ordering::Relaxed);
            drop(local);
            self.central.give_up(&worker.slot)
        })
    }

    fn leave_blocking(&self) {
        if let Some(worker) = worker::current::<D>(self.id) {
            self.central.hold_beyond_limit(&worker.slot);
        }
    }

    fn close(&self) {
        let Some(packets) = self.central.close() else { return };
        let operations = lock(&self.timers).drain();
        self.files.close();
        let mut sockets = std::mem::take(&mut *lock(&self.orphans));
        sockets.append(&mut lock(&self.starved));
        let workers: Vec<_> = self.workers().iter().flatten().cloned().collect();
        for worker in &workers {
            let residents = worker.poller.residents();
            sockets.extend(residents.all_with_tokens().map(|(_, socket)| Arc::clone(socket)));
        }
        let mut abandoned = Vec::new();
        for socket in &sockets {
            abandoned.append(&mut socket.abandon());
            self.in_context(|context| {
                let mut state = socket.lock();
                socket.stop_reading(&mut state, context);
            });
            socket.unsettle();
        }
        // Every lock is free again: contexts may hold whatever they like.
        drop((packets, operations, abandoned, sockets));
        for worker in &workers {
            // Packets that a worker collected for itself; a worker that is inside finds the port
            // closed and frees them when it leaves.
            if let Some(mut local) = worker.try_lock() {
                let collected = std::mem::take(&mut local.queue);
                drop(local);
                drop(collected);
            }
        }
        worker::leave(self.id);
        self.central.drop_late();
    }
}
