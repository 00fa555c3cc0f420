//! Trying seeds, on every processor at once.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proactor::sim::scenario::Plan;

use super::args::SimArgs;
use super::try_run;

/// Seeds where nothing else is said.
const SEEDS: u64 = 1000;

/// What the runs did.
#[derive(Default)]
pub(super) struct Totals {
    seeds: AtomicU64,
    operations: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    world_ms: AtomicU64,
}

pub(super) struct Found {
    pub(super) totals: Totals,
    /// The lowest seed that failed of those that were tried, and in how many.
    pub(super) failure: Option<(Plan, u64)>,
}

impl Totals {
    fn add(&self, report: &proactor::sim::Report) {
        self.seeds.fetch_add(1, Ordering::Relaxed);
        self.operations.fetch_add(report.operations, Ordering::Relaxed);
        self.packets.fetch_add(report.packets, Ordering::Relaxed);
        self.bytes.fetch_add(report.bytes, Ordering::Relaxed);
        self.world_ms.fetch_add(report.time.as_millis() as u64, Ordering::Relaxed);
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            formatter,
            "{} seeds: {} operations, {} packets, {} MiB, {} h of the worlds' time",
            get(&self.seeds),
            get(&self.operations),
            get(&self.packets),
            get(&self.bytes) >> 20,
            get(&self.world_ms) / 3_600_000
        )
    }
}

fn bar(args: &SimArgs, seeds: u64) -> ProgressBar {
    let is_seen = !args.no_progress && stderr().is_terminal();
    let target =
        if is_seen { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
    let length = (seeds != u64::MAX).then_some(seeds);
    let bar = ProgressBar::with_draw_target(length, target);
    let template = match length {
        Some(_) => "{bar:30} {pos}/{len} seeds  {per_sec}  {msg}",
        None => "{spinner} {pos} seeds  {elapsed}  {per_sec}  {msg}",
    };
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar
}

/// Tries seeds until one fails, all are tried or the time is up.
pub(super) fn hunt(args: &SimArgs) -> Found {
    let without_bound = if args.minutes.is_some() { u64::MAX } else { SEEDS };
    let seeds = args.seeds.unwrap_or(without_bound);
    let minutes = args.minutes.and_then(|minutes| Duration::try_from_secs_f64(minutes * 60.0).ok());
    let deadline = minutes.and_then(|time| Instant::now().checked_add(time));
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (totals, failure) = (Totals::default(), Mutex::new(None::<(Plan, u64)>));
    let bar = bar(args, seeds);
    let search = || {
        while !stop.load(Ordering::Relaxed)
            && deadline.is_none_or(|deadline| Instant::now() < deadline)
        {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= seeds {
                return;
            }
            // The options were looked at before.
            let Ok(plan) = args.plan(args.first.wrapping_add(index)) else { return };
            let report = try_run(&plan, false);
            if let Some(report) = &report {
                totals.add(report);
                bar.set_message(format!(
                    "{} operations",
                    totals.operations.load(Ordering::Relaxed)
                ));
            }
            bar.inc(1);
            if report.is_none_or(|report| !report.violations.is_empty()) {
                stop.store(true, Ordering::Relaxed);
                let mut lowest = failure.lock().unwrap_or_else(|poison| poison.into_inner());
                let count = lowest.map_or(1, |(_, count)| count + 1);
                let kept = lowest.map(|(kept, _)| kept).filter(|kept| kept.seed < plan.seed);
                *lowest = Some((kept.unwrap_or(plan), count));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(search);
        }
    });
    bar.finish_and_clear();
    let failure = failure.into_inner().unwrap_or_else(|poison| poison.into_inner());
    Found { totals, failure }
}
