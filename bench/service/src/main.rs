//! What the server layer costs: the two echo servers that the harness compares, and measurements
//! of its own.
//!
//! `bare` and `layer` are the same echo service, on the bare port and on the server layer; `bench/run
//! service` puts load on both in turn. The other commands measure within this process, clients
//! included, and print one line for each round.

mod bare;
mod broadcast;
mod churn;
mod layer;
mod timers;

use clap::{Parser, Subcommand};

/// An outcome of `main`.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What the server layer costs.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Echoes on the bare port, until it is ended
    Bare(Serving),
    /// Echoes on the server layer, until it is ended
    Layer(Serving),
    /// Sends one message to many sessions
    Broadcast {
        /// Sessions
        #[arg(long, default_value_t = 10_000)]
        sessions: usize,
        /// Bytes of the message
        #[arg(long, default_value_t = 1024)]
        bytes: usize,
        /// Rounds
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// The other side of `broadcast`, which starts it
    #[command(hide = true)]
    Receive {
        /// The server
        address: String,
        /// Sessions
        sessions: usize,
    },
    /// Connects, exchanges one message, and disconnects, again and again
    Churn {
        /// Sessions, one after the other and a few at once
        #[arg(long, default_value_t = 100_000)]
        sessions: usize,
    },
    /// Lets many timers expire on a job queue
    Timers {
        /// Timers
        #[arg(long, default_value_t = 200_000)]
        timers: usize,
    },
}

/// Options of a server.
#[derive(Clone, Debug, clap::Args)]
struct Serving {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Threads, and how many of them run at once
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// io_uring, epoll or auto
    #[arg(long, default_value = "auto")]
    backend: String,
}

fn main() -> Outcome {
    match Options::parse().command {
        Command::Bare(serving) => bare::serve(&serving),
        Command::Layer(serving) => layer::serve(&serving),
        Command::Broadcast { sessions, bytes, rounds } => {
            broadcast::measure(sessions, bytes, rounds)
        }
        Command::Receive { address, sessions } => broadcast::receive(&address, sessions),
        Command::Churn { sessions } => churn::measure(sessions),
        Command::Timers { timers } => timers::measure(timers),
    }
}
