//! The tables of the page: who wins where, and every figure.

use std::fmt::Write;

use super::escape;
use crate::compare::figures::{Metric, Spread, digits};
use crate::compare::result::{Comparison, ScenarioResult, ServerResult};

/// A row for each scenario: what decides there, for each server.
pub(super) fn glance(html: &mut String, comparison: &Comparison) {
    let names = comparison.names();
    html.push_str(
        "<section id=\"overview\">\n<h2>At a glance</h2>\n<p>For each scenario the figure that it \
         is about. Marked is the best, with whoever's range overlaps with the best; \
         nothing is marked where that is everybody.</p>\n\
         <div class=\"wide\"><table id=\"glance\">\n<thead><tr><th>scenario</th>",
    );
    for name in &names {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for scenario in &comparison.scenarios {
        let metric = scenario.headline;
        let best = scenario.best(metric);
        let _ = write!(
            html,
            "<tr><td><a href=\"#{0}\">{0}</a><span class=\"range\">{1}</span></td>",
            scenario.name.name(),
            short_title(metric)
        );
        for name in &names {
            let server = scenario.servers.iter().find(|server| server.name == *name);
            let class = if best.contains(name) { " class=\"won\"" } else { "" };
            let _ = write!(html, "<td{class}>{}</td>", glance_cell(server, metric));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n</section>\n");
}

fn glance_cell(server: Option<&ServerResult>, metric: Metric) -> String {
    match server {
        Some(server) if server.failure.is_some() => "failed".into(),
        Some(server) if server.skipped.is_some() => "skipped".into(),
        Some(server) => {
            server.figure(metric).map_or("–".into(), |figure| metric.show(figure.spread.median))
        }
        None => "–".into(),
    }
}

fn short_title(metric: Metric) -> &'static str {
    match metric {
        Metric::Throughput => "per second",
        Metric::P50 => "median latency",
        Metric::P99 => "p99 latency",
        Metric::P999 => "p99.9 latency",
        Metric::Cpu => "CPU per request",
        Metric::Switches => "switches",
        Metric::Memory => "memory per session",
    }
}

/// Every figure of a scenario, folded away.
pub(super) fn figures(html: &mut String, scenario: &ScenarioResult) {
    let _ = write!(
        html,
        "<details><summary>All figures of {}</summary>\n<div class=\"wide\"><table>\n\
         <thead><tr><th>server</th>",
        scenario.name.name()
    );
    for metric in Metric::ALL {
        let _ = write!(html, "<th>{}</th>", short_title(metric));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for server in &scenario.servers {
        row(html, scenario, server);
    }
    html.push_str("</tbody></table></div>\n");
    if let Some(reference) = &scenario.reference {
        let _ = writeln!(
            html,
            "<p class=\"muted\">Median, range over the rounds, and median ratio to {} within a \
             round.</p>",
            escape(reference)
        );
    }
    html.push_str("</details>\n");
}

fn row(html: &mut String, scenario: &ScenarioResult, server: &ServerResult) {
    let _ = write!(html, "<tr><td>{}</td>", escape(&server.name));
    if let Some(reason) = &server.skipped {
        let columns = Metric::ALL.len();
        let _ = writeln!(
            html,
            "<td colspan=\"{columns}\" class=\"reason\">skipped: {}</td></tr>",
            escape(reason)
        );
        return;
    }
    let is_reference = scenario.reference.as_deref() == Some(server.name.as_str());
    for metric in Metric::ALL {
        let Some(figure) = server.figure(metric) else {
            html.push_str("<td>–</td>");
            continue;
        };
        let Spread { median, min, max } = figure.spread;
        let _ = write!(
            html,
            "<td>{}<span class=\"range\">{} to {}</span>",
            metric.show(median),
            metric.show(min),
            metric.show(max)
        );
        if let Some(ratio) = figure.ratio.filter(|_| !is_reference) {
            let _ = write!(html, "<span class=\"range\">× {}</span>", digits(ratio.median));
        }
        html.push_str("</td>");
    }
    html.push_str("</tr>\n");
}
