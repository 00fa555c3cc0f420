//! The scenarios: what the load does in each, and what the servers are told.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::args::Extent;
use super::figures::Metric;
use crate::load::args::{Pace, Plan, StallKind};

/// Computing per request in `compute`, in microseconds.
const WORK_US: u64 = 200;

/// A load that shows where one model or another is at its best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ScenarioName {
    /// Few sessions that are always busy.
    FewLong,
    /// Thousands of sessions, mostly idle.
    ManyLong,
    /// Connect, one request, close.
    Short,
    /// Large messages.
    Large,
    /// Handlers that compute.
    Compute,
    /// Handlers that block.
    Block,
    /// Few sessions that send without a pause beside many that do not.
    Uneven,
}

/// Beside the measured load: sessions that send without a pause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Background {
    pub(crate) connections: usize,
    pub(crate) depth: usize,
    pub(crate) message_bytes: u64,
}

/// One scenario, ready to be run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: ScenarioName,
    /// What the load does.
    pub(crate) what: String,
    /// What to look at, and why.
    pub(crate) why: &'static str,
    pub(crate) plan: Plan,
    pub(crate) background: Option<Background>,
    /// Arguments for a server of our own.
    pub(crate) server_args: String,
    /// Whether the server has to do more than to echo.
    pub(crate) needs: Needs,
    /// What decides here.
    pub(crate) headline: Metric,
}

/// What a server has to be able to, beside echoing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// To compute per request.
    Work,
    /// To obey stall marks.
    StallMarks,
}

impl ScenarioName {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FewLong => "few-long",
            Self::ManyLong => "many-long",
            Self::Short => "short",
            Self::Large => "large",
            Self::Compute => "compute",
            Self::Block => "block",
            Self::Uneven => "uneven",
        }
    }

    /// The scenario, at this extent.
    pub(crate) fn scenario(self, extent: Extent) -> Scenario {
        let plan = base_plan(extent);
        let plain = Scenario {
            name: self,
            what: String::new(),
            why: "",
            plan: plan.clone(),
            background: None,
            server_args: String::new(),
            needs: Needs::Nothing,
            headline: Metric::Throughput,
        };
        match self {
            Self::FewLong => Scenario {
                what: "16 sessions stay open; each sends its next 64-byte request when the \
                       reply is there."
                    .into(),
                why: "What a request costs when nothing else is in the way. With so few \
                      sessions a thread for each is no burden yet, so the models lie closest \
                      together here.",
                plan: Plan { connections: 16, ..plan },
                ..plain
            },
            Self::ManyLong => Scenario {
                what: format!(
                    "{} sessions stay open, and each sends a 64-byte request about once a \
                     second.",
                    extent.many
                ),
                why: "What an idle session costs. The load is the same for every server, so \
                      look at memory per session and CPU time, and at whether latency suffers.",
                plan: Plan {
                    connections: extent.many,
                    pace: Pace::Open { rate_per_second: extent.many as f64 },
                    ..plan
                },
                headline: Metric::Memory,
                ..plain
            },
            Self::Short => Scenario {
                what: "32 clients at a time connect, send one 64-byte request, close, and \
                       connect again."
                    .into(),
                why: "What a session costs from accept to close. Textbooks give this case to \
                      the thread per client, which can accept, answer and close with plain \
                      calls. Latency runs from the request, and so includes the wait to be \
                      accepted.",
                plan: Plan { connections: 32, pace: Pace::Churn { messages: 1 }, ..plan },
                ..plain
            },
            Self::Large => Scenario {
                what: "8 sessions send messages of 256 KiB, each when the last has come back."
                    .into(),
                why: "How well bytes are moved: what is copied, and how often a server asks \
                      the kernel for the next piece.",
                plan: Plan { connections: 8, message_bytes: 256 << 10, ..plan },
                ..plain
            },
            Self::Compute => Scenario {
                what: format!(
                    "32 sessions; the handler of each request computes for {} ms.",
                    WORK_US as f64 / 1e3
                ),
                why: "Whether handlers run on all processors: a model with one thread can use one, \
                      however many there are.",
                plan: Plan { connections: 32, ..plan },
                server_args: format!("--work-us {WORK_US}"),
                needs: Needs::Work,
                ..plain
            },
            Self::Block => Scenario {
                what: "100 sessions send 1,000 requests a second in all; 2 % of the requests \
                       block their handler for 10 ms. Latency is that of the others."
                    .into(),
                why: "What one handler that waits (for a disk, a database, a lock) does to \
                      everybody else. Whoever is served by the same thread waits with it, unless another \
                      thread takes over.",
                plan: Plan {
                    connections: 100,
                    pace: Pace::Open { rate_per_second: 1000.0 },
                    stall_fraction: 0.02,
                    ..plan
                },
                server_args: "--stall-marks".into(),
                needs: Needs::StallMarks,
                headline: Metric::P99,
                ..plain
            },
            Self::Uneven => Scenario {
                what: "4 sessions keep 16 messages of 1 KiB under way each, without a pause; \
                       beside them 100 sessions send 500 requests a second in all. Latency is \
                       that of the 100."
                    .into(),
                why: "Whether few greedy clients take the server from the many modest ones. \
                      Requests per second are those of all sessions.",
                plan: Plan {
                    connections: 100,
                    pace: Pace::Open { rate_per_second: 500.0 },
                    ..plan
                },
                background: Some(Background { connections: 4, depth: 16, message_bytes: 1024 }),
                headline: Metric::P99,
                ..plain
            },
        }
    }
}

fn base_plan(extent: Extent) -> Plan {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Plan {
        connections: 1,
        threads: (cpus / 2).clamp(1, 8),
        message_bytes: 64,
        depth: 1,
        pace: Pace::Closed,
        stall_fraction: 0.0,
        stall_kind: StallKind::Block,
        reset: false,
        warmup: extent.warmup,
        duration: extent.slice,
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
    }
}

impl Background {
    /// The plan of the load that runs beside `measured`.
    pub(crate) fn plan(self, measured: &Plan) -> Plan {
        Plan {
            connections: self.connections,
            threads: 1,
            depth: self.depth,
            message_bytes: self.message_bytes,
            pace: Pace::Closed,
            ..measured.clone()
        }
    }
}
