//! The `proactor` command: an echo server in four models, a load generator that
//! checks every byte, a comparison of servers, a live view of one, and a machine
//! check-up.

mod compare;
mod doctor;
mod echo;
mod failure;
mod interrupt;
mod load;
mod sim;
mod status;
mod watch;

use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// The environment variable that sets what is logged, and how much of it.
const LOG_VARIABLE: &str = "PROACTOR_LOG";

/// A completion port for Rust, from the command line.
#[derive(Debug, Parser)]
#[command(name = "proactor", version, about, max_term_width = 100)]
#[command(after_help = "Logging goes to stderr and follows PROACTOR_LOG, for example \
                        PROACTOR_LOG=debug or PROACTOR_LOG=proactor=trace.")]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve: send every byte back to whoever sent it.
    Echo(echo::EchoArgs),
    /// Load an echo server, check every byte, and report rates and latencies.
    Load(Box<load::LoadArgs>),
    /// Watch a server that runs with `echo --status`: what each thread does, rates, slow sessions.
    Watch(watch::WatchArgs),
    /// Compare server models, each in a process of its own, under the same load.
    Compare(Box<compare::CompareArgs>),
    /// Look at this machine and say which parts of the library work on it, and how.
    Doctor(doctor::DoctorArgs),
    /// Run random servers in simulated worlds, where every schedule and fault follows from a seed.
    Sim(sim::SimArgs),
}

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => return refuse(&error),
    };
    // What goes wrong in a simulated world is meant to.
    let is_simulated = matches!(command.action, Action::Sim(_));
    start_logging(if is_simulated { "off" } else { "warn" });
    let result = match command.action {
        Action::Echo(args) => echo::run(&args),
        Action::Load(args) => load::run(&args),
        Action::Watch(args) => watch::run(&args),
        Action::Compare(args) => compare::run(&args),
        Action::Doctor(args) => doctor::run(&args),
        Action::Sim(args) => sim::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Sends log lines to stderr, so that stdout carries nothing but results.
fn start_logging(otherwise: &str) {
    let filter =
        EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(otherwise));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

/// Prints help where help was asked for, and otherwise one line that says what is wrong.
fn refuse(error: &clap::Error) -> ExitCode {
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked_for || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // A reader that went away, as in `proactor --help | head`, is no failure of ours.
        let _ = error.print();
        return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(failure::EXIT_USAGE) };
    }
    let text = error.render().to_string();
    let line: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    // What clap lists on lines of its own reads well behind a semicolon.
    let line = line.join(" ").replace(" tip: ", "; ");
    Failure::usage(line.strip_prefix("error: ").unwrap_or(&line)).report()
}
