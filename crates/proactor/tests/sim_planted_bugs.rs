//! The simulated world finds bugs: each planted one, within its budget of seeds.
//!
//! Compiled only with `--cfg proactor_planted_bugs` and the feature `sim`; see `docs/testing.md`.

#![cfg(all(feature = "sim", proactor_planted_bugs))]

use std::sync::{Mutex, MutexGuard, PoisonError};

use proactor::planted::{Bug, plant};
use proactor::sim::Faults;
use proactor::sim::scenario::Plan;

/// Seeds that a bug may need.
const BUDGET: u64 = 1000;
/// Seeds on which nothing is found where there is no bug.
const SOUND: u64 = 300;

/// One test after the other: a bug is on for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

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

#[test]
fn every_planted_bug_is_found() {
    let _alone = alone();
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

/// How much a plan does: its threads, clients and messages, and the faults that are on.
fn size(plan: &Plan) -> usize {
    let mut faults = plan.faults;
    let on = Faults::NAMES.iter().filter(|name| faults.by_name(name).is_some_and(|one| *one > 0.0));
    plan.workers + plan.clients + plan.messages + on.count()
}

/// A failure is shrunk to a smaller plan that fails too, whose command line leads to the same run,
/// to the byte.
#[test]
fn failures_are_shrunk_and_replayed() {
    let _alone = alone();
    let bugs = [
        Bug::FrameSecondFromStart,
        Bug::LostRoom,
        Bug::SessionTimerLeak,
        Bug::LeftoverLost,
        Bug::LowWaterLost,
    ];
    let (mut before, mut after) = (0, 0);
    for bug in bugs {
        plant(Some(bug));
        let failing = (0..BUDGET).find_map(|seed| {
            let plan = Plan::new(seed, None).unwrap();
            (!plan.run(false).violations.is_empty() && size(&plan) > 20).then_some(plan)
        });
        let plan = failing.expect("it is found within its budget");
        let smallest = plan.shrink(400);
        assert!(size(&smallest) < size(&plan), "{bug:?}: {plan} became {smallest}");
        before += size(&plan);
        after += size(&smallest);
        let (first, again) = (smallest.run(true), smallest.run(true));
        assert!(!first.violations.is_empty(), "{bug:?}: {smallest} does not fail");
        assert_eq!(first.violations, again.violations);
        assert_eq!((first.trace_hash, first.trace), (again.trace_hash, again.trace));
        println!("{bug:?}: {} became {}: {smallest}", size(&plan), size(&smallest));
    }
    plant(None);
    // A queue that has to fill and to empty needs its messages.
    assert!(after < before / 2, "{before} became {after}");
}
