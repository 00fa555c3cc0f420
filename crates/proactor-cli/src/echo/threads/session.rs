//! One client, on a thread of its own.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::Socket;

use super::{Connection, Server};
use crate::echo::totals::Tally;

/// The most that one call receives.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a client that the server has ended must be silent before the connection is closed.
const QUIET: Duration = Duration::from_millis(100);

/// Prepares a client's socket.
#[cfg(unix)]
pub(super) fn prepare(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

/// Where nothing wakes a thread that receives, it has to look by itself.
#[cfg(not(unix))]
pub(super) fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(500)))
}

/// How a session's reading ended.
enum End {
    /// The client has ended its side.
    Client,
    /// The server drains.
    Drain,
}

/// Sends back what comes, until the client ends its side or the server drains.
pub(super) fn serve(server: &Server, connection: &Connection) -> Tally {
    let mut tally = Tally::default();
    let socket = &connection.socket;
    let result = echo(server, socket, &mut tally).and_then(|end| {
        if let End::Drain = end {
            connection.has_noticed_drain.store(true, Ordering::SeqCst);
        }
        socket.shutdown(Shutdown::Write)?;
        match end {
            End::Client => Ok(()),
            End::Drain => linger(socket),
        }
    });
    if let Err(error) = result
        && !server.is_cut_off()
    {
        tally.count_failure(&error);
    }
    tally
}

fn echo(server: &Server, socket: &Socket, tally: &mut Tally) -> io::Result<End> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut stream = socket;
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(End::Client),
            Ok(count) => count,
            Err(error) if is_to_be_repeated(&error) && server.is_draining() => {
                return Ok(End::Drain);
            }
            Err(error) if is_to_be_repeated(&error) => continue,
            Err(error) => return Err(error),
        };
        tally.completions += 1;
        tally.bytes_received += count as u64;
        server.handler.handle(&buffer[..count]);
        send_all(socket, &buffer[..count], tally)?;
        if server.is_draining() {
            return Ok(End::Drain);
        }
    }
}

/// `write_all`, with a count of what was sent before it failed.
fn send_all(mut socket: &Socket, mut bytes: &[u8], tally: &mut Tally) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(count) => {
                tally.bytes_sent += count as u64;
                bytes = &bytes[count..];
            }
            Err(error) if is_to_be_repeated(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Discards what a client still sends until it is silent or ends its side too, because closing with
/// unread bytes would reset the connection and might lose what was sent.
fn linger(mut socket: &Socket) -> io::Result<()> {
    socket.set_read_timeout(Some(QUIET))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It was silent for long enough, or the connection is broken: everything is sent.
            Err(_) => return Ok(()),
        }
    }
}

/// Interrupted by a signal, or (where reads have a time limit) without bytes so far.
fn is_to_be_repeated(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
