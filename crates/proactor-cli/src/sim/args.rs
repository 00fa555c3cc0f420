//! The options of `proactor sim`.

use clap::Args;
use proactor::sim::scenario::{Plan, SCENARIOS};

use crate::failure::Failure;

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// How many seeds to try [default: 1000, or as many as fit where --minutes is given].
    #[arg(long, value_name = "N")]
    pub(crate) seeds: Option<u64>,
    /// Stop after so many minutes.
    #[arg(long, value_name = "M")]
    pub(crate) minutes: Option<f64>,
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) first: u64,
    /// Only this scenario: chat, streams, queue, devices or service.
    #[arg(long, value_name = "NAME")]
    pub(crate) scenario: Option<String>,
    /// Run this seed alone and print all that happens.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "minutes", "first"])]
    pub(crate) replay: Option<u64>,
    /// Threads that dequeue, instead of what the seed says.
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Clients or streams, instead of what the seed says.
    #[arg(long, value_name = "N")]
    clients: Option<usize>,
    /// Messages of each, instead of what the seed says.
    #[arg(long, value_name = "N")]
    messages: Option<usize>,
    /// Faults to leave out, such as reset,short_read.
    #[arg(long, value_name = "FAULTS", value_delimiter = ',')]
    without: Vec<String>,
    /// Do not look for a smaller scenario that fails too.
    #[arg(long)]
    pub(crate) no_shrink: bool,
    /// No progress bar.
    #[arg(long)]
    pub(crate) no_progress: bool,
}

impl SimArgs {
    /// The plan of a seed, as the options change it.
    pub(crate) fn plan(&self, seed: u64) -> Result<Plan, Failure> {
        let Some(mut plan) = Plan::new(seed, self.scenario.as_deref()) else {
            let names: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
            return Err(Failure::usage(format!("--scenario takes {}", names.join(", "))));
        };
        plan.workers = self.workers.unwrap_or(plan.workers).max(1);
        plan.clients = self.clients.unwrap_or(plan.clients).max(1);
        plan.messages = self.messages.unwrap_or(plan.messages).max(1);
        for name in &self.without {
            match plan.faults.by_name(name) {
                Some(probability) => *probability = 0.0,
                None => {
                    return Err(Failure::usage(format!("--without: no fault is called {name}")));
                }
            }
        }
        Ok(plan)
    }
}
