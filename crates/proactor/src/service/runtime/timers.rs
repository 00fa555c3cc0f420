//! The runtime's timers: one timer wheel, and at the port one timer for whatever is due next.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::super::recycle;
use super::super::timer_wheel::{TimerKey, TimerWheel};
use crate::sync::{Mutex, lock};
use crate::{Completion, CompletionPort, OperationId};

/// How exact the timers are.
const TICK: Duration = Duration::from_millis(1);

/// What a timer is for. It is held weakly: a timer keeps nothing alive.
pub(in crate::service) trait Timed: Send + Sync {
    /// The time has come.
    fn due(self: Arc<Self>, now: Instant);
}

pub(in crate::service) struct Timers {
    state: Mutex<State>,
}

struct State {
    wheel: TimerWheel<Weak<dyn Timed>>,
    /// The timer at the port, and when it is due.
    armed: Option<(OperationId, Instant)>,
}

impl Timers {
    pub(super) fn new(now: Instant) -> Self {
        Self { state: Mutex::new(State { wheel: TimerWheel::new(now, TICK), armed: None }) }
    }

    /// Calls `timed` at `deadline`, once.
    pub(in crate::service) fn insert(
        &self,
        port: &CompletionPort,
        key: usize,
        deadline: Instant,
        timed: Weak<dyn Timed>,
    ) -> TimerKey {
        let mut state = lock(&self.state);
        let timer = state.wheel.insert(deadline, timed);
        state.arm(port, key);
        timer
    }

    /// Takes a timer out before its time. Harmless where it has been due.
    pub(in crate::service) fn remove(&self, timer: TimerKey) {
        drop(lock(&self.state).wheel.remove(timer));
    }

    /// How many wait for their time.
    #[cfg(feature = "sim")]
    pub(super) fn len(&self) -> usize {
        lock(&self.state).wheel.len()
    }

    /// The packet of the port's timer.
    pub(super) fn completed(&self, port: &CompletionPort, mut completion: Completion) {
        let mut due = Vec::new();
        let now = port.now();
        {
            let mut state = lock(&self.state);
            if completion.operation_id() == state.armed.map(|(id, _)| id) {
                state.armed = None;
            }
            state.wheel.advance(now, |timed| due.push(timed));
            state.arm(port, completion.key());
        }
        if let Some(operation) = completion.take_operation() {
            recycle::keep_operation(operation);
        }
        for timed in due.iter().filter_map(Weak::upgrade) {
            timed.due(now);
        }
    }
}

impl State {
    /// Sees to it that the port's timer is due when the wheel has to be looked at next.
    fn arm(&mut self, port: &CompletionPort, key: usize) {
        let Some(next) = self.wheel.next_deadline() else { return };
        if let Some((id, deadline)) = self.armed {
            if deadline <= next {
                return;
            }
            port.cancel_timer(id);
        }
        // A port that is closed needs no timers.
        if let Ok(id) = port.start_timer_at(key, next, recycle::operation()) {
            self.armed = Some((id, next));
        }
    }
}
