//! Job queues and timers under a scheduler that tries many interleavings: see `docs/testing.md`.
//! What is lost, runs twice or waits for ever shows as a failed assertion or a deadlock.

use std::collections::VecDeque;
use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::Condvar;
use shuttle::thread;

use super::*;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn explore(schedules: usize, model: fn()) {
    let config = || {
        let mut config = shuttle::Config::new();
        config.stack_size = 128 * 1024;
        config
    };
    let random = RandomScheduler::new_from_seed(0x5eed, schedules / 2);
    shuttle::Runner::new(random, config()).run(model);
    let priorities = PctScheduler::new_from_seed(0x5eed, 3, schedules / 2);
    shuttle::Runner::new(priorities, config()).run(model);
}

/// A port in small: runnables that threads wait for.
#[derive(Clone)]
struct Port {
    shared: Arc<(Mutex<Queue>, Condvar)>,
}

#[derive(Default)]
struct Queue {
    runnables: VecDeque<Runnable>,
    closed: bool,
}

impl Scheduler for Port {
    fn schedule(&self, runnable: Runnable) -> Result<(), Runnable> {
        let mut queue = self.shared.0.lock().unwrap();
        if queue.closed {
            drop(queue);
            return Err(runnable);
        }
        queue.runnables.push_back(runnable);
        drop(queue);
        self.shared.1.notify_one();
        Ok(())
    }
}

impl Port {
    fn new() -> Self {
        Self { shared: Arc::new((Mutex::new(Queue::default()), Condvar::new())) }
    }

    fn work(&self) {
        loop {
            let runnable = {
                let mut queue = self.shared.0.lock().unwrap();
                loop {
                    if let Some(runnable) = queue.runnables.pop_front() {
                        break runnable;
                    }
                    if queue.closed {
                        return;
                    }
                    queue = self.shared.1.wait(queue).unwrap();
                }
            };
            runnable.run();
        }
    }

    /// Ends the workers: what is queued is run before, or dropped.
    fn close(&self, run_the_rest: bool) {
        let dropped = {
            let mut queue = self.shared.0.lock().unwrap();
            queue.closed = true;
            if run_the_rest { VecDeque::new() } else { std::mem::take(&mut queue.runnables) }
        };
        drop(dropped);
        self.shared.1.notify_all();
    }

    fn workers(&self, count: usize) -> Vec<thread::JoinHandle<()>> {
        (0..count)
            .map(|_| {
                let port = self.clone();
                thread::spawn(move || port.work())
            })
            .collect()
    }
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Waits until a count is reached: a job that is lost is a deadlock.
#[derive(Clone)]
struct Done(Arc<(Mutex<usize>, Condvar)>);

impl Done {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(0), Condvar::new())))
    }

    fn add(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    fn wait_for(&self, count: usize) {
        let mut done = self.0.0.lock().unwrap();
        while *done < count {
            done = self.0.1.wait(done).unwrap();
        }
        assert_eq!(*done, count, "a job ran twice");
    }
}

#[test]
fn every_job_runs_once_in_order_and_alone() {
    explore(4_000, || {
        let port = Port::new();
        let workers = port.workers(2);
        let queue = JobQueue::builder().jobs_per_turn(1).build(port.clone(), [0_usize; 2]);
        let (busy, done) = (Arc::new(AtomicBool::new(false)), Done::new());
        let producers = (0..2_usize).map(|producer| {
            let (queue, busy, done) = (queue.clone(), busy.clone(), done.clone());
            thread::spawn(move || {
                for number in 0..2 {
                    let (busy, done) = (busy.clone(), done.clone());
                    let job = move |next: &mut [usize; 2]| {
                        assert!(!busy.swap(true, Ordering::SeqCst), "two jobs at once");
                        assert_eq!(next[producer], number, "out of order");
                        next[producer] += 1;
                        thread::yield_now();
                        busy.store(false, Ordering::SeqCst);
                        done.add();
                    };
                    queue.push(job).unwrap();
                }
            })
        });
        join(producers.collect());
        done.wait_for(4);
        port.close(true);
        join(workers);
        assert!(queue.is_empty() && !queue.is_closed());
    });
}

#[test]
fn a_close_drops_every_job_that_has_not_run() {
    explore(4_000, || {
        let port = Port::new();
        let workers = port.workers(1);
        let queue = JobQueue::builder().jobs_per_turn(1).build(port.clone(), ());
        let kept = Arc::new(());
        let (pushing, owned) = (queue.clone(), kept.clone());
        let producer = thread::spawn(move || {
            for _ in 0..3 {
                let owned = owned.clone();
                let _ = pushing.push(move |()| drop(owned));
            }
        });
        queue.close();
        producer.join().unwrap();
        port.close(true);
        join(workers);
        assert!(queue.is_empty());
        assert_eq!(Arc::strong_count(&kept), 1, "a job is left in a queue that is closed");
    });
}

#[test]
fn a_port_that_closes_takes_its_queues_along() {
    explore(4_000, || {
        let port = Port::new();
        let workers = port.workers(1);
        let queue = JobQueue::builder().jobs_per_turn(1).build(port.clone(), ());
        let kept = Arc::new(());
        let (pushing, owned) = (queue.clone(), kept.clone());
        let producer = thread::spawn(move || {
            for _ in 0..3 {
                let owned = owned.clone();
                let _ = pushing.push(move |()| drop(owned));
            }
        });
        port.close(false);
        producer.join().unwrap();
        join(workers);
        let _ = queue.push(|()| ());
        assert!(queue.is_closed() && queue.is_empty());
        assert_eq!(Arc::strong_count(&kept), 1);
    });
}

#[test]
fn a_timed_job_is_cancelled_or_runs() {
    explore(4_000, || {
        let port = Port::new();
        let workers = port.workers(1);
        let queue = JobQueue::new(port.clone(), ());
        let timer = JobTimer::new(());
        let start = crate::sync::now();
        let ran = Arc::new(AtomicUsize::new(0));
        let count = ran.clone();
        let handle = timer.push_at(&queue, start, move |()| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let handle = handle.unwrap();
        let advancing = timer.clone();
        let clock = thread::spawn(move || advancing.advance(start + Duration::from_secs(1)));
        let cancelled = handle.cancel();
        clock.join().unwrap();
        port.close(true);
        join(workers);
        assert_eq!(ran.load(Ordering::SeqCst), usize::from(!cancelled));
        assert!(timer.is_empty());
    });
}

#[test]
fn a_periodic_job_that_is_cancelled_does_not_come_back() {
    explore(4_000, || {
        let port = Port::new();
        let workers = port.workers(1);
        let queue = JobQueue::new(port.clone(), ());
        let timer = JobTimer::new(());
        let (start, period) = (crate::sync::now(), Duration::from_millis(10));
        let (runs, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, is_over) = (runs.clone(), over.clone());
        let job = move |_: &mut (), _| {
            assert!(!is_over.load(Ordering::SeqCst), "started behind the cancel");
            count.fetch_add(1, Ordering::SeqCst);
        };
        let ticks = timer.push_every(&queue, start, period, job).unwrap();
        let advancing = timer.clone();
        let clock = thread::spawn(move || {
            for tick in 0..3 {
                advancing.advance(start + period * tick);
            }
        });
        thread::yield_now();
        assert!(ticks.cancel());
        let before = runs.load(Ordering::SeqCst);
        clock.join().unwrap();
        port.close(true);
        join(workers);
        assert!(timer.is_empty(), "it is back in the wheel");
        // One may have been running when it was cancelled.
        assert!(runs.load(Ordering::SeqCst) <= before + 1);
        over.store(true, Ordering::SeqCst);
        timer.advance(start + period * 10);
        assert!(queue.is_empty());
    });
}
