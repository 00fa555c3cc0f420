//! The simulated world: ports behave in it as the rules say, and a seed says all.

#![cfg(feature = "sim")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proactor::sim::{Faults, Next, PeerError, Report, World};
use proactor::{CompletionPort, DequeueError, ErrorKind, Operation, OperationKind, StreamSocket};

const MINUTE: Duration = Duration::from_secs(60);

fn assert_sound(report: &Report) {
    assert!(report.violations.is_empty(), "{:#?}\n{:#?}", report.violations, report.trace);
}

/// Several workers on an echo server, a client that sends `bytes` in all, faults of every kind but
/// those that end connections.
fn echo(seed: u64, bytes: usize) -> Report {
    let faults = Faults {
        short_read: 0.5,
        short_write: 0.5,
        delay: 0.1,
        spurious_wake: 0.2,
        stalled_worker: 0.05,
        pool_exhausted: 0.1,
        ..Faults::NONE
    };
    let world = World::new(seed, faults);
    let port = Arc::new(world.port().concurrency(2).build().unwrap());
    let address = "127.0.0.1:7000".parse().unwrap();
    let listener = port.associate(world.listen(address).unwrap(), 1).unwrap();
    listener.accept(Operation::new()).unwrap();
    let streams: Arc<Mutex<Vec<StreamSocket>>> = Arc::default();
    for _ in 0..3 {
        let (port, streams) = (Arc::clone(&port), Arc::clone(&streams));
        world.spawn("worker", move || serve(&port, &streams));
    }
    let mut peer = world.connect(address);
    let (mut sent, received) = (0, Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&received);
    world.actor(move |hand| {
        hand.watch(&mut peer);
        let chunk: Vec<u8> = (sent..bytes).take(999).map(|at| at as u8).collect();
        sent += peer.write(&chunk).unwrap_or(0);
        while let Ok(got) = peer.read(4096) {
            let at = count.fetch_add(got.len(), Ordering::Relaxed);
            assert!(got.iter().enumerate().all(|(index, byte)| *byte == (at + index) as u8));
        }
        if count.load(Ordering::Relaxed) == bytes {
            Next::Done
        } else {
            Next::After(Duration::from_secs(1))
        }
    });
    assert!(world.run_until(60 * MINUTE, || received.load(Ordering::Relaxed) == bytes));
    streams.lock().unwrap().clear();
    drop(listener);
    world.run_for(MINUTE);
    world.finish()
}

fn serve(port: &CompletionPort, streams: &Mutex<Vec<StreamSocket>>) {
    while let Ok(mut completion) = port.dequeue(None) {
        let Some(mut operation) = completion.take_operation() else { continue };
        match completion.kind() {
            OperationKind::Accept => {
                let Some(accepted) = operation.take_accepted() else { continue };
                let mut streams = streams.lock().unwrap();
                let stream = port.associate(accepted, 100 + streams.len()).unwrap();
                let _ = stream.recv(Operation::new(), Vec::with_capacity(777));
                streams.push(stream);
            }
            OperationKind::Recv if completion.bytes() > 0 => {
                let streams = streams.lock().unwrap();
                let Some(stream) = streams.get(completion.key() - 100) else { continue };
                let bytes = operation.take_buffer().unwrap();
                let _ = stream.send(operation, bytes);
            }
            OperationKind::Send => {
                let streams = streams.lock().unwrap();
                let Some(stream) = streams.get(completion.key() - 100) else { continue };
                let _ = stream.recv(operation, Vec::with_capacity(777));
            }
            _ => {}
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run_to_the_byte() {
    let first = echo(1, 20_000);
    assert_sound(&first);
    let again = echo(1, 20_000);
    assert_eq!(first.trace_hash, again.trace_hash);
    assert_eq!((first.trace, first.time), (again.trace, again.time));
    assert_ne!(first.trace_hash, echo(2, 20_000).trace_hash);
}

#[test]
fn a_dequeue_waits_in_the_worlds_time() {
    let world = World::new(3, Faults::NONE);
    let port = world.port().build().unwrap();
    assert_eq!(port.dequeue(Some(10 * MINUTE)).unwrap_err(), DequeueError::TimedOut);
    assert!(world.now() >= 10 * MINUTE && world.now() < 11 * MINUTE);
    assert_eq!(port.dequeue(Some(Duration::ZERO)).unwrap_err(), DequeueError::TimedOut);
    drop(port);
    assert_sound(&world.finish());
}

#[test]
fn timers_expire_in_order_and_posts_come_first_in_first_out() {
    let world = World::new(4, Faults::NONE);
    let port = world.port().build().unwrap();
    for minutes in [3, 1, 2] {
        port.start_timer(minutes as usize, minutes * MINUTE, Operation::new()).unwrap();
    }
    let late = port.start_timer(9, 9 * MINUTE, Operation::new()).unwrap();
    port.post(10, 0, None).unwrap();
    port.post(11, 0, None).unwrap();
    assert!(port.cancel_timer(late) && !port.cancel_timer(late));
    let keys: Vec<usize> = (0..6).map(|_| port.dequeue(None).unwrap().key()).collect();
    assert_eq!(keys, [10, 11, 9, 1, 2, 3]);
    drop(port);
    assert_sound(&world.finish());
}

#[test]
fn connects_are_refused_and_listeners_have_a_backlog() {
    let world = World::new(5, Faults::NONE);
    let port = world.port().build().unwrap();
    let address = "127.0.0.1:9".parse().unwrap();
    let stream = StreamSocket::for_peer(&port, &address, 1).unwrap();
    stream.connect(Operation::new(), address).unwrap();
    let completion = port.dequeue(None).unwrap();
    assert_eq!(completion.error().unwrap().kind(), ErrorKind::ConnectionRefused);
    let listener = port.associate(world.listen_with_backlog(address, 1).unwrap(), 2).unwrap();
    // After a refusal the socket can be tried again (rule 106).
    stream.connect(Operation::new(), address).unwrap();
    assert!(port.dequeue(None).unwrap().error().is_none());
    let second = world.connect(address);
    world.run_for(MINUTE / 60);
    assert_eq!(second.state(), Err(PeerError::WouldBlock));
    listener.accept(Operation::new()).unwrap();
    let accepted = port.dequeue(None).unwrap().into_operation().unwrap().take_accepted().unwrap();
    let peer = accepted.peer_address();
    assert_eq!(peer, stream.local_address().ok());
    assert!(world.run_until(MINUTE, || second.state().is_ok()));
    drop((stream, second, listener, accepted, port));
    assert_sound(&world.finish());
}

#[test]
fn threads_that_the_program_starts_belong_to_the_world_too() {
    let world = World::new(6, Faults::NONE);
    let port = Arc::new(world.port().concurrency(2).build().unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let (port, sender) = (Arc::clone(&port), sender.clone());
            std::thread::spawn(move || {
                while let Ok(completion) = port.dequeue(None) {
                    sender.send(completion.key()).unwrap();
                }
            })
        })
        .collect();
    world.expect_threads(3);
    for key in 0..100 {
        port.post(key, 0, None).unwrap();
    }
    world.run_for(MINUTE);
    let keys: Vec<usize> = receiver.try_iter().collect();
    assert_eq!(keys.len(), 100);
    port.close();
    let report = world.finish();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert_sound(&report);
}

#[test]
fn a_violation_is_reported() {
    let world = World::new(7, Faults::NONE);
    let port = world.port().build().unwrap();
    port.start_timer(1, 9 * MINUTE, Operation::new()).unwrap();
    let report = world.finish();
    assert_eq!(report.violations.len(), 1, "{:?}", report.violations);
    assert!(report.violations[0].contains("timer#1"), "{:?}", report.violations);
    drop(port);
}

/// Each scenario on some seeds; `proactor sim` runs many more.
#[test]
fn scenarios_hold_and_repeat() {
    use proactor::sim::scenario::{Plan, SCENARIOS};

    let seeds = std::env::var("PROACTOR_SIM_SEEDS").map_or(60, |text| text.parse().unwrap());
    for (name, _) in SCENARIOS {
        let mut operations = 0;
        for seed in 0..seeds {
            let plan = Plan::new(seed, Some(name)).unwrap();
            let report = plan.run(false);
            let tail = &report.trace[report.trace.len().saturating_sub(40)..];
            assert!(report.violations.is_empty(), "{plan}\n{:#?}\n{tail:#?}", report.violations);
            operations += report.operations;
            if seed % 20 == 0 {
                assert_eq!(report.trace_hash, plan.run(false).trace_hash, "{plan}");
            }
        }
        println!("{name}: {operations} operations");
    }
}
