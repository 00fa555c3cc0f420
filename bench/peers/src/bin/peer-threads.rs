//! Echo server with a thread per client and blocking calls.
//!
//! `--workers` has no meaning here: there are as many threads as clients.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;

use bench_peers::{Handler, Options, listen_and_announce, pause_for};

/// A client's thread calls `read` and `write` only; its buffer is on the heap.
const STACK_BYTES: usize = 64 * 1024;

fn main() -> io::Result<()> {
    let options = Options::from_arguments();
    let (handler, buffer_bytes) = (options.handler(), options.buffer_bytes);
    let listener = listen_and_announce(&options)?;
    listener.set_nonblocking(false)?;
    loop {
        let accepted = listener.accept().and_then(|(stream, _)| {
            thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn(move || echo(stream, handler, buffer_bytes))
        });
        if let Err(error) = accepted
            && let Some(pause) = pause_for(&error)
        {
            thread::sleep(pause);
        }
    }
}

/// Serves one client to its end; an error ends that client alone.
fn echo(mut stream: TcpStream, handler: Handler, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        handler.handle(&buffer[..length]);
        stream.write_all(&buffer[..length])?;
    }
}
