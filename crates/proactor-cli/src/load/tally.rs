//! What a thread counts while it loads, and the sum over all threads.

use std::io;

use hdrhistogram::Histogram;

use super::connection::Reply;

/// The longest latency that is told apart: an hour.
const LATENCY_LIMIT_NS: u64 = 3_600_000_000_000;

/// What can go wrong on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// A byte came back that is not the one sent.
    WrongByte,
    /// More bytes came back than were sent.
    ExtraBytes,
    /// The server closed a connection that was in use.
    ClosedEarly,
    /// A connection in use was reset, or failed otherwise.
    Broken,
    /// Replies were outstanding and nothing moved for the timeout.
    TimedOut,
    /// After the last reply the server did not close in an orderly way.
    BadClose,
    /// A connect was refused.
    ConnectRefused,
    /// A connect took longer than the connect timeout.
    ConnectTimedOut,
    /// A connect failed otherwise.
    ConnectFailed,
}

impl ErrorKind {
    /// Every kind, the worst first: the first that occurred is named on stderr.
    pub(crate) const ALL: [Self; 9] = [
        Self::WrongByte,
        Self::ExtraBytes,
        Self::ClosedEarly,
        Self::Broken,
        Self::TimedOut,
        Self::BadClose,
        Self::ConnectRefused,
        Self::ConnectTimedOut,
        Self::ConnectFailed,
    ];

    /// Its name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WrongByte => "wrong_byte",
            Self::ExtraBytes => "extra_bytes",
            Self::ClosedEarly => "closed_early",
            Self::Broken => "broken",
            Self::TimedOut => "timed_out",
            Self::BadClose => "bad_close",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimedOut => "connect_timed_out",
            Self::ConnectFailed => "connect_failed",
        }
    }

    /// What it means, to follow a count of connections.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::WrongByte => "received a wrong byte",
            Self::ExtraBytes => "received bytes that were not sent",
            Self::ClosedEarly => "closed early by the server",
            Self::Broken => "broken",
            Self::TimedOut => "timed out without a reply",
            Self::BadClose => "not closed in order by the server",
            Self::ConnectRefused => "refused",
            Self::ConnectTimedOut => "not accepted in time",
            Self::ConnectFailed => "could not be opened",
        }
    }

    /// The kind of a failed connect.
    pub(crate) fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::ConnectRefused,
            io::ErrorKind::TimedOut => Self::ConnectTimedOut,
            _ => Self::ConnectFailed,
        }
    }
}

/// Errors by kind, each with what was seen first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Errors {
    counts: [u64; ErrorKind::ALL.len()],
    details: [Option<String>; ErrorKind::ALL.len()],
}

impl Errors {
    /// Counts one. The detail is only made for the first of a kind.
    pub(crate) fn add(&mut self, kind: ErrorKind, detail: impl FnOnce() -> String) {
        let index = kind as usize;
        self.counts[index] += 1;
        self.details[index].get_or_insert_with(detail);
    }

    /// How many of a kind there were.
    pub(crate) fn count(&self, kind: ErrorKind) -> u64 {
        self.counts[kind as usize]
    }

    /// How many there were.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// One line on the worst kind, or nothing if all went well.
    pub(crate) fn worst(&self) -> Option<String> {
        let kind = *ErrorKind::ALL.iter().find(|kind| self.count(**kind) > 0)?;
        let count = self.count(kind);
        let noun = if count == 1 { "connection" } else { "connections" };
        let mut line = format!("{count} {noun} {}", kind.meaning());
        if let Some(detail) = &self.details[kind as usize] {
            line.push_str(&format!(" ({detail})"));
        }
        match self.total() - count {
            0 => {}
            others => line.push_str(&format!(", and {others} other errors")),
        }
        Some(line)
    }

    fn merge(&mut self, other: Self) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
        for (first, detail) in self.details.iter_mut().zip(other.details) {
            if first.is_none() {
                *first = detail;
            }
        }
    }
}

/// The part of the load that counts: from the end of the warm-up until sending stops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) from_ns: u64,
    pub(crate) until_ns: u64,
}

impl Window {
    /// Whether a moment is measured.
    pub(crate) fn holds(&self, moment_ns: u64) -> bool {
        (self.from_ns..self.until_ns).contains(&moment_ns)
    }
}

/// All counts of a thread, and with [`Tally::merge`] of the load.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Replies completed within the measured window.
    pub(crate) round_trips: u64,
    /// Replies completed at any time.
    pub(crate) round_trips_in_all: u64,
    /// Bytes compared, at any time.
    pub(crate) verified_bytes: u64,
    /// Latency of messages without a mark that were due within the window, ns.
    pub(crate) latency: Histogram<u64>,
    /// Latency of stall messages that were due within the window, ns.
    pub(crate) stall_latency: Histogram<u64>,
    /// Duration of successful connects, ns.
    pub(crate) connect_latency: Histogram<u64>,
    /// Open loop: how long after it was due a message was sent, ns.
    pub(crate) send_delay: Histogram<u64>,
    /// Open loop: messages due within the window, sent or not.
    pub(crate) scheduled_messages: u64,
    /// Open loop: messages that were due and never sent.
    pub(crate) unsent_messages: u64,
    /// Open loop: the most messages that were due and waited for a connection with room.
    pub(crate) backlog_max_messages: u64,
    /// Connections opened, at any time.
    pub(crate) connects: u64,
    /// Connections opened and not ended when sending stopped.
    pub(crate) open_at_stop: u64,
    /// Churn: sessions ended in order within the window.
    pub(crate) sessions: u64,
    /// What went wrong.
    pub(crate) errors: Errors,
}

impl Tally {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        Self {
            round_trips: 0,
            round_trips_in_all: 0,
            verified_bytes: 0,
            latency: new_histogram(),
            stall_latency: new_histogram(),
            connect_latency: new_histogram(),
            send_delay: new_histogram(),
            scheduled_messages: 0,
            unsent_messages: 0,
            backlog_max_messages: 0,
            connects: 0,
            open_at_stop: 0,
            sessions: 0,
            errors: Errors::default(),
        }
    }

    /// Counts a reply that was complete at `now_ns`.
    ///
    /// The rate counts replies that arrive within the window. The latencies count messages due
    /// within it, whenever their replies arrive: else the slowest would be left out.
    pub(crate) fn reply(&mut self, reply: Reply, now_ns: u64, window: Window) {
        self.round_trips_in_all += 1;
        self.round_trips += u64::from(window.holds(now_ns));
        if window.holds(reply.due_ns) {
            let histogram = if reply.stalled { &mut self.stall_latency } else { &mut self.latency };
            histogram.saturating_record(now_ns.saturating_sub(reply.due_ns));
        }
    }

    /// Adds another thread's counts.
    pub(crate) fn merge(&mut self, other: Self) {
        self.round_trips += other.round_trips;
        self.round_trips_in_all += other.round_trips_in_all;
        self.verified_bytes += other.verified_bytes;
        for (sum, histogram) in [
            (&mut self.latency, other.latency),
            (&mut self.stall_latency, other.stall_latency),
            (&mut self.connect_latency, other.connect_latency),
            (&mut self.send_delay, other.send_delay),
        ] {
            sum.add(histogram).expect("all histograms have the same bounds");
        }
        self.scheduled_messages += other.scheduled_messages;
        self.unsent_messages += other.unsent_messages;
        // The threads' peaks need not coincide, so this is an upper bound.
        self.backlog_max_messages += other.backlog_max_messages;
        self.connects += other.connects;
        self.open_at_stop += other.open_at_stop;
        self.sessions += other.sessions;
        self.errors.merge(other.errors);
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_LIMIT_NS, 3).expect("the bounds are valid constants")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { from_ns: 100, until_ns: 200 };

    #[test]
    fn rates_count_arrivals_and_latencies_count_departures() {
        let mut tally = Tally::new();
        let reply = |due_ns| Reply { due_ns, stalled: false };
        tally.reply(reply(50), 150, WINDOW);
        tally.reply(reply(150), 199, WINDOW);
        tally.reply(reply(150), 900, WINDOW);
        tally.reply(Reply { due_ns: 150, stalled: true }, 170, WINDOW);
        assert_eq!((tally.round_trips, tally.round_trips_in_all), (3, 4));
        assert_eq!((tally.latency.len(), tally.latency.min(), tally.latency.max()), (2, 49, 750));
        assert_eq!(tally.stall_latency.len(), 1);
    }

    #[test]
    fn the_worst_error_is_named() {
        let mut errors = Errors::default();
        assert_eq!(errors.worst(), None);
        errors.add(ErrorKind::TimedOut, || "connection 1".into());
        errors.add(ErrorKind::WrongByte, || "connection 2".into());
        errors.add(ErrorKind::WrongByte, || "connection 3".into());
        let line = errors.worst().expect("errors");
        assert_eq!(line, "2 connections received a wrong byte (connection 2), and 1 other errors");
    }

    #[test]
    fn every_kind_has_its_place() {
        for (index, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}
