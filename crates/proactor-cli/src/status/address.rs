//! Where a status is served: on this machine only.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A loopback address or the path of a Unix socket.
///
/// There is no other kind: a status tells who is connected and how busy the server is, and its
/// endpoint asks nobody who they are. So it is never open to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StatusAddress {
    /// A loopback address: every user of this machine may look.
    Loopback(SocketAddr),
    /// A Unix socket, which only its owner may open.
    Unix(PathBuf),
}

impl FromStr for StatusAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("there is no path after 'unix:'".into()),
                _ if cfg!(unix) => Ok(Self::Unix(path.into())),
                _ => Err("this system has no Unix sockets".into()),
            };
        }
        let wrong = "expected 127.0.0.1:PORT, [::1]:PORT or unix:PATH";
        let address: SocketAddr = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}").parse().map_err(|_| wrong)?,
            None => text.parse().map_err(|_| wrong)?,
        };
        if address.ip().is_loopback() {
            Ok(Self::Loopback(address))
        } else {
            Err(format!("{} is not a loopback address: a status is for this machine", address.ip()))
        }
    }
}

impl fmt::Display for StatusAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(formatter, "{address}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

impl StatusAddress {
    /// Connects; waits no longer than `limit`.
    pub(crate) fn connect(&self, limit: Duration) -> io::Result<Box<dyn io::Read + Send>> {
        match self {
            Self::Loopback(address) => {
                Ok(Box::new(TcpStream::connect_timeout(address, limit)?) as _)
            }
            #[cfg(unix)]
            Self::Unix(path) => Ok(Box::new(std::os::unix::net::UnixStream::connect(path)?) as _),
            #[cfg(not(unix))]
            Self::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Listens.
    pub(crate) fn listen(&self) -> io::Result<StatusListener> {
        match self {
            Self::Loopback(address) => Ok(StatusListener::Tcp(TcpListener::bind(address)?)),
            #[cfg(unix)]
            Self::Unix(path) => {
                // Made with the rights that it shall have, so that it is never open to others.
                let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
                let listener = std::os::unix::net::UnixListener::bind(path);
                rustix::process::umask(before);
                Ok(StatusListener::Unix(listener?, path.clone()))
            }
            #[cfg(not(unix))]
            Self::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A socket that takes connections of those who want to look.
pub(crate) enum StatusListener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

impl StatusListener {
    /// Where it is; the port is the one that the system chose.
    pub(crate) fn address(&self) -> io::Result<StatusAddress> {
        match self {
            Self::Tcp(listener) => Ok(StatusAddress::Loopback(listener.local_addr()?)),
            #[cfg(unix)]
            Self::Unix(_, path) => Ok(StatusAddress::Unix(path.clone())),
        }
    }

    /// Waits for the next connection; writing to it does not wait.
    pub(crate) fn accept(&self) -> io::Result<Box<dyn io::Write + Send>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
            #[cfg(unix)]
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_for_this_machine() {
        for good in ["127.0.0.1:7001", "127.8.8.8:1", "[::1]:7001"] {
            assert_eq!(good.parse::<StatusAddress>().map(|a| a.to_string()).as_deref(), Ok(good));
        }
        let local = "localhost:0".parse::<StatusAddress>().unwrap();
        assert_eq!(local.to_string(), "127.0.0.1:0");
        for bad in ["0.0.0.0:1", "[::]:1", "192.168.0.1:1", "example.org:1", "7001", "", "unix:"] {
            assert!(bad.parse::<StatusAddress>().is_err(), "{bad}");
        }
    }
}
