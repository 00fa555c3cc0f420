//! The report as text for people.

use std::io::{self, Write};

use super::report::{Cpu, Latency, Report};

/// Prints the report.
pub(crate) fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    print_heading(report, out)?;
    print_rates(report, out)?;
    print_latencies(report, out)?;
    print_processes(report, out)?;
    print_errors(report, out)?;
    if let Some(lines) = report.server_output.as_ref().filter(|lines| !lines.is_empty()) {
        writeln!(out, "\nthe server said:")?;
        for line in lines {
            writeln!(out, "  {line}")?;
        }
    }
    out.flush()
}

fn print_heading(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let loop_text = match (report.open_loop, report.churn) {
        (Some(open), _) => format!("open loop at {} messages/s", grouped(open.rate_per_second)),
        (_, Some(churn)) => {
            format!("sessions of {}", plural(churn.messages_per_session, "message"))
        }
        _ => "closed loop".to_owned(),
    };
    writeln!(
        out,
        "{}: {}, {}, depth {}, {loop_text}, {}",
        report.address,
        plural(report.connections as u64, "connection"),
        plural(report.message_bytes, "byte"),
        report.depth,
        plural(report.threads as u64, "thread"),
    )?;
    if let Some(kind) = report.stall_kind {
        let percent = report.stall_fraction * 100.0;
        writeln!(out, "{percent} % of the messages {kind} their handler for 10 ms")?;
    }
    let early = if report.interrupted { ", ended early" } else { "" };
    writeln!(
        out,
        "measured for {:.2} s after {:.2} s of warm-up{early}\n",
        report.duration_seconds, report.warmup_seconds
    )
}

fn print_rates(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut row = |name: &str, count: f64, rate: String| {
        let line = format!("  {name:<16}{:>16}  {rate:>18}", grouped(count));
        writeln!(out, "{}", line.trim_end())
    };
    row(
        "round trips",
        report.round_trips as f64,
        format!("{} /s", grouped(report.round_trips_per_second)),
    )?;
    if let Some(churn) = report.churn {
        row(
            "sessions",
            churn.sessions as f64,
            format!("{} /s", grouped(churn.sessions_per_second)),
        )?;
    }
    let megabytes = format!("{:.2} MB/s each way", report.each_way_megabytes_per_second);
    row("bytes verified", report.verified_bytes as f64, megabytes)?;
    if let Some(open) = report.open_loop {
        row(
            "scheduled",
            open.scheduled_messages as f64,
            format!("{} unsent", grouped(open.unsent_messages as f64)),
        )?;
        row("backlog, most", open.backlog_max_messages as f64, String::new())?;
        if open.unsent_messages > 0 {
            writeln!(
                out,
                "  The schedule was not kept: unsent messages count with their wait so far."
            )?;
        }
    }
    Ok(())
}

fn print_latencies(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let columns = ["min", "p50", "p90", "p99", "p99.9", "p99.99", "max"];
    write!(out, "\n  {:<16}", "latency, µs")?;
    for column in columns {
        write!(out, "{column:>11}")?;
    }
    writeln!(out)?;
    let name = if report.stall_latency.is_some() { "other replies" } else { "replies" };
    print_latency(name, &report.latency, out)?;
    if let Some(stalled) = &report.stall_latency {
        print_latency("stalled replies", stalled, out)?;
    }
    if let Some(open) = &report.open_loop {
        print_latency("of it send delay", &open.send_delay, out)?;
    }
    print_latency("connects", &report.connect_latency, out)
}

fn print_latency(name: &str, latency: &Latency, out: &mut dyn Write) -> io::Result<()> {
    if latency.count == 0 {
        return writeln!(out, "  {name:<16}{:>11}", "none");
    }
    write!(out, "  {name:<16}")?;
    let Latency { min_us, p50_us, p90_us, p99_us, p99_9_us, p99_99_us, max_us, .. } = *latency;
    for value in [min_us, p50_us, p90_us, p99_us, p99_9_us, p99_99_us, max_us] {
        write!(out, "{value:>11.1}")?;
    }
    writeln!(out)
}

fn print_processes(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let processes = [("server CPU", &report.server), ("client CPU", &report.client)];
    if processes.iter().any(|(_, cpu)| cpu.is_some()) {
        writeln!(out)?;
    }
    for (name, cpu) in processes {
        if let Some(cpu) = cpu {
            print_cpu(name, cpu, out)?;
        }
    }
    Ok(())
}

fn print_cpu(name: &str, cpu: &Cpu, out: &mut dyn Write) -> io::Result<()> {
    let Cpu { cpu_seconds, cpu_user_seconds, cpu_system_seconds, .. } = *cpu;
    write!(
        out,
        "  {name:<16}{cpu_seconds:>8.2} s (user {cpu_user_seconds:.2}, system {cpu_system_seconds:.2})"
    )?;
    if let Some(us) = cpu.cpu_us_per_session {
        write!(out, ", {us:.2} µs per session")?;
    } else if let Some(us) = cpu.cpu_us_per_round_trip {
        write!(out, ", {us:.2} µs per round trip")?;
    }
    writeln!(out, ", {:.1} MB resident", cpu.resident_bytes as f64 / 1e6)
}

fn print_errors(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let counts: Vec<String> = report
        .errors
        .iter()
        .filter(|(kind, count)| **kind != "total" && **count > 0)
        .map(|(kind, count)| format!("{} {}", grouped(*count as f64), kind.replace('_', " ")))
        .collect();
    let text = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
    writeln!(out, "  {:<16}{text}", "errors")
}

fn plural(count: u64, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", grouped(count as f64))
}

/// A number with commas between thousands, and without digits after the point.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (value, text) in
            [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (1234567.4, "1,234,567")]
        {
            assert_eq!(grouped(value), text);
        }
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(plural(1, "thread"), "1 thread");
        assert_eq!(plural(10_000, "connection"), "10,000 connections");
    }
}
