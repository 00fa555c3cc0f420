//! The server layer in the simulated world: unchanged, in its time, from a seed.

#![cfg(feature = "sim")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proactor::service::framing::LengthPrefixed;
use proactor::service::job_queue::{JobQueue, JobTimer};
use proactor::service::{
    ClientService, DisconnectReason, HandlerResult, Runtime, ServerService, Session,
    SessionHandler, Timeout, Timeouts,
};
use proactor::sim::{Faults, PeerError, Report, World};

const ADDRESS: &str = "127.0.0.1:7000";
const MINUTE: Duration = Duration::from_secs(60);

struct Echo;

impl SessionHandler for Echo {
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        session.send(frame)?;
        Ok(())
    }
}

/// Sends one frame after the other, each when the last one has come back.
struct Asker(Arc<AtomicUsize>);

impl SessionHandler for Asker {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        session.send([7; 100])?;
        Ok(())
    }

    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        assert_eq!(frame, [7; 100]);
        self.0.fetch_add(1, Ordering::Relaxed);
        session.send(frame)?;
        Ok(())
    }
}

fn assert_sound(report: &Report) {
    assert!(report.violations.is_empty(), "{:#?}\n{:#?}", report.violations, report.trace);
}

/// A server and a client on runtimes of their own, with threads of their own.
fn conversation(world: World) -> Report {
    let runtime = Runtime::builder().port(world.port()).concurrency(2).threads(3).build().unwrap();
    let server = ServerService::builder(|_session| Echo)
        .listen(ADDRESS)
        .framing(LengthPrefixed::u32())
        .start_on(&runtime)
        .unwrap();
    let client_runtime = Runtime::builder().port(world.port()).threads(2).build().unwrap();
    let answers = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&answers);
    let client = ClientService::builder(move |_session| Asker(Arc::clone(&counted)))
        .connect(ADDRESS)
        .connections(3)
        .framing(LengthPrefixed::u32())
        .start_on(&client_runtime)
        .unwrap();
    assert!(world.run_until(10 * MINUTE, || answers.load(Ordering::Relaxed) > 200));
    let stopped = client.stop(Duration::ZERO);
    assert_eq!(stopped.left, 0);
    let began = world.now();
    let report = server.stop(Duration::from_secs(3));
    assert_eq!(report.left, 0);
    assert!(world.now() - began < Duration::from_secs(10));
    drop((client, server, client_runtime, runtime));
    world.finish()
}

#[test]
fn servers_and_clients_run_in_a_world_and_a_seed_says_how() {
    let faults = Faults { short_read: 0.5, short_write: 0.5, delay: 0.05, ..Faults::NONE };
    let first = conversation(World::new(1, faults));
    assert_sound(&first);
    let again = conversation(World::new(1, faults));
    assert_eq!((first.trace_hash, first.time), (again.trace_hash, again.time));
    assert_ne!(first.trace_hash, conversation(World::new(2, faults)).trace_hash);
}

#[test]
fn threads_are_interrupted_inside_the_server_layer() {
    let faults = Faults { short_read: 0.5, interrupted_call: 0.3, preempted: 0.2, ..Faults::NONE };
    let first = conversation(World::may_interrupt(1, faults));
    assert_sound(&first);
    let again = conversation(World::may_interrupt(1, faults));
    assert_eq!((first.trace_hash, first.time), (again.trace_hash, again.time));
}

#[test]
fn time_limits_and_job_timers_run_on_the_worlds_clock() {
    struct Silent(Arc<Mutex<Option<DisconnectReason>>>);
    impl SessionHandler for Silent {
        fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
            Ok(())
        }
        fn disconnected(&mut self, _session: &Session, reason: DisconnectReason) {
            *self.0.lock().unwrap() = Some(reason);
        }
    }
    let real = Instant::now();
    let world = World::new(3, Faults::NONE);
    let runtime = Runtime::builder().port(world.port()).threads(2).build().unwrap();
    let reason = Arc::new(Mutex::new(None));
    let told = Arc::clone(&reason);
    let server = ServerService::builder(move |_session| Silent(Arc::clone(&told)))
        .listen(ADDRESS)
        .timeouts(Timeouts { handshake: None, idle: Some(30 * MINUTE), ..Timeouts::default() })
        .start_on(&runtime)
        .unwrap();
    let ticks = JobQueue::new(runtime.scheduler(), 0);
    let timer = JobTimer::new(runtime.scheduler());
    let at = runtime.port().now() + MINUTE;
    let _job = timer.push_at(&ticks, at, |count| *count += 1).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let peer = world.connect(ADDRESS.parse().unwrap());
    world.run_for(29 * MINUTE);
    ticks.push(move |count| sender.send(*count).unwrap()).unwrap();
    world.run_for(MINUTE / 60);
    assert_eq!(receiver.try_recv(), Ok(1));
    assert!(reason.lock().unwrap().is_none());
    world.run_for(2 * MINUTE);
    let reason = reason.lock().unwrap().take();
    assert!(matches!(reason, Some(DisconnectReason::TimedOut(Timeout::Idle))), "{reason:?}");
    assert_eq!(peer.state(), Err(PeerError::Reset));
    drop((peer, server, ticks, timer, runtime));
    assert_sound(&world.finish());
    assert!(real.elapsed() < MINUTE, "nothing waits in real time");
}

#[test]
fn a_stop_that_has_to_abort_takes_the_worlds_time_only() {
    struct Stays;
    impl SessionHandler for Stays {
        fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
            Ok(())
        }
    }
    let world = World::new(4, Faults::NONE);
    let runtime = Runtime::builder().port(world.port()).threads(2).build().unwrap();
    let server = ServerService::builder(|_session| Stays)
        .listen(ADDRESS)
        .timeouts(Timeouts { handshake: None, ..Timeouts::default() })
        .start_on(&runtime)
        .unwrap();
    let peer = world.connect(ADDRESS.parse().unwrap());
    assert!(world.run_until(MINUTE, || server.handle().session_count() == 1));
    let report = server.stop(MINUTE);
    assert_eq!((report.drained, report.disconnected, report.aborted, report.left), (0, 1, 0, 0));
    assert!(report.elapsed >= MINUTE + Duration::from_secs(5), "{:?}", report.elapsed);
    assert!(report.elapsed < MINUTE + Duration::from_secs(6), "{:?}", report.elapsed);
    drop((peer, server, runtime));
    assert_sound(&world.finish());
}
