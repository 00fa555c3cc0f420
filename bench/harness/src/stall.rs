//! What stalled handlers cost the others: an open loop in which a few
//! messages are marked, so that their handler blocks or spins for 10 ms.
//!
//! Messages are due at the moments of a Poisson process, whatever the server
//! does; latency counts from the moment a message was due. Each goes to a
//! random connection that has none under way, so a message never waits behind
//! a marked one of its own socket, and every received chunk is one message.
//! What is reported is the latency of unmarked messages: of *other* sockets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::catalog::{Server, Skipped};
use crate::engine::{histogram, percentile_us};
use crate::process::Process;
use crate::stats::{Random, Spread};
use crate::sys::{self, Epoll, Event};

const MESSAGE_BYTES: usize = 64;
/// A server that does not answer for this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a marked message does to its handler.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It sleeps: the thread is off the CPU.
    Block,
    /// It computes: the thread holds the CPU.
    Spin,
}

impl Kind {
    fn mark(self) -> u8 {
        match self {
            Self::Block => 0xF1,
            Self::Spin => 0xF2,
        }
    }
}

/// What to measure.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Block or spin.
    pub kind: Kind,
    /// Connections to each server.
    pub connections: usize,
    /// Messages per second, to one server at a time.
    pub rate: f64,
    /// Share of marked messages.
    pub marked_share: f64,
    /// Threads of each server.
    pub workers: usize,
    /// Slices per server.
    pub rounds: usize,
    /// Length of a slice.
    pub slice_ms: u64,
    /// CPUs the servers run on.
    pub server_cpus: Vec<usize>,
    /// Orders the slices, and fixes each round's arrivals.
    pub seed: u64,
}

/// One server's rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The server.
    pub name: String,
    /// One per round.
    pub rounds: Vec<Measured>,
}

/// One slice. Latencies are those of unmarked messages.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Unmarked messages.
    pub messages: u64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
    /// CPU time of the server per message.
    pub cpu_us_per_message: f64,
}

impl Results {
    /// A figure of each round, summed up.
    pub fn spread(&self, figure: impl Fn(&Measured) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(figure))
    }
}

struct Contestant {
    name: String,
    process: Process,
    load: OpenLoad,
    /// A spinner runs beside it, and its handlers do not stall.
    is_floor: bool,
}

/// Runs all rounds. `spinner` is the binary whose bursts make the floor of
/// [`Kind::Spin`].
pub fn run(
    servers: &[Server],
    plan: &Plan,
    spinner: &Path,
    skipped: &mut Vec<Skipped>,
) -> Vec<Results> {
    let mut contestants = contestants(servers, plan, skipped);
    let mut results: Vec<Results> = contestants
        .iter()
        .map(|contestant| Results { name: contestant.name.clone(), rounds: Vec::new() })
        .collect();
    let mut random = Random::new(plan.seed);
    let mut failed = vec![false; contestants.len()];
    for round in 0..plan.rounds {
        eprintln!("  round {} of {}", round + 1, plan.rounds);
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        random.shuffle(&mut order);
        for index in order.into_iter().filter(|&index| !failed[index]).collect::<Vec<_>>() {
            let contestant = &mut contestants[index];
            // The same arrivals for every server of the round.
            let seed = plan.seed ^ ((round as u64 + 1) << 32);
            match slice(contestant, plan, seed, spinner) {
                Ok(measured) => results[index].rounds.push(measured),
                Err(error) => {
                    failed[index] = true;
                    eprintln!("  {} failed: {error}", contestant.name);
                    skipped.push(Skipped {
                        name: contestant.name.clone(),
                        reason: format!("stall: {error}"),
                    });
                }
            }
        }
    }
    results.retain(|results| results.rounds.len() == plan.rounds);
    results
}

fn contestants(servers: &[Server], plan: &Plan, skipped: &mut Vec<Skipped>) -> Vec<Contestant> {
    let mut wanted: Vec<(String, Vec<String>, bool)> = servers
        .iter()
        .map(|server| (server.name.clone(), server.words(plan.workers, true), false))
        .collect();
    let ring = servers.iter().find(|server| server.name == "raw-uring");
    if let (Kind::Spin, Some(ring)) = (plan.kind, ring) {
        wanted.push(("floor".into(), ring.words(1, false), true));
    }
    let mut contestants = Vec::new();
    for (name, words, is_floor) in wanted {
        let started = Process::start(&words, &plan.server_cpus).and_then(|process| {
            let load = OpenLoad::connect(process.address(), plan.connections)
                .map_err(|error| format!("connecting: {error}"))?;
            Ok((process, load))
        });
        match started {
            Ok((process, load)) => contestants.push(Contestant { name, process, load, is_floor }),
            Err(reason) => skipped.push(Skipped { name, reason }),
        }
    }
    contestants
}

fn slice(
    contestant: &mut Contestant,
    plan: &Plan,
    seed: u64,
    spinner: &Path,
) -> io::Result<Measured> {
    let _spinner = if contestant.is_floor {
        Some(Spinner::start(spinner, plan.rate * plan.marked_share)?)
    } else {
        None
    };
    let cpu_begin = contestant.process.cpu_time()?;
    // Beside spinning handlers the engine would wait for a CPU itself.
    if !sys::run_first() {
        eprintln!("  no real-time priority: the latencies include the load engine's own delay");
    }
    let latencies = contestant.load.run(plan, seed);
    sys::run_as_others();
    let latencies = latencies?;
    let cpu = contestant.process.cpu_time()? - cpu_begin;
    Ok(Measured {
        messages: latencies.len(),
        p50_ms: percentile_us(&latencies, 50.0) / 1e3,
        p99_ms: percentile_us(&latencies, 99.0) / 1e3,
        p999_ms: percentile_us(&latencies, 99.9) / 1e3,
        cpu_us_per_message: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
    })
}

/// The unrelated spinner, for as long as the value lives.
struct Spinner(Child);

impl Spinner {
    fn start(binary: &Path, rate: f64) -> io::Result<Self> {
        let rate = rate.to_string();
        Ok(Self(Command::new(binary).args(["--rate", &rate]).spawn()?))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Connection {
    stream: TcpStream,
    message: [u8; MESSAGE_BYTES],
    received: usize,
    due: Instant,
    under_way: bool,
}

/// Connections to one server, and those of them that are free.
struct OpenLoad {
    epoll: Epoll,
    connections: Vec<Connection>,
    free: Vec<usize>,
    number: u64,
}

impl OpenLoad {
    fn connect(address: SocketAddr, connections: usize) -> io::Result<Self> {
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
    fn run(&mut self, plan: &Plan, seed: u64) -> io::Result<Histogram<u64>> {
        let mut latencies = histogram();
        let begin = Instant::now();
        let end = begin + Duration::from_millis(plan.slice_ms);
        let (mut arrivals, mut choice) = (Random::new(seed), Random::new(!seed));
        let mut gap = || Duration::from_secs_f64(arrivals.exponential(1.0 / plan.rate));
        let mut due = begin + gap();
        loop {
            let now = Instant::now();
            if now > end + PATIENCE {
                return Err(io::Error::other("messages did not return"));
            }
            let more = due < end;
            if more && due <= now && !self.free.is_empty() {
                let marked = choice.unit() < plan.marked_share;
                let position = choice.below(self.free.len());
                self.send(position, marked.then(|| plan.kind.mark()), due)?;
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
