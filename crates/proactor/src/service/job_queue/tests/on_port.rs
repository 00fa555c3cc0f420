//! Job queues and timers on the worker threads of a completion port.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;
use crate::{CompletionPort, Operation, OperationKind};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `scene` while so many threads serve the port; then closes it.
fn with_workers<R>(threads: usize, scene: impl FnOnce(&Arc<CompletionPort>) -> R) -> R {
    let port = Arc::new(CompletionPort::new(threads).expect("a backend is there"));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Ok(mut completion) = port.dequeue(None) {
                    assert!(PortScheduler::run(&mut completion), "{completion:?}");
                }
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scene(&port)));
        port.close();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The next number that each thread pushes.
struct Counters {
    next: [u32; 4],
}

#[test]
fn many_threads_push_and_jobs_run_one_at_a_time_in_order() {
    const JOBS: u32 = 5_000;
    with_workers(3, |port| {
        let scheduler = Arc::new(PortScheduler::new(port, 7));
        let queues: Vec<_> = (0..3)
            .map(|_| {
                JobQueue::builder()
                    .jobs_per_turn(5)
                    .build_shared(scheduler.clone(), Counters { next: [0; 4] })
            })
            .collect();
        let busy: [AtomicBool; 3] = Default::default();
        let (busy, done) = (Arc::new(busy), Arc::new(AtomicUsize::new(0)));
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let (queues, busy, done) = (&queues, &busy, &done);
                scope.spawn(move || {
                    for number in 0..JOBS {
                        for (index, queue) in queues.iter().enumerate() {
                            let (busy, done) = (busy.clone(), done.clone());
                            let job = move |counters: &mut Counters| {
                                assert!(!busy[index].swap(true, Ordering::SeqCst), "two at once");
                                assert_eq!(counters.next[thread], number, "out of order");
                                counters.next[thread] += 1;
                                busy[index].store(false, Ordering::SeqCst);
                                done.fetch_add(1, Ordering::SeqCst);
                            };
                            queue.push(job).expect("the default limit is not reached");
                        }
                    }
                });
            }
        });
        let all = 3 * 4 * JOBS as usize;
        let start = Instant::now();
        while done.load(Ordering::SeqCst) < all {
            assert!(queues.iter().all(|queue| !queue.is_closed()), "a job has failed");
            assert!(start.elapsed() < PATIENCE, "{done:?} of {all} jobs have run");
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_closed_port_closes_its_queues() {
    let port = Arc::new(CompletionPort::new(1).unwrap());
    let scheduler = PortScheduler::new(&port, 0);
    let waiting = JobQueue::new(scheduler.clone(), ());
    let idle = JobQueue::new(scheduler.clone(), ());
    let kept = Arc::new(());
    let owned = kept.clone();
    waiting.push(move |()| drop(owned)).unwrap();
    port.close();
    assert!(waiting.is_closed(), "its packet was dropped with the port's queue");
    assert_eq!(Arc::strong_count(&kept), 1);
    assert_eq!(idle.push(|()| ()), Err(PushError::Closed));
    drop(port);
    let orphan = JobQueue::new(scheduler, ());
    assert_eq!(orphan.push(|()| ()), Err(PushError::Closed));
}

#[test]
fn packets_of_others_are_left_alone() {
    let port = Arc::new(CompletionPort::new(1).unwrap());
    port.post(1, 2, None).unwrap();
    port.post(3, 4, Some(Operation::with_context("mine"))).unwrap();
    let mut completion = port.dequeue(None).unwrap();
    assert!(!PortScheduler::run(&mut completion));
    let mut completion = port.dequeue(None).unwrap();
    assert!(!PortScheduler::run(&mut completion));
    assert_eq!(completion.operation().unwrap().context::<&str>(), Some(&"mine"));
}

#[test]
fn operations_are_posted_again() {
    let port = Arc::new(CompletionPort::new(1).unwrap());
    let queue = JobQueue::new(PortScheduler::new(&port, 5), ());
    let mut names = Vec::new();
    for _ in 0..3 {
        queue.push(|()| ()).unwrap();
        let mut completion = port.dequeue(Some(PATIENCE)).unwrap();
        assert_eq!((completion.kind(), completion.key()), (OperationKind::Post, 5));
        names.push(completion.operation_id());
        assert!(PortScheduler::run(&mut completion));
    }
    assert!(names.iter().all(|name| *name == names[0]), "one operation for all three turns");
}

#[test]
fn timed_jobs_run_on_the_port_and_never_early() {
    with_workers(2, |port| {
        let scheduler = PortScheduler::new(port, 0);
        let timer = JobTimer::new(scheduler.clone());
        let queue = JobQueue::new(scheduler, Vec::new());
        let start = Instant::now();
        let (tell, told) = mpsc::channel();
        // The later one is first: the alarm has to be set anew for each.
        for delay_ms in [40, 20, 1, 0] {
            let tell = tell.clone();
            let delay = Duration::from_millis(delay_ms);
            let job = move |_: &mut Vec<()>| tell.send((delay, start.elapsed())).unwrap();
            timer.push_after(&queue, delay, job).unwrap();
        }
        let mut order = Vec::new();
        for _ in 0..4 {
            let (delay, at) = told.recv_timeout(PATIENCE).expect("the job runs");
            assert!(at >= delay, "due after {delay:?}, ran after {at:?}");
            order.push(delay.as_millis());
        }
        order.sort_unstable();
        assert_eq!(order, [0, 1, 20, 40]);
        assert!(timer.is_empty());
    });
}

#[test]
fn a_periodic_job_runs_on_the_port_until_it_is_cancelled() {
    with_workers(2, |port| {
        let scheduler = PortScheduler::new(port, 0);
        let timer = JobTimer::new(scheduler.clone());
        let queue = JobQueue::new(scheduler, 0_u64);
        let (tell, told) = mpsc::channel();
        let (period, first) = (Duration::from_millis(2), Instant::now());
        let ticks = timer.push_every(&queue, first, period, move |periods, tick| {
            *periods += 1 + tick.missed;
            assert_eq!(tick.due, first + period * (*periods as u32 - 1));
            assert!(Instant::now() >= tick.due, "early");
            let _ = tell.send(*periods);
        });
        let ticks = ticks.unwrap();
        while told.recv_timeout(PATIENCE).expect("it goes on") < 20 {}
        assert!(ticks.cancel() && !ticks.cancel());
        assert!(timer.is_empty());
        assert!(!queue.is_closed(), "no job has failed");
    });
}

#[test]
fn a_runtime_runs_job_queues_and_closes_them_when_it_ends() {
    let runtime = crate::service::Runtime::builder().threads(2).build().unwrap();
    let queue = JobQueue::new(runtime.scheduler(), 0);
    let timer = JobTimer::new(runtime.scheduler());
    let (tell, told) = mpsc::channel();
    let other = tell.clone();
    queue.push(move |count| other.send(*count + 1).unwrap()).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(1));
    timer.push_after(&queue, Duration::from_millis(1), move |_| tell.send(2).unwrap()).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(2));
    runtime.shut_down();
    assert_eq!(queue.push(|_| ()), Err(PushError::Closed));
}
