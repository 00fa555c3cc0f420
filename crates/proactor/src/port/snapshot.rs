//! What a port looks like at one moment: its queue, its threads, its buffers.

use super::PortCounters;

/// How a port is doing at one moment; see [`CompletionPort::snapshot`](super::CompletionPort::snapshot).
///
/// Nothing is stopped for it: each figure is right by itself, and they may be a moment apart. What
/// a backend cannot know is `None`; a port in a kernel, for example, does not tell which threads
/// it has released.
///
/// ```
/// # fn main() -> Result<(), proactor::Error> {
/// let port = proactor::CompletionPort::new(2)?;
/// port.post(7, 0, None).unwrap();
/// let snapshot = port.snapshot();
/// assert_eq!(snapshot.concurrency, 2);
/// # if cfg!(target_os = "linux") {
/// assert_eq!(snapshot.queued_packets, Some(1));
/// # }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortSnapshot {
    /// The concurrency limit in force.
    pub concurrency: usize,
    /// What the port has done since it was created.
    pub counters: PortCounters,
    /// Packets that wait to be dequeued: those that any thread may take, and those that threads
    /// have collected for themselves.
    pub queued_packets: Option<usize>,
    /// Packets that the program has posted since the port was created.
    pub posted_packets: Option<u64>,
    /// Timers that are neither due nor cancelled.
    pub pending_timers: Option<usize>,
    /// Threads that count against the limit (rule 39).
    pub active_threads: Option<usize>,
    /// How many packets each look at the kernel brought, since the port was created.
    pub batches: Option<BatchSizes>,
    /// Bytes of the receive buffers that handlers hold, or that operations of theirs do, as far as
    /// that was noted last.
    pub lent_pool_bytes: Option<u64>,
    /// The threads that belong to the port (rule 39), in a stable order.
    pub workers: Option<Vec<WorkerSnapshot>>,
}

impl PortSnapshot {
    /// What every backend knows; the rest is `None`.
    pub(crate) fn with_counters(concurrency: usize, counters: PortCounters) -> Self {
        Self { concurrency, counters, ..Self::default() }
    }
}

/// One thread that dequeues, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// Its place among the port's threads. The place of a thread that has gone is given to the
    /// next that comes.
    pub index: usize,
    /// The system's number of the thread, as `/proc` and `ps -L` have it.
    pub thread_id: Option<u32>,
    /// What it is doing.
    pub state: WorkerState,
    /// Packets that it has dequeued.
    pub dequeued_packets: u64,
    /// Packets that it has collected for itself, and not dequeued yet.
    pub queued_packets: usize,
    /// Sockets that it serves: whose readiness or completions reach it first.
    pub sources: usize,
    /// System calls of it that waited for or submitted I/O in a batch.
    pub wait_calls: u64,
    /// How many packets its looks at the kernel brought.
    pub batches: BatchSizes,
}

/// What a thread that belongs to a port is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// It waits in a dequeue: for a packet, or for its turn (rule 38).
    Waiting,
    /// It handles a packet, or takes one. It counts against the limit.
    Running,
    /// It is in a handler that was found blocked, or that said so
    /// ([`blocking`](super::CompletionPort::blocking)): it does not count (rule 40).
    Blocked,
}

impl WorkerState {
    /// Its name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Blocked => "blocked",
        }
    }
}

/// How many packets came at once.
///
/// Counted are looks at the kernel that brought something. Large batches say that packets wait
/// for threads; batches of one, that threads wait for packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchSizes {
    /// Packets in all of them.
    pub packets: u64,
    /// Batches by size: entry `i` counts those of `2^i` to `2^(i+1) - 1` packets, and the last
    /// entry also all that are larger.
    pub by_size: [u64; BatchSizes::SIZES],
}

impl BatchSizes {
    /// Entries of [`by_size`](Self::by_size): 1, 2 to 3, 4 to 7, and so on to 128 and more.
    pub const SIZES: usize = 8;

    /// How many batches there were.
    pub fn count(&self) -> u64 {
        self.by_size.iter().sum()
    }

    /// Packets per batch; 0 where there was none.
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.packets as f64 / count as f64,
        }
    }

    /// Those that came after `earlier` was taken.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = *self;
        difference.packets = self.packets.saturating_sub(earlier.packets);
        for (count, before) in difference.by_size.iter_mut().zip(earlier.by_size) {
            *count = count.saturating_sub(before);
        }
        difference
    }

    /// The entry that a batch of so many packets is counted in.
    #[cfg(any(target_os = "linux", test))]
    pub(crate) fn entry(packets: usize) -> usize {
        (packets.max(1).ilog2() as usize).min(Self::SIZES - 1)
    }

    /// Adds what another thread has counted.
    #[cfg(any(target_os = "linux", test))]
    pub(crate) fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        for (sum, count) in self.by_size.iter_mut().zip(other.by_size) {
            *sum += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_counted_by_powers_of_two() {
        let entries: Vec<usize> =
            [1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 1 << 20].map(BatchSizes::entry).into();
        assert_eq!(entries, [0, 1, 1, 2, 2, 3, 6, 7, 7, 7, 7]);
    }

    #[test]
    fn a_difference_is_what_came_since() {
        let earlier = BatchSizes { packets: 5, by_size: [1, 2, 0, 0, 0, 0, 0, 0] };
        let later = BatchSizes { packets: 13, by_size: [1, 2, 2, 0, 0, 0, 0, 0] };
        let since = later.since(&earlier);
        assert_eq!((since.packets, since.count(), since.mean()), (8, 2, 4.0));
        assert_eq!(BatchSizes::default().mean(), 0.0);
        let mut sum = earlier;
        sum.add(&since);
        assert_eq!(sum, later);
    }
}
