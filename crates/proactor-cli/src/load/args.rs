//! What `proactor load` is told on its command line, and the plan that follows from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::address::{Target, parse_target};
use crate::failure::Failure;

/// The most memory that message bookkeeping may take.
const OUTSTANDING_LIMIT: usize = 1 << 27;
/// The largest message.
const MESSAGE_LIMIT_BYTES: u64 = 64 << 20;

/// The flags of `proactor load`.
#[derive(Debug, Args)]
#[command(after_long_help = LONG_HELP, args_override_self = true)]
pub(crate) struct LoadArgs {
    /// The server: HOST:PORT (an IPv6 address in brackets) or unix:PATH. Without it, an echo server is
    /// started and stopped.
    #[arg(value_name = "ADDR")]
    pub(crate) address: Option<String>,

    /// Connections held open, or kept reconnecting with --churn.
    #[arg(long, short = 'c', value_name = "N", default_value_t = 50, value_parser = parse_count)]
    pub(crate) connections: usize,

    /// Bytes in a message; 64k and 1m are understood.
    #[arg(long, short = 's', value_name = "BYTES", default_value = "64", value_parser = parse_bytes)]
    pub(crate) size: u64,

    /// Messages outstanding on a connection.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    pub(crate) depth: usize,

    /// How long to measure, for example 5s, 500ms or 2m.
    #[arg(long, short = 'd', value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) duration: Duration,

    /// How long to load before measuring.
    #[arg(long, value_name = "TIME", default_value = "0.5s", value_parser = parse_duration)]
    pub(crate) warmup: Duration,

    /// Send on a fixed schedule, so many messages a second in all, and measure from the schedule.
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate, conflicts_with = "churn")]
    pub(crate) rate: Option<f64>,

    /// Short sessions: connect, exchange this many messages, close, and again.
    #[arg(long, value_name = "MESSAGES", value_parser = parse_count)]
    pub(crate) churn: Option<usize>,

    /// End connections by a reset: no orderly close, and no port left in TIME_WAIT.
    #[arg(long)]
    pub(crate) reset: bool,

    /// Event loops, a thread each. [default: half of the CPUs, at least 1]
    #[arg(long, short = 't', value_name = "N", value_parser = parse_count)]
    pub(crate) threads: Option<usize>,

    /// Mark this part of the messages, 0 to 1, so that an `echo --stall-marks` server stalls in them.
    #[arg(long, value_name = "FRACTION", value_parser = parse_fraction)]
    pub(crate) stall_fraction: Option<f64>,

    /// What a marked message does to its handler for 10 ms.
    #[arg(long, value_enum, default_value_t = StallKind::Block, requires = "stall_fraction")]
    pub(crate) stall_kind: StallKind,

    /// How long a connect may take.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_wait)]
    pub(crate) connect_timeout: Duration,

    /// A connection with replies outstanding and no progress for this long is lost.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_wait)]
    pub(crate) timeout: Duration,

    /// The server's process, whose CPU time is reported; known already if the server is our own.
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,

    /// More arguments for a server of our own, split at spaces.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, conflicts_with = "address")]
    pub(crate) server_args: Option<String>,

    /// Start this program as the server; it is given `echo --listen 127.0.0.1:0` and --server-args.
    #[arg(long, value_name = "PATH", conflicts_with = "address")]
    pub(crate) server_program: Option<PathBuf>,

    /// Print one JSON object on stdout instead of a table.
    #[arg(long)]
    pub(crate) json: bool,

    /// No progress bar, and no table; the exit status says how it went.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// What the flags cannot say in a line each.
const LONG_HELP: &str = "\
Closed loop, the default: each connection keeps --depth messages outstanding, and sends \
the next when a reply is complete.

Open loop, with --rate: messages fall due at fixed times, whatever the server does, and \
latency runs from the time a message was due. A message goes to the connection that has \
had room (fewer than --depth outstanding) for longest; when none has room it waits, and \
its wait counts. What was due and could not be sent by the end is reported, and \
is in the latencies with the time it had waited. How late the generator itself sends is \
reported as the send delay.

Churn, with --churn: a session is connect, messages, half-close, the server's end of \
stream, close. The side that closes first keeps the port in TIME_WAIT for a minute, and \
that is this side. Towards a 127.x.x.x address sessions therefore take turns through the \
source addresses 127.0.0.2 to 127.0.0.254, which is room for 7 million sessions a minute. \
Towards other addresses the system's ephemeral ports are the limit, commonly 28,000 \
sessions a minute; --reset avoids it. Failed connects count as errors.

Every byte that comes back is compared with what was sent. The exit status is 0 when all \
went well, 1 on a wrong byte, a lost connection or no progress, and 2 on a bad flag or \
address.";

/// What a stall message does to its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StallKind {
    /// The handler blocks: its thread sleeps.
    Block,
    /// The handler spins: its thread computes.
    Spin,
}

/// When the next message is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// As soon as a reply leaves room.
    Closed,
    /// On a schedule of so many messages a second in all.
    Open {
        /// The total over all connections.
        rate_per_second: f64,
    },
    /// As soon as a reply leaves room, a few in each session.
    Churn {
        /// Messages in a session.
        messages: u64,
    },
}

/// The load as decided: checked, and the same for each thread.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) message_bytes: u64,
    pub(crate) depth: usize,
    pub(crate) pace: Pace,
    pub(crate) stall_fraction: f64,
    pub(crate) stall_kind: StallKind,
    pub(crate) reset: bool,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
}

impl LoadArgs {
    /// The server's address, if one was given.
    pub(crate) fn target(&self) -> Result<Option<Target>, Failure> {
        self.address.as_deref().map(parse_target).transpose().map_err(Failure::usage)
    }

    /// Checks what one flag alone cannot say, and fills in what was left open.
    pub(crate) fn plan(&self) -> Result<Plan, Failure> {
        if self.duration.is_zero() {
            return Err(Failure::usage("--duration must be longer than nothing"));
        }
        if self.connections.saturating_mul(self.depth) > OUTSTANDING_LIMIT {
            return Err(Failure::usage(format!(
                "--connections times --depth must stay below {OUTSTANDING_LIMIT}"
            )));
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.unwrap_or((cpus / 2).max(1)).min(self.connections);
        let pace = match (self.rate, self.churn) {
            (Some(rate_per_second), _) => Pace::Open { rate_per_second },
            (None, Some(messages)) => Pace::Churn { messages: messages as u64 },
            (None, None) => Pace::Closed,
        };
        Ok(Plan {
            connections: self.connections,
            threads,
            message_bytes: self.size,
            depth: self.depth,
            pace,
            stall_fraction: self.stall_fraction.unwrap_or(0.0),
            stall_kind: self.stall_kind,
            reset: self.reset,
            warmup: self.warmup,
            duration: self.duration,
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
        })
    }
}

pub(crate) fn parse_count(text: &str) -> Result<usize, String> {
    match text.replace('_', "").parse::<usize>() {
        Ok(count @ 1..=10_000_000) => Ok(count),
        _ => Err("expected a whole number from 1 to 10000000".into()),
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = match lower.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => lower.split_at(end),
        None => (lower.as_str(), ""),
    };
    let factor: u64 = match unit {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        _ => return Err("expected bytes, for example 64, 4k or 1m".into()),
    };
    match digits.parse::<u64>().ok().and_then(|count| count.checked_mul(factor)) {
        Some(bytes @ 1..=MESSAGE_LIMIT_BYTES) => Ok(bytes),
        _ => Err("expected 1 byte to 64m".into()),
    }
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const HINT: &str = "expected a time, for example 5s, 500ms or 2m";
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit_seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(HINT.into()),
    };
    let seconds = digits.parse::<f64>().map_err(|_| HINT)? * unit_seconds;
    if seconds > 7.0 * 24.0 * 3600.0 {
        return Err("expected at most a week".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| HINT.into())
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        wait if wait < Duration::from_millis(1) => Err("expected at least 1ms".into()),
        wait => Ok(wait),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.replace('_', "").parse::<f64>() {
        Ok(rate) if (0.001..=1e8).contains(&rate) => Ok(rate),
        _ => Err("expected messages a second, from 0.001 to 100000000".into()),
    }
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(fraction) if (0.0..=1.0).contains(&fraction) => Ok(fraction),
        _ => Err("expected a part, from 0 to 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        for bad in ["", "s", "5x", "-1s", "1.2.3s", "1000000h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("64"), Ok(64));
        assert_eq!(parse_bytes("4k"), Ok(4096));
        assert_eq!(parse_bytes("1MiB"), Ok(1 << 20));
        for bad in ["0", "", "k", "65m", "1g", "-1", "99999999999999999999"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_and_fractions_are_bounded() {
        assert_eq!(parse_rate("3_000"), Ok(3000.0));
        assert!(parse_rate("0").is_err());
        assert!(parse_rate("NaN").is_err());
        assert_eq!(parse_fraction("0.01"), Ok(0.01));
        assert!(parse_fraction("1.1").is_err());
        assert!(parse_fraction("NaN").is_err());
    }
}
