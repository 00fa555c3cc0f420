//! The port itself: posts, timers, cancels, time limits, blocking sections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Plan;
use crate::sim::{Random, World};
use crate::{Completion, DequeueError, Operation, OperationId};

pub(super) fn run(plan: &Plan, world: &World, random: &mut Random) {
    let limit = random.between(1, 3) as usize;
    let Ok(port) = world.port().concurrency(limit).build() else {
        return world.violation("the port does not open");
    };
    let port = Arc::new(port);
    let timers: Arc<Mutex<Vec<OperationId>>> = Arc::default();
    let handled = Arc::new(AtomicUsize::new(0));
    for _ in 0..plan.workers {
        let (port, timers, handled) =
            (Arc::clone(&port), Arc::clone(&timers), Arc::clone(&handled));
        let (world, mut random) = (world.clone(), world.random());
        world.clone().spawn("worker", move || {
            let mut packets: [Option<Completion>; 4] = Default::default();
            loop {
                let room = random.between(1, 4) as usize;
                let patience = random.chance(0.5).then(|| some_time(&mut random));
                let count = match port.dequeue_many(&mut packets[..room], patience) {
                    Ok(count) => count,
                    Err(DequeueError::TimedOut) => continue,
                    Err(_) => return,
                };
                handled.fetch_add(count, Ordering::Relaxed);
                for packet in &mut packets[..count] {
                    let operation = packet.take().and_then(Completion::into_operation);
                    if let (Some(operation), true) = (operation, random.chance(0.2)) {
                        // The same operation again, under another id.
                        start(&port, &timers, &mut random, operation);
                    }
                }
                if random.chance(0.1) {
                    port.blocking(|| {});
                }
                if random.chance(0.1) {
                    world.sleep(some_time(&mut random));
                }
            }
        });
    }
    let mut posts = 0;
    for _ in 0..plan.messages * plan.clients {
        match random.below(4) {
            0 | 1 => {
                for _ in 0..random.between(1, 6) {
                    posts += 1;
                    let operation = random.chance(0.5).then(Operation::new);
                    let _ = port.post(posts, posts, operation);
                }
            }
            2 => start(&port, &timers, random, Operation::new()),
            _ => {
                let mut timers = timers.lock().unwrap_or_else(PoisonError::into_inner);
                if !timers.is_empty() {
                    let place = random.below(timers.len() as u64) as usize;
                    let timer = timers.swap_remove(place);
                    drop(timers);
                    port.cancel_timer(timer);
                }
            }
        }
        if random.chance(0.3) {
            world.run_for(some_time(random));
        }
    }
    world.stop_faults();
    let is_idle = || world.pending_operations() == 0 && handled.load(Ordering::Relaxed) >= posts;
    if !world.run_until(Duration::from_secs(3600), is_idle) {
        world.violation("packets or timers are left an hour later");
    }
    world.run_for(Duration::from_secs(10));
    port.close();
}

fn some_time(random: &mut Random) -> Duration {
    Duration::from_micros(1 << random.below(23))
}

fn start(
    port: &crate::CompletionPort,
    timers: &Mutex<Vec<OperationId>>,
    random: &mut Random,
    operation: Operation,
) {
    if let Ok(timer) = port.start_timer(7, some_time(random), operation) {
        timers.lock().unwrap_or_else(PoisonError::into_inner).push(timer);
    }
}
