//! The pause in accepting, for the models without a port: when an accept fails for lack of
//! descriptors or memory, accepting is tried again every 100 ms and when a session has ended, so it
//! never spins and needs nobody's help to recover. (The port's own is in `accept`, with timers.)

use std::io;
use std::time::{Duration, Instant};

use super::totals::SessionCounts;

/// How often a paused server tries to accept, and how long accepting must go well to be no longer
/// paused.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Whether accepting is paused. Its beginning and its end are logged.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    state: Option<State>,
}

#[derive(Debug)]
struct State {
    began: Instant,
    last_failure: Instant,
    failures: u64,
    retry_at: Instant,
    /// How many sessions had ended at the last try.
    ended_sessions: u64,
}

impl Pause {
    /// An accept has failed.
    pub(crate) fn failed(&mut self, error: &dyn std::fmt::Display, open_sessions: usize) {
        let now = Instant::now();
        let state = self.state.get_or_insert_with(|| {
            tracing::warn!(
                "accepting pauses with {open_sessions} sessions open: {error}; it is tried again \
                 every {} ms, and when a session ends",
                RETRY_INTERVAL.as_millis()
            );
            let retry_at = now + RETRY_INTERVAL;
            State { began: now, last_failure: now, failures: 0, retry_at, ended_sessions: 0 }
        });
        state.failures += 1;
        state.last_failure = now;
    }

    /// Whether accepting is paused.
    pub(crate) fn is_on(&self) -> bool {
        self.state.is_some()
    }

    /// Whether accepting is to be tried now: there is no pause, or a session has ended since the
    /// last try, or that was a while ago.
    pub(crate) fn is_due(&mut self, sessions: SessionCounts) -> bool {
        let Some(state) = &mut self.state else { return true };
        let ended = sessions.total - sessions.open as u64;
        let has_room = std::mem::replace(&mut state.ended_sessions, ended) != ended;
        let now = Instant::now();
        if !has_room && now < state.retry_at {
            return false;
        }
        state.retry_at = now + RETRY_INTERVAL;
        true
    }

    /// An accept brought a connection: the next one is tried at once.
    pub(crate) fn succeeded(&mut self) {
        if let Some(state) = &mut self.state {
            state.retry_at = Instant::now();
            self.went_well();
        }
    }

    /// An accept was tried and did not fail: the pause is over if none has failed for a while.
    pub(crate) fn went_well(&mut self) {
        let Some(state) = &self.state else { return };
        if state.last_failure.elapsed() < RETRY_INTERVAL {
            return;
        }
        tracing::warn!(
            "accepting again after {:.1} s and {} failed accepts",
            state.began.elapsed().as_secs_f64(),
            state.failures
        );
        self.state = None;
    }
}

/// Whether an accept failed because of its client, and the next one may go well at once.
pub(crate) fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_when_nothing_has_failed_for_a_while() {
        let mut pause = Pause::default();
        pause.went_well();
        assert!(!pause.is_on());
        pause.failed(&"no descriptor left", 3);
        assert!(pause.is_on());
        let long_ago = Instant::now().checked_sub(2 * RETRY_INTERVAL).expect("the clock runs");
        pause.state.as_mut().expect("it is on").last_failure = long_ago;
        pause.went_well();
        assert!(!pause.is_on());
    }

    #[test]
    fn a_paused_server_tries_when_a_session_has_ended_and_after_a_success() {
        let mut pause = Pause::default();
        let mut sessions = SessionCounts { open: 3, peak: 3, total: 3 };
        assert!(pause.is_due(sessions), "there is no pause");
        pause.failed(&"no descriptor left", 3);
        pause.state.as_mut().expect("it is on").retry_at += Duration::from_secs(60);
        assert!(!pause.is_due(sessions));
        sessions.open -= 1;
        assert!(pause.is_due(sessions), "one has ended");
        pause.state.as_mut().expect("it is on").retry_at += Duration::from_secs(60);
        assert!(!pause.is_due(sessions));
        pause.succeeded();
        assert!(pause.is_on() && pause.is_due(sessions));
    }
}
