//! The simulated world finds bugs: each planted one, within its budget of seeds.
//!
//! Compiled only with `--cfg proactor_planted_bugs` and the feature `sim`; see `docs/testing.md`.

#![cfg(all(feature = "sim", proactor_planted_bugs))]

use proactor::planted::{Bug, plant};
use proactor::sim::scenario::Plan;

/// Seeds that a bug may need.
const BUDGET: u64 = 2000;

/// The first seed that shows a violation or a panic, and what it says.
fn first_failure() -> Option<(u64, String)> {
    for seed in 0..BUDGET {
        let plan = Plan::new(seed, None).unwrap();
        match std::panic::catch_unwind(|| plan.run(false)) {
            Ok(report) if report.violations.is_empty() => {}
            Ok(report) => {
                return Some((seed, format!("{}: {}", plan.scenario, report.violations[0])));
            }
            Err(_) => return Some((seed, format!("{}: a panic", plan.scenario))),
        }
    }
    None
}

/// One after the other: a bug is on for the whole process.
#[test]
fn every_planted_bug_is_found() {
    plant(None);
    assert_eq!(first_failure(), None, "without a bug nothing is found");
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        plant(Some(*bug));
        match first_failure() {
            Some((seed, text)) => println!("| {bug:?} | {text} | {} |", seed + 1),
            None => missed.push(*bug),
        }
    }
    plant(None);
    assert!(missed.is_empty(), "not found within {BUDGET} seeds: {missed:?}");
}
