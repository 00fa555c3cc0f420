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
use crate::stats::{Random, Spread};

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
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The server.
    pub name: String,
    /// One per round.
    pub rounds: Vec<Measured>,
}

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

impl Results {
    /// A figure of each round, summed up.
    pub fn spread(&self, figure: impl Fn(&Measured) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(figure))
    }
}

/// Runs all rounds.
pub fn run(servers: &[Server], plan: &Plan, skipped: &mut Vec<Skipped>) -> Vec<Results> {
    let mut contestants = Vec::new();
    for server in servers {
        let words = server.words(plan.workers, true);
        match Contestant::start(&server.name, &words, &plan.server_cpus, plan.connections) {
            Ok(contestant) => contestants.push(contestant),
            Err(reason) => skipped.push(reason),
        }
    }
    let rounds = rounds::interleave(
        &mut contestants,
        plan.rounds,
        plan.seed,
        "rescue",
        skipped,
        |contestant, round| slice(contestant, plan, plan.seed ^ ((round as u64 + 1) << 32)),
    );
    rounds.into_iter().map(|(name, rounds)| Results { name, rounds }).collect()
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
