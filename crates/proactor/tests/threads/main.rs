//! Threads at the port: release order, the concurrency limit, blocked and spinning handlers
//! (rules 35 to 42).
//!
//! The test's own thread never dequeues, so it is no thread of the port. A [`Worker`] between two
//! pieces of work spins, so to the port it is in a handler and runs.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod blocking;
mod limit;
mod other_sockets;
mod release;
mod rest;

use std::sync::Arc;
use std::time::Duration;

use common::worker::{Answer, Worker};
use common::*;
use proactor::{CompletionPort, DequeueError};

type Taken = Result<usize, DequeueError>;

/// Dequeues on a worker; the answer is the packet's key.
fn take(worker: &Worker, port: &Arc<CompletionPort>, timeout: Duration) -> Answer<Taken> {
    let port = Arc::clone(port);
    worker.start(move || port.dequeue(Some(timeout)).map(|completion| completion.key()))
}

/// The same, and returns once the worker waits.
fn park(worker: &Worker, port: &Arc<CompletionPort>) -> Answer<Taken> {
    let port = Arc::clone(port);
    worker.park(move || port.dequeue(Some(HANG)).map(|completion| completion.key()))
}

fn post(port: &CompletionPort, key: usize) {
    port.post(key, 0, None).unwrap();
}

fn expect(condition: bool, what: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what.to_owned()) }
}

/// Closes the port at the end of a scenario, also where that ends early: declared behind the
/// workers, it goes before them, so that none of them waits any more when it is joined.
struct CloseAtEnd<'a>(&'a CompletionPort);

impl Drop for CloseAtEnd<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Two workers: one waits at the port, and the other has taken packet 0 since and runs.
struct OneRuns<'a> {
    // The first field goes first.
    _close: CloseAtEnd<'a>,
    idle: Answer<Taken>,
    running: Worker,
    _waiting: Worker,
}

impl<'a> OneRuns<'a> {
    fn at(port: &'a Arc<CompletionPort>) -> Result<Self, String> {
        let (waiting, running) = (Worker::spawn(), Worker::spawn());
        let close = CloseAtEnd(port);
        let idle = park(&waiting, port);
        let first = park(&running, port);
        post(port, 0);
        expect(first.wait() == Ok(0), "the last to wait is released")?;
        Ok(Self { _close: close, idle, running, _waiting: waiting })
    }
}

/// Runs a scenario in which no handler blocks, on a port with this limit.
///
/// A handler that spins keeps its slot. But where the machine is so busy that the spinning thread
/// gets no processor for a while, the port may take it for blocked, and rightly so for all that can
/// be seen from outside. Such a run proves nothing and is repeated.
#[track_caller]
fn with_running_handlers(
    ports: &Ports,
    concurrency: usize,
    scenario: impl Fn(&Arc<CompletionPort>) -> Result<(), String>,
) {
    let mut last = String::new();
    for _ in 0..20 {
        let port = ports.shared(concurrency);
        let outcome = scenario(&port);
        let taken_for_blocked = port.counters().blocked_threads;
        port.close();
        match outcome {
            Ok(()) => return,
            Err(what) if taken_for_blocked == 0 => panic!("{what}"),
            Err(what) => last = what,
        }
        println!("repeated: a running thread was taken for blocked ({last})");
    }
    panic!("20 runs in which running threads were taken for blocked; last: {last}");
}
