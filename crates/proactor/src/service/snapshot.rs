//! What can be seen of a service: counters, and how it stands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::error::DisconnectReason;
use super::phases::Phase;

/// Connections that did not become sessions, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectedCounters {
    /// The limit of sessions was reached.
    pub sessions: u64,
    /// The limit of sessions of one address was reached.
    pub address: u64,
    /// The service was stopping.
    pub stopping: u64,
    /// The system or the port refused something.
    pub failed: u64,
}

/// Sessions that ended, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DisconnectedCounters {
    /// Disconnected or aborted here, by the program.
    pub local: u64,
    /// Ended by the peer in order.
    pub peer_ended: u64,
    /// Failed: reset and the like.
    pub failed: u64,
    /// For bytes that are no frame.
    pub frame: u64,
    /// For a time limit.
    pub timed_out: u64,
    /// For the minimum transfer rate.
    pub slow_peer: u64,
    /// For a full send queue.
    pub queue_full: u64,
    /// For an error of the handler.
    pub handler: u64,
    /// For a panic.
    pub panicked: u64,
    /// With the service.
    pub service_stopped: u64,
    /// The filter of the service ended the session: TLS failed, for example.
    pub filter: u64,
}

impl DisconnectedCounters {
    /// All of them, by name.
    #[cfg(feature = "metrics")]
    pub(super) fn by_cause(&self) -> [(&'static str, u64); 11] {
        [
            ("local", self.local),
            ("peer_ended", self.peer_ended),
            ("failed", self.failed),
            ("frame", self.frame),
            ("timed_out", self.timed_out),
            ("slow_peer", self.slow_peer),
            ("queue_full", self.queue_full),
            ("handler", self.handler),
            ("panicked", self.panicked),
            ("service_stopped", self.service_stopped),
            ("filter", self.filter),
        ]
    }
}

/// How a service stands, and what it has done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceSnapshot {
    /// The service's name.
    pub name: String,
    /// How far its end has come.
    pub phase: Phase,
    /// Sessions now.
    pub sessions: usize,
    /// Connections that became sessions.
    pub accepted: u64,
    /// Connections that did not.
    pub rejected: RejectedCounters,
    /// Times that accepting paused because the process had no descriptor left.
    pub accept_pauses: u64,
    /// Sessions that ended.
    pub disconnected: DisconnectedCounters,
    /// Bytes received, heads of frames included.
    pub received_bytes: u64,
    /// Frames received.
    pub received_frames: u64,
    /// Bytes that the system has taken to send.
    pub sent_bytes: u64,
    /// Frames queued to be sent.
    pub sent_frames: u64,
    /// Bytes that wait to be sent or are being sent now.
    pub queued_bytes: u64,
    /// Sessions whose queue is over the high water mark now.
    pub sessions_over_mark: usize,
    /// Sends that were refused for a limit of queued bytes.
    pub refused_sends: u64,
    /// Messages of [`Session::notify`](super::Session::notify) that were refused for
    /// [`Limits::notifications`](super::Limits::notifications).
    pub refused_notifications: u64,
    /// Callbacks that panicked.
    pub panics: u64,
    /// Half of the callbacks' runs took no longer than about this (one run in 32 is timed; a run
    /// handles what one packet brought). `None` before the first.
    pub handler_p50: Option<Duration>,
    /// 99 of 100 took no longer than about this.
    pub handler_p99: Option<Duration>,
}

/// Counters that many threads add to: only for what is rare.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) rejected_sessions: AtomicU64,
    pub(super) rejected_address: AtomicU64,
    pub(super) rejected_stopping: AtomicU64,
    pub(super) rejected_failed: AtomicU64,
    pub(super) accept_pauses: AtomicU64,
    pub(super) refused_sends: AtomicU64,
    pub(super) refused_notifications: AtomicU64,
    pub(super) panics: AtomicU64,
    ends: [AtomicU64; 11],
}

impl Counters {
    pub(super) fn count_end(&self, reason: &DisconnectReason) {
        let index = match reason {
            DisconnectReason::Local | DisconnectReason::Aborted => 0,
            DisconnectReason::PeerEnded => 1,
            DisconnectReason::Failed(_) => 2,
            DisconnectReason::Frame(_) => 3,
            DisconnectReason::TimedOut(_) => 4,
            DisconnectReason::SlowPeer => 5,
            DisconnectReason::QueueFull => 6,
            DisconnectReason::Handler(_) => 7,
            DisconnectReason::Panicked => 8,
            DisconnectReason::ServiceStopped => 9,
            DisconnectReason::Filter(_) => 10,
        };
        self.ends[index].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ends(&self) -> DisconnectedCounters {
        let end = |index: usize| self.ends[index].load(Ordering::Relaxed);
        DisconnectedCounters {
            local: end(0),
            peer_ended: end(1),
            failed: end(2),
            frame: end(3),
            timed_out: end(4),
            slow_peer: end(5),
            queue_full: end(6),
            handler: end(7),
            panicked: end(8),
            service_stopped: end(9),
            filter: end(10),
        }
    }
}

/// Buckets of a power of two of nanoseconds, each in four.
const BUCKETS: usize = 4 * 40;

/// How long callbacks take: a histogram with buckets that are a quarter of a power of two wide.
pub(super) struct HandlerTime {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for HandlerTime {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl HandlerTime {
    pub(super) fn record(&self, time: Duration) {
        self.buckets[bucket(time.as_nanos())].fetch_add(1, Ordering::Relaxed);
    }

    /// The upper end of the bucket in which the percentile lies.
    pub(super) fn percentile(&self, percent: f64) -> Option<Duration> {
        let counts: Vec<u64> =
            self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return None;
        }
        let rank = ((total as f64) * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        let index = counts.iter().position(|count| {
            seen += count;
            seen >= rank.max(1)
        });
        index.map(|index| Duration::from_nanos(upper_end(index)))
    }
}

fn bucket(nanoseconds: u128) -> usize {
    let value = u64::try_from(nanoseconds).unwrap_or(u64::MAX).max(4);
    let power = value.ilog2() as usize;
    let quarter = (value >> (power - 2)) as usize & 3;
    (4 * (power - 2) + quarter).min(BUCKETS - 1)
}

fn upper_end(index: usize) -> u64 {
    let (power, quarter) = (index / 4 + 2, index as u64 % 4);
    (5 + quarter) << (power - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_lies_in_its_bucket() {
        for nanoseconds in (0..10_000).chain((1..40).map(|power| (1 << power) + 1)) {
            let index = bucket(nanoseconds);
            assert!(nanoseconds < u128::from(upper_end(index)), "{nanoseconds}");
            assert!(
                nanoseconds < 4 || index == 0 || nanoseconds >= u128::from(upper_end(index - 1)),
                "{nanoseconds}"
            );
        }
    }

    #[test]
    fn percentiles_are_near() {
        let times = HandlerTime::default();
        assert_eq!(times.percentile(99.0), None);
        (0..99).for_each(|_| times.record(Duration::from_micros(10)));
        times.record(Duration::from_millis(10));
        let near = |duration: Option<Duration>, expected: f64| {
            let ratio = duration.unwrap().as_secs_f64() / expected;
            assert!((1.0..1.26).contains(&ratio), "{ratio}");
        };
        near(times.percentile(50.0), 10e-6);
        near(times.percentile(99.0), 10e-6);
        near(times.percentile(100.0), 10e-3);
    }
}
