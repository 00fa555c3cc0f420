//! What a server costs while it has little to do: an open loop of few messages
//! per second, so that its threads sleep between them.
//!
//! Under load threads find their next message without sleeping, and what it
//! costs to sleep, to wake and to look after each other is not seen. Here it
//! is nearly all there is: processor time, context switches and system calls
//! for each message.

use std::io;
use std::time::Duration;

use serde::Serialize;

use crate::catalog::{Server, Skipped};
use crate::engine::percentile_us;
use crate::open_loop::Slice;
use crate::rounds::{self, Contestant};
use crate::stats::Spread;
use crate::syscalls::Tracepoint;

/// What to measure.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Connections to each server.
    pub connections: usize,
    /// Messages per second, to one server at a time.
    pub rate: f64,
    /// Threads of each server whose command asks for a number.
    pub workers: usize,
    /// Slices per server.
    pub rounds: usize,
    /// Length of a slice.
    pub slice_ms: u64,
    /// CPUs the servers run on.
    pub server_cpus: Vec<usize>,
    /// Orders the slices, and fixes each round's arrivals.
    pub seed: u64,
}

/// One server's rounds.
pub type Results = rounds::Results<Measured>;

/// One slice.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Messages that came back.
    pub messages: u64,
    /// CPU time of the server per message.
    pub cpu_us_per_message: f64,
    /// Context switches of its threads per message.
    pub switches_per_message: f64,
    /// System calls of its threads per message, where the kernel may be asked.
    pub calls_per_message: Option<f64>,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

impl Results {
    /// System calls of each round, summed up.
    pub fn calls(&self) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|slice| slice.calls_per_message))
    }
}

/// Runs all rounds.
pub fn run(servers: &[Server], plan: &Plan, skipped: &mut Vec<Skipped>) -> Vec<Results> {
    let wanted =
        servers.iter().map(|server| (server.name.as_str(), server.words(plan.workers, false)));
    let mut contestants =
        Contestant::start_all(wanted, &plan.server_cpus, plan.connections, skipped);
    rounds::interleave(
        &mut contestants,
        plan.rounds,
        plan.seed,
        "light",
        skipped,
        |contestant, seed| slice(contestant, plan, seed),
    )
}

fn slice(contestant: &mut Contestant, plan: &Plan, seed: u64) -> io::Result<Measured> {
    let asked = Slice {
        rate: plan.rate,
        duration: Duration::from_millis(plan.slice_ms),
        marked: None,
        seed,
    };
    let process = &contestant.process;
    let (cpu_begin, switches_begin) = (process.cpu_time()?, process.context_switches()?);
    let latencies = contestant.load.run(&asked)?;
    let cpu = process.cpu_time()? - cpu_begin;
    let switches = process.context_switches()?.saturating_sub(switches_begin);
    // Counting calls costs time of its own, so they have a slice to themselves, a quarter as long.
    let counted = Slice { duration: asked.duration / 4, ..asked };
    let calls_per_message = match Tracepoint::attach(process) {
        Ok(tracepoint) => {
            let messages = contestant.load.run(&counted)?.len();
            Some(tracepoint.read()? as f64 / messages.max(1) as f64)
        }
        Err(_) => None,
    };
    let messages = latencies.len().max(1) as f64;
    Ok(Measured {
        messages: latencies.len(),
        cpu_us_per_message: cpu.as_secs_f64() * 1e6 / messages,
        switches_per_message: switches as f64 / messages,
        calls_per_message,
        p50_us: percentile_us(&latencies, 50.0),
        p99_us: percentile_us(&latencies, 99.0),
    })
}
