//! Time: what must happen until when, looked at lazily.
//!
//! Messages only leave the time at which they came. Each session has at most one timer, which is
//! set to the earliest moment at which any of its time limits could be over as things stand; when
//! it is due, the limits are looked at again, and it is set anew.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::super::config::TransferRate;
use super::super::error::{DisconnectReason, Timeout};
use super::super::runtime::Timed;
use super::super::timer_wheel::TimerKey;
use super::mailbox::{Ending, Signals};
use super::{SHAKEN, SessionShared, milliseconds};
use crate::sync::lock;

/// A time limit that is over later than this is none: about three years.
const FAR_MS: u64 = 100_000_000_000;
/// No key of a timer has these bits.
const NO_TIMER: u64 = u64::MAX;

/// Readings of the runtime's clock, in milliseconds.
pub(super) struct Times {
    connected_ms: u64,
    /// When bytes last came.
    received_ms: AtomicU64,
    /// When the frame began that is not whole; 0: there is none.
    frame_began_ms: AtomicU64,
    /// How much of it has come.
    frame_bytes: AtomicU64,
    /// When the handler was last told to send a heartbeat.
    heartbeat_ms: AtomicU64,
    /// When the session has to be over; 0: no end was asked for.
    end_ms: AtomicU64,
    /// The session's timer, as [`TimerKey::to_bits`]; `NO_TIMER`: it has none.
    timer: AtomicU64,
}

impl Times {
    pub(super) fn new(now_ms: u64) -> Self {
        Self {
            connected_ms: now_ms,
            received_ms: AtomicU64::new(now_ms),
            frame_began_ms: AtomicU64::new(0),
            frame_bytes: AtomicU64::new(0),
            heartbeat_ms: AtomicU64::new(now_ms),
            end_ms: AtomicU64::new(0),
            timer: AtomicU64::new(NO_TIMER),
        }
    }

    /// Bytes have come and were looked at; `partial_bytes` of them are the beginning of a frame.
    pub(super) fn note_received(&self, now_ms: u64, partial_bytes: usize, begun_now: bool) {
        self.received_ms.store(now_ms, Ordering::Relaxed);
        self.frame_bytes.store(partial_bytes as u64, Ordering::Relaxed);
        if partial_bytes == 0 {
            self.frame_began_ms.store(0, Ordering::Relaxed);
        } else if begun_now {
            self.frame_began_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    fn replace_timer(&self, timer: Option<TimerKey>) -> Option<TimerKey> {
        let bits = timer.map_or(NO_TIMER, TimerKey::to_bits);
        let before = self.timer.swap(bits, Ordering::SeqCst);
        (before != NO_TIMER).then(|| TimerKey::from_bits(before))
    }

    /// Receiving stands still on our side: the peer is not to blame for the time.
    fn forgive(&self, now_ms: u64) {
        self.received_ms.store(now_ms, Ordering::Relaxed);
        if self.frame_began_ms.load(Ordering::Relaxed) != 0 {
            self.frame_began_ms.store(now_ms, Ordering::Relaxed);
            self.frame_bytes.store(0, Ordering::Relaxed);
        }
    }
}

/// The earliest of several moments, some of which have passed.
struct Earliest {
    now_ms: u64,
    next_ms: u64,
}

impl Earliest {
    /// Whether `moment_ms` has passed; else it is a candidate.
    fn is_due(&mut self, moment_ms: u64) -> bool {
        if moment_ms <= self.now_ms {
            return true;
        }
        self.next_ms = self.next_ms.min(moment_ms);
        false
    }

    /// The same for a limit that counts from something that may not have begun.
    fn is_over(&mut self, began_ms: Option<u64>, limit: Option<Duration>) -> bool {
        let Some(limit) = limit else { return false };
        let began_ms = began_ms.unwrap_or(self.now_ms + 1);
        self.is_due(began_ms.saturating_add(milliseconds(limit)))
    }

    /// Whether less than `rate` has moved since it began.
    fn is_too_slow(&mut self, began: Option<(u64, u64)>, rate: Option<TransferRate>) -> bool {
        let Some(rate) = rate else { return false };
        let (began_ms, bytes) = began.unwrap_or((self.now_ms + 1, 0));
        // With so many bytes the average is high enough until then.
        let enough_ms = bytes.saturating_mul(1000) / u64::from(rate.bytes_per_second.max(1));
        self.is_due(began_ms.saturating_add(enough_ms.max(milliseconds(rate.grace))))
    }
}

impl SessionShared {
    /// Sets the timer for the first time.
    pub(super) fn watch_times(self: &Arc<Self>) {
        self.look_at_times(self.service.runtime.port.now());
    }

    /// The time for one stage of an orderly end begins.
    pub(super) fn watch_end(self: &Arc<Self>, limit: Duration) {
        let runtime = &self.service.runtime;
        let now = runtime.port.now();
        let end_ms = runtime.milliseconds(now) + milliseconds(limit);
        self.times.end_ms.store(end_ms, Ordering::Relaxed);
        self.look_at_times(now);
    }

    pub(super) fn unwatch_times(&self) {
        if let Some(timer) = self.times.replace_timer(None)
            && !planted!(SessionTimerLeak)
        {
            self.service.runtime.cancel_timer(timer);
        }
    }

    fn look_at_times(self: &Arc<Self>, now: Instant) {
        let runtime = &self.service.runtime;
        let now_ms = runtime.milliseconds(now);
        let next_ms = match self.find_overdue(now_ms) {
            Ok(next_ms) => next_ms,
            Err(reason) => {
                self.request_end(reason, Ending::Abrupt);
                return;
            }
        };
        if next_ms > now_ms.saturating_add(FAR_MS) {
            return;
        }
        let me: Weak<Self> = Arc::downgrade(self);
        let timer = runtime.start_timer(runtime.instant(next_ms), me);
        let before = {
            let mailbox = lock(&self.mailbox);
            if mailbox.over { Some(timer) } else { self.times.replace_timer(Some(timer)) }
        };
        if let Some(before) = before {
            runtime.cancel_timer(before);
        }
    }

    /// The next moment to look, or why the session has to end.
    fn find_overdue(&self, now_ms: u64) -> Result<u64, DisconnectReason> {
        let mut earliest = Earliest { now_ms, next_ms: u64::MAX };
        let times = &self.times;
        let end_ms = times.end_ms.load(Ordering::Relaxed);
        if end_ms != 0 {
            // Whatever reason it has to end, it has had the time for it.
            if earliest.is_due(end_ms) {
                return Err(DisconnectReason::Local);
            }
            // And meanwhile the peer has to take what is left.
            self.check_sending(&mut earliest)?;
            return Ok(earliest.next_ms);
        }
        self.check_receiving(&mut earliest)?;
        self.check_sending(&mut earliest)?;
        if let Some(heartbeat) = self.service.timeouts.heartbeat {
            let quiet_ms = lock(&self.outgoing).progress_ms.max(times.connected_ms);
            let since_ms = quiet_ms.max(times.heartbeat_ms.load(Ordering::Relaxed));
            if earliest.is_over(Some(since_ms), Some(heartbeat)) {
                times.heartbeat_ms.store(now_ms, Ordering::Relaxed);
                self.signal(Signals::HEARTBEAT);
                earliest.is_over(Some(now_ms), Some(heartbeat));
            }
        }
        Ok(earliest.next_ms)
    }

    fn check_receiving(&self, earliest: &mut Earliest) -> Result<(), DisconnectReason> {
        let timeouts = &self.service.timeouts;
        let times = &self.times;
        let held_up = {
            let mailbox = lock(&self.mailbox);
            mailbox.core.is_none() || mailbox.has_received()
        };
        if held_up || self.is_paused() {
            times.forgive(earliest.now_ms);
        }
        if !self.has(SHAKEN) && earliest.is_over(Some(times.connected_ms), timeouts.handshake) {
            return Err(DisconnectReason::TimedOut(Timeout::Handshake));
        }
        let received_ms = times.received_ms.load(Ordering::Relaxed);
        if earliest.is_over(Some(received_ms), timeouts.idle) {
            return Err(DisconnectReason::TimedOut(Timeout::Idle));
        }
        let began_ms = times.frame_began_ms.load(Ordering::Relaxed);
        let began = (began_ms != 0).then_some(began_ms);
        if earliest.is_over(began, timeouts.read) {
            return Err(DisconnectReason::TimedOut(Timeout::Read));
        }
        let moved = began.map(|began| (began, times.frame_bytes.load(Ordering::Relaxed)));
        if earliest.is_too_slow(moved, timeouts.minimum_rate) {
            return Err(DisconnectReason::SlowPeer);
        }
        Ok(())
    }

    fn check_sending(&self, earliest: &mut Earliest) -> Result<(), DisconnectReason> {
        let timeouts = &self.service.timeouts;
        let (progress, moved) = {
            let outgoing = lock(&self.outgoing);
            let moved = outgoing.moved();
            (moved.map(|_| outgoing.progress_ms), moved)
        };
        if earliest.is_over(progress, timeouts.write) {
            return Err(DisconnectReason::TimedOut(Timeout::Write));
        }
        if earliest.is_too_slow(moved, timeouts.minimum_rate) {
            return Err(DisconnectReason::SlowPeer);
        }
        Ok(())
    }
}

impl Timed for SessionShared {
    fn due(self: Arc<Self>, now: Instant) {
        self.times.replace_timer(None);
        if !lock(&self.mailbox).over && !planted!(TimesNotRearmed) {
            self.look_at_times(now);
        }
    }
}
