//! Statuses as plain lines, for a log or a pipe.

use std::io::{self, Write, stdout};
use std::time::Duration;

use super::history::History;
use super::source::{News, Source};
use crate::compare::figures::{Metric, short_bytes, short_time};

/// A wait that is as good as without end.
const LONG: Duration = Duration::from_secs(3600);

/// Prints a line for each status, until the end or so many.
pub(crate) fn print(source: &Source, count: Option<u64>) -> io::Result<()> {
    let mut history = History::new();
    let mut printed = 0;
    while count.is_none_or(|limit| printed < limit) {
        match source.next(LONG)? {
            News::Status(status) => {
                history.push(*status);
                writeln!(stdout(), "{}", line(&history))?;
                printed += 1;
            }
            News::Nothing => {}
            News::End => {
                writeln!(stdout(), "the server has ended")?;
                break;
            }
        }
    }
    Ok(())
}

/// Prints the lines as they come.
pub(crate) fn print_json(source: &Source, count: Option<u64>) -> io::Result<()> {
    let mut printed = 0;
    while count.is_none_or(|limit| printed < limit)
        && let Some(line) = source.next_line()?
    {
        writeln!(stdout(), "{line}")?;
        printed += 1;
    }
    Ok(())
}

/// One status in a line.
fn line(history: &History) -> String {
    let Some(status) = history.last() else { return String::new() };
    let rate = |rate: Option<f64>| rate.map_or("-".into(), |rate| Metric::Throughput.show(rate));
    let workers = status.workers.as_deref().unwrap_or_default();
    let count = |state: &str| workers.iter().filter(|worker| worker.state == state).count();
    let queued = status.queued_packets.map_or("-".into(), |queued| queued.to_string());
    let mut line = format!(
        "{:>8.1} s  {} completions  queue {queued}  threads {} running {} waiting {} blocked  \
         handler p50 {} p99 {}  {} sessions  in {}/s out {}/s",
        status.uptime_seconds,
        rate(history.rate(|status| status.dequeued_packets)),
        count("running"),
        count("waiting"),
        count("blocked"),
        short_time(status.handler.p50_us),
        short_time(status.handler.p99_us),
        status.sessions,
        short_bytes(history.rate(|status| status.bytes_received).unwrap_or(0.0)),
        short_bytes(history.rate(|status| status.bytes_sent).unwrap_or(0.0)),
    );
    if let Some(slow) = status.slow_sessions.first() {
        let peer = slow.peer.as_deref().unwrap_or("gone");
        line.push_str(&format!("  slowest {peer} {}", short_time(slow.longest_us)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::history::tests::status;

    #[test]
    fn a_line_says_it_all() {
        let mut history = History::new();
        history.push(status(1.0));
        history.push(status(2.0));
        assert_eq!(
            line(&history),
            "     2.0 s  123 k/s completions  queue 17  threads 2 running 1 waiting 1 blocked  \
             handler p50 2.10 µs p99 10.0 ms  10000 sessions  in 117 MiB/s out 116 MiB/s  \
             slowest 127.0.0.1:54321 12.0 ms"
        );
    }
}
