//! What an idle connection costs in process memory.
//!
//! Each server in turn is started afresh and warmed up, so that its pools and
//! its allocator are in place; then thousands of connections are opened, each
//! is served one message, and the growth is divided by their number. Memory
//! of the kernel (sockets, descriptors) is not in it: it is the same for all.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use socket2::{Domain, Socket, Type};

use crate::catalog::{Server, Skipped};
use crate::process::{Memory, Process};
use crate::sys;

const MESSAGE: [u8; 64] = [0x42; 64];
const WARM_CONNECTIONS: usize = 8;
const WARM_MESSAGES: usize = 4096;
/// Connections per source address: far fewer than there are ports.
const PER_SOURCE: usize = 5000;
const SETTLE_TIME: Duration = Duration::from_millis(500);
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// One server's memory.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The server.
    pub name: String,
    /// Connections that were opened.
    pub connections: usize,
    /// Warm, without them.
    pub before: Memory,
    /// With all of them open and idle.
    pub after: Memory,
    /// Growth of the resident set per connection.
    pub rss_bytes_per_connection: f64,
    /// Growth of the proportional set per connection.
    pub pss_bytes_per_connection: f64,
}

/// Measures each server in turn.
pub fn run(
    servers: &[Server],
    connections: usize,
    workers: usize,
    cpus: &[usize],
    skipped: &mut Vec<Skipped>,
) -> Vec<Results> {
    let mut all = Vec::new();
    for server in servers {
        eprintln!("  {}", server.name);
        match measure(server, connections, workers, cpus) {
            Ok(results) => all.push(results),
            Err(reason) => {
                eprintln!("  {} failed: {reason}", server.name);
                skipped
                    .push(Skipped { name: server.name.clone(), reason: format!("idle: {reason}") });
            }
        }
    }
    all
}

fn measure(
    server: &Server,
    connections: usize,
    workers: usize,
    cpus: &[usize],
) -> Result<Results, String> {
    let process = Process::start(&server.words(workers, false), cpus)?;
    let text = |error: io::Error| error.to_string();
    warm_up(process.address()).map_err(text)?;
    thread::sleep(SETTLE_TIME);
    let before = process.memory().map_err(text)?;
    let mut open = Vec::with_capacity(connections);
    for index in 0..connections {
        let stream = connect(process.address(), index)
            .and_then(|mut stream| exchange(&mut stream).map(|()| stream))
            .map_err(|error| format!("connection {index}: {error}"))?;
        open.push(stream);
    }
    thread::sleep(SETTLE_TIME);
    let after = process.memory().map_err(text)?;
    // The first and the last still work: idle, not forgotten.
    for index in [0, connections - 1] {
        exchange(&mut open[index]).map_err(text)?;
    }
    let per_connection =
        |before: u64, after: u64| (after as f64 - before as f64) / connections as f64;
    Ok(Results {
        name: server.name.clone(),
        connections,
        before,
        after,
        rss_bytes_per_connection: per_connection(before.rss_bytes, after.rss_bytes),
        pss_bytes_per_connection: per_connection(before.pss_bytes, after.pss_bytes),
    })
}

fn warm_up(address: SocketAddr) -> io::Result<()> {
    let mut streams = (0..WARM_CONNECTIONS)
        .map(|index| connect(address, index))
        .collect::<io::Result<Vec<_>>>()?;
    for number in 0..WARM_MESSAGES {
        exchange(&mut streams[number % WARM_CONNECTIONS])?;
    }
    Ok(())
}

fn connect(address: SocketAddr, index: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if let IpAddr::V4(ip) = address.ip()
        && ip.is_loopback()
    {
        // A source address of its own per some thousand connections; the port
        // is chosen at connect, when the destination is known.
        sys::choose_port_at_connect(&socket)?;
        let source = Ipv4Addr::new(127, 0, 1, (index / PER_SOURCE + 1) as u8);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    // Closing resets, so that no port is left waiting for a minute.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_read_timeout(Some(ANSWER_TIME))?;
    socket.connect_timeout(&address.into(), ANSWER_TIME)?;
    Ok(socket.into())
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut answer = [0; MESSAGE.len()];
    stream.write_all(&MESSAGE)?;
    stream.read_exact(&mut answer)?;
    if answer != MESSAGE {
        return Err(io::Error::other("other bytes came back than were sent"));
    }
    Ok(())
}
