//! How a service comes to its end, phase by phase.

use std::fmt;
use std::time::Duration;

use super::shared::ServiceShared;
use crate::sync::lock;

/// How long aborted sessions are waited for: their last callbacks have to return.
const ABORT_TIME: Duration = Duration::from_secs(5);

/// How far the end of a service has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It serves.
    Running,
    /// No new sessions; those that are there were told and may end by themselves.
    Draining,
    /// The sessions that are left are disconnected in order.
    Disconnecting,
    /// The sessions that are left are aborted.
    Aborting,
    /// No session is left, and no listener.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Disconnecting => "disconnecting",
            Self::Aborting => "aborting",
            Self::Stopped => "stopped",
        })
    }
}

/// How a service came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// Sessions that ended by themselves while the service drained.
    pub drained: usize,
    /// Sessions that were then disconnected in order.
    pub disconnected: usize,
    /// Sessions that had to be aborted.
    pub aborted: usize,
    /// Sessions whose handler was still in a callback when the last phase was over.
    pub left: usize,
    /// How long it took.
    pub elapsed: Duration,
}

impl ServiceShared {
    fn enter(&self, phase: Phase) -> usize {
        let left = {
            let mut state = lock(&self.state);
            state.phase = state.phase.max(phase);
            state.sessions.len()
        };
        tracing::info!(service = self.name, %phase, sessions = left, "service");
        self.changed.notify_all();
        left
    }

    /// Waits until everything is closed (`true`), the time is up, or the end is forced.
    fn wait_for_end(&self, time: Duration, unless_forced: bool) -> bool {
        let port = &self.runtime.port;
        let deadline = port.now().checked_add(time);
        let mut state = lock(&self.state);
        loop {
            if state.admitted == 0 && state.others == 0 {
                return true;
            }
            if unless_forced && state.forced {
                return false;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(port.now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            state = self.changed.wait(&self.state, state, left);
        }
    }

    /// Waits until somebody asks for the end.
    pub(super) fn wait_for_request(&self) {
        let mut state = lock(&self.state);
        while !state.stop_requested && state.phase == Phase::Running {
            state = self.changed.wait(&self.state, state, None);
        }
    }

    /// Stops the service, phase by phase.
    pub(super) fn stop(&self, drain: Duration) -> StopReport {
        let began = self.runtime.port.now();
        let mut report = StopReport::default();
        if lock(&self.state).phase == Phase::Stopped {
            return report;
        }
        let mut left = self.enter(Phase::Draining);
        if let Some(close) = self.close_hook.get() {
            close();
        }
        self.sessions().iter().for_each(|session| session.shared.drain());
        let on_worker = self.runtime.is_handling();
        // A callback cannot wait for callbacks.
        let time = |time| if on_worker { Duration::ZERO } else { time };
        let drain = if planted!(DrainCutShort) { drain / 2 } else { drain };
        let mut ended = self.wait_for_end(time(drain), true);
        if !ended {
            let now = self.enter(Phase::Disconnecting);
            report.drained = left.saturating_sub(now);
            left = now;
            self.sessions().iter().for_each(|session| session.shared.stop(true));
            // A little more than the sessions' own limit, after which they reset by themselves.
            let limit = self.timeouts.flush.saturating_add(self.timeouts.linger);
            let limit = limit.saturating_add(Duration::from_millis(500));
            ended = self.wait_for_end(time(limit), true);
            if !ended && !on_worker {
                let now = self.enter(Phase::Aborting);
                report.disconnected = left.saturating_sub(now);
                left = now;
                self.sessions().iter().for_each(|session| session.shared.stop(false));
                ended = self.wait_for_end(ABORT_TIME, false);
                let now = lock(&self.state).sessions.len();
                report.aborted = left.saturating_sub(now);
                report.left = now;
            } else if ended {
                report.disconnected = left;
            }
        } else {
            report.drained = left;
        }
        if ended {
            self.enter(Phase::Stopped);
            self.drop_factory();
        } else if !on_worker {
            tracing::error!(
                service = self.name,
                sessions = report.left,
                "handlers are still in a callback"
            );
        }
        report.elapsed = self.runtime.port.now().saturating_duration_since(began);
        report
    }
}
