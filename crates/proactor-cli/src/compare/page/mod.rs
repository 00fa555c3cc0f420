//! The comparison as one HTML page that needs nothing else: no script, no network.

mod plot;
mod tables;

use std::borrow::Cow;
use std::fmt::Write;

use self::plot::{Bar, Dots};
use super::figures::{Metric, Slice, digits};
use super::result::{Comparison, ScenarioResult};
use super::table;

const STYLE: &str = include_str!("style.css");

/// The page.
pub(crate) fn render(comparison: &Comparison) -> String {
    let mut html = String::with_capacity(64 << 10);
    let _ = write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Server models compared</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    );
    head(&mut html, comparison);
    tables::glance(&mut html, comparison);
    for scenario in &comparison.scenarios {
        section(&mut html, comparison, scenario);
    }
    method(&mut html, comparison);
    html.push_str("</body>\n</html>\n");
    html
}

fn head(html: &mut String, comparison: &Comparison) {
    let machine = &comparison.machine;
    let processor = machine.processor.as_deref().unwrap_or("processors");
    let backend = machine.backend.as_deref().map(|name| format!("; the port is on {name}"));
    let _ = write!(
        html,
        "<header>\n<h1>Server models compared</h1>\n\
         <p>The same echo service in each model, under the same load, on one machine.</p>\n\
         <p class=\"muted\">{} × {}; {}{}. {} rounds of {} s for each server. \
         Proactor {}; <code>{}</code></p>\n",
        machine.processors,
        escape(processor),
        escape(&machine.system),
        backend.unwrap_or_default(),
        comparison.rounds,
        digits(comparison.slice_seconds),
        comparison.version,
        escape(&comparison.command),
    );
    if comparison.interrupted {
        notice(html, "Ended early: what is missing was not measured.");
    }
    if let Some(line) = table::noise(comparison) {
        notice(html, &format!("{}.", capitalised(&line)));
    }
    for scenario in &comparison.scenarios {
        for server in &scenario.servers {
            if let Some(reason) = &server.failure {
                let name = scenario.name.name();
                notice(html, &format!("{} failed in {name}: {reason}", server.name));
            }
        }
    }
    html.push_str("</header>\n");
}

fn notice(html: &mut String, text: &str) {
    let _ = writeln!(html, "<p class=\"notice\">{}</p>", escape(text));
}

fn section(html: &mut String, comparison: &Comparison, scenario: &ScenarioResult) {
    let name = scenario.name.name();
    let _ = write!(
        html,
        "<section id=\"{name}\">\n<h2>{name}</h2>\n<p>{}</p>\n<p class=\"muted\">{}</p>\n",
        escape(&scenario.what),
        escape(scenario.why)
    );
    if scenario.fixed_rate {
        let _ = writeln!(html, "<p class=\"muted\">{}</p>", keeping_up(scenario));
    }
    html.push_str("<div class=\"plots\">\n");
    // With a fixed rate all that keep up have the same throughput: it is in the table.
    if !scenario.fixed_rate {
        bars(html, comparison, scenario, Metric::Throughput);
    }
    latencies(html, comparison, scenario);
    for metric in [Metric::Cpu, Metric::Switches, Metric::Memory] {
        bars(html, comparison, scenario, metric);
    }
    html.push_str("</div>\n");
    tables::figures(html, scenario);
    html.push_str("</section>\n");
}

fn bars(html: &mut String, comparison: &Comparison, scenario: &ScenarioResult, metric: Metric) {
    let best = scenario.best(metric);
    let rows: Vec<Bar<'_>> = scenario
        .servers
        .iter()
        .filter_map(|server| {
            let spread = server.figure(metric)?.spread;
            Some(Bar {
                name: &server.name,
                place: comparison.place(&server.name),
                spread,
                shown: metric.show(spread.median),
                is_best: best.contains(&server.name.as_str()),
            })
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(
        html,
        "<figure><figcaption><h3>{}</h3><p>{} {}</p></figcaption>{}</figure>",
        capitalised(metric.title()),
        explanation(metric, scenario),
        finding(metric, scenario),
        plot::bars(&rows, metric == Metric::Memory, |value| metric.show(value)),
    );
}

fn latencies(html: &mut String, comparison: &Comparison, scenario: &ScenarioResult) {
    let best = scenario.best(Metric::P99);
    let rows: Vec<Dots<'_>> = scenario
        .servers
        .iter()
        .filter_map(|server| {
            let of = |metric| server.figure(metric).map(|figure| figure.spread);
            of(Metric::P50)?;
            Some(Dots {
                name: &server.name,
                place: comparison.place(&server.name),
                p50: of(Metric::P50),
                p99: of(Metric::P99),
                p99_9: of(Metric::P999),
                is_best: best.contains(&server.name.as_str()),
            })
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(
        html,
        "<figure><figcaption><h3>Latency</h3><p>From sending a request to the last byte of its \
         reply, on a logarithmic axis; further left is better. {}</p>\
         <p>{}</p></figcaption>{}</figure>",
        finding(Metric::P99, scenario),
        plot::latency_key(),
        plot::latencies(&rows),
    );
}

/// What a plot of this metric shows.
fn explanation(metric: Metric, scenario: &ScenarioResult) -> &'static str {
    match metric {
        Metric::Throughput if scenario.is_churn => {
            "Sessions that were opened, answered and closed per second; more is better."
        }
        Metric::Throughput => "Requests answered per second; more is better.",
        Metric::Cpu => {
            "Processor time of the server's process for each request, user and kernel; less is \
             better."
        }
        Metric::Switches => {
            "How often a thread of the server was taken off a processor, or waited, for each \
             request; fewer is better."
        }
        Metric::Memory => {
            "What the server's own memory grew by for each open session; less is better. The \
             kernel's part (socket buffers, thread stacks in the kernel) is not in it."
        }
        Metric::P50 | Metric::P99 | Metric::P999 => "",
    }
}

/// Which servers fell behind a fixed rate.
fn keeping_up(scenario: &ScenarioResult) -> String {
    let behind: Vec<String> = scenario
        .servers
        .iter()
        .filter_map(|server| {
            let sum = |of: fn(&Slice) -> u64| server.slices.iter().map(of).sum::<u64>() as f64;
            let (sent, unsent) = (sum(|slice| slice.requests), sum(|slice| slice.unsent_requests));
            let share = unsent / (sent + unsent).max(1.0);
            (share > 0.01).then(|| format!("{} left {:.0} %", escape(&server.name), share * 100.0))
        })
        .collect();
    if behind.is_empty() {
        "Requests come at a fixed rate, and every server kept up with it.".into()
    } else {
        format!(
            "Requests come at a fixed rate. Not everybody kept up: {} unsent for want of a session \
             that was free, and their wait is in the latency.",
            behind.join(", ")
        )
    }
}

/// Who is best, and by how much, in a sentence.
fn finding(metric: Metric, scenario: &ScenarioResult) -> String {
    let best = scenario.best(metric);
    let place = if metric == Metric::P99 { " at p99" } else { "" };
    let all: Vec<(&str, f64)> = scenario
        .servers
        .iter()
        .filter_map(|server| Some((server.name.as_str(), server.figure(metric)?.spread.median)))
        .collect();
    if all.len() < 2 {
        return String::new();
    }
    if best.is_empty() {
        return format!("No winner{place}: the ranges of all overlap with the best.");
    }
    let text = match &best[..] {
        [only] => {
            let sign = if metric.more_is_better() { -1.0 } else { 1.0 };
            let value = all.iter().find(|(name, _)| name == only).map_or(0.0, |(_, value)| *value);
            let second = all
                .iter()
                .filter(|(name, _)| name != only)
                .min_by(|(_, a), (_, b)| (sign * a).total_cmp(&(sign * b)));
            match second {
                Some((name, other)) if value > 0.0 && *other > 0.0 => {
                    let factor = if sign < 0.0 { value / other } else { other / value };
                    format!("Best{place}: {only}, by a factor of {} before {name}.", digits(factor))
                }
                _ => format!("Best{place}: {only}."),
            }
        }
        [names @ .., last] => {
            format!("Best{place}: {} and {last}; their ranges overlap.", names.join(", "))
        }
        [] => String::new(),
    };
    escape(&text).into_owned()
}

fn method(html: &mut String, comparison: &Comparison) {
    let _ = write!(
        html,
        "<section id=\"method\">\n<h2>How it was measured</h2>\n\
         <p>Each server is a process of its own. In a scenario all of them are up at once and are \
         loaded in turn, for {} s after {} s of warm-up; a round is one such slice of every \
         server, in an order that changes from round to round. What slows the machine down for a \
         while so slows all of them down.</p>\n\
         <p>Bars and marks are medians over {} rounds, and the thin lines reach from the worst \
         round to the best. Where the lines of two servers overlap, do not take their order for a \
         fact; both count as best then. Ratios in the tables are taken within a round.</p>\n\
         <p>The load runs on the same machine and takes its part of the processors: throughput is \
         what both together reach, and processor time per request is the steadier figure. Every \
         byte that came back was compared with what was sent.</p>\n",
        digits(comparison.slice_seconds),
        digits(comparison.warmup_seconds),
        comparison.rounds,
    );
    if let Some(share) = comparison.foreign_cpu_share {
        let _ = writeln!(
            html,
            "<p>Beside server and load, {:.0} % of the machine's processor time went to something \
             else.</p>",
            share * 100.0
        );
    }
    html.push_str("</section>\n");
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

/// The text, with what HTML takes for markup replaced.
fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(letter),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::result::tests::comparison;

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let page = render(&comparison());
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        for forbidden in ["<script", "http:", "https:", "@import", "url(", "src=", "NaN", "inf%"] {
            assert!(!page.contains(forbidden), "{forbidden} in the page");
        }
        for tag in ["section", "figure", "div", "table", "svg", "p", "span", "details"] {
            let count = |text: String| page.matches(&text).count();
            let opened = count(format!("<{tag}>")) + count(format!("<{tag} "));
            assert_eq!(opened, count(format!("</{tag}>")), "<{tag}>");
        }
    }

    #[test]
    fn what_others_wrote_is_escaped() {
        let page = render(&comparison());
        assert!(page.contains("received a wrong byte &lt;&amp;&gt;"), "{page}");
        assert!(!page.contains("<&>"));
    }

    #[test]
    fn findings_name_the_best() {
        let comparison = comparison();
        let scenario = &comparison.scenarios[0];
        let text = finding(Metric::Throughput, scenario);
        assert_eq!(text, "Best: port, by a factor of 2.22 before readiness.");
        assert_eq!(
            finding(Metric::Cpu, scenario),
            "No winner: the ranges of all overlap with the best."
        );
    }
}
