//! What a server says about itself to `proactor watch`: one [`Status`] as a line of JSON, twice a
//! second. [`address`] says where.

pub(crate) mod address;

use serde::{Deserialize, Serialize};

/// The form of the lines. Fields may be added under the same number.
pub(crate) const FORM: u32 = 1;
/// The longest line that is taken for one.
pub(crate) const LINE_LIMIT: usize = 1 << 20;

/// A server at one moment. Counts are since its start; `handler` and `slow_sessions` are of the
/// time just past. What a backend does not know is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) form: u32,
    /// Where it serves.
    pub(crate) address: String,
    pub(crate) backend: String,
    pub(crate) uptime_seconds: f64,
    pub(crate) concurrency: usize,
    pub(crate) queued_packets: Option<usize>,
    pub(crate) active_threads: Option<usize>,
    pub(crate) posted_packets: Option<u64>,
    pub(crate) pending_timers: Option<usize>,
    pub(crate) dequeued_packets: u64,
    pub(crate) wait_calls: u64,
    pub(crate) rescues: u64,
    pub(crate) blocked_threads: u64,
    pub(crate) wakes: u64,
    pub(crate) pool_bytes: u64,
    pub(crate) lent_pool_bytes: Option<u64>,
    /// Batches of 1, 2 to 3, 4 to 7 packets and so on.
    pub(crate) batches: Option<Vec<u64>>,
    pub(crate) batched_packets: Option<u64>,
    pub(crate) workers: Option<Vec<WorkerStatus>>,
    pub(crate) sessions: usize,
    pub(crate) peak_sessions: usize,
    pub(crate) total_sessions: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// Since the line before.
    pub(crate) handler: HandlerStatus,
    /// Those whose handlers took longest in the last ten seconds, the longest first.
    pub(crate) slow_sessions: Vec<SlowSession>,
}

/// One thread of the port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    pub(crate) index: usize,
    pub(crate) thread_id: Option<u32>,
    /// `waiting`, `running` or `blocked`.
    pub(crate) state: String,
    pub(crate) dequeued_packets: u64,
    pub(crate) queued_packets: usize,
    pub(crate) sources: usize,
}

/// How long handlers took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HandlerStatus {
    pub(crate) count: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) max_us: f64,
}

/// A session whose handler took long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SlowSession {
    /// Its key at the port.
    pub(crate) session: usize,
    /// `None` where it has ended, or has no internet address.
    pub(crate) peer: Option<String>,
    pub(crate) longest_us: f64,
}
