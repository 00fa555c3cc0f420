//! One thread that dequeues: its own queue, its driver, and what others ask of it.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::time::Instant;

use super::alarm::Alarm;
use super::counters::WorkerCounters;
use super::driver::Driver;
use super::engine::Engine;
use super::errno::error_of;
use super::follow::Followed;
use super::poller::Poller;
use super::rescue::Sightings;
use super::sink::Sink;
use super::slot::Slot;
use super::socket::{Context, Socket};
use super::syscall;
use crate::buffer::Pool;
use crate::error::Error;
use crate::operation::OperationKind;
use crate::port::Completion;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::thread_local;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

pub(crate) struct Worker<D: Driver> {
    pub(crate) slot: Arc<Slot>,
    pub(crate) poller: Poller<D>,
    engine: Weak<Engine<D>>,
    /// Held by the worker's thread while it is inside the library, its waits included; free exactly
    /// while the thread is in a handler, so that another worker can take over (rescue).
    local: Mutex<Local<D>>,
    /// Sources that ask to be served here.
    inbox: Mutex<Vec<Arc<Socket<D>>>>,
    inbox_len: AtomicUsize,
    pub(crate) counters: WorkerCounters,
    /// What its receives are fed from.
    pub(crate) pool: Arc<Pool>,
    /// The worker that its sockets wake while it is stuck, and in which turn; see `follow`.
    pub(crate) follower: AtomicU64,
    /// Ends its sleep when it is to look after others; see `watch`.
    pub(crate) alarm: Alarm,
    /// The turn in which it was found to have left for good without saying so; 0: none.
    pub(crate) gone_turn: AtomicU64,
}

/// What only the holder of the worker's lock touches.
pub(crate) struct Local<D: Driver> {
    /// `None` once the thread has left the port.
    pub(crate) driver: Option<D>,
    /// Packets that this worker collected itself.
    pub(crate) queue: VecDeque<Completion>,
    /// Packets taken from the shared queue since the driver last had its turn.
    pub(crate) streak: usize,
    /// When other workers were last looked at, and what was seen.
    pub(crate) last_look: Option<Instant>,
    pub(crate) sightings: Sightings,
    /// Stuck workers whose sockets wake this one.
    pub(crate) followed: Vec<Followed>,
}

impl<D: Driver> Worker<D> {
    /// Makes the calling thread a worker of `engine`.
    pub(crate) fn open(engine: &Engine<D>, index: usize) -> Result<Arc<Self>, Error> {
        let to_error = |errno| error_of(OperationKind::Dequeue, errno);
        let wake = syscall::eventfd().map_err(to_error)?;
        let alarm = Alarm::new().map_err(to_error)?;
        let poller = Poller::new()?;
        let driver = D::open(&engine.config, &poller, [wake.as_raw_fd(), alarm.raw_fd()])?;
        let pool = Arc::clone(driver.pool());
        let slot = Arc::new(Slot::new(index, wake));
        Ok(Arc::new(Self {
            slot,
            poller,
            engine: engine.downgrade(),
            local: Mutex::new(Local {
                driver: Some(driver),
                queue: VecDeque::with_capacity(256),
                streak: 0,
                last_look: None,
                sightings: Sightings::default(),
                followed: Vec::new(),
            }),
            inbox: Mutex::new(Vec::new()),
            inbox_len: AtomicUsize::new(0),
            counters: WorkerCounters::default(),
            pool,
            follower: AtomicU64::new(0),
            alarm,
            gone_turn: AtomicU64::new(0),
        }))
    }

    /// The worker's own lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Local<D>> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's own lock, if its thread is not inside the library.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Local<D>>> {
        match self.local.try_lock() {
            Ok(local) => Some(local),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Puts a source into the inbox. The caller wakes the worker.
    pub(crate) fn hand(&self, socket: Arc<Socket<D>>) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.push(socket);
        self.inbox_len.store(inbox.len(), Ordering::SeqCst);
    }

    /// Whether a source asks to be served.
    pub(crate) fn has_inbox(&self) -> bool {
        self.inbox_len.load(Ordering::SeqCst) > 0
    }

    /// Serves every source that asked. `local` is this worker's own.
    pub(crate) fn serve_inbox(&self, local: &mut Local<D>, engine: &Engine<D>) {
        if !self.has_inbox() {
            return;
        }
        let sockets = self.take_inbox();
        let mut sink = Sink::new(&engine.central, Some(&mut local.queue));
        let mut context = Context::new(local.driver.as_mut(), Some(self.slot.index), &mut sink);
        for socket in &sockets {
            socket.serve(&mut context);
        }
    }

    fn take_inbox(&self) -> Vec<Arc<Socket<D>>> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        self.inbox_len.store(0, Ordering::SeqCst);
        std::mem::take(&mut *inbox)
    }

    /// The thread leaves the port: what the kernel holds for it ends, what it had collected goes to
    /// the others, and so do its sources (rule 88).
    fn leave(self: &Arc<Self>) {
        let Some(engine) = self.engine.upgrade() else {
            self.lock().driver = None;
            return;
        };
        let mut local = self.lock();
        let Local { driver, queue, .. } = &mut *local;
        let driver = driver.take();
        if let Some(mut driver) = driver {
            let mut sink = Sink::new(&engine.central, Some(queue));
            driver.retire(&mut sink);
        }
        let mut packets = std::mem::take(queue);
        drop(local);
        engine.central.prepend(&mut packets);
        engine.remove_worker(self);
        // What asked to be served here asks at its new home.
        let asking = self.take_inbox();
        engine.in_context(|context| asking.iter().for_each(|socket| socket.serve(context)));
        engine.central.leave(&self.slot);
        drop(packets);
        engine.central.drop_late();
    }
}

/// A worker of whatever port, as its thread remembers it.
trait Membership: Any {
    fn leave(self: Arc<Self>);
    fn is_over(&self) -> bool;
    fn release_slot(&self);
}

impl<D: Driver> Membership for Worker<D> {
    fn leave(self: Arc<Self>) {
        Worker::leave(&self);
    }

    fn is_over(&self) -> bool {
        self.engine.upgrade().is_none_or(|engine| engine.central.is_closed())
    }

    fn release_slot(&self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.central.give_up(&self.slot);
        }
    }
}

struct Member {
    engine: u64,
    worker: Arc<dyn Membership>,
    /// The same worker, for a look at its type.
    any: Arc<dyn Any + Send + Sync>,
}

/// The ports that the thread has dequeued from; the one it did so last is first.
struct Memberships(Vec<Member>);

impl Drop for Memberships {
    fn drop(&mut self) {
        for member in self.0.drain(..) {
            member.worker.leave();
        }
    }
}

thread_local! {
    static MEMBERSHIPS: RefCell<Memberships> = const { RefCell::new(Memberships(Vec::new())) };
}

/// The calling thread's worker of engine `engine`, if it has one.
pub(crate) fn current<D: Driver>(engine: u64) -> Option<Arc<Worker<D>>> {
    MEMBERSHIPS
        .try_with(|memberships| {
            let memberships = memberships.try_borrow().ok()?;
            let member = memberships.0.iter().find(|member| member.engine == engine)?;
            Arc::clone(&member.any).downcast().ok()
        })
        .ok()
        .flatten()
}

/// Runs `act` with the calling thread's worker of engine `engine`, if it has one, without taking a
/// reference. `act` makes no thread join or leave a port: it drops nothing of the program's.
pub(crate) fn with_current<D: Driver, R>(
    engine: u64,
    act: impl FnOnce(Option<&Worker<D>>) -> R,
) -> R {
    let mut act = Some(act);
    let done = MEMBERSHIPS.try_with(|memberships| {
        let memberships = memberships.try_borrow().ok()?;
        let member = memberships.0.iter().find(|member| member.engine == engine)?;
        let worker = member.any.downcast_ref()?;
        act.take().map(|act| act(Some(worker)))
    });
    match (done, act) {
        (Ok(Some(result)), _) => result,
        (_, Some(act)) => act(None),
        (_, None) => unreachable!("who took the closure has returned its result"),
    }
}

/// The calling thread's worker of engine `engine`, which the thread now belongs to: its slot at
/// another port is released (rule 39). `None` where the thread is no worker of it yet.
pub(crate) fn enter<D: Driver>(engine: u64) -> Option<Arc<Worker<D>>> {
    // The usual case: the thread dequeues from the port that it dequeued from before.
    let same = MEMBERSHIPS.try_with(|memberships| {
        let memberships = memberships.try_borrow().ok()?;
        let first = memberships.0.first().filter(|member| member.engine == engine)?;
        Arc::clone(&first.any).downcast().ok()
    });
    if let Ok(Some(worker)) = same {
        return Some(worker);
    }
    change_to(engine);
    current(engine)
}

/// Makes `engine` the port that the thread belongs to, and lets go of ports that are closed.
fn change_to(engine: u64) {
    let over = MEMBERSHIPS.try_with(|memberships| {
        let Ok(mut memberships) = memberships.try_borrow_mut() else { return Vec::new() };
        let members = &mut memberships.0;
        if let Some(first) = members.first() {
            first.worker.release_slot();
        }
        if let Some(position) = members.iter().position(|member| member.engine == engine) {
            members[..=position].rotate_right(1);
        }
        let mut over = Vec::new();
        let mut index = 0;
        while index < members.len() {
            if members[index].engine != engine && members[index].worker.is_over() {
                over.push(members.remove(index));
            } else {
                index += 1;
            }
        }
        over
    });
    for member in over.into_iter().flatten() {
        member.worker.leave();
    }
}

/// Remembers that the calling thread is `worker` of engine `engine`.
pub(crate) fn remember<D: Driver>(engine: u64, worker: &Arc<Worker<D>>) {
    // During the thread's end there is nothing to remember with: then the worker is left at once
    // by whoever drops it last.
    let _ = MEMBERSHIPS.try_with(|memberships| {
        let member =
            Member { engine, worker: Arc::clone(worker) as _, any: Arc::clone(worker) as _ };
        memberships.borrow_mut().0.insert(0, member);
    });
}

/// The calling thread leaves engine `engine`.
pub(crate) fn leave(engine: u64) {
    let member = MEMBERSHIPS.try_with(|memberships| {
        let mut memberships = memberships.try_borrow_mut().ok()?;
        let position = memberships.0.iter().position(|member| member.engine == engine)?;
        Some(memberships.0.remove(position))
    });
    if let Ok(Some(member)) = member {
        member.worker.leave();
    }
}
