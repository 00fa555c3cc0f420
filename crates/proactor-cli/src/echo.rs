//! `proactor echo`: an echo server on the completion port.
//!
//! The first line on stdout is `listening on ADDRESS`, which `proactor load`
//! reads when it starts a server of its own. SIGTERM and Ctrl-C end the
//! server; it then prints its totals.

use clap::{Args, ValueEnum};

use crate::failure::Failure;

/// What `proactor echo` is told.
#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    /// Where to listen: HOST:PORT, [V6]:PORT or unix:PATH. Port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000")]
    pub(crate) listen: String,

    /// How the kernel is asked.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,

    /// Threads that dequeue completions. [default: one per CPU]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,

    /// Threads that may run handlers at once; those above it are spares. [default: one per CPU]
    #[arg(long, value_name = "N")]
    pub(crate) concurrency: Option<usize>,

    /// Refuse connections above this many.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) max_connections: usize,

    /// Let a message that starts with 0xF1 block its handler for 10 ms, and with 0xF2 spin for 10 ms.
    #[arg(long)]
    pub(crate) stall_marks: bool,

    /// Print the totals as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print nothing but the address.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Which of the library's backends serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// The best one that works here.
    Auto,
    /// io_uring.
    IoUring,
    /// epoll.
    Epoll,
}

/// Serves until told to stop.
pub(crate) fn run(args: &EchoArgs) -> Result<(), Failure> {
    Err(Failure::new(format!(
        "cannot listen on {}: the echo server is not in this build",
        args.listen
    )))
}
