//! The address of a server, as text and as somewhere to connect to.

use std::fmt;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A TCP address. A name may stand for several, of which the first that accepts is loaded.
    Tcp(Vec<SocketAddr>),
    /// A Unix-domain socket.
    Unix(PathBuf),
}

/// One address to connect to, the same for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix-domain socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Target {
    /// Settles on one address. A name with several is tried in turn, since `localhost`
    /// commonly names an IPv6 address that nobody listens on.
    pub(crate) fn settle(self, connect_timeout: Duration) -> Endpoint {
        match self {
            Self::Unix(path) => Endpoint::Unix(path),
            Self::Tcp(addresses) => {
                let accepts = |address: &&SocketAddr| {
                    addresses.len() > 1
                        && TcpStream::connect_timeout(address, connect_timeout).is_ok()
                };
                Endpoint::Tcp(*addresses.iter().find(accepts).unwrap_or(&addresses[0]))
            }
        }
    }
}

/// Reads `HOST:PORT`, `[V6]:PORT` or `unix:PATH`. The error is a line for the user.
pub(crate) fn parse_target(text: &str) -> Result<Target, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_unix(path);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return check_port(text, vec![address]);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("bad address '{text}': expected HOST:PORT, [V6]:PORT or unix:PATH"));
    };
    if host.is_empty() {
        return Err(format!("bad address '{text}': there is no host before the colon"));
    }
    if host.contains(':') {
        return Err(format!(
            "bad address '{text}': an IPv6 address needs brackets, as in [::1]:7000"
        ));
    }
    let Ok(port) = port.parse::<u16>() else {
        return Err(format!("bad address '{text}': '{port}' is no port from 1 to 65535"));
    };
    match (host, port).to_socket_addrs() {
        Ok(addresses) => check_port(text, addresses.collect()),
        Err(error) => Err(format!("bad address '{text}': cannot look up '{host}': {error}")),
    }
}

fn parse_unix(path: &str) -> Result<Target, String> {
    if path.is_empty() {
        return Err("bad address 'unix:': there is no path after the colon".into());
    }
    if cfg!(unix) {
        Ok(Target::Unix(PathBuf::from(path)))
    } else {
        Err(format!("bad address 'unix:{path}': this system has no Unix-domain streams"))
    }
}

fn check_port(text: &str, addresses: Vec<SocketAddr>) -> Result<Target, String> {
    match addresses.first() {
        None => Err(format!("bad address '{text}': the name stands for no address")),
        Some(address) if address.port() == 0 => {
            Err(format!("bad address '{text}': nobody can be reached on port 0"))
        }
        Some(_) => Ok(Target::Tcp(addresses)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Target {
        Target::Tcp(vec![text.parse().expect("a literal address")])
    }

    #[test]
    fn literal_addresses() {
        assert_eq!(parse_target("127.0.0.1:7000"), Ok(tcp("127.0.0.1:7000")));
        assert_eq!(parse_target("[::1]:7000"), Ok(tcp("[::1]:7000")));
        let unix = parse_target("unix:/tmp/echo");
        assert_eq!(unix.is_ok(), cfg!(unix));
        assert!(!cfg!(unix) || unix == Ok(Target::Unix("/tmp/echo".into())));
    }

    #[test]
    fn bad_addresses_are_named() {
        for bad in [
            "",
            "7000",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:x",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "::1:7000",
            ":7000",
            "unix:",
        ] {
            let line = parse_target(bad).expect_err(bad);
            assert!(line.starts_with("bad address"), "{bad}: {line}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn an_endpoint_prints_as_it_is_typed() {
        let texts = ["127.0.0.1:7000", "[::1]:7000", "unix:/tmp/echo"];
        for text in texts.into_iter().filter(|text| cfg!(unix) || !text.starts_with("unix:")) {
            let endpoint = parse_target(text).expect(text).settle(Duration::from_secs(1));
            assert_eq!(endpoint.to_string(), text);
        }
    }
}
