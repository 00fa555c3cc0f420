//! One slice: one server under one load, for as long as a slice lasts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::entrant::Entrant;
use super::figures::Slice;
use super::scenario::Scenario;
use super::usage::{Used, cpu_time, machine_cpu_time};
use crate::failure::Failure;
use crate::load::address::Endpoint;
use crate::load::args::{Pace, Plan};
use crate::load::conduct::{Moment, Outcome, conduct};
use crate::load::report::Report;
use crate::load::stream::Connector;
use crate::load::{ONE_SOURCE_LIMIT, check_descriptor_limit};

/// With fewer requests than this there is no 99.9th percentile to speak of.
const FEWEST_FOR_P999: u64 = 1000;
/// With fewer sessions than this, what they take is lost in what the server takes anyway.
const FEWEST_FOR_MEMORY: u64 = 500;
/// How much longer than the measured load the one beside it may last; it is ended with it.
const BACKGROUND_SLACK: Duration = Duration::from_secs(60);

/// How a slice ended.
pub(crate) enum Ending {
    /// It was measured; with all round trips, warm-up and end included.
    Measured(Slice, u64),
    /// Nothing came back in its time, and nothing went wrong: on a busy machine server or load may
    /// have had no processor for as long.
    Empty,
    /// The server did not do what it should.
    Failed(String),
    /// Ctrl-C.
    Interrupted,
}

/// What the process looked like when measuring began, or ended.
struct Look {
    at: Instant,
    used: Used,
    load_cpu: Option<Duration>,
    machine: Option<Duration>,
}

impl Look {
    fn now(pid: Option<u32>) -> Self {
        let (machine, load_cpu) = (machine_cpu_time(), cpu_time(std::process::id()));
        let at = Instant::now();
        Self { at, used: pid.map(Used::of).unwrap_or_default(), load_cpu, machine }
    }
}

/// Loads a server for one slice.
pub(crate) fn run(
    entrant: &Entrant,
    scenario: &Scenario,
    round: usize,
    interrupted: &AtomicBool,
) -> Ending {
    let (mut first, mut last) = (None, None);
    let mut observe = |moment| match moment {
        Moment::Idle => {}
        Moment::First => first = Some(Look::now(entrant.pid)),
        Moment::Last => last = Some(Look::now(entrant.pid)),
    };
    let beside = scenario.background.map(|background| background.plan(&scenario.plan));
    let end_beside = AtomicBool::new(false);
    let (outcome, beside) = thread::scope(|scope| {
        let beside = beside.map(|mut plan| {
            plan.duration += BACKGROUND_SLACK;
            let (endpoint, end) = (&entrant.endpoint, &end_beside);
            scope.spawn(move || load(plan, endpoint, end, &mut |_| {}))
        });
        let outcome = load(scenario.plan.clone(), &entrant.endpoint, interrupted, &mut observe);
        end_beside.store(true, Ordering::Relaxed);
        let beside = beside.map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::new("the load beside it panicked")))
        });
        (outcome, beside.transpose())
    });
    match (outcome, beside) {
        (Err(failure), _) | (_, Err(failure)) => Ending::Failed(failure.to_string()),
        (Ok(outcome), _) if outcome.interrupted => Ending::Interrupted,
        (Ok(outcome), Ok(beside)) => {
            let loads = || [Some(&outcome), beside.as_ref()].into_iter().flatten();
            if let Some(line) = loads().find_map(|load| load.tally.errors.worst()) {
                return Ending::Failed(line);
            }
            if Report::new(&outcome, None).failure.is_some() {
                return Ending::Empty;
            }
            let requests = loads().map(|load| load.tally.round_trips_in_all).sum();
            let (Some(first), Some(last)) = (first, last) else {
                return Ending::Failed("the load ended before it was measured".into());
            };
            let slice = figures(round, entrant, &outcome, beside.as_ref(), &first, &last);
            Ending::Measured(slice, requests)
        }
    }
}

fn load(
    plan: Plan,
    endpoint: &Endpoint,
    interrupted: &AtomicBool,
    observe: &mut dyn FnMut(Moment),
) -> Result<Outcome, Failure> {
    check_descriptor_limit(&plan)?;
    let many = matches!(plan.pace, Pace::Churn { .. }) || plan.connections > ONE_SOURCE_LIMIT;
    let connector = Connector::new(endpoint.clone(), plan.reset, many);
    conduct(plan, connector, None, false, interrupted, observe)
}

fn figures(
    round: usize,
    entrant: &Entrant,
    outcome: &Outcome,
    beside: Option<&Outcome>,
    first: &Look,
    last: &Look,
) -> Slice {
    let report = Report::new(outcome, None);
    let seconds = report.duration_seconds;
    // The load beside the measured one began a little earlier: its rate counts, not its number.
    let beside_rate = beside.map_or(0.0, |beside| Report::new(beside, None).round_trips_per_second);
    let requests = report.round_trips + (beside_rate * seconds) as u64;
    let latency = report.latency;
    let has = |fewest: u64, value: f64| (latency.count >= fewest).then_some(value);
    let cpu = last.used.cpu_since(&first.used);
    // The looks come when the main thread has a processor, which may be a little late: so an amount
    // is taken for the time between them, and requests for the slice.
    let between = last.at.duration_since(first.at).as_secs_f64().max(1e-3);
    let per_request =
        |amount: f64| (requests > 0).then(|| amount * (seconds / between) / requests as f64);
    let memory_bytes = last.used.memory_bytes;
    let sessions = outcome.tally.open_at_stop + beside.map_or(0, |load| load.tally.open_at_stop);
    let growth = memory_bytes.zip(entrant.fresh.memory_bytes);
    let growth = growth.map(|(now, fresh)| now.saturating_sub(fresh) as f64);
    let foreign =
        last.machine.zip(first.machine).zip(last.load_cpu.zip(first.load_cpu)).zip(cpu).map(
            |(((machine, machine_first), (own, own_first)), cpu)| {
                let machine = machine.saturating_sub(machine_first).as_secs_f64();
                let known = (own.saturating_sub(own_first) + cpu).as_secs_f64();
                let processors = thread::available_parallelism().map_or(1, usize::from) as f64;
                ((machine - known) / (between * processors)).clamp(0.0, 1.0)
            },
        );
    Slice {
        round,
        seconds,
        requests,
        requests_per_second: report.round_trips_per_second + beside_rate,
        p50_us: has(1, latency.p50_us),
        p99_us: has(100, latency.p99_us),
        p99_9_us: has(FEWEST_FOR_P999, latency.p99_9_us),
        server_cpu_us_per_request: cpu.and_then(|cpu| per_request(cpu.as_secs_f64() * 1e6)),
        switches_per_request: last
            .used
            .switches_since(&first.used)
            .and_then(|switches| per_request(switches as f64)),
        memory_bytes_per_session: growth
            .filter(|_| sessions >= FEWEST_FOR_MEMORY)
            .map(|g| g / sessions as f64),
        memory_bytes,
        foreign_cpu_share: foreign,
        unsent_requests: outcome.tally.unsent_messages,
        verified_bytes: report.verified_bytes
            + beside.map_or(0, |beside| beside.tally.verified_bytes),
    }
}
