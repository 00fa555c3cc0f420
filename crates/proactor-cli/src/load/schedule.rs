//! The open loop's schedule: when each message is due, whatever the server does.

use std::ops::Range;

/// One thread's share of a schedule at a fixed rate.
///
/// Message `k` of the whole load is due `k / rate` after the start. With `n`
/// threads, thread `t` has the messages `t`, `t + n`, `t + 2n`, so that the
/// whole is evenly spaced. Times are nanoseconds on the load's clock.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    start_ns: u64,
    first: u64,
    step: u64,
    gap_ns: f64,
    taken: u64,
}

impl Schedule {
    /// The share of thread `thread` of `threads`.
    pub(crate) fn new(start_ns: u64, rate_per_second: f64, thread: usize, threads: usize) -> Self {
        assert!(rate_per_second > 0.0 && thread < threads);
        Self {
            start_ns,
            first: thread as u64,
            step: threads as u64,
            gap_ns: 1e9 / rate_per_second,
            taken: 0,
        }
    }

    /// When this thread's message `k` is due. Computed from `k` and not by adding gaps,
    /// so that no rounding adds up.
    pub(crate) fn due_ns(&self, k: u64) -> u64 {
        self.start_ns + ((self.first + k * self.step) as f64 * self.gap_ns) as u64
    }

    /// When the next message that has not been taken is due.
    pub(crate) fn next_due_ns(&self) -> u64 {
        self.due_ns(self.taken)
    }

    /// Takes the next message if it is due by now; gives the time at which it was due.
    pub(crate) fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due_ns = self.next_due_ns();
        if due_ns > now_ns {
            return None;
        }
        self.taken += 1;
        Some(due_ns)
    }

    /// How many messages were due before `end_ns` and have not been taken.
    pub(crate) fn backlog(&self, end_ns: u64) -> u64 {
        self.count_before(end_ns).saturating_sub(self.taken)
    }

    /// The messages that were due from `from_ns` and before `until_ns`, and have not been taken.
    pub(crate) fn untaken(&self, from_ns: u64, until_ns: u64) -> Range<u64> {
        let end = self.count_before(until_ns);
        self.count_before(from_ns).max(self.taken).min(end)..end
    }

    /// How many messages are due before `end_ns`.
    fn count_before(&self, end_ns: u64) -> u64 {
        if end_ns <= self.start_ns {
            return 0;
        }
        let span = (end_ns - self.start_ns) as f64 / self.gap_ns - self.first as f64;
        // The estimate is off by one at most, for its rounding; the loops settle it.
        let mut count = (span / self.step as f64).max(0.0) as u64;
        while self.due_ns(count) < end_ns {
            count += 1;
        }
        while count > 0 && self.due_ns(count - 1) >= end_ns {
            count -= 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut schedule = Schedule::new(1_000, 1e6, 0, 1);
        assert_eq!(schedule.take(999), None);
        assert_eq!(schedule.take(1_000), Some(1_000));
        assert_eq!(schedule.take(1_999), None);
        assert_eq!(schedule.next_due_ns(), 2_000);
        assert_eq!(schedule.take(2_000), Some(2_000));
    }

    #[test]
    fn late_messages_keep_their_time() {
        let mut schedule = Schedule::new(0, 1e6, 0, 1);
        let taken: Vec<_> = std::iter::from_fn(|| schedule.take(3_500)).collect();
        assert_eq!(taken, [0, 1_000, 2_000, 3_000]);
    }

    #[test]
    fn threads_share_one_even_schedule() {
        let mut all: Vec<u64> = Vec::new();
        for thread in 0..3 {
            let mut schedule = Schedule::new(10, 3_000.0, thread, 3);
            all.extend(std::iter::from_fn(|| schedule.take(999_999_999)));
        }
        all.sort_unstable();
        assert_eq!(all.len(), 3_000);
        assert!(all.windows(2).all(|pair| (333_333..=333_334).contains(&(pair[1] - pair[0]))));
    }

    #[test]
    fn no_rounding_adds_up() {
        let schedule = Schedule::new(0, 3.0, 0, 1);
        assert_eq!(schedule.due_ns(3_000_000), 1_000_000_000_000_000);
    }

    #[test]
    fn the_backlog_is_what_was_due_and_not_taken() {
        let mut schedule = Schedule::new(500, 1e6, 1, 2);
        assert_eq!(schedule.backlog(0), 0);
        assert_eq!(schedule.backlog(1_500), 0);
        assert_eq!(schedule.backlog(1_501), 1);
        assert_eq!(schedule.backlog(10_500), 5);
        assert_eq!(schedule.take(10_500), Some(1_500));
        assert_eq!(schedule.backlog(10_500), 4);
        assert_eq!(schedule.untaken(0, 10_500), 1..5);
        assert_eq!(schedule.untaken(5_000, 10_500), 2..5);
        assert_eq!(schedule.untaken(20_000, 10_500), 5..5);
    }
}
