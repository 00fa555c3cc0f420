//! `proactor sim`: random scenarios in simulated worlds, many at once.

mod args;
mod hunt;

use std::io::Write;

use proactor::sim::Report;
use proactor::sim::scenario::Plan;

pub(crate) use args::SimArgs;

use crate::failure::Failure;

/// Runs of a shrinking step.
const SHRINK_TRIES: usize = 400;
/// Lines of the trace that a failure shows.
const SHOWN_LINES: usize = 30;

/// Replays one seed, or looks for one that fails.
pub(crate) fn run(args: &SimArgs) -> Result<(), Failure> {
    #[cfg(proactor_planted_bugs)]
    plant()?;
    match args.replay {
        Some(seed) => replay(&args.plan(seed)?),
        None => hunt(args),
    }
}

/// Switches on the bug that the environment names: to see what a failure looks like.
#[cfg(proactor_planted_bugs)]
fn plant() -> Result<(), Failure> {
    use proactor::planted::{Bug, plant};

    let Ok(name) = std::env::var("PROACTOR_PLANTED_BUG") else { return Ok(()) };
    let bug = Bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
    let bug = bug.ok_or_else(|| Failure::usage(format!("no planted bug is called {name}")))?;
    plant(Some(*bug));
    Ok(())
}

fn hunt(args: &SimArgs) -> Result<(), Failure> {
    args.plan(0)?;
    // A scenario that panics is a finding; it is reported with its seed, once.
    std::panic::set_hook(Box::new(|_| {}));
    let found = hunt::hunt(args);
    println!("{}", found.totals);
    let Some((plan, _)) = found.failure else { return Ok(()) };
    println!("seed {} fails: {}", plan.seed, first_violation(&plan));
    let smallest = if args.no_shrink { plan } else { plan.shrink(SHRINK_TRIES) };
    if let Some(report) = try_run(&smallest, false) {
        let skipped = report.trace.len().saturating_sub(SHOWN_LINES);
        println!("... {} lines before", report.trace_lines.saturating_sub(SHOWN_LINES as u64));
        report.trace.iter().skip(skipped).for_each(|line| println!("{line}"));
        report.violations.iter().for_each(|violation| println!("VIOLATION: {violation}"));
    }
    Err(Failure::new(format!("to see it again: proactor sim --replay {smallest}")))
}

fn replay(plan: &Plan) -> Result<(), Failure> {
    let Some(report) = try_run(plan, true) else {
        return Err(Failure::new(format!("seed {}: a panic", plan.seed)));
    };
    let mut out = std::io::stdout().lock();
    for line in &report.trace {
        // A reader that went away, as in `... | head`, ends it.
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    for violation in &report.violations {
        let _ = writeln!(out, "VIOLATION: {violation}");
    }
    let _ = writeln!(
        out,
        "trace {:016x}: {} lines, {} operations, {} packets, {} bytes, {:.3} s of the world's time",
        report.trace_hash,
        report.trace_lines,
        report.operations,
        report.packets,
        report.bytes,
        report.time.as_secs_f64()
    );
    match report.violations.len() {
        0 => Ok(()),
        count => Err(Failure::new(format!("seed {}: {count} violations", plan.seed))),
    }
}

/// Runs a plan; `None` where it panics.
fn try_run(plan: &Plan, full: bool) -> Option<Report> {
    std::panic::catch_unwind(|| plan.run(full)).ok()
}

fn first_violation(plan: &Plan) -> String {
    match try_run(plan, false) {
        Some(report) => report.violations.first().cloned().unwrap_or_default(),
        None => "a panic".to_owned(),
    }
}
