//! What each worker measures for those who watch: how long its handlers take, and for whom.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::totals::Tally;

/// How many slow sessions a worker remembers until it is asked.
const SLOWEST: usize = 8;
/// A handler that took longer than this is slow.
const SLOW: Duration = Duration::from_millis(1);
/// The longest handler that is told apart, in nanoseconds: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// The measurements of all workers. No time is measured while nobody watches.
#[derive(Debug)]
pub(crate) struct Meters {
    is_watched: AtomicBool,
    meters: Mutex<Vec<Arc<Meter>>>,
}

/// One worker's measurements: its own lock, which only a look at it ever makes it wait for.
#[derive(Debug)]
pub(crate) struct Meter {
    measured: Mutex<Measured>,
    /// What the worker has done since it began; written by the worker.
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Measured {
    /// How long handlers took, in nanoseconds.
    pub(crate) handlers: Histogram<u64>,
    /// Sessions by number, with their longest handler in nanoseconds.
    pub(crate) slow: Vec<(usize, u64)>,
    /// Since the server began.
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
}

impl Meters {
    /// Nobody watches.
    pub(crate) const fn new() -> Self {
        Self { is_watched: AtomicBool::new(false), meters: Mutex::new(Vec::new()) }
    }

    /// Whether anybody watches.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    /// Says whether anybody watches. What was measured for the last one is thrown away.
    pub(crate) fn set_watched(&self, is_watched: bool) {
        if is_watched && !self.is_watched() {
            drop(self.take());
        }
        self.is_watched.store(is_watched, Ordering::Relaxed);
    }

    /// A meter for one more worker.
    pub(crate) fn add(&self) -> Arc<Meter> {
        let meter = Arc::new(Meter {
            measured: Mutex::new(Measured::new()),
            bytes_received: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
        });
        self.lock().push(Arc::clone(&meter));
        meter
    }

    /// What all workers have measured since the last time.
    pub(crate) fn take(&self) -> Measured {
        let mut sum = Measured::new();
        for meter in self.lock().iter() {
            let mut measured = meter.lock();
            sum.handlers.add(&measured.handlers).expect("all histograms have the same bounds");
            measured.handlers.reset();
            for (session, longest_ns) in measured.slow.drain(..) {
                sum.note_slow(session, longest_ns);
            }
            sum.bytes_received += meter.bytes_received.load(Ordering::Relaxed);
            sum.bytes_sent += meter.bytes_sent.load(Ordering::Relaxed);
        }
        sum
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Meter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    /// What the worker has done so far.
    pub(crate) fn count(&self, tally: &Tally) {
        self.bytes_received.store(tally.bytes_received, Ordering::Relaxed);
        self.bytes_sent.store(tally.bytes_sent, Ordering::Relaxed);
    }

    /// A handler for `session` (`None`: for the server itself) took so long.
    pub(crate) fn handled(&self, session: Option<usize>, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mut measured = self.lock();
        measured.handlers.saturating_record(took_ns);
        if let Some(session) = session.filter(|_| took > SLOW) {
            measured.note_slow(session, took_ns);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Measured {
    fn new() -> Self {
        let handlers = Histogram::new_with_bounds(1, LONGEST_NS, 2);
        Self {
            handlers: handlers.expect("the bounds are valid constants"),
            slow: Vec::with_capacity(SLOWEST + 1),
            bytes_received: 0,
            bytes_sent: 0,
        }
    }

    /// Keeps the slowest sessions, each once, the slowest first.
    fn note_slow(&mut self, session: usize, longest_ns: u64) {
        match self.slow.iter_mut().find(|(other, _)| *other == session) {
            Some((_, longest)) => *longest = longest_ns.max(*longest),
            None => self.slow.push((session, longest_ns)),
        }
        self.slow.sort_by_key(|(_, longest)| std::cmp::Reverse(*longest));
        self.slow.truncate(SLOWEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_sessions_are_kept_once_each() {
        let mut measured = Measured::new();
        for session in 0..20 {
            measured.note_slow(session, 100 + session as u64);
        }
        measured.note_slow(0, 1000);
        measured.note_slow(19, 5);
        let slow: Vec<usize> = measured.slow.iter().map(|(session, _)| *session).collect();
        assert_eq!(slow, [0, 19, 18, 17, 16, 15, 14, 13]);
    }

    #[test]
    fn what_was_taken_is_not_taken_again() {
        let meters = Meters::new();
        let (one, two) = (meters.add(), meters.add());
        let tally = Tally { bytes_received: 7, bytes_sent: 5, ..Tally::default() };
        one.handled(Some(3), Duration::from_secs(1));
        one.handled(Some(4), Duration::from_micros(1));
        two.handled(None, Duration::from_secs(1));
        one.count(&tally);
        two.count(&tally);
        let taken = meters.take();
        assert_eq!((taken.handlers.len(), taken.slow.len(), taken.slow[0].0), (3, 1, 3));
        assert_eq!((taken.bytes_received, taken.bytes_sent), (14, 10));
        let taken = meters.take();
        assert_eq!((taken.handlers.len(), taken.slow.len(), taken.bytes_received), (0, 0, 14));
    }
}
