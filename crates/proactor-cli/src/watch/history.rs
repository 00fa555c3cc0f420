//! The last statuses, and what changed from one to the next.

use std::collections::VecDeque;

use crate::status::Status;

/// Rates that are kept: what fits on a wide screen.
const RATES: usize = 300;

/// The last two statuses, and rates of those before.
pub(crate) struct History {
    last: Option<Status>,
    before: Option<Status>,
    completions: VecDeque<u64>,
}

impl History {
    /// Nothing has come yet.
    pub(crate) fn new() -> Self {
        Self { last: None, before: None, completions: VecDeque::with_capacity(RATES) }
    }

    /// The next status.
    pub(crate) fn push(&mut self, status: Status) {
        self.before = self.last.replace(status);
        if let Some(rate) = self.rate(|status| status.dequeued_packets) {
            if self.completions.len() == RATES {
                self.completions.pop_front();
            }
            self.completions.push_back(rate as u64);
        }
    }

    /// The last status.
    pub(crate) fn last(&self) -> Option<&Status> {
        self.last.as_ref()
    }

    /// How fast a count grows, per second; `None` before there are two statuses.
    pub(crate) fn rate(&self, count: impl Fn(&Status) -> u64) -> Option<f64> {
        let (last, before) = (self.last.as_ref()?, self.before.as_ref()?);
        let seconds = last.uptime_seconds - before.uptime_seconds;
        (seconds > 0.0).then(|| count(last).saturating_sub(count(before)) as f64 / seconds)
    }

    /// How fast worker `index` dequeues, per second.
    pub(crate) fn worker_rate(&self, index: usize) -> Option<f64> {
        let of = |status: &Status| {
            let workers = status.workers.as_ref()?;
            workers.iter().find(|worker| worker.index == index).map(|w| w.dequeued_packets)
        };
        of(self.before.as_ref()?)?;
        self.rate(|status| of(status).unwrap_or(0))
    }

    /// Batches by size since the status before, or in all while there is none before.
    pub(crate) fn batches(&self) -> Option<Vec<u64>> {
        let last = self.last.as_ref()?.batches.as_ref()?;
        let before = self.before.as_ref().and_then(|before| before.batches.as_ref());
        Some(match before {
            None => last.clone(),
            Some(before) => {
                let at = |index| before.get(index).copied().unwrap_or(0);
                last.iter().enumerate().map(|(i, count)| count.saturating_sub(at(i))).collect()
            }
        })
    }

    /// Packets per batch since the status before.
    pub(crate) fn mean_batch(&self) -> Option<f64> {
        let packets = self.rate(|status| status.batched_packets.unwrap_or(0))?;
        let count = |status: &Status| status.batches.iter().flatten().sum();
        let batches = self.rate(count)?;
        (batches > 0.0).then(|| packets / batches)
    }

    /// Completions per second of the last statuses, the newest last.
    pub(crate) fn completions(&self) -> &VecDeque<u64> {
        &self.completions
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::status::{FORM, HandlerStatus, SlowSession, WorkerStatus};

    /// A busy server at a time.
    pub(crate) fn status(seconds: f64) -> Status {
        let worker = |index: usize, state: &str| WorkerStatus {
            index,
            thread_id: Some(4_194_000 + index as u32),
            state: state.to_owned(),
            dequeued_packets: (seconds * 60_000.0) as u64,
            queued_packets: index,
            sources: 5_000,
        };
        Status {
            form: FORM,
            address: "127.0.0.1:7000".into(),
            backend: "io_uring".into(),
            uptime_seconds: seconds,
            concurrency: 2,
            queued_packets: Some(17),
            active_threads: Some(2),
            posted_packets: Some(0),
            pending_timers: Some(3),
            dequeued_packets: (seconds * 123_456.0) as u64,
            wait_calls: (seconds * 12_000.0) as u64,
            rescues: (seconds * 30.0) as u64,
            blocked_threads: (seconds * 29.0) as u64,
            wakes: (seconds * 1_200.0) as u64,
            pool_bytes: 268_435_456,
            lent_pool_bytes: Some(4 << 20),
            batches: Some([9, 4, 2, 1, 1, 0, 0, 0].map(|n| (seconds * 1e3) as u64 * n).to_vec()),
            batched_packets: Some((seconds * 1e3) as u64 * 50),
            workers: Some(vec![
                worker(0, "running"),
                worker(1, "blocked"),
                worker(2, "running"),
                worker(3, "waiting"),
            ]),
            sessions: 10_000,
            peak_sessions: 12_345,
            total_sessions: 1_234_567,
            bytes_received: (seconds * 123e6) as u64,
            bytes_sent: (seconds * 122e6) as u64,
            handler: HandlerStatus {
                count: 61_000,
                p50_us: 2.1,
                p99_us: 10_040.0,
                p99_9_us: 10_100.0,
                max_us: 12_000.0,
            },
            slow_sessions: (0..5)
                .map(|session| SlowSession {
                    session,
                    peer: (session != 4).then(|| format!("127.0.0.1:{}", 54_321 + session)),
                    longest_us: 12_000.0 - session as f64 * 500.0,
                })
                .collect(),
        }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let mut history = History::new();
        history.push(status(10.0));
        assert_eq!(history.rate(|status| status.rescues), None);
        assert_eq!(history.worker_rate(0), None);
        history.push(status(10.5));
        assert_eq!(history.rate(|status| status.rescues), Some(30.0));
        assert_eq!(history.worker_rate(3), Some(60_000.0));
        assert_eq!(history.worker_rate(4), None);
        assert_eq!(history.batches().unwrap()[..2], [4500, 2000]);
        assert_eq!(history.mean_batch(), Some(50.0 / 17.0));
        assert_eq!(history.completions().len(), 1);
        // A server that was started again at the same address counts from 0.
        history.push(status(0.5));
        assert_eq!(history.rate(|status| status.rescues), None);
    }
}
