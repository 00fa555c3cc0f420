//! The closed-loop load: every connection has one message under way, and
//! sends the next when the echo of the last one is back and has been checked.
//!
//! One thread, one epoll set per server. The engine is the same for every
//! server, and its cost is the client's, which is not measured.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::process::Process;
use crate::stats::Random;
use crate::sys::{self, CpuClock, Epoll, Event};

/// How long a server may take to answer what is under way at a slice's end.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Bytes of a message that differ from message to message.
const STAMP_BYTES: usize = 8;

/// What one slice asks for.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Connections that take part; the others stay open and idle.
    pub connections: usize,
    /// Size of a message.
    pub message_bytes: usize,
    /// Time before the measurement.
    pub warm_up: Duration,
    /// Time that is measured.
    pub duration: Duration,
}

/// What one slice measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Messages that came back in the measured time.
    pub round_trips: u64,
    /// The measured time.
    pub seconds: f64,
    /// CPU time of the server process in it.
    pub server_cpu_ns: u64,
    /// CPU time of the load engine in it.
    pub client_cpu_ns: u64,
    /// CPU time of everything else on the machine in it; a figure much above
    /// zero says that the machine was not quiet.
    pub foreign_cpu_ns: u64,
    /// Latency percentiles, in microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
}

impl Measured {
    /// CPU time of the server per round trip, in microseconds.
    pub fn cpu_us_per_round_trip(&self) -> f64 {
        self.server_cpu_ns as f64 / 1e3 / self.round_trips as f64
    }

    /// Round trips per second.
    pub fn rate(&self) -> f64 {
        self.round_trips as f64 / self.seconds
    }
}

struct Connection {
    stream: TcpStream,
    /// Differs in every message of every connection.
    stamp: [u8; STAMP_BYTES],
    sent: usize,
    received: usize,
    started: Instant,
    under_way: bool,
}

/// The connections to one server.
pub struct Load {
    epoll: Epoll,
    connections: Vec<Connection>,
    pattern: Vec<u8>,
    buffer: Vec<u8>,
    latencies: Histogram<u64>,
    round_trips: u64,
    under_way: usize,
}

impl Load {
    /// Opens `connections` connections, for messages of up to
    /// `largest_bytes`.
    pub fn connect(
        address: SocketAddr,
        connections: usize,
        largest_bytes: usize,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let mut opened = Vec::with_capacity(connections);
        for index in 0..connections {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll.add(stream.as_raw_fd(), index)?;
            opened.push(Connection {
                stream,
                // The first byte is below 0x80: never a stall mark.
                stamp: ((index as u64) << 40).to_be_bytes(),
                sent: 0,
                received: 0,
                started: Instant::now(),
                under_way: false,
            });
        }
        let mut random = Random::new(largest_bytes as u64);
        Ok(Self {
            epoll,
            connections: opened,
            pattern: (0..largest_bytes).map(|_| random.below(256) as u8).collect(),
            buffer: vec![0; largest_bytes],
            latencies: histogram(),
            round_trips: 0,
            under_way: 0,
        })
    }

    /// Loads the server for one slice and measures it. Nothing is returned if
    /// no message came back within the slice: on a busy machine the server or
    /// the engine may have had no CPU for as long.
    pub fn run(&mut self, server: &Process, slice: Slice) -> io::Result<Option<Measured>> {
        let message_bytes = slice.message_bytes;
        assert!((STAMP_BYTES..=self.pattern.len()).contains(&message_bytes));
        for index in 0..slice.connections {
            self.start(index, message_bytes, Instant::now())?;
        }
        self.turn_until(Instant::now() + slice.warm_up, message_bytes, true)?;

        self.latencies.reset();
        self.round_trips = 0;
        let client = CpuClock::of_this_thread();
        let (begin, client_begin) = (Instant::now(), client.now()?);
        let machine_begin = sys::machine_cpu_time()?;
        let server_begin = server.cpu_time()?;
        self.turn_until(begin + slice.duration, message_bytes, true)?;
        let server_cpu = server.cpu_time()? - server_begin;
        let (elapsed, client_cpu) = (begin.elapsed(), client.now()? - client_begin);
        let machine_cpu = sys::machine_cpu_time()?.saturating_sub(machine_begin);
        let foreign_cpu = machine_cpu.saturating_sub(server_cpu + client_cpu);
        let measured = Measured {
            round_trips: self.round_trips,
            seconds: elapsed.as_secs_f64(),
            server_cpu_ns: server_cpu.as_nanos() as u64,
            client_cpu_ns: client_cpu.as_nanos() as u64,
            foreign_cpu_ns: foreign_cpu.as_nanos() as u64,
            p50_us: percentile_us(&self.latencies, 50.0),
            p99_us: percentile_us(&self.latencies, 99.0),
            p999_us: percentile_us(&self.latencies, 99.9),
        };

        // What is under way comes back before the next server's slice.
        self.turn_until(Instant::now() + DRAIN_TIME, message_bytes, false)?;
        if self.under_way > 0 {
            let lost = self.under_way;
            return Err(io::Error::other(format!("{lost} messages did not return")));
        }
        Ok((measured.round_trips > 0).then_some(measured))
    }

    /// Round trips that the last slice counted, with those of its drain.
    pub fn round_trips(&self) -> u64 {
        self.round_trips
    }

    /// Serves events until the deadline. With `go_on` a finished message is
    /// followed by the next; without, the loop ends early when none is under
    /// way.
    fn turn_until(
        &mut self,
        deadline: Instant,
        message_bytes: usize,
        go_on: bool,
    ) -> io::Result<()> {
        while go_on || self.under_way > 0 {
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            let count = self.epoll.wait(deadline - now)?;
            for position in 0..count {
                let event = self.epoll.event(position);
                self.serve(event, message_bytes, go_on)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize, message_bytes: usize, now: Instant) -> io::Result<()> {
        let connection = &mut self.connections[index];
        let number = u64::from_be_bytes(connection.stamp) + 1;
        connection.stamp = number.to_be_bytes();
        connection.sent = 0;
        connection.received = 0;
        connection.started = now;
        connection.under_way = true;
        self.under_way += 1;
        self.pattern[..STAMP_BYTES].copy_from_slice(&connection.stamp);
        connection.send(&mut self.pattern[..message_bytes])
    }

    fn serve(&mut self, event: Event, message_bytes: usize, go_on: bool) -> io::Result<()> {
        let connection = &mut self.connections[event.index];
        if event.is_end() {
            return Err(io::Error::other("the server closed a connection"));
        }
        if !connection.under_way {
            return Ok(()); // room to send, and nothing to send
        }
        connection.send(&mut self.pattern[..message_bytes])?;
        if !connection.receive(&mut self.pattern[..message_bytes], &mut self.buffer)? {
            return Ok(());
        }
        let now = Instant::now();
        let latency = now - connection.started;
        connection.under_way = false;
        self.under_way -= 1;
        self.round_trips += 1;
        self.latencies.saturating_record(latency.as_nanos() as u64);
        if go_on {
            self.start(event.index, message_bytes, now)?;
        }
        Ok(())
    }
}

impl Connection {
    /// Sends what the connection has room for. `message` is shared by all
    /// connections; its stamp is put in first.
    fn send(&mut self, message: &mut [u8]) -> io::Result<()> {
        if self.sent == message.len() {
            return Ok(());
        }
        message[..STAMP_BYTES].copy_from_slice(&self.stamp);
        while self.sent < message.len() {
            match self.stream.write(&message[self.sent..]) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives and compares what is there; true when the message is whole.
    fn receive(&mut self, message: &mut [u8], buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err(io::Error::other("the server closed a connection")),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let end = self.received + length;
            if end > self.sent {
                return Err(io::Error::other("more came back than was sent"));
            }
            message[..STAMP_BYTES].copy_from_slice(&self.stamp);
            if buffer[..length] != message[self.received..end] {
                return Err(io::Error::other("other bytes came back than were sent"));
            }
            self.received = end;
            if end == message.len() {
                return Ok(true);
            }
            if length < buffer.len() {
                return Ok(false); // the socket is empty; an edge will come
            }
        }
    }
}

/// A histogram of nanoseconds, up to a minute.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}

/// A percentile of a histogram of nanoseconds, in microseconds.
pub fn percentile_us(latencies: &Histogram<u64>, percentile: f64) -> f64 {
    latencies.value_at_percentile(percentile) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn connection_to(reply: impl FnOnce(TcpStream) + Send + 'static) -> Load {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || reply(listener.accept().unwrap().0));
        Load::connect(address, 1, 64).unwrap()
    }

    fn one_message(load: &mut Load) -> io::Result<()> {
        load.start(0, 64, Instant::now())?;
        load.turn_until(Instant::now() + Duration::from_secs(5), 64, false)
    }

    #[test]
    fn an_echo_in_pieces_is_a_round_trip() {
        let mut load = connection_to(|mut stream| {
            let mut message = [0; 64];
            stream.read_exact(&mut message).unwrap();
            for byte in message {
                stream.write_all(&[byte]).unwrap();
            }
            thread::sleep(Duration::from_secs(1));
        });
        one_message(&mut load).unwrap();
        assert_eq!((load.round_trips, load.under_way), (1, 0));
    }

    #[test]
    fn a_wrong_byte_is_noticed() {
        let mut load = connection_to(|mut stream| {
            let mut message = [0; 64];
            stream.read_exact(&mut message).unwrap();
            message[63] ^= 1;
            stream.write_all(&message).unwrap();
            thread::sleep(Duration::from_secs(1));
        });
        let error = one_message(&mut load).unwrap_err();
        assert!(error.to_string().contains("other bytes"));
    }

    #[test]
    fn a_closed_connection_is_noticed() {
        let mut load = connection_to(drop);
        assert!(one_message(&mut load).is_err());
    }
}
