//! What stalled handlers cost the others: an open loop in which a few
//! messages are marked, so that their handler blocks or spins for 10 ms.
//!
//! A message never waits behind a marked one of its own socket, so what is
//! reported, the latency of unmarked messages, is that of *other* sockets.

use std::io;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::catalog::{Server, Skipped};
use crate::engine::percentile_us;
use crate::open_loop::{Marked, Slice};
use crate::rounds::{self, Contestant};
use crate::sys;

/// The server beside which a spinner runs, and whose own handlers do not stall.
const FLOOR: &str = "floor";

/// What a marked message does to its handler.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It sleeps: the thread is off the CPU.
    Block,
    /// It computes: the thread holds the CPU.
    Spin,
}

impl Kind {
    /// The first byte of such a message.
    pub fn mark(self) -> u8 {
        match self {
            Self::Block => 0xF1,
            Self::Spin => 0xF2,
        }
    }
}

/// What to measure.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Block or spin.
    pub kind: Kind,
    /// Connections to each server.
    pub connections: usize,
    /// Messages per second, to one server at a time.
    pub rate: f64,
    /// Share of marked messages.
    pub marked_share: f64,
    /// Threads of each server.
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

/// One slice. Latencies are those of unmarked messages.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Unmarked messages.
    pub messages: u64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
    /// CPU time of the server per message.
    pub cpu_us_per_message: f64,
}

/// Runs all rounds. `spinner` is the binary whose bursts make the floor of
/// [`Kind::Spin`].
pub fn run(
    servers: &[Server],
    plan: &Plan,
    spinner: &Path,
    skipped: &mut Vec<Skipped>,
) -> Vec<Results> {
    let mut contestants = contestants(servers, plan, skipped);
    rounds::interleave(
        &mut contestants,
        plan.rounds,
        plan.seed,
        "stall",
        skipped,
        |contestant, seed| slice(contestant, plan, seed, spinner),
    )
}

fn contestants(servers: &[Server], plan: &Plan, skipped: &mut Vec<Skipped>) -> Vec<Contestant> {
    let mut wanted: Vec<(&str, Vec<String>)> = servers
        .iter()
        .map(|server| (server.name.as_str(), server.words(plan.workers, true)))
        .collect();
    let ring = servers.iter().find(|server| server.name == "raw-uring");
    if let (Kind::Spin, Some(ring)) = (plan.kind, ring) {
        wanted.push((FLOOR, ring.words(1, false)));
    }
    Contestant::start_all(wanted, &plan.server_cpus, plan.connections, skipped)
}

fn slice(
    contestant: &mut Contestant,
    plan: &Plan,
    seed: u64,
    spinner: &Path,
) -> io::Result<Measured> {
    let _spinner = if contestant.name == FLOOR {
        Some(Spinner::start(spinner, plan.rate * plan.marked_share)?)
    } else {
        None
    };
    let cpu_begin = contestant.process.cpu_time()?;
    // Beside spinning handlers the engine would wait for a CPU itself.
    if !sys::run_first() {
        eprintln!("  no real-time priority: the latencies include the load engine's own delay");
    }
    let latencies = contestant.load.run(&Slice {
        rate: plan.rate,
        duration: Duration::from_millis(plan.slice_ms),
        marked: Some(Marked { share: plan.marked_share, byte: plan.kind.mark() }),
        seed,
    });
    sys::run_as_others();
    let latencies = latencies?;
    let cpu = contestant.process.cpu_time()? - cpu_begin;
    Ok(Measured {
        messages: latencies.len(),
        p50_ms: percentile_us(&latencies, 50.0) / 1e3,
        p99_ms: percentile_us(&latencies, 99.0) / 1e3,
        p999_ms: percentile_us(&latencies, 99.9) / 1e3,
        cpu_us_per_message: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
    })
}

/// The unrelated spinner, for as long as the value lives.
struct Spinner(Child);

impl Spinner {
    fn start(binary: &Path, rate: f64) -> io::Result<Self> {
        let rate = rate.to_string();
        Ok(Self(Command::new(binary).args(["--rate", &rate]).spawn()?))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
