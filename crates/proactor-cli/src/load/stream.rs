//! A non-blocking stream to the server, TCP or Unix-domain, and how it is opened.

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mio::event::Source;
use mio::net::TcpStream;
#[cfg(unix)]
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::address::Endpoint;

/// Source ports taken in turn: the range that systems commonly use for clients.
const PORT_FIRST: u64 = 32_768;
const PORT_COUNT: u64 = 28_232;
/// Source addresses taken in turn: 127.0.0.2 to 127.0.0.254. 127.0.0.1 is left to others.
const HOST_FIRST: u64 = 2;
const HOST_COUNT: u64 = 253;
/// How many source ports are tried before a connect is given up.
const BIND_ATTEMPTS: usize = 64;

/// A stream of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix-domain.
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Stream {
    /// What to ask the poll for at first.
    ///
    /// A TCP socket announces room only after it was found full, so asking for both at once saves
    /// a system call later. A Unix socket announces room each time that the peer reads, which
    /// would be a wake-up per message; there, room is asked for when it is needed.
    pub(crate) fn first_interest(&self) -> Interest {
        match self {
            Self::Tcp(_) => Interest::READABLE | Interest::WRITABLE,
            #[cfg(unix)]
            Self::Unix(_) => Interest::READABLE,
        }
    }

    /// Whether a non-blocking connect has succeeded; `None` while it has done neither.
    pub(crate) fn connect_result(&self) -> Option<io::Result<()>> {
        let (pending_error, peer) = match self {
            Self::Tcp(stream) => (stream.take_error(), stream.peer_addr().map(drop)),
            #[cfg(unix)]
            Self::Unix(stream) => (stream.take_error(), stream.peer_addr().map(drop)),
        };
        match (pending_error, peer) {
            (Ok(Some(error)), _) | (Err(error), _) => Some(Err(error)),
            (Ok(None), Ok(())) => Some(Ok(())),
            (Ok(None), Err(error)) if error.kind() == io::ErrorKind::NotConnected => None,
            (Ok(None), Err(error)) => Some(Err(error)),
        }
    }

    /// Reads once.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            #[cfg(unix)]
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    /// Writes once. One piece goes without a gathering call, which costs the kernel less.
    pub(crate) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            (Self::Tcp(stream), [slice]) => stream.write(slice),
            (Self::Tcp(stream), slices) => stream.write_vectored(slices),
            #[cfg(unix)]
            (Self::Unix(stream), [slice]) => stream.write(slice),
            #[cfg(unix)]
            (Self::Unix(stream), slices) => stream.write_vectored(slices),
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish_sending(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            #[cfg(unix)]
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl Source for Stream {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interest),
            #[cfg(unix)]
            Self::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.reregister(registry, token, interest),
            #[cfg(unix)]
            Self::Unix(stream) => stream.reregister(registry, token, interest),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.deregister(registry),
            #[cfg(unix)]
            Self::Unix(stream) => stream.deregister(registry),
        }
    }
}

/// Opens streams to one endpoint.
#[derive(Debug)]
pub(crate) struct Connector {
    endpoint: Endpoint,
    reset: bool,
    /// Counts through the source addresses and ports, if they are taken in turn.
    next_source: Option<AtomicU64>,
}

impl Connector {
    /// `spread_sources` takes source addresses in turn, which the 127.x.x.x network of a loopback
    /// interface allows: each has its own ports, so ports in TIME_WAIT do not run out.
    pub(crate) fn new(endpoint: Endpoint, reset: bool, spread_sources: bool) -> Self {
        let loopback =
            matches!(&endpoint, Endpoint::Tcp(SocketAddr::V4(to)) if to.ip().is_loopback());
        // Two loads at once should not begin at the same port.
        let begin = u64::from(std::process::id()) * 977;
        let spread = spread_sources && loopback && cfg!(target_os = "linux");
        Self { endpoint, reset, next_source: spread.then(|| AtomicU64::new(begin)) }
    }

    /// Where the streams go.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Begins to connect. `WouldBlock` means that the server's queue is full and nothing has begun.
    pub(crate) fn connect(&self) -> io::Result<Stream> {
        match &self.endpoint {
            Endpoint::Tcp(address) => self.connect_tcp(*address).map(Stream::Tcp),
            #[cfg(unix)]
            Endpoint::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            #[cfg(not(unix))]
            Endpoint::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn connect_tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        // A message is one write and should be one segment, now.
        socket.set_tcp_nodelay(true)?;
        if self.reset {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        if let Some(next_source) = &self.next_source {
            bind_in_turn(&socket, next_source)?;
        }
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if is_in_progress(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(TcpStream::from_std(socket.into()))
    }
}

/// Binds to the next source address and port. The port is named and not left to the system, which
/// would search longer the more ports are in use; that also leaves each one alone for as long as
/// possible, since it comes round again after 7 million others.
fn bind_in_turn(socket: &Socket, next_source: &AtomicU64) -> io::Result<()> {
    // Allows a port that is in TIME_WAIT towards somebody else.
    socket.set_reuse_address(true)?;
    let mut attempts = 0;
    loop {
        let turn = next_source.fetch_add(1, Ordering::Relaxed);
        let source = source_address(turn);
        match socket.bind(&source.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts < BIND_ATTEMPTS => {
                attempts += 1
            }
            result => return result,
        }
    }
}

/// The source of connect number `turn`: first all addresses at one port, then at the next.
fn source_address(turn: u64) -> SocketAddr {
    let host = HOST_FIRST + turn % HOST_COUNT;
    let port = PORT_FIRST + turn / HOST_COUNT % PORT_COUNT;
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, host as u8)), port as u16)
}

fn is_in_progress(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) {
        return true;
    }
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn sources_come_round_late() {
        let sources: HashSet<SocketAddr> = (0..100_000).map(source_address).collect();
        assert_eq!(sources.len(), 100_000);
        assert_eq!(source_address(0), source_address(HOST_COUNT * PORT_COUNT));
        assert!(
            sources
                .iter()
                .all(|source| source.ip() != Ipv4Addr::LOCALHOST && source.port() >= 32_768)
        );
    }
}
