//! The shared queue: no packet without a thread while a thread sleeps that may have it, none lost,
//! none twice; the limit kept; a slot never lost.
//!
//! The threads do what `Engine::dequeue_as`, `wait` and `sleep` do, without a driver.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Arc, Barrier, Mutex};
use shuttle::thread;

use super::super::central::{Central, Park};
use super::super::slot::Slot;
use super::super::syscall;
use super::{explore, explore_in_order};
use crate::port::Completion;

fn packet(key: usize) -> Completion {
    Completion::posted(key, 0, None)
}

struct Port {
    central: Central,
    expected: usize,
    /// Keys, as they were taken.
    taken: Mutex<Vec<usize>>,
    /// Threads that handle a packet.
    handling: AtomicUsize,
    /// Handlers that have blocked: those that did not are within the limit.
    beyond: AtomicUsize,
}

impl Port {
    fn new(limit: usize, expected: usize) -> Arc<Self> {
        Arc::new(Self {
            central: Central::new(limit),
            expected,
            taken: Mutex::new(Vec::new()),
            handling: AtomicUsize::new(0),
            beyond: AtomicUsize::new(0),
        })
    }

    fn push(&self, key: usize) {
        self.central.push(packet(key)).map_err(drop).expect("open while packets are due");
    }

    /// The handler is about to run; with the last packet the port is closed behind it.
    fn begin(&self, key: usize) {
        let handling = self.handling.fetch_add(1, SeqCst) + 1;
        let most = self.central.limit() + self.beyond.load(SeqCst);
        assert!(handling <= most, "more handlers run than the limit allows");
        self.taken.lock().unwrap().push(key);
    }

    fn end(&self) {
        self.handling.fetch_sub(1, SeqCst);
        self.close_behind_the_last();
    }

    fn close_behind_the_last(&self) {
        if self.taken.lock().unwrap().len() == self.expected {
            assert!(self.central.close().is_none_or(|packets| packets.is_empty()));
        }
    }

    fn check(&self) {
        let mut taken = self.taken.lock().unwrap().clone();
        taken.sort_unstable();
        assert_eq!(taken, (0..self.expected).collect::<Vec<_>>());
    }
}

struct Thread {
    slot: std::sync::Arc<Slot>,
    epoll: OwnedFd,
    collected: VecDeque<Completion>,
}

impl Thread {
    fn new(index: usize) -> Self {
        let wake = syscall::eventfd().unwrap();
        let epoll = syscall::epoll_create().unwrap();
        let interest = (libc::EPOLLIN | libc::EPOLLET) as u32;
        syscall::epoll_control(&epoll, libc::EPOLL_CTL_ADD, wake.as_raw_fd(), interest, 0).unwrap();
        Self { slot: Arc::new(Slot::new(index, wake)), epoll, collected: VecDeque::new() }
    }

    fn dequeue(&mut self, central: &Central) -> Option<Completion> {
        loop {
            if central.is_closed() {
                return None;
            }
            let may_take = central.try_hold(&self.slot);
            if may_take {
                if let Some(packet) = self.collected.pop_front() {
                    return Some(packet);
                }
                let mut packet = [None];
                if central.take(&mut packet, 0) == 1 {
                    return packet[0].take();
                }
                if central.queued() > 0 {
                    continue;
                }
            }
            match central.park(&self.slot, &mut self.collected) {
                Park::Closed => return None,
                Park::Work => continue,
                Park::Parked => self.sleep(central),
            }
            central.unpark(&self.slot, !self.collected.is_empty());
        }
    }

    fn sleep(&self, central: &Central) {
        let mut events = [const { libc::epoll_event { events: 0, u64: 0 } }; 4];
        while !central.is_closed() && !self.slot.is_held() {
            syscall::epoll_wait(&self.epoll, &mut events, None).unwrap();
        }
    }

    fn serve(mut self, port: &Port, mut handle: impl FnMut(&Slot, usize)) {
        while let Some(packet) = self.dequeue(&port.central) {
            port.begin(packet.key());
            handle(&self.slot, packet.key());
            port.end();
        }
        port.central.leave(&self.slot);
    }
}

fn spawn(
    port: &Arc<Port>,
    index: usize,
    handle: impl FnMut(&Slot, usize) + Send + 'static,
) -> thread::JoinHandle<()> {
    let port = Arc::clone(port);
    thread::spawn(move || Thread::new(index).serve(&port, handle))
}

/// Starts a thread that pushes these packets.
fn spawn_pusher(
    port: &Arc<Port>,
    keys: impl Iterator<Item = usize> + Send + 'static,
) -> thread::JoinHandle<()> {
    let port = Arc::clone(port);
    thread::spawn(move || keys.for_each(|key| port.push(key)))
}

/// A handler that waits for another one with such a key.
fn meet(is_met: fn(usize) -> bool) -> impl FnMut(&Slot, usize) + Clone + Send + 'static {
    let pair = Arc::new(Barrier::new(2));
    move |_, key| {
        if is_met(key) {
            pair.wait();
        }
    }
}

fn finish(port: &Port, threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
    port.check();
}

fn every_packet_once(limit: usize, workers: usize, packets: usize) {
    let port = Port::new(limit, packets);
    let mut threads: Vec<_> =
        (0..workers).map(|index| spawn(&port, index, |_, _| thread::yield_now())).collect();
    for pusher in 0..2 {
        threads.push(spawn_pusher(&port, (pusher..packets).step_by(2)));
    }
    finish(&port, threads);
}

#[test]
fn a_packet_and_a_sleeping_thread_meet() {
    explore(1_000, || every_packet_once(1, 2, 4));
    explore(1_000, || every_packet_once(2, 3, 5));
}

/// The interleavings of one push with one thread that goes to sleep.
#[test]
fn one_push_and_one_thread_meet() {
    explore_in_order(20_000, || {
        let port = Port::new(1, 1);
        let mut worker = Thread::new(0);
        let pushing = spawn_pusher(&port, 0..1);
        let packet = worker.dequeue(&port.central).expect("nobody closes the port");
        assert_eq!(packet.key(), 0);
        pushing.join().unwrap();
    });
}

/// As many packets as the limit allows are handled at the same time, wherever they came from: here
/// a thread without a slot had collected both.
#[test]
fn what_a_thread_collected_wakes_others_too() {
    explore(1_000, || {
        let port = Port::new(2, 4);
        let meet = meet(|key| key < 2);
        let mut threads: Vec<_> = (0..2).map(|index| spawn(&port, index, meet.clone())).collect();
        let other = Arc::clone(&port);
        threads.push(thread::spawn(move || {
            let mut collector = Thread::new(2);
            collector.collected.extend([packet(0), packet(1)]);
            // The limit was reached when it looked: it may not handle what it has collected.
            if collector.put_down(&other.central) {
                collector.serve(&other, meet);
            }
        }));
        (2..4).for_each(|key| port.push(key));
        finish(&port, threads);
    });
}

impl Thread {
    /// Parks with what it has collected, as a thread does that found no slot.
    fn put_down(&mut self, central: &Central) -> bool {
        match central.park(&self.slot, &mut self.collected) {
            Park::Closed => return false,
            Park::Work => {}
            Park::Parked => {
                self.sleep(central);
                central.unpark(&self.slot, false);
            }
        }
        true
    }
}

/// A handler that blocks hands its slot on: the packet that it waits for is handled.
#[test]
fn a_blocked_handler_hands_its_slot_on() {
    explore(1_000, || {
        let port = Port::new(1, 4);
        let met = Arc::new(Barrier::new(2));
        let mut threads = Vec::new();
        for index in 0..2 {
            let (other, met) = (Arc::clone(&port), Arc::clone(&met));
            threads.push(spawn(&port, index, move |slot, key| {
                if key < 2 {
                    other.beyond.fetch_add(1, SeqCst);
                    assert!(other.central.give_up(slot));
                    met.wait();
                    // It goes on whatever the limit says (rule 41), and only it may be beyond.
                    other.central.hold_beyond_limit(slot);
                    assert!(slot.is_held());
                }
            }));
        }
        threads.push(spawn_pusher(&port, 0..4));
        finish(&port, threads);
    });
}

/// A thread that was released for a packet and leaves, or finds the packet gone, leaves its slot.
#[test]
fn a_thread_that_leaves_leaves_its_slot() {
    explore(1_000, || {
        let port = Port::new(1, 3);
        let mut threads = vec![spawn(&port, 0, |_, _| {})];
        let leaving = Arc::clone(&port);
        threads.push(thread::spawn(move || {
            let mut worker = Thread::new(1);
            // As a dequeue that times out at any moment, whose thread ends then.
            if worker.put_down_for_a_moment(&leaving.central)
                && worker.slot.is_held()
                && let Some(packet) = worker.dequeue(&leaving.central)
            {
                leaving.begin(packet.key());
                leaving.end();
            }
            leaving.central.leave(&worker.slot);
        }));
        (0..3).for_each(|key| port.push(key));
        finish(&port, threads);
    });
}

impl Thread {
    fn put_down_for_a_moment(&mut self, central: &Central) -> bool {
        match central.park(&self.slot, &mut self.collected) {
            Park::Closed => return false,
            Park::Work => {}
            Park::Parked => {
                thread::yield_now();
                central.unpark(&self.slot, false);
            }
        }
        true
    }
}

/// A thread that takes an entry from the queue on its way does not leave the one who was released
/// for it with the slot.
#[test]
fn a_slot_that_was_granted_in_vain_comes_back() {
    explore(1_000, || {
        let port = Port::new(2, 4);
        // Packets 2 and 3 need both slots at once.
        let meet = meet(|key| key >= 2);
        let mut threads: Vec<_> = (0..3).map(|index| spawn(&port, index, meet.clone())).collect();
        threads.push(spawn_pusher(&port, 0..4));
        finish(&port, threads);
    });
}

#[test]
fn closing_wakes_everybody() {
    explore(1_000, || {
        let port = Port::new(1, usize::MAX);
        let threads: Vec<_> = (0..3).map(|index| spawn(&port, index, |_, _| {})).collect();
        let late = {
            let port = Arc::clone(&port);
            thread::spawn(move || usize::from(port.central.push(packet(0)).is_err()))
        };
        let queued = port.central.close().expect("it is closed once").len();
        assert!(port.central.close().is_none());
        for thread in threads {
            thread.join().unwrap();
        }
        let refused = late.join().unwrap();
        let taken = port.taken.lock().unwrap().len();
        assert_eq!(taken + queued + refused, 1, "the packet is taken, dropped or refused");
        assert_eq!(port.central.queued(), 0);
    });
}
