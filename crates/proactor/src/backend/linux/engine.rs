//! The port: registering threads, dequeuing, posting, closing.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use super::central::{Central, Park, Sink};
use super::datagram::Datagrams;
use super::driver::{Driver, Wait};
use super::errno::error_of;
use super::file::{Deliver, FileService};
use super::file_operation::check_servable;
use super::file_source::FileSource;
use super::listener::Listener;
use super::socket::{Context, Role, Socket, SourceKind};
use super::stream::Stream;
use super::syscall;
use super::timers::TimerQueue;
use super::watch::Watch;
use super::worker::{self, Local, Worker};
use crate::backend::{Backend, BackendDescription, BackendSource, RawSource};
use crate::buffer::Pool;
use crate::error::{DequeueError, Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::{Completion, Config, PortCounters};

/// Packets taken from the shared queue in a row before the driver gets a turn, so that a flood of
/// posts does not keep I/O out.
const LONGEST_STREAK: usize = 64;
/// How long a worker sleeps at most while sources wait for a receive buffer.
const STARVED_TICK: Duration = Duration::from_millis(1);
/// Threads that may dequeue from one port.
const WORKERS_MAXIMUM: usize = 4096;

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
    pub(crate) watchers: AtomicUsize,
    pub(crate) quiet: AtomicBool,
    pub(crate) rescues: AtomicU64,
    past_dequeued: AtomicU64,
    past_wait_calls: AtomicU64,
}

static NEXT_ENGINE: AtomicU64 = AtomicU64::new(1);

/// Sockets that are associated with any port of this process, by inode (rules 8, 9).
static ASSOCIATED: Mutex<Option<HashSet<u64>>> = Mutex::new(None);

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
            epoch: Instant::now(),
            timekeeper: AtomicUsize::new(0),
            files: D::file_service(config, Weak::clone(me) as Weak<dyn Deliver>),
            watchers: AtomicUsize::new(0),
            quiet: AtomicBool::new(false),
            rescues: AtomicU64::new(0),
            past_dequeued: AtomicU64::new(0),
            past_wait_calls: AtomicU64::new(0),
        })
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

    /// Runs `act` as the worker that the calling thread is, or as none.
    pub(crate) fn in_context<R>(&self, act: impl FnOnce(&mut Context<'_, '_, D>) -> R) -> R {
        let Some(worker) = worker::current::<D>(self.id) else {
            let mut sink = Sink { central: &self.central, local: None };
            return act(&mut Context::new(None, None, &mut sink));
        };
        let mut local = worker.lock();
        let Local { driver, queue, .. } = &mut *local;
        let mut sink = Sink { central: &self.central, local: Some(queue) };
        act(&mut Context::new(driver.as_mut(), Some(worker.slot.index), &mut sink))
    }

    /// The calling thread's worker; makes it one at its first call (rule 39).
    fn enter_thread(self: &Arc<Self>) -> Result<Arc<Worker<D>>, DequeueError> {
        worker::enter(self.id);
        match worker::current(self.id) {
            Some(worker) => Ok(worker),
            None => self.add_worker().map_err(DequeueError::Failed),
        }
    }

    fn add_worker(self: &Arc<Self>) -> Result<Arc<Worker<D>>, Error> {
        let index = {
            let mut workers = self.workers.write().unwrap_or_else(PoisonError::into_inner);
            let free = workers.iter().position(Option::is_none).unwrap_or(workers.len());
            if free >= WORKERS_MAXIMUM {
                let kind = ErrorKind::InsufficientResources;
                return Err(Error::new(OperationKind::Dequeue, kind));
            }
            let worker = Worker::open(self, free)?;
            if free == workers.len() {
                workers.push(None);
            }
            workers[free] = Some(Arc::clone(&worker));
            self.worker_count.fetch_add(1, Ordering::SeqCst);
            worker::remember(self.id, &worker);
            free
        };
        let worker = self.workers()[index].clone().expect("the worker was just put there");
        let orphans = std::mem::take(&mut *lock(&self.orphans));
        let mut local = worker.lock();
        let Local { driver, queue, .. } = &mut *local;
        let mut sink = Sink { central: &self.central, local: Some(queue) };
        let mut context = Context::new(driver.as_mut(), Some(index), &mut sink);
        for socket in &orphans {
            socket.settle(&worker, &mut context);
        }
        drop(local);
        Ok(worker)
    }

    /// A worker's thread goes: its sources find another home.
    pub(crate) fn remove_worker(self: &Arc<Self>, worker: &Arc<Worker<D>>) {
        {
            let mut workers = self.workers.write().unwrap_or_else(PoisonError::into_inner);
            workers[worker.slot.index] = None;
            self.worker_count.fetch_sub(1, Ordering::SeqCst);
        }
        self.past_dequeued
            .fetch_add(worker.slot.dequeued_packets.load(Ordering::Relaxed), Ordering::Relaxed);
        self.past_wait_calls
            .fetch_add(worker.wait_calls.load(Ordering::Relaxed), Ordering::Relaxed);
        let sockets: Vec<_> = worker
            .poller
            .residents()
            .all_with_tokens()
            .map(|(_, socket)| Arc::clone(socket))
            .collect();
        for socket in sockets {
            socket.unsettle();
            self.find_home(&socket);
        }
    }

    /// Gives a source the home with the fewest sources among the workers that serve (as many as
    /// the concurrency limit), or puts it by until there is a worker.
    fn find_home(self: &Arc<Self>, socket: &Arc<Socket<D>>) {
        let home = {
            let workers = self.workers();
            let best = workers
                .iter()
                .flatten()
                .filter(|worker| !worker.slot.is_given_up())
                .take(self.central.limit())
                .min_by_key(|worker| worker.poller.count())
                .or_else(|| workers.iter().flatten().next())
                .cloned();
            if best.is_none() && !self.central.is_closed() {
                // Under the table's lock: a worker that is being added sees it.
                lock(&self.orphans).push(Arc::clone(socket));
            }
            best
        };
        if let Some(home) = home {
            self.in_context(|context| socket.settle(&home, context));
        }
    }

    pub(crate) fn forget_orphan(&self, socket: &Socket<D>) {
        let mut orphans = lock(&self.orphans);
        if let Some(position) =
            orphans.iter().position(|orphan| std::ptr::eq(Arc::as_ptr(orphan), socket))
        {
            orphans.swap_remove(position);
        }
    }

    pub(crate) fn forget_inode(&self, inode: u64) {
        if let Some(associated) = &mut *lock(&ASSOCIATED) {
            associated.remove(&inode);
        }
    }

    /// A source found no receive buffer: it is served again when a worker gets round to it.
    pub(crate) fn starve(&self, socket: Arc<Socket<D>>) {
        let mut starved = lock(&self.starved);
        starved.push(socket);
        self.starved_count.store(starved.len(), Ordering::SeqCst);
    }

    /// Nanoseconds since the engine was made.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether sources wait for a buffer, and were not tried again in the last moment.
    fn starved_are_due(&self) -> bool {
        self.starved_count.load(Ordering::Relaxed) > 0
            && self.now().saturating_sub(self.last_feeding.load(Ordering::Relaxed))
                >= STARVED_TICK.as_nanos() as u64
    }

    fn feed_starved(&self, worker: &Worker<D>, local: &mut Local<D>) {
        if !self.starved_are_due() {
            return;
        }
        self.last_feeding.store(self.now(), Ordering::Relaxed);
        let starved = {
            let mut starved = lock(&self.starved);
            self.starved_count.store(0, Ordering::SeqCst);
            std::mem::take(&mut *starved)
        };
        let Local { driver, queue, .. } = local;
        let mut sink = Sink { central: &self.central, local: Some(queue) };
        let mut context = Context::new(driver.as_mut(), Some(worker.slot.index), &mut sink);
        for socket in &starved {
            socket.serve(&mut context);
        }
    }

    // ---- dequeuing ----

    fn dequeue_as(
        self: &Arc<Self>,
        worker: &Arc<Worker<D>>,
        local: &mut Local<D>,
        completions: &mut [Option<Completion>],
        timeout: Option<Duration>,
    ) -> Result<usize, DequeueError> {
        let mut deadline = None;
        loop {
            if self.central.is_closed() {
                return Err(DequeueError::Closed);
            }
            let may_take = self.central.try_hold(&worker.slot);
            if may_take && local.streak < LONGEST_STREAK {
                let count = self.take(local, completions);
                if count > 0 {
                    return Ok(count);
                }
            }
            local.streak = 0;
            self.collect(worker, local, timeout == Some(Duration::ZERO))?;
            if may_take && (!local.queue.is_empty() || self.central.queued() > 0) {
                continue;
            }
            match timeout {
                Some(Duration::ZERO) => return Err(DequeueError::TimedOut),
                Some(timeout) if deadline.is_none() => {
                    // A time beyond the clock's range is for ever.
                    deadline = Some(Instant::now().checked_add(timeout));
                }
                _ => {}
            }
            let deadline = deadline.flatten();
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(DequeueError::TimedOut);
            }
            self.wait(worker, local, deadline)?;
        }
    }

    fn take(&self, local: &mut Local<D>, completions: &mut [Option<Completion>]) -> usize {
        let mut count = 0;
        while count < completions.len()
            && let Some(packet) = local.queue.pop_front()
        {
            completions[count] = Some(packet);
            count += 1;
        }
        if count < completions.len() && self.central.queued() > 0 {
            let before = count;
            count = self.central.take(completions, count);
            local.streak += count - before;
        }
        count
    }

    /// Collects without waiting: what asked to be served, timers, the driver if it has something
    /// to submit or to give (`always`: in any case).
    fn collect(
        self: &Arc<Self>,
        worker: &Arc<Worker<D>>,
        local: &mut Local<D>,
        always: bool,
    ) -> Result<(), DequeueError> {
        worker.serve_inbox(local, self);
        self.feed_starved(worker, local);
        self.expire_timers(local);
        let Some(driver) = &local.driver else { return Err(DequeueError::Closed) };
        if always || driver.has_sends() || driver.has_completions() || self.central.queued() > 0 {
            self.turn(worker, local, Wait::No)?;
        }
        self.look_sometimes(worker, local);
        Ok(())
    }

    fn turn(
        &self,
        worker: &Worker<D>,
        local: &mut Local<D>,
        wait: Wait,
    ) -> Result<(), DequeueError> {
        let Local { driver, queue, .. } = local;
        let Some(driver) = driver else { return Err(DequeueError::Closed) };
        let mut sink = Sink { central: &self.central, local: Some(queue) };
        driver
            .turn(wait, &worker.poller, worker.slot.index, &mut sink)
            .map_err(DequeueError::Failed)?;
        worker.wait_calls.store(driver.wait_calls(), Ordering::Relaxed);
        let pool = driver.pool();
        let pool_bytes = (pool.total_buffers() * pool.buffer_bytes()) as u64;
        worker.pool_bytes.store(pool_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Parks the worker until there may be something for it.
    fn wait(
        self: &Arc<Self>,
        worker: &Arc<Worker<D>>,
        local: &mut Local<D>,
        deadline: Option<Instant>,
    ) -> Result<(), DequeueError> {
        match self.central.park(&worker.slot, &mut local.queue) {
            Park::Closed => return Err(DequeueError::Closed),
            Park::Work => return Ok(()),
            Park::Parked => {}
        }
        let mut watch = Watch::begin(self);
        let result = self.sleep(worker, local, deadline, &mut watch);
        self.stop_keeping_time(worker);
        self.central.unpark(&worker.slot, !local.queue.is_empty());
        watch.end(self, worker);
        result
    }

    fn sleep(
        self: &Arc<Self>,
        worker: &Arc<Worker<D>>,
        local: &mut Local<D>,
        deadline: Option<Instant>,
        watch: &mut Watch,
    ) -> Result<(), DequeueError> {
        loop {
            // `parked` is set: whoever hands something over from now on signals the eventfd.
            if worker.has_inbox() || self.central.is_closed() {
                return Ok(());
            }
            let timeout = self.longest_sleep(worker, deadline, watch.tick());
            let ticked = timeout.is_some() && timeout == watch.tick();
            self.turn(worker, local, Wait::Upto(timeout))?;
            if self.starved_are_due() {
                return Ok(());
            }
            // A packet in the shared queue is for whom it released: not for who happens to wake
            // (rule 36).
            let work = worker.slot.is_held() || !local.queue.is_empty();
            if work || self.timer_is_due() {
                return Ok(());
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(());
            }
            if ticked {
                watch.look(self, worker, local);
            } else {
                watch.begin_again(self);
            }
            if worker.slot.is_held() {
                return Ok(());
            }
        }
    }

    fn longest_sleep(
        &self,
        worker: &Worker<D>,
        deadline: Option<Instant>,
        tick: Option<Duration>,
    ) -> Option<Duration> {
        let mut longest = tick;
        if self.starved_count.load(Ordering::Relaxed) > 0 {
            // Buffers may be given back by threads that do not come here.
            longest = Some(longest.map_or(STARVED_TICK, |longest| longest.min(STARVED_TICK)));
        }
        let mut at_most = |limit: Duration| {
            longest = Some(longest.map_or(limit, |longest| longest.min(limit)));
        };
        let next = self.next_deadline.load(Ordering::SeqCst);
        let keeper = worker.slot.index + 1;
        let timed = next != u64::MAX
            && self
                .timekeeper
                .compare_exchange(0, keeper, Ordering::SeqCst, Ordering::SeqCst)
                .map_or_else(|current| current == keeper || tick.is_some(), |_| true);
        if deadline.is_some() || timed {
            let now = Instant::now();
            if let Some(deadline) = deadline {
                at_most(deadline.saturating_duration_since(now));
            }
            if timed {
                let next = self.epoch + Duration::from_nanos(next);
                at_most(next.saturating_duration_since(now));
            }
        }
        longest
    }

    fn stop_keeping_time(&self, worker: &Worker<D>) {
        let keeper = worker.slot.index + 1;
        let _ = self.timekeeper.compare_exchange(keeper, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    // ---- timers ----

    fn timer_is_due(&self) -> bool {
        let next = self.next_deadline.load(Ordering::Relaxed);
        next != u64::MAX && self.epoch.elapsed().as_nanos() >= u128::from(next)
    }

    fn expire_timers(&self, local: &mut Local<D>) {
        if !self.timer_is_due() {
            return;
        }
        let mut timers = lock(&self.timers);
        let mut sink = Sink { central: &self.central, local: Some(&mut local.queue) };
        timers.pop_expired(Instant::now(), |packet| sink.push(packet));
        self.note_next_deadline(&timers);
    }

    fn note_next_deadline(&self, timers: &TimerQueue) {
        // Rounded up to the next nanosecond by `as_nanos` being exact: never early.
        let next = timers.next_deadline().map_or(u64::MAX, |deadline| {
            let nanoseconds = deadline.saturating_duration_since(self.epoch).as_nanos();
            u64::try_from(nanoseconds).unwrap_or(u64::MAX - 1)
        });
        self.next_deadline.store(next, Ordering::SeqCst);
    }

    /// A new earliest deadline: whoever sleeps past it has to know.
    fn wake_timekeeper(&self) {
        let workers = self.workers();
        let keeper = self.timekeeper.load(Ordering::SeqCst);
        let chosen = match keeper {
            0 => workers.iter().flatten().find(|w| w.slot.parked.load(Ordering::SeqCst)),
            index => workers.get(index - 1).and_then(Option::as_ref),
        };
        if let Some(worker) = chosen {
            self.central.wake(&worker.slot);
        }
    }

    fn associate_socket(
        self: &Arc<Self>,
        socket: &socket2::Socket,
        kind: SourceKind,
    ) -> Result<u64, Error> {
        let error = |kind| Error::new(OperationKind::Associate, kind);
        if self.central.is_closed() {
            return Err(error(ErrorKind::PortClosed));
        }
        let system = |errno| error_of(OperationKind::Associate, errno);
        let wanted = match kind {
            SourceKind::Stream | SourceKind::Listener => socket2::Type::STREAM,
            SourceKind::Datagram => socket2::Type::DGRAM,
        };
        if socket.r#type().ok() != Some(wanted) {
            return Err(error(ErrorKind::InvalidInput));
        }
        let inode = syscall::inode(std::os::fd::AsFd::as_fd(socket)).map_err(system)?;
        let mut guard = lock(&ASSOCIATED);
        let associated = guard.get_or_insert_default();
        if !associated.insert(inode) {
            return Err(error(ErrorKind::InvalidInput));
        }
        // Accepts must not block once a connection has gone again; streams are read and written
        // with MSG_DONTWAIT, and io_uring would refuse to wait on one that does not block.
        if let Err(refused) = socket.set_nonblocking(kind == SourceKind::Listener) {
            associated.remove(&inode);
            return Err(system(refused.raw_os_error().unwrap_or(libc::EIO)));
        }
        Ok(inode)
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
        let mut counters = PortCounters {
            dequeued_packets: self.past_dequeued.load(Ordering::Relaxed),
            wait_calls: self.past_wait_calls.load(Ordering::Relaxed),
            rescues: self.rescues.load(Ordering::Relaxed),
            blocked_threads,
            wakes,
            pool_bytes: (self.pool.total_buffers() * self.pool.buffer_bytes()) as u64,
        };
        for worker in self.workers().iter().flatten() {
            counters.dequeued_packets += worker.slot.dequeued_packets.load(Ordering::Relaxed);
            counters.wait_calls += worker.wait_calls.load(Ordering::Relaxed);
            counters.pool_bytes += worker.pool_bytes.load(Ordering::Relaxed);
        }
        counters
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
        let engine = self.me.upgrade().ok_or(DequeueError::Closed)?;
        let worker = engine.enter_thread()?;
        let slot = &worker.slot;
        let result = {
            let mut local = worker.lock();
            let turn = slot.turn.load(Ordering::Relaxed) | 1;
            slot.turn.store(turn, Ordering::Release);
            let result = engine.dequeue_as(&worker, &mut local, completions, timeout);
            match result {
                Ok(count) => {
                    let packets = slot.dequeued_packets.load(Ordering::Relaxed) + count as u64;
                    slot.dequeued_packets.store(packets, Ordering::Relaxed);
                }
                Err(_) => engine.central.hold_beyond_limit(slot),
            }
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
        worker::current::<D>(self.id).is_some_and(|worker| self.central.give_up(&worker.slot))
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
