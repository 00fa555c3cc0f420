//! The world's state, its loop, and the baton: of its threads one runs at a time.
//!
//! Whoever gives the baton up, by waiting, works the events off until one of them says who runs
//! next. So the world needs no thread of its own, and what happens follows from the seed alone.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::event::{EndpointId, Event, EventQueue, PortId, SourceId, ThreadId};
use super::faults::Faults;
use super::monitor::Monitor;
use super::port::Port;
use super::random::Random;
use super::source::Source;
use super::stream::Endpoint;
use super::threads::panic_text;
use super::trace::Trace;
use super::waiting::{interrupting_begins, interrupting_ends};
use crate::operation::Operation;
use crate::port::Completion;

pub(crate) const MICROSECOND: u64 = 1_000;
pub(crate) const MILLISECOND: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// A program that still waits after the world has told it so often that nothing comes hangs.
const MOST_DEAD_ENDS: u32 = 100;

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
    pub(super) arrived: Condvar,
}

pub(crate) struct State {
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    pub(crate) faults_on: bool,
    /// The table of files is full until then.
    table_full_until: u64,
    pub(crate) may_interrupt: bool,
    /// Virtual nanoseconds since the world began.
    pub(crate) now: u64,
    pub(crate) events: EventQueue,
    pub(crate) event_count: u64,
    pub(crate) threads: Vec<Thread>,
    /// Who has the baton.
    pub(super) running: Option<ThreadId>,
    /// Threads of the program's own that came to a port for the first time.
    pub(super) arrivals: Vec<ThreadId>,
    pub(super) in_actor: bool,
    pub(crate) ports: Vec<Port>,
    pub(crate) sources: Vec<Source>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) listeners: BTreeMap<SocketAddr, SourceId>,
    pub(crate) datagram_sockets: BTreeMap<SocketAddr, SourceId>,
    pub(crate) next_port_number: u16,
    actors: Vec<Actor>,
    /// Who waits for each condition.
    pub(super) conditions: Vec<Vec<ThreadId>>,
    /// How often there was nothing to come.
    dead_ends: u32,
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
    pub(super) name: String,
    pub(super) wake: Arc<Condvar>,
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
    pub(super) state: Option<MutexGuard<'a, State>>,
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

impl Drop for Kernel {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.may_interrupt {
            interrupting_ends();
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
                table_full_until: 0,
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
                conditions: Vec::new(),
                dead_ends: 0,
                trace: Trace::new(keep_all),
                monitor: Monitor::default(),
                garbage: Vec::new(),
            }),
            epoch: Instant::now(),
            arrived: Condvar::new(),
        });
        if may_interrupt {
            interrupting_begins();
        }
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

    /// Works events off until a thread is to run. Actors run on the calling thread.
    pub(super) fn work_off(&self, guard: &mut Guard<'_>, me: ThreadId) {
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
}

impl State {
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

    /// Whether there is no descriptor for a new socket.
    pub(crate) fn lacks_descriptor(&mut self) -> bool {
        let (process, system) = (self.faults.no_descriptor, self.faults.file_table_full);
        if self.strikes(system) {
            self.table_full_until = self.now + self.random.time(MILLISECOND, SECOND);
            self.note(format_args!("the table of files is full"));
        }
        self.strikes(process) || (self.faults_on && self.now < self.table_full_until)
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
            Event::ConditionTimesOut(condition, thread, generation) => {
                self.condition_times_out(condition, thread, generation);
            }
            Event::Timers(port) => self.timers_due(port),
            Event::Receive(source) => self.receive(source),
            Event::Transmit(source) => self.transmit(source),
            Event::Accept(source) => self.accept(source),
            Event::Connect(endpoint, address, attempt) => self.connect(endpoint, address, attempt),
            Event::ConnectFails(endpoint) => {
                self.connect_fails(endpoint, crate::ErrorKind::TimedOut);
            }
            Event::Reset(endpoint) => self.reset(endpoint),
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
        self.dead_ends += 1;
        assert!(self.dead_ends < MOST_DEAD_ENDS, "every thread waits for what never comes");
        self.forget_conditions();
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
