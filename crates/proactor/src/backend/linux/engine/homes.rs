//! Which worker serves which source: registering threads, finding homes, and sources that wait for
//! a worker or for a receive buffer.

use std::collections::HashSet;
use std::time::Duration;

use super::{Engine, lock};
use crate::backend::linux::counters::inherit;
use crate::backend::linux::driver::Driver;
use crate::backend::linux::errno::error_of;
use crate::backend::linux::sink::Sink;
use crate::backend::linux::socket::{Context, Socket, SourceKind};
use crate::backend::linux::syscall;
use crate::backend::linux::worker::{self, Local, Worker};
use crate::error::{DequeueError, Error, ErrorKind};
use crate::operation::OperationKind;
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, PoisonError};

/// How long a worker sleeps at most while sources wait for a receive buffer.
pub(super) const STARVED_TICK: Duration = Duration::from_millis(1);
/// Threads that may dequeue from one port.
const WORKERS_MAXIMUM: usize = 4096;

/// Sockets that are associated with any port of this process, by inode (rules 8, 9).
static ASSOCIATED: std::sync::Mutex<Option<HashSet<u64>>> = std::sync::Mutex::new(None);

impl<D: Driver> Engine<D> {
    /// The calling thread's worker; makes it one at its first call (rule 39).
    pub(super) fn enter_thread(&self) -> Result<Arc<Worker<D>>, DequeueError> {
        match worker::enter(self.id) {
            Some(worker) => Ok(worker),
            None => self.add_worker().map_err(DequeueError::Failed),
        }
    }

    pub(super) fn add_worker(&self) -> Result<Arc<Worker<D>>, Error> {
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
        let mut sink = Sink::new(&self.central, Some(queue));
        let mut context = Context::new(driver.as_mut(), Some(index), &mut sink);
        for socket in &orphans {
            socket.settle(&worker, &mut context);
        }
        drop(local);
        // Who sleeps did not watch while there was nobody else.
        self.hand_watch_on(&worker);
        Ok(worker)
    }

    /// A worker's thread goes: its sources find another home.
    pub(crate) fn remove_worker(&self, worker: &Arc<Worker<D>>) {
        {
            let mut workers = self.workers.write().unwrap_or_else(PoisonError::into_inner);
            workers[worker.slot.index] = None;
            self.worker_count.fetch_sub(1, Ordering::SeqCst);
            // Under the table's lock: whoever adds up finds a worker's counts in one place.
            self.past_dequeued
                .fetch_add(worker.slot.dequeued_packets.load(Ordering::Relaxed), Ordering::Relaxed);
            self.past_wait_calls
                .fetch_add(worker.counters.wait_calls.load(Ordering::Relaxed), Ordering::Relaxed);
            inherit(&mut lock(&self.past_batches), worker);
        }
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
    pub(super) fn find_home(&self, socket: &Arc<Socket<D>>) {
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
        if let Some(associated) = &mut *ASSOCIATED.lock().unwrap_or_else(PoisonError::into_inner) {
            associated.remove(&inode);
        }
    }

    /// A source found no receive buffer: it is served again when a worker gets round to it.
    pub(crate) fn starve(&self, socket: Arc<Socket<D>>) {
        let mut starved = lock(&self.starved);
        starved.push(socket);
        self.starved_count.store(starved.len(), Ordering::SeqCst);
    }

    /// Whether sources wait for a buffer, and were not tried again in the last moment.
    pub(super) fn starved_are_due(&self) -> bool {
        self.starved_count.load(Ordering::Relaxed) > 0
            && self.now().saturating_sub(self.last_feeding.load(Ordering::Relaxed))
                >= STARVED_TICK.as_nanos() as u64
    }

    pub(super) fn feed_starved(&self, worker: &Worker<D>, local: &mut Local<D>) {
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
        let mut sink = Sink::new(&self.central, Some(queue));
        let mut context = Context::new(driver.as_mut(), Some(worker.slot.index), &mut sink);
        for socket in &starved {
            socket.serve(&mut context);
        }
    }

    pub(super) fn associate_socket(
        &self,
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
        let mut guard = ASSOCIATED.lock().unwrap_or_else(PoisonError::into_inner);
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
