//! The simulated port: the queue, the threads that wait at it, the limit, its timers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::{EndpointId, Event, PortId, ThreadId};
use super::kernel::{Garbage, Kernel, MILLISECOND, Outcome, SECOND, State};
use super::source::{SimulatedSource, no_descriptor};
use super::waiting::Condition;
use crate::backend::timers::TimerQueue;
use crate::backend::{
    Backend, BackendDescription, BackendSource, JoinThread, RawSource, ThreadBody, VirtualCondition,
};
use crate::buffer::Pool;
use crate::error::{DequeueError, Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::{Completion, Config, PortCounters};

pub(crate) struct Port {
    pub(crate) limit: usize,
    pub(crate) is_closed: bool,
    queue: VecDeque<Completion>,
    /// The thread that began to wait last is last.
    waiters: Vec<ThreadId>,
    active: usize,
    timers: TimerQueue,
    pub(crate) pool: Arc<Pool>,
    pub(crate) window_bytes: usize,
    counters: PortCounters,
    epoch: Instant,
}

impl State {
    pub(crate) fn open_port(&mut self, config: &Config, epoch: Instant) -> PortId {
        let limit = if config.concurrency == 0 { 2 } else { config.concurrency };
        self.ports.push(Port {
            limit,
            is_closed: false,
            queue: VecDeque::new(),
            waiters: Vec::new(),
            active: 0,
            timers: TimerQueue::new(),
            pool: Pool::new(config.receive_buffer_bytes, config.maximum_receive_buffers),
            window_bytes: config.receive_window_bytes,
            counters: PortCounters::default(),
            epoch,
        });
        self.monitor.port_opened(limit);
        let port = self.ports.len() - 1;
        self.note(format_args!("port {port} opens, limit {limit}"));
        port
    }

    /// Queues a packet, with whose bytes it carries.
    pub(crate) fn push(&mut self, port: PortId, packet: Completion, flow: Option<EndpointId>) {
        if self.ports[port].is_closed {
            self.garbage.push(Garbage::Packet(packet));
            return;
        }
        let number = packet.operation_id().map_or(0, |id| self.monitor.number(id));
        self.note(format_args!(
            "port {port}: {}#{number} key {} bytes {} {:?}",
            packet.kind.name(),
            packet.key,
            packet.bytes,
            packet.error.map(|error| error.kind()),
        ));
        let now = self.now;
        self.monitor.queued(port, &packet, flow, now);
        let is_post = packet.kind == OperationKind::Post;
        let queue = &mut self.ports[port].queue;
        if planted!(PostsOutOfOrder) && is_post && queue.len() > 1 {
            queue.push_front(packet);
        } else {
            queue.push_back(packet);
        }
        if !(planted!(LostWake) && is_post) {
            self.release(port);
        }
    }

    /// Releases waiting threads, the last one first, while there are packets and slots.
    fn release(&mut self, port: PortId) {
        loop {
            let this = &mut self.ports[port];
            let limit = this.limit + usize::from(planted!(LimitOffByOne));
            if this.queue.is_empty() || this.active >= limit || this.waiters.is_empty() {
                return;
            }
            let thread = if planted!(OldestReleasedFirst) {
                this.waiters.remove(0)
            } else {
                this.waiters.pop().expect("a thread waits")
            };
            this.counters.wakes += 1;
            self.grant(port, thread);
        }
    }

    /// Gives a thread a slot and as many packets as it has room for.
    fn grant(&mut self, port: PortId, thread: ThreadId) {
        let this = &mut self.ports[port];
        let count = this.queue.len().min(self.threads[thread].room);
        let packets: VecDeque<Completion> = this.queue.drain(..count).collect();
        this.active += 1;
        this.counters.dequeued_packets += count as u64;
        self.monitor.granted(port, thread);
        packets.iter().for_each(|packet| self.monitor.dequeued(port, packet));
        self.note(format_args!("port {port}: thread {thread} gets {count} packets"));
        self.threads[thread].holds_slot = true;
        let mut time = self.random.time(50, 5_000);
        let stalled = self.faults.stalled_worker;
        if self.strikes(stalled) {
            time = self.random.time(MILLISECOND, 5 * SECOND);
            self.note(format_args!("thread {thread} stalls for {} us", time / 1_000));
            if self.random.chance(0.5) {
                // It is blocked, and the port finds out (rule 40).
                let found = self.random.time(100_000, time);
                let generation = self.threads[thread].generation;
                self.after(found, Event::SlotLost(thread, generation));
            }
        }
        self.finish_wait(thread, Outcome::Packets(packets), time);
    }

    fn finish_wait(&mut self, thread: ThreadId, outcome: Outcome, time: u64) {
        self.threads[thread].outcome = Some(outcome);
        self.after(time, Event::Resume(thread));
    }

    pub(crate) fn slot_lost(&mut self, thread: ThreadId, generation: u64) {
        let this = &self.threads[thread];
        if this.generation == generation && this.outcome.is_some() {
            self.give_up_slot(thread);
        }
    }

    fn give_up_slot(&mut self, thread: ThreadId) -> bool {
        let Some(port) = self.threads[thread].port else { return false };
        if !std::mem::take(&mut self.threads[thread].holds_slot) {
            return false;
        }
        self.ports[port].active -= 1;
        self.ports[port].counters.blocked_threads += 1;
        self.monitor.slot_given_up(port, thread);
        self.release(port);
        true
    }

    /// A thread counts again, even where that exceeds the limit (rules 41, 42).
    fn hold_beyond_limit(&mut self, thread: ThreadId) {
        let Some(port) = self.threads[thread].port else { return };
        if !std::mem::replace(&mut self.threads[thread].holds_slot, true) {
            self.ports[port].active += 1;
            self.monitor.held_beyond_limit(port, thread);
        }
    }

    /// A thread has nothing more to do with its port.
    pub(crate) fn leave_port(&mut self, thread: ThreadId) {
        if std::mem::take(&mut self.threads[thread].holds_slot)
            && let Some(port) = self.threads[thread].port.take()
        {
            self.ports[port].active -= 1;
            self.monitor.slot_given_up(port, thread);
            self.release(port);
        }
    }

    /// A thread begins to wait, or gets its packets at once (rule 37).
    fn begin_wait(&mut self, port: PortId, thread: ThreadId, room: usize, time: Option<u64>) {
        if self.threads[thread].port != Some(port) {
            self.leave_port(thread);
            self.threads[thread].port = Some(port);
        }
        let this = &mut self.threads[thread];
        this.generation += 1;
        this.room = room;
        this.outcome = None;
        let held = std::mem::take(&mut this.holds_slot);
        let generation = this.generation;
        if held && !(planted!(SlotLeak) && self.ports[port].queue.is_empty()) {
            self.ports[port].active -= 1;
        }
        self.monitor.waits(port, thread);
        let limit = self.ports[port].limit;
        if !self.ports[port].queue.is_empty() && self.ports[port].active < limit {
            return self.grant(port, thread);
        }
        self.ports[port].waiters.push(thread);
        self.release(port);
        if let Some(time) = time
            && self.threads[thread].outcome.is_none()
        {
            let mut late = time.saturating_add(self.random.time(0, 50_000));
            if planted!(ShortTimeout) {
                late = time / 2;
            }
            let late = if time == 0 { 0 } else { late };
            self.after(late, Event::WaitEnds(thread, generation));
        }
    }

    pub(crate) fn wait_ends(&mut self, thread: ThreadId, generation: u64) {
        let this = &self.threads[thread];
        let Some(port) = this.port else { return };
        if this.generation != generation || this.outcome.is_some() {
            return;
        }
        self.ports[port].waiters.retain(|waiter| *waiter != thread);
        self.hold_beyond_limit(thread);
        self.note(format_args!("port {port}: thread {thread} has waited in vain"));
        self.finish_wait(thread, Outcome::TimedOut, 0);
    }

    pub(crate) fn timers_due(&mut self, port: PortId) {
        let this = &mut self.ports[port];
        if this.is_closed {
            return;
        }
        let now = this.epoch + Duration::from_nanos(self.now);
        let mut packets = Vec::new();
        this.timers.pop_expired(now, |packet| packets.push(packet));
        for packet in packets {
            self.push(port, packet, None);
        }
        let now = self.now;
        self.monitor.timers_expired(port, now);
        self.arm_timers(port);
    }

    fn arm_timers(&mut self, port: PortId) {
        let this = &self.ports[port];
        if let Some(deadline) = this.timers.next_deadline() {
            let due = deadline.saturating_duration_since(this.epoch).as_nanos();
            let due = u64::try_from(due).unwrap_or(u64::MAX);
            let time = due.saturating_sub(self.now) + self.random.time(1, 20_000);
            self.after(time, Event::Timers(port));
        }
    }

    pub(crate) fn close_port(&mut self, port: PortId) {
        if std::mem::replace(&mut self.ports[port].is_closed, true) {
            return;
        }
        self.note(format_args!("port {port} closes"));
        let this = &mut self.ports[port];
        let packets = std::mem::take(&mut this.queue);
        let waiters = std::mem::take(&mut this.waiters);
        let timers = this.timers.drain();
        self.garbage.extend(packets.into_iter().map(Garbage::Packet));
        self.garbage.extend(timers.into_iter().map(Garbage::Operation));
        for source in 0..self.sources.len() {
            if self.sources[source].port == port {
                self.abandon(source);
            }
        }
        self.monitor.port_closed(port);
        for thread in waiters {
            let time = self.random.time(50, 50_000);
            self.finish_wait(thread, Outcome::Closed, time);
        }
    }
}

/// A port of a world, as the public layer sees it.
pub(crate) struct SimulatedPort {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) index: PortId,
    limit: usize,
    description: BackendDescription,
}

impl SimulatedPort {
    pub(crate) fn open(kernel: &Arc<Kernel>, config: &Config) -> Arc<Self> {
        let mut guard = kernel.lock();
        let index = guard.open_port(config, kernel.epoch);
        let limit = guard.ports[index].limit;
        drop(guard);
        let description = BackendDescription {
            name: "sim",
            capabilities: Vec::new(),
            degraded: None,
            refused_capabilities: Vec::new(),
        };
        Arc::new(Self { kernel: Arc::clone(kernel), index, limit, description })
    }
}

impl Backend for SimulatedPort {
    fn describe(&self) -> &BackendDescription {
        &self.description
    }

    fn concurrency(&self) -> usize {
        self.limit
    }

    fn counters(&self) -> PortCounters {
        let guard = self.kernel.lock();
        let port = &guard.ports[self.index];
        let pool_bytes = (port.pool.total_buffers() * port.pool.buffer_bytes()) as u64;
        PortCounters { pool_bytes, ..port.counters }
    }

    fn now(&self) -> Instant {
        let now = self.kernel.lock().now;
        self.kernel.instant(now)
    }

    fn random(&self) -> u64 {
        self.kernel.lock().random.bits()
    }

    fn spawn(&self, name: String, body: ThreadBody) -> std::io::Result<JoinThread> {
        Ok(self.kernel.spawn_joinable(&name, body))
    }

    fn pause(&self, time: Duration) {
        self.kernel.sleep(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn condition(&self) -> Option<Box<dyn VirtualCondition>> {
        Some(Box::new(Condition::new(&self.kernel)))
    }

    fn open_listener(
        &self,
        address: &std::net::SocketAddr,
        backlog: u32,
    ) -> std::io::Result<RawSource> {
        no_descriptor(&mut self.kernel.lock())?;
        let backlog = usize::try_from(backlog).unwrap_or(usize::MAX);
        SimulatedSource::listener(&self.kernel, *address, backlog).map(RawSource::Simulated)
    }

    fn open_stream(&self, peer: &std::net::SocketAddr) -> std::io::Result<RawSource> {
        SimulatedSource::stream(&self.kernel, *peer).map(RawSource::Simulated)
    }

    fn associate(
        self: Arc<Self>,
        source: RawSource,
        key: usize,
    ) -> Result<Arc<dyn BackendSource>, (Error, RawSource)> {
        let error = |kind| Error::new(OperationKind::Associate, kind);
        let mut guard = self.kernel.lock();
        if guard.ports[self.index].is_closed {
            return Err((error(ErrorKind::PortClosed), source));
        }
        match source {
            RawSource::Simulated(source) if source.is_of(&self.kernel) => {
                let source = guard.associate(&self.kernel, self.index, source, key);
                drop(guard);
                Ok(source)
            }
            // A real listener that nobody can reach stands for a simulated one at its address.
            RawSource::Listener(socket) => {
                let address = socket.local_addr().ok().and_then(|address| address.as_socket());
                let Some(address) = address else {
                    let error = error(ErrorKind::Unsupported);
                    return Err((error, RawSource::Listener(socket)));
                };
                if guard.listeners.contains_key(&address) {
                    let error = error(ErrorKind::AddressInUse);
                    return Err((error, RawSource::Listener(socket)));
                }
                Ok(guard.associate_real(&self.kernel, self.index, socket, address, key))
            }
            source => Err((error(ErrorKind::Unsupported), source)),
        }
    }

    fn dequeue(
        &self,
        completions: &mut [Option<Completion>],
        timeout: Option<Duration>,
    ) -> Result<usize, DequeueError> {
        let me = self.kernel.enter();
        let mut guard = self.kernel.lock();
        if guard.ports[self.index].is_closed {
            guard.leave_port(me);
            return Err(DequeueError::Closed);
        }
        let time = timeout.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let began = guard.now;
        guard.begin_wait(self.index, me, completions.len(), time);
        guard = self.kernel.switch(guard, me);
        // What was meant for this wait comes too late from here on.
        guard.threads[me].generation += 1;
        match guard.threads[me].outcome.take() {
            Some(Outcome::Packets(packets)) => {
                // A thread that was found blocked counts again from here (rule 41).
                guard.hold_beyond_limit(me);
                let count = packets.len();
                for (slot, packet) in completions.iter_mut().zip(packets) {
                    *slot = Some(packet);
                }
                Ok(count)
            }
            Some(Outcome::TimedOut) => {
                let now = guard.now;
                guard.monitor.timed_out(began.saturating_add(time.unwrap_or(u64::MAX)), now);
                Err(DequeueError::TimedOut)
            }
            Some(Outcome::Closed) => {
                guard.leave_port(me);
                Err(DequeueError::Closed)
            }
            None => unreachable!("a thread runs on when its wait has an outcome"),
        }
    }

    fn post(&self, packet: Completion) -> Result<(), Rejected> {
        let mut guard = self.kernel.lock();
        if guard.ports[self.index].is_closed {
            drop(guard);
            return Err(packet.reject(Error::new(OperationKind::Post, ErrorKind::PortClosed)));
        }
        guard.push(self.index, packet, None);
        drop(self.kernel.maybe_interrupt(guard));
        Ok(())
    }

    fn start_timer(
        &self,
        key: usize,
        deadline: Instant,
        operation: Operation,
    ) -> Result<(), Rejected> {
        let mut guard = self.kernel.lock();
        if guard.ports[self.index].is_closed {
            drop(guard);
            let error = Error::new(OperationKind::Timer, ErrorKind::PortClosed);
            return Err(Rejected::new(error, operation));
        }
        let due = self.kernel.virtual_time(deadline);
        guard.monitor.started(&operation, self.index, None, None, Some(due));
        let number = guard.monitor.number(operation.id());
        guard.note(format_args!("port {}: timer#{number} for {due}", self.index));
        if guard.ports[self.index].timers.insert(key, deadline, operation) {
            guard.arm_timers(self.index);
        }
        drop(self.kernel.maybe_interrupt(guard));
        Ok(())
    }

    fn cancel_timer(&self, timer: OperationId) -> bool {
        let mut guard = self.kernel.lock();
        let cancelled = guard.ports[self.index].timers.cancel(timer);
        let Some((key, operation)) = cancelled else {
            guard.monitor.timer_not_found(timer);
            return false;
        };
        guard.monitor.cancelled(timer, true);
        let error = Error::new(OperationKind::Timer, ErrorKind::Cancelled);
        guard.push(self.index, Completion::finished(key, operation, 0, Some(error)), None);
        drop(self.kernel.maybe_interrupt(guard));
        true
    }

    fn enter_blocking(&self) -> bool {
        let Some(me) = self.kernel.current() else { return false };
        let mut guard = self.kernel.lock();
        guard.threads[me].port == Some(self.index) && guard.give_up_slot(me)
    }

    fn leave_blocking(&self) {
        let Some(me) = self.kernel.current() else { return };
        let mut guard = self.kernel.lock();
        // The section took its time, and others ran in its place.
        let time = guard.random.time(1_000, 50 * MILLISECOND);
        guard.after(time, Event::Resume(me));
        guard = self.kernel.switch(guard, me);
        guard.hold_beyond_limit(me);
    }

    fn close(&self) {
        self.kernel.lock().close_port(self.index);
    }
}
