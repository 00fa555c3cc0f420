//! A worker's epoll set, and the sources whose home it is.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::driver::Driver;
use super::errno::error_of;
use super::residents::{FOLLOW_TOKEN, Residents, WAKE_TOKEN};
use super::sink::Sink;
use super::socket::{Context, Socket};
use super::syscall;
use crate::error::Error;
use crate::operation::OperationKind;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Events fetched by one call.
const BATCH: usize = 128;
/// Streams that a rescuer looks at in one go.
const RESCUE_BATCH: usize = 256;

pub(crate) struct Poller<D: Driver> {
    epoll: OwnedFd,
    residents: Mutex<Residents<Socket<D>>>,
    count: AtomicUsize,
    /// Every stream of this home, level-triggered: filled once its worker was found stuck.
    rescue_set: OnceLock<OwnedFd>,
    rescue_on: AtomicBool,
    /// A set that is followed has events.
    followed_ready: AtomicBool,
}

impl<D: Driver> Poller<D> {
    /// An empty set.
    pub(crate) fn new() -> Result<Self, Error> {
        let epoll = syscall::epoll_create();
        let epoll = epoll.map_err(|errno| error_of(OperationKind::Dequeue, errno))?;
        Ok(Self {
            epoll,
            residents: Mutex::new(Residents::new()),
            count: AtomicUsize::new(0),
            rescue_set: OnceLock::new(),
            rescue_on: AtomicBool::new(false),
            followed_ready: AtomicBool::new(false),
        })
    }

    /// From now on a signal at `wake` ends a wait here.
    pub(crate) fn watch_wake(&self, wake: RawFd) -> Result<(), Error> {
        // Edge-triggered: each signal is an event, and the counter need never be read.
        let interest = (libc::EPOLLIN | libc::EPOLLET) as u32;
        syscall::epoll_control(&self.epoll, libc::EPOLL_CTL_ADD, wake, interest, WAKE_TOKEN)
            .map_err(|errno| error_of(OperationKind::Dequeue, errno))
    }

    /// The epoll descriptor, for a ring to poll.
    pub(crate) fn epoll_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(crate) fn residents(&self) -> MutexGuard<'_, Residents<Socket<D>>> {
        self.residents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sources live here, by a look without the lock.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes a source in.
    pub(crate) fn insert(&self, socket: &Arc<Socket<D>>) -> u64 {
        let mut residents = self.residents();
        let token = residents.insert(Arc::clone(socket));
        self.count.store(residents.len(), Ordering::Relaxed);
        if self.rescue_on.load(Ordering::Acquire) {
            self.add_to_rescue_set(socket, token);
        }
        token
    }

    /// Lets a source go, which is watched for `interest`.
    pub(crate) fn remove(&self, socket: &Socket<D>, token: u64, interest: u32) {
        let removed = {
            let mut residents = self.residents();
            let removed = residents.remove(token);
            self.count.store(residents.len(), Ordering::Relaxed);
            removed
        };
        let fd = socket.raw_fd();
        // Only fails where the set does not hold it, which is the state wanted.
        if interest != 0 {
            let _ = syscall::epoll_control(&self.epoll, libc::EPOLL_CTL_DEL, fd, 0, 0);
        }
        if let Some(set) = self.rescue_set.get() {
            let _ = syscall::epoll_control(set, libc::EPOLL_CTL_DEL, fd, 0, 0);
        }
        drop(removed);
    }

    /// Watches a source for `interest`, instead of `before` (0: it was not watched).
    pub(crate) fn watch(
        &self,
        fd: RawFd,
        token: u64,
        before: u32,
        interest: u32,
    ) -> Result<(), i32> {
        let what = if before == 0 { libc::EPOLL_CTL_ADD } else { libc::EPOLL_CTL_MOD };
        syscall::epoll_control(&self.epoll, what, fd, interest, token)
    }

    /// From now on what comes for the sources of `other` wakes who waits here.
    pub(crate) fn follow(&self, other: &Self, index: usize) -> Result<(), i32> {
        let interest = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let token = FOLLOW_TOKEN + index as u64;
        let fd = other.readiness_fd();
        syscall::epoll_control(&self.epoll, libc::EPOLL_CTL_ADD, fd, interest, token)
    }

    /// Ends that.
    pub(crate) fn unfollow(&self, other: &Self) {
        let fd = other.readiness_fd();
        // Only fails where the set does not hold it, which is the state wanted.
        let _ = syscall::epoll_control(&self.epoll, libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Whether something came for a set that is followed.
    pub(crate) fn has_followed_ready(&self) -> bool {
        self.followed_ready.load(Ordering::Relaxed)
    }

    /// The same, and forgets it.
    pub(crate) fn take_followed_ready(&self) -> bool {
        self.has_followed_ready() && self.followed_ready.swap(false, Ordering::Relaxed)
    }

    /// What tells that streams are ready: the rescue set where the worker has one, because then its
    /// own set does not hold them.
    fn readiness_fd(&self) -> RawFd {
        self.rescue_set.get().map_or(self.epoll_fd(), AsRawFd::as_raw_fd)
    }

    /// Waits for events and lets their sources act on them. Returns how many events there were.
    pub(crate) fn poll(
        &self,
        timeout: Option<Duration>,
        driver: Option<&mut D>,
        worker: Option<usize>,
        sink: &mut Sink<'_>,
    ) -> Result<usize, Error> {
        let mut events = [const { libc::epoll_event { events: 0, u64: 0 } }; BATCH];
        let count = syscall::epoll_wait(&self.epoll, &mut events, timeout)
            .map_err(|errno| error_of(OperationKind::Dequeue, errno))?;
        let mut context = Context::new(driver, worker, sink);
        for event in &events[..count] {
            let (token, flags) = (event.u64, event.events);
            if token >= FOLLOW_TOKEN {
                if token != WAKE_TOKEN {
                    self.followed_ready.store(true, Ordering::Relaxed);
                }
                continue;
            }
            let resident = self.residents().get(token).cloned();
            if let Some(socket) = resident {
                socket.ready(flags, &mut context);
            }
        }
        Ok(count)
    }

    /// Polls without waiting until nothing more is ready, for a ring that was told by an edge.
    pub(crate) fn poll_ready(
        &self,
        mut driver: Option<&mut D>,
        worker: Option<usize>,
        sink: &mut Sink<'_>,
    ) -> Result<usize, Error> {
        let mut total = 0;
        loop {
            let count = self.poll(Some(Duration::ZERO), driver.as_deref_mut(), worker, sink)?;
            total += count;
            if count < BATCH {
                return Ok(total);
            }
        }
    }

    /// The streams of this home that are readable now, by level. From the first call on, every
    /// stream of this home is watched for it.
    pub(crate) fn readable_streams(&self) -> Result<Vec<Arc<Socket<D>>>, Error> {
        let to_error = |errno| error_of(OperationKind::Dequeue, errno);
        if !self.rescue_on.load(Ordering::Acquire) {
            let set = syscall::epoll_create().map_err(to_error)?;
            let residents = self.residents();
            let _ = self.rescue_set.set(set);
            self.rescue_on.store(true, Ordering::Release);
            for (token, socket) in residents.all_with_tokens() {
                self.add_to_rescue_set(socket, token);
            }
        }
        let Some(set) = self.rescue_set.get() else { return Ok(Vec::new()) };
        let mut events = [const { libc::epoll_event { events: 0, u64: 0 } }; RESCUE_BATCH];
        let count =
            syscall::epoll_wait(set, &mut events, Some(Duration::ZERO)).map_err(to_error)?;
        let residents = self.residents();
        Ok(events[..count].iter().filter_map(|event| residents.get(event.u64).cloned()).collect())
    }

    fn add_to_rescue_set(&self, socket: &Socket<D>, token: u64) {
        if let (Some(set), true) = (self.rescue_set.get(), socket.is_stream()) {
            let interest = (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
            // Without it the socket waits for its own worker, as it would without a rescue.
            let added =
                syscall::epoll_control(set, libc::EPOLL_CTL_ADD, socket.raw_fd(), interest, token);
            if let Err(errno) = added
                && errno != libc::EEXIST
            {
                tracing::warn!(errno, "a socket cannot be watched for rescue");
            }
        }
    }
}
