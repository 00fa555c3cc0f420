//! The progress bar on stderr, while a load runs.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::control::Control;

const STEPS: u64 = 1000;

/// Shows how far the load is. Draws nothing if stderr is no terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    connections: usize,
    is_churn: bool,
    last: Option<(u64, u64)>,
    rate_per_second: f64,
}

impl Progress {
    /// A bar for a load of so many connections; hidden if nobody would see it.
    pub(crate) fn new(is_wanted: bool, connections: usize, is_churn: bool) -> Self {
        let is_seen = is_wanted && stderr().is_terminal();
        let target = if is_seen {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(STEPS), target);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, connections, is_churn, last: None, rate_per_second: 0.0 }
    }

    /// Draws the present state.
    pub(crate) fn show(&mut self, control: &Control) {
        if self.bar.is_hidden() {
            return;
        }
        let now_ns = control.now_ns();
        let connected = control.connected.load(Ordering::Relaxed);
        let Some(start_ns) = control.start_ns() else {
            self.bar.set_message(format!("connecting {connected} of {}", self.connections));
            return;
        };
        let (counter, unit) = if self.is_churn {
            (&control.sessions, "sessions/s")
        } else {
            (&control.round_trips, "round trips/s")
        };
        let count = counter.load(Ordering::Relaxed);
        match self.last {
            // Half a second is long enough for a steady figure.
            Some((last_ns, last_count)) if now_ns - last_ns >= 500_000_000 => {
                let seconds = Duration::from_nanos(now_ns - last_ns).as_secs_f64();
                self.rate_per_second = count.saturating_sub(last_count) as f64 / seconds;
                self.last = Some((now_ns, count));
            }
            Some(_) => {}
            None => self.last = Some((now_ns, count)),
        }
        let span_ns = control.stop_ns().saturating_sub(start_ns).max(1);
        let done = now_ns.saturating_sub(start_ns).min(span_ns) as f64 / span_ns as f64;
        self.bar.set_position((done * STEPS as f64) as u64);
        let errors = control.errors.load(Ordering::Relaxed);
        self.bar.set_message(format!("{:.0} {unit}, {errors} errors", self.rate_per_second));
    }

    /// Removes the bar.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
