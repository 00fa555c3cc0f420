//! Waking a poll at a moment finer than its timeout can say.
//!
//! A poll's timeout is in whole milliseconds and rounds up, so a schedule of
//! thousands of messages a second would be sent in lumps, each late. On Linux a
//! timer descriptor in the poll set fires to the microsecond.

use std::io;
use std::time::Duration;

use mio::{Registry, Token};

/// Wakes a poll when something falls due.
#[derive(Debug)]
pub(crate) struct Wakeup {
    #[cfg(target_os = "linux")]
    timer: std::os::fd::OwnedFd,
    #[cfg(target_os = "linux")]
    armed_for_ns: Option<u64>,
}

#[cfg(target_os = "linux")]
impl Wakeup {
    /// Adds a timer to the poll set, under `token`.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        use std::os::fd::AsRawFd;

        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        registry.register(
            &mut mio::unix::SourceFd(&timer.as_raw_fd()),
            token,
            mio::Interest::READABLE,
        )?;
        Ok(Self { timer, armed_for_ns: None })
    }

    /// Makes the poll return at `due_ns`. Gives the timeout to poll with, at most `limit`.
    ///
    /// Arming anew clears what fired before, so the descriptor is never read.
    pub(crate) fn arm(
        &mut self,
        now_ns: u64,
        due_ns: u64,
        limit: Duration,
    ) -> io::Result<Duration> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        if due_ns <= now_ns {
            return Ok(Duration::ZERO);
        }
        if self.armed_for_ns != Some(due_ns) {
            let wait = Duration::from_nanos(due_ns - now_ns);
            let it_value =
                Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            self.armed_for_ns = Some(due_ns);
        }
        Ok(limit)
    }
}

#[cfg(not(target_os = "linux"))]
impl Wakeup {
    /// There is no timer here: the last millisecond before something is due is polled through.
    pub(crate) fn new(_registry: &Registry, _token: Token) -> io::Result<Self> {
        Ok(Self {})
    }

    /// Gives a timeout that ends before `due_ns`, at most `limit`.
    pub(crate) fn arm(
        &mut self,
        now_ns: u64,
        due_ns: u64,
        limit: Duration,
    ) -> io::Result<Duration> {
        let wait_ms = due_ns.saturating_sub(now_ns) / 1_000_000;
        Ok(Duration::from_millis(wait_ms.saturating_sub(1)).min(limit))
    }
}
