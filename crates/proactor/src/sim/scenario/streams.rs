//! Connections between two sources of one port, with many operations at once: cancelled, shut down
//! and closed at any time.

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Plan;
use crate::sim::{Random, World};
use crate::{
    Completion, CompletionPort, ListenSocket, Operation, OperationId, SendBuffer, StreamSocket,
};

const LISTENER: usize = 1;
const HOUR: Duration = Duration::from_secs(3600);

struct Streams {
    port: CompletionPort,
    address: SocketAddr,
    table: Mutex<Table>,
}

struct Table {
    random: Random,
    listener: Option<ListenSocket>,
    accepts: Vec<OperationId>,
    streams: BTreeMap<usize, Entry>,
    next_key: usize,
    /// Streams that may still be connected, and steps that may still be taken.
    connects_left: usize,
    steps_left: usize,
}

struct Entry {
    stream: StreamSocket,
    started: Vec<OperationId>,
}

pub(super) fn run(plan: &Plan, world: &World, random: &mut Random) {
    let address: SocketAddr = ([127, 0, 0, 1], 9000).into();
    let port = world
        .port()
        .concurrency(random.between(1, 3) as usize)
        .receive_buffer_bytes(random.between(64, 2000) as usize)
        .receive_window_bytes(random.between(64, 8000) as usize)
        .build();
    let listener = world.listen_with_backlog(address, random.between(1, 4) as usize);
    let (Ok(port), Ok(listener)) = (port, listener) else {
        return world.violation("the port does not open");
    };
    let listener = port.associate(listener, LISTENER).ok();
    let streams = Arc::new(Streams {
        port,
        address,
        table: Mutex::new(Table {
            random: world.random(),
            listener,
            accepts: Vec::new(),
            streams: BTreeMap::new(),
            next_key: 100,
            connects_left: plan.clients * 2,
            steps_left: plan.clients * plan.messages * 4,
        }),
    });
    for _ in 0..plan.workers {
        let streams = Arc::clone(&streams);
        world.spawn("worker", move || {
            while let Ok(completion) = streams.port.dequeue(None) {
                streams.handle(completion);
            }
        });
    }
    while streams.steps_left() > 0 {
        streams.lock_and_step();
        world.run_for(Duration::from_micros(1 << random.below(20)));
    }
    world.stop_faults();
    world.run_for(Duration::from_secs(random.below(200)));
    streams.close(random);
    if !world.run_until(HOUR, || world.pending_operations() == 0) {
        world.violation("operations are left after everything was closed");
    }
    world.run_for(Duration::from_secs(30));
    streams.port.close();
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn steps_left(&self) -> usize {
        self.lock().steps_left
    }

    fn handle(&self, mut completion: Completion) {
        let mut table = self.lock();
        drop(completion.take_chunk());
        let Some(mut operation) = completion.take_operation() else { return };
        if let Some(accepted) = operation.take_accepted() {
            let key = table.new_key();
            if let Ok(stream) = self.port.associate(accepted, key) {
                table.streams.insert(key, Entry { stream, started: Vec::new() });
            }
        }
        let is_gone = completion
            .error()
            .is_some_and(|error| matches!(error.kind(), crate::ErrorKind::ConnectionReset));
        if is_gone && table.random.chance(0.5) {
            let entry = table.streams.remove(&completion.key());
            drop(table);
            drop(entry);
            return;
        }
        if table.steps_left > 0 {
            self.step(&mut table, Some(operation));
        }
    }

    fn lock_and_step(&self) {
        let mut table = self.lock();
        self.step(&mut table, None);
    }

    /// Does something to something.
    fn step(&self, table: &mut Table, operation: Option<Operation>) {
        table.steps_left = table.steps_left.saturating_sub(1);
        let operation = operation.unwrap_or_default();
        match table.random.below(10) {
            0 if table.connects_left > 0 => self.connect(table, operation),
            1 => table.accept(operation),
            2 if table.random.chance(0.3) => table.cancel_accept(),
            _ => table.step_on_stream(operation),
        }
    }

    fn connect(&self, table: &mut Table, operation: Operation) {
        table.connects_left -= 1;
        let key = table.new_key();
        if let Ok(stream) = StreamSocket::for_peer(&self.port, &self.address, key) {
            let id = stream.connect(operation, self.address).ok();
            table.streams.insert(key, Entry { stream, started: id.into_iter().collect() });
        }
    }

    /// Closes everything, or first has it all cancelled.
    fn close(&self, random: &mut Random) {
        let mut table = self.lock();
        table.listener = None;
        let streams = std::mem::take(&mut table.streams);
        drop(table);
        for entry in streams.values() {
            if random.chance(0.3) {
                entry.stream.cancel_all();
            }
        }
        drop(streams);
        // What is accepted from now on goes with its packet.
    }
}

impl Table {
    fn new_key(&mut self) -> usize {
        self.next_key += 1;
        self.next_key
    }

    fn accept(&mut self, operation: Operation) {
        if let Some(listener) = &self.listener
            && let Ok(id) = listener.accept(operation)
        {
            self.accepts.push(id);
        }
    }

    fn cancel_accept(&mut self) {
        if let (Some(listener), Some(id)) = (&self.listener, self.accepts.pop()) {
            listener.cancel(id);
        }
    }

    fn step_on_stream(&mut self, operation: Operation) {
        let count = self.streams.len() as u64;
        if count == 0 {
            return;
        }
        let place = self.random.below(count) as usize;
        let Some((key, entry)) = self.streams.iter_mut().nth(place) else { return };
        let random = &mut self.random;
        let started = match random.below(16) {
            0..=3 => entry.stream.recv(operation, Vec::with_capacity(random.part_of(4000))),
            4 => entry.stream.recv(operation, Vec::new()),
            5 => {
                let buffers = (0..3).map(|_| Vec::with_capacity(random.part_of(500))).collect();
                entry.stream.recv_vectored(operation, buffers)
            }
            6 | 7 => entry.stream.recv_continuous(operation),
            8..=10 => entry.stream.send(operation, noise(random)),
            11 => {
                let buffers = (0..3).map(|_| SendBuffer::from(noise(random))).collect();
                entry.stream.send_vectored(operation, buffers)
            }
            12 | 13 => {
                if let Some(id) = entry.started.pop() {
                    entry.stream.cancel(id);
                }
                return;
            }
            14 if random.chance(0.1) => entry.stream.disconnect(operation),
            14 if random.chance(0.1) => {
                let _ = entry.stream.shutdown(Shutdown::Both);
                return;
            }
            15 if random.chance(0.1) => {
                let key = *key;
                self.streams.remove(&key);
                return;
            }
            _ => return,
        };
        if let Ok(id) = started {
            entry.started.push(id);
        }
    }
}

fn noise(random: &mut Random) -> Vec<u8> {
    (0..random.part_of(6000)).map(|_| random.bits() as u8).collect()
}
