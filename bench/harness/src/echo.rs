//! The echo comparison: all servers up at once, short slices in turn.

use std::time::Duration;

use serde::Serialize;

use crate::catalog::{Server, Skipped, short_name};
use crate::engine::{Load, Measured, Slice};
use crate::process::Process;
use crate::stats::{Random, Spread};

/// How often a slice is tried that others disturb, or in which nothing came
/// back. The quietest counts.
const ATTEMPTS: usize = 5;

/// What to compare.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Numbers of busy connections.
    pub connections: Vec<usize>,
    /// Message sizes.
    pub sizes: Vec<usize>,
    /// Rounds; each gives every server one slice of every scenario.
    pub rounds: usize,
    /// Measured time of a slice.
    pub slice_ms: u64,
    /// Unmeasured time before it.
    pub warm_up_ms: u64,
    /// Worker threads of each server.
    pub workers: usize,
    /// A slice in which others used more CPU is repeated; percent of a CPU.
    pub foreign_limit_percent: f64,
    /// CPUs the servers run on.
    pub server_cpus: Vec<usize>,
    /// Orders the slices.
    pub seed: u64,
}

/// One scenario's rounds, server by server.
#[derive(Clone, Debug, Serialize)]
pub struct Scenario {
    /// Busy connections.
    pub connections: usize,
    /// Bytes of a message.
    pub message_bytes: usize,
    /// In the order the servers were given.
    pub servers: Vec<Results>,
}

/// One server's rounds in one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The server.
    pub name: String,
    /// One per round.
    pub rounds: Vec<Measured>,
    /// CPU per round trip over that of a baseline in the same round.
    pub cpu_ratios: Vec<Ratio>,
}

/// A ratio to a baseline.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The baseline's name.
    pub baseline: String,
    /// Over the rounds.
    pub ratio: Spread,
}

impl Results {
    /// A figure of each round, summed up.
    pub fn spread(&self, figure: impl Fn(&Measured) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(figure))
    }

    /// The ratio to one baseline.
    pub fn ratio_to(&self, baseline: &str) -> Option<Spread> {
        let mut ratios = self.cpu_ratios.iter();
        Some(ratios.find(|ratio| ratio.baseline == baseline)?.ratio)
    }
}

/// A server under load.
struct Contestant {
    name: String,
    process: Process,
    load: Load,
}

/// Starts the servers and connects to them; those that fail are left out.
fn contestants(
    servers: &[Server],
    plan: &Plan,
    skipped: &mut Vec<Skipped>,
) -> Vec<Option<Contestant>> {
    let connections = plan.connections.iter().copied().max().unwrap_or(1);
    let largest = plan.sizes.iter().copied().max().unwrap_or(64);
    let mut all = Vec::new();
    for server in servers {
        let contestant = Process::start(&server.words(plan.workers, false), &plan.server_cpus)
            .and_then(|process| {
                let load = Load::connect(process.address(), connections, largest)
                    .map_err(|error| format!("connecting: {error}"))?;
                Ok(Contestant { name: server.name.clone(), process, load })
            });
        all.push(contestant.map_or_else(
            |reason| {
                eprintln!("  {} is left out: {reason}", server.name);
                let name = server.name.clone();
                skipped.push(Skipped { name, reason });
                None
            },
            Some,
        ));
    }
    all
}

/// Runs the comparison. A server that fails on the way is left out of what
/// follows, with the reason in `skipped`.
pub fn run(
    servers: &[Server],
    plan: &Plan,
    baselines: &[String],
    skipped: &mut Vec<Skipped>,
) -> Vec<Scenario> {
    let mut contestants = contestants(servers, plan, skipped);
    let mut scenarios = Vec::new();
    for &message_bytes in &plan.sizes {
        for &connections in &plan.connections {
            scenarios.push(Scenario {
                connections,
                message_bytes,
                servers: servers.iter().map(|server| empty(&server.name)).collect(),
            });
        }
    }
    let mut random = Random::new(plan.seed);
    for round in 0..plan.rounds {
        eprintln!("  round {} of {}", round + 1, plan.rounds);
        for scenario in &mut scenarios {
            let mut order: Vec<usize> = (0..contestants.len()).collect();
            random.shuffle(&mut order);
            for index in order {
                let Some(contestant) = &mut contestants[index] else {
                    continue;
                };
                match slice(contestant, scenario, plan) {
                    Ok(measured) => scenario.servers[index].rounds.push(measured),
                    Err(reason) => {
                        let name = contestant.name.clone();
                        eprintln!("  {name} failed: {reason}");
                        skipped.push(Skipped { name, reason });
                        contestants[index] = None;
                    }
                }
            }
        }
    }
    // A server that failed has not been through every round, and ratios are
    // taken round by round.
    for scenario in &mut scenarios {
        let complete = |results: &Results| results.rounds.len() == plan.rounds;
        scenario.servers.retain(complete);
        add_ratios(scenario, baselines);
    }
    scenarios
}

fn empty(name: &str) -> Results {
    Results { name: name.to_owned(), rounds: Vec::new(), cpu_ratios: Vec::new() }
}

fn slice(
    contestant: &mut Contestant,
    scenario: &Scenario,
    plan: &Plan,
) -> Result<Measured, String> {
    let slice = Slice {
        connections: scenario.connections,
        message_bytes: scenario.message_bytes,
        warm_up: Duration::from_millis(plan.warm_up_ms),
        duration: Duration::from_millis(plan.slice_ms),
    };
    let what = format!("{} connections, {} B", slice.connections, slice.message_bytes);
    let limit_ns = plan.foreign_limit_percent / 100.0 * plan.slice_ms as f64 * 1e6;
    let mut quietest: Option<Measured> = None;
    for _ in 0..ATTEMPTS {
        let result = contestant.load.run(&contestant.process, slice);
        let Some(measured) = result.map_err(|error| format!("{what}: {error}"))? else {
            continue;
        };
        let foreign_ns = measured.foreign_cpu_ns;
        if quietest.is_none_or(|best| foreign_ns < best.foreign_cpu_ns) {
            quietest = Some(measured);
        }
        if foreign_ns as f64 <= limit_ns {
            break;
        }
    }
    quietest.ok_or_else(|| format!("{what}: no round trip in {ATTEMPTS} slices"))
}

/// Divides, round by round, by each baseline that took part.
fn add_ratios(scenario: &mut Scenario, baselines: &[String]) {
    for baseline in baselines {
        let name = short_name(baseline);
        let Some(base) = scenario.servers.iter().find(|server| server.name == name) else {
            continue;
        };
        let base: Vec<f64> = cpu_of(base);
        for server in &mut scenario.servers {
            let ratios = cpu_of(server).into_iter().zip(&base).map(|(cpu, base)| cpu / base);
            if let Some(ratio) = Spread::of(ratios) {
                server.cpu_ratios.push(Ratio { baseline: name.to_owned(), ratio });
            }
        }
    }
}

fn cpu_of(results: &Results) -> Vec<f64> {
    results.rounds.iter().map(Measured::cpu_us_per_round_trip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(name: &str, cpu_ns: &[u64]) -> Results {
        let measured = |&server_cpu_ns: &u64| Measured {
            round_trips: 1,
            seconds: 1.0,
            server_cpu_ns,
            client_cpu_ns: 0,
            foreign_cpu_ns: 0,
            p50_us: 0.0,
            p99_us: 0.0,
            p999_us: 0.0,
        };
        Results { rounds: cpu_ns.iter().map(measured).collect(), ..empty(name) }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut scenario = Scenario {
            connections: 1,
            message_bytes: 64,
            servers: vec![results("a", &[100, 1000, 10]), results("b", &[50, 500, 5])],
        };
        add_ratios(&mut scenario, &["peer-a".into(), "absent".into()]);
        let ratio = scenario.servers[1].ratio_to("a").unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.5, 0.5, 0.5));
        assert!(scenario.servers[1].ratio_to("absent").is_none());
    }
}
