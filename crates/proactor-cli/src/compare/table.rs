//! The comparison as text for people.

use std::io::{self, Write};

use super::figures::{Metric, digits};
use super::result::{Comparison, ScenarioResult, ServerResult};

/// Prints the comparison.
pub(crate) fn print(comparison: &Comparison, out: &mut dyn Write) -> io::Result<()> {
    for scenario in &comparison.scenarios {
        print_scenario(scenario, out)?;
    }
    print_ending(comparison, out)
}

fn print_scenario(scenario: &ScenarioResult, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", scenario.name.name())?;
    for line in wrap(&scenario.what, 76) {
        writeln!(out, "  {line}")?;
    }
    let names = scenario.servers.iter().map(|server| server.name.len());
    let width = names.max().unwrap_or(0).max(10);
    let head = ["", "requests/s", "p50", "p99", "p99.9", "CPU/request", "sw", "memory"];
    print_row(width, head, out)?;
    for server in &scenario.servers {
        print_server(server, width, out)?;
    }
    writeln!(out)
}

/// One row; 80 columns where no name is longer than 10 letters.
fn print_row(width: usize, cells: [&str; 8], out: &mut dyn Write) -> io::Result<()> {
    let [name, rate, p50, p99, p99_9, cpu, switches, memory] = cells;
    writeln!(
        out,
        "{name:<width$} {rate:>11} {p50:>7} {p99:>13} {p99_9:>7} {cpu:>12} {switches:>5} {memory:>8}"
    )
}

fn print_server(server: &ServerResult, width: usize, out: &mut dyn Write) -> io::Result<()> {
    let name = &server.name;
    if let Some(reason) = &server.skipped {
        return writeln!(out, "{name:<width$} skipped: {reason}");
    }
    if !server.slices.is_empty() {
        let plain = |metric: Metric| match server.figure(metric) {
            None => "-".to_owned(),
            Some(figure) => metric.show(figure.spread.median),
        };
        let with_spread = |metric: Metric| match server.figure(metric) {
            None => "-".to_owned(),
            Some(figure) => {
                let shown = metric.show(figure.spread.median);
                // The heading has the unit.
                format!("{} ±{:.0}%", shown.trim_end_matches("/s"), figure.spread.percent())
            }
        };
        let cells = [
            name,
            &with_spread(Metric::Throughput),
            &plain(Metric::P50),
            &with_spread(Metric::P99),
            &plain(Metric::P999),
            &with_spread(Metric::Cpu),
            &plain(Metric::Switches),
            &plain(Metric::Memory),
        ];
        print_row(width, cells.map(AsRef::<str>::as_ref), out)?;
    }
    match &server.failure {
        Some(reason) => writeln!(out, "{name:<width$} FAILED: {reason}"),
        None => Ok(()),
    }
}

fn print_ending(comparison: &Comparison, out: &mut dyn Write) -> io::Result<()> {
    let machine = &comparison.machine;
    writeln!(
        out,
        "medians of {} rounds of {} s each, ± half of their range; sw: context \
         switches per request; {} processors, {}{}",
        comparison.rounds,
        digits(comparison.slice_seconds),
        machine.processors,
        machine.system,
        machine.backend.as_ref().map(|name| format!(", port on {name}")).unwrap_or_default(),
    )?;
    if let Some(line) = noise(comparison) {
        writeln!(out, "{line}")?;
    }
    if comparison.interrupted {
        writeln!(out, "ended early: what is missing was not measured")?;
    }
    out.flush()
}

/// A warning where the machine was not quiet.
pub(crate) fn noise(comparison: &Comparison) -> Option<String> {
    let share = comparison.foreign_cpu_share.filter(|share| *share > 0.05)?;
    Some(format!(
        "the machine was not quiet: {:.0} % of its processor time went to something else, so \
         differences may be chance",
        share * 100.0
    ))
}

/// Breaks a text into lines of at most so many characters.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::result::tests::comparison;

    #[test]
    fn the_table_says_who_was_measured_who_failed_and_who_was_skipped() {
        let mut text = Vec::new();
        print(&comparison(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("100 k ±10%"), "{text}");
        assert!(text.contains("threads    FAILED: 1 connection received a wrong byte"), "{text}");
        assert!(text.contains("mine       skipped: cannot"), "{text}");
        assert!(text.contains("not quiet: 30 %"), "{text}");
        let measured = text.lines().filter(|line| line.contains('±') && !line.contains("medians"));
        assert!(measured.clone().count() == 2, "{text}");
        assert!(measured.clone().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn words_are_kept_whole() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible", 3), ["incomprehensible"]);
    }
}
