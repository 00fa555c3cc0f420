//! What the server counts, and the lines that it prints at its end.

use std::fmt;
use std::io;

use proactor::PortCounters;
use serde::Serialize;

use super::args::Model;

/// What one worker has done. Each worker counts for itself, so that counting shares no memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Packets, routines, events, or receives: what the model has in their place.
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
    /// Clients that were turned away, because the model has no room for them.
    pub(crate) refused: u64,
    /// Receive buffers of the port, when the worker left.
    pub(crate) pool_bytes: u64,
}

impl Tally {
    /// Counts a session that an error of the socket has ended.
    pub(crate) fn count_failure(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => self.resets += 1,
            _ => {
                self.failures += 1;
                tracing::debug!(%error, "a session failed");
            }
        }
    }

    /// Adds what another worker has done.
    pub(crate) fn add(&mut self, other: &Self) {
        self.completions += other.completions;
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.resets += other.resets;
        self.failures += other.failures;
        self.cut_off += other.cut_off;
        self.reordered += other.reordered;
        self.refused += other.refused;
        self.pool_bytes = self.pool_bytes.max(other.pool_bytes);
    }
}

/// How many sessions there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionCounts {
    pub(crate) open: usize,
    pub(crate) peak: usize,
    pub(crate) total: u64,
}

impl SessionCounts {
    /// Counts a session that begins.
    pub(crate) fn begin(&mut self) {
        self.open += 1;
        self.total += 1;
        self.peak = self.peak.max(self.open);
    }
}

/// What a server's model counts besides sessions and bytes.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Work {
    Port {
        completions: u64,
        reordered: u64,
        wait_calls: u64,
        wakes: u64,
        rescues: u64,
        blocked_threads: u64,
        pool_bytes: u64,
    },
    Overlapped {
        /// Routines that ran.
        routines: u64,
        wait_calls: u64,
        pool_bytes: u64,
    },
    Readiness {
        /// Sockets that were reported ready.
        events: u64,
        wait_calls: u64,
        /// Clients that `select` had no room for.
        refused: u64,
    },
    Threads {
        /// Calls that brought bytes.
        receives: u64,
    },
}

impl Work {
    /// What a server on a port has counted.
    pub(crate) fn on_port(tally: &Tally, port: PortCounters) -> Self {
        Self::Port {
            completions: tally.completions,
            reordered: tally.reordered,
            wait_calls: port.wait_calls,
            wakes: port.wakes,
            rescues: port.rescues,
            blocked_threads: port.blocked_threads,
            pool_bytes: tally.pool_bytes,
        }
    }
}

/// Everything that the server has done.
#[derive(Debug, Serialize)]
pub(crate) struct Totals {
    model: &'static str,
    sessions: u64,
    peak_sessions: usize,
    resets: u64,
    failures: u64,
    cut_off: u64,
    bytes_received: u64,
    bytes_sent: u64,
    #[serde(flatten)]
    work: Work,
}

impl Totals {
    /// Puts together what the threads of a server have counted.
    pub(crate) fn new(model: Model, tally: &Tally, sessions: SessionCounts, work: Work) -> Self {
        Self {
            model: model.name(),
            sessions: sessions.total,
            peak_sessions: sessions.peak,
            resets: tally.resets,
            failures: tally.failures,
            cut_off: tally.cut_off,
            bytes_received: tally.bytes_received,
            bytes_sent: tally.bytes_sent,
            work,
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
        self.work.fmt(f)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port {
                completions,
                reordered,
                wait_calls,
                wakes,
                rescues,
                blocked_threads,
                pool_bytes,
            } => {
                writeln!(
                    f,
                    "completions  {completions} ({reordered} out of turn between threads)"
                )?;
                write!(
                    f,
                    "port         {wait_calls} waits, {wakes} wakes, {rescues} rescues, \
                     {blocked_threads} blocked threads, {} KiB of buffers",
                    pool_bytes / 1024
                )
            }
            Self::Overlapped { routines, wait_calls, pool_bytes } => write!(
                f,
                "routines     {routines} in {wait_calls} waits, {} KiB of buffers",
                pool_bytes / 1024
            ),
            Self::Readiness { events, wait_calls, refused: 0 } => {
                write!(f, "events       {events} in {wait_calls} waits")
            }
            Self::Readiness { events, wait_calls, refused } => {
                write!(f, "events       {events} in {wait_calls} waits ({refused} clients refused)")
            }
            Self::Threads { receives } => write!(f, "receives     {receives}"),
        }
    }
}
