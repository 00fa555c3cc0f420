//! Servers that are all up at once, and take their slices in turn.

use std::io;

use serde::Serialize;

use crate::catalog::Skipped;
use crate::open_loop::OpenLoad;
use crate::process::Process;
use crate::stats::{Random, Spread};

/// One server's rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Results<M> {
    /// The server.
    pub name: String,
    /// One per round.
    pub rounds: Vec<M>,
}

impl<M> Results<M> {
    /// A figure of each round, summed up.
    pub fn spread(&self, figure: impl Fn(&M) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(figure))
    }
}

/// A server that is up, with an open loop's connections to it.
pub struct Contestant {
    /// Its name in the tables.
    pub name: String,
    /// The server.
    pub process: Process,
    /// The connections.
    pub load: OpenLoad,
}

impl Contestant {
    /// Starts a server on the given CPUs, and connects.
    pub fn start(
        name: &str,
        words: &[String],
        cpus: &[usize],
        connections: usize,
    ) -> Result<Self, Skipped> {
        let started = Process::start(words, cpus).and_then(|process| {
            let load = OpenLoad::connect(process.address(), connections)
                .map_err(|error| format!("connecting: {error}"))?;
            Ok(Self { name: name.to_owned(), process, load })
        });
        started.map_err(|reason| Skipped { name: name.to_owned(), reason })
    }

    /// Starts all of them; those that do not start are left out.
    pub fn start_all<'a>(
        wanted: impl IntoIterator<Item = (&'a str, Vec<String>)>,
        cpus: &[usize],
        connections: usize,
        skipped: &mut Vec<Skipped>,
    ) -> Vec<Self> {
        let mut contestants = Vec::new();
        for (name, words) in wanted {
            match Self::start(name, &words, cpus, connections) {
                Ok(contestant) => contestants.push(contestant),
                Err(reason) => skipped.push(reason),
            }
        }
        contestants
    }
}

/// Runs all rounds, each in an order of its own. `slice` is given a seed that is the same for all
/// servers of a round. A server that failed is left out from then on.
pub fn interleave<M>(
    contestants: &mut [Contestant],
    rounds: usize,
    seed: u64,
    scenario: &str,
    skipped: &mut Vec<Skipped>,
    mut slice: impl FnMut(&mut Contestant, u64) -> io::Result<M>,
) -> Vec<Results<M>> {
    let none =
        |contestant: &Contestant| Results { name: contestant.name.clone(), rounds: Vec::new() };
    let mut results: Vec<Results<M>> = contestants.iter().map(none).collect();
    let mut random = Random::new(seed);
    let mut failed = vec![false; contestants.len()];
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        random.shuffle(&mut order);
        let slice_seed = seed ^ ((round as u64 + 1) << 32);
        for index in order {
            if failed[index] {
                continue;
            }
            let contestant = &mut contestants[index];
            match slice(contestant, slice_seed) {
                Ok(measured) => results[index].rounds.push(measured),
                Err(error) => {
                    failed[index] = true;
                    eprintln!("  {} failed: {error}", contestant.name);
                    skipped.push(Skipped {
                        name: contestant.name.clone(),
                        reason: format!("{scenario}: {error}"),
                    });
                }
            }
        }
    }
    results.retain(|results| results.rounds.len() == rounds);
    results
}
