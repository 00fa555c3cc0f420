//! `proactor load`: loads an echo server, checks every byte, and reports.
//!
//! [`args`] says what to do, [`engine`] does it on one event loop per thread
//! ([`opening`] and [`transfer`] are its parts), and [`report`] says how it
//! went. [`connection`] and [`pattern`] know what must come back,
//! [`schedule`] when to send in an open loop.

#![forbid(unsafe_code)]

pub(crate) mod address;
pub(crate) mod args;
pub(crate) mod conduct;
mod connection;
mod control;
mod engine;
mod opening;
pub(crate) mod own_server;
mod pattern;
pub(crate) mod process;
mod progress;
pub(crate) mod report;
mod schedule;
mod slot;
pub(crate) mod stream;
mod table;
pub(crate) mod tally;
mod transfer;
mod wakeup;

use std::io::{self, Write};

pub(crate) use self::args::LoadArgs;
use self::args::Plan;
use self::conduct::Outcome;
use self::own_server::OwnServer;
use self::report::Report;
use self::stream::Connector;
use crate::failure::Failure;

/// Connections to one address above which the ephemeral ports of one source could run out.
pub(crate) const ONE_SOURCE_LIMIT: usize = 20_000;
/// Descriptors that are not connections: the poll, the timer, stdio, the server's output.
const OTHER_DESCRIPTORS: u64 = 64;

/// Runs the load and prints the report. The failure is the one line for stderr.
pub(crate) fn run(args: &LoadArgs) -> Result<(), Failure> {
    let plan = args.plan()?;
    let target = args.target()?;
    check_descriptor_limit(&plan)?;
    let (_watch, interrupted) = conduct::catch_interrupts()?;
    let (endpoint, server) = match target {
        Some(target) => (target.settle(plan.connect_timeout), None),
        None => {
            let more_args = args.server_args.as_deref().unwrap_or("");
            let server = OwnServer::start(args.server_program.as_deref(), more_args)?;
            (server.endpoint().clone(), Some(server))
        }
    };
    let server_pid = args.server_pid.or(server.as_ref().map(OwnServer::pid));
    let spread_sources =
        matches!(plan.pace, args::Pace::Churn { .. }) || plan.connections > ONE_SOURCE_LIMIT;
    let connector = Connector::new(endpoint, plan.reset, spread_sources);
    let show_progress = !args.quiet && !args.json;
    let outcome =
        conduct::conduct(plan, connector, server_pid, show_progress, &interrupted, &mut |_| {})?;
    let stopped = server.map(OwnServer::stop).transpose();
    let (server_output, server_failure) = match stopped {
        Ok(output) => (output, None),
        Err(failure) => (None, Some(failure)),
    };
    finish(args, &outcome, server_output, server_failure)
}

/// Prints the report, and decides whether all went well.
fn finish(
    args: &LoadArgs,
    outcome: &Outcome,
    server_output: Option<Vec<String>>,
    server_failure: Option<Failure>,
) -> Result<(), Failure> {
    let report = Report::new(outcome, server_output);
    let printed = if args.json {
        print_json(&report)
    } else if args.quiet || outcome.tally.connects == 0 {
        // Where nothing was reached a table of zeros would only hide the line that says so.
        Ok(())
    } else {
        table::print(&report, &mut io::stdout().lock())
    };
    if let Some(line) = &report.failure {
        return Err(Failure::new(line.clone()));
    }
    if let Some(failure) = server_failure {
        return Err(failure);
    }
    printed.map_err(|error| Failure::new(format!("cannot print the report: {error}")))
}

fn print_json(report: &Report) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, report)?;
    writeln!(stdout)?;
    stdout.flush()
}

/// Makes sure that there are descriptors for all connections.
pub(crate) fn check_descriptor_limit(plan: &Plan) -> Result<(), Failure> {
    let needed = plan.connections as u64 + plan.threads as u64 * 2 + OTHER_DESCRIPTORS;
    match process::raise_descriptor_limit() {
        Some(limit) if limit < needed => Err(Failure::usage(format!(
            "{} connections need {needed} descriptors, and this process may open {limit}; see `ulimit -Hn`",
            plan.connections
        ))),
        _ => Ok(()),
    }
}
