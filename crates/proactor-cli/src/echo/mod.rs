//! `proactor echo`: the same echo server in four models, of which the completion port is one.
//!
//! The first line on stdout begins with `listening on ADDRESS`, which `proactor load` reads when it
//! starts a server of its own. SIGTERM, Ctrl-C and, if it is told so, the end of standard input end
//! the server; it then prints its totals.
//!
//! | module | what it holds |
//! |---|---|
//! | `args`, `listen`, `limits` | the command line, the listening socket, the descriptor limit |
//! | `flow`, `kit` | the course of a connection, and what is kept for reuse: of the port and of `overlapped` |
//! | `stop`, `totals`, `stall` | the way out, the counts, stalls and work on purpose |
//! | `pause` | the pause of the models without a port when descriptors run out |
//!
//! The completion port (`--model port`):
//!
//! | | |
//! |---|---|
//! | `server` | the workers' loop: what each packet means; the drain |
//! | `accept` | outstanding accepts, limits, the pause when descriptors run out |
//! | `session`, `order` | one connection: its packets in order |
//! | `table` | sessions by number |
//! | `status`, `meter` | what those who watch are told, and what is measured for them |
//!
//! The other models have a folder each: `threads`, `readiness`, `overlapped`. What they have in
//! common with the port is what a client sees, and the command line.

mod accept;
mod args;
mod flow;
mod kit;
mod limits;
mod listen;
mod meter;
mod order;
mod overlapped;
mod pause;
mod readiness;
mod server;
mod session;
mod stall;
mod status;
mod stop;
mod table;
mod threads;
mod totals;

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proactor::{BackendChoice, Builder, CompletionPort, DequeueError};

use crate::failure::Failure;
use crate::interrupt::Watch;
use listen::Listening;
use server::{KEY_DRAIN, KEY_LISTENER, Server, Settings};
use status::StatusEndpoint;
use totals::{Tally, Totals, Work};

pub(crate) use args::{EchoArgs, Model};

/// Serves until told to stop.
pub(crate) fn run(args: &EchoArgs) -> Result<(), Failure> {
    args.check()?;
    limits::raise_descriptor_limit();
    let listening = Listening::at(&args.listen, args.backlog)?;
    match args.model {
        Model::Threads => threads::run(args, listening),
        Model::Readiness => readiness::run(args, listening),
        Model::Overlapped => overlapped::run(args, listening),
        Model::Port => run_port(args, listening),
    }
}

fn run_port(args: &EchoArgs, listening: Listening) -> Result<(), Failure> {
    let port = open_port(args)?;
    let workers = args.workers(port.concurrency());
    let status = args.status.as_ref().map(StatusEndpoint::open).transpose()?;
    let served_at = listening.address().to_owned();
    let announcement = announcement(&served_at, workers, &port, args, status.as_ref());

    // The path of a Unix socket is removed when `_path` goes, at the end.
    let (listener, _path) =
        listening.associate(&port, KEY_LISTENER).map_err(|error| cannot_start(&error))?;
    let server = Arc::new(Server::new(port, listener, settings(args)));
    let watch = watch(args, {
        let server = Arc::clone(&server);
        // Refused only where the port is closed: then the server has ended already.
        move || drop(server.port().post(KEY_DRAIN, 0, None))
    })?;
    let threads = start_workers(&server, workers)?;
    if let Some(status) = &status {
        status.start(&server, &served_at).map_err(|error| cannot_start(&error))?;
    }
    server.start().map_err(|error| cannot_start(&error))?;
    print_line(&announcement);

    let tally = join_workers(threads)?;
    let work = Work::on_port(&tally, server.port().counters());
    print_totals(args, &Totals::new(args.model, &tally, server.session_counts(), work));
    drop(watch);
    Ok(())
}

/// A builder on the backend that was asked for.
fn builder(args: &EchoArgs) -> Result<Builder, Failure> {
    let builder = CompletionPort::builder();
    match args.backend()? {
        None => Ok(builder),
        Some(choice) => {
            if choice == BackendChoice::IoUring {
                require_io_uring()?;
            }
            Ok(builder.backend(choice))
        }
    }
}

fn open_port(args: &EchoArgs) -> Result<CompletionPort, Failure> {
    let concurrency = args.concurrency.unwrap_or(0);
    builder(args)?.concurrency(concurrency).build().map_err(|error| {
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
        accepts: args.accepts(),
        maximum_sessions: args.max_sessions,
        drain_timeout: args.drain_timeout,
        handler: args.handler(),
        quiet: args.quiet,
        is_metered: args.status.is_some(),
    }
}

fn announcement(
    address: &str,
    workers: usize,
    port: &CompletionPort,
    args: &EchoArgs,
    status: Option<&StatusEndpoint>,
) -> String {
    let mut parts = format!("{workers} workers, concurrency {}", port.concurrency());
    if let Some(status) = status {
        parts.push_str(&format!(", status on {}", status.address()));
    }
    first_line(address, &parts, &port.backend().to_string(), args)
}

/// Exactly one line, whatever the parts of it contain.
fn first_line(address: &str, threads: &str, service: &str, args: &EchoArgs) -> String {
    let stalls = if args.stall_marks { ", stall marks obeyed" } else { "" };
    let work = match args.work_us {
        0 => String::new(),
        work_us => format!(", {work_us} µs of work for each message"),
    };
    let line = format!("listening on {address} | {threads}{stalls}{work} | {service}");
    line.replace(['\r', '\n'], " ")
}

/// Calls `request_drain` when the server is to end: from another thread, perhaps more than once.
fn watch(
    args: &EchoArgs,
    request_drain: impl Fn() + Send + Sync + 'static,
) -> Result<Watch, Failure> {
    stop::watch(request_drain, args.until_stdin_ends).map_err(|error| cannot_start(&error))
}

/// What is said when a drain begins.
fn announce_drain(open_sessions: usize, drain_timeout: Duration) {
    eprintln!(
        "proactor: draining {open_sessions} sessions, for at most {drain_timeout:?}; another \
         signal ends at once"
    );
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

fn print_totals(args: &EchoArgs, totals: &Totals) {
    if args.json {
        print_line(&totals.to_json());
    } else if !args.quiet {
        print_line(&totals.to_string());
    }
}

/// Prints a line at once, also into a pipe. A reader that went away is no failure of the server.
fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
