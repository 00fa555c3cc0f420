//! How far a comparison is, on stderr: a bar on a terminal, a line per scenario elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far the comparison is.
pub(crate) struct Progress {
    bar: ProgressBar,
    prints_lines: bool,
}

impl Progress {
    /// For so many slices in all; shows nothing if it is not wanted.
    pub(crate) fn new(is_wanted: bool, slices: usize) -> Self {
        let is_terminal = stderr().is_terminal();
        let target = if is_wanted && is_terminal {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(slices as u64), target);
        let style =
            ProgressStyle::with_template("{bar:24} {pos}/{len} slices, {eta} to go  {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, prints_lines: is_wanted && !is_terminal }
    }

    /// A scenario begins.
    pub(crate) fn scenario(&self, line: &str) {
        self.note(line);
    }

    /// A slice begins.
    pub(crate) fn slice(&self, scenario: &str, server: &str, round: usize, rounds: usize) {
        self.bar.set_message(format!("{scenario}: {server}, round {round} of {rounds}"));
    }

    /// So many slices are done, or will not be.
    pub(crate) fn done(&self, slices: usize) {
        self.bar.inc(slices as u64);
    }

    /// Says something that has to be seen, above the bar.
    pub(crate) fn note(&self, line: &str) {
        if self.prints_lines {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Removes the bar.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
