//! The open loop: messages are due at the moments of a Poisson process,
//! whatever the server does, and latency counts from the moment a message was
//! due. Each goes to a random connection that has none under way, so every
//! received chunk is one message.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::engine::histogram;
use crate::stats::Random;
use crate::sys::{Epoll, Event};

const MESSAGE_BYTES: usize = 64;
/// A server that does not answer for this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one slice asks for.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Messages per second.
    pub rate: f64,
    /// Its length.
    pub duration: Duration,
    /// Messages that do something to their handler.
    pub marked: Option<Marked>,
    /// Fixes the arrivals.
    pub seed: u64,
}

/// Marked messages.
#[derive(Clone, Copy, Debug)]
pub struct Marked {
    /// How many of all.
    pub share: f64,
    /// Their first byte.
    pub byte: u8,
}

struct Connection {
    stream: TcpStream,
    message: [u8; MESSAGE_BYTES],
    received: usize,
    due: Instant,
    under_way: bool,
}

/// Connections to one server, and those of them that are free.
pub struct OpenLoad {
    epoll: Epoll,
    connections: Vec<Connection>,
    free: Vec<usize>,
    number: u64,
}

impl OpenLoad {
    /// Opens the connections.
    pub fn connect(address: SocketAddr, connections: usize) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let mut opened = Vec::with_capacity(connections);
        for index in 0..connections {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll.add(stream.as_raw_fd(), index)?;
            opened.push(Connection {
                stream,
                message: [0; MESSAGE_BYTES],
                received: 0,
                due: Instant::now(),
                under_way: false,
            });
        }
        Ok(Self { epoll, connections: opened, free: (0..connections).collect(), number: 0 })
    }

    /// One slice; returns the latencies of unmarked messages.
    pub fn run(&mut self, slice: &Slice) -> io::Result<Histogram<u64>> {
        let mut latencies = histogram();
        let begin = Instant::now();
        let end = begin + slice.duration;
        let (mut arrivals, mut choice) = (Random::new(slice.seed), Random::new(!slice.seed));
        let mut gap = || Duration::from_secs_f64(arrivals.exponential(1.0 / slice.rate));
        let mut due = begin + gap();
        loop {
            let now = Instant::now();
            if now > end + PATIENCE {
                return Err(io::Error::other("messages did not return"));
            }
            let more = due < end;
            if more && due <= now && !self.free.is_empty() {
                let chance = choice.unit();
                let mark = slice.marked.filter(|marked| chance < marked.share);
                let position = choice.below(self.free.len());
                self.send(position, mark.map(|marked| marked.byte), due)?;
                due += gap();
                continue;
            }
            if !more && self.free.len() == self.connections.len() {
                return Ok(latencies);
            }
            let wait = if more && due > now { due - now } else { PATIENCE };
            let count = self.epoll.wait(wait)?;
            for position in 0..count {
                let event = self.epoll.event(position);
                self.receive(event, &mut latencies)?;
            }
        }
    }

    /// Sends a marked message to one connection and, `after` that, an unmarked one to another; then
    /// waits for both, and records the latency of the unmarked one.
    pub fn probe(
        &mut self,
        random: &mut Random,
        mark: u8,
        after: Duration,
        latencies: &mut Histogram<u64>,
    ) -> io::Result<()> {
        self.send(random.below(self.free.len()), Some(mark), Instant::now())?;
        thread::sleep(after);
        self.send(random.below(self.free.len()), None, Instant::now())?;
        let deadline = Instant::now() + PATIENCE;
        while self.free.len() < self.connections.len() {
            if Instant::now() > deadline {
                return Err(io::Error::other("messages did not return"));
            }
            let count = self.epoll.wait(PATIENCE)?;
            for position in 0..count {
                let event = self.epoll.event(position);
                self.receive(event, latencies)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, position: usize, mark: Option<u8>, due: Instant) -> io::Result<()> {
        let connection = &mut self.connections[self.free.swap_remove(position)];
        self.number += 1;
        connection.message = [0x5A; MESSAGE_BYTES];
        connection.message[1..9].copy_from_slice(&self.number.to_be_bytes());
        connection.message[0] = mark.unwrap_or(0);
        connection.received = 0;
        connection.due = due;
        connection.under_way = true;
        let sent = connection.stream.write(&connection.message)?;
        if sent < MESSAGE_BYTES {
            return Err(io::Error::other("no room for a message of 64 bytes"));
        }
        Ok(())
    }

    fn receive(&mut self, event: Event, latencies: &mut Histogram<u64>) -> io::Result<()> {
        let connection = &mut self.connections[event.index];
        if event.is_end() {
            return Err(io::Error::other("the server closed a connection"));
        }
        if !connection.under_way {
            return Ok(());
        }
        let mut buffer = [0; MESSAGE_BYTES];
        let length = match connection.stream.read(&mut buffer) {
            Ok(0) => return Err(io::Error::other("the server closed a connection")),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let end = connection.received + length;
        if connection.message.get(connection.received..end) != Some(&buffer[..length]) {
            return Err(io::Error::other("other bytes came back than were sent"));
        }
        connection.received = end;
        if end == MESSAGE_BYTES {
            connection.under_way = false;
            self.free.push(event.index);
            if connection.message[0] == 0 {
                let latency = connection.due.elapsed();
                latencies.saturating_record(latency.as_nanos() as u64);
            }
        }
        Ok(())
    }
}
