//! The port: associating, dequeuing, posting, closing.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use socket2::Type;
use windows_sys::Win32::Networking::WinSock::XP1_IFS_HANDLES;
use windows_sys::Win32::System::IO::OVERLAPPED_ENTRY;

use super::clock::Clock;
use super::code;
use super::file::{FileSource, OverlappedFile};
use super::listener::Listener;
use super::overlapped::{self, Flight, Owner};
use super::queue::{Queue, is_wake};
use super::socket::{Parts, Role, Socket};
use super::stream::Stream;
use super::syscall;
use crate::backend::{Backend, BackendDescription, BackendSource, RawSource};
use crate::buffer::Pool;
use crate::error::{DequeueError, Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::{Completion, Config, PortCounters};

/// Packets that one call of the kernel gives at most.
const BATCH: usize = 64;
/// How long closing waits for the kernel to let go of an operation before it leaves that to a
/// thread: only where the limit keeps this thread from dequeuing does it take any time.
const DRAIN_WAIT_MS: u32 = 20;
const DRAIN_LOOKS: u32 = 10;
/// The longest single wait, far below what the kernel takes for "for ever".
const LONGEST_WAIT_MS: u32 = 24 * 60 * 60 * 1000;

pub(crate) struct Port {
    me: Weak<Self>,
    queue: Arc<Queue>,
    clock: Arc<Clock>,
    config: Config,
    description: BackendDescription,
    concurrency: usize,
    pool: Arc<Pool>,
    sources: Mutex<HashMap<u64, Weak<dyn Owner>>>,
    next_source: AtomicU64,
    /// Sockets that wait for a free receive buffer.
    starved: Mutex<VecDeque<Weak<Socket>>>,
    starved_count: AtomicUsize,
    dequeued_packets: AtomicU64,
    wait_calls: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port {
    pub(crate) fn new(
        config: &Config,
        description: BackendDescription,
    ) -> Result<Arc<Self>, Error> {
        let concurrency = match config.concurrency {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            limit => limit,
        };
        let limit = u32::try_from(concurrency).unwrap_or(u32::MAX);
        let queue =
            Queue::new(limit).map_err(|code| code::error_of(OperationKind::CreatePort, code))?;
        let queue = Arc::new(queue);
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            clock: Clock::new(Arc::clone(&queue)),
            queue,
            config: config.clone(),
            description,
            concurrency,
            pool: Pool::new(config.receive_buffer_bytes, config.maximum_receive_buffers),
            sources: Mutex::new(HashMap::new()),
            next_source: AtomicU64::new(1),
            starved: Mutex::new(VecDeque::new()),
            starved_count: AtomicUsize::new(0),
            dequeued_packets: AtomicU64::new(0),
            wait_calls: AtomicU64::new(0),
        }))
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Notes that a socket waits for a free receive buffer.
    pub(crate) fn starve(&self, socket: Option<Arc<Socket>>) {
        if let Some(socket) = socket {
            lock(&self.starved).push_back(Arc::downgrade(&socket));
            self.starved_count.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Lets the socket go on that has waited longest for a buffer, if there is one. Called, without
    /// any lock, after every buffer that comes back and every packet that may have found none.
    pub(crate) fn feed(&self) {
        while self.starved_count.load(Ordering::SeqCst) > 0 {
            let Some(index) = self.pool.take() else { return };
            self.pool.give_back(index);
            let Some(socket) = lock(&self.starved).pop_front() else { return };
            self.starved_count.fetch_sub(1, Ordering::SeqCst);
            // Its receive may be gone: cancelled, closed.
            if socket.upgrade().is_some_and(|socket| socket.resume()) {
                // It takes the buffer when its packet is dequeued, and then feeds the next.
                return;
            }
        }
    }

    /// A source is gone.
    pub(crate) fn forget(&self, source: u64) {
        lock(&self.sources).remove(&source);
    }

    fn remember<S: Owner + 'static>(&self, id: u64, source: &Arc<S>) {
        let weak: Weak<dyn Owner> = Arc::downgrade(source) as Weak<dyn Owner>;
        lock(&self.sources).insert(id, weak);
    }

    /// What the program gets of a packet of the kernel, if anything.
    fn deliver(&self, entry: &OVERLAPPED_ENTRY) -> Option<Completion> {
        if entry.lpOverlapped.is_null() {
            let bytes = entry.dwNumberOfBytesTransferred as usize;
            return Some(Completion::posted(entry.lpCompletionKey, bytes, None));
        }
        if is_wake(entry) {
            return None;
        }
        // SAFETY: every packet that is neither of these was started or posted for a flight, and
        // this one was dequeued just now.
        let flight = unsafe { Flight::of_packet(entry.lpOverlapped) };
        // SAFETY: as above; the operation has not landed, and each packet is dequeued once.
        let completion = match unsafe { flight.take_owner() } {
            Some(owner) => owner.finished(flight, entry.dwNumberOfBytesTransferred),
            // SAFETY: the packet was dequeued; an operation without a source has no lock.
            None => overlapped::unpack(unsafe { flight.land() }).ok(),
        };
        self.queue.count_out();
        completion
    }

    /// Takes everything out of a closed port, and drops it: the kernel has let go of it then.
    fn drain(self: &Arc<Self>) {
        let mut entries = [OVERLAPPED_ENTRY::default(); BATCH];
        let mut looks = 0;
        while self.queue.in_flight() > 0 {
            let count = self.queue.drain(&mut entries, DRAIN_WAIT_MS).unwrap_or(0);
            for entry in &entries[..count] {
                drop(self.deliver(entry));
            }
            looks = if count > 0 { 0 } else { looks + 1 };
            if looks == DRAIN_LOOKS && self.drain_later() {
                break;
            }
        }
        self.queue.wake_waiting();
    }

    /// As many threads as the limit says are in their handlers, and none of them blocks: this one
    /// gets no packet until one of them does or returns. A thread of its own waits for that.
    fn drain_later(self: &Arc<Self>) -> bool {
        let port = Arc::clone(self);
        let drain = move || {
            let mut entries = [OVERLAPPED_ENTRY::default(); BATCH];
            while port.queue.in_flight() > 0 {
                let count = port.queue.drain(&mut entries, 1000).unwrap_or(0);
                for entry in &entries[..count] {
                    drop(port.deliver(entry));
                }
            }
            port.queue.wake_waiting();
        };
        std::thread::Builder::new().name("proactor-drain".to_owned()).spawn(drain).is_ok()
    }

    /// Associates a socket with the kernel's port, and says of what family it is, and whether the
    /// kernel queues no packet for what it does at once.
    fn associate_socket(
        &self,
        socket: &socket2::Socket,
        is_datagram: bool,
        is_stream: bool,
    ) -> Result<(i32, bool), Error> {
        let error = |code| code::error_of(OperationKind::Associate, code);
        if self.queue.is_closed() {
            return Err(Error::new(OperationKind::Associate, ErrorKind::PortClosed));
        }
        let protocol = syscall::protocol(syscall::raw(socket)).map_err(error)?;
        let wanted = if is_datagram { Type::DGRAM } else { Type::STREAM };
        if protocol.iSocketType != i32::from(wanted) {
            return Err(Error::new(OperationKind::Associate, ErrorKind::InvalidInput));
        }
        let handle = syscall::handle_of(syscall::raw(socket));
        self.queue.associate(handle).map_err(error)?;
        // Of a datagram that is cut at once, it is not certain that it has a packet then (rule
        // 47); nor of a socket that is not one of the kernel's own.
        let skips = self.config.skip_completion_port_on_success
            && !is_datagram
            && protocol.dwServiceFlags1 & XP1_IFS_HANDLES != 0;
        syscall::set_notification_modes(handle, skips).map_err(error)?;
        if is_stream {
            // Overlapped operations do not care (rule 63), and reading what is there must not wait.
            let result = socket.set_nonblocking(true);
            result.map_err(|error| code::error_from_io(OperationKind::Associate, &error))?;
        }
        if is_datagram && socket.peer_addr().is_err() {
            // What a host says about one peer must not fail the receives from all (rule 116).
            let _ = syscall::set_report_unreachable(syscall::raw(socket), false);
        }
        Ok((protocol.iAddressFamily, skips))
    }

    fn associate_file(
        self: Arc<Self>,
        file: std::fs::File,
        key: usize,
    ) -> Result<Arc<dyn BackendSource>, (Error, RawSource)> {
        if self.queue.is_closed() {
            let error = Error::new(OperationKind::Associate, ErrorKind::PortClosed);
            return Err((error, RawSource::File(file)));
        }
        let skips = self.config.skip_completion_port_on_success;
        match OverlappedFile::associate(file, &self.queue, skips) {
            Ok(file) => {
                let id = self.next_source.fetch_add(1, Ordering::Relaxed);
                let source = FileSource::new(Arc::clone(&self), file, key, id, skips);
                self.remember(id, &source);
                Ok(source)
            }
            Err((error, file)) => Err((error, RawSource::File(file))),
        }
    }
}

impl Backend for Port {
    fn describe(&self) -> &BackendDescription {
        &self.description
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    fn counters(&self) -> PortCounters {
        PortCounters {
            dequeued_packets: self.dequeued_packets.load(Ordering::Relaxed),
            wait_calls: self.wait_calls.load(Ordering::Relaxed),
            pool_bytes: (self.pool.total_buffers() * self.pool.buffer_bytes()) as u64,
            ..PortCounters::default()
        }
    }

    fn associate(
        self: Arc<Self>,
        source: RawSource,
        key: usize,
    ) -> Result<Arc<dyn BackendSource>, (Error, RawSource)> {
        type Restore = fn(socket2::Socket) -> RawSource;
        let was_connected = matches!(source, RawSource::Connected(_));
        let is_datagram = matches!(source, RawSource::Datagram(_));
        let is_stream = matches!(source, RawSource::Stream(_) | RawSource::Connected(_));
        let (socket, restore): (_, Restore) = match source {
            #[cfg(feature = "sim")]
            RawSource::Simulated(source) => {
                // It lives in its world only.
                let error = Error::new(OperationKind::Associate, ErrorKind::InvalidInput);
                return Err((error, RawSource::Simulated(source)));
            }
            RawSource::Stream(socket) => (socket, RawSource::Stream),
            RawSource::Connected(socket) => (socket, RawSource::Connected),
            RawSource::Listener(socket) => (socket, RawSource::Listener),
            RawSource::Datagram(socket) => (socket, RawSource::Datagram),
            RawSource::File(file) => return self.associate_file(file, key),
        };
        match self.associate_socket(&socket, is_datagram, is_stream) {
            Err(error) => Err((error, restore(socket))),
            Ok((family, skips)) => {
                let probe = restore(socket);
                let (role, socket) = match probe {
                    RawSource::Listener(socket) => (Role::Listener(Listener::default()), socket),
                    RawSource::Datagram(socket) => (Role::Datagram, socket),
                    RawSource::Stream(socket) | RawSource::Connected(socket) => {
                        let connected = was_connected || socket.peer_addr().is_ok();
                        (Role::Stream(Stream::new(connected)), socket)
                    }
                    RawSource::File(_) => unreachable!("files went another way"),
                    #[cfg(feature = "sim")]
                    RawSource::Simulated(_) => unreachable!("refused above"),
                };
                let id = self.next_source.fetch_add(1, Ordering::Relaxed);
                let parts = Parts { socket, role, key, id, family, skips };
                let source = Socket::new(Arc::clone(&self), parts);
                self.remember(id, &source);
                Ok(source)
            }
        }
    }

    fn dequeue(
        &self,
        completions: &mut [Option<Completion>],
        timeout: Option<Duration>,
    ) -> Result<usize, DequeueError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut left = timeout;
        let (mut one, mut many);
        let entries: &mut [OVERLAPPED_ENTRY] = if completions.len() == 1 {
            one = [OVERLAPPED_ENTRY::default(); 1];
            &mut one
        } else {
            many = [OVERLAPPED_ENTRY::default(); BATCH];
            &mut many[..completions.len().min(BATCH)]
        };
        loop {
            self.wait_calls.fetch_add(1, Ordering::Relaxed);
            let waited = self.queue.wait(entries, left.map(wait_ms));
            let count = match waited {
                None => return Err(DequeueError::Closed),
                Some(Ok(count)) => count,
                Some(Err(code)) => {
                    let error = code::error_of(OperationKind::Dequeue, code);
                    return Err(DequeueError::Failed(error));
                }
            };
            let mut filled = 0;
            for entry in &entries[..count] {
                if let Some(completion) = self.deliver(entry) {
                    completions[filled] = Some(completion);
                    filled += 1;
                }
            }
            if self.queue.is_closed() {
                // Too late for the program (rule 21). The next thread that waits is told.
                completions[..filled].iter_mut().for_each(|completion| drop(completion.take()));
                self.queue.wake_waiting();
                return Err(DequeueError::Closed);
            }
            if filled > 0 {
                self.dequeued_packets.fetch_add(filled as u64, Ordering::Relaxed);
                return Ok(filled);
            }
            if let Some(deadline) = deadline {
                let now = Instant::now();
                if now >= deadline && count == 0 {
                    return Err(DequeueError::TimedOut);
                }
                left = Some(deadline.saturating_duration_since(now));
            }
        }
    }

    fn post(&self, packet: Completion) -> Result<(), Rejected> {
        let reject = |packet: Completion, error| Err(packet.reject(error));
        // Counted before it is asked, so that who closes the port waits for this packet, or this
        // sees that it is closed.
        self.queue.count_in();
        let outcome = if self.queue.is_closed() {
            reject(packet, Error::new(OperationKind::Post, ErrorKind::PortClosed))
        } else {
            overlapped::push(&self.queue, packet)
                .or_else(|(code, packet)| reject(packet, code::error_of(OperationKind::Post, code)))
        };
        self.queue.count_out();
        outcome
    }

    fn start_timer(
        &self,
        key: usize,
        deadline: Instant,
        operation: Operation,
    ) -> Result<(), Rejected> {
        let outcome = self.clock.start(key, deadline, operation);
        outcome.map_err(|(error, operation)| Rejected::new(error, operation))
    }

    fn cancel_timer(&self, timer: OperationId) -> bool {
        let Some((key, operation)) = self.clock.cancel(timer) else { return false };
        let error = Error::new(OperationKind::Timer, ErrorKind::Cancelled);
        let packet = Completion::finished(key, operation, 0, Some(error));
        overlapped::push_surely(&self.queue, packet);
        true
    }

    fn enter_blocking(&self) -> bool {
        // The kernel sees for itself when a thread blocks, and releases another (rule 40).
        false
    }

    fn leave_blocking(&self) {}

    fn close(&self) {
        if !self.queue.close() {
            return;
        }
        let timers = self.clock.stop();
        let sources: Vec<_> = lock(&self.sources).values().filter_map(Weak::upgrade).collect();
        for source in &sources {
            source.abandon();
        }
        // Their contexts may hold sources of this port.
        drop(timers);
        drop(sources);
        if let Some(port) = self.me.upgrade() {
            port.drain();
        }
    }
}

/// A wait in milliseconds, never shorter than asked for: what is left over is waited for again.
fn wait_ms(left: Duration) -> u32 {
    let ms = left.as_nanos().div_ceil(1_000_000);
    u32::try_from(ms).unwrap_or(u32::MAX).min(LONGEST_WAIT_MS)
}
