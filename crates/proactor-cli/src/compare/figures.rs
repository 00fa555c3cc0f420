//! The figures of a slice, their spread over the rounds, and ratios within a round.

use serde::Serialize;

/// What one slice of one server measured. What is not known is `None`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Slice {
    /// Counted from 1.
    pub(crate) round: usize,
    pub(crate) seconds: f64,
    /// Round trips in the measured time; in `short`, each is a session.
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Where there were 1,000 requests or more.
    pub(crate) p99_9_us: Option<f64>,
    pub(crate) server_cpu_us_per_request: Option<f64>,
    pub(crate) switches_per_request: Option<f64>,
    /// Growth of the server's own memory since it started, for each session.
    pub(crate) memory_bytes_per_session: Option<f64>,
    /// The server's own memory: anonymous and resident.
    pub(crate) memory_bytes: Option<u64>,
    /// The part of the machine's processor time that went to neither server nor load.
    pub(crate) foreign_cpu_share: Option<f64>,
    /// Requests that fell due and found no session with room; in an open loop only.
    pub(crate) unsent_requests: u64,
    pub(crate) verified_bytes: u64,
}

/// A figure that servers are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Throughput,
    P50,
    P99,
    P999,
    Cpu,
    Switches,
    Memory,
}

impl Metric {
    /// All of them, in the order in which they are shown.
    pub(crate) const ALL: [Self; 7] = [
        Self::Throughput,
        Self::P50,
        Self::P99,
        Self::P999,
        Self::Cpu,
        Self::Switches,
        Self::Memory,
    ];

    /// The figure in a slice.
    pub(crate) fn of(self, slice: &Slice) -> Option<f64> {
        match self {
            Self::Throughput => Some(slice.requests_per_second),
            Self::P50 => slice.p50_us,
            Self::P99 => slice.p99_us,
            Self::P999 => slice.p99_9_us,
            Self::Cpu => slice.server_cpu_us_per_request,
            Self::Switches => slice.switches_per_request,
            Self::Memory => slice.memory_bytes_per_session,
        }
    }

    /// Whether more is better.
    pub(crate) fn more_is_better(self) -> bool {
        self == Self::Throughput
    }

    /// A few words for it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Throughput => "requests per second",
            Self::P50 => "median latency",
            Self::P99 => "99th percentile of latency",
            Self::P999 => "99.9th percentile of latency",
            Self::Cpu => "server CPU per request",
            Self::Switches => "context switches per request",
            Self::Memory => "memory per session",
        }
    }

    /// Its value with a unit, in three digits or so.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Throughput => format!("{}/s", short_number(value)),
            Self::P50 | Self::P99 | Self::P999 | Self::Cpu => short_time(value),
            Self::Switches => digits(value),
            Self::Memory => short_bytes(value),
        }
    }
}

/// The median and the range of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of the values, if there are any.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }

    /// Half of the range, in percent of the median.
    pub(crate) fn percent(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { 50.0 * (self.max - self.min) / self.median.abs() }
    }

    /// Whether the ranges of the two have a value in common.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// The spread of a metric over slices.
pub(crate) fn spread(metric: Metric, slices: &[Slice]) -> Option<Spread> {
    Spread::of(slices.iter().filter_map(|slice| metric.of(slice)))
}

/// The spread of the ratios to a reference, each taken within a round.
pub(crate) fn ratio(metric: Metric, slices: &[Slice], reference: &[Slice]) -> Option<Spread> {
    Spread::of(slices.iter().filter_map(|slice| {
        let other = reference.iter().find(|other| other.round == slice.round)?;
        let (value, base) = (metric.of(slice)?, metric.of(other)?);
        (base > 0.0).then(|| value / base)
    }))
}

/// A number in about three digits.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        x if x >= 99.95 => format!("{value:.0}"),
        x if x >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn short_number(value: f64) -> String {
    match value.abs() {
        x if x >= 999_500.0 => format!("{} M", digits(value / 1e6)),
        x if x >= 9_999.5 => format!("{} k", digits(value / 1e3)),
        _ => format!("{value:.0}"),
    }
}

/// A time, given in microseconds.
pub(crate) fn short_time(value_us: f64) -> String {
    match value_us.abs() {
        x if x >= 999_500.0 => format!("{} s", digits(value_us / 1e6)),
        x if x >= 999.5 => format!("{} ms", digits(value_us / 1e3)),
        _ => format!("{} µs", digits(value_us)),
    }
}

/// An amount of memory.
pub(crate) fn short_bytes(value: f64) -> String {
    match value.abs() {
        x if x >= 1024.0 * 1023.5 => format!("{} MiB", digits(value / 1024.0 / 1024.0)),
        x if x >= 1023.5 => format!("{} KiB", digits(value / 1024.0)),
        _ => format!("{value:.0} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(round: usize, rate: f64) -> Slice {
        Slice { round, requests_per_second: rate, ..Slice::default() }
    }

    #[test]
    fn median_range_and_percent() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([30.0, 10.0, 20.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max, odd.percent()), (20.0, 10.0, 30.0, 50.0));
        assert_eq!(Spread::of([4.0, 1.0, f64::NAN]).unwrap().median, 2.5);
        assert!(odd.overlaps(&Spread { median: 31.0, min: 30.0, max: 32.0 }));
        assert!(!odd.overlaps(&Spread { median: 31.0, min: 30.5, max: 32.0 }));
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let server = [slice(1, 10.0), slice(2, 40.0), slice(4, 7.0)];
        let reference = [slice(1, 10.0), slice(2, 20.0), slice(3, 1.0)];
        let ratio = ratio(Metric::Throughput, &server, &reference).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (1.5, 1.0, 2.0));
    }

    #[test]
    fn figures_have_units() {
        assert_eq!(Metric::Throughput.show(123_456.0), "123 k/s");
        assert_eq!(Metric::Throughput.show(9_876.0), "9876/s");
        assert_eq!(Metric::P99.show(12.345), "12.3 µs");
        assert_eq!(Metric::P99.show(9_999.0), "10.0 ms");
        assert_eq!(Metric::Memory.show(2048.0), "2.00 KiB");
        assert_eq!(Metric::Switches.show(0.333), "0.33");
    }
}
