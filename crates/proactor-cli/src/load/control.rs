//! What the main thread and the loading threads share while a load runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::tally::Window;

/// A time that has not been set.
const UNSET_NS: u64 = u64::MAX;

/// The load's clock, and the times at which its parts begin, in nanoseconds on that clock.
#[derive(Debug)]
pub(crate) struct Control {
    base: Instant,
    start_ns: AtomicU64,
    measure_ns: AtomicU64,
    stop_ns: AtomicU64,
    no_more_connects: AtomicBool,
    /// What the progress bar shows. The threads add to these many times a second, not per message.
    pub(crate) connected: AtomicU64,
    pub(crate) round_trips: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl Control {
    /// A clock that begins now, with no times set.
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            start_ns: AtomicU64::new(UNSET_NS),
            measure_ns: AtomicU64::new(UNSET_NS),
            stop_ns: AtomicU64::new(UNSET_NS),
            no_more_connects: AtomicBool::new(false),
            connected: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    /// The time now.
    pub(crate) fn now_ns(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    /// Sets the times: warm-up from `start_ns`, then the measured window.
    pub(crate) fn begin(&self, start_ns: u64, warmup: Duration, duration: Duration) {
        let measure_ns = start_ns + duration_ns(warmup);
        self.measure_ns.store(measure_ns, Ordering::Relaxed);
        self.stop_ns.fetch_min(measure_ns + duration_ns(duration), Ordering::Relaxed);
        // Release: whoever sees the start sees the times that go with it.
        self.start_ns.store(start_ns, Ordering::Release);
    }

    /// Ends sending now, if it has not ended. Gives the time at which it ends.
    pub(crate) fn stop_now(&self) -> u64 {
        let now_ns = self.now_ns();
        self.no_more_connects.store(true, Ordering::Relaxed);
        self.stop_ns.fetch_min(now_ns, Ordering::Relaxed).min(now_ns)
    }

    /// Whether the load was ended before all connections were open.
    pub(crate) fn is_stopped_early(&self) -> bool {
        self.no_more_connects.load(Ordering::Relaxed)
    }

    /// When sending starts, once that is known.
    pub(crate) fn start_ns(&self) -> Option<u64> {
        Some(self.start_ns.load(Ordering::Acquire)).filter(|start_ns| *start_ns != UNSET_NS)
    }

    /// When sending stops.
    pub(crate) fn stop_ns(&self) -> u64 {
        self.stop_ns.load(Ordering::Relaxed)
    }

    /// The measured window; empty if the load ended before it.
    pub(crate) fn window(&self) -> Window {
        let until_ns = self.stop_ns();
        Window { from_ns: self.measure_ns.load(Ordering::Relaxed).min(until_ns), until_ns }
    }
}

/// A duration on the load's clock.
pub(crate) fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_follows_the_warm_up() {
        let control = Control::new();
        assert_eq!(control.start_ns(), None);
        control.begin(1_000, Duration::from_nanos(500), Duration::from_nanos(2_000));
        assert_eq!(control.start_ns(), Some(1_000));
        let window = control.window();
        assert_eq!((window.from_ns, window.until_ns), (1_500, 3_500));
    }

    #[test]
    fn stopping_early_shortens_the_window() {
        let control = Control::new();
        let stopped_ns = control.stop_now();
        assert!(control.is_stopped_early());
        control.begin(stopped_ns + 1, Duration::from_secs(1), Duration::from_secs(1));
        assert_eq!(control.stop_ns(), stopped_ns);
        assert_eq!(control.window().from_ns, control.window().until_ns);
    }
}
