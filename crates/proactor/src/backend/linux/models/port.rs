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
type Taken = Arc<Mutex<Vec<usize>>>;

/// A port for packets with the keys `0..packets`, and the threads that serve it.
struct Run {
    port: Arc<Port>,
    packets: usize,
    /// How many of them are still to be handled: then the port is closed.
    left: Arc<AtomicUsize>,
    taken: Taken,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Run {
    fn new(limit: usize, packets: usize) -> Self {
        let left = Arc::new(AtomicUsize::new(packets));
        Self { port: open(limit), packets, left, taken: Taken::default(), threads: Vec::new() }
    }

    /// Starts threads that handle packets until the port is closed.
    fn serve(&mut self, threads: usize, handle: impl Fn(&Port, usize) + Clone + Send + 'static) {
        for _ in 0..threads {
            let (handled, handle) = (self.handled(), handle.clone());
            let port = Arc::clone(&self.port);
            self.threads.push(thread::spawn(move || {
                while let Some(packet) = dequeue(&port) {
                    handled(packet.key(), &handle);
                }
            }));
        }
    }

    /// Notes the key of a packet, has it handled, and closes the port behind the last one.
    fn handled(&self) -> impl Fn(usize, &dyn Fn(&Port, usize)) + Send + 'static {
        let (port, left) = (Arc::clone(&self.port), Arc::clone(&self.left));
        let taken = Arc::clone(&self.taken);
        move |key, handle| {
            taken.lock().unwrap().push(key);
            handle(&port, key);
            if left.fetch_sub(1, SeqCst) == 1 {
                port.close();
            }
        }
    }

    /// Each packet was handled once.
    fn finish(self) {
        for thread in self.threads {
            thread.join().unwrap();
        }
        let mut taken = self.taken.lock().unwrap().clone();
        taken.sort_unstable();
        assert_eq!(taken, (0..self.packets).collect::<Vec<_>>());
    }
}

fn post(port: &Port, key: usize) {
    port.post(Completion::posted(key, 0, None)).map_err(drop).expect("the port is open");
}

fn timer(port: &Port, key: usize, after: Duration) {
    let mut operation = Operation::new();
    operation.prepare(OperationKind::Timer, Payload::None);
    port.start_timer(key, now() + after, operation).map_err(drop).expect("the port is open");
}

/// A handler that waits until so many of its kind run.
fn meet(handlers: usize) -> impl Fn(&Port, usize) + Clone + Send + 'static {
    let met = Arc::new(Barrier::new(handlers));
    move |_, _| _ = met.wait()
}

#[test]
fn every_post_comes_once() {
    explore(400, || {
        let mut run = Run::new(1, 4);
        run.serve(2, |_, _| {});
        let other = Arc::clone(&run.port);
        let posting = thread::spawn(move || (0..2).for_each(|key| post(&other, key)));
        (2..4).for_each(|key| post(&run.port, key));
        posting.join().unwrap();
        run.finish();
    });
}

/// Two handlers wait for each other, and the limit allows both: both have to run.
#[test]
fn as_many_handlers_run_as_the_limit_allows() {
    explore(400, || {
        let mut run = Run::new(2, 2);
        run.serve(3, meet(2));
        (0..2).for_each(|key| post(&run.port, key));
        run.finish();
    });
}

/// The same under a limit of one, where the first says that it blocks, or is found asleep.
fn blocked(says_so: bool) {
    let mut run = Run::new(1, 3);
    let meet = meet(2);
    run.serve(2, move |port, key| {
        if key < 2 {
            let gave_up = says_so && port.enter_blocking();
            meet(port, key);
            if gave_up {
                port.leave_blocking();
            }
        }
    });
    (0..3).for_each(|key| post(&run.port, key));
    run.finish();
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
        let mut run = Run::new(1, 3);
        let (port, handled) = (Arc::clone(&run.port), run.handled());
        run.threads.push(thread::spawn(move || {
            // One packet at most, then the thread ends, wherever the others are.
            if let Ok(packet) = dequeue_within(&port, Some(Duration::from_micros(100))) {
                handled(packet.key(), &|_, _| {});
            }
        }));
        run.serve(1, |_, _| {});
        (0..3).for_each(|key| post(&run.port, key));
        run.finish();
    });
}

#[test]
fn closing_wakes_every_thread() {
    explore(400, || {
        let mut run = Run::new(2, 0);
        run.serve(3, |_, _| {});
        run.port.close();
        run.finish();
    });
}

/// A timer of ten hours does not end a sleep here: if nobody wakes for the short one that is
/// started behind it, the model stands still.
fn an_earlier_timer_is_seen_by(threads: usize) {
    let mut run = Run::new(1, 1);
    run.serve(threads, |_, _| {});
    timer(&run.port, 1, Duration::from_secs(36_000));
    timer(&run.port, 0, Duration::from_millis(1));
    run.finish();
}

#[test]
fn an_earlier_timer_is_seen() {
    explore(400, || an_earlier_timer_is_seen_by(1));
    explore(400, || an_earlier_timer_is_seen_by(2));
}

/// Whoever keeps the time gets a packet, and its handler waits for the timer: another thread, that
/// sleeps, has to keep the time from then on.
#[test]
fn the_time_is_kept_while_handlers_run() {
    explore(400, || {
        let mut run = Run::new(3, 2);
        run.serve(2, meet(2));
        timer(&run.port, 0, Duration::from_millis(1));
        post(&run.port, 1);
        run.finish();
    });
}

/// The same with two packets that come while everybody sleeps, for three threads.
#[test]
fn the_watch_is_passed_on() {
    explore(400, || {
        let mut run = Run::new(3, 3);
        run.serve(3, meet(3));
        timer(&run.port, 0, Duration::from_millis(2));
        post(&run.port, 1);
        post(&run.port, 2);
        run.finish();
    });
}
