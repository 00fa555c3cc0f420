//! The simulated world finds bugs: each planted one, within its budget of seeds.
//!
//! Compiled only with `--cfg proactor_planted_bugs` and the feature `sim`; see `docs/testing.md`.

#![cfg(all(feature = "sim", proactor_planted_bugs))]

use proactor::planted::{Bug, plant};
use proactor::sim::scenario::Plan;

/// Seeds that a bug may need.
const BUDGET: u64 = 1000;
/// Seeds on which nothing is found where there is no bug.
const SOUND: u64 = 300;

/// The first seed that shows a violation or a panic, and what it says.
fn first_failure(seeds: u64) -> Option<(u64, String)> {
    for seed in 0..seeds {
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
    assert_eq!(first_failure(SOUND), None, "without a bug nothing is found");
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        plant(Some(*bug));
        match first_failure(BUDGET) {
            Some((seed, text)) => println!("| {bug:?} | {text} | {} |", seed + 1),
            None => missed.push(*bug),
        }
    }
    plant(None);
    assert!(missed.is_empty(), "not found within {BUDGET} seeds: {missed:?}");
}
