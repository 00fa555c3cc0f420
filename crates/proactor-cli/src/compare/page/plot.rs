//! Plots as inline SVG.
//!
//! A plot is a list of rows, one for each server: a name, an SVG as wide as there is room, and a
//! value. Across, positions are in percent, so that a narrow page squeezes the plot and not its
//! letters; colours are those of the style sheet, for a light and a dark page.

use std::fmt::Write;

use super::escape;
use crate::compare::figures::{Spread, short_time};

/// Colours that the style sheet has.
const COLOURS: usize = 8;

/// One row of a plot of bars.
pub(super) struct Bar<'a> {
    pub(super) name: &'a str,
    /// The server's place among all of the comparison, which decides its colour.
    pub(super) place: usize,
    pub(super) spread: Spread,
    pub(super) shown: String,
    pub(super) is_best: bool,
}

/// One row of a plot of latencies, in microseconds.
pub(super) struct Dots<'a> {
    pub(super) name: &'a str,
    pub(super) place: usize,
    pub(super) p50: Option<Spread>,
    pub(super) p99: Option<Spread>,
    pub(super) p99_9: Option<Spread>,
    pub(super) is_best: bool,
}

/// Bars from 0 to the median, with a line from the worst round to the best. The values of `in_bytes`
/// have ticks at round numbers of KiB or MiB.
pub(super) fn bars(rows: &[Bar<'_>], in_bytes: bool, show: impl Fn(f64) -> String) -> String {
    let most = rows.iter().map(|row| row.spread.max).fold(0.0, f64::max);
    let unit = match most {
        most if in_bytes && most >= 1_048_576.0 => 1_048_576.0,
        most if in_bytes && most >= 1024.0 => 1024.0,
        _ => 1.0,
    };
    let ticks: Vec<f64> = linear_ticks(most / unit).into_iter().map(|tick| tick * unit).collect();
    let end = ticks.last().copied().unwrap_or(1.0).max(most);
    let across = |value: f64| 100.0 * value / end;
    let mut html = String::new();
    for row in rows {
        let Spread { median, min, max } = row.spread;
        let label = format!("{}: {}, from {} to {}", row.name, row.shown, show(min), show(max));
        open_row(&mut html, "row", row.name, row.is_best);
        let _ = write!(html, r#"<svg height="26" role="img" aria-label="{}">"#, escape(&label));
        grid(&mut html, ticks.iter().map(|tick| across(*tick)), 26);
        let _ = write!(
            html,
            r#"<rect x="0" y="5" width="{:.2}%" height="16" rx="2" fill="var(--c{})"/>"#,
            across(median),
            row.place % COLOURS
        );
        whisker(&mut html, across(min), across(max), 13);
        let best = if row.is_best { " best" } else { "" };
        let _ = write!(html, r#"</svg><span class="value{best}">{}</span></div>"#, row.shown);
    }
    axis(&mut html, "row", ticks.iter().map(|tick| (across(*tick), round_off(&show(*tick)))));
    html
}

/// The three percentiles on a logarithmic axis, each with a line from its best round to its worst.
pub(super) fn latencies(rows: &[Dots<'_>]) -> String {
    let all = || rows.iter().flat_map(|row| [row.p50, row.p99, row.p99_9]).flatten();
    let least = all().map(|spread| spread.min).fold(f64::INFINITY, f64::min).max(0.1);
    let most = all().map(|spread| spread.max).fold(least, f64::max);
    // Half a step of room at both ends, so that no mark is cut.
    let (low, high) = ((least * 0.8).log10(), (most * 1.25).log10());
    let across = |value: f64| 100.0 * (value.max(0.1).log10() - low) / (high - low);
    let ticks = logarithmic_ticks(least * 0.8, most * 1.25);
    let mut html = String::new();
    for row in rows {
        let shown = |spread: Option<Spread>| {
            spread.map_or("not measured".into(), |spread| short_time(spread.median))
        };
        let label = format!(
            "{}: median {}, p99 {}, p99.9 {}",
            row.name,
            shown(row.p50),
            shown(row.p99),
            shown(row.p99_9)
        );
        open_row(&mut html, "row latency", row.name, row.is_best);
        let _ = write!(html, r#"<svg height="52" role="img" aria-label="{}">"#, escape(&label));
        grid(&mut html, ticks.iter().map(|tick| across(*tick)), 52);
        let colour = row.place % COLOURS;
        let levels =
            [(row.p50, 11, Mark::Ring), (row.p99, 26, Mark::Dot), (row.p99_9, 41, Mark::Square)];
        for (spread, y, mark) in levels {
            let Some(spread) = spread else { continue };
            whisker(&mut html, across(spread.min), across(spread.max), y);
            let x = across(spread.median);
            mark.draw(&mut html, &format!("{x:.2}%"), y, &format!("var(--c{colour})"));
            // Behind the range; the row has room for it beside the plot.
            let _ = write!(
                html,
                r#"<text class="tick" x="{:.2}%" dx="10" y="{}">{}</text>"#,
                across(spread.max),
                y + 4,
                short_time(spread.median)
            );
        }
        html.push_str("</svg></div>");
    }
    axis(&mut html, "row latency", ticks.iter().map(|tick| (across(*tick), short_tick(*tick))));
    html
}

/// What the marks of a plot of latencies mean.
pub(super) fn latency_key() -> String {
    let mut html = String::new();
    for (mark, text) in [(Mark::Ring, "median"), (Mark::Dot, "p99"), (Mark::Square, "p99.9")] {
        html.push_str(r#"<span class="key"><svg width="14" height="14" aria-hidden="true">"#);
        mark.draw(&mut html, "7", 7, "currentColor");
        let _ = write!(html, "</svg>{text}</span>");
    }
    html
}

/// The mark of a percentile: told apart by shape, since colour tells the servers apart.
#[derive(Clone, Copy)]
enum Mark {
    Ring,
    Dot,
    Square,
}

impl Mark {
    fn draw(self, html: &mut String, x: &str, y: i32, colour: &str) {
        let _ = match self {
            Self::Ring => write!(
                html,
                r#"<circle cx="{x}" cy="{y}" r="4.5" fill="var(--card)" stroke="{colour}" stroke-width="2.5"/>"#
            ),
            Self::Dot => write!(html, r#"<circle cx="{x}" cy="{y}" r="5.5" fill="{colour}"/>"#),
            // A rectangle has no centre to give in percent: it is moved by half of its size.
            Self::Square => write!(
                html,
                r#"<rect x="{x}" y="{}" width="10" height="10" transform="translate(-5)" fill="{colour}"/>"#,
                y - 5
            ),
        };
    }
}

fn open_row(html: &mut String, class: &str, name: &str, is_best: bool) {
    let best = if is_best { " best" } else { "" };
    let name = escape(name);
    let _ = write!(html, r#"<div class="{class}"><span class="name{best}">{name}</span>"#);
}

fn grid(html: &mut String, positions: impl Iterator<Item = f64>, height: u32) {
    for x in positions {
        let _ =
            write!(html, r#"<line class="grid" x1="{x:.2}%" x2="{x:.2}%" y1="0" y2="{height}"/>"#);
    }
}

/// A line between two positions with a stroke at each end.
fn whisker(html: &mut String, from: f64, to: f64, y: i32) {
    let mut line = |x1: f64, x2: f64, y1: i32, y2: i32| {
        let _ = write!(
            html,
            r#"<line class="whisker" x1="{x1:.2}%" x2="{x2:.2}%" y1="{y1}" y2="{y2}"/>"#
        );
    };
    line(from, to, y, y);
    line(from, from, y - 4, y + 4);
    line(to, to, y - 4, y + 4);
}

fn axis(html: &mut String, class: &str, ticks: impl Iterator<Item = (f64, String)>) {
    let _ =
        write!(html, r#"<div class="{class}"><span></span><svg height="20" aria-hidden="true">"#);
    for (x, text) in ticks {
        // At the edges a centred label would leave the plot.
        let anchor = match x {
            x if x < 6.0 => "start",
            x if x > 94.0 => "end",
            _ => "middle",
        };
        let _ = write!(
            html,
            r#"<text class="tick" x="{x:.2}%" y="13" text-anchor="{anchor}">{text}</text>"#
        );
    }
    html.push_str("</svg></div>");
}

/// Two or three round values from 0 to at least `most`: more have no room on a phone.
fn linear_ticks(most: f64) -> Vec<f64> {
    if most <= 0.0 || !most.is_finite() {
        return vec![0.0, 1.0];
    }
    let rough = most / 2.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power);
    let count = (most / step).ceil().max(1.0) as usize;
    (0..=count).map(|index| index as f64 * step).collect()
}

/// Powers of ten between the two, thinned out to four; where there is less than two, also 2 and 5
/// times these.
fn logarithmic_ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = |factors: &[f64]| -> Vec<f64> {
        (low.log10().floor() as i32..=high.log10().ceil() as i32)
            .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)))
            .filter(|tick| (low..=high).contains(tick))
            .collect()
    };
    let mut ticks = powers(&[1.0]);
    if ticks.len() < 2 {
        ticks = powers(&[1.0, 2.0, 5.0]);
    }
    let step = ticks.len().div_ceil(4).max(1);
    ticks.into_iter().step_by(step).collect()
}

/// A tick's text without the zeros behind the point, and without a unit at 0.
fn round_off(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    };
    if number == "0" { number.to_owned() } else { format!("{number}{unit}") }
}

/// A round time without digits behind the point.
fn short_tick(value_us: f64) -> String {
    match value_us {
        x if x >= 1e6 => format!("{} s", x / 1e6),
        x if x >= 1e3 => format!("{} ms", (x / 1e3).round()),
        x if x >= 1.0 => format!("{} µs", x.round()),
        x => format!("{x:.1} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(linear_ticks(97_000.0), [0.0, 50_000.0, 100_000.0]);
        assert_eq!(linear_ticks(0.37), [0.0, 0.2, 0.4]);
        assert_eq!(linear_ticks(0.0), [0.0, 1.0]);
        for most in [0.001, 0.9, 1.0, 3.3, 7.7, 101.0, 2e6] {
            let ticks = linear_ticks(most);
            assert!((2..=3).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(*ticks.last().unwrap() >= most);
        }
        let times = |low, high| -> Vec<String> {
            logarithmic_ticks(low, high).into_iter().map(short_tick).collect()
        };
        assert_eq!(times(30.0, 20_000.0), ["100 µs", "1 ms", "10 ms"]);
        assert_eq!(times(150.0, 700.0), ["200 µs", "500 µs"]);
        assert!(times(0.5, 1e9).len() <= 4);
    }

    #[test]
    fn ticks_have_no_idle_digits() {
        let texts = ["0/s", "0.00 µs", "50.0 k/s", "100 k/s", "2.50 ms", "0.20", "10", "0 B"];
        let short = ["0", "0", "50 k/s", "100 k/s", "2.5 ms", "0.2", "10", "0"];
        assert_eq!(texts.map(round_off), short);
    }

    #[test]
    fn a_bar_ends_at_its_median() {
        let spread = Spread { median: 50.0, min: 40.0, max: 100.0 };
        let row = Bar { name: "a<b", place: 9, spread, shown: "50".into(), is_best: true };
        let html = bars(&[row], false, |value| value.to_string());
        assert!(html.contains(r#"width="50.00%""#), "{html}");
        assert!(html.contains("var(--c1)") && html.contains("a&lt;b"), "{html}");
    }
}
