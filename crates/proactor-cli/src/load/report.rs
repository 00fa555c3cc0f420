//! The figures of a load, as they are printed and as they are in JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::args::{Pace, StallKind};
use super::conduct::{Outcome, Samples};
use super::tally::ErrorKind;

/// Everything that is known about a load. Units are last in the names.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether every byte was right, no connection was lost, and there was progress.
    pub(crate) ok: bool,
    /// Why not, in a line.
    pub(crate) failure: Option<String>,
    /// Ended early by Ctrl-C.
    pub(crate) interrupted: bool,
    pub(crate) address: String,
    /// `closed_loop`, `open_loop` or `churn`.
    pub(crate) mode: &'static str,
    pub(crate) connections: usize,
    pub(crate) message_bytes: u64,
    pub(crate) depth: usize,
    pub(crate) threads: usize,
    pub(crate) warmup_seconds: f64,
    /// As measured, which is less than asked for after Ctrl-C.
    pub(crate) duration_seconds: f64,
    pub(crate) round_trips: u64,
    pub(crate) round_trips_per_second: f64,
    /// Payload in each direction, in millions of bytes.
    pub(crate) each_way_megabytes_per_second: f64,
    /// Bytes compared, including the warm-up and the end.
    pub(crate) verified_bytes: u64,
    /// Connections opened, including all sessions of a churn.
    pub(crate) connects: u64,
    /// Connections that were open when sending stopped.
    pub(crate) open_at_stop_connections: u64,
    /// In an open loop it also counts messages that were never sent, with the time they waited.
    pub(crate) latency: Latency,
    /// Of messages with a stall mark.
    pub(crate) stall_latency: Option<Latency>,
    pub(crate) stall_fraction: f64,
    pub(crate) stall_kind: Option<&'static str>,
    pub(crate) connect_latency: Latency,
    pub(crate) open_loop: Option<OpenLoop>,
    pub(crate) churn: Option<Churn>,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    pub(crate) server: Option<Cpu>,
    pub(crate) client: Option<Cpu>,
    /// What a server of our own printed when it ended.
    pub(crate) server_output: Option<Vec<String>>,
}

/// A distribution of durations.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) min_us: f64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) p99_99_us: f64,
    pub(crate) max_us: f64,
}

/// How well the schedule was kept.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct OpenLoop {
    pub(crate) rate_per_second: f64,
    /// Messages due in the measured time.
    pub(crate) scheduled_messages: u64,
    /// Those of them that were never sent, for want of a connection with room.
    pub(crate) unsent_messages: u64,
    pub(crate) backlog_max_messages: u64,
    /// How late messages were sent; it is part of their latency.
    pub(crate) send_delay: Latency,
}

/// Short sessions.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Churn {
    pub(crate) messages_per_session: u64,
    pub(crate) sessions: u64,
    pub(crate) sessions_per_second: f64,
}

/// What a process used in the measured time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cpu {
    pub(crate) pid: u32,
    pub(crate) cpu_user_seconds: f64,
    pub(crate) cpu_system_seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) cpu_us_per_round_trip: Option<f64>,
    /// With churn, which spends more on connections than on messages.
    pub(crate) cpu_us_per_session: Option<f64>,
    pub(crate) resident_bytes: u64,
    /// Growth since before the first connect.
    pub(crate) resident_growth_bytes: i64,
}

impl Report {
    /// Computes the figures.
    pub(crate) fn new(outcome: &Outcome, server_output: Option<Vec<String>>) -> Self {
        let plan = &outcome.plan;
        let tally = &outcome.tally;
        let seconds = seconds_of(outcome.window.until_ns.saturating_sub(outcome.window.from_ns));
        let per_second = |count: u64| {
            if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
        };
        let has_stalls = plan.stall_fraction > 0.0;
        let failure = failure(outcome);
        Self {
            ok: failure.is_none(),
            failure,
            interrupted: outcome.interrupted,
            address: outcome.endpoint.to_string(),
            mode: match plan.pace {
                Pace::Closed => "closed_loop",
                Pace::Open { .. } => "open_loop",
                Pace::Churn { .. } => "churn",
            },
            connections: plan.connections,
            message_bytes: plan.message_bytes,
            depth: plan.depth,
            threads: plan.threads,
            warmup_seconds: plan.warmup.as_secs_f64(),
            duration_seconds: seconds,
            round_trips: tally.round_trips,
            round_trips_per_second: per_second(tally.round_trips),
            each_way_megabytes_per_second: per_second(tally.round_trips * plan.message_bytes) / 1e6,
            verified_bytes: tally.verified_bytes,
            connects: tally.connects,
            open_at_stop_connections: tally.open_at_stop,
            latency: Latency::new(&tally.latency),
            stall_latency: has_stalls.then(|| Latency::new(&tally.stall_latency)),
            stall_fraction: plan.stall_fraction,
            stall_kind: has_stalls.then_some(match plan.stall_kind {
                StallKind::Block => "block",
                StallKind::Spin => "spin",
            }),
            connect_latency: Latency::new(&tally.connect_latency),
            open_loop: match plan.pace {
                Pace::Open { rate_per_second } => Some(OpenLoop {
                    rate_per_second,
                    scheduled_messages: tally.scheduled_messages,
                    unsent_messages: tally.unsent_messages,
                    backlog_max_messages: tally.backlog_max_messages,
                    send_delay: Latency::new(&tally.send_delay),
                }),
                Pace::Closed | Pace::Churn { .. } => None,
            },
            churn: match plan.pace {
                Pace::Churn { messages } => Some(Churn {
                    messages_per_session: messages,
                    sessions: tally.sessions,
                    sessions_per_second: per_second(tally.sessions),
                }),
                Pace::Closed | Pace::Open { .. } => None,
            },
            errors: error_counts(outcome),
            server: outcome.server_pid.and_then(|pid| Cpu::new(pid, outcome.server?, outcome)),
            client: Cpu::new_if_known(std::process::id(), outcome.client, outcome),
            server_output,
        }
    }
}

/// One line on what went wrong, if anything did.
fn failure(outcome: &Outcome) -> Option<String> {
    let tally = &outcome.tally;
    if let Some(line) = tally.errors.worst() {
        return Some(line);
    }
    if outcome.interrupted {
        return None;
    }
    let is_churn = matches!(outcome.plan.pace, Pace::Churn { .. });
    let progress = if is_churn { tally.sessions } else { tally.round_trips };
    // A slow schedule may have nothing due in a short time, and that is no fault of the server.
    let had_work = match outcome.plan.pace {
        Pace::Open { .. } => tally.scheduled_messages > 0,
        Pace::Closed | Pace::Churn { .. } => true,
    };
    if progress == 0 && had_work {
        let what = if is_churn { "session" } else { "reply" };
        return Some(format!("no progress: not one {what} was complete in the measured time"));
    }
    None
}

fn error_counts(outcome: &Outcome) -> BTreeMap<&'static str, u64> {
    let errors = &outcome.tally.errors;
    let kinds = ErrorKind::ALL.iter().map(|kind| (kind.name(), errors.count(*kind)));
    kinds.chain([("total", errors.total())]).collect()
}

impl Latency {
    fn new(histogram: &Histogram<u64>) -> Self {
        let quantile_us = |quantile: f64| us_of(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            min_us: us_of(histogram.min()),
            mean_us: round_to(histogram.mean() / 1e3, 10.0),
            p50_us: quantile_us(0.5),
            p90_us: quantile_us(0.9),
            p99_us: quantile_us(0.99),
            p99_9_us: quantile_us(0.999),
            p99_99_us: quantile_us(0.9999),
            max_us: us_of(histogram.max()),
        }
    }
}

impl Cpu {
    fn new_if_known(pid: u32, samples: Option<Samples>, outcome: &Outcome) -> Option<Self> {
        samples.and_then(|samples| Self::new(pid, samples, outcome))
    }

    fn new(pid: u32, samples: Samples, outcome: &Outcome) -> Option<Self> {
        let Samples { idle, first, last } = samples;
        let cpu_user_seconds = round_to(last.user_seconds - first.user_seconds, 1e3);
        let cpu_system_seconds = round_to(last.system_seconds - first.system_seconds, 1e3);
        let cpu_seconds = round_to(cpu_user_seconds + cpu_system_seconds, 1e3);
        if cpu_seconds < 0.0 {
            // The pid has been given to another process.
            return None;
        }
        let per = |count: u64| (count > 0).then(|| round_to(cpu_seconds * 1e6 / count as f64, 1e3));
        let is_churn = matches!(outcome.plan.pace, Pace::Churn { .. });
        Some(Self {
            pid,
            cpu_user_seconds,
            cpu_system_seconds,
            cpu_seconds,
            cpu_us_per_round_trip: per(outcome.tally.round_trips),
            cpu_us_per_session: if is_churn { per(outcome.tally.sessions) } else { None },
            resident_bytes: last.resident_bytes,
            resident_growth_bytes: last.resident_bytes.cast_signed()
                - idle.resident_bytes.cast_signed(),
        })
    }
}

fn seconds_of(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

/// Microseconds with one digit after the point; the histogram is no finer at the values that matter.
fn us_of(ns: u64) -> f64 {
    round_to(ns as f64 / 1e3, 10.0)
}

fn round_to(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("valid bounds");
        (1..=1000u64).for_each(|us| histogram.saturating_record(us * 1000));
        let latency = Latency::new(&histogram);
        assert_eq!((latency.count, latency.min_us), (1000, 1.0));
        assert!((latency.p50_us - 500.0).abs() < 1.0, "{latency:?}");
        assert!((latency.p99_us - 990.0).abs() < 2.0, "{latency:?}");
        assert!((latency.max_us - 1000.0).abs() < 1.0, "{latency:?}");
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        let histogram = Histogram::new_with_bounds(1, 1000, 3).expect("valid bounds");
        let latency = Latency::new(&histogram);
        assert_eq!(
            (latency.count, latency.min_us, latency.p50_us, latency.max_us),
            (0, 0.0, 0.0, 0.0)
        );
    }
}
