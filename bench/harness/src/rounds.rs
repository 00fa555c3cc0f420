//! Servers that are all up at once, and take their slices in turn.

use std::io;

use crate::catalog::Skipped;
use crate::open_loop::OpenLoad;
use crate::process::Process;
use crate::stats::Random;

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
}

/// What each server measured in all rounds.
pub type Measurements<M> = Vec<(String, Vec<M>)>;

/// Runs all rounds, each in an order of its own; `slice` is told the number of the server and of
/// the round. A server that failed is left out from then on.
pub fn interleave<M>(
    contestants: &mut [Contestant],
    rounds: usize,
    seed: u64,
    scenario: &str,
    skipped: &mut Vec<Skipped>,
    mut slice: impl FnMut(&mut Contestant, usize) -> io::Result<M>,
) -> Measurements<M> {
    let mut results: Measurements<M> =
        contestants.iter().map(|contestant| (contestant.name.clone(), Vec::new())).collect();
    let mut random = Random::new(seed);
    let mut failed = vec![false; contestants.len()];
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        random.shuffle(&mut order);
        for index in order {
            if failed[index] {
                continue;
            }
            let contestant = &mut contestants[index];
            match slice(contestant, round) {
                Ok(measured) => results[index].1.push(measured),
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
    results.retain(|(_, measured)| measured.len() == rounds);
    results
}
