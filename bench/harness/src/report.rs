//! The report: markdown tables and JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::catalog::Skipped;
use crate::echo::{self, Scenario};
use crate::engine::Measured;
use crate::stats::Spread;
use crate::sys::Placement;
use crate::{idle, instructions, light, rescue, stall, syscalls};

/// Everything that one run measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Kernel release.
    pub kernel: String,
    /// CPUs that the harness and the servers share.
    pub cpus: usize,
    /// Which of them are whose, except in the stall scenario.
    pub placement: Placement,
    /// The command line.
    pub command: Vec<String>,
    /// Servers left out, and failures on the way.
    pub skipped: Vec<Skipped>,
    /// What the echo comparison was asked for.
    pub echo_plan: Option<echo::Plan>,
    /// Its figures.
    pub echo: Vec<Scenario>,
    /// What the stall scenario was asked for.
    pub stall_plan: Option<stall::Plan>,
    /// Its figures.
    pub stall: Vec<stall::Results>,
    /// What the light scenario was asked for.
    pub light_plan: Option<light::Plan>,
    /// Its figures.
    pub light: Vec<light::Results>,
    /// What the rescue scenario was asked for.
    pub rescue_plan: Option<rescue::Plan>,
    /// Its figures.
    pub rescue: Vec<rescue::Results>,
    /// Instructions per round trip.
    pub instructions: Vec<instructions::Results>,
    /// Memory of idle connections.
    pub idle: Vec<idle::Results>,
    /// System calls per round trip.
    pub syscalls: Vec<syscalls::Results>,
}

impl Report {
    /// The tables; with `details` also absolute figures per scenario.
    pub fn markdown(&self, baselines: &[String], details: bool) -> String {
        let mut text = String::new();
        if details {
            let _ = writeln!(
                text,
                "Linux {}, {} CPUs, loopback, load and servers {}.\n",
                self.kernel,
                self.cpus,
                match self.placement {
                    Placement::Apart => "on CPUs of their own",
                    Placement::Free => "wherever the scheduler puts them",
                }
            );
        }
        if let Some(foreign) = self.foreign_share() {
            let _ = writeln!(
                text,
                "CPU time used by others during the echo slices: {} % of one CPU.\n",
                foreign.show(0)
            );
        }
        for baseline in baselines {
            for &size in self.echo_plan.iter().flat_map(|plan| &plan.sizes) {
                text += &self.ratios(baseline, size);
            }
        }
        if details {
            for scenario in &self.echo {
                text += &absolute(scenario);
            }
        }
        text += &self.stall_table();
        text += &self.light_table();
        text += &self.rescue_table();
        text += &self.idle_table();
        text += &self.syscalls_table();
        text += &self.instructions_table();
        for skipped in &self.skipped {
            let _ = writeln!(text, "Left out: {}: {}", skipped.name, skipped.reason);
        }
        text
    }

    /// How much CPU others used, in percent of one CPU.
    fn foreign_share(&self) -> Option<Spread> {
        let servers = self.echo.iter().flat_map(|scenario| &scenario.servers);
        let slices = servers.flat_map(|server| &server.rounds);
        Spread::of(slices.map(|slice| slice.foreign_cpu_ns as f64 / 1e7 / slice.seconds))
    }

    /// CPU per round trip as a ratio to one baseline, for one message size.
    fn ratios(&self, baseline: &str, size: usize) -> String {
        let scenarios: Vec<&Scenario> =
            self.echo.iter().filter(|scenario| scenario.message_bytes == size).collect();
        let ratio = |scenario: &Scenario, name: &str| -> Option<Spread> {
            let mut servers = scenario.servers.iter();
            servers.find(|server| server.name == name)?.ratio_to(baseline)
        };
        // Ordered by the middle scenario: 50 connections, as a rule.
        let Some(middle) = scenarios.get(scenarios.len() / 2) else {
            return String::new();
        };
        let mut names: Vec<&str> = middle.servers.iter().map(|s| s.name.as_str()).collect();
        let order = |name: &&str| ratio(middle, name).map_or(f64::INFINITY, |r| r.median);
        names.sort_by(|left, right| order(left).total_cmp(&order(right)));
        if !names.iter().any(|name| ratio(middle, name).is_some()) {
            return String::new(); // the baseline did not take part
        }
        let mut table = Table::new(&["server"]);
        for scenario in &scenarios {
            let plural = if scenario.connections == 1 { "" } else { "s" };
            table.head(format!("{} connection{plural}", scenario.connections));
        }
        for name in names {
            let mut row = vec![name.to_owned()];
            for scenario in &scenarios {
                row.push(show(ratio(scenario, name), 2));
            }
            table.row(row);
        }
        let title = format!(
            "Server CPU per round trip, {size} B messages, {baseline} = 1.00: \
             median (min..max) of {} rounds",
            self.echo_plan.as_ref().map_or(0, |plan| plan.rounds)
        );
        table.render(&title)
    }

    fn stall_table(&self) -> String {
        let Some(plan) = &self.stall_plan else {
            return String::new();
        };
        let mut table =
            Table::new(&["server", "p99, ms", "p99.9, ms", "p50, ms", "CPU per message, us"]);
        let mut order: Vec<&stall::Results> = self.stall.iter().collect();
        let p99 = |results: &stall::Results| results.spread(|slice| slice.p99_ms);
        order.sort_by(|left, right| {
            let key = |results| p99(results).map_or(f64::INFINITY, |spread| spread.median);
            key(left).total_cmp(&key(right))
        });
        for results in order {
            table.row(vec![
                results.name.clone(),
                show(p99(results), 2),
                show(results.spread(|slice| slice.p999_ms), 2),
                show(results.spread(|slice| slice.p50_ms), 3),
                show(results.spread(|slice| slice.cpu_us_per_message), 1),
            ]);
        }
        let verb = match plan.kind {
            stall::Kind::Block => "block",
            stall::Kind::Spin => "spin in",
        };
        table.render(&format!(
            "Latency of other sockets' messages while {:.0} % of messages {verb} their \
             handler for 10 ms: {} connections, {:.0} messages/s, {} threads, \
             median (min..max) of {} rounds",
            plan.marked_share * 100.0,
            plan.connections,
            plan.rate,
            plan.workers,
            plan.rounds
        ))
    }

    fn light_table(&self) -> String {
        let Some(plan) = &self.light_plan else {
            return String::new();
        };
        let mut table = Table::new(&[
            "server",
            "CPU per message, us",
            "switches per message",
            "calls per message",
            "p50, us",
            "p99, us",
        ]);
        let mut order: Vec<&light::Results> = self.light.iter().collect();
        let cpu = |results: &light::Results| results.spread(|slice| slice.cpu_us_per_message);
        order.sort_by(|left, right| {
            let key = |results| cpu(results).map_or(f64::INFINITY, |spread| spread.median);
            key(left).total_cmp(&key(right))
        });
        for results in order {
            table.row(vec![
                results.name.clone(),
                show(cpu(results), 1),
                show(results.spread(|slice| slice.switches_per_message), 2),
                show(results.calls(), 2),
                show(results.spread(|slice| slice.p50_us), 0),
                show(results.spread(|slice| slice.p99_us), 0),
            ]);
        }
        table.render(&format!(
            "Little to do: {:.0} messages/s of 64 B over {} connections, median (min..max) of {} \
             rounds",
            plan.rate, plan.connections, plan.rounds
        ))
    }

    fn rescue_table(&self) -> String {
        let Some(plan) = &self.rescue_plan else {
            return String::new();
        };
        let mut table = Table::new(&["server", "p75, us", "p25, us", "p90, us", "p99, us"]);
        let mut order: Vec<&rescue::Results> = self.rescue.iter().collect();
        let p75 = |results: &rescue::Results| results.spread(|slice| slice.p75_us);
        order.sort_by(|left, right| {
            let key = |results| p75(results).map_or(f64::INFINITY, |spread| spread.median);
            key(left).total_cmp(&key(right))
        });
        for results in order {
            table.row(vec![
                results.name.clone(),
                show(p75(results), 0),
                show(results.spread(|slice| slice.p25_us), 0),
                show(results.spread(|slice| slice.p90_us), 0),
                show(results.spread(|slice| slice.p99_us), 0),
            ]);
        }
        table.render(&format!(
            "Latency of a message while a handler has been blocked for 0.3 to 5 ms: {} \
             connections, {} threads (with two of them p75 is the median of the blocked thread's \
             connections, p25 of the other's), {} probes, median (min..max) of {} rounds",
            plan.connections, plan.workers, plan.probes, plan.rounds
        ))
    }

    fn instructions_table(&self) -> String {
        if self.instructions.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["server", "instructions per round trip"]);
        let mut order: Vec<&instructions::Results> = self.instructions.iter().collect();
        order.sort_by(|left, right| left.per_round_trip.total_cmp(&right.per_round_trip));
        for results in order {
            table.row(vec![results.name.clone(), format!("{:.0}", results.per_round_trip)]);
        }
        table.render("Instructions in user space, 50 connections, 64 B, counted by callgrind")
    }

    fn idle_table(&self) -> String {
        let Some(first) = self.idle.first() else {
            return String::new();
        };
        let mut table = Table::new(&["server", "RSS, B", "PSS, B", "before, KiB", "after, KiB"]);
        let mut order: Vec<&idle::Results> = self.idle.iter().collect();
        order.sort_by(|left, right| {
            let key = |results: &idle::Results| results.pss_bytes_per_connection;
            key(left).total_cmp(&key(right))
        });
        for results in order {
            table.row(vec![
                results.name.clone(),
                format!("{:.0}", results.rss_bytes_per_connection),
                format!("{:.0}", results.pss_bytes_per_connection),
                (results.before.rss_bytes / 1024).to_string(),
                (results.after.rss_bytes / 1024).to_string(),
            ]);
        }
        table.render(&format!(
            "Process memory per idle connection, {} connections",
            first.connections
        ))
    }

    fn syscalls_table(&self) -> String {
        if self.syscalls.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["server", "system calls per round trip", "counted by"]);
        let mut order: Vec<&syscalls::Results> = self.syscalls.iter().collect();
        order.sort_by(|left, right| left.per_round_trip.total_cmp(&right.per_round_trip));
        for results in order {
            table.row(vec![
                results.name.clone(),
                format!("{:.3}", results.per_round_trip),
                results.method.to_owned(),
            ]);
        }
        table.render("System calls of the server, 50 connections, 64 B")
    }
}

/// Absolute figures of one scenario: medians over the rounds.
fn absolute(scenario: &Scenario) -> String {
    let mut table = Table::new(&[
        "server",
        "CPU, us per round trip",
        "round trips/s",
        "MB per CPU second",
        "p50, us",
        "p99, us",
        "p99.9, us",
    ]);
    let bytes = scenario.message_bytes as f64;
    for server in &scenario.servers {
        let median = |figure: &dyn Fn(&Measured) -> f64, decimals: usize| {
            let spread = server.spread(figure);
            spread.map_or("-".into(), |s| format!("{:.decimals$}", s.median))
        };
        table.row(vec![
            server.name.clone(),
            show(server.spread(Measured::cpu_us_per_round_trip), 2),
            median(&Measured::rate, 0),
            median(&|slice| bytes / slice.cpu_us_per_round_trip(), 0),
            median(&|slice| slice.p50_us, 1),
            median(&|slice| slice.p99_us, 1),
            median(&|slice| slice.p999_us, 1),
        ]);
    }
    table.render(&format!(
        "{} connections, {} B: absolute figures, medians",
        scenario.connections, scenario.message_bytes
    ))
}

fn show(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or("-".into(), |spread| spread.show(decimals))
}

/// A markdown table whose columns are aligned, so that it reads as text too.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    fn head(&mut self, cell: String) {
        self.rows[0].push(cell);
    }

    fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }

    fn render(&self, title: &str) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = format!("**{title}**\n\n");
        for (number, row) in self.rows.iter().enumerate() {
            text += "|";
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = if column == 0 {
                    write!(text, " {cell:<width$} |")
                } else {
                    write!(text, " {cell:>width$} |")
                };
            }
            text += "\n";
            if number == 0 {
                text += "|";
                for (column, &width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width - usize::from(column > 0));
                    let colon = if column > 0 { ":" } else { "" };
                    let _ = write!(text, " {dashes}{colon} |");
                }
                text += "\n";
            }
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_markdown() {
        let mut table = Table::new(&["server", "x"]);
        table.row(vec!["a".into(), "1.00".into()]);
        let text = table.render("Title");
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines[0], "| server |    x |");
        assert_eq!(lines[1], "| ------ | ---: |");
        assert_eq!(lines[2], "| a      | 1.00 |");
    }
}
