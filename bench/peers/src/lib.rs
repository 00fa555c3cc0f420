//! What every peer echo server shares: options, the listening socket, the
//! announcement, and the handler.
//!
//! Nothing here is on the path of a message except [`Handler::handle`], which
//! is one predictable branch unless `--stall-marks` is given. Each peer's way
//! of accepting, receiving and sending is its own, in `src/bin/`.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::exit;
use std::thread;
use std::time::{Duration, Instant};

/// First byte of a message whose handler blocks (sleeps) for [`STALL_TIME`].
pub const MARK_BLOCK: u8 = 0xF1;
/// First byte of a message whose handler spins for [`STALL_TIME`].
pub const MARK_SPIN: u8 = 0xF2;
/// How long a marked message occupies its handler.
pub const STALL_TIME: Duration = Duration::from_millis(10);

/// Pending connections the kernel may hold. A backlog of 1,024 drops
/// connections when thousands of clients connect at once.
pub const BACKLOG_CONNECTIONS: i32 = 4096;

/// Command-line options, the same for every peer.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen on; port 0 takes any free port.
    pub listen: SocketAddr,
    /// Threads that serve connections. What it means depends on the peer.
    pub workers: usize,
    /// Size of one receive buffer.
    pub buffer_bytes: usize,
    /// Number of receive buffers in a pool, for peers that have one.
    pub buffers: u16,
    /// Whether the handler obeys [`MARK_BLOCK`] and [`MARK_SPIN`].
    pub stall_marks: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            workers: 1,
            buffer_bytes: 65_536,
            buffers: 512,
            stall_marks: false,
        }
    }
}

const USAGE: &str = "options:
  --listen ADDRESS     address to listen on (127.0.0.1:0)
  --workers N          serving threads (1)
  --buffer-bytes N     size of a receive buffer (65536)
  --buffers N          receive buffers in a pool, a power of two (512)
  --stall-marks        a first byte 0xF1 blocks the handler 10 ms, 0xF2 spins";

impl Options {
    /// Reads the process arguments; prints the usage and exits on a mistake.
    pub fn from_arguments() -> Self {
        match Self::parse(std::env::args().skip(1)) {
            Ok(options) => options,
            Err(message) => {
                eprintln!("{message}\n{USAGE}");
                exit(2)
            }
        }
    }

    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--listen" => options.listen = number(&value()?)?,
                "--workers" => options.workers = number(&value()?)?,
                "--buffer-bytes" => options.buffer_bytes = number(&value()?)?,
                "--buffers" => options.buffers = number(&value()?)?,
                "--stall-marks" => options.stall_marks = true,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        if options.workers == 0 || options.buffer_bytes == 0 {
            return Err("--workers and --buffer-bytes must be at least 1".into());
        }
        if !options.buffers.is_power_of_two() {
            return Err("--buffers must be a power of two".into());
        }
        Ok(options)
    }

    /// The handler that these options ask for.
    pub fn handler(&self) -> Handler {
        Handler { stall_marks: self.stall_marks }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("bad value {text:?}"))
}

/// The application: an echo, which may stall on marked messages.
#[derive(Clone, Copy, Debug)]
pub struct Handler {
    stall_marks: bool,
}

impl Handler {
    /// Handles one received chunk, before it is sent back.
    #[inline(always)]
    pub fn handle(self, chunk: &[u8]) {
        if self.stall_marks {
            stall(chunk);
        }
    }
}

#[cold]
fn stall(chunk: &[u8]) {
    match chunk.first() {
        Some(&MARK_BLOCK) => thread::sleep(STALL_TIME),
        Some(&MARK_SPIN) => {
            let start = Instant::now();
            while start.elapsed() < STALL_TIME {
                std::hint::spin_loop();
            }
        }
        _ => {}
    }
}

/// Binds one non-blocking listening socket, with TCP_NODELAY set.
///
/// Linux copies TCP_NODELAY from a listening socket to those it accepts, so a
/// peer needs no system call per connection for it.
pub fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG_CONNECTIONS)?;
    Ok(socket.into())
}

/// Binds one listening socket and announces it.
pub fn listen_and_announce(options: &Options) -> io::Result<TcpListener> {
    raise_descriptor_limit();
    let listener = listen(options.listen, false)?;
    announce(listener.local_addr()?);
    Ok(listener)
}

/// Runs `serve` once per worker, each with a listening socket of its own on
/// the same port; the kernel spreads connections over them (SO_REUSEPORT).
/// This is how thread-per-core servers are deployed.
///
/// A worker that fails ends the process: a server with fewer workers than
/// asked for must not be measured.
pub fn serve_per_worker<F>(options: &Options, serve: F) -> io::Result<()>
where
    F: Fn(TcpListener) -> io::Result<()> + Clone + Send + 'static,
{
    raise_descriptor_limit();
    let first = listen(options.listen, options.workers > 1)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..options.workers {
        listeners.push(listen(address, true)?);
    }
    // Every socket listens before anybody is told: no connection can land on
    // a group that still grows.
    announce(address);
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let serve = serve.clone();
            thread::spawn(move || {
                if let Err(error) = serve(listener) {
                    eprintln!("worker failed: {error}");
                    exit(1);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("worker panicked"))?;
    }
    Ok(())
}

/// Prints the one line that tells a harness where the server listens.
pub fn announce(address: SocketAddr) {
    println!("listening on {address}");
}

/// Raises the soft limit of open descriptors to the hard one, and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for both calls, which keep no pointer.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur
}

/// What an accept loop does with an error: connection-level errors are
/// skipped, exhaustion waits a little so that the loop does not spin.
pub fn pause_for(error: &io::Error) -> Option<Duration> {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            Some(Duration::from_millis(10))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed_and_checked() {
        let parse = |text: &str| Options::parse(text.split_whitespace().map(str::to_owned));
        let options = parse("--workers 3 --buffer-bytes 4096 --stall-marks").unwrap();
        assert_eq!((options.workers, options.buffer_bytes), (3, 4096));
        assert!(options.stall_marks);
        assert!(parse("--workers 0").is_err());
        assert!(parse("--buffers 3").is_err());
        assert!(parse("--listen").is_err());
        assert!(parse("--unknown").is_err());
    }

    #[test]
    fn unmarked_messages_do_not_stall() {
        let handler = Handler { stall_marks: true };
        let start = Instant::now();
        handler.handle(&[0]);
        handler.handle(&[]);
        assert!(start.elapsed() < STALL_TIME);
        handler.handle(&[MARK_SPIN, 0]);
        assert!(start.elapsed() >= STALL_TIME);
    }
}
