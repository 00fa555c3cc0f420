//! `--model overlapped`: one thread, operations with completion routines, alertable waits.
//!
//! Everything that the server does, it does in routines, one at a time: so there are no locks, and
//! a session's state is plain data. What it costs is that one handler that blocks or computes holds
//! up every session, and that other processors are not used.
//!
//! # How it accepts
//! Windows has no accept with a completion routine (`AcceptEx` ends in an event or at a port), so
//! programs of this model *alternate*: a non-blocking accept, a short alertable wait, and again.
//! Whoever connects waits for the end of the wait, and an idle server wakes a thousand times a
//! second. The library has an accept with a routine, so by default the server waits for everything
//! in one place; `--alternate-accept` does it as the books have it, for comparison.
//!
//! | module | what it holds |
//! |---|---|
//! | `server` | the routines: what is done when something has ended; the drain |
//! | `accept` | accepts in flight or alternating, limits, the pause |
//! | `session` | one connection |

mod accept;
mod server;
mod session;

use std::time::Duration;

use proactor::Error;
use proactor::overlapped::{ApcQueue, Event, Wake};

use super::args::EchoArgs;
use super::listen::Listening;
use super::totals::{Totals, Work};
use super::{builder, cannot_start, first_line, print_line, print_totals, watch};
use crate::failure::Failure;
use accept::Source;
use server::{Server, Settings};

/// How long an alternating server waits alertably before it looks for connections again.
const ALTERNATION: Duration = Duration::from_millis(1);

/// Serves until told to stop.
pub(super) fn run(args: &EchoArgs, listening: Listening) -> Result<(), Failure> {
    let queue = ApcQueue::with_builder(builder(args)?).map_err(|error| {
        Failure::new(format!(
            "cannot open a queue of routines: {error}; 'proactor doctor' says more"
        ))
    })?;
    let accepting = match args.alternate_accept {
        true => "1 thread that alternates accepts and alertable waits",
        false => "1 thread in alertable waits",
    };
    let line = first_line(listening.address(), accepting, &queue.backend().to_string(), args);
    let is_unix = listening.is_unix();
    // The path of a Unix socket is removed when `_path` goes, at the end.
    let (socket, _path) = listening.into_parts();
    let source = Source::new(&queue, socket, is_unix, args.alternate_accept)
        .map_err(|error| cannot_start(&error))?;
    let settings = Settings {
        accepts: args.accepts(),
        maximum_sessions: args.max_sessions.unwrap_or(usize::MAX),
        drain_timeout: args.drain_timeout,
        handler: args.handler(),
        quiet: args.quiet,
    };
    let server = Server::new(settings, source);
    let signal = queue.event();
    let watch = {
        let signal = signal.clone();
        watch(args, move || signal.set())?
    };
    server.start().map_err(|error| cannot_start(&error))?;
    print_line(&line);

    serve(&queue, &server, &signal)
        .map_err(|error| Failure::new(format!("the server cannot wait: {error}")))?;
    let (tally, sessions) = server.counts();
    let counters = queue.counters();
    let work = Work::Overlapped {
        routines: tally.completions,
        wait_calls: counters.wait_calls,
        pool_bytes: counters.pool_bytes,
    };
    print_totals(args, &Totals::new(args.model, &tally, sessions, work));
    drop(watch);
    Ok(())
}

/// Waits alertably until the server has ended: the routines are the server.
fn serve(queue: &ApcQueue, server: &Server, signal: &Event) -> Result<(), Error> {
    while !server.is_over() {
        let timeout = server.accept_by_turns(queue).then_some(ALTERNATION);
        if queue.wait(signal, timeout)? == Wake::Signalled {
            server.begin_drain(queue);
        }
    }
    Ok(())
}
