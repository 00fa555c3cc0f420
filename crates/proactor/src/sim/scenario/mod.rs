//! Random scenarios: small servers on a port, clients that misbehave, and the port's own parts.
//!
//! A [`Plan`] follows from a seed; `proactor sim` runs many of them.

mod chat;
mod chat_client;
mod devices;
mod frames;
mod queue;
mod service;
mod streams;

use std::fmt;

use super::{Faults, Random, Report, World};

/// What one run does. Smaller plans of the same seed are how a failure is shrunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// All else follows from it, but what is said below.
    pub seed: u64,
    /// Which of [`SCENARIOS`].
    pub scenario: &'static str,
    /// Threads that dequeue.
    pub workers: usize,
    /// Clients, or streams.
    pub clients: usize,
    /// Messages or steps of each.
    pub messages: usize,
    /// What goes wrong.
    pub faults: Faults,
}

type Run = fn(&Plan, &World, &mut Random);

/// The scenarios' names and what they do.
pub const SCENARIOS: &[(&str, &str)] = &[
    ("chat", "a server with frames, broadcasts, time limits and a drain; clients that misbehave"),
    ("streams", "connections with many operations at once, cancelled, shut down and closed"),
    ("queue", "posts, timers, cancels, time limits and blocking sections on a port"),
    ("devices", "files and datagrams"),
    ("service", "a server service and a client service, with limits, times, groups, jobs, a drain"),
];

const RUNS: &[Run] = &[chat::run, streams::run, queue::run, devices::run, service::run];

impl Plan {
    /// The plan of a seed, of any scenario or of the one that is named; `None` for another name.
    pub fn new(seed: u64, scenario: Option<&str>) -> Option<Self> {
        let mut random = Random::new(seed ^ 0x5eed);
        let drawn = SCENARIOS[random.below(SCENARIOS.len() as u64) as usize].0;
        let wanted = scenario.unwrap_or(drawn);
        let (scenario, _) = SCENARIOS.iter().find(|(name, _)| *name == wanted)?;
        Some(Self {
            seed,
            scenario,
            workers: random.between(1, 4) as usize,
            clients: random.between(1, 8) as usize,
            messages: random.between(1, 40) as usize,
            faults: Faults::mixture(&mut random),
        })
    }

    /// Runs it, with the whole trace or its end.
    ///
    /// # Panics
    /// Where the scenario itself does, or a thread of it does not come back.
    pub fn run(&self, full_trace: bool) -> Report {
        let interrupts = match self.scenario {
            "streams" => false,
            // Its locks know of the world.
            "service" => !self.seed.is_multiple_of(3),
            _ => self.seed.is_multiple_of(3),
        };
        let world = World::with_options(self.seed, self.faults, interrupts, full_trace);
        let index = SCENARIOS.iter().position(|(name, _)| *name == self.scenario);
        let run = RUNS[index.expect("a plan names a scenario")];
        let mut random = Random::new(self.seed.rotate_left(17));
        run(self, &world, &mut random);
        world.finish()
    }

    /// Plans that are a little smaller than this one.
    fn smaller(&self) -> Vec<Self> {
        let mut plans = Vec::new();
        let less = |value: usize| [1, value / 2, value.saturating_sub(1)];
        for (clients, (messages, workers)) in less(self.clients)
            .into_iter()
            .zip(less(self.messages).into_iter().zip(less(self.workers)))
        {
            plans.push(Self { clients: clients.max(1), ..*self });
            plans.push(Self { messages: messages.max(1), ..*self });
            plans.push(Self { workers: workers.max(1), ..*self });
        }
        for name in Faults::NAMES {
            let mut plan = *self;
            if let Some(probability) = plan.faults.by_name(name) {
                *probability = 0.0;
            }
            plans.push(plan);
        }
        plans.retain(|plan| plan != self);
        plans
    }

    /// Looks for a smaller plan that fails too, with at most `tries` runs.
    pub fn shrink(&self, mut tries: usize) -> Self {
        let mut smallest = *self;
        loop {
            let before = smallest;
            for plan in before.smaller() {
                if tries == 0 {
                    return smallest;
                }
                tries -= 1;
                let fails = std::panic::catch_unwind(|| !plan.run(false).violations.is_empty());
                if fails.unwrap_or(true) {
                    smallest = plan;
                    break;
                }
            }
            if smallest == before {
                return smallest;
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} --scenario {} --workers {} --clients {} --messages {}",
            self.seed, self.scenario, self.workers, self.clients, self.messages
        )?;
        let mut faults = self.faults;
        let quiet: Vec<&str> = Faults::NAMES
            .iter()
            .copied()
            .filter(|name| faults.by_name(name).is_some_and(|probability| *probability == 0.0))
            .collect();
        if quiet.is_empty() { Ok(()) } else { write!(formatter, " --without {}", quiet.join(",")) }
    }
}
