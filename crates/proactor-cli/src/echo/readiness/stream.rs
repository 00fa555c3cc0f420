//! Sockets of an event loop: TCP, and Unix where there is such a thing.

use std::io::{self, Read, Write};
use std::net::Shutdown;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use socket2::Socket;

/// What `poll` and `select` know a socket by.
#[cfg(unix)]
pub(super) type Descriptor<'a> = BorrowedFd<'a>;
/// There is neither elsewhere.
#[cfg(not(unix))]
pub(super) type Descriptor<'a> = std::marker::PhantomData<&'a ()>;

/// A listening socket that does not block.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(mio::net::TcpListener),
    #[cfg(unix)]
    Unix(mio::net::UnixListener),
}

/// A connection that does not block.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(mio::net::TcpStream),
    #[cfg(unix)]
    Unix(mio::net::UnixStream),
}

impl Listener {
    /// A listener of this socket.
    pub(super) fn new(socket: Socket, is_unix: bool) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        #[cfg(unix)]
        if is_unix {
            return Ok(Self::Unix(mio::net::UnixListener::from_std(socket.into())));
        }
        let _ = is_unix;
        Ok(Self::Tcp(mio::net::TcpListener::from_std(socket.into())))
    }

    /// The next connection of the backlog.
    pub(super) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            #[cfg(unix)]
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(listener) => listener,
            #[cfg(unix)]
            Self::Unix(listener) => listener,
        }
    }

    /// Has its readiness reported to this registry.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.source(), token, Interest::READABLE)
    }
}

impl Stream {
    /// Ends the sending side.
    pub(super) fn end(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            #[cfg(unix)]
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(stream) => stream,
            #[cfg(unix)]
            Self::Unix(stream) => stream,
        }
    }

    /// Has its readiness reported to this registry, once and for both directions. Closing the
    /// socket ends that.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.source(), token, Interest::READABLE | Interest::WRITABLE)
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(buffer),
            #[cfg(unix)]
            Stream::Unix(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            #[cfg(unix)]
            Stream::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Listener {
    /// The descriptor, for `poll` and `select`.
    pub(super) fn descriptor(&self) -> Descriptor<'_> {
        #[cfg(unix)]
        return match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        };
        #[cfg(not(unix))]
        Descriptor::default()
    }
}

impl Stream {
    /// The descriptor, for `poll` and `select`.
    pub(super) fn descriptor(&self) -> Descriptor<'_> {
        #[cfg(unix)]
        return match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        };
        #[cfg(not(unix))]
        Descriptor::default()
    }
}
