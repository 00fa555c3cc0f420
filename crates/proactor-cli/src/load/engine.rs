//! One thread's event loop: opens its connections, keeps them loaded, and closes them.
//!
//! The loop passes through [`Stage`]s. In steady state it allocates nothing:
//! bytes to send are slices of the pattern, one buffer receives for all
//! connections, and each connection's bookkeeping was made before the start.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Token};

use super::args::{Pace, Plan};
use super::control::{Control, duration_ns};
use super::pattern::{Pattern, Random};
use super::schedule::Schedule;
use super::slot::{Phase, Slot};
use super::stream::Connector;
use super::tally::{ErrorKind, Tally, Window};
use super::wakeup::Wakeup;

/// Large, so that the replies of a deep pipeline come in one read.
const RECEIVE_BUFFER_BYTES: usize = 256 << 10;
/// How often a loop looks at its deadlines and shows its counts, if no deadline is shorter.
const HOUSEKEEPING_NS: u64 = 20_000_000;
/// Events taken at once. In an open loop few, since what falls due is sent between two batches.
const EVENTS_CLOSED_LOOP: usize = 1024;
const EVENTS_OPEN_LOOP: usize = 32;
/// How many of the messages that were never sent are looked at, each for those after it.
const ABANDONED_SAMPLES: u64 = 100_000;
/// The timer's token; connections have their indexes.
const TIMER: Token = Token(usize::MAX);

/// How far a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Connections are opened.
    Connecting,
    /// All are open; the other threads are not as far.
    Waiting,
    /// Messages are sent.
    Running,
    /// No more messages are sent; outstanding replies are awaited, and connections closed.
    Draining,
}

/// What all threads of a load have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) plan: Plan,
    pub(super) pattern: Pattern,
    pub(super) connector: Connector,
    pub(super) control: Control,
}

/// One thread of the load.
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) thread: usize,
    pub(super) poll: Poll,
    pub(super) slots: Vec<Slot>,
    stage: Stage,
    drain_deadline_ns: u64,
    next_housekeeping_ns: u64,
    next_deadline_check_ns: u64,
    /// Slots whose connection is still to be opened.
    pub(super) waiting: VecDeque<usize>,
    /// The same, but not before a time; ordered by it.
    pub(super) retries: VecDeque<(u64, usize)>,
    /// Nothing accepts: no more connections are opened.
    pub(super) has_given_up: bool,
    /// Slots that are connecting, and slots that are not vacant.
    pub(super) connecting: usize,
    pub(super) live: usize,
    /// Sessions begun, to tell their streams apart.
    pub(super) session_count: u64,
    schedule: Option<Schedule>,
    wakeup: Option<Wakeup>,
    /// Open loop: connections with room, the one that has had it for longest first.
    pub(super) ready: VecDeque<usize>,
    pub(super) random: Random,
    pub(super) window: Window,
    pub(super) tally: Tally,
    shown: [u64; 4],
    pub(super) buffer: Box<[u8]>,
}

impl Engine {
    /// Prepares thread `thread` of the plan. Nothing is opened yet.
    pub(super) fn new(shared: Arc<Shared>, thread: usize) -> io::Result<Self> {
        let plan = &shared.plan;
        let poll = Poll::new()?;
        let share =
            plan.connections / plan.threads + usize::from(thread < plan.connections % plan.threads);
        let slots: Vec<Slot> = (0..share).map(|_| Slot::new(plan)).collect();
        let wakeup = match plan.pace {
            Pace::Open { .. } => Some(Wakeup::new(poll.registry(), TIMER)?),
            Pace::Closed | Pace::Churn { .. } => None,
        };
        Ok(Self {
            thread,
            poll,
            stage: Stage::Connecting,
            drain_deadline_ns: u64::MAX,
            next_housekeeping_ns: 0,
            next_deadline_check_ns: 0,
            waiting: VecDeque::with_capacity(share),
            retries: VecDeque::with_capacity(share),
            has_given_up: false,
            connecting: 0,
            live: 0,
            session_count: 0,
            schedule: None,
            wakeup,
            ready: VecDeque::with_capacity(share),
            random: Random::new(thread as u64 + 1),
            window: Window { from_ns: u64::MAX, until_ns: u64::MAX },
            tally: Tally::new(),
            shown: [0; 4],
            buffer: vec![0; RECEIVE_BUFFER_BYTES].into(),
            slots,
            shared,
        })
    }

    /// Runs the load to its end. `on_ready` is called once: when the connections are open, or else
    /// at the end.
    pub(super) fn run(mut self, on_ready: impl FnOnce()) -> io::Result<Tally> {
        let capacity = if self.wakeup.is_some() { EVENTS_OPEN_LOOP } else { EVENTS_CLOSED_LOOP };
        let mut events = Events::with_capacity(capacity);
        let mut on_ready = Some(on_ready);
        if !self.is_churn() {
            self.waiting.extend(0..self.slots.len());
        }
        loop {
            let now_ns = self.shared.control.now_ns();
            if self.advance(now_ns) {
                break;
            }
            if self.stage == Stage::Waiting
                && let Some(on_ready) = on_ready.take()
            {
                on_ready();
            }
            self.open_waiting(now_ns);
            self.send_due(now_ns);
            self.keep_house(now_ns);
            let timeout = self.timeout(now_ns)?;
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                self.on_event(event);
            }
        }
        self.show();
        if let Some(on_ready) = on_ready.take() {
            on_ready();
        }
        Ok(self.tally)
    }

    pub(super) fn is_churn(&self) -> bool {
        matches!(self.shared.plan.pace, Pace::Churn { .. })
    }

    pub(super) fn is_draining(&self) -> bool {
        self.stage == Stage::Draining
    }

    pub(super) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Enters the next stage if it is time. True at the end.
    fn advance(&mut self, now_ns: u64) -> bool {
        let control = &self.shared.control;
        if self.stage != Stage::Draining && now_ns >= control.stop_ns() {
            self.begin_draining(now_ns);
        }
        let is_idle = self.live == 0 && self.waiting.is_empty() && self.retries.is_empty();
        match self.stage {
            Stage::Connecting
                if self.waiting.is_empty() && self.retries.is_empty() && self.connecting == 0 =>
            {
                self.stage = Stage::Waiting;
                is_idle && !self.is_churn()
            }
            Stage::Connecting => false,
            Stage::Waiting => {
                if self.shared.control.start_ns().is_some_and(|start_ns| now_ns >= start_ns) {
                    self.begin_running(now_ns);
                }
                self.live == 0 && !self.is_churn()
            }
            Stage::Running => is_idle,
            Stage::Draining => {
                if now_ns >= self.drain_deadline_ns {
                    self.fail_all(now_ns);
                }
                self.live == 0
            }
        }
    }

    fn begin_running(&mut self, now_ns: u64) {
        self.stage = Stage::Running;
        self.window = self.shared.control.window();
        match self.shared.plan.pace {
            Pace::Churn { .. } => self.waiting.extend(0..self.slots.len()),
            Pace::Closed => (0..self.slots.len()).for_each(|index| self.carry_on(index, now_ns)),
            Pace::Open { rate_per_second } => {
                let start_ns = self.shared.control.start_ns().unwrap_or(now_ns);
                let threads = self.shared.plan.threads;
                self.schedule =
                    Some(Schedule::new(start_ns, rate_per_second, self.thread, threads));
                (0..self.slots.len()).for_each(|index| self.carry_on(index, now_ns));
            }
        }
    }

    fn begin_draining(&mut self, now_ns: u64) {
        self.window = self.shared.control.window();
        self.send_due(now_ns);
        self.stage = Stage::Draining;
        self.drain_deadline_ns = now_ns.saturating_add(duration_ns(self.shared.plan.timeout));
        self.abandon_backlog();
        self.tally.open_at_stop =
            self.slots.iter().filter(|slot| slot.phase == Phase::Open).count() as u64;
        self.waiting.clear();
        self.retries.clear();
        for index in 0..self.slots.len() {
            match self.slots[index].phase {
                Phase::Connecting => self.vacate(index),
                Phase::Open => self.carry_on(index, now_ns),
                Phase::Vacant | Phase::Closing => {}
            }
        }
    }

    /// Open loop: counts what was due and was not sent. It enters the latencies with the time that
    /// it has waited, which is too little; to leave it out would be wrong by more.
    fn abandon_backlog(&mut self) {
        let Some(schedule) = self.schedule.take() else {
            return;
        };
        let Window { from_ns, until_ns } = self.window;
        let unsent = schedule.untaken(from_ns, until_ns);
        let count = unsent.end - unsent.start;
        self.tally.unsent_messages = count;
        self.tally.scheduled_messages += count;
        let step = count / ABANDONED_SAMPLES + 1;
        for message in unsent.clone().step_by(step as usize) {
            let waited_ns = until_ns - schedule.due_ns(message);
            let stands_for = step.min(unsent.end - message);
            self.tally.latency.saturating_record_n(waited_ns, stands_for);
        }
    }

    /// Open loop: sends what is due, as far as connections have room.
    fn send_due(&mut self, now_ns: u64) {
        if self.stage != Stage::Running {
            return;
        }
        let Some(mut schedule) = self.schedule.take() else {
            return;
        };
        let mut now_ns = now_ns;
        // What is due at the end or later is not sent, however late it is now.
        let last_ns = self.window.until_ns.saturating_sub(1);
        while schedule.next_due_ns() <= now_ns.min(last_ns) {
            let Some(index) = self.ready.pop_front() else {
                self.tally.backlog_max_messages =
                    self.tally.backlog_max_messages.max(schedule.backlog(now_ns));
                break;
            };
            let slot = &mut self.slots[index];
            slot.is_ready = false;
            if slot.phase != Phase::Open || !slot.connection.has_room() {
                continue;
            }
            let Some(due_ns) = schedule.take(now_ns) else {
                break;
            };
            if self.window.holds(due_ns) {
                self.tally.scheduled_messages += 1;
                self.tally.send_delay.saturating_record(now_ns - due_ns);
            }
            self.begin_message(index, due_ns, now_ns);
            self.flush(index, now_ns);
            self.enqueue_ready(index);
            now_ns = self.shared.control.now_ns();
        }
        self.schedule = Some(schedule);
    }

    /// How long the poll may sleep.
    fn timeout(&mut self, now_ns: u64) -> io::Result<Duration> {
        if self.stage == Stage::Waiting {
            return Ok(Duration::from_millis(1));
        }
        let mut until_ns = self.next_housekeeping_ns;
        if self.stage == Stage::Running {
            until_ns = until_ns.min(self.window.until_ns);
        }
        if let Some((not_before_ns, _)) = self.retries.front() {
            until_ns = until_ns.min(*not_before_ns);
        }
        let limit = Duration::from_nanos(until_ns.saturating_sub(now_ns));
        match (&self.schedule, &mut self.wakeup) {
            // With nobody ready an event has to come first.
            (Some(schedule), Some(wakeup))
                if self.stage == Stage::Running && !self.ready.is_empty() =>
            {
                wakeup.arm(self.shared.control.now_ns(), schedule.next_due_ns(), limit)
            }
            _ => Ok(limit),
        }
    }

    fn on_event(&mut self, event: &Event) {
        if event.token() == TIMER {
            return;
        }
        let index = event.token().0;
        match self.slots[index].phase {
            Phase::Vacant => {}
            Phase::Connecting => {
                self.finish_connect(index);
                // An end of stream that came with the connect is not announced twice.
                if event.is_read_closed() && self.slots[index].phase == Phase::Open {
                    self.receive(index, true);
                }
            }
            Phase::Open | Phase::Closing => {
                if event.is_writable() && self.slots[index].is_write_blocked {
                    let now_ns = self.shared.control.now_ns();
                    self.flush(index, now_ns);
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.receive(index, event.is_read_closed() || event.is_error());
                }
            }
        }
    }

    /// Now and then: ends what has taken too long, and shows the counts.
    fn keep_house(&mut self, now_ns: u64) {
        if now_ns < self.next_housekeeping_ns {
            return;
        }
        self.next_housekeeping_ns = now_ns + HOUSEKEEPING_NS;
        if self.is_running() {
            // Ctrl-C may have brought the end forward.
            self.window = self.shared.control.window();
        }
        self.show();
        if now_ns < self.next_deadline_check_ns {
            return;
        }
        let plan = &self.shared.plan;
        let shortest_ns = duration_ns(plan.timeout.min(plan.connect_timeout));
        self.next_deadline_check_ns =
            now_ns + (shortest_ns / 4).clamp(HOUSEKEEPING_NS, 250_000_000);
        let (connect_ns, quiet_ns) = (duration_ns(plan.connect_timeout), duration_ns(plan.timeout));
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let waited_ns = now_ns.saturating_sub(slot.progress_ns);
            match slot.phase {
                Phase::Connecting if waited_ns > connect_ns => {
                    self.connect_failed(index, &io::ErrorKind::TimedOut.into());
                }
                Phase::Open if waited_ns > quiet_ns && slot.connection.outstanding() > 0 => {
                    self.time_out(index)
                }
                Phase::Closing if waited_ns > quiet_ns => self.time_out(index),
                _ => {}
            }
        }
    }

    /// Ends a connection on which nothing moves.
    fn time_out(&mut self, index: usize) {
        let connection = &self.slots[index].connection;
        let (id, outstanding, timeout) =
            (connection.id(), connection.outstanding(), self.shared.plan.timeout);
        let kind = match self.slots[index].phase {
            Phase::Closing => ErrorKind::BadClose,
            _ => ErrorKind::TimedOut,
        };
        self.fail(index, kind, || {
            format!("connection {id}: {outstanding} replies outstanding, and nothing came for {timeout:?}")
        });
    }

    /// Ends all connections: the time to drain is over.
    fn fail_all(&mut self, now_ns: u64) {
        let late_ms = now_ns.saturating_sub(self.shared.control.stop_ns()) / 1_000_000;
        for index in 0..self.slots.len() {
            let kind = match self.slots[index].phase {
                Phase::Vacant => continue,
                Phase::Closing => ErrorKind::BadClose,
                Phase::Connecting | Phase::Open => ErrorKind::TimedOut,
            };
            let id = self.slots[index].connection.id();
            self.fail(index, kind, || {
                format!("connection {id} was not done {late_ms} ms after sending stopped")
            });
        }
    }

    /// Adds what has happened since the last time to the counts that the progress bar shows.
    fn show(&mut self) {
        let control = &self.shared.control;
        let tally = &self.tally;
        let now = [tally.connects, tally.round_trips_in_all, tally.sessions, tally.errors.total()];
        let shared = [&control.connected, &control.round_trips, &control.sessions, &control.errors];
        for ((count, shown), sum) in now.into_iter().zip(&mut self.shown).zip(shared) {
            sum.fetch_add(count - *shown, Ordering::Relaxed);
            *shown = count;
        }
    }
}
