//! The listening socket: from the address on the command line to a socket that listens.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};

use proactor::{CompletionPort, ListenSocket};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::failure::Failure;

/// A socket that listens, and its address as text.
#[derive(Debug)]
pub(crate) struct Listening {
    socket: Socket,
    address: String,
    path: Option<SocketPath>,
}

/// The path of a Unix socket, which is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        // It may have been removed by somebody else; either way it is gone.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listening {
    /// Listens at `HOST:PORT`, `[V6]:PORT` or `unix:PATH`.
    pub(crate) fn at(text: &str, backlog: i32) -> Result<Self, Failure> {
        if let Some(path) = text.strip_prefix("unix:") {
            return listen_unix(Path::new(path), backlog)
                .map_err(|error| cannot_listen(text, &error));
        }
        let mut refusal = None;
        for address in resolve(text)? {
            match listen_tcp(address, backlog) {
                Ok(listening) => return Ok(listening),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        let refusal = refusal.unwrap_or_else(|| io::Error::other("the name stands for no address"));
        Err(cannot_listen(text, &refusal))
    }

    /// The address, with the port that the system chose where 0 was asked for.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The socket, for a model without a port. The path, if there is one, stays until it is dropped.
    pub(crate) fn into_parts(self) -> (Socket, Option<SocketPath>) {
        (self.socket, self.path)
    }

    /// Whether it is a Unix socket.
    pub(crate) fn is_unix(&self) -> bool {
        self.path.is_some()
    }

    /// Associates the socket with the port. The path, if there is one, stays until it is dropped.
    pub(crate) fn associate(
        self,
        port: &CompletionPort,
        key: usize,
    ) -> Result<(ListenSocket, Option<SocketPath>), proactor::Error> {
        #[cfg(unix)]
        if self.path.is_some() {
            let listener = std::os::unix::net::UnixListener::from(self.socket);
            return Ok((port.associate(listener, key)?, self.path));
        }
        Ok((port.associate(TcpListener::from(self.socket), key)?, self.path))
    }
}

fn cannot_listen(text: &str, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there",
        io::ErrorKind::PermissionDenied => "permission denied",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        _ => return Failure::new(format!("cannot listen on {text}: {error}")),
    };
    Failure::new(format!("cannot listen on {text}: {hint} ({error})"))
}

fn resolve(text: &str) -> Result<Vec<SocketAddr>, Failure> {
    let expected = "expected HOST:PORT, [V6]:PORT or unix:PATH";
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let bad = |why: &str| Failure::usage(format!("bad address '{text}': {why}"));
    let (host, port) = text.rsplit_once(':').ok_or_else(|| bad(expected))?;
    if host.is_empty() || host.contains(':') {
        return Err(bad(expected));
    }
    let Ok(port) = port.parse::<u16>() else {
        return Err(bad(&format!("'{port}' is no port from 0 to 65535")));
    };
    match (host, port).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(bad(&format!("cannot look up '{host}': {error}"))),
    }
}

fn listen_tcp(address: SocketAddr, backlog: i32) -> io::Result<Listening> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // On Unix this lets the server start again while old connections are in TIME_WAIT; on Windows
    // it would let two servers share the address.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it on Linux, so that it costs no call for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    let address = socket.local_addr()?.as_socket().unwrap_or(address).to_string();
    Ok(Listening { socket, address, path: None })
}

fn listen_unix(path: &Path, backlog: i32) -> io::Result<Listening> {
    if path.as_os_str().is_empty() {
        return Err(io::Error::other("there is no path after unix:"));
    }
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse || !is_left_over(path, &address)? {
            return Err(error);
        }
        std::fs::remove_file(path)?;
        socket.bind(&address)?;
    }
    let path = SocketPath(path.to_owned());
    socket.listen(backlog)?;
    let address = format!("unix:{}", path.0.display());
    Ok(Listening { socket, address, path: Some(path) })
}

/// Whether the path is a socket that nobody listens on any more.
fn is_left_over(path: &Path, address: &SockAddr) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
            return Ok(false);
        }
    }
    #[cfg(not(unix))]
    let _ = path; // A file's type does not say whether it is a socket.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    match probe.connect(address) {
        Ok(()) => Ok(false),
        Err(error) => Ok(error.kind() == io::ErrorKind::ConnectionRefused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_addresses_are_named() {
        for bad in ["", "7000", "localhost", ":7000", "::1:7000", "127.0.0.1:x", "127.0.0.1:65536"]
        {
            let line = format!("{:?}", Listening::at(bad, 1).expect_err(bad));
            assert!(line.contains("bad address"), "{bad}: {line}");
        }
    }

    #[test]
    fn a_port_is_chosen_where_none_is_given() {
        let listening = Listening::at("127.0.0.1:0", 1).unwrap();
        assert!(!listening.address().ends_with(":0"), "{}", listening.address());
    }

    #[cfg(unix)]
    #[test]
    fn a_left_over_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let address = format!("unix:{}", path.display());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = Listening::at(&address, 1).expect("nobody listens there");
        let line = format!("{:?}", Listening::at(&address, 1).expect_err("somebody does"));
        assert!(line.contains("another program listens there"), "{line}");
        drop(first);
        assert!(!path.exists(), "the path goes with the socket");
        std::fs::write(&path, "a file").unwrap();
        Listening::at(&address, 1).expect_err("a file is no socket");
        assert!(path.exists(), "and is left alone");
    }
}
