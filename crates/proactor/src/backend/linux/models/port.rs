//! A whole port on the epoll driver: posts, handlers that block, threads that leave, closing,
//! timers, and threads that watch others.

use std::time::Duration;

use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Arc, Barrier, Mutex};
use shuttle::thread;

use super::super::super::epoll::EpollDriver;
use super::super::engine::Engine;
use super::{dequeue, dequeue_within, explore, open};
use crate::backend::Backend;
use crate::operation::{Operation, OperationKind, Payload};
use crate::port::Completion;
use crate::sync::{model, now};

type Port = Engine<EpollDriver>;

/// Starts a thread that handles packets until the port is closed, and notes their keys.
fn serve(
    port: &Arc<Port>,
    taken: &Arc<Mutex<Vec<usize>>>,
    handle: impl Fn(&Port, usize) + Send + 'static,
) -> thread::JoinHandle<()> {
    let (port, taken) = (Arc::clone(port), Arc::clone(taken));
    thread::spawn(move || {
        while let Some(packet) = dequeue(&port) {
            taken.lock().unwrap().push(packet.key());
            handle(&port, packet.key());
        }
    })
}

fn post(port: &Port, key: usize) {
    port.post(Completion::posted(key, 0, None)).map_err(drop).expect("the port is open");
}

/// Closes the port once `count` packets were handled.
fn count_down(port: &Port, left: &AtomicUsize) {
    if left.fetch_sub(1, SeqCst) == 1 {
        port.close();
    }
}

fn finish(threads: Vec<thread::JoinHandle<()>>, taken: &Mutex<Vec<usize>>, count: usize) {
    for thread in threads {
        thread.join().unwrap();
    }
    let mut taken = taken.lock().unwrap().clone();
    taken.sort_unstable();
    assert_eq!(taken, (0..count).collect::<Vec<_>>());
}

fn timer(port: &Port, key: usize, after: Duration) {
    let mut operation = Operation::new();
    operation.prepare(OperationKind::Timer, Payload::None);
    port.start_timer(key, now() + after, operation).map_err(drop).expect("the port is open");
}

#[test]
fn every_post_comes_once() {
    explore(400, || {
        let port = open(1);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let left = Arc::new(AtomicUsize::new(4));
        let threads = (0..2)
            .map(|_| {
                let left = Arc::clone(&left);
                serve(&port, &taken, move |port, _| count_down(port, &left))
            })
            .collect();
        let other = Arc::clone(&port);
        let posting = thread::spawn(move || (0..2).for_each(|key| post(&other, key)));
        (2..4).for_each(|key| post(&port, key));
        posting.join().unwrap();
        finish(threads, &taken, 4);
    });
}

/// Two handlers wait for each other, and the limit allows both: both have to run.
#[test]
fn as_many_handlers_run_as_the_limit_allows() {
    explore(400, || {
        let port = open(2);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (pair, left) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(2)));
        let threads = (0..3)
            .map(|_| {
                let (pair, left) = (Arc::clone(&pair), Arc::clone(&left));
                serve(&port, &taken, move |port, _| {
                    pair.wait();
                    count_down(port, &left);
                })
            })
            .collect();
        (0..2).for_each(|key| post(&port, key));
        finish(threads, &taken, 2);
    });
}

/// The same under a limit of one, where the first says that it blocks, or is found asleep.
fn blocked(says_so: bool) {
    let port = open(1);
    let taken = Arc::new(Mutex::new(Vec::new()));
    let (pair, left) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(3)));
    let threads = (0..2)
        .map(|_| {
            let (pair, left) = (Arc::clone(&pair), Arc::clone(&left));
            serve(&port, &taken, move |port, key| {
                if key < 2 {
                    let gave_up = says_so && port.enter_blocking();
                    pair.wait();
                    if gave_up {
                        port.leave_blocking();
                    }
                }
                count_down(port, &left);
            })
        })
        .collect();
    (0..3).for_each(|key| post(&port, key));
    finish(threads, &taken, 3);
}

#[test]
fn a_handler_that_blocks_lets_another_run() {
    explore(400, || blocked(true));
}

/// Nobody says anything: the other thread has to watch, see the turn twice, and take the slot.
/// Whenever the handler ends meanwhile, nothing is lost and nothing comes twice.
#[test]
fn a_stuck_handler_is_found() {
    explore(300, || {
        model::let_threads_sleep();
        blocked(false);
    });
}

#[test]
fn a_thread_that_ends_loses_no_packet() {
    explore(400, || {
        let port = open(1);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let left = Arc::new(AtomicUsize::new(3));
        let mut threads = Vec::new();
        let (other, noted, counted) = (Arc::clone(&port), Arc::clone(&taken), Arc::clone(&left));
        threads.push(thread::spawn(move || {
            // One packet at most, then the thread ends, wherever the others are.
            if let Ok(packet) = dequeue_within(&other, Some(Duration::from_micros(100))) {
                noted.lock().unwrap().push(packet.key());
                count_down(&other, &counted);
            }
        }));
        threads.push(serve(&port, &taken, move |port, _| count_down(port, &left)));
        (0..3).for_each(|key| post(&port, key));
        finish(threads, &taken, 3);
    });
}

#[test]
fn closing_wakes_every_thread() {
    explore(400, || {
        let port = open(2);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let threads = (0..3).map(|_| serve(&port, &taken, |_, _| {})).collect();
        port.close();
        finish(threads, &taken, 0);
    });
}

/// A timer of ten hours does not end a sleep here: if nobody wakes for the short one that is
/// started behind it, the model stands still.
#[test]
fn an_earlier_timer_is_seen() {
    explore(400, || {
        let port = open(1);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let threads = vec![serve(&port, &taken, |port, _| port.close())];
        timer(&port, 1, Duration::from_secs(36_000));
        timer(&port, 0, Duration::from_millis(1));
        finish(threads, &taken, 1);
    });
    explore(400, || {
        let port = open(1);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let threads = (0..2).map(|_| serve(&port, &taken, |port, _| port.close())).collect();
        timer(&port, 1, Duration::from_secs(36_000));
        timer(&port, 0, Duration::from_millis(1));
        finish(threads, &taken, 1);
    });
}

/// Whoever keeps the time gets a packet, and its handler waits for the timer: another thread, that
/// sleeps, has to keep the time from then on.
#[test]
fn the_time_is_kept_while_handlers_run() {
    explore(400, || {
        let port = open(3);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let met = Arc::new(Barrier::new(2));
        let threads = (0..2)
            .map(|_| {
                let met = Arc::clone(&met);
                serve(&port, &taken, move |port, _| {
                    if met.wait().is_leader() {
                        port.close();
                    }
                })
            })
            .collect();
        timer(&port, 0, Duration::from_millis(1));
        post(&port, 1);
        finish(threads, &taken, 2);
    });
}

/// The same with two packets that come while everybody sleeps, for three threads.
#[test]
fn the_watch_is_passed_on() {
    explore(400, || {
        let port = open(3);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let met = Arc::new(Barrier::new(3));
        let threads = (0..3)
            .map(|_| {
                let met = Arc::clone(&met);
                serve(&port, &taken, move |port, _| {
                    if met.wait().is_leader() {
                        port.close();
                    }
                })
            })
            .collect();
        timer(&port, 0, Duration::from_millis(2));
        post(&port, 1);
        post(&port, 2);
        finish(threads, &taken, 3);
    });
}
