//! Properties that hold for any sequence of calls, looked for with random ones.
//!
//! A failing sequence is printed, reduced to a short one.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod actions;
mod cuts;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..200_usize, 2 => 0..20_000_usize, 1 => 0..200_000_usize]
}

/// Tries `test` on random values.
fn check<S: Strategy>(
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    // A lost packet is found by a wait: reducing the sequence must not take all day.
    let config =
        Config { cases, failure_persistence: None, max_shrink_time: 40_000, ..Config::default() };
    if let Err(error) = TestRunner::new(config).run(&strategy, test) {
        panic!("{error}");
    }
}
