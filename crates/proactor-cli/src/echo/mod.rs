//! `proactor echo`: an echo server on the completion port.
//!
//! The first line on stdout begins with `listening on ADDRESS`, which `proactor load` reads when it
//! starts a server of its own. SIGTERM, Ctrl-C and, if it is told so, the end of standard input end
//! the server; it then prints its totals.
//!
//! | module | what it holds |
//! |---|---|
//! | `args`, `listen`, `limits` | the command line, the listening socket, the descriptor limit |
//! | `server` | the workers' loop: what each packet means; the drain |
//! | `accept` | outstanding accepts, limits, the pause when descriptors run out |
//! | `session`, `order` | one connection, and its packets in order |
//! | `table`, `kit` | sessions by number; what a worker keeps for reuse |
//! | `stop`, `totals`, `stall` | the way out, the counts, stalls on purpose |

mod accept;
mod args;
mod kit;
mod limits;
mod listen;
mod order;
mod server;
mod session;
mod stall;
mod stop;
mod table;
mod totals;

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use proactor::{BackendChoice, CompletionPort, DequeueError};

use crate::failure::Failure;
use listen::Listening;
use server::{KEY_LISTENER, Server, Settings};
use totals::{Tally, Totals};

pub(crate) use args::EchoArgs;

/// Serves until told to stop.
pub(crate) fn run(args: &EchoArgs) -> Result<(), Failure> {
    limits::raise_descriptor_limit();
    let listening = Listening::at(&args.listen, args.backlog)?;
    let port = open_port(args)?;
    let workers = args.workers(port.concurrency());
    let announcement = announcement(listening.address(), workers, &port, args);

    // The path of a Unix socket is removed when `_path` goes, at the end.
    let (listener, _path) =
        listening.associate(&port, KEY_LISTENER).map_err(|error| cannot_start(&error))?;
    let server = Arc::new(Server::new(port, listener, settings(args)));
    let watch =
        stop::watch(&server, args.until_stdin_ends).map_err(|error| cannot_start(&error))?;
    let threads = start_workers(&server, workers)?;
    server.start().map_err(|error| cannot_start(&error))?;
    print_line(&announcement);

    let tally = join_workers(threads)?;
    let totals = Totals::new(&tally, server.session_counts(), server.port().counters());
    if args.json {
        print_line(&totals.to_json());
    } else if !args.quiet {
        print_line(&totals.to_string());
    }
    drop(watch);
    Ok(())
}

fn open_port(args: &EchoArgs) -> Result<CompletionPort, Failure> {
    let mut builder = CompletionPort::builder().concurrency(args.concurrency);
    if let Some(choice) = args.backend()? {
        if choice == BackendChoice::IoUring {
            require_io_uring()?;
        }
        builder = builder.backend(choice);
    }
    builder.build().map_err(|error| {
        Failure::new(format!("cannot open a completion port: {error}; 'proactor doctor' says more"))
    })
}

/// Fails with the reason where io_uring is not to be had. The error of a forced backend is short;
/// what an automatic choice would do instead comes with the call that was refused, and why.
fn require_io_uring() -> Result<(), Failure> {
    let reason = match proactor::probe(BackendChoice::Automatic) {
        Ok(description) if description.name() == "io_uring" => return Ok(()),
        Ok(description) => description.degraded.unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    let reason = reason.trim_end_matches("; using epoll");
    Err(Failure::new(format!("backend io_uring is not to be had here: {reason}")))
}

fn cannot_start(error: &dyn fmt::Display) -> Failure {
    Failure::new(format!("cannot start the server: {error}"))
}

fn settings(args: &EchoArgs) -> Settings {
    Settings {
        accepts: args.accepts,
        maximum_sessions: args.max_sessions,
        drain_timeout: args.drain_timeout,
        stall_marks: args.stall_marks,
        quiet: args.quiet,
    }
}

/// Exactly one line, whatever the parts of it contain.
fn announcement(address: &str, workers: usize, port: &CompletionPort, args: &EchoArgs) -> String {
    let stalls = if args.stall_marks { ", stall marks obeyed" } else { "" };
    let line = format!(
        "listening on {address} | {workers} workers, concurrency {}{stalls} | {}",
        port.concurrency(),
        port.backend()
    );
    line.replace(['\r', '\n'], " ")
}

type Worker = JoinHandle<Result<Tally, DequeueError>>;

/// Starts the workers, and waits until each belongs to the port, or cannot. Waiting takes
/// descriptors, and once clients are accepted there may be none left.
fn start_workers(server: &Arc<Server>, workers: usize) -> Result<Vec<Worker>, Failure> {
    let (sender, entered) = mpsc::channel();
    let start = |index| {
        let server = Arc::clone(server);
        let sender = sender.clone();
        thread::Builder::new().name(format!("echo-{index}")).spawn(move || {
            let result = server.serve(move || {
                // Received below; the sender goes with this closure.
                let _ = sender.send(());
            });
            if let Err(error) = &result {
                tracing::warn!("worker {index} cannot serve: {error}");
            }
            result
        })
    };
    let threads: io::Result<Vec<Worker>> = (0..workers).map(start).collect();
    let threads = threads.map_err(|error| cannot_start(&error))?;
    drop(sender);
    // It ends when the last worker has let go of its sender.
    match entered.iter().count() {
        0 => Err(join_workers(threads).err().unwrap_or_else(|| cannot_start(&"no worker serves"))),
        _ => Ok(threads),
    }
}

/// Waits for the workers. A server that has lost some of them goes on with the rest.
fn join_workers(threads: Vec<Worker>) -> Result<Tally, Failure> {
    let mut sum = Tally::default();
    let mut serving = 0;
    let mut last_error = None;
    for thread in threads {
        match thread.join() {
            Ok(Ok(tally)) => {
                sum.add(&tally);
                serving += 1;
            }
            Ok(Err(error)) => last_error = Some(error),
            Err(_) => return Err(Failure::new("a worker panicked")),
        }
    }
    match last_error {
        Some(error) if serving == 0 => Err(Failure::new(format!("no worker can serve: {error}"))),
        _ => Ok(sum),
    }
}

/// Prints a line at once, also into a pipe. A reader that went away is no failure of the server.
fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
