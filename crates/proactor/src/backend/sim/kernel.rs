//! The world's state, its loop, and the baton: of its threads one runs at a time.
//!
//! Whoever gives the baton up, by waiting, works the events off until one of them says who runs
//! next. So the world needs no thread of its own, and what happens follows from the seed alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::event::{EndpointId, Event, EventQueue, PortId, SourceId, ThreadId};
use super::faults::Faults;
use super::monitor::Monitor;
use super::port::Port;
use super::random::Random;
use super::source::Source;
use super::stream::Endpoint;
use super::trace::Trace;
use crate::operation::Operation;
use crate::port::Completion;

/// A thread that keeps the baton for so long waits for another one, in real time.
const BATON_LIMIT: Duration = Duration::from_secs(60);

pub(crate) const MICROSECOND: u64 = 1_000;
pub(crate) const MILLISECOND: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// What an actor does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It acts again after this time, or sooner, where a peer that it waits for can go on.
    After(Duration),
    /// It is done.
    Done,
}

pub(crate) type ActorBody = Box<dyn FnMut() -> Next + Send>;

pub(crate) struct Kernel {
    state: Mutex<State>,
    /// The real instant that the virtual time 0 is called.
    pub(crate) epoch: Instant,
    arrived: Condvar,
}

pub(crate) struct State {
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    pub(crate) faults_on: bool,
    pub(crate) may_interrupt: bool,
    /// Virtual nanoseconds since the world began.
    pub(crate) now: u64,
    pub(crate) events: EventQueue,
    pub(crate) event_count: u64,
    pub(crate) threads: Vec<Thread>,
    /// Who has the baton.
    running: Option<ThreadId>,
    /// Threads of the program's own that came to a port for the first time.
    arrivals: Vec<ThreadId>,
    in_actor: bool,
    pub(crate) ports: Vec<Port>,
    pub(crate) sources: Vec<Source>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) listeners: BTreeMap<SocketAddr, SourceId>,
    pub(crate) datagram_sockets: BTreeMap<SocketAddr, SourceId>,
    pub(crate) next_port_number: u16,
    actors: Vec<Actor>,
    pub(crate) trace: Trace,
    pub(crate) monitor: Monitor,
    /// To be dropped when the lock is free: contexts are the program's, and may do anything.
    pub(crate) garbage: Vec<Garbage>,
}

struct Actor {
    body: Option<ActorBody>,
    is_done: bool,
    /// Events of before its last turn do not count.
    turn: u64,
    due: u64,
}

/// What must not be dropped under the lock.
#[expect(dead_code, reason = "held for its drop")]
pub(crate) enum Garbage {
    Operation(Operation),
    Packet(Completion),
}

pub(crate) struct Thread {
    name: String,
    wake: Arc<Condvar>,
    pub(crate) is_gone: bool,
    /// Counts its waits: what was meant for an earlier one is ignored.
    pub(crate) generation: u64,
    /// The port that it belongs to (rule 39).
    pub(crate) port: Option<PortId>,
    pub(crate) holds_slot: bool,
    pub(crate) room: usize,
    pub(crate) outcome: Option<Outcome>,
}

/// How a dequeue ends.
pub(crate) enum Outcome {
    Packets(VecDeque<Completion>),
    TimedOut,
    Closed,
}

/// The locked state; what was to be dropped is dropped after the unlock.
pub(crate) struct Guard<'a> {
    kernel: &'a Kernel,
    state: Option<MutexGuard<'a, State>>,
}

impl Deref for Guard<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        self.state.as_ref().expect("the state is locked")
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("the state is locked")
    }
}

impl Guard<'_> {
    fn unlock(&mut self) {
        if let Some(mut state) = self.state.take() {
            let garbage = std::mem::take(&mut state.garbage);
            drop(state);
            drop(garbage);
        }
    }

    fn relock(&mut self) {
        self.state = Some(self.kernel.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.unlock();
    }
}

thread_local! {
    /// The worlds that this thread is part of.
    static CURRENT: RefCell<Vec<Membership>> = const { RefCell::new(Vec::new()) };
}

struct Membership {
    kernel: Weak<Kernel>,
    thread: ThreadId,
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.upgrade() {
            kernel.leave(self.thread);
        }
    }
}

impl Kernel {
    pub(crate) fn new(seed: u64, faults: Faults, may_interrupt: bool, keep_all: bool) -> Arc<Self> {
        let kernel = Arc::new(Self {
            state: Mutex::new(State {
                random: Random::new(seed),
                faults,
                faults_on: true,
                may_interrupt,
                now: 0,
                events: EventQueue::default(),
                event_count: 0,
                threads: Vec::new(),
                running: Some(0),
                arrivals: Vec::new(),
                in_actor: false,
                ports: Vec::new(),
                sources: Vec::new(),
                endpoints: Vec::new(),
                listeners: BTreeMap::new(),
                datagram_sockets: BTreeMap::new(),
                next_port_number: 40_000,
                actors: Vec::new(),
                trace: Trace::new(keep_all),
                monitor: Monitor::default(),
                garbage: Vec::new(),
            }),
            epoch: Instant::now(),
            arrived: Condvar::new(),
        });
        let main = kernel.lock().new_thread("main".to_owned());
        kernel.adopt(main);
        kernel
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        let mut guard = Guard { kernel: self, state: None };
        guard.relock();
        guard
    }

    pub(crate) fn instant(&self, now: u64) -> Instant {
        self.epoch + Duration::from_nanos(now)
    }

    pub(crate) fn virtual_time(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    /// Makes the calling thread the world's thread `thread`.
    fn adopt(self: &Arc<Self>, thread: ThreadId) {
        let membership = Membership { kernel: Arc::downgrade(self), thread };
        CURRENT.with_borrow_mut(|current| {
            current.retain(|one| one.kernel.strong_count() > 0);
            current.push(membership);
        });
    }

    /// Which thread of this world the calling one is.
    pub(crate) fn current(&self) -> Option<ThreadId> {
        let address = std::ptr::from_ref(self);
        CURRENT.with_borrow(|current| {
            let mine = current.iter().find(|one| one.kernel.as_ptr() == address);
            mine.map(|one| one.thread)
        })
    }

    /// Which thread of this world the calling one is; one that is none yet becomes one, and waits
    /// until it is its turn.
    pub(crate) fn enter(self: &Arc<Self>) -> ThreadId {
        if let Some(thread) = self.current() {
            return thread;
        }
        let mut guard = self.lock();
        let name = format!("thread {}", guard.threads.len());
        let thread = guard.new_thread(name);
        guard.arrivals.push(thread);
        self.arrived.notify_all();
        drop(guard);
        self.adopt(thread);
        self.wait_for_baton(self.lock(), thread);
        thread
    }

    /// Waits, in real time, until so many threads of the program's own have come to a port.
    pub(crate) fn expect_threads(&self, count: usize) {
        let mut guard = self.lock();
        while guard.arrivals.len() < count {
            let state = guard.state.take().expect("the state is locked");
            let waited = self.arrived.wait_timeout(state, BATON_LIMIT);
            let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            guard.state = Some(state);
            assert!(!timeout.timed_out(), "the expected threads did not come to a port");
        }
    }

    /// Starts a thread; it runs when it is its turn.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let mut guard = self.lock();
        let thread = guard.new_thread(name.to_owned());
        let at = guard.latency();
        guard.after(at, Event::Resume(thread));
        drop(guard);
        let kernel = Arc::clone(self);
        std::thread::spawn(move || {
            kernel.adopt(thread);
            drop(kernel.wait_for_baton(kernel.lock(), thread));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            if let Err(panic) = result {
                let text = panic_text(&*panic);
                let mut guard = kernel.lock();
                let name = guard.threads[thread].name.clone();
                guard.monitor.violation(format!("{name} panicked: {text}"));
            }
            // Here, not when the thread-local goes: until then the thread has the baton.
            CURRENT.with_borrow_mut(Vec::pop);
        })
    }

    fn wait_for_baton<'a>(&'a self, mut guard: Guard<'a>, me: ThreadId) -> Guard<'a> {
        let wake = Arc::clone(&guard.threads[me].wake);
        let mut idle_since = (Instant::now(), 0);
        while guard.running != Some(me) {
            let state = guard.state.take().expect("the state is locked");
            let waited = wake.wait_timeout(state, BATON_LIMIT);
            guard.state = Some(waited.unwrap_or_else(PoisonError::into_inner).0);
            if guard.event_count != idle_since.1 {
                idle_since = (Instant::now(), guard.event_count);
            } else if idle_since.0.elapsed() > BATON_LIMIT && me == 0 {
                let holder = guard.running.map(|thread| guard.threads[thread].name.clone());
                panic!("{holder:?} keeps running: it waits for another thread, outside the port");
            }
        }
        guard
    }

    /// The calling thread, which has the baton, waits until an event says that it runs on.
    pub(crate) fn switch<'a>(&'a self, mut guard: Guard<'a>, me: ThreadId) -> Guard<'a> {
        assert_eq!(guard.running, Some(me), "a thread that has the baton gives it up");
        self.work_off(&mut guard, me);
        self.wait_for_baton(guard, me)
    }

    /// A thread ends, or has nothing more to do with this world.
    fn leave(&self, me: ThreadId) {
        let mut guard = self.lock();
        guard.leave_port(me);
        guard.threads[me].is_gone = true;
        if guard.running == Some(me) {
            self.work_off(&mut guard, me);
        }
    }

    /// Works events off until a thread is to run. Actors run on the calling thread.
    fn work_off(&self, guard: &mut Guard<'_>, me: ThreadId) {
        guard.running = None;
        loop {
            for thread in std::mem::take(&mut guard.arrivals) {
                guard.after(0, Event::Resume(thread));
            }
            if let Some(next) = guard.running {
                if next != me {
                    guard.threads[next].wake.notify_one();
                }
                return;
            }
            let Some((time, event)) = guard.events.pop() else {
                if guard.threads.iter().all(|thread| thread.is_gone) {
                    return;
                }
                guard.nothing_left();
                continue;
            };
            guard.event_count += 1;
            if time > guard.now {
                guard.monitor.time_moves();
                guard.now = time;
                let jump = guard.faults.clock_jump;
                if guard.strikes(jump) {
                    let jump = guard.random.time(SECOND, 30 * SECOND);
                    guard.now += jump;
                    guard.note(format_args!("the clock jumps by {} ms", jump / MILLISECOND));
                }
            }
            match event {
                Event::Actor(actor) => self.act(guard, actor, me),
                Event::Resume(thread) => {
                    if !guard.threads[thread].is_gone {
                        guard.running = Some(thread);
                    }
                }
                event => guard.handle(event),
            }
        }
    }

    fn act(&self, guard: &mut Guard<'_>, index: usize, me: ThreadId) {
        let now = guard.now;
        let actor = &mut guard.actors[index];
        if actor.is_done || now < actor.due {
            return;
        }
        let Some(mut body) = actor.body.take() else { return };
        actor.turn += 1;
        actor.due = u64::MAX;
        (guard.running, guard.in_actor) = (Some(me), true);
        guard.unlock();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut body));
        guard.relock();
        (guard.running, guard.in_actor) = (None, false);
        match result {
            Ok(Next::After(time)) => {
                guard.actors[index].body = Some(body);
                let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4).max(1);
                guard.wake_actor_after(index, time);
            }
            Ok(Next::Done) => {
                guard.actors[index].is_done = true;
                // Without the lock: what an actor holds is the program's.
                guard.unlock();
                drop(body);
                guard.relock();
            }
            Err(panic) => {
                guard.actors[index].is_done = true;
                guard.unlock();
                drop(body);
                guard.relock();
                let text = panic_text(&*panic);
                guard.monitor.violation(format!("actor {index} panicked: {text}"));
            }
        }
    }

    /// In a world that may interrupt calls, perhaps lets another thread run before the call of the
    /// calling one returns.
    pub(crate) fn maybe_interrupt<'a>(&'a self, mut guard: Guard<'a>) -> Guard<'a> {
        if !guard.may_interrupt || guard.in_actor {
            return guard;
        }
        let Some(me) = self.current() else { return guard };
        let probability = guard.faults.interrupted_call;
        if guard.running != Some(me) || !guard.strikes(probability) {
            return guard;
        }
        let pause = guard.latency();
        guard.after(pause, Event::Resume(me));
        self.switch(guard, me)
    }

    /// The calling thread sleeps, in virtual time.
    pub(crate) fn sleep(self: &Arc<Self>, time: u64) {
        let me = self.enter();
        let mut guard = self.lock();
        guard.after(time, Event::Resume(me));
        drop(self.switch(guard, me));
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

impl State {
    fn new_thread(&mut self, name: String) -> ThreadId {
        self.threads.push(Thread {
            name,
            wake: Arc::new(Condvar::new()),
            is_gone: false,
            generation: 0,
            port: None,
            holds_slot: false,
            room: 0,
            outcome: None,
        });
        self.threads.len() - 1
    }

    pub(crate) fn new_actor(&mut self, body: ActorBody) -> usize {
        self.actors.push(Actor { body: Some(body), is_done: false, turn: 0, due: 0 });
        let index = self.actors.len() - 1;
        let first = self.latency();
        self.wake_actor_after(index, first);
        index
    }

    pub(crate) fn actors_left(&self) -> usize {
        self.actors.iter().filter(|actor| !actor.is_done).count()
    }

    /// An actor acts after this time, unless it does before.
    pub(crate) fn wake_actor_after(&mut self, index: usize, time: u64) {
        let due = self.now.saturating_add(time);
        let actor = &mut self.actors[index];
        if !actor.is_done && due < actor.due || actor.turn == 0 {
            actor.due = due;
            self.after(time, Event::Actor(index));
        }
    }

    pub(crate) fn note(&mut self, text: std::fmt::Arguments<'_>) {
        let now = self.now;
        self.trace.line(now, text);
    }

    /// Whether a fault of this probability strikes now.
    pub(crate) fn strikes(&mut self, probability: f64) -> bool {
        self.faults_on && self.random.chance(probability)
    }

    /// How long something takes that takes no time to speak of, or is held back.
    pub(crate) fn latency(&mut self) -> u64 {
        let delay = self.faults.delay;
        if self.strikes(delay) {
            self.random.time(MILLISECOND, SECOND / 2)
        } else {
            self.random.time(100, 100 * MICROSECOND)
        }
    }

    pub(crate) fn after(&mut self, time: u64, event: Event) {
        let tie = self.random.bits() as u32;
        let time = self.now.saturating_add(time);
        self.events.push(time, tie, event);
    }

    pub(crate) fn soon(&mut self, event: Event) {
        let time = self.latency();
        self.after(time, event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::SlotLost(thread, generation) => self.slot_lost(thread, generation),
            Event::WaitEnds(thread, generation) => self.wait_ends(thread, generation),
            Event::Timers(port) => self.timers_due(port),
            Event::Receive(source) => self.receive(source),
            Event::Transmit(source) => self.transmit(source),
            Event::Accept(source) => self.accept(source),
            Event::Connect(endpoint, address, attempt) => self.connect(endpoint, address, attempt),
            Event::ConnectFails(endpoint) => {
                self.connect_fails(endpoint, crate::ErrorKind::TimedOut);
            }
            Event::Cancel(source, operation) => {
                self.cancel_now(source, operation);
            }
            Event::File(source, operation) => self.file_operation(source, operation),
            Event::Datagram(from, to, bytes) => self.datagram_arrives(from, to, bytes),
            Event::Datagrams(source) => self.datagrams(source),
            Event::Resume(_) | Event::Actor(_) => unreachable!("the loop takes these itself"),
        }
    }

    /// Every thread waits, and nothing is to come.
    fn nothing_left(&mut self) {
        self.monitor.violation("every thread waits, and nothing can happen any more".to_owned());
        for port in 0..self.ports.len() {
            self.close_port(port);
        }
        for thread in 0..self.threads.len() {
            if !self.threads[thread].is_gone {
                self.threads[thread].outcome.get_or_insert(Outcome::Closed);
                self.after(0, Event::Resume(thread));
            }
        }
    }

    pub(crate) fn threads_left(&self) -> usize {
        self.threads.iter().filter(|thread| !thread.is_gone).count()
    }

    /// At the end: what was opened is closed, what was lent is back.
    pub(crate) fn check_leaks(&mut self) {
        let totals = self.monitor.totals;
        let seen = totals.accepted + totals.unaccepted + self.backlogged();
        if seen != totals.connected {
            let lost = totals.connected.abs_diff(seen);
            self.monitor.violation(format!("{lost} connections were neither accepted nor ended"));
        }
        let open = self.sources.iter().filter(|source| !source.is_closed).count();
        if open > 0 {
            self.monitor.violation(format!("{open} sources are open at the end"));
        }
        let is_open = |end: &&Endpoint| end.is_established() && !end.is_closed;
        let open = self.endpoints.iter().filter(is_open).count() as u64;
        if open > self.backlogged() {
            self.monitor.violation(format!("{open} ends of connections are open at the end"));
        }
        for port in 0..self.ports.len() {
            let pool = &self.ports[port].pool;
            let lent = pool.total_buffers().abs_diff(pool.free_buffers());
            if lent > 0 {
                self.monitor.violation(format!("{lent} receive buffers did not come back"));
            }
        }
    }

    pub(crate) fn endpoint(&mut self, endpoint: EndpointId) -> &mut Endpoint {
        &mut self.endpoints[endpoint]
    }
}
