//! How far a comparison is, on stderr: a bar on a terminal, a line per scenario elsewhere; and how
//! long it will take.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far the comparison is.
pub(crate) struct Progress {
    bar: ProgressBar,
    prints_lines: bool,
    began: Instant,
    slices: usize,
    /// How long a slice takes by the plan.
    slice: Duration,
}

impl Progress {
    /// For so many slices in all, each of which is to take so long; shows nothing if it is not
    /// wanted.
    pub(crate) fn new(is_wanted: bool, slices: usize, slice: Duration) -> Self {
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
        let prints_lines = is_wanted && !is_terminal;
        Self { bar, prints_lines, began: Instant::now(), slices, slice }
    }

    /// A scenario begins.
    pub(crate) fn scenario(&self, line: &str) {
        let done = u32::try_from(self.bar.position()).unwrap_or(u32::MAX);
        let left = u32::try_from(self.slices).unwrap_or(u32::MAX).saturating_sub(done);
        // By the plan until the first scenario has shown how long slices take.
        let slice = if done == 0 { self.slice } else { self.began.elapsed() / done };
        self.note(&format!("{line}, {} to go", about(slice * left)));
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

/// A time as people say it: rounded up.
fn about(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds <= 90.0 => format!("about {:.0} s", seconds.ceil()),
        seconds => format!("about {:.0} min", (seconds / 60.0).ceil()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_a_word() {
        assert_eq!(about(Duration::from_millis(1)), "about 1 s");
        assert_eq!(about(Duration::from_secs(90)), "about 90 s");
        assert_eq!(about(Duration::from_secs(91)), "about 2 min");
    }
}
