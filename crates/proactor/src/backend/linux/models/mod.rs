//! Models: the hand-overs between threads, run by a scheduler that tries many interleavings.
//!
//! They run the port's own code, on eventfds, epoll sets and sockets that are real; what is modelled
//! is in `crate::sync` (locks, atomics, the sleep in the kernel, the clock). See there and
//! `docs/testing.md` for what a failure looks like and how to run one schedule again.
//!
//! | model | what it is about |
//! |---|---|
//! | `central` | the shared queue alone: park, push, release, give up, leave, close |
//! | `port` | a whole port: posts, blocked handlers, threads that leave, closing, timers, rescue |
//! | `stream` | sockets: the inbox, the receive window |
//!
//! Not modelled: memory orders weaker than sequential consistency (the scheduler has one memory).
//! Where two threads each store one thing and then look at the other's (`parked` and the inbox,
//! `parked` and the next deadline, the window and its pause) every access is `SeqCst` for that
//! reason; keep it so.

mod central;
mod port;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{MaxSteps, Runner};

use super::driver::Driver;
use super::engine::Engine;
use crate::backend::{Backend, BackendDescription};
use crate::error::DequeueError;
use crate::port::{Completion, Config};

/// A schedule that takes more steps than this makes no progress.
const MAXIMUM_STEPS: usize = 200_000;

fn run(scheduler: impl Scheduler + 'static, model: fn()) {
    let mut config = shuttle::Config::new();
    config.stack_size = 256 * 1024;
    config.max_steps = MaxSteps::FailAfter(MAXIMUM_STEPS);
    config.silence_warnings = true;
    if let Ok(schedule) = std::env::var("PROACTOR_MODEL_REPLAY") {
        let scheduler = ReplayScheduler::new_from_encoded(schedule.trim());
        Runner::new(scheduler, config).run(model);
        return;
    }
    Runner::new(scheduler, config).run(model);
}

/// Tries `schedules` interleavings of a model: half at random, half by priorities that change at
/// few points, which finds what a few ill-timed switches bring about.
///
/// `PROACTOR_MODEL_SCALE` multiplies the number.
fn explore(schedules: usize, model: fn()) {
    let scale = std::env::var("PROACTOR_MODEL_SCALE").ok().and_then(|scale| scale.parse().ok());
    let half = schedules * scale.unwrap_or(1) / 2;
    let seed = std::env::var("PROACTOR_MODEL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(0x5eed);
    run(RandomScheduler::new_from_seed(seed, half), model);
    run(PctScheduler::new_from_seed(seed, 3, half), model);
}

/// Tries interleavings of a small model one after the other, depth first, `most` of them at most.
fn explore_in_order(most: usize, model: fn()) {
    run(DfsScheduler::new(Some(most), false), model);
}

fn description() -> BackendDescription {
    BackendDescription {
        name: "model",
        capabilities: Vec::new(),
        degraded: None,
        refused_capabilities: Vec::new(),
    }
}

fn open<D: Driver>(concurrency: usize) -> Arc<Engine<D>> {
    let config = Config {
        concurrency,
        receive_buffer_bytes: 4,
        maximum_receive_buffers: 64,
        receive_window_bytes: 8,
        ..Config::default()
    };
    Engine::new(&config, description())
}

/// One packet, or `None` where the port is closed.
fn dequeue<D: Driver>(engine: &Engine<D>) -> Option<Completion> {
    dequeue_within(engine, None).ok()
}

fn dequeue_within<D: Driver>(
    engine: &Engine<D>,
    timeout: Option<Duration>,
) -> Result<Completion, DequeueError> {
    let mut packet = [None];
    let count = engine.dequeue(&mut packet, timeout)?;
    assert_eq!(count, 1);
    let [packet] = packet;
    Ok(packet.expect("a dequeue that succeeds gives a packet"))
}
