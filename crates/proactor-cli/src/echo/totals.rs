//! What the server counts, and the lines that it prints at its end.

use std::fmt;

use proactor::PortCounters;
use serde::Serialize;

/// What one worker has done. Each worker counts for itself, so that counting shares no memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) completions: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// Sessions that a reset of the connection ended.
    pub(crate) resets: u64,
    /// Sessions that another error ended.
    pub(crate) failures: u64,
    /// Sessions that were open when the drain's time was up.
    pub(crate) cut_off: u64,
    /// Packets that two workers had dequeued at once, and handled in the other order.
    pub(crate) reordered: u64,
}

impl Tally {
    /// Adds what another worker has done.
    pub(crate) fn add(&mut self, other: &Self) {
        self.completions += other.completions;
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.resets += other.resets;
        self.failures += other.failures;
        self.cut_off += other.cut_off;
        self.reordered += other.reordered;
    }
}

/// How many sessions there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionCounts {
    pub(crate) open: usize,
    pub(crate) peak: usize,
    pub(crate) total: u64,
}

/// Everything that the server has done.
#[derive(Debug, Serialize)]
pub(crate) struct Totals {
    sessions: u64,
    peak_sessions: usize,
    resets: u64,
    failures: u64,
    cut_off: u64,
    bytes_received: u64,
    bytes_sent: u64,
    completions: u64,
    reordered: u64,
    wait_calls: u64,
    wakes: u64,
    rescues: u64,
    blocked_threads: u64,
    pool_bytes: u64,
}

impl Totals {
    /// Puts together what the workers, the acceptor and the port have counted.
    pub(crate) fn new(tally: &Tally, sessions: SessionCounts, port: PortCounters) -> Self {
        Self {
            sessions: sessions.total,
            peak_sessions: sessions.peak,
            resets: tally.resets,
            failures: tally.failures,
            cut_off: tally.cut_off,
            bytes_received: tally.bytes_received,
            bytes_sent: tally.bytes_sent,
            completions: tally.completions,
            reordered: tally.reordered,
            wait_calls: port.wait_calls,
            wakes: port.wakes,
            rescues: port.rescues,
            blocked_threads: port.blocked_threads,
            pool_bytes: port.pool_bytes,
        }
    }

    /// The totals as one line of JSON.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers under fixed names are always JSON")
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "sessions     {} (at most {} at once; {} reset, {} failed, {} cut off)",
            self.sessions, self.peak_sessions, self.resets, self.failures, self.cut_off
        )?;
        writeln!(f, "bytes        {} received, {} sent", self.bytes_received, self.bytes_sent)?;
        writeln!(
            f,
            "completions  {} ({} out of turn between threads)",
            self.completions, self.reordered
        )?;
        write!(
            f,
            "port         {} waits, {} wakes, {} rescues, {} blocked threads, {} KiB of buffers",
            self.wait_calls,
            self.wakes,
            self.rescues,
            self.blocked_threads,
            self.pool_bytes / 1024
        )
    }
}
