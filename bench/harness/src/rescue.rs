//! How long a message waits for a thread whose handler is blocked.
//!
//! A message blocks its handler for 10 ms; a while later, 0.3 to 5 ms, one
//! message goes to another connection, and its latency is measured. Then
//! everything comes back before the next probe. With two threads half of the
//! connections belong to the one that is blocked, and they are the slower half:
//! so the 75th percentile is their median, and the 25th that of the others.

use std::io;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::catalog::{Server, Skipped};
use crate::engine::{histogram, percentile_us};
use crate::rounds::{self, Contestant};
use crate::stall::Kind;
use crate::stats::Random;

/// When the second message is sent, at the earliest and at the latest: well
/// within the 10 ms for which the first one blocks.
const EARLIEST_US: usize = 300;
const LATEST_US: usize = 5_000;
/// The longest pause between two probes, so that they keep no step with
/// anything.
const PAUSE_US: usize = 2_000;

/// What to measure.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Connections to each server.
    pub connections: usize,
    /// Probes in a slice.
    pub probes: usize,
    /// Threads of each server.
    pub workers: usize,
    /// Slices per server.
    pub rounds: usize,
    /// CPUs the servers run on.
    pub server_cpus: Vec<usize>,
    /// Orders the slices, and chooses connections and moments.
    pub seed: u64,
}

/// One server's rounds.
pub type Results = rounds::Results<Measured>;

/// One slice: percentiles of the probes' latency.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// The median of the connections of the thread that is free.
    pub p25_us: f64,
    /// The median of the connections of the thread that is blocked.
    pub p75_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

/// Runs all rounds.
pub fn run(servers: &[Server], plan: &Plan, skipped: &mut Vec<Skipped>) -> Vec<Results> {
    let wanted =
        servers.iter().map(|server| (server.name.as_str(), server.words(plan.workers, true)));
    let mut contestants =
        Contestant::start_all(wanted, &plan.server_cpus, plan.connections, skipped);
    rounds::interleave(
        &mut contestants,
        plan.rounds,
        plan.seed,
        "rescue",
        skipped,
        |contestant, seed| slice(contestant, plan, seed),
    )
}

fn slice(contestant: &mut Contestant, plan: &Plan, seed: u64) -> io::Result<Measured> {
    let mut random = Random::new(seed);
    let mut latencies = histogram();
    for _ in 0..plan.probes {
        thread::sleep(microseconds(random.below(PAUSE_US)));
        let after = microseconds(EARLIEST_US + random.below(LATEST_US - EARLIEST_US));
        contestant.load.probe(&mut random, Kind::Block.mark(), after, &mut latencies)?;
    }
    Ok(Measured {
        p25_us: percentile_us(&latencies, 25.0),
        p75_us: percentile_us(&latencies, 75.0),
        p90_us: percentile_us(&latencies, 90.0),
        p99_us: percentile_us(&latencies, 99.0),
    })
}

fn microseconds(count: usize) -> Duration {
    Duration::from_micros(count as u64)
}
